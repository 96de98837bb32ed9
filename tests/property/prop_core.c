/* prop_core.c - the decision core against a book of its promises: random fleets (roles, sizes, limits), every policy,
 * and random events: arrivals, answers, losses (also of requests just sent, before the other commands are read),
 * cancels, workers that die, hang, fail and drag, drain and come back, leave and are added, limits that change,
 * telemetry that is late or wrong, late timers, nonsense. Most cases are short: about a thousand a second in a debug
 * build.
 *
 * Held to: a request is answered once and none is lost; it goes only to workers that are up, of the right role, large
 * enough and below their limit, and after a loss to another one while there is one; nobody who could go waits, and
 * nobody overtakes one of the same priority and turn who could have gone; refusals have their reason; the bounds of the
 * queue and its deadlines hold; nothing is tried again after a part of its answer, retries are counted, end, and stay
 * within their budget; ejected workers get nothing, one that is tried gets one at a time, and as long as any are up
 * some are used (panic); books and counters agree. And: tenants that wait get their share, within the bound that
 * fairness.h names.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/core/core.c" /* to see its books */
#include "tests/support/prop.h"

#define N_WORKERS 12
#define N_REQUESTS 150
#define N_KEYS 8
#define N_OPS 1200
#define CASES 1600

enum state {
    NONE,
    ASKED,
    WAITING_RETRY,
    WAITING,
    WAITING_KV,
    IN_WHOLE,
    IN_PREFILL,
    HAS_KV,
    IN_DECODE
};

struct client {
    enum state state;
    struct core_request r;
    uint64_t keys[N_KEYS];
    uint32_t worker, peer, avoid, losses, streamed;
    uint64_t seq;
    int64_t held_ps, arrived_ps, until_ps; /* until_ps: held until then */
    bool later;      /* lost, and beyond the retry budget: told to wait before anything else */
    bool partial;    /* its last loss was after the first bytes */
    bool peer_lost;  /* its decode worker went down before the hand-over */
    bool dispatched; /* at least once: the bound of the queue does not count it any more */
    bool tokens;
};

enum manners { FINE, FAILS, HANGS };

struct machine {
    bool up, draining, vacant;
    enum manners manners;
    uint32_t inflight;
    uint64_t tok;
};

struct bed {
    struct rng rng;
    struct core *core;
    struct core_config config;
    struct core_worker_config workers[N_WORKERS];
    struct machine m[N_WORKERS];
    struct client c[N_REQUESTS];
    int64_t now_ps;
    uint64_t seq;
    struct core_stats expect;
    uint32_t n_tenants;
    int64_t unit_ps; /* how fast time goes */
    /* the last ten seconds, by tenth: what the retry budget is about */
    int64_t tenth;
    uint32_t arrived[100], retried[100];
    bool ending;   /* workers behave */
    bool panicked; /* at some time */
    bool timer;    /* the event under way is a timer */
    bool
        shifted; /* it has changed who is healthy: commands may have been decided before or after */
    bool retries; /* it is a loss after which the request is tried again */
    /* the commands yet to be read were decided before the last event */
    bool nested;
};

static struct {
    uint64_t done, held, retried, delayed, ejections, cancelled, rejected[CORE_REASON_COUNT],
        legs[3];
} totals;

static uint32_t below(struct bed *b, uint32_t n)
{
    return (uint32_t)rng_below(&b->rng, n);
}

/* ---- what the model says */

static uint64_t need(const struct client *c)
{
    return (uint64_t)c->r.prompt_tok + (c->r.max_tokens ? c->r.max_tokens : 1);
}

static bool fits(const struct bed *b, const struct client *c, uint32_t w)
{
    return b->m[w].tok >= need(c);
}

static bool ready(const struct bed *b, uint32_t w)
{
    return b->m[w].up && !b->m[w].draining;
}

static bool open_now(const struct bed *b, uint32_t w)
{
    return ready(b, w) && (!b->config.max_inflight_per_worker ||
                           b->m[w].inflight < b->config.max_inflight_per_worker);
}

static const struct health *health(const struct bed *b)
{
    return &b->core->fleet.health;
}

static bool trusted(const struct bed *b, uint32_t w)
{
    return ready(b, w) && health_trusts(health(b), w);
}

/* Whether any worker of the role has `what`, and room for c. */
static bool any(const struct bed *b, const struct client *c, enum worker_role role,
                bool (*what)(const struct bed *, uint32_t))
{
    for (uint32_t w = 0; w < b->config.n_workers; w++) {
        if (b->workers[w].role == role && fits(b, c, w) && what(b, w))
            return true;
    }
    return false;
}

static bool exists(const struct bed *b, uint32_t w)
{
    (void)b;
    (void)w;
    return true;
}

static bool may_come(const struct bed *b, uint32_t w)
{
    return !b->m[w].draining;
}

/* Whether the path that c still has before it has workers with `what`. */
static bool path(const struct bed *b, const struct client *c, bool decode_only,
                 bool (*what)(const struct bed *, uint32_t))
{
    bool decode = any(b, c, ROLE_DECODE, what) || any(b, c, ROLE_BOTH, what);
    if (decode_only)
        return decode;
    return any(b, c, ROLE_BOTH, what) || (any(b, c, ROLE_PREFILL, what) && decode);
}

/* Whether worker w, were it to take c's next leg now, is one the core may choose. Workers that c was lost on are
 * left out of this: the core may use them or not. */
static bool could_take(const struct bed *b, const struct client *c, uint32_t w)
{
    bool kv = c->state == WAITING_KV || c->state == HAS_KV;
    if (!open_now(b, w) || !fits(b, c, w) || w == c->avoid ||
        !health_admits(health(b), w, b->m[w].inflight))
        return false;
    if (b->workers[w].role == ROLE_BOTH)
        return true;
    if (kv || b->workers[w].role == ROLE_DECODE)
        return kv && b->workers[w].role == ROLE_DECODE;
    if (!b->config.destination_first)
        return any(b, c, ROLE_DECODE, ready) || any(b, c, ROLE_BOTH, ready);
    for (uint32_t d = 0; d < b->config.n_workers; d++) {
        if (d != c->avoid && b->workers[d].role != ROLE_PREFILL && fits(b, c, d) &&
            open_now(b, d) && health_admits(health(b), d, b->m[d].inflight))
            return true;
    }
    return false;
}

/* Rounds are as fairness.c gave them: with one tenant, or without fairness, they never fall. */
static bool ahead(const struct bed *b, const struct client *a, const struct client *c)
{
    if (a->r.priority != c->r.priority)
        return a->r.priority < c->r.priority;
    if (b->config.fair_quantum_tok && b->n_tenants > 1 && a->state == WAITING) {
        uint64_t x = b->core->requests[a - b->c].ticket.round;
        uint64_t y = b->core->requests[c - b->c].ticket.round;
        if (x != y)
            return x < y;
    }
    return a->seq < c->seq;
}

/* ---- commands, read and judged one by one */

static void tell(struct bed *b, struct core_event ev);

static bool waits(const struct client *c)
{
    return c->state == ASKED || c->state == WAITING || c->state == WAITING_RETRY;
}

/* Time goes on for the budget. */
static void turn_tenths(struct bed *b)
{
    for (int64_t now = b->now_ps / (PS_PER_S / 10); b->tenth < now;) {
        if (now - b->tenth > 100)
            b->tenth = now - 101;
        b->tenth++;
        b->arrived[b->tenth % 100] = b->retried[b->tenth % 100] = 0;
    }
}

/* Whether the budget has room for one retry more. The core may have spent more than is seen here, on requests for which
 * there was no worker then. */
static bool within_budget(const struct bed *b)
{
    uint64_t arrived = 0, retried = 1;
    for (int i = 0; i < 100; i++) {
        arrived += b->arrived[i];
        retried += b->retried[i];
    }
    return !b->config.retry.budget ||
           retried * 100 <=
               arrived * b->config.retry.percent + UINT64_C(1000) * b->config.retry.floor_per_s;
}

/* A lost request is tried again, now or as soon as there is a worker. */
static void spend_retry(struct bed *b, struct client *c)
{
    assert_true(within_budget(b));
    b->retried[b->tenth % 100]++;
    c->later = false;
}

/* By the core's own books. */
static bool is_spent(const struct bed *b)
{
    const struct retry_budget *u = &b->core->budget;
    return (u->retries + 1) * 100 > u->arrivals * u->percent + UINT64_C(1000) * u->floor_per_s;
}

static void check_target(const struct bed *b, const struct client *c, uint32_t w)
{
    assert_true(w < b->config.n_workers);
    assert_true(open_now(b, w));
    assert_true(fits(b, c, w));
    if (!b->nested && !b->shifted)
        assert_true(trusted(b, w) || health(b)->workers[w].state == CORE_HEALTH_PROBING);
    if (w != c->avoid || b->nested || b->shifted)
        return;
    for (uint32_t i = 0; i < b->config.n_workers; i++)
        assert_false(i != w && b->workers[i].role == b->workers[w].role && trusted(b, i) &&
                     fits(b, c, i));
}

/* Nobody of the same queue, ahead of c, could have had worker w. */
static void check_order(const struct bed *b, const struct client *c, uint32_t w)
{
    enum state queue = c->state == HAS_KV || c->state == WAITING_KV ? WAITING_KV : WAITING;
    if (b->nested)
        return;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        const struct client *a = &b->c[i];
        assert_false(a != c && a->state == queue && ahead(b, a, c) && could_take(b, a, w));
    }
}

static void check_dispatch(struct bed *b, const struct core_command *cmd)
{
    struct client *c = &b->c[cmd->request];
    bool decode = cmd->kind == CORE_CMD_DISPATCH_DECODE;
    enum worker_role role = b->workers[cmd->worker].role;
    assert_int_equal(cmd->attempt, c->losses);
    if (c->state == WAITING_RETRY)
        spend_retry(b, c);
    assert_false(c->later);
    if (decode && c->state == HAS_KV && cmd->worker == c->peer) {
        /* destination-first, as promised: whether it has room was asked then */
        assert_true(b->m[cmd->worker].up && !c->peer_lost);
        b->m[cmd->worker].inflight--;
    } else {
        check_target(b, c, cmd->worker);
        check_order(b, c, cmd->worker);
    }
    b->m[cmd->worker].inflight++;
    c->dispatched = true;
    c->tokens = false;
    c->streamed = 0;
    if (decode) {
        assert_true(role != ROLE_PREFILL);
        assert_true(c->state == HAS_KV || c->state == WAITING_KV);
        assert_int_equal(cmd->peer, c->worker);
        b->m[c->worker].inflight--;
        c->peer = c->worker;
        c->worker = cmd->worker;
        c->state = IN_DECODE;
        totals.legs[2]++;
        return;
    }
    assert_true(waits(c));
    c->worker = cmd->worker;
    c->peer = cmd->peer;
    if (cmd->kind == CORE_CMD_DISPATCH) {
        assert_int_equal(role, ROLE_BOTH);
        assert_int_equal(cmd->peer, CORE_NO_WORKER);
        c->state = IN_WHOLE;
        totals.legs[0]++;
        return;
    }
    assert_int_equal(role, ROLE_PREFILL);
    assert_int_equal(cmd->peer != CORE_NO_WORKER, b->config.destination_first);
    c->state = IN_PREFILL;
    c->peer_lost = false;
    totals.legs[1]++;
    if (cmd->peer == CORE_NO_WORKER)
        return;
    assert_true(b->workers[cmd->peer].role != ROLE_PREFILL);
    check_target(b, c, cmd->peer);
    b->m[cmd->peer].inflight++;
}

/* Takes c off all workers, as the model sees it. */
static void clear(struct bed *b, struct client *c)
{
    if (c->state >= IN_WHOLE || c->state == WAITING_KV)
        b->m[c->worker].inflight--;
    if ((c->state == IN_PREFILL || c->state == HAS_KV || c->state == WAITING_KV) &&
        c->peer != CORE_NO_WORKER)
        b->m[c->peer].inflight--;
    c->worker = c->peer = CORE_NO_WORKER;
}

/* In the admission queue; of these, those that never left it. */
static uint32_t count_waiting(const struct bed *b, bool new_only)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        n += b->c[i].state == WAITING && !(new_only && b->c[i].dispatched);
    return n;
}

static bool full(const struct bed *b, const struct client *c)
{
    uint64_t bytes = c->r.bytes;
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        bytes += b->c[i].state == WAITING ? b->c[i].r.bytes : 0;
    return count_waiting(b, false) >= b->config.queue_max_requests ||
           (b->config.queue_max_bytes && bytes > b->config.queue_max_bytes);
}

/* When c, which waits, is to give up. */
static int64_t deadline_ps(const struct bed *b, const struct client *c)
{
    int64_t limit = b->config.queue_timeout_ps, slo = c->r.slo_ttft_ps;
    int64_t a = limit == PS_NEVER ? PS_NEVER : c->held_ps + limit;
    if (!b->config.drop_late || slo == PS_NEVER || c->state == WAITING_KV)
        return a;
    return c->arrived_ps + slo < a ? c->arrived_ps + slo : a;
}

static void check_reason(const struct bed *b, const struct client *c, enum core_reason reason)
{
    bool kv = c->state == WAITING_KV || c->state == HAS_KV, lost = c->partial;
    bool late = (c->state == WAITING || c->state == WAITING_KV) && b->now_ps >= c->until_ps;
    switch (reason) {
    case CORE_REASON_QUEUE_FULL:
        assert_true(c->state == ASKED && !c->losses);
        assert_true(full(b, c));
        assert_true(path(b, c, false, ready));
        break;
    case CORE_REASON_SATURATED: assert_string_equal(b->config.policy, "prob_admit"); break;
    case CORE_REASON_SLO:
        if (b->now_ps - c->arrived_ps < c->r.slo_ttft_ps)
            assert_string_equal(b->config.policy, "ttft_gate");
        break;
    case CORE_REASON_NO_WORKER:
        assert_true(!path(b, c, kv, ready));
        assert_true(!path(b, c, kv, may_come) || late || (full(b, c) && !c->losses));
        break;
    case CORE_REASON_TOO_LARGE: assert_false(path(b, c, false, exists)); break;
    case CORE_REASON_RETRIES:
        if (c->losses > b->config.max_retries && c->state == ASKED)
            break;
        assert_true(c->state == WAITING_RETRY && b->now_ps >= c->until_ps);
        break;
    case CORE_REASON_PARTIAL: assert_true(lost && !b->config.retry_partial); break;
    case CORE_REASON_TIMEOUT: assert_true(late && path(b, c, kv, ready)); break;
    default: fail_msg("reason %d", (int)reason);
    }
}

static void check_reject(struct bed *b, const struct core_command *cmd)
{
    struct client *c = &b->c[cmd->request];
    /* with its KV on a worker, a CANCEL came first and took it off there */
    assert_true(waits(c) || c->state == WAITING_KV || c->state == HAS_KV);
    assert_int_equal(c->worker, CORE_NO_WORKER);
    check_reason(b, c, cmd->reason);
    b->expect.rejected[cmd->reason]++;
    totals.rejected[cmd->reason]++;
    c->state = NONE;
}

static void check_hold(struct bed *b, const struct core_command *cmd)
{
    struct client *c = &b->c[cmd->request];
    assert_true(c->state == ASKED || c->state == WAITING_RETRY || c->state == HAS_KV);
    if (c->state == WAITING_RETRY)
        spend_retry(b, c);
    if (c->state == HAS_KV)
        c->state = WAITING_KV;
    else
        c->state = c->later ? WAITING_RETRY : WAITING;
    b->expect.delayed += c->later;
    c->later = false;
    c->held_ps = b->now_ps;
    c->until_ps = deadline_ps(b, c);
    b->expect.held++;
    totals.held++;
    if (!c->dispatched && c->state == WAITING)
        assert_true(count_waiting(b, true) <= b->config.queue_max_requests);
}

static void check_command(struct bed *b, const struct core_command *cmd)
{
    assert_true(cmd->request < N_REQUESTS);
    struct client *c = &b->c[cmd->request];
    switch (cmd->kind) {
    case CORE_CMD_DISPATCH:
    case CORE_CMD_DISPATCH_PREFILL:
    case CORE_CMD_DISPATCH_DECODE:
        b->expect.dispatched++;
        check_dispatch(b, cmd);
        if (below(b, 40) == 0) { /* refused at once, before the next command is read */
            b->nested = true;
            tell(b, (struct core_event){
                        .kind = CORE_EV_FAILED, .request = cmd->request, .worker = cmd->worker});
        }
        break;
    case CORE_CMD_HOLD: check_hold(b, cmd); break;
    case CORE_CMD_REJECT: check_reject(b, cmd); break;
    case CORE_CMD_CANCEL:
        /* told for legs that the model has taken off already (cancelled, lost), or KV that waits */
        assert_true(cmd->worker < b->config.n_workers);
        if (c->state == WAITING_KV || c->state == HAS_KV)
            clear(b, c);
        break;
    }
}

/* ---- events */

static void read_commands(struct bed *b)
{
    struct core_command cmd;
    while (core_next(b->core, &cmd))
        check_command(b, &cmd);
}

static struct machine as_configured(const struct core_worker_config *c)
{
    uint64_t tok = c->num_gpu_blocks ? (uint64_t)c->block_size * c->num_gpu_blocks : UINT64_MAX;
    if (c->max_model_len && c->max_model_len < tok)
        tok = c->max_model_len;
    return (struct machine){.up = c->up, .tok = tok};
}

/* What the event means to the model, before the core hears of it. */
static void apply(struct bed *b, const struct core_event *ev)
{
    struct client *c = &b->c[ev->request];
    switch (ev->kind) {
    case CORE_EV_ARRIVAL:
        c->state = ASKED;
        c->worker = c->peer = c->avoid = CORE_NO_WORKER;
        c->losses = c->streamed = 0;
        c->dispatched = c->partial = c->later = false;
        b->arrived[b->tenth % 100]++;
        c->seq = b->seq++;
        c->arrived_ps = b->now_ps;
        b->expect.arrivals++;
        break;
    case CORE_EV_PREFILL_DONE:
        c->state = HAS_KV;
        if (c->peer != CORE_NO_WORKER && (c->peer_lost || !b->m[c->peer].up)) {
            b->m[c->peer].inflight--; /* the one promised is gone: another will do */
            c->peer = CORE_NO_WORKER;
        }
        break;
    case CORE_EV_FIRST_TOKEN: c->tokens = true; break;
    case CORE_EV_PROGRESS: c->streamed = ev->n; break;
    case CORE_EV_DONE:
        clear(b, c);
        c->state = NONE;
        b->expect.done++;
        totals.done++;
        break;
    case CORE_EV_FAILED:
        clear(b, c);
        c->partial = ev->partial || c->streamed;
        c->state = ASKED;
        c->avoid = ev->worker;
        if (c->losses++ < b->config.max_retries && (!c->partial || b->config.retry_partial)) {
            b->expect.retried++;
            b->retries = true;
        }
        break;
    case CORE_EV_CANCELLED:
        clear(b, c);
        c->state = NONE;
        b->expect.cancelled++;
        totals.cancelled++;
        break;
    case CORE_EV_WORKER_UP:
        b->m[ev->worker].up = true;
        b->m[ev->worker].draining = false;
        break;
    case CORE_EV_WORKER_DOWN:
        b->m[ev->worker].up = false;
        for (uint32_t i = 0; i < N_REQUESTS; i++) {
            if (b->c[i].state == IN_PREFILL && b->c[i].peer == ev->worker)
                b->c[i].peer_lost = true;
        }
        break;
    case CORE_EV_WORKER_DRAIN: b->m[ev->worker].draining = true; break;
    case CORE_EV_WORKER_ADDED: b->m[ev->worker] = as_configured(ev->added); break;
    case CORE_EV_WORKER_GONE:
        b->m[ev->worker] = (struct machine){.draining = true, .vacant = true};
        break;
    default: break;
    }
}

static void check_books(const struct bed *b)
{
    const struct fleet *f = &b->core->fleet;
    uint32_t queued = 0, inflight = 0;
    for (uint32_t w = 0; w < b->config.n_workers; w++) {
        uint32_t prefilling = 0;
        uint64_t prompts = 0;
        const struct core_load *foreign = &f->foreign[w];
        struct core_load own = core_own_load(b->core, w);
        assert_int_equal(f->inflight[w], b->m[w].inflight + foreign->requests);
        for (uint32_t i = 0; i < N_REQUESTS; i++) {
            const struct client *c = &b->c[i];
            bool prefill = (c->state == IN_WHOLE || c->state == IN_PREFILL) && c->worker == w;
            prefilling += prefill && !c->tokens && !c->streamed;
            if (c->state >= IN_WHOLE || c->state == WAITING_KV)
                prompts += (c->worker == w) * c->r.prompt_tok;
            if (c->state == IN_PREFILL)
                prompts += (c->peer == w) * c->r.prompt_tok;
        }
        assert_int_equal(f->prefilling[w], prefilling + foreign->prefilling);
        assert_int_equal(f->inflight_tok[w], prompts + foreign->prompt_tok);
        assert_true(f->prefill_tok[w] >= foreign->prefill_tok);
        assert_int_equal(own.requests, b->m[w].inflight);
        assert_int_equal(own.prefilling, prefilling);
        assert_int_equal(own.prompt_tok, prompts);
        assert_true(prefilling || !own.prefill_tok);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        assert_true(b->c[i].state != ASKED && b->c[i].state != HAS_KV); /* all are answered */
        queued += b->c[i].state >= WAITING_RETRY && b->c[i].state <= WAITING_KV;
        inflight += b->c[i].state >= IN_WHOLE;
    }
    struct core_stats s;
    core_get_stats(b->core, &s);
    assert_int_equal(s.queued, queued);
    assert_int_equal(s.inflight, inflight);
    assert_int_equal(s.arrivals, b->expect.arrivals);
    assert_int_equal(s.done, b->expect.done);
    assert_int_equal(s.held, b->expect.held);
    assert_int_equal(s.dispatched, b->expect.dispatched);
    assert_int_equal(s.cancelled, b->expect.cancelled);
    assert_int_equal(s.retried, b->expect.retried);
    assert_int_equal(s.delayed, b->expect.delayed);
    assert_memory_equal(s.rejected, b->expect.rejected, sizeof s.rejected);
}

/* The books of health, and what they may lead to. */
static void check_health(struct bed *b)
{
    const struct health *h = health(b);
    uint32_t n_ready[FLEET_ROLES] = {0}, n_sick[FLEET_ROLES] = {0}, n_used[FLEET_ROLES] = {0};
    uint32_t ramping = 0, probing = 0;
    for (uint32_t w = 0; w < b->config.n_workers; w++) {
        const struct health_worker *k = &h->workers[w];
        enum worker_role role = b->workers[w].role;
        assert_int_equal(k->ready, ready(b, w));
        assert_true(k->ready || k->state == CORE_HEALTH_OK);
        n_ready[role] += k->ready;
        n_sick[role] += k->state != CORE_HEALTH_OK;
        n_used[role] += trusted(b, w);
        ramping += k->ramping;
        probing += k->state == CORE_HEALTH_PROBING;
        if (k->state == CORE_HEALTH_EJECTED)
            assert_true(k->until_ps > b->now_ps && h->next_ps <= k->until_ps);
        b->panicked |= h->panic[role];
        if (k->state == CORE_HEALTH_PROBING && !b->panicked) /* one in a panic has more */
            assert_true(b->m[w].inflight <= k->least + 1);
    }
    for (int role = 0; role < FLEET_ROLES; role++) {
        assert_int_equal(h->n_ready[role], n_ready[role]);
        assert_int_equal(h->n_sick[role], n_sick[role]);
        assert_true(!b->config.health.panic_percent || !n_ready[role] || n_used[role]);
    }
    assert_int_equal(h->n_ramping, ramping);
    assert_int_equal(h->n_probing, probing);
}

/* Nobody waits who could go, and nobody beyond the deadline. */
static void check_waiting(const struct bed *b)
{
    int64_t next = health_next_ps(health(b));
    bool later = false;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        const struct client *c = &b->c[i];
        if (c->state < WAITING_RETRY || c->state > WAITING_KV)
            continue;
        later |= c->state == WAITING_RETRY;
        for (uint32_t w = 0; c->state != WAITING_RETRY && w < b->config.n_workers; w++)
            assert_false(could_take(b, c, w));
        int64_t deadline = c->until_ps;
        next = deadline < next ? deadline : next;
        assert_true(b->timer ? deadline > b->now_ps : deadline >= b->now_ps);
    }
    assert_true(!later || is_spent(b));
    if (later && retry_budget_again_ps(&b->core->budget) < next)
        next = retry_budget_again_ps(&b->core->budget);
    assert_int_equal(core_next_timer_ps(b->core), next);
}

static void tell(struct bed *b, struct core_event ev)
{
    ev.now_ps = b->now_ps;
    turn_tenths(b);
    b->retries = false;
    apply(b, &ev);
    struct core_worker_state was[N_WORKERS], is;
    for (uint32_t w = 0; w < b->config.n_workers; w++)
        core_get_worker(b->core, w, &was[w]);
    b->shifted = health_next_ps(health(b)) <= b->now_ps; /* a late timer: two changes at once */
    assert_int_equal(core_event(b->core, &ev), 0);
    for (uint32_t w = 0; w < b->config.n_workers; w++) {
        core_get_worker(b->core, w, &is);
        b->shifted |= was[w].used != is.used || was[w].health != is.health;
    }
    if (!b->retries)
        return;
    struct client *c = &b->c[ev.request];
    c->later = b->core->requests[ev.request].phase == HELD_RETRY;
    assert_true(!c->later || is_spent(b));
    if (!c->later && b->core->requests[ev.request].phase != FREE)
        spend_retry(b, c);
}

static void happen(struct bed *b, struct core_event ev)
{
    b->timer = ev.kind == CORE_EV_TIMER;
    b->nested = false;
    tell(b, ev);
    read_commands(b);
    check_books(b);
    check_health(b);
    check_waiting(b);
}

/* ---- a case */

static int64_t span(struct bed *b, uint32_t n)
{
    return (1 + below(b, n)) * b->unit_ps;
}

static struct core_health_config some_health(struct bed *b)
{
    struct core_health_config h = {.breaker_failures = below(b, 3) ? 1 + below(b, 4) : 0,
                                   .outlier_failure_percent = below(b, 2) * (1 + below(b, 60)),
                                   .outlier_latency_percent = below(b, 2) * (101 + below(b, 300)),
                                   .outlier_interval_ps = span(b, 20000),
                                   .eject_ps = span(b, 1000),
                                   .eject_max_percent = below(b, 101),
                                   .panic_percent = below(b, 3) ? 1 + below(b, 100) : 0,
                                   .slow_start_ps = below(b, 2) * span(b, 5000)};
    h.eject_max_ps = h.eject_ps + below(b, 2) * span(b, 10000);
    return h;
}

static struct core_worker_config a_worker(struct bed *b, enum worker_role role)
{
    uint32_t len = below(b, 3) ? 0 : 600 + below(b, 3) * 300;
    return (struct core_worker_config){.role = role,
                                       .block_size = below(b, 4) ? 16 : 64,
                                       .num_gpu_blocks = below(b, 4) ? 1000 : 0,
                                       .max_model_len = len,
                                       .up = below(b, 5) > 0};
}

static void lay(struct bed *b, uint64_t seed)
{
    memset(b, 0, sizeof *b);
    rng_init(&b->rng, seed);
    b->unit_ps = below(b, 2) ? 1 : PS_PER_S / 100;
    uint32_t n = 1 + below(b, N_WORKERS), kind = below(b, 3);
    uint32_t limits[] = {0, 1, 2, 5};
    if (kind && n < 3)
        n = 3;
    for (uint32_t w = 0; w < n; w++) {
        enum worker_role role = ROLE_BOTH; /* all alike, P/D, or some of each */
        if (kind == 1)
            role = w % 2 ? ROLE_DECODE : ROLE_PREFILL;
        else if (kind == 2)
            role = (enum worker_role)(w % 3);
        b->workers[w] = a_worker(b, role);
        b->m[w] = as_configured(&b->workers[w]);
    }
    b->config = (struct core_config){
        .policy = core_policies[below(b, core_policies_count)]->name,
        .seed = seed,
        .n_workers = n,
        .workers = b->workers,
        .spare_workers = below(b, N_WORKERS + 1 - n),
        .queue_max_requests = below(b, 3) ? below(b, 40) : N_REQUESTS,
        .queue_max_bytes = below(b, 3) ? 0 : below(b, 4000),
        .drop_late = below(b, 2),
        .fair_quantum_tok = below(b, 2) ? 0 : 1 + below(b, 2000),
        .queue_timeout_ps = below(b, 2) ? PS_NEVER : span(b, 3000),
        .max_inflight_per_worker = limits[below(b, 4)],
        .max_retries = below(b, 4),
        .retry_partial = below(b, 2),
        .destination_first = below(b, 2),
        .max_requests = N_REQUESTS,
    };
    if (below(b, 2))
        b->config.retry = (struct core_retry_config){
            .budget = true, .percent = below(b, 3) * 20, .floor_per_s = 1 + below(b, 2)};
    if (below(b, 3))
        b->config.health = some_health(b);
    b->n_tenants = 1 + below(b, 2) * below(b, 5);
    struct core_tenant heavy = {.id = 1, .weight = 3};
    b->config.tenants = &heavy;
    b->config.n_tenants = below(b, 2);
    const char *why;
    b->core = core_new(&b->config, &why);
    b->config.tenants = NULL;
    assert_non_null(b->core);
    for (uint32_t w = n; w < n + b->config.spare_workers; w++)
        b->m[w] = (struct machine){.draining = true, .vacant = true};
    b->config.n_workers += b->config.spare_workers; /* from here on: all places */
}

/* A request in one of the states from..to; N_REQUESTS: none found. */
static uint32_t some(struct bed *b, enum state from, enum state to)
{
    uint32_t i = below(b, N_REQUESTS);
    for (uint32_t k = 0; k < N_REQUESTS; k++, i = (i + 1) % N_REQUESTS) {
        if (b->c[i].state >= from && b->c[i].state <= to)
            return i;
    }
    return N_REQUESTS;
}

static void op_arrival(struct bed *b)
{
    uint32_t i = some(b, NONE, NONE);
    if (i == N_REQUESTS)
        return;
    struct client *c = &b->c[i];
    int64_t slo = below(b, 2) ? 50 * PS_PER_MS : span(b, 3000);
    for (uint32_t k = 0; k < N_KEYS; k++)
        c->keys[k] = 1 + rng_mix64((k ? c->keys[k - 1] : 0) + below(b, 3));
    c->r = (struct core_request){.prompt_tok = 1 + below(b, below(b, 4) ? 500 : 1200),
                                 .max_tokens = below(b, 2) ? 0 : below(b, 300),
                                 .priority = (int32_t)below(b, 3) - 1,
                                 .session = below(b, 4),
                                 .tenant = below(b, b->n_tenants),
                                 .bytes = below(b, 200),
                                 .keys = c->keys,
                                 .n_keys = below(b, N_KEYS + 1),
                                 .key_tok = 64,
                                 .slo_ttft_ps = below(b, 2) ? PS_NEVER : slo,
                                 .slo_tpot_ps = PS_NEVER};
    happen(b, (struct core_event){.kind = CORE_EV_ARRIVAL, .request = i, .req = &c->r});
}

/* Loses c on its worker (or, P/D, now and then on the other side). */
static void op_failed(struct bed *b, uint32_t i)
{
    struct client *c = &b->c[i];
    uint32_t w = c->worker;
    if (c->state != WAITING_KV && c->peer != CORE_NO_WORKER && below(b, 4) == 0)
        w = c->peer;
    happen(b, (struct core_event){
                  .kind = CORE_EV_FAILED, .request = i, .worker = w, .partial = below(b, 4) == 0});
}

static void op_down(struct bed *b)
{
    uint32_t w = below(b, b->config.n_workers);
    bool before = below(b, 2);
    if (b->m[w].vacant)
        return;
    if (before)
        happen(b, (struct core_event){.kind = CORE_EV_WORKER_DOWN, .worker = w});
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct client *c = &b->c[i];
        bool there = c->state >= IN_WHOLE || c->state == WAITING_KV;
        if (there && c->worker == w)
            op_failed(b, i);
    }
    if (!before)
        happen(b, (struct core_event){.kind = CORE_EV_WORKER_DOWN, .worker = w});
}

/* An answer makes headway; WAITING_KV does not by itself. */
static void op_step(struct bed *b, uint32_t i)
{
    struct client *c = &b->c[i];
    struct core_event ev = {.request = i, .worker = c->worker};
    enum manners manners = b->m[c->worker].manners;
    if (!b->ending && manners == HANGS)
        return;
    if (!b->ending && manners == FAILS && below(b, 5)) {
        op_failed(b, i);
        return;
    }
    if (c->state == IN_PREFILL) {
        ev.kind = CORE_EV_PREFILL_DONE;
    } else if (below(b, 3) == 0) {
        ev.kind = CORE_EV_FIRST_TOKEN;
    } else if (below(b, 3) == 0) {
        ev.kind = CORE_EV_PROGRESS;
        ev.n = c->streamed + below(b, 3);
    } else {
        ev.kind = CORE_EV_DONE;
        ev.n = below(b, 20);
        ev.error = below(b, 20) == 0;
        ev.first_token_ps = below(b, 2) ? b->now_ps - below(b, 100) * b->unit_ps : 0;
    }
    happen(b, ev);
}

static void op_report(struct bed *b)
{
    uint32_t w = below(b, b->config.n_workers);
    if (b->m[w].vacant)
        return;
    struct core_telemetry t = {.at_ps = b->now_ps - below(b, 50) * b->unit_ps,
                               .running = below(b, 9),
                               .waiting = below(b, 9),
                               .kv_used_blocks = below(b, 1000),
                               .kv_total_blocks = 1000};
    t.at_ps = t.at_ps < 0 ? 0 : t.at_ps;
    happen(b, (struct core_event){.kind = CORE_EV_TELEMETRY, .worker = w, .telemetry = &t});
    struct core_load load = {.requests = 3 + below(b, 9),
                             .prefilling = below(b, 3),
                             .prefill_tok = below(b, 500),
                             .prompt_tok = below(b, 5000)};
    happen(b, (struct core_event){.kind = CORE_EV_FOREIGN, .worker = w, .load = &load});
    const struct client *c = &b->c[below(b, N_REQUESTS)];
    struct core_cache_event e = {
        .stored = below(b, 3) > 0, .depth = below(b, 3), .n_blocks = 3, .keys = c->keys};
    happen(b, (struct core_event){.kind = CORE_EV_CACHE, .worker = w, .cache = &e});
}

/* Whatever an adapter gets wrong is refused, and changes nothing that can be seen. */
/* A worker leaves for good, or one comes into a place that is free. */
static void op_place(struct bed *b)
{
    uint32_t w = below(b, b->config.n_workers);
    struct machine *m = &b->m[w];
    struct core_worker_config *k = &b->workers[w];
    if (m->vacant) {
        *k = a_worker(b, (enum worker_role)below(b, 3));
        happen(b, (struct core_event){.kind = CORE_EV_WORKER_ADDED, .worker = w, .added = k});
    } else if ((!m->up || m->draining) && !m->inflight) {
        happen(b, (struct core_event){.kind = CORE_EV_WORKER_GONE, .worker = w});
    }
}

/* Other limits. */
static void op_reload(struct bed *b)
{
    struct core_config c = b->config;
    const char *why;
    c.queue_max_requests = below(b, 40);
    c.queue_max_bytes = below(b, 3) ? 0 : below(b, 4000);
    c.drop_late = below(b, 2);
    c.queue_timeout_ps = below(b, 2) ? PS_NEVER : span(b, 3000);
    c.max_inflight_per_worker = below(b, 6);
    c.max_retries = below(b, 4);
    c.retry_partial = below(b, 2);
    if (below(b, 2))
        c.health = some_health(b);
    if (below(b, 2))
        c.retry = (struct core_retry_config){
            .budget = below(b, 2), .percent = below(b, 100), .floor_per_s = 1 + below(b, 3)};
    c.n_workers -= c.spare_workers;
    c.n_tenants = 0;
    happen(b, (struct core_event){.kind = CORE_EV_TIMER});
    b->shifted = true;
    assert_int_equal(core_reconfigure(b->core, &c, &why), 0);
    c.n_workers = b->config.n_workers;
    b->config = c;
    read_commands(b);
    check_books(b);
    check_health(b);
    check_waiting(b);
}

static void op_nonsense(struct bed *b)
{
    static const enum core_event_kind kinds[] = {CORE_EV_PREFILL_DONE, CORE_EV_FIRST_TOKEN,
                                                 CORE_EV_PROGRESS,     CORE_EV_DONE,
                                                 CORE_EV_FAILED,       CORE_EV_CANCELLED};
    struct core_command cmd;
    happen(b, (struct core_event){.kind = CORE_EV_TIMER}); /* what time brings is not its doing */
    struct core_event ev = {.kind = kinds[below(b, 6)], .now_ps = b->now_ps, .worker = 0};
    ev.request = some(b, NONE, WAITING);
    if (ev.request == N_REQUESTS ||
        (b->c[ev.request].state != NONE && ev.kind == CORE_EV_CANCELLED))
        ev.request = UINT32_MAX - below(b, 2);
    assert_int_equal(core_event(b->core, &ev), WEIR_E_INVALID);
    ev.kind = CORE_EV_DONE;
    ev.request = some(b, IN_WHOLE, IN_DECODE);
    ev.worker = b->config.n_workers + below(b, 9);
    assert_int_equal(core_event(b->core, &ev), WEIR_E_INVALID);
    ev = (struct core_event){.kind = CORE_EV_TIMER, .now_ps = b->core->now_ps - 1};
    assert_int_equal(core_event(b->core, &ev), WEIR_E_INVALID);
    assert_false(core_next(b->core, &cmd));
    check_books(b);
}

static void pass_time(struct bed *b)
{
    int64_t to = b->now_ps + below(b, 60) * b->unit_ps, timer = core_next_timer_ps(b->core);
    if (timer <= to && below(b, 10)) { /* in time; else late */
        b->now_ps = timer;
        happen(b, (struct core_event){.kind = CORE_EV_TIMER});
    }
    b->now_ps = to;
}

static void op_worker(struct bed *b, enum core_event_kind kind, uint32_t w)
{
    if (!b->m[w].vacant)
        happen(b, (struct core_event){.kind = kind, .worker = w});
}

static void op(struct bed *b)
{
    uint32_t i, w = below(b, b->config.n_workers);
    pass_time(b);
    switch (below(b, 40)) {
    case 0: op_down(b); break;
    case 1: op_worker(b, CORE_EV_WORKER_DRAIN, w); break;
    case 2:
    case 3:
    case 4: op_worker(b, CORE_EV_WORKER_UP, w); break;
    case 5:
    case 6: op_report(b); break;
    case 11:
    case 12: b->m[w].manners = below(b, 3); break;
    case 13: op_place(b); break;
    case 14:
        if (below(b, 4) == 0)
            op_reload(b);
        break;
    case 7: op_nonsense(b); break;
    case 8:
        i = some(b, WAITING, IN_DECODE);
        if (i < N_REQUESTS)
            happen(b, (struct core_event){.kind = CORE_EV_CANCELLED, .request = i});
        break;
    case 9:
    case 10:
        i = some(b, WAITING_KV, IN_DECODE);
        if (i < N_REQUESTS)
            op_failed(b, i);
        break;
    default:
        i = some(b, IN_WHOLE, IN_DECODE);
        if (i < N_REQUESTS && below(b, 2))
            op_step(b, i);
        else
            op_arrival(b);
    }
}

/* All workers come up, all answers come to their end. */
static void wind_up(struct bed *b)
{
    b->ending = true;
    for (uint32_t w = 0; w < b->config.n_workers; w++)
        op_worker(b, CORE_EV_WORKER_UP, w);
    for (uint32_t i; some(b, ASKED, IN_DECODE) < N_REQUESTS;) {
        i = some(b, IN_WHOLE, IN_DECODE);
        if (i < N_REQUESTS) {
            op_step(b, i);
            continue;
        }
        /* some wait for the retry budget, or for ejections to end: the core asks for the time */
        assert_true(core_next_timer_ps(b->core) < PS_NEVER);
        if (core_next_timer_ps(b->core) > b->now_ps + PS_PER_S)
            b->now_ps = core_next_timer_ps(b->core);
        else
            b->now_ps += PS_PER_S; /* late, so as not to take too many steps */
        happen(b, (struct core_event){.kind = CORE_EV_TIMER});
    }
    assert_int_equal(some(b, ASKED, IN_DECODE), N_REQUESTS);
}

static void random_case(uint64_t seed)
{
    struct bed *b = malloc(sizeof *b);
    struct core_stats s;
    assert_non_null(b);
    lay(b, seed);
    uint32_t n = below(b, 8) ? 20 + below(b, 60) : N_OPS;
    for (uint32_t i = 0; i < n; i++)
        op(b);
    wind_up(b);
    core_get_stats(b->core, &s);
    uint64_t over = s.done + s.cancelled;
    for (int i = 0; i < CORE_REASON_COUNT; i++)
        over += s.rejected[i];
    assert_int_equal(over, s.arrivals);
    assert_int_equal(s.queued + s.inflight, 0);
    totals.retried += s.retried;
    totals.delayed += s.delayed;
    totals.ejections += s.ejections;
    core_free(b->core);
    free(b);
}

/* ---- shares */

#define FAIR_TENANTS 4
#define FAIR_WAITING 6 /* of each tenant, always */

struct contest {
    struct rng rng;
    struct core *core;
    uint32_t n_tenants, weight[FAIR_TENANTS], output[FAIR_TENANTS * FAIR_WAITING + 64];
    struct core_request r[FAIR_TENANTS * FAIR_WAITING + 64];
    bool live[FAIR_TENANTS * FAIR_WAITING + 64];
    uint32_t worker[FAIR_TENANTS * FAIR_WAITING + 64];
    uint32_t waiting[FAIR_TENANTS];
    uint64_t got[FAIR_TENANTS];
    bool counts; /* all have requests waiting */
};

static uint64_t price(const struct contest *k, uint32_t i)
{
    return k->r[i].prompt_tok + (uint64_t)FAIR_OUTPUT_COST * k->output[i];
}

static void ask(struct contest *k, uint32_t tenant)
{
    uint32_t i = 0;
    while (k->live[i])
        i++;
    k->output[i] = 1 + (uint32_t)rng_below(&k->rng, 100);
    k->r[i] = (struct core_request){.prompt_tok = 1 + (uint32_t)rng_below(&k->rng, 1000),
                                    .max_tokens = k->output[i],
                                    .tenant = tenant + 1,
                                    .slo_ttft_ps = PS_NEVER,
                                    .slo_tpot_ps = PS_NEVER};
    k->live[i] = true;
    k->worker[i] = CORE_NO_WORKER;
    k->waiting[tenant]++;
    struct core_event ev = {.kind = CORE_EV_ARRIVAL, .request = i, .req = &k->r[i]};
    assert_int_equal(core_event(k->core, &ev), 0);
}

static void read_contest(struct contest *k)
{
    struct core_command cmd;
    while (core_next(k->core, &cmd)) {
        if (cmd.kind != CORE_CMD_DISPATCH)
            continue;
        uint32_t t = (uint32_t)k->r[cmd.request].tenant - 1;
        k->worker[cmd.request] = cmd.worker;
        k->waiting[t]--;
        if (k->counts)
            k->got[t] += price(k, cmd.request);
    }
}

static void end_one(struct contest *k)
{
    uint32_t i = (uint32_t)rng_below(&k->rng, sizeof k->live / sizeof *k->live);
    while (!k->live[i] || k->worker[i] == CORE_NO_WORKER)
        i = (i + 1) % (sizeof k->live / sizeof *k->live);
    struct core_event ev = {
        .kind = CORE_EV_DONE, .request = i, .worker = k->worker[i], .n = k->output[i]};
    k->live[i] = false;
    assert_int_equal(core_event(k->core, &ev), 0);
}

/* Tenants that always have requests waiting get what their weights say, but for a quantum, the largest request, and
 * what the guesses of those that wait or run are wrong by. */
static void fair_case(uint64_t seed)
{
    struct contest k = {.counts = false};
    struct core_tenant tenants[FAIR_TENANTS];
    struct core_worker_config workers[3];
    const char *why;
    rng_init(&k.rng, seed);
    k.n_tenants = 2 + (uint32_t)rng_below(&k.rng, FAIR_TENANTS - 1);
    for (uint32_t t = 0; t < k.n_tenants; t++) {
        k.weight[t] = 1 + (uint32_t)rng_below(&k.rng, 4);
        tenants[t] = (struct core_tenant){.id = t + 1, .weight = k.weight[t]};
    }
    uint32_t n = 1 + (uint32_t)rng_below(&k.rng, 3), depth = 1 + (uint32_t)rng_below(&k.rng, 6);
    for (uint32_t w = 0; w < n; w++)
        workers[w] = (struct core_worker_config){.role = ROLE_BOTH, .block_size = 16, .up = true};
    uint64_t quantum = 1 + rng_below(&k.rng, 3000), most = 1000 + 200 + 1;
    struct core_config c = {.policy = "least_loaded",
                            .seed = seed,
                            .n_workers = n,
                            .workers = workers,
                            .queue_max_requests = 1000,
                            .queue_timeout_ps = PS_NEVER,
                            .fair_quantum_tok = quantum,
                            .tenants = tenants,
                            .n_tenants = k.n_tenants,
                            .max_inflight_per_worker = depth,
                            .max_requests = 1000};
    k.core = core_new(&c, &why);
    assert_non_null(k.core);
    uint64_t wrong = (FAIR_WAITING + (uint64_t)n * depth + 2) * 200;
    for (uint32_t step = 0; step < 600; step++) {
        for (uint32_t t = 0; t < k.n_tenants; t++) {
            while (k.waiting[t] < FAIR_WAITING) {
                ask(&k, t);
                read_contest(&k);
            }
        }
        k.counts = true;
        end_one(&k);
        read_contest(&k);
        for (uint32_t a = 0; a < k.n_tenants; a++) {
            for (uint32_t b = 0; b < a; b++) {
                uint64_t x = k.got[a] / k.weight[a], y = k.got[b] / k.weight[b];
                assert_true((x > y ? x - y : y - x) <=
                            quantum + (most + wrong) / k.weight[a] + (most + wrong) / k.weight[b]);
            }
        }
    }
    core_free(k.core);
}

static void test_shares(void **state)
{
    (void)state;
    prop_run("prop_core", 200, fair_case);
}

static void test_promises(void **state)
{
    (void)state;
    prop_run("prop_core", CASES, random_case);
    printf(
        "done %llu, held %llu, retried %llu, delayed %llu, ejections %llu, cancelled %llu; legs: whole %llu, prefill %llu, "
        "decode %llu; refused, by reason:",
        (unsigned long long)totals.done, (unsigned long long)totals.held,
        (unsigned long long)totals.retried, (unsigned long long)totals.delayed,
        (unsigned long long)totals.ejections, (unsigned long long)totals.cancelled,
        (unsigned long long)totals.legs[0], (unsigned long long)totals.legs[1],
        (unsigned long long)totals.legs[2]);
    for (int i = 1; i < CORE_REASON_COUNT; i++)
        printf(" %llu", (unsigned long long)totals.rejected[i]);
    printf("\n");
    if (prop_single())
        return;
    assert_true(totals.delayed > 100 && totals.ejections > 100);
    assert_true(totals.done > 1000 && totals.held > 1000 && totals.retried > 1000);
    for (int i = 1; i < CORE_REASON_COUNT; i++)
        assert_true(totals.rejected[i] > 0);
    for (int i = 0; i < 3; i++)
        assert_true(totals.legs[i] > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_promises, prop_teardown),
        cmocka_unit_test_teardown(test_shares, prop_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
