/* policies_cmd.c - `weir policies`: what there is to choose from, from where it comes, and its
 * knobs. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/core/policy.h"

#define COMMAND "policies"
#define COLUMNS 100
#define INDENT 4
#define LABEL 8 /* width of "source" and the like, with the gap after it */

static void print_help(FILE *out)
{
    (void)fputs(
        "usage: weir policies [NAME...]\n"
        "\n"
        "Lists the routing policies, or those named, with their sources and knobs. A knob is set\n"
        "in the stack file:\n"
        "\n"
        "  policy_params: {cache_aware: {balance_abs: 32}}\n"
        "\n"
        "  -h, --help\n",
        out);
}

/* Prints text from column `at` on, broken at spaces, further lines indented by `indent`. */
static void print_wrapped(FILE *out, int at, int indent, const char *text)
{
    int start = at;
    while (*text) {
        int len = (int)strcspn(text, " ");
        if (at > start && at + 1 + len > COLUMNS) {
            (void)fprintf(out, "\n%*s", indent, "");
            at = start = indent;
        }
        at += fprintf(out, "%s%.*s", at > start ? " " : "", len, text);
        text += len + (text[len] == ' ');
    }
    (void)fputc('\n', out);
}

static void print_field(FILE *out, const char *label, const char *text)
{
    int at = fprintf(out, "%*s%-*s", INDENT, "", LABEL, label);
    print_wrapped(out, at, INDENT + LABEL, text);
}

static void print_prefix(FILE *out, const struct policy_ops *p)
{
    char text[96];
    switch (p->prefix) {
    case POLICY_PREFIX_NONE: print_field(out, "prefix", "not looked at"); return;
    case POLICY_PREFIX_EVENTS: print_field(out, "prefix", "from the engines' cache events"); return;
    case POLICY_PREFIX_DISPATCH:
        if (p->prefix_max_blocks)
            (void)snprintf(text, sizeof text,
                           "guessed from dispatches, at most %" PRIu32 " blocks per worker",
                           p->prefix_max_blocks);
        else
            (void)snprintf(text, sizeof text, "guessed from dispatches");
        print_field(out, "prefix", text);
        return;
    }
}

static void print_needs(FILE *out, const struct policy_ops *p)
{
    bool tokens = p->needs >> CORE_EV_FIRST_TOKEN & 1, load = p->needs >> CORE_EV_TELEMETRY & 1;
    if (tokens || load)
        print_field(out, "reads",
                    tokens && load ? "first tokens, telemetry"
                    : tokens       ? "first tokens"
                                   : "telemetry");
}

static void print_policy(FILE *out, const struct policy_ops *p)
{
    int width = 0;
    (void)fprintf(out, "%s\n%*s", p->name, INDENT, "");
    print_wrapped(out, INDENT, INDENT, p->summary);
    print_field(out, "source", p->source);
    print_prefix(out, p);
    print_needs(out, p);
    for (uint32_t i = 0; i < p->n_params; i++) {
        int len = (int)strlen(p->params[i].name);
        width = len > width ? len : width;
    }
    for (uint32_t i = 0; i < p->n_params; i++) {
        const struct policy_param *k = &p->params[i];
        int at = fprintf(out, "%*s%-*s%-*s  ", INDENT, "", LABEL, i ? "" : "knobs", width, k->name);
        char text[256];
        (void)snprintf(text, sizeof text, "%.10g (%g..%g) %s", k->def, k->min, k->max, k->help);
        print_wrapped(out, at, at, text);
    }
}

static int parse(int argc, char **argv, bool *help)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    cli_start();
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        if (option != 'h')
            return cli_bad_option(COMMAND, options, argv, option);
        *help = true;
    }
    for (int i = optind; !*help && i < argc; i++) {
        if (!core_policy_find(argv[i]))
            return cli_unknown_policy(COMMAND, argv[i]);
    }
    return 0;
}

int policies_main(int argc, char **argv)
{
    bool help = false;
    int rc = parse(argc, argv, &help);
    if (rc)
        return rc;
    if (help) {
        print_help(stdout);
    } else if (optind < argc) {
        for (int i = optind; i < argc; i++) {
            (void)fputs(i > optind ? "\n" : "", stdout);
            print_policy(stdout, core_policy_find(argv[i]));
        }
    } else {
        for (uint32_t i = 0; i < core_policies_count; i++) {
            (void)fputs(i ? "\n" : "", stdout);
            print_policy(stdout, core_policies[i]);
        }
    }
    return cli_finish(COMMAND, 0);
}
