/* trace.h - recorded or generated requests, one at a time. Formats: Mooncake JSONL (with its optional
 * fields), mooncake-delta, Azure CSV 2023 and 2024, BurstGPT CSV, weir's own request log (JSONL);
 * plain, gzip or zstd (by content, not by name), several files in turn, "-" is standard input.
 *
 * A trace is streamed: memory is one decompression window, one line, and the sessions seen (40 bytes
 * each; mooncake-delta: and their keys). Rows come in file order; arrival times never run back
 * (WEIR_E_INPUT otherwise). Empty lines are passed over.
 *
 * Rows of Mooncake: {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [..]} and
 * optionally session_id, delay (ms), priority, tenant, output_token_ids, request_id, strict_priority,
 * policy_class (the last three are checked and not used); created_time, input_tokens, output_tokens,
 * delay_ms and user are other names. Other fields are passed over, unless their name is one letter from
 * one of these. null is as good as absent. With output_token_ids, a later prompt whose hash_ids repeat
 * them finds the answer cached: a hash_id stands for key_tok tokens of that value (as DynoSim has it).
 *
 * Rows of weir's log: {"weir":1,"row":..,"arrival_ms":..,"prompt_tok":..,"output_tok":..,
 * "max_tokens":..,"priority":..,"session":"..","tenant":"..","delay_ms":..,"key_tok":..,
 * "keys":["16 hex digits",..],"ttft_ms":..,"e2e_ms":..,"status":".."}; arrival_ms (first turns),
 * prompt_tok and output_tok are required. Sessions and tenants of 16 hex digits are taken as the hash
 * itself. Rows with "live":true (the log of weir serve) come in order of their ends and are put in order of arrival
 * here, TRACE_LIVE_ROWS_MAX of them at a time. A row with status other than "completed" or "ok" and no output counts as failed. A log holds
 * one replay: rows of a second policy are bad.
 *
 * mooncake-delta: a later row of a session brings only its new input; the prompt is previous prompt +
 * previous answer + new input. The caller gives every request the uid row+1, so that the blocks of the
 * previous answer have a name that the next turn can repeat:
 *
 *      |--- previous prompt ---|-- previous answer --|---- new input (hash_ids) ----|
 *      | k0  | k1  | k2  |  G  |  G  |  G  |  G   |  m  |  c  |  c  |  c  |          slots of key_tok
 *
 *   slots inside the previous prompt keep their keys; slots that end inside the previous answer are
 *   request_generated_key(previous uid) (G), as the engine named them; the slot where the new input
 *   starts chains G and the new ids (m); the others chain the ids that they touch (c). A slot that
 *   holds the end of the prompt and generated tokens is one G: with key_tok = the engine's block size
 *   that is exactly the engine's naming; with larger slots up to one slot of the prompt is not reused.
 *   Input without hash_ids is taken as new content, reused only within its session. All sessions of
 *   the trace are kept (nothing says that one ended); at TRACE_SESSIONS_MAX or TRACE_SESSION_KEYS_MAX
 *   a further row is an error, never a silent loss.
 */
#ifndef WEIR_TRACE_H
#define WEIR_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/error.h"
#include "predictor/units.h"

enum trace_format {
    TRACE_AUTO, /* by the first line; never MOONCAKE_DELTA, which looks like MOONCAKE */
    TRACE_MOONCAKE,
    TRACE_MOONCAKE_DELTA,
    TRACE_AZURE,    /* 2023 and 2024 have the same columns; time zone suffix optional (none: UTC). 0
                    * GeneratedTokens count as 1: a prefill always yields a token */
    TRACE_BURSTGPT, /* seconds; rows with 0 Response tokens failed when recorded: trace_failed_rows.
                     * Columns by name; Session ID and Elapsed time (recorded_e2e_ms) if present */
    TRACE_WEIR,
};

#define TRACE_LINE_MAX_BYTES (64u << 20)
#define TRACE_TOKENS_MAX (1u << 27) /* per request, prompt or output */
#define TRACE_ERROR_BYTES 512
#define TRACE_STEP_ROWS_MAX (1u << 20)    /* rows of one timestamp that spread_ps holds */
#define TRACE_STEP_KEYS_MAX (1u << 27)    /* and their keys, 1 GiB */
#define TRACE_LIVE_ROWS_MAX (1u << 20)    /* rows of a live log that wait for an earlier one */
#define TRACE_LIVE_KEYS_MAX (1u << 27)    /* and their keys, 1 GiB */
#define TRACE_SESSIONS_MAX (1u << 24)     /* distinct session ids in one trace */
#define TRACE_SESSION_KEYS_MAX (1u << 27) /* mooncake-delta: keys kept for all sessions, 1 GiB */

struct trace_options {
    enum trace_format format;
    uint32_t block_tok; /* tokens that one hash_id covers; 0: 512, Mooncake's */
    uint64_t skip_bad;  /* tolerate (and count) up to this many bad rows */
    uint64_t max_rows;  /* stop after this many; 0: all */
    bool untimed; /* closed loop: rows need no time, their order is that of the file, and every
                             * arrival_ps is PS_NEVER */
    int64_t
        spread_ps; /* rows of one timestamp arrive at times drawn uniformly, in their order, from
                             * the so many ps after it, but before the next timestamp; 0: as recorded.
                             * For traces whose times were rounded to steps (Mooncake's: 3 s), which
                             * otherwise arrive in bursts that never were. Holds the rows of one
                             * timestamp */
    uint64_t seed; /* of those draws */
    /* Whether nobody can serve such a request, and then why: ends "expected ... : WHY, or leave it out".
     * The row is bad then. NULL: none is refused. */
    const char *(*refuse)(void *ctx, uint32_t prompt_tok, uint32_t output_tok);
    void *refuse_ctx;
    uint32_t delta_key_tok; /* mooncake-delta: tokens that one of its keys covers; 0: block_tok. The
                             * engine's block size makes reuse exact, see below */
    bool no_fast_path;      /* tests: every JSON row through the general parser */
};

/* One request. keys points into the trace's own buffer, valid until the next trace_next. */
struct trace_request {
    uint64_t row; /* 0-based over all files, bad rows not counted */
    int64_t
        arrival_ps; /* since the first arrival of the trace; PS_NEVER for a later turn of a session
                         * that names no time: it arrives delay_ps after the previous turn's answer */
    int64_t delay_ps; /* >= 0 */
    uint64_t session; /* hash of the session id, 0: none */
    bool follows;     /* a later turn of a session seen before: waits for the previous answer */
    uint32_t prompt_tok, output_tok;
    uint32_t max_tokens; /* the caller's limit; 0: the trace does not say */
    int32_t priority;
    uint64_t tenant;      /* hash of tenant/user, 0: none */
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
uint64_t trace_bad_rows(const struct trace *t);     /* tolerated so far */
const char *trace_first_bad(const struct trace *t); /* what was wrong with the first of them; "" */
uint64_t trace_failed_rows(const struct trace *t);  /* left out: failed when they were recorded */
enum trace_format trace_format(const struct trace *t); /* as detected */

/* NULL is fine. */
void trace_close(struct trace *t);

#endif
