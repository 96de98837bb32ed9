/* openai_request.c - see openai_request.h. */
#include "controller/openai/openai_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>
#include <yyjson.h>

#include "predictor/request.h"

/* Bodies up to this size are parsed in memory that is kept; larger ones take theirs from malloc. */
#define POOL_BODY_BYTES (64u << 10)
/* What yyjson may need for them (yyjson_read_max_memory_usage: 12 bytes a byte, plus a little). */
#define POOL_BYTES (POOL_BODY_BYTES * 12 + 4096)

/* Separates the parts of the canonical prompt; cannot stand in JSON text unescaped. */
enum mark { MARK_TOOLS = 1, MARK_MESSAGE, MARK_PART, MARK_MEDIA, MARK_CALL };

struct openai_reader {
    uint64_t keys[OPENAI_MAX_KEYS];
    uint32_t n_keys;
    uint64_t parent;
    uint32_t fill; /* bytes in chunk */
    unsigned char chunk[OPENAI_CHUNK_BYTES];
    char pool[POOL_BYTES];
};

struct reading {
    struct openai_reader *r;
    struct openai_request *out;
    char *error;
    const char *param;
};

struct openai_reader *openai_reader_new(void)
{
    return malloc(sizeof(struct openai_reader));
}

void openai_reader_free(struct openai_reader *r)
{
    free(r);
}

static const struct {
    const char *path, *name;
} endpoints[] = {
    [OPENAI_CHAT] = {"/v1/chat/completions", "chat"},
    [OPENAI_COMPLETIONS] = {"/v1/completions", "completions"},
    [OPENAI_RESPONSES] = {"/v1/responses", "responses"},
    [OPENAI_EMBEDDINGS] = {"/v1/embeddings", "embeddings"},
    [OPENAI_TOKENIZE] = {"/tokenize", "tokenize"},
    [OPENAI_VLLM_GENERATE] = {"/inference/v1/generate", "generate"},
    [OPENAI_SGLANG_GENERATE] = {"/generate", "sglang_generate"},
    [OPENAI_MODELS] = {"/v1/models", "models"},
};

#define N_ENDPOINTS (sizeof endpoints / sizeof *endpoints)

enum openai_endpoint openai_endpoint_of(const char *path, size_t len)
{
    const char *query = memchr(path, '?', len);
    if (query)
        len = (size_t)(query - path);
    for (size_t i = 0; i < N_ENDPOINTS; i++) {
        if (strlen(endpoints[i].path) == len && !memcmp(endpoints[i].path, path, len))
            return (enum openai_endpoint)i;
    }
    return OPENAI_OTHER;
}

const char *openai_endpoint_name(enum openai_endpoint e)
{
    return (size_t)e < N_ENDPOINTS ? endpoints[e].name : "other";
}

/* ---- the canonical prompt and its keys */

static void end_chunk(struct openai_reader *r, const void *chunk, size_t len)
{
    if (r->n_keys == OPENAI_MAX_KEYS)
        return;
    r->parent = request_chain_key(r->parent, XXH3_64bits(chunk, len));
    r->keys[r->n_keys++] = r->parent;
}

static void feed(struct openai_reader *r, const char *s, size_t len)
{
    if (r->fill) {
        size_t room = OPENAI_CHUNK_BYTES - r->fill, n = len < room ? len : room;
        memcpy(r->chunk + r->fill, s, n);
        r->fill += (uint32_t)n;
        s += n;
        len -= n;
        if (r->fill < OPENAI_CHUNK_BYTES)
            return;
        end_chunk(r, r->chunk, OPENAI_CHUNK_BYTES);
        r->fill = 0;
    }
    for (; len >= OPENAI_CHUNK_BYTES; s += OPENAI_CHUNK_BYTES, len -= OPENAI_CHUNK_BYTES)
        end_chunk(r, s, OPENAI_CHUNK_BYTES);
    if (len) {
        memcpy(r->chunk, s, len);
        r->fill = (uint32_t)len;
    }
}

static void feed_mark(struct openai_reader *r, enum mark mark)
{
    char c = (char)mark;
    feed(r, &c, 1);
}

static void feed_text(struct reading *k, yyjson_val *v)
{
    size_t len = yyjson_get_len(v);
    feed(k->r, yyjson_get_str(v), len);
    k->out->prompt_bytes += len;
}

/* Any JSON value, so that equal values feed equal bytes: names and strings as they are, structure as marks. Tool
 * definitions and calls are small next to the prompt. Depth is bounded by MAX_DEPTH: what is deeper counts as equal. */
#define MAX_DEPTH 16
static void feed_value(struct reading *k, yyjson_val *v, int depth)
{
    char number[32];
    size_t i, n;
    yyjson_val *key, *item;
    if (yyjson_is_str(v)) {
        feed_text(k, v);
    } else if (yyjson_is_obj(v) && depth < MAX_DEPTH) {
        yyjson_obj_foreach (v, i, n, key, item) {
            feed_text(k, key);
            feed_value(k, item, depth + 1);
        }
    } else if (yyjson_is_arr(v) && depth < MAX_DEPTH) {
        yyjson_arr_foreach (v, i, n, item) {
            feed_mark(k->r, MARK_PART);
            feed_value(k, item, depth + 1);
        }
    } else if (yyjson_is_num(v)) {
        int len = snprintf(number, sizeof number, "%.17g", yyjson_get_num(v));
        feed(k->r, number, (size_t)len);
    } else if (yyjson_is_bool(v)) {
        feed(k->r, yyjson_get_bool(v) ? "t" : "f", 1);
    }
}

static uint64_t hash_of(yyjson_val *v)
{
    return yyjson_is_str(v) && yyjson_get_len(v)
               ? XXH3_64bits(yyjson_get_str(v), yyjson_get_len(v)) | 1 /* never 0 */
               : 0;
}

/* ---- members with a type and a range */

static int wrong(struct reading *k, const char *param, const char *expected)
{
    k->param = param;
    snprintf(k->error, OPENAI_ERROR_BYTES, "'%s' must be %s", param, expected);
    return WEIR_E_INPUT;
}

static bool given(yyjson_val *v)
{
    return v && !yyjson_is_null(v);
}

static int read_count(struct reading *k, yyjson_val *obj, const char *name, uint32_t min,
                      uint32_t max, uint32_t *out)
{
    char expected[64];
    yyjson_val *v = yyjson_obj_get(obj, name);
    if (!given(v))
        return 0;
    if (!yyjson_is_uint(v) || yyjson_get_uint(v) < min || yyjson_get_uint(v) > max) {
        snprintf(expected, sizeof expected, "a whole number from %u to %u", min, max);
        return wrong(k, name, expected);
    }
    *out = (uint32_t)yyjson_get_uint(v);
    return 0;
}

static int read_bool(struct reading *k, yyjson_val *obj, const char *name, bool *out)
{
    yyjson_val *v = yyjson_obj_get(obj, name);
    if (!given(v))
        return 0;
    if (!yyjson_is_bool(v))
        return wrong(k, name, "true or false");
    *out = yyjson_get_bool(v);
    return 0;
}

static int read_model(struct reading *k, yyjson_val *root)
{
    yyjson_val *v = yyjson_obj_get(root, "model");
    if (!given(v))
        return 0;
    if (!yyjson_is_str(v) || yyjson_get_len(v) >= OPENAI_NAME_BYTES ||
        strlen(yyjson_get_str(v)) != yyjson_get_len(v))
        return wrong(k, "model", "a name of at most 255 bytes");
    memcpy(k->out->model, yyjson_get_str(v), yyjson_get_len(v) + 1);
    return 0;
}

static int read_priority(struct reading *k, yyjson_val *root)
{
    yyjson_val *v = yyjson_obj_get(root, "priority");
    if (!given(v))
        return 0;
    if (!yyjson_is_int(v) || (yyjson_is_uint(v) && yyjson_get_uint(v) > INT32_MAX) ||
        (yyjson_is_sint(v) && yyjson_get_sint(v) < INT32_MIN))
        return wrong(k, "priority", "a whole number of 32 bits");
    k->out->priority = (int32_t)yyjson_get_sint(v);
    k->out->has_priority = true;
    return 0;
}

/* The names under which endpoints limit the answer; the first that is given counts. */
static int read_limits(struct reading *k, yyjson_val *root)
{
    static const char *const names[] = {"max_completion_tokens", "max_output_tokens",
                                        "max_new_tokens", "max_tokens"};
    yyjson_val *sampling = yyjson_obj_get(root, "sampling_params");
    yyjson_val *where[] = {root, yyjson_is_obj(sampling) ? sampling : NULL};
    uint32_t n = 1;
    int rc = 0;
    for (size_t w = 0; w < 2 && !rc; w++) {
        for (size_t i = 0; where[w] && i < 4 && !rc && !k->out->max_tokens; i++)
            rc = read_count(k, where[w], names[i], 0, OPENAI_MAX_TOKENS, &k->out->max_tokens);
        if (where[w] && !rc)
            rc = read_count(k, where[w], "n", 1, OPENAI_MAX_CHOICES, &n);
    }
    k->out->choices = n;
    return rc;
}

static int read_hints(struct reading *k, yyjson_val *root)
{
    yyjson_val *ext = yyjson_obj_get(yyjson_obj_get(root, "nvext"), "agent_hints");
    yyjson_val *context = yyjson_obj_get(yyjson_obj_get(root, "vllm_xargs"), "agentic_context");
    uint32_t *out = &k->out->expected_output_tok;
    int rc = read_count(k, root, "expected_output_length", 0, OPENAI_MAX_TOKENS, out);
    if (!rc && context)
        rc = read_count(k, context, "expected_output_length", 0, OPENAI_MAX_TOKENS, out);
    if (!rc && ext)
        rc = read_count(k, ext, "osl", 0, OPENAI_MAX_TOKENS, out);
    return rc;
}

static int read_settings(struct reading *k, yyjson_val *root)
{
    yyjson_val *options = yyjson_obj_get(root, "stream_options");
    uint64_t user = hash_of(yyjson_obj_get(root, "user"));
    uint64_t session = hash_of(yyjson_obj_get(root, "prompt_cache_key"));
    k->out->user = user ? user : hash_of(yyjson_obj_get(root, "safety_identifier"));
    k->out->session = session ? session : hash_of(yyjson_obj_get(root, "previous_response_id"));
    k->out->cache_salt = hash_of(yyjson_obj_get(root, "cache_salt"));
    int rc = read_model(k, root);
    if (!rc)
        rc = read_bool(k, root, "stream", &k->out->stream);
    if (!rc && given(options) && !yyjson_is_obj(options))
        rc = wrong(k, "stream_options", "an object");
    if (!rc && given(options))
        rc = read_bool(k, options, "include_usage", &k->out->include_usage);
    if (k->out->endpoint == OPENAI_OTHER)
        return rc;
    if (!rc)
        rc = read_limits(k, root);
    if (!rc)
        rc = read_priority(k, root);
    return rc ? rc : read_hints(k, root);
}

/* ---- prompts */

/* Everything that makes equal texts different prompts goes into the root of the chain. */
static void start_prompt(struct reading *k, yyjson_val *root)
{
    struct openai_request *q = k->out;
    yyjson_val *lora = yyjson_obj_get(root, "lora_path");
    k->r->n_keys = k->r->fill = 0;
    k->r->parent = XXH3_64bits_withSeed(q->model, strlen(q->model), q->cache_salt);
    if (hash_of(lora))
        k->r->parent = request_chain_key(k->r->parent, hash_of(lora));
}

static void end_prompt(struct reading *k)
{
    k->out->keys = k->r->keys;
    k->out->n_keys = k->r->n_keys;
}

static int read_ids(struct reading *k, yyjson_val *ids, const char *param, bool named)
{
    uint32_t chunk[OPENAI_CHUNK_TOK], fill = 0;
    size_t i, n;
    yyjson_val *v;
    yyjson_arr_foreach (ids, i, n, v) {
        if (!yyjson_is_uint(v) || yyjson_get_uint(v) > UINT32_MAX)
            return wrong(k, param, "token ids: whole numbers of 32 bits");
        chunk[fill++] = (uint32_t)yyjson_get_uint(v);
        if (fill == OPENAI_CHUNK_TOK) {
            if (named)
                end_chunk(k->r, chunk, sizeof chunk);
            fill = 0;
        }
    }
    if (n > OPENAI_MAX_TOKENS - k->out->prompt_tok)
        return wrong(k, param, "a prompt of at most 268435456 tokens");
    k->out->prompt_tok += (uint32_t)n;
    k->out->key_tok = OPENAI_CHUNK_TOK;
    return 0;
}

/* A string, an array of strings, token ids, or an array of arrays of them. A batch is known by its first
 * prompt, and counts as a whole. */
static int read_prompt(struct reading *k, yyjson_val *v, const char *param)
{
    static const char expected[] = "a string, strings, token ids or arrays of them";
    size_t i, n;
    yyjson_val *item, *first = yyjson_is_arr(v) ? yyjson_arr_get_first(v) : NULL;
    if (yyjson_is_str(v)) {
        feed_text(k, v);
        return 0;
    }
    if (!first)
        return wrong(k, param, yyjson_is_arr(v) ? "not empty" : expected);
    if (yyjson_is_num(first))
        return read_ids(k, v, param, true);
    yyjson_arr_foreach (v, i, n, item) {
        if (yyjson_get_type(item) != yyjson_get_type(first))
            return wrong(k, param, expected);
        if (yyjson_is_arr(item)) {
            int rc = read_ids(k, item, param, i == 0);
            if (rc)
                return rc;
        } else if (!yyjson_is_str(item)) {
            return wrong(k, param, expected);
        } else if (i == 0) {
            feed_text(k, item);
        } else {
            k->out->prompt_bytes += yyjson_get_len(item);
        }
    }
    k->out->choices = n > OPENAI_MAX_CHOICES ? OPENAI_MAX_CHOICES : k->out->choices * (uint32_t)n;
    return 0;
}

/* An element of a content array: text, or something whose bytes matter but are not text. */
static void feed_part(struct reading *k, yyjson_val *part)
{
    yyjson_val *text = yyjson_obj_get(part, "text");
    feed_mark(k->r, MARK_PART);
    if (yyjson_is_str(part)) {
        feed_text(k, part);
    } else if (yyjson_is_str(text)) {
        feed_text(k, text);
    } else {
        uint64_t before = k->out->prompt_bytes;
        feed_mark(k->r, MARK_MEDIA);
        feed_value(k, part, 0);
        k->out->prompt_bytes = before;
        k->out->media++;
    }
}

static void feed_message(struct reading *k, yyjson_val *message)
{
    yyjson_val *content = yyjson_obj_get(message, "content");
    yyjson_val *calls = yyjson_obj_get(message, "tool_calls"), *part;
    size_t i, n;
    feed_mark(k->r, MARK_MESSAGE);
    feed_value(k, yyjson_obj_get(message, "role"), 0);
    feed_value(k, yyjson_obj_get(message, "name"), 0);
    if (yyjson_is_arr(content)) {
        yyjson_arr_foreach (content, i, n, part)
            feed_part(k, part);
    } else if (yyjson_is_str(content)) {
        feed_mark(k->r, MARK_PART);
        feed_text(k, content);
    } else if (!content && !calls) { /* items of the Responses API that are no messages */
        feed_value(k, message, 0);
    }
    if (calls) {
        feed_mark(k->r, MARK_CALL);
        feed_value(k, calls, 0);
    }
}

static int read_messages(struct reading *k, yyjson_val *messages, const char *param)
{
    size_t i, n;
    yyjson_val *m;
    if (!yyjson_is_arr(messages) || !yyjson_arr_size(messages))
        return wrong(k, param, "an array of messages, not empty");
    yyjson_arr_foreach (messages, i, n, m) {
        if (!yyjson_is_obj(m))
            return wrong(k, param, "an array of objects");
        feed_message(k, m);
    }
    return 0;
}

static void feed_tools(struct reading *k, yyjson_val *root)
{
    yyjson_val *tools = yyjson_obj_get(root, "tools");
    if (!given(tools))
        return;
    feed_mark(k->r, MARK_TOOLS);
    feed_value(k, tools, 0);
}

static int read_responses(struct reading *k, yyjson_val *root)
{
    yyjson_val *input = yyjson_obj_get(root, "input"),
               *instructions = yyjson_obj_get(root, "instructions");
    feed_tools(k, root);
    if (yyjson_is_str(instructions)) {
        feed_mark(k->r, MARK_MESSAGE);
        feed_text(k, instructions);
    }
    if (yyjson_is_str(input)) {
        feed_mark(k->r, MARK_MESSAGE);
        feed_text(k, input);
        return 0;
    }
    if (!given(input))
        return wrong(k, "input", "given: a string or an array of items");
    return read_messages(k, input, "input");
}

/* The member that holds the prompt: the first of these names that is there. */
static int read_first(struct reading *k, yyjson_val *root, const char *const *names)
{
    for (size_t i = 0; names[i]; i++) {
        yyjson_val *v = yyjson_obj_get(root, names[i]);
        if (given(v))
            return read_prompt(k, v, names[i]);
    }
    return wrong(k, names[0], "given");
}

static int read_body(struct reading *k, yyjson_val *root)
{
    static const char *const prompt[] = {"prompt", NULL}, *const input[] = {"input", NULL},
                             *const ids[] = {"token_ids", NULL},
                             *const text[] = {"text", "input_ids", NULL};
    yyjson_val *messages = yyjson_obj_get(root, "messages");
    start_prompt(k, root);
    switch (k->out->endpoint) {
    case OPENAI_CHAT: feed_tools(k, root); return read_messages(k, messages, "messages");
    case OPENAI_TOKENIZE:
        if (given(messages))
            return read_messages(k, messages, "messages");
        return read_first(k, root, prompt);
    case OPENAI_RESPONSES: return read_responses(k, root);
    case OPENAI_EMBEDDINGS: return read_first(k, root, input);
    case OPENAI_VLLM_GENERATE: return read_first(k, root, ids);
    case OPENAI_SGLANG_GENERATE: return read_first(k, root, text);
    case OPENAI_COMPLETIONS: return read_first(k, root, prompt);
    default: return 0;
    }
}

int openai_request_read(struct openai_reader *r, enum openai_endpoint endpoint, const char *body,
                        size_t len, struct openai_request *out, char error[OPENAI_ERROR_BYTES],
                        const char **param)
{
    struct reading k = {.r = r, .out = out, .error = error, .param = ""};
    yyjson_alc pool;
    yyjson_read_err bad;
    bool small = len <= POOL_BODY_BYTES && yyjson_alc_pool_init(&pool, r->pool, sizeof r->pool);
    memset(out, 0, sizeof *out);
    out->endpoint = endpoint;
    out->choices = 1;
    /* yyjson does not write to the text without YYJSON_READ_INSITU */
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)body, len, 0, small ? &pool : NULL, &bad);
    int rc;
    if (!doc && bad.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION) {
        rc = WEIR_E_NOMEM;
        snprintf(error, OPENAI_ERROR_BYTES, "out of memory");
    } else if (!doc) {
        rc = WEIR_E_INPUT;
        snprintf(error, OPENAI_ERROR_BYTES, "the body is not JSON: %s at byte %zu", bad.msg,
                 bad.pos);
    } else if (!yyjson_is_obj(yyjson_doc_get_root(doc))) {
        rc = WEIR_E_INPUT;
        snprintf(error, OPENAI_ERROR_BYTES, "the body must be a JSON object");
    } else {
        rc = read_settings(&k, yyjson_doc_get_root(doc));
        if (!rc)
            rc = read_body(&k, yyjson_doc_get_root(doc));
        if (!rc)
            end_prompt(&k);
    }
    yyjson_doc_free(doc);
    *param = k.param;
    return rc;
}
