/* mock.c - `weir mock`: an OpenAI-compatible engine with physics of its own and nothing to say, for trying a controller
 * without a GPU and for breaking things on purpose.
 *
 *   POST /v1/chat/completions, /v1/completions      streamed or not; `max_tokens` tokens come (16 without)
 *   GET  /v1/models /health /metrics                metrics under vLLM's names
 *   POST /mock/fault                                {"kind":"hang|slow|error|cut|crash|mute|none", "factor":2, "share":0.1}
 *   with --kv-events: what its prefix cache has and loses, over ZeroMQ (mock_kv.h)
 *
 * Prefill and decode apart as vLLM's NIXL connector does it: kv_transfer_params with do_remote_decode hold the KV and
 * come back with the answer; with do_remote_prefill the prompt's KV is taken as there.
 */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <uv.h>
#include <yyjson.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/http/http_server.h"
#include "controller/mock/mock_answer.h"
#include "controller/mock/mock_engine.h"
#include "controller/mock/mock_kv.h"
#include "controller/openai/json_edit.h"
#include "controller/openai/openai_error.h"
#include "controller/openai/openai_request.h"
#include "controller/replay/profile.h"

#define COMMAND "mock"

#define DEFAULT_MAX_TOKENS 16u
#define BYTES_PER_TOK 4u
#define NONE UINT32_MAX

enum fault_kind_mock {
    MOCK_NONE,
    MOCK_HANG,
    MOCK_SLOW,
    MOCK_ERROR,
    MOCK_CUT,
    MOCK_CRASH,
    MOCK_MUTE
};

struct live {
    struct http_exchange *ex; /* NULL: free, or KV held for a pull */
    struct openai_request q;
    struct mock_answer answer;
    uint64_t *keys, uid;
    uint32_t *
        ids; /* of a prompt that came as token ids, where KV events are published; n_ids 0: it did not */
    uint32_t n_ids;
    char *salt; /* likewise */
    uint32_t prompt_tok, limit, out;
    bool prefill_only, held, cut;
    int64_t arrived_ps, last_ps;
    uint32_t next_free;
};

struct mock {
    uv_loop_t uv;
    struct http_loop *http;
    struct http_server *server;
    uv_timer_t step;
    uv_signal_t term, intr;
    struct mock_engine *engine;
    struct openai_reader *reader;
    struct live *live;
    uint32_t n_live, free_live;
    uint64_t uid, start_ns;
    char model[OPENAI_NAME_BYTES];
    struct mock_text text; /* of the answer that is being written */
    struct rng rng;
    enum fault_kind_mock fault;
    double fault_share;
    struct mock_kv *kv; /* NULL: no events are published */
    struct mock_batch batch;
    /* counters of /metrics */
    uint64_t ttft_count, itl_count, requests;
    double ttft_sum_s, itl_sum_s;
};

static int64_t now_ps(const struct mock *m)
{
    return (int64_t)(uv_hrtime() - m->start_ns) * PS_PER_NS;
}

/* ---- steps */

static void on_step(uv_timer_t *timer);

static void publish(struct mock *m);

static void go_on(struct mock *m)
{
    if (m->fault == MOCK_HANG || mock_engine_stepping(m->engine))
        return;
    int64_t took = mock_engine_step_begin(m->engine, now_ps(m));
    if (took)
        uv_timer_start(&m->step, on_step, (uint64_t)((took + PS_PER_MS / 2) / PS_PER_MS), 0);
}

static void on_step(uv_timer_t *timer)
{
    struct mock *m = timer->data;
    if (m->fault == MOCK_HANG)
        return;
    mock_engine_step_end(m->engine, now_ps(m));
    publish(m);
    go_on(m);
}

/* ---- requests */

static uint32_t live_new(struct mock *m)
{
    uint32_t h = m->free_live;
    if (h != NONE) {
        m->free_live = m->live[h].next_free;
    } else {
        if (m->n_live == MOCK_MAX_REQUESTS)
            return NONE;
        h = m->n_live++;
    }
    m->live[h] = (struct live){.last_ps = -1};
    return h;
}

static void live_deinit(struct live *l)
{
    free(l->keys);
    free(l->ids);
    free(l->salt);
    mock_answer_deinit(&l->answer);
}

static void live_free(struct mock *m, uint32_t h)
{
    live_deinit(&m->live[h]);
    m->live[h] = (struct live){.next_free = m->free_live};
    m->free_live = h;
}

static void refuse(struct http_exchange *ex, int status, const char *message)
{
    char body[OPENAI_ERROR_BODY_BYTES];
    struct openai_error e = {status, status < 500 ? "invalid_request_error" : "server_error", NULL,
                             message, NULL};
    size_t n = openai_error_body(body, &e);
    http_reply(ex, status, "application/json", (struct http_slice){body, n});
}

/* What was put together goes out. */
static void send_text(struct mock *m, struct live *l, bool last)
{
    struct http_slice s = {m->text.s, m->text.len};
    http_reply_send(l->ex, &s, 1, last);
    m->text.len = 0;
}

static void start_stream(struct mock *m, struct live *l)
{
    http_reply_head(l->ex, 200, HTTP_UNKNOWN_LENGTH);
    http_reply_field(l->ex, "Content-Type", HTTP_SLICE("text/event-stream; charset=utf-8"));
    mock_answer_open(&l->answer, &m->text);
}

/* The fault of an answer that is cut in the middle. */
static void cut_off(struct mock *m, uint32_t h)
{
    struct http_exchange *ex = m->live[h].ex;
    m->live[h].ex = NULL;
    http_exchange_abort(ex);
    mock_engine_abort(m->engine, now_ps(m), h);
    live_free(m, h);
}

static void on_token(void *ctx, uint32_t h, uint32_t n)
{
    struct mock *m = ctx;
    struct live *l = &m->live[h];
    int64_t now = now_ps(m);
    if (l->last_ps < 0) {
        m->ttft_count++;
        m->ttft_sum_s += (double)(now - l->arrived_ps) / (double)PS_PER_S;
    } else {
        m->itl_count += n;
        m->itl_sum_s += (double)(now - l->last_ps) / (double)PS_PER_S;
    }
    l->last_ps = now;
    l->out += n;
    if (!l->ex || !l->q.stream)
        return;
    if (!http_reply_started(l->ex))
        start_stream(m, l);
    if (l->cut && l->out * 2 > l->limit) {
        cut_off(m, h);
        return;
    }
    mock_answer_tokens(&l->answer, n, l->out >= l->limit, &m->text);
    send_text(m, l, false);
}

static void end_stream(struct mock *m, struct live *l, const struct mock_usage *usage)
{
    mock_answer_close(&l->answer, l->q.include_usage ? usage : NULL, &m->text);
    send_text(m, l, true);
}

/* The whole answer at once; params: kv_transfer_params, or "". */
static void reply_document(struct mock *m, struct live *l, const struct mock_usage *usage,
                           const char *params)
{
    mock_answer_document(&l->answer, usage, params, &m->text);
    if (m->text.short_of) {
        m->text.len = 0;
        refuse(l->ex, 503, "out of memory");
        return;
    }
    if (l->cut) { /* the fault of a length that is a lie: more is promised than comes */
        struct http_slice s = {m->text.s, m->text.len};
        http_reply_head(l->ex, 200, s.len + 1);
        http_reply_field(l->ex, "Content-Type", HTTP_SLICE("application/json"));
        http_reply_send(l->ex, &s, 1, false);
        http_exchange_abort(l->ex);
    } else {
        http_reply(l->ex, 200, "application/json", (struct http_slice){m->text.s, m->text.len});
    }
    m->text.len = 0;
}

static struct mock_usage usage_of(const struct live *l, const struct engine_record *record)
{
    return (struct mock_usage){l->prompt_tok, l->out, record->reused_tok};
}

static void on_done(void *ctx, uint32_t h, const struct engine_record *record)
{
    struct mock *m = ctx;
    struct live *l = &m->live[h];
    struct mock_usage usage = usage_of(l, record);
    if (l->ex && l->q.stream)
        end_stream(m, l, &usage);
    else if (l->ex)
        reply_document(m, l, &usage, "");
    live_free(m, h);
}

/* The KV waits to be pulled: the answer says where. It is held until the decode side asks for it. */
static void on_prefilled(void *ctx, uint32_t h, const struct engine_record *record)
{
    struct mock *m = ctx;
    struct live *l = &m->live[h];
    char params[400];
    l->held = true;
    if (!l->ex)
        return;
    l->out = 1;
    struct mock_usage usage = usage_of(l, record);
    snprintf(
        params, sizeof params,
        ",\"kv_transfer_params\":{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[1]],"
        "\"remote_engine_id\":\"mock\",\"remote_host\":\"127.0.0.1\",\"remote_port\":%u,\"remote_handle\":%u}",
        http_server_port(m->server), h);
    reply_document(m, l, &usage, params);
    l->ex = NULL;
}

/* ---- KV events */

static uint32_t key_tok_of(const struct live *l)
{
    return l->q.key_tok ? l->q.key_tok : OPENAI_CHUNK_BYTES / BYTES_PER_TOK;
}

/* What the engine calls a request's block (request.h). */
static uint64_t block_name(const struct mock *m, const struct live *l, uint32_t depth)
{
    uint32_t end_tok = (depth + 1) * engine_config_of(mock_engine_inner(m->engine))->block_size;
    uint32_t key = (end_tok - 1) / key_tok_of(l);
    return l->keys && key < l->q.n_keys && end_tok <= l->prompt_tok ? l->keys[key]
                                                                    : request_generated_key(l->uid);
}

static uint64_t block_hash(uint64_t name, uint32_t depth)
{
    return rng_mix64(name + depth);
}

/* Ids of a block: those of the prompt, or what a tokenizer might have made of its text. */
static void block_ids(const struct mock *m, const struct live *l, uint32_t depth, uint32_t *ids)
{
    uint32_t size = engine_config_of(mock_engine_inner(m->engine))->block_size, at = depth * size;
    uint64_t name = block_name(m, l, depth);
    for (uint32_t i = 0; i < size; i++)
        ids[i] = at + i < l->n_ids ? l->ids[at + i] : (uint32_t)(rng_mix64(name + at + i) % 128000);
}

/* The request whose block this is. NULL: it has left. */
static const struct live *owner_of(const struct mock *m, uint64_t name, uint32_t depth)
{
    for (uint32_t h = 0; h < m->n_live; h++) {
        if (m->live[h].limit && block_name(m, &m->live[h], depth) == name)
            return &m->live[h];
    }
    return NULL;
}

static void store(struct mock *m, const struct engine_cache_change *c)
{
    uint32_t size = engine_config_of(mock_engine_inner(m->engine))->block_size, n = 0;
    const struct live *l = owner_of(m, c->names[0], c->depth);
    uint64_t *hashes = calloc(c->n_blocks, sizeof *hashes), parent;
    uint32_t *ids = calloc((size_t)c->n_blocks * size, sizeof *ids);
    while (l && hashes && ids && n < c->n_blocks && block_name(m, l, c->depth + n) == c->names[n]) {
        hashes[n] = block_hash(c->names[n], c->depth + n);
        block_ids(m, l, c->depth + n, ids + (size_t)n * size);
        n++;
    }
    if (n) {
        if (c->depth)
            parent = block_hash(block_name(m, l, c->depth - 1), c->depth - 1);
        mock_batch_stored(&m->batch, hashes, n, c->depth ? &parent : NULL, ids, size,
                          c->depth ? NULL : l->salt);
    }
    free(hashes);
    free(ids);
}

static void on_cache(void *ctx, const struct engine_cache_change *c)
{
    struct mock *m = ctx;
    if (!m->kv || !c->n_blocks)
        return;
    if (c->stored) {
        store(m, c);
        return;
    }
    for (uint32_t i = 0; i < c->n_blocks; i++) {
        uint64_t hash = block_hash(c->names[i], c->depth + i);
        mock_batch_removed(&m->batch, &hash, 1);
    }
}

static void publish(struct mock *m)
{
    if (!m->kv || !m->batch.n)
        return;
    mock_kv_publish(m->kv, mock_batch_end(&m->batch, (double)uv_hrtime() / 1e9),
                    m->fault == MOCK_MUTE);
}

/* What publishing needs of a body beside what openai_request_read makes of it. */
static void keep_ids(struct live *l, struct http_slice body)
{
    yyjson_doc *doc = yyjson_read(body.s, body.len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *prompt = yyjson_obj_get(root, "prompt"), *id;
    const char *salt = yyjson_get_str(yyjson_obj_get(root, "cache_salt"));
    size_t i, n;
    l->salt = salt && *salt ? strdup(salt) : NULL;
    if (l->q.key_tok && yyjson_is_uint(yyjson_arr_get_first(prompt)) &&
        (l->ids = calloc(yyjson_arr_size(prompt), sizeof *l->ids))) {
        yyjson_arr_foreach (prompt, i, n, id)
            l->ids[l->n_ids++] = (uint32_t)yyjson_get_uint(id);
    }
    yyjson_doc_free(doc);
}

static const struct mock_ops engine_ops = {
    .token = on_token, .done = on_done, .prefilled = on_prefilled, .cache = on_cache};

static unsigned transfer_flags(struct http_slice body)
{
    struct json_slice v, flag;
    if (!json_member(body.s, body.len, "kv_transfer_params", &v))
        return 0;
    if (json_member(v.s, v.len, "do_remote_decode", &flag) && flag.len == 4)
        return ENGINE_PREFILL_ONLY;
    if (json_member(v.s, v.len, "do_remote_prefill", &flag) && flag.len == 4)
        return ENGINE_REMOTE_KV;
    return 0;
}

static void submit(struct mock *m, uint32_t h, unsigned flags)
{
    struct live *l = &m->live[h];
    l->uid = ++m->uid;
    struct request_spec s = {.uid = l->uid,
                             .prompt_tok = l->prompt_tok,
                             .output_tok = l->limit,
                             .max_tokens = l->limit,
                             .priority = l->q.priority,
                             .arrival_ps = l->arrived_ps,
                             .keys = l->keys,
                             .n_keys = l->keys ? l->q.n_keys : 0,
                             .key_tok = l->keys ? key_tok_of(l) : 0};
    int rc = mock_engine_submit(m->engine, l->arrived_ps, &s, h, flags);
    if (!rc) {
        go_on(m);
        return;
    }
    struct http_exchange *ex = l->ex;
    live_free(m, h);
    refuse(ex, 400, "the prompt and max_tokens are larger than this engine's context or KV cache");
}

static void generate(struct mock *m, struct http_exchange *ex, enum openai_endpoint endpoint)
{
    struct http_slice body = http_request_body(ex);
    char error[OPENAI_ERROR_BYTES];
    const char *param;
    struct openai_request q;
    m->requests++;
    if (openai_request_read(m->reader, endpoint, body.s, body.len, &q, error, &param)) {
        refuse(ex, 400, error);
        return;
    }
    if (q.model[0] && strcmp(q.model, m->model)) {
        refuse(ex, 404, "the model does not exist");
        return;
    }
    if (m->fault == MOCK_ERROR && rng_unit(&m->rng) < m->fault_share) {
        refuse(ex, 503, "a fault that was asked for");
        return;
    }
    uint32_t h = live_new(m);
    if (h == NONE) {
        refuse(ex, 503, "too many requests at once");
        return;
    }
    struct live *l = &m->live[h];
    l->ex = ex;
    l->q = q;
    l->arrived_ps = now_ps(m);
    l->answer = (struct mock_answer){.id = rng_mix64(m->start_ns + m->requests),
                                     .created_s = (int64_t)time(NULL),
                                     .model = m->model,
                                     .chat = endpoint == OPENAI_CHAT,
                                     .choices = q.choices};
    if (l->answer.chat && mock_answer_tools(&l->answer, body.s, body.len)) {
        live_free(m, h);
        refuse(ex, 400, "'tool_choice' asks for a function that 'tools' does not have");
        return;
    }
    l->limit = q.max_tokens ? q.max_tokens : DEFAULT_MAX_TOKENS;
    if (l->answer.arguments) /* a call is as long as its arguments */
        l->limit = mock_answer_tool_tok(&l->answer);
    l->prompt_tok = q.prompt_tok ? q.prompt_tok : (uint32_t)(q.prompt_bytes / BYTES_PER_TOK + 1);
    l->cut = m->fault == MOCK_CUT && rng_unit(&m->rng) < m->fault_share;
    if (q.n_keys && (l->keys = malloc(q.n_keys * sizeof *l->keys)))
        memcpy(l->keys, q.keys, q.n_keys * sizeof *l->keys);
    if (!q.key_tok && l->keys) /* keys never reach beyond the prompt */
        l->q.n_keys = q.n_keys < l->prompt_tok * BYTES_PER_TOK / OPENAI_CHUNK_BYTES
                          ? q.n_keys
                          : l->prompt_tok * BYTES_PER_TOK / OPENAI_CHUNK_BYTES;
    http_exchange_set_user(ex, (void *)(uintptr_t)(h + 1));
    unsigned flags = transfer_flags(body);
    if (m->kv)
        keep_ids(l, body);
    http_exchange_release(ex);
    submit(m, h, flags);
}

/* ---- the other paths */

static void reply_metrics(struct mock *m, struct http_exchange *ex)
{
    struct engine_load load;
    struct engine_stats st;
    const struct engine *e = mock_engine_inner(m->engine);
    char text[4096];
    engine_get_load(e, now_ps(m), &load);
    engine_get_stats(e, &st);
    double used = load.kv_total_blocks ? (double)load.kv_used_blocks / load.kv_total_blocks : 0;
    int n = snprintf(text, sizeof text,
                     "vllm:num_requests_running{engine=\"0\",model_name=\"%s\"} %u\n"
                     "vllm:num_requests_waiting{engine=\"0\",model_name=\"%s\"} %u\n"
                     "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"%s\"} %.6f\n"
                     "vllm:cache_config_info{block_size=\"%u\",num_gpu_blocks=\"%u\"} 1\n"
                     "vllm:num_preemptions_total{engine=\"0\"} %" PRIu64 "\n"
                     "vllm:prompt_tokens_total{engine=\"0\"} %" PRIu64
                     "\nvllm:generation_tokens_total{engine=\"0\"} %" PRIu64 "\n"
                     "vllm:prefix_cache_hits_total{engine=\"0\"} %" PRIu64 "\n"
                     "vllm:prefix_cache_queries_total{engine=\"0\"} %" PRIu64 "\n"
                     "vllm:time_to_first_token_seconds_sum{engine=\"0\"} %.6f\n"
                     "vllm:time_to_first_token_seconds_count{engine=\"0\"} %" PRIu64 "\n"
                     "vllm:inter_token_latency_seconds_sum{engine=\"0\"} %.6f\n"
                     "vllm:inter_token_latency_seconds_count{engine=\"0\"} %" PRIu64 "\n"
                     "vllm:iteration_tokens_total_count{engine=\"0\"} %" PRIu64 "\n",
                     m->model, load.running, m->model, load.waiting, m->model, used,
                     engine_config_of(e)->block_size, engine_config_of(e)->num_gpu_blocks,
                     st.preemptions, st.prompt_tok + st.reused_tok, st.output_tok, st.reused_tok,
                     st.prompt_tok + st.reused_tok, m->ttft_sum_s, m->ttft_count, m->itl_sum_s,
                     m->itl_count, st.passes);
    http_reply(ex, 200, "text/plain; version=0.0.4", (struct http_slice){text, (size_t)n});
}

static void set_fault(struct mock *m, struct http_exchange *ex)
{
    static const char *const names[] = {"none", "hang", "slow", "error", "cut", "crash", "mute"};
    struct http_slice body = http_request_body(ex);
    yyjson_doc *doc = yyjson_read(body.s, body.len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    const char *kind = yyjson_get_str(yyjson_obj_get(root, "kind"));
    yyjson_val *factor = yyjson_obj_get(root, "factor"), *share = yyjson_obj_get(root, "share");
    int found = -1;
    for (int i = 0; kind && i < 7; i++) {
        if (!strcmp(kind, names[i]))
            found = i;
    }
    double f = factor ? yyjson_get_num(factor) : 1;
    m->fault_share = share ? yyjson_get_num(share) : 1;
    yyjson_doc_free(doc);
    if (found < 0 || !(f > 0 && f <= 1000)) {
        refuse(ex, 400,
               "kind must be none, hang, slow, error, cut, crash or mute; factor from 0 to 1000");
        return;
    }
    m->fault = (enum fault_kind_mock)found;
    mock_engine_slow(m->engine, m->fault == MOCK_SLOW ? f : 1);
    if (m->fault == MOCK_CRASH)
        _exit(70); /* as if killed: no goodbye */
    http_reply(ex, 200, "application/json", HTTP_SLICE("{\"ok\":true}"));
    if (mock_engine_stepping(m->engine) && m->fault != MOCK_HANG &&
        !uv_is_active((uv_handle_t *)&m->step))
        uv_timer_start(&m->step, on_step, 0, 0); /* the step that hung goes on */
    else
        go_on(m);
}

static bool at(struct http_slice path, const char *text)
{
    return strlen(text) == path.len && !memcmp(path.s, text, path.len);
}

static void on_request(void *user, struct http_exchange *ex)
{
    struct mock *m = user;
    const struct http_head *head = http_request_head(ex);
    struct http_slice path = http_target(head);
    enum openai_endpoint endpoint = openai_endpoint_of(path.s, path.len);
    char text[OPENAI_NAME_BYTES + 128];
    if (head->method == HTTP_M_POST &&
        (endpoint == OPENAI_CHAT || endpoint == OPENAI_COMPLETIONS)) {
        generate(m, ex, endpoint);
    } else if (head->method == HTTP_M_POST && at(path, "/mock/fault")) {
        set_fault(m, ex);
    } else if (at(path, "/health")) {
        http_reply(ex, 200, NULL, HTTP_SLICE(""));
    } else if (at(path, "/metrics")) {
        reply_metrics(m, ex);
    } else if (endpoint == OPENAI_MODELS) {
        int n = snprintf(
            text, sizeof text,
            "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"owned_by\":\"weir\"}]}",
            m->model);
        http_reply(ex, 200, "application/json", (struct http_slice){text, (size_t)n});
    } else {
        refuse(
            ex, 404,
            "this mock engine has /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics");
    }
}

static void on_gone(void *user, struct http_exchange *ex, enum http_gone why)
{
    struct mock *m = user;
    uintptr_t id = (uintptr_t)http_exchange_user(ex);
    (void)why;
    if (!id)
        return;
    uint32_t h = (uint32_t)(id - 1);
    mock_engine_abort(m->engine, now_ps(m), h);
    live_free(m, h);
}

static const struct http_server_ops server_ops = {.request = on_request, .gone = on_gone};

/* ---- options and life */

static const char help[] =
    "usage: weir mock [OPTIONS]\n"
    "\n"
    "An OpenAI-compatible engine without a model: it schedules, caches prefixes and takes as long as a real one would,\n"
    "by step times of its own. For trying `weir serve` without a GPU, and for breaking things on purpose.\n"
    "\n"
    "      --port N             on 127.0.0.1 (8001); 0: the system chooses\n"
    "      --host ADDRESS       (127.0.0.1)\n"
    "      --model NAME         (mock)\n"
    "      --profile NAME       step times: a name in deploy/profiles or a file (Llama-3.1-8B on one H100)\n"
    "      --scale X            steps take X times as long (1)\n"
    "      --jitter X           relative standard deviation of a step, 0 to 0.5 (0.03)\n"
    "      --seed N             (1)\n"
    "      --num-gpu-blocks N, --block-size N, --max-num-seqs N, --max-num-batched-tokens N, --max-model-len N\n"
    "                           as in a serve command of vLLM (27000, 16, 256, 8192, none)\n"
    "      --kv-events PORT     publish KV events there, as vLLM does (PUB); 0: the system chooses\n"
    "      --kv-replay PORT     replay them there (ROUTER; 0)\n"
    "      --kv-encoding NAME   map (vLLM since June 2026), array (before), sglang (map)\n"
    "  -h, --help\n"
    "\n"
    "POST /mock/fault {\"kind\": \"hang\"}: stops generating but answers /health; slow (factor), error (share of requests\n"
    "that get a 503), cut (share of answers that end in the middle: streams, and documents shorter than their length), crash,\n"
    "mute (KV events are replayed but not published), none.\n";

enum {
    M_PORT = 256,
    M_HOST,
    M_MODEL,
    M_PROFILE,
    M_SCALE,
    M_JITTER,
    M_SEED,
    M_BLOCKS,
    M_BLOCK,
    M_SEQS,
    M_TOKENS,
    M_LEN,
    M_KV,
    M_KV_REPLAY,
    M_KV_ENCODING
};

static const struct option long_options[] = {
    {"port", required_argument, NULL, M_PORT},
    {"host", required_argument, NULL, M_HOST},
    {"model", required_argument, NULL, M_MODEL},
    {"profile", required_argument, NULL, M_PROFILE},
    {"scale", required_argument, NULL, M_SCALE},
    {"jitter", required_argument, NULL, M_JITTER},
    {"seed", required_argument, NULL, M_SEED},
    {"num-gpu-blocks", required_argument, NULL, M_BLOCKS},
    {"block-size", required_argument, NULL, M_BLOCK},
    {"max-num-seqs", required_argument, NULL, M_SEQS},
    {"max-num-batched-tokens", required_argument, NULL, M_TOKENS},
    {"max-model-len", required_argument, NULL, M_LEN},
    {"kv-events", required_argument, NULL, M_KV},
    {"kv-replay", required_argument, NULL, M_KV_REPLAY},
    {"kv-encoding", required_argument, NULL, M_KV_ENCODING},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

struct settings {
    struct mock_options engine;
    const char *host, *model, *profile;
    uint32_t port, kv_port, kv_replay_port;
    bool kv;
    enum mock_encoding encoding;
    double scale;
};

static int whole(const char *name, uint32_t min, uint32_t max, uint32_t *out)
{
    uint64_t x;
    if (!cli_whole(optarg, min, max, &x))
        return cli_fail(COMMAND, "--%s takes a whole number from %u to %u, not '%s'", name, min,
                        max, optarg);
    *out = (uint32_t)x;
    return 0;
}

static int real(const char *name, double min, double max, double *out)
{
    char *end;
    *out = strtod(optarg, &end);
    if (!*optarg || *end || !(*out >= min && *out <= max))
        return cli_fail(COMMAND, "--%s takes a number from %g to %g, not '%s'", name, min, max,
                        optarg);
    return 0;
}

static int read_encoding(struct settings *s)
{
    for (int i = 0; i < MOCK_ENC_COUNT; i++) {
        if (!strcmp(optarg, mock_encoding_names[i])) {
            s->encoding = (enum mock_encoding)i;
            return 0;
        }
    }
    return cli_fail(COMMAND, "--kv-encoding takes map, array or sglang, not '%s'", optarg);
}

static int read_option(struct settings *s, int opt)
{
    struct engine_config *e = &s->engine.engine;
    uint32_t seed = 0;
    int rc;
    switch (opt) {
    case M_PORT: return whole("port", 0, 65535, &s->port);
    case M_HOST: s->host = optarg; return 0;
    case M_MODEL:
        s->model = optarg;
        return strlen(optarg) < 200 && !strpbrk(optarg, "\"\\\n") && *optarg
                   ? 0
                   : cli_fail(COMMAND, "--model takes a name of 1 to 199 bytes without quotes");
    case M_PROFILE: s->profile = optarg; return 0;
    case M_SCALE: return real("scale", 1e-3, 1e3, &s->scale);
    case M_JITTER: return real("jitter", 0, 0.5, &s->engine.jitter);
    case M_SEED:
        rc = whole("seed", 0, UINT32_MAX, &seed);
        s->engine.seed = seed;
        return rc;
    case M_BLOCKS: return whole("num-gpu-blocks", 2, ENGINE_MAX_BLOCKS, &e->num_gpu_blocks);
    case M_BLOCK: return whole("block-size", 1, ENGINE_MAX_BLOCK_SIZE, &e->block_size);
    case M_SEQS: return whole("max-num-seqs", 1, ENGINE_MAX_SEQS, &e->max_num_seqs);
    case M_TOKENS:
        return whole("max-num-batched-tokens", 1, ENGINE_MAX_TOKENS, &e->max_num_batched_tokens);
    case M_LEN: return whole("max-model-len", 1, ENGINE_MAX_TOKENS, &e->max_model_len);
    case M_KV: s->kv = true; return whole("kv-events", 0, 65535, &s->kv_port);
    case M_KV_REPLAY: return whole("kv-replay", 0, 65535, &s->kv_replay_port);
    case M_KV_ENCODING: return read_encoding(s);
    case 'h': fputs(help, stdout); return -1;
    default: return cli_fail(COMMAND, "see weir mock --help");
    }
}

static int read_physics(struct settings *s)
{
    struct stack stack;
    struct step_params p;
    struct profile_dirs dirs;
    char error[STACK_ERROR_BYTES];
    const char *why = NULL;
    uint32_t gpus;
    stack_default(&stack, 1);
    p = stack.pools[0].step;
    stack_deinit(&stack);
    profile_dirs_init(&dirs);
    if (s->profile && profile_find(&p, &s->engine.engine.kv_bytes_per_token, &gpus, s->profile, "",
                                   dirs.list, "--profile", error))
        return cli_fail(COMMAND, "%s", error);
    p.scale = (p.scale > 0 ? p.scale : 1) * s->scale;
    if (step_model_init(&s->engine.engine.step, &p, &why) ||
        engine_config_check(&s->engine.engine, &why))
        return cli_fail(COMMAND, "%s", why);
    return 0;
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct mock *m = handle->data;
    (void)number;
    http_server_close(m->server);
    mock_kv_close(m->kv);
    uv_close((uv_handle_t *)&m->step, NULL);
    uv_close((uv_handle_t *)&m->term, NULL);
    uv_close((uv_handle_t *)&m->intr, NULL);
    http_loop_free(m->http);
}

static int open_all(struct mock *m, const struct settings *s)
{
    struct http_server_options o;
    char error[HTTP_ERROR_BYTES];
    m->engine = mock_engine_new(&s->engine, &engine_ops, m);
    m->reader = openai_reader_new();
    m->live = calloc(MOCK_MAX_REQUESTS, sizeof *m->live);
    if (!m->engine || !m->reader || !m->live || uv_loop_init(&m->uv) ||
        !(m->http = http_loop_new(&m->uv)))
        return cli_fail(COMMAND, "out of memory");
    m->free_live = NONE;
    m->start_ns = uv_hrtime();
    rng_init(&m->rng, s->engine.seed);
    snprintf(m->model, sizeof m->model, "%s", s->model);
    http_server_defaults(&o);
    o.host = s->host;
    o.port = (uint16_t)s->port;
    m->server = http_server_new(m->http, &o, &server_ops, m, error);
    if (!m->server)
        return cli_fail(COMMAND, "%s", error);
    const char *why;
    if (s->kv && !(m->kv = mock_kv_new(&m->uv, s->host, s->kv_port, s->kv_replay_port, &why)))
        return cli_fail(COMMAND, "KV events on %s:%u, replay on %u: %s", s->host, s->kv_port,
                        s->kv_replay_port, why);
    m->batch.encoding = s->encoding;
    uv_timer_init(&m->uv, &m->step);
    uv_signal_init(&m->uv, &m->term);
    uv_signal_init(&m->uv, &m->intr);
    m->step.data = m->term.data = m->intr.data = m;
    uv_signal_start(&m->term, on_signal, SIGTERM);
    uv_signal_start(&m->intr, on_signal, SIGINT);
    return 0;
}

int mock_main(int argc, char **argv)
{
    static struct mock m;
    struct settings s = {.host = "127.0.0.1", .model = "mock", .port = 8001, .scale = 1};
    int opt, rc = 0;
    engine_config_default(&s.engine.engine, SCHED_VLLM);
    s.engine.engine.num_gpu_blocks = 27000;
    s.engine.engine.block_size = 16;
    s.engine.jitter = 0.03;
    s.engine.seed = 1;
    optind = 1;
    while (!rc && (opt = getopt_long(argc, argv, "h", long_options, NULL)) != -1)
        rc = read_option(&s, opt);
    if (!rc && optind < argc)
        rc = cli_fail(COMMAND, "'%s' is not an option (see weir mock --help)", argv[optind]);
    if (!rc)
        rc = read_physics(&s);
    if (!rc)
        rc = open_all(&m, &s);
    if (rc)
        return rc < 0 ? 0 : rc;
    signal(SIGPIPE, SIG_IGN);
    printf("weir mock: %s on %s:%u", m.model, s.host, http_server_port(m.server));
    if (m.kv)
        printf(", KV events on %s:%u, replay on %s:%u", s.host, mock_kv_port(m.kv), s.host,
               mock_kv_replay_port(m.kv));
    putchar('\n');
    fflush(stdout);
    uv_run(&m.uv, UV_RUN_DEFAULT);
    uv_loop_close(&m.uv);
    for (uint32_t i = 0; i < m.n_live; i++)
        live_deinit(&m.live[i]);
    mock_batch_deinit(&m.batch);
    mock_text_deinit(&m.text);
    mock_engine_free(m.engine);
    openai_reader_free(m.reader);
    free(m.live);
    return 0;
}
