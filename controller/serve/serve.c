/* serve.c - `weir serve`: its options, its threads, its signals.
 *
 *   main thread = loop 0: proxy, poller, admin listener, signals
 *   thread i    = loop i: proxy
 *
 * SIGTERM and SIGINT drain: no more connections are taken, requests in the path end, then the process does; a second one
 * ends it at once.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "controller/commands.h"
#include "controller/core/policy.h"
#include "controller/http/http_tls.h"
#include "controller/serve/admin.h"

#define MAX_WORKER_OPTIONS SERVE_MAX_WORKERS

struct options {
    struct serve_settings set;
    const char *policy;
    const char *admin_host;
    uint16_t admin_port;
    char admin_token[ADMIN_MAX_TOKEN];
    uint32_t poll_ms;
    uint32_t queue_max_requests, max_inflight_per_worker, max_retries;
    int64_t queue_timeout_ps;
    uint64_t seed;
    const struct handover_dialect *dialect;
    struct serve_worker *workers;
    uint32_t n_workers;
};

struct thread {
    uv_thread_t id;
    uv_loop_t uv;
    uv_async_t drain;
    struct http_loop *http;
    struct proxy *proxy;
    struct daemon *daemon;
    bool started;
};

struct daemon {
    struct serve serve;
    struct serve_pool pool;
    struct thread *threads;
    uint32_t n_threads;
    struct proxy **proxies;
    struct poller *poller;
    struct admin *admin;
    uv_signal_t term, intr;
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

/* ---- options */

static const char help[] =
    "usage: weir serve --worker URL [--worker URL...] [OPTIONS]\n"
    "\n"
    "Stands in front of OpenAI-compatible engines (vLLM, SGLang, TensorRT-LLM) and sends each request where the policy\n"
    "says. One worker address is enough to start.\n"
    "\n"
    "workers\n"
    "  -w, --worker URL         http://HOST:PORT or https://..., with what is known of it behind a '#', as in\n"
    "                           http://10.0.0.1:8000#role=prefill,bootstrap_port=8998 (role: both, prefill, decode;\n"
    "                           bootstrap_port, engine_id, kv_address: for the hand-over dialects; name; blocks,\n"
    "                           block_size, max_model_len: where the engine's metrics do not tell)\n"
    "      --handover DIALECT   how prefill and decode workers hand over: nixl, sglang, mooncake, p2p_nccl,\n"
    "                           offloading (nixl)\n"
    "      --poll MS            interval at which the engines' metrics are read (100)\n"
    "routing\n"
    "  -p, --policy NAME        (least_loaded); `weir policies` lists them\n"
    "      --seed N             for everything random (1)\n"
    "      --max-inflight N     requests at one worker at a time, the rest waits here; 0: no limit (0)\n"
    "      --queue N            requests that wait here; the next one gets 429 (10000)\n"
    "      --queue-timeout MS   longest wait; then 504 (60000)\n"
    "      --retries N          other workers that are tried when one is lost before it answered (2)\n"
    "      --slo-ttft MS, --slo-tpot MS   deadlines of requests that bring none (none)\n"
    "listening\n"
    "  -l, --listen HOST:PORT   (127.0.0.1:8080)\n"
    "      --threads N          event loops (1)\n"
    "      --tls-cert FILE, --tls-key FILE   PEM; without them: plain HTTP\n"
    "      --upstream-ca FILE   PEM that https workers are verified with (the system's)\n"
    "      --admin HOST:PORT    health, metrics, state (127.0.0.1:9090); see --admin-token-file\n"
    "      --admin-token-file FILE   bearer token; needed where --admin is not loopback\n"
    "      --allow PATH         another path of the engines that clients may use (may be repeated)\n"
    "limits and headers\n"
    "      --max-body BYTES     of a request (67108864)\n"
    "      --max-connections N  of one thread (16384)\n"
    "      --first-byte MS      from dispatch to the first byte of a worker's answer; then it counts as lost; 0: no limit\n"
    "                           (600000, the default timeout of OpenAI's clients)\n"
    "      --stall MS           between two pieces of an answer; 0: no limit (60000)\n"
    "      --hold-comments MS   a held stream gets an SSE comment this often; 0: never (0)\n"
    "      --trust-headers      priority, session, tenant and SLO headers of clients count\n"
    "      --tenant-header NAME header that names the tenant (else the API key does, or `user`)\n"
    "      --explain            responses carry x-weir-worker and x-weir-head-us\n"
    "other\n"
    "      --metrics-page       print the page that documents every metric, and end\n"
    "  -h, --help\n"
    "\n"
    "exit status: 0 drained and ended, 2 bad options or an address that cannot be had\n";

enum {
    OPT_HANDOVER = 256,
    OPT_POLL,
    OPT_SEED,
    OPT_INFLIGHT,
    OPT_QUEUE,
    OPT_QUEUE_TIMEOUT,
    OPT_RETRIES,
    OPT_TTFT,
    OPT_TPOT,
    OPT_THREADS,
    OPT_CERT,
    OPT_KEY,
    OPT_CA,
    OPT_ADMIN,
    OPT_TOKEN,
    OPT_ALLOW,
    OPT_BODY,
    OPT_CONNECTIONS,
    OPT_FIRST_BYTE,
    OPT_STALL,
    OPT_COMMENTS,
    OPT_TRUST,
    OPT_TENANT,
    OPT_EXPLAIN,
    OPT_PAGE
};

static const struct option options[] = {
    {"worker", required_argument, NULL, 'w'},
    {"handover", required_argument, NULL, OPT_HANDOVER},
    {"poll", required_argument, NULL, OPT_POLL},
    {"policy", required_argument, NULL, 'p'},
    {"seed", required_argument, NULL, OPT_SEED},
    {"max-inflight", required_argument, NULL, OPT_INFLIGHT},
    {"queue", required_argument, NULL, OPT_QUEUE},
    {"queue-timeout", required_argument, NULL, OPT_QUEUE_TIMEOUT},
    {"retries", required_argument, NULL, OPT_RETRIES},
    {"slo-ttft", required_argument, NULL, OPT_TTFT},
    {"slo-tpot", required_argument, NULL, OPT_TPOT},
    {"listen", required_argument, NULL, 'l'},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"tls-cert", required_argument, NULL, OPT_CERT},
    {"tls-key", required_argument, NULL, OPT_KEY},
    {"upstream-ca", required_argument, NULL, OPT_CA},
    {"admin", required_argument, NULL, OPT_ADMIN},
    {"admin-token-file", required_argument, NULL, OPT_TOKEN},
    {"allow", required_argument, NULL, OPT_ALLOW},
    {"max-body", required_argument, NULL, OPT_BODY},
    {"max-connections", required_argument, NULL, OPT_CONNECTIONS},
    {"first-byte", required_argument, NULL, OPT_FIRST_BYTE},
    {"stall", required_argument, NULL, OPT_STALL},
    {"hold-comments", required_argument, NULL, OPT_COMMENTS},
    {"trust-headers", no_argument, NULL, OPT_TRUST},
    {"tenant-header", required_argument, NULL, OPT_TENANT},
    {"explain", no_argument, NULL, OPT_EXPLAIN},
    {"metrics-page", no_argument, NULL, OPT_PAGE},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

__attribute__((format(printf, 1, 2))) static int complain(const char *format, ...)
{
    va_list args;
    fputs("weir serve: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return 2;
}

static int read_number(const char *name, const char *text, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || *out > max)
        return complain("%s takes a whole number from 0 to %llu, not '%s'", name,
                        (unsigned long long)max, text);
    return 0;
}

static int read_u32(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t *out)
{
    uint64_t x;
    int rc = read_number(name, text, max, &x);
    if (!rc && x < min)
        rc = complain("%s takes a whole number from %u to %u, not '%s'", name, min, max, text);
    *out = (uint32_t)x;
    return rc;
}

static int read_text(const char *name, const char *text, char *out, size_t cap)
{
    if (strlen(text) >= cap)
        return complain("%s takes at most %zu bytes", name, cap - 1);
    memcpy(out, text, strlen(text) + 1);
    return 0;
}

/* HOST:PORT, [IPV6]:PORT */
static int read_address(const char *name, const char *text, char host[SERVE_HOST_BYTES],
                        uint16_t *port)
{
    const char *colon = strrchr(text, ':'), *from = text, *to = colon;
    uint64_t number;
    if (!colon || colon == text)
        return complain("%s takes HOST:PORT, not '%s'", name, text);
    if (*from == '[' && to[-1] == ']') {
        from++;
        to--;
    }
    if ((size_t)(to - from) >= SERVE_HOST_BYTES || to <= from)
        return complain("%s: the host of '%s' is empty or too long", name, text);
    memcpy(host, from, (size_t)(to - from));
    host[to - from] = '\0';
    if (read_number(name, colon + 1, 65535, &number))
        return 2;
    *port = (uint16_t)number;
    return 0;
}

static int worker_detail(struct serve_worker *w, const char *name, const char *value)
{
    static const char *const roles[] = {"both", "prefill", "decode"};
    uint32_t n = 0;
    if (!strcmp(name, "role")) {
        for (int i = 0; i < 3; i++) {
            if (!strcmp(value, roles[i])) {
                w->core.role = (enum worker_role)i;
                return 0;
            }
        }
        return complain("--worker: role is both, prefill or decode, not '%s'", value);
    }
    if (!strcmp(name, "name"))
        return read_text("--worker: name", value, w->name, sizeof w->name);
    if (!strcmp(name, "engine_id"))
        return read_text("--worker: engine_id", value, w->engine_id, sizeof w->engine_id);
    if (!strcmp(name, "kv_address"))
        return read_text("--worker: kv_address", value, w->kv_address, sizeof w->kv_address);
    if (!strcmp(name, "bootstrap_port")) {
        int rc = read_u32("--worker: bootstrap_port", value, 1, 65535, &n);
        w->bootstrap_port = (uint16_t)n;
        return rc;
    }
    if (!strcmp(name, "blocks"))
        return read_u32("--worker: blocks", value, 1, ENGINE_MAX_BLOCKS, &w->core.num_gpu_blocks);
    if (!strcmp(name, "block_size"))
        return read_u32("--worker: block_size", value, 1, ENGINE_MAX_BLOCK_SIZE,
                        &w->core.block_size);
    if (!strcmp(name, "max_model_len"))
        return read_u32("--worker: max_model_len", value, 1, ENGINE_MAX_TOKENS,
                        &w->core.max_model_len);
    return complain(
        "--worker: no detail is called '%s' (role, name, bootstrap_port, engine_id, kv_address, blocks, "
        "block_size, max_model_len)",
        name);
}

static bool is_plain(const char *s)
{
    for (; *s; s++) {
        if (*s < 0x21 || *s > 0x7e || *s == '"' || *s == '\\' || *s == '/')
            return false;
    }
    return true;
}

/* http://HOST[:PORT][/][#name=value,...] */
static int add_worker(struct options *o, const char *url)
{
    char text[SERVE_HOST_BYTES + 8], details[4 * SERVE_HOST_BYTES], *detail, *save = NULL;
    if (o->n_workers == MAX_WORKER_OPTIONS)
        return complain("more than %u workers", MAX_WORKER_OPTIONS);
    struct serve_worker *w = &o->workers[o->n_workers];
    *w = (struct serve_worker){.index = o->n_workers,
                               .core = {.role = ROLE_BOTH,
                                        .block_size = OPENAI_CHUNK_TOK,
                                        .num_gpu_blocks = ENGINE_MAX_BLOCKS / 16,
                                        .max_num_seqs = ENGINE_MAX_SEQS,
                                        .max_num_batched_tokens = ENGINE_MAX_TOKENS}};
    w->tls = !strncmp(url, "https://", 8);
    if (!w->tls && strncmp(url, "http://", 7))
        return complain("--worker takes http://HOST:PORT or https://HOST:PORT, not '%s'", url);
    const char *rest = url + (w->tls ? 8 : 7), *hash = strchrnul(rest, '#');
    if ((size_t)(hash - rest) >= SERVE_HOST_BYTES)
        return complain("--worker: the address of '%.60s...' is too long", url);
    snprintf(text, sizeof text, "%.*s", (int)(hash - rest), rest);
    if (read_text("--worker: details", *hash ? hash + 1 : "", details, sizeof details))
        return 2;
    size_t len = strlen(text);
    if (len && text[len - 1] == '/')
        text[--len] = '\0';
    if (!strrchr(text, ':') || strrchr(text, ':') < strrchr(text, ']'))
        snprintf(text + len, sizeof text - len, w->tls ? ":443" : ":80");
    if (strchr(text, '/'))
        return complain("--worker: paths are not for workers: '%s'", url);
    if (read_address("--worker", text, w->host, &w->port))
        return 2;
    snprintf(w->name, sizeof w->name, "%.240s", text);
    for (detail = strtok_r(details, ",", &save); detail; detail = strtok_r(NULL, ",", &save)) {
        char *eq = strchr(detail, '=');
        if (!eq)
            return complain("--worker: expected name=value behind '#', not '%s'", detail);
        *eq = '\0';
        if (worker_detail(w, detail, eq + 1))
            return 2;
    }
    if (!is_plain(w->name))
        return complain("--worker: the name '%s' has blanks, quotes or slashes", w->name);
    for (uint32_t i = 0; i < o->n_workers; i++) {
        if (!strcmp(o->workers[i].name, w->name))
            return complain("--worker: '%s' is given twice", w->name);
    }
    o->n_workers++;
    return 0;
}

static int read_token(struct options *o, const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return complain("--admin-token-file: %s: %s", path, strerror(errno));
    size_t n = fread(o->admin_token, 1, sizeof o->admin_token - 1, f);
    fclose(f);
    o->admin_token[n] = '\0';
    o->admin_token[strcspn(o->admin_token, "\r\n")] = '\0';
    if (!o->admin_token[0])
        return complain("--admin-token-file: %s is empty", path);
    return 0;
}

static int read_ms(const char *name, const char *text, int64_t *ps)
{
    uint32_t ms;
    int rc = read_u32(name, text, 1, INT32_MAX, &ms);
    *ps = (int64_t)ms * PS_PER_MS;
    return rc;
}

static int read_option(struct options *o, int opt)
{
    static char admin_host[SERVE_HOST_BYTES];
    struct serve_settings *s = &o->set;
    uint64_t n;
    switch (opt) {
    case 'w': return add_worker(o, optarg);
    case 'l': return read_address("--listen", optarg, s->listen_host, &s->listen_port);
    case 'p':
        o->policy = optarg;
        return core_policy_find(optarg)
                   ? 0
                   : complain("no policy is called '%s' (weir policies lists them)", optarg);
    case OPT_HANDOVER:
        o->dialect = handover_find(optarg);
        return o->dialect
                   ? 0
                   : complain(
                         "--handover takes nixl, sglang, mooncake, p2p_nccl or offloading, not '%s'",
                         optarg);
    case OPT_POLL: return read_u32("--poll", optarg, 10, 3600000, &o->poll_ms);
    case OPT_SEED: return read_number("--seed", optarg, UINT64_MAX, &o->seed);
    case OPT_INFLIGHT:
        return read_u32("--max-inflight", optarg, 0, CORE_MAX_REQUESTS,
                        &o->max_inflight_per_worker);
    case OPT_QUEUE:
        return read_u32("--queue", optarg, 0, CORE_MAX_REQUESTS, &o->queue_max_requests);
    case OPT_QUEUE_TIMEOUT: return read_ms("--queue-timeout", optarg, &o->queue_timeout_ps);
    case OPT_RETRIES: return read_u32("--retries", optarg, 0, 100, &o->max_retries);
    case OPT_TTFT: return read_ms("--slo-ttft", optarg, &s->slo_ttft_ps);
    case OPT_TPOT: return read_ms("--slo-tpot", optarg, &s->slo_tpot_ps);
    case OPT_THREADS: return read_u32("--threads", optarg, 1, HUB_MAX_LOOPS, &s->threads);
    case OPT_CERT: return read_text("--tls-cert", optarg, s->tls_cert, sizeof s->tls_cert);
    case OPT_KEY: return read_text("--tls-key", optarg, s->tls_key, sizeof s->tls_key);
    case OPT_CA: return read_text("--upstream-ca", optarg, s->upstream_ca, sizeof s->upstream_ca);
    case OPT_ADMIN:
        o->admin_host = admin_host;
        return read_address("--admin", optarg, admin_host, &o->admin_port);
    case OPT_TOKEN: return read_token(o, optarg);
    case OPT_ALLOW:
        if (s->n_allowed == SERVE_MAX_ALLOWED || *optarg != '/')
            return complain("--allow takes a path that starts with /, at most %u times",
                            SERVE_MAX_ALLOWED);
        return read_text("--allow", optarg, s->allowed[s->n_allowed++], SERVE_HOST_BYTES);
    case OPT_BODY:
        if (read_number("--max-body", optarg, UINT64_C(1) << 40, &n))
            return 2;
        s->max_body_bytes = n;
        return 0;
    case OPT_CONNECTIONS:
        return read_u32("--max-connections", optarg, 1, 1 << 20, &s->max_connections);
    case OPT_FIRST_BYTE:
        return read_u32("--first-byte", optarg, 0, INT32_MAX, &s->first_byte_timeout_ms);
    case OPT_STALL: return read_u32("--stall", optarg, 0, INT32_MAX, &s->stall_timeout_ms);
    case OPT_COMMENTS:
        return read_u32("--hold-comments", optarg, 0, INT32_MAX, &s->hold_comment_ms);
    case OPT_TRUST: s->trust_headers = true; return 0;
    case OPT_TENANT:
        return read_text("--tenant-header", optarg, s->tenant_header, sizeof s->tenant_header);
    case OPT_EXPLAIN: s->explain_headers = true; return 0;
    case OPT_PAGE: metrics_write_page(stdout); return -1;
    case 'h': fputs(help, stdout); return -1;
    default: return complain("see weir serve --help");
    }
}

static int check_options(struct options *o)
{
    uint32_t prefill = 0, decode = 0;
    if (!o->n_workers)
        return complain("no worker is given: --worker http://HOST:PORT (see weir serve --help)");
    for (uint32_t i = 0; i < o->n_workers; i++) {
        prefill += o->workers[i].core.role == ROLE_PREFILL;
        decode += o->workers[i].core.role == ROLE_DECODE;
    }
    if (!prefill != !decode)
        return complain("prefill and decode workers come together: there are %u and %u", prefill,
                        decode);
    if (!o->set.tls_cert[0] != !o->set.tls_key[0])
        return complain("--tls-cert and --tls-key come together");
    if (!prefill)
        o->dialect = NULL;
    else if (!o->dialect)
        o->dialect = handover_find("nixl");
    return 0;
}

static int read_options(struct options *o, int argc, char **argv)
{
    int opt, rc = 0;
    *o = (struct options){.policy = "least_loaded",
                          .admin_host = "127.0.0.1",
                          .admin_port = 9090,
                          .poll_ms = 100,
                          .queue_max_requests = 10000,
                          .queue_timeout_ps = 60 * PS_PER_S,
                          .max_retries = 2,
                          .seed = 1,
                          .set = {.listen_host = "127.0.0.1",
                                  .listen_port = 8080,
                                  .threads = 1,
                                  .max_body_bytes = UINT64_C(64) << 20,
                                  .max_buffered_bytes = UINT64_C(1) << 30,
                                  .max_connections = 16384,
                                  .header_timeout_ms = 10000,
                                  .body_timeout_ms = 30000,
                                  .idle_timeout_ms = 75000,
                                  .write_timeout_ms = 60000,
                                  .connect_timeout_ms = 5000,
                                  .first_byte_timeout_ms = 600000,
                                  .stall_timeout_ms = 60000,
                                  .slo_ttft_ps = PS_NEVER,
                                  .slo_tpot_ps = PS_NEVER,
                                  .bytes_per_tok = 4}};
    o->workers = calloc(MAX_WORKER_OPTIONS, sizeof *o->workers);
    if (!o->workers)
        return complain("out of memory");
    optind = 1;
    while (!rc && (opt = getopt_long(argc, argv, "w:l:p:h", options, NULL)) != -1)
        rc = read_option(o, opt);
    if (!rc && optind < argc)
        rc = complain("'%s' is not an option (see weir serve --help)", argv[optind]);
    return rc ? rc : check_options(o);
}

/* ---- the shared part */

static int make_hub(struct daemon *d, const struct options *o)
{
    const char *why = NULL;
    struct core_worker_config *workers = calloc(o->n_workers, sizeof *workers);
    for (uint32_t i = 0; workers && i < o->n_workers; i++)
        workers[i] = o->workers[i].core; /* down until the poller has heard of them */
    struct core_config c = {.policy = o->policy,
                            .seed = o->seed,
                            .n_workers = o->n_workers,
                            .workers = workers,
                            .queue_max_requests = o->queue_max_requests,
                            .queue_max_bytes = UINT64_C(256) << 20,
                            .fair_quantum_tok = 2048,
                            .queue_timeout_ps = o->queue_timeout_ps,
                            .max_inflight_per_worker = o->max_inflight_per_worker,
                            .max_retries = o->max_retries,
                            .retry = CORE_RETRY_USUAL,
                            .health = CORE_HEALTH_USUAL,
                            .destination_first = o->dialect && o->dialect->at_once,
                            .max_requests = 1 << 20};
    d->pool.hub = workers ? hub_new(&c, &why) : NULL;
    free(workers);
    return d->pool.hub ? 0 : complain("%s", why ? why : "out of memory");
}

static int make_tls(struct serve *s)
{
    char error[PROXY_ERROR_BYTES];
    bool any = false;
    for (uint32_t i = 0; i < s->n_workers; i++)
        any |= s->workers[i].tls;
    if (any) {
        struct http_tls_options client = {.ca_file =
                                              s->set.upstream_ca[0] ? s->set.upstream_ca : NULL};
        s->upstream_tls = http_tls_client_new(&client, error, sizeof error);
        if (!s->upstream_tls)
            return complain("%s", error);
    }
    if (s->set.tls_cert[0]) {
        struct http_tls_options server = {.cert_file = s->set.tls_cert, .key_file = s->set.tls_key};
        s->listen_tls = http_tls_server_new(&server, error, sizeof error);
        if (!s->listen_tls)
            return complain("%s", error);
    }
    return 0;
}

static int make_serve(struct daemon *d, const struct options *o)
{
    struct serve *s = &d->serve;
    s->set = o->set;
    s->pools = &d->pool;
    s->n_pools = 1;
    s->workers = o->workers;
    s->n_workers = o->n_workers;
    snprintf(d->pool.name, sizeof d->pool.name, "main");
    d->pool.dialect = o->dialect;
    d->pool.n_workers = o->n_workers;
    if (uv_rwlock_init(&s->models_lock))
        return complain("out of memory");
    int rc = make_tls(s);
    return rc ? rc : make_hub(d, o);
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
    admin_close(d->admin);
    poller_close(d->poller);
    proxy_close(d->proxies[0]);
    uv_close((uv_handle_t *)&d->term, NULL);
    uv_close((uv_handle_t *)&d->intr, NULL);
    uv_close((uv_handle_t *)&d->ended, NULL);
}

static void on_thread_drained(void *user)
{
    struct thread *t = user;
    struct daemon *d = t->daemon;
    uv_close((uv_handle_t *)&t->drain, NULL);
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

static void on_signal(uv_signal_t *handle, int number)
{
    struct daemon *d = handle->data;
    if (d->signals++) {
        fprintf(stderr, "weir serve: %s again: ending at once\n",
                number == SIGINT ? "SIGINT" : "SIGTERM");
        _exit(1);
    }
    fprintf(stderr, "weir serve: draining: requests in the path end, then so does this process\n");
    atomic_store(&d->serve.draining, true);
    for (uint32_t i = 0; i < d->n_threads; i++)
        uv_async_send(&d->threads[i].drain);
}

static int open_thread(struct daemon *d, uint32_t i)
{
    struct thread *t = &d->threads[i];
    char error[PROXY_ERROR_BYTES];
    t->daemon = d;
    if (uv_loop_init(&t->uv) || uv_async_init(&t->uv, &t->drain, on_drain))
        return complain("no event loop: %s", strerror(errno));
    t->drain.data = t;
    t->http = http_loop_new(&t->uv);
    if (!t->http)
        return complain("out of memory");
    if (i) /* the first one may have let the system choose */
        d->serve.set.listen_port = proxy_port(d->proxies[0]);
    t->proxy = d->proxies[i] = proxy_new(&d->serve, &t->uv, t->http, -1, error);
    return t->proxy ? 0 : complain("%s", error);
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

static int open_all(struct daemon *d, const struct options *o)
{
    char error[PROXY_ERROR_BYTES];
    d->n_threads = o->set.threads;
    d->threads = calloc(d->n_threads, sizeof *d->threads);
    d->proxies = calloc(d->n_threads, sizeof *d->proxies);
    if (!d->threads || !d->proxies)
        return complain("out of memory");
    for (uint32_t i = 0; i < d->n_threads; i++) {
        int rc = open_thread(d, i);
        if (rc)
            return rc;
    }
    struct thread *first = &d->threads[0];
    d->poller = poller_new(&d->serve, first->proxy, first->http, o->poll_ms);
    if (!d->poller)
        return complain("out of memory");
    struct metrics_view view = {.serve = &d->serve,
                                .proxies = d->proxies,
                                .n_proxies = d->n_threads,
                                .poller = d->poller,
                                .http = first->http};
    d->admin = admin_new(first->http, o->admin_host, o->admin_port, o->admin_token, &view,
                         d->poller, error);
    if (!d->admin)
        return complain("%s", error);
    if (uv_async_init(&first->uv, &d->ended, on_ended))
        return complain("no event loop: %s", strerror(errno));
    d->ended.data = d;
    atomic_store(&d->running, d->n_threads);
    uv_signal_init(&first->uv, &d->term);
    uv_signal_init(&first->uv, &d->intr);
    d->term.data = d->intr.data = d;
    uv_signal_start(&d->term, on_signal, SIGTERM);
    uv_signal_start(&d->intr, on_signal, SIGINT);
    return 0;
}

static int run_all(struct daemon *d, const struct options *o)
{
    signal(SIGPIPE, SIG_IGN);
    for (uint32_t i = 1; i < d->n_threads; i++) {
        if (uv_thread_create(&d->threads[i].id, run_thread, &d->threads[i]))
            return complain("no thread can be made");
    }
    printf("weir serve: listening on %s:%u, admin on %s:%u; %u worker%s, policy %s\n",
           o->set.listen_host, proxy_port(d->proxies[0]), o->admin_host, admin_port(d->admin),
           o->n_workers, o->n_workers == 1 ? "" : "s", o->policy);
    fflush(stdout);
    run_thread(&d->threads[0]);
    for (uint32_t i = 1; i < d->n_threads; i++)
        uv_thread_join(&d->threads[i].id);
    for (uint32_t i = 0; i < d->n_threads; i++)
        proxy_free(d->proxies[i]);
    return 0;
}

int serve_main(int argc, char **argv)
{
    static struct options o;
    static struct daemon d;
    int rc = read_options(&o, argc, argv);
    if (rc) {
        free(o.workers);
        return rc < 0 ? 0 : rc;
    }
    raise_files();
    rc = make_serve(&d, &o);
    if (!rc)
        rc = open_all(&d, &o);
    if (!rc)
        rc = run_all(&d, &o);
    if (!rc) { /* after a failed start the process ends, and all that with it */
        hub_free(d.pool.hub);
        http_tls_free(d.serve.listen_tls);
        http_tls_free(d.serve.upstream_tls);
        uv_rwlock_destroy(&d.serve.models_lock);
        free(d.threads);
        free(d.proxies);
        free(o.workers);
    }
    return rc;
}
