/* fairness.h - whose turn it is: deficit round robin between tenants, within one priority.
 *
 * Internal to the core. Source: Shreedhar and Varghese, Efficient fair queueing using deficit round robin,
 * SIGCOMM 1995: in every round a tenant may use its weight times a quantum, and what it did not need for
 * the request at its head it keeps for the next round, as long as it has requests waiting. A request's cost
 * is known when it enters, so the round in which its turn will come is known then as well; this module
 * says which round that is, and the queue (hold_queue.h) is kept in order of rounds, within a round in
 * order of arrival. A tenant alone gets rounds that never fall, that is, first come, first served.
 *
 * What a request costs is counted in tokens of prefill: prompt tokens that are not cached, and
 * FAIR_OUTPUT_COST for each token of the answer (Sheng et al., Fairness in serving large language models,
 * OSDI 2024, section 4.2: weights 1 and 2, after the prices that are asked for them). An answer's length
 * is guessed when the request enters; what it really was is settled when it is over, so that who asks for
 * little and takes much waits for it later.
 *
 * The bound: while two tenants of weights v and w have requests waiting, what they got, divided by v and
 * w, differs by at most a quantum and the largest cost of either, divided by its weight (the paper's
 * bound is of this kind); errors of the guess come on top until they are settled.
 *
 * History counts only while somebody of the priority waits: then all begin anew. Tenants are told apart by
 * (tenant, priority) up to FAIR_MAX_FLOWS; those beyond, while all of these have requests waiting, share
 * one turn as if they were one tenant.
 *
 * All calls are O(1) but for the table of priorities in use, which is searched, and moved when a
 * priority begins or ends.
 */
#ifndef WEIR_FAIRNESS_H
#define WEIR_FAIRNESS_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/core/core.h"

#define FAIR_MAX_FLOWS 4096u
#define FAIR_OUTPUT_COST 2u
/* Tokens of an answer, guessed before the first one is over: about the mean of the public chat traces
 * (Azure's conversations 2023: 211; Mooncake's: 343). */
#define FAIR_FIRST_OUTPUT_TOK 256u

/* One tenant in one priority. */
struct fair_flow {
    uint64_t tenant;
    uint64_t round;   /* of the last one that entered */
    int64_t left;     /* of that round's share; below 0: owed */
    uint64_t life;    /* of the band in which it last entered */
    uint32_t waiting; /* requests in the queue */
    uint32_t live;    /* requests with a place of this flow and life that are not over */
    uint32_t weight;
    uint32_t next;         /* in its bucket */
    uint32_t older, newer; /* among those with nothing waiting */
    int32_t priority;
};

/* A priority of which somebody waits. */
struct fair_band {
    int32_t priority;
    uint32_t waiting;
    uint64_t round;          /* the last one sent */
    uint64_t life;           /* a number that no other band has had */
    struct fair_flow others; /* of those beyond FAIR_MAX_FLOWS */
};

struct fair {
    uint64_t quantum;            /* 0: off */
    struct core_tenant *tenants; /* by id */
    uint32_t n_tenants;
    struct fair_flow *flows; /* [0]: none */
    uint32_t *buckets;
    uint32_t n_flows, flows_cap;
    uint32_t oldest, newest; /* with nothing waiting */
    struct fair_band *bands; /* by priority */
    uint32_t n_bands, bands_cap;
    uint64_t floor; /* the last round sent, of any priority: where a new band begins */
    uint64_t lives;
    uint64_t mean_output_16; /* 16 times the moving mean of answers' lengths */
};

/* A request's place, kept by it. */
struct fair_ticket {
    uint64_t round;
    uint64_t cost; /* charged when it entered; 0: not charged */
    uint64_t life; /* of the band when it was charged */
    uint32_t flow;
    bool live;    /* among its flow's */
    bool counted; /* among those of its flow that wait */
};

/* What core_config says of fairness; tenants are copied. 0, WEIR_E_NOMEM, or WEIR_E_INVALID with *why. On failure
 * there is nothing to deinit. */
WEIR_NODISCARD int fair_init(struct fair *f, const struct core_config *c, const char **why);
void fair_deinit(struct fair *f);

/* Other weights, from now on. As fair_init; on failure nothing has changed. */
WEIR_NODISCARD int fair_reweigh(struct fair *f, const struct core_config *c, const char **why);

/* What a request is expected to cost, if uncached_tok of its prompt have to be computed. */
uint64_t fair_cost(const struct fair *f, const struct core_request *r, uint32_t uncached_tok);

/* The place of a newcomer that need not wait, for the case that it is lost and has to. Charges nothing. */
void fair_pass(struct fair *f, const struct core_request *r, struct fair_ticket *t);
/* A newcomer begins to wait: charges cost to its tenant. */
void fair_enter(struct fair *f, const struct core_request *r, uint64_t cost, struct fair_ticket *t);
/* One that has its place already begins to wait again. */
void fair_return(struct fair *f, const struct core_request *r, struct fair_ticket *t);
/* It waits no longer; sent: its turn had come. */
void fair_leave(struct fair *f, const struct core_request *r, struct fair_ticket *t, bool sent);
/* It is over: it computed uncached_tok of its prompt and output_tok of an answer; done: to the end. */
void fair_settle(struct fair *f, const struct core_request *r, struct fair_ticket *t,
                 uint32_t uncached_tok, uint32_t output_tok, bool done);

#endif
