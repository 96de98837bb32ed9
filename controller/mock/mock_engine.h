/* mock_engine.h - an engine that generates nothing and takes its time over it: the scheduler and the KV cache of
 * predictor/engine.h step by step in real time, with step times of its own: a profile, a factor, jitter. Without I/O
 * and clock: the caller says when a step has ended. What a controller believes of engines is never shared with it.
 */
#ifndef WEIR_MOCK_ENGINE_H
#define WEIR_MOCK_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/engine.h"
#include "predictor/rng.h"

#define MOCK_MAX_REQUESTS 65536u

struct mock_options {
    struct engine_config engine; /* its step model says how long steps take */
    double jitter;               /* relative standard deviation of a step's time, 0..0.5 */
    uint64_t seed;
};

/* What a request sees. Called from within mock_engine_step_end. */
struct mock_ops {
    void (*token)(void *ctx, uint32_t handle, uint32_t n); /* n more tokens of its answer */
    void (*done)(void *ctx, uint32_t handle,
                 const struct engine_record *record); /* after its last token */
    void (*prefilled)(void *ctx, uint32_t handle,
                      const struct engine_record *record); /* its KV is held */
    /* Changes of the prefix cache, before the rest of a step is told; NULL: nobody wants to know. */
    void (*cache)(void *ctx, const struct engine_cache_change *change);
};

struct mock_engine;

/* NULL: out of memory or a config that engine_config_check refuses. */
struct mock_engine *mock_engine_new(const struct mock_options *o, const struct mock_ops *ops,
                                    void *ctx);
void mock_engine_free(struct mock_engine *m);

/* Errors of engine_submit, and WEIR_E_LIMIT (MOCK_MAX_REQUESTS). handle: dense, the caller's. */
WEIR_NODISCARD int mock_engine_submit(struct mock_engine *m, int64_t now,
                                      const struct request_spec *s, uint32_t handle,
                                      unsigned flags);
/* The client left, or the held KV has been pulled: no more calls for this handle. */
void mock_engine_abort(struct mock_engine *m, int64_t now, uint32_t handle);

/* Begins a step if there is anything to do and none is in flight. Its length in ps; 0: nothing to do. */
int64_t mock_engine_step_begin(struct mock_engine *m, int64_t now);
bool mock_engine_stepping(const struct mock_engine *m);
void mock_engine_step_end(struct mock_engine *m, int64_t now);

/* Every step from the next one on takes factor times as long. */
void mock_engine_slow(struct mock_engine *m, double factor);

const struct engine *mock_engine_inner(const struct mock_engine *m);

#endif
