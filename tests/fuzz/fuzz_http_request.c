/* fuzz_http_request.c - requests out of any bytes. The first byte says how the rest is cut into reads. However it is cut,
 * the outcome must be the same; and what is taken must be what a plain reader of RFC 9112 sees: the head consists of lines
 * that end in CR LF without controls, there is one Host, one way to tell the body's length, and the message ends where
 * that says.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "controller/http/http_parser.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct http_parser_limits limits = {4096, 20, 512};

struct seen {
    struct http_parser p; /* first */
    struct http_head head;
    char *bytes;
    size_t body_len, used;
    uint64_t body_sum;
    enum http_parse_result result;
};

static int on_head(struct http_parser *p)
{
    (void)p;
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

static void look(struct seen *s, const uint8_t *data, size_t size, size_t piece)
{
    memset(s, 0, sizeof *s);
    s->bytes = malloc(size ? size : 1);
    if (!s->bytes)
        abort();
    memcpy(s->bytes, data, size);
    s->head.base = s->bytes;
    http_parser_init(&s->p, false, &s->head, &limits);
    s->p.on_head = on_head;
    s->p.on_body = on_body;
    for (size_t i = 0; i < size && s->result == HTTP_PARSE_MORE; i += piece) {
        size_t n = size - i < piece ? size - i : piece, used = n;
        s->result = http_parser_feed(&s->p, s->bytes + i, n, &used);
        s->used += used;
    }
}

static void must(int holds)
{
    if (!holds)
        abort();
}

/* Without any help of the parser. */
static void check_by_hand(const struct seen *s)
{
    const char *at = s->bytes, *end = s->bytes + s->head.len;
    unsigned lines = 0, hosts = 0, lengths = 0, codings = 0;
    must(s->head.len >= 4 && s->head.len <= limits.header_bytes && !memcmp(end - 4, "\r\n\r\n", 4));
    if (!memcmp(at, "\r\n", 2))
        at += 2;
    for (; at < end - 2; lines++) {
        const char *cr = memchr(at, '\r', (size_t)(end - at));
        must(cr && cr[1] == '\n');
        for (const char *c = at; c < cr; c++)
            must((uint8_t)*c >= ' ' || *c == '\t');
        must(*at != ' ' && *at != '\t' && cr > at);
        hosts += lines && !strncasecmp(at, "host:", 5);
        lengths += lines && !strncasecmp(at, "content-length:", 15);
        codings += lines && !strncasecmp(at, "transfer-encoding:", 18);
        at = cr + 2;
    }
    must(lines == s->head.n_fields + 1u && lengths + codings <= 1);
    must(hosts == 1 || (!hosts && !s->head.minor));
    must(s->head.has_length == (lengths == 1) && s->head.chunked == (codings == 1));
    if (s->head.has_length)
        must(s->head.content_length == s->body_len && s->used == s->head.len + s->body_len);
    if (!s->head.has_length && !s->head.chunked)
        must(s->used == s->head.len && !s->body_len);
    if (s->head.chunked)
        must(s->used >= 5 && !memcmp(s->bytes + s->used - 2, "\r\n", 2));
    struct http_slice t = http_target(&s->head);
    must(t.len && (t.s[0] == '/' || t.s[0] == '*'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct seen whole, cut;
    if (!size)
        return 0;
    look(&whole, data + 1, size - 1, size);
    look(&cut, data + 1, size - 1, data[0] % 29 + 1u);
    /* a limit may be noticed in another order: all that matters is that both refuse */
    must(whole.result == cut.result);
    if (whole.result == HTTP_PARSE_DONE) {
        must(whole.used == cut.used && whole.body_len == cut.body_len &&
             whole.body_sum == cut.body_sum && whole.head.n_fields == cut.head.n_fields);
        check_by_hand(&whole);
    }
    free(whole.bytes);
    free(cut.bytes);
    return 0;
}
