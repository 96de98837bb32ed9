/* serve.c - `weir serve`: its threads, its signals.
 *
 *   main thread = loop 0: proxy, poller, admin listener, signals
 *   thread i    = loop i: proxy
 *
 * SIGTERM and SIGINT drain: no more connections are taken, requests in the path end, then the process does; a second one
 * ends it at once. SIGHUP reloads the config (reload.h); SIGUSR2 restarts without a gap (successor.h).
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/serve/admin.h"
#include "controller/serve/notify.h"
#include "controller/serve/reload.h"
#include "controller/serve/request_log.h"
#include "controller/serve/shared.h"
#include "controller/serve/sockets.h"
#include "controller/serve/start.h"
#include "controller/serve/successor.h"

#define COMMAND "serve"

#define READY_WITHIN_MS 5000u
#define READY_LOOK_MS 20u

struct thread {
    uv_thread_t id;
    uv_loop_t uv;
    uv_async_t drain, apply;
    struct http_loop *http;
    struct proxy *proxy;
    struct daemon *daemon;
    bool started;
};

struct daemon {
    struct config_args args;
    struct serve_config config;
    struct serve serve;
    struct thread *threads;
    uint32_t n_threads;
    struct proxy **proxies;
    struct poller *poller;
    struct shared *shared; /* NULL: state is none */
    struct admin *admin;
    uv_signal_t term, intr, hup, usr2;
    struct sockets sockets; /* that were given */
    struct successor successor;
    uv_timer_t readiness;
    uint64_t started_ms;
    struct reload reload;
    uv_async_t applied;
    atomic_uint applying; /* threads that have not taken over what a reload changed */
    int signals;
    atomic_uint running; /* threads that have not drained */
    uv_async_t ended;
};

const struct serve_pool *serve_pool_of(struct serve *s, const char *model, size_t len)
{
    const struct serve_pool *found = NULL;
    uv_rwlock_rdlock(&s->models_lock);
    for (uint32_t i = 0; i < s->n_pools && len; i++) {
        for (uint32_t k = 0; k < s->pools[i].n_models; k++) {
            if (!strcmp(s->pools[i].models[k], model))
                found = &s->pools[i];
        }
    }
    uv_rwlock_rdunlock(&s->models_lock);
    /* one pool: the engine knows best which models it has (adapters loaded since the last poll too) */
    return found ? found : s->n_pools == 1 ? &s->pools[0] : NULL;
}

/* As many descriptors as the system lets us have: each request in the path takes two. */
static void raise_files(void)
{
    struct rlimit r;
    if (!getrlimit(RLIMIT_NOFILE, &r) && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
}

/* ---- threads */

/* All threads have drained: the first one, which answered /healthz and /metrics until now, ends too. */
static void on_ended(uv_async_t *handle)
{
    struct daemon *d = handle->data;
    admin_close(d->admin); /* NULL: a successor has taken it over */
    successor_close(&d->successor);
    shared_close(d->shared);
    poller_close(d->poller);
    proxy_close(d->proxies[0]);
    uv_close((uv_handle_t *)&d->term, NULL);
    uv_close((uv_handle_t *)&d->intr, NULL);
    uv_close((uv_handle_t *)&d->hup, NULL);
    uv_close((uv_handle_t *)&d->usr2, NULL);
    uv_close((uv_handle_t *)&d->readiness, NULL);
    uv_close((uv_handle_t *)&d->applied, NULL);
    reload_deinit(&d->reload);
    uv_close((uv_handle_t *)&d->ended, NULL);
}

static void on_thread_drained(void *user)
{
    struct thread *t = user;
    struct daemon *d = t->daemon;
    uv_close((uv_handle_t *)&t->drain, NULL);
    uv_close((uv_handle_t *)&t->apply, NULL);
    if (t != d->threads)
        proxy_close(t->proxy);
    if (atomic_fetch_sub(&d->running, 1) == 1)
        uv_async_send(&d->ended);
}

static void on_drain(uv_async_t *handle)
{
    struct thread *t = handle->data;
    proxy_drain(t->proxy, on_thread_drained, t);
}

/* ---- reload */

static void on_apply(uv_async_t *handle)
{
    struct thread *t = handle->data;
    struct daemon *d = t->daemon;
    proxy_apply(t->proxy, d->serve.live);
    if (atomic_fetch_sub(&d->applying, 1) == 1)
        uv_async_send(&d->applied);
}

static void on_applied(uv_async_t *handle)
{
    struct daemon *d = handle->data;
    reload_spread_done(&d->reload);
}

static void spread(void *user)
{
    struct daemon *d = user;
    atomic_store(&d->applying, d->n_threads);
    for (uint32_t i = 0; i < d->n_threads; i++)
        uv_async_send(&d->threads[i].apply);
}

static void on_hup(uv_signal_t *handle, int number)
{
    struct daemon *d = handle->data;
    (void)number;
    notify_reloading();
    if (d->serve.log)
        reqlog_reopen(d->serve.log);
    reload_begin(&d->reload);
    notify_ready();
}

/* ---- the end */

static void drain(struct daemon *d)
{
    if (atomic_exchange(&d->serve.draining, true))
        return;
    fprintf(stderr, "weir serve: draining: requests in the path end, then so does this process\n");
    reload_stop(&d->reload);
    for (uint32_t i = 0; i < d->n_threads; i++)
        uv_async_send(&d->threads[i].drain);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct daemon *d = handle->data;
    if (d->signals++) {
        fprintf(stderr, "weir serve: %s again: ending at once\n",
                number == SIGINT ? "SIGINT" : "SIGTERM");
        _exit(1);
    }
    if (d->admin) /* else the service goes on without us */
        notify_stopping();
    drain(d);
}

/* ---- restart */

static void on_successor(void *user, bool ready)
{
    struct daemon *d = user;
    if (!ready) {
        fprintf(stderr, "weir serve: no restart: this process goes on\n");
        return;
    }
    fprintf(stderr, "weir serve: a new process has taken over\n");
    admin_close(d->admin);
    d->admin = NULL;
    drain(d);
}

static void on_usr2(uv_signal_t *handle, int number)
{
    struct daemon *d = handle->data;
    char error[YTREE_ERROR_BYTES];
    int data[HUB_MAX_LOOPS];
    (void)number;
    if (atomic_load(&d->serve.draining)) {
        fprintf(stderr, "weir serve: SIGUSR2 while draining: no restart\n");
        return;
    }
    for (uint32_t i = 0; i < d->n_threads; i++)
        data[i] = proxy_listen_fd(d->proxies[i]);
    ytree_error(error, "one is starting already");
    if (successor_start(&d->successor, &d->threads[0].uv, data, d->n_threads,
                        admin_listen_fd(d->admin), error))
        fprintf(stderr, "weir serve: no new process: %s\n", error);
    else
        fprintf(stderr, "weir serve: starting a new process that takes the sockets over\n");
}

/* ---- the beginning */

/* Every worker has been asked once, or READY_WITHIN_MS have passed: a worker that hangs holds nobody up. */
static bool is_ready(const struct daemon *d)
{
    const struct serve *s = &d->serve;
    bool heard = true;
    for (uint32_t i = 0; i < s->n_workers && heard; i++) {
        const struct poller_worker *w = poller_worker_at(d->poller, i);
        heard = !s->workers[i].present || w->answered_ms || w->failed;
    }
    return heard || uv_now(&d->threads[0].uv) - d->started_ms > READY_WITHIN_MS;
}

static void on_readiness(uv_timer_t *timer)
{
    struct daemon *d = timer->data;
    if (!is_ready(d))
        return;
    uv_timer_stop(timer);
    notify_ready();
    sockets_tell_ready(&d->sockets);
}

static int open_thread(struct daemon *d, uint32_t i)
{
    struct thread *t = &d->threads[i];
    char error[PROXY_ERROR_BYTES];
    t->daemon = d;
    if (uv_loop_init(&t->uv) || uv_async_init(&t->uv, &t->drain, on_drain) ||
        uv_async_init(&t->uv, &t->apply, on_apply))
        return cli_fail(COMMAND, "no event loop: %s", strerror(errno));
    t->drain.data = t->apply.data = t;
    t->http = http_loop_new(&t->uv);
    if (!t->http)
        return cli_fail(COMMAND, "out of memory");
    if (i) /* the first one may have let the system choose */
        d->serve.live->set.listen_port = proxy_port(d->proxies[0]);
    t->proxy = d->proxies[i] =
        proxy_new(&d->serve, &t->uv, t->http, sockets_take(&d->sockets, i), error);
    return t->proxy ? 0 : cli_fail(COMMAND, "%s", error);
}

static void close_thread(struct thread *t)
{
    http_loop_free(t->http);
    uv_run(&t->uv, UV_RUN_DEFAULT);
    if (uv_loop_close(&t->uv))
        fprintf(stderr, "weir serve: something was left open at the end\n");
}

static void run_thread(void *user)
{
    struct thread *t = user;
    uv_run(&t->uv, UV_RUN_DEFAULT);
    close_thread(t);
}

#define SALT_MAX_BYTES 4096

static int open_log(struct daemon *d)
{
    const struct serve_config *c = &d->config;
    struct reqlog_options o = {.path = c->log_file, .rotate_bytes = c->log_rotate_bytes};
    char error[REQLOG_ERROR_BYTES], salt[SALT_MAX_BYTES];
    if (!c->log_file[0])
        return 0;
    if (c->log_salt_file[0]) {
        FILE *f = fopen(c->log_salt_file, "r");
        o.salt_len = f ? fread(salt, 1, sizeof salt, f) : 0;
        if (f)
            fclose(f);
        if (o.salt_len < REQLOG_SALT_MIN_BYTES)
            return cli_fail(
                COMMAND, "request_log.salt_file: %.200s cannot be read, or has less than %u bytes",
                c->log_salt_file, REQLOG_SALT_MIN_BYTES);
        o.salt = salt;
    }
    d->serve.log = reqlog_open(&o, error);
    return d->serve.log ? 0 : cli_fail(COMMAND, "%s", error);
}

static int open_all(struct daemon *d)
{
    const struct serve_config *c = &d->config;
    char error[PROXY_ERROR_BYTES];
    if (open_log(d))
        return 2;
    d->n_threads = c->set.threads;
    if (d->sockets.n_data > d->n_threads) { /* none may be left without somebody who accepts */
        d->n_threads = d->sockets.n_data;
        fprintf(stderr, "weir serve: %u sockets were handed over: as many threads\n", d->n_threads);
    }
    d->threads = calloc(d->n_threads, sizeof *d->threads);
    d->proxies = calloc(d->n_threads, sizeof *d->proxies);
    if (!d->threads || !d->proxies)
        return cli_fail(COMMAND, "out of memory");
    for (uint32_t i = 0; i < d->n_threads; i++) {
        int rc = open_thread(d, i);
        if (rc)
            return rc;
    }
    struct thread *first = &d->threads[0];
    d->poller = poller_new(&d->serve, first->proxy, first->http, c->poll_ms);
    if (!d->poller)
        return cli_fail(COMMAND, "out of memory");
    if (strcmp(c->state, "none") != 0) {
        d->shared = shared_new(&d->serve, first->proxy, &first->uv, &c->redis, error);
        if (!d->shared)
            return cli_fail(COMMAND, "state: %s", error);
    }
    struct metrics_view view = {.serve = &d->serve,
                                .shared = d->shared,
                                .proxies = d->proxies,
                                .n_proxies = d->n_threads,
                                .poller = d->poller,
                                .http = first->http};
    d->admin = admin_new(first->http, c->admin_host, c->admin_port, d->sockets.admin,
                         c->admin_token, &view, d->poller, error);
    if (!d->admin)
        return cli_fail(COMMAND, "%s", error);
    if (uv_async_init(&first->uv, &d->ended, on_ended) ||
        uv_async_init(&first->uv, &d->applied, on_applied))
        return cli_fail(COMMAND, "no event loop: %s", strerror(errno));
    d->ended.data = d->applied.data = d;
    d->reload = (struct reload){.serve = &d->serve,
                                .config = &d->config,
                                .args = &d->args,
                                .proxy = first->proxy,
                                .poller = d->poller,
                                .http = first->http,
                                .spread = spread,
                                .user = d};
    reload_init(&d->reload);
    d->successor.done = on_successor;
    d->successor.user = d;
    successor_init(&d->successor);
    atomic_store(&d->running, d->n_threads);
    uv_signal_init(&first->uv, &d->term);
    uv_signal_init(&first->uv, &d->intr);
    uv_signal_init(&first->uv, &d->hup);
    uv_signal_init(&first->uv, &d->usr2);
    uv_timer_init(&first->uv, &d->readiness);
    d->term.data = d->intr.data = d->hup.data = d->usr2.data = d->readiness.data = d;
    d->started_ms = uv_now(&first->uv);
    uv_timer_start(&d->readiness, on_readiness, 0, READY_LOOK_MS);
    uv_signal_start(&d->usr2, on_usr2, SIGUSR2);
    uv_signal_start(&d->hup, on_hup, SIGHUP);
    uv_signal_start(&d->term, on_signal, SIGTERM);
    uv_signal_start(&d->intr, on_signal, SIGINT);
    return 0;
}

static int run_all(struct daemon *d)
{
    const struct serve_config *c = &d->config;
    uint32_t n = 0;
    for (uint32_t i = 0; i < d->serve.n_workers; i++)
        n += d->serve.workers[i].present;
    signal(SIGPIPE, SIG_IGN);
    for (uint32_t i = 1; i < d->n_threads; i++) {
        if (uv_thread_create(&d->threads[i].id, run_thread, &d->threads[i]))
            return cli_fail(COMMAND, "no thread can be made");
    }
    printf("weir serve: listening on %s:%u, admin on %s:%u; %u worker%s, ", c->set.listen_host,
           proxy_port(d->proxies[0]), c->admin_host, admin_port(d->admin), n, n == 1 ? "" : "s");
    if (c->n_pools == 1)
        printf("policy %s\n", c->pools[0].policy);
    else
        printf("%u pools\n", c->n_pools);
    fflush(stdout);
    run_thread(&d->threads[0]);
    for (uint32_t i = 1; i < d->n_threads; i++)
        uv_thread_join(&d->threads[i].id);
    for (uint32_t i = 0; i < d->n_threads; i++)
        proxy_free(d->proxies[i]);
    reqlog_close(d->serve.log);
    return 0;
}

/* One line a pool, for --check. */
static int describe(const struct serve_config *c)
{
    for (uint32_t i = 0; i < c->n_pools; i++) {
        const struct config_pool *p = &c->pools[i];
        printf("pool %s: %u worker%s, policy %s%s%s, %u model name%s\n", p->name, p->n_workers,
               p->n_workers == 1 ? "" : "s", p->policy, p->dialect ? ", hand-over " : "",
               p->dialect ? p->dialect->name : "", p->n_models, p->n_models == 1 ? "" : "s");
    }
    printf("listens on %s, admin on %s; %u tenant%s, %u route%s: the config is good\n", c->listen,
           c->admin, c->n_tenants, c->n_tenants == 1 ? "" : "s", c->n_routes,
           c->n_routes == 1 ? "" : "s");
    return 0;
}

static int start(struct daemon *d)
{
    char error[YTREE_ERROR_BYTES];
    raise_files();
    if (sockets_inherit(&d->sockets, error) || serve_init(&d->serve, &d->config, error))
        return cli_fail(COMMAND, "%s", error);
    int rc = open_all(d);
    if (!rc)
        rc = run_all(d);
    if (!rc) { /* after a failed start the process ends, and all that with it */
        serve_deinit(&d->serve);
        free(d->threads);
        free(d->proxies);
    }
    return rc;
}

int serve_main(int argc, char **argv)
{
    static struct daemon d;
    char error[YTREE_ERROR_BYTES];
    int rc = config_args_read(&d.args, argc, argv, error);
    if (!rc)
        rc = config_load(&d.config, &d.args, error);
    if (rc < 0)
        rc = cli_fail(COMMAND, "%s", error);
    else if (rc > 0)
        rc = 0; /* it has answered: --help */
    else if (d.args.check)
        rc = serve_check(&d.config, error) ? cli_fail(COMMAND, "%s", error) : describe(&d.config);
    else {
        d.successor.argv = argv - 1; /* the program's name is before the command: main.c */
        rc = start(&d);
    }
    config_free(&d.config);
    config_args_free(&d.args);
    return rc;
}
