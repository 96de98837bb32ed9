/* fuzz_openai.c - request bodies: reading them, and editing those that are valid. The first byte chooses the endpoint.
 * What an edit makes of a valid object must be an object again, with the members that were asked for. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <yyjson.h>

#include "controller/openai/handover.h"
#include "controller/openai/openai_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_edit(const char *body, size_t len)
{
    static const struct json_change changes[] = {
        {"stream", {NULL, 0}}, {"max_tokens", {"1", 1}}, {"new", {"[]", 2}}};
    struct json_edit e;
    if (json_edit(&e, body, len, changes,
                  3)) /* too many gaps, or escapes in names that only yyjson reads */
        return;
    char *out = malloc(e.len + 1);
    size_t n = 0;
    for (size_t i = 0; out && i < e.n_slices; i++) {
        memcpy(out + n, e.slices[i].s, e.slices[i].len);
        n += e.slices[i].len;
    }
    yyjson_doc *doc = yyjson_read(out, n, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (n != e.len || !yyjson_is_obj(root) || !yyjson_obj_get(root, "new"))
        abort();
    yyjson_doc_free(doc);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct openai_reader *reader;
    struct openai_request q;
    struct json_slice params;
    char error[OPENAI_ERROR_BYTES];
    const char *param;
    if (!reader)
        reader = openai_reader_new();
    if (!size || !reader)
        return 0;
    const char *body = (const char *)data + 1;
    size_t len = size - 1;
    enum openai_endpoint e = (enum openai_endpoint)(data[0] % (OPENAI_OTHER + 1));
    int rc = openai_request_read(reader, e, body, len, &q, error, &param);
    if (rc == WEIR_E_INPUT && (!*error || strlen(error) >= OPENAI_ERROR_BYTES))
        abort();
    if (!rc && (q.choices < 1 || q.n_keys > OPENAI_MAX_KEYS))
        abort();
    handover_params(body, len, &params);
    yyjson_doc *doc = yyjson_read(body, len, 0);
    if (yyjson_is_obj(yyjson_doc_get_root(doc)))
        check_edit(body, len);
    yyjson_doc_free(doc);
    return 0;
}
