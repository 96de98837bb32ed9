/* buckets.c - see buckets.h. */
#include "controller/serve/buckets.h"

#define US UINT64_C(1000)
#define MS UINT64_C(1000000)
#define S UINT64_C(1000000000)

/* clang-format off */
const uint64_t buckets_bounds[BUCKETS_KINDS][BUCKETS_BOUNDS] = {
    [BUCKETS_LATENCY] = {MS, 5 * MS / 2, 5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS, 250 * MS, 500 * MS, S, 5 * S / 2,
                         5 * S, 10 * S, 30 * S, 60 * S},
    [BUCKETS_TOKEN] = {MS, 2 * MS, 5 * MS, 15 * MS / 2, 10 * MS, 15 * MS, 20 * MS, 30 * MS, 40 * MS, 50 * MS, 75 * MS,
                       100 * MS, 200 * MS, 500 * MS, S},
    [BUCKETS_RATIO] = {S / 10, S / 4, S / 2, 7 * S / 10, 4 * S / 5, 9 * S / 10, 19 * S / 20, S, 21 * S / 20, 11 * S / 10,
                       5 * S / 4, 3 * S / 2, 2 * S, 4 * S, 10 * S},
    [BUCKETS_SHORT] = {US, 2 * US, 5 * US, 10 * US, 20 * US, 50 * US, 100 * US, 200 * US, 500 * US, MS, 2 * MS, 5 * MS,
                       10 * MS, 100 * MS, S},
};
/* clang-format on */

static void add(_Atomic uint64_t *to, uint64_t n)
{
    /* one writer: no locked instruction needed */
    atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

void buckets_add(struct buckets *b, enum buckets_kind kind, uint64_t x)
{
    uint32_t i = 0;
    while (i < BUCKETS_BOUNDS && x > buckets_bounds[kind][i])
        i++;
    add(&b->n[i], 1);
    add(&b->sum, x);
}

uint64_t buckets_count(const struct buckets *b)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i <= BUCKETS_BOUNDS; i++)
        n += b->n[i];
    return n;
}

uint64_t buckets_quantile(const struct buckets *b, enum buckets_kind kind, double q)
{
    double want = q * (double)buckets_count(b), below = 0;
    uint64_t from = 0;
    for (uint32_t i = 0; i < BUCKETS_BOUNDS; i++) {
        double n = (double)b->n[i];
        uint64_t to = buckets_bounds[kind][i];
        if (n > 0 && below + n >= want)
            return from + (uint64_t)((double)(to - from) * (want - below) / n);
        below += n;
        from = to;
    }
    return below < want ? from : 0;
}
