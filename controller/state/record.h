/* record.h - the messages of proto/weir.proto as C structs: written, and read back with every check that bytes from
 * others need. I/O-free.
 *
 * Reading refuses, with a reason that is counted by whoever reads: too large, malformed (not the message, or cut), from the
 * future (a version that this reader does not know, or a time of sending more than RECORD_MAX_AHEAD_US ahead), for another key,
 * or with contents outside the limits below. A field that this reader does not know is passed over.
 */
#ifndef WEIR_RECORD_H
#define WEIR_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/engine_config.h"
#include "predictor/error.h"

#define RECORD_VERSION 1u
#define RECORD_MAX_BYTES 65536u /* of one message */
#define RECORD_NAME_BYTES 256u  /* names and addresses, with their NUL */
#define RECORD_MODEL_BYTES 256u /* with its NUL */
#define RECORD_DETAIL_BYTES 160u
#define RECORD_MAX_MODELS 16u
#define RECORD_MAX_LORAS 64u
#define RECORD_MAX_LOADS 512u        /* workers in one message; more take several */
#define RECORD_MAX_LEASE_MS 3600000u /* an hour */
#define RECORD_MAX_AHEAD_US                                                                        \
    5000000 /* what clocks of two machines may differ: NTP keeps them far closer */
#define RECORD_MAX_BLOCKS (1u << 30)
#define RECORD_MAX_TOKENS (UINT64_C(1) << 40) /* in flight at one worker */

enum record_failure {
    RECORD_FAILURE_NONE,
    RECORD_UNREACHABLE, /* no answer */
    RECORD_STALLED,     /* requests run, and no token comes */
    RECORD_ERRORS,      /* answers are errors, or cannot be read */
    RECORD_GPU,         /* its GPU reports errors */
    RECORD_FAILURES
};
/* "none", "unreachable" ... */
const char *record_failure_name(enum record_failure f);

/* A worker as the agent beside it reports it. Counters and sums are since the engine's start. */
struct worker_record {
    char name[RECORD_NAME_BYTES];    /* HOST:PORT */
    char address[RECORD_NAME_BYTES]; /* http://HOST:PORT or https://HOST:PORT */
    enum worker_role role;
    uint32_t n_models, n_loras;
    char models[RECORD_MAX_MODELS][RECORD_MODEL_BYTES];
    char loras[RECORD_MAX_LORAS][RECORD_MODEL_BYTES];
    uint64_t epoch, sequence;
    int64_t measured_at_us, sent_at_us; /* Unix time; measured 0: never */
    uint32_t lease_ms;
    enum record_failure failure;
    char failure_detail[RECORD_DETAIL_BYTES];
    uint32_t running, waiting, kv_used_blocks, kv_total_blocks, block_size;
    uint64_t queried_tok, hit_tok, preemptions;
    uint64_t steps, prompt_tok, output_tok, ttft_count, itl_count;
    double ttft_sum_s, itl_sum_s;
};

/* What a controller has at a worker, not over. */
struct worker_load {
    char worker[RECORD_NAME_BYTES];
    uint32_t requests, prefilling;
    uint64_t prefill_tok, prompt_tok;
};

struct dispatches {
    char controller[RECORD_NAME_BYTES];
    uint64_t sequence;
    int64_t sent_at_us;
    uint32_t lease_ms;
    bool whole; /* workers that are not named have nothing */
    uint32_t n;
    struct worker_load *loads; /* RECORD_MAX_LOADS places where it is read into */
};

enum record_fault {
    RECORD_GOOD,
    RECORD_TOO_LARGE,
    RECORD_MALFORMED,
    RECORD_FUTURE,
    RECORD_WRONG_KEY,
    RECORD_INVALID, /* contents outside the limits */
    RECORD_FAULTS
};
/* "good", "too_large" ... */
const char *record_fault_name(enum record_fault f);

/* Writes into out (cap bytes). *len: what it took. 0, WEIR_E_LIMIT (more than RECORD_MAX_BYTES or cap) or WEIR_E_INVALID
 * (contents that a reader would refuse). */
WEIR_NODISCARD int record_write_worker(const struct worker_record *r, uint8_t *out, size_t cap,
                                       size_t *len);
WEIR_NODISCARD int record_write_dispatches(const struct dispatches *d, uint8_t *out, size_t cap,
                                           size_t *len);

/* name: what the key that it was found under says; NULL: any. now_us: Unix time. *out is whole only if RECORD_GOOD. */
enum record_fault record_read_worker(struct worker_record *out, const char *name, const void *bytes,
                                     size_t len, int64_t now_us);
enum record_fault record_read_dispatches(struct dispatches *out, const void *bytes, size_t len,
                                         int64_t now_us);

#endif
