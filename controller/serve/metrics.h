/* metrics.h - what `weir serve` tells Prometheus. One table (metrics.c) declares every metric: its name, type, labels
 * and help; the exposition, the generated page deploy/metrics.md and the check of dashboards all come from it.
 */
#ifndef WEIR_METRICS_H
#define WEIR_METRICS_H

#include <stdio.h>

#include "controller/serve/poller.h"
#include "controller/serve/proxy.h"
#include "controller/serve/shared.h"

/* Where the figures are. All of it may be read on the admin listener's thread. */
struct metrics_view {
    struct serve *serve;
    struct proxy *const *proxies; /* one a thread */
    uint32_t n_proxies;
    const struct poller *poller;
    const struct shared *shared; /* NULL: state is none */
    struct http_loop *http;      /* of that thread */
    uint64_t now_ms;             /* its loop time */
};

/* The counts of all threads together. */
void metrics_sum(const struct metrics_view *v, struct proxy_counts *sum);

/* The exposition text (format 0.0.4) to out. */
void metrics_write(FILE *out, const struct metrics_view *v);

/* The table as a Markdown page. */
void metrics_write_page(FILE *out);

#endif
