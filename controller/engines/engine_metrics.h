/* engine_metrics.h - what an engine's /metrics page says of its load, whichever family it is of, old names and new.
 * One row of a table a name (engine_metrics.c); sources: wire-formats.md 3.7 and what a real vLLM 0.32 exports
 * (3.8, "seen", 8). No I/O.
 */
#ifndef WEIR_ENGINE_METRICS_H
#define WEIR_ENGINE_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "controller/core/core.h"

enum engine_family { ENGINE_UNKNOWN, ENGINE_VLLM, ENGINE_SGLANG, ENGINE_TRTLLM, ENGINE_TRITON };

/* What can be read; several engines (data-parallel ranks, models) behind one page are added up, shares of the KV
 * cache are averaged. */
enum engine_figure {
    FIGURE_RUNNING,
    FIGURE_WAITING,
    FIGURE_KV_USAGE,     /* 0..1 */
    FIGURE_BLOCK_SIZE,   /* tokens */
    FIGURE_BLOCKS,       /* capacity, blocks or pages */
    FIGURE_CAPACITY_TOK, /* capacity, tokens */
    FIGURE_SLEEPING,     /* 1: loaded but asleep or paused */
    FIGURE_PREFIX_QUERIES_TOK,
    FIGURE_PREFIX_HITS_TOK,
    FIGURE_PREEMPTIONS,
    FIGURE_PROMPT_TOK,
    FIGURE_OUTPUT_TOK,
    FIGURE_TTFT_SUM_S, /* of the histogram */
    FIGURE_TTFT_COUNT,
    FIGURE_ITL_SUM_S,
    FIGURE_ITL_COUNT,
    FIGURE_STEPS, /* engine iterations, where the family counts them */
    FIGURE_COUNT
};

struct engine_metrics {
    enum engine_family family;
    uint32_t known; /* bit set 1 << engine_figure */
    double figure[FIGURE_COUNT];
    uint32_t engines;   /* that were added up: distinct values of the running gauge */
    uint64_t malformed; /* lines */
};

/* Reads a page. 0; WEIR_E_INPUT: nothing on it is of an engine that we know (malformed counts what was no sample). */
WEIR_NODISCARD int engine_metrics_read(const char *text, size_t len, struct engine_metrics *out);

static inline bool engine_metrics_known(const struct engine_metrics *m, enum engine_figure f)
{
    return m->known & UINT32_C(1) << f;
}

/* As the core takes it, measured at at_ps. Blocks in use come from the share and the capacity; without a capacity on
 * the page, num_gpu_blocks (0: unknown) is taken. False: neither running nor waiting is known. */
bool engine_metrics_telemetry(const struct engine_metrics *m, int64_t at_ps,
                              uint32_t num_gpu_blocks, struct core_telemetry *out);

/* "vllm" ..., "unknown". */
const char *engine_family_name(enum engine_family f);

/* The ORCA header that vLLM adds to a response on demand (endpoint-load-metrics: TEXT or JSON form): a fresh sample of
 * waiting and KV usage at no extra request. 0 or WEIR_E_INPUT. */
WEIR_NODISCARD int engine_metrics_orca(const char *value, size_t len, struct engine_metrics *out);

#endif
