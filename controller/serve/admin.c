/* admin.c - see admin.h. */
#include "controller/serve/admin.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>
#include <yyjson.h>

#include "controller/serve/seen.h"
#include "predictor/version.h"

#define JSON "application/json"

struct admin {
    struct http_server *server;
    struct metrics_view view;
    struct poller *poller;
    char token[ADMIN_MAX_TOKEN];
};

static void reply_text(struct http_exchange *ex, int status, const char *type, const char *text)
{
    http_reply(ex, status, type, (struct http_slice){text, strlen(text)});
}

static struct metrics_view current(const struct admin *a)
{
    struct metrics_view v = a->view;
    v.now_ms = uv_now(http_loop_uv(a->view.http));
    return v;
}

/* ---- what can be read */

static void reply_metrics(struct admin *a, struct http_exchange *ex)
{
    struct metrics_view v = current(a);
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (out) {
        metrics_write(out, &v);
        fclose(out);
    }
    if (text)
        http_reply(ex, 200, "text/plain; version=0.0.4; charset=utf-8",
                   (struct http_slice){text, len});
    else
        reply_text(ex, 503, JSON, "{\"error\":\"out of memory\"}");
    free(text);
}

static void reply_ready(struct admin *a, struct http_exchange *ex)
{
    if (atomic_load(&a->view.serve->draining))
        reply_text(ex, 503, "text/plain", "draining\n");
    else if (!poller_up(a->poller))
        reply_text(ex, 503, "text/plain", "no worker is up\n");
    else
        reply_text(ex, 200, "text/plain", "ready\n");
}

static void add_health(const struct admin *a, yyjson_mut_doc *doc, yyjson_mut_val *o,
                       const struct serve_worker *w)
{
    struct core_worker_state s;
    int64_t now_ps = hub_get_worker(a->view.serve->pools[w->pool].hub, w->index, &s);
    yyjson_mut_obj_add_bool(doc, o, "used", s.used);
    yyjson_mut_obj_add_str(doc, o, "health", core_health_name(s.health));
    if (s.health != CORE_HEALTH_OK)
        yyjson_mut_obj_add_str(doc, o, "health_cause", core_health_cause_name(s.cause));
    if (s.until_ps > now_ps)
        yyjson_mut_obj_add_int(doc, o, "ejected_for_ms", (s.until_ps - now_ps) / PS_PER_MS);
    yyjson_mut_obj_add_uint(doc, o, "failures_in_a_row", s.failures);
    yyjson_mut_obj_add_real(doc, o, "share", s.share / 1000.0);
    yyjson_mut_obj_add_uint(doc, o, "inflight", s.inflight);
}

static void add_belief(const struct admin *a, yyjson_mut_doc *doc, yyjson_mut_val *o,
                       const struct serve_worker *w)
{
    struct core_belief b = hub_belief(a->view.serve->pools[w->pool].hub, w->index);
    yyjson_mut_obj_add_uint(doc, o, "prefilling", b.books.prefilling);
    yyjson_mut_obj_add_uint(doc, o, "prefill_tokens", b.books.prefill_tok);
    yyjson_mut_obj_add_real(doc, o, "predicted_ttft_ms", (double)b.ttft_ps / (double)PS_PER_MS);
    yyjson_mut_obj_add_real(doc, o, "ttft_bias", b.bias.ttft);
    yyjson_mut_obj_add_real(doc, o, "tpot_bias", b.bias.tpot);
}

/* A duration in ms; < 0: null. */
static void add_ms(yyjson_mut_doc *doc, yyjson_mut_val *o, const char *name, int64_t ns)
{
    if (ns < 0)
        yyjson_mut_obj_add_null(doc, o, name);
    else
        yyjson_mut_obj_add_real(doc, o, name, (double)ns / 1e6);
}

static yyjson_mut_val *decision(yyjson_mut_doc *doc, const struct seen_recent *m)
{
    yyjson_mut_val *o = yyjson_mut_obj(doc);
    yyjson_mut_obj_add_int(doc, o, "ended_ms", m->ended_us / 1000);
    yyjson_mut_obj_add_strcpy(doc, o, "request", m->id);
    yyjson_mut_obj_add_strcpy(doc, o, "worker", m->worker);
    yyjson_mut_obj_add_str(doc, o, "outcome", m->outcome);
    yyjson_mut_obj_add_str(doc, o, "reason", m->reason ? m->reason : "");
    yyjson_mut_obj_add_uint(doc, o, "prompt_tok", m->prompt_tok);
    yyjson_mut_obj_add_uint(doc, o, "cached_tok", m->cached_tok);
    yyjson_mut_obj_add_uint(doc, o, "output_tok", m->output_tok);
    yyjson_mut_obj_add_uint(doc, o, "candidates", m->n_candidates);
    yyjson_mut_obj_add_uint(doc, o, "retries", m->retries);
    add_ms(doc, o, "ttft_ms", m->ttft_ns);
    add_ms(doc, o, "predicted_ttft_ms", m->predicted_ttft_ns);
    add_ms(doc, o, "tpot_ms", m->tpot_ns);
    add_ms(doc, o, "predicted_tpot_ms", m->predicted_tpot_ns);
    return o;
}

static int later(const void *a, const void *b)
{
    const struct seen_recent *x = a, *y = b;
    return (x->ended_us < y->ended_us) - (x->ended_us > y->ended_us);
}

/* The last requests of all threads, latest first. */
static yyjson_mut_val *decisions(const struct admin *a, yyjson_mut_doc *doc)
{
    yyjson_mut_val *list = yyjson_mut_arr(doc);
    uint32_t n = 0;
    struct seen_recent *all = calloc((size_t)a->view.n_proxies * SEEN_RECENT, sizeof *all);
    for (uint32_t i = 0; all && i < a->view.n_proxies; i++)
        n += seen_recent(a->view.proxies[i], all + n);
    if (n)
        qsort(all, n, sizeof *all, later);
    for (uint32_t i = 0; i < n && i < SEEN_RECENT; i++)
        yyjson_mut_arr_add_val(list, decision(doc, &all[i]));
    free(all);
    return list;
}

static void add_totals(const struct admin *a, yyjson_mut_doc *doc, yyjson_mut_val *root)
{
    struct proxy_counts sum;
    metrics_sum(&a->view, &sum);
    yyjson_mut_val *o = yyjson_mut_obj(doc);
    yyjson_mut_obj_add_uint(doc, o, "requests", sum.requests);
    yyjson_mut_obj_add_uint(doc, o, "live", sum.live);
    yyjson_mut_obj_add_uint(doc, o, "answered", sum.answered);
    yyjson_mut_obj_add_uint(doc, o, "refused", sum.refused);
    yyjson_mut_obj_add_uint(doc, o, "cut", sum.cut);
    yyjson_mut_obj_add_uint(doc, o, "prompt_tok", sum.prompt_tok);
    yyjson_mut_obj_add_uint(doc, o, "cached_tok", sum.cached_tok);
    yyjson_mut_obj_add_uint(doc, o, "output_tok", sum.output_tok);
    add_ms(doc, o, "ttft_p50_ms", (int64_t)buckets_quantile(&sum.ttft, BUCKETS_LATENCY, 0.5));
    add_ms(doc, o, "ttft_p99_ms", (int64_t)buckets_quantile(&sum.ttft, BUCKETS_LATENCY, 0.99));
    add_ms(doc, o, "tpot_p50_ms", (int64_t)buckets_quantile(&sum.tpot, BUCKETS_TOKEN, 0.5));
    yyjson_mut_obj_add_real(doc, o, "ttft_ratio_p50",
                            (double)buckets_quantile(&sum.ttft_ratio, BUCKETS_RATIO, 0.5) / 1e9);
    yyjson_mut_obj_add_val(doc, root, "totals", o);
}

static yyjson_mut_val *worker_state(const struct admin *a, yyjson_mut_doc *doc, uint32_t i,
                                    uint64_t now_ms)
{
    static const char *const roles[] = {"both", "prefill", "decode"};
    const struct serve_worker *w = &a->view.serve->workers[i];
    const struct poller_worker *p = poller_worker_at(a->poller, i);
    yyjson_mut_val *o = yyjson_mut_obj(doc);
    yyjson_mut_obj_add_str(doc, o, "name", w->name);
    yyjson_mut_obj_add_str(doc, o, "role", roles[w->core.role]);
    yyjson_mut_obj_add_str(doc, o, "state", poller_state_name(p->state));
    if (w->leaving)
        yyjson_mut_obj_add_bool(doc, o, "leaving", true);
    yyjson_mut_obj_add_str(doc, o, "engine", engine_family_name(p->metrics.family));
    add_health(a, doc, o, w);
    add_belief(a, doc, o, w);
    yyjson_mut_obj_add_uint(doc, o, "in_this_state_ms", now_ms - p->changed_ms);
    if (p->answered_ms)
        yyjson_mut_obj_add_uint(doc, o, "state_age_ms", now_ms - p->answered_ms);
    else
        yyjson_mut_obj_add_null(doc, o, "state_age_ms");
    yyjson_mut_obj_add_uint(doc, o, "running", (uint64_t)p->metrics.figure[FIGURE_RUNNING]);
    yyjson_mut_obj_add_uint(doc, o, "waiting", (uint64_t)p->metrics.figure[FIGURE_WAITING]);
    yyjson_mut_obj_add_real(doc, o, "kv_usage", p->metrics.figure[FIGURE_KV_USAGE]);
    yyjson_mut_obj_add_uint(doc, o, "poll_failures_in_a_row", p->failures);
    if (p->failures)
        yyjson_mut_obj_add_str(doc, o, "last_failure", p->why);
    return o;
}

static void reply_state(struct admin *a, struct http_exchange *ex)
{
    struct serve *s = a->view.serve;
    uint64_t now_ms = current(a).now_ms;
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(doc), *pools = yyjson_mut_arr(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_bool(doc, root, "draining", atomic_load(&s->draining));
    yyjson_mut_obj_add_str(doc, root, "version", weir_version());
    add_totals(a, doc, root);
    yyjson_mut_obj_add_val(doc, root, "pools", pools);
    yyjson_mut_obj_add_val(doc, root, "decisions", decisions(a, doc));
    uv_rwlock_rdlock(&s->models_lock);
    for (uint32_t i = 0; i < s->n_pools; i++) {
        struct hub_stats stats;
        yyjson_mut_val *pool = yyjson_mut_obj(doc), *models = yyjson_mut_arr(doc),
                       *workers = yyjson_mut_arr(doc);
        hub_get_stats(s->pools[i].hub, &stats);
        yyjson_mut_obj_add_str(doc, pool, "name", s->pools[i].name);
        yyjson_mut_obj_add_str(doc, pool, "policy", s->pools[i].policy);
        yyjson_mut_obj_add_uint(doc, pool, "queued", stats.core.queued);
        yyjson_mut_obj_add_uint(doc, pool, "queued_bytes", stats.core.queued_bytes);
        yyjson_mut_obj_add_uint(doc, pool, "inflight", stats.core.inflight);
        yyjson_mut_obj_add_uint(doc, pool, "ejected", stats.core.ejected);
        yyjson_mut_obj_add_bool(doc, pool, "panic", stats.core.panics > 0);
        for (uint32_t k = 0; k < s->pools[i].n_models; k++)
            yyjson_mut_arr_add_strcpy(doc, models, s->pools[i].models[k]);
        for (uint32_t k = 0; k < s->pools[i].n_workers; k++) {
            if (!s->workers[s->pools[i].first_worker + k].present)
                continue;
            yyjson_mut_arr_add_val(workers,
                                   worker_state(a, doc, s->pools[i].first_worker + k, now_ms));
        }
        yyjson_mut_obj_add_val(doc, pool, "models", models);
        yyjson_mut_obj_add_val(doc, pool, "workers", workers);
        yyjson_mut_arr_add_val(pools, pool);
    }
    uv_rwlock_rdunlock(&s->models_lock);
    size_t len = 0;
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_PRETTY, &len);
    yyjson_mut_doc_free(doc);
    if (text)
        http_reply(ex, 200, JSON, (struct http_slice){text, len});
    else
        reply_text(ex, 503, JSON, "{\"error\":\"out of memory\"}");
    free(text);
}

/* ---- what can be asked for */

/* /admin/workers/NAME/VERB */
static void worker_command(struct admin *a, struct http_exchange *ex, const char *name, size_t len)
{
    const char *slash = memrchr(name, '/', len);
    const struct serve *s = a->view.serve;
    size_t n = slash ? (size_t)(slash - name) : 0;
    struct http_slice verb =
        slash ? (struct http_slice){slash + 1, len - n - 1} : (struct http_slice){NULL, 0};
    bool drain = verb.len == 5 && !memcmp(verb.s, "drain", 5),
         undrain = verb.len == 7 && !memcmp(verb.s, "undrain", 7);
    for (uint32_t i = 0; (drain || undrain) && i < s->n_workers; i++) {
        if (s->workers[i].present && !s->workers[i].leaving && strlen(s->workers[i].name) == n &&
            !memcmp(s->workers[i].name, name, n)) {
            poller_drain(a->poller, i, drain);
            reply_text(ex, 200, JSON, drain ? "{\"draining\":true}" : "{\"draining\":false}");
            return;
        }
    }
    reply_text(
        ex, 404, JSON,
        "{\"error\":\"no such worker or wish: POST /admin/workers/NAME/drain or .../undrain, names as in /admin/state\"}");
}

static bool may(const struct admin *a, const struct http_head *head)
{
    struct http_slice v = http_get_known(head, HTTP_F_AUTHORIZATION);
    size_t n = strlen(a->token);
    if (!n)
        return true;
    return v.len == n + 7 && !strncasecmp(v.s, "Bearer ", 7) &&
           !CRYPTO_memcmp(v.s + 7, a->token, n);
}

static bool is(struct http_slice s, const char *text)
{
    return strlen(text) == s.len && !memcmp(s.s, text, s.len);
}

static void on_request(void *user, struct http_exchange *ex)
{
    static const char workers[] = "/admin/workers/";
    struct admin *a = user;
    const struct http_head *head = http_request_head(ex);
    struct http_slice path = http_target(head);
    bool get = head->method == HTTP_M_GET || head->method == HTTP_M_HEAD;
    if (get && is(path, "/healthz"))
        reply_text(ex, 200, "text/plain", "ok\n");
    else if (get && is(path, "/readyz"))
        reply_ready(a, ex);
    else if (!may(a, head))
        reply_text(ex, 401, JSON,
                   "{\"error\":\"this listener wants its token: Authorization: Bearer TOKEN\"}");
    else if (get && is(path, "/metrics"))
        reply_metrics(a, ex);
    else if (get && is(path, "/admin/state"))
        reply_state(a, ex);
    else if (head->method == HTTP_M_POST && path.len > sizeof workers - 1 &&
             !memcmp(path.s, workers, sizeof workers - 1))
        worker_command(a, ex, path.s + sizeof workers - 1, path.len - sizeof workers + 1);
    else
        reply_text(
            ex, 404, JSON,
            "{\"error\":\"no such path: /healthz /readyz /metrics /admin/state, POST /admin/workers/NAME/drain\"}");
}

static void on_gone(void *user, struct http_exchange *ex, enum http_gone why)
{
    (void)user;
    (void)ex;
    (void)why;
}

static const struct http_server_ops ops = {.request = on_request, .gone = on_gone};

static bool is_loopback(const char *host)
{
    return !strncmp(host, "127.", 4) || !strcmp(host, "::1");
}

struct admin *admin_new(struct http_loop *http, const char *host, uint16_t port, int fd,
                        const char *token, const struct metrics_view *view, struct poller *poller,
                        char error[PROXY_ERROR_BYTES])
{
    struct http_server_options o;
    bool has_token = token && *token;
    if (!has_token && !is_loopback(host)) {
        snprintf(error, PROXY_ERROR_BYTES,
                 "the admin listener on %s needs a token: --admin-token-file, or listen on "
                 "127.0.0.1",
                 host);
        return NULL;
    }
    if (has_token && strlen(token) >= ADMIN_MAX_TOKEN) {
        snprintf(error, PROXY_ERROR_BYTES, "the admin token is longer than %u bytes",
                 ADMIN_MAX_TOKEN - 1);
        return NULL;
    }
    struct admin *a = calloc(1, sizeof *a);
    if (!a) {
        snprintf(error, PROXY_ERROR_BYTES, "out of memory");
        return NULL;
    }
    a->view = *view;
    a->poller = poller;
    snprintf(a->token, sizeof a->token, "%s", has_token ? token : "");
    http_server_defaults(&o);
    o.host = host;
    o.port = port;
    o.fd = fd;
    o.max_connections = 256;
    o.max_body_bytes = 1 << 16;
    a->server = http_server_new(http, &o, &ops, a, error);
    if (a->server)
        return a;
    free(a);
    return NULL;
}

int admin_listen_fd(const struct admin *a)
{
    return http_server_fd(a->server);
}

uint16_t admin_port(const struct admin *a)
{
    return http_server_port(a->server);
}

void admin_close(struct admin *a)
{
    if (!a)
        return;
    http_server_close(a->server);
    free(a);
}
