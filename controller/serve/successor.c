/* successor.c - see successor.h. */
#include "controller/serve/successor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "controller/config/yaml_tree.h"

#define OWN_VARIABLES 5

extern char **environ;

void successor_init(struct successor *s)
{
    ssize_t n = readlink("/proc/self/exe", s->path, sizeof s->path - 1);
    s->path[n > 0 ? n : 0] = '\0';
    s->running = s->ready = s->has_pipe = false;
}

static bool is_ours(const char *variable)
{
    return !strncmp(variable, "LISTEN_", 7) || !strncmp(variable, "WEIR_PARENT=", 12) ||
           !strncmp(variable, "WEIR_READY_FD=", 14);
}

/* What the successor reads in sockets_inherit, behind the rest of the environment. */
struct texts {
    char fds[32], parent[40], ready[32], names[16 + 6 * SOCKETS_MAX];
};

static char **make_environment(struct texts *t, uint32_t n_data, bool admin)
{
    size_t n = 0, len;
    uint32_t n_fds = n_data + admin;
    while (environ[n])
        n++;
    char **to = calloc(n + OWN_VARIABLES, sizeof *to);
    if (!to)
        return NULL;
    n = 0;
    for (size_t i = 0; environ[i]; i++) {
        if (!is_ours(environ[i]))
            to[n++] = environ[i];
    }
    snprintf(t->fds, sizeof t->fds, "LISTEN_FDS=%u", n_fds);
    snprintf(t->parent, sizeof t->parent, "WEIR_PARENT=%ld", (long)getpid());
    snprintf(t->ready, sizeof t->ready, "WEIR_READY_FD=%u", 3 + n_fds);
    len = (size_t)snprintf(t->names, sizeof t->names, "LISTEN_FDNAMES=");
    for (uint32_t i = 0; i < n_fds; i++)
        len += (size_t)snprintf(t->names + len, sizeof t->names - len, "%s%s", i ? ":" : "",
                                i < n_data ? "data" : "admin");
    to[n++] = t->fds;
    to[n++] = t->parent;
    to[n++] = t->ready;
    to[n++] = t->names;
    return to;
}

static void close_pipe(struct successor *s)
{
    if (s->has_pipe)
        uv_close((uv_handle_t *)&s->pipe, NULL);
    s->has_pipe = false;
}

static void on_end(uv_process_t *process, int64_t status, int signal)
{
    struct successor *s = process->data;
    bool ready = s->ready;
    uv_close((uv_handle_t *)process, NULL);
    close_pipe(s);
    s->running = false;
    fprintf(stderr, "weir serve: the new process ended: status %d, signal %d\n", (int)status,
            signal);
    if (!ready)
        s->done(s->user, false);
}

static void on_room(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
    struct successor *s = handle->data;
    (void)size;
    *buf = uv_buf_init(&s->byte, 1);
}

static void on_byte(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct successor *s = stream->data;
    (void)buf;
    if (!n)
        return;
    close_pipe(s);
    if (n < 0) /* on_end follows */
        return;
    s->ready = true;
    s->done(s->user, true);
}

int successor_start(struct successor *s, uv_loop_t *uv, const int *data, uint32_t n_data, int admin,
                    char *error)
{
    uv_stdio_container_t io[3 + SOCKETS_MAX + 1];
    struct texts texts;
    int n = 0, rc;
    if (s->running)
        return WEIR_E_STATE;
    for (; n < 3; n++)
        io[n] = (uv_stdio_container_t){.flags = UV_INHERIT_FD, .data.fd = n};
    for (uint32_t i = 0; i < n_data; i++)
        io[n++] = (uv_stdio_container_t){.flags = UV_INHERIT_FD, .data.fd = data[i]};
    if (admin >= 0)
        io[n++] = (uv_stdio_container_t){.flags = UV_INHERIT_FD, .data.fd = admin};
    char **env = make_environment(&texts, n_data, admin >= 0);
    if (!env || uv_pipe_init(uv, &s->pipe, 0)) {
        free(env);
        ytree_error(error, "out of memory");
        return WEIR_E_IO;
    }
    s->pipe.data = s->process.data = s;
    s->has_pipe = true;
    io[n++] = (uv_stdio_container_t){.flags = UV_CREATE_PIPE | UV_READABLE_PIPE | UV_WRITABLE_PIPE,
                                     .data.stream = (uv_stream_t *)&s->pipe};
    uv_process_options_t o = {.exit_cb = on_end,
                              .file = s->path,
                              .args = s->argv,
                              .env = env,
                              .stdio_count = n,
                              .stdio = io};
    rc = uv_spawn(uv, &s->process, &o);
    free(env);
    if (rc) {
        uv_close((uv_handle_t *)&s->process, NULL);
        close_pipe(s);
        ytree_error(error, "%s cannot be started: %s", s->path, uv_strerror(rc));
        return WEIR_E_IO;
    }
    s->running = true;
    s->ready = false;
    uv_unref((uv_handle_t *)&s->process);
    return uv_read_start((uv_stream_t *)&s->pipe, on_room, on_byte) ? WEIR_E_IO : 0;
}

void successor_close(struct successor *s)
{
    close_pipe(s);
    if (s->running)
        uv_close((uv_handle_t *)&s->process, NULL);
    s->running = false;
}
