/* http_client.h - HTTP/1.1 calls to upstreams on one event loop, over keep-alive connections.
 *
 *   http_call_new(upstream) ─ http_call_request(), http_call_field()... ─ http_call_send(body)
 *        part(head?, data, last?)    as bytes come: one call for all that one read brought
 *        failed(why)                 instead of the last part
 *
 * The call is over with the last part, with failed(), or with http_call_cancel(); then it must not be used.
 * Callbacks come from the loop, never from within a function of this header. A callback may cancel its own call; in the last
 * one that changes nothing.
 *
 * A reused connection may have been closed by the upstream just then: failed() tells whether the connection
 * was reused, whether any byte of the request was written and whether any of the response had come, so that the
 * caller can decide to call again (nothing is repeated here: a generation may have begun).
 *
 * Not trusted: lengths (too few bytes: failed; bytes after the end: the connection is not used again, nor are they
 * passed on), heads (HTTP_CALL_MAX_HEAD bytes, HTTP_MAX_FIELDS), 1xx answers (dropped, at most HTTP_MAX_INFORMATIONAL), upgrades
 * (refused), garbage (http_parser.h).
 */
#ifndef WEIR_HTTP_CLIENT_H
#define WEIR_HTTP_CLIENT_H

#include <stdbool.h>

#include "controller/http/http_headers.h"
#include "controller/http/http_loop.h"

#define HTTP_CALL_MAX_HEAD HTTP_BLOCK_BYTES /* of a request or response */
#define HTTP_MAX_PIECES 64u                 /* slices in one part */
#define HTTP_CALL_MAX_WITHOUT 6u
#define HTTP_MAX_ADDRESSES 8u /* of one name */
#define HTTP_HOST_BYTES 256u

struct http_client;
struct http_upstream;
struct http_call;
struct http_tls;

struct http_upstream_options {
    const char *host; /* a name or a numeric address; copied */
    uint16_t port;
    struct http_tls
        *tls; /* client context, borrowed; NULL: plain. SNI and the verified name are `host` */
    const char *host_field; /* value of Host; NULL: host and, where not the default, port. Copied */
    uint32_t max_connections; /* 16384: in use and idle; at it http_call_send is WEIR_E_LIMIT */
    uint32_t max_idle;        /* 256: kept open without a call */
    uint32_t
        idle_timeout_ms; /* 60,000: shorter than what engines allow is better (uvicorn: 5,000!) */
    uint32_t connect_timeout_ms; /* 5,000: name, connection and TLS together */
    uint32_t resolve_ttl_ms;     /* 30,000 */
};

enum http_fail {
    HTTP_FAIL_RESOLVE,   /* no such name */
    HTTP_FAIL_CONNECT,   /* refused, unreachable */
    HTTP_FAIL_TLS,       /* handshake or certificate */
    HTTP_FAIL_TIMEOUT,   /* connecting: connect_timeout_ms; afterwards: http_call_timeout */
    HTTP_FAIL_CLOSED,    /* the upstream closed or reset before the response was complete */
    HTTP_FAIL_PROTOCOL,  /* not HTTP, or a length that was a lie */
    HTTP_FAIL_TOO_LARGE, /* the response's head */
    HTTP_FAIL_SHUTDOWN,  /* http_client_close */
};
const char *http_fail_text(enum http_fail why);

struct http_failure {
    enum http_fail why;
    bool connected; /* there was a connection */
    bool reused;    /* it had served calls before */
    bool sent;      /* bytes of the request were handed to the system */
    bool answered;  /* a byte of the response had come */
    const char *
        detail; /* for a person: "connection refused", "two Content-Length fields"; valid within the callback */
};

/* What one read brought. Views are valid within the callback. */
struct http_part {
    const struct http_head *head; /* in the first part of a response, else NULL */
    const struct http_slice *data;
    size_t n, bytes; /* slices, bytes of all of them */
    bool last;       /* the response is complete: the call is over once the callback returns */
};

struct http_call_ops {
    void (*part)(void *user, struct http_call *call, const struct http_part *part);
    void (*failed)(void *user, struct http_call *call, const struct http_failure *failure);
};

struct http_upstream_stats {
    uint32_t connections, idle, calls; /* now */
    uint64_t connects, connect_failures, reused,
        stale;            /* stale: closed by the upstream while idle */
    uint64_t extra_bytes; /* connections that sent bytes after the end */
    uint64_t bytes_in, bytes_out;
};

/* NULL: out of memory. */
struct http_client *http_client_new(struct http_loop *loop);
/* Fails all calls with HTTP_FAIL_SHUTDOWN, from within this call; closes all connections. Its upstreams are gone, too. Memory is freed
 * as the uv loop runs. */
void http_client_close(struct http_client *c);

void http_upstream_defaults(struct http_upstream_options *o);
/* NULL: out of memory, or host is longer than HTTP_HOST_BYTES. */
struct http_upstream *http_upstream_new(struct http_client *c,
                                        const struct http_upstream_options *o);
/* No more calls may be made. Running ones go on; the rest is closed. */
void http_upstream_free(struct http_upstream *up);
struct http_upstream_stats http_upstream_stats(const struct http_upstream *up);
/* Closes idle connections: after a worker was found dead or has restarted. */
void http_upstream_close_idle(struct http_upstream *up);

/* A new call, not yet sent. ops is borrowed until its end. */
struct http_call *http_call_new(struct http_upstream *up, const struct http_call_ops *ops,
                                void *user);
/* First: the request line and Host. target is path and query, without blanks or controls (WEIR_E_INVALID otherwise, or empty). */
WEIR_NODISCARD int http_call_request(struct http_call *call, enum http_method method,
                                     struct http_slice target);
void http_call_field(struct http_call *call, const char *name, struct http_slice value);
/* All end-to-end fields of a client's request but Host and Expect, and those of the n kinds in `without` (HTTP_CALL_MAX_WITHOUT):
 * those that the caller writes itself, as who reads them may take the first or the last of two. */
void http_call_fields(struct http_call *call, const struct http_head *from,
                      const enum http_known *without, size_t n);
/* Sends it: the body is n slices, and both array and bytes must stay valid until the call is over. Content-Length is added
 * where there is a body or the method is one that has one. 0; else the call is over already, without a callback:
 * WEIR_E_LIMIT (max_connections; or the head is longer than HTTP_CALL_MAX_HEAD), WEIR_E_IO (no socket to be had). */
WEIR_NODISCARD int http_call_send(struct http_call *call, const struct http_slice *body, size_t n);

/* Fails the call with HTTP_FAIL_TIMEOUT when nothing comes from the upstream for so long; 0: never (the default).
 * Counts from now, from the end of connecting, and from each byte that comes; stands still while paused. May be
 * changed at any time after http_call_send. */
void http_call_timeout(struct http_call *call, uint64_t ms);
/* Back-pressure: no more is read until resumed; what was read already (HTTP_READ_BYTES at most) still comes. */
void http_call_pause(struct http_call *call);
void http_call_resume(struct http_call *call);
/* Ends the call without a callback. Its connection is closed at once, so that the engine stops working on it. */
void http_call_cancel(struct http_call *call);

bool http_call_reused(const struct http_call *call);
/* The whole request has been handed to the system: its body's bytes are not needed any more. */
bool http_call_written(const struct http_call *call);

#endif
