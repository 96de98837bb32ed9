/* sched_trtllm.c - TensorRT-LLM's in-flight batching under GUARANTEED_NO_EVICT (engine-model.md
 * 1.3).
 *
 *   - A request enters when all blocks it can ever need (prompt + max_tokens) are free beyond what
 *     running ones may still need: nobody is ever preempted. Cached blocks that a running request
 *     holds are free of charge.
 *   - Running requests first, then waiting ones in order of arrival, prompts cut by the token
 *     budget.
 *   - Full blocks can be found once their pass is over.
 *
 * max_tokens counts only as far as the pool and max_model_len reach, so that what engine_fits()
 * takes can always run alone.
 */
#include "predictor/engine_internal.h"

#include <assert.h>

/* Blocks a request holds in the end at most. */
static uint32_t blocks_at_end(const struct engine *e, const struct seq *q)
{
    if (q->flags & ENGINE_PREFILL_ONLY)
        return blocks_for(e, q->spec.prompt_tok);
    uint64_t limit = (uint64_t)e->kv.usable * e->c.block_size;
    if (e->c.max_model_len && e->c.max_model_len < limit)
        limit = e->c.max_model_len;
    uint32_t out =
        q->spec.max_tokens > q->spec.output_tok ? q->spec.max_tokens : q->spec.output_tok;
    uint64_t total = (uint64_t)q->spec.prompt_tok + out;
    return blocks_for(e, total < limit ? total : limit);
}

/* Blocks for n more tokens, with speculation also for the drafts. Promised at admission. */
static void grow(struct engine *e, struct seq *q, uint32_t n)
{
    uint64_t tok = (uint64_t)q->computed + n;
    if (q->out && e->c.step.spec_gamma) {
        uint32_t left = q->spec.output_tok - q->out, gamma = e->c.step.spec_gamma;
        tok += gamma < left ? gamma : left;
    }
    uint32_t want = blocks_for(e, tok);
    if (want > q->hold.n_blocks) {
        assert(want - q->hold.n_blocks <= kv_free_blocks(&e->kv));
        kv_take(&e->kv, &q->hold, want - q->hold.n_blocks);
    }
}

static void schedule_running(struct engine *e, uint32_t *budget)
{
    for (uint32_t i = 0; i<e->n_running && * budget> 0; i++) {
        struct seq *q = &e->seqs[e->running[i]];
        uint32_t left = seq_tokens(q) - q->computed, n = left < *budget ? left : *budget;
        grow(e, q, n);
        engine_batch_add(e, e->running[i], n);
        *budget -= n;
    }
}

/* Free blocks that running requests may still take. */
static uint32_t promised_blocks(const struct engine *e)
{
    uint32_t promised = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        promised += blocks_at_end(e, q) - q->hold.n_blocks;
    }
    assert(promised <= kv_free_blocks(&e->kv));
    return promised;
}

/* Blocks that admission of q takes out of the free ones in the end. */
static uint32_t needed_blocks(const struct engine *e, const struct seq *q, const struct kv_match *m)
{
    return blocks_at_end(e, q) - (m->blocks - m->free_blocks);
}

/* Cached blocks a waiting request can use: never its last token. */
static struct kv_match prefix_of(const struct engine *e, const struct seq *q)
{
    return kv_lookup(&e->kv, &q->spec, (seq_tokens(q) - 1) / e->c.block_size);
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

/* Lets the first waiting request in. Returns whether it did. */
static bool admit_one(struct engine *e, uint32_t *budget, uint32_t *unpromised)
{
    const struct seq *q = &e->seqs[deque_at(&e->waiting, 0)];
    uint32_t tok = seq_tokens(q), needed = 0, left, n;
    bool remote = (q->flags & ENGINE_REMOTE_KV) && !q->kv_came;
    struct kv_match m = {0, 0};
    if (!q->kv_came) {
        m = prefix_of(e, q);
        needed = needed_blocks(e, q, &m);
        if (needed > *unpromised) {
            e->waiting_blocked = true;
            return false;
        }
        if (engine_defer(e, 0, &m, blocks_at_end(e, q), (tok - 1) / e->c.block_size)) {
            *unpromised -= needed;
            return true;
        }
    }
    left = remote ? 1 : tok - (q->kv_came ? q->computed : m.blocks * e->c.block_size);
    n = left < *budget ? left : *budget;
    if (!e->c.enable_chunked_prefill && n < left)
        return false;
    enter(e, m.blocks, n, remote);
    *unpromised -= needed;
    *budget -= n;
    return true;
}

static void admit(struct engine *e, uint32_t *budget)
{
    if (!e->waiting.n || !*budget)
        return;
    if (e->n_running >= e->c.max_num_seqs) {
        e->waiting_blocked = true;
        return;
    }
    uint32_t unpromised = kv_free_blocks(&e->kv) - promised_blocks(e);
    while (*budget > 0 && e->waiting.n && e->n_running < e->c.max_num_seqs) {
        if (!admit_one(e, budget, &unpromised))
            return;
    }
}

/* Done at the start of the pass that fills the blocks: nobody looks before its end. */
static void name_blocks(struct engine *e)
{
    for (uint32_t i = 0; i < e->n_batch; i++) {
        struct seq *q = &e->seqs[e->batch[i].slot];
        uint32_t full = (q->computed + e->batch[i].n) / e->c.block_size;
        if (full > q->hold.n_named)
            kv_name(&e->kv, &q->spec, &q->hold, full);
    }
}

static void schedule(struct engine *e)
{
    uint32_t budget = e->c.max_num_batched_tokens;
    schedule_running(e, &budget);
    admit(e, &budget);
    name_blocks(e);
}

/* Decoding takes only what was promised: as much is left for others as before. A request's need
 * falls only where a cached block is evicted that has a second copy in use. */
static bool waiting_stays(const struct engine *e)
{
    if (e->n_running >= e->c.max_num_seqs)
        return true;
    const struct seq *q = &e->seqs[deque_at(&e->waiting, 0)];
    struct kv_match m = prefix_of(e, q);
    uint32_t promised = promised_blocks(e), plain = e->kv.free_unnamed;
    uint32_t evicted = promised > plain ? promised - plain : 0;
    uint32_t less = evicted < m.free_blocks ? evicted : m.free_blocks;
    return needed_blocks(e, q, &m) - less > kv_free_blocks(&e->kv) - promised;
}

const struct sched_ops sched_trtllm = {
    .name = "trtllm",
    .schedule = schedule,
    .waiting_stays = waiting_stays,
    .name_blocks = kv_name,
};
