/* foreign.h - what other controllers say that they have in flight, added up by worker. I/O-free.
 *
 *   struct dispatches of controller A ──┐
 *   struct dispatches of controller B ──┼──► by controller and worker ──► totals by worker ──► CORE_EV_FOREIGN
 *   time: leases run out              ──┘
 *
 * Messages carry totals, so one that is lost is made good by the next; a controller that says nothing for its lease has
 * nothing in flight any more. Time is the caller's, in ms, and never runs back.
 */
#ifndef WEIR_FOREIGN_H
#define WEIR_FOREIGN_H

#include "controller/core/core.h"
#include "controller/state/record.h"

#define FOREIGN_MAX_CONTROLLERS 64u /* beyond: not taken into account, and counted */

struct foreign;

/* Worker numbers are the caller's, below n_workers. NULL: out of memory. */
struct foreign *foreign_new(uint32_t n_workers);
void foreign_free(struct foreign *f);

/* The number of the worker of that name; n_workers or more: none of ours. */
typedef uint32_t (*foreign_index_fn)(void *user, const char *worker);

/* A message has come. 0; WEIR_E_LIMIT: FOREIGN_MAX_CONTROLLERS (or no memory for one more); WEIR_E_INVALID: older than
 * one that was taken (a repeat). *gap: messages of that controller are missing before it. */
WEIR_NODISCARD int foreign_take(struct foreign *f, const struct dispatches *d, uint64_t now_ms,
                                foreign_index_fn index, void *user, bool *gap);
/* Forgets controllers whose lease has run out. */
void foreign_expire(struct foreign *f, uint64_t now_ms);

/* The next worker whose total has changed since it was last given here; false: none. */
bool foreign_changed(struct foreign *f, uint32_t *worker, struct core_load *total);

/* Now: controllers that are known, and requests of all of them. */
uint32_t foreign_controllers(const struct foreign *f);
uint64_t foreign_requests(const struct foreign *f);

#endif
