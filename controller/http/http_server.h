/* http_server.h - an HTTP/1.1 server on one event loop: requests come whole, responses go out as they come.
 *
 *   connection ──► request(exchange)      head and whole body are there
 *                    │  http_reply_head(), http_reply_field()...   collected, not sent
 *                    │  http_reply_send(data, last?)               one writev of head and data; again and again
 *                    ▼
 *                  the exchange is over with the last http_reply_send(), or with gone(), or http_exchange_abort()
 *
 * An exchange is one request and its response. There is one at a time on a connection; what a client pipelines behind
 * it waits (up to HTTP_BLOCK_BYTES read ahead, the rest unread). Replies may be sent from within request() or any time
 * later, on the loop's thread. After it is over the exchange must not be used: its memory is the next one's.
 *
 * A client that leaves is noticed at once: reading goes on while a response is pending, and an end of stream or a reset
 * is gone(). Half-closing (shutdown of the client's sending side before the response is complete) counts as leaving,
 * as in nginx: an HTTP client has no reason to do it, and it cannot be told from leaving. Only where a client has
 * pipelined more than HTTP_BLOCK_BYTES is its leaving noticed within a second instead.
 *
 * Limits, each with its answer: head bytes and fields 431, target 414, body 413, buffered bytes of all requests of the
 * server 503 with Retry-After, methods 501, version 505, malformed 400, time for a head 408 (and nothing where not
 * one byte came), a body that stalls 408, idle connections closed, a client that does not read: gone(), connections: the
 * longest idle one is closed for the new one, and with none idle the new one gets 503. After such an
 * answer the connection is closed, once the client had time to read it (linger_ms).
 */
#ifndef WEIR_HTTP_SERVER_H
#define WEIR_HTTP_SERVER_H

#include <stdbool.h>

#include "controller/http/http_headers.h"
#include "controller/http/http_loop.h"

#define HTTP_ERROR_BYTES 256u
#define HTTP_LISTEN_BACKLOG 4096
#define HTTP_WRITE_HIGH_BYTES (256u << 10) /* unsent bytes: http_reply_send says "wait" */
#define HTTP_WRITE_LOW_BYTES (64u << 10)   /* drained() is called below */
/* Unsent bytes of one connection at which it is given up (as a client that does not read), where the caller goes on
 * sending though told to wait. A single http_reply_send may be as large as it likes. */
#define HTTP_WRITE_MAX_BYTES (64u << 20)

struct http_server;
struct http_exchange;
struct http_tls;

struct http_server_options {
    const char *host; /* a numeric address, "127.0.0.1" or "::1"; ignored with fd >= 0 */
    uint16_t port;    /* 0: the system chooses (http_server_port) */
    int fd;           /* a listening socket to take over (it is closed with the server); -1: none */
    bool reuse_port;  /* SO_REUSEPORT: several loops listen on the same address */
    struct http_tls *tls; /* server context, borrowed; NULL: plain */

    uint32_t max_connections;    /* 16384 */
    uint32_t max_header_bytes;   /* 16384; at most HTTP_BLOCK_BYTES */
    uint32_t max_fields;         /* 100; at most HTTP_MAX_FIELDS */
    uint32_t max_uri_bytes;      /* 8192 */
    uint64_t max_body_bytes;     /* 64 MiB */
    uint64_t max_buffered_bytes; /* 1 GiB: of requests being read or in exchange, on this loop */
    uint32_t
        header_timeout_ms; /* 10,000: from a request's first byte to the end of its head; handshakes too */
    uint32_t body_timeout_ms;  /* 30,000: between two pieces of a body */
    uint32_t idle_timeout_ms;  /* 75,000: without a request */
    uint32_t write_timeout_ms; /* 60,000: bytes wait and none could be sent */
    uint32_t linger_ms;        /* 2,000: after a refusal, to read on (and drop) */
    uint32_t drain_idle_ms;    /* 1,000: how long idle connections stay open in drain mode */
    const char *refusal_type;  /* Content-Type of what refusal() writes; "text/plain" */
};

enum http_gone {
    HTTP_GONE_CLOSED, /* the client closed, or half-closed */
    HTTP_GONE_RESET,
    HTTP_GONE_STALLED,  /* did not read: write_timeout_ms or HTTP_WRITE_MAX_BYTES */
    HTTP_GONE_SHUTDOWN, /* http_server_close */
};
const char *http_gone_text(enum http_gone why);

struct http_server_ops {
    /* A request is complete. The exchange now belongs to the callee until it is over. */
    void (*request)(void *server_user, struct http_exchange *ex);
    /* The client left before the response was complete: the exchange is over. Nothing may be sent. Not called for an
     * exchange that http_exchange_abort ended. */
    void (*gone)(void *server_user, struct http_exchange *ex, enum http_gone why);
    /* After http_reply_send said "wait": go on. May be NULL. */
    void (*drained)(void *server_user, struct http_exchange *ex);
    /* Body of an answer that the toolkit itself gives (400, 408, 413 ...): writes at most cap bytes, returns how many.
     * May be NULL: `why` as text. */
    size_t (*refusal)(void *server_user, int status, const char *why, char *out, size_t cap);
};

/* Counts since the start, but for connections, exchanges and buffered_bytes, which are now. */
struct http_server_stats {
    uint32_t connections, exchanges;
    uint64_t buffered_bytes;
    uint64_t accepted, requests, responses, gone;
    uint64_t refused_malformed, refused_head, refused_body, refused_buffers, refused_connections;
    uint64_t timed_out_head, timed_out_body, timed_out_idle, timed_out_write;
    uint64_t evicted_idle, tls_failed;
};

/* Sets the defaults named above. */
void http_server_defaults(struct http_server_options *o);

/* Listens. NULL: `error` has one line (address in use, an option out of its range ...). ops is borrowed for good. */
struct http_server *http_server_new(struct http_loop *loop,
                                    const struct http_server_options *options,
                                    const struct http_server_ops *ops, void *user,
                                    char error[HTTP_ERROR_BYTES]);

uint16_t http_server_port(const struct http_server *s);
/* The listening socket, to hand over to a successor (dup it, or leave it open over exec); -1 when draining. */
int http_server_fd(const struct http_server *s);
struct http_server_stats http_server_stats(const struct http_server *s);
/* For new connections from now on (reload of certificates); NULL is not allowed where there was a context. */
void http_server_set_tls(struct http_server *s, struct http_tls *tls);

/* Other limits and timeouts from now on (max_connections, max_body_bytes, max_buffered_bytes, and those of header, body,
 * idle and write); a timeout that runs already stays. Values are as http_server_new takes them. */
void http_server_set_limits(struct http_server *s, const struct http_server_options *o);

/* Drain mode: no more connections are accepted, responses say Connection: close, idle connections are closed after
 * drain_idle_ms (requests on them are still answered). `done` is called, once, when the last connection is closed; not from
 * within this call. */
void http_server_drain(struct http_server *s, void (*done)(void *user));
/* Closes everything at once: gone(HTTP_GONE_SHUTDOWN) for each exchange, from within this call. Memory is freed as
 * the uv loop runs. */
void http_server_close(struct http_server *s);

/* --- an exchange: the request --------------------------------------------------------------------------- */

void http_exchange_set_user(struct http_exchange *ex, void *user); /* NULL at first */
void *http_exchange_user(const struct http_exchange *ex);

/* Valid until http_exchange_release or the end of the exchange. */
const struct http_head *http_request_head(const struct http_exchange *ex);
struct http_slice http_request_body(const struct http_exchange *ex);
/* Numeric address of the client, without its port; text lives as long as the exchange. */
const char *http_exchange_peer(const struct http_exchange *ex);
bool http_exchange_is_tls(const struct http_exchange *ex);
/* Gives head and body of the request back, so that a response that streams for minutes costs no buffer. */
void http_exchange_release(struct http_exchange *ex);

/* --- an exchange: the response -------------------------------------------------------------------------- */

#define HTTP_UNKNOWN_LENGTH UINT64_MAX

/* Starts the response; length of the body in bytes, or HTTP_UNKNOWN_LENGTH: chunked, or up to the end of the connection for
 * an HTTP/1.0 client. For HEAD the length is told and no body is sent, whatever is passed on. 1xx, 204 and 304 have none. */
void http_reply_head(struct http_exchange *ex, int status, uint64_t length);
/* One more field; Content-Length, Transfer-Encoding, Connection and Date (where `head` has none) are the toolkit's. */
void http_reply_field(struct http_exchange *ex, const char *name, struct http_slice value);
/* All end-to-end fields of an upstream's response. */
void http_reply_fields(struct http_exchange *ex, const struct http_head *from);

/* Sends data (n slices; copied where the socket does not take them) after what was sent before, and with `last` ends
 * the exchange. The first call sends the head along with it. Returns true: go on; false: HTTP_WRITE_HIGH_BYTES are
 * waiting, better wait for drained() (what was passed is not lost). Never calls back from within. Where the socket
 * turns out to be dead gone() follows from the loop, unless `last` was set.
 * Fewer bytes than the head promised, at `last`, or more: the connection is cut, for the client must not take it as
 * complete. */
bool http_reply_send(struct http_exchange *ex, const struct http_slice *data, size_t n, bool last);

/* A whole response in one call; body is copied where needed. content_type NULL: none. Fields added with http_reply_field
 * are not possible here. */
void http_reply(struct http_exchange *ex, int status, const char *content_type,
                struct http_slice body);

/* http_reply_head was called. */
bool http_reply_started(const struct http_exchange *ex);
/* Bytes that wait for the client to read. */
size_t http_reply_queued(const struct http_exchange *ex);

/* Cuts the connection: the client sees that the response is not complete. The exchange is over. */
void http_exchange_abort(struct http_exchange *ex);

#endif
