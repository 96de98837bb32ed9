/* test_alloc_failure.c - every allocation of the library's constructors and copies fails once: an error comes
 * back, nothing is left behind, and what was there before goes on as if nothing had been tried.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "controller/core/core.h"
#include "controller/core/policy.h"
#include "controller/core/prefix_index.h"
#include "predictor/cluster.h"
#include "predictor/engine.h"
#include "predictor/fair_share.h"
#include "predictor/hist.h"
#include "predictor/kv.h"
#include "predictor/rng.h"
#include "predictor/units.h"
#include "tests/support/fail_alloc.h"

#define BLOCK_TOK 16
#define MAX_KEYS 64
#define FEW 3
#define MANY 60

/* ---- histogram */

static struct hist *hist;

static bool make_hist(void *ctx)
{
    (void)ctx;
    hist = hist_new();
    return hist;
}

static void undo_hist(void *ctx)
{
    (void)ctx;
    hist_free(hist);
}

static void histogram(void **state)
{
    (void)state;
    assert_true(fail_alloc_each("hist_new", make_hist, undo_hist, NULL) > 0);
}

/* ---- engines */

/* Every scheduler, without and with tiers below the GPU. */
static const struct variant {
    enum sched_kind kind;
    bool tiers;
} variants[] = {{SCHED_VLLM, false},   {SCHED_VLLM, true},    {SCHED_SGLANG, false},
                {SCHED_SGLANG, true},  {SCHED_TRTLLM, false}, {SCHED_TRTLLM, true},
                {SCHED_DYNOSIM, false}};
#define N_VARIANTS (sizeof variants / sizeof variants[0])

static struct engine_config config_of(const struct variant *v)
{
    struct engine_config c;
    engine_config_default(&c, v->kind);
    c.block_size = BLOCK_TOK;
    c.num_gpu_blocks = v->tiers ? 400 : 2000;
    c.max_num_seqs = 8;
    c.num_host_blocks = v->tiers ? 1000 : 0;
    c.kv_bytes_per_token = 100000;
    return c;
}

static struct engine *engine;

static bool make_engine(void *ctx)
{
    engine = engine_new(ctx, 1);
    return engine;
}

static void undo_engine(void *ctx)
{
    (void)ctx;
    engine_free(engine);
}

static void engines(void **state)
{
    (void)state;
    for (unsigned i = 0; i < N_VARIANTS; i++) {
        struct engine_config c = config_of(&variants[i]);
        uint64_t n = fail_alloc_each("engine_new", make_engine, undo_engine, &c);
        assert_true(n > variants[i].tiers);
    }
}

/* An engine in the middle of its life: FEW or MANY requests sent, some done, a cache. */
static struct engine *busy_engine(const struct variant *v, uint32_t n)
{
    static uint64_t few_keys[FEW][MAX_KEYS], many_keys[MANY][MAX_KEYS]; /* engines borrow them */
    uint64_t(*keys)[MAX_KEYS] = n == FEW ? few_keys : many_keys;
    struct engine_config c = config_of(v);
    struct engine *e = engine_new(&c, 1);
    struct rng r;
    uint32_t slot;
    assert_non_null(e);
    rng_init(&r, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t tok = 100 + (uint32_t)rng_below(&r, 800);
        struct request_spec s = {.uid = i + 1,
                                 .prompt_tok = tok,
                                 .output_tok = 1 + (uint32_t)rng_below(&r, 200),
                                 .max_tokens = 1000,
                                 .key_tok = BLOCK_TOK,
                                 .n_keys = (tok + BLOCK_TOK - 1) / BLOCK_TOK,
                                 .keys = keys[i]};
        for (uint32_t k = 0; k < s.n_keys; k++)
            keys[i][k] = request_chain_key(k ? keys[i][k - 1] : 0, k < 3 ? k : rng_u64(&r));
        assert_int_equal(engine_submit(e, 0, &s, i, 0, &slot), 0);
    }
    engine_start(e, 0, PS_NEVER);
    engine_run(e, (int64_t)n * 20 * PS_PER_MS);
    engine_clear_events(e);
    return e;
}

/* What comes out of an engine from here on: everything that can be seen of its state. */
static uint64_t future_of(struct engine *e)
{
    uint64_t hash = 0;
    struct engine_stats st;
    engine_run(e, 3600 * PS_PER_S);
    uint32_t n;
    const struct engine_event *ev = engine_events(e, &n);
    for (uint32_t i = 0; i < n; i++)
        hash = rng_mix64(hash ^ ((uint64_t)ev[i].at_ps * 31 + ev[i].handle * 7u + ev[i].kind));
    engine_get_stats(e, &st);
    return rng_mix64(hash ^ st.passes ^ (st.output_tok << 20) ^ (uint64_t)st.busy_ps ^ n);
}

/* The n-th allocation of a copy fails: dst is what it was. Then the copy succeeds and is what src is. Returns
 * whether there was an n-th. */
static bool copy_fails_at(const struct variant *v, uint64_t n, uint64_t dst_future,
                          uint64_t src_future)
{
    struct engine *dst = busy_engine(v, FEW), *src = busy_engine(v, MANY);
    struct engine *again = busy_engine(v, FEW);
    fail_alloc_at(n);
    bool made = engine_copy(dst, src) == 0, failed = fail_alloc_failed();
    fail_alloc_at(0);
    assert_true(made != failed);
    if (failed) {
        assert_int_equal(engine_copy(again, dst), 0); /* dst goes on, in a copy of its own */
        assert_int_equal(future_of(again), dst_future);
        assert_int_equal(engine_copy(dst, src), 0);
    }
    assert_int_equal(future_of(dst), src_future);
    assert_int_equal(future_of(src), src_future);
    engine_free(dst);
    engine_free(src);
    engine_free(again);
    return failed;
}

static void copies_of_engines(void **state)
{
    (void)state;
    uint64_t most = 0;
    for (unsigned i = 0; i < N_VARIANTS; i++) {
        struct engine *a = busy_engine(&variants[i], FEW), *b = busy_engine(&variants[i], MANY);
        uint64_t few = future_of(a), many = future_of(b), n = 1;
        assert_true(few != many);
        engine_free(a);
        engine_free(b);
        while (copy_fails_at(&variants[i], n, few, many))
            n++;
        assert_true(n > 4);
        most = n > most ? n : most;
    }
    assert_true(most > 8); /* with what the tiers have */
    assert_int_equal(fail_alloc_live(), 0);
}

/* ---- KV cache */

static struct kv kv, kv_from;

static bool make_kv(void *ctx)
{
    (void)ctx;
    return kv_init(&kv, BLOCK_TOK, 500, true, EVICT_LRU) == 0;
}

static void undo_kv(void *ctx)
{
    (void)ctx;
    kv_deinit(&kv);
}

static void fill(struct kv *to, uint32_t requests)
{
    for (uint32_t i = 0; i < requests; i++) {
        uint64_t key[4];
        struct kv_hold hold;
        for (uint32_t k = 0; k < 4; k++)
            key[k] = request_chain_key(k ? key[k - 1] : 0, i * 100 + k);
        struct request_spec s = {
            .uid = i, .prompt_tok = 64, .output_tok = 1, .keys = key, .n_keys = 4, .key_tok = 16};
        kv_hold_init(&hold);
        kv_take(to, &hold, 4);
        kv_name(to, &s, &hold, 4);
        kv_release(to, &hold);
    }
}

static void caches(void **state)
{
    (void)state;
    fail_alloc_each("kv_init", make_kv, undo_kv, NULL);
    for (uint64_t n = 1, failed = 1; failed; n++) {
        assert_true(make_kv(NULL));
        fill(&kv, 2);
        assert_int_equal(kv_init(&kv_from, BLOCK_TOK, 4000, true, EVICT_LRU), 0);
        fill(&kv_from, 600);
        fail_alloc_at(n);
        bool made = kv_copy(&kv, &kv_from) == 0;
        failed = fail_alloc_failed();
        fail_alloc_at(0);
        assert_true(made == !failed);
        assert_null(kv_validate(&kv));
        assert_int_equal(kv.usable, made ? 4000 : 500);
        fill(&kv, 3);
        assert_null(kv_validate(&kv));
        assert_int_equal(kv_copy(&kv, &kv_from), 0);
        fill(&kv, 700);
        assert_null(kv_validate(&kv));
        kv_deinit(&kv);
        kv_deinit(&kv_from);
        assert_true(n < 20);
    }
    assert_int_equal(fail_alloc_live(), 0);
}

/* ---- links and clusters */

static void links(void **state)
{
    (void)state;
    for (uint64_t n = 1, failed = 1; failed; n++) {
        struct fair_share from, to;
        uint32_t handle;
        assert_int_equal(fair_share_init(&from, 1, 0), 0);
        assert_int_equal(fair_share_init(&to, 1, 0), 0);
        fair_share_add(&to, 0, 5, 77);
        for (uint32_t i = 0; i < 100; i++)
            fair_share_add(&from, 0, 1000, i);
        fail_alloc_at(n);
        bool made = fair_share_copy(&to, &from) == 0;
        failed = fail_alloc_failed();
        fail_alloc_at(0);
        assert_true(made == !failed);
        assert_int_equal(fair_share_next_ps(&to), made ? 100000000 : 5000);
        assert_true(fair_share_pop(&to, PS_PER_S, &handle));
        assert_int_equal(handle, made ? 0 : 77);
        assert_true(failed || n == 3); /* the transfers and the heap */
        fair_share_deinit(&from);
        fair_share_deinit(&to);
    }
    assert_int_equal(fail_alloc_live(), 0);
}

static struct worker_config workers[4];
static struct cluster_options options = {
    .link = {.latency_ms = 1, .bandwidth_gb_s = 10}, .kv_lease_ps = PS_NEVER, .seed = 1};
static struct cluster *cluster;

static bool make_cluster(void *ctx)
{
    (void)ctx;
    cluster = cluster_new(workers, 4, &options);
    return cluster;
}

static void undo_cluster(void *ctx)
{
    (void)ctx;
    cluster_free(cluster);
}

static void clusters(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        workers[i].engine = config_of(&variants[2 * i]);
        workers[i].engine.role = i % 2 ? ROLE_DECODE : ROLE_PREFILL;
        workers[i].engine.num_shared_blocks = i < 2 ? 5000 : 0;
        workers[i].starts_up = true;
    }
    assert_true(fail_alloc_each("cluster_new", make_cluster, undo_cluster, NULL) >= 4);
    assert_true(make_cluster(NULL));
    static const struct fault faults[] = {{.at_ps = 5, .kind = FAULT_DOWN, .worker = 1},
                                          {.at_ps = 9, .kind = FAULT_UP, .worker = 1}};
    fail_alloc_at(1);
    assert_int_equal(cluster_add_faults(cluster, faults, 2), WEIR_E_NOMEM);
    assert_int_equal(cluster_next_ps(cluster), PS_NEVER);
    assert_int_equal(cluster_add_faults(cluster, faults, 2), 0);
    assert_int_equal(cluster_next_ps(cluster), 5);
    cluster_free(cluster);
    assert_int_equal(fail_alloc_live(), 0);
}

/* ---- the decision core */

static struct prefix_index *prefix_tree;

static bool make_index(void *ctx)
{
    (void)ctx;
    prefix_tree = prefix_index_new(8, 100);
    return prefix_tree;
}

static void undo_index(void *ctx)
{
    (void)ctx;
    prefix_index_free(prefix_tree);
}

static struct core *core;

static bool make_core(void *ctx)
{
    static const struct core_worker_config cw[2] = {
        {.block_size = 16, .num_gpu_blocks = 1000, .max_num_seqs = 8, .up = true},
        {.block_size = 32, .num_gpu_blocks = 1000, .max_num_seqs = 8, .up = true}};
    struct core_config c = {.policy = *(const char **)ctx,
                            .seed = 1,
                            .n_workers = 2,
                            .workers = cw,
                            .queue_max_requests = 10,
                            .queue_timeout_ps = PS_NEVER,
                            .fair_quantum_tok = 100,
                            .max_requests = 100};
    const char *why = NULL;
    core = core_new(&c, &why);
    assert_true(core ? !why : strcmp(why, "out of memory") == 0);
    return core;
}

static void undo_core(void *ctx)
{
    (void)ctx;
    core_free(core);
}

static void cores(void **state)
{
    (void)state;
    assert_true(fail_alloc_each("prefix_index_new", make_index, undo_index, NULL) > 2);
    for (uint32_t i = 0; i < core_policies_count; i++) {
        const char *name = core_policies[i]->name;
        assert_true(fail_alloc_each(name, make_core, undo_core, &name) > 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(histogram), cmocka_unit_test(engines), cmocka_unit_test(copies_of_engines),
        cmocka_unit_test(caches),    cmocka_unit_test(links),   cmocka_unit_test(clusters),
        cmocka_unit_test(cores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
