/* http_server.c - see http_server.h.
 *
 * A connection goes round:  idle ─► head ─► body ─► exchange ─► idle ...;  after a refusal or a last response: lingering.
 *
 * Where the bytes of a request are: head and, where it fits, body in one block (c->in) that was read into; a larger body
 * in c->body, into which the socket is read directly once the head has told its length. Chunks are moved together.
 */
#include "controller/http/http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "controller/http/http_io.h"
#include "controller/http/http_parser.h"

#define REFUSAL_BODY_BYTES 1024u
#define BODY_FIRST_BYTES                                                                           \
    ((size_t)256 << 10) /* what a length alone gets; more once these have come */
#define BODY_SLACK_BYTES                                                                           \
    1024u /* read beyond a body, so that a full read does not call for another */
#define CHUNKED_ROOM_BYTES 4096u
#define LOOK_FOR_END_MS 1000u     /* see the header: a client that pipelines more than is read */
#define MAX_EXTRA_CONNECTIONS 64u /* beyond the limit, being told 503 */
#define KEEPALIVE_IDLE_S 60
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_PROBES 6

enum state {
    S_IDLE,     /* between requests */
    S_HEAD,     /* some of a head has come */
    S_BODY,     /* the head is complete */
    S_EXCHANGE, /* the caller has it */
    S_FLUSH,    /* the client has half-closed after its last response, which is not sent yet */
    S_LINGER,   /* nothing more is sent; what comes is dropped */
    S_CLOSED,
};

enum wait { W_NOTHING, W_HEAD, W_BODY, W_IDLE, W_WRITE, W_LINGER, W_END };

/* A connection and the exchange on it. */
struct http_exchange {
    struct http_io io;
    struct http_server *server;
    struct http_exchange *next, *prev;           /* all of the server; or its pool */
    struct http_exchange *idle_next, *idle_prev; /* the idle ones, longest first */
    struct http_timer timer;
    struct http_task task;
    struct http_parser parser;

    struct http_block *in; /* the request's bytes, in->to of them */
    struct http_body body; /* or its body, if too large for that */
    char *body_at;         /* in the block or in `body`; NULL: none yet */
    size_t body_len;
    struct http_block *pipelined; /* bytes behind the current request */

    struct http_block *out; /* a head that is being built */
    struct http_writer writer;
    uint64_t left; /* bytes of the response that the head promised and that did not come yet */
    void *user;

    uint8_t state, waits_for, minor;
    bool in_idle_list, feeding;
    bool is_head, keep_alive, continued;      /* of the request */
    bool started, chunked, no_body, has_date; /* of the response */
    bool told_to_wait, swallow, dead, extra;
    uint8_t dead_why;
    char peer[INET6_ADDRSTRLEN];
};

struct http_server {
    struct http_loop *loop;
    struct http_server_options options;
    const struct http_server_ops *ops;
    void *user;
    struct http_parser_limits limits;
    uv_tcp_t listener;
    uint16_t port;
    bool listening, listener_closed, draining, drain_over, closing;
    void (*drained)(void *user);
    struct http_task drained_task;
    struct http_timer drain_timer;

    struct http_exchange *all, *pool;
    struct http_exchange *idle_first, *idle_last;
    uint32_t pooled, extra;
    struct http_server_stats stats;
};

static struct http_exchange *of_io(struct http_io *io)
{
    return (struct http_exchange *)io; /* first member */
}

static void feed(struct http_exchange *c, char *at, size_t n);
static void refuse(struct http_exchange *c, int status, const char *why);

const char *http_gone_text(enum http_gone why)
{
    static const char *const texts[] = {
        [HTTP_GONE_CLOSED] = "closed",
        [HTTP_GONE_RESET] = "reset",
        [HTTP_GONE_STALLED] = "stalled",
        [HTTP_GONE_SHUTDOWN] = "shutdown",
    };
    return texts[why];
}

/* --- lists, timers, memory -------------------------------------------------------------------------------- */

static void idle_add(struct http_exchange *c)
{
    struct http_server *s = c->server;
    c->in_idle_list = true;
    c->idle_next = NULL;
    c->idle_prev = s->idle_last;
    if (s->idle_last)
        s->idle_last->idle_next = c;
    else
        s->idle_first = c;
    s->idle_last = c;
}

static void idle_remove(struct http_exchange *c)
{
    struct http_server *s = c->server;
    if (!c->in_idle_list)
        return;
    c->in_idle_list = false;
    if (c->idle_prev)
        c->idle_prev->idle_next = c->idle_next;
    else
        s->idle_first = c->idle_next;
    if (c->idle_next)
        c->idle_next->idle_prev = c->idle_prev;
    else
        s->idle_last = c->idle_prev;
}

static void wait_for(struct http_exchange *c, enum wait what)
{
    const struct http_server_options *o = &c->server->options;
    static const uint32_t look_ms = LOOK_FOR_END_MS;
    const uint32_t *ms[] = {
        [W_HEAD] = &o->header_timeout_ms, [W_BODY] = &o->body_timeout_ms,
        [W_IDLE] = &o->idle_timeout_ms,   [W_WRITE] = &o->write_timeout_ms,
        [W_LINGER] = &o->linger_ms,       [W_END] = &look_ms,
    };
    c->waits_for = (uint8_t)what;
    if (what == W_NOTHING)
        http_timer_stop(&c->timer);
    else
        http_timer_start(c->server->loop, &c->timer, *ms[what]);
}

static int body_grow(struct http_exchange *c, size_t want)
{
    struct http_server *s = c->server;
    size_t before = c->body.cap;
    if (want > before && s->stats.buffered_bytes + (want - before) > s->options.max_buffered_bytes)
        return WEIR_E_LIMIT;
    int e = http_body_grow(s->loop, &c->body, want);
    s->stats.buffered_bytes += c->body.cap - before;
    return e;
}

static void body_put(struct http_exchange *c)
{
    c->server->stats.buffered_bytes -= c->body.cap;
    http_body_put(c->server->loop, &c->body);
    c->body_at = NULL;
    c->body_len = 0;
}

static void in_put(struct http_exchange *c)
{
    if (!c->in)
        return;
    http_block_put(c->server->loop, c->in);
    c->in = NULL;
}

static void release_request(struct http_exchange *c)
{
    if (c->body.cap)
        body_put(c);
    c->body_at = NULL;
    c->body_len = 0;
    if (c->in && c->state == S_EXCHANGE)
        c->server->stats.buffered_bytes -= HTTP_BLOCK_BYTES;
    in_put(c);
}

static void out_put(struct http_exchange *c)
{
    if (!c->out)
        return;
    http_block_put(c->server->loop, c->out);
    c->out = NULL;
}

static void pipelined_put(struct http_exchange *c)
{
    if (c->pipelined)
        http_block_put(c->server->loop, c->pipelined);
    c->pipelined = NULL;
}

static void close_connection(struct http_exchange *c)
{
    if (c->state == S_CLOSED)
        return;
    idle_remove(c);
    release_request(c);
    out_put(c);
    pipelined_put(c);
    if (c->state == S_EXCHANGE)
        c->server->stats.exchanges--;
    c->state = S_CLOSED;
    http_timer_deinit(c->server->loop, &c->timer);
    http_task_deinit(c->server->loop, &c->task);
    http_io_close(&c->io);
}

static void client_gone(struct http_exchange *c, enum http_gone why)
{
    struct http_server *s = c->server;
    s->stats.gone++;
    http_task_deinit(s->loop, &c->task);
    s->ops->gone(s->user, c, why);
    close_connection(c);
}

/* Reads and drops what still comes, so that the client can read its answer before a reset hides it. */
static void linger(struct http_exchange *c)
{
    idle_remove(c);
    release_request(c);
    pipelined_put(c);
    c->state = S_LINGER;
    http_io_end(&c->io);
    http_io_read_start(&c->io);
    wait_for(c, http_io_queued(&c->io) ? W_WRITE : W_LINGER);
}

/* --- the response ------------------------------------------------------------------------------------------ */

static void begin_response(struct http_exchange *c)
{
    c->started = c->chunked = c->no_body = c->has_date = false;
    c->told_to_wait = c->swallow = false;
    c->left = 0;
}

static void start_head(struct http_exchange *c, int status, uint64_t length)
{
    c->out = http_block_get(c->server->loop);
    c->writer = (struct http_writer){c->out->bytes, c->out->bytes + HTTP_BLOCK_BYTES, false};
    c->started = true;
    c->no_body = c->is_head || status == 204 || status == 304 || status < 200;
    c->chunked = length == HTTP_UNKNOWN_LENGTH && !c->no_body && c->minor;
    if (length == HTTP_UNKNOWN_LENGTH && !c->no_body && !c->minor)
        c->keep_alive = false; /* HTTP/1.0 has no other way to tell the end */
    if (c->server->draining)
        c->keep_alive = false;
    c->left = length;
    http_write_status(&c->writer, status);
    if (length != HTTP_UNKNOWN_LENGTH && status != 204 && status >= 200)
        http_write_field_u64(&c->writer, HTTP_SLICE("content-length"), length);
}

void http_reply_head(struct http_exchange *ex, int status, uint64_t length)
{
    if (!ex->started && ex->state == S_EXCHANGE)
        start_head(ex, status, length);
}

void http_reply_field(struct http_exchange *ex, const char *name, struct http_slice value)
{
    if (ex->out)
        http_write_field(&ex->writer, (struct http_slice){name, strlen(name)}, value);
}

void http_reply_fields(struct http_exchange *ex, const struct http_head *from)
{
    if (!ex->out)
        return;
    if (http_get_known(from, HTTP_F_DATE).s)
        ex->has_date = true;
    http_write_fields(&ex->writer, from, NULL, 0);
}

/* A head that did not fit (the caller put more into it than any reader would take) becomes a 500. */
static void replace_head(struct http_exchange *c)
{
    c->writer = (struct http_writer){c->out->bytes, c->out->bytes + HTTP_BLOCK_BYTES, false};
    c->keep_alive = c->chunked = false;
    c->swallow = true;
    http_write_status(&c->writer, 500);
    http_write_field_u64(&c->writer, HTTP_SLICE("content-length"), 0);
}

static struct http_slice finish_head(struct http_exchange *c)
{
    static const char chunked[] = "transfer-encoding: chunked\r\n",
                      close[] = "connection: close\r\n", keep[] = "connection: keep-alive\r\n";
    if (c->writer.full || c->writer.end - c->writer.at < 256)
        replace_head(c);
    struct http_writer *w = &c->writer;
    if (!c->has_date)
        http_write_field(w, HTTP_SLICE("date"), http_loop_date(c->server->loop));
    if (c->chunked)
        http_write(w, chunked, sizeof chunked - 1);
    if (!c->keep_alive)
        http_write(w, close, sizeof close - 1);
    else if (!c->minor)
        http_write(w, keep, sizeof keep - 1);
    http_write(w, "\r\n", 2);
    return (struct http_slice){c->out->bytes, (size_t)(w->at - c->out->bytes)};
}

static size_t hexadecimal(char *at, size_t value)
{
    size_t n = 1;
    while (n < 2 * sizeof value && value >> 4 * n)
        n++;
    for (size_t i = 0; i < n; i++)
        at[i] = "0123456789abcdef"[value >> 4 * (n - 1 - i) & 15];
    return n;
}

/* Head, chunk framing and data in as few writes as can be. */
static int write_response(struct http_exchange *c, const struct http_slice *data, size_t n,
                          size_t bytes, bool last)
{
    struct http_slice all[HTTP_IO_MAX_SLICES];
    char size_line[20];
    size_t k = 0;
    if (c->out)
        all[k++] = finish_head(c);
    if (c->no_body || c->swallow)
        n = bytes = 0;
    bool framed = c->chunked && !c->swallow;
    if (framed && bytes) {
        size_t len = hexadecimal(size_line, bytes);
        size_line[len++] = '\r';
        size_line[len++] = '\n';
        all[k++] = (struct http_slice){size_line, len};
    }
    int e = 0;
    if (n <= HTTP_IO_MAX_SLICES - 3) {
        for (size_t i = 0; i < n; i++)
            all[k++] = data[i];
    } else {
        e = http_io_write(&c->io, all, k, false);
        k = 0;
        if (!e)
            e = http_io_write(&c->io, data, n, false);
    }
    if (framed && bytes)
        all[k++] = last ? HTTP_SLICE("\r\n0\r\n\r\n") : HTTP_SLICE("\r\n");
    else if (framed && last)
        all[k++] = HTTP_SLICE("0\r\n\r\n");
    if (!e && k)
        e = http_io_write(&c->io, all, k, false);
    out_put(c);
    return e;
}

static bool pipelined_is_full(const struct http_exchange *c)
{
    return c->pipelined && c->pipelined->to == HTTP_BLOCK_BYTES;
}

static void to_idle(struct http_exchange *c)
{
    c->state = S_IDLE;
    if (!c->pipelined)
        idle_add(c);
    else if (!c->feeding)
        http_task_post(c->server->loop, &c->task);
    if (!http_io_queued(&c->io))
        wait_for(c, W_IDLE);
}

/* The last byte of the response was handed over. */
static void finish(struct http_exchange *c)
{
    c->server->stats.responses++;
    release_request(c);
    c->server->stats.exchanges--;
    if (c->keep_alive && !c->server->drain_over) {
        if (!pipelined_is_full(c))
            http_io_read_start(&c->io);
        to_idle(c);
    } else {
        c->state = S_IDLE; /* no exchange any more */
        linger(c);
    }
}

/* The connection is of no use any more; the owner is told from the loop. */
static void mark_dead(struct http_exchange *c, enum http_gone why)
{
    c->dead = true;
    c->dead_why = (uint8_t)why;
    http_task_post(c->server->loop, &c->task);
}

/* True: the response is as long as its head said. */
static bool keeps_promise(struct http_exchange *c, size_t bytes, bool last)
{
    if (c->left == HTTP_UNKNOWN_LENGTH || c->no_body || c->swallow)
        return true;
    if (bytes > c->left)
        return false;
    c->left -= bytes;
    return !last || !c->left;
}

static void after_write(struct http_exchange *c)
{
    size_t queued = http_io_queued(&c->io);
    if (!queued)
        return;
    if (c->waits_for != W_WRITE)
        wait_for(c, W_WRITE);
    if (queued >= HTTP_WRITE_MAX_BYTES && c->told_to_wait && c->state == S_EXCHANGE)
        mark_dead(c, HTTP_GONE_STALLED);
    if (queued >= HTTP_WRITE_HIGH_BYTES)
        c->told_to_wait = true;
}

bool http_reply_send(struct http_exchange *ex, const struct http_slice *data, size_t n, bool last)
{
    size_t bytes = 0;
    if (ex->state != S_EXCHANGE || !ex->started)
        return true;
    for (size_t i = 0; i < n; i++)
        bytes += data[i].len;
    int e = ex->dead ? UV_EPIPE : 0;
    if (!keeps_promise(ex, bytes, last)) {
        if (last) {
            http_exchange_abort(ex);
            return true;
        }
        e = UV_EPROTO;
    }
    if (!e)
        e = write_response(ex, data, n, bytes, last);
    if (e) {
        if (last)
            http_exchange_abort(ex);
        else if (!ex->dead)
            mark_dead(ex, HTTP_GONE_RESET);
        return true;
    }
    if (last)
        finish(ex);
    after_write(ex);
    return http_io_queued(&ex->io) < HTTP_WRITE_HIGH_BYTES;
}

void http_reply(struct http_exchange *ex, int status, const char *content_type,
                struct http_slice body)
{
    http_reply_head(ex, status, body.len);
    if (content_type)
        http_reply_field(ex, "content-type",
                         (struct http_slice){content_type, strlen(content_type)});
    http_reply_send(ex, &body, 1, true);
}

bool http_reply_started(const struct http_exchange *ex)
{
    return ex->started;
}

size_t http_reply_queued(const struct http_exchange *ex)
{
    return http_io_queued(&ex->io);
}

void http_exchange_abort(struct http_exchange *ex)
{
    close_connection(ex);
}

/* --- the toolkit's own answers ----------------------------------------------------------------------------- */

static void count_refusal(struct http_server_stats *stats, int status)
{
    if (status == 413)
        stats->refused_body++;
    else if (status == 414 || status == 431)
        stats->refused_head++;
    else if (status != 408 && status != 503)
        stats->refused_malformed++;
}

static void refuse(struct http_exchange *c, int status, const char *why)
{
    struct http_server *s = c->server;
    char text[REFUSAL_BODY_BYTES];
    size_t len;
    count_refusal(&s->stats, status);
    release_request(c);
    if (s->ops->refusal) {
        len = s->ops->refusal(s->user, status, why, text, sizeof text);
    } else {
        int n = snprintf(text, sizeof text, "%s\n", why);
        len = n < (int)sizeof text ? (size_t)n : sizeof text - 1;
    }
    begin_response(c);
    c->is_head = c->keep_alive = false;
    c->minor = 1;
    start_head(c, status, len);
    http_write_field(&c->writer, HTTP_SLICE("content-type"),
                     (struct http_slice){s->options.refusal_type, strlen(s->options.refusal_type)});
    if (status == 503)
        http_write_field(&c->writer, HTTP_SLICE("retry-after"), HTTP_SLICE("1"));
    if (write_response(c, &(struct http_slice){text, len}, 1, len, true))
        close_connection(c);
    else
        linger(c);
}

/* --- the request ------------------------------------------------------------------------------------------- */

/* The head is complete: is its body wanted, and where will it be? */
static int on_head(struct http_parser *p)
{
    struct http_exchange *c =
        (struct http_exchange *)((char *)p - offsetof(struct http_exchange, parser));
    const struct http_server_options *o = &c->server->options;
    const struct http_head *h = p->head;
    c->minor = h->minor;
    c->is_head = h->method == HTTP_M_HEAD;
    c->keep_alive = h->keep_alive;
    if (h->has_length && h->content_length > o->max_body_bytes) {
        p->refusal = (struct http_refusal){413, "the body is larger than this server takes"};
        return -1;
    }
    uint64_t want = h->has_length ? h->content_length : 0;
    c->body_at = c->in->bytes + (h->base - c->in->bytes) + h->len;
    c->body_len = 0;
    if (h->chunked || want <= (size_t)(c->in->bytes + HTTP_BLOCK_BYTES - c->body_at))
        want = 0;
    if (want > BODY_FIRST_BYTES)
        want = BODY_FIRST_BYTES;
    if (c->server->stats.buffered_bytes + HTTP_BLOCK_BYTES > o->max_buffered_bytes ||
        (want && body_grow(c, want + BODY_SLACK_BYTES))) {
        c->server->stats.refused_buffers++;
        p->refusal = (struct http_refusal){503, "too many requests are being read"};
        return -1;
    }
    if (want)
        c->body_at = c->body.at;
    return 0;
}

/* Puts a piece of the body behind the others; where the socket was read into the right place it is there already. */
static int on_body(struct http_parser *p, const char *at, size_t len)
{
    struct http_exchange *c =
        (struct http_exchange *)((char *)p - offsetof(struct http_exchange, parser));
    uint64_t most = c->server->options.max_body_bytes; /* may have been lowered meanwhile */
    if (c->body_len > most || len > most - c->body_len) {
        p->refusal = (struct http_refusal){413, "the body is larger than this server takes"};
        return -1;
    }
    if (at != c->body_at + c->body_len) {
        if (c->body.cap && body_grow(c, c->body_len + len)) {
            c->server->stats.refused_buffers++;
            p->refusal = (struct http_refusal){503, "too many requests are being read"};
            return -1;
        }
        if (c->body.cap)
            c->body_at = c->body.at;
        memmove(c->body_at + c->body_len, at, len);
    }
    c->body_len += len;
    c->body.len = c->body.cap ? c->body_len : 0;
    return 0;
}

/* Makes room for what comes next of a body. */
static int prepare_room(struct http_exchange *c)
{
    const struct http_head *h = &c->in->head;
    if (!c->body.cap) {
        if (!h->chunked || HTTP_BLOCK_BYTES - c->in->to >= CHUNKED_ROOM_BYTES)
            return 0;
        int e = body_grow(c, 2 * HTTP_BLOCK_BYTES);
        if (e)
            return e;
        memcpy(c->body.at, c->body_at, c->body_len);
        c->body.len = c->body_len;
    } else if (h->has_length) {
        uint64_t missing = h->content_length - c->body_len;
        size_t free_bytes = c->body.cap - c->body_len;
        if (free_bytes >= HTTP_BLOCK_BYTES || free_bytes >= missing)
            return 0;
        uint64_t want = h->content_length + BODY_SLACK_BYTES;
        if (want > 4 * c->body.cap)
            want = 4 * c->body.cap;
        int e = body_grow(c, (size_t)want);
        if (e)
            return e;
    }
    c->body_at = c->body.at;
    return 0;
}

static void say_continue(struct http_exchange *c)
{
    static const struct http_slice text = {"HTTP/1.1 100 Continue\r\n\r\n", 25};
    c->continued = true;
    if (http_io_write(&c->io, &text, 1, false))
        mark_dead(c, HTTP_GONE_RESET);
}

static void stash(struct http_exchange *c, const char *at, size_t n)
{
    if (!n)
        return;
    if (!c->pipelined)
        c->pipelined = http_block_get(c->server->loop);
    struct http_block *b = c->pipelined;
    memcpy(b->bytes + b->to, at, n);
    b->to += (uint32_t)n;
}

static void begin_request(struct http_exchange *c)
{
    idle_remove(c);
    c->state = S_HEAD;
    c->continued = c->dead = false;
    c->in->head.base = c->in->bytes;
    http_parser_init(&c->parser, false, &c->in->head, &c->server->limits);
    c->parser.on_head = on_head;
    c->parser.on_body = on_body;
}

static void hand_over(struct http_exchange *c)
{
    struct http_server *s = c->server;
    c->state = S_EXCHANGE;
    c->user = NULL;
    s->stats.requests++;
    s->stats.exchanges++;
    s->stats.buffered_bytes += HTTP_BLOCK_BYTES;
    begin_response(c);
    wait_for(c, http_io_queued(&c->io) ? W_WRITE : W_NOTHING);
    s->ops->request(s->user, c);
}

/* More of the message is to come. */
static void wait_for_more(struct http_exchange *c)
{
    if (!c->parser.head_done) {
        if (c->waits_for != W_HEAD)
            wait_for(c, W_HEAD);
        return;
    }
    c->state = S_BODY;
    wait_for(c, W_BODY);
    if (prepare_room(c)) {
        c->server->stats.refused_buffers++;
        refuse(c, 503, "too many requests are being read");
    } else if (c->in->head.expect_continue && !c->continued && !c->body_len) {
        say_continue(c);
    }
}

/* n > 0 bytes of requests, read to where room() said. */
static void feed_once(struct http_exchange *c, char *at, size_t n)
{
    size_t used = n;
    if (c->state == S_IDLE)
        begin_request(c);
    if (at == c->in->bytes + c->in->to)
        c->in->to += (uint32_t)n;
    switch (http_parser_feed(&c->parser, at, n, &used)) {
    case HTTP_PARSE_MORE: wait_for_more(c); break;
    case HTTP_PARSE_REFUSED: refuse(c, c->parser.refusal.status, c->parser.refusal.why); break;
    case HTTP_PARSE_DONE:
        stash(c, at + used, n - used);
        hand_over(c);
        break;
    }
}

/* What came behind the last request is the next one's. How much it is. */
static size_t take_pipelined(struct http_exchange *c)
{
    in_put(c);
    c->in = c->pipelined;
    c->pipelined = NULL;
    http_io_read_start(&c->io); /* it was stopped if that was all there is room for */
    size_t n = c->in->to;
    c->in->to = 0;
    return n;
}

/* Answers may be given from within: then the next request, if it is here already, has its turn at once. */
static void feed(struct http_exchange *c, char *at, size_t n)
{
    c->feeding = true;
    feed_once(c, at, n);
    while (c->state == S_IDLE && c->pipelined) {
        n = take_pipelined(c);
        feed_once(c, c->in->bytes, n);
    }
    c->feeding = false;
}

/* --- the connection ---------------------------------------------------------------------------------------- */

/* What comes now has to wait: for the end of the exchange, or behind what waited for that and has not had its turn yet. */
static bool has_to_wait(const struct http_exchange *c)
{
    return c->state == S_EXCHANGE || (c->state == S_IDLE && c->pipelined);
}

static void on_room(struct http_io *io, char **at, size_t *len)
{
    struct http_exchange *c = of_io(io);
    bool in_block = (c->state == S_IDLE && !c->pipelined) || c->state == S_HEAD ||
                    (c->state == S_BODY && !c->body.cap);
    if (in_block) {
        if (!c->in)
            c->in = http_block_get(c->server->loop);
        *at = c->in->bytes + c->in->to;
        *len = HTTP_BLOCK_BYTES - c->in->to;
    } else if (c->state == S_BODY && c->in->head.has_length) {
        uint64_t useful = c->in->head.content_length - c->body_len + BODY_SLACK_BYTES;
        *at = c->body.at + c->body_len;
        *len = c->body.cap - c->body_len;
        if (*len > useful)
            *len = useful;
    } else {
        *at = http_loop_scratch(c->server->loop);
        *len = HTTP_BLOCK_BYTES - (c->pipelined ? c->pipelined->to : 0);
    }
}

static void on_data(struct http_io *io, char *at, size_t n)
{
    struct http_exchange *c = of_io(io);
    if (!n) {
        if (c->state == S_IDLE && c->in && !c->in->to)
            in_put(c);
    } else if (has_to_wait(c)) {
        stash(c, at, n);
        if (pipelined_is_full(c)) {
            http_io_read_stop(io);
            if (c->state == S_EXCHANGE && c->waits_for == W_NOTHING)
                wait_for(c, W_END);
        }
    } else if (c->state <= S_BODY) {
        feed(c, at, n);
    }
}

static void on_ended(struct http_io *io, int uv_error)
{
    struct http_exchange *c = of_io(io);
    if (io->tls && !io->ready_told)
        c->server->stats.tls_failed++;
    if (c->state == S_EXCHANGE) {
        client_gone(c, uv_error == UV_EOF ? HTTP_GONE_CLOSED : HTTP_GONE_RESET);
    } else if (uv_error == UV_EOF && http_io_queued(io) && c->state != S_LINGER) {
        c->keep_alive = false;
        idle_remove(c);
        release_request(c);
        c->state = S_FLUSH;
    } else if (uv_error != UV_EOF || !http_io_queued(io)) {
        close_connection(c);
    }
}

static void on_progress(struct http_io *io)
{
    struct http_exchange *c = of_io(io);
    size_t queued = http_io_queued(io);
    if (queued) {
        if (c->waits_for == W_WRITE)
            wait_for(c, W_WRITE);
    } else if (c->state == S_FLUSH || (c->state == S_LINGER && !io->reading)) {
        close_connection(c);
        return;
    } else if (c->waits_for == W_WRITE) {
        bool full = c->state == S_EXCHANGE && !io->reading;
        wait_for(c, c->state == S_IDLE     ? W_IDLE
                    : c->state == S_LINGER ? W_LINGER
                    : full                 ? W_END
                                           : W_NOTHING);
    }
    if (c->told_to_wait && queued <= HTTP_WRITE_LOW_BYTES && c->state == S_EXCHANGE && !c->dead) {
        c->told_to_wait = false;
        if (c->server->ops->drained)
            c->server->ops->drained(c->server->user, c);
    }
}

/* Has the client closed, behind what it has sent and nobody reads yet? */
static void look_for_end(struct http_exchange *c)
{
    int fd;
    if (uv_fileno((uv_handle_t *)&c->io.tcp, &fd))
        return;
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    if (poll(&p, 1, 0) == 1)
        client_gone(c, p.revents & POLLERR ? HTTP_GONE_RESET : HTTP_GONE_CLOSED);
    else
        wait_for(c, W_END);
}

static void on_timeout(struct http_timer *timer)
{
    struct http_exchange *c =
        (struct http_exchange *)((char *)timer - offsetof(struct http_exchange, timer));
    struct http_server_stats *stats = &c->server->stats;
    enum wait what = (enum wait)c->waits_for;
    c->waits_for = W_NOTHING;
    switch (what) {
    case W_HEAD:
        stats->timed_out_head++;
        if (c->state == S_HEAD)
            refuse(c, 408, "the head did not come in time");
        else
            close_connection(c); /* TLS never got ready */
        break;
    case W_BODY:
        stats->timed_out_body++;
        refuse(c, 408, "the body did not come in time");
        break;
    case W_IDLE:
        stats->timed_out_idle++;
        close_connection(c);
        break;
    case W_WRITE:
        stats->timed_out_write++;
        if (c->state == S_EXCHANGE)
            client_gone(c, HTTP_GONE_STALLED);
        else
            close_connection(c);
        break;
    case W_END: look_for_end(c); break;
    case W_LINGER: close_connection(c); break;
    case W_NOTHING: break;
    }
}

/* From the loop: a broken connection is told, or the next pipelined request begins. */
static void on_task(struct http_task *task)
{
    struct http_exchange *c =
        (struct http_exchange *)((char *)task - offsetof(struct http_exchange, task));
    if (c->dead && c->state == S_EXCHANGE) {
        client_gone(c, (enum http_gone)c->dead_why);
    } else if (c->dead) {
        close_connection(c);
    } else if (c->state == S_IDLE && c->pipelined) {
        size_t n = take_pipelined(c);
        feed(c, c->in->bytes, n);
    }
}

static void on_ready(struct http_io *io)
{
    struct http_exchange *c = of_io(io);
    wait_for(c, W_IDLE);
    idle_add(c);
}

static void server_gone(struct http_server *s);

static void on_closed(struct http_io *io)
{
    struct http_exchange *c = of_io(io);
    struct http_server *s = c->server;
    if (c->prev)
        c->prev->next = c->next;
    else
        s->all = c->next;
    if (c->next)
        c->next->prev = c->prev;
    s->stats.connections--;
    if (c->extra)
        s->extra--;
    c->next = s->pool;
    s->pool = c;
    s->pooled++;
    if (s->pooled > 1024) { /* a burst is over */
        s->pool = c->next;
        s->pooled--;
        free(c);
    }
    server_gone(s);
}

static const struct http_io_ops io_ops = {
    .room = on_room,
    .data = on_data,
    .ended = on_ended,
    .progress = on_progress,
    .closed = on_closed,
    .ready = on_ready,
};

/* --- listening --------------------------------------------------------------------------------------------- */

static struct http_exchange *connection_new(struct http_server *s)
{
    struct http_exchange *c = s->pool;
    if (c) {
        s->pool = c->next;
        s->pooled--;
    } else {
        c = malloc(sizeof *c);
        if (!c)
            return NULL;
    }
    memset(c, 0, sizeof *c);
    if (http_io_init(&c->io, s->loop, &io_ops)) {
        free(c);
        return NULL;
    }
    c->server = s;
    http_timer_init(&c->timer, on_timeout);
    http_task_init(&c->task, on_task);
    c->next = s->all;
    if (s->all)
        s->all->prev = c;
    s->all = c;
    s->stats.connections++;
    s->stats.accepted++;
    return c;
}

/* Room for one more: the connection that was idle longest makes it. False: there is none. */
static bool make_room(struct http_server *s)
{
    if (s->stats.connections - s->extra <= s->options.max_connections)
        return true;
    if (!s->idle_first)
        return false;
    s->stats.evicted_idle++;
    struct http_exchange *oldest = s->idle_first;
    close_connection(oldest);
    oldest->extra = true; /* it no longer counts, though it closes a little later */
    s->extra++;
    return true;
}

static void begin_connection(struct http_exchange *c)
{
    struct http_server *s = c->server;
    bool fits = make_room(s);
    if (!fits) {
        s->stats.refused_connections++;
        c->extra = true;
        s->extra++;
        if (s->extra > MAX_EXTRA_CONNECTIONS || s->options.tls) {
            close_connection(c);
            return;
        }
    }
    if (s->options.tls) {
        struct http_tls_session *tls = http_tls_session_new(s->options.tls, true, NULL);
        if (!tls) {
            close_connection(c);
            return;
        }
        http_io_set_tls(&c->io, tls);
        wait_for(c, W_HEAD);
    } else if (fits) {
        idle_add(c);
        wait_for(c, W_IDLE);
    }
    if (http_io_start(&c->io))
        close_connection(c);
    else if (!fits)
        refuse(c, 503, "too many connections");
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct http_server *s = listener->data;
    if (status < 0)
        return;
    struct http_exchange *c = connection_new(s);
    if (!c)
        return; /* libuv keeps the socket, and tries again with the next */
    if (uv_accept(listener, (uv_stream_t *)&c->io.tcp))
        close_connection(c);
    else
        begin_connection(c);
}

/* Takes what waits in the listening socket's queue: closing the socket would reset it. */
static void accept_waiting(struct http_server *s)
{
    int listener = http_server_fd(s);
    for (unsigned i = 0; i < HTTP_LISTEN_BACKLOG; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct http_exchange *c = connection_new(s);
        if (!c) {
            close(fd);
            return;
        }
        if (uv_tcp_open(&c->io.tcp, fd)) {
            close(fd);
            close_connection(c);
        } else {
            begin_connection(c);
        }
    }
}

void http_server_defaults(struct http_server_options *o)
{
    *o = (struct http_server_options){
        .host = "127.0.0.1",
        .fd = -1,
        .max_connections = 16384,
        .max_header_bytes = 16384,
        .max_fields = 100,
        .max_uri_bytes = 8192,
        .max_body_bytes = (uint64_t)64 << 20,
        .max_buffered_bytes = (uint64_t)1 << 30,
        .header_timeout_ms = 10000,
        .body_timeout_ms = 30000,
        .idle_timeout_ms = 75000,
        .write_timeout_ms = 60000,
        .linger_ms = 2000,
        .drain_idle_ms = 1000,
        .refusal_type = "text/plain",
    };
}

static int fail(char *error, const char *what, const char *host, unsigned port, const char *why)
{
    snprintf(error, HTTP_ERROR_BYTES, "%s %s port %u: %s", what, host, port, why);
    return -1;
}

static int check_options(const struct http_server_options *o, char *error)
{
    const char *wrong = NULL;
    if (o->max_header_bytes < 128 || o->max_header_bytes > HTTP_BLOCK_BYTES)
        wrong = "max_header_bytes must be 128 to 32768";
    else if (!o->max_fields || o->max_fields > HTTP_MAX_FIELDS)
        wrong = "max_fields must be 1 to 128";
    else if (!o->max_connections)
        wrong = "max_connections must be at least 1";
    else if (o->max_body_bytes > (uint64_t)1 << 30)
        wrong = "max_body_bytes must be at most 1 GiB";
    if (wrong)
        snprintf(error, HTTP_ERROR_BYTES, "%s", wrong);
    return wrong ? -1 : 0;
}

/* A socket bound to the address; -1 with the reason in error. */
static int open_listener(const struct http_server_options *o, char *error)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a;
    int one = 1;
    socklen_t len = sizeof a.v4;
    if (uv_ip4_addr(o->host, o->port, &a.v4)) {
        len = sizeof a.v6;
        if (uv_ip6_addr(o->host, o->port, &a.v6))
            return fail(error, "listen on", o->host, o->port, "not a numeric IPv4 or IPv6 address");
    }
    int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(error, "listen on", o->host, o->port, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if ((o->reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one)) ||
        bind(fd, &a.any, len)) {
        fail(error, "listen on", o->host, o->port, strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

/* Accepted sockets inherit these. */
static void set_socket_options(int fd)
{
    int one = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S,
        probes = KEEPALIVE_PROBES;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &len))
        return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct http_server *s = handle->data;
    s->listener_closed = true;
    server_gone(s);
}

static int start_listening(struct http_server *s, char *error)
{
    const struct http_server_options *o = &s->options;
    int fd = o->fd >= 0 ? o->fd : open_listener(o, error);
    if (fd < 0)
        return -1;
    set_socket_options(fd);
    int e = uv_tcp_open(&s->listener, fd);
    if (!e)
        e = uv_listen((uv_stream_t *)&s->listener, HTTP_LISTEN_BACKLOG, on_connection);
    if (e) {
        if (o->fd < 0 && uv_fileno((uv_handle_t *)&s->listener, &(int){0}))
            close(fd); /* not yet the handle's */
        return fail(error, "listen on", o->host, o->port, uv_strerror(e));
    }
    s->port = bound_port(fd);
    s->listening = true;
    return 0;
}

static void on_drained_task(struct http_task *task);
static void on_drain_timer(struct http_timer *timer);

struct http_server *http_server_new(struct http_loop *loop,
                                    const struct http_server_options *options,
                                    const struct http_server_ops *ops, void *user,
                                    char error[HTTP_ERROR_BYTES])
{
    if (check_options(options, error))
        return NULL;
    struct http_server *s = calloc(1, sizeof *s);
    if (!s || uv_tcp_init(http_loop_uv(loop), &s->listener)) {
        snprintf(error, HTTP_ERROR_BYTES, "out of memory");
        free(s);
        return NULL;
    }
    s->loop = loop;
    s->options = *options;
    s->ops = ops;
    s->user = user;
    s->limits = (struct http_parser_limits){options->max_header_bytes, options->max_fields,
                                            options->max_uri_bytes};
    s->listener.data = s;
    http_task_init(&s->drained_task, on_drained_task);
    http_timer_init(&s->drain_timer, on_drain_timer);
    if (start_listening(s, error)) {
        s->closing = true;
        uv_close((uv_handle_t *)&s->listener, on_listener_closed);
        return NULL;
    }
    return s;
}

uint16_t http_server_port(const struct http_server *s)
{
    return s->port;
}

int http_server_fd(const struct http_server *s)
{
    int fd;
    if (!s->listening || uv_fileno((const uv_handle_t *)&s->listener, &fd))
        return -1;
    return fd;
}

struct http_server_stats http_server_stats(const struct http_server *s)
{
    return s->stats;
}

void http_server_set_limits(struct http_server *s, const struct http_server_options *o)
{
    s->options.max_connections = o->max_connections;
    s->options.max_body_bytes = o->max_body_bytes;
    s->options.max_buffered_bytes = o->max_buffered_bytes;
    s->options.header_timeout_ms = o->header_timeout_ms;
    s->options.body_timeout_ms = o->body_timeout_ms;
    s->options.idle_timeout_ms = o->idle_timeout_ms;
    s->options.write_timeout_ms = o->write_timeout_ms;
}

void http_server_set_tls(struct http_server *s, struct http_tls *tls)
{
    s->options.tls = tls;
}

/* --- the end ----------------------------------------------------------------------------------------------- */

static void stop_listening(struct http_server *s)
{
    if (!s->listening)
        return;
    s->listening = false;
    uv_close((uv_handle_t *)&s->listener, on_listener_closed);
}

/* After anything was closed: is the server's work done? */
static void server_gone(struct http_server *s)
{
    if (!s->listener_closed || s->all)
        return;
    if (!s->closing) {
        if (s->drained)
            http_task_post(s->loop, &s->drained_task);
        return;
    }
    http_task_deinit(s->loop, &s->drained_task);
    http_timer_deinit(s->loop, &s->drain_timer);
    for (struct http_exchange *c = s->pool, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(s);
}

static void on_drained_task(struct http_task *task)
{
    struct http_server *s =
        (struct http_server *)((char *)task - offsetof(struct http_server, drained_task));
    void (*done)(void *user) = s->drained;
    s->drained = NULL;
    done(s->user);
}

static void on_drain_timer(struct http_timer *timer)
{
    struct http_server *s =
        (struct http_server *)((char *)timer - offsetof(struct http_server, drain_timer));
    s->drain_over = true;
    while (s->idle_first)
        close_connection(s->idle_first);
}

void http_server_drain(struct http_server *s, void (*done)(void *user))
{
    if (s->draining)
        return;
    accept_waiting(s);
    s->draining = true;
    s->drained = done;
    stop_listening(s);
    http_timer_start(s->loop, &s->drain_timer, s->options.drain_idle_ms);
    server_gone(s);
}

void http_server_close(struct http_server *s)
{
    s->closing = s->draining = true;
    s->drained = NULL;
    for (struct http_exchange *c = s->all; c; c = c->next) {
        if (c->state == S_EXCHANGE)
            client_gone(c, HTTP_GONE_SHUTDOWN);
        else
            close_connection(c);
    }
    if (s->listening)
        stop_listening(s);
    else if (s->listener_closed && !s->all)
        server_gone(s);
}

/* --- the exchange's request -------------------------------------------------------------------------------- */

void http_exchange_set_user(struct http_exchange *ex, void *user)
{
    ex->user = user;
}

void *http_exchange_user(const struct http_exchange *ex)
{
    return ex->user;
}

const struct http_head *http_request_head(const struct http_exchange *ex)
{
    return &ex->in->head;
}

struct http_slice http_request_body(const struct http_exchange *ex)
{
    return (struct http_slice){ex->body_at, ex->body_len};
}

const char *http_exchange_peer(const struct http_exchange *ex)
{
    struct http_exchange *c =
        (struct http_exchange *)(uintptr_t)ex; /* the text is only made once */
    struct sockaddr_storage a;
    int len = sizeof a;
    if (c->peer[0])
        return c->peer;
    if (uv_tcp_getpeername(&c->io.tcp, (struct sockaddr *)&a, &len) ||
        (a.ss_family == AF_INET6 ? uv_ip6_name((struct sockaddr_in6 *)&a, c->peer, sizeof c->peer)
                                 : uv_ip4_name((struct sockaddr_in *)&a, c->peer, sizeof c->peer)))
        snprintf(c->peer, sizeof c->peer, "unknown");
    return c->peer;
}

bool http_exchange_is_tls(const struct http_exchange *ex)
{
    return ex->io.tls;
}

void http_exchange_release(struct http_exchange *ex)
{
    if (ex->state == S_EXCHANGE)
        release_request(ex);
}
