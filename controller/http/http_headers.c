/* http_headers.c - see http_headers.h. */
#include "controller/http/http_headers.h"

#include <string.h>
#include <strings.h>

/* --- slices ---------------------------------------------------------------------------------------------- */

bool http_slice_is(struct http_slice a, const char *text)
{
    return a.s && strlen(text) == a.len && strncasecmp(a.s, text, a.len) == 0;
}

static struct http_slice trim(struct http_slice a)
{
    while (a.len && (a.s[0] == ' ' || a.s[0] == '\t'))
        a.s++, a.len--;
    while (a.len && (a.s[a.len - 1] == ' ' || a.s[a.len - 1] == '\t'))
        a.len--;
    return a;
}

/* Takes the next member off a comma-separated list; false at its end. Empty members are members. */
static bool next_member(struct http_slice *list, struct http_slice *member)
{
    if (!list->s)
        return false;
    const char *comma = list->len ? memchr(list->s, ',', list->len) : NULL;
    size_t len = comma ? (size_t)(comma - list->s) : list->len;
    *member = trim((struct http_slice){list->s, len});
    if (comma)
        *list = (struct http_slice){comma + 1, list->len - len - 1};
    else
        list->s = NULL;
    return true;
}

bool http_list_has(struct http_slice list, const char *text)
{
    struct http_slice member;
    while (next_member(&list, &member)) {
        const char *semicolon = member.len ? memchr(member.s, ';', member.len) : NULL;
        if (semicolon)
            member = trim((struct http_slice){member.s, (size_t)(semicolon - member.s)});
        if (http_slice_is(member, text))
            return true;
    }
    return false;
}

const char *http_method_text(enum http_method m)
{
    static const char *const texts[] = {
        [HTTP_M_GET] = "GET",         [HTTP_M_HEAD] = "HEAD",   [HTTP_M_POST] = "POST",
        [HTTP_M_PUT] = "PUT",         [HTTP_M_PATCH] = "PATCH", [HTTP_M_DELETE] = "DELETE",
        [HTTP_M_OPTIONS] = "OPTIONS",
    };
    return texts[m];
}

/* --- fields ---------------------------------------------------------------------------------------------- */

/* Names of the same length are told apart by their first letter. */
enum http_known http_known_of(const char *name, size_t len)
{
    static const struct known_name {
        const char *name;
        uint8_t known;
    } names[][4] = {
        [2] = {{"te", HTTP_F_TE}},
        [4] = {{"host", HTTP_F_HOST}, {"date", HTTP_F_DATE}},
        [6] = {{"expect", HTTP_F_EXPECT}},
        [7] = {{"trailer", HTTP_F_TRAILER}, {"upgrade", HTTP_F_UPGRADE}},
        [10] = {{"connection", HTTP_F_CONNECTION}, {"keep-alive", HTTP_F_KEEP_ALIVE}},
        [11] = {{"retry-after", HTTP_F_RETRY_AFTER}},
        [12] = {{"content-type", HTTP_F_CONTENT_TYPE}, {"x-request-id", HTTP_F_REQUEST_ID}},
        [13] = {{"authorization", HTTP_F_AUTHORIZATION}},
        [14] = {{"content-length", HTTP_F_CONTENT_LENGTH}},
        [16] = {{"proxy-connection", HTTP_F_PROXY}},
        [17] = {{"transfer-encoding", HTTP_F_TRANSFER_ENCODING}},
        [18] = {{"proxy-authenticate", HTTP_F_PROXY}},
        [19] = {{"proxy-authorization", HTTP_F_PROXY}},
    };
    if (len >= sizeof names / sizeof *names)
        return HTTP_F_OTHER;
    for (const struct known_name *k = names[len]; k->name; k++) {
        if (k->name[0] == (name[0] | 0x20) && strncasecmp(k->name, name, len) == 0)
            return k->known;
    }
    return HTTP_F_OTHER;
}

struct http_slice http_get_known(const struct http_head *h, enum http_known known)
{
    for (unsigned i = 0; i < h->n_fields; i++)
        if (h->fields[i].known == known)
            return http_value(h, i);
    return (struct http_slice){NULL, 0};
}

struct http_slice http_get(const struct http_head *h, const char *name)
{
    for (unsigned i = 0; i < h->n_fields; i++)
        if (http_slice_is(http_name(h, i), name))
            return http_value(h, i);
    return (struct http_slice){NULL, 0};
}

static bool is_hop_by_hop(enum http_known known)
{
    return known == HTTP_F_TRANSFER_ENCODING || known == HTTP_F_CONNECTION ||
           known == HTTP_F_KEEP_ALIVE || known == HTTP_F_PROXY || known == HTTP_F_TE ||
           known == HTTP_F_TRAILER || known == HTTP_F_UPGRADE;
}

static void mark_named(struct http_head *h, struct http_slice name)
{
    for (unsigned i = 0; i < h->n_fields; i++)
        if (h->fields[i].name_len == name.len &&
            strncasecmp(h->base + h->fields[i].name, name.s, name.len) == 0)
            h->fields[i].hop = true;
}

void http_mark_hops(struct http_head *h)
{
    bool close = false, keep = false;
    for (unsigned i = 0; i < h->n_fields; i++)
        h->fields[i].hop = is_hop_by_hop(h->fields[i].known);
    for (unsigned i = 0; i < h->n_fields; i++) {
        if (h->fields[i].known != HTTP_F_CONNECTION)
            continue;
        struct http_slice list = http_value(h, i), member;
        while (next_member(&list, &member)) {
            if (http_slice_is(member, "close"))
                close = true;
            else if (http_slice_is(member, "keep-alive"))
                keep = true;
            else if (member.len)
                mark_named(h, member);
        }
    }
    h->keep_alive = h->minor ? !close : keep && !close;
}

/* --- writing --------------------------------------------------------------------------------------------- */

static bool room(struct http_writer *w, size_t len)
{
    if ((size_t)(w->end - w->at) >= len && !w->full)
        return true;
    w->full = true;
    return false;
}

void http_write(struct http_writer *w, const char *s, size_t len)
{
    if (!room(w, len))
        return;
    if (len)
        memcpy(w->at, s, len);
    w->at += len;
}

static char *put_clean(char *at, struct http_slice text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.s[i];
        *at++ = (c < 0x20 && c != '\t') || c == 0x7f ? ' ' : (char)c;
    }
    return at;
}

void http_write_field(struct http_writer *w, struct http_slice name, struct http_slice value)
{
    if (!room(w, name.len + value.len + 4))
        return;
    char *at = put_clean(w->at, name);
    *at++ = ':';
    *at++ = ' ';
    at = put_clean(at, value);
    *at++ = '\r';
    *at++ = '\n';
    w->at = at;
}

size_t http_decimal(char *at, uint64_t value)
{
    char digits[20];
    size_t n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    for (size_t i = 0; i < n; i++)
        at[i] = digits[n - 1 - i];
    return n;
}

void http_write_field_u64(struct http_writer *w, struct http_slice name, uint64_t value)
{
    char digits[20];
    http_write_field(w, name, (struct http_slice){digits, http_decimal(digits, value)});
}

void http_write_status(struct http_writer *w, int status)
{
    static const char ok[] = "HTTP/1.1 200 OK\r\n";
    if (status == 200) {
        http_write(w, ok, sizeof ok - 1);
        return;
    }
    const char *reason = http_reason(status);
    char line[16] = "HTTP/1.1 ";
    size_t n = 9 + http_decimal(line + 9, (uint64_t)status % 1000);
    line[n++] = ' ';
    http_write(w, line, n);
    http_write(w, reason, strlen(reason));
    http_write(w, "\r\n", 2);
}

void http_write_request(struct http_writer *w, const char *method, struct http_slice target)
{
    static const char version[] = " HTTP/1.1\r\n";
    http_write(w, method, strlen(method));
    http_write(w, " ", 1);
    http_write(w, target.s, target.len);
    http_write(w, version, sizeof version - 1);
}

static bool is_among(enum http_known known, const enum http_known *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == known)
            return true;
    return false;
}

void http_write_fields(struct http_writer *w, const struct http_head *h,
                       const enum http_known *without, size_t n)
{
    for (unsigned i = 0; i < h->n_fields; i++) {
        const struct http_field *f = &h->fields[i];
        if (f->hop || f->known == HTTP_F_CONTENT_LENGTH ||
            (f->known != HTTP_F_OTHER && is_among(f->known, without, n)))
            continue;
        if (!room(w, (size_t)f->name_len + f->value_len + 4))
            return;
        /* parsed values are clean: they are copied as they are */
        char *at = w->at;
        memcpy(at, h->base + f->name, f->name_len);
        at += f->name_len;
        *at++ = ':';
        *at++ = ' ';
        memcpy(at, h->base + f->value, f->value_len);
        at += f->value_len;
        *at++ = '\r';
        *at++ = '\n';
        w->at = at;
    }
}

const char *http_reason(int status)
{
    switch (status) {
    case 100: return "Continue";
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 206: return "Partial Content";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 303: return "See Other";
    case 304: return "Not Modified";
    case 307: return "Temporary Redirect";
    case 308: return "Permanent Redirect";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 406: return "Not Acceptable";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 410: return "Gone";
    case 411: return "Length Required";
    case 412: return "Precondition Failed";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 424: return "Failed Dependency";
    case 425: return "Too Early";
    case 426: return "Upgrade Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "";
    }
}
