/* fit_ledger.c - plays a recording pass by pass and keeps accounts; see fit_ledger.h. */
#include "controller/replay/fit_ledger.h"

#include <stdlib.h>
#include <string.h>

/* How old the queue lengths are that a front end spreads requests over data-parallel ranks by (vLLM:
 * DPCoordinator publishes them every 100 ms), and what waiting counts there against running. */
#define RANK_STATS_PS (100 * PS_PER_MS)
#define RANK_WAITING_WEIGHT 4u

struct rank {
    struct engine *engine;
    uint32_t score;
};

struct play {
    const struct fit_case *c;
    struct ledger_entry *out;
    struct step_model model;
    double coefficients[LEDGER_ITEMS], miss;
    struct rank *ranks;
    uint32_t n_ranks, next;
    int64_t start, now, stats_at;                    /* of the last pass; its end */
    double before[LEDGER_ITEMS], pass[LEDGER_ITEMS]; /* work up to the last pass; in it */
};

void ledger_coefficients(const struct step_params *s, double c[LEDGER_ITEMS])
{
    double experts = s->moe_experts ? s->w_ms * s->moe_w_share : 0;
    c[LEDGER_PASS] = s->w_ms - experts;
    c[LEDGER_DECODE] = s->d0_ms_per_req;
    c[LEDGER_CONTEXT] = s->k_ms_per_tok;
    c[LEDGER_PREFILL] = s->p_ms_per_tok;
    c[LEDGER_ATTENTION] = s->q_ms_per_tok2;
    c[LEDGER_EXPERTS] = experts;
    c[LEDGER_MIX] = s->mix_ms_per_tok;
}

void ledger_set_coefficients(struct step_params *s, const double c[LEDGER_ITEMS])
{
    s->w_ms = c[LEDGER_PASS] + c[LEDGER_EXPERTS];
    s->d0_ms_per_req = c[LEDGER_DECODE];
    s->k_ms_per_tok = c[LEDGER_CONTEXT];
    s->p_ms_per_tok = c[LEDGER_PREFILL];
    s->q_ms_per_tok2 = c[LEDGER_ATTENTION];
    s->moe_w_share = s->moe_experts && s->w_ms > 0 ? c[LEDGER_EXPERTS] / s->w_ms : 0;
    s->mix_ms_per_tok = c[LEDGER_MIX];
}

/* Work up to time t, which is in the last pass or at its end. */
static void work_until(const struct play *p, int64_t t, double work[LEDGER_ITEMS])
{
    double part = p->now > p->start ? (double)(t - p->start) / (double)(p->now - p->start) : 1;
    for (int i = 0; i < LEDGER_ITEMS; i++)
        work[i] = p->before[i] + (part < 1 ? part : 1) * p->pass[i];
}

/* ---- ranks */

static void refresh_scores(struct play *p)
{
    struct engine_load load;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        engine_get_load(p->ranks[i].engine, p->now, &load);
        p->ranks[i].score = RANK_WAITING_WEIGHT * load.waiting + load.running;
    }
    p->stats_at = p->now;
}

static struct engine *choose_rank(struct play *p)
{
    uint32_t best = 0;
    if (p->n_ranks > 1 && p->now - p->stats_at >= RANK_STATS_PS)
        refresh_scores(p);
    for (uint32_t i = 1; i < p->n_ranks; i++) {
        if (p->ranks[i].score < p->ranks[best].score)
            best = i;
    }
    p->ranks[best].score += RANK_WAITING_WEIGHT;
    return p->ranks[best].engine;
}

static int submit_due(struct play *p)
{
    for (; p->next < p->c->n; p->next++) {
        const struct request_spec *s = &p->c->requests[p->next].spec;
        uint32_t slot;
        if (s->arrival_ps > p->now)
            return 0;
        work_until(p, s->arrival_ps, p->out[p->next].wait);
        int rc = engine_submit(choose_rank(p), p->now, s, p->next, 0, &slot);
        if (rc && rc != WEIR_E_TOO_LARGE)
            return rc;
    }
    return 0;
}

/* ---- passes */

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

static double measure(const struct play *p, const struct step_batch *b, double work[LEDGER_ITEMS])
{
    double ms = 0;
    work[LEDGER_PASS] = 1;
    work[LEDGER_DECODE] = b->decode_reqs;
    work[LEDGER_CONTEXT] = (double)b->decode_ctx_tok;
    work[LEDGER_PREFILL] = (double)b->prefill_tok;
    work[LEDGER_ATTENTION] = (double)b->prefill_attn / 2;
    work[LEDGER_EXPERTS] = 1;
    work[LEDGER_MIX] = b->prefill_reqs ? (double)b->decode_ctx_tok : 0;
    for (int i = 0; i < LEDGER_ITEMS; i++)
        ms += p->coefficients[i] * work[i];
    return ms;
}

/* Ranks wait for each other: the slowest one's work counts. Experts are spread over the ranks, so which are read
 * depends on all ranks' tokens. Returns the time. */
static int64_t account(struct play *p, const struct step_batch *batches, const uint32_t *n_items)
{
    double work[LEDGER_ITEMS], slowest = -1;
    uint64_t tok = 0;
    const struct step_batch *last = NULL;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        if (!n_items[i])
            continue;
        tok += batches[i].decode_reqs + batches[i].prefill_tok;
        double ms = measure(p, &batches[i], work);
        if (ms <= slowest)
            continue;
        slowest = ms;
        last = &batches[i];
        memcpy(p->pass, work, sizeof work);
    }
    p->pass[LEDGER_EXPERTS] = 1 - power(p->miss, tok);
    if (p->n_ranks == 1)
        return step_time_ps(&p->model, last);
    slowest -= p->coefficients[LEDGER_EXPERTS] * power(p->miss, tok);
    return ps_from_ms(slowest) + 1;
}

static bool take_events(struct play *p, struct engine *e)
{
    double work[LEDGER_ITEMS];
    uint32_t n;
    const struct engine_event *ev = engine_events(e, &n);
    work_until(p, p->now, work);
    for (uint32_t i = 0; i < n; i++) {
        struct ledger_entry *o = &p->out[ev[i].handle];
        if (ev[i].kind == ENGINE_EV_FIRST_TOKEN) {
            for (int k = 0; k < LEDGER_ITEMS; k++) {
                o->wait[k] = work[k] - o->wait[k];
                o->decode[k] = work[k];
            }
        } else if (ev[i].kind == ENGINE_EV_DONE) {
            for (int k = 0; k < LEDGER_ITEMS; k++)
                o->decode[k] = work[k] - o->decode[k];
            o->times = (struct fit_times){ev[i].record.first_token_ps, ev[i].record.end_ps,
                                          ev[i].record.preemptions};
        }
    }
    engine_clear_events(e);
    return n > 0;
}

/* One pass of all ranks; false: there was nothing to do. */
static bool pass(struct play *p, struct step_batch *batches, uint32_t *n_items)
{
    const struct engine_batch_item *items;
    uint32_t total = 0;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        n_items[i] = engine_step_begin(p->ranks[i].engine, p->now, &items);
        engine_step_batch(p->ranks[i].engine, &batches[i]);
        total += n_items[i];
    }
    if (total) {
        for (int k = 0; k < LEDGER_ITEMS; k++)
            p->before[k] += p->pass[k];
        p->start = p->now;
        p->now += account(p, batches, n_items);
    }
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        engine_step_end(p->ranks[i].engine, p->now);
        take_events(p, p->ranks[i].engine);
    }
    return total > 0;
}

static int run(struct play *p, struct step_batch *batches, uint32_t *n_items)
{
    for (;;) {
        int rc = submit_due(p);
        if (rc)
            return rc;
        if (pass(p, batches, n_items))
            continue;
        if (p->next == p->c->n)
            return 0;
        p->now = p->c->requests[p->next].spec.arrival_ps; /* idle until then */
        p->start = p->now;
    }
}

static int start_ranks(struct play *p)
{
    p->n_ranks = p->c->worker.engine.dp_size;
    p->ranks = calloc(p->n_ranks, sizeof *p->ranks);
    if (!p->ranks)
        return WEIR_E_NOMEM;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        p->ranks[i].engine = engine_new(&p->c->worker.engine, 0);
        if (!p->ranks[i].engine)
            return WEIR_E_NOMEM;
        engine_want_first_tokens(p->ranks[i].engine, true);
    }
    return 0;
}

static void stop_ranks(struct play *p)
{
    for (uint32_t i = 0; p->ranks && i < p->n_ranks; i++)
        engine_free(p->ranks[i].engine);
    free(p->ranks);
}

int ledger_play(const struct fit_case *c, const struct step_params *step, struct ledger_entry *out)
{
    struct play p = {.c = c, .out = out};
    const char *why = NULL;
    if (step->form != STEP_LINEAR || step->spec_gamma || step->prefill_floor_ms > 0 ||
        (step->scale != 0 && step->scale != 1) || step_model_init(&p.model, step, &why) ||
        engine_config_check(&c->worker.engine, &why))
        return WEIR_E_INVALID;
    ledger_coefficients(step, p.coefficients);
    p.miss = step->moe_experts ? 1 - (double)step->moe_active / (double)step->moe_experts : 0;
    for (uint32_t i = 0; i < c->n; i++)
        out[i] = (struct ledger_entry){.times = {-1, -1, 0}};
    int rc = start_ranks(&p);
    struct step_batch *batches = calloc(p.n_ranks, sizeof *batches);
    uint32_t *n_items = calloc(p.n_ranks, sizeof *n_items);
    if (!rc)
        rc = batches && n_items ? run(&p, batches, n_items) : WEIR_E_NOMEM;
    free(batches);
    free(n_items);
    stop_ranks(&p);
    return rc;
}
