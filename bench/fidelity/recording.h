/* recording.h - one recorded run of a real engine: its limits, and when each request came and was answered.
 *
 * A recording is a folder with requests.jsonl and the engine's limits, in one of two forms:
 *
 *   GPU runs   meta.json (engine_kwargs, kv_cache, resolved_config) and requests.jsonl with arrival_time (wall
 *              clock of the API server), queued_ts, first_token_ts, last_token_ts (clock of the engine core),
 *              input_toks, output_toks
 *   CPU runs   config.json (engine) and requests.jsonl with arrival, send, ttft_ms, e2e_ms, prompt, output,
 *              hash_ids, all on the client's clock; the times end when the client has the token
 */
#ifndef WEIR_FIDELITY_RECORDING_H
#define WEIR_FIDELITY_RECORDING_H

#include <stdbool.h>
#include <stdint.h>

#include "controller/replay/fit.h"

#define RECORDING_NAME_BYTES 96
#define RECORDING_CLASS_BYTES 256
#define RECORDING_MAX_REQUESTS 100000u

struct recording {
    char name[RECORDING_NAME_BYTES]; /* of the folder */
    char class_name
        [RECORDING_CLASS_BYTES]; /* model, device, engine version, parallelism: what a fit is valid for */
    struct worker_config worker;
    struct step_params step;  /* what is known of the model's form: experts */
    struct step_params prior; /* the roofline's, where model and device are known */
    bool has_prior;
    bool
        blocks_assumed; /* num_gpu_blocks is not in the recording: enough for every request at once */
    bool two_clocks;    /* queued_ps is needed to bring arrival and token times together */
    uint32_t n, left_out;         /* left out: aborted or failed */
    struct fit_request *requests; /* in order of arrival; token times on the engine's clock */
    int64_t *queued_ps;           /* engine's clock */
    uint64_t *keys;               /* names of the prompts' blocks */
};

/* Prints one line to stderr and returns false when a file is missing or wrong. */
bool recording_load(struct recording *r, const char *folder);
void recording_free(struct recording *r);

/* Brings token times to the clock of the arrivals, as seen from requests [from, to): the quickest one went from
 * the API server to the engine in no time. Call it once. */
void recording_align(struct recording *r, uint32_t from, uint32_t to);

/* vLLM plans one step ahead (async_scheduling) since 0.14, unless told otherwise. */
bool vllm_plans_ahead(const char *version);

#endif
