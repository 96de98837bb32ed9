/* The stack file: every key survives printing and loading, every mistake gets one line that says where
 * it is and what to do. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/commands.h"
#include "controller/core/policy.h"
#include "controller/replay/profile.h"
#include "controller/replay/stack.h"
#include "controller/replay/stack_keys.h"
#include "predictor/units.h"
#include "tests/support/files.h"

#ifndef WEIR_SOURCE_DIR
#define WEIR_SOURCE_DIR "."
#endif

#define PROFILES WEIR_SOURCE_DIR "/deploy/profiles"
#define LLAMA "llama-3.1-8b-instruct_h100_trtllm-1.0.0rc3_tp1"

static const char *const dirs[] = {PROFILES, NULL};
static struct stack one, two; /* 2 MiB each */
static char error[STACK_ERROR_BYTES];

static int load(struct stack *s, const char *text)
{
    return stack_load_memory(s, "t.yaml", text, strlen(text), dirs, error);
}

static void load_ok(struct stack *s, const char *text)
{
    if (load(s, text))
        fail_msg("refused: %s\n%s", error, text);
}

/* What a printer wrote; free it. */
static char *printed_stack(const struct stack *s)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    stack_print(f, s);
    assert_int_equal(fclose(f), 0);
    return text;
}

static char *printed_key(const struct key *k, const void *base)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    key_print(f, k, base);
    assert_int_equal(fclose(f), 0);
    return text;
}

/* ---- defaults ---- */

static void default_stack(void **state)
{
    (void)state;
    stack_default(&one, 8);
    const struct stack_pool *p = &one.pools[0];
    const struct engine_config *c = &p->worker.engine;
    assert_int_equal(stack_check(&one, "default", error), 0);
    assert_int_equal(one.n_pools, 1);
    assert_int_equal(p->workers, 8);
    assert_int_equal(c->scheduler, SCHED_VLLM);
    assert_int_equal(c->block_size, 512);
    assert_int_equal(c->num_gpu_blocks, 16384);
    assert_int_equal(c->max_num_seqs, 256);
    assert_int_equal(c->max_num_batched_tokens, 8192);
    assert_int_equal(c->kv_bytes_per_token, 131072);
    assert_true(fabs(one.pools[0].step.w_ms - 6.4343) < 1e-12);
    assert_true(fabs(one.pools[0].step.k_ms_per_tok - 5.131e-05) < 1e-15);
    assert_true(fabs(one.pools[0].step.p_ms_per_tok - 0.019613) < 1e-12);
    assert_int_equal(one.slo_ttft_ps, 2 * PS_PER_S);
    assert_int_equal(one.slo_tpot_ps, 50 * PS_PER_MS);
    assert_int_equal(one.slo_e2e_ps, PS_NEVER);
    assert_int_equal(one.telemetry_poll_ps, 100 * PS_PER_MS);
    assert_int_equal(one.cache_event_delay_ps, 5 * PS_PER_MS);
    assert_int_equal(one.queue_max_requests, 100000);
    assert_int_equal(one.queue_timeout_ps, PS_NEVER);
    assert_int_equal(one.max_inflight_per_worker, 0);
    assert_int_equal(one.max_retries, 2);
    assert_false(one.retry_partial);
    assert_int_equal(one.kv_lease_ps, PS_NEVER);
    assert_int_equal(p->worker.gpus, 1);
    assert_true(p->worker.starts_up);
    stack_deinit(&one);
}

static void smallest_file(void **state)
{
    (void)state;
    load_ok(&one, "pools: [{}]");
    assert_string_equal(one.pools[0].name, "pool0");
    assert_int_equal(one.pools[0].workers, 1);
    assert_int_equal(one.pools[0].worker.engine.block_size, 16);
    assert_true(fabs(one.pools[0].step.w_ms - 6.4343) < 1e-12);
    stack_deinit(&one);
}

static void engine_defaults_follow_scheduler(void **state)
{
    (void)state;
    load_ok(&one, "pools:\n"
                  "  - {name: a, engine: {max_num_seqs: 7, scheduler: sglang}}\n"
                  "  - {name: b, engine: {scheduler: dynosim}}\n"
                  "  - {name: c, engine: {scheduler: trtllm, tokens-per-block: 64}}\n");
    assert_int_equal(one.pools[0].worker.engine.block_size, 1);
    assert_int_equal(one.pools[0].worker.engine.max_num_seqs, 7);
    assert_int_equal(one.pools[1].worker.engine.step.form, STEP_POLYNOMIAL);
    assert_int_equal(one.pools[1].worker.pool, 1);
    assert_int_equal(one.pools[2].worker.engine.block_size, 64);
    stack_deinit(&one);
}

static void serve_flags_as_written(void **state)
{
    (void)state;
    load_ok(&one, "pools:\n"
                  "  - engine:\n"
                  "      --max-num-seqs: 64\n"
                  "      max-num-batched-tokens: 4096\n"
                  "      --no-enable-prefix-caching: true\n"
                  "      --scheduling-policy: priority\n"
                  "      page-size: 32\n");
    const struct engine_config *c = &one.pools[0].worker.engine;
    assert_int_equal(c->max_num_seqs, 64);
    assert_int_equal(c->max_num_batched_tokens, 4096);
    assert_false(c->enable_prefix_caching);
    assert_int_equal(c->policy, SCHED_PRIORITY);
    assert_int_equal(c->block_size, 32);
    stack_deinit(&one);
}

/* ---- profiles in stacks ---- */

static void profile_and_overrides(void **state)
{
    (void)state;
    load_ok(&one, "pools:\n"
                  "  - step: {d0_ms_per_req: 0.25}\n"
                  "    engine: {kv_bytes_per_token: 65536}\n"
                  "    gpus: 2\n"
                  "    profile: " LLAMA "\n"
                  "  - {name: plain, profile: " LLAMA "}\n");
    const struct engine_config *c = &one.pools[0].worker.engine;
    assert_true(fabs(one.pools[0].step.w_ms - 6.4343) < 1e-12);
    assert_true(fabs(one.pools[0].step.d0_ms_per_req - 0.25) < 1e-12);
    assert_int_equal(c->kv_bytes_per_token, 65536);
    assert_int_equal(one.pools[0].worker.gpus, 2);
    assert_string_equal(one.pools[0].profile, LLAMA);
    assert_int_equal(one.pools[1].worker.engine.kv_bytes_per_token, 131072);
    assert_int_equal(one.pools[1].worker.gpus, 1);
    stack_deinit(&one);
}

static void step_alone_starts_from_nothing(void **state)
{
    (void)state;
    load_ok(&one, "pools: [{step: {w_ms: 3}}]");
    const struct engine_config *c = &one.pools[0].worker.engine;
    assert_true(fabs(one.pools[0].step.w_ms - 3) < 1e-12);
    assert_true(fabs(one.pools[0].step.k_ms_per_tok) < 1e-12);
    assert_int_equal(c->kv_bytes_per_token, 0);
    stack_deinit(&one);
}

static void table_step(void **state)
{
    (void)state;
    load_ok(&one, "pools:\n"
                  "  - step:\n"
                  "      form: table\n"
                  "      prefill_tok: [1, 1000, 8000]\n"
                  "      prefill_ms: [5, 20, 150]\n"
                  "      decode_kv_tok: [1000, 100000]\n"
                  "      decode_ctx_tok: [100, 1000, 10000]\n"
                  "      decode_ms: [[5, 6, 7], [8, 9, 10]]\n");
    const struct step_params *p = &one.pools[0].step;
    assert_int_equal(p->n_prefill, 3);
    assert_int_equal(p->n_kv, 2);
    assert_int_equal(p->n_ctx, 3);
    assert_true(fabs(p->itl_y[4] - 9) < 1e-12);
    char *text = printed_stack(&one);
    load_ok(&two, text);
    free(text);
    assert_memory_equal(p, &two.pools[0].step, sizeof *p);
    stack_deinit(&one);
    stack_deinit(&two);
}

/* ---- every key, there and back ---- */

static void *base_of(struct stack *s, enum key_scope scope)
{
    switch (scope) {
    case SCOPE_STACK: return s;
    case SCOPE_POOL: return &s->pools[0];
    case SCOPE_ENGINE: return &s->pools[0].worker.engine;
    case SCOPE_STEP: return &s->pools[0].step;
    default: return NULL;
    }
}

/* A value of the key's range that is nobody's default. */
static void put_value(const struct key *k, void *base, unsigned turn)
{
    char *to = (char *)base + k->offset;
    uint32_t word = (uint32_t)(k->min + 3 + turn <= k->max ? k->min + 3 + turn : k->max);
    uint64_t whole = word;
    double real = k->max > 3 ? 0.1 + turn : 0.125 * (turn + 1);
    int64_t ps = turn == 1 && k->none ? PS_NEVER : INT64_C(123456789012) + turn;
    bool yes = turn == 0;
    uint32_t choices = 1;
    for (const char *c = k->choices; c && *c; c++)
        choices += *c == ' ';

    switch (k->type) {
    case KEY_BOOL: memcpy(to, &yes, sizeof yes); break;
    case KEY_U32: memcpy(to, &word, sizeof word); break;
    case KEY_U64: memcpy(to, &whole, sizeof whole); break;
    case KEY_REAL: memcpy(to, &real, sizeof real); break;
    case KEY_MS: memcpy(to, &ps, sizeof ps); break;
    case KEY_CHOICE:
        word = turn % choices;
        memcpy(to, &word, sizeof word);
        break;
    case KEY_TEXT: (void)snprintf(to, k->cap, turn ? "a: \"b\\c\" #%u" : "r/{i}%u", turn); break;
    default: break;
    }
}

/* Other keys that a key needs beside it to be accepted. */
static void prepare(struct stack *s, const struct key *k, unsigned turn)
{
    struct engine_config *c = &s->pools[0].worker.engine;
    struct step_params *p = &s->pools[0].step;
    if (k->scope == SCOPE_ENGINE && k->only)
        c->scheduler = (enum sched_kind)__builtin_ctz(k->only);
    if (k->scope == SCOPE_STEP && k->only && !(k->only & (1u << STEP_TABLE)))
        p->form = (enum step_form)__builtin_ctz(k->only);
    if (p->form == STEP_POLYNOMIAL)
        p->pc = p->dc = 5;
    if (strncmp(k->name, "moe_", 4) == 0) {
        p->moe_experts = 128;
        p->moe_active = 2;
        p->moe_w_share = 0.5;
    }
    if (strncmp(k->name, "spec_", 5) == 0) {
        p->spec_gamma = 8;
        for (unsigned i = 0; i < 8; i++)
            p->spec_accept[i] = 0.5;
    }
    if (strcmp(k->name, "policy") == 0 && turn == 2)
        c->scheduler = SCHED_SGLANG;
    if (strcmp(k->name, "dynosim_engine") == 0)
        c->dynosim_version = DYNOSIM_1_6_1;
}

/* Keys of the table that a general value does not suit; they have tests of their own. */
static bool own_test(const struct key *k)
{
    return k->type == KEY_INNER || k->type == KEY_REALS || k->type == KEY_GRID ||
           strcmp(k->name, "form") == 0 || strcmp(k->name, "role") == 0 ||
           strcmp(k->name, "profile") == 0;
}

static void check_round_trip(const struct key *k, unsigned turn)
{
    char path[STACK_PATH_BYTES];
    stack_default(&one, 2);
    prepare(&one, k, turn);
    put_value(k, base_of(&one, k->scope), turn);
    if (strcmp(k->name, "domain") == 0 && turn)
        (void)snprintf(one.pools[0].worker.domain, CLUSTER_DOMAIN_BYTES, "rack \"7\"/{i/4}");

    char *text = printed_stack(&one);
    load_ok(&two, text);
    if (!key_same(k, base_of(&one, k->scope), base_of(&two, k->scope)))
        fail_msg("%s (turn %u) changed between print and load:\n%s", k->name, turn, text);
    char *again = printed_stack(&two);
    assert_string_equal(text, again);
    free(again);
    free(text);
    stack_deinit(&two);

    /* The same value through --set. */
    stack_default(&two, 2);
    prepare(&two, k, turn);
    char *value = printed_key(k, base_of(&one, k->scope));
    (void)snprintf(path, sizeof path, "%s%s",
                   k->scope == SCOPE_STACK    ? ""
                   : k->scope == SCOPE_ENGINE ? "pools.0.engine."
                   : k->scope == SCOPE_STEP   ? "pools[0].step."
                                              : "pools.pool0.",
                   k->name);
    if (stack_set(&two, path, value, error))
        fail_msg("--set %s=%s: %s", path, value, error);
    assert_true(key_same(k, base_of(&one, k->scope), base_of(&two, k->scope)));
    free(value);
    stack_deinit(&one);
    stack_deinit(&two);
}

static void every_key_round_trips(void **state)
{
    (void)state;
    unsigned tried = 0;
    for (unsigned i = 0; i < n_stack_keys; i++) {
        const struct key *k = &stack_keys[i];
        if (own_test(k) || k->scope == SCOPE_FAULT || k->scope == SCOPE_PROFILE)
            continue;
        for (unsigned turn = 0; turn < 3; turn++)
            check_round_trip(k, turn);
        tried++;
    }
    assert_true(tried > 50);
}

static void lists_of_a_stack_round_trip(void **state)
{
    (void)state;
    load_ok(&one, "pools:\n"
                  "  - {name: p, role: prefill, workers: 3, domain: 'r{i}'}\n"
                  "  - {name: d, role: decode, workers: 2,\n"
                  "     step: {w_ms: 5, spec_gamma: 2, spec_accept: [0.8, 0.5]}}\n"
                  "policy_params: {sticky: {affinity: 0.8, max_ttft_penalty_ms: 18},\n"
                  "  prob_admit: {shed_from_priority: -1e-3}}\n"
                  "faults:\n"
                  "  - {at_ms: 5, worker: 4, kind: up}\n"
                  "  - {at_ms: 1, domain: r1, kind: slow, factor: 2.5}\n"
                  "  - {at_ms: 5, worker: 4, kind: drain}\n"
                  "  - {at_ms: 2.5, worker: 0, kind: down}\n");
    char *text = printed_stack(&one);
    load_ok(&two, text);
    assert_int_equal(two.n_pools, 2);
    assert_int_equal(two.pools[0].worker.engine.role, ROLE_PREFILL);
    assert_int_equal(two.n_policy_params, 3);
    assert_string_equal(two.policy_params[2].policy, "prob_admit");
    assert_true(two.policy_params[2].value < -0.0009);
    assert_int_equal(two.n_faults, 4);
    assert_int_equal(two.faults[0].kind, FAULT_SLOW);
    assert_true(fabs(two.faults[0].factor - 2.5) < 1e-12);
    assert_string_equal(two.faults[0].domain, "r1");
    assert_int_equal(two.faults[0].worker, UINT32_MAX);
    assert_int_equal(two.faults[1].kind, FAULT_DOWN);
    assert_int_equal(two.faults[2].kind, FAULT_UP); /* same time: order of the file */
    assert_int_equal(two.faults[3].kind, FAULT_DRAIN);
    char *again = printed_stack(&two);
    assert_string_equal(text, again);
    free(again);
    free(text);
    stack_deinit(&one);
    stack_deinit(&two);
}

static void many_faults_are_sorted(void **state)
{
    (void)state;
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    (void)fputs("pools: [{workers: 100, domain: 'n{i/10}/g{i}'}]\nfaults:\n", f);
    for (unsigned i = 0; i < 1000; i++)
        (void)fprintf(f, "- {at_ms: %u, domain: n%u/g%u, kind: down}\n", i * 7919 % 500, i % 10,
                      i % 10 * 10 + i / 10 % 10);
    assert_int_equal(fclose(f), 0);
    load_ok(&one, text);
    assert_int_equal(one.n_faults, 1000);
    for (unsigned i = 1; i < 1000; i++)
        assert_true(one.faults[i - 1].at_ps <= one.faults[i].at_ps);
    free(text);
    stack_deinit(&one);
}

/* ---- domains ---- */

static void domain_patterns(void **state)
{
    (void)state;
    struct stack_pool *p = &one.pools[0];
    char path[CLUSTER_DOMAIN_BYTES];
    stack_default(&one, 1);
    (void)snprintf(p->worker.domain, sizeof p->worker.domain, "rack{i/16}/node{i/8}/gpu{i}");
    assert_true(stack_worker_domain(p, 19, path));
    assert_string_equal(path, "rack1/node2/gpu19");
    static const char *const bad[] = {"{", "a{", "{i", "{j}", "{i/0}", "{i/}", "{i/9999999999}"};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        (void)snprintf(p->worker.domain, sizeof p->worker.domain, "%s", bad[i]);
        assert_false(stack_worker_domain(p, 19, path));
    }
    memset(p->worker.domain, 'a', sizeof p->worker.domain - 4);
    memcpy(p->worker.domain + sizeof p->worker.domain - 4, "{i}", 4);
    assert_true(stack_worker_domain(p, 999, path));
    assert_false(stack_worker_domain(p, 10000, path));
    assert_true(stack_domain_within("rack1/node0", "rack1"));
    assert_true(stack_domain_within("rack1", "rack1"));
    assert_false(stack_domain_within("rack10", "rack1"));
    assert_false(stack_domain_within("rack1", ""));
}

/* ---- mistakes ---- */

static const struct mistake {
    const char *text, *line, *says;
} mistakes[] = {
    {"", "t.yaml:", "empty"},
    {"# nothing\n", "t.yaml:", "empty"},
    {"pools: []\n", "t.yaml:1:", "zero workers"},
    {"slo: {}\n", "t.yaml:", "zero workers"},
    {"pools:\n  - workers: 0\n", "t.yaml:2: pools[0].workers", "1..16384"},
    {"pools:\n  - workers: 20000\n", "t.yaml:2:", "1..16384"},
    {"pools:\n  - {name: a, workers: 16384}\n  - {name: b}\n", "t.yaml:2:", "at most 16384"},
    {"pools:\n  - workers: -1\n", "t.yaml:2:", "whole number"},
    {"pools:\n  - workers: 1.5\n", "t.yaml:2:", "whole number"},
    {"pools:\n  - workers: 99999999999999999999999\n", "t.yaml:2:", "whole number"},
    {"pools:\n  - workers: 0x10\n", "t.yaml:2:", "whole number"},
    {"pools:\n  - workers: '8'\n", "t.yaml:2:", "got '8'"},
    {"pools:\n  - workers:\n", "t.yaml:2:", "got ''"},
    {"pools:\n  - workers: [8]\n", "t.yaml:2:", "a list"},
    {"pools:\n  - {name: [a]}\n", "t.yaml:2:", "text"},
    {"pools:\n  - {name: ''}\n", "t.yaml:2:", "text of 1..63"},
    {"pools:\n  - {name: \"a\\tb\"}\n", "t.yaml:2:", "control characters"},
    {"pools:\n  - {name: a}\n  - {name: a}\n", "t.yaml:3: pools[1].name", "its own name"},
    {"pools:\n  - worker: 8\n", "t.yaml:2: pools[0].worker", "did you mean workers?"},
    {"pools:\n  - max_num_seqs: 8\n", "t.yaml:2:", "belongs at pools[].engine.max_num_seqs"},
    {"pools:\n  - engine:\n      max_num_sequences: 8\n",
     "t.yaml:3:", "did you mean max_num_seqs?"},
    {"pools:\n  - engine:\n      zzzzzzzzzzzzzz: 8\n", "t.yaml:3:", "the keys here are"},
    {"pools:\n  - engine:\n      --tensor-parallel-size: 2\n",
     "t.yaml:3:", "choose a profile of such a system"},
    {"pools:\n  - engine:\n      gpu-memory-utilization: 0.9\n",
     "t.yaml:3:", "num_gpu_blocks as the engine logs it"},
    {"pools:\n  - engine: {kv_cache_dtype: fp8}\n", "t.yaml:2:", "kv_bytes_per_token have it"},
    {"pools:\n  - engine: {trust-remote-code: true}\n", "t.yaml:2:", "no effect on a simulation"},
    {"pools:\n  - engine:\n      max_num_seqs: 4\n      --max-num-seqs: 5\n",
     "t.yaml:4:", "first on line 3"},
    {"pools:\n  - engine: {scheduler: vlm}\n", "t.yaml:2:", "did you mean vllm?"},
    {"pools:\n  - engine: {enable_prefix_caching: yes}\n", "t.yaml:2:", "true or false"},
    {"pools:\n  - engine: {num_gpu_blocks: 1}\n", "t.yaml:2:", "null block"},
    {"pools:\n  - engine: {policy: lpm}\n", "t.yaml:2:", "sglang"},
    {"pools:\n  - engine: 4\n", "t.yaml:2:", "keys and values"},
    {"pools:\n  - role: prefill\n", "t.yaml:2:", "without a decode pool"},
    {"pools:\n  - role: decode\n  - {name: b}\n", "t.yaml:2:", "without a prefill pool"},
    {"pools:\n  - 4\n", "t.yaml:2: pools[0]", "keys and values"},
    {"pools: 4\n", "t.yaml:1: pools", "list of pools"},
    {"- a\n", "t.yaml:1:", "keys and values"},
    {"pools: [{}]\npools: [{}]\n", "t.yaml:2:", "given twice"},
    {"slo: {ttft_ms: 0}\npools: [{}]\n", "t.yaml:1: slo.ttft_ms", "expected a number"},
    {"slo: {ttft_ms: soon}\npools: [{}]\n", "t.yaml:1:", "or none"},
    {"slo: {ttft: 4}\npools: [{}]\n", "t.yaml:1:", "did you mean ttft_ms?"},
    {"slo: {ttft_ms: 1e300}\npools: [{}]\n", "t.yaml:1:", "expected a number"},
    {"slo: {ttft_ms: nan}\npools: [{}]\n", "t.yaml:1:", "expected a number"},
    {"slo: {ttft_ms: .inf}\npools: [{}]\n", "t.yaml:1:", "expected a number"},
    {"telemetry: {poll_ms: none}\npools: [{}]\n", "t.yaml:1:", "expected a number"},
    {"pools: [{profile: nothing_like_it_at_all}]\n", "t.yaml:1: pools[0].profile", "no profile"},
    {"pools: [{profile: llama-3.1-8b-instruct_h100_trtlm-1.0.0rc3_tp1}]\n",
     "t.yaml:1:", "did you mean " LLAMA "?"},
    {"pools: [{profile: ./there/is/none.yaml}]\n", "t.yaml:1:", "cannot open"},
    {"pools: [{step: {w_ms: -1}}]\n", "t.yaml:1: pools[0].step.w_ms", "0..1000000000 ms"},
    {"pools: [{step: {spec_accept: [0.5, 2]}}]\n", "t.yaml:1:", "list of at most 16"},
    {"pools: [{step: {spec_accept: 0.5}}]\n", "t.yaml:1:", "list of at most 16"},
    {"pools: [{step: {prefill_tok: [1, 2], prefill_ms: [1]}}]\n", "t.yaml:1:", "as many numbers"},
    {"pools: [{step: {decode_ms: [[1, 2], [1]]}}]\n", "t.yaml:1:", "equally many"},
    {"pools: [{step: {decode_kv_tok: [1, 2, 3], decode_ms: [[1, 2]]}}]\n",
     "t.yaml:1:", "one row per"},
    {"pools: [{step: {form: table}}]\n", "t.yaml:1: pools[0]", "step"},
    {"pools:\n  - engine: {num_host_blocks: 9, enable_prefix_caching: false}\n",
     "t.yaml:2: pools[0]", "enable_prefix_caching"},
    {"pools:\n  - {name: a, engine: {num_shared_blocks: 9}}\n  - {name: b}\n"
     "  - {name: c, engine: {num_shared_blocks: 9, shared_read_gb_s: 3}}\n",
     "t.yaml:4: pools[2].engine", "that of pools[0]"},
    {"pools:\n  - {name: a, engine: {num_shared_blocks: 9}}\n"
     "  - {name: b, engine: {num_shared_blocks: 9, block_size: 32}}\n",
     "t.yaml:3: pools[1].engine", "block_size"},
    {"pools: [{domain: 'a{b}'}]\n", "t.yaml:1: pools[0].domain", "{i}"},
    {"policy_params: {sticky: {affinity: x}}\npools: [{}]\n",
     "t.yaml:1: policy_params.sticky.affinity", "expected a number"},
    {"policy_params: {sticky: 4}\npools: [{}]\n", "t.yaml:1:", "PARAMETER"},
    {"policy_params: 4\npools: [{}]\n", "t.yaml:1:", "PARAMETER"},
    {"policy_params: {sticky: {affinity: 1, affinity: 0}}\npools: [{}]\n", "t.yaml:1:", "twice"},
    {"policy_params: {stiky: {affinity: 1}}\npools: [{}]\n",
     "t.yaml:1: policy_params.stiky.affinity", "did you mean sticky?"},
    {"policy_params: {zzz: {affinity: 1}}\npools: [{}]\n",
     "t.yaml:1:", "expected one of: round_robin"},
    {"policy_params: {sticky: {afinity: 1}}\npools: [{}]\n",
     "t.yaml:1: policy_params.sticky.afinity", "did you mean affinity?"},
    {"policy_params: {sticky: {affinity: 1.5}}\npools: [{}]\n", "t.yaml:1:", "a number 0..1"},
    {"policy_params: {round_robin: {x: 1}}\npools: [{}]\n", "t.yaml:1:", "no parameters"},
    {"pools: [{}]\nfaults: 4\n", "t.yaml:2:", "list of faults"},
    {"pools: [{}]\nfaults:\n  - {worker: 0, kind: down}\n", "t.yaml:3: faults[0]",
     "at_ms and kind"},
    {"pools: [{}]\nfaults:\n  - {at_ms: 1, worker: 0}\n", "t.yaml:3:", "at_ms and kind"},
    {"pools: [{}]\nfaults:\n  - {at_ms: 1, kind: down}\n", "t.yaml:3:", "either worker or domain"},
    {"pools: [{}]\nfaults:\n  - {at_ms: 1, kind: down, worker: 0, domain: a}\n",
     "t.yaml:3:", "either worker or domain"},
    {"pools: [{}]\nfaults:\n  - {at_ms: 1, kind: slow, worker: 0}\n", "t.yaml:3:", "factor"},
    {"pools: [{}]\nfaults:\n  - {at_ms: 1, kind: down, worker: 0, factor: 2}\n",
     "t.yaml:3:", "factor"},
    {"pools: [{}]\nfaults:\n  - {at_ms: 1, kind: down, worker: 1}\n", "t.yaml:3: faults[0].worker",
     "0..0"},
    {"pools: [{domain: rack10}]\nfaults:\n  - {at_ms: 1, kind: down, domain: rack1}\n",
     "t.yaml:3: faults[0].domain", "rack1"},
    {"pools: [{}]\nfaults:\n  - {at_ms: -1, kind: down, worker: 0}\n",
     "t.yaml:3:", "expected a number"},
    {"a: b: c\n", "t.yaml:1:", "not YAML"},
    {"pools: [{}\n", "t.yaml:2:", "not YAML"},
    {"pools:\n\t- workers: 1\n", "t.yaml:2:", "not YAML"},
    {"pools: [{}]\n---\npools: [{}]\n", "t.yaml:2:", "second document"},
    {"pools: &a [{}]\n", "t.yaml:1:", "anchors"},
    {"pools: [{}]\nslo: *a\n", "t.yaml:2:", "aliases"},
    {"pools: !!seq [{}]\n", "t.yaml:1:", "tags"},
    {"? [a]\n: 1\n", "t.yaml:1:", "key"},
    {"[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]\n", "t.yaml:1:", "nested deeper"},
    {"pools: [{}]\n# caf\xe9\n", "t.yaml:2:", "UTF-8"},
    {"pools: [{name: \"\xed\xa0\x80\"}]\n", "t.yaml:1:", "UTF-8"},
    {"pools: [{name: \"\xc0\xaf\"}]\n", "t.yaml:1:", "UTF-8"},
};

static void every_mistake_has_its_line(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        const struct mistake *m = &mistakes[i];
        int rc = load(&one, m->text);
        stack_deinit(&one);
        if (rc != WEIR_E_INPUT)
            fail_msg("code %d for:\n%s", rc, m->text);
        if (strncmp(error, m->line, strlen(m->line)) != 0 || !strstr(error, m->says) ||
            strchr(error, '\n'))
            fail_msg("expected '%s ... %s', got '%s' for:\n%s", m->line, m->says, error, m->text);
    }
}

static void limits_of_a_file(void **state)
{
    (void)state;
    size_t len = (size_t)STACK_FILE_MAX_BYTES + 1;
    char *text = malloc(len);
    assert_non_null(text);
    memset(text, '#', len);
    assert_int_equal(stack_load_memory(&one, "t.yaml", text, len, dirs, error), WEIR_E_INPUT);
    assert_non_null(strstr(error, "larger than 16 MiB"));
    free(text);

    assert_int_equal(stack_load_memory(&one, "t.yaml", "a\0b", 3, dirs, error), WEIR_E_INPUT);
    assert_non_null(strstr(error, "0x00"));
    assert_int_equal(stack_load(&one, "/no/such/file.yaml", dirs, error), WEIR_E_IO);
    assert_non_null(strstr(error, "/no/such/file.yaml: cannot open"));
    assert_int_equal(stack_load(&one, "/", dirs, error), WEIR_E_IO);

    char *many = NULL;
    FILE *f = open_memstream(&many, &len);
    assert_non_null(f);
    (void)fputs("pools:\n", f);
    for (unsigned i = 0; i <= STACK_MAX_POOLS; i++)
        (void)fprintf(f, "  - name: p%u\n", i);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(load(&one, many), WEIR_E_INPUT);
    assert_non_null(strstr(error, "t.yaml:66: pools: more than 64 pools"));
    free(many);

    stack_deinit(&one);
}

/* Every knob of every policy at once fits, reads back, and reaches its place. */
static void every_policy_parameter(void **state)
{
    (void)state;
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    double values[STACK_MAX_POLICY_PARAMS];
    assert_non_null(f);
    (void)fputs("pools: [{}]\npolicy_params:\n", f);
    for (uint32_t i = 0; i < core_policies_count; i++) {
        const struct policy_ops *p = core_policies[i];
        (void)fprintf(f, p->n_params ? "  %s:\n" : "", p->name);
        for (uint32_t j = 0; j < p->n_params; j++)
            (void)fprintf(f, "    %s: %.17g\n", p->params[j].name, p->params[j].min);
    }
    assert_int_equal(fclose(f), 0);
    load_ok(&one, text);
    assert_true(one.n_policy_params > 20 && one.n_policy_params < STACK_MAX_POLICY_PARAMS);
    for (uint32_t i = 0; i < core_policies_count; i++) {
        stack_policy_values(&one, core_policies[i]->name, values);
        for (uint32_t j = 0; j < core_policies[i]->n_params; j++)
            assert_true(fabs(values[j] - core_policies[i]->params[j].min) < 1e-12);
    }
    free(text);
    stack_deinit(&one);
    load_ok(&one, "pools: [{}]\npolicy_params: {cache_aware: {balance_abs: 7}}\n");
    stack_policy_values(&one, "cache_aware", values);
    assert_true(fabs(values[0] - 0.3) < 1e-12 && fabs(values[1] - 7) < 1e-12);
    stack_deinit(&one);
}

static void byte_order_mark(void **state)
{
    (void)state;
    load_ok(&one, "\xef\xbb\xbfpools: [{}]\n");
    stack_deinit(&one);
}

/* ---- --set ---- */

static void set_one_or_all(void **state)
{
    (void)state;
    load_ok(&one, "pools: [{name: a}, {name: b}]");
    assert_int_equal(stack_set(&one, "max-num-seqs", "9", error), 0);
    assert_int_equal(one.pools[0].worker.engine.max_num_seqs, 9);
    assert_int_equal(one.pools[1].worker.engine.max_num_seqs, 9);
    assert_int_equal(stack_set(&one, "pools.b.workers", "5", error), 0);
    assert_int_equal(one.pools[0].workers, 1);
    assert_int_equal(one.pools[1].workers, 5);
    assert_int_equal(stack_set(&one, "pools.1.max_num_seqs", "3", error), 0);
    assert_int_equal(one.pools[0].worker.engine.max_num_seqs, 9);
    assert_int_equal(one.pools[1].worker.engine.max_num_seqs, 3);
    assert_int_equal(stack_set(&one, "step.w_ms", "2.5", error), 0);
    assert_int_equal(one.pools[0].worker.engine.step.w_ps, 2500000000);
    assert_int_equal(stack_set(&one, "slo.tpot_ms", "none", error), 0);
    assert_int_equal(one.slo_tpot_ps, PS_NEVER);
    assert_int_equal(stack_set(&one, "handoff", "destination_first", error), 0);
    assert_int_equal(one.handoff, HANDOFF_DESTINATION_FIRST);
    assert_int_equal(stack_set(&one, "policy_params.sticky.affinity", "0.7", error), 0);
    assert_int_equal(stack_set(&one, "policy_params.sticky.affinity", "0.6", error), 0);
    assert_int_equal(one.n_policy_params, 1);
    assert_true(fabs(one.policy_params[0].value - 0.6) < 1e-12);
    stack_deinit(&one);
}

static void set_refuses_and_changes_nothing(void **state)
{
    (void)state;
    static const char *const bad[][3] = {
        {"max_num_seqs", "0", "1..65536"},
        {"max_num_seqs", "", "got ''"},
        {"max_num_seqs", "[", "not YAML"},
        {"max_num_sequences", "4", "did you mean max_num_seqs?"},
        {"pools.7.workers", "4", "no such pool"},
        {"pools.zz.workers", "4", "no such pool"},
        {"pools.0", "4", "key of a pool"},
        {"pools", "4", "stack file"},
        {"faults", "4", "stack file"},
        {"profile", "x", "stack file"},
        {"pools.0.engine", "x", "stack file"},
        {"pools.0.slo.ttft_ms", "4", "unknown key"},
        {"engine.w_ms", "4", "belongs at pools[].step.w_ms"},
        {"slo.nothing", "4", "unknown key"},
        {"policy_params.sticky", "4", "POLICY.PARAMETER"},
        {"policy_params.sticky.affinity", "high", "expected a number"},
        {"policy", "lpm", "sglang"},
        {"", "4", "unknown key"},
        {".", "4", "unknown key"},
    };
    stack_default(&one, 3);
    char *before = printed_stack(&one);
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (stack_set(&one, bad[i][0], bad[i][1], error) != WEIR_E_INPUT)
            fail_msg("%s=%s accepted", bad[i][0], bad[i][1]);
        if (!strstr(error, bad[i][2]) || strncmp(error, "--set ", 6) != 0)
            fail_msg("%s=%s: expected '%s', got '%s'", bad[i][0], bad[i][1], bad[i][2], error);
    }
    char *after = printed_stack(&one);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

/* ---- what is shipped ---- */

static unsigned for_each_yaml(const char *dir, void (*visit)(const char *path))
{
    unsigned n = 0;
    DIR *d = opendir(dir);
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d));) {
        char path[1024];
        size_t len = strlen(e->d_name);
        if (len < 5 || strcmp(e->d_name + len - 5, ".yaml") != 0)
            continue;
        (void)snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        visit(path);
        n++;
    }
    (void)closedir(d);
    return n;
}

static void load_stack_file(const char *path)
{
    if (stack_load(&one, path, dirs, error))
        fail_msg("%s", error);
    stack_deinit(&one);
}

static void shipped_stacks_load(void **state)
{
    (void)state;
    assert_true(for_each_yaml(WEIR_SOURCE_DIR "/deploy/stacks", load_stack_file) >= 7);
}

static void reference_is_current(void **state)
{
    (void)state;
    char *now = NULL, *shipped = NULL;
    size_t now_len = 0, shipped_len = 0;
    FILE *f = open_memstream(&now, &now_len);
    assert_non_null(f);
    stack_print_reference(f, true);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(ytree_read_file(WEIR_SOURCE_DIR "/deploy/stack-reference.md", 1u << 20,
                                     &shipped, &shipped_len, error),
                     0);
    if (strcmp(now, shipped) != 0)
        fail_msg("run: weir check --reference > deploy/stack-reference.md");
    free(now);
    free(shipped);
}

#define RUN(status, ...) OUTPUT(check_main, &(status), "check", __VA_ARGS__)

static void check_command(void **state)
{
    (void)state;
    static const char pd[] = WEIR_SOURCE_DIR "/deploy/stacks/llama8b-h100-pd.yaml";
    int status = -1;
    assert_int_equal(setenv("WEIR_PROFILES", PROFILES, 1), 0);

    char *text = RUN(status, pd);
    assert_int_equal(status, 0);
    assert_non_null(strstr(text, ": ok\n"));
    assert_non_null(strstr(text, "432000"));
    assert_non_null(strstr(text, "SLO TTFT 2000 ms, TPOT 30 ms"));
    free(text);

    text = RUN(status, "--print", "--set", "pools.decode.workers=6", pd);
    assert_int_equal(status, 0);
    load_ok(&one, text);
    assert_int_equal(one.pools[1].workers, 6);
    stack_deinit(&one);
    free(text);

    text = RUN(status, "--set", "dp_size=4", "--set", "num_host_blocks=1000", pd);
    assert_int_equal(status, 0);
    assert_non_null(strstr(text, "pool decode: each worker has 4 ranks"));
    assert_non_null(strstr(text, "16000 tokens in host memory of each rank, 0 in a store"));
    free(text);

    text = RUN(status, "--set", "max_num_seqs", pd);
    assert_int_equal(status, 2);
    assert_non_null(strstr(text, "KEY=VALUE"));
    free(text);

    text = RUN(status, "/no/such/file", pd); /* the good one is still shown */
    assert_int_equal(status, 2);
    assert_non_null(strstr(text, "cannot open"));
    assert_non_null(strstr(text, ": ok\n"));
    free(text);

    text = RUN(status, "--help");
    assert_int_equal(status, 0);
    for (unsigned i = 0; i < n_stack_keys; i++)
        assert_non_null(strstr(text, stack_keys[i].help));
    free(text);

    text = RUN(status, "--nonsense");
    assert_int_equal(status, 2);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_stack),
        cmocka_unit_test(smallest_file),
        cmocka_unit_test(engine_defaults_follow_scheduler),
        cmocka_unit_test(serve_flags_as_written),
        cmocka_unit_test(profile_and_overrides),
        cmocka_unit_test(step_alone_starts_from_nothing),
        cmocka_unit_test(table_step),
        cmocka_unit_test(every_key_round_trips),
        cmocka_unit_test(lists_of_a_stack_round_trip),
        cmocka_unit_test(many_faults_are_sorted),
        cmocka_unit_test(domain_patterns),
        cmocka_unit_test(every_mistake_has_its_line),
        cmocka_unit_test(limits_of_a_file),
        cmocka_unit_test(every_policy_parameter),
        cmocka_unit_test(byte_order_mark),
        cmocka_unit_test(set_one_or_all),
        cmocka_unit_test(set_refuses_and_changes_nothing),
        cmocka_unit_test(shipped_stacks_load),
        cmocka_unit_test(reference_is_current),
        cmocka_unit_test(check_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
