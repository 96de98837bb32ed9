/* commands.h - the subcommands of the weir program, one row each in main.c. All take argc, argv with
 * argv[0] the subcommand's name, and return an exit status: 0 good, 2 bad input or usage, or the answer
 * could not be written.
 */
#ifndef WEIR_COMMANDS_H
#define WEIR_COMMANDS_H

int replay_main(int argc, char **argv);
int gen_main(int argc, char **argv);
int check_main(int argc, char **argv);
int profile_main(int argc, char **argv);
int policies_main(int argc, char **argv);
int serve_main(int argc, char **argv);
int mock_main(int argc, char **argv);
int agent_main(int argc, char **argv);
int top_main(int argc, char **argv);

#endif
