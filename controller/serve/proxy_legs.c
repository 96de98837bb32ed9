/* proxy_legs.c - the calls to workers that a request consists of: the answer's leg, and with prefill and decode apart
 * the prefill leg before it or beside it. See proxy.h for what a lost worker leads to.
 */
#include "controller/serve/proxy_internal.h"

#include <stdlib.h>
#include <string.h>

static const struct serve_worker *worker_of(const struct proxy_request *r, uint32_t worker)
{
    return &r->proxy->serve->workers[r->pool->first_worker + worker];
}

static struct http_upstream *upstream_of(const struct proxy_request *r, uint32_t worker)
{
    return r->proxy->upstreams[r->pool->first_worker + worker];
}

/* ---- bodies */

static void whole_body(struct proxy_request *r, struct leg *leg)
{
    leg->whole = http_request_body(r->ex);
    leg->slices = &leg->whole;
    leg->n_slices = leg->whole.len ? 1 : 0;
}

static void drop_changes(struct leg *leg)
{
    free(leg->changes);
    leg->changes = NULL;
    leg->n_slices = 0;
}

void legs_drop_bodies(struct proxy_request *r)
{
    drop_changes(&r->prefill);
    drop_changes(&r->answer_leg);
    free(r->prefill_answer);
    r->prefill_answer = NULL;
}

/* The client's body with a dialect's changes. 0 or an error of json_edit or of the dialect. */
static int changed_body(struct proxy_request *r, struct leg *leg,
                        int (*make)(const struct handover *, struct handover_edit *),
                        const struct handover *h)
{
    struct http_slice body = http_request_body(r->ex);
    struct leg_changes *c = leg->changes ? leg->changes : malloc(sizeof *c);
    if (!c)
        return WEIR_E_NOMEM;
    leg->changes = c;
    c->edit.n = c->edit.text_len = 0;
    c->edit.request_id[0] = '\0';
    int rc = make(h, &c->edit);
    if (!rc)
        rc = json_edit(&c->body, body.s, body.len, c->edit.changes, c->edit.n);
    for (size_t i = 0; !rc && i < c->body.n_slices; i++)
        c->slices[i] = (struct http_slice){c->body.slices[i].s, c->body.slices[i].len};
    leg->slices = c->slices;
    leg->n_slices = rc ? 0 : c->body.n_slices;
    return rc;
}

/* ---- sending */

static void part(void *user, struct http_call *call, const struct http_part *p);
static void failed(void *user, struct http_call *call, const struct http_failure *f);

static const struct http_call_ops leg_ops = {.part = part, .failed = failed};

static void lost(struct leg *leg, const char *detail);

static bool send_leg(struct leg *leg, uint32_t worker)
{
    static const enum http_known ours = HTTP_F_REQUEST_ID;
    struct proxy_request *r = leg->request;
    const struct serve_settings *set = &r->proxy->conf->set;
    const struct http_head *head = http_request_head(r->ex);
    leg->worker = worker;
    leg->losses = atomic_load(&worker_of(r, worker)->losses);
    leg->heard_ms = 0;
    leg->call = http_call_new(upstream_of(r, worker), &leg_ops, leg);
    if (http_call_request(leg->call, (enum http_method)head->method, http_target(head)))
        return false; /* cannot be: the server has checked the target */
    const char *id = leg->changes ? leg->changes->edit.request_id : "";
    if (!*id && r->seen.id_made)
        id = r->seen.id;
    http_call_fields(leg->call, head, &ours, *id ? 1 : 0); /* the client's would be another one */
    if (*id)
        http_call_field(leg->call, "X-Request-Id", (struct http_slice){id, strlen(id)});
    seen_sent(r);
    if (http_call_send(leg->call, leg->slices, leg->n_slices)) {
        leg->call = NULL;
        return false;
    }
    http_call_timeout(leg->call, set->first_byte_timeout_ms);
    return true;
}

static void start(struct leg *leg, uint32_t worker)
{
    if (!send_leg(leg, worker))
        lost(leg, "no connection to the worker can be opened (its limit, or the system's)");
}

/* ---- dispatch */

static struct handover handover_of(const struct proxy_request *r, uint32_t prefill, uint32_t decode)
{
    const struct serve_worker *p = worker_of(r, prefill);
    const struct serve_worker *d = decode == CORE_NO_WORKER ? p : worker_of(r, decode);
    return (struct handover){.endpoint = r->q.endpoint,
                             .choices = r->q.choices,
                             .room = r->model ^ r->arrived_ns * UINT64_C(0x9e3779b97f4a7c15),
                             .prefill_host = p->host,
                             .bootstrap_port = p->bootstrap_port,
                             .engine_id = p->engine_id,
                             .prefill_address = p->kv_address,
                             .decode_address = d->kv_address};
}

/* The body does not take what the hand-over puts into it. No worker is to blame, and none would do better. */
static void unfit(struct proxy_request *r, int rc)
{
    struct openai_error e = {
        400, "invalid_request_error", NULL,
        "the body does not take the members of the hand-over between prefill and decode: ask for "
        "fewer choices or prompts at once, and name each member once",
        NULL};
    if (rc != WEIR_E_LIMIT && rc != WEIR_E_INPUT)
        e = openai_error_of(CORE_REASON_NONE);
    r->told = true;
    hub_cancelled(&r->hub);
    proxy_refuse(r, &e, PS_NEVER);
}

static void dispatch_prefill(struct proxy_request *r, uint32_t worker, uint32_t peer)
{
    const struct handover_dialect *d = r->pool->dialect;
    struct handover h = handover_of(r, worker, peer);
    bool both = d->at_once && peer != CORE_NO_WORKER;
    r->prefill_worker = worker;
    r->prefill_len = 0;
    r->prefill_done = false;
    r->prefill.resent = r->answer_leg.resent = false;
    int rc = changed_body(r, &r->prefill, d->prefill, &h);
    if (!rc && both)
        rc = changed_body(r, &r->answer_leg, d->decode, &h);
    if (rc) {
        unfit(r, rc);
        return;
    }
    /* the decode leg first: should the prefill leg be lost from within, both are there to be stopped */
    if (both)
        start(&r->answer_leg, peer);
    if (!both || r->answer_leg.call)
        start(&r->prefill, worker);
}

static void dispatch_decode(struct proxy_request *r, uint32_t worker)
{
    struct handover h = handover_of(r, r->prefill_worker, worker);
    if (r->answer_leg.call) /* sent at once with the prefill leg */
        return;
    r->answer_leg.resent = false;
    r->answer_leg.worker = worker;
    if (!handover_params(r->prefill_answer, r->prefill_len, &h.params))
        h.params = (struct json_slice){NULL, 0};
    int rc = changed_body(r, &r->answer_leg, r->pool->dialect->decode, &h);
    if (rc == WEIR_E_LIMIT)
        unfit(r, rc);
    else if (rc)
        lost(&r->answer_leg,
             "the prefill leg's answer has no kv_transfer_params that fit the body");
    else
        start(&r->answer_leg, worker);
}

void legs_dispatch(struct proxy_request *r, const struct core_command *cmd)
{
    if (cmd->attempt)
        proxy_count(&r->proxy->counts.redispatched, 1);
    if (cmd->kind == CORE_CMD_DISPATCH_PREFILL) {
        dispatch_prefill(r, cmd->worker, cmd->peer);
    } else if (cmd->kind == CORE_CMD_DISPATCH_DECODE) {
        dispatch_decode(r, cmd->worker);
    } else {
        r->answer_leg.resent = false;
        drop_changes(&r->answer_leg);
        whole_body(r, &r->answer_leg);
        start(&r->answer_leg, cmd->worker);
    }
}

void legs_pass(struct proxy_request *r, uint32_t worker)
{
    whole_body(r, &r->answer_leg);
    start(&r->answer_leg, worker);
}

static void stop(struct leg *leg)
{
    if (leg->call)
        http_call_cancel(leg->call);
    leg->call = NULL;
}

void legs_cancel(struct proxy_request *r, uint32_t worker)
{
    if (worker == CORE_NO_WORKER || r->prefill.worker == worker)
        stop(&r->prefill);
    if (worker == CORE_NO_WORKER || r->answer_leg.worker == worker)
        stop(&r->answer_leg);
}

/* A worker that went down says nothing, so that its silence has to be enough; one that only stopped answering polls goes on
 * with its streams, and so do they. */
static void look_for_loss(const struct proxy_request *r, struct leg *leg, uint64_t now_ms)
{
    if (!leg->call || leg->losses == atomic_load(&worker_of(r, leg->worker)->losses))
        return;
    if (!leg->heard_ms || now_ms - leg->heard_ms >= PROXY_SILENT_MS)
        http_call_timeout(leg->call, 1); /* it fails from the loop, as any other */
}

void legs_look_for_losses(struct proxy_request *r, uint64_t now_ms)
{
    look_for_loss(r, &r->prefill, now_ms);
    look_for_loss(r, &r->answer_leg, now_ms);
}

/* ---- what comes back */

/* A leg ended without an answer that can be used. The fate of both legs is one. */
static void lost(struct leg *leg, const char *detail)
{
    struct proxy_request *r = leg->request;
    uint32_t worker = leg->worker;
    legs_cancel(r, CORE_NO_WORKER);
    if (r->head_sent && !r->can_restart) {
        proxy_cut(r, detail);
        return;
    }
    r->head_sent = false;
    if (r->passthrough) {
        struct openai_error e = openai_error_of(CORE_REASON_RETRIES);
        proxy_refuse(r, &e, PS_NEVER);
        return;
    }
    answer_deinit(&r->answer);
    hub_failed(&r->hub, worker, false); /* r may be gone after this */
}

/* The engine could not take it, or what stands before the engine: another worker may. A 429 or 500 is an answer. */
static bool is_lost_status(const struct proxy_request *r, int status)
{
    /* a failed KV pull is a 500 of the decode leg (seen on vLLM 0.32 with NIXL: wire-formats.md 3.8.4) */
    return (status >= 502 && status <= 504) || (status == 500 && r->prefill_done);
}

/* The KV is there: the prefill leg's answer is complete, or (both sent at once) the decode leg has begun to answer. The
 * prefill leg's call goes on then, for to close it would abort it in the engine. */
static void end_prefill(struct proxy_request *r)
{
    if (r->prefill_done)
        return;
    r->prefill_done = true;
    hub_prefill_done(&r->hub, r->prefill.worker);
}

/* Keeps the prefill leg's answer for the decode leg. False: it is too large, or there is no memory. */
static bool keep_prefill(struct proxy_request *r, const struct http_part *p)
{
    if (p->bytes > PROXY_MAX_PREFILL_ANSWER - r->prefill_len)
        return false;
    if (!r->prefill_answer)
        r->prefill_answer = malloc(PROXY_MAX_PREFILL_ANSWER);
    if (!r->prefill_answer)
        return false;
    for (size_t i = 0; i < p->n; i++) {
        memcpy(r->prefill_answer + r->prefill_len, p->data[i].s, p->data[i].len);
        r->prefill_len += p->data[i].len;
    }
    return true;
}

/* The answer is under way: what the prefill leg was for is done, however it ends; and the request's body may be gone. */
static bool is_spent(const struct leg *leg)
{
    const struct proxy_request *r = leg->request;
    return leg == &r->prefill && r->prefill_done && r->head_sent && !r->answer_silent;
}

static void prefill_part(struct proxy_request *r, const struct http_part *p)
{
    if (p->head && p->head->status != 200 && is_spent(&r->prefill)) {
        stop(&r->prefill);
        return;
    }
    if (p->head && p->head->status != 200) {
        lost(&r->prefill, "the prefill worker refused");
        return;
    }
    /* sent at once: nobody needs it */
    if (!r->pool->dialect->at_once && !keep_prefill(r, p)) {
        lost(&r->prefill, "the prefill leg's answer is too large");
        return;
    }
    if (p->last) {
        r->prefill.call = NULL;
        end_prefill(r);
    }
}

static void first_token(struct proxy_request *r)
{
    r->first_told = true;
    r->first_ns = uv_hrtime();
    seen_first(r);
    if (hub_needs(r->pool->hub) & (1u << CORE_EV_FIRST_TOKEN))
        hub_first_token(&r->hub, r->answer_leg.worker);
}

/* The head of an answer. False: it has become an error, and r may be gone. */
static bool answer_begins(struct proxy_request *r, const struct http_part *p)
{
    struct http_slice type = http_get_known(p->head, HTTP_F_CONTENT_TYPE);
    bool stream = type.len >= 17 && !strncmp(type.s, "text/event-stream", 17);
    bool plain_stream = stream && p->head->status == 200 && !p->head->has_length;
    r->worker_error = p->head->status >= 500;
    if (http_reply_started(r->ex) && !plain_stream) {
        proxy_refuse_late(r, p);
        return false;
    }
    answer_init(&r->answer, stream);
    if (r->prefill.call)
        end_prefill(r);
    r->can_restart = plain_stream && !r->passthrough && r->q.stream;
    r->answer_silent = true;
    proxy_answer_head(r, p->head);
    return true;
}

static void answer_part(struct proxy_request *r, const struct http_part *p)
{
    struct leg *leg = &r->answer_leg;
    if (p->head && !r->passthrough && is_lost_status(r, p->head->status)) {
        lost(leg, "the worker refused");
        return;
    }
    if (p->head && !answer_begins(r, p))
        return;
    if (p->bytes && r->answer_silent) {
        r->answer_silent = r->can_restart = false;
        proxy_request_sent(r);
        http_call_timeout(leg->call, r->proxy->conf->set.stall_timeout_ms);
    }
    for (size_t i = 0; i < p->n; i++)
        answer_feed(&r->answer, p->data[i].s, p->data[i].len);
    if (p->last)
        answer_end(&r->answer);
    if (!r->first_told && !r->passthrough &&
        (r->answer.first_token || (p->last && !r->answer.stream)))
        first_token(r);
    if (p->last)
        leg->call = NULL;
    if (!http_reply_send(r->ex, p->data, p->n, p->last) && !p->last)
        http_call_pause(leg->call);
    if (p->last)
        proxy_answered(r);
}

static void part(void *user, struct http_call *call, const struct http_part *p)
{
    struct leg *leg = user;
    struct proxy_request *r = leg->request;
    (void)call;
    leg->heard_ms = uv_now(r->proxy->uv);
    if (leg == &r->prefill)
        prefill_part(r, p);
    else
        answer_part(r, p);
}

/* An upstream may close an idle connection just as a request is written to it: that says nothing about the worker, so the
 * request goes to it once more, on a fresh connection. */
static bool forgive(struct leg *leg, const struct http_failure *f)
{
    if (!f->reused || f->answered || leg->resent || f->why != HTTP_FAIL_CLOSED)
        return false;
    leg->resent = true;
    if (!upstream_of(leg->request, leg->worker))
        return false; /* a reload took the worker out meanwhile */
    http_upstream_close_idle(upstream_of(leg->request, leg->worker));
    if (!send_leg(leg, leg->worker))
        return false;
    proxy_count(&leg->request->proxy->counts.resent, 1);
    return true;
}

static void failed(void *user, struct http_call *call, const struct http_failure *f)
{
    struct leg *leg = user;
    (void)call;
    leg->call = NULL;
    if (!is_spent(leg) && !forgive(leg, f))
        lost(leg, f->detail ? f->detail : http_fail_text(f->why));
}
