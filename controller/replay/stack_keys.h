/* stack_keys.h - the one table of everything a stack or a profile file can say.
 *
 * Each row names a key, its type, unit, range, default and meaning, and where its value lives. Loading,
 * validation, defaults, `--set`, printing and the reference all walk this table; a new key is one new
 * row (and a field). Keys are written with underscores; readers also take an engine's own spelling
 * with dashes (--max-num-seqs) and the aliases of a row.
 */
#ifndef WEIR_STACK_KEYS_H
#define WEIR_STACK_KEYS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "controller/config/keys.h"
#include "controller/replay/stack.h"

/* Where a key may stand, and what its offset counts from. */
enum key_scope {
    SCOPE_STACK,   /* top level, or one section down ("slo.ttft_ms"): struct stack */
    SCOPE_POOL,    /* pools[]: struct stack_pool */
    SCOPE_ENGINE,  /* pools[].engine: struct engine_config */
    SCOPE_STEP,    /* pools[].step and a profile's step: struct step_params */
    SCOPE_FAULT,   /* faults[]: struct fault */
    SCOPE_PROFILE, /* top level of a profile file: struct profile */
    SCOPE_COUNT
};

/* What a profile file holds. */
struct profile {
    char source[STACK_PATH_BYTES], model[STACK_PATH_BYTES], system[STACK_NAME_BYTES];
    char engine[STACK_NAME_BYTES], version[STACK_NAME_BYTES], precision[STACK_NAME_BYTES];
    uint32_t tp, gpus;
    uint64_t kv_bytes_per_token;
    struct step_params step;
};

extern const struct key stack_keys[];
extern const unsigned n_stack_keys;
extern const struct key_table stack_table;
#define STACK_KEYS_MAX 128 /* n_stack_keys is below this: sizes per-mapping tables */

/* The YAML path of a scope, for messages: "", "pools[]", "pools[].engine" ... */
const char *scope_path(enum key_scope scope);

/* Finds a key of a scope by name, alias or dashed spelling; prefix ("slo.") is put before the name.
 * *negated: the alias stands for the opposite. NULL: none such. */
const struct key *key_find(enum key_scope scope, const char *prefix, const char *name,
                           bool *negated);

/* What to do about an unknown key: "did you mean x?" or the keys there are, in out (n bytes). */
void key_suggest(enum key_scope scope, const char *prefix, const char *name, char *out, size_t n);

/* Applies the table's defaults of one scope. */
void key_defaults(enum key_scope scope, void *base);

#endif
