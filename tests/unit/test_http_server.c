/* The HTTP server against raw sockets that behave well, badly and not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "controller/http/http_server.h"
#include "tests/support/net.h"

struct fixture {
    uv_loop_t uv;
    struct http_loop *loop;
    struct http_server *server;
    struct http_server_options options;
    void (*answer)(struct fixture *f, struct http_exchange *ex); /* NULL: keep it in `held` */
    struct http_exchange *held;
    char *body; /* of the last request */
    size_t body_len;
    char target[128];
    unsigned requests, gone, drained, done;
    enum http_gone why;
    unsigned fds_before;
};

static struct http_slice slice(const char *text)
{
    return (struct http_slice){text, strlen(text)};
}

static void on_request(void *user, struct http_exchange *ex)
{
    struct fixture *f = user;
    struct http_slice body = http_request_body(ex), target = http_target(http_request_head(ex));
    f->requests++;
    free(f->body);
    f->body = malloc(body.len + 1);
    memcpy(f->body, body.s, body.len);
    f->body[body.len] = 0;
    f->body_len = body.len;
    snprintf(f->target, sizeof f->target, "%.*s", (int)target.len, target.s);
    assert_null(http_exchange_user(ex));
    http_exchange_set_user(ex, f);
    if (f->answer) {
        f->answer(f, ex);
    } else {
        assert_null(f->held);
        f->held = ex;
    }
}

static void on_gone(void *user, struct http_exchange *ex, enum http_gone why)
{
    struct fixture *f = user;
    f->gone++;
    f->why = why;
    assert_ptr_equal(http_exchange_user(ex), f);
    if (f->held == ex)
        f->held = NULL;
}

static void on_drained(void *user, struct http_exchange *ex)
{
    (void)ex;
    ((struct fixture *)user)->drained++;
}

static size_t refusal(void *user, int status, const char *why, char *out, size_t cap)
{
    (void)user;
    return (size_t)snprintf(out, cap, "{\"error\":{\"code\":%d,\"message\":\"%s\"}}", status, why);
}

static const struct http_server_ops ops = {
    .request = on_request, .gone = on_gone, .drained = on_drained, .refusal = refusal};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->fds_before = net_open_fds();
    uv_loop_init(&f->uv);
    f->loop = http_loop_new(&f->uv);
    http_server_defaults(&f->options);
    f->options.refusal_type = "application/json";
    *state = f;
    return 0;
}

static void listen_with_options(struct fixture *f)
{
    char error[HTTP_ERROR_BYTES];
    f->server = http_server_new(f->loop, &f->options, &ops, f, error);
    if (!f->server)
        fail_msg("%s", error);
}

/* Everything that was taken is given back: buffers, handles and descriptors. */
static int tear_down(void **state)
{
    struct fixture *f = *state;
    if (f->server)
        http_server_close(f->server);
    uv_run(&f->uv, UV_RUN_NOWAIT);
    uv_run(&f->uv, UV_RUN_NOWAIT);
    struct http_loop_stats stats = http_loop_stats(f->loop);
    http_loop_free(f->loop);
    uv_run(&f->uv, UV_RUN_DEFAULT);
    int e = uv_loop_close(&f->uv);
    unsigned fds = net_open_fds();
    unsigned before = f->fds_before;
    free(f->body);
    free(f);
    if (stats.blocks_used || stats.body_bytes_used || e || fds != before) {
        print_error(
            "left: %llu blocks, %llu bytes of bodies, loop %d, %u descriptors instead of %u\n",
            (unsigned long long)stats.blocks_used, (unsigned long long)stats.body_bytes_used, e,
            fds, before);
        return -1;
    }
    return 0;
}

static void join(struct fixture *f, struct net_peer *p)
{
    net_connect(p, &f->uv, http_server_port(f->server));
}

static void say_ok(struct fixture *f, struct http_exchange *ex)
{
    (void)f;
    http_reply(ex, 200, "text/plain", slice("ok"));
}

static void say_body(struct fixture *f, struct http_exchange *ex)
{
    http_reply(ex, 200, NULL, (struct http_slice){f->body, f->body_len});
}

static void say_target(struct fixture *f, struct http_exchange *ex)
{
    http_reply(ex, 200, NULL, slice(f->target));
}

static bool has_request(void *arg)
{
    return ((struct fixture *)arg)->held;
}

static bool has_gone(void *arg)
{
    return ((struct fixture *)arg)->gone;
}

static bool is_done(void *arg)
{
    return ((struct fixture *)arg)->done;
}

static void wait_for_request(struct fixture *f)
{
    net_run_until(&f->uv, has_request, f, "a request");
}

#define GET "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

/* --- requests and responses -------------------------------------------------------------------------------- */

static void keep_alive(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_ok;
    listen_with_options(f);
    join(f, &p);
    for (unsigned i = 0; i < 3; i++) {
        net_send(&p, GET);
        net_expect(&p, "\r\n\r\nok");
        assert_non_null(strstr(
            p.got, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\ndate: "));
        assert_null(strstr(p.got, "connection:"));
        net_forget(&p);
    }
    assert_int_equal(f->requests, 3);
    assert_int_equal(http_server_stats(f->server).accepted, 1);
    net_close(&p);
}

static void request_byte_by_byte(void **state)
{
    static const char text[] = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_body;
    listen_with_options(f);
    join(f, &p);
    for (size_t i = 0; i < sizeof text - 1; i++) {
        net_send_n(&p, text + i, 1);
        uv_run(&f->uv, UV_RUN_NOWAIT);
    }
    net_expect(&p, "\r\n\r\nhello");
    net_close(&p);
}

static char *pattern(size_t len)
{
    char *s = malloc(len + 1);
    for (size_t i = 0; i < len; i++)
        s[i] = (char)('a' + i * 7 % 26 + (i >> 13) % 3);
    s[len] = 0;
    return s;
}

static void post(struct net_peer *p, const char *body, size_t len)
{
    char head[128];
    snprintf(head, sizeof head, "POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: %zu\r\n\r\n", len);
    net_send(p, head);
    net_send_n(p, body, len);
}

static void bodies_of_all_sizes(void **state)
{
    static const size_t sizes[] = {1,     4096,   32000,  32680,   32700,   32768,  40000,
                                   65536, 262144, 263000, 1000000, 1048576, 5000001};
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_ok;
    listen_with_options(f);
    join(f, &p);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char *body = pattern(sizes[i]);
        post(&p, body, sizes[i]);
        net_expect(&p, "\r\n\r\nok");
        assert_int_equal(f->body_len, sizes[i]);
        assert_memory_equal(f->body, body, sizes[i]);
        assert_int_equal(http_server_stats(f->server).buffered_bytes, 0);
        net_forget(&p);
        free(body);
    }
    net_close(&p);
}

static void chunked_bodies_of_all_sizes(void **state)
{
    static const size_t sizes[] = {1, 1000, 30000, 33000, 70000, 700000};
    static const size_t chunks[] = {1, 7, 1000, 40000};
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_ok;
    listen_with_options(f);
    join(f, &p);
    for (size_t k = 0; k < 24; k++) {
        size_t len = sizes[k % 6], chunk = chunks[k / 6], n = 0;
        if (len / chunk > 40000)
            continue;
        size_t room = len + (len / chunk + 2) * 16 + 200;
        char *body = pattern(len), *text = malloc(room);
        n += (size_t)snprintf(text, room,
                              "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for (size_t i = 0; i < len; i += chunk) {
            size_t now = len - i < chunk ? len - i : chunk;
            n += (size_t)snprintf(text + n, room - n, "%zx\r\n", now);
            memcpy(text + n, body + i, now);
            n += now;
            n += (size_t)snprintf(text + n, room - n, "\r\n");
        }
        n += (size_t)snprintf(text + n, room - n, "0\r\n\r\n");
        net_send_n(&p, text, n);
        net_expect(&p, "\r\n\r\nok");
        assert_int_equal(f->body_len, len);
        assert_memory_equal(f->body, body, len);
        net_forget(&p);
        free(body);
        free(text);
    }
    net_close(&p);
}

static void pipelined_requests_answered_at_once(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_target;
    listen_with_options(f);
    join(f, &p);
    net_send(
        &p,
        "GET /one HTTP/1.1\r\nHost: a\r\n\r\nPOST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        "GET /three HTTP/1.1\r\nHost: a\r\n\r\nGET /four HTTP/1.1\r\nHo");
    net_expect(&p, "/three");
    net_send(&p, "st: a\r\n\r\n");
    net_expect(&p, "/four");
    char *one = strstr(p.got, "/one"), *two = strstr(p.got, "/two"),
         *three = strstr(p.got, "/three");
    assert_true(one && two && three && one < two && two < three);
    assert_int_equal(f->requests, 4);
    net_close(&p);
}

/* One exchange at a time: the second begins when the first is over, and not from within http_reply. */
static void pipelined_requests_answered_later(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    listen_with_options(f);
    join(f, &p);
    net_send(
        &p,
        "GET /one HTTP/1.1\r\nHost: a\r\n\r\nPOST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab");
    wait_for_request(f);
    net_run_for(&f->uv, 20);
    assert_int_equal(f->requests, 1);
    net_send(&p, "c");
    net_run_for(&f->uv, 20);
    struct http_exchange *first = f->held;
    f->held = NULL;
    http_reply(first, 200, NULL, slice("first"));
    assert_int_equal(f->requests, 1);
    wait_for_request(f);
    assert_string_equal(f->target, "/two");
    assert_string_equal(f->body, "abc");
    http_reply(f->held, 200, NULL, slice("second"));
    net_expect(&p, "second");
    net_close(&p);
}

static void much_is_pipelined(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *body = pattern(100000);
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    post(&p, body, 100000); /* more than is read ahead */
    net_run_for(&f->uv, 20);
    assert_true(http_loop_stats(f->loop).blocks_used <= 2);
    struct http_exchange *first = f->held;
    f->held = NULL;
    http_reply(first, 200, NULL, slice("first"));
    wait_for_request(f);
    assert_int_equal(f->body_len, 100000);
    assert_memory_equal(f->body, body, 100000);
    http_reply(f->held, 200, NULL, slice("second"));
    net_expect(&p, "second");
    net_close(&p);
    free(body);
}

/* What a poll of the sockets brings: first the end of the first exchange, then bytes for the next one. */
static void answer_first(uv_async_t *handle)
{
    struct fixture *f = handle->data;
    struct http_exchange *first = f->held;
    f->held = NULL;
    http_reply(first, 200, NULL, slice("first"));
    uv_close((uv_handle_t *)handle, NULL);
}

static void bytes_come_before_what_is_pipelined_has_its_turn(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    uv_async_t answer;
    char *body = pattern(HTTP_BLOCK_BYTES);
    listen_with_options(f);
    for (int i = 0; i < 2; i++) { /* some is pipelined; as much as is read ahead */
        size_t before = i ? HTTP_BLOCK_BYTES : 2;
        uv_async_init(&f->uv, &answer, answer_first);
        answer.data = f;
        join(f, &p);
        net_send(&p, GET);
        wait_for_request(f);
        net_send(&p, "POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 32768\r\n\r\n");
        net_send_n(&p, body, before);
        net_run_for(&f->uv, 20);
        uv_async_send(&answer);
        net_send_n(&p, body + before, HTTP_BLOCK_BYTES - before);
        net_run_for(&f->uv, 20);
        wait_for_request(f);
        assert_string_equal(f->target, "/two");
        assert_int_equal(f->body_len, HTTP_BLOCK_BYTES);
        assert_memory_equal(f->body, body, HTTP_BLOCK_BYTES);
        http_reply(f->held, 200, NULL, slice("second"));
        f->held = NULL;
        net_expect(&p, "second");
        net_close(&p);
    }
    free(body);
}

/* It will not be read; the answer is whole all the same. */
static void much_is_pipelined_behind_the_last_request(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *body = pattern(4000000);
    listen_with_options(f);
    net_connect_narrow(&p, &f->uv, http_server_port(f->server));
    net_send(&p, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    wait_for_request(f);
    net_send_n(&p, body, (size_t)3 * HTTP_BLOCK_BYTES / 2);
    net_run_for(&f->uv, 20);
    http_reply(f->held, 200, NULL, (struct http_slice){body, 4000000});
    f->held = NULL;
    net_expect_bytes(&p, 4000000);
    net_expect_end(&p);
    assert_memory_equal(strstr(p.got, "\r\n\r\n") + 4, body, 4000000);
    net_close(&p);
    free(body);
}

static void expect_continue(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_body;
    f->options.max_body_bytes = 100;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    net_expect(&p, "HTTP/1.1 100 Continue\r\n\r\n");
    net_send(&p, "hello");
    net_expect(&p, "\r\n\r\nhello");
    net_forget(&p);
    net_send(
        &p, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello");
    net_expect(&p, "\r\n\r\nhello");
    assert_null(strstr(p.got, "100 Continue")); /* the body was there already */
    net_forget(&p);
    net_send(&p,
             "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 500\r\n\r\n");
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "HTTP/1.1 413 "));
    assert_null(strstr(p.got, "100 Continue"));
    net_close(&p);
}

static void stream_of_unknown_length(struct fixture *f, struct http_exchange *ex)
{
    struct http_slice two[] = {slice("ab"), slice("cde")};
    (void)f;
    http_reply_head(ex, 200, HTTP_UNKNOWN_LENGTH);
    http_reply_field(ex, "x-a", slice("1"));
    assert_true(http_reply_started(ex));
    http_reply_send(ex, NULL, 0, false);
    http_reply_send(ex, two, 2, false);
    http_reply_send(ex, two, 1, true);
}

static void chunked_response(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = stream_of_unknown_length;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    net_expect(&p, "transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n2\r\nab\r\n0\r\n\r\n");
    assert_non_null(strstr(p.got, "x-a: 1\r\n"));
    assert_null(strstr(p.got, "content-length"));
    net_forget(&p);
    net_send(&p, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" GET);
    net_expect(&p, "0\r\n\r\n");
    assert_non_null(strstr(p.got, "\r\n\r\nHTTP/1.1 200")); /* the answer to HEAD is a head only */
    net_close(&p);
}

static void old_clients(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = stream_of_unknown_length;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "connection: close\r\n\r\nabcdeab"));
    net_close(&p);
    f->answer = say_ok;
    join(f, &p);
    net_send(&p, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    net_expect(&p, "connection: keep-alive\r\n\r\nok");
    net_send(&p, "GET / HTTP/1.0\r\n\r\n");
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "connection: close\r\n\r\nok"));
    net_close(&p);
}

static void head_and_no_content(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_ok;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "content-length: 2\r\n"));
    assert_string_equal(p.got + p.len - 4, "\r\n\r\n");
    net_close(&p);
    f->answer = NULL;
    join(f, &p);
    net_send(&p, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    wait_for_request(f);
    http_reply_head(f->held, 204, 0);
    http_reply_send(f->held, NULL, 0, true);
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "204 No Content\r\n"));
    assert_null(strstr(p.got, "content-length"));
    net_close(&p);
}

static void client_asks_to_close(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_ok;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "connection: close\r\n\r\nok"));
    net_close(&p);
    net_run_for(&f->uv, 5);
    assert_int_equal(http_server_stats(f->server).connections, 0);
}

static void large_response_to_a_half_closed_client(struct fixture *f, struct http_exchange *ex)
{
    char *body = pattern(8000000);
    (void)f;
    http_reply(ex, 200, NULL, (struct http_slice){body, 8000000});
    free(body);
}

/* A client that has half-closed after its request gets what was answered at once, however long it is. */
static void half_closed_with_answer_in_the_queue(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = large_response_to_a_half_closed_client;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    net_shutdown(&p);
    net_expect_end(&p);
    assert_true(p.len > 8000000);
    net_close(&p);
}

static void wrong_lengths_are_cut(void **state)
{
    static const struct {
        uint64_t promised;
        const char *sent;
    } cases[] = {{10, "short"}, {3, "longer"}};
    struct fixture *f = *state;
    struct net_peer p;
    listen_with_options(f);
    for (unsigned i = 0; i < 2; i++) {
        struct http_slice data = slice(cases[i].sent);
        join(f, &p);
        net_send(&p, GET);
        wait_for_request(f);
        http_reply_head(f->held, 200, cases[i].promised);
        http_reply_send(f->held, &data, 1, true);
        f->held = NULL;
        net_expect_end(&p); /* the connection ends, so that the client cannot take it as complete */
        net_close(&p);
    }
    assert_int_equal(f->gone, 0);
}

static void too_many_fields_in_a_response(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *value = pattern(20000);
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, 5);
    http_reply_field(f->held, "x-a", slice(value));
    http_reply_field(f->held, "x-b", slice(value));
    http_reply_send(f->held, &(struct http_slice){"12345", 5}, 1, true);
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "HTTP/1.1 500 "));
    net_close(&p);
    free(value);
}

static void abort_cuts(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    struct http_slice data = slice("part");
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, HTTP_UNKNOWN_LENGTH);
    http_reply_send(f->held, &data, 1, false);
    http_exchange_abort(f->held);
    net_expect_end(&p);
    assert_null(strstr(p.got, "\r\n0\r\n"));
    assert_int_equal(f->gone, 0);
    net_close(&p);
}

static void many_slices(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    struct http_slice data[200];
    for (unsigned i = 0; i < 200; i++)
        data[i] = slice("0123456789");
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, HTTP_UNKNOWN_LENGTH);
    http_reply_send(f->held, data, 200, true);
    net_expect(&p, "\r\n0\r\n\r\n");
    char *body = strstr(p.got, "\r\n\r\n7d0\r\n0123456789");
    assert_non_null(body);
    assert_int_equal(p.len - (size_t)(body - p.got), 4 + 5 + 2000 + 7);
    net_close(&p);
}

static void peer_address(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    assert_string_equal(http_exchange_peer(f->held), "127.0.0.1");
    assert_false(http_exchange_is_tls(f->held));
    http_exchange_abort(f->held);
    net_close(&p);
}

/* --- clients that leave ------------------------------------------------------------------------------------ */

static void client_leaves_while_waiting(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    net_close(&p);
    net_run_until(&f->uv, has_gone, f, "gone");
    assert_int_equal(f->why, HTTP_GONE_CLOSED);
}

static void client_resets_while_waiting(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    net_reset(&p);
    net_run_until(&f->uv, has_gone, f, "gone");
    assert_int_equal(f->why, HTTP_GONE_RESET);
}

static void half_close_while_waiting_is_leaving(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    net_shutdown(&p);
    net_run_until(&f->uv, has_gone, f, "gone");
    assert_int_equal(f->why, HTTP_GONE_CLOSED);
    net_expect_end(&p);
    net_close(&p);
}

static void client_leaves_within_a_stream(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    struct http_slice data = slice("data: x\n\n");
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, HTTP_UNKNOWN_LENGTH);
    http_reply_send(f->held, &data, 1, false);
    net_expect(&p, "data: x");
    net_close(&p);
    net_run_until(&f->uv, has_gone, f, "gone");
    assert_int_equal(http_server_stats(f->server).exchanges, 0);
}

/* Sending to a client that has reset: noticed by the write, told from the loop. */
static void write_to_a_reset_client(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    struct http_slice data = slice("data: x\n\n");
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, HTTP_UNKNOWN_LENGTH);
    net_reset(&p);
    for (unsigned i = 0; i < 10; i++)
        http_reply_send(f->held, &data, 1, false);
    assert_int_equal(f->gone, 0);
    net_run_until(&f->uv, has_gone, f, "gone");
    assert_int_equal(f->why, HTTP_GONE_RESET);
}

static void leaves_behind_much_that_it_pipelined(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *junk = pattern(100000);
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    net_send_n(&p, junk, 100000); /* the end is behind bytes that are not read */
    net_close(&p);
    net_run_until(&f->uv, has_gone, f, "gone");
    free(junk);
}

static void slow_reader_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *data = pattern(1000000);
    struct http_slice part = {data, 1000000};
    listen_with_options(f);
    net_connect_narrow(&p, &f->uv, http_server_port(f->server));
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, 20000000);
    unsigned sent = 0;
    while (sent < 20 && http_reply_send(f->held, &part, 1, false))
        sent++;
    assert_true(++sent < 20); /* told to wait */
    assert_true(http_reply_queued(f->held) >= HTTP_WRITE_HIGH_BYTES);
    assert_int_equal(f->drained, 0);
    while (sent < 20) {
        net_read(&p);
        net_run_for(&f->uv, 1);
        if (!f->drained)
            continue;
        f->drained = 0;
        while (sent < 20 && http_reply_send(f->held, &part, 1, sent == 19))
            sent++;
        sent++; /* the one that was told to wait */
    }
    net_expect_bytes(&p, 20000000);
    assert_memory_equal(p.got + p.len - 1000000, data, 1000000);
    net_close(&p);
    free(data);
}

static void client_that_does_not_read(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *data = pattern(8000000);
    struct http_slice part = {data, 8000000};
    f->options.write_timeout_ms = 60;
    listen_with_options(f);
    net_connect_narrow(&p, &f->uv, http_server_port(f->server));
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, HTTP_UNKNOWN_LENGTH);
    assert_false(http_reply_send(f->held, &part, 1, false));
    net_run_until(&f->uv, has_gone, f, "gone");
    assert_int_equal(f->why, HTTP_GONE_STALLED);
    assert_int_equal(http_server_stats(f->server).timed_out_write, 1);
    net_close(&p);
    free(data);
}

/* A caller that goes on sending though told to wait does not fill the memory. */
static void queue_is_bounded(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *data = pattern(1000000);
    struct http_slice part = {data, 1000000};
    listen_with_options(f);
    net_connect_narrow(&p, &f->uv, http_server_port(f->server));
    net_send(&p, GET);
    wait_for_request(f);
    http_reply_head(f->held, 200, HTTP_UNKNOWN_LENGTH);
    for (unsigned i = 0; i < 100; i++)
        http_reply_send(f->held, &part, 1, false);
    assert_true(http_reply_queued(f->held) < HTTP_WRITE_MAX_BYTES + 2000000);
    net_run_until(&f->uv, has_gone, f, "gone");
    assert_int_equal(f->why, HTTP_GONE_STALLED);
    net_close(&p);
    free(data);
}

/* --- refusals ---------------------------------------------------------------------------------------------- */

static void refused(struct fixture *f, const char *text, int status)
{
    char want[64];
    struct net_peer p;
    unsigned before = f->requests;
    join(f, &p);
    net_send(&p, text);
    net_expect_end(&p);
    snprintf(want, sizeof want, "HTTP/1.1 %d ", status);
    if (strncmp(p.got, want, strlen(want)))
        fail_msg("%s\n-> %s", text, p.got);
    assert_non_null(strstr(p.got, "connection: close\r\n"));
    assert_non_null(strstr(p.got, "content-type: application/json\r\n"));
    assert_non_null(strstr(p.got, "\r\n\r\n{\"error\":{\"code\":"));
    assert_int_equal(f->requests, before);
    net_close(&p);
}

static void malformed_requests(void **state)
{
    struct fixture *f = *state;
    char *text = malloc(40000);
    f->answer = say_ok;
    listen_with_options(f);
    refused(
        f,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400);
    refused(f, "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400);
    refused(f, "GET / HTTP/1.1\nHost: a\n\n", 400);
    refused(f, "GET / HTTP/1.1\r\n\r\n", 400);
    refused(f, "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501);
    refused(f, "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505);
    refused(f, "POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417);
    memset(text, 'a', 39999);
    text[39999] = 0;
    memcpy(text, "GET /", 5);
    refused(f, text, 414);
    memcpy(text, "GET / HTTP/1.1\r\nX: ", 19);
    refused(f, text, 431);
    struct http_server_stats stats = http_server_stats(f->server);
    assert_int_equal(stats.refused_malformed, 7);
    assert_int_equal(stats.refused_head, 2);
    free(text);
}

/* What was put behind a refused request is not executed. */
static void smuggled_request_is_not_executed(void **state)
{
    struct fixture *f = *state;
    f->answer = say_ok;
    listen_with_options(f);
    refused(
        f,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
        400);
    refused(f,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 33\r\n\r\n"
            "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
            400);
    assert_int_equal(f->requests, 0);
}

static void bodies_that_are_too_large(void **state)
{
    struct fixture *f = *state;
    f->answer = say_ok;
    f->options.max_body_bytes = 10;
    listen_with_options(f);
    refused(f, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413);
    refused(
        f,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n3\r\nabc\r\n0\r\n\r\n",
        413);
    assert_int_equal(http_server_stats(f->server).refused_body, 2);
    struct net_peer p;
    join(f, &p);
    net_send(&p, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789");
    net_expect(&p, "\r\n\r\nok");
    net_close(&p);
}

/* The answer can be read though the client is still sending: the connection lingers. */
static void refusal_is_read_by_a_client_that_is_still_sending(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *body = pattern(6000000);
    f->options.max_body_bytes = 1000;
    listen_with_options(f);
    join(f, &p);
    post(&p, body, 6000000);
    net_expect(&p, "HTTP/1.1 413 ");
    net_expect_end(&p);
    assert_int_equal(p.error, 0);
    net_close(&p);
    free(body);
}

static void lingering_ends(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.linger_ms = 40;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, "BREW\r\n\r\n");
    net_expect_end(&p);
    net_run_for(&f->uv, 120); /* this client never closes */
    assert_int_equal(http_server_stats(f->server).connections, 0);
    net_close(&p);
}

static void buffered_bytes_are_bounded(void **state)
{
    struct fixture *f = *state;
    struct net_peer p, q;
    char *body = pattern(900000);
    f->options.max_buffered_bytes = 1 << 20;
    listen_with_options(f);
    join(f, &p);
    post(&p, body, 500000);
    wait_for_request(f);
    assert_true(http_server_stats(f->server).buffered_bytes >= 500000);
    join(f, &q);
    net_send(&q, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n");
    net_send_n(&q, body, 900000);
    net_expect_end(&q);
    assert_non_null(strstr(q.got, "HTTP/1.1 503 "));
    assert_non_null(strstr(q.got, "retry-after: 1\r\n"));
    assert_int_equal(http_server_stats(f->server).refused_buffers, 1);
    net_close(&q);
    http_exchange_release(f->held); /* its buffers are free for others, though it goes on */
    assert_int_equal(http_server_stats(f->server).buffered_bytes, 0);
    struct http_exchange *first = f->held;
    f->held = NULL;
    join(f, &q);
    post(&q, body, 500000);
    wait_for_request(f);
    http_reply(f->held, 200, NULL, slice("second"));
    http_reply(first, 200, NULL, slice("first"));
    net_expect(&q, "second");
    net_expect(&p, "first");
    net_close(&p);
    net_close(&q);
    free(body);
}

/* --- time -------------------------------------------------------------------------------------------------- */

static void slow_loris(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.header_timeout_ms = 60;
    f->options.linger_ms = 10;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, "GET / HTTP/1.1\r\n");
    for (unsigned i = 0; i < 200 && !p.ended && !p.error;
         i++) { /* a byte now and then does not help */
        net_send(&p, "X");
        net_run_for(&f->uv, 5);
        net_read(&p);
    }
    assert_true(p.ended || p.error);
    assert_non_null(strstr(p.got, "HTTP/1.1 408 "));
    assert_int_equal(http_server_stats(f->server).timed_out_head, 1);
    net_close(&p);
}

static void body_that_stalls(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.body_timeout_ms = 50;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n012");
    net_expect(&p, "HTTP/1.1 408 ");
    assert_int_equal(http_server_stats(f->server).timed_out_body, 1);
    net_close(&p);
}

static void idle_connections_are_closed(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->answer = say_ok;
    f->options.idle_timeout_ms = 50;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    net_expect_end(&p);
    assert_non_null(strstr(p.got, "\r\n\r\nok")); /* and not a word more */
    assert_string_equal(p.got + p.len - 2, "ok");
    assert_int_equal(http_server_stats(f->server).timed_out_idle, 1);
    net_close(&p);
}

/* A request that takes long to answer is nobody's fault: no timeout of the server's ends it. */
static void long_exchanges_are_left_alone(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.idle_timeout_ms = f->options.body_timeout_ms = f->options.header_timeout_ms = 20;
    f->options.write_timeout_ms = 20;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    net_run_for(&f->uv, 100);
    assert_non_null(f->held);
    http_reply(f->held, 200, NULL, slice("late"));
    net_expect(&p, "late");
    net_close(&p);
}

/* --- connections ------------------------------------------------------------------------------------------- */

static void longest_idle_makes_room(void **state)
{
    struct fixture *f = *state;
    struct net_peer p[4];
    f->answer = say_ok;
    f->options.max_connections = 3;
    listen_with_options(f);
    for (unsigned i = 0; i < 3; i++) {
        join(f, &p[i]);
        net_send(&p[i], GET);
        net_expect(&p[i], "ok");
    }
    net_forget(&p[0]);
    net_send(&p[0], GET); /* so 1 is idle longest */
    net_expect(&p[0], "ok");
    join(f, &p[3]);
    net_send(&p[3], GET);
    net_expect(&p[3], "ok");
    net_expect_end(&p[1]);
    assert_int_equal(http_server_stats(f->server).evicted_idle, 1);
    assert_int_equal(http_server_stats(f->server).connections, 3);
    for (unsigned i = 0; i < 4; i++)
        net_close(&p[i]);
}

static void too_many_connections(void **state)
{
    struct fixture *f = *state;
    struct net_peer p, q;
    f->options.max_connections = 1;
    listen_with_options(f);
    join(f, &p);
    net_send(&p, GET);
    wait_for_request(f);
    join(f, &q);
    net_expect_end(&q);
    assert_non_null(strstr(q.got, "HTTP/1.1 503 "));
    assert_non_null(strstr(q.got, "retry-after: 1\r\n"));
    assert_int_equal(http_server_stats(f->server).refused_connections, 1);
    net_close(&q);
    http_reply(f->held, 200, NULL, slice("still here"));
    net_expect(&p, "still here");
    net_close(&p);
}

/* A connection without a request, and a stream whose request was released, hold no buffer. */
static void idle_connections_and_open_streams_hold_no_buffer(void **state)
{
    enum { N = 200 };
    struct fixture *f = *state;
    struct net_peer p[N];
    struct http_slice data = slice("data: x\n\n");
    listen_with_options(f);
    for (unsigned i = 0; i < N; i++) {
        join(f, &p[i]);
        if (i % 2)
            continue;
        net_send(&p[i], GET);
        wait_for_request(f);
        http_exchange_release(f->held);
        http_reply_head(f->held, 200, HTTP_UNKNOWN_LENGTH);
        http_reply_send(f->held, &data, 1, false);
        f->held = NULL;
    }
    net_run_for(&f->uv, 5);
    assert_int_equal(http_server_stats(f->server).connections, N);
    assert_int_equal(http_loop_stats(f->loop).blocks_used, 0);
    assert_int_equal(http_loop_stats(f->loop).body_bytes_used, 0);
    for (unsigned i = 0; i < N; i++)
        net_close(&p[i]);
    net_run_for(&f->uv, 5);
    assert_int_equal(f->gone, N / 2);
}

static void buffers_are_used_again(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char *body = pattern(100000);
    f->answer = say_body;
    listen_with_options(f);
    join(f, &p);
    uint64_t warm = 0;
    for (unsigned i = 0; i < 50; i++) {
        net_forget(&p);
        post(&p, body, i % 2 ? 100000 : 100);
        net_expect_bytes(&p, i % 2 ? 100000 : 100);
        net_run_for(&f->uv, 1);
        if (i == 9)
            warm = http_loop_stats(f->loop).mallocs;
    }
    assert_int_equal(http_loop_stats(f->loop).mallocs, warm);
    net_close(&p);
    free(body);
}

/* --- listening, draining, closing -------------------------------------------------------------------------- */

static void errors_of_listening(void **state)
{
    struct fixture *f = *state;
    char error[HTTP_ERROR_BYTES];
    listen_with_options(f);
    struct http_server_options o = f->options;
    o.port = http_server_port(f->server);
    assert_null(http_server_new(f->loop, &o, &ops, f, error));
    assert_non_null(strstr(error, "127.0.0.1"));
    assert_non_null(strstr(error, "in use"));
    o.host = "no.such.host";
    assert_null(http_server_new(f->loop, &o, &ops, f, error));
    assert_non_null(strstr(error, "not a numeric"));
    o = f->options;
    o.max_header_bytes = 1 << 20;
    assert_null(http_server_new(f->loop, &o, &ops, f, error));
    assert_non_null(strstr(error, "max_header_bytes"));
    o = f->options;
    o.max_fields = 0;
    assert_null(http_server_new(f->loop, &o, &ops, f, error));
    o = f->options;
    o.max_connections = 0;
    assert_null(http_server_new(f->loop, &o, &ops, f, error));
}

static void several_loops_on_one_port(void **state)
{
    struct fixture *f = *state;
    char error[HTTP_ERROR_BYTES];
    struct net_peer p;
    f->answer = say_ok;
    f->options.reuse_port = true;
    listen_with_options(f);
    struct http_server_options o = f->options;
    o.port = http_server_port(f->server);
    struct http_server *second = http_server_new(f->loop, &o, &ops, f, error);
    assert_non_null(second);
    for (unsigned i = 0; i < 16; i++) {
        join(f, &p);
        net_send(&p, GET);
        net_expect(&p, "ok");
        net_close(&p);
    }
    assert_int_equal(http_server_stats(f->server).accepted + http_server_stats(second).accepted,
                     16);
    http_server_close(second);
    net_run_for(&f->uv, 2);
}

/* A successor that has the listening socket gets the connections that its predecessor did not take. */
static void socket_is_handed_over(void **state)
{
    struct fixture *f = *state;
    char error[HTTP_ERROR_BYTES];
    struct net_peer p;
    f->answer = say_ok;
    listen_with_options(f);
    struct http_server_options o = f->options;
    o.fd = dup(http_server_fd(f->server));
    struct http_server *old = f->server;
    f->server = http_server_new(f->loop, &o, &ops, f, error);
    assert_non_null(f->server);
    assert_int_equal(http_server_port(f->server), http_server_port(old));
    http_server_close(old);
    net_run_for(&f->uv, 2);
    join(f, &p);
    net_send(&p, GET);
    net_expect(&p, "ok");
    net_close(&p);
}

static void on_done(void *user)
{
    ((struct fixture *)user)->done++;
}

static void drain(void **state)
{
    struct fixture *f = *state;
    struct net_peer busy, idle, queued;
    f->options.drain_idle_ms = 60;
    listen_with_options(f);
    join(f, &busy);
    net_send(&busy, GET);
    wait_for_request(f);
    struct http_exchange *held = f->held;
    join(f, &idle);
    net_run_for(&f->uv, 2);
    f->answer = say_ok;
    join(f, &queued); /* in the listening socket's queue, not accepted yet */
    http_server_drain(f->server, on_done);
    assert_int_equal(http_server_fd(f->server), -1);
    net_send(&queued, GET);
    net_send(&idle, GET);
    net_expect_end(&queued);
    assert_non_null(strstr(queued.got, "connection: close\r\n\r\nok"));
    net_expect_end(&idle);
    assert_non_null(strstr(idle.got, "connection: close\r\n\r\nok"));
    net_close(&idle);
    net_close(&queued);
    net_run_for(&f->uv, 100);
    assert_int_equal(f->done, 0); /* one exchange is left */
    http_reply(held, 200, NULL, slice("last"));
    net_expect_end(&busy);
    assert_non_null(strstr(busy.got, "connection: close\r\n\r\nlast"));
    net_close(&busy);
    net_run_until(&f->uv, is_done, f, "the end of draining");
    assert_int_equal(f->done, 1);
}

static void drain_closes_what_stays_idle(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.drain_idle_ms = 30;
    listen_with_options(f);
    join(f, &p);
    net_run_for(&f->uv, 2);
    http_server_drain(f->server, on_done);
    net_expect_end(&p);
    assert_int_equal(p.len, 0);
    net_run_until(&f->uv, is_done, f, "the end of draining");
    net_close(&p);
}

static void close_with_work_in_hand(void **state)
{
    struct fixture *f = *state;
    struct net_peer p, q;
    listen_with_options(f);
    join(f, &p);
    join(f, &q);
    net_send(&p, GET);
    wait_for_request(f);
    http_server_close(f->server);
    f->server = NULL;
    assert_int_equal(f->gone, 1);
    assert_int_equal(f->why, HTTP_GONE_SHUTDOWN);
    net_expect_end(&p);
    net_expect_end(&q);
    net_close(&p);
    net_close(&q);
}

/* libuv opens descriptors of its own with the first loop. */
static int warm_up(void **state)
{
    uv_loop_t uv;
    (void)state;
    return uv_loop_init(&uv) || uv_loop_close(&uv);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(keep_alive),
        T(request_byte_by_byte),
        T(bodies_of_all_sizes),
        T(chunked_bodies_of_all_sizes),
        T(pipelined_requests_answered_at_once),
        T(pipelined_requests_answered_later),
        T(much_is_pipelined),
        T(bytes_come_before_what_is_pipelined_has_its_turn),
        T(much_is_pipelined_behind_the_last_request),
        T(expect_continue),
        T(chunked_response),
        T(old_clients),
        T(head_and_no_content),
        T(client_asks_to_close),
        T(half_closed_with_answer_in_the_queue),
        T(wrong_lengths_are_cut),
        T(too_many_fields_in_a_response),
        T(abort_cuts),
        T(many_slices),
        T(peer_address),
        T(client_leaves_while_waiting),
        T(client_resets_while_waiting),
        T(half_close_while_waiting_is_leaving),
        T(client_leaves_within_a_stream),
        T(write_to_a_reset_client),
        T(leaves_behind_much_that_it_pipelined),
        T(slow_reader_is_waited_for),
        T(client_that_does_not_read),
        T(queue_is_bounded),
        T(malformed_requests),
        T(smuggled_request_is_not_executed),
        T(bodies_that_are_too_large),
        T(refusal_is_read_by_a_client_that_is_still_sending),
        T(lingering_ends),
        T(buffered_bytes_are_bounded),
        T(slow_loris),
        T(body_that_stalls),
        T(idle_connections_are_closed),
        T(long_exchanges_are_left_alone),
        T(longest_idle_makes_room),
        T(too_many_connections),
        T(idle_connections_and_open_streams_hold_no_buffer),
        T(buffers_are_used_again),
        T(errors_of_listening),
        T(several_loops_on_one_port),
        T(socket_is_handed_over),
        T(drain),
        T(drain_closes_what_stays_idle),
        T(close_with_work_in_hand),
    };
    return cmocka_run_group_tests_name("http_server", tests, warm_up, NULL);
}
