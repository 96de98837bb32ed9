/* http_io.c - see http_io.h. */
#include "controller/http/http_io.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

static struct http_io *of(void *handle)
{
    return ((uv_handle_t *)handle)->data;
}

static void on_resume(struct http_task *task);

int http_io_init(struct http_io *io, struct http_loop *loop, const struct http_io_ops *ops)
{
    memset(io, 0, sizeof *io);
    io->loop = loop;
    io->ops = ops;
    http_task_init(&io->resume, on_resume);
    int e = uv_tcp_init(http_loop_uv(loop), &io->tcp);
    io->tcp.data = io;
    return e;
}

void http_io_set_tls(struct http_io *io, struct http_tls_session *tls)
{
    io->tls = tls;
}

/* --- reading --------------------------------------------------------------------------------------------- */

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct http_io *io = of(handle);
    (void)suggested;
    http_lap_begin(io->loop);
    if (io->tls) {
        *buf = uv_buf_init(http_loop_records(io->loop), HTTP_READ_BYTES);
        return;
    }
    io->ops->room(io, &buf->base, &buf->len);
}

static int flush_records(struct http_io *io);

static void told_end(struct http_io *io, int uv_error)
{
    http_io_read_stop(io);
    io->ops->ended(io, uv_error);
}

/* Gives the owner what the records held. */
static void deliver_plain(struct http_io *io)
{
    while (!io->closing && io->reading) {
        char *at;
        size_t len;
        io->ops->room(io, &at, &len);
        long n = http_tls_read(io->tls, at, len);
        if (n > 0) {
            io->ops->data(io, at, (size_t)n);
            continue;
        }
        io->ops->data(io, at, 0); /* gives back what room() reserved */
        if (n == HTTP_TLS_EOF)
            told_end(io, UV_EOF);
        else if (n == HTTP_TLS_FAIL)
            told_end(io, UV_EPROTO);
        return;
    }
}

/* Goes on with the handshake; true once it is complete. */
static bool shake_hands(struct http_io *io)
{
    if (io->ready_told)
        return true;
    int e = http_tls_handshake(io->tls);
    if (flush_records(io) && e != HTTP_TLS_FAIL) {
        told_end(io, UV_EPIPE);
        return false;
    }
    if (e == HTTP_TLS_MORE)
        return false;
    if (e != 1) {
        told_end(io, e == HTTP_TLS_EOF ? UV_EOF : UV_EPROTO);
        return false;
    }
    io->ready_told = true;
    if (io->ops->ready)
        io->ops->ready(io);
    return !io->closing;
}

static void on_records(struct http_io *io, const char *records, size_t n)
{
    http_tls_feed(io->tls, records, n);
    if (shake_hands(io)) {
        deliver_plain(io);
        if (!io->closing && flush_records(io)) /* answers of TLS itself: key updates */
            told_end(io, UV_EPIPE);
    }
    http_tls_keep(io->tls); /* it lives until on_closed, whatever was closed meanwhile */
}

static void on_resume(struct http_task *task)
{
    struct http_io *io = (struct http_io *)((char *)task - offsetof(struct http_io, resume));
    deliver_plain(io);
    http_tls_keep(io->tls);
}

static void took_in(struct http_io *io, ssize_t n, const uv_buf_t *buf)
{
    if (n > 0) {
        if (io->tls)
            on_records(io, buf->base, (size_t)n);
        else
            io->ops->data(io, buf->base, (size_t)n);
        return;
    }
    if (!io->tls && buf->base)
        io->ops->data(io, buf->base, 0);
    if (n == UV_EOF && io->tls) /* an end that TLS did not announce may be an attacker's */
        n = UV_ECONNRESET;
    if (n < 0)
        told_end(io, (int)n);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct http_io *io = of(stream); /* it lives until on_closed, whatever is closed meanwhile */
    took_in(io, n, buf);
    http_lap_end(io->loop);
}

int http_io_start(struct http_io *io)
{
    int e = uv_fileno((uv_handle_t *)&io->tcp, &io->fd);
    if (!e)
        e = uv_read_start((uv_stream_t *)&io->tcp, on_room, on_read);
    io->reading = !e;
    if (!e && io->tls && !shake_hands(io))
        return 0; /* clients speak first; a failure was told */
    return e;
}

void http_io_read_stop(struct http_io *io)
{
    if (io->reading)
        uv_read_stop((uv_stream_t *)&io->tcp);
    io->reading = false;
}

void http_io_read_start(struct http_io *io)
{
    if (io->reading || io->closing)
        return;
    io->reading = !uv_read_start((uv_stream_t *)&io->tcp, on_room, on_read);
    if (io->tls && io->ready_told)
        http_task_post(io->loop,
                       &io->resume); /* what is decrypted already makes no socket readable */
}

/* --- writing --------------------------------------------------------------------------------------------- */

static void write_queue(struct http_io *io);

static void end_now(struct http_io *io)
{
    io->end_after_queue = false;
    shutdown(io->fd, SHUT_WR);
}

static void drop_queue(struct http_io *io)
{
    while (io->queue) {
        struct http_block *b = io->queue;
        io->queue = b->next;
        http_block_put(io->loop, b);
    }
    io->queue_last = NULL;
}

static void on_written(uv_write_t *write, int status)
{
    struct http_io *io = write->data;
    http_lap_begin(io->loop);
    io->queued -= io->writing;
    io->writing = 0;
    if (io->writing_block)
        http_block_put(io->loop, io->writing_block);
    io->writing_block = NULL;
    if (io->closing)
        return;
    if (status < 0) {
        told_end(io, status);
        return;
    }
    write_queue(io);
    if (io->end_after_queue && !io->queued)
        end_now(io);
    io->ops->progress(io);
}

/* Starts writing the first block of the queue, if nothing is being written. */
static void write_queue(struct http_io *io)
{
    struct http_block *b = io->queue;
    if (io->writing || !b)
        return;
    io->queue = b->next;
    if (!io->queue)
        io->queue_last = NULL;
    uv_buf_t buf = uv_buf_init(b->bytes + b->from, b->to - b->from);
    io->writing = buf.len;
    io->writing_block = b;
    io->write.data = io;
    uv_write(&io->write, (uv_stream_t *)&io->tcp, &buf, 1, on_written);
}

static void enqueue_copy(struct http_io *io, const char *at, size_t len)
{
    io->queued += len;
    while (len) {
        struct http_block *b = io->queue_last;
        if (!b || b->to == HTTP_BLOCK_BYTES) {
            b = http_block_get(io->loop);
            if (io->queue_last)
                io->queue_last->next = b;
            else
                io->queue = b;
            io->queue_last = b;
        }
        size_t n = HTTP_BLOCK_BYTES - b->to;
        if (n > len)
            n = len;
        memcpy(b->bytes + b->to, at, n);
        b->to += (uint32_t)n;
        at += n;
        len -= n;
    }
}

/* Skips `sent` bytes of the slices; returns how many slices are wholly sent. */
static unsigned skip_sent(uv_buf_t *bufs, unsigned n, size_t sent)
{
    unsigned i = 0;
    while (i < n && sent >= bufs[i].len)
        sent -= bufs[i++].len;
    if (i < n) {
        bufs[i].base += sent;
        bufs[i].len -= sent;
    }
    return i;
}

static int write_borrowed(struct http_io *io, const uv_buf_t *bufs, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        io->writing += bufs[i].len;
    io->queued += io->writing;
    io->write.data = io;
    return uv_write(&io->write, (uv_stream_t *)&io->tcp, bufs, n, on_written);
}

/* Sends what the socket takes at once: bytes, or a uv error. libuv has nothing of this connection waiting. */
static ssize_t send_now(const struct http_io *io, const uv_buf_t *bufs, unsigned n)
{
    struct iovec pieces[HTTP_IO_MAX_SLICES];
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = n};
    ssize_t sent;
    if (n > 1)
        for (unsigned i = 0; i < n; i++)
            pieces[i] = (struct iovec){bufs[i].base, bufs[i].len};
    do
        sent = n == 1 ? send(io->fd, bufs->base, bufs->len, MSG_NOSIGNAL)
                      : sendmsg(io->fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    return sent < 0 ? uv_translate_sys_error(errno) : sent;
}

/* Sends what can be sent now and queues the rest. */
static int write_plain(struct http_io *io, uv_buf_t *bufs, unsigned n, bool borrow)
{
    unsigned done = 0;
    if (!io->queued) {
        ssize_t sent = send_now(io, bufs, n);
        if (sent < 0)
            return (int)sent;
        done = skip_sent(bufs, n, (size_t)sent);
        if (done == n)
            return 0;
        if (borrow)
            return write_borrowed(io, bufs + done, n - done);
    }
    for (; done < n; done++)
        enqueue_copy(io, bufs[done].base, bufs[done].len);
    write_queue(io);
    return 0;
}

/* Puts the records that TLS has made on the wire. */
static int flush_records(struct http_io *io)
{
    const char *records;
    size_t len = http_tls_outgoing(io->tls, &records);
    if (!len)
        return 0;
    uv_buf_t buf = {.base = (char *)(uintptr_t)records, .len = len};
    int e = write_plain(io, &buf, 1, false);
    http_tls_sent(io->tls);
    return e;
}

/* Slices that are small together become one: copying them costs less than handing the system a list. */
static size_t join(char joined[HTTP_IO_JOIN_BYTES], const struct http_slice *slices, size_t n)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        if (slices[i].len > HTTP_IO_JOIN_BYTES - len)
            return 0;
        if (slices[i].len)
            memcpy(joined + len, slices[i].s, slices[i].len);
        len += slices[i].len;
    }
    return len;
}

int http_io_write(struct http_io *io, const struct http_slice *slices, size_t n, bool borrow)
{
    uv_buf_t bufs[HTTP_IO_MAX_SLICES];
    char joined[HTTP_IO_JOIN_BYTES];
    size_t len;
    unsigned n_bufs = 0;
    if (io->tls) {
        for (size_t i = 0; i < n; i++)
            if (slices[i].len && http_tls_write(io->tls, slices[i].s, slices[i].len))
                return UV_EPROTO;
        return flush_records(io);
    }
    if (n > 1 && (len = join(joined, slices, n))) {
        bufs[0] = uv_buf_init(joined, (unsigned)len);
        return write_plain(io, bufs, 1, false);
    }
    for (size_t i = 0; i < n; i++) {
        if (!slices[i].len)
            continue;
        if (n_bufs == HTTP_IO_MAX_SLICES) {
            int e = write_plain(io, bufs, n_bufs, false);
            if (e)
                return e;
            n_bufs = 0;
        }
        bufs[n_bufs++] = (uv_buf_t){.base = (char *)(uintptr_t)slices[i].s, .len = slices[i].len};
    }
    return n_bufs ? write_plain(io, bufs, n_bufs, borrow) : 0;
}

void http_io_end(struct http_io *io)
{
    if (io->tls && io->ready_told) {
        http_tls_goodbye(io->tls);
        (void)flush_records(io); /* a broken connection needs no goodbye */
    }
    if (io->queued)
        io->end_after_queue = true;
    else
        end_now(io);
}

/* --- the end --------------------------------------------------------------------------------------------- */

static void on_closed(uv_handle_t *handle)
{
    struct http_io *io = of(handle);
    drop_queue(io);
    http_tls_session_free(io->tls);
    io->tls = NULL;
    io->ops->closed(io);
}

void http_io_close(struct http_io *io)
{
    if (io->closing)
        return;
    io->closing = true;
    io->reading = false;
    http_task_deinit(io->loop, &io->resume);
    uv_close((uv_handle_t *)&io->tcp, on_closed);
}

const char *http_io_tls_error(const struct http_io *io)
{
    return io->tls ? http_tls_error(io->tls) : "";
}
