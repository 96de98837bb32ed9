/* mock_batch.h - KV events of `weir mock`: batches as vLLM and SGLang write them (engines/kv_events.h). No I/O. */
#ifndef WEIR_MOCK_BATCH_H
#define WEIR_MOCK_BATCH_H

#include <stddef.h>
#include <stdint.h>

enum mock_encoding {
    MOCK_ENC_MAP,    /* vLLM since June 2026: maps, hashes as unsigned integers */
    MOCK_ENC_ARRAY,  /* vLLM before: arrays, hashes as 32 bytes */
    MOCK_ENC_SGLANG, /* arrays of the first fields, hashes as signed integers */
    MOCK_ENC_COUNT
};
/* Their names on the command line. */
extern const char *const mock_encoding_names[MOCK_ENC_COUNT];

struct mock_bytes {
    char *s;
    size_t len, cap;
};

struct mock_batch {
    enum mock_encoding encoding;
    uint32_t n; /* events */
    struct mock_bytes events, whole;
};

void mock_batch_deinit(struct mock_batch *b);

/* n blocks one behind the other, the first behind parent (NULL: none); tokens: n * block_size. salt: of the first block, or
 * NULL. */
void mock_batch_stored(struct mock_batch *b, const uint64_t *hashes, uint32_t n,
                       const uint64_t *parent, const uint32_t *tokens, uint32_t block_size,
                       const char *salt);
void mock_batch_removed(struct mock_batch *b, const uint64_t *hashes, uint32_t n);
void mock_batch_cleared(struct mock_batch *b);

/* The batch, good until the next call; the next events begin another one. */
const struct mock_bytes *mock_batch_end(struct mock_batch *b, double ts);

#endif
