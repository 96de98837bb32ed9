/* Synthetic traces: the same bytes from the same options, read back by the loader, and shaped as asked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "controller/commands.h"
#include "controller/replay/gen.h"
#include "controller/replay/trace.h"
#include "tests/support/files.h"

static char error[GEN_ERROR_BYTES];

/* The trace of these options; free it. */
static char *generate(const struct gen_options *o)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    int rc = gen_run(o, f, error);
    assert_int_equal(fclose(f), 0);
    if (rc)
        fail_msg("%d: %s", rc, error);
    return text;
}

static struct gen_options some(void)
{
    struct gen_options o;
    gen_defaults(&o);
    o.requests = 2000;
    o.rate = 10;
    return o;
}

/* What a test wants to know of a trace. */
struct summary {
    uint64_t rows, follows, prompt_tok, output_tok, delay_ms;
    uint32_t longest, median_prompt;
    int64_t last_ps;
    double dispersion; /* variance of arrivals a second over their mean; 1: Poisson */
    uint64_t by_second[4096];
};

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void read_back(const char *text, enum trace_format format, struct summary *s)
{
    char why[TRACE_ERROR_BYTES];
    struct trace_options o = {.format = format};
    struct trace_request q;
    uint32_t prompts[1 << 16], n = 0;
    uint64_t session = 0;
    int rc;
    memset(s, 0, sizeof *s);
    struct trace *t = trace_open_memory("gen", text, strlen(text), &o, why);
    if (!t)
        fail_msg("%s", why);
    for (; (rc = trace_next(t, &q)) > 0; s->rows++) {
        assert_true(!q.follows || q.session == session); /* turns stand behind one another */
        session = q.session;
        s->follows += q.follows;
        s->prompt_tok += q.prompt_tok;
        s->output_tok += q.output_tok;
        s->delay_ms += (uint64_t)(q.delay_ps / PS_PER_MS);
        if (n < 1 << 16)
            prompts[n++] = q.prompt_tok;
        if (q.prompt_tok + q.output_tok > s->longest)
            s->longest = q.prompt_tok + q.output_tok;
        if (q.arrival_ps == PS_NEVER)
            continue;
        s->last_ps = q.arrival_ps;
        assert_true(q.arrival_ps / PS_PER_S < 4096);
        s->by_second[q.arrival_ps / PS_PER_S]++;
    }
    if (rc < 0)
        fail_msg("%s", trace_error(t));
    trace_close(t);
    qsort(prompts, n, sizeof *prompts, by_size);
    s->median_prompt = n ? prompts[n / 2] : 0;
    double mean = 0, square = 0, seconds = (double)(s->last_ps / PS_PER_S);
    for (int i = 0; i < (int)seconds; i++) {
        mean += (double)s->by_second[i] / seconds;
        square += (double)(s->by_second[i] * s->by_second[i]) / seconds;
    }
    s->dispersion = mean > 0 ? (square - mean * mean) / mean : 0;
}

/* A change of these is a change of everybody's synthetic traces. */
static void same_bytes_everywhere(void **state)
{
    (void)state;
    struct gen_options o = some();
    static const uint64_t want[4] = {
        UINT64_C(0x140914c073824e19),
        UINT64_C(0x783296e39a6682f5),
        UINT64_C(0xa273a1ff2ffc9a12),
        UINT64_C(0x87d32e888eef1672),
    };
    for (unsigned i = 0; i < 4; i++) {
        o.arrivals = (enum gen_arrivals)i;
        o.seed = i;
        o.tenants = i * 10;
        o.turns_mean = i == 1 ? 3 : 1;
        o.prefix_groups = i & 1 ? 5 : 0;
        o.prefix_tok = 1024;
        o.delta = i == 1;
        char *text = generate(&o), *again = generate(&o);
        assert_string_equal(text, again);
        uint64_t hash = XXH3_64bits(text, strlen(text));
        if (hash != want[i])
            fail_msg("kind %u: 0x%016llx", i, (unsigned long long)hash);
        free(text);
        free(again);
    }
    o = some();
    char *one = generate(&o);
    o.seed++;
    char *two = generate(&o);
    assert_string_not_equal(one, two);
    free(one);
    free(two);
}

static void poisson(void **state)
{
    (void)state;
    static struct summary s;
    struct gen_options o = some();
    o.requests = 20000;
    char *text = generate(&o);
    read_back(text, TRACE_AUTO, &s);
    free(text);
    assert_int_equal(s.rows, 20000);
    assert_int_equal(s.follows, 0);
    assert_in_range(s.last_ps / PS_PER_S, 1950, 2050); /* standard deviation 14 s */
    assert_true(s.dispersion > 0.85 && s.dispersion < 1.15);
    assert_in_range(s.median_prompt, 990, 1060);
    assert_in_range(s.output_tok / s.rows, 265, 287); /* lognormal: 200 * exp(0.8^2 / 2) = 275.4 */
}

static void constant(void **state)
{
    (void)state;
    static struct summary s;
    struct gen_options o = some();
    o.arrivals = GEN_CONSTANT;
    char *text = generate(&o);
    read_back(text, TRACE_AUTO, &s);
    free(text);
    assert_int_equal(s.last_ps, 1999 * 100 * PS_PER_MS);
    for (int i = 0; i < 199; i++)
        assert_int_equal(s.by_second[i], 10);
}

static void bursts(void **state)
{
    (void)state;
    static struct summary s;
    struct gen_options o = some();
    o.arrivals = GEN_MMPP;
    o.requests = 20000;
    char *text = generate(&o);
    read_back(text, TRACE_AUTO, &s);
    free(text);
    assert_in_range(s.last_ps / PS_PER_S, 1500, 2600); /* about 20 bursts of 10 s: a wide spread */
    assert_true(s.dispersion > 5);                     /* rate^2 * (4-1)*(1-2/3)... far from 1 */
}

static void diurnal(void **state)
{
    (void)state;
    static struct summary s;
    struct gen_options o = some();
    o.arrivals = GEN_DIURNAL;
    o.requests = 0;
    o.minutes = 60;
    o.day_minutes = 60;
    o.day_amplitude = 0.9;
    char *text = generate(&o);
    read_back(text, TRACE_AUTO, &s);
    free(text);
    uint64_t quarter[4] = {0}; /* around the peak, the fall, the trough and the rise */
    for (int i = 0; i < 3600; i++)
        quarter[(i + 3600 - 450) % 3600 / 900] += s.by_second[i];
    assert_in_range(s.rows, 36000 - 800, 36000 + 800);
    /* mean of 1 + 0.9 sin over a quarter around its peak: 1.810; at the trough 0.190 */
    assert_in_range(quarter[0], 16290 - 700, 16290 + 700);
    assert_in_range(quarter[2], 1710 - 200, 1710 + 200);
    assert_in_range(quarter[1], 9000 - 500, 9000 + 500);
}

static void sessions(void **state)
{
    (void)state;
    static struct summary s, d;
    struct gen_options o = some();
    o.requests = 20000;
    o.turns_mean = 4;
    o.think_s = 30;
    o.input = (struct gen_length){100, 0.5};
    char *text = generate(&o);
    read_back(text, TRACE_AUTO, &s);
    assert_int_equal(s.rows, 20000);
    double turns = (double)s.rows / (double)(s.rows - s.follows);
    assert_true(turns > 3.6 && turns < 4.2); /* some go on behind the end */
    double think = (double)s.delay_ms / (double)s.follows;
    assert_true(think > 29000 && think < 31000);
    /* each turn's prompt is the last one's prompt and answer and what is new: the ids say so too */
    assert_non_null(strstr(text, "\"session_id\": \"s1\""));
    free(text);
    o.delta = 1; /* the same conversation, each turn with its new input only */
    text = generate(&o);
    read_back(text, TRACE_MOONCAKE_DELTA, &d);
    free(text);
    assert_int_equal(d.rows, s.rows);
    assert_int_equal(d.follows, s.follows);
    assert_int_equal(d.prompt_tok, s.prompt_tok);
    assert_int_equal(d.output_tok, s.output_tok);
}

/* Nothing comes later than asked, as far as think times alone say. */
static void sessions_end_in_time(void **state)
{
    (void)state;
    char why[TRACE_ERROR_BYTES];
    struct gen_options o = some();
    o.requests = 0;
    o.minutes = 10;
    for (int endless = 0; endless < 2; endless++) {
        o.turns_mean = 20;
        o.think_s = endless ? 1e6 : 60;
        char *text = generate(&o);
        struct trace_options to = {.format = TRACE_AUTO};
        struct trace *t = trace_open_memory("gen", text, strlen(text), &to, why);
        struct trace_request q;
        int64_t at = 0, latest = 0;
        unsigned follows = 0;
        if (!t)
            fail_msg("%s", why);
        while (trace_next(t, &q) > 0) {
            at = q.follows ? at + q.delay_ps : q.arrival_ps;
            latest = at > latest ? at : latest;
            follows += q.follows;
        }
        assert_string_equal(trace_error(t), "");
        trace_close(t);
        free(text);
        assert_true(latest <= 600 * PS_PER_S && latest > 500 * PS_PER_S * !endless);
        assert_true(endless ? follows < 5 : follows > 1000);
    }
}

/* Ids of whole blocks repeat from turn to turn, and from request to request of a group. */
static void shared_prefixes(void **state)
{
    (void)state;
    char why[TRACE_ERROR_BYTES];
    struct gen_options o = some();
    o.prefix_groups = 3;
    o.prefix_tok = 1500; /* two whole blocks of 512 */
    o.turns_mean = 2;
    char *text = generate(&o);
    struct trace_options to = {.format = TRACE_AUTO};
    struct trace *t = trace_open_memory("gen", text, strlen(text), &to, why);
    struct trace_request q;
    uint64_t first[3][2] = {{0}};
    unsigned groups = 0, count[3] = {0};
    assert_non_null(t);
    while (trace_next(t, &q) > 0) {
        assert_true(q.prompt_tok > 1500 && q.n_keys >= 3);
        unsigned g = 0;
        while (g < groups && first[g][0] != q.keys[0])
            g++;
        if (g == groups) {
            assert_true(groups < 3);
            first[groups][0] = q.keys[0];
            first[groups++][1] = q.keys[1];
        }
        assert_int_equal(q.keys[1], first[g][1]);
        count[g] += !q.follows;
    }
    trace_close(t);
    free(text);
    assert_int_equal(groups, 3);
    qsort(count, 3, sizeof *count, by_size); /* Zipf: 2/11, 3/11, 6/11 */
    unsigned all = count[0] + count[1] + count[2];
    assert_in_range(count[2] * 100 / all, 48, 61);
    assert_in_range(count[0] * 100 / all, 13, 23);
}

static void tenants(void **state)
{
    (void)state;
    struct gen_options o = some();
    o.tenants = 4;
    char *text = generate(&o);
    unsigned n[4] = {0};
    for (char *at = text; (at = strstr(at, "\"tenant\": \"t")); at += 10) {
        assert_in_range(at[12], '0', '3');
        n[at[12] - '0']++;
    }
    free(text);
    assert_int_equal(n[0] + n[1] + n[2] + n[3], 2000);
    assert_in_range(n[0], 960 - 120, 960 + 120); /* 12/25 */
    assert_in_range(n[3], 240 - 70, 240 + 70);   /* 3/25 */
}

static void longest_context(void **state)
{
    (void)state;
    static struct summary s;
    struct gen_options o = some();
    o.turns_mean = 20;
    o.max_context_tok = 4000;
    char *text = generate(&o);
    read_back(text, TRACE_AUTO, &s);
    free(text);
    assert_in_range(s.longest, 3900, 4000);
}

static void fixed_lengths(void **state)
{
    (void)state;
    static struct summary s;
    struct gen_options o = some();
    o.input = (struct gen_length){777, 0};
    o.output = (struct gen_length){33, 0};
    char *text = generate(&o);
    read_back(text, TRACE_AUTO, &s);
    free(text);
    assert_int_equal(s.prompt_tok, 777 * s.rows);
    assert_int_equal(s.output_tok, 33 * s.rows);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *arg[3], *says;
    } bad[] = {
        {{"--rate", "0"}, "--rate: expected 0.000001 to 1000000"},
        {{"--rate", "nan"}, "--rate: expected requests a second, as 12 or 0.5, found 'nan'"},
        {{"--rate", "-1"}, "--rate: expected 0.000001"},
        {{"--rate", "1e300"}, "--rate: expected 0.000001"},
        {{"--rate", "12x"}, "found '12x'"},
        {{"--rate"}, "--rate: expected a value behind it"},
        {{"--requests", "0"}, "--requests: expected a whole number, 1 or more"},
        {{"--requests", "-5"}, "found '-5'"},
        {{"--requests", "99999999999999999999"}, "found '99999999999999999999'"},
        {{"--minutes", "5"}, "either --minutes or --requests"},
        {{"--arrivals", "posson"}, "poisson, constant, mmpp or diurnal"},
        {{"--burst", "4,0.1"}, "FACTOR,SHARE,DWELL"},
        {{"--burst=4,0.5,10", "--arrivals=mmpp"}, "FACTOR * SHARE <= 1"},
        {{"--day=0,0.5", "--arrivals=diurnal"}, "--day: expected more than 0"},
        {{"--tenants", "100001"}, "at most 100000"},
        {{"--sessions", "0.5,30"}, "mean of 1 to 1000000 turns"},
        {{"--shared-prefix", "5"}, "GROUPS,TOKENS"},
        {{"--shared-prefix", "5,131072"}, "leaves room for input and output"},
        {{"--input", "normal:3,4"}, "lognormal:MEDIAN,SIGMA or fixed:N"},
        {{"--input", "lognormal:0,4"}, "median of 1 to"},
        {{"--output", "fixed:0"}, "median of 1 to"},
        {{"--max-context", "1"}, "2 to 16777216"},
        {{"--block-size", "0"}, "1 to 16777216"},
        {{"--format", "azure"}, "mooncake or mooncake-delta"},
        {{"--seed", "x"}, "whole number of 64 bits"},
        {{"--sesions", "4,30"}, "--sesions: no such option; did you mean --sessions?"},
        {{"trace.jsonl"}, "expected only options, found 'trace.jsonl'"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int status = -1;
        char *text = OUTPUT(gen_main, &status, "gen", "--requests", "5", bad[i].arg[0],
                            bad[i].arg[1], bad[i].arg[1] ? bad[i].arg[2] : NULL);
        if (status != 2 || strncmp(text, "weir gen: ", 10) != 0 || !strstr(text, bad[i].says) ||
            strchr(text, '\n') != text + strlen(text) - 1)
            fail_msg("%s %s: status %d: expected '%s', got '%s'", bad[i].arg[0],
                     bad[i].arg[1] ? bad[i].arg[1] : "", status, bad[i].says, text);
        free(text);
    }
    int status = -1;
    char *text = OUTPUT(gen_main, &status, "gen", "--rate", "3");
    assert_int_equal(status, 2);
    assert_non_null(strstr(text, "either --minutes or --requests"));
    free(text);
}

/* 53 days are not enough for so few requests. */
static void too_slow(void **state)
{
    (void)state;
    struct gen_options o = some();
    o.rate = 1e-6;
    FILE *f = fopen("/dev/null", "w");
    assert_non_null(f);
    assert_int_equal(gen_run(&o, f, error), WEIR_E_LIMIT);
    assert_non_null(strstr(error, "fit into 53 days; raise --rate"));
    o.requests = 0;
    o.minutes = 0.001;
    assert_int_equal(gen_run(&o, f, error), WEIR_E_LIMIT);
    assert_non_null(strstr(error, "no request comes in that time; raise --rate"));
    assert_int_equal(fclose(f), 0);
}

static void disk_full(void **state)
{
    (void)state;
    struct gen_options o = some();
    FILE *f = fopen("/dev/full", "w");
    assert_non_null(f);
    assert_int_equal(gen_run(&o, f, error), WEIR_E_IO);
    assert_non_null(strstr(error, "No space left"));
    (void)fclose(f);
}

static void command(void **state)
{
    (void)state;
    int status = -1;
    char *text = OUTPUT(gen_main, &status, "gen", "--requests", "3", "--input", "5", "--output",
                        "fixed:2", "--arrivals", "constant", "--rate", "2");
    assert_int_equal(status, 0);
    assert_string_equal(
        text,
        "{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 2, \"hash_ids\": [0]}\n"
        "{\"timestamp\": 500, \"input_length\": 5, \"output_length\": 2, \"hash_ids\": [1]}\n"
        "{\"timestamp\": 1000, \"input_length\": 5, \"output_length\": 2, \"hash_ids\": [2]}\n");
    free(text);
    text = OUTPUT(gen_main, &status, "gen", "--help");
    assert_int_equal(status, 0);
    assert_int_equal(strncmp(text, "usage: weir gen", 15), 0);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bytes_everywhere),
        cmocka_unit_test(poisson),
        cmocka_unit_test(constant),
        cmocka_unit_test(bursts),
        cmocka_unit_test(diurnal),
        cmocka_unit_test(sessions),
        cmocka_unit_test(sessions_end_in_time),
        cmocka_unit_test(shared_prefixes),
        cmocka_unit_test(tenants),
        cmocka_unit_test(longest_context),
        cmocka_unit_test(fixed_lengths),
        cmocka_unit_test(refusals),
        cmocka_unit_test(too_slow),
        cmocka_unit_test(disk_full),
        cmocka_unit_test(command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
