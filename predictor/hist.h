/* hist.h - a histogram of bounded relative error and bounded size, for latencies in picoseconds.
 * See hist.c for the layout. Counts, sum, sum of squares, min and max are exact; quantiles are within
 * HIST_REL_ERROR of a value that was recorded at that rank. Mergeable; same adds in any order, same
 * quantiles.
 */
#ifndef WEIR_HIST_H
#define WEIR_HIST_H

#include <stdint.h>

#include "predictor/error.h"

#define HIST_REL_ERROR 0.001

struct hist;

struct hist *hist_new(void); /* NULL: out of memory */
void hist_free(struct hist *h);
void hist_clear(struct hist *h);

/* value_ps < 0 counts as 0. Adding never fails and never allocates. */
void hist_add(struct hist *h, int64_t value_ps, uint64_t count);

/* The values first, first + step, ... (n of them): a decode segment's token gaps, in time
 * proportional to the buckets it spans, not to n. first >= 0; step may be 0 or positive. `weight` adds each value
 * that many times (requests in the batch). Same result as n calls of hist_add. */
void hist_add_series(struct hist *h, int64_t first_ps, int64_t step_ps, uint64_t n,
                     uint64_t weight);

/* The n values, each `weight` times: as n calls of hist_add, but quick where neighbours are alike. */
void hist_add_run(struct hist *h, const int64_t *values_ps, uint32_t n, uint64_t weight);

void hist_merge(struct hist *into, const struct hist *from);

uint64_t hist_count(const struct hist *h);
int64_t hist_min_ps(const struct hist *h); /* 0 when empty */
int64_t hist_max_ps(const struct hist *h);
double hist_mean_ps(const struct hist *h);
double hist_std_ps(const struct hist *h); /* population */
/* q in 0..1, rank interpolation as in numpy's "lower" method. */
int64_t hist_quantile_ps(const struct hist *h, double q);
/* Share of values <= limit, 0..1 (1 when empty); bounded by the bucket's error. */
double hist_share_below(const struct hist *h, int64_t limit_ps);

#endif
