/* tier.c - see tier.h. */
#include "predictor/tier.h"

#include <assert.h>
#include <string.h>

#include "predictor/mem.h"
#include "predictor/shared_tier.h"
#include "predictor/units.h"

/* ---- lanes */

static uint64_t bytes_per_s(double gb_s)
{
    uint64_t b = (uint64_t)(gb_s * 1e9 + 0.5);
    return b || gb_s <= 0 ? b : 1;
}

static int64_t lane_add(struct tier_lane *l, int64_t now, uint64_t bytes)
{
    int64_t start = l->free_ps > now ? l->free_ps : now;
    if (l->bytes_per_s) {
        unsigned __int128 ps = (unsigned __int128)bytes * PS_PER_S + l->bytes_per_s - 1;
        ps /= l->bytes_per_s;
        start = ps < (unsigned __int128)(PS_LIMIT - start) ? start + (int64_t)ps : PS_LIMIT;
    }
    l->free_ps = start;
    return start;
}

/* ---- life */

int tier_init(struct tier *t, const struct engine_config *c)
{
    memset(t, 0, sizeof *t);
    t->block_bytes = c->block_size * c->kv_bytes_per_token;
    t->down.bytes_per_s = bytes_per_s(c->d2h_bandwidth_gb_s);
    t->up.bytes_per_s = bytes_per_s(c->h2d_bandwidth_gb_s);
    t->first = t->stored = t->end = TIER_NO_JOB + 1;
    t->has_host = c->num_host_blocks > 0;
    return t->has_host ? block_store_init(&t->host, c->block_size, c->num_host_blocks) : 0;
}

void tier_deinit(struct tier *t)
{
    block_store_deinit(&t->host);
    free(t->jobs);
    free(t->keys);
    memset(t, 0, sizeof *t);
}

static struct tier_job *job_at(const struct tier *t, uint64_t job)
{
    return &t->jobs[job % t->jobs_cap];
}

static void move_jobs(struct tier *t, struct tier_job *to, uint32_t cap)
{
    for (uint64_t i = t->first; i < t->end; i++)
        to[i % cap] = *job_at(t, i);
    free(t->jobs);
    t->jobs = to;
    t->jobs_cap = cap;
}

static void retire(struct tier *t)
{
    struct tier_job *j = job_at(t, t->first++);
    if (t->has_host)
        block_store_drop(&t->host, &j->host);
    t->keys_first = j->key_off + j->n_keys;
    if (t->first == t->end)
        t->keys_first = t->keys_used = 0;
}

int tier_reserve_as(struct tier *dst, const struct tier *src)
{
    if (dst->jobs_cap < src->jobs_cap) {
        struct tier_job *to = malloc(src->jobs_cap * sizeof *to);
        if (!to)
            return WEIR_E_NOMEM;
        move_jobs(dst, to, src->jobs_cap);
    }
    return MEM_RESERVE(dst->keys, dst->keys_cap, src->keys_used) ||
                   block_store_reserve_as(&dst->host, &src->host)
               ? WEIR_E_NOMEM
               : 0;
}

void tier_copy(struct tier *dst, const struct tier *src)
{
    struct tier old = *dst;
    block_store_copy(&old.host, &src->host);
    *dst = *src;
    dst->host = old.host;
    dst->jobs = old.jobs;
    dst->jobs_cap = old.jobs_cap;
    for (uint64_t i = src->first; i < src->end; i++)
        *job_at(dst, i) = *job_at(src, i);
    dst->keys = old.keys;
    dst->keys_cap = old.keys_cap;
    MEM_COPY(dst->keys, src->keys, src->keys_used);
    dst->shared = NULL;
    dst->writing = false;
    while (dst->first < dst->stored)
        retire(dst);
}

void tier_reset(struct tier *t)
{
    while (t->first < t->end)
        retire(t);
    t->stored = t->first;
    t->writing = false;
    t->down.free_ps = t->up.free_ps = 0;
    if (t->has_host)
        block_store_clear(&t->host);
}

/* ---- what is there */

uint32_t tier_host_blocks(const struct tier *t, const struct request_spec *s, uint32_t max)
{
    return t->has_host ? block_store_lookup(&t->host, s, max) : 0;
}

uint32_t tier_shared_blocks(const struct tier *t, const struct request_spec *s, uint32_t max)
{
    return t->shared ? shared_tier_lookup(t->shared, s, max) : 0;
}

/* ---- down */

/* Makes the names of jobs start at 0 of their array once the room before them is worth it. */
static void compact_keys(struct tier *t)
{
    uint32_t gone = t->keys_first;
    if (gone < 1024 || gone < t->keys_used / 2)
        return;
    memmove(t->keys, t->keys + gone, (t->keys_used - gone) * sizeof *t->keys);
    for (uint64_t i = t->first; i < t->end; i++)
        job_at(t, i)->key_off -= gone;
    t->keys_used -= gone;
    t->keys_first = 0;
}

static void grow_jobs(struct tier *t)
{
    if (t->end - t->first < t->jobs_cap)
        return;
    uint32_t cap = t->jobs_cap ? t->jobs_cap * 2 : 16;
    struct tier_job *to = malloc(cap * sizeof *to);
    if (!to)
        abort();
    move_jobs(t, to, cap);
}

/* Blocks of the first n of s that have to be copied; their place is taken. */
static uint32_t take_place(struct tier *t, const struct request_spec *s, uint32_t n,
                           struct block_ticket *host)
{
    uint32_t copy, without;
    if (!t->has_host)
        return n - tier_shared_blocks(t, s, n);
    copy = block_store_begin(&t->host, s, n, host, &without);
    t->stats.skipped_blocks += without;
    return copy;
}

uint64_t tier_store(struct tier *t, int64_t now, const struct request_spec *s, uint32_t n)
{
    struct block_ticket host = {0};
    if (!n)
        return TIER_NO_JOB;
    compact_keys(t);
    uint32_t copy = take_place(t, s, n, &host);
    if (!copy)
        return TIER_NO_JOB;
    if (t->end - t->first >= TIER_MAX_JOBS ||
        t->keys_used - t->keys_first + (uint64_t)s->n_keys > TIER_MAX_KEYS) {
        t->stats.skipped_blocks += copy;
        if (t->has_host)
            block_store_drop(&t->host, &host);
        return TIER_NO_JOB;
    }
    grow_jobs(t);
    MEM_GROW(t->keys, t->keys_cap, t->keys_used + s->n_keys);
    if (s->n_keys)
        memcpy(t->keys + t->keys_used, s->keys, s->n_keys * sizeof *s->keys);
    struct tier_job *j = job_at(t, t->end);
    *j = (struct tier_job){.due_ps = lane_add(&t->down, now, copy * t->block_bytes),
                           .uid = s->uid,
                           .key_off = t->keys_used,
                           .n_keys = s->n_keys,
                           .key_tok = s->key_tok,
                           .prompt_tok = s->prompt_tok,
                           .blocks = n,
                           .host = host};
    kv_hold_init(&j->gpu);
    t->keys_used += s->n_keys;
    t->stats.stored_blocks += copy;
    return t->end++;
}

bool tier_keep(struct tier *t, uint64_t job, struct kv_hold *gpu)
{
    if (job < t->stored || job == TIER_NO_JOB)
        return false;
    struct kv_hold *to = &job_at(t, job)->gpu;
    assert(!to->n_blocks);
    *to = *gpu;
    kv_hold_init(gpu);
    return true;
}

int64_t tier_job_due_ps(const struct tier *t, uint64_t job)
{
    return job == TIER_NO_JOB || job < t->stored ? 0 : job_at(t, job)->due_ps;
}

int64_t tier_next_ps(const struct tier *t)
{
    return t->stored < t->end ? job_at(t, t->stored)->due_ps : PS_NEVER;
}

static struct request_spec job_spec(const struct tier *t, const struct tier_job *j)
{
    return (struct request_spec){.uid = j->uid,
                                 .prompt_tok = j->prompt_tok,
                                 .keys = t->keys + j->key_off,
                                 .n_keys = j->n_keys,
                                 .key_tok = j->key_tok};
}

/* Begins the next write to the shared store; jobs that have nothing to write are over. */
static void write_on(struct tier *t, int64_t now)
{
    while (!t->writing && t->first < t->stored) {
        const struct tier_job *j = job_at(t, t->first);
        struct request_spec s = job_spec(t, j);
        t->writing = t->shared && shared_tier_write(t->shared, now, t->client, &s, j->blocks);
        if (!t->writing)
            retire(t);
    }
}

bool tier_complete(struct tier *t, int64_t now, struct kv_hold *gpu)
{
    if (t->stored == t->end || tier_next_ps(t) > now)
        return false;
    struct tier_job *j = job_at(t, t->stored++);
    struct request_spec s = job_spec(t, j);
    *gpu = j->gpu;
    kv_hold_init(&j->gpu);
    if (t->has_host)
        j->blocks = block_store_end(&t->host, &s, &j->host);
    write_on(t, now);
    return true;
}

void tier_written(struct tier *t, int64_t now, uint32_t transfer)
{
    assert(t->writing);
    struct request_spec s = job_spec(t, job_at(t, t->first));
    shared_tier_commit(t->shared, transfer, &s);
    t->writing = false;
    retire(t);
    write_on(t, now);
}

bool tier_take_gpu(struct tier *t, struct kv_hold *gpu)
{
    for (uint64_t i = t->stored; i < t->end; i++) {
        struct tier_job *j = job_at(t, i);
        if (j->gpu.n_blocks) {
            *gpu = j->gpu;
            kv_hold_init(&j->gpu);
            return true;
        }
    }
    return false;
}

/* ---- up */

int64_t tier_load(struct tier *t, int64_t now, uint32_t n)
{
    return lane_add(&t->up, now, n * t->block_bytes);
}

void tier_pin(struct tier *t, const struct request_spec *s, uint32_t n, struct block_ticket *ticket)
{
    block_store_pin(&t->host, s, n, ticket);
}

void tier_loaded(struct tier *t, const struct request_spec *s, struct block_ticket *pin,
                 uint32_t from_shared)
{
    struct block_ticket more;
    uint32_t n = pin->pin.n_blocks, without;
    if (!t->has_host)
        return;
    if (from_shared && block_store_begin(&t->host, s, n + from_shared, &more, &without)) {
        (void)block_store_end(&t->host, s, &more);
        block_store_drop(&t->host, &more);
    }
    block_store_drop(&t->host, pin);
}
