/* reload.h - SIGHUP: the config is read and checked again; what can change while requests are in flight does.
 *
 *   load, check ──fault──► log, metric; nothing has changed
 *        │
 *        ├─► cores: limits, tenants' weights               at once
 *        ├─► workers that are new: a place, then polled    they get requests once they answer
 *        ├─► workers that are not there any more: drained  they leave when they are empty
 *        └─► every thread: settings, certificates, places  between two of its events (`spread`)
 *
 * A worker is the same one if its name and all that the config says of it are. What needs a restart is named in the log,
 * and stays. One reload at a time: another SIGHUP meanwhile is a reload after it. All calls on the first thread.
 */
#ifndef WEIR_RELOAD_H
#define WEIR_RELOAD_H

#include "controller/serve/config.h"
#include "controller/serve/poller.h"

#define RELOAD_LOOK_MS 50u /* how often leaving workers are looked at */

struct reload {
    struct serve *serve;
    struct serve_config *config; /* what runs: replaced */
    const struct config_args *args;
    struct proxy *proxy; /* of the first thread */
    struct poller *poller;
    struct http_loop *http;
    /* Has proxy_apply called on every thread with serve->live, then reload_spread_done. */
    void (*spread)(void *user);
    void *user;
    /* its own: */
    struct serve_live *old; /* to be freed when all threads have the new one */
    bool spreading, again, stopped;
    uint32_t n_leaving;
    struct http_timer look;
};

/* The fields above it are set. */
void reload_init(struct reload *r);
void reload_deinit(struct reload *r);
/* The process drains: no more reloads, and nothing more is asked of the threads. */
void reload_stop(struct reload *r);
void reload_begin(struct reload *r);
void reload_spread_done(struct reload *r);

#endif
