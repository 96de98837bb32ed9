/* parity.h - the two comparisons of the parity program. Both return an exit status. */
#ifndef WEIR_PARITY_H
#define WEIR_PARITY_H

int parity_vllm(int n, char **dirs);
int parity_dynosim(int n, char **args);

#endif
