/* trace_live.c - the log of weir serve has a line a request, written when the request ended; a trace is in order of
 * arrival. Rows wait in a heap by (arrival, line), so that whatever lies within TRACE_LIVE_ROWS_MAX lines comes out in
 * order; a row that is later still is told as any other whose time runs back.
 */
#include <stdlib.h>
#include <string.h>

#include "controller/replay/trace_internal.h"
#include "predictor/mem.h"

static bool earlier(const struct live_row *a, const struct live_row *b)
{
    return a->row.time_ps != b->row.time_ps ? a->row.time_ps < b->row.time_ps : a->seq < b->seq;
}

int trace_live_push(struct trace *t, const struct row *r)
{
    struct live_rows *l = &t->live;
    struct live_row x = {*r, l->seq++, NULL};
    if (r->n_ids) {
        x.ids = malloc(r->n_ids * sizeof *x.ids);
        if (!x.ids)
            return trace_no_memory(t);
        memcpy(x.ids, t->ids, r->n_ids * sizeof *x.ids);
    }
    MEM_GROW(l->heap, l->cap, l->n + 1);
    uint32_t i = l->n++;
    for (; i && earlier(&x, &l->heap[(i - 1) / 2]); i = (i - 1) / 2)
        l->heap[i] = l->heap[(i - 1) / 2];
    l->heap[i] = x;
    l->n_keys += r->n_ids;
    return 0;
}

bool trace_live_full(const struct trace *t)
{
    return t->live.n >= TRACE_LIVE_ROWS_MAX || t->live.n_keys >= TRACE_LIVE_KEYS_MAX;
}

bool trace_live_pop(struct trace *t, struct row *r)
{
    struct live_rows *l = &t->live;
    if (!l->n)
        return false;
    struct live_row first = l->heap[0], last = l->heap[--l->n];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= l->n)
            break;
        if (child + 1 < l->n && earlier(&l->heap[child + 1], &l->heap[child]))
            child++;
        if (!earlier(&l->heap[child], &last))
            break;
        l->heap[i] = l->heap[child];
        i = child;
    }
    l->heap[i] = last;
    l->n_keys -= first.row.n_ids;
    *r = first.row;
    if (first.ids) /* there is room: these ids were in t->ids before */
        memcpy(t->ids, first.ids, r->n_ids * sizeof *t->ids);
    free(first.ids);
    return true;
}

void trace_live_deinit(struct live_rows *l)
{
    for (uint32_t i = 0; i < l->n; i++)
        free(l->heap[i].ids);
    free(l->heap);
}
