/* prop_engine.c - one engine under random loads, played in several ways that must not differ in a bit:
 *
 *   fast        decode passes taken together, started at every operation
 *   stepping    one pass at a time
 *   in slices   engine_run in random increments, nothing started by hand: the engine goes on by itself
 *   clone       a copy made at some moment, run through the rest before the original is
 *
 * Compared: every event with its record, every answer to engine_get_load and engine_cached_tok, the statistics,
 * the histogram of token gaps, the changes of the cache, and in the end every named block in its order of
 * eviction. On the way: blocks are conserved, time never runs back, each request ends once, first come first
 * served within a class.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/engine_internal.h"
#include "tests/support/kv_view.h"
#include "tests/support/prop.h"

#define N_REQUESTS 26
#define MAX_OPS (6 * N_REQUESTS)
#define MAX_EVENTS (3 * N_REQUESTS)
#define MAX_BLOCKS 4096
#define MAX_CHANGES 65536
#define MAX_KEYS 1024
#define CASES 200

/* ---- a load: what happens, and when */

enum op_kind {
    OP_SUBMIT,
    OP_ABORT,   /* if it is still there */
    OP_RELEASE, /* if its prefill is held */
    OP_ARRIVED, /* if its blocks are reserved */
    OP_LOAD,    /* engine_get_load and engine_cached_tok are compared */
    OP_SLOW,
    OP_KILL,
};

struct op {
    int64_t at_ps;
    enum op_kind kind;
    uint32_t request;
    double factor;
};

struct load {
    struct engine_config c;
    struct step_params step;
    bool log, first_tokens, probe; /* probe: the cache is compared at each moment */
    bool reserving;
    struct request_spec spec[N_REQUESTS];
    unsigned flags[N_REQUESTS];
    uint64_t keys[N_REQUESTS][MAX_KEYS];
    struct op ops[MAX_OPS];
    uint32_t n_ops;
};

static uint32_t pick(struct rng *r, uint32_t lo, uint32_t hi)
{
    return lo + (uint32_t)rng_below(r, hi - lo + 1);
}

static bool one_in(struct rng *r, uint32_t n)
{
    return rng_below(r, n) == 0;
}

static void random_table(struct rng *r, struct step_params *p)
{
    p->n_prefill = pick(r, 1, 4);
    p->n_kv = pick(r, 1, 4);
    p->n_ctx = pick(r, 1, 3);
    for (uint32_t i = 0; i < 4; i++) {
        p->prefill_x[i] = i * 100;
        p->prefill_y[i] = 5 + 10 * rng_unit(r);
        p->kv_x[i] = i * 700;
        p->ctx_x[i] = i * 90;
    }
    for (uint32_t i = 0; i < p->n_kv * p->n_ctx; i++)
        p->itl_y[i] = 2 + 5 * rng_unit(r);
}

/* Whole milliseconds now and then: then passes end at the very moments when something else happens. */
static void random_step(struct rng *r, struct step_params *p)
{
    bool whole = one_in(r, 2);
    p->form = (enum step_form)pick(r, 0, 3);
    p->w_ms = whole ? 8 : 4 + 10 * rng_unit(r);
    p->d0_ms_per_req = whole ? 0 : 0.1 * rng_unit(r);
    p->k_ms_per_tok = whole || one_in(r, 4) ? 0 : 1e-3 * rng_unit(r);
    p->p_ms_per_tok = whole ? 0 : 0.05 * rng_unit(r);
    p->q_ms_per_tok2 = whole ? 0 : 1e-5 * rng_unit(r);
    p->prefill_floor_ms = one_in(r, 3) ? 2 : 0;
    if (one_in(r, 4)) {
        p->moe_experts = 64;
        p->moe_active = 4;
        p->moe_w_share = 0.5;
    }
    p->fixed_prefill_ms = 12;
    p->fixed_decode_ms = 8;
    p->pa = 4.2e-7;
    p->pb = 1.5e-2;
    p->pc = 3;
    p->da = -25.7;
    p->db = 54;
    p->dc = 5.7;
    random_table(r, p);
    if (one_in(r, 6)) {
        p->spec_gamma = pick(r, 1, 4);
        for (uint32_t i = 0; i < p->spec_gamma; i++)
            p->spec_accept[i] = rng_unit(r);
        p->spec_draft_ms = 0.2;
    }
}

static void random_config(struct rng *r, struct engine_config *c)
{
    static const uint32_t sizes[] = {1, 2, 4, 7, 8, 16, 32};
    engine_config_default(c, (enum sched_kind)pick(r, 0, 3));
    c->block_size = sizes[pick(r, 0, 6)];
    uint32_t tok = one_in(r, 6) ? 4000 : pick(r, 150, one_in(r, 3) ? 1500 : 500); /* of the pool */
    c->num_gpu_blocks = tok / c->block_size + 2;
    c->max_num_seqs = one_in(r, 3) ? pick(r, 1, 4) : pick(r, 4, 40);
    c->max_num_batched_tokens = one_in(r, 3) ? pick(r, 8, 64) : pick(r, 64, 2000);
    c->max_model_len = one_in(r, 5) ? pick(r, 50, 600) : 0;
    c->enable_prefix_caching = !one_in(r, 6);
    c->enable_chunked_prefill = !one_in(r, 5);
    c->eviction = one_in(r, 3) ? EVICT_LFU : EVICT_LRU;
    c->max_prefill_tokens = pick(r, 30, 1000);
    c->chunked_prefill_size = pick(r, 10, 500);
    c->clip_max_new_tokens = one_in(r, 3) ? pick(r, 1, 50) : 4096;
    c->schedule_conservativeness = 0.2 + 1.5 * rng_unit(r);
    if (c->scheduler == SCHED_VLLM) {
        c->policy = one_in(r, 3) ? SCHED_PRIORITY : SCHED_FCFS;
        c->long_prefill_token_threshold = one_in(r, 3) ? pick(r, 4, 100) : 0;
        c->async_scheduling = one_in(r, 3);
    } else if (c->scheduler == SCHED_SGLANG) {
        c->policy = one_in(r, 2) ? SCHED_LPM : SCHED_FCFS;
    } else if (c->scheduler == SCHED_DYNOSIM) {
        c->dynosim_version = one_in(r, 2) ? DYNOSIM_1_4_2 : DYNOSIM_1_6_1;
        c->role = (enum worker_role)pick(r, 0, 2);
        if (c->dynosim_version == DYNOSIM_1_6_1 && c->role == ROLE_BOTH && one_in(r, 2))
            c->dynosim_engine = DYNOSIM_SGLANG;
    }
    if (c->scheduler != SCHED_DYNOSIM && c->enable_prefix_caching && one_in(r, 4)) {
        c->num_host_blocks = pick(r, 5, 3 * c->num_gpu_blocks);
        c->kv_bytes_per_token = pick(r, 1000, 1000000);
        c->h2d_bandwidth_gb_s = one_in(r, 4) ? 0 : 0.5 + 20 * rng_unit(r);
        c->d2h_bandwidth_gb_s = one_in(r, 4) ? 0 : 0.5 + 20 * rng_unit(r);
    }
}

/* Prompts that share their beginnings; some repeat an earlier prompt with its answer (a session), and then the
 * keys of the earlier one reach into that answer. */
static void random_request(struct rng *r, struct load *l, uint32_t i, uint32_t key_tok)
{
    struct request_spec *s = &l->spec[i];
    uint64_t *keys = l->keys[i];
    uint32_t longest = one_in(r, 4) ? 600 : 150, shared = 0;
    s->uid = i + 1;
    s->output_tok = one_in(r, 8) ? 1 : pick(r, 1, one_in(r, 3) ? 250 : 60);
    s->max_tokens = s->output_tok + (one_in(r, 2) ? pick(r, 0, 100) : 0);
    s->priority = (int32_t)pick(r, 0, 2) - 1;
    s->prompt_tok = pick(r, 1, longest);
    s->key_tok = key_tok;
    uint32_t from = i ? pick(r, 0, i - 1) : 0;
    struct request_spec *t = &l->spec[from];
    uint32_t t_whole = t->prompt_tok / (key_tok ? key_tok : 1);
    bool next_turn = i && one_in(r, 5) && t->n_keys == (t->prompt_tok + key_tok - 1) / key_tok;
    if (next_turn)
        s->prompt_tok = t->prompt_tok + t->output_tok + pick(r, 1, 60);
    s->n_keys = (s->prompt_tok + key_tok - 1) / key_tok;
    if (i && !one_in(r, 3))
        shared = next_turn ? t_whole : pick(r, 0, t_whole);
    for (uint32_t k = 0; k < s->n_keys; k++)
        keys[k] = k < shared && k < s->n_keys
                      ? l->keys[from][k]
                      : request_chain_key(k ? keys[k - 1] : 0, 1000 * (i + 1) + k);
    if (next_turn && shared) {
        memcpy(l->keys[from], keys, s->n_keys * sizeof *keys);
        t->n_keys = (t->prompt_tok + t->output_tok) / key_tok;
    }
    if (i && one_in(r, 6)) { /* the same question again; perhaps the same answer */
        uint64_t uid = s->uid;
        *s = *t;
        s->uid = uid;
        memcpy(keys, l->keys[from], MAX_KEYS * sizeof *keys);
    }
    s->keys = keys;
    bool decodes = l->c.scheduler == SCHED_DYNOSIM && l->c.role == ROLE_DECODE;
    if (one_in(r, 8))
        l->flags[i] = ENGINE_PREFILL_ONLY;
    else if (one_in(r, 10))
        l->flags[i] = ENGINE_REMOTE_KV | (decodes ? ENGINE_RESERVE : 0);
    else if (l->reserving && one_in(r, 8))
        l->flags[i] = ENGINE_REMOTE_KV | ENGINE_RESERVE;
}

static void add_op(struct load *l, int64_t at, enum op_kind kind, uint32_t i, double factor)
{
    assert_true(l->n_ops < MAX_OPS);
    l->ops[l->n_ops++] = (struct op){at, kind, i, factor};
}

static int by_time(const void *a, const void *b)
{
    const struct op *x = a, *y = b;
    if (x->at_ps != y->at_ps)
        return x->at_ps < y->at_ps ? -1 : 1;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    return (x->request > y->request) - (x->request < y->request);
}

static int64_t moment(struct rng *r, int64_t span)
{
    int64_t t = (int64_t)rng_below(r, (uint64_t)span);
    return one_in(r, 2) ? t / (2 * PS_PER_MS) * (2 * PS_PER_MS) : t;
}

static void random_ops(struct rng *r, struct load *l)
{
    int64_t span = (one_in(r, 3) ? 200 : 1500) * PS_PER_MS;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        int64_t at = moment(r, span);
        l->spec[i].arrival_ps = at;
        add_op(l, at, OP_SUBMIT, i, 0);
        if (one_in(r, 4))
            add_op(l, at + moment(r, span), OP_ABORT, i, 0);
        if (l->flags[i] & ENGINE_PREFILL_ONLY)
            add_op(l, at + moment(r, 2 * span), OP_RELEASE, i, 0);
        if (l->flags[i] & ENGINE_RESERVE)
            add_op(l, at + moment(r, 2 * span), OP_ARRIVED, i, 0);
        if (one_in(r, 2))
            add_op(l, moment(r, 2 * span), OP_LOAD, pick(r, 0, N_REQUESTS - 1), 0);
    }
    while (one_in(r, 3))
        add_op(l, moment(r, span), OP_SLOW, 0, one_in(r, 2) ? 1 : 0.5 + 2 * rng_unit(r));
    while (one_in(r, 8))
        add_op(l, moment(r, span), OP_KILL, 0, 0);
    qsort(l->ops, l->n_ops, sizeof *l->ops, by_time);
}

static void random_load(struct rng *r, struct load *l)
{
    static const uint32_t sizes[] = {1, 2, 3, 4, 8, 16, 32, 50};
    const char *why = NULL;
    memset(l, 0, sizeof *l);
    random_config(r, &l->c);
    random_step(r, &l->step);
    assert_int_equal(step_model_init(&l->c.step, &l->step, &why), 0);
    l->log = one_in(r, 2);
    l->first_tokens = one_in(r, 2);
    l->probe = one_in(r, 2);
    l->reserving = one_in(r, 3);
    uint32_t key_tok = one_in(r, 2) ? l->c.block_size : sizes[pick(r, 0, 7)];
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        random_request(r, l, i, key_tok);
    random_ops(r, l);
}

/* ---- one way to play it */

enum fate {
    FATE_NEW,
    FATE_REFUSED,
    FATE_IN,
    FATE_RESERVED,
    FATE_HELD,
    FATE_DONE,
    FATE_ABORTED,
    FATE_KILLED,
};

struct change {
    bool stored;
    uint32_t depth;
    uint64_t name;
};

struct side {
    struct engine *e;
    struct hist *itl;
    struct rng slices; /* in slices: where to cut */
    bool in_slices;
    int64_t now_ps;
    uint32_t slot[N_REQUESTS];
    enum fate fate[N_REQUESTS];
    uint32_t n_events, n_loads, n_lost, n_changes, n_probes;
    struct engine_event events[MAX_EVENTS];
    struct engine_load loads[MAX_OPS];
    uint32_t cached[MAX_OPS], lost[N_REQUESTS];
    uint64_t probes[2 * MAX_OPS];
    struct change changes[MAX_CHANGES];
};

static void check_conserved(const struct engine *e)
{
    static struct kv_view_block view[MAX_BLOCKS];
    const char *why = kv_validate(&e->kv);
    if (why)
        fail_msg("kv_validate: %s", why);
    uint64_t unnamed = 0, held = 0, refs = 0, holds = 0;
    for (uint32_t i = 0; i < e->seqs_used; i++) {
        const struct seq *q = &e->seqs[i];
        if (q->state == SEQ_FREE)
            continue;
        unnamed += q->hold.n_blocks - q->hold.n_named;
        holds += q->hold.n_named;
    }
    uint32_t n = kv_view_named(&e->kv, view, MAX_BLOCKS);
    for (uint32_t i = 0; i < n; i++) {
        held += view[i].ref > 0;
        refs += view[i].ref;
    }
    if (e->tiers) { /* copies on their way down hold some as well */
        assert_true(kv_free_blocks(&e->kv) + unnamed + held <= e->kv.usable && refs >= holds);
        assert_null(tiers_validate(e));
        return;
    }
    assert_int_equal(kv_free_blocks(&e->kv) + unnamed + held, e->kv.usable);
    assert_int_equal(refs, holds);
}

static void check_record(const struct load *l, const struct engine_event *ev)
{
    const struct request_spec *s = &l->spec[ev->handle];
    const struct engine_record *r = &ev->record;
    uint32_t output = s->output_tok;
    if (l->c.max_model_len && l->c.max_model_len - s->prompt_tok < output)
        output = l->c.max_model_len - s->prompt_tok;
    if (ev->kind == ENGINE_EV_RESERVED)
        return;
    assert_true(r->first_admit_ps >= s->arrival_ps);
    assert_true(r->reused_tok <= s->prompt_tok && r->reused_all_tok >= r->reused_tok);
    if (ev->kind == ENGINE_EV_FIRST_TOKEN) {
        assert_int_equal(r->first_token_ps, ev->at_ps);
        return;
    }
    assert_int_equal(r->end_ps, ev->at_ps);
    /* the peer simulator's decode workers compute prompts again in no time */
    int64_t least = l->c.scheduler == SCHED_DYNOSIM ? 0 : 1;
    assert_true(r->end_ps >= r->first_admit_ps + least);
    if (ev->kind == ENGINE_EV_PREFILL_DONE)
        return;
    assert_int_equal(r->output_tok, output);
    assert_true(r->first_token_ps >= r->first_admit_ps + least && r->first_token_ps <= r->end_ps);
    assert_true(output < 2
                    ? r->second_token_ps == -1
                    : r->second_token_ps >= r->first_token_ps && r->second_token_ps <= r->end_ps);
}

static void collect(struct side *s, const struct load *l, int64_t now)
{
    uint32_t n;
    const struct engine_event *ev = engine_events(s->e, &n);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(s->n_events < MAX_EVENTS);
        assert_true(ev[i].at_ps <= now);
        if (s->n_events)
            assert_true(ev[i].at_ps >= s->events[s->n_events - 1].at_ps);
        s->events[s->n_events++] = ev[i];
        check_record(l, &ev[i]);
        assert_int_equal(s->fate[ev[i].handle], FATE_IN);
        assert_int_equal(ev[i].slot, s->slot[ev[i].handle]);
        if (ev[i].kind == ENGINE_EV_DONE)
            s->fate[ev[i].handle] = FATE_DONE;
        if (ev[i].kind == ENGINE_EV_PREFILL_DONE)
            s->fate[ev[i].handle] = FATE_HELD;
        if (ev[i].kind == ENGINE_EV_RESERVED)
            s->fate[ev[i].handle] = FATE_RESERVED;
    }
    engine_clear_events(s->e);
}

static void on_change(void *ctx, const struct engine_cache_change *c)
{
    struct side *s = ctx;
    for (uint32_t i = 0; i < c->n_blocks; i++) {
        assert_true(s->n_changes < MAX_CHANGES);
        s->changes[s->n_changes++] = (struct change){c->stored, c->depth + i, c->names[i]};
    }
}

static bool is_in(const struct side *s, uint32_t i)
{
    return s->fate[i] == FATE_IN || s->fate[i] == FATE_HELD || s->fate[i] == FATE_RESERVED;
}

static void on_lost(void *ctx, uint32_t handle)
{
    struct side *s = ctx;
    assert_true(is_in(s, handle));
    s->fate[handle] = FATE_KILLED;
    s->lost[s->n_lost++] = handle;
}

static void apply(struct side *s, const struct load *l, const struct op *op)
{
    uint32_t i = op->request;
    int rc;
    switch (op->kind) {
    case OP_SUBMIT:
        rc = engine_submit(s->e, op->at_ps, &l->spec[i], i, l->flags[i], &s->slot[i]);
        assert_true(rc == 0 || rc == WEIR_E_TOO_LARGE);
        s->fate[i] = rc ? FATE_REFUSED : FATE_IN;
        break;
    case OP_ABORT:
        if (!is_in(s, i))
            break;
        engine_abort(s->e, op->at_ps, s->slot[i]);
        s->fate[i] = FATE_ABORTED;
        break;
    case OP_RELEASE:
        if (s->fate[i] != FATE_HELD)
            break;
        engine_release(s->e, op->at_ps, s->slot[i]);
        s->fate[i] = FATE_DONE;
        break;
    case OP_ARRIVED:
        if (s->fate[i] != FATE_RESERVED)
            break;
        engine_arrived(s->e, op->at_ps, s->slot[i]);
        s->fate[i] = FATE_IN;
        break;
    case OP_LOAD:
        engine_get_load(s->e, op->at_ps, &s->loads[s->n_loads]);
        s->cached[s->n_loads++] = engine_cached_tok(s->e, op->at_ps, &l->spec[i]);
        break;
    case OP_SLOW: engine_set_slow(s->e, op->at_ps, op->factor); break;
    case OP_KILL:
        engine_kill(s->e, op->at_ps, on_lost, s);
        s->n_changes = 0; /* nothing is cached any more, and nobody is told of what nearly was */
        break;
    }
}

/* All that can be known of the cache, in one number. */
static void probe(struct side *s, const struct load *l, int64_t now)
{
    static struct kv_view_block view[MAX_BLOCKS];
    const struct kv *kv = &s->e->kv;
    (void)engine_cached_tok(s->e, now, &l->spec[0]); /* brings it up to date */
    uint64_t sum = rng_mix64(kv->free_unnamed);
    for (uint32_t o = 0; o < 32; o++) {
        uint32_t n = kv_view_order(kv, o, view, MAX_BLOCKS);
        for (uint32_t i = 0; i < n; i++)
            sum = rng_mix64(sum ^ view[i].name ^ view[i].depth);
    }
    uint32_t n = kv_view_named(kv, view, MAX_BLOCKS);
    for (uint32_t i = 0; i < n; i++)
        sum = rng_mix64(sum ^ view[i].name ^ view[i].depth ^ (uint64_t)view[i].ref << 32);
    s->probes[s->n_probes++] = sum;
}

/* Up to `now`: at once, or in slices. */
static void run_to(struct side *s, const struct load *l, int64_t now)
{
    while (s->in_slices && now > s->now_ps + 1 && !one_in(&s->slices, 4)) {
        s->now_ps += 1 + (int64_t)rng_below(&s->slices, (uint64_t)(now - s->now_ps - 1));
        engine_run(s->e, s->now_ps);
        if (one_in(&s->slices, 2))
            collect(s, l, s->now_ps);
    }
    s->now_ps = now;
    engine_run(s->e, now);
    collect(s, l, now);
    if (l->probe && s->n_probes < 2 * MAX_OPS)
        probe(s, l, now);
    engine_drain_cache_log(s->e, on_change, s);
    check_conserved(s->e);
}

/* All operations of the next moment. Returns the index of the first one after it. */
static uint32_t play_moment(struct side *s, const struct load *l, uint32_t k)
{
    int64_t now = l->ops[k].at_ps;
    run_to(s, l, now);
    for (; k < l->n_ops && l->ops[k].at_ps == now; k++)
        apply(s, l, &l->ops[k]);
    check_conserved(s->e);
    if (!s->in_slices)
        engine_start(s->e, now, PS_NEVER);
    return k;
}

/* Nothing more comes; held prefills are let go one after the other. */
static void play_out(struct side *s, const struct load *l)
{
    for (uint32_t round = 0; round <= N_REQUESTS; round++) {
        run_to(s, l, s->now_ps + 1000 * PS_PER_S);
        uint32_t i = 0;
        while (i < N_REQUESTS && s->fate[i] != FATE_HELD && s->fate[i] != FATE_RESERVED)
            i++;
        if (i < N_REQUESTS)
            apply(s, l,
                  &(struct op){s->now_ps, s->fate[i] == FATE_HELD ? OP_RELEASE : OP_ARRIVED, i, 0});
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        if (is_in(s, i) || s->fate[i] == FATE_NEW)
            fail_msg("request %u did not end", i);
    }
    assert_int_equal(engine_next_ps(s->e), PS_NEVER);
    assert_true(engine_empty(s->e));
    assert_int_equal(kv_free_blocks(&s->e->kv), s->e->kv.usable);
}

static struct side *side_new(const struct load *l)
{
    struct side *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->e = engine_new(&l->c, 7);
    s->itl = hist_new();
    assert_non_null(s->e);
    assert_non_null(s->itl);
    engine_set_itl(s->e, s->itl);
    engine_want_first_tokens(s->e, l->first_tokens);
    engine_log_cache(s->e, l->log);
    return s;
}

static void side_free(struct side *s)
{
    engine_free(s->e);
    hist_free(s->itl);
    free(s);
}

static struct side *play(const struct load *l, bool stepping, uint64_t slices)
{
    struct side *s = side_new(l);
    engine_set_stepping(s->e, stepping);
    s->in_slices = slices != 0;
    rng_init(&s->slices, slices);
    for (uint32_t k = 0; k < l->n_ops;)
        k = play_moment(s, l, k);
    play_out(s, l);
    return s;
}

/* s goes on as `from` would: a clone in a used engine, with the logs of `from` so far. */
static void clone_side(struct side *s, struct side *from, const struct load *l)
{
    collect(from, l, from->now_ps); /* events and logs are not copied */
    engine_drain_cache_log(from->e, on_change, from);
    struct engine *e = s->e;
    struct hist *itl = s->itl;
    *s = *from;
    s->e = e;
    s->itl = itl;
    assert_int_equal(engine_copy(s->e, from->e), 0);
    hist_clear(itl);
    hist_merge(itl, from->itl);
    engine_set_itl(s->e, itl);
    engine_log_cache(s->e, l->log);
}

/* Plays l; at the first operation at or after `at` a copy is made in *other, which is played to the end first. */
static struct side *play_cloned(const struct load *l, uint32_t at, struct side *other)
{
    struct side *s = side_new(l);
    bool cloned = false;
    for (uint32_t k = 0; k < l->n_ops;) {
        k = play_moment(s, l, k);
        if (k <= at || cloned)
            continue;
        clone_side(other, s, l);
        for (uint32_t j = k; j < l->n_ops;)
            j = play_moment(other, l, j);
        play_out(other, l);
        cloned = true;
    }
    play_out(s, l);
    return s;
}

/* ---- comparing */

static void compare_hist(const struct hist *a, const struct hist *b)
{
    assert_int_equal(hist_count(a), hist_count(b));
    assert_int_equal(hist_min_ps(a), hist_min_ps(b));
    assert_int_equal(hist_max_ps(a), hist_max_ps(b));
    double x[2] = {hist_mean_ps(a), hist_std_ps(a)}, y[2] = {hist_mean_ps(b), hist_std_ps(b)};
    assert_memory_equal(x, y, sizeof x);
    for (int i = 0; i <= 100; i++)
        assert_int_equal(hist_quantile_ps(a, i / 100.0), hist_quantile_ps(b, i / 100.0));
}

static void compare_kv(const struct kv *a, const struct kv *b)
{
    static struct kv_view_block x[MAX_BLOCKS], y[MAX_BLOCKS];
    assert_int_equal(a->free_unnamed, b->free_unnamed);
    for (uint32_t o = 0; o < 32; o++) {
        uint32_t n = kv_view_order(a, o, x, MAX_BLOCKS);
        assert_int_equal(kv_view_order(b, o, y, MAX_BLOCKS), n);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(x[i].name, y[i].name);
            assert_int_equal(x[i].depth, y[i].depth);
        }
    }
}

static void compare_events(const struct side *a, const struct side *b)
{
    assert_int_equal(a->n_events, b->n_events);
    for (uint32_t i = 0; i < a->n_events; i++) {
        const struct engine_event *p = &a->events[i], *q = &b->events[i];
        assert_int_equal(p->kind, q->kind);
        assert_int_equal(p->at_ps, q->at_ps);
        assert_int_equal(p->handle, q->handle);
        assert_int_equal(p->slot, q->slot);
        assert_memory_equal(&p->record, &q->record, sizeof p->record);
    }
}

static void compare(const struct side *a, const struct side *b)
{
    compare_events(a, b);
    assert_memory_equal(a->fate, b->fate, sizeof a->fate);
    assert_int_equal(a->n_lost, b->n_lost);
    assert_memory_equal(a->lost, b->lost, sizeof a->lost);
    assert_int_equal(a->n_loads, b->n_loads);
    for (uint32_t i = 0; i < a->n_loads; i++) {
        assert_int_equal(a->loads[i].running, b->loads[i].running);
        assert_int_equal(a->loads[i].waiting, b->loads[i].waiting);
        assert_int_equal(a->loads[i].held, b->loads[i].held);
        assert_int_equal(a->loads[i].kv_used_blocks, b->loads[i].kv_used_blocks);
        assert_int_equal(a->cached[i], b->cached[i]);
    }
    assert_int_equal(a->n_probes, b->n_probes);
    for (uint32_t i = 0; i < a->n_probes; i++)
        assert_int_equal(a->probes[i], b->probes[i]);
    struct engine_stats x, y;
    engine_get_stats(a->e, &x);
    engine_get_stats(b->e, &y);
    assert_memory_equal(&x, &y, sizeof x);
    compare_hist(a->itl, b->itl);
    compare_kv(&a->e->kv, &b->e->kv);
    assert_int_equal(a->n_changes, b->n_changes);
    for (uint32_t i = 0; i < a->n_changes; i++) {
        assert_int_equal(a->changes[i].stored, b->changes[i].stored);
        assert_int_equal(a->changes[i].depth, b->changes[i].depth);
        assert_int_equal(a->changes[i].name, b->changes[i].name);
    }
}

/* The changes of the cache, applied to an empty set, make the cache. */
static void check_changes(const struct load *l, const struct side *s)
{
    static struct kv_view_block view[MAX_BLOCKS], set[MAX_BLOCKS];
    uint32_t n = 0, distinct = 0;
    if (!l->log)
        return;
    for (uint32_t i = 0; i < s->n_changes; i++) {
        const struct change *c = &s->changes[i];
        uint32_t k = 0;
        while (k < n && (set[k].name != c->name || set[k].depth != c->depth))
            k++;
        assert_true((k == n) == c->stored); /* nothing is stored twice or removed twice */
        if (c->stored)
            set[n++] = (struct kv_view_block){c->name, c->depth, 0, 0};
        else
            set[k] = set[--n];
        assert_true(n < MAX_BLOCKS);
    }
    qsort(set, n, sizeof *set, kv_view_compare);
    uint32_t m = kv_view_named(&s->e->kv, view, MAX_BLOCKS);
    for (uint32_t i = 0; i < m; i++) {
        if (i && view[i].name == view[i - 1].name && view[i].depth == view[i - 1].depth)
            continue; /* a copy */
        assert_true(distinct < n);
        assert_int_equal(view[i].name, set[distinct].name);
        assert_int_equal(view[i].depth, set[distinct++].depth);
    }
    assert_int_equal(distinct, n);
}

/* First come, first served: at first admission, among requests of one priority. */
static void check_fifo(const struct load *l, const struct side *s)
{
    int64_t last[3] = {-1, -1, -1}, admit[N_REQUESTS];
    bool dynosim_decode = l->c.scheduler == SCHED_DYNOSIM && l->c.role == ROLE_DECODE;
    if (l->c.policy == SCHED_LPM || l->c.num_host_blocks || l->reserving || dynosim_decode)
        return; /* some may pass others */
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        admit[i] = -1;
    for (uint32_t i = 0; i < s->n_events; i++)
        admit[s->events[i].handle] = s->events[i].record.first_admit_ps;
    for (uint32_t k = 0; k < l->n_ops; k++) {
        uint32_t i = l->ops[k].request, class = 0;
        if (l->ops[k].kind != OP_SUBMIT || admit[i] < 0)
            continue;
        if (l->c.policy == SCHED_PRIORITY)
            class = (uint32_t)(l->spec[i].priority + 1);
        assert_true(admit[i] >= last[class]);
        last[class] = admit[i];
    }
}

/* ---- the property */

static struct {
    uint64_t preemptions, reused_tok, passes, done, refused, aborted, killed, held;
} totals;

static void count(const struct side *s)
{
    struct engine_stats st;
    engine_get_stats(s->e, &st);
    totals.preemptions += st.preemptions;
    totals.reused_tok += st.reused_tok;
    totals.passes += st.passes;
    totals.done += st.done;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        totals.refused += s->fate[i] == FATE_REFUSED;
        totals.aborted += s->fate[i] == FATE_ABORTED;
        totals.killed += s->fate[i] == FATE_KILLED;
    }
}

static void random_case(uint64_t seed)
{
    static struct load l;
    struct rng r;
    rng_init(&r, seed);
    random_load(&r, &l);
    uint32_t at = pick(&r, 0, l.n_ops - 1);
    struct side *stepping = play(&l, true, 0), *fast = play(&l, false, 0);
    check_fifo(&l, stepping);
    check_changes(&l, stepping);
    check_changes(&l, fast);
    compare(stepping, fast);
    struct side *sliced = play(&l, one_in(&r, 2), seed);
    compare(stepping, sliced);
    /* the clone goes into the engine of the run before: a copy must replace all of its state */
    struct side *original = play_cloned(&l, at, sliced);
    compare(stepping, original);
    compare(stepping, sliced);
    count(stepping);
    side_free(stepping);
    side_free(fast);
    side_free(sliced);
    side_free(original);
}

static void all_ways_are_the_same(void **state)
{
    (void)state;
    prop_run("prop_engine", CASES, random_case);
    printf("passes %llu, preemptions %llu, reused tokens %llu; requests done %llu, refused %llu, "
           "aborted %llu, killed %llu\n",
           (unsigned long long)totals.passes, (unsigned long long)totals.preemptions,
           (unsigned long long)totals.reused_tok, (unsigned long long)totals.done,
           (unsigned long long)totals.refused, (unsigned long long)totals.aborted,
           (unsigned long long)totals.killed);
    if (prop_single())
        return;
    assert_true(totals.preemptions > 80);
    assert_true(totals.reused_tok > 20000);
    assert_true(totals.done > 2000 && totals.aborted > 300 && totals.killed > 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(all_ways_are_the_same, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
