/* runs.c - recorded runs of real engines: fit on one half of a run, predict the other; fit on one run, predict
 * another one of the same class. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/fidelity/errors.h"
#include "bench/fidelity/fidelity.h"
#include "bench/fidelity/recording.h"

#define COLD_PS                                                                                    \
    (2 * PS_PER_S) /* a fresh engine's first steps are slow: compiling, first launches */

struct half {
    const char *name;
    uint32_t from, to;
};

static const char *refusal(int rc)
{
    return rc == WEIR_E_NOMEM ? "out of memory" : "the limits or the requests are refused";
}

static struct fit_case case_of(const struct recording *r)
{
    struct fit_case c = {.worker = r->worker, .requests = r->requests, .n = r->n};
    return c;
}

static int fit_on(struct recording *r, const struct half *h, struct step_params *step,
                  struct fit_result *result)
{
    struct fit_case c = case_of(r);
    for (uint32_t i = 0; i < r->n; i++)
        r->requests[i].use = i >= h->from && i < h->to;
    struct fit_options options = {.unknowns = FIT_ALL, .prior = r->has_prior ? &r->prior : NULL};
    *step = r->step;
    int rc = fit_step(&c, &options, step, result);
    if (rc)
        fprintf(stderr, "fidelity: %s: no fit: %s\n", r->name, refusal(rc));
    return rc;
}

static void print_step(const struct step_params *s, const struct fit_result *f)
{
    printf(
        "  W %.3f ms, d0 %.4f ms/request, k %.5f us/KV token, p %.5f ms/token, q %.3g ms/token^2",
        s->w_ms, s->d0_ms_per_req, 1e3 * s->k_ms_per_tok, s->p_ms_per_tok, s->q_ms_per_tok2);
    if (s->moe_experts)
        printf(", %.2f of W in %u experts", s->moe_w_share, s->moe_experts);
    printf(", mix %.5f us\n  %u requests, %u simulated runs, cost %.4f\n", 1e3 * s->mix_ms_per_tok,
           f->used, f->plays, f->cost);
}

/* ---- comparing */

/* The values of requests [from, to) that pass, as seconds and milliseconds. */
struct values {
    double *actual[3], *predicted[3]; /* TTFT s, TPOT ms, E2E s */
    uint32_t n;
};

static void values_init(struct values *v, uint32_t n)
{
    double *memory = calloc(6 * (size_t)n, sizeof *memory);
    if (!memory)
        abort();
    for (uint32_t i = 0; i < 3; i++) {
        v->actual[i] = memory + i * (size_t)n;
        v->predicted[i] = memory + (3 + i) * (size_t)n;
    }
    v->n = 0;
}

static void measure(double *to[3], uint32_t at, const struct request_spec *s, int64_t first,
                    int64_t last)
{
    to[0][at] = ms_from_ps(first - s->arrival_ps) / 1e3;
    to[1][at] = s->output_tok > 1 ? ms_from_ps(last - first) / (s->output_tok - 1) : 0;
    to[2][at] = ms_from_ps(last - s->arrival_ps) / 1e3;
}

static void collect(struct values *v, const struct recording *r, const struct fit_times *t,
                    const struct half *h, bool only_calm)
{
    v->n = 0;
    for (uint32_t i = h->from; i < h->to; i++) {
        const struct fit_request *q = &r->requests[i];
        bool calm = !t[i].preemptions && q->spec.arrival_ps >= COLD_PS;
        if (t[i].last_token_ps < 0 || (only_calm && !calm))
            continue;
        measure(v->actual, v->n, &q->spec, q->first_token_ps, q->last_token_ps);
        measure(v->predicted, v->n++, &q->spec, t[i].first_token_ps, t[i].last_token_ps);
    }
}

static void print_values(const struct values *v, const char *what)
{
    static const char *const names[3] = {"TTFT", "TPOT", "E2E"}, *const units[3] = {"s", "ms", "s"};
    for (uint32_t i = 0; i < 3; i++) {
        struct errors e;
        char name[64];
        snprintf(name, sizeof name, "%s %s", what, names[i]);
        errors_compute(&e, v->actual[i], v->predicted[i], v->n);
        errors_print(name, units[i], &e);
    }
}

/* Predicts all of r and prints the errors on the fitted part (NULL: none of it was) and on the others. */
static int compare(const struct recording *r, const struct step_params *step,
                   const struct half *fitted, const struct half *held_out)
{
    struct fit_case c = case_of(r);
    struct fit_times *t = calloc(r->n, sizeof *t);
    struct values v;
    if (!t)
        abort();
    int rc = fit_predict(&c, step, t);
    if (rc)
        fprintf(stderr, "fidelity: %s: %s\n", r->name, refusal(rc));
    values_init(&v, r->n);
    uint32_t preempted = 0, total = 0;
    for (uint32_t i = held_out->from; i < held_out->to; i++) {
        preempted += t[i].preemptions > 0;
        total += t[i].preemptions;
    }
    if (rc == 0) {
        errors_print_header("");
        if (fitted) {
            collect(&v, r, t, fitted, false);
            print_values(&v, "(fitted on)");
        }
        collect(&v, r, t, held_out, false);
        print_values(&v, "held out");
        uint32_t all = v.n;
        collect(&v, r, t, held_out, true);
        if (v.n && v.n < all) {
            print_values(&v, "  of these, calm");
            printf(
                "  calm: not among the %u that the simulation preempts (%u times) nor the arrivals of "
                "the first 2 s\n",
                preempted, total);
        }
    }
    free(v.actual[0]);
    free(t);
    return rc;
}

/* ---- the experiments */

static void print_recording(const struct recording *r)
{
    const struct engine_config *c = &r->worker.engine;
    printf("\n%s: %u requests (%s)\n", r->name, r->n, r->class_name);
    printf("  max_num_seqs %u, max_num_batched_tokens %u, %s scheduling, ", c->max_num_seqs,
           c->max_num_batched_tokens, c->async_scheduling ? "asynchronous" : "synchronous");
    if (r->blocks_assumed)
        printf("num_gpu_blocks not recorded: enough for all\n");
    else
        printf("%u blocks of %u tokens\n", c->num_gpu_blocks, c->block_size);
    if (r->left_out)
        printf("  %u aborted or failed requests are left out\n", r->left_out);
}

static int halves(const char *folder)
{
    for (int reverse = 0; reverse < 2; reverse++) {
        struct recording r;
        struct step_params step;
        struct fit_result result;
        if (!recording_load(&r, folder))
            return 2;
        struct half half[2] = {{"first", 0, r.n / 2}, {"second", r.n / 2, r.n}};
        const struct half *fitted = &half[reverse], *other = &half[!reverse];
        recording_align(&r, fitted->from, fitted->to);
        if (!reverse)
            print_recording(&r);
        printf("\n  fitted on the %s half (by arrival), held out: the %s\n", fitted->name,
               other->name);
        int rc = fit_on(&r, fitted, &step, &result);
        if (rc == 0) {
            print_step(&step, &result);
            rc = compare(&r, &step, fitted, other);
        }
        recording_free(&r);
        if (rc)
            return 2;
    }
    return 0;
}

static int cross(const struct recording *from, struct recording *to)
{
    struct recording *source = (struct recording *)(uintptr_t)from;
    struct step_params step;
    struct fit_result result;
    struct half all = {"all", 0, from->n}, target = {"all", 0, to->n};
    printf("\nfitted on %s, held out: %s\n", from->name, to->name);
    int rc = fit_on(source, &all, &step, &result);
    if (rc)
        return 2;
    print_step(&step, &result);
    return compare(to, &step, NULL, &target) ? 2 : 0;
}

int fidelity_runs(int n, char **folders)
{
    struct recording *r = calloc((size_t)n, sizeof *r);
    int rc = 0, loaded = 0, pairs = 0;
    if (!r)
        abort();
    for (; loaded < n && rc == 0; loaded++) {
        if (!recording_load(&r[loaded], folders[loaded])) {
            rc = 2;
            break;
        }
        recording_align(&r[loaded], 0, r[loaded].n);
        rc = halves(folders[loaded]);
    }
    for (int i = 0; i < n && rc == 0; i++) {
        for (int j = 0; j < n && rc == 0; j++) {
            if (i == j || strcmp(r[i].class_name, r[j].class_name) != 0)
                continue;
            rc = cross(&r[i], &r[j]);
            pairs++;
        }
    }
    if (rc == 0 && n > 1 && !pairs)
        printf(
            "\nno two of these runs are of the same class: nothing to carry from one to another\n");
    for (int i = 0; i < loaded; i++)
        recording_free(&r[i]);
    free(r);
    return rc;
}
