/* openai_error.h - refusals in the shape that OpenAI's clients expect:
 *   {"error":{"message":"...","type":"invalid_request_error","param":"model","code":"..."}}
 * and as the last event of a stream that was cut. 429 means that capacity exists but is contended, 503 that there
 * is none (DESIGN 6). No I/O.
 */
#ifndef WEIR_OPENAI_ERROR_H
#define WEIR_OPENAI_ERROR_H

#include <stddef.h>

#include "controller/core/core.h"

#define OPENAI_ERROR_BODY_BYTES 1024u

struct openai_error {
    int status;          /* HTTP */
    const char *type;    /* static text: "invalid_request_error" ... */
    const char *code;    /* static text or NULL */
    const char *message; /* for a person; borrowed */
    const char *param;   /* the member it is about; NULL or "": none */
};

/* How the core's refusals are told: status, type, code and a message with what to do. NULL message never. */
struct openai_error openai_error_of(enum core_reason reason);

/* Value of llm-d's x-llm-d-request-dropped-reason for a refusal; NULL: none fits. */
const char *openai_dropped_reason(enum core_reason reason);

/* The body; the message is cut where OPENAI_ERROR_BODY_BYTES would be exceeded, and invalid UTF-8 or control
 * characters are replaced. Returns its length (out ends with NUL). */
size_t openai_error_body(char out[OPENAI_ERROR_BODY_BYTES], const struct openai_error *e);

/* The same as a server-sent event, with the empty line that ends it, followed by data: [DONE]. */
size_t openai_error_event(char out[OPENAI_ERROR_BODY_BYTES + 32], const struct openai_error *e);

#endif
