/* decide.c - the price of a decision: requests through the decision core, without engines, trace or report.
 * Prints nanoseconds of processor time for one request's whole life in the core (arrival, first token,
 * done, and the cache events where the policy reads those), by policy and number of workers; medians of
 * several runs.
 *
 *   decide [-l] [-p POLICY] [-w WORKERS] [-b BLOCK_SIZE] [-n REQUESTS]
 *
 * -l: as `weir serve` runs it: breaker, outliers, slow start and retry budget on, 64 tenants that take turns, and room
 * for three quarters of the requests, so that the others wait.
 *
 * Conversations of about eight turns: a prompt repeats the one before and adds 1,500 tokens to it, with a
 * key for 512 tokens; a twentieth begins with one of four system prompts of 2,048 tokens. Each worker has
 * 16 requests in flight, and caches what the last 64 brought.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "controller/core/core.h"
#include "controller/core/policy.h"
#include "predictor/request.h"
#include "predictor/rng.h"

#define RUNS 5
#define KEY_TOK 512u
#define TURN_TOK 1500u
#define TURNS 8
#define SYSTEM_KEYS 4
#define MAX_KEYS 32 /* of TURNS * TURN_TOK tokens and a system prompt */
#define CACHED_PER_WORKER 64u
#define TALKS 4096u
#define PER_WORKER 16u
#define MAX_WORKERS 10000u

/* A conversation, as long as it has become. */
struct talk {
    uint64_t keys[MAX_KEYS];
    uint32_t tok, n_keys;
};

struct flight {
    uint64_t keys[MAX_KEYS];
    uint32_t worker, cached_tok;
    bool live, held;
};

/* What a worker's cache got with one request. */
struct cached {
    uint64_t keys[MAX_KEYS];
    uint32_t depth, prompt_tok, worker;
};

struct bed {
    struct rng rng;
    struct core *core;
    uint32_t needs, n_workers, block_size, window;
    bool live; /* as weir serve */
    struct talk *talks;
    struct flight *flights;
    struct cached *cached; /* ring */
    uint32_t n_cached, next_cached;
    int64_t now_ps;
};

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void next_turn(struct bed *b, struct talk *t)
{
    if (!t->tok || t->tok >= TURNS * TURN_TOK) {
        *t = (struct talk){0};
        uint64_t system = rng_below(&b->rng, 80);
        for (uint32_t i = 0; system < 4 && i < SYSTEM_KEYS; i++)
            t->keys[t->n_keys++] = request_chain_key(i ? t->keys[i - 1] : 0, system + 1);
        t->tok = t->n_keys * KEY_TOK;
    }
    t->tok += TURN_TOK;
    if (t->n_keys && t->tok % KEY_TOK) /* the last one may have covered a part only */
        t->n_keys--;
    for (; t->n_keys * KEY_TOK < t->tok; t->n_keys++)
        t->keys[t->n_keys] =
            request_chain_key(t->n_keys ? t->keys[t->n_keys - 1] : 0, rng_u64(&b->rng));
}

static void tell(struct bed *b, struct core_event ev)
{
    ev.now_ps = b->now_ps;
    if (core_event(b->core, &ev)) {
        fprintf(stderr, "decide: the core refused an event\n");
        exit(1);
    }
}

/* Blocks of a prompt from `depth` on are there, or not any more. */
static void tell_cache(struct bed *b, const struct cached *k, bool stored)
{
    uint64_t keys[MAX_KEYS * KEY_TOK / 16];
    uint32_t n = 0;
    for (uint32_t end = (k->depth + 1) * b->block_size; end <= k->prompt_tok; end += b->block_size)
        keys[n++] = k->keys[(end + KEY_TOK - 1) / KEY_TOK - 1];
    struct core_cache_event e = {.stored = stored, .depth = k->depth, .n_blocks = n, .keys = keys};
    tell(b, (struct core_event){.kind = CORE_EV_CACHE, .worker = k->worker, .cache = &e});
}

/* The request's blocks that were not there are, and the oldest go. */
static void cache_changes(struct bed *b, const struct core_request *r, const struct flight *f)
{
    struct cached *k = &b->cached[b->next_cached];
    if (k->prompt_tok)
        tell_cache(b, k, false);
    *k = (struct cached){
        .depth = f->cached_tok / b->block_size, .prompt_tok = r->prompt_tok, .worker = f->worker};
    memcpy(k->keys, r->keys, r->n_keys * sizeof *k->keys);
    tell_cache(b, k, true);
    b->next_cached = (b->next_cached + 1) % b->n_cached;
}

static void read_commands(struct bed *b)
{
    struct core_command cmd;
    while (core_next(b->core, &cmd)) {
        struct flight *f = &b->flights[cmd.request];
        f->live = cmd.kind == CORE_CMD_DISPATCH;
        f->held = cmd.kind == CORE_CMD_HOLD;
        f->worker = cmd.worker;
        f->cached_tok = cmd.overlap_tok > 0 ? (uint32_t)cmd.overlap_tok : 0;
    }
}

/* Request number i of the run, in the place of the one that came `window` before it. */
static void one(struct bed *b, uint32_t i)
{
    uint32_t h = i % b->window;
    struct flight *f = &b->flights[h];
    b->now_ps += PS_PER_MS;
    if (f->live)
        tell(b, (struct core_event){
                    .kind = CORE_EV_DONE, .request = h, .worker = f->worker, .n = 100});
    else if (f->held)
        tell(b, (struct core_event){.kind = CORE_EV_CANCELLED, .request = h});
    read_commands(b);
    struct talk *t = &b->talks[rng_below(&b->rng, TALKS)];
    next_turn(b, t);
    memcpy(f->keys, t->keys, t->n_keys * sizeof *t->keys);
    struct core_request r = {.prompt_tok = t->tok,
                             .keys = f->keys,
                             .n_keys = t->n_keys,
                             .key_tok = KEY_TOK,
                             .tenant = b->live ? rng_below(&b->rng, 64) : 0,
                             .slo_ttft_ps = PS_NEVER,
                             .slo_tpot_ps = PS_NEVER};
    tell(b, (struct core_event){.kind = CORE_EV_ARRIVAL, .request = h, .req = &r});
    f->live = f->held = false;
    read_commands(b);
    if (!f->live)
        return;
    if (b->needs & 1u << CORE_EV_FIRST_TOKEN)
        tell(b,
             (struct core_event){.kind = CORE_EV_FIRST_TOKEN, .request = h, .worker = f->worker});
    if (b->needs & 1u << CORE_EV_CACHE)
        cache_changes(b, &r, f);
}

static double run(const char *policy, uint32_t n_workers, uint32_t block_size, uint32_t requests,
                  bool live)
{
    struct bed b = {.n_workers = n_workers, .block_size = block_size, .live = live};
    struct core_worker_config *w = calloc(n_workers, sizeof *w);
    const char *why = "out of memory";
    for (uint32_t i = 0; w && i < n_workers; i++)
        w[i] = (struct core_worker_config){.block_size = block_size, .up = true};
    b.window = n_workers * PER_WORKER;
    struct core_config c = {.policy = policy,
                            .seed = 1,
                            .n_workers = n_workers,
                            .workers = w,
                            .queue_timeout_ps = PS_NEVER,
                            .max_requests = b.window};
    if (live) {
        c.health = (struct core_health_config){.breaker_failures = 5,
                                               .outlier_failure_percent = 30,
                                               .outlier_latency_percent = 1000,
                                               .outlier_interval_ps = 10 * PS_PER_S,
                                               .eject_ps = 10 * PS_PER_S,
                                               .eject_max_ps = 300 * PS_PER_S,
                                               .eject_max_percent = 30,
                                               .panic_percent = 50,
                                               .slow_start_ps = 30 * PS_PER_S};
        c.retry = (struct core_retry_config){.budget = true, .percent = 20, .floor_per_s = 10};
        c.fair_quantum_tok = 2048;
        c.max_inflight_per_worker = PER_WORKER * 3 / 4;
        c.queue_max_requests = b.window;
        c.queue_timeout_ps = 60 * PS_PER_S;
    }
    b.core = core_new(&c, &why);
    b.talks = calloc(TALKS, sizeof *b.talks);
    b.flights = calloc(b.window, sizeof *b.flights);
    b.n_cached = n_workers * CACHED_PER_WORKER;
    b.cached = calloc(b.n_cached, sizeof *b.cached);
    if (!b.core || !b.talks || !b.flights || !b.cached) {
        fprintf(stderr, "decide: %s\n", why);
        exit(2);
    }
    b.needs = core_needs(b.core);
    rng_init(&b.rng, 1);
    uint32_t i = 0;
    uint32_t warm = b.needs & 1u << CORE_EV_CACHE ? b.n_cached : b.window;
    while (i < warm + requests) /* all workers have work, and their caches are full */
        one(&b, i++);
    double from = now_ns();
    for (uint32_t end = i + requests; i < end; i++)
        one(&b, i);
    double ns = (now_ns() - from) / requests;
    core_free(b.core);
    free(b.talks);
    free(b.flights);
    free(b.cached);
    free(w);
    return ns;
}

int main(int argc, char **argv)
{
    uint32_t workers[] = {8, 64, 1024, MAX_WORKERS}, n_sizes = 4;
    const char *only = NULL;
    uint32_t block_size = 16, requests = 4000;
    bool live = false;
    for (int o; (o = getopt(argc, argv, "lp:w:b:n:")) != -1;) {
        uint32_t value =
            o == 'p' || o == 'l' ? 0 : (uint32_t)strtoul(optarg ? optarg : "", NULL, 10);
        switch (o) {
        case 'l': live = true; break;
        case 'p': only = optarg; break;
        case 'w':
            workers[0] = value;
            n_sizes = 1;
            break;
        case 'b': block_size = value; break;
        case 'n': requests = value; break;
        default: return 2;
        }
    }
    if (block_size < 16 || block_size > KEY_TOK || !requests || (only && !core_policy_find(only)) ||
        !workers[0] || workers[0] > MAX_WORKERS) {
        fprintf(stderr,
                "usage: decide [-l] [-p POLICY] [-w WORKERS (1..%u)] [-b BLOCK_SIZE (16..%u)] "
                "[-n REQUESTS]\n",
                MAX_WORKERS, KEY_TOK);
        return 2;
    }
    printf("ns a request    ");
    for (uint32_t k = 0; k < n_sizes; k++)
        printf(" %10u", workers[k]);
    printf("  workers, block size %u\n", block_size);
    for (uint32_t p = 0; p < core_policies_count; p++) {
        if (only && strcmp(only, core_policies[p]->name) != 0)
            continue;
        printf("%-16s", core_policies[p]->name);
        for (uint32_t k = 0; k < n_sizes; k++) {
            double ns[RUNS];
            for (int i = 0; i < RUNS; i++)
                ns[i] = run(core_policies[p]->name, workers[k], block_size, requests, live);
            qsort(ns, RUNS, sizeof *ns, by_value);
            printf(" %10.0f", ns[RUNS / 2]);
            fflush(stdout);
        }
        printf("\n");
    }
    return 0;
}
