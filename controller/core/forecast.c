/* forecast.c - see forecast.h. */
#include "controller/core/forecast.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Measured and predicted, summed over requests that fade; 0 before the first. */
struct ratio {
    double measured_ps, steps_ps;
    uint64_t n;
};

struct believed {
    struct step_model steps;
    struct ratio ttft, tpot;
};

struct forecast {
    struct step_model generic;
    uint32_t n;
    struct believed *workers;
};

void forecast_generic(struct step_params *p)
{
    *p = (struct step_params){
        .form = STEP_LINEAR, .w_ms = 6.4343, .k_ms_per_tok = 5.131e-05, .p_ms_per_tok = 0.019613};
}

struct forecast *forecast_new(uint32_t n_workers)
{
    struct forecast *f = calloc(1, sizeof *f);
    struct step_params p;
    const char *why;
    if (!f)
        return NULL;
    forecast_generic(&p);
    int rc = step_model_init(&f->generic, &p, &why);
    assert(!rc);
    if (!rc && !forecast_grow(f, n_workers))
        return f;
    free(f);
    return NULL;
}

void forecast_free(struct forecast *f)
{
    if (!f)
        return;
    free(f->workers);
    free(f);
}

int forecast_grow(struct forecast *f, uint32_t n_workers)
{
    if (n_workers <= f->n)
        return 0;
    struct believed *w = realloc(f->workers, n_workers * sizeof *w);
    if (!w)
        return WEIR_E_NOMEM;
    f->workers = w;
    for (; f->n < n_workers; f->n++)
        w[f->n] = (struct believed){.steps = f->generic};
    return 0;
}

void forecast_set(struct forecast *f, uint32_t w, const struct step_model *m)
{
    f->workers[w] = (struct believed){.steps = m ? *m : f->generic};
}

/* ---- asking */

static double bias(const struct ratio *r)
{
    double b = r->steps_ps > 0 ? r->measured_ps / r->steps_ps : 1;
    if (b > FORECAST_MAX_BIAS)
        return FORECAST_MAX_BIAS;
    return b < 1 / FORECAST_MAX_BIAS ? 1 / FORECAST_MAX_BIAS : b;
}

static int64_t times(int64_t ps, double by)
{
    return (int64_t)((double)ps * by);
}

/* Of n requests that decode over ctx_tok tokens. */
static struct step_batch decoding(const struct forecast_books *b, uint32_t n, uint64_t ctx_tok)
{
    return (struct step_batch){.decode_reqs = n,
                               .decode_ctx_tok = ctx_tok,
                               .active_kv_tok = ctx_tok,
                               .total_kv_tok = b->total_kv_tok ? b->total_kv_tok : ctx_tok + 1};
}

static int64_t first_token_ps(const struct step_model *m, const struct forecast_books *b,
                              uint32_t prompt_tok, uint32_t cached_tok)
{
    uint32_t chunk =
        b->chunk_tok && b->chunk_tok <= FORECAST_MAX_CHUNK_TOK ? b->chunk_tok : FORECAST_CHUNK_TOK;
    uint64_t own = prompt_tok - cached_tok, work = b->prefill_tok + own;
    uint64_t steps = work > chunk ? (work + chunk - 1) / chunk : 1;
    uint32_t n = b->inflight - b->prefilling;
    uint64_t ctx = b->inflight ? b->inflight_tok / b->inflight * n : 0;
    struct step_batch s = decoding(b, n, ctx);
    int64_t running = b->prefilling || n ? step_time_ps(m, &s) / 2 : 0;
    /* those who wait are taken as equally long; attention is n * n + 2 n * cached, doubled as step.h wants it */
    uint64_t each = b->prefilling ? b->prefill_tok / b->prefilling : 0;
    s.prefill_reqs = 1;
    s.prefill_tok = work / steps;
    s.prefill_ctx_tok = cached_tok;
    s.prefill_attn = (b->prefill_tok * each + 2 * own * cached_tok + own * own) / steps;
    int64_t step = step_time_ps(m, &s);
    return (b->prefilling ? step / 2 : running) + step * (int64_t)steps;
}

void forecast_ask(const struct forecast *f, uint32_t w, const struct forecast_books *b,
                  enum forecast_leg leg, uint32_t prompt_tok, uint32_t cached_tok,
                  struct forecast_times *out)
{
    const struct believed *x = &f->workers[w];
    struct step_batch all = decoding(b, b->inflight + 1, b->inflight_tok + prompt_tok);
    if (cached_tok >= prompt_tok) /* an engine computes the last token in any case */
        cached_tok = prompt_tok ? prompt_tok - 1 : 0;
    int64_t step = step_time_ps(&x->steps, &all);
    out->steps_tpot_ps = times(step, 1 / step_spec_expected_tok(&x->steps));
    out->steps_ttft_ps =
        leg == FORECAST_DECODE ? step : first_token_ps(&x->steps, b, prompt_tok, cached_tok);
    out->ttft_ps = times(out->steps_ttft_ps, bias(&x->ttft));
    out->tpot_ps = times(out->steps_tpot_ps, bias(&x->tpot));
}

/* ---- learning */

static void learn(struct ratio *r, int64_t steps_ps, int64_t actual_ps)
{
    double steps = (double)steps_ps, actual = (double)actual_ps;
    if (steps_ps <= 0 || actual_ps <= 0)
        return;
    if (actual > steps * FORECAST_MAX_BIAS)
        actual = steps * FORECAST_MAX_BIAS;
    if (!r->n++)
        r->measured_ps = r->steps_ps = FORECAST_PRIOR * steps;
    r->measured_ps += actual - r->measured_ps / FORECAST_MEMORY;
    r->steps_ps += steps - r->steps_ps / FORECAST_MEMORY;
}

void forecast_learn_ttft(struct forecast *f, uint32_t w, int64_t steps_ps, int64_t actual_ps)
{
    learn(&f->workers[w].ttft, steps_ps, actual_ps);
}

void forecast_learn_tpot(struct forecast *f, uint32_t w, int64_t steps_ps, int64_t actual_ps)
{
    learn(&f->workers[w].tpot, steps_ps, actual_ps);
}

struct forecast_bias forecast_bias_of(const struct forecast *f, uint32_t w)
{
    const struct believed *x = &f->workers[w];
    return (struct forecast_bias){bias(&x->ttft), bias(&x->tpot), x->ttft.n, x->tpot.n};
}
