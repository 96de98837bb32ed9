/* http_headers.h - the head of an HTTP/1.1 message: views of a parsed one, and a writer of new ones. No I/O.
 *
 *   struct http_head ──► base ─► POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: ...\r\n\r\n
 *     fields[i] = offsets into it        `---target-----------'         `name' `value'
 *
 * Nothing is copied: names and values point into the bytes that were read, which the message's owner keeps
 * (http_server.h and http_client.h say how long). Values have no blanks at their ends and no bytes below 0x20 but
 * tabs: http_parser.h has seen to that.
 *
 * Hop-by-hop fields (RFC 9110 7.6.1: Connection and what it names, Keep-Alive, Proxy-Connection, TE, Trailer,
 * Transfer-Encoding, Upgrade; and Proxy-Authenticate and Proxy-Authorization, RFC 9110 11.7) are marked, so that
 * http_write_fields() leaves them out.
 */
#ifndef WEIR_HTTP_HEADERS_H
#define WEIR_HTTP_HEADERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_MAX_FIELDS 128u /* of one message; nginx has no number, Envoy 100, Apache 100 */

struct http_slice {
    const char *s;
    size_t len;
};

#define HTTP_SLICE(literal) ((struct http_slice){"" literal, sizeof(literal) - 1})

/* Case-insensitive, ASCII. */
bool http_slice_is(struct http_slice a, const char *text);
/* text is one of the comma-separated members of a list (parameters after ';' are not looked at). */
bool http_list_has(struct http_slice list, const char *text);

enum http_method {
    HTTP_M_GET,
    HTTP_M_HEAD,
    HTTP_M_POST,
    HTTP_M_PUT,
    HTTP_M_PATCH,
    HTTP_M_DELETE,
    HTTP_M_OPTIONS,
};
const char *http_method_text(enum http_method m);

/* Fields that the toolkit itself, or nearly every caller, looks for. */
enum http_known {
    HTTP_F_OTHER,
    HTTP_F_HOST,
    HTTP_F_CONTENT_LENGTH,
    HTTP_F_CONTENT_TYPE,
    HTTP_F_TRANSFER_ENCODING,
    HTTP_F_CONNECTION,
    HTTP_F_KEEP_ALIVE,
    HTTP_F_PROXY, /* Proxy-Connection, Proxy-Authenticate, Proxy-Authorization */
    HTTP_F_TE,
    HTTP_F_TRAILER,
    HTTP_F_UPGRADE,
    HTTP_F_EXPECT,
    HTTP_F_DATE,
    HTTP_F_AUTHORIZATION,
    HTTP_F_RETRY_AFTER,
    HTTP_F_REQUEST_ID, /* X-Request-Id */
};

struct http_field {
    uint32_t name, value; /* offsets from the head's base */
    uint32_t value_len;
    uint16_t name_len;
    uint8_t known; /* enum http_known */
    bool hop;      /* hop-by-hop */
};

struct http_head {
    const char *base;
    uint32_t len;                /* of the head, with its empty line */
    uint32_t target, target_len; /* requests: path and query; never empty */
    uint16_t status;             /* responses */
    uint8_t method;              /* enum http_method */
    uint8_t minor;               /* HTTP/1.minor: 0 or 1 */
    bool keep_alive;             /* by version and Connection */
    bool chunked,
        has_length; /* how the body is framed; neither: none, or (responses) up to the end */
    bool expect_continue;
    uint16_t n_fields;
    uint64_t content_length; /* with has_length */
    struct http_field fields[HTTP_MAX_FIELDS];
};

static inline struct http_slice http_name(const struct http_head *h, unsigned i)
{
    return (struct http_slice){h->base + h->fields[i].name, h->fields[i].name_len};
}

static inline struct http_slice http_value(const struct http_head *h, unsigned i)
{
    return (struct http_slice){h->base + h->fields[i].value, h->fields[i].value_len};
}

static inline struct http_slice http_target(const struct http_head *h)
{
    return (struct http_slice){h->base + h->target, h->target_len};
}

/* The first field of that name; s is NULL where there is none. */
struct http_slice http_get_known(const struct http_head *h, enum http_known known);
struct http_slice http_get(const struct http_head *h, const char *name);

/* For a parser: which known field a name is, and (once all fields are in) which are hop-by-hop. */
enum http_known http_known_of(const char *name, size_t len);
void http_mark_hops(struct http_head *h);

/* A head that is being written. What does not fit any more is left out and `full` set. Bytes that must not be in
 * a name or value (line breaks, NUL and other controls) are written as blanks, so that no caller can break out
 * of its field. */
struct http_writer {
    char *at, *end;
    bool full;
};

void http_write(struct http_writer *w, const char *s, size_t len); /* as it is */
void http_write_field(struct http_writer *w, struct http_slice name, struct http_slice value);
void http_write_field_u64(struct http_writer *w, struct http_slice name, uint64_t value);
/* "HTTP/1.1 200 OK" and the line break. Codes without a registered reason get none. */
void http_write_status(struct http_writer *w, int status);
/* "POST /path HTTP/1.1" and the line break. */
void http_write_request(struct http_writer *w, const char *method, struct http_slice target);
/* All end-to-end fields of h but those of the n kinds in `without`, as they came. Content-Length is never copied:
 * who frames the new message writes it. */
void http_write_fields(struct http_writer *w, const struct http_head *h,
                       const enum http_known *without, size_t n);
/* Decimal digits of value at `at` (20 bytes of room); how many. */
size_t http_decimal(char *at, uint64_t value);

/* RFC 9110 15 and RFC 6585: "Too Many Requests"; "" for others. */
const char *http_reason(int status);

#endif
