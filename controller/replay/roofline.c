/* roofline.c - config.json and a GPU's datasheet to step times. The arithmetic is engine-independent:
 * what must be read from memory and multiplied, over what the GPU can read and multiply. */
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <yyjson.h>

#include "controller/replay/profile.h"
#include "controller/config/yaml_tree.h"

/* Dense rates with fp32 accumulation, no sparsity: half of a datasheet's "with sparsity" figure. */
static const struct gpu_spec gpus[] = {
    {"a100_40g", "a100_sxm_40g", 40, 1555, 312, 0, 0, "NVIDIA A100 datasheet, SXM 40 GB"},
    {"a100_80g", "a100 a100_sxm", 80, 2039, 312, 0, 0, "NVIDIA A100 datasheet, SXM 80 GB"},
    {"h100_sxm", "h100", 80, 3350, 989.4, 1978.9, 0, "NVIDIA H100 datasheet, SXM"},
    {"h100_pcie", "", 80, 2000, 756, 1513, 0, "NVIDIA H100 datasheet, PCIe 80 GB"},
    {"h100_nvl", "", 94, 3900, 835, 1671, 0, "NVIDIA H100 datasheet, NVL, one card"},
    {"gh200", "", 96, 4000, 989.4, 1978.9, 0, "NVIDIA GH200 datasheet, HBM3 96 GB"},
    {"h200_sxm", "h200", 141, 4800, 989.4, 1978.9, 0, "NVIDIA H200 datasheet, SXM"},
    {"h20", "", 96, 4000, 148, 296, 0, "NVIDIA H20 as published by server vendors"},
    {"b200_sxm", "b200", 180, 8000, 2250, 4500, 9000, "NVIDIA DGX B200 datasheet, an eighth"},
    {"l4", "", 24, 300, 121, 242, 0, "NVIDIA L4 datasheet"},
    {"l40s", "", 48, 864, 362, 733, 0, "NVIDIA L40S datasheet"},
    {"a10", "", 24, 600, 125, 0, 0, "NVIDIA A10 datasheet"},
    {"a10g", "", 24, 600, 70, 0, 0, "NVIDIA A10G datasheet"},
    {"rtx4090", "rtx_4090", 24, 1008, 165.2, 330.3, 0, "NVIDIA Ada GPU architecture white paper"},
    {"rtx5090", "rtx_5090", 32, 1792, 209.5, 419, 1676,
     "NVIDIA RTX Blackwell GPU architecture white paper"},
    {"rtxpro6000", "rtxpro6000_ws rtx_pro_6000", 96, 1792, 503.8, 1007.6, 2015.2,
     "NVIDIA RTX PRO Blackwell white paper, 6000 Workstation Edition"},
    {"rtxpro6000_server", "rtxpro6000_se", 96, 1597, 503.8, 1007.6, 2015.2,
     "NVIDIA RTX PRO 6000 Server Edition datasheet (bandwidth); rates as Workstation Edition"},
    {"mi300x", "", 192, 5300, 1307.4, 2614.9, 0, "AMD Instinct MI300X datasheet"},
    {"mi325x", "", 256, 6000, 1307.4, 2614.9, 0, "AMD Instinct MI325X datasheet"},
};
#define N_GPUS (sizeof gpus / sizeof gpus[0])

static bool word_in(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = words; n > 0 && (at = strstr(at, word)); at += n) {
        if ((at == words || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0'))
            return true;
    }
    return false;
}

const struct gpu_spec *gpu_find(const char *name)
{
    for (size_t i = 0; i < N_GPUS; i++) {
        if (strcmp(gpus[i].name, name) == 0 || word_in(gpus[i].aliases, name))
            return &gpus[i];
    }
    return NULL;
}

const struct gpu_spec *gpu_at(size_t i)
{
    return i < N_GPUS ? &gpus[i] : NULL;
}

double dtype_bytes(const char *name)
{
    static const struct {
        const char *name;
        double bytes;
    } types[] = {
        {"bf16", 2},
        {"bfloat16", 2},
        {"fp16", 2},
        {"float16", 2},
        {"half", 2},
        {"fp32", 4},
        {"fp8", 1},
        {"fp8_e4m3", 1},
        {"fp8_e5m2", 1},
        {"int8", 1},
        {"int4", 0.5 + 2.0 / 128}, /* a 16-bit scale per 128 weights */
        {"fp4", 0.5 + 1.0 / 16},
        {"nvfp4", 0.5 + 1.0 / 16}, /* an 8-bit scale per 16 weights */
        {"mxfp4", 0.5 + 1.0 / 32}, /* an 8-bit scale per 32 weights */
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i].name, name) == 0)
            return types[i].bytes;
    }
    return 0;
}

/* ---- config.json ---- */

/* One config.json being read; the first complaint wins. */
struct reader {
    yyjson_val *root; /* the language model's part */
    const char *name;
    char *error;
    int rc;
};

static void complain(struct reader *r, const char *key, const char *what)
{
    if (r->rc == WEIR_OK)
        ytree_error(r->error, "%.256s: %.64s: %s", r->name, key, what);
    r->rc = WEIR_E_INPUT;
}

/* A whole number 1..limit; fallback if it is absent or null (0: it is needed). */
static uint32_t get_count(struct reader *r, const char *key, uint32_t limit, uint32_t fallback)
{
    yyjson_val *v = yyjson_obj_get(r->root, key);
    if (!v || yyjson_is_null(v)) {
        if (fallback == 0)
            complain(r, key, "missing; expected a config.json of a decoder-only language model");
        return fallback;
    }
    if (!yyjson_is_uint(v) || yyjson_get_uint(v) == 0 || yyjson_get_uint(v) > limit) {
        char what[STACK_NAME_BYTES];
        (void)snprintf(what, sizeof what, "expected a whole number 1..%" PRIu32, limit);
        complain(r, key, what);
        return 1;
    }
    return (uint32_t)yyjson_get_uint(v);
}

/* A whole number 0..limit, 0 if it is absent. */
static uint32_t get_optional(struct reader *r, const char *key, uint32_t limit)
{
    yyjson_val *v = yyjson_obj_get(r->root, key);
    if (!v || yyjson_is_null(v) || (yyjson_is_uint(v) && yyjson_get_uint(v) == 0))
        return 0;
    return get_count(r, key, limit, 1);
}

static bool get_bool(struct reader *r, const char *key, bool fallback)
{
    yyjson_val *v = yyjson_obj_get(r->root, key);
    if (!v || yyjson_is_null(v))
        return fallback;
    if (!yyjson_is_bool(v))
        complain(r, key, "expected true or false");
    return yyjson_get_bool(v);
}

static void get_text(yyjson_val *object, const char *key, char *to, size_t n)
{
    const char *text = yyjson_get_str(yyjson_obj_get(object, key));
    size_t len = 0;
    for (; text && text[len] && len + 1 < n; len++)
        to[len] = text[len] >= 0x20 && text[len] < 0x7f ? text[len] : '?';
    to[len] = '\0';
}

/* Layers of a kind that the roofline has no formula for. */
static void refuse_foreign(struct reader *r, struct model_shape *m)
{
    static const char *const foreign[] = {
        "mamba_d_state",  "mamba_num_heads",         "ssm_cfg",
        "state_size",     "linear_num_key_heads",    "interleave_moe_layer_step",
        "time_step_rank", "hybrid_override_pattern",
    };
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        if (yyjson_obj_get(r->root, foreign[i]))
            complain(r, foreign[i], "layers that this roofline does not know; measure instead");
    }
    if (get_bool(r, "is_encoder_decoder", false))
        complain(r, "is_encoder_decoder", "expected a decoder-only model");
    yyjson_val *types = yyjson_obj_get(r->root, "layer_types"), *type;
    size_t i, n;
    yyjson_arr_foreach (types, i, n, type) {
        if (yyjson_equals_str(type, "sliding_attention"))
            m->sliding = true;
        else if (!yyjson_equals_str(type, "full_attention"))
            complain(r, "layer_types", "layers that this roofline does not know; measure instead");
    }
    if (!types && get_bool(r, "use_sliding_window", true) &&
        get_optional(r, "sliding_window", UINT32_MAX))
        m->sliding = true;
}

static void read_attention(struct reader *r, struct model_shape *m)
{
    m->layers = get_count(r, "num_hidden_layers", 10000, 0);
    m->hidden = get_count(r, "hidden_size", 1000000, 0);
    m->heads = get_count(r, "num_attention_heads", 100000, 0);
    if (r->rc)
        return;
    m->kv_heads = get_count(r, "num_key_value_heads", 100000, m->heads);
    m->head_dim = get_count(r, "head_dim", 100000, m->hidden / m->heads ? m->hidden / m->heads : 1);
    if (m->kv_heads > m->heads)
        complain(r, "num_key_value_heads", "more than num_attention_heads");

    double h = m->hidden, heads = m->heads, layers = m->layers;
    m->kv_lora_rank = get_optional(r, "kv_lora_rank", 1000000);
    m->mla = m->kv_lora_rank > 0;
    if (!m->mla) {
        m->attention = layers * h * m->head_dim * (2 * heads + 2.0 * m->kv_heads);
        return;
    }
    m->qk_rope_dim = get_count(r, "qk_rope_head_dim", 100000, 0);
    m->qk_nope_dim = get_count(r, "qk_nope_head_dim", 100000, 0);
    m->v_dim = get_count(r, "v_head_dim", 100000, 0);
    double q_lora = get_optional(r, "q_lora_rank", 1000000);
    double qk = heads * ((double)m->qk_nope_dim + m->qk_rope_dim);
    double q = q_lora > 0 ? h * q_lora + q_lora * qk : h * qk;
    double kv = h * ((double)m->kv_lora_rank + m->qk_rope_dim) +
                m->kv_lora_rank * heads * ((double)m->qk_nope_dim + m->v_dim);
    m->attention = layers * (q + kv + heads * m->v_dim * h);
}

/* Layers that route to experts: all but the first ones (DeepSeek), or each n-th (Qwen). */
static uint32_t moe_layers(struct reader *r, const struct model_shape *m)
{
    uint32_t dense_first = get_optional(r, "first_k_dense_replace", 10000);
    uint32_t step = get_count(r, "decoder_sparse_step", 10000, 1);
    uint32_t skip = (uint32_t)yyjson_arr_size(yyjson_obj_get(r->root, "mlp_only_layers"));
    uint32_t n = (m->layers > dense_first ? m->layers - dense_first : 0) / step;
    return n > skip ? n - skip : 0;
}

static void read_mlp(struct reader *r, struct model_shape *m)
{
    static const char plain[] =
        "opt gpt2 gptj gpt_neox bloom falcon phi mpt starcoder2 gpt_bigcode";
    m->plain_mlp = word_in(plain, m->type);
    double matrices = m->plain_mlp ? 2 : 3, h = m->hidden;

    m->experts = get_optional(r, "num_experts", 65536);
    if (!m->experts)
        m->experts = get_optional(r, "num_local_experts", 65536);
    if (!m->experts)
        m->experts = get_optional(r, "n_routed_experts", 65536);
    if (m->experts <= 1) {
        m->experts = 0;
        m->mlp =
            m->layers * matrices * h * get_count(r, "intermediate_size", 10000000, 4 * m->hidden);
        return;
    }
    m->experts_active = get_optional(r, "num_experts_per_tok", 65536);
    if (!m->experts_active)
        m->experts_active = get_count(r, "experts_per_token", 65536, 0);
    if (m->experts_active > m->experts)
        complain(r, "num_experts_per_tok", "more than there are experts");

    uint32_t dense = get_optional(r, "intermediate_size", 10000000);
    double size = get_count(r, "moe_intermediate_size", 10000000, dense);
    double shared = get_optional(r, "shared_expert_intermediate_size", 10000000) +
                    size * get_optional(r, "n_shared_experts", 65536);
    double sparse = moe_layers(r, m);
    m->expert = sparse * m->experts * matrices * h * size;
    m->mlp = sparse * (matrices * h * shared + h * m->experts) +
             (m->layers - sparse) * matrices * h * dense;
}

static void read_quantization(struct reader *r, yyjson_val *top, struct model_shape *m)
{
    yyjson_val *q = yyjson_obj_get(top, "quantization_config");
    char method[STACK_NAME_BYTES] = "", algo[STACK_NAME_BYTES] = "";
    if (!q)
        q = yyjson_obj_get(r->root, "quantization_config");
    m->weight_bytes = m->other_bytes = 2;
    if (!q || yyjson_is_null(q))
        return;
    get_text(q, "quant_method", method, sizeof method);
    get_text(q, "quant_algo", algo, sizeof algo);
    (void)snprintf(m->quantization, sizeof m->quantization, "%s", method[0] ? method : algo);
    uint64_t bits = yyjson_get_uint(yyjson_obj_get(q, "bits"));
    if (strcmp(method, "mxfp4") == 0) {
        m->weight_bytes = dtype_bytes("mxfp4");
        m->quantized_experts_only = m->experts > 0;
    } else if (strcmp(algo, "NVFP4") == 0) {
        m->weight_bytes = dtype_bytes("nvfp4");
    } else if (strcmp(method, "fp8") == 0 || strcmp(method, "fbgemm_fp8") == 0 ||
               strcmp(algo, "FP8") == 0 || bits == 8) {
        m->weight_bytes = 1;
    } else if (bits == 4) {
        m->weight_bytes = dtype_bytes("int4");
    } else {
        complain(r, "quantization_config", "not understood; give --dtype fp8, int8, int4 or fp4");
    }
}

static void read_model(struct reader *r, yyjson_val *top, struct model_shape *m, const char *dtype)
{
    get_text(r->root, "model_type", m->type, sizeof m->type);
    refuse_foreign(r, m);
    read_attention(r, m);
    if (r->rc)
        return;
    read_mlp(r, m);
    double vocabulary = get_count(r, "vocab_size", 100000000, 0);
    m->embedding = m->head = vocabulary * m->hidden;
    m->tied = get_bool(r, "tie_word_embeddings", false);
    if (!dtype) {
        read_quantization(r, top, m);
        return;
    }
    m->weight_bytes = dtype_bytes(dtype);
    m->other_bytes = 2;
    m->quantized_experts_only = strcmp(dtype, "mxfp4") == 0 && m->experts > 0;
}

int model_shape_read(struct model_shape *m, const char *name, const char *json, size_t len,
                     const char *dtype, char *error)
{
    struct reader r = {.name = name, .error = error};
    yyjson_read_err why;

    memset(m, 0, sizeof *m);
    error[0] = '\0';
    if (len > MODEL_CONFIG_MAX_BYTES) {
        ytree_error(error, "%.256s: larger than %u MiB; is it a config.json?", name,
                    MODEL_CONFIG_MAX_BYTES >> 20);
        return WEIR_E_INPUT;
    }
    /* yyjson only writes to the input with YYJSON_READ_INSITU. */
    yyjson_doc *doc =
        yyjson_read_opts((char *)(uintptr_t)json, len, YYJSON_READ_NOFLAG, NULL, &why);
    if (!doc) {
        if (why.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION) {
            ytree_error(error, "%.256s: out of memory while reading it", name);
            return WEIR_E_NOMEM;
        }
        ytree_error(error, "%.256s: byte %zu: not JSON: %s; expected a Hugging Face config.json",
                    name, why.pos, why.msg);
        return WEIR_E_INPUT;
    }
    yyjson_val *top = yyjson_doc_get_root(doc);
    yyjson_val *text = yyjson_obj_get(top, "text_config"); /* of a model that also sees or hears */
    r.root = yyjson_is_obj(text) ? text : top;
    if (yyjson_is_obj(top))
        read_model(&r, top, m, dtype);
    else
        complain(&r, "the file", "expected an object {...} as in a Hugging Face config.json");
    yyjson_doc_free(doc);
    return r.rc;
}

/* ---- the roofline ---- */

double roofline_tflops(const struct gpu_spec *gpu, double weight_bytes)
{
    if (weight_bytes < 0.6 && weight_bytes != dtype_bytes("int4") && gpu->fp4_tflops > 0)
        return gpu->fp4_tflops;
    if (weight_bytes > 0.6 && weight_bytes <= 1 && gpu->fp8_tflops > 0)
        return gpu->fp8_tflops;
    return gpu->bf16_tflops;
}

double model_kv_bytes_per_token(const struct model_shape *m, double kv_bytes)
{
    if (m->mla)
        return m->layers * ((double)m->kv_lora_rank + m->qk_rope_dim) * kv_bytes;
    return 2.0 * m->layers * m->kv_heads * m->head_dim * kv_bytes;
}

double model_step_bytes(const struct model_shape *m, double weight_bytes)
{
    double rest = m->quantized_experts_only ? m->other_bytes : weight_bytes;
    return m->head * m->other_bytes + (m->attention + m->mlp) * rest + m->expert * weight_bytes;
}

double model_weight_bytes(const struct model_shape *m, double weight_bytes)
{
    return model_step_bytes(m, weight_bytes) + (m->tied ? 0 : m->embedding * m->other_bytes);
}

double roofline_gpu_step_bytes(const struct model_shape *m, const struct roofline *r)
{
    double experts = m->expert * r->weight_bytes;
    return (model_step_bytes(m, r->weight_bytes) - experts) / r->tp + experts / (r->tp * r->dp);
}

double roofline_gpu_weight_bytes(const struct model_shape *m, const struct roofline *r)
{
    double embedding =
        model_weight_bytes(m, r->weight_bytes) - model_step_bytes(m, r->weight_bytes);
    return (roofline_gpu_step_bytes(m, r) + embedding / r->tp) / r->pp;
}

double roofline_kv_split(const struct model_shape *m, const struct roofline *r)
{
    return m->mla ? 1 : r->tp < m->kv_heads ? r->tp : m->kv_heads;
}

void roofline_step(struct step_params *p, const struct model_shape *m, const struct roofline *r)
{
    double bytes_per_ms = r->gpu->bandwidth_gb_s * 1e6 * r->eff;
    double ops_per_ms = roofline_tflops(r->gpu, r->weight_bytes) * 1e9 * r->mfu;
    double attention_ops_per_ms = r->gpu->bf16_tflops * 1e9 * r->mfu;
    double step_bytes = roofline_gpu_step_bytes(m, r);
    double active = m->attention + m->mlp;
    /* of a query and one token before it: the product with its key, and its value's share */
    double per_pair = m->mla ? 2.0 * m->heads * ((double)m->qk_nope_dim + m->qk_rope_dim + m->v_dim)
                             : 4.0 * m->heads * m->head_dim;

    memset(p, 0, sizeof *p);
    p->form = STEP_LINEAR;
    p->scale = 1;
    p->w_ms = step_bytes / bytes_per_ms;
    p->k_ms_per_tok =
        model_kv_bytes_per_token(m, r->kv_bytes) / (roofline_kv_split(m, r) * bytes_per_ms);
    if (m->experts) {
        active += m->expert * m->experts_active / m->experts;
        p->moe_experts = m->experts;
        p->moe_active = m->experts_active;
        p->moe_w_share = m->expert * r->weight_bytes / (r->tp * r->dp) / step_bytes;
    }
    p->p_ms_per_tok = 2 * active / (r->tp * ops_per_ms);
    p->q_ms_per_tok2 = m->layers * per_pair / (r->tp * attention_ops_per_ms);
    p->prefill_floor_ms = p->w_ms;
}
