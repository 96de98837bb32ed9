/* trace_csv.c - rows of Azure's and BurstGPT's CSV files. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "controller/replay/trace_internal.h"
#include "controller/config/words.h"

#define CSV_MAX_FIELDS 64

struct text {
    const char *s;
    size_t len;
};

static struct text trim(struct text x)
{
    while (x.len && (*x.s == ' ' || *x.s == '\t'))
        x.s++, x.len--;
    while (x.len && (x.s[x.len - 1] == ' ' || x.s[x.len - 1] == '\t'))
        x.len--;
    return x;
}

/* Fields of a line; quotes may surround a whole field. Returns how many, at most CSV_MAX_FIELDS. */
static int csv_split(const char *line, size_t len, struct text *out)
{
    int n = 0;
    const char *p = line, *end = line + len;
    for (;;) {
        const char *q;
        struct text f;
        if (p < end && *p == '"' && (q = memchr(p + 1, '"', (size_t)(end - p - 1))) &&
            (q + 1 == end || q[1] == ',')) {
            f = (struct text){p + 1, (size_t)(q - p - 1)};
            p = q + 1;
        } else {
            q = memchr(p, ',', (size_t)(end - p));
            f = (struct text){p, (size_t)((q ? q : end) - p)};
            p = q ? q : end;
        }
        if (n < CSV_MAX_FIELDS)
            out[n++] = trim(f);
        if (p == end)
            return n;
        p++;
    }
}

static bool same_name(struct text x, const char *name)
{
    return x.len == strlen(name) && !strncasecmp(x.s, name, x.len);
}

static const struct {
    const char *name;
    enum csv_column column;
} csv_names[] = {
    {"timestamp", COL_TIME},       {"contexttokens", COL_IN},    {"generatedtokens", COL_OUT},
    {"request tokens", COL_IN},    {"response tokens", COL_OUT}, {"session id", COL_SESSION},
    {"elapsed time", COL_ELAPSED},
};

/* Reads a header line into t->column. AUTO: it is none; otherwise the format that it belongs to. */
static enum trace_format csv_header(struct trace *t, const char *line, size_t len)
{
    struct text f[CSV_MAX_FIELDS];
    int n = csv_split(line, len, f), column[COL_N];
    enum trace_format format = TRACE_AUTO;
    for (int c = 0; c < COL_N; c++)
        column[c] = -1;
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < sizeof csv_names / sizeof csv_names[0]; k++)
            if (same_name(f[i], csv_names[k].name) && column[csv_names[k].column] < 0) {
                column[csv_names[k].column] = i;
                if (csv_names[k].column == COL_OUT)
                    format = k == 2 ? TRACE_AZURE : TRACE_BURSTGPT;
            }
    if (column[COL_TIME] < 0 || column[COL_IN] < 0 || column[COL_OUT] < 0)
        return TRACE_AUTO;
    memcpy(t->column, column, sizeof column);
    return format;
}

int trace_csv_begin(struct trace *t)
{
    char b[TRACE_QUOTE_BYTES];
    enum trace_format f = csv_header(t, t->line, t->len);
    if (t->format == TRACE_AUTO)
        t->format = f;
    if (f != TRACE_AUTO && f == t->format) {
        t->pending = false;
        return 0;
    }
    if (t->format == TRACE_AUTO)
        return trace_bad(t,
                         "expected a JSON object or the header of an Azure or BurstGPT CSV, found "
                         "'%s'; is this a trace? If it lacks its header, name --format",
                         input_quote(b, sizeof b, t->line, t->len, TRACE_QUOTE_CHARS));
    bool azure = t->format == TRACE_AZURE;
    if (t->len && t->line[0] >= '0' && t->line[0] <= '9') { /* no header: columns as published */
        for (int c = 0; c < COL_N; c++)
            t->column[c] = -1;
        t->column[COL_TIME] = 0;
        t->column[COL_IN] = azure ? 1 : 2;
        t->column[COL_OUT] = azure ? 2 : 3;
        return 0;
    }
    return trace_bad(t, "expected the header %s, found '%s'; is --format right?",
                     azure ? "TIMESTAMP,ContextTokens,GeneratedTokens"
                           : "Timestamp,Model,Request tokens,Response tokens,...",
                     input_quote(b, sizeof b, t->line, t->len, TRACE_QUOTE_CHARS));
}

static int want_column(struct trace *t, const struct text *f, int n, enum csv_column c,
                       const char *name, struct text *out)
{
    if (t->column[c] >= n)
        return trace_bad(t, "expected at least %d columns, found %d: no %s" TRACE_FIX,
                         t->column[c] + 1, n, name);
    *out = f[t->column[c]];
    return 0;
}

static int want_csv_tokens(struct trace *t, struct text x, const char *name, uint64_t *out)
{
    uint64_t v = 0;
    size_t i = 0;
    for (; i < x.len && x.s[i] >= '0' && x.s[i] <= '9' && v <= TRACE_TOKENS_MAX; i++)
        v = v * 10 + (uint64_t)(x.s[i] - '0');
    bool ok = i > 0 && v <= TRACE_TOKENS_MAX;
    if (ok && i < x.len && x.s[i] == '.') /* 12.0 as some tools write it */
        for (i++; i < x.len && x.s[i] == '0';)
            i++;
    *out = v;
    char b[TRACE_QUOTE_BYTES];
    if (ok && i == x.len)
        return 0;
    return trace_bad(t, "expected %s to be a whole number of tokens, 0 to %u, found '%s'" TRACE_FIX,
                     name, TRACE_TOKENS_MAX,
                     input_quote(b, sizeof b, x.s, x.len, TRACE_QUOTE_CHARS));
}

/* Digits of a fraction behind a point, as picoseconds; digits beyond the 12th are cut. Returns the
 * first character behind them. */
static size_t take_fraction(struct text x, size_t i, int64_t *ps)
{
    int64_t unit = PS_PER_S / 10;
    *ps = 0;
    for (; i < x.len && x.s[i] >= '0' && x.s[i] <= '9'; i++) {
        *ps += unit * (x.s[i] - '0');
        unit /= 10;
    }
    return i;
}

/* Seconds: 12 or 12.5, exactly. */
static bool take_seconds(struct text x, wide_ps *out)
{
    uint64_t s = 0;
    size_t i = 0;
    for (; i < x.len && x.s[i] >= '0' && x.s[i] <= '9' && s <= TRACE_TIME_MS_MAX; i++)
        s = s * 10 + (uint64_t)(x.s[i] - '0');
    int64_t frac = 0;
    bool ok = i > 0 && s <= TRACE_TIME_MS_MAX;
    if (ok && i < x.len && x.s[i] == '.')
        i = take_fraction(x, i + 1, &frac);
    *out = (wide_ps)s * PS_PER_S + frac;
    return ok && i == x.len;
}

static int digits(const char *s, int n)
{
    int v = 0;
    while (n--) {
        if (*s < '0' || *s > '9')
            return -1;
        v = v * 10 + (*s++ - '0');
    }
    return v;
}

/* Days since 1970-01-01 of the proleptic Gregorian calendar (Hinnant, days_from_civil). */
static int64_t days_from_civil(int y, int m, int d)
{
    y -= m <= 2;
    int era = y / 400, yoe = y - era * 400;
    int doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    int doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    return (int64_t)era * 146097 + doe - 719468;
}

/* YYYY-MM-DD HH:MM:SS[.fraction][Z|+HH:MM|-HH:MM]; without a zone it is UTC. */
static bool take_date(struct text x, wide_ps *out)
{
    static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (x.len < 19 || x.s[4] != '-' || x.s[7] != '-' || (x.s[10] != ' ' && x.s[10] != 'T') ||
        x.s[13] != ':' || x.s[16] != ':')
        return false;
    int y = digits(x.s, 4), mo = digits(x.s + 5, 2), d = digits(x.s + 8, 2);
    int h = digits(x.s + 11, 2), mi = digits(x.s + 14, 2), sec = digits(x.s + 17, 2);
    if (y < 1970 || mo < 1 || mo > 12 || d < 1 || h < 0 || h > 23 || mi < 0 || mi > 59 || sec < 0 ||
        sec > 59)
        return false;
    bool leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    if (d > month_days[mo - 1] + (mo == 2 && leap))
        return false;
    int64_t frac = 0, zone_s = 0;
    size_t i = 19;
    if (i < x.len && x.s[i] == '.') {
        i = take_fraction(x, i + 1, &frac);
        if (i == 20)
            return false;
    }
    if (i + 1 == x.len && x.s[i] == 'Z')
        i++;
    if (i + 6 == x.len && (x.s[i] == '+' || x.s[i] == '-') && x.s[i + 3] == ':') {
        int zh = digits(x.s + i + 1, 2), zm = digits(x.s + i + 4, 2);
        if (zh < 0 || zh > 23 || zm < 0 || zm > 59)
            return false;
        zone_s = (zh * 3600 + zm * 60) * (x.s[i] == '-' ? -1 : 1);
        i += 6;
    }
    int64_t s = ((days_from_civil(y, mo, d) * 24 + h) * 60 + mi) * 60 + sec - zone_s;
    *out = (wide_ps)s * PS_PER_S + frac;
    return i == x.len;
}

static int take_extra(struct trace *t, const struct text *f, int n, struct row *r)
{
    struct text x;
    char b[TRACE_QUOTE_BYTES];
    wide_ps ps;
    if (t->column[COL_SESSION] >= 0) {
        int rc = want_column(t, f, n, COL_SESSION, "Session ID", &x);
        if (rc)
            return rc;
        r->session = x.len ? trace_hash_name(x.s, x.len) : 0;
    }
    if (t->column[COL_ELAPSED] >= 0) {
        int rc = want_column(t, f, n, COL_ELAPSED, "Elapsed time", &x);
        if (rc)
            return rc;
        if (x.len && !take_seconds(x, &ps))
            return trace_bad(t, "expected Elapsed time in seconds, found '%s'" TRACE_FIX,
                             input_quote(b, sizeof b, x.s, x.len, TRACE_QUOTE_CHARS));
        r->e2e_ms = x.len ? (double)ps / 1e9 : -1;
    }
    return 0;
}

int trace_csv_row(struct trace *t, struct row *r)
{
    bool azure = t->format == TRACE_AZURE;
    const char *in_name = azure ? "ContextTokens" : "Request tokens";
    const char *out_name = azure ? "GeneratedTokens" : "Response tokens";
    char b[TRACE_QUOTE_BYTES];
    size_t good = utf8_span(t->line, t->len);
    if (good < t->len)
        return trace_bad(t, "expected UTF-8 text, found '%s' at column %zu" TRACE_FIX,
                         input_quote(b, sizeof b, t->line + good, t->len - good, 1), good + 1);
    struct text f[CSV_MAX_FIELDS], time, in, out;
    int n = csv_split(t->line, t->len, f), rc;
    if ((rc = want_column(t, f, n, COL_TIME, "timestamp", &time)) ||
        (rc = want_column(t, f, n, COL_IN, in_name, &in)) ||
        (rc = want_column(t, f, n, COL_OUT, out_name, &out)))
        return rc;
    if (!(azure ? take_date(time, &r->time_ps) : take_seconds(time, &r->time_ps)))
        return trace_bad(t, "expected a time as %s, found '%s'" TRACE_FIX,
                         azure ? "2024-05-10 00:00:00.009930+00:00" : "seconds, 0 or more",
                         input_quote(b, sizeof b, time.s, time.len, TRACE_QUOTE_CHARS));
    if ((rc = want_csv_tokens(t, in, in_name, &r->in_tok)) ||
        (rc = want_csv_tokens(t, out, out_name, &r->out_tok)))
        return rc;
    r->has_time = r->has_in = r->has_out = true;
    if (azure && !r->out_tok)
        r->out_tok = 1; /* a prefill always yields a token */
    r->failed = !azure && !r->out_tok;
    return azure ? 0 : take_extra(t, f, n, r);
}
