/* cli.c - see cli.h. */
#include "controller/cli.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/core/policy.h"
#include "controller/replay/input.h"
#include "controller/config/words.h"

#define LIST_BYTES 2048
#define QUOTE_BYTES 128
#define QUOTE_CHARS 60

void cli_start(void)
{
    opterr = 0;
    optind = 0; /* glibc: start afresh; the caller may have used getopt before */
}

int cli_fail(const char *command, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)fprintf(stderr, "weir %s: ", command);
    (void)vfprintf(stderr, fmt, ap);
    (void)fputc('\n', stderr);
    va_end(ap);
    return CLI_EXIT_INPUT;
}

int cli_unknown(const char *command, const char *noun, const char *given, const char *list,
                const char *else_do)
{
    char near[WORD_BYTES], quoted[QUOTE_BYTES];
    input_quote(quoted, sizeof quoted, given, strlen(given), QUOTE_CHARS);
    if (word_nearest(list, given, 0, near, sizeof near))
        return cli_fail(command, "no %s '%s'; did you mean %s?", noun, quoted, near);
    return cli_fail(command, "no %s '%s'; %s", noun, quoted, else_do);
}

int cli_unknown_policy(const char *command, const char *given)
{
    char list[LIST_BYTES] = "";
    for (uint32_t i = 0; i < core_policies_count; i++)
        word_add(list, sizeof list, core_policies[i]->name);
    return cli_unknown(command, "policy", given, list, "weir policies lists them");
}

static const char *name_of(const struct option *options, int val)
{
    while (options->name && options->val != val)
        options++;
    return options->name;
}

int cli_bad_option(const char *command, const struct option *options, char *const *argv, int got)
{
    char list[LIST_BYTES], near[WORD_BYTES], name[WORD_BYTES], quoted[QUOTE_BYTES];
    const char *known = optopt ? name_of(options, optopt) : NULL;
    if (known && got == ':')
        return cli_fail(command, "--%s: expected a value behind it; see weir %s --help", known,
                        command);
    if (known)
        return cli_fail(command, "--%s: takes no value; leave out what follows the =", known);
    if (optopt) {
        char letter = (char)optopt;
        input_quote(quoted, sizeof quoted, &letter, 1, 1);
        return cli_fail(command, "-%s: no such option; see weir %s --help", quoted, command);
    }
    const char *given = argv[optind - 1];
    (void)snprintf(name, sizeof name, "%.*s", (int)strcspn(given + 2, "="), given + 2);
    input_quote(quoted, sizeof quoted, given, strcspn(given, "="), QUOTE_CHARS);
    list[0] = '\0';
    for (const struct option *o = options; o->name; o++)
        word_add(list, sizeof list, o->name);
    if (word_nearest(list, name, 0, near, sizeof near))
        return cli_fail(command, "%s: no such option; did you mean --%s?", quoted, near);
    return cli_fail(command, "%s: no such option; see weir %s --help", quoted, command);
}

bool cli_whole(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    if (!*text || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    *out = strtoull(text, NULL, 10);
    return !errno && *out >= min && *out <= max;
}

/* strtod alone would take spaces, hexadecimal digits, inf and nan. */
static const char *take_real(const char *text, double *out)
{
    char *end;
    size_t n = strspn(text, "0123456789.eE+-");
    *out = strtod(text, &end);
    return end == text || (size_t)(end - text) > n || !isfinite(*out) ? NULL : end;
}

bool cli_real(const char *text, double min, double max, double *out)
{
    const char *end = take_real(text, out);
    return end && !*end && *out >= min && *out <= max;
}

bool cli_reals(const char *text, double *out, int n)
{
    for (int i = 0; i < n; i++) {
        text = take_real(text, &out[i]);
        if (!text || *text != (i + 1 < n ? ',' : '\0'))
            return false;
        text++;
    }
    return true;
}

int cli_finish(const char *command, int rc)
{
    if (!fflush(stdout) && !ferror(stdout))
        return rc;
    return cli_fail(command, "writing to standard output failed: %s", strerror(errno));
}
