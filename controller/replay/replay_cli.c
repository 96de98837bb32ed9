/* replay_cli.c - `weir replay`: options, several policies (side by side on several threads if asked), the
 * table, the JSON report and the per-request records.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "controller/commands.h"
#include "controller/core/policy.h"
#include "controller/replay/replay.h"

#define MAX_POLICIES 32
#define STDIN_MAX_BYTES ((size_t)4 << 30)

struct run {
    struct replay_options opt;
    struct report *report;
    int rc;
    char error[REPLAY_ERROR_BYTES];
};

struct cli {
    struct stack stack;
    const char *stack_path;
    char *policies[MAX_POLICIES];
    uint32_t n_policies;
    struct replay_options opt;
    uint32_t threads;
    const char *report_path, *requests_path;
    bool canonical, quiet, progress;
    const char *trace_name;
    void *stdin_data;
    struct run *runs;
    uint32_t next_run;
    pthread_mutex_t lock;
};

static const char help[] =
    "usage: weir replay [OPTIONS] TRACE...      (TRACE \"-\": standard input)\n"
    "\n"
    "Replays a recorded trace on simulated workers, through one or more routing policies, and compares\n"
    "them. Traces: Mooncake JSONL (and mooncake-delta), Azure and BurstGPT CSV, weir's own log; plain, gzip\n"
    "or zstd.\n"
    "\n"
    "what to serve on\n"
    "  -w, --workers N          N aggregated workers with the default engine (8); with --stack: not allowed\n"
    "  -s, --stack FILE         stack file (weir check --help lists its keys)\n"
    "      --set KEY=VALUE      one key of the stack, e.g. --set num_gpu_blocks=2048 (may be repeated)\n"
    "how to route\n"
    "  -p, --policy A,B,...     policies to compare (round_robin); `weir policies` lists them; all: every one\n"
    "      --seed N             for everything random (1)\n"
    "      --oracle             tell policies what a live router could not know; the report says so\n"
    "how requests come\n"
    "      --speedup X          arrivals X times as fast (1)\n"
    "      --concurrency N      closed loop: N requests in flight, timestamps ignored\n"
    "      --format F           auto, mooncake, mooncake-delta, azure, burstgpt, weir (auto)\n"
    "      --trace-block-size N tokens that one hash id of the trace covers (512)\n"
    "      --max-requests N     stop reading after N requests\n"
    "      --skip-bad N         tolerate and count up to N bad rows (0)\n"
    "what to print\n"
    "      --report FILE        JSON report (\"-\": standard output, without the table)\n"
    "      --canonical          leave out what differs from run to run (wall time)\n"
    "      --requests FILE      one JSON line a request; .zst and .gz compress\n"
    "  -q, --quiet              no table, no progress\n"
    "how to run\n"
    "      --threads N          replay N policies at a time (1); same results\n"
    "      --step               one engine pass at a time: the slow path, same results\n"
    "  -h, --help\n"
    "\n"
    "exit status: 0 good, 2 bad input or usage\n";

enum {
    OPT_SET = 256,
    OPT_SEED,
    OPT_ORACLE,
    OPT_SPEEDUP,
    OPT_CONCURRENCY,
    OPT_FORMAT,
    OPT_BLOCK,
    OPT_MAX,
    OPT_SKIP,
    OPT_REPORT,
    OPT_CANONICAL,
    OPT_REQUESTS,
    OPT_THREADS,
    OPT_STEP
};

static const struct option options[] = {
    {"workers", required_argument, NULL, 'w'},
    {"stack", required_argument, NULL, 's'},
    {"set", required_argument, NULL, OPT_SET},
    {"policy", required_argument, NULL, 'p'},
    {"seed", required_argument, NULL, OPT_SEED},
    {"oracle", no_argument, NULL, OPT_ORACLE},
    {"speedup", required_argument, NULL, OPT_SPEEDUP},
    {"concurrency", required_argument, NULL, OPT_CONCURRENCY},
    {"format", required_argument, NULL, OPT_FORMAT},
    {"trace-block-size", required_argument, NULL, OPT_BLOCK},
    {"max-requests", required_argument, NULL, OPT_MAX},
    {"skip-bad", required_argument, NULL, OPT_SKIP},
    {"report", required_argument, NULL, OPT_REPORT},
    {"canonical", no_argument, NULL, OPT_CANONICAL},
    {"requests", required_argument, NULL, OPT_REQUESTS},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"step", no_argument, NULL, OPT_STEP},
    {"quiet", no_argument, NULL, 'q'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int complain(const char *fmt, const char *arg)
{
    fputs("weir replay: ", stderr);
    fprintf(stderr, fmt, arg);
    fputc('\n', stderr);
    return 2;
}

static bool number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    if (*text < '0' || *text > '9')
        return false;
    *out = strtoull(text, &end, 10);
    return !errno && !*end && *out >= min && *out <= max;
}

static bool format_of(const char *name, enum trace_format *out)
{
    static const char *const names[] = {"auto",  "mooncake", "mooncake-delta",
                                        "azure", "burstgpt", "weir"};
    for (int i = 0; i < 6; i++) {
        if (!strcmp(name, names[i])) {
            *out = (enum trace_format)i;
            return true;
        }
    }
    return false;
}

static int add_policies(struct cli *c, char *list)
{
    if (!strcmp(list, "all")) {
        for (uint32_t i = 0; i < core_policies_count && c->n_policies < MAX_POLICIES; i++)
            c->policies[c->n_policies++] = (char *)(uintptr_t)core_policies[i]->name;
        return 0;
    }
    for (char *name; (name = strsep(&list, ","));) {
        if (c->n_policies == MAX_POLICIES)
            return complain("more than 32 policies: %s does not fit", name);
        if (!core_policy_find(name))
            return complain("no policy is called '%s' (weir policies lists them)", name);
        c->policies[c->n_policies++] = name;
    }
    return 0;
}

struct parsed {
    const char *sets[256];
    uint32_t n_sets;
    uint64_t workers;
};

static int parse_option(struct cli *c, struct parsed *p, int opt)
{
    uint64_t n = 0;
    char *end;
    switch (opt) {
    case 'w':
        return number(optarg, 1, CLUSTER_MAX_WORKERS, &p->workers)
                   ? 0
                   : complain("--workers takes a number from 1 to 16384, not '%s'", optarg);
    case 's': c->stack_path = optarg; return 0;
    case OPT_SET:
        if (p->n_sets == 256)
            return complain("more than 256 --set options%s", "");
        p->sets[p->n_sets++] = optarg;
        return 0;
    case 'p': return add_policies(c, optarg);
    case OPT_SEED:
        if (!number(optarg, 0, UINT64_MAX, &c->opt.seed))
            return complain("--seed takes a whole number, not '%s'", optarg);
        return 0;
    case OPT_ORACLE: c->opt.oracle = true; return 0;
    case OPT_SPEEDUP:
        c->opt.speedup = strtod(optarg, &end);
        if (*end || !(c->opt.speedup >= 1e-6 && c->opt.speedup <= 1e6))
            return complain("--speedup takes a number from 0.000001 to 1000000, not '%s'", optarg);
        return 0;
    case OPT_CONCURRENCY:
        if (!number(optarg, 1, REPLAY_MAX_LIVE, &n))
            return complain("--concurrency takes a number from 1 to 4194304, not '%s'", optarg);
        c->opt.concurrency = (uint32_t)n;
        return 0;
    case OPT_FORMAT:
        return format_of(optarg, &c->opt.trace.format)
                   ? 0
                   : complain(
                         "--format takes auto, mooncake, mooncake-delta, azure, burstgpt or weir, not '%s'",
                         optarg);
    case OPT_BLOCK:
        if (!number(optarg, 1, 1 << 20, &n))
            return complain("--trace-block-size takes a number from 1 to 1048576, not '%s'",
                            optarg);
        c->opt.trace.block_tok = (uint32_t)n;
        return 0;
    case OPT_MAX:
        return number(optarg, 1, UINT64_MAX, &c->opt.trace.max_rows)
                   ? 0
                   : complain("--max-requests takes a number from 1, not '%s'", optarg);
    case OPT_SKIP:
        return number(optarg, 0, UINT64_MAX, &c->opt.trace.skip_bad)
                   ? 0
                   : complain("--skip-bad takes a whole number, not '%s'", optarg);
    case OPT_REPORT: c->report_path = optarg; return 0;
    case OPT_CANONICAL: c->canonical = true; return 0;
    case OPT_REQUESTS: c->requests_path = optarg; return 0;
    case OPT_THREADS:
        if (!number(optarg, 1, 1024, &n))
            return complain("--threads takes a number from 1 to 1024, not '%s'", optarg);
        c->threads = (uint32_t)n;
        return 0;
    case OPT_STEP: c->opt.stepping = true; return 0;
    case 'q': c->quiet = true; return 0;
    case 'h': fputs(help, stdout); return -1;
    default: return complain("see weir replay --help%s", "");
    }
}

/* ---- where profiles are found: beside the stack file, in the source tree, where they were installed */

static int load_stack(struct cli *c, const struct parsed *p)
{
    static const char *const dirs[] = {"deploy/profiles", WEIR_PROFILE_DIR, NULL};
    char error[STACK_ERROR_BYTES];
    if (c->stack_path && p->workers)
        return complain("--workers and --stack do not go together: the stack file says how many%s",
                        "");
    if (c->stack_path) {
        if (stack_load(&c->stack, c->stack_path, dirs, error))
            return complain("%s", error);
    } else {
        stack_default(&c->stack, p->workers ? (uint32_t)p->workers : 8);
    }
    for (uint32_t i = 0; i < p->n_sets; i++) {
        char key[256];
        const char *eq = strchr(p->sets[i], '=');
        if (!eq || eq == p->sets[i] || (size_t)(eq - p->sets[i]) >= sizeof key)
            return complain("--set takes KEY=VALUE, not '%s'", p->sets[i]);
        snprintf(key, sizeof key, "%.*s", (int)(eq - p->sets[i]), p->sets[i]);
        if (stack_set(&c->stack, key, eq + 1, error))
            return complain("%s", error);
    }
    if (stack_check(&c->stack, c->stack_path ? c->stack_path : "command line", error))
        return complain("%s", error);
    return 0;
}

static int read_stdin(struct cli *c)
{
    size_t cap = 1 << 20, n = 0;
    char *buf = malloc(cap);
    for (;;) {
        if (buf && n == cap) {
            if (cap >= STDIN_MAX_BYTES)
                return complain("standard input is larger than 4 GiB: save it to a file%s", "");
            char *more = realloc(buf, cap *= 2);
            if (!more)
                free(buf);
            buf = more;
        }
        if (!buf)
            return complain("out of memory while reading standard input%s", "");
        size_t k = fread(buf + n, 1, cap - n, stdin);
        if (!k)
            break;
        n += k;
    }
    c->stdin_data = buf;
    c->opt.data = buf;
    c->opt.data_len = n;
    return 0;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

struct progress {
    const struct run *run;
    double since_ms, shown_ms;
};

static void show_progress(void *ctx, uint64_t requests, int64_t now_ps)
{
    struct progress *p = ctx;
    double t = now_ms();
    if (t - p->since_ms < 1000 || t - p->shown_ms < 200)
        return;
    p->shown_ms = t;
    fprintf(stderr, "\r%-14s %10lu requests, %.1f min of trace, %.1f s ", p->run->opt.policy,
            requests, ms_from_ps(now_ps) / 60000, (t - p->since_ms) / 1000);
    fflush(stderr);
}

static void run_one(struct cli *c, struct run *run)
{
    struct progress progress = {.run = run, .since_ms = now_ms()};
    int64_t duration;
    uint64_t passes, bad;
    if (c->progress) {
        run->opt.progress = show_progress;
        run->opt.progress_ctx = &progress;
    }
    run->rc = replay_run(&c->stack, &run->opt, run->report, &duration, &passes, &bad, run->error);
    if (progress.shown_ms > 0)
        fprintf(stderr, "\r%70s\r", "");
    if (!run->rc)
        report_finish(run->report, duration, passes, now_ms() - progress.since_ms, bad);
}

static void *run_thread(void *ctx)
{
    struct cli *c = ctx;
    for (;;) {
        pthread_mutex_lock(&c->lock);
        uint32_t i = c->next_run++;
        pthread_mutex_unlock(&c->lock);
        if (i >= c->n_policies)
            return NULL;
        run_one(c, &c->runs[i]);
    }
}

static int run_all(struct cli *c)
{
    uint32_t n = c->threads < c->n_policies ? c->threads : c->n_policies;
    pthread_t threads[MAX_POLICIES];
    uint32_t started = 0;
    pthread_mutex_init(&c->lock, NULL);
    for (; started + 1 < n; started++) {
        if (pthread_create(&threads[started], NULL, run_thread, c))
            break;
    }
    run_thread(c);
    while (started)
        pthread_join(threads[--started], NULL);
    pthread_mutex_destroy(&c->lock);
    for (uint32_t i = 0; i < c->n_policies; i++) {
        if (c->runs[i].rc)
            return complain("%s", c->runs[i].error);
    }
    return 0;
}

static int make_runs(struct cli *c, struct request_log *log)
{
    c->runs = calloc(c->n_policies, sizeof *c->runs);
    for (uint32_t i = 0; c->runs && i < c->n_policies; i++) {
        struct run *run = &c->runs[i];
        struct report_info info = {.policy = c->policies[i],
                                   .trace_name = c->trace_name,
                                   .stack_name = c->stack_path,
                                   .seed = c->opt.seed,
                                   .oracle = c->opt.oracle,
                                   .stepped = c->opt.stepping,
                                   .stack = &c->stack,
                                   .speedup = c->opt.speedup,
                                   .concurrency = c->opt.concurrency};
        for (uint32_t p = 0; p < c->stack.n_pools; p++)
            info.n_workers += c->stack.pools[p].workers;
        run->opt = c->opt;
        run->opt.policy = c->policies[i];
        run->opt.log = log;
        run->report = report_new(&info);
        if (!run->report)
            return complain("out of memory%s", "");
    }
    return c->runs ? 0 : complain("out of memory%s", "");
}

static int write_reports(struct cli *c)
{
    struct report *reports[MAX_POLICIES];
    bool to_stdout = c->report_path && !strcmp(c->report_path, "-");
    for (uint32_t i = 0; i < c->n_policies; i++)
        reports[i] = c->runs[i].report;
    if (c->report_path) {
        FILE *f = to_stdout ? stdout : fopen(c->report_path, "w");
        if (!f)
            return complain("cannot write %s: check the folder and its permissions",
                            c->report_path);
        int rc = report_write_json(f, reports, c->n_policies, c->canonical);
        rc |= to_stdout ? fflush(f) : fclose(f);
        if (rc)
            return complain("writing %s failed: disk full?", c->report_path);
    }
    if (!c->quiet && !to_stdout) {
        struct winsize ws = {0};
        bool tty = isatty(STDOUT_FILENO);
        if (tty)
            ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws);
        report_print_table(stdout, reports, c->n_policies, ws.ws_col, tty && !getenv("NO_COLOR"));
    }
    return 0;
}

static int replay(struct cli *c)
{
    struct request_log *log = NULL;
    char error[REPLAY_ERROR_BYTES];
    int rc = 0;
    for (uint32_t i = 0; i < c->opt.n_paths; i++) {
        if (!strcmp(c->opt.paths[i], "-") && (c->n_policies > 1) && !c->stdin_data) {
            if (c->opt.n_paths > 1)
                return complain(
                    "standard input cannot be mixed with files when several policies read it%s",
                    "");
            if ((rc = read_stdin(c)))
                return rc;
        }
    }
    if (c->requests_path) {
        log = request_log_open(c->requests_path, error);
        if (!log)
            return complain("%s", error);
        c->threads = 1; /* one file, in one order */
    }
    rc = make_runs(c, log);
    if (!rc)
        rc = run_all(c);
    if (log && request_log_close(log) && !rc)
        rc = complain("writing %s failed: disk full?", c->requests_path);
    if (!rc)
        rc = write_reports(c);
    for (uint32_t i = 0; c->runs && i < c->n_policies; i++)
        report_free(c->runs[i].report);
    free(c->runs);
    return rc;
}

int replay_main(int argc, char **argv)
{
    struct cli c = {.opt = {.seed = 1, .speedup = 1}, .threads = 1};
    struct parsed p = {.n_sets = 0};
    int opt, rc = 0;
    optind = 1;
    while (!rc && (opt = getopt_long(argc, argv, "w:s:p:qh", options, NULL)) != -1)
        rc = parse_option(&c, &p, opt);
    if (rc)
        return rc < 0 ? 0 : rc;
    if (optind == argc)
        return complain("no trace given; see weir replay --help%s", "");
    if (!c.n_policies)
        c.policies[c.n_policies++] = "round_robin";
    c.opt.paths = (const char *const *)argv + optind;
    c.opt.n_paths = (uint32_t)(argc - optind);
    const char *base = strrchr(argv[optind], '/');
    c.trace_name = base ? base + 1 : argv[optind];
    c.progress = !c.quiet && isatty(STDERR_FILENO) && c.threads == 1;
    rc = load_stack(&c, &p);
    if (!rc)
        rc = replay(&c);
    stack_deinit(&c.stack);
    free(c.stdin_data);
    return rc;
}
