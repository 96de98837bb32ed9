/* engine.h - one simulated engine: continuous batching over a KV cache, pass by pass.
 *
 * A *pass* is one iteration: the scheduler picks a batch, the step model says how long it takes, and at
 * its end tokens come out. Between events that change a batch, decode-only passes are taken together
 * (*fast-forward*): with a linear step model any number of them is one sum, else one tight loop. The
 * results are bit-identical to taking them one by one (engine_set_stepping; a property test holds
 * this on random clusters).
 *
 * Protocol, for a caller that keeps time (cluster.c, or a test):
 *   1. engine_run(e, t): everything that ends at or before t ends;
 *   2. read and clear the events; submit, abort, release as of t, in any number;
 *   3. engine_start(e, t) when nothing more happens at t: a pass begins if one can;
 *   4. engine_next_ps(e) is when the next thing ends.
 * A request that is submitted while a pass runs waits for its end. No I/O, no clock, no globals.
 */
#ifndef WEIR_ENGINE_H
#define WEIR_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/engine_config.h"
#include "predictor/hist.h"
#include "predictor/request.h"
#include "predictor/units.h"

#define ENGINE_NO_SLOT UINT32_MAX

enum engine_event_kind {
    ENGINE_EV_FIRST_TOKEN,  /* only with engine_want_first_tokens */
    ENGINE_EV_PREFILL_DONE, /* ENGINE_PREFILL_ONLY: the KV stays until engine_release */
    ENGINE_EV_RESERVED,     /* ENGINE_RESERVE: the blocks are there; record.reused_tok are cached */
    ENGINE_EV_DONE,         /* record is complete; the slot is gone */
};

/* What an engine knows of a request in the end. Times are -1 where it did not happen. */
struct engine_record {
    int64_t first_admit_ps, first_token_ps, second_token_ps, end_ps;
    uint32_t reused_tok,
        reused_all_tok; /* prompt tokens found cached, loaded ones too: first admission, all admissions */
    uint32_t host_tok,
        shared_tok; /* tokens loaded from host memory and from the shared store, in all */
    uint32_t preemptions, output_tok;
};

struct engine_event {
    enum engine_event_kind kind;
    int64_t at_ps;
    uint32_t handle, slot;
    struct engine_record record;
};

enum engine_submit_flags {
    ENGINE_PREFILL_ONLY = 1, /* stop when the prompt's KV is there */
    ENGINE_REMOTE_KV =
        2, /* the prompt's KV arrives with the request: only its last token is computed here */
    ENGINE_RESERVE =
        4, /* with ENGINE_REMOTE_KV: it does not arrive yet, but with engine_arrived. The request
                           queues up for its blocks, and then waits for its KV; preempted after that, it is
                           like any other */
};

struct engine_load {
    uint32_t running, waiting,
        held; /* waiting: also for KV; held: prefills whose KV waits to be pulled */
    uint32_t kv_used_blocks, kv_total_blocks;
};

struct engine_stats {
    uint64_t passes, preemptions, prompt_tok, output_tok, reused_tok, admitted, done;
    int64_t busy_ps;
    /* tiers: tokens loaded from host memory and from the shared store; copied down; not, for want of room */
    uint64_t host_tok, shared_tok, stored_tok, not_stored_tok;
};

struct engine;
struct shared_tier;
struct shared_tier_done;

/* NULL: out of memory, or a config that engine_config_check refuses. seed: speculative decoding's draws. */
struct engine *engine_new(const struct engine_config *c, uint64_t seed);
void engine_free(struct engine *e);

/* Makes dst equal to src (same config class not required). Events, logs and the histogram pointer are not
 * copied, and a copy knows of no shared store: its reads under way end when they probably would, and it finds
 * nothing more there. 0 or WEIR_E_NOMEM, then dst is as before. This is the what-if's clone: a few memcpy. */
WEIR_NODISCARD int engine_copy(struct engine *dst, const struct engine *src);

/* Takes passes one at a time, the slow path that fast-forward is tested against. */
void engine_set_stepping(struct engine *e, bool on);
void engine_want_first_tokens(struct engine *e, bool on);
/* Token gaps go there (NULL: nowhere). Borrowed. */
void engine_set_itl(struct engine *e, struct hist *itl);
/* Every step that starts at or after now takes factor times as long. */
void engine_set_slow(struct engine *e, int64_t now, double factor);
/* Tokens that data-parallel ranks beside this one work on in each pass from the next one on: experts that they share
 * are read for those too. */
void engine_set_peers(struct engine *e, uint64_t tok);

/* The store that this engine shares with others, which know it as `client`; only if num_shared_blocks is set.
 * Borrowed. Transfers that shared_tier_pop gives out for this client go to engine_shared_done at their
 * time. */
void engine_set_shared(struct engine *e, struct shared_tier *s, uint32_t client);
void engine_shared_done(struct engine *e, int64_t now, const struct shared_tier_done *done);

/* As of time now. 0 and *slot, or WEIR_E_TOO_LARGE (can never fit: prompt + output, in blocks or against
 * max_model_len), WEIR_E_INVALID (zero prompt or output; flags that exclude each other, or ENGINE_REMOTE_KV
 * without ENGINE_RESERVE for a decode worker of dynosim, which always reserves). s is copied, its keys are borrowed until the
 * slot is gone. */
WEIR_NODISCARD int engine_submit(struct engine *e, int64_t now, const struct request_spec *s,
                                 uint32_t handle, unsigned flags, uint32_t *slot);

/* Whether engine_submit would refuse s as too large. */
bool engine_fits(const struct engine *e, const struct request_spec *s);

/* The KV of an ENGINE_RESERVE whose blocks are there (ENGINE_EV_RESERVED) has come: it runs as soon as it
 * can, before what waits. */
void engine_arrived(struct engine *e, int64_t now, uint32_t slot);

/* The client left: running or waiting, it goes at the next pass boundary, without an event. Also for held
 * prefills (same as engine_release). */
void engine_abort(struct engine *e, int64_t now, uint32_t slot);
/* The KV of a finished ENGINE_PREFILL_ONLY has been pulled, or its lease is over. */
void engine_release(struct engine *e, int64_t now, uint32_t slot);

/* The worker died: all requests and all KV are gone, without events and with the log of cache changes.
 * lost(ctx, handle) is called for each. */
void engine_kill(struct engine *e, int64_t now, void (*lost)(void *ctx, uint32_t handle),
                 void *ctx);

void engine_run(struct engine *e, int64_t until);
/* horizon: no need to plan beyond it (PS_NEVER: none). */
void engine_start(struct engine *e, int64_t now, int64_t horizon);
int64_t engine_next_ps(const struct engine *e); /* PS_NEVER: idle */
/* Whether no request is there, in whatever state. */
bool engine_empty(const struct engine *e);

const struct engine_event *engine_events(const struct engine *e, uint32_t *n);
void engine_clear_events(struct engine *e);

/* As of now, before a pass begins that could begin now. */
void engine_get_load(const struct engine *e, int64_t now, struct engine_load *out);
void engine_get_stats(const struct engine *e, struct engine_stats *out);
const struct engine_config *engine_config_of(const struct engine *e);

/* Prompt tokens of s that are cached at time now. */
uint32_t engine_cached_tok(struct engine *e, int64_t now, const struct request_spec *s);

/* Changes of the prefix cache since the last call; see kv.h for names. A pass makes its own when it begins, but they
 * are true when it ends. Off unless switched on. fn must not call back. */
struct engine_cache_change {
    bool stored;
    uint32_t depth, n_blocks;
    const uint64_t *names;
};
void engine_log_cache(struct engine *e, bool on);
void engine_drain_cache_log(struct engine *e,
                            void (*fn)(void *ctx, const struct engine_cache_change *), void *ctx);

/* No pass begins after PS_LIMIT; whether work was left then. */
bool engine_out_of_time(const struct engine *e);

/* ---- for step-by-step parity checks: the scheduler alone, without time */
struct engine_batch_item {
    uint32_t handle, computed, scheduled;
};
/* One scheduling pass; the batch stays valid until engine_step_end. */
uint32_t engine_step_begin(struct engine *e, int64_t now, const struct engine_batch_item **batch);
/* What the step model is told of that pass. */
void engine_step_batch(const struct engine *e, struct step_batch *b);
/* Handles preempted, newly admitted and resumed by the last engine_step_begin, in order. */
enum engine_step_list { STEP_PREEMPTED, STEP_NEW, STEP_RESUMED };
uint32_t engine_step_list(const struct engine *e, enum engine_step_list which,
                          const uint32_t **handles);
void engine_step_end(struct engine *e, int64_t now);
uint32_t engine_free_blocks(const struct engine *e);

#endif
