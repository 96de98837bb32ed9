/* http_tls.h - TLS contexts for http_server and http_client: OpenSSL 3 over buffers, so that sockets stay libuv's.
 * TLS 1.2 at least; ALPN http/1.1; no renegotiation, no compression, session tickets as OpenSSL has them.
 *
 * Memory: OpenSSL's own BIO_s_mem keeps the largest buffer it ever had, for each connection; the one here reads from
 * where the socket was read to, and an idle connection has none. SSL_MODE_RELEASE_BUFFERS is set likewise.
 */
#ifndef WEIR_HTTP_TLS_H
#define WEIR_HTTP_TLS_H

#include <stdbool.h>
#include <stddef.h>

struct http_tls;

struct http_tls_options {
    const char *cert_file; /* PEM, with its chain; needed by servers, optional for clients */
    const char *key_file;  /* PEM */
    const char *
        ca_file; /* PEM; servers: clients have to show a certificate of these; clients: instead of the
                            * system's; NULL: none, or the system's */
    bool insecure; /* clients: do not verify (tests and closed networks) */
};

/* A context; NULL: `error` has one line that names the file and what is wrong. */
struct http_tls *http_tls_server_new(const struct http_tls_options *o, char *error,
                                     size_t error_size);
struct http_tls *http_tls_client_new(const struct http_tls_options *o, char *error,
                                     size_t error_size);
/* Connections that use it go on: contexts are counted. */
void http_tls_free(struct http_tls *tls);

/* --- one connection's state, for http_io ----------------------------------------------------------------- */

struct http_tls_session;

enum {
    HTTP_TLS_MORE = -1, /* nothing now: feed it more records */
    HTTP_TLS_EOF = -2,  /* the peer has closed in order */
    HTTP_TLS_FAIL = -3, /* http_tls_error() says why */
};

/* host: clients: name to ask for and to verify. NULL: out of memory. */
struct http_tls_session *http_tls_session_new(struct http_tls *tls, bool is_server,
                                              const char *host);
void http_tls_session_free(struct http_tls_session *s);

/* Records from the network: read by the calls below, until http_tls_keep copies what they have not read. */
void http_tls_feed(struct http_tls_session *s, const char *records, size_t len);
void http_tls_keep(struct http_tls_session *s);
/* Goes on with the handshake; 1: it is complete; or one of the above. */
int http_tls_handshake(struct http_tls_session *s);
bool http_tls_ready(const struct http_tls_session *s);
/* Plain bytes out of what was fed: their number (> 0), or one of the above. */
long http_tls_read(struct http_tls_session *s, char *out, size_t cap);
/* Makes records of plain bytes. 0 or HTTP_TLS_FAIL. */
int http_tls_write(struct http_tls_session *s, const char *data, size_t len);
/* Says goodbye (close_notify). */
void http_tls_goodbye(struct http_tls_session *s);
/* Records for the network: valid until the next call on s, which may make more; then http_tls_sent. */
size_t http_tls_outgoing(struct http_tls_session *s, const char **records);
void http_tls_sent(struct http_tls_session *s);
const char *http_tls_error(const struct http_tls_session *s);

#endif
