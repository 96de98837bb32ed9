/* record.c - see record.h. */
#include "controller/state/record.h"

#include <math.h>
#include <string.h>

#include "proto/weir.pb-c.h"

const char *record_failure_name(enum record_failure f)
{
    static const char *const names[] = {"none", "unreachable", "stalled", "errors", "gpu"};
    return names[f];
}

const char *record_fault_name(enum record_fault f)
{
    static const char *const names[] = {"good",   "too_large", "malformed",
                                        "future", "wrong_key", "invalid"};
    return names[f];
}

/* ---- what both sides check */

/* Names go into headers, metrics and messages as they are. */
static bool is_plain(const char *s, size_t cap)
{
    size_t n = strnlen(s, cap);
    for (size_t i = 0; i < n; i++) {
        if (s[i] < 0x21 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\')
            return false;
    }
    return n > 0 && n < cap;
}

static bool is_text(const char *s, size_t cap)
{
    size_t n = strnlen(s, cap);
    for (size_t i = 0; i < n; i++) {
        if (s[i] < 0x20 || s[i] > 0x7e)
            return false;
    }
    return n < cap;
}

static bool is_sum(double x)
{
    return x >= 0 && x <= 1e15 && !signbit(x); /* no NaN */
}

static bool is_lease(uint32_t ms)
{
    return ms >= 1 && ms <= RECORD_MAX_LEASE_MS;
}

static bool worker_is_valid(const struct worker_record *r)
{
    for (uint32_t i = 0; i < r->n_models; i++) {
        if (!is_plain(r->models[i], RECORD_MODEL_BYTES))
            return false;
    }
    for (uint32_t i = 0; i < r->n_loras; i++) {
        if (!is_plain(r->loras[i], RECORD_MODEL_BYTES))
            return false;
    }
    return is_plain(r->name, sizeof r->name) && is_plain(r->address, sizeof r->address) &&
           (unsigned)r->role <= ROLE_DECODE && (unsigned)r->failure < RECORD_FAILURES &&
           is_text(r->failure_detail, sizeof r->failure_detail) && is_lease(r->lease_ms) &&
           r->measured_at_us >= 0 && r->sent_at_us > 0 && r->kv_total_blocks <= RECORD_MAX_BLOCKS &&
           r->kv_used_blocks <= r->kv_total_blocks && r->block_size <= ENGINE_MAX_BLOCK_SIZE &&
           is_sum(r->ttft_sum_s) && is_sum(r->itl_sum_s);
}

static bool load_is_valid(const struct worker_load *l)
{
    return is_plain(l->worker, sizeof l->worker) && l->prefilling <= l->requests &&
           l->prefill_tok <= RECORD_MAX_TOKENS && l->prompt_tok <= RECORD_MAX_TOKENS;
}

static bool dispatches_are_valid(const struct dispatches *d)
{
    for (uint32_t i = 0; i < d->n; i++) {
        if (!load_is_valid(&d->loads[i]))
            return false;
    }
    return is_plain(d->controller, sizeof d->controller) && is_lease(d->lease_ms) &&
           d->sent_at_us > 0;
}

/* ---- writing */

static int pack(const ProtobufCMessage *m, uint8_t *out, size_t cap, size_t *len)
{
    *len = protobuf_c_message_get_packed_size(m);
    if (*len > RECORD_MAX_BYTES || *len > cap)
        return WEIR_E_LIMIT;
    (void)protobuf_c_message_pack(m, out);
    return 0;
}

/* protobuf-c wants arrays of pointers, and does not write to what they point to. */
static char *borrow(const char *s)
{
    union {
        const char *in;
        char *out;
    } u = {.in = s};
    return u.out;
}

int record_write_worker(const struct worker_record *r, uint8_t *out, size_t cap, size_t *len)
{
    char *models[RECORD_MAX_MODELS], *loras[RECORD_MAX_LORAS];
    Weir__V1__WorkerRecord m = WEIR__V1__WORKER_RECORD__INIT;
    Weir__V1__CacheCounters cache = WEIR__V1__CACHE_COUNTERS__INIT;
    Weir__V1__StepStatistics steps = WEIR__V1__STEP_STATISTICS__INIT;
    if (r->n_models > RECORD_MAX_MODELS || r->n_loras > RECORD_MAX_LORAS || !worker_is_valid(r))
        return WEIR_E_INVALID;
    for (uint32_t i = 0; i < r->n_models; i++)
        models[i] = borrow(r->models[i]);
    for (uint32_t i = 0; i < r->n_loras; i++)
        loras[i] = borrow(r->loras[i]);
    m.version = RECORD_VERSION;
    m.name = borrow(r->name);
    m.address = borrow(r->address);
    m.role = (Weir__V1__Role)r->role;
    m.models = models;
    m.n_models = r->n_models;
    m.loras = loras;
    m.n_loras = r->n_loras;
    m.epoch = r->epoch;
    m.sequence = r->sequence;
    m.measured_at_us = r->measured_at_us;
    m.sent_at_us = r->sent_at_us;
    m.lease_ms = r->lease_ms;
    m.failure = (Weir__V1__Failure)r->failure;
    m.failure_detail = borrow(r->failure_detail);
    m.running = r->running;
    m.waiting = r->waiting;
    m.kv_used_blocks = r->kv_used_blocks;
    m.kv_total_blocks = r->kv_total_blocks;
    m.block_size = r->block_size;
    cache.queried_tokens = r->queried_tok;
    cache.hit_tokens = r->hit_tok;
    cache.preemptions = r->preemptions;
    steps.steps = r->steps;
    steps.prompt_tokens = r->prompt_tok;
    steps.output_tokens = r->output_tok;
    steps.ttft_seconds = r->ttft_sum_s;
    steps.ttft_count = r->ttft_count;
    steps.itl_seconds = r->itl_sum_s;
    steps.itl_count = r->itl_count;
    m.cache = &cache;
    m.steps = &steps;
    m.complete = true;
    return pack(&m.base, out, cap, len);
}

int record_write_dispatches(const struct dispatches *d, uint8_t *out, size_t cap, size_t *len)
{
    Weir__V1__WorkerLoad loads[RECORD_MAX_LOADS], *list[RECORD_MAX_LOADS];
    Weir__V1__Dispatches m = WEIR__V1__DISPATCHES__INIT;
    if (d->n > RECORD_MAX_LOADS || !dispatches_are_valid(d))
        return WEIR_E_INVALID;
    for (uint32_t i = 0; i < d->n; i++) {
        const struct worker_load *l = &d->loads[i];
        weir__v1__worker_load__init(&loads[i]);
        loads[i].worker = borrow(l->worker);
        loads[i].requests = l->requests;
        loads[i].prefilling = l->prefilling;
        loads[i].prefill_tokens = l->prefill_tok;
        loads[i].prompt_tokens = l->prompt_tok;
        list[i] = &loads[i];
    }
    m.version = RECORD_VERSION;
    m.controller = borrow(d->controller);
    m.sequence = d->sequence;
    m.sent_at_us = d->sent_at_us;
    m.lease_ms = d->lease_ms;
    m.whole = d->whole;
    m.n_workers = d->n;
    m.workers = list;
    m.complete = true;
    return pack(&m.base, out, cap, len);
}

/* ---- reading */

/* False: it does not fit. */
static bool copy(char *to, size_t cap, const char *from)
{
    size_t n = strlen(from);
    if (n >= cap)
        return false;
    memcpy(to, from, n + 1);
    return true;
}

static enum record_fault check_head(uint32_t version, bool complete, int64_t sent_at_us,
                                    int64_t now_us)
{
    if (version > RECORD_VERSION)
        return RECORD_FUTURE;
    if (!complete || !version)
        return RECORD_MALFORMED;
    if (sent_at_us > now_us && sent_at_us - now_us > RECORD_MAX_AHEAD_US)
        return RECORD_FUTURE;
    return RECORD_GOOD;
}

static bool copy_names(struct worker_record *out, const Weir__V1__WorkerRecord *m)
{
    if (m->n_models > RECORD_MAX_MODELS || m->n_loras > RECORD_MAX_LORAS)
        return false;
    out->n_models = (uint32_t)m->n_models;
    out->n_loras = (uint32_t)m->n_loras;
    bool ok = copy(out->name, sizeof out->name, m->name) &&
              copy(out->address, sizeof out->address, m->address) &&
              copy(out->failure_detail, sizeof out->failure_detail, m->failure_detail);
    for (uint32_t i = 0; ok && i < out->n_models; i++)
        ok = copy(out->models[i], RECORD_MODEL_BYTES, m->models[i]);
    for (uint32_t i = 0; ok && i < out->n_loras; i++)
        ok = copy(out->loras[i], RECORD_MODEL_BYTES, m->loras[i]);
    return ok;
}

static void copy_figures(struct worker_record *out, const Weir__V1__WorkerRecord *m)
{
    out->role = (enum worker_role)m->role;
    out->epoch = m->epoch;
    out->sequence = m->sequence;
    out->measured_at_us = m->measured_at_us;
    out->sent_at_us = m->sent_at_us;
    out->lease_ms = m->lease_ms;
    out->failure = (enum record_failure)m->failure;
    out->running = m->running;
    out->waiting = m->waiting;
    out->kv_used_blocks = m->kv_used_blocks;
    out->kv_total_blocks = m->kv_total_blocks;
    out->block_size = m->block_size;
    if (m->cache) {
        out->queried_tok = m->cache->queried_tokens;
        out->hit_tok = m->cache->hit_tokens;
        out->preemptions = m->cache->preemptions;
    }
    if (m->steps) {
        out->steps = m->steps->steps;
        out->prompt_tok = m->steps->prompt_tokens;
        out->output_tok = m->steps->output_tokens;
        out->ttft_sum_s = m->steps->ttft_seconds;
        out->ttft_count = m->steps->ttft_count;
        out->itl_sum_s = m->steps->itl_seconds;
        out->itl_count = m->steps->itl_count;
    }
}

enum record_fault record_read_worker(struct worker_record *out, const char *name, const void *bytes,
                                     size_t len, int64_t now_us)
{
    if (len > RECORD_MAX_BYTES)
        return RECORD_TOO_LARGE;
    Weir__V1__WorkerRecord *m = weir__v1__worker_record__unpack(NULL, len, bytes);
    if (!m)
        return RECORD_MALFORMED;
    memset(out, 0, sizeof *out);
    enum record_fault fault = check_head(m->version, m->complete, m->sent_at_us, now_us);
    if (!fault && (m->measured_at_us > now_us + RECORD_MAX_AHEAD_US))
        fault = RECORD_FUTURE;
    if (!fault && name && strcmp(name, m->name) != 0)
        fault = RECORD_WRONG_KEY;
    if (!fault && !copy_names(out, m))
        fault = RECORD_INVALID;
    if (!fault) {
        copy_figures(out, m);
        if (!worker_is_valid(out))
            fault = RECORD_INVALID;
    }
    weir__v1__worker_record__free_unpacked(m, NULL);
    return fault;
}

static bool copy_load(struct worker_load *out, const Weir__V1__WorkerLoad *m)
{
    out->requests = m->requests;
    out->prefilling = m->prefilling;
    out->prefill_tok = m->prefill_tokens;
    out->prompt_tok = m->prompt_tokens;
    return copy(out->worker, sizeof out->worker, m->worker);
}

enum record_fault record_read_dispatches(struct dispatches *out, const void *bytes, size_t len,
                                         int64_t now_us)
{
    struct worker_load *loads = out->loads;
    if (len > RECORD_MAX_BYTES)
        return RECORD_TOO_LARGE;
    Weir__V1__Dispatches *m = weir__v1__dispatches__unpack(NULL, len, bytes);
    if (!m)
        return RECORD_MALFORMED;
    *out = (struct dispatches){.loads = loads,
                               .sequence = m->sequence,
                               .sent_at_us = m->sent_at_us,
                               .lease_ms = m->lease_ms,
                               .whole = m->whole};
    enum record_fault fault = check_head(m->version, m->complete, m->sent_at_us, now_us);
    bool ok = m->n_workers <= RECORD_MAX_LOADS &&
              copy(out->controller, sizeof out->controller, m->controller);
    for (size_t i = 0; !fault && ok && i < m->n_workers; i++) {
        ok = copy_load(&loads[i], m->workers[i]);
        out->n++;
    }
    if (!fault && (!ok || !dispatches_are_valid(out)))
        fault = RECORD_INVALID;
    weir__v1__dispatches__free_unpacked(m, NULL);
    return fault;
}
