/* sched_dynosim.c - NVIDIA Dynamo's simulator (DynoSim), as its versions 1.4.2 and 1.6.1 behave: for
 * comparisons (bench/parity). It picks batches as vLLM does (sched_vllm.c: the peer has taken over
 * vLLM's block pool, whose null block alone it leaves out); what is its own is how it counts a batch.
 *
 *   pass = prefill(T) + decode(u)       T: prompt tokens computed, by whole means over the chunks
 *
 *                  1.4.2                          1.6.1
 *   decode part of   all with nothing left          the same, less those whose prompt ends in this pass:
 *                    to compute                     the prefill part samples their first token
 *   u                blocks in use / all blocks     tokens of the decoding requests / capacity
 *
 *   - A prefill worker has no decode part, a decode worker no prefill part: what it computes again after
 *     a preemption takes no time. Tokens it generated before and computes again never do.
 *   - A request whose KV came from a prefill worker has all its prompt: it decodes at once.
 *   - Imitating SGLang (1.6.1) it picks batches as sched_sglang.c does and counts them in the same way.
 *
 * Sources: engine-model.md 1.3, 1.5 and 1.6, and the recorded requests that bench/parity repeats.
 */
#include "predictor/engine_internal.h"

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- a decode worker: requests whose KV is still with a prefill worker, or on its way
 *
 * A pending request gets blocks for its prompt when it comes to an idle worker. At a busy one the first of them
 * tries when a pass ends, and the next one after each request whose KV has come; all this before the running
 * requests get the blocks that they need next. The prompt of a request can be found from the moment on at
 * which its KV has come. */

static bool pending(const struct seq *q)
{
    return q->flags & ENGINE_RESERVE;
}

static uint32_t count_came(const struct engine *e)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->waiting.n; i++)
        n += e->seqs[deque_at(&e->waiting, i)].kv_came;
    return n;
}

static uint64_t departures(const struct engine *e)
{
    return e->n_left + e->stats.preemptions;
}

/* One that was refused is not looked at again before somebody gives blocks back, not even if it would find
 * more of its prompt cached. */
static bool refused(const struct engine *e, uint32_t slot)
{
    return slot == e->dyn_refused && e->dyn_departures == departures(e);
}

/* Blocks for the first pending request. */
static bool reserve_one(struct engine *e)
{
    uint32_t i = 0;
    while (i < e->waiting.n && !pending(&e->seqs[deque_at(&e->waiting, i)]))
        i++;
    if (i == e->waiting.n || e->n_running >= e->c.max_num_seqs)
        return false;
    uint32_t slot = deque_at(&e->waiting, i);
    const struct seq *q = &e->seqs[slot];
    if (refused(e, slot))
        return false;
    uint32_t blocks = blocks_for(e, q->spec.prompt_tok);
    struct kv_match m = kv_lookup(&e->kv, &q->spec, q->spec.prompt_tok / e->c.block_size);
    if (engine_new_blocks(&m, blocks) > kv_free_blocks(&e->kv)) {
        e->dyn_refused = slot;
        e->dyn_departures = departures(e);
        return false;
    }
    engine_put_aside(e, i, &m, blocks);
    return true;
}

static void reserve(struct engine *e)
{
    uint32_t came = count_came(e), fresh = came > e->dyn_came ? came - e->dyn_came : 0;
    bool idle = e->start_ps != e->ended_ps;
    if (!idle)
        (void)reserve_one(e);
    while (idle && !fresh && reserve_one(e))
        ;
    /* those that came since the last scheduling are in front of the others that came */
    for (uint32_t i = 0; i < e->waiting.n && fresh; i++) {
        struct seq *q = &e->seqs[deque_at(&e->waiting, i)];
        if (!q->kv_came)
            continue;
        kv_name(&e->kv, &q->spec, &q->hold, q->spec.prompt_tok / e->c.block_size);
        (void)reserve_one(e);
        fresh--;
    }
}

static void to_front(struct engine *e, bool remote)
{
    uint32_t ahead = 0;
    for (uint32_t i = 0; i < e->waiting.n; i++) {
        uint32_t slot = deque_at(&e->waiting, i);
        if (seq_is_remote(&e->seqs[slot]) == remote) {
            deque_remove_at(&e->waiting, i);
            deque_insert_at(&e->waiting, ahead++, slot);
        }
    }
}

/* Preempted ones enter first, but not while others are pending: then only those whose KV has come do. */
static void order_waiting(struct engine *e)
{
    uint32_t n_pending = 0;
    for (uint32_t i = 0; i < e->waiting.n; i++)
        n_pending += pending(&e->seqs[deque_at(&e->waiting, i)]);
    to_front(e, n_pending > 0);
}

/* Those at the head of the queue that have their blocks and their prompt's KV: they only decode, and take
 * nothing of the budget. */
static void enter_came(struct engine *e)
{
    while (e->waiting.n && e->n_running < e->c.max_num_seqs &&
           e->seqs[deque_at(&e->waiting, 0)].kv_came) {
        uint32_t slot = deque_at(&e->waiting, 0);
        engine_admit(e, 0, 0);
        engine_batch_add(e, slot, 1);
        e->batch[e->n_batch - 1].decode = true;
    }
}

static void schedule_decode_worker(struct engine *e)
{
    if (e->waiting.n) {
        reserve(e);
        order_waiting(e);
    }
    if (sched_vllm_schedule(e, true)) {
        enter_came(e);
        if (!e->n_running &&
            e->waiting.n) { /* a preempted one does not fit beside those that came */
            to_front(e, true);
            enter_came(e);
        }
        if (e->waiting.n && refused(e, deque_at(&e->waiting, 0)))
            e->waiting_blocked = true;
    }
    e->dyn_came = count_came(e);
}

/* ---- */

static void schedule(struct engine *e)
{
    if (e->c.role == ROLE_DECODE) {
        schedule_decode_worker(e);
        return;
    }
    (void)sched_vllm_schedule(e, false);
    for (uint32_t i = 0; i < e->n_batch; i++) {
        const struct seq *q = &e->seqs[e->batch[i].slot];
        e->batch[i].decode |= seq_is_remote(q) && !q->out;
    }
}

/* ---- the batch as the step model sees it */

static void describe_prefill(const struct engine *e, struct step_batch *b)
{
    uint64_t before = 0, after = 0; /* prompt tokens, sums over chunks */
    if (e->c.role == ROLE_DECODE)
        return;
    for (uint32_t i = 0; i < e->n_batch; i++) {
        const struct batch_item *it = &e->batch[i];
        const struct seq *q = &e->seqs[it->slot];
        uint32_t start = least(q->computed, q->spec.prompt_tok);
        uint32_t end = least(q->computed + it->n, q->spec.prompt_tok), n = end - start;
        if (it->decode || !n)
            continue;
        b->prefill_reqs++;
        b->prefill_attn += 2 * (uint64_t)n * start + (uint64_t)n * n;
        before += start;
        after += end;
    }
    if (!b->prefill_reqs)
        return;
    b->prefill_ctx_tok = before;
    b->prefill_tok = b->prefill_reqs * (after / b->prefill_reqs - before / b->prefill_reqs);
}

static void describe_decode(const struct engine *e, struct step_batch *b)
{
    for (uint32_t i = 0; i < e->n_batch; i++) {
        const struct batch_item *it = &e->batch[i];
        const struct seq *q = &e->seqs[it->slot];
        bool ready = q->computed + it->n >= seq_tokens(q) && !(q->flags & ENGINE_PREFILL_ONLY);
        if (!ready || (!it->decode && !q->out && e->c.dynosim_version == DYNOSIM_1_6_1))
            continue;
        b->decode_reqs++;
        b->decode_ctx_tok += seq_tokens(q);
    }
}

void sched_dynosim_describe(const struct engine *e, struct step_batch *b)
{
    *b = (struct step_batch){.total_kv_tok = (uint64_t)e->kv.usable * e->c.block_size};
    describe_prefill(e, b);
    describe_decode(e, b);
    b->active_kv_tok = e->c.dynosim_version == DYNOSIM_1_6_1
                           ? b->decode_ctx_tok
                           : (uint64_t)(e->kv.usable - kv_free_blocks(&e->kv)) * e->c.block_size;
}

/* As in sched_vllm.c, decoding only takes blocks; but a decode worker's queue may change its order. */
static bool waiting_stays(const struct engine *e)
{
    uint32_t remote = 0;
    for (uint32_t i = 0; e->c.role == ROLE_DECODE && i < e->waiting.n; i++)
        remote += seq_is_remote(&e->seqs[deque_at(&e->waiting, i)]);
    return (!remote || remote == e->waiting.n) && sched_vllm.waiting_stays(e);
}

const struct sched_ops sched_dynosim = {
    .name = "dynosim",
    .schedule = schedule,
    .waiting_stays = waiting_stays,
    .name_blocks = kv_name,
};

/* Its SGLang picks batches as sched_sglang.c does, but a pass prefills as many prompts as the chunk has room
 * for: the limit of max_prefill_tokens is not there. */
void sched_dynosim_as_sglang(struct engine *e)
{
    e->ops = &sched_sglang;
    e->c.chunked_prefill_size = e->c.max_num_batched_tokens;
    e->c.max_prefill_tokens = UINT32_MAX;
}
