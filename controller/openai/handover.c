/* handover.c - see handover.h. */
#include "controller/openai/handover.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SGLANG_BOOTSTRAP_PORT 8998u /* SGLang's own default, and Mooncake's in vLLM */

static int change(struct handover_edit *e, const char *name, const char *value, size_t len)
{
    if (e->n == JSON_EDIT_MAX_CHANGES)
        return WEIR_E_LIMIT;
    e->changes[e->n++] = (struct json_change){name, {value, len}};
    return 0;
}

static int drop(struct handover_edit *e, const char *name)
{
    return change(e, name, NULL, 0);
}

__attribute__((format(printf, 3, 4))) static int put(struct handover_edit *e, const char *name,
                                                     const char *format, ...)
{
    va_list args;
    size_t room = sizeof e->text - e->text_len;
    char *at = e->text + e->text_len;
    va_start(args, format);
    int n = vsnprintf(at, room, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= room)
        return WEIR_E_LIMIT;
    e->text_len += (size_t)n + 1;
    return change(e, name, at, (size_t)n);
}

/* Text between quotes goes into JSON as it is: hosts and ids that would need escapes are refused. */
static bool plain(const char *s)
{
    for (; s && *s; s++) {
        if (*s < 0x21 || *s > 0x7e || *s == '"' || *s == '\\')
            return false;
    }
    return s != NULL;
}

/* One token and no stream, whatever the client asked for: the prefill leg only fills the cache. */
static int one_token(const struct handover *h, struct handover_edit *e)
{
    static const char nested[] = "{\"max_tokens\":1,\"min_tokens\":1}";
    int rc = put(e, "stream", "false");
    rc |= drop(e, "stream_options");
    if (h->endpoint == OPENAI_VLLM_GENERATE)
        return rc | put(e, "sampling_params", "%s", nested);
    if (h->endpoint == OPENAI_RESPONSES)
        return rc | put(e, "max_output_tokens", "1");
    rc |= put(e, "max_tokens", "1");
    rc |= put(e, "min_tokens", "1");
    if (h->endpoint == OPENAI_CHAT)
        rc |= put(e, "max_completion_tokens", "1");
    return rc;
}

/* ---- NIXL (vLLM's default) */

static int nixl_prefill(const struct handover *h, struct handover_edit *e)
{
    return one_token(h, e) |
           put(e, "kv_transfer_params",
               "{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"remote_engine_id\":null,"
               "\"remote_block_ids\":null,\"remote_host\":null,\"remote_port\":null}");
}

static int pass_params(const struct handover *h, struct handover_edit *e)
{
    if (!h->params.s)
        return WEIR_E_INVALID;
    return change(e, "kv_transfer_params", h->params.s, h->params.len);
}

/* ---- SGLang: both legs at once, tied by a room number */

/* value, or as many of them in an array as the request has answers. */
static int put_each(const struct handover *h, struct handover_edit *e, const char *name,
                    const char *value, uint64_t number, bool numbered)
{
    char one[300], all[HANDOVER_TEXT_BYTES];
    size_t len = 0;
    if (h->choices <= 1) {
        return numbered ? put(e, name, "%" PRIu64, number) : put(e, name, "%s", value);
    }
    for (uint32_t i = 0; i < h->choices; i++) {
        int n = numbered ? snprintf(one, sizeof one, "%s%" PRIu64, i ? "," : "[", number + i)
                         : snprintf(one, sizeof one, "%s%s", i ? "," : "[", value);
        if (n < 0 || (size_t)n >= sizeof one || len + (size_t)n + 2 > sizeof all)
            return WEIR_E_LIMIT;
        memcpy(all + len, one, (size_t)n);
        len += (size_t)n;
    }
    all[len] = '\0';
    return put(e, name, "%s]", all);
}

static int sglang_leg(const struct handover *h, struct handover_edit *e)
{
    char host[264], port[8];
    if (!plain(h->prefill_host))
        return WEIR_E_INVALID;
    int n = snprintf(host, sizeof host, "\"%s\"", h->prefill_host);
    if (n < 0 || (size_t)n >= sizeof host)
        return WEIR_E_LIMIT;
    snprintf(port, sizeof port, "%u",
             h->bootstrap_port ? h->bootstrap_port : SGLANG_BOOTSTRAP_PORT);
    int rc = put_each(h, e, "bootstrap_host", host, 0, false);
    rc |= put_each(h, e, "bootstrap_port", port, 0, false);
    /* 0..2^63-1, and room for one number a choice */
    return rc | put_each(h, e, "bootstrap_room", NULL, h->room & (INT64_MAX >> 1), true);
}

/* ---- Mooncake (vLLM) */

static int mooncake_prefill(const struct handover *h, struct handover_edit *e)
{
    return one_token(h, e) |
           put(e, "kv_transfer_params",
               "{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"transfer_id\":\"xfer-%016" PRIx64
               "\"}",
               h->room);
}

static int mooncake_decode(const struct handover *h, struct handover_edit *e)
{
    if (!plain(h->prefill_host) || !plain(h->engine_id))
        return WEIR_E_INVALID;
    return put(
        e, "kv_transfer_params",
        "{\"do_remote_decode\":false,\"do_remote_prefill\":true,\"transfer_id\":\"xfer-%016" PRIx64
        "\","
        "\"remote_bootstrap_addr\":\"http://%s:%u\",\"remote_engine_id\":\"%s\"}",
        h->room, h->prefill_host, h->bootstrap_port ? h->bootstrap_port : SGLANG_BOOTSTRAP_PORT,
        h->engine_id);
}

/* ---- P2P-NCCL (vLLM): the request id carries the addresses */

static int p2p_id(const struct handover *h, struct handover_edit *e)
{
    if (!plain(h->prefill_address) || !plain(h->decode_address))
        return WEIR_E_INVALID;
    int n = snprintf(e->request_id, sizeof e->request_id,
                     "___prefill_addr_%s___decode_addr_%s_%016" PRIx64, h->prefill_address,
                     h->decode_address, h->room);
    return n < 0 || (size_t)n >= sizeof e->request_id ? WEIR_E_LIMIT : 0;
}

static int p2p_prefill(const struct handover *h, struct handover_edit *e)
{
    int rc = p2p_id(h, e);
    return rc ? rc : one_token(h, e);
}

/* ---- offloading connector (vLLM): role-keyed parameters, the same request id on both sides */

static int offloading_prefill(const struct handover *h, struct handover_edit *e)
{
    return one_token(h, e) | put(e, "kv_transfer_params",
                                 "{\"remote_decoder\":{\"kv_request_id\":\"%016" PRIx64 "\"}}",
                                 h->room);
}

static int offloading_decode(const struct handover *h, struct handover_edit *e)
{
    return put(e, "kv_transfer_params",
               "{\"remote_prefiller\":{\"kv_request_id\":\"%016" PRIx64 "\"}}", h->room);
}

const struct handover_dialect handover_dialects[] = {
    {"nixl", false, nixl_prefill, pass_params},
    {"sglang", true, sglang_leg, sglang_leg},
    {"mooncake", false, mooncake_prefill, mooncake_decode},
    {"p2p_nccl", false, p2p_prefill, p2p_id},
    {"offloading", false, offloading_prefill, offloading_decode},
};

const size_t handover_dialects_count = sizeof handover_dialects / sizeof *handover_dialects;

const struct handover_dialect *handover_find(const char *name)
{
    for (size_t i = 0; i < handover_dialects_count; i++) {
        if (!strcmp(handover_dialects[i].name, name))
            return &handover_dialects[i];
    }
    return NULL;
}

bool handover_params(const char *answer, size_t len, struct json_slice *params)
{
    return json_member(answer, len, "kv_transfer_params", params) && params->len &&
           params->len <= HANDOVER_MAX_PARAMS_BYTES && params->s[0] == '{';
}
