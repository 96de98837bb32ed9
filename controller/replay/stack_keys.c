/* stack_keys.c - the one table of every key of stack files and profiles: names, types, ranges,
 * defaults, help. Validation, `weir check --help` and deploy/stack-reference.md come from it. */
#include "controller/replay/stack_keys.h"

#include <assert.h>
#include <string.h>

#include "controller/config/words.h"
#include "predictor/units.h"

#define MS_MAX ((double)(PS_LIMIT / PS_PER_MS))
#define COEF_MAX 1e9 /* a coefficient beyond this is a slip of units */

#define VLLM (1u << SCHED_VLLM)
#define SGLANG (1u << SCHED_SGLANG)
#define TRTLLM (1u << SCHED_TRTLLM)
#define DYNOSIM (1u << SCHED_DYNOSIM)
#define LINEAR (1u << STEP_LINEAR)
#define TABLE (1u << STEP_TABLE)
#define FIXED (1u << STEP_FIXED)
#define POLYNOMIAL (1u << STEP_POLYNOMIAL)

#define STACK_AT(field) .offset = offsetof(struct stack, field)
#define POOL_AT(field) .offset = offsetof(struct stack_pool, field)
#define ENGINE_AT(field) .offset = offsetof(struct engine_config, field)
#define STEP_AT(field) .offset = offsetof(struct step_params, field)
#define FAULT_AT(field) .offset = offsetof(struct fault, field)
#define PROFILE_AT(field) .offset = offsetof(struct profile, field)

/* clang-format off */
const struct key stack_keys[] = {
    /* ---- top level ---- */
    {SCOPE_STACK, KEY_INNER, "slo", .default_note = "as below",
     .help = "what a request must meet to count as goodput"},
    {SCOPE_STACK, KEY_MS, "slo.ttft_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "2000",
     STACK_AT(slo_ttft_ps), .help = "time to first token; none: not part of the SLO"},
    {SCOPE_STACK, KEY_MS, "slo.tpot_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "50",
     STACK_AT(slo_tpot_ps), .help = "mean time per output token after the first; none: not part of the SLO"},
    {SCOPE_STACK, KEY_MS, "slo.e2e_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "none",
     STACK_AT(slo_e2e_ps), .help = "arrival to last token; none: not part of the SLO"},

    {SCOPE_STACK, KEY_INNER, "telemetry", .default_note = "as below",
     .help = "what the router sees of the engines, and how late"},
    {SCOPE_STACK, KEY_MS, "telemetry.poll_ms", .unit = "ms", .max = MS_MAX, .def = "100",
     STACK_AT(telemetry_poll_ps), .help = "interval at which engine metrics are polled; 0: always fresh"},
    {SCOPE_STACK, KEY_MS, "telemetry.cache_event_ms", .unit = "ms", .max = MS_MAX, .def = "5",
     STACK_AT(cache_event_delay_ps),
     .help = "delay of KV cache events after the end of the step that made them"},

    {SCOPE_STACK, KEY_INNER, "admission", .default_note = "as below", .help = "the router's queue and retries"},
    {SCOPE_STACK, KEY_U32, "admission.queue_max_requests", .unit = "requests", .min = 0, .max = 1e8, .def = "100000",
     STACK_AT(queue_max_requests), .help = "requests held in the router's queue; the next one is rejected"},
    {SCOPE_STACK, KEY_MS, "admission.queue_timeout_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true,
     .def = "none", STACK_AT(queue_timeout_ps), .help = "longest wait in the router's queue before a reject"},
    {SCOPE_STACK, KEY_U32, "admission.max_inflight_per_worker", .unit = "requests", .max = 1e8, .def = "0",
     STACK_AT(max_inflight_per_worker),
     .help = "requests sent to one worker at a time, the rest waits in the router; 0: no limit"},
    {SCOPE_STACK, KEY_U32, "admission.max_retries", .unit = "retries", .max = 100, .def = "2",
     STACK_AT(max_retries), .help = "times a request lost with its worker is sent to another"},
    {SCOPE_STACK, KEY_BOOL, "admission.retry_partial", .def = "false", STACK_AT(retry_partial),
     .help = "retry also after part of the answer was streamed"},

    {SCOPE_STACK, KEY_INNER, "link", .default_note = "as below",
     .help = "the uplink of each prefill worker to the decode pool, shared fairly by its transfers"},
    {SCOPE_STACK, KEY_REAL, "link.latency_ms", .unit = "ms", .max = 1e6, .def = "0.05",
     STACK_AT(link.latency_ms), .help = "fixed time of one transfer"},
    {SCOPE_STACK, KEY_REAL, "link.bandwidth_gb_s", .unit = "GB/s", .max = ENGINE_MAX_GB_S, .def = "25",
     STACK_AT(link.bandwidth_gb_s), .help = "bandwidth (10^9 bytes a second); 0: no limit"},
    {SCOPE_STACK, KEY_BOOL, "link.unshared", .def = "false", STACK_AT(link.unshared),
     .help = "every transfer has the whole bandwidth to itself, as in the peer simulator (dynosim)"},
    {SCOPE_STACK, KEY_CHOICE, "handoff", .choices = "source_first destination_first", .def = "source_first",
     STACK_AT(handoff),
     .help = "prefill before a decode slot is chosen (vLLM, TensorRT-LLM), or a decode slot first (SGLang)"},
    {SCOPE_STACK, KEY_CHOICE, "transfer", .choices = "full_prompt destination_missing", .def = "full_prompt",
     STACK_AT(transfer), .help = "KV that is moved: the whole prompt, or what the decode worker has not cached"},
    {SCOPE_STACK, KEY_MS, "kv_lease_ms", .unit = "ms", .min = 1e-6, .max = MS_MAX, .none = true, .def = "none",
     STACK_AT(kv_lease_ps), .help = "how long the prefill side keeps KV; a pull that ends later is lost, and the request tried again"},

    {SCOPE_STACK, KEY_INNER, "policy_params", .default_note = "each policy's own",
     .help = "{POLICY: {PARAMETER: number}}, for example {sticky: {affinity: 0.8}}"},
    {SCOPE_STACK, KEY_INNER, "pools", .default_note = "required", .help = "list of pools of equal workers, see below"},
    {SCOPE_STACK, KEY_INNER, "faults", .default_note = "none", .help = "list of what goes wrong and when, see below"},

    /* ---- pools[] ---- */
    {SCOPE_POOL, KEY_TEXT, "name", .min = 1, POOL_AT(name), .cap = STACK_NAME_BYTES,
     .default_note = "pool0, pool1 ...", .help = "name in reports and for --set"},
    {SCOPE_POOL, KEY_CHOICE, "role", .choices = "both prefill decode", .def = "both",
     POOL_AT(worker.engine.role), .help = "what its workers do; prefill and decode pools come together"},
    {SCOPE_POOL, KEY_U32, "workers", .unit = "workers", .min = 1, .max = CLUSTER_MAX_WORKERS, .def = "1",
     POOL_AT(workers), .help = "number of workers (an engine with its own queue and KV; one DP group counts once)"},
    {SCOPE_POOL, KEY_TEXT, "profile", .def = "\"\"", POOL_AT(profile), .cap = STACK_PATH_BYTES,
     .default_note = "built in: Llama-3.1-8B, one H100",
     .help = "step times: a name in deploy/profiles, or a path (with a / or .yaml) from this file's folder"},
    {SCOPE_POOL, KEY_INNER, "step", .default_note = "the profile's",
     .help = "step times written out, or single values that replace the profile's, see below"},
    {SCOPE_POOL, KEY_INNER, "engine", .default_note = "the engine's own", .help = "the engine's flags, see below"},
    {SCOPE_POOL, KEY_MS, "startup_ms", .unit = "ms", .max = MS_MAX, .def = "0", POOL_AT(worker.startup_ps),
     .help = "time from start (or restart) to ready"},
    {SCOPE_POOL, KEY_BOOL, "starts_up", .def = "true", POOL_AT(worker.starts_up),
     .help = "ready at time 0; false: absent until a fault of kind up starts it"},
    {SCOPE_POOL, KEY_TEXT, "domain", .def = "\"\"", POOL_AT(worker.domain), .cap = CLUSTER_DOMAIN_BYTES,
     .help = "failure domain path, as rack0/node{i/8}/gpu{i}; {i} is the worker's index in the pool, {i/8} that "
             "divided by 8"},
    {SCOPE_POOL, KEY_U32, "gpus", .unit = "GPUs", .min = 1, .max = 65536, .def = "1",
     POOL_AT(worker.gpus), .default_note = "the profile's, else 1", .help = "GPUs of one worker (all dp_size ranks), for GPU-hours"},

    /* ---- pools[].engine ---- */
    {SCOPE_ENGINE, KEY_CHOICE, "scheduler", .aliases = "backend", .choices = "vllm sglang trtllm dynosim",
     ENGINE_AT(scheduler), .default_note = "vllm", .help = "whose scheduling rules; the other defaults follow it"},
    {SCOPE_ENGINE, KEY_CHOICE, "policy", .aliases = "scheduling_policy schedule_policy",
     .choices = "fcfs priority lpm", ENGINE_AT(policy),
     .help = "order of the engine's queue: fcfs, priority (vllm), lpm (sglang: longest cached prefix first)"},
    {SCOPE_ENGINE, KEY_U32, "block_size", .aliases = "page_size tokens_per_block", .unit = "tokens", .min = 1,
     .max = ENGINE_MAX_BLOCK_SIZE, ENGINE_AT(block_size), .help = "tokens of one KV block (sglang: page)"},
    {SCOPE_ENGINE, KEY_U32, "num_gpu_blocks", .aliases = "num_gpu_blocks_override", .unit = "blocks", .min = 1,
     .max = ENGINE_MAX_BLOCKS, ENGINE_AT(num_gpu_blocks),
     .help = "KV capacity as the engine logs it at start-up (with dp_size: of one rank); do not compute it"},
    {SCOPE_ENGINE, KEY_U32, "max_num_seqs", .aliases = "max_running_requests max_batch_size", .unit = "requests",
     .min = 1, .max = ENGINE_MAX_SEQS, ENGINE_AT(max_num_seqs), .help = "requests that run at the same time"},
    {SCOPE_ENGINE, KEY_U32, "max_num_batched_tokens", .aliases = "max_num_tokens", .unit = "tokens", .min = 1,
     .max = ENGINE_MAX_TOKENS, .only = VLLM | TRTLLM | DYNOSIM, ENGINE_AT(max_num_batched_tokens),
     .help = "tokens of one step"},
    {SCOPE_ENGINE, KEY_U32, "max_model_len", .aliases = "context_length max_seq_len", .unit = "tokens",
     .max = ENGINE_MAX_TOKENS, ENGINE_AT(max_model_len), .help = "longest prompt plus answer; 0: no limit"},
    {SCOPE_ENGINE, KEY_U32, "long_prefill_token_threshold", .unit = "tokens", .max = ENGINE_MAX_TOKENS,
     .only = VLLM, ENGINE_AT(long_prefill_token_threshold),
     .help = "largest chunk of one prompt in a step; 0: up to the step's budget"},
    {SCOPE_ENGINE, KEY_BOOL, "enable_prefix_caching",
     .aliases = "!no_enable_prefix_caching !disable_radix_cache enable_block_reuse",
     ENGINE_AT(enable_prefix_caching), .help = "reuse KV of equal prefixes"},
    {SCOPE_ENGINE, KEY_BOOL, "enable_chunked_prefill", .aliases = "!no_enable_chunked_prefill",
     .only = VLLM | TRTLLM | DYNOSIM, ENGINE_AT(enable_chunked_prefill),
     .help = "split a prompt over several steps"},
    {SCOPE_ENGINE, KEY_BOOL, "async_scheduling", .aliases = "!no_async_scheduling", .only = VLLM,
     ENGINE_AT(async_scheduling),
     .help = "a step is planned while the one before runs (vLLM's default on GPUs since 0.14)"},
    {SCOPE_ENGINE, KEY_CHOICE, "eviction", .aliases = "radix_eviction_policy", .choices = "lru lfu",
     ENGINE_AT(eviction), .help = "which cached blocks go first"},
    {SCOPE_ENGINE, KEY_U32, "max_prefill_tokens", .unit = "tokens", .min = 1, .max = ENGINE_MAX_TOKENS,
     .only = SGLANG, ENGINE_AT(max_prefill_tokens), .help = "prompt tokens of one prefill batch"},
    {SCOPE_ENGINE, KEY_U32, "chunked_prefill_size", .unit = "tokens", .min = 1, .max = ENGINE_MAX_TOKENS,
     .only = SGLANG, ENGINE_AT(chunked_prefill_size), .help = "largest chunk of a prompt"},
    {SCOPE_ENGINE, KEY_U32, "clip_max_new_tokens", .unit = "tokens", .min = 1, .max = ENGINE_MAX_TOKENS,
     .only = SGLANG, ENGINE_AT(clip_max_new_tokens),
     .help = "output length assumed at admission at most (SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)"},
    {SCOPE_ENGINE, KEY_REAL, "schedule_conservativeness", .max = ENGINE_MAX_CONSERVATIVENESS, .only = SGLANG,
     ENGINE_AT(schedule_conservativeness), .help = "how much room admission keeps for outputs to come"},
    {SCOPE_ENGINE, KEY_CHOICE, "dynosim_version", .choices = "1.4.2 1.6.1", .only = DYNOSIM,
     ENGINE_AT(dynosim_version), .help = "which version of the peer simulator to follow"},
    {SCOPE_ENGINE, KEY_CHOICE, "dynosim_engine", .choices = "vllm sglang", .only = DYNOSIM,
     ENGINE_AT(dynosim_engine), .help = "which engine the peer simulator imitates; sglang: version 1.6.1, phase both"},
    {SCOPE_ENGINE, KEY_U32, "num_host_blocks", .aliases = "num_cpu_blocks", .unit = "blocks",
     .max = ENGINE_MAX_BLOCKS, ENGINE_AT(num_host_blocks),
     .help = "KV blocks kept in host memory, of each engine (with dp_size: of each rank); 0: off"},
    {SCOPE_ENGINE, KEY_REAL, "h2d_bandwidth_gb_s", .unit = "GB/s", .max = ENGINE_MAX_GB_S,
     ENGINE_AT(h2d_bandwidth_gb_s), .help = "host to GPU; 0: no limit"},
    {SCOPE_ENGINE, KEY_REAL, "d2h_bandwidth_gb_s", .unit = "GB/s", .max = ENGINE_MAX_GB_S,
     ENGINE_AT(d2h_bandwidth_gb_s), .help = "GPU to host; 0: no limit"},
    {SCOPE_ENGINE, KEY_U32, "num_shared_blocks", .unit = "blocks", .max = ENGINE_MAX_BLOCKS,
     ENGINE_AT(num_shared_blocks), .help = "KV blocks in one store that all workers share which set this; 0: off"},
    {SCOPE_ENGINE, KEY_REAL, "shared_first_byte_ms", .unit = "ms", .max = ENGINE_MAX_FIRST_BYTE_MS,
     ENGINE_AT(shared_first_byte_ms), .help = "latency of a read or write of the shared store, besides its bandwidth"},
    {SCOPE_ENGINE, KEY_REAL, "shared_read_gb_s", .unit = "GB/s", .max = ENGINE_MAX_GB_S,
     ENGINE_AT(shared_read_gb_s), .help = "read bandwidth of the shared store, all workers together; 0: no limit"},
    {SCOPE_ENGINE, KEY_REAL, "shared_write_gb_s", .unit = "GB/s", .max = ENGINE_MAX_GB_S,
     ENGINE_AT(shared_write_gb_s), .help = "write bandwidth of the shared store, all workers together; 0: no limit"},
    {SCOPE_ENGINE, KEY_U64, "kv_bytes_per_token", .unit = "bytes", .max = (double)ENGINE_MAX_KV_BYTES,
     ENGINE_AT(kv_bytes_per_token), .default_note = "the profile's, else 0",
     .help = "KV of one token over all layers, for transfers and tiers; 0: they take no time"},
    {SCOPE_ENGINE, KEY_U32, "dp_size", .aliases = "data_parallel_size", .unit = "ranks", .min = 1,
     .max = ENGINE_MAX_DP, ENGINE_AT(dp_size),
     .help = "attention data-parallel ranks behind one worker, in step with each other; all limits are those of one"},

    /* ---- step ---- */
    {SCOPE_STEP, KEY_CHOICE, "form", .choices = "linear table fixed polynomial", .def = "linear",
     STEP_AT(form), .help = "linear: W + d0*B + k*K + p*sum(n) + q*sum(n*(c + n/2))"},
    {SCOPE_STEP, KEY_REAL, "w_ms", .unit = "ms", .max = COEF_MAX, .def = "0", .only = LINEAR, STEP_AT(w_ms),
     .help = "W: every step (reading the weights)"},
    {SCOPE_STEP, KEY_REAL, "d0_ms_per_req", .unit = "ms/request", .max = COEF_MAX, .def = "0", .only = LINEAR,
     STEP_AT(d0_ms_per_req), .help = "d0: per decoding request"},
    {SCOPE_STEP, KEY_REAL, "k_ms_per_tok", .unit = "ms/token", .max = COEF_MAX, .def = "0", .only = LINEAR,
     STEP_AT(k_ms_per_tok), .help = "k: per token of KV read by decoding requests"},
    {SCOPE_STEP, KEY_REAL, "p_ms_per_tok", .unit = "ms/token", .max = COEF_MAX, .def = "0", .only = LINEAR,
     STEP_AT(p_ms_per_tok), .help = "p: per prompt token"},
    {SCOPE_STEP, KEY_REAL, "q_ms_per_tok2", .unit = "ms/token^2", .max = COEF_MAX, .def = "0", .only = LINEAR,
     STEP_AT(q_ms_per_tok2), .help = "q: per prompt token and token of context before it (attention)"},
    {SCOPE_STEP, KEY_REAL, "mix_ms_per_tok", .unit = "ms/token", .max = COEF_MAX, .def = "0", .only = LINEAR,
     STEP_AT(mix_ms_per_tok), .help = "per token of KV read by decoding requests in a step that also prefills, on top of k"},
    {SCOPE_STEP, KEY_REAL, "prefill_floor_ms", .unit = "ms", .max = COEF_MAX, .def = "0", .only = LINEAR,
     STEP_AT(prefill_floor_ms), .help = "prefill work shorter than this is hidden under W; 0: off"},
    {SCOPE_STEP, KEY_U32, "moe_experts", .unit = "experts", .max = 65536, .def = "0", .only = LINEAR,
     STEP_AT(moe_experts), .help = "experts per layer; 0: W does not depend on the batch"},
    {SCOPE_STEP, KEY_U32, "moe_active", .unit = "experts", .max = 65536, .def = "0", .only = LINEAR,
     STEP_AT(moe_active), .help = "experts one token uses"},
    {SCOPE_STEP, KEY_REAL, "moe_w_share", .max = 1, .def = "0", .only = LINEAR, STEP_AT(moe_w_share),
     .help = "share of w_ms that is expert weights; it grows with the experts a batch touches"},
    {SCOPE_STEP, KEY_U32, "spec_gamma", .aliases = "num_speculative_tokens", .unit = "tokens",
     .max = STEP_SPEC_MAX, .def = "0", STEP_AT(spec_gamma), .help = "draft tokens per step; 0: no speculation"},
    {SCOPE_STEP, KEY_REALS, "spec_accept", .max = 1, .def = "[]", STEP_AT(spec_accept), .cap = STEP_SPEC_MAX,
     .help = "chance that draft token 1, 2 ... is accepted if the one before was"},
    {SCOPE_STEP, KEY_REAL, "spec_draft_ms", .unit = "ms", .max = COEF_MAX, .def = "0", STEP_AT(spec_draft_ms),
     .help = "cost of one draft token for the batch"},
    {SCOPE_STEP, KEY_REAL, "fixed_prefill_ms", .unit = "ms", .max = COEF_MAX, .def = "0", .only = FIXED,
     STEP_AT(fixed_prefill_ms), .help = "a step with prompt tokens"},
    {SCOPE_STEP, KEY_REAL, "fixed_decode_ms", .unit = "ms", .max = COEF_MAX, .def = "0", .only = FIXED,
     STEP_AT(fixed_decode_ms), .help = "a step with decoding requests"},
    {SCOPE_STEP, KEY_REAL, "pa", .unit = "ms/token^2", .min = -COEF_MAX, .max = COEF_MAX, .def = "0",
     .only = POLYNOMIAL, STEP_AT(pa), .help = "prefill of T tokens: pa*T^2 + pb*T + pc"},
    {SCOPE_STEP, KEY_REAL, "pb", .unit = "ms/token", .min = -COEF_MAX, .max = COEF_MAX, .def = "0",
     .only = POLYNOMIAL, STEP_AT(pb), .help = "see pa"},
    {SCOPE_STEP, KEY_REAL, "pc", .unit = "ms", .min = -COEF_MAX, .max = COEF_MAX, .def = "0", .only = POLYNOMIAL,
     STEP_AT(pc), .help = "see pa"},
    {SCOPE_STEP, KEY_REAL, "da", .unit = "ms", .min = -COEF_MAX, .max = COEF_MAX, .def = "0", .only = POLYNOMIAL,
     STEP_AT(da), .help = "decode with a share u of the KV in use: max(1, da*u^2 + db*u + dc)"},
    {SCOPE_STEP, KEY_REAL, "db", .unit = "ms", .min = -COEF_MAX, .max = COEF_MAX, .def = "0", .only = POLYNOMIAL,
     STEP_AT(db), .help = "see da"},
    {SCOPE_STEP, KEY_REAL, "dc", .unit = "ms", .min = -COEF_MAX, .max = COEF_MAX, .def = "0", .only = POLYNOMIAL,
     STEP_AT(dc), .help = "see da"},
    {SCOPE_STEP, KEY_REALS, "prefill_tok", .unit = "tokens", .max = COEF_MAX, .def = "[]", .only = TABLE,
     STEP_AT(prefill_x), .cap = STEP_TABLE_MAX, .count_offset = offsetof(struct step_params, n_prefill),
     .help = "new tokens at the points of prefill_ms, increasing"},
    {SCOPE_STEP, KEY_REALS, "prefill_ms", .unit = "ms", .max = COEF_MAX, .def = "[]", .only = TABLE,
     STEP_AT(prefill_y), .cap = STEP_TABLE_MAX, .count_offset = offsetof(struct step_params, n_prefill),
     .help = "measured prefill time at each point of prefill_tok"},
    {SCOPE_STEP, KEY_REALS, "decode_kv_tok", .unit = "tokens", .max = 1e15, .def = "[]", .only = TABLE,
     STEP_AT(kv_x), .cap = STEP_TABLE_MAX, .count_offset = offsetof(struct step_params, n_kv),
     .help = "KV tokens in use at the rows of decode_ms, increasing"},
    {SCOPE_STEP, KEY_REALS, "decode_ctx_tok", .unit = "tokens", .max = COEF_MAX, .def = "[]", .only = TABLE,
     STEP_AT(ctx_x), .cap = STEP_TABLE_MAX, .count_offset = offsetof(struct step_params, n_ctx),
     .help = "mean context length at the columns of decode_ms, increasing"},
    {SCOPE_STEP, KEY_GRID, "decode_ms", .unit = "ms", .max = COEF_MAX, .def = "[]", .only = TABLE,
     STEP_AT(itl_y), .cap = STEP_TABLE_MAX,
     .help = "measured decode step time: one row per decode_kv_tok, one column per decode_ctx_tok"},
    {SCOPE_STEP, KEY_REAL, "scale", .min = 0, .max = 1e6, .def = "1", STEP_AT(scale),
     .help = "multiplies every time"},

    /* ---- faults[] ---- */
    {SCOPE_FAULT, KEY_MS, "at_ms", .unit = "ms", .max = MS_MAX, FAULT_AT(at_ps), .default_note = "required",
     .help = "when, from the start of the replay"},
    {SCOPE_FAULT, KEY_U32, "worker", .max = CLUSTER_MAX_WORKERS - 1, FAULT_AT(worker),
     .default_note = "this or domain", .help = "whom: index over all pools in their order, from 0"},
    {SCOPE_FAULT, KEY_TEXT, "domain", .min = 1, FAULT_AT(domain), .cap = CLUSTER_DOMAIN_BYTES,
     .default_note = "this or worker", .help = "whom: every worker at or below this failure domain"},
    {SCOPE_FAULT, KEY_CHOICE, "kind", .choices = "down up slow drain", FAULT_AT(kind), .default_note = "required",
     .help = "down: dies, with its requests and KV; up: starts again, empty; slow: steps take `factor` times as "
             "long; drain: takes no new requests, and is down when the last has left"},
    {SCOPE_FAULT, KEY_REAL, "factor", .min = 1e-3, .max = 1e6, .def = "1", FAULT_AT(factor),
     .help = "of kind slow, from then on; 1 ends it"},

    /* ---- a profile file ---- */
    {SCOPE_PROFILE, KEY_TEXT, "source", .min = 1, PROFILE_AT(source), .cap = STACK_PATH_BYTES,
     .default_note = "required", .help = "where the numbers come from: fit, roofline, published ..."},
    {SCOPE_PROFILE, KEY_TEXT, "model", .def = "\"\"", PROFILE_AT(model), .cap = STACK_PATH_BYTES,
     .help = "model, for people"},
    {SCOPE_PROFILE, KEY_TEXT, "system", .def = "\"\"", PROFILE_AT(system), .cap = STACK_NAME_BYTES,
     .help = "GPU, for people"},
    {SCOPE_PROFILE, KEY_TEXT, "engine", .def = "\"\"", PROFILE_AT(engine), .cap = STACK_NAME_BYTES,
     .help = "engine measured, for people"},
    {SCOPE_PROFILE, KEY_TEXT, "version", .def = "\"\"", PROFILE_AT(version), .cap = STACK_NAME_BYTES,
     .help = "its version, for people"},
    {SCOPE_PROFILE, KEY_TEXT, "precision", .def = "\"\"", PROFILE_AT(precision), .cap = STACK_NAME_BYTES,
     .help = "of the weights, for people"},
    {SCOPE_PROFILE, KEY_U32, "tp", .aliases = "tensor_parallel_size", .unit = "GPUs", .min = 1,
     .max = 65536, .def = "1", PROFILE_AT(tp),
     .help = "tensor-parallel size, for people (the step times already have it)"},
    {SCOPE_PROFILE, KEY_U32, "gpus", .unit = "GPUs", .min = 1, .max = 65536, .def = "1", PROFILE_AT(gpus),
     .help = "GPUs of one worker"},
    {SCOPE_PROFILE, KEY_U64, "kv_bytes_per_token", .unit = "bytes", .max = (double)ENGINE_MAX_KV_BYTES, .def = "0",
     PROFILE_AT(kv_bytes_per_token), .help = "KV of one token over all layers; 0: not known"},
    {SCOPE_PROFILE, KEY_INNER, "step", .default_note = "required", .help = "as pools[].step"},
};
/* clang-format on */

const unsigned n_stack_keys = sizeof stack_keys / sizeof stack_keys[0];
static_assert(sizeof stack_keys / sizeof stack_keys[0] < STACK_KEYS_MAX, "raise STACK_KEYS_MAX");
static_assert(sizeof(enum handoff_mode) == sizeof(uint32_t), "KEY_CHOICE stores 32 bits");

static const char *const paths[SCOPE_COUNT] = {
    "", "pools[]", "pools[].engine", "pools[].step", "faults[]", "",
};

const char *scope_path(enum key_scope scope)
{
    return paths[scope];
}

/* Flags that a serve command often has beside those of the table: where what they say is said here.
 * NULL: none of them. */
static const char *other_flag(int scope, const char *plain)
{
    if (scope != SCOPE_ENGINE)
        return NULL;
    static const struct {
        const char *flags, *advice;
    } others[] = {
        {"tensor_parallel_size tp_size tp pipeline_parallel_size pp_size enable_expert_parallel ep_size "
         "quantization dtype enforce_eager model model_path",
         "the step times have it: choose a profile of such a system, and remove the flag"},
        {"gpu_memory_utilization mem_fraction_static kv_cache_free_gpu_mem_fraction "
         "free_gpu_memory_fraction kv_cache_memory_bytes max_total_tokens",
         "only the capacity counts: write num_gpu_blocks as the engine logs it, and remove the flag"},
        {"kv_cache_dtype",
         "num_gpu_blocks and kv_bytes_per_token have it: write those, and remove the flag"},
        {"speculative_config speculative_algorithm num_speculative_tokens speculative_num_draft_tokens",
         "speculation belongs to the step times: pools[].step.spec_gamma and spec_accept"},
        {"host port served_model_name trust_remote_code seed uvicorn_log_level api_key download_dir "
         "tokenizer chat_template tool_call_parser reasoning_parser enable_auto_tool_choice "
         "disable_log_requests enable_metrics log_level kv_events_config kv_transfer_config",
         "it has no effect on a simulation: remove the flag"},
    };
    char word[WORD_BYTES];
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        for (const char *at = others[i].flags; (at = word_next(at, word));) {
            if (strcmp(word, plain) == 0)
                return others[i].advice;
        }
    }
    return NULL;
}

const struct key_table stack_table = {.keys = stack_keys,
                                      .n = sizeof stack_keys / sizeof stack_keys[0],
                                      .paths = paths,
                                      .apart = SCOPE_PROFILE,
                                      .lists_all = "weir check --help",
                                      .advice = other_flag};

const struct key *key_find(enum key_scope scope, const char *prefix, const char *name,
                           bool *negated)
{
    return keys_find(&stack_table, (int)scope, prefix, name, negated);
}

void key_defaults(enum key_scope scope, void *base)
{
    keys_defaults(&stack_table, (int)scope, base);
}

void key_suggest(enum key_scope scope, const char *prefix, const char *name, char *out, size_t n)
{
    keys_suggest(&stack_table, (int)scope, prefix, name, out, n);
}
