/* What is seen in a response that streams through: first token, counts, usage, end; on every cut of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/openai/answer.h"

#define ROLE                                                                                       \
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n"
#define TOKEN(t)                                                                                   \
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" t                                 \
    "\"},\"finish_reason\":null}],\"usage\":null}\n\n"
#define END                                                                                        \
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"z\"},\"finish_reason\":\"length\"}]}\n\n"
#define USAGE                                                                                      \
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n"
#define DONE "data: [DONE]\n\n"

static const char chat[] =
    ROLE TOKEN("a") TOKEN("b") TOKEN("say \\\"finish_reason\\\": \\\"stop\\\"") END USAGE DONE;

static void feed_in_pieces(struct answer *a, const char *s, size_t len, size_t piece)
{
    for (size_t i = 0; i < len; i += piece)
        answer_feed(a, s + i, len - i < piece ? len - i : piece);
    answer_end(a);
}

static void chat_stream_in_any_cut(void **state)
{
    (void)state;
    for (size_t piece = 1; piece <= sizeof chat; piece++) {
        struct answer a;
        answer_init(&a, true);
        feed_in_pieces(&a, chat, sizeof chat - 1, piece);
        assert_true(a.first_token && a.done && a.has_usage && a.has_cached);
        assert_int_equal(a.events, 7);
        assert_int_equal(a.tokens, 4);
        assert_int_equal(a.prompt_tok, 12);
        assert_int_equal(a.cached_tok, 8);
        assert_int_equal(answer_output_tok(&a), 5);
        assert_int_equal(a.finish, ANSWER_LENGTH);
        assert_int_equal(a.too_large, 0);
        answer_deinit(&a);
    }
}

static void carriage_returns_and_comments(void **state)
{
    (void)state;
    static const char s[] =
        ": wait\r\n\r\ndata: {\"choices\":[{\"text\":\"x\",\"finish_reason\":null}]}\r\n\r\n"
        "event: x\r\ndata: [DONE]\r\n\r\n";
    for (size_t piece = 1; piece <= sizeof s; piece++) {
        struct answer a;
        answer_init(&a, true);
        feed_in_pieces(&a, s, sizeof s - 1, piece);
        assert_int_equal(a.events, 3);
        assert_int_equal(a.tokens, 1);
        assert_true(a.done);
        answer_deinit(&a);
    }
}

static void role_event_is_no_token(void **state)
{
    (void)state;
    struct answer a;
    answer_init(&a, true);
    answer_feed(&a, ROLE, sizeof ROLE - 1);
    assert_false(a.first_token);
    assert_true(answer_at_boundary(&a));
    answer_feed(&a, TOKEN("a"), 10);
    assert_false(answer_at_boundary(&a));
    answer_feed(&a, TOKEN("a") + 10, sizeof TOKEN("a") - 11);
    assert_true(a.first_token);
    answer_deinit(&a);
}

static void several_choices_in_one_event(void **state)
{
    (void)state;
    static const char s[] = TOKEN(
        "a") "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":null},"
             "{\"index\":1,\"delta\":{\"content\":\"c\"},\"finish_reason\":null}]}\n\n";
    struct answer a;
    answer_init(&a, true);
    feed_in_pieces(&a, s, sizeof s - 1, 50);
    assert_int_equal(a.tokens, 3);
    answer_deinit(&a);
}

static uint32_t tokens_of(const char *stream)
{
    struct answer a;
    answer_init(&a, true);
    feed_in_pieces(&a, stream, strlen(stream), strlen(stream));
    uint32_t n = a.tokens;
    answer_deinit(&a);
    return n;
}

/* An event is taken for the last one over again only where nothing but its text differs. */
static void events_like_the_last_one(void **state)
{
    (void)state;
    assert_int_equal(tokens_of(TOKEN("a") TOKEN("b") TOKEN("\\\"") TOKEN("\\\\") TOKEN("c")), 5);
    /* empty text, and what only looks like the text's end */
    assert_int_equal(tokens_of(TOKEN("a") TOKEN("") TOKEN("b")), 2);
    assert_int_equal(
        tokens_of(TOKEN("a") "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},"
                             "\"x\":{\"y\":\"q\"},\"finish_reason\":null}],\"usage\":null}\n\n"),
        1);
    /* another choice, then two in one event */
    assert_int_equal(
        tokens_of(TOKEN("a") "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"a\"}},"
                             "{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n" TOKEN("b")),
        4);
    /* reasoning beside an empty content; a stream of counts is read every time */
    static const char thoughts[] =
        "data: {\"choices\":[{\"delta\":{\"content\":\"\",\"reasoning_content\":\"x\"},\"finish_reason\":null}]}\n\n";
    char two[2 * sizeof thoughts];
    snprintf(two, sizeof two, "%s%s", thoughts, thoughts);
    assert_int_equal(tokens_of(two), 2);
    static const char counted[] =
        TOKEN("a") "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":"
                   "{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n"
                   "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":"
                   "{\"prompt_tokens\":1,\"completion_tokens\":3}}\n\n";
    struct answer a;
    answer_init(&a, true);
    feed_in_pieces(&a, counted, sizeof counted - 1, 7);
    assert_int_equal(answer_output_tok(&a), 3);
    answer_deinit(&a);
}

static void an_event_too_large(void **state)
{
    (void)state;
    size_t len = ANSWER_MAX_EVENT_BYTES * 2;
    char *s = malloc(len);
    memset(s, 'x', len);
    for (size_t piece = 1000; piece < 100000; piece *= 7) {
        struct answer a;
        answer_init(&a, true);
        answer_feed(&a, TOKEN("a"), sizeof TOKEN("a") - 1);
        for (size_t i = 0; i < len; i += piece)
            answer_feed(&a, s + i, len - i < piece ? len - i : piece);
        answer_feed(&a, "\n", 1);
        answer_feed(&a, "\n", 1);
        answer_feed(&a, TOKEN("b") DONE, sizeof TOKEN("b") DONE - 1);
        answer_end(&a);
        assert_int_equal(a.too_large, 1);
        assert_int_equal(a.tokens, 3);
        assert_true(a.done);
        answer_deinit(&a);
    }
    free(s);
}

/* Its end is an empty line with CR, a byte at a time; whether it becomes too large there or was so before. */
static void the_end_of_an_event_too_large(void **state)
{
    (void)state;
    char *s = malloc(ANSWER_MAX_EVENT_BYTES + 8);
    memset(s, 'x', ANSWER_MAX_EVENT_BYTES + 8);
    for (size_t text = ANSWER_MAX_EVENT_BYTES - 4; text < ANSWER_MAX_EVENT_BYTES + 4; text++) {
        struct answer a;
        answer_init(&a, true);
        answer_feed(&a, s, text);
        for (const char *end = "\r\n\r\n"; *end; end++)
            answer_feed(&a, end, 1);
        assert_true(answer_at_boundary(&a));
        answer_feed(&a, TOKEN("b"), sizeof TOKEN("b") - 1);
        assert_int_equal(a.events, 2);
        assert_int_equal(a.tokens, a.too_large + 1);
        answer_deinit(&a);
    }
    free(s);
}

static void documents(void **state)
{
    (void)state;
    static const char s[] =
        "{\"choices\":[{\"message\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}";
    struct answer a;
    answer_init(&a, false);
    feed_in_pieces(&a, s, sizeof s - 1, 7);
    assert_int_equal(answer_output_tok(&a), 2);
    assert_int_equal(a.prompt_tok, 3);
    assert_false(a.has_cached);
    assert_int_equal(a.finish, ANSWER_STOP);
    answer_deinit(&a);
    answer_init(&a, false);
    feed_in_pieces(&a, "<html>", 6, 6);
    assert_false(a.has_usage);
    answer_deinit(&a);
}

static void responses_api(void **state)
{
    (void)state;
    static const char s[] =
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"status\":\"in_progress\"}}\n\n"
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"He\"}\n\n"
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"y\"}\n\n"
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\","
        "\"usage\":{\"input_tokens\":5,\"output_tokens\":2,\"input_tokens_details\":{\"cached_tokens\":4}}}}\n\n";
    struct answer a;
    answer_init(&a, true);
    feed_in_pieces(&a, s, sizeof s - 1, 33);
    assert_int_equal(a.tokens, 2);
    assert_int_equal(a.prompt_tok, 5);
    assert_int_equal(a.output_tok, 2);
    assert_int_equal(a.cached_tok, 4);
    assert_int_equal(a.finish, ANSWER_STOP);
    assert_true(a.done);
    answer_deinit(&a);
}

static void sglang(void **state)
{
    (void)state;
    static const char s[] =
        "data: {\"text\":\"a b\",\"meta_info\":{\"prompt_tokens\":9,\"completion_tokens\":2,"
        "\"cached_tokens\":1,\"finish_reason\":null}}\n\n"
        "data: {\"text\":\"a b c\",\"meta_info\":{\"prompt_tokens\":9,\"completion_tokens\":3,"
        "\"cached_tokens\":1,\"finish_reason\":{\"type\":\"stop\"}}}\n\n" DONE;
    struct answer a;
    answer_init(&a, true);
    feed_in_pieces(&a, s, sizeof s - 1, 11);
    assert_int_equal(answer_output_tok(&a), 3);
    assert_int_equal(a.prompt_tok, 9);
    assert_int_equal(a.cached_tok, 1);
    assert_int_equal(a.finish, ANSWER_STOP);
    answer_deinit(&a);
}

static void errors_in_a_stream(void **state)
{
    (void)state;
    static const char s[] =
        TOKEN("a") "data: {\"error\":{\"message\":\"engine died\",\"code\":500}}\n\n" DONE;
    struct answer a;
    answer_init(&a, true);
    feed_in_pieces(&a, s, sizeof s - 1, 13);
    assert_int_equal(a.finish, ANSWER_ERROR);
    assert_string_equal(answer_finish_name(a.finish), "error");
    answer_deinit(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_stream_in_any_cut),
        cmocka_unit_test(carriage_returns_and_comments),
        cmocka_unit_test(role_event_is_no_token),
        cmocka_unit_test(several_choices_in_one_event),
        cmocka_unit_test(events_like_the_last_one),
        cmocka_unit_test(an_event_too_large),
        cmocka_unit_test(the_end_of_an_event_too_large),
        cmocka_unit_test(documents),
        cmocka_unit_test(responses_api),
        cmocka_unit_test(sglang),
        cmocka_unit_test(errors_in_a_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
