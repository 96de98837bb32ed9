/* json_edit.h - changes to the top level of a JSON object without printing it anew: the new text is a list
 * of slices, of the original and of what is put in. A body is forwarded as the client wrote it, but for the
 * few members that a prefill/decode hand-over needs (wire-formats.md 3.3-3.5).
 *
 *   {"model":"m","stream":true,"messages":[...400 KB...]}
 *    edit: remove "stream", set "max_tokens" to 1
 *   {"model":"m","messages":[...]  ,"max_tokens":1}
 *   `----slice---'`---slice-------'`---put in----'`slice
 *
 * No I/O. The text must be a valid JSON object (openai_request_read has checked that); of anything else it
 * says WEIR_E_INPUT, reads nothing beyond its end, and takes time linear in its length.
 */
#ifndef WEIR_JSON_EDIT_H
#define WEIR_JSON_EDIT_H

#include <stdbool.h>
#include <stddef.h>

#include "predictor/error.h"

#define JSON_EDIT_MAX_CHANGES 16u /* members removed or set in one edit */
#define JSON_EDIT_MAX_SLICES (4 * JSON_EDIT_MAX_CHANGES + 3)

struct json_slice {
    const char *s;
    size_t len;
};

/* One change: the member `name` (no escapes in it) is removed wherever it stands at the top level, and with
 * value.s not NULL `"name":value` is put in at the end. value is JSON text, borrowed. */
struct json_change {
    const char *name;
    struct json_slice value;
};

struct json_edit {
    struct json_slice slices[JSON_EDIT_MAX_SLICES];
    size_t n_slices, len;                 /* len: of all slices together */
    char glue[JSON_EDIT_MAX_CHANGES][68]; /* commas, names and colons of what is put in */
};

/* The text with all changes made, as slices that borrow from text, from the changes' values and from *out.
 * 0; WEIR_E_INPUT (text is no object, or unbalanced); WEIR_E_LIMIT (more than JSON_EDIT_MAX_CHANGES
 * changes, more removals than slices allow, or a name of 64 bytes or more). */
WEIR_NODISCARD int json_edit(struct json_edit *out, const char *text, size_t len,
                             const struct json_change *changes, size_t n_changes);

/* The raw text of a top-level member's value (the last one if there are several; name compared byte by byte,
 * without escapes). False: not there, or text is no object. */
bool json_member(const char *text, size_t len, const char *name, struct json_slice *value);

#endif
