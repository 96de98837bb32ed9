/* fuzz_record.c - messages of other processes: whatever is taken can be written again and is then read as the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "controller/state/record.h"

#define NOW_US INT64_C(1800000000000000)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t out[RECORD_MAX_BYTES];
static struct worker_record first, second;
static struct worker_load loads[2][RECORD_MAX_LOADS];

static void check(int ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t len;
    struct dispatches d = {.loads = loads[0]}, e = {.loads = loads[1]};
    if (record_read_worker(&first, NULL, data, size, NOW_US) == RECORD_GOOD) {
        check(!record_write_worker(&first, out, sizeof out, &len));
        check(record_read_worker(&second, first.name, out, len, NOW_US) == RECORD_GOOD);
        check(!memcmp(&first, &second, sizeof first));
    }
    if (record_read_dispatches(&d, data, size, NOW_US) == RECORD_GOOD) {
        check(!record_write_dispatches(&d, out, sizeof out, &len));
        check(record_read_dispatches(&e, out, len, NOW_US) == RECORD_GOOD);
        check(d.n == e.n && d.whole == e.whole && d.sequence == e.sequence);
        for (uint32_t i = 0; i < d.n; i++)
            check(!strcmp(d.loads[i].worker, e.loads[i].worker) &&
                  d.loads[i].prefill_tok == e.loads[i].prefill_tok);
    }
    return 0;
}
