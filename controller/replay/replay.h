/* replay.h - one trace through one policy: the plant (predictor/cluster.h, which knows output lengths,
 * true speeds and faults), the decision core (controller/core, which does not), and the clockwork between
 * them. Time is virtual; the same input and seed give the same bytes of report.
 */
#ifndef WEIR_REPLAY_H
#define WEIR_REPLAY_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/replay/report.h"
#include "controller/replay/stack.h"
#include "controller/replay/trace.h"

#define REPLAY_ERROR_BYTES 1024
/* Sessions whose next turn waits, and turns that wait, at most. */
#define REPLAY_MAX_SESSIONS TRACE_SESSIONS_MAX
#define REPLAY_MAX_WAITING_TURNS (1u << 22)
#define REPLAY_MAX_LIVE (1u << 22) /* requests in flight or queued */

struct replay_options {
    const char *policy;
    const struct policy_ops *own_policy; /* runs instead, with policy's parameters; NULL: none */
    uint64_t seed;
    double speedup; /* arrivals and delays divided by it; 1 */
    /* closed loop: so many requests in flight, where a session counts as one from its first arrival to
     * its last answer, think times included; 0: by timestamps */
    uint32_t concurrency;
    bool oracle; /* telemetry and cache events without delay, output lengths told at arrival */
    bool stepping;
    /* one of these; the trace is read once a replay */
    const char *const *paths;
    uint32_t n_paths;
    const void *data; /* a trace in memory (standard input, read once for several policies) */
    size_t data_len;
    struct trace_options trace; /* untimed, seed, refuse and delta_key_tok are set by replay_run */
    struct request_log *log;    /* NULL: none */
    /* every request when it is over, not always in order of time; NULL: not wanted */
    void (*ended)(void *ctx, const struct report_request *q);
    void *ended_ctx;
    /* called now and then, with the number of requests read so far; NULL: not */
    void (*progress)(void *ctx, uint64_t requests, int64_t now_ps);
    void *progress_ctx;
};

/* Runs to the end of the trace and of all requests. report: made by report_new, filled; *run is for
 * report_finish, all but the wall time, which the caller adds. Rows that no worker of the stack could ever
 * hold are bad rows of the trace. 0 or an error; error (REPLAY_ERROR_BYTES) then has one line for the user. */
WEIR_NODISCARD int replay_run(const struct stack *stack, const struct replay_options *opt,
                              struct report *report, struct report_run *run, char *error);

#endif
