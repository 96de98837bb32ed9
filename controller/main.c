/* main.c - the weir program: a table of subcommands.
 *
 * Built twice. `weir` has the offline commands and runs the live ones by becoming `weir-live` beside it, so that
 * a replay of milliseconds does not spend two of them on loading what only sockets need (OpenSSL, libuv).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/config/words.h"
#include "predictor/version.h"

#define LIVE_PATH_BYTES 4096

#ifdef WEIR_LIVE
#define LIVE(command) command
#define OFFLINE(command) become_other
#define OTHER "weir"
#else
#define LIVE(command) become_other
#define OFFLINE(command) command
#define OTHER "weir-live"
#endif

/* Runs the same command line as the other program, in this process. Returns only if that cannot be. */
static int become_other(int argc, char **argv)
{
    char path[LIVE_PATH_BYTES];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof OTHER);
    (void)argc;
    char *slash = n > 0 ? memrchr(path, '/', (size_t)n) : NULL;
    if (slash) {
        memcpy(slash + 1, OTHER, sizeof OTHER);
        execv(path, argv - 1); /* argv[-1] is the program's name: see main */
    }
    (void)fprintf(
        stderr, "weir: %s, which has the command '%s', cannot be run: %s; install it beside weir\n",
        OTHER, argv[0], strerror(errno));
    return CLI_EXIT_INPUT;
}

static const struct {
    const char *name, *summary;
    int (*main)(int argc, char **argv);
} commands[] = {
    {"serve", "stand in front of engines and route requests, inline", LIVE(serve_main)},
    {"top", "live view of a weir serve: workers, queues, predicted and measured", LIVE(top_main)},
    {"agent", "beside an engine: publish its state for controllers to read", LIVE(agent_main)},
    {"mock", "an engine without a model, for trying weir serve without a GPU", LIVE(mock_main)},
    {"replay", "run a recorded trace through one or more policies and compare them",
     OFFLINE(replay_main)},
    {"gen", "write a synthetic trace", OFFLINE(gen_main)},
    {"check", "check stack files; --help lists every key", OFFLINE(check_main)},
    {"profile", "derive a step-time profile from a model's config.json and a GPU",
     OFFLINE(profile_main)},
    {"policies", "list the policies, their sources and their knobs", OFFLINE(policies_main)},
};

#define LIST_BYTES 256
#define N_COMMANDS (sizeof commands / sizeof *commands)

static void usage(FILE *out)
{
    fprintf(out,
            "weir %s: routing and capacity for LLM inference pools, by simulation\n\n"
            "usage: weir COMMAND [OPTIONS]\n\n",
            weir_version());
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n  weir COMMAND --help   options of one command\n"
                 "  weir --version\n");
}

int main(int argc, char **argv)
{
    if (argc > 1 && (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V"))) {
        printf("weir %s\n", weir_version());
        return 0;
    }
    if (argc > 1 &&
        (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))) {
        usage(stdout);
        return 0;
    }
    for (size_t i = 0; argc > 1 && i < N_COMMANDS; i++) {
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].main(argc - 1, argv + 1);
    }
    if (argc == 1) {
        usage(stderr);
        return CLI_EXIT_INPUT;
    }
    char list[LIST_BYTES] = "", near[WORD_BYTES];
    for (size_t i = 0; i < N_COMMANDS; i++)
        word_add(list, sizeof list, commands[i].name);
    if (word_nearest(list, argv[1], 0, near, sizeof near))
        (void)fprintf(stderr, "weir: no command '%.64s'; did you mean weir %s?\n", argv[1], near);
    else
        (void)fprintf(stderr, "weir: no command '%.64s'; see weir --help\n", argv[1]);
    return CLI_EXIT_INPUT;
}
