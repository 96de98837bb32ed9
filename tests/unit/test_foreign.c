/* What other controllers have in flight: sums, what is told again, what is forgotten, and the limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "controller/state/foreign.h"

#define N 3u
static struct foreign *f;
static uint64_t sequence[FOREIGN_MAX_CONTROLLERS + 1];

static uint32_t index_of(void *user, const char *worker)
{
    (void)user;
    return (uint32_t)(worker[0] - '0'); /* "7": none of ours */
}

static int setup(void **state)
{
    (void)state;
    memset(sequence, 0, sizeof sequence);
    f = foreign_new(N);
    return f ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    foreign_free(f);
    return 0;
}

/* Controller c says at now_ms that it has requests[w] at worker w, of those named in workers. */
static int says(uint32_t c, uint64_t now_ms, bool whole, const char *workers, uint32_t requests)
{
    struct worker_load loads[8];
    struct dispatches d = {
        .sequence = ++sequence[c], .lease_ms = 100, .whole = whole, .loads = loads};
    bool gap;
    snprintf(d.controller, sizeof d.controller, "c%u", c);
    for (; *workers; workers++) {
        loads[d.n] = (struct worker_load){.requests = requests,
                                          .prefilling = 1,
                                          .prefill_tok = 10 * requests,
                                          .prompt_tok = 100 * requests};
        snprintf(loads[d.n++].worker, 8, "%c", *workers);
    }
    int rc = foreign_take(f, &d, now_ms, index_of, NULL, &gap);
    assert_false(gap);
    return rc;
}

/* The totals that have changed, as "worker:requests". */
static void assert_changes(const char *expect)
{
    char text[64] = "";
    uint32_t total[N], n = 0, w;
    bool seen[N] = {false};
    struct core_load l;
    while (foreign_changed(f, &w, &l)) {
        assert_true(w < N && !seen[w] && n++ < N);
        seen[w] = true;
        total[w] = l.requests;
        assert_int_equal(l.prefill_tok, 10 * l.requests);
        assert_int_equal(l.prompt_tok, 100 * l.requests);
    }
    for (w = 0; w < N; w++) {
        size_t at = strlen(text);
        if (seen[w])
            snprintf(text + at, sizeof text - at, "%u:%u ", w, total[w]);
    }
    assert_string_equal(text, expect);
}

static void sums(void **state)
{
    (void)state;
    assert_int_equal(says(0, 0, true, "01", 2), 0);
    assert_changes("0:2 1:2 ");
    assert_int_equal(says(1, 0, true, "17", 5), 0);
    assert_changes("1:7 ");
    assert_int_equal(foreign_controllers(f), 2);
    assert_int_equal(foreign_requests(f), 9);
    assert_int_equal(says(1, 0, false, "2", 1), 0); /* the rest stays */
    assert_changes("2:1 ");
    assert_int_equal(says(1, 0, false, "2", 1), 0); /* nothing new */
    assert_changes("");
    assert_int_equal(says(1, 0, true, "2", 1), 0); /* and that is all */
    assert_changes("1:2 ");
}

static void leases(void **state)
{
    (void)state;
    assert_int_equal(says(0, 0, true, "0", 2), 0);
    assert_int_equal(says(1, 50, true, "0", 3), 0);
    assert_changes("0:5 ");
    foreign_expire(f, 99);
    assert_changes("");
    foreign_expire(f, 100);
    assert_changes("0:3 ");
    assert_int_equal(foreign_controllers(f), 1);
    assert_int_equal(says(1, 120, false, "", 0), 0); /* it lives */
    foreign_expire(f, 219);
    assert_changes("");
    foreign_expire(f, 220);
    assert_changes("0:0 ");
    assert_int_equal(foreign_controllers(f), 0);
    assert_int_equal(foreign_requests(f), 0);
}

static void repeats_and_gaps(void **state)
{
    struct dispatches d = {.controller = "c", .sequence = 5, .lease_ms = 100};
    bool gap;
    (void)state;
    assert_int_equal(foreign_take(f, &d, 0, index_of, NULL, &gap), 0);
    assert_false(gap); /* whatever was before: we have just come */
    assert_int_equal(foreign_take(f, &d, 0, index_of, NULL, &gap), WEIR_E_INVALID);
    d.sequence = 4;
    assert_int_equal(foreign_take(f, &d, 0, index_of, NULL, &gap), WEIR_E_INVALID);
    d.sequence = 6;
    assert_int_equal(foreign_take(f, &d, 0, index_of, NULL, &gap), 0);
    assert_false(gap);
    d.sequence = 8;
    assert_int_equal(foreign_take(f, &d, 0, index_of, NULL, &gap), 0);
    assert_true(gap);
}

static void too_many(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < FOREIGN_MAX_CONTROLLERS; c++)
        assert_int_equal(says(c, c, true, "0", 1), 0);
    assert_int_equal(says(FOREIGN_MAX_CONTROLLERS, 99, true, "0", 1), WEIR_E_LIMIT);
    assert_changes("0:64 ");
    foreign_expire(f, 100); /* the first one makes room */
    assert_int_equal(says(FOREIGN_MAX_CONTROLLERS, 100, true, "0", 1), 0);
    assert_changes("0:64 ");
    for (uint32_t c = 1; c < 4; c++) /* never more than the core takes */
        assert_int_equal(says(c, 100, true, "0", CORE_MAX_REQUESTS), 0);
    uint32_t w;
    struct core_load l;
    assert_true(foreign_changed(f, &w, &l));
    assert_true(l.requests <= CORE_MAX_REQUESTS && l.requests > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(sums, setup, teardown),
        cmocka_unit_test_setup_teardown(leases, setup, teardown),
        cmocka_unit_test_setup_teardown(repeats_and_gaps, setup, teardown),
        cmocka_unit_test_setup_teardown(too_many, setup, teardown),
    };
    return cmocka_run_group_tests_name("foreign", tests, NULL, NULL);
}
