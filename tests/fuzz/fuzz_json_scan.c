/* fuzz_json_scan.c - JSON texts: json_scan takes exactly what yyjson takes, and sees the same values in it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <yyjson.h>

#include "controller/openai/json_scan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void same_string(const struct json_value *v, yyjson_val *peer)
{
    size_t len = json_length(v);
    char *copy = malloc(len + 1);
    if (v->type != JSON_STRING || len != yyjson_get_len(peer))
        abort();
    json_copy(v, copy);
    if (memcmp(copy, yyjson_get_str(peer), len))
        abort();
    free(copy);
}

static void same_number(const struct json_value *v, yyjson_val *peer)
{
    uint64_t u;
    int64_t i;
    bool whole = json_uint(v, &u), negative = json_int(v, &i) && v->s[0] == '-';
    if (v->type != JSON_NUMBER || whole != yyjson_is_uint(peer) ||
        (whole && u != yyjson_get_uint(peer)))
        abort();
    if (negative != yyjson_is_sint(peer) || (negative && i != yyjson_get_sint(peer)))
        abort();
}

/* Walks both; returns the value behind v. Depth is bounded by JSON_MAX_DEPTH. */
static const struct json_value *same(const struct json_value *v, yyjson_val *peer)
{
    size_t i, n;
    yyjson_val *key, *item;
    const struct json_value *next = v + 1;
    switch (yyjson_get_type(peer)) {
    case YYJSON_TYPE_NULL: v->type == JSON_NULL ? (void)0 : abort(); break;
    case YYJSON_TYPE_BOOL:
        v->type == (yyjson_get_bool(peer) ? JSON_TRUE : JSON_FALSE) ? (void)0 : abort();
        break;
    case YYJSON_TYPE_NUM: same_number(v, peer); break;
    case YYJSON_TYPE_STR: same_string(v, peer); break;
    case YYJSON_TYPE_ARR:
        if (v->type != JSON_ARRAY || v->len != yyjson_arr_size(peer))
            abort();
        yyjson_arr_foreach (peer, i, n, item)
            next = same(next, item);
        break;
    default:
        if (v->type != JSON_OBJECT || v->len != yyjson_obj_size(peer))
            abort();
        yyjson_obj_foreach (peer, i, n, key, item) {
            same_string(next, key);
            next = same(next + 1, item);
        }
    }
    if (next != v + v->span)
        abort();
    return next;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct json_scan j = {.values = NULL};
    yyjson_read_err bad;
    char *text = malloc(size ? size : 1);
    memcpy(text, data, size);
    yyjson_doc *doc = yyjson_read_opts(text, size, 0, NULL, &bad);
    int rc = json_scan(&j, text, size);
    bool infinite = !doc && bad.msg && strstr(bad.msg, "infinity"); /* 1e999: no matter here */
    bool deep = rc && !strcmp(j.why, "nested deeper than is taken");
    if (!infinite && !deep && !rc != (doc != NULL))
        abort();
    if (doc && !rc && same(j.values, yyjson_doc_get_root(doc)) != j.values + j.n)
        abort();
    yyjson_doc_free(doc);
    json_scan_deinit(&j);
    free(text);
    return 0;
}
