/* report_internal.h - what report.c, report_table.c and request_log.c share and nobody else
 * needs. */
#ifndef WEIR_REPORT_INTERNAL_H
#define WEIR_REPORT_INTERNAL_H

#include "controller/replay/report.h"

/* Sums are integers, so that the order in which requests end does not show in the result. Token
 * totals, reuse and latencies are those of completed requests; preemptions and retries of all. */
struct report {
    struct report_info info;
    struct hist *ttft, *ttst, *tpot, *itl, *e2e;
    struct report_worker *workers; /* info.n_workers of them */

    uint64_t requests, completed,
        over[CORE_REASON_COUNT]; /* by reason; [CORE_REASON_NONE] is unused */
    uint64_t prompt_tok, output_tok, reused_tok, reused_all_tok;
    uint64_t preemptions, retries;
    uint64_t slo_met, slo_output_tok;

    /* output tokens per second that one user sees, in millionths: sums over requests with a TPOT */
    unsigned __int128 rate_sum, rate_square_sum;

    struct report_run run;
};

/* "queue_full", "slo" ..., as in the JSON; NULL for CORE_REASON_NONE. */
const char *report_reason_name(enum core_reason reason);

/* "both", "prefill" or "decode", as in a stack file. */
const char *report_role_name(enum worker_role role);

/* Requests that did not complete. */
uint64_t report_rejected(const struct report *r);

double report_gpu_hours(const struct report *r);

/* Writes s as JSON text with its quotes; bytes that are not UTF-8 become U+FFFD. Cut off (with its
 * closing quote) where cap bytes are not enough. Returns the length; out ends with NUL. */
size_t report_json_text(char *out, size_t cap, const char *s);

#endif
