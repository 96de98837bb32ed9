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

#include "controller/replay/stack.h"
#include "controller/replay/yaml_tree.h"

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

enum key_type {
    KEY_BOOL,
    KEY_U32,
    KEY_U64,
    KEY_REAL,   /* double */
    KEY_MS,     /* int64_t picoseconds, written in milliseconds */
    KEY_CHOICE, /* enum, words of `choices` in order */
    KEY_TEXT,   /* char[cap] */
    KEY_REALS,  /* double[cap], its length at count_offset (0: list of any length <= cap) */
    KEY_GRID,   /* rows of KEY_REALS, all of one length, row after row without gaps */
    KEY_INNER,  /* a mapping or list with keys of its own */
};

struct key {
    enum key_scope scope;
    enum key_type type;
    const char *name;
    const char *aliases; /* words; "!word" is the opposite of a boolean; NULL: none */
    const char *unit;    /* NULL: none */
    double min, max;     /* numbers, elements; KEY_TEXT: min is the least length */
    bool none;           /* KEY_MS: `none` is allowed (PS_NEVER) */
    const char *choices;
    const char *def; /* as written in YAML; NULL: see default_note, or the engine's own default */
    const char *default_note; /* reference only: "required" and the like */
    unsigned only;            /* bits of sched_kind or step_form it matters to; 0: all */
    size_t offset, cap, count_offset;
    const char *help;
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
#define STACK_KEYS_MAX 128 /* n_stack_keys is below this: sizes per-mapping tables */

/* The YAML path of a scope, for messages: "", "pools[]", "pools[].engine" ... */
const char *scope_path(enum key_scope scope);

/* Finds a key of a scope by name, alias or dashed spelling; prefix ("slo.") is put before the name.
 * *negated: the alias stands for the opposite. NULL: none such. */
const struct key *key_find(enum key_scope scope, const char *prefix, const char *name,
                           bool *negated);

/* What to do about an unknown key: "did you mean x?" or the keys there are, in out (n bytes). */
void key_suggest(enum key_scope scope, const char *prefix, const char *name, char *out, size_t n);

/* Reads a node into base + offset. `where` ("file:line: path") starts the message. 0 or
 * WEIR_E_INPUT. */
WEIR_NODISCARD int key_read(const struct key *k, void *base, const struct ytree_node *n,
                            bool negated, const char *where, char *error);

/* Applies the table's defaults of one scope. */
void key_defaults(enum key_scope scope, void *base);

/* Prints the value as YAML that key_read reads back. */
void key_print(FILE *out, const struct key *k, const void *base);

/* Whether two structs of the key's scope hold the same value. */
bool key_same(const struct key *k, const void *a, const void *b);

/* A double in the fewest digits that read back the same. */
void print_real(FILE *out, double v);
void print_quoted(FILE *out, const char *text);

#endif
