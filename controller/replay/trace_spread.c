/* trace_spread.c - times that were rounded to steps, spread over their step again (trace.h: spread_ps).
 *
 * Given how many requests came in a step, the times of a Poisson process are independent and uniform in
 * it; sorted, they go to the rows in their order. The rows of a step are read ahead, and one more, which
 * says how long the step is.
 */
#include <stdlib.h>
#include <string.h>

#include "controller/replay/trace_internal.h"
#include "predictor/mem.h"

/* Keeps a row behind the others; its keys are the trace's only until the next one is read. */
static int keep(struct trace *t, const struct trace_request *q)
{
    struct spread *s = &t->spread;
    if (s->n == TRACE_STEP_ROWS_MAX || q->n_keys > TRACE_STEP_KEYS_MAX - s->n_keys) {
        trace_bad(t,
                  "more than %u rows (or %u hash ids) of one timestamp, the most that are spread; "
                  "leave out --spread-arrivals, or is the unit of the timestamps right?",
                  TRACE_STEP_ROWS_MAX, TRACE_STEP_KEYS_MAX);
        return t->failed = WEIR_E_INPUT;
    }
    MEM_GROW(s->rows, s->rows_cap, s->n + 1);
    MEM_GROW(s->keys, s->keys_cap, s->n_keys + q->n_keys);
    s->rows[s->n] = (struct spread_row){*q, s->n_keys};
    if (q->n_keys)
        memcpy(s->keys + s->n_keys, q->keys, q->n_keys * sizeof *s->keys);
    s->n_keys += q->n_keys;
    return 0;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Gives the timed rows of the group, all of one timestamp, their times within `width`. */
static void draw_times(struct spread *s, uint64_t width)
{
    uint32_t n = 0;
    MEM_GROW(s->draws, s->draws_cap, s->n);
    for (uint32_t i = 0; i < s->n; i++)
        if (s->rows[i].q.arrival_ps != PS_NEVER)
            s->draws[n++] = rng_below(&s->rng, width);
    qsort(s->draws, n, sizeof *s->draws, by_value);
    n = 0;
    for (uint32_t i = 0; i < s->n; i++)
        if (s->rows[i].q.arrival_ps != PS_NEVER)
            s->rows[i].q.arrival_ps += (int64_t)s->draws[n++];
}

/* The row read ahead is the first of the next group. */
static void start_group(struct spread *s)
{
    struct spread_row first = {.key_at = 0};
    if (s->ahead)
        first = s->rows[s->n];
    s->n_keys = first.q.n_keys;
    if (s->n_keys)
        memmove(s->keys, s->keys + first.key_at, s->n_keys * sizeof *s->keys);
    if (s->ahead) {
        first.key_at = 0;
        s->rows[0] = first;
    }
    s->n = s->ahead;
    s->next = 0;
    s->ahead = false;
}

/* Reads all rows of one timestamp. 1, 0 (there are none) or an error. */
static int read_group(struct trace *t)
{
    struct spread *s = &t->spread;
    struct trace_request q;
    uint64_t width = (uint64_t)t->opt.spread_ps;
    int rc;
    start_group(s);
    int64_t at = s->n ? s->rows[0].q.arrival_ps : PS_NEVER;
    while ((rc = trace_next_row(t, &q)) > 0) {
        rc = keep(t, &q);
        if (rc)
            break;
        if (q.arrival_ps != PS_NEVER && at != PS_NEVER && q.arrival_ps != at) {
            s->ahead = true;
            if ((uint64_t)(q.arrival_ps - at) < width)
                width = (uint64_t)(q.arrival_ps - at);
            break;
        }
        if (q.arrival_ps != PS_NEVER)
            at = q.arrival_ps;
        s->n++;
    }
    if (rc < 0)
        return rc;
    if (s->n)
        draw_times(s, width);
    return s->n > 0;
}

int trace_spread_next(struct trace *t, struct trace_request *out)
{
    struct spread *s = &t->spread;
    if (t->failed)
        return t->failed;
    if (s->next == s->n) {
        int rc = read_group(t);
        if (rc <= 0)
            return rc;
    }
    const struct spread_row *r = &s->rows[s->next++];
    *out = r->q;
    out->keys = out->n_keys ? s->keys + r->key_at : NULL;
    return 1;
}

void trace_spread_deinit(struct spread *s)
{
    free(s->rows);
    free(s->keys);
    free(s->draws);
}
