/* report_table.c - the table that a person reads first: what was replayed, then one row a
 * policy.
 *
 * Units and decimals are chosen for each group of columns from all its values, so that a column
 * reads as one. Where the terminal is too narrow the space between columns goes first, then
 * whole columns (drop_order); the order of those that stay never changes.
 */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "controller/replay/report.h"
#include "controller/replay/report_internal.h"
#include "predictor/units.h"

#define WIDTH_UNKNOWN 100
#define CELL_BYTES 32
#define TEXT_BYTES 2048
#define LABEL_WIDTH 10
#define POOLS_NAMED 6
#define SECONDS_FROM_MS 10000 /* a group with a larger value is shown in seconds */

enum column_id {
    C_GOODPUT,
    C_SLO,
    C_TTFT50,
    C_TTFT90,
    C_TTFT99,
    C_TPOT50,
    C_TPOT90,
    C_TPOT99,
    C_E2E50,
    C_E2E90,
    C_E2E99,
    C_REUSE,
    C_PREEMPT,
    C_GPU_H,
    C_WALL,
    N_COLUMNS
};

enum group { G_QUALITY, G_TTFT, G_TPOT, G_E2E, G_COST, N_GROUPS };

struct column {
    enum group group;
    const char *top, *bottom; /* heading; top of latencies is the group's title */
    int decimals;             /* -1: by the values */
    bool more_is_better;
    double quantile;
};

static const struct column columns[N_COLUMNS] = {
    [C_GOODPUT] = {G_QUALITY, "goodput", "req/s", -1, true, 0},
    [C_SLO] = {G_QUALITY, "SLO", "%", 1, true, 0},
    [C_TTFT50] = {G_TTFT, "TTFT", "p50", -1, false, 0.5},
    [C_TTFT90] = {G_TTFT, "TTFT", "p90", -1, false, 0.9},
    [C_TTFT99] = {G_TTFT, "TTFT", "p99", -1, false, 0.99},
    [C_TPOT50] = {G_TPOT, "TPOT", "p50", -1, false, 0.5},
    [C_TPOT90] = {G_TPOT, "TPOT", "p90", -1, false, 0.9},
    [C_TPOT99] = {G_TPOT, "TPOT", "p99", -1, false, 0.99},
    [C_E2E50] = {G_E2E, "E2E", "p50", -1, false, 0.5},
    [C_E2E90] = {G_E2E, "E2E", "p90", -1, false, 0.9},
    [C_E2E99] = {G_E2E, "E2E", "p99", -1, false, 0.99},
    [C_REUSE] = {G_COST, "reuse", "%", 1, true, 0},
    [C_PREEMPT] = {G_COST, "pre-", "empt", 0, false, 0},
    [C_GPU_H] = {G_COST, "GPU", "h", -1, false, 0},
    [C_WALL] = {G_COST, "wall", "ms", -1, false, 0},
};

/* What goes, one step after another, until the table fits. */
static const struct {
    const char *name;
    uint32_t columns;
} drop_order[] = {
    {"p90", 1u << C_TTFT90 | 1u << C_TPOT90 | 1u << C_E2E90},
    {"E2E p50", 1u << C_E2E50},
    {"GPU h", 1u << C_GPU_H},
    {"wall", 1u << C_WALL},
    {"preempt", 1u << C_PREEMPT},
    {"reuse", 1u << C_REUSE},
    {"p50", 1u << C_TTFT50 | 1u << C_TPOT50},
};

#define N_DROPS (sizeof drop_order / sizeof *drop_order)

struct table {
    FILE *out;
    struct report *const *r;
    uint32_t n;
    int width;           /* of the terminal */
    bool colour, footer; /* footer: something stands below the table */
    int name_width;
    uint32_t shown; /* 1 << column_id */
    uint32_t n_dropped;
    int space, gap; /* between columns, and more between groups */
    int owed;       /* spaces not printed yet */
    bool seconds[N_GROUPS];
    struct {
        int decimals, width;
        bool marked; /* values differ: the best one is marked */
        char best[CELL_BYTES];
    } column[N_COLUMNS];
};

/* ---- text ---- */

struct text {
    char s[TEXT_BYTES];
    size_t len;
};

__attribute__((format(printf, 2, 3))) static void say(struct text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->s + t->len, sizeof t->s - t->len, format, args);
    va_end(args);
    if (n > 0)
        t->len += (size_t)n;
    if (t->len >= sizeof t->s)
        t->len = sizeof t->s - 1;
}

/* 1234567 as 1,234,567. */
static void say_count(struct text *t, uint64_t n)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%" PRIu64, n);
    for (int i = 0; i < len; i++)
        say(t, "%s%c", i && (len - i) % 3 == 0 ? "," : "", digits[i]);
}

static void say_duration(struct text *t, double s)
{
    if (s < 120)
        say(t, "%.1f s", s);
    else if (s < 120 * 60)
        say(t, "%.1f min", s / 60);
    else
        say(t, "%.1f h", s / 3600);
}

/* A name from outside: without control characters. */
static void say_name(struct text *t, const char *name)
{
    for (; *name; name++)
        say(t, "%c", (unsigned char)*name < 0x20 || *name == 0x7f ? '?' : *name);
}

static void style(const struct table *t, const char *code)
{
    if (t->colour)
        fprintf(t->out, "\033[%sm", code);
}

/* "label     text", text broken at spaces and hung under its start. */
static void print_labelled(const struct table *t, const char *label, const struct text *text)
{
    int at = LABEL_WIDTH;
    style(t, "1");
    fprintf(t->out, "%-*s", LABEL_WIDTH, label);
    style(t, "0");
    for (const char *word = text->s; *word;) {
        int len = (int)strcspn(word, " ");
        if (at > LABEL_WIDTH && at + 1 + len > t->width) {
            fprintf(t->out, "\n%*s", LABEL_WIDTH, "");
            at = LABEL_WIDTH;
        }
        at += fprintf(t->out, "%s%.*s", at > LABEL_WIDTH ? " " : "", len, word);
        word += len + (word[len] == ' ');
    }
    fputc('\n', t->out);
}

/* ---- the lines above the table ---- */

static void print_trace(const struct table *t)
{
    const struct report_info *info = &t->r[0]->info;
    struct text text = {.len = 0}, last = {.len = 0};
    double shortest = ms_from_ps(t->r[0]->run.duration_ps) / 1e3, longest = shortest;
    for (uint32_t i = 1; i < t->n; i++) {
        double s = ms_from_ps(t->r[i]->run.duration_ps) / 1e3;
        shortest = s < shortest ? s : shortest;
        longest = s > longest ? s : longest;
    }
    say_name(&text, info->trace_name ? info->trace_name : "trace");
    say(&text, ": ");
    say_count(&text, t->r[0]->requests);
    say(&text, " requests in ");
    size_t from = text.len;
    say_duration(&text, shortest);
    say_duration(&last, longest);
    if (strcmp(text.s + from, last.s))
        say(&text, " to %s", last.s);
    if (info->concurrency)
        say(&text, ", closed loop with %" PRIu32 " in flight", info->concurrency);
    else if (info->speedup < 1 || info->speedup > 1)
        say(&text, ", speedup %g", info->speedup);
    say(&text, ", seed %" PRIu64, info->seed);
    print_labelled(t, "trace", &text);
}

static void say_pool(struct text *text, const struct stack_pool *p, bool named)
{
    static const char *const engines[] = {"vllm", "sglang", "trtllm", "dynosim"};
    enum worker_role role = p->worker.engine.role;
    uint32_t gpus = p->worker.gpus ? p->worker.gpus : 1;
    say(text, "%" PRIu32 " %s worker%s (", p->workers,
        role == ROLE_BOTH ? "aggregated" : report_role_name(role), p->workers == 1 ? "" : "s");
    if (named && strcmp(p->name, report_role_name(role))) {
        say_name(text, p->name);
        say(text, ", ");
    }
    say(text, "%s, %" PRIu32 " GPU%s%s)", engines[p->worker.engine.scheduler], gpus,
        gpus == 1 ? "" : "s", p->workers == 1 ? "" : " each");
}

static void print_stack(const struct table *t)
{
    const struct report_info *info = &t->r[0]->info;
    const struct stack *s = info->stack;
    struct text text = {.len = 0};
    say_name(&text, info->stack_name ? info->stack_name : "default");
    say(&text, ":");
    for (uint32_t i = 0; i < s->n_pools && i < POOLS_NAMED; i++) {
        say(&text, i ? " + " : " ");
        say_pool(&text, &s->pools[i], s->n_pools > 1);
    }
    if (s->n_pools > POOLS_NAMED)
        say(&text, " + %" PRIu32 " more pools", s->n_pools - POOLS_NAMED);
    if (s->n_faults)
        say(&text, "; %" PRIu32 " fault%s", s->n_faults, s->n_faults == 1 ? "" : "s");
    print_labelled(t, "stack", &text);
}

static void say_limit(struct text *text, const char *name, int64_t limit_ps)
{
    double ms = ms_from_ps(limit_ps);
    if (limit_ps == PS_NEVER)
        return;
    if (text->len)
        say(text, ", ");
    if (ms >= 1000)
        say(text, "%s %g s", name, ms / 1000);
    else
        say(text, "%s %g ms", name, ms);
}

static void print_setting(const struct table *t)
{
    const struct report_info *info = &t->r[0]->info;
    struct text text = {.len = 0};
    print_trace(t);
    print_stack(t);
    say_limit(&text, "TTFT", info->stack->slo_ttft_ps);
    say_limit(&text, "TPOT", info->stack->slo_tpot_ps);
    say_limit(&text, "E2E", info->stack->slo_e2e_ps);
    if (!text.len)
        say(&text, "none: goodput counts every completed request");
    print_labelled(t, "SLO", &text);
    text.len = 0;
    if (info->oracle)
        say(&text,
            "oracle: the policies were told what no live router knows (output lengths, state "
            "without delay)");
    if (info->oracle && info->stepped)
        say(&text, "; ");
    if (info->stepped)
        say(&text, "stepped: one engine pass at a time, the slow path");
    if (text.len)
        print_labelled(t, "note", &text);
    fputc('\n', t->out);
}

/* ---- values ---- */

static double quantile_ms(const struct hist *h, double q)
{
    return hist_count(h) ? ms_from_ps(hist_quantile_ps(h, q)) : NAN;
}

/* NAN: there is none. */
static double value_of(const struct report *r, enum column_id c)
{
    struct report_summary s;
    switch (columns[c].group) {
    case G_TTFT: return quantile_ms(r->ttft, columns[c].quantile);
    case G_TPOT: return quantile_ms(r->tpot, columns[c].quantile);
    case G_E2E: return quantile_ms(r->e2e, columns[c].quantile);
    default: break;
    }
    report_summarise(r, &s);
    switch (c) {
    case C_GOODPUT: return s.goodput_rps;
    case C_SLO: return s.requests ? s.slo_attainment * 100 : NAN;
    case C_REUSE: return s.completed ? s.reuse * 100 : NAN;
    case C_PREEMPT: return (double)s.preemptions;
    case C_GPU_H: return s.gpu_hours;
    default: return r->run.wall_ms;
    }
}

static void format_cell(const struct table *t, double x, enum column_id c, char *cell)
{
    if (isnan(x)) {
        snprintf(cell, CELL_BYTES, "-");
        return;
    }
    if (t->seconds[columns[c].group])
        x /= 1000;
    snprintf(cell, CELL_BYTES, "%.*f", t->column[c].decimals, x);
}

/* ---- layout ---- */

/* Three significant digits for the largest value (quantiles are good to 0.1 %), two for the
 * smallest above 0, but not more than two decimals for that. */
static int decimals_for(double least, double most)
{
    int by_most = most <= 0 ? 0 : most < 1 ? 3 : most < 10 ? 2 : most < 100 ? 1 : 0;
    int by_least = least < 1 ? 2 : least < 10 ? 1 : 0;
    return by_most > by_least ? by_most : by_least;
}

/* Unit and decimals of the columns from..to, which share them. */
static void choose_unit(struct table *t, enum column_id from, enum column_id to)
{
    enum group g = columns[from].group;
    bool time = g == G_TTFT || g == G_TPOT || g == G_E2E;
    double least = INFINITY, most = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        for (enum column_id c = from; c <= to; c++) {
            double x = value_of(t->r[i], c);
            most = x > most ? x : most;
            least = x > 0 && x < least ? x : least;
        }
    }
    t->seconds[g] = time && most >= SECONDS_FROM_MS;
    double unit = t->seconds[g] ? 1000 : 1;
    for (enum column_id c = from; c <= to; c++)
        t->column[c].decimals = columns[c].decimals >= 0 ? columns[c].decimals
                                                         : decimals_for(least / unit, most / unit);
}

static void measure_column(struct table *t, enum column_id c)
{
    bool latency = columns[c].quantile > 0;
    char cell[CELL_BYTES];
    double best = NAN;
    int width = latency ? 4 : (int)strlen(columns[c].top);
    int bottom = (int)strlen(columns[c].bottom);
    width = bottom > width ? bottom : width;
    for (uint32_t i = 0; i < t->n; i++) {
        double x = value_of(t->r[i], c);
        if (isnan(best) || (columns[c].more_is_better ? x > best : x < best))
            best = x;
        format_cell(t, x, c, cell);
        width = (int)strlen(cell) > width ? (int)strlen(cell) : width;
    }
    t->column[c].width = width;
    format_cell(t, best, c, t->column[c].best);
    for (uint32_t i = 0; i < t->n && !isnan(best); i++) {
        format_cell(t, value_of(t->r[i], c), c, cell);
        t->column[c].marked |= strcmp(cell, t->column[c].best) != 0;
    }
}

/* Columns of screen that c takes, without what separates it. An asterisk needs one more. */
static int column_width(const struct table *t, enum column_id c)
{
    return t->column[c].width + (t->column[c].marked && !t->colour);
}

static bool is_shown(const struct table *t, enum column_id c)
{
    return t->shown & 1u << c;
}

static bool starts_group(const struct table *t, enum column_id c)
{
    for (int before = (int)c - 1; before >= 0; before--)
        if (is_shown(t, (enum column_id)before))
            return columns[before].group != columns[c].group;
    return true;
}

static const char *title_of(const struct table *t, enum column_id c, char *title)
{
    snprintf(title, CELL_BYTES, "%s %s", columns[c].top, t->seconds[columns[c].group] ? "s" : "ms");
    return title;
}

/* Width of the columns of c's group that are shown, c being the first of them. */
static int group_width(const struct table *t, enum column_id c)
{
    int width = column_width(t, c);
    for (enum column_id k = c + 1; k < N_COLUMNS && columns[k].group == columns[c].group; k++)
        if (is_shown(t, k))
            width += t->space + column_width(t, k);
    return width;
}

/* How much wider than its columns the title of the group that starts at c is. */
static int title_excess(const struct table *t, enum column_id c)
{
    char title[CELL_BYTES];
    int excess =
        columns[c].quantile > 0 ? (int)strlen(title_of(t, c, title)) - group_width(t, c) : 0;
    return excess > 0 ? excess : 0;
}

static int space_before(const struct table *t, enum column_id c)
{
    return t->space + (starts_group(t, c) ? t->gap + title_excess(t, c) : 0);
}

static int table_width(const struct table *t)
{
    int width = t->name_width;
    for (enum column_id c = 0; c < N_COLUMNS; c++)
        if (is_shown(t, c))
            width += space_before(t, c) + column_width(t, c);
    return width;
}

static void fit(struct table *t)
{
    static const struct {
        int space, gap;
    } tries[] = {{2, 2}, {2, 1}, {1, 2}, {1, 1}};
    t->shown = (1u << N_COLUMNS) - 1;
    for (;;) {
        for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
            t->space = tries[i].space;
            t->gap = tries[i].gap;
            if (table_width(t) <= t->width)
                return;
        }
        if (t->n_dropped == N_DROPS)
            return;
        t->shown &= ~drop_order[t->n_dropped++].columns;
    }
}

static void lay_out(struct table *t)
{
    t->name_width = (int)strlen("policy");
    for (uint32_t i = 0; i < t->n; i++) {
        int len = (int)strlen(t->r[i]->info.policy);
        t->name_width = len > t->name_width ? len : t->name_width;
    }
    choose_unit(t, C_TTFT50, C_TTFT99);
    choose_unit(t, C_TPOT50, C_TPOT99);
    choose_unit(t, C_E2E50, C_E2E99);
    for (enum column_id c = 0; c < N_COLUMNS; c++) {
        if (columns[c].quantile <= 0)
            choose_unit(t, c, c);
        measure_column(t, c);
    }
    fit(t);
}

/* ---- the table ---- */

/* Spaces, held back until something follows them on the line. */
static void skip(struct table *t, int n)
{
    t->owed += n;
}

static void print_text(struct table *t, const char *text)
{
    fprintf(t->out, "%*s%s", t->owed, "", text);
    t->owed = 0;
}

static void end_line(struct table *t)
{
    fputc('\n', t->out);
    t->owed = 0;
}

/* The title of the latencies that start at c, between dashes over all its columns. */
static void print_title(struct table *t, enum column_id c)
{
    char title[CELL_BYTES];
    int len = (int)strlen(title_of(t, c, title)), width = group_width(t, c);
    int dashes = width - len - 2;
    skip(t, space_before(t, c));
    if (dashes < 2) {
        skip(t, width - len);
        print_text(t, title);
        return;
    }
    print_text(t, "");
    for (int i = 0; i < dashes / 2; i++)
        fputc('-', t->out);
    fprintf(t->out, " %s ", title);
    for (int i = dashes / 2; i < dashes; i++)
        fputc('-', t->out);
}

static void print_cell(struct table *t, enum column_id c, const char *text, bool best)
{
    int slot = column_width(t, c) - t->column[c].width;
    skip(t, space_before(t, c) + t->column[c].width - (int)strlen(text));
    print_text(t, "");
    if (best)
        style(t, "1;32");
    print_text(t, text);
    if (best)
        style(t, "0");
    if (slot && best)
        print_text(t, "*");
    else
        skip(t, slot);
}

static void print_name(struct table *t, const char *name)
{
    print_text(t, name);
    skip(t, t->name_width - (int)strlen(name));
}

static void print_headings(struct table *t)
{
    style(t, "1");
    skip(t, t->name_width);
    for (enum column_id c = 0; c < N_COLUMNS; c++) {
        if (!is_shown(t, c))
            continue;
        if (columns[c].quantile <= 0)
            print_cell(t, c, columns[c].top, false);
        else if (starts_group(t, c))
            print_title(t, c);
    }
    end_line(t);
    print_name(t, "policy");
    for (enum column_id c = 0; c < N_COLUMNS; c++)
        if (is_shown(t, c))
            print_cell(t, c, columns[c].bottom, false);
    style(t, "0");
    end_line(t);
}

static void print_row(struct table *t, const struct report *r)
{
    char cell[CELL_BYTES];
    print_name(t, r->info.policy);
    for (enum column_id c = 0; c < N_COLUMNS; c++) {
        if (!is_shown(t, c))
            continue;
        format_cell(t, value_of(r, c), c, cell);
        print_cell(t, c, cell, t->column[c].marked && !strcmp(cell, t->column[c].best));
    }
    end_line(t);
}

/* ---- the lines below the table ---- */

/* An empty line before the first of them. */
static void begin_footer(struct table *t)
{
    if (!t->footer)
        fputc('\n', t->out);
    t->footer = true;
}

static void print_legend(struct table *t)
{
    bool marked = false;
    struct text text = {.len = 0};
    for (enum column_id c = 0; c < N_COLUMNS; c++)
        marked |= is_shown(t, c) && t->column[c].marked;
    if (marked) {
        begin_footer(t);
        style(t, "1;32");
        fprintf(t->out, "%-*s", LABEL_WIDTH, t->colour ? "green" : "*");
        style(t, "0");
        fputs("best of its column\n", t->out);
    }
    if (!t->n_dropped)
        return;
    begin_footer(t);
    for (uint32_t i = 0; i < t->n_dropped; i++)
        say(&text, "%s%s", i ? ", " : "", drop_order[i].name);
    say(&text, " (to fit %d columns; --report has them)", t->width);
    print_labelled(t, "left out", &text);
}

static void print_rejected(struct table *t, const struct report *r)
{
    struct text text = {.len = 0};
    const char *join = " (";
    if (!report_rejected(r))
        return;
    begin_footer(t);
    say(&text, "%-*s  ", t->name_width, r->info.policy);
    say_count(&text, report_rejected(r));
    say(&text, " of ");
    say_count(&text, r->requests);
    for (enum core_reason k = CORE_REASON_NONE + 1; k < CORE_REASON_COUNT; k++) {
        if (!r->over[k])
            continue;
        say(&text, "%s%s ", join, report_reason_name(k));
        say_count(&text, r->over[k]);
        join = ", ";
    }
    say(&text, ")");
    print_labelled(t, "rejected", &text);
}

static void print_retries(struct table *t)
{
    struct text text = {.len = 0};
    for (uint32_t i = 0; i < t->n; i++) {
        if (!t->r[i]->retries)
            continue;
        say(&text, "%s%s ", text.len ? ", " : "", t->r[i]->info.policy);
        say_count(&text, t->r[i]->retries);
    }
    if (!text.len)
        return;
    begin_footer(t);
    print_labelled(t, "retries", &text);
}

static void print_bad_rows(struct table *t)
{
    struct text text = {.len = 0};
    if (!t->r[0]->run.bad_rows)
        return;
    begin_footer(t);
    say_count(&text, t->r[0]->run.bad_rows);
    say(&text, " of the trace were skipped; the first: ");
    say_name(&text, t->r[0]->run.first_bad);
    print_labelled(t, "bad rows", &text);
}

static void print_failed_rows(struct table *t)
{
    struct text text = {.len = 0};
    if (!t->r[0]->run.failed_rows)
        return;
    begin_footer(t);
    say_count(&text, t->r[0]->run.failed_rows);
    say(&text, " of the trace were skipped: they failed when they were recorded");
    print_labelled(t, "failed", &text);
}

void report_print_table(FILE *out, struct report *const *r, uint32_t n, int width, bool colour)
{
    struct table t = {
        .out = out, .r = r, .n = n, .width = width > 0 ? width : WIDTH_UNKNOWN, .colour = colour};
    if (!n)
        return;
    lay_out(&t);
    print_setting(&t);
    print_headings(&t);
    for (uint32_t i = 0; i < n; i++)
        print_row(&t, r[i]);
    print_legend(&t);
    for (uint32_t i = 0; i < n; i++)
        print_rejected(&t, r[i]);
    print_retries(&t);
    print_bad_rows(&t);
    print_failed_rows(&t);
}
