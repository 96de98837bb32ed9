/* fit.h - step-time coefficients from what an engine shows from outside.
 *
 * Step times are rarely recorded; the time of each request's first and last token is. The fit looks for the
 * coefficients of the linear form (DESIGN 4) with which a simulated engine, given the same limits and the same
 * arrivals, gives those times: every pass, queue, preemption and chunk in between is simulated, nothing is
 * approximated by averages.
 *
 * How: with the schedule held, each of those times is a sum of the coefficients times known amounts of work
 * (fit_ledger.h), so the best coefficients are a linear least-squares problem (least_squares.h); with them the
 * recording is played again, which gives the next schedule, and so on (Gauss-Newton, with shorter steps
 * where a full one does not lower the true error). From several starts, and a pattern search at the end, because
 * the true error has small jumps where a request is admitted one pass earlier.
 *
 * Residuals of one request, all relative (to the measured time and FIT_SLACK_PS on top, so that the milliseconds
 * of a short time do not outweigh the seconds of a long one): time to first token, time from first to last
 * token (counted FIT_DECODE_WEIGHT times), arrival to last token (FIT_E2E_WEIGHT times); outliers count less. All
 * coefficients stay >= 0: a step does not get shorter by having more to do. One recording often cannot tell
 * W, d0 and k apart (B and K grow together); a prior - a profile of the same model elsewhere, or the roofline -
 * decides there, and fades where the data do.
 *
 * Only requests marked `use` say anything about the answer; the others' arrivals and lengths are part of the
 * load, their times are not looked at. So one half of a recording can be held out.
 */
#ifndef WEIR_FIT_H
#define WEIR_FIT_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/cluster.h"

#define FIT_MAX_REQUESTS 1000000u
#define FIT_SLACK_PS (50 * PS_PER_MS)
#define FIT_DECODE_WEIGHT 3.0
#define FIT_E2E_WEIGHT 2.0
#define FIT_OUTLIER 0.05 /* relative error beyond which a residual counts less */

struct fit_request {
    struct request_spec
        spec; /* arrival_ps: as the client saw it, in order; output_tok: as it came out */
    int64_t first_token_ps, last_token_ps; /* measured, same clock; < 0: not known */
    bool use;                              /* its measured times count */
};

/* One recording of one worker. */
struct fit_case {
    struct worker_config worker; /* its limits; the step model in it is not used */
    const struct fit_request *requests;
    uint32_t n;
};

struct fit_times {
    int64_t first_token_ps, last_token_ps; /* < 0: never, the worker refuses it */
    uint32_t preemptions;
};

/* Plays the whole recording against the step model. out: one entry per request. 0, WEIR_E_NOMEM, or
 * WEIR_E_INVALID (limits or coefficients that are out of range). */
WEIR_NODISCARD int fit_predict(const struct fit_case *c, const struct step_params *step,
                               struct fit_times *out);

/* Which coefficients are searched; the others stay as they are in step. */
enum fit_unknown {
    FIT_W = 1,
    FIT_D0 = 2,
    FIT_K = 4,
    FIT_P = 8,
    FIT_Q = 16,
    FIT_EXPERTS = 32, /* the experts' share of W; only with moe_experts set */
    FIT_MIX = 64,
    FIT_ALL = 127,
};

struct fit_options {
    unsigned unknowns; /* of enum fit_unknown */
    const struct step_params
        *prior; /* NULL: none. A coefficient that is 0 there says nothing, but mix */
};

struct fit_result {
    double cost; /* sum of the (robust) squares of all residuals, per request used */
    uint32_t plays, used;
};

/* step: in: the linear form, what is not searched, moe_experts and moe_active. Out: the fit. 0, WEIR_E_NOMEM,
 * WEIR_E_INVALID (as ledger_play; no request to use; more than FIT_MAX_REQUESTS; not in order of arrival). */
WEIR_NODISCARD int fit_step(const struct fit_case *c, const struct fit_options *options,
                            struct step_params *step, struct fit_result *out);

#endif
