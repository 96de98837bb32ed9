/* seen.c - see seen.h. */
#include "controller/serve/seen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "controller/replay/report_internal.h"
#include "controller/serve/proxy_internal.h"
#include "predictor/rng.h"

/* ---- ids */

bool seen_sane_id(struct http_slice id)
{
    static const char others[] = "-_.:~+/=@";
    if (!id.len || id.len >= REQLOG_ID_BYTES)
        return false;
    for (size_t i = 0; i < id.len; i++) {
        char c = id.s[i];
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!plain && !memchr(others, c, sizeof others - 1))
            return false;
    }
    return true;
}

/* Two rounds of splitmix64: ids are told apart, not kept secret. */
static void make_id(struct proxy_request *r)
{
    for (uint32_t half = 0; half < 2; half++) {
        uint64_t x = rng_mix64(r->proxy->id_seed += UINT64_C(0x9e3779b97f4a7c15));
        for (uint32_t i = 0; i < SEEN_MADE_ID / 2; i++, x >>= 4)
            r->seen.id[half * SEEN_MADE_ID / 2 + i] = "0123456789abcdef"[x & 15];
    }
    r->seen.id[SEEN_MADE_ID] = '\0';
}

void seen_begin(struct proxy_request *r, const struct http_head *head)
{
    struct seen *s = &r->seen;
    struct http_slice id = http_get(head, "x-request-id");
    s->asked = s->predicted = false;
    s->told.n = s->told.n_candidates = 0;
    s->decided_ns = s->held_from_ns = s->held_ns = s->sent_ns = s->head_ns = s->over_ns = 0;
    s->overlap_tok = -1;
    s->retries = 0;
    s->status = 0;
    s->outcome = s->reason = NULL;
    s->id_made = !seen_sane_id(id);
    if (s->id_made) {
        make_id(r);
        return;
    }
    memcpy(s->id, id.s, id.len);
    s->id[id.len] = '\0';
}

/* ---- on the way */

static const char *outcome_of(enum core_reason reason)
{
    return reason == CORE_REASON_RETRIES || reason == CORE_REASON_PARTIAL ? "failed" : "rejected";
}

void seen_command(struct proxy_request *r, const struct core_command *cmd,
                  const struct core_told *told)
{
    struct seen *s = &r->seen;
    uint64_t now = uv_hrtime();
    if (cmd->kind == CORE_CMD_CANCEL)
        return;
    if (cmd->kind == CORE_CMD_HOLD) {
        s->held_from_ns = now;
        return;
    }
    s->decided_ns = now;
    if (s->held_from_ns) {
        s->held_ns += now - s->held_from_ns;
        buckets_add(&r->proxy->counts.hold, BUCKETS_LATENCY, now - s->held_from_ns);
        s->held_from_ns = 0;
    }
    if (told) {
        s->told = *told;
        s->predicted = cmd->kind != CORE_CMD_REJECT && cmd->kind != CORE_CMD_DISPATCH_DECODE;
    }
    if (cmd->kind == CORE_CMD_REJECT) {
        seen_over(r, outcome_of(cmd->reason), report_reason_name(cmd->reason));
        return;
    }
    s->retries = cmd->attempt;
    if (cmd->kind != CORE_CMD_DISPATCH_DECODE)
        s->overlap_tok = cmd->overlap_tok;
}

void seen_sent(struct proxy_request *r)
{
    struct seen *s = &r->seen;
    uint64_t now = uv_hrtime();
    if (!s->sent_ns) /* what weir added: the first time, without what it waited for a worker */
        buckets_add(&r->proxy->counts.overhead, BUCKETS_SHORT,
                    now - r->arrived_ns - (s->held_ns < now - r->arrived_ns ? s->held_ns : 0));
    s->sent_ns = now;
}

static void add_number(struct http_exchange *ex, const char *name, const char *format, double x)
{
    char text[32];
    int n = snprintf(text, sizeof text, format, x);
    http_reply_field(ex, name, (struct http_slice){text, (size_t)n});
}

void seen_refusal(struct proxy_request *r, struct http_exchange *ex)
{
    http_reply_field(ex, "x-request-id", (struct http_slice){r->seen.id, strlen(r->seen.id)});
}

void seen_head(struct proxy_request *r, const struct http_head *head)
{
    struct seen *s = &r->seen;
    const struct serve_worker *workers = r->proxy->serve->workers;
    s->head_ns = uv_hrtime();
    s->status = (int)head->status;
    if (!http_get(head, "x-request-id").s)
        seen_refusal(r, r->ex);
    if (!r->proxy->conf->set.explain_headers)
        return;
    const char *name = workers[r->pool->first_worker + r->answer_leg.worker].name;
    http_reply_field(r->ex, "x-weir-worker", (struct http_slice){name, strlen(name)});
    if (s->predicted)
        add_number(r->ex, "x-weir-predicted-ttft-ms", "%.3f",
                   (double)s->told.candidates[0].ttft_ps / (double)PS_PER_MS);
    if (s->sent_ns)
        add_number(r->ex, "x-weir-overhead-us", "%.0f",
                   (double)(s->sent_ns - r->arrived_ns - s->held_ns) / 1e3);
}

/* ---- forecasts against what was */

static int64_t predicted_ttft_ns(const struct proxy_request *r)
{
    return r->seen.predicted ? r->seen.told.candidates[0].ttft_ps / PS_PER_NS : -1;
}

static int64_t predicted_tpot_ns(const struct proxy_request *r)
{
    return r->seen.predicted ? r->seen.told.candidates[0].tpot_ps / PS_PER_NS : -1;
}

static int64_t measured_tpot_ns(const struct proxy_request *r)
{
    uint32_t n = answer_output_tok(&r->answer);
    if (!r->first_told || !r->answer.stream || n < 2 || r->seen.over_ns < r->first_ns)
        return -1;
    return (int64_t)((r->seen.over_ns - r->first_ns) / (n - 1));
}

static void compare(struct buckets *predicted, struct buckets *ratio, enum buckets_kind kind,
                    int64_t was_predicted, int64_t measured)
{
    if (was_predicted <= 0 || measured < 0)
        return;
    buckets_add(predicted, kind, (uint64_t)was_predicted);
    buckets_add(ratio, BUCKETS_RATIO, (uint64_t)(1e9 * (double)measured / (double)was_predicted));
}

void seen_first(struct proxy_request *r)
{
    struct proxy_counts *c = &r->proxy->counts;
    buckets_add(&c->ttft, BUCKETS_LATENCY, r->first_ns - r->arrived_ns);
    if (r->answer.stream && r->seen.sent_ns && r->prefill.worker == CORE_NO_WORKER)
        compare(&c->predicted_ttft, &c->ttft_ratio, BUCKETS_LATENCY, predicted_ttft_ns(r),
                (int64_t)(r->first_ns - r->seen.sent_ns));
}

/* ---- the end */

void seen_over(struct proxy_request *r, const char *outcome, const char *reason)
{
    if (r->seen.outcome)
        return;
    r->seen.outcome = outcome;
    r->seen.reason = reason;
    r->seen.over_ns = uv_hrtime();
}

static int64_t since(const struct proxy_request *r, uint64_t ns)
{
    return ns >= r->arrived_ns ? (int64_t)(ns - r->arrived_ns) : -1;
}

static void name_worker(const struct proxy_request *r, uint32_t worker, char out[REQLOG_NAME_BYTES])
{
    out[0] = '\0';
    if (worker != CORE_NO_WORKER)
        snprintf(out, REQLOG_NAME_BYTES, "%.*s", (int)REQLOG_NAME_BYTES - 1,
                 r->proxy->serve->workers[r->pool->first_worker + worker].name);
}

static int64_t unix_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void remember(struct proxy_request *r, int64_t now_us)
{
    struct seen_ring *ring = &r->proxy->ring;
    uv_mutex_lock(&ring->lock);
    struct seen_recent *m = &ring->recent[ring->next++ % SEEN_RECENT];
    bool first = r->first_told && r->answer.stream && r->seen.sent_ns;
    *m = (struct seen_recent){
        .ended_us = now_us,
        .outcome = r->seen.outcome,
        .reason = r->seen.reason,
        .prompt_tok = r->answer.has_usage ? r->answer.prompt_tok : r->core.prompt_tok,
        .cached_tok = r->answer.cached_tok,
        .output_tok = answer_output_tok(&r->answer),
        .n_candidates = r->seen.told.n_candidates,
        .retries = r->seen.retries,
        .ttft_ns = first ? (int64_t)(r->first_ns - r->seen.sent_ns) : -1,
        .tpot_ns = measured_tpot_ns(r),
        .predicted_ttft_ns = predicted_ttft_ns(r),
        .predicted_tpot_ns = predicted_tpot_ns(r),
    };
    memcpy(m->id, r->seen.id, sizeof m->id);
    name_worker(r, r->answer_leg.worker, m->worker);
    uv_mutex_unlock(&ring->lock);
}

static void write_log(struct proxy_request *r, int64_t now_us)
{
    const struct seen *s = &r->seen;
    struct reqlog_entry e = {
        .arrival_us = now_us - (int64_t)(uv_hrtime() - r->arrived_ns) / 1000,
        .decided_ns = since(r, s->decided_ns),
        .sent_ns = since(r, s->sent_ns),
        .first_byte_ns = since(r, s->head_ns),
        .first_token_ns = r->first_told ? since(r, r->first_ns) : -1,
        .end_ns = since(r, s->over_ns),
        .pool = r->pool->name,
        .policy = r->pool->policy,
        .endpoint = openai_endpoint_name(r->q.endpoint),
        .status = s->outcome,
        .reason = s->reason,
        .finish = answer_finish_name(r->answer.finish),
        .http_status = s->status,
        .stream = r->q.stream,
        .has_usage = r->answer.has_usage,
        .prompt_tok = r->answer.has_usage ? r->answer.prompt_tok : r->core.prompt_tok,
        .estimated_tok = r->core.prompt_tok,
        .output_tok = answer_output_tok(&r->answer),
        .cached_tok = r->answer.cached_tok,
        .max_tokens = r->core.max_tokens,
        .retries = s->retries,
        .priority = r->core.priority,
        .session = r->core.session,
        .tenant = r->core.tenant,
        .overlap_tok = s->overlap_tok,
        .ttft_ps = s->predicted ? s->told.candidates[0].ttft_ps : -1,
        .tpot_ps = s->predicted ? s->told.candidates[0].tpot_ps : -1,
        .n_candidates = s->told.n_candidates,
        .n = s->told.n,
        .keys = r->keys,
        .n_keys = r->keys ? r->core.n_keys : 0,
        .key_tok = r->core.key_tok,
    };
    memcpy(e.id, s->id, sizeof e.id);
    memcpy(e.model, r->q.model, sizeof e.model);
    name_worker(r, r->answer_leg.worker, e.worker);
    name_worker(r, r->prefill.worker, e.prefill_worker);
    for (uint32_t i = 0; i < s->told.n; i++) {
        e.candidates[i].was = s->told.candidates[i];
        name_worker(r, s->told.candidates[i].worker, e.candidates[i].worker);
    }
    r->keys = NULL;
    reqlog_put(r->proxy->serve->log, &e);
}

void seen_end(struct proxy_request *r)
{
    struct proxy_counts *c = &r->proxy->counts;
    if (!r->seen.asked || !r->seen.outcome)
        return;
    int64_t tpot = measured_tpot_ns(r), now_us = unix_us();
    if (tpot >= 0)
        buckets_add(&c->tpot, BUCKETS_TOKEN, (uint64_t)tpot);
    compare(&c->predicted_tpot, &c->tpot_ratio, BUCKETS_TOKEN, predicted_tpot_ns(r), tpot);
    remember(r, now_us);
    if (r->proxy->serve->log)
        write_log(r, now_us);
}

uint32_t seen_recent(struct proxy *p, struct seen_recent out[SEEN_RECENT])
{
    struct seen_ring *ring = &p->ring;
    uint32_t n = 0;
    uv_mutex_lock(&ring->lock);
    for (uint32_t i = 1; i <= SEEN_RECENT && i <= ring->next; i++)
        out[n++] = ring->recent[(ring->next - i) % SEEN_RECENT];
    uv_mutex_unlock(&ring->lock);
    return n;
}
