/* sockets.h - listening sockets that somebody opened before: systemd's socket activation, or the process that this one
 * follows (successor.h). The protocol is that of sd_listen_fds(3): LISTEN_FDS descriptors from 3 on, LISTEN_FDNAMES their
 * names, LISTEN_PID who they are for. A predecessor cannot know that number before it starts us: it sets WEIR_PARENT
 * instead, to its own.
 *
 * The one called "admin" is the admin listener's; all others are the data listener's.
 */
#ifndef WEIR_SOCKETS_H
#define WEIR_SOCKETS_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/serve/hub.h"

#define SOCKETS_MAX (HUB_MAX_LOOPS + 1)

struct sockets {
    int data[HUB_MAX_LOOPS];
    uint32_t n_data;
    int admin; /* -1: none was given */
    int ready; /* to be told, with one byte, when we are ready; -1: nobody waits */
};

/* Takes what the environment says, and takes it out of there. 0, or WEIR_E_INPUT and one line in error
 * (YTREE_ERROR_BYTES). */
WEIR_NODISCARD int sockets_inherit(struct sockets *s, char *error);

/* The data socket of thread i: its own, or, where there are fewer, a duplicate of one; -1: none was given. */
int sockets_take(struct sockets *s, uint32_t i);

/* Tells the predecessor, once. */
void sockets_tell_ready(struct sockets *s);

#endif
