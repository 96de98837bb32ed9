/* request.c - see request.h. */
#include "predictor/request.h"

/* One multiplication and one fold each: reading a trace waits for this chain. Both multipliers are odd and the fold can
 * be undone, so that two ids under one parent never collide; other pairs do so with probability 2^-64, as far as
 * parents are unlike what multiplying ids makes, which folding sees to. */
uint64_t request_chain_key(uint64_t parent, uint64_t id)
{
    uint64_t k = (parent ^ id * UINT64_C(0xd6e8feb86659fd93)) * UINT64_C(0x9e3779b97f4a7c15);
    k ^= k >> 32;
    return k ? k : 1; /* 0 means "no key" */
}

uint64_t request_generated_key(uint64_t uid)
{
    return request_chain_key(UINT64_C(0x67656e6572617465),
                             uid); /* a parent that no chain starts from */
}
