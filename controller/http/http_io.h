/* http_io.h - one TCP connection, plain or TLS, for http_server and http_client: reads into where its owner wants the
 * bytes, writes at once what the socket takes and keeps the rest. Not for use outside of this room.
 *
 * A write is one send() or sendmsg() in the usual case (cheaper than write() and writev(), which go through the file layer);
 * only pieces that are small together are copied into one. What the socket does not take is copied into blocks (or
 * borrowed, for bodies that stay) and sent as it empties. A callback may close the connection: nothing of it is
 * touched after a callback once http_io_close was called.
 */
#ifndef WEIR_HTTP_IO_H
#define WEIR_HTTP_IO_H

#include "controller/http/http_loop.h"
#include "controller/http/http_tls.h"

#define HTTP_IO_MAX_SLICES 80u /* of one write: a head, json_edit's slices, chunk framing */
/* Up to here slices are copied together: a request of 4 KB with its new head goes out in 8.5 us by send(), in 8.7 by sendmsg() */
#define HTTP_IO_JOIN_BYTES 8192u

struct http_io;

struct http_io_ops {
    /* Where the next bytes shall go: at least one byte of room. */
    void (*room)(struct http_io *io, char **at, size_t *len);
    /* n bytes have come there; 0: none came, what room() reserved may be given back. */
    void (*data)(struct http_io *io, char *at, size_t n);
    /* The peer has closed (UV_EOF), or the connection broke (another uv error, also found while writing; with TLS
     * UV_EPROTO: http_io_tls_error has the reason). Reading is over. */
    void (*ended)(struct http_io *io, int uv_error);
    /* Something of the queue went out; http_io_queued() has what is left. */
    void (*progress)(struct http_io *io);
    /* After http_io_close: the memory is the owner's again. */
    void (*closed)(struct http_io *io);
    /* TLS: the handshake is complete. May be NULL. */
    void (*ready)(struct http_io *io);
};

struct http_io {
    uv_tcp_t tcp;
    struct http_loop *loop;
    const struct http_io_ops *ops;
    struct http_tls_session *tls;
    struct http_block *queue, *queue_last; /* copies of what could not be sent yet */
    size_t queued;                         /* bytes in the blocks and borrowed */
    int fd;                                /* the socket, once it reads and writes */
    uv_write_t write;
    size_t writing;                   /* bytes of the running uv_write; 0: none */
    struct http_block *writing_block; /* what it writes from; NULL: borrowed bytes */
    struct http_task resume; /* TLS: delivers what was decrypted while reading was stopped */
    bool reading, closing, ready_told, end_after_queue;
};

/* 0 or a uv error. The tcp handle is initialised, nothing is open yet. */
int http_io_init(struct http_io *io, struct http_loop *loop, const struct http_io_ops *ops);
void http_io_set_tls(struct http_io *io, struct http_tls_session *tls); /* takes it over */

/* The connection is there: reads from now on, begins the TLS handshake. 0 or a uv error. */
int http_io_start(struct http_io *io);
void http_io_read_stop(struct http_io *io);
void http_io_read_start(struct http_io *io);

/* Sends n slices after what was sent before. borrow: bytes stay valid until they are sent or the connection is closed
 * (TLS copies anyway). 0, or a uv error: the connection is broken and `ended` will not be called for it. */
int http_io_write(struct http_io *io, const struct http_slice *slices, size_t n, bool borrow);
static inline size_t http_io_queued(const struct http_io *io)
{
    return io->queued;
}
/* Sends FIN (and TLS's goodbye) once the queue is empty. */
void http_io_end(struct http_io *io);

/* Closes at once; what is queued is lost. */
void http_io_close(struct http_io *io);
const char *http_io_tls_error(const struct http_io *io);

#endif
