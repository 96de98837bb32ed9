/* fuzz_model_config.c - any bytes as a model's config.json. What is accepted gives step times that are
 * numbers, on every GPU of the table; what is not gets one line. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "controller/replay/profile.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_as(const uint8_t *data, size_t size, const char *dtype)
{
    struct model_shape m;
    char error[STACK_ERROR_BYTES];
    if (model_shape_read(&m, "f", (const char *)data, size, dtype, error)) {
        need_line(error);
        return;
    }
    for (size_t i = 0; gpu_at(i); i++) {
        struct step_params p;
        struct roofline r = {.gpu = gpu_at(i),
                             .tp = 1u << i % 8,
                             .pp = 1u << i % 3,
                             .dp = 1u << i % 5,
                             .weight_bytes = m.weight_bytes,
                             .kv_bytes = 2,
                             .eff = 0.8,
                             .mfu = 0.45};
        roofline_step(&p, &m, &r);
        need(isfinite(p.w_ms) && p.w_ms > 0, "W is no time");
        need(isfinite(p.k_ms_per_tok) && p.k_ms_per_tok > 0, "k is no time");
        need(isfinite(p.p_ms_per_tok) && p.p_ms_per_tok > 0, "p is no time");
        need(isfinite(p.q_ms_per_tok2) && p.q_ms_per_tok2 > 0, "q is no time");
        need(p.moe_w_share >= 0 && p.moe_w_share <= 1, "a share outside 0..1");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_as(data, size, NULL);
    read_as(data, size, "fp8");
    return 0;
}
