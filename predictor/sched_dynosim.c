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
 *
 * Sources: engine-model.md 1.3, 1.5 and 1.6, and the recorded requests that bench/parity repeats.
 */
#include "predictor/engine_internal.h"

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void schedule(struct engine *e)
{
    sched_vllm.schedule(e);
    for (uint32_t i = 0; i < e->n_batch; i++) {
        const struct seq *q = &e->seqs[e->batch[i].slot];
        e->batch[i].decode |= (q->flags & ENGINE_REMOTE_KV) && !q->preempted_before && !q->out;
    }
}

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

static void describe(const struct engine *e, struct step_batch *b)
{
    *b = (struct step_batch){.total_kv_tok = (uint64_t)e->kv.usable * e->c.block_size};
    describe_prefill(e, b);
    describe_decode(e, b);
    b->active_kv_tok = e->c.dynosim_version == DYNOSIM_1_6_1
                           ? b->decode_ctx_tok
                           : (uint64_t)(e->kv.usable - kv_free_blocks(&e->kv)) * e->c.block_size;
}

/* As in sched_vllm.c: decoding only takes blocks. */
static bool waiting_stays(const struct engine *e)
{
    return sched_vllm.waiting_stays(e);
}

const struct sched_ops sched_dynosim = {
    .name = "dynosim",
    .schedule = schedule,
    .waiting_stays = waiting_stays,
    .describe = describe,
    .name_blocks = kv_name,
};
