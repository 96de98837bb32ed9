/* step.c - see step.h. Formulas: DESIGN 4; engine-model.md 1.5 (polynomial, tables), 3.1 (linear form,
 * mixture of experts, speculation). */
#include "predictor/step.h"

#include <string.h>

#include "predictor/units.h"

typedef __int128 i128;

/* ---- checking and converting */

static bool usable(double v, double low, double high)
{
    return v >= low && v <= high; /* false for NaN */
}

static const char *check_linear(const struct step_params *p)
{
    if (!usable(p->w_ms, 0, STEP_MAX_MS))
        return "w_ms must be 0..1e9";
    if (!usable(p->d0_ms_per_req, 0, STEP_MAX_MS))
        return "d0_ms_per_req must be 0..1e9";
    if (!usable(p->k_ms_per_tok, 0, STEP_MAX_MS))
        return "k_ms_per_tok must be 0..1e9";
    if (!usable(p->p_ms_per_tok, 0, STEP_MAX_MS))
        return "p_ms_per_tok must be 0..1e9";
    if (!usable(p->q_ms_per_tok2, 0, STEP_MAX_MS))
        return "q_ms_per_tok2 must be 0..1e9";
    if (!usable(p->mix_ms_per_tok, 0, STEP_MAX_MS))
        return "mix_ms_per_tok must be 0..1e9";
    if (!usable(p->prefill_floor_ms, 0, STEP_MAX_MS))
        return "prefill_floor_ms must be 0..1e9";
    if (!p->moe_experts)
        return NULL;
    if (!p->moe_active || p->moe_active > p->moe_experts)
        return "moe_active must be 1..moe_experts";
    if (!usable(p->moe_w_share, 0, 1))
        return "moe_w_share must be 0..1";
    return NULL;
}

static bool increasing(const double *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!usable(x[i], 0, STEP_MAX_TOK) || (i && x[i] <= x[i - 1]))
            return false;
    }
    return true;
}

static bool all_usable(const double *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!usable(y[i], 0, STEP_MAX_MS))
            return false;
    }
    return true;
}

static const char *check_table(const struct step_params *p)
{
    if (!p->n_prefill || p->n_prefill > STEP_TABLE_MAX)
        return "a table needs 1 to 64 points of prefill_tok and prefill_ms";
    if (!p->n_kv || p->n_kv > STEP_TABLE_MAX || !p->n_ctx || p->n_ctx > STEP_TABLE_MAX)
        return "a table needs 1 to 64 points each of decode_kv_tok and decode_ctx_tok";
    if (!increasing(p->prefill_x, p->n_prefill))
        return "prefill_tok must be strictly increasing, from 0 on";
    if (!increasing(p->kv_x, p->n_kv))
        return "decode_kv_tok must be strictly increasing, from 0 on";
    if (!increasing(p->ctx_x, p->n_ctx))
        return "decode_ctx_tok must be strictly increasing, from 0 on";
    if (!all_usable(p->prefill_y, p->n_prefill))
        return "prefill_ms must be 0..1e9 everywhere";
    if (!all_usable(p->itl_y, p->n_kv * p->n_ctx))
        return "decode_ms must be 0..1e9 everywhere";
    return NULL;
}

static const char *check_polynomial(const struct step_params *p)
{
    const double c[] = {p->pa, p->pb, p->pc, p->da, p->db, p->dc};
    for (unsigned i = 0; i < sizeof c / sizeof c[0]; i++) {
        if (!usable(c[i], -STEP_MAX_MS, STEP_MAX_MS))
            return "pa, pb, pc, da, db and dc must be -1e9..1e9";
    }
    return NULL;
}

static const char *check(const struct step_params *p)
{
    if (!usable(p->scale, 0, STEP_MAX_SCALE))
        return "scale must be 0..1e6";
    if (p->spec_gamma > STEP_SPEC_MAX)
        return "spec_gamma must be 0..16";
    for (uint32_t i = 0; i < p->spec_gamma; i++) {
        if (!usable(p->spec_accept[i], 0, 1))
            return "spec_accept must be 0..1 everywhere";
    }
    if (!usable(p->spec_draft_ms, 0, STEP_MAX_MS))
        return "spec_draft_ms must be 0..1e9";
    switch (p->form) {
    case STEP_LINEAR: return check_linear(p);
    case STEP_TABLE: return check_table(p);
    case STEP_POLYNOMIAL: return check_polynomial(p);
    case STEP_FIXED:
        return usable(p->fixed_prefill_ms, 0, STEP_MAX_MS) &&
                       usable(p->fixed_decode_ms, 0, STEP_MAX_MS)
                   ? NULL
                   : "fixed_prefill_ms and fixed_decode_ms must be 0..1e9";
    }
    return "form must be linear, table, fixed or polynomial";
}

/* Rounded to nearest, cut to 0..STEP_MAX_PS. */
static inline int64_t to_ps(double ps)
{
    return ps < (double)STEP_MAX_PS ? (ps > 0 ? (int64_t)(ps + 0.5) : 0) : STEP_MAX_PS;
}

/* Of a pass that does something. */
static inline int64_t pass_ps(int64_t t)
{
    return t < 1 ? 1 : t < STEP_MAX_PS ? t : STEP_MAX_PS;
}

static void init_linear(struct step_model *m, const struct step_params *p, double ps)
{
    double moe = p->moe_experts ? p->moe_w_share : 0;
    m->w_moe_ps = to_ps(p->w_ms * ps * moe);
    m->w_ps = to_ps(p->w_ms * ps) - m->w_moe_ps;
    m->d0_ps = to_ps(p->d0_ms_per_req * ps);
    m->k_ps = to_ps(p->k_ms_per_tok * ps);
    m->p_fs = to_ps(p->p_ms_per_tok * ps * 1024);
    m->q_as2 = to_ps(p->q_ms_per_tok2 * ps * (1048576 / 2));
    m->mix_ps = to_ps(p->mix_ms_per_tok * ps);
    m->floor_ps = to_ps(p->prefill_floor_ms * ps);
    m->moe_miss = p->moe_experts ? 1 - (double)p->moe_active / (double)p->moe_experts : 0;
    /* A verified draft token is one more token of the pass: a request's share d0, or p where the fit found
     * that tokens cost more. */
    int64_t p_ps = to_ps(p->p_ms_per_tok * ps);
    m->verify_ps = (m->d0_ps > p_ps ? m->d0_ps : p_ps) * (int64_t)p->spec_gamma;
}

int step_model_init(struct step_model *m, const struct step_params *p, const char **why)
{
    *why = check(p);
    if (*why)
        return WEIR_E_INVALID;
    double ps = (p->scale == 0 ? 1 : p->scale) * (double)PS_PER_MS, chance = 1;
    memset(m, 0, sizeof *m);
    m->form = p->form;
    m->additive = p->form != STEP_LINEAR;
    m->linear_decode = p->form == STEP_LINEAR || p->form == STEP_FIXED;
    m->draft_ps = to_ps(p->spec_draft_ms * ps * p->spec_gamma);
    m->spec_gamma = p->spec_gamma;
    for (uint32_t i = 0; i < p->spec_gamma; i++)
        m->spec_chance[i] = chance *= p->spec_accept[i];
    switch (p->form) {
    case STEP_LINEAR: init_linear(m, p, ps); break;
    case STEP_FIXED:
        m->prefill_c[2] = (double)to_ps(p->fixed_prefill_ms * ps);
        m->decode_c[2] = (double)to_ps(p->fixed_decode_ms * ps);
        break;
    case STEP_POLYNOMIAL:
        m->prefill_c[0] = p->pa * ps;
        m->prefill_c[1] = p->pb * ps;
        m->prefill_c[2] = p->pc * ps;
        m->decode_c[0] = p->da * ps;
        m->decode_c[1] = p->db * ps;
        m->decode_c[2] = p->dc * ps;
        m->decode_min_ps = ps;
        break;
    case STEP_TABLE: m->table = p; break;
    }
    m->ps_per_ms = ps;
    return 0;
}

/* ---- linear */

/* x^n by squaring: the same products in the same order everywhere. */
static double power(double x, uint64_t n)
{
    double r = 1;
    for (; n; n >>= 1) {
        if (n & 1)
            r *= x;
        x *= x;
    }
    return r;
}

static int64_t linear_ps(const struct step_model *m, const struct step_batch *b)
{
    i128 t = m->w_ps + (i128)m->d0_ps * b->decode_reqs + (i128)m->k_ps * (i128)b->decode_ctx_tok;
    if (m->w_moe_ps) {
        uint64_t tok =
            (uint64_t)b->decode_reqs * (1 + m->spec_gamma) + b->prefill_tok + b->peer_tok;
        t += to_ps((double)m->w_moe_ps * (1 - power(m->moe_miss, tok)));
    }
    if (b->decode_reqs)
        t += (i128)m->verify_ps * b->decode_reqs + m->draft_ps;
    if (b->prefill_reqs) {
        i128 work = ((i128)m->p_fs * (i128)b->prefill_tok >> 10) +
                    ((i128)m->q_as2 * (i128)b->prefill_attn >> 20);
        if (work > m->floor_ps)
            t += work - m->floor_ps;
        t += (i128)m->mix_ps * (i128)b->decode_ctx_tok;
    }
    return t < STEP_MAX_PS ? (int64_t)t : STEP_MAX_PS;
}

/* ---- tables */

/* The piece of axis x that v falls into, and how far along it (outside 0..1 beyond the ends). */
static uint32_t find_piece(const double *x, uint32_t n, double v, double *along)
{
    uint32_t lo = 0, hi = n - 1; /* piece lo..lo+1 */
    *along = 0;
    if (n < 2)
        return 0;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        *(x[mid] <= v ? &lo : &hi) = mid;
    }
    *along = (v - x[lo]) / (x[lo + 1] - x[lo]);
    return lo;
}

static double blend(double a, double b, double along)
{
    return a + (b - a) * along;
}

static int64_t table_prefill_ps(const struct step_model *m, double tok)
{
    const struct step_params *p = m->table;
    double along;
    uint32_t i = find_piece(p->prefill_x, p->n_prefill, tok, &along);
    uint32_t next = p->n_prefill > 1 ? i + 1 : i;
    return to_ps(blend(p->prefill_y[i], p->prefill_y[next], along) * m->ps_per_ms);
}

static int64_t table_decode_ps(const struct step_model *m, double kv, double ctx)
{
    const struct step_params *p = m->table;
    double kv_along, ctx_along;
    uint32_t i = find_piece(p->kv_x, p->n_kv, kv, &kv_along);
    uint32_t j = find_piece(p->ctx_x, p->n_ctx, ctx, &ctx_along);
    const double *row = &p->itl_y[i * p->n_ctx], *below = p->n_kv > 1 ? row + p->n_ctx : row;
    uint32_t next = p->n_ctx > 1 ? j + 1 : j;
    double ms = blend(blend(row[j], row[next], ctx_along), blend(below[j], below[next], ctx_along),
                      kv_along);
    return to_ps(ms * m->ps_per_ms);
}

/* ---- one call */

int64_t step_prefill_ps(const struct step_model *m, uint32_t reqs, uint64_t new_tok,
                        uint64_t ctx_tok)
{
    (void)ctx_tok;
    if (!reqs)
        return 0;
    if (m->form == STEP_TABLE)
        return table_prefill_ps(m, (double)new_tok);
    double t = (double)new_tok;
    return to_ps((m->prefill_c[0] * t + m->prefill_c[1]) * t + m->prefill_c[2]);
}

/* Share of the capacity that a token takes; infinite where there is none: u is 1 then, see below. */
static inline double tok_share(uint64_t total_kv_tok)
{
    return total_kv_tok ? 1 / (double)total_kv_tok : __builtin_inf();
}

/* to_ps of a time that is not negative, without a branch. */
static inline int64_t polynomial_decode_ps(const struct step_model *m, int64_t kv_tok, double share)
{
    double u = (double)kv_tok * share;
    u = u < 1 ? u : 1; /* NaN, 0 of 0: 1 */
    double t = (m->decode_c[0] * u + m->decode_c[1]) * u + m->decode_c[2];
    t = t > m->decode_min_ps ? t : m->decode_min_ps;
    t = t < (double)STEP_MAX_PS ? t : (double)STEP_MAX_PS;
    return (int64_t)(t + 0.5);
}

int64_t step_decode_ps(const struct step_model *m, uint32_t reqs, uint64_t active_kv_tok,
                       uint64_t ctx_tok, uint64_t total_kv_tok)
{
    if (!reqs || m->form == STEP_LINEAR)
        return 0;
    if (m->form == STEP_TABLE)
        return table_decode_ps(m, (double)active_kv_tok, (double)ctx_tok / reqs) + m->draft_ps;
    return polynomial_decode_ps(m, (int64_t)active_kv_tok, tok_share(total_kv_tok)) + m->draft_ps;
}

int64_t step_time_ps(const struct step_model *m, const struct step_batch *b)
{
    if (!b->decode_reqs && !b->prefill_reqs)
        return 0;
    int64_t t;
    if (m->form == STEP_LINEAR)
        t = linear_ps(m, b);
    else
        t = step_prefill_ps(m, b->prefill_reqs, b->prefill_tok, b->prefill_ctx_tok) +
            step_decode_ps(m, b->decode_reqs, b->active_kv_tok, b->decode_ctx_tok, b->total_kv_tok);
    return pass_ps(t);
}

void step_decode_run(const struct step_model *m, const struct step_batch *b, uint64_t grow_kv_tok,
                     uint32_t n, int64_t *ps)
{
    if (m->form != STEP_POLYNOMIAL || !b->decode_reqs) {
        struct step_batch at = *b;
        for (uint32_t i = 0; i < n; i++) {
            ps[i] = step_time_ps(m, &at);
            at.decode_ctx_tok += at.decode_reqs;
            at.active_kv_tok += grow_kv_tok;
        }
        return;
    }
    const struct step_model c = *m; /* cannot be changed by writing to ps */
    int64_t kv_tok = (int64_t)b->active_kv_tok, grow = (int64_t)grow_kv_tok;
    double share = tok_share(b->total_kv_tok);
    for (uint32_t i = 0; i < n; i++) {
        ps[i] = polynomial_decode_ps(&c, kv_tok, share);
        kv_tok += grow;
    }
    if (c.draft_ps || c.decode_min_ps < 1) {
        for (uint32_t i = 0; i < n; i++)
            ps[i] = pass_ps(ps[i] + c.draft_ps);
    }
}

/* ---- speculation */

double step_spec_expected_tok(const struct step_model *m)
{
    double sum = 1;
    for (uint32_t i = 0; i < m->spec_gamma; i++)
        sum += m->spec_chance[i];
    return sum;
}

uint32_t step_spec_draw_tok(const struct step_model *m, double u)
{
    uint32_t n = 0;
    while (n < m->spec_gamma && u < m->spec_chance[n])
        n++;
    return n + 1;
}
