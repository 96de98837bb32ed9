/* successor.h - SIGUSR2: a new process of the same program (the file on disk, so that it may be a new version) takes the
 * listening sockets over. It has the same command line and reads the config anew.
 *
 *   this one ── starts it, with the sockets ──► it listens, too; finds its workers; says that it is ready
 *            ◄── ready ──   stops accepting, ends what is in its path, and goes
 *            ◄── it ended before that ──   goes on as if nothing had been
 *
 * At no time is nobody listening. Calls on the first thread.
 */
#ifndef WEIR_SUCCESSOR_H
#define WEIR_SUCCESSOR_H

#include "controller/serve/sockets.h"

#define SUCCESSOR_PATH_BYTES 4096u

struct successor {
    char path[SUCCESSOR_PATH_BYTES]; /* of the program */
    char **argv;                     /* of main */
    /* It is ready, or (false) has ended without having been. */
    void (*done)(void *user, bool ready);
    void *user;
    /* its own: */
    uv_process_t process;
    uv_pipe_t pipe;
    bool running, ready, has_pipe;
    char byte;
};

/* Remembers the program's path: at the start of the process, before the file may be replaced. The fields above are the
 * caller's to set. */
void successor_init(struct successor *s);
/* Starts it with these sockets; admin: -1 none. 0; WEIR_E_STATE: one is starting already; WEIR_E_IO and one line in
 * error. */
WEIR_NODISCARD int successor_start(struct successor *s, uv_loop_t *uv, const int *data,
                                   uint32_t n_data, int admin, char *error);
/* Its handles are closed as the loop runs; it goes on. */
void successor_close(struct successor *s);

#endif
