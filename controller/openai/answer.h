/* answer.h - what a response tells while it streams through: when the first token came, how many came, how it
 * ended, and the engine's own count (usage). Bytes go to the client as they are, whatever is found here; this
 * only looks. Works on any cut of the stream into pieces: a byte at a time gives the same as all at once.
 *
 * Streams are server-sent events (text/event-stream); anything else is taken as one JSON document. An event that is the
 * last parsed one over again but for its text holds one more token and is not parsed: 50 ns an event instead of 1 us.
 *
 * What counts as a token: an event whose choices carry text (content, reasoning, tool call, text), one token per
 * choice with text. The role event that opens a chat stream is none (seen on vLLM 0.32: wire-formats.md 3.8.7).
 * Engines may put several tokens into an event, so usage, when it comes, is the truth. No I/O.
 */
#ifndef WEIR_ANSWER_H
#define WEIR_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Longest event that is looked into; a longer one is passed on and counts as one token. */
#define ANSWER_MAX_EVENT_BYTES (64u << 10)
/* Longest event, without its text, that others are compared with instead of being parsed. */
#define ANSWER_MAX_SHAPE_BYTES 1024u
/* Longest JSON document (not a stream) that is looked into; longer ones have no usage for us. */
#define ANSWER_MAX_JSON_BYTES (1u << 20)

enum answer_finish {
    ANSWER_NOT_YET,
    ANSWER_STOP,
    ANSWER_LENGTH,
    ANSWER_TOOL,
    ANSWER_ABORT,
    ANSWER_ERROR,
    ANSWER_OTHER
};

struct answer {
    bool stream;
    bool first_token; /* has come */
    bool done;        /* data: [DONE], or the response's last event */
    bool has_usage, has_cached;
    uint32_t events, tokens; /* seen in the stream; 0 for a document without usage */
    uint32_t prompt_tok, output_tok, cached_tok; /* usage */
    uint32_t too_large;                          /* events or documents not looked into */
    enum answer_finish finish;

    char *buf; /* an unfinished event or document */
    size_t len, cap, max;
    bool skipping; /* the current one is too large */

    /* an event with one token: what stood before its text, and from the quote behind it on */
    char *shape;
    uint16_t shape_before, shape_after, shape_cap;
};

/* stream: by the Content-Type of the response. answer_deinit frees what answer_feed allocated. */
void answer_init(struct answer *a, bool stream);
void answer_deinit(struct answer *a);

/* The next bytes of the body. Out of memory only makes it look at less (too_large). */
void answer_feed(struct answer *a, const char *data, size_t len);
/* The body is complete. */
void answer_end(struct answer *a);

/* Tokens of the answer as well as they are known: usage, else those seen. */
uint32_t answer_output_tok(const struct answer *a);

/* "stop", "length" ...; "" for ANSWER_NOT_YET. */
const char *answer_finish_name(enum answer_finish f);

/* The stream has just ended a line pair, so that something may be put in between events. */
bool answer_at_boundary(const struct answer *a);

#endif
