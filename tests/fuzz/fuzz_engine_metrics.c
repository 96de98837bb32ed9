/* fuzz_engine_metrics.c - metrics pages and ORCA headers of engines that answer anything. */
#include <stdint.h>
#include <stdlib.h>

#include "controller/engines/engine_metrics.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct engine_metrics m;
    struct core_telemetry t;
    if (!engine_metrics_read((const char *)data, size, &m)) {
        for (int f = 0; f < FIGURE_COUNT; f++)
            if (!(m.figure[f] >= 0))
                abort();
        engine_metrics_telemetry(&m, 0, 100, &t);
        if (t.kv_used_blocks > t.kv_total_blocks)
            abort();
    }
    if (engine_metrics_orca((const char *)data, size, &m) > 0)
        abort();
    return 0;
}
