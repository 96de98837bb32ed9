/* fuzz_kv_events.c - batches of KV events of engines that send anything, decoded and followed. What the core is told must
 * be well-formed, and what is stored must be what is removed again. */
#include <stdint.h>
#include <stdlib.h>

#include "controller/core/prefix_index.h"
#include "controller/engines/kv_blocks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void told(void *ctx, const struct core_cache_event *ev)
{
    struct prefix_index *x = ctx;
    if (ev->cleared) {
        prefix_index_forget(x, 0);
        return;
    }
    if (!ev->n_blocks || !ev->keys)
        abort();
    prefix_index_change(x, 0, 16, ev->stored, ev->depth, ev->n_blocks, ev->keys);
}

static void on_event(void *ctx, const struct kv_event *ev)
{
    kv_blocks_event(ctx, ev);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct prefix_index *x = prefix_index_new(1, 0);
    struct kv_blocks *b = kv_blocks_new(16, "m", told, x);
    struct kv_decoder d = {.hashes = NULL};
    if (!kv_events_decode(&d, data, size, on_event, b) && size > KV_EVENTS_MAX_BYTES)
        abort(); /* decoded, though it is too large */
    uint64_t before = prefix_index_blocks(x, 0);
    kv_blocks_tell_all(b);
    if (prefix_index_blocks(x, 0) < before)
        abort();
    kv_blocks_clear(b);
    if (prefix_index_blocks(x, 0))
        abort();
    kv_decoder_deinit(&d);
    kv_blocks_free(b);
    prefix_index_free(x);
    return 0;
}
