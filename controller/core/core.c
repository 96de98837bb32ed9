/* core.c - see core.h. A request is in one of these phases; events move it, commands come out:
 *
 *   arrival ──► HELD ──► WHOLE ─────────────────────────► over
 *                │                                          ▲
 *                └─────► PREFILL ──► HELD_KV ──► DECODE ────┘
 *
 *   lost ──► HELD_RETRY (as long as the retry budget says) ──► HELD
 *
 * HELD and HELD_KV (prefill done, no decode worker yet) are passed through at once if a worker is
 * open. Who waits, and in which order: hold_queue.h. What is known of
 * the workers: fleet.h.
 */
#include "controller/core/core.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "controller/core/fairness.h"
#include "controller/core/fleet.h"
#include "controller/core/hold_queue.h"
#include "controller/core/policy.h"
#include "controller/core/retry_budget.h"
#include "predictor/mem.h"
#include "predictor/rng.h"

enum phase { FREE, HELD, HELD_RETRY, WHOLE, PREFILL, HELD_KV, DECODE };

struct request {
    struct core_request r;
    uint64_t seq; /* order of arrival */
    int64_t arrived_ps;
    int64_t sent_ps,
        first_ps; /* the leg under way: when it was sent; its first token, 0: none yet */
    struct fair_ticket ticket;
    uint32_t worker;          /* of the leg under way; HELD_KV: the one that holds the KV */
    uint32_t peer;            /* PREFILL: decode worker chosen already; DECODE: source of the KV */
    uint32_t life, peer_life; /* of worker and peer when they were chosen: fleet_worker.life */
    uint32_t lost_on;         /* worker to avoid in the next attempt */
    uint32_t attempt;
    uint32_t uncached_tok; /* as booked with the leg that prefills */
    uint32_t streamed_tok; /* of the answer, as PROGRESS told */
    bool prefilling;       /* that leg has not shown a first token */
    bool placed;           /* ticket is its place among those who wait */
    uint8_t phase;
};

/* What forecasts learn from: kept beside the requests, where anything is told. */
struct mark {
    int64_t sent_ps, first_ps;            /* of this leg; -1: no token yet */
    int64_t steps_ttft_ps, steps_tpot_ps; /* as foreseen */
};

struct core {
    const struct policy_ops *policy;
    void *policy_state;
    struct core_config config; /* its pointers are not valid any more */
    struct rng rng;
    struct fleet fleet;
    struct policy_view view;
    int64_t now_ps;
    bool opened; /* with the event under way, ejections have ended */

    struct request *requests; /* by handle */
    unsigned char *notes;     /* policy->request_bytes for each */
    struct mark *marks;       /* NULL: nothing is told */
    uint32_t requests_cap;
    uint64_t seq;
    struct hold_queue admit, decode, again; /* HELD, HELD_KV, HELD_RETRY */
    struct retry_budget budget;
    struct fair fair; /* of admit */

    struct core_command *commands; /* ring */
    uint32_t command_head, n_commands, commands_cap;
    struct core_stats stats;

    struct forecast *forecast; /* NULL: nothing is told */
    struct core_told *told;    /* of the commands that are unread */
    uint32_t n_told, told_cap;
    uint32_t asked; /* the last decision's place + 1, until a command carries it */
};

/* ---- life */

static const char *config_fault(const struct core_config *c)
{
    if (!c->max_requests || c->max_requests > CORE_MAX_REQUESTS)
        return "max_requests must be 1 to 16777216";
    if (c->tell > CORE_MAX_TOLD)
        return "tell must be 0 to 8 (CORE_MAX_TOLD)";
    if (c->queue_timeout_ps <= 0)
        return "queue_timeout_ps must be above 0 (PS_NEVER: no limit)";
    if (c->retry.budget && (c->retry.percent > 100 || !c->retry.floor_per_s ||
                            c->retry.floor_per_s > CORE_MAX_REQUESTS))
        return "the retry budget must be 0 to 100 percent, and 1 to 16777216 a second";
    if (c->n_workers > CORE_MAX_WORKERS || c->spare_workers > CORE_MAX_WORKERS)
        return "n_workers must be 1 to 16384, with spare_workers";
    return health_fault(&c->health);
}

/* The policy's values by cc, in range. */
static int read_params(const struct policy_ops *p, const struct core_config *cc,
                       double param[CORE_MAX_POLICY_PARAMS], const char **why)
{
    if (p->n_params > CORE_MAX_POLICY_PARAMS) {
        *why = "a policy has at most 16 parameters (CORE_MAX_POLICY_PARAMS)";
        return WEIR_E_INVALID;
    }
    for (uint32_t i = 0; i < p->n_params; i++) {
        param[i] = cc->policy_param ? cc->policy_param[i] : p->params[i].def;
        if (!(param[i] >= p->params[i].min && param[i] <= p->params[i].max)) {
            *why = "a policy parameter is out of its range";
            return WEIR_E_INVALID;
        }
    }
    return 0;
}

static int init_policy(struct core *c, const struct core_config *cc, const char **why)
{
    double param[CORE_MAX_POLICY_PARAMS];
    const struct policy_ops *p = c->policy;
    int rc = read_params(p, cc, param, why);
    if (rc)
        return rc;
    *why = "out of memory";
    c->policy_state = calloc(1, p->state_bytes ? p->state_bytes : 1);
    if (!c->policy_state)
        return WEIR_E_NOMEM;
    rc = p->init ? p->init(c->policy_state, param, cc->n_workers) : 0;
    if (rc) {
        free(c->policy_state);
        c->policy_state = NULL;
    }
    return rc;
}

static int init_forecast(struct core *c, const struct core_config *cc)
{
    c->forecast = forecast_new(cc->n_workers + cc->spare_workers);
    for (uint32_t w = 0; c->forecast && w < cc->n_workers; w++) {
        if (cc->workers[w].steps)
            forecast_set(c->forecast, w, cc->workers[w].steps);
    }
    return c->forecast ? 0 : WEIR_E_NOMEM;
}

/* All or none. */
static int init_parts(struct core *c, const struct core_config *cc, const char **why)
{
    int rc = fleet_init(&c->fleet, cc, c->policy, why);
    if (rc)
        return rc;
    rc = fair_init(&c->fair, cc, why);
    if (rc) {
        fleet_deinit(&c->fleet);
        return rc;
    }
    rc = init_policy(c, cc, why);
    if (rc) {
        fair_deinit(&c->fair);
        fleet_deinit(&c->fleet);
    }
    return rc;
}

/* cc with its spare workers behind the others, for the parts, which count them all. NULL: out of memory. */
static struct core_worker_config *with_spare(const struct core_config *cc)
{
    struct core_worker_config *all = NULL;
    if (cc->workers && cc->n_workers <= CORE_MAX_WORKERS && cc->spare_workers <= CORE_MAX_WORKERS)
        all = calloc((size_t)cc->n_workers + cc->spare_workers + 1, sizeof *all);
    if (all)
        memcpy(all, cc->workers, cc->n_workers * sizeof *all);
    return all;
}

struct core *core_new(const struct core_config *cc, const char **why)
{
    const struct policy_ops *policy =
        cc->own_policy ? cc->own_policy : core_policy_find(cc->policy);
    *why = policy ? config_fault(cc) : "no such policy";
    if (*why)
        return NULL;
    struct core *c = calloc(1, sizeof *c);
    *why = "out of memory";
    if (!c)
        return NULL;
    c->policy = policy;
    c->config = *cc;
    rng_init(&c->rng, cc->seed);
    hold_queue_init(&c->admit);
    hold_queue_init(&c->decode);
    hold_queue_init(&c->again);
    retry_budget_init(&c->budget, cc->retry.budget, cc->retry.percent, cc->retry.floor_per_s);
    struct core_worker_config *all = with_spare(cc);
    struct core_config full = *cc;
    full.workers = all;
    full.n_workers += cc->spare_workers;
    int rc = cc->workers && !all ? WEIR_E_NOMEM : init_parts(c, &full, why);
    free(all);
    if (rc) {
        free(c);
        return NULL;
    }
    c->view = (struct policy_view){.n_workers = c->fleet.n,
                                   .block_size = fleet_block_size(&c->fleet),
                                   .config = c->fleet.config,
                                   .inflight = c->fleet.inflight,
                                   .prefilling = c->fleet.prefilling,
                                   .prefill_tok = c->fleet.prefill_tok,
                                   .inflight_tok = c->fleet.inflight_tok,
                                   .telemetry = c->fleet.telemetry};
    if (cc->tell && init_forecast(c, cc)) {
        core_free(c);
        *why = "out of memory";
        return NULL;
    }
    *why = NULL;
    return c;
}

void core_free(struct core *c)
{
    if (!c)
        return;
    if (c->policy->deinit)
        c->policy->deinit(c->policy_state);
    free(c->policy_state);
    fair_deinit(&c->fair);
    fleet_deinit(&c->fleet);
    hold_queue_deinit(&c->admit);
    hold_queue_deinit(&c->decode);
    hold_queue_deinit(&c->again);
    forecast_free(c->forecast);
    free(c->told);
    free(c->marks);
    free(c->requests);
    free(c->notes);
    free(c->commands);
    free(c);
}

uint32_t core_needs(const struct core *c)
{
    return c->policy->needs | (c->forecast ? 1u << CORE_EV_FIRST_TOKEN : 0) |
           (c->policy->prefix == POLICY_PREFIX_EVENTS ? 1u << CORE_EV_CACHE : 0);
}

void core_get_stats(const struct core *c, struct core_stats *out)
{
    *out = c->stats;
    const struct health *h = &c->fleet.health;
    out->queued_bytes = c->admit.bytes;
    out->ejections = h->ejections;
    for (int role = 0; role < FLEET_ROLES; role++) {
        out->ejected += h->n_sick[role];
        out->panics += h->panic[role];
    }
}

void core_get_worker(const struct core *c, uint32_t worker, struct core_worker_state *out)
{
    const struct fleet_worker *w = &c->fleet.workers[worker];
    const struct health_worker *h = &c->fleet.health.workers[worker];
    *out = (struct core_worker_state){
        .up = w->up,
        .draining = w->draining,
        .vacant = w->vacant,
        .used = w->up && !w->draining &&
                (h->state == CORE_HEALTH_PROBING || health_trusts(&c->fleet.health, worker)),
        .health = h->state,
        .cause = h->cause,
        .until_ps = h->state == CORE_HEALTH_EJECTED ? h->until_ps : 0,
        .failures = h->failures,
        .share = health_share(&c->fleet.health, worker),
        .inflight = c->fleet.own[worker]};
}

struct core_load core_own_load(const struct core *c, uint32_t w)
{
    const struct fleet *f = &c->fleet;
    const struct core_load *l = &f->foreign[w];
    return (struct core_load){.requests = f->own[w],
                              .prefilling = f->prefilling[w] - l->prefilling,
                              .prefill_tok = f->prefill_tok[w] - l->prefill_tok,
                              .prompt_tok = f->inflight_tok[w] - l->prompt_tok};
}

/* ---- requests and their handles */

static uint32_t handle_of(const struct core *c, const struct request *q)
{
    return (uint32_t)(q - c->requests);
}

static void *note_of(const struct core *c, const struct request *q)
{
    size_t bytes = c->policy->request_bytes;
    return bytes ? c->notes + handle_of(c, q) * bytes : NULL;
}

/* Room for this handle, which is below max_requests. */
static void grow_table(struct core *c, uint32_t handle)
{
    uint32_t old = c->requests_cap;
    if (handle < old)
        return;
    MEM_GROW(c->requests, c->requests_cap, handle + 1);
    memset(&c->requests[old], 0, (c->requests_cap - old) * sizeof *c->requests);
    if (c->policy->request_bytes) {
        c->notes = realloc(c->notes, (size_t)c->requests_cap * c->policy->request_bytes);
        if (!c->notes)
            abort();
    }
    if (c->forecast) {
        c->marks = realloc(c->marks, c->requests_cap * sizeof *c->marks);
        if (!c->marks)
            abort();
    }
}

/* ---- commands out */

static void command_grow(struct core *c)
{
    uint32_t old = c->commands_cap;
    MEM_GROW(c->commands, c->commands_cap, old + 1);
    /* what had wrapped round to the front goes behind the old end */
    memcpy(&c->commands[old], c->commands, c->command_head * sizeof *c->commands);
}

static struct core_command *command(struct core *c, enum core_command_kind kind, uint32_t handle,
                                    uint32_t worker)
{
    if (c->n_commands == c->commands_cap)
        command_grow(c);
    uint32_t i = c->command_head + c->n_commands++;
    struct core_command *cmd = &c->commands[i < c->commands_cap ? i : i - c->commands_cap];
    *cmd = (struct core_command){.kind = kind,
                                 .request = handle,
                                 .worker = worker,
                                 .peer = CORE_NO_WORKER,
                                 .retry_after_ps = PS_NEVER,
                                 .overlap_tok = -1};
    return cmd;
}

bool core_next(struct core *c, struct core_command *out)
{
    if (!c->n_commands)
        return false;
    *out = c->commands[c->command_head++];
    if (c->command_head == c->commands_cap)
        c->command_head = 0;
    if (!--c->n_commands)
        c->command_head = 0;
    return true;
}

static void reject(struct core *c, uint32_t handle, enum core_reason reason)
{
    struct core_command *cmd = command(c, CORE_CMD_REJECT, handle, CORE_NO_WORKER);
    cmd->reason = reason;
    cmd->told = c->asked;
    c->asked = 0;
    c->stats.rejected[reason]++;
}

/* ---- forecasts: core_config.tell */

static struct forecast_books books_of(const struct fleet *f, uint32_t w)
{
    const struct core_worker_config *k = &f->config[w];
    return (struct forecast_books){
        .inflight = f->inflight[w],
        .prefilling = f->prefilling[w],
        .prefill_tok = f->prefill_tok[w],
        .inflight_tok = f->inflight_tok[w],
        .total_kv_tok = (uint64_t)k->num_gpu_blocks * k->block_size,
        .chunk_tok = k->max_num_batched_tokens,
    };
}

static void foresee(const struct core *c, const struct policy_query *ask, uint32_t w,
                    struct core_candidate *out, struct forecast_times *t)
{
    static const enum forecast_leg legs[] = {[POLICY_WHOLE] = FORECAST_WHOLE,
                                             [POLICY_PREFILL] = FORECAST_PREFILL,
                                             [POLICY_DECODE] = FORECAST_DECODE};
    struct forecast_books b = books_of(&c->fleet, w);
    forecast_ask(c->forecast, w, &b, legs[ask->leg], ask->req->prompt_tok, ask->cached_tok[w], t);
    *out = (struct core_candidate){w,          b.inflight, ask->cached_tok[w], b.prefill_tok,
                                   t->ttft_ps, t->tpot_ps};
}

/* The candidates with the least prefill work ahead, behind the chosen one; at most `room` of them. */
static uint32_t nearest(const struct core *c, const struct policy_query *ask, uint32_t chosen,
                        uint32_t room, uint32_t out[CORE_MAX_TOLD])
{
    uint64_t work[CORE_MAX_TOLD];
    uint32_t n = 0;
    for (uint32_t i = 0; i < ask->n_candidates && room; i++) {
        uint32_t w = ask->candidates[i], at;
        uint64_t ahead = c->fleet.prefill_tok[w] + policy_uncached_tok(ask, w);
        if (w == chosen || (n == room && ahead >= work[n - 1]))
            continue;
        for (at = n < room ? n++ : n - 1; at && work[at - 1] > ahead; at--) {
            work[at] = work[at - 1];
            out[at] = out[at - 1];
        }
        work[at] = ahead;
        out[at] = w;
    }
    return n;
}

/* Writes down what the policy was asked and answered. */
static void write_down(struct core *c, const struct policy_query *ask, uint32_t answer)
{
    uint32_t others[CORE_MAX_TOLD], room = c->config.tell;
    struct forecast_times t;
    MEM_GROW(c->told, c->told_cap, c->n_told + 1);
    struct core_told *told = &c->told[c->n_told++];
    c->asked = c->n_told;
    told->n_candidates = ask->n_candidates;
    told->n = 0;
    if (answer < c->fleet.n) {
        const struct request *q =
            (const struct request *)((const char *)ask->req - offsetof(struct request, r));
        foresee(c, ask, answer, &told->candidates[told->n++], &t);
        c->marks[handle_of(c, q)] = (struct mark){c->now_ps, -1, t.steps_ttft_ps, t.steps_tpot_ps};
        room--;
    }
    uint32_t n = nearest(c, ask, answer, room, others);
    for (uint32_t i = 0; i < n; i++)
        foresee(c, ask, others[i], &told->candidates[told->n++], &t);
}

const struct core_told *core_told(const struct core *c, const struct core_command *cmd)
{
    return cmd->told && cmd->told <= c->n_told ? &c->told[cmd->told - 1] : NULL;
}

struct core_belief core_belief_of(const struct core *c, uint32_t w)
{
    struct core_belief b = {.books = books_of(&c->fleet, w)};
    struct forecast_times t;
    if (!c->forecast)
        return b;
    b.bias = forecast_bias_of(c->forecast, w);
    forecast_ask(c->forecast, w, &b.books, FORECAST_WHOLE, CORE_BELIEF_TOK, 0, &t);
    b.ttft_ps = t.ttft_ps;
    return b;
}

/* The leg on q->worker has shown a first token, or its prefill is done. */
static void learn_first(struct core *c, const struct request *q)
{
    if (!c->forecast)
        return;
    struct mark *m = &c->marks[handle_of(c, q)];
    if (m->first_ps >= 0 || (q->phase == WHOLE && !q->r.streamed))
        return;
    if (q->phase != DECODE) /* a decode leg's first token waits for the transfer of its KV */
        forecast_learn_ttft(c->forecast, q->worker, m->steps_ttft_ps, c->now_ps - m->sent_ps);
    m->first_ps = c->now_ps;
}

static void learn_rest(struct core *c, const struct request *q, uint32_t output_tok)
{
    if (!c->forecast || !q->r.streamed || output_tok < 2)
        return;
    const struct mark *m = &c->marks[handle_of(c, q)];
    if (m->first_ps >= 0)
        forecast_learn_tpot(c->forecast, q->worker, m->steps_tpot_ps,
                            (c->now_ps - m->first_ps) / (output_tok - 1));
}

/* ---- legs */

static void enter_leg(struct core *c, struct request *q, const struct policy_query *ask, uint32_t w)
{
    bool prefills = ask->leg != POLICY_DECODE;
    if (prefills) {
        q->uncached_tok = policy_uncached_tok(ask, w);
        q->prefilling = true;
    }
    fleet_book(&c->fleet, w, &q->r, prefills, q->uncached_tok);
    if (c->policy->dispatched)
        c->policy->dispatched(c->policy_state, &c->view, ask, w, note_of(c, q));
    fleet_guess_cached(&c->fleet, w, &q->r);
}

static void leave_leg(struct core *c, struct request *q, uint32_t w)
{
    if (q->prefilling && q->phase != DECODE && w == q->worker) {
        q->prefilling = false;
        fleet_prefilled(&c->fleet, w, q->uncached_tok);
    }
    fleet_unbook(&c->fleet, w, &q->r);
    if (c->policy->left)
        c->policy->left(c->policy_state, &c->view, &q->r, w, note_of(c, q));
}

static void prefill_over(struct core *c, struct request *q)
{
    if (!q->prefilling)
        return;
    q->prefilling = false;
    q->first_ps = c->now_ps;
    fleet_prefilled(&c->fleet, q->worker, q->uncached_tok);
    if (c->policy->first_token)
        c->policy->first_token(c->policy_state, &c->view, &q->r, q->worker, note_of(c, q));
}

/* Takes q out of the queue that it is in. */
static void leave_queue(struct core *c, struct request *q, struct hold_queue *queue, bool sent)
{
    hold_queue_remove(queue, handle_of(c, q));
    if (queue == &c->admit)
        fair_leave(&c->fair, &q->r, &q->ticket, sent);
    c->stats.queued--;
}

/* q is over. What it was charged is put right. */
static void over(struct core *c, struct request *q, uint32_t output_tok, bool done)
{
    fair_settle(&c->fair, &q->r, &q->ticket, q->uncached_tok, output_tok, done);
    q->phase = FREE;
}

/* Takes q out of wherever it is. Legs on workers other than `lost` get a CANCEL. */
static void withdraw(struct core *c, struct request *q, uint32_t lost)
{
    uint32_t h = handle_of(c, q);
    if (q->phase == HELD || q->phase == HELD_RETRY) {
        leave_queue(c, q, q->phase == HELD ? &c->admit : &c->again, false);
        return;
    }
    if (q->phase == HELD_KV) {
        leave_queue(c, q, &c->decode, false);
    } else {
        c->stats.inflight--;
    }
    leave_leg(c, q, q->worker);
    if (q->worker != lost)
        command(c, CORE_CMD_CANCEL, h, q->worker);
    if (q->peer == CORE_NO_WORKER)
        return;
    if (q->phase == PREFILL)
        leave_leg(c, q, q->peer);
    if (q->peer != lost)
        command(c, CORE_CMD_CANCEL, h, q->peer);
}

/* ---- routing */

enum outcome { ROUTED, REFUSED, BLOCKED };

static struct policy_query ask_for(struct core *c, const struct request *q, enum policy_leg leg)
{
    return (struct policy_query){.req = &q->r,
                                 .leg = leg,
                                 .source = CORE_NO_WORKER,
                                 .cached_tok = c->fleet.cached_tok,
                                 .scratch = c->fleet.scratch};
}

/* A candidate, POLICY_SHED or POLICY_MISS_SLO. */
static uint32_t pick(struct core *c, const struct policy_query *ask)
{
    uint32_t w = c->policy->pick(c->policy_state, &c->view, ask, &c->rng);
    assert(w == POLICY_SHED || w == POLICY_MISS_SLO || w < c->fleet.n);
    if (c->forecast)
        write_down(c, ask, w);
    return w;
}

static enum outcome refused(struct core *c, struct request *q, uint32_t verdict)
{
    reject(c, handle_of(c, q), verdict == POLICY_SHED ? CORE_REASON_SATURATED : CORE_REASON_SLO);
    q->phase = FREE; /* whoever takes it out of its queue calls over() */
    return REFUSED;
}

static struct core_command *dispatch(struct core *c, struct request *q, enum core_command_kind kind,
                                     uint32_t w)
{
    struct core_command *cmd = command(c, kind, handle_of(c, q), w);
    cmd->attempt = q->attempt;
    cmd->told = c->asked;
    c->asked = 0;
    if (c->fleet.index)
        cmd->overlap_tok = c->fleet.cached_tok[w];
    c->stats.dispatched++;
    return cmd;
}

/* The request is on `worker` from now on. */
static void go_to(struct core *c, struct request *q, uint32_t worker, enum phase phase)
{
    q->worker = worker;
    q->life = c->fleet.workers[worker].life;
    q->sent_ps = c->now_ps;
    q->first_ps = 0;
    q->phase = (uint8_t)phase;
}

static uint32_t decode_candidates(struct core *c, const struct request *q, const uint32_t **list)
{
    uint64_t need = fleet_need_tok(&q->r);
    uint32_t n = fleet_candidates(&c->fleet, ROLE_DECODE, need, q->lost_on, 1, list);
    return n ? n : fleet_candidates(&c->fleet, ROLE_BOTH, need, q->lost_on, 1, list);
}

/* The whole request to a worker of role both. */
static enum outcome route_whole(struct core *c, struct request *q)
{
    struct policy_query ask = ask_for(c, q, POLICY_WHOLE);
    ask.n_candidates = fleet_candidates(&c->fleet, ROLE_BOTH, fleet_need_tok(&q->r), q->lost_on, 0,
                                        &ask.candidates);
    if (!ask.n_candidates)
        return BLOCKED;
    fleet_match(&c->fleet, &q->r);
    uint32_t w = pick(c, &ask);
    if (w >= c->fleet.n)
        return refused(c, q, w);
    go_to(c, q, w, WHOLE);
    q->peer = CORE_NO_WORKER;
    dispatch(c, q, CORE_CMD_DISPATCH, w);
    enter_leg(c, q, &ask, w);
    return ROUTED;
}

/* The prefill leg; destination-first, with its decode worker. */
static enum outcome route_prefill(struct core *c, struct request *q)
{
    uint64_t need = fleet_need_tok(&q->r);
    struct policy_query ask = ask_for(c, q, POLICY_PREFILL), peer = ask_for(c, q, POLICY_DECODE);
    uint32_t to = CORE_NO_WORKER;
    ask.n_candidates =
        fleet_candidates(&c->fleet, ROLE_PREFILL, need, q->lost_on, 0, &ask.candidates);
    if (!ask.n_candidates ||
        (c->fleet.reach.ready[ROLE_DECODE] < need && c->fleet.reach.ready[ROLE_BOTH] < need))
        return BLOCKED;
    if (c->config.destination_first) {
        peer.n_candidates = decode_candidates(c, q, &peer.candidates);
        if (!peer.n_candidates)
            return BLOCKED;
    }
    fleet_match(&c->fleet, &q->r);
    if (c->config.destination_first) {
        to = pick(c, &peer);
        if (to >= c->fleet.n)
            return refused(c, q, to);
    }
    uint32_t w = pick(c, &ask);
    if (w >= c->fleet.n)
        return refused(c, q, w);
    go_to(c, q, w, PREFILL);
    q->peer = to;
    if (to != CORE_NO_WORKER) {
        q->peer_life = c->fleet.workers[to].life;
        enter_leg(c, q, &peer, to);
    }
    dispatch(c, q, CORE_CMD_DISPATCH_PREFILL, w)->peer = to;
    enter_leg(c, q, &ask, w);
    return ROUTED;
}

/* q is in no queue. BLOCKED leaves it as it was; otherwise it is on its way, or over. */
static enum outcome route(struct core *c, struct request *q)
{
    enum outcome o = c->fleet.reach.ever[ROLE_PREFILL] ? route_prefill(c, q) : BLOCKED;
    if (o == BLOCKED)
        o = route_whole(c, q);
    fleet_forget_match(&c->fleet);
    if (o == ROUTED)
        c->stats.inflight++;
    return o;
}

static void hand_over(struct core *c, struct request *q, uint32_t to,
                      const struct policy_query *ask)
{
    uint32_t from = q->worker;
    dispatch(c, q, CORE_CMD_DISPATCH_DECODE, to)->peer = from;
    leave_leg(c, q, from);
    q->peer = from;
    q->peer_life = q->life;
    go_to(c, q, to, DECODE);
    if (ask)
        enter_leg(c, q, ask, to);
    else if (
        c->forecast) /* it was chosen with the prefill worker: what was foreseen then is not to be learned from */
        c->marks[handle_of(c, q)] = (struct mark){.sent_ps = c->now_ps, .first_ps = -1};
}

/* The decode leg of a request whose prefill is done. As route. */
static enum outcome route_decode(struct core *c, struct request *q)
{
    struct policy_query ask = ask_for(c, q, POLICY_DECODE);
    ask.source = q->worker;
    ask.n_candidates = decode_candidates(c, q, &ask.candidates);
    if (!ask.n_candidates)
        return BLOCKED;
    fleet_match(&c->fleet, &q->r);
    uint32_t w = pick(c, &ask);
    if (w < c->fleet.n) {
        hand_over(c, q, w, &ask);
        c->stats.inflight++;
    } else {
        leave_leg(c, q, q->worker);
        command(c, CORE_CMD_CANCEL, handle_of(c, q), q->worker);
        refused(c, q, w);
    }
    fleet_forget_match(&c->fleet);
    return w < c->fleet.n ? ROUTED : REFUSED;
}

/* ---- waiting */

/* Whether a worker that could serve a request is there (in `tok`: one of fleet_reach's). */
static bool within(const uint64_t tok[FLEET_ROLES], uint64_t need, enum phase phase)
{
    bool decode = tok[ROLE_DECODE] >= need || tok[ROLE_BOTH] >= need;
    if (phase == HELD_KV)
        return decode;
    return tok[ROLE_BOTH] >= need || (tok[ROLE_PREFILL] >= need && decode);
}

static int64_t later_ps(int64_t from_ps, int64_t after_ps)
{
    return after_ps < PS_NEVER - from_ps ? from_ps + after_ps : PS_NEVER;
}

static int64_t slo_deadline_ps(const struct core *c, const struct request *q)
{
    return c->config.drop_late ? later_ps(q->arrived_ps, q->r.slo_ttft_ps) : PS_NEVER;
}

/* What a newcomer's tenant is charged for it. */
static uint64_t cost_of(struct core *c, const struct request *q)
{
    uint32_t cached = 0;
    if (!c->fair.quantum)
        return 0;
    fleet_match(&c->fleet, &q->r);
    for (uint32_t i = 0; i < c->fleet.n_touched; i++) {
        uint32_t tok = c->fleet.cached_tok[c->fleet.touched[i]];
        cached = tok > cached ? tok : cached;
    }
    fleet_forget_match(&c->fleet);
    return fair_cost(&c->fair, &q->r, q->r.prompt_tok > cached ? q->r.prompt_tok - cached : 0);
}

static struct hold_queue *queue_of(struct core *c, enum phase phase)
{
    return phase == HELD ? &c->admit : phase == HELD_KV ? &c->decode : &c->again;
}

static void enqueue(struct core *c, struct request *q, enum phase phase)
{
    int64_t deadline = later_ps(c->now_ps, c->config.queue_timeout_ps), slo = PS_NEVER;
    if (phase != HELD_KV)
        slo = slo_deadline_ps(c, q);
    if (phase == HELD) {
        if (q->placed)
            fair_return(&c->fair, &q->r, &q->ticket);
        else
            fair_enter(&c->fair, &q->r, cost_of(c, q), &q->ticket);
        q->placed = true;
    }
    hold_queue_push(queue_of(c, phase), handle_of(c, q),
                    &(struct hold_entry){.priority = q->r.priority,
                                         .round = phase == HELD ? q->ticket.round : 0,
                                         .seq = q->seq,
                                         .need_tok = fleet_need_tok(&q->r),
                                         .bytes = q->r.bytes,
                                         .deadline_ps = slo < deadline ? slo : deadline});
    q->phase = (uint8_t)phase;
    c->stats.queued++;
}

static void announce_hold(struct core *c, const struct request *q)
{
    c->stats.held++;
    command(c, CORE_CMD_HOLD, handle_of(c, q), CORE_NO_WORKER);
}

/* It cannot wait any longer. */
static void give_up(struct core *c, uint32_t handle, enum core_reason reason)
{
    struct request *q = &c->requests[handle];
    withdraw(c, q, CORE_NO_WORKER);
    over(c, q, 0, false);
    reject(c, handle, reason);
}

/* Whoever waits and needs less can go, but for workers that it should avoid. */
static uint64_t room(const struct core *c, enum phase phase)
{
    uint64_t tok = phase == HELD ? fleet_room_new(&c->fleet, c->config.destination_first)
                                 : fleet_room_decode(&c->fleet);
    return tok < UINT64_MAX ? tok + 1 : tok; /* UINT64_MAX: a worker without a limit */
}

/* Sends on whoever can go, first in line first. */
static void release_line(struct core *c, struct hold_queue *queue, enum phase phase)
{
    if (!queue->n)
        return;
    for (uint32_t next, h = hold_queue_first(queue, room(c, phase)); h != HOLD_NONE; h = next) {
        struct request *q = &c->requests[h];
        enum outcome o = phase == HELD ? route(c, q) : route_decode(c, q);
        next = hold_queue_after(queue, h, room(c, phase));
        if (o != BLOCKED)
            leave_queue(c, q, queue, o == ROUTED);
        if (o == REFUSED)
            over(c, q, 0, false);
    }
}

static void release(struct core *c)
{
    release_line(c, &c->decode, HELD_KV);
    release_line(c, &c->admit, HELD);
}

/* Puts q, which could not go or must not yet, in its place. */
static void wait_in_line(struct core *c, struct request *q, enum phase phase, bool look)
{
    enqueue(c, q, phase);
    if (look)
        release(c);
    if (q->phase == phase)
        announce_hold(c, q);
}

static bool is_full(const struct core *c, const struct request *q)
{
    uint64_t bytes = c->config.queue_max_bytes;
    return c->admit.n >= c->config.queue_max_requests ||
           (bytes && (c->admit.bytes > bytes || q->r.bytes > bytes - c->admit.bytes));
}

/* Why q, which cannot go now, may not wait either; CORE_REASON_NONE: it may. */
static enum core_reason no_room(const struct core *c, const struct request *q, bool again)
{
    uint64_t need = fleet_need_tok(&q->r);
    if (slo_deadline_ps(c, q) < c->now_ps)
        return CORE_REASON_SLO;
    if (!within(c->fleet.reach.hope, need, HELD))
        return CORE_REASON_NO_WORKER;
    if (again || !is_full(c, q))
        return CORE_REASON_NONE;
    return within(c->fleet.reach.ready, need, HELD) ? CORE_REASON_QUEUE_FULL
                                                    : CORE_REASON_NO_WORKER;
}

/* A request goes on its way, waits, or is refused. `again`: it was lost, and is to be tried again; its loss has
 * opened a worker, for those who wait first. */
static void admit(struct core *c, struct request *q, bool again)
{
    bool in_line = again && c->admit.n;
    if (!in_line) {
        enum outcome o = route(c, q);
        if (o == ROUTED && !q->placed)
            fair_pass(&c->fair, &q->r, &q->ticket);
        q->placed |= o == ROUTED;
        if (o != BLOCKED)
            return;
    }
    enum core_reason reason = no_room(c, q, again);
    if (reason == CORE_REASON_NONE) {
        wait_in_line(c, q, HELD, in_line);
        return;
    }
    over(c, q, 0, false);
    reject(c, handle_of(c, q), reason);
}

/* Why q, whose deadline has passed. */
static enum core_reason lateness(const struct core *c, const struct request *q, int64_t before_ps)
{
    if (q->phase != HELD_KV && slo_deadline_ps(c, q) < before_ps)
        return CORE_REASON_SLO;
    if (q->phase == HELD_RETRY)
        return CORE_REASON_RETRIES;
    return within(c->fleet.reach.ready, fleet_need_tok(&q->r), q->phase) ? CORE_REASON_TIMEOUT
                                                                         : CORE_REASON_NO_WORKER;
}

/* Whether anybody had waited too long. */
static bool expire_queue(struct core *c, struct hold_queue *queue, int64_t before_ps)
{
    bool any = false;
    while (hold_queue_deadline_ps(queue) < before_ps) {
        uint32_t h = hold_queue_soonest(queue);
        give_up(c, h, lateness(c, &c->requests[h], before_ps));
        any = true;
    }
    return any;
}

static bool expire(struct core *c, int64_t before_ps)
{
    bool any = expire_queue(c, &c->decode, before_ps);
    (void)expire_queue(c, &c->again, before_ps);
    return expire_queue(c, &c->admit, before_ps) || any;
}

static void forsake(struct core *c, struct hold_queue *queue)
{
    for (uint32_t next, h = hold_queue_first(queue, UINT64_MAX); h != HOLD_NONE; h = next) {
        const struct request *q = &c->requests[h];
        next = hold_queue_after(queue, h, UINT64_MAX);
        if (!within(c->fleet.reach.hope, fleet_need_tok(&q->r), q->phase))
            give_up(c, h, CORE_REASON_NO_WORKER);
    }
}

int64_t core_next_timer_ps(const struct core *c)
{
    int64_t a = hold_queue_deadline_ps(&c->admit);
    int64_t d = hold_queue_deadline_ps(&c->decode);
    int64_t r = hold_queue_deadline_ps(&c->again), b = retry_budget_again_ps(&c->budget);
    int64_t h = health_next_ps(&c->fleet.health);
    if (c->again.n && b < r)
        r = b;
    a = a < d ? a : d;
    r = r < h ? r : h;
    return a < r ? a : r;
}

/* ---- events in */

static int on_arrival(struct core *c, const struct core_event *ev)
{
    const struct core_request *r = ev->req;
    if (!r || !r->prompt_tok || (r->n_keys && (!r->keys || !r->key_tok)))
        return WEIR_E_INVALID;
    if (ev->request < c->requests_cap && c->requests[ev->request].phase != FREE)
        return WEIR_E_INVALID;
    /* who is out of time leaves room, and ejections end: first for those who wait */
    if (expire(c, ev->now_ps) || c->opened)
        release(c);
    c->stats.arrivals++;
    retry_budget_arrival(&c->budget, ev->now_ps);
    if (ev->request >= c->config.max_requests) {
        reject(c, ev->request, CORE_REASON_QUEUE_FULL);
        return 0;
    }
    if (!within(c->fleet.reach.ever, fleet_need_tok(r), HELD)) {
        reject(c, ev->request, CORE_REASON_TOO_LARGE);
        return 0;
    }
    grow_table(c, ev->request);
    struct request *q = &c->requests[ev->request];
    *q = (struct request){.r = *r,
                          .seq = c->seq++,
                          .arrived_ps = ev->now_ps,
                          .worker = CORE_NO_WORKER,
                          .peer = CORE_NO_WORKER,
                          .lost_on = CORE_NO_WORKER};
    if (c->policy->request_bytes)
        memset(note_of(c, q), 0, c->policy->request_bytes);
    admit(c, q, false);
    return 0;
}

/* The leg under way ended as it should; first_ps: 0, or when its first token came. The time that a decode leg takes
 * to its first token is not compared: that of the transfer is in it. */
static void went_well(struct core *c, const struct request *q, int64_t first_ps)
{
    int64_t first = q->first_ps ? q->first_ps : first_ps;
    bool timed = q->phase != DECODE && first > q->sent_ps;
    if (c->fleet.workers[q->worker].life == q->life)
        fleet_good(&c->fleet, q->worker, timed ? first - q->sent_ps : 0, q->uncached_tok);
}

/* It failed on w, which is its worker or its peer: w is blamed, if it is still the one that it was, and was not only
 * keeping KV (whose lease may have run out). */
static void went_wrong(struct core *c, const struct request *q, uint32_t w)
{
    uint32_t life = w == q->worker ? q->life : q->peer_life;
    if (q->phase != HELD_KV && c->fleet.workers[w].life == life)
        fleet_bad(&c->fleet, w);
}

static int on_prefill_done(struct core *c, struct request *q, const struct core_event *ev)
{
    bool opened = c->opened;
    if (q->phase != PREFILL || q->worker != ev->worker)
        return WEIR_E_INVALID;
    learn_first(c, q);
    prefill_over(c, q);
    went_well(c, q, 0);
    if (q->peer != CORE_NO_WORKER) {
        const struct fleet_worker *to = &c->fleet.workers[q->peer];
        if (to->up && to->life == q->peer_life) {
            hand_over(c, q, q->peer, NULL);
            return 0;
        }
        leave_leg(c, q, q->peer); /* it died: another one */
        q->peer = CORE_NO_WORKER;
        opened = true;
    }
    c->stats.inflight--;
    bool in_line = opened && c->decode.n;
    if (!in_line && route_decode(c, q) != BLOCKED)
        return 0;
    if (within(c->fleet.reach.hope, fleet_need_tok(&q->r), HELD_KV)) {
        wait_in_line(c, q, HELD_KV, in_line);
        return 0;
    }
    leave_leg(c, q, q->worker); /* while it was being prefilled, all that could decode left */
    command(c, CORE_CMD_CANCEL, ev->request, q->worker);
    over(c, q, 0, false);
    reject(c, ev->request, CORE_REASON_NO_WORKER);
    return 0;
}

static int on_first_token(struct core *c, struct request *q, const struct core_event *ev)
{
    if ((q->phase != WHOLE && q->phase != PREFILL && q->phase != DECODE) || q->worker != ev->worker)
        return WEIR_E_INVALID;
    if (q->phase != PREFILL)
        learn_first(c, q);
    prefill_over(c, q);
    return 0;
}

static int on_progress(struct core *c, struct request *q, const struct core_event *ev)
{
    if ((q->phase != WHOLE && q->phase != DECODE) || q->worker != ev->worker ||
        ev->n < q->streamed_tok)
        return WEIR_E_INVALID;
    q->streamed_tok = ev->n;
    if (ev->n)
        prefill_over(c, q);
    return 0;
}

static int on_done(struct core *c, struct request *q, const struct core_event *ev)
{
    if ((q->phase != WHOLE && q->phase != DECODE) || q->worker != ev->worker)
        return WEIR_E_INVALID;
    learn_rest(c, q, ev->n);
    leave_leg(c, q, q->worker);
    if (ev->error)
        fleet_bad(&c->fleet, q->worker);
    else
        went_well(c, q, ev->first_token_ps);
    over(c, q, ev->n, true);
    c->stats.inflight--;
    c->stats.done++;
    return 0;
}

/* The budget may have grown: those that wait for it are tried again, first in line first. */
static void retry_waiting(struct core *c)
{
    while (c->again.n && retry_budget_take(&c->budget, c->now_ps)) {
        struct request *q = &c->requests[hold_queue_first(&c->again, UINT64_MAX)];
        leave_queue(c, q, &c->again, false);
        admit(c, q, true);
    }
}

/* A lost request: at once, or when the budget allows it. */
static void try_again(struct core *c, struct request *q)
{
    q->phase = FREE;
    q->streamed_tok = 0;
    q->attempt++;
    c->stats.retried++;
    retry_waiting(c);
    if (!c->again.n && retry_budget_take(&c->budget, c->now_ps)) {
        admit(c, q, true);
        return;
    }
    enum core_reason reason = no_room(c, q, true);
    if (reason != CORE_REASON_NONE) {
        over(c, q, 0, false);
        reject(c, handle_of(c, q), reason);
        return;
    }
    c->stats.delayed++;
    enqueue(c, q, HELD_RETRY);
    announce_hold(c, q);
}

static int on_failed(struct core *c, struct request *q, const struct core_event *ev)
{
    if (q->phase == HELD || q->phase == HELD_RETRY ||
        (ev->worker != q->worker && ev->worker != q->peer))
        return WEIR_E_INVALID;
    went_wrong(c, q, ev->worker);
    withdraw(c, q, ev->worker);
    q->lost_on = ev->worker;
    q->worker = q->peer = CORE_NO_WORKER;
    bool partial = ev->partial || q->streamed_tok;
    if (partial && !c->config.retry_partial) {
        over(c, q, q->streamed_tok, false);
        reject(c, ev->request, CORE_REASON_PARTIAL);
    } else if (q->attempt >= c->config.max_retries) {
        over(c, q, q->streamed_tok, false);
        reject(c, ev->request, CORE_REASON_RETRIES);
    } else {
        try_again(c, q);
    }
    return 0;
}

static int on_cancelled(struct core *c, struct request *q)
{
    withdraw(c, q, CORE_NO_WORKER);
    over(c, q, q->streamed_tok, false);
    c->stats.cancelled++;
    return 0;
}

static int on_request(struct core *c, const struct core_event *ev)
{
    if (ev->request >= c->requests_cap || c->requests[ev->request].phase == FREE)
        return WEIR_E_INVALID;
    struct request *q = &c->requests[ev->request];
    if (ev->kind != CORE_EV_CANCELLED && ev->worker >= c->fleet.n)
        return WEIR_E_INVALID;
    switch (ev->kind) {
    case CORE_EV_PREFILL_DONE: return on_prefill_done(c, q, ev);
    case CORE_EV_FIRST_TOKEN: return on_first_token(c, q, ev);
    case CORE_EV_PROGRESS: return on_progress(c, q, ev);
    case CORE_EV_DONE: return on_done(c, q, ev);
    case CORE_EV_FAILED: return on_failed(c, q, ev);
    default: return on_cancelled(c, q);
    }
}

static int on_telemetry(struct core *c, const struct core_event *ev)
{
    if (!ev->telemetry || ev->telemetry->at_ps < 0 || ev->telemetry->at_ps > ev->now_ps)
        return WEIR_E_INVALID;
    struct core_telemetry *last = &c->fleet.telemetry[ev->worker];
    if (c->fleet.workers[ev->worker].up && ev->telemetry->at_ps >= last->at_ps)
        *last = *ev->telemetry;
    return 0;
}

static int on_foreign(struct core *c, const struct core_event *ev)
{
    const struct core_load *l = ev->load;
    if (!l || l->prefilling > l->requests || l->requests > CORE_MAX_REQUESTS ||
        l->prefill_tok > CORE_MAX_FOREIGN_TOK || l->prompt_tok > CORE_MAX_FOREIGN_TOK)
        return WEIR_E_INVALID;
    fleet_foreign(&c->fleet, ev->worker, l);
    return 0;
}

static int on_added(struct core *c, const struct core_event *ev)
{
    if (!c->fleet.workers[ev->worker].vacant || !ev->added || fleet_worker_fault(ev->added))
        return WEIR_E_INVALID;
    fleet_add(&c->fleet, ev->worker, ev->added);
    if (c->forecast)
        forecast_set(c->forecast, ev->worker, ev->added->steps);
    c->view.block_size = fleet_block_size(&c->fleet);
    return 0;
}

static int on_gone(struct core *c, uint32_t w)
{
    const struct fleet_worker *k = &c->fleet.workers[w];
    if (k->vacant || (k->up && !k->draining) || c->fleet.own[w])
        return WEIR_E_INVALID;
    if (c->policy->worker_down)
        c->policy->worker_down(c->policy_state, w);
    fleet_vacate(&c->fleet, w);
    c->view.block_size = fleet_block_size(&c->fleet);
    forsake(c, &c->decode);
    forsake(c, &c->again);
    forsake(c, &c->admit);
    return 0;
}

static int on_worker(struct core *c, const struct core_event *ev)
{
    uint32_t w = ev->worker;
    if (w >= c->fleet.n || (c->fleet.workers[w].vacant && ev->kind != CORE_EV_WORKER_ADDED))
        return WEIR_E_INVALID;
    switch (ev->kind) {
    case CORE_EV_WORKER_ADDED: return on_added(c, ev);
    case CORE_EV_WORKER_GONE: return on_gone(c, w);
    case CORE_EV_WORKER_UP: (void)fleet_up(&c->fleet, w); break;
    case CORE_EV_WORKER_DOWN:
        if (fleet_down(&c->fleet, w) && c->policy->worker_down)
            c->policy->worker_down(c->policy_state, w);
        break;
    case CORE_EV_WORKER_DRAIN:
        if (fleet_drain(&c->fleet, w)) {
            forsake(c, &c->decode);
            forsake(c, &c->again);
            forsake(c, &c->admit);
        }
        break;
    case CORE_EV_TELEMETRY: return on_telemetry(c, ev);
    case CORE_EV_FOREIGN: return on_foreign(c, ev);
    default:
        if (!ev->cache || (ev->cache->n_blocks && !ev->cache->keys))
            return WEIR_E_INVALID;
        fleet_cache_event(&c->fleet, w, ev->cache);
    }
    return 0;
}

static int handle(struct core *c, const struct core_event *ev)
{
    switch (ev->kind) {
    case CORE_EV_ARRIVAL: return on_arrival(c, ev);
    case CORE_EV_PREFILL_DONE:
    case CORE_EV_FIRST_TOKEN:
    case CORE_EV_PROGRESS:
    case CORE_EV_DONE:
    case CORE_EV_FAILED:
    case CORE_EV_CANCELLED: return on_request(c, ev);
    case CORE_EV_WORKER_UP:
    case CORE_EV_WORKER_DOWN:
    case CORE_EV_WORKER_DRAIN:
    case CORE_EV_WORKER_ADDED:
    case CORE_EV_WORKER_GONE:
    case CORE_EV_TELEMETRY:
    case CORE_EV_FOREIGN:
    case CORE_EV_CACHE: return on_worker(c, ev);
    case CORE_EV_TIMER: return 0;
    }
    return WEIR_E_INVALID;
}

int core_event(struct core *c, const struct core_event *ev)
{
    int64_t before = c->now_ps;
    if (ev->now_ps < before)
        return WEIR_E_INVALID;
    if (c->n_commands > 2 * c->config.max_requests + CORE_MAX_UNREAD)
        return WEIR_E_LIMIT;
    c->now_ps = c->view.now_ps = ev->now_ps;
    if (!c->n_commands)
        c->n_told = 0;
    c->opened = fleet_tick(&c->fleet, ev->now_ps);
    int rc = handle(c, ev);
    if (rc) {
        c->now_ps = c->view.now_ps = before;
        return rc;
    }
    if (c->stats.queued) {
        bool due = ev->kind == CORE_EV_TIMER && ev->now_ps < PS_NEVER;
        (void)expire(c, due ? ev->now_ps + 1 : ev->now_ps);
        release(c);
        retry_waiting(c);
    }
    return 0;
}

int core_reconfigure(struct core *c, const struct core_config *to, const char **why)
{
    double param[CORE_MAX_POLICY_PARAMS];
    *why = config_fault(to);
    if (*why)
        return WEIR_E_INVALID;
    int rc = read_params(c->policy, to, param, why);
    if (!rc)
        rc = fair_reweigh(&c->fair, to, why);
    if (rc)
        return rc;
    if (c->policy->tune)
        c->policy->tune(c->policy_state, param);
    retry_budget_limit(&c->budget, to->retry.budget, to->retry.percent, to->retry.floor_per_s);
    fleet_judge_by(&c->fleet, &to->health);
    c->config.queue_max_requests = to->queue_max_requests;
    c->config.queue_max_bytes = to->queue_max_bytes;
    c->config.queue_timeout_ps = to->queue_timeout_ps;
    c->config.drop_late = to->drop_late;
    c->config.max_inflight_per_worker = to->max_inflight_per_worker;
    c->config.max_retries = to->max_retries;
    c->config.retry_partial = to->retry_partial;
    fleet_limit(&c->fleet, to->max_inflight_per_worker);
    release(c); /* limits may have been raised */
    retry_waiting(c);
    return 0;
}
