/* fuzz_http_response.c - answers of upstreams out of any bytes. The first byte says how the rest is cut into reads, and its
 * top bit whether the request was HEAD. However it is cut, the outcome must be the same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "controller/http/http_parser.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct http_parser_limits limits = {4096, 20, 512};

struct seen {
    struct http_parser p; /* first */
    struct http_head head;
    char *bytes;
    size_t body_len, used;
    uint64_t body_sum;
    unsigned heads;
    enum http_parse_result result;
};

static int on_head(struct http_parser *p)
{
    ((struct seen *)p)->heads++;
    return 0;
}

static int on_body(struct http_parser *p, const char *at, size_t len)
{
    struct seen *s = (struct seen *)p;
    for (size_t i = 0; i < len; i++)
        s->body_sum = s->body_sum * 31 + (uint8_t)at[i];
    s->body_len += len;
    return 0;
}

static void look(struct seen *s, const uint8_t *data, size_t size, size_t piece, bool to_head)
{
    memset(s, 0, sizeof *s);
    s->bytes = malloc(size ? size : 1);
    if (!s->bytes)
        abort();
    memcpy(s->bytes, data, size);
    s->head.base = s->bytes;
    http_parser_init(&s->p, true, &s->head, &limits);
    s->p.on_head = on_head;
    s->p.on_body = on_body;
    s->p.to_head = to_head;
    for (size_t i = 0; i < size && s->result == HTTP_PARSE_MORE; i += piece) {
        size_t n = size - i < piece ? size - i : piece, used = n;
        s->result = http_parser_feed(&s->p, s->bytes + i, n, &used);
        s->used += used;
    }
    if (s->result == HTTP_PARSE_MORE && s->p.started)
        s->result = http_parser_eof(&s->p);
}

static void must(int holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct seen whole, cut;
    if (!size)
        return 0;
    bool to_head = data[0] & 0x80;
    look(&whole, data + 1, size - 1, size, to_head);
    look(&cut, data + 1, size - 1, data[0] % 29 + 1u, to_head);
    must(whole.result == cut.result);
    if (whole.result == HTTP_PARSE_DONE) {
        must(whole.heads == 1 && cut.heads == 1 && whole.head.status >= 200);
        must(whole.used == cut.used && whole.body_len == cut.body_len &&
             whole.body_sum == cut.body_sum && whole.head.n_fields == cut.head.n_fields);
        must(!whole.head.has_length || !whole.head.chunked);
        if (to_head || whole.head.status == 204 || whole.head.status == 304)
            must(!whole.body_len);
        else if (whole.head.has_length)
            must(whole.body_len == whole.head.content_length);
    }
    free(whole.bytes);
    free(cut.bytes);
    return 0;
}
