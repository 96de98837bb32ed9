/* trace_internal.h - what the files of the trace loader share: a row as the parsers leave it, and the
 * trace they read from. Included by trace*.c and their tests only.
 *
 *   trace.c         files, formats, sessions, keys, order, limits; the public functions
 *   trace_json.c    a row of Mooncake JSONL or of weir's log; the plain Mooncake row by hand
 *   trace_csv.c     a row of Azure's or BurstGPT's CSV
 *   trace_spread.c  arrivals of one timestamp spread over its step
 *   trace_live.c    rows in order of their ends put in order of arrival
 */
#ifndef WEIR_TRACE_INTERNAL_H
#define WEIR_TRACE_INTERNAL_H

#include "controller/replay/input.h"
#include "controller/replay/trace.h"
#include "predictor/rng.h"

#define TRACE_TIME_MS_MAX UINT64_C(9007199254740992) /* 2^53: doubles and integers agree below */
#define TRACE_QUOTE_BYTES 64
#define TRACE_QUOTE_CHARS 40
#define TRACE_FIX "; correct the row or leave it out (--skip-bad)"
#define TRACE_FOREIGN_MAX 32 /* names of fields that are passed over; more are not looked at */

typedef __int128 wide_ps; /* absolute times (since 1970) do not fit int64_t picoseconds */

/* What a row says, before anything is made of it. */
struct row {
    bool has_time, has_ids, has_in, has_out;
    bool failed; /* the trace says that this request failed: left out and counted */
    bool live;   /* of a log in order of ends */
    wide_ps time_ps;
    int64_t delay_ps;
    uint64_t in_tok, out_tok, max_tok;
    uint64_t session, tenant, policy;
    int32_t priority;
    uint32_t n_ids; /* in trace.ids: hash ids, or chained keys if `chained` */
    bool chained;
    uint64_t output_ids;
    bool has_output_ids;
    uint32_t key_tok;
    double ttft_ms, e2e_ms;
};

/* A session of mooncake-delta: what its next turn starts from. Other formats use id alone. */
struct session {
    uint64_t id; /* 0: empty slot */
    uint64_t uid;
    uint32_t prompt_tok, total_tok;
    uint64_t *keys;
    uint32_t n_keys, cap;
};

enum csv_column {
    COL_TIME,
    COL_IN,
    COL_OUT,
    COL_SESSION,
    COL_ELAPSED,
    COL_N,
};

/* trace_spread.c: the rows of one timestamp, and the row behind them, read ahead. */
struct spread_row {
    struct trace_request q;
    uint32_t key_at; /* its keys, in spread.keys */
};

struct spread {
    struct spread_row *rows;
    uint32_t n, next, rows_cap;
    bool ahead; /* rows[n] is the first of the next timestamp */
    uint64_t *keys;
    uint32_t n_keys, keys_cap;
    uint64_t *draws;
    uint32_t draws_cap;
    struct rng rng;
};

/* trace_live.c: rows that are read ahead, earliest first. */
struct live_row {
    struct row row;
    uint64_t seq;  /* its place in the files, among equals */
    uint64_t *ids; /* owned */
};

struct live_rows {
    struct live_row *heap;
    uint32_t n, cap;
    uint64_t n_keys, seq;
};

struct trace {
    enum trace_format format;
    struct trace_options opt;
    uint32_t key_tok;

    char **paths;
    size_t n_paths, next_path;
    struct input *in;
    uint64_t file_rows; /* good, bad or failed, in this file */
    const char *line;
    size_t len;
    bool pending; /* line was read ahead (format detection) */

    int column[COL_N]; /* index of each column, -1: none */

    uint64_t foreign[TRACE_FOREIGN_MAX]; /* names of fields found to be none of ours */
    uint32_t n_foreign;

    void *pool; /* yyjson's */
    size_t pool_bytes;
    uint64_t *ids, *out_ids; /* hash_ids or keys, output_token_ids */
    size_t ids_cap, out_ids_cap;

    struct session *sessions;
    size_t sessions_used, sessions_cap; /* cap: power of two */
    uint64_t session_keys;
    struct session lone; /* mooncake-delta rows without a session_id */

    uint64_t rows, bad_rows, failed_rows;
    bool started;
    wide_ps first_ps;
    int64_t last_ps;
    uint64_t policy; /* whose log this is, 0: not known yet */
    struct spread spread;
    struct live_rows live;
    bool is_live, live_end; /* rows go through `live`; no more lines */
    int failed;
    char error[TRACE_ERROR_BYTES], first_bad[TRACE_ERROR_BYTES];
};

/* Writes "file:line: ..." to t->error. WEIR_E_INPUT. */
__attribute__((format(printf, 2, 3))) int trace_bad(struct trace *t, const char *fmt, ...);
/* The same for want of memory, which ends the trace. WEIR_E_NOMEM. */
int trace_no_memory(struct trace *t);

/* Room for `want` numbers in t->ids or t->out_ids. 0 or WEIR_E_NOMEM. */
WEIR_NODISCARD int trace_grow_ids(struct trace *t, size_t want);
WEIR_NODISCARD int trace_grow_out_ids(struct trace *t, size_t want);

/* What stands for a name of a session, tenant or policy; never 0, which is "none". */
uint64_t trace_hash_name(const char *s, size_t len);

/* Reads t->line. 0, WEIR_E_INPUT or WEIR_E_NOMEM. trace_json_detect: settles t->format first; a line
 * that is not JSON leaves it open. */
WEIR_NODISCARD int trace_json_detect(struct trace *t);
WEIR_NODISCARD int trace_json_row(struct trace *t, struct row *r);

/* Whether t->line is {"timestamp": N, "input_length": N, "output_length": N, "hash_ids": [N, ...]} and
 * nothing else, and then all of it in r, as trace_json_row would have it but with the ids chained. Room
 * for t->len / 2 + 1 ids must be there. */
bool trace_scan_mooncake(struct trace *t, struct row *r);

/* The first line of a CSV: takes its header, or the columns as published if it has none (t->pending:
 * the line is a row then). TRACE_AUTO in t->format is settled. 0 or WEIR_E_INPUT. */
WEIR_NODISCARD int trace_csv_begin(struct trace *t);
WEIR_NODISCARD int trace_csv_row(struct trace *t, struct row *r);

/* The next good row, in the order of the file, at its recorded time: trace_next without spreading. */
WEIR_NODISCARD int trace_next_row(struct trace *t, struct trace_request *out);

/* Keeps a row and its ids (t->ids) for later. 0 or WEIR_E_NOMEM. */
WEIR_NODISCARD int trace_live_push(struct trace *t, const struct row *r);
/* Whether no more may be kept: the earliest has to go. */
bool trace_live_full(const struct trace *t);
/* The earliest row, its ids in t->ids. False: there is none. */
bool trace_live_pop(struct trace *t, struct row *r);
void trace_live_deinit(struct live_rows *l);

/* trace_next with t->opt.spread_ps. */
WEIR_NODISCARD int trace_spread_next(struct trace *t, struct trace_request *out);
void trace_spread_deinit(struct spread *s);

#endif
