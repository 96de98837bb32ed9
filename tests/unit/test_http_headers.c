/* Lookups, hop-by-hop marks and the writer of heads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "controller/http/http_headers.h"
#include "controller/http/http_parser.h"

static int go_on(struct http_parser *p)
{
    (void)p;
    return 0;
}

static int drop(struct http_parser *p, const char *at, size_t len)
{
    (void)p, (void)at, (void)len;
    return 0;
}

static void parse(struct http_head *h, const char *text)
{
    static const struct http_parser_limits limits = {16384, 100, 8192};
    struct http_parser p;
    size_t used = 0;
    h->base = text;
    http_parser_init(&p, !strncmp(text, "HTTP", 4), h, &limits);
    p.on_head = go_on;
    p.on_body = drop;
    if (http_parser_feed(&p, text, strlen(text), &used) == HTTP_PARSE_REFUSED)
        fail_msg("%s", p.refusal.why);
}

static struct http_slice slice(const char *text)
{
    return (struct http_slice){text, strlen(text)};
}

static void lists(void **state)
{
    (void)state;
    assert_true(http_list_has(slice("a, B ;q=1,c"), "b"));
    assert_true(http_list_has(slice("  close  "), "close"));
    assert_true(http_list_has(slice("x,,close"), "close"));
    assert_false(http_list_has(slice("closed, xclose"), "close"));
    assert_false(http_list_has(slice(""), "a"));
    assert_false(http_list_has((struct http_slice){NULL, 0}, "a"));
}

#define REQUEST                                                                                               \
    "POST /x HTTP/1.1\r\nHost: weir\r\nConnection: keep-alive, X-Secret ,TE\r\nKeep-Alive: timeout=5\r\n"     \
    "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nTE: trailers\r\nTrailer: X-Sum\r\n"      \
    "Upgrade: h2c\r\nx-secret: 1\r\nX-Secret-2: 2\r\nContent-Length: 0\r\nContent-Type: application/json\r\n" \
    "Authorization: Bearer t\r\nExpect: 100-continue\r\nAccept: */*\r\n\r\n"

static void hop_by_hop_fields_are_left_out(void **state)
{
    static const enum http_known without[] = {HTTP_F_HOST, HTTP_F_EXPECT, HTTP_F_AUTHORIZATION};
    struct http_head h;
    char out[512];
    (void)state;
    parse(&h, REQUEST);
    assert_true(h.keep_alive);
    struct http_writer w = {out, out + sizeof out, false};
    http_write_fields(&w, &h, without, 2);
    *w.at = 0;
    assert_string_equal(
        out, "X-Secret-2: 2\r\nContent-Type: application/json\r\nAuthorization: Bearer t\r\n"
             "Accept: */*\r\n");
    w = (struct http_writer){out, out + sizeof out, false};
    http_write_fields(&w, &h, without, 3);
    *w.at = 0;
    assert_null(strstr(out, "Authorization"));
    assert_false(w.full);
}

static void values_cannot_break_out(void **state)
{
    char out[128];
    (void)state;
    struct http_writer w = {out, out + sizeof out, false};
    http_write_field(&w, HTTP_SLICE("x-a"), HTTP_SLICE("b\r\nSet-Cookie: c\0d\x7f\te"));
    *w.at = 0;
    assert_string_equal(out, "x-a: b  Set-Cookie: c d \te\r\n");
    w.at = out;
    http_write_field(&w, HTTP_SLICE("x\r\nb"), HTTP_SLICE("c"));
    *w.at = 0;
    assert_string_equal(out, "x  b: c\r\n");
}

static void what_does_not_fit_is_left_out(void **state)
{
    struct http_head h;
    char out[512];
    (void)state;
    parse(&h, REQUEST);
    for (size_t room = 0; room < 200; room++) {
        memset(out, '#', sizeof out);
        struct http_writer w = {out, out + room, false};
        http_write_status(&w, 429);
        http_write_fields(&w, &h, NULL, 0);
        http_write_field_u64(&w, HTTP_SLICE("retry-after"), UINT64_MAX);
        http_write_request(&w, "POST", HTTP_SLICE("/"));
        assert_true(w.at <= out + room);
        assert_true(w.full);
        for (size_t i = room; i < sizeof out; i++)
            assert_int_equal(out[i], '#');
    }
}

static void numbers_and_lines(void **state)
{
    char out[256];
    (void)state;
    struct http_writer w = {out, out + sizeof out, false};
    http_write_status(&w, 200);
    http_write_status(&w, 503);
    http_write_status(&w, 299);
    http_write_field_u64(&w, HTTP_SLICE("n"), 0);
    http_write_field_u64(&w, HTTP_SLICE("n"), UINT64_MAX);
    http_write_request(&w, http_method_text(HTTP_M_OPTIONS), HTTP_SLICE("*"));
    *w.at = 0;
    assert_string_equal(
        out, "HTTP/1.1 200 OK\r\nHTTP/1.1 503 Service Unavailable\r\nHTTP/1.1 299 \r\nn: 0\r\n"
             "n: 18446744073709551615\r\nOPTIONS * HTTP/1.1\r\n");
}

static void known_names(void **state)
{
    (void)state;
    assert_int_equal(http_known_of("Content-LENGTH", 14), HTTP_F_CONTENT_LENGTH);
    assert_int_equal(http_known_of("te", 2), HTTP_F_TE);
    assert_int_equal(http_known_of("tee", 3), HTTP_F_OTHER);
    assert_int_equal(http_known_of("proxy-authenticate", 18), HTTP_F_PROXY);
}

static void versions_and_connection(void **state)
{
    struct http_head h;
    (void)state;
    parse(&h, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n");
    assert_true(h.keep_alive);
    parse(
        &h,
        "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n");
    assert_false(h.keep_alive);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists),
        cmocka_unit_test(hop_by_hop_fields_are_left_out),
        cmocka_unit_test(values_cannot_break_out),
        cmocka_unit_test(what_does_not_fit_is_left_out),
        cmocka_unit_test(numbers_and_lines),
        cmocka_unit_test(known_names),
        cmocka_unit_test(versions_and_connection),
    };
    return cmocka_run_group_tests_name("http_headers", tests, NULL, NULL);
}
