/* config_args.c - the command line of `weir serve`: its options are the keys of the config's table that have one. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "controller/serve/config.h"
#include "controller/serve/metrics.h"

enum { OPT_CHECK = 256, OPT_HELP_CONFIG, OPT_CONFIG_PAGE, OPT_METRICS_PAGE, OPT_KEY };

static const struct option others[] = {
    {"config", required_argument, NULL, 'c'},
    {"worker", required_argument, NULL, 'w'},
    {"check", no_argument, NULL, OPT_CHECK},
    {"help-config", no_argument, NULL, OPT_HELP_CONFIG},
    {"config-page", no_argument, NULL, OPT_CONFIG_PAGE},
    {"metrics-page", no_argument, NULL, OPT_METRICS_PAGE},
    {"help", no_argument, NULL, 'h'},
};
#define N_OTHERS (sizeof others / sizeof others[0])

#define HELP_INDENT 27
#define HELP_COLUMNS 110

/* Words after what stands on the line already, in lines of HELP_COLUMNS. */
static void print_wrapped(FILE *out, int at, const char *text)
{
    for (size_t n; *text; text += n) {
        n = strcspn(text, " ");
        if (at + (int)n > HELP_COLUMNS) {
            fprintf(out, "\n%*s", HELP_INDENT, "");
            at = HELP_INDENT;
        }
        n += text[n] == ' ';
        at += fprintf(out, "%.*s", (int)n, text);
    }
}

static void print_option(FILE *out, const struct key *k)
{
    char name[64], text[512];
    const char *def = k->default_note               ? k->default_note
                      : strcmp(k->def, "\"\"") != 0 ? k->def
                                                    : "empty";
    const char *value = k->type == KEY_BOOL                        ? ""
                        : k->unit && !strcmp(k->unit, "ms")        ? " MS"
                        : k->unit && !strcmp(k->unit, "bytes")     ? " BYTES"
                        : k->type == KEY_U32 || k->type == KEY_U64 ? " N"
                                                                   : " VALUE";
    snprintf(name, sizeof name, "--%s%s", k->option, value);
    snprintf(text, sizeof text, "%s (%s)", k->help, def);
    int at = k->letter ? fprintf(out, "  -%c, %-20s ", k->letter, name)
                       : fprintf(out, "      %-20s ", name);
    print_wrapped(out, at, text);
    fputc('\n', out);
}

static void print_help(FILE *out)
{
    fputs(
        "usage: weir serve --worker URL [--worker URL...] [OPTIONS]\n"
        "       weir serve --config weir.yaml [OPTIONS]\n"
        "\n"
        "Stands in front of OpenAI-compatible engines (vLLM, SGLang, TensorRT-LLM) and sends each request where the\n"
        "policy says. One worker address is enough to start.\n"
        "\n"
        "  -c, --config FILE        YAML: pools by model, tenants, everything; read again at SIGHUP\n"
        "      --check              only validate it: exit status 2 and one line if it has a fault\n"
        "      --help-config        every key that it may have\n"
        "  -w, --worker URL         http://HOST:PORT or https://..., with keys of a worker behind a '#', as in\n"
        "                           http://10.0.0.1:8000#role=prefill,bootstrap_port=8998\n",
        out);
    for (unsigned i = 0; i < config_table.n; i++) {
        const struct key *k = &config_table.keys[i];
        if (k->option)
            print_option(out, k);
    }
    fputs(
        "      --metrics-page       print the page that documents every metric, and end\n"
        "      --config-page        likewise of every key of the config\n"
        "  -h, --help\n"
        "\n"
        "Options of a pool's key set it in every pool, and win over the file.\n"
        "Signals: SIGHUP reads the config again; SIGTERM and SIGINT drain, a second one ends at once; SIGUSR2 starts a\n"
        "new process of the program that takes the sockets over, then drains.\n"
        "exit status: 0 drained and ended, 2 bad options, a bad config or an address that cannot be had\n",
        out);
}

static void make_options(struct option *o, char *letters)
{
    unsigned n = 0;
    *letters++ = ':'; /* messages are ours */
    for (; n < N_OTHERS; n++)
        o[n] = others[n];
    for (const char *l = "c:w:h"; *l; l++)
        *letters++ = *l;
    for (unsigned i = 0; i < config_table.n; i++) {
        const struct key *k = &config_table.keys[i];
        int takes = k->type == KEY_BOOL ? no_argument : required_argument;
        if (!k->option)
            continue;
        o[n++] = (struct option){k->option, takes, NULL, OPT_KEY + (int)i};
        if (k->letter) {
            *letters++ = k->letter;
            if (takes == required_argument)
                *letters++ = ':';
        }
    }
    *letters = '\0';
    o[n] = (struct option){0};
}

static const struct key *by_letter(int letter)
{
    for (unsigned i = 0; i < config_table.n; i++) {
        if (config_table.keys[i].letter == letter)
            return &config_table.keys[i];
    }
    return NULL;
}

/* getopt has found nothing that it knows. */
static int unknown(int opt, char **argv, const struct option *o, char *error)
{
    char list[4096] = "", near[WORD_BYTES], given[WORD_BYTES];
    const char *text = argv[optind - 1];
    if (opt == ':') {
        ytree_error(error, "%.60s takes a value (see weir serve --help)", text);
        return WEIR_E_INPUT;
    }
    for (; o->name; o++)
        word_add(list, sizeof list, o->name);
    snprintf(given, sizeof given, "%s", text + strspn(text, "-"));
    given[strcspn(given, "=")] = '\0';
    if (word_nearest(list, given, 0, near, sizeof near))
        ytree_error(error, "no option %.60s; did you mean --%s?", text, near);
    else
        ytree_error(error, "no option %.60s; see weir serve --help", text);
    return WEIR_E_INPUT;
}

static int take(struct config_args *a, int opt)
{
    switch (opt) {
    case 'c': a->file = optarg; return 0;
    case OPT_CHECK: a->check = true; return 0;
    case OPT_HELP_CONFIG: config_print_reference(stdout, false); return 1;
    case OPT_CONFIG_PAGE: config_print_reference(stdout, true); return 1;
    case OPT_METRICS_PAGE: metrics_write_page(stdout); return 1;
    case 'h': print_help(stdout); return 1;
    default: break;
    }
    const struct key *k = opt == 'w'      ? NULL
                          : opt < OPT_KEY ? by_letter(opt)
                                          : &config_table.keys[opt - OPT_KEY];
    a->given[a->n_given++] = (struct config_given){k, optarg ? optarg : "true"};
    return 0;
}

int config_args_read(struct config_args *a, int argc, char **argv, char *error)
{
    struct option options[N_OTHERS + KEYS_MAX + 1];
    char letters[2 * KEYS_MAX + 16];
    int opt, rc = 0;
    *a = (struct config_args){.given = calloc((size_t)argc + 1, sizeof *a->given)};
    if (!a->given) {
        ytree_error(error, "out of memory");
        return WEIR_E_NOMEM;
    }
    make_options(options, letters);
    optind = 1;
    opterr = 0;
    while (!rc && (opt = getopt_long(argc, argv, letters, options, NULL)) != -1)
        rc = opt == '?' || opt == ':' ? unknown(opt, argv, options, error) : take(a, opt);
    if (!rc && optind < argc) {
        ytree_error(error, "'%.60s' is not an option (see weir serve --help)", argv[optind]);
        rc = WEIR_E_INPUT;
    }
    return rc;
}

void config_args_free(struct config_args *a)
{
    free(a->given);
    a->given = NULL;
}
