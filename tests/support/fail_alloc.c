/* fail_alloc.c - see fail_alloc.h. */
#include "tests/support/fail_alloc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define MOST_ALLOCATIONS 100000u /* of one constructor: more is a loop that does not end */

/* What the linker makes of malloc and of its --wrap. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void __wrap_free(void *p);

static uint64_t until_failure; /* 0: never */
static bool failed;
static int64_t live;

static bool fails_now(void)
{
    if (!until_failure || --until_failure)
        return false;
    failed = true;
    return true;
}

static void *counted(void *p)
{
    live += p != NULL;
    return p;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *old, size_t size)
{
    if (fails_now())
        return NULL;
    return old ? __real_realloc(old, size) : counted(__real_realloc(NULL, size));
}

void __wrap_free(void *p)
{
    live -= p != NULL;
    __real_free(p);
}

void fail_alloc_at(uint64_t n)
{
    until_failure = n;
    failed = false;
}

bool fail_alloc_failed(void)
{
    return failed;
}

int64_t fail_alloc_live(void)
{
    return live;
}

uint64_t fail_alloc_each(const char *what, bool (*make)(void *ctx), void (*undo)(void *ctx),
                         void *ctx)
{
    for (uint64_t n = 1; n < MOST_ALLOCATIONS; n++) {
        int64_t before = live;
        fail_alloc_at(n);
        bool made = make(ctx);
        until_failure = 0;
        if (made == failed)
            fail_msg("%s %s, allocation %llu %s", what, made ? "succeeded" : "failed",
                     (unsigned long long)n, failed ? "failed" : "was never reached");
        if (made)
            undo(ctx);
        if (live != before)
            fail_msg("%s leaves %lld blocks behind (allocation %llu %s)", what,
                     (long long)(live - before), (unsigned long long)n,
                     failed ? "failed" : "was never reached");
        if (made)
            return n - 1;
    }
    fail_msg("%s: no end of allocations", what);
    return 0;
}
