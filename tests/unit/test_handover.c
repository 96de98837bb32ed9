/* The bodies of prefill and decode legs, dialect by dialect, and refusals in OpenAI's shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <yyjson.h>

#include "controller/openai/handover.h"
#include "controller/openai/openai_error.h"

static const char client[] =
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true,"
    "\"stream_options\":{\"include_usage\":true},\"max_tokens\":50}";

static char joined[8192];
static yyjson_doc *doc;

/* The body of a leg as the engine parses it. */
static yyjson_val *leg(int (*make)(const struct handover *, struct handover_edit *),
                       const struct handover *h)
{
    static struct handover_edit e;
    struct json_edit out;
    size_t n = 0;
    memset(&e, 0, sizeof e);
    assert_int_equal(make(h, &e), 0);
    assert_int_equal(json_edit(&out, client, sizeof client - 1, e.changes, e.n), 0);
    for (size_t i = 0; i < out.n_slices; i++) {
        memcpy(joined + n, out.slices[i].s, out.slices[i].len);
        n += out.slices[i].len;
    }
    yyjson_doc_free(doc);
    doc = yyjson_read(joined, n, 0);
    assert_non_null(doc);
    return yyjson_doc_get_root(doc);
}

static yyjson_val *at(yyjson_val *v, const char *pointer)
{
    (void)v;
    yyjson_val *found = yyjson_doc_ptr_get(doc, pointer);
    assert_non_null(found);
    return found;
}

static void nixl(void **state)
{
    (void)state;
    const struct handover_dialect *d = handover_find("nixl");
    struct handover h = {.endpoint = OPENAI_CHAT, .choices = 1};
    yyjson_val *p = leg(d->prefill, &h);
    assert_false(d->at_once);
    assert_true(yyjson_is_false(at(p, "/stream")));
    assert_int_equal(yyjson_get_int(at(p, "/max_tokens")), 1);
    assert_int_equal(yyjson_get_int(at(p, "/max_completion_tokens")), 1);
    assert_null(yyjson_obj_get(p, "stream_options"));
    assert_true(yyjson_is_true(at(p, "/kv_transfer_params/do_remote_decode")));
    assert_true(yyjson_is_null(at(p, "/kv_transfer_params/remote_host")));
    assert_string_equal(yyjson_get_str(at(p, "/messages/0/content")), "hi");

    static const char answer[] =
        "{\"id\":\"x\",\"kv_transfer_params\":{\"remote_block_ids\":[[1,2,\"z\"]],\"new\":{}}}";
    assert_true(handover_params(answer, sizeof answer - 1, &h.params));
    p = leg(d->decode, &h);
    assert_true(yyjson_is_true(at(p, "/stream")));
    assert_int_equal(yyjson_get_int(at(p, "/max_tokens")), 50);
    assert_string_equal(yyjson_get_str(at(p, "/kv_transfer_params/remote_block_ids/0/2")), "z");
    assert_true(yyjson_is_obj(at(p, "/kv_transfer_params/new")));
}

static void nixl_without_params(void **state)
{
    (void)state;
    struct handover h = {.endpoint = OPENAI_CHAT};
    struct handover_edit e = {.n = 0};
    assert_int_equal(handover_find("nixl")->decode(&h, &e), WEIR_E_INVALID);
    static const char *const none[] = {"", "{}", "{\"kv_transfer_params\":null}", "[1]",
                                       "{\"kv_transfer_params\":{"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_false(handover_params(none[i], strlen(none[i]), &h.params));
}

static void sglang(void **state)
{
    (void)state;
    const struct handover_dialect *d = handover_find("sglang");
    struct handover h = {
        .choices = 1, .room = UINT64_MAX, .prefill_host = "10.0.0.1", .bootstrap_port = 0};
    assert_true(d->at_once);
    yyjson_val *p = leg(d->prefill, &h);
    assert_string_equal(yyjson_get_str(at(p, "/bootstrap_host")), "10.0.0.1");
    assert_int_equal(yyjson_get_int(at(p, "/bootstrap_port")), 8998);
    assert_true(yyjson_get_uint(at(p, "/bootstrap_room")) <= INT64_MAX);
    assert_true(yyjson_is_true(at(p, "/stream"))); /* the client's own body otherwise */
    h.choices = 3;
    p = leg(d->decode, &h);
    assert_int_equal(yyjson_arr_size(at(p, "/bootstrap_host")), 3);
    assert_int_equal(yyjson_arr_size(at(p, "/bootstrap_port")), 3);
    assert_int_equal(yyjson_arr_size(at(p, "/bootstrap_room")), 3);
    struct handover_edit e = {.n = 0};
    h.prefill_host = "a\"b";
    assert_int_equal(d->prefill(&h, &e), WEIR_E_INVALID);
    h.prefill_host = "a";
    h.choices = OPENAI_MAX_CHOICES;
    assert_int_equal(d->prefill(&h, &e), WEIR_E_LIMIT);
}

static void other_connectors(void **state)
{
    (void)state;
    struct handover h = {.endpoint = OPENAI_COMPLETIONS,
                         .choices = 1,
                         .room = 0xabc,
                         .prefill_host = "p",
                         .engine_id = "e1",
                         .prefill_address = "p:1",
                         .decode_address = "d:2"};
    const struct handover_dialect *d = handover_find("mooncake");
    yyjson_val *p = leg(d->prefill, &h);
    assert_string_equal(yyjson_get_str(at(p, "/kv_transfer_params/transfer_id")),
                        "xfer-0000000000000abc");
    p = leg(d->decode, &h);
    assert_string_equal(yyjson_get_str(at(p, "/kv_transfer_params/remote_bootstrap_addr")),
                        "http://p:8998");
    assert_string_equal(yyjson_get_str(at(p, "/kv_transfer_params/remote_engine_id")), "e1");
    struct handover_edit e = {.n = 0};
    assert_int_equal(handover_find("p2p_nccl")->prefill(&h, &e), 0);
    assert_string_equal(e.request_id, "___prefill_addr_p:1___decode_addr_d:2_0000000000000abc");
    d = handover_find("offloading");
    p = leg(d->decode, &h);
    assert_string_equal(yyjson_get_str(at(p, "/kv_transfer_params/remote_prefiller/kv_request_id")),
                        "0000000000000abc");
    assert_null(handover_find("carrier pigeon"));
}

static void every_refusal_has_a_shape(void **state)
{
    (void)state;
    char body[OPENAI_ERROR_BODY_BYTES], event[OPENAI_ERROR_BODY_BYTES + 32];
    for (int r = CORE_REASON_NONE; r < CORE_REASON_COUNT; r++) {
        struct openai_error e = openai_error_of((enum core_reason)r);
        size_t len = openai_error_body(body, &e);
        yyjson_doc_free(doc);
        doc = yyjson_read(body, len, 0);
        assert_non_null(doc);
        assert_string_equal(yyjson_get_str(at(NULL, "/error/message")), e.message);
        assert_true(e.status >= 400 && e.status < 600);
        len = openai_error_event(event, &e);
        assert_memory_equal(event, "data: {", 7);
        assert_string_equal(event + len - 16, "\n\ndata: [DONE]\n\n");
    }
    assert_int_equal(openai_error_of(CORE_REASON_QUEUE_FULL).status, 429);
    assert_int_equal(openai_error_of(CORE_REASON_NO_WORKER).status, 503);
    assert_null(openai_dropped_reason(CORE_REASON_PARTIAL));
    assert_string_equal(openai_dropped_reason(CORE_REASON_TIMEOUT), "rejected-ttl-expired");
}

static void hostile_messages(void **state)
{
    (void)state;
    char body[OPENAI_ERROR_BODY_BYTES], message[3000];
    memset(message, '"', sizeof message - 1);
    message[sizeof message - 1] = '\0';
    struct openai_error e = {400, "invalid_request_error", NULL, message, "a\nb\xff"};
    size_t len = openai_error_body(body, &e);
    assert_true(len < OPENAI_ERROR_BODY_BYTES);
    yyjson_doc_free(doc);
    doc = yyjson_read(body, len, 0);
    assert_non_null(doc);
    yyjson_doc_free(doc);
    doc = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nixl),
        cmocka_unit_test(nixl_without_params),
        cmocka_unit_test(sglang),
        cmocka_unit_test(other_connectors),
        cmocka_unit_test(every_refusal_has_a_shape),
        cmocka_unit_test(hostile_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
