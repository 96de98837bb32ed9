/* profile_cmd.c - `weir profile`: a profile from config.json and a datasheet, with every assumption
 * written into it. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/replay/profile.h"
#include "controller/replay/stack_keys.h"
#include "controller/config/words.h"
#include "controller/config/yaml_tree.h"

#define COMMAND "profile"
#define TP_MAX 1024
#define PP_MAX 1024
#define DP_MAX 1024
#define GPUS_MAX 65536 /* tp * pp * dp: what a profile may have */

/* The command line. */
struct ask {
    const char *config, *model, *dtype, *kv_dtype, *gpu_name;
    double bandwidth_gb_s, bf16_tflops, fp8_tflops,
        memory_gb;      /* of a GPU that is not in the table */
    double utilization; /* 0: no estimate of blocks */
    uint32_t block_size;
    bool help;
    struct gpu_spec gpu;
    struct roofline roofline;
};

static void print_help(FILE *out)
{
    (void)fputs(
        "usage: weir profile --config config.json --gpu NAME [options] > my.yaml\n"
        "\n"
        "Derives step times from a model's config.json (as on Hugging Face) and a GPU's datasheet by\n"
        "the roofline. A starting point for systems that nobody measured: expect errors of tens of\n"
        "percent, and prefer deploy/profiles, which are fitted to measurements, where they match.\n"
        "\n"
        "  --config FILE     config.json of the model\n"
        "  --gpu NAME        one of the GPUs below, or any name together with --bandwidth and --tflops\n"
        "  --tp N            GPUs one worker's tensors are split over (1)\n"
        "  --pp N            pipeline stages its layers are split over (1)\n"
        "  --dp N            data-parallel ranks that share one set of experts (1): set dp_size too\n"
        "  --dtype TYPE      weights: bf16, fp16, fp8, int8, int4, fp4, mxfp4 (what config.json says)\n"
        "  --kv-dtype TYPE   KV cache: bf16, fp8 ... (bf16)\n"
        "  --eff X           share of the memory bandwidth that is reached (0.8)\n"
        "  --mfu X           share of the FLOPS that is reached in prefill (0.45)\n"
        "  --model NAME      name written into the profile\n"
        "  --bandwidth GB/s  memory bandwidth, instead of the table's\n"
        "  --tflops X        dense bf16 TFLOPS, instead of the table's\n"
        "  --fp8-tflops X    dense fp8 TFLOPS, instead of the table's\n"
        "  --memory-gb X     memory of a GPU, instead of the table's\n"
        "  --gpu-memory-utilization X  adds a comment with an upper bound of the KV blocks\n"
        "  --block-size N    tokens of a block in that comment (16)\n"
        "  -h, --help\n"
        "\n"
        "GPUs (memory GB, bandwidth GB/s, dense TFLOPS bf16 and fp8):\n",
        out);
    for (size_t i = 0; gpu_at(i); i++) {
        const struct gpu_spec *g = gpu_at(i);
        (void)fprintf(out, "  %-18s %4.0f %6.0f %7.5g %7.5g  %s\n", g->name, g->memory_gb,
                      g->bandwidth_gb_s, g->bf16_tflops, g->fp8_tflops, g->source);
    }
}

static int bad_option(const char *option, const char *value, const char *expected)
{
    return cli_fail(COMMAND, "%s: expected %s, found '%.64s'", option, expected, value);
}

static int get_number(const char *option, const char *value, double min, double max, double *to)
{
    char expected[96];
    if (cli_real(value, min, max, to))
        return 0;
    (void)snprintf(expected, sizeof expected, "a number %.7g..%.7g", min, max);
    return bad_option(option, value, expected);
}

static int get_count(const char *option, const char *value, uint32_t max, uint32_t *to)
{
    char expected[96];
    uint64_t v = 0;
    bool ok = cli_whole(value, 1, max, &v);
    *to = (uint32_t)v;
    (void)snprintf(expected, sizeof expected, "a whole number 1..%" PRIu32, max);
    return ok ? 0 : bad_option(option, value, expected);
}

enum {
    OPT_CONFIG = 256,
    OPT_GPU,
    OPT_TP,
    OPT_PP,
    OPT_DP,
    OPT_DTYPE,
    OPT_KV_DTYPE,
    OPT_EFF,
    OPT_MFU,
    OPT_MODEL,
    OPT_BANDWIDTH,
    OPT_TFLOPS,
    OPT_FP8,
    OPT_MEMORY,
    OPT_UTILIZATION,
    OPT_BLOCK
};

static const struct option options[] = {
    {"config", required_argument, NULL, OPT_CONFIG},
    {"gpu", required_argument, NULL, OPT_GPU},
    {"tp", required_argument, NULL, OPT_TP},
    {"tensor-parallel-size", required_argument, NULL, OPT_TP},
    {"pp", required_argument, NULL, OPT_PP},
    {"pipeline-parallel-size", required_argument, NULL, OPT_PP},
    {"dp", required_argument, NULL, OPT_DP},
    {"data-parallel-size", required_argument, NULL, OPT_DP},
    {"dtype", required_argument, NULL, OPT_DTYPE},
    {"kv-dtype", required_argument, NULL, OPT_KV_DTYPE},
    {"kv-cache-dtype", required_argument, NULL, OPT_KV_DTYPE},
    {"eff", required_argument, NULL, OPT_EFF},
    {"mfu", required_argument, NULL, OPT_MFU},
    {"model", required_argument, NULL, OPT_MODEL},
    {"bandwidth", required_argument, NULL, OPT_BANDWIDTH},
    {"tflops", required_argument, NULL, OPT_TFLOPS},
    {"fp8-tflops", required_argument, NULL, OPT_FP8},
    {"memory-gb", required_argument, NULL, OPT_MEMORY},
    {"gpu-memory-utilization", required_argument, NULL, OPT_UTILIZATION},
    {"block-size", required_argument, NULL, OPT_BLOCK},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int take_option(struct ask *a, int option, const char *value)
{
    switch (option) {
    case OPT_CONFIG: a->config = value; return 0;
    case OPT_GPU: a->gpu_name = value; return 0;
    case OPT_TP: return get_count("--tp", value, TP_MAX, &a->roofline.tp);
    case OPT_PP: return get_count("--pp", value, PP_MAX, &a->roofline.pp);
    case OPT_DP: return get_count("--dp", value, DP_MAX, &a->roofline.dp);
    case OPT_DTYPE:
        a->dtype = value;
        return dtype_bytes(value) > 0 ? 0
                                      : bad_option("--dtype", value,
                                                   "bf16, fp16, fp8, int8, "
                                                   "int4, fp4 or mxfp4");
    case OPT_KV_DTYPE:
        a->kv_dtype = strcmp(value, "auto") == 0 ? "bf16" : value;
        return dtype_bytes(a->kv_dtype) > 0 ? 0
                                            : bad_option("--kv-dtype", value, "bf16, fp8 or int8");
    case OPT_EFF: return get_number("--eff", value, 0.01, 1, &a->roofline.eff);
    case OPT_MFU: return get_number("--mfu", value, 0.01, 1, &a->roofline.mfu);
    case OPT_MODEL: a->model = value; return 0;
    case OPT_BANDWIDTH: return get_number("--bandwidth", value, 1, 1e6, &a->bandwidth_gb_s);
    case OPT_TFLOPS: return get_number("--tflops", value, 0.1, 1e6, &a->bf16_tflops);
    case OPT_FP8: return get_number("--fp8-tflops", value, 0.1, 1e6, &a->fp8_tflops);
    case OPT_MEMORY: return get_number("--memory-gb", value, 1, 1e6, &a->memory_gb);
    case OPT_UTILIZATION:
        return get_number("--gpu-memory-utilization", value, 0.01, 1, &a->utilization);
    case OPT_BLOCK: return get_count("--block-size", value, ENGINE_MAX_BLOCK_SIZE, &a->block_size);
    default: a->help = true; return 0;
    }
}

static int unknown_gpu(const char *name)
{
    char list[1024] = "";
    for (size_t i = 0; gpu_at(i); i++) {
        word_add(list, sizeof list, gpu_at(i)->name);
        word_add(list, sizeof list, gpu_at(i)->aliases);
    }
    return cli_unknown(
        COMMAND, "GPU", name, list,
        "weir profile --help has the table; for others give --bandwidth and --tflops");
}

static int choose_gpu(struct ask *a)
{
    const struct gpu_spec *known = gpu_find(a->gpu_name);
    if (!known && !(a->bandwidth_gb_s > 0 && a->bf16_tflops > 0))
        return unknown_gpu(a->gpu_name);
    a->gpu = known ? *known : (struct gpu_spec){.name = a->gpu_name, .source = "command line"};
    if (a->bandwidth_gb_s > 0)
        a->gpu.bandwidth_gb_s = a->bandwidth_gb_s;
    if (a->bf16_tflops > 0)
        a->gpu.bf16_tflops = a->bf16_tflops;
    if (a->fp8_tflops > 0)
        a->gpu.fp8_tflops = a->fp8_tflops;
    if (a->memory_gb > 0)
        a->gpu.memory_gb = a->memory_gb;
    if (known &&
        (a->bandwidth_gb_s > 0 || a->bf16_tflops > 0 || a->fp8_tflops > 0 || a->memory_gb > 0))
        a->gpu.source = "datasheet, changed on the command line";
    return 0;
}

static uint64_t gpus_of(const struct ask *a)
{
    return (uint64_t)a->roofline.tp * a->roofline.pp * a->roofline.dp;
}

static int parse(struct ask *a, int argc, char **argv)
{
    *a = (struct ask){.model = "", .kv_dtype = "bf16", .block_size = 16};
    a->roofline =
        (struct roofline){.tp = 1, .pp = 1, .dp = 1, .eff = ROOFLINE_EFF, .mfu = ROOFLINE_MFU};
    cli_start();
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        int rc = option == '?' || option == ':' ? cli_bad_option(COMMAND, options, argv, option)
                                                : take_option(a, option, optarg);
        if (rc || a->help)
            return rc;
    }
    if (optind < argc)
        return cli_fail(COMMAND, "expected only options, found '%.64s'; see weir profile --help",
                        argv[optind]);
    if (!a->config || !a->gpu_name)
        return cli_fail(COMMAND, "expected --config and --gpu; see weir profile --help");
    if (gpus_of(a) > GPUS_MAX)
        return cli_fail(COMMAND,
                        "--tp %" PRIu32 " --pp %" PRIu32 " --dp %" PRIu32
                        ": expected at most %d GPUs together",
                        a->roofline.tp, a->roofline.pp, a->roofline.dp, GPUS_MAX);
    return choose_gpu(a);
}

static void print_assumptions(FILE *out, const struct ask *a, const struct model_shape *m)
{
    const struct roofline *r = &a->roofline;
    double billion = 1e9;
    double unique = m->attention + m->mlp + m->expert + m->head + (m->tied ? 0 : m->embedding);
    (void)fprintf(out,
                  "# Derived, not measured. What it assumes:\n"
                  "#   GPU: %g GB/s, %g dense TFLOPS at this precision (%s)\n"
                  "#   reached: %g of the bandwidth, %g of the FLOPS\n"
                  "#   %.3f billion parameters, of which a step reads %.2f GB, %.2f GB per GPU%s\n"
                  "#   weights %g bytes per parameter%s%s%s, embedding and head 2\n"
                  "#   KV %g bytes per element%s\n",
                  a->gpu.bandwidth_gb_s, roofline_tflops(&a->gpu, r->weight_bytes), a->gpu.source,
                  r->eff, r->mfu, unique / billion, model_step_bytes(m, r->weight_bytes) / billion,
                  roofline_gpu_step_bytes(m, r) / r->pp / billion,
                  r->pp > 1 ? ", one stage after the other" : "", r->weight_bytes,
                  m->quantization[0] && !a->dtype ? " (" : "",
                  m->quantization[0] && !a->dtype ? m->quantization : "",
                  m->quantization[0] && !a->dtype ? ")" : "", r->kv_bytes,
                  m->mla ? ", one latent vector per token, a copy on each GPU" : "");
    if (m->experts)
        (void)fprintf(out,
                      "#   %" PRIu32 " of %" PRIu32
                      " experts per token, spread evenly over the GPUs; a "
                      "small batch reads only those it uses\n",
                      m->experts_active, m->experts);
    if (m->sliding)
        (void)fputs("#   some layers see a window only: KV and attention are upper bounds\n", out);
    if (r->dp > 1)
        (void)fprintf(out,
                      "#   %" PRIu32
                      " data-parallel ranks, each with all of attention; set dp_size: %" PRIu32
                      " in engine\n",
                      r->dp, r->dp);
    if (gpus_of(a) > 1)
        (void)fputs("#   no time for communication between the GPUs\n", out);
    (void)fputs("#   d0 (per decoding request) is 0: the roofline says nothing about it\n"
                "#   prefill shorter than the reading of the weights is hidden under it\n",
                out);
}

/* Capacity is the engine's to tell; this only helps to see that a stack file is not absurd. */
static void print_blocks(FILE *out, const struct ask *a, const struct model_shape *m)
{
    const struct roofline *r = &a->roofline;
    if (a->utilization <= 0 || a->gpu.memory_gb <= 0)
        return;
    double weights = roofline_gpu_weight_bytes(m, r);
    double left = a->gpu.memory_gb * 1e9 * a->utilization - weights;
    double block = model_kv_bytes_per_token(m, r->kv_bytes) / (roofline_kv_split(m, r) * r->pp) *
                   a->block_size;
    if (left <= 0) {
        (void)fprintf(out, "# The weights do not fit: %.1f GB per GPU of %.1f GB. Raise --tp.\n",
                      weights / 1e9, a->gpu.memory_gb);
        return;
    }
    (void)fprintf(out,
                  "# Estimate, upper bound: at most %.0f blocks of %" PRIu32
                  " tokens before activations and CUDA graphs.\n"
                  "# Do not use it: take num_gpu_blocks from the engine's log.\n",
                  floor(left / block), a->block_size);
}

static void print_profile(FILE *out, const struct ask *a, const struct model_shape *m,
                          const struct step_params *p)
{
    print_assumptions(out, a, m);
    print_blocks(out, a, m);
    (void)fputs("source: roofline\nmodel: ", out);
    print_quoted(out, a->model[0] ? a->model : m->type);
    (void)fputs("\nsystem: ", out);
    print_quoted(out, a->gpu.name);
    (void)fputs("\nprecision: ", out);
    print_quoted(out, a->dtype ? a->dtype : m->quantization[0] ? m->quantization : "bf16");
    (void)fprintf(out, "\ntp: %" PRIu32 "\ngpus: %" PRIu64 "\nkv_bytes_per_token: %.0f\nstep:\n",
                  a->roofline.tp, gpus_of(a), model_kv_bytes_per_token(m, a->roofline.kv_bytes));
    stack_print_step(out, "  ", p);
}

int profile_main(int argc, char **argv)
{
    struct ask a;
    struct model_shape m;
    struct step_params p;
    struct step_model model;
    char error[STACK_ERROR_BYTES], *text = NULL;
    const char *why = NULL;
    size_t len = 0;

    int rc = parse(&a, argc, argv);
    if (a.help)
        print_help(stdout);
    if (rc || a.help)
        return cli_finish(COMMAND, rc);
    rc = ytree_read_file(a.config, MODEL_CONFIG_MAX_BYTES, &text, &len, error);
    if (rc == WEIR_OK)
        rc = model_shape_read(&m, a.config, text, len, a.dtype, error);
    free(text);
    if (rc)
        return cli_fail(COMMAND, "%s", error);
    a.roofline.gpu = &a.gpu;
    a.roofline.weight_bytes = m.weight_bytes;
    a.roofline.kv_bytes = dtype_bytes(a.kv_dtype);
    roofline_step(&p, &m, &a.roofline);
    if (step_model_init(&model, &p, &why))
        return cli_fail(COMMAND, "%s: %s", a.config, why);
    print_profile(stdout, &a, &m, &p);
    return cli_finish(COMMAND, 0);
}
