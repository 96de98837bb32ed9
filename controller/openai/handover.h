/* handover.h - how each engine family is told to split a request into a prefill and a decode leg: the members
 * that are put into the two bodies, and what the prefill leg's answer must carry over to the decode leg. One row
 * of handover_dialects[] a dialect; sources: wire-formats.md 3.3 to 3.5 and what a real vLLM 0.32 returned
 * (3.8, "seen"). No I/O.
 *
 *   sequential (vLLM)    client body + edits ──► prefill worker ──► answer with kv_transfer_params
 *                        client body + those ──► decode worker ──► the answer for the client
 *   at once (SGLang)     client body + bootstrap room ──► prefill worker and decode worker at the same time
 */
#ifndef WEIR_HANDOVER_H
#define WEIR_HANDOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/openai/json_edit.h"
#include "controller/openai/openai_request.h"

#define HANDOVER_MAX_PARAMS_BYTES                                                                  \
    (256u << 10) /* kv_transfer_params of a prefill answer: block ids are long */
#define HANDOVER_TEXT_BYTES 1024u

/* What a leg is made from. Texts are borrowed until the edit has been sent. */
struct handover {
    enum openai_endpoint endpoint;
    uint32_t choices;
    uint64_t room;            /* random, unique to the request (SGLang, Mooncake) */
    const char *prefill_host; /* of the prefill worker, as the decode worker reaches it */
    uint16_t bootstrap_port; /* SGLang, Mooncake: of the prefill worker; 0: the dialect's default */
    const char *engine_id;   /* Mooncake: of the prefill worker */
    const char *prefill_address; /* P2P-NCCL: host:port of the workers' ZMQ sockets */
    const char *decode_address;
    struct json_slice params; /* vLLM: kv_transfer_params of the prefill answer */
};

/* Changes of one leg's body and the texts they point to. */
struct handover_edit {
    struct json_change changes[JSON_EDIT_MAX_CHANGES];
    size_t n;
    char text[HANDOVER_TEXT_BYTES];
    size_t text_len;
    char request_id[512]; /* P2P-NCCL: X-Request-Id of both legs; empty: the client's */
};

struct handover_dialect {
    const char *name;
    bool at_once; /* both legs are sent together */
    /* 0, or WEIR_E_INVALID (something that this dialect needs is missing: a host, params ...) or WEIR_E_LIMIT
     * (does not fit HANDOVER_TEXT_BYTES). */
    int (*prefill)(const struct handover *h, struct handover_edit *e);
    int (*decode)(const struct handover *h, struct handover_edit *e);
};

extern const struct handover_dialect handover_dialects[];
extern const size_t handover_dialects_count;

/* NULL: no such dialect. Names: nixl, sglang, mooncake, p2p_nccl, offloading. */
const struct handover_dialect *handover_find(const char *name);

/* The kv_transfer_params in a prefill leg's answer, whole and untouched. False: there are none (the answer was no
 * JSON object, or null): then there is no KV to pull. */
bool handover_params(const char *answer, size_t len, struct json_slice *params);

#endif
