/* commands.h - the subcommands of the weir program, one row each in main.c. All take argc, argv with
 * argv[0] the subcommand's name, and return an exit status: 0 good, 1 the answer is "no", 2 bad input or usage.
 */
#ifndef WEIR_COMMANDS_H
#define WEIR_COMMANDS_H

int replay_main(int argc, char **argv);
int gen_main(int argc, char **argv);
int check_main(int argc, char **argv);
int profile_main(int argc, char **argv);
int policies_main(int argc, char **argv);

#endif
