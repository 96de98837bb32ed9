/* engine_internal.h - what engine.c shares with the schedulers (sched_*.c). Not installed. */
#ifndef WEIR_ENGINE_INTERNAL_H
#define WEIR_ENGINE_INTERNAL_H

#include "predictor/engine.h"
#include "predictor/kv.h"
#include "predictor/rng.h"

enum seq_state {
    SEQ_FREE,
    SEQ_WAITING,
    SEQ_ASIDE, /* its blocks are taken, its KV is on the way; neither waits nor runs */
    SEQ_RUNNING,
    SEQ_HELD,
    SEQ_LEAVING, /* finished, but the pass that starts now was planned before that was known (async_scheduling) */
};

struct seq {
    struct request_spec spec;
    struct kv_hold hold;
    uint32_t handle;
    uint8_t state; /* enum seq_state */
    uint8_t flags; /* enum engine_submit_flags */
    bool preempted_before, aborted, extended_keys;
    bool came_back;      /* waiting: was put aside, and goes before others; */
    bool kv_came;        /* and holds all blocks that it needs to go on from `computed` */
    uint32_t out;        /* tokens generated */
    uint32_t computed;   /* tokens whose KV is there (as of the last finished pass) */
    uint32_t sched;      /* tokens in the running pass */
    uint32_t cached_tok; /* found at this admission */
    uint64_t order;      /* order of arrival at this engine */
    uint64_t left_pass;  /* SEQ_LEAVING: the pass that was its last */
    int64_t last_token_ps;
    struct engine_record rec;
    uint32_t next_free;
};

struct deque { /* of slots, ring buffer */
    uint32_t *items, cap, head, n;
};

struct engine;

/* A scheduler. schedule() fills e->batch by engine_batch_add and moves requests between waiting and running. */
struct sched_ops {
    const char *name;
    void (*schedule)(struct engine *e);
    /* Decode-only passes may be taken together although requests wait: nothing that such passes change can
     * let one in. Called only with waiting requests. */
    bool (*waiting_stays)(const struct engine *e);
    /* n decode-only passes were taken together. NULL: nothing to do. */
    void (*skipped)(struct engine *e, uint64_t n);
    /* How blocks of a prompt get their names: kv_name or kv_name_shared. */
    void (*name_blocks)(struct kv *kv, const struct request_spec *s, struct kv_hold *hold,
                        uint32_t named);
};

extern const struct sched_ops sched_vllm, sched_sglang, sched_trtllm, sched_dynosim;

/* sched_vllm's schedule(), which sched_dynosim shares; local_only: no waiting request enters behind one that
 * seq_is_remote. False: somebody was preempted, so that nobody was to enter. */
bool sched_vllm_schedule(struct engine *e, bool local_only);

struct batch_item {
    uint32_t slot, n; /* tokens */
    bool decode;
};

/* How the times of decode-only passes taken together are known. */
enum skip_form {
    SKIP_CLOSED, /* pass i takes a + i*d */
    SKIP_BLOCKS, /* equally long up to the next pass that takes blocks */
    SKIP_ENDS,   /* pass i ends at ends[i]: planned so, or in step with others (dp.c) */
};

struct engine {
    struct engine_config c;
    const struct sched_ops *ops;
    struct kv kv;
    struct engine_tiers *tiers; /* engine_tier.c; NULL: nothing below the GPU */

    struct seq *seqs;
    uint32_t seqs_used, seqs_cap, seqs_free;
    uint32_t *running, n_running, running_cap; /* in admission order */
    struct deque
        waiting; /* in the order in which they may enter: of arrival; priority policy: of rank */
    uint32_t n_held, n_aside;
    uint64_t n_left; /* requests that have gone, however */
    uint64_t order;
    /* async_scheduling: came since the last pass began; finished, with seat and blocks still taken */
    struct deque arriving;
    uint32_t *leaving, n_leaving, leaving_cap;

    /* the pass in flight: batch[], from start_ps; or `steps` decode-only passes taken together */
    struct batch_item *batch;
    uint32_t n_batch, batch_cap;
    bool in_pass, skipping;
    int64_t start_ps, end_ps;
    int64_t ended_ps; /* when the last pass ended */
    uint64_t steps;   /* skipping: how many */
    enum skip_form skip_form;
    int64_t step_a_ps, step_d_ps; /* SKIP_CLOSED */
    uint32_t step_blocks;         /* skipping: blocks in use in the first pass */
    int64_t *ends;                /* SKIP_ENDS: `steps` of them */
    uint32_t ends_cap;

    bool ready; /* at a boundary: something may have changed since the last scheduling */
    bool
        waiting_blocked; /* set by schedule(): what waits cannot enter until something comes or goes */
    bool out_of_time;    /* there was something to do at PS_LIMIT */
    bool all_decode;     /* every running request has only its last token to compute */

    /* schedulers' own state */
    uint64_t sgl_decay_steps; /* sglang: steps since the ratio was reset */
    uint32_t sgl_chunked;     /* sglang: slot in the middle of its prompt, or ENGINE_NO_SLOT */
    uint32_t
        dyn_refused; /* dynosim: slot that found no room for its KV to come, or ENGINE_NO_SLOT */
    uint64_t dyn_departures; /* dynosim: how many requests had given their blocks back by then */
    uint32_t dyn_came; /* dynosim: waiting requests whose KV had come, after the last scheduling */

    bool stepping, want_first_tokens;
    double slow, slow_next; /* of the pass in flight; from the next one on */
    uint64_t peer_tok;
    struct hist *itl;
    struct rng rng;
    struct engine_stats stats;

    struct engine_event *events;
    uint32_t n_events, events_cap;

    /* step-by-step parity */
    bool tracing;
    struct engine_batch_item *trace_batch;
    uint32_t trace_cap;
    uint32_t *trace_list[3], trace_n[3], trace_list_cap[3];
};

static inline uint32_t seq_tokens(const struct seq *s)
{
    return s->spec.prompt_tok + s->out;
}

/* The priority policy's order (vLLM): priority, then arrival, then arrival here. */
static inline bool seq_rank_less(const struct seq *a, const struct seq *b)
{
    if (a->spec.priority != b->spec.priority)
        return a->spec.priority < b->spec.priority;
    if (a->spec.arrival_ps != b->spec.arrival_ps)
        return a->spec.arrival_ps < b->spec.arrival_ps;
    return a->order < b->order;
}

/* Its KV comes, or came, from another worker, and it has not lost it since. */
static inline bool seq_is_remote(const struct seq *s)
{
    return (s->flags & ENGINE_REMOTE_KV) && !s->preempted_before;
}

static inline uint32_t blocks_for(const struct engine *e, uint64_t tok)
{
    return (uint32_t)((tok + e->c.block_size - 1) / e->c.block_size);
}

void deque_push_back(struct deque *d, uint32_t v);
uint32_t deque_at(const struct deque *d, uint32_t i);
void deque_remove_at(struct deque *d, uint32_t i);
void deque_insert_at(struct deque *d, uint32_t i, uint32_t v);

void engine_batch_add(struct engine *e, uint32_t slot, uint32_t n);
/* Takes slot's work out of the batch again; returns its tokens (0: it was not in). */
uint32_t engine_batch_drop(struct engine *e, uint32_t slot);

/* What `blocks` for a request take out of the free ones if it finds m cached. */
static inline uint32_t engine_new_blocks(const struct kv_match *m, uint32_t blocks)
{
    return blocks - m->blocks + m->free_blocks;
}

/* Puts waiting[i] aside until its KV has come, and takes `blocks` for it, those of m from the cache (NULL: takes
 * none). */
void engine_put_aside(struct engine *e, uint32_t waiting_index, const struct kv_match *m,
                      uint32_t blocks);
/* A request that was put aside goes to the front of the queue. kv_came: it holds all that it needs to go on
 * from q->computed. Such requests stand before all others there (or nothing might ever fit beside the blocks
 * that they hold), those that came back without behind them, both in the order of their arrival here; but under
 * the priority policy those without by their rank, like all who wait. */
void engine_come_back(struct engine *e, uint32_t slot, bool kv_came);
/* It ends there. */
void engine_drop_aside(struct engine *e, uint32_t slot);
/* Something left: what waits may fit now. */
void engine_room_made(struct engine *e);
/* Passes in flight whose start is not before `now` do not happen as planned: something comes then. */
void engine_cut(struct engine *e, int64_t now);

/* ---- in step with others (dp.c), instead of engine_run and engine_start */

/* Something happens at or before `now` in a pass boundary: copies that are complete count from then on. */
void engine_boundary(struct engine *e, int64_t now);
/* Gets ready for a pass that begins now. Returns how many decode-only passes can be taken together; 0 or 1: the
 * scheduler has to be asked; UINT64_MAX: there is nothing to do. */
uint64_t engine_prepare(struct engine *e, int64_t now);
/* Plans a pass. Returns when it would end by itself; PS_NEVER: nothing can run. */
int64_t engine_begin_pass(struct engine *e);
/* How long each of the next n decode-only passes would take by itself. */
void engine_decode_times(struct engine *e, uint32_t n, int64_t *ps);
/* Takes n decode-only passes together, which end at ends[0..n - 1]. */
void engine_begin_paced(struct engine *e, const int64_t *ends, uint32_t n);
/* Ends the pass in flight, or those taken together, at e->end_ps. */
void engine_end(struct engine *e);

/* ---- engine_tier.c: only with e->tiers, but for tiers_new, which fills it if the limits ask for it */
WEIR_NODISCARD int tiers_new(struct engine *e);
void tiers_free(struct engine_tiers *t);
/* Makes *dst if it is NULL, with room for what src has; then tiers_copy. */
WEIR_NODISCARD int tiers_reserve_as(struct engine_tiers **dst, const struct engine_tiers *src);
void tiers_copy(struct engine_tiers *dst, const struct engine_tiers *src);
/* Copies down the request's full blocks, as far as they are not there. */
void tiers_store(struct engine *e, uint32_t slot, int64_t now);
/* Whether the request's blocks stay on the GPU until they have been copied; its hold is taken over then. */
bool tiers_keep(struct engine *e, uint32_t slot);
/* The request loses its blocks at once. */
void tiers_preempted(struct engine *e, uint32_t slot);
int64_t tiers_flush_ps(const struct engine *e); /* no pass begins before */
/* Whether waiting[i] waits for blocks from below, or for somebody who loads them; see engine_defer. */
bool tiers_load(struct engine *e, uint32_t waiting_index, const struct kv_match *m, uint32_t blocks,
                uint32_t limit);
/* When something completes next, and what is complete by now, at a boundary between passes. */
int64_t tiers_next_ps(const struct engine *e);
void tiers_run(struct engine *e, int64_t now);
/* Whether the request, which is aside, must stay there until its load is complete. */
bool tiers_abort(struct engine *e, uint32_t slot);
void tiers_kill(struct engine *e);
void tiers_get_stats(const struct engine *e, struct engine_stats *out);
const char *tiers_validate(const struct engine *e); /* as block_store_validate */

/* For a scheduler that has found room for waiting[i]: whether it does not run yet but waits for KV from
 * elsewhere, with `blocks` taken. These must do until it generates, so that it can always go on when its KV
 * has come; m: what it found cached of its first `limit` blocks. */
static inline bool engine_defer(struct engine *e, uint32_t waiting_index, const struct kv_match *m,
                                uint32_t blocks, uint32_t limit)
{
    if (e->seqs[deque_at(&e->waiting, waiting_index)].flags & ENGINE_RESERVE) {
        engine_put_aside(e, waiting_index, m, blocks);
        return true;
    }
    return e->tiers && tiers_load(e, waiting_index, m, blocks, limit);
}

/* waiting[i] -> running, with the first hit_blocks taken from the cache (none for one that has arrived);
 * counts the admission. */
void engine_admit(struct engine *e, uint32_t waiting_index, uint32_t hit_blocks);
/* running[i] loses its KV and goes to the front of waiting. */
void engine_preempt(struct engine *e, uint32_t running_index);

/* Default timing description of e->batch (linear engines). */
void engine_describe_batch(const struct engine *e, struct step_batch *b);
/* The same as DynoSim counts it. */
void sched_dynosim_describe(const struct engine *e, struct step_batch *b);
/* Makes e a DynoSim that imitates SGLang. */
void sched_dynosim_as_sglang(struct engine *e);

#endif
