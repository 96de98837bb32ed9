/* buckets.h - histograms of fixed buckets, as Prometheus has them. One writer, many readers; no locks. */
#ifndef WEIR_BUCKETS_H
#define WEIR_BUCKETS_H

#include <stdatomic.h>
#include <stdint.h>

#define BUCKETS_BOUNDS 15

/* What is measured. Values are whole billionths: of a second, or of 1 for ratios. */
enum buckets_kind {
    BUCKETS_LATENCY, /* to first tokens, in queues: 1 ms to 1 min */
    BUCKETS_TOKEN,   /* between tokens: 1 ms to 1 s */
    BUCKETS_RATIO,   /* measured over predicted: 0.1 to 10 */
    BUCKETS_SHORT,   /* of weir itself: 1 us to 1 s */
    BUCKETS_KINDS
};

struct buckets {
    _Atomic uint64_t n[BUCKETS_BOUNDS + 1]; /* the last one: above all bounds */
    _Atomic uint64_t sum;
};

extern const uint64_t buckets_bounds[BUCKETS_KINDS][BUCKETS_BOUNDS];

void buckets_add(struct buckets *b, enum buckets_kind kind, uint64_t billionths);
uint64_t buckets_count(const struct buckets *b);
/* A value below which share q (0 to 1) lies, interpolated within its bucket; 0 when empty. */
uint64_t buckets_quantile(const struct buckets *b, enum buckets_kind kind, double q);

#endif
