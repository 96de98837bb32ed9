/* gen.h - synthetic traces: arrivals, lengths, tenants, sessions and shared prefixes from one seed,
 * written as Mooncake JSONL (controller/replay/trace.h reads it back).
 *
 * Same options, same bytes, on every machine: all draws are integer arithmetic (fixed point; logarithm
 * and power by squaring and by integer square roots), since libm's last bits differ between versions
 * and compilers may fuse floating-point operations. Options are doubles, each converted once.
 *
 * Sessions: first turns have timestamps; later turns carry session_id and delay (think time) instead
 * and stand right behind the first, so that whoever reads the trace in order knows of each turn when the
 * answer before it ends. In mooncake format each turn repeats the whole history's hash_ids (blocks that
 * were full keep their id; the answers have ids of their own); in mooncake-delta it brings only its new
 * input, and answers are reused as an engine does.
 *
 * Memory: one row, and the ids of one session's history.
 */
#ifndef WEIR_GEN_H
#define WEIR_GEN_H

#include <stdint.h>
#include <stdio.h>

#include "predictor/error.h"

#define GEN_ERROR_BYTES 256
#define GEN_TENANTS_MAX 100000u
#define GEN_PREFIX_GROUPS_MAX 100000u
#define GEN_CONTEXT_MAX (1u << 24)

enum gen_arrivals {
    GEN_POISSON,
    GEN_CONSTANT,
    GEN_MMPP,    /* Poisson whose rate switches between calm and burst, exponential dwell times */
    GEN_DIURNAL, /* Poisson whose rate follows a wave of one day (Bhaskara's sine, error < 0.2 %) */
};

struct gen_length {
    double median_tok; /* of a lognormal; the length itself if sigma is 0 */
    double sigma;      /* of the logarithm */
};

struct gen_options {
    double rate;       /* mean requests a second, later turns included; > 0 */
    double minutes;    /* stop then (turns that think times alone put behind it are left out), or */
    uint64_t requests; /* stop after so many; exactly one of the two is not 0 */
    uint64_t seed;

    enum gen_arrivals arrivals;
    double burst_factor, burst_share,
        burst_dwell_s;                 /* MMPP: rate in bursts over mean rate, share of
                                                      * time in bursts, mean length of one */
    double day_minutes, day_amplitude; /* DIURNAL: 0..1 */

    uint32_t tenants;           /* 0: no tenant field; shares are Zipf (exponent 1) */
    double turns_mean, think_s; /* turns are geometric, think times exponential; 1: no sessions */
    uint32_t prefix_groups,
        prefix_tok;                  /* first prefix_tok tokens of a prompt are its group's (whole
                                         * blocks); by tenant if there are tenants, else Zipf */
    struct gen_length input, output; /* input: without prefix and history */
    uint32_t max_context_tok;        /* prompt + output; longer draws are cut, sessions end there */
    uint32_t block_tok;
    int delta; /* mooncake-delta */
};

/* rate 1, Poisson, input lognormal 1024/1.0, output lognormal 200/0.8, block 512, context 131072, one
 * turn, no tenants, no prefix; neither minutes nor requests. */
void gen_defaults(struct gen_options *opt);

/* 0; WEIR_E_INVALID (error names the option), WEIR_E_LIMIT (too few requests in 53 days, none in the time given), WEIR_E_NOMEM or
 * WEIR_E_IO (out refused). error: GEN_ERROR_BYTES. */
WEIR_NODISCARD int gen_run(const struct gen_options *opt, FILE *out, char *error);

#endif
