/* engine_report.h - a worker's record from what its engine says: figures of its metrics page, names of its models, and whether
 * it is well. I/O-free.
 *
 *   unreachable  no answer
 *   errors       an answer that is an error, or no page of an engine
 *   stalled      requests run, and for stall_ms no counter of tokens, steps or first tokens has moved (a CUDA or NCCL
 *                hang: the page is still served then)
 *
 * Counters that an engine family does not have do not count; without any of them nothing is called stalled.
 */
#ifndef WEIR_ENGINE_REPORT_H
#define WEIR_ENGINE_REPORT_H

#include "controller/engines/engine_metrics.h"
#include "controller/state/record.h"

struct engine_report {
    struct worker_record record;
    double progress;   /* sum of the counters that show headway */
    uint64_t moved_ms; /* when it last changed, or nothing ran */
};

/* A page was read. now_ms: a clock that never runs back; unix_us: Unix time. */
void engine_report_page(struct engine_report *r, const struct engine_metrics *m, uint64_t now_ms,
                        int64_t unix_us, uint32_t stall_ms);
/* It was not. why: cut to what a record takes. */
void engine_report_failed(struct engine_report *r, enum record_failure failure, const char *why);
/* An answer to /v1/models. Those with a parent are LoRA adapters. What cannot be read changes nothing. */
void engine_report_models(struct engine_report *r, const char *json, size_t len);

#endif
