/* trace_load.c - how fast a trace is loaded, and nothing else: build/bench/trace_load FILE [REPEATS]
 * [json] prints rows, keys, and the best and median of REPEATS (default 15) loads; "json" sends every
 * row through the general JSON parser. Each repeat opens the file anew (from the page cache).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "controller/replay/trace.h"

#define MAX_REPEATS 10000

struct loaded {
    uint64_t rows, keys, sum; /* sum: all values, so that nothing is optimised away */
    double ms;
};

static double now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static int load(const char *path, const struct trace_options *opt, struct loaded *out)
{
    char error[TRACE_ERROR_BYTES];
    double start = now_ms();
    *out = (struct loaded){0};
    struct trace *t = trace_open(&path, 1, opt, error);
    if (!t) {
        fprintf(stderr, "%s\n", error);
        return 2;
    }
    struct trace_request q = {0};
    int rc;
    while ((rc = trace_next(t, &q)) > 0) {
        out->rows++;
        out->keys += q.n_keys;
        out->sum += (uint64_t)q.arrival_ps + q.prompt_tok + q.output_tok;
        out->sum ^= q.n_keys ? q.keys[q.n_keys - 1] : 0;
    }
    if (rc < 0)
        fprintf(stderr, "%s\n", trace_error(t));
    trace_close(t);
    out->ms = now_ms() - start;
    return rc < 0 ? 2 : 0;
}

static int by_ms(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s FILE [REPEATS] [json]\n", argv[0]);
        return 2;
    }
    long repeats = argc > 2 ? strtol(argv[2], NULL, 10) : 15;
    struct trace_options opt = {.no_fast_path = argc > 3 && !strcmp(argv[3], "json")};
    struct stat st = {0};
    if (repeats < 1 || repeats > MAX_REPEATS || stat(argv[1], &st)) {
        fprintf(stderr, "expected a file and 1 to %d repeats\n", MAX_REPEATS);
        return 2;
    }
    static double ms[MAX_REPEATS];
    struct loaded l;
    for (long i = 0; i < repeats; i++) {
        if (load(argv[1], &opt, &l))
            return 2;
        ms[i] = l.ms;
    }
    qsort(ms, (size_t)repeats, sizeof ms[0], by_ms);
    double median = ms[repeats / 2];
    printf("%s: %llu rows, %llu keys, checksum %016llx\n", argv[1], (unsigned long long)l.rows,
           (unsigned long long)l.keys, (unsigned long long)l.sum);
    printf("best %.3f ms, median %.3f ms: %.0f MB/s, %.0f rows/s\n", ms[0], median,
           (double)st.st_size / 1e3 / median, (double)l.rows / median * 1e3);
    return 0;
}
