/* foreign.c - see foreign.h. */
#include "controller/state/foreign.h"

#include <stdlib.h>
#include <string.h>

struct controller {
    char name[RECORD_NAME_BYTES]; /* empty: free */
    uint64_t sequence, until_ms;
    struct core_load *loads; /* by worker */
};

struct foreign {
    uint32_t n_workers, n_changed, at; /* at: where foreign_changed goes on looking */
    struct controller controllers[FOREIGN_MAX_CONTROLLERS];
    bool *changed;
    uint64_t *named, message; /* by worker: the last message that named it */
};

struct foreign *foreign_new(uint32_t n_workers)
{
    struct foreign *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->n_workers = n_workers;
    f->changed = calloc(n_workers ? n_workers : 1, sizeof *f->changed);
    f->named = calloc(n_workers ? n_workers : 1, sizeof *f->named);
    if (f->changed && f->named)
        return f;
    foreign_free(f);
    return NULL;
}

void foreign_free(struct foreign *f)
{
    if (!f)
        return;
    for (uint32_t i = 0; i < FOREIGN_MAX_CONTROLLERS; i++)
        free(f->controllers[i].loads);
    free(f->changed);
    free(f->named);
    free(f);
}

static void set(struct foreign *f, struct controller *c, uint32_t w, const struct core_load *load)
{
    struct core_load *now = &c->loads[w];
    if (now->requests == load->requests && now->prefilling == load->prefilling &&
        now->prefill_tok == load->prefill_tok && now->prompt_tok == load->prompt_tok)
        return;
    *now = *load;
    f->n_changed += !f->changed[w];
    f->changed[w] = true;
}

static void forget(struct foreign *f, struct controller *c)
{
    for (uint32_t w = 0; w < f->n_workers; w++)
        set(f, c, w, &(struct core_load){0});
    free(c->loads);
    *c = (struct controller){.loads = NULL};
}

/* Its place, or a new one; NULL: there is none. */
static struct controller *find(struct foreign *f, const char *name)
{
    struct controller *spare = NULL;
    for (uint32_t i = 0; i < FOREIGN_MAX_CONTROLLERS; i++) {
        struct controller *c = &f->controllers[i];
        if (!strcmp(c->name, name))
            return c;
        if (!c->name[0] && !spare)
            spare = c;
    }
    if (!spare)
        return NULL;
    spare->loads = calloc(f->n_workers ? f->n_workers : 1, sizeof *spare->loads);
    if (!spare->loads)
        return NULL;
    memcpy(spare->name, name, strlen(name) + 1);
    return spare;
}

int foreign_take(struct foreign *f, const struct dispatches *d, uint64_t now_ms,
                 foreign_index_fn index, void *user, bool *gap)
{
    struct controller *c = find(f, d->controller);
    *gap = false;
    if (!c)
        return WEIR_E_LIMIT;
    if (c->sequence && d->sequence <= c->sequence)
        return WEIR_E_INVALID;
    *gap = c->sequence && d->sequence > c->sequence + 1;
    c->sequence = d->sequence;
    c->until_ms = now_ms + d->lease_ms;
    f->message++;
    for (uint32_t i = 0; i < d->n; i++) {
        const struct worker_load *l = &d->loads[i];
        uint32_t w = index(user, l->worker);
        if (w >= f->n_workers)
            continue;
        f->named[w] = f->message;
        set(f, c, w,
            &(struct core_load){l->requests, l->prefilling, l->prefill_tok, l->prompt_tok});
    }
    for (uint32_t w = 0; d->whole && w < f->n_workers; w++) {
        if (f->named[w] != f->message)
            set(f, c, w, &(struct core_load){0});
    }
    return 0;
}

void foreign_expire(struct foreign *f, uint64_t now_ms)
{
    for (uint32_t i = 0; i < FOREIGN_MAX_CONTROLLERS; i++) {
        if (f->controllers[i].name[0] && f->controllers[i].until_ms <= now_ms)
            forget(f, &f->controllers[i]);
    }
}

/* Controllers beyond what the core takes at one worker are left out. Tokens: 64 of RECORD_MAX_TOKENS are fewer than
 * CORE_MAX_FOREIGN_TOK. */
static struct core_load total(const struct foreign *f, uint32_t w)
{
    struct core_load sum = {0};
    for (uint32_t i = 0; i < FOREIGN_MAX_CONTROLLERS; i++) {
        const struct controller *c = &f->controllers[i];
        if (!c->name[0] || c->loads[w].requests > CORE_MAX_REQUESTS - sum.requests)
            continue;
        sum.requests += c->loads[w].requests;
        sum.prefilling += c->loads[w].prefilling;
        sum.prefill_tok += c->loads[w].prefill_tok;
        sum.prompt_tok += c->loads[w].prompt_tok;
    }
    return sum;
}

bool foreign_changed(struct foreign *f, uint32_t *worker, struct core_load *out)
{
    if (!f->n_changed)
        return false;
    while (!f->changed[f->at])
        f->at = f->at + 1 < f->n_workers ? f->at + 1 : 0;
    f->changed[f->at] = false;
    f->n_changed--;
    *worker = f->at;
    *out = total(f, f->at);
    return true;
}

uint32_t foreign_controllers(const struct foreign *f)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < FOREIGN_MAX_CONTROLLERS; i++)
        n += f->controllers[i].name[0] != '\0';
    return n;
}

uint64_t foreign_requests(const struct foreign *f)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < FOREIGN_MAX_CONTROLLERS; i++) {
        for (uint32_t w = 0; f->controllers[i].name[0] && w < f->n_workers; w++)
            n += f->controllers[i].loads[w].requests;
    }
    return n;
}
