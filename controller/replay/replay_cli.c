/* replay_cli.c - `weir replay`: options, several policies (side by side on several threads if asked), the
 * table, the JSON report and the per-request records.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/core/policy.h"
#include "controller/replay/profile.h"
#include "controller/replay/replay.h"

#define COMMAND "replay"
#define MAX_POLICIES 32
#define MAX_SETS 256
#define PIPE_MAX_BYTES ((size_t)4 << 30) /* of a trace that must be kept in memory */
#define SPREAD_MAX_MS 3.6e6

struct run {
    struct cli *cli;
    struct replay_options opt;
    struct report *report;
    int rc;
    char error[REPLAY_ERROR_BYTES];
};

struct cli {
    struct stack stack;
    const char *stack_path;
    const char *policies[MAX_POLICIES];
    uint32_t n_policies;
    struct replay_options opt;
    uint32_t threads;
    const char *report_path, *requests_path;
    bool canonical, quiet, progress;
    const char *trace_name;
    void *pipe_data;
    FILE *report_file;
    struct run *runs;
    uint32_t next_run, n_done;
    bool stop;
    double start_ms, shown_ms; /* of all runs; of the progress line */
    pthread_mutex_t lock;
};

static const char help[] =
    "usage: weir replay [OPTIONS] TRACE...      (TRACE \"-\": standard input)\n"
    "\n"
    "Replays recorded requests on simulated workers, through one or more routing policies, and\n"
    "compares them. Traces: Mooncake JSONL, Azure and BurstGPT CSV, weir's own request log; plain,\n"
    "gzip or zstd. Several files are read one after the other, as one trace.\n"
    "\n"
    "What to serve on\n"
    "  -w, --workers N           N aggregated workers of the default engine (8); not with --stack\n"
    "  -s, --stack FILE          stack file (weir check --help lists its keys)\n"
    "      --set KEY=VALUE       one key of the stack, as --set num_gpu_blocks=2048; may be repeated\n"
    "\n"
    "How to route\n"
    "  -p, --policy A,B,...      policies to compare (round_robin); weir policies lists them; all:\n"
    "                            every one\n"
    "      --seed N              for everything that is drawn at random (1)\n"
    "      --oracle              tell policies what a live router could not know: output lengths,\n"
    "                            load and caches without delay; the report says so\n"
    "\n"
    "How requests come\n"
    "      --speedup X           arrivals X times as fast (1)\n"
    "      --concurrency N       closed loop: N users, each with one request (or session) after the\n"
    "                            other; timestamps ignored\n"
    "      --spread-arrivals MS  requests of one timestamp arrive at random times in the MS\n"
    "                            milliseconds after it, before the next timestamp: for traces\n"
    "                            whose times were rounded, as Mooncake's to 3000 (0: as recorded)\n"
    "      --format F            auto, mooncake, mooncake-delta, azure, burstgpt or weir (auto: by\n"
    "                            the first line; mooncake-delta must be named)\n"
    "      --trace-block-size N  tokens that one hash id of the trace covers (512)\n"
    "      --max-requests N      stop reading after N requests\n"
    "      --skip-bad N          leave out, and count, up to N bad rows (0)\n"
    "\n"
    "What to print\n"
    "      --report FILE         JSON report (\"-\": to standard output, instead of the table)\n"
    "      --canonical           leave out of it what differs from run to run (wall time)\n"
    "      --requests FILE       one JSON line a request; names in .zst and .gz are compressed\n"
    "  -q, --quiet               no table, no progress\n"
    "\n"
    "How to run\n"
    "      --threads N           replay N policies at a time (1); same results\n"
    "      --step                one engine pass at a time: the slow path, same results\n"
    "  -h, --help\n"
    "\n"
    "Exit status: 0 good, 2 bad input or usage.\n"
    "\n"
    "Examples\n"
    "  weir replay conversation.jsonl --workers 8 --policy round_robin,sticky,cache_aware\n"
    "  weir replay day1.jsonl.zst day2.jsonl.zst --stack my.yaml --policy all --report out.json\n"
    "  weir gen --rate 12 --minutes 10 | weir replay - --set max_num_seqs=64\n";

enum {
    OPT_SET = 256,
    OPT_SEED,
    OPT_ORACLE,
    OPT_SPEEDUP,
    OPT_CONCURRENCY,
    OPT_SPREAD,
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
    {"spread-arrivals", required_argument, NULL, OPT_SPREAD},
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
            c->policies[c->n_policies++] = core_policies[i]->name;
        return 0;
    }
    for (char *name; (name = strsep(&list, ","));) {
        const struct policy_ops *p = core_policy_find(name);
        if (!p)
            return cli_unknown_policy(COMMAND, name);
        if (c->n_policies == MAX_POLICIES)
            return cli_fail(COMMAND, "--policy: more than %d policies; leave out %s", MAX_POLICIES,
                            name);
        c->policies[c->n_policies++] = p->name;
    }
    return 0;
}

/* The command line, before it is made into a stack. */
struct parsed {
    const char *sets[MAX_SETS];
    uint32_t n_sets;
    uint64_t workers;
};

static int take_whole(const char *option, uint64_t min, uint64_t max, uint64_t *out)
{
    if (cli_whole(optarg, min, max, out))
        return 0;
    if (max == UINT64_MAX)
        return cli_fail(COMMAND, "--%s: expected a whole number from %" PRIu64 ", found '%.64s'",
                        option, min, optarg);
    return cli_fail(COMMAND,
                    "--%s: expected a whole number %" PRIu64 "..%" PRIu64 ", found '%.64s'", option,
                    min, max, optarg);
}

static int take_whole32(const char *option, uint32_t min, uint32_t max, uint32_t *out)
{
    uint64_t n = 0;
    int rc = take_whole(option, min, max, &n);
    *out = (uint32_t)n;
    return rc;
}

static int take_real(const char *option, double min, double max, double *out)
{
    if (cli_real(optarg, min, max, out))
        return 0;
    return cli_fail(COMMAND, "--%s: expected a number %.7g..%.7g, found '%.64s'", option, min, max,
                    optarg);
}

static int take_format(struct cli *c)
{
    if (format_of(optarg, &c->opt.trace.format))
        return 0;
    return cli_fail(COMMAND,
                    "--format: expected auto, mooncake, mooncake-delta, azure, burstgpt or weir, "
                    "found '%.64s'",
                    optarg);
}

/* 0, an exit status, or -1: help was asked for. */
static int parse_option(struct cli *c, struct parsed *p, int opt, char *const *argv)
{
    double ms = 0;
    int rc;
    switch (opt) {
    case 'w': return take_whole("workers", 1, CLUSTER_MAX_WORKERS, &p->workers);
    case 's': c->stack_path = optarg; return 0;
    case OPT_SET:
        if (p->n_sets == MAX_SETS)
            return cli_fail(COMMAND, "--set: more than %d of them; write a stack file", MAX_SETS);
        p->sets[p->n_sets++] = optarg;
        return 0;
    case 'p': return add_policies(c, optarg);
    case OPT_SEED: return take_whole("seed", 0, UINT64_MAX, &c->opt.seed);
    case OPT_ORACLE: c->opt.oracle = true; return 0;
    case OPT_SPEEDUP: return take_real("speedup", 1e-6, 1e6, &c->opt.speedup);
    case OPT_CONCURRENCY:
        return take_whole32("concurrency", 1, REPLAY_MAX_LIVE, &c->opt.concurrency);
    case OPT_SPREAD:
        rc = take_real("spread-arrivals", 0, SPREAD_MAX_MS, &ms);
        c->opt.trace.spread_ps = ps_from_ms(rc ? 0 : ms);
        return rc;
    case OPT_FORMAT: return take_format(c);
    case OPT_BLOCK: return take_whole32("trace-block-size", 1, 1 << 20, &c->opt.trace.block_tok);
    case OPT_MAX: return take_whole("max-requests", 1, UINT64_MAX, &c->opt.trace.max_rows);
    case OPT_SKIP: return take_whole("skip-bad", 0, UINT64_MAX, &c->opt.trace.skip_bad);
    case OPT_REPORT: c->report_path = optarg; return 0;
    case OPT_CANONICAL: c->canonical = true; return 0;
    case OPT_REQUESTS: c->requests_path = optarg; return 0;
    case OPT_THREADS: return take_whole32("threads", 1, 1024, &c->threads);
    case OPT_STEP: c->opt.stepping = true; return 0;
    case 'q': c->quiet = true; return 0;
    case 'h': (void)fputs(help, stdout); return -1;
    default: return cli_bad_option(COMMAND, options, argv, opt);
    }
}

static int load_stack(struct cli *c, const struct parsed *p)
{
    char error[STACK_ERROR_BYTES];
    struct profile_dirs dirs;
    if (c->stack_path && p->workers)
        return cli_fail(COMMAND, "--workers: the stack file says how many; leave it out, or use "
                                 "--set pools.NAME.workers=N");
    profile_dirs_init(&dirs);
    if (c->stack_path) {
        if (stack_load(&c->stack, c->stack_path, dirs.list, error))
            return cli_fail(COMMAND, "%s", error);
    } else {
        stack_default(&c->stack, p->workers ? (uint32_t)p->workers : 8);
    }
    if (stack_set_all(&c->stack, p->sets, p->n_sets, error) ||
        stack_check(&c->stack, c->stack_path ? c->stack_path : "command line", error))
        return cli_fail(COMMAND, "%s", error);
    return 0;
}

/* ---- traces that can be read once only */

static int read_pipe(struct cli *c, int fd, const char *path)
{
    size_t cap = 1 << 20, n = 0;
    char *buf = malloc(cap);
    for (;;) {
        if (buf && n == cap) {
            if (cap >= PIPE_MAX_BYTES) {
                free(buf);
                return cli_fail(COMMAND,
                                "%s: larger than 4 GiB; save it to a file, or replay one "
                                "policy",
                                path);
            }
            char *more = realloc(buf, cap *= 2);
            if (!more)
                free(buf);
            buf = more;
        }
        if (!buf)
            return cli_fail(COMMAND, "%s: out of memory while reading it", path);
        ssize_t k = read(fd, buf + n, cap - n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0) {
            free(buf);
            return cli_fail(COMMAND, "%s: cannot be read: %s", path, strerror(errno));
        }
        if (k == 0)
            break;
        n += (size_t)k;
    }
    c->pipe_data = buf;
    c->opt.data = buf;
    c->opt.data_len = n;
    return 0;
}

static bool read_once(const char *path)
{
    struct stat st;
    return !strcmp(path, "-") ||
           (!stat(path, &st) && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)));
}

/* Every policy reads the trace anew; what comes out of a pipe is kept for the others. */
static int keep_pipe(struct cli *c)
{
    uint32_t i = 0;
    while (i < c->opt.n_paths && !read_once(c->opt.paths[i]))
        i++;
    if (i == c->opt.n_paths || c->n_policies == 1)
        return 0;
    const char *path = c->opt.paths[i];
    if (c->opt.n_paths > 1)
        return cli_fail(COMMAND,
                        "%s: can be read once, and several policies read it together with "
                        "other files; save it to a file first",
                        path);
    int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (fd < 0)
        return cli_fail(COMMAND, "%s: cannot be opened: %s", path, strerror(errno));
    int rc = read_pipe(c, fd, path);
    if (fd != STDIN_FILENO)
        (void)close(fd);
    return rc;
}

/* ---- runs */

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* One line for all runs that go on; whoever calls writes it, not more than five times a second. */
static void show_progress(void *ctx, uint64_t requests, int64_t now_ps)
{
    const struct run *run = ctx;
    struct cli *c = run->cli;
    double t = now_ms();
    if (t - c->start_ms < 1000)
        return;
    pthread_mutex_lock(&c->lock);
    if (t - c->shown_ms >= 200) {
        c->shown_ms = t;
        if (c->n_policies > 1)
            (void)fprintf(stderr, "\r%" PRIu32 "/%" PRIu32 " done  ", c->n_done, c->n_policies);
        (void)fprintf(stderr, "%s%s: %" PRIu64 " requests, %.1f min of trace, %.0f s%*s",
                      c->n_policies > 1 ? "" : "\r", run->opt.policy, requests,
                      ms_from_ps(now_ps) / 60000, (t - c->start_ms) / 1000, 12, "");
        (void)fflush(stderr);
    }
    pthread_mutex_unlock(&c->lock);
}

static void run_one(struct cli *c, struct run *run)
{
    struct report_run how;
    double start = now_ms();
    if (c->progress) {
        run->cli = c;
        run->opt.progress = show_progress;
        run->opt.progress_ctx = run;
    }
    run->rc = replay_run(&c->stack, &run->opt, run->report, &how, run->error);
    how.wall_ms = now_ms() - start;
    if (!run->rc)
        report_finish(run->report, &how);
}

/* Takes runs until there are none, or one went wrong: the others would say the same. */
static void *run_thread(void *ctx)
{
    struct cli *c = ctx;
    pthread_mutex_lock(&c->lock);
    while (c->next_run < c->n_policies && !c->stop) {
        struct run *run = &c->runs[c->next_run++];
        pthread_mutex_unlock(&c->lock);
        run_one(c, run);
        pthread_mutex_lock(&c->lock);
        c->n_done++;
        c->stop |= run->rc != 0;
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static int run_all(struct cli *c)
{
    uint32_t n = c->threads < c->n_policies ? c->threads : c->n_policies;
    pthread_t threads[MAX_POLICIES];
    uint32_t started = 0;
    c->start_ms = now_ms();
    pthread_mutex_init(&c->lock, NULL);
    for (; started + 1 < n; started++) {
        if (pthread_create(&threads[started], NULL, run_thread, c))
            break;
    }
    run_thread(c);
    while (started)
        pthread_join(threads[--started], NULL);
    pthread_mutex_destroy(&c->lock);
    if (c->shown_ms > 0)
        (void)fprintf(stderr, "\r%79s\r", "");
    for (uint32_t i = 0; i < c->n_policies; i++) {
        if (c->runs[i].rc)
            return cli_fail(COMMAND, "%s", c->runs[i].error);
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
            return cli_fail(COMMAND, "out of memory");
    }
    return c->runs ? 0 : cli_fail(COMMAND, "out of memory");
}

/* Opened before the run, so that nobody waits for a report that cannot be written; what is there stays
 * until the new one is ready. */
static int open_report(struct cli *c)
{
    if (!c->report_path)
        return 0;
    if (!strcmp(c->report_path, "-")) {
        c->report_file = stdout;
        return 0;
    }
    int fd = open(c->report_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    c->report_file = fd < 0 ? NULL : fdopen(fd, "w");
    if (c->report_file)
        return 0;
    return cli_fail(COMMAND,
                    "--report %.200s: cannot be written: %s; check the folder and its "
                    "permissions",
                    c->report_path, strerror(errno));
}

static int write_report(struct cli *c, struct report *const *reports)
{
    struct stat st;
    FILE *f = c->report_file;
    int rc = 0;
    if (f != stdout && !fstat(fileno(f), &st) && S_ISREG(st.st_mode))
        rc |= ftruncate(fileno(f), 0);
    rc |= report_write_json(f, reports, c->n_policies, c->canonical);
    rc |= f == stdout ? 0 : fclose(f);
    c->report_file = NULL;
    return rc ? cli_fail(COMMAND, "--report %.200s: writing failed; is the disk full?",
                         c->report_path)
              : 0;
}

static int print_results(struct cli *c)
{
    struct report *reports[MAX_POLICIES];
    bool table = !c->quiet && c->report_file != stdout;
    int rc = 0;
    for (uint32_t i = 0; i < c->n_policies; i++)
        reports[i] = c->runs[i].report;
    if (c->report_file)
        rc = write_report(c, reports);
    if (!rc && table) {
        struct winsize ws = {0};
        bool tty = isatty(STDOUT_FILENO);
        if (tty)
            (void)ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws);
        report_print_table(stdout, reports, c->n_policies, ws.ws_col, tty && !getenv("NO_COLOR"));
    }
    return cli_finish(COMMAND, rc);
}

static int replay(struct cli *c)
{
    struct request_log *log = NULL;
    char error[REPLAY_ERROR_BYTES];
    int rc = keep_pipe(c);
    if (!rc)
        rc = open_report(c);
    if (!rc && c->requests_path) {
        log = request_log_open(c->requests_path, error);
        if (!log)
            rc = cli_fail(COMMAND, "--requests: %s", error);
        c->threads = 1; /* one file, in one order */
    }
    if (!rc)
        rc = make_runs(c, log);
    if (!rc)
        rc = run_all(c);
    if (log && request_log_close(log) && !rc)
        rc = cli_fail(COMMAND, "--requests %.200s: writing failed; is the disk full?",
                      c->requests_path);
    if (!rc)
        rc = print_results(c);
    for (uint32_t i = 0; c->runs && i < c->n_policies; i++)
        report_free(c->runs[i].report);
    free(c->runs);
    if (c->report_file && c->report_file != stdout)
        (void)fclose(c->report_file);
    return rc;
}

/* A replay touches a few MiB once and is over in milliseconds: page faults were a sixth of it, 3 us each in a virtual machine.
 * The heap goes on at the next huge page, grows in few large steps, and lies on huge pages where the system gives them on
 * request. Nothing there may be touched before it is asked for: returns a block, to be freed at the end, that fills what is
 * before it. Speed only: what this cannot have, it goes without. */
static void *prepare_heap(void)
{
    const uintptr_t huge = UINT64_C(2) << 20;
    mallopt(M_MMAP_THRESHOLD, 256 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    mallopt(M_TOP_PAD, 16 << 20);
    uintptr_t from = ((uintptr_t)sbrk(0) + huge) & ~(huge - 1);
    void *top = malloc(64), *filler = NULL;
    uintptr_t gap = from - (uintptr_t)top;
    if (gap > 256 && gap < 2 * huge) /* not where another allocator has its memory elsewhere */
        filler = malloc(gap - 256);
    uintptr_t to = (uintptr_t)sbrk(0);
    if (filler && from < to)
        (void)madvise((void *)from, to - from, MADV_HUGEPAGE);
    free(top);
    return filler;
}

static int read_and_run(struct cli *c, int argc, char **argv)
{
    struct parsed p = {.n_sets = 0};
    int opt, rc = 0;
    c->opt.seed = 1;
    c->opt.speedup = 1;
    c->threads = 1;
    cli_start();
    while (!rc && (opt = getopt_long(argc, argv, ":w:s:p:qh", options, NULL)) != -1)
        rc = parse_option(c, &p, opt, argv);
    if (!rc && optind == argc)
        rc = cli_fail(COMMAND, "no trace named; name its file, or - for standard input");
    if (rc)
        return cli_finish(COMMAND, rc < 0 ? 0 : rc);
    if (!c->n_policies)
        c->policies[c->n_policies++] = "round_robin";
    c->opt.paths = (const char *const *)argv + optind;
    c->opt.n_paths = (uint32_t)(argc - optind);
    const char *base = strrchr(argv[optind], '/');
    c->trace_name = base ? base + 1 : argv[optind];
    c->progress = !c->quiet && isatty(STDERR_FILENO);
    rc = load_stack(c, &p);
    if (!rc)
        rc = replay(c);
    stack_deinit(&c->stack);
    free(c->pipe_data);
    return rc;
}

int replay_main(int argc, char **argv)
{
    /* 2 MiB of stack: not on the stack of a thread. Before the heap is prepared: a mapping of its own, of which
     * nothing is there but what is used. */
    struct cli *c = calloc(1, sizeof *c);
    void *filler = prepare_heap();
    int rc = c ? read_and_run(c, argc, argv) : cli_fail(COMMAND, "out of memory");
    free(c);
    free(filler);
    return rc;
}
