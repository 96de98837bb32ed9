/* live.c - see live.h. */
#include "controller/serve/live.h"

#include <strings.h>

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <xxhash.h>

/* The row whose key or value has this text; all of its SHA-256 has to agree. */
static const struct serve_tenant *find(const struct serve_live *l, const char *s, size_t len,
                                       bool by_key)
{
    uint8_t digest[SERVE_DIGEST_BYTES];
    uint32_t low = 0, high = l->n_tenants;
    SHA256((const unsigned char *)s, len, digest);
    uint64_t id = serve_tenant_id(digest);
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (l->tenants[mid].id < id)
            low = mid + 1;
        else
            high = mid;
    }
    const struct serve_tenant *t = &l->tenants[low];
    if (low == l->n_tenants || t->id != id || t->by_key != by_key ||
        CRYPTO_memcmp(t->digest, digest, sizeof digest))
        return NULL;
    return t;
}

uint64_t live_tenant(const struct serve_live *l, struct http_slice header,
                     struct http_slice authorization, uint64_t otherwise,
                     const struct serve_tenant **known)
{
    struct http_slice v = header.s ? header : authorization;
    *known = NULL;
    if (!v.s || !v.len)
        return otherwise;
    if (header.s && l->knows_values)
        *known = find(l, v.s, v.len, false);
    else if (!header.s && l->knows_keys && v.len > 7 && !strncasecmp(v.s, "Bearer ", 7))
        *known = find(l, v.s + 7, v.len - 7, true);
    return *known ? (*known)->id : XXH3_64bits(v.s, v.len) | 1;
}

const struct serve_route *live_route(const struct serve_live *l, struct http_slice path)
{
    for (uint32_t i = 0; i < l->n_routes; i++) {
        if (strlen(l->routes[i].path) == path.len && !memcmp(l->routes[i].path, path.s, path.len))
            return &l->routes[i];
    }
    return NULL;
}
