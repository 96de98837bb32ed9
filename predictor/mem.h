/* mem.h - growth of arrays after construction. Constructors report WEIR_E_NOMEM; once a simulation runs,
 * there is nothing sensible to do without memory, so growth aborts with the process's own message.
 */
#ifndef WEIR_MEM_H
#define WEIR_MEM_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/error.h"

/* Makes room for `want` elements of `size` bytes in *array (capacity *cap), doubling. */
static inline void mem_grow(void **array, uint32_t *cap, uint32_t want, size_t size)
{
    if (want <= *cap)
        return;
    uint32_t n = *cap ? *cap : 16;
    while (n < want)
        n *= 2;
    void *p = realloc(*array, (size_t)n * size);
    if (!p)
        abort();
    *array = p;
    *cap = n;
}

/* As mem_grow, but exact, and an error: for copies. 0 or WEIR_E_NOMEM, then *array is as before. */
WEIR_NODISCARD static inline int mem_reserve(void **array, uint32_t *cap, uint32_t want,
                                             size_t size)
{
    if (want <= *cap)
        return 0;
    void *p = realloc(*array, (size_t)want * size);
    if (!p)
        return WEIR_E_NOMEM;
    *array = p;
    *cap = want;
    return 0;
}

#define MEM_GROW(array, cap, want) mem_grow((void **)&(array), &(cap), (want), sizeof *(array))
#define MEM_RESERVE(array, cap, want)                                                              \
    mem_reserve((void **)&(array), &(cap), (want), sizeof *(array))

/* Copies n elements; either array may be NULL if n is 0. */
static inline void mem_copy(void *dst, const void *src, uint32_t n, size_t size)
{
    if (n)
        memcpy(dst, src, (size_t)n * size);
}

#define MEM_COPY(dst, src, n) mem_copy((dst), (src), (n), sizeof *(dst))

#endif
