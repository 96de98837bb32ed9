/* net.h - sockets without manners, for tests of servers and clients that share the test's uv loop: a raw connection that
 * sends what it is told, whole or cut, and a listener whose connections follow a script. Everything is on loopback with
 * ports that the system chooses; nothing waits longer than NET_PATIENCE_MS.
 */
#ifndef WEIR_TESTS_NET_H
#define WEIR_TESTS_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#define NET_PATIENCE_MS 10000u

/* Runs the loop until done(arg); fails the test when it takes longer than NET_PATIENCE_MS. */
void net_run_until(uv_loop_t *uv, bool (*done)(void *arg), void *arg, const char *what);
/* Runs the loop for so long. */
void net_run_for(uv_loop_t *uv, uint64_t ms);

/* A connection. What comes is read whenever the loop runs in one of these functions. */
struct net_peer {
    uv_loop_t *uv;
    int fd;
    char *got; /* all that came, with a final NUL */
    size_t len, cap;
    bool ended; /* FIN */
    int error;  /* errno of a reset */
};

void net_connect(struct net_peer *p, uv_loop_t *uv, uint16_t port);
/* A small receive buffer: for a client that does not read. */
void net_connect_narrow(struct net_peer *p, uv_loop_t *uv, uint16_t port);
void net_send(struct net_peer *p, const char *text);
void net_send_n(struct net_peer *p, const char *bytes,
                size_t len);           /* runs the loop while the socket is full */
void net_shutdown(struct net_peer *p); /* FIN, goes on reading */
void net_reset(struct net_peer *p);    /* RST */
void net_close(struct net_peer *p);
void net_forget(struct net_peer *p); /* what came so far */

/* Until `text` has come; until n bytes have; until the other side has closed. */
void net_expect(struct net_peer *p, const char *text);
void net_expect_bytes(struct net_peer *p, size_t n);
void net_expect_end(struct net_peer *p);
void net_read(struct net_peer *p); /* what is there now */

/* A listener: net_accept waits for the next connection. */
int net_listen(uint16_t *port);
void net_accept(struct net_peer *p, uv_loop_t *uv, int listener);
/* A port of loopback that nobody listens on. */
uint16_t net_closed_port(void);

/* Open descriptors of this process. */
unsigned net_open_fds(void);

#endif
