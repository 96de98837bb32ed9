/* The request log of weir serve: a trace that replay reads, salted, bounded, and never half a line whatever the disk does. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "controller/replay/trace.h"
#include "controller/serve/request_log.h"

static char path[64];

static void *copy(const uint64_t *keys, uint32_t n)
{
    uint64_t *k = malloc(n * sizeof *k);
    assert_non_null(k);
    return memcpy(k, keys, n * sizeof *k);
}

static struct reqlog_entry entry(int64_t arrival_us, const uint64_t *keys, uint32_t n)
{
    struct reqlog_entry e = {.arrival_us = arrival_us,
                             .decided_ns = 1000,
                             .sent_ns = 2000,
                             .first_byte_ns = 5000000,
                             .first_token_ns = 6500000,
                             .end_ns = 106500000,
                             .pool = "main",
                             .policy = "sticky",
                             .endpoint = "chat",
                             .status = "completed",
                             .finish = "stop",
                             .http_status = 200,
                             .prompt_tok = 64 * n + 5,
                             .estimated_tok = 64 * n,
                             .output_tok = 11,
                             .session = 77,
                             .tenant = 78,
                             .overlap_tok = -1,
                             .ttft_ps = -1,
                             .tpot_ps = -1,
                             .keys = n ? copy(keys, n) : NULL,
                             .n_keys = n,
                             .key_tok = 64};
    snprintf(e.model, sizeof e.model, "a \"model\"\n");
    snprintf(e.worker, sizeof e.worker, "w:1");
    return e;
}

static struct reqlog *start(const char *salt, uint64_t rotate)
{
    char error[REQLOG_ERROR_BYTES];
    struct reqlog_options o = {path, rotate, salt, salt ? strlen(salt) : 0};
    struct reqlog *l = reqlog_open(&o, error);
    assert_non_null(l);
    return l;
}

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "reqlog-test-%d", (int)getpid());
    return 0;
}

static int teardown(void **state)
{
    char old[80];
    (void)state;
    snprintf(old, sizeof old, "%s.1", path);
    unlink(path);
    unlink(old);
    return 0;
}

static struct trace *open_trace(void)
{
    char error[TRACE_ERROR_BYTES] = "";
    const char *paths[] = {path};
    struct trace_options o = {.format = TRACE_AUTO};
    struct trace *t = trace_open(paths, 1, &o, error);
    assert_string_equal(error, "");
    return t;
}

static void rows_come_back_in_order_of_arrival(void **state)
{
    const uint64_t a[] = {1, 2, 3}, b[] = {1, 2, 9};
    struct reqlog *l = start("0123456789", 0);
    struct trace_request q;
    uint64_t first[3];
    (void)state;
    struct reqlog_entry e = entry(1764000000000000 + 250000, b, 3);
    e.first_token_ns = -1;
    reqlog_put(l, &e);
    e = entry(1764000000000000, a, 3); /* arrived before, ended later */
    reqlog_put(l, &e);
    e = entry(1764000000000000 + 1000, NULL, 0);
    e.status = "rejected";
    e.output_tok = 0;
    reqlog_put(l, &e);
    reqlog_close(l);
    struct trace *t = open_trace();
    assert_int_equal(trace_next(t, &q), 1);
    assert_int_equal(trace_format(t), TRACE_WEIR);
    assert_int_equal(q.arrival_ps, 0);
    assert_int_equal(q.prompt_tok, 197);
    assert_int_equal(q.output_tok, 11);
    assert_int_equal(q.n_keys, 3);
    assert_int_equal(q.key_tok, 64);
    assert_true(q.recorded_ttft_ms > 6.4999 && q.recorded_ttft_ms < 6.5001);
    assert_true(q.recorded_e2e_ms > 106.4999 && q.recorded_e2e_ms < 106.5001);
    memcpy(first, q.keys, sizeof first);
    uint64_t session = q.session;
    assert_int_equal(trace_next(t, &q), 1);
    assert_true(llabs(q.arrival_ps - 250 * PS_PER_MS) < PS_PER_US);
    assert_true(q.keys[0] == first[0] && q.keys[1] == first[1] && q.keys[2] != first[2]);
    assert_true(first[0] != 1 && session != 77 && q.session == session);
    assert_int_equal(trace_next(t, &q), 0);
    assert_int_equal(trace_failed_rows(t), 1);
    trace_close(t);
}

static uint64_t key_under(const char *salt)
{
    const uint64_t k[] = {42};
    struct trace_request q;
    unlink(path);
    struct reqlog *l = start(salt, 0);
    struct reqlog_entry e = entry(0, k, 1);
    reqlog_put(l, &e);
    reqlog_close(l);
    struct trace *t = open_trace();
    assert_int_equal(trace_next(t, &q), 1);
    uint64_t got = q.keys[0];
    trace_close(t);
    return got;
}

static void the_salt_decides(void **state)
{
    (void)state;
    uint64_t a = key_under("one salt"), b = key_under("another!");
    assert_true(a != b && a == key_under("one salt"));
    assert_true(key_under(NULL) != key_under(NULL));
}

static void a_full_ring_drops_and_counts(void **state)
{
    struct reqlog *l = start(NULL, 0);
    uint64_t *many = calloc(REQLOG_RING_KEYS + 1, sizeof *many);
    (void)state;
    assert_non_null(many);
    struct reqlog_entry e = entry(0, NULL, 0);
    e.keys = many;
    e.n_keys = REQLOG_RING_KEYS + 1;
    reqlog_put(l, &e);
    assert_int_equal(reqlog_stats(l).dropped_full, 1);
    e = entry(0, NULL, 0);
    for (uint32_t i = 0; i < 20 * REQLOG_RING; i++)
        reqlog_put(l, &e);
    reqlog_reopen(l);
    uint64_t dropped = reqlog_stats(l).dropped_full;
    reqlog_close(l);
    struct trace *t = open_trace();
    struct trace_request q;
    uint64_t rows = 0;
    while (trace_next(t, &q) > 0)
        rows++;
    trace_close(t);
    assert_int_equal(rows + dropped, 20 * REQLOG_RING + 1);
}

/* The limit on a file's size stands for a full disk: write fails in the middle of a line. */
static void a_full_disk_leaves_whole_lines_and_heals(void **state)
{
    struct reqlog *l = start(NULL, 0);
    struct rlimit before, tight = {10000, 10000};
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    tight.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    struct reqlog_entry e = entry(0, NULL, 0);
    for (int i = 0; i < 100; i++)
        reqlog_put(l, &e);
    while (reqlog_stats(l).written + reqlog_stats(l).dropped_disk < 100)
        usleep(1000);
    assert_true(reqlog_stats(l).failing && reqlog_stats(l).dropped_disk > 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    reqlog_put(l, &e);
    while (reqlog_stats(l).written + reqlog_stats(l).dropped_disk < 101)
        usleep(1000);
    struct reqlog_stats s = reqlog_stats(l);
    assert_false(s.failing);
    reqlog_close(l);
    struct trace *t = open_trace();
    struct trace_request q;
    uint64_t rows = 0;
    int rc;
    while ((rc = trace_next(t, &q)) > 0)
        rows++;
    assert_int_equal(rc, 0);
    assert_int_equal(rows, s.written);
    trace_close(t);
}

static void a_large_file_is_put_aside_and_a_moved_one_reopened(void **state)
{
    struct reqlog *l = start(NULL, 2000);
    char old[80];
    (void)state;
    snprintf(old, sizeof old, "%s.1", path);
    struct reqlog_entry e = entry(0, NULL, 0);
    for (int i = 0; i < 5; i++)
        reqlog_put(l, &e);
    while (reqlog_stats(l).written < 5)
        usleep(1000);
    reqlog_put(l, &e);
    while (reqlog_stats(l).written < 6)
        usleep(1000);
    assert_int_equal(access(old, F_OK), 0);
    assert_int_equal(rename(path, old), 0);
    reqlog_reopen(l);
    reqlog_put(l, &e);
    reqlog_close(l);
    assert_int_equal(access(path, F_OK), 0);
}

static void what_cannot_be_opened_is_told(void **state)
{
    char error[REQLOG_ERROR_BYTES];
    struct reqlog_options o = {.path = "/nonexistent/folder/log"};
    (void)state;
    assert_null(reqlog_open(&o, error));
    assert_non_null(strstr(error, "/nonexistent/folder/log"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_come_back_in_order_of_arrival, setup, teardown),
        cmocka_unit_test_setup_teardown(the_salt_decides, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_ring_drops_and_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_disk_leaves_whole_lines_and_heals, setup, teardown),
        cmocka_unit_test_setup_teardown(a_large_file_is_put_aside_and_a_moved_one_reopened, setup,
                                        teardown),
        cmocka_unit_test(what_cannot_be_opened_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
