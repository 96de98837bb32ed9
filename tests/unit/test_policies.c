/* test_policies.c - every policy against its formula, with numbers worked out by hand: who wins,
 * what happens to ties, one candidate, some of the workers only, and the legs of a P/D request.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/core/policy.h"

#define N 8 /* workers */
#define MAX_PARAMS 16
#define KEY_TOK 16
#define DRAWS 4000

/* A policy with its state, and everything it is shown. */
struct bed {
    const struct policy_ops *ops;
    void *state;
    double param[MAX_PARAMS];
    struct core_worker_config config[N];
    uint32_t inflight[N], prefilling[N], cached_tok[N], candidates[N], scratch[N];
    uint64_t prefill_tok[N], inflight_tok[N];
    struct core_telemetry telemetry[N];
    uint64_t keys[64];
    struct core_request req;
    struct policy_view v;
    struct policy_query q;
    struct rng rng;
};

static uint32_t param_index(const struct policy_ops *ops, const char *name)
{
    for (uint32_t i = 0; i < ops->n_params; i++) {
        if (strcmp(ops->params[i].name, name) == 0)
            return i;
    }
    fail_msg("%s has no knob %s", ops->name, name);
    return 0;
}

static void set_keys(struct bed *b, uint64_t first, uint32_t n)
{
    b->req.n_keys = n;
    for (uint32_t i = 0; i < n; i++)
        b->keys[i] = rng_mix64(first + i);
}

/* A bed without a state yet: knobs may be changed before start(). */
static void lay(struct bed *b, const char *policy)
{
    memset(b, 0, sizeof *b);
    b->ops = core_policy_find(policy);
    assert_non_null(b->ops);
    for (uint32_t i = 0; i < b->ops->n_params; i++)
        b->param[i] = b->ops->params[i].def;
    for (uint32_t w = 0; w < N; w++) {
        b->config[w] = (struct core_worker_config){.block_size = 16, .up = true};
        b->telemetry[w].at_ps = -1;
        b->candidates[w] = w;
    }
    b->req = (struct core_request){.prompt_tok = 1000,
                                   .keys = b->keys,
                                   .key_tok = KEY_TOK,
                                   .slo_ttft_ps = PS_NEVER,
                                   .slo_tpot_ps = PS_NEVER};
    b->v = (struct policy_view){.n_workers = N,
                                .config = b->config,
                                .inflight = b->inflight,
                                .prefilling = b->prefilling,
                                .prefill_tok = b->prefill_tok,
                                .inflight_tok = b->inflight_tok,
                                .telemetry = b->telemetry};
    b->q = (struct policy_query){.req = &b->req,
                                 .leg = POLICY_WHOLE,
                                 .source = CORE_NO_WORKER,
                                 .candidates = b->candidates,
                                 .n_candidates = N,
                                 .cached_tok = b->cached_tok,
                                 .scratch = b->scratch};
    rng_init(&b->rng, 1);
}

static void start(struct bed *b)
{
    b->state = calloc(1, b->ops->state_bytes ? b->ops->state_bytes : 1);
    assert_non_null(b->state);
    if (b->ops->init)
        assert_int_equal(b->ops->init(b->state, b->param, N), 0);
}

static void set_up(struct bed *b, const char *policy)
{
    lay(b, policy);
    start(b);
}

static void clear(struct bed *b)
{
    if (b->ops->deinit)
        b->ops->deinit(b->state);
    free(b->state);
}

static void among(struct bed *b, uint32_t n, const uint32_t *workers)
{
    memcpy(b->candidates, workers, n * sizeof *workers);
    b->q.n_candidates = n;
}
#define AMONG(b, ...)                                                                              \
    among(b, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t), (uint32_t[]){__VA_ARGS__})

static void report(struct bed *b, uint32_t w, int64_t at_ps, uint32_t waiting, uint32_t kv_used)
{
    b->telemetry[w] = (struct core_telemetry){
        .at_ps = at_ps, .waiting = waiting, .kv_used_blocks = kv_used, .kv_total_blocks = 100};
}

static uint32_t pick(struct bed *b)
{
    return b->ops->pick(b->state, &b->v, &b->q, &b->rng);
}

static void dispatched(struct bed *b, uint32_t w, void *request)
{
    if (b->ops->dispatched)
        b->ops->dispatched(b->state, &b->v, &b->q, w, request);
}

/* Draws many times; how often each worker came, and in hits[N] anything else. */
static void draw(struct bed *b, uint32_t hits[N + 1])
{
    memset(hits, 0, (N + 1) * sizeof *hits);
    for (int i = 0; i < DRAWS; i++) {
        uint32_t w = pick(b);
        hits[w < N ? w : N]++;
    }
}

/* Exactly these workers come, each as often as the others (6 sigma). */
static void assert_uniform(struct bed *b, uint32_t n, const uint32_t *workers)
{
    uint32_t hits[N + 1], total = 0;
    double p = 1.0 / n, slack = 6 * sqrt(DRAWS * p * (1 - p));
    draw(b, hits);
    for (uint32_t i = 0; i < n; i++) {
        total += hits[workers[i]];
        assert_true(fabs(hits[workers[i]] - DRAWS * p) <= slack);
    }
    assert_int_equal(total, DRAWS);
}
#define ASSERT_UNIFORM(b, ...)                                                                     \
    assert_uniform(b, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t),                        \
                   (uint32_t[]){__VA_ARGS__})

/* ---- the table */

static void test_table(void **unused)
{
    (void)unused;
    assert_int_equal(core_policies_count, 12);
    assert_null(core_policy_find("no_such_policy"));
    assert_null(core_policy_find(""));
    for (uint32_t i = 0; i < core_policies_count; i++) {
        const struct policy_ops *p = core_policies[i];
        assert_ptr_equal(core_policy_find(p->name), p);
        assert_int_equal(strspn(p->name, "abcdefghijklmnopqrstuvwxyz_"), strlen(p->name));
        assert_true(p->summary[0] && p->source[0] && !strchr(p->summary, '\n'));
        assert_non_null(p->pick);
        assert_true(p->n_params <= MAX_PARAMS);
        assert_true(p->prefix == POLICY_PREFIX_DISPATCH ||
                    (!p->prefix_max_blocks && !p->prefix_min_block_tok));
        for (uint32_t k = 0; k < p->n_params; k++) {
            const struct policy_param *row = &p->params[k];
            assert_true(row->min <= row->def && row->def <= row->max && row->help[0]);
            assert_int_equal(param_index(p, row->name), k); /* no name twice */
        }
    }
}

/* What holds for every policy: one candidate is taken, and only candidates are. */
static void test_candidates_only(void **unused)
{
    (void)unused;
    for (uint32_t i = 0; i < core_policies_count; i++) {
        for (enum policy_leg leg = POLICY_WHOLE; leg <= POLICY_DECODE; leg++) {
            struct bed b;
            set_up(&b, core_policies[i]->name);
            b.q.leg = leg;
            b.inflight[0] = b.inflight[7] = 9;
            for (uint32_t w = 0; w < N; w++)
                report(&b, w, 0, 0, 0);
            AMONG(&b, 5);
            assert_int_equal(pick(&b), 5);
            AMONG(&b, 1, 4, 6);
            uint32_t hits[N + 1];
            draw(&b, hits);
            assert_int_equal(hits[1] + hits[4] + hits[6], DRAWS);
            clear(&b);
        }
    }
}

/* Same seed, same picks. */
static void test_repeatable(void **unused)
{
    (void)unused;
    for (uint32_t i = 0; i < core_policies_count; i++) {
        struct bed a, b;
        set_up(&a, core_policies[i]->name);
        set_up(&b, core_policies[i]->name);
        for (int k = 0; k < 100; k++)
            assert_int_equal(pick(&a), pick(&b));
        clear(&a);
        clear(&b);
    }
}

/* ---- the simple ones */

static void test_round_robin(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "round_robin");
    AMONG(&b, 2, 3, 5);
    assert_int_equal(pick(&b), 2);
    assert_int_equal(pick(&b), 3);
    b.q.leg = POLICY_PREFILL; /* has a count of its own */
    assert_int_equal(pick(&b), 2);
    b.q.leg = POLICY_DECODE;
    assert_int_equal(pick(&b), 2);
    b.q.leg = POLICY_WHOLE;
    assert_int_equal(pick(&b), 5);
    assert_int_equal(pick(&b), 2);
    AMONG(&b, 0, 1); /* the fifth call: 4 mod 2 */
    assert_int_equal(pick(&b), 0);
    clear(&b);
}

static void test_random(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "random");
    b.inflight[3] = 1000;
    AMONG(&b, 1, 3, 4, 7);
    ASSERT_UNIFORM(&b, 1, 3, 4, 7);
    clear(&b);
}

/* Of two candidates, the one that the next draw names. */
static void assert_first_drawn(struct bed *b)
{
    struct rng same = b->rng;
    uint32_t first = b->candidates[rng_below(&same, 2)];
    assert_int_equal(pick(b), first);
}

static void test_power_of_two(void **unused)
{
    struct bed b;
    uint32_t hits[N + 1];
    (void)unused;
    set_up(&b, "power_of_two");

    /* Two candidates are always the two: the better one wins each time, whichever came first. */
    AMONG(&b, 2, 6);
    b.inflight[2] = 3;
    b.inflight[6] = 2;
    ASSERT_UNIFORM(&b, 6);
    b.inflight[2] = 2; /* a tie goes to the one drawn first, which is either */
    ASSERT_UNIFORM(&b, 2, 6);
    for (int i = 0; i < 20; i++)
        assert_first_drawn(&b);

    /* KV usage counts only if both have told it. */
    report(&b, 2, 0, 0, 10);
    b.inflight[2] = 3;
    ASSERT_UNIFORM(&b, 6);
    b.inflight[6] = 4;
    ASSERT_UNIFORM(&b, 2);
    b.inflight[6] = 2;
    report(&b, 6, 0, 0, 10);
    for (int i = 0; i < 20; i++)
        assert_first_drawn(&b);
    report(&b, 6, 0, 0, 11);
    ASSERT_UNIFORM(&b, 2);
    b.telemetry[6].kv_total_blocks = 0;
    ASSERT_UNIFORM(&b, 6);
    clear(&b);

    /* Of four with loads 0 < 1 < 2 < 3: pairs of six in which each is the better one. */
    set_up(&b, "power_of_two");
    AMONG(&b, 0, 1, 2, 3);
    for (uint32_t w = 0; w < 4; w++)
        b.inflight[w] = w;
    draw(&b, hits);
    assert_int_equal(hits[3], 0);
    for (uint32_t w = 0; w < 3; w++)
        assert_true(fabs(hits[w] - DRAWS * (3.0 - w) / 6) < 6 * sqrt(DRAWS / 4.0));
    clear(&b);
}

/* ---- least_loaded */

static void test_least_loaded_formula(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "least_loaded");
    AMONG(&b, 1, 2, 3);
    b.v.now_ps = PS_PER_S;
    /* 1: 2000/2000 + 0.15*0.5/0.5 = 1.15 s; 2: 2100/2000 + 0.15*0.2/0.8 = 1.0875;
     * 3: 120/2000 + 0.15*0.9/0.1 = 1.41 */
    report(&b, 1, 0, 0, 50);
    report(&b, 2, 0, 0, 20);
    report(&b, 3, 0, 0, 90);
    b.prefill_tok[1] = 2000;
    b.prefill_tok[2] = 2100;
    b.prefill_tok[3] = 120;
    assert_int_equal(pick(&b), 2);
    /* 1,000 tokens sent: 3100/2000 + 0.0375 = 1.5875. The books' prefill_tok is not read again. */
    b.prefill_tok[2] = 0;
    dispatched(&b, 2, NULL);
    assert_int_equal(pick(&b), 1); /* 1.15; 3 has 0.06 + 1.35 = 1.41 */
    dispatched(&b, 1, NULL);       /* 1.65 */
    assert_int_equal(pick(&b), 3);
    dispatched(&b, 3, NULL); /* 1.91 */
    assert_int_equal(pick(&b), 2);
    /* A new report starts afresh: 0 tokens queued, full: 0.15 * 0.999 / 0.001 = 149.85 s. */
    report(&b, 2, PS_PER_S, 0, 100);
    assert_int_equal(pick(&b), 1);
    report(&b, 2, PS_PER_S, 0, 20);
    assert_int_equal(pick(&b), 2);
    b.ops->worker_down(b.state, 2);
    assert_int_equal(pick(&b), 2);
    clear(&b);
}

static void test_least_loaded_without_reports(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "least_loaded");
    AMONG(&b, 1, 2, 3);
    /* Nobody reports: fewest requests, the first of equals. */
    b.inflight[1] = 2;
    b.inflight[2] = b.inflight[3] = 1;
    assert_int_equal(pick(&b), 2);
    /* Worker 1 reports 1,100 queued tokens: 0.55 s. Worker 3: 1 * 1024 / 2000 = 0.512 s. */
    report(&b, 1, 0, 0, 0);
    b.prefill_tok[1] = 1100;
    b.inflight[2] = 2;
    assert_int_equal(pick(&b), 3);
    b.inflight[3] = 2; /* 1.024 s */
    assert_int_equal(pick(&b), 1);
    /* 30 s old is fresh, older is not: all are dark, 2 and 3 have fewer. */
    b.inflight[1] = 3;
    b.v.now_ps = 30 * PS_PER_S;
    assert_int_equal(pick(&b), 1);
    b.v.now_ps++;
    assert_int_equal(pick(&b), 2);
    clear(&b);

    /* A tie on reports goes to the first. */
    set_up(&b, "least_loaded");
    for (uint32_t w = 0; w < N; w++)
        report(&b, w, 0, 0, 30);
    b.q.leg = POLICY_DECODE;
    assert_int_equal(pick(&b), 0);
    dispatched(&b, 0, NULL);
    assert_int_equal(pick(&b), 1);
    clear(&b);
}

/* ---- lmetric */

static void test_lmetric(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "lmetric");
    AMONG(&b, 0, 1, 2);
    /* 0: (500 + 1000) * 3 = 4500; 1: (0 + 1000) * 5 = 5000; 2: (1500 + 200) * 2 = 3400 */
    b.prefill_tok[0] = 500;
    b.prefill_tok[2] = 1500;
    b.inflight[0] = 2;
    b.inflight[1] = 4;
    b.inflight[2] = 1;
    b.cached_tok[2] = 800;
    assert_int_equal(pick(&b), 2);
    b.cached_tok[1] = 400; /* 600 * 5 = 3000 */
    assert_int_equal(pick(&b), 1);
    b.q.leg = POLICY_PREFILL;
    assert_int_equal(pick(&b), 1);
    /* Decode: (inflight_tok + 1000) * (inflight + 1): 9000, 5500, 6000 */
    b.q.leg = POLICY_DECODE;
    b.inflight_tok[0] = 2000;
    b.inflight_tok[1] = 100;
    b.inflight_tok[2] = 2000;
    assert_int_equal(pick(&b), 1);
    clear(&b);

    /* Fully cached costs one token times the batch, so the batch still counts; equals are drawn. */
    set_up(&b, "lmetric");
    for (uint32_t w = 0; w < N; w++)
        b.cached_tok[w] = 1000;
    b.inflight[0] = 1;
    AMONG(&b, 0, 3, 4);
    ASSERT_UNIFORM(&b, 3, 4);
    b.cached_tok[3] = UINT32_MAX; /* more than the prompt is the whole prompt */
    ASSERT_UNIFORM(&b, 3, 4);
    clear(&b);
}

/* ---- cache_aware */

static void test_cache_aware_match(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "cache_aware");
    AMONG(&b, 1, 2, 3);
    b.cached_tok[2] = 300; /* 0.3 is not above the threshold: smallest tree, all 0, the first */
    assert_int_equal(pick(&b), 1);
    b.cached_tok[2] = 301;
    assert_int_equal(pick(&b), 2);
    b.cached_tok[3] = 400;
    assert_int_equal(pick(&b), 3);
    b.cached_tok[2] = 400; /* equal: fewer in flight, then the smaller tree, then the first */
    assert_int_equal(pick(&b), 2);
    b.inflight[2] = 1;
    assert_int_equal(pick(&b), 3);
    b.inflight[3] = 1;
    b.cached_tok[2] = 0;
    dispatched(&b, 2, NULL);
    b.cached_tok[2] = 400;
    assert_int_equal(pick(&b), 3);
    clear(&b);
}

static void test_cache_aware_balance(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "cache_aware");
    AMONG(&b, 1, 2, 3);
    b.cached_tok[2] = 1000;
    b.inflight[1] = 10;
    b.inflight[2] = 74; /* 64 apart: even */
    b.inflight[3] = 10;
    b.inflight[0] = 0; /* no candidate, does not count */
    assert_int_equal(pick(&b), 2);
    b.inflight[2] = 75; /* 65 apart, 7.5 times */
    assert_int_equal(pick(&b), 1);
    b.inflight[3] = 9;
    assert_int_equal(pick(&b), 3);
    b.inflight[1] = b.inflight[3] = 200; /* 100 apart, but exactly 1.5 times */
    b.inflight[2] = 300;
    assert_int_equal(pick(&b), 2);
    b.inflight[2] = 301;
    assert_int_equal(pick(&b), 1);
    clear(&b);
}

static void test_cache_aware_tree(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "cache_aware");
    AMONG(&b, 0, 1, 2);
    dispatched(&b, 0, NULL); /* 1000 */
    b.cached_tok[1] = 600;
    dispatched(&b, 1, NULL); /* 400: the rest was there */
    b.cached_tok[1] = 0;
    assert_int_equal(pick(&b), 2);
    b.req.prompt_tok = 700;
    dispatched(&b, 2, NULL);
    assert_int_equal(pick(&b), 1);
    b.ops->worker_down(b.state, 0);
    assert_int_equal(pick(&b), 0);
    b.q.leg = POLICY_DECODE;
    assert_int_equal(pick(&b), 0);
    clear(&b);
}

/* ---- sticky */

static void test_sticky_filter(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "sticky");
    AMONG(&b, 1, 2, 3);
    b.cached_tok[2] = 799; /* below 0.80: all stay, token load 1: 1000, 2: 201 + 900, 3: 1001 */
    b.prefill_tok[2] = 900;
    b.prefill_tok[3] = 1;
    assert_int_equal(pick(&b), 1);
    b.cached_tok[2] = 800; /* warm; one token of load less, yet now alone */
    assert_int_equal(pick(&b), 2);
    b.req.prompt_tok = 1001; /* 0.80 of it is 800.8: 1: 1001, 2: 201 + 900 */
    assert_int_equal(pick(&b), 1);
    b.req.prompt_tok = 1000;
    /* 18 s * 15,928 tok/s = 286,704 tokens behind the best other (1 has 0) */
    b.prefill_tok[2] = 286704;
    assert_int_equal(pick(&b), 2);
    b.prefill_tok[2] = 286705;
    assert_int_equal(pick(&b), 1);
    b.q.leg = POLICY_PREFILL;
    assert_int_equal(pick(&b), 1);
    /* A second warm worker that is close enough keeps both warm ones. */
    b.cached_tok[3] = 1000;
    assert_int_equal(pick(&b), 3);
    /* All warm: nothing to compare with. 1: 0 + 200, 3: 1 + 0 */
    b.cached_tok[1] = 800;
    b.prefill_tok[3] = 400000;
    assert_int_equal(pick(&b), 1);
    clear(&b);

    lay(&b, "sticky");
    b.param[param_index(b.ops, "max_ttft_penalty_ms")] = 0; /* never lets go */
    start(&b);
    b.cached_tok[4] = 900;
    b.prefill_tok[4] = 1000000000;
    assert_int_equal(pick(&b), 4);
    clear(&b);
}

static void test_sticky_ties(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "sticky");
    AMONG(&b, 1, 2, 3);
    b.cached_tok[1] = b.cached_tok[3] = 900;
    ASSERT_UNIFORM(&b, 1, 3);
    b.prefill_tok[1] = 4194304; /* the cap: from there on all are equal */
    b.prefill_tok[3] = 9000000;
    b.prefill_tok[2] = 9000000;
    ASSERT_UNIFORM(&b, 1, 3);
    b.q.leg = POLICY_DECODE; /* fewest requests, whatever is cached */
    b.inflight[1] = 2;
    b.inflight[2] = b.inflight[3] = 1;
    ASSERT_UNIFORM(&b, 2, 3);
    clear(&b);
}

/* ---- dynamo_cost */

static void test_dynamo_prefill_term(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "dynamo_cost");
    AMONG(&b, 0, 1, 2);
    b.req.prompt_tok = 160;
    b.q.leg = POLICY_PREFILL;
    /* (prefill_tok + 160 - cached) / 16: 0: 15, 1: 13, 2: 14 */
    b.prefill_tok[0] = 80;
    b.prefill_tok[1] = 128;
    b.prefill_tok[2] = 64;
    b.cached_tok[1] = 80;
    assert_int_equal(pick(&b), 1);
    b.cached_tok[2] = 16; /* a tie at 13 */
    ASSERT_UNIFORM(&b, 1, 2);
    b.config[0].block_size = 32; /* 7.5 of its own blocks */
    assert_int_equal(pick(&b), 0);
    clear(&b);
}

static void test_dynamo_knobs(void **unused)
{
    struct bed b;
    (void)unused;
    /* Credit 3 and no load: never below 0. */
    lay(&b, "dynamo_cost");
    b.param[param_index(b.ops, "overlap_score_credit")] = 3;
    b.param[param_index(b.ops, "decode_active_request_weight")] = 2;
    start(&b);
    AMONG(&b, 0, 1);
    b.q.leg = POLICY_PREFILL;
    b.req.prompt_tok = 160;
    b.cached_tok[0] = b.cached_tok[1] = 80;
    b.cached_tok[0] = 160;
    ASSERT_UNIFORM(&b, 0, 1);
    b.inflight[0] = 1;
    assert_int_equal(pick(&b), 1);
    clear(&b);

    /* Decay 1: an excess of one request's prefill halves the credit. 0: (160+160-80)/16 = 15;
     * 1: (80 + 160) / 16 = 15; 2: 160 / 16 = 10, and 6 requests in flight: 16 */
    lay(&b, "dynamo_cost");
    b.param[param_index(b.ops, "overlap_score_credit_decay")] = 1;
    b.param[param_index(b.ops, "decode_active_request_weight")] = 1;
    start(&b);
    AMONG(&b, 0, 1, 2);
    b.q.leg = POLICY_PREFILL;
    b.req.prompt_tok = 160;
    b.prefill_tok[0] = 160;
    b.prefill_tok[1] = 80;
    b.cached_tok[0] = 160;
    b.inflight[2] = 6;
    ASSERT_UNIFORM(&b, 0, 1);
    b.inflight[2] = 4;
    assert_int_equal(pick(&b), 2);
    clear(&b);

    /* prefill_load_scale 0 leaves the blocks in flight. */
    lay(&b, "dynamo_cost");
    b.param[param_index(b.ops, "prefill_load_scale")] = 0;
    start(&b);
    uint64_t request[4] = {0};
    AMONG(&b, 0, 1);
    b.prefill_tok[1] = 100000;
    dispatched(&b, 0, request);
    assert_int_equal(pick(&b), 1);
    clear(&b);
}

/* Requests in flight: distinct blocks count once. A prompt of 100 tokens has 6 whole blocks; the rest of it
 * does not count. */
static void test_dynamo_book(void **unused)
{
    struct bed b;
    uint64_t first[4] = {0}, second[4] = {0}, other[4] = {0};
    (void)unused;
    set_up(&b, "dynamo_cost");
    AMONG(&b, 0, 1);
    b.req.prompt_tok = 100;
    set_keys(&b, 1000, 7);
    assert_true(b.ops->request_bytes <= sizeof first);

    dispatched(&b, 0, first);
    ASSERT_UNIFORM(&b, 0, 1); /* the same prompt again: 6 on either */
    b.prefill_tok[1] = 1;
    assert_int_equal(pick(&b), 0);
    b.prefill_tok[1] = 0;
    dispatched(&b, 0, second); /* adds nothing to 0 */
    /* A prompt of its own, 6 new blocks: 0: 6 + 6, 1: 6 and 6 of prefill: a tie */
    set_keys(&b, 2000, 7);
    b.prefill_tok[1] = 96;
    ASSERT_UNIFORM(&b, 0, 1);
    b.prefill_tok[1] = 0;
    dispatched(&b, 1, other);
    assert_int_equal(pick(&b), 1); /* 0: 6 + 6, 1: 6 */
    b.ops->left(b.state, &b.v, &b.req, 1, other);

    set_keys(&b, 1000, 7);
    b.ops->left(b.state, &b.v, &b.req, 0, first); /* its blocks stay: second has them too */
    b.ops->left(b.state, &b.v, &b.req, 0, first); /* once only */
    set_keys(&b, 2000, 7);
    b.prefill_tok[1] = 96; /* 0: 6 + 6, 1: 6 + 6 */
    ASSERT_UNIFORM(&b, 0, 1);
    set_keys(&b, 1000, 7);
    b.ops->left(b.state, &b.v, &b.req, 0, second);
    b.prefill_tok[1] = 0; /* nothing is in flight: 6 each */
    ASSERT_UNIFORM(&b, 0, 1);
    clear(&b);
}

/* Keys that end early, or none: the blocks beyond them count alone. */
static void test_dynamo_unnamed_blocks(void **unused)
{
    struct bed b;
    uint64_t request[4] = {0};
    (void)unused;
    set_up(&b, "dynamo_cost");
    AMONG(&b, 0, 1);
    b.req.prompt_tok = 160;
    set_keys(&b, 1, 3); /* 48 tokens: 3 named, 7 unnamed */
    dispatched(&b, 0, request);
    b.prefill_tok[1] = 7 * 16; /* 0: 10 + 7, 1: 10 and 7 of prefill */
    ASSERT_UNIFORM(&b, 0, 1);
    b.req.n_keys = 0;
    b.prefill_tok[1] = 10 * 16; /* 0: 10 + 10 */
    ASSERT_UNIFORM(&b, 0, 1);
    clear(&b);
}

/* Two sizes of blocks side by side: 160 tokens are 10 blocks of 16 or 5 of 32. */
static void test_dynamo_block_sizes(void **unused)
{
    struct bed b;
    uint64_t small[4] = {0}, large[4] = {0};
    (void)unused;
    lay(&b, "dynamo_cost");
    b.param[param_index(b.ops, "prefill_load_scale")] = 0;
    b.param[param_index(b.ops, "decode_active_request_weight")] = 1;
    start(&b);
    AMONG(&b, 2, 3);
    b.config[3].block_size = 32;
    b.req.prompt_tok = 160;
    set_keys(&b, 1, 10);
    b.inflight[3] = 5; /* 10 = 5 + 5 */
    ASSERT_UNIFORM(&b, 2, 3);
    dispatched(&b, 2, small);
    dispatched(&b, 3, large); /* the same prompt adds nothing to either */
    ASSERT_UNIFORM(&b, 2, 3);
    b.ops->left(b.state, &b.v, &b.req, 2, small);
    b.ops->left(b.state, &b.v, &b.req, 3, large);
    ASSERT_UNIFORM(&b, 2, 3);
    clear(&b);
}

static void test_dynamo_legs(void **unused)
{
    struct bed b;
    uint64_t request[4] = {0}, again[4] = {0}, third[4] = {0};
    (void)unused;
    set_up(&b, "dynamo_cost");
    AMONG(&b, 0, 1);
    b.req.prompt_tok = 100;
    set_keys(&b, 1000, 7);
    b.q.leg = POLICY_PREFILL; /* not booked */
    dispatched(&b, 0, request);
    b.q.leg = POLICY_DECODE; /* cached or queued prefill means nothing here */
    b.cached_tok[0] = 100;
    b.prefill_tok[1] = 1000;
    ASSERT_UNIFORM(&b, 0, 1);
    dispatched(&b, 1, request);
    assert_int_equal(pick(&b), 0);
    dispatched(&b, 0, again);
    ASSERT_UNIFORM(&b, 0, 1);   /* 12 each */
    dispatched(&b, 0, third);   /* the same blocks again count again: 18 on 0 */
    b.config[1].block_size = 5; /* 6 + 20 */
    assert_int_equal(pick(&b), 0);
    b.config[1].block_size = 8; /* 6 + 12 */
    ASSERT_UNIFORM(&b, 0, 1);
    b.config[1].block_size = 9; /* 6 + 11 */
    assert_int_equal(pick(&b), 1);
    b.config[1].block_size = 16;
    b.q.leg = POLICY_PREFILL; /* blocks in flight mean nothing here: 0 against 68.75 */
    assert_int_equal(pick(&b), 0);
    b.cached_tok[0] = 0;
    b.prefill_tok[1] = 0;
    ASSERT_UNIFORM(&b, 0, 1);
    b.q.leg = POLICY_DECODE;
    b.ops->left(b.state, &b.v, &b.req, 0, third);
    b.ops->left(b.state, &b.v, &b.req, 0, request); /* the prefill leg */
    ASSERT_UNIFORM(&b, 0, 1);
    b.ops->left(b.state, &b.v, &b.req, 1, request);
    assert_int_equal(pick(&b), 1);
    b.ops->left(b.state, &b.v, &b.req, 0, again);
    ASSERT_UNIFORM(&b, 0, 1);
    clear(&b);
}

/* A request that was lost with its worker is told to have left only after new ones came. */
static void test_dynamo_worker_down(void **unused)
{
    struct bed b;
    uint64_t lost[4] = {0}, fresh[4] = {0};
    (void)unused;
    set_up(&b, "dynamo_cost");
    AMONG(&b, 0, 1);
    b.req.prompt_tok = 100;
    set_keys(&b, 1000, 7);
    dispatched(&b, 0, lost);
    b.ops->worker_down(b.state, 0);
    ASSERT_UNIFORM(&b, 0, 1);
    dispatched(&b, 0, fresh);
    b.ops->left(b.state, &b.v, &b.req, 0, lost);
    set_keys(&b, 2000, 7);
    b.prefill_tok[1] = 96;
    ASSERT_UNIFORM(&b, 0, 1); /* 0: 6 + 6 */
    clear(&b);
}

/* Costs 10, 12, 14 scale to 0, 0.5, 1; temperature 0.5: weights 1, e^-1, e^-2. */
static void test_dynamo_temperature(void **unused)
{
    struct bed b;
    uint32_t hits[N + 1];
    double weight[3] = {1, exp(-1), exp(-2)}, sum = weight[0] + weight[1] + weight[2];
    (void)unused;
    lay(&b, "dynamo_cost");
    b.param[param_index(b.ops, "temperature")] = 0.5;
    start(&b);
    AMONG(&b, 0, 1, 2);
    b.req.prompt_tok = 160;
    b.q.leg = POLICY_PREFILL;
    b.prefill_tok[1] = 32;
    b.prefill_tok[2] = 64;
    draw(&b, hits);
    for (uint32_t w = 0; w < 3; w++) {
        double p = weight[w] / sum;
        assert_true(fabs(hits[w] - DRAWS * p) < 6 * sqrt(DRAWS * p * (1 - p)));
    }
    b.prefill_tok[1] = b.prefill_tok[2] = 0; /* all equal */
    ASSERT_UNIFORM(&b, 0, 1, 2);
    clear(&b);

    lay(&b, "dynamo_cost"); /* so cold that the others never come */
    b.param[param_index(b.ops, "temperature")] = 1e-4;
    start(&b);
    AMONG(&b, 0, 1, 2);
    b.prefill_tok[0] = 1;
    b.prefill_tok[1] = 2;
    ASSERT_UNIFORM(&b, 2);
    clear(&b);
}

/* ---- llmd_blend */

static void test_llmd_blend(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "llmd_blend");
    AMONG(&b, 0, 1, 2);
    /* queue 1, 0.5, 0; kv 0.2, 0.6, 0.9; prefix 0, 0, 0.5:
     * 0: 2 + 0.4 = 2.4; 1: 1 + 1.2 = 2.2; 2: 0 + 1.8 + 1.5 = 3.3 */
    report(&b, 0, 0, 0, 80);
    report(&b, 1, 0, 4, 40);
    report(&b, 2, 0, 8, 10);
    b.cached_tok[2] = 500;
    assert_int_equal(pick(&b), 2);
    b.cached_tok[2] = 190; /* 2.37 */
    assert_int_equal(pick(&b), 0);
    b.cached_tok[1] = 100; /* 2.5 */
    assert_int_equal(pick(&b), 1);
    AMONG(&b, 1, 2); /* without 0: queue 1 and 0: 2 + 1.2 + 0.3 = 3.5, 2.37 */
    b.cached_tok[2] = 500;
    assert_int_equal(pick(&b), 1); /* 3.5 against 3.3 */
    b.q.leg = POLICY_DECODE;
    assert_int_equal(pick(&b), 1);
    clear(&b);

    set_up(&b, "llmd_blend"); /* who never reported is empty; all alike are drawn */
    AMONG(&b, 1, 5);
    report(&b, 1, 0, 0, 0);
    ASSERT_UNIFORM(&b, 1, 5);
    report(&b, 1, 0, 0, 1);
    assert_int_equal(pick(&b), 5);
    b.cached_tok[5] = UINT32_MAX;
    assert_int_equal(pick(&b), 5);
    clear(&b);
}

/* ---- prefix_hash */

static void test_prefix_hash_affinity(void **unused)
{
    struct bed b;
    uint32_t hits[N] = {0};
    (void)unused;
    set_up(&b, "prefix_hash");
    set_keys(&b, 7, 63);
    uint32_t home = pick(&b);
    b.keys[16] = 1; /* beyond 256 tokens */
    b.req.session = 5;
    assert_int_equal(pick(&b), home);
    /* keys[15] is the one that decides, or the last of a short prompt. */
    for (uint32_t i = 0; i < 800; i++) {
        b.keys[15] = i;
        hits[pick(&b)]++;
    }
    for (uint32_t w = 0; w < N; w++)
        assert_in_range(hits[w], 50, 150);
    b.req.prompt_tok = 33;
    uint32_t short_home = pick(&b);
    for (uint32_t i = 0; i < 50; i++) {
        b.keys[15] = i;
        assert_int_equal(pick(&b), short_home);
    }
    clear(&b);
}

static void test_prefix_hash_without_keys(void **unused)
{
    struct bed b;
    uint32_t hits[N + 1];
    (void)unused;
    set_up(&b, "prefix_hash");
    draw(&b, hits); /* no session: chance */
    for (uint32_t w = 0; w < N; w++)
        assert_in_range(hits[w], DRAWS / N - 150, DRAWS / N + 150);
    b.req.session = 17;
    uint32_t home = pick(&b);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(pick(&b), home);
    clear(&b);
}

static void test_prefix_hash_bound(void **unused)
{
    struct bed b;
    uint32_t order[N], seen = 0;
    (void)unused;
    set_up(&b, "prefix_hash");
    set_keys(&b, 7, 63);
    /* Taking the winner away each time shows the whole order. */
    for (uint32_t i = 0; i < N; i++) {
        uint32_t left[N], n = 0;
        for (uint32_t w = 0; w < N; w++) {
            if (!(seen & 1u << w))
                left[n++] = w;
        }
        among(&b, n, left);
        order[i] = pick(&b);
        seen |= 1u << order[i];
    }
    AMONG(&b, 0, 1, 2, 3, 4, 5, 6, 7);
    /* 31 in flight and this one: mean 4, limit 5. The first in order has 5 of them, then 6. */
    for (uint32_t w = 0; w < N; w++)
        b.inflight[w] = 4;
    b.inflight[order[0]] = 5;
    b.inflight[order[7]] = 2;
    assert_int_equal(pick(&b), order[0]);
    b.inflight[order[0]] = 6;
    b.inflight[order[7]] = 1;
    assert_int_equal(pick(&b), order[1]);
    b.inflight[order[1]] = 6;
    b.inflight[order[6]] = 2;
    assert_int_equal(pick(&b), order[2]);
    clear(&b);
}

/* ---- ttft_gate */

static void test_ttft_gate_estimate(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "ttft_gate");
    b.param[param_index(b.ops, "prefill_tok_per_s")] = 1000;
    start(&b);
    AMONG(&b, 0, 1, 2);
    /* 1 ms a token and 10 ms: 0: 500 + 1000 + 10 = 1510 ms, 1: 800 + 600 + 10 = 1410,
     * 2: 401 + 1000 + 10 = 1411 */
    b.prefill_tok[0] = 500;
    b.prefill_tok[1] = 800;
    b.cached_tok[1] = 400;
    b.prefill_tok[2] = 401;
    assert_int_equal(pick(&b), 1);
    b.prefill_tok[2] = 400;
    ASSERT_UNIFORM(&b, 1, 2);
    /* The target is 1410 ms: met exactly, then missed by a picosecond. */
    b.req.slo_ttft_ps = 1410 * PS_PER_MS;
    ASSERT_UNIFORM(&b, 1, 2);
    b.req.slo_ttft_ps--;
    assert_int_equal(pick(&b), POLICY_MISS_SLO);
    b.q.leg = POLICY_PREFILL;
    assert_int_equal(pick(&b), POLICY_MISS_SLO);
    AMONG(&b, 0);
    assert_int_equal(pick(&b), POLICY_MISS_SLO);
    AMONG(&b, 0, 1, 2);
    b.q.leg = POLICY_DECODE; /* never refused; fewest in flight */
    b.inflight[0] = b.inflight[1] = 1;
    assert_int_equal(pick(&b), 2);
    clear(&b);
}

/* Sends a request to worker w that takes `factor` times the raw estimate of 1,010 ms. */
static void serve(struct bed *b, uint32_t w, double factor)
{
    uint64_t request[4] = {0};
    assert_true(b->ops->request_bytes <= sizeof request);
    dispatched(b, w, request);
    b->v.now_ps += ps_from_ms(1010 * factor);
    b->ops->first_token(b->state, &b->v, &b->req, w, request);
    b->ops->first_token(b->state, &b->v, &b->req, w, request); /* counts once */
    b->ops->left(b->state, &b->v, &b->req, w, request);
}

static void test_ttft_gate_median(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "ttft_gate");
    b.param[param_index(b.ops, "prefill_tok_per_s")] = 1000;
    b.param[param_index(b.ops, "window")] = 4;
    b.param[param_index(b.ops, "min_samples")] = 3;
    start(&b);
    AMONG(&b, 0);
    b.req.slo_ttft_ps = 1010 * PS_PER_MS; /* raw: exactly in time */
    serve(&b, 0, 2);
    serve(&b, 0, 4);
    assert_int_equal(pick(&b), 0);
    serve(&b, 0, 2); /* the third: the median is 2 */
    assert_int_equal(pick(&b), POLICY_MISS_SLO);
    b.req.slo_ttft_ps = 2020 * PS_PER_MS + 10;
    assert_int_equal(pick(&b), 0);
    serve(&b, 0, 4); /* 2 4 2 4: 3 */
    b.req.slo_ttft_ps = 3030 * PS_PER_MS - 10000;
    assert_int_equal(pick(&b), POLICY_MISS_SLO);
    b.req.slo_ttft_ps = 3030 * PS_PER_MS + 10000;
    assert_int_equal(pick(&b), 0);
    serve(&b, 0, 0.5); /* 4 2 4 0.5: still 3 */
    serve(&b, 0, 0.5); /* 2 4 0.5 0.5: 1.25 */
    b.req.slo_ttft_ps = 1263 * PS_PER_MS;
    assert_int_equal(pick(&b), 0);
    b.req.slo_ttft_ps = 1262 * PS_PER_MS;
    assert_int_equal(pick(&b), POLICY_MISS_SLO);
    AMONG(&b, 0, 1); /* each worker has its own */
    assert_int_equal(pick(&b), 1);
    b.ops->worker_down(b.state, 0);
    ASSERT_UNIFORM(&b, 0, 1);
    clear(&b);
}

/* The estimate is the one made at the pick, though the books have the request by then. */
static void test_ttft_gate_books(void **unused)
{
    struct bed b;
    uint64_t request[4] = {0}, lost[4] = {0};
    (void)unused;
    lay(&b, "ttft_gate");
    b.param[param_index(b.ops, "prefill_tok_per_s")] = 1000;
    b.param[param_index(b.ops, "min_samples")] = 1;
    start(&b);
    AMONG(&b, 0);
    dispatched(&b, 0, lost); /* leaves before its first token: no sample */
    b.ops->left(b.state, &b.v, &b.req, 0, lost);
    b.ops->first_token(b.state, &b.v, &b.req, 0, lost);
    assert_int_equal(pick(&b), 0);
    b.prefill_tok[0] = 1000;
    dispatched(&b, 0, request);
    b.q.leg = POLICY_DECODE; /* the other leg does not touch it */
    dispatched(&b, 1, request);
    b.v.now_ps += 1010 * PS_PER_MS;
    b.ops->first_token(b.state, &b.v, &b.req, 1, request);
    b.ops->first_token(b.state, &b.v, &b.req, 0, request);
    b.q.leg = POLICY_WHOLE;
    b.prefill_tok[0] = 0;
    b.req.slo_ttft_ps = 1010 * PS_PER_MS; /* actual / raw was 1 */
    assert_int_equal(pick(&b), 0);
    b.req.slo_ttft_ps -= 1;
    assert_int_equal(pick(&b), POLICY_MISS_SLO);
    clear(&b);
}

/* ---- prob_admit */

static void assert_shed(struct bed *b, double p)
{
    uint32_t hits[N + 1];
    draw(b, hits);
    assert_true(fabs(hits[N] - DRAWS * p) <= 6 * sqrt(DRAWS * p * (1 - p)));
}

static void test_prob_admit(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "prob_admit");
    AMONG(&b, 0, 1);
    assert_shed(&b, 1); /* nobody reported: taken for full */
    /* max(1/5, 0.08/0.8) = 0.2 and max(0, 0.16/0.8) = 0.2: 300 * 0.2^5 = 0.096 */
    report(&b, 0, 0, 1, 8);
    report(&b, 1, 0, 0, 16);
    assert_shed(&b, 0.096);
    report(&b, 1, 0, 0, 32); /* mean of 0.2 and 0.4: 300 * 0.3^5 = 0.729 */
    assert_shed(&b, 0.729);
    b.q.leg = POLICY_PREFILL;
    assert_shed(&b, 0.729);
    b.q.leg = POLICY_DECODE; /* already let in */
    assert_shed(&b, 0);
    b.q.leg = POLICY_WHOLE;
    b.req.priority = -1; /* spared, and routed as llmd_blend does: 2 * 0.92 against 2 + 2 * 0.68 */
    assert_shed(&b, 0);
    assert_int_equal(pick(&b), 1);
    b.req.priority = 3;
    AMONG(&b, 0); /* 0.2 alone */
    assert_shed(&b, 0.096);
    report(&b, 0, 0, 2, 0); /* 0.4: p = 3.072 */
    assert_shed(&b, 1);
    assert_int_equal(pick(&b), POLICY_SHED);
    report(&b, 0, 0, 1, 8); /* 200 ms old is fresh, older is not */
    b.v.now_ps = 200 * PS_PER_MS;
    assert_shed(&b, 0.096);
    b.v.now_ps++;
    assert_shed(&b, 1);
    clear(&b);

    lay(&b, "prob_admit"); /* reports count as they are, whoever never reported as idle */
    b.param[param_index(b.ops, "stale_ms")] = 0;
    start(&b);
    AMONG(&b, 0, 1);
    b.v.now_ps = 1000 * PS_PER_S;
    assert_shed(&b, 0);
    report(&b, 0, 0, 2, 16); /* mean of 0.4 and 0 */
    assert_shed(&b, 0.096);
    clear(&b);

    lay(&b, "prob_admit"); /* llm-d's own border spares 0 */
    b.param[param_index(b.ops, "shed_from_priority")] = 1;
    b.param[param_index(b.ops, "power")] = 1;
    b.param[param_index(b.ops, "factor")] = 1;
    start(&b);
    AMONG(&b, 0);
    report(&b, 0, 0, 1, 0);
    assert_shed(&b, 0);
    b.req.priority = 1;
    assert_shed(&b, 0.2);
    clear(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_candidates_only),
        cmocka_unit_test(test_repeatable),
        cmocka_unit_test(test_round_robin),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_power_of_two),
        cmocka_unit_test(test_least_loaded_formula),
        cmocka_unit_test(test_least_loaded_without_reports),
        cmocka_unit_test(test_lmetric),
        cmocka_unit_test(test_cache_aware_match),
        cmocka_unit_test(test_cache_aware_balance),
        cmocka_unit_test(test_cache_aware_tree),
        cmocka_unit_test(test_sticky_filter),
        cmocka_unit_test(test_sticky_ties),
        cmocka_unit_test(test_dynamo_prefill_term),
        cmocka_unit_test(test_dynamo_knobs),
        cmocka_unit_test(test_dynamo_book),
        cmocka_unit_test(test_dynamo_unnamed_blocks),
        cmocka_unit_test(test_dynamo_block_sizes),
        cmocka_unit_test(test_dynamo_legs),
        cmocka_unit_test(test_dynamo_worker_down),
        cmocka_unit_test(test_dynamo_temperature),
        cmocka_unit_test(test_llmd_blend),
        cmocka_unit_test(test_prefix_hash_affinity),
        cmocka_unit_test(test_prefix_hash_without_keys),
        cmocka_unit_test(test_prefix_hash_bound),
        cmocka_unit_test(test_ttft_gate_estimate),
        cmocka_unit_test(test_ttft_gate_median),
        cmocka_unit_test(test_ttft_gate_books),
        cmocka_unit_test(test_prob_admit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
