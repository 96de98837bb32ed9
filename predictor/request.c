/* request.c - see request.h. */
#include "predictor/request.h"

#include "predictor/rng.h"

/* A parent is uniform already, so one mix is enough; the multiplication keeps ids that are themselves
 * keys from cancelling against it, off the chain's critical path. Both steps are bijections: two ids
 * under one parent never collide, other pairs with probability 2^-64. */
uint64_t request_chain_key(uint64_t parent, uint64_t id)
{
    uint64_t k = rng_mix64(parent ^ id * UINT64_C(0xd6e8feb86659fd93));
    return k ? k : 1; /* 0 means "no key" */
}

uint64_t request_generated_key(uint64_t uid)
{
    return request_chain_key(UINT64_C(0x67656e6572617465),
                             uid); /* a parent that no chain starts from */
}
