/* hub.c - see hub.h. */
#include "controller/serve/hub.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/mem.h"

#define NONE UINT32_MAX

/* Requests by the core's handle. */
struct entry {
    struct hub_request *request; /* NULL: free */
    uint32_t generation;         /* changes when the request is over */
    uint32_t next_free;
};

struct mail {
    struct core_command cmd;
    uint32_t generation;
    bool is_told;
    struct core_told told;
};

struct hub_loop {
    struct hub *hub;
    uv_async_t wake;
    uv_timer_t timer; /* first loop only */
    bool has_timer;
    int closing; /* handles that are still open */
    hub_command_fn command;
    void *user;
    /* mailbox, under the hub's lock; `mine` and `taken` are the loop's own */
    struct mail *box;
    uint32_t n_box, box_cap;
    struct mail *taken;
    uint32_t taken_cap;
    struct mail *mine; /* commands of the event being handled, for this loop */
    uint32_t n_mine, mine_cap;
    bool delivering;
};

struct hub {
    uv_mutex_t lock;
    struct core *core;
    uint64_t start_ns;
    uint32_t needs;
    struct entry *entries;
    uint32_t n_entries, entries_cap, max_entries, free_entry;
    struct hub_loop *loops[HUB_MAX_LOOPS];
    uint32_t n_loops;
    uv_async_t *moved; /* hub_watch */
    bool moved_sent;
    struct hub_stats stats;
};

/* ---- life */

struct hub *hub_new(const struct core_config *config, const char **why)
{
    struct hub *h = calloc(1, sizeof *h);
    if (!h) {
        *why = "out of memory";
        return NULL;
    }
    h->core = core_new(config, why);
    if (!h->core || uv_mutex_init(&h->lock)) {
        core_free(h->core);
        free(h);
        return NULL;
    }
    h->start_ns = uv_hrtime();
    h->needs = core_needs(h->core);
    h->max_entries = config->max_requests;
    h->free_entry = NONE;
    return h;
}

void hub_free(struct hub *h)
{
    if (!h)
        return;
    core_free(h->core);
    uv_mutex_destroy(&h->lock);
    free(h->entries);
    free(h);
}

int64_t hub_now_ps(const struct hub *h)
{
    return (int64_t)(uv_hrtime() - h->start_ns) * PS_PER_NS;
}

uint32_t hub_needs(const struct hub *h)
{
    return h->needs;
}

/* ---- commands out */

/* Under the lock: every command to the loop of its request. A request that CORE_CMD_REJECT ends keeps its entry until
 * the command is delivered, for the generation still to match. */
static void sort_commands(struct hub *h, struct hub_loop *from)
{
    struct core_command cmd;
    while (core_next(h->core, &cmd)) {
        const struct entry *e = &h->entries[cmd.request];
        if (!e->request) /* cancelled by its own loop: nothing is left to do */
            continue;
        struct hub_loop *l = e->request->loop;
        const struct core_told *told = core_told(h->core, &cmd);
        struct mail m = {.cmd = cmd, .generation = e->generation, .is_told = told != NULL};
        if (told)
            m.told = *told;
        if (l == from) {
            MEM_GROW(l->mine, l->mine_cap, l->n_mine + 1);
            l->mine[l->n_mine++] = m;
        } else {
            MEM_GROW(l->box, l->box_cap, l->n_box + 1);
            l->box[l->n_box++] = m;
            h->stats.mailed++;
            if (l->n_box == 1)
                uv_async_send(&l->wake);
        }
    }
}

static void entry_free(struct hub *h, uint32_t handle)
{
    struct entry *e = &h->entries[handle];
    e->request = NULL;
    e->generation++;
    e->next_free = h->free_entry;
    h->free_entry = handle;
}

/* The request of a command, or NULL if it is over. Ends it where the command does. */
static struct hub_request *open_mail(struct hub *h, const struct mail *m)
{
    uv_mutex_lock(&h->lock);
    struct entry *e = &h->entries[m->cmd.request];
    struct hub_request *r = e->generation == m->generation ? e->request : NULL;
    if (!r)
        h->stats.stale++;
    else if (m->cmd.kind == CORE_CMD_REJECT)
        entry_free(h, m->cmd.request);
    uv_mutex_unlock(&h->lock);
    return r;
}

static void deliver(struct hub_loop *l, const struct mail *m)
{
    struct hub_request *r = open_mail(l->hub, m);
    if (r)
        l->command(l->user, r, &m->cmd, m->is_told ? &m->told : NULL);
}

/* Commands may lead to events that lead to commands: those of nested events join the queue that is being worked off, in
 * order, instead of nesting deeper. */
static void deliver_mine(struct hub_loop *l)
{
    if (l->delivering)
        return;
    l->delivering = true;
    for (uint32_t i = 0; i < l->n_mine; i++) {
        struct mail m = l->mine[i]; /* the array may move */
        deliver(l, &m);
    }
    l->n_mine = 0;
    l->delivering = false;
}

static void on_wake(uv_async_t *handle)
{
    struct hub_loop *l = handle->data;
    struct hub *h = l->hub;
    uv_mutex_lock(&h->lock);
    struct mail *box = l->box;
    uint32_t n = l->n_box, cap = l->box_cap;
    l->box = l->taken;
    l->box_cap = l->taken_cap;
    l->n_box = 0;
    l->taken = box;
    l->taken_cap = cap;
    uv_mutex_unlock(&h->lock);
    for (uint32_t i = 0; i < n; i++)
        deliver(l, &l->taken[i]);
    deliver_mine(l);
    if (l->has_timer) /* another loop's event may have brought the deadline nearer */
        hub_worker(l, CORE_NO_WORKER, CORE_EV_TIMER);
}

/* ---- events in */

static void on_timer(uv_timer_t *handle)
{
    hub_worker(handle->data, CORE_NO_WORKER, CORE_EV_TIMER);
}

/* Under the lock. */
static void plan_timer(struct hub *h, struct hub_loop *from, int64_t now)
{
    struct hub_loop *l = h->loops[0];
    int64_t at = core_next_timer_ps(h->core);
    if (!l || at == PS_NEVER)
        return;
    if (l != from) {
        uv_async_send(&l->wake); /* timers belong to their loop */
        return;
    }
    uint64_t ms = at <= now ? 0 : (uint64_t)((at - now + PS_PER_MS - 1) / PS_PER_MS);
    uv_timer_start(&l->timer, on_timer, ms, 0);
}

/* Under the lock; ev's time is filled in here. */
static int take(struct hub *h, struct hub_loop *from, struct core_event *ev)
{
    int64_t due = core_next_timer_ps(h->core);
    ev->now_ps = hub_now_ps(h);
    int rc = core_event(h->core, ev);
    h->stats.events++;
    if (rc)
        h->stats.refused++;
    if (h->moved && !h->moved_sent && ev->kind < CORE_EV_WORKER_UP) {
        h->moved_sent = true;
        uv_async_send(h->moved);
    }
    sort_commands(h, from);
    int64_t next = core_next_timer_ps(h->core);
    if (next < due || ev->kind == CORE_EV_TIMER)
        plan_timer(h, from, ev->now_ps);
    return rc;
}

static uint32_t entry_new(struct hub *h)
{
    uint32_t i = h->free_entry;
    if (i != NONE) {
        h->free_entry = h->entries[i].next_free;
        return i;
    }
    if (h->n_entries == h->max_entries)
        return NONE;
    i = h->n_entries;
    MEM_GROW(h->entries, h->entries_cap, i + 1);
    h->entries[i] = (struct entry){.request = NULL};
    h->n_entries++;
    return i;
}

int hub_arrive(struct hub_loop *l, struct hub_request *r, const struct core_request *q)
{
    struct hub *h = l->hub;
    uv_mutex_lock(&h->lock);
    uint64_t from_ns = uv_hrtime();
    uint32_t handle = entry_new(h);
    if (handle == NONE) {
        uv_mutex_unlock(&h->lock);
        return WEIR_E_LIMIT;
    }
    struct entry *e = &h->entries[handle];
    e->request = r;
    *r = (struct hub_request){handle, e->generation, l};
    int rc = take(h, l, &(struct core_event){.kind = CORE_EV_ARRIVAL, .request = handle, .req = q});
    if (rc)
        entry_free(h, handle);
    uint64_t took_ns = uv_hrtime() - from_ns;
    buckets_add(&h->stats.decide, BUCKETS_SHORT, took_ns);
    if (took_ns > h->stats.decide_max_ns)
        h->stats.decide_max_ns = took_ns;
    uv_mutex_unlock(&h->lock);
    deliver_mine(l);
    return rc;
}

/* Under the lock: the core did not take how a request ended (it had planned another worker for it meanwhile). It must not
 * keep the request, whose handle is the next one's, nor may who waits for a command wait for ever. */
static void disown(struct hub *h, struct hub_loop *l, const struct core_event *ev,
                   uint32_t generation)
{
    struct core_event cancel = {.kind = CORE_EV_CANCELLED, .request = ev->request};
    if (ev->kind == CORE_EV_CANCELLED)
        return;
    (void)take(h, l, &cancel);
    if (ev->kind != CORE_EV_FAILED)
        return;
    MEM_GROW(l->mine, l->mine_cap, l->n_mine + 1);
    l->mine[l->n_mine++] =
        (struct mail){.cmd = {.kind = CORE_CMD_REJECT,
                              .request = ev->request,
                              .worker = CORE_NO_WORKER,
                              .peer = CORE_NO_WORKER,
                              .reason = ev->partial ? CORE_REASON_PARTIAL : CORE_REASON_RETRIES,
                              .retry_after_ps = PS_NEVER},
                      .generation = generation};
}

/* An event of a request; over: it is the last one. */
static void request_event(struct hub_request *r, struct core_event ev, bool over)
{
    struct hub_loop *l = r->loop;
    struct hub *h = l->hub;
    ev.request = r->handle;
    uv_mutex_lock(&h->lock);
    if (h->entries[r->handle].request == r) {
        uint32_t generation = h->entries[r->handle].generation;
        if (over)
            entry_free(h, r->handle);
        if (take(h, l, &ev) && (over || ev.kind == CORE_EV_FAILED))
            disown(h, l, &ev, generation);
    }
    uv_mutex_unlock(&h->lock);
    deliver_mine(l);
}

void hub_prefill_done(struct hub_request *r, uint32_t worker)
{
    request_event(r, (struct core_event){.kind = CORE_EV_PREFILL_DONE, .worker = worker}, false);
}

void hub_first_token(struct hub_request *r, uint32_t worker)
{
    request_event(r, (struct core_event){.kind = CORE_EV_FIRST_TOKEN, .worker = worker}, false);
}

void hub_progress(struct hub_request *r, uint32_t worker, uint32_t output_tok)
{
    request_event(
        r, (struct core_event){.kind = CORE_EV_PROGRESS, .worker = worker, .n = output_tok}, false);
}

void hub_done(struct hub_request *r, uint32_t worker, uint32_t output_tok, uint64_t first_ns,
              bool error)
{
    uint64_t start_ns = r->loop->hub->start_ns;
    int64_t first_ps = first_ns > start_ns ? (int64_t)(first_ns - start_ns) * PS_PER_NS : 0;
    request_event(r,
                  (struct core_event){.kind = CORE_EV_DONE,
                                      .worker = worker,
                                      .n = output_tok,
                                      .first_token_ps = first_ps,
                                      .error = error},
                  true);
}

void hub_failed(struct hub_request *r, uint32_t worker, bool partial)
{
    request_event(r,
                  (struct core_event){.kind = CORE_EV_FAILED, .worker = worker, .partial = partial},
                  false);
}

void hub_cancelled(struct hub_request *r)
{
    request_event(r, (struct core_event){.kind = CORE_EV_CANCELLED}, true);
}

static void worker_event(struct hub_loop *l, struct core_event ev)
{
    uv_mutex_lock(&l->hub->lock);
    (void)take(l->hub, l, &ev);
    uv_mutex_unlock(&l->hub->lock);
    deliver_mine(l);
}

void hub_worker(struct hub_loop *l, uint32_t worker, enum core_event_kind kind)
{
    worker_event(l, (struct core_event){.kind = kind, .worker = worker});
}

void hub_worker_added(struct hub_loop *l, uint32_t worker, const struct core_worker_config *c)
{
    worker_event(l,
                 (struct core_event){.kind = CORE_EV_WORKER_ADDED, .worker = worker, .added = c});
}

int hub_reconfigure(struct hub_loop *l, const struct core_config *to, const char **why)
{
    struct hub *h = l->hub;
    uv_mutex_lock(&h->lock);
    int rc = core_reconfigure(h->core, to, why);
    sort_commands(h, l);
    uv_mutex_unlock(&h->lock);
    deliver_mine(l);
    return rc;
}

void hub_telemetry(struct hub_loop *l, uint32_t worker, const struct core_telemetry *t)
{
    worker_event(l,
                 (struct core_event){.kind = CORE_EV_TELEMETRY, .worker = worker, .telemetry = t});
}

void hub_cache(struct hub_loop *l, uint32_t worker, const struct core_cache_event *ev)
{
    worker_event(l, (struct core_event){.kind = CORE_EV_CACHE, .worker = worker, .cache = ev});
}

void hub_foreign(struct hub_loop *l, uint32_t worker, const struct core_load *load)
{
    worker_event(l, (struct core_event){.kind = CORE_EV_FOREIGN, .worker = worker, .load = load});
}

void hub_watch(struct hub *h, uv_async_t *moved)
{
    uv_mutex_lock(&h->lock);
    h->moved = moved;
    uv_mutex_unlock(&h->lock);
}

void hub_own_loads(struct hub *h, struct core_load *out, uint32_t n)
{
    uv_mutex_lock(&h->lock);
    h->moved_sent = false;
    for (uint32_t w = 0; w < n; w++)
        out[w] = core_own_load(h->core, w);
    uv_mutex_unlock(&h->lock);
}

void hub_get_stats(struct hub *h, struct hub_stats *out)
{
    uv_mutex_lock(&h->lock);
    *out = h->stats;
    core_get_stats(h->core, &out->core);
    uv_mutex_unlock(&h->lock);
}

int64_t hub_get_worker(struct hub *h, uint32_t worker, struct core_worker_state *out)
{
    uv_mutex_lock(&h->lock);
    core_get_worker(h->core, worker, out);
    uv_mutex_unlock(&h->lock);
    return hub_now_ps(h);
}

struct core_belief hub_belief(struct hub *h, uint32_t worker)
{
    uv_mutex_lock(&h->lock);
    struct core_belief b = core_belief_of(h->core, worker);
    uv_mutex_unlock(&h->lock);
    return b;
}

/* ---- loops come and go */

struct hub_loop *hub_join(struct hub *h, uv_loop_t *uv, hub_command_fn command, void *user)
{
    struct hub_loop *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    *l = (struct hub_loop){.hub = h, .command = command, .user = user};
    uv_mutex_lock(&h->lock);
    bool full = h->n_loops == HUB_MAX_LOOPS;
    if (full || uv_async_init(uv, &l->wake, on_wake)) {
        uv_mutex_unlock(&h->lock);
        free(l);
        return NULL;
    }
    l->wake.data = l;
    l->has_timer = h->n_loops == 0;
    if (l->has_timer) {
        uv_timer_init(uv, &l->timer);
        l->timer.data = l;
    }
    h->loops[h->n_loops++] = l;
    uv_mutex_unlock(&h->lock);
    return l;
}

static void on_closed(uv_handle_t *handle)
{
    struct hub_loop *l = handle->data;
    if (--l->closing)
        return;
    free(l->box);
    free(l->taken);
    free(l->mine);
    free(l);
}

void hub_leave(struct hub_loop *l)
{
    struct hub *h = l->hub;
    uv_mutex_lock(&h->lock);
    for (uint32_t i = 0; i < h->n_loops; i++) {
        if (h->loops[i] == l)
            h->loops[i] = NULL;
    }
    uv_mutex_unlock(&h->lock);
    l->closing = l->has_timer ? 2 : 1;
    uv_close((uv_handle_t *)&l->wake, on_closed);
    if (l->has_timer)
        uv_close((uv_handle_t *)&l->timer, on_closed);
}
