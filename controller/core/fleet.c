/* fleet.c - see fleet.h. */
#include "controller/core/fleet.h"

#include <stdlib.h>
#include <string.h>

/* ---- life */

static uint64_t capacity_tok(const struct core_worker_config *c)
{
    uint64_t tok = c->max_model_len ? c->max_model_len : UINT64_MAX;
    uint64_t kv = c->num_gpu_blocks ? (uint64_t)c->num_gpu_blocks * c->block_size : UINT64_MAX;
    return tok < kv ? tok : kv;
}

const char *fleet_worker_fault(const struct core_worker_config *c)
{
    if ((unsigned)c->role > ROLE_DECODE)
        return "a worker's role must be both, prefill or decode";
    if (!c->block_size)
        return "a worker's block_size must be at least 1";
    return NULL;
}

static const char *config_fault(const struct core_config *c)
{
    bool role[FLEET_ROLES] = {false};
    uint32_t n = c->n_workers - c->spare_workers;
    if (!n || c->n_workers > CORE_MAX_WORKERS || !c->workers)
        return "n_workers must be 1 to 16384, with spare_workers";
    for (uint32_t w = 0; w < n; w++) {
        const char *why = fleet_worker_fault(&c->workers[w]);
        if (why)
            return why;
        role[c->workers[w].role] = true;
    }
    if (!role[ROLE_BOTH] && !(role[ROLE_PREFILL] && role[ROLE_DECODE]))
        return "workers that prefill and workers that decode are both needed";
    return NULL;
}

static bool allocate(struct fleet *f)
{
    size_t n = f->n;
    f->config = calloc(n, sizeof *f->config);
    f->workers = calloc(n, sizeof *f->workers);
    f->inflight = calloc(n, sizeof *f->inflight);
    f->prefilling = calloc(n, sizeof *f->prefilling);
    f->prefill_tok = calloc(n, sizeof *f->prefill_tok);
    f->inflight_tok = calloc(n, sizeof *f->inflight_tok);
    f->own = calloc(n, sizeof *f->own);
    f->foreign = calloc(n, sizeof *f->foreign);
    f->telemetry = calloc(n, sizeof *f->telemetry);
    f->block_tok = calloc(n, sizeof *f->block_tok);
    f->sizes = calloc(n, sizeof *f->sizes);
    f->cached_tok = calloc(n, sizeof *f->cached_tok);
    f->touched = calloc(n, sizeof *f->touched);
    f->scratch = calloc(n, sizeof *f->scratch);
    bool ok = f->config && f->workers && f->inflight && f->prefilling && f->prefill_tok &&
              f->inflight_tok && f->own && f->foreign && f->telemetry && f->block_tok && f->sizes &&
              f->cached_tok && f->touched && f->scratch;
    for (int i = 0; i < FLEET_ROLES; i++)
        ok = (f->open[i] = calloc(n, sizeof *f->open[i])) && ok;
    for (int i = 0; i < 2; i++)
        ok = (f->filtered[i] = calloc(n, sizeof *f->filtered[i])) && ok;
    return ok;
}

static void add_size(struct fleet *f, uint32_t block_tok)
{
    for (uint32_t i = 0; i < f->n_sizes; i++) {
        if (f->sizes[i] == block_tok)
            return;
    }
    f->sizes[f->n_sizes++] = block_tok;
}

static void measure_reach(struct fleet *f)
{
    f->reach = (struct fleet_reach){0};
    for (uint32_t w = 0; w < f->n; w++) {
        const struct fleet_worker *k = &f->workers[w];
        enum worker_role role = f->config[w].role;
        uint64_t tok = k->capacity_tok;
        if (tok > f->reach.ever[role])
            f->reach.ever[role] = tok;
        if (!k->draining && tok > f->reach.hope[role])
            f->reach.hope[role] = tok;
        if (!k->draining && k->up && tok > f->reach.ready[role])
            f->reach.ready[role] = tok;
    }
}

static void reopen(struct fleet *f, uint32_t w);

/* As its config says. */
static void take_place(struct fleet *f, uint32_t w)
{
    struct fleet_worker *k = &f->workers[w];
    k->up = f->config[w].up;
    k->draining = k->vacant = false;
    k->capacity_tok = capacity_tok(&f->config[w]);
    f->block_tok[w] = f->config[w].block_size;
    if (f->knows == POLICY_PREFIX_DISPATCH && f->block_tok[w] < f->min_block_tok)
        f->block_tok[w] = f->min_block_tok;
    add_size(f, f->block_tok[w]);
    if (k->capacity_tok < f->smallest_tok)
        f->smallest_tok = k->capacity_tok;
    reopen(f, w);
}

static int init_health(struct fleet *f, const struct core_config *c, const char **why)
{
    int rc = health_init(&f->health, c, why);
    if (rc)
        fleet_deinit(f);
    return rc;
}

int fleet_init(struct fleet *f, const struct core_config *c, const struct policy_ops *policy,
               const char **why)
{
    memset(f, 0, sizeof *f);
    *why = config_fault(c);
    if (*why)
        return WEIR_E_INVALID;
    f->n = c->n_workers;
    f->max_inflight = c->max_inflight_per_worker;
    f->knows = policy->prefix;
    f->smallest_tok = UINT64_MAX;
    f->guesses =
        f->knows == POLICY_PREFIX_DISPATCH || (f->knows == POLICY_PREFIX_EVENTS && c->guess_cache);
    bool both = f->guesses && f->knows == POLICY_PREFIX_EVENTS;
    if (f->knows != POLICY_PREFIX_NONE)
        f->index = prefix_index_new(f->n, both ? FLEET_GUESS_BLOCKS : policy->prefix_max_blocks);
    if (!allocate(f) || (f->knows != POLICY_PREFIX_NONE && !f->index)) {
        fleet_deinit(f);
        *why = "out of memory";
        return WEIR_E_NOMEM;
    }
    int rc = init_health(f, c, why);
    if (rc)
        return rc;
    memcpy(f->config, c->workers, f->n * sizeof *f->config);
    f->min_block_tok = policy->prefix_min_block_tok;
    for (uint32_t w = 0; w < f->n; w++) {
        f->telemetry[w].at_ps = -1;
        if (w < f->n - c->spare_workers)
            take_place(f, w);
        else
            f->workers[w] = (struct fleet_worker){.draining = true, .vacant = true};
    }
    measure_reach(f);
    return 0;
}

void fleet_deinit(struct fleet *f)
{
    free(f->config);
    free(f->workers);
    for (int i = 0; i < FLEET_ROLES; i++)
        free(f->open[i]);
    for (int i = 0; i < 2; i++)
        free(f->filtered[i]);
    free(f->inflight);
    free(f->prefilling);
    free(f->prefill_tok);
    free(f->inflight_tok);
    free(f->own);
    free(f->foreign);
    free(f->telemetry);
    prefix_index_free(f->index);
    health_deinit(&f->health);
    free(f->block_tok);
    free(f->sizes);
    free(f->cached_tok);
    free(f->touched);
    free(f->scratch);
    memset(f, 0, sizeof *f);
}

/* ---- who can take requests */

static bool is_open(const struct fleet *f, uint32_t w)
{
    return f->workers[w].up && !f->workers[w].draining &&
           (!f->max_inflight || f->own[w] < f->max_inflight) &&
           health_admits(&f->health, w, f->own[w]);
}

/* Where w is in its role's list, or would be. */
static uint32_t place(const struct fleet *f, uint32_t w)
{
    enum worker_role role = f->config[w].role;
    const uint32_t *list = f->open[role];
    uint32_t low = 0, high = f->n_open[role];
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (list[mid] < w)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The largest capacity in the list, of which one of capacity `last` has gone. */
static uint64_t largest_left(const struct fleet *f, enum worker_role role, uint64_t last)
{
    uint64_t tok = 0;
    if (last < f->open_tok[role])
        return f->open_tok[role];
    for (uint32_t i = 0; i < f->n_open[role] && tok < last; i++) {
        uint64_t t = f->workers[f->open[role][i]].capacity_tok;
        tok = t > tok ? t : tok;
    }
    return tok;
}

/* Puts w into its role's list or takes it out, as it should be. */
static void reopen(struct fleet *f, uint32_t w)
{
    enum worker_role role = f->config[w].role;
    uint32_t *list = f->open[role], n = f->n_open[role], i = place(f, w);
    bool in = i < n && list[i] == w, should = is_open(f, w);
    if (should && !in) {
        memmove(&list[i + 1], &list[i], (n - i) * sizeof *list);
        list[i] = w;
        f->n_open[role]++;
        if (f->workers[w].capacity_tok > f->open_tok[role])
            f->open_tok[role] = f->workers[w].capacity_tok;
    } else if (!should && in) {
        memmove(&list[i], &list[i + 1], (n - i - 1) * sizeof *list);
        f->n_open[role]--;
        f->open_tok[role] = largest_left(f, role, f->workers[w].capacity_tok);
    }
}

/* Whom health admits may have changed. */
static void follow_health(struct fleet *f)
{
    uint32_t roles = f->health.changed;
    f->health.changed = 0;
    for (uint32_t w = 0; roles && w < f->n; w++) {
        if (roles >> f->config[w].role & 1)
            reopen(f, w);
    }
}

static void changed(struct fleet *f, uint32_t w)
{
    reopen(f, w);
    follow_health(f);
    measure_reach(f);
}

void fleet_add(struct fleet *f, uint32_t w, const struct core_worker_config *c)
{
    f->config[w] = *c;
    health_new(&f->health, w, c->role);
    take_place(f, w);
    if (c->up)
        health_up(&f->health, w);
    changed(f, w);
}

void fleet_vacate(struct fleet *f, uint32_t w)
{
    (void)fleet_drain(f, w);
    (void)fleet_down(f, w);
    fleet_foreign(f, w, &(struct core_load){0});
    f->workers[w].vacant = true;
    f->workers[w].capacity_tok = 0;
    f->n_sizes = 0;
    f->smallest_tok = UINT64_MAX;
    for (uint32_t i = 0; i < f->n; i++) {
        if (f->workers[i].vacant)
            continue;
        add_size(f, f->block_tok[i]);
        if (f->workers[i].capacity_tok < f->smallest_tok)
            f->smallest_tok = f->workers[i].capacity_tok;
    }
    measure_reach(f);
}

void fleet_judge_by(struct fleet *f, const struct core_health_config *c)
{
    health_judge_by(&f->health, c);
    follow_health(f);
}

void fleet_limit(struct fleet *f, uint32_t max_inflight)
{
    f->max_inflight = max_inflight;
    for (uint32_t w = 0; w < f->n; w++)
        reopen(f, w);
}

uint32_t fleet_block_size(const struct fleet *f)
{
    uint32_t size = 0;
    for (uint32_t w = 0; w < f->n; w++) {
        if (f->workers[w].vacant)
            continue;
        if (size && f->config[w].block_size != size)
            return 0;
        size = f->config[w].block_size;
    }
    return size;
}

bool fleet_tick(struct fleet *f, int64_t now_ps)
{
    health_tick(&f->health, now_ps, f->own);
    bool any = f->health.changed;
    follow_health(f);
    return any;
}

void fleet_good(struct fleet *f, uint32_t w, int64_t latency_ps, uint32_t uncached_tok)
{
    health_good(&f->health, w, latency_ps, uncached_tok);
    follow_health(f);
}

void fleet_bad(struct fleet *f, uint32_t w)
{
    health_bad(&f->health, w);
    follow_health(f);
}

bool fleet_up(struct fleet *f, uint32_t w)
{
    struct fleet_worker *k = &f->workers[w];
    if (k->up && !k->draining)
        return false;
    k->up = true;
    k->draining = false;
    health_up(&f->health, w);
    changed(f, w);
    return true;
}

bool fleet_down(struct fleet *f, uint32_t w)
{
    struct fleet_worker *k = &f->workers[w];
    if (!k->up)
        return false;
    k->up = false;
    k->life++;
    f->telemetry[w] = (struct core_telemetry){.at_ps = -1};
    if (f->index)
        prefix_index_forget(f->index, w);
    health_gone(&f->health, w);
    changed(f, w);
    return true;
}

bool fleet_drain(struct fleet *f, uint32_t w)
{
    struct fleet_worker *k = &f->workers[w];
    if (k->draining)
        return false;
    k->draining = true;
    health_gone(&f->health, w);
    changed(f, w);
    return true;
}

/* Whether a ready worker other than `avoid`, and not a sick one, has the role and the room, busy or not. */
static bool another_ready(const struct fleet *f, enum worker_role role, uint64_t need_tok,
                          uint32_t avoid)
{
    for (uint32_t w = 0; w < f->n; w++) {
        const struct fleet_worker *k = &f->workers[w];
        if (w != avoid && f->config[w].role == role && k->up && !k->draining &&
            k->capacity_tok >= need_tok && health_trusts(&f->health, w))
            return true;
    }
    return false;
}

uint32_t fleet_candidates(struct fleet *f, enum worker_role role, uint64_t need_tok, uint32_t avoid,
                          int which, const uint32_t **list)
{
    const uint32_t *open = f->open[role];
    uint32_t *out = f->filtered[which], n = 0;
    bool avoided = false;
    *list = open;
    if (need_tok <= f->smallest_tok && avoid == CORE_NO_WORKER) {
        if (!f->health.n_ramping)
            return f->n_open[role];
        *list = out;
        return health_thin(&f->health, open, f->n_open[role], f->inflight, out);
    }
    if (need_tok > f->reach.ready[role])
        return 0;
    *list = out;
    for (uint32_t i = 0; i < f->n_open[role]; i++) {
        if (f->workers[open[i]].capacity_tok < need_tok)
            continue;
        if (open[i] == avoid)
            avoided = true;
        else
            out[n++] = open[i];
    }
    if (!n && avoided && !another_ready(f, role, need_tok, avoid))
        out[n++] = avoid;
    return f->health.n_ramping ? health_thin(&f->health, out, n, f->inflight, out) : n;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

uint64_t fleet_room_decode(const struct fleet *f)
{
    return larger(f->open_tok[ROLE_DECODE], f->open_tok[ROLE_BOTH]);
}

uint64_t fleet_room_new(const struct fleet *f, bool destination_first)
{
    uint64_t prefill = f->open_tok[ROLE_PREFILL];
    uint64_t decode = destination_first
                          ? fleet_room_decode(f)
                          : larger(f->reach.ready[ROLE_DECODE], f->reach.ready[ROLE_BOTH]);
    return larger(f->open_tok[ROLE_BOTH], prefill < decode ? prefill : decode);
}

/* ---- prefixes */

void fleet_match(struct fleet *f, const struct core_request *r)
{
    if (!f->index || !r->n_keys)
        return;
    for (uint32_t i = 0; i < f->n_sizes; i++) {
        struct prefix_chain p = policy_chain(r, f->sizes[i]);
        uint32_t *touched = f->touched + f->n_touched;
        uint32_t n = prefix_index_match(f->index, &p, prefix_chain_blocks(&p, r->prompt_tok),
                                        f->cached_tok, touched);
        for (uint32_t k = 0; k < n; k++)
            f->cached_tok[touched[k]] *= p.block_tok;
        f->n_touched += n;
    }
}

void fleet_forget_match(struct fleet *f)
{
    while (f->n_touched)
        f->cached_tok[f->touched[--f->n_touched]] = 0;
}

void fleet_guess_cached(struct fleet *f, uint32_t w, const struct core_request *r)
{
    if (!f->guesses || !r->n_keys)
        return;
    struct prefix_chain p = policy_chain(r, f->block_tok[w]);
    prefix_index_set(f->index, &p, prefix_chain_blocks(&p, r->prompt_tok), w);
}

void fleet_cache_event(struct fleet *f, uint32_t w, const struct core_cache_event *ev)
{
    if (f->knows != POLICY_PREFIX_EVENTS || !f->workers[w].up)
        return;
    if (ev->cleared)
        prefix_index_forget(f->index, w);
    else
        prefix_index_change(f->index, w, f->block_tok[w], ev->stored, ev->depth, ev->n_blocks,
                            ev->keys);
}

/* ---- books */

void fleet_book(struct fleet *f, uint32_t w, const struct core_request *r, bool prefills,
                uint32_t uncached_tok)
{
    f->inflight[w]++;
    f->own[w]++;
    f->inflight_tok[w] += r->prompt_tok;
    if (prefills) {
        f->prefilling[w]++;
        f->prefill_tok[w] += uncached_tok;
    }
    if (f->own[w] == f->max_inflight || f->health.n_probing)
        reopen(f, w);
}

void fleet_prefilled(struct fleet *f, uint32_t w, uint32_t uncached_tok)
{
    f->prefilling[w]--;
    f->prefill_tok[w] -= uncached_tok;
}

void fleet_foreign(struct fleet *f, uint32_t w, const struct core_load *load)
{
    const struct core_load *last = &f->foreign[w];
    f->inflight[w] += load->requests - last->requests;
    f->prefilling[w] += load->prefilling - last->prefilling;
    f->prefill_tok[w] += load->prefill_tok - last->prefill_tok;
    f->inflight_tok[w] += load->prompt_tok - last->prompt_tok;
    f->foreign[w] = *load;
}

void fleet_unbook(struct fleet *f, uint32_t w, const struct core_request *r)
{
    f->inflight_tok[w] -= r->prompt_tok;
    f->inflight[w]--;
    bool was_full = f->own[w]-- == f->max_inflight;
    health_left(&f->health, w, f->own[w]);
    if (was_full || f->health.n_probing)
        reopen(f, w);
}
