/* metrics.c - see metrics.h. */
#include "controller/serve/metrics.h"

#include <inttypes.h>
#include <string.h>

#include "controller/replay/report_internal.h"
#include "controller/serve/request_log.h"
#include "predictor/version.h"

enum labels { NO_LABEL, BY_POOL, BY_WORKER, BY_REASON, BY_VERSION, BY_STATE_ERROR, BY_STATE_FAULT };

/* What a getter gets: sums over threads, and the label's place. */
struct sample {
    const struct metrics_view *v;
    const struct proxy_counts *sum;
    const struct hub_stats *hub;        /* BY_POOL, BY_REASON: of that pool */
    const struct poller_worker *worker; /* BY_WORKER */
    struct core_worker_state state;     /* BY_WORKER */
    struct core_belief belief;          /* BY_WORKER */
    struct reqlog_stats log;            /* zeros without a log */
    struct kv_feed_stats kv;            /* BY_WORKER */
    struct shared_stats shared;         /* zeros without shared state */
    const struct feed_stats *feed;      /* likewise */
    uint32_t worker_at;                 /* BY_WORKER: its place */
    enum feed_error state_error;        /* BY_STATE_ERROR */
    enum record_fault state_fault;      /* BY_STATE_FAULT */
    enum core_reason reason;            /* BY_REASON */
};

struct row {
    const char *name, *type;
    enum labels labels;
    double (*get)(const struct sample *s);
    const char *help;
    const struct buckets *(*hist)(const struct sample *s); /* instead of get */
    enum buckets_kind kind;
};

#define HIST(name, field)                                                                          \
    static const struct buckets *name(const struct sample *s)                                      \
    {                                                                                              \
        return &s->field;                                                                          \
    }

HIST(hist_ttft, sum->ttft)
HIST(hist_predicted_ttft, sum->predicted_ttft)
HIST(hist_ttft_ratio, sum->ttft_ratio)
HIST(hist_tpot, sum->tpot)
HIST(hist_predicted_tpot, sum->predicted_tpot)
HIST(hist_tpot_ratio, sum->tpot_ratio)
HIST(hist_hold, sum->hold)
HIST(hist_overhead, sum->overhead)
HIST(hist_decide, hub->decide)

#define GET(name, expression)                                                                      \
    static double name(const struct sample *s)                                                     \
    {                                                                                              \
        return (double)(expression);                                                               \
    }

GET(get_one, s != NULL)
GET(get_requests, s->sum->requests)
GET(get_reloads, s->v->serve->reloads)
GET(get_reloads_refused, s->v->serve->reloads_refused)
GET(get_reload_failed, s->v->serve->reload_failed)
GET(get_answered, s->sum->answered)
GET(get_refused, s->sum->refused)
GET(get_cut, s->sum->cut)
GET(get_left, s->sum->left)
GET(get_live, s->sum->live)
GET(get_redispatched, s->sum->redispatched)
GET(get_resent, s->sum->resent)
GET(get_prompt_tok, s->sum->prompt_tok)
GET(get_output_tok, s->sum->output_tok)
GET(get_cached_tok, s->sum->cached_tok)
GET(get_prefill_tok, s->belief.books.prefill_tok)
GET(get_belief_ttft, (double)s->belief.ttft_ps / 1e12)
GET(get_ttft_bias, s->belief.bias.ttft)
GET(get_tpot_bias, s->belief.bias.tpot)
GET(get_state_connected, s->feed->connected)
GET(get_state_connects, s->feed->connects)
GET(get_state_age, s->v->shared ? s->shared.age_s : -1)
GET(get_state_errors, s->feed->errors[s->state_error])
GET(get_state_refused, s->feed->refused[s->state_fault])
GET(get_state_sent, s->feed->sent)
GET(get_state_dropped, s->feed->dropped)
GET(get_state_received, s->feed->received)
GET(get_state_full_reads, s->feed->full_reads)
GET(get_state_gaps, s->feed->gaps + s->shared.gaps)
GET(get_state_ignored, s->shared.ignored)
GET(get_state_workers, s->feed->workers)
GET(get_state_controllers, s->shared.controllers)
GET(get_state_foreign, s->shared.foreign)
GET(get_agent_failure, s->v->shared ? shared_failure(s->v->shared, s->worker_at) : -1)
GET(get_log_written, s->log.written)
GET(get_log_full, s->log.dropped_full)
GET(get_log_disk, s->log.dropped_disk)
GET(get_log_failing, s->log.failing)
GET(get_decide_max, (double)s->hub->decide_max_ns / 1e9)
GET(get_queued, s->hub->core.queued)
GET(get_inflight, s->hub->core.inflight)
GET(get_held, s->hub->core.held)
GET(get_rejected, s->hub->core.rejected[s->reason])
GET(get_hub_refused, s->hub->refused)
GET(get_mailed, s->hub->mailed)
GET(get_queued_bytes, s->hub->core.queued_bytes)
GET(get_retried, s->hub->core.retried)
GET(get_delayed, s->hub->core.delayed)
GET(get_ejections, s->hub->core.ejections)
GET(get_panics, s->hub->core.panics)
GET(get_used, s->state.used)
GET(get_health, s->state.health)
GET(get_cause, s->state.health == CORE_HEALTH_OK ? CORE_HEALTH_NO_CAUSE : s->state.cause)
GET(get_share, (double)s->state.share / 1000.0)
GET(get_worker_inflight, s->state.inflight)
GET(get_up, s->worker->state == POLLER_UP)
GET(get_draining, s->worker->state == POLLER_DRAINING)
GET(get_polls, s->worker->polls)
GET(get_poll_failures, s->worker->failed)
GET(get_running, s->worker->metrics.figure[FIGURE_RUNNING])
GET(get_waiting, s->worker->metrics.figure[FIGURE_WAITING])
GET(get_kv_usage, s->worker->metrics.figure[FIGURE_KV_USAGE])
GET(get_kv_batches, s->kv.batches)
GET(get_kv_refused, s->kv.refused)
GET(get_kv_gaps, s->kv.gaps)
GET(get_kv_healed, s->kv.healed)
GET(get_kv_epochs, s->kv.epochs)
GET(get_kv_blocks, s->kv.blocks.blocks)
GET(get_kv_stored, s->kv.blocks.stored)
GET(get_kv_removed, s->kv.blocks.removed)
GET(get_kv_untold, s->kv.blocks.orphans + s->kv.blocks.nameless + s->kv.blocks.elsewhere +
                       s->kv.blocks.unfit + s->kv.blocks.beyond)
GET(get_kv_strangers, s->kv.blocks.strangers)
GET(get_age, s->worker->answered_ms ? (double)(s->v->now_ms - s->worker->answered_ms) / 1e3 : -1.0)

static double get_longest_lap(const struct sample *s)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < s->v->n_proxies; i++) {
        uint64_t ns = proxy_laps(s->v->proxies[i])->longest_ns;
        most = ns > most ? ns : most;
    }
    return (double)most / 1e9;
}

static double get_blocked(const struct sample *s)
{
    double n = 0;
    for (uint32_t i = 0; i < s->v->n_proxies; i++)
        n += (double)proxy_laps(s->v->proxies[i])->blocked;
    return n;
}

static double get_preempted(const struct sample *s)
{
    double n = 0;
    for (uint32_t i = 0; i < s->v->n_proxies; i++)
        n += (double)proxy_laps(s->v->proxies[i])->preempted;
    return n;
}

/* only histograms have the last two fields */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
/* clang-format off */
static const struct row rows[] = {
    {"weir_build_info", "gauge", BY_VERSION, get_one, "1, with the version as a label."},
    {"weir_requests_total", "counter", NO_LABEL, get_requests, "Requests received on the data listener."},
    {"weir_answered_total", "counter", NO_LABEL, get_answered, "Requests whose answer was passed on whole, whatever its status."},
    {"weir_refused_total", "counter", NO_LABEL, get_refused,
     "Requests that weir refused itself (4xx, 5xx, 429); reasons of the core: weir_rejected_total."},
    {"weir_cut_total", "counter", NO_LABEL, get_cut, "Answers that ended in the middle because the worker was lost."},
    {"weir_client_left_total", "counter", NO_LABEL, get_left,
     "Requests whose client left before the answer was complete; the worker was told at once."},
    {"weir_live_requests", "gauge", NO_LABEL, get_live, "Requests in the path now: held, running, streaming."},
    {"weir_redispatched_total", "counter", NO_LABEL, get_redispatched, "Requests sent to another worker after one was lost."},
    {"weir_resent_total", "counter", NO_LABEL, get_resent, "Requests sent again to the same worker because a kept connection was stale."},
    {"weir_ttft_seconds", "histogram", NO_LABEL, NULL,
     "Time from a request's arrival to its first token (to its end, where the answer is no stream).", hist_ttft, BUCKETS_LATENCY},
    {"weir_tpot_seconds", "histogram", NO_LABEL, NULL, "Mean time between the tokens of a stream after the first.", hist_tpot,
     BUCKETS_TOKEN},
    {"weir_predicted_ttft_seconds", "histogram", NO_LABEL, NULL,
     "What was predicted for the first token of streams, from their dispatch.", hist_predicted_ttft, BUCKETS_LATENCY},
    {"weir_ttft_prediction_ratio", "histogram", NO_LABEL, NULL, "Measured over predicted time from dispatch to first token; 1: right.",
     hist_ttft_ratio, BUCKETS_RATIO},
    {"weir_predicted_tpot_seconds", "histogram", NO_LABEL, NULL, "What was predicted between the tokens of streams.",
     hist_predicted_tpot, BUCKETS_TOKEN},
    {"weir_tpot_prediction_ratio", "histogram", NO_LABEL, NULL, "Measured over predicted time between tokens; 1: right.",
     hist_tpot_ratio, BUCKETS_RATIO},
    {"weir_hold_seconds", "histogram", NO_LABEL, NULL, "How long requests waited here, of those that had to.", hist_hold,
     BUCKETS_LATENCY},
    {"weir_overhead_seconds", "histogram", NO_LABEL, NULL,
     "From a request's arrival to its being sent to a worker, without waiting for one: what weir itself adds.", hist_overhead,
     BUCKETS_SHORT},
    {"weir_request_log_lines_total", "counter", NO_LABEL, get_log_written, "Lines written to the request log."},
    {"weir_request_log_dropped_full_total", "counter", NO_LABEL, get_log_full,
     "Lines of the request log that were dropped because writing did not keep up."},
    {"weir_request_log_dropped_disk_total", "counter", NO_LABEL, get_log_disk,
     "Lines of the request log that were dropped because the disk did not take them."},
    {"weir_request_log_failing", "gauge", NO_LABEL, get_log_failing, "1: the last write to the request log failed."},
    {"weir_state_connected", "gauge", NO_LABEL, get_state_connected,
     "1: the shared store (`state:`) answers; 0: it does not, or there is none. Routing goes on either way."},
    {"weir_state_connects_total", "counter", NO_LABEL, get_state_connects, "Times that the store was reached (again)."},
    {"weir_state_age_seconds", "gauge", NO_LABEL, get_state_age, "Since the store last answered; -1: it never has."},
    {"weir_state_errors_total", "counter", BY_STATE_ERROR, get_state_errors, "Errors of the store and of connections to it, by kind."},
    {"weir_state_refused_total", "counter", BY_STATE_FAULT, get_state_refused, "Messages in the store that were not taken, by reason."},
    {"weir_state_sent_total", "counter", NO_LABEL, get_state_sent, "Commands that the store carried out."},
    {"weir_state_dropped_total", "counter", NO_LABEL, get_state_dropped,
     "Messages that were not sent because the store was not there or did not keep up; later ones make up for them."},
    {"weir_state_received_total", "counter", NO_LABEL, get_state_received, "Messages that were read and taken."},
    {"weir_state_full_reads_total", "counter", NO_LABEL, get_state_full_reads, "Times that all workers' records were read."},
    {"weir_state_gaps_total", "counter", NO_LABEL, get_state_gaps, "Messages of others that were missing, each run of them."},
    {"weir_state_ignored_total", "counter", NO_LABEL, get_state_ignored, "Messages of more controllers than the limit, and repeats."},
    {"weir_state_workers", "gauge", NO_LABEL, get_state_workers, "Workers that agents report in the store now."},
    {"weir_state_controllers", "gauge", NO_LABEL, get_state_controllers, "Other controllers that are heard of now."},
    {"weir_state_foreign_requests", "gauge", NO_LABEL, get_state_foreign, "Their requests at workers of this one, now."},
    {"weir_prompt_tokens_total", "counter", NO_LABEL, get_prompt_tok, "Prompt tokens by the engines' own usage."},
    {"weir_output_tokens_total", "counter", NO_LABEL, get_output_tok,
     "Output tokens: by usage where the engine sends it, else as counted in the stream."},
    {"weir_cached_tokens_total", "counter", NO_LABEL, get_cached_tok, "Prompt tokens that engines found cached, by usage."},
    {"weir_loop_longest_callback_seconds", "gauge", NO_LABEL, get_longest_lap,
     "Longest time since the start that a loop spent in one callback: all its connections waited that long."},
    {"weir_loop_blocked_total", "counter", NO_LABEL, get_blocked, "Callbacks that kept a loop for 1 ms or more. Should be 0."},
    {"weir_loop_preempted_total", "counter", NO_LABEL, get_preempted,
     "Callbacks of 1 ms or more within which the system gave the processor to others: weir needs a core of its own."},
    {"weir_decision_seconds", "histogram", BY_POOL, NULL, "Time of routing decisions, from lock to unlock.", hist_decide,
     BUCKETS_SHORT},
    {"weir_decision_seconds_max", "gauge", BY_POOL, get_decide_max, "Longest decision since the start."},
    {"weir_queued_requests", "gauge", BY_POOL, get_queued, "Requests held in the admission queue now."},
    {"weir_inflight_requests", "gauge", BY_POOL, get_inflight, "Requests at workers now, as the core counts them."},
    {"weir_held_total", "counter", BY_POOL, get_held, "Requests that had to wait in the admission queue."},
    {"weir_queued_bytes", "gauge", BY_POOL, get_queued_bytes, "Bytes of the bodies of requests held for admission now."},
    {"weir_retried_total", "counter", BY_POOL, get_retried, "Lost requests that were, or will be, tried again."},
    {"weir_retries_delayed_total", "counter", BY_POOL, get_delayed, "Of these, those that had to wait for the retry budget."},
    {"weir_ejections_total", "counter", BY_POOL, get_ejections, "Workers left out by the circuit breaker or as outliers, each time."},
    {"weir_panic", "gauge", BY_POOL, get_panics,
     "Roles of which so many workers are sick that the signal is distrusted and all that are up are used."},
    {"weir_rejected_total", "counter", BY_REASON, get_rejected, "Requests that the core refused, by reason."},
    {"weir_core_refused_events_total", "counter", BY_POOL, get_hub_refused, "Events that the core did not take: 0, or a bug of weir."},
    {"weir_mailed_commands_total", "counter", BY_POOL, get_mailed, "Commands of the core that went to another thread."},
    {"weir_config_reloads_total", "counter", NO_LABEL, get_reloads, "Times that the config was read again and taken over."},
    {"weir_config_reloads_refused_total", "counter", NO_LABEL, get_reloads_refused,
     "Times that the config was read again and had a fault: what ran before goes on."},
    {"weir_config_reload_failed", "gauge", NO_LABEL, get_reload_failed, "1: the last reload was refused; the log says why."},
    {"weir_worker_up", "gauge", BY_WORKER, get_up, "1: the worker answers its polls and gets requests."},
    {"weir_worker_used", "gauge", BY_WORKER, get_used, "1: the worker gets requests, as the core decides: up, not draining, not ejected."},
    {"weir_worker_health", "gauge", BY_WORKER, get_health, "0 ok, 1 ejected, 2 probing: one request at a time."},
    {"weir_worker_health_cause", "gauge", BY_WORKER, get_cause,
     "Why it is ejected or probing: 0 it is not, 1 failures in a row, 2 rate of failures, 3 slow first tokens."},
    {"weir_worker_share", "gauge", BY_WORKER, get_share, "Share of the others' load that it may have: below 1 in slow start."},
    {"weir_worker_inflight", "gauge", BY_WORKER, get_worker_inflight, "weir's own requests at the worker now."},
    {"weir_worker_prefill_tokens", "gauge", BY_WORKER, get_prefill_tok,
     "Prompt tokens that weir sent there and believes not yet prefilled."},
    {"weir_worker_predicted_ttft_seconds", "gauge", BY_WORKER, get_belief_ttft,
     "First token predicted for a prompt of 1,000 uncached tokens that were sent there now."},
    {"weir_worker_ttft_bias", "gauge", BY_WORKER, get_ttft_bias, "By what its first tokens were later than by step times alone."},
    {"weir_worker_tpot_bias", "gauge", BY_WORKER, get_tpot_bias, "The same of the time between its tokens."},
    {"weir_worker_agent_failure", "gauge", BY_WORKER, get_agent_failure,
     "What its `weir agent` says: 0 well, 1 unreachable, 2 stalled, 3 errors, 4 GPU errors; -1: no agent is heard of."},
    {"weir_worker_draining", "gauge", BY_WORKER, get_draining, "1: an operator drains the worker."},
    {"weir_worker_polls_total", "counter", BY_WORKER, get_polls, "Polls of the worker's metrics."},
    {"weir_worker_poll_failures_total", "counter", BY_WORKER, get_poll_failures, "Polls that failed."},
    {"weir_worker_running", "gauge", BY_WORKER, get_running, "Requests running, as the engine reports."},
    {"weir_worker_waiting", "gauge", BY_WORKER, get_waiting, "Requests waiting, as the engine reports."},
    {"weir_worker_kv_usage", "gauge", BY_WORKER, get_kv_usage, "Share of the KV cache in use, as the engine reports."},
    {"weir_worker_state_age_seconds", "gauge", BY_WORKER, get_age, "Age of the worker's last report; -1: none yet."},
    {"weir_kv_batches_total", "counter", BY_WORKER, get_kv_batches, "Batches of KV events read from the worker."},
    {"weir_kv_batches_refused_total", "counter", BY_WORKER, get_kv_refused,
     "Of these, malformed ones: all that was known of the worker's cache is forgotten then."},
    {"weir_kv_gaps_total", "counter", BY_WORKER, get_kv_gaps, "Gaps in the worker's KV events."},
    {"weir_kv_gaps_healed_total", "counter", BY_WORKER, get_kv_healed,
     "Times a replay had all that was missing; after other gaps all that was known is forgotten."},
    {"weir_kv_epochs_total", "counter", BY_WORKER, get_kv_epochs, "New lives of the worker's engine, by its KV events."},
    {"weir_kv_blocks", "gauge", BY_WORKER, get_kv_blocks, "Cached blocks of the worker that are followed now."},
    {"weir_kv_blocks_stored_total", "counter", BY_WORKER, get_kv_stored, "Blocks that KV events brought."},
    {"weir_kv_blocks_removed_total", "counter", BY_WORKER, get_kv_removed, "Blocks that KV events took away."},
    {"weir_kv_blocks_untold_total", "counter", BY_WORKER, get_kv_untold,
     "Blocks in KV events that have no name here: parent unknown, images, other tiers or groups of layers, odd sizes, too many."},
    {"weir_kv_blocks_strangers_total", "counter", BY_WORKER, get_kv_strangers,
     "Blocks that KV events took away without having brought them."},
};
/* clang-format on */
#pragma GCC diagnostic pop

#define N_ROWS (sizeof rows / sizeof *rows)

static void add_counts(struct proxy_counts *sum, const struct proxy_counts *c)
{
    const _Atomic uint64_t *from = (const _Atomic uint64_t *)c;
    _Atomic uint64_t *to = (_Atomic uint64_t *)sum;
    for (size_t i = 0; i < sizeof *sum / sizeof *to; i++)
        to[i] += from[i];
}

static void put(FILE *out, const char *name, const char *labels, double x)
{
    if (x == (double)(int64_t)x)
        fprintf(out, "%s%s %" PRId64 "\n", name, labels, (int64_t)x);
    else
        fprintf(out, "%s%s %.9g\n", name, labels, x);
}

/* Cumulative, with le behind the other labels. */
static void put_buckets(FILE *out, const struct row *row, const char *labels,
                        const struct buckets *b)
{
    size_t n = strlen(labels);
    const char *comma = n ? "," : "";
    int inner = n ? (int)n - 2 : 0; /* without the braces */
    uint64_t below = 0;
    for (uint32_t i = 0; i < BUCKETS_BOUNDS; i++) {
        below += b->n[i];
        fprintf(out, "%s_bucket{%.*s%sle=\"%g\"} %" PRIu64 "\n", row->name, inner,
                n ? labels + 1 : "", comma, (double)buckets_bounds[row->kind][i] / 1e9, below);
    }
    below += b->n[BUCKETS_BOUNDS];
    fprintf(out, "%s_bucket{%.*s%sle=\"+Inf\"} %" PRIu64 "\n", row->name, inner,
            n ? labels + 1 : "", comma, below);
    fprintf(out, "%s_sum%s %.9g\n%s_count%s %" PRIu64 "\n", row->name, labels, (double)b->sum / 1e9,
            row->name, labels, below);
}

static void put_row(FILE *out, const struct row *row, const char *labels, const struct sample *s)
{
    if (row->hist)
        put_buckets(out, row, labels, row->hist(s));
    else
        put(out, row->name, labels, row->get(s));
}

/* Names of pools and workers were checked when they were read: no quote or backslash in them. */
static void write_pools(FILE *out, const struct row *row, struct sample *s)
{
    char labels[SERVE_HOST_BYTES + 64];
    for (uint32_t i = 0; i < s->v->serve->n_pools; i++) {
        struct hub_stats stats;
        hub_get_stats(s->v->serve->pools[i].hub, &stats);
        s->hub = &stats;
        if (row->labels == BY_POOL) {
            snprintf(labels, sizeof labels, "{pool=\"%s\"}", s->v->serve->pools[i].name);
            put_row(out, row, labels, s);
            continue;
        }
        for (s->reason = CORE_REASON_NONE + 1; s->reason < CORE_REASON_COUNT; s->reason++) {
            snprintf(labels, sizeof labels, "{pool=\"%s\",reason=\"%s\"}",
                     s->v->serve->pools[i].name, report_reason_name(s->reason));
            put_row(out, row, labels, s);
        }
    }
}

static void write_kinds(FILE *out, const struct row *row, struct sample *s)
{
    char labels[64];
    for (int e = 0; row->labels == BY_STATE_ERROR && e < FEED_ERRORS; e++) {
        s->state_error = (enum feed_error)e;
        snprintf(labels, sizeof labels, "{kind=\"%s\"}", feed_error_name(s->state_error));
        put_row(out, row, labels, s);
    }
    for (int f = RECORD_GOOD + 1; row->labels == BY_STATE_FAULT && f < RECORD_FAULTS; f++) {
        s->state_fault = (enum record_fault)f;
        snprintf(labels, sizeof labels, "{reason=\"%s\"}", record_fault_name(s->state_fault));
        put_row(out, row, labels, s);
    }
}

static void write_row(FILE *out, const struct row *row, struct sample *s)
{
    char labels[2 * SERVE_HOST_BYTES + 64];
    const struct serve *serve = s->v->serve;
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", row->name, row->help, row->name, row->type);
    switch (row->labels) {
    case NO_LABEL: put_row(out, row, "", s); break;
    case BY_VERSION:
        snprintf(labels, sizeof labels, "{version=\"%s\"}", weir_version());
        put_row(out, row, labels, s);
        break;
    case BY_POOL:
    case BY_REASON: write_pools(out, row, s); break;
    case BY_STATE_ERROR:
    case BY_STATE_FAULT: write_kinds(out, row, s); break;
    case BY_WORKER:
        for (uint32_t i = 0; i < serve->n_workers; i++) {
            if (!serve->workers[i].present || serve->workers[i].leaving)
                continue;
            s->worker = poller_worker_at(s->v->poller, i);
            s->worker_at = i;
            (void)hub_get_worker(serve->pools[serve->workers[i].pool].hub, serve->workers[i].index,
                                 &s->state);
            s->belief =
                hub_belief(serve->pools[serve->workers[i].pool].hub, serve->workers[i].index);
            poller_kv_stats(s->v->poller, i, &s->kv);
            snprintf(labels, sizeof labels, "{pool=\"%s\",worker=\"%s\"}",
                     serve->pools[serve->workers[i].pool].name, serve->workers[i].name);
            put_row(out, row, labels, s);
        }
        break;
    }
}

void metrics_sum(const struct metrics_view *v, struct proxy_counts *sum)
{
    memset(sum, 0, sizeof *sum);
    for (uint32_t i = 0; i < v->n_proxies; i++)
        add_counts(sum, proxy_counts(v->proxies[i]));
}

void metrics_write(FILE *out, const struct metrics_view *v)
{
    struct proxy_counts sum;
    metrics_sum(v, &sum);
    static const struct feed_stats no_feed;
    struct sample s = {.v = v, .sum = &sum, .feed = &no_feed};
    if (v->serve->log)
        s.log = reqlog_stats(v->serve->log);
    if (v->shared) {
        s.shared = shared_stats(v->shared);
        s.feed = s.shared.feed;
    }
    for (size_t i = 0; i < N_ROWS; i++)
        write_row(out, &rows[i], &s);
}

void metrics_write_page(FILE *out)
{
    static const char *const labels[] = {"",        "pool", "pool, worker", "pool, reason",
                                         "version", "kind", "reason"};
    fputs(
        "# Metrics of `weir serve`\n\n"
        "Generated by `weir serve --metrics-page` from the table in controller/serve/metrics.c; a test checks that it\n"
        "is current.\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n",
        out);
    for (size_t i = 0; i < N_ROWS; i++)
        fprintf(out, "| `%s` | %s | %s | %s |\n", rows[i].name, rows[i].type,
                labels[rows[i].labels], rows[i].help);
}
