/* fair_share.h - transfers that share one link's bandwidth equally (processor sharing).
 *
 * A transfer of b bytes takes latency + the time in which its share of the bandwidth adds up to b: with n
 * transfers in flight each gets 1/n (max-min fairness of equal flows on one link, as in flow-level
 * network models; engine-model.md 3.1). A transfer in its latency, after its last byte left, takes no
 * bandwidth.
 *
 * Fluid, in integers: bytes are counted in units of 10^-12 byte, so that bytes/s * ps is a whole number;
 * what a division by n leaves over goes to the next interval, and a finish is rounded up to a whole
 * picosecond. Same calls, same times, on every machine. Every operation is O(log n).
 *
 * Time never runs back: `now` is at least that of the call before. Not thread-safe; a caller that needs a
 * copy uses fair_share_copy.
 */
#ifndef WEIR_FAIR_SHARE_H
#define WEIR_FAIR_SHARE_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/error.h"

/* Largest bytes of one transfer (64 PiB) and bandwidth: keeps 128-bit sums from overflowing. */
#define FAIR_SHARE_MAX_BYTES (UINT64_C(1) << 56)
#define FAIR_SHARE_MAX_GB_S 1e6

struct fair_share_transfer {
    unsigned __int128 finish; /* share received, in units per transfer, when its last byte leaves */
    uint64_t order;           /* of being added: breaks ties */
    int64_t arrive_ps;        /* in its latency: when it arrives */
    uint32_t handle;
    uint32_t pos;        /* in heap, or a mark for the other states */
    uint32_t prev, next; /* in its latency: neighbours in order of arrival; free: next free one */
};

struct fair_share {
    uint64_t bytes_per_s; /* 0: no limit */
    int64_t latency_ps;
    bool
        unshared; /* every transfer has the whole bandwidth; for the caller to set before the first one */
    int64_t now_ps;             /* state as of then */
    int64_t next_ps;            /* when the next transfer arrives */
    unsigned __int128 received; /* by a transfer that was always there */
    uint64_t left_over;         /* of the last division by n_heap */
    uint64_t order;
    struct fair_share_transfer *transfers; /* by id */
    uint32_t n_transfers, transfers_cap, free_first;
    uint32_t *heap, n_heap, heap_cap; /* sending, by (finish, order) */
    uint32_t sent_first, sent_last;   /* in their latency, in order of arrival */
};

/* bandwidth_gb_s: 10^9 bytes per second; 0: no limit. latency_ps >= 0. Returns 0 or WEIR_E_INVALID
 * (negative, not finite, or above FAIR_SHARE_MAX_GB_S). */
WEIR_NODISCARD int fair_share_init(struct fair_share *s, double bandwidth_gb_s, int64_t latency_ps);
void fair_share_deinit(struct fair_share *s);

/* dst, initialised, becomes as src. 0 or WEIR_E_NOMEM (dst is then as before). */
WEIR_NODISCARD int fair_share_copy(struct fair_share *dst, const struct fair_share *src);

/* Starts a transfer; more than FAIR_SHARE_MAX_BYTES count as that many. Returns its id, valid until it is
 * popped or cancelled. `handle` comes back from fair_share_pop. */
uint32_t fair_share_add(struct fair_share *s, int64_t now, uint64_t bytes, uint32_t handle);

void fair_share_cancel(struct fair_share *s, int64_t now, uint32_t transfer);

/* When the next transfer arrives if none is added or cancelled before, PS_LIMIT at the latest; PS_NEVER: none
 * is there. */
int64_t fair_share_next_ps(const struct fair_share *s);

/* Takes out a transfer that has arrived by now, in order of arrival; false: none. */
bool fair_share_pop(struct fair_share *s, int64_t now, uint32_t *handle);

#endif
