/* fit_ledger.h - a recording played pass by pass, with the account of what each request's time was made of.
 *
 * With the linear step form, the time of every pass is a sum of coefficients times amounts of work (one pass, B
 * requests, K tokens of KV ...). So the time from a request's arrival to its first token, and from there to its
 * last, is a sum of the same coefficients times the work of the passes in between - exactly, as long as the
 * schedule stays what it is. The ledger keeps those amounts; a fit that holds the schedule for one
 * iteration is then a linear problem.
 *
 * Times equal those of the engine that takes its passes by itself (tests hold that).
 */
#ifndef WEIR_FIT_LEDGER_H
#define WEIR_FIT_LEDGER_H

#include "controller/replay/fit.h"

/* Amounts of work, and the coefficient that each belongs to. */
enum ledger_item {
    LEDGER_PASS,      /* W without experts */
    LEDGER_DECODE,    /* d0: B */
    LEDGER_CONTEXT,   /* k: K */
    LEDGER_PREFILL,   /* p: sum n */
    LEDGER_ATTENTION, /* q: sum n * (c + n / 2) */
    LEDGER_EXPERTS,   /* the experts' part of W: share of them that is read */
    LEDGER_MIX,       /* K of passes that prefill */
    LEDGER_ITEMS
};

struct ledger_entry {
    struct fit_times times;
    double wait[LEDGER_ITEMS];   /* from arrival to first token */
    double decode[LEDGER_ITEMS]; /* from first to last token */
};

/* The coefficients of a linear step, in the order of the items, and back. ms each. */
void ledger_coefficients(const struct step_params *step, double c[LEDGER_ITEMS]);
void ledger_set_coefficients(struct step_params *step, const double c[LEDGER_ITEMS]);

/* out: one entry per request. 0, WEIR_E_NOMEM or WEIR_E_INVALID (as fit_predict; also a form that is not
 * linear, speculation, prefill_floor_ms: they are not sums). */
WEIR_NODISCARD int ledger_play(const struct fit_case *c, const struct step_params *step,
                               struct ledger_entry *out);

#endif
