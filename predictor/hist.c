/* hist.c - see hist.h.
 *
 * Buckets are cut by the bits of the value: the position of its highest bit (the octave) and the 9
 * bits below it. A bucket is at most 2^-9 of its values wide, so its middle is within 2^-10 (0.098 %)
 * of each of them. Values below 1024 have a bucket each. This is the layout of HdrHistogram (Gil
 * Tene) with powers of two all the way; no logarithm, so every machine finds the same bucket.
 *
 *     value    ..0000 1 bbbbbbbbb xxxx        shift = number of x
 *     bucket   shift * 512 + (1 bbbbbbbbb)    512 buckets an octave
 *
 * A count is 64 bits wide in two halves, because nearly all fit the lower one: an octave is half a page.
 * Octaves that no value fell into are neither zeroed nor read, so a histogram costs the memory of
 * those in use, some tens of KiB (a page costs 3 us the first time it is touched on a small virtual
 * machine, and a whole replay is to take 12 ms), and clearing is one bit mask. Each of the two blocks
 * is below malloc's threshold for a mapping of its own, which would cost another 20 us.
 */
#include "predictor/hist.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define SUB_BITS 9
#define SUB (1u << SUB_BITS)
#define N_OCTAVES                                                                                  \
    (63 - SUB_BITS + 1) /* groups of SUB buckets; two of them for the values below 2^10 */
#define N_BUCKETS (N_OCTAVES * SUB)

static_assert(N_OCTAVES <= 64, "one bit an octave");

typedef unsigned __int128 u128;

/* Sums of squares: 126 bits a square, 64 more for how many. Least significant word first. */
struct wide {
    uint64_t w[4];
};

struct hist {
    uint64_t count;
    int64_t min, max;
    u128 sum;
    struct wide squares; /* w[3] stays 0 */
    uint64_t octaves;    /* bit i: group i of low is in use */
    uint64_t carried;    /* bit i: group i of high is in use */
    uint32_t *high;      /* [N_BUCKETS] */
    uint32_t low[N_BUCKETS];
};

static_assert(sizeof(struct hist) < 128 * 1024, "M_MMAP_THRESHOLD");

/* ---- wide integers */

static void wide_add(struct wide *a, const struct wide *b)
{
    unsigned carry = 0;
    for (int i = 0; i < 4; i++) {
        u128 s = (u128)a->w[i] + b->w[i] + carry;
        a->w[i] = (uint64_t)s;
        carry = (unsigned)(s >> 64);
    }
}

static void wide_sub(struct wide *a, const struct wide *b)
{
    unsigned borrow = 0;
    for (int i = 0; i < 4; i++) {
        u128 d = (u128)a->w[i] - b->w[i] - borrow;
        a->w[i] = (uint64_t)d;
        borrow = (unsigned)(d >> 64) & 1;
    }
}

static struct wide wide_from(u128 v)
{
    return (struct wide){{(uint64_t)v, (uint64_t)(v >> 64), 0, 0}};
}

static struct wide wide_mul(struct wide a, uint64_t m)
{
    struct wide r;
    uint64_t carry = 0;
    for (int i = 0; i < 4; i++) {
        u128 p = (u128)a.w[i] * m + carry;
        r.w[i] = (uint64_t)p;
        carry = (uint64_t)(p >> 64);
    }
    return r;
}

static double wide_double(const struct wide *a)
{
    double d = 0;
    for (int i = 3; i >= 0; i--)
        d = d * 18446744073709551616.0 + (double)a->w[i];
    return d;
}

/* ---- buckets */

static inline unsigned shift_of(uint64_t v)
{
    return 63u - SUB_BITS - (unsigned)__builtin_clzll(v | SUB);
}

static inline uint32_t bucket_of(uint64_t v)
{
    unsigned shift = shift_of(v);
    return shift * SUB + (uint32_t)(v >> shift);
}

/* The value that stands for a bucket. */
static int64_t bucket_middle(uint32_t i)
{
    if (i < 2 * SUB)
        return (int64_t)i;
    unsigned shift = i / SUB - 1;
    uint64_t low = (uint64_t)(i - shift * SUB) << shift;
    return (int64_t)(low + ((UINT64_C(1) << shift) >> 1));
}

/* Zeroes a group before its first use. */
static void open_group(uint64_t *in_use, uint32_t *counts, uint32_t group)
{
    memset(&counts[group * SUB], 0, SUB * sizeof counts[0]);
    *in_use |= UINT64_C(1) << group;
}

static void carry_add(struct hist *h, uint32_t i, uint64_t carry)
{
    if (!(h->carried >> (i / SUB) & 1))
        open_group(&h->carried, h->high, i / SUB);
    h->high[i] += (uint32_t)carry;
}

static inline void bucket_add(struct hist *h, uint32_t i, uint64_t count)
{
    if (__builtin_expect(!(h->octaves >> (i / SUB) & 1), 0))
        open_group(&h->octaves, h->low, i / SUB);
    uint64_t sum = (uint64_t)h->low[i] + (uint32_t)count, carry = (sum >> 32) + (count >> 32);
    h->low[i] = (uint32_t)sum;
    if (__builtin_expect(carry != 0, 0))
        carry_add(h, i, carry);
}

/* i's group is in use. */
static inline uint64_t bucket_count(const struct hist *h, uint32_t i)
{
    uint64_t high = h->carried >> (i / SUB) & 1 ? h->high[i] : 0;
    return high << 32 | h->low[i];
}

/* ---- life */

struct hist *hist_new(void)
{
    struct hist *h = malloc(sizeof *h);
    if (!h)
        return NULL;
    h->high = malloc(N_BUCKETS * sizeof *h->high);
    if (!h->high) {
        free(h);
        return NULL;
    }
    hist_clear(h);
    return h;
}

void hist_free(struct hist *h)
{
    if (!h)
        return;
    free(h->high);
    free(h);
}

void hist_clear(struct hist *h)
{
    memset(h, 0, offsetof(struct hist, high));
}

/* ---- adding */

static inline void range_add(struct hist *h, int64_t low, int64_t high)
{
    if (!h->count || low < h->min)
        h->min = low;
    if (high > h->max)
        h->max = high;
}

/* squares += low + high * 2^64; the sum of squares stays below 2^192 */
static inline void squares_add(struct hist *h, u128 low, u128 high)
{
    uint64_t *w = h->squares.w;
    high += (uint64_t)(low >> 64);
    u128 t = (u128)w[0] + (uint64_t)low;
    w[0] = (uint64_t)t;
    t = (u128)w[1] + (uint64_t)high + (uint64_t)(t >> 64);
    w[1] = (uint64_t)t;
    w[2] += (uint64_t)(high >> 64) + (uint64_t)(t >> 64);
}

void hist_add(struct hist *h, int64_t value_ps, uint64_t count)
{
    if (!count)
        return;
    uint64_t v = value_ps < 0 ? 0 : (uint64_t)value_ps;
    range_add(h, (int64_t)v, (int64_t)v);
    bucket_add(h, bucket_of(v), count);
    h->count += count;
    h->sum += (u128)v * count;
    u128 sq = (u128)v * v, low = (u128)(uint64_t)sq * count;
    squares_add(h, low, (u128)(uint64_t)(sq >> 64) * count);
}

/* Count, sum and squares of first + i*step, i = 0..n-1; n is small enough that n^3 fits 64 bits. */
#define SERIES_CHUNK (UINT64_C(1) << 20)
/* Below that (1.1 s), a chunk's sum of squares and the three it is made of fit 103 bits, and 24 bits of weight
 * beside them. */
#define SERIES_SMALL (UINT64_C(1) << 40)
#define SERIES_SMALL_WEIGHT (UINT64_C(1) << 24)

static void series_moments(struct hist *h, uint64_t first, uint64_t step, uint64_t n,
                           uint64_t weight)
{
    uint64_t pairs = n * (n - 1) / 2, cubes = n * (n - 1) / 2 * (2 * n - 1) / 3;
    h->count += n * weight;
    h->sum += ((u128)first * n + (u128)step * pairs) * weight;
    if (first + (n - 1) * step < SERIES_SMALL && weight < SERIES_SMALL_WEIGHT) {
        u128 small = (u128)(first * n) * first + (u128)first * step * (2 * pairs) +
                     (u128)step * step * cubes;
        squares_add(h, small * weight, 0);
        return;
    }
    struct wide sq = wide_mul(wide_from((u128)first * first), n);
    struct wide cross = wide_mul(wide_from((u128)first * step), 2 * pairs);
    struct wide steps = wide_mul(wide_from((u128)step * step), cubes);
    wide_add(&sq, &cross);
    wide_add(&sq, &steps);
    sq = wide_mul(sq, weight);
    wide_add(&h->squares, &sq);
}

static void series_buckets(struct hist *h, uint64_t v, uint64_t step, uint64_t n, uint64_t weight)
{
    while (n) {
        unsigned shift = shift_of(v);
        uint64_t room = (((v >> shift) + 1) << shift) - v; /* to the next bucket */
        uint64_t here = step ? (room - 1) / step + 1 : n;
        here = here < n ? here : n;
        bucket_add(h, shift * SUB + (uint32_t)(v >> shift), here * weight);
        v += here * step;
        n -= here;
    }
}

void hist_add_series(struct hist *h, int64_t first_ps, int64_t step_ps, uint64_t n, uint64_t weight)
{
    if (!n || !weight)
        return;
    assert(first_ps >= 0 && step_ps >= 0);
    uint64_t first = (uint64_t)first_ps, step = (uint64_t)step_ps;
    assert(!step || n - 1 <= ((uint64_t)INT64_MAX - first) / step);
    range_add(h, first_ps, (int64_t)(first + (n - 1) * step));
    series_buckets(h, first, step, n, weight);
    while (n) {
        uint64_t part = n < SERIES_CHUNK ? n : SERIES_CHUNK;
        series_moments(h, first, step, part, weight);
        first += part * step;
        n -= part;
    }
}

/* So many values below RUN_LIMIT (40 hours) sum up to less than 2^64, their squares to less than 2^128. */
#define RUN_PART 128u
#define RUN_LIMIT (INT64_C(1) << 57)

/* Whether all values are 0..RUN_LIMIT; *low and *high are the least and the greatest. */
static bool run_range(const int64_t *v, uint32_t n, int64_t *low, int64_t *high)
{
    *low = *high = v[0];
    for (uint32_t i = 1; i < n; i++) {
        *low = v[i] < *low ? v[i] : *low;
        *high = v[i] > *high ? v[i] : *high;
    }
    return *low >= 0 && *high < RUN_LIMIT;
}

static void run_buckets(struct hist *h, const int64_t *v, uint32_t n, uint64_t weight)
{
    for (uint32_t i = 0, same; i < n; i += same) {
        unsigned shift = shift_of((uint64_t)v[i]);
        uint64_t top = (uint64_t)v[i] >> shift;
        for (same = 1; i + same < n && (uint64_t)v[i + same] >> shift == top;)
            same++;
        bucket_add(h, shift * SUB + (uint32_t)top, same * weight);
    }
}

static void run_moments(struct hist *h, const int64_t *v, uint32_t n, uint64_t weight)
{
    u128 squares = 0;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t x = (uint64_t)v[i];
        sum += x;
        squares += (u128)x * x;
    }
    h->sum += (u128)sum * weight;
    h->count += n * weight;
    struct wide sq = wide_mul(wide_from(squares), weight);
    wide_add(&h->squares, &sq);
}

void hist_add_run(struct hist *h, const int64_t *values_ps, uint32_t n, uint64_t weight)
{
    for (uint32_t i = 0; weight && i < n; i += RUN_PART) {
        uint32_t part = n - i < RUN_PART ? n - i : RUN_PART;
        int64_t low, high;
        if (run_range(values_ps + i, part, &low, &high)) {
            range_add(h, low, high);
            if (bucket_of((uint64_t)low) == bucket_of((uint64_t)high))
                bucket_add(h, bucket_of((uint64_t)low), part * weight);
            else
                run_buckets(h, values_ps + i, part, weight);
            run_moments(h, values_ps + i, part, weight);
            continue;
        }
        for (uint32_t k = i; k < i + part; k++)
            hist_add(h, values_ps[k], weight);
    }
}

void hist_merge(struct hist *into, const struct hist *from)
{
    if (!from->count)
        return;
    range_add(into, from->min, from->max);
    for (uint64_t left = from->octaves; left; left &= left - 1) {
        unsigned first = (unsigned)__builtin_ctzll(left) * SUB;
        for (unsigned i = first; i < first + SUB; i++) {
            uint64_t n = bucket_count(from, i);
            if (n)
                bucket_add(into, i, n);
        }
    }
    into->count += from->count;
    into->sum += from->sum;
    wide_add(&into->squares, &from->squares);
}

/* ---- reading */

uint64_t hist_count(const struct hist *h)
{
    return h->count;
}

int64_t hist_min_ps(const struct hist *h)
{
    return h->min;
}

int64_t hist_max_ps(const struct hist *h)
{
    return h->max;
}

double hist_mean_ps(const struct hist *h)
{
    return h->count ? (double)h->sum / (double)h->count : 0;
}

/* n * sum(x^2) - sum(x)^2 without rounding: no cancellation however small the spread is. */
double hist_std_ps(const struct hist *h)
{
    if (!h->count)
        return 0;
    struct wide a = wide_mul(h->squares, h->count);
    struct wide low = wide_mul(wide_from(h->sum), (uint64_t)h->sum);
    struct wide high = wide_mul(wide_from(h->sum), (uint64_t)(h->sum >> 64));
    high = (struct wide){{0, high.w[0], high.w[1], high.w[2]}};
    wide_sub(&a, &low);
    wide_sub(&a, &high);
    return __builtin_sqrt(wide_double(&a)) / (double)h->count;
}

int64_t hist_quantile_ps(const struct hist *h, double q)
{
    if (!h->count)
        return 0;
    double last = (double)(h->count - 1), at = (q < 0 ? 0 : q > 1 ? 1 : q) * last;
    uint64_t rank = at < last ? (uint64_t)at : h->count - 1;
    if (rank == 0)
        return h->min;
    if (rank == h->count - 1)
        return h->max;
    uint64_t before = 0;
    for (uint64_t left = h->octaves; left; left &= left - 1) {
        unsigned first = (unsigned)__builtin_ctzll(left) * SUB;
        for (unsigned i = first; i < first + SUB; i++) {
            before += bucket_count(h, i);
            if (before > rank) {
                int64_t v = bucket_middle(i);
                return v < h->min ? h->min : v > h->max ? h->max : v;
            }
        }
    }
    return h->max;
}

double hist_share_below(const struct hist *h, int64_t limit_ps)
{
    if (!h->count || limit_ps >= h->max)
        return 1;
    if (limit_ps < h->min)
        return 0;
    uint32_t end = bucket_of((uint64_t)limit_ps) + 1;
    uint64_t below = 0;
    for (uint64_t left = h->octaves; left; left &= left - 1) {
        unsigned first = (unsigned)__builtin_ctzll(left) * SUB;
        for (unsigned i = first; i < first + SUB && i < end; i++)
            below += bucket_count(h, i);
    }
    return (double)below / (double)h->count;
}
