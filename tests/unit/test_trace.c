/* Traces of every format, and one line for everything that can be wrong with one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "controller/replay/trace.h"
#include "predictor/request.h"
#include "tests/support/files.h"

#define DATA "../shared/data/traces/"
#define ROWS_MAX 64

static char error[TRACE_ERROR_BYTES];
static struct trace_request row[ROWS_MAX];
static uint64_t keys[ROWS_MAX][ROWS_MAX];

static struct trace *open_text(const char *text, const struct trace_options *o)
{
    return trace_open_memory("t", text, strlen(text), o, error);
}

/* Reads all rows into row[] and keys[]; returns how many. An error fails the test. */
static size_t read_rows(struct trace *t)
{
    size_t n = 0;
    int rc;
    if (!t)
        fail_msg("%s", error);
    for (; (rc = trace_next(t, &row[n])) > 0; n++) {
        assert_true(n + 1 < ROWS_MAX && row[n].n_keys <= ROWS_MAX);
        if (row[n].n_keys)
            memcpy(keys[n], row[n].keys, row[n].n_keys * sizeof keys[n][0]);
        assert_int_equal(row[n].row, n);
    }
    if (rc < 0)
        fail_msg("%s", trace_error(t));
    trace_close(t);
    return n;
}

static size_t read_text(const char *text, enum trace_format format)
{
    return read_rows(open_text(text, &(struct trace_options){.format = format}));
}

static uint64_t chain(const uint64_t *ids, size_t n)
{
    uint64_t key = 0;
    for (size_t i = 0; i < n; i++)
        key = request_chain_key(key, ids[i]);
    return key;
}

/* ---- formats ---- */

static void mooncake(void **state)
{
    (void)state;
    static const char text[] =
        "{\"timestamp\": 1000, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [3, 9]}\n"
        "{\"timestamp\":1000,\"input_length\":512,\"output_length\":1,\"hash_ids\":[3]}\n"
        "{\"hash_ids\": [3, 9, 12345678901], \"output_length\": 2, \"input_length\": 1025, "
        "\"timestamp\": 4000.25}\n"
        "{\"timestamp\": 4001, \"input_length\": 10, \"output_length\": 2, \"other\": {\"x\": [1]}}\n";
    for (int slow = 0; slow < 2; slow++) {
        struct trace_options o = {.no_fast_path = slow};
        struct trace *t = open_text(text, &o);
        assert_int_equal(read_rows(t), 4);
        assert_int_equal(row[0].arrival_ps, 0);
        assert_int_equal(row[0].prompt_tok, 700);
        assert_int_equal(row[0].output_tok, 5);
        assert_int_equal(row[0].max_tokens, 0);
        assert_int_equal(row[0].key_tok, 512);
        assert_int_equal(row[0].n_keys, 2);
        assert_int_equal(keys[0][0], chain((uint64_t[]){3}, 1));
        assert_int_equal(keys[0][1], chain((uint64_t[]){3, 9}, 2));
        assert_int_equal(keys[1][0], keys[0][0]);
        assert_int_equal(row[2].arrival_ps, 3000 * PS_PER_MS + PS_PER_MS / 4);
        assert_int_equal(keys[2][2], chain((uint64_t[]){3, 9, 12345678901}, 3));
        assert_int_equal(row[3].n_keys, 0);
        assert_int_equal(row[3].session, 0);
        assert_false(row[3].follows);
        assert_true(row[3].recorded_ttft_ms < 0);
    }
}

/* Ids that count up are read by their text: over every kind of carry, with steps missing, and next to what looks alike,
 * the keys are those of the numbers. */
static void mooncake_ids_that_count_up(void **state)
{
    (void)state;
    static const uint64_t from[] = {0,   7,     8,      9,      17,      95,       197,       989,
                                    996, 99990, 123456, 999990, 9999985, 99999992, 1234567890};
    for (size_t k = 0; k < sizeof from / sizeof *from; k++) {
        for (unsigned variant = 0; variant < 8; variant++) {
            const char *comma = variant & 1 ? ", " : ",";
            uint64_t ids[30], id = from[k], want = 0;
            char text[1024];
            int n = snprintf(text, sizeof text,
                             "{\"timestamp\": 0, \"input_length\": %u, \"output_length\": 1, "
                             "\"hash_ids\":%s[",
                             30 * 512, variant & 1 ? " " : "");
            for (unsigned i = 0; i < 30; i++) {
                ids[i] = id;
                n += snprintf(text + n, sizeof text - (size_t)n, "%s%" PRIu64, i ? comma : "", id);
                id += variant >= 4 && i % 7 == 3 ? 10 : variant >= 2 && i % 5 == 4 ? 2 : 1;
            }
            n += snprintf(text + n, sizeof text - (size_t)n, "]}\n");
            for (int slow = 0; slow < 2; slow++) {
                struct trace_options o = {.no_fast_path = slow};
                struct trace *t = open_text(text, &o);
                struct trace_request q;
                assert_int_equal(trace_next(t, &q), 1);
                assert_int_equal(q.n_keys, 30);
                want = 0;
                for (unsigned i = 0; i < 30; i++) {
                    want = request_chain_key(want, ids[i]);
                    assert_int_equal(q.keys[i], want);
                }
                trace_close(t);
            }
        }
    }
}

static void mooncake_optional_fields(void **state)
{
    (void)state;
    assert_int_equal(
        read_text(
            "{\"created_time\": 0, \"input_tokens\": 9, \"output_tokens\": 8, \"hash_ids\": [1], "
            "\"session_id\": \"a\", \"priority\": -3, \"user\": \"u\", \"request_id\": 7, "
            "\"strict_priority\": 1, \"policy_class\": \"x\"}\n"
            "{\"timestamp\": 1, \"input_length\": 9, \"output_length\": 8, \"session_id\": 5, "
            "\"tenant\": \"u\", \"priority\": null, \"delay\": 0}\n"
            "{\"session_id\": \"a\", \"delay\": 1500, \"input_length\": 99, \"output_length\": 3}\n"
            "{\"session_id\": \"5\", \"delay_ms\": 2.5, \"input_length\": 99, \"output_length\": 3, "
            "\"timestamp\": 77}\n",
            TRACE_AUTO),
        4);
    assert_int_equal(row[0].priority, -3);
    assert_true(row[0].session && row[0].tenant && row[0].tenant == row[1].tenant);
    assert_true(row[1].session != row[0].session);
    assert_false(row[0].follows || row[1].follows);
    assert_int_equal(row[2].session, row[0].session);
    assert_true(row[2].follows);
    assert_int_equal(row[2].arrival_ps, PS_NEVER);
    assert_int_equal(row[2].delay_ps, 1500 * PS_PER_MS);
    assert_int_equal(row[3].session, row[1].session); /* 5 and "5" are one name */
    assert_true(row[3].follows);
    assert_int_equal(row[3].arrival_ps, 77 * PS_PER_MS);
    assert_int_equal(row[3].delay_ps, 5 * PS_PER_MS / 2);
}

/* A next turn that repeats the answer's ids finds it cached. */
static void output_token_ids(void **state)
{
    (void)state;
    struct trace_options o = {.block_tok = 4};
    assert_int_equal(
        read_rows(open_text(
            "{\"timestamp\": 0, \"input_length\": 6, \"output_length\": 9, \"hash_ids\": [1, 2], "
            "\"output_token_ids\": [2, 2, 3, 3, 3, 3, 7, 8, 7]}\n"
            "{\"timestamp\": 1, \"input_length\": 16, \"output_length\": 1, \"hash_ids\": [1, 2, 3, 4]}\n"
            "{\"timestamp\": 2, \"input_length\": 6, \"output_length\": 2, \"hash_ids\": [1, 2], "
            "\"output_token_ids\": [2, 5]}\n"
            "{\"timestamp\": 3, \"input_length\": 4, \"output_length\": 8, \"hash_ids\": [1], "
            "\"output_token_ids\": [2, 2, 2, 2, 3, 3, 3, 3]}\n",
            &o)),
        4);
    assert_int_equal(row[0].n_keys, 4); /* 15 tokens in slots of 4 */
    assert_int_equal(keys[0][2], keys[1][2]);
    assert_true(keys[0][3] != keys[1][3]);
    assert_int_equal(row[2].n_keys, 2); /* the slot where the answer starts has no one name */
    assert_int_equal(row[3].n_keys, 3);
    assert_int_equal(keys[3][2], keys[1][2]);
}

static void azure(void **state)
{
    (void)state;
    assert_int_equal(read_text("TIMESTAMP,ContextTokens,GeneratedTokens\n"
                               "2023-11-16 18:17:03.9799600,4808,10\n"
                               "2023-11-16 18:17:04.0319600,3180,0\n"
                               "2023-11-16T18:18:04Z,1,8\n"
                               "2023-11-16 19:48:04.5+01:30,\"7\", 8\n",
                               TRACE_AUTO),
                     4);
    assert_int_equal(row[0].arrival_ps, 0);
    assert_int_equal(row[0].prompt_tok, 4808);
    assert_int_equal(row[0].output_tok, 10);
    assert_int_equal(row[1].arrival_ps, 52 * PS_PER_MS);
    assert_int_equal(row[1].output_tok, 1); /* a prefill always yields a token */
    assert_int_equal(row[2].arrival_ps, INT64_C(60020040000000));
    assert_int_equal(row[3].arrival_ps, INT64_C(60520040000000));
    assert_int_equal(row[3].prompt_tok, 7);
    /* 2024's file; the columns by name, wherever they are; over midnight and the end of February */
    assert_int_equal(read_text("GeneratedTokens,x,ContextTokens,TIMESTAMP\n"
                               "5,,2162,2024-02-28 23:59:59.999999+00:00\n"
                               "6,,2399,2024-02-29 00:00:00.000001+00:00\n"
                               "6,,2399,2024-03-01 00:00:00+00:00\n",
                               TRACE_AUTO),
                     3);
    assert_int_equal(row[0].prompt_tok, 2162);
    assert_int_equal(row[1].arrival_ps, 2 * PS_PER_US);
    assert_int_equal(row[2].arrival_ps, 86400 * PS_PER_S + PS_PER_US);
    /* a part of a file, without its header */
    assert_int_equal(read_text("2023-11-16 18:17:03.9799600,4808,10\n", TRACE_AZURE), 1);
    assert_int_equal(row[0].prompt_tok, 4808);
}

static void burstgpt(void **state)
{
    (void)state;
    struct trace *t =
        open_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
                  "5,ChatGPT,472,18,490,Conversation log\n"
                  "45.5,GPT-4,1087,0,1087,API log\n"
                  "118,\"GPT, 4\",417,276.0,693,API log\n",
                  &(struct trace_options){.format = TRACE_AUTO});
    struct trace_request q;
    assert_int_equal(trace_next(t, &q), 1);
    assert_int_equal(q.prompt_tok, 472);
    assert_int_equal(q.output_tok, 18);
    assert_int_equal(trace_next(t, &q), 1);
    assert_int_equal(q.row, 1);
    assert_int_equal(q.arrival_ps, 113 * PS_PER_S);
    assert_int_equal(q.output_tok, 276);
    assert_int_equal(trace_next(t, &q), 0);
    assert_int_equal(trace_failed_rows(t), 1);
    assert_int_equal(trace_bad_rows(t), 0);
    assert_int_equal(trace_format(t), TRACE_BURSTGPT);
    trace_close(t);
    /* with sessions, as its second release has them */
    assert_int_equal(
        read_text("Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,"
                  "Total tokens,Log Type\n"
                  "5,c1,2.5,ChatGPT,472,18,490,Conversation log\n"
                  "6,,,ChatGPT,472,18,490,API log\n"
                  "45,c1,3,ChatGPT,472,18,490,Conversation log\n",
                  TRACE_AUTO),
        3);
    assert_true(row[2].follows && row[2].session == row[0].session && !row[1].session);
    assert_int_equal((int)row[0].recorded_e2e_ms, 2500);
    assert_true(row[1].recorded_e2e_ms < 0);
}

static void weir_log(void **state)
{
    (void)state;
    static const char text[] =
        "{\"weir\":1,\"row\":0,\"arrival_ms\":10.5,\"prompt_tok\":600,\"output_tok\":20,\"max_tokens\":64,"
        "\"session\":\"00000000000000ff\",\"tenant\":\"acme\",\"status\":\"completed\",\"policy\":\"p\","
        "\"key_tok\":512,\"keys\":[\"0123456789abcdef\",\"fedcba9876543210\"],\"ttft_ms\":12.5,"
        "\"e2e_ms\":90.25,\"priority\":2}\n"
        "{\"weir\":1,\"row\":1,\"arrival_ms\":11,\"prompt_tok\":5,\"output_tok\":0,\"status\":\"rejected\","
        "\"policy\":\"p\"}\n"
        "{\"weir\":1,\"row\":2,\"arrival_ms\":12,\"prompt_tok\":5,\"output_tok\":3,\"status\":\"failed\","
        "\"ttft_ms\":null,\"policy\":\"p\"}\n";
    struct trace *t = open_text(text, &(struct trace_options){.format = TRACE_AUTO});
    struct trace_request q;
    assert_int_equal(trace_next(t, &q), 1);
    assert_int_equal(trace_format(t), TRACE_WEIR);
    assert_int_equal(q.max_tokens, 64);
    assert_int_equal(q.session, 255);
    assert_true(q.tenant);
    assert_int_equal(q.n_keys, 2);
    assert_int_equal(q.keys[0], UINT64_C(0x0123456789abcdef)); /* chained already */
    assert_int_equal(q.keys[1], UINT64_C(0xfedcba9876543210));
    assert_int_equal(q.priority, 2);
    assert_int_equal((int)(q.recorded_ttft_ms * 10), 125);
    assert_int_equal((int)(q.recorded_e2e_ms * 100), 9025);
    assert_int_equal(trace_next(t, &q), 1); /* part of an answer can be replayed */
    assert_int_equal(q.output_tok, 3);
    assert_int_equal(q.arrival_ps, 3 * PS_PER_MS / 2);
    assert_true(q.recorded_ttft_ms < 0);
    assert_int_equal(trace_next(t, &q), 0);
    assert_int_equal(trace_failed_rows(t), 1);
    trace_close(t);
}

/* trace.h's drawing, with slots of 4 tokens: prompt 6, answer 5, new input 7. */
static void mooncake_delta(void **state)
{
    (void)state;
    struct trace_options o = {.format = TRACE_MOONCAKE_DELTA, .block_tok = 4};
    static const char text[] =
        "{\"timestamp\": 0, \"input_length\": 6, \"output_length\": 5, \"hash_ids\": [1, 2], "
        "\"session_id\": \"s\"}\n"
        "{\"input_length\": 7, \"output_length\": 1, \"hash_ids\": [8, 9], \"session_id\": \"s\"}\n"
        "{\"timestamp\": 1, \"input_length\": 6, \"output_length\": 5, \"hash_ids\": [1, 2]}\n";
    assert_int_equal(read_rows(open_text(text, &o)), 3);
    uint64_t generated = request_generated_key(1); /* uid = row + 1 */
    assert_int_equal(row[0].prompt_tok, 6);
    assert_int_equal(row[1].prompt_tok, 18);
    assert_int_equal(row[1].key_tok, 4);
    assert_int_equal(row[1].n_keys, 5);
    assert_int_equal(keys[1][0], keys[0][0]);             /* 0..4: of the previous prompt */
    assert_int_equal(keys[1][1], generated);              /* 4..8: its end, and the answer */
    uint64_t k = request_chain_key(generated, generated); /* 8..12: answer and new input */
    k = request_chain_key(k, 8);
    assert_int_equal(keys[1][2], k);
    k = request_chain_key(request_chain_key(k, 8), 9); /* 12..16 touches both ids */
    assert_int_equal(keys[1][3], k);
    assert_int_equal(keys[1][4], request_chain_key(k, 9)); /* 16..18 */
    assert_int_equal(keys[2][0], keys[0][0]); /* without a session: a prompt of its own */
    assert_int_equal(row[2].n_keys, 2);
}

/* ---- files ---- */

static const char moon[] =
    "{\"timestamp\": 0, \"input_length\": 10, \"output_length\": 5, \"hash_ids\": [1]}\n"
    "{\"timestamp\": 7, \"input_length\": 10, \"output_length\": 5, \"hash_ids\": [2]}\n";

static void several_files(void **state)
{
    (void)state;
    size_t n;
    void *packed = gzip_of(moon, sizeof moon - 1, &n);
    const char *paths[3] = {file_with(packed, n)};
    free(packed);
    static const char later[] =
        "\n{\"timestamp\": 9, \"input_length\": 11, \"output_length\": 5, \"hash_ids\": [2]}";
    packed = zstd_of(later, sizeof later - 1, &n);
    paths[1] = file_with(packed, n);
    free(packed);
    paths[2] = file_of("  {\"timestamp\": 10, \"input_length\": 12, \"output_length\": 5}\n\n\n");
    struct trace_options o = {.format = TRACE_AUTO};
    assert_int_equal(read_rows(trace_open(paths, 3, &o, error)), 4);
    assert_int_equal(row[2].prompt_tok, 11);
    assert_int_equal(row[2].arrival_ps, 9 * PS_PER_MS);
    assert_int_equal(row[3].prompt_tok, 12);

    struct trace_request q;
    const char *wrong[] = {paths[1], paths[0]};
    struct trace *t = trace_open(wrong, 2, &o, error);
    assert_int_equal(trace_next(t, &q), 1);
    assert_int_equal(trace_next(t, &q), WEIR_E_INPUT);
    assert_non_null(strstr(trace_error(t), "name the files in order"));
    trace_close(t);

    const char *gone[] = {paths[0], "/no/such/file"};
    assert_null(trace_open(gone, 2, &o, error)); /* seen before the first is read */
    assert_non_null(strstr(error, "/no/such/file: cannot be opened: No such file"));
    const char *folder[] = {"/"};
    assert_null(trace_open(folder, 1, &o, error));
    assert_non_null(strstr(error, "/: cannot be opened: Is a directory; name a trace file"));
    assert_null(trace_open(NULL, 0, &o, error));
    assert_non_null(strstr(error, "no trace named"));
}

static void cut_off_file(void **state)
{
    (void)state;
    size_t n;
    void *packed = gzip_of(moon, sizeof moon - 1, &n);
    const char *paths[] = {file_with(packed, n - 10)};
    free(packed);
    struct trace_options o = {.skip_bad =
                                  100}; /* tolerated rows are not a tolerated loss of rows */
    struct trace_request q;
    struct trace *t = trace_open(paths, 1, &o, error);
    int rc = t ? WEIR_OK : WEIR_E_INPUT;
    while (t && (rc = trace_next(t, &q)) > 0)
        ;
    assert_int_equal(rc, WEIR_E_INPUT);
    assert_non_null(strstr(t ? trace_error(t) : error, "the gzip data is cut off"));
    assert_non_null(strstr(t ? trace_error(t) : error, paths[0]));
    trace_close(t);
}

static void windows_text(void **state)
{
    (void)state;
    assert_int_equal(read_text("\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\r\n"
                               "2023-11-16 18:17:03.9799600,4808,10\r\n\r\n",
                               TRACE_AUTO),
                     1);
}

static void max_rows(void **state)
{
    (void)state;
    struct trace_options o = {.max_rows = 1};
    assert_int_equal(read_rows(open_text(moon, &o)), 1);
    o.max_rows = 9;
    assert_int_equal(read_rows(open_text(moon, &o)), 2);
}

/* ---- mistakes ---- */

#define ROW(fields) "{\"timestamp\": 5, \"input_length\": 10, \"output_length\": 5" fields "}\n"
#define GOOD ROW("")
#define AZURE "TIMESTAMP,ContextTokens,GeneratedTokens\n"
#define BURST "Timestamp,Model,Request tokens,Response tokens\n"
#define WEIR "{\"weir\":1,\"arrival_ms\":0,\"prompt_tok\":10,\"output_tok\":5"

static const struct mistake {
    enum trace_format format;
    const char *text, *where, *says;
} mistakes[] = {
    {TRACE_AUTO, "", "t: ", "found an empty file"},
    {TRACE_AUTO, "\n \n\t\n", "t: ", "found an empty file"},
    {TRACE_AUTO, "hello\n",
     "t:1: ", "expected a JSON object or the header of an Azure or BurstGPT CSV"},
    {TRACE_AUTO, "[1, 2]\n", "t:1: ", "found '[1, 2]'"},
    {TRACE_AUTO, "\xff\xfe{", "t:1: ", "found '\\xff\\xfe{'"},
    {TRACE_AUTO, "2023-11-16 18:17:03.9,1,1\n", "t:1: ", "If it lacks its header, name --format"},
    {TRACE_AUTO, "{\"a\": 1}\n",
     "t:1: ", "expected a row of a Mooncake trace (timestamp, input_length"},
    {TRACE_AZURE, "a,b,c\n",
     "t:1: ", "expected the header TIMESTAMP,ContextTokens,GeneratedTokens"},
    {TRACE_BURSTGPT, AZURE "1,1,1\n", "t:1: ", "expected the header Timestamp,Model"},
    {TRACE_AUTO, AZURE, "t:1: ", "expected requests after the header, found none"},
    /* truncated */
    {TRACE_AUTO, GOOD "{\"timestamp\": 6, \"input_len", "t:2: ", "is the line cut off"},
    {TRACE_MOONCAKE,
     "{\"timestamp\": 6, \"input_length\": 10, \"output_length\": 5, \"hash_ids\": [1",
     "t:1: ", "is the line cut off"},
    {TRACE_AUTO, AZURE "2023-11-16 18:17:03.9,1\n", "t:2: ", "found 2: no GeneratedTokens"},
    /* not UTF-8, not text */
    {TRACE_AUTO,
     GOOD "{\"timestamp\": 6, \"input_length\": 10, \"output_length\": 5, \"tenant\": \"\xe9\"}\n",
     "t:2: ", "not UTF-8"},
    {TRACE_AUTO, BURST "1,caf\xe9,5,5\n",
     "t:2: ", "expected UTF-8 text, found '\\xe9...' at column 6"},
    {TRACE_AUTO, BURST "1,x,\x01,5\n", "t:2: ", "found '\\x01'"},
    /* out of order */
    {TRACE_AUTO, GOOD "{\"timestamp\": 4.5, \"input_length\": 10, \"output_length\": 5}\n",
     "t:2: ", "found one 0.500 ms earlier; sort the rows by time"},
    {TRACE_AUTO, AZURE "2023-11-16 18:17:03.9,1,1\n2023-11-16 18:17:03.8,1,1\n",
     "t:3: ", "100.000 ms earlier"},
    {TRACE_AUTO, GOOD "{\"timestamp\": 4.999999, \"input_length\": 10, \"output_length\": 5}\n",
     "t:2: ", "found one 0.000 ms earlier"},
    /* negative */
    {TRACE_AUTO, "{\"timestamp\": -1, \"input_length\": 10, \"output_length\": 5}\n",
     "t:1: ", "timestamp in milliseconds, a number from 0 to 2^53, found -1"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": -10, \"output_length\": 5}\n",
     "t:1: ", "found -10"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": -0.5}\n",
     "t:1: ", "found -0.5"},
    {TRACE_AUTO, ROW(", \"session_id\": 1, \"delay\": -1"), "t:1: ", "delay in milliseconds"},
    {TRACE_AUTO, BURST "-1,x,5,5\n", "t:2: ", "expected a time as seconds, 0 or more, found '-1'"},
    {TRACE_AUTO, BURST "1,x,-5,5\n", "t:2: ", "Request tokens to be a whole number"},
    /* overflowing */
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 134217729, \"output_length\": 5}\n",
     "t:1: ", "0 to 134217728, found 134217729"},
    {TRACE_AUTO,
     "{\"timestamp\": 0, \"input_length\": 99999999999999999999999, \"output_length\": 5}\n",
     "t:1: ", "found 1e+23"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 1e999, \"output_length\": 5}\n",
     "t:1: ", "infinity"},
    {TRACE_AUTO, "{\"timestamp\": 9007199254740993, \"input_length\": 1, \"output_length\": 5}\n",
     "t:1: ", "0 to 2^53"},
    {TRACE_AUTO,
     GOOD "{\"timestamp\": 9007199254740992, \"input_length\": 1, \"output_length\": 5}\n",
     "t:2: ", "within 53 days"},
    {TRACE_AUTO, ROW(", \"priority\": 2147483648"),
     "t:1: ", "priority to be a whole number of 32 bits"},
    {TRACE_AUTO, ROW(", \"session_id\": 1, \"delay\": 1e10"), "t:1: ", "at most 53 days"},
    {TRACE_AUTO, ROW(", \"hash_ids\": [18446744073709551616]"),
     "t:1: ", "of 64 bits, found 1.84467440737096e+19 at index 0"},
    {TRACE_AUTO, BURST "1,x,99999999999999999999,5\n", "t:2: ", "found '99999999999999999999'"},
    {TRACE_AUTO, AZURE "99999-11-16 18:17:03.9,1,1\n", "t:2: ", "expected a time as 2024"},
    {TRACE_AUTO, AZURE "2023-02-29 18:17:03.9,1,1\n", "t:2: ", "expected a time as 2024"},
    {TRACE_AUTO, AZURE "2023-13-01 18:17:03.9,1,1\n", "t:2: ", "expected a time as 2024"},
    {TRACE_AUTO, AZURE "2023-11-16 24:17:03.9,1,1\n", "t:2: ", "expected a time as 2024"},
    {TRACE_AUTO, AZURE "2023-11-16 18:17:03.,1,1\n", "t:2: ", "expected a time as 2024"},
    {TRACE_AUTO, AZURE "2023-11-16 18:17:03+99:00,1,1\n", "t:2: ", "expected a time as 2024"},
    /* not numbers */
    {TRACE_AUTO, "{\"timestamp\": NaN, \"input_length\": 1, \"output_length\": 5}\n",
     "t:1: ", "expected a JSON object"},
    {TRACE_AUTO, "{\"timestamp\": \"0\", \"input_length\": 1, \"output_length\": 5}\n",
     "t:1: ", "found \"0\""},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 1.5, \"output_length\": 5}\n",
     "t:1: ", "found 1.5"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": true}\n",
     "t:1: ", "found true"},
    {TRACE_AUTO,
     "{\"timestamp\": 0, \"input_length\": 007, \"output_length\": 1, \"hash_ids\": [1]}\n",
     "t:1: ", "expected a JSON object"},
    {TRACE_MOONCAKE,
     "{\"timestamp\": 0, \"input_length\": 007, \"output_length\": 1, \"hash_ids\": [1]}\n",
     "t:1: ", "expected a JSON object"},
    {TRACE_MOONCAKE,
     "{\"timestamp\": 0, \"input_length\": 7, \"output_length\": 1, \"hash_ids\": [01]}\n",
     "t:1: ", "expected a JSON object"},
    {TRACE_MOONCAKE,
     "{\"timestamp\": 0, \"input_length\": 1100, \"output_length\": 1, \"hash_ids\": [01, 1234567, 7]}\n",
     "t:1: ", "expected a JSON object"},
    {TRACE_AUTO, ROW(", \"hash_ids\": [1.5]"), "t:1: ", "found 1.5 at index 0"},
    {TRACE_AUTO, ROW(", \"hash_ids\": 7"), "t:1: ", "hash_ids to be an array"},
    {TRACE_AUTO, ROW(", \"output_token_ids\": 7"), "t:1: ", "output_token_ids to be an array"},
    {TRACE_AUTO, ROW(", \"session_id\": [7]"),
     "t:1: ", "session_id to be a string or a whole number, found an array"},
    {TRACE_AUTO, ROW(", \"request_id\": {}"), "t:1: ", "request_id to be a string"},
    {TRACE_AUTO, GOOD "7\n", "t:2: ", "expected a JSON object, one request a line, found 7"},
    {TRACE_AUTO, BURST "nan,x,5,5\n", "t:2: ", "found 'nan'"},
    {TRACE_AUTO, BURST "1e3,x,5,5\n", "t:2: ", "found '1e3'"},
    {TRACE_AUTO, BURST "1,x,,5\n",
     "t:2: ", "Request tokens to be a whole number of tokens, 0 to 134217728, found ''"},
    /* missing */
    {TRACE_AUTO, "{\"timestamp\": 0, \"output_length\": 5}\n",
     "t:1: ", "expected a field input_length, found none"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 5}\n",
     "t:1: ", "expected a field output_length, found none"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": null, \"output_length\": 5}\n",
     "t:1: ", "expected a field input_length"},
    {TRACE_AUTO, "{\"input_length\": 5, \"output_length\": 5}\n",
     "t:1: ", "expected a field timestamp, found none"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 0, \"output_length\": 5}\n",
     "t:1: ", "at least 1 token of input"},
    {TRACE_AUTO, "{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 0}\n",
     "t:1: ", "at least 1 token of output"},
    {TRACE_AUTO, ROW(", \"delay\": 10"), "t:1: ", "expected a session with the delay"},
    /* misspelt, twice */
    {TRACE_AUTO, "{\"timestamp\": 0, \"inputlenght\": 5, \"output_length\": 5}\n",
     "t:1: ", "expected a field input_length, found inputlenght instead"},
    {TRACE_AUTO, ROW(", \"sesion_id\": 1"), "t:1: ", "expected session_id, found sesion_id"},
    {TRACE_AUTO, ROW(", \"hash_id\": [1]"), "t:1: ", "expected hash_ids, found hash_id;"},
    {TRACE_AUTO, ROW(", \"timestamp\": 6"), "t:1: ", "expected timestamp once"},
    {TRACE_AUTO, ROW(", \"created_time\": 6"), "t:1: ", "expected created_time once"},
    /* hash ids and lengths */
    {TRACE_AUTO, ROW(", \"hash_ids\": [1, 2]"),
     "t:1: ", "expected 1 hash_ids for 10 input tokens in blocks of 512, found 2"},
    {TRACE_AUTO,
     "{\"timestamp\": 0, \"input_length\": 1024, \"output_length\": 5, \"hash_ids\": [1]}\n",
     "t:1: ", "is --trace-block-size right?"},
    {TRACE_AUTO, ROW(", \"output_token_ids\": [1, 2]"),
     "t:1: ", "expected 5 output_token_ids as output_length says, found 2"},
    {TRACE_MOONCAKE_DELTA,
     "{\"timestamp\": 0, \"input_length\": 134217728, \"output_length\": 9, \"session_id\": 1}\n"
     "{\"input_length\": 1, \"output_length\": 5, \"session_id\": 1}\n",
     "t:2: ", "a session of at most 134217728 tokens"},
    /* weir's log */
    {TRACE_AUTO, "{\"weir\":2,\"arrival_ms\":0,\"prompt_tok\":10,\"output_tok\":5}\n",
     "t:1: ", "version 1"},
    {TRACE_AUTO, WEIR ",\"keys\":[\"0123456789abcdef\"]}\n", "t:1: ", "expected key_tok"},
    {TRACE_AUTO, WEIR ",\"key_tok\":16,\"keys\":[\"0123\"]}\n",
     "t:1: ", "16 hexadecimal digits, found \"0123\" at index 0"},
    {TRACE_AUTO, WEIR ",\"key_tok\":16,\"keys\":7}\n", "t:1: ", "keys to be an array"},
    {TRACE_AUTO,
     WEIR
     ",\"key_tok\":8,\"keys\":[\"0123456789abcdef\",\"0123456789abcdef\",\"0123456789abcdef\"]}\n",
     "t:1: ", "found 3 keys"},
    {TRACE_AUTO, WEIR ",\"max_tokens\":4}\n",
     "t:1: ", "max_tokens of at least output_tok, 5, found 4"},
    {TRACE_AUTO, WEIR ",\"policy\":\"a\"}\n" WEIR ",\"policy\":\"b\"}\n",
     "t:2: ", "keep the lines of one policy"},
    {TRACE_AUTO, WEIR ",\"ttft_ms\":\"x\"}\n", "t:1: ", "ttft_ms in milliseconds"},
};

static int outcome(const char *text, const struct trace_options *o)
{
    struct trace_request q;
    int rc;
    struct trace *t = open_text(text, o);
    if (!t)
        return WEIR_E_INPUT;
    while ((rc = trace_next(t, &q)) > 0)
        ;
    if (rc < 0)
        (void)snprintf(error, sizeof error, "%s", trace_error(t));
    trace_close(t);
    return rc;
}

static void every_mistake_has_its_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        const struct mistake *m = &mistakes[i];
        struct trace_options o = {.format = m->format};
        int rc = outcome(m->text, &o);
        if (rc != WEIR_E_INPUT)
            fail_msg("code %d for:\n%s", rc, m->text);
        if (strncmp(error, m->where, strlen(m->where)) != 0 || !strstr(error, m->says))
            fail_msg("expected '%s ... %s', got '%s' for:\n%s", m->where, m->says, error, m->text);
        for (const char *c = error; *c; c++)
            assert_true((unsigned char)*c >= 0x20 && *c != 0x7f);
    }
}

static void very_long_line(void **state)
{
    (void)state;
    size_t n = (size_t)TRACE_LINE_MAX_BYTES + 2;
    char *text = malloc(n + 1);
    assert_non_null(text);
    memset(text, ' ', n);
    memcpy(text, GOOD, sizeof GOOD - 1);
    text[n] = '\0';
    struct trace_options o = {.skip_bad = 5};
    assert_int_equal(outcome(text, &o),
                     0); /* the second line is as long as a line may be, and empty */
    memcpy(text + sizeof GOOD - 2, " ", 1);
    assert_int_equal(outcome(text, &o), WEIR_E_INPUT);
    assert_non_null(strstr(error, "line 1 is longer than 67108864 bytes"));
    free(text);
}

static void deep_json(void **state)
{
    (void)state;
    enum { DEPTH = 200000 };
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    (void)fputs("{\"timestamp\": 0, \"input_length\": 10, \"output_length\": 5, \"x\": ", f);
    for (int i = 0; i < DEPTH; i++)
        (void)fputc('[', f);
    for (int i = 0; i < DEPTH; i++)
        (void)fputc(']', f);
    (void)fputs("}\n", f);
    assert_int_equal(fclose(f), 0);
    struct trace_options o = {.format = TRACE_AUTO};
    assert_int_equal(outcome(text, &o), 0);
    text[len - 3] = ' ';
    assert_int_equal(outcome(text, &o), WEIR_E_INPUT);
    free(text);
}

static void nul_in_a_name(void **state)
{
    (void)state;
    struct trace_options o = {.format = TRACE_AUTO};
    assert_int_equal(outcome(ROW(", \"timestamp\\u0000\": 1"), &o), 0);
    assert_int_equal(trace_open_memory("t", "a\0b\n", 4, &o, error) == NULL, 1);
}

static void skip_bad(void **state)
{
    (void)state;
    static const char text[] =
        "rubbish, but JSON is expected\n" GOOD "{\"timestamp\": 1}\n"
        "{\"timestamp\": 6, \"input_length\": 10, \"output_length\": 5, \"session_id\": 1}\n"
        "{\"timestamp\": 5, \"input_length\": 10, \"output_length\": 5, \"session_id\": 2}\n"
        "{\"timestamp\": 7, \"input_length\": 10, \"output_length\": 5, \"session_id\": 2}\n";
    struct trace_options o = {.format = TRACE_MOONCAKE, .skip_bad = 3};
    struct trace_request q;
    struct trace *t = open_text(text, &o);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(trace_next(t, &q), 1);
        assert_int_equal(q.row, i);
        assert_int_equal(q.arrival_ps, i * PS_PER_MS);
        assert_false(q.follows); /* a row that was left out started no session */
    }
    assert_int_equal(trace_next(t, &q), 0);
    assert_int_equal(trace_bad_rows(t), 3);
    assert_int_equal(strncmp(trace_first_bad(t), "t:1: expected a JSON object", 27), 0);
    trace_close(t);
    o.skip_bad = 2;
    assert_int_equal(outcome(text, &o), WEIR_E_INPUT);
    assert_int_equal(strncmp(error, "t:5: ", 5), 0);
    assert_non_null(strstr(error, "[after 2 bad rows, as many as allowed]"));
    /* the format is found at the first row that can be read */
    o = (struct trace_options){.skip_bad = 1};
    t = open_text("{\"cut\n" WEIR "}\n", &o);
    assert_int_equal(trace_next(t, &q), 1);
    assert_int_equal(trace_format(t), TRACE_WEIR);
    trace_close(t);
}

static const char *refuse(void *ctx, uint32_t prompt_tok, uint32_t output_tok)
{
    return prompt_tok + output_tok > 14 ? ctx : NULL;
}

static void too_large_for_any_worker(void **state)
{
    (void)state;
    char why[] = "the largest holds 14";
    struct trace_options o = {.refuse = refuse, .refuse_ctx = why};
    static const char text[] =
        "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 5}\n" GOOD;
    assert_int_equal(outcome(text, &o), WEIR_E_INPUT);
    assert_string_equal(
        error, "t:2: expected a request that a worker can hold, found 10 prompt and 5 output "
               "tokens: the largest holds 14, or leave it out (--skip-bad)");
    o.skip_bad = 1;
    assert_int_equal(outcome(text, &o), 0);
}

static void closed_loop_needs_no_times(void **state)
{
    (void)state;
    struct trace_options o = {.untimed = true};
    assert_int_equal(
        read_rows(open_text("{\"input_length\": 9, \"output_length\": 5, \"hash_ids\": [1]}\n"
                            "{\"timestamp\": 7, \"input_length\": 9, \"output_length\": 5}\n"
                            "{\"timestamp\": 3, \"input_length\": 9, \"output_length\": 5}\n",
                            &o)),
        3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(row[i].arrival_ps, PS_NEVER);
}

/* ---- spreading ---- */

static char *steps(unsigned n, unsigned per_step, unsigned step_ms)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    for (unsigned i = 0; i < n; i++)
        (void)fprintf(
            f,
            "{\"timestamp\": %u, \"input_length\": %u, \"output_length\": 5, \"hash_ids\": [%u]}\n",
            i / per_step * step_ms, i % 512 + 1, i);
    assert_int_equal(fclose(f), 0);
    return text;
}

static void spread_over_steps(void **state)
{
    (void)state;
    enum { N = 5000, PER = 50, STEP = 3000 };
    char *text = steps(N, PER, STEP);
    struct trace_options o = {.spread_ps = STEP * PS_PER_MS, .seed = 7};
    struct trace_request q;
    struct trace *t = open_text(text, &o), *same = open_text(text, &o);
    o.seed = 8;
    struct trace *other = open_text(text, &o);
    int64_t last = -1;
    unsigned n = 0, differ = 0, quarters[4] = {0};
    for (; trace_next(t, &q) == 1; n++) {
        struct trace_request a, b;
        assert_int_equal(q.row, n);
        assert_int_equal(q.prompt_tok, n % 512 + 1);
        assert_int_equal(q.keys[0], request_chain_key(0, n));
        assert_true(q.arrival_ps >= last);
        last = q.arrival_ps;
        int64_t within = last - (int64_t)(n / PER) * STEP * PS_PER_MS;
        assert_true(within >= 0 && within < STEP * PS_PER_MS);
        quarters[within * 4 / (STEP * PS_PER_MS)]++;
        assert_int_equal(trace_next(same, &a), 1);
        assert_int_equal(a.arrival_ps, last);
        assert_int_equal(trace_next(other, &b), 1);
        differ += b.arrival_ps != last;
    }
    assert_int_equal(n, N);
    assert_true(differ > N - 10);
    for (int i = 0; i < 4; i++) /* 1250 each, standard deviation 31 */
        assert_in_range(quarters[i], 1250 - 150, 1250 + 150);
    trace_close(t);
    trace_close(same);
    trace_close(other);
    free(text);
}

static void spread_keeps_order_and_sessions(void **state)
{
    (void)state;
    /* steps of 10 ms though 3000 were named; turns without a time stay where they are */
    static const char text[] =
        "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 5, \"session_id\": 1}\n"
        "{\"input_length\": 2, \"output_length\": 5, \"session_id\": 1}\n"
        "{\"timestamp\": 0, \"input_length\": 3, \"output_length\": 5}\n"
        "{\"timestamp\": 10, \"input_length\": 4, \"output_length\": 5}\n"
        "bad\n"
        "{\"input_length\": 5, \"output_length\": 5, \"session_id\": 1}\n";
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct trace_options o = {.spread_ps = 3000 * PS_PER_MS, .skip_bad = 1, .seed = seed};
        assert_int_equal(read_rows(open_text(text, &o)), 5);
        for (uint32_t i = 0; i < 5; i++)
            assert_int_equal(row[i].prompt_tok, i + 1);
        assert_int_equal(row[1].arrival_ps, PS_NEVER);
        assert_int_equal(row[4].arrival_ps, PS_NEVER);
        assert_true(row[0].arrival_ps <= row[2].arrival_ps);
        assert_true(row[2].arrival_ps < 10 * PS_PER_MS);
        assert_in_range(row[3].arrival_ps, 10 * PS_PER_MS, 3010 * PS_PER_MS);
    }
}

static void spread_has_a_limit(void **state)
{
    (void)state;
    char *text = steps(TRACE_STEP_ROWS_MAX + 1, TRACE_STEP_ROWS_MAX + 1, 1);
    struct trace_options o = {.spread_ps = PS_PER_MS};
    assert_int_equal(outcome(text, &o), WEIR_E_INPUT);
    assert_non_null(strstr(error, "t:1048577: more than 1048576 rows"));
    free(text);
}

/* ---- real data, where it is ---- */

/* Both parsers over a whole file: the same rows. */
static void real_file(const char *path, uint64_t want)
{
    uint64_t sum[2] = {0}, rows[2] = {0};
    if (access(path, R_OK)) {
        print_message("no %s: skipped\n", path);
        skip();
    }
    for (int slow = 0; slow < 2; slow++) {
        struct trace_request q;
        struct trace_options o = {.no_fast_path = slow};
        struct trace *t = trace_open(&path, 1, &o, error);
        int rc;
        if (!t)
            fail_msg("%s", error);
        for (; (rc = trace_next(t, &q)) > 0; rows[slow]++) {
            sum[slow] = request_chain_key(sum[slow], (uint64_t)q.arrival_ps);
            sum[slow] = request_chain_key(sum[slow], (uint64_t)q.prompt_tok << 32 | q.output_tok);
            for (uint32_t i = 0; i < q.n_keys; i++)
                sum[slow] = request_chain_key(sum[slow], q.keys[i]);
        }
        if (rc < 0)
            fail_msg("%s", trace_error(t));
        trace_close(t);
    }
    assert_int_equal(rows[0], want);
    assert_int_equal(rows[1], want);
    assert_int_equal(sum[0], sum[1]);
}

static void mooncake_conversation(void **state)
{
    (void)state;
    real_file(DATA "mooncake_conversation.jsonl", 12031);
}

static void mooncake_arxiv(void **state)
{
    (void)state;
    real_file(DATA "mooncake_arxiv_1000.jsonl", 1000);
}

static void azure_code(void **state)
{
    (void)state;
    real_file(DATA "azure_2023_code.csv", 8819);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mooncake),
        cmocka_unit_test(mooncake_ids_that_count_up),
        cmocka_unit_test(mooncake_optional_fields),
        cmocka_unit_test(output_token_ids),
        cmocka_unit_test(azure),
        cmocka_unit_test(burstgpt),
        cmocka_unit_test(weir_log),
        cmocka_unit_test(mooncake_delta),
        cmocka_unit_test(several_files),
        cmocka_unit_test(cut_off_file),
        cmocka_unit_test(windows_text),
        cmocka_unit_test(max_rows),
        cmocka_unit_test(every_mistake_has_its_line),
        cmocka_unit_test(very_long_line),
        cmocka_unit_test(deep_json),
        cmocka_unit_test(nul_in_a_name),
        cmocka_unit_test(skip_bad),
        cmocka_unit_test(too_large_for_any_worker),
        cmocka_unit_test(closed_loop_needs_no_times),
        cmocka_unit_test(spread_over_steps),
        cmocka_unit_test(spread_keeps_order_and_sessions),
        cmocka_unit_test(spread_has_a_limit),
        cmocka_unit_test(mooncake_conversation),
        cmocka_unit_test(mooncake_arxiv),
        cmocka_unit_test(azure_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
