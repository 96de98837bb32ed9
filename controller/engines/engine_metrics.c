/* engine_metrics.c - see engine_metrics.h. */
#include "controller/engines/engine_metrics.h"

#include <string.h>

#include <yyjson.h>

#include "controller/engines/prom_text.h"

/* How a sample adds to its figure. */
enum how { SUM, MEAN, LABEL };

struct row {
    const char *name;
    enum engine_family family;
    enum engine_figure figure;
    enum how how;
    const char *label;     /* LABEL: a count in this label */
    const char *when, *is; /* counts only if label `when` has the value `is` */
};

/* clang-format off */
static const struct row rows[] = {
    {"vllm:num_requests_running",             ENGINE_VLLM, FIGURE_RUNNING, SUM, NULL, NULL, NULL},
    {"vllm:num_requests_waiting",             ENGINE_VLLM, FIGURE_WAITING, SUM, NULL, NULL, NULL},
    {"vllm:kv_cache_usage_perc",              ENGINE_VLLM, FIGURE_KV_USAGE, MEAN, NULL, NULL, NULL},
    {"vllm:gpu_cache_usage_perc",             ENGINE_VLLM, FIGURE_KV_USAGE, MEAN, NULL, NULL, NULL}, /* before 0.10 */
    {"vllm:cache_config_info",                ENGINE_VLLM, FIGURE_BLOCK_SIZE, LABEL, "block_size", NULL, NULL},
    {"vllm:cache_config_info",                ENGINE_VLLM, FIGURE_BLOCKS, LABEL, "num_gpu_blocks", NULL, NULL},
    {"vllm:engine_sleep_state",               ENGINE_VLLM, FIGURE_SLEEPING, SUM, NULL, "sleep_state", "weights_offloaded"},
    {"vllm:prefix_cache_queries_total",       ENGINE_VLLM, FIGURE_PREFIX_QUERIES_TOK, SUM, NULL, NULL, NULL},
    {"vllm:gpu_prefix_cache_queries_total",   ENGINE_VLLM, FIGURE_PREFIX_QUERIES_TOK, SUM, NULL, NULL, NULL},
    {"vllm:prefix_cache_hits_total",          ENGINE_VLLM, FIGURE_PREFIX_HITS_TOK, SUM, NULL, NULL, NULL},
    {"vllm:gpu_prefix_cache_hits_total",      ENGINE_VLLM, FIGURE_PREFIX_HITS_TOK, SUM, NULL, NULL, NULL},
    {"vllm:num_preemptions_total",            ENGINE_VLLM, FIGURE_PREEMPTIONS, SUM, NULL, NULL, NULL},
    {"vllm:prompt_tokens_total",              ENGINE_VLLM, FIGURE_PROMPT_TOK, SUM, NULL, NULL, NULL},
    {"vllm:generation_tokens_total",          ENGINE_VLLM, FIGURE_OUTPUT_TOK, SUM, NULL, NULL, NULL},
    {"vllm:time_to_first_token_seconds_sum",  ENGINE_VLLM, FIGURE_TTFT_SUM_S, SUM, NULL, NULL, NULL},
    {"vllm:time_to_first_token_seconds_count", ENGINE_VLLM, FIGURE_TTFT_COUNT, SUM, NULL, NULL, NULL},
    {"vllm:inter_token_latency_seconds_sum",  ENGINE_VLLM, FIGURE_ITL_SUM_S, SUM, NULL, NULL, NULL},
    {"vllm:inter_token_latency_seconds_count", ENGINE_VLLM, FIGURE_ITL_COUNT, SUM, NULL, NULL, NULL},
    {"vllm:time_per_output_token_seconds_sum", ENGINE_VLLM, FIGURE_ITL_SUM_S, SUM, NULL, NULL, NULL}, /* before 0.11 */
    {"vllm:time_per_output_token_seconds_count", ENGINE_VLLM, FIGURE_ITL_COUNT, SUM, NULL, NULL, NULL},
    {"vllm:iteration_tokens_total_count",     ENGINE_VLLM, FIGURE_STEPS, SUM, NULL, NULL, NULL},

    {"sglang:num_running_reqs",               ENGINE_SGLANG, FIGURE_RUNNING, SUM, NULL, NULL, NULL},
    {"sglang:num_queue_reqs",                 ENGINE_SGLANG, FIGURE_WAITING, SUM, NULL, NULL, NULL},
    {"sglang:full_token_usage",               ENGINE_SGLANG, FIGURE_KV_USAGE, MEAN, NULL, NULL, NULL},
    {"sglang:token_usage",                    ENGINE_SGLANG, FIGURE_KV_USAGE, MEAN, NULL, NULL, NULL},
    {"sglang:cache_config_info",              ENGINE_SGLANG, FIGURE_BLOCK_SIZE, LABEL, "page_size", NULL, NULL},
    {"sglang:cache_config_info",              ENGINE_SGLANG, FIGURE_BLOCKS, LABEL, "num_pages", NULL, NULL},
    {"sglang:max_total_num_tokens",           ENGINE_SGLANG, FIGURE_CAPACITY_TOK, SUM, NULL, NULL, NULL},
    {"sglang:cached_tokens_total",            ENGINE_SGLANG, FIGURE_PREFIX_HITS_TOK, SUM, NULL, NULL, NULL},
    {"sglang:num_retracted_requests_total",   ENGINE_SGLANG, FIGURE_PREEMPTIONS, SUM, NULL, NULL, NULL},
    {"sglang:prompt_tokens_total",            ENGINE_SGLANG, FIGURE_PROMPT_TOK, SUM, NULL, NULL, NULL},
    {"sglang:generation_tokens_total",        ENGINE_SGLANG, FIGURE_OUTPUT_TOK, SUM, NULL, NULL, NULL},
    {"sglang:time_to_first_token_seconds_sum", ENGINE_SGLANG, FIGURE_TTFT_SUM_S, SUM, NULL, NULL, NULL},
    {"sglang:time_to_first_token_seconds_count", ENGINE_SGLANG, FIGURE_TTFT_COUNT, SUM, NULL, NULL, NULL},
    {"sglang:inter_token_latency_seconds_sum", ENGINE_SGLANG, FIGURE_ITL_SUM_S, SUM, NULL, NULL, NULL},
    {"sglang:inter_token_latency_seconds_count", ENGINE_SGLANG, FIGURE_ITL_COUNT, SUM, NULL, NULL, NULL},

    {"trtllm_num_requests_running",           ENGINE_TRTLLM, FIGURE_RUNNING, SUM, NULL, NULL, NULL},
    {"trtllm_num_requests_waiting",           ENGINE_TRTLLM, FIGURE_WAITING, SUM, NULL, NULL, NULL},
    {"trtllm_kv_cache_utilization",           ENGINE_TRTLLM, FIGURE_KV_USAGE, MEAN, NULL, NULL, NULL},
    {"trtllm_kv_cache_tokens_per_block",      ENGINE_TRTLLM, FIGURE_BLOCK_SIZE, MEAN, NULL, NULL, NULL},
    {"trtllm_kv_cache_max_blocks",            ENGINE_TRTLLM, FIGURE_BLOCKS, SUM, NULL, NULL, NULL},

    {"nv_trt_llm_request_metrics",            ENGINE_TRITON, FIGURE_RUNNING, SUM, NULL, "request_type", "scheduled"},
    {"nv_trt_llm_request_metrics",            ENGINE_TRITON, FIGURE_WAITING, SUM, NULL, "request_type", "waiting"},
    {"nv_trt_llm_kv_cache_block_metrics",     ENGINE_TRITON, FIGURE_KV_USAGE, MEAN, NULL, "kv_cache_block_type", "fraction"},
    {"nv_trt_llm_kv_cache_block_metrics",     ENGINE_TRITON, FIGURE_BLOCK_SIZE, MEAN, NULL, "kv_cache_block_type", "tokens_per"},
    {"nv_trt_llm_kv_cache_block_metrics",     ENGINE_TRITON, FIGURE_BLOCKS, SUM, NULL, "kv_cache_block_type", "max"},
};
/* clang-format on */

#define N_ROWS (sizeof rows / sizeof *rows)

const char *engine_family_name(enum engine_family f)
{
    static const char *const names[] = {"unknown", "vllm", "sglang", "trtllm", "triton"};
    return names[f];
}

static bool counts(const struct row *row, const struct prom_sample *s)
{
    if (!prom_is(s, row->name))
        return false;
    if (!row->when)
        return true;
    struct prom_slice v = prom_label(s, row->when);
    return v.s && strlen(row->is) == v.len && !memcmp(v.s, row->is, v.len);
}

/* `from`: which row gave the figure: the first name that a page has wins over its older twins. */
struct adding {
    struct engine_metrics *m;
    const char *from[FIGURE_COUNT];
    uint32_t n[FIGURE_COUNT];
};

static void add(struct adding *a, const struct row *row, const struct prom_sample *s)
{
    double x = s->value;
    uint64_t count;
    if (row->how == LABEL) {
        if (!prom_label_count(s, row->label, &count))
            return;
        x = (double)count;
    }
    if (!(x >= 0 && x <= 1e18)) /* NaN and negative: an engine that has nothing to say yet */
        return;
    if (a->from[row->figure] && strcmp(a->from[row->figure], row->name))
        return;
    a->from[row->figure] = row->name;
    a->n[row->figure]++;
    a->m->figure[row->figure] += x;
    a->m->known |= UINT32_C(1) << row->figure;
    if (a->m->family == ENGINE_UNKNOWN)
        a->m->family = row->family;
}

static bool is_mean(enum engine_figure f)
{
    return f == FIGURE_KV_USAGE || f == FIGURE_BLOCK_SIZE;
}

int engine_metrics_read(const char *text, size_t len, struct engine_metrics *out)
{
    struct adding a = {.m = out};
    struct prom_reader r;
    struct prom_sample s;
    memset(out, 0, sizeof *out);
    prom_open(&r, text, len);
    while (prom_next(&r, &s)) {
        for (size_t i = 0; i < N_ROWS; i++) {
            if (counts(&rows[i], &s))
                add(&a, &rows[i], &s);
        }
    }
    for (int f = 0; f < FIGURE_COUNT; f++) {
        if (a.n[f] > 1 && is_mean((enum engine_figure)f))
            out->figure[f] /= a.n[f];
    }
    out->engines = a.n[FIGURE_RUNNING];
    out->malformed = r.malformed;
    return out->known ? 0 : WEIR_E_INPUT;
}

static uint32_t as_u32(double x)
{
    return x >= (double)UINT32_MAX ? UINT32_MAX : (uint32_t)x;
}

bool engine_metrics_telemetry(const struct engine_metrics *m, int64_t at_ps,
                              uint32_t num_gpu_blocks, struct core_telemetry *out)
{
    *out = (struct core_telemetry){.at_ps = at_ps,
                                   .running = as_u32(m->figure[FIGURE_RUNNING]),
                                   .waiting = as_u32(m->figure[FIGURE_WAITING])};
    double total = num_gpu_blocks, block = m->figure[FIGURE_BLOCK_SIZE];
    if (engine_metrics_known(m, FIGURE_BLOCKS))
        total = m->figure[FIGURE_BLOCKS];
    else if (engine_metrics_known(m, FIGURE_CAPACITY_TOK))
        total = m->figure[FIGURE_CAPACITY_TOK] / (block >= 1 ? block : 1);
    double usage = m->figure[FIGURE_KV_USAGE];
    if (engine_metrics_known(m, FIGURE_KV_USAGE) && total >= 1) {
        out->kv_total_blocks = as_u32(total);
        out->kv_used_blocks = as_u32(out->kv_total_blocks * (usage < 1 ? usage : 1) + 0.5);
    }
    return engine_metrics_known(m, FIGURE_RUNNING) || engine_metrics_known(m, FIGURE_WAITING);
}

/* ---- ORCA: "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3", or
 * "JSON {"named_metrics": {...}}" */

static void orca_value(struct engine_metrics *m, const char *name, size_t len, double x)
{
    static const struct {
        const char *name;
        enum engine_figure figure;
    } names[] = {{"kv_cache_usage_perc", FIGURE_KV_USAGE},
                 {"num_requests_waiting", FIGURE_WAITING},
                 {"num_requests_running", FIGURE_RUNNING}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strlen(names[i].name) == len && !memcmp(names[i].name, name, len) && x >= 0 &&
            x <= 1e18) {
            m->figure[names[i].figure] = x;
            m->known |= UINT32_C(1) << names[i].figure;
        }
    }
}

static void orca_text(struct engine_metrics *m, const char *s, size_t len)
{
    static const char prefix[] = "named_metrics.";
    while (len) {
        const char *comma = memchr(s, ',', len);
        size_t n = comma ? (size_t)(comma - s) : len, skip = comma ? n + 1 : n;
        while (n && *s == ' ') {
            s++;
            n--;
            skip--;
            len--;
        }
        const char *eq = memchr(s, '=', n);
        size_t p = sizeof prefix - 1;
        if (eq && (size_t)(eq - s) > p && !memcmp(s, prefix, p)) {
            /* the number as a sample of the text format, for its strict reading */
            char line[80];
            struct prom_reader r;
            struct prom_sample sample;
            size_t digits = n - (size_t)(eq - s) - 1;
            if (digits && digits < sizeof line - 3) {
                memcpy(line, "x ", 2);
                memcpy(line + 2, eq + 1, digits);
                line[2 + digits] = '\n';
                prom_open(&r, line, digits + 3);
                if (prom_next(&r, &sample))
                    orca_value(m, s + p, (size_t)(eq - s) - p, sample.value);
            }
        }
        s += skip;
        len -= skip;
    }
}

static void orca_json(struct engine_metrics *m, const char *s, size_t len)
{
    yyjson_doc *doc = yyjson_read(s, len, 0);
    yyjson_val *named = yyjson_obj_get(yyjson_doc_get_root(doc), "named_metrics"), *key, *v;
    size_t i, n;
    if (yyjson_is_obj(named)) {
        yyjson_obj_foreach (named, i, n, key, v) {
            if (yyjson_is_num(v))
                orca_value(m, yyjson_get_str(key), yyjson_get_len(key), yyjson_get_num(v));
        }
    }
    yyjson_doc_free(doc);
}

int engine_metrics_orca(const char *value, size_t len, struct engine_metrics *out)
{
    memset(out, 0, sizeof *out);
    out->family = ENGINE_VLLM;
    if (len > 5 && !memcmp(value, "TEXT ", 5))
        orca_text(out, value + 5, len - 5);
    else if (len > 5 && !memcmp(value, "JSON ", 5))
        orca_json(out, value + 5, len - 5);
    return out->known ? 0 : WEIR_E_INPUT;
}
