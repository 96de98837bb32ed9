/* profile.h - a profile: the step times of one model on one kind of worker, as a YAML file.
 *
 * profile_load (in stack.h) reads one; profile_find looks a name up first. `weir profile` derives one
 * from a model's config.json and a GPU's datasheet by the roofline, and says in the file that it did.
 */
#ifndef WEIR_PROFILE_H
#define WEIR_PROFILE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "controller/replay/stack.h"

#define MODEL_CONFIG_MAX_BYTES (4u << 20)
#define MODEL_MAX_COUNT 1000000000.0 /* any size in a config.json: a larger one is a mistake */

/* Where profile names are looked up, in order: the folder in $WEIR_PROFILES, deploy/profiles below the
 * working directory, and beside the program (share/weir/profiles of an installation, deploy/profiles of
 * a build tree). list is for stack_load. */
#define PROFILE_DIRS_MAX 6
struct profile_dirs {
    char text[PROFILE_DIRS_MAX][STACK_PATH_BYTES * 4];
    const char *list[PROFILE_DIRS_MAX + 1];
};
void profile_dirs_init(struct profile_dirs *d);

/* Finds a profile: a path (with a / or ending in .yaml) from the folder of stack_path, a name in
 * profile_dirs (NULL-terminated; NULL: none), and reads it. `where` starts the message. 0,
 * WEIR_E_INPUT or WEIR_E_NOMEM. */
WEIR_NODISCARD int profile_find(struct step_params *p, uint64_t *kv_bytes_per_token, uint32_t *gpus,
                                const char *name, const char *stack_path,
                                const char *const *profile_dirs, const char *where, char *error);

/* profile_load from memory; name is for messages. */
WEIR_NODISCARD int profile_load_memory(struct step_params *p, uint64_t *kv_bytes_per_token,
                                       uint32_t *gpus, const char *name, const char *text,
                                       size_t len, char *error);

/* A GPU as its datasheet has it: dense rates, without sparsity. 0: not supported. */
struct gpu_spec {
    const char *name, *aliases;
    double memory_gb, bandwidth_gb_s;
    double bf16_tflops, fp8_tflops, fp4_tflops;
    const char *source;
};

const struct gpu_spec *gpu_find(const char *name); /* NULL: not in the table */
const struct gpu_spec *gpu_at(size_t i);           /* the table, row by row; NULL: past its end */

/* A transformer as config.json describes it, reduced to what the roofline needs. Sizes are numbers of
 * parameters over all layers. */
struct model_shape {
    char type[STACK_NAME_BYTES], quantization[STACK_NAME_BYTES];
    uint32_t layers, hidden, heads, kv_heads, head_dim;
    bool mla; /* latent attention: one compressed KV per token */
    uint32_t kv_lora_rank, qk_rope_dim, qk_nope_dim, v_dim;
    uint32_t experts, experts_active; /* 0: dense */
    double embedding;                 /* looked up, not read through */
    double head;                      /* output projection, read every step */
    bool tied;                        /* head and embedding are the same weights */
    double attention, mlp;            /* mlp: dense layers, shared experts, routers */
    double expert;                    /* all routed experts */
    double weight_bytes;              /* per parameter of the layers, as the file says */
    double other_bytes;               /* per parameter left out of the quantization: 2 */
    bool quantized_experts_only;
    bool sliding;   /* some layers see a window only: KV is an upper bound */
    bool plain_mlp; /* two matrices instead of three */
};

/* Reads a Hugging Face config.json. dtype: type of the weights instead of the file's
 * quantization_config; NULL: as the file says. 0, WEIR_E_INPUT or WEIR_E_NOMEM; error as stack_load. */
WEIR_NODISCARD int model_shape_read(struct model_shape *m, const char *name, const char *json,
                                    size_t len, const char *dtype, char *error);

/* Bytes per parameter of a named type (bf16, fp16, fp8, int8, int4, fp4, mxfp4); 0: no such. */
double dtype_bytes(const char *name);

/* Usual shares of the datasheet's bandwidth and FLOPS that are reached (engine-model.md 3.1, 3.3). */
#define ROOFLINE_EFF 0.8
#define ROOFLINE_MFU 0.45

/* What the roofline is asked. A worker is tp * pp * dp GPUs: tensors are split over tp, layers over pp stages, and
 * dp copies of the attention layers (data-parallel ranks, in step) share one set of experts, which is spread
 * over tp * dp GPUs, by expert or by slice: to the roofline that is the same. */
struct roofline {
    const struct gpu_spec *gpu;
    uint32_t tp, pp, dp;
    double weight_bytes, kv_bytes; /* per parameter of the layers, per KV element */
    double eff, mfu;               /* share of bandwidth and of FLOPS that is reached, 0..1 */
};

/* Dense TFLOPS at which weights of this many bytes are multiplied: fp8 and fp4 where the GPU has
 * them, else they are unpacked to bf16, as int4 always is. */
double roofline_tflops(const struct gpu_spec *gpu, double weight_bytes);

/* KV bytes of one token over all layers. */
double model_kv_bytes_per_token(const struct model_shape *m, double kv_bytes);

/* Bytes of all weights over all GPUs, and of those that one step reads (all but the embedding). */
double model_weight_bytes(const struct model_shape *m, double weight_bytes);
double model_step_bytes(const struct model_shape *m, double weight_bytes);

/* The same per GPU: weights kept there, and what a step reads there times the stages it goes through. */
double roofline_gpu_weight_bytes(const struct model_shape *m, const struct roofline *r);
double roofline_gpu_step_bytes(const struct model_shape *m, const struct roofline *r);
/* GPUs that a request's KV is split over (KV heads, while there are enough; a latent KV is on all of them). */
double roofline_kv_split(const struct model_shape *m, const struct roofline *r);

/* Step times by the roofline (DESIGN 4; engine-model.md 3.1): W from weight bytes over bandwidth, k from KV bytes,
 * p and q from operations over FLOPS. d0 stays 0: the roofline says nothing about it, nor about communication.
 * Stages run one after the other, so pp changes nothing here; that several batches are under way in
 * them is not modelled. */
void roofline_step(struct step_params *p, const struct model_shape *m, const struct roofline *r);

#endif
