/* trace.h - recorded or generated requests, one at a time. Formats: Mooncake JSONL (with its optional
 * fields), mooncake-delta, Azure CSV 2023 and 2024, BurstGPT CSV, weir's own request log (JSONL);
 * plain, gzip or zstd (by content, not by name), several files in turn, "-" is standard input.
 *
 * A trace is streamed: memory is one decompression window, one line, and the unfinished sessions of
 * mooncake-delta. Rows come in file order; arrival times never run back (WEIR_E_INPUT otherwise).
 */
#ifndef WEIR_TRACE_H
#define WEIR_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/error.h"
#include "predictor/units.h"

enum trace_format {
    TRACE_AUTO, /* by the first line */
    TRACE_MOONCAKE,
    TRACE_MOONCAKE_DELTA,
    TRACE_AZURE,   /* 2023 and 2024 have the same columns; time zone suffix optional */
    TRACE_BURSTGPT,
    TRACE_WEIR,
};

#define TRACE_LINE_MAX_BYTES (64u << 20)
#define TRACE_TOKENS_MAX (1u << 27) /* per request, prompt or output */
#define TRACE_ERROR_BYTES 512

struct trace_options {
    enum trace_format format;
    uint32_t block_tok;  /* tokens that one hash_id covers; 0: 512, Mooncake's */
    uint64_t skip_bad;   /* tolerate (and count) up to this many bad rows */
    uint64_t max_rows;   /* stop after this many; 0: all */
};

/* One request. keys points into the trace's own buffer, valid until the next trace_next. */
struct trace_request {
    uint64_t row;       /* 0-based over all files, bad rows not counted */
    int64_t arrival_ps; /* since the first arrival of the trace; PS_NEVER for a later turn of a session
                         * that names no time: it arrives delay_ps after the previous turn's answer */
    int64_t delay_ps;   /* >= 0 */
    uint64_t session;   /* hash of the session id, 0: none */
    bool follows;       /* a later turn of a session seen before: waits for the previous answer */
    uint32_t prompt_tok, output_tok, max_tokens; /* max_tokens = output_tok where the trace has none */
    int32_t priority;
    uint64_t tenant; /* hash of tenant/user, 0: none */
    const uint64_t *keys; /* chained prefix keys, request.h */
    uint32_t n_keys, key_tok;
    /* what really happened, where the trace recorded it (weir's log); < 0: not recorded */
    double recorded_ttft_ms, recorded_e2e_ms;
};

struct trace;

/* Opens n_paths files (read in turn). On failure returns NULL and writes one line to error
 * (TRACE_ERROR_BYTES): file, what was expected, what to do. */
struct trace *trace_open(const char *const *paths, size_t n_paths, const struct trace_options *opt,
                         char *error);

/* Same over a buffer in memory (tests, fuzzing); name stands in for the file in messages. The buffer
 * is borrowed until trace_close. */
struct trace *trace_open_memory(const char *name, const void *data, size_t len,
                                const struct trace_options *opt, char *error);

/* 1: *out filled; 0: end; WEIR_E_INPUT, WEIR_E_IO or WEIR_E_NOMEM: trace_error() says what, naming
 * file and line. After an error the trace only accepts trace_close. */
WEIR_NODISCARD int trace_next(struct trace *t, struct trace_request *out);

const char *trace_error(const struct trace *t);
uint64_t trace_bad_rows(const struct trace *t);
enum trace_format trace_format(const struct trace *t); /* as detected */

/* mooncake-delta needs to know the name of the generated blocks of the previous turn: the caller gives
 * every request the uid row+1. */
void trace_close(struct trace *t);

#endif
