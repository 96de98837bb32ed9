/* engine_report.c - see engine_report.h. */
#include "controller/state/engine_report.h"

#include <stdio.h>
#include <string.h>

#include <yyjson.h>

static uint64_t count(const struct engine_metrics *m, enum engine_figure f)
{
    return (uint64_t)m->figure[f]; /* engine_metrics_read keeps them within 0 and 1e18 */
}

static void copy_counters(struct worker_record *out, const struct engine_metrics *m)
{
    out->queried_tok = count(m, FIGURE_PREFIX_QUERIES_TOK);
    out->hit_tok = count(m, FIGURE_PREFIX_HITS_TOK);
    out->preemptions = count(m, FIGURE_PREEMPTIONS);
    out->steps = count(m, FIGURE_STEPS);
    out->prompt_tok = count(m, FIGURE_PROMPT_TOK);
    out->output_tok = count(m, FIGURE_OUTPUT_TOK);
    out->ttft_count = count(m, FIGURE_TTFT_COUNT);
    out->itl_count = count(m, FIGURE_ITL_COUNT);
    out->ttft_sum_s = m->figure[FIGURE_TTFT_SUM_S] <= 1e15 ? m->figure[FIGURE_TTFT_SUM_S] : 0;
    out->itl_sum_s = m->figure[FIGURE_ITL_SUM_S] <= 1e15 ? m->figure[FIGURE_ITL_SUM_S] : 0;
}

static void copy_load(struct worker_record *out, const struct engine_metrics *m)
{
    struct core_telemetry t;
    (void)engine_metrics_telemetry(m, 0, 0, &t);
    out->running = t.running;
    out->waiting = t.waiting;
    out->kv_used_blocks = t.kv_total_blocks <= RECORD_MAX_BLOCKS ? t.kv_used_blocks : 0;
    out->kv_total_blocks = t.kv_total_blocks <= RECORD_MAX_BLOCKS ? t.kv_total_blocks : 0;
    double block = m->figure[FIGURE_BLOCK_SIZE];
    out->block_size = block <= ENGINE_MAX_BLOCK_SIZE ? (uint32_t)block : 0;
}

/* -1: the page has none of them. */
static double headway(const struct engine_metrics *m)
{
    static const enum engine_figure counters[] = {FIGURE_PROMPT_TOK, FIGURE_OUTPUT_TOK,
                                                  FIGURE_TTFT_COUNT, FIGURE_STEPS};
    double sum = 0;
    bool any = false;
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++) {
        any |= engine_metrics_known(m, counters[i]);
        sum += m->figure[counters[i]];
    }
    return any ? sum : -1;
}

void engine_report_page(struct engine_report *r, const struct engine_metrics *m, uint64_t now_ms,
                        int64_t unix_us, uint32_t stall_ms)
{
    struct worker_record *out = &r->record;
    double progress = headway(m);
    copy_load(out, m);
    copy_counters(out, m);
    out->measured_at_us = unix_us;
    out->failure = RECORD_FAILURE_NONE;
    out->failure_detail[0] = '\0';
    if (!out->running || progress < 0 || progress > r->progress || progress < r->progress) {
        r->progress = progress;
        r->moved_ms = now_ms;
    }
    if (now_ms - r->moved_ms < stall_ms)
        return;
    out->failure = RECORD_STALLED;
    snprintf(out->failure_detail, sizeof out->failure_detail,
             "%u requests run, and nothing has moved for %llu s", out->running,
             (unsigned long long)(now_ms - r->moved_ms) / 1000);
}

void engine_report_failed(struct engine_report *r, enum record_failure failure, const char *why)
{
    r->record.failure = failure;
    snprintf(r->record.failure_detail, sizeof r->record.failure_detail, "%s", why);
    for (char *c = r->record.failure_detail; *c; c++)
        *c = *c < 0x20 || *c > 0x7e ? '?' : *c;
}

static bool is_name(const char *s)
{
    size_t n = s ? strlen(s) : 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < 0x21 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\')
            return false;
    }
    return n && n < RECORD_MODEL_BYTES;
}

void engine_report_models(struct engine_report *r, const char *json, size_t len)
{
    struct worker_record *out = &r->record;
    yyjson_doc *doc = yyjson_read(json, len, 0);
    yyjson_val *data = yyjson_obj_get(yyjson_doc_get_root(doc), "data"), *model;
    size_t i, n;
    if (yyjson_is_arr(data))
        out->n_models = out->n_loras = 0;
    yyjson_arr_foreach (data, i, n, model) {
        const char *id = yyjson_get_str(yyjson_obj_get(model, "id"));
        bool lora = yyjson_is_str(yyjson_obj_get(model, "parent"));
        if (!is_name(id))
            continue;
        if (lora && out->n_loras < RECORD_MAX_LORAS)
            snprintf(out->loras[out->n_loras++], RECORD_MODEL_BYTES, "%s", id);
        else if (!lora && out->n_models < RECORD_MAX_MODELS)
            snprintf(out->models[out->n_models++], RECORD_MODEL_BYTES, "%s", id);
    }
    yyjson_doc_free(doc);
}
