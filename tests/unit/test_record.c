/* Messages between processes: what is written is read back; fields to come are passed over; what is too large, cut, from
 * the future, under the wrong key or outside the limits is refused with its reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/state/record.h"

#define NOW_US INT64_C(1800000000000000)

static struct worker_record w, back;
static uint8_t bytes[RECORD_MAX_BYTES + 64];
static size_t len;

static int fresh(void **state)
{
    (void)state;
    memset(&w, 0, sizeof w);
    snprintf(w.name, sizeof w.name, "10.0.0.1:8000");
    snprintf(w.address, sizeof w.address, "http://10.0.0.1:8000");
    w.role = ROLE_DECODE;
    w.n_models = 2;
    snprintf(w.models[0], RECORD_MODEL_BYTES, "llama");
    snprintf(w.models[1], RECORD_MODEL_BYTES, "llama-70b");
    w.n_loras = 1;
    snprintf(w.loras[0], RECORD_MODEL_BYTES, "poet");
    w.epoch = 77;
    w.sequence = 5;
    w.measured_at_us = NOW_US - 1000;
    w.sent_at_us = NOW_US;
    w.lease_ms = 3000;
    w.failure = RECORD_STALLED;
    snprintf(w.failure_detail, sizeof w.failure_detail, "no token for 12 s");
    w.running = 3;
    w.waiting = 4;
    w.kv_used_blocks = 10;
    w.kv_total_blocks = 27000;
    w.block_size = 16;
    w.queried_tok = 1000;
    w.hit_tok = 600;
    w.preemptions = 2;
    w.steps = 9;
    w.prompt_tok = 1234;
    w.output_tok = 99;
    w.ttft_count = 4;
    w.ttft_sum_s = 1.5;
    w.itl_count = 95;
    w.itl_sum_s = 2.25;
    return 0;
}

static void write_it(void)
{
    assert_int_equal(record_write_worker(&w, bytes, sizeof bytes, &len), 0);
}

static enum record_fault read_it(size_t n)
{
    return record_read_worker(&back, w.name, bytes, n, NOW_US);
}

static void a_worker_comes_back(void **state)
{
    (void)state;
    write_it();
    assert_int_equal(read_it(len), RECORD_GOOD);
    assert_memory_equal(&back, &w, sizeof w);
    assert_int_equal(record_read_worker(&back, NULL, bytes, len, NOW_US), RECORD_GOOD);
}

static void a_field_to_come_is_passed_over(void **state)
{
    (void)state;
    static const uint8_t text_999[] = {0xba, 0x3e, 3, 'n', 'e', 'w'},
                         number_998[] = {0xb0, 0x3e, 1};
    write_it();
    memmove(bytes + sizeof text_999, bytes, len);
    memcpy(bytes, text_999, sizeof text_999);
    len += sizeof text_999;
    memcpy(bytes + len, number_998, sizeof number_998);
    len += sizeof number_998;
    assert_int_equal(read_it(len), RECORD_GOOD);
    assert_memory_equal(&back, &w, sizeof w);
}

/* As written by a sender that knows less: the rest is zeros. */
static void an_old_sender_is_read(void **state)
{
    (void)state;
    memset(&w, 0, sizeof w);
    snprintf(w.name, sizeof w.name, "a:1");
    snprintf(w.address, sizeof w.address, "http://a:1");
    w.sent_at_us = NOW_US;
    w.lease_ms = 1;
    write_it();
    assert_int_equal(read_it(len), RECORD_GOOD);
    assert_memory_equal(&back, &w, sizeof w);
}

static void every_cut_is_refused(void **state)
{
    (void)state;
    write_it();
    for (size_t n = 0; n < len; n++) {
        if (read_it(n) != RECORD_MALFORMED)
            fail_msg("%zu of %zu bytes were taken for a record", n, len);
    }
    struct worker_load loads[2] = {{.worker = "a:1", .requests = 1}, {.worker = "b:2"}};
    struct worker_load room[RECORD_MAX_LOADS];
    struct dispatches d = {
        .controller = "c", .sent_at_us = NOW_US, .lease_ms = 9, .n = 2, .loads = loads};
    assert_int_equal(record_write_dispatches(&d, bytes, sizeof bytes, &len), 0);
    d.loads = room;
    for (size_t n = 0; n < len; n++)
        assert_int_equal(record_read_dispatches(&d, bytes, n, NOW_US), RECORD_MALFORMED);
}

static void too_large_is_refused(void **state)
{
    (void)state;
    assert_int_equal(read_it(RECORD_MAX_BYTES + 1), RECORD_TOO_LARGE);
    w.n_models = RECORD_MAX_MODELS;
    w.n_loras = RECORD_MAX_LORAS;
    for (uint32_t i = 0; i < RECORD_MAX_MODELS; i++)
        memset(w.models[i], 'm', RECORD_MODEL_BYTES - 1);
    for (uint32_t i = 0; i < RECORD_MAX_LORAS; i++)
        memset(w.loras[i], 'l', RECORD_MODEL_BYTES - 1);
    write_it();
    assert_int_equal(read_it(len), RECORD_GOOD);
    assert_int_equal(record_write_worker(&w, bytes, len - 1, &len), WEIR_E_LIMIT);
    w.n_models++;
    assert_int_equal(record_write_worker(&w, bytes, sizeof bytes, &len), WEIR_E_INVALID);
}

/* The version is the first field: its number, then its value. */
static void the_future_is_refused(void **state)
{
    (void)state;
    write_it();
    assert_int_equal(bytes[0], 8);
    bytes[1] = RECORD_VERSION + 1;
    assert_int_equal(read_it(len), RECORD_FUTURE);
    bytes[1] = 0;
    assert_int_equal(read_it(len), RECORD_MALFORMED);

    w.sent_at_us = NOW_US + RECORD_MAX_AHEAD_US; /* clocks differ */
    write_it();
    assert_int_equal(read_it(len), RECORD_GOOD);
    w.sent_at_us++;
    write_it();
    assert_int_equal(read_it(len), RECORD_FUTURE);
    w.sent_at_us = INT64_MAX;
    write_it();
    assert_int_equal(read_it(len), RECORD_FUTURE);
    w.sent_at_us = NOW_US;
    w.measured_at_us = NOW_US + RECORD_MAX_AHEAD_US + 1;
    write_it();
    assert_int_equal(read_it(len), RECORD_FUTURE);
}

static void another_key_is_refused(void **state)
{
    (void)state;
    write_it();
    assert_int_equal(record_read_worker(&back, "10.0.0.2:8000", bytes, len, NOW_US),
                     RECORD_WRONG_KEY);
}

/* A sender refuses to write it; so the bytes are changed behind its back. */
static void contents_outside_the_limits_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
    } changes[] = {
        {"10.0.0.1:8000", "10.0.0.1 8000"}, {"llama-70b", "llama\"70b"}, {"poet", "po\nt"}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        write_it();
        uint8_t *at = memmem(bytes, len, changes[i].from, strlen(changes[i].from));
        assert_non_null(at);
        memcpy(at, changes[i].to, strlen(changes[i].to));
        assert_int_equal(record_read_worker(&back, NULL, bytes, len, NOW_US), RECORD_INVALID);
    }
    w.kv_used_blocks = w.kv_total_blocks + 1;
    assert_int_equal(record_write_worker(&w, bytes, sizeof bytes, &len), WEIR_E_INVALID);
    fresh(NULL);
    w.lease_ms = 0;
    assert_int_equal(record_write_worker(&w, bytes, sizeof bytes, &len), WEIR_E_INVALID);
    w.lease_ms = RECORD_MAX_LEASE_MS + 1;
    assert_int_equal(record_write_worker(&w, bytes, sizeof bytes, &len), WEIR_E_INVALID);
    fresh(NULL);
    w.itl_sum_s = 0.0 / 0.0;
    assert_int_equal(record_write_worker(&w, bytes, sizeof bytes, &len), WEIR_E_INVALID);
    fresh(NULL);
    w.name[0] = '\0';
    assert_int_equal(record_write_worker(&w, bytes, sizeof bytes, &len), WEIR_E_INVALID);
}

static void garbage_is_refused(void **state)
{
    (void)state;
    struct worker_load room[RECORD_MAX_LOADS];
    struct dispatches d = {.loads = room};
    static const char *const garbage[] = {
        "", "hello", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "{\"version\": 1}"};
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        size_t n = strlen(garbage[i]);
        assert_int_equal(record_read_worker(&back, NULL, garbage[i], n, NOW_US), RECORD_MALFORMED);
        assert_int_equal(record_read_dispatches(&d, garbage[i], n, NOW_US), RECORD_MALFORMED);
    }
    write_it(); /* a worker is no dispatch, if nobody says so */
    assert_int_not_equal(record_read_dispatches(&d, bytes, len, NOW_US), RECORD_GOOD);
}

static void dispatches_come_back(void **state)
{
    (void)state;
    static struct worker_load loads[RECORD_MAX_LOADS + 1], room[RECORD_MAX_LOADS];
    struct dispatches d = {.controller = "f00d",
                           .sequence = 8,
                           .sent_at_us = NOW_US,
                           .lease_ms = 3000,
                           .whole = true,
                           .n = RECORD_MAX_LOADS,
                           .loads = loads},
                      got = {.loads = room};
    for (uint32_t i = 0; i < d.n; i++) {
        snprintf(loads[i].worker, sizeof loads[i].worker, "10.0.0.%u:8000", i);
        loads[i].requests = 2 * i + 1;
        loads[i].prefilling = i;
        loads[i].prefill_tok = 1000 * i;
        loads[i].prompt_tok = RECORD_MAX_TOKENS;
    }
    assert_int_equal(record_write_dispatches(&d, bytes, sizeof bytes, &len), 0);
    assert_int_equal(record_read_dispatches(&got, bytes, len, NOW_US), RECORD_GOOD);
    assert_string_equal(got.controller, "f00d");
    assert_true(got.sequence == 8 && got.sent_at_us == NOW_US && got.lease_ms == 3000 && got.whole);
    assert_int_equal(got.n, d.n);
    for (uint32_t i = 0; i < d.n; i++) {
        assert_string_equal(got.loads[i].worker, loads[i].worker);
        assert_true(got.loads[i].requests == loads[i].requests &&
                    got.loads[i].prefilling == loads[i].prefilling &&
                    got.loads[i].prefill_tok == loads[i].prefill_tok &&
                    got.loads[i].prompt_tok == loads[i].prompt_tok);
    }
    assert_int_equal(record_read_dispatches(&got, bytes, len, NOW_US - RECORD_MAX_AHEAD_US - 1),
                     RECORD_FUTURE);
    d.n++;
    assert_int_equal(record_write_dispatches(&d, bytes, sizeof bytes, &len), WEIR_E_INVALID);
    d.n = 1;
    loads[0].prefilling = 2;
    assert_int_equal(record_write_dispatches(&d, bytes, sizeof bytes, &len), WEIR_E_INVALID);
}

static void reasons_have_names(void **state)
{
    (void)state;
    for (int i = 0; i < RECORD_FAULTS; i++)
        assert_true(strlen(record_fault_name((enum record_fault)i)) > 3);
    for (int i = 0; i < RECORD_FAILURES; i++)
        assert_true(strlen(record_failure_name((enum record_failure)i)) > 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_worker_comes_back, fresh),
        cmocka_unit_test_setup(a_field_to_come_is_passed_over, fresh),
        cmocka_unit_test(an_old_sender_is_read),
        cmocka_unit_test_setup(every_cut_is_refused, fresh),
        cmocka_unit_test_setup(too_large_is_refused, fresh),
        cmocka_unit_test_setup(the_future_is_refused, fresh),
        cmocka_unit_test_setup(another_key_is_refused, fresh),
        cmocka_unit_test_setup(contents_outside_the_limits_are_refused, fresh),
        cmocka_unit_test_setup(garbage_is_refused, fresh),
        cmocka_unit_test(dispatches_come_back),
        cmocka_unit_test(reasons_have_names),
    };
    return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
