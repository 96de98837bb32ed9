/* shared_tier.c - see shared_tier.h. */
#include "predictor/shared_tier.h"

#include <string.h>

#include "predictor/block_store.h"
#include "predictor/fair_share.h"
#include "predictor/mem.h"
#include "predictor/units.h"

#define NONE UINT32_MAX

struct transfer {
    uint32_t client, slot;
    uint32_t flow; /* in the link */
    bool live, write;
    struct block_ticket ticket; /* pins what is read, takes the place of what is written */
    uint32_t next_free;
};

struct shared_tier {
    struct block_store blocks;
    uint64_t block_bytes;
    struct fair_share read, write;
    struct transfer *transfers;
    uint32_t n_transfers, transfers_cap, transfers_free;
    struct shared_tier_stats stats;
};

struct shared_tier *shared_tier_new(const struct engine_config *c)
{
    struct shared_tier *s = calloc(1, sizeof *s);
    int64_t latency = ps_from_ms(c->shared_first_byte_ms);
    if (!s)
        return NULL;
    s->block_bytes = c->block_size * c->kv_bytes_per_token;
    s->transfers_free = NONE;
    if (block_store_init(&s->blocks, c->block_size, c->num_shared_blocks) ||
        fair_share_init(&s->read, c->shared_read_gb_s, latency) ||
        fair_share_init(&s->write, c->shared_write_gb_s, latency)) {
        shared_tier_free(s);
        return NULL;
    }
    return s;
}

void shared_tier_free(struct shared_tier *s)
{
    if (!s)
        return;
    block_store_deinit(&s->blocks);
    fair_share_deinit(&s->read);
    fair_share_deinit(&s->write);
    free(s->transfers);
    free(s);
}

static bool same_real(double a, double b)
{
    return !(a < b) && !(b < a);
}

bool shared_tier_same(const struct engine_config *a, const struct engine_config *b)
{
    return a->num_shared_blocks == b->num_shared_blocks && a->block_size == b->block_size &&
           a->kv_bytes_per_token == b->kv_bytes_per_token &&
           same_real(a->shared_first_byte_ms, b->shared_first_byte_ms) &&
           same_real(a->shared_read_gb_s, b->shared_read_gb_s) &&
           same_real(a->shared_write_gb_s, b->shared_write_gb_s);
}

uint32_t shared_tier_lookup(const struct shared_tier *s, const struct request_spec *q, uint32_t max)
{
    return block_store_lookup(&s->blocks, q, max);
}

static uint32_t transfer_new(struct shared_tier *s, uint32_t client, uint32_t slot, bool write)
{
    uint32_t i = s->transfers_free;
    if (i != NONE) {
        s->transfers_free = s->transfers[i].next_free;
    } else {
        i = s->n_transfers;
        MEM_GROW(s->transfers, s->transfers_cap, i + 1);
        s->n_transfers = i + 1;
    }
    s->transfers[i] =
        (struct transfer){.client = client, .slot = slot, .live = true, .write = write};
    return i;
}

static void transfer_free(struct shared_tier *s, uint32_t i)
{
    s->transfers[i].live = false;
    s->transfers[i].next_free = s->transfers_free;
    s->transfers_free = i;
}

int64_t shared_tier_read(struct shared_tier *s, int64_t now, uint32_t client, uint32_t slot,
                         const struct request_spec *q, uint32_t from, uint32_t n)
{
    uint32_t i = transfer_new(s, client, slot, false);
    struct transfer *t = &s->transfers[i];
    uint64_t bytes = (n - from) * s->block_bytes;
    block_store_pin(&s->blocks, q, n, &t->ticket);
    t->flow = fair_share_add(&s->read, now, bytes, i);
    s->stats.read_blocks += n - from;
    double ps = s->read.bytes_per_s ? (double)bytes * s->read.n_heap * (double)PS_PER_S /
                                          (double)s->read.bytes_per_s
                                    : 0;
    int64_t end = now + s->read.latency_ps;
    return ps < (double)(PS_LIMIT - end) ? end + (int64_t)ps : PS_LIMIT;
}

bool shared_tier_write(struct shared_tier *s, int64_t now, uint32_t client,
                       const struct request_spec *q, uint32_t n)
{
    struct block_ticket ticket;
    uint32_t without, copy = block_store_begin(&s->blocks, q, n, &ticket, &without);
    if (!copy)
        return false;
    uint32_t i = transfer_new(s, client, NONE, true);
    s->transfers[i].ticket = ticket;
    s->transfers[i].flow = fair_share_add(&s->write, now, copy * s->block_bytes, i);
    s->stats.written_blocks += copy;
    return true;
}

void shared_tier_commit(struct shared_tier *s, uint32_t transfer, const struct request_spec *q)
{
    struct block_ticket *t = &s->transfers[transfer].ticket;
    (void)block_store_end(&s->blocks, q, t);
    block_store_drop(&s->blocks, t);
    transfer_free(s, transfer);
}

int64_t shared_tier_next_ps(const struct shared_tier *s)
{
    int64_t r = fair_share_next_ps(&s->read), w = fair_share_next_ps(&s->write);
    return r < w ? r : w;
}

bool shared_tier_pop(struct shared_tier *s, int64_t now, struct shared_tier_done *done)
{
    uint32_t i;
    if (fair_share_next_ps(&s->write) > now || !fair_share_pop(&s->write, now, &i)) {
        if (fair_share_next_ps(&s->read) > now || !fair_share_pop(&s->read, now, &i))
            return false;
    }
    const struct transfer *t = &s->transfers[i];
    *done = (struct shared_tier_done){
        .client = t->client, .slot = t->slot, .transfer = i, .write = t->write};
    if (!t->write) {
        block_store_drop(&s->blocks, &s->transfers[i].ticket);
        transfer_free(s, i);
    }
    return true;
}

void shared_tier_cancel(struct shared_tier *s, int64_t now, uint32_t client)
{
    for (uint32_t i = 0; i < s->n_transfers; i++) {
        struct transfer *t = &s->transfers[i];
        if (!t->live || t->client != client)
            continue;
        fair_share_cancel(t->write ? &s->write : &s->read, now, t->flow);
        block_store_drop(&s->blocks, &t->ticket);
        transfer_free(s, i);
    }
}

void shared_tier_get_stats(const struct shared_tier *s, struct shared_tier_stats *out)
{
    *out = s->stats;
    out->used_blocks = s->blocks.kv.usable - s->blocks.kv.free_unnamed;
}

const char *shared_tier_validate(const struct shared_tier *s)
{
    bool unused = true;
    for (uint32_t i = 0; i < s->n_transfers; i++)
        unused &= !s->transfers[i].live;
    return block_store_validate(&s->blocks, unused);
}
