/* stack.h - the stack file: what is being served on, as a user writes it in YAML. Every key is one row
 * of one table (stack_keys), from which loading, validation, defaults, `weir check --help` and
 * deploy/stack-reference.md come.
 */
#ifndef WEIR_STACK_H
#define WEIR_STACK_H

#include <stddef.h>
#include <stdio.h>

#include "controller/config/yaml_tree.h"
#include "predictor/cluster.h"

#define STACK_MAX_POOLS 64
#define STACK_NAME_BYTES 64
#define STACK_PATH_BYTES 256
#define STACK_ERROR_BYTES YTREE_ERROR_BYTES
#define STACK_FILE_MAX_BYTES YTREE_MAX_BYTES /* a larger stack or profile file is refused */
#define STACK_MAX_POLICY_PARAMS 64           /* more than all policies have together */

struct stack_pool {
    char name[STACK_NAME_BYTES];
    char profile[STACK_PATH_BYTES]; /* name or path; empty: inline step or default */
    bool step_written; /* step is the file's own, not the profile's or the built-in one */
    uint32_t workers;
    struct step_params step; /* as written; worker.engine.step is made of it, and borrows a table */
    /* one description for all workers of the pool; in its domain {i} is the worker's index in the pool */
    struct worker_config worker;
};

struct stack_policy_param {
    char policy[STACK_NAME_BYTES], name[STACK_NAME_BYTES];
    double value;
};

struct stack {
    struct stack_pool pools[STACK_MAX_POOLS];
    uint32_t n_pools;

    /* hand-over between prefill and decode pools */
    struct link_config link; /* one per prefill worker's uplink */
    enum handoff_mode handoff;
    enum transfer_mode transfer;
    int64_t kv_lease_ps; /* prefill side frees the KV then; PS_NEVER: never */

    /* what the shadow sees, and how late (DESIGN 2) */
    int64_t telemetry_poll_ps;    /* 0: always fresh */
    int64_t cache_event_delay_ps; /* after the end of the step that made them */

    /* SLO for goodput; PS_NEVER: not part of it */
    int64_t slo_ttft_ps, slo_tpot_ps, slo_e2e_ps;

    /* admission and retry */
    uint32_t queue_max_requests;
    int64_t queue_timeout_ps;
    uint32_t max_inflight_per_worker;
    uint32_t max_retries;
    bool retry_partial;

    struct stack_policy_param policy_params[STACK_MAX_POLICY_PARAMS];
    uint32_t n_policy_params;

    struct fault *faults; /* sorted by time; owned */
    uint32_t n_faults;
};

/* The stack without a file: `workers` aggregated vLLM workers with DESIGN's defaults (Llama-3.1-8B on
 * H100, 16,384 blocks of 512 tokens as the peer's replay has it) and SLO TTFT 2 s, TPOT 50 ms. */
void stack_default(struct stack *s, uint32_t workers);

/* Reads a YAML stack file. 0, WEIR_E_INPUT, WEIR_E_IO or WEIR_E_NOMEM; error (STACK_ERROR_BYTES) then
 * holds one line: file, line, key, what was expected, what to do (a misspelt key names its nearest).
 * profile_dirs: NULL-terminated list searched for profile names. stack_deinit frees in any case. */
WEIR_NODISCARD int stack_load(struct stack *s, const char *path, const char *const *profile_dirs,
                              char *error);
WEIR_NODISCARD int stack_load_memory(struct stack *s, const char *name, const char *text,
                                     size_t len, const char *const *profile_dirs, char *error);

/* Sets one key as on the command line ("--set pools.0.engine.max_num_seqs=64" or a bare engine flag name
 * applied to every pool). Same errors. */
WEIR_NODISCARD int stack_set(struct stack *s, const char *key, const char *value, char *error);

/* stack_set for each of n "KEY=VALUE" in turn. */
WEIR_NODISCARD int stack_set_all(struct stack *s, const char *const *sets, uint32_t n, char *error);

/* Whole-stack rules that no single key can state (zero workers, prefill without decode ...). 0,
 * WEIR_E_INPUT or WEIR_E_NOMEM. stack_load has done it; needed again after stack_set. */
WEIR_NODISCARD int stack_check(const struct stack *s, const char *name, char *error);

/* Reads a profile (deploy/profiles/NAME.yaml) into step parameters. */
WEIR_NODISCARD int profile_load(struct step_params *p, uint64_t *kv_bytes_per_token, uint32_t *gpus,
                                const char *path, char *error);

/* The values of a policy's knobs, in the order of its table: the stack's, else the defaults. */
void stack_policy_values(const struct stack *s, const char *policy,
                         double out[STACK_MAX_POLICY_PARAMS]);

/* The failure-domain path of a pool's worker: its pattern with {i} (index in the pool) and {i/N} filled
 * in. False: malformed or too long (stack_check refuses those). */
bool stack_worker_domain(const struct stack_pool *p, uint32_t index,
                         char out[CLUSTER_DOMAIN_BYTES]);

/* Whether a worker's path is at or below a fault's domain: "rack1/node0" is in "rack1", not in "rack". */
bool stack_domain_within(const char *path, const char *domain);

void stack_deinit(struct stack *s);

/* Prints every key: name, type, unit, default, meaning. markdown: as deploy/stack-reference.md. */
void stack_print_reference(FILE *out, bool markdown);

/* Prints a stack as YAML that stack_load reads back, alone: step times are written out and a profile's
 * name stays as a comment. */
void stack_print(FILE *out, const struct stack *s);

/* Prints step times as the keys of `step:`, each line behind indent. */
void stack_print_step(FILE *out, const char *indent, const struct step_params *p);

#endif
