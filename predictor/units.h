/* units.h - the one clock unit of weir.
 *
 * Time is an int64_t count of picoseconds since the start of a simulation (or of a process). A
 * picosecond is fine enough that coefficients per token survive rounding (the smallest measured
 * KV-read cost is about 500 ps a token) and wide enough for 106 days. Sums of times are exact, which
 * is what makes fast-forward bit-identical to stepping.
 */
#ifndef WEIR_UNITS_H
#define WEIR_UNITS_H

#include <stdint.h>

#define PS_PER_NS INT64_C(1000)
#define PS_PER_US INT64_C(1000000)
#define PS_PER_MS INT64_C(1000000000)
#define PS_PER_S INT64_C(1000000000000)

/* Later than every event: "does not happen". */
#define PS_NEVER INT64_MAX

/* Largest time a caller may pass in (53 days): leaves room for sums. Inputs beyond are refused by
 * the loaders with an error. */
#define PS_LIMIT (INT64_MAX / 2)

/* Milliseconds to picoseconds, rounded to nearest (ties away from zero), no libm, same bits on
 * every machine. The caller keeps |ms| below PS_LIMIT / PS_PER_MS. */
static inline int64_t ps_from_ms(double ms)
{
    double ps = ms * 1e9;
    return (int64_t)(ps < 0 ? ps - 0.5 : ps + 0.5);
}

static inline double ms_from_ps(int64_t ps)
{
    return (double)ps / 1e9;
}

#endif
