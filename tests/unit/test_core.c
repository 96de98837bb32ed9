/* test_core.c - the decision core, event by event: what each does in each phase of a request, every reason for a
 * refusal, every limit and what happens at it, P/D in both orders, retry, drain, and what policies are shown.
 *
 * The policy of these tests takes the first candidate, unless told to refuse, and writes down what it is told.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controller/core/core.h"
#include "controller/core/policy.h"

#define MAX_WORKERS 8
#define MAX_LOG 256

/* ---- the policy: its log is outside of the core, for the tests to read */

static struct {
    uint32_t verdict; /* POLICY_SHED or POLICY_MISS_SLO: refuse; 0: the first candidate */
    uint32_t n;       /* calls */
    struct {
        char what; /* D dispatched, F first token, L left, X worker down */
        uint32_t worker;
        enum policy_leg leg;
    } log[MAX_LOG];
    struct policy_view view; /* the core's, while it lives */
    uint32_t n_candidates, source, last_note;
} seen;

static void note(char what, uint32_t worker, enum policy_leg leg)
{
    assert_true(seen.n < MAX_LOG);
    seen.log[seen.n].what = what;
    seen.log[seen.n].worker = worker;
    seen.log[seen.n++].leg = leg;
}

static uint32_t pick_first(void *state, const struct policy_view *v, const struct policy_query *q,
                           struct rng *rng)
{
    (void)state;
    (void)rng;
    seen.view = *v;
    seen.n_candidates = q->n_candidates;
    seen.source = q->source;
    return seen.verdict ? seen.verdict : q->candidates[0];
}

static void on_dispatched(void *state, const struct policy_view *v, const struct policy_query *q,
                          uint32_t worker, void *request)
{
    uint32_t *legs = request;
    (void)state;
    (void)v;
    seen.last_note = ++*legs;
    note('D', worker, q->leg);
}

static void on_first_token(void *state, const struct policy_view *v, const struct core_request *r,
                           uint32_t worker, void *request)
{
    (void)state;
    (void)v;
    (void)r;
    (void)request;
    note('F', worker, POLICY_WHOLE);
}

static void on_left(void *state, const struct policy_view *v, const struct core_request *r,
                    uint32_t worker, void *request)
{
    (void)state;
    (void)v;
    (void)r;
    (void)request;
    note('L', worker, POLICY_WHOLE);
}

static void on_worker_down(void *state, uint32_t worker)
{
    (void)state;
    note('X', worker, POLICY_WHOLE);
}

static const struct policy_ops first = {
    .name = "first",
    .summary = "the first candidate",
    .source = "this test",
    .prefix = POLICY_PREFIX_EVENTS,
    .request_bytes = sizeof(uint32_t),
    .pick = pick_first,
    .dispatched = on_dispatched,
    .first_token = on_first_token,
    .left = on_left,
    .worker_down = on_worker_down,
};

/* What was written down since the last look, as letters and workers: "D0 F0 L0". */
static void assert_log(const char *expect)
{
    char text[MAX_LOG * 4 + 1] = "";
    size_t len = 0;
    for (uint32_t i = 0; i < seen.n; i++) {
        if (i)
            text[len++] = ' ';
        text[len++] = seen.log[i].what;
        text[len++] = (char)('0' + seen.log[i].worker);
    }
    text[len] = 0;
    assert_string_equal(text, expect);
    seen.n = 0;
}

/* ---- a core to play with */

struct bed {
    struct core *core;
    struct core_config config;
    struct core_worker_config workers[MAX_WORKERS];
    int64_t now_ps;
};

/* roles: a letter a worker, b both, p prefill, d decode; upper case: down at start. All take 1,000 tokens. */
static void lay(struct bed *b, const char *roles)
{
    memset(b, 0, sizeof *b);
    memset(&seen, 0, sizeof seen);
    uint32_t n = (uint32_t)strlen(roles);
    for (uint32_t w = 0; w < n; w++) {
        char c = roles[w];
        bool up = c >= 'a';
        c = up ? c : (char)(c - 'A' + 'a');
        b->workers[w] = (struct core_worker_config){.role = c == 'b'   ? ROLE_BOTH
                                                            : c == 'p' ? ROLE_PREFILL
                                                                       : ROLE_DECODE,
                                                    .block_size = 16,
                                                    .max_model_len = 1000,
                                                    .up = up};
    }
    b->config = (struct core_config){.own_policy = &first,
                                     .n_workers = n,
                                     .workers = b->workers,
                                     .queue_max_requests = 100,
                                     .queue_timeout_ps = PS_NEVER,
                                     .max_retries = 2,
                                     .max_requests = 200};
}

static void start(struct bed *b)
{
    const char *why;
    b->core = core_new(&b->config, &why);
    assert_non_null(b->core);
}

static void set_up(struct bed *b, const char *roles)
{
    lay(b, roles);
    start(b);
}

static int tell(struct bed *b, struct core_event ev)
{
    ev.now_ps = b->now_ps;
    return core_event(b->core, &ev);
}

static int say(struct bed *b, enum core_event_kind kind, uint32_t request, uint32_t worker)
{
    return tell(b, (struct core_event){.kind = kind, .request = request, .worker = worker});
}

static struct core_request request_of(uint32_t prompt_tok)
{
    return (struct core_request){
        .prompt_tok = prompt_tok, .slo_ttft_ps = PS_NEVER, .slo_tpot_ps = PS_NEVER};
}

static void arrive_with(struct bed *b, uint32_t handle, const struct core_request *r)
{
    assert_int_equal(
        tell(b, (struct core_event){.kind = CORE_EV_ARRIVAL, .request = handle, .req = r}), 0);
}

static void arrive(struct bed *b, uint32_t handle)
{
    struct core_request r = request_of(100);
    arrive_with(b, handle, &r);
}

static void worker(struct bed *b, enum core_event_kind kind, uint32_t w)
{
    assert_int_equal(say(b, kind, 0, w), 0);
}

static void fail_on(struct bed *b, uint32_t request, uint32_t w, bool partial)
{
    assert_int_equal(tell(b, (struct core_event){.kind = CORE_EV_FAILED,
                                                 .request = request,
                                                 .worker = w,
                                                 .partial = partial}),
                     0);
}

/* The next command is this one. */
static struct core_command expect(struct bed *b, enum core_command_kind kind, uint32_t request,
                                  uint32_t w)
{
    struct core_command cmd;
    assert_true(core_next(b->core, &cmd));
    assert_int_equal(cmd.kind, kind);
    assert_int_equal(cmd.request, request);
    assert_int_equal(cmd.worker, w);
    return cmd;
}

static void expect_reject(struct bed *b, uint32_t request, enum core_reason reason)
{
    struct core_command cmd = expect(b, CORE_CMD_REJECT, request, CORE_NO_WORKER);
    assert_int_equal(cmd.reason, reason);
    assert_true(cmd.retry_after_ps == PS_NEVER);
}

static void expect_hold(struct bed *b, uint32_t request)
{
    expect(b, CORE_CMD_HOLD, request, CORE_NO_WORKER);
}

static void expect_nothing(struct bed *b)
{
    struct core_command cmd;
    assert_false(core_next(b->core, &cmd));
}

static struct core_stats stats(const struct bed *b)
{
    struct core_stats s;
    core_get_stats(b->core, &s);
    return s;
}

static void clear(struct bed *b)
{
    expect_nothing(b);
    core_free(b->core);
}

/* ---- construction */

static void refused(const struct core_config *c, const char *what)
{
    const char *why = NULL;
    assert_null(core_new(c, &why));
    assert_non_null(why);
    assert_non_null(strstr(why, what));
}

static void test_bad_config(void **unused)
{
    struct bed b;
    struct core_config c;
    (void)unused;
    lay(&b, "bb");
    c = b.config;
    c.own_policy = NULL;
    refused(&c, "no such policy");
    c.policy = "no_such";
    refused(&c, "no such policy");
    c = b.config;
    c.n_workers = 0;
    refused(&c, "n_workers");
    c.n_workers = CORE_MAX_WORKERS + 1;
    refused(&c, "n_workers");
    c = b.config;
    c.workers = NULL;
    refused(&c, "n_workers");
    c = b.config;
    c.max_requests = 0;
    refused(&c, "max_requests");
    c.max_requests = CORE_MAX_REQUESTS + 1;
    refused(&c, "max_requests");
    c = b.config;
    c.queue_timeout_ps = 0;
    refused(&c, "queue_timeout_ps");
    b.workers[1].block_size = 0;
    refused(&b.config, "block_size");
    lay(&b, "bb");
    b.workers[1].role = (enum worker_role)3;
    refused(&b.config, "role");
    lay(&b, "pp");
    refused(&b.config, "both needed");
    lay(&b, "dd");
    refused(&b.config, "both needed");
    lay(&b, "bd"); /* the decode worker has nothing to do, but that is allowed */
    set_up(&b, "bd");
    clear(&b);
}

static void test_bad_retry_budget(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.retry = (struct core_retry_config){.budget = true, .percent = 10};
    refused(&b.config, "the retry budget must be 0 to 100 percent, and 1 to 16777216 a second");
    b.config.retry = (struct core_retry_config){.budget = true, .percent = 101, .floor_per_s = 1};
    refused(&b.config, "the retry budget must be 0 to 100 percent, and 1 to 16777216 a second");
}

static void test_policy_params(void **unused)
{
    struct bed b;
    const struct policy_ops *sticky = core_policy_find("sticky");
    double param[CORE_MAX_POLICY_PARAMS];
    (void)unused;
    lay(&b, "b");
    b.config.own_policy = NULL;
    b.config.policy = "sticky";
    b.config.policy_param = param;
    for (uint32_t i = 0; i < sticky->n_params; i++)
        param[i] = sticky->params[i].max;
    start(&b);
    clear(&b);
    double wrong[] = {sticky->params[0].min - 1, sticky->params[0].max + 1, NAN};
    for (int i = 0; i < 3; i++) {
        param[0] = wrong[i];
        refused(&b.config, "range");
    }
    struct policy_ops many = first;
    many.n_params = CORE_MAX_POLICY_PARAMS + 1;
    b.config.own_policy = &many;
    refused(&b.config, "16 parameters");
}

static void test_needs(void **unused)
{
    (void)unused;
    for (uint32_t i = 0; i < core_policies_count; i++) {
        struct bed b;
        lay(&b, "b");
        b.config.own_policy = NULL;
        b.config.policy = core_policies[i]->name;
        start(&b);
        bool cache = core_policies[i]->prefix == POLICY_PREFIX_EVENTS;
        assert_int_equal(core_needs(b.core),
                         core_policies[i]->needs | (cache ? 1u << CORE_EV_CACHE : 0));
        clear(&b);
    }
}

/* ---- every event in every phase */

enum phase { NONE, HELD, WHOLE, PREFILL, HELD_KV, DECODE, N_PHASES };

/* A bed in which request 5 is in this phase. Its worker (HELD, NONE: 0). */
static uint32_t reach(struct bed *b, enum phase phase)
{
    lay(b, phase == WHOLE ? "b" : phase == HELD ? "B" : "pd");
    start(b);
    if (phase != NONE)
        arrive(b, 5);
    if (phase == HELD_KV) {
        arrive(b, 6);
        worker(b, CORE_EV_WORKER_DOWN, 1);
    }
    if (phase >= HELD_KV)
        assert_int_equal(say(b, CORE_EV_PREFILL_DONE, 5, 0), 0);
    for (struct core_command cmd; core_next(b->core, &cmd);)
        ;
    seen.n = 0;
    return phase == DECODE;
}

static void test_events_by_phase(void **unused)
{
    static const struct {
        enum core_event_kind kind;
        bool fits[N_PHASES]; /* none, held, whole, prefill, held KV, decode */
    } table[] = {
        {CORE_EV_ARRIVAL, {1, 0, 0, 0, 0, 0}},     {CORE_EV_PREFILL_DONE, {0, 0, 0, 1, 0, 0}},
        {CORE_EV_FIRST_TOKEN, {0, 0, 1, 1, 0, 1}}, {CORE_EV_PROGRESS, {0, 0, 1, 0, 0, 1}},
        {CORE_EV_DONE, {0, 0, 1, 0, 0, 1}},        {CORE_EV_FAILED, {0, 0, 1, 1, 1, 1}},
        {CORE_EV_CANCELLED, {0, 1, 1, 1, 1, 1}},
    };
    struct core_request r = request_of(100);
    (void)unused;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (enum phase p = NONE; p < N_PHASES; p++) {
            struct bed b;
            uint32_t w = reach(&b, p);
            struct core_stats before = stats(&b), after;
            struct core_event ev = {.kind = table[i].kind, .request = 5, .worker = w};
            if (ev.kind == CORE_EV_ARRIVAL)
                ev.req = &r;
            bool fits = table[i].fits[p];
            struct core_event wrong = ev;
            wrong.worker = 7; /* no such worker */
            if (ev.kind != CORE_EV_ARRIVAL && ev.kind != CORE_EV_CANCELLED)
                assert_int_equal(tell(&b, wrong), WEIR_E_INVALID);
            wrong.worker = 1 - w; /* not its own, nor the source of its KV */
            if (ev.kind != CORE_EV_ARRIVAL && ev.kind != CORE_EV_CANCELLED && p != DECODE)
                assert_int_equal(tell(&b, wrong), WEIR_E_INVALID);
            wrong.request = 77; /* nobody's */
            if (ev.kind != CORE_EV_ARRIVAL)
                assert_int_equal(tell(&b, wrong), WEIR_E_INVALID);
            assert_int_equal(tell(&b, ev), fits ? 0 : WEIR_E_INVALID);
            after = stats(&b);
            if (!fits) {
                assert_memory_equal(&before, &after, sizeof before);
                assert_int_equal(seen.n, 0);
                expect_nothing(&b);
            }
            core_free(b.core);
        }
    }
}

static void test_bad_events(void **unused)
{
    struct bed b;
    struct core_request r = request_of(100);
    struct core_telemetry t = {.at_ps = 11};
    struct core_cache_event cache = {.stored = true, .n_blocks = 1};
    uint64_t keys[4] = {1, 2, 3, 4};
    (void)unused;
    set_up(&b, "b");
    b.now_ps = 10;
    struct core_event arrival = {.kind = CORE_EV_ARRIVAL, .request = 1};
    assert_int_equal(tell(&b, arrival), WEIR_E_INVALID); /* no request */
    arrival.req = &r;
    r.prompt_tok = 0;
    assert_int_equal(tell(&b, arrival), WEIR_E_INVALID);
    r.prompt_tok = 100;
    r.n_keys = 4;
    r.key_tok = 16;
    assert_int_equal(tell(&b, arrival), WEIR_E_INVALID); /* keys, but where? */
    r.keys = keys;
    r.key_tok = 0;
    assert_int_equal(tell(&b, arrival), WEIR_E_INVALID);
    r.key_tok = 16;
    assert_int_equal(tell(&b, arrival), 0);
    expect(&b, CORE_CMD_DISPATCH, 1, 0);

    struct core_event ev = {.kind = CORE_EV_TELEMETRY, .worker = 0};
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID);
    ev.telemetry = &t;
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID); /* of the future */
    t.at_ps = -1;
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID);
    t.at_ps = 10;
    assert_int_equal(tell(&b, ev), 0);
    ev = (struct core_event){.kind = CORE_EV_CACHE, .worker = 0};
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID);
    ev.cache = &cache;
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID);
    cache.keys = keys;
    assert_int_equal(tell(&b, ev), 0);
    for (enum core_event_kind k = CORE_EV_WORKER_UP; k <= CORE_EV_CACHE; k++)
        assert_int_equal(say(&b, k, 0, 1), WEIR_E_INVALID); /* no worker 1 */
    assert_int_equal(say(&b, (enum core_event_kind)99, 1, 0), WEIR_E_INVALID);

    b.now_ps = 9; /* time runs back */
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), WEIR_E_INVALID);
    assert_int_equal(say(&b, CORE_EV_DONE, 1, 0), WEIR_E_INVALID);
    b.now_ps = 10;
    assert_int_equal(say(&b, CORE_EV_DONE, 1, 0), 0);
    b.now_ps = -1;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), WEIR_E_INVALID);
    clear(&b);
    set_up(&b, "b"); /* also at the start */
    b.now_ps = -1;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), WEIR_E_INVALID);
    clear(&b);
}

/* ---- a request's life, and what the policy sees of it */

static void test_whole(void **unused)
{
    struct bed b;
    uint64_t keys[8] = {11, 12, 13, 14, 15, 16, 17, 18};
    struct core_request r = request_of(100);
    (void)unused;
    set_up(&b, "bb");
    r.keys = keys;
    r.n_keys = 7;
    r.key_tok = 16;
    r.max_tokens = 50;
    struct core_cache_event cached = {.stored = true, .n_blocks = 2, .keys = keys};
    assert_int_equal(
        tell(&b, (struct core_event){.kind = CORE_EV_CACHE, .worker = 0, .cache = &cached}), 0);
    arrive_with(&b, 3, &r);
    struct core_command cmd = expect(&b, CORE_CMD_DISPATCH, 3, 0);
    assert_true(cmd.overlap_tok == 32);
    assert_int_equal(cmd.peer, CORE_NO_WORKER);
    assert_int_equal(cmd.attempt, 0);
    assert_int_equal(seen.n_candidates, 2);
    assert_int_equal(seen.source, CORE_NO_WORKER);
    assert_log("D0");
    assert_int_equal(seen.view.inflight[0], 1);
    assert_int_equal(seen.view.prefilling[0], 1);
    assert_int_equal(seen.view.prefill_tok[0], 68); /* two blocks are there */
    assert_int_equal(seen.view.inflight_tok[0], 100);
    assert_int_equal(stats(&b).inflight, 1);

    assert_int_equal(say(&b, CORE_EV_FIRST_TOKEN, 3, 0), 0);
    assert_log("F0");
    assert_int_equal(seen.view.prefilling[0] + seen.view.prefill_tok[0], 0);
    assert_int_equal(say(&b, CORE_EV_FIRST_TOKEN, 3, 0), 0); /* once only */
    assert_log("");
    assert_int_equal(say(&b, CORE_EV_DONE, 3, 0), 0);
    assert_log("L0");
    assert_int_equal(seen.view.inflight[0] + seen.view.inflight_tok[0], 0);

    arrive_with(&b, 3, &r); /* the handle is free again, its notes are zeroed */
    expect(&b, CORE_CMD_DISPATCH, 3, 0);
    assert_int_equal(seen.last_note, 1);
    assert_int_equal(say(&b, CORE_EV_DONE, 3, 0), 0); /* without a first token */
    assert_log("D0 L0");
    assert_int_equal(seen.view.prefilling[0] + seen.view.prefill_tok[0], 0);
    struct core_stats s = stats(&b);
    assert_int_equal(s.arrivals, 2);
    assert_int_equal(s.done, 2);
    assert_int_equal(s.dispatched, 2);
    assert_int_equal(s.inflight + s.queued + s.held, 0);
    clear(&b);
}

static void test_progress(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "bb");
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    struct core_event ev = {.kind = CORE_EV_PROGRESS, .request = 0, .worker = 0};
    assert_int_equal(tell(&b, ev), 0); /* nothing yet */
    assert_log("D0");
    ev.n = 5;
    assert_int_equal(tell(&b, ev), 0);
    assert_log("F0"); /* implies the first token */
    ev.n = 4;
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID); /* tokens do not go back */
    fail_on(&b, 0, 0, false);                       /* the core remembers that bytes went out */
    expect_reject(&b, 0, CORE_REASON_PARTIAL);
    clear(&b);
}

static void test_unread_commands(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.max_requests = 1;
    start(&b);
    uint32_t n = 2 * 1 + CORE_MAX_UNREAD + 1; /* each event brings a command */
    for (uint32_t i = 0; i < n; i++) {
        if (i % 2)
            assert_int_equal(say(&b, CORE_EV_CANCELLED, 0, 0), 0);
        else
            arrive(&b, 0);
    }
    assert_int_equal(say(&b, CORE_EV_CANCELLED, 0, 0), WEIR_E_LIMIT);
    for (uint32_t i = 0; i < n; i++) /* in order, nothing lost */
        expect(&b, i % 2 ? CORE_CMD_CANCEL : CORE_CMD_DISPATCH, 0, 0);
    assert_int_equal(say(&b, CORE_EV_CANCELLED, 0, 0), 0);
    expect(&b, CORE_CMD_CANCEL, 0, 0);
    clear(&b);
}

/* ---- reasons */

static void test_too_large(void **unused)
{
    struct bed b;
    struct core_request r = request_of(1000);
    (void)unused;
    lay(&b, "bB");
    b.workers[1].max_model_len = 0;
    b.workers[1].num_gpu_blocks = 100; /* 1,600 tokens */
    start(&b);
    r.max_tokens = 601;
    arrive_with(&b, 0, &r);
    expect_reject(&b, 0, CORE_REASON_TOO_LARGE);
    r.max_tokens = 600; /* only the one that is down */
    arrive_with(&b, 0, &r);
    expect_hold(&b, 0);
    r.prompt_tok = 999; /* with one token of an answer: 1,000 */
    r.max_tokens = 0;
    arrive_with(&b, 1, &r);
    expect(&b, CORE_CMD_DISPATCH, 1, 0);
    worker(&b, CORE_EV_WORKER_UP, 1);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    clear(&b);

    set_up(&b, "pd"); /* the smaller side decides */
    r = request_of(1000);
    arrive_with(&b, 0, &r);
    expect_reject(&b, 0, CORE_REASON_TOO_LARGE);
    clear(&b);
    lay(&b, "pdb");
    b.workers[0].max_model_len = 0;
    b.workers[2].max_model_len = 2000;
    start(&b);
    arrive_with(&b, 0, &r); /* prefill there, decode on the one of both roles */
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    clear(&b);
}

static void test_policy_refuses(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "b");
    seen.verdict = POLICY_SHED;
    arrive(&b, 0);
    expect_reject(&b, 0, CORE_REASON_SATURATED);
    seen.verdict = POLICY_MISS_SLO;
    arrive(&b, 0);
    expect_reject(&b, 0, CORE_REASON_SLO);
    assert_int_equal(stats(&b).rejected[CORE_REASON_SLO], 1);
    clear(&b);

    set_up(&b, "pd"); /* of the decode leg: the KV is let go */
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    seen.verdict = POLICY_SHED;
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_CANCEL, 0, 0);
    expect_reject(&b, 0, CORE_REASON_SATURATED);
    assert_int_equal(seen.view.inflight[0], 0);
    clear(&b);

    lay(&b, "pd"); /* destination-first: nothing was booked */
    b.config.destination_first = true;
    start(&b);
    seen.verdict = POLICY_MISS_SLO;
    arrive(&b, 0);
    expect_reject(&b, 0, CORE_REASON_SLO);
    assert_log("");
    clear(&b);
}

static void test_no_worker(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "B"); /* no queue: refused at once */
    b.config.queue_max_requests = 0;
    start(&b);
    arrive(&b, 0);
    expect_reject(&b, 0, CORE_REASON_NO_WORKER);
    clear(&b);

    set_up(&b, "Bb"); /* waits for those that may come, until none may */
    worker(&b, CORE_EV_WORKER_DRAIN, 1);
    arrive(&b, 0);
    expect_hold(&b, 0);
    worker(&b, CORE_EV_WORKER_DRAIN, 0); /* it is down, and will not come */
    expect_reject(&b, 0, CORE_REASON_NO_WORKER);
    arrive(&b, 1);
    expect_reject(&b, 1, CORE_REASON_NO_WORKER);
    worker(&b, CORE_EV_WORKER_UP, 0); /* it does */
    arrive(&b, 2);
    expect(&b, CORE_CMD_DISPATCH, 2, 0);
    clear(&b);

    lay(&b, "B"); /* too long a wait for that */
    b.config.queue_timeout_ps = 100;
    start(&b);
    arrive(&b, 0);
    expect_hold(&b, 0);
    b.now_ps = 100;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    expect_reject(&b, 0, CORE_REASON_NO_WORKER);
    clear(&b);

    set_up(&b, "pD"); /* prefill alone is of no use */
    arrive(&b, 0);
    expect_hold(&b, 0);
    worker(&b, CORE_EV_WORKER_DRAIN, 1);
    expect_reject(&b, 0, CORE_REASON_NO_WORKER);
    clear(&b);
}

static void test_queue_full(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.queue_max_requests = 2;
    b.config.max_inflight_per_worker = 1;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    arrive(&b, 1);
    expect_hold(&b, 1);
    arrive(&b, 2);
    expect_hold(&b, 2);
    arrive(&b, 3);
    expect_reject(&b, 3, CORE_REASON_QUEUE_FULL);
    assert_int_equal(stats(&b).queued, 2);
    fail_on(&b, 0, 0, false); /* let in before: keeps its place, whatever the queue */
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    fail_on(&b, 0, 0, false);
    expect_hold(&b, 0);
    assert_int_equal(stats(&b).queued, 3);
    arrive(&b, 3);
    expect_reject(&b, 3, CORE_REASON_NO_WORKER); /* full, and nobody there */
    worker(&b, CORE_EV_WORKER_UP, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH, 1, 0);
    clear(&b);
}

static void test_table_full(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.max_requests = 3;
    start(&b);
    for (uint32_t h = 0; h < 3; h++) {
        arrive(&b, h);
        expect(&b, CORE_CMD_DISPATCH, h, 0);
    }
    arrive(&b, 3);
    expect_reject(&b, 3, CORE_REASON_QUEUE_FULL);
    arrive(&b, UINT32_MAX);
    expect_reject(&b, UINT32_MAX, CORE_REASON_QUEUE_FULL);
    assert_int_equal(say(&b, CORE_EV_DONE, 3, 0), WEIR_E_INVALID);
    clear(&b);
}

static void test_timeout(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.max_inflight_per_worker = 1;
    b.config.queue_timeout_ps = 100;
    start(&b);
    assert_true(core_next_timer_ps(b.core) == PS_NEVER);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    b.now_ps = 10;
    arrive(&b, 1);
    expect_hold(&b, 1);
    b.now_ps = 20;
    arrive(&b, 2);
    expect_hold(&b, 2);
    assert_int_equal(core_next_timer_ps(b.core), 110);
    b.now_ps = 109;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0); /* too early: nothing */
    expect_nothing(&b);
    b.now_ps = 110;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    expect_reject(&b, 1, CORE_REASON_TIMEOUT);
    assert_int_equal(core_next_timer_ps(b.core), 120);
    b.now_ps = 120; /* at its deadline, but before the timer: it may still go */
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH, 2, 0);
    arrive(&b, 3);
    expect_hold(&b, 3);
    b.now_ps = 221; /* after it: not */
    assert_int_equal(say(&b, CORE_EV_DONE, 2, 0), 0);
    expect_reject(&b, 3, CORE_REASON_TIMEOUT);
    assert_true(core_next_timer_ps(b.core) == PS_NEVER);
    clear(&b);
}

/* A newcomer finds the room that one out of time leaves, after those who wait. */
static void test_timeout_makes_room(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.max_inflight_per_worker = 1;
    b.config.queue_timeout_ps = 100;
    b.config.queue_max_requests = 1;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    arrive(&b, 1);
    expect_hold(&b, 1);
    b.now_ps = 101;
    arrive(&b, 2);
    expect_reject(&b, 1, CORE_REASON_TIMEOUT);
    expect_hold(&b, 2);
    b.now_ps = INT64_MAX - 10; /* deadlines beyond the end of time are none */
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 0), 0);
    expect_reject(&b, 2, CORE_REASON_TIMEOUT);
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    arrive(&b, 3);
    expect_hold(&b, 3);
    assert_true(core_next_timer_ps(b.core) == PS_NEVER);
    clear(&b);
}

/* ---- order */

static void test_order(void **unused)
{
    static const int32_t priority[] = {0, 1, -1, 0, 1, -1};
    static const uint32_t order[] = {2, 5, 0, 3, 1, 4};
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.max_inflight_per_worker = 1;
    start(&b);
    arrive(&b, 9);
    expect(&b, CORE_CMD_DISPATCH, 9, 0);
    for (uint32_t h = 0; h < 6; h++) {
        struct core_request r = request_of(100);
        r.priority = priority[h];
        arrive_with(&b, h, &r);
        expect_hold(&b, h);
    }
    uint32_t last = 9;
    for (int i = 0; i < 6; i++) {
        assert_int_equal(say(&b, CORE_EV_DONE, last, 0), 0);
        last = order[i];
        expect(&b, CORE_CMD_DISPATCH, last, 0);
    }
    clear(&b);
}

/* A lost request goes back to where its arrival puts it, before others of the queue. */
static void test_lost_keeps_place(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "bb");
    b.config.max_inflight_per_worker = 1;
    start(&b);
    arrive(&b, 0);
    arrive(&b, 1);
    arrive(&b, 2);
    arrive(&b, 3);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    expect(&b, CORE_CMD_DISPATCH, 1, 1);
    expect_hold(&b, 2);
    expect_hold(&b, 3);
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    fail_on(&b, 0, 0, false);
    expect_hold(&b, 0);
    assert_int_equal(say(&b, CORE_EV_DONE, 1, 1), 0);
    assert_int_equal(expect(&b, CORE_CMD_DISPATCH, 0, 1).attempt, 1);
    assert_int_equal(say(&b, CORE_EV_CANCELLED, 2, 0), 0); /* leaves the middle of the queue */
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 1), 0);
    expect(&b, CORE_CMD_DISPATCH, 3, 1);
    clear(&b);
}

/* A loss opens its worker: first for those who wait, in order. */
static void test_loss_opens_worker(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "bb");
    b.config.max_inflight_per_worker = 1;
    start(&b);
    struct core_request r = request_of(100);
    r.priority = 1;
    arrive_with(&b, 0, &r);
    arrive_with(&b, 1, &r);
    r.priority = 0;
    arrive_with(&b, 2, &r);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    expect(&b, CORE_CMD_DISPATCH, 1, 1);
    expect_hold(&b, 2);
    fail_on(&b, 0, 0, false); /* its priority is lower than that of 2; and it should avoid 0 */
    expect(&b, CORE_CMD_DISPATCH, 2, 0);
    expect_hold(&b, 0);
    clear(&b);
}

/* One that needs the larger worker lets others pass, however many wait. */
static void test_passing(void **unused)
{
    struct bed b;
    struct core_request large = request_of(1500), small = request_of(100);
    uint32_t h = 0;
    (void)unused;
    lay(&b, "bB");
    b.workers[1].max_model_len = 2000;
    b.config.max_inflight_per_worker = 1;
    b.config.queue_max_requests = 190;
    start(&b);
    for (; h < 180; h++) {
        large.prompt_tok--; /* one less than the one before */
        arrive_with(&b, h, &large);
        expect_hold(&b, h);
        seen.n = 0;
    }
    arrive_with(&b, h, &small);
    expect(&b, CORE_CMD_DISPATCH, h, 0);
    arrive_with(&b, h + 1, &small);
    expect_hold(&b, h + 1);
    assert_int_equal(say(&b, CORE_EV_DONE, h, 0), 0);
    expect(&b, CORE_CMD_DISPATCH, h + 1, 0);
    worker(&b, CORE_EV_WORKER_UP, 1);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    seen.n = 0;
    clear(&b);
}

/* Workers without a limit of their own. */
static void test_no_limit(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.workers[0].max_model_len = 0;
    b.config.max_inflight_per_worker = 1;
    start(&b);
    for (uint32_t h = 0; h < 3; h++)
        arrive(&b, h);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    expect_hold(&b, 1);
    expect_hold(&b, 2);
    for (uint32_t h = 1; h < 3; h++) {
        assert_int_equal(say(&b, CORE_EV_DONE, h - 1, 0), 0);
        expect(&b, CORE_CMD_DISPATCH, h, 0);
    }
    clear(&b);
}

/* Bodies of those who wait are bounded as well. */
static void test_queue_bytes(void **unused)
{
    struct bed b;
    struct core_request r = request_of(100);
    (void)unused;
    lay(&b, "b");
    b.config.max_inflight_per_worker = 1;
    b.config.queue_max_bytes = 1000;
    start(&b);
    r.bytes = 5000; /* goes at once: any size */
    arrive_with(&b, 0, &r);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    r.bytes = 400;
    arrive_with(&b, 1, &r);
    expect_hold(&b, 1);
    r.bytes = 600;
    arrive_with(&b, 2, &r);
    expect_hold(&b, 2);
    assert_int_equal(stats(&b).queued_bytes, 1000);
    r.bytes = 1;
    arrive_with(&b, 3, &r);
    expect_reject(&b, 3, CORE_REASON_QUEUE_FULL);
    fail_on(&b, 0, 0, false); /* let in before */
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    assert_int_equal(say(&b, CORE_EV_CANCELLED, 1, 0), 0);
    arrive_with(&b, 3, &r);
    expect_hold(&b, 3);
    r.bytes = UINT64_MAX;
    arrive_with(&b, 4, &r);
    expect_reject(&b, 4, CORE_REASON_QUEUE_FULL);
    assert_int_equal(stats(&b).queued_bytes, 601);
    clear(&b);
}

/* drop_late: who waits beyond its SLO is told so. */
static void test_drop_late(void **unused)
{
    struct bed b;
    struct core_request r = request_of(100);
    (void)unused;
    lay(&b, "b");
    b.config.max_inflight_per_worker = 1;
    b.config.queue_timeout_ps = 1000;
    b.config.drop_late = true;
    start(&b);
    r.slo_ttft_ps = 50;
    arrive_with(&b, 0, &r);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    arrive_with(&b, 1, &r);
    expect_hold(&b, 1);
    r.slo_ttft_ps = 2000; /* the queue's own limit comes first */
    arrive_with(&b, 2, &r);
    expect_hold(&b, 2);
    assert_int_equal(core_next_timer_ps(b.core), 50);
    b.now_ps = 50;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    expect_reject(&b, 1, CORE_REASON_SLO);
    b.now_ps = 60;
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    fail_on(&b, 0, 0,
            false); /* its time has passed while it was out: it is over when it would wait */
    expect_reject(&b, 0, CORE_REASON_SLO);
    assert_int_equal(core_next_timer_ps(b.core), 1000);
    worker(&b, CORE_EV_WORKER_UP, 0);
    expect(&b, CORE_CMD_DISPATCH, 2, 0);
    clear(&b);
}

/* Two tenants wait: they take turns by cost; weights and priorities count. */
static void test_turns(void **unused)
{
    static const uint32_t order[] = {8, 9, 4, 0, 5, 6, 1, 7, 2, 3};
    struct bed b;
    (void)unused;
    lay(&b, "b");
    b.config.max_inflight_per_worker = 1;
    b.config.fair_quantum_tok = 100;
    b.config.tenants = (struct core_tenant[]){{.id = 2, .weight = 2}};
    b.config.n_tenants = 1;
    start(&b);
    arrive(&b, 10);
    expect(&b, CORE_CMD_DISPATCH, 10, 0);
    struct core_request r = request_of(100);
    r.max_tokens = 50; /* cost 200 */
    for (uint32_t h = 0; h < 10; h++) {
        r.tenant = h < 4 ? 1 : 2; /* tenant 1 was first */
        r.priority = h < 8 ? 0 : -1;
        arrive_with(&b, h, &r);
        expect_hold(&b, h);
    }
    uint32_t last = 10;
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(
            tell(&b, (struct core_event){.kind = CORE_EV_DONE, .request = last, .n = 50}), 0);
        expect(&b, CORE_CMD_DISPATCH, order[i], 0);
        last = order[i];
    }
    clear(&b);
}

/* ---- health */

/* Three failures in a row and it is left out; after its time one request tries it. */
static void test_breaker(void **unused)
{
    struct bed b;
    struct core_worker_state w;
    (void)unused;
    lay(&b, "bb");
    b.config.max_retries = 0;
    b.config.health = (struct core_health_config){
        .breaker_failures = 3, .eject_ps = 1000, .eject_max_ps = 8000, .panic_percent = 50};
    start(&b);
    b.now_ps = 10;
    for (uint32_t h = 0; h < 3; h++) {
        arrive(&b, h);
        expect(&b, CORE_CMD_DISPATCH, h, 0); /* the policy takes the first */
        fail_on(&b, h, 0, h == 1);
        expect_reject(&b, h, h == 1 ? CORE_REASON_PARTIAL : CORE_REASON_RETRIES);
    }
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    core_get_worker(b.core, 0, &w);
    assert_true(w.up && !w.used && w.health == CORE_HEALTH_EJECTED);
    assert_int_equal(w.cause, CORE_HEALTH_FAILURES);
    assert_true(w.until_ps == core_next_timer_ps(b.core));
    assert_int_equal(stats(&b).ejected, 1);
    b.now_ps = w.until_ps;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    arrive(&b, 1);
    expect(&b, CORE_CMD_DISPATCH, 1, 0);
    arrive(&b, 2);
    expect(&b, CORE_CMD_DISPATCH, 2, 1);
    assert_int_equal(say(&b, CORE_EV_DONE, 1, 0), 0);
    arrive(&b, 3);
    expect(&b, CORE_CMD_DISPATCH, 3, 0);
    core_get_worker(b.core, 0, &w);
    assert_true(w.used && w.health == CORE_HEALTH_OK && w.inflight == 1);
    assert_int_equal(stats(&b).ejections, 1);
    clear(&b);
}

/* Answers that are errors of the worker's own count; failures of a life that is over do not. */
static void test_blame(void **unused)
{
    struct bed b;
    struct core_worker_state w;
    (void)unused;
    lay(&b, "bb");
    b.config.health = (struct core_health_config){
        .breaker_failures = 2, .eject_ps = 1000, .eject_max_ps = 8000, .panic_percent = 50};
    start(&b);
    for (uint32_t h = 0; h < 4; h++) {
        arrive(&b, h);
        expect(&b, CORE_CMD_DISPATCH, h, 0);
    }
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    worker(&b, CORE_EV_WORKER_UP, 0);
    for (uint32_t h = 0; h < 4; h++) {
        fail_on(&b, h, 0, false);
        expect(&b, CORE_CMD_DISPATCH, h, 1);
    }
    core_get_worker(b.core, 0, &w);
    assert_true(w.used && w.failures == 0);
    for (uint32_t h = 0; h < 2; h++)
        assert_int_equal(tell(&b,
                              (struct core_event){
                                  .kind = CORE_EV_DONE, .request = h, .worker = 1, .error = true}),
                         0);
    core_get_worker(b.core, 1, &w);
    assert_false(w.used);
    clear(&b);
}

/* All sick: all are used, and nobody waits for a worker that is left out. */
static void test_panic(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "bb");
    b.config.max_retries = 100;
    b.config.health = (struct core_health_config){
        .breaker_failures = 1, .eject_ps = 1000, .eject_max_ps = 8000, .panic_percent = 50};
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    fail_on(&b, 0, 0, false);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    fail_on(&b, 0, 1, false); /* both are sick now */
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    assert_int_equal(stats(&b).panics, 1);
    assert_int_equal(say(&b, CORE_EV_CANCELLED, 0, 0), 0);
    expect(&b, CORE_CMD_CANCEL, 0, 0);
    clear(&b);
}

/* Beyond the budget, lost requests wait for it. */
static void test_retry_budget(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "bb");
    b.config.retry = (struct core_retry_config){.budget = true, .percent = 100, .floor_per_s = 1};
    b.config.queue_timeout_ps = 15 * PS_PER_S;
    b.config.max_retries = 50;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    for (uint32_t i = 0; i < 11; i++) { /* ten are the floor's, one that of the arrival */
        fail_on(&b, 0, i % 2, false);
        assert_int_equal(expect(&b, CORE_CMD_DISPATCH, 0, (i + 1) % 2).attempt, i + 1);
    }
    fail_on(&b, 0, 1, false);
    expect_hold(&b, 0);
    assert_int_equal(stats(&b).delayed, 1);
    assert_int_equal(stats(&b).queued, 1);
    assert_int_equal(core_next_timer_ps(b.core), PS_PER_S / 10);
    b.now_ps = PS_PER_S / 10;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    expect_nothing(&b);
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 1), WEIR_E_INVALID);
    assert_int_equal(
        tell(&b, (struct core_event){.kind = CORE_EV_FAILED, .request = 0, .worker = 1}),
        WEIR_E_INVALID);
    arrive(&b, 1); /* room for one more */
    expect(&b, CORE_CMD_DISPATCH, 1, 0);
    assert_int_equal(expect(&b, CORE_CMD_DISPATCH, 0, 0).attempt, 12);
    fail_on(&b, 0, 0, false);
    fail_on(&b, 1, 0, false);
    expect_hold(&b, 0);
    expect_hold(&b, 1);
    assert_int_equal(say(&b, CORE_EV_CANCELLED, 1, 0), 0);
    b.now_ps += 10 * PS_PER_S; /* what was used is forgotten */
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    assert_int_equal(stats(&b).queued, 0);
    for (uint32_t i = 0; i < 9; i++) {
        fail_on(&b, 0, (i + 1) % 2, false);
        expect(&b, CORE_CMD_DISPATCH, 0, i % 2);
    }
    fail_on(&b, 0, 0, false);
    expect_hold(&b, 0);
    b.now_ps += 15 * PS_PER_S + 1; /* told too late: its own deadline has passed */
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    expect_reject(&b, 0, CORE_REASON_RETRIES);
    clear(&b);
}

/* ---- retry */

static void test_retry(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "bbb");
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    fail_on(&b, 0, 0, false);
    struct core_command cmd = expect(&b, CORE_CMD_DISPATCH, 0, 1); /* not 0 again */
    assert_int_equal(cmd.attempt, 1);
    assert_log("D0 L0 D1");
    fail_on(&b, 0, 1, false);
    assert_int_equal(expect(&b, CORE_CMD_DISPATCH, 0, 0).attempt, 2); /* 0 may do by now */
    assert_int_equal(seen.n_candidates, 2);
    fail_on(&b, 0, 0, false);
    expect_reject(&b, 0, CORE_REASON_RETRIES);
    assert_int_equal(stats(&b).retried, 2);
    assert_int_equal(stats(&b).inflight, 0);
    clear(&b);

    lay(&b, "b");
    b.config.max_retries = 0;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    fail_on(&b, 0, 0, false);
    expect_reject(&b, 0, CORE_REASON_RETRIES);
    clear(&b);
}

/* With no other worker up, the same one; with others that are only busy, it waits for them. */
static void test_retry_same_worker(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "bb");
    b.config.max_inflight_per_worker = 1;
    start(&b);
    arrive(&b, 0);
    arrive(&b, 1);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    expect(&b, CORE_CMD_DISPATCH, 1, 1);
    fail_on(&b, 0, 0, false);
    expect_hold(&b, 0);
    worker(&b, CORE_EV_WORKER_DRAIN, 1);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    clear(&b);
}

static void test_retry_partial(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "bb");
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    fail_on(&b, 0, 0, true);
    expect_reject(&b, 0, CORE_REASON_PARTIAL);
    clear(&b);

    lay(&b, "bb");
    b.config.retry_partial = true;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    assert_int_equal(tell(&b, (struct core_event){.kind = CORE_EV_PROGRESS, .n = 9}), 0);
    fail_on(&b, 0, 0, true);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    /* a new try counts from the beginning */
    assert_int_equal(tell(&b, (struct core_event){.kind = CORE_EV_PROGRESS, .worker = 1, .n = 1}),
                     0);
    clear(&b);
}

/* An answer to a command before the others are read, as an adapter does that cannot send. */
static void test_nested(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "BB");
    for (uint32_t h = 0; h < 3; h++) {
        arrive(&b, h);
        expect_hold(&b, h);
    }
    worker(&b, CORE_EV_WORKER_UP, 0);
    worker(&b, CORE_EV_WORKER_UP, 1);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    fail_on(&b, 0, 0, false);
    expect(&b, CORE_CMD_DISPATCH, 1, 0);
    expect(&b, CORE_CMD_DISPATCH, 2, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    clear(&b);
}

/* ---- prefill and decode */

static void test_source_first(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "pd");
    arrive(&b, 0);
    struct core_command cmd = expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    assert_int_equal(cmd.peer, CORE_NO_WORKER);
    assert_int_equal(seen.view.prefilling[0], 1);
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 0), WEIR_E_INVALID);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 1), WEIR_E_INVALID);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    cmd = expect(&b, CORE_CMD_DISPATCH_DECODE, 0, 1);
    assert_int_equal(cmd.peer, 0);
    assert_int_equal(seen.source, 0);
    assert_log("D0 F0 L0 D1");
    assert_int_equal(seen.view.inflight[0] + seen.view.prefilling[0], 0);
    assert_int_equal(seen.view.inflight[1], 1);
    assert_int_equal(seen.view.prefilling[1], 0); /* decode legs do not prefill */
    assert_int_equal(say(&b, CORE_EV_FIRST_TOKEN, 0, 1), 0);
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 1), 0);
    assert_log("L1");
    clear(&b);
}

static void test_destination_first(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "pdd");
    b.config.destination_first = true;
    b.config.max_inflight_per_worker = 1;
    start(&b);
    arrive(&b, 0);
    struct core_command cmd = expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    assert_int_equal(cmd.peer, 1);
    assert_log("D1 D0"); /* the decode worker has it in its books already */
    assert_int_equal(seen.view.inflight[1], 1);
    worker(&b, CORE_EV_WORKER_DRAIN, 1); /* what was promised holds */
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    cmd = expect(&b, CORE_CMD_DISPATCH_DECODE, 0, 1);
    assert_int_equal(cmd.peer, 0);
    assert_log("F0 L0");

    arrive(&b, 1); /* the other decode worker */
    assert_int_equal(expect(&b, CORE_CMD_DISPATCH_PREFILL, 1, 0).peer, 2);
    worker(&b, CORE_EV_WORKER_UP, 1); /* has one in flight: full */
    worker(&b, CORE_EV_WORKER_DOWN, 2);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 1, 0), 0); /* the promised one died */
    expect_hold(&b, 1);
    assert_log("D2 D0 X2 F0 L2");
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 1), 0);
    assert_int_equal(expect(&b, CORE_CMD_DISPATCH_DECODE, 1, 1).peer, 0);
    assert_log("L1 L0 D1");
    clear(&b);

    lay(&b,
        "pd"); /* it came back in between: what it had allocated is gone, it may be chosen again */
    b.config.destination_first = true;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    worker(&b, CORE_EV_WORKER_DOWN, 1);
    worker(&b, CORE_EV_WORKER_UP, 1);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH_DECODE, 0, 1);
    assert_log("D1 D0 X1 F0 L1 L0 D1");
    clear(&b);
}

/* No decode worker open: destination-first waits before the prefill, source-first after it. */
static void test_decode_full(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "ppd");
    b.config.max_inflight_per_worker = 1;
    b.config.destination_first = true;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    arrive(&b, 1);
    expect_hold(&b, 1);
    clear(&b);

    lay(&b, "ppd");
    b.config.max_inflight_per_worker = 1;
    b.config.queue_timeout_ps = 100;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    arrive(&b, 1);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 1, 1);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH_DECODE, 0, 2);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 1, 1), 0);
    expect_hold(&b, 1);
    assert_int_equal(seen.view.inflight[1], 1); /* its KV is there */
    assert_int_equal(stats(&b).queued, 1);
    assert_int_equal(core_next_timer_ps(b.core), 100);
    b.now_ps = 100;
    assert_int_equal(say(&b, CORE_EV_TIMER, 0, 0), 0);
    expect(&b, CORE_CMD_CANCEL, 1, 1);
    expect_reject(&b, 1, CORE_REASON_TIMEOUT);
    assert_int_equal(seen.view.inflight[1], 0);
    clear(&b);
}

static void test_local_prefill(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "pdb");
    b.config.max_inflight_per_worker = 1;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    arrive(&b, 1); /* the prefill worker is full: here instead */
    expect(&b, CORE_CMD_DISPATCH, 1, 2);
    arrive(&b, 2);
    expect_hold(&b, 2);
    assert_int_equal(say(&b, CORE_EV_DONE, 1, 2), 0);
    expect(&b, CORE_CMD_DISPATCH, 2, 2);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH_DECODE, 0, 1);
    assert_int_equal(say(&b, CORE_EV_DONE, 2, 2), 0);
    worker(&b, CORE_EV_WORKER_DOWN, 1); /* decode is down: no point in prefilling for it... */
    fail_on(&b, 0, 1, false);
    expect(&b, CORE_CMD_CANCEL, 0, 0);
    /* ...but the worker of both roles decodes as well */
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH_DECODE, 0, 2);
    seen.n = 0;
    clear(&b);

    set_up(&b, "Pdb"); /* no prefill worker is up */
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 2);
    clear(&b);
}

static void test_pd_losses(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "ppdd"); /* in prefill */
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    fail_on(&b, 0, 0, false);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 1);
    /* while its KV waits: the lease ran out */
    worker(&b, CORE_EV_WORKER_DOWN, 2);
    worker(&b, CORE_EV_WORKER_DOWN, 3);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 1), 0);
    expect_hold(&b, 0);
    fail_on(&b, 0, 1, false);
    expect_hold(&b, 0); /* from the beginning: there is nobody to decode */
    worker(&b, CORE_EV_WORKER_UP, 2);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    assert_int_equal(say(&b, CORE_EV_PREFILL_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH_DECODE, 0, 2);
    seen.n = 0;
    fail_on(&b, 0, 0, false); /* the source died during the pull: the other side is told */
    expect(&b, CORE_CMD_CANCEL, 0, 2);
    expect_reject(&b, 0, CORE_REASON_RETRIES);
    clear(&b);

    lay(&b, "pd"); /* destination-first: on either side */
    b.config.destination_first = true;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    fail_on(&b, 0, 0, false);
    expect(&b, CORE_CMD_CANCEL, 0, 1);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    fail_on(&b, 0, 1, false);
    expect(&b, CORE_CMD_CANCEL, 0, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    assert_int_equal(seen.view.inflight[0], 1);
    assert_int_equal(seen.view.inflight[1], 1);
    clear(&b);
}

/* ---- cancel */

static void test_cancel(void **unused)
{
    (void)unused;
    for (enum phase p = HELD; p < N_PHASES; p++) {
        struct bed b;
        (void)reach(&b, p);
        assert_int_equal(say(&b, CORE_EV_CANCELLED, 5, 0), 0);
        if (p == DECODE)
            expect(&b, CORE_CMD_CANCEL, 5, 1);
        if (p != HELD)
            expect(&b, CORE_CMD_CANCEL, 5, 0);
        assert_int_equal(stats(&b).cancelled, 1);
        assert_int_equal(stats(&b).queued, 0);
        assert_int_equal(stats(&b).inflight, p == HELD_KV); /* request 6 */
        assert_int_equal(say(&b, CORE_EV_CANCELLED, 5, 0), WEIR_E_INVALID);
        clear(&b);
    }
    struct bed b;
    lay(&b, "pd");
    b.config.destination_first = true;
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH_PREFILL, 0, 0);
    assert_int_equal(say(&b, CORE_EV_CANCELLED, 0, 0), 0);
    expect(&b, CORE_CMD_CANCEL, 0, 0); /* both legs */
    expect(&b, CORE_CMD_CANCEL, 0, 1);
    assert_int_equal(seen.view.inflight[0] + seen.view.inflight[1], 0);
    clear(&b);
}

/* ---- workers come and go */

static void test_drain(void **unused)
{
    struct bed b;
    (void)unused;
    set_up(&b, "bb");
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    worker(&b, CORE_EV_WORKER_DRAIN, 0);
    worker(&b, CORE_EV_WORKER_DRAIN, 0);
    arrive(&b, 1);
    expect(&b, CORE_CMD_DISPATCH, 1, 1);
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 0), 0); /* what ran there ends */
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    arrive(&b, 2);
    expect(&b, CORE_CMD_DISPATCH, 2, 1);
    worker(&b, CORE_EV_WORKER_UP, 0);
    worker(&b, CORE_EV_WORKER_UP, 0);
    arrive(&b, 3);
    expect(&b, CORE_CMD_DISPATCH, 3, 0);
    clear(&b);
}

/* A worker that died: nothing is known of its load and cache any more; its requests stay in the books until they
 * are told to be lost, and the policy hears once. */
static int add(struct bed *b, uint32_t w, const struct core_worker_config *c)
{
    return tell(b, (struct core_event){.kind = CORE_EV_WORKER_ADDED, .worker = w, .added = c});
}

/* A worker in a spare place is like any other; one leaves only with nothing in flight; its place is used again, and nothing
 * of the former one is left there. */
static void test_workers_come_and_go(void **unused)
{
    struct bed b;
    struct core_worker_config c = {.role = ROLE_BOTH, .block_size = 32, .max_model_len = 5000};
    struct core_worker_state state;
    struct core_request large = request_of(4000);
    (void)unused;
    lay(&b, "b");
    b.config.spare_workers = 2;
    start(&b);
    core_get_worker(b.core, 1, &state);
    assert_true(state.vacant && !state.up);
    arrive_with(&b, 0, &large);
    expect_reject(&b, 0, CORE_REASON_TOO_LARGE);
    /* a vacant place takes no other event */
    assert_int_equal(say(&b, CORE_EV_WORKER_UP, 0, 1), WEIR_E_INVALID);
    assert_int_equal(say(&b, CORE_EV_WORKER_DOWN, 0, 1), WEIR_E_INVALID);
    assert_int_equal(say(&b, CORE_EV_WORKER_GONE, 0, 1), WEIR_E_INVALID);
    assert_int_equal(add(&b, 0, &c), WEIR_E_INVALID); /* taken */
    assert_int_equal(add(&b, 3, &c), WEIR_E_INVALID); /* no such place */
    assert_int_equal(add(&b, 1, NULL), WEIR_E_INVALID);
    assert_int_equal(add(&b, 1, &(struct core_worker_config){.role = ROLE_BOTH}), WEIR_E_INVALID);
    assert_int_equal(add(&b, 1, &c), 0);
    arrive_with(&b, 0, &large); /* waits: it may come up */
    expect_hold(&b, 0);
    worker(&b, CORE_EV_WORKER_UP, 1);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    assert_int_equal(seen.view.block_size, 0); /* they differ now */
    assert_int_equal(say(&b, CORE_EV_WORKER_GONE, 0, 1), WEIR_E_INVALID);
    worker(&b, CORE_EV_WORKER_DRAIN, 1);
    assert_int_equal(say(&b, CORE_EV_WORKER_GONE, 0, 1), WEIR_E_INVALID); /* one in flight */
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 1), 0);
    worker(&b, CORE_EV_WORKER_GONE, 1);
    core_get_worker(b.core, 1, &state);
    assert_true(state.vacant);
    arrive_with(&b, 0, &large);
    expect_reject(&b, 0, CORE_REASON_TOO_LARGE);
    c.up = true;
    assert_int_equal(add(&b, 1, &c), 0);
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    worker(&b, CORE_EV_WORKER_GONE, 0); /* one that the fleet began with */
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    assert_int_equal(seen.view.block_size, 32);
    clear(&b);
}

/* The last one that could have served them leaves: those who wait are told. */
static void test_nobody_waits_for_one_who_left(void **unused)
{
    struct bed b;
    (void)unused;
    lay(&b, "B");
    b.config.spare_workers = 1;
    start(&b);
    arrive(&b, 0);
    expect_hold(&b, 0);
    worker(&b, CORE_EV_WORKER_GONE, 0);
    expect_reject(&b, 0, CORE_REASON_NO_WORKER);
    clear(&b);
}

static double tuned;

static void note_params(void *state, const double *param)
{
    (void)state;
    tuned = param[0];
}

/* Knobs of the policy and of health: whoever nobody judges any more is trusted. */
static void test_reconfigure_knobs(void **unused)
{
    static const struct policy_param knob[] = {{"knob", 1, 0, 10, "of this test"}};
    struct policy_ops own = first;
    struct bed b;
    const char *why;
    double value = 11;
    struct core_worker_state state;
    (void)unused;
    own.params = knob;
    own.n_params = 1;
    own.tune = note_params;
    lay(&b, "bb");
    b.config.own_policy = &own;
    b.config.health = (struct core_health_config){
        .breaker_failures = 1, .eject_ps = PS_PER_S, .eject_max_ps = PS_PER_S};
    start(&b);
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    fail_on(&b, 0, 0, false);
    expect(&b, CORE_CMD_DISPATCH, 0, 1);
    core_get_worker(b.core, 0, &state);
    assert_int_equal(state.health, CORE_HEALTH_EJECTED);
    struct core_config to = b.config;
    to.policy_param = &value;
    assert_int_equal(core_reconfigure(b.core, &to, &why), WEIR_E_INVALID);
    value = 7;
    to.health.eject_ps = 0;
    assert_int_equal(core_reconfigure(b.core, &to, &why), WEIR_E_INVALID);
    assert_true(tuned < 7);
    to.health = (struct core_health_config){.breaker_failures = 0};
    assert_int_equal(core_reconfigure(b.core, &to, &why), 0);
    assert_true(tuned > 6.9 && tuned < 7.1);
    core_get_worker(b.core, 0, &state);
    assert_int_equal(state.health, CORE_HEALTH_OK);
    arrive(&b, 1);
    expect(&b, CORE_CMD_DISPATCH, 1, 0);
    clear(&b);
}

static void say_foreign(struct bed *b, uint32_t w, struct core_load load)
{
    assert_int_equal(
        tell(b, (struct core_event){.kind = CORE_EV_FOREIGN, .worker = w, .load = &load}), 0);
}

/* Policies see what other controllers have in flight; limits and what others are told count only the own. */
static void test_foreign_load(void **unused)
{
    struct bed b;
    struct core_worker_state state;
    struct core_load bad = {.requests = 1, .prefilling = 2};
    (void)unused;
    lay(&b, "bb");
    b.config.max_inflight_per_worker = 1;
    start(&b);
    say_foreign(&b, 0, (struct core_load){5, 2, 300, 4000});
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0); /* the limit is for the own */
    arrive(&b, 1);
    assert_int_equal(seen.view.inflight[0], 6);
    assert_int_equal(seen.view.prefilling[0], 3);
    uint64_t own_tok = core_own_load(b.core, 0).prompt_tok;
    assert_true(own_tok > 0 && seen.view.inflight_tok[0] == 4000 + own_tok);
    expect(&b, CORE_CMD_DISPATCH, 1, 1);
    arrive(&b, 2); /* both have their one */
    expect_hold(&b, 2);
    core_get_worker(b.core, 0, &state);
    assert_int_equal(state.inflight, 1);
    assert_int_equal(core_own_load(b.core, 0).requests, 1);
    assert_int_equal(core_own_load(b.core, 0).prefilling, 1);
    say_foreign(&b, 0, (struct core_load){1, 0, 0, 70}); /* in all, not in addition */
    assert_int_equal(seen.view.inflight[0], 2);
    assert_int_equal(seen.view.prefilling[0], 1);
    assert_int_equal(seen.view.inflight_tok[0], 70 + own_tok);
    expect_nothing(&b);
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 0), 0);
    expect(&b, CORE_CMD_DISPATCH, 2, 0);
    assert_int_equal(say(&b, CORE_EV_DONE, 2, 0), 0);
    assert_int_equal(seen.view.inflight[0], 1);

    struct core_event ev = {.kind = CORE_EV_FOREIGN, .worker = 0, .load = &bad};
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID);
    ev.load = NULL;
    assert_int_equal(tell(&b, ev), WEIR_E_INVALID);
    assert_int_equal(seen.view.inflight[0], 1);

    assert_int_equal(say(&b, CORE_EV_WORKER_DRAIN, 0, 0), 0); /* others' requests keep nobody */
    assert_int_equal(say(&b, CORE_EV_WORKER_GONE, 0, 0), 0);
    assert_int_equal(seen.view.inflight[0], 0);
    assert_int_equal(seen.view.inflight_tok[0], 0);
    clear(&b);
}

static void test_reconfigure(void **unused)
{
    struct bed b;
    const char *why;
    struct core_tenant tenants[] = {{7, 0}};
    struct core_config to;
    (void)unused;
    lay(&b, "b");
    b.config.max_inflight_per_worker = 1;
    b.config.queue_max_requests = 2;
    start(&b);
    to = b.config;
    arrive(&b, 0);
    expect(&b, CORE_CMD_DISPATCH, 0, 0);
    arrive(&b, 1);
    expect_hold(&b, 1);
    arrive(&b, 2);
    expect_hold(&b, 2);
    to.tenants = tenants;
    to.n_tenants = 1;
    assert_int_equal(core_reconfigure(b.core, &to, &why), WEIR_E_INVALID);
    assert_string_equal(why, "a tenant's weight must be 1 to 1000");
    tenants[0].weight = 5;
    to.queue_timeout_ps = 0;
    assert_int_equal(core_reconfigure(b.core, &to, &why), WEIR_E_INVALID);
    to.queue_timeout_ps = PS_NEVER;
    to.max_inflight_per_worker = 2; /* raised: one of those who wait goes */
    to.queue_max_requests = 1;
    assert_int_equal(core_reconfigure(b.core, &to, &why), 0);
    expect(&b, CORE_CMD_DISPATCH, 1, 0);
    arrive(&b, 3);
    expect_reject(&b, 3, CORE_REASON_QUEUE_FULL);
    to.max_inflight_per_worker = 1; /* lowered below what is in flight: no more until it fits */
    assert_int_equal(core_reconfigure(b.core, &to, &why), 0);
    assert_int_equal(say(&b, CORE_EV_DONE, 0, 0), 0);
    expect_nothing(&b);
    assert_int_equal(say(&b, CORE_EV_DONE, 1, 0), 0);
    expect(&b, CORE_CMD_DISPATCH, 2, 0);
    clear(&b);
}

static void test_down(void **unused)
{
    struct bed b;
    uint64_t keys[2] = {1, 2};
    struct core_request r = request_of(40);
    struct core_telemetry t = {.at_ps = 3, .running = 7};
    struct core_cache_event cached = {.stored = true, .n_blocks = 2, .keys = keys};
    struct core_event cache = {.kind = CORE_EV_CACHE, .cache = &cached};
    (void)unused;
    set_up(&b, "b");
    r.keys = keys;
    r.n_keys = 2;
    r.key_tok = 16;
    b.now_ps = 5;
    assert_int_equal(tell(&b, cache), 0);
    assert_int_equal(tell(&b, (struct core_event){.kind = CORE_EV_TELEMETRY, .telemetry = &t}), 0);
    arrive_with(&b, 0, &r);
    assert_true(expect(&b, CORE_CMD_DISPATCH, 0, 0).overlap_tok == 32);
    assert_int_equal(seen.view.telemetry[0].running, 7);
    t = (struct core_telemetry){.at_ps = 2, .running = 1}; /* older: ignored */
    assert_int_equal(tell(&b, (struct core_event){.kind = CORE_EV_TELEMETRY, .telemetry = &t}), 0);
    assert_int_equal(seen.view.telemetry[0].running, 7);
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    worker(&b, CORE_EV_WORKER_DOWN, 0);
    assert_log("D0 X0");
    assert_int_equal(seen.view.inflight[0], 1);
    assert_true(seen.view.telemetry[0].at_ps < 0);
    assert_int_equal(tell(&b, cache), 0); /* from its former life: ignored, both */
    assert_int_equal(tell(&b, (struct core_event){.kind = CORE_EV_TELEMETRY, .telemetry = &t}), 0);
    assert_true(seen.view.telemetry[0].at_ps < 0);
    fail_on(&b, 0, 0, false);
    expect_hold(&b, 0);
    assert_int_equal(seen.view.inflight[0], 0);
    worker(&b, CORE_EV_WORKER_UP, 0);
    assert_true(expect(&b, CORE_CMD_DISPATCH, 0, 0).overlap_tok == 0);
    cached.depth = 1; /* what is removed is gone */
    cached.n_blocks = 1;
    cached.keys = keys + 1;
    assert_int_equal(tell(&b, cache), 0);
    cached = (struct core_cache_event){.stored = true, .n_blocks = 1, .keys = keys};
    assert_int_equal(tell(&b, cache), 0);
    arrive_with(&b, 1, &r);
    assert_true(expect(&b, CORE_CMD_DISPATCH, 1, 0).overlap_tok == 32);
    cached =
        (struct core_cache_event){.stored = false, .depth = 1, .n_blocks = 1, .keys = keys + 1};
    assert_int_equal(tell(&b, cache), 0);
    arrive_with(&b, 2, &r);
    assert_true(expect(&b, CORE_CMD_DISPATCH, 2, 0).overlap_tok == 16);
    clear(&b);
}

/* Guessed from dispatches: the next request with this beginning finds it where the last one went. */
static void test_guessed_prefixes(void **unused)
{
    struct bed b;
    uint64_t keys[4] = {1, 2, 3, 4};
    struct policy_ops guesses = first;
    struct core_request r = request_of(200);
    (void)unused;
    guesses.prefix = POLICY_PREFIX_DISPATCH;
    guesses.prefix_max_blocks = 2;
    guesses.prefix_min_block_tok = 64; /* not the worker's 16 */
    lay(&b, "b");
    b.config.own_policy = &guesses;
    start(&b);
    r.keys = keys;
    r.n_keys = 4;
    r.key_tok = 64;
    arrive_with(&b, 0, &r);
    assert_true(expect(&b, CORE_CMD_DISPATCH, 0, 0).overlap_tok == 0);
    arrive_with(&b, 1, &r); /* three whole blocks, of which two are remembered */
    assert_true(expect(&b, CORE_CMD_DISPATCH, 1, 0).overlap_tok == 128);
    clear(&b);

    guesses.prefix = POLICY_PREFIX_NONE; /* and who does not ask is not told */
    guesses.prefix_max_blocks = guesses.prefix_min_block_tok = 0;
    b.config.own_policy = &guesses;
    start(&b);
    arrive_with(&b, 0, &r);
    assert_true(expect(&b, CORE_CMD_DISPATCH, 0, 0).overlap_tok == -1);
    clear(&b);
}

/* Equal events and seed, equal commands. */
static void test_repeatable(void **unused)
{
    (void)unused;
    for (uint64_t other = 0; other < 2; other++) {
        struct bed a, b;
        uint32_t same = 0;
        lay(&a, "bbbbbbbb");
        a.config.own_policy = NULL;
        a.config.policy = "random";
        a.config.seed = 1;
        b = a;
        b.config.workers = b.workers;
        b.config.seed = 1 + other;
        start(&a);
        start(&b);
        for (uint32_t h = 0; h < 100; h++) {
            struct core_command x, y;
            arrive(&a, h);
            arrive(&b, h);
            assert_true(core_next(a.core, &x) && core_next(b.core, &y));
            same += x.worker == y.worker;
        }
        assert_true(other ? same < 50 : same == 100);
        clear(&a);
        clear(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_config),
        cmocka_unit_test(test_bad_retry_budget),
        cmocka_unit_test(test_policy_params),
        cmocka_unit_test(test_needs),
        cmocka_unit_test(test_events_by_phase),
        cmocka_unit_test(test_bad_events),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_unread_commands),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_policy_refuses),
        cmocka_unit_test(test_no_worker),
        cmocka_unit_test(test_queue_full),
        cmocka_unit_test(test_table_full),
        cmocka_unit_test(test_timeout),
        cmocka_unit_test(test_timeout_makes_room),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_lost_keeps_place),
        cmocka_unit_test(test_loss_opens_worker),
        cmocka_unit_test(test_passing),
        cmocka_unit_test(test_no_limit),
        cmocka_unit_test(test_queue_bytes),
        cmocka_unit_test(test_drop_late),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_breaker),
        cmocka_unit_test(test_blame),
        cmocka_unit_test(test_panic),
        cmocka_unit_test(test_retry_budget),
        cmocka_unit_test(test_retry),
        cmocka_unit_test(test_retry_same_worker),
        cmocka_unit_test(test_retry_partial),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_source_first),
        cmocka_unit_test(test_destination_first),
        cmocka_unit_test(test_decode_full),
        cmocka_unit_test(test_local_prefill),
        cmocka_unit_test(test_pd_losses),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_down),
        cmocka_unit_test(test_workers_come_and_go),
        cmocka_unit_test(test_nobody_waits_for_one_who_left),
        cmocka_unit_test(test_foreign_load),
        cmocka_unit_test(test_reconfigure),
        cmocka_unit_test(test_reconfigure_knobs),
        cmocka_unit_test(test_guessed_prefixes),
        cmocka_unit_test(test_repeatable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
