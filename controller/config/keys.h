/* keys.h - tables of keys: everything that a kind of YAML file can say, one row each.
 *
 * A row names a key, its type, unit, range, default and meaning, and where its value lives. Loading,
 * validation, defaults, options of the command line, printing and the reference all walk the table; a new key is one
 * new row (and a field). Keys are written with underscores; readers also take dashes (--max-num-seqs) and the
 * aliases of a row. Tables: replay/stack_keys.c, serve/config_keys.c.
 */
#ifndef WEIR_KEYS_H
#define WEIR_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "controller/config/words.h"
#include "controller/config/yaml_tree.h"

enum key_type {
    KEY_BOOL,
    KEY_U32,
    KEY_I32,
    KEY_U64,
    KEY_REAL,   /* double */
    KEY_MS,     /* int64_t picoseconds, written in milliseconds */
    KEY_CHOICE, /* enum, words of `choices` in order */
    KEY_TEXT,   /* char[cap] */
    KEY_TEXTS,  /* char[cap][max], a list of at most cap texts; how many: at count_offset */
    KEY_REALS,  /* double[cap], its length at count_offset (0: list of any length <= cap) */
    KEY_GRID,   /* rows of KEY_REALS, all of one length, row after row without gaps */
    KEY_INNER,  /* a mapping or list with keys of its own */
};

struct key {
    int scope; /* of the table */
    enum key_type type;
    const char *name;    /* "section.key" for one that is a level down */
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
    const char *option; /* its name on the command line, without "--"; NULL: none */
    char letter;        /* and its short form; 0: none */
    bool fixed;         /* a running process cannot take a change of it */
};

/* Scopes are numbers from 0: what a row's offset counts from. */
struct key_table {
    const struct key *keys;
    unsigned n;
    const char *const *paths; /* by scope, the YAML path for messages: "", "pools[]" ... */
    int apart;                /* a scope that is another kind of file; -1: none */
    const char *lists_all;    /* the command that does */
    /* What to do about a key that is none of the table's, but often written; NULL: nothing special. May be NULL. */
    const char *(*advice)(int scope, const char *name);
};

/* "--max-num-seqs" and "max-num-seqs" are max_num_seqs. Too long for any key: "". */
void key_plain_name(const char *name, char out[WORD_BYTES]);

/* Finds a key of a scope by name, alias or dashed spelling; prefix ("slo.") is put before the name.
 * *negated: the alias stands for the opposite. NULL: none such. */
const struct key *keys_find(const struct key_table *t, int scope, const char *prefix,
                            const char *name, bool *negated);

/* What to do about an unknown key: "did you mean x?" or the keys there are, in out (n bytes). */
void keys_suggest(const struct key_table *t, int scope, const char *prefix, const char *name,
                  char *out, size_t n);

/* Applies the table's defaults of one scope. */
void keys_defaults(const struct key_table *t, int scope, void *base);

/* What a value may be, in a few words: "whole 0..100 retries". */
void key_print_type(FILE *out, const struct key *k);

/* Reads a node into base + offset. `where` ("file:line: path") starts the message. 0 or
 * WEIR_E_INPUT. */
WEIR_NODISCARD int key_read(const struct key *k, void *base, const struct ytree_node *n,
                            bool negated, const char *where, char *error);

/* Prints the value as YAML that key_read reads back. */
void key_print(FILE *out, const struct key *k, const void *base);

/* Whether two structs of the key's scope hold the same value. */
bool key_same(const struct key *k, const void *a, const void *b);

/* Copies the value from one struct of the key's scope to another. Not of lists of texts. */
void key_copy(const struct key *k, void *to, const void *from);

/* A double in the fewest digits that read back the same. */
void print_real(FILE *out, double v);
void print_quoted(FILE *out, const char *text);

/* ---- whole files ---- */

#define KEYS_WHERE_BYTES 512
#define KEYS_PATH_BYTES 192
#define KEYS_MAX 192 /* rows of a table */

/* What the reading of one file carries around. */
struct keys_file {
    const struct key_table *table;
    const char *name; /* of the file, for messages */
    char *error;      /* YTREE_ERROR_BYTES */
    void *user;
};

/* "file:line: path.key" for the start of a message; key may be "". Returns out. */
const char *keys_where(const struct keys_file *f, const struct ytree_node *n, const char *path,
                       const char *key, char out[KEYS_WHERE_BYTES]);

/* "file:line: path: " and the message into f->error; WEIR_E_INPUT. */
int keys_fail(const struct keys_file *f, const struct ytree_node *n, const char *path,
              const char *fmt, ...) __attribute__((format(printf, 4, 5)));

typedef int keys_inner(struct keys_file *f, const struct key *k, const struct ytree_node *n,
                       void *base, const char *path);

/* Reads a mapping whose keys are rows of one scope, each at most once, into base; `inner` reads those that have
 * keys of their own (KEY_INNER). 0, WEIR_E_INPUT or what inner returns. */
WEIR_NODISCARD int keys_read_map(struct keys_file *f, int scope, const char *prefix,
                                 const struct ytree_node *map, void *base, const char *path,
                                 keys_inner *inner);

#endif
