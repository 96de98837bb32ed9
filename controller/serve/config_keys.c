/* config_keys.c - the one table of every key of weir serve's config: names, types, ranges, defaults, options, help.
 * Validation, the command line, `weir serve --help-config` and deploy/serve.md come from it. */
#include "controller/serve/config.h"

#include <assert.h>
#include <string.h>

#include "predictor/engine_config.h"
#include "predictor/units.h"

#define MS_MAX ((double)(PS_LIMIT / PS_PER_MS))
#define TIMEOUT_MAX 2147483647.0

#define TOP_AT(field) .offset = offsetof(struct serve_config, field)
#define SET_AT(field) .offset = offsetof(struct serve_config, set.field)
#define POOL_AT(field) .offset = offsetof(struct config_pool, field)
#define WORKER_AT(field) .offset = offsetof(struct config_worker, field)
#define TENANT_AT(field) .offset = offsetof(struct config_tenant, field)
#define ROUTE_AT(field) .offset = offsetof(struct serve_route, field)

/* clang-format off */
static const struct key keys[] = {
    /* ---- top level ---- */
    {CONFIG_TOP, KEY_TEXT, "listen", .min = 1, .def = "127.0.0.1:8080", TOP_AT(listen), .cap = CONFIG_ADDRESS_BYTES,
     .option = "listen", .letter = 'l', .fixed = true, .help = "HOST:PORT that clients connect to; port 0: any that is free"},
    {CONFIG_TOP, KEY_U32, "threads", .unit = "threads", .min = 1, .max = HUB_MAX_LOOPS, .def = "1", SET_AT(threads),
     .option = "threads", .fixed = true, .help = "event loops, each with a listener of its own (SO_REUSEPORT)"},
    {CONFIG_TOP, KEY_U64, "seed", .max = 9e15, .def = "1", TOP_AT(seed), .option = "seed", .fixed = true,
     .help = "for everything random that policies do"},
    {CONFIG_TOP, KEY_INNER, "pools", .default_note = "required",
     .help = "list of pools of workers that serve the same models, see below"},
    {CONFIG_TOP, KEY_INNER, "tenants", .default_note = "none", .help = "list of tenants with a weight or a priority, see below"},
    {CONFIG_TOP, KEY_INNER, "routes", .default_note = "none", .help = "list of paths with deadlines of their own, see below"},
    {CONFIG_TOP, KEY_U32, "poll_ms", .unit = "ms", .min = 10, .max = 3600000, .def = "100", TOP_AT(poll_ms),
     .option = "poll", .fixed = true, .help = "interval at which the engines' metrics are read"},
    {CONFIG_TOP, KEY_TEXT, "state", .min = 1, .def = "none", TOP_AT(state), .cap = REDIS_URL_BYTES, .option = "state", .fixed = true,
     .help = "what this controller shares with others and with `weir agent`: redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// "
             "(TLS) or unix://PATH; none: nothing, only the engines' own metrics count"},
    {CONFIG_TOP, KEY_BOOL, "trust_headers", .def = "false", SET_AT(trust_headers), .option = "trust-headers",
     .help = "priority, session, tenant and SLO headers of clients count"},
    {CONFIG_TOP, KEY_TEXT, "tenant_header", .def = "\"\"", SET_AT(tenant_header), .cap = 64, .option = "tenant-header",
     .help = "header that names the tenant; empty, or absent from a request: its API key does, or `user` of its body"},
    {CONFIG_TOP, KEY_BOOL, "explain", .def = "false", SET_AT(explain_headers), .option = "explain",
     .help = "responses carry x-weir-worker, x-weir-predicted-ttft-ms (from dispatch) and x-weir-overhead-us (before it)"},
    {CONFIG_TOP, KEY_INNER, "request_log", .default_note = "none", .help = "a JSON line for each request, which `weir replay` reads"},
    {CONFIG_TOP, KEY_TEXT, "request_log.file", .def = "\"\"", TOP_AT(log_file), .cap = SERVE_PATH_BYTES, .option = "request-log",
     .fixed = true, .help = "appended to; opened anew at SIGHUP; empty: none is written"},
    {CONFIG_TOP, KEY_U64, "request_log.rotate_bytes", .unit = "bytes", .max = 1e15, .def = "0", TOP_AT(log_rotate_bytes),
     .option = "request-log-rotate", .fixed = true, .help = "at this size FILE becomes FILE.1; 0: never"},
    {CONFIG_TOP, KEY_TEXT, "request_log.salt_file", .def = "\"\"", TOP_AT(log_salt_file), .cap = SERVE_PATH_BYTES,
     .default_note = "random for each process", .fixed = true,
     .help = "file of 8 bytes or more: logs of processes with the same salt name the same prefixes alike"},
    {CONFIG_TOP, KEY_TEXTS, "allow", .default_note = "none", SET_AT(allowed), .cap = SERVE_MAX_ALLOWED, .max = SERVE_HOST_BYTES,
     .count_offset = offsetof(struct serve_config, set.n_allowed), .option = "allow",
     .help = "other paths of the engines that clients may use, each with a leading /"},
    {CONFIG_TOP, KEY_REAL, "bytes_per_token", .unit = "bytes", .min = 1, .max = 16, .def = "4", SET_AT(bytes_per_tok), .fixed = true,
     .help = "of prompts, until a model's own ratio is known from its usage"},

    {CONFIG_TOP, KEY_INNER, "tls", .default_note = "plain HTTP", .help = "certificates, PEM; read again at a reload"},
    {CONFIG_TOP, KEY_TEXT, "tls.cert", .def = "\"\"", SET_AT(tls_cert), .cap = SERVE_PATH_BYTES, .option = "tls-cert",
     .help = "the listener's certificate with its chain; comes with tls.key"},
    {CONFIG_TOP, KEY_TEXT, "tls.key", .def = "\"\"", SET_AT(tls_key), .cap = SERVE_PATH_BYTES, .option = "tls-key",
     .help = "its private key"},
    {CONFIG_TOP, KEY_TEXT, "tls.upstream_ca", .def = "\"\"", SET_AT(upstream_ca), .cap = SERVE_PATH_BYTES,
     .default_note = "the system's", .option = "upstream-ca", .fixed = true, .help = "what https workers are verified with"},

    {CONFIG_TOP, KEY_INNER, "admin", .default_note = "as below", .help = "the second listener: health, metrics, state"},
    {CONFIG_TOP, KEY_TEXT, "admin.listen", .min = 1, .def = "127.0.0.1:9090", TOP_AT(admin), .cap = CONFIG_ADDRESS_BYTES,
     .option = "admin", .fixed = true, .help = "HOST:PORT; away from loopback a token is needed"},
    {CONFIG_TOP, KEY_TEXT, "admin.token_file", .def = "\"\"", TOP_AT(admin_token_file), .cap = SERVE_PATH_BYTES,
     .option = "admin-token-file", .fixed = true, .help = "file with the bearer token; empty: none is asked for"},

    {CONFIG_TOP, KEY_INNER, "limits", .default_note = "as below", .help = "what clients may send"},
    {CONFIG_TOP, KEY_U64, "limits.max_body_bytes", .unit = "bytes", .max = 1099511627776.0, .def = "67108864", SET_AT(max_body_bytes),
     .option = "max-body", .help = "of one request; beyond: 413"},
    {CONFIG_TOP, KEY_U64, "limits.max_buffered_bytes", .unit = "bytes", .min = 1, .max = 1099511627776.0, .def = "1073741824",
     SET_AT(max_buffered_bytes), .help = "of all bodies that one thread holds"},
    {CONFIG_TOP, KEY_U32, "limits.max_connections", .unit = "connections", .min = 1, .max = 1048576, .def = "16384",
     SET_AT(max_connections), .option = "max-connections", .help = "of one thread"},

    {CONFIG_TOP, KEY_INNER, "timeouts", .default_note = "as below", .help = "of connections and calls"},
    {CONFIG_TOP, KEY_U32, "timeouts.header_ms", .unit = "ms", .min = 1, .max = TIMEOUT_MAX, .def = "10000", SET_AT(header_timeout_ms),
     .help = "for a request's head"},
    {CONFIG_TOP, KEY_U32, "timeouts.body_ms", .unit = "ms", .min = 1, .max = TIMEOUT_MAX, .def = "30000", SET_AT(body_timeout_ms),
     .help = "between two pieces of its body"},
    {CONFIG_TOP, KEY_U32, "timeouts.idle_ms", .unit = "ms", .min = 1, .max = TIMEOUT_MAX, .def = "75000", SET_AT(idle_timeout_ms),
     .help = "of a connection between requests"},
    {CONFIG_TOP, KEY_U32, "timeouts.write_ms", .unit = "ms", .min = 1, .max = TIMEOUT_MAX, .def = "60000", SET_AT(write_timeout_ms),
     .help = "for a client that does not read"},
    {CONFIG_TOP, KEY_U32, "timeouts.connect_ms", .unit = "ms", .min = 1, .max = TIMEOUT_MAX, .def = "5000",
     SET_AT(connect_timeout_ms), .fixed = true, .help = "to a worker"},
    {CONFIG_TOP, KEY_U32, "timeouts.first_byte_ms", .unit = "ms", .max = TIMEOUT_MAX, .def = "600000",
     SET_AT(first_byte_timeout_ms), .option = "first-byte",
     .help = "from dispatch to the first byte of a worker's answer; then it counts as lost; 0: no limit (the default is that of "
             "OpenAI's clients)"},
    {CONFIG_TOP, KEY_U32, "timeouts.stall_ms", .unit = "ms", .max = TIMEOUT_MAX, .def = "60000", SET_AT(stall_timeout_ms),
     .option = "stall", .help = "between two pieces of an answer; 0: no limit"},
    {CONFIG_TOP, KEY_U32, "timeouts.hold_comment_ms", .unit = "ms", .max = TIMEOUT_MAX, .def = "0", SET_AT(hold_comment_ms),
     .option = "hold-comments", .help = "a stream that waits gets an SSE comment this often; 0: never"},

    {CONFIG_TOP, KEY_INNER, "slo", .default_note = "none", .help = "deadlines of requests that bring none"},
    {CONFIG_TOP, KEY_MS, "slo.ttft_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "none", SET_AT(slo_ttft_ps),
     .option = "slo-ttft", .help = "time to first token"},
    {CONFIG_TOP, KEY_MS, "slo.tpot_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "none", SET_AT(slo_tpot_ps),
     .option = "slo-tpot", .help = "mean time per output token after the first"},

    /* ---- pools[] ---- */
    {CONFIG_POOL, KEY_TEXT, "name", .min = 1, POOL_AT(name), .cap = SERVE_HOST_BYTES, .default_note = "main, pool1, pool2 ...",
     .help = "in metrics and logs; a reload finds the pool again by it"},
    {CONFIG_POOL, KEY_TEXTS, "models", .default_note = "what its engines list", POOL_AT(models), .cap = SERVE_MAX_POOL_MODELS,
     .max = SERVE_MODEL_BYTES, .count_offset = offsetof(struct config_pool, n_models),
     .help = "model names (and LoRA adapters) that go to this pool; its engines' /v1/models add to them"},
    {CONFIG_POOL, KEY_TEXT, "policy", .min = 1, .def = "least_loaded", POOL_AT(policy), .cap = SERVE_HOST_BYTES,
     .option = "policy", .letter = 'p', .fixed = true, .help = "which worker gets a request; `weir policies` lists them"},
    {CONFIG_POOL, KEY_INNER, "policy_params", .default_note = "the policy's own",
     .help = "{PARAMETER: number} of the pool's policy; those of ttft_gate take a restart"},
    {CONFIG_POOL, KEY_TEXT, "profile", .def = "\"\"", POOL_AT(profile), .cap = SERVE_PATH_BYTES, .option = "profile", .fixed = true,
     .default_note = "Llama 3.1 8B on one H100",
     .help = "name or path of a profile with its workers' step times: where forecasts start from, before they learn"},
    {CONFIG_POOL, KEY_CHOICE, "handover", .choices = "nixl sglang mooncake p2p_nccl offloading", .def = "nixl", POOL_AT(handover),
     .option = "handover", .fixed = true, .help = "how prefill and decode workers hand over"},
    {CONFIG_POOL, KEY_U32, "max_inflight_per_worker", .aliases = "max_inflight", .unit = "requests", .max = CORE_MAX_REQUESTS,
     .def = "0", POOL_AT(max_inflight_per_worker), .option = "max-inflight",
     .help = "at one worker at a time, the rest waits here; 0: no limit"},
    {CONFIG_POOL, KEY_U32, "queue_max_requests", .unit = "requests", .max = CORE_MAX_REQUESTS, .def = "10000",
     POOL_AT(queue_max_requests), .option = "queue", .help = "that wait here; the next one gets 429"},
    {CONFIG_POOL, KEY_U64, "queue_max_bytes", .unit = "bytes", .max = 1099511627776.0, .def = "268435456",
     POOL_AT(queue_max_bytes), .help = "of their bodies; 0: no limit"},
    {CONFIG_POOL, KEY_MS, "queue_timeout_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "60000",
     POOL_AT(queue_timeout_ps), .option = "queue-timeout", .help = "longest wait; then 504"},
    {CONFIG_POOL, KEY_BOOL, "drop_late", .def = "false", POOL_AT(drop_late),
     .help = "requests that still wait when their TTFT deadline has passed get 429"},
    {CONFIG_POOL, KEY_U64, "fair_quantum_tokens", .unit = "tokens", .max = 2147483648.0, .def = "2048", POOL_AT(fair_quantum_tok),
     .help = "what a tenant of weight 1 may use in its turn when requests wait; 0: in order of arrival"},
    {CONFIG_POOL, KEY_U32, "max_retries", .unit = "retries", .max = 100, .def = "2", POOL_AT(max_retries), .option = "retries",
     .help = "other workers that are tried when one is lost before it answered"},
    {CONFIG_POOL, KEY_BOOL, "retry_partial", .def = "false", POOL_AT(retry_partial),
     .help = "try again even when part of an answer had come"},
    {CONFIG_POOL, KEY_INNER, "retry_budget", .default_note = "as below",
     .help = "bounds retries by what arrives (Finagle's defaults); one beyond it waits until it is within"},
    {CONFIG_POOL, KEY_BOOL, "retry_budget.on", .def = "true", POOL_AT(retry.budget),
     .help = "false: no limit but max_retries"},
    {CONFIG_POOL, KEY_U32, "retry_budget.percent", .unit = "%", .max = 100, .def = "20", POOL_AT(retry.percent),
     .help = "of the requests of the last ten seconds that may be tried again"},
    {CONFIG_POOL, KEY_U32, "retry_budget.floor_per_s", .unit = "retries", .min = 1, .max = 1000000, .def = "10", POOL_AT(retry.floor_per_s),
     .help = "a second that are allowed in any case"},
    /* Breaker and panic as Envoy's defaults; the first ejection is 10 s instead of 30 because a pool here has a few
     * workers, not hundreds; a latency of ten times the median is a fault in any mix of hardware. */
    {CONFIG_POOL, KEY_INNER, "health", .default_note = "as below", .help = "when a worker is not trusted"},
    {CONFIG_POOL, KEY_U32, "health.breaker_failures", .unit = "failures", .max = 1000000, .def = "5",
     POOL_AT(health.breaker_failures), .help = "in a row that eject a worker; 0: none do"},
    {CONFIG_POOL, KEY_U32, "health.outlier_failure_percent", .unit = "%", .max = 100, .def = "30",
     POOL_AT(health.outlier_failure_percent),
     .help = "points of failures above the median of its role that eject one; 0: none do"},
    {CONFIG_POOL, KEY_U32, "health.outlier_latency_percent", .unit = "%", .max = 1000000, .def = "1000",
     POOL_AT(health.outlier_latency_percent),
     .help = "of its role's median latency, above 100, that ejects one; 0: none does"},
    {CONFIG_POOL, KEY_MS, "health.outlier_interval_ms", .unit = "ms", .min = 1, .max = MS_MAX, .def = "10000",
     POOL_AT(health.outlier_interval_ps), .help = "workers are compared this often"},
    {CONFIG_POOL, KEY_MS, "health.eject_ms", .unit = "ms", .min = 1, .max = MS_MAX, .def = "10000", POOL_AT(health.eject_ps),
     .help = "how long one is left alone the first time"},
    {CONFIG_POOL, KEY_MS, "health.eject_max_ms", .unit = "ms", .min = 1, .max = MS_MAX, .def = "300000",
     POOL_AT(health.eject_max_ps), .help = "and at most"},
    {CONFIG_POOL, KEY_U32, "health.eject_max_percent", .unit = "%", .max = 100, .def = "30", POOL_AT(health.eject_max_percent),
     .help = "of a role's workers: no outlier is ejected beyond"},
    {CONFIG_POOL, KEY_U32, "health.panic_percent", .unit = "%", .max = 100, .def = "50", POOL_AT(health.panic_percent),
     .help = "fewer good ones of a role than that: all are used"},
    {CONFIG_POOL, KEY_MS, "health.slow_start_ms", .unit = "ms", .max = MS_MAX, .def = "30000", POOL_AT(health.slow_start_ps),
     .help = "in which a worker that came up gets its full share bit by bit; 0: at once"},
    {CONFIG_POOL, KEY_U32, "spare_workers", .unit = "workers", .max = CONFIG_MAX_SPARE_WORKERS, .def = "16", POOL_AT(spare_workers),
     .fixed = true, .help = "room for workers that a reload adds"},
    {CONFIG_POOL, KEY_INNER, "workers", .default_note = "required", .help = "list of workers, see below; or of their URLs only"},

    /* ---- pools[].workers[] ---- */
    {CONFIG_WORKER, KEY_TEXT, "url", .min = 1, WORKER_AT(url), .cap = CONFIG_ADDRESS_BYTES, .default_note = "required",
     .help = "http://HOST:PORT or https://HOST:PORT"},
    {CONFIG_WORKER, KEY_TEXT, "name", .min = 1, WORKER_AT(name), .cap = SERVE_HOST_BYTES, .default_note = "HOST:PORT",
     .help = "in metrics, logs and headers; a reload finds the worker again by it"},
    {CONFIG_WORKER, KEY_CHOICE, "role", .choices = "both prefill decode", .def = "both", WORKER_AT(role),
     .help = "prefill and decode workers come together"},
    {CONFIG_WORKER, KEY_U32, "bootstrap_port", .min = 0, .max = 65535, .def = "0", WORKER_AT(bootstrap_port),
     .help = "of an SGLang or Mooncake prefill worker"},
    {CONFIG_WORKER, KEY_TEXT, "engine_id", .def = "\"\"", WORKER_AT(engine_id), .cap = SERVE_HOST_BYTES,
     .help = "for Mooncake"},
    {CONFIG_WORKER, KEY_TEXT, "kv_address", .def = "\"\"", WORKER_AT(kv_address), .cap = SERVE_HOST_BYTES,
     .help = "HOST:PORT for P2P NCCL"},
    {CONFIG_WORKER, KEY_TEXT, "kv_events", .def = "\"\"", WORKER_AT(kv_events), .cap = SERVE_HOST_BYTES,
     .help = "tcp://HOST:PORT where it publishes its KV events (ZeroMQ); read for policies that reckon with them"},
    {CONFIG_WORKER, KEY_TEXT, "kv_replay", .def = "\"\"", WORKER_AT(kv_replay), .cap = SERVE_HOST_BYTES,
     .help = "tcp://HOST:PORT where it replays them, for gaps; without it a gap means that all is forgotten"},
    {CONFIG_WORKER, KEY_U32, "block_size", .unit = "tokens", .min = 1, .max = ENGINE_MAX_BLOCK_SIZE, .default_note = "16",
     .def = "16", WORKER_AT(block_size), .help = "of a KV block, where the engine's metrics do not tell"},
    {CONFIG_WORKER, KEY_U32, "blocks", .aliases = "num_gpu_blocks", .unit = "blocks", .max = ENGINE_MAX_BLOCKS, .def = "0",
     WORKER_AT(blocks), .default_note = "no limit", .help = "of KV, where the engine's metrics do not tell"},
    {CONFIG_WORKER, KEY_U32, "max_model_len", .unit = "tokens", .max = ENGINE_MAX_TOKENS, .def = "0", WORKER_AT(max_model_len),
     .default_note = "no limit", .help = "of one request, prompt and answer"},
    {CONFIG_WORKER, KEY_U32, "max_num_seqs", .unit = "requests", .max = ENGINE_MAX_SEQS, .def = "0",
     WORKER_AT(max_num_seqs), .default_note = "not known", .help = "that it computes at a time: for policies that reckon with it"},
    {CONFIG_WORKER, KEY_U32, "max_num_batched_tokens", .unit = "tokens", .max = ENGINE_MAX_TOKENS, .def = "0",
     WORKER_AT(max_num_batched_tokens), .default_note = "not known", .help = "of one step: for policies that reckon with it"},

    /* ---- tenants[] ---- */
    {CONFIG_TENANT, KEY_TEXT, "name", .min = 1, TENANT_AT(name), .cap = 64, .default_note = "required", .help = "in logs and messages"},
    {CONFIG_TENANT, KEY_TEXT, "api_key_file", .def = "\"\"", TENANT_AT(api_key_file), .cap = SERVE_PATH_BYTES,
     .help = "file with the API key that its requests carry (Authorization: Bearer ...)"},
    {CONFIG_TENANT, KEY_TEXT, "api_key_env", .def = "\"\"", TENANT_AT(api_key_env), .cap = 128,
     .help = "environment variable with it"},
    {CONFIG_TENANT, KEY_TEXT, "api_key_sha256", .def = "\"\"", TENANT_AT(api_key_sha256), .cap = 65,
     .help = "its SHA-256, 64 hexadecimal digits (printf %s KEY | sha256sum)"},
    {CONFIG_TENANT, KEY_TEXT, "header_value", .def = "\"\"", TENANT_AT(header_value), .cap = SERVE_HOST_BYTES,
     .help = "or: what tenant_header says of it"},
    {CONFIG_TENANT, KEY_U32, "weight", .min = 1, .max = CORE_MAX_TENANT_WEIGHT, .def = "1", TENANT_AT(weight),
     .help = "its share when requests wait; others have 1"},
    {CONFIG_TENANT, KEY_I32, "priority", .min = -1000, .max = 1000, .def = "0", TENANT_AT(priority),
     .help = "of its requests that bring none that counts; smaller goes first"},

    /* ---- routes[] ---- */
    {CONFIG_ROUTE, KEY_TEXT, "path", .min = 1, ROUTE_AT(path), .cap = SERVE_HOST_BYTES, .default_note = "required",
     .help = "such as /v1/completions"},
    {CONFIG_ROUTE, KEY_MS, "slo_ttft_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "none",
     ROUTE_AT(slo_ttft_ps), .help = "time to first token of requests there that bring no deadline"},
    {CONFIG_ROUTE, KEY_MS, "slo_tpot_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "none",
     ROUTE_AT(slo_tpot_ps), .help = "likewise, time per output token"},
    {CONFIG_ROUTE, KEY_I32, "priority", .min = -1000, .max = 1000, .def = "0", ROUTE_AT(priority),
     .help = "of requests there, unless their tenant or a header that counts has another"},
};
/* clang-format on */

static_assert(sizeof keys / sizeof keys[0] <= KEYS_MAX, "raise KEYS_MAX");

static const char *const paths[CONFIG_SCOPES] = {
    "", "pools[]", "pools[].workers[]", "tenants[]", "routes[]",
};

const struct key_table config_table = {.keys = keys,
                                       .n = sizeof keys / sizeof keys[0],
                                       .paths = paths,
                                       .apart = -1,
                                       .lists_all = "weir serve --help-config"};

/* ---- the reference */

static void print_row(FILE *out, const struct key *k, bool markdown)
{
    const char *def = k->default_note               ? k->default_note
                      : !k->def                     ? ""
                      : strcmp(k->def, "\"\"") == 0 ? "empty"
                                                    : k->def;
    fprintf(out, markdown ? "| `%s` | " : "  %-28s ", k->name);
    key_print_type(out, k);
    fprintf(out, markdown ? " | %s | %s" : "; default %s\n      %s", def, k->help);
    if (k->option)
        fprintf(out, markdown ? " (`--%s`)" : " (--%s)", k->option);
    if (k->fixed)
        fputs(" [restart]", out);
    fputs(markdown ? " |\n" : "\n", out);
}

void config_print_reference(FILE *out, bool markdown)
{
    static const char *const titles[CONFIG_SCOPES] = {
        "Top level",           "A pool: pools[]",   "A worker: pools[].workers[]",
        "A tenant: tenants[]", "A route: routes[]",
    };
    if (markdown)
        fputs(
            "# weir serve's config, key by key\n\n"
            "Generated by `weir serve --config-page` from the table that the loader uses "
            "(controller/serve/config_keys.c); a test\nchecks that it is current. In parentheses: the "
            "option of the command line that sets the key (a pool's: in every pool);\noptions win "
            "over the file. [restart]: a reload (SIGHUP) does not change it, and says so. How it all goes "
            "together:\ndeploy/serving.md.\n",
            out);
    for (int scope = 0; scope < CONFIG_SCOPES; scope++) {
        fprintf(out,
                markdown ? "\n## %s\n\n| key | value | default | meaning |\n|---|---|---|---|\n"
                         : "\n%s\n",
                titles[scope]);
        for (unsigned i = 0; i < config_table.n; i++) {
            if (keys[i].scope == scope)
                print_row(out, &keys[i], markdown);
        }
    }
}
