/* parity.c - compares weir's schedulers with recordings of real ones.
 *
 *   parity vllm DIR...     a recorded vLLM (recording.h), or a directory of such recordings: every scheduler
 *                          step (batch, preemptions, admissions, finishes, free blocks) against sched_vllm fed the
 *                          order of arrivals
 *   parity dynosim ...     see parity_dynosim.c
 *
 * Prints the number of differences per case; exit status 1 if there is any, 2 on bad input.
 */
#include "bench/parity/parity.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "vllm"))
        return parity_vllm(argc - 2, argv + 2);
    if (argc > 2 && !strcmp(argv[1], "dynosim"))
        return parity_dynosim(argc - 2, argv + 2);
    fprintf(stderr, "usage: parity vllm DIR...   (recordings, or what has some in it)\n"
                    "       parity dynosim [--trace-dir DIR] REFERENCE_DIR [CASE...]\n");
    return 2;
}
