/* mock_engine.c - see mock_engine.h. */
#include "controller/mock/mock_engine.h"

#include <stdlib.h>
#include <string.h>

#include "predictor/mem.h"

#define NO_SLOT UINT32_MAX

struct entry {
    uint32_t slot, out; /* out: tokens of its answer so far */
    uint32_t total;     /* prompt and answer so far */
};

struct mock_engine {
    struct engine *engine;
    struct mock_ops ops;
    void *ctx;
    struct rng rng;
    double jitter, slow;
    bool stepping;
    struct entry *entries; /* by handle */
    uint32_t entries_cap;
    struct engine_batch_item *batch; /* of the step in flight */
    uint32_t n_batch, batch_cap;
};

struct mock_engine *mock_engine_new(const struct mock_options *o, const struct mock_ops *ops,
                                    void *ctx)
{
    struct mock_engine *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->engine = engine_new(&o->engine, o->seed);
    if (!m->engine) {
        free(m);
        return NULL;
    }
    m->ops = *ops;
    m->ctx = ctx;
    engine_log_cache(m->engine, ops->cache != NULL);
    m->jitter = o->jitter;
    m->slow = 1;
    rng_init(&m->rng, rng_mix64(o->seed));
    return m;
}

void mock_engine_free(struct mock_engine *m)
{
    if (!m)
        return;
    engine_free(m->engine);
    free(m->entries);
    free(m->batch);
    free(m);
}

int mock_engine_submit(struct mock_engine *m, int64_t now, const struct request_spec *s,
                       uint32_t handle, unsigned flags)
{
    uint32_t slot;
    if (handle >= MOCK_MAX_REQUESTS)
        return WEIR_E_LIMIT;
    int rc = engine_submit(m->engine, now, s, handle, flags, &slot);
    if (rc)
        return rc;
    MEM_GROW(m->entries, m->entries_cap, handle + 1);
    m->entries[handle] = (struct entry){slot, 0, s->prompt_tok};
    return 0;
}

void mock_engine_abort(struct mock_engine *m, int64_t now, uint32_t handle)
{
    struct entry *e = &m->entries[handle];
    if (e->slot != NO_SLOT)
        engine_abort(m->engine, now, e->slot);
    e->slot = NO_SLOT;
}

/* Near enough to a normal distribution: the sum of four uniform numbers has a standard deviation of 1/sqrt(3). */
static double jittered(struct mock_engine *m)
{
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += rng_unit(&m->rng);
    double x = 1 + m->jitter * (sum - 2) * 1.7320508075688772;
    return x < 0.1 ? 0.1 : x;
}

int64_t mock_engine_step_begin(struct mock_engine *m, int64_t now)
{
    const struct engine_batch_item *batch;
    struct step_batch b;
    if (m->stepping || engine_empty(m->engine))
        return 0;
    m->n_batch = engine_step_begin(m->engine, now, &batch);
    if (!m->n_batch) { /* all that is there is KV that waits to be pulled */
        engine_step_end(m->engine, now);
        return 0;
    }
    MEM_GROW(m->batch, m->batch_cap, m->n_batch);
    memcpy(m->batch, batch, m->n_batch * sizeof *batch);
    m->stepping = true;
    engine_step_batch(m->engine, &b);
    double ps =
        (double)step_time_ps(&engine_config_of(m->engine)->step, &b) * m->slow * jittered(m);
    return ps < 1 ? 1 : (int64_t)ps;
}

bool mock_engine_stepping(const struct mock_engine *m)
{
    return m->stepping;
}

/* A request whose known tokens are all computed has one more token now. */
static void tell_tokens(struct mock_engine *m)
{
    for (uint32_t i = 0; i < m->n_batch; i++) {
        struct entry *e = &m->entries[m->batch[i].handle];
        if (e->slot == NO_SLOT || m->batch[i].computed + m->batch[i].scheduled < e->total)
            continue;
        e->out++;
        e->total++;
        m->ops.token(m->ctx, m->batch[i].handle, 1);
    }
}

void mock_engine_step_end(struct mock_engine *m, int64_t now)
{
    uint32_t n;
    m->stepping = false;
    engine_step_end(m->engine, now);
    if (m->ops.cache)
        engine_drain_cache_log(m->engine, m->ops.cache, m->ctx);
    tell_tokens(m);
    const struct engine_event *events = engine_events(m->engine, &n);
    for (uint32_t i = 0; i < n; i++) {
        struct entry *e = &m->entries[events[i].handle];
        if (e->slot == NO_SLOT) /* aborted while it ran */
            continue;
        if (events[i].kind == ENGINE_EV_PREFILL_DONE) {
            m->ops.prefilled(m->ctx, events[i].handle, &events[i].record);
        } else if (events[i].kind == ENGINE_EV_DONE) {
            e->slot = NO_SLOT;
            m->ops.done(m->ctx, events[i].handle, &events[i].record);
        }
    }
    engine_clear_events(m->engine);
}

void mock_engine_slow(struct mock_engine *m, double factor)
{
    m->slow = factor;
}

const struct engine *mock_engine_inner(const struct mock_engine *m)
{
    return m->engine;
}
