/* sched_vllm.c - the scheduler of a real vLLM (v1 engine, 0.32), rule by rule; its recorded steps are
 * reproduced without a difference (bench/parity). Full attention, no asynchronous scheduling.
 *
 *   - Running requests first, in admission order, as many tokens each as are left of the budget. Short of
 *     blocks: preempt the last one (priority policy: the largest (priority, arrival)) until it fits.
 *   - Then waiting ones, if nobody was preempted: look up the cached prefix (never the last token), admit
 *     when the whole known sequence would fit, but take only the blocks of the first chunk.
 *   - Blocks get their names when they are scheduled, not when they are computed.
 */
#include "predictor/engine_internal.h"

static uint32_t pick_victim(const struct engine *e)
{
    uint32_t v = e->n_running - 1;
    if (e->c.policy != SCHED_PRIORITY)
        return v;
    for (uint32_t i = 0; i < e->n_running; i++) {
        if (seq_rank_less(&e->seqs[e->running[v]], &e->seqs[e->running[i]]))
            v = i;
    }
    return v;
}

/* Draft tokens that a request which generates needs room for. */
static uint32_t draft_tok(const struct engine *e, const struct seq *q)
{
    uint32_t left = q->spec.output_tok - q->out, gamma = e->c.step.spec_gamma;
    if (!q->out)
        return 0;
    return gamma < left ? gamma : left;
}

/* Blocks for n more tokens of a running request; with speculation also for the drafts. */
static bool grow(struct engine *e, struct seq *q, uint32_t n)
{
    uint32_t want = blocks_for(e, (uint64_t)q->computed + n + draft_tok(e, q));
    if (want > q->hold.n_blocks) {
        if (want - q->hold.n_blocks > kv_free_blocks(&e->kv))
            return false;
        kv_take(&e->kv, &q->hold, want - q->hold.n_blocks);
    }
    uint32_t full = (q->computed + n) / e->c.block_size;
    if (full > q->hold.n_named)
        kv_name(&e->kv, &q->spec, &q->hold, full);
    return true;
}

static uint32_t chunk(uint32_t left, uint32_t cap, uint32_t budget)
{
    if (cap && left > cap)
        left = cap;
    return left < budget ? left : budget;
}

/* Returns whether anybody was preempted. */
static bool schedule_running(struct engine *e, uint32_t *budget, uint32_t cap)
{
    bool preempted = false;
    for (uint32_t i = 0; i<e->n_running && * budget> 0; i++) {
        uint32_t slot = e->running[i];
        struct seq *q = &e->seqs[slot];
        uint32_t n = chunk(seq_tokens(q) - q->computed, cap, *budget);
        while (!grow(e, q, n)) {
            uint32_t v = pick_victim(e), victim = e->running[v];
            if (v < i)
                i--;
            *budget += engine_batch_drop(e, victim);
            engine_preempt(e, v);
            preempted = true;
            if (victim == slot)
                return true;
        }
        engine_batch_add(e, slot, n);
        *budget -= n;
    }
    return preempted;
}

/* n tokens of the first waiting request join the pass. */
static void enter(struct engine *e, uint32_t hit_blocks, uint32_t n, bool remote)
{
    uint32_t slot = deque_at(&e->waiting, 0);
    struct seq *q = &e->seqs[slot];
    engine_admit(e, 0, hit_blocks);
    if (remote)
        q->computed = seq_tokens(q) - 1; /* the rest of the prompt's KV was pulled */
    grow(e, q, n);
    engine_batch_add(e, slot, n);
}

static bool admit_one(struct engine *e, uint32_t *budget, uint32_t cap)
{
    const struct seq *q = &e->seqs[deque_at(&e->waiting, 0)];
    uint32_t tok = seq_tokens(q), bs = e->c.block_size, left, n;
    bool remote = (q->flags & ENGINE_REMOTE_KV) && !q->preempted_before && !q->kv_came;
    struct kv_match m = {0, 0};
    if (!q->kv_came) {
        m = kv_lookup(&e->kv, &q->spec, (tok - 1) / bs);
        /* without the drafts it would be back here at once */
        uint32_t blocks = blocks_for(e, (uint64_t)tok + draft_tok(e, q));
        if (engine_new_blocks(&m, blocks) > kv_free_blocks(&e->kv)) {
            e->waiting_blocked = true;
            return false;
        }
        if (engine_defer(e, 0, &m, blocks_for(e, tok), (tok - 1) / bs))
            return true;
    }
    left = chunk(remote ? 1 : tok - (q->kv_came ? q->computed : m.blocks * bs), cap, UINT32_MAX);
    n = left < *budget ? left : *budget;
    if (!e->c.enable_chunked_prefill && n < left)
        return false;
    enter(e, m.blocks, n, remote);
    *budget -= n;
    return true;
}

bool sched_vllm_schedule(struct engine *e, bool local_only)
{
    uint32_t budget = e->c.max_num_batched_tokens;
    uint32_t cap = e->n_running + e->waiting.n > 1 ? e->c.long_prefill_token_threshold : 0;
    if (schedule_running(e, &budget, cap))
        return false;
    while (budget > 0 && e->waiting.n && e->n_running + e->n_leaving < e->c.max_num_seqs) {
        if (local_only && seq_is_remote(&e->seqs[deque_at(&e->waiting, 0)]))
            return true;
        if (!admit_one(e, &budget, cap))
            return true;
    }
    if (e->waiting.n && e->n_running + e->n_leaving >= e->c.max_num_seqs)
        e->waiting_blocked = true;
    return true;
}

static void schedule(struct engine *e)
{
    (void)sched_vllm_schedule(e, false);
}

/* Decoding only takes blocks and evicts: it never makes room. */
static bool waiting_stays(const struct engine *e)
{
    (void)e;
    return true;
}

const struct sched_ops sched_vllm = {
    .name = "vllm",
    .schedule = schedule,
    .waiting_stays = waiting_stays,
    .name_blocks = kv_name,
};
