/* stack.c - see stack.h. */
#include "controller/replay/stack.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "controller/core/policy.h"
#include "controller/replay/profile.h"
#include "controller/replay/stack_keys.h"
#include "controller/config/words.h"
#include "predictor/shared_tier.h"
#include "predictor/units.h"

#define POLICY_LIST_BYTES 512 /* of the names of all policies, or of one's parameters */
#define DOMAIN_MAX_DIVISOR 1000000u

/* Llama-3.1-8B on one H100, TensorRT-LLM 1.0.0rc3, bf16, TP 1: fitted on 42 measured points (error
 * 1.9 %, 90th percentile 3.9 %). The fit gave d0 = -0.003, not told apart from 0. */
static const struct step_params default_step = {
    .form = STEP_LINEAR,
    .w_ms = 6.4343,
    .d0_ms_per_req = 0,
    .k_ms_per_tok = 5.131e-05,
    .p_ms_per_tok = 0.019613,
    .scale = 1,
};
#define DEFAULT_KV_BYTES_PER_TOKEN 131072 /* 32 layers * 2 * 8 KV heads * 128 * 2 bytes */

/* What one load carries around. */
struct load {
    struct keys_file f;
    struct stack *stack;
    const char *path; /* of the file on disk; NULL: from memory */
    const char *const *profile_dirs;
    struct ytree_node *pool; /* being read */
};

/* ---- defaults ---- */

/* Everything but the pools, policy parameters and faults, which start empty. (Not one memset: the pools
 * are 2 MiB that most runs never touch.) */
static void start_empty(struct stack *s)
{
    s->n_pools = 0;
    s->n_policy_params = 0;
    s->faults = NULL;
    s->n_faults = 0;
    key_defaults(SCOPE_STACK, s);
}

static void pool_default(struct stack_pool *p, uint32_t index, enum sched_kind kind)
{
    memset(p, 0, sizeof *p);
    engine_config_default(&p->worker.engine, kind);
    engine_config_default_step(&p->step, kind);
    key_defaults(SCOPE_POOL, p);
    (void)snprintf(p->name, sizeof p->name, "pool%" PRIu32, index);
    p->worker.pool = index;
}

static void use_built_in_step(struct stack_pool *p)
{
    p->step = default_step;
    p->worker.engine.kv_bytes_per_token = DEFAULT_KV_BYTES_PER_TOKEN;
}

void stack_default(struct stack *s, uint32_t workers)
{
    const char *why = NULL;
    start_empty(s);
    s->n_pools = 1;

    struct stack_pool *p = &s->pools[0];
    pool_default(p, 0, SCHED_VLLM);
    use_built_in_step(p);
    p->workers = workers;
    p->worker.engine.block_size = 512;
    int rc = step_model_init(&p->worker.engine.step, &p->step, &why);
    assert(rc == WEIR_OK);
    (void)rc;
}

void stack_deinit(struct stack *s)
{
    free(s->faults);
    s->faults = NULL;
    s->n_faults = 0;
}

/* ---- loading ---- */

/* Child of a mapping by key of the table; NULL: absent. */
static const struct ytree_node *child(const struct ytree_node *map, enum key_scope scope,
                                      const char *name)
{
    if (map->kind != YTREE_MAP)
        return NULL;
    for (const struct ytree_node *n = map->first; n; n = n->next) {
        bool negated;
        const struct key *k = key_find(scope, "", n->key, &negated);
        if (k && strcmp(k->name, name) == 0)
            return n;
    }
    return NULL;
}

/* "no NOUN 'x'; did you mean y?" or what there is. */
static int not_listed(const char *noun, const char *name, const char *list, const char *where,
                      char *error)
{
    char near[WORD_BYTES];
    if (word_nearest(list, name, 0, near, sizeof near))
        ytree_error(error, "%s: no %s '%.64s'; did you mean %s?", where, noun, name, near);
    else
        ytree_error(error, "%s: no %s '%.64s'; expected one of: %s", where, noun, name,
                    *list ? list : "none, it has no parameters");
    return WEIR_E_INPUT;
}

/* The row that describes a policy's parameter. */
static int find_policy_param(const char *policy, const char *name, const char *where,
                             const struct policy_param **out, char *error)
{
    char list[POLICY_LIST_BYTES] = "";
    const struct policy_ops *p = core_policy_find(policy);
    for (uint32_t i = 0; !p && i < core_policies_count; i++)
        word_add(list, sizeof list, core_policies[i]->name);
    if (!p)
        return not_listed("policy", policy, list, where, error);
    for (uint32_t i = 0; i < p->n_params; i++) {
        if (strcmp(p->params[i].name, name) == 0) {
            *out = &p->params[i];
            return WEIR_OK;
        }
        word_add(list, sizeof list, p->params[i].name);
    }
    return not_listed("parameter", name, list, where, error);
}

/* A number from policy_params or --set into the list; the same parameter again replaces it. */
static int set_policy_param(struct stack *s, const char *policy, const char *name,
                            const struct ytree_node *value, const char *where, char *error)
{
    const struct policy_param *param = NULL;
    double v = 0;
    int rc = find_policy_param(policy, name, where, &param, error);
    if (rc)
        return rc;
    const struct key number = {
        .type = KEY_REAL, .name = "parameter", .min = param->min, .max = param->max};
    rc = key_read(&number, &v, value, false, where, error);
    if (rc)
        return rc;
    uint32_t i = 0;
    while (i < s->n_policy_params && (strcmp(s->policy_params[i].policy, policy) != 0 ||
                                      strcmp(s->policy_params[i].name, name) != 0))
        i++;
    assert(i < STACK_MAX_POLICY_PARAMS); /* there are fewer, see test_stack.c */
    struct stack_policy_param *p = &s->policy_params[i];
    (void)snprintf(p->policy, sizeof p->policy, "%s", policy);
    (void)snprintf(p->name, sizeof p->name, "%s", name);
    p->value = v;
    if (i == s->n_policy_params)
        s->n_policy_params++;
    return WEIR_OK;
}

static int read_policy_params(struct load *l, const struct ytree_node *map, const char *path)
{
    if (map->kind != YTREE_MAP)
        return keys_fail(&l->f, map, path, "expected {POLICY: {PARAMETER: number}}");
    for (const struct ytree_node *policy = map->first; policy; policy = policy->next) {
        if (policy->kind != YTREE_MAP)
            return keys_fail(&l->f, policy, path, "expected %.64s: {PARAMETER: number}",
                             policy->key);
        for (const struct ytree_node *n = policy->first; n; n = n->next) {
            char below[KEYS_PATH_BYTES], where[KEYS_WHERE_BYTES];
            (void)snprintf(below, sizeof below, "%s.%.64s", path, policy->key);
            (void)keys_where(&l->f, n, below, n->key, where);
            uint32_t before = l->stack->n_policy_params;
            int rc = set_policy_param(l->stack, policy->key, n->key, n, where, l->f.error);
            if (rc)
                return rc;
            if (l->stack->n_policy_params == before)
                return keys_fail(&l->f, n, below, "%.64s given twice; remove one", n->key);
        }
    }
    return WEIR_OK;
}

void stack_policy_values(const struct stack *s, const char *policy,
                         double out[STACK_MAX_POLICY_PARAMS])
{
    const struct policy_ops *p = core_policy_find(policy);
    for (uint32_t i = 0; p && i < p->n_params; i++) {
        out[i] = p->params[i].def;
        for (uint32_t j = 0; j < s->n_policy_params; j++) {
            if (strcmp(s->policy_params[j].policy, policy) == 0 &&
                strcmp(s->policy_params[j].name, p->params[i].name) == 0)
                out[i] = s->policy_params[j].value;
        }
    }
}

/* ---- pools ---- */

static int read_pool_inner(struct keys_file *f, const struct key *k, const struct ytree_node *n,
                           void *base, const char *path)
{
    struct load *l = f->user;
    struct stack_pool *pool = base;
    if (strcmp(k->name, "step") == 0) {
        struct step_params *p = &pool->step;
        /* A table written here replaces the profile's as a whole. */
        if (n->kind == YTREE_MAP &&
            (child(n, SCOPE_STEP, "prefill_tok") || child(n, SCOPE_STEP, "prefill_ms")))
            p->n_prefill = 0;
        if (n->kind == YTREE_MAP &&
            (child(n, SCOPE_STEP, "decode_kv_tok") || child(n, SCOPE_STEP, "decode_ctx_tok") ||
             child(n, SCOPE_STEP, "decode_ms")))
            p->n_kv = p->n_ctx = 0;
        return keys_read_map(&l->f, SCOPE_STEP, "", n, p, path, NULL);
    }
    assert(strcmp(k->name, "engine") == 0);
    return keys_read_map(&l->f, SCOPE_ENGINE, "", n, &pool->worker.engine, path, NULL);
}

/* The scheduler decides the other defaults, so it is read before them. A bad value is left for
 * read_map to report. */
static enum sched_kind scheduler_of(const struct ytree_node *pool)
{
    const struct ytree_node *engine = child(pool, SCOPE_POOL, "engine");
    const struct ytree_node *kind = engine ? child(engine, SCOPE_ENGINE, "scheduler") : NULL;
    struct engine_config c = {.scheduler = SCHED_VLLM};
    char error[STACK_ERROR_BYTES];
    bool negated;
    const struct key *k = key_find(SCOPE_ENGINE, "", "scheduler", &negated);
    if (kind && key_read(k, &c, kind, false, "", error) != WEIR_OK)
        return SCHED_VLLM;
    return c.scheduler;
}

/* The step times the pool starts from: the profile's; nothing, if they are written out in `step`; the
 * scheduler's own (dynosim); the built-in ones. */
static int start_step(struct load *l, struct stack_pool *p, const struct ytree_node *pool,
                      const char *path)
{
    const struct ytree_node *profile = child(pool, SCOPE_POOL, "profile");
    struct engine_config *engine = &p->worker.engine;

    if (profile && profile->kind == YTREE_SCALAR && *profile->text) {
        char where[KEYS_WHERE_BYTES];
        (void)keys_where(&l->f, profile, path, "profile", where);
        return profile_find(&p->step, &engine->kv_bytes_per_token, &p->worker.gpus, profile->text,
                            l->path, l->profile_dirs, where, l->f.error);
    }
    p->step_written = child(pool, SCOPE_POOL, "step") != NULL;
    if (p->step_written) {
        memset(&p->step, 0, sizeof p->step);
        key_defaults(SCOPE_STEP, &p->step);
    } else if (engine->scheduler != SCHED_DYNOSIM) {
        use_built_in_step(p);
    }
    return WEIR_OK;
}

/* Turns the numbers of a pool into a ready engine. *why then says what is wrong. */
static int finish_pool(struct stack_pool *p, const char **part, const char **why)
{
    struct engine_config *engine = &p->worker.engine;
    *part = "step";
    if (step_model_init(&engine->step, &p->step, why))
        return WEIR_E_INPUT;
    *part = "engine";
    return engine_config_check(engine, why) ? WEIR_E_INPUT : WEIR_OK;
}

static int read_pool(struct load *l, const struct ytree_node *pool, uint32_t index)
{
    struct stack_pool *p = &l->stack->pools[index];
    char path[KEYS_PATH_BYTES];
    (void)snprintf(path, sizeof path, "pools[%" PRIu32 "]", index);

    pool_default(p, index, scheduler_of(pool));
    int rc = start_step(l, p, pool, path);
    if (rc == WEIR_OK)
        rc = keys_read_map(&l->f, SCOPE_POOL, "", pool, p, path, read_pool_inner);
    if (rc)
        return rc;
    const char *part = "", *why = "";
    if (finish_pool(p, &part, &why)) {
        const struct ytree_node *at = child(pool, SCOPE_POOL, part);
        return keys_fail(&l->f, at ? at : pool, path, "%s: %s", part, why);
    }
    return WEIR_OK;
}

static int read_pools(struct load *l, const struct ytree_node *list, const char *path)
{
    if (list->kind != YTREE_LIST)
        return keys_fail(&l->f, list, path, "expected a list of pools (- name: ...)");
    for (const struct ytree_node *n = list->first; n; n = n->next) {
        if (l->stack->n_pools == STACK_MAX_POOLS)
            return keys_fail(&l->f, n, path, "more than %d pools; merge equal ones",
                             STACK_MAX_POOLS);
        int rc = read_pool(l, n, l->stack->n_pools);
        if (rc)
            return rc;
        l->stack->n_pools++;
    }
    return WEIR_OK;
}

/* ---- faults ---- */

static int read_fault(struct load *l, const struct ytree_node *n, uint32_t index)
{
    struct fault *f = &l->stack->faults[index];
    char path[KEYS_PATH_BYTES];
    (void)snprintf(path, sizeof path, "faults[%" PRIu32 "]", index);

    *f = (struct fault){.worker = UINT32_MAX, .factor = 1};
    int rc = keys_read_map(&l->f, SCOPE_FAULT, "", n, f, path, NULL);
    if (rc)
        return rc;
    if (!child(n, SCOPE_FAULT, "at_ms") || !child(n, SCOPE_FAULT, "kind"))
        return keys_fail(&l->f, n, path, "expected at_ms and kind; add what is missing");
    if ((f->worker == UINT32_MAX) == (f->domain[0] == '\0'))
        return keys_fail(&l->f, n, path, "expected either worker or domain; give one of them");
    if ((f->kind == FAULT_SLOW) != (child(n, SCOPE_FAULT, "factor") != NULL))
        return keys_fail(&l->f, n, path, "expected factor with kind slow, and only there");
    return WEIR_OK;
}

/* Stable by time: what a script says later at the same time happens later. */
static int sort_faults(struct stack *s)
{
    uint32_t n = s->n_faults;
    uint32_t i = 1;
    while (i < n && s->faults[i - 1].at_ps <= s->faults[i].at_ps)
        i++;
    if (i >= n)
        return WEIR_OK;
    struct fault *from = s->faults;
    struct fault *to = malloc(n * sizeof *to);
    if (!to)
        return WEIR_E_NOMEM;
    for (uint32_t width = 1; width < n; width *= 2) {
        for (uint32_t start = 0; start < n; start += 2 * width) {
            uint32_t mid = n - start > width ? start + width : n;
            uint32_t end = n - start > 2 * width ? start + 2 * width : n;
            uint32_t a = start, b = mid;
            for (uint32_t o = start; o < end; o++)
                to[o] =
                    a < mid && (b == end || from[a].at_ps <= from[b].at_ps) ? from[a++] : from[b++];
        }
        struct fault *swap = from;
        from = to;
        to = swap;
    }
    s->faults = from;
    free(to);
    return WEIR_OK;
}

static int no_memory(const struct load *l)
{
    ytree_error(l->f.error, "%s: out of memory while reading it", l->f.name);
    return WEIR_E_NOMEM;
}

static int read_faults(struct load *l, const struct ytree_node *list, const char *path)
{
    uint32_t n = 0;
    if (list->kind != YTREE_LIST)
        return keys_fail(&l->f, list, path, "expected a list of faults (- at_ms: ...)");
    for (const struct ytree_node *f = list->first; f; f = f->next) {
        if (n++ == CLUSTER_MAX_FAULTS)
            return keys_fail(&l->f, f, path,
                             "more than %u faults; use domain for several workers at once",
                             CLUSTER_MAX_FAULTS);
    }
    if (n == 0)
        return WEIR_OK;
    l->stack->faults = calloc(n, sizeof *l->stack->faults);
    if (!l->stack->faults)
        return no_memory(l);
    for (const struct ytree_node *f = list->first; f; f = f->next) {
        int rc = read_fault(l, f, l->stack->n_faults);
        if (rc)
            return rc;
        l->stack->n_faults++;
    }
    return WEIR_OK; /* sorted by load_text, which still needs the order of the file */
}

/* ---- rules between keys ---- */

bool stack_worker_domain(const struct stack_pool *p, uint32_t index, char out[CLUSTER_DOMAIN_BYTES])
{
    size_t n = 0;
    for (const char *at = p->worker.domain; *at;) {
        char piece[16] = {*at, '\0'};
        unsigned long by = 1;
        size_t took = 1;
        if (*at == '{') {
            char *end = NULL;
            if (strncmp(at, "{i}", 3) == 0) {
                took = 3;
            } else if (strncmp(at, "{i/", 3) == 0 && at[3] >= '1' && at[3] <= '9') {
                by = strtoul(at + 3, &end, 10);
                took = (size_t)(end - at) + 1;
                if (*end != '}' || by > DOMAIN_MAX_DIVISOR)
                    return false;
            } else {
                return false;
            }
            (void)snprintf(piece, sizeof piece, "%" PRIu32, index / (uint32_t)by);
        }
        size_t len = strlen(piece);
        if (n + len >= CLUSTER_DOMAIN_BYTES)
            return false;
        memcpy(out + n, piece, len);
        n += len;
        at += took;
    }
    out[n] = '\0';
    return true;
}

bool stack_domain_within(const char *path, const char *domain)
{
    size_t n = strlen(domain);
    return n > 0 && strncmp(path, domain, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

/* Each rule writes what is wrong (WHAT_BYTES) and returns false; the loader puts the line before it,
 * stack_check the name. */
#define WHAT_BYTES 512

static bool pool_sound(const struct stack *s, uint32_t i, char *what)
{
    const struct stack_pool *p = &s->pools[i];
    char domain[CLUSTER_DOMAIN_BYTES];
    for (uint32_t j = 0; j < i; j++) {
        if (strcmp(p->name, s->pools[j].name) == 0) {
            (void)snprintf(what, WHAT_BYTES,
                           "pools[%" PRIu32 "].name: '%s' is also pools[%" PRIu32
                           "]; give each pool its own name",
                           i, p->name, j);
            return false;
        }
    }
    if (p->workers == 0) {
        (void)snprintf(what, WHAT_BYTES,
                       "pools[%" PRIu32 "].workers: zero workers; expected 1 or more, or remove "
                       "the pool",
                       i);
        return false;
    }
    if (!stack_worker_domain(p, p->workers - 1, domain)) {
        (void)snprintf(what, WHAT_BYTES,
                       "pools[%" PRIu32 "].domain: expected a path of at most %d bytes whose only "
                       "braces are {i} or {i/8}, got '%s'",
                       i, CLUSTER_DOMAIN_BYTES - 1, p->worker.domain);
        return false;
    }
    return true;
}

/* Rules over all pools; each pool is sound. */
static bool pools_sound(const struct stack *s, char *what)
{
    bool prefill = false, decode = false;
    uint64_t workers = 0;
    for (uint32_t i = 0; i < s->n_pools; i++) {
        workers += s->pools[i].workers;
        prefill |= s->pools[i].worker.engine.role == ROLE_PREFILL;
        decode |= s->pools[i].worker.engine.role == ROLE_DECODE;
    }
    if (workers > 0 && workers <= CLUSTER_MAX_WORKERS && prefill == decode)
        return true;
    if (workers == 0)
        (void)snprintf(what, WHAT_BYTES,
                       "pools: no pool, so zero workers; expected at least one, as "
                       "pools: [{workers: 8}]");
    else if (workers > CLUSTER_MAX_WORKERS)
        (void)snprintf(what, WHAT_BYTES, "pools: %" PRIu64 " workers; expected at most %u", workers,
                       CLUSTER_MAX_WORKERS);
    else
        (void)snprintf(what, WHAT_BYTES,
                       "pools: a %s pool without a %s pool; add a pool with role: "
                       "%s, or change role to both",
                       prefill ? "prefill" : "decode", prefill ? "decode" : "prefill",
                       prefill ? "decode" : "prefill");
    return false;
}

/* Pools with num_shared_blocks have one store together. */
static bool store_sound(const struct stack *s, uint32_t i, char *what)
{
    const struct engine_config *e = &s->pools[i].worker.engine;
    uint32_t j = 0;
    while (j < i && !s->pools[j].worker.engine.num_shared_blocks)
        j++;
    if (!e->num_shared_blocks || j == i || shared_tier_same(&s->pools[j].worker.engine, e))
        return true;
    (void)snprintf(
        what, WHAT_BYTES,
        "pools[%" PRIu32 "].engine: its shared store differs from that of pools[%" PRIu32
        "], and there is one for all; give both the same num_shared_blocks, shared_first_byte_ms, "
        "shared_read_gb_s, shared_write_gb_s, block_size and kv_bytes_per_token",
        i, j);
    return false;
}

static uint32_t count_workers(const struct stack *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_pools; i++)
        n += s->pools[i].workers;
    return n;
}

/* The domain paths of all workers in order, to find one below a fault's domain without a scan. */
struct domains {
    char (*path)[CLUSTER_DOMAIN_BYTES]; /* NULL: no fault names a domain */
    uint32_t n;
};

static int compare_paths(const void *a, const void *b)
{
    return strcmp(a, b);
}

static int domains_init(struct domains *d, const struct stack *s)
{
    bool needed = false;
    *d = (struct domains){0};
    for (uint32_t i = 0; i < s->n_faults; i++)
        needed |= s->faults[i].worker == UINT32_MAX;
    if (!needed)
        return WEIR_OK;
    d->path = calloc(count_workers(s), sizeof *d->path);
    if (!d->path)
        return WEIR_E_NOMEM;
    for (uint32_t i = 0; i < s->n_pools; i++) {
        for (uint32_t w = 0; w < s->pools[i].workers; w++) {
            if (stack_worker_domain(&s->pools[i], w, d->path[d->n]))
                d->n++;
        }
    }
    qsort(d->path, d->n, sizeof *d->path, compare_paths);
    return WEIR_OK;
}

/* Whether a path is `wanted` or goes on behind it (wanted ends in a slash then). */
static bool domains_have(const struct domains *d, const char *wanted)
{
    size_t len = strlen(wanted);
    uint32_t low = 0, high = d->n;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (strcmp(d->path[mid], wanted) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == d->n)
        return false;
    return wanted[len - 1] == '/' ? strncmp(d->path[low], wanted, len) == 0
                                  : strcmp(d->path[low], wanted) == 0;
}

static bool fault_sound(const struct stack *s, const struct domains *d, uint32_t i, char *what)
{
    const struct fault *f = &s->faults[i];
    uint32_t workers = count_workers(s);
    if (f->worker != UINT32_MAX) {
        if (f->worker < workers)
            return true;
        (void)snprintf(what, WHAT_BYTES,
                       "faults[%" PRIu32 "].worker: no worker %" PRIu32 "; expected 0..%" PRIu32
                       ", the workers of all pools in order",
                       i, f->worker, workers - 1);
        return false;
    }
    char below[CLUSTER_DOMAIN_BYTES + 1];
    (void)snprintf(below, sizeof below, "%s/", f->domain);
    if (f->domain[0] && (domains_have(d, f->domain) || domains_have(d, below)))
        return true;
    (void)snprintf(what, WHAT_BYTES,
                   "faults[%" PRIu32
                   "].domain: no worker is at or below '%s'; set domain in a pool, "
                   "or name a worker",
                   i, f->domain);
    return false;
}

/* Line of the i-th entry of a list of the file; 0: there is no file, or no such entry. */
static unsigned line_of(const struct ytree_node *root, const char *name, uint32_t i)
{
    const struct ytree_node *list = root ? child(root, SCOPE_STACK, name) : NULL;
    const struct ytree_node *n = list ? list->first : NULL;
    while (n && i-- > 0)
        n = n->next;
    return n ? n->line : list ? list->line : 0;
}

static int broken(const char *name, unsigned line, const char *what, char *error)
{
    if (line)
        ytree_error(error, "%.256s:%u: %s", name, line, what);
    else
        ytree_error(error, "%.256s: %s", name, what);
    return WEIR_E_INPUT;
}

/* All rules; root gives the lines, with pools and faults in the order of the file. */
static int check_whole(const struct stack *s, const struct ytree_node *root, const char *name,
                       char *error)
{
    char what[WHAT_BYTES];
    struct domains domains;
    for (uint32_t i = 0; i < s->n_pools; i++) {
        if (!pool_sound(s, i, what) || !store_sound(s, i, what))
            return broken(name, line_of(root, "pools", i), what, error);
    }
    if (!pools_sound(s, what))
        return broken(name, line_of(root, "pools", 0), what, error);
    if (domains_init(&domains, s)) {
        ytree_error(error, "%.256s: out of memory while checking it", name);
        return WEIR_E_NOMEM;
    }
    int rc = WEIR_OK;
    for (uint32_t i = 0; i < s->n_faults && rc == WEIR_OK; i++) {
        if (!fault_sound(s, &domains, i, what))
            rc = broken(name, line_of(root, "faults", i), what, error);
    }
    free(domains.path);
    return rc;
}

int stack_check(const struct stack *s, const char *name, char *error)
{
    return check_whole(s, NULL, name, error);
}

/* ---- whole files ---- */

static int read_top_inner(struct keys_file *f, const struct key *k, const struct ytree_node *n,
                          void *base, const char *path)
{
    struct load *l = f->user;
    if (strcmp(k->name, "pools") == 0)
        return read_pools(l, n, path);
    if (strcmp(k->name, "faults") == 0)
        return read_faults(l, n, path);
    if (strcmp(k->name, "policy_params") == 0)
        return read_policy_params(l, n, path);
    char prefix[KEYS_PATH_BYTES];
    (void)snprintf(prefix, sizeof prefix, "%s.", k->name);
    return keys_read_map(&l->f, SCOPE_STACK, prefix, n, base, path, NULL);
}

static int load_text(struct load *l, const char *text, size_t len)
{
    struct ytree tree;
    int rc = ytree_parse(&tree, l->f.name, text, len, l->f.error);
    if (rc == WEIR_OK && !tree.root) {
        ytree_error(l->f.error, "%s: empty; expected at least pools: [...]", l->f.name);
        rc = WEIR_E_INPUT;
    }
    if (rc == WEIR_OK)
        rc = keys_read_map(&l->f, SCOPE_STACK, "", tree.root, l->stack, "", read_top_inner);
    if (rc == WEIR_OK)
        rc = check_whole(l->stack, tree.root, l->f.name, l->f.error);
    if (rc == WEIR_OK && sort_faults(l->stack))
        rc = no_memory(l);
    ytree_deinit(&tree);
    return rc;
}

int stack_load_memory(struct stack *s, const char *name, const char *text, size_t len,
                      const char *const *profile_dirs, char *error)
{
    struct load l = {.f = {.table = &stack_table, .name = name, .error = error},
                     .stack = s,
                     .profile_dirs = profile_dirs};
    l.f.user = &l;
    error[0] = '\0';
    start_empty(s);
    return load_text(&l, text, len);
}

int stack_load(struct stack *s, const char *path, const char *const *profile_dirs, char *error)
{
    struct load l = {.f = {.table = &stack_table, .name = path, .error = error},
                     .stack = s,
                     .path = path,
                     .profile_dirs = profile_dirs};
    l.f.user = &l;
    char *text = NULL;
    size_t len = 0;
    error[0] = '\0';
    start_empty(s);
    int rc = ytree_read_file(path, STACK_FILE_MAX_BYTES, &text, &len, error);
    if (rc == WEIR_OK)
        rc = load_text(&l, text, len);
    free(text);
    return rc;
}

/* ---- one key from the command line ---- */

/* Where a --set key leads: a row of the table and the pools it applies to. */
struct target {
    const struct key *key;
    bool negated;
    uint32_t first_pool, end_pool;
    const char *policy, *param; /* policy_params.POLICY.PARAM; else NULL */
};

/* "pools.NAME." and "pools[2]." are stripped off *key. */
static int target_pools(const struct stack *s, char **key, struct target *t, char *error)
{
    t->first_pool = 0;
    t->end_pool = s->n_pools;
    if (strncmp(*key, "pools.", 6) != 0 && strncmp(*key, "pools[", 6) != 0)
        return WEIR_OK;
    char *which = *key + 6;
    char *rest = strchr(which, '.');
    if (!rest) {
        ytree_error(error,
                    "--set %.128s: expected a key of a pool behind it, as "
                    "pools.0.engine.max_num_seqs",
                    *key);
        return WEIR_E_INPUT;
    }
    size_t n = (size_t)(rest - which);
    if ((*key)[5] == '[' && n > 0 && which[n - 1] == ']')
        n--;
    which[n] = '\0';
    *key = rest + 1;
    for (uint32_t i = 0; i < s->n_pools; i++) {
        char index[12];
        (void)snprintf(index, sizeof index, "%" PRIu32, i);
        if (strcmp(which, index) == 0 || strcmp(which, s->pools[i].name) == 0) {
            t->first_pool = i;
            t->end_pool = i + 1;
            return WEIR_OK;
        }
    }
    ytree_error(error, "--set pools.%.64s: no such pool; expected 0..%" PRIu32 " or a pool's name",
                which, s->n_pools - 1);
    return WEIR_E_INPUT;
}

/* Finds what a --set key names. key is modified. */
static int target_find(const struct stack *s, char *key, const char *whole, struct target *t,
                       char *error)
{
    *t = (struct target){0};
    if (strncmp(key, "policy_params.", 14) == 0) {
        char *policy = key + 14, *param = strchr(policy, '.');
        if (!param || param == policy || !param[1]) {
            ytree_error(error, "--set %.128s: expected policy_params.POLICY.PARAMETER", whole);
            return WEIR_E_INPUT;
        }
        *param = '\0';
        t->policy = policy;
        t->param = param + 1;
        return WEIR_OK;
    }
    char *rest = key;
    int rc = target_pools(s, &rest, t, error);
    if (rc)
        return rc;
    bool in_pool = rest != key;
    enum key_scope wanted = SCOPE_COUNT;
    char *last = strrchr(rest, '.');
    char prefix[KEYS_PATH_BYTES] = "";
    if (last) {
        *last = '\0';
        wanted = strcmp(rest, "engine") == 0 ? SCOPE_ENGINE
                 : strcmp(rest, "step") == 0 ? SCOPE_STEP
                                             : SCOPE_STACK;
        if (wanted == SCOPE_STACK)
            (void)snprintf(prefix, sizeof prefix, "%.64s.", rest);
        rest = last + 1;
    }
    static const enum key_scope order[] = {SCOPE_STACK, SCOPE_ENGINE, SCOPE_POOL, SCOPE_STEP};
    for (unsigned i = 0; i < 4 && !t->key; i++) {
        if ((wanted == SCOPE_COUNT || wanted == order[i]) && !(in_pool && order[i] == SCOPE_STACK))
            t->key = key_find(order[i], prefix, rest, &t->negated);
    }
    if (!t->key) {
        char hint[STACK_ERROR_BYTES];
        key_suggest(wanted == SCOPE_COUNT ? SCOPE_ENGINE : wanted, prefix, rest, hint, sizeof hint);
        ytree_error(error, "--set %.128s: unknown key; %s", whole, hint);
        return WEIR_E_INPUT;
    }
    if (t->key->type == KEY_INNER || strcmp(t->key->name, "profile") == 0) {
        ytree_error(error, "--set %.128s: can only be written in a stack file", whole);
        return WEIR_E_INPUT;
    }
    return WEIR_OK;
}

static void *base_in_pool(struct stack_pool *p, enum key_scope scope)
{
    switch (scope) {
    case SCOPE_ENGINE: return &p->worker.engine;
    case SCOPE_STEP: return &p->step;
    default: return p;
    }
}

/* Sets a key of one pool, whole or not at all. */
static int set_in_pool(struct stack_pool *pool, const struct target *t,
                       const struct ytree_node *value, const char *where, char *error)
{
    struct stack_pool changed = *pool;
    const char *part = "", *why = "";
    int rc = key_read(t->key, base_in_pool(&changed, (enum key_scope)t->key->scope), value,
                      t->negated, where, error);
    if (rc)
        return rc;
    if (finish_pool(&changed, &part, &why)) {
        ytree_error(error, "%s: %s", where, why);
        return WEIR_E_INPUT;
    }
    *pool = changed;
    /* once more: a table is borrowed from where the pool is */
    rc = finish_pool(pool, &part, &why);
    assert(rc == WEIR_OK);
    return rc;
}

int stack_set(struct stack *s, const char *key, const char *value, char *error)
{
    struct target t;
    struct ytree tree = {0};
    char where[KEYS_WHERE_BYTES];
    error[0] = '\0';
    (void)snprintf(where, sizeof where, "--set %.128s", key);

    char *copy = strdup(key);
    if (!copy) {
        ytree_error(error, "%s: out of memory", where);
        return WEIR_E_NOMEM;
    }
    int rc = target_find(s, copy, key, &t, error);
    if (rc)
        goto out;
    rc = ytree_parse(&tree, where, value, strlen(value), error);
    if (rc)
        goto out;
    static const struct ytree_node empty = {.kind = YTREE_SCALAR, .text = ""};
    const struct ytree_node *node = tree.root ? tree.root : &empty;
    if (t.policy) {
        rc = set_policy_param(s, t.policy, t.param, node, where, error);
    } else if (t.key->scope == SCOPE_STACK) {
        rc = key_read(t.key, s, node, t.negated, where, error);
    } else {
        for (uint32_t i = t.first_pool; i < t.end_pool && rc == WEIR_OK; i++)
            rc = set_in_pool(&s->pools[i], &t, node, where, error);
    }
out:
    ytree_deinit(&tree);
    free(copy);
    return rc;
}

int stack_set_all(struct stack *s, const char *const *sets, uint32_t n, char *error)
{
    int rc = WEIR_OK;
    for (uint32_t i = 0; i < n && rc == WEIR_OK; i++) {
        char key[STACK_PATH_BYTES];
        const char *equals = strchr(sets[i], '=');
        size_t len = equals ? (size_t)(equals - sets[i]) : 0;
        if (len == 0 || len >= sizeof key) {
            ytree_error(error, "--set %.128s: expected KEY=VALUE, as max_num_seqs=64", sets[i]);
            return WEIR_E_INPUT;
        }
        memcpy(key, sets[i], len);
        key[len] = '\0';
        rc = stack_set(s, key, equals + 1, error);
    }
    return rc;
}

/* ---- printing ---- */

/* Prints a key unless it neither matters to `kind` nor differs from `usual`. */
static void print_key(FILE *out, const char *indent, const struct key *k, const void *base,
                      const void *usual, unsigned kind)
{
    const char *last = strrchr(k->name, '.');
    if (k->only && !(k->only & (1u << kind)) && key_same(k, base, usual))
        return;
    (void)fprintf(out, "%s%s: ", indent, last ? last + 1 : k->name);
    key_print(out, k, base);
    (void)fputc('\n', out);
}

static void print_scope(FILE *out, const char *indent, enum key_scope scope, const void *base,
                        const void *usual, unsigned kind)
{
    for (unsigned i = 0; i < n_stack_keys; i++) {
        if (stack_keys[i].scope == (int)scope && stack_keys[i].type != KEY_INNER)
            print_key(out, indent, &stack_keys[i], base, usual, kind);
    }
}

void stack_print_step(FILE *out, const char *indent, const struct step_params *p)
{
    struct step_params usual;
    memset(&usual, 0, sizeof usual);
    key_defaults(SCOPE_STEP, &usual);
    for (unsigned i = 0; i < n_stack_keys; i++) {
        const struct key *k = &stack_keys[i];
        bool needed = k->only && (k->only & (1u << p->form)) && k->type == KEY_REAL;
        if (k->scope == SCOPE_STEP &&
            (needed || strcmp(k->name, "form") == 0 || !key_same(k, p, &usual)))
            print_key(out, indent, k, p, p, p->form);
    }
}

static void print_pool(FILE *out, const struct stack_pool *p)
{
    struct engine_config usual;
    const struct engine_config *engine = &p->worker.engine;
    bool first = true;

    engine_config_default(&usual, engine->scheduler);
    for (unsigned i = 0; i < n_stack_keys; i++) {
        const struct key *k = &stack_keys[i];
        if (k->scope != SCOPE_POOL || k->type == KEY_INNER || strcmp(k->name, "profile") == 0)
            continue;
        print_key(out, first ? "  - " : "    ", k, p, p, 0);
        first = false;
    }
    (void)fputs("    step:", out);
    if (p->profile[0])
        (void)fprintf(out, " # from profile %s", p->profile);
    (void)fputc('\n', out);
    stack_print_step(out, "      ", &p->step);
    (void)fputs("    engine:\n", out);
    print_scope(out, "      ", SCOPE_ENGINE, engine, &usual, engine->scheduler);
}

static void print_fault(FILE *out, const struct fault *f)
{
    bool first = true;
    for (unsigned i = 0; i < n_stack_keys; i++) {
        const struct key *k = &stack_keys[i];
        if (k->scope != SCOPE_FAULT ||
            (strcmp(k->name, "worker") == 0 && f->worker == UINT32_MAX) ||
            (strcmp(k->name, "domain") == 0 && f->worker != UINT32_MAX) ||
            (strcmp(k->name, "factor") == 0 && f->kind != FAULT_SLOW))
            continue;
        print_key(out, first ? "  - " : "    ", k, f, f, 0);
        first = false;
    }
}

static void print_policy_params(FILE *out, const struct stack *s)
{
    (void)fputs("policy_params:\n", out);
    for (uint32_t i = 0; i < s->n_policy_params; i++) {
        const struct stack_policy_param *p = &s->policy_params[i];
        bool seen = false;
        for (uint32_t j = 0; j < i; j++)
            seen |= strcmp(s->policy_params[j].policy, p->policy) == 0;
        if (seen)
            continue;
        (void)fputs("  ", out);
        print_quoted(out, p->policy);
        (void)fputs(":\n", out);
        for (uint32_t j = i; j < s->n_policy_params; j++) {
            if (strcmp(s->policy_params[j].policy, p->policy) != 0)
                continue;
            (void)fputs("    ", out);
            print_quoted(out, s->policy_params[j].name);
            (void)fputs(": ", out);
            print_real(out, s->policy_params[j].value);
            (void)fputc('\n', out);
        }
    }
}

void stack_print(FILE *out, const struct stack *s)
{
    for (unsigned i = 0; i < n_stack_keys; i++) {
        const struct key *k = &stack_keys[i];
        if (k->scope != SCOPE_STACK)
            continue;
        if (k->type != KEY_INNER)
            print_key(out, strchr(k->name, '.') ? "  " : "", k, s, s, 0);
        else if (strcmp(k->name, "pools") != 0 && strcmp(k->name, "faults") != 0 &&
                 strcmp(k->name, "policy_params") != 0)
            (void)fprintf(out, "%s:\n", k->name);
    }
    if (s->n_policy_params)
        print_policy_params(out, s);
    (void)fputs("pools:\n", out);
    for (uint32_t i = 0; i < s->n_pools; i++)
        print_pool(out, &s->pools[i]);
    if (s->n_faults) {
        (void)fputs("faults:\n", out);
        for (uint32_t i = 0; i < s->n_faults; i++)
            print_fault(out, &s->faults[i]);
    }
}

/* ---- the reference ---- */

/* The default of an engine key is its engine's, printed once where all agree. */
static void print_engine_default(FILE *out, const struct key *k)
{
    static const char *const names[] = {"vllm", "sglang", "trtllm", "dynosim"};
    struct engine_config c[4];
    bool same = true;
    for (unsigned i = 0; i < 4; i++) {
        engine_config_default(&c[i], (enum sched_kind)i);
        same = same && key_same(k, &c[0], &c[i]);
    }
    if (same) {
        key_print(out, k, &c[0]);
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        (void)fprintf(out, "%s%s ", i ? ", " : "", names[i]);
        key_print(out, k, &c[i]);
    }
}

static void print_default(FILE *out, const struct key *k)
{
    if (k->default_note)
        (void)fputs(k->default_note, out);
    else if (k->def)
        (void)fputs(strcmp(k->def, "\"\"") == 0 ? "empty" : k->def, out);
    else if (k->scope == SCOPE_ENGINE)
        print_engine_default(out, k);
}

static void print_only(FILE *out, const struct key *k)
{
    static const char *const engines[] = {"vllm", "sglang", "trtllm", "dynosim"};
    static const char *const forms[] = {"linear", "table", "fixed", "polynomial"};
    const char *const *names = k->scope == SCOPE_STEP ? forms : engines;
    bool first = true;
    for (unsigned i = 0; i < 4 && k->only; i++) {
        if (k->only & (1u << i)) {
            (void)fprintf(out, "%s%s", first ? " [" : ", ", names[i]);
            first = false;
        }
    }
    if (!first)
        (void)fputs(" only]", out);
    if (k->aliases) {
        (void)fputs(" (also: ", out);
        for (const char *c = k->aliases; *c; c++) {
            if (*c == '!')
                (void)fputs("the opposite ", out);
            else
                (void)fputs(*c == ' ' ? ", " : (char[]){*c, '\0'}, out);
        }
        (void)fputc(')', out);
    }
}

static void print_reference_row(FILE *out, const struct key *k, bool markdown)
{
    if (markdown) {
        (void)fprintf(out, "| `%s` | ", k->name);
        key_print_type(out, k);
        (void)fputs(" | ", out);
        print_default(out, k);
        (void)fprintf(out, " | %s", k->help);
        print_only(out, k);
        (void)fputs(" |\n", out);
        return;
    }
    (void)fprintf(out, "  %-34s ", k->name);
    key_print_type(out, k);
    (void)fputs("; default ", out);
    print_default(out, k);
    (void)fprintf(out, "\n      %s", k->help);
    print_only(out, k);
    (void)fputc('\n', out);
}

void stack_print_reference(FILE *out, bool markdown)
{
    static const char *const titles[SCOPE_COUNT] = {
        "Top level",
        "A pool: pools[]",
        "Engine flags: pools[].engine",
        "Step times: pools[].step, and step in a profile",
        "A fault: faults[]",
        "A profile file: deploy/profiles/NAME.yaml",
    };
    if (markdown)
        (void)fputs("# The stack file, key by key\n\n"
                    "Generated by `weir check --reference` from the table that the loader uses "
                    "(controller/replay/stack_keys.c);\na test checks that it is current. Engine "
                    "keys are the engine's own flag names: `--max-num-seqs` of a serve command is\n"
                    "`max_num_seqs` (or `max-num-seqs`) here. A line may also be copied as it is "
                    "(`--max-num-seqs: 64`). Times end at 53 days.\nExamples: deploy/stacks/.\n",
                    out);
    for (unsigned scope = 0; scope < SCOPE_COUNT; scope++) {
        (void)fprintf(out,
                      markdown
                          ? "\n## %s\n\n| key | value | default | meaning |\n|---|---|---|---|\n"
                          : "\n%s\n",
                      titles[scope]);
        for (unsigned i = 0; i < n_stack_keys; i++) {
            if (stack_keys[i].scope == (int)scope)
                print_reference_row(out, &stack_keys[i], markdown);
        }
    }
}
