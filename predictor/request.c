/* request.c - see request.h. */
#include "predictor/request.h"

#include "predictor/rng.h"

/* The id is mixed off the chain's critical path, so that a loader pays one mix a key. Both halves are
 * bijections of 64 bits: two ids under one parent never collide, unrelated pairs with probability
 * 2^-64. */
uint64_t request_chain_key(uint64_t parent, uint64_t id)
{
    uint64_t k = rng_mix64(parent ^ rng_mix64(id));
    return k ? k : 1; /* 0 means "no key" */
}

uint64_t request_generated_key(uint64_t uid)
{
    return request_chain_key(UINT64_C(0x67656e6572617465), uid); /* a parent that no chain starts from */
}
