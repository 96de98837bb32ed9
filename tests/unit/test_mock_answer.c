/* The texts of the mock engine are what an SDK expects: JSON in every event, one id, pieces that add up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <yyjson.h>

#include "controller/mock/mock_answer.h"

static const char body[] =
    "{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"other\"}},{\"type\":\"function\",\"function\":"
    "{\"name\":\"w\\\"x\",\"parameters\":{\"required\":[\"st\xc3\xa4"
    "dte\",\"b\\\\\"]}}}],"
    "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"w\\\"x\"}}}";

static struct mock_answer answer(bool chat, uint32_t choices)
{
    return (struct mock_answer){
        .id = 7, .created_s = 1, .model = "m", .chat = chat, .choices = choices};
}

/* Every event of a stream; arguments of the tool calls of choice 0 are joined. Returns how many events had words. */
static unsigned read_events(const struct mock_text *t, char *joined, uint32_t *finished)
{
    unsigned words = 0;
    joined[0] = '\0';
    for (const char *at = t->s; at < t->s + t->len;) {
        const char *end = strstr(at, "\n\n");
        assert_non_null(end);
        assert_memory_equal(at, "data: ", 6);
        if (strncmp(at + 6, "[DONE]", 6)) {
            yyjson_doc *doc = yyjson_read(at + 6, (size_t)(end - at - 6), 0);
            yyjson_val *root = yyjson_doc_get_root(doc);
            assert_non_null(doc);
            assert_string_equal(yyjson_get_str(yyjson_obj_get(root, "id")),
                                "chatcmpl-mock-0000000000000007");
            yyjson_val *choice = yyjson_arr_get_first(yyjson_obj_get(root, "choices"));
            yyjson_val *delta = yyjson_obj_get(choice, "delta");
            yyjson_val *call = yyjson_arr_get_first(yyjson_obj_get(delta, "tool_calls"));
            const char *piece =
                yyjson_get_str(yyjson_obj_get(yyjson_obj_get(call, "function"), "arguments"));
            if (piece && !yyjson_get_uint(yyjson_obj_get(choice, "index")))
                snprintf(joined + strlen(joined), 256 - strlen(joined), "%s", piece);
            words += yyjson_get_len(yyjson_obj_get(delta, "content")) > 0;
            *finished += yyjson_is_str(yyjson_obj_get(choice, "finish_reason"));
            yyjson_doc_free(doc);
        }
        at = end + 2;
    }
    return words;
}

static void streams_have_every_choice(void **state)
{
    struct mock_answer a = answer(true, 3);
    struct mock_text t = {NULL, 0, 0, false};
    struct mock_usage u = {5, 2, 1};
    char joined[256];
    uint32_t finished = 0;
    (void)state;
    mock_answer_open(&a, &t);
    mock_answer_tokens(&a, 1, false, &t);
    mock_answer_tokens(&a, 1, true, &t);
    mock_answer_close(&a, &u, &t);
    assert_int_equal(read_events(&t, joined, &finished), 6);
    assert_int_equal(finished, 3);
    assert_non_null(strstr(t.s, "\"completion_tokens\":6,\"total_tokens\":11"));
    assert_non_null(strstr(t.s, "\n\ndata: [DONE]\n\n"));
    mock_text_deinit(&t);
}

static void tool_calls_add_up(void **state)
{
    struct mock_answer a = answer(true, 1);
    struct mock_text t = {NULL, 0, 0, false};
    char joined[256];
    uint32_t finished = 0;
    (void)state;
    assert_int_equal(mock_answer_tools(&a, body, sizeof body - 1), 0);
    assert_string_equal(a.tool, "w\"x");
    uint32_t n = mock_answer_tool_tok(&a);
    for (uint32_t i = 0; i < n; i++)
        mock_answer_tokens(&a, 1, i + 1 == n, &t);
    read_events(&t, joined, &finished);
    assert_string_equal(joined, "{\"st\xc3\xa4"
                                "dte\":\" tok\",\"b\\\\\":\" tok\"}");
    assert_int_equal(finished, 1);
    mock_answer_deinit(&a);
    mock_text_deinit(&t);
}

static void documents_are_json(void **state)
{
    struct mock_usage u = {5, 2, 1};
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct mock_answer a = answer(kind > 0, 2);
        struct mock_text t = {NULL, 0, 0, false};
        if (kind == 2)
            assert_int_equal(mock_answer_tools(&a, body, sizeof body - 1), 0);
        mock_answer_document(&a, &u, ",\"more\":1", &t);
        yyjson_doc *doc = yyjson_read(t.s, t.len, 0);
        assert_non_null(doc);
        yyjson_val *root = yyjson_doc_get_root(doc);
        assert_int_equal(yyjson_arr_size(yyjson_obj_get(root, "choices")), 2);
        assert_int_equal(yyjson_get_uint(yyjson_obj_get(root, "more")), 1);
        yyjson_doc_free(doc);
        mock_answer_deinit(&a);
        mock_text_deinit(&t);
    }
}

static void a_tool_that_is_not_there_is_an_error(void **state)
{
    static const char no[] = "{\"tools\":[],\"tool_choice\":\"required\"}",
                      none[] = "{\"tool_choice\":\"auto\"}";
    struct mock_answer a = answer(true, 1);
    (void)state;
    assert_int_equal(mock_answer_tools(&a, no, sizeof no - 1), WEIR_E_INPUT);
    assert_int_equal(mock_answer_tools(&a, none, sizeof none - 1), 0);
    assert_null(a.arguments);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_have_every_choice),
        cmocka_unit_test(tool_calls_add_up),
        cmocka_unit_test(documents_are_json),
        cmocka_unit_test(a_tool_that_is_not_there_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
