/* forecast.h - when a request that is sent to a worker now will have its first token there, and how fast the others
 * will follow: predicted from how long a step takes (predictor/step.h) and from the core's own books, corrected by
 * what was seen of that worker.
 *
 *   work  = prompt tokens sent there that are not prefilled yet + this prompt's uncached ones
 *   steps = work / chunk, rounded up; each carries its share of the work beside all that decodes there
 *   TTFT  = half a step (the one that is running) + steps of equal length, times the worker's bias
 *   TPOT  = a step of all that is in flight there and this one, decoding; over the tokens that a step yields; times bias
 *
 * The bias of a worker is the ratio of two sums, what was measured over what the steps alone had predicted, over the
 * last FORECAST_MEMORY or so requests (each new one takes 1/FORECAST_MEMORY off the sums). It starts at 1, as if
 * FORECAST_PRIOR requests had been as predicted, stays within FORECAST_MAX_BIAS, and one request counts at most as
 * FORECAST_MAX_BIAS times its prediction. A ratio of sums, not a mean of ratios: long waits weigh more, and a
 * millisecond of the network on a short prompt does not double what is believed of a long one.
 *
 * What it is not. No simulation: it does not know who leaves before the request is through, the order in which the
 * engine prefills, preemption, the limit on running requests, waiting for KV blocks, what other controllers have sent, or
 * KV transfers between prefill and decode workers (a decode leg's first token is a step). Output lengths do not
 * enter. The bias takes in what these cost on average; the errors that remain are reported as metrics. No I/O, no
 * clock; one thread at a time.
 */
#ifndef WEIR_FORECAST_H
#define WEIR_FORECAST_H

#include <stdint.h>

#include "predictor/error.h"
#include "predictor/step.h"

#define FORECAST_MEMORY 32
#define FORECAST_PRIOR 4
#define FORECAST_MAX_BIAS 8.0
/* Prompt tokens of one step where the worker's max_num_batched_tokens is not known: vLLM's default on large GPUs
 (and DynoSim's: engine-model.md 1). Above FORECAST_MAX_CHUNK_TOK counts as not known. */
#define FORECAST_CHUNK_TOK 8192u
#define FORECAST_MAX_CHUNK_TOK 65536u

/* The step times that are assumed where none are given: Llama-3.1-8B in BF16 on one H100, as in a stack file without
 * a profile (fitted on 42 measured points of TensorRT-LLM 1.0.0rc3). Up to FORECAST_MAX_BIAS times slower or faster
 * workers are learned; others need a profile of their own. */
void forecast_generic(struct step_params *p);

/* The books of one worker, before the request is entered. */
struct forecast_books {
    uint32_t inflight, prefilling; /* requests there; of these, without a first token */
    uint64_t prefill_tok;          /* uncached prompt tokens of those that prefill */
    uint64_t inflight_tok;         /* prompt tokens of all */
    uint64_t total_kv_tok;         /* capacity; 0: not known */
    uint32_t chunk_tok;            /* max_num_batched_tokens; 0: not known */
};

enum forecast_leg { FORECAST_WHOLE, FORECAST_PREFILL, FORECAST_DECODE };

/* ps from the dispatch to the first token, and between later ones. steps_*: by the steps alone, for forecast_learn. */
struct forecast_times {
    int64_t ttft_ps, tpot_ps;
    int64_t steps_ttft_ps, steps_tpot_ps;
};

struct forecast_bias {
    double ttft, tpot;       /* 1: as the steps say */
    uint64_t n_ttft, n_tpot; /* requests learned from */
};

struct forecast;

/* n_workers, all with the generic steps. NULL: out of memory. */
struct forecast *forecast_new(uint32_t n_workers);
void forecast_free(struct forecast *f);
/* More workers: the new ones have generic steps. 0 or WEIR_E_NOMEM (nothing has changed). */
WEIR_NODISCARD int forecast_grow(struct forecast *f, uint32_t n_workers);
/* The steps of worker w, copied (a table's numbers stay the caller's); NULL: generic. Its bias starts anew. */
void forecast_set(struct forecast *f, uint32_t w, const struct step_model *m);

/* What a request with cached_tok of its prompt_tok tokens cached would see on w. */
void forecast_ask(const struct forecast *f, uint32_t w, const struct forecast_books *b,
                  enum forecast_leg leg, uint32_t prompt_tok, uint32_t cached_tok,
                  struct forecast_times *out);

/* What one saw that had been predicted. Durations <= 0 are passed over. */
void forecast_learn_ttft(struct forecast *f, uint32_t w, int64_t steps_ps, int64_t actual_ps);
void forecast_learn_tpot(struct forecast *f, uint32_t w, int64_t steps_ps, int64_t actual_ps);

struct forecast_bias forecast_bias_of(const struct forecast *f, uint32_t w);

#endif
