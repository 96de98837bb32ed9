/* redis_url.h - where a Redis is and how one logs in, from a URL:
 *
 *   redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]      PORT 6379, DB 0; an IPv6 address in brackets
 *   rediss://...                                    the same over TLS; the certificate must be for HOST
 *   unix://[[USER]:PASSWORD@]/PATH[?db=DB]
 *
 * USER and PASSWORD may have %XX for bytes that a URL gives a meaning. I/O-free.
 */
#ifndef WEIR_REDIS_URL_H
#define WEIR_REDIS_URL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/error.h"

#define REDIS_URL_BYTES 1024u /* of the whole text, with its NUL */
#define REDIS_URL_MAX_DB 65535u

struct redis_url {
    bool tls;
    char host[256]; /* empty: path */
    uint16_t port;
    char path[108]; /* of a socket; as long as the system takes */
    char user[128], password[512];
    uint32_t db;
};

/* 0, or WEIR_E_INPUT with *why (static text that says what was expected, never a part of the URL). */
WEIR_NODISCARD int redis_url_read(struct redis_url *out, const char *text, const char **why);

#endif
