/* report.h - what a replay found: the table that a person reads first, the JSON report (field names of
 * DynoSim's report where the meaning is the same: engine-model.md 1.9), and per-request records.
 */
#ifndef WEIR_REPORT_H
#define WEIR_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "controller/core/core.h"
#include "controller/replay/stack.h"
#include "controller/replay/trace.h"
#include "predictor/hist.h"

/* One finished request. Times in ps since the first arrival; -1 where it did not happen. */
struct report_request {
    uint64_t row;
    int64_t arrival_ps, first_admit_ps, first_token_ps, second_token_ps, end_ps;
    uint32_t prompt_tok, output_tok;
    uint32_t reused_tok;     /* prompt tokens found in the cache, first admission */
    uint32_t reused_all_tok; /* all admissions */
    uint32_t preemptions, retries;
    uint32_t worker, prefill_worker; /* CORE_NO_WORKER: none */
    enum core_reason reason;         /* CORE_REASON_NONE: completed */
    uint64_t tenant, session;
    double overlap_tok; /* believed by the policy; -1 none */
    /* as the trace has them, so that the log can be replayed; keys: borrowed for the call */
    uint32_t max_tokens;
    int32_t priority;
    const uint64_t *keys;
    uint32_t n_keys, key_tok;
};

struct report_worker {
    uint32_t pool;
    int64_t busy_ps, up_ps; /* time in steps; time it held its GPUs, start-up included */
    uint64_t requests, prompt_tok, output_tok, reused_tok, preemptions, passes;
    /* tiers below the GPU: loaded from host memory and from the shared store; copied down; no room for */
    uint64_t host_tok, shared_tok, stored_tok, not_stored_tok;
};

/* Collects while a replay runs. */
struct report;

struct report_info {
    const char *policy, *trace_name, *stack_name;
    uint64_t seed;
    bool oracle, stepped;
    const struct stack *stack;
    uint32_t n_workers;
    double speedup;
    uint32_t concurrency; /* 0: open loop */
};

struct report *
report_new(const struct report_info *info); /* info's pointers are borrowed; NULL: no memory */
void report_free(struct report *r);

/* Every request ends here exactly once, completed or not. */
void report_add(struct report *r, const struct report_request *q);
/* Token gaps of whole segments; the plant adds into it directly (ITL). */
struct hist *report_itl(struct report *r);
void report_worker(struct report *r, uint32_t worker, const struct report_worker *w);

/* How a run went, beside its requests. */
struct report_run {
    int64_t duration_ps; /* of the simulation */
    uint64_t passes;
    uint64_t bad_rows;    /* of the trace, tolerated (--skip-bad) */
    uint64_t failed_rows; /* left out: they failed when they were recorded, as the trace says */
    char first_bad[TRACE_ERROR_BYTES]; /* what was wrong with the first bad row; "" */
    double wall_ms; /* what it cost to run (not in the canonical report: differs from run to run) */
};

/* After the last report_add. *run is copied. */
void report_finish(struct report *r, const struct report_run *run);

/* JSON. canonical: without wall_time_ms, processed_*_per_s (same bytes for same input and seed).
 * One report per policy: an array under "runs" when n > 1, the plain object when n == 1.
 * 0 or WEIR_E_IO / WEIR_E_NOMEM. */
WEIR_NODISCARD int report_write_json(FILE *out, struct report *const *r, uint32_t n,
                                     bool canonical);

/* The comparison, best value of each column marked; colour only when `colour`. width: terminal
 * columns (0: unknown, 100 is used). */
void report_print_table(FILE *out, struct report *const *r, uint32_t n, int width, bool colour);

/* Headline figures for callers that compare replays (sweeps, tests). */
struct report_summary {
    uint64_t requests, completed, rejected, slo_met, preemptions;
    double duration_ms, goodput_rps, slo_attainment, reuse;
    double mean_ttft_ms, p50_ttft_ms, p90_ttft_ms, p99_ttft_ms, mean_tpot_ms, p99_tpot_ms,
        mean_e2e_ms, p99_e2e_ms, mean_itl_ms;
    double gpu_hours;
};
void report_summarise(const struct report *r, struct report_summary *out);

/* Of one request; the rest of a longer prompt has no name in its log. */
#define REQUEST_LOG_MAX_KEYS 16384u

/* Per-request records as JSONL, optionally compressed by the file's name (.zst, .gz, else plain; "-" is
 * standard output). policy is written into each line. */
struct request_log;
struct request_log *request_log_open(const char *path, char *error); /* TRACE_ERROR_BYTES */
WEIR_NODISCARD int request_log_add(struct request_log *l, const char *policy,
                                   const struct report_request *q);
WEIR_NODISCARD int
request_log_close(struct request_log *l); /* flushes; WEIR_E_IO if anything failed */

#endif
