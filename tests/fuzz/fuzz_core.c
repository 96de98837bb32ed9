/* fuzz_core.c - the decision core under whatever an adapter might send: a fleet and events in any order, from the
 * bytes of the input. Nonsense is refused; whatever is taken keeps the promises that can be checked from
 * outside: commands name workers and requests that there are, requests end once, the counters add up.
 *
 *   policy, roles, limits ... | kind, request, worker, time, n | kind, ...
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "controller/core/core.h"
#include "controller/core/policy.h"

#define MAX_WORKERS 6
#define HANDLES 16
#define N_KEYS 8

struct input {
    const uint8_t *data;
    size_t left;
};

static uint32_t byte(struct input *in)
{
    if (!in->left)
        return 0;
    in->left--;
    return *in->data++;
}

static void must(int holds)
{
    if (!holds)
        abort();
}

struct bed {
    struct input in;
    struct core *core;
    struct core_worker_config workers[MAX_WORKERS];
    struct core_config config;
    uint32_t n_workers; /* with spare ones */
    uint64_t keys[HANDLES][N_KEYS];
    int live[HANDLES]; /* arrived, and not over as far as commands and events have said */
    int64_t now_ps;
};

static void lay(struct bed *b)
{
    static const uint32_t lengths[] = {0, 100, 500, 1000};
    struct core_config c = {.policy = core_policies[byte(&b->in) % core_policies_count]->name,
                            .seed = 1,
                            .workers = b->workers,
                            .queue_max_requests = byte(&b->in) % 5,
                            .max_inflight_per_worker = byte(&b->in) % 4,
                            .max_retries = byte(&b->in) % 4,
                            .max_requests = HANDLES};
    uint32_t flags = byte(&b->in);
    const char *why;
    c.queue_timeout_ps = flags & 1 ? PS_NEVER : 1 + byte(&b->in) % 50;
    c.retry_partial = flags & 2;
    c.destination_first = flags & 4;
    c.drop_late = flags & 8;
    c.fair_quantum_tok = flags & 16 ? 200 : 0;
    c.queue_max_bytes = flags & 32 ? 600 : 0;
    if (flags & 64) {
        c.health = (struct core_health_config){.breaker_failures = 1 + (flags >> 7),
                                               .outlier_failure_percent = 20,
                                               .outlier_latency_percent = 200,
                                               .outlier_interval_ps = 500,
                                               .eject_ps = 30,
                                               .eject_max_ps = 200,
                                               .eject_max_percent = 50,
                                               .panic_percent = flags & 128 ? 0 : 50,
                                               .slow_start_ps = 100};
        c.retry = (struct core_retry_config){.budget = true, .percent = 20, .floor_per_s = 1};
    }
    c.spare_workers = flags & 128 ? 2 : 0;
    c.n_workers = b->n_workers = byte(&b->in) % (MAX_WORKERS + 1);
    for (uint32_t w = 0; w < b->n_workers; w++) {
        uint32_t v = byte(&b->in);
        b->workers[w] = (struct core_worker_config){.role = (enum worker_role)(v & 3),
                                                    .block_size = v & 64 ? 16 : 32 * (v >> 7),
                                                    .num_gpu_blocks = v & 4 ? 30 : 0,
                                                    .max_model_len = lengths[v >> 3 & 3],
                                                    .up = v & 32};
    }
    b->core = core_new(&c, &why);
    must(b->core || why);
    b->n_workers += c.spare_workers;
    b->config = c;
}

static void over(struct bed *b, uint32_t handle)
{
    must(handle < HANDLES && b->live[handle]);
    b->live[handle] = 0;
}

static void read_commands(struct bed *b)
{
    struct core_command cmd;
    while (core_next(b->core, &cmd)) {
        int peer = cmd.peer == CORE_NO_WORKER || cmd.peer < b->n_workers;
        must(peer);
        switch (cmd.kind) {
        case CORE_CMD_REJECT:
            must(cmd.reason > CORE_REASON_NONE && cmd.reason < CORE_REASON_COUNT);
            if (cmd.request < HANDLES)
                over(b, cmd.request);
            break;
        case CORE_CMD_HOLD: must(cmd.request < HANDLES); break;
        default:
            must(cmd.request < HANDLES && cmd.worker < b->n_workers);
            must(cmd.kind != CORE_CMD_DISPATCH_DECODE || cmd.peer != CORE_NO_WORKER);
        }
    }
}

static struct core_request a_request(struct bed *b, uint32_t handle)
{
    uint32_t v = byte(&b->in), *n = (uint32_t[]){0, 1, 64, 511};
    uint64_t *keys = b->keys[handle % HANDLES];
    for (uint32_t i = 0; !b->live[handle % HANDLES] && i < N_KEYS; i++)
        keys[i] = i + 1 + (i > (v & 7) ? handle * 100 : 0);
    return (struct core_request){.prompt_tok = byte(&b->in) * 4,
                                 .max_tokens = n[v >> 3 & 3],
                                 .priority = (int32_t)(v >> 5 & 3) - 1,
                                 .session = v >> 7,
                                 .tenant = handle % 3,
                                 .bytes = v,
                                 .keys = v & 128 ? keys : NULL,
                                 .n_keys = v & 15,
                                 .key_tok = v & 16 ? 48 : v & 64,
                                 .slo_ttft_ps = v & 1 ? PS_NEVER : 1000,
                                 .slo_tpot_ps = PS_NEVER};
}

static void arrive(struct bed *b, struct core_event ev)
{
    struct core_request r = a_request(b, ev.request);
    ev.req = &r;
    r.n_keys = r.n_keys > N_KEYS ? N_KEYS : r.n_keys;
    int rc = core_event(b->core, &ev);
    if (rc == 0 && ev.request < HANDLES) {
        must(!b->live[ev.request]);
        b->live[ev.request] = 1;
    }
}

static void some_event(struct bed *b)
{
    uint32_t kind = byte(&b->in), v = byte(&b->in), n = byte(&b->in);
    uint32_t request = v >> 4, worker = v & 7;
    b->now_ps += n >> 2;
    struct core_event ev = {.kind = (enum core_event_kind)(kind % (CORE_EV_TIMER + 2)),
                            .now_ps = n == 255 ? b->now_ps - 300 : b->now_ps,
                            .request = kind == 255 ? UINT32_MAX - v : request,
                            .worker = worker,
                            .n = n,
                            .partial = n & 1};
    struct core_telemetry t = {.at_ps = b->now_ps - 10 + (n & 15),
                               .running = n,
                               .waiting = v,
                               .kv_used_blocks = n,
                               .kv_total_blocks = v};
    struct core_cache_event cache = {.stored = n & 1,
                                     .depth = n >> 4,
                                     .n_blocks = n % (N_KEYS + 1),
                                     .keys = n & 2 ? b->keys[request] : NULL};
    struct core_load load = {
        .requests = v, .prefilling = n, .prefill_tok = 100 * n, .prompt_tok = 100 * v};
    if (ev.kind == CORE_EV_ARRIVAL) {
        arrive(b, ev);
        return;
    }
    if (ev.kind == CORE_EV_TELEMETRY)
        ev.telemetry = n & 8 ? &t : NULL;
    else if (ev.kind == CORE_EV_CACHE)
        ev.cache = n & 4 ? &cache : NULL;
    else if (ev.kind == CORE_EV_WORKER_ADDED)
        ev.added = n & 8 && b->config.n_workers ? &b->workers[v % b->config.n_workers] : NULL;
    else if (ev.kind == CORE_EV_DONE)
        ev.error = n & 2;
    else if (ev.kind == CORE_EV_FOREIGN)
        ev.load = n & 4 ? &load : NULL;
    int rc = core_event(b->core, &ev);
    must(rc == 0 || rc == WEIR_E_INVALID || rc == WEIR_E_LIMIT);
    if (rc == 0 && (ev.kind == CORE_EV_DONE || ev.kind == CORE_EV_CANCELLED))
        over(b, ev.request);
}

/* Limits change, or what is asked for is nonsense and they do not. */
static void reconfigure(struct bed *b)
{
    struct core_config c = b->config;
    const char *why;
    uint32_t v = byte(&b->in);
    c.max_inflight_per_worker = v & 3;
    c.queue_max_requests = v >> 2 & 3;
    c.health.breaker_failures = v >> 4 & 1;
    c.health.panic_percent = v >> 5 & 1 ? 200 : 40;
    c.retry.floor_per_s = v >> 6 & 1;
    int rc = core_reconfigure(b->core, &c, &why);
    must(rc ? rc == WEIR_E_INVALID && why : !why);
}

static void check_stats(const struct bed *b)
{
    struct core_stats s;
    uint64_t over_n = 0;
    uint32_t live = 0;
    core_get_stats(b->core, &s);
    for (int i = 0; i < CORE_REASON_COUNT; i++)
        over_n += s.rejected[i];
    must(s.arrivals == over_n + s.done + s.cancelled + s.queued + s.inflight);
    for (int i = 0; i < HANDLES; i++)
        live += b->live[i] != 0;
    must(live == s.queued + s.inflight);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bed b;
    memset(&b, 0, sizeof b);
    b.in = (struct input){data, size};
    lay(&b);
    while (b.core && b.in.left) {
        if (b.in.left > 2 && b.in.data[0] == 254) {
            (void)byte(&b.in);
            reconfigure(&b);
        } else {
            some_event(&b);
        }
        read_commands(&b);
        check_stats(&b);
        must(core_next_timer_ps(b.core) > 0);
    }
    core_free(b.core);
    return 0;
}
