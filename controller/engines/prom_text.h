/* prom_text.h - reads the Prometheus text exposition format (0.0.4) and what OpenMetrics adds to it, a sample at a
 * time, from memory. Comments, types, exemplars and timestamps are passed over. No I/O, no allocation.
 * Format: the Prometheus project's "Exposition formats" page.
 */
#ifndef WEIR_PROM_TEXT_H
#define WEIR_PROM_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROM_MAX_LABELS 32u /* of one sample; a sample with more counts as malformed */

struct prom_slice {
    const char *s;
    size_t len;
};

struct prom_sample {
    struct prom_slice name;
    uint32_t n_labels;
    struct prom_slice label[PROM_MAX_LABELS],
        value_of[PROM_MAX_LABELS]; /* values as written, escapes and all */
    double value;                  /* may be NaN or infinite */
};

struct prom_reader {
    const char *at, *end;
    uint64_t malformed; /* lines that were passed over because they are no samples */
};

void prom_open(struct prom_reader *r, const char *text, size_t len);

/* The next sample; false at the end. A malformed line is counted and passed over; the last line counts only
 * if it is whole (ends with a line break), since a cut answer may have lost the end of its number. */
bool prom_next(struct prom_reader *r, struct prom_sample *s);

/* The value of a label; len 0 and s NULL if it is not there. */
struct prom_slice prom_label(const struct prom_sample *s, const char *name);

bool prom_is(const struct prom_sample *s, const char *name);
/* A label's value as a whole number. False: not there, or none. */
bool prom_label_count(const struct prom_sample *s, const char *name, uint64_t *out);

#endif
