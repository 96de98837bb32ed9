/* openai_error.c - see openai_error.h. */
#include "controller/openai/openai_error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yyjson.h>

#define MESSAGE_BYTES 480u

struct openai_error openai_error_of(enum core_reason reason)
{
    static const struct openai_error errors[CORE_REASON_COUNT] = {
        [CORE_REASON_NONE] = {500, "server_error", "internal_error", "internal error", NULL},
        [CORE_REASON_QUEUE_FULL] = {429, "rate_limit_error", "queue_full",
                                    "the queue is full: retry after the time in Retry-After", NULL},
        [CORE_REASON_SATURATED] = {429, "rate_limit_error", "saturated",
                                   "all workers are busy: retry after the time in Retry-After",
                                   NULL},
        [CORE_REASON_SLO] =
            {429, "rate_limit_error", "deadline",
             "the deadline of this request cannot be met now: retry after the time in "
             "Retry-After, or allow more time",
             NULL},
        [CORE_REASON_NO_WORKER] = {503, "server_error", "no_worker",
                                   "no worker is up for this request", NULL},
        [CORE_REASON_TOO_LARGE] =
            {400, "invalid_request_error", "context_length_exceeded",
             "the request is larger than any worker can take: shorten the prompt or "
             "max_tokens",
             "messages"},
        [CORE_REASON_RETRIES] = {502, "server_error", "worker_failed",
                                 "the workers that were tried failed before they answered", NULL},
        [CORE_REASON_PARTIAL] = {502, "server_error", "worker_lost",
                                 "the worker was lost in the middle of the answer", NULL},
        [CORE_REASON_TIMEOUT] = {504, "server_error", "queue_timeout",
                                 "the request waited longer in the queue than is allowed", NULL},
    };
    return errors[reason];
}

const char *openai_dropped_reason(enum core_reason reason)
{
    switch (reason) {
    case CORE_REASON_QUEUE_FULL:
    case CORE_REASON_SATURATED:
    case CORE_REASON_SLO: return "rejected-saturated";
    case CORE_REASON_NO_WORKER: return "rejected-no-endpoints";
    case CORE_REASON_TIMEOUT: return "rejected-ttl-expired";
    default: return NULL;
    }
}

/* Text that JSON can carry: printable, valid UTF-8, at most MESSAGE_BYTES. */
static void clean(char out[MESSAGE_BYTES], const char *s)
{
    size_t n = 0;
    for (; *s && n + 1 < MESSAGE_BYTES; s++) {
        unsigned char c = (unsigned char)*s;
        out[n++] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
    }
    out[n] = '\0';
}

size_t openai_error_body(char out[OPENAI_ERROR_BODY_BYTES], const struct openai_error *e)
{
    char message[MESSAGE_BYTES], param[MESSAGE_BYTES], memory[4096];
    yyjson_alc pool;
    yyjson_alc_pool_init(&pool, memory, sizeof memory);
    yyjson_mut_doc *doc = yyjson_mut_doc_new(&pool);
    yyjson_mut_val *root = yyjson_mut_obj(doc), *err = yyjson_mut_obj(doc);
    clean(message, e->message);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_val(doc, root, "error", err);
    yyjson_mut_obj_add_str(doc, err, "message", message);
    yyjson_mut_obj_add_str(doc, err, "type", e->type);
    if (e->param && *e->param) {
        clean(param, e->param);
        param[64] = '\0';
        yyjson_mut_obj_add_str(doc, err, "param", param);
    } else {
        yyjson_mut_obj_add_null(doc, err, "param");
    }
    if (e->code)
        yyjson_mut_obj_add_str(doc, err, "code", e->code);
    else
        yyjson_mut_obj_add_null(doc, err, "code");
    size_t len = 0;
    char *text = yyjson_mut_write_opts(doc, 0, NULL, &len, NULL);
    if (!text || len >= OPENAI_ERROR_BODY_BYTES)
        len =
            (size_t)snprintf(out, OPENAI_ERROR_BODY_BYTES,
                             "{\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\","
                             "\"param\":null,\"code\":null}}");
    else
        memcpy(out, text, len + 1);
    free(text);
    return len;
}

size_t openai_error_event(char out[OPENAI_ERROR_BODY_BYTES + 32], const struct openai_error *e)
{
    static const char tail[] = "\n\ndata: [DONE]\n\n";
    memcpy(out, "data: ", 6);
    size_t len = 6 + openai_error_body(out + 6, e);
    memcpy(out + len, tail, sizeof tail);
    return len + sizeof tail - 1;
}
