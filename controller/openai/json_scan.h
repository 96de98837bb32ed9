/* json_scan.h - a JSON text as a flat list of its values, in order; strings and numbers stay where they are in the text.
 * For request bodies, which are nearly all string: they are checked 32 bytes at a time, and nothing is copied, so a
 * prompt costs 0.8 instructions a byte where a parser that unescapes costs 3.6 (yyjson 0.8, callgrind). No I/O.
 *
 *   {"a":[1,"x"],"b":null}
 *   object(2) string a  array(2) number 1  string x  string b  null      values; in brackets: members
 *   `-- span 7          `-- span 3                                       span: itself and all within
 *
 * Taken is what RFC 8259 allows and nothing else: strict UTF-8, no lone surrogates, one value, no byte order mark. As in
 * Python's json, which the engines use, the last of equal names counts.
 */
#ifndef WEIR_JSON_SCAN_H
#define WEIR_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "predictor/error.h"

#define JSON_MAX_DEPTH 512u                 /* Python's json gives up at about 1,000 */
#define JSON_MAX_VALUES (UINT32_C(8) << 20) /* 128 MiB of them */
#define JSON_MAX_TEXT UINT32_MAX
#define JSON_KEEP_VALUES 65536u /* memory up to here is kept for the next text */

enum json_type {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT,
};

struct json_value {
    union {
        const char *s; /* a string without its quotes, a number's digits */
        uint64_t
            names; /* an object: a bit for each length that its names have, so that most that it has not are not looked for */
    };
    uint32_t len; /* of that; members of an array or object */
    uint32_t span : 27, type : 4, escaped : 1;
};

/* The values of one text; the root is the first. All zero at first. */
struct json_scan {
    struct json_value *values;
    uint32_t n, cap;
    const char *why; /* after WEIR_E_INPUT: static text */
    size_t at;       /* and where */
};

/* 0; WEIR_E_INPUT (no JSON text, or beyond JSON_MAX_DEPTH, JSON_MAX_VALUES, JSON_MAX_TEXT); WEIR_E_NOMEM. text is borrowed
 * by the values. */
WEIR_NODISCARD int json_scan(struct json_scan *j, const char *text, size_t len);
/* Gives back memory beyond JSON_KEEP_VALUES; values are gone. */
void json_scan_reset(struct json_scan *j);
void json_scan_deinit(struct json_scan *j);

/* All of these take NULL, as what is not there. */
static inline bool json_is(const struct json_value *v, enum json_type type)
{
    return v && v->type == type;
}
/* For json_get: looks through the names. */
const struct json_value *json_find(const struct json_value *v, const char *name, size_t len);
/* The member of an object; name has no quotes, backslashes or controls. NULL: v is no object, or has none. */
static inline const struct json_value *json_get(const struct json_value *v, const char *name)
{
    size_t len = strlen(name);
    return json_is(v, JSON_OBJECT) && v->names >> (len < 63 ? len : 63) & 1
               ? json_find(v, name, len)
               : NULL;
}
/* A whole number, written without fraction and exponent, that fits. */
bool json_uint(const struct json_value *v, uint64_t *out);
bool json_int(const struct json_value *v, int64_t *out);
bool json_equals(const struct json_value *v, const char *text); /* text: as name above */
/* Bytes of a string without its escapes; 0 for others. */
size_t json_length(const struct json_value *v);
/* The string without its escapes into out, which has room for json_length(v) bytes. */
void json_copy(const struct json_value *v, char *out);

/* The pieces of a string without its escapes: at is v->s at first; *piece lives in the text or in buf. False: no more. */
struct json_pieces {
    const char *at, *end;
    char buf[4];
};
static inline struct json_pieces json_pieces(const struct json_value *v)
{
    return (struct json_pieces){v->s, v->s + v->len, {0}};
}
bool json_piece(struct json_pieces *p, const char **piece, size_t *len);

/* Going through an array, or (a member's name and then its value) an object: NULL at the end. */
static inline const struct json_value *json_first(const struct json_value *v)
{
    return v && v->type >= JSON_ARRAY && v->len ? v + 1 : NULL;
}
static inline const struct json_value *json_next(const struct json_value *container,
                                                 const struct json_value *v)
{
    v += v->span;
    return v < container + container->span ? v : NULL;
}

#endif
