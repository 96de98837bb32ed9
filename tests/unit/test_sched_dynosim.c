/* test_sched_dynosim.c - DynoSim's scheduler: how its two versions count a batch, what its decode workers do with
 * requests whose KV is still elsewhere, and the times of passes taken together, worked out by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "predictor/engine_internal.h"
#include "predictor/hist.h"

/* prefill(T) = 1 + T/100 ms, decode(u) = 2 + 10 u ms */
static const struct step_params polynomial = {
    .form = STEP_POLYNOMIAL, .pb = 0.01, .pc = 1, .db = 10, .dc = 2};

static struct engine_config small(enum dynosim_version version, uint32_t blocks)
{
    struct engine_config c;
    const char *why = NULL;
    engine_config_default(&c, SCHED_DYNOSIM);
    assert_int_equal(step_model_init(&c.step, &polynomial, &why), 0);
    c.dynosim_version = version;
    c.block_size = 4;
    c.num_gpu_blocks = blocks;
    return c;
}

static uint32_t submit(struct engine *e, int64_t now, uint32_t handle, uint32_t prompt,
                       uint32_t output, unsigned flags)
{
    struct request_spec s = {.uid = handle, .prompt_tok = prompt, .output_tok = output};
    uint32_t slot;
    assert_int_equal(engine_submit(e, now, &s, handle, flags, &slot), 0);
    return slot;
}

/* One pass of no time; what the step model is told of it. */
static struct step_batch pass(struct engine *e)
{
    const struct engine_batch_item *items;
    struct step_batch b;
    (void)engine_step_begin(e, 0, &items);
    engine_step_batch(e, &b);
    engine_step_end(e, 0);
    assert_null(kv_validate(&e->kv));
    return b;
}

#define PULLED (ENGINE_REMOTE_KV | ENGINE_RESERVE)

/* ---- how a batch is counted */

static void prompt_and_decode_parts(void **state)
{
    (void)state;
    for (int v = 0; v < 2; v++) {
        bool newer = v;
        struct engine_config c = small(newer ? DYNOSIM_1_6_1 : DYNOSIM_1_4_2, 100);
        c.max_num_batched_tokens = 32;
        struct engine *e = engine_new(&c, 1);
        submit(e, 0, 1, 20, 5, 0);
        submit(e, 0, 2, 30, 5, 0);
        struct step_batch b = pass(e); /* 20 and 12 tokens: 5 and 3 blocks */
        assert_int_equal(b.prefill_reqs, 2);
        assert_int_equal(b.prefill_tok, 32);
        assert_int_equal(b.prefill_ctx_tok, 0);
        assert_int_equal(b.total_kv_tok, 400);
        assert_int_equal(b.decode_reqs, newer ? 0 : 1);
        assert_int_equal(b.active_kv_tok, newer ? 0 : 8 * 4);
        b = pass(e); /* one token more of the first, 18 of the second: 6 and 8 blocks */
        assert_int_equal(b.prefill_reqs, 1);
        assert_int_equal(b.prefill_tok, 18);
        assert_int_equal(b.prefill_ctx_tok, 12);
        assert_int_equal(b.decode_reqs, newer ? 1 : 2);
        assert_int_equal(b.active_kv_tok, newer ? 21 : 14 * 4);
        b = pass(e);
        assert_int_equal(b.prefill_reqs, 0);
        assert_int_equal(b.decode_reqs, 2);
        assert_int_equal(b.decode_ctx_tok, 22 + 31);
        assert_int_equal(b.active_kv_tok, newer ? 53 : 14 * 4);
        engine_free(e);
    }
}

/* 7, 8 and 10 tokens count as three times 8; with 8 of 20 known already, as one of 20 less one of 8. */
static void prompts_count_by_whole_means(void **state)
{
    (void)state;
    struct engine_config c = small(DYNOSIM_1_4_2, 100);
    c.max_num_batched_tokens = 33;
    struct engine *e = engine_new(&c, 1);
    submit(e, 0, 1, 7, 2, 0);
    submit(e, 0, 2, 8, 2, 0);
    submit(e, 0, 3, 10, 2, 0);
    submit(e, 0, 4, 20, 2, 0);
    submit(e, 0, 5, 6, 2, 0);
    struct step_batch b = pass(e); /* 7, 8, 10 and 8 */
    assert_int_equal(b.prefill_reqs, 4);
    assert_int_equal(b.prefill_tok, 4 * 8);
    b = pass(e); /* from 8 to 20 and from 0 to 6: means 4 and 13 */
    assert_int_equal(b.prefill_reqs, 2);
    assert_int_equal(b.prefill_tok, 2 * 9);
    assert_int_equal(b.prefill_ctx_tok, 8);
    engine_free(e);
}

/* SGLang itself would not begin the second prompt in the first pass: 24 and 40 tokens, in pages, are more than
 * max_prefill_tokens. */
static void imitates_sglang(void **state)
{
    (void)state;
    struct engine_config c = small(DYNOSIM_1_6_1, 100);
    c.dynosim_engine = DYNOSIM_SGLANG;
    c.max_num_batched_tokens = 32;
    c.max_prefill_tokens = 40;
    struct engine *e = engine_new(&c, 1);
    submit(e, 0, 1, 21, 5, 0);
    submit(e, 0, 2, 40, 5, 0);
    struct step_batch b = pass(e); /* 21 and 8 of 40: two times 14 */
    assert_int_equal(b.prefill_reqs, 2);
    assert_int_equal(b.prefill_tok, 2 * 14);
    assert_int_equal(b.decode_reqs, 0);
    b = pass(e); /* prefills go first; nobody decodes meanwhile */
    assert_int_equal(b.prefill_reqs, 1);
    assert_int_equal(b.prefill_tok, 32);
    assert_int_equal(b.decode_reqs, 0);
    b = pass(e);
    assert_int_equal(b.prefill_reqs, 0);
    assert_int_equal(b.decode_reqs, 2);
    assert_int_equal(b.active_kv_tok, 22 + 41);
    engine_free(e);
}

static void prefill_worker_has_no_decode_part(void **state)
{
    (void)state;
    for (int v = 0; v < 2; v++) {
        struct engine_config c = small(v ? DYNOSIM_1_6_1 : DYNOSIM_1_4_2, 100);
        c.role = ROLE_PREFILL;
        struct engine *e = engine_new(&c, 1);
        submit(e, 0, 1, 20, 5, ENGINE_PREFILL_ONLY);
        struct step_batch b = pass(e);
        assert_int_equal(b.prefill_tok, 20);
        assert_int_equal(b.decode_reqs, 0);
        engine_free(e);
    }
}

/* Short of blocks the second one is preempted. It comes back with 16 tokens of prompt and what it generated: only
 * the prompt counts, and only where prompts do. */
static void recomputed(bool decode_worker)
{
    struct engine_config c = small(DYNOSIM_1_6_1, 10);
    c.enable_prefix_caching = false;
    c.role = decode_worker ? ROLE_DECODE : ROLE_BOTH;
    struct engine *e = engine_new(&c, 1);
    uint32_t slot[2];
    for (uint32_t i = 0; i < 2; i++)
        slot[i] = submit(e, 0, i, 16, 12, decode_worker ? PULLED : 0);
    (void)pass(e);
    for (uint32_t i = 0; i < 2 && decode_worker; i++)
        engine_arrived(e, 0, slot[i]);
    while (!e->stats.preemptions)
        pass(e);
    while (!e->stats.done)
        pass(e);
    assert_int_equal(e->waiting.n, 1);
    const struct seq *q = &e->seqs[deque_at(&e->waiting, 0)];
    assert_true(q->out > 0);
    uint32_t tok = seq_tokens(q);
    assert_int_equal(tok, 16 + q->out);
    const struct engine_batch_item *items;
    struct step_batch b;
    assert_int_equal(engine_step_begin(e, 0, &items), 1);
    assert_int_equal(items[0].scheduled, tok);
    engine_step_batch(e, &b);
    assert_int_equal(b.prefill_reqs, decode_worker ? 0 : 1);
    assert_int_equal(b.prefill_tok, decode_worker ? 0 : 16);
    assert_int_equal(b.decode_reqs, 1);
    engine_step_end(e, 0);
    engine_free(e);
}

static void what_is_computed_again(void **state)
{
    (void)state;
    recomputed(false);
    recomputed(true);
}

/* ---- a decode worker */

/* The loop of a caller that keeps time, up to the next thing that happens; returns its time. */
static int64_t next(struct engine *e, int64_t now)
{
    engine_start(e, now, PS_NEVER);
    int64_t t = engine_next_ps(e);
    if (t != PS_NEVER)
        engine_run(e, t);
    return t;
}

/* Events of a kind since the last call, and forgets all. */
static uint32_t events(struct engine *e, enum engine_event_kind kind)
{
    uint32_t n, found = 0;
    const struct engine_event *ev = engine_events(e, &n);
    for (uint32_t i = 0; i < n; i++)
        found += ev[i].kind == kind;
    engine_clear_events(e);
    return found;
}

static struct engine *decode_worker(uint32_t blocks, uint32_t seqs)
{
    struct engine_config c = small(DYNOSIM_1_6_1, blocks);
    c.role = ROLE_DECODE;
    c.enable_prefix_caching = false;
    c.max_num_seqs = seqs;
    struct engine *e = engine_new(&c, 1);
    engine_set_stepping(e, true);
    return e;
}

static void idle_reserves_all_busy_one_a_pass(void **state)
{
    (void)state;
    struct engine *e = decode_worker(40, 8);
    uint32_t first = submit(e, 0, 0, 16, 20, PULLED);
    submit(e, 0, 1, 16, 20, PULLED);
    submit(e, 0, 2, 16, 20, PULLED);
    assert_int_equal(next(e, 0), PS_NEVER);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 3);
    engine_arrived(e, PS_PER_MS, first);
    engine_start(e, PS_PER_MS, PS_NEVER);
    submit(e, 2 * PS_PER_MS, 3, 16, 20, PULLED); /* while it runs */
    submit(e, 2 * PS_PER_MS, 4, 16, 20, PULLED);
    int64_t t = engine_next_ps(e);
    engine_run(e, t);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 0);
    t = next(e, t);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 1);
    (void)next(e, t);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 1);
    engine_free(e);
}

/* Each request whose KV came makes room for one try more. */
static void one_more_for_each_that_came(void **state)
{
    (void)state;
    struct engine *e = decode_worker(60, 9);
    uint32_t slot[3];
    for (uint32_t i = 0; i < 3; i++)
        slot[i] = submit(e, 0, i, 16, 20, PULLED);
    (void)next(e, 0);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 3);
    engine_arrived(e, PS_PER_MS, slot[0]);
    engine_start(e, PS_PER_MS, PS_NEVER);
    for (uint32_t i = 3; i < 8; i++)
        submit(e, 2 * PS_PER_MS, i, 16, 20, PULLED);
    engine_arrived(e, 2 * PS_PER_MS, slot[1]);
    engine_arrived(e, 2 * PS_PER_MS, slot[2]);
    int64_t t = engine_next_ps(e);
    engine_run(e, t);
    (void)next(e, t); /* 1 as always, 2 for those two */
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 3);
    assert_int_equal(e->n_running, 3);
    engine_free(e);
}

static void refused_waits_for_a_departure(void **state)
{
    (void)state;
    struct engine *e = decode_worker(10, 8);
    uint32_t first = submit(e, 0, 0, 16, 5, PULLED);
    (void)next(e, 0);
    engine_arrived(e, 0, first);
    engine_start(e, 0, PS_NEVER); /* 4 blocks, later 5 */
    submit(e, PS_PER_MS, 1, 28, 5, PULLED);
    submit(e, PS_PER_MS, 2, 4, 5, PULLED); /* one block would do, but it is not its turn */
    engine_clear_events(e);
    int64_t t = engine_next_ps(e);
    engine_run(e, t);
    while (!e->stats.done) {
        assert_int_equal(events(e, ENGINE_EV_RESERVED), 0);
        t = next(e, t);
    }
    assert_int_equal(events(e, ENGINE_EV_DONE), 1);
    (void)next(e, t);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 1);
    engine_free(e);
}

/* Refused for want of 7 blocks, it would need 3 once the first one's KV has come, which starts in the same way: but
 * it is not looked at before that one is gone. */
static void refused_stays_so_whatever_is_cached(void **state)
{
    (void)state;
    struct engine_config c = small(DYNOSIM_1_6_1, 10);
    c.role = ROLE_DECODE;
    struct engine *e = engine_new(&c, 1);
    uint64_t keys[7];
    for (uint32_t i = 0; i < 7; i++)
        keys[i] = request_chain_key(i ? keys[i - 1] : 0, i);
    struct request_spec s[2] = {
        {.uid = 1, .prompt_tok = 16, .output_tok = 5, .keys = keys, .n_keys = 4, .key_tok = 4},
        {.uid = 2, .prompt_tok = 28, .output_tok = 5, .keys = keys, .n_keys = 7, .key_tok = 4}};
    uint32_t slot[2];
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(engine_submit(e, 0, &s[i], i, PULLED, &slot[i]), 0);
    (void)next(e, 0);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 1);
    engine_arrived(e, PS_PER_MS, slot[0]);
    int64_t t = PS_PER_MS;
    while (!e->stats.done) {
        t = next(e, t);
        assert_int_equal(e->n_aside, 0);
    }
    engine_clear_events(e);
    (void)next(e, t);
    uint32_t n;
    const struct engine_event *ev = engine_events(e, &n);
    assert_int_equal(n, 1);
    assert_int_equal(ev->kind, ENGINE_EV_RESERVED);
    assert_int_equal(ev->record.reused_tok, 16);
    engine_free(e);
}

static void those_that_came_take_no_budget(void **state)
{
    (void)state;
    struct engine_config c = small(DYNOSIM_1_6_1, 100);
    c.role = ROLE_DECODE;
    c.max_num_batched_tokens = 10;
    c.enable_prefix_caching = false;
    struct engine *e = engine_new(&c, 1);
    const struct engine_batch_item *items;
    uint32_t slot[10];
    for (uint32_t i = 0; i < 10; i++)
        slot[i] = submit(e, 0, i, 16, 20, PULLED);
    (void)next(e, 0);
    for (uint32_t i = 0; i < 3; i++)
        engine_arrived(e, PS_PER_MS, slot[i]);
    assert_int_equal(engine_step_begin(e, PS_PER_MS, &items), 3);
    engine_step_end(e, PS_PER_MS);
    for (uint32_t i = 3; i < 10; i++)
        engine_arrived(e, PS_PER_MS, slot[i]);
    submit(e, PS_PER_MS, 10, 30, 4, 0); /* the budget is for this one: 7 of its tokens */
    assert_int_equal(engine_step_begin(e, PS_PER_MS, &items), 11);
    for (uint32_t i = 0; i < 11; i++)
        assert_int_equal(items[i].scheduled, items[i].handle == 10 ? 7 : 1);
    engine_step_end(e, PS_PER_MS);
    engine_free(e);
}

/* The second one is preempted while the KV of the third comes. Who enters first when there is room? */
static uint32_t next_to_enter(bool others_pending)
{
    struct engine *e = decode_worker(16, 3);
    uint32_t slot[3];
    for (uint32_t i = 0; i < 2; i++)
        slot[i] = submit(e, 0, i, 16, 24, PULLED);
    slot[2] = submit(e, 0, 2, 8, 24, PULLED);
    (void)next(e, 0);
    assert_int_equal(events(e, ENGINE_EV_RESERVED), 3);
    engine_arrived(e, 0, slot[0]);
    engine_arrived(e, 0, slot[1]);
    int64_t t = 0;
    while (!e->stats.preemptions)
        t = next(e, t);
    engine_arrived(e, t, slot[2]);
    if (others_pending)
        submit(e, t, 3, 60, 1, PULLED);
    assert_int_equal(e->n_running, 1);
    uint32_t handle = 0; /* of the first that runs and is another one */
    while (!handle) {
        t = next(e, t);
        for (uint32_t i = 0; i < e->n_running && !handle; i++)
            handle = e->seqs[e->running[i]].handle;
    }
    engine_free(e);
    return handle;
}

static void preempted_enter_first_if_none_is_pending(void **state)
{
    (void)state;
    assert_int_equal(next_to_enter(true), 2);
    assert_int_equal(next_to_enter(false), 1);
}

/* ---- times */

struct outcome {
    int64_t first_ps, second_ps, end_ps;
    uint64_t passes;
    struct hist *itl;
};

/* Two requests of 10 and 600 tokens on 400 blocks of 4; another one, too long to fit beside them, waits. */
static struct outcome played(enum dynosim_version version, bool stepping)
{
    struct engine_config c = small(version, 400);
    struct outcome o = {.itl = hist_new()};
    struct engine *e = engine_new(&c, 1);
    engine_set_itl(e, o.itl);
    engine_set_stepping(e, stepping);
    submit(e, 0, 0, 10, 600, 0);
    submit(e, 0, 1, 10, 600, 0);
    submit(e, 0, 2, 1590, 2, 0);
    uint32_t n = 0;
    const struct engine_event *ev = NULL;
    for (int64_t t = 0; !n; ev = engine_events(e, &n))
        t = next(e, t);
    assert_int_equal(ev->kind, ENGINE_EV_DONE);
    o.first_ps = ev->record.first_token_ps;
    o.second_ps = ev->record.second_token_ps;
    o.end_ps = ev->record.end_ps;
    o.passes = e->stats.passes;
    engine_free(e);
    return o;
}

static void times_by_hand(void **state)
{
    (void)state;
    for (int v = 0; v < 2; v++) {
        enum dynosim_version version = v ? DYNOSIM_1_6_1 : DYNOSIM_1_4_2;
        double first = 1.2 + (v ? 0 : 2 + 10 * 3 / 200.), ms = first, second = 0;
        for (uint32_t tok = 11; tok < 610; tok++) {
            ms += 2 + 10 * (v ? tok / 800. : (tok + 3) / 4 / 200.);
            second = tok == 11 ? ms : second;
        }
        struct outcome fast = played(version, false), slow = played(version, true);
        assert_true(llabs(fast.first_ps - (int64_t)(first * 1e9)) < 10);
        assert_true(llabs(fast.second_ps - (int64_t)(second * 1e9)) < 10);
        assert_true(llabs(fast.end_ps - (int64_t)(ms * 1e9)) < 1000);
        assert_int_equal(fast.first_ps, slow.first_ps);
        assert_int_equal(fast.second_ps, slow.second_ps);
        assert_int_equal(fast.end_ps, slow.end_ps);
        assert_int_equal(fast.passes, 600);
        assert_int_equal(slow.passes, 600);
        assert_int_equal(hist_count(fast.itl), 2 * 599);
        assert_int_equal(hist_min_ps(fast.itl), hist_min_ps(slow.itl));
        assert_int_equal(hist_max_ps(fast.itl), hist_max_ps(slow.itl));
        assert_true(hist_mean_ps(fast.itl) == hist_mean_ps(slow.itl));
        assert_true(hist_std_ps(fast.itl) == hist_std_ps(slow.itl));
        for (int q = 0; q <= 20; q++)
            assert_true(hist_quantile_ps(fast.itl, q / 20.) == hist_quantile_ps(slow.itl, q / 20.));
        hist_free(fast.itl);
        hist_free(slow.itl);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_and_decode_parts),
        cmocka_unit_test(prompts_count_by_whole_means),
        cmocka_unit_test(imitates_sglang),
        cmocka_unit_test(prefill_worker_has_no_decode_part),
        cmocka_unit_test(what_is_computed_again),
        cmocka_unit_test(idle_reserves_all_busy_one_a_pass),
        cmocka_unit_test(one_more_for_each_that_came),
        cmocka_unit_test(refused_waits_for_a_departure),
        cmocka_unit_test(refused_stays_so_whatever_is_cached),
        cmocka_unit_test(those_that_came_take_no_budget),
        cmocka_unit_test(preempted_enter_first_if_none_is_pending),
        cmocka_unit_test(times_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
