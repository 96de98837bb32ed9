/* HTTP/1.1 messages out of bytes: what is taken, what is refused (every known way to smuggle a request), and that the
 * same is seen however the bytes are cut.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/http/http_parser.h"

#define ROOM 70000u

static const struct http_parser_limits usual = {16384, 100, 8192};

struct seen {
    struct http_parser p; /* first: on_head and on_body find it */
    struct http_head head;
    char *bytes;
    char body[ROOM];
    size_t body_len, used;
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
    memcpy(s->body + s->body_len, at, len);
    s->body_len += len;
    return 0;
}

/* Feeds text in pieces; the bytes lie in one piece of memory that ends where they end. */
static struct seen *parse_with(const char *text, size_t len, size_t piece, bool is_response,
                               const struct http_parser_limits *limits)
{
    struct seen *s = calloc(1, sizeof *s);
    s->bytes = malloc(len ? len : 1);
    memcpy(s->bytes, text, len);
    s->head.base = s->bytes;
    http_parser_init(&s->p, is_response, &s->head, limits);
    s->p.on_head = on_head;
    s->p.on_body = on_body;
    for (size_t i = 0; i < len && s->result == HTTP_PARSE_MORE; i += piece) {
        size_t n = len - i < piece ? len - i : piece, used = n;
        s->result = http_parser_feed(&s->p, s->bytes + i, n, &used);
        s->used += used;
    }
    return s;
}

static void forget(struct seen *s)
{
    free(s->bytes);
    free(s);
}

static void refused_n(const char *text, size_t len, int status, const char *why)
{
    for (size_t piece = 1; piece <= len; piece = piece < 8 ? piece + 1 : piece * 3) {
        struct seen *s = parse_with(text, len, piece, false, &usual);
        if (s->result != HTTP_PARSE_REFUSED || s->p.refusal.status != status ||
            !strstr(s->p.refusal.why, why))
            fail_msg("%s\nin pieces of %zu: result %d, %d \"%s\" instead of %d \"%s\"", text, piece,
                     s->result, s->p.refusal.status, s->p.refusal.why ? s->p.refusal.why : "",
                     status, why);
        forget(s);
    }
}

#define REFUSED(text, status, why) refused_n(text, sizeof(text) - 1, status, why)

/* However it is cut: complete, and the head, body and length are these. */
static struct seen *taken_n(const char *text, size_t len, bool is_response, const char *body)
{
    struct seen *last = NULL;
    for (size_t piece = 1; piece <= len; piece++) {
        struct seen *s = parse_with(text, len, piece, is_response, &usual);
        if (s->result != HTTP_PARSE_DONE || s->heads != 1 || s->body_len != strlen(body) ||
            memcmp(s->body, body, s->body_len))
            fail_msg("%s\nin pieces of %zu: result %d (%s), %u heads, body of %zu bytes", text,
                     piece, s->result, s->p.refusal.why ? s->p.refusal.why : "", s->heads,
                     s->body_len);
        if (last)
            forget(last);
        last = s;
    }
    return last;
}

#define TAKEN(text, body) taken_n(text, sizeof(text) - 1, false, body)
#define ANSWER(text, body) taken_n(text, sizeof(text) - 1, true, body)

static bool is(struct http_slice s, const char *text)
{
    return s.s && s.len == strlen(text) && !memcmp(s.s, text, s.len);
}

/* --- requests that are in order --------------------------------------------------------------------------- */

static void request_with_length(void **state)
{
    (void)state;
    struct seen *s =
        TAKEN("POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: weir:8080\r\nX-Empty:\r\n"
              "X-Blanks: \t a b \t \r\nContent-Length: 5\r\n\r\nhello",
              "hello");
    assert_int_equal(s->head.method, HTTP_M_POST);
    assert_int_equal(s->head.minor, 1);
    assert_true(s->head.keep_alive && s->head.has_length && !s->head.chunked);
    assert_int_equal(s->head.content_length, 5);
    assert_true(is(http_target(&s->head), "/v1/chat/completions?a=b"));
    assert_int_equal(s->head.n_fields, 4);
    assert_true(is(http_get_known(&s->head, HTTP_F_HOST), "weir:8080"));
    assert_true(is(http_get(&s->head, "x-empty"), ""));
    assert_true(is(http_get(&s->head, "x-blanks"), "a b"));
    assert_null(http_get(&s->head, "x-none").s);
    assert_int_equal(s->used, s->head.len + 5);
    forget(s);
}

static void request_in_chunks(void **state)
{
    (void)state;
    struct seen *s =
        TAKEN("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
              "4\r\nwiki\r\n10;name=value\r\n0123456789abcdef\r\n0\r\nX-Sum: 1\r\n\r\n",
              "wiki0123456789abcdef");
    assert_true(s->head.chunked && !s->head.has_length);
    assert_int_equal(s->head.n_fields, 2);
    forget(s);
}

static void bytes_behind_a_request_are_left(void **state)
{
    (void)state;
    static const char text[] =
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    struct seen *s = parse_with(text, sizeof text - 1, sizeof text, false, &usual);
    assert_int_equal(s->result, HTTP_PARSE_DONE);
    assert_int_equal(s->used, (sizeof text - 1) / 2);
    forget(s);
    static const char body[] = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxyGET";
    s = parse_with(body, sizeof body - 1, sizeof body, false, &usual);
    assert_int_equal(s->result, HTTP_PARSE_DONE);
    assert_int_equal(s->used, sizeof body - 1 - 3);
    forget(s);
    static const char chunks[] =
        "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET";
    s = parse_with(chunks, sizeof chunks - 1, sizeof chunks, false, &usual);
    assert_int_equal(s->result, HTTP_PARSE_DONE);
    assert_int_equal(s->used, sizeof chunks - 1 - 3);
    forget(s);
}

static void one_empty_line_before_a_request(void **state)
{
    (void)state;
    forget(TAKEN("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", ""));
    REFUSED("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line");
    REFUSED("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line");
}

static void old_version(void **state)
{
    (void)state;
    struct seen *s = TAKEN("GET / HTTP/1.0\r\n\r\n", "");
    assert_false(s->head.keep_alive);
    forget(s);
    s = TAKEN("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "");
    assert_true(s->head.keep_alive);
    forget(s);
    s = TAKEN("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n\r\n", "");
    assert_false(s->head.keep_alive);
    forget(s);
}

static void url_as_target(void **state)
{
    (void)state;
    struct seen *s = TAKEN("GET http://a:1/b?c HTTP/1.1\r\nHost: A:1\r\n\r\n", "");
    assert_true(is(http_target(&s->head), "/b?c"));
    forget(s);
    s = TAKEN("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "");
    assert_true(is(http_target(&s->head), "*"));
    forget(s);
    REFUSED("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "not that of the Host");
    REFUSED("GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400, "not that of the Host");
    REFUSED("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "without a path");
    REFUSED("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target");
    REFUSED("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target");
    REFUSED("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "fragment");
}

static void upgrade_is_ignored(void **state)
{
    (void)state;
    struct seen *s = TAKEN(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: x\r\nContent-Length: 2\r\n\r\nhi",
        "hi");
    assert_true(s->head.fields[2].hop && s->head.fields[3].hop);
    forget(s);
    forget(TAKEN("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                 ""));
}

static void expectations(void **state)
{
    (void)state;
    struct seen *s = TAKEN(
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx", "x");
    assert_true(s->head.expect_continue);
    forget(s);
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 1\r\n\r\nx", 417,
            "expectation");
}

/* --- smuggling --------------------------------------------------------------------------------------------- */

static void smuggling_length_and_chunked(void **state)
{
    (void)state;
    REFUSED(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        400, "");
    REFUSED(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG",
        400, "");
}

static void smuggling_two_lengths(void **state)
{
    (void)state;
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 400,
            "");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nxy", 400,
            "");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nxy", 400, "Content-Length");
}

static void smuggling_odd_lengths(void **state)
{
    (void)state;
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nxy", 400, "Content-Length");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -2\r\n\r\nxy", 400, "Content-Length");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x2\r\n\r\nxy", 400, "Content-Length");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2 2\r\n\r\nxy", 400, "Content-Length");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nxy", 400, "Content-Length");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nxy", 400,
            "Content-Length");
}

static void smuggling_other_codings(void **state)
{
    (void)state;
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 400,
            "Transfer-Encoding");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400,
            "Transfer-Encoding");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            400, "Transfer-Encoding");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400,
            "Transfer-Encoding");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400,
            "Transfer-Encoding");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 400,
            "Transfer-Encoding");
    REFUSED(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400, "Transfer-Encoding");
    REFUSED("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
            "HTTP/1.0");
}

static void smuggling_folded_fields(void **state)
{
    (void)state;
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400,
            "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\t2\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\n Host: a\r\nX: 1\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX:\r\n \r\n\r\n", 400, "");
}

static void smuggling_bare_line_breaks(void **state)
{
    (void)state;
    REFUSED("GET / HTTP/1.1\nHost: a\n\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\rHost: a\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\rGET", 400, "");
    REFUSED("GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
}

static void smuggling_control_bytes(void **state)
{
    (void)state;
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", 400, "");
    REFUSED("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: a\x01\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: a\x7f\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX: \v\r\n\r\n", 400, "");
}

static void smuggling_odd_field_names(void **state)
{
    (void)state;
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 2\r\n\r\nxy", 400, "");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400, "");
    REFUSED("POST / HTTP/1.1\r\nHost: a\r\nTransfer Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nX\xff: b\r\n\r\n", 400, "");
}

#define CHUNKED "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

static void smuggling_chunk_sizes(void **state)
{
    (void)state;
    REFUSED(CHUNKED "x\r\n", 400, "chunk size");
    REFUSED(CHUNKED "-1\r\n", 400, "");
    REFUSED(CHUNKED "+1\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "0x1\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "fffffffffffffffff\r\nx", 400, "");
    REFUSED(CHUNKED "1\r\nxy\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "2\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED " 1\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1 \r\nx\r\n0\r\n\r\n", 400, "");
}

static void smuggling_chunk_line_breaks(void **state)
{
    (void)state;
    REFUSED(CHUNKED "1\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1\r\nx\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1\r\nx\r0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1\rx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1;a\nb\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1;a\rb\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1;a=\"\n\"\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1;\0\r\nx\r\n0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1\r\nx\r\n0\r\nX: a\nY: b\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1\r\nx\r\n0\r\nX: a\0\r\n\r\n", 400, "");
    REFUSED(CHUNKED "1\r\nx\r\n0\r\n\n", 400, "");
}

static void chunk_extensions_and_trailers_are_bounded(void **state)
{
    char text[20000];
    (void)state;
    size_t n = (size_t)snprintf(text, sizeof text, CHUNKED "1;");
    memset(text + n, 'a', HTTP_MAX_FRAMING_LINE);
    refused_n(text, n + HTTP_MAX_FRAMING_LINE, 400, "too long a chunk extension or trailer");
    n = (size_t)snprintf(text, sizeof text, CHUNKED "1\r\nx\r\n0\r\nX:");
    memset(text + n, ' ', 10000);
    refused_n(text, n + 10000, 400, "too ");
    n = (size_t)snprintf(text, sizeof text, CHUNKED "1\r\nx\r\n0\r\n");
    while (n < strlen(CHUNKED) + HTTP_MAX_TRAILER_BYTES + 100)
        n += (size_t)snprintf(text + n, sizeof text - n, "X-%zu: y\r\n", n);
    refused_n(text, n, 400, "too many trailers");
}

static void smuggling_hosts(void **state)
{
    (void)state;
    REFUSED("GET / HTTP/1.1\r\n\r\n", 400, "Host");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "Host");
    REFUSED("GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400, "Host");
    REFUSED("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "Host");
    REFUSED("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Host");
    REFUSED("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "Host");
    REFUSED("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "Host");
    REFUSED("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400, "Host");
    forget(TAKEN("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", ""));
}

static void request_lines(void **state)
{
    (void)state;
    REFUSED("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "method");
    REFUSED("get / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "method");
    REFUSED("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method");
    REFUSED("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method");
    REFUSED("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("GET /\r\n\r\n", 505, "version");
    REFUSED("GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505, "version");
    REFUSED("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, "version");
    REFUSED("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "version");
    REFUSED("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, "version");
    REFUSED("GET / http/1.1\r\nHost: a\r\n\r\n", 400, "");
    REFUSED("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "");
}

static void http2_preface(void **state)
{
    (void)state;
    static const char text[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    struct seen *s = parse_with(text, sizeof text - 1, sizeof text, false, &usual);
    assert_int_equal(s->result, HTTP_PARSE_REFUSED);
    assert_int_equal(s->p.refusal.status, 505);
    forget(s);
}

/* --- limits ------------------------------------------------------------------------------------------------ */

static void limit_is(const char *text, size_t len, const struct http_parser_limits *limits,
                     int status)
{
    for (size_t piece = 1; piece <= len; piece = piece < 4 ? piece + 1 : piece * 5) {
        struct seen *s = parse_with(text, len, piece, false, limits);
        if (status) {
            assert_int_equal(s->result, HTTP_PARSE_REFUSED);
            assert_int_equal(s->p.refusal.status, status);
        } else {
            assert_int_equal(s->result, HTTP_PARSE_DONE);
        }
        forget(s);
    }
}

static void limits(void **state)
{
    char text[4096];
    (void)state;
    struct http_parser_limits l = {1000, 3, 50};
    size_t n = (size_t)snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    memset(text + n, 'x', 1000 - n - 4);
    memcpy(text + 996, "\r\n\r\n", 4);
    limit_is(text, 1000, &l, 0); /* exactly as long as may be */
    text[996] = 'x';
    memcpy(text + 997, "\r\n\r\n", 4);
    limit_is(text, 1001, &l, 431);
    memset(text + n, 'x', 2000);
    limit_is(text, n + 2000, &l, 431); /* never ends */

    n = (size_t)snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nC: d\r\n\r\n");
    limit_is(text, n, &l, 0);
    n = (size_t)snprintf(text, sizeof text,
                         "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nC: d\r\nE: f\r\n\r\n");
    limit_is(text, n, &l, 431);

    n = (size_t)snprintf(text, sizeof text, "GET /%049d HTTP/1.1\r\nHost: a\r\n\r\n", 0);
    limit_is(text, n, &l, 0);
    n = (size_t)snprintf(text, sizeof text, "GET /%050d HTTP/1.1\r\nHost: a\r\n\r\n", 0);
    limit_is(text, n, &l, 414);
    n = (size_t)snprintf(text, sizeof text, "GET /");
    memset(text + n, 'x', 3000);
    limit_is(text, n + 3000, &l, 414);
}

/* --- responses --------------------------------------------------------------------------------------------- */

static void answers(void **state)
{
    (void)state;
    struct seen *s = ANSWER("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi");
    assert_int_equal(s->head.status, 200);
    assert_true(s->head.keep_alive);
    forget(s);
    s = ANSWER("HTTP/1.1 503 \r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "hi");
    assert_int_equal(s->head.status, 503);
    forget(s);
    forget(ANSWER("HTTP/1.1 204 No Content\r\n\r\n", ""));
    forget(ANSWER("HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", ""));
    s = ANSWER(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n"
        "Content-Length: 2\r\n\r\nhi",
        "hi");
    assert_int_equal(s->head.status, 200);
    assert_int_equal(s->head.n_fields, 1);
    forget(s);
}

static void answer_to_head_has_no_body(void **state)
{
    (void)state;
    static const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    struct seen *s = calloc(1, sizeof *s);
    size_t used = 0;
    s->head.base = text;
    http_parser_init(&s->p, true, &s->head, &usual);
    s->p.on_head = on_head;
    s->p.on_body = on_body;
    s->p.to_head = true;
    assert_int_equal(http_parser_feed(&s->p, text, sizeof text - 1, &used), HTTP_PARSE_DONE);
    free(s);
}

static void answer_up_to_the_end(void **state)
{
    (void)state;
    static const char text[] = "HTTP/1.1 200 OK\r\n\r\nsome text";
    struct seen *s = parse_with(text, sizeof text - 1, 7, true, &usual);
    assert_int_equal(s->result, HTTP_PARSE_MORE);
    assert_int_equal(http_parser_eof(&s->p), HTTP_PARSE_DONE);
    assert_int_equal(s->body_len, 9);
    forget(s);
}

static void end_within_a_message(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nContent-",
        "HTTP/1.1 100 Continue\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct seen *s = parse_with(texts[i], strlen(texts[i]), 100, true, &usual);
        assert_int_equal(s->result, HTTP_PARSE_MORE);
        assert_int_equal(http_parser_eof(&s->p), HTTP_PARSE_REFUSED);
        forget(s);
    }
}

static void answer_refused(const char *text, const char *why)
{
    for (size_t piece = 1; piece <= strlen(text); piece++) {
        struct seen *s = parse_with(text, strlen(text), piece, true, &usual);
        if (s->result != HTTP_PARSE_REFUSED || !strstr(s->p.refusal.why, why))
            fail_msg("%s\nin pieces of %zu: %d, %s", text, piece, s->result,
                     s->p.refusal.why ? s->p.refusal.why : "");
        forget(s);
    }
}

static void answers_that_are_refused(void **state)
{
    (void)state;
    answer_refused("SSH-2.0-OpenSSH_9.2\r\n", "");
    answer_refused("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                   "Transfer-Encoding");
    answer_refused("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "");
    answer_refused("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding");
    answer_refused("HTTP/1.1 200 OK\nContent-Length: 0\n\n", "");
    answer_refused("HTTP/1.1 20 OK\r\n\r\n", "");
    answer_refused("HTTP/1.1 200 O\x01K\r\n\r\n", "");
    answer_refused("HTTP/2.0 200 OK\r\n\r\n", "version");
    answer_refused("HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n", "below 100");
    answer_refused("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
                   "upgrade");
    answer_refused("HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n", "");
}

static void endless_informational_answers(void **state)
{
    char text[2048] = "";
    (void)state;
    for (unsigned i = 0; i <= HTTP_MAX_INFORMATIONAL; i++)
        strncat(text, "HTTP/1.1 102 Processing\r\n\r\n", sizeof text - strlen(text) - 1);
    answer_refused(text, "too many 1xx");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(request_with_length),
        cmocka_unit_test(request_in_chunks),
        cmocka_unit_test(bytes_behind_a_request_are_left),
        cmocka_unit_test(one_empty_line_before_a_request),
        cmocka_unit_test(old_version),
        cmocka_unit_test(url_as_target),
        cmocka_unit_test(upgrade_is_ignored),
        cmocka_unit_test(expectations),
        cmocka_unit_test(smuggling_length_and_chunked),
        cmocka_unit_test(smuggling_two_lengths),
        cmocka_unit_test(smuggling_odd_lengths),
        cmocka_unit_test(smuggling_other_codings),
        cmocka_unit_test(smuggling_folded_fields),
        cmocka_unit_test(smuggling_bare_line_breaks),
        cmocka_unit_test(smuggling_control_bytes),
        cmocka_unit_test(smuggling_odd_field_names),
        cmocka_unit_test(smuggling_chunk_sizes),
        cmocka_unit_test(smuggling_chunk_line_breaks),
        cmocka_unit_test(chunk_extensions_and_trailers_are_bounded),
        cmocka_unit_test(smuggling_hosts),
        cmocka_unit_test(request_lines),
        cmocka_unit_test(http2_preface),
        cmocka_unit_test(limits),
        cmocka_unit_test(answers),
        cmocka_unit_test(answer_to_head_has_no_body),
        cmocka_unit_test(answer_up_to_the_end),
        cmocka_unit_test(end_within_a_message),
        cmocka_unit_test(answers_that_are_refused),
        cmocka_unit_test(endless_informational_answers),
    };
    return cmocka_run_group_tests_name("http_parser", tests, NULL, NULL);
}
