/* prop_clone.c - the what-if: a clone of a worker in use, with a newcomer, is what the worker would become with that
 * newcomer, and the worker never notices.
 *
 * A busy worker runs to a random moment. From there, newcomers are tried one after the other in clones, always in the
 * same engine, which is full of the one before; now and then a clone is cloned in the middle of its way. Each
 * must end as in an engine that lived the whole life with this newcomer; and the worker, played to its end,
 * as in one that lived it without any.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "predictor/engine_internal.h"
#include "tests/support/prop.h"

#define N_REQUESTS 20u
#define N_NEWCOMERS 5u
#define MAX_KEYS 64u
#define KEY_TOK 16u
#define CASES 500u

struct world {
    struct engine_config c;
    struct request_spec spec[N_REQUESTS + N_NEWCOMERS];
    uint64_t keys[N_REQUESTS + N_NEWCOMERS][MAX_KEYS];
    int64_t moment_ps; /* of the what-if */
};

struct outcome {
    uint32_t n;
    struct engine_event ev[2 * N_REQUESTS];
    struct engine_stats stats;
};

static uint32_t pick(struct rng *r, uint32_t lo, uint32_t hi)
{
    return lo + (uint32_t)rng_below(r, hi - lo + 1);
}

static void random_config(struct rng *r, struct engine_config *c)
{
    static const struct step_params steps[] = {
        {.form = STEP_LINEAR, .w_ms = 6, .d0_ms_per_req = 0.03, .k_ms_per_tok = 2e-4},
        {.form = STEP_FIXED, .fixed_prefill_ms = 12, .fixed_decode_ms = 4},
        {.form = STEP_POLYNOMIAL, .pb = 0.015, .pc = 3, .da = -25.7, .db = 54, .dc = 5.7},
        {.form = STEP_LINEAR, .w_ms = 9, .spec_gamma = 2, .spec_accept = {0.7, 0.4}},
    };
    const char *why;
    engine_config_default(c, (enum sched_kind)pick(r, 0, 3));
    assert_int_equal(step_model_init(&c->step, &steps[pick(r, 0, 3)], &why), 0);
    c->block_size = 1u << pick(r, 0, 5);
    c->num_gpu_blocks = pick(r, 400, 3000) / c->block_size + 2;
    c->max_num_seqs = pick(r, 1, 16);
    c->max_num_batched_tokens = pick(r, 32, 1024);
    c->chunked_prefill_size = pick(r, 32, 512);
    c->eviction = pick(r, 0, 2) ? EVICT_LRU : EVICT_LFU;
    if (c->scheduler == SCHED_VLLM) {
        c->policy = pick(r, 0, 2) ? SCHED_FCFS : SCHED_PRIORITY;
        c->async_scheduling = pick(r, 0, 2) == 0;
    }
    if (c->scheduler != SCHED_DYNOSIM && pick(r, 0, 2) == 0) {
        c->num_host_blocks = pick(r, 10, 500);
        c->kv_bytes_per_token = 100000;
        c->h2d_bandwidth_gb_s = c->d2h_bandwidth_gb_s = 0.5;
    }
}

static void random_world(struct rng *r, struct world *w)
{
    int64_t at = 0, span = pick(r, 100, 3000) * PS_PER_MS;
    memset(w, 0, sizeof *w);
    random_config(r, &w->c);
    for (uint32_t i = 0; i < N_REQUESTS + N_NEWCOMERS; i++) {
        struct request_spec *s = &w->spec[i];
        uint64_t family = pick(r, 1, 3);
        uint32_t same = pick(r, 0, 10);
        at += (int64_t)rng_below(r, (uint64_t)span / N_REQUESTS * 2);
        *s = (struct request_spec){.uid = i + 1,
                                   .prompt_tok = pick(r, 1, 300),
                                   .output_tok = pick(r, 1, pick(r, 0, 3) ? 30 : 200),
                                   .priority = (int32_t)pick(r, 0, 2),
                                   .arrival_ps = at,
                                   .keys = w->keys[i],
                                   .key_tok = KEY_TOK};
        s->max_tokens = s->output_tok;
        s->n_keys = (s->prompt_tok + KEY_TOK - 1) / KEY_TOK;
        for (uint32_t k = 0; k < s->n_keys; k++)
            w->keys[i][k] =
                request_chain_key(k ? w->keys[i][k - 1] : 0, (k < same ? family : i + 9) * 99 + k);
    }
    w->moment_ps = (int64_t)rng_below(r, (uint64_t)w->spec[N_REQUESTS - 1].arrival_ps + 1);
    for (uint32_t i = N_REQUESTS; i < N_REQUESTS + N_NEWCOMERS; i++)
        w->spec[i].arrival_ps = w->moment_ps;
}

static void take_events(struct engine *e, struct outcome *o)
{
    uint32_t n;
    const struct engine_event *ev = engine_events(e, &n);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(o->n < 2 * N_REQUESTS);
        o->ev[o->n++] = ev[i];
    }
    engine_clear_events(e);
}

static void enter(const struct world *w, struct engine *e, uint32_t i)
{
    uint32_t slot;
    int64_t at = w->spec[i].arrival_ps;
    engine_run(e, at);
    int rc = engine_submit(e, at, &w->spec[i], i, 0, &slot);
    assert_true(rc == 0 || rc == WEIR_E_TOO_LARGE);
}

/* Those of the worker's own requests that come before the moment, or from it on. */
static void life(const struct world *w, struct engine *e, bool before, struct outcome *o)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        if ((w->spec[i].arrival_ps < w->moment_ps) != before)
            continue;
        enter(w, e, i);
        take_events(e, o);
    }
    engine_run(e, before ? w->moment_ps : w->moment_ps + 10000 * PS_PER_S);
    take_events(e, o);
    assert_null(kv_validate(&e->kv));
    assert_null(tiers_validate(e));
    if (!before)
        assert_true(engine_empty(e));
    engine_get_stats(e, &o->stats);
}

static void assert_same(const struct outcome *a, const struct outcome *b)
{
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        assert_int_equal(a->ev[i].kind, b->ev[i].kind);
        assert_int_equal(a->ev[i].at_ps, b->ev[i].at_ps);
        assert_int_equal(a->ev[i].handle, b->ev[i].handle);
        assert_memory_equal(&a->ev[i].record, &b->ev[i].record, sizeof a->ev[i].record);
    }
    assert_memory_equal(&a->stats, &b->stats, sizeof a->stats);
}

static struct engine *engine_of(const struct world *w)
{
    struct engine *e = engine_new(&w->c, 3);
    assert_non_null(e);
    engine_want_first_tokens(e, false);
    return e;
}

/* A life with newcomer i from the start; i == N_REQUESTS + N_NEWCOMERS: without any. */
static void live(const struct world *w, uint32_t i, struct outcome *o)
{
    struct engine *e = engine_of(w);
    *o = (struct outcome){0};
    life(w, e, true, o);
    if (i < N_REQUESTS + N_NEWCOMERS)
        enter(w, e, i);
    life(w, e, false, o);
    engine_free(e);
}

/* Of the worker's own requests, from the moment on. */
static int64_t next_arrival(const struct world *w)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        if (w->spec[i].arrival_ps >= w->moment_ps)
            return w->spec[i].arrival_ps;
    }
    return w->moment_ps;
}

static void random_case(uint64_t seed)
{
    static struct world w;
    static struct outcome past, without, with, tried;
    struct rng r;
    rng_init(&r, seed);
    random_world(&r, &w);
    struct engine *e = engine_of(&w), *clone = engine_of(&w), *second = engine_of(&w);
    past = (struct outcome){0};
    life(&w, e, true, &past);
    live(&w, N_REQUESTS + N_NEWCOMERS, &without);
    for (uint32_t k = 0; k < N_NEWCOMERS; k++) {
        live(&w, N_REQUESTS + k, &with);
        tried = past;
        assert_int_equal(engine_copy(clone, e), 0);
        enter(&w, clone, N_REQUESTS + k);
        if (pick(&r, 0, 1)) { /* a clone of the clone, on its way to the next arrival */
            int64_t way = next_arrival(&w) - w.moment_ps;
            engine_run(clone, w.moment_ps + (int64_t)rng_below(&r, (uint64_t)way + 1));
            take_events(clone, &tried);
            assert_int_equal(engine_copy(second, clone), 0);
            engine_run(clone, w.moment_ps + PS_PER_S);
            struct engine *t = clone;
            clone = second;
            second = t;
        }
        life(&w, clone, false, &tried);
        assert_same(&with, &tried);
    }
    life(&w, e, false, &past);
    assert_same(&without, &past);
    engine_free(e);
    engine_free(clone);
    engine_free(second);
}

static void a_what_if_tells_what_would_be(void **state)
{
    (void)state;
    prop_run("prop_clone", CASES, random_case);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_what_if_tells_what_would_be, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
