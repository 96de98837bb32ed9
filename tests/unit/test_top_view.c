/* The page of weir top: fits 80 x 24 whatever the state holds, and shows nothing that a terminal would obey. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/top/top_view.h"

static const char head[] =
    "{\"version\":\"0.1.0\",\"draining\":false,\"totals\":{\"requests\":12345678,\"live\":12,\"refused\":3,\"cut\":1,"
    "\"prompt_tok\":1000,\"cached_tok\":430,\"ttft_p50_ms\":45.5,\"ttft_p99_ms\":1234.5,\"tpot_p50_ms\":7.6},\"pools\":[";
static const char worker[] =
    "{\"name\":\"%s\",\"state\":\"up\",\"health\":\"ok\",\"running\":123456,\"waiting\":99999999,\"kv_usage\":0.43,"
    "\"inflight\":12,\"prefill_tokens\":123456789012,\"predicted_ttft_ms\":34.5,\"ttft_bias\":1.02,\"tpot_bias\":0.97}";
static const char decision[] =
    "{\"worker\":\"10.0.0.1:8000\",\"prompt_tok\":1200,\"cached_tok\":600,\"output_tok\":100,\"ttft_ms\":50.25,"
    "\"predicted_ttft_ms\":null,\"tpot_ms\":7.5,\"predicted_tpot_ms\":8,\"outcome\":\"completed\",\"reason\":\"%s\"}";

static char *state_of(int pools, int workers, int decisions, const char *name)
{
    char *json = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&json, &len);
    assert_non_null(f);
    fputs(head, f);
    for (int p = 0; p < pools; p++) {
        fprintf(
            f,
            "%s{\"name\":\"%s\",\"policy\":\"sticky\",\"queued\":3,\"inflight\":12,\"workers\":[",
            p ? "," : "", name);
        for (int i = 0; i < workers; i++) {
            fputs(i ? "," : "", f);
            fprintf(f, worker, name);
        }
        fputs("]}", f);
    }
    fputs("],\"decisions\":[", f);
    for (int i = 0; i < decisions; i++) {
        fputs(i ? "," : "", f);
        fprintf(f, decision, i % 2 ? "queue_full" : "");
    }
    fputs("]}", f);
    fclose(f);
    return json;
}

static char *page_of(const char *json, int height, int *rc)
{
    char *page = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&page, &len);
    struct top_view v = {"127.0.0.1:9090", 12.3, height};
    *rc = top_view_write(f, &v, json, strlen(json));
    fclose(f);
    return page;
}

static int check_lines(const char *page)
{
    int n = 0;
    for (const char *line = page; *line; n++) {
        const char *stop = strchr(line, '\n');
        assert_non_null(stop);
        assert_true(stop - line <= TOP_MIN_WIDTH);
        for (; line < stop; line++)
            assert_true(*line >= 0x20 && *line < 0x7f);
        line = stop + 1;
    }
    return n;
}

static void shows_what_there_is(void **state)
{
    int rc;
    char *json = state_of(1, 2, 3, "10.0.0.1:8000"), *page = page_of(json, 24, &rc);
    (void)state;
    assert_int_equal(rc, 0);
    assert_int_equal(check_lines(page), 2 + 2 + 2 + 2 + 3);
    const char *wanted[] = {"weir 0.1.0",
                            "12.3/s,",
                            "12 live",
                            "cached 43%",
                            "pool 10.0.0.1:8000: sticky, 3 waiting",
                            "10.0.0.1:8000",
                            "queue_full",
                            "completed",
                            "1234"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        assert_non_null(strstr(page, wanted[i]));
    free(page);
    free(json);
}

static void always_fits(void **state)
{
    static const int many[][3] = {{0, 0, 0},   {1, 100, 16}, {3, 2, 16},
                                  {64, 9, 16}, {1, 13, 1},   {9, 0, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof many / sizeof *many; i++) {
        int rc;
        char *json = state_of(many[i][0], many[i][1], many[i][2],
                              "a-very-long-name-of-a-worker.example.org:8000");
        char *page = page_of(json, 24, &rc);
        assert_int_equal(rc, 0);
        assert_true(check_lines(page) <= 24);
        free(page);
        page = page_of(json, 0, &rc);
        assert_true(check_lines(page) >= many[i][0] * many[i][1] + many[i][2]);
        free(page);
        free(json);
    }
}

static void obeys_nobody(void **state)
{
    int rc;
    char *json = state_of(1, 1, 1, "\\u001b[2Jx\\u0007\xc3\xa4"), *page = page_of(json, 24, &rc);
    (void)state;
    assert_int_equal(rc, 0);
    check_lines(page);
    free(page);
    free(json);
}

static void other_answers_are_refused(void **state)
{
    static const char *const others[] = {
        "", "{", "[]", "{}", "{\"pools\":3}", "{\"pools\":[]}", "not found"};
    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        int rc;
        char *page = page_of(others[i], 24, &rc);
        assert_int_equal(rc, WEIR_E_INPUT);
        free(page);
        assert_true(top_view_requests(others[i], strlen(others[i])) < 0);
    }
    int rc; /* members of the wrong type are shown as nothing */
    const char odd[] =
        "{\"totals\":{\"requests\":\"x\"},\"pools\":[3,{\"workers\":[null,{\"name\":5,\"kv_usage\":\"a\"}]}],"
        "\"decisions\":{\"a\":1}}";
    char *page = page_of(odd, 24, &rc);
    assert_int_equal(rc, 0);
    check_lines(page);
    free(page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shows_what_there_is),
        cmocka_unit_test(always_fits),
        cmocka_unit_test(obeys_nobody),
        cmocka_unit_test(other_answers_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
