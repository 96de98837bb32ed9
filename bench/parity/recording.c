/* recording.c - see recording.h. */
#include "bench/parity/recording.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

#include "predictor/mem.h"

static const char *const column_names[REC_COLUMNS] = {
    [REC_STEP] = "step",         [REC_T0] = "t0",           [REC_RUN0] = "run0",
    [REC_RUN] = "run",           [REC_WAIT] = "wait",       [REC_FREE0] = "free0",
    [REC_FREE] = "free",         [REC_FREE3] = "free3",     [REC_ADDED] = "added",
    [REC_NEW] = "new",           [REC_RESUMED] = "resumed", [REC_PREEMPTED] = "preempted",
    [REC_FINISHED] = "finished", [REC_ABORTED] = "aborted", [REC_BATCH] = "batch",
};

/* ---- mistakes */

/* line 0: of the whole file */
static void refuse(const char *file, uint64_t line, const char *what) __attribute__((noreturn));

static void refuse(const char *file, uint64_t line, const char *what)
{
    if (line)
        fprintf(stderr, "parity: %s:%llu: %s\n", file, (unsigned long long)line, what);
    else
        fprintf(stderr, "parity: %s: %s\n", file, what);
    exit(2);
}

void recording_refuse(const struct recording *r, const char *what)
{
    refuse(r->steps_name, r->line, what);
}

static void name_file(char *out, size_t size, const char *dir, const char *name)
{
    if ((size_t)snprintf(out, size, "%s/%s", dir, name) >= size)
        refuse(dir, 0, "the path is too long");
}

/* ---- fields of JSON objects */

/* Where a value stands, for messages. */
struct place {
    const char *file;
    uint64_t line;
};

static void refuse_field(struct place p, const char *key, const char *expected)
    __attribute__((noreturn));

static void refuse_field(struct place p, const char *key, const char *expected)
{
    char text[160];
    snprintf(text, sizeof text, "%s must be %s", key, expected);
    refuse(p.file, p.line, text);
}

static uint32_t field_u32(yyjson_val *obj, const char *key, uint32_t least, struct place p)
{
    yyjson_val *v = yyjson_obj_get(obj, key);
    char expected[80];
    if (!yyjson_is_uint(v) || yyjson_get_uint(v) < least || yyjson_get_uint(v) > UINT32_MAX) {
        snprintf(expected, sizeof expected, "a whole number, %u or more", least);
        refuse_field(p, key, expected);
    }
    return (uint32_t)yyjson_get_uint(v);
}

/* `otherwise` if the field is not there. */
static bool field_bool(yyjson_val *obj, const char *key, bool otherwise, struct place p)
{
    yyjson_val *v = yyjson_obj_get(obj, key);
    if (!v)
        return otherwise;
    if (!yyjson_is_bool(v))
        refuse_field(p, key, "true or false");
    return yyjson_get_bool(v);
}

static int64_t field_int(yyjson_val *obj, const char *key, int64_t otherwise, struct place p)
{
    yyjson_val *v = yyjson_obj_get(obj, key);
    if (!v || yyjson_is_null(v))
        return otherwise;
    if (!yyjson_is_int(v) || (yyjson_is_uint(v) && yyjson_get_uint(v) > INT32_MAX) ||
        yyjson_get_sint(v) < INT32_MIN)
        refuse_field(p, key, "a whole number");
    return yyjson_get_sint(v);
}

/* ---- config.json */

static enum sched_policy policy_of(yyjson_val *engine, struct place p)
{
    yyjson_val *v = yyjson_obj_get(engine, "policy");
    if (!v || yyjson_equals_str(v, "fcfs"))
        return SCHED_FCFS;
    if (!yyjson_equals_str(v, "priority"))
        refuse_field(p, "policy", "\"fcfs\" or \"priority\"");
    return SCHED_PRIORITY;
}

static void load_config(struct recording *r)
{
    char file[4096];
    const char *why;
    name_file(file, sizeof file, r->dir, "config.json");
    struct place p = {file, 0};
    yyjson_read_err err;
    yyjson_doc *doc = yyjson_read_file(file, 0, NULL, &err);
    if (!doc)
        refuse(file, 0, err.msg);
    yyjson_val *e = yyjson_obj_get(yyjson_doc_get_root(doc), "engine");
    if (!yyjson_is_obj(e))
        refuse_field(p, "engine", "an object, the engine's limits");
    struct engine_config *c = &r->config;
    engine_config_default(c, SCHED_VLLM);
    c->block_size = field_u32(e, "block_size", 1, p);
    c->num_gpu_blocks = field_u32(e, "num_gpu_blocks", 2, p);
    c->max_num_seqs = field_u32(e, "max_num_seqs", 1, p);
    c->max_num_batched_tokens = field_u32(e, "max_num_batched_tokens", 1, p);
    c->long_prefill_token_threshold = field_u32(e, "long_prefill_token_threshold", 0, p);
    c->enable_chunked_prefill = field_bool(e, "chunked_prefill", true, p);
    c->enable_prefix_caching = field_bool(e, "prefix_caching", true, p);
    c->async_scheduling = field_bool(e, "async_scheduling", false, p);
    c->policy = policy_of(e, p);
    if (engine_config_check(c, &why))
        refuse(file, 0, why);
    yyjson_doc_free(doc);
}

/* ---- requests.jsonl */

/* Block names: a chain of the recorded ids, one for each full block of the prompt. */
static void load_keys(struct recording_request *q, yyjson_val *ids, uint32_t block_size,
                      struct place p)
{
    uint32_t n = q->spec.prompt_tok / block_size;
    if (!yyjson_is_arr(ids) || yyjson_arr_size(ids) < n)
        refuse_field(p, "hash_ids", "a list with a number for every full block of the prompt");
    q->keys = malloc((n + 1) * sizeof *q->keys);
    if (!q->keys)
        refuse(p.file, p.line, "out of memory");
    for (uint32_t k = 0; k < n; k++) {
        yyjson_val *id = yyjson_arr_get(ids, k);
        if (!yyjson_is_uint(id))
            refuse_field(p, "hash_ids", "whole numbers");
        q->keys[k] = request_chain_key(k ? q->keys[k - 1] : 0, yyjson_get_uint(id));
    }
    q->spec.keys = q->keys;
    q->spec.n_keys = n;
    q->spec.key_tok = block_size;
}

static void load_request(struct recording *r, yyjson_val *v, uint32_t *cap, struct place p)
{
    uint32_t i = field_u32(v, "i", 0, p), old = r->n_requests;
    if (i >= RECORDING_MAX_REQUESTS)
        refuse_field(p, "i", "below 4194304");
    if (i >= r->n_requests) {
        MEM_GROW(r->requests, *cap, i + 1);
        memset(r->requests + old, 0, (i + 1 - old) * sizeof *r->requests);
        r->n_requests = i + 1;
    }
    struct recording_request *q = &r->requests[i];
    if (q->spec.prompt_tok)
        refuse(p.file, p.line, "a second request with this i");
    yyjson_val *arrival = yyjson_obj_get(v, "arrival");
    if (arrival && !yyjson_is_num(arrival))
        refuse_field(p, "arrival", "a number of seconds");
    double s = yyjson_get_num(arrival);
    if (!(fabs(s) < 1e6))
        refuse_field(p, "arrival", "within a million seconds");
    q->spec.uid = (uint64_t)i + 1;
    q->spec.prompt_tok = field_u32(v, "prompt", 1, p);
    q->spec.output_tok = q->spec.max_tokens = field_u32(v, "max_tokens", 1, p);
    q->spec.priority = (int32_t)field_int(v, "priority", 0, p);
    q->spec.arrival_ps = arrival ? (int64_t)(s * 1e12) : i;
    q->session = field_int(v, "session", -1, p);
    q->turn = field_int(v, "turn", 0, p);
    load_keys(q, yyjson_obj_get(v, "hash_ids"), r->config.block_size, p);
}

static int by_turn(const void *a, const void *b)
{
    const struct recording_request *x = *(struct recording_request *const *)a,
                                   *y = *(struct recording_request *const *)b;
    if (x->session != y->session)
        return x->session < y->session ? -1 : 1;
    return (x->turn > y->turn) - (x->turn < y->turn);
}

/* A session's next turn repeats this answer: its block names name the generated blocks. */
static void join_sessions(struct recording *r)
{
    struct recording_request **order = malloc((r->n_requests + 1) * sizeof(void *));
    if (!order)
        refuse(r->dir, 0, "out of memory");
    for (uint32_t i = 0; i < r->n_requests; i++)
        order[i] = &r->requests[i];
    qsort(order, r->n_requests, sizeof *order, by_turn);
    for (uint32_t i = 0; i + 1 < r->n_requests; i++) {
        struct recording_request *a = order[i], *b = order[i + 1];
        uint32_t n = b->spec.prompt_tok / r->config.block_size;
        if (a->session < 0 || b->session != a->session || b->turn != a->turn + 1 ||
            n <= a->spec.n_keys)
            continue;
        a->spec.keys = b->keys;
        a->spec.n_keys = n;
    }
    free(order);
}

static void load_requests(struct recording *r)
{
    char file[4096], *line = NULL;
    name_file(file, sizeof file, r->dir, "requests.jsonl");
    FILE *f = fopen(file, "r");
    if (!f)
        refuse(file, 0, strerror(errno));
    size_t size = 0;
    ssize_t len;
    uint32_t cap = 0;
    struct place p = {file, 1};
    for (; (len = getline(&line, &size, f)) > 0; p.line++) {
        yyjson_doc *doc = yyjson_read(line, (size_t)len, 0);
        yyjson_val *v = yyjson_doc_get_root(doc);
        if (!yyjson_is_obj(v))
            refuse(file, p.line, "a JSON object is expected in every line");
        yyjson_val *i = yyjson_obj_get(v, "i");
        if (i && !yyjson_is_null(i)) /* without: it never reached the engine */
            load_request(r, v, &cap, p);
        yyjson_doc_free(doc);
    }
    if (ferror(f))
        refuse(file, p.line, strerror(errno));
    free(line);
    fclose(f);
    join_sessions(r);
}

/* ---- steps.csv.gz */

static void refuse_gz(struct recording *r)
{
    int err;
    const char *why = gzerror(r->steps, &err);
    if (err != Z_OK && err != Z_STREAM_END)
        recording_refuse(r, err == Z_BUF_ERROR ? "the file is cut off" : why);
}

/* False at the end of the file. */
static bool read_line(struct recording *r)
{
    r->line++;
    if (!gzgets(r->steps, r->text, RECORDING_MAX_LINE)) {
        refuse_gz(r);
        return false;
    }
    size_t n = strlen(r->text);
    if (n + 1 == RECORDING_MAX_LINE)
        recording_refuse(r, "a line of more than a megabyte");
    if (!n || r->text[n - 1] != '\n')
        refuse_gz(r);
    r->text[strcspn(r->text, "\r\n")] = 0;
    return true;
}

static void open_steps(struct recording *r)
{
    name_file(r->steps_name, sizeof r->steps_name, r->dir, "steps.csv.gz");
    r->steps = gzopen(r->steps_name, "r");
    r->text = malloc(RECORDING_MAX_LINE);
    if (!r->steps || !r->text)
        refuse(r->steps_name, 0, r->steps ? "out of memory" : strerror(errno));
    if (!read_line(r))
        recording_refuse(r, "no line with the names of the columns");
    memset(r->place, 0xff, sizeof r->place);
    for (char *rest = r->text, *name; (name = strsep(&rest, ",")); r->n_columns++) {
        for (int c = 0; c < REC_COLUMNS; c++) {
            if (!strcmp(name, column_names[c]))
                r->place[c] = r->n_columns;
        }
    }
    for (int c = 0; c < REC_COLUMNS; c++) {
        char what[64];
        snprintf(what, sizeof what, "there is no column %s", column_names[c]);
        if (r->place[c] == UINT32_MAX)
            recording_refuse(r, what);
    }
}

int recording_next(struct recording *r)
{
    uint32_t n = 0;
    if (!read_line(r))
        return 0;
    for (char *rest = r->text, *cell; (cell = strsep(&rest, ",")); n++) {
        for (int c = 0; c < REC_COLUMNS; c++) {
            if (r->place[c] == n)
                r->cell[c] = cell;
        }
    }
    if (n != r->n_columns)
        recording_refuse(r, "another number of columns than in the first line");
    return 1;
}

uint32_t recording_word(const struct recording *r, const char **s, double *at)
{
    char *end;
    errno = 0;
    unsigned long v = strtoul(*s, &end, 10);
    if (errno || end == *s || **s < '0' || **s > '9' || v > UINT32_MAX)
        recording_refuse(r, "a list of numbers is expected, as in 12@3.5 or 12:4:5");
    if (at)
        *at = 0;
    if (*end == '@' && at)
        *at = strtod(end + 1, &end);
    end += strcspn(end, " ");
    *s = end + strspn(end, " ");
    return (uint32_t)v;
}

/* ---- */

void recording_open(struct recording *r, const char *dir)
{
    memset(r, 0, sizeof *r);
    r->dir = dir;
    load_config(r);
    load_requests(r);
    open_steps(r);
}

void recording_close(struct recording *r)
{
    for (uint32_t i = 0; i < r->n_requests; i++)
        free(r->requests[i].keys);
    free(r->requests);
    gzclose(r->steps);
    free(r->text);
}

struct recording_request *recording_request(struct recording *r, uint32_t i)
{
    if (i >= r->n_requests || !r->requests[i].spec.prompt_tok)
        recording_refuse(r, "a request that requests.jsonl does not have");
    return &r->requests[i];
}
