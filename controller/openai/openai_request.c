/* openai_request.c - see openai_request.h. */
#include "controller/openai/openai_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "controller/openai/json_scan.h"
#include "predictor/request.h"

/* Separates the parts of the canonical prompt; cannot stand in JSON text unescaped. */
enum mark { MARK_TOOLS = 1, MARK_MESSAGE, MARK_PART, MARK_MEDIA, MARK_CALL };

struct openai_reader {
    uint64_t keys[OPENAI_MAX_KEYS];
    uint32_t n_keys;
    uint64_t parent;
    uint32_t fill; /* bytes in chunk */
    unsigned char chunk[OPENAI_CHUNK_BYTES];
    struct json_scan json;
};

struct reading {
    struct openai_reader *r;
    struct openai_request *out;
    char *error;
    const char *param;
};

struct openai_reader *openai_reader_new(void)
{
    struct openai_reader *r = malloc(sizeof *r);
    if (r)
        r->json = (struct json_scan){.values = NULL};
    return r;
}

void openai_reader_free(struct openai_reader *r)
{
    if (r)
        json_scan_deinit(&r->json);
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

static uint64_t chunk_key(uint64_t parent, const void *chunk, size_t len)
{
    return request_chain_key(parent, XXH3_64bits(chunk, len));
}

/* Of a text that names something. */
static uint64_t name_hash(const char *s, size_t len)
{
    return XXH3_64bits(s, len) | 1;
}

/* salt: 0 none, or its name_hash. */
static uint64_t root_key(const char *model, size_t len, uint64_t salt)
{
    return XXH3_64bits_withSeed(model, len, salt);
}

uint64_t openai_root(const char *model, size_t len, const char *salt, size_t salt_len)
{
    return root_key(model, len, salt_len ? name_hash(salt, salt_len) : 0);
}

uint64_t openai_ids_key(uint64_t parent, const uint32_t ids[OPENAI_CHUNK_TOK])
{
    return chunk_key(parent, ids, OPENAI_CHUNK_TOK * sizeof *ids);
}

static void end_chunk(struct openai_reader *r, const void *chunk, size_t len)
{
    if (r->n_keys == OPENAI_MAX_KEYS)
        return;
    r->parent = chunk_key(r->parent, chunk, len);
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

static void feed_text(struct reading *k, const struct json_value *v)
{
    const char *piece;
    size_t n;
    if (!v->escaped) {
        feed(k->r, v->s, v->len);
        k->out->prompt_bytes += v->len;
        return;
    }
    for (struct json_pieces p = json_pieces(v); json_piece(&p, &piece, &n);) {
        feed(k->r, piece, n);
        k->out->prompt_bytes += n;
    }
}

/* Any JSON value, so that equal values feed equal bytes: names and strings as they are, structure as marks. Tool
 * definitions and calls are small next to the prompt. Depth is bounded by MAX_DEPTH: what is deeper counts as equal. */
#define MAX_DEPTH 16
static void feed_value(struct reading *k, const struct json_value *v, int depth)
{
    if (!v)
        return;
    if (v->type == JSON_STRING) {
        feed_text(k, v);
    } else if (v->type == JSON_OBJECT && depth < MAX_DEPTH) {
        for (const struct json_value *m = json_first(v); m; m = json_next(v, m + 1)) {
            feed_text(k, m);
            feed_value(k, m + 1, depth + 1);
        }
    } else if (v->type == JSON_ARRAY && depth < MAX_DEPTH) {
        for (const struct json_value *i = json_first(v); i; i = json_next(v, i)) {
            feed_mark(k->r, MARK_PART);
            feed_value(k, i, depth + 1);
        }
    } else if (v->type == JSON_NUMBER) {
        feed(k->r, v->s, v->len);
    } else if (v->type == JSON_TRUE || v->type == JSON_FALSE) {
        feed(k->r, v->type == JSON_TRUE ? "t" : "f", 1);
    }
}

/* 0: no string, or an empty one. */
static uint64_t hash_of(const struct json_value *v)
{
    const char *piece;
    size_t n;
    uint64_t hash = 0;
    if (!json_is(v, JSON_STRING) || !v->len)
        return 0;
    if (!v->escaped)
        return name_hash(v->s, v->len);
    for (struct json_pieces p = json_pieces(v); json_piece(&p, &piece, &n);)
        hash = XXH3_64bits_withSeed(piece, n, hash);
    return hash | 1;
}

/* ---- members with a type and a range */

static int wrong(struct reading *k, const char *param, const char *expected)
{
    k->param = param;
    snprintf(k->error, OPENAI_ERROR_BYTES, "'%s' must be %s", param, expected);
    return WEIR_E_INPUT;
}

static bool given(const struct json_value *v)
{
    return v && v->type != JSON_NULL;
}

static int read_count(struct reading *k, const struct json_value *obj, const char *name,
                      uint32_t min, uint32_t max, uint32_t *out)
{
    char expected[64];
    uint64_t x;
    const struct json_value *v = json_get(obj, name);
    if (!given(v))
        return 0;
    if (!json_uint(v, &x) || x < min || x > max) {
        snprintf(expected, sizeof expected, "a whole number from %u to %u", min, max);
        return wrong(k, name, expected);
    }
    *out = (uint32_t)x;
    return 0;
}

static int read_bool(struct reading *k, const struct json_value *obj, const char *name, bool *out)
{
    const struct json_value *v = json_get(obj, name);
    if (!given(v))
        return 0;
    if (v->type != JSON_TRUE && v->type != JSON_FALSE)
        return wrong(k, name, "true or false");
    *out = v->type == JSON_TRUE;
    return 0;
}

static int read_model(struct reading *k, const struct json_value *root)
{
    const struct json_value *v = json_get(root, "model");
    if (!given(v))
        return 0;
    size_t len = json_length(v);
    if (v->type != JSON_STRING || len >= OPENAI_NAME_BYTES)
        return wrong(k, "model", "a name of at most 255 bytes");
    json_copy(v, k->out->model);
    k->out->model[len] = '\0';
    return strlen(k->out->model) == len ? 0 : wrong(k, "model", "a name without NUL");
}

static int read_priority(struct reading *k, const struct json_value *root)
{
    const struct json_value *v = json_get(root, "priority");
    int64_t x;
    if (!given(v))
        return 0;
    if (!json_int(v, &x) || x > INT32_MAX || x < INT32_MIN)
        return wrong(k, "priority", "a whole number of 32 bits");
    k->out->priority = (int32_t)x;
    k->out->has_priority = true;
    return 0;
}

/* The names under which endpoints limit the answer; the first that is given counts. */
static int read_limits(struct reading *k, const struct json_value *root)
{
    static const char *const names[] = {"max_completion_tokens", "max_output_tokens",
                                        "max_new_tokens", "max_tokens"};
    const struct json_value *sampling = json_get(root, "sampling_params");
    const struct json_value *where[] = {root, json_is(sampling, JSON_OBJECT) ? sampling : NULL};
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

static int read_hints(struct reading *k, const struct json_value *root)
{
    const struct json_value *ext = json_get(json_get(root, "nvext"), "agent_hints");
    const struct json_value *context = json_get(json_get(root, "vllm_xargs"), "agentic_context");
    uint32_t *out = &k->out->expected_output_tok;
    int rc = read_count(k, root, "expected_output_length", 0, OPENAI_MAX_TOKENS, out);
    if (!rc && context)
        rc = read_count(k, context, "expected_output_length", 0, OPENAI_MAX_TOKENS, out);
    if (!rc && ext)
        rc = read_count(k, ext, "osl", 0, OPENAI_MAX_TOKENS, out);
    return rc;
}

static int read_settings(struct reading *k, const struct json_value *root)
{
    const struct json_value *options = json_get(root, "stream_options");
    uint64_t user = hash_of(json_get(root, "user"));
    uint64_t session = hash_of(json_get(root, "prompt_cache_key"));
    k->out->user = user ? user : hash_of(json_get(root, "safety_identifier"));
    k->out->session = session ? session : hash_of(json_get(root, "previous_response_id"));
    k->out->cache_salt = hash_of(json_get(root, "cache_salt"));
    int rc = read_model(k, root);
    if (!rc)
        rc = read_bool(k, root, "stream", &k->out->stream);
    if (!rc && given(options) && !json_is(options, JSON_OBJECT))
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
static void start_prompt(struct reading *k, const struct json_value *root)
{
    struct openai_request *q = k->out;
    const struct json_value *lora = json_get(root, "lora_path");
    k->r->n_keys = k->r->fill = 0;
    k->r->parent = root_key(q->model, strlen(q->model), q->cache_salt);
    if (hash_of(lora))
        k->r->parent = request_chain_key(k->r->parent, hash_of(lora));
}

static void end_prompt(struct reading *k)
{
    k->out->keys = k->r->keys;
    k->out->n_keys = k->r->n_keys;
}

static int read_ids(struct reading *k, const struct json_value *ids, const char *param, bool named)
{
    uint32_t chunk[OPENAI_CHUNK_TOK], fill = 0;
    uint64_t id;
    for (const struct json_value *v = json_first(ids); v; v = json_next(ids, v)) {
        if (!json_uint(v, &id) || id > UINT32_MAX)
            return wrong(k, param, "token ids: whole numbers of 32 bits");
        chunk[fill++] = (uint32_t)id;
        if (fill == OPENAI_CHUNK_TOK) {
            if (named)
                end_chunk(k->r, chunk, sizeof chunk);
            fill = 0;
        }
    }
    if (ids->len > OPENAI_MAX_TOKENS - k->out->prompt_tok)
        return wrong(k, param, "a prompt of at most 268435456 tokens");
    k->out->prompt_tok += ids->len;
    k->out->key_tok = OPENAI_CHUNK_TOK;
    return 0;
}

/* One prompt of a batch, which is known by its first one. */
static int read_one(struct reading *k, const struct json_value *v, const char *param, bool first)
{
    if (v->type == JSON_ARRAY)
        return read_ids(k, v, param, first);
    if (first)
        feed_text(k, v);
    else
        k->out->prompt_bytes += json_length(v);
    return 0;
}

/* A string, an array of strings, token ids, or an array of arrays of them. A batch counts as a whole. */
static int read_prompt(struct reading *k, const struct json_value *v, const char *param)
{
    static const char expected[] = "a string, strings, token ids or arrays of them";
    const struct json_value *first = json_is(v, JSON_ARRAY) ? json_first(v) : NULL;
    if (v->type == JSON_STRING) {
        feed_text(k, v);
        return 0;
    }
    if (!first)
        return wrong(k, param, v->type == JSON_ARRAY ? "not empty" : expected);
    if (first->type == JSON_NUMBER)
        return read_ids(k, v, param, true);
    if (first->type != JSON_STRING && first->type != JSON_ARRAY)
        return wrong(k, param, expected);
    for (const struct json_value *i = first; i; i = json_next(v, i)) {
        if (i->type != first->type)
            return wrong(k, param, expected);
        int rc = read_one(k, i, param, i == first);
        if (rc)
            return rc;
    }
    k->out->choices = v->len > OPENAI_MAX_CHOICES ? OPENAI_MAX_CHOICES : k->out->choices * v->len;
    return 0;
}

/* An element of a content array: text, or something whose bytes matter but are not text. */
static void feed_part(struct reading *k, const struct json_value *part)
{
    const struct json_value *text = json_get(part, "text");
    feed_mark(k->r, MARK_PART);
    if (json_is(part, JSON_STRING)) {
        feed_text(k, part);
    } else if (json_is(text, JSON_STRING)) {
        feed_text(k, text);
    } else {
        uint64_t before = k->out->prompt_bytes;
        feed_mark(k->r, MARK_MEDIA);
        feed_value(k, part, 0);
        k->out->prompt_bytes = before;
        k->out->media++;
    }
}

static void feed_message(struct reading *k, const struct json_value *message)
{
    const struct json_value *content = json_get(message, "content");
    const struct json_value *calls = json_get(message, "tool_calls");
    feed_mark(k->r, MARK_MESSAGE);
    feed_value(k, json_get(message, "role"), 0);
    feed_value(k, json_get(message, "name"), 0);
    if (json_is(content, JSON_ARRAY)) {
        for (const struct json_value *i = json_first(content); i; i = json_next(content, i))
            feed_part(k, i);
    } else if (json_is(content, JSON_STRING)) {
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

static int read_messages(struct reading *k, const struct json_value *messages, const char *param)
{
    const struct json_value *m = json_is(messages, JSON_ARRAY) ? json_first(messages) : NULL;
    if (!m)
        return wrong(k, param, "an array of messages, not empty");
    for (; m; m = json_next(messages, m)) {
        if (m->type != JSON_OBJECT)
            return wrong(k, param, "an array of objects");
        feed_message(k, m);
    }
    return 0;
}

static void feed_tools(struct reading *k, const struct json_value *root)
{
    const struct json_value *tools = json_get(root, "tools");
    if (!given(tools))
        return;
    feed_mark(k->r, MARK_TOOLS);
    feed_value(k, tools, 0);
}

static int read_responses(struct reading *k, const struct json_value *root)
{
    const struct json_value *input = json_get(root, "input"),
                            *instructions = json_get(root, "instructions");
    feed_tools(k, root);
    if (json_is(instructions, JSON_STRING)) {
        feed_mark(k->r, MARK_MESSAGE);
        feed_text(k, instructions);
    }
    if (json_is(input, JSON_STRING)) {
        feed_mark(k->r, MARK_MESSAGE);
        feed_text(k, input);
        return 0;
    }
    if (!given(input))
        return wrong(k, "input", "given: a string or an array of items");
    return read_messages(k, input, "input");
}

/* The member that holds the prompt: the first of these names that is there. */
static int read_first(struct reading *k, const struct json_value *root, const char *const *names)
{
    for (size_t i = 0; names[i]; i++) {
        const struct json_value *v = json_get(root, names[i]);
        if (given(v))
            return read_prompt(k, v, names[i]);
    }
    return wrong(k, names[0], "given");
}

static int read_body(struct reading *k, const struct json_value *root)
{
    static const char *const prompt[] = {"prompt", NULL}, *const input[] = {"input", NULL},
                             *const ids[] = {"token_ids", NULL},
                             *const text[] = {"text", "input_ids", NULL};
    const struct json_value *messages = json_get(root, "messages");
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
    struct json_scan *j = &r->json;
    memset(out, 0, sizeof *out);
    out->endpoint = endpoint;
    out->choices = 1;
    int rc = json_scan(j, body, len);
    if (rc == WEIR_E_NOMEM) {
        snprintf(error, OPENAI_ERROR_BYTES, "out of memory");
    } else if (rc) {
        snprintf(error, OPENAI_ERROR_BYTES, "the body is not JSON: %s at byte %zu", j->why, j->at);
    } else if (j->values->type != JSON_OBJECT) {
        rc = WEIR_E_INPUT;
        snprintf(error, OPENAI_ERROR_BYTES, "the body must be a JSON object");
    } else {
        rc = read_settings(&k, j->values);
        if (!rc)
            rc = read_body(&k, j->values);
        if (!rc)
            end_prompt(&k);
    }
    json_scan_reset(j);
    *param = k.param;
    return rc;
}
