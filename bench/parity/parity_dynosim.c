/* parity_dynosim.c - weir's replay against recorded replays of NVIDIA Dynamo's simulator (DynoSim).
 *
 * A folder of recordings has, for a TRACE and a case of a VERSION,
 *   requests/TRACE.VERSION.CASE.csv.gz   a line a request
 *   reports-VERSION/TRACE.CASE.json      the report
 *   runs-*.tsv                           repeated runs (TRACE, CASE, figures), no header
 * What of these is there is compared. Round-robin cases repeat exactly, so request by request and figure by figure;
 * the peer's own router draws lots between equal workers, so by the mean of several seeds.
 *
 * weir runs by deploy/stacks/dynosim*.yaml with a few keys set: as `weir replay --stack --set` would.
 */
#include <glob.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yyjson.h>
#include <zlib.h>

#include "bench/parity/parity.h"
#include "controller/cli.h"
#include "controller/core/policy.h"
#include "controller/replay/replay.h"

#define TOLERANCE_MS 0.1
#define MIN_SHARE 0.999 /* of requests within the tolerance */
#define SEEDS 8         /* of a case that draws lots */
#define MIN_REPEATS 3   /* of the peer, to know its spread */
#define MAX_REPEATS 64
#define MAX_STANDARD_ERRORS 3.0
#define LINE_BYTES 4096
#define MAX_SETS 5
#define MAX_COLUMNS 32

struct peer_case {
    const char *name, *version;
    const char *runs; /* its name in runs-*.tsv, if it draws lots */
    const char *sets[MAX_SETS];
    double speedup;
    uint32_t concurrency;
    bool pd;
};

static const struct peer_case cases[] = {
    {"rr8", "1.4.2", NULL, {0}, 1, 0, false},
    {"rr8_2048", "1.4.2", NULL, {"num_gpu_blocks=2048"}, 1, 0, false},
    {"rr8_512", "1.4.2", NULL, {"num_gpu_blocks=512"}, 1, 0, false},
    {"rr8_256", "1.4.2", NULL, {"num_gpu_blocks=256"}, 1, 0, false},
    {"rr8_b64", "1.4.2", NULL, {"block_size=64"}, 1, 0, false},
    {"rr1", "1.4.2", NULL, {"workers=1"}, 1, 0, false},
    {"rr64_x8", "1.4.2", NULL, {"workers=64"}, 8, 0, false},
    {"rr8_seqs16", "1.4.2", NULL, {"max_num_seqs=16"}, 4, 0, false},
    {"closed_rr8", "1.4.2", NULL, {0}, 1, 256, false},
    {"engine-rr8", "1.6.1", NULL, {0}, 1, 0, false},
    {"engine-rr8_2048", "1.6.1", NULL, {"num_gpu_blocks=2048"}, 1, 0, false},
    {"engine-rr8_512", "1.6.1", NULL, {"num_gpu_blocks=512"}, 1, 0, false},
    {"engine-rr8_256", "1.6.1", NULL, {"num_gpu_blocks=256"}, 1, 0, false},
    {"dynamo-rr8", "1.6.1", NULL, {0}, 1, 0, false},
    {"dynamo-rr8_2048", "1.6.1", NULL, {"num_gpu_blocks=2048"}, 1, 0, false},
    {"dynamo-rr8_512", "1.6.1", NULL, {"num_gpu_blocks=512"}, 1, 0, false},
    {"engine-rr8_sglang", "1.6.1", NULL, {"dynosim_engine=sglang"}, 1, 0, false},
    /* without transfer time: 1 byte a token, so fast that it makes no difference but in their order */
    {"dynamo-pd_rr",
     "1.6.1",
     NULL,
     {"kv_bytes_per_token=1", "link.bandwidth_gb_s=10000"},
     1,
     0,
     true},
    {"dynamo-pd_rr_xfer", "1.6.1", NULL, {0}, 1, 0, true},
    {"dynamo-pd_rr_512",
     "1.6.1",
     NULL,
     {"kv_bytes_per_token=1", "link.bandwidth_gb_s=10000", "num_gpu_blocks=512"},
     1,
     0,
     true},
    {"kv8", "1.4.2", "kv8", {0}, 1, 0, false},
    {"kv8_2048", "1.4.2", "kv8_2048", {"num_gpu_blocks=2048"}, 1, 0, false},
    {"kv8_512", "1.4.2", "kv8_512", {"num_gpu_blocks=512"}, 1, 0, false},
    {"kv8_256", "1.4.2", "kv8_256", {"num_gpu_blocks=256"}, 1, 0, false},
    {"kv8_b64", "1.4.2", "kv8_b64", {"block_size=64"}, 1, 0, false},
    {"kv64_x8", "1.4.2", "kv64_x8", {"workers=64"}, 8, 0, false},
    {"closed_kv8", "1.4.2", "closed_kv8", {0}, 1, 256, false},
    {"dynamo-kv8", "1.6.1", "new-dynamo-kv8", {0}, 1, 0, false},
    {"dynamo-kv8_2048", "1.6.1", "new-dynamo-kv8_2048", {"num_gpu_blocks=2048"}, 1, 0, false},
    {"dynamo-kv8_512", "1.6.1", "new-dynamo-kv8_512", {"num_gpu_blocks=512"}, 1, 0, false},
    {"dynamo-pd_kv",
     "1.6.1",
     "new-dynamo-pd_kv",
     {"kv_bytes_per_token=1", "link.bandwidth_gb_s=10000"},
     1,
     0,
     true},
    {"dynamo-pd_kv_xfer", "1.6.1", "new-dynamo-pd_kv_xfer", {0}, 1, 0, true},
};

static const char *const traces[] = {"mooncake_arxiv_1000", "mooncake_conversation"};

/* The figures of one replay, as runs-*.tsv has them. */
enum figure { MEAN_TTFT, P99_TTFT, MEAN_ITL, MEAN_E2E, P99_E2E, REUSE, N_FIGURES };

static const char *const figure_names[N_FIGURES] = {"mean TTFT", "p99 TTFT", "mean ITL",
                                                    "mean E2E",  "p99 E2E",  "reuse"};

/* What the peer recorded of a request, and what weir made of it. */
struct row {
    double ttft_ms, e2e_ms;
    uint32_t reused_tok, readmissions, worker;
    struct report_request q;
};

struct run {
    const char *dir, *trace_dir, *trace;
    const struct peer_case *c;
    struct row *rows;
    uint64_t n_rows, n_recorded, n_ended;
    bool has_readmissions;
    struct report_summary sum;
    double figure[N_FIGURES];
};

static void die(const char *file, const char *what)
{
    fprintf(stderr, "parity: %s: %s\n", file, what);
    exit(2);
}

/* ---- the recordings */

static void put(char out[LINE_BYTES], const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void put(char out[LINE_BYTES], const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (vsnprintf(out, LINE_BYTES, fmt, ap) >= LINE_BYTES)
        die(fmt, "path too long");
    va_end(ap);
}

static void rows_reserve(struct run *r, uint64_t n)
{
    if (n <= r->n_rows)
        return;
    uint64_t cap = n < 1024 ? 1024 : n * 2;
    r->rows = realloc(r->rows, cap * sizeof *r->rows);
    if (!r->rows)
        die(r->trace, "out of memory");
    memset(r->rows + r->n_rows, 0, (cap - r->n_rows) * sizeof *r->rows);
    r->n_rows = cap;
}

static int split(char *line, char **col, int max)
{
    int n = 0;
    line[strcspn(line, "\r\n")] = 0;
    for (char *p = line; p && n < max; n++) {
        col[n] = p;
        p = strchr(p, ',');
        if (p)
            *p++ = 0;
    }
    return n;
}

static int column(char **header, int n, const char *name, const char *file)
{
    for (int i = 0; i < n; i++) {
        if (!strcmp(header[i], name))
            return i;
    }
    die(file, name);
    return -1;
}

static double number(const char *text, const char *file)
{
    double v;
    if (!cli_real(text, 0, 1e12, &v))
        die(file, "a number is expected in every column");
    return v;
}

static void load_row(struct run *r, struct row *w, char **header, char **col, int n,
                     const char *file)
{
    w->ttft_ms = number(col[column(header, n, "ttft_ms", file)], file);
    w->e2e_ms = number(col[column(header, n, "e2e_ms", file)], file);
    w->reused_tok = (uint32_t)number(col[column(header, n, "reused", file)], file);
    if (r->c->runs)
        w->worker = (uint32_t)number(col[column(header, n, "worker", file)], file);
    const char *readmissions = col[column(header, n, "readmissions", file)];
    r->has_readmissions = *readmissions != 0; /* 1.6.1 only */
    w->readmissions = r->has_readmissions ? (uint32_t)number(readmissions, file) : 0;
}

/* False: no such recording. */
static bool load_rows(struct run *r)
{
    char file[LINE_BYTES], header_line[LINE_BYTES], line[LINE_BYTES], *header[MAX_COLUMNS],
        *col[MAX_COLUMNS];
    put(file, "%s/requests/%s.%s.%s.csv.gz", r->dir, r->trace, r->c->version, r->c->name);
    if (access(file, R_OK))
        return false;
    gzFile f = gzopen(file, "r");
    if (!f || !gzgets(f, header_line, sizeof header_line))
        die(file, "not readable");
    int n = split(header_line, header, MAX_COLUMNS);
    while (gzgets(f, line, sizeof line)) {
        if (split(line, col, MAX_COLUMNS) != n)
            die(file, "a line has another number of columns than the header");
        rows_reserve(r, r->n_recorded + 1);
        load_row(r, &r->rows[r->n_recorded++], header, col, n, file);
    }
    gzclose(f);
    return true;
}

/* NULL: no such recording. */
static yyjson_doc *load_report(const struct run *r)
{
    char file[LINE_BYTES];
    put(file, "%s/reports-%s/%s.%s.json", r->dir, r->c->version, r->trace, r->c->name);
    if (access(file, R_OK))
        return NULL;
    yyjson_doc *doc = yyjson_read_file(file, 0, NULL, NULL);
    if (!doc)
        die(file, "not readable as JSON");
    return doc;
}

/* Figures of the peer's repeated runs; returns how many. */
static uint32_t load_repeats(const struct run *r, double figure[MAX_REPEATS][N_FIGURES])
{
    char pattern[LINE_BYTES], line[LINE_BYTES], trace[LINE_BYTES], name[LINE_BYTES];
    glob_t found = {0};
    uint32_t n = 0;
    put(pattern, "%s/runs-*.tsv", r->dir);
    glob(pattern, 0, NULL, &found);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        FILE *f = fopen(found.gl_pathv[i], "r");
        if (!f)
            die(found.gl_pathv[i], "not readable");
        while (n < MAX_REPEATS && fgets(line, sizeof line, f)) {
            double *v = figure[n];
            int got = sscanf(line,
                             "%s %s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                             "%lf %lf %lf %lf %lf %*s %lf",
                             trace, name, &v[MEAN_TTFT], &v[P99_TTFT], &v[MEAN_ITL], &v[MEAN_E2E],
                             &v[P99_E2E], &v[REUSE]);
            n += got == 8 && !strcmp(trace, r->trace) && !strcmp(name, r->c->runs);
        }
        fclose(f);
    }
    globfree(&found);
    return n;
}

/* ---- the peer's draws: dynamo_cost with the recorded worker wherever it could have drawn that one */

#define DRAWS 1000 /* that a worker among 64 equal ones does not come up then: 1.4e-7 */

static const struct policy_ops *drawn_from;
static struct {
    const struct run *run;
    uint64_t next,
        foreign; /* requests so far; those sent where dynamo_cost would never send them */
} draws;

static uint32_t draw_as_recorded(void *state, const struct policy_view *v,
                                 const struct policy_query *q, struct rng *rng)
{
    uint32_t worker = draws.run->rows[draws.next++].worker;
    for (int i = 0; i < DRAWS; i++) {
        if (drawn_from->pick(state, v, q, rng) == worker)
            return worker;
    }
    draws.foreign++;
    return worker;
}

/* ---- weir's replay */

static void ended(void *ctx, const struct report_request *q)
{
    struct run *r = ctx;
    rows_reserve(r, q->row + 1);
    r->rows[q->row].q = *q;
    r->n_ended++;
}

static double ttft_ms(const struct row *w)
{
    return ms_from_ps(w->q.first_token_ps - w->q.arrival_ps);
}

static double e2e_ms(const struct row *w)
{
    return ms_from_ps(w->q.end_ps - w->q.arrival_ps);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nearest rank, as the peer's reports have it. */
static double p99(const struct run *r, double (*of)(const struct row *))
{
    double *v = malloc((r->n_ended + 1) * sizeof *v);
    if (!v)
        die(r->trace, "out of memory");
    for (uint64_t i = 0; i < r->n_ended; i++)
        v[i] = of(&r->rows[i]);
    qsort(v, r->n_ended, sizeof *v, by_size);
    double x = r->n_ended ? v[(uint64_t)ceil(0.99 * (double)r->n_ended) - 1] : 0;
    free(v);
    return x;
}

static void load_stack(const struct run *r, struct stack *s)
{
    static const char *const dirs[] = {"deploy/profiles", NULL};
    const char *file = r->c->pd ? "deploy/stacks/dynosim-pd.yaml" : "deploy/stacks/dynosim.yaml";
    char error[STACK_ERROR_BYTES], version[LINE_BYTES], key[LINE_BYTES];
    if (stack_load(s, file, dirs, error))
        die(error, "run this in the root of the source tree");
    put(version, "dynosim_version=%s", r->c->version);
    const char *sets[MAX_SETS + 1] = {version};
    memcpy(sets + 1, r->c->sets, sizeof r->c->sets);
    for (int i = 0; i <= MAX_SETS && sets[i]; i++) {
        put(key, "%.*s", (int)strcspn(sets[i], "="), sets[i]);
        if (stack_set(s, key, strchr(sets[i], '=') + 1, error))
            die(file, error);
    }
    if (stack_check(s, file, error))
        die(file, error);
}

static void replay(struct run *r, uint64_t seed, bool as_recorded)
{
    char trace[LINE_BYTES], error[REPLAY_ERROR_BYTES];
    struct stack stack;
    struct policy_ops own;
    load_stack(r, &stack);
    put(trace, "%s/%s.jsonl", r->trace_dir, r->trace);
    const char *paths[] = {trace};
    struct replay_options opt = {.policy = r->c->runs ? "dynamo_cost" : "round_robin",
                                 .seed = seed,
                                 .speedup = r->c->speedup,
                                 .concurrency = r->c->concurrency,
                                 .paths = paths,
                                 .n_paths = 1,
                                 .ended = ended,
                                 .ended_ctx = r};
    if (as_recorded) {
        drawn_from = core_policy_find(opt.policy);
        own = *drawn_from;
        own.pick = draw_as_recorded;
        opt.own_policy = &own;
        draws.run = r;
        draws.next = draws.foreign = 0;
    }
    struct report_info info = {.policy = opt.policy,
                               .trace_name = r->trace,
                               .stack = &stack,
                               .speedup = opt.speedup,
                               .concurrency = opt.concurrency};
    for (uint32_t p = 0; p < stack.n_pools; p++)
        info.n_workers += stack.pools[p].workers;
    struct report *report = report_new(&info);
    struct report_run run;
    if (!report)
        die(trace, "out of memory");
    r->n_ended = 0;
    if (replay_run(&stack, &opt, report, &run, error))
        die(trace, error);
    report_finish(report, &run);
    report_summarise(report, &r->sum);
    report_free(report);
    stack_deinit(&stack);
    r->figure[MEAN_TTFT] = r->sum.mean_ttft_ms;
    r->figure[P99_TTFT] = p99(r, ttft_ms);
    r->figure[MEAN_ITL] = r->sum.mean_itl_ms;
    r->figure[MEAN_E2E] = r->sum.mean_e2e_ms;
    r->figure[P99_E2E] = p99(r, e2e_ms);
    r->figure[REUSE] = r->sum.reuse;
}

/* ---- cases that repeat exactly */

/* The peer's column has what the last admission found, generated tokens included (P/D: what the prefill worker
 * found); weir knows the prompt's part of the first admission and of all. Where there were more than two it
 * cannot be told: true. */
static bool same_reuse(const struct run *r, const struct row *w)
{
    uint32_t peer = w->reused_tok;
    if (w->q.preemptions == 0 || r->c->pd)
        return peer == w->q.reused_tok;
    if (peer > w->q.prompt_tok)
        peer = w->q.prompt_tok;
    return w->q.preemptions > 1 || peer == w->q.reused_all_tok - w->q.reused_tok;
}

static bool compare_rows(struct run *r)
{
    uint64_t close = 0, reuse = 0, readmissions = 0;
    double most = 0;
    for (uint64_t i = 0; i < r->n_recorded; i++) {
        const struct row *w = &r->rows[i];
        double d = fmax(fabs(ttft_ms(w) - w->ttft_ms), fabs(e2e_ms(w) - w->e2e_ms));
        most = fmax(most, d);
        close += d <= TOLERANCE_MS;
        reuse += same_reuse(r, w);
        readmissions += !r->has_readmissions || w->readmissions == w->q.preemptions;
    }
    printf(" %6" PRIu64 " %9.3f %10.6f %6" PRIu64, r->n_recorded,
           100 * (double)close / (double)r->n_recorded, most, r->n_recorded - reuse);
    return (double)close >= MIN_SHARE * (double)r->n_recorded && reuse == r->n_recorded &&
           readmissions == r->n_recorded && r->n_ended == r->n_recorded;
}

static bool any_preempted(const struct run *r)
{
    for (uint64_t i = 0; i < r->n_ended; i++) {
        if (r->rows[i].q.preemptions)
            return true;
    }
    return false;
}

static bool compare_report(const struct run *r, yyjson_doc *doc)
{
    static const char *const keys[N_FIGURES] = {"mean_ttft_ms",       "p99_ttft_ms",
                                                "mean_itl_ms",        "mean_e2e_latency_ms",
                                                "p99_e2e_latency_ms", "prefix_cache_reused_ratio"};
    yyjson_val *root = yyjson_doc_get_root(doc);
    double most = fabs(yyjson_get_num(yyjson_obj_get(root, "duration_ms")) - r->sum.duration_ms);
    bool same_reuse = true;
    for (int i = 0; i < N_FIGURES; i++) {
        double d = fabs(yyjson_get_num(yyjson_obj_get(root, keys[i])) - r->figure[i]);
        if (i != REUSE)
            most = fmax(most, d);
        else /* counted over all admissions there, over the first ones here */
            same_reuse = d < 1e-6 || any_preempted(r);
    }
    printf(" %12.6f", most);
    return most <= TOLERANCE_MS && same_reuse;
}

static bool exact_case(struct run *r)
{
    bool rows = load_rows(r), drawn = r->c->runs != NULL, good = true;
    yyjson_doc *doc = drawn ? NULL : load_report(r); /* the report is of another run */
    if (!rows && !doc)
        return true;
    replay(r, 1, drawn);
    printf("%-22s %-5s %-17s", r->trace, r->c->version, r->c->name);
    if (rows)
        good &= compare_rows(r);
    else
        printf(" %6" PRIu64 " %9s %10s %6s", r->n_ended, "-", "-", "-");
    if (doc)
        good &= compare_report(r, doc);
    else
        printf(" %12s", "-");
    yyjson_doc_free(doc);
    if (drawn) {
        printf("  %" PRIu64 " foreign draws", draws.foreign);
        good &= draws.foreign == 0;
    }
    printf("  %s\n", good ? "ok" : "DIFFERS");
    return good;
}

/* ---- cases that draw lots */

struct spread {
    double mean, sd, min, max;
    uint32_t n;
};

static struct spread spread_of(double (*v)[N_FIGURES], uint32_t n, int figure)
{
    struct spread s = {.min = v[0][figure], .max = v[0][figure], .n = n};
    for (uint32_t i = 0; i < n; i++) {
        s.mean += v[i][figure] / n;
        s.min = fmin(s.min, v[i][figure]);
        s.max = fmax(s.max, v[i][figure]);
    }
    for (uint32_t i = 0; i < n; i++)
        s.sd += (v[i][figure] - s.mean) * (v[i][figure] - s.mean);
    s.sd = n > 1 ? sqrt(s.sd / (n - 1)) : 0;
    return s;
}

/* runs-*.tsv has six digits; and all runs may have the same request at a percentile. */
#define ROUNDING 1e-5

/* How many standard errors the means are apart; the larger of the two spreads is taken for both. */
static double apart(const struct spread *a, const struct spread *b)
{
    double error = fmax(a->sd, b->sd) * sqrt(1.0 / a->n + 1.0 / b->n), d = fabs(a->mean - b->mean);
    return d <= ROUNDING * a->mean ? 0 : error > 0 ? d / error : INFINITY;
}

static bool drawn_case(struct run *r)
{
    static double peer[MAX_REPEATS][N_FIGURES], own[SEEDS][N_FIGURES];
    uint32_t n = load_repeats(r, peer);
    bool good = true, judged = n >= MIN_REPEATS;
    if (!n)
        return true;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        replay(r, seed, false);
        memcpy(own[seed - 1], r->figure, sizeof r->figure);
    }
    for (int i = 0; i < N_FIGURES; i++) {
        struct spread a = spread_of(own, SEEDS, i), b = spread_of(peer, n, i);
        bool ok = apart(&a, &b) <= MAX_STANDARD_ERRORS;
        printf("%-22s %-5s %-17s %-9s %10.5g %10.5g..%-10.5g %3u %10.5g %10.5g..%-10.5g", r->trace,
               r->c->version, r->c->name, figure_names[i], a.mean, a.min, a.max, n, b.mean, b.min,
               b.max);
        if (judged)
            printf(" %4.1f  %s\n", apart(&a, &b), ok ? "ok" : "DIFFERS");
        else
            printf("    -  too few repeats\n");
        good &= ok || !judged;
    }
    return good;
}

/* ---- all of them */

static bool wanted(const struct run *r, int n, char **names)
{
    for (int i = 0; i < n; i++) {
        if (!strcmp(names[i], r->c->name) || !strcmp(names[i], r->trace))
            return true;
    }
    return n == 0;
}

static bool run_cases(const char *dir, const char *trace_dir, bool drawn, int n, char **names)
{
    bool good = true;
    for (size_t t = 0; t < sizeof traces / sizeof *traces; t++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct run r = {.dir = dir, .trace_dir = trace_dir, .trace = traces[t], .c = &cases[i]};
            if ((drawn && !r.c->runs) || !wanted(&r, n, names))
                continue;
            good &= drawn ? drawn_case(&r) : exact_case(&r);
            free(r.rows);
        }
    }
    return good;
}

int parity_dynosim(int n, char **args)
{
    char trace_dir[LINE_BYTES];
    const char *traces_at = NULL;
    if (n > 2 && !strcmp(args[0], "--trace-dir")) {
        traces_at = args[1];
        args += 2;
        n -= 2;
    }
    const char *dir = args[0];
    put(trace_dir, "%s%s", traces_at ? traces_at : dir, traces_at ? "" : "/../../traces");
    printf("%-22s %-5s %-17s %6s %9s %10s %6s %12s\n", "cases that repeat exactly", "", "", "rows",
           "% in 0.1ms", "most ms", "reuse!", "report ms");
    bool good = run_cases(dir, trace_dir, false, n - 1, args + 1);
    printf("%-46s %-9s %10s %22s %3s %10s %22s %4s\n", "cases that draw lots", "figure", "weir",
           "of 8 seeds", "n", "peer", "of its repeats", "SE");
    good &= run_cases(dir, trace_dir, true, n - 1, args + 1);
    return !good;
}
