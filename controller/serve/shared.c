/* shared.c - see shared.h. */
#include "controller/serve/shared.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/state/foreign.h"

struct name {
    char text[RECORD_NAME_BYTES];
    uint32_t worker;
};

struct shared {
    struct serve *serve;
    struct proxy *proxy;
    uv_loop_t *uv;
    struct redis_feed *feed;
    struct foreign *foreign;
    uv_async_t moved;
    uv_timer_t soon, tick;
    int open; /* handles */
    bool gathering, behind;
    uint64_t whole_ms;
    char id[17];
    uint64_t sequence, gaps, ignored;
    struct core_load *now, *told; /* by worker */
    int8_t *failures;             /* by worker: shared_failure */
    struct name *names;           /* of the present workers, ascending */
    uint32_t n_names;
    uint64_t stamp; /* of the places that names is of */
    struct worker_load loads[RECORD_MAX_LOADS];
};

/* ---- names */

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct name *)a)->text, ((const struct name *)b)->text);
}

static void write_name(const struct serve_worker *w, char out[RECORD_NAME_BYTES])
{
    snprintf(out, RECORD_NAME_BYTES, "%.240s:%u", w->host, w->port);
}

static void list_names(struct shared *s)
{
    uint64_t stamp = 1;
    for (uint32_t i = 0; i < s->serve->n_workers; i++) {
        const struct serve_worker *w = &s->serve->workers[i];
        stamp = stamp * 31 + 2 * (uint64_t)w->generation + w->present;
    }
    if (stamp == s->stamp)
        return;
    s->stamp = stamp;
    s->n_names = 0;
    for (uint32_t i = 0; i < s->serve->n_workers; i++) {
        s->failures[i] = -1;
        if (!s->serve->workers[i].present)
            continue;
        write_name(&s->serve->workers[i], s->names[s->n_names].text);
        s->names[s->n_names++].worker = i;
    }
    qsort(s->names, s->n_names, sizeof *s->names, by_text);
}

static uint32_t index_of(void *user, const char *worker)
{
    const struct shared *s = user;
    struct name key;
    snprintf(key.text, sizeof key.text, "%s", worker);
    const struct name *n = bsearch(&key, s->names, s->n_names, sizeof key, by_text);
    return n ? n->worker : UINT32_MAX;
}

/* ---- what is in flight here goes out */

static bool same(const struct core_load *a, const struct core_load *b)
{
    return a->requests == b->requests && a->prefilling == b->prefilling &&
           a->prefill_tok == b->prefill_tok && a->prompt_tok == b->prompt_tok;
}

/* n loads, of which the feed has room for a message. */
static void send_loads(struct shared *s, uint32_t n, bool whole)
{
    struct dispatches d = {.sequence = ++s->sequence,
                           .sent_at_us = redis_feed_unix_us(),
                           .lease_ms = SHARED_LEASE_MS,
                           .whole = whole,
                           .n = n,
                           .loads = s->loads};
    memcpy(d.controller, s->id, sizeof s->id);
    if (redis_feed_put_dispatches(s->feed, &d))
        s->behind = true;
}

static void add_load(struct shared *s, uint32_t worker, uint32_t n)
{
    const struct core_load *l = &s->now[worker];
    struct worker_load *out = &s->loads[n];
    write_name(&s->serve->workers[worker], out->worker);
    out->requests = l->requests;
    out->prefilling = l->prefilling;
    out->prefill_tok = l->prefill_tok;
    out->prompt_tok = l->prompt_tok;
}

/* Of several messages the first says that the rest is nothing, until those that follow say more. */
static void publish(struct shared *s, bool whole)
{
    static const struct core_load nothing;
    struct serve *serve = s->serve;
    uint32_t n = 0, sent = 0;
    if (!redis_feed_ready(s->feed, 1 + serve->n_workers / RECORD_MAX_LOADS)) {
        s->behind = true;
        return;
    }
    s->behind = false;
    for (uint32_t p = 0; p < serve->n_pools; p++)
        hub_own_loads(serve->pools[p].hub, s->now + serve->pools[p].first_worker,
                      serve->pools[p].n_workers);
    for (uint32_t i = 0; i < serve->n_workers; i++) {
        if (!serve->workers[i].present || same(&s->now[i], whole ? &nothing : &s->told[i]))
            continue;
        add_load(s, i, n++);
        if (n == RECORD_MAX_LOADS) {
            send_loads(s, n, whole && !sent++);
            n = 0;
        }
    }
    if (n || (whole && !sent))
        send_loads(s, n, whole && !sent);
    memcpy(s->told, s->now, serve->n_workers * sizeof *s->told);
    if (whole)
        s->whole_ms = uv_now(s->uv);
}

static void on_soon(uv_timer_t *timer)
{
    struct shared *s = timer->data;
    s->gathering = false;
    publish(s, false);
}

/* More will move within the next moment: all of that goes into one message. */
static void on_moved(uv_async_t *handle)
{
    struct shared *s = handle->data;
    if (s->gathering)
        return;
    s->gathering = true;
    uv_timer_start(&s->soon, on_soon, SHARED_GATHER_MS, 0);
}

/* ---- what others have in flight comes in */

static void tell_hubs(struct shared *s)
{
    struct core_load total;
    uint32_t i;
    while (foreign_changed(s->foreign, &i, &total)) {
        const struct serve_worker *w = &s->serve->workers[i];
        if (w->present)
            hub_foreign(proxy_hub_loop(s->proxy, w->pool), w->index, &total);
    }
}

static void on_dispatches(void *user, const struct dispatches *d)
{
    struct shared *s = user;
    bool gap;
    if (!strcmp(d->controller, s->id))
        return;
    if (foreign_take(s->foreign, d, uv_now(s->uv), index_of, s, &gap))
        s->ignored++;
    s->gaps += gap;
    tell_hubs(s);
}

static void on_worker(void *user, const struct worker_record *r)
{
    struct shared *s = user;
    uint32_t i = index_of(s, r->name);
    if (i < s->serve->n_workers)
        s->failures[i] = (int8_t)r->failure;
}

static void on_worker_gone(void *user, const char *name)
{
    struct shared *s = user;
    uint32_t i = index_of(s, name);
    if (i < s->serve->n_workers)
        s->failures[i] = -1;
}

static void on_tick(uv_timer_t *timer)
{
    struct shared *s = timer->data;
    uint64_t now = uv_now(s->uv);
    list_names(s);
    foreign_expire(s->foreign, now);
    tell_hubs(s);
    if (now - s->whole_ms >= SHARED_WHOLE_MS)
        publish(s, true);
    else if (s->behind)
        publish(s, false);
}

/* ---- life */

static void free_shared(struct shared *s)
{
    foreign_free(s->foreign);
    free(s->now);
    free(s->told);
    free(s->failures);
    free(s->names);
    free(s);
}

static bool make(struct shared *s, const struct redis_url *url, char *error)
{
    static const struct feed_ops ops = {
        .worker = on_worker, .worker_gone = on_worker_gone, .dispatches = on_dispatches};
    uint32_t n = s->serve->n_workers;
    uint64_t random;
    s->foreign = foreign_new(n);
    s->now = calloc(n, sizeof *s->now);
    s->told = calloc(n, sizeof *s->told);
    s->failures = calloc(n, sizeof *s->failures);
    s->names = calloc(n, sizeof *s->names);
    snprintf(error, FEED_ERROR_BYTES, "out of memory");
    if (!s->foreign || !s->now || !s->told || !s->failures || !s->names)
        return false;
    if (uv_random(NULL, NULL, &random, sizeof random, 0, NULL)) {
        snprintf(error, FEED_ERROR_BYTES, "the system has no random numbers");
        return false;
    }
    snprintf(s->id, sizeof s->id, "%016" PRIx64, random);
    list_names(s);
    s->feed = redis_feed_new(s->uv, url, &ops, s, random, error);
    return s->feed != NULL;
}

struct shared *shared_new(struct serve *serve, struct proxy *proxy, uv_loop_t *uv,
                          const struct redis_url *url, char *error)
{
    struct shared *s = calloc(1, sizeof *s);
    snprintf(error, FEED_ERROR_BYTES, "out of memory");
    if (!s)
        return NULL;
    *s = (struct shared){.serve = serve, .proxy = proxy, .uv = uv, .open = 3};
    if (!make(s, url, error)) {
        free_shared(s);
        return NULL;
    }
    uv_async_init(uv, &s->moved, on_moved);
    uv_timer_init(uv, &s->soon);
    uv_timer_init(uv, &s->tick);
    s->moved.data = s->soon.data = s->tick.data = s;
    uv_timer_start(&s->tick, on_tick, 0, SHARED_TICK_MS);
    for (uint32_t i = 0; i < serve->n_pools; i++)
        hub_watch(serve->pools[i].hub, &s->moved);
    return s;
}

static void on_closed(uv_handle_t *handle)
{
    struct shared *s = handle->data;
    if (!--s->open)
        free_shared(s);
}

void shared_close(struct shared *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->serve->n_pools; i++)
        hub_watch(s->serve->pools[i].hub, NULL);
    redis_feed_close(s->feed);
    uv_close((uv_handle_t *)&s->moved, on_closed);
    uv_close((uv_handle_t *)&s->soon, on_closed);
    uv_close((uv_handle_t *)&s->tick, on_closed);
}

struct shared_stats shared_stats(const struct shared *s)
{
    const struct feed_stats *f = redis_feed_stats(s->feed);
    return (struct shared_stats){.feed = f,
                                 .controllers = foreign_controllers(s->foreign),
                                 .foreign = foreign_requests(s->foreign),
                                 .gaps = s->gaps,
                                 .ignored = s->ignored,
                                 .age_s = f->heard_ms ? (double)(uv_now(s->uv) - f->heard_ms) / 1e3
                                                      : -1};
}

int shared_failure(const struct shared *s, uint32_t worker)
{
    return s->failures[worker];
}
