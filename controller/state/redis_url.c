/* redis_url.c - see redis_url.h. */
#include "controller/state/redis_url.h"

#include <string.h>

static int bad(const char **why, const char *text)
{
    *why = text;
    return WEIR_E_INPUT;
}

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* n bytes with %XX decoded. False: too long, or a bad %. */
static bool decode(char *out, size_t cap, const char *s, size_t n)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (c == '%') {
            if (i + 2 >= n || hex(s[i + 1]) < 0 || hex(s[i + 2]) < 0)
                return false;
            c = (char)(hex(s[i + 1]) << 4 | hex(s[i + 2]));
            i += 2;
        }
        if (!c || len + 1 >= cap)
            return false;
        out[len++] = c;
    }
    out[len] = '\0';
    return true;
}

/* n digits, up to max. */
static bool number(const char *s, size_t n, uint32_t max, uint32_t *out)
{
    uint64_t x = 0;
    if (!n || n > 9)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        x = 10 * x + (uint64_t)(s[i] - '0');
    }
    *out = (uint32_t)x;
    return x <= max;
}

/* USER:PASSWORD@, if it is there; *s moves behind it. */
static bool login(struct redis_url *out, const char **s)
{
    const char *at = strrchr(*s, '@');
    if (!at)
        return true;
    const char *colon = memchr(*s, ':', (size_t)(at - *s));
    if (!colon || !decode(out->user, sizeof out->user, *s, (size_t)(colon - *s)) ||
        !decode(out->password, sizeof out->password, colon + 1, (size_t)(at - colon - 1)) ||
        !out->password[0])
        return false;
    *s = at + 1;
    return true;
}

static int read_socket(struct redis_url *out, const char *s, const char **why)
{
    const char *query = strchr(s, '?');
    size_t n = query ? (size_t)(query - s) : strlen(s);
    if (*s != '/' || n >= sizeof out->path)
        return bad(why, "expected unix:///PATH, a path of at most 107 bytes");
    memcpy(out->path, s, n);
    if (query && (strncmp(query, "?db=", 4) != 0 ||
                  !number(query + 4, strlen(query + 4), REDIS_URL_MAX_DB, &out->db)))
        return bad(why, "behind the path only ?db=NUMBER may stand, 0 to 65535");
    return 0;
}

static int read_host(struct redis_url *out, const char *s, const char **why)
{
    uint32_t port = 6379;
    const char *slash = strchr(s, '/'), *end = slash ? slash : s + strlen(s);
    const char *host = s, *host_end;
    if (*s == '[') {
        host = s + 1;
        host_end = memchr(s, ']', (size_t)(end - s));
        s = host_end ? host_end + 1 : end;
    } else {
        host_end = memchr(s, ':', (size_t)(end - s));
        s = host_end = host_end ? host_end : end;
    }
    if (!host_end || host_end == host ||
        !decode(out->host, sizeof out->host, host, (size_t)(host_end - host)))
        return bad(why, "expected redis://[USER:PASSWORD@]HOST[:PORT][/DB]");
    if (s != end && (*s != ':' || !number(s + 1, (size_t)(end - s - 1), 65535, &port) || !port))
        return bad(why, "the port must be 1 to 65535");
    if (slash && slash[1] && !number(slash + 1, strlen(slash + 1), REDIS_URL_MAX_DB, &out->db))
        return bad(why, "the database behind the / must be a number, 0 to 65535");
    out->port = (uint16_t)port;
    return 0;
}

int redis_url_read(struct redis_url *out, const char *text, const char **why)
{
    static const struct {
        const char *prefix;
        bool tls, socket;
    } kinds[] = {{"redis://", false, false}, {"rediss://", true, false}, {"unix://", false, true}};
    memset(out, 0, sizeof *out);
    if (strnlen(text, REDIS_URL_BYTES) == REDIS_URL_BYTES)
        return bad(why, "a URL of at most 1,023 bytes is expected");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t n = strlen(kinds[i].prefix);
        if (strncmp(text, kinds[i].prefix, n) != 0)
            continue;
        text += n;
        out->tls = kinds[i].tls;
        if (!login(out, &text))
            return bad(why, "before the @ USER:PASSWORD or :PASSWORD is expected, other bytes as "
                            "%XX");
        return kinds[i].socket ? read_socket(out, text, why) : read_host(out, text, why);
    }
    return bad(why, "expected redis://, rediss:// or unix://");
}
