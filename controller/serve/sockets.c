/* sockets.c - see sockets.h. */
#include "controller/serve/sockets.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "controller/config/yaml_tree.h"

#define FIRST_FD 3

/* A number of the environment; -1: it is not there, or is none. */
static long number(const char *name)
{
    const char *text = getenv(name);
    char *end;
    if (!text || *text < '0' || *text > '9')
        return -1;
    long n = strtol(text, &end, 10);
    return *end ? -1 : n;
}

static bool for_us(void)
{
    return number("LISTEN_PID") == (long)getpid() || number("WEIR_PARENT") == (long)getppid();
}

static bool listens(int fd)
{
    int on = 0, type = 0;
    socklen_t len = sizeof on, type_len = sizeof type;
    return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) && on &&
           !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) && type == SOCK_STREAM;
}

static int take(struct sockets *s, int fd, const char *name, size_t len, char *error)
{
    bool admin = len == 5 && !memcmp(name, "admin", 5);
    if (!listens(fd)) {
        ytree_error(error, "LISTEN_FDS: descriptor %d is no listening stream socket", fd);
        return WEIR_E_INPUT;
    }
    if ((admin && s->admin >= 0) || (!admin && s->n_data == HUB_MAX_LOOPS)) {
        ytree_error(error, "LISTEN_FDS: more than %u sockets, or two called admin", HUB_MAX_LOOPS);
        return WEIR_E_INPUT;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (admin)
        s->admin = fd;
    else
        s->data[s->n_data++] = fd;
    return 0;
}

static int take_all(struct sockets *s, long n, char *error)
{
    const char *name = getenv("LISTEN_FDNAMES");
    int rc = 0;
    if (n > SOCKETS_MAX) {
        ytree_error(error, "LISTEN_FDS: expected at most %u, got %ld", SOCKETS_MAX, n);
        return WEIR_E_INPUT;
    }
    for (long i = 0; !rc && i < n; i++) {
        size_t len = name ? strcspn(name, ":") : 0;
        rc = take(s, FIRST_FD + (int)i, name ? name : "", len, error);
        if (name)
            name = name[len] ? name + len + 1 : NULL;
    }
    return rc;
}

int sockets_inherit(struct sockets *s, char *error)
{
    static const char *const names[] = {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WEIR_PARENT",
                                        "WEIR_READY_FD"};
    *s = (struct sockets){.admin = -1, .ready = -1};
    int rc = 0;
    if (for_us()) {
        rc = take_all(s, number("LISTEN_FDS"), error);
        s->ready = (int)number("WEIR_READY_FD");
        if (s->ready >= 0)
            fcntl(s->ready, F_SETFD, FD_CLOEXEC);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unsetenv(names[i]);
    return rc;
}

int sockets_take(struct sockets *s, uint32_t i)
{
    if (!s->n_data)
        return -1;
    return i < s->n_data ? s->data[i] : fcntl(s->data[i % s->n_data], F_DUPFD_CLOEXEC, 0);
}

void sockets_tell_ready(struct sockets *s)
{
    if (s->ready < 0)
        return;
    (void)!write(s->ready, "", 1);
    close(s->ready);
    s->ready = -1;
}
