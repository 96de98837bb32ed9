/* start.h - from what the config says to what the threads of `weir serve` work with: pools with their decision cores, workers
 * in their places, certificates, and the settings that can change while they run (serve_live).
 */
#ifndef WEIR_START_H
#define WEIR_START_H

#include "controller/serve/config.h"

/* 0, or WEIR_E_INPUT, WEIR_E_NOMEM and one line in error (YTREE_ERROR_BYTES). serve_deinit in any case. */
WEIR_NODISCARD int serve_init(struct serve *s, const struct serve_config *c, char *error);
void serve_deinit(struct serve *s);

/* What a reload replaces; the certificates are read now. NULL: error has the line. */
struct serve_live *serve_live_new(const struct serve_config *c, char *error);
void serve_live_free(struct serve_live *l);

/* Whether c could be started with, beyond what config_load sees: certificates, values that do not go together. 0 or
 * WEIR_E_INPUT and one line in error. */
WEIR_NODISCARD int serve_check(const struct serve_config *c, char *error);

/* The client side of TLS, if there is none yet and c has an https worker. */
WEIR_NODISCARD int serve_upstream_tls(struct serve *s, const struct serve_config *c, char *error);

/* A worker of the config takes a place. */
void serve_worker_set(struct serve_worker *w, const struct config_worker *from);

/* The limits and weights of a pool, as the core takes them. Its pointers are borrowed from c and from `tenants`
 * (CORE_MAX_TENANTS). */
struct core_config serve_core_config(const struct serve_config *c, const struct config_pool *p,
                                     struct core_tenant *tenants);

#endif
