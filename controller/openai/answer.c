/* answer.c - see answer.h. */
#include "controller/openai/answer.h"

#include <stdlib.h>
#include <string.h>

#include <yyjson.h>

/* Texts up to this size are parsed in memory on the stack (yyjson_read_max_memory_usage: 12 bytes a byte, plus a little). */
#define POOL_JSON_BYTES 2048u
#define POOL_BYTES (POOL_JSON_BYTES * 12 + 1024)

void answer_init(struct answer *a, bool stream)
{
    memset(a, 0, sizeof *a);
    a->stream = stream;
    a->max = stream ? ANSWER_MAX_EVENT_BYTES : ANSWER_MAX_JSON_BYTES;
}

void answer_deinit(struct answer *a)
{
    free(a->buf);
    free(a->shape);
    a->buf = a->shape = NULL;
    a->len = a->cap = a->shape_cap = 0;
}

/* ---- what a parsed event or document says */

static enum answer_finish finish_of(const char *name)
{
    static const struct {
        const char *name;
        enum answer_finish finish;
    } names[] = {
        {"stop", ANSWER_STOP},          {"length", ANSWER_LENGTH}, {"tool_calls", ANSWER_TOOL},
        {"function_call", ANSWER_TOOL}, {"abort", ANSWER_ABORT},   {"error", ANSWER_ERROR},
        {"completed", ANSWER_STOP},     {"failed", ANSWER_ERROR},  {"incomplete", ANSWER_LENGTH},
        {"cancelled", ANSWER_ABORT},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!strcmp(names[i].name, name))
            return names[i].finish;
    }
    return ANSWER_OTHER;
}

const char *answer_finish_name(enum answer_finish f)
{
    static const char *const names[] = {
        [ANSWER_NOT_YET] = "",        [ANSWER_STOP] = "stop",   [ANSWER_LENGTH] = "length",
        [ANSWER_TOOL] = "tool_calls", [ANSWER_ABORT] = "abort", [ANSWER_ERROR] = "error",
        [ANSWER_OTHER] = "other",
    };
    return names[f];
}

static uint32_t count_at(yyjson_val *obj, const char *name)
{
    uint64_t n = yyjson_get_uint(yyjson_obj_get(obj, name)); /* 0 for anything but a whole number */
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

static void read_usage(struct answer *a, yyjson_val *usage)
{
    if (!yyjson_is_obj(usage))
        return;
    yyjson_val *prompt = yyjson_obj_get(usage, "prompt_tokens_details");
    yyjson_val *input = yyjson_obj_get(usage, "input_tokens_details");
    yyjson_val *cached = yyjson_obj_get(prompt ? prompt : input, "cached_tokens");
    a->has_usage = true;
    a->prompt_tok = count_at(
        usage, prompt || !yyjson_obj_get(usage, "input_tokens") ? "prompt_tokens" : "input_tokens");
    a->output_tok = count_at(usage, yyjson_obj_get(usage, "completion_tokens") ? "completion_tokens"
                                                                               : "output_tokens");
    if (yyjson_is_uint(cached)) {
        a->has_cached = true;
        a->cached_tok = (uint32_t)yyjson_get_uint(cached);
    }
}

static bool has_text(yyjson_val *obj, const char *name)
{
    return yyjson_get_len(yyjson_obj_get(obj, name)) > 0; /* of strings and arrays, 0 else */
}

static bool choice_has_token(yyjson_val *choice)
{
    yyjson_val *delta = yyjson_obj_get(choice, "delta");
    yyjson_val *ids = yyjson_obj_get(choice, "token_ids");
    return has_text(choice, "text") || yyjson_arr_size(ids) > 0 || has_text(delta, "content") ||
           has_text(delta, "reasoning_content") || has_text(delta, "reasoning") ||
           has_text(delta, "refusal") || yyjson_arr_size(yyjson_obj_get(delta, "tool_calls")) > 0;
}

static void read_choices(struct answer *a, yyjson_val *choices)
{
    size_t i, n;
    yyjson_val *choice;
    yyjson_arr_foreach (choices, i, n, choice) {
        yyjson_val *why = yyjson_obj_get(choice, "finish_reason");
        if (a->stream && choice_has_token(choice)) {
            a->tokens++;
            a->first_token = true;
        }
        if (yyjson_is_str(why))
            a->finish = finish_of(yyjson_get_str(why));
    }
}

/* SGLang's /generate: {"text": all so far, "meta_info": {...}} */
static void read_sglang(struct answer *a, yyjson_val *root)
{
    yyjson_val *meta = yyjson_obj_get(root, "meta_info");
    if (!meta)
        return;
    yyjson_val *why = yyjson_obj_get(yyjson_obj_get(meta, "finish_reason"), "type");
    a->has_usage = true;
    a->prompt_tok = count_at(meta, "prompt_tokens");
    a->output_tok = count_at(meta, "completion_tokens");
    a->tokens = a->output_tok;
    a->first_token |= a->output_tok > 0;
    if (yyjson_obj_get(meta, "cached_tokens")) {
        a->has_cached = true;
        a->cached_tok = count_at(meta, "cached_tokens");
    }
    if (yyjson_is_str(why))
        a->finish = finish_of(yyjson_get_str(why));
}

/* The Responses API: events name their type; the last one holds the whole response. */
static void read_responses(struct answer *a, yyjson_val *root)
{
    const char *type = yyjson_get_str(yyjson_obj_get(root, "type"));
    yyjson_val *response = yyjson_obj_get(root, "response"), *status;
    if (type && strstr(type, ".delta") && has_text(root, "delta")) {
        a->tokens++;
        a->first_token = true;
    }
    read_usage(a, yyjson_obj_get(response ? response : root, "usage"));
    status = yyjson_obj_get(response ? response : root, "status");
    if (yyjson_is_str(status) && strcmp(yyjson_get_str(status), "in_progress") &&
        strcmp(yyjson_get_str(status), "queued"))
        a->finish = finish_of(yyjson_get_str(status));
    if (type && !strncmp(type, "response.", 9) &&
        (!strcmp(type + 9, "completed") || !strcmp(type + 9, "failed") ||
         !strcmp(type + 9, "incomplete")))
        a->done = true;
}

static void read_json(struct answer *a, const char *s, size_t len)
{
    char pool[POOL_BYTES];
    yyjson_alc alc;
    bool small = len <= POOL_JSON_BYTES && yyjson_alc_pool_init(&alc, pool, sizeof pool);
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)s, len, 0, small ? &alc : NULL, NULL);
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (yyjson_is_obj(root)) {
        read_choices(a, yyjson_obj_get(root, "choices"));
        read_responses(a, root);
        read_sglang(a, root);
        if (yyjson_obj_get(root, "error") && !yyjson_is_null(yyjson_obj_get(root, "error")))
            a->finish = ANSWER_ERROR;
    }
    yyjson_doc_free(doc);
}

/* ---- events that are the last one over again */

/* The quote that ends a string; s is behind the one that opens it. NULL: none. */
static const char *string_end(const char *s, const char *end)
{
    for (const char *from = s;; from++) {
        from = memchr(from, '"', (size_t)(end - from));
        if (!from)
            return NULL;
        const char *escape = from;
        while (escape > s && escape[-1] == '\\')
            escape--;
        if ((from - escape) % 2 == 0)
            return from;
    }
}

/* The text of an event with one token, without its quotes. */
static bool find_text(const char *s, size_t len, const char **from, const char **to)
{
    /* unescaped quotes cannot stand within a string, so these are names of members */
    static const char *const names[] = {
        "\"content\":", "\"text\":", "\"reasoning_content\":", "\"reasoning\":"};
    const char *end = s + len;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *at = memmem(s, len, names[i], strlen(names[i]));
        if (!at)
            continue;
        for (at += strlen(names[i]); at < end && *at == ' '; at++) {
        }
        if (at == end || *at != '"')
            continue;
        *from = at + 1;
        *to = string_end(*from, end);
        if (*to && *to > *from)
            return true;
    }
    return false;
}

static void learn_shape(struct answer *a, const char *s, size_t len)
{
    const char *from, *to;
    a->shape_before = 0;
    if (!find_text(s, len, &from, &to) || len - (size_t)(to - from) > ANSWER_MAX_SHAPE_BYTES)
        return;
    size_t before = (size_t)(from - s), after = (size_t)(s + len - to);
    if (before + after > a->shape_cap) {
        char *shape = realloc(a->shape, before + after);
        if (!shape)
            return;
        a->shape = shape;
        a->shape_cap = (uint16_t)(before + after);
    }
    memcpy(a->shape, s, before);
    memcpy(a->shape + before, to, after);
    a->shape_before = (uint16_t)before;
    a->shape_after = (uint16_t)after;
}

static bool has_shape(const struct answer *a, const char *s, size_t len)
{
    size_t before = a->shape_before, after = a->shape_after;
    return before && len > before + after && !memcmp(s, a->shape, before) &&
           !memcmp(s + len - after, a->shape + before, after) &&
           string_end(s + before, s + len) == s + len - after;
}

/* ---- events */

static void read_data(struct answer *a, const char *s, size_t len)
{
    while (len && *s == ' ') {
        s++;
        len--;
    }
    if (len >= 6 && !memcmp(s, "[DONE]", 6)) {
        a->done = true;
        return;
    }
    if (has_shape(a, s, len)) {
        a->tokens++;
        return;
    }
    uint32_t tokens = a->tokens;
    bool had_usage = a->has_usage;
    a->has_usage = false;
    read_json(a, s, len);
    if (a->tokens == tokens + 1 && !a->has_usage && a->finish == ANSWER_NOT_YET && !a->done)
        learn_shape(a, s, len);
    a->has_usage |= had_usage;
}

/* A whole event, without the empty line behind it. Several data lines are one text (RFC: joined by line breaks);
 * engines write one, so only the first is read. */
static void read_event(struct answer *a, const char *s, size_t len)
{
    a->events++;
    while (len) {
        const char *end = memchr(s, '\n', len);
        size_t line = end ? (size_t)(end - s) : len, whole = end ? line + 1 : len;
        if (line && s[line - 1] == '\r')
            line--;
        if (line >= 5 && !memcmp(s, "data:", 5)) {
            read_data(a, s + 5, line - 5);
            return;
        }
        s += whole;
        len -= whole;
    }
}

/* Length of the first event in s with the empty line that ends it; 0: none complete. Looks from `from` on. */
static size_t event_end(const char *s, size_t len, size_t from)
{
    for (size_t at = from; at < len;) {
        const char *nl = memchr(s + at, '\n', len - at);
        if (!nl)
            return 0;
        size_t i = (size_t)(nl - s) + 1;
        if (i < len && s[i] == '\r')
            i++;
        if (i < len && s[i] == '\n')
            return i + 1;
        at = (size_t)(nl - s) + 1;
    }
    return 0;
}

static bool keep(struct answer *a, const char *data, size_t len)
{
    if (a->len + len > a->max)
        return false;
    if (a->len + len > a->cap) {
        size_t cap = a->cap ? a->cap : 512;
        while (cap < a->len + len)
            cap *= 2;
        char *p = realloc(a->buf, cap);
        if (!p)
            return false;
        a->buf = p;
        a->cap = cap;
    }
    memcpy(a->buf + a->len, data, len);
    a->len += len;
    return true;
}

static void give_up(struct answer *a)
{
    a->too_large++;
    a->skipping = true;
    a->len = 0;
}

/* Keeps the last bytes of what is skipped, enough to see an empty line that is cut in the middle. */
static void skip_tail(struct answer *a, const char *data, size_t len)
{
    size_t n = len < 3 ? len : 3;
    a->len = 0;
    keep(a, data + len - n, n);
}

static void end_event(struct answer *a, const char *s, size_t len)
{
    if (a->skipping) {
        a->events++;
        a->tokens++;
        a->first_token = true;
        a->skipping = false;
    } else {
        read_event(a, s, len);
    }
}

/* Completes the event that is kept; returns how many bytes of data it took (all, if it is not complete). */
static size_t complete_kept(struct answer *a, const char *data, size_t len)
{
    /* the empty line may begin in what is kept: look again at its last two bytes */
    char seam[8];
    size_t old = a->len < 3 ? a->len : 3, add = len < 3 ? len : 3;
    memcpy(seam, a->buf + a->len - old, old);
    memcpy(seam + old, data, add);
    size_t end = event_end(seam, old + add, 0);
    size_t take = end > old ? end - old : event_end(data, len, 0);
    if (!take) {
        if (a->skipping)
            skip_tail(a, data, len);
        else if (!keep(a, data, len))
            give_up(a), skip_tail(a, data, len);
        return len;
    }
    if (!a->skipping && !keep(a, data, take))
        give_up(a);
    end_event(a, a->buf, a->len);
    a->len = 0;
    return take;
}

static void feed_stream(struct answer *a, const char *data, size_t len)
{
    if (a->len) {
        size_t n = complete_kept(a, data, len);
        data += n;
        len -= n;
    }
    while (len) {
        size_t n = event_end(data, len, 0);
        if (!n)
            break;
        end_event(a, data, n);
        data += n;
        len -= n;
    }
    if (len && !keep(a, data, len)) {
        give_up(a);
        skip_tail(a, data, len);
    }
}

void answer_feed(struct answer *a, const char *data, size_t len)
{
    if (a->stream)
        feed_stream(a, data, len);
    else if (!a->skipping && !keep(a, data, len))
        give_up(a);
}

void answer_end(struct answer *a)
{
    if (a->stream && a->len)
        end_event(a, a->buf, a->len);
    else if (!a->stream && a->len)
        read_json(a, a->buf, a->len);
    a->len = 0;
}

uint32_t answer_output_tok(const struct answer *a)
{
    return a->has_usage ? a->output_tok : a->tokens;
}

bool answer_at_boundary(const struct answer *a)
{
    return a->len == 0 && !a->skipping;
}
