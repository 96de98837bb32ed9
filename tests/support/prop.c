/* prop.c - see prop.h. */
#include "tests/support/prop.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* A case that runs longer hangs: it is ended, and named. Cases take milliseconds, and ctest's own limit is 300. */
#define CASE_SECONDS 200u

static const char *running; /* NULL: no case is */
static uint64_t running_seed;

/* Sanitizers end a process without running its handlers; they offer this. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void tell(void)
{
    char text[512];
    if (!running)
        return;
    int n = snprintf(text, sizeof text, "%s failed with seed %llu; repeat: WEIR_SEED=%llu %s\n",
                     running, (unsigned long long)running_seed, (unsigned long long)running_seed,
                     program_invocation_name);
    running = NULL;
    if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0)
        return;
}

static void on_abort(int sig)
{
    tell();
    signal(sig, SIG_DFL);
    raise(sig);
}

static uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);
    char *end;
    if (!s || !*s)
        return otherwise;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno || *end) {
        fprintf(stderr, "%s=%s: not a whole number\n", name, s);
        exit(2);
    }
    return v;
}

int prop_single(void)
{
    const char *s = getenv("WEIR_SEED");
    return s && *s;
}

void prop_run(const char *what, uint32_t cases, void (*one)(uint64_t seed))
{
    uint64_t first = 1, last = cases * number_from("WEIR_RUNS", 1);
    if (prop_single())
        first = last = number_from("WEIR_SEED", 1);
    printf("%s: seeds %llu to %llu\n", what, (unsigned long long)first, (unsigned long long)last);
    fflush(stdout);
    signal(SIGABRT, on_abort);
    signal(SIGALRM, on_abort);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(tell);
    for (uint64_t seed = first; seed <= last; seed++) {
        running = what;
        running_seed = seed;
        alarm(CASE_SECONDS);
        one(seed);
    }
    running = NULL;
    alarm(0);
}

int prop_teardown(void **state)
{
    (void)state;
    tell();
    return 0;
}
