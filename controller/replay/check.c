/* check.c - `weir check`: reads stack files and says in a few lines what they describe. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/replay/profile.h"
#include "controller/replay/stack.h"
#include "predictor/units.h"

#define COMMAND "check"
#define MAX_SETS 256

/* The batch whose step time is shown: small enough for every pool, large enough to show d0 and k. */
#define SAMPLE_REQS 32u
#define SAMPLE_CTX_TOK 1024u

struct ask {
    const char *set[MAX_SETS]; /* KEY=VALUE */
    uint32_t n_sets;
    bool print, help, reference;
};

static void print_help(FILE *out)
{
    (void)fputs(
        "usage: weir check [OPTIONS] FILE...\n"
        "\n"
        "Checks stack files and shows what they describe. Exit status 2 if one has an error.\n"
        "\n"
        "      --print          the whole stack instead, with every default and profile filled in\n"
        "      --set KEY=VALUE  changes a key after reading, as in weir replay: max_num_seqs=64 in all\n"
        "                       pools, pools.decode.workers=6 in one, slo.ttft_ms=500\n"
        "      --reference      prints the page deploy/stack-reference.md\n"
        "  -h, --help\n"
        "\n"
        "Profiles are looked up in $WEIR_PROFILES, ./deploy/profiles and beside the program. Step times\n"
        "for systems that nobody measured: weir profile --help.\n"
        "\n"
        "The keys of a stack file:\n",
        out);
    stack_print_reference(out, false);
}

static const char *role_name(enum worker_role role)
{
    static const char *const names[] = {"both", "prefill", "decode"};
    return names[role];
}

static const char *scheduler_name(enum sched_kind kind)
{
    static const char *const names[] = {"vllm", "sglang", "trtllm", "dynosim"};
    return names[kind];
}

/* Time of one step of the sample batch: decoding requests, or one prompt. */
static double sample_ms(const struct engine_config *c, bool prefill)
{
    uint64_t capacity = (uint64_t)c->block_size * c->num_gpu_blocks;
    uint64_t used = (uint64_t)SAMPLE_REQS * SAMPLE_CTX_TOK;
    struct step_batch b = {.total_kv_tok = capacity,
                           .active_kv_tok = used < capacity ? used : capacity};
    if (prefill) {
        b.prefill_reqs = 1;
        b.prefill_tok = SAMPLE_CTX_TOK;
        b.prefill_attn = (uint64_t)SAMPLE_CTX_TOK * SAMPLE_CTX_TOK;
        b.active_kv_tok = SAMPLE_CTX_TOK;
    } else {
        b.decode_reqs = SAMPLE_REQS;
        b.decode_ctx_tok = used;
    }
    return ms_from_ps(step_time_ps(&c->step, &b));
}

static void print_limit(const char *name, int64_t ps, const char **before)
{
    if (ps == PS_NEVER)
        return;
    (void)printf("%s %s %g ms", *before, name, ms_from_ps(ps));
    *before = ",";
}

static const char *step_source(const struct stack_pool *p)
{
    if (p->profile[0])
        return p->profile;
    return p->step_written ? "(step of its own)" : "(built in)";
}

static void print_notes(const struct stack *s)
{
    for (uint32_t i = 0; i < s->n_pools; i++) {
        const struct engine_config *c = &s->pools[i].worker.engine;
        if (c->dp_size > 1)
            (void)printf("  pool %s: each worker has %" PRIu32
                         " ranks in step; KV tokens and max seqs are those of one\n",
                         s->pools[i].name, c->dp_size);
        if (c->num_host_blocks || c->num_shared_blocks)
            (void)printf(
                "  pool %s: below its KV %" PRIu64 " tokens in host memory of each %s, %" PRIu64
                " in a store of all workers\n",
                s->pools[i].name, (uint64_t)c->block_size * c->num_host_blocks,
                c->dp_size > 1 ? "rank" : "worker", (uint64_t)c->block_size * c->num_shared_blocks);
        bool moves = c->role == ROLE_PREFILL || c->num_host_blocks || c->num_shared_blocks;
        if (moves && c->kv_bytes_per_token == 0)
            (void)printf(
                "  note: pool %s: kv_bytes_per_token is 0, so moving its KV takes no time\n",
                s->pools[i].name);
    }
    if (s->n_faults)
        (void)printf("  %" PRIu32 " fault%s, the first at %g s, the last at %g s\n", s->n_faults,
                     s->n_faults == 1 ? "" : "s", ms_from_ps(s->faults[0].at_ps) / 1000,
                     ms_from_ps(s->faults[s->n_faults - 1].at_ps) / 1000);
}

static void print_summary(const char *path, const struct stack *s)
{
    uint64_t workers = 0, gpus = 0;
    bool disaggregated = false;
    int width = 4;
    for (uint32_t i = 0; i < s->n_pools; i++) {
        const struct stack_pool *p = &s->pools[i];
        workers += p->workers;
        gpus += (uint64_t)p->workers * p->worker.gpus;
        disaggregated |= p->worker.engine.role == ROLE_PREFILL;
        width = (int)strlen(p->name) > width ? (int)strlen(p->name) : width;
    }
    (void)printf("%s: ok\n  %" PRIu64 " worker%s on %" PRIu64 " GPU%s; SLO", path, workers,
                 workers == 1 ? "" : "s", gpus, gpus == 1 ? "" : "s");
    const char *before = "";
    print_limit("TTFT", s->slo_ttft_ps, &before);
    print_limit("TPOT", s->slo_tpot_ps, &before);
    print_limit("E2E", s->slo_e2e_ps, &before);
    (void)printf("%s\n", *before ? "" : " none");
    if (disaggregated)
        (void)printf("  prefill to decode: %g ms + bytes at %g GB/s%s, %s, %s\n",
                     s->link.latency_ms, s->link.bandwidth_gb_s,
                     s->link.bandwidth_gb_s > 0 ? "" : " (no limit)",
                     s->handoff == HANDOFF_SOURCE_FIRST ? "source first" : "destination first",
                     s->transfer == TRANSFER_FULL_PROMPT ? "full prompt" : "what is missing");
    (void)printf("  %-*s  %-7s  %7s  %4s  %-7s  %10s  %8s  %9s  %9s  %s\n", width, "pool", "role",
                 "workers", "GPUs", "engine", "KV tokens", "max seqs", "decode ms", "prompt ms",
                 "profile");
    for (uint32_t i = 0; i < s->n_pools; i++) {
        const struct stack_pool *p = &s->pools[i];
        const struct engine_config *c = &p->worker.engine;
        (void)printf("  %-*s  %-7s  %7" PRIu32 "  %4" PRIu32 "  %-7s  %10" PRIu64 "  %8" PRIu32
                     "  %9.2f  %9.2f  %s\n",
                     width, p->name, role_name(c->role), p->workers, p->worker.gpus,
                     scheduler_name(c->scheduler), (uint64_t)c->block_size * c->num_gpu_blocks,
                     c->max_num_seqs, sample_ms(c, false), sample_ms(c, true), step_source(p));
    }
    print_notes(s);
}

static int check_file(const char *path, const struct ask *a, const struct profile_dirs *dirs)
{
    char error[STACK_ERROR_BYTES] = "";
    struct stack *s = malloc(sizeof *s); /* 2 MiB: not on the stack of a thread */
    if (!s)
        return cli_fail(COMMAND, "%s: out of memory", path);
    int rc = stack_load(s, path, dirs->list, error);
    if (rc == WEIR_OK)
        rc = stack_set_all(s, a->set, a->n_sets, error);
    if (rc == WEIR_OK && a->n_sets)
        rc = stack_check(s, path, error);
    if (rc)
        rc = cli_fail(COMMAND, "%s", error);
    else if (a->print)
        stack_print(stdout, s);
    else
        print_summary(path, s);
    stack_deinit(s);
    free(s);
    return rc;
}

static int parse(struct ask *a, int argc, char **argv)
{
    static const struct option options[] = {
        {"print", no_argument, NULL, 'p'},
        {"set", required_argument, NULL, 's'},
        {"reference", no_argument, NULL, 'r'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    *a = (struct ask){0};
    cli_start();
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 'p': a->print = true; break;
        case 'r': a->reference = true; break;
        case 'h': a->help = true; break;
        case 's':
            if (a->n_sets == MAX_SETS)
                return cli_fail(COMMAND, "--set: more than %d of them; edit the file", MAX_SETS);
            a->set[a->n_sets++] = optarg;
            break;
        default: return cli_bad_option(COMMAND, options, argv, option);
        }
    }
    if (optind == argc && !a->help && !a->reference)
        return cli_fail(COMMAND, "no stack file named, as deploy/stacks/llama8b-h100-agg8.yaml; "
                                 "see weir check --help");
    return 0;
}

int check_main(int argc, char **argv)
{
    struct ask a;
    struct profile_dirs dirs;
    unsigned summaries = 0;
    int status = parse(&a, argc, argv);
    if (status)
        return status;
    if (a.help) {
        print_help(stdout);
    } else if (a.reference) {
        stack_print_reference(stdout, true);
    } else {
        profile_dirs_init(&dirs);
        for (int i = optind; i < argc; i++) {
            int one = check_file(argv[i], &a, &dirs);
            status = one ? one : status;
            summaries += !one && !a.print;
        }
        if (summaries)
            (void)printf("decode ms: a step of %u requests that have %u tokens each; prompt ms: a "
                         "prompt of %u tokens, alone\n",
                         SAMPLE_REQS, SAMPLE_CTX_TOK, SAMPLE_CTX_TOK);
    }
    return cli_finish(COMMAND, status);
}
