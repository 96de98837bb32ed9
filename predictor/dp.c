/* dp.c - see dp.h. */
#include "predictor/dp.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/engine_internal.h"
#include "predictor/mem.h"
#include "predictor/rng.h"

/* ---- life */

int dp_init(struct dp_group *g, const struct engine_config *c, uint64_t seed)
{
    const char *why;
    memset(g, 0, sizeof *g);
    if (engine_config_check(c, &why))
        return WEIR_E_INVALID;
    g->scheduler = c->scheduler;
    g->ranks = calloc(c->dp_size, sizeof(struct engine *));
    if (!g->ranks)
        return WEIR_E_NOMEM;
    if (c->dp_size > 1) {
        g->ends = malloc(DP_MAX_SKIP * sizeof *g->ends);
        g->times = malloc(DP_MAX_SKIP * sizeof *g->times);
        g->busy = calloc(c->dp_size, sizeof *g->busy);
        if (!g->ends || !g->times || !g->busy)
            return WEIR_E_NOMEM;
    }
    for (; g->n < c->dp_size; g->n++) {
        g->ranks[g->n] = engine_new(c, g->n ? rng_mix64(seed + g->n) : seed);
        if (!g->ranks[g->n])
            return WEIR_E_NOMEM;
    }
    return 0;
}

void dp_deinit(struct dp_group *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        engine_free(g->ranks[i]);
    free(g->ranks);
    free(g->ends);
    free(g->times);
    free(g->busy);
    memset(g, 0, sizeof *g);
}

int dp_copy(struct dp_group *dst, const struct dp_group *src)
{
    if (dst->n != src->n)
        return WEIR_E_INVALID;
    for (uint32_t i = 0; i < src->n; i++) {
        if (engine_copy(dst->ranks[i], src->ranks[i]))
            return WEIR_E_NOMEM;
    }
    struct dp_group old = *dst;
    *dst = *src;
    dst->ranks = old.ranks;
    dst->ends = old.ends;
    dst->times = old.times;
    dst->busy = old.busy;
    if (src->in_pass && src->n > 1)
        MEM_COPY(dst->ends, src->ends, (uint32_t)src->steps);
    return 0;
}

/* ---- which rank */

uint32_t dp_choose(struct dp_group *g)
{
    uint32_t best = 0;
    uint64_t least = UINT64_MAX, factor = g->scheduler == SCHED_TRTLLM ? 1 : 4;
    if (g->n == 1)
        return 0;
    if (g->scheduler == SCHED_SGLANG) {
        best = g->next;
        g->next = (g->next + 1) % g->n;
        return best;
    }
    for (uint32_t i = 0; i < g->n; i++) {
        const struct engine *e = g->ranks[i];
        uint64_t waiting = (uint64_t)e->waiting.n + e->arriving.n + e->n_aside;
        uint64_t score = waiting * factor + e->n_running;
        if (score < least) {
            least = score;
            best = i;
        }
    }
    return best;
}

/* ---- requests */

/* Something happens at `at`: passes that would begin at or after it do not, as planned. */
static void cut(struct dp_group *g, int64_t at)
{
    if (!g->in_pass || g->end_ps <= at) /* in_pass: only with several ranks */
        return;
    while (g->steps > 1 && g->ends[g->steps - 2] >= at)
        g->steps--;
    if (g->steps)
        g->end_ps = g->ends[g->steps - 1];
    for (uint32_t i = 0; i < g->n; i++)
        engine_cut(g->ranks[i], at);
}

static void end_pass(struct dp_group *g);

/* The caller changes something in a rank as of now; the engine itself does this when it is alone. */
static void change(struct dp_group *g, int64_t now)
{
    if (g->in_pass && g->end_ps > now) {
        cut(g, now);
        if (g->end_ps == now) /* nobody finishes before the last of the planned passes: no events */
            end_pass(g);
    }
    if (!g->in_pass && g->end_ps < now)
        g->end_ps = now; /* idle until then */
}

int dp_submit(struct dp_group *g, int64_t now, uint32_t rank, const struct request_spec *s,
              uint32_t handle, unsigned flags, uint32_t *slot)
{
    change(g, now);
    return engine_submit(g->ranks[rank], now, s, handle, flags, slot);
}

void dp_abort(struct dp_group *g, int64_t now, uint32_t rank, uint32_t slot)
{
    change(g, now);
    engine_abort(g->ranks[rank], now, slot);
}

void dp_release(struct dp_group *g, int64_t now, uint32_t rank, uint32_t slot)
{
    change(g, now);
    engine_release(g->ranks[rank], now, slot);
}

void dp_arrived(struct dp_group *g, int64_t now, uint32_t rank, uint32_t slot)
{
    change(g, now);
    engine_arrived(g->ranks[rank], now, slot);
}

void dp_shared_done(struct dp_group *g, int64_t now, uint32_t rank,
                    const struct shared_tier_done *done)
{
    engine_shared_done(g->ranks[rank], now, done);
    cut(g, tiers_next_ps(g->ranks[rank]));
}

void dp_set_slow(struct dp_group *g, int64_t now, double factor)
{
    change(g, now);
    for (uint32_t i = 0; i < g->n; i++)
        engine_set_slow(g->ranks[i], now, factor);
}

void dp_kill(struct dp_group *g, int64_t now, void (*lost)(void *ctx, uint32_t handle), void *ctx)
{
    if (g->in_pass && g->steps) { /* what had ended by now */
        uint64_t n = 0;
        while (n < g->steps && g->ends[n] <= now)
            n++;
        g->passes += n;
        g->busy_ps += n ? g->ends[n - 1] - g->start_ps : 0;
    }
    for (uint32_t i = 0; i < g->n; i++)
        engine_kill(g->ranks[i], now, lost, ctx);
    g->in_pass = false;
    g->end_ps = now;
}

bool dp_empty(const struct dp_group *g)
{
    for (uint32_t i = 0; i < g->n; i++) {
        if (!engine_empty(g->ranks[i]))
            return false;
    }
    return true;
}

/* ---- time */

/* When ranks have something to do besides passes. */
static int64_t next_copy_ps(const struct dp_group *g)
{
    int64_t t = PS_NEVER;
    for (uint32_t i = 0; i < g->n; i++) {
        const struct engine *e = g->ranks[i];
        if (e->tiers && tiers_next_ps(e) < t)
            t = tiers_next_ps(e);
    }
    return t;
}

/* Takes up to max decode-only passes together, in all ranks that run something. */
static void begin_together(struct dp_group *g, uint64_t max, int64_t horizon)
{
    uint32_t n = max < DP_MAX_SKIP ? (uint32_t)max : DP_MAX_SKIP;
    memset(g->ends, 0, n * sizeof *g->ends);
    for (uint32_t i = 0; i < g->n; i++) {
        if (!g->ranks[i]->n_running)
            continue;
        engine_decode_times(g->ranks[i], n, g->times);
        for (uint32_t k = 0; k < n; k++)
            g->ends[k] = g->times[k] > g->ends[k] ? g->times[k] : g->ends[k];
    }
    int64_t t = g->start_ps;
    uint32_t steps = 0;
    do {
        t += g->ends[steps];
        g->ends[steps++] = t;
    } while (steps < n && t < horizon);
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->ranks[i]->n_running)
            engine_begin_paced(g->ranks[i], g->ends, steps);
    }
    g->steps = steps;
    g->end_ps = t;
    g->in_pass = true;
}

/* Experts are read for the tokens of all ranks. A rank is told of the others' running requests: what they prefill on
 * top only matters where its own pass is the shorter one. */
static void tell_peers(struct dp_group *g)
{
    uint64_t all = 0;
    for (uint32_t i = 0; i < g->n; i++)
        all += g->ranks[i]->n_running;
    for (uint32_t i = 0; i < g->n; i++)
        engine_set_peers(g->ranks[i], all - g->ranks[i]->n_running);
}

void dp_start(struct dp_group *g, int64_t now, int64_t horizon)
{
    if (g->n == 1) {
        engine_start(g->ranks[0], now, horizon);
        return;
    }
    if (g->in_pass)
        return;
    uint64_t n = UINT64_MAX;
    g->start_ps = now;
    for (uint32_t i = 0; i < g->n; i++) {
        uint64_t k = engine_prepare(g->ranks[i], now);
        g->busy[i] = k < UINT64_MAX;
        n = k < n ? k : n;
    }
    if (n == UINT64_MAX)
        return;
    tell_peers(g);
    int64_t copy = next_copy_ps(g);
    if (n > 1) {
        begin_together(g, n, copy < horizon ? copy : horizon);
        return;
    }
    g->end_ps = now;
    g->steps = 0;
    for (uint32_t i = 0; i < g->n; i++) {
        int64_t end = g->busy[i] ? engine_begin_pass(g->ranks[i]) : PS_NEVER;
        if (end == PS_NEVER)
            continue;
        g->in_pass = true;
        g->end_ps = end > g->end_ps ? end : g->end_ps;
    }
    for (uint32_t i = 0; i < g->n; i++) { /* the barrier */
        if (g->ranks[i]->in_pass)
            g->ranks[i]->end_ps = g->end_ps;
    }
}

static void end_pass(struct dp_group *g)
{
    g->busy_ps += g->end_ps - g->start_ps;
    g->passes += g->steps ? g->steps : 1;
    g->in_pass = false;
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->ranks[i]->in_pass)
            engine_end(g->ranks[i]);
    }
}

static void boundary(struct dp_group *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        engine_boundary(g->ranks[i], g->end_ps);
}

void dp_run(struct dp_group *g, int64_t until)
{
    if (g->n == 1) {
        engine_run(g->ranks[0], until);
        return;
    }
    for (;;) {
        if (!g->in_pass) {
            boundary(g);
            if (g->end_ps >= until)
                return;
            dp_start(g, g->end_ps, until);
        }
        if (!g->in_pass) { /* idle until then */
            int64_t next = next_copy_ps(g);
            g->end_ps = next < until ? next : until;
            if (next > until)
                return;
            continue;
        }
        if (g->end_ps > until)
            return;
        end_pass(g);
    }
}

int64_t dp_next_ps(const struct dp_group *g)
{
    if (g->n == 1)
        return engine_next_ps(g->ranks[0]);
    return g->in_pass ? g->end_ps : next_copy_ps(g);
}

bool dp_in_pass(const struct dp_group *g)
{
    return g->n == 1 ? g->ranks[0]->in_pass : g->in_pass;
}

/* ---- looking in */

void dp_get_load(const struct dp_group *g, int64_t now, struct engine_load *out)
{
    engine_get_load(g->ranks[0], now, out);
    for (uint32_t i = 1; i < g->n; i++) {
        struct engine_load l;
        engine_get_load(g->ranks[i], now, &l);
        out->running += l.running;
        out->waiting += l.waiting;
        out->held += l.held;
        out->kv_used_blocks += l.kv_used_blocks;
        out->kv_total_blocks += l.kv_total_blocks;
    }
}

void dp_get_stats(const struct dp_group *g, struct engine_stats *out)
{
    engine_get_stats(g->ranks[0], out);
    for (uint32_t i = 1; i < g->n; i++) {
        struct engine_stats s;
        engine_get_stats(g->ranks[i], &s);
        out->preemptions += s.preemptions;
        out->prompt_tok += s.prompt_tok;
        out->output_tok += s.output_tok;
        out->reused_tok += s.reused_tok;
        out->admitted += s.admitted;
        out->done += s.done;
        out->host_tok += s.host_tok;
        out->shared_tok += s.shared_tok;
        out->stored_tok += s.stored_tok;
        out->not_stored_tok += s.not_stored_tok;
    }
    if (g->n > 1) {
        out->passes = g->passes;
        out->busy_ps = g->busy_ps;
    }
}
