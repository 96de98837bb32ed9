/* How KV gets from prefill to decode workers: both orders of taking places, what is moved, leases, workers that
 * die, drain, start and slow down in the middle of it. Times are computed by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "predictor/cluster.h"
#include "predictor/cluster_internal.h"
#include "predictor/units.h"

#define MS PS_PER_MS
#define BLOCK 16u
#define MAX_EVENTS 256u

/* Workers 0 and 1 prefill, 2 and 3 decode. A pass with prompt tokens takes 10 ms, one that only decodes 1 ms; a
 * block is moved in 1 ms, after 2 ms of latency. */
struct bed {
    struct cluster *c;
    struct request_spec spec[8];
    uint64_t keys[8][32];
    struct cluster_event log[MAX_EVENTS];
    uint32_t n_log;
    uint32_t to; /* where finished prefills are sent; UINT32_MAX: nowhere */
    uint32_t to_of[8];
    int64_t now;
};

static void bed_init(struct bed *b, struct cluster_options o, const struct fault *faults,
                     uint32_t n_faults)
{
    struct worker_config w[4] = {0};
    struct step_params p = {.form = STEP_FIXED, .fixed_prefill_ms = 10, .fixed_decode_ms = 1};
    const char *why;
    memset(b, 0, sizeof *b);
    b->to = 2;
    for (uint32_t i = 0; i < 4; i++) {
        struct engine_config *c = &w[i].engine;
        engine_config_default(c, SCHED_VLLM);
        assert_int_equal(step_model_init(&c->step, &p, &why), 0);
        c->block_size = BLOCK;
        c->num_gpu_blocks = 21;
        c->kv_bytes_per_token = 1000000;
        c->role = i < 2 ? ROLE_PREFILL : ROLE_DECODE;
        w[i].starts_up = true;
        w[i].startup_ps = 50 * MS;
        (void)snprintf(w[i].domain, sizeof w[i].domain, "rack%u/gpu%u", i / 2, i);
    }
    o.link = (struct link_config){.latency_ms = 2, .bandwidth_gb_s = 16};
    o.first_tokens = true;
    b->c = cluster_new(w, 4, &o);
    assert_non_null(b->c);
    assert_int_equal(cluster_add_faults(b->c, faults, n_faults), 0);
}

static const struct request_spec *request(struct bed *b, uint32_t handle, uint64_t family,
                                          uint32_t blocks, uint32_t output)
{
    for (uint32_t i = 0; i < blocks; i++)
        b->keys[handle][i] = request_chain_key(i ? b->keys[handle][i - 1] : family, i);
    b->spec[handle] = (struct request_spec){.uid = handle + 1,
                                            .prompt_tok = blocks * BLOCK,
                                            .output_tok = output,
                                            .max_tokens = output,
                                            .keys = b->keys[handle],
                                            .n_keys = blocks,
                                            .key_tok = BLOCK};
    b->to_of[handle] = b->to;
    return &b->spec[handle];
}

static void hear(struct bed *b)
{
    struct cluster_event ev;
    while (cluster_poll(b->c, &ev)) {
        assert_true(b->n_log < MAX_EVENTS);
        b->log[b->n_log++] = ev;
        if (ev.kind == CLUSTER_EV_PREFILL_DONE && b->to_of[ev.handle] != UINT32_MAX)
            assert_int_equal(
                cluster_handoff(b->c, b->now, b->to_of[ev.handle], &b->spec[ev.handle], ev.handle),
                0);
    }
}

/* To `until`, and what happens at it, but for the passes that begin then. */
static void run(struct bed *b, int64_t until)
{
    int64_t t;
    while ((t = cluster_next_ps(b->c)) <= until && t < PS_NEVER) {
        if (t > b->now)
            cluster_start(b->c, b->now);
        b->now = t;
        cluster_advance(b->c, t);
        hear(b);
        if (cluster_next_ps(b->c) > t)
            cluster_start(b->c, t);
    }
    if (until < PS_NEVER) {
        b->now = until;
        cluster_advance(b->c, until);
        hear(b);
    }
}

static void submit(struct bed *b, int64_t now, uint32_t worker, uint32_t handle)
{
    run(b, now);
    assert_int_equal(cluster_submit(b->c, now, worker, &b->spec[handle], handle, true), 0);
    cluster_start(b->c, now);
}

static void submit_pair(struct bed *b, int64_t now, uint32_t worker, uint32_t decode,
                        uint32_t handle)
{
    run(b, now);
    assert_int_equal(cluster_submit_pair(b->c, now, worker, decode, &b->spec[handle], handle), 0);
    cluster_start(b->c, now);
}

/* The n-th event of a kind about a request (or worker, for WORKER_*). */
static const struct cluster_event *event(const struct bed *b, enum cluster_event_kind kind,
                                         uint32_t who)
{
    for (uint32_t i = 0; i < b->n_log; i++) {
        bool worker = kind >= CLUSTER_EV_WORKER_UP;
        if (b->log[i].kind == kind && (worker ? b->log[i].worker : b->log[i].handle) == who)
            return &b->log[i];
    }
    return NULL;
}

static uint32_t free_blocks(const struct bed *b, uint32_t worker)
{
    return engine_free_blocks(cluster_engine(b->c, worker));
}

static void bed_deinit(struct bed *b)
{
    for (uint32_t i = 0; i < 4; i++) {
        const struct engine *e = cluster_engine(b->c, i);
        assert_true(engine_empty(e));
        assert_int_equal(engine_free_blocks(e), 20);
    }
    cluster_free(b->c);
}

static struct cluster_options options(enum transfer_mode transfer, int64_t lease_ps)
{
    return (struct cluster_options){.transfer = transfer, .kv_lease_ps = lease_ps, .seed = 1};
}

/* ---- the two orders */

static void source_first(void **state)
{
    (void)state;
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), NULL, 0);
    request(&b, 0, 7, 6, 5);
    submit(&b, 0, 0, 0);
    run(&b, 15 * MS); /* computed at 10 ms; moved until 10 + 2 + 6 = 18 */
    assert_int_equal(free_blocks(&b, 0), 20 - 6);
    assert_int_equal(free_blocks(&b, 2), 20 - 6);
    run(&b, PS_NEVER);
    assert_int_equal(event(&b, CLUSTER_EV_PREFILL_DONE, 0)->at_ps, 10 * MS);
    /* a pass over the last token of the prompt, which is the first of the answer */
    const struct cluster_event *done = event(&b, CLUSTER_EV_DONE, 0);
    assert_int_equal(done->worker, 2);
    assert_int_equal(done->record.first_admit_ps, 18 * MS);
    assert_int_equal(done->record.first_token_ps, 28 * MS);
    assert_int_equal(done->at_ps, 32 * MS);
    bed_deinit(&b);
}

/* The prefill does not begin before the decode worker has room. */
static void destination_first(void **state)
{
    (void)state;
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), NULL, 0);
    request(&b, 0, 7, 15, 3);
    request(&b, 1, 8, 6, 2);
    submit_pair(&b, 0, 0, 2, 0);
    run(&b, 1 * MS);
    assert_int_equal(free_blocks(&b, 2), 20 - 15);
    submit_pair(&b, 1 * MS, 1, 2, 1); /* 6 blocks more do not fit */
    run(&b, 20 * MS);
    struct engine_load load;
    engine_get_load(cluster_engine(b.c, 1), 20 * MS, &load);
    assert_int_equal(load.running + load.waiting, 0);
    run(&b, PS_NEVER);
    /* 10 + 2 + 15 = 27: there; 37, 38, 39: three tokens */
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->record.first_admit_ps, 27 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->at_ps, 39 * MS);
    /* its blocks are reserved then; 49 computed, 57 moved, 67 and 68 */
    assert_int_equal(event(&b, CLUSTER_EV_PREFILL_DONE, 1)->at_ps, 49 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 1)->at_ps, 68 * MS);
    bed_deinit(&b);
}

/* Another decode worker may be chosen in the end; the blocks of the first are given back. */
static void a_reservation_can_be_left(void **state)
{
    (void)state;
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), NULL, 0);
    b.to = 3;
    request(&b, 0, 7, 6, 5);
    submit_pair(&b, 0, 0, 2, 0);
    run(&b, 11 * MS);
    assert_int_equal(free_blocks(&b, 2), 20);
    run(&b, PS_NEVER);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->worker, 3);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->at_ps, 32 * MS);
    bed_deinit(&b);
}

static void only_what_is_missing_is_moved(void **state)
{
    (void)state;
    for (int pair = 0; pair < 2; pair++) {
        struct bed b;
        bed_init(&b, options(TRANSFER_DESTINATION_MISSING, PS_NEVER), NULL, 0);
        request(&b, 0, 7, 6, 2);
        request(&b, 1, 7, 10, 2); /* 6 of its 10 blocks are cached then */
        for (uint32_t h = 0; h < 2; h++) {
            if (pair)
                submit_pair(&b, h * 100 * MS, 0, 2, h);
            else
                submit(&b, h * 100 * MS, 0, h);
        }
        run(&b, PS_NEVER);
        assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->record.first_admit_ps, 18 * MS);
        assert_int_equal(event(&b, CLUSTER_EV_DONE, 1)->record.first_admit_ps, 116 * MS);
        assert_int_equal(event(&b, CLUSTER_EV_DONE, 1)->record.reused_tok, 6 * BLOCK);
        bed_deinit(&b);
    }
}

static void transfers_share_the_uplink(void **state)
{
    (void)state;
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), NULL, 0);
    request(&b, 0, 7, 5, 1);
    b.to = 3;
    request(&b, 1, 8, 5, 1);
    submit(&b, 0, 0, 0);
    submit(&b, 0, 0, 1); /* waits for the pass of the first: computed at 20 ms */
    run(&b, PS_NEVER);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->record.first_admit_ps, 17 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 1)->record.first_admit_ps, 27 * MS);
    bed_deinit(&b);

    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), NULL, 0);
    request(&b, 0, 7, 5, 1);
    b.to = 3;
    request(&b, 1, 8, 5, 1);
    run(&b, 0);
    assert_int_equal(cluster_submit(b.c, 0, 0, &b.spec[0], 0, true), 0);
    assert_int_equal(cluster_submit(b.c, 0, 0, &b.spec[1], 1, true), 0);
    cluster_start(b.c, 0);
    run(&b, PS_NEVER); /* both computed at 10, 10 blocks through one link, to two workers */
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->record.first_admit_ps, 22 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 1)->record.first_admit_ps, 22 * MS);
    bed_deinit(&b);
}

/* ---- leases */

static void a_pull_that_is_too_slow_is_lost(void **state)
{
    (void)state;
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, 7 * MS), NULL, 0);
    request(&b, 0, 7, 6, 5); /* needs 8 ms */
    request(&b, 1, 8, 5, 5); /* 7: just in time */
    submit(&b, 0, 0, 0);
    run(&b, 16 * MS);
    assert_null(event(&b, CLUSTER_EV_LOST, 0));
    run(&b, 17 * MS);
    const struct cluster_event *lost = event(&b, CLUSTER_EV_LOST, 0);
    assert_non_null(lost);
    assert_int_equal(lost->at_ps, 17 * MS);
    assert_int_equal(lost->worker, 0);
    assert_false(lost->partial);
    assert_int_equal(free_blocks(&b, 0), 20);
    assert_int_equal(free_blocks(&b, 2), 20);
    submit(&b, 100 * MS, 0, 1);
    run(&b, PS_NEVER);
    assert_non_null(event(&b, CLUSTER_EV_DONE, 1));
    assert_null(event(&b, CLUSTER_EV_LOST, 1));
    bed_deinit(&b);
}

/* KV that nobody asks for, and a request that is told of it twice. */
static void leases_run_out_in_order(void **state)
{
    (void)state;
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, 30 * MS), NULL, 0);
    b.to = UINT32_MAX;
    for (uint32_t h = 0; h < 4; h++)
        request(&b, h, h + 1, 2, 1);
    for (uint32_t h = 0; h < 4; h++)
        submit(&b, h * 11 * MS, h % 2, h); /* computed at 10, 21, 32, 43 */
    run(&b, 35 * MS);
    assert_int_equal(cluster_next_ps(b.c), 40 * MS);
    cluster_cancel(b.c, 36 * MS, 0);
    run(&b, 44 * MS);
    assert_int_equal(cluster_next_ps(b.c), 51 * MS);
    assert_int_equal(cluster_handoff(b.c, 45 * MS, 2, &b.spec[1], 1), 0);
    assert_int_equal(cluster_handoff(b.c, 45 * MS, 2, &b.spec[1], 1), WEIR_E_STATE);
    cluster_start(b.c, 45 * MS);
    run(&b, PS_NEVER);
    assert_null(event(&b, CLUSTER_EV_LOST, 0));
    assert_non_null(event(&b, CLUSTER_EV_DONE, 1));
    assert_int_equal(event(&b, CLUSTER_EV_LOST, 2)->at_ps, 62 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_LOST, 3)->at_ps, 73 * MS);
    assert_int_equal(cluster_next_ps(b.c), PS_NEVER);
    bed_deinit(&b);
}

/* ---- workers come and go */

static void a_dead_decode_worker_frees_the_source(void **state)
{
    (void)state;
    struct fault down = {.at_ps = 14 * MS, .kind = FAULT_DOWN, .worker = 2};
    for (int pair = 0; pair < 2; pair++) {
        struct bed b;
        bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), &down, 1);
        request(&b, 0, 7, 6, 5);
        request(&b, 1, 8, 6, 5);
        if (pair) { /* the second one's prefill is running when its place is gone */
            submit_pair(&b, 0, 0, 2, 0);
            submit_pair(&b, 5 * MS, 1, 2, 1);
        } else {
            submit(&b, 0, 0, 0);
        }
        run(&b, PS_NEVER);
        assert_int_equal(event(&b, CLUSTER_EV_WORKER_DOWN, 2)->at_ps, 14 * MS);
        assert_int_equal(event(&b, CLUSTER_EV_LOST, 0)->at_ps, 14 * MS);
        assert_int_equal(event(&b, CLUSTER_EV_LOST, 0)->worker, 2);
        assert_int_equal(event(&b, CLUSTER_EV_LOST, 1) != NULL, pair);
        assert_null(event(&b, CLUSTER_EV_DONE, 0));
        bed_deinit(&b);
    }
}

static void a_dead_prefill_worker_frees_the_destination(void **state)
{
    (void)state;
    struct fault down = {.at_ps = 14 * MS, .kind = FAULT_DOWN, .worker = UINT32_MAX};
    struct bed b;
    (void)snprintf(down.domain, sizeof down.domain, "rack0");
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), &down, 1);
    request(&b, 0, 7, 6, 5);
    request(&b, 1, 8, 6, 5);
    request(&b, 2, 9, 15, 5);
    submit_pair(&b, 0, 0, 2, 0);      /* moving then */
    submit_pair(&b, 5 * MS, 1, 2, 1); /* in its prefill */
    submit_pair(&b, 6 * MS, 1, 2, 2); /* waits for a place */
    run(&b, PS_NEVER);
    for (uint32_t h = 0; h < 3; h++)
        assert_int_equal(event(&b, CLUSTER_EV_LOST, h)->at_ps, 14 * MS);
    assert_non_null(event(&b, CLUSTER_EV_WORKER_DOWN, 0));
    assert_non_null(event(&b, CLUSTER_EV_WORKER_DOWN, 1));
    assert_null(event(&b, CLUSTER_EV_WORKER_DOWN, 2));
    bed_deinit(&b);
}

/* A drained worker ends what it has, goes down then, and holds its GPUs no longer. */
static void a_drained_worker_leaves_when_it_is_empty(void **state)
{
    (void)state;
    struct fault drain = {.at_ps = 12 * MS, .kind = FAULT_DRAIN, .worker = 2};
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), &drain, 1);
    request(&b, 0, 7, 6, 5);
    request(&b, 1, 8, 6, 5);
    b.to_of[1] = UINT32_MAX;
    submit(&b, 0, 0, 0); /* on its way to worker 2 at 12 ms */
    run(&b, 12 * MS);
    assert_false(cluster_worker_up(b.c, 2));
    submit(&b, 12 * MS, 1, 1);
    run(&b, 25 * MS);
    assert_int_equal(cluster_handoff(b.c, 25 * MS, 2, &b.spec[1], 1), WEIR_E_STATE);
    assert_int_equal(cluster_submit(b.c, 25 * MS, 2, &b.spec[1], 5, false), WEIR_E_STATE);
    assert_int_equal(cluster_handoff(b.c, 25 * MS, 3, &b.spec[1], 1), 0);
    cluster_start(b.c, 25 * MS);
    run(&b, PS_NEVER);
    assert_int_equal(event(&b, CLUSTER_EV_WORKER_DRAIN, 2)->at_ps, 12 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->worker, 2);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 0)->at_ps, 32 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_WORKER_DOWN, 2)->at_ps, 32 * MS);
    assert_non_null(event(&b, CLUSTER_EV_DONE, 1));
    assert_int_equal(cluster_worker_held_ps(b.c, 2, 1000 * MS), 32 * MS);
    assert_int_equal(cluster_worker_held_ps(b.c, 3, 1000 * MS), 1000 * MS);
    bed_deinit(&b);
}

/* A prefill worker keeps what has been promised to it, and its KV until it is pulled. */
static void a_drained_prefill_worker_waits_for_its_kv(void **state)
{
    (void)state;
    struct fault drain = {.at_ps = 3 * MS, .kind = FAULT_DRAIN, .worker = 0};
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), &drain, 1);
    request(&b, 0, 7, 15, 3);
    request(&b, 1, 8, 6, 2);
    submit_pair(&b, 0, 0, 2, 0);
    submit_pair(&b, 1 * MS, 0, 2, 1); /* has no place before the first is done at 39 ms */
    run(&b, PS_NEVER);
    assert_int_equal(event(&b, CLUSTER_EV_DONE, 1)->at_ps, 68 * MS);
    assert_int_equal(event(&b, CLUSTER_EV_WORKER_DOWN, 0)->at_ps, 57 * MS);
    bed_deinit(&b);
}

static void start_up_counts_and_a_drain_can_be_taken_back(void **state)
{
    (void)state;
    struct fault f[] = {
        {.at_ps = 10 * MS, .kind = FAULT_DOWN, .worker = 3},
        {.at_ps = 20 * MS, .kind = FAULT_UP, .worker = 3}, /* ready at 70 */
        {.at_ps = 30 * MS, .kind = FAULT_UP, .worker = 3}, /* is starting */
        {.at_ps = 100 * MS, .kind = FAULT_DOWN, .worker = 3},
        {.at_ps = 200 * MS, .kind = FAULT_UP, .worker = 3},
        {.at_ps = 220 * MS, .kind = FAULT_DRAIN, .worker = 3}, /* before it was ready */
        {.at_ps = 300 * MS, .kind = FAULT_DRAIN, .worker = 3}, /* is down */
        {.at_ps = 305 * MS, .kind = FAULT_DRAIN, .worker = 0},
        {.at_ps = 308 * MS, .kind = FAULT_UP, .worker = 0}, /* still there */
    };
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), f, 9);
    request(&b, 0, 7, 6, 5);
    submit(&b, 300 * MS, 0, 0);
    run(&b, PS_NEVER);
    assert_int_equal(event(&b, CLUSTER_EV_WORKER_UP, 3)->at_ps, 70 * MS);
    assert_int_equal(cluster_worker_held_ps(b.c, 3, 1000 * MS), (10 + 80 + 20) * MS);
    assert_int_equal(event(&b, CLUSTER_EV_WORKER_UP, 0)->at_ps, 308 * MS);
    assert_null(event(&b, CLUSTER_EV_WORKER_DOWN, 0));
    assert_null(event(&b, CLUSTER_EV_WORKER_DRAIN, 3));
    assert_true(cluster_worker_up(b.c, 0));
    assert_non_null(event(&b, CLUSTER_EV_DONE, 0));
    bed_deinit(&b);
}

static void bad_faults_are_refused(void **state)
{
    (void)state;
    struct fault unsorted[] = {{.at_ps = 2, .kind = FAULT_UP}, {.at_ps = 1, .kind = FAULT_UP}};
    struct fault nobody = {.kind = FAULT_DOWN, .worker = 4};
    struct fault still = {.kind = FAULT_SLOW, .worker = 0, .factor = 0};
    struct bed b;
    bed_init(&b, options(TRANSFER_FULL_PROMPT, PS_NEVER), NULL, 0);
    assert_int_equal(cluster_add_faults(b.c, unsorted, 2), WEIR_E_INVALID);
    assert_int_equal(cluster_add_faults(b.c, &nobody, 1), WEIR_E_INVALID);
    assert_int_equal(cluster_add_faults(b.c, &still, 1), WEIR_E_INVALID);
    bed_deinit(&b);
}

/* A cancelled request leaves every worker, wherever it is. */
static void a_cancelled_request_is_gone_everywhere(void **state)
{
    (void)state;
    static const int64_t at[] = {1 * MS, 5 * MS, 12 * MS, 20 * MS, 30 * MS};
    for (uint32_t i = 0; i < 5; i++) {
        for (int pair = 0; pair < 2; pair++) {
            struct bed b;
            bed_init(&b, options(TRANSFER_FULL_PROMPT, 1000 * MS), NULL, 0);
            request(&b, 0, 7, 6, 5);
            if (pair)
                submit_pair(&b, 0, 0, 2, 0);
            else
                submit(&b, 0, 0, 0);
            run(&b, at[i]);
            cluster_cancel(b.c, at[i], 0);
            cluster_start(b.c, at[i]);
            run(&b, PS_NEVER);
            assert_null(event(&b, CLUSTER_EV_DONE, 0));
            assert_null(event(&b, CLUSTER_EV_LOST, 0));
            bed_deinit(&b);
        }
    }
}

/* Places that are taken at one instant are taken in the order of the workers: not sooner where one has a boundary
 * between passes just then, which it has not if these are taken together. */
static void places_of_one_instant_are_taken_in_order(void **state)
{
    (void)state;
    for (int stepping = 0; stepping < 2; stepping++) {
        struct bed b;
        bed_init(&b, (struct cluster_options){.kv_lease_ps = PS_NEVER, .stepping = stepping}, NULL,
                 0);
        b.to = 3;
        request(&b, 0, 1, 2, 90);
        submit(&b, 0, 0, 0);
        b.to = 2;
        request(&b, 1, 2, 1, 1);
        b.to = 3;
        request(&b, 2, 3, 1, 1);
        run(&b, 20 * MS);
        assert_int_equal(cluster_submit(b.c, 20 * MS, 0, &b.spec[1], 1, true), 0);
        assert_int_equal(cluster_submit(b.c, 20 * MS, 0, &b.spec[2], 2, true), 0);
        cluster_start(b.c, 20 * MS);
        run(&b, 31 * MS);
        assert_int_equal(event(&b, CLUSTER_EV_PREFILL_DONE, 1)->at_ps, 30 * MS);
        assert_int_equal(event(&b, CLUSTER_EV_PREFILL_DONE, 2)->at_ps, 30 * MS);
        assert_true(b.c->legs[1].moving && b.c->legs[2].moving);
        assert_true(b.c->legs[1].transfer < b.c->legs[2].transfer);
        cluster_free(b.c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(source_first),
        cmocka_unit_test(destination_first),
        cmocka_unit_test(a_reservation_can_be_left),
        cmocka_unit_test(only_what_is_missing_is_moved),
        cmocka_unit_test(places_of_one_instant_are_taken_in_order),
        cmocka_unit_test(transfers_share_the_uplink),
        cmocka_unit_test(a_pull_that_is_too_slow_is_lost),
        cmocka_unit_test(leases_run_out_in_order),
        cmocka_unit_test(a_dead_decode_worker_frees_the_source),
        cmocka_unit_test(a_dead_prefill_worker_frees_the_destination),
        cmocka_unit_test(a_drained_worker_leaves_when_it_is_empty),
        cmocka_unit_test(a_drained_prefill_worker_waits_for_its_kv),
        cmocka_unit_test(start_up_counts_and_a_drain_can_be_taken_back),
        cmocka_unit_test(bad_faults_are_refused),
        cmocka_unit_test(a_cancelled_request_is_gone_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
