/* reload.c - see reload.h. */
#include "controller/serve/reload.h"

#include <stdlib.h>
#include <string.h>

#include "controller/cli.h"
#include "controller/serve/start.h"

/* A line of the log, which is where messages of all commands go. */
#define SAY(...) ((void)cli_fail("serve", __VA_ARGS__))

static void spread(struct reload *r)
{
    r->spreading = true;
    r->spread(r->user);
}

/* ---- workers */

static bool same_worker(const struct serve_worker *w, const struct config_worker *c)
{
    struct serve_worker other = {.present = false};
    serve_worker_set(&other, c);
    return !strcmp(w->name, other.name) && !strcmp(w->host, other.host) && w->port == other.port &&
           w->tls == other.tls && w->bootstrap_port == other.bootstrap_port &&
           !strcmp(w->engine_id, other.engine_id) && !strcmp(w->kv_address, other.kv_address) &&
           !strcmp(w->kv_events, other.kv_events) && !strcmp(w->kv_replay, other.kv_replay) &&
           w->core.role == other.core.role && w->core.block_size == other.core.block_size &&
           w->core.num_gpu_blocks == other.core.num_gpu_blocks &&
           w->core.max_model_len == other.core.max_model_len &&
           w->core.max_num_seqs == other.core.max_num_seqs &&
           w->core.max_num_batched_tokens == other.core.max_num_batched_tokens;
}

static bool is_wanted(const struct config_pool *c, const struct serve_worker *w)
{
    for (uint32_t i = 0; i < c->n_workers; i++) {
        if (same_worker(w, &c->workers[i]))
            return true;
    }
    return false;
}

static bool is_there(const struct serve *s, const struct serve_pool *p,
                     const struct config_worker *c)
{
    for (uint32_t i = p->first_worker; i < p->first_worker + p->n_workers; i++) {
        if (s->workers[i].present && !s->workers[i].leaving && same_worker(&s->workers[i], c))
            return true;
    }
    return false;
}

static struct serve_worker *free_place(struct serve *s, const struct serve_pool *p)
{
    for (uint32_t i = p->first_worker; i < p->first_worker + p->n_workers; i++) {
        if (!s->workers[i].present)
            return &s->workers[i];
    }
    return NULL;
}

/* Room for all that is new, before anything is changed. */
static bool has_room(const struct reload *r, const struct serve_pool *p,
                     const struct config_pool *c)
{
    uint32_t room = 0, wanted = 0;
    for (uint32_t i = p->first_worker; i < p->first_worker + p->n_workers; i++)
        room += !r->serve->workers[i].present;
    for (uint32_t i = 0; i < c->n_workers; i++)
        wanted += !is_there(r->serve, p, &c->workers[i]);
    if (wanted > room)
        SAY("reload: pool %s has room for %u more workers, not %u: raise spare_workers and restart, "
            "or reload again when the leaving ones are gone; nothing was changed",
            p->name, room, wanted);
    return wanted <= room;
}

static void change_workers(struct reload *r, const struct serve_pool *p,
                           const struct config_pool *c)
{
    struct serve *s = r->serve;
    for (uint32_t i = p->first_worker; i < p->first_worker + p->n_workers; i++) {
        struct serve_worker *w = &s->workers[i];
        if (!w->present || w->leaving || is_wanted(c, w))
            continue;
        SAY("reload: worker %s leaves when its requests are over", w->name);
        w->leaving = true;
        r->n_leaving++;
        poller_drain(r->poller, i, true);
    }
    for (uint32_t i = 0; i < c->n_workers; i++) {
        if (is_there(s, p, &c->workers[i]))
            continue;
        struct serve_worker *w = free_place(s, p);
        serve_worker_set(w, &c->workers[i]);
        SAY("reload: worker %s joins", w->name);
    }
}

/* Those that have joined are known to all threads: they may be asked, and then used. */
static void welcome(struct reload *r)
{
    struct serve *s = r->serve;
    for (uint32_t i = 0; i < s->n_workers; i++) {
        const struct serve_worker *w = &s->workers[i];
        struct hub *hub = s->pools[w->pool].hub;
        struct core_worker_state state;
        (void)hub_get_worker(hub, w->index, &state);
        if (!w->present || !state.vacant)
            continue;
        struct core_worker_config core = w->core;
        core.steps = s->pools[w->pool].profile ? &s->pools[w->pool].steps : NULL;
        hub_worker_added(proxy_hub_loop(r->proxy, w->pool), w->index, &core);
        poller_watch(r->poller, i);
    }
}

static bool is_empty(const struct reload *r, const struct serve_worker *w)
{
    struct core_worker_state state;
    (void)hub_get_worker(r->serve->pools[w->pool].hub, w->index, &state);
    return !state.inflight && (!state.up || state.draining);
}

static void look(struct http_timer *timer)
{
    struct reload *r = (struct reload *)((char *)timer - offsetof(struct reload, look));
    uint32_t gone = 0;
    for (uint32_t i = 0; !r->spreading && i < r->serve->n_workers; i++) {
        struct serve_worker *w = &r->serve->workers[i];
        if (!w->present || !w->leaving || !is_empty(r, w))
            continue;
        hub_worker(proxy_hub_loop(r->proxy, w->pool), w->index, CORE_EV_WORKER_GONE);
        poller_unwatch(r->poller, i);
        w->present = w->leaving = false;
        w->generation++;
        gone++;
        SAY("reload: worker %s has left", w->name);
    }
    r->n_leaving -= gone;
    if (r->n_leaving)
        http_timer_start(r->http, &r->look, RELOAD_LOOK_MS);
    if (gone)
        spread(r);
}

/* ---- pools */

static const struct config_pool *pool_of(const struct serve_config *c, const char *name)
{
    for (uint32_t i = 0; i < c->n_pools; i++) {
        if (!strcmp(c->pools[i].name, name))
            return &c->pools[i];
    }
    return NULL;
}

/* Names are only added: those that are there may have come from the engines. */
static void add_models(struct serve *s, struct serve_pool *p, const struct config_pool *c)
{
    uv_rwlock_wrlock(&s->models_lock);
    for (uint32_t i = 0; i < c->n_models; i++) {
        uint32_t k = 0;
        while (k < p->n_models && strcmp(p->models[k], c->models[i]) != 0)
            k++;
        if (k == p->n_models && k < SERVE_MAX_POOL_MODELS) {
            memcpy(p->models[k], c->models[i], SERVE_MODEL_BYTES);
            p->n_models++;
        }
    }
    uv_rwlock_wrunlock(&s->models_lock);
}

static void change_pool(struct reload *r, uint32_t index, const struct serve_config *to,
                        const struct config_pool *c, struct core_tenant *tenants)
{
    const char *why = NULL;
    struct serve_pool *p = &r->serve->pools[index];
    struct core_config cc = serve_core_config(to, c, tenants);
    if (hub_reconfigure(proxy_hub_loop(r->proxy, index), &cc, &why)) /* was checked before */
        SAY("reload: pool %s: %s; its limits stay", p->name, why);
    add_models(r->serve, p, c);
    change_workers(r, p, c);
}

/* ---- the whole */

static bool can_be_taken(const struct reload *r, const struct serve_config *to, char *error)
{
    const struct serve *s = r->serve;
    for (uint32_t i = 0; i < s->n_pools; i++) {
        const struct config_pool *c = pool_of(to, s->pools[i].name);
        if (c && !has_room(r, &s->pools[i], c)) {
            ytree_error(error, "no room for more workers");
            return false;
        }
    }
    if (!r->config->set.tls_cert[0] != !to->set.tls_cert[0]) {
        ytree_error(error, "tls.cert: a listener cannot begin or end TLS without a restart");
        return false;
    }
    return true;
}

static void take(struct reload *r, struct serve_config *to, struct serve_live *live,
                 struct core_tenant *tenants)
{
    struct serve *s = r->serve;
    char fixed[YTREE_ERROR_BYTES];
    config_fixed_changes(r->config, to, fixed, sizeof fixed);
    config_keep_fixed(r->config, to);
    for (uint32_t i = 0; i < s->n_pools; i++) {
        const struct config_pool *c = pool_of(to, s->pools[i].name);
        if (c)
            change_pool(r, i, to, c, tenants);
    }
    if (*fixed)
        SAY("reload: needs a restart, and stays as it was: %s", fixed);
    r->old = s->live;
    s->live = live;
    config_free(r->config);
    *r->config = *to;
    s->reloads++;
    s->reload_failed = false;
    spread(r);
    if (r->n_leaving)
        http_timer_start(r->http, &r->look, RELOAD_LOOK_MS);
}

void reload_begin(struct reload *r)
{
    struct serve_config to;
    struct serve_live *live = NULL;
    char error[YTREE_ERROR_BYTES];
    if (r->stopped) {
        SAY("reload: not while it drains");
        return;
    }
    if (r->spreading) {
        r->again = true;
        return;
    }
    struct core_tenant *tenants = calloc(CORE_MAX_TENANTS, sizeof *tenants);
    ytree_error(error, "out of memory");
    int rc = config_load(&to, r->args, error);
    if (!rc)
        rc = serve_check(&to, error);
    if (!rc && can_be_taken(r, &to, error) && !serve_upstream_tls(r->serve, &to, error))
        live = serve_live_new(&to, error);
    if (live && tenants) {
        take(r, &to, live, tenants);
        SAY("reload: done");
    } else {
        serve_live_free(live);
        config_free(&to);
        r->serve->reloads_refused++;
        r->serve->reload_failed = true;
        SAY("reload refused, all goes on as before: %s", error);
    }
    free(tenants);
}

void reload_spread_done(struct reload *r)
{
    r->spreading = false;
    serve_live_free(r->old);
    r->old = NULL;
    if (r->stopped)
        return;
    welcome(r);
    if (r->again) {
        r->again = false;
        reload_begin(r);
    }
}

void reload_init(struct reload *r)
{
    http_timer_init(&r->look, look);
}

void reload_stop(struct reload *r)
{
    r->stopped = true;
    http_timer_stop(&r->look);
}

void reload_deinit(struct reload *r)
{
    http_timer_deinit(r->http, &r->look);
    serve_live_free(r->old);
    r->old = NULL;
}
