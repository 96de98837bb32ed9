/* engine_tier.c - an engine's use of the tiers below its GPU (tier.h): when blocks are copied down, and requests
 * that wait for blocks to come up.
 *
 * At admission, when a request has found its place, the lookup of its prefix goes on behind what the GPU has:
 * in host memory, then in the shared store. If more is there, the request is put aside with all blocks that it
 * needs to go on, and neither runs nor counts against max_num_seqs until its KV has come; others pass it.
 * (vLLM: WAITING_FOR_REMOTE_KVS; there the blocks of what is not loaded are taken later, which can make
 * loaded requests wait for each other for ever.) A second request that wants blocks which are being loaded
 * is put aside as well, without blocks of its own, and looks again then. As with the GPU's own cache, a
 * request's last token is always computed.
 *
 * Completions count from the next boundary between passes on, as the engine's own loop would see them. A
 * preemption waits for its copies: the pass that follows begins when they are done (vLLM: reqs_to_flush).
 * An aborted request's blocks are not copied down beyond what was before.
 */
#include <assert.h>
#include <string.h>

#include "predictor/engine_internal.h"
#include "predictor/mem.h"
#include "predictor/shared_tier.h"
#include "predictor/tier.h"

/* What the tiers know of a request. */
struct tier_seq {
    uint64_t job;            /* last copy down, TIER_NO_JOB */
    struct block_ticket pin; /* being loaded: what it reads from host memory */
    uint32_t from, to;       /* being loaded: which blocks; */
    uint32_t from_shared;    /* the last of them come from the shared store */
    bool promote;            /* which then are a prefix in host memory */
    int64_t due_ps;          /* PS_NEVER: still reads from the shared store, */
    int64_t guess_ps;        /* probably until then */
    uint32_t leader;         /* set aside because this one loads what it wants; ENGINE_NO_SLOT */
};

struct engine_tiers {
    struct tier tier;
    struct tier_seq *seqs; /* by slot */
    uint32_t seqs_cap;
    uint32_t *loading, n_loading, loading_cap;       /* slots, in the order they began */
    uint32_t *followers, n_followers, followers_cap; /* slots, in the order they came */
    int64_t next_load_ps;
    int64_t flush_ps; /* no pass begins before */
};

/* ---- life */

int tiers_new(struct engine *e)
{
    if (!e->c.num_host_blocks && !e->c.num_shared_blocks)
        return 0;
    struct engine_tiers *t = calloc(1, sizeof *t);
    if (!t)
        return WEIR_E_NOMEM;
    e->tiers = t;
    t->next_load_ps = PS_NEVER;
    return tier_init(&t->tier, &e->c);
}

void tiers_free(struct engine_tiers *t)
{
    if (!t)
        return;
    tier_deinit(&t->tier);
    free(t->seqs);
    free(t->loading);
    free(t->followers);
    free(t);
}

static struct tier_seq *seq_of(struct engine_tiers *t, uint32_t slot)
{
    if (slot >= t->seqs_cap) {
        uint32_t old = t->seqs_cap;
        MEM_GROW(t->seqs, t->seqs_cap, slot + 1);
        memset(&t->seqs[old], 0, (t->seqs_cap - old) * sizeof *t->seqs);
    }
    return &t->seqs[slot];
}

static void find_next_load(struct engine_tiers *t)
{
    t->next_load_ps = PS_NEVER;
    for (uint32_t i = 0; i < t->n_loading; i++) {
        int64_t due = t->seqs[t->loading[i]].due_ps;
        t->next_load_ps = due < t->next_load_ps ? due : t->next_load_ps;
    }
}

/* Nobody will tell a copy that its reads from the shared store are complete: it takes the guess. */
static void detach_loads(struct engine_tiers *t)
{
    for (uint32_t i = 0; i < t->n_loading; i++) {
        struct tier_seq *q = &t->seqs[t->loading[i]];
        if (q->due_ps == PS_NEVER)
            q->due_ps = tier_load(&t->tier, q->guess_ps, q->from_shared);
    }
    find_next_load(t);
}

int tiers_reserve_as(struct engine_tiers **dst, const struct engine_tiers *src)
{
    struct engine_tiers *t = *dst ? *dst : calloc(1, sizeof *t);
    if (!t)
        return WEIR_E_NOMEM;
    *dst = t;
    return tier_reserve_as(&t->tier, &src->tier) ||
                   MEM_RESERVE(t->seqs, t->seqs_cap, src->seqs_cap) ||
                   MEM_RESERVE(t->loading, t->loading_cap, src->n_loading) ||
                   MEM_RESERVE(t->followers, t->followers_cap, src->n_followers)
               ? WEIR_E_NOMEM
               : 0;
}

void tiers_copy(struct engine_tiers *dst, const struct engine_tiers *src)
{
    tier_copy(&dst->tier, &src->tier);
    MEM_COPY(dst->seqs, src->seqs, src->seqs_cap);
    MEM_COPY(dst->loading, src->loading, src->n_loading);
    MEM_COPY(dst->followers, src->followers, src->n_followers);
    if (dst->seqs_cap > src->seqs_cap)
        memset(&dst->seqs[src->seqs_cap], 0, (dst->seqs_cap - src->seqs_cap) * sizeof *dst->seqs);
    dst->n_loading = src->n_loading;
    dst->n_followers = src->n_followers;
    dst->flush_ps = src->flush_ps;
    detach_loads(dst);
}

void engine_set_shared(struct engine *e, struct shared_tier *s, uint32_t client)
{
    assert(e->tiers && e->c.num_shared_blocks);
    e->tiers->tier.shared = s;
    e->tiers->tier.client = client;
}

/* ---- down */

void tiers_store(struct engine *e, uint32_t slot, int64_t now)
{
    const struct seq *q = &e->seqs[slot];
    uint32_t full = q->computed / e->c.block_size;
    uint64_t job = tier_store(&e->tiers->tier, now, &q->spec,
                              full < q->hold.n_blocks ? full : q->hold.n_blocks);
    if (job != TIER_NO_JOB)
        seq_of(e->tiers, slot)->job = job;
}

bool tiers_keep(struct engine *e, uint32_t slot)
{
    struct tier_seq *q = seq_of(e->tiers, slot);
    uint64_t job = q->job;
    q->job = TIER_NO_JOB;
    return tier_keep(&e->tiers->tier, job, &e->seqs[slot].hold);
}

void tiers_preempted(struct engine *e, uint32_t slot)
{
    struct engine_tiers *t = e->tiers;
    tiers_store(e, slot, e->start_ps);
    struct tier_seq *q = seq_of(t, slot);
    int64_t due = tier_job_due_ps(&t->tier, q->job);
    q->job = TIER_NO_JOB;
    t->flush_ps = due > t->flush_ps ? due : t->flush_ps;
}

int64_t tiers_flush_ps(const struct engine *e)
{
    return e->tiers->flush_ps;
}

/* ---- up */

/* A request that loads blocks which s would load from block `from` to `to`; ENGINE_NO_SLOT: nobody. */
static uint32_t leader_of(const struct engine *e, const struct request_spec *s, uint32_t from,
                          uint32_t to)
{
    const struct engine_tiers *t = e->tiers;
    for (uint32_t i = 0; i < t->n_loading; i++) {
        const struct tier_seq *l = &t->seqs[t->loading[i]];
        const struct seq *q = &e->seqs[t->loading[i]];
        uint32_t first = l->from > from ? l->from : from;
        if (first < l->to && first < to && !q->aborted && kv_same_block(&e->kv, s, &q->spec, first))
            return t->loading[i];
    }
    return ENGINE_NO_SLOT;
}

/* The request at slot, which is aside with its blocks, begins to load blocks from..to - 1, those before
 * `host` from host memory. */
static void begin_load(struct engine *e, uint32_t slot, uint32_t from, uint32_t host, uint32_t to)
{
    struct engine_tiers *t = e->tiers;
    struct tier_seq *q = seq_of(t, slot);
    const struct request_spec *s = &e->seqs[slot].spec;
    int64_t now = e->start_ps;
    uint32_t in_host = host < to ? host : to, first_shared = host > from ? in_host : from;
    q->from = from;
    q->to = to;
    q->from_shared = to - first_shared;
    q->promote = host >= from;
    q->due_ps = PS_NEVER;
    if (t->tier.has_host)
        tier_pin(&t->tier, s, in_host, &q->pin);
    if (first_shared > from)
        q->due_ps = tier_load(&t->tier, now, first_shared - from);
    if (q->from_shared) {
        q->due_ps = PS_NEVER; /* these come up last */
        q->guess_ps =
            shared_tier_read(t->tier.shared, now, t->tier.client, slot, s, first_shared, to);
    }
    t->tier.stats.host_blocks += first_shared - from;
    t->tier.stats.shared_blocks += q->from_shared;
    MEM_GROW(t->loading, t->loading_cap, t->n_loading + 1);
    t->loading[t->n_loading++] = slot;
    find_next_load(t);
}

bool tiers_load(struct engine *e, uint32_t waiting_index, const struct kv_match *m, uint32_t blocks,
                uint32_t limit)
{
    struct engine_tiers *t = e->tiers;
    uint32_t slot = deque_at(&e->waiting, waiting_index);
    const struct seq *q = &e->seqs[slot];
    if ((q->flags & ENGINE_REMOTE_KV) && !q->preempted_before)
        return false;
    uint32_t host = tier_host_blocks(&t->tier, &q->spec, limit);
    uint32_t shared = tier_shared_blocks(&t->tier, &q->spec, limit);
    uint32_t to = host > shared ? host : shared;
    if (to <= m->blocks)
        return false;
    uint32_t leader = leader_of(e, &q->spec, m->blocks, to);
    seq_of(t, slot)->leader = leader;
    if (leader == ENGINE_NO_SLOT) {
        engine_put_aside(e, waiting_index, m, blocks);
        begin_load(e, slot, m->blocks, host, to);
    } else {
        engine_put_aside(e, waiting_index, NULL, 0);
        MEM_GROW(t->followers, t->followers_cap, t->n_followers + 1);
        t->followers[t->n_followers++] = slot;
    }
    return true;
}

static void release_followers(struct engine *e, uint32_t leader)
{
    struct engine_tiers *t = e->tiers;
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_followers; i++) {
        uint32_t slot = t->followers[i];
        if (t->seqs[slot].leader == leader)
            engine_come_back(e, slot, false);
        else
            t->followers[n++] = slot;
    }
    t->n_followers = n;
}

/* The i-th of those that load has its blocks. */
static void finish_load(struct engine *e, uint32_t i)
{
    struct engine_tiers *t = e->tiers;
    uint32_t slot = t->loading[i], bs = e->c.block_size;
    struct tier_seq *l = &t->seqs[slot];
    struct seq *q = &e->seqs[slot];
    memmove(&t->loading[i], &t->loading[i + 1], (--t->n_loading - i) * sizeof *t->loading);
    find_next_load(t);
    if (q->aborted) { /* its keys are not ours any more */
        if (t->tier.has_host)
            block_store_drop(&t->tier.host, &l->pin);
        engine_drop_aside(e, slot);
    } else {
        tier_loaded(&t->tier, &q->spec, &l->pin, l->promote ? l->from_shared : 0);
        e->ops->name_blocks(&e->kv, &q->spec, &q->hold, l->to);
        q->computed = q->cached_tok = l->to * bs;
        q->rec.host_tok += (l->to - l->from - l->from_shared) * bs;
        q->rec.shared_tok += l->from_shared * bs;
        engine_come_back(e, slot, true);
    }
    release_followers(e, slot);
}

void engine_shared_done(struct engine *e, int64_t now, const struct shared_tier_done *done)
{
    struct engine_tiers *t = e->tiers;
    if (done->write) {
        tier_written(&t->tier, now, done->transfer);
        return;
    }
    struct tier_seq *q = &t->seqs[done->slot];
    q->due_ps = tier_load(&t->tier, now, q->from_shared);
    find_next_load(t);
    engine_cut(e, t->next_load_ps);
}

/* ---- time */

int64_t tiers_next_ps(const struct engine *e)
{
    const struct engine_tiers *t = e->tiers;
    int64_t d = tier_next_ps(&t->tier);
    return d < t->next_load_ps ? d : t->next_load_ps;
}

void tiers_run(struct engine *e, int64_t now)
{
    struct engine_tiers *t = e->tiers;
    struct kv_hold gpu;
    while (tier_complete(&t->tier, now, &gpu)) {
        if (!gpu.n_blocks)
            continue;
        kv_release(&e->kv, &gpu);
        engine_room_made(e);
    }
    while (t->next_load_ps <= now && t->next_load_ps < PS_NEVER) {
        uint32_t i = 0;
        while (t->seqs[t->loading[i]].due_ps > t->next_load_ps)
            i++;
        finish_load(e, i);
    }
}

/* ---- ends */

bool tiers_abort(struct engine *e, uint32_t slot)
{
    struct engine_tiers *t = e->tiers;
    for (uint32_t i = 0; i < t->n_followers; i++) {
        if (t->followers[i] == slot) {
            memmove(&t->followers[i], &t->followers[i + 1],
                    (--t->n_followers - i) * sizeof *t->followers);
            return false;
        }
    }
    for (uint32_t i = 0; i < t->n_loading; i++) {
        if (t->loading[i] == slot)
            return true;
    }
    return false;
}

void tiers_kill(struct engine *e)
{
    struct engine_tiers *t = e->tiers;
    struct kv_hold gpu;
    while (tier_take_gpu(&t->tier, &gpu))
        kv_release(&e->kv, &gpu);
    for (uint32_t i = 0; t->tier.has_host && i < t->n_loading; i++)
        block_store_drop(&t->tier.host, &t->seqs[t->loading[i]].pin);
    t->n_loading = t->n_followers = 0;
    t->next_load_ps = PS_NEVER;
    t->flush_ps = 0;
    tier_reset(&t->tier);
}

void tiers_get_stats(const struct engine *e, struct engine_stats *out)
{
    const struct tier_stats *s = &e->tiers->tier.stats;
    out->host_tok = s->host_blocks * e->c.block_size;
    out->shared_tok = s->shared_blocks * e->c.block_size;
    out->stored_tok = s->stored_blocks * e->c.block_size;
    out->not_stored_tok = s->skipped_blocks * e->c.block_size;
}

const char *tiers_validate(const struct engine *e)
{
    const struct engine_tiers *t = e->tiers;
    if (!t || !t->tier.has_host)
        return NULL;
    bool busy = t->n_loading || t->tier.first < t->tier.end;
    return block_store_validate(&t->tier.host, !busy);
}
