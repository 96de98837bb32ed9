/* errors.c - relative errors of values and of their distribution; see errors.h. */
#include "bench/fidelity/errors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double quantile(double *v, uint32_t n, double p)
{
    if (!n)
        return 0;
    qsort(v, n, sizeof *v, compare);
    double at = p * (n - 1);
    uint32_t i = (uint32_t)at;
    return i + 1 < n ? v[i] + (v[i + 1] - v[i]) * (at - i) : v[n - 1];
}

static double mean(const double *v, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += v[i];
    return n ? sum / n : 0;
}

void errors_compute(struct errors *e, const double *actual, const double *predicted, uint32_t n)
{
    *e = (struct errors){0};
    double *memory = calloc(3 * (size_t)n + 1, sizeof *memory);
    if (!memory)
        abort();
    double *a = memory, *p = memory + n, *each = memory + 2 * (size_t)n;
    for (uint32_t i = 0; i < n; i++) {
        if (!(actual[i] > 0))
            continue;
        a[e->n] = actual[i];
        p[e->n] = predicted[i];
        each[e->n++] = fabs(predicted[i] / actual[i] - 1);
    }
    if (e->n) {
        e->mean_actual = mean(a, e->n);
        e->mean = mean(p, e->n) / e->mean_actual - 1;
        e->p50 = quantile(p, e->n, 0.5) / quantile(a, e->n, 0.5) - 1;
        e->p99 = quantile(p, e->n, 0.99) / quantile(a, e->n, 0.99) - 1;
        e->each_mean = mean(each, e->n);
        e->each_median = quantile(each, e->n, 0.5);
        e->each_p90 = quantile(each, e->n, 0.9);
        e->each_p99 = quantile(each, e->n, 0.99);
    }
    free(memory);
}

void errors_print_header(const char *first_column)
{
    printf("  | %-34s | %5s | %12s | %7s | %7s | %7s | %7s | %7s | %7s | %7s |\n", first_column,
           "n", "mean", "of mean", "of p50", "of p99", "median", "mean", "p90", "p99");
    printf("  |%.36s|------:|-------------:|--------:|--------:|--------:|--------:|--------:"
           "|--------:|--------:|\n",
           "------------------------------------------------------------");
}

void errors_print(const char *name, const char *unit, const struct errors *e)
{
    printf(
        "  | %-34s | %5u | %9.2f %-2s | %+6.1f%% | %+6.1f%% | %+6.1f%% | %6.1f%% | %6.1f%% | %6.1f%% "
        "| %6.1f%% |\n",
        name, e->n, e->mean_actual, unit, 100 * e->mean, 100 * e->p50, 100 * e->p99,
        100 * e->each_median, 100 * e->each_mean, 100 * e->each_p90, 100 * e->each_p99);
}
