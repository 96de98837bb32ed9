/* What an agent makes of an engine: figures, models and adapters, stalls and failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "controller/state/engine_report.h"

static struct engine_report r;

static void page(const char *text, uint64_t now_ms)
{
    struct engine_metrics m;
    assert_int_equal(engine_metrics_read(text, strlen(text), &m), 0);
    engine_report_page(&r, &m, now_ms, 5000 + (int64_t)now_ms, 100);
}

static int fresh(void **state)
{
    (void)state;
    memset(&r, 0, sizeof r);
    return 0;
}

static void figures(void **state)
{
    (void)state;
    page(
        "vllm:num_requests_running 3\nvllm:num_requests_waiting 4\nvllm:kv_cache_usage_perc 0.5\n"
        "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\"} 1\n"
        "vllm:prefix_cache_queries_total 100\nvllm:prefix_cache_hits_total 60\n"
        "vllm:num_preemptions_total 2\nvllm:prompt_tokens_total 1000\nvllm:generation_tokens_total 50\n"
        "vllm:time_to_first_token_seconds_sum 1.5\nvllm:time_to_first_token_seconds_count 4\n",
        7);
    const struct worker_record *w = &r.record;
    assert_true(w->running == 3 && w->waiting == 4 && w->kv_used_blocks == 500 &&
                w->kv_total_blocks == 1000 && w->block_size == 16);
    assert_true(w->queried_tok == 100 && w->hit_tok == 60 && w->preemptions == 2);
    assert_true(w->prompt_tok == 1000 && w->output_tok == 50 && w->ttft_count == 4 &&
                w->ttft_sum_s > 1.4);
    assert_true(w->measured_at_us == 5007 && w->failure == RECORD_FAILURE_NONE);
}

static void a_stall(void **state)
{
    (void)state;
    page("vllm:num_requests_running 1\nvllm:generation_tokens_total 5\n", 1000);
    page("vllm:num_requests_running 1\nvllm:generation_tokens_total 5\n", 1099);
    assert_int_equal(r.record.failure, RECORD_FAILURE_NONE);
    page("vllm:num_requests_running 1\nvllm:generation_tokens_total 5\n", 1100);
    assert_int_equal(r.record.failure, RECORD_STALLED);
    assert_non_null(strstr(r.record.failure_detail, "1 requests run"));
    page("vllm:num_requests_running 1\nvllm:generation_tokens_total 6\n", 1101); /* headway */
    assert_int_equal(r.record.failure, RECORD_FAILURE_NONE);
    assert_string_equal(r.record.failure_detail, "");
    page("vllm:num_requests_running 1\nvllm:generation_tokens_total 6\n", 1300);
    assert_int_equal(r.record.failure, RECORD_STALLED);
    page("vllm:num_requests_running 1\nvllm:generation_tokens_total 0\n", 1301); /* it began anew */
    assert_int_equal(r.record.failure, RECORD_FAILURE_NONE);
    page("vllm:num_requests_running 0\nvllm:generation_tokens_total 0\n", 1500); /* nothing to do */
    page("vllm:num_requests_running 0\nvllm:generation_tokens_total 0\n", 1900);
    assert_int_equal(r.record.failure, RECORD_FAILURE_NONE);
    page("vllm:num_requests_running 1\nvllm:generation_tokens_total 0\n", 1950);
    assert_int_equal(r.record.failure, RECORD_FAILURE_NONE);
    page("trtllm_num_requests_running 1\n", 9000); /* a family without such counters */
    page("trtllm_num_requests_running 1\n", 99000);
    assert_int_equal(r.record.failure, RECORD_FAILURE_NONE);
}

static void failures(void **state)
{
    (void)state;
    char longer[2 * RECORD_DETAIL_BYTES];
    memset(longer, 'x', sizeof longer);
    longer[1] = '\n';
    longer[sizeof longer - 1] = '\0';
    engine_report_failed(&r, RECORD_UNREACHABLE, longer);
    assert_int_equal(r.record.failure, RECORD_UNREACHABLE);
    assert_int_equal(strlen(r.record.failure_detail), RECORD_DETAIL_BYTES - 1);
    assert_int_equal(r.record.failure_detail[1], '?');
}

static void models(void **state)
{
    (void)state;
    static const char one[] =
        "{\"data\":[{\"id\":\"base\",\"parent\":null},{\"id\":\"poet\",\"parent\":\"base\"},"
        "{\"id\":\"bad name\"},{\"id\":7},{}]}";
    engine_report_models(&r, one, sizeof one - 1);
    assert_int_equal(r.record.n_models, 1);
    assert_string_equal(r.record.models[0], "base");
    assert_int_equal(r.record.n_loras, 1);
    assert_string_equal(r.record.loras[0], "poet");
    engine_report_models(&r, "garbage", 7); /* changes nothing */
    assert_int_equal(r.record.n_models, 1);
    char many[8192] = "{\"data\":[{\"id\":\"m\"}";
    for (uint32_t i = 0; i < 2 * RECORD_MAX_MODELS + 1; i++)
        strncat(many,
                ",{\"id\":\"m\"},{\"id\":\"l\",\"parent\":\"m\"},{\"id\":\"l\",\"parent\":\"m\"}",
                sizeof many - strlen(many) - 1);
    strncat(many, "]}", sizeof many - strlen(many) - 1);
    engine_report_models(&r, many, strlen(many));
    assert_int_equal(r.record.n_models, RECORD_MAX_MODELS);
    assert_int_equal(r.record.n_loras, RECORD_MAX_LORAS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(figures, fresh),
        cmocka_unit_test_setup(a_stall, fresh),
        cmocka_unit_test_setup(failures, fresh),
        cmocka_unit_test_setup(models, fresh),
    };
    return cmocka_run_group_tests_name("engine_report", tests, NULL, NULL);
}
