/* fail_alloc.h - makes the n-th allocation fail, and counts what is allocated.
 *
 * CMake links a test that includes this header with the linker's --wrap for malloc, calloc, realloc and free:
 * calls from weir's own code and from the test come here first (also under the sanitizers, whose allocators
 * then get them), calls inside shared libraries do not.
 *
 *     static bool make(void *ctx) { *(struct x **)ctx = x_new(); return *(struct x **)ctx; }
 *     static void undo(void *ctx) { x_free(*(struct x **)ctx); }
 *     ...
 *     struct x *x;
 *     assert_int_equal(fail_alloc_each("x_new", make, undo, &x), 3);     x_new makes three allocations
 */
#ifndef WEIR_TESTS_FAIL_ALLOC_H
#define WEIR_TESTS_FAIL_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

/* From now on the n-th allocation fails (1: the next one), once. 0: none. */
void fail_alloc_at(uint64_t n);

/* Whether it has failed since. */
bool fail_alloc_failed(void);

/* Blocks allocated and not freed, as far as they were seen here. */
int64_t fail_alloc_live(void);

/* Calls make(ctx) with the first allocation failing, then with the second ..., until it has none left to fail;
 * then undo(ctx). make returns whether it succeeded; when it did not, everything it allocated must be free
 * again. Fails the test, with `what` in the message, if make succeeds without the memory it asked for, fails
 * with it, or leaves blocks behind. Returns the number of allocations. */
uint64_t fail_alloc_each(const char *what, bool (*make)(void *ctx), void (*undo)(void *ctx),
                         void *ctx);

#endif
