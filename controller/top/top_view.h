/* top_view.h - the page of `weir top`: from the JSON of /admin/state to lines of text. No I/O. */
#ifndef WEIR_TOP_VIEW_H
#define WEIR_TOP_VIEW_H

#include <stddef.h>
#include <stdio.h>

#include "predictor/error.h"

#define TOP_MIN_WIDTH 80 /* the page is made for it; what is wider stays empty */

struct top_view {
    const char *address; /* whose state it is */
    double rate;         /* requests a second since the last look; < 0: not known */
    int height; /* lines; workers and decisions that do not fit are counted instead. 0: no limit */
};

/* Lines of at most TOP_MIN_WIDTH columns to out, each ended by '\n'; those that begin with a space or hold figures are plain,
 * titles begin with a letter or '#'. 0, or WEIR_E_INPUT: this is no state of weir serve (nothing is written). Names of
 * workers and models come from others: what is no printable ASCII becomes '?'. */
WEIR_NODISCARD int top_view_write(FILE *out, const struct top_view *v, const char *json,
                                  size_t len);

/* Requests that the state counts since weir's start; < 0: no such state. For rates. */
double top_view_requests(const char *json, size_t len);

#endif
