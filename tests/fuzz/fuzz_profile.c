/* fuzz_profile.c - any bytes as a profile. What is accepted makes a step model; what is not gets one
 * line. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "controller/replay/profile.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct step_params p;
    struct step_model m;
    uint64_t kv_bytes = 0;
    uint32_t gpus = 0;
    char error[STACK_ERROR_BYTES];
    const char *why = NULL;
    if (profile_load_memory(&p, &kv_bytes, &gpus, "f", (const char *)data, size, error)) {
        need_line(error);
        return 0;
    }
    need(gpus >= 1, "a worker without GPUs");
    need(!step_model_init(&m, &p, &why), "a profile that makes no step model");
    return 0;
}
