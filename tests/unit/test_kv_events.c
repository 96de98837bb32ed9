/* KV events: all encodings mean the same; what engines add is passed over; keys are those of prompts given as token ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/core/prefix_index.h"
#include "controller/engines/kv_blocks.h"
#include "controller/mock/mock_batch.h"
#include "controller/openai/openai_request.h"

#define PROMPT 128u /* tokens */

static uint32_t tokens[PROMPT];
static struct prefix_index *cached; /* of one worker, as the core keeps it */
static uint32_t block_tok;          /* of the core */
static struct kv_blocks *blocks;
static struct kv_decoder decoder;

static void told(void *ctx, const struct core_cache_event *ev)
{
    (void)ctx;
    if (ev->cleared)
        prefix_index_forget(cached, 0);
    else
        prefix_index_change(cached, 0, block_tok, ev->stored, ev->depth, ev->n_blocks, ev->keys);
}

static void start(uint32_t core_block_tok)
{
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = 1000 * i + 7;
    block_tok = core_block_tok;
    cached = prefix_index_new(1, 0);
    blocks = kv_blocks_new(core_block_tok, "m", told, NULL);
}

static void stop(void)
{
    prefix_index_free(cached);
    kv_blocks_free(blocks);
    kv_decoder_deinit(&decoder);
}

static void on_event(void *ctx, const struct kv_event *ev)
{
    (void)ctx;
    kv_blocks_event(blocks, ev);
}

static int decode(const void *s, size_t n)
{
    return kv_events_decode(&decoder, s, n, on_event, NULL);
}

static void take(struct mock_batch *b)
{
    const struct mock_bytes *w = mock_batch_end(b, 1.5);
    assert_int_equal(decode(w->s, w->len), 0);
}

/* Tokens of the prompt that the core believes to be cached, asked with what the reader of requests makes of it. */
static uint32_t believed(const char *salt)
{
    static char body[PROMPT * 12 + 100];
    char error[OPENAI_ERROR_BYTES];
    const char *param;
    struct openai_request q;
    uint32_t match[1] = {0}, touched[1];
    int n = snprintf(body, sizeof body, "{\"model\":\"m\",%s\"prompt\":[", salt);
    for (uint32_t i = 0; i < PROMPT; i++)
        n += snprintf(body + n, sizeof body - (size_t)n, "%s%u", i ? "," : "", tokens[i]);
    n += snprintf(body + n, sizeof body - (size_t)n, "]}");
    struct openai_reader *r = openai_reader_new();
    assert_int_equal(openai_request_read(r, OPENAI_COMPLETIONS, body, (size_t)n, &q, error, &param),
                     0);
    struct prefix_chain p = {q.keys, q.n_keys, q.key_tok, block_tok};
    prefix_index_match(cached, &p, prefix_chain_blocks(&p, PROMPT), match, touched);
    openai_reader_free(r);
    return match[0] * block_tok;
}

/* Stored in two events, the second behind the first; the last block goes. */
static void follow(enum mock_encoding enc, uint32_t size, uint32_t core_block_tok)
{
    uint64_t hashes[PROMPT];
    uint32_t n = PROMPT / size, half = n / 2;
    struct mock_batch b = {.encoding = enc};
    start(core_block_tok);
    for (uint32_t i = 0; i < n; i++)
        hashes[i] = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    mock_batch_cleared(&b);
    mock_batch_stored(&b, hashes, half, NULL, tokens, size, NULL);
    take(&b);
    assert_int_equal(believed(""), PROMPT / 2);
    assert_int_equal(believed("\"cache_salt\":\"s\","), 0);
    mock_batch_stored(&b, hashes + half, n - half, &hashes[half - 1], tokens + half * size, size,
                      NULL);
    take(&b);
    assert_int_equal(believed(""), PROMPT);
    prefix_index_forget(cached, 0);
    kv_blocks_tell_all(blocks);
    assert_int_equal(believed(""), PROMPT);
    mock_batch_removed(&b, &hashes[n - 1], 1);
    take(&b);
    uint32_t lost = size > core_block_tok ? size : core_block_tok;
    assert_int_equal(believed(""), PROMPT - (lost > OPENAI_CHUNK_TOK ? lost : OPENAI_CHUNK_TOK));
    assert_int_equal(kv_blocks_stats(blocks)->blocks, n - 1);
    mock_batch_cleared(&b);
    take(&b);
    assert_int_equal(believed(""), 0);
    assert_int_equal(kv_blocks_stats(blocks)->blocks, 0);
    assert_int_equal(prefix_index_blocks(cached, 0), 0);
    mock_batch_deinit(&b);
    stop();
}

static void all_encodings_and_sizes(void **state)
{
    static const uint32_t sizes[] = {1, 4, 16, 32, 64}, cores[] = {8, 16, 32};
    (void)state;
    for (int enc = 0; enc < MOCK_ENC_COUNT; enc++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (size_t k = 0; k < sizeof cores / sizeof *cores; k++)
                follow((enum mock_encoding)enc, sizes[i], cores[k]);
        }
    }
}

static void salts(void **state)
{
    (void)state;
    uint64_t hashes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct mock_batch b = {.encoding = MOCK_ENC_MAP};
    start(16);
    mock_batch_stored(&b, hashes, 8, NULL, tokens, 16, "s");
    take(&b);
    assert_int_equal(believed(""), 0);
    assert_int_equal(believed("\"cache_salt\":\"s\","), PROMPT);
    mock_batch_deinit(&b);
    stop();
}

/* A block is known by its parent; one whose parent is not known, or that has no keys, is counted. */
static void what_cannot_be_told_is_counted(void **state)
{
    (void)state;
    uint64_t hashes[8] = {1, 2, 3, 4, 5, 6, 7, 8}, stranger = 99;
    uint32_t ids[24 * 2] = {0};
    struct kv_extra image[2] = {{.n = 1, .text = {{"a", 1}}}, {.n = 1, .text = {{"hash", 4}}}};
    struct mock_batch b = {.encoding = MOCK_ENC_MAP};
    start(16);
    mock_batch_stored(&b, hashes, 2, &stranger, tokens, 16, NULL);
    mock_batch_removed(&b, &stranger, 1);
    mock_batch_stored(&b, hashes, 2, NULL, ids, 24, NULL); /* 24: no multiple, no divisor */
    take(&b);
    assert_int_equal(kv_blocks_stats(blocks)->orphans, 2);
    assert_int_equal(kv_blocks_stats(blocks)->strangers, 1);
    assert_int_equal(kv_blocks_stats(blocks)->unfit, 2);

    struct kv_event ev = {.kind = KV_STORED,
                          .hashes = hashes,
                          .n_hashes = 2,
                          .tokens = tokens,
                          .n_tokens = 32,
                          .block_size = 16,
                          .medium = {"CPU", 3}};
    kv_blocks_event(blocks, &ev); /* another tier */
    ev.medium.s = NULL;
    ev.group = 1;
    kv_blocks_event(blocks, &ev); /* another group of layers */
    assert_int_equal(kv_blocks_stats(blocks)->elsewhere, 4);
    ev.group = 0;
    ev.has_lora_id = true;
    kv_blocks_event(blocks, &ev); /* an adapter without a name, and what hangs on it */
    assert_int_equal(kv_blocks_stats(blocks)->nameless, 1);
    ev.has_lora_id = false;
    ev.odd_tokens = true;
    kv_blocks_event(blocks, &ev);
    assert_int_equal(kv_blocks_stats(blocks)->nameless, 3);
    ev.odd_tokens = false;
    ev.lora_name = (struct kv_text){"a", 1};
    ev.extra = image;
    ev.n_extra = 2;
    kv_blocks_event(blocks, &ev); /* the first block has its adapter's name, the second an image */
    assert_int_equal(kv_blocks_stats(blocks)->nameless, 4);
    assert_int_equal(kv_blocks_stats(blocks)->blocks, 1);
    mock_batch_deinit(&b);
    stop();
}

static void limit(void **state)
{
    (void)state;
    static uint64_t hashes[4096];
    static uint32_t ids[4096];
    start(16);
    struct kv_event ev = {
        .kind = KV_STORED, .hashes = hashes, .tokens = ids, .block_size = 1, .n_hashes = 4096};
    ev.n_tokens = 4096;
    for (uint64_t done = 0; done < KV_BLOCKS_MAX + 1; done += 4096) {
        for (uint32_t i = 0; i < 4096; i++)
            hashes[i] = done + i + 1;
        kv_blocks_event(blocks, &ev);
    }
    assert_int_equal(kv_blocks_stats(blocks)->blocks, KV_BLOCKS_MAX);
    assert_int_equal(kv_blocks_stats(blocks)->beyond, 1);
    stop();
}

/* What vLLM 0.32 sends, with fields that nobody knows; and events that nobody knows. */
static void unknown_fields_and_events(void **state)
{
    (void)state;
    static const char batch[] =
        "\x93\xcb\x41\xda\x00\x00\x00\x00\x00\x00"
        "\x93"
        "\x86\xa4type\xabSomethingNu\xa1x\x81\xa1y\x93\x01\xc0\xc3\xa1z\xc4\x02hi"
        "\xa1v\xcb\x00\x00\x00\x00\x00\x00\x00\x00\xa1w\xd4\x01\x02\xa1q\xff"
        "\x83\xa9ownership\xc0\xa4type\xb0"
        "AllBlocksCleared\xa8locality\xc0"
        "\x92\xacNeverHeardOf\x01"
        "\x00";
    start(16);
    assert_int_equal(decode(batch, sizeof batch - 1), 0);
    assert_int_equal(decoder.unknown, 2);
    assert_int_equal(kv_blocks_stats(blocks)->cleared, 1);
    stop();
}

static void broken_off(void **state)
{
    (void)state;
    uint64_t hashes[2] = {1, UINT64_MAX};
    for (int enc = 0; enc < MOCK_ENC_COUNT; enc++) {
        struct mock_batch b = {.encoding = (enum mock_encoding)enc};
        start(16);
        mock_batch_stored(&b, hashes, 2, NULL, tokens, 16, "salt");
        mock_batch_removed(&b, hashes, 1);
        const struct mock_bytes *w = mock_batch_end(&b, 0);
        for (size_t n = 0; n < w->len; n++)
            assert_int_equal(decode(w->s, n), WEIR_E_INPUT);
        assert_int_equal(decode(w->s, w->len), 0);
        mock_batch_deinit(&b);
        stop();
    }
    start(16);
    assert_int_equal(decode("\x93\x00\xdd\xff\xff\xff\xff\x00", 8), WEIR_E_INPUT); /* 2^32 events */
    assert_int_equal(decode("\x90", 1), WEIR_E_INPUT);                             /* none at all */
    assert_int_equal(decode("\xc0", 1), WEIR_E_INPUT);
    assert_int_equal(decode("\x92\xd4", 2),
                     WEIR_E_INPUT); /* an ext without its type, as all that follow */
    assert_int_equal(decode("\x92\xd8", 2), WEIR_E_INPUT);
    assert_int_equal(decode("\x92\xc7\x00", 3), WEIR_E_INPUT);
    assert_int_equal(decode("\x92\xc9\x00\x00\x00\x00", 6), WEIR_E_INPUT);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_encodings_and_sizes),        cmocka_unit_test(salts),
        cmocka_unit_test(what_cannot_be_told_is_counted), cmocka_unit_test(limit),
        cmocka_unit_test(unknown_fields_and_events),      cmocka_unit_test(broken_off),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
