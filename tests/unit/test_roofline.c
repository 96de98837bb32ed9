/* config.json and a datasheet to step times: sizes against the published ones, times against
 * arithmetic by hand, and what a config.json can have wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/commands.h"
#include "controller/replay/profile.h"
#include "tests/support/files.h"

#define CORPUS "tests/fuzz/corpus/model_config/"

static char error[STACK_ERROR_BYTES];
static struct model_shape m;

static int read_text(const char *json, const char *dtype)
{
    return model_shape_read(&m, "c.json", json, strlen(json), dtype, error);
}

static void read_file(const char *path, const char *dtype)
{
    char text[8192];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text - 1, f);
    assert_int_equal(fclose(f), 0);
    text[n] = '\0';
    if (read_text(text, dtype))
        fail_msg("%s", error);
}

static double parameters(void)
{
    return m.attention + m.mlp + m.expert + m.head + (m.tied ? 0 : m.embedding);
}

/* Published sizes: 8.03 B; 671 B of which 37 B active; 30.5 B, 3.3 B; 20.9 B, 3.6 B (model cards). Norms
 * and biases are left out, so a little less. */
static void published_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        double billions, active; /* 0: dense */
        bool looked_up;          /* the embedding counts as active */
        double kv_bytes;         /* bf16 */
    } models[] = {
        {CORPUS "llama-3.1-8b", 8.03, 0, false, 131072},
        {CORPUS "deepseek-v3", 671, 37, true, 61 * 576 * 2},
        {CORPUS "qwen3-30b-a3b", 30.5, 3.3, true, 48 * 2 * 4 * 128 * 2},
        {CORPUS "gpt-oss-20b", 20.9, 3.6, false, 24 * 2 * 8 * 64 * 2},
    };
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        read_file(models[i].file, NULL);
        double n = parameters() / 1e9, off = fabs(n / models[i].billions - 1);
        if (off > 0.01)
            fail_msg("%s: %.3f billion, published %g", models[i].file, n, models[i].billions);
        assert_true(fabs(model_kv_bytes_per_token(&m, 2) - models[i].kv_bytes) < 1e-6);
        if (models[i].active <= 0)
            continue;
        double active = (m.attention + m.mlp + m.expert * m.experts_active / m.experts + m.head +
                         (models[i].looked_up ? m.embedding : 0)) /
                        1e9;
        if (fabs(active / models[i].active - 1) > 0.02)
            fail_msg("%s: %.3f billion active, published %g", models[i].file, active,
                     models[i].active);
    }
}

/* Llama-3.1-8B on one H100, by hand: (8.03e9 - 0.53e9) * 2 bytes over 3350 GB/s. */
static void times_by_hand(void **state)
{
    (void)state;
    struct step_params p;
    struct roofline r = {.gpu = gpu_find("h100"),
                         .tp = 1,
                         .pp = 1,
                         .dp = 1,
                         .weight_bytes = 2,
                         .kv_bytes = 2,
                         .eff = 1,
                         .mfu = 1};
    read_file(CORPUS "llama-3.1-8b", NULL);
    assert_non_null(r.gpu);
    roofline_step(&p, &m, &r);
    double read = (parameters() - m.embedding) * 2;
    assert_true(fabs(p.w_ms - read / 3350e6) < 1e-9);
    assert_true(fabs(p.w_ms - 4.48) < 0.01);
    assert_true(fabs(p.k_ms_per_tok - 131072 / 3350e6) < 1e-12);
    assert_true(fabs(p.p_ms_per_tok - 2 * (m.attention + m.mlp) / 989.4e9) < 1e-9);
    assert_true(fabs(p.q_ms_per_tok2 - 4.0 * 32 * 32 * 128 / 989.4e9) < 1e-15);
    assert_true(fabs(p.prefill_floor_ms - p.w_ms) < 1e-12 && p.moe_experts == 0);
    double w = p.w_ms, k = p.k_ms_per_tok, prefill = p.p_ms_per_tok;
    r.tp = 4;
    roofline_step(&p, &m, &r);
    assert_true(fabs(p.w_ms * 4 - w) < 1e-9 && fabs(p.p_ms_per_tok * 4 - prefill) < 1e-9);
    assert_true(fabs(p.k_ms_per_tok * 4 - k) < 1e-12);
    r.tp = 16; /* 8 KV heads: two copies of each */
    roofline_step(&p, &m, &r);
    assert_true(fabs(p.k_ms_per_tok * 8 - k) < 1e-12);
    r = (struct roofline){.gpu = r.gpu,
                          .tp = 1,
                          .pp = 1,
                          .dp = 1,
                          .weight_bytes = 1,
                          .kv_bytes = 1,
                          .eff = 0.5,
                          .mfu = 0.5};
    roofline_step(&p, &m, &r);
    assert_true(fabs(p.k_ms_per_tok - k) < 1e-12); /* half the bytes, half the speed */
    assert_true(fabs(p.p_ms_per_tok - prefill) < 1e-4);
}

static void experts(void **state)
{
    (void)state;
    struct step_params p;
    struct roofline r = {.gpu = gpu_find("h200"),
                         .tp = 8,
                         .pp = 1,
                         .dp = 1,
                         .weight_bytes = 1,
                         .kv_bytes = 2,
                         .eff = 0.8,
                         .mfu = 0.45};
    read_file(CORPUS "deepseek-v3", NULL);
    assert_true(fabs(m.weight_bytes - 1) < 1e-12); /* quantization_config: fp8 */
    roofline_step(&p, &m, &r);
    assert_int_equal(p.moe_experts, 256);
    assert_int_equal(p.moe_active, 8);
    assert_true(p.moe_w_share > 0.95 && p.moe_w_share < 1);
    struct step_model model;
    const char *why = NULL;
    assert_int_equal(step_model_init(&model, &p, &why), 0);
    struct step_batch one = {.decode_reqs = 1, .decode_ctx_tok = 1000},
                      many = {.decode_reqs = 512, .decode_ctx_tok = 512000};
    assert_true(step_time_ps(&model, &one) * 5 < step_time_ps(&model, &many));
}

/* Stages: the same latency, less to keep. Data-parallel ranks: all of attention each, experts shared. */
static void stages_and_ranks(void **state)
{
    (void)state;
    struct step_params one, p;
    struct roofline r = {.gpu = gpu_find("h200"),
                         .tp = 2,
                         .pp = 1,
                         .dp = 1,
                         .weight_bytes = 2,
                         .kv_bytes = 2,
                         .eff = 0.8,
                         .mfu = 0.45};
    read_file(CORPUS "qwen3-30b-a3b", NULL);
    roofline_step(&one, &m, &r);
    double kept = roofline_gpu_weight_bytes(&m, &r);
    assert_true(fabs(kept - model_weight_bytes(&m, 2) / 2) < 1);
    r.pp = 4;
    roofline_step(&p, &m, &r);
    assert_true(fabs(p.w_ms - one.w_ms) < 1e-12 && fabs(p.k_ms_per_tok - one.k_ms_per_tok) < 1e-15);
    assert_true(fabs(p.p_ms_per_tok - one.p_ms_per_tok) < 1e-12);
    assert_true(fabs(roofline_gpu_weight_bytes(&m, &r) - kept / 4) < 1);
    r.pp = 1;
    r.dp = 8;
    roofline_step(&p, &m, &r);
    double dense = one.w_ms * (1 - one.moe_w_share), shared = one.w_ms * one.moe_w_share / 8;
    assert_true(fabs(p.w_ms - dense - shared) < 1e-9);
    assert_true(fabs(p.w_ms * p.moe_w_share - shared) < 1e-9);
    assert_true(fabs(p.k_ms_per_tok - one.k_ms_per_tok) < 1e-15);
    assert_true(fabs(p.p_ms_per_tok - one.p_ms_per_tok) < 1e-12);
    assert_true(fabs(roofline_gpu_weight_bytes(&m, &r) * 2 * 8 - m.expert * 2 -
                     8 * (model_weight_bytes(&m, 2) - m.expert * 2)) < 16);
}

/* Weights in int4 are unpacked before they are multiplied; fp4 and fp8 are multiplied as they are, where the GPU
 * can. */
static void rates(void **state)
{
    (void)state;
    const struct gpu_spec *b200 = gpu_find("b200"), *h100 = gpu_find("h100"),
                          *a100 = gpu_find("a100");
    assert_true(fabs(roofline_tflops(b200, dtype_bytes("nvfp4")) - b200->fp4_tflops) < 1e-9);
    assert_true(fabs(roofline_tflops(b200, dtype_bytes("mxfp4")) - b200->fp4_tflops) < 1e-9);
    assert_true(fabs(roofline_tflops(b200, dtype_bytes("int4")) - b200->bf16_tflops) < 1e-9);
    assert_true(fabs(roofline_tflops(h100, dtype_bytes("nvfp4")) - h100->bf16_tflops) < 1e-9);
    assert_true(fabs(roofline_tflops(h100, dtype_bytes("fp8")) - h100->fp8_tflops) < 1e-9);
    assert_true(fabs(roofline_tflops(a100, dtype_bytes("fp8")) - a100->bf16_tflops) < 1e-9);
}

/* The roofline of Llama-3.1-8B on one H100 beside the profile fitted to measurements there (engine-model.md 3.3):
 * 70 % of the bandwidth for W, 76 % for k, and an MFU of 0.77 for p, which it shares with q. */
static void near_what_was_measured(void **state)
{
    (void)state;
    struct step_params p, fitted;
    uint64_t kv_bytes;
    uint32_t n_gpus;
    struct roofline r = {.gpu = gpu_find("h100"),
                         .tp = 1,
                         .pp = 1,
                         .dp = 1,
                         .weight_bytes = 2,
                         .kv_bytes = 2,
                         .eff = ROOFLINE_EFF,
                         .mfu = ROOFLINE_MFU};
    read_file(CORPUS "llama-3.1-8b", NULL);
    roofline_step(&p, &m, &r);
    if (profile_load(&fitted, &kv_bytes, &n_gpus,
                     "deploy/profiles/llama-3.1-8b-instruct_h100_trtllm-1.0.0rc3_tp1.yaml", error))
        fail_msg("%s", error);
    assert_int_equal(kv_bytes, 131072);
    assert_true(fabs(p.w_ms / fitted.w_ms - 1) < 0.25);
    assert_true(fabs(p.k_ms_per_tok / fitted.k_ms_per_tok - 1) < 0.25);
    assert_true(fabs(p.p_ms_per_tok / fitted.p_ms_per_tok - 1) < 0.75);
}

static void quantizations(void **state)
{
    (void)state;
#define MODEL                                                                                      \
    "{\"hidden_size\": 64, \"num_attention_heads\": 4, \"num_hidden_layers\": 2, \"vocab_size\": 100"
    static const struct {
        const char *config, *dtype;
        double bytes;
    } cases[] = {
        {"", NULL, 2},
        {"\"quant_method\": \"fp8\"", NULL, 1},
        {"\"quant_method\": \"awq\", \"bits\": 4", NULL, 0.5 + 2.0 / 128},
        {"\"quant_method\": \"gptq\", \"bits\": 8", NULL, 1},
        {"\"quant_method\": \"mxfp4\"", NULL, 0.5 + 1.0 / 32},
        {"\"quant_algo\": \"NVFP4\"", NULL, 0.5 + 1.0 / 16},
        {"\"quant_algo\": \"FP8\"", NULL, 1},
        {"\"quant_method\": \"unheard_of\"", "int8", 1},
        {"\"quant_method\": \"fp8\"", "bf16", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char json[512];
        (void)snprintf(json, sizeof json, MODEL "%s%s%s}",
                       *cases[i].config ? ", \"quantization_config\": {" : "", cases[i].config,
                       *cases[i].config ? "}" : "");
        if (read_text(json, cases[i].dtype))
            fail_msg("%s", error);
        assert_true(fabs(m.weight_bytes - cases[i].bytes) < 1e-12);
    }
    assert_true(dtype_bytes("float7") <= 0);
}

static void refusals(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"", "c.json: byte 0: not JSON"},
        {"{", "c.json: byte 1: not JSON"},
        {"[]", "c.json: the file: expected an object"},
        {"{}",
         "c.json: num_hidden_layers: missing; expected a config.json of a decoder-only language model"},
        {"{\"num_hidden_layers\": -1}",
         "c.json: num_hidden_layers: expected a whole number 1..10000"},
        {"{\"num_hidden_layers\": 1e3}", "c.json: num_hidden_layers: expected a whole number"},
        {"{\"num_hidden_layers\": \"32\"}", "c.json: num_hidden_layers: expected a whole number"},
        {"{\"num_hidden_layers\": 99999999999999999999}",
         "c.json: num_hidden_layers: expected a whole number"},
        {MODEL ", \"num_key_value_heads\": 5}",
         "c.json: num_key_value_heads: more than num_attention_heads"},
        {MODEL ", \"mamba_d_state\": 5}",
         "c.json: mamba_d_state: layers that this roofline does not know"},
        {MODEL ", \"layer_types\": [\"linear_attention\"]}", "c.json: layer_types: layers that"},
        {MODEL ", \"is_encoder_decoder\": true}",
         "c.json: is_encoder_decoder: expected a decoder-only"},
        {MODEL ", \"num_experts\": 8}", "c.json: experts_per_token: missing"},
        {MODEL ", \"num_experts\": 8, \"num_experts_per_tok\": 9, \"intermediate_size\": 5}",
         "c.json: num_experts_per_tok: more than there are experts"},
        {MODEL ", \"quantization_config\": {\"quant_method\": \"x\"}}",
         "c.json: quantization_config: not understood; give --dtype"},
        {MODEL ", \"tie_word_embeddings\": 1}",
         "c.json: tie_word_embeddings: expected true or false"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (read_text(bad[i][0], NULL) != WEIR_E_INPUT)
            fail_msg("accepted: %s", bad[i][0]);
        if (strncmp(error, bad[i][1], strlen(bad[i][1])) != 0)
            fail_msg("expected '%s', got '%s'", bad[i][1], error);
    }
}

static void gpus(void **state)
{
    (void)state;
    for (size_t i = 0; gpu_at(i); i++) {
        const struct gpu_spec *g = gpu_at(i);
        assert_ptr_equal(gpu_find(g->name), g);
        assert_true(*g->source && g->memory_gb > 0 && g->bandwidth_gb_s > 0 && g->bf16_tflops > 0);
        assert_true(g->fp8_tflops <= 0 || g->fp8_tflops > g->bf16_tflops);
    }
    assert_ptr_equal(gpu_find("h100"), gpu_find("h100_sxm"));
    assert_null(gpu_find("h10"));
    assert_null(gpu_find(""));
    assert_true(fabs(roofline_tflops(gpu_find("b200"), dtype_bytes("nvfp4")) - 9000) < 1e-9);
    assert_true(fabs(roofline_tflops(gpu_find("h100"), dtype_bytes("int4")) - 989.4) < 1e-9);
    assert_true(fabs(roofline_tflops(gpu_find("a100"), 1) - 312) < 1e-9);
}

/* What it prints is a profile. */
static void command(void **state)
{
    (void)state;
    struct step_params p;
    uint64_t kv = 0;
    uint32_t n = 0;
    int status = -1;
    char *text =
        OUTPUT(profile_main, &status, "profile", "--config", CORPUS "llama-3.1-8b", "--gpu", "l40s",
               "--tp", "2", "--gpu-memory-utilization", "0.9", "--model", "my \"model\"");
    assert_int_equal(status, 0);
    assert_non_null(strstr(text, "# Derived, not measured."));
    assert_non_null(strstr(text, "source: roofline\nmodel: \"my \\\"model\\\"\""));
    assert_non_null(strstr(text, "upper bound: at most"));
    if (profile_load_memory(&p, &kv, &n, "p", text, strlen(text), error))
        fail_msg("%s:\n%s", error, text);
    assert_int_equal(kv, 131072);
    assert_int_equal(n, 2);
    free(text);
    static const char *const bad[][4] = {
        {"--config", CORPUS "llama-3.1-8b", NULL, "expected --config and --gpu"},
        {"--config", CORPUS "llama-3.1-8b", "--gpu=h1000", "no GPU 'h1000'; did you mean h100?"},
        {"--config", CORPUS "llama-3.1-8b", "--gpu=tpu_of_tomorrow",
         "give --bandwidth and --tflops"},
        {"--config", "/no/such", "--gpu=h100", "/no/such: cannot open it"},
        {"--config", "deploy/stacks/dynosim.yaml", "--gpu=h100", "not JSON"},
        {"--gpu=h100", "--tp", "0", "--tp: expected a whole number 1..1024, found '0'"},
        {"--gpu=h100", "--eff", "1.1", "--eff: expected a number 0.01..1, found '1.1'"},
        {"--gpu=h100", "--dtype", "fp7", "--dtype: expected bf16, fp16"},
        {"--gpu=h100", "--gpus=3", NULL, "--gpus: no such option; did you mean --gpu?"},
        {"--gpu=h100", "config.json", NULL, "expected only options, found 'config.json'"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        text = OUTPUT(profile_main, &status, "profile", bad[i][0], bad[i][1], bad[i][2]);
        if (status != 2 || strncmp(text, "weir profile: ", 14) != 0 || !strstr(text, bad[i][3]) ||
            strchr(text, '\n') != text + strlen(text) - 1)
            fail_msg("case %zu, status %d: expected '%s', got '%s'", i, status, bad[i][3], text);
        free(text);
    }
    text = OUTPUT(profile_main, &status, "profile", "--help");
    assert_int_equal(status, 0);
    for (size_t i = 0; gpu_at(i); i++)
        assert_non_null(strstr(text, gpu_at(i)->name));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_sizes),
        cmocka_unit_test(times_by_hand),
        cmocka_unit_test(experts),
        cmocka_unit_test(stages_and_ranks),
        cmocka_unit_test(rates),
        cmocka_unit_test(near_what_was_measured),
        cmocka_unit_test(quantizations),
        cmocka_unit_test(refusals),
        cmocka_unit_test(gpus),
        cmocka_unit_test(command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
