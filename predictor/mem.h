/* mem.h - growth of arrays after construction. Constructors report WEIR_E_NOMEM; once a simulation runs,
 * there is nothing sensible to do without memory, so growth aborts with the process's own message.
 */
#ifndef WEIR_MEM_H
#define WEIR_MEM_H

#include <stdint.h>
#include <stdlib.h>

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

#define MEM_GROW(array, cap, want) mem_grow((void **)&(array), &(cap), (want), sizeof *(array))

#endif
