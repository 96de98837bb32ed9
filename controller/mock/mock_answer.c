/* mock_answer.c - see mock_answer.h. */
#include "controller/mock/mock_answer.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yyjson.h>

/* ---- texts */

void mock_text_deinit(struct mock_text *t)
{
    free(t->s);
    *t = (struct mock_text){NULL, 0, 0, false};
}

static bool grow(struct mock_text *t, size_t more)
{
    size_t cap = t->cap ? t->cap : 1024;
    while (cap < t->len + more)
        cap *= 2;
    char *s = cap == t->cap ? t->s : realloc(t->s, cap);
    t->short_of |= !s;
    if (!s)
        return false;
    t->s = s;
    t->cap = cap;
    return true;
}

void mock_text_add(struct mock_text *t, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    size_t room = t->s ? t->cap - t->len : 0;
    int n = vsnprintf(room ? t->s + t->len : NULL, room, format, args);
    if (n > 0 && (size_t)n >= room && grow(t, (size_t)n + 1))
        vsnprintf(t->s + t->len, t->cap - t->len, format, again);
    if (n > 0 && (size_t)n < t->cap - t->len)
        t->len += (size_t)n;
    va_end(again);
    va_end(args);
}

/* As the inside of a JSON string. */
static void add_escaped(struct mock_text *t, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\')
            mock_text_add(t, "\\%c", c);
        else if (c < 0x20)
            mock_text_add(t, "\\u%04x", c);
        else
            mock_text_add(t, "%c", c);
    }
}

/* ---- tool calls */

/* The function that tool_choice asks for: the named one, or the first. */
static yyjson_val *find_tool(yyjson_val *tools, const char *name)
{
    size_t i, n;
    yyjson_val *tool;
    yyjson_arr_foreach (tools, i, n, tool) {
        yyjson_val *function = yyjson_obj_get(tool, "function");
        const char *is = yyjson_get_str(yyjson_obj_get(function, "name"));
        if (is && strlen(is) < MOCK_TOOL_NAME_BYTES && (!name || !strcmp(is, name)))
            return function;
    }
    return NULL;
}

/* An object with every required member. */
static char *make_arguments(yyjson_val *function, size_t *len)
{
    yyjson_val *parameters = yyjson_obj_get(function, "parameters"), *name;
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    size_t i, n;
    if (!doc)
        return NULL;
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_arr_foreach (yyjson_obj_get(parameters, "required"), i, n, name) {
        if (yyjson_is_str(name))
            yyjson_mut_obj_add_strcpy(doc, root, yyjson_get_str(name), MOCK_WORD);
    }
    char *text = yyjson_mut_write(doc, 0, len);
    yyjson_mut_doc_free(doc);
    return text;
}

int mock_answer_tools(struct mock_answer *a, const char *body, size_t len)
{
    if (!memmem(body, len, "\"tool_choice\"", 13))
        return 0;
    yyjson_doc *doc = yyjson_read(body, len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *choice = yyjson_obj_get(root, "tool_choice");
    const char *name = yyjson_get_str(yyjson_obj_get(yyjson_obj_get(choice, "function"), "name"));
    int rc = 0;
    if (name || yyjson_equals_str(choice, "required")) {
        yyjson_val *function = find_tool(yyjson_obj_get(root, "tools"), name);
        if (function) {
            snprintf(a->tool, sizeof a->tool, "%s",
                     yyjson_get_str(yyjson_obj_get(function, "name")));
            a->arguments = make_arguments(function, &a->n_arguments);
        }
        rc = a->arguments ? 0 : WEIR_E_INPUT;
    }
    yyjson_doc_free(doc);
    return rc;
}

void mock_answer_deinit(struct mock_answer *a)
{
    free(a->arguments);
    a->arguments = NULL;
}

uint32_t mock_answer_tool_tok(const struct mock_answer *a)
{
    return (uint32_t)((a->n_arguments + MOCK_ARGUMENT_BYTES - 1) / MOCK_ARGUMENT_BYTES);
}

/* ---- forms */

static void add_head(const struct mock_answer *a, const char *chat, const char *text,
                     struct mock_text *out)
{
    mock_text_add(out,
                  "{\"id\":\"%s-mock-%016" PRIx64 "\",\"object\":\"%s\",\"created\":%" PRId64
                  ",\"model\":\"%s\",\"choices\":[",
                  a->chat ? "chatcmpl" : "cmpl", a->id, a->chat ? chat : text, a->created_s,
                  a->model);
}

static void add_usage(const struct mock_answer *a, const struct mock_usage *u,
                      struct mock_text *out)
{
    uint32_t output = u->output_tok * a->choices;
    mock_text_add(out,
                  "\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%u}}",
                  u->prompt_tok, output, u->prompt_tok + output, u->cached_tok);
}

static void begin_event(const struct mock_answer *a, struct mock_text *out)
{
    mock_text_add(out, "data: ");
    add_head(a, "chat.completion.chunk", "text_completion", out);
}

static const char *finish_of(const struct mock_answer *a)
{
    return a->arguments ? "tool_calls" : "length";
}

void mock_answer_open(struct mock_answer *a, struct mock_text *out)
{
    if (!a->chat)
        return;
    for (uint32_t i = 0; i < a->choices; i++) {
        begin_event(a, out);
        mock_text_add(out,
                      "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                      "\"finish_reason\":null}]}\n\n",
                      i);
    }
}

static void add_call_head(const struct mock_answer *a, uint32_t choice, struct mock_text *out)
{
    mock_text_add(
        out, "\"id\":\"call-%016" PRIx64 "-%u\",\"type\":\"function\",\"function\":{\"name\":\"",
        a->id, choice);
    add_escaped(out, a->tool, strlen(a->tool));
    mock_text_add(out, "\",\"arguments\":\"");
}

/* The next piece of the arguments, up to `to`. */
static void add_call_delta(const struct mock_answer *a, uint32_t choice, size_t to,
                           struct mock_text *out)
{
    mock_text_add(out, "\"tool_calls\":[{\"index\":0,");
    if (!a->told)
        add_call_head(a, choice, out);
    else
        mock_text_add(out, "\"function\":{\"arguments\":\"");
    add_escaped(out, a->arguments + a->told, to - a->told);
    mock_text_add(out, "\"}}]");
}

static void add_words(uint32_t n, struct mock_text *out)
{
    for (uint32_t i = 0; i < n; i++)
        mock_text_add(out, MOCK_WORD);
}

/* Where the next n tokens of the arguments end: not within a character. */
static size_t next_cut(const struct mock_answer *a, uint32_t n, bool last)
{
    size_t to = a->told + (size_t)n * MOCK_ARGUMENT_BYTES;
    if (last || to > a->n_arguments)
        return a->n_arguments;
    while (to < a->n_arguments && (a->arguments[to] & 0xc0) == 0x80)
        to++;
    return to;
}

void mock_answer_tokens(struct mock_answer *a, uint32_t n, bool last, struct mock_text *out)
{
    size_t to = a->arguments ? next_cut(a, n, last) : 0;
    for (uint32_t i = 0; i < a->choices; i++) {
        begin_event(a, out);
        mock_text_add(out, a->chat ? "{\"index\":%u,\"delta\":{" : "{\"index\":%u,", i);
        if (a->arguments) {
            add_call_delta(a, i, to, out);
        } else {
            mock_text_add(out, a->chat ? "\"content\":\"" : "\"text\":\"");
            add_words(n, out);
            mock_text_add(out, "\"");
        }
        mock_text_add(out, a->chat ? "}" : "");
        if (last)
            mock_text_add(out, ",\"finish_reason\":\"%s\"}]}\n\n", finish_of(a));
        else
            mock_text_add(out, ",\"finish_reason\":null}]}\n\n");
    }
    a->told = to;
}

void mock_answer_close(struct mock_answer *a, const struct mock_usage *usage, struct mock_text *out)
{
    if (usage) {
        begin_event(a, out);
        mock_text_add(out, "],");
        add_usage(a, usage, out);
        mock_text_add(out, "}\n\n");
    }
    mock_text_add(out, "data: [DONE]\n\n");
}

void mock_answer_document(struct mock_answer *a, const struct mock_usage *usage, const char *more,
                          struct mock_text *out)
{
    add_head(a, "chat.completion", "text_completion", out);
    for (uint32_t i = 0; i < a->choices; i++) {
        mock_text_add(out, "%s{\"index\":%u,", i ? "," : "", i);
        if (a->arguments) {
            mock_text_add(out,
                          "\"message\":{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{");
            add_call_head(a, i, out);
            add_escaped(out, a->arguments, a->n_arguments);
            mock_text_add(out, "\"}}]}");
        } else {
            mock_text_add(out, a->chat ? "\"message\":{\"role\":\"assistant\",\"content\":\""
                                       : "\"text\":\"");
            add_words(usage->output_tok, out);
            mock_text_add(out, a->chat ? "\"}" : "\"");
        }
        mock_text_add(out, ",\"finish_reason\":\"%s\"}", finish_of(a));
    }
    mock_text_add(out, "],");
    add_usage(a, usage, out);
    mock_text_add(out, "%s}", more);
}
