/* trace.c - see trace.h.
 *
 *   input (lines) -> row parser of the format -> struct row -> check_row, take_row -> request
 *
 * A parser only extracts; everything that can be wrong with a row besides its spelling is checked once,
 * in check_row. Nothing of the trace's state changes before a row is known to be good, so that a bad one
 * can be left out (skip_bad).
 */
#include "controller/replay/trace.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "controller/replay/trace_internal.h"
#include "predictor/request.h"

static_assert(INPUT_ERROR_BYTES == TRACE_ERROR_BYTES, "messages are passed through");

#define MOONCAKE_BLOCK_TOK 512u

/* What the trace lets a row be, found before anything changes. */
struct verdict {
    bool follows;
    int64_t arrival_ps;
    uint64_t prompt_tok, block_tok;
    struct session *session; /* found, or the empty slot; NULL: none */
};

/* ---- messages ------------------------------------------------------------------------------- */

int trace_bad(struct trace *t, const char *fmt, ...)
{
    int n = snprintf(t->error, sizeof t->error, "%s:%llu: ", input_name(t->in),
                     (unsigned long long)input_line_number(t->in));
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->error + n, sizeof t->error - (size_t)n, fmt, ap);
    va_end(ap);
    return WEIR_E_INPUT;
}

int trace_no_memory(struct trace *t)
{
    trace_bad(t, "out of memory");
    t->failed = WEIR_E_NOMEM;
    return WEIR_E_NOMEM;
}

/* ---- values ---------------------------------------------------------------------------------- */

uint64_t trace_hash_name(const char *s, size_t len)
{
    uint64_t h = XXH3_64bits(s, len);
    return h ? h : 1;
}

static int grow(struct trace *t, uint64_t **array, size_t *have, size_t want)
{
    if (want <= *have)
        return 0;
    size_t cap = *have ? *have : 1024;
    while (cap < want)
        cap *= 2;
    uint64_t *p = realloc(*array, cap * sizeof *p);
    if (!p)
        return trace_no_memory(t);
    *array = p;
    *have = cap;
    return 0;
}

int trace_grow_ids(struct trace *t, size_t want)
{
    return grow(t, &t->ids, &t->ids_cap, want);
}

int trace_grow_out_ids(struct trace *t, size_t want)
{
    return grow(t, &t->out_ids, &t->out_ids_cap, want);
}

/* ---- sessions ---------------------------------------------------------------------------------- */

static struct session *session_slot(const struct trace *t, uint64_t id)
{
    size_t i = rng_mix64(id) & (t->sessions_cap - 1);
    while (t->sessions[i].id && t->sessions[i].id != id)
        i = (i + 1) & (t->sessions_cap - 1);
    return &t->sessions[i];
}

static struct session *session_find(const struct trace *t, uint64_t id)
{
    if (!id || !t->sessions_cap)
        return NULL;
    struct session *s = session_slot(t, id);
    return s->id ? s : NULL;
}

/* Room for one more session; slots move. */
static int session_reserve(struct trace *t)
{
    if (t->sessions_used >= TRACE_SESSIONS_MAX)
        return trace_bad(
            t, "more than %u sessions in one trace, the most there may be; split the trace",
            TRACE_SESSIONS_MAX);
    if (t->sessions_used * 2 < t->sessions_cap)
        return 0;
    size_t old_cap = t->sessions_cap;
    struct session *old = t->sessions;
    size_t cap = old_cap ? old_cap * 2 : 256;
    struct session *p = calloc(cap, sizeof *p);
    if (!p)
        return trace_no_memory(t);
    t->sessions = p;
    t->sessions_cap = cap;
    for (size_t i = 0; i < old_cap; i++)
        if (old[i].id)
            *session_slot(t, old[i].id) = old[i];
    free(old);
    return 0;
}

/* ---- from row to request ------------------------------------------------------------------------ */

/* Names of the slots of a delta row's prompt, see trace.h; s->keys up to the previous prompt stay. */
static void delta_keys(const struct trace *t, struct session *s, const struct row *r,
                       uint64_t prompt)
{
    uint64_t kt = t->key_tok, bt = t->opt.block_tok;
    uint64_t before = s->prompt_tok, total = s->total_tok; /* 0 and 0 at the first turn */
    uint64_t n = (prompt + kt - 1) / kt, generated = request_generated_key(s->uid);
    uint64_t alone = rng_mix64(t->rows ^ UINT64_C(0x6e6577)); /* names input without hash_ids */
    for (uint64_t i = before / kt; i < n; i++) {
        uint64_t from = i * kt, to = from + kt < prompt ? from + kt : prompt;
        uint64_t key = i ? s->keys[i - 1] : 0;
        if (from + kt <= total) {
            s->keys[i] = generated;
            continue;
        }
        if (from < total) {
            key = request_chain_key(key, generated);
            from = total;
        }
        for (uint64_t c = (from - total) / bt; c <= (to - 1 - total) / bt; c++)
            key = request_chain_key(key, r->has_ids ? t->ids[c] : alone + c);
        s->keys[i] = key;
    }
    s->n_keys = (uint32_t)n;
}

static int delta_reserve(struct trace *t, struct session *s, uint64_t prompt)
{
    uint64_t n = (prompt + t->key_tok - 1) / t->key_tok, cap = s->cap ? s->cap : 16;
    while (cap < n)
        cap *= 2;
    if (cap == s->cap)
        return 0;
    if (t->session_keys + cap - s->cap > TRACE_SESSION_KEYS_MAX)
        return trace_bad(
            t,
            "the sessions of this mooncake-delta trace need more than %u keys, the most that "
            "are kept; split the trace",
            TRACE_SESSION_KEYS_MAX);
    uint64_t *p = realloc(s->keys, cap * sizeof *p);
    if (!p)
        return trace_no_memory(t);
    t->session_keys += cap - s->cap;
    s->keys = p;
    s->cap = (uint32_t)cap;
    return 0;
}

static int check_tokens(struct trace *t, const struct row *r)
{
    assert(r->has_in && r->has_out);
    if (!r->in_tok || !r->out_tok)
        return trace_bad(t, "expected at least 1 token of %s, found 0" TRACE_FIX,
                         r->in_tok ? "output" : "input");
    if (r->has_output_ids && r->output_ids != r->out_tok)
        return trace_bad(
            t, "expected %llu output_token_ids as output_length says, found %llu" TRACE_FIX,
            (unsigned long long)r->out_tok, (unsigned long long)r->output_ids);
    if (r->max_tok && r->max_tok < r->out_tok)
        return trace_bad(t,
                         "expected max_tokens of at least output_tok, %llu, found %llu" TRACE_FIX,
                         (unsigned long long)r->out_tok, (unsigned long long)r->max_tok);
    return 0;
}

static int check_keys(struct trace *t, const struct row *r, uint64_t block_tok)
{
    if (!r->has_ids)
        return 0;
    if (!block_tok)
        return trace_bad(
            t, "expected key_tok, the tokens that each of the keys covers, found none" TRACE_FIX);
    uint64_t blocks = (r->in_tok + block_tok - 1) / block_tok;
    if (t->format != TRACE_WEIR && blocks != r->n_ids)
        return trace_bad(
            t,
            "expected %llu hash_ids for %llu input tokens in blocks of %llu, found %u; is "
            "--trace-block-size right?",
            (unsigned long long)blocks, (unsigned long long)r->in_tok,
            (unsigned long long)block_tok, r->n_ids);
    if (r->n_ids > (r->in_tok + r->out_tok + block_tok - 1) / block_tok)
        return trace_bad(
            t, "expected at most one key for each %llu of %llu tokens, found %u keys" TRACE_FIX,
            (unsigned long long)block_tok, (unsigned long long)(r->in_tok + r->out_tok), r->n_ids);
    return 0;
}

static int check_time(struct trace *t, const struct row *r, struct verdict *v)
{
    if (!r->has_time && !v->follows && !t->opt.untimed)
        return trace_bad(
            t,
            "expected a field %s, found none; only later turns of a session go without one" TRACE_FIX,
            t->format == TRACE_WEIR ? "arrival_ms" : "timestamp");
    if (r->delay_ps && !r->session)
        return trace_bad(
            t, "expected a session with the delay, found none; name the session or remove the "
               "delay");
    v->arrival_ps = PS_NEVER;
    if (!r->has_time || t->opt.untimed)
        return 0;
    wide_ps rel = t->started ? r->time_ps - t->first_ps : 0;
    if (rel < t->last_ps)
        return trace_bad(
            t,
            "expected a time not before that of the row before, found one %.3f ms earlier; "
            "sort the rows by time%s, or leave it out (--skip-bad)",
            (double)(t->last_ps - rel) / 1e9, t->n_paths > 1 ? " and name the files in order" : "");
    if (rel > PS_LIMIT)
        return trace_bad(
            t,
            "expected times within 53 days of the first, found one %.0f ms after it; is the "
            "unit right? Correct the row or leave it out (--skip-bad)",
            (double)rel / 1e9);
    v->arrival_ps = (int64_t)rel;
    return 0;
}

/* Names the slots of the answer from output_token_ids, behind the prompt's ids in t->ids: a slot of one
 * value is what a later prompt's hash_id of that value stands for. Not if the slot where the answer
 * starts is not the prompt's id all over: it has one name only. Returns the new number of ids. */
static uint32_t name_answer(const struct trace *t, const struct row *r)
{
    uint64_t bt = t->opt.block_tok, k = 0, more = r->in_tok % bt ? bt - r->in_tok % bt : 0;
    uint32_t n = r->n_ids;
    for (; k < more && k < r->out_tok; k++)
        if (t->out_ids[k] != t->ids[n - 1])
            return n;
    for (; k < r->out_tok; k += bt) {
        uint64_t end = k + bt < r->out_tok ? k + bt : r->out_tok, chain = 0;
        bool one = true;
        for (uint64_t i = k; i < end; i++) {
            one = one && t->out_ids[i] == t->out_ids[k];
            chain = request_chain_key(chain, t->out_ids[i]);
        }
        t->ids[n++] = one ? t->out_ids[k] : chain;
    }
    return n;
}

/* Everything that can be wrong with a row's meaning. Changes nothing that shows. */
static int check_row(struct trace *t, const struct row *r, struct verdict *v)
{
    if (r->policy && t->policy && r->policy != t->policy)
        return trace_bad(t,
                         "expected the log of one replay, found a row of another policy behind it; "
                         "keep the lines of one policy (grep), or leave it out (--skip-bad)");
    int rc = check_tokens(t, r);
    if (rc)
        return rc;
    bool delta = t->format == TRACE_MOONCAKE_DELTA;
    v->block_tok = t->format == TRACE_WEIR ? r->key_tok : t->opt.block_tok;
    rc = check_keys(t, r, v->block_tok);
    if (rc)
        return rc;
    v->session = session_find(t, r->session);
    v->follows = v->session != NULL;
    rc = check_time(t, r, v);
    if (rc)
        return rc;
    v->prompt_tok = r->in_tok + (delta && v->follows ? v->session->total_tok : 0);
    if (v->prompt_tok + r->out_tok > TRACE_TOKENS_MAX * UINT64_C(2) ||
        v->prompt_tok > TRACE_TOKENS_MAX)
        return trace_bad(t, "expected a session of at most %u tokens, found %llu" TRACE_FIX,
                         TRACE_TOKENS_MAX, (unsigned long long)v->prompt_tok);
    const char *why = t->opt.refuse ? t->opt.refuse(t->opt.refuse_ctx, (uint32_t)v->prompt_tok,
                                                    (uint32_t)r->out_tok)
                                    : NULL;
    if (why)
        return trace_bad(t,
                         "expected a request that a worker can hold, found %llu prompt and %llu "
                         "output tokens: %s, or leave it out (--skip-bad)",
                         (unsigned long long)v->prompt_tok, (unsigned long long)r->out_tok, why);
    if (r->has_output_ids && r->has_ids) {
        rc = trace_grow_ids(t, r->n_ids + r->out_tok / v->block_tok + 1);
        if (rc)
            return rc;
    }
    if (r->session && !v->follows) {
        rc = session_reserve(t);
        if (rc)
            return rc;
        v->session = session_slot(t, r->session);
    }
    if (delta) {
        if (!v->session) {
            v->session = &t->lone;
            t->lone.prompt_tok = t->lone.total_tok = 0;
        }
        rc = delta_reserve(t, v->session, v->prompt_tok);
    }
    return rc;
}

/* Makes the request of a checked row and moves the trace on. */
static void take_row(struct trace *t, const struct row *r, const struct verdict *v,
                     struct trace_request *out)
{
    struct session *s = v->session;
    *out = (struct trace_request){
        .row = t->rows,
        .arrival_ps = v->arrival_ps,
        .delay_ps = r->delay_ps,
        .session = r->session,
        .follows = v->follows,
        .prompt_tok = (uint32_t)v->prompt_tok,
        .output_tok = (uint32_t)r->out_tok,
        .max_tokens = (uint32_t)r->max_tok,
        .priority = r->priority,
        .tenant = r->tenant,
        .recorded_ttft_ms = r->ttft_ms,
        .recorded_e2e_ms = r->e2e_ms,
    };
    if (t->format == TRACE_MOONCAKE_DELTA) {
        delta_keys(t, s, r, v->prompt_tok);
        out->keys = s->keys;
        out->n_keys = s->n_keys;
        out->key_tok = t->key_tok;
        s->uid = t->rows + 1;
        s->prompt_tok = (uint32_t)v->prompt_tok;
        s->total_tok = (uint32_t)(v->prompt_tok + r->out_tok);
    } else if (r->has_ids) {
        uint64_t key = 0;
        out->keys = t->ids;
        out->n_keys = r->has_output_ids ? name_answer(t, r) : r->n_ids;
        for (uint32_t i = 0; !r->chained && i < out->n_keys; i++)
            key = t->ids[i] = request_chain_key(key, t->ids[i]);
        out->key_tok = (uint32_t)v->block_tok;
    }
    if (r->session && !v->follows) {
        s->id = r->session;
        t->sessions_used++;
    }
    if (r->has_time && !t->started) {
        t->started = true;
        t->first_ps = r->time_ps;
    }
    if (r->has_time && !t->opt.untimed)
        t->last_ps = v->arrival_ps;
    if (r->policy)
        t->policy = r->policy;
    t->rows++;
}

/* ---- files and formats ----------------------------------------------------------------------------- */

static bool is_csv(enum trace_format f)
{
    return f == TRACE_AZURE || f == TRACE_BURSTGPT;
}

static bool is_blank(const char *s, size_t len)
{
    while (len && (s[len - 1] == ' ' || s[len - 1] == '\t'))
        len--;
    return len == 0;
}

/* The first line of a file, in t->line: a CSV's header is taken, JSON's format is seen row by row until
 * it is known (the first one may be bad). */
static int begin_format(struct trace *t)
{
    t->pending = true;
    if (is_csv(t->format) || (t->format == TRACE_AUTO && t->line[strspn(t->line, " \t")] != '{'))
        return trace_csv_begin(t);
    return 0;
}

static int input_failed(struct trace *t, int rc)
{
    memcpy(t->error, input_error(t->in), TRACE_ERROR_BYTES);
    return rc;
}

/* The next line that is not blank, as input_line. Empty lines say nothing: `cat` and editors leave them
 * behind. */
static int next_text(struct trace *t)
{
    int rc;
    do
        rc = input_line(t->in, &t->line, &t->len);
    while (rc > 0 && is_blank(t->line, t->len));
    return rc < 0 ? input_failed(t, rc) : rc;
}

static int begin_file(struct trace *t)
{
    t->file_rows = 0;
    int rc = next_text(t);
    if (rc > 0)
        return begin_format(t);
    if (!rc)
        snprintf(t->error, sizeof t->error,
                 "%s: expected a trace, one request a line, found an empty file",
                 input_name(t->in));
    return rc ? rc : WEIR_E_INPUT;
}

static int open_next(struct trace *t)
{
    input_close(t->in);
    t->in = input_open(t->paths[t->next_path], TRACE_LINE_MAX_BYTES, t->error);
    t->next_path++;
    return t->in ? begin_file(t) : WEIR_E_IO;
}

/* 1: t->line is the next row. 0: end. What goes wrong here ends the trace. */
static int next_line(struct trace *t)
{
    while (!t->pending) {
        int rc = next_text(t);
        if (rc > 0)
            break;
        if (rc < 0)
            return t->failed = rc;
        if (!t->file_rows) {
            trace_bad(t, "expected requests after the header, found none");
            return t->failed = WEIR_E_INPUT;
        }
        if (t->next_path >= t->n_paths)
            return 0;
        rc = open_next(t);
        if (rc)
            return t->failed = rc;
    }
    t->pending = false;
    t->file_rows++;
    return 1;
}

static int parse_row(struct trace *t, struct row *r)
{
    if (is_csv(t->format))
        return trace_csv_row(t, r);
    int rc = t->format == TRACE_AUTO ? trace_json_detect(t) : 0;
    if (!rc && t->format == TRACE_MOONCAKE && !t->opt.no_fast_path) {
        rc = trace_grow_ids(t, t->len / 2 + 1);
        if (!rc && trace_scan_mooncake(t, r))
            return 0;
    }
    if (!rc)
        rc = trace_json_row(t, r);
    if (!rc && t->format == TRACE_WEIR)
        r->failed = r->failed && !r->out_tok; /* one with an answer can be replayed */
    return rc;
}

static int use_row(struct trace *t, const struct row *r, struct trace_request *out)
{
    struct verdict v = {0};
    int rc = check_row(t, r, &v);
    if (rc)
        return rc;
    take_row(t, r, &v, out);
    return 1;
}

/* 1: *out filled. 0: there is nothing to be had of this row: the trace itself marks it as failed, or (t->is_live) it waits
 * for its turn. */
static int load_row(struct trace *t, struct trace_request *out)
{
    struct row r = {.ttft_ms = -1, .e2e_ms = -1};
    int rc = parse_row(t, &r);
    if (rc)
        return rc;
    if (r.failed) {
        t->failed_rows++;
        return 0;
    }
    t->is_live |= r.live;
    if (!t->is_live)
        return use_row(t, &r, out);
    rc = check_tokens(t, &r);
    if (!rc)
        rc = check_keys(t, &r, r.key_tok);
    return rc ? rc : trace_live_push(t, &r);
}

/* A bad row: whether it is tolerated. */
static bool tolerate(struct trace *t)
{
    if (t->bad_rows < t->opt.skip_bad) {
        if (!t->bad_rows++)
            memcpy(t->first_bad, t->error, sizeof t->first_bad);
        return true;
    }
    size_t n = strlen(t->error);
    if (t->bad_rows)
        snprintf(t->error + n, sizeof t->error - n, " [after %llu bad row%s, as many as allowed]",
                 (unsigned long long)t->bad_rows, t->bad_rows == 1 ? "" : "s");
    return false;
}

/* As trace_next, or 0 where the trace is not at its end: see t->live_end. */
static int step(struct trace *t, struct trace_request *out)
{
    struct row r;
    if (t->is_live && (t->live_end || trace_live_full(t)) && trace_live_pop(t, &r))
        return use_row(t, &r, out);
    int rc = next_line(t);
    if (rc > 0)
        return load_row(t, out);
    t->live_end = !rc;
    return rc;
}

int trace_next_row(struct trace *t, struct trace_request *out)
{
    while (!t->failed && (!t->opt.max_rows || t->rows < t->opt.max_rows)) {
        if (t->live_end && !t->live.n)
            return 0;
        int rc = step(t, out);
        if (rc > 0)
            return 1;
        if (rc && (rc != WEIR_E_INPUT || t->failed || !tolerate(t)))
            t->failed = rc;
    }
    return t->failed;
}

int trace_next(struct trace *t, struct trace_request *out)
{
    return t->opt.spread_ps ? trace_spread_next(t, out) : trace_next_row(t, out);
}

const char *trace_error(const struct trace *t)
{
    return t->error;
}

const char *trace_first_bad(const struct trace *t)
{
    return t->first_bad;
}

uint64_t trace_bad_rows(const struct trace *t)
{
    return t->bad_rows;
}

uint64_t trace_failed_rows(const struct trace *t)
{
    return t->failed_rows;
}

enum trace_format trace_format(const struct trace *t)
{
    return t->format;
}

/* ---- opening ----------------------------------------------------------------------------------------- */

static struct trace *trace_new(const struct trace_options *opt, char *error)
{
    struct trace *t = calloc(1, sizeof *t);
    if (!t) {
        snprintf(error, TRACE_ERROR_BYTES, "out of memory");
        return NULL;
    }
    t->opt = *opt;
    t->format = opt->format;
    if (!t->opt.block_tok)
        t->opt.block_tok = MOONCAKE_BLOCK_TOK;
    rng_init(&t->spread.rng, rng_mix64(opt->seed));
    t->key_tok = opt->delta_key_tok ? opt->delta_key_tok : t->opt.block_tok;
    return t;
}

/* Before hours of replay end at the last file's name. */
static int check_path(const char *path, char *error)
{
    struct stat st;
    char b[INPUT_NAME_BYTES];
    int rc = !strcmp(path, "-") ? 0 : stat(path, &st) ? errno : access(path, R_OK) ? errno : 0;
    if (!rc && strcmp(path, "-") && S_ISDIR(st.st_mode))
        rc = EISDIR;
    if (rc)
        snprintf(error, TRACE_ERROR_BYTES,
                 "%s: cannot be opened: %s; name a trace file, or - for "
                 "standard input",
                 input_quote(b, sizeof b, path, strlen(path), INPUT_NAME_BYTES - 12), strerror(rc));
    return rc;
}

static int copy_paths(struct trace *t, const char *const *paths, size_t n)
{
    t->paths = calloc(n ? n : 1, sizeof *t->paths);
    if (!t->paths)
        goto no_memory;
    for (size_t i = 0; i < n; i++) {
        t->paths[i] = strdup(paths[i]);
        if (!t->paths[i])
            goto no_memory;
        t->n_paths++;
        if (check_path(paths[i], t->error))
            return WEIR_E_IO;
    }
    if (n)
        return 0;
    snprintf(t->error, sizeof t->error, "no trace named; name its file, or - for standard input");
    return WEIR_E_INPUT;
no_memory:
    snprintf(t->error, sizeof t->error, "out of memory");
    return WEIR_E_NOMEM;
}

struct trace *trace_open(const char *const *paths, size_t n_paths, const struct trace_options *opt,
                         char *error)
{
    struct trace *t = trace_new(opt, error);
    if (!t)
        return NULL;
    if (!copy_paths(t, paths, n_paths) && !open_next(t))
        return t;
    memcpy(error, t->error, TRACE_ERROR_BYTES);
    trace_close(t);
    return NULL;
}

struct trace *trace_open_memory(const char *name, const void *data, size_t len,
                                const struct trace_options *opt, char *error)
{
    struct trace *t = trace_new(opt, error);
    if (!t)
        return NULL;
    t->in = input_open_memory(name, data, len, TRACE_LINE_MAX_BYTES, t->error);
    if (t->in && !begin_file(t))
        return t;
    memcpy(error, t->error, TRACE_ERROR_BYTES);
    trace_close(t);
    return NULL;
}

void trace_close(struct trace *t)
{
    if (!t)
        return;
    input_close(t->in);
    for (size_t i = 0; i < t->n_paths; i++)
        free(t->paths[i]);
    free(t->paths);
    for (size_t i = 0; i < t->sessions_cap; i++)
        free(t->sessions[i].keys);
    free(t->sessions);
    free(t->lone.keys);
    trace_spread_deinit(&t->spread);
    trace_live_deinit(&t->live);
    free(t->ids);
    free(t->out_ids);
    free(t->pool);
    free(t);
}
