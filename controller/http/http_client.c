/* http_client.c - see http_client.h.
 *
 * A link is a connection to an upstream: connecting, busy with one call, or idle (on a stack: the one used last is the
 * one least likely to have been closed). A call holds its link from http_call_send on.
 */
#include "controller/http/http_client.h"

#include <assert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/http/http_io.h"
#include "controller/http/http_parser.h"

#define KEEPALIVE_IDLE_S 60

enum link_state { L_CONNECTING, L_BUSY, L_IDLE, L_CLOSED };

struct link {
    struct http_io io;
    struct http_upstream *up;
    struct link *next, *prev;           /* all of the upstream */
    struct link *idle_next, *idle_prev; /* the idle ones, used last first */
    struct http_call *call;
    struct http_timer timer; /* connecting, the call's timeout, idle */
    uv_connect_t connect;
    struct http_parser parser;
    struct http_block *in;  /* a response's head, with what came behind it */
    uint8_t state, address; /* address: index of the one tried */
    bool reused, can_stay;  /* can_stay: by its head the response leaves the connection usable */
};

struct http_call {
    struct http_upstream *up;
    struct http_call *next, *prev; /* waiting for the upstream's addresses; or the pool */
    const struct http_call_ops *ops;
    void *user;
    struct link *link;
    struct http_block *out; /* the head, until it is written */
    struct http_writer writer;
    const struct http_slice *body;
    size_t n_body;
    uint64_t timeout_ms;
    uint8_t method;
    bool waiting, connected, sent, answered, paused;
    bool over;         /* its last callback is running: to cancel it does nothing */
    bool head_pending; /* it has come, but no part told so yet */
};

struct http_upstream {
    struct http_client *client;
    struct http_upstream *next, *prev;
    struct http_upstream_options options;
    char host[HTTP_HOST_BYTES], host_field[HTTP_HOST_BYTES + 8];
    struct link *links, *idle;
    struct http_call *waiting, *waiting_last; /* for addresses */
    struct sockaddr_storage addresses[HTTP_MAX_ADDRESSES];
    uint8_t n_addresses;
    bool numeric, resolving, freed;
    uint64_t resolved_ms;
    uv_getaddrinfo_t resolve;
    struct http_timer resolve_timer;
    struct http_upstream_stats stats;
};

struct http_client {
    struct http_loop *loop;
    struct http_upstream *upstreams;
    struct link *link_pool;
    struct http_call *call_pool;
    struct http_parser_limits limits;
    bool closing, closed;

    /* the part that is being collected: of the one link that is being read */
    struct http_slice pieces[HTTP_MAX_PIECES];
    size_t n_pieces, piece_bytes;
};

static struct link *of_io(struct http_io *io)
{
    return (struct link *)io; /* first member */
}

static struct link *of_parser(struct http_parser *p)
{
    return (struct link *)((char *)p - offsetof(struct link, parser));
}

const char *http_fail_text(enum http_fail why)
{
    static const char *const texts[] = {
        [HTTP_FAIL_RESOLVE] = "resolve",
        [HTTP_FAIL_CONNECT] = "connect",
        [HTTP_FAIL_TLS] = "tls",
        [HTTP_FAIL_TIMEOUT] = "timeout",
        [HTTP_FAIL_CLOSED] = "closed",
        [HTTP_FAIL_PROTOCOL] = "protocol",
        [HTTP_FAIL_TOO_LARGE] = "too_large",
        [HTTP_FAIL_SHUTDOWN] = "shutdown",
    };
    return texts[why];
}

/* --- memory ------------------------------------------------------------------------------------------------ */

static void upstream_gone(struct http_upstream *up);

static void client_gone(struct http_client *c)
{
    if (!c->closed || c->upstreams)
        return;
    for (struct link *l = c->link_pool, *next; l; l = next) {
        next = l->next;
        free(l);
    }
    for (struct http_call *call = c->call_pool, *next; call; call = next) {
        next = call->next;
        free(call);
    }
    free(c);
}

/* The call is over: its memory may be the next one's. */
static void call_put(struct http_call *call)
{
    struct http_upstream *up = call->up;
    struct http_client *c = up->client;
    if (call->out)
        http_block_put(c->loop, call->out);
    call->next = c->call_pool;
    c->call_pool = call;
    up->stats.calls--;
    upstream_gone(up);
}

static void idle_remove(struct link *l)
{
    struct http_upstream *up = l->up;
    if (l->state != L_IDLE)
        return;
    if (l->idle_prev)
        l->idle_prev->idle_next = l->idle_next;
    else
        up->idle = l->idle_next;
    if (l->idle_next)
        l->idle_next->idle_prev = l->idle_prev;
    up->stats.idle--;
}

static void in_put(struct link *l)
{
    if (l->in)
        http_block_put(l->up->client->loop, l->in);
    l->in = NULL;
}

static void link_close(struct link *l)
{
    if (l->state == L_CLOSED)
        return;
    idle_remove(l);
    if (l->call)
        l->call->link = NULL;
    l->call = NULL;
    l->state = L_CLOSED;
    in_put(l);
    http_timer_deinit(l->up->client->loop, &l->timer);
    http_io_close(&l->io);
}

static void on_link_closed(struct http_io *io)
{
    struct link *l = of_io(io);
    struct http_upstream *up = l->up;
    if (l->prev)
        l->prev->next = l->next;
    else
        up->links = l->next;
    if (l->next)
        l->next->prev = l->prev;
    up->stats.connections--;
    l->next = up->client->link_pool;
    up->client->link_pool = l;
    upstream_gone(up);
}

/* --- failing ----------------------------------------------------------------------------------------------- */

static void fail_call(struct http_call *call, enum http_fail why, const char *detail)
{
    struct link *l = call->link;
    struct http_failure f = {
        .why = why,
        .connected = call->connected,
        .reused = l && l->reused,
        .sent = call->sent,
        .answered = call->answered,
        .detail = detail,
    };
    if (l)
        link_close(l);
    call->over = true;
    call->ops->failed(call->user, call, &f);
    call_put(call);
}

/* --- the response ------------------------------------------------------------------------------------------ */

/* Tells the owner what was collected. The call may be over afterwards. */
static void deliver(struct http_client *c, struct http_call *call, const struct http_head *head,
                    bool last)
{
    struct http_part part = {
        .head = call->head_pending ? head : NULL,
        .data = c->pieces,
        .n = c->n_pieces,
        .bytes = c->piece_bytes,
        .last = last,
    };
    call->head_pending = false;
    c->n_pieces = c->piece_bytes = 0;
    call->ops->part(call->user, call, &part);
}

static int on_head(struct http_parser *p)
{
    struct link *l = of_parser(p);
    const struct http_head *h = p->head;
    l->call->head_pending = true;
    l->can_stay = h->keep_alive && (h->chunked || h->has_length || p->to_head || h->status == 204 ||
                                    h->status == 304);
    return 0;
}

static int on_body(struct http_parser *p, const char *at, size_t len)
{
    struct link *l = of_parser(p);
    struct http_client *c = l->up->client;
    if (c->n_pieces == HTTP_MAX_PIECES) {
        deliver(c, l->call, p->head, false);
        if (!l->call) /* cancelled by its owner */
            return -1;
    }
    c->pieces[c->n_pieces++] = (struct http_slice){at, len};
    c->piece_bytes += len;
    return 0;
}

/* The link is free for another call, if the upstream agrees and said nothing that it should not have. */
static void link_release(struct link *l, bool clean)
{
    struct http_upstream *up = l->up;
    l->call = NULL;
    if (!clean || up->freed || up->stats.idle >= up->options.max_idle) {
        link_close(l);
        return;
    }
    l->state = L_IDLE;
    l->reused = true;
    l->idle_prev = NULL;
    l->idle_next = up->idle;
    if (up->idle)
        up->idle->idle_prev = l;
    up->idle = l;
    up->stats.idle++;
    http_timer_start(up->client->loop, &l->timer, up->options.idle_timeout_ms);
}

/* The response is complete. The link is released first, so that a call made in the last part can have it. */
static void complete(struct link *l, bool extra)
{
    struct http_client *c = l->up->client;
    struct http_call *call = l->call;
    struct http_block *in = l->in;
    if (extra)
        l->up->stats.extra_bytes++;
    if (call->paused)
        http_io_read_start(&l->io);
    l->in = NULL;
    call->link = NULL;
    call->over = true;
    /* answered before the request was all there: nobody knows what the rest would be taken for */
    link_release(l, l->can_stay && !extra && !http_io_queued(&l->io));
    deliver(c, call, in ? &in->head : NULL, true);
    if (in)
        http_block_put(c->loop, in);
    call_put(call);
}

static void feed(struct link *l, char *at, size_t n)
{
    struct http_client *c = l->up->client;
    struct http_call *call = l->call;
    size_t used = n;
    call->answered = true;
    c->n_pieces = c->piece_bytes = 0;
    if (call->timeout_ms && !call->paused)
        http_timer_start(c->loop, &l->timer, call->timeout_ms);
    switch (http_parser_feed(&l->parser, at, n, &used)) {
    case HTTP_PARSE_DONE: complete(l, used < n); break;
    case HTTP_PARSE_REFUSED:
        if (l->call) { /* else its owner has cancelled it */
            int kind = l->parser.refusal.status;
            fail_call(l->call,
                      kind == 431 || kind == 414 ? HTTP_FAIL_TOO_LARGE : HTTP_FAIL_PROTOCOL,
                      l->parser.refusal.why);
        }
        break;
    case HTTP_PARSE_MORE:
        if (call->head_pending || c->n_pieces)
            deliver(c, call, l->parser.head, false);
        if (l->call && l->parser.head_done)
            in_put(l); /* a stream may last: it holds no buffer */
        break;
    }
}

/* The first bytes may come: only now a buffer is needed. */
static void begin_answer(struct link *l)
{
    struct http_client *c = l->up->client;
    l->in = http_block_get(c->loop);
    l->in->head.base = l->in->bytes;
    http_parser_init(&l->parser, true, &l->in->head, &c->limits);
    l->parser.on_head = on_head;
    l->parser.on_body = on_body;
    l->parser.to_head = l->call->method == HTTP_M_HEAD;
}

static void on_room(struct http_io *io, char **at, size_t *len)
{
    struct link *l = of_io(io);
    struct http_loop *loop = l->up->client->loop;
    if (l->state == L_BUSY && !l->parser.head_done) {
        if (!l->in)
            begin_answer(l);
        *at = l->in->bytes + l->in->to;
        *len = HTTP_BLOCK_BYTES - l->in->to;
    } else {
        *at = http_loop_scratch(loop);
        *len = HTTP_READ_BYTES;
    }
}

static void on_data(struct http_io *io, char *at, size_t n)
{
    struct link *l = of_io(io);
    if (!n) {
        if (l->in && !l->in->to)
            in_put(l);
        return;
    }
    l->up->stats.bytes_in += n;
    if (l->state == L_IDLE) {
        l->up->stats.extra_bytes++;
        link_close(l);
    } else if (l->state == L_BUSY) {
        if (l->in && at == l->in->bytes + l->in->to)
            l->in->to += (uint32_t)n;
        feed(l, at, n);
    }
}

static void on_ended(struct http_io *io, int uv_error)
{
    struct link *l = of_io(io);
    struct http_call *call = l->call;
    if (l->state == L_IDLE) {
        l->up->stats.stale++;
        link_close(l);
    } else if (l->state == L_CONNECTING) {
        fail_call(call, HTTP_FAIL_TLS,
                  uv_error == UV_EPROTO ? http_io_tls_error(io) : uv_strerror(uv_error));
    } else if (call && uv_error == UV_EOF && l->parser.started &&
               http_parser_eof(&l->parser) == HTTP_PARSE_DONE) {
        complete(l, false);
    } else if (call) {
        bool cut = l->parser.started && l->parser.head_done;
        fail_call(call, HTTP_FAIL_CLOSED,
                  uv_error != UV_EOF ? uv_strerror(uv_error)
                  : cut              ? "closed before the end that its head had promised"
                                     : "closed without an answer");
    }
}

static void on_progress(struct http_io *io)
{
    (void)io;
}

/* --- sending ------------------------------------------------------------------------------------------------ */

/* Writes the request on a link that is ready. 0 or a uv error; nothing was sent then. */
static int link_write(struct link *l, struct http_call *call)
{
    struct http_slice all[HTTP_IO_MAX_SLICES];
    size_t bytes = (size_t)(call->writer.at - call->out->bytes);
    all[0] = (struct http_slice){call->out->bytes, bytes};
    size_t n = call->n_body;
    int e;
    for (size_t i = 0; i < n; i++)
        bytes += call->body[i].len;
    if (n < HTTP_IO_MAX_SLICES) {
        if (n)
            memcpy(all + 1, call->body, n * sizeof *all);
        e = http_io_write(&l->io, all, n + 1, true);
    } else {
        e = http_io_write(&l->io, all, 1, false);
        for (size_t i = 0; !e && i < n; i += HTTP_IO_MAX_SLICES)
            e = http_io_write(&l->io, call->body + i,
                              n - i < HTTP_IO_MAX_SLICES ? n - i : HTTP_IO_MAX_SLICES, true);
    }
    if (e)
        return e;
    call->sent = true;
    l->up->stats.bytes_out += bytes;
    if (!http_io_queued(&l->io)) {
        http_block_put(l->up->client->loop, call->out);
        call->out = NULL;
    }
    return 0;
}

static void attach(struct link *l, struct http_call *call)
{
    struct http_client *c = l->up->client;
    l->call = call;
    l->state = L_BUSY;
    call->link = l;
    call->connected = true;
    l->parser.started = l->parser.head_done =
        false; /* it begins with the first bytes: begin_answer */
    if (call->timeout_ms)
        http_timer_start(c->loop, &l->timer, call->timeout_ms);
    else
        http_timer_stop(&l->timer);
}

static void detach(struct link *l)
{
    l->call->link = NULL;
    l->call->connected = false;
    l->call = NULL;
}

/* On an idle connection; those that turn out to be dead are closed. False: there is none. */
static bool send_on_idle(struct http_call *call)
{
    struct http_upstream *up = call->up;
    while (up->idle) {
        struct link *l = up->idle;
        idle_remove(l);
        attach(l, call);
        if (!link_write(l, call)) {
            up->stats.reused++;
            return true;
        }
        up->stats.stale++;
        detach(l);
        link_close(l);
    }
    return false;
}

/* --- connecting --------------------------------------------------------------------------------------------- */

static const struct http_io_ops io_ops;
static void on_timeout(struct http_timer *timer);
static void on_connect(uv_connect_t *req, int status);

static struct link *link_new(struct http_upstream *up)
{
    struct http_client *c = up->client;
    struct link *l = c->link_pool;
    if (l)
        c->link_pool = l->next;
    else
        l = malloc(sizeof *l);
    if (!l)
        return NULL;
    memset(l, 0, sizeof *l);
    if (http_io_init(&l->io, c->loop, &io_ops)) {
        free(l);
        return NULL;
    }
    l->up = up;
    http_timer_init(&l->timer, on_timeout);
    l->next = up->links;
    if (up->links)
        up->links->prev = l;
    up->links = l;
    up->stats.connections++;
    return l;
}

/* Begins to connect to one of the upstream's addresses. 0 or a uv error. */
static int connect_to(struct http_call *call, unsigned address, uint64_t timeout_ms)
{
    struct http_upstream *up = call->up;
    struct link *l = link_new(up);
    if (!l)
        return UV_ENOMEM;
    l->state = L_CONNECTING;
    l->address = (uint8_t)address;
    l->connect.data = l;
    int e = uv_tcp_connect(&l->connect, &l->io.tcp, (struct sockaddr *)&up->addresses[address],
                           on_connect);
    if (e) {
        up->stats.connect_failures++;
        link_close(l);
        return e;
    }
    l->call = call;
    call->link = l;
    http_timer_start(up->client->loop, &l->timer, timeout_ms);
    return 0;
}

static void begin(struct link *l)
{
    struct http_call *call = l->call;
    l->up->stats.connects++;
    attach(l, call);
    int e = link_write(l, call);
    if (e)
        fail_call(call, HTTP_FAIL_CLOSED, uv_strerror(e));
}

static void on_ready(struct http_io *io)
{
    begin(of_io(io));
}

static void try_next_address(struct link *l, int error)
{
    struct http_call *call = l->call;
    struct http_upstream *up = l->up;
    uint64_t now = uv_now(http_loop_uv(up->client->loop));
    uint64_t left = l->timer.at_ms > now ? l->timer.at_ms - now : 1;
    up->stats.connect_failures++;
    if (!up->numeric)
        up->resolved_ms = 0; /* the name may have moved */
    unsigned next = l->address + 1u;
    if (next < up->n_addresses) {
        call->link = NULL;
        l->call = NULL;
        link_close(l);
        error = connect_to(call, next, left);
        if (!error)
            return;
    }
    fail_call(call, HTTP_FAIL_CONNECT, uv_strerror(error));
}

static void on_connect(uv_connect_t *req, int status)
{
    struct link *l = req->data;
    if (l->state != L_CONNECTING)
        return;
    if (status) {
        try_next_address(l, status);
        return;
    }
    uv_tcp_nodelay(&l->io.tcp, 1);
    uv_tcp_keepalive(&l->io.tcp, 1, KEEPALIVE_IDLE_S);
    struct http_tls *tls = l->up->options.tls;
    if (tls) {
        struct http_tls_session *session = http_tls_session_new(tls, false, l->up->host);
        if (!session) {
            fail_call(l->call, HTTP_FAIL_TLS, "out of memory, or not a host name");
            return;
        }
        http_io_set_tls(&l->io, session);
    }
    int e = http_io_start(&l->io);
    if (e)
        fail_call(l->call, HTTP_FAIL_CONNECT, uv_strerror(e));
    else if (!tls)
        begin(l);
}

static void on_timeout(struct http_timer *timer)
{
    struct link *l = (struct link *)((char *)timer - offsetof(struct link, timer));
    if (l->state == L_IDLE)
        link_close(l);
    else if (l->call)
        fail_call(l->call, HTTP_FAIL_TIMEOUT,
                  l->state == L_CONNECTING ? "no connection in time" : "nothing came in time");
}

static const struct http_io_ops io_ops = {
    .room = on_room,
    .data = on_data,
    .ended = on_ended,
    .progress = on_progress,
    .closed = on_link_closed,
    .ready = on_ready,
};

/* --- names -------------------------------------------------------------------------------------------------- */

static void wait_add(struct http_call *call)
{
    struct http_upstream *up = call->up;
    call->waiting = true;
    call->next = NULL;
    call->prev = up->waiting_last;
    if (up->waiting_last)
        up->waiting_last->next = call;
    else
        up->waiting = call;
    up->waiting_last = call;
}

static void wait_remove(struct http_call *call)
{
    struct http_upstream *up = call->up;
    call->waiting = false;
    if (call->prev)
        call->prev->next = call->next;
    else
        up->waiting = call->next;
    if (call->next)
        call->next->prev = call->prev;
    else
        up->waiting_last = call->prev;
}

static void fail_waiting(struct http_upstream *up, enum http_fail why, const char *detail)
{
    struct http_call *last = up->waiting_last;
    while (up->waiting) {
        struct http_call *call = up->waiting;
        bool end = call == last; /* calls that failed() makes are not for this round */
        wait_remove(call);
        fail_call(call, why, detail);
        if (end)
            break;
    }
}

static void keep_addresses(struct http_upstream *up, const struct addrinfo *list)
{
    up->n_addresses = 0;
    for (; list && up->n_addresses < HTTP_MAX_ADDRESSES; list = list->ai_next) {
        struct sockaddr_storage *a = &up->addresses[up->n_addresses];
        if (list->ai_family != AF_INET && list->ai_family != AF_INET6)
            continue;
        memcpy(a, list->ai_addr, list->ai_addrlen);
        if (list->ai_family == AF_INET)
            ((struct sockaddr_in *)a)->sin_port = htons(up->options.port);
        else
            ((struct sockaddr_in6 *)a)->sin6_port = htons(up->options.port);
        up->n_addresses++;
    }
}

static void on_resolved(uv_getaddrinfo_t *req, int status, struct addrinfo *list)
{
    struct http_upstream *up = req->data;
    struct http_client *c = up->client;
    up->resolving = false;
    up->stats.calls++; /* keeps it alive while calls fail */
    http_timer_stop(&up->resolve_timer);
    if (!status)
        keep_addresses(up, list);
    uv_freeaddrinfo(list);
    if (status || !up->n_addresses) {
        fail_waiting(up, HTTP_FAIL_RESOLVE, status ? uv_strerror(status) : "no addresses");
    } else {
        up->resolved_ms = uv_now(http_loop_uv(c->loop)) + 1;
        while (up->waiting) {
            struct http_call *call = up->waiting;
            wait_remove(call);
            int e = connect_to(call, 0, up->options.connect_timeout_ms);
            if (e)
                fail_call(call, HTTP_FAIL_CONNECT, uv_strerror(e));
        }
    }
    up->stats.calls--;
    upstream_gone(up);
}

static void on_resolve_timeout(struct http_timer *timer)
{
    struct http_upstream *up =
        (struct http_upstream *)((char *)timer - offsetof(struct http_upstream, resolve_timer));
    up->stats.calls++;
    fail_waiting(up, HTTP_FAIL_TIMEOUT, "the name was not resolved in time");
    up->stats.calls--;
    upstream_gone(up);
}

/* Waits for addresses; the question is asked unless it is on its way. 0 or a uv error. */
static int resolve(struct http_call *call)
{
    struct http_upstream *up = call->up;
    struct http_client *c = up->client;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    if (!up->resolving) {
        up->resolve.data = up;
        int e = uv_getaddrinfo(http_loop_uv(c->loop), &up->resolve, on_resolved, up->host, NULL,
                               &hints);
        if (e)
            return e;
        up->resolving = true;
    }
    if (!up->waiting)
        http_timer_start(c->loop, &up->resolve_timer, up->options.connect_timeout_ms);
    wait_add(call);
    return 0;
}

static bool addresses_are_fresh(const struct http_upstream *up)
{
    uint64_t now = uv_now(http_loop_uv(up->client->loop));
    return up->numeric || (up->resolved_ms && now - up->resolved_ms < up->options.resolve_ttl_ms);
}

/* --- calls -------------------------------------------------------------------------------------------------- */

struct http_call *http_call_new(struct http_upstream *up, const struct http_call_ops *ops,
                                void *user)
{
    struct http_client *c = up->client;
    struct http_call *call = c->call_pool;
    if (call)
        c->call_pool = call->next;
    else
        call = malloc(sizeof *call);
    if (!call)
        abort();
    memset(call, 0, sizeof *call);
    call->up = up;
    call->ops = ops;
    call->user = user;
    call->out = http_block_get(c->loop);
    call->writer =
        (struct http_writer){call->out->bytes, call->out->bytes + HTTP_BLOCK_BYTES, false};
    up->stats.calls++;
    return call;
}

int http_call_request(struct http_call *call, enum http_method method, struct http_slice target)
{
    if (!target.len || (target.s[0] != '/' && target.s[0] != '*'))
        return WEIR_E_INVALID;
    for (size_t i = 0; i < target.len; i++)
        if ((unsigned char)target.s[i] <= ' ' || target.s[i] == 0x7f)
            return WEIR_E_INVALID;
    call->method = (uint8_t)method;
    http_write_request(&call->writer, http_method_text(method), target);
    http_write_field(&call->writer, HTTP_SLICE("host"),
                     (struct http_slice){call->up->host_field, strlen(call->up->host_field)});
    return 0;
}

void http_call_field(struct http_call *call, const char *name, struct http_slice value)
{
    http_write_field(&call->writer, (struct http_slice){name, strlen(name)}, value);
}

void http_call_fields(struct http_call *call, const struct http_head *from,
                      const enum http_known *without, size_t n)
{
    enum http_known all[2 + HTTP_CALL_MAX_WITHOUT] = {HTTP_F_HOST, HTTP_F_EXPECT};
    assert(n <= HTTP_CALL_MAX_WITHOUT);
    if (n)
        memcpy(all + 2, without, n * sizeof *all);
    http_write_fields(&call->writer, from, all, 2 + n);
}

static bool has_body(enum http_method method)
{
    return method == HTTP_M_POST || method == HTTP_M_PUT || method == HTTP_M_PATCH;
}

static int send_somehow(struct http_call *call)
{
    struct http_upstream *up = call->up;
    if (up->freed)
        return WEIR_E_STATE;
    if (call->writer.full)
        return WEIR_E_LIMIT;
    if (send_on_idle(call))
        return 0;
    if (up->stats.connections >= up->options.max_connections)
        return WEIR_E_LIMIT;
    int e = addresses_are_fresh(up) ? connect_to(call, 0, up->options.connect_timeout_ms)
                                    : resolve(call);
    return e ? WEIR_E_IO : 0;
}

int http_call_send(struct http_call *call, const struct http_slice *body, size_t n)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += body[i].len;
    call->body = body;
    call->n_body = n;
    if (bytes || has_body(call->method))
        http_write_field_u64(&call->writer, HTTP_SLICE("content-length"), bytes);
    http_write(&call->writer, "\r\n", 2);
    int e = send_somehow(call);
    if (e)
        call_put(call);
    return e;
}

void http_call_timeout(struct http_call *call, uint64_t ms)
{
    call->timeout_ms = ms;
    if (!call->link || call->link->state != L_BUSY)
        return;
    if (ms && !call->paused)
        http_timer_start(call->up->client->loop, &call->link->timer, ms);
    else
        http_timer_stop(&call->link->timer);
}

void http_call_pause(struct http_call *call)
{
    if (call->paused || !call->link || call->link->state != L_BUSY)
        return;
    call->paused = true;
    http_io_read_stop(&call->link->io);
    http_timer_stop(&call->link->timer);
}

void http_call_resume(struct http_call *call)
{
    if (!call->paused || !call->link)
        return;
    call->paused = false;
    http_io_read_start(&call->link->io);
    http_call_timeout(call, call->timeout_ms);
}

void http_call_cancel(struct http_call *call)
{
    if (call->over)
        return;
    if (call->waiting)
        wait_remove(call);
    if (call->link)
        link_close(call->link);
    call_put(call);
}

bool http_call_written(const struct http_call *call)
{
    return call->sent && call->link && !http_io_queued(&call->link->io);
}

bool http_call_reused(const struct http_call *call)
{
    return call->link && call->link->reused;
}

/* --- upstreams ---------------------------------------------------------------------------------------------- */

void http_upstream_defaults(struct http_upstream_options *o)
{
    *o = (struct http_upstream_options){
        .max_connections = 16384,
        .max_idle = 256,
        .idle_timeout_ms = 60000,
        .connect_timeout_ms = 5000,
        .resolve_ttl_ms = 30000,
    };
}

static void name_host(struct http_upstream *up, const struct http_upstream_options *o)
{
    bool v6 = strchr(up->host, ':');
    bool usual = o->port == (o->tls ? 443 : 80);
    if (o->host_field)
        snprintf(up->host_field, sizeof up->host_field, "%s", o->host_field);
    else if (usual)
        snprintf(up->host_field, sizeof up->host_field, v6 ? "[%s]" : "%s", up->host);
    else
        snprintf(up->host_field, sizeof up->host_field, v6 ? "[%s]:%u" : "%s:%u", up->host,
                 (unsigned)o->port);
}

struct http_upstream *http_upstream_new(struct http_client *c,
                                        const struct http_upstream_options *o)
{
    if (strlen(o->host) >= HTTP_HOST_BYTES - 2 ||
        (o->host_field && strlen(o->host_field) >= HTTP_HOST_BYTES))
        return NULL;
    struct http_upstream *up = calloc(1, sizeof *up);
    if (!up)
        return NULL;
    up->client = c;
    up->options = *o;
    snprintf(up->host, sizeof up->host, "%s", o->host);
    name_host(up, o);
    up->options.host = up->host;
    up->options.host_field = up->host_field;
    up->numeric = !uv_ip4_addr(up->host, o->port, (struct sockaddr_in *)&up->addresses[0]) ||
                  !uv_ip6_addr(up->host, o->port, (struct sockaddr_in6 *)&up->addresses[0]);
    up->n_addresses = up->numeric;
    http_timer_init(&up->resolve_timer, on_resolve_timeout);
    up->next = c->upstreams;
    if (c->upstreams)
        c->upstreams->prev = up;
    c->upstreams = up;
    return up;
}

/* Frees it once nothing of it is in use any more. */
static void upstream_gone(struct http_upstream *up)
{
    struct http_client *c = up->client;
    if (!up->freed || up->links || up->stats.calls || up->resolving || (c->closing && !c->closed))
        return;
    if (up->prev)
        up->prev->next = up->next;
    else
        c->upstreams = up->next;
    if (up->next)
        up->next->prev = up->prev;
    http_timer_deinit(c->loop, &up->resolve_timer);
    free(up);
    client_gone(c);
}

void http_upstream_close_idle(struct http_upstream *up)
{
    while (up->idle)
        link_close(up->idle);
}

void http_upstream_free(struct http_upstream *up)
{
    if (!up || up->freed)
        return;
    up->freed = true;
    http_upstream_close_idle(up);
    upstream_gone(up);
}

struct http_upstream_stats http_upstream_stats(const struct http_upstream *up)
{
    return up->stats;
}

/* --- the client --------------------------------------------------------------------------------------------- */

struct http_client *http_client_new(struct http_loop *loop)
{
    struct http_client *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->loop = loop;
    c->limits = (struct http_parser_limits){HTTP_CALL_MAX_HEAD, HTTP_MAX_FIELDS, HTTP_BLOCK_BYTES};
    return c;
}

static void fail_all(struct http_upstream *up)
{
    static const char why[] = "weir is shutting down";
    while (up->waiting) {
        struct http_call *call = up->waiting;
        wait_remove(call);
        fail_call(call, HTTP_FAIL_SHUTDOWN, why);
    }
    for (struct link *l = up->links; l; l = l->next) /* links are only taken out from the loop */
        if (l->call)
            fail_call(l->call, HTTP_FAIL_SHUTDOWN, why);
    http_upstream_close_idle(up);
}

void http_client_close(struct http_client *c)
{
    if (!c || c->closing)
        return;
    c->closing = true;
    for (struct http_upstream *up = c->upstreams; up; up = up->next)
        up->freed = true; /* no new calls, on any */
    for (struct http_upstream *up = c->upstreams; up; up = up->next)
        fail_all(up);
    c->closed = true;
    if (!c->upstreams) {
        client_gone(c);
        return;
    }
    for (struct http_upstream *up = c->upstreams, *next; up; up = next) {
        next = up->next;
        upstream_gone(up);
    }
}
