/* http_parser.h - HTTP/1.1 messages out of bytes, by llhttp in its strict mode, with what llhttp lets through
 * refused on top. No I/O: http_server and http_client feed it from sockets, the fuzz targets from files.
 *
 * Refused, because two readers of one message could see different ends of it (request smuggling; RFC 9112 11.2):
 * Content-Length beside Transfer-Encoding, more than one of either, even if alike; a length that is not all digits;
 * codings other than `chunked`; folded lines; bare CR or LF and NUL anywhere in the head or the chunk framing; blanks
 * before a colon; chunk extensions and trailers without end; no or several Host fields; a Host that is
 * none; HTTP/0.9 and 2.0. Requests for CONNECT and for upgrades: the first is refused, the second answered as if
 * Upgrade was not there (RFC 9110 7.8).
 *
 * The head has to lie in one piece: data of the head's calls must follow each other in memory from head->base on. Body
 * bytes may come from anywhere. on_body gets them without their framing, in as many pieces as they came in.
 */
#ifndef WEIR_HTTP_PARSER_H
#define WEIR_HTTP_PARSER_H

#include <llhttp.h>

#include "controller/http/http_headers.h"
#include "predictor/error.h"

/* Chunk extensions and trailers are dropped. */
#define HTTP_MAX_FRAMING_LINE 1024u  /* a chunk's size with its extensions, or one trailer */
#define HTTP_MAX_TRAILER_BYTES 8192u /* all trailers */
#define HTTP_MAX_INFORMATIONAL 16u   /* 1xx answers before the real one */

struct http_parser_limits {
    uint32_t header_bytes; /* of a head, with the request line and empty line: 431 */
    uint32_t fields;       /* at most HTTP_MAX_FIELDS: 431 */
    uint32_t uri_bytes;    /* of a request's target: 414 */
};

/* Why a message was refused. */
struct http_refusal {
    int status; /* what a server answers: 400, 414, 431, 501, 505; of a response it only tells the kind */
    const char *why; /* static text for a person */
};

struct http_parser {
    llhttp_t ll;
    struct http_head *head;
    const struct http_parser_limits *limits;
    /* The head is complete and in order; returns 0 to go on, anything else stops with HTTP_PARSE_REFUSED and the
     * owner's own *refusal. Not called for 1xx answers. */
    int (*on_head)(struct http_parser *p);
    int (*on_body)(struct http_parser *p, const char *at, size_t len); /* 0 to go on */
    struct http_refusal refusal;
    bool is_response, to_head; /* to_head: the response is one to HEAD, it has no body */
    bool started;              /* bytes of this message have come */
    bool head_done, done;
    bool chunked;    /* of the head, which may be gone once it is complete and delivered */
    uint16_t status; /* likewise */
    uint8_t informational;
    char framing_last;     /* last byte of chunk framing seen, for CR without LF */
    uint32_t framing_line; /* bytes of its current line */
    uint32_t framing_left; /* bytes of it that may yet come before a piece of the body */
    uint32_t head_bytes;   /* taken so far; base + head_bytes is where the next must come from */
    const char *gap;       /* framing bytes from here on are not checked yet; NULL: none */
};

enum http_parse_result {
    HTTP_PARSE_MORE = 0,     /* all taken, the message goes on */
    HTTP_PARSE_DONE = 1,     /* the message is complete; *used bytes belonged to it */
    HTTP_PARSE_REFUSED = -1, /* p->refusal says why; only http_parser_init may follow */
};

/* head->base must point to where the message will begin. Call again for each message: heads are not cleared but
 * overwritten. */
void http_parser_init(struct http_parser *p, bool is_response, struct http_head *head,
                      const struct http_parser_limits *limits);

/* The next len > 0 bytes. Once head_done is set and the call has returned, *head is not used any more. */
enum http_parse_result http_parser_feed(struct http_parser *p, const char *data, size_t len,
                                        size_t *used);

/* The sender has closed. DONE where that ends a response's body; else REFUSED, also within a message. */
enum http_parse_result http_parser_eof(struct http_parser *p);

#endif
