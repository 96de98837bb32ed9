/* engine.c - see engine.h. Schedulers are in sched_*.c; this file keeps requests, passes and time. */
#include "predictor/engine_internal.h"

#include <assert.h>
#include <string.h>

#include "predictor/mem.h"

static const struct sched_ops *const sched_table[] = {
    [SCHED_VLLM] = &sched_vllm,
    [SCHED_SGLANG] = &sched_sglang,
    [SCHED_TRTLLM] = &sched_trtllm,
    [SCHED_DYNOSIM] = &sched_dynosim,
};

/* ---- deque of slots */

/* cap: a power of two, at least d->n. 0 or WEIR_E_NOMEM, then d is as before. */
static int deque_resize(struct deque *d, uint32_t cap)
{
    uint32_t *p = malloc(cap * sizeof *p);
    if (!p)
        return WEIR_E_NOMEM;
    for (uint32_t i = 0; i < d->n; i++)
        p[i] = deque_at(d, i);
    free(d->items);
    d->items = p;
    d->cap = cap;
    d->head = 0;
    return 0;
}

static void deque_reserve(struct deque *d)
{
    if (d->n == d->cap && deque_resize(d, d->cap ? d->cap * 2 : 16))
        abort();
}

uint32_t deque_at(const struct deque *d, uint32_t i)
{
    return d->items[(d->head + i) & (d->cap - 1)];
}

void deque_push_back(struct deque *d, uint32_t v)
{
    deque_reserve(d);
    d->items[(d->head + d->n++) & (d->cap - 1)] = v;
}

static void deque_push_front(struct deque *d, uint32_t v)
{
    deque_reserve(d);
    d->head = (d->head - 1) & (d->cap - 1);
    d->items[d->head] = v;
    d->n++;
}

void deque_remove_at(struct deque *d, uint32_t i)
{
    uint32_t mask = d->cap - 1;
    if (i == 0) {
        d->head = (d->head + 1) & mask;
    } else {
        for (uint32_t j = i; j + 1 < d->n; j++)
            d->items[(d->head + j) & mask] = d->items[(d->head + j + 1) & mask];
    }
    d->n--;
}

/* Whether v was there. */
static bool deque_drop(struct deque *d, uint32_t v)
{
    uint32_t i = 0;
    while (i < d->n && deque_at(d, i) != v)
        i++;
    if (i == d->n)
        return false;
    deque_remove_at(d, i);
    return true;
}

/* Moves the shorter part of what is there. */
void deque_insert_at(struct deque *d, uint32_t i, uint32_t v)
{
    bool front = i < d->n / 2;
    (front ? deque_push_front : deque_push_back)(d, v);
    uint32_t mask = d->cap - 1;
    for (uint32_t j = 0; front && j < i; j++)
        d->items[(d->head + j) & mask] = d->items[(d->head + j + 1) & mask];
    for (uint32_t j = d->n - 1; !front && j > i; j--)
        d->items[(d->head + j) & mask] = d->items[(d->head + j - 1) & mask];
    d->items[(d->head + i) & mask] = v;
}

static void deque_copy(struct deque *dst, const struct deque *src)
{
    for (uint32_t i = 0; i < src->n; i++)
        dst->items[i] = deque_at(src, i);
    dst->head = 0;
    dst->n = src->n;
}

/* ---- life */

struct engine *engine_new(const struct engine_config *c, uint64_t seed)
{
    const char *why;
    if (engine_config_check(c, &why))
        return NULL;
    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->c = *c;
    e->ops = sched_table[c->scheduler];
    if (c->scheduler == SCHED_DYNOSIM && c->dynosim_engine == DYNOSIM_SGLANG)
        sched_dynosim_as_sglang(e);
    /* vLLM keeps one block of the pool for itself (the null block) */
    uint32_t usable = c->num_gpu_blocks - (c->scheduler == SCHED_VLLM ? 1 : 0);
    if (kv_init(&e->kv, c->block_size, usable, c->enable_prefix_caching, c->eviction)) {
        free(e);
        return NULL;
    }
    if (tiers_new(e)) {
        engine_free(e);
        return NULL;
    }
    e->seqs_free = e->sgl_chunked = e->dyn_refused = ENGINE_NO_SLOT;
    e->slow = e->slow_next = 1;
    e->ended_ps = -1;
    e->ready = true;
    rng_init(&e->rng, seed);
    return e;
}

void engine_free(struct engine *e)
{
    if (!e)
        return;
    kv_deinit(&e->kv);
    tiers_free(e->tiers);
    free(e->seqs);
    free(e->running);
    free(e->waiting.items);
    free(e->arriving.items);
    free(e->leaving);
    free(e->batch);
    free(e->ends);
    free(e->events);
    free(e->trace_batch);
    for (int i = 0; i < 3; i++)
        free(e->trace_list[i]);
    free(e);
}

/* Room in dst for what src has; dst stays as it is. */
static int reserve_as(struct engine *dst, const struct engine *src)
{
    if (dst->waiting.cap < src->waiting.cap && deque_resize(&dst->waiting, src->waiting.cap))
        return WEIR_E_NOMEM;
    if (dst->arriving.cap < src->arriving.cap && deque_resize(&dst->arriving, src->arriving.cap))
        return WEIR_E_NOMEM;
    if (MEM_RESERVE(dst->leaving, dst->leaving_cap, src->n_leaving) ||
        MEM_RESERVE(dst->seqs, dst->seqs_cap, src->seqs_used) ||
        MEM_RESERVE(dst->running, dst->running_cap, src->n_running) ||
        MEM_RESERVE(dst->batch, dst->batch_cap, src->n_batch) ||
        MEM_RESERVE(dst->ends, dst->ends_cap,
                    src->skip_form == SKIP_ENDS ? (uint32_t)src->steps : 0))
        return WEIR_E_NOMEM;
    return 0;
}

int engine_copy(struct engine *dst, const struct engine *src)
{
    struct engine_tiers *new_tiers = NULL;
    if (reserve_as(dst, src) ||
        (src->tiers && tiers_reserve_as(dst->tiers ? &dst->tiers : &new_tiers, src->tiers)) ||
        kv_copy(&dst->kv, &src->kv)) {
        tiers_free(new_tiers);
        return WEIR_E_NOMEM;
    }
    if (!src->tiers) {
        tiers_free(dst->tiers);
        dst->tiers = NULL;
    } else {
        if (!dst->tiers)
            dst->tiers = new_tiers;
        tiers_copy(dst->tiers, src->tiers);
    }
    struct engine old = *dst;
    *dst = *src;
    dst->kv = old.kv;
    dst->tiers = old.tiers;
    dst->waiting = old.waiting;
    deque_copy(&dst->waiting, &src->waiting);
    dst->arriving = old.arriving;
    deque_copy(&dst->arriving, &src->arriving);
    dst->leaving = old.leaving;
    dst->leaving_cap = old.leaving_cap;
    MEM_COPY(dst->leaving, src->leaving, src->n_leaving);
    dst->seqs = old.seqs;
    dst->seqs_cap = old.seqs_cap;
    MEM_COPY(dst->seqs, src->seqs, src->seqs_used);
    dst->running = old.running;
    dst->running_cap = old.running_cap;
    MEM_COPY(dst->running, src->running, src->n_running);
    dst->batch = old.batch;
    dst->batch_cap = old.batch_cap;
    MEM_COPY(dst->batch, src->batch, src->n_batch);
    dst->ends = old.ends;
    dst->ends_cap = old.ends_cap;
    if (src->skip_form == SKIP_ENDS && src->skipping && src->in_pass)
        MEM_COPY(dst->ends, src->ends, (uint32_t)src->steps);
    dst->events = old.events;
    dst->events_cap = old.events_cap;
    dst->n_events = 0;
    dst->itl = NULL;
    dst->tracing = false;
    dst->trace_batch = old.trace_batch;
    dst->trace_cap = old.trace_cap;
    memcpy(dst->trace_list, old.trace_list, sizeof old.trace_list);
    memcpy(dst->trace_list_cap, old.trace_list_cap, sizeof old.trace_list_cap);
    return 0;
}

void engine_set_stepping(struct engine *e, bool on)
{
    e->stepping = on;
}

void engine_want_first_tokens(struct engine *e, bool on)
{
    e->want_first_tokens = on;
}

void engine_set_itl(struct engine *e, struct hist *itl)
{
    e->itl = itl;
}

/* ---- requests */

static struct engine_event *event_new(struct engine *e)
{
    MEM_GROW(e->events, e->events_cap, e->n_events + 1);
    return &e->events[e->n_events++];
}

static void emit(struct engine *e, enum engine_event_kind kind, int64_t at, uint32_t slot)
{
    struct engine_event *ev = event_new(e);
    ev->kind = kind;
    ev->at_ps = at;
    ev->handle = e->seqs[slot].handle;
    ev->slot = slot;
    ev->record = e->seqs[slot].rec;
}

static void seq_free(struct engine *e, uint32_t slot)
{
    e->seqs[slot].state = SEQ_FREE;
    e->n_left++;
    e->seqs[slot].next_free = e->seqs_free;
    e->seqs_free = slot;
}

/* Without chunked prefill: the most tokens of s that one pass has to take. */
static uint64_t uncut_tok(const struct engine *e, const struct request_spec *s)
{
    if (e->c.enable_chunked_prefill || e->c.scheduler == SCHED_SGLANG)
        return 0;
    if (e->c.scheduler == SCHED_TRTLLM)
        return s->prompt_tok;
    return (uint64_t)s->prompt_tok + s->output_tok - 1; /* preempted before its last token */
}

bool engine_fits(const struct engine *e, const struct request_spec *s)
{
    uint64_t tok = (uint64_t)s->prompt_tok + s->output_tok;
    if (e->c.max_model_len && s->prompt_tok >= e->c.max_model_len)
        return false;
    if (e->c.max_model_len && tok > e->c.max_model_len)
        tok = e->c.max_model_len; /* the answer is cut off there */
    return blocks_for(e, tok) <= e->kv.usable && uncut_tok(e, s) <= e->c.max_num_batched_tokens;
}

/* The caller changes something as of now. */
static void change(struct engine *e, int64_t now);
/* And blocks will be freed: passes that have begun have taken theirs before. */
static void change_blocks(struct engine *e, int64_t now);

static bool flags_make_sense(const struct engine *e, unsigned flags)
{
    bool remote = flags & ENGINE_REMOTE_KV, reserve = flags & ENGINE_RESERVE;
    if ((flags & ENGINE_PREFILL_ONLY && remote) || (reserve && !remote))
        return false;
    return !remote || reserve || e->c.scheduler != SCHED_DYNOSIM || e->c.role != ROLE_DECODE;
}

/* Where q belongs among those who wait under the priority policy: behind those whose KV has come, by rank. */
static uint32_t rank_place(const struct engine *e, const struct seq *q)
{
    uint32_t lo = 0, hi = e->waiting.n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        const struct seq *o = &e->seqs[deque_at(&e->waiting, mid)];
        if (o->kv_came || seq_rank_less(o, q))
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void enqueue(struct engine *e, uint32_t slot)
{
    if (e->c.policy == SCHED_PRIORITY)
        deque_insert_at(&e->waiting, rank_place(e, &e->seqs[slot]), slot);
    else
        deque_push_back(&e->waiting, slot);
}

int engine_submit(struct engine *e, int64_t now, const struct request_spec *s, uint32_t handle,
                  unsigned flags, uint32_t *slot)
{
    if (!s->prompt_tok || !s->output_tok || !flags_make_sense(e, flags))
        return WEIR_E_INVALID;
    if (!engine_fits(e, s))
        return WEIR_E_TOO_LARGE;
    uint32_t i = e->seqs_free;
    if (i != ENGINE_NO_SLOT) {
        e->seqs_free = e->seqs[i].next_free;
    } else {
        i = e->seqs_used;
        MEM_GROW(e->seqs, e->seqs_cap, i + 1);
        e->seqs_used = i + 1;
    }
    struct seq *q = &e->seqs[i];
    memset(q, 0, sizeof *q);
    q->spec = *s;
    if (e->c.max_model_len && s->output_tok > e->c.max_model_len - s->prompt_tok)
        q->spec.output_tok = e->c.max_model_len - s->prompt_tok; /* finish_reason=length */
    kv_hold_init(&q->hold);
    q->handle = handle;
    q->state = SEQ_WAITING;
    q->flags = (uint8_t)flags;
    q->extended_keys =
        (uint64_t)s->n_keys * s->key_tok >= (uint64_t)s->prompt_tok + s->key_tok && s->key_tok;
    q->order = e->order++;
    q->last_token_ps = -1;
    q->rec = (struct engine_record){
        .first_admit_ps = -1, .first_token_ps = -1, .second_token_ps = -1, .end_ps = -1};
    if (e->c.async_scheduling)
        deque_push_back(&e->arriving, i);
    else
        enqueue(e, i);
    change(e, now);
    e->ready = true;
    e->waiting_blocked = false;
    *slot = i;
    return 0;
}

static void running_remove(struct engine *e, uint32_t slot)
{
    uint32_t i = 0;
    while (e->running[i] != slot)
        i++;
    memmove(&e->running[i], &e->running[i + 1], (e->n_running - i - 1) * sizeof *e->running);
    e->n_running--;
}

void engine_room_made(struct engine *e)
{
    e->ready = true;
    e->waiting_blocked = false;
}

/* The request gives its blocks back. */
static void free_blocks(struct engine *e, uint32_t slot)
{
    if (!e->tiers || !tiers_keep(e, slot))
        kv_release(&e->kv, &e->seqs[slot].hold);
}

void engine_release(struct engine *e, int64_t now, uint32_t slot)
{
    assert(e->seqs[slot].state == SEQ_HELD);
    change_blocks(e, now);
    free_blocks(e, slot);
    seq_free(e, slot);
    e->n_held--;
    engine_room_made(e);
}

void engine_abort(struct engine *e, int64_t now, uint32_t slot)
{
    struct seq *q = &e->seqs[slot];
    if (q->state == SEQ_HELD) {
        engine_release(e, now, slot);
        return;
    }
    change_blocks(e, now);
    if (q->state == SEQ_WAITING) {
        if (!deque_drop(&e->waiting, slot))
            (void)deque_drop(&e->arriving, slot);
        free_blocks(e, slot); /* it has some if its KV has come */
        seq_free(e, slot);
    } else if (q->state == SEQ_ASIDE) {
        if (e->tiers && tiers_abort(e, slot))
            q->aborted = true; /* until what writes to its blocks has ended */
        else
            engine_drop_aside(e, slot);
    } else if (e->in_pass && (e->skipping || q->sched)) {
        q->aborted = true; /* the pass goes on with it and forgets it at its end */
    } else {
        running_remove(e, slot);
        free_blocks(e, slot);
        seq_free(e, slot);
    }
    if (e->sgl_chunked == slot)
        e->sgl_chunked = ENGINE_NO_SLOT;
    engine_room_made(e);
}

static void settle(struct engine *e, int64_t now);

void engine_kill(struct engine *e, int64_t now, void (*lost)(void *ctx, uint32_t handle), void *ctx)
{
    settle(e, now);
    for (uint32_t i = 0; i < e->seqs_used; i++) {
        struct seq *q = &e->seqs[i];
        if (q->state == SEQ_FREE)
            continue;
        if (q->hold.n_blocks)
            kv_release(&e->kv, &q->hold);
        if (!q->aborted && q->state != SEQ_LEAVING)
            lost(ctx, q->handle);
        seq_free(e, i);
    }
    if (e->tiers)
        tiers_kill(e);
    kv_drop_cache(&e->kv);
    e->kv.log_used = e->kv.log_names_used = 0;
    e->n_running = e->waiting.n = e->arriving.n = e->n_leaving = 0;
    e->n_held = e->n_aside = e->n_batch = 0;
    e->in_pass = false;
    e->end_ps = now;
    e->sgl_chunked = e->dyn_refused = ENGINE_NO_SLOT;
    e->sgl_decay_steps = e->dyn_came = 0;
    e->ended_ps = -1;
    engine_room_made(e);
}

/* ---- what schedulers use */

void engine_batch_add(struct engine *e, uint32_t slot, uint32_t n)
{
    MEM_GROW(e->batch, e->batch_cap, e->n_batch + 1);
    struct seq *q = &e->seqs[slot];
    q->sched = n;
    e->batch[e->n_batch++] = (struct batch_item){
        .slot = slot, .n = n, .decode = q->out > 0 && seq_tokens(q) - q->computed == 1};
}

uint32_t engine_batch_drop(struct engine *e, uint32_t slot)
{
    for (uint32_t i = 0; i < e->n_batch; i++) {
        if (e->batch[i].slot == slot) {
            uint32_t n = e->batch[i].n;
            memmove(&e->batch[i], &e->batch[i + 1], (e->n_batch - i - 1) * sizeof *e->batch);
            e->n_batch--;
            e->seqs[slot].sched = 0;
            return n;
        }
    }
    return 0;
}

static void trace_add(struct engine *e, enum engine_step_list which, uint32_t handle)
{
    if (!e->tracing)
        return;
    MEM_GROW(e->trace_list[which], e->trace_list_cap[which], e->trace_n[which] + 1);
    e->trace_list[which][e->trace_n[which]++] = handle;
}

void engine_put_aside(struct engine *e, uint32_t waiting_index, const struct kv_match *m,
                      uint32_t blocks)
{
    uint32_t slot = deque_at(&e->waiting, waiting_index);
    struct seq *q = &e->seqs[slot];
    deque_remove_at(&e->waiting, waiting_index);
    q->state = SEQ_ASIDE;
    e->n_aside++;
    if (!m)
        return;
    if (m->blocks)
        kv_attach(&e->kv, &q->spec, m->blocks, &q->hold);
    kv_take(&e->kv, &q->hold, blocks - m->blocks);
    q->cached_tok = m->blocks * e->c.block_size;
    if (q->flags & ENGINE_RESERVE) {
        emit(e, ENGINE_EV_RESERVED, e->start_ps, slot);
        e->events[e->n_events - 1].record.reused_tok = q->cached_tok;
    }
}

/* Where q, which comes back, belongs: see engine_internal.h. */
static uint32_t place_back(const struct engine *e, const struct seq *q, bool kv_came)
{
    uint32_t i = 0;
    if (!kv_came && e->c.policy == SCHED_PRIORITY)
        return rank_place(e, q);
    for (; i < e->waiting.n; i++) {
        const struct seq *o = &e->seqs[deque_at(&e->waiting, i)];
        if (!o->came_back || o->kv_came < kv_came || (o->kv_came == kv_came && o->order > q->order))
            break;
    }
    return i;
}

void engine_come_back(struct engine *e, uint32_t slot, bool kv_came)
{
    struct seq *q = &e->seqs[slot];
    deque_insert_at(&e->waiting, place_back(e, q, kv_came), slot);
    q->state = SEQ_WAITING;
    q->came_back = true;
    q->kv_came = kv_came;
    e->n_aside--;
    engine_room_made(e);
}

void engine_drop_aside(struct engine *e, uint32_t slot)
{
    kv_release(&e->kv, &e->seqs[slot].hold);
    seq_free(e, slot);
    e->n_aside--;
    engine_room_made(e);
}

void engine_arrived(struct engine *e, int64_t now, uint32_t slot)
{
    struct seq *q = &e->seqs[slot];
    assert(q->state == SEQ_ASIDE && q->flags & ENGINE_RESERVE);
    change(e, now);
    q->flags &= (uint8_t)~ENGINE_RESERVE;
    q->computed = seq_tokens(q) - 1;
    engine_come_back(e, slot, true);
}

void engine_admit(struct engine *e, uint32_t waiting_index, uint32_t hit_blocks)
{
    uint32_t slot = deque_at(&e->waiting, waiting_index);
    struct seq *q = &e->seqs[slot];
    deque_remove_at(&e->waiting, waiting_index);
    MEM_GROW(e->running, e->running_cap, e->n_running + 1);
    e->running[e->n_running++] = slot;
    q->state = SEQ_RUNNING;
    if (!q->kv_came) {
        if (hit_blocks)
            kv_attach(&e->kv, &q->spec, hit_blocks, &q->hold);
        q->computed = q->cached_tok = hit_blocks * e->c.block_size;
    }
    q->came_back = q->kv_came = false;
    uint32_t reused = q->cached_tok < q->spec.prompt_tok ? q->cached_tok : q->spec.prompt_tok;
    if (q->rec.first_admit_ps < 0) {
        q->rec.first_admit_ps = e->start_ps;
        q->rec.reused_tok = reused;
    }
    q->rec.reused_all_tok += reused;
    e->stats.admitted++;
    e->stats.reused_tok += reused;
    trace_add(e, q->preempted_before ? STEP_RESUMED : STEP_NEW, q->handle);
}

void engine_preempt(struct engine *e, uint32_t running_index)
{
    uint32_t slot = e->running[running_index];
    struct seq *q = &e->seqs[slot];
    memmove(&e->running[running_index], &e->running[running_index + 1],
            (e->n_running - running_index - 1) * sizeof *e->running);
    e->n_running--;
    if (e->tiers)
        tiers_preempted(e, slot);
    kv_release(&e->kv, &q->hold);
    q->computed = 0;
    q->state = SEQ_WAITING;
    q->preempted_before = true;
    q->rec.preemptions++;
    e->stats.preemptions++;
    uint32_t i = 0; /* to the front, but whoever holds blocks already must get on */
    while (i < e->waiting.n && e->seqs[deque_at(&e->waiting, i)].kv_came)
        i++;
    if (e->c.policy == SCHED_PRIORITY)
        i = rank_place(e, q);
    deque_insert_at(&e->waiting, i, slot);
    trace_add(e, STEP_PREEMPTED, q->handle);
}

void engine_describe_batch(const struct engine *e, struct step_batch *b)
{
    *b = (struct step_batch){0};
    for (uint32_t i = 0; i < e->n_batch; i++) {
        const struct batch_item *it = &e->batch[i];
        const struct seq *q = &e->seqs[it->slot];
        if (it->decode) {
            b->decode_reqs++;
            b->decode_ctx_tok += q->computed + 1;
        } else {
            b->prefill_reqs++;
            b->prefill_tok += it->n;
            b->prefill_ctx_tok += q->computed;
            b->prefill_attn += 2 * (uint64_t)it->n * q->computed + (uint64_t)it->n * it->n;
        }
        b->active_kv_tok += q->computed + it->n;
    }
    b->total_kv_tok = (uint64_t)e->kv.usable * e->c.block_size;
}

/* ---- time */

static int64_t slowed(const struct engine *e, int64_t ps)
{
    double slow = (double)ps * e->slow + 0.5;
    return e->slow == 1 ? ps : slow < (double)STEP_MAX_PS ? (int64_t)slow : STEP_MAX_PS;
}

static int64_t pass_time(const struct engine *e, const struct step_batch *b)
{
    return slowed(e, step_time_ps(&e->c.step, b));
}

static int64_t closed_sum(const struct engine *e, uint64_t n)
{
    return (int64_t)n * e->step_a_ps + e->step_d_ps * (int64_t)(n * (n - 1) / 2);
}

/* Blocks that n decode passes of the whole running batch take. */
static uint64_t blocks_needed(const struct engine *e, uint64_t n)
{
    uint64_t need = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        uint32_t blocks = blocks_for(e, q->computed + n);
        need += blocks > q->hold.n_blocks ? blocks - q->hold.n_blocks : 0;
    }
    return need;
}

/* Takes and names the blocks of n decode passes. */
static void decode_blocks(struct engine *e, uint64_t n)
{
    for (uint32_t i = 0; i < e->n_running; i++) {
        struct seq *q = &e->seqs[e->running[i]];
        uint64_t tok = q->computed + n;
        uint32_t blocks = blocks_for(e, tok), full = (uint32_t)(tok / e->c.block_size);
        if (blocks > q->hold.n_blocks)
            kv_take(&e->kv, &q->hold, blocks - q->hold.n_blocks);
        if (e->kv.caching && full > q->hold.n_named)
            kv_name(&e->kv, &q->spec, &q->hold, full);
    }
}

/* ---- the times of decode-only passes taken together. The sum is a closed form with some step models; where
 * blocks are counted, all passes up to the next block take equally long; else the ends of the passes are
 * written down when they are planned. */

/* Most passes planned when their ends have to be written down. */
#define MAX_ENDS 512u
/* So many are worked out at once: from PS_LIMIT on their sum stays inside 64 bits, as none takes longer than
 * STEP_MAX_PS. */
#define ENDS_PART 32u
_Static_assert((INT64_MAX - PS_LIMIT) / STEP_MAX_PS >= ENDS_PART, "a sum could overflow");

static enum skip_form skip_form(const struct engine *e)
{
    if (e->c.step.linear_decode && e->slow == 1)
        return SKIP_CLOSED;
    /* DynoSim 1.4.2 tells the step model of whole blocks: its polynomial changes only when one is taken */
    if (e->c.scheduler == SCHED_DYNOSIM && e->c.dynosim_version == DYNOSIM_1_4_2 &&
        (e->c.step.form == STEP_POLYNOMIAL || e->c.step.form == STEP_TABLE))
        return SKIP_BLOCKS;
    return SKIP_ENDS;
}

/* What the running requests are when all decode. */
static struct step_batch decode_batch(const struct engine *e)
{
    struct step_batch b = {.decode_reqs = e->n_running,
                           .peer_tok = e->peer_tok,
                           .total_kv_tok = (uint64_t)e->kv.usable * e->c.block_size};
    for (uint32_t i = 0; i < e->n_running; i++)
        b.decode_ctx_tok += e->seqs[e->running[i]].computed + 1;
    b.active_kv_tok = b.decode_ctx_tok;
    return b;
}

/* What each decode-only pass of b's requests takes more than the one before, with a closed form. */
static __int128 decode_growth_ps(const struct engine *e, const struct step_batch *b)
{
    return (__int128)e->c.step.k_ps * b->decode_reqs;
}

/* Goes along the planned passes when blocks are counted, from group to group of equally long ones. */
struct walk {
    struct step_batch b; /* of the next pass */
    uint64_t done;       /* passes so far */
    uint64_t n;          /* the last of them, the group */
    int64_t ps;          /* how long each of the group takes */
};

static void walk_start(const struct engine *e, struct walk *w)
{
    *w = (struct walk){.b = decode_batch(e)};
    w->b.active_kv_tok = (uint64_t)e->step_blocks * e->c.block_size;
}

/* Goes on to the next pass in which blocks are taken, at most `max` passes. (With a table, which looks at the
 * context as well: to the next pass.) */
static void walk_next(const struct engine *e, struct walk *w, uint64_t max)
{
    uint32_t bs = e->c.block_size, taken = 0;
    uint64_t n = e->c.step.form == STEP_TABLE ? 1 : max;
    for (uint32_t i = 0; i < e->n_running; i++) {
        uint64_t left = bs - (e->seqs[e->running[i]].computed + w->done) % bs;
        if (left < n)
            n = left;
    }
    for (uint32_t i = 0; i < e->n_running; i++) {
        taken += (e->seqs[e->running[i]].computed + w->done + n) % bs == 0;
    }
    w->n = n;
    w->ps = pass_time(e, &w->b);
    w->b.active_kv_tok += (uint64_t)taken * bs;
    w->b.decode_ctx_tok += n * w->b.decode_reqs;
    w->done += n;
}

/* Smallest n in 1..max of the passes so that the n-th ends at or after `until`; *end is when. */
static uint64_t walk_until(const struct engine *e, uint64_t max, int64_t until, int64_t *end)
{
    struct walk w;
    walk_start(e, &w);
    int64_t t = e->start_ps;
    uint64_t n = 0;
    until = until < PS_LIMIT ? until : PS_LIMIT;
    do {
        walk_next(e, &w, max - n);
        uint64_t part = w.n;
        int64_t span = until - t;
        if (span <= w.ps || (uint64_t)(span / w.ps) < part)
            part = span <= 0 ? 1 : (uint64_t)((span - 1) / w.ps + 1);
        t += (int64_t)part * w.ps;
        n += part;
    } while (n < max && t < until);
    *end = t;
    return n;
}

/* The times of n decode-only passes, of which b is the first; b becomes the one after them. */
static void decode_times(const struct engine *e, struct step_batch *b, uint32_t n, int64_t *ps)
{
    step_decode_run(&e->c.step, b, b->decode_reqs, n, ps);
    for (uint32_t i = 0; e->slow != 1 && i < n; i++)
        ps[i] = slowed(e, ps[i]);
    b->active_kv_tok += (uint64_t)n * b->decode_reqs;
    b->decode_ctx_tok += (uint64_t)n * b->decode_reqs;
}

/* Writes down the ends of the next passes, so many that the last is at or after `until`, at most max and
 * MAX_ENDS; returns how many. */
static uint64_t plan_ends(struct engine *e, uint64_t max, int64_t until)
{
    struct step_batch b = decode_batch(e);
    int64_t t = e->start_ps, ps[ENDS_PART];
    uint32_t done = 0, end = max < MAX_ENDS ? (uint32_t)max : MAX_ENDS;
    until = until < PS_LIMIT ? until : PS_LIMIT;
    MEM_GROW(e->ends, e->ends_cap, end);
    do {
        uint32_t n = end - done < ENDS_PART ? end - done : ENDS_PART;
        decode_times(e, &b, n, ps);
        for (uint32_t i = 0; i < n; i++)
            e->ends[done++] = t += ps[i];
    } while (done < end && t < until);
    return done;
}

/* Smallest n in 1..max of the passes so that ends[n - 1] is at or after `until`. */
static uint64_t ends_until(const struct engine *e, uint64_t max, int64_t until)
{
    uint64_t lo = 0, hi = max; /* n is in lo + 1 .. hi */
    while (hi - lo > 1) {
        uint64_t mid = (lo + hi) / 2;
        *(e->ends[mid - 1] < until ? &lo : &hi) = mid;
    }
    return hi;
}

/* Smallest n in 1..max of the passes of a closed form so that the n-th ends at or after `until`. */
static uint64_t closed_until(const struct engine *e, uint64_t max, int64_t until)
{
    int64_t span = until - e->start_ps;
    uint64_t n = max;
    if (max > 1 && closed_sum(e, max - 1) < span) /* often: it was planned until then */
        return max;
    if (closed_sum(e, max) > span && span < INT64_MAX / 4) {
        /* d/2 n^2 + (a - d/2) n = span */
        double a = (double)e->step_a_ps, d = (double)e->step_d_ps,
               s = (double)(span > 0 ? span : 0);
        double h = a - d / 2, x = d > 0 ? (__builtin_sqrt(h * h + 2 * d * s) - h) / d : s / a;
        n = x < 1 ? 1 : x > (double)max ? max : (uint64_t)x;
        while (n > 1 && closed_sum(e, n - 1) >= span)
            n--;
        while (n < max && closed_sum(e, n) < span)
            n++;
    }
    return n;
}

/* Smallest n in 1..max of the planned passes so that the n-th ends at or after `until`; *end is when. */
static uint64_t passes_until(const struct engine *e, uint64_t max, int64_t until, int64_t *end)
{
    if (e->skip_form == SKIP_BLOCKS)
        return walk_until(e, max, until, end);
    bool closed = e->skip_form == SKIP_CLOSED;
    uint64_t n = closed ? closed_until(e, max, until) : ends_until(e, max, until);
    *end = closed ? e->start_ps + closed_sum(e, n) : e->ends[n - 1];
    return n;
}

static void end_pass(struct engine *e);

void engine_cut(struct engine *e, int64_t now)
{
    if (e->in_pass && e->skipping && e->steps > 1 && e->end_ps > now)
        e->steps = passes_until(e, e->steps, now, &e->end_ps);
}

static void change(struct engine *e, int64_t now)
{
    if (e->in_pass && e->end_ps > now) {
        engine_cut(e, now);
        if (e->end_ps == now) /* nobody finishes before the last of the planned passes: no events */
            end_pass(e);
    }
    if (!e->in_pass && e->end_ps < now)
        e->end_ps = now; /* idle until then */
}

static void change_blocks(struct engine *e, int64_t now)
{
    change(e, now);
    if (e->in_pass && e->skipping)
        decode_blocks(e, e->steps);
}

/* Most passes taken together. */
#define MAX_SKIP (UINT64_C(1) << 18)

/* How many decode-only passes can be taken without the scheduler having anything to decide; 0: ask it. */
static uint64_t skippable(const struct engine *e)
{
    if (e->stepping || e->tracing || !e->all_decode || !e->n_running || e->c.step.spec_gamma ||
        e->n_running > e->c.max_num_batched_tokens)
        return 0;
    if (e->waiting.n && !(e->waiting_blocked && e->ops->waiting_stays(e)))
        return 0;
    if (e->arriving.n || e->n_leaving) /* the pass after the next one is another */
        return 0;
    uint64_t n = MAX_SKIP;
    uint32_t bs = e->c.block_size;
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        uint64_t left = q->spec.output_tok - q->out;
        if (q->extended_keys &&
            e->waiting.n) /* its answer may be what a waiting request starts with */
            return 0;
        if (e->kv.log_on || q->extended_keys) { /* stop where blocks are taken or named */
            uint32_t in_block = q->computed % bs;
            uint64_t edge = in_block ? bs - in_block : 1;
            left = edge < left ? edge : left;
        }
        n = left < n ? left : n;
    }
    uint32_t free_blocks = kv_free_blocks(&e->kv);
    if ((n / bs + 1) * e->n_running > free_blocks && blocks_needed(e, n) > free_blocks) {
        uint64_t lo = 0, hi = n; /* lo fits, hi does not */
        while (hi - lo > 1) {
            uint64_t mid = (lo + hi) / 2;
            *(blocks_needed(e, mid) <= free_blocks ? &lo : &hi) = mid;
        }
        n = lo;
    }
    return n;
}

/* Blocks in use in a decode-only pass that begins now. */
static uint32_t first_step_blocks(const struct engine *e)
{
    return (uint32_t)(e->kv.usable - kv_free_blocks(&e->kv) + blocks_needed(e, 1));
}

/* As many of n passes, of which the first takes a and each one d more than the one before, as keep below these
 * limits, too. */
static uint64_t limited(int64_t a, __int128 d, uint64_t n)
{
    while (n > 1 &&
           (a + d * (int64_t)n > STEP_MAX_PS || (a + d * (int64_t)n) * (int64_t)n > PS_LIMIT))
        n /= 2;
    return n;
}

static void start_skip(struct engine *e, uint64_t n, int64_t horizon)
{
    e->skip_form = skip_form(e);
    if (e->skip_form == SKIP_BLOCKS)
        e->step_blocks = first_step_blocks(e);
    if (e->skip_form == SKIP_CLOSED) {
        struct step_batch b = decode_batch(e);
        __int128 d = decode_growth_ps(e, &b);
        e->step_a_ps = step_time_ps(&e->c.step, &b);
        n = limited(e->step_a_ps, d, n);
        e->step_d_ps = n > 1 ? (int64_t)d : 0;
    } else if (e->skip_form == SKIP_ENDS) {
        n = plan_ends(e, n, horizon);
    }
    e->skipping = e->in_pass = true;
    e->steps = passes_until(e, n, horizon, &e->end_ps);
}

/* ---- asynchronous scheduling: while pass X runs, pass X + 1 is planned already, so that what came and what
 * finished during X counts from X + 2 on. Here a pass is planned when it begins, as without; to the same
 * effect, what came during X waits in `arriving`, and what finished in X keeps its seat and its blocks, until
 * X + 1 is planned. (vLLM: EngineCore.step_with_batch_queue and Scheduler.schedule, which leaves out a request
 * that the pass in flight will finish. Here an abort counts one pass earlier than there.) */

/* Frees what finished before the pass that ended last; all: that one too. */
static void let_go(struct engine *e, bool all)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->n_leaving; i++) {
        uint32_t slot = e->leaving[i];
        if (!all && e->seqs[slot].left_pass == e->stats.passes) {
            e->leaving[n++] = slot;
            continue;
        }
        free_blocks(e, slot);
        seq_free(e, slot);
        engine_room_made(e);
    }
    e->n_leaving = n;
}

static void take_arrivals(struct engine *e)
{
    while (e->arriving.n) {
        enqueue(e, deque_at(&e->arriving, 0));
        deque_remove_at(&e->arriving, 0);
        engine_room_made(e);
    }
}

/* Lets the scheduler fill the batch of the pass that begins. */
static void plan(struct engine *e)
{
    uint64_t preemptions;
    e->n_batch = 0;
    do { /* after an empty step in which somebody gave way, whoever is left goes right on */
        preemptions = e->stats.preemptions;
        e->ready = e->waiting_blocked = false;
        e->ops->schedule(e);
    } while (!e->n_batch && e->stats.preemptions != preemptions && !e->tracing);
    if (!e->n_batch && (e->arriving.n || e->n_leaving)) { /* it was idle: sees everything */
        let_go(e, true);
        take_arrivals(e);
        e->ops->schedule(e);
    }
    take_arrivals(e);
}

static bool start_pass(struct engine *e)
{
    plan(e);
    if (!e->n_batch)
        return false;
    struct step_batch b;
    engine_step_batch(e, &b);
    e->skipping = false;
    e->in_pass = true;
    int64_t begin = e->start_ps;
    if (e->tiers && tiers_flush_ps(e) > begin)
        begin = tiers_flush_ps(e);
    e->end_ps = begin + pass_time(e, &b);
    return true;
}

uint64_t engine_prepare(struct engine *e, int64_t now)
{
    bool coming = e->arriving.n || e->n_leaving;
    if (!e->n_running && !coming && (!e->waiting.n || !e->ready))
        return UINT64_MAX;
    e->out_of_time = now >= PS_LIMIT;
    if (e->out_of_time)
        return UINT64_MAX;
    e->start_ps = now;
    e->slow = e->slow_next;
    let_go(e, false);
    return skippable(e);
}

void engine_start(struct engine *e, int64_t now, int64_t horizon)
{
    if (e->in_pass)
        return;
    uint64_t n = engine_prepare(e, now);
    if (n == UINT64_MAX)
        return;
    if (e->tiers && tiers_next_ps(e) < horizon)
        horizon = tiers_next_ps(e);
    if (n > 1)
        start_skip(e, n, horizon);
    else
        start_pass(e);
}

int64_t engine_begin_pass(struct engine *e)
{
    return start_pass(e) ? e->end_ps : PS_NEVER;
}

void engine_decode_times(struct engine *e, uint32_t n, int64_t *ps)
{
    struct step_batch b = decode_batch(e);
    enum skip_form form = skip_form(e);
    if (form == SKIP_BLOCKS) {
        struct walk w;
        e->step_blocks = first_step_blocks(e);
        walk_start(e, &w);
        while (w.done < n) {
            int64_t *part = ps + w.done;
            walk_next(e, &w, n - w.done);
            for (uint64_t i = 0; i < w.n; i++)
                part[i] = w.ps;
        }
        return;
    }
    int64_t a = step_time_ps(&e->c.step, &b);
    __int128 d = decode_growth_ps(e, &b);
    if (form == SKIP_CLOSED && limited(a, d, n) == n) {
        for (uint32_t i = 0; i < n; i++, a += (int64_t)d)
            ps[i] = a;
        return;
    }
    decode_times(e, &b, n, ps);
}

void engine_begin_paced(struct engine *e, const int64_t *ends, uint32_t n)
{
    MEM_GROW(e->ends, e->ends_cap, n);
    memcpy(e->ends, ends, n * sizeof *ends);
    e->skipping = e->in_pass = true;
    e->skip_form = SKIP_ENDS;
    e->steps = n;
    e->end_ps = ends[n - 1];
}

int64_t engine_next_ps(const struct engine *e)
{
    if (e->in_pass)
        return e->end_ps;
    return e->tiers ? tiers_next_ps(e) : PS_NEVER;
}

/* One or more tokens of a request came out at `at`. */
static void token_out(struct engine *e, struct seq *q, uint32_t slot, uint32_t n, int64_t at)
{
    if (q->out == 0) {
        q->rec.first_token_ps = at;
    } else if (e->itl) {
        hist_add(e->itl, at - q->last_token_ps, 1);
    }
    if (q->out < 2 && q->out + n >= 2)
        q->rec.second_token_ps = at;
    if (e->itl && n > 1)
        hist_add(e->itl, 0, n - 1);
    bool first = q->out == 0;
    q->out += n;
    q->last_token_ps = at;
    e->stats.output_tok += n;
    if (first && e->want_first_tokens)
        emit(e, ENGINE_EV_FIRST_TOKEN, at, slot);
}

static void finish(struct engine *e, uint32_t slot, int64_t at)
{
    struct seq *q = &e->seqs[slot];
    q->rec.end_ps = at;
    q->rec.output_tok = q->out;
    e->stats.done++;
    if (e->tiers)
        tiers_store(e, slot, e->end_ps);
    emit(e, ENGINE_EV_DONE, at, slot);
    if (e->c.async_scheduling) {
        q->state = SEQ_LEAVING;
        q->left_pass = e->stats.passes;
        MEM_GROW(e->leaving, e->leaving_cap, e->n_leaving + 1);
        e->leaving[e->n_leaving++] = slot;
        return;
    }
    free_blocks(e, slot);
    seq_free(e, slot);
}

/* Drops finished requests from the running list; finds out whether all others only decode. */
static void compact_running(struct engine *e)
{
    uint32_t n = 0;
    bool all = true;
    for (uint32_t i = 0; i < e->n_running; i++) {
        uint32_t slot = e->running[i];
        const struct seq *q = &e->seqs[slot];
        if (q->state != SEQ_RUNNING)
            continue;
        all &= q->out > 0 && seq_tokens(q) - q->computed == 1;
        e->running[n++] = slot;
    }
    if (n != e->n_running)
        engine_room_made(e);
    e->n_running = n;
    e->all_decode = all;
}

/* Adds the gaps before the tokens of passes [from, to) of those taken together, each `weight` times. w: where
 * blocks are counted; is at or before the group of `from`. */
static void add_gaps(struct engine *e, struct walk *w, uint64_t from, uint64_t to, uint64_t weight)
{
    if (e->skip_form == SKIP_CLOSED) {
        hist_add_series(e->itl, e->step_a_ps + (int64_t)from * e->step_d_ps, e->step_d_ps,
                        to - from, weight);
        return;
    }
    while (from < to) {
        uint64_t n = to - from;
        if (e->skip_form == SKIP_BLOCKS) {
            if (w->done <= from) {
                walk_next(e, w, e->steps - w->done);
                continue;
            }
            n = w->done - from < n ? w->done - from : n;
            hist_add_series(e->itl, w->ps, 0, n, weight);
        } else {
            int64_t gap[128], before = from ? e->ends[from - 1] : e->start_ps;
            n = n < 128 ? n : 128;
            for (uint32_t i = 0; i < n; i++) {
                gap[i] = e->ends[from + i] - before;
                before = e->ends[from + i];
            }
            hist_add_run(e->itl, gap, (uint32_t)n, weight);
        }
        from += n;
    }
}

/* The gaps between the tokens of the passes taken together, the first left to requests that are not on_time;
 * `live` of the running requests get the last pass's token, the others were aborted in it. */
static void skip_itl(struct engine *e, struct walk *w, uint32_t on_time, uint32_t live)
{
    bool uniform = on_time == live && live == e->n_running;
    uint64_t m = e->steps, first = uniform ? 0 : 1, last = uniform || m == 1 ? m : m - 1;
    add_gaps(e, w, 0, first, on_time);
    add_gaps(e, w, first, last, e->n_running);
    add_gaps(e, w, last, m, live);
}

/* until_aborts: the last pass is the one in flight when requests were aborted; else it was before that. */
static void end_skip(struct engine *e, bool until_aborts)
{
    uint64_t m = e->steps;
    int64_t first_ps = e->step_a_ps;
    uint32_t on_time = 0, live = 0;
    struct walk w;
    if (e->skip_form == SKIP_ENDS) {
        first_ps = e->ends[0] - e->start_ps;
    } else if (e->skip_form == SKIP_BLOCKS) {
        walk_start(e, &w);
        walk_next(e, &w, m);
        first_ps = w.ps;
    }
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        bool left = until_aborts && q->aborted;
        live += !left;
        if (!e->itl || (m == 1 && left))
            continue;
        if (q->last_token_ps == e->start_ps)
            on_time++;
        else
            hist_add(e->itl, e->start_ps + first_ps - q->last_token_ps, 1);
    }
    if (e->itl)
        skip_itl(e, &w, on_time, live);
    decode_blocks(e, m);
    for (uint32_t i = 0; i < e->n_running; i++) {
        uint32_t slot = e->running[i];
        struct seq *q = &e->seqs[slot];
        if (q->out == 1)
            q->rec.second_token_ps = e->start_ps + first_ps;
        q->computed += (uint32_t)m;
        q->out += (uint32_t)m;
        q->last_token_ps = e->end_ps;
    }
    e->stats.passes += m;
    e->stats.output_tok += (m - 1) * e->n_running + live;
    if (e->ops->skipped)
        e->ops->skipped(e, m);
    bool gone = false;
    for (uint32_t i = 0; i < e->n_running; i++) {
        uint32_t slot = e->running[i];
        struct seq *q = &e->seqs[slot];
        if (until_aborts && q->aborted) {
            free_blocks(e, slot);
            seq_free(e, slot);
            gone = true;
        } else if (q->out == q->spec.output_tok) {
            finish(e, slot, e->end_ps);
            gone = true;
        }
    }
    if (gone)
        compact_running(e);
}

static void end_item(struct engine *e, const struct batch_item *it)
{
    struct seq *q = &e->seqs[it->slot];
    uint32_t before = q->computed;
    q->computed += it->n;
    q->sched = 0;
    if (q->state != SEQ_RUNNING)
        return;
    if (before < q->spec.prompt_tok)
        e->stats.prompt_tok +=
            (q->computed < q->spec.prompt_tok ? q->computed : q->spec.prompt_tok) - before;
    if (q->aborted) {
        free_blocks(e, it->slot);
        seq_free(e, it->slot);
        return;
    }
    if (q->computed < seq_tokens(q))
        return;
    if (e->tiers && !it->decode)
        tiers_store(e, it->slot, e->end_ps);
    if (q->flags & ENGINE_PREFILL_ONLY) {
        q->rec.end_ps = e->end_ps;
        q->state = SEQ_HELD;
        e->n_held++;
        emit(e, ENGINE_EV_PREFILL_DONE, e->end_ps, it->slot);
        return;
    }
    uint32_t n = 1;
    if (it->decode && e->c.step.spec_gamma) {
        uint32_t left = q->spec.output_tok - q->out;
        n = step_spec_draw_tok(&e->c.step, rng_unit(&e->rng));
        n = n < left ? n : left;
        q->computed += n - 1;
    }
    token_out(e, q, it->slot, n, e->end_ps);
    if (q->out == q->spec.output_tok)
        finish(e, it->slot, q->last_token_ps);
}

static void end_pass(struct engine *e)
{
    e->stats.busy_ps += e->end_ps - e->start_ps;
    e->in_pass = false;
    e->ended_ps = e->end_ps;
    if (e->skipping) {
        end_skip(e, true);
        return;
    }
    e->stats.passes++;
    for (uint32_t i = 0; i < e->n_batch; i++)
        end_item(e, &e->batch[i]);
    compact_running(e);
}

void engine_end(struct engine *e)
{
    end_pass(e);
}

void engine_boundary(struct engine *e, int64_t now)
{
    if (e->tiers)
        tiers_run(e, now);
}

/* Of passes taken together, those happen that end by now. The others never will. */
static void settle(struct engine *e, int64_t now)
{
    int64_t end;
    if (!e->in_pass || !e->skipping)
        return;
    uint64_t n = passes_until(e, e->steps, now, &end);
    n -= end > now;
    if (!n)
        return;
    e->steps = passes_until(e, n, PS_NEVER, &e->end_ps); /* whoever was aborted was so later */
    e->stats.busy_ps += e->end_ps - e->start_ps;
    end_skip(e, false);
}

void engine_run(struct engine *e, int64_t until)
{
    for (;;) {
        if (!e->in_pass) {
            engine_boundary(e, e->end_ps);
            if (e->end_ps >= until)
                return;
            engine_start(e, e->end_ps, until);
        }
        if (!e->in_pass) { /* idle until then */
            int64_t next = engine_next_ps(e);
            e->end_ps = next < until ? next : until;
            if (next > until)
                return;
            continue;
        }
        if (e->end_ps > until)
            return;
        end_pass(e);
    }
}

/* ---- looking in */

const struct engine_event *engine_events(const struct engine *e, uint32_t *n)
{
    *n = e->n_events;
    return e->events;
}

void engine_clear_events(struct engine *e)
{
    e->n_events = 0;
}

void engine_set_peers(struct engine *e, uint64_t tok)
{
    e->peer_tok = tok;
}

void engine_set_slow(struct engine *e, int64_t now, double factor)
{
    change(e, now);
    e->slow_next = factor;
}

bool engine_empty(const struct engine *e)
{
    return !e->n_running && !e->waiting.n && !e->arriving.n && !e->n_held && !e->n_aside;
}

void engine_get_load(const struct engine *e, int64_t now, struct engine_load *out)
{
    *out = (struct engine_load){.running = e->n_running,
                                .waiting = e->waiting.n + e->arriving.n + e->n_aside,
                                .held = e->n_held,
                                .kv_total_blocks = e->kv.usable};
    uint64_t used = e->kv.usable - kv_free_blocks(&e->kv);
    int64_t end;
    if (e->in_pass && e->skipping) /* a pass takes its blocks when it begins */
        used += blocks_needed(e, passes_until(e, e->steps, now, &end));
    out->kv_used_blocks = (uint32_t)used;
}

void engine_get_stats(const struct engine *e, struct engine_stats *out)
{
    *out = e->stats;
    if (e->tiers)
        tiers_get_stats(e, out);
}

const struct engine_config *engine_config_of(const struct engine *e)
{
    return &e->c;
}

bool engine_out_of_time(const struct engine *e)
{
    return e->out_of_time;
}

uint32_t engine_free_blocks(const struct engine *e)
{
    return kv_free_blocks(&e->kv);
}

uint32_t engine_cached_tok(struct engine *e, int64_t now, const struct request_spec *s)
{
    int64_t end;
    if (e->in_pass && e->skipping) /* what the passes so far took may have been what s would find */
        decode_blocks(e, passes_until(e, e->steps, now, &end));
    return kv_lookup(&e->kv, s, s->prompt_tok / e->c.block_size).blocks * e->c.block_size;
}

void engine_log_cache(struct engine *e, bool on)
{
    e->kv.log_on = on;
}

void engine_drain_cache_log(struct engine *e,
                            void (*fn)(void *ctx, const struct engine_cache_change *), void *ctx)
{
    struct kv *kv = &e->kv;
    for (uint32_t i = 0; i < kv->log_used; i++) {
        const struct kv_log_entry *l = &kv->log[i];
        struct engine_cache_change c = {.stored = l->stored,
                                        .depth = l->depth,
                                        .n_blocks = l->n_blocks,
                                        .names = &kv->log_names[l->name_off]};
        fn(ctx, &c);
    }
    kv->log_used = kv->log_names_used = 0;
}

/* ---- step by step */

uint32_t engine_step_begin(struct engine *e, int64_t now, const struct engine_batch_item **batch)
{
    e->tracing = true;
    e->trace_n[0] = e->trace_n[1] = e->trace_n[2] = 0;
    e->start_ps = now;
    let_go(e, false);
    plan(e);
    e->in_pass = true;
    e->skipping = false;
    e->end_ps = now;
    MEM_GROW(e->trace_batch, e->trace_cap, e->n_batch + 1);
    for (uint32_t i = 0; i < e->n_batch; i++) {
        const struct seq *q = &e->seqs[e->batch[i].slot];
        e->trace_batch[i] = (struct engine_batch_item){q->handle, q->computed, e->batch[i].n};
    }
    *batch = e->trace_batch;
    return e->n_batch;
}

void engine_step_batch(const struct engine *e, struct step_batch *b)
{
    if (e->c.scheduler == SCHED_DYNOSIM)
        sched_dynosim_describe(e, b);
    else
        engine_describe_batch(e, b);
    b->peer_tok = e->peer_tok;
}

uint32_t engine_step_list(const struct engine *e, enum engine_step_list which,
                          const uint32_t **handles)
{
    *handles = e->trace_list[which];
    return e->trace_n[which];
}

void engine_step_end(struct engine *e, int64_t now)
{
    e->end_ps = now;
    end_pass(e);
}
