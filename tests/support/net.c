/* net.c - see net.h. */
#include "tests/support/net.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* The loop may have nothing to do but sockets that are not its own: it wakes up for those once in a while. */
static void on_wake(uv_timer_t *timer)
{
    (void)timer;
}

static void turn(uv_loop_t *uv)
{
    uv_timer_t wake;
    uv_timer_init(uv, &wake);
    uv_timer_start(&wake, on_wake, 1, 1);
    uv_run(uv, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&wake, NULL);
    uv_run(uv, UV_RUN_NOWAIT);
}

void net_run_until(uv_loop_t *uv, bool (*done)(void *arg), void *arg, const char *what)
{
    uint64_t end = uv_hrtime() + NET_PATIENCE_MS * UINT64_C(1000000);
    while (!done(arg)) {
        if (uv_hrtime() > end)
            fail_msg("waited in vain for: %s", what);
        turn(uv);
    }
}

void net_run_for(uv_loop_t *uv, uint64_t ms)
{
    uint64_t end = uv_hrtime() + ms * 1000000;
    while (uv_hrtime() < end)
        turn(uv);
}

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void peer_init(struct net_peer *p, uv_loop_t *uv, int fd)
{
    int one = 1;
    *p = (struct net_peer){.uv = uv, .fd = fd};
    assert_true(fd >= 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    p->got = calloc(1, 1);
}

static void connect_with(struct net_peer *p, uv_loop_t *uv, uint16_t port, int receive_buffer)
{
    struct sockaddr_in a = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    if (connect(fd, (struct sockaddr *)&a, sizeof a))
        fail_msg("connect to port %u: %s", port, strerror(errno));
    peer_init(p, uv, fd);
}

void net_connect(struct net_peer *p, uv_loop_t *uv, uint16_t port)
{
    connect_with(p, uv, port, 0);
}

void net_connect_narrow(struct net_peer *p, uv_loop_t *uv, uint16_t port)
{
    connect_with(p, uv, port, 65536);
}

void net_send_n(struct net_peer *p, const char *bytes, size_t len)
{
    uint64_t end = uv_hrtime() + NET_PATIENCE_MS * UINT64_C(1000000);
    while (len) {
        ssize_t n = send(p->fd, bytes, len, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            return; /* the other side has closed: what it said is of interest, not this */
        if (n < 0) {
            if (uv_hrtime() > end)
                fail_msg("could not send all: the other side does not read");
            turn(p->uv);
            continue;
        }
        bytes += n;
        len -= (size_t)n;
    }
}

void net_send(struct net_peer *p, const char *text)
{
    net_send_n(p, text, strlen(text));
}

void net_shutdown(struct net_peer *p)
{
    shutdown(p->fd, SHUT_WR);
}

void net_close(struct net_peer *p)
{
    if (p->fd >= 0)
        close(p->fd);
    free(p->got);
    *p = (struct net_peer){.fd = -1};
}

void net_reset(struct net_peer *p)
{
    struct linger l = {1, 0};
    setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    net_close(p);
}

void net_forget(struct net_peer *p)
{
    p->len = 0;
    p->got[0] = 0;
}

void net_read(struct net_peer *p)
{
    char buf[65536];
    while (!p->ended && !p->error) {
        ssize_t n = recv(p->fd, buf, sizeof buf, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0)
            p->error = errno;
        if (n == 0)
            p->ended = true;
        if (n <= 0)
            return;
        if (p->len + (size_t)n >= p->cap) {
            p->cap = 2 * (p->len + (size_t)n + 1);
            p->got = realloc(p->got, p->cap);
        }
        memcpy(p->got + p->len, buf, (size_t)n);
        p->len += (size_t)n;
        p->got[p->len] = 0;
    }
}

struct wanted {
    struct net_peer *p;
    const char *text;
    size_t bytes;
};

static bool has_come(void *arg)
{
    struct wanted *w = arg;
    net_read(w->p);
    if (w->text)
        return memmem(w->p->got, w->p->len, w->text, strlen(w->text)) || w->p->ended || w->p->error;
    if (w->bytes)
        return w->p->len >= w->bytes || w->p->ended || w->p->error;
    return w->p->ended || w->p->error;
}

void net_expect(struct net_peer *p, const char *text)
{
    struct wanted w = {p, text, 0};
    net_run_until(p->uv, has_come, &w, text);
    if (!memmem(p->got, p->len, text, strlen(text)))
        fail_msg("the other side %s without saying \"%s\"; it said \"%s\"",
                 p->error ? strerror(p->error) : "closed", text, p->got);
}

void net_expect_bytes(struct net_peer *p, size_t n)
{
    struct wanted w = {p, NULL, n};
    net_run_until(p->uv, has_come, &w, "bytes");
    if (p->len < n)
        fail_msg("%zu bytes came, not %zu", p->len, n);
}

void net_expect_end(struct net_peer *p)
{
    struct wanted w = {p, NULL, 0};
    net_run_until(p->uv, has_come, &w, "the end");
}

int net_listen(uint16_t *port)
{
    struct sockaddr_in a = loopback(0);
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 64), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    *port = ntohs(a.sin_port);
    return fd;
}

struct accepting {
    int listener, fd;
};

static bool has_connected(void *arg)
{
    struct accepting *a = arg;
    a->fd = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC);
    return a->fd >= 0;
}

void net_accept(struct net_peer *p, uv_loop_t *uv, int listener)
{
    struct accepting a = {listener, -1};
    net_run_until(uv, has_connected, &a, "a connection");
    peer_init(p, uv, a.fd);
}

uint16_t net_closed_port(void)
{
    uint16_t port;
    int fd = net_listen(&port);
    close(fd);
    return port;
}

unsigned net_open_fds(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}
