/* tier.h - KV below the GPU: the host-memory tier of one engine, and the copies between it, the GPU and the
 * store that workers share (shared_tier.h).
 *
 * Rules, as in vLLM's OffloadingConnector (vllm/v1/kv_offload, 0.11 and later) and NVIDIA's AISimulate, which
 * follows it (docs on G2 and G3):
 *   - Write-through: blocks are copied down when they are complete, not when the GPU evicts them: a prompt's when
 *     it has been computed, an answer's when the request leaves the GPU (LMCache's and vLLM's block-by-block
 *     stores move the same bytes, earlier). What the tier has already is not copied again, only touched.
 *   - Space is taken when the copy begins; least recently used blocks make way. What does not fit beside what is
 *     in use is not stored, and counted.
 *   - Copies down and copies up are two lanes, each one copy after the other at full bandwidth. They take
 *     nothing from the GPU's compute.
 *   - Blocks can be found when their copy is complete, and stay on the GPU until then even if their request
 *     has left.
 *   - What is complete in host memory goes on to the shared store, one copy after the other.
 *   - A load pins what it reads. What comes from the shared store stays in host memory as well.
 * Chosen here: a prefix is kept from its first block on (kv.h), where vLLM's tier may hold its middle only.
 *
 * Plain data with indices; a clone is a few memcpy. No I/O, no clock.
 */
#ifndef WEIR_TIER_H
#define WEIR_TIER_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/block_store.h"
#include "predictor/engine_config.h"
#include "predictor/kv.h"
#include "predictor/request.h"

/* At either limit blocks are not stored, and counted (tier_stats.skipped_blocks). */
#define TIER_MAX_JOBS 4096u               /* copies of one engine on their way down */
#define TIER_MAX_KEYS (UINT32_C(1) << 22) /* names of their blocks */

#define TIER_NO_JOB 0 /* jobs are numbered from 1 */

struct shared_tier;

/* Copies one after the other. */
struct tier_lane {
    uint64_t bytes_per_s; /* 0: no limit */
    int64_t free_ps;      /* when it is done with what it has */
};

/* Blocks on their way down. */
struct tier_job {
    int64_t due_ps; /* in host memory */
    uint64_t uid;   /* with the keys: their names (request.h) */
    uint32_t key_off, n_keys, key_tok, prompt_tok;
    uint32_t blocks;          /* of the prefix, with those that were there */
    struct block_ticket host; /* their place */
    struct kv_hold gpu;       /* blocks that the GPU gives up then */
};

struct tier_stats {
    uint64_t stored_blocks, skipped_blocks; /* copied down; had no room */
    uint64_t host_blocks, shared_blocks;    /* loaded from there */
};

struct tier {
    uint64_t block_bytes;
    bool has_host;
    struct block_store host;
    struct tier_lane down, up;

    /* jobs first..stored - 1 go to the shared store, stored..end - 1 to host memory; number n is in
     * jobs[n % jobs_cap] */
    struct tier_job *jobs;
    uint32_t jobs_cap;
    uint64_t first, stored, end;
    uint64_t *keys; /* of the jobs, in their order, from keys_first on */
    uint32_t keys_first, keys_used, keys_cap;

    struct shared_tier *shared; /* borrowed; NULL: none */
    uint32_t client;            /* this engine's name there */
    bool writing;               /* job `first` is being written to it */
    struct tier_stats stats;
};

/* From the engine's limits, checked by engine_config_check. 0 or WEIR_E_NOMEM. */
WEIR_NODISCARD int tier_init(struct tier *t, const struct engine_config *c);
void tier_deinit(struct tier *t);
/* dst, initialised or zero, becomes as src, but knows of no shared store: what was on its way there is dropped.
 * tier_reserve_as, which keeps what dst has, made room for it: 0 or WEIR_E_NOMEM. */
void tier_copy(struct tier *dst, const struct tier *src);
WEIR_NODISCARD int tier_reserve_as(struct tier *dst, const struct tier *src);
/* The machine died: nothing is there or on its way. Jobs' blocks of the GPU are forgotten: the caller takes
 * them first (tier_take_gpu). The shared store has forgotten this client (shared_tier_cancel). */
void tier_reset(struct tier *t);

/* Leading blocks of s, at most max, in host memory. */
uint32_t tier_host_blocks(const struct tier *t, const struct request_spec *s, uint32_t max);
/* In the shared store; 0 without one. */
uint32_t tier_shared_blocks(const struct tier *t, const struct request_spec *s, uint32_t max);

/* Copies down what is not there of the first n blocks of s. Returns the job, or TIER_NO_JOB if nothing is
 * copied. s is copied. */
uint64_t tier_store(struct tier *t, int64_t now, const struct request_spec *s, uint32_t n);

/* Whether a job is still copying from the GPU; then *gpu is taken over until it is done (at most once a job). */
bool tier_keep(struct tier *t, uint64_t job, struct kv_hold *gpu);
/* When the job's copy from the GPU is or was done. */
int64_t tier_job_due_ps(const struct tier *t, uint64_t job);

/* When the next copy down is complete; PS_NEVER: none is under way. */
int64_t tier_next_ps(const struct tier *t);
/* Completes the next copy down if it is due by now; *gpu: blocks that the GPU may now free (perhaps none). */
bool tier_complete(struct tier *t, int64_t now, struct kv_hold *gpu);
/* The write to the shared store (`transfer` of shared_tier_pop) is complete; the next one begins. */
void tier_written(struct tier *t, int64_t now, uint32_t transfer);
/* A job's blocks of the GPU, of any job; false: there are none (any more). */
bool tier_take_gpu(struct tier *t, struct kv_hold *gpu);

/* Brings n blocks up: returns when they are on the GPU. */
int64_t tier_load(struct tier *t, int64_t now, uint32_t n);
/* The first n blocks of s, which are in host memory, stay there until tier_loaded. */
void tier_pin(struct tier *t, const struct request_spec *s, uint32_t n, struct block_ticket *pin);
/* A load is over. The from_shared blocks behind those of pin came through host memory and stay there, as far as
 * they fit. */
void tier_loaded(struct tier *t, const struct request_spec *s, struct block_ticket *pin,
                 uint32_t from_shared);

#endif
