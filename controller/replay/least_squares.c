/* least_squares.c - Levenberg-Marquardt with bounds, then a pattern search; see least_squares.h. */
#include "controller/replay/least_squares.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define LAMBDA_START 1e-3
#define LAMBDA_MAX 1e8
#define SMALLEST_GAIN 1e-5 /* of the cost, in one iteration: less ends the search */
#define PATTERN_START 0.05
#define PATTERN_SHRINK 0.4

struct work {
    const struct lsq_problem *p;
    double *r, *r_new; /* residuals at x and at a trial point */
    double *jacobian;  /* n_unknowns columns of n_residuals */
    uint32_t evaluations;
    int rc;
};

static double clamp(double v, double low, double high)
{
    return v < low ? low : v > high ? high : v;
}

static double rho(double r, double f)
{
    double z = r / f;
    return 2 * f * f * (__builtin_sqrt(1 + z * z) - 1);
}

/* rho'(r) / (2 r) */
static double weight(double r, double f)
{
    double z = r / f;
    return 1 / __builtin_sqrt(1 + z * z);
}

/* Cost at x, with the residuals in r; negative: failed. */
static double evaluate(struct work *w, const double *x, double *r)
{
    double cost = 0;
    w->evaluations++;
    w->rc = w->p->residuals(w->p->ctx, x, r);
    if (w->rc)
        return -1;
    for (uint32_t i = 0; i < w->p->n_residuals; i++)
        cost += rho(r[i], w->p->outlier);
    return cost;
}

/* ---- Levenberg-Marquardt */

static int differences(struct work *w, const double *x, double width)
{
    const struct lsq_problem *p = w->p;
    double at[LSQ_MAX_UNKNOWNS];
    memcpy(at, x, p->n_unknowns * sizeof *at);
    for (uint32_t j = 0; j < p->n_unknowns; j++) {
        double h = width * p->scale[j], *column = w->jacobian + (size_t)j * p->n_residuals;
        if (x[j] + h > p->high[j])
            h = -h;
        at[j] = clamp(x[j] + h, p->low[j], p->high[j]);
        h = at[j] - x[j];
        if (h != 0 && evaluate(w, at, column) < 0)
            return w->rc;
        for (uint32_t i = 0; i < p->n_residuals; i++)
            column[i] = h != 0 ? (column[i] - w->r[i]) / h : 0;
        at[j] = x[j];
    }
    return 0;
}

/* a (n x n, symmetric, positive definite) s = b by Cholesky, in place; false: not positive definite. */
static bool solve(uint32_t n, double a[][LSQ_MAX_UNKNOWNS], const double *b, double *s)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j <= i; j++) {
            double v = a[i][j];
            for (uint32_t k = 0; k < j; k++)
                v -= a[i][k] * a[j][k];
            if (i == j) {
                if (!(v > 0))
                    return false;
                a[i][i] = __builtin_sqrt(v);
            } else {
                a[i][j] = v / a[j][j];
            }
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        double v = b[i];
        for (uint32_t k = 0; k < i; k++)
            v -= a[i][k] * s[k];
        s[i] = v / a[i][i];
    }
    for (uint32_t i = n; i-- > 0;) {
        double v = s[i];
        for (uint32_t k = i + 1; k < n; k++)
            v -= a[k][i] * s[k];
        s[i] = v / a[i][i];
    }
    return true;
}

/* Weighted normal equations in units of scale, over the unknowns that are free to move. */
struct normal {
    double a[LSQ_MAX_UNKNOWNS][LSQ_MAX_UNKNOWNS], g[LSQ_MAX_UNKNOWNS];
    bool is_free[LSQ_MAX_UNKNOWNS];
};

static void build_normal(const struct work *w, const double *x, struct normal *n)
{
    const struct lsq_problem *p = w->p;
    memset(n, 0, sizeof *n);
    for (uint32_t j = 0; j < p->n_unknowns; j++) {
        const double *cj = w->jacobian + (size_t)j * p->n_residuals;
        for (uint32_t k = 0; k <= j; k++) {
            const double *ck = w->jacobian + (size_t)k * p->n_residuals;
            double sum = 0;
            for (uint32_t i = 0; i < p->n_residuals; i++)
                sum += weight(w->r[i], p->outlier) * cj[i] * ck[i];
            n->a[j][k] = n->a[k][j] = sum * p->scale[j] * p->scale[k];
        }
        double sum = 0;
        for (uint32_t i = 0; i < p->n_residuals; i++)
            sum += weight(w->r[i], p->outlier) * cj[i] * w->r[i];
        n->g[j] = sum * p->scale[j];
        n->is_free[j] = n->a[j][j] > 0 && !(x[j] <= p->low[j] && n->g[j] > 0) &&
                        !(x[j] >= p->high[j] && n->g[j] < 0);
    }
}

/* The damped step; false: nothing can move. */
static bool find_step(const struct lsq_problem *p, const struct normal *n, double lambda,
                      double *step)
{
    double a[LSQ_MAX_UNKNOWNS][LSQ_MAX_UNKNOWNS], b[LSQ_MAX_UNKNOWNS], s[LSQ_MAX_UNKNOWNS];
    uint32_t map[LSQ_MAX_UNKNOWNS], m = 0;
    for (uint32_t j = 0; j < p->n_unknowns; j++) {
        step[j] = 0;
        if (n->is_free[j])
            map[m++] = j;
    }
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t j = 0; j < m; j++)
            a[i][j] = n->a[map[i]][map[j]];
        a[i][i] *= 1 + lambda;
        b[i] = -n->g[map[i]];
    }
    if (!m || !solve(m, a, b, s))
        return false;
    for (uint32_t i = 0; i < m; i++)
        step[map[i]] = s[i] * p->scale[map[i]];
    return true;
}

/* One iteration: tries steps with more and more damping until one lowers the cost. Returns the new cost, or
 * the old one if none did, or -1. */
static double iterate(struct work *w, double *x, double cost, double width, double *lambda)
{
    const struct lsq_problem *p = w->p;
    struct normal n;
    if (differences(w, x, width))
        return -1;
    build_normal(w, x, &n);
    for (; *lambda < LAMBDA_MAX; *lambda *= 8) {
        double step[LSQ_MAX_UNKNOWNS], trial[LSQ_MAX_UNKNOWNS];
        if (!find_step(p, &n, *lambda, step))
            continue;
        for (uint32_t j = 0; j < p->n_unknowns; j++)
            trial[j] = clamp(x[j] + step[j], p->low[j], p->high[j]);
        double trial_cost = evaluate(w, trial, w->r_new);
        if (trial_cost < 0)
            return -1;
        if (trial_cost < cost) {
            double *r = w->r;
            w->r = w->r_new;
            w->r_new = r;
            memcpy(x, trial, p->n_unknowns * sizeof *x);
            *lambda = *lambda > 1e-9 ? *lambda / 8 : *lambda;
            return trial_cost;
        }
    }
    return cost;
}

/* ---- pattern search: each unknown alone, then all together, with smaller and smaller steps */

static double try_move(struct work *w, double *x, double cost, uint32_t j, double by)
{
    const struct lsq_problem *p = w->p;
    double trial[LSQ_MAX_UNKNOWNS];
    for (uint32_t i = 0; i < p->n_unknowns; i++) {
        double move = j == i || j == p->n_unknowns ? by * (x[i] > 0 ? x[i] : p->scale[i]) : 0;
        trial[i] = clamp(x[i] + move, p->low[i], p->high[i]);
    }
    double trial_cost = evaluate(w, trial, w->r_new);
    if (trial_cost < 0 || trial_cost >= cost)
        return trial_cost < 0 ? -1 : cost;
    memcpy(x, trial, p->n_unknowns * sizeof *x);
    return trial_cost;
}

static double search_pattern(struct work *w, double *x, double cost)
{
    double by = PATTERN_START;
    for (uint32_t round = 0; round < w->p->pattern_rounds; round++) {
        double before = cost;
        for (uint32_t j = 0; j <= w->p->n_unknowns; j++) {
            double at = cost;
            cost = try_move(w, x, cost, j, by);
            if (cost >= 0 && cost == at)
                cost = try_move(w, x, cost, j, -by);
            if (cost < 0)
                return -1;
        }
        if (cost == before)
            by *= PATTERN_SHRINK;
    }
    return cost;
}

static bool valid(const struct lsq_problem *p)
{
    if (!p->n_unknowns || p->n_unknowns > LSQ_MAX_UNKNOWNS || !p->n_residuals ||
        p->n_residuals > LSQ_MAX_RESIDUALS || !(p->outlier > 0))
        return false;
    for (uint32_t j = 0; j < p->n_unknowns; j++) {
        if (!(p->low[j] <= p->high[j]) || !(p->scale[j] > 0))
            return false;
    }
    return true;
}

static double minimise(struct work *w, double *x)
{
    const struct lsq_problem *p = w->p;
    for (uint32_t j = 0; j < p->n_unknowns; j++)
        x[j] = clamp(x[j], p->low[j], p->high[j]);
    double cost = evaluate(w, x, w->r);
    for (uint32_t k = 0; k < p->n_widths && cost >= 0; k++) {
        double lambda = LAMBDA_START;
        for (uint32_t i = 0; i < p->max_iterations && cost >= 0; i++) {
            double before = cost;
            cost = iterate(w, x, cost, p->widths[k], &lambda);
            if (cost >= before * (1 - SMALLEST_GAIN))
                break;
        }
    }
    return cost < 0 ? cost : search_pattern(w, x, cost);
}

int lsq_minimise(const struct lsq_problem *p, double *x, struct lsq_result *out)
{
    *out = (struct lsq_result){0};
    if (!valid(p))
        return WEIR_E_INVALID;
    size_t m = p->n_residuals;
    double *memory = malloc(m * (p->n_unknowns + 2) * sizeof *memory);
    if (!memory)
        return WEIR_E_NOMEM;
    struct work w = {.p = p, .r = memory, .r_new = memory + m, .jacobian = memory + 2 * m};
    double cost = minimise(&w, x);
    free(memory);
    out->cost = cost;
    out->evaluations = w.evaluations;
    return w.rc;
}
