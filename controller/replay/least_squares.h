/* least_squares.h - least squares with bounds and without trust in outliers, for a handful of coefficients.
 *
 * Minimises sum of rho(r_i(x)), rho(r) = 2 f^2 (sqrt(1 + (r/f)^2) - 1): quadratic near 0, linear beyond f ("soft
 * L1"), so that a few requests that went another way do not bend the fit. The method is Levenberg-Marquardt
 * with iteratively reweighted normal equations and forward differences of a given width, projected to the
 * bounds (Kanzow, Yamashita, Fukushima 2004); then a pattern search, because a simulated engine's residuals
 * have small jumps where a request is admitted one step earlier. Deterministic; no libm beyond sqrt.
 */
#ifndef WEIR_LEAST_SQUARES_H
#define WEIR_LEAST_SQUARES_H

#include <stdint.h>

#include "predictor/error.h"

#define LSQ_MAX_UNKNOWNS 16u
#define LSQ_MAX_RESIDUALS (UINT32_C(1) << 24)

/* Fills r[0..n_residuals). 0, or an error that ends the search. */
typedef int (*lsq_residuals)(void *ctx, const double *x, double *r);

struct lsq_problem {
    lsq_residuals residuals;
    void *ctx;
    uint32_t n_unknowns, n_residuals;
    double low[LSQ_MAX_UNKNOWNS], high[LSQ_MAX_UNKNOWNS]; /* bounds, low <= high */
    double scale[LSQ_MAX_UNKNOWNS]; /* typical size of each unknown, > 0: the unit of steps */
    double outlier;                 /* f: residuals beyond count less; > 0 */
    const double *widths; /* of the difference steps, in units of scale, one after the other */
    uint32_t n_widths;
    uint32_t max_iterations; /* per width */
    uint32_t pattern_rounds; /* of the pattern search; 0: none */
};

struct lsq_result {
    double cost;          /* sum of rho at x */
    uint32_t evaluations; /* calls of residuals */
};

/* x: start in, best point out (clamped to the bounds). 0, WEIR_E_INVALID (a size or bound out of range),
 * WEIR_E_NOMEM, or the first error of residuals; x is then the best point so far. */
WEIR_NODISCARD int lsq_minimise(const struct lsq_problem *p, double *x, struct lsq_result *out);

#endif
