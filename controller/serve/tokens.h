/* tokens.h - how many tokens a prompt of so many bytes has, by model: learned from the engines' own usage, since the
 * path has no tokenizer. A running mean of bytes per token, weighted by tokens, that forgets: TOKENS_MEMORY prompts
 * back counts 1/e. One table a thread; no locks.
 */
#ifndef WEIR_TOKENS_H
#define WEIR_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#define TOKENS_MAX_MODELS 256u /* later ones share the default */
#define TOKENS_MEMORY 64
/* Ratios outside are not believed (a prompt that is mostly an image, a template longer than the text). */
#define TOKENS_MIN_BYTES 1.0
#define TOKENS_MAX_BYTES 16.0

struct tokens {
    double default_bytes; /* a token */
    uint32_t n;
    struct {
        uint64_t model; /* hash */
        double bytes;   /* a token */
        uint32_t seen;
    } models[TOKENS_MAX_MODELS];
};

void tokens_init(struct tokens *t, double default_bytes_per_tok);

/* Hash of a model's name for the calls below. */
uint64_t tokens_model(const char *name);

/* At least 1. */
uint32_t tokens_estimate(const struct tokens *t, uint64_t model, uint64_t bytes);

/* An engine counted prompt_tok tokens in a prompt of so many bytes of text (text only: others would mislead). */
void tokens_learn(struct tokens *t, uint64_t model, uint64_t bytes, uint32_t prompt_tok);

#endif
