/* answer.c - see answer.h. */
#include "controller/openai/answer.h"

#include <stdlib.h>
#include <string.h>

#include "controller/openai/json_scan.h"

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

static enum answer_finish finish_of(const struct json_value *name)
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
        if (json_equals(name, names[i].name))
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

static uint32_t count_at(const struct json_value *obj, const char *name)
{
    uint64_t n;
    if (!json_uint(json_get(obj, name), &n))
        return 0;
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

static void read_usage(struct answer *a, const struct json_value *usage)
{
    uint64_t n;
    if (!json_is(usage, JSON_OBJECT))
        return;
    const struct json_value *prompt = json_get(usage, "prompt_tokens_details");
    const struct json_value *input = json_get(usage, "input_tokens_details");
    const struct json_value *cached = json_get(prompt ? prompt : input, "cached_tokens");
    a->has_usage = true;
    a->prompt_tok = count_at(usage, prompt || !json_get(usage, "input_tokens") ? "prompt_tokens"
                                                                               : "input_tokens");
    a->output_tok = count_at(usage, json_get(usage, "completion_tokens") ? "completion_tokens"
                                                                         : "output_tokens");
    if (json_uint(cached, &n)) {
        a->has_cached = true;
        a->cached_tok = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
    }
}

/* A string or an array that is not empty. */
static bool has_some(const struct json_value *v)
{
    return v && (v->type == JSON_STRING || v->type == JSON_ARRAY) && v->len;
}

static bool has_text(const struct json_value *obj, const char *name)
{
    return has_some(json_get(obj, name));
}

static bool choice_has_token(const struct json_value *choice)
{
    const struct json_value *delta = json_get(choice, "delta");
    const struct json_value *ids = json_get(choice, "token_ids");
    return has_text(choice, "text") || has_some(ids) || has_text(delta, "content") ||
           has_text(delta, "reasoning_content") || has_text(delta, "reasoning") ||
           has_text(delta, "refusal") || has_text(delta, "tool_calls");
}

static void read_choices(struct answer *a, const struct json_value *choices)
{
    if (!json_is(choices, JSON_ARRAY))
        return;
    for (const struct json_value *choice = json_first(choices); choice;
         choice = json_next(choices, choice)) {
        const struct json_value *why = json_get(choice, "finish_reason");
        if (a->stream && choice_has_token(choice)) {
            a->tokens++;
            a->first_token = true;
        }
        if (json_is(why, JSON_STRING))
            a->finish = finish_of(why);
    }
}

/* SGLang's /generate: {"text": all so far, "meta_info": {...}} */
static void read_sglang(struct answer *a, const struct json_value *root)
{
    const struct json_value *meta = json_get(root, "meta_info");
    if (!meta)
        return;
    const struct json_value *why = json_get(json_get(meta, "finish_reason"), "type");
    a->has_usage = true;
    a->prompt_tok = count_at(meta, "prompt_tokens");
    a->output_tok = count_at(meta, "completion_tokens");
    a->tokens = a->output_tok;
    a->first_token |= a->output_tok > 0;
    if (json_get(meta, "cached_tokens")) {
        a->has_cached = true;
        a->cached_tok = count_at(meta, "cached_tokens");
    }
    if (json_is(why, JSON_STRING))
        a->finish = finish_of(why);
}

static bool ends_with(const struct json_value *v, const char *end)
{
    size_t n = strlen(end);
    return json_is(v, JSON_STRING) && v->len >= n && !memcmp(v->s + v->len - n, end, n);
}

/* The Responses API: events name their type; the last one holds the whole response. */
static void read_responses(struct answer *a, const struct json_value *root)
{
    const struct json_value *type = json_get(root, "type");
    const struct json_value *response = json_get(root, "response");
    if (ends_with(type, ".delta") && has_text(root, "delta")) {
        a->tokens++;
        a->first_token = true;
    }
    read_usage(a, json_get(response ? response : root, "usage"));
    const struct json_value *status = json_get(response ? response : root, "status");
    if (json_is(status, JSON_STRING) && !json_equals(status, "in_progress") &&
        !json_equals(status, "queued"))
        a->finish = finish_of(status);
    if (json_equals(type, "response.completed") || json_equals(type, "response.failed") ||
        json_equals(type, "response.incomplete"))
        a->done = true;
}

static void read_json(struct answer *a, const char *s, size_t len)
{
    struct json_scan j = {.values = NULL};
    if (!json_scan(&j, s, len)) {
        const struct json_value *root = j.values, *error = json_get(root, "error");
        read_choices(a, json_get(root, "choices"));
        read_responses(a, root);
        read_sglang(a, root);
        if (error && error->type != JSON_NULL)
            a->finish = ANSWER_ERROR;
    }
    json_scan_deinit(&j);
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

/* Keeps the last bytes of what is skipped, enough to see an empty line that is cut in the middle: of `kept` bytes in the
 * buffer and these behind them. */
static void skip_tail(struct answer *a, size_t kept, const char *data, size_t len)
{
    size_t n = len < 3 ? len : 3, old = kept < 3 - n ? kept : 3 - n;
    if (old)
        memmove(a->buf, a->buf + kept - old, old);
    a->len = old;
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
        size_t kept = a->len;
        if (!a->skipping && keep(a, data, len))
            return len;
        if (!a->skipping)
            give_up(a);
        skip_tail(a, kept, data, len);
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
        skip_tail(a, 0, data, len);
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
