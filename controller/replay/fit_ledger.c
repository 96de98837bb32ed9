/* fit_ledger.c - plays a recording pass by pass and keeps accounts; see fit_ledger.h. */
#include "controller/replay/fit_ledger.h"

#include <stdlib.h>
#include <string.h>

struct play {
    const struct fit_case *c;
    struct ledger_entry *out;
    struct step_model model;
    double miss;           /* chance that a token does not use a given expert */
    struct engine **ranks; /* dp.h: in step with each other */
    uint32_t n_ranks, next;
    int64_t start, now;                              /* of the last pass; its end */
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

/* As vLLM does it (dp.h). */
static struct engine *choose_rank(const struct play *p)
{
    uint32_t best = 0;
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < p->n_ranks && p->n_ranks > 1; i++) {
        struct engine_load load;
        engine_get_load(p->ranks[i], p->now, &load);
        uint64_t score = 4 * (uint64_t)load.waiting + load.running;
        if (score < least) {
            least = score;
            best = i;
        }
    }
    return p->ranks[best];
}

/* Experts are spread over the ranks: which are read depends on all ranks' requests. */
static void tell_peers(const struct play *p)
{
    struct engine_load load;
    uint64_t all = 0;
    if (p->n_ranks == 1)
        return;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        engine_get_load(p->ranks[i], p->now, &load);
        all += load.running;
    }
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        engine_get_load(p->ranks[i], p->now, &load);
        engine_set_peers(p->ranks[i], all - load.running);
    }
}

/* Sends what arrives before time `until`. */
static int submit(struct play *p, int64_t until)
{
    for (; p->next < p->c->n; p->next++) {
        const struct request_spec *s = &p->c->requests[p->next].spec;
        uint32_t slot;
        if (s->arrival_ps >= until)
            return 0;
        work_until(p, s->arrival_ps, p->out[p->next].wait);
        int rc = engine_submit(choose_rank(p), s->arrival_ps, s, p->next, 0, &slot);
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

static void measure(const struct play *p, const struct step_batch *b, double work[LEDGER_ITEMS])
{
    work[LEDGER_PASS] = 1;
    work[LEDGER_DECODE] = b->decode_reqs;
    work[LEDGER_CONTEXT] = (double)b->decode_ctx_tok;
    work[LEDGER_PREFILL] = (double)b->prefill_tok;
    work[LEDGER_ATTENTION] = (double)b->prefill_attn / 2;
    work[LEDGER_EXPERTS] = 1 - power(p->miss, b->decode_reqs + b->prefill_tok + b->peer_tok);
    work[LEDGER_MIX] = b->prefill_reqs ? (double)b->decode_ctx_tok : 0;
}

/* Ranks wait for each other: the slowest one's work counts. Returns its time. */
static int64_t account(struct play *p, const struct step_batch *batches, const uint32_t *n_items)
{
    int64_t slowest = -1;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        int64_t t = n_items[i] ? step_time_ps(&p->model, &batches[i]) : -1;
        if (t <= slowest)
            continue;
        slowest = t;
        measure(p, &batches[i], p->pass);
    }
    return slowest;
}

static void take_events(struct play *p, struct engine *e)
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
}

/* One pass of all ranks, with what arrives meanwhile; *did: there was something to do. */
static int pass(struct play *p, struct step_batch *batches, uint32_t *n_items, bool *did)
{
    const struct engine_batch_item *items;
    uint32_t total = 0;
    int rc = 0;
    tell_peers(p);
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        n_items[i] = engine_step_begin(p->ranks[i], p->now, &items);
        engine_step_batch(p->ranks[i], &batches[i]);
        total += n_items[i];
    }
    *did = total > 0;
    if (total) {
        for (int k = 0; k < LEDGER_ITEMS; k++)
            p->before[k] += p->pass[k];
        p->start = p->now;
        p->now += account(p, batches, n_items);
        rc = submit(p, p->now);
    }
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        engine_step_end(p->ranks[i], p->now);
        take_events(p, p->ranks[i]);
    }
    return rc;
}

static int run(struct play *p, struct step_batch *batches, uint32_t *n_items)
{
    bool did = true;
    for (;;) {
        int rc = submit(p, p->now + 1);
        if (!rc)
            rc = pass(p, batches, n_items, &did);
        if (rc || (!did && p->next == p->c->n))
            return rc;
        if (!did) /* idle until the next one comes */
            p->start = p->now = p->c->requests[p->next].spec.arrival_ps;
    }
}

static int start_ranks(struct play *p)
{
    p->n_ranks = p->c->worker.engine.dp_size;
    p->ranks = calloc(p->n_ranks, sizeof *p->ranks);
    if (!p->ranks)
        return WEIR_E_NOMEM;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        p->ranks[i] = engine_new(&p->c->worker.engine, 0);
        if (!p->ranks[i])
            return WEIR_E_NOMEM;
        engine_want_first_tokens(p->ranks[i], true);
    }
    return 0;
}

static void stop_ranks(struct play *p)
{
    for (uint32_t i = 0; p->ranks && i < p->n_ranks; i++)
        engine_free(p->ranks[i]);
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
