/* fidelity.h - the two parts of the fidelity program. Both return an exit status. */
#ifndef WEIR_FIDELITY_H
#define WEIR_FIDELITY_H

int fidelity_runs(int n, char **folders);
int fidelity_silicon(int n, char **files);

#endif
