/* fuzz.h - what targets hold messages to: whatever is refused is refused in one line. */
#ifndef WEIR_TESTS_FUZZ_H
#define WEIR_TESTS_FUZZ_H

#include <stdio.h>
#include <stdlib.h>

/* Ends the run if it is not so. */
static inline void need(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static inline void need_printable(const char *s)
{
    for (; *s; s++)
        need((unsigned char)*s >= 0x20 && *s != 0x7f, "a message with a control character");
}

static inline void need_line(const char *s)
{
    need(*s != '\0', "refused without a word");
    need_printable(s);
}

#endif
