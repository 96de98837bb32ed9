/* report.c - counts what a replay did and writes it as JSON: one line a figure, fixed number
 * formatting (six decimals by integer arithmetic, no locale), so that the same replay gives the
 * same bytes on every machine. The table is in report_table.c.
 */
#include "controller/replay/report.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controller/replay/report_internal.h"
#include "predictor/units.h"
#include "predictor/version.h"

#define TEXT_BYTES 2048
#define MICRO 1000000
/* A TPOT below this (steps of a profile that take no time) counts as this for rates: 1e9
 * tokens/s. */
#define RATE_TPOT_MIN_PS PS_PER_NS

/* ---- collecting ---- */

struct report *report_new(const struct report_info *info)
{
    struct report *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->info = *info;
    r->ttft = hist_new();
    r->ttst = hist_new();
    r->tpot = hist_new();
    r->itl = hist_new();
    r->e2e = hist_new();
    r->workers = calloc(info->n_workers ? info->n_workers : 1, sizeof *r->workers);
    if (r->ttft && r->ttst && r->tpot && r->itl && r->e2e && r->workers)
        return r;
    report_free(r);
    return NULL;
}

void report_free(struct report *r)
{
    if (!r)
        return;
    hist_free(r->ttft);
    hist_free(r->ttst);
    hist_free(r->tpot);
    hist_free(r->itl);
    hist_free(r->e2e);
    free(r->workers);
    free(r);
}

static int64_t rate_of(int64_t tpot_ps)
{
    return PS_PER_S * MICRO / (tpot_ps < RATE_TPOT_MIN_PS ? RATE_TPOT_MIN_PS : tpot_ps);
}

static void add_tpot(struct report *r, int64_t tpot_ps)
{
    uint64_t rate = (uint64_t)rate_of(tpot_ps);
    hist_add(r->tpot, tpot_ps, 1);
    r->rate_sum += rate;
    r->rate_square_sum += (unsigned __int128)rate * rate;
}

/* Every request with a first token has times that do not run back: arrival, first, second, end. */
static void add_completed(struct report *r, const struct report_request *q)
{
    const struct stack *s = r->info.stack;
    int64_t ttft = q->first_token_ps - q->arrival_ps, e2e = q->end_ps - q->arrival_ps;
    bool met = ttft <= s->slo_ttft_ps && e2e <= s->slo_e2e_ps;
    r->completed++;
    r->prompt_tok += q->prompt_tok;
    r->output_tok += q->output_tok;
    r->reused_tok += q->reused_tok;
    r->reused_all_tok += q->reused_all_tok;
    hist_add(r->ttft, ttft, 1);
    hist_add(r->e2e, e2e, 1);
    if (q->second_token_ps >= 0)
        hist_add(r->ttst, q->second_token_ps - q->first_token_ps, 1);
    if (q->output_tok >= 2) {
        int64_t tpot = (q->end_ps - q->first_token_ps) / (q->output_tok - 1);
        add_tpot(r, tpot);
        met = met && tpot <= s->slo_tpot_ps;
    }
    if (met) {
        r->slo_met++;
        r->slo_output_tok += q->output_tok;
    }
}

void report_add(struct report *r, const struct report_request *q)
{
    r->requests++;
    r->preemptions += q->preemptions;
    r->retries += q->retries;
    if (q->reason == CORE_REASON_NONE)
        add_completed(r, q);
    else
        r->over[q->reason]++;
}

struct hist *report_itl(struct report *r)
{
    return r->itl;
}

void report_worker(struct report *r, uint32_t worker, const struct report_worker *w)
{
    assert(worker < r->info.n_workers && w->pool < r->info.stack->n_pools);
    r->workers[worker] = *w;
}

void report_finish(struct report *r, const struct report_run *run)
{
    r->run = *run;
}

/* ---- figures ---- */

const char *report_reason_name(enum core_reason reason)
{
    static const char *const names[CORE_REASON_COUNT] = {
        [CORE_REASON_QUEUE_FULL] = "queue_full",
        [CORE_REASON_SATURATED] = "saturated",
        [CORE_REASON_SLO] = "slo",
        [CORE_REASON_NO_WORKER] = "no_worker",
        [CORE_REASON_TOO_LARGE] = "too_large",
        [CORE_REASON_RETRIES] = "retries",
        [CORE_REASON_PARTIAL] = "partial",
        [CORE_REASON_TIMEOUT] = "timeout",
    };
    return names[reason];
}

const char *report_role_name(enum worker_role role)
{
    return role == ROLE_PREFILL ? "prefill" : role == ROLE_DECODE ? "decode" : "both";
}

uint64_t report_rejected(const struct report *r)
{
    return r->requests - r->completed;
}

static uint32_t gpus_of(const struct report *r, uint32_t pool)
{
    uint32_t gpus = r->info.stack->pools[pool].worker.gpus;
    return gpus ? gpus : 1;
}

double report_gpu_hours(const struct report *r)
{
    double hours = 0;
    for (uint32_t i = 0; i < r->info.n_workers; i++) {
        const struct report_worker *w = &r->workers[i];
        hours += (double)w->up_ps * gpus_of(r, w->pool) / (double)PS_PER_S / 3600;
    }
    return hours;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static double per_second(const struct report *r, uint64_t n)
{
    return ratio((double)n * (double)PS_PER_S, (double)r->run.duration_ps);
}

static double quantile_ms(const struct hist *h, double q)
{
    return ms_from_ps(hist_quantile_ps(h, q));
}

void report_summarise(const struct report *r, struct report_summary *out)
{
    *out = (struct report_summary){
        .requests = r->requests,
        .completed = r->completed,
        .rejected = report_rejected(r),
        .slo_met = r->slo_met,
        .preemptions = r->preemptions,
        .duration_ms = ms_from_ps(r->run.duration_ps),
        .goodput_rps = per_second(r, r->slo_met),
        .slo_attainment = ratio((double)r->slo_met, (double)r->requests),
        .reuse = ratio((double)r->reused_all_tok, (double)r->prompt_tok),
        .mean_ttft_ms = hist_mean_ps(r->ttft) / 1e9,
        .p50_ttft_ms = quantile_ms(r->ttft, 0.5),
        .p90_ttft_ms = quantile_ms(r->ttft, 0.9),
        .p99_ttft_ms = quantile_ms(r->ttft, 0.99),
        .mean_tpot_ms = hist_mean_ps(r->tpot) / 1e9,
        .p99_tpot_ms = quantile_ms(r->tpot, 0.99),
        .mean_e2e_ms = hist_mean_ps(r->e2e) / 1e9,
        .p99_e2e_ms = quantile_ms(r->e2e, 0.99),
        .mean_itl_ms = hist_mean_ps(r->itl) / 1e9,
        .gpu_hours = report_gpu_hours(r),
    };
}

/* ---- JSON ---- */

/* How many bytes of well-formed UTF-8 s starts with (one character); 0: not UTF-8. */
static size_t utf8_length(const unsigned char *s)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : 4;
    if (n == 1)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool surrogate = s[0] == 0xed && s[1] >= 0xa0, beyond = s[0] == 0xf4 && s[1] >= 0x90;
    return overlong || surrogate || beyond ? 0 : n;
}

size_t report_json_text(char *out, size_t cap, const char *s)
{
    size_t n = 0;
    assert(cap >= 3);
    out[n++] = '"';
    for (const unsigned char *p = (const unsigned char *)s; *p;) {
        char one[8];
        size_t len = utf8_length(p), step = len ? len : 1;
        if (!len)
            len = (size_t)snprintf(one, sizeof one, "\\ufffd");
        else if (*p == '"' || *p == '\\')
            len = (size_t)snprintf(one, sizeof one, "\\%c", *p);
        else if (*p < 0x20)
            len = (size_t)snprintf(one, sizeof one, "\\u%04x", *p);
        else
            memcpy(one, p, len);
        if (n + len + 2 > cap)
            break;
        memcpy(out + n, one, len);
        n += len;
        p += step;
    }
    out[n++] = '"';
    out[n] = '\0';
    return n;
}

/* Writes one value after another, each on its own line but inside open_inline. */
struct json {
    FILE *out;
    int depth, inline_from;
    bool first; /* nothing yet in the innermost object or array */
};

static void indent(struct json *j)
{
    if (j->depth >= j->inline_from)
        return;
    fputc('\n', j->out);
    for (int i = 0; i < j->depth; i++)
        fputs("  ", j->out);
}

/* Before every value; name is NULL in arrays and at the top. */
static void begin_value(struct json *j, const char *name)
{
    if (j->depth) {
        if (!j->first)
            fputs(j->depth >= j->inline_from ? ", " : ",", j->out);
        indent(j);
    }
    j->first = false;
    if (name)
        fprintf(j->out, "\"%s\": ", name);
}

static void open_value(struct json *j, const char *name, char bracket)
{
    begin_value(j, name);
    fputc(bracket, j->out);
    j->depth++;
    j->first = true;
}

static void close_value(struct json *j, char bracket)
{
    j->depth--;
    if (!j->first && j->depth + 1 < j->inline_from)
        indent(j);
    fputc(bracket, j->out);
    j->first = false;
}

/* An object on one line. */
static void open_inline(struct json *j, const char *name)
{
    open_value(j, name, '{');
    j->inline_from = j->depth;
}

static void close_inline(struct json *j)
{
    close_value(j, '}');
    j->inline_from = INT32_MAX;
}

static void put_null(struct json *j, const char *name)
{
    begin_value(j, name);
    fputs("null", j->out);
}

static void put_count(struct json *j, const char *name, uint64_t n)
{
    begin_value(j, name);
    fprintf(j->out, "%" PRIu64, n);
}

static void put_bool(struct json *j, const char *name, bool b)
{
    begin_value(j, name);
    fputs(b ? "true" : "false", j->out);
}

static void put_text(struct json *j, const char *name, const char *s)
{
    char text[TEXT_BYTES];
    if (!s) {
        put_null(j, name);
        return;
    }
    report_json_text(text, sizeof text, s);
    begin_value(j, name);
    fputs(text, j->out);
}

/* Rounded to six decimals, without needless zeros: 12.5, 0.000001, 3.0. */
static void put_real(struct json *j, const char *name, double x)
{
    double size = fabs(x);
    if (!(size < 9e12)) {
        put_null(j, name);
        return;
    }
    uint64_t micro = (uint64_t)(size * MICRO + 0.5), fraction = micro % MICRO;
    int digits = 6;
    while (digits > 1 && fraction % 10 == 0) {
        fraction /= 10;
        digits--;
    }
    begin_value(j, name);
    fprintf(j->out, "%s%" PRIu64 ".%0*" PRIu64, x < 0 && micro ? "-" : "", micro / MICRO, digits,
            fraction);
}

static void put_limit(struct json *j, const char *name, int64_t limit_ps)
{
    if (limit_ps == PS_NEVER)
        put_null(j, name);
    else
        put_real(j, name, ms_from_ps(limit_ps));
}

/* prefix_name; present: false writes null, there being nothing to take the figure of. */
static void put_figure(struct json *j, const char *prefix, const char *name, bool present, double x)
{
    char full[96];
    snprintf(full, sizeof full, "%s_%s", prefix, name);
    if (present)
        put_real(j, full, x);
    else
        put_null(j, full);
}

static const struct {
    const char *name;
    double q;
} quantiles[] = {{"median", 0.5}, {"p75", 0.75}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}};

#define N_QUANTILES (sizeof quantiles / sizeof *quantiles)

static void put_times(struct json *j, const char *name, const struct hist *h)
{
    bool any = hist_count(h) > 0;
    put_figure(j, "mean", name, any, hist_mean_ps(h) / 1e9);
    put_figure(j, "min", name, any, ms_from_ps(hist_min_ps(h)));
    put_figure(j, "max", name, any, ms_from_ps(hist_max_ps(h)));
    for (size_t i = 0; i < N_QUANTILES; i++)
        put_figure(j, quantiles[i].name, name, any, quantile_ms(h, quantiles[i].q));
    put_figure(j, "std", name, any, hist_std_ps(h) / 1e9);
}

/* Tokens per second that one user sees: 1 / TPOT of every request, hence the TPOT's quantiles
 * from the other end. */
static void put_user_rates(struct json *j, const struct report *r)
{
    static const char name[] = "output_token_throughput_per_user";
    uint64_t n = hist_count(r->tpot);
    double mean = ratio((double)r->rate_sum, (double)n) / MICRO;
    double variance = ratio((double)r->rate_square_sum, (double)n) / MICRO / MICRO - mean * mean;
    put_figure(j, "mean", name, n, mean);
    put_figure(j, "min", name, n, (double)rate_of(hist_max_ps(r->tpot)) / MICRO);
    put_figure(j, "max", name, n, (double)rate_of(hist_min_ps(r->tpot)) / MICRO);
    for (size_t i = 0; i < N_QUANTILES; i++) {
        int64_t tpot_ps = hist_quantile_ps(r->tpot, 1 - quantiles[i].q);
        put_figure(j, quantiles[i].name, name, n, (double)rate_of(tpot_ps) / MICRO);
    }
    put_figure(j, "std", name, n, variance > 0 ? sqrt(variance) : 0);
}

static void put_setting(struct json *j, const struct report *r)
{
    const struct report_info *info = &r->info;
    put_text(j, "version", weir_version());
    put_text(j, "policy", info->policy);
    put_text(j, "trace", info->trace_name);
    put_text(j, "stack", info->stack_name);
    put_count(j, "seed", info->seed);
    put_bool(j, "oracle", info->oracle);
    put_bool(j, "stepped", info->stepped);
    put_real(j, "speedup", info->speedup);
    if (info->concurrency)
        put_count(j, "concurrency", info->concurrency);
    else
        put_null(j, "concurrency");
}

static void put_totals(struct json *j, const struct report *r, bool canonical)
{
    uint64_t tokens = r->prompt_tok + r->output_tok;
    put_count(j, "num_requests", r->requests);
    put_count(j, "completed_requests", r->completed);
    put_count(j, "total_input_tokens", r->prompt_tok);
    put_count(j, "total_output_tokens", r->output_tok);
    put_count(j, "processed_tokens", tokens);
    put_real(j, "duration_ms", ms_from_ps(r->run.duration_ps));
    if (!canonical) {
        put_real(j, "wall_time_ms", r->run.wall_ms);
        put_real(j, "processed_tokens_per_s", ratio((double)tokens * 1e3, r->run.wall_ms));
        put_real(j, "processed_output_tokens_per_s",
                 ratio((double)r->output_tok * 1e3, r->run.wall_ms));
    }
    put_count(j, "passes", r->run.passes);
    put_real(j, "request_throughput_rps", per_second(r, r->completed));
    put_real(j, "input_throughput_tok_s", per_second(r, r->prompt_tok));
    put_real(j, "output_throughput_tok_s", per_second(r, r->output_tok));
    put_real(j, "total_throughput_tok_s", per_second(r, tokens));
}

static bool pool_has_tiers(const struct stack_pool *p)
{
    return p->worker.engine.num_host_blocks || p->worker.engine.num_shared_blocks;
}

/* Prompt and answer tokens that came from below the GPU, as shares of all prompt tokens; part of what was
 * reused. Only of stacks that have tiers. */
static void put_tiers(struct json *j, const struct report *r)
{
    uint64_t host = 0, shared = 0;
    bool any = false;
    for (uint32_t p = 0; p < r->info.stack->n_pools; p++)
        any |= pool_has_tiers(&r->info.stack->pools[p]);
    if (!any)
        return;
    for (uint32_t i = 0; i < r->info.n_workers; i++) {
        host += r->workers[i].host_tok;
        shared += r->workers[i].shared_tok;
    }
    put_real(j, "host_cache_reused_ratio", ratio((double)host, (double)r->prompt_tok));
    put_real(j, "shared_cache_reused_ratio", ratio((double)shared, (double)r->prompt_tok));
}

static void put_quality(struct json *j, const struct report *r)
{
    const struct stack *s = r->info.stack;
    put_real(j, "goodput_rps", per_second(r, r->slo_met));
    put_real(j, "goodput_output_tok_s", per_second(r, r->slo_output_tok));
    put_real(j, "slo_attainment", ratio((double)r->slo_met, (double)r->requests));
    put_count(j, "slo_met", r->slo_met);
    open_inline(j, "slo");
    put_limit(j, "ttft_ms", s->slo_ttft_ps);
    put_limit(j, "tpot_ms", s->slo_tpot_ps);
    put_limit(j, "e2e_ms", s->slo_e2e_ps);
    close_inline(j);
    put_real(j, "prefix_cache_reused_ratio",
             ratio((double)r->reused_all_tok, (double)r->prompt_tok));
    put_real(j, "first_admission_prefix_cache_reused_ratio",
             ratio((double)r->reused_tok, (double)r->prompt_tok));
    put_tiers(j, r);
    put_count(j, "preemptions", r->preemptions);
    put_count(j, "retries", r->retries);
    put_count(j, "bad_rows", r->run.bad_rows);
    put_count(j, "failed_rows", r->run.failed_rows);
    put_count(j, "rejected", report_rejected(r));
    open_inline(j, "rejected_by_reason");
    for (enum core_reason k = CORE_REASON_NONE + 1; k < CORE_REASON_COUNT; k++)
        put_count(j, report_reason_name(k), r->over[k]);
    close_inline(j);
}

static void put_latencies(struct json *j, const struct report *r)
{
    put_times(j, "ttft_ms", r->ttft);
    put_times(j, "ttst_ms", r->ttst);
    put_times(j, "tpot_ms", r->tpot);
    put_times(j, "itl_ms", r->itl);
    put_times(j, "e2e_latency_ms", r->e2e);
    put_user_rates(j, r);
    put_real(j, "hist_relative_error", HIST_REL_ERROR);
}

static enum worker_role role_of(const struct report *r, uint32_t pool)
{
    return r->info.stack->pools[pool].worker.engine.role;
}

static double busy_seconds(const struct report *r, enum worker_role role)
{
    double busy_ps = 0;
    for (uint32_t i = 0; i < r->info.n_workers; i++)
        if (role_of(r, r->workers[i].pool) == role)
            busy_ps += (double)r->workers[i].busy_ps;
    return busy_ps / (double)PS_PER_S;
}

/* What workers did. Times are doubles: those of a large pool do not fit into picoseconds. */
struct load {
    double busy_s, up_s;
    uint64_t workers, requests, prompt_tok, output_tok, reused_tok, preemptions, passes;
    uint64_t host_tok, shared_tok, stored_tok, not_stored_tok;
};

static void add_load(struct load *l, const struct report_worker *w)
{
    l->workers++;
    l->busy_s += ms_from_ps(w->busy_ps) / 1e3;
    l->up_s += ms_from_ps(w->up_ps) / 1e3;
    l->requests += w->requests;
    l->prompt_tok += w->prompt_tok;
    l->output_tok += w->output_tok;
    l->reused_tok += w->reused_tok;
    l->preemptions += w->preemptions;
    l->passes += w->passes;
    l->host_tok += w->host_tok;
    l->shared_tok += w->shared_tok;
    l->stored_tok += w->stored_tok;
    l->not_stored_tok += w->not_stored_tok;
}

static void put_load(struct json *j, const struct load *l, const struct stack_pool *p)
{
    put_real(j, "busy_s", l->busy_s);
    put_real(j, "up_s", l->up_s);
    put_real(j, "utilisation", ratio(l->busy_s, l->up_s));
    put_count(j, "requests", l->requests);
    put_count(j, "prompt_tok", l->prompt_tok);
    put_count(j, "output_tok", l->output_tok);
    put_count(j, "reused_tok", l->reused_tok);
    put_count(j, "preemptions", l->preemptions);
    put_count(j, "passes", l->passes);
    if (!pool_has_tiers(p))
        return;
    put_count(j, "host_loaded_tok", l->host_tok);
    put_count(j, "shared_loaded_tok", l->shared_tok);
    put_count(j, "stored_tok", l->stored_tok);
    put_count(j, "not_stored_tok", l->not_stored_tok);
}

static void put_pool(struct json *j, const struct report *r, uint32_t pool)
{
    const struct stack_pool *p = &r->info.stack->pools[pool];
    struct load l = {.workers = 0};
    for (uint32_t i = 0; i < r->info.n_workers; i++)
        if (r->workers[i].pool == pool)
            add_load(&l, &r->workers[i]);
    open_inline(j, NULL);
    put_text(j, "name", p->name);
    put_text(j, "role", report_role_name(p->worker.engine.role));
    put_count(j, "workers", l.workers);
    put_count(j, "gpus", l.workers * gpus_of(r, pool));
    put_load(j, &l, p);
    close_inline(j);
}

static void put_worker(struct json *j, const struct report *r, uint32_t worker)
{
    const struct report_worker *w = &r->workers[worker];
    const struct stack_pool *p = &r->info.stack->pools[w->pool];
    struct load l = {.workers = 0};
    add_load(&l, w);
    open_inline(j, NULL);
    put_count(j, "worker", worker);
    put_text(j, "pool", p->name);
    put_text(j, "role", report_role_name(p->worker.engine.role));
    put_count(j, "gpus", gpus_of(r, w->pool));
    put_load(j, &l, p);
    close_inline(j);
}

static void put_pools(struct json *j, const struct report *r)
{
    put_real(j, "prefill_worker_seconds", busy_seconds(r, ROLE_PREFILL));
    put_real(j, "decode_worker_seconds", busy_seconds(r, ROLE_DECODE));
    put_real(j, "worker_seconds", busy_seconds(r, ROLE_BOTH));
    put_real(j, "gpu_hours", report_gpu_hours(r));
    open_value(j, "pools", '[');
    for (uint32_t i = 0; i < r->info.stack->n_pools; i++)
        put_pool(j, r, i);
    close_value(j, ']');
    open_value(j, "workers", '[');
    for (uint32_t i = 0; i < r->info.n_workers; i++)
        put_worker(j, r, i);
    close_value(j, ']');
}

static void put_report(struct json *j, const struct report *r, bool canonical)
{
    open_value(j, NULL, '{');
    put_setting(j, r);
    put_totals(j, r, canonical);
    put_quality(j, r);
    put_latencies(j, r);
    put_pools(j, r);
    close_value(j, '}');
}

int report_write_json(FILE *out, struct report *const *r, uint32_t n, bool canonical)
{
    struct json j = {.out = out, .inline_from = INT32_MAX, .first = true};
    if (n == 1) {
        put_report(&j, r[0], canonical);
    } else {
        open_value(&j, NULL, '{');
        open_value(&j, "runs", '[');
        for (uint32_t i = 0; i < n; i++)
            put_report(&j, r[i], canonical);
        close_value(&j, ']');
        close_value(&j, '}');
    }
    fputc('\n', out);
    return ferror(out) ? WEIR_E_IO : 0;
}
