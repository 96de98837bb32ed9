/* yaml_tree.h - a small YAML document as a tree of nodes that know their lines.
 *
 * What stack, profile and serve files need and no more: one document, mappings with scalar keys, sequences,
 * scalars. Anchors, aliases, tags, a second document, nesting beyond YTREE_MAX_DEPTH, more nodes than
 * YTREE_MAX_NODES and anything that is not UTF-8 are refused, so that no input makes the tree
 * larger than a small multiple of the file. The tree owns copies of all text; ytree_deinit frees it
 * whole. Built on libyaml's events.
 */
#ifndef WEIR_YAML_TREE_H
#define WEIR_YAML_TREE_H

#include <stdbool.h>
#include <stddef.h>

#include "predictor/error.h"

#define YTREE_MAX_DEPTH 12
#define YTREE_MAX_NODES 1000000u
#define YTREE_MAX_BYTES (16u << 20) /* a larger file is refused */
#define YTREE_ERROR_BYTES 1024

enum ytree_kind { YTREE_SCALAR, YTREE_LIST, YTREE_MAP };

struct ytree_node {
    enum ytree_kind kind;
    bool quoted;              /* scalar written in quotes or as a block: never a number or none */
    unsigned line;            /* 1-based, of the node; in a map, of its key */
    const char *key;          /* in a map: the key's text; else NULL */
    const char *text;         /* scalar: its text, no NUL inside */
    struct ytree_node *first; /* list, map: children in order of the file */
    struct ytree_node *next;
};

struct ytree {
    struct ytree_node *root; /* NULL: the document is empty */
    struct ytree_chunk *chunks;
    unsigned n_nodes;
};

/* Parses text. 0, WEIR_E_INPUT or WEIR_E_NOMEM; error (YTREE_ERROR_BYTES) then holds one line that starts
 * with `name`. ytree_deinit frees in any case. */
WEIR_NODISCARD int ytree_parse(struct ytree *t, const char *name, const char *text, size_t len,
                               char *error);
void ytree_deinit(struct ytree *t);

/* Reads a whole file of at most max_bytes; *text is malloc'ed and NUL-terminated. 0, WEIR_E_IO,
 * WEIR_E_INPUT (too large, a directory) or WEIR_E_NOMEM, with the line in error. */
WEIR_NODISCARD int ytree_read_file(const char *path, size_t max_bytes, char **text, size_t *len,
                                   char *error);

/* Writes one line to error (YTREE_ERROR_BYTES): cut at the limit, control characters shown as '?'. */
void ytree_error(char *error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
