/* poller.c - see poller.h. */
#include "controller/serve/poller.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yyjson.h>
#include <zmq.h>

enum question { ASK_METRICS, ASK_HEALTH, ASK_MODELS };

struct watch {
    struct poller *poller;
    uint32_t worker;
    struct poller_worker seen;
    struct http_upstream *upstream;
    struct http_call *call;
    enum question question;
    bool no_metrics; /* it has none: ask for its health */
    bool drained;
    int status;
    char *text;
    size_t len, cap;
    uint64_t models_ms; /* when its models were last asked for; 0: never */
    struct http_timer timer;
    struct kv_feed *kv; /* NULL: not begun, or not wanted */
};

struct poller {
    struct serve *serve;
    struct proxy *proxy;
    struct http_loop *http;
    struct http_client *client;
    uint32_t interval_ms;
    struct watch *watches;
    void *zmq; /* NULL until a worker publishes KV events */
};

const char *poller_state_name(enum poller_state s)
{
    static const char *const names[] = {"unknown", "up", "down", "draining"};
    return names[s];
}

static uint64_t now_ms(const struct poller *p)
{
    return uv_now(http_loop_uv(p->http));
}

/* ---- states */

static struct hub_loop *hub_of(const struct watch *w)
{
    return proxy_hub_loop(w->poller->proxy, w->poller->serve->workers[w->worker].pool);
}

static void set_state(struct watch *w, enum poller_state to)
{
    static const enum core_event_kind kinds[] = {
        [POLLER_UP] = CORE_EV_WORKER_UP,
        [POLLER_DOWN] = CORE_EV_WORKER_DOWN,
        [POLLER_DRAINING] = CORE_EV_WORKER_DRAIN,
    };
    if (w->seen.state == to)
        return;
    w->seen.state = to;
    w->seen.changed_ms = now_ms(w->poller);
    atomic_store(&w->poller->serve->workers_up, poller_up(w->poller));
    if (to == POLLER_DOWN) {
        atomic_fetch_add(&w->poller->serve->workers[w->worker].losses, 1);
        atomic_fetch_add(&w->poller->serve->losses, 1);
    }
    hub_worker(hub_of(w), w->poller->serve->workers[w->worker].index, kinds[to]);
}

/* ---- KV events */

static void tell_cache(void *ctx, const struct core_cache_event *ev)
{
    struct watch *w = ctx;
    hub_cache(hub_of(w), w->poller->serve->workers[w->worker].index, ev);
}

static void begin_kv(struct watch *w)
{
    struct poller *p = w->poller;
    struct serve_worker *worker = &p->serve->workers[w->worker];
    struct serve_pool *pool = &p->serve->pools[worker->pool];
    char model[SERVE_MODEL_BYTES] = "";
    const char *why = "out of memory";
    if (w->kv || !worker->kv_events[0] || !(hub_needs(pool->hub) & 1u << CORE_EV_CACHE))
        return;
    uv_rwlock_rdlock(&p->serve->models_lock);
    if (pool->n_models)
        memcpy(model, pool->models[0], sizeof model);
    uv_rwlock_rdunlock(&p->serve->models_lock);
    if (!model[0])
        return;
    struct kv_feed_options o = {.loop = http_loop_uv(p->http),
                                .zmq = p->zmq ? p->zmq : (p->zmq = zmq_ctx_new()),
                                .events = worker->kv_events,
                                .replay = worker->kv_replay,
                                .block_tok = worker->core.block_size,
                                .model = model,
                                .tell = tell_cache,
                                .ctx = w};
    w->kv = p->zmq ? kv_feed_new(&o, &why) : NULL;
    if (w->kv)
        kv_feed_up(w->kv);
    else
        fprintf(stderr, "weir serve: worker %s: KV events of %s: %s\n", worker->name,
                worker->kv_events, why);
}

void poller_kv_stats(const struct poller *p, uint32_t worker, struct kv_feed_stats *out)
{
    *out = (struct kv_feed_stats){.batches = 0};
    if (p->watches[worker].kv)
        kv_feed_stats(p->watches[worker].kv, out);
}

static void good(struct watch *w)
{
    w->seen.failures = 0;
    w->seen.answered_ms = now_ms(w->poller);
    if (w->seen.state == POLLER_UNKNOWN || w->seen.state == POLLER_DOWN) {
        set_state(w, POLLER_UP);
        if (w->kv)
            kv_feed_up(w->kv);
        if (w->drained)
            set_state(w, POLLER_DRAINING);
    }
}

static void bad(struct watch *w, const char *why)
{
    w->seen.failed++;
    snprintf(w->seen.why, sizeof w->seen.why, "%s", why);
    if (++w->seen.failures >= POLLER_DOWN_AFTER && w->seen.state != POLLER_UNKNOWN)
        set_state(w, POLLER_DOWN);
}

/* ---- answers */

static void read_metrics(struct watch *w)
{
    const struct serve_worker *worker = &w->poller->serve->workers[w->worker];
    struct core_telemetry t;
    if (engine_metrics_read(w->text, w->len, &w->seen.metrics)) {
        bad(w, "its /metrics page is not one of an engine that is known");
        return;
    }
    good(w);
    int64_t at = hub_now_ps(w->poller->serve->pools[worker->pool].hub);
    if (engine_metrics_telemetry(&w->seen.metrics, at, worker->core.num_gpu_blocks, &t))
        hub_telemetry(hub_of(w), worker->index, &t);
}

/* Names go into headers and JSON as they are. */
static bool is_plain(const char *s)
{
    for (; *s; s++) {
        if (*s < 0x21 || *s > 0x7e || *s == '"' || *s == '\\')
            return false;
    }
    return true;
}

static void add_model(struct serve_pool *pool, const char *id)
{
    for (uint32_t i = 0; i < pool->n_models; i++) {
        if (!strcmp(pool->models[i], id))
            return;
    }
    if (pool->n_models < SERVE_MAX_POOL_MODELS && strlen(id) < SERVE_MODEL_BYTES && is_plain(id))
        snprintf(pool->models[pool->n_models++], SERVE_MODEL_BYTES, "%s", id);
}

static void read_models(struct watch *w)
{
    struct serve *s = w->poller->serve;
    yyjson_doc *doc = yyjson_read(w->text, w->len, 0);
    yyjson_val *data = yyjson_obj_get(yyjson_doc_get_root(doc), "data"), *model;
    size_t i, n;
    uv_rwlock_wrlock(&s->models_lock);
    yyjson_arr_foreach (data, i, n, model) {
        const char *id = yyjson_get_str(yyjson_obj_get(model, "id"));
        if (id)
            add_model(&s->pools[s->workers[w->worker].pool], id);
    }
    uv_rwlock_wrunlock(&s->models_lock);
    yyjson_doc_free(doc);
}

static void ask(struct watch *w, enum question question);

static void ask_later(struct watch *w)
{
    http_timer_start(w->poller->http, &w->timer, w->poller->interval_ms);
}

static void answered(struct watch *w)
{
    char why[64];
    w->call = NULL;
    if (w->question == ASK_MODELS) {
        if (w->status == 200)
            read_models(w);
        begin_kv(w);
    } else if (w->status == 404 && w->question == ASK_METRICS) {
        w->no_metrics = true;
        ask(w, ASK_HEALTH);
        return;
    } else if (w->status != 200) {
        snprintf(why, sizeof why, "status %d of %s", w->status,
                 w->question == ASK_METRICS ? "/metrics" : "/health");
        bad(w, why);
    } else if (w->question == ASK_METRICS) {
        read_metrics(w);
    } else {
        good(w);
    }
    uint64_t now = now_ms(w->poller);
    if (w->question != ASK_MODELS && w->seen.state == POLLER_UP &&
        (!w->models_ms || now - w->models_ms > POLLER_MODELS_EVERY_MS)) {
        w->models_ms = now;
        ask(w, ASK_MODELS);
        return;
    }
    ask_later(w);
}

static bool keep(struct watch *w, struct http_slice s)
{
    if (w->len + s.len > POLLER_MAX_BYTES)
        return false;
    if (w->len + s.len > w->cap) {
        size_t cap = w->cap ? w->cap : 16384;
        while (cap < w->len + s.len)
            cap *= 2;
        char *text = realloc(w->text, cap);
        if (!text)
            return false;
        w->text = text;
        w->cap = cap;
    }
    memcpy(w->text + w->len, s.s, s.len);
    w->len += s.len;
    return true;
}

static void part(void *user, struct http_call *call, const struct http_part *p)
{
    struct watch *w = user;
    if (p->head)
        w->status = p->head->status;
    for (size_t i = 0; i < p->n; i++) {
        if (keep(w, p->data[i]))
            continue;
        http_call_cancel(call);
        w->call = NULL;
        bad(w, "its answer is larger than 4 MiB");
        ask_later(w);
        return;
    }
    if (p->last)
        answered(w);
}

static void failed(void *user, struct http_call *call, const struct http_failure *f)
{
    struct watch *w = user;
    (void)call;
    w->call = NULL;
    if (w->question != ASK_MODELS && f->why != HTTP_FAIL_SHUTDOWN)
        bad(w, f->detail ? f->detail : http_fail_text(f->why));
    ask_later(w);
}

static const struct http_call_ops call_ops = {.part = part, .failed = failed};

static void ask(struct watch *w, enum question question)
{
    static const char *const paths[] = {"/metrics", "/health", "/v1/models"};
    w->question = question;
    w->len = 0;
    w->status = 0;
    w->seen.polls += question != ASK_MODELS;
    w->call = http_call_new(w->upstream, &call_ops, w);
    int rc = http_call_request(w->call, HTTP_M_GET,
                               (struct http_slice){paths[question], strlen(paths[question])});
    if (!rc)
        rc = http_call_send(w->call, NULL, 0);
    if (rc) {
        w->call = NULL;
        bad(w, "no connection can be opened");
        ask_later(w);
        return;
    }
    /* an answer later than this is as good as none */
    http_call_timeout(w->call,
                      w->poller->interval_ms * 10 < 1000 ? 1000 : w->poller->interval_ms * 10);
}

static void on_timer(struct http_timer *timer)
{
    struct watch *w = (struct watch *)((char *)timer - offsetof(struct watch, timer));
    ask(w, w->no_metrics ? ASK_HEALTH : ASK_METRICS);
}

/* ---- life */

/* Begins to ask, in_ms from now. False: out of memory. */
static bool watch(struct poller *p, uint32_t worker, uint64_t in_ms)
{
    const struct serve_worker *from = &p->serve->workers[worker];
    struct watch *w = &p->watches[worker];
    struct http_upstream_options o;
    http_upstream_defaults(&o);
    o.host = from->host;
    o.port = from->port;
    o.tls = from->tls ? p->serve->upstream_tls : NULL;
    *w =
        (struct watch){.poller = p, .worker = worker, .upstream = http_upstream_new(p->client, &o)};
    http_timer_init(&w->timer, on_timer);
    http_timer_start(p->http, &w->timer, in_ms);
    return w->upstream != NULL;
}

static void stop(struct watch *w)
{
    if (!w->poller)
        return;
    if (w->call)
        http_call_cancel(w->call);
    http_timer_deinit(w->poller->http, &w->timer);
    free(w->text);
    kv_feed_close(w->kv);
    w->kv = NULL;
    w->poller = NULL;
}

void poller_watch(struct poller *p, uint32_t worker)
{
    if (!watch(p, worker, 0))
        abort(); /* as wherever a table grows */
}

void poller_unwatch(struct poller *p, uint32_t worker)
{
    struct watch *w = &p->watches[worker];
    stop(w);
    http_upstream_free(w->upstream);
    *w = (struct watch){.poller = NULL};
    atomic_store(&p->serve->workers_up, poller_up(p));
}

struct poller *poller_new(struct serve *serve, struct proxy *proxy, struct http_loop *http,
                          uint32_t interval_ms)
{
    struct poller *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    *p = (struct poller){.serve = serve, .proxy = proxy, .http = http, .interval_ms = interval_ms};
    p->client = http_client_new(http);
    p->watches = calloc(serve->n_workers, sizeof *p->watches);
    bool ok = p->client && p->watches;
    /* the first questions at once, spread over the interval when there are many workers */
    for (uint32_t i = 0; ok && i < serve->n_workers; i++)
        ok =
            !serve->workers[i].present || watch(p, i, (uint64_t)interval_ms * i / serve->n_workers);
    if (ok)
        return p;
    poller_close(p);
    return NULL;
}

void poller_close(struct poller *p)
{
    if (!p)
        return;
    for (uint32_t i = 0; p->watches && i < p->serve->n_workers; i++)
        stop(&p->watches[i]);
    if (p->client)
        http_client_close(p->client);
    if (p->zmq)
        zmq_ctx_term(p->zmq); /* all its sockets are closed, and none lingers */
    free(p->watches);
    free(p);
}

const struct poller_worker *poller_worker_at(const struct poller *p, uint32_t worker)
{
    return &p->watches[worker].seen;
}

void poller_drain(struct poller *p, uint32_t worker, bool on)
{
    struct watch *w = &p->watches[worker];
    w->drained = on;
    if (on && w->seen.state == POLLER_UP)
        set_state(w, POLLER_DRAINING);
    else if (!on && w->seen.state == POLLER_DRAINING)
        set_state(w, POLLER_UP);
}

uint32_t poller_up(const struct poller *p)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->serve->n_workers; i++)
        n += p->watches[i].seen.state == POLLER_UP;
    return n;
}
