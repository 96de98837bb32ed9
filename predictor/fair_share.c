/* fair_share.c - see fair_share.h.
 *
 * `received` is the virtual time of processor sharing: the work each transfer got that was there all
 * along. A transfer ends when it reaches the value at its start + its size, so a change of n moves no
 * key in the heap. It fits 128 bits whatever happens: 10^15 bytes/s (2^50) in units of 10^-12 byte for 2^63 ps
 * are 2^113.
 */
#include "predictor/fair_share.h"

#include <assert.h>

#include "predictor/mem.h"
#include "predictor/units.h"

#define NONE UINT32_MAX
#define POS_SENT UINT32_MAX       /* all bytes left, in its latency */
#define POS_FREE (UINT32_MAX - 1) /* not a transfer */
#define UNITS_PER_BYTE UINT64_C(1000000000000)

typedef unsigned __int128 u128;

/* ---- heap of those that send */

static bool less(const struct fair_share *s, uint32_t a, uint32_t b)
{
    const struct fair_share_transfer *x = &s->transfers[a], *y = &s->transfers[b];
    return x->finish != y->finish ? x->finish < y->finish : x->order < y->order;
}

static void heap_set(struct fair_share *s, uint32_t pos, uint32_t id)
{
    s->heap[pos] = id;
    s->transfers[id].pos = pos;
}

static void heap_place(struct fair_share *s, uint32_t pos, uint32_t id)
{
    while (pos && less(s, id, s->heap[(pos - 1) / 2])) {
        heap_set(s, pos, s->heap[(pos - 1) / 2]);
        pos = (pos - 1) / 2;
    }
    for (;;) {
        uint32_t kid = 2 * pos + 1;
        if (kid >= s->n_heap)
            break;
        if (kid + 1 < s->n_heap && less(s, s->heap[kid + 1], s->heap[kid]))
            kid++;
        if (!less(s, s->heap[kid], id))
            break;
        heap_set(s, pos, s->heap[kid]);
        pos = kid;
    }
    heap_set(s, pos, id);
}

static void heap_remove(struct fair_share *s, uint32_t pos)
{
    uint32_t last = s->heap[--s->n_heap];
    if (pos < s->n_heap)
        heap_place(s, pos, last);
}

/* ---- life */

static const struct fair_share empty = {
    .next_ps = PS_NEVER, .free_first = NONE, .sent_first = NONE, .sent_last = NONE};

int fair_share_init(struct fair_share *s, double bandwidth_gb_s, int64_t latency_ps)
{
    *s = empty;
    if (!(bandwidth_gb_s >= 0 && bandwidth_gb_s <= FAIR_SHARE_MAX_GB_S) || latency_ps < 0)
        return WEIR_E_INVALID;
    s->bytes_per_s = (uint64_t)(bandwidth_gb_s * 1e9 + 0.5);
    if (!s->bytes_per_s && bandwidth_gb_s > 0)
        s->bytes_per_s = 1;
    s->latency_ps = latency_ps;
    return 0;
}

void fair_share_deinit(struct fair_share *s)
{
    free(s->transfers);
    free(s->heap);
    *s = empty;
}

int fair_share_copy(struct fair_share *dst, const struct fair_share *src)
{
    if (MEM_RESERVE(dst->transfers, dst->transfers_cap, src->n_transfers) ||
        MEM_RESERVE(dst->heap, dst->heap_cap, src->n_heap))
        return WEIR_E_NOMEM;
    struct fair_share old = *dst;
    *dst = *src;
    dst->transfers = old.transfers;
    dst->transfers_cap = old.transfers_cap;
    dst->heap = old.heap;
    dst->heap_cap = old.heap_cap;
    MEM_COPY(dst->transfers, src->transfers, src->n_transfers);
    MEM_COPY(dst->heap, src->heap, src->n_heap);
    return 0;
}

/* ---- time */

/* At PS_LIMIT what comes later comes, too: nothing begins after it. */
static int64_t later(int64_t t, u128 dt)
{
    if (t < PS_LIMIT && dt < (u128)(PS_LIMIT - t))
        return t + (int64_t)dt;
    return t > PS_LIMIT ? t : PS_LIMIT;
}

/* Transfers that the bandwidth is divided by. */
static uint32_t sharers(const struct fair_share *s)
{
    return s->unshared ? 1 : s->n_heap;
}

/* When the first of those that send sends its last byte, if nothing changes. */
static int64_t finish_ps(const struct fair_share *s)
{
    const struct fair_share_transfer *t = &s->transfers[s->heap[0]];
    if (t->finish <= s->received)
        return s->now_ps;
    u128 work = (t->finish - s->received) * sharers(s); /* left_over may be more: n was larger */
    if (work <= s->left_over)
        return s->now_ps;
    u128 dt = (work - s->left_over + s->bytes_per_s - 1) / s->bytes_per_s;
    return later(s->now_ps, dt);
}

static void serve_until(struct fair_share *s, int64_t t)
{
    if (s->n_heap && t > s->now_ps) {
        u128 work = (u128)s->bytes_per_s * (uint64_t)(t - s->now_ps) + s->left_over;
        s->received += work / sharers(s);
        s->left_over = (uint64_t)(work % sharers(s));
    }
    s->now_ps = t;
}

static void sent_push(struct fair_share *s, uint32_t id)
{
    struct fair_share_transfer *t = &s->transfers[id];
    t->pos = POS_SENT;
    t->arrive_ps = later(s->now_ps, (u128)s->latency_ps);
    t->prev = s->sent_last;
    t->next = NONE;
    *(s->sent_last == NONE ? &s->sent_first : &s->transfers[s->sent_last].next) = id;
    s->sent_last = id;
}

static void sent_remove(struct fair_share *s, uint32_t id)
{
    struct fair_share_transfer *t = &s->transfers[id];
    *(t->prev == NONE ? &s->sent_first : &s->transfers[t->prev].next) = t->next;
    *(t->next == NONE ? &s->sent_last : &s->transfers[t->next].prev) = t->prev;
}

/* Brings the state to `now`. */
static void advance(struct fair_share *s, int64_t now)
{
    assert(now >= s->now_ps);
    while (s->n_heap) {
        int64_t t = finish_ps(s);
        if (t > now)
            break;
        serve_until(s, t);
        uint32_t id = s->heap[0];
        heap_remove(s, 0);
        sent_push(s, id);
    }
    serve_until(s, now);
}

/* After a change. Whoever is in its latency left before those that still send. */
static void reschedule(struct fair_share *s)
{
    if (s->sent_first != NONE)
        s->next_ps = s->transfers[s->sent_first].arrive_ps;
    else
        s->next_ps = s->n_heap ? later(finish_ps(s), (u128)s->latency_ps) : PS_NEVER;
}

/* ---- transfers */

static uint32_t transfer_new(struct fair_share *s)
{
    uint32_t id = s->free_first;
    if (id != NONE) {
        s->free_first = s->transfers[id].next;
        return id;
    }
    MEM_GROW(s->transfers, s->transfers_cap, s->n_transfers + 1);
    return s->n_transfers++;
}

static void transfer_free(struct fair_share *s, uint32_t id)
{
    s->transfers[id].pos = POS_FREE;
    s->transfers[id].next = s->free_first;
    s->free_first = id;
}

uint32_t fair_share_add(struct fair_share *s, int64_t now, uint64_t bytes, uint32_t handle)
{
    advance(s, now);
    uint32_t id = transfer_new(s);
    bytes = bytes < FAIR_SHARE_MAX_BYTES ? bytes : FAIR_SHARE_MAX_BYTES;
    s->transfers[id] =
        (struct fair_share_transfer){.finish = s->received + (u128)bytes * UNITS_PER_BYTE,
                                     .order = s->order++,
                                     .handle = handle};
    if (!s->bytes_per_s) {
        sent_push(s, id);
    } else {
        MEM_GROW(s->heap, s->heap_cap, s->n_heap + 1);
        s->n_heap++;
        heap_place(s, s->n_heap - 1, id);
    }
    reschedule(s);
    return id;
}

void fair_share_cancel(struct fair_share *s, int64_t now, uint32_t transfer)
{
    assert(transfer < s->n_transfers && s->transfers[transfer].pos != POS_FREE);
    advance(s, now);
    if (s->transfers[transfer].pos == POS_SENT)
        sent_remove(s, transfer);
    else
        heap_remove(s, s->transfers[transfer].pos);
    transfer_free(s, transfer);
    reschedule(s);
}

int64_t fair_share_next_ps(const struct fair_share *s)
{
    return s->next_ps;
}

bool fair_share_pop(struct fair_share *s, int64_t now, uint32_t *handle)
{
    if (now < s->next_ps || s->next_ps == PS_NEVER)
        return false;
    advance(s, now);
    uint32_t id = s->sent_first;
    sent_remove(s, id);
    *handle = s->transfers[id].handle;
    transfer_free(s, id);
    reschedule(s);
    return true;
}
