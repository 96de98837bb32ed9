/* fidelity.c - how far weir's predictions are from real engines.
 *
 *   fidelity runs FOLDER...      recorded runs: fit on one half, predict the other; carried from one run to another
 *                                where two are of the same class
 *   fidelity silicon TABLE.csv   measured closed-loop points: each shape predicted from the others
 *   fidelity                     both on ../shared/data, where that is
 *
 * Exit status 2 on bad input, 77 when there is no data. bench/fidelity/README.md has the results.
 */
#include "bench/fidelity/fidelity.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NO_DATA 77
#define DATA "../shared/data"

static int run_all(void)
{
    static char runs[3][96] = {DATA "/vllm_runs/rtx4090_llama-3.1-8b",
                               DATA "/vllm_runs/rtxpro6000_llama-3.1-8b",
                               DATA "/vllm_runs/rtxpro6000_qwen3-30b-a3b-instruct-2507"};
    static char table[] = DATA "/calibration/silicon_h100_h200.csv";
    char *folders[] = {runs[0], runs[1], runs[2]}, *files[] = {table};
    if (access(table, R_OK) != 0 || access(runs[0], R_OK) != 0) {
        printf("fidelity: no recordings in " DATA "; give folders or a table\n");
        return NO_DATA;
    }
    int rc = fidelity_runs(3, folders);
    printf("\n");
    return rc ? rc : fidelity_silicon(1, files);
}

int main(int argc, char **argv)
{
    if (argc == 1)
        return run_all();
    if (argc > 2 && strcmp(argv[1], "runs") == 0)
        return fidelity_runs(argc - 2, argv + 2);
    if (argc > 2 && strcmp(argv[1], "silicon") == 0)
        return fidelity_silicon(argc - 2, argv + 2);
    fprintf(stderr, "usage: fidelity runs FOLDER...\n"
                    "       fidelity silicon TABLE.csv...\n"
                    "       fidelity            both, on " DATA "\n");
    return 2;
}
