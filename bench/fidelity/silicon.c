/* silicon.c - measured closed-loop points (mean TPOT at a shape and a concurrency): fit on all shapes of a system but
 * one, predict that one; every shape in turn. Two models, each with its own coefficients:
 *
 *   closed form   TPOT = W + d0*B + k*B*(ISL + OSL/2) + p*B*ISL/OSL        (engine-model.md 3.1, 3.3)
 *                 with B the requests that run: no more than fit the KV pool
 *   simulated     B users, each sending its next request when the last is answered, on a simulated engine with
 *                 the pool; mean over the requests between the first and the last round. Fitted by the closed
 *                 form times what the simulation said of each training point last (PASSES times)
 *
 * The table does not have the pool's size. Where a system's large points fall off the line, the size that explains
 * the training shapes best is taken (never the shape that is predicted).
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/fidelity/errors.h"
#include "bench/fidelity/fidelity.h"
#include "bench/fidelity/recording.h"
#include "controller/replay/input.h"
#include "controller/replay/least_squares.h"
#include "predictor/cluster.h"

#define LINE_MAX_BYTES 65536u
#define COLUMNS_MAX 64
#define NAME_BYTES 160
#define SYSTEMS_MAX 1024u
#define POINTS_MAX 4096u /* of one system */
#define SHAPES_MIN 4     /* fewer cannot hold one out and still tell k from p */
#define POINTS_MIN 9
#define UNKNOWNS 5 /* W, d0, k, p, experts */
#define OUTLIER 0.05
#define POOL_STEPS                                                                                 \
    40 /* sizes of the pool that are tried, from the smallest point's need to the largest's */
#define POOL_GAIN 0.85 /* a pool must lower the cost to that share to be believed */
#define ROUNDS 6       /* requests of each simulated user */
#define PASSES 3       /* of simulating the training points and fitting again */
#define NO_POOL 0

struct point {
    uint32_t isl, osl, batch;
    double tpot_ms;
};

struct system {
    char name[NAME_BYTES];
    enum sched_kind scheduler;
    bool async;
    uint32_t experts, active;
    struct point *points;
    uint32_t n, n_shapes;
};

struct table {
    struct system *systems;
    uint32_t n;
};

struct fitted {
    double c[UNKNOWNS]; /* W without experts, d0, k, p; experts' part of W */
    double pool_tok;    /* NO_POOL: large enough for all */
};

/* ---- reading */

struct columns {
    int backend, version, model, system, precision, mode, isl, osl, batch, tp, pp, dp, ep, moe_tp,
        tpot;
};

static int split(char *line, char **to)
{
    int n = 0;
    for (char *s = line; s && n < COLUMNS_MAX;)
        to[n++] = strsep(&s, ",");
    return n;
}

static const char *find_columns(struct columns *c, char **row, int n)
{
    const struct {
        const char *name;
        int *at;
    } wanted[] = {{"backend", &c->backend},
                  {"backend_version", &c->version},
                  {"model_path", &c->model},
                  {"system", &c->system},
                  {"precision", &c->precision},
                  {"mode", &c->mode},
                  {"isl", &c->isl},
                  {"osl", &c->osl},
                  {"batch_size", &c->batch},
                  {"tp_size", &c->tp},
                  {"pp_size", &c->pp},
                  {"attention_dp_size", &c->dp},
                  {"moe_ep_size", &c->ep},
                  {"moe_tp_size", &c->moe_tp},
                  {"silicon_tpot_ms", &c->tpot}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].at = -1;
        for (int j = 0; j < n; j++) {
            if (strcmp(row[j], wanted[i].name) == 0)
                *wanted[i].at = j;
        }
        if (*wanted[i].at < 0)
            return wanted[i].name;
    }
    return NULL;
}

/* Experts of a layer and of a token, from the models' published config.json. */
static void set_experts(struct system *s, const char *model)
{
    static const struct {
        const char *name;
        uint32_t experts, active;
    } models[] = {{"Qwen3-235B-A22B", 128, 8}, {"gpt-oss-120b", 128, 4}, {"DeepSeek-", 256, 8}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (strstr(model, models[i].name)) {
            s->experts = models[i].experts;
            s->active = models[i].active;
        }
    }
}

static bool plural(const char *count)
{
    return strtoul(count, NULL, 10) > 1;
}

static struct system *system_of(struct table *t, const struct columns *c, char **row)
{
    char name[NAME_BYTES];
    const char *model = strrchr(row[c->model], '/'), *pp = row[c->pp], *dp = row[c->dp],
               *ep = row[c->ep], *mtp = row[c->moe_tp];
    snprintf(name, sizeof name, "%s %.4s %s %s %s tp%s%s%s%s%s%s%s%s%s",
             model ? model + 1 : row[c->model], row[c->system], row[c->backend], row[c->version],
             row[c->precision], row[c->tp], plural(pp) ? " pp" : "", plural(pp) ? pp : "",
             plural(dp) ? " dp" : "", plural(dp) ? dp : "", plural(ep) ? " ep" : "",
             plural(ep) ? ep : "", plural(mtp) ? " moe_tp" : "", plural(mtp) ? mtp : "");
    for (uint32_t i = 0; i < t->n; i++) {
        if (strcmp(t->systems[i].name, name) == 0)
            return &t->systems[i];
    }
    if (t->n == SYSTEMS_MAX)
        return NULL;
    struct system *s = &t->systems[t->n++];
    memcpy(s->name, name, sizeof name);
    s->scheduler = strcmp(row[c->backend], "sglang") == 0   ? SCHED_SGLANG
                   : strcmp(row[c->backend], "trtllm") == 0 ? SCHED_TRTLLM
                                                            : SCHED_VLLM;
    s->async = s->scheduler == SCHED_VLLM && vllm_plans_ahead(row[c->version]);
    set_experts(s, row[c->model]);
    return s;
}

static bool get_count(const char *text, uint32_t *to)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);
    *to = (uint32_t)v;
    return end != text && !*end && v > 0 && v <= ENGINE_MAX_TOKENS;
}

/* NULL, or what is wrong with the row. */
static const char *add_row(struct table *t, const struct columns *c, char **row)
{
    struct point p;
    char *end;
    if (strcmp(row[c->mode], "agg") != 0)
        return NULL;
    p.tpot_ms = strtod(row[c->tpot], &end);
    if (end == row[c->tpot] || *end || !isfinite(p.tpot_ms) || p.tpot_ms <= 0)
        return "silicon_tpot_ms: expected a time";
    if (!get_count(row[c->isl], &p.isl) || !get_count(row[c->osl], &p.osl) ||
        !get_count(row[c->batch], &p.batch))
        return "isl, osl, batch_size: expected whole numbers from 1 on";
    struct system *s = system_of(t, c, row);
    if (!s || s->n == POINTS_MAX)
        return "too many systems, or points of one";
    struct point *grown = realloc(s->points, (s->n + 1) * sizeof *grown);
    if (!grown)
        abort();
    s->points = grown;
    bool seen = false;
    for (uint32_t i = 0; i < s->n; i++)
        seen |= grown[i].isl == p.isl && grown[i].osl == p.osl;
    s->n_shapes += !seen;
    grown[s->n++] = p;
    return NULL;
}

static bool complain(const struct input *in, const char *what)
{
    fprintf(stderr, "fidelity: %s:%llu: %s\n", input_name(in),
            (unsigned long long)input_line_number(in), what);
    return false;
}

static bool read_rows(struct table *t, struct input *in)
{
    static char text[LINE_MAX_BYTES];
    char *row[COLUMNS_MAX], what[128];
    struct columns c;
    const char *line, *wrong;
    size_t len;
    int n, wanted = 0, rc;
    while ((rc = input_line(in, &line, &len)) == 1) {
        memcpy(text, line, len);
        text[len] = '\0';
        n = split(text, row);
        if (!wanted) {
            wanted = n;
            wrong = find_columns(&c, row, n);
            if (wrong) {
                snprintf(what, sizeof what, "no column %s; is this the silicon table?", wrong);
                return complain(in, what);
            }
            continue;
        }
        wrong = n == wanted ? add_row(t, &c, row) : "another number of columns than the header";
        if (wrong)
            return complain(in, wrong);
    }
    if (rc < 0)
        fprintf(stderr, "fidelity: %s\n", input_error(in));
    return rc == 0;
}

static bool read_table(struct table *t, const char *file)
{
    char error[INPUT_ERROR_BYTES];
    struct input *in = input_open(file, LINE_MAX_BYTES - 1, error);
    if (!in) {
        fprintf(stderr, "fidelity: %s\n", error);
        return false;
    }
    bool ok = read_rows(t, in);
    input_close(in);
    return ok;
}

/* ---- closed form */

/* Requests of a shape that fit the pool together: TensorRT-LLM reserves the whole answer, the others take blocks as
 * they go, so that on average half of it is there. */
static double fitting_requests(const struct system *s, const struct point *p, double pool_tok)
{
    double each = p->isl + (s->scheduler == SCHED_TRTLLM ? p->osl : p->osl / 2.0);
    return pool_tok / each;
}

static bool saturated(const struct system *s, const struct point *p, double pool_tok)
{
    return pool_tok != NO_POOL && fitting_requests(s, p, pool_tok) < p->batch;
}

static void work_of(const struct system *s, const struct point *p, double pool_tok,
                    double work[UNKNOWNS])
{
    double b = saturated(s, p, pool_tok) ? fitting_requests(s, p, pool_tok) : p->batch;
    work[0] = 1;
    work[1] = b;
    work[2] = b * (p->isl + p->osl / 2.0);
    work[3] = b * p->isl / p->osl;
    work[4] = s->experts ? 1 - pow(1 - (double)s->active / s->experts, b) : 0;
}

static double closed_form_ms(const struct system *s, const struct fitted *f, const struct point *p)
{
    double work[UNKNOWNS], ms = 0;
    work_of(s, p, f->pool_tok, work);
    for (int j = 0; j < UNKNOWNS; j++)
        ms += f->c[j] * work[j];
    return ms;
}

/* ---- the fit */

struct fitting {
    const struct system *s;
    double pool_tok;
    uint32_t hold_isl, hold_osl; /* the shape that is not looked at; 0: none */
    double *ratio;               /* simulated over closed form, of each point; NULL: 1 */
};

static bool held_out(const struct fitting *f, const struct point *p)
{
    return p->isl == f->hold_isl && p->osl == f->hold_osl;
}

static int residuals(void *ctx, const double *x, double *r)
{
    const struct fitting *f = ctx;
    struct fitted fit = {.pool_tok = f->pool_tok};
    memcpy(fit.c, x, sizeof fit.c);
    for (uint32_t i = 0; i < f->s->n; i++) {
        const struct point *p = &f->s->points[i];
        double ratio = f->ratio ? f->ratio[i] : 1;
        r[i] = held_out(f, p) ? 0 : ratio * closed_form_ms(f->s, &fit, p) / p->tpot_ms - 1;
    }
    return 0;
}

/* With the pool given. Returns the cost. */
static double fit_pool(struct fitting *f, struct fitted *out)
{
    static const double width = 0.1;
    struct lsq_problem p = {.residuals = residuals,
                            .ctx = f,
                            .n_unknowns = UNKNOWNS,
                            .n_residuals = f->s->n,
                            .outlier = OUTLIER,
                            .widths = &width,
                            .n_widths = 1,
                            .max_iterations = 200};
    struct lsq_result result;
    double sum[UNKNOWNS] = {0};
    for (uint32_t i = 0; i < f->s->n; i++) {
        double work[UNKNOWNS];
        work_of(f->s, &f->s->points[i], f->pool_tok, work);
        for (int j = 0; j < UNKNOWNS; j++)
            sum[j] += work[j] / f->s->points[i].tpot_ms;
    }
    for (int j = 0; j < UNKNOWNS; j++) {
        p.scale[j] = sum[j] > 0 ? f->s->n / sum[j] : 1;
        p.high[j] = sum[j] > 0 ? 10 * p.scale[j] : 0;
        out->c[j] = sum[j] > 0 ? (j ? 0.1 : 0.5) * p.scale[j] : 0;
    }
    out->pool_tok = f->pool_tok;
    if (lsq_minimise(&p, out->c, &result))
        abort();
    return result.cost;
}

static void fit(struct fitting *f, struct fitted *out)
{
    double low = INFINITY, high = 0;
    struct fitted trial;
    f->pool_tok = NO_POOL;
    double best = fit_pool(f, out) * POOL_GAIN;
    for (uint32_t i = 0; i < f->s->n; i++) {
        const struct point *p = &f->s->points[i];
        double tok = (double)p->batch * (p->isl + p->osl);
        if (held_out(f, p))
            continue;
        low = tok < low ? tok : low;
        high = tok > high ? tok : high;
    }
    for (int i = 0; i < POOL_STEPS; i++) {
        f->pool_tok = low * pow(high / low, (i + 0.5) / POOL_STEPS);
        double cost = fit_pool(f, &trial);
        if (cost < best) {
            best = cost;
            *out = trial;
        }
    }
}

/* ---- simulated */

static struct engine *start_engine(const struct system *s, const struct fitted *f,
                                   const struct point *p)
{
    struct engine_config c;
    struct step_params step = {.form = STEP_LINEAR,
                               .w_ms = f->c[0] + f->c[4],
                               .d0_ms_per_req = f->c[1],
                               .k_ms_per_tok = f->c[2],
                               .p_ms_per_tok = f->c[3],
                               .moe_experts = s->experts,
                               .moe_active = s->active};
    const char *why = NULL;
    if (s->experts && step.w_ms > 0)
        step.moe_w_share = f->c[4] / step.w_ms;
    engine_config_default(&c, s->scheduler);
    if (step_model_init(&c.step, &step, &why))
        return NULL;
    double each = p->isl + p->osl;
    double tok = f->pool_tok == NO_POOL ? (p->batch + 1.0) * (each + c.block_size) : f->pool_tok;
    if (tok < 2 * each)
        tok = 2 * each;
    c.num_gpu_blocks = (uint32_t)(tok / c.block_size) + 1;
    c.max_num_seqs = p->batch;
    c.enable_prefix_caching = false;
    c.async_scheduling = s->async;
    return engine_new(&c, 0);
}

struct users {
    struct request_spec spec;
    uint32_t sent, total, batch;
    double sum_ms;
    uint32_t n;
};

static void send_next(struct engine *e, struct users *u, int64_t now)
{
    uint32_t slot;
    if (u->sent == u->total)
        return;
    u->spec.uid = u->sent + 1;
    u->spec.arrival_ps = now;
    if (engine_submit(e, now, &u->spec, u->sent, 0, &slot))
        abort();
    u->sent++;
}

/* Mean TPOT of the requests between the first and the last round. */
static double simulate_ms(const struct system *s, const struct fitted *f, const struct point *p)
{
    struct users u = {.total = ROUNDS * p->batch, .batch = p->batch};
    struct engine *e = start_engine(s, f, p);
    int64_t t = 0;
    if (!e)
        abort();
    u.spec =
        (struct request_spec){.prompt_tok = p->isl, .output_tok = p->osl, .max_tokens = p->osl};
    for (uint32_t i = 0; i < p->batch; i++)
        send_next(e, &u, 0);
    engine_start(e, 0, PS_NEVER);
    while ((t = engine_next_ps(e)) != PS_NEVER) {
        uint32_t n;
        engine_run(e, t);
        const struct engine_event *ev = engine_events(e, &n);
        for (uint32_t i = 0; i < n; i++) {
            const struct engine_record *r = &ev[i].record;
            if (ev[i].handle >= u.batch && ev[i].handle < u.total - u.batch && p->osl > 1) {
                u.sum_ms += ms_from_ps(r->end_ps - r->first_token_ps) / (p->osl - 1);
                u.n++;
            }
            send_next(e, &u, t);
        }
        engine_clear_events(e);
        engine_start(e, t, PS_NEVER);
    }
    engine_free(e);
    return u.n ? u.sum_ms / u.n : 0;
}

/* From the closed form's fit to the simulation's. */
static void fit_simulated(struct fitting *f, struct fitted *to)
{
    double *ratio = calloc(f->s->n, sizeof *ratio);
    if (!ratio)
        abort();
    for (int pass = 0; pass < PASSES; pass++) {
        for (uint32_t i = 0; i < f->s->n; i++) {
            const struct point *p = &f->s->points[i];
            ratio[i] = held_out(f, p) ? 1 : simulate_ms(f->s, to, p) / closed_form_ms(f->s, to, p);
        }
        f->ratio = ratio;
        f->pool_tok = to->pool_tok;
        (void)fit_pool(f, to);
    }
    f->ratio = NULL;
    free(ratio);
}

/* ---- the experiment */

/* Relative errors of all points, each predicted without its shape. */
struct outcome {
    double *closed, *simulated;
    bool *full; /* the pool that was found is too small for the point */
    uint32_t n;
};

static void outcome_init(struct outcome *o, uint32_t n)
{
    o->closed = calloc(n, sizeof *o->closed);
    o->simulated = calloc(n, sizeof *o->simulated);
    o->full = calloc(n, sizeof *o->full);
    o->n = 0;
    if (!o->closed || !o->simulated || !o->full)
        abort();
}

static void outcome_free(struct outcome *o)
{
    free(o->closed);
    free(o->simulated);
    free(o->full);
}

static void hold_out_each(const struct system *s, struct outcome *o)
{
    for (uint32_t i = 0; i < s->n; i++) {
        const struct point *shape = &s->points[i];
        struct fitting f = {.s = s, .hold_isl = shape->isl, .hold_osl = shape->osl};
        struct fitted closed, simulated;
        bool done = false;
        for (uint32_t j = 0; j < i; j++)
            done |= held_out(&f, &s->points[j]);
        if (done)
            continue;
        fit(&f, &closed);
        simulated = closed;
        fit_simulated(&f, &simulated);
        for (uint32_t j = 0; j < s->n; j++) {
            const struct point *p = &s->points[j];
            if (!held_out(&f, p))
                continue;
            o->closed[o->n] = fabs(closed_form_ms(s, &closed, p) / p->tpot_ms - 1);
            o->simulated[o->n] = fabs(simulate_ms(s, &simulated, p) / p->tpot_ms - 1);
            o->full[o->n++] = saturated(s, p, closed.pool_tok);
        }
    }
}

/* The p-quantile of those values whose point is (not) full; *n: how many. */
static double part_quantile(const double *v, const struct outcome *o, bool full, double p,
                            uint32_t *n)
{
    double *part = calloc(o->n + 1, sizeof *part);
    if (!part)
        abort();
    *n = 0;
    for (uint32_t i = 0; i < o->n; i++) {
        if (o->full[i] == full)
            part[(*n)++] = v[i];
    }
    double q = quantile(part, *n, p);
    free(part);
    return q;
}

static void print_system(const struct system *s, const struct outcome *o, double medians[2])
{
    struct fitting f = {.s = s};
    struct fitted all;
    uint32_t n_full, n;
    double *copy = calloc(o->n, sizeof *copy);
    if (!copy)
        abort();
    fit(&f, &all);
    double full = part_quantile(o->closed, o, true, 0.5, &n_full);
    double full_sim = part_quantile(o->simulated, o, true, 0.5, &n_full);
    const double *const v[2] = {o->closed, o->simulated};
    double p90[2];
    for (int i = 0; i < 2; i++) {
        memcpy(copy, v[i], o->n * sizeof *copy);
        medians[i] = quantile(copy, o->n, 0.5);
        p90[i] = quantile(copy, o->n, 0.9);
    }
    (void)part_quantile(o->closed, o, false, 0.5, &n);
    printf(
        "| %-52s | %3u | %2u | %6.2f | %.3f | %.4f | %.4f | %7.0f | %4.1f / %4.1f | %4.1f / %4.1f |",
        s->name, s->n, s->n_shapes, all.c[0] + all.c[4], all.c[1], 1e3 * all.c[2], all.c[3],
        all.pool_tok / 1e3, 100 * medians[0], 100 * p90[0], 100 * medians[1], 100 * p90[1]);
    if (n_full)
        printf(" %u: %.1f, %.1f |\n", n_full, 100 * full, 100 * full_sim);
    else
        printf(" - |\n");
    free(copy);
}

static void append(struct outcome *to, const struct outcome *from)
{
    memcpy(to->closed + to->n, from->closed, from->n * sizeof *to->closed);
    memcpy(to->simulated + to->n, from->simulated, from->n * sizeof *to->simulated);
    memcpy(to->full + to->n, from->full, from->n * sizeof *to->full);
    to->n += from->n;
}

static void print_summary(const struct outcome *all, double *closed, double *simulated, uint32_t n)
{
    uint32_t calm, full;
    double c = part_quantile(all->closed, all, false, 0.5, &calm);
    double s = part_quantile(all->simulated, all, false, 0.5, &calm);
    printf("\n%u systems: median of their medians %.2f %% closed form, %.2f %% simulated\n", n,
           100 * quantile(closed, n, 0.5), 100 * quantile(simulated, n, 0.5));
    printf("%u points with room: median error %.2f %% closed form, %.2f %% simulated\n", calm,
           100 * c, 100 * s);
    c = part_quantile(all->closed, all, true, 0.5, &full);
    s = part_quantile(all->simulated, all, true, 0.5, &full);
    printf("%u saturated points (KV pool full): %.2f %% closed form, %.2f %% simulated\n", full,
           100 * c, 100 * s);
}

static bool eligible(const struct system *s)
{
    return s->n_shapes >= SHAPES_MIN && s->n >= POINTS_MIN;
}

static void run_table(const struct table *t)
{
    uint32_t points = 1, n = 0, left = 0;
    double closed[SYSTEMS_MAX], simulated[SYSTEMS_MAX];
    struct outcome all;
    for (uint32_t i = 0; i < t->n; i++)
        points += t->systems[i].n;
    outcome_init(&all, points);
    printf(
        "each shape predicted from the others; errors of TPOT in %%, median / p90\n\n"
        "| system | points | shapes | W ms | d0 ms | k us | p ms | pool ktok | closed form | simulated | "
        "saturated: median closed form, simulated |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (uint32_t i = 0; i < t->n; i++) {
        const struct system *s = &t->systems[i];
        struct outcome o;
        double medians[2];
        if (!eligible(s)) {
            left++;
            continue;
        }
        outcome_init(&o, s->n);
        hold_out_each(s, &o);
        print_system(s, &o, medians);
        closed[n] = medians[0];
        simulated[n++] = medians[1];
        append(&all, &o);
        outcome_free(&o);
    }
    if (n)
        print_summary(&all, closed, simulated, n);
    printf("%u systems have fewer than %d shapes or %d points: left out\n", left, SHAPES_MIN,
           POINTS_MIN);
    outcome_free(&all);
}

int fidelity_silicon(int n, char **files)
{
    struct table t = {calloc(SYSTEMS_MAX, sizeof *t.systems), 0};
    bool ok = true;
    if (!t.systems)
        abort();
    for (int i = 0; i < n && ok; i++)
        ok = read_table(&t, files[i]);
    if (ok)
        run_table(&t);
    for (uint32_t i = 0; i < t.n; i++)
        free(t.systems[i].points);
    free(t.systems);
    return ok ? 0 : 2;
}
