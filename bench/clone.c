/* clone.c - the price of a what-if: copy one worker's state, with and without a newcomer, and simulate it
 * ahead. Prints microseconds per clone and per clone + simulation, medians of several runs.
 *
 *   clone [-r RUNNING] [-b BLOCK_SIZE] [-n BLOCKS] [-s SECONDS_AHEAD] [-i ITERATIONS]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "predictor/engine.h"
#include "predictor/rng.h"

#define RUNS 9
#define PROMPT_KEYS 256

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct setup {
    uint32_t running, block_size, blocks, iterations;
    double ahead_s;
};

/* A worker in the middle of its life: a full prefix cache and `running` requests that decode. */
static struct engine *warm_engine(const struct setup *s, uint64_t *keys, struct rng *rng)
{
    struct engine_config c;
    const char *why;
    engine_config_default(&c, SCHED_VLLM);
    c.block_size = s->block_size;
    c.num_gpu_blocks = s->blocks;
    struct step_params p = {
        .form = STEP_LINEAR, .w_ms = 6.4343, .k_ms_per_tok = 5.131e-5, .p_ms_per_tok = 0.019613};
    if (step_model_init(&c.step, &p, &why)) {
        fprintf(stderr, "clone: %s\n", why);
        exit(2);
    }
    struct engine *e = engine_new(&c, 1);
    if (!e)
        exit(2);
    int64_t t = 0;
    uint32_t slot, key_tok = s->block_size, n = 0;
    for (uint32_t i = 0; i < 4096; i++) { /* fills the cache with what is over */
        struct request_spec q = {
            .uid = ++n, .prompt_tok = 2048, .output_tok = 2, .max_tokens = 2, .key_tok = key_tok};
        q.n_keys = q.prompt_tok / key_tok;
        for (uint32_t k = 0; k < q.n_keys && k < PROMPT_KEYS; k++)
            keys[k] = request_chain_key(k ? keys[k - 1] : 0, k < 4 ? k : rng_u64(rng));
        if (q.n_keys > PROMPT_KEYS)
            q.n_keys = PROMPT_KEYS;
        q.keys = keys;
        if (engine_submit(e, t, &q, 0, 0, &slot))
            exit(2);
        engine_run(e, t += 10 * PS_PER_S);
        engine_clear_events(e);
    }
    for (uint32_t i = 0; i < s->running; i++) {
        struct request_spec q = {.uid = ++n,
                                 .prompt_tok = 1000 + (uint32_t)rng_below(rng, 2000),
                                 .output_tok = 1000 + (uint32_t)rng_below(rng, 2000)};
        q.max_tokens = q.output_tok;
        if (engine_submit(e, t, &q, 0, 0, &slot))
            exit(2);
    }
    engine_run(e, t + 5 * PS_PER_S);
    engine_clear_events(e);
    return e;
}

int main(int argc, char **argv)
{
    struct setup s = {
        .running = 64, .block_size = 16, .blocks = 32768, .iterations = 2000, .ahead_s = 2};
    int opt;
    while ((opt = getopt(argc, argv, "r:b:n:s:i:")) != -1) {
        switch (opt) {
        case 'r': s.running = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'b': s.block_size = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'n': s.blocks = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 's': s.ahead_s = strtod(optarg, NULL); break;
        case 'i': s.iterations = (uint32_t)strtoul(optarg, NULL, 10); break;
        default:
            fprintf(
                stderr,
                "usage: clone [-r RUNNING] [-b BLOCK_SIZE] [-n BLOCKS] [-s SECONDS_AHEAD] [-i ITERATIONS]\n");
            return 2;
        }
    }
    struct rng rng;
    static uint64_t keys[PROMPT_KEYS];
    rng_init(&rng, 1);
    struct engine *e = warm_engine(&s, keys, &rng), *c = engine_new(engine_config_of(e), 1);
    struct engine_load load;
    engine_get_load(e, 0, &load);
    int64_t now = engine_next_ps(e), until = now + (int64_t)(s.ahead_s * 1e12);
    double clone[RUNS], both[RUNS];
    struct engine_stats before, after;
    engine_get_stats(e, &before);
    for (int r = 0; r < RUNS; r++) {
        double t0 = now_us();
        for (uint32_t i = 0; i < s.iterations; i++) {
            if (engine_copy(c, e))
                return 2;
        }
        double t1 = now_us();
        for (uint32_t i = 0; i < s.iterations; i++) {
            if (engine_copy(c, e))
                return 2;
            engine_run(c, until);
            engine_clear_events(c);
        }
        double t2 = now_us();
        clone[r] = (t1 - t0) / s.iterations;
        both[r] = (t2 - t1) / s.iterations;
    }
    engine_get_stats(c, &after);
    qsort(clone, RUNS, sizeof *clone, by_value);
    qsort(both, RUNS, sizeof *both, by_value);
    printf(
        "worker: %u running, %u of %u blocks of %u tokens in use, full prefix cache; %.1f s ahead = %lu passes\n",
        load.running, load.kv_used_blocks, load.kv_total_blocks, s.block_size, s.ahead_s,
        after.passes - before.passes);
    printf("clone                %8.2f us  (min %.2f, max %.2f of %d runs)\n", clone[RUNS / 2],
           clone[0], clone[RUNS - 1], RUNS);
    printf("clone and simulate   %8.2f us  (min %.2f, max %.2f)\n", both[RUNS / 2], both[0],
           both[RUNS - 1]);
    engine_free(e);
    engine_free(c);
    return 0;
}
