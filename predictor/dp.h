/* dp.h - one worker: an engine, or dp_size of them that go in step with each other (attention data
 * parallelism, as mixture-of-experts models are served: each rank has requests, queue and KV blocks of its own,
 * and all meet in the expert layers of every pass).
 *
 *   rank 0   |== own pass ==|......|  |=========|   dots: waits for the slowest
 *   rank 1   |===== slowest =======|  |====|....|
 *   rank 2   |. nothing to do .....|  |==|......|
 *
 * Modelled:
 *   - Passes begin together, and end for all ranks when the slowest one's ends (engine-model.md 1.7). A rank
 *     without work runs a pass without effect (vLLM: dummy batch), a request that reaches it waits for its end.
 *   - A rank's pass takes what the step model says of its own batch: W is that of one rank. Which experts are read
 *     depends on the tokens of all ranks (on a recorded DP 2 run of Qwen3-30B-A3B, counting a rank's own alone
 *     made the longest times between tokens 11 % too short: bench/fidelity). num_gpu_blocks and all other
 *     limits are those of one rank, as the engine reports them.
 *   - Each rank has a host tier of its own (vLLM, AISimulate's dp_rank_local).
 *   - The engine spreads requests: vLLM sends each to the rank with the smallest 4 * waiting + running, the first
 *     of several (DPLBAsyncMPClient; there the counts are refreshed every 100 ms and own sends added in
 *     between, here they are current); TensorRT-LLM to the one with the fewest requests (its default
 *     router for attention DP); SGLang to one after the other (load-balance-method round_robin). Prefixes do
 *     not count: each rank has a cache of its own, and hits need luck.
 *
 * Decode-only passes are taken together as in one engine, bit-identical to stepping: at most DP_MAX_SKIP,
 * none beyond the earliest rank's next decision. Protocol and units are those of engine.h. With one rank every
 * function is the engine's own.
 */
#ifndef WEIR_DP_H
#define WEIR_DP_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/engine.h"

#define DP_MAX_SKIP 1024u

struct dp_group {
    struct engine **ranks;
    uint32_t n;
    uint32_t next; /* rank that is next in turn */
    enum sched_kind scheduler;

    /* with several ranks */
    bool in_pass;
    int64_t start_ps, end_ps;
    uint64_t steps; /* passes taken together; ends[i]: when they end */
    int64_t *ends, *times;
    bool *busy; /* by rank: has something to do in the pass that begins */
    int64_t busy_ps;
    uint64_t passes;
};

/* c->dp_size ranks. 0, WEIR_E_NOMEM or WEIR_E_INVALID (engine_config_check refuses c). dp_deinit frees in any
 * case. */
WEIR_NODISCARD int dp_init(struct dp_group *g, const struct engine_config *c, uint64_t seed);
void dp_deinit(struct dp_group *g);
/* As engine_copy, of a group of as many ranks. 0, WEIR_E_NOMEM (ranks before the failing one are copied already)
 * or WEIR_E_INVALID (another number of ranks). */
WEIR_NODISCARD int dp_copy(struct dp_group *dst, const struct dp_group *src);

/* The rank that the engine sends its next request to. */
uint32_t dp_choose(struct dp_group *g);
/* engine_submit and so on, at a rank. */
WEIR_NODISCARD int dp_submit(struct dp_group *g, int64_t now, uint32_t rank,
                             const struct request_spec *s, uint32_t handle, unsigned flags,
                             uint32_t *slot);
void dp_abort(struct dp_group *g, int64_t now, uint32_t rank, uint32_t slot);
void dp_release(struct dp_group *g, int64_t now, uint32_t rank, uint32_t slot);
void dp_arrived(struct dp_group *g, int64_t now, uint32_t rank, uint32_t slot);
void dp_shared_done(struct dp_group *g, int64_t now, uint32_t rank,
                    const struct shared_tier_done *done);

void dp_set_slow(struct dp_group *g, int64_t now, double factor);
void dp_kill(struct dp_group *g, int64_t now, void (*lost)(void *ctx, uint32_t handle), void *ctx);
bool dp_empty(const struct dp_group *g);

void dp_run(struct dp_group *g, int64_t until);
void dp_start(struct dp_group *g, int64_t now, int64_t horizon);
int64_t dp_next_ps(const struct dp_group *g);
bool dp_in_pass(const struct dp_group *g);

/* Sums over the ranks; busy_ps and passes are those of the whole. */
void dp_get_load(const struct dp_group *g, int64_t now, struct engine_load *out);
void dp_get_stats(const struct dp_group *g, struct engine_stats *out);

#endif
