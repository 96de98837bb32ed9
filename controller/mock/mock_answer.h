/* mock_answer.h - the texts of `weir mock`: what its answers say in OpenAI's form, streamed or whole. The words are
 * always the same; the form is what a client's SDK checks: one id and model throughout, choices by their index, tool
 * calls whose arguments have the required members, a usage event. No I/O.
 *
 * All choices of a request say the same, at the same time: for the engine they are one sequence.
 */
#ifndef WEIR_MOCK_ANSWER_H
#define WEIR_MOCK_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/error.h"

#define MOCK_WORD " tok"         /* each token of an answer */
#define MOCK_ARGUMENT_BYTES 4u   /* of a tool call's arguments, a token */
#define MOCK_TOOL_NAME_BYTES 65u /* OpenAI: at most 64 */

/* A text that grows; s is NULL before anything was put in. Without memory it stays as it is and `short_of` is set. */
struct mock_text {
    char *s;
    size_t len, cap;
    bool short_of;
};
void mock_text_deinit(struct mock_text *t);
__attribute__((format(printf, 2, 3))) void mock_text_add(struct mock_text *t, const char *format,
                                                         ...);

struct mock_answer {
    uint64_t id;
    int64_t created_s;
    const char *model; /* borrowed */
    bool chat;
    uint32_t choices;
    char tool[MOCK_TOOL_NAME_BYTES]; /* the function to call; empty: an answer in words */
    char *arguments;                 /* JSON text */
    size_t n_arguments, told;        /* bytes; told: already in events */
};

/* Reads from a body whether a tool has to be called (tool_choice "required", or one that names a function) and with which
 * arguments. The other members are the caller's. 0; WEIR_E_INPUT (tool_choice wants a function that `tools` has not). */
WEIR_NODISCARD int mock_answer_tools(struct mock_answer *a, const char *body, size_t len);
void mock_answer_deinit(struct mock_answer *a);

/* How many tokens a tool call takes; 0: it is none. */
uint32_t mock_answer_tool_tok(const struct mock_answer *a);

struct mock_usage {
    uint32_t prompt_tok, output_tok, cached_tok; /* output_tok: of one choice */
};

/* Events of a stream: its opening (chat only), n more tokens, the end with (where `usage` is given) its usage. */
void mock_answer_open(struct mock_answer *a, struct mock_text *out);
void mock_answer_tokens(struct mock_answer *a, uint32_t n, bool last, struct mock_text *out);
void mock_answer_close(struct mock_answer *a, const struct mock_usage *usage,
                       struct mock_text *out);
/* The whole answer as one document; more: members to go in at its end (",\"name\":..."), or "". */
void mock_answer_document(struct mock_answer *a, const struct mock_usage *usage, const char *more,
                          struct mock_text *out);

#endif
