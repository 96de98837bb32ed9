/* fleet.h - what the core believes of its workers: who may take requests, what it has sent where, their
 * last telemetry, and who has which prefix. These are the books that policies are shown.
 *
 * Internal to the core. Lists of who can take a request now are kept as workers come, go and fill up, so
 * that a decision does not have to build them.
 */
#ifndef WEIR_FLEET_H
#define WEIR_FLEET_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/core/core.h"
#include "controller/core/health.h"
#include "controller/core/policy.h"
#include "controller/core/prefix_index.h"

#define FLEET_ROLES (ROLE_DECODE + 1)
/* Of a worker that are kept where guesses and events come together: a million tokens in blocks of 16, which is more than most
 * engines have room for; about 8 MiB a worker. */
#define FLEET_GUESS_BLOCKS 65536u

struct fleet_worker {
    bool up, draining, vacant; /* vacant: nobody has this place; draining, too */
    uint64_t capacity_tok;     /* prompt and answer of one request, at most */
    uint32_t life;             /* how many times it went down */
};

/* Tokens that the largest worker of each role takes; 0: there is none. */
struct fleet_reach {
    uint64_t ever[FLEET_ROLES];  /* of all */
    uint64_t hope[FLEET_ROLES];  /* of those that are up or may come up: all but the draining */
    uint64_t ready[FLEET_ROLES]; /* of those that are up and not draining */
};

struct fleet {
    uint32_t n;
    struct core_worker_config *config;
    struct fleet_worker *workers;
    struct fleet_reach reach;
    uint64_t
        smallest_tok; /* capacity of the smallest worker: whatever fits there needs no filter */
    uint32_t max_inflight; /* 0: no limit */
    struct health health;

    /* workers that can take a request now, ascending, by role */
    uint32_t *open[FLEET_ROLES], n_open[FLEET_ROLES];
    uint64_t open_tok[FLEET_ROLES]; /* capacity of the largest of them; 0: there is none */
    uint32_t *filtered[2];          /* lists made for one request */

    /* books, by worker: struct policy_view */
    uint32_t *inflight, *prefilling;
    uint64_t *prefill_tok, *inflight_tok;
    uint32_t *own;             /* of inflight: without other controllers' requests */
    struct core_load *foreign; /* those */
    struct core_telemetry *telemetry;

    enum policy_prefix knows; /* prefixes from where */
    bool guesses; /* what was sent somewhere is cached there (core_config.guess_cache) */
    struct prefix_index *index; /* NULL: knows is POLICY_PREFIX_NONE */
    uint32_t min_block_tok;     /* of the policy */
    uint32_t *block_tok;        /* by worker: size of the blocks that the index has of it */
    uint32_t *sizes, n_sizes;   /* those that there are */
    uint32_t *cached_tok;       /* by worker, of the request asked for; else 0 */
    uint32_t *touched, n_touched;
    uint32_t *scratch; /* for policies */
};

/* c's workers are followed by its spare ones, which n_workers counts here. 0, WEIR_E_NOMEM, or WEIR_E_INVALID with
 * *why. On failure there is nothing to deinit. */
WEIR_NODISCARD int fleet_init(struct fleet *f, const struct core_config *c,
                              const struct policy_ops *policy, const char **why);
void fleet_deinit(struct fleet *f);

/* Each returns whether anything changed. */
bool fleet_up(struct fleet *f, uint32_t w);
bool fleet_down(struct fleet *f,
                uint32_t w); /* forgets its telemetry and prefixes, keeps the books */
bool fleet_drain(struct fleet *f, uint32_t w);

/* A worker into a vacant place; one leaves its place, with nothing in flight there. */
void fleet_add(struct fleet *f, uint32_t w, const struct core_worker_config *c);
void fleet_vacate(struct fleet *f, uint32_t w);
/* What is wrong with a worker's config; NULL: nothing. */
const char *fleet_worker_fault(const struct core_worker_config *c);
/* As health_judge_by. */
void fleet_judge_by(struct fleet *f, const struct core_health_config *c);
/* As core_config.max_inflight_per_worker. */
void fleet_limit(struct fleet *f, uint32_t max_inflight);
/* Of all workers; 0: they differ, or there are none. */
uint32_t fleet_block_size(const struct fleet *f);

/* Time passes: ejected workers come back, outliers are ejected. Before anything else of an event. Returns whether any
 * did. */
bool fleet_tick(struct fleet *f, int64_t now_ps);
/* What became of a request on w: as health_good and health_bad. */
void fleet_good(struct fleet *f, uint32_t w, int64_t latency_ps, uint32_t uncached_tok);
void fleet_bad(struct fleet *f, uint32_t w);

/* Tokens that a request needs room for: with an unknown answer, one of it. */
static inline uint64_t fleet_need_tok(const struct core_request *r)
{
    return (uint64_t)r->prompt_tok + (r->max_tokens ? r->max_tokens : 1);
}

/* Workers of `role` that can take need_tok tokens now, ascending. `avoid` (CORE_NO_WORKER: nobody) is left
 * out as long as another such worker is up. The list may be in filtered[which], until that is used again. */
uint32_t fleet_candidates(struct fleet *f, enum worker_role role, uint64_t need_tok, uint32_t avoid,
                          int which, const uint32_t **list);

/* What the workers that are open can take of a new request, at most, or of one whose prefill is done: with no
 * worker to avoid, whatever needs that much or less can go, and nothing that needs more. */
uint64_t fleet_room_new(const struct fleet *f, bool destination_first);
uint64_t fleet_room_decode(const struct fleet *f);

/* Fills cached_tok for this request; fleet_forget_match makes it 0 again. */
void fleet_match(struct fleet *f, const struct core_request *r);
void fleet_forget_match(struct fleet *f);

/* Enters a request in worker's books; uncached_tok: what it is believed to have to prefill. */
void fleet_book(struct fleet *f, uint32_t w, const struct core_request *r, bool prefills,
                uint32_t uncached_tok);
/* Its prefill is over. */
void fleet_prefilled(struct fleet *f, uint32_t w, uint32_t uncached_tok);
/* It has left. */
void fleet_unbook(struct fleet *f, uint32_t w, const struct core_request *r);

/* Other controllers have this at w, in all: the books change by the difference. */
void fleet_foreign(struct fleet *f, uint32_t w, const struct core_load *load);

/* The request's prompt will be cached on w (if it guesses; else nothing happens). */
void fleet_guess_cached(struct fleet *f, uint32_t w, const struct core_request *r);
void fleet_cache_event(struct fleet *f, uint32_t w, const struct core_cache_event *ev);

#endif
