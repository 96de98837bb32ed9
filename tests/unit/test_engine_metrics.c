/* Engines' metrics pages: names old and new, several ranks on one page, broken lines, ORCA headers; and, where the
 * recordings are there, the page of a real vLLM. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/engines/engine_metrics.h"
#include "controller/engines/prom_text.h"

static struct engine_metrics m;
static struct core_telemetry t;

static void page(const char *text)
{
    assert_int_equal(engine_metrics_read(text, strlen(text), &m), 0);
}

static void samples_and_labels(void **state)
{
    (void)state;
    static const char text[] =
        "# HELP x y\n\nx 1\n y{a=\"1\",b=\"q\\\"}\\\\\",} 2e3 1700000000\r\nz{} +Inf # {id=\"3\"} 4\nw NaN\n";
    struct prom_reader r;
    struct prom_sample s;
    prom_open(&r, text, sizeof text - 1);
    assert_true(prom_next(&r, &s) && prom_is(&s, "x") && s.value == 1);
    assert_true(prom_next(&r, &s) && prom_is(&s, "y") && s.value == 2000);
    assert_int_equal(s.n_labels, 2);
    assert_int_equal(prom_label(&s, "b").len, 6);
    assert_null(prom_label(&s, "c").s);
    assert_true(prom_next(&r, &s) && prom_is(&s, "z"));
    assert_true(prom_next(&r, &s) && prom_is(&s, "w") && s.value != s.value);
    assert_false(prom_next(&r, &s));
    assert_int_equal(r.malformed, 0);
}

static void broken_lines_are_counted(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "{} 1\n", "x\n",        "x{a} 1\n",      "x{a=\"1} 1\n", "x{a=\"1\"b=\"2\"} 1\n",
        "x 1z\n", "x{a=\"\\\n", "x{=\"1\"} 1\n", "x 0x\n",       "\xff 1\n"};
    struct prom_reader r;
    struct prom_sample s;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        prom_open(&r, bad[i], strlen(bad[i]));
        if (prom_next(&r, &s) || r.malformed != 1)
            fail_msg("taken for a sample: %s", bad[i]);
    }
    prom_open(&r, "x 12", 4); /* cut: might have been 123 */
    assert_false(prom_next(&r, &s));
    char many[2000] = "x{";
    for (int i = 0; i <= (int)PROM_MAX_LABELS; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), "l%d=\"\",", i);
    snprintf(many + strlen(many), sizeof many - strlen(many), "} 1\n");
    prom_open(&r, many, strlen(many));
    assert_false(prom_next(&r, &s));
    assert_int_equal(r.malformed, 1);
}

static void vllm_with_two_ranks(void **state)
{
    (void)state;
    page(
        "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\nvllm:num_requests_running{engine=\"1\"} 4.0\n"
        "vllm:num_requests_waiting{engine=\"0\"} 1.0\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n"
        "vllm:kv_cache_usage_perc{engine=\"1\"} 0.7\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1.0\n"
        "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1.0\n");
    assert_int_equal(m.family, ENGINE_VLLM);
    assert_int_equal(m.engines, 2);
    assert_true(engine_metrics_telemetry(&m, 5, 0, &t));
    assert_int_equal(t.running, 7);
    assert_int_equal(t.waiting, 1);
    assert_int_equal(t.kv_total_blocks, 200);
    assert_int_equal(t.kv_used_blocks, 120);
    assert_int_equal(t.at_ps, 5);
    assert_int_equal((int)m.figure[FIGURE_BLOCK_SIZE], 16);
}

static void old_names_give_way_to_new_ones(void **state)
{
    (void)state;
    page("vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.25\n");
    assert_true(engine_metrics_telemetry(&m, 0, 1000, &t));
    assert_int_equal(t.kv_used_blocks, 250);
    page(
        "vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.5\nvllm:gpu_cache_usage_perc 0.25\n");
    assert_true(m.figure[FIGURE_KV_USAGE] == 0.5);
}

static void other_families(void **state)
{
    (void)state;
    page(
        "sglang:num_running_reqs 2\nsglang:num_queue_reqs 5\nsglang:token_usage 0.1\nsglang:max_total_num_tokens 4000\n");
    assert_string_equal(engine_family_name(m.family), "sglang");
    assert_true(engine_metrics_telemetry(&m, 0, 0, &t));
    assert_int_equal(t.kv_total_blocks, 4000);
    assert_int_equal(t.kv_used_blocks, 400);
    page(
        "trtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.5\ntrtllm_kv_cache_max_blocks 10\n");
    assert_int_equal(m.family, ENGINE_TRTLLM);
    page(
        "nv_trt_llm_request_metrics{request_type=\"scheduled\"} 6\nnv_trt_llm_request_metrics{request_type=\"waiting\"} 2\n"
        "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"} 0.5\n"
        "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\"} 50\n");
    assert_true(engine_metrics_telemetry(&m, 0, 0, &t));
    assert_int_equal(t.running, 6);
    assert_int_equal(t.waiting, 2);
    assert_int_equal(t.kv_used_blocks, 25);
}

static void nothing_known(void **state)
{
    (void)state;
    static const char html[] = "<html>\nnot here\n</html>\n";
    assert_int_equal(engine_metrics_read(html, sizeof html - 1, &m), WEIR_E_INPUT);
    assert_int_equal(engine_metrics_read("", 0, &m), WEIR_E_INPUT);
    page(
        "vllm:num_requests_running NaN\nvllm:num_requests_waiting -1\nvllm:kv_cache_usage_perc 2\n");
    assert_false(engine_metrics_telemetry(&m, 0, 10, &t));
    assert_int_equal(t.kv_used_blocks, 10); /* never more than there are */
}

static void orca(void **state)
{
    (void)state;
    static const char text[] =
        "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3";
    static const char json[] =
        "JSON {\"named_metrics\": {\"kv_cache_usage_perc\": 0.25, \"num_requests_waiting\": 7}}";
    assert_int_equal(engine_metrics_orca(text, sizeof text - 1, &m), 0);
    assert_true(m.figure[FIGURE_KV_USAGE] == 0.4 && m.figure[FIGURE_WAITING] == 3);
    assert_int_equal(engine_metrics_orca(json, sizeof json - 1, &m), 0);
    assert_true(m.figure[FIGURE_KV_USAGE] == 0.25 && m.figure[FIGURE_WAITING] == 7);
    static const char *const bad[] = {"",
                                      "TEXT ",
                                      "TEXT a=1",
                                      "JSON {",
                                      "named_metrics.num_requests_waiting=3",
                                      "TEXT named_metrics.num_requests_waiting=x",
                                      "JSON {\"named_metrics\":[1]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(engine_metrics_orca(bad[i], strlen(bad[i]), &m), WEIR_E_INPUT);
}

static void a_real_page(void **state)
{
    (void)state;
    static char text[1 << 20];
    FILE *f = fopen("../shared/data/vllm_cpu_runs/high/metrics_before_after.txt", "r");
    if (!f) {
        print_message("skipped: the recordings of a real vLLM are not here\n");
        skip();
    }
    size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    assert_int_equal(engine_metrics_read(text, n, &m), 0);
    assert_int_equal(m.family, ENGINE_VLLM);
    assert_true(
        engine_metrics_known(&m, FIGURE_RUNNING) && engine_metrics_known(&m, FIGURE_TTFT_COUNT) &&
        engine_metrics_known(&m, FIGURE_PREFIX_HITS_TOK) && engine_metrics_known(&m, FIGURE_STEPS));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_and_labels),
        cmocka_unit_test(broken_lines_are_counted),
        cmocka_unit_test(vllm_with_two_ranks),
        cmocka_unit_test(old_names_give_way_to_new_ones),
        cmocka_unit_test(other_families),
        cmocka_unit_test(nothing_known),
        cmocka_unit_test(orca),
        cmocka_unit_test(a_real_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
