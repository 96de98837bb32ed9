/* recording.c - reads a recorded run; see recording.h. */
#include "bench/fidelity/recording.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yyjson.h>

#include "controller/replay/input.h"
#include "controller/replay/profile.h"

#define PATH_BYTES 4096
#define LINE_MAX_BYTES (1u << 22)
#define MAX_SECONDS 1e6 /* from the first to the last time of a recording */

/* The models' published config.json, as far as the roofline needs it: recordings have only the name. */
static const struct {
    const char *name, *config;
} models[] = {
    {"Llama-3.1-8B",
     "{\"model_type\":\"llama\",\"hidden_size\":4096,\"intermediate_size\":14336,\"num_attention_heads\":32,"
     "\"num_key_value_heads\":8,\"num_hidden_layers\":32,\"vocab_size\":128256}"},
    {"Qwen3-32B",
     "{\"model_type\":\"qwen3\",\"hidden_size\":5120,\"intermediate_size\":25600,\"num_attention_heads\":64,"
     "\"num_key_value_heads\":8,\"head_dim\":128,\"num_hidden_layers\":64,\"vocab_size\":151936}"},
    {"Qwen3-30B-A3B",
     "{\"model_type\":\"qwen3_moe\",\"hidden_size\":2048,\"intermediate_size\":6144,"
     "\"moe_intermediate_size\":768,\"num_attention_heads\":32,\"num_key_value_heads\":4,\"head_dim\":128,"
     "\"num_hidden_layers\":48,\"vocab_size\":151936,\"num_experts\":128,\"num_experts_per_tok\":8}"},
};

static bool complain(const char *folder, const char *file, const char *what)
{
    fprintf(stderr, "fidelity: %s/%s: %s\n", folder, file, what);
    return false;
}

static yyjson_doc *read_json(const char *folder, const char *file)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return yyjson_read_file(path, 0, NULL, NULL);
}

/* A limit: at[key], a whole number >= 1; absent or null: to stays as it is. */
static bool get_limit(const char *folder, const char *file, yyjson_val *at, const char *key,
                      uint32_t *to)
{
    yyjson_val *v = yyjson_obj_get(at, key);
    if (!v || yyjson_is_null(v))
        return true;
    if (!yyjson_is_uint(v) || !yyjson_get_uint(v) || yyjson_get_uint(v) > UINT32_MAX) {
        char what[128];
        snprintf(what, sizeof what, "%s: expected a whole number from 1 on", key);
        return complain(folder, file, what);
    }
    *to = (uint32_t)yyjson_get_uint(v);
    return true;
}

static const char *text_of(yyjson_val *at, const char *key, const char *absent)
{
    const char *s = yyjson_get_str(yyjson_obj_get(at, key));
    return s ? s : absent;
}

/* Letters and digits of a device's name, small, without its maker's: "NVIDIA GeForce RTX 4090" is rtx4090. */
static void plain_name(const char *name, char *out, size_t n)
{
    static const char *const makers[] = {"NVIDIA ", "GeForce "};
    size_t len = 0;
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        if (strncmp(name, makers[i], strlen(makers[i])) == 0)
            name += strlen(makers[i]);
    }
    for (; *name && len + 1 < n; name++) {
        if (isalnum((unsigned char)*name))
            out[len++] = (char)tolower((unsigned char)*name);
    }
    out[len] = '\0';
}

/* The roofline as a prior, and the number of experts, where the model and the device are known. bandwidth_gb_s: as
 * the recording has it; 0: the datasheet's. */
static void set_model(struct recording *r, const char *model, const char *device,
                      double bandwidth_gb_s, uint32_t tp)
{
    char error[STACK_ERROR_BYTES], name[64];
    struct model_shape shape;
    plain_name(device, name, sizeof name);
    const struct gpu_spec *known = gpu_find(name);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (!strstr(model, models[i].name) ||
            model_shape_read(&shape, models[i].name, models[i].config, strlen(models[i].config),
                             NULL, error))
            continue;
        r->step.moe_experts = shape.experts;
        r->step.moe_active = shape.experts_active;
        if (!known)
            return;
        struct gpu_spec gpu = *known;
        if (bandwidth_gb_s > 0)
            gpu.bandwidth_gb_s = bandwidth_gb_s;
        struct roofline roofline = {.gpu = &gpu,
                                    .tp = tp,
                                    .pp = 1,
                                    .dp = r->worker.engine.dp_size,
                                    .weight_bytes = shape.weight_bytes,
                                    .kv_bytes = 2,
                                    .eff = ROOFLINE_EFF,
                                    .mfu = ROOFLINE_MFU};
        roofline_step(&r->prior, &shape, &roofline);
        r->has_prior = true;
        return;
    }
}

/* The device where meta.json does not name it: config.json of the same folder describes the machine. */
static void read_device(const char *folder, char *device, size_t n, double *bandwidth_gb_s)
{
    yyjson_doc *doc = read_json(folder, "config.json");
    yyjson_val *node = yyjson_arr_get(yyjson_obj_get(yyjson_doc_get_root(doc), "nodes"), 0);
    yyjson_val *instance = yyjson_arr_get(yyjson_obj_get(node, "instances"), 0);
    if (!device[0])
        snprintf(device, n, "%s", text_of(instance, "hardware", ""));
    *bandwidth_gb_s = yyjson_get_num(yyjson_obj_get(yyjson_obj_get(instance, "npu_mem"), "mem_bw"));
    yyjson_doc_free(doc);
}

bool vllm_plans_ahead(const char *version)
{
    unsigned major = 0, minor = 0;
    return sscanf(version, "%u.%u", &major, &minor) == 2 && (major > 0 || minor >= 14);
}

/* ---- the two forms of limits */

static bool read_gpu_limits(struct recording *r, const char *folder, yyjson_val *root)
{
    static const char file[] = "meta.json";
    yyjson_val *kwargs = yyjson_obj_get(root, "engine_kwargs"),
               *cache = yyjson_obj_get(root, "kv_cache");
    yyjson_val *resolved = yyjson_obj_get(root, "resolved_config");
    yyjson_val *sched = yyjson_obj_get(resolved, "scheduler_config");
    struct engine_config *c = &r->worker.engine;
    uint32_t tp = 1;
    if (!kwargs)
        return complain(folder, file, "no engine_kwargs; expected the engine's arguments");
    if (!get_limit(folder, file, kwargs, "max_num_seqs", &c->max_num_seqs) ||
        !get_limit(folder, file, kwargs, "max_num_batched_tokens", &c->max_num_batched_tokens) ||
        !get_limit(folder, file, kwargs, "max_model_len", &c->max_model_len) ||
        !get_limit(folder, file, kwargs, "tensor_parallel_size", &tp) ||
        !get_limit(folder, file, kwargs, "data_parallel_size", &c->dp_size) ||
        !get_limit(folder, file, cache, "block_size", &c->block_size) ||
        !get_limit(folder, file, cache, "num_gpu_blocks", &c->num_gpu_blocks))
        return false;
    r->blocks_assumed = !yyjson_is_uint(yyjson_obj_get(cache, "num_gpu_blocks"));
    yyjson_val *caching = yyjson_obj_get(cache, "enable_prefix_caching");
    c->enable_prefix_caching = !caching || yyjson_get_bool(caching);
    const char *version = text_of(root, "vllm_version", "");
    yyjson_val *async = yyjson_obj_get(sched, "async_scheduling");
    c->async_scheduling = async ? yyjson_get_bool(async) : vllm_plans_ahead(version);
    const char *model = text_of(root, "model", "?");
    char device[64];
    double bandwidth_gb_s = 0;
    snprintf(device, sizeof device, "%s",
             text_of(yyjson_obj_get(root, "hardware"), "device_name", ""));
    read_device(folder, device, sizeof device, &bandwidth_gb_s);
    set_model(r, model, device, bandwidth_gb_s, tp);
    snprintf(r->class_name, sizeof r->class_name, "%s, %s, vLLM %s, TP %u DP %u", model,
             device[0] ? device : "device not named", version, tp, c->dp_size);
    r->two_clocks = true;
    return true;
}

static bool read_cpu_limits(struct recording *r, const char *folder, yyjson_val *root)
{
    static const char file[] = "config.json";
    yyjson_val *e = yyjson_obj_get(root, "engine");
    struct engine_config *c = &r->worker.engine;
    if (!get_limit(folder, file, e, "block_size", &c->block_size) ||
        !get_limit(folder, file, e, "num_gpu_blocks", &c->num_gpu_blocks) ||
        !get_limit(folder, file, e, "max_num_seqs", &c->max_num_seqs) ||
        !get_limit(folder, file, e, "max_num_batched_tokens", &c->max_num_batched_tokens) ||
        !get_limit(folder, file, e, "max_model_len", &c->max_model_len))
        return false;
    c->long_prefill_token_threshold =
        (uint32_t)yyjson_get_uint(yyjson_obj_get(e, "long_prefill_token_threshold"));
    if (strcmp(text_of(e, "policy", "fcfs"), "priority") == 0)
        c->policy = SCHED_PRIORITY;
    c->async_scheduling = yyjson_get_bool(yyjson_obj_get(e, "async_scheduling"));
    /* which model was served is only in the options of the recorder's script */
    const char *args = text_of(root, "serve_args", "");
    snprintf(r->class_name, sizeof r->class_name, "CPU, vLLM %s, model %.*s",
             text_of(e, "vllm", "?"), (int)strcspn(args + (strncmp(args, "-m ", 3) ? 0 : 3), " "),
             args + (strncmp(args, "-m ", 3) ? 0 : 3));
    return true;
}

static bool read_limits(struct recording *r, const char *folder)
{
    engine_config_default(&r->worker.engine, SCHED_VLLM);
    r->worker.starts_up = true;
    r->worker.gpus = 1;
    r->step.form = STEP_LINEAR;
    yyjson_doc *doc = read_json(folder, "meta.json");
    bool gpu = doc != NULL;
    if (!doc)
        doc = read_json(folder, "config.json");
    if (!doc)
        return complain(folder, "meta.json",
                        "not readable as JSON, nor is config.json; expected "
                        "the engine's limits");
    yyjson_val *root = yyjson_doc_get_root(doc);
    bool ok = gpu ? read_gpu_limits(r, folder, root)
              : yyjson_obj_get(root, "engine")
                  ? read_cpu_limits(r, folder, root)
                  : complain(folder, "config.json", "no engine; expected its limits");
    yyjson_doc_free(doc);
    return ok;
}

/* ---- requests */

struct row {
    double arrival, queued, first, last; /* seconds; first and last < 0: not answered */
    uint32_t prompt, output;
    int32_t priority;
    yyjson_val *ids;
};

static bool get_seconds(yyjson_val *row, const char *key, double *to)
{
    yyjson_val *v = yyjson_obj_get(row, key);
    *to = yyjson_get_num(v);
    return yyjson_is_num(v) && isfinite(*to);
}

static bool get_tokens(yyjson_val *row, const char *key, uint32_t *to)
{
    yyjson_val *v = yyjson_obj_get(row, key);
    *to = (uint32_t)yyjson_get_uint(v);
    return yyjson_is_uint(v) && yyjson_get_uint(v) > 0 && yyjson_get_uint(v) <= ENGINE_MAX_TOKENS;
}

/* NULL, or the key that is wrong. */
static const char *read_gpu_row(yyjson_val *v, struct row *to)
{
    if (!get_seconds(v, "arrival_time", &to->arrival))
        return "arrival_time";
    if (!get_seconds(v, "queued_ts", &to->queued))
        return "queued_ts";
    if (!get_seconds(v, "first_token_ts", &to->first))
        return "first_token_ts";
    if (!get_seconds(v, "last_token_ts", &to->last) || to->last < to->first)
        return "last_token_ts";
    if (!get_tokens(v, "input_toks", &to->prompt))
        return "input_toks";
    return get_tokens(v, "output_toks", &to->output) ? NULL : "output_toks";
}

static const char *read_cpu_row(yyjson_val *v, struct row *to)
{
    double send, ttft_ms, e2e_ms;
    if (!get_seconds(v, "arrival", &to->arrival))
        return "arrival";
    if (!get_seconds(v, "send", &send))
        return "send";
    if (!get_tokens(v, "prompt", &to->prompt))
        return "prompt";
    to->queued = to->arrival;
    to->priority = (int32_t)yyjson_get_sint(yyjson_obj_get(v, "priority"));
    to->ids = yyjson_obj_get(v, "hash_ids");
    to->first = to->last = -1;
    if (!get_tokens(v, "output", &to->output) || !get_seconds(v, "ttft_ms", &ttft_ms) ||
        !get_seconds(v, "e2e_ms", &e2e_ms))
        return NULL; /* it failed or was aborted */
    to->first = send + ttft_ms / 1e3;
    to->last = send + e2e_ms / 1e3;
    return NULL;
}

static int64_t ps_of(double seconds, double origin)
{
    return ps_from_ms((seconds - origin) * 1e3);
}

/* Names of the prompt's blocks, from the chain of content ids that the recording has. */
static void add_keys(struct recording *r, struct request_spec *s, yyjson_val *ids, uint32_t *used)
{
    uint32_t block = r->worker.engine.block_size, n = s->prompt_tok / block;
    yyjson_arr_iter it = yyjson_arr_iter_with(ids);
    if (!ids || yyjson_arr_size(ids) < n)
        return;
    uint64_t *grown = realloc(r->keys, (*used + n + 1) * sizeof *grown);
    if (!grown)
        abort();
    r->keys = grown;
    for (uint32_t i = 0; i < n; i++)
        grown[*used + i] = request_chain_key(i ? grown[*used + i - 1] : 0,
                                             yyjson_get_uint(yyjson_arr_iter_next(&it)));
    s->n_keys = n;
    s->key_tok = block;
    *used += n;
}

struct origin {
    double arrival, engine;
};

/* Two clocks: each starts at its own origin here; recording_align brings them together. */
static bool add_row(struct recording *r, const struct row *row, struct origin *o, uint32_t *used)
{
    if (r->n == 0 && r->left_out == 0)
        *o = (struct origin){row->arrival, r->two_clocks ? row->queued : row->arrival};
    if (row->first < 0) {
        r->left_out++;
        return true;
    }
    if (!(fabs(row->arrival - o->arrival) < MAX_SECONDS) ||
        !(fabs(row->last - o->engine) < MAX_SECONDS))
        return false;
    struct fit_request *grown = realloc(r->requests, (r->n + 1) * sizeof *grown);
    int64_t *queued = realloc(r->queued_ps, (r->n + 1) * sizeof *queued);
    if (!grown || !queued)
        abort();
    r->requests = grown;
    r->queued_ps = queued;
    queued[r->n] = ps_of(row->queued, o->engine);
    struct fit_request *q = &grown[r->n++];
    *q = (struct fit_request){.first_token_ps = ps_of(row->first, o->engine),
                              .last_token_ps = ps_of(row->last, o->engine)};
    q->spec = (struct request_spec){.uid = r->n,
                                    .prompt_tok = row->prompt,
                                    .output_tok = row->output,
                                    .max_tokens = row->output,
                                    .priority = row->priority,
                                    .arrival_ps = ps_of(row->arrival, o->arrival)};
    add_keys(r, &q->spec, row->ids, used);
    return true;
}

static bool read_requests(struct recording *r, struct input *in)
{
    const char *line, *wrong;
    size_t len;
    struct origin o = {0, 0};
    uint32_t used = 0;
    int rc;
    while ((rc = input_line(in, &line, &len)) == 1) {
        struct row row = {0};
        if (!len)
            continue;
        yyjson_doc *doc = yyjson_read(line, len, 0);
        yyjson_val *v = yyjson_doc_get_root(doc);
        if (!yyjson_is_obj(v))
            wrong = "the line";
        else
            wrong = r->two_clocks ? read_gpu_row(v, &row) : read_cpu_row(v, &row);
        if (!wrong && !add_row(r, &row, &o, &used))
            wrong = "arrival (too far from the first one)";
        yyjson_doc_free(doc);
        if (wrong || r->n > RECORDING_MAX_REQUESTS) {
            fprintf(stderr, "fidelity: %s:%llu: %s: %s\n", input_name(in),
                    (unsigned long long)input_line_number(in), wrong ? wrong : "too many requests",
                    wrong ? "missing or out of range" : "at most 100000");
            return false;
        }
    }
    if (rc < 0 || r->n < 4) {
        fprintf(stderr, "fidelity: %s\n",
                rc < 0 ? input_error(in) : "a recording needs four requests or more");
        return false;
    }
    return true;
}

/* The keys were moved while the pool grew: they are in it in order. */
static void set_keys(struct recording *r)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        struct request_spec *s = &r->requests[i].spec;
        s->keys = s->n_keys ? r->keys + at : NULL;
        at += s->n_keys;
    }
}

static int by_arrival(const void *a, const void *b)
{
    const struct fit_request *p = a, *q = b;
    if (p->spec.arrival_ps != q->spec.arrival_ps)
        return p->spec.arrival_ps < q->spec.arrival_ps ? -1 : 1;
    return p->spec.uid < q->spec.uid ? -1 : p->spec.uid > q->spec.uid;
}

/* In order of arrival; queued_ps follows (uid is the line, from 1). */
static void sort_requests(struct recording *r)
{
    int64_t *queued = malloc(r->n * sizeof *queued);
    if (!queued)
        abort();
    qsort(r->requests, r->n, sizeof *r->requests, by_arrival);
    for (uint32_t i = 0; i < r->n; i++)
        queued[i] = r->queued_ps[r->requests[i].spec.uid - 1];
    free(r->queued_ps);
    r->queued_ps = queued;
}

/* Nothing can run short. */
static void assume_blocks(struct recording *r)
{
    struct engine_config *c = &r->worker.engine;
    uint64_t blocks = 2;
    for (uint32_t i = 0; i < r->n; i++)
        blocks +=
            (r->requests[i].spec.prompt_tok + r->requests[i].spec.output_tok) / c->block_size + 1;
    c->num_gpu_blocks = blocks < ENGINE_MAX_BLOCKS ? (uint32_t)blocks : ENGINE_MAX_BLOCKS;
}

bool recording_load(struct recording *r, const char *folder)
{
    char path[PATH_BYTES], error[INPUT_ERROR_BYTES];
    size_t len = strlen(folder);
    memset(r, 0, sizeof *r);
    while (len > 1 && folder[len - 1] == '/')
        len--;
    size_t start = len;
    while (start > 0 && folder[start - 1] != '/')
        start--;
    snprintf(r->name, sizeof r->name, "%.*s", (int)(len - start), folder + start);
    snprintf(path, sizeof path, "%.*s", (int)len, folder);
    if (!read_limits(r, path))
        return false;
    snprintf(path, sizeof path, "%.*s/requests.jsonl", (int)len, folder);
    struct input *in = input_open(path, LINE_MAX_BYTES, error);
    if (!in) {
        fprintf(stderr, "fidelity: %s\n", error);
        return false;
    }
    bool ok = read_requests(r, in);
    input_close(in);
    if (!ok) {
        recording_free(r);
        return false;
    }
    set_keys(r);
    sort_requests(r);
    if (r->blocks_assumed)
        assume_blocks(r);
    return true;
}

void recording_free(struct recording *r)
{
    free(r->requests);
    free(r->queued_ps);
    free(r->keys);
    memset(r, 0, sizeof *r);
}

void recording_align(struct recording *r, uint32_t from, uint32_t to)
{
    int64_t shift = PS_NEVER;
    if (!r->two_clocks)
        return;
    for (uint32_t i = from; i < to; i++) {
        int64_t d = r->queued_ps[i] - r->requests[i].spec.arrival_ps;
        shift = d < shift ? d : shift;
    }
    for (uint32_t i = 0; i < r->n; i++) {
        r->queued_ps[i] -= shift;
        r->requests[i].first_token_ps -= shift;
        r->requests[i].last_token_ps -= shift;
    }
}
