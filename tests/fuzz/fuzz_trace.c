/* fuzz_trace.c - any bytes as a trace, in every format, plain or compressed.
 *
 * Byte 0 chooses: bits 0-2 the format, then skip_bad, spread_ps, untimed, small blocks, a refusing stack;
 * the rest is the file. Each is read with the Mooncake fast path and without it: the same rows, the same
 * counts, the same message. Times never run back, keys cover the prompt, a message is one line.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/replay/trace.h"
#include "predictor/rng.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct outcome {
    uint64_t hash, rows, bad, failed;
    int rc;
    char error[TRACE_ERROR_BYTES];
};

static const char *refuse(void *ctx, uint32_t prompt_tok, uint32_t output_tok)
{
    (void)ctx;
    return prompt_tok > 100000 && output_tok < 1000 ? "it is too large" : NULL;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    return rng_mix64(h ^ v);
}

static void check_request(const struct trace_request *q, const struct trace_options *o,
                          int64_t last)
{
    need(q->prompt_tok && q->output_tok, "a request without tokens");
    need(q->prompt_tok <= TRACE_TOKENS_MAX && q->output_tok <= TRACE_TOKENS_MAX, "too many tokens");
    need(!q->max_tokens || q->max_tokens >= q->output_tok, "max_tokens below output_tok");
    need(q->delay_ps >= 0 && q->delay_ps <= PS_LIMIT, "delay out of range");
    need(q->arrival_ps == PS_NEVER
             ? o->untimed || q->follows || !o->format || o->format == TRACE_WEIR ||
                   o->format == TRACE_MOONCAKE || o->format == TRACE_MOONCAKE_DELTA
             : q->arrival_ps >= last,
         "time ran back");
    need(!q->follows || q->session, "a later turn of no session");
    need(!q->n_keys || (q->keys && q->key_tok), "keys without key_tok");
    need(q->n_keys <=
             (q->prompt_tok + (uint64_t)q->output_tok + q->key_tok) / (q->key_tok + !q->key_tok),
         "more keys than tokens");
}

static void read_all(const uint8_t *data, size_t size, const struct trace_options *o,
                     struct outcome *out)
{
    struct trace_request q;
    int64_t last = 0;
    memset(out, 0, sizeof *out);
    struct trace *t = trace_open_memory("f", data, size, o, out->error);
    if (!t) {
        out->rc = WEIR_E_INPUT;
        need_printable(out->error);
        return;
    }
    while ((out->rc = trace_next(t, &q)) > 0) {
        check_request(&q, o, last);
        if (q.arrival_ps != PS_NEVER)
            last = q.arrival_ps;
        need(q.row == out->rows++, "rows are not numbered one by one");
        out->hash = mix(out->hash, (uint64_t)q.arrival_ps);
        out->hash = mix(out->hash, (uint64_t)q.delay_ps);
        out->hash = mix(out->hash, q.session + q.follows);
        out->hash = mix(out->hash, (uint64_t)q.prompt_tok << 32 | q.output_tok);
        out->hash = mix(out->hash, (uint64_t)q.max_tokens << 32 | (uint32_t)q.priority);
        out->hash = mix(out->hash, q.tenant);
        out->hash = mix(out->hash, (uint64_t)q.n_keys << 32 | q.key_tok);
        for (uint32_t i = 0; i < q.n_keys; i++)
            out->hash = mix(out->hash, q.keys[i]);
    }
    if (out->rc < 0) {
        snprintf(out->error, sizeof out->error, "%s", trace_error(t));
        need(out->error[0] != '\0', "an error without a message");
        need(trace_next(t, &q) == out->rc, "an error that goes away");
    }
    need_printable(out->error);
    out->bad = trace_bad_rows(t);
    out->failed = trace_failed_rows(t);
    need(out->bad <= o->skip_bad, "more bad rows than allowed");
    need(!out->bad == !trace_first_bad(t)[0], "bad rows without the first one's message");
    need_printable(trace_first_bad(t));
    trace_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t how = size ? data[0] : 0;
    struct trace_options o = {
        .format = (enum trace_format)((how & 7) % 6),
        .skip_bad = how & 8 ? 3 : 0,
        .spread_ps = how & 16 ? 3000 * PS_PER_MS : 0,
        .untimed = how & 32,
        .block_tok = how & 64 ? 16 : 0,
        .refuse = how & 128 ? refuse : NULL,
        .seed = how,
    };
    struct outcome fast, general;
    read_all(data + !!size, size - !!size, &o, &fast);
    o.no_fast_path = true;
    read_all(data + !!size, size - !!size, &o, &general);
    need(fast.rc == general.rc && fast.rows == general.rows && fast.hash == general.hash &&
             fast.bad == general.bad && fast.failed == general.failed &&
             strcmp(fast.error, general.error) == 0,
         "the fast path reads something else than the general parser");
    return 0;
}
