/* http_parser.c - see http_parser.h. llhttp finds the parts of a message; what it found is then checked against the
 * bytes themselves: every byte of a head has to be one of the request line, of a name, of ": ", of a value, or of a
 * CR LF where one belongs. So nothing that llhttp skips or joins can go by unseen.
 */
#include "controller/http/http_parser.h"

#include <string.h>
#include <strings.h>

static struct http_parser *of(llhttp_t *ll)
{
    return (struct http_parser *)ll;
}

static int refuse(struct http_parser *p, int status, const char *why)
{
    if (!p->refusal.why)
        p->refusal = (struct http_refusal){status, why};
    return -1;
}

/* --- what llhttp finds ----------------------------------------------------------------------------------- */

static int on_url(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parser *p = of(ll);
    if (!p->head->target_len)
        p->head->target = (uint32_t)(at - p->head->base);
    p->head->target_len += (uint32_t)len;
    if (p->head->target_len > p->limits->uri_bytes)
        return refuse(p, 414, "the target is too long");
    return 0;
}

static int on_field(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parser *p = of(ll);
    struct http_head *h = p->head;
    if (p->head_done)
        return 0; /* trailers are dropped; feed() counts their bytes */
    uint32_t offset = (uint32_t)(at - h->base);
    struct http_field *f = h->n_fields ? &h->fields[h->n_fields - 1] : NULL;
    if (f && f->name + f->name_len == offset) { /* the next piece of the same name */
        f->name_len = (uint16_t)(f->name_len + len);
        return 0;
    }
    if (h->n_fields >= p->limits->fields || h->n_fields >= HTTP_MAX_FIELDS)
        return refuse(p, 431, "too many fields");
    h->fields[h->n_fields++] = (struct http_field){.name = offset, .name_len = (uint16_t)len};
    return 0;
}

static int on_value(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parser *p = of(ll);
    struct http_head *h = p->head;
    if (p->head_done || !len)
        return 0;
    uint32_t offset = (uint32_t)(at - h->base);
    struct http_field *f = &h->fields[h->n_fields - 1];
    if (!f->value_len)
        f->value = offset;
    else if (f->value + f->value_len != offset)
        return refuse(p, 400, "a folded field");
    f->value_len += (uint32_t)len;
    return 0;
}

/* --- the check of the head -------------------------------------------------------------------------------- */

/* Skips `len` bytes that have to be there and equal. */
static bool expect_bytes(const char **at, const char *end, const char *bytes, size_t len)
{
    if ((size_t)(end - *at) < len || memcmp(*at, bytes, len) != 0)
        return false;
    *at += len;
    return true;
}

static bool has_control(const char *s, size_t len)
{
    unsigned bad = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        bad |= (unsigned)(c < 0x20 && c != '\t') | (unsigned)(c == 0x7f);
    }
    return bad;
}

static int check_request_line(struct http_parser *p, const char **at, const char *end)
{
    struct http_head *h = p->head;
    const char *method = http_method_text(h->method);
    (void)expect_bytes(at, end, "\r\n", 2); /* one empty line before a request: RFC 9112 2.2 */
    if (!expect_bytes(at, end, method, strlen(method)) || !expect_bytes(at, end, " ", 1) ||
        *at != h->base + h->target || !h->target_len)
        return refuse(p, 400, "a malformed request line");
    *at += h->target_len;
    char version[] = " HTTP/1.0\r\n";
    version[8] = (char)('0' + h->minor);
    if (!expect_bytes(at, end, version, sizeof version - 1))
        return refuse(p, 400, "a malformed request line");
    return 0;
}

static int check_status_line(struct http_parser *p, const char **at, const char *end)
{
    char version[] = "HTTP/1.0 ";
    version[7] = (char)('0' + p->head->minor);
    if (!expect_bytes(at, end, version, sizeof version - 1) || end - *at < 5)
        return refuse(p, 502, "a malformed status line");
    const char *line_end = memchr(*at, '\r', (size_t)(end - *at));
    if (!line_end || line_end - *at < 3 || (line_end - *at > 3 && (*at)[3] != ' ') ||
        has_control(*at, (size_t)(line_end - *at)))
        return refuse(p, 502, "a malformed status line");
    *at = line_end;
    if (!expect_bytes(at, end, "\r\n", 2))
        return refuse(p, 502, "a malformed status line");
    return 0;
}

/* One line, from its name to its line break. Cuts blanks off the end of the value. */
static int check_field(struct http_parser *p, struct http_field *f, const char **at,
                       const char *end)
{
    struct http_head *h = p->head;
    if (*at != h->base + f->name || !f->name_len)
        return refuse(p, 400, "a folded field, or a bare line break");
    *at += f->name_len;
    if (!expect_bytes(at, end, ":", 1))
        return refuse(p, 400, "a field without its colon");
    while (*at < end && (**at == ' ' || **at == '\t'))
        (*at)++;
    if (!f->value_len)
        f->value = (uint32_t)(*at - h->base);
    if (*at != h->base + f->value)
        return refuse(p, 400, "a folded field, or a bare line break");
    if (has_control(*at, f->value_len))
        return refuse(p, 400, "a control byte in a field");
    *at += f->value_len;
    while (*at < end && (**at == ' ' || **at == '\t'))
        (*at)++; /* where they were no part of the value for llhttp */
    if (!expect_bytes(at, end, "\r\n", 2))
        return refuse(p, 400, "a bare line break");
    const char *value = h->base + f->value;
    while (f->value_len && (value[f->value_len - 1] == ' ' || value[f->value_len - 1] == '\t'))
        f->value_len--;
    f->known = (uint8_t)http_known_of(h->base + f->name, f->name_len);
    return 0;
}

/* Digits, colon, brackets and what host names have; nothing that another reader could take for a path or user. */
static bool is_host(struct http_slice host)
{
    if (!host.len)
        return false;
    for (size_t i = 0; i < host.len; i++) {
        char c = host.s[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && !strchr("-._:[]%~", c))
            return false;
    }
    return true;
}

static bool is_number(struct http_slice s)
{
    if (!s.len || s.len > 19)
        return false;
    for (size_t i = 0; i < s.len; i++)
        if (s.s[i] < '0' || s.s[i] > '9')
            return false;
    return true;
}

static int check_framing(struct http_parser *p)
{
    struct http_head *h = p->head;
    unsigned lengths = 0, codings = 0;
    for (unsigned i = 0; i < h->n_fields; i++) {
        if (h->fields[i].known == HTTP_F_CONTENT_LENGTH) {
            if (!is_number(http_value(h, i)))
                return refuse(p, 400, "a Content-Length that is no number");
            lengths++;
        } else if (h->fields[i].known == HTTP_F_TRANSFER_ENCODING) {
            if (!http_slice_is(http_value(h, i), "chunked"))
                return refuse(p, 400, "a Transfer-Encoding other than chunked");
            codings++;
        }
    }
    if (lengths && codings)
        return refuse(p, 400, "both Content-Length and Transfer-Encoding");
    if (lengths > 1)
        return refuse(p, 400, "more than one Content-Length");
    if (codings > 1)
        return refuse(p, 400, "more than one Transfer-Encoding");
    if (codings && !h->minor)
        return refuse(p, 400, "a Transfer-Encoding in HTTP/1.0");
    h->has_length = lengths;
    h->chunked = p->chunked = codings;
    h->content_length = lengths ? p->ll.content_length : 0;
    if (!(p->ll.flags & F_CHUNKED) != !codings || !(p->ll.flags & F_CONTENT_LENGTH) != !lengths)
        return refuse(p, 400, "contradicting framing fields");
    return 0;
}

/* The target becomes path and query; of an absolute one the host has to be the Host field's (RFC 9112 3.2.2). */
static int check_target(struct http_parser *p, struct http_slice host)
{
    struct http_head *h = p->head;
    struct http_slice t = http_target(h);
    if (memchr(t.s, '#', t.len))
        return refuse(p, 400, "a fragment in the target");
    if (t.s[0] == '/' || (t.len == 1 && t.s[0] == '*' && h->method == HTTP_M_OPTIONS))
        return 0;
    size_t scheme = t.len > 7 && !strncasecmp(t.s, "http://", 7)    ? 7
                    : t.len > 8 && !strncasecmp(t.s, "https://", 8) ? 8
                                                                    : 0;
    if (!scheme)
        return refuse(p, 400, "a target that is neither a path nor a URL");
    const char *from = t.s + scheme, *end = t.s + t.len, *path = from;
    while (path < end && *path != '/' && *path != '?')
        path++;
    if (path == end || *path != '/')
        return refuse(p, 400, "a URL without a path");
    if (!is_host((struct http_slice){from, (size_t)(path - from)}) ||
        (host.s && (host.len != (size_t)(path - from) || strncasecmp(host.s, from, host.len))))
        return refuse(p, 400, "a URL whose host is not that of the Host field");
    h->target += (uint32_t)(path - t.s);
    h->target_len = (uint32_t)(end - path);
    return 0;
}

static int check_request(struct http_parser *p)
{
    struct http_head *h = p->head;
    unsigned hosts = 0;
    struct http_slice host = {NULL, 0};
    h->expect_continue = false;
    for (unsigned i = 0; i < h->n_fields; i++) {
        if (h->fields[i].known == HTTP_F_HOST) {
            host = http_value(h, i);
            hosts++;
        } else if (h->fields[i].known == HTTP_F_EXPECT && h->minor) {
            if (!http_slice_is(http_value(h, i), "100-continue"))
                return refuse(p, 417, "an unknown expectation");
            h->expect_continue = true;
        }
    }
    if (hosts > 1)
        return refuse(p, 400, "more than one Host");
    if ((!hosts && h->minor) || (hosts && !is_host(host)))
        return refuse(p, 400, "no valid Host");
    return check_target(p, host);
}

static bool take_method(struct http_head *h, unsigned method)
{
    static const struct {
        uint8_t llhttp, ours;
    } methods[] = {
        {HTTP_GET, HTTP_M_GET},         {HTTP_HEAD, HTTP_M_HEAD},   {HTTP_POST, HTTP_M_POST},
        {HTTP_PUT, HTTP_M_PUT},         {HTTP_PATCH, HTTP_M_PATCH}, {HTTP_DELETE, HTTP_M_DELETE},
        {HTTP_OPTIONS, HTTP_M_OPTIONS},
    };
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (methods[i].llhttp == method) {
            h->method = methods[i].ours;
            return true;
        }
    return false;
}

static int check_head(struct http_parser *p)
{
    struct http_head *h = p->head;
    const char *at = h->base, *end = h->base + p->head_bytes;
    if (p->is_response && p->ll.status_code < 100)
        return refuse(p, 502, "a status below 100");
    if (p->is_response)
        h->status = p->status = p->ll.status_code;
    else if (!take_method(h, p->ll.method))
        return refuse(p, 501, "a method that is not served");
    if (p->ll.http_major != 1 || p->ll.http_minor > 1)
        return refuse(p, 505, "a version other than HTTP/1.1 and 1.0");
    h->minor = p->ll.http_minor;
    if (p->is_response ? check_status_line(p, &at, end) : check_request_line(p, &at, end))
        return -1;
    for (unsigned i = 0; i < h->n_fields; i++)
        if (check_field(p, &h->fields[i], &at, end))
            return -1;
    if (!expect_bytes(&at, end, "\r\n", 2))
        return refuse(p, 400, "a bare line break");
    h->len = (uint32_t)(at - h->base);
    if (h->len > p->limits->header_bytes)
        return refuse(p, 431, "the head is too long");
    http_mark_hops(h);
    if (check_framing(p))
        return -1;
    return p->is_response ? 0 : check_request(p);
}

/* --- the message's progress ------------------------------------------------------------------------------ */

static bool is_informational(const struct http_parser *p)
{
    return p->is_response && p->status < 200;
}

static int on_headers_complete(llhttp_t *ll)
{
    struct http_parser *p = of(ll);
    if (check_head(p))
        return -1;
    p->head_done = true;
    p->gap = p->head->base + p->head->len;
    ll->upgrade = 0; /* an offer to switch protocols is not taken up */
    if (is_informational(p)) {
        if (p->head->status == 101)
            return refuse(p, 502, "an upgrade that nobody asked for");
        if (++p->informational > HTTP_MAX_INFORMATIONAL)
            return refuse(p, 502, "too many 1xx answers");
        return 1;
    }
    if (p->on_head(p))
        return refuse(p, 400, "refused");
    bool no_body =
        p->is_response && (p->to_head || p->head->status == 204 || p->head->status == 304);
    return no_body ? 1 : 0;
}

/* Bytes between pieces of a chunked body: each LF after a CR, each CR before an LF, no other controls, bounded. */
static int check_gap(struct http_parser *p, const char *at, const char *end)
{
    if ((size_t)(end - at) > p->framing_left)
        return refuse(p, 400, "too many trailers");
    p->framing_left -= (uint32_t)(end - at);
    for (; at < end; at++) {
        unsigned char c = (unsigned char)*at;
        bool control = c < 0x20 && c != '\r' && c != '\n' && c != '\t';
        if ((c == '\n') != (p->framing_last == '\r') || control)
            return refuse(p, 400, "a bare line break in the chunk framing");
        p->framing_last = (char)c;
        p->framing_line = c == '\n' ? 0 : p->framing_line + 1;
        if (p->framing_line > HTTP_MAX_FRAMING_LINE)
            return refuse(p, 400, "too long a chunk extension or trailer");
    }
    return 0;
}

static int on_body(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parser *p = of(ll);
    if (p->chunked) {
        if (check_gap(p, p->gap, at))
            return -1;
        p->gap = at + len;
        p->framing_left = HTTP_MAX_TRAILER_BYTES;
    }
    if (p->on_body(p, at, len))
        return refuse(p, 413, "refused");
    return 0;
}

static int on_message_complete(llhttp_t *ll)
{
    of(ll)->done = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

static void begin_message(struct http_parser *p)
{
    struct http_head *h = p->head;
    llhttp_init(&p->ll, p->is_response ? HTTP_RESPONSE : HTTP_REQUEST, &settings);
    h->n_fields = 0;
    h->target_len = 0;
    p->refusal = (struct http_refusal){0, NULL};
    p->started = p->head_done = p->done = false;
    p->head_bytes = 0;
    p->gap = NULL;
    p->framing_last = 0;
    p->chunked = false;
    p->status = 0;
    p->framing_line = 0;
    p->framing_left = HTTP_MAX_TRAILER_BYTES;
}

void http_parser_init(struct http_parser *p, bool is_response, struct http_head *head,
                      const struct http_parser_limits *limits)
{
    p->is_response = is_response;
    p->to_head = false;
    p->head = head;
    p->limits = limits;
    p->informational = 0;
    begin_message(p);
}

static void name_error(struct http_parser *p, llhttp_errno_t e)
{
    switch (e) {
    case HPE_INVALID_METHOD: refuse(p, 400, "an unknown method"); break;
    case HPE_INVALID_URL: refuse(p, 400, "an invalid target"); break;
    case HPE_INVALID_VERSION:
        if (p->ll.http_major == 1 && p->ll.http_minor <= 1)
            refuse(p, 400, "something behind the version");
        else
            refuse(p, 505, "a version other than HTTP/1.1 and 1.0");
        break;
    case HPE_PAUSED_H2_UPGRADE: refuse(p, 505, "HTTP/2 is not spoken here"); break;
    case HPE_INVALID_CONTENT_LENGTH: refuse(p, 400, "an invalid Content-Length"); break;
    case HPE_UNEXPECTED_CONTENT_LENGTH:
        refuse(p, 400, "both Content-Length and Transfer-Encoding");
        break;
    case HPE_INVALID_TRANSFER_ENCODING:
        refuse(p, 400, "a Transfer-Encoding other than chunked, or beside Content-Length");
        break;
    case HPE_INVALID_CHUNK_SIZE: refuse(p, 400, "an invalid chunk size"); break;
    case HPE_INVALID_HEADER_TOKEN: refuse(p, 400, "an invalid field"); break;
    case HPE_INVALID_CONSTANT: refuse(p, 400, "not HTTP"); break;
    default: refuse(p, 400, "malformed HTTP"); break;
    }
}

/* One run of llhttp over what is left; *stop is where it stood in the end. */
static bool run(struct http_parser *p, const char *from, const char *end, const char **stop)
{
    p->started = true;
    if (!p->head_done)
        p->head_bytes += (uint32_t)(end - from);
    p->gap = from; /* where the head ends in this piece it moves there */
    llhttp_errno_t e = llhttp_execute(&p->ll, from, (size_t)(end - from));
    *stop = e == HPE_OK ? end : llhttp_get_error_pos(&p->ll);
    if (e != HPE_OK && !(e == HPE_PAUSED && p->done)) {
        name_error(p, e);
        return false;
    }
    if (!p->head_done && p->head_bytes >= p->limits->header_bytes) {
        refuse(p, p->head->n_fields ? 431 : 414, "the head is too long");
        return false;
    }
    return !p->head_done || !p->chunked || !check_gap(p, p->gap, *stop);
}

enum http_parse_result http_parser_feed(struct http_parser *p, const char *data, size_t len,
                                        size_t *used)
{
    const char *from = data, *end = data + len;
    while (from < end) {
        if (!run(p, from, end, &from))
            return HTTP_PARSE_REFUSED;
        if (!p->done)
            return HTTP_PARSE_MORE;
        if (!is_informational(p)) { /* else the real answer is yet to come */
            *used = (size_t)(from - data);
            return HTTP_PARSE_DONE;
        }
        begin_message(p);
        p->head->base = from;
    }
    return HTTP_PARSE_MORE;
}

enum http_parse_result http_parser_eof(struct http_parser *p)
{
    if (p->head_done && !p->done)
        llhttp_finish(&p->ll);
    if (p->done)
        return HTTP_PARSE_DONE;
    refuse(p, 400, "the end came within the message");
    return HTTP_PARSE_REFUSED;
}
