/* parity_vllm.c - step-by-step comparison with a recorded vLLM. A case is a directory with config.json
 * (engine limits), requests.jsonl (prompt, max_tokens, priority, hash_ids, session, turn, arrival) and
 * steps.csv.gz (one scheduler step a line). Only requests, limits and the order of arrivals and aborts
 * between steps go in; everything else must come out equal.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>
#include <zlib.h>

#include "bench/parity/parity.h"
#include "predictor/engine.h"

#define LINE_MAX_BYTES (1 << 20)
#define SHOWN_MAX 6

struct rec {
    struct request_spec spec;
    uint64_t *keys;
    int64_t session, turn;
    uint32_t slot;
    bool live, late;
};

struct parity_case {
    const char *dir;
    struct rec *recs;
    uint32_t n_recs;
    struct engine_config c;
    struct engine *engine;
    uint64_t steps, differences;
    char *cols[32];
    int n_cols;
};

static void die(const char *file, const char *what)
{
    fprintf(stderr, "parity: %s: %s\n", file, what);
    exit(2);
}

static char *path_of(const struct parity_case *p, const char *name)
{
    static char buf[4096];
    snprintf(buf, sizeof buf, "%s/%s", p->dir, name);
    return buf;
}

static uint32_t field_u32(yyjson_val *obj, const char *key, const char *file)
{
    yyjson_val *v = yyjson_obj_get(obj, key);
    if (!yyjson_is_int(v) || yyjson_get_sint(v) < 0)
        die(file, key);
    return (uint32_t)yyjson_get_uint(v);
}

static void load_config(struct parity_case *p)
{
    char *file = path_of(p, "config.json");
    yyjson_doc *doc = yyjson_read_file(file, 0, NULL, NULL);
    if (!doc)
        die(file, "not readable as JSON");
    yyjson_val *e = yyjson_obj_get(yyjson_doc_get_root(doc), "engine");
    engine_config_default(&p->c, SCHED_VLLM);
    p->c.block_size = field_u32(e, "block_size", file);
    p->c.num_gpu_blocks = field_u32(e, "num_gpu_blocks", file);
    p->c.max_num_seqs = field_u32(e, "max_num_seqs", file);
    p->c.max_num_batched_tokens = field_u32(e, "max_num_batched_tokens", file);
    p->c.long_prefill_token_threshold = field_u32(e, "long_prefill_token_threshold", file);
    const char *policy = yyjson_get_str(yyjson_obj_get(e, "policy"));
    p->c.policy = policy && !strcmp(policy, "priority") ? SCHED_PRIORITY : SCHED_FCFS;
    yyjson_doc_free(doc);
}

static void load_request(struct parity_case *p, yyjson_val *r, const char *file)
{
    uint32_t i = field_u32(r, "i", file);
    if (i >= p->n_recs) {
        p->recs = realloc(p->recs, (i + 1) * sizeof *p->recs);
        if (!p->recs)
            die(file, "out of memory");
        memset(p->recs + p->n_recs, 0, (i + 1 - p->n_recs) * sizeof *p->recs);
        p->n_recs = i + 1;
    }
    struct rec *q = &p->recs[i];
    q->session = yyjson_get_sint(yyjson_obj_get(r, "session"));
    q->turn = yyjson_get_sint(yyjson_obj_get(r, "turn"));
    q->spec.uid = i + 1;
    q->spec.prompt_tok = field_u32(r, "prompt", file);
    q->spec.output_tok = q->spec.max_tokens = field_u32(r, "max_tokens", file);
    yyjson_val *prio = yyjson_obj_get(r, "priority");
    q->spec.priority = prio ? (int32_t)yyjson_get_sint(prio) : 0;
    yyjson_val *arr = yyjson_obj_get(r, "arrival");
    q->spec.arrival_ps = arr ? (int64_t)(yyjson_get_num(arr) * 1e12) : i;
    yyjson_val *ids = yyjson_obj_get(r, "hash_ids");
    size_t n = yyjson_arr_size(ids), k;
    q->keys = malloc((n + 1) * sizeof *q->keys);
    if (!q->keys)
        die(file, "out of memory");
    yyjson_val *id;
    yyjson_arr_iter it = yyjson_arr_iter_with(ids);
    for (k = 0; (id = yyjson_arr_iter_next(&it)); k++)
        q->keys[k] = request_chain_key(k ? q->keys[k - 1] : 0, yyjson_get_uint(id));
    q->spec.keys = q->keys;
    q->spec.key_tok = p->c.block_size;
    q->spec.n_keys = q->spec.prompt_tok / p->c.block_size;
}

static void load_requests(struct parity_case *p)
{
    char *file = path_of(p, "requests.jsonl"), *line = NULL;
    FILE *f = fopen(file, "r");
    if (!f)
        die(file, strerror(errno));
    size_t cap = 0;
    ssize_t len;
    while ((len = getline(&line, &cap, f)) > 0) {
        yyjson_doc *doc = yyjson_read(line, (size_t)len, 0);
        if (!doc)
            die(file, "a line is not JSON");
        yyjson_val *r = yyjson_doc_get_root(doc);
        if (yyjson_obj_get(r, "i"))
            load_request(p, r, file);
        yyjson_doc_free(doc);
    }
    free(line);
    fclose(f);
    /* a session's next turn repeats this answer: its block names name the generated blocks */
    for (uint32_t i = 0; i < p->n_recs; i++) {
        for (uint32_t j = 0; j < p->n_recs; j++) {
            struct rec *a = &p->recs[i], *b = &p->recs[j];
            if (b->session == a->session && b->turn == a->turn + 1 &&
                b->spec.prompt_tok / p->c.block_size > a->spec.n_keys) {
                a->spec.keys = b->keys;
                a->spec.n_keys = b->spec.prompt_tok / p->c.block_size;
            }
        }
    }
}

static const char *col(const struct parity_case *p, char *const *row, const char *name)
{
    for (int i = 0; i < p->n_cols; i++) {
        if (!strcmp(p->cols[i], name))
            return row[i];
    }
    die(p->dir, name);
    return NULL;
}

static int split(char *line, char **out, int max)
{
    int n = 0;
    line[strcspn(line, "\r\n")] = 0;
    for (char *s = line; s && n < max;)
        out[n++] = strsep(&s, ",");
    return n;
}

static void differ(struct parity_case *p, const char *step, const char *what, const char *model,
                   const char *engine)
{
    if (p->differences++ < SHOWN_MAX)
        printf("  step %s %s: weir '%s', engine '%s'\n", step, what, model, engine);
}

static void compare(struct parity_case *p, char *const *row, const char *what, const char *model)
{
    const char *engine = col(p, row, what);
    if (strcmp(engine, model))
        differ(p, col(p, row, "step"), what, model, engine);
}

static void compare_u32(struct parity_case *p, char *const *row, const char *what, uint32_t model)
{
    char s[16];
    snprintf(s, sizeof s, "%u", model);
    compare(p, row, what, s);
}

/* As a set: the engine lists finishes in its own order. */
static void compare_set(struct parity_case *p, char *const *row, const char *what,
                        const char *model)
{
    const char *engine = col(p, row, what);
    size_t a = 0, b = 0;
    char word[32];
    bool same = true;
    for (const char *s = engine; *s; s += strspn(s, " ")) {
        size_t n = strcspn(s, " ");
        snprintf(word, sizeof word, " %.*s ", (int)n, s);
        char padded[LINE_MAX_BYTES / 64];
        snprintf(padded, sizeof padded, " %s ", model);
        same &= strstr(padded, word) != NULL;
        s += n;
        a++;
    }
    for (const char *s = model; *s; s += strspn(s, " "), b++)
        s += strcspn(s, " ");
    if (!same || a != b)
        differ(p, col(p, row, "step"), what, model, engine);
}

static void add_requests(struct parity_case *p, const char *list)
{
    char *end;
    for (const char *s = list; *s; s = *end ? end + 1 : end) {
        unsigned long i = strtoul(s, &end, 10);
        end += strcspn(end, " ");
        if (i >= p->n_recs)
            die(p->dir, "steps.csv.gz adds a request that requests.jsonl has not");
        struct rec *q = &p->recs[i];
        if (engine_submit(p->engine, 0, &q->spec, (uint32_t)i, 0, &q->slot))
            die(p->dir, "a request does not fit the engine");
        q->live = true;
    }
}

/* Aborts before the schedule() call happen now; later ones are marked and happen during the pass. */
static void abort_requests(struct parity_case *p, const char *list, double t0, bool late)
{
    char *end;
    for (const char *s = list; *s; s = *end ? end + 1 : end) {
        unsigned long i = strtoul(s, &end, 10);
        double t = strtod(end + 1, &end);
        struct rec *q = &p->recs[i];
        if ((t > t0) != late || !q->live)
            continue;
        engine_abort(p->engine, 0, q->slot);
        q->live = false;
        q->late = late;
    }
}

static void append(char *buf, size_t cap, const char *fmt, uint32_t a, uint32_t b, uint32_t c)
{
    size_t n = strlen(buf);
    snprintf(buf + n, cap - n, fmt, a, b, c);
    (void)c;
}

static void list_handles(struct parity_case *p, enum engine_step_list which, char *buf, size_t cap)
{
    const uint32_t *h;
    uint32_t n = engine_step_list(p->engine, which, &h);
    buf[0] = 0;
    for (uint32_t i = 0; i < n; i++)
        append(buf, cap, i ? " %u" : "%u", h[i], 0, 0);
}

/* "i:computed:total i:..." -> "i i": the state at preemption is checked through later batches. */
static void first_numbers(const char *list, char *out, size_t cap)
{
    out[0] = 0;
    for (const char *s = list; *s; s += strspn(s, " ")) {
        append(out, cap, *out ? " %u" : "%u", (uint32_t)strtoul(s, NULL, 10), 0, 0);
        s += strcspn(s, " ");
    }
}

static void check_step(struct parity_case *p, char *const *row)
{
    static char buf[LINE_MAX_BYTES / 64], want[LINE_MAX_BYTES / 64];
    const struct engine_batch_item *batch;
    double t0 = strtod(col(p, row, "t0"), NULL);
    const char *aborted = col(p, row, "aborted");
    p->steps++;
    add_requests(p, col(p, row, "added"));
    abort_requests(p, aborted, t0, false);
    compare_u32(p, row, "free0", engine_free_blocks(p->engine));
    uint32_t n = engine_step_begin(p->engine, 0, &batch);
    buf[0] = 0;
    for (uint32_t i = 0; i < n; i++)
        append(buf, sizeof buf, i ? " %u:%u:%u" : "%u:%u:%u", batch[i].handle, batch[i].computed,
               batch[i].scheduled);
    compare(p, row, "batch", buf);
    list_handles(p, STEP_NEW, buf, sizeof buf);
    compare(p, row, "new", buf);
    list_handles(p, STEP_RESUMED, buf, sizeof buf);
    compare_set(p, row, "resumed", buf);
    list_handles(p, STEP_PREEMPTED, buf, sizeof buf);
    first_numbers(col(p, row, "preempted"), want, sizeof want);
    if (strcmp(buf, want))
        differ(p, col(p, row, "step"), "preempted", buf, want);
    compare_u32(p, row, "free", engine_free_blocks(p->engine));
    struct engine_load load;
    engine_get_load(p->engine, 0, &load);
    if (!*aborted)
        compare_u32(p, row, "wait", load.waiting);
    abort_requests(p, aborted, t0, true);
    buf[0] = 0;
    for (uint32_t i = 0; i < n;
         i++) { /* the engine reports a late abort that was in the batch as finished */
        if (p->recs[batch[i].handle].late)
            append(buf, sizeof buf, *buf ? " %u" : "%u", batch[i].handle, 0, 0);
    }
    engine_step_end(p->engine, 0);
    uint32_t n_ev;
    const struct engine_event *ev = engine_events(p->engine, &n_ev);
    for (uint32_t i = 0; i < n_ev; i++) {
        append(buf, sizeof buf, *buf ? " %u" : "%u", ev[i].handle, 0, 0);
        p->recs[ev[i].handle].live = false;
    }
    engine_clear_events(p->engine);
    compare_set(p, row, "finished", buf);
    compare_u32(p, row, "free3", engine_free_blocks(p->engine));
}

static uint64_t run_case(const char *dir, uint64_t *steps)
{
    struct parity_case p = {.dir = dir};
    load_config(&p);
    load_requests(&p);
    p.engine = engine_new(&p.c, 0);
    if (!p.engine)
        die(dir, "engine limits refused");
    char *file = path_of(&p, "steps.csv.gz"), *row[32];
    gzFile f = gzopen(file, "r");
    static char header[LINE_MAX_BYTES], line[LINE_MAX_BYTES];
    if (!f || !gzgets(f, header, sizeof header))
        die(file, "not readable");
    p.n_cols = split(header, p.cols, 32);
    while (gzgets(f, line, sizeof line)) {
        if (split(line, row, 32) != p.n_cols)
            die(file, "a line has another number of columns than the header");
        check_step(&p, row);
    }
    gzclose(f);
    const char *name = strrchr(dir, '/');
    printf("%-16s %6lu steps  %lu differences\n", name && name[1] ? name + 1 : dir, p.steps,
           p.differences);
    for (uint32_t i = 0; i < p.n_recs; i++)
        free(p.recs[i].keys);
    free(p.recs);
    engine_free(p.engine);
    *steps += p.steps;
    return p.differences;
}

int parity_vllm(int n, char **dirs)
{
    uint64_t differences = 0, steps = 0;
    for (int i = 0; i < n; i++) {
        size_t len = strlen(dirs[i]);
        while (len > 1 && dirs[i][len - 1] == '/')
            dirs[i][--len] = 0;
        differences += run_case(dirs[i], &steps);
    }
    printf("%-16s %6lu steps  %lu differences\n", "all", steps, differences);
    return differences != 0;
}
