/* tokens.c - see tokens.h. */
#include "controller/serve/tokens.h"

#include <string.h>

#include <xxhash.h>

/* Below this a template's own tokens outweigh the text's. */
#define LEARN_MIN_TOK 32u

void tokens_init(struct tokens *t, double default_bytes_per_tok)
{
    memset(t, 0, sizeof *t);
    t->default_bytes = default_bytes_per_tok;
}

uint64_t tokens_model(const char *name)
{
    return XXH3_64bits(name, strlen(name));
}

static uint32_t find(const struct tokens *t, uint64_t model)
{
    uint32_t i = 0;
    while (i < t->n && t->models[i].model != model)
        i++;
    return i;
}

uint32_t tokens_estimate(const struct tokens *t, uint64_t model, uint64_t bytes)
{
    uint32_t i = find(t, model);
    double per = i < t->n ? t->models[i].bytes : t->default_bytes, tok = (double)bytes / per + 0.5;
    return tok < 1 ? 1 : tok > (double)UINT32_MAX ? UINT32_MAX : (uint32_t)tok;
}

void tokens_learn(struct tokens *t, uint64_t model, uint64_t bytes, uint32_t prompt_tok)
{
    double per = (double)bytes / (prompt_tok ? prompt_tok : 1);
    if (prompt_tok < LEARN_MIN_TOK || per < TOKENS_MIN_BYTES || per > TOKENS_MAX_BYTES)
        return;
    uint32_t i = find(t, model);
    if (i == t->n) {
        if (t->n == TOKENS_MAX_MODELS)
            return;
        t->models[t->n++].model = model;
        t->models[i].bytes = per;
        t->models[i].seen = 0;
    }
    uint32_t n = ++t->models[i].seen;
    t->models[i].bytes += (per - t->models[i].bytes) / (n < TOKENS_MEMORY ? n : TOKENS_MEMORY);
}
