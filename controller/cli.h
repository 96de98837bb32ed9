/* cli.h - what the subcommands share in reading their command lines: every mistake gets one line that
 * starts with "weir COMMAND:" and exit status 2.
 *
 * Call getopt_long with an option string that starts with ':' (cli_start has switched its own messages
 * off) and hand what it does not know to cli_bad_option.
 */
#ifndef WEIR_CLI_H
#define WEIR_CLI_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

#define CLI_EXIT_INPUT 2

/* Makes getopt start afresh and keep quiet. Before the first getopt_long of a command. */
void cli_start(void);

/* Prints "weir COMMAND: " and the line; returns CLI_EXIT_INPUT. */
int cli_fail(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "no NOUN 'given'; did you mean x?", or what to do if nothing in list (words.h) is near: `else_do`.
 * Returns CLI_EXIT_INPUT. */
int cli_unknown(const char *command, const char *noun, const char *given, const char *list,
                const char *else_do);

int cli_unknown_policy(const char *command, const char *given);

/* For getopt_long's '?' and ':': no such option (the nearest one is named), its value is missing, or
 * it takes none. Returns CLI_EXIT_INPUT. */
int cli_bad_option(const char *command, const struct option *options, char *const *argv, int got);

/* A decimal number, all of text, within [min, max]: digits only; digits, point and exponent. */
bool cli_whole(const char *text, uint64_t min, uint64_t max, uint64_t *out);
bool cli_real(const char *text, double min, double max, double *out);

/* n of them with commas between, each within the limits of a double. */
bool cli_reals(const char *text, double *out, int n);

/* Flushes standard output; CLI_EXIT_INPUT and a line if what was printed did not get out, else rc. */
int cli_finish(const char *command, int rc);

#endif
