/* The HTTP client against upstreams that follow a script: honest ones, and ones that lie, stall, babble or leave. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "controller/http/http_client.h"
#include "tests/support/net.h"

struct fixture {
    uv_loop_t uv;
    struct http_loop *loop;
    struct http_client *client;
    struct http_upstream *up;
    struct http_upstream_options options;
    int listener;
    uint16_t port;
    unsigned fds_before;

    /* what came of the last call */
    struct http_call *call;
    char *got;
    size_t len, cap;
    unsigned parts, heads, over;
    int status;
    bool failed;
    struct http_failure failure;
    char detail[160];
    void (*in_part)(struct fixture *f, struct http_call *call, const struct http_part *part);
};

static struct http_slice slice(const char *text)
{
    return (struct http_slice){text, strlen(text)};
}

static void on_part(void *user, struct http_call *call, const struct http_part *part)
{
    struct fixture *f = user;
    size_t bytes = 0;
    f->parts++;
    if (part->head) {
        f->heads++;
        f->status = part->head->status;
    }
    for (size_t i = 0; i < part->n; i++) {
        while (f->len + part->data[i].len >= f->cap)
            f->got = realloc(f->got, f->cap = f->cap ? 2 * f->cap : 4096);
        memcpy(f->got + f->len, part->data[i].s, part->data[i].len);
        f->len += part->data[i].len;
        f->got[f->len] = 0;
        bytes += part->data[i].len;
    }
    assert_int_equal(bytes, part->bytes);
    if (part->last)
        f->over++;
    if (f->in_part)
        f->in_part(f, call, part);
}

static void on_failed(void *user, struct http_call *call, const struct http_failure *failure)
{
    struct fixture *f = user;
    (void)call;
    f->over++;
    f->failed = true;
    f->failure = *failure;
    snprintf(f->detail, sizeof f->detail, "%s", failure->detail);
}

static const struct http_call_ops ops = {.part = on_part, .failed = on_failed};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->fds_before = net_open_fds();
    uv_loop_init(&f->uv);
    f->loop = http_loop_new(&f->uv);
    f->client = http_client_new(f->loop);
    f->listener = net_listen(&f->port);
    http_upstream_defaults(&f->options);
    f->options.host = "127.0.0.1";
    f->options.port = f->port;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    http_client_close(f->client);
    uv_run(&f->uv, UV_RUN_NOWAIT);
    uv_run(&f->uv, UV_RUN_NOWAIT);
    struct http_loop_stats stats = http_loop_stats(f->loop);
    http_loop_free(f->loop);
    uv_run(&f->uv, UV_RUN_DEFAULT);
    int e = uv_loop_close(&f->uv);
    close(f->listener);
    unsigned fds = net_open_fds(), before = f->fds_before;
    free(f->got);
    free(f);
    if (stats.blocks_used || stats.body_bytes_used || e || fds != before) {
        print_error("left: %llu blocks, loop %d, %u descriptors instead of %u\n",
                    (unsigned long long)stats.blocks_used, e, fds, before);
        return -1;
    }
    return 0;
}

static struct http_call *new_call(struct fixture *f, enum http_method method, const char *target)
{
    if (!f->up)
        f->up = http_upstream_new(f->client, &f->options);
    struct http_call *call = http_call_new(f->up, &ops, f);
    assert_int_equal(http_call_request(call, method, slice(target)), 0);
    f->parts = f->heads = f->over = 0;
    f->len = 0;
    f->failed = false;
    f->status = 0;
    f->call = call;
    return call;
}

static void get(struct fixture *f)
{
    assert_int_equal(http_call_send(new_call(f, HTTP_M_GET, "/"), NULL, 0), 0);
}

static bool is_over(void *arg)
{
    return ((struct fixture *)arg)->over;
}

static bool has_part(void *arg)
{
    struct fixture *f = arg;
    return f->parts || f->over;
}

static void wait_until_over(struct fixture *f)
{
    net_run_until(&f->uv, is_over, f, "the end of the call");
    assert_int_equal(f->over, 1);
}

static void expect_answer(struct fixture *f, int status, const char *body)
{
    wait_until_over(f);
    if (f->failed)
        fail_msg("failed: %s, %s", http_fail_text(f->failure.why), f->detail);
    assert_int_equal(f->status, status);
    assert_int_equal(f->heads, 1);
    assert_int_equal(f->len, strlen(body));
    if (f->len)
        assert_memory_equal(f->got, body, f->len);
}

static void expect_failure(struct fixture *f, enum http_fail why)
{
    wait_until_over(f);
    if (!f->failed || f->failure.why != why)
        fail_msg("%s %s instead of %s", f->failed ? http_fail_text(f->failure.why) : "no failure",
                 f->detail, http_fail_text(why));
}

#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

/* A call whose upstream says `text`; the upstream's side stays open in *p. */
static void call_and_say(struct fixture *f, struct net_peer *p, const char *text)
{
    get(f);
    net_accept(p, &f->uv, f->listener);
    net_expect(p, "\r\n\r\n");
    net_send(p, text);
}

/* --- calls that go well ------------------------------------------------------------------------------------ */

static void request_as_it_goes_out(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    struct http_slice body[] = {slice("hel"), slice("lo")};
    char want[256];
    struct http_call *call = new_call(f, HTTP_M_POST, "/v1/x?y");
    http_call_field(call, "x-request-id", slice("7"));
    assert_int_equal(http_call_send(call, body, 2), 0);
    assert_int_equal(f->over, 0);
    net_accept(&p, &f->uv, f->listener);
    snprintf(
        want, sizeof want,
        "POST /v1/x?y HTTP/1.1\r\nhost: 127.0.0.1:%u\r\nx-request-id: 7\r\ncontent-length: 5\r\n\r\nhello",
        f->port);
    net_expect(&p, "hello");
    assert_string_equal(p.got, want);
    net_send(&p, OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
}

static void connection_is_used_again(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    for (unsigned i = 0; i < 3; i++) {
        net_forget(&p);
        get(f);
        assert_true(http_call_reused(f->call));
        net_expect(&p, "\r\n\r\n");
        net_send(
            &p, "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n");
        expect_answer(f, 404, "no");
    }
    struct http_upstream_stats stats = http_upstream_stats(f->up);
    assert_int_equal(stats.connects, 1);
    assert_int_equal(stats.reused, 3);
    assert_int_equal(stats.idle, 1);
    assert_int_equal(stats.calls, 0);
    net_close(&p);
}

static void answer_byte_by_byte(void **state)
{
    static const char text[] =
        "HTTP/1.1 200 OK\r\nX-Y: z\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "");
    for (size_t i = 0; i < sizeof text - 1; i++) {
        net_send_n(&p, text + i, 1);
        uv_run(&f->uv, UV_RUN_NOWAIT);
    }
    expect_answer(f, 200, "hello world");
    assert_int_equal(http_upstream_stats(f->up).idle, 1);
    net_close(&p);
}

static void answers_without_a_body(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 204 No Content\r\n\r\n");
    expect_answer(f, 204, "");
    net_forget(&p);
    assert_int_equal(http_call_send(new_call(f, HTTP_M_HEAD, "/"), NULL, 0), 0);
    net_expect(&p, "HEAD / ");
    net_send(&p, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    expect_answer(f, 200, "");
    get(f); /* on the same connection: nothing of it is mistaken */
    net_expect(&p, "GET / ");
    net_send(&p, OK);
    expect_answer(f, 200, "ok");
    assert_int_equal(http_upstream_stats(f->up).connects, 1);
    net_close(&p);
}

static void answer_up_to_the_end(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.0 200 OK\r\n\r\nold");
    net_run_for(&f->uv, 5);
    net_send(&p, " style");
    net_close(&p);
    expect_answer(f, 200, "old style");
    assert_int_equal(http_upstream_stats(f->up).idle, 0);
}

static void upstream_asks_to_close(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    expect_answer(f, 200, "ok");
    net_expect_end(&p);
    assert_int_equal(http_upstream_stats(f->up).connections, 0);
    net_close(&p);
}

static void informational_answers_are_dropped(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
}

static void many_small_chunks(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char text[4000], want[600] = "";
    size_t n = (size_t)snprintf(text, sizeof text,
                                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (unsigned i = 0; i < 250; i++) { /* more pieces than fit one part */
        n += (size_t)snprintf(text + n, sizeof text - n, "2\r\n%02x\r\n", i);
        snprintf(want + 2 * i, 3, "%02x", i);
    }
    snprintf(text + n, sizeof text - n, "0\r\n\r\n");
    call_and_say(f, &p, text);
    expect_answer(f, 200, want);
    assert_true(f->parts >= 250 / HTTP_MAX_PIECES);
    net_close(&p);
}

static void call_again(struct fixture *f, struct http_call *call, const struct http_part *part)
{
    (void)call;
    if (!part->last)
        return;
    f->in_part = NULL;
    get(f);
    assert_true(http_call_reused(f->call));
    /* the part that is being told is not disturbed */
    assert_int_equal(part->head->status, 200);
    assert_memory_equal(part->data[0].s, "ok", 2);
}

static void call_made_in_the_last_part(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->in_part = call_again;
    call_and_say(f, &p, OK);
    net_expect(&p, "\r\n\r\nGET / ");
    net_send(&p, OK);
    expect_answer(f, 200, "ok");
    assert_int_equal(http_upstream_stats(f->up).connects, 1);
    net_close(&p);
}

static void large_body_to_a_slow_upstream(void **state)
{
    enum { SIZE = 6000000 };
    struct fixture *f = *state;
    struct net_peer p;
    char *data = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)('a' + i * 7 % 26);
    struct http_slice body[] = {{data, SIZE / 3}, {data + SIZE / 3, SIZE - SIZE / 3}};
    assert_int_equal(http_call_send(new_call(f, HTTP_M_POST, "/"), body, 2), 0);
    net_accept(&p, &f->uv, f->listener);
    net_run_for(&f->uv, 20); /* nobody reads */
    net_expect(&p, "\r\n\r\n");
    size_t head = (size_t)(strstr(p.got, "\r\n\r\n") - p.got) + 4;
    net_expect_bytes(&p, head + SIZE);
    assert_memory_equal(p.got + head, data, SIZE);
    net_send(&p, OK);
    expect_answer(f, 200, "ok");
    assert_int_equal(http_upstream_stats(f->up).idle, 1);
    net_close(&p);
    free(data);
}

/* The upstream answers before it has read the whole request: the answer counts, the connection is not used again. */
static void early_answer(void **state)
{
    enum { SIZE = 8000000 };
    struct fixture *f = *state;
    struct net_peer p;
    char *data = calloc(1, SIZE);
    struct http_slice body = {data, SIZE};
    assert_int_equal(http_call_send(new_call(f, HTTP_M_POST, "/"), &body, 1), 0);
    net_accept(&p, &f->uv, f->listener);
    net_run_for(&f->uv, 20);
    net_send(&p, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch");
    expect_answer(f, 413, "much");
    assert_int_equal(http_upstream_stats(f->up).idle, 0);
    free(data); /* it is the caller's again */
    net_run_for(&f->uv, 5);
    net_close(&p);
}

static void fields_of_a_request_are_passed_on(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    static const char text[] =
        "Host: x|Accept: a|Authorization: t|X-Request-Id: i"; /* only what the fields point to counts */
    struct http_head head = {.base = text, .n_fields = 4};
    head.fields[0] = (struct http_field){
        .name = 0, .name_len = 4, .value = 6, .value_len = 1, .known = HTTP_F_HOST};
    head.fields[1] = (struct http_field){.name = 8, .name_len = 6, .value = 16, .value_len = 1};
    head.fields[2] = (struct http_field){
        .name = 18, .name_len = 13, .value = 33, .value_len = 1, .known = HTTP_F_AUTHORIZATION};
    head.fields[3] = (struct http_field){.name = 35,
                                         .name_len = 12,
                                         .value = 49,
                                         .value_len = 1,
                                         .known = (uint8_t)http_known_of(text + 35, 12)};
    struct http_call *call = new_call(f, HTTP_M_GET, "/");
    static const enum http_known without[] = {HTTP_F_AUTHORIZATION, HTTP_F_REQUEST_ID};
    http_call_fields(call, &head, without, 2);
    assert_int_equal(http_call_send(call, NULL, 0), 0);
    net_accept(&p, &f->uv, f->listener);
    net_expect(&p, "\r\n\r\n");
    assert_non_null(strstr(p.got, "\r\nAccept: a\r\n"));
    assert_null(strstr(p.got, "Authorization"));
    assert_null(strstr(p.got, "X-Request-Id"));
    assert_null(strstr(p.got, "Host: x"));
    net_send(&p, OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
}

static void names_are_resolved(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.host = "localhost";
    f->options.host_field = "engine.test";
    get(f);
    net_accept(&p, &f->uv, f->listener);
    net_expect(&p, "\r\nhost: engine.test\r\n");
    net_send(&p, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    expect_answer(f, 200, "ok");
    net_close(&p);
    get(f); /* the addresses are known now */
    net_accept(&p, &f->uv, f->listener);
    net_expect(&p, "\r\n\r\n");
    net_send(&p, OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
}

/* --- connections that cannot be had ------------------------------------------------------------------------ */

static void nobody_listens(void **state)
{
    struct fixture *f = *state;
    f->options.port = net_closed_port();
    get(f);
    assert_int_equal(f->over, 0); /* never from within a call */
    expect_failure(f, HTTP_FAIL_CONNECT);
    assert_false(f->failure.connected || f->failure.sent || f->failure.answered ||
                 f->failure.reused);
    assert_non_null(strstr(f->detail, "refused"));
    net_run_for(&f->uv, 2);
    assert_int_equal(http_upstream_stats(f->up).connections, 0);
}

static void no_such_name(void **state)
{
    struct fixture *f = *state;
    f->options.host = "no such name";
    get(f);
    expect_failure(f, HTTP_FAIL_RESOLVE);
}

static void connecting_takes_too_long(void **state)
{
    struct fixture *f = *state;
    struct net_peer full;
    uint16_t port;
    int listener = net_listen(&port);
    assert_int_equal(listen(listener, 0), 0); /* no room in its queue: the next SYN is dropped */
    net_connect(&full, &f->uv, port);
    f->options.port = port;
    f->options.connect_timeout_ms = 60;
    get(f);
    expect_failure(f, HTTP_FAIL_TIMEOUT);
    assert_false(f->failure.connected);
    net_close(&full);
    close(listener);
}

static void connections_are_bounded(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.max_connections = 1;
    get(f);
    struct http_call *second = http_call_new(f->up, &ops, f);
    assert_int_equal(http_call_request(second, HTTP_M_GET, slice("/")), 0);
    assert_int_equal(http_call_send(second, NULL, 0), WEIR_E_LIMIT);
    net_accept(&p, &f->uv, f->listener);
    net_expect(&p, "\r\n\r\n");
    net_send(&p, OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
}

static void requests_that_cannot_be_sent(void **state)
{
    struct fixture *f = *state;
    char *value = malloc(40000);
    memset(value, 'x', 39999);
    value[39999] = 0;
    struct http_call *call = new_call(f, HTTP_M_GET, "/");
    assert_int_equal(http_call_request(call, HTTP_M_GET, slice("")), WEIR_E_INVALID);
    assert_int_equal(http_call_request(call, HTTP_M_GET, slice("a")), WEIR_E_INVALID);
    assert_int_equal(http_call_request(call, HTTP_M_GET, slice("/a b")), WEIR_E_INVALID);
    assert_int_equal(http_call_request(call, HTTP_M_GET, slice("/a\r\nb")), WEIR_E_INVALID);
    http_call_field(call, "x-a", slice(value));
    assert_int_equal(http_call_send(call, NULL, 0), WEIR_E_LIMIT);
    assert_int_equal(http_upstream_stats(f->up).calls, 0);
    free(value);
}

/* --- keep-alive that is over ------------------------------------------------------------------------------- */

static void upstream_closes_an_idle_connection(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
    net_run_for(&f->uv, 5);
    assert_int_equal(http_upstream_stats(f->up).idle, 0);
    assert_int_equal(http_upstream_stats(f->up).stale, 1);
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
}

/* It was closed, and the loop has not seen that yet: the caller may call again, for no byte was answered. */
static void reused_connection_was_closed_just_then(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    net_close(&p);
    get(f);
    expect_failure(f, HTTP_FAIL_CLOSED);
    assert_true(f->failure.connected && f->failure.reused && f->failure.sent);
    assert_false(f->failure.answered);
}

/* It was reset, which the write finds out: another connection is taken without a word. */
static void reused_connection_was_reset_just_then(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    net_reset(&p);
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    assert_int_equal(http_upstream_stats(f->up).stale, 1);
    assert_int_equal(http_upstream_stats(f->up).connects, 2);
    net_close(&p);
}

static void idle_connections_are_closed_in_time(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.idle_timeout_ms = 40;
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    net_expect_end(&p);
    assert_int_equal(http_upstream_stats(f->up).idle, 0);
    net_close(&p);
}

static void idle_connections_are_bounded(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.max_idle = 0;
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    net_expect_end(&p);
    net_close(&p);
}

static void idle_connections_are_closed_on_demand(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    http_upstream_close_idle(f->up);
    net_expect_end(&p);
    net_close(&p);
}

/* --- upstreams that lie and babble ------------------------------------------------------------------------- */

static void length_too_large(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort");
    net_run_until(&f->uv, has_part, f, "a part");
    net_close(&p);
    expect_failure(f, HTTP_FAIL_CLOSED);
    assert_true(f->failure.answered);
    assert_int_equal(f->len, 5);
}

static void length_too_small(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more");
    expect_answer(f, 200, "ok");
    net_expect_end(&p);
    assert_int_equal(http_upstream_stats(f->up).extra_bytes, 1);
    net_close(&p);
}

/* A second answer behind the first is not the next call's. */
static void answer_that_nobody_asked_for(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, OK "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    expect_answer(f, 200, "ok");
    net_expect_end(&p);
    net_close(&p);
    call_and_say(f, &p, OK);
    expect_answer(f, 200, "ok");
    net_send(&p, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"); /* later, while it is idle */
    net_expect_end(&p);
    assert_int_equal(http_upstream_stats(f->up).extra_bytes, 2);
    net_close(&p);
}

static void endless_headers(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\n");
    for (unsigned i = 0; i < 4000 && !f->over; i++) {
        net_send(&p, "X-Endless: yes, endless\r\n");
        if (i % 50 == 0)
            net_run_for(&f->uv, 1);
    }
    expect_failure(f, HTTP_FAIL_TOO_LARGE);
    net_close(&p);
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nX: ");
    for (unsigned i = 0; i < 4000 && !f->over; i++) {
        net_send(&p, "one endless line ");
        if (i % 50 == 0)
            net_run_for(&f->uv, 1);
    }
    expect_failure(f, HTTP_FAIL_TOO_LARGE);
    net_close(&p);
}

static void garbage(void **state)
{
    static const char *const texts[] = {
        "SSH-2.0-OpenSSH_9.2p1\r\n",
        "\x16\x03\x01\x02",
        "<html>",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/3.0 200 OK\r\n\r\n",
    };
    struct fixture *f = *state;
    struct net_peer p;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        call_and_say(f, &p, texts[i]);
        expect_failure(f, HTTP_FAIL_PROTOCOL);
        assert_true(f->failure.answered);
        net_expect_end(&p);
        net_close(&p);
    }
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nxyz\r\n");
    expect_failure(f, HTTP_FAIL_PROTOCOL);
    net_close(&p);
}

static void endless_informational_answers(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "");
    for (unsigned i = 0; i < 100 && !f->over; i++) {
        net_send(&p, "HTTP/1.1 102 Processing\r\n\r\n");
        net_run_for(&f->uv, 1);
    }
    expect_failure(f, HTTP_FAIL_PROTOCOL);
    net_close(&p);
}

static void upstream_leaves(void **state)
{
    static const char *const texts[] = {
        "", "HTTP/1.1 2", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab"};
    struct fixture *f = *state;
    struct net_peer p;
    for (unsigned i = 0; i < 6; i++) {
        call_and_say(f, &p, texts[i / 2]);
        net_run_for(&f->uv, 3);
        if (i % 2)
            net_reset(&p);
        else
            net_close(&p);
        expect_failure(f, HTTP_FAIL_CLOSED);
        assert_true(f->failure.sent && !f->failure.reused);
        assert_int_equal(f->failure.answered, i >= 2);
    }
}

/* --- time -------------------------------------------------------------------------------------------------- */

static void no_answer_in_time(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    get(f);
    http_call_timeout(f->call, 50);
    net_accept(&p, &f->uv, f->listener);
    expect_failure(f, HTTP_FAIL_TIMEOUT);
    assert_true(f->failure.connected && f->failure.sent && !f->failure.answered);
    net_expect_end(&p);
    net_close(&p);
}

static void stalls_within_a_chunk(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf of");
    http_call_timeout(f->call, 60);
    expect_failure(f, HTTP_FAIL_TIMEOUT);
    assert_true(f->failure.answered);
    assert_int_equal(f->len, 7);
    net_close(&p);
}

static void every_byte_counts(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n");
    http_call_timeout(f->call, 400);
    for (unsigned i = 0; i < 20; i++) {
        net_run_for(&f->uv, 30);
        net_send(&p, "x");
    }
    expect_answer(f, 200, "xxxxxxxxxxxxxxxxxxxx");
    net_close(&p);
}

/* --- back-pressure and cancelling -------------------------------------------------------------------------- */

static void pause_holds_the_upstream(void **state)
{
    enum { SIZE = 20000000 };
    struct fixture *f = *state;
    struct net_peer p;
    char head[128], *data = calloc(1, SIZE);
    snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", SIZE);
    call_and_say(f, &p, head);
    net_run_until(&f->uv, has_part, f, "the head");
    http_call_timeout(f->call, 30);
    http_call_pause(f->call);
    size_t sent = 0;
    for (unsigned i = 0; i < 30; i++) { /* as much as the sockets hold, and no timeout meanwhile */
        ssize_t n = write(p.fd, data, SIZE - sent);
        if (n > 0)
            sent += (size_t)n;
        net_run_for(&f->uv, 3);
    }
    assert_int_equal(f->over, 0);
    assert_true(sent < SIZE);
    assert_true(f->len <= HTTP_READ_BYTES);
    http_call_resume(f->call);
    http_call_timeout(f->call, 0);
    net_send_n(&p, data, SIZE - sent);
    wait_until_over(f);
    assert_false(f->failed);
    assert_int_equal(f->len, SIZE);
    net_close(&p);
    free(data);
}

static void cancel_closes_at_once(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
    net_run_until(&f->uv, has_part, f, "a part");
    http_call_cancel(f->call);
    net_expect_end(&p);
    assert_int_equal(f->over, 0);
    assert_int_equal(http_upstream_stats(f->up).calls, 0);
    net_close(&p);
}

static void cancel_now(struct fixture *f, struct http_call *call, const struct http_part *part)
{
    (void)f, (void)part;
    http_call_cancel(call);
}

static void cancel_within_a_part(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    char text[4000];
    size_t n = (size_t)snprintf(text, sizeof text,
                                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (unsigned i = 0; i < 3 * HTTP_MAX_PIECES; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "1\r\nx\r\n");
    f->in_part = cancel_now;
    call_and_say(f, &p, text);
    net_expect_end(&p);
    assert_int_equal(f->parts, 1);
    net_close(&p);
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    net_expect_end(&p);
    assert_int_equal(f->parts, 1);
    net_close(&p);
}

/* The call is over anyway: its memory must not be given back twice, or the next two calls would share it. */
static void cancel_within_the_last_part(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->in_part = cancel_now;
    call_and_say(f, &p, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    wait_until_over(f);
    assert_int_equal(http_upstream_stats(f->up).calls, 0);
    struct http_call *one = new_call(f, HTTP_M_GET, "/"), *other = new_call(f, HTTP_M_GET, "/");
    assert_ptr_not_equal(one, other);
    http_call_cancel(one);
    http_call_cancel(other);
    net_close(&p);
}

static void cancel_before_it_is_sent(void **state)
{
    struct fixture *f = *state;
    http_call_cancel(new_call(f, HTTP_M_GET, "/"));
    get(f); /* connecting */
    http_call_cancel(f->call);
    f->up = NULL;
    f->options.host = "localhost";
    get(f); /* waiting for its address */
    http_call_cancel(f->call);
    net_run_for(&f->uv, 20);
    assert_int_equal(f->over, 0);
    assert_int_equal(http_upstream_stats(f->up).calls, 0);
}

static void closing_fails_all_calls(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    net_run_until(&f->uv, has_part, f, "a part");
    http_client_close(f->client);
    expect_failure(f, HTTP_FAIL_SHUTDOWN);
    net_expect_end(&p);
    net_close(&p);
    f->client = NULL;
}

static void upstream_is_removed_while_it_answers(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    call_and_say(f, &p, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe");
    net_run_until(&f->uv, has_part, f, "a part");
    http_upstream_free(f->up);
    net_send(&p, "llo");
    expect_answer(f, 200, "hello");
    net_expect_end(&p);
    net_close(&p);
}

/* --- memory ------------------------------------------------------------------------------------------------ */

static void waiting_calls_and_open_streams_hold_no_buffer(void **state)
{
    struct fixture *f = *state;
    struct net_peer p, q;
    get(f);
    struct http_call *waiting = f->call;
    net_accept(&p, &f->uv, f->listener);
    net_expect(&p, "\r\n\r\n");
    call_and_say(f, &q, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
    net_run_until(&f->uv, has_part, f, "a part");
    assert_int_equal(http_loop_stats(f->loop).blocks_used, 0);
    uint64_t warm = http_loop_stats(f->loop).mallocs;
    for (unsigned i = 0; i < 50; i++) {
        f->parts = 0;
        net_send(&q, "2\r\nok\r\n");
        net_run_until(&f->uv, has_part, f, "a part");
    }
    assert_int_equal(http_loop_stats(f->loop).mallocs, warm);
    http_call_cancel(waiting);
    net_close(&p);
    net_close(&q);
    net_run_for(&f->uv, 5);
}

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
        T(request_as_it_goes_out),
        T(connection_is_used_again),
        T(answer_byte_by_byte),
        T(answers_without_a_body),
        T(answer_up_to_the_end),
        T(upstream_asks_to_close),
        T(informational_answers_are_dropped),
        T(many_small_chunks),
        T(call_made_in_the_last_part),
        T(large_body_to_a_slow_upstream),
        T(early_answer),
        T(fields_of_a_request_are_passed_on),
        T(names_are_resolved),
        T(nobody_listens),
        T(no_such_name),
        T(connecting_takes_too_long),
        T(connections_are_bounded),
        T(requests_that_cannot_be_sent),
        T(upstream_closes_an_idle_connection),
        T(reused_connection_was_closed_just_then),
        T(reused_connection_was_reset_just_then),
        T(idle_connections_are_closed_in_time),
        T(idle_connections_are_bounded),
        T(idle_connections_are_closed_on_demand),
        T(length_too_large),
        T(length_too_small),
        T(answer_that_nobody_asked_for),
        T(endless_headers),
        T(garbage),
        T(endless_informational_answers),
        T(upstream_leaves),
        T(no_answer_in_time),
        T(stalls_within_a_chunk),
        T(every_byte_counts),
        T(pause_holds_the_upstream),
        T(cancel_closes_at_once),
        T(cancel_within_a_part),
        T(cancel_within_the_last_part),
        T(cancel_before_it_is_sent),
        T(closing_fails_all_calls),
        T(upstream_is_removed_while_it_answers),
        T(waiting_calls_and_open_streams_hold_no_buffer),
    };
    return cmocka_run_group_tests_name("http_client", tests, warm_up, NULL);
}
