/* test_report.c - a replay's report: the figures of requests whose times are known, the JSON,
 * the table at several widths, and the request log read back as a trace.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <yyjson.h>

#include "controller/replay/report.h"
#include "controller/replay/trace.h"
#include "predictor/units.h"

#define N_WORKERS 3
#define N_POLICIES 4
#define QUANTILE_ERROR (2 * HIST_REL_ERROR)

static struct stack stack; /* 2 MiB */

/* Two aggregated workers of one GPU (0 counts as 1) and one of four. */
static int set_up(void **state)
{
    (void)state;
    memset(stack.pools, 0, 2 * sizeof *stack.pools);
    stack.n_pools = 2;
    stack.pools[0].workers = 2;
    snprintf(stack.pools[0].name, sizeof stack.pools[0].name, "small");
    stack.pools[1].workers = 1;
    stack.pools[1].worker.gpus = 4;
    stack.pools[1].worker.engine.role = ROLE_DECODE;
    snprintf(stack.pools[1].name, sizeof stack.pools[1].name, "large");
    stack.slo_ttft_ps = 200 * PS_PER_MS;
    stack.slo_tpot_ps = 20 * PS_PER_MS;
    stack.slo_e2e_ps = PS_NEVER;
    return 0;
}

static struct report *new_report(const char *policy)
{
    struct report_info info = {.policy = policy,
                               .trace_name = "a \"b\"\n\xff\xc3\xa9.jsonl",
                               .seed = 7,
                               .stack = &stack,
                               .n_workers = N_WORKERS,
                               .speedup = 1};
    struct report *r = report_new(&info);
    assert_non_null(r);
    return r;
}

/* A request that arrives at row seconds and goes as the other numbers say. */
static struct report_request request(uint64_t row, double ttft_ms, double tpot_ms,
                                     uint32_t output_tok)
{
    int64_t at = (int64_t)row * PS_PER_S;
    struct report_request q = {.row = row,
                               .arrival_ps = at,
                               .first_admit_ps = at + ps_from_ms(ttft_ms / 2),
                               .first_token_ps = at + ps_from_ms(ttft_ms),
                               .second_token_ps = -1,
                               .prompt_tok = 1000,
                               .output_tok = output_tok,
                               .reused_tok = 100,
                               .reused_all_tok = 200,
                               .prefill_worker = CORE_NO_WORKER,
                               .overlap_tok = -1};
    if (output_tok > 1)
        q.second_token_ps = q.first_token_ps + ps_from_ms(tpot_ms);
    q.end_ps = q.first_token_ps + (output_tok - 1) * ps_from_ms(tpot_ms);
    return q;
}

static struct report_request rejected(uint64_t row, enum core_reason reason)
{
    return (struct report_request){.row = row,
                                   .arrival_ps = (int64_t)row * PS_PER_S,
                                   .first_admit_ps = -1,
                                   .first_token_ps = -1,
                                   .second_token_ps = -1,
                                   .end_ps = -1,
                                   .prompt_tok = 1000,
                                   .retries = 2,
                                   .worker = CORE_NO_WORKER,
                                   .prefill_worker = CORE_NO_WORKER,
                                   .reason = reason,
                                   .overlap_tok = -1};
}

/* Ten requests with TTFT 30, 60 .. 300 ms, TPOT 10 ms and 11 tokens; one with TPOT 40 ms; one of a
 * single token; two that are turned away. 14 in 100 s. backwards: in the other order. */
static struct report *sample(const char *policy, bool backwards)
{
    struct report *r = new_report(policy);
    struct report_request q[14];
    for (uint64_t i = 0; i < 10; i++)
        q[i] = request(i, 30 + 30 * (double)i, 10, 11);
    q[10] = request(10, 30, 40, 11);
    q[11] = request(11, 30, 0, 1);
    q[11].preemptions = 3;
    q[12] = rejected(12, CORE_REASON_TIMEOUT);
    q[13] = rejected(13, CORE_REASON_QUEUE_FULL);
    for (int i = 0; i < 14; i++)
        report_add(r, &q[backwards ? 13 - i : i]);
    hist_add(report_itl(r), 10 * PS_PER_MS, 100);
    hist_add(report_itl(r), 40 * PS_PER_MS, 10);
    for (uint32_t i = 0; i < N_WORKERS; i++) {
        struct report_worker w = {.pool = i / 2,
                                  .busy_ps = 25 * PS_PER_S,
                                  .up_ps = 100 * PS_PER_S,
                                  .requests = 4,
                                  .passes = 30};
        report_worker(r, i, &w);
    }
    report_finish(r, &(struct report_run){.duration_ps = 100 * PS_PER_S,
                                          .passes = 90,
                                          .wall_ms = 12.5,
                                          .bad_rows = 5,
                                          .failed_rows = 7});
    return r;
}

static void assert_near(double x, double want, double relative)
{
    if (!(fabs(x - want) <= fabs(want) * relative + 1e-9))
        fail_msg("%.9g instead of %.9g", x, want);
}

static char *json_of(struct report *const *r, uint32_t n, bool canonical)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    assert_int_equal(report_write_json(f, r, n, canonical), 0);
    assert_int_equal(fclose(f), 0);
    return text;
}

static yyjson_doc *parsed(struct report *const *r, uint32_t n, bool canonical)
{
    char *text = json_of(r, n, canonical);
    yyjson_doc *doc = yyjson_read(text, strlen(text), 0);
    assert_non_null(doc);
    free(text);
    return doc;
}

static double number(yyjson_val *object, const char *name)
{
    yyjson_val *v = yyjson_obj_get(object, name);
    if (!yyjson_is_num(v))
        fail_msg("no number %s", name);
    return yyjson_get_num(v);
}

static void assert_text(yyjson_val *object, const char *name, const char *want)
{
    yyjson_val *v = yyjson_obj_get(object, name);
    if (!yyjson_is_str(v))
        fail_msg("no text %s", name);
    assert_string_equal(yyjson_get_str(v), want);
}

static bool is_null(yyjson_val *object, const char *name)
{
    yyjson_val *v = yyjson_obj_get(object, name);
    if (!v)
        fail_msg("no %s", name);
    return yyjson_is_null(v);
}

/* ---- figures ---- */

static void test_summary(void **state)
{
    struct report_summary s;
    (void)state;
    struct report *r = sample("p", false);
    report_summarise(r, &s);
    assert_int_equal(s.requests, 14);
    assert_int_equal(s.completed, 12);
    assert_int_equal(s.rejected, 2);
    assert_int_equal(s.slo_met, 7); /* TTFT 30 .. 180 and the one of a single token */
    assert_int_equal(s.preemptions, 3);
    assert_near(s.duration_ms, 100e3, 0);
    assert_near(s.goodput_rps, 0.07, 1e-12);
    assert_near(s.slo_attainment, 0.5, 0);
    assert_near(s.reuse, 0.2, 1e-12);
    assert_near(s.mean_ttft_ms, (1650 + 60) / 12.0, 1e-9);
    assert_near(s.p50_ttft_ms, 120, QUANTILE_ERROR); /* 30 30 30 60 90 120 150 ...: rank 5 */
    assert_near(s.p90_ttft_ms, 240, QUANTILE_ERROR);
    assert_near(s.p99_ttft_ms, 270, QUANTILE_ERROR);
    assert_near(s.mean_tpot_ms, 140 / 11.0, 1e-9);
    assert_near(s.p99_tpot_ms, 10, QUANTILE_ERROR); /* rank 9.9, the lower one */
    assert_near(s.mean_e2e_ms, (1650 + 10 * 100 + 430 + 30) / 12.0, 1e-9);
    assert_near(s.mean_itl_ms, 1400 / 110.0, 1e-9);
    assert_near(s.gpu_hours, 600 / 3600.0, 1e-9);
    report_free(r);
}

static void test_nothing_happened(void **state)
{
    struct report_summary s;
    (void)state;
    struct report *r = new_report("p");
    report_summarise(r, &s);
    assert_near(s.goodput_rps + s.slo_attainment + s.reuse + s.gpu_hours, 0, 0);
    yyjson_doc *doc = parsed(&r, 1, false);
    yyjson_val *root = yyjson_doc_get_root(doc);
    assert_true(is_null(root, "mean_ttft_ms") && is_null(root, "p99_itl_ms"));
    assert_true(is_null(root, "std_output_token_throughput_per_user"));
    assert_near(number(root, "processed_tokens_per_s"), 0, 0);
    yyjson_doc_free(doc);
    report_free(r);
}

static uint64_t met(int64_t ttft_ms, int64_t tpot_ms, int64_t e2e_ms)
{
    struct report_summary s;
    stack.slo_ttft_ps = ttft_ms < 0 ? PS_NEVER : ttft_ms * PS_PER_MS;
    stack.slo_tpot_ps = tpot_ms < 0 ? PS_NEVER : tpot_ms * PS_PER_MS;
    stack.slo_e2e_ps = e2e_ms < 0 ? PS_NEVER : e2e_ms * PS_PER_MS;
    struct report *r = sample("p", false);
    report_summarise(r, &s);
    report_free(r);
    return s.slo_met;
}

static void test_slo_limits(void **state)
{
    (void)state;
    assert_int_equal(met(-1, -1, -1), 12); /* completed is enough */
    assert_int_equal(met(30, -1, -1), 3);  /* a limit that is just kept is kept */
    assert_int_equal(met(29, -1, -1), 0);
    assert_int_equal(met(-1, 10, -1), 11);
    assert_int_equal(met(-1, 9, -1), 1); /* one token has no TPOT */
    assert_int_equal(met(-1, -1, 160), 3);
    assert_int_equal(met(30, 10, 100), 1);
}

/* ---- JSON ---- */

static void test_json_figures(void **state)
{
    (void)state;
    struct report *r = sample("p", false);
    yyjson_doc *doc = parsed(&r, 1, false);
    yyjson_val *root = yyjson_doc_get_root(doc);
    assert_text(root, "policy", "p");
    assert_text(root, "trace", "a \"b\"\n\xef\xbf\xbd\xc3\xa9.jsonl");
    assert_true(is_null(root, "stack") && is_null(root, "concurrency"));
    assert_near(number(root, "seed"), 7, 0);
    assert_near(number(root, "num_requests"), 14, 0);
    assert_near(number(root, "completed_requests"), 12, 0);
    assert_near(number(root, "total_input_tokens"), 12000, 0);
    assert_near(number(root, "total_output_tokens"), 122, 0);
    assert_near(number(root, "processed_tokens"), 12122, 0);
    assert_near(number(root, "duration_ms"), 100000, 0);
    assert_near(number(root, "wall_time_ms"), 12.5, 0);
    assert_near(number(root, "processed_tokens_per_s"), 969760, 0);
    assert_near(number(root, "processed_output_tokens_per_s"), 9760, 0);
    assert_near(number(root, "request_throughput_rps"), 0.12, 0);
    assert_near(number(root, "total_throughput_tok_s"), 121.22, 0);
    assert_near(number(root, "goodput_output_tok_s"), 0.67, 0);
    assert_near(number(root, "prefix_cache_reused_ratio"), 0.2, 0);
    assert_near(number(root, "first_admission_prefix_cache_reused_ratio"), 0.1, 0);
    assert_near(number(root, "bad_rows"), 5, 0);
    assert_near(number(root, "failed_rows"), 7, 0);
    assert_near(number(root, "retries"), 4, 0);
    assert_near(number(root, "passes"), 90, 0);
    assert_near(number(root, "hist_relative_error"), HIST_REL_ERROR, 0);
    yyjson_val *slo = yyjson_obj_get(root, "slo");
    assert_near(number(slo, "ttft_ms"), 200, 0);
    assert_true(is_null(slo, "e2e_ms"));
    yyjson_val *why = yyjson_obj_get(root, "rejected_by_reason");
    assert_near(number(why, "timeout"), 1, 0);
    assert_near(number(why, "queue_full"), 1, 0);
    assert_near(number(why, "slo"), 0, 0);
    yyjson_doc_free(doc);
    report_free(r);
}

static void test_json_latencies(void **state)
{
    static const char *const stats[] = {"mean", "min", "max", "median", "p75",
                                        "p90",  "p95", "p99", "std"};
    static const char *const names[] = {"ttft_ms",        "ttst_ms",
                                        "tpot_ms",        "itl_ms",
                                        "e2e_latency_ms", "output_token_throughput_per_user"};
    (void)state;
    struct report *r = sample("p", false);
    yyjson_doc *doc = parsed(&r, 1, false);
    yyjson_val *root = yyjson_doc_get_root(doc);
    for (size_t i = 0; i < 9; i++) {
        for (size_t k = 0; k < 6; k++) {
            char name[96];
            snprintf(name, sizeof name, "%s_%s", stats[i], names[k]);
            assert_true(number(root, name) >= 0);
        }
    }
    assert_near(number(root, "min_ttft_ms"), 30, 0);
    assert_near(number(root, "max_ttft_ms"), 300, 0);
    assert_near(number(root, "max_itl_ms"), 40, 0);
    assert_near(number(root, "mean_ttst_ms"), 140 / 11.0, 1e-6);
    assert_near(number(root, "max_e2e_latency_ms"), 430, 0);
    const double mean = 1025 / 11.0; /* ten users get 100 tokens/s, one gets 25 */
    assert_near(number(root, "mean_output_token_throughput_per_user"), mean, 1e-6);
    assert_near(number(root, "min_output_token_throughput_per_user"), 25, 0);
    assert_near(number(root, "max_output_token_throughput_per_user"), 100, 0);
    assert_near(number(root, "median_output_token_throughput_per_user"), 100, QUANTILE_ERROR);
    assert_near(number(root, "std_output_token_throughput_per_user"),
                sqrt(100625 / 11.0 - mean * mean), 1e-6);
    yyjson_doc_free(doc);
    report_free(r);
}

static void test_json_pools(void **state)
{
    (void)state;
    struct report *r = sample("p", false);
    yyjson_doc *doc = parsed(&r, 1, false);
    yyjson_val *root = yyjson_doc_get_root(doc);
    assert_near(number(root, "worker_seconds"), 50, 0);
    assert_near(number(root, "decode_worker_seconds"), 25, 0);
    assert_near(number(root, "prefill_worker_seconds"), 0, 0);
    assert_near(number(root, "gpu_hours"), 0.166667, 0);
    yyjson_val *pools = yyjson_obj_get(root, "pools"), *workers = yyjson_obj_get(root, "workers");
    assert_int_equal(yyjson_arr_size(pools), 2);
    assert_int_equal(yyjson_arr_size(workers), N_WORKERS);
    yyjson_val *small = yyjson_arr_get(pools, 0), *large = yyjson_arr_get(pools, 1);
    assert_text(small, "name", "small");
    assert_text(small, "role", "both");
    assert_near(number(small, "workers"), 2, 0);
    assert_near(number(small, "gpus"), 2, 0);
    assert_near(number(small, "busy_s"), 50, 0);
    assert_near(number(small, "up_s"), 200, 0);
    assert_near(number(small, "utilisation"), 0.25, 0);
    assert_near(number(small, "requests"), 8, 0);
    assert_text(large, "role", "decode");
    assert_near(number(large, "gpus"), 4, 0);
    assert_text(yyjson_arr_get(workers, 2), "pool", "large");
    assert_near(number(yyjson_arr_get(workers, 2), "worker"), 2, 0);
    yyjson_doc_free(doc);
    report_free(r);
}

/* Tiers below the GPU are told of where there are any. */
static void test_json_tiers(void **state)
{
    (void)state;
    struct report *r = sample("p", false);
    yyjson_doc *doc = parsed(&r, 1, false);
    yyjson_val *root = yyjson_doc_get_root(doc);
    assert_null(yyjson_obj_get(root, "host_cache_reused_ratio"));
    assert_null(yyjson_obj_get(yyjson_arr_get(yyjson_obj_get(root, "pools"), 0), "stored_tok"));
    yyjson_doc_free(doc);
    report_free(r);

    stack.pools[1].worker.engine.num_host_blocks = 1000;
    r = sample("p", false);
    report_worker(r, N_WORKERS - 1,
                  &(struct report_worker){.pool = 1,
                                          .host_tok = 2400,
                                          .shared_tok = 1200,
                                          .stored_tok = 5000,
                                          .not_stored_tok = 7});
    doc = parsed(&r, 1, false);
    root = yyjson_doc_get_root(doc);
    yyjson_val *pools = yyjson_obj_get(root, "pools");
    assert_near(number(root, "host_cache_reused_ratio"), 0.2, 1e-9); /* of 12 prompts of 1,000 */
    assert_near(number(root, "shared_cache_reused_ratio"), 0.1, 1e-9);
    assert_null(yyjson_obj_get(yyjson_arr_get(pools, 0), "stored_tok"));
    assert_near(number(yyjson_arr_get(pools, 1), "host_loaded_tok"), 2400, 0);
    assert_near(number(yyjson_arr_get(pools, 1), "shared_loaded_tok"), 1200, 0);
    assert_near(number(yyjson_arr_get(pools, 1), "stored_tok"), 5000, 0);
    assert_near(number(yyjson_arr_get(pools, 1), "not_stored_tok"), 7, 0);
    yyjson_doc_free(doc);
    report_free(r);
}

static void test_json_canonical(void **state)
{
    (void)state;
    struct report *r[2] = {sample("p", false), sample("p", true)};
    report_finish(r[1], &(struct report_run){.duration_ps = 100 * PS_PER_S,
                                             .passes = 90,
                                             .wall_ms = 99,
                                             .bad_rows = 5,
                                             .failed_rows = 7});
    char *one = json_of(&r[0], 1, true), *two = json_of(&r[1], 1, true);
    assert_string_equal(one, two);
    assert_null(strstr(one, "wall_time_ms"));
    assert_null(strstr(one, "processed_tokens_per_s"));
    assert_null(strstr(one, "processed_output_tokens_per_s"));
    assert_non_null(strstr(one, "\"processed_tokens\""));
    yyjson_doc *doc = parsed(r, 2, true);
    yyjson_val *runs = yyjson_obj_get(yyjson_doc_get_root(doc), "runs");
    assert_int_equal(yyjson_arr_size(runs), 2);
    assert_text(yyjson_arr_get(runs, 1), "policy", "p");
    yyjson_doc_free(doc);
    free(one);
    free(two);
    report_free(r[0]);
    report_free(r[1]);
}

static void test_json_disk_full(void **state)
{
    (void)state;
    FILE *f = fopen("/dev/full", "w");
    if (!f)
        skip();
    setvbuf(f, NULL, _IONBF, 0);
    struct report *r = sample("p", false);
    assert_int_equal(report_write_json(f, &r, 1, false), WEIR_E_IO);
    fclose(f);
    report_free(r);
}

/* ---- the table ---- */

static const char *const policies[N_POLICIES] = {"round_robin", "least_loaded", "cache_aware",
                                                 "prob_admit"};

/* Policy k: TTFT spreads over 100 .. 1100 ms * (k + 1), TPOT 40 - 5 k ms, and only the last one
 * turns requests away. */
static void fill_policies(struct report **r)
{
    stack.slo_tpot_ps = 35 * PS_PER_MS;
    for (uint32_t k = 0; k < N_POLICIES; k++) {
        r[k] = new_report(policies[k]);
        for (uint32_t i = 0; i < 1000; i++) {
            struct report_request q = request(i, (100 + i) * (k + 1.0), 40 - 5 * k, 300);
            q.reused_all_tok = 200 * k;
            if (k == 3 && i % 10 == 0)
                q = rejected(i, CORE_REASON_SLO);
            report_add(r[k], &q);
        }
        for (uint32_t i = 0; i < N_WORKERS; i++)
            report_worker(r[k], i,
                          &(struct report_worker){.pool = i / 2, .up_ps = 1000 * PS_PER_S});
        report_finish(r[k], &(struct report_run){.duration_ps = 1000 * PS_PER_S + k * 60 * PS_PER_S,
                                                 .passes = 1000,
                                                 .wall_ms = 12.25 + k,
                                                 .bad_rows = k ? 0 : 3,
                                                 .failed_rows = k ? 0 : 4,
                                                 .first_bad = "t.jsonl:9: expected"});
    }
}

static void free_policies(struct report **r)
{
    for (uint32_t k = 0; k < N_POLICIES; k++)
        report_free(r[k]);
}

static char *table_of(struct report *const *r, uint32_t n, int width, bool colour)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    report_print_table(f, r, n, width, colour);
    assert_int_equal(fclose(f), 0);
    return text;
}

/* No line is wider than that, none ends with a space. */
static void assert_fits(const char *text, size_t width)
{
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
        size_t len = strcspn(line, "\n");
        if (len > width || (len && line[len - 1] == ' '))
            fail_msg("bad line at width %zu: '%.*s'", width, (int)len, line);
    }
}

static void assert_has(const char *text, const char *part, bool wanted)
{
    if (!strstr(text, part) == wanted)
        fail_msg("'%s' %s in:\n%s", part, wanted ? "missing" : "unwanted", text);
}

static void test_table_widths(void **state)
{
    static const struct {
        int width;
        bool p90, e2e50;
    } cases[] = {{140, true, true}, {100, false, true}, {0, false, true}, {80, false, false}};
    struct report *r[N_POLICIES];
    (void)state;
    fill_policies(r);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = table_of(r, N_POLICIES, cases[i].width, false);
        assert_fits(text, cases[i].width ? (size_t)cases[i].width : 100);
        assert_has(text, " p90  ", cases[i].p90);
        assert_has(text, "left out", !cases[i].p90);
        assert_has(text, ", E2E p50", !cases[i].e2e50);
        assert_has(text, "goodput", true);
        assert_has(text, "reuse", true);
        free(text);
    }
    free_policies(r);
}

static void test_table_contents(void **state)
{
    struct report *r[N_POLICIES];
    (void)state;
    fill_policies(r);
    char *text = table_of(r, N_POLICIES, 140, false);
    assert_has(text, "1,000 requests in 16.7 min to 19.7 min, seed 7", true);
    assert_has(text,
               "2 aggregated workers (small, vllm, 1 GPU each) + 1 decode worker (large, vllm, 4 "
               "GPUs)",
               true);
    assert_has(text, "SLO       TTFT 200 ms, TPOT 35 ms", true);
    assert_has(text, " TTFT ms ", true); /* below 10 s */
    assert_has(text, " E2E s ", true);   /* above */
    assert_has(text, "*         best of its column", true);
    assert_has(text, "rejected  prob_admit    100 of 1,000 (slo 100)", true);
    assert_has(text, "retries   prob_admit 200", true);
    assert_has(text, "bad rows  3 of the trace were skipped; the first: t.jsonl:9: expected", true);
    assert_has(text, "failed    4 of the trace", true);
    assert_has(text, "oracle", false);
    const char *row = strstr(text, "\nround_robin"), *end = row ? strchr(row + 1, '\n') : NULL;
    assert_non_null(end);
    assert_has(text, "40.0", true);
    assert_has(text, "25.0*", true); /* lowest TPOT */
    assert_has(text, "60.0*", true); /* most reuse */
    assert_null(memmem(row, (size_t)(end - row), "40.0*", 5));
    free(text);
    free_policies(r);
}

static void test_table_marks(void **state)
{
    struct report *r[N_POLICIES], *same[2] = {sample("a", false), sample("b", false)};
    (void)state;
    fill_policies(r);
    char *text = table_of(r, 1, 140, false); /* nothing to compare with */
    assert_null(strchr(text, '*'));
    free(text);
    text = table_of(same, 2, 140, false); /* no differences */
    assert_null(strchr(text, '*'));
    free(text);
    text = table_of(r, N_POLICIES, 140, true);
    assert_null(strchr(text, '*'));
    assert_non_null(strstr(text, "\033[1;32m25.0\033[0m"));
    free(text);
    report_free(same[0]);
    report_free(same[1]);
    free_policies(r);
}

static void test_table_without_requests(void **state)
{
    (void)state;
    stack.slo_ttft_ps = stack.slo_tpot_ps = PS_NEVER;
    struct report_info info = {.policy = "p",
                               .stack = &stack,
                               .n_workers = N_WORKERS,
                               .speedup = 2,
                               .oracle = true,
                               .stepped = true};
    struct report *r = report_new(&info);
    assert_non_null(r);
    char *text = table_of(&r, 1, 80, false);
    assert_fits(text, 80);
    assert_has(text, "0 requests", true);
    assert_has(text, "speedup 2", true);
    assert_has(text, "oracle", true);
    assert_has(text, "stepped", true);
    assert_has(text, "goodput counts every completed request", true);
    assert_has(text, " - ", true);
    free(text);
    report_print_table(stdout, &r, 0, 80, false);
    report_free(r);
}

/* ---- the request log ---- */

static char path[64];

static const char *log_path(const char *suffix)
{
    snprintf(path, sizeof path, "/tmp/test_report.%ld%s", (long)getpid(), suffix);
    return path;
}

static struct trace *open_trace(void)
{
    char error[TRACE_ERROR_BYTES];
    const char *paths[] = {path};
    struct trace *t = trace_open(paths, 1, &(struct trace_options){.format = TRACE_AUTO}, error);
    if (!t)
        fail_msg("%s", error);
    return t;
}

static struct request_log *open_log(const char *suffix)
{
    char error[TRACE_ERROR_BYTES];
    struct request_log *l = request_log_open(log_path(suffix), error);
    if (!l)
        fail_msg("%s", error);
    return l;
}

/* Row i arrives every 1.5 s and 1 ns; every 10th is turned away. */
static struct report_request logged(uint64_t i)
{
    struct report_request q = request(i, 50 + (double)(i % 7), 10, 5);
    int64_t shift = (int64_t)i * (PS_PER_S / 2 + PS_PER_NS);
    if (i % 10 == 9) {
        q = rejected(i, CORE_REASON_SATURATED);
    } else {
        q.first_admit_ps += shift;
        q.first_token_ps += shift;
        q.second_token_ps += shift;
        q.end_ps += shift;
    }
    q.arrival_ps += shift;
    return q;
}

/* Many rows, in blocks that end in the wrong order, into a file that is read back. */
static void check_round_trip(const char *suffix)
{
    enum { ROWS = 20000, BLOCK = 50 };
    struct request_log *l = open_log(suffix);
    for (uint64_t i = 0; i < ROWS; i++) {
        struct report_request q = logged(i / BLOCK * BLOCK + BLOCK - 1 - i % BLOCK);
        assert_int_equal(request_log_add(l, "cache_aware", &q), 0);
    }
    assert_int_equal(request_log_close(l), 0);
    struct trace *t = open_trace();
    struct trace_request got;
    uint64_t n = 0;
    for (; trace_next(t, &got) == 1; n++) {
        struct report_request q = logged(n / 9 * 10 + n % 9);
        assert_true(llabs(got.arrival_ps - q.arrival_ps) < PS_PER_NS / 2);
        assert_int_equal(got.prompt_tok, 1000);
        assert_int_equal(got.output_tok, 5);
        assert_near(got.recorded_ttft_ms, 50 + (double)(q.row % 7), 1e-12);
        assert_near(got.recorded_e2e_ms, 90 + (double)(q.row % 7), 1e-12);
    }
    assert_string_equal(trace_error(t) ? trace_error(t) : "", "");
    assert_int_equal(n, ROWS / 10 * 9);
    assert_int_equal(trace_failed_rows(t), ROWS / 10);
    assert_int_equal(trace_bad_rows(t), 0);
    assert_int_equal(trace_format(t), TRACE_WEIR);
    trace_close(t);
    unlink(path);
}

static void test_log_round_trip(void **state)
{
    (void)state;
    check_round_trip(".jsonl");
    check_round_trip(".jsonl.gz");
    check_round_trip(".jsonl.zst");
}

static void test_log_sessions(void **state)
{
    (void)state;
    struct report_request q[4] = {request(0, 50, 10, 5), request(1, 50, 10, 5),
                                  request(2, 50, 10, 5), request(3, 50, 10, 5)};
    struct request_log *l = open_log(".jsonl");
    q[0].session = q[1].session = 0xabc;
    q[1].arrival_ps = 10 * PS_PER_S; /* a later turn, after rows 2 and 3 */
    q[2].tenant = 0x123456789abcdef0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(request_log_add(l, "p", &q[i]), 0);
    assert_int_equal(request_log_close(l), 0);
    struct trace *t = open_trace();
    struct trace_request got[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(trace_next(t, &got[i]), 1);
    assert_int_equal(trace_next(t, &got[0]), 0);
    assert_true(got[3].follows);
    assert_int_equal(got[3].session, 0xabc);
    assert_int_equal(got[3].arrival_ps, 10 * PS_PER_S);
    assert_int_equal(got[1].tenant, 0x123456789abcdef0);
    trace_close(t);
    unlink(path);
}

/* The lines of a plain log, parsed; returns how many. */
static size_t read_lines(yyjson_doc **docs, size_t max)
{
    char line[4096];
    size_t n = 0;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (n < max && fgets(line, sizeof line, f)) {
        docs[n] = yyjson_read(line, strlen(line), 0);
        assert_non_null(docs[n++]);
    }
    fclose(f);
    return n;
}

static void test_log_fields(void **state)
{
    yyjson_doc *docs[3];
    (void)state;
    struct report_request q = request(0, 50, 10, 3), no = rejected(1, CORE_REASON_RETRIES);
    struct request_log *l = open_log(".jsonl");
    q.worker = 4;
    q.prefill_worker = 2;
    q.preemptions = 1;
    q.retries = 2;
    q.overlap_tok = 96.0625;
    q.second_token_ps += 1499; /* rounded to 1 ns */
    assert_int_equal(request_log_add(l, "a\"b", &q), 0);
    assert_int_equal(request_log_add(l, "a\"b", &no), 0);
    assert_int_equal(request_log_add(l, "other", &q), 0);
    assert_int_equal(request_log_close(l), 0);
    assert_int_equal(read_lines(docs, 3), 3);
    yyjson_val *v = yyjson_doc_get_root(docs[0]);
    assert_near(number(v, "weir"), 1, 0);
    assert_text(v, "policy", "a\"b");
    assert_text(v, "status", "completed");
    assert_near(number(v, "worker"), 4, 0);
    assert_near(number(v, "prefill_worker"), 2, 0);
    assert_near(number(v, "first_admit_ms"), 25, 0);
    assert_near(number(v, "ttft_ms"), 50, 0);
    assert_near(number(v, "second_ms"), 60.000001, 0);
    assert_near(number(v, "e2e_ms"), 70, 0);
    assert_near(number(v, "tpot_ms"), 10, 0);
    assert_near(number(v, "reused_tok"), 100, 0);
    assert_near(number(v, "preemptions"), 1, 0);
    assert_near(number(v, "retries"), 2, 0);
    assert_near(number(v, "overlap_tok"), 96.063, 0);
    assert_true(is_null(v, "reason") && is_null(v, "session") && is_null(v, "tenant"));
    v = yyjson_doc_get_root(docs[1]);
    assert_text(v, "status", "failed");
    assert_text(v, "reason", "retries");
    assert_true(is_null(v, "worker") && is_null(v, "ttft_ms") && is_null(v, "e2e_ms"));
    assert_true(is_null(v, "tpot_ms") && is_null(v, "overlap_tok") && is_null(v, "first_admit_ms"));
    assert_text(yyjson_doc_get_root(docs[2]), "policy", "other");
    for (int i = 0; i < 3; i++)
        yyjson_doc_free(docs[i]);
    unlink(path);
}

static void test_log_largest_numbers(void **state)
{
    yyjson_doc *doc;
    char policy[300];
    (void)state;
    memset(policy, '\x01', sizeof policy - 1);
    policy[sizeof policy - 1] = '\0';
    struct report_request q = {.row = UINT64_MAX,
                               .arrival_ps = PS_LIMIT - 1,
                               .first_admit_ps = INT64_MAX,
                               .first_token_ps = INT64_MAX,
                               .second_token_ps = INT64_MAX,
                               .end_ps = INT64_MAX,
                               .prompt_tok = UINT32_MAX,
                               .output_tok = UINT32_MAX,
                               .reused_tok = UINT32_MAX,
                               .preemptions = UINT32_MAX,
                               .retries = UINT32_MAX,
                               .worker = UINT32_MAX - 1,
                               .prefill_worker = UINT32_MAX - 1,
                               .reason = CORE_REASON_NO_WORKER,
                               .tenant = UINT64_MAX,
                               .session = UINT64_MAX,
                               .overlap_tok = 1e300};
    struct request_log *l = open_log(".jsonl");
    assert_int_equal(request_log_add(l, policy, &q), 0);
    assert_int_equal(request_log_close(l), 0);
    assert_int_equal(read_lines(&doc, 1), 1);
    yyjson_val *v = yyjson_doc_get_root(doc);
    assert_true(yyjson_get_uint(yyjson_obj_get(v, "row")) == UINT64_MAX);
    assert_near(number(v, "arrival_ms"), (double)PS_LIMIT / 1e9, 1e-15);
    assert_text(v, "session", "ffffffffffffffff");
    yyjson_doc_free(doc);
    unlink(path);
}

static void test_log_empty(void **state)
{
    char byte;
    (void)state;
    static const char *const suffixes[] = {".jsonl", ".gz", ".zst"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(request_log_close(open_log(suffixes[i])), 0);
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        assert_int_equal(fread(&byte, 1, 1, f), i ? 1 : 0); /* compressed: an empty frame */
        fclose(f);
        unlink(path);
    }
}

static void test_log_errors(void **state)
{
    char error[TRACE_ERROR_BYTES], deep[2000];
    (void)state;
    assert_null(request_log_open("/tmp/no/such/folder/log.jsonl", error));
    assert_non_null(strstr(error, "its folder does not exist"));
    assert_null(request_log_open("/", error));
    assert_non_null(strstr(error, "cannot write /"));
    memset(deep, 'x', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    assert_null(request_log_open(deep, error));
    assert_true(strlen(error) < sizeof error && !strchr(error, '\n'));
    if (access("/dev/full", W_OK))
        skip();
    struct request_log *l = request_log_open("/dev/full", error);
    struct report_request q = request(0, 50, 10, 3);
    assert_non_null(l);
    assert_int_equal(request_log_add(l, "p", &q), 0);
    assert_int_equal(request_log_close(l), WEIR_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_summary, set_up),
        cmocka_unit_test_setup(test_nothing_happened, set_up),
        cmocka_unit_test_setup(test_slo_limits, set_up),
        cmocka_unit_test_setup(test_json_figures, set_up),
        cmocka_unit_test_setup(test_json_latencies, set_up),
        cmocka_unit_test_setup(test_json_pools, set_up),
        cmocka_unit_test_setup(test_json_tiers, set_up),
        cmocka_unit_test_setup(test_json_canonical, set_up),
        cmocka_unit_test_setup(test_json_disk_full, set_up),
        cmocka_unit_test_setup(test_table_widths, set_up),
        cmocka_unit_test_setup(test_table_contents, set_up),
        cmocka_unit_test_setup(test_table_marks, set_up),
        cmocka_unit_test_setup(test_table_without_requests, set_up),
        cmocka_unit_test_setup(test_log_round_trip, set_up),
        cmocka_unit_test_setup(test_log_sessions, set_up),
        cmocka_unit_test_setup(test_log_fields, set_up),
        cmocka_unit_test_setup(test_log_largest_numbers, set_up),
        cmocka_unit_test_setup(test_log_empty, set_up),
        cmocka_unit_test_setup(test_log_errors, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
