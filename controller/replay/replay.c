/* replay.c - see replay.h. Order of things at one instant: passes that end, workers that become ready,
 * transfers (cluster.c), then telemetry and cache events, timers, arrivals; then workers begin passes.
 */
#include "controller/replay/replay.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/core/core.h"
#include "predictor/cluster.h"
#include "predictor/mem.h"
#include "predictor/rng.h"

#define PROGRESS_EVERY 4096u
/* mooncake-delta: keys of a session for every block of the engine, or, where blocks are single tokens
 * (SGLang), for every 16. */
#define DELTA_KEY_TOK_MIN 16u
#define WHY_BYTES 192

/* A request from the trace until its end. The index is the handle that core and cluster use. */
struct live {
    struct trace_request t; /* keys point to own */
    uint64_t *keys;
    uint32_t keys_cap;
    struct request_spec spec;
    struct report_request out;
    int64_t at_ps; /* when it arrives (turns of sessions: known only later) */
    uint64_t seq;
    uint32_t next; /* free list, or next turn of the session */
    uint32_t session;
};

/* A session whose turns come one after another. */
struct session {
    uint64_t id;
    uint32_t first_turn, last_turn; /* waiting turns, in order */
    bool busy;                      /* a turn is in flight, or will be at a known time */
    bool open;                      /* holds one of the places of a closed loop */
    int64_t ended_ps;               /* end of the last finished turn, -1 none */
    uint32_t chain;
};

struct cache_item {
    int64_t due_ps;
    uint32_t worker, name_off;
    struct core_cache_event ev;
};

#define NONE UINT32_MAX

struct replay {
    const struct stack *stack;
    const struct replay_options *opt;
    char *error;
    struct trace *trace;
    struct core *core;
    struct cluster *cluster;
    struct report *report;
    uint32_t needs;
    int64_t now_ps, last_end_ps;
    int failed; /* first error, ends the loop */
    char why[WHY_BYTES];

    struct live *live;
    uint32_t live_used, live_cap, live_free, n_live, n_inflight;
    uint32_t
        n_users; /* lone requests in flight, and sessions between first arrival and last answer */
    uint64_t seq;

    bool trace_over;
    uint32_t next_arrival; /* read ahead: the trace's next request by time; NONE */
    uint64_t n_read;

    uint32_t *ready; /* heap of turns whose time is known, by (at_ps, seq) */
    uint32_t n_ready, ready_cap;

    struct session *sessions;
    uint32_t n_sessions, sessions_cap, *session_bucket, session_mask;
    uint32_t n_waiting_turns;

    int64_t last_poll_ps, next_poll_ps;

    struct cache_item *cache; /* ring in order of due time; names in cache_names */
    uint32_t cache_head, cache_n, cache_cap;
    uint64_t *cache_names;
    uint32_t cache_names_used, cache_names_cap;
};

static void fail(struct replay *r, int rc, const char *what)
{
    if (r->failed)
        return;
    r->failed = rc;
    snprintf(r->error, REPLAY_ERROR_BYTES, "%s", what);
}

/* ---- the request pool */

static uint32_t live_new(struct replay *r)
{
    uint32_t i = r->live_free;
    if (i != NONE) {
        r->live_free = r->live[i].next;
    } else {
        i = r->live_used;
        uint32_t old = r->live_cap;
        MEM_GROW(r->live, r->live_cap, i + 1);
        if (r->live_cap != old)
            memset(&r->live[old], 0, (r->live_cap - old) * sizeof *r->live);
        r->live_used = i + 1;
    }
    r->n_live++;
    return i;
}

static void live_free(struct replay *r, uint32_t i)
{
    r->live[i].next = r->live_free;
    r->live_free = i;
    r->n_live--;
}

static void live_fill(struct replay *r, uint32_t i, const struct trace_request *t)
{
    struct live *l = &r->live[i];
    MEM_GROW(l->keys, l->keys_cap, t->n_keys);
    if (t->n_keys)
        memcpy(l->keys, t->keys, t->n_keys * sizeof *t->keys);
    l->t = *t;
    l->t.keys = l->keys;
    l->seq = r->seq++;
    l->session = NONE;
    l->next = NONE;
    l->spec = (struct request_spec){.uid = t->row + 1,
                                    .prompt_tok = t->prompt_tok,
                                    .output_tok = t->output_tok,
                                    .max_tokens = t->max_tokens ? t->max_tokens : t->output_tok,
                                    .priority = t->priority,
                                    .keys = l->keys,
                                    .n_keys = t->n_keys,
                                    .key_tok = t->key_tok};
    l->out = (struct report_request){.row = t->row,
                                     .first_admit_ps = -1,
                                     .first_token_ps = -1,
                                     .second_token_ps = -1,
                                     .end_ps = -1,
                                     .prompt_tok = t->prompt_tok,
                                     .worker = CORE_NO_WORKER,
                                     .prefill_worker = CORE_NO_WORKER,
                                     .tenant = t->tenant,
                                     .session = t->session,
                                     .overlap_tok = -1,
                                     .max_tokens = t->max_tokens,
                                     .priority = t->priority,
                                     .keys = l->keys,
                                     .n_keys = t->n_keys,
                                     .key_tok = t->key_tok};
}

/* ---- sessions */

static uint32_t session_find(struct replay *r, uint64_t id)
{
    if (!r->session_bucket)
        return NONE;
    uint32_t i = r->session_bucket[rng_mix64(id) & r->session_mask];
    while (i != NONE && r->sessions[i].id != id)
        i = r->sessions[i].chain;
    return i;
}

static void session_rehash(struct replay *r, uint32_t n)
{
    free(r->session_bucket);
    r->session_bucket = malloc(n * sizeof *r->session_bucket);
    if (!r->session_bucket)
        abort();
    memset(r->session_bucket, 0xff, n * sizeof *r->session_bucket);
    r->session_mask = n - 1;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        uint32_t *b = &r->session_bucket[rng_mix64(r->sessions[i].id) & r->session_mask];
        r->sessions[i].chain = *b;
        *b = i;
    }
}

static uint32_t session_get(struct replay *r, uint64_t id)
{
    uint32_t i = session_find(r, id);
    if (i != NONE)
        return i;
    if (r->n_sessions == REPLAY_MAX_SESSIONS) {
        fail(r, WEIR_E_LIMIT, "more than 16,777,216 sessions in the trace: split it");
        return NONE;
    }
    i = r->n_sessions++;
    MEM_GROW(r->sessions, r->sessions_cap, i + 1);
    r->sessions[i] =
        (struct session){.id = id, .first_turn = NONE, .last_turn = NONE, .ended_ps = -1};
    if (!r->session_bucket || r->n_sessions > r->session_mask) {
        session_rehash(r, r->session_bucket ? (r->session_mask + 1) * 2 : 1024);
    } else {
        uint32_t *b = &r->session_bucket[rng_mix64(id) & r->session_mask];
        r->sessions[i].chain = *b;
        *b = i;
    }
    return i;
}

static bool sooner(const struct replay *r, uint32_t a, uint32_t b)
{
    const struct live *x = &r->live[a], *y = &r->live[b];
    return x->at_ps != y->at_ps ? x->at_ps < y->at_ps : x->seq < y->seq;
}

static void ready_push(struct replay *r, uint32_t h)
{
    MEM_GROW(r->ready, r->ready_cap, r->n_ready + 1);
    uint32_t i = r->n_ready++;
    while (i && sooner(r, h, r->ready[(i - 1) / 2])) {
        r->ready[i] = r->ready[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    r->ready[i] = h;
}

static uint32_t ready_pop(struct replay *r)
{
    uint32_t top = r->ready[0], last = r->ready[--r->n_ready], i = 0;
    for (;;) {
        uint32_t kid = 2 * i + 1;
        if (kid >= r->n_ready)
            break;
        if (kid + 1 < r->n_ready && sooner(r, r->ready[kid + 1], r->ready[kid]))
            kid++;
        if (!sooner(r, r->ready[kid], last))
            break;
        r->ready[i] = r->ready[kid];
        i = kid;
    }
    r->ready[i] = last;
    return top;
}

static int64_t scaled(const struct replay *r, int64_t ps)
{
    return r->opt->speedup == 1 ? ps : (int64_t)((double)ps / r->opt->speedup + 0.5);
}

/* The first waiting turn of a session that is not busy gets its time. */
static void session_next(struct replay *r, struct session *s)
{
    uint32_t h = s->first_turn;
    if (s->busy || h == NONE)
        return;
    struct live *l = &r->live[h];
    s->first_turn = l->next;
    if (s->first_turn == NONE)
        s->last_turn = NONE;
    l->next = NONE;
    r->n_waiting_turns--;
    s->busy = true;
    int64_t at = (s->ended_ps < 0 ? 0 : s->ended_ps) + scaled(r, l->t.delay_ps);
    int64_t own =
        l->t.arrival_ps == PS_NEVER || r->opt->concurrency ? 0 : scaled(r, l->t.arrival_ps);
    l->at_ps = at > own ? at : own;
    if (l->at_ps < r->now_ps)
        l->at_ps = r->now_ps;
    ready_push(r, h);
}

/* ---- reading the trace: one request ahead of time, turns go to their sessions */

static void read_ahead(struct replay *r)
{
    while (r->next_arrival == NONE && !r->trace_over && !r->failed) {
        struct trace_request t;
        int rc = trace_next(r->trace, &t);
        if (rc < 0) {
            fail(r, rc, trace_error(r->trace));
            return;
        }
        if (rc == 0) {
            r->trace_over = true;
            return;
        }
        if (r->n_live >= REPLAY_MAX_LIVE) {
            fail(r, WEIR_E_LIMIT,
                 "more than 4,194,304 requests waiting at once: the stack cannot keep up with "
                 "this trace; give it more workers, or a shorter admission queue");
            return;
        }
        uint32_t h = live_new(r);
        live_fill(r, h, &t);
        if (r->opt->progress && r->n_read % PROGRESS_EVERY == 0)
            r->opt->progress(r->opt->progress_ctx, r->n_read, r->now_ps);
        r->n_read++;
        struct live *l = &r->live[h];
        if (t.session) {
            cluster_wake(r->cluster, r->now_ps);
            uint32_t si = session_get(r, t.session);
            if (si == NONE)
                return;
            l->session = si;
            struct session *s = &r->sessions[si];
            if (t.follows) {
                if (++r->n_waiting_turns > REPLAY_MAX_WAITING_TURNS) {
                    fail(r, WEIR_E_LIMIT,
                         "more than 4,194,304 turns wait for their session: split the trace");
                    return;
                }
                *(s->last_turn == NONE ? &s->first_turn : &r->live[s->last_turn].next) = h;
                s->last_turn = h;
                session_next(r, s);
                continue;
            }
            s->busy = true;
        }
        l->at_ps =
            r->opt->concurrency || t.arrival_ps == PS_NEVER ? r->now_ps : scaled(r, t.arrival_ps);
        if (l->at_ps < r->now_ps)
            l->at_ps = r->now_ps;
        r->next_arrival = h;
    }
}

/* A closed loop has no place for another request or session. Turns of sessions that have one go on. */
static bool is_full(const struct replay *r)
{
    return r->opt->concurrency && r->n_users >= r->opt->concurrency;
}

static int64_t next_arrival_ps(const struct replay *r)
{
    int64_t t = PS_NEVER;
    if (r->next_arrival != NONE && !is_full(r))
        t = r->live[r->next_arrival].at_ps;
    if (r->opt->concurrency && t < r->now_ps)
        t = r->now_ps;
    if (r->n_ready && r->live[r->ready[0]].at_ps < t)
        t = r->live[r->ready[0]].at_ps;
    return t;
}

/* ---- the end of a request */

static void over(struct replay *r, uint32_t h, enum core_reason reason, int64_t now)
{
    struct live *l = &r->live[h];
    l->out.reason = reason;
    if (l->out.end_ps < 0 && reason == CORE_REASON_NONE)
        l->out.end_ps = now;
    if (now > r->last_end_ps)
        r->last_end_ps = now;
    report_add(r->report, &l->out);
    if (r->opt->ended)
        r->opt->ended(r->opt->ended_ctx, &l->out);
    if (r->opt->log && request_log_add(r->opt->log, r->opt->policy, &l->out))
        fail(r, WEIR_E_IO, "writing the request log failed (disk full?)");
    r->n_inflight--;
    if (l->session != NONE) {
        struct session *s = &r->sessions[l->session];
        s->busy = false;
        s->ended_ps = now;
        session_next(r, s);
        if (!s->busy) { /* as far as the trace has been read */
            s->open = false;
            r->n_users--;
        }
    } else {
        r->n_users--;
    }
    live_free(r, h);
}

/* ---- core in and out */

static void carry_out(struct replay *r);

static void tell(struct replay *r, const struct core_event *ev)
{
    int rc = core_event(r->core, ev);
    if (rc)
        fail(r, rc, "internal error: the decision core refused an event");
    carry_out(r);
}

static void worker_lost(struct replay *r, uint32_t h, uint32_t worker, bool partial)
{
    tell(r, &(struct core_event){.kind = CORE_EV_FAILED,
                                 .now_ps = r->now_ps,
                                 .request = h,
                                 .worker = worker,
                                 .partial = partial});
}

static void dispatch(struct replay *r, const struct core_command *cmd)
{
    struct live *l = &r->live[cmd->request];
    bool prefill = cmd->kind == CORE_CMD_DISPATCH_PREFILL;
    int rc;
    if (cmd->overlap_tok >= 0 && cmd->kind != CORE_CMD_DISPATCH_DECODE)
        l->out.overlap_tok = cmd->overlap_tok;
    if (cmd->attempt > l->out.retries)
        l->out.retries = cmd->attempt;
    if (prefill)
        l->out.prefill_worker = cmd->worker;
    else
        l->out.worker = cmd->worker;
    if (cmd->kind == CORE_CMD_DISPATCH_DECODE)
        rc = cluster_handoff(r->cluster, r->now_ps, cmd->worker, &l->spec, cmd->request);
    else if (prefill && cmd->peer != CORE_NO_WORKER)
        rc = cluster_submit_pair(r->cluster, r->now_ps, cmd->worker, cmd->peer, &l->spec,
                                 cmd->request);
    else
        rc = cluster_submit(r->cluster, r->now_ps, cmd->worker, &l->spec, cmd->request, prefill);
    if (rc)
        worker_lost(r, cmd->request, cmd->worker, false);
}

static void carry_out(struct replay *r)
{
    struct core_command cmd;
    while (!r->failed && core_next(r->core, &cmd)) {
        switch (cmd.kind) {
        case CORE_CMD_DISPATCH:
        case CORE_CMD_DISPATCH_PREFILL:
        case CORE_CMD_DISPATCH_DECODE: dispatch(r, &cmd); break;
        case CORE_CMD_REJECT: over(r, cmd.request, cmd.reason, r->now_ps); break;
        case CORE_CMD_CANCEL: cluster_cancel(r->cluster, r->now_ps, cmd.request); break;
        case CORE_CMD_HOLD: break;
        }
    }
}

static void arrive(struct replay *r, uint32_t h)
{
    struct live *l = &r->live[h];
    l->out.arrival_ps = r->now_ps;
    l->spec.arrival_ps = r->now_ps;
    r->n_inflight++;
    if (l->session == NONE || !r->sessions[l->session].open)
        r->n_users++;
    if (l->session != NONE)
        r->sessions[l->session].open = true;
    struct core_request q = {.prompt_tok = l->t.prompt_tok,
                             .max_tokens = r->opt->oracle ? l->t.output_tok : l->t.max_tokens,
                             .priority = l->t.priority,
                             .session = l->t.session,
                             .tenant = l->t.tenant,
                             .keys = l->keys,
                             .n_keys = l->t.n_keys,
                             .key_tok = l->t.key_tok,
                             .slo_ttft_ps = r->stack->slo_ttft_ps,
                             .slo_tpot_ps = r->stack->slo_tpot_ps};
    tell(r, &(struct core_event){
                .kind = CORE_EV_ARRIVAL, .now_ps = r->now_ps, .request = h, .req = &q});
}

static void request_done(struct replay *r, const struct cluster_event *ev)
{
    struct live *l = &r->live[ev->handle];
    const struct engine_record *rec = &ev->record;
    if (l->out.first_admit_ps < 0)
        l->out.first_admit_ps = rec->first_admit_ps;
    l->out.first_token_ps = rec->first_token_ps;
    l->out.second_token_ps = rec->second_token_ps;
    l->out.end_ps = rec->end_ps;
    l->out.output_tok = rec->output_tok;
    l->out.preemptions += rec->preemptions;
    if (l->out.prefill_worker == CORE_NO_WORKER) {
        l->out.reused_tok = rec->reused_tok;
        l->out.reused_all_tok = rec->reused_all_tok;
    }
    tell(r, &(struct core_event){.kind = CORE_EV_DONE,
                                 .now_ps = r->now_ps,
                                 .request = ev->handle,
                                 .worker = ev->worker,
                                 .n = rec->output_tok});
    over(r, ev->handle, CORE_REASON_NONE, ev->at_ps);
}

static void prefill_done(struct replay *r, const struct cluster_event *ev)
{
    struct live *l = &r->live[ev->handle];
    l->out.first_admit_ps = ev->record.first_admit_ps;
    l->out.reused_tok = ev->record.reused_tok;
    l->out.reused_all_tok = ev->record.reused_all_tok;
    l->out.preemptions = ev->record.preemptions;
    tell(r, &(struct core_event){.kind = CORE_EV_PREFILL_DONE,
                                 .now_ps = r->now_ps,
                                 .request = ev->handle,
                                 .worker = ev->worker});
}

static void worker_event(struct replay *r, enum core_event_kind kind, uint32_t worker)
{
    tell(r, &(struct core_event){.kind = kind, .now_ps = r->now_ps, .worker = worker});
}

static void hear(struct replay *r)
{
    struct cluster_event ev;
    while (!r->failed && cluster_poll(r->cluster, &ev)) {
        switch (ev.kind) {
        case CLUSTER_EV_FIRST_TOKEN:
            if (r->needs & (1u << CORE_EV_FIRST_TOKEN))
                tell(r, &(struct core_event){.kind = CORE_EV_FIRST_TOKEN,
                                             .now_ps = r->now_ps,
                                             .request = ev.handle,
                                             .worker = ev.worker});
            break;
        case CLUSTER_EV_PREFILL_DONE: prefill_done(r, &ev); break;
        case CLUSTER_EV_DONE: request_done(r, &ev); break;
        case CLUSTER_EV_LOST: worker_lost(r, ev.handle, ev.worker, ev.partial); break;
        case CLUSTER_EV_WORKER_UP: worker_event(r, CORE_EV_WORKER_UP, ev.worker); break;
        case CLUSTER_EV_WORKER_DOWN: worker_event(r, CORE_EV_WORKER_DOWN, ev.worker); break;
        case CLUSTER_EV_WORKER_DRAIN: worker_event(r, CORE_EV_WORKER_DRAIN, ev.worker); break;
        }
    }
}

/* ---- what the shadow hears late: telemetry and cache events */

static int64_t poll_interval(const struct replay *r)
{
    return r->opt->oracle ? 0 : r->stack->telemetry_poll_ps;
}

static void poll_telemetry(struct replay *r)
{
    uint32_t n = 0;
    for (uint32_t p = 0; p < r->stack->n_pools; p++)
        n += r->stack->pools[p].workers;
    for (uint32_t w = 0; w < n && !r->failed; w++) {
        if (!cluster_worker_up(r->cluster, w))
            continue;
        struct engine_load load;
        dp_get_load(cluster_group(r->cluster, w), r->now_ps, &load);
        struct core_telemetry tel = {.at_ps = r->now_ps,
                                     .running = load.running,
                                     .waiting = load.waiting,
                                     .kv_used_blocks = load.kv_used_blocks,
                                     .kv_total_blocks = load.kv_total_blocks};
        tell(r,
             &(struct core_event){
                 .kind = CORE_EV_TELEMETRY, .now_ps = r->now_ps, .worker = w, .telemetry = &tel});
    }
    r->last_poll_ps = r->now_ps;
}

/* Only polls that a decision can still see matter: the last one before the next arrival, and any while
 * requests are held or handed over (then every one). */
static void plan_poll(struct replay *r, int64_t arrival)
{
    if (!(r->needs & (1u << CORE_EV_TELEMETRY)))
        return;
    int64_t every = poll_interval(r);
    if (!every) {
        r->next_poll_ps = arrival;
        return;
    }
    struct core_stats stats;
    core_get_stats(r->core, &stats);
    int64_t next = (r->last_poll_ps < 0 ? 0 : r->last_poll_ps / every * every + every);
    bool other = stats.queued > 0 || r->stack->n_pools > 1 || r->stack->n_faults;
    if (!other || !stats.inflight)
        next = arrival == PS_NEVER ? PS_NEVER : arrival / every * every;
    r->next_poll_ps = next > r->last_poll_ps ? next : PS_NEVER;
}

static void cache_changed(void *ctx, uint32_t worker, int64_t at_ps,
                          const struct engine_cache_change *change)
{
    struct replay *r = ctx;
    if (r->cache_n == 0) {
        r->cache_head = 0;
        r->cache_names_used = 0;
    }
    if (r->cache_head + r->cache_n == r->cache_cap && r->cache_head) {
        memmove(r->cache, &r->cache[r->cache_head], r->cache_n * sizeof *r->cache);
        r->cache_head = 0;
    }
    MEM_GROW(r->cache, r->cache_cap, r->cache_head + r->cache_n + 1);
    MEM_GROW(r->cache_names, r->cache_names_cap, r->cache_names_used + change->n_blocks);
    memcpy(&r->cache_names[r->cache_names_used], change->names,
           change->n_blocks * sizeof *change->names);
    struct cache_item it = {
        .due_ps = at_ps + (r->opt->oracle ? 0 : r->stack->cache_event_delay_ps),
        .worker = worker,
        .name_off = r->cache_names_used,
        .ev = {.stored = change->stored, .depth = change->depth, .n_blocks = change->n_blocks}};
    r->cache_names_used += change->n_blocks;
    uint32_t i = r->cache_head + r->cache_n++;
    for (; i > r->cache_head && r->cache[i - 1].due_ps > it.due_ps; i--)
        r->cache[i] = r->cache[i - 1];
    r->cache[i] = it;
}

static void deliver_cache(struct replay *r)
{
    while (r->cache_n && r->cache[r->cache_head].due_ps <= r->now_ps && !r->failed) {
        struct cache_item it = r->cache[r->cache_head++];
        r->cache_n--;
        it.ev.keys = &r->cache_names[it.name_off];
        tell(r,
             &(struct core_event){
                 .kind = CORE_EV_CACHE, .now_ps = r->now_ps, .worker = it.worker, .cache = &it.ev});
    }
}

/* ---- the loop */

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Everything that happens at now_ps. */
static void instant(struct replay *r)
{
    bool again = true;
    while (again && !r->failed) {
        again = false;
        cluster_advance(r->cluster, r->now_ps);
        hear(r);
        if (r->needs & (1u << CORE_EV_CACHE))
            deliver_cache(r);
        if (r->next_poll_ps <= r->now_ps) {
            poll_telemetry(r);
            r->next_poll_ps = PS_NEVER;
        }
        if (core_next_timer_ps(r->core) <= r->now_ps)
            tell(r, &(struct core_event){.kind = CORE_EV_TIMER, .now_ps = r->now_ps});
        while (!r->failed && next_arrival_ps(r) <= r->now_ps) {
            uint32_t h;
            bool turn =
                r->n_ready && r->live[r->ready[0]].at_ps <= r->now_ps &&
                (r->next_arrival == NONE || is_full(r) || !sooner(r, r->next_arrival, r->ready[0]));
            if (turn) {
                h = ready_pop(r);
            } else {
                h = r->next_arrival;
                r->next_arrival = NONE;
            }
            arrive(r, h);
            read_ahead(r);
        }
        if (cluster_next_ps(r->cluster) <= r->now_ps || core_next_timer_ps(r->core) <= r->now_ps)
            again = true;
    }
    cluster_start(r->cluster, r->now_ps);
}

static void loop(struct replay *r)
{
    read_ahead(r);
    while (!r->failed) {
        int64_t arrival = next_arrival_ps(r);
        plan_poll(r, arrival);
        int64_t t = min64(arrival, cluster_next_ps(r->cluster));
        t = min64(t, core_next_timer_ps(r->core));
        if (t == PS_NEVER) /* telemetry and cache events alone change nothing any more */
            break;
        if (r->cache_n && r->n_inflight)
            t = min64(t, r->cache[r->cache_head].due_ps);
        t = min64(t, r->next_poll_ps);
        if (!r->n_live && r->trace_over) /* only faults to come */
            break;
        if (t > r->now_ps)
            r->now_ps = t;
        instant(r);
    }
}

/* ---- putting it together */

static uint32_t count_workers(const struct stack *s)
{
    uint32_t n = 0;
    for (uint32_t p = 0; p < s->n_pools; p++)
        n += s->pools[p].workers;
    return n;
}

static struct worker_config *expand_workers(const struct stack *s, uint32_t n,
                                            struct core_worker_config **core_out)
{
    struct worker_config *w = calloc(n, sizeof *w);
    struct core_worker_config *cw = calloc(n, sizeof *cw);
    uint32_t k = 0;
    for (uint32_t p = 0; w && cw && p < s->n_pools; p++) {
        const struct stack_pool *pool = &s->pools[p];
        for (uint32_t i = 0; i < pool->workers; i++, k++) {
            w[k] = pool->worker;
            w[k].pool = p;
            bool ok = stack_worker_domain(pool, i, w[k].domain);
            assert(ok); /* stack_check has tried the longest */
            (void)ok;
            const struct engine_config *e = &pool->worker.engine;
            cw[k] = (struct core_worker_config){.role = e->role,
                                                .block_size = e->block_size,
                                                /* one of vLLM's is never used */
                                                .num_gpu_blocks = e->num_gpu_blocks -
                                                                  (e->scheduler == SCHED_VLLM),
                                                .max_num_seqs = e->max_num_seqs,
                                                .max_num_batched_tokens = e->max_num_batched_tokens,
                                                .max_model_len = e->max_model_len,
                                                .up = pool->worker.starts_up};
        }
    }
    if (!w || !cw) {
        free(w);
        free(cw);
        return NULL;
    }
    *core_out = cw;
    return w;
}

static bool pd(const struct stack *s)
{
    for (uint32_t p = 0; p < s->n_pools; p++) {
        if (s->pools[p].worker.engine.role != ROLE_BOTH)
            return true;
    }
    return false;
}

/* Whether nothing that comes out of a worker can change what goes in: then workers run lazily. */
static bool blind(const struct replay *r)
{
    const struct stack *s = r->stack;
    return !r->needs && !pd(s) && !s->n_faults && !s->max_inflight_per_worker &&
           !r->opt->concurrency && !r->opt->log;
}

static int build(struct replay *r)
{
    const struct stack *s = r->stack;
    const struct replay_options *o = r->opt;
    uint32_t n = count_workers(s);
    double param[STACK_MAX_POLICY_PARAMS];
    stack_policy_values(s, o->policy, param);
    struct core_worker_config *cw = NULL;
    struct worker_config *w = expand_workers(s, n, &cw);
    if (!w) {
        fail(r, WEIR_E_NOMEM, "out of memory");
        return WEIR_E_NOMEM;
    }
    const char *why = NULL;
    struct core_config cc = {.policy = o->policy,
                             .own_policy = o->own_policy,
                             .seed = o->seed,
                             .n_workers = n,
                             .workers = cw,
                             .queue_max_requests = s->queue_max_requests,
                             .queue_timeout_ps = s->queue_timeout_ps,
                             .max_inflight_per_worker = s->max_inflight_per_worker,
                             .max_retries = s->max_retries,
                             .retry_partial = s->retry_partial,
                             .destination_first = s->handoff == HANDOFF_DESTINATION_FIRST,
                             .max_requests = REPLAY_MAX_LIVE,
                             .policy_param = param};
    r->core = core_new(&cc, &why);
    if (!r->core) {
        free(w);
        free(cw);
        fail(r, WEIR_E_INVALID, why);
        return WEIR_E_INVALID;
    }
    r->needs = core_needs(r->core);
    struct cluster_options co = {.link = s->link,
                                 .transfer = s->transfer,
                                 .kv_lease_ps = s->kv_lease_ps,
                                 .seed = o->seed,
                                 .stepping = o->stepping,
                                 .lazy = blind(r),
                                 .first_tokens =
                                     (r->needs & (1u << CORE_EV_FIRST_TOKEN)) || s->n_faults,
                                 .itl = report_itl(r->report)};
    if (r->needs & (1u << CORE_EV_CACHE)) {
        co.on_cache = cache_changed;
        co.on_cache_ctx = r;
    }
    r->cluster = cluster_new(w, n, &co);
    free(w);
    free(cw);
    if (!r->cluster || cluster_add_faults(r->cluster, s->faults, s->n_faults)) {
        fail(r, WEIR_E_NOMEM,
             "out of memory, or an engine's limits are out of range (weir check says which)");
        return WEIR_E_NOMEM;
    }
    return 0;
}

static void report_workers(struct replay *r, uint64_t *passes)
{
    uint32_t k = 0;
    *passes = 0;
    for (uint32_t p = 0; p < r->stack->n_pools; p++) {
        for (uint32_t i = 0; i < r->stack->pools[p].workers; i++, k++) {
            struct engine_stats st;
            dp_get_stats(cluster_group(r->cluster, k), &st);
            struct report_worker w = {.pool = p,
                                      .busy_ps = st.busy_ps,
                                      .up_ps =
                                          cluster_worker_held_ps(r->cluster, k, r->last_end_ps),
                                      .requests = st.done,
                                      .prompt_tok = st.prompt_tok,
                                      .output_tok = st.output_tok,
                                      .reused_tok = st.reused_tok,
                                      .preemptions = st.preemptions,
                                      .passes = st.passes,
                                      .host_tok = st.host_tok,
                                      .shared_tok = st.shared_tok,
                                      .stored_tok = st.stored_tok,
                                      .not_stored_tok = st.not_stored_tok};
            report_worker(r->report, k, &w);
            *passes += st.passes;
        }
    }
}

static void clean_up(struct replay *r)
{
    trace_close(r->trace);
    core_free(r->core);
    cluster_free(r->cluster);
    for (uint32_t i = 0; i < r->live_cap; i++)
        free(r->live[i].keys);
    free(r->live);
    free(r->ready);
    free(r->sessions);
    free(r->session_bucket);
    free(r->cache);
    free(r->cache_names);
}

/* Whether some worker, or a prefill and a decode worker together, can hold a request at all. */
static bool someone_fits(const struct replay *r, const struct request_spec *q)
{
    bool prefill = false, decode = false;
    uint32_t first = 0;
    for (uint32_t p = 0; p < r->stack->n_pools; first += r->stack->pools[p++].workers) {
        enum worker_role role = r->stack->pools[p].worker.engine.role;
        bool fits = engine_fits(cluster_engine(r->cluster, first), q);
        prefill = prefill || (fits && role != ROLE_DECODE);
        decode = decode || (fits && role != ROLE_PREFILL);
    }
    return prefill && decode;
}

/* trace_options.refuse: a live router would answer 400; in a trace it is a mistake in the set-up. */
static const char *too_large(void *ctx, uint32_t prompt_tok, uint32_t output_tok)
{
    struct replay *r = ctx;
    uint64_t most = 0;
    struct request_spec q = {
        .prompt_tok = prompt_tok, .output_tok = output_tok, .max_tokens = output_tok};
    if (someone_fits(r, &q))
        return NULL;
    for (uint32_t p = 0; p < r->stack->n_pools; p++) {
        const struct engine_config *c = &r->stack->pools[p].worker.engine;
        uint64_t tok = (uint64_t)c->num_gpu_blocks * c->block_size;
        tok = c->max_model_len && c->max_model_len < tok ? c->max_model_len : tok;
        most = tok > most ? tok : most;
    }
    snprintf(r->why, sizeof r->why,
             "the largest worker holds %" PRIu64
             "; raise num_gpu_blocks, block_size or max_model_len in the stack",
             most);
    return r->why;
}

int replay_run(const struct stack *stack, const struct replay_options *opt, struct report *report,
               struct report_run *run, char *error)
{
    struct trace_options to = opt->trace;
    struct replay r = {.stack = stack,
                       .opt = opt,
                       .error = error,
                       .report = report,
                       .live_free = NONE,
                       .next_arrival = NONE,
                       .last_poll_ps = -1,
                       .next_poll_ps = PS_NEVER};
    *run = (struct report_run){0};
    to.untimed = opt->concurrency > 0;
    to.seed = opt->seed;
    to.refuse = too_large;
    to.refuse_ctx = &r;
    to.delta_key_tok = stack->pools[0].worker.engine.block_size;
    if (to.delta_key_tok < DELTA_KEY_TOK_MIN)
        to.delta_key_tok = DELTA_KEY_TOK_MIN;
    r.trace = opt->data ? trace_open_memory("<stdin>", opt->data, opt->data_len, &to, error)
                        : trace_open(opt->paths, opt->n_paths, &to, error);
    if (!r.trace)
        return WEIR_E_INPUT;
    if (!build(&r)) {
        loop(&r);
        cluster_drain(r.cluster);
        hear(&r);
        if (!r.failed && r.n_live && cluster_out_of_time(r.cluster))
            fail(&r, WEIR_E_LIMIT,
                 "simulated time went beyond 53 days with requests left over; look at the stack's "
                 "step times, bandwidths and slow factors");
        if (!r.failed && r.n_live)
            fail(&r, WEIR_E_STATE,
                 "the replay came to a stop with requests left over: no worker can take them");
        report_workers(&r, &run->passes);
        run->duration_ps = r.last_end_ps;
        run->bad_rows = trace_bad_rows(r.trace);
        run->failed_rows = trace_failed_rows(r.trace);
        snprintf(run->first_bad, sizeof run->first_bad, "%s", trace_first_bad(r.trace));
    }
    clean_up(&r);
    return r.failed;
}
