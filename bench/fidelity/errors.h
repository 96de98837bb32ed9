/* errors.h - how far predictions are from what was measured. */
#ifndef WEIR_FIDELITY_ERRORS_H
#define WEIR_FIDELITY_ERRORS_H

#include <stdint.h>

/* All relative: 0.05 is 5 %. */
struct errors {
    uint32_t n;
    double mean_actual;
    double mean, p50, p99; /* of the distributions: predicted / measured - 1 */
    double each_median, each_mean, each_p90, each_p99; /* of |error| of each value */
};

/* Only pairs with actual > 0 count. Leaves both arrays as they are. */
void errors_compute(struct errors *e, const double *actual, const double *predicted, uint32_t n);

/* The p-quantile (0..1) of v, which gets sorted; linear between ranks. 0 if there are none. */
double quantile(double *v, uint32_t n, double p);

void errors_print_header(const char *first_column);
void errors_print(const char *name, const char *unit, const struct errors *e);

#endif
