/* Reading request bodies: settings, prompt identity, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/openai/json_scan.h"
#include "controller/openai/openai_request.h"

static struct openai_reader *reader;
static struct openai_request q;
static char error[OPENAI_ERROR_BYTES];
static const char *param;

static int read_as(enum openai_endpoint e, const char *body)
{
    *error = '\0';
    return openai_request_read(reader, e, body, strlen(body), &q, error, &param);
}

static void reads(enum openai_endpoint e, const char *body)
{
    if (read_as(e, body))
        fail_msg("%s: %s", body, error);
}

static void refuses(enum openai_endpoint e, const char *body, const char *about, const char *word)
{
    assert_int_equal(read_as(e, body), WEIR_E_INPUT);
    assert_string_equal(param, about);
    if (!strstr(error, word))
        fail_msg("'%s' does not say '%s'", error, word);
}

static int set_up(void **state)
{
    (void)state;
    reader = openai_reader_new();
    return !reader;
}

static int tear_down(void **state)
{
    (void)state;
    openai_reader_free(reader);
    return 0;
}

static void endpoints(void **state)
{
    (void)state;
    assert_int_equal(openai_endpoint_of("/v1/chat/completions", 20), OPENAI_CHAT);
    assert_int_equal(openai_endpoint_of("/v1/completions?x=1", 19), OPENAI_COMPLETIONS);
    assert_int_equal(openai_endpoint_of("/generate", 9), OPENAI_SGLANG_GENERATE);
    assert_int_equal(openai_endpoint_of("/v1/completions/", 16), OPENAI_OTHER);
    assert_string_equal(openai_endpoint_name(OPENAI_OTHER), "other");
    assert_string_equal(openai_endpoint_name(OPENAI_RESPONSES), "responses");
}

static void settings(void **state)
{
    (void)state;
    reads(
        OPENAI_CHAT,
        "{\"model\":\"m\",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"n\":2,"
        "\"max_tokens\":7,\"max_completion_tokens\":9,\"priority\":-3,\"user\":\"u\","
        "\"nvext\":{\"agent_hints\":{\"osl\":33}},\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}");
    assert_string_equal(q.model, "m");
    assert_true(q.stream && q.include_usage && q.has_priority);
    assert_int_equal(q.choices, 2);
    assert_int_equal(q.max_tokens, 9);
    assert_int_equal(q.priority, -3);
    assert_int_equal(q.expected_output_tok, 33);
    assert_true(q.user != 0);
    reads(OPENAI_VLLM_GENERATE,
          "{\"token_ids\":[1,2],\"sampling_params\":{\"max_tokens\":5,\"n\":3}}");
    assert_int_equal(q.max_tokens, 5);
    assert_int_equal(q.choices, 3);
    assert_int_equal(q.prompt_tok, 2);
    reads(OPENAI_SGLANG_GENERATE, "{\"text\":\"abc\",\"sampling_params\":{\"max_new_tokens\":4}}");
    assert_int_equal(q.max_tokens, 4);
    assert_int_equal(q.prompt_bytes, 3);
    reads(OPENAI_OTHER, "{\"model\":\"x\",\"messages\":5}");
    assert_string_equal(q.model, "x");
}

/* A chat body whose messages hold texts of the given lengths, all of one letter each. */
static char *chat(const size_t *len, size_t n, const char *more)
{
    size_t cap = 4096, at;
    for (size_t i = 0; i < n; i++)
        cap += len[i] + 100;
    char *s = malloc(cap);
    at = (size_t)snprintf(s, cap, "{%s\"messages\":[", more);
    for (size_t i = 0; i < n; i++) {
        at += (size_t)snprintf(s + at, cap - at, "%s{\"role\":\"%s\",\"content\":\"", i ? "," : "",
                               i % 2 ? "assistant" : "user");
        for (size_t k = 0; k < len[i]; k++)
            s[at++] = (char)('a' + (k * 7 + i * 3 + k / 256) % 26);
        at += (size_t)snprintf(s + at, cap - at, "\"}");
    }
    snprintf(s + at, cap - at, "]}");
    return s;
}

static void turns_share_keys(void **state)
{
    (void)state;
    static const size_t turn1[] = {3000}, turn2[] = {3000, 500, 200};
    uint64_t keys[32];
    char *a = chat(turn1, 1, ""), *b = chat(turn2, 3, ""),
         *c = chat(turn1, 1, "\"model\":\"other\",");
    char *d = chat(turn1, 1, "\"cache_salt\":\"s\","),
         *e = chat(turn1, 1, "\"tools\":[{\"name\":\"t\"}],");
    reads(OPENAI_CHAT, a);
    uint32_t n = q.n_keys;
    assert_int_equal(n, 3000 / OPENAI_CHUNK_BYTES);
    assert_int_equal(q.key_tok, 0);
    memcpy(keys, q.keys, n * sizeof *keys);
    reads(OPENAI_CHAT, b);
    assert_true(q.n_keys > n);
    assert_memory_equal(q.keys, keys, n * sizeof *keys);
    char *const others[] = {c, d, e};
    for (size_t i = 0; i < 3; i++) {
        reads(OPENAI_CHAT, others[i]);
        assert_true(q.n_keys >= n);
        assert_true(q.keys[0] != keys[0]);
    }
    free(a), free(b), free(c), free(d), free(e);
}

static void escapes_do_not_matter(void **state)
{
    (void)state;
    char a[2048] = "{\"prompt\":\"", b[2048] = "{\"prompt\":\"";
    for (int i = 0; i < 200; i++) {
        strncat(a, "\xc3\xa9", sizeof a - strlen(a) - 1);
        strncat(b, "\\u00e9", sizeof b - strlen(b) - 1);
    }
    strncat(a, "\"}", sizeof a - strlen(a) - 1);
    strncat(b, "\"}", sizeof b - strlen(b) - 1);
    reads(OPENAI_COMPLETIONS, a);
    uint64_t key = q.keys[0];
    assert_int_equal(q.n_keys, 1);
    assert_int_equal(q.prompt_bytes, 400);
    reads(OPENAI_COMPLETIONS, b);
    assert_true(q.keys[0] == key);
}

static void prompts_of_ids(void **state)
{
    (void)state;
    reads(OPENAI_COMPLETIONS, "{\"prompt\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}");
    assert_int_equal(q.prompt_tok, 17);
    assert_int_equal(q.key_tok, OPENAI_CHUNK_TOK);
    assert_int_equal(q.n_keys, 1);
    uint64_t key = q.keys[0];
    reads(OPENAI_COMPLETIONS, "{\"prompt\":[[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],[7]]}");
    assert_true(q.keys[0] == key);
    assert_int_equal(q.prompt_tok, 17);
    assert_int_equal(q.choices, 2);
    reads(OPENAI_EMBEDDINGS, "{\"input\":[\"ab\",\"cde\"]}");
    assert_int_equal(q.prompt_bytes, 5);
    assert_int_equal(q.choices, 2);
}

static void media_are_part_of_identity_only(void **state)
{
    (void)state;
    char a[1024], b[1024];
    static const char form[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"see\"},"
        "{\"type\":\"image_url\",\"image_url\":{\"url\":\"%c%0300d\"}}]}]}";
    snprintf(a, sizeof a, form, 'a', 0);
    snprintf(b, sizeof b, form, 'b', 0);
    reads(OPENAI_CHAT, a);
    assert_int_equal(q.media, 1);
    assert_int_equal(q.prompt_bytes, 4 + 3); /* role and text */
    uint64_t key = q.keys[0];
    reads(OPENAI_CHAT, b);
    assert_true(q.keys[0] != key);
}

static void responses_input(void **state)
{
    (void)state;
    reads(OPENAI_RESPONSES,
          "{\"instructions\":\"be kind\",\"input\":\"hello\",\"max_output_tokens\":3}");
    assert_int_equal(q.prompt_bytes, 12);
    assert_int_equal(q.max_tokens, 3);
    reads(
        OPENAI_RESPONSES,
        "{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":\"hi\"}]},"
        "{\"type\":\"function_call_output\",\"output\":\"42\"}],\"previous_response_id\":\"r1\"}");
    assert_true(q.session != 0);
}

static void bad_bodies(void **state)
{
    (void)state;
    refuses(OPENAI_CHAT, "", "", "not JSON");
    refuses(OPENAI_CHAT, "{", "", "not JSON");
    refuses(OPENAI_CHAT, "[]", "", "object");
    refuses(OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "",
            "not JSON");
    refuses(OPENAI_CHAT, "{}", "messages", "array");
    refuses(OPENAI_CHAT, "{\"messages\":[]}", "messages", "not empty");
    refuses(OPENAI_CHAT, "{\"messages\":[5]}", "messages", "objects");
    refuses(OPENAI_CHAT, "{\"messages\":[{}],\"stream\":1}", "stream", "true or false");
    refuses(OPENAI_CHAT, "{\"messages\":[{}],\"max_tokens\":-1}", "max_tokens", "whole number");
    refuses(OPENAI_CHAT, "{\"messages\":[{}],\"max_tokens\":1e9}", "max_tokens", "whole number");
    refuses(OPENAI_CHAT, "{\"messages\":[{}],\"n\":0}", "n", "from 1");
    refuses(OPENAI_CHAT, "{\"messages\":[{}],\"priority\":99999999999}", "priority", "32 bits");
    refuses(OPENAI_CHAT, "{\"messages\":[{}],\"model\":7}", "model", "name");
    refuses(OPENAI_COMPLETIONS, "{\"prompt\":[]}", "prompt", "not empty");
    refuses(OPENAI_COMPLETIONS, "{\"prompt\":{}}", "prompt", "string");
    refuses(OPENAI_COMPLETIONS, "{\"prompt\":[1,-2]}", "prompt", "token ids");
    refuses(OPENAI_COMPLETIONS, "{\"prompt\":[\"a\",1]}", "prompt", "string");
    refuses(OPENAI_COMPLETIONS, "{}", "prompt", "given");
}

static char *nested(size_t depth)
{
    char *deep = malloc(2 * depth + 100);
    size_t at = (size_t)snprintf(deep, 100, "{\"tools\":");
    memset(deep + at, '[', depth);
    memset(deep + at + depth, ']', depth);
    snprintf(deep + at + 2 * depth, 64, ",\"messages\":[{\"role\":\"u\"}]}");
    return deep;
}

static void deep_and_large(void **state)
{
    (void)state;
    char *deep = nested(JSON_MAX_DEPTH - 1);
    reads(OPENAI_CHAT, deep);
    free(deep);
    deep = nested(200000);
    refuses(OPENAI_CHAT, deep, "", "deeper");
    free(deep);
    size_t len[] = {(size_t)OPENAI_MAX_KEYS * OPENAI_CHUNK_BYTES + 5000};
    char *large = chat(len, 1, "");
    reads(OPENAI_CHAT, large);
    assert_int_equal(q.n_keys, OPENAI_MAX_KEYS);
    free(large);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(endpoints),        cmocka_unit_test(settings),
        cmocka_unit_test(turns_share_keys), cmocka_unit_test(escapes_do_not_matter),
        cmocka_unit_test(prompts_of_ids),   cmocka_unit_test(media_are_part_of_identity_only),
        cmocka_unit_test(responses_input),  cmocka_unit_test(bad_bodies),
        cmocka_unit_test(deep_and_large),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
