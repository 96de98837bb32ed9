/* proxy.c - see proxy.h. Requests, their clients, and the life of a thread's proxy. */
#include "controller/serve/live.h"
#include "controller/serve/proxy_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "controller/replay/report_internal.h"

#define SPARE_REQUESTS 1024u

/* ---- requests come and go */

static struct proxy_request *request_new(struct proxy *p, struct http_exchange *ex)
{
    struct proxy_request *r = p->spare;
    if (r) {
        p->spare = r->next;
        p->n_spare--;
    } else {
        r = malloc(sizeof *r);
        if (!r)
            return NULL;
    }
    r->hub = (struct hub_request){0, 0, NULL};
    r->proxy = p;
    r->pool = NULL;
    r->ex = ex;
    r->told = true;
    r->passthrough = r->prefill_done = r->head_sent = r->first_told = false;
    r->answer_silent = r->can_restart = r->worker_error = false;
    r->keys = NULL;
    r->prefill_answer = NULL;
    r->prefill_len = 0;
    r->first_ns = 0;
    struct leg *legs[] = {&r->prefill, &r->answer_leg};
    for (int i = 0; i < 2; i++) {
        legs[i]->request = r;
        legs[i]->call = NULL;
        legs[i]->worker = CORE_NO_WORKER;
        legs[i]->resent = false;
        legs[i]->changes = NULL;
        legs[i]->n_slices = 0;
    }
    answer_init(&r->answer, false);
    r->arrived_ns = uv_hrtime();
    r->prev = NULL;
    r->next = p->live;
    if (p->live)
        p->live->prev = r;
    p->live = r;
    proxy_count(&p->counts.live, 1);
    http_exchange_set_user(ex, r);
    return r;
}

void proxy_release(struct proxy_request *r)
{
    struct proxy *p = r->proxy;
    if (r->ex || !r->told)
        return;
    legs_cancel(r, CORE_NO_WORKER);
    http_timer_deinit(p->http, &r->comment);
    answer_deinit(&r->answer);
    legs_drop_bodies(r);
    seen_end(r);
    free(r->keys);
    *(r->prev ? &r->prev->next : &p->live) = r->next;
    if (r->next)
        r->next->prev = r->prev;
    proxy_count(&p->counts.live, (uint64_t)-1);
    if (p->n_spare < SPARE_REQUESTS) {
        r->next = p->spare;
        p->spare = r;
        p->n_spare++;
    } else {
        free(r);
    }
}

static void tell_done(struct proxy_request *r)
{
    if (r->told)
        return;
    r->told = true;
    /* of an answer that is no stream, first_ns is when it was complete */
    hub_done(&r->hub, r->answer_leg.worker, answer_output_tok(&r->answer),
             r->first_told && r->answer.stream ? r->first_ns : 0, r->worker_error);
}

/* ---- refusals */

static void retry_after(struct http_exchange *ex, int64_t ps)
{
    char text[24];
    int64_t s = ps == PS_NEVER || ps <= 0 ? 1 : (ps + PS_PER_S - 1) / PS_PER_S;
    int n = snprintf(text, sizeof text, "%lld", (long long)s);
    http_reply_field(ex, "Retry-After", (struct http_slice){text, (size_t)n});
}

/* r: NULL where there was no memory for it. */
static void refuse(struct http_exchange *ex, struct proxy_request *r, const struct openai_error *e,
                   const char *reason, int64_t after_ps)
{
    char body[OPENAI_ERROR_BODY_BYTES];
    size_t len = openai_error_body(body, e);
    struct http_slice data = {body, len};
    http_reply_head(ex, e->status, len);
    http_reply_field(ex, "Content-Type", HTTP_SLICE("application/json"));
    if (r)
        seen_refusal(r, ex);
    if (e->status == 429 || e->status == 503)
        retry_after(ex, after_ps);
    if (reason)
        http_reply_field(ex, "x-llm-d-request-dropped-reason",
                         (struct http_slice){reason, strlen(reason)});
    http_reply_send(ex, &data, 1, true);
}

/* A stream whose head has gone out (comments while it was held) can only be told in its own form. */
static void refuse_stream(struct http_exchange *ex, const struct openai_error *e)
{
    char event[OPENAI_ERROR_BODY_BYTES + 32];
    struct http_slice data = {event, openai_error_event(event, e)};
    http_reply_send(ex, &data, 1, true);
}

static void refuse_with(struct proxy_request *r, const struct openai_error *e, const char *reason,
                        int64_t after_ps)
{
    struct http_exchange *ex = r->ex;
    r->ex = NULL;
    proxy_count(&r->proxy->counts.refused, 1);
    seen_over(r, "failed", e->code);
    r->seen.status = e->status;
    if (http_reply_started(ex))
        refuse_stream(ex, e);
    else
        refuse(ex, r, e, reason, after_ps);
    proxy_release(r);
}

void proxy_refuse(struct proxy_request *r, const struct openai_error *e, int64_t retry_after_ps)
{
    refuse_with(r, e, NULL, retry_after_ps);
}

void proxy_cut(struct proxy_request *r, const char *detail)
{
    struct http_exchange *ex = r->ex;
    struct openai_error e = openai_error_of(CORE_REASON_PARTIAL);
    char message[160];
    snprintf(message, sizeof message, "%s: %s", e.message, detail);
    e.message = message;
    r->ex = NULL;
    proxy_count(&r->proxy->counts.cut, 1);
    seen_over(r, "failed", report_reason_name(CORE_REASON_PARTIAL));
    if (r->answer.stream && answer_at_boundary(&r->answer))
        refuse_stream(ex, &e);
    else
        http_exchange_abort(ex);
    if (r->told)
        proxy_release(r);
    else
        hub_failed(&r->hub, r->answer_leg.worker, true); /* its command releases r */
}

/* ---- answers */

void proxy_answer_head(struct proxy_request *r, const struct http_head *head)
{
    r->head_sent = true;
    http_timer_stop(&r->comment);
    if (http_reply_started(r->ex)) /* comments have gone out: the head was ours */
        return;
    http_reply_head(r->ex, head->status,
                    head->has_length ? head->content_length : HTTP_UNKNOWN_LENGTH);
    http_reply_fields(r->ex, head);
    seen_head(r, head);
}

void proxy_request_sent(struct proxy_request *r)
{
    bool prefill_sent = !r->prefill.call || http_call_written(r->prefill.call);
    if (prefill_sent && http_call_written(r->answer_leg.call)) {
        http_exchange_release(r->ex);
        legs_drop_bodies(r);
    }
}

static void learn(struct proxy_request *r)
{
    struct proxy *p = r->proxy;
    const struct answer *a = &r->answer;
    proxy_count(&p->counts.output_tok, answer_output_tok(a));
    if (!a->has_usage)
        return;
    proxy_count(&p->counts.prompt_tok, a->prompt_tok);
    proxy_count(&p->counts.cached_tok, a->cached_tok);
    if (!r->q.prompt_tok && !r->q.media && r->q.choices == 1)
        tokens_learn(&p->tokens, r->model, r->q.prompt_bytes, a->prompt_tok);
}

void proxy_answered(struct proxy_request *r)
{
    r->ex = NULL;
    proxy_count(&r->proxy->counts.answered, 1);
    seen_over(r, r->seen.status < 400 ? "completed" : "failed",
              r->seen.status < 400 ? NULL : "engine_error");
    if (!r->passthrough)
        learn(r);
    tell_done(r);
    proxy_release(r);
}

void proxy_refuse_late(struct proxy_request *r, const struct http_part *p)
{
    unsigned status = p->head->status;
    struct openai_error e = {(int)status, status < 500 ? "invalid_request_error" : "server_error",
                             "worker_refused", NULL, NULL};
    char message[400];
    int n = snprintf(message, sizeof message, "the worker answered with status %u: ", status);
    for (size_t i = 0; i < p->n; i++) { /* as much of its reason as came with the head */
        size_t room = sizeof message - 1 - (size_t)n,
               len = p->data[i].len < room ? p->data[i].len : room;
        memcpy(message + n, p->data[i].s, len);
        n += (int)len;
    }
    message[n] = '\0';
    e.message = message;
    if (p->last)
        r->answer_leg.call = NULL;
    legs_cancel(r, CORE_NO_WORKER);
    tell_done(r);
    proxy_refuse(r, &e, PS_NEVER);
}

/* ---- losses of workers */

static void watch(struct http_timer *timer)
{
    struct proxy *p = (struct proxy *)((char *)timer - offsetof(struct proxy, watch));
    uint64_t now_ms = uv_now(p->uv);
    uint32_t losses = atomic_load(&p->serve->losses);
    if (losses != p->losses)
        p->watch_until_ms = now_ms + PROXY_WATCH_FOR_MS;
    p->losses = losses;
    if (now_ms < p->watch_until_ms) {
        for (struct proxy_request *r = p->live; r; r = r->next)
            legs_look_for_losses(r, now_ms);
    }
    http_timer_start(p->http, timer, PROXY_WATCH_MS);
}

/* ---- commands of the hub */

static void comment(struct http_timer *timer)
{
    struct proxy_request *r =
        (struct proxy_request *)((char *)timer - offsetof(struct proxy_request, comment));
    static const struct http_slice text = {": waiting\n\n", 11};
    if (!r->ex || r->head_sent)
        return;
    if (!http_reply_started(r->ex)) {
        http_reply_head(r->ex, 200, HTTP_UNKNOWN_LENGTH);
        http_reply_field(r->ex, "Content-Type", HTTP_SLICE("text/event-stream"));
    }
    http_reply_send(r->ex, &text, 1, false);
    http_timer_start(r->proxy->http, timer, r->proxy->conf->set.hold_comment_ms);
}

static void on_command(void *user, struct hub_request *h, const struct core_command *cmd,
                       const struct core_told *told)
{
    struct proxy_request *r =
        (struct proxy_request *)((char *)h - offsetof(struct proxy_request, hub));
    struct openai_error e;
    (void)user;
    seen_command(r, cmd, told);
    if (!r->ex &&
        cmd->kind != CORE_CMD_REJECT) { /* cut, and the hub would try again: nobody is waiting */
        r->told = true;
        hub_cancelled(h);
        proxy_release(r);
        return;
    }
    switch (cmd->kind) {
    case CORE_CMD_DISPATCH:
    case CORE_CMD_DISPATCH_PREFILL:
    case CORE_CMD_DISPATCH_DECODE: legs_dispatch(r, cmd); break;
    case CORE_CMD_CANCEL: legs_cancel(r, cmd->worker); break;
    case CORE_CMD_HOLD:
        if (r->q.stream && r->proxy->conf->set.hold_comment_ms)
            http_timer_start(r->proxy->http, &r->comment, r->proxy->conf->set.hold_comment_ms);
        break;
    case CORE_CMD_REJECT:
        r->told = true;
        if (!r->ex) {
            proxy_release(r);
            break;
        }
        e = openai_error_of(cmd->reason);
        refuse_with(r, &e, openai_dropped_reason(cmd->reason), cmd->retry_after_ps);
        break;
    }
}

/* ---- requests come in */

static bool read_i64(struct http_slice v, int64_t min, int64_t max, int64_t *out)
{
    char text[24], *end;
    if (!v.s || !v.len || v.len >= sizeof text)
        return false;
    memcpy(text, v.s, v.len);
    text[v.len] = '\0';
    long long x = strtoll(text, &end, 10);
    if (*end || x < min || x > max)
        return false;
    *out = x;
    return true;
}

/* The deadline that a header names (its deprecated alias too), where clients are trusted. */
static int64_t slo_of(const struct proxy_request *r, const struct http_head *head, const char *name,
                      const char *alias, int64_t otherwise)
{
    int64_t ms;
    if (!r->proxy->conf->set.trust_headers)
        return otherwise;
    if (read_i64(http_get(head, name), 1, INT32_MAX, &ms) ||
        read_i64(http_get(head, alias), 1, INT32_MAX, &ms))
        return ms * PS_PER_MS;
    return otherwise;
}

static uint64_t tenant_of(const struct proxy_request *r, const struct http_head *head,
                          const struct serve_tenant **known)
{
    const struct serve_live *conf = r->proxy->conf;
    struct http_slice v = {NULL, 0};
    if (conf->set.tenant_header[0])
        v = http_get(head, conf->set.tenant_header);
    if (!v.s && conf->set.trust_headers)
        v = http_get(head, "x-llm-d-inference-fairness-id");
    /* callers with a key of their own are tenants */
    return live_tenant(conf, v, http_get_known(head, HTTP_F_AUTHORIZATION), r->q.user, known);
}

/* A header's or a body's where clients are trusted, else the tenant's, else the path's. */
static int32_t priority_of(const struct proxy_request *r, const struct serve_tenant *tenant,
                           const struct serve_route *route)
{
    if (r->proxy->conf->set.trust_headers && r->q.has_priority)
        return r->q.priority;
    return tenant && tenant->priority ? tenant->priority : route ? route->priority : 0;
}

/* Tokens that one of the keys covers. */
static uint32_t key_tok_of(const struct proxy_request *r)
{
    _Atomic uint32_t *kept = &r->proxy->serve->pools[r->pool - r->proxy->serve->pools].key_tok;
    uint32_t now = tokens_estimate(&r->proxy->tokens, r->model, OPENAI_CHUNK_BYTES), was = *kept;
    if (was && (now > was ? now - was : was - now) * SERVE_KEY_TOK_DRIFT <= was)
        return was;
    *kept = now;
    return now;
}

static void fill_core(struct proxy_request *r, const struct http_head *head)
{
    const struct serve_settings *set = &r->proxy->conf->set;
    const struct openai_request *q = &r->q;
    struct http_slice session = {NULL, 0};
    uint32_t chunk = OPENAI_CHUNK_TOK;
    uint32_t tok = q->prompt_tok ? q->prompt_tok
                                 : tokens_estimate(&r->proxy->tokens, r->model, q->prompt_bytes);
    uint32_t n_keys = r->keys ? q->n_keys : 0;
    if (!q->key_tok)
        chunk = key_tok_of(r);
    if (n_keys > tok / chunk) /* keys never reach beyond the prompt */
        n_keys = tok / chunk;
    if (set->trust_headers) {
        session = http_get(head, "x-session-id");
        if (!session.s)
            session = http_get(head, "x-session-token");
    }
    const struct serve_tenant *known;
    const struct serve_route *route = live_route(r->proxy->conf, http_target(head));
    uint64_t tenant = tenant_of(r, head, &known);
    int64_t ttft = route && route->slo_ttft_ps < PS_NEVER ? route->slo_ttft_ps : set->slo_ttft_ps;
    int64_t tpot = route && route->slo_tpot_ps < PS_NEVER ? route->slo_tpot_ps : set->slo_tpot_ps;
    r->core = (struct core_request){
        .prompt_tok = tok,
        .max_tokens = q->max_tokens,
        .priority = priority_of(r, known, route),
        .session = session.s && session.len ? XXH3_64bits(session.s, session.len) | 1 : q->session,
        .tenant = tenant,
        .keys = r->keys,
        .n_keys = n_keys,
        .key_tok = n_keys ? chunk : 0,
        .bytes = http_request_body(r->ex).len,
        .slo_ttft_ps = slo_of(r, head, "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms", ttft),
        .slo_tpot_ps = slo_of(r, head, "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms", tpot),
        .streamed = q->stream,
    };
}

static void bad_request(struct proxy_request *r, int status, const char *code, const char *message,
                        const char *param)
{
    struct openai_error e = {status, status == 404 ? "not_found_error" : "invalid_request_error",
                             code, message, param};
    proxy_refuse(r, &e, PS_NEVER);
}

static void generate(struct proxy_request *r, enum openai_endpoint endpoint,
                     const struct http_head *head)
{
    struct proxy *p = r->proxy;
    struct http_slice body = http_request_body(r->ex);
    char error[OPENAI_ERROR_BYTES];
    const char *param;
    int rc = openai_request_read(p->reader, endpoint, body.s, body.len, &r->q, error, &param);
    if (rc) {
        bad_request(r, rc == WEIR_E_NOMEM ? 503 : 400, NULL, error, param);
        return;
    }
    r->pool = serve_pool_of(p->serve, r->q.model, strlen(r->q.model));
    if (!r->pool) {
        char message[SERVE_MODEL_BYTES + 128];
        snprintf(message, sizeof message,
                 "the model '%s' does not exist here (GET /v1/models lists those that do)",
                 r->q.model);
        bad_request(r, 404, "model_not_found", message, "model");
        return;
    }
    if (r->q.n_keys && (r->keys = malloc(r->q.n_keys * sizeof *r->keys)))
        memcpy(r->keys, r->q.keys, r->q.n_keys * sizeof *r->keys);
    r->model = tokens_model(r->q.model);
    fill_core(r, head);
    r->told = false;
    r->seen.asked = true;
    struct hub_loop *hub = p->hubs[r->pool - p->serve->pools];
    rc = hub_arrive(hub, &r->hub, &r->core); /* r may be over when this returns */
    if (rc) {
        struct openai_error e = openai_error_of(CORE_REASON_QUEUE_FULL);
        r->told = true;
        refuse_with(r, &e, openai_dropped_reason(CORE_REASON_QUEUE_FULL), PS_PER_S);
    }
}

/* GET /v1/models, merged over the pools. */
static void list_models(struct proxy_request *r)
{
    struct serve *s = r->proxy->serve;
    size_t cap = 64, n;
    uv_rwlock_rdlock(&s->models_lock);
    for (uint32_t i = 0; i < s->n_pools; i++)
        cap += s->pools[i].n_models * (SERVE_MODEL_BYTES * 6 + 64);
    char *body = malloc(cap);
    if (!body) {
        uv_rwlock_rdunlock(&s->models_lock);
        bad_request(r, 503, NULL, "out of memory", NULL);
        return;
    }
    n = (size_t)snprintf(body, cap, "{\"object\":\"list\",\"data\":[");
    const char *comma = "";
    for (uint32_t i = 0; i < s->n_pools; i++) {
        for (uint32_t k = 0; k < s->pools[i].n_models;
             k++, comma = ",") /* names were checked to be plain */
            n += (size_t)snprintf(body + n, cap - n,
                                  "%s{\"id\":\"%s\",\"object\":\"model\",\"owned_by\":\"%s\"}",
                                  comma, s->pools[i].models[k], s->pools[i].name);
    }
    uv_rwlock_rdunlock(&s->models_lock);
    n += (size_t)snprintf(body + n, cap - n, "]}");
    struct http_exchange *ex = r->ex;
    r->ex = NULL;
    http_reply(ex, 200, "application/json", (struct http_slice){body, n});
    free(body);
    proxy_count(&r->proxy->counts.answered, 1);
    proxy_release(r);
}

/* GET /health, which benchmark clients and load balancers ask of an engine: here it means that somebody can answer. */
static void tell_health(struct proxy_request *r)
{
    struct serve *s = r->proxy->serve;
    bool draining = atomic_load(&s->draining), well = !draining && atomic_load(&s->workers_up);
    if (!well) {
        struct openai_error e = {503, "server_error", NULL,
                                 draining ? "draining" : "no worker is up", NULL};
        proxy_refuse(r, &e, PS_PER_S);
        return;
    }
    struct http_exchange *ex = r->ex;
    r->ex = NULL;
    http_reply(ex, 200, NULL, HTTP_SLICE(""));
    proxy_count(&r->proxy->counts.answered, 1);
    proxy_release(r);
}

static bool is_allowed(const struct serve_settings *set, struct http_slice target)
{
    const char *query = memchr(target.s, '?', target.len);
    size_t len = query ? (size_t)(query - target.s) : target.len;
    for (uint32_t i = 0; i < set->n_allowed; i++) {
        if (strlen(set->allowed[i]) == len && !memcmp(set->allowed[i], target.s, len))
            return true;
    }
    return false;
}

/* A path of the allow-list goes to one worker after the other. */
static void pass(struct proxy_request *r)
{
    struct proxy *p = r->proxy;
    uint32_t n = r->pool->n_workers, at = (uint32_t)(p->random++ % n);
    for (uint32_t i = 0; i < n; i++, at = at + 1 < n ? at + 1 : 0) {
        if (p->upstreams[r->pool->first_worker + at])
            break; /* there is one: a pool always has a worker */
    }
    legs_pass(r, at);
}

static void on_request(void *user, struct http_exchange *ex)
{
    struct proxy *p = user;
    const struct http_head *head = http_request_head(ex);
    enum openai_endpoint endpoint = openai_endpoint_of(http_target(head).s, head->target_len);
    struct proxy_request *r = request_new(p, ex);
    proxy_count(&p->counts.requests, 1);
    if (!r) {
        struct openai_error e = {503, "server_error", NULL, "out of memory", NULL};
        refuse(ex, NULL, &e, NULL, PS_PER_S);
        return;
    }
    seen_begin(r, head);
    http_timer_init(&r->comment, comment);
    bool reads = head->method == HTTP_M_GET || head->method == HTTP_M_HEAD;
    if (endpoint == OPENAI_MODELS && reads) {
        list_models(r);
    } else if (endpoint < OPENAI_MODELS) {
        if (head->method == HTTP_M_POST)
            generate(r, endpoint, head);
        else
            bad_request(r, 405, NULL, "this path takes POST", NULL);
    } else if (reads && http_slice_is(http_target(head), "/health") &&
               !is_allowed(&p->conf->set, http_target(head))) {
        tell_health(r);
    } else if (is_allowed(&p->conf->set, http_target(head))) {
        r->pool = &p->serve->pools[0];
        r->passthrough = true;
        pass(r);
    } else {
        bad_request(
            r, 404, NULL,
            "no such path here (the allow-list of the config opens an engine's other paths)", NULL);
    }
}

static void on_gone(void *user, struct http_exchange *ex, enum http_gone why)
{
    struct proxy *p = user;
    struct proxy_request *r = http_exchange_user(ex);
    if (!r)
        return;
    r->ex = NULL;
    proxy_count(&p->counts.left, 1);
    seen_over(r, "left", http_gone_text(why));
    legs_cancel(r, CORE_NO_WORKER);
    if (!r->told) {
        r->told = true;
        hub_cancelled(&r->hub);
    }
    proxy_release(r);
}

static void on_drained(void *user, struct http_exchange *ex)
{
    struct proxy_request *r = http_exchange_user(ex);
    (void)user;
    if (r && r->answer_leg.call)
        http_call_resume(r->answer_leg.call);
}

static size_t refusal(void *user, int status, const char *why, char *out, size_t cap)
{
    char body[OPENAI_ERROR_BODY_BYTES];
    struct openai_error e = {status, status < 500 ? "invalid_request_error" : "server_error", NULL,
                             why, NULL};
    size_t n = openai_error_body(body, &e);
    (void)user;
    n = n < cap ? n : cap;
    memcpy(out, body, n);
    return n;
}

static const struct http_server_ops server_ops = {
    .request = on_request, .gone = on_gone, .drained = on_drained, .refusal = refusal};

/* ---- life */

/* The upstream of a place: of who has it now. False: out of memory. */
static bool take_place(struct proxy *p, uint32_t i)
{
    const struct serve_worker *w = &p->serve->workers[i];
    struct http_upstream_options o;
    http_upstream_free(p->upstreams[i]);
    p->upstreams[i] = NULL;
    p->generations[i] = w->generation;
    if (!w->present)
        return true;
    http_upstream_defaults(&o);
    o.host = w->host;
    o.port = w->port;
    o.tls = w->tls ? p->serve->upstream_tls : NULL;
    o.connect_timeout_ms = p->conf->set.connect_timeout_ms;
    p->upstreams[i] = http_upstream_new(p->client, &o);
    return p->upstreams[i] != NULL;
}

static bool make_upstreams(struct proxy *p)
{
    uint32_t n = p->serve->n_workers;
    p->upstreams = calloc(n, sizeof *p->upstreams);
    p->generations = calloc(n, sizeof *p->generations);
    bool ok = p->upstreams && p->generations;
    for (uint32_t i = 0; ok && i < n; i++)
        ok = take_place(p, i);
    return ok;
}

static void take_limits(struct http_server_options *o, const struct serve_settings *set)
{
    o->max_connections = set->max_connections;
    o->max_body_bytes = set->max_body_bytes;
    o->max_buffered_bytes = set->max_buffered_bytes;
    o->header_timeout_ms = set->header_timeout_ms;
    o->body_timeout_ms = set->body_timeout_ms;
    o->idle_timeout_ms = set->idle_timeout_ms;
    o->write_timeout_ms = set->write_timeout_ms;
}

void proxy_apply(struct proxy *p, const struct serve_live *conf)
{
    struct http_server_options o;
    http_server_defaults(&o);
    take_limits(&o, &conf->set);
    p->conf = conf;
    http_server_set_limits(p->server, &o);
    if (conf->listen_tls)
        http_server_set_tls(p->server, conf->listen_tls);
    for (uint32_t i = 0; i < p->serve->n_workers; i++) {
        if (p->generations[i] != p->serve->workers[i].generation && !take_place(p, i))
            abort(); /* as wherever a table grows */
    }
}

static bool listen_on(struct proxy *p, int fd, char *error)
{
    const struct serve_settings *set = &p->conf->set;
    struct http_server_options o;
    http_server_defaults(&o);
    o.host = set->listen_host;
    o.port = set->listen_port;
    o.fd = fd;
    o.reuse_port = true;
    o.tls = p->conf->listen_tls;
    take_limits(&o, set);
    o.refusal_type = "application/json";
    p->server = http_server_new(p->http, &o, &server_ops, p, error);
    return p->server != NULL;
}

struct proxy *proxy_new(struct serve *serve, uv_loop_t *uv, struct http_loop *http, int listen_fd,
                        char error[PROXY_ERROR_BYTES])
{
    struct proxy *p = calloc(1, sizeof *p);
    snprintf(error, PROXY_ERROR_BYTES, "out of memory");
    if (!p)
        return NULL;
    p->serve = serve;
    p->conf = serve->live;
    p->uv = uv;
    p->http = http;
    p->random = uv_hrtime();
    if (uv_random(NULL, NULL, &p->id_seed, sizeof p->id_seed, 0, NULL))
        p->id_seed = p->random; /* ids are told apart, not kept secret */
    if (uv_mutex_init(&p->ring.lock)) {
        free(p);
        return NULL;
    }
    http_timer_init(&p->watch, watch);
    http_timer_start(http, &p->watch, PROXY_WATCH_MS);
    tokens_init(&p->tokens, serve->live->set.bytes_per_tok);
    p->reader = openai_reader_new();
    p->client = http_client_new(http);
    bool ok = p->reader && p->client && make_upstreams(p);
    for (uint32_t i = 0; ok && i < serve->n_pools; i++) {
        p->hubs[i] = hub_join(serve->pools[i].hub, uv, on_command, p);
        ok = p->hubs[i] != NULL;
    }
    if (ok && listen_on(p, listen_fd, error))
        return p;
    proxy_close(p);
    proxy_free(p);
    return NULL;
}

uint16_t proxy_port(const struct proxy *p)
{
    return http_server_port(p->server);
}

int proxy_listen_fd(const struct proxy *p)
{
    return http_server_fd(p->server);
}

const struct proxy_counts *proxy_counts(const struct proxy *p)
{
    return &p->counts;
}

const struct http_loop_laps *proxy_laps(const struct proxy *p)
{
    return http_loop_laps(p->http);
}

struct hub_loop *proxy_hub_loop(struct proxy *p, uint32_t pool)
{
    return p->hubs[pool];
}

static void server_drained(void *user)
{
    struct proxy *p = user;
    p->drained(p->drained_user);
}

void proxy_drain(struct proxy *p, void (*done)(void *user), void *user)
{
    p->drained = done;
    p->drained_user = user;
    http_server_drain(p->server, server_drained);
}

void proxy_close(struct proxy *p)
{
    http_timer_deinit(p->http, &p->watch);
    if (p->server)
        http_server_close(p->server); /* gone() for every request */
    if (p->client)
        http_client_close(p->client);
    for (uint32_t i = 0; i < p->serve->n_pools; i++) {
        if (p->hubs[i])
            hub_leave(p->hubs[i]);
    }
    for (struct proxy_request *r = p->spare, *next; r; r = next) {
        next = r->next;
        free(r);
    }
    p->spare = NULL;
    openai_reader_free(p->reader);
    free(p->upstreams);
    free(p->generations);
    p->generations = NULL;
    p->reader = NULL;
    p->upstreams = NULL;
}

void proxy_free(struct proxy *p)
{
    if (p)
        uv_mutex_destroy(&p->ring.lock);
    free(p);
}
