/* agent.c - `weir agent`: beside an engine, publishes its record.
 *
 *   every --interval: GET /metrics (now and then /v1/models) ─► engine_report.h ─► redis_feed.h, with a lease
 *
 * A record goes out every interval whether the engine answers or not: that it does not is what others want to know. When
 * the agent ends, its lease runs out. Redis that is gone costs nothing but that.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/http/http_client.h"
#include "controller/http/http_tls.h"
#include "controller/serve/config.h"
#include "controller/state/redis_feed.h"
#include "controller/state/engine_report.h"

#define NAME "agent"
#define MAX_ANSWER_BYTES (4u << 20)
#define MODELS_EVERY_MS 30000u
#define ANSWER_MS 2000u /* later is none */
#define LEASE_INTERVALS 5u
#define LEASE_MIN_MS 3000u

struct agent {
    uv_loop_t uv;
    struct http_loop *http;
    struct http_client *client;
    struct http_tls *tls;
    struct http_upstream *engine;
    struct http_call *call; /* NULL: none in flight */
    bool asks_models;
    int status;
    char *text;
    size_t len, cap;
    uint64_t models_ms; /* when they were last asked for; 0: never */
    struct redis_feed *feed;
    struct engine_report report;
    uint32_t interval_ms, stall_ms;
    uv_timer_t tick;
    uv_signal_t term, intr;
    bool told_connected;
    enum record_failure told_failure;
};

/* ---- answers */

static void publish(struct agent *a)
{
    struct worker_record *r = &a->report.record;
    r->sequence++;
    r->sent_at_us = redis_feed_unix_us();
    int rc = redis_feed_put_worker(a->feed, r);
    if (rc == WEIR_E_INVALID)
        fprintf(stderr, "weir agent: the engine's figures make no record\n");
    if (a->told_failure != r->failure)
        fprintf(stderr, "weir agent: engine %s: %s%s%s\n", r->name,
                r->failure ? record_failure_name(r->failure) : "well",
                r->failure_detail[0] ? ": " : "", r->failure_detail);
    a->told_failure = r->failure;
    const struct feed_stats *s = redis_feed_stats(a->feed);
    if (s->connected != a->told_connected)
        fprintf(stderr, "weir agent: %s%s\n",
                s->connected ? "Redis answers" : "Redis is lost: ", s->connected ? "" : s->why);
    a->told_connected = s->connected;
}

static void ask(struct agent *a, bool models);

static void answered(struct agent *a)
{
    struct engine_metrics m;
    char why[64];
    a->call = NULL;
    if (a->asks_models) {
        if (a->status == 200)
            engine_report_models(&a->report, a->text, a->len);
        publish(a);
        return;
    }
    if (a->status != 200) {
        snprintf(why, sizeof why, "status %d of /metrics", a->status);
        engine_report_failed(&a->report, RECORD_ERRORS, why);
    } else if (engine_metrics_read(a->text, a->len, &m)) {
        engine_report_failed(&a->report, RECORD_ERRORS,
                             "/metrics is not an engine's that is known");
    } else {
        engine_report_page(&a->report, &m, uv_now(&a->uv), redis_feed_unix_us(), a->stall_ms);
        if (!a->models_ms || uv_now(&a->uv) - a->models_ms > MODELS_EVERY_MS) {
            ask(a, true);
            return;
        }
    }
    publish(a);
}

static bool keep(struct agent *a, struct http_slice s)
{
    if (a->len + s.len > MAX_ANSWER_BYTES)
        return false;
    if (a->len + s.len > a->cap) {
        size_t cap = 2 * (a->len + s.len);
        char *text = realloc(a->text, cap);
        if (!text)
            return false;
        a->text = text;
        a->cap = cap;
    }
    memcpy(a->text + a->len, s.s, s.len);
    a->len += s.len;
    return true;
}

static void part(void *user, struct http_call *call, const struct http_part *p)
{
    struct agent *a = user;
    if (p->head)
        a->status = p->head->status;
    for (size_t i = 0; i < p->n; i++) {
        if (keep(a, p->data[i]))
            continue;
        http_call_cancel(call);
        a->call = NULL;
        engine_report_failed(&a->report, RECORD_ERRORS, "its answer is larger than 4 MiB");
        publish(a);
        return;
    }
    if (p->last)
        answered(a);
}

static void failed(void *user, struct http_call *call, const struct http_failure *f)
{
    struct agent *a = user;
    (void)call;
    a->call = NULL;
    if (f->why == HTTP_FAIL_SHUTDOWN)
        return;
    if (!a->asks_models)
        engine_report_failed(&a->report,
                             f->why == HTTP_FAIL_PROTOCOL ? RECORD_ERRORS : RECORD_UNREACHABLE,
                             f->detail ? f->detail : http_fail_text(f->why));
    publish(a);
}

static void ask(struct agent *a, bool models)
{
    static const struct http_call_ops ops = {.part = part, .failed = failed};
    const char *path = models ? "/v1/models" : "/metrics";
    a->asks_models = models;
    a->len = 0;
    a->status = 0;
    if (models)
        a->models_ms = uv_now(&a->uv);
    a->call = http_call_new(a->engine, &ops, a);
    int rc = http_call_request(a->call, HTTP_M_GET, (struct http_slice){path, strlen(path)});
    if (!rc)
        rc = http_call_send(a->call, NULL, 0);
    if (!rc) {
        http_call_timeout(a->call, ANSWER_MS);
        return;
    }
    a->call = NULL;
    engine_report_failed(&a->report, RECORD_UNREACHABLE, "no connection can be opened");
    publish(a);
}

static void on_tick(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    if (!a->call)
        ask(a, false);
}

/* ---- the beginning and the end */

static void on_signal(uv_signal_t *handle, int number)
{
    struct agent *a = handle->data;
    (void)number;
    uv_close((uv_handle_t *)&a->tick, NULL);
    uv_close((uv_handle_t *)&a->term, NULL);
    uv_close((uv_handle_t *)&a->intr, NULL);
    http_client_close(a->client);
    redis_feed_close(a->feed);
    http_loop_free(a->http);
}

static const char help[] =
    "usage: weir agent --engine URL --redis URL [OPTIONS]\n"
    "\n"
    "Beside an engine (vLLM, SGLang, TensorRT-LLM): reads its metrics and publishes its state, with a lease, for the\n"
    "controllers that have the same Redis as `state:`. They tell workers apart by the HOST:PORT under which they know\n"
    "them.\n"
    "\n"
    "      --engine URL         http://HOST:PORT or https://HOST:PORT, as in the controllers' configs\n"
    "      --redis URL          redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// or unix://PATH; better in the\n"
    "                           environment variable WEIR_REDIS where it has a password\n"
    "      --role ROLE          both, prefill or decode (both)\n"
    "      --name HOST:PORT     the name for controllers, where they know the engine under another address\n"
    "      --interval MS        between two records (1000)\n"
    "      --stall MS           requests run and no token comes: stalled, after that long (10000)\n"
    "  -h, --help\n"
    "\n"
    "exit status: 0 ended by SIGTERM or SIGINT, 2 bad options\n";

enum { A_ENGINE = 256, A_REDIS, A_ROLE, A_NAME, A_INTERVAL, A_STALL };

static const struct option options[] = {
    {"engine", required_argument, NULL, A_ENGINE},
    {"redis", required_argument, NULL, A_REDIS},
    {"role", required_argument, NULL, A_ROLE},
    {"name", required_argument, NULL, A_NAME},
    {"interval", required_argument, NULL, A_INTERVAL},
    {"stall", required_argument, NULL, A_STALL},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

struct settings {
    struct config_worker engine;
    struct redis_url redis;
    const char *redis_text, *name; /* name NULL: HOST:PORT of the engine */
    enum worker_role role;
    uint64_t interval_ms, stall_ms;
};

static int read_role(struct settings *s)
{
    static const char *const roles[] = {"both", "prefill", "decode"};
    for (int i = 0; i <= ROLE_DECODE; i++) {
        if (!strcmp(optarg, roles[i])) {
            s->role = (enum worker_role)i;
            return 0;
        }
    }
    return cli_unknown(NAME, "role", optarg, "both prefill decode",
                       "expected both, prefill or decode");
}

/* 0, an exit status, or -1: --help has answered. */
static int read_option(struct settings *s, int opt, char **argv)
{
    switch (opt) {
    case A_ENGINE:
        if (strlen(optarg) >= sizeof s->engine.url)
            return cli_fail(NAME, "--engine: expected at most %zu bytes", sizeof s->engine.url - 1);
        snprintf(s->engine.url, sizeof s->engine.url, "%s", optarg);
        return 0;
    case A_REDIS: s->redis_text = optarg; return 0;
    case A_ROLE: return read_role(s);
    case A_NAME:
        if (!*optarg || strlen(optarg) >= RECORD_NAME_BYTES || strpbrk(optarg, " \"\\"))
            return cli_fail(NAME, "--name: expected HOST:PORT");
        s->name = optarg;
        return 0;
    case A_INTERVAL:
        if (!cli_whole(optarg, 50, 600000, &s->interval_ms))
            return cli_fail(NAME, "--interval: expected 50 to 600000 ms");
        return 0;
    case A_STALL:
        if (!cli_whole(optarg, 100, 3600000, &s->stall_ms))
            return cli_fail(NAME, "--stall: expected 100 to 3600000 ms");
        return 0;
    case 'h': fputs(help, stdout); return -1;
    default: return cli_bad_option(NAME, options, argv, opt);
    }
}

static int read_options(struct settings *s, int argc, char **argv)
{
    int opt, rc = 0;
    const char *why;
    cli_start();
    while (!rc && (opt = getopt_long(argc, argv, ":h", options, NULL)) != -1)
        rc = read_option(s, opt, argv);
    if (rc)
        return rc;
    if (optind < argc)
        return cli_fail(NAME, "'%.60s' is not an option; see weir agent --help", argv[optind]);
    if (!s->engine.url[0] || !s->redis_text)
        return cli_fail(NAME,
                        "--engine and --redis (or WEIR_REDIS) are needed; see weir agent --help");
    why = config_split_url(&s->engine);
    if (why)
        return cli_fail(NAME, "--engine: %s", why);
    if (redis_url_read(&s->redis, s->redis_text, &why))
        return cli_fail(NAME, "--redis: %s", why);
    return 0;
}

static void begin_record(struct agent *a, const struct settings *s)
{
    struct worker_record *r = &a->report.record;
    if (s->name)
        snprintf(r->name, sizeof r->name, "%s", s->name);
    else
        snprintf(r->name, sizeof r->name, "%.240s:%u", s->engine.host, s->engine.port);
    snprintf(r->address, sizeof r->address, "http%s://%.200s:%u", s->engine.tls ? "s" : "",
             s->engine.host, s->engine.port);
    r->role = s->role;
    r->epoch = (uint64_t)redis_feed_unix_us();
    r->lease_ms = LEASE_INTERVALS * a->interval_ms;
    if (r->lease_ms < LEASE_MIN_MS)
        r->lease_ms = LEASE_MIN_MS;
}

static int open_all(struct agent *a, const struct settings *s)
{
    struct http_upstream_options o;
    struct http_tls_options t = {.ca_file = NULL};
    char error[FEED_ERROR_BYTES] = "out of memory";
    if (uv_loop_init(&a->uv) || !(a->http = http_loop_new(&a->uv)) ||
        !(a->client = http_client_new(a->http)))
        return cli_fail(NAME, "out of memory");
    if (s->engine.tls && !(a->tls = http_tls_client_new(&t, error, sizeof error)))
        return cli_fail(NAME, "%s", error);
    http_upstream_defaults(&o);
    o.host = s->engine.host;
    o.port = s->engine.port;
    o.tls = a->tls;
    o.connect_timeout_ms = ANSWER_MS;
    a->engine = http_upstream_new(a->client, &o);
    a->interval_ms = (uint32_t)s->interval_ms;
    a->stall_ms = (uint32_t)s->stall_ms;
    begin_record(a, s);
    a->feed = redis_feed_new(&a->uv, &s->redis, NULL, NULL, a->report.record.epoch, error);
    if (!a->engine || !a->feed)
        return cli_fail(NAME, "%s", error);
    uv_timer_init(&a->uv, &a->tick);
    uv_signal_init(&a->uv, &a->term);
    uv_signal_init(&a->uv, &a->intr);
    a->tick.data = a->term.data = a->intr.data = a;
    uv_signal_start(&a->term, on_signal, SIGTERM);
    uv_signal_start(&a->intr, on_signal, SIGINT);
    uv_timer_start(&a->tick, on_tick, 0, a->interval_ms);
    return 0;
}

int agent_main(int argc, char **argv)
{
    static struct agent a;
    static struct settings s = {.interval_ms = 1000, .stall_ms = 10000};
    s.redis_text = getenv("WEIR_REDIS");
    int rc = read_options(&s, argc, argv);
    if (!rc)
        rc = open_all(&a, &s);
    if (rc)
        return rc < 0 ? 0 : rc;
    signal(SIGPIPE, SIG_IGN);
    printf("weir agent: engine %s as %s, every %u ms\n", a.report.record.address,
           a.report.record.name, a.interval_ms);
    fflush(stdout);
    uv_run(&a.uv, UV_RUN_DEFAULT);
    uv_loop_close(&a.uv);
    http_tls_free(a.tls);
    free(a.text);
    return 0;
}
