/* fuzz_config.c - any bytes as weir serve's config. What is accepted is complete: every pool has workers with an address and
 * a policy, all within their limits, and the reload's comparison with itself finds nothing; what is not gets one line.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/serve/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_pool(const struct config_pool *p)
{
    need(core_policy_find(p->policy) != NULL, "a pool without a policy");
    need(p->n_workers > 0 && p->name[0], "a pool without workers or a name");
    for (uint32_t i = 0; i < p->n_workers; i++) {
        const struct config_worker *w = &p->workers[i];
        need(w->host[0] && w->port && w->name[0], "a worker without an address");
        need(w->role <= ROLE_DECODE && w->block_size, "a worker that the core would refuse");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct serve_config c;
    char error[YTREE_ERROR_BYTES], changes[YTREE_ERROR_BYTES];
    if (config_load_text(&c, NULL, "f", (const char *)data, size, error)) {
        need_line(error);
    } else {
        need(c.n_pools > 0 && c.set.threads > 0 && c.set.listen_host[0], "an incomplete config");
        for (uint32_t i = 0; i < c.n_pools; i++)
            check_pool(&c.pools[i]);
        for (uint32_t i = 1; i < c.n_tenants; i++)
            need(c.tenants[i - 1].id < c.tenants[i].id, "tenants out of order");
        config_fixed_changes(&c, &c, changes, sizeof changes);
        need(!changes[0], "a config differs from itself");
    }
    config_free(&c);
    return 0;
}
