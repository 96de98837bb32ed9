/* live.h - whose a request is, and what its path adds, by the config as of the last reload. No I/O. */
#ifndef WEIR_LIVE_H
#define WEIR_LIVE_H

#include "controller/http/http_headers.h"
#include "controller/serve/serve.h"

/* The id of a request's tenant (core_request.tenant), from what names it: its header (s NULL: absent), else its
 * Authorization, else `otherwise`. *known: its row of the config, or NULL. Unknown ones are tenants too: a hash. */
uint64_t live_tenant(const struct serve_live *l, struct http_slice header,
                     struct http_slice authorization, uint64_t otherwise,
                     const struct serve_tenant **known);

/* NULL: the path has no row. */
const struct serve_route *live_route(const struct serve_live *l, struct http_slice path);

#endif
