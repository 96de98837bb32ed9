/* notify.h - tells the service manager how it goes: the datagrams of sd_notify(3), over the socket that NOTIFY_SOCKET
 * names. Without one, nothing happens; a manager that does not listen is no error of ours.
 */
#ifndef WEIR_NOTIFY_H
#define WEIR_NOTIFY_H

void notify_ready(void); /* READY=1, and which process this is now: after a restart, another one */
void notify_reloading(void); /* RELOADING=1; notify_ready ends it */
void notify_stopping(void);

#endif
