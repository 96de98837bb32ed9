/* admin.h - the second listener of `weir serve`: health, metrics, state, and the operator's wishes. Loopback by default;
 * on any other address a token is needed (Authorization: Bearer ...), but for /healthz and /readyz.
 *
 *   GET  /healthz                         200 as long as the process answers
 *   GET  /readyz                          200 when a worker is up and it does not drain, else 503 with the reason
 *   GET  /metrics                         Prometheus text (metrics.h)
 *   GET  /admin/state                     JSON: pools, workers, what is believed of them
 *   POST /admin/workers/NAME/drain        no new requests for this worker; .../undrain: again
 */
#ifndef WEIR_ADMIN_H
#define WEIR_ADMIN_H

#include "controller/serve/metrics.h"

#define ADMIN_MAX_TOKEN 256u

struct admin;

/* Listens on the poller's loop, on fd if that is not -1. token: NULL or empty: none needed. NULL and error. view's proxies
 * are borrowed. */
struct admin *admin_new(struct http_loop *http, const char *host, uint16_t port, int fd,
                        const char *token, const struct metrics_view *view, struct poller *poller,
                        char error[PROXY_ERROR_BYTES]);
uint16_t admin_port(const struct admin *a);
int admin_listen_fd(const struct admin *a);
void admin_close(struct admin *a);

#endif
