/* parity_vllm.c - step-by-step comparison with a recorded vLLM (recording.h). Only requests, limits and the order
 * of arrivals and aborts between steps go in; everything else must come out equal: batches in their order,
 * admissions, preemptions, finishes, lengths of the queues, free blocks.
 */
#include <glob.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bench/parity/parity.h"
#include "bench/parity/recording.h"

#define SHOWN_MAX 6 /* differences of a case that are printed */

/* A text that grows. */
struct text {
    char *s;
    size_t n, cap;
};

struct parity_case {
    struct recording rec;
    struct engine *engine;
    uint32_t *slot; /* by request */
    bool *live, *late;
    uint64_t steps, differences;
    struct text mine, theirs;
};

/* ---- texts as the recording writes them */

static void text_clear(struct text *t)
{
    t->n = 0;
    if (t->cap)
        t->s[0] = 0;
}

static void text_add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void text_add(struct text *t, const char *fmt, ...)
{
    va_list args;
    if (t->n + 64 > t->cap) {
        t->cap = 2 * t->cap + 4096;
        t->s = realloc(t->s, t->cap);
        if (!t->s) {
            fprintf(stderr, "parity: out of memory\n");
            exit(2);
        }
    }
    va_start(args, fmt);
    t->n += (size_t)vsnprintf(t->s + t->n, 64, fmt, args);
    va_end(args);
}

static const char *blank(const struct text *t)
{
    return t->n ? " " : "";
}

static const char *text_of(const struct text *t)
{
    return t->n ? t->s : "";
}

/* ---- comparing */

static void differ(struct parity_case *p, const char *what, const char *mine, const char *theirs)
{
    if (p->differences++ < SHOWN_MAX)
        printf("  step %s %s: weir '%s', engine '%s'\n", p->rec.cell[REC_STEP], what, mine, theirs);
}

static void compare(struct parity_case *p, enum recording_column column, const char *what)
{
    if (strcmp(p->rec.cell[column], text_of(&p->mine)))
        differ(p, what, text_of(&p->mine), p->rec.cell[column]);
}

static void compare_u32(struct parity_case *p, enum recording_column column, const char *what,
                        uint32_t mine)
{
    text_clear(&p->mine);
    text_add(&p->mine, "%u", mine);
    compare(p, column, what);
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The numbers of a list, sorted: the engine lists finishes in an order of its own. */
static void sort_list(const struct parity_case *p, const char *list, struct text *out)
{
    uint32_t n = 0, *v = malloc((strlen(list) / 2 + 1) * sizeof *v);
    if (!v)
        recording_refuse(&p->rec, "out of memory");
    while (*list)
        v[n++] = recording_word(&p->rec, &list, NULL);
    qsort(v, n, sizeof *v, by_number);
    text_clear(out);
    for (uint32_t i = 0; i < n; i++)
        text_add(out, "%s%u", blank(out), v[i]);
    free(v);
}

static void compare_set(struct parity_case *p, enum recording_column column, const char *what)
{
    struct text mine = {0};
    sort_list(p, text_of(&p->mine), &mine);
    sort_list(p, p->rec.cell[column], &p->theirs);
    if (strcmp(text_of(&mine), text_of(&p->theirs)))
        differ(p, what, text_of(&p->mine), p->rec.cell[column]);
    free(mine.s);
}

static void list_handles(struct parity_case *p, enum engine_step_list which)
{
    const uint32_t *h;
    uint32_t n = engine_step_list(p->engine, which, &h);
    text_clear(&p->mine);
    for (uint32_t i = 0; i < n; i++)
        text_add(&p->mine, "%s%u", blank(&p->mine), h[i]);
}

/* "i:computed:total i:..." against "i i": the state at preemption is compared through later batches. */
static void compare_preempted(struct parity_case *p)
{
    const char *list = p->rec.cell[REC_PREEMPTED];
    list_handles(p, STEP_PREEMPTED);
    text_clear(&p->theirs);
    while (*list)
        text_add(&p->theirs, "%s%u", blank(&p->theirs), recording_word(&p->rec, &list, NULL));
    if (strcmp(text_of(&p->mine), text_of(&p->theirs)))
        differ(p, "preempted", text_of(&p->mine), p->rec.cell[REC_PREEMPTED]);
}

/* ---- a step */

static void add_requests(struct parity_case *p)
{
    const char *list = p->rec.cell[REC_ADDED];
    double at;
    while (*list) {
        uint32_t i = recording_word(&p->rec, &list, &at);
        struct recording_request *q = recording_request(&p->rec, i);
        if (p->live[i])
            recording_refuse(&p->rec, "a request is added that is there already");
        if (engine_submit(p->engine, 0, &q->spec, i, 0, &p->slot[i]))
            recording_refuse(&p->rec, "a request is added that can never fit these limits");
        p->live[i] = true;
    }
}

/* Aborts before the schedule() call happen before it; later ones are marked and happen during the pass. */
static void abort_requests(struct parity_case *p, double t0, bool late)
{
    const char *list = p->rec.cell[REC_ABORTED];
    double at;
    while (*list) {
        uint32_t i = recording_word(&p->rec, &list, &at);
        (void)recording_request(&p->rec, i);
        if ((at > t0) != late || !p->live[i])
            continue;
        engine_abort(p->engine, 0, p->slot[i]);
        p->live[i] = false;
        p->late[i] = late;
    }
}

static void compare_schedule(struct parity_case *p, const struct engine_batch_item *batch,
                             uint32_t n)
{
    struct engine_load load;
    text_clear(&p->mine);
    for (uint32_t i = 0; i < n; i++)
        text_add(&p->mine, "%s%u:%u:%u", blank(&p->mine), batch[i].handle, batch[i].computed,
                 batch[i].scheduled);
    compare(p, REC_BATCH, "batch");
    list_handles(p, STEP_NEW);
    compare(p, REC_NEW, "new");
    list_handles(p, STEP_RESUMED);
    compare_set(p, REC_RESUMED, "resumed");
    compare_preempted(p);
    compare_u32(p, REC_FREE, "free", engine_free_blocks(p->engine));
    engine_get_load(p->engine, 0, &load);
    compare_u32(p, REC_RUN, "run", load.running);
    if (!*p->rec.cell[REC_ABORTED]) /* recorded before or after it was told */
        compare_u32(p, REC_WAIT, "wait", load.waiting);
}

/* The engine reports a late abort that was in the batch as finished. */
static void compare_finished(struct parity_case *p, const struct engine_batch_item *batch,
                             uint32_t n)
{
    uint32_t n_ev;
    text_clear(&p->mine);
    for (uint32_t i = 0; i < n; i++) {
        if (p->late[batch[i].handle])
            text_add(&p->mine, "%s%u", blank(&p->mine), batch[i].handle);
    }
    engine_step_end(p->engine, 0);
    const struct engine_event *ev = engine_events(p->engine, &n_ev);
    for (uint32_t i = 0; i < n_ev; i++) {
        text_add(&p->mine, "%s%u", blank(&p->mine), ev[i].handle);
        p->live[ev[i].handle] = false;
    }
    engine_clear_events(p->engine);
    compare_set(p, REC_FINISHED, "finished");
    compare_u32(p, REC_FREE3, "free3", engine_free_blocks(p->engine));
}

static void check_step(struct parity_case *p)
{
    const struct engine_batch_item *batch;
    struct engine_load load;
    char *end;
    double t0 = strtod(p->rec.cell[REC_T0], &end);
    if (*end || end == p->rec.cell[REC_T0])
        recording_refuse(&p->rec, "t0 must be a number of seconds");
    p->steps++;
    add_requests(p);
    abort_requests(p, t0, false);
    engine_get_load(p->engine, 0, &load);
    compare_u32(p, REC_RUN0, "run0", load.running);
    compare_u32(p, REC_FREE0, "free0", engine_free_blocks(p->engine));
    uint32_t n = engine_step_begin(p->engine, 0, &batch);
    compare_schedule(p, batch, n);
    abort_requests(p, t0, true);
    compare_finished(p, batch, n);
}

/* ---- cases */

static uint64_t run_case(const char *dir, uint64_t *steps)
{
    struct parity_case p = {0};
    recording_open(&p.rec, dir);
    p.engine = engine_new(&p.rec.config, 0);
    p.slot = calloc(p.rec.n_requests + 1, sizeof *p.slot);
    p.live = calloc(p.rec.n_requests + 1, sizeof *p.live);
    p.late = calloc(p.rec.n_requests + 1, sizeof *p.late);
    if (!p.engine || !p.slot || !p.live || !p.late)
        recording_refuse(&p.rec, "out of memory");
    while (recording_next(&p.rec))
        check_step(&p);
    const char *name = strrchr(dir, '/');
    printf("%-16s %6llu steps  %llu differences\n", name ? name + 1 : dir,
           (unsigned long long)p.steps, (unsigned long long)p.differences);
    fflush(stdout);
    recording_close(&p.rec);
    engine_free(p.engine);
    free(p.slot);
    free(p.live);
    free(p.late);
    free(p.mine.s);
    free(p.theirs.s);
    *steps += p.steps;
    return p.differences;
}

/* A directory is a case, or has some. */
static uint64_t run_directory(const char *dir, uint64_t *steps)
{
    char pattern[4096];
    struct stat st;
    glob_t found;
    uint64_t differences = 0;
    if ((size_t)snprintf(pattern, sizeof pattern, "%s/config.json", dir) < sizeof pattern &&
        stat(pattern, &st) == 0)
        return run_case(dir, steps);
    if ((size_t)snprintf(pattern, sizeof pattern, "%s/*/config.json", dir) >= sizeof pattern ||
        glob(pattern, 0, NULL, &found)) {
        fprintf(stderr,
                "parity: %s: no recording: a directory with config.json, requests.jsonl and "
                "steps.csv.gz is expected, or one that has such directories\n",
                dir);
        exit(2);
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        *strrchr(found.gl_pathv[i], '/') = 0;
        differences += run_case(found.gl_pathv[i], steps);
    }
    globfree(&found);
    return differences;
}

int parity_vllm(int n, char **dirs)
{
    uint64_t differences = 0, steps = 0;
    for (int i = 0; i < n; i++) {
        size_t len = strlen(dirs[i]);
        while (len > 1 && dirs[i][len - 1] == '/')
            dirs[i][--len] = 0;
        differences += run_directory(dirs[i], &steps);
    }
    printf("%-16s %6llu steps  %llu differences\n", "all", (unsigned long long)steps,
           (unsigned long long)differences);
    return differences != 0;
}
