/* config.c - reads weir serve's config; see config.h. */
#include "controller/serve/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "predictor/mem.h"

#define POLICY_LIST_BYTES 512

/* What one load carries around. */
struct load {
    struct keys_file f;
    const struct ytree_node *root; /* of the file; NULL: none, or empty */
    struct serve_config *c;
};

/* ---- parts of values */

/* HOST:PORT, [IPV6]:PORT */
static bool split_address(const char *text, char host[SERVE_HOST_BYTES], uint16_t *port)
{
    const char *colon = strrchr(text, ':'), *from = text, *to = colon;
    if (!colon || colon == text || !colon[1] || strlen(colon + 1) > 5 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return false;
    unsigned long number = strtoul(colon + 1, NULL, 10);
    if (*from == '[' && to[-1] == ']') {
        from++;
        to--;
    }
    if (to <= from || (size_t)(to - from) >= SERVE_HOST_BYTES || number > 65535)
        return false;
    memcpy(host, from, (size_t)(to - from));
    host[to - from] = '\0';
    *port = (uint16_t)number;
    return true;
}

/* What stands in metrics, logs and headers as it is. */
static bool is_plain(const char *s)
{
    for (; *s; s++) {
        if (*s < 0x21 || *s > 0x7e || *s == '"' || *s == '\\' || *s == '/')
            return false;
    }
    return true;
}

/* A regular file, opened; NULL: *why. Nothing else, so that a pipe without a writer holds nobody up. */
static FILE *open_regular(const char *path, const char **why)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st)) {
        *why = strerror(errno);
    } else if (!S_ISREG(st.st_mode)) {
        *why = "it is not a regular file";
    } else {
        FILE *f = fdopen(fd, "r");
        *why = "out of memory";
        if (f)
            return f;
    }
    if (fd >= 0)
        close(fd);
    return NULL;
}

/* The first line of a file, without its end. */
static int read_secret(const char *path, char *out, size_t cap, const char *where, char *error)
{
    const char *why;
    FILE *f = open_regular(path, &why);
    if (!f) {
        ytree_error(error, "%s: cannot open %.256s: %s; check the path", where, path, why);
        return WEIR_E_INPUT;
    }
    size_t n = fread(out, 1, cap, f);
    fclose(f);
    size_t len = n;
    for (size_t i = 0; i < n && len == n; i++) {
        if (out[i] == '\n' || out[i] == '\r')
            len = i;
    }
    if (len == cap || !len) {
        ytree_error(error, "%s: expected 1 to %zu bytes in the first line of %.256s, found %s",
                    where, cap - 1, path, len ? "more" : "none");
        return WEIR_E_INPUT;
    }
    out[len] = '\0';
    return WEIR_OK;
}

/* ---- workers */

const char *config_split_url(struct config_worker *w)
{
    char text[CONFIG_ADDRESS_BYTES + 8];
    w->tls = !strncmp(w->url, "https://", 8);
    if (!w->tls && strncmp(w->url, "http://", 7))
        return "expected http://HOST:PORT or https://HOST:PORT";
    snprintf(text, sizeof text, "%s", w->url + (w->tls ? 8 : 7));
    size_t len = strlen(text);
    if (len && text[len - 1] == '/')
        text[--len] = '\0';
    if (strpbrk(text, "/?#"))
        return "expected an address without a path: engines are asked for the paths of the clients";
    if (strchr(text, '@'))
        return "expected an address without a user: a worker's key comes with the clients' requests";
    if (!strrchr(text, ':') || (strrchr(text, ']') && strrchr(text, ':') < strrchr(text, ']')))
        snprintf(text + len, sizeof text - len, w->tls ? ":443" : ":80");
    if (!split_address(text, w->host, &w->port) || !w->port)
        return "expected http://HOST:PORT, with a port from 1 to 65535";
    if (!w->name[0])
        snprintf(w->name, sizeof w->name, "%.255s", text);
    if (!is_plain(w->name))
        return "the name has blanks, quotes or slashes; give it a plain one";
    return NULL;
}

/* NULL, or what is wrong with where KV events are to be read. */
static const char *check_kv(const struct config_worker *w)
{
    const char *const addresses[] = {w->kv_events, w->kv_replay};
    for (int i = 0; i < 2; i++) {
        if (addresses[i][0] && strncmp(addresses[i], "tcp://", 6) &&
            strncmp(addresses[i], "ipc://", 6))
            return i ? "kv_replay: expected tcp://HOST:PORT"
                     : "kv_events: expected tcp://HOST:PORT";
    }
    return w->kv_replay[0] && !w->kv_events[0] ? "kv_replay comes with kv_events" : NULL;
}

static struct config_worker *new_worker(struct config_pool *p)
{
    MEM_GROW(p->workers, p->workers_cap, p->n_workers + 1);
    struct config_worker *w = &p->workers[p->n_workers];
    memset(w, 0, sizeof *w);
    keys_defaults(&config_table, CONFIG_WORKER, w);
    return w;
}

/* URL[#name=value,...]: the short form of a worker. */
static int read_short_worker(const struct load *l, struct config_worker *w, const char *text,
                             const char *where)
{
    char details[1024], *detail, *save = NULL;
    size_t n = strcspn(text, "#");
    if (n >= sizeof w->url || strlen(text + n) >= sizeof details) {
        ytree_error(l->f.error, "%s: '%.60s...' is too long", where, text);
        return WEIR_E_INPUT;
    }
    snprintf(w->url, sizeof w->url, "%.*s", (int)n, text);
    snprintf(details, sizeof details, "%s", text[n] ? text + n + 1 : "");
    for (detail = strtok_r(details, ",", &save); detail; detail = strtok_r(NULL, ",", &save)) {
        char *eq = strchr(detail, '='), at[KEYS_WHERE_BYTES], hint[YTREE_ERROR_BYTES];
        bool negated;
        if (!eq) {
            ytree_error(l->f.error, "%s: expected name=value behind '#', got '%.60s'", where,
                        detail);
            return WEIR_E_INPUT;
        }
        *eq = '\0';
        const struct key *k = keys_find(&config_table, CONFIG_WORKER, "", detail, &negated);
        snprintf(at, sizeof at, "%.200s: %.60s", where, detail);
        if (!k) {
            keys_suggest(&config_table, CONFIG_WORKER, "", detail, hint, sizeof hint);
            ytree_error(l->f.error, "%s: unknown key; %s", at, hint);
            return WEIR_E_INPUT;
        }
        struct ytree_node value = {.kind = YTREE_SCALAR, .text = eq + 1};
        int rc = key_read(k, w, &value, negated, at, l->f.error);
        if (rc)
            return rc;
    }
    return WEIR_OK;
}

/* The worker that has been read joins its pool. */
static int add_worker(const struct load *l, struct config_pool *p, struct config_worker *w,
                      const char *where)
{
    const char *wrong =
        w->url[0] ? config_split_url(w) : "expected url: http://HOST:PORT; a worker has an address";
    if (wrong) {
        ytree_error(l->f.error, "%s: %s (got '%.100s')", where, wrong, w->url);
        return WEIR_E_INPUT;
    }
    wrong = check_kv(w);
    if (wrong) {
        ytree_error(l->f.error, "%s: %s (got '%.100s', '%.100s')", where, wrong, w->kv_events,
                    w->kv_replay);
        return WEIR_E_INPUT;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->c->n_pools; i++) {
        const struct config_pool *other = &l->c->pools[i];
        n += other->n_workers;
        for (uint32_t k = 0; k < other->n_workers; k++) {
            if (strcmp(other->workers[k].name, w->name) != 0)
                continue;
            ytree_error(l->f.error, "%s: %.100s is given twice; give this worker a name of its own",
                        where, w->name);
            return WEIR_E_INPUT;
        }
    }
    if (n + 1 > SERVE_MAX_WORKERS) {
        ytree_error(l->f.error, "%s: more than %u workers", where, SERVE_MAX_WORKERS);
        return WEIR_E_INPUT;
    }
    p->n_workers++;
    return WEIR_OK;
}

static int read_workers(struct load *l, struct config_pool *p, const struct ytree_node *list,
                        const char *path)
{
    if (list->kind != YTREE_LIST)
        return keys_fail(&l->f, list, path, "expected a list of workers (- url: http://HOST:PORT)");
    for (const struct ytree_node *n = list->first; n; n = n->next) {
        char where[KEYS_WHERE_BYTES];
        struct config_worker *w = new_worker(p);
        w->line = n->line;
        (void)keys_where(&l->f, n, path, "", where);
        int rc = n->kind == YTREE_SCALAR
                     ? read_short_worker(l, w, n->text, where)
                     : keys_read_map(&l->f, CONFIG_WORKER, "", n, w, path, NULL);
        if (!rc)
            rc = add_worker(l, p, w, where);
        if (rc)
            return rc;
    }
    return WEIR_OK;
}

/* ---- pools */

static int unknown_policy(const struct load *l, const char *where, const char *name)
{
    char list[POLICY_LIST_BYTES] = "", near[WORD_BYTES];
    for (uint32_t i = 0; i < core_policies_count; i++)
        word_add(list, sizeof list, core_policies[i]->name);
    if (word_nearest(list, name, 0, near, sizeof near))
        ytree_error(l->f.error, "%s: no policy '%.64s'; did you mean %s?", where, name, near);
    else
        ytree_error(l->f.error, "%s: no policy '%.64s'; expected one of: %s", where, name, list);
    return WEIR_E_INPUT;
}

static void default_params(struct config_pool *p, const struct policy_ops *policy)
{
    for (uint32_t i = 0; i < policy->n_params; i++)
        p->policy_param[i] = policy->params[i].def;
}

static int read_params(struct load *l, struct config_pool *p, const struct ytree_node *map,
                       const char *path)
{
    const struct policy_ops *policy = core_policy_find(p->policy);
    if (map->kind != YTREE_MAP)
        return keys_fail(&l->f, map, path, "expected {PARAMETER: number}");
    for (const struct ytree_node *n = map->first; n; n = n->next) {
        char list[POLICY_LIST_BYTES] = "", where[KEYS_WHERE_BYTES];
        uint32_t i = 0;
        while (i < policy->n_params && strcmp(policy->params[i].name, n->key) != 0)
            word_add(list, sizeof list, policy->params[i++].name);
        if (i == policy->n_params)
            return keys_fail(&l->f, n, path, "%s has no parameter '%.64s'; it has: %s",
                             policy->name, n->key, *list ? list : "none");
        const struct key number = {.type = KEY_REAL,
                                   .name = "parameter",
                                   .min = policy->params[i].min,
                                   .max = policy->params[i].max};
        int rc = key_read(&number, &p->policy_param[i], n, false,
                          keys_where(&l->f, n, path, n->key, where), l->f.error);
        if (rc)
            return rc;
    }
    return WEIR_OK;
}

static const struct ytree_node *child(const struct ytree_node *map, const char *name)
{
    const struct ytree_node *n = map->kind == YTREE_MAP ? map->first : NULL;
    char plain[WORD_BYTES];
    for (; n; n = n->next) {
        key_plain_name(n->key, plain);
        if (!strcmp(plain, name))
            break;
    }
    return n;
}

static int read_pool_inner(struct keys_file *f, const struct key *k, const struct ytree_node *n,
                           void *base, const char *path)
{
    char prefix[KEYS_PATH_BYTES];
    if (!strcmp(k->name, "workers"))
        return read_workers(f->user, base, n, path);
    if (!strcmp(k->name, "policy_params"))
        return WEIR_OK; /* need to know the policy, which may stand behind them: read_pool has them */
    snprintf(prefix, sizeof prefix, "%s.", k->name);
    return keys_read_map(f, CONFIG_POOL, prefix, n, base, path, NULL);
}

static void pool_defaults(struct config_pool *p, uint32_t index)
{
    memset(p, 0, sizeof *p);
    keys_defaults(&config_table, CONFIG_POOL, p);
    if (index)
        snprintf(p->name, sizeof p->name, "pool%u", index);
    else
        snprintf(p->name, sizeof p->name, "main");
}

/* Its name and models are its own. */
static int check_names(struct load *l, const struct ytree_node *n, const char *path,
                       const struct config_pool *p)
{
    if (!is_plain(p->name))
        return keys_fail(&l->f, n, path, "the name '%.64s' has blanks, quotes or slashes", p->name);
    for (const struct config_pool *o = l->c->pools; o < p; o++) {
        if (!strcmp(o->name, p->name))
            return keys_fail(&l->f, n, path, "two pools are called %.64s; rename one", p->name);
        for (uint32_t i = 0; i < p->n_models; i++) {
            for (uint32_t k = 0; k < o->n_models; k++) {
                if (!strcmp(p->models[i], o->models[k]))
                    return keys_fail(&l->f, n, path,
                                     "model %.100s is in pool %.64s already; a model has one pool",
                                     p->models[i], o->name);
            }
        }
    }
    return WEIR_OK;
}

static int read_pool(struct load *l, const struct ytree_node *n, const char *list_path)
{
    struct serve_config *c = l->c;
    char path[KEYS_PATH_BYTES], where[KEYS_WHERE_BYTES];
    if (c->n_pools == SERVE_MAX_POOLS)
        return keys_fail(&l->f, n, list_path, "more than %u pools", SERVE_MAX_POOLS);
    struct config_pool *p = &c->pools[c->n_pools];
    pool_defaults(p, c->n_pools++);
    p->line = n->line;
    snprintf(path, sizeof path, "pools[%u]", c->n_pools - 1);
    int rc = keys_read_map(&l->f, CONFIG_POOL, "", n, p, path, read_pool_inner);
    if (rc)
        return rc;
    const struct policy_ops *policy = core_policy_find(p->policy);
    const struct ytree_node *at = child(n, "policy"), *params = child(n, "policy_params");
    if (!policy)
        return unknown_policy(l, keys_where(&l->f, at ? at : n, path, "policy", where), p->policy);
    default_params(p, policy);
    snprintf(path, sizeof path, "pools[%u].policy_params", c->n_pools - 1);
    rc = params ? read_params(l, p, params, path) : WEIR_OK;
    snprintf(path, sizeof path, "pools[%u]", c->n_pools - 1);
    return rc ? rc : check_names(l, n, path, p);
}

/* Whether p can run at all. `where` starts the message. */
static int check_pool(const struct load *l, struct config_pool *p, const char *where)
{
    uint32_t prefill = 0, decode = 0;
    for (uint32_t i = 0; i < p->n_workers; i++) {
        prefill += p->workers[i].role == ROLE_PREFILL;
        decode += p->workers[i].role == ROLE_DECODE;
    }
    if (!p->n_workers)
        ytree_error(l->f.error, "%s has no workers: expected workers: [http://HOST:PORT, ...]",
                    where);
    else if (!prefill != !decode)
        ytree_error(l->f.error, "%s: prefill and decode workers come together: there are %u and %u",
                    where, prefill, decode);
    else if (p->n_workers + p->spare_workers > SERVE_MAX_WORKERS)
        ytree_error(l->f.error, "%s: workers and spare_workers are more than %u", where,
                    SERVE_MAX_WORKERS);
    else {
        p->dialect = prefill ? &handover_dialects[p->handover] : NULL;
        return WEIR_OK;
    }
    return WEIR_E_INPUT;
}

/* ---- tenants and routes */

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static bool read_digest(const char *hex, uint8_t out[SERVE_DIGEST_BYTES])
{
    for (size_t i = 0; i < SERVE_DIGEST_BYTES; i++) {
        int high = hex_digit(hex[2 * i]), low = high < 0 ? -1 : hex_digit(hex[2 * i + 1]);
        if (low < 0)
            return false;
        out[i] = (uint8_t)(high * 16 + low);
    }
    return !hex[2 * SERVE_DIGEST_BYTES];
}

/* Who it is: exactly one way to know. */
static int identify(struct load *l, const struct ytree_node *n, const char *path,
                    const struct config_tenant *from, struct serve_tenant *t)
{
    char key[CONFIG_KEY_BYTES] = "", where[KEYS_WHERE_BYTES];
    int ways = !!from->api_key_file[0] + !!from->api_key_env[0] + !!from->api_key_sha256[0] +
               !!from->header_value[0];
    if (ways != 1)
        return keys_fail(&l->f, n, path,
                         "expected one of api_key_file, api_key_env, api_key_sha256 and "
                         "header_value, got %d",
                         ways);
    (void)keys_where(&l->f, n, path, "", where);
    t->by_key = !from->header_value[0];
    if (from->api_key_sha256[0]) {
        if (!read_digest(from->api_key_sha256, t->digest))
            return keys_fail(&l->f, n, path,
                             "api_key_sha256: expected 64 hexadecimal digits; printf %%s KEY | "
                             "sha256sum prints them");
        return WEIR_OK;
    }
    if (from->api_key_file[0]) {
        int rc = read_secret(from->api_key_file, key, sizeof key, where, l->f.error);
        if (rc)
            return rc;
    } else if (from->api_key_env[0]) {
        const char *value = getenv(from->api_key_env);
        if (!value || !*value || strlen(value) >= sizeof key)
            return keys_fail(&l->f, n, path,
                             "api_key_env: expected 1 to %u bytes in the environment variable "
                             "%.100s; set it",
                             CONFIG_KEY_BYTES - 1, from->api_key_env);
        snprintf(key, sizeof key, "%s", value);
    } else {
        snprintf(key, sizeof key, "%s", from->header_value);
    }
    SHA256((const unsigned char *)key, strlen(key), t->digest);
    OPENSSL_cleanse(key, sizeof key);
    return WEIR_OK;
}

static int read_tenant(struct load *l, const struct ytree_node *n, uint32_t index)
{
    struct serve_config *c = l->c;
    struct config_tenant from = {.weight = 1};
    struct serve_tenant *t = &c->tenants[index];
    char path[KEYS_PATH_BYTES];
    snprintf(path, sizeof path, "tenants[%u]", index);
    keys_defaults(&config_table, CONFIG_TENANT, &from);
    int rc = keys_read_map(&l->f, CONFIG_TENANT, "", n, &from, path, NULL);
    if (rc)
        return rc;
    if (!from.name[0] || !is_plain(from.name))
        return keys_fail(&l->f, n, path, "expected name: a word without blanks, quotes or slashes");
    snprintf(t->name, sizeof t->name, "%s", from.name);
    t->weight = from.weight;
    t->priority = from.priority;
    rc = identify(l, n, path, &from, t);
    if (rc)
        return rc;
    t->id = serve_tenant_id(t->digest);
    for (uint32_t i = 0; i < index; i++) {
        if (!strcmp(c->tenants[i].name, t->name) || c->tenants[i].id == t->id)
            return keys_fail(&l->f, n, path, "the same name, key or header value as tenants[%u]",
                             i);
    }
    c->n_tenants = index + 1;
    return WEIR_OK;
}

static int by_id(const void *a, const void *b)
{
    const struct serve_tenant *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static uint32_t count(const struct ytree_node *list)
{
    uint32_t n = 0;
    for (const struct ytree_node *e = list->first; e; e = e->next)
        n++;
    return n;
}

static int read_route(struct load *l, const struct ytree_node *n, uint32_t index)
{
    struct serve_route *r = &l->c->routes[index];
    char path[KEYS_PATH_BYTES];
    snprintf(path, sizeof path, "routes[%u]", index);
    keys_defaults(&config_table, CONFIG_ROUTE, r);
    int rc = keys_read_map(&l->f, CONFIG_ROUTE, "", n, r, path, NULL);
    if (!rc && r->path[0] != '/')
        rc = keys_fail(&l->f, n, path, "expected path: with a leading /, as in /v1/completions");
    l->c->n_routes = index + 1;
    return rc;
}

/* A list of at most max things of size bytes each, into *to. */
static int read_list(struct load *l, const struct ytree_node *list, const char *path, uint32_t max,
                     size_t size, void *to,
                     int (*read)(struct load *, const struct ytree_node *, uint32_t))
{
    void **array = to;
    uint32_t i = 0;
    if (list->kind != YTREE_LIST)
        return keys_fail(&l->f, list, path, "expected a list (- ...)");
    if (count(list) > max)
        return keys_fail(&l->f, list, path, "more than %u", max);
    *array = calloc(count(list) + 1, size);
    if (!*array) {
        ytree_error(l->f.error, "%s: out of memory while reading it", l->f.name);
        return WEIR_E_NOMEM;
    }
    for (const struct ytree_node *n = list->first; n; n = n->next) {
        int rc = read(l, n, i++);
        if (rc)
            return rc;
    }
    return WEIR_OK;
}

static int read_pool_of_list(struct load *l, const struct ytree_node *n, uint32_t index)
{
    (void)index;
    return read_pool(l, n, "pools");
}

static int read_top_inner(struct keys_file *f, const struct key *k, const struct ytree_node *n,
                          void *base, const char *path)
{
    struct load *l = f->user;
    struct serve_config *c = base;
    char prefix[KEYS_PATH_BYTES];
    if (!strcmp(k->name, "pools"))
        return read_list(l, n, path, SERVE_MAX_POOLS, sizeof *c->pools, &c->pools,
                         read_pool_of_list);
    if (!strcmp(k->name, "tenants"))
        return read_list(l, n, path, CORE_MAX_TENANTS, sizeof *c->tenants, &c->tenants,
                         read_tenant);
    if (!strcmp(k->name, "routes"))
        return read_list(l, n, path, SERVE_MAX_ROUTES, sizeof *c->routes, &c->routes, read_route);
    snprintf(prefix, sizeof prefix, "%s.", k->name);
    return keys_read_map(f, CONFIG_TOP, prefix, n, base, path, NULL);
}

/* ---- options */

static int apply_option(struct load *l, const struct key *k, const char *value)
{
    struct serve_config *c = l->c;
    struct ytree_node n = {.kind = YTREE_SCALAR, .text = value};
    char where[64];
    int rc = WEIR_OK;
    snprintf(where, sizeof where, "--%s", k->option);
    if (k->scope == CONFIG_TOP && k->type == KEY_TEXTS) { /* one more of a list: see --allow */
        struct serve_settings *s = &c->set;
        if (s->n_allowed == SERVE_MAX_ALLOWED || strlen(value) >= SERVE_HOST_BYTES) {
            ytree_error(l->f.error, "%s: expected at most %u paths of at most %u bytes", where,
                        SERVE_MAX_ALLOWED, SERVE_HOST_BYTES - 1);
            return WEIR_E_INPUT;
        }
        snprintf(s->allowed[s->n_allowed++], SERVE_HOST_BYTES, "%s", value);
        return WEIR_OK;
    }
    if (k->scope == CONFIG_TOP)
        return key_read(k, c, &n, false, where, l->f.error);
    for (uint32_t i = 0; !rc && i < c->n_pools; i++) {
        struct config_pool *p = &c->pools[i];
        rc = key_read(k, p, &n, false, where, l->f.error);
        if (rc || strcmp(k->name, "policy"))
            continue;
        const struct policy_ops *policy = core_policy_find(p->policy);
        if (!policy)
            return unknown_policy(l, where, p->policy);
        default_params(p, policy);
    }
    return rc;
}

static int apply_worker(struct load *l, const char *value)
{
    struct config_pool *p = &l->c->pools[0];
    if (l->c->n_pools > 1) {
        ytree_error(l->f.error,
                    "--worker: the file has several pools; write the worker into its pool there");
        return WEIR_E_INPUT;
    }
    struct config_worker *w = new_worker(p);
    int rc = read_short_worker(l, w, value, "--worker");
    return rc ? rc : add_worker(l, p, w, "--worker");
}

static int apply_options(struct load *l, const struct config_args *a)
{
    struct serve_config *c = l->c;
    int rc = WEIR_OK;
    if (!c->n_pools) {
        if (!c->pools && !(c->pools = calloc(1, sizeof *c->pools))) {
            ytree_error(l->f.error, "out of memory");
            return WEIR_E_NOMEM;
        }
        pool_defaults(&c->pools[0], 0);
        default_params(&c->pools[0], core_policy_find(c->pools[0].policy));
        c->n_pools = 1;
    }
    for (uint32_t i = 0; !rc && a && i < a->n_given; i++)
        rc = a->given[i].key ? apply_option(l, a->given[i].key, a->given[i].value)
                             : apply_worker(l, a->given[i].value);
    return rc;
}

/* ---- the whole */

static bool is_loopback(const char *host)
{
    return !strncmp(host, "127.", 4) || !strcmp(host, "::1");
}

/* "file:line: section.key" where the file says it, else "section.key". */
static const char *where_top(const struct load *l, const char *section, const char *key,
                             char out[KEYS_WHERE_BYTES])
{
    const struct ytree_node *n = l->root;
    if (n && *section)
        n = child(n, section);
    if (n)
        n = child(n, key);
    if (n)
        return keys_where(&l->f, n, section, key, out);
    snprintf(out, KEYS_WHERE_BYTES, "%s%s%s", section, *section ? "." : "", key);
    return out;
}

static int check_top(const struct load *l)
{
    struct serve_config *c = l->c;
    char *error = l->f.error, at[KEYS_WHERE_BYTES];
    const char *why;
    if (!split_address(c->listen, c->set.listen_host, &c->set.listen_port))
        ytree_error(error, "%s: expected HOST:PORT, got '%.100s'", where_top(l, "", "listen", at),
                    c->listen);
    else if (!split_address(c->admin, c->admin_host, &c->admin_port))
        ytree_error(error, "%s: expected HOST:PORT, got '%.100s'",
                    where_top(l, "admin", "listen", at), c->admin);
    else if (strcmp(c->state, "none") != 0 && redis_url_read(&c->redis, c->state, &why))
        ytree_error(error, "%s: %s; or none", where_top(l, "", "state", at), why);
    else if (!c->set.tls_cert[0] != !c->set.tls_key[0])
        ytree_error(error, "%s: tls.cert and tls.key (--tls-cert, --tls-key) come together",
                    where_top(l, "tls", c->set.tls_cert[0] ? "cert" : "key", at));
    else if (!is_loopback(c->admin_host) && !c->admin_token_file[0])
        ytree_error(error,
                    "%s: on %.100s a token is needed: give admin.token_file, or listen on "
                    "127.0.0.1",
                    where_top(l, "admin", "listen", at), c->admin_host);
    else if (c->admin_token_file[0])
        return read_secret(c->admin_token_file, c->admin_token, sizeof c->admin_token,
                           where_top(l, "admin", "token_file", at), error);
    else
        return WEIR_OK;
    return WEIR_E_INPUT;
}

static int check_allowed(const struct load *l)
{
    const struct serve_settings *set = &l->c->set;
    char at[KEYS_WHERE_BYTES];
    for (uint32_t i = 0; i < set->n_allowed; i++) {
        if (set->allowed[i][0] == '/')
            continue;
        ytree_error(l->f.error, "%s: expected a path that starts with /, got '%.100s'",
                    where_top(l, "", "allow", at), set->allowed[i]);
        return WEIR_E_INPUT;
    }
    return WEIR_OK;
}

static int check_whole(struct load *l)
{
    struct serve_config *c = l->c;
    bool from_file = l->f.name != NULL;
    uint32_t total = 0;
    int rc = check_top(l);
    if (!rc)
        rc = check_allowed(l);
    for (uint32_t i = 0; !rc && i < c->n_pools; i++) {
        struct config_pool *p = &c->pools[i];
        char where[KEYS_WHERE_BYTES];
        if (!p->n_workers && !p->line) {
            ytree_error(l->f.error, "%s%s%s", from_file ? l->f.name : "", from_file ? ": " : "",
                        from_file ? "expected pools: a list of pools with workers, or --worker"
                                  : "no worker is given: --worker http://HOST:PORT, or a --config "
                                    "with pools (see weir serve --help)");
            return WEIR_E_INPUT;
        }
        if (p->line)
            snprintf(where, sizeof where, "%.200s:%u: pools[%u]", l->f.name, p->line, i);
        else
            snprintf(where, sizeof where, "--worker");
        rc = check_pool(l, p, where);
        total += p->n_workers + p->spare_workers;
    }
    if (!rc && total > SERVE_MAX_WORKERS) {
        ytree_error(l->f.error, "workers and spare_workers of all pools are more than %u",
                    SERVE_MAX_WORKERS);
        rc = WEIR_E_INPUT;
    }
    if (!rc && c->n_tenants)
        qsort(c->tenants, c->n_tenants, sizeof *c->tenants, by_id);
    return rc;
}

int config_load_text(struct serve_config *c, const struct config_args *a, const char *name,
                     const char *text, size_t len, char *error)
{
    struct load l = {.f = {.table = &config_table, .name = name, .error = error}, .c = c};
    struct ytree tree = {.root = NULL};
    int rc = WEIR_OK;
    l.f.user = &l;
    error[0] = '\0';
    memset(c, 0, sizeof *c);
    keys_defaults(&config_table, CONFIG_TOP, c);
    if (name)
        rc = ytree_parse(&tree, name, text, len, error);
    if (!rc && tree.root)
        rc = keys_read_map(&l.f, CONFIG_TOP, "", tree.root, c, "", read_top_inner);
    l.root = tree.root;
    if (!rc)
        rc = apply_options(&l, a);
    if (!rc)
        rc = check_whole(&l);
    ytree_deinit(&tree);
    return rc;
}

int config_load(struct serve_config *c, const struct config_args *a, char *error)
{
    char *text = NULL;
    size_t len = 0;
    int rc = WEIR_OK;
    memset(c, 0, sizeof *c);
    if (a->file)
        rc = ytree_read_file(a->file, YTREE_MAX_BYTES, &text, &len, error);
    if (!rc)
        rc = config_load_text(c, a, a->file, text, len, error);
    free(text);
    return rc;
}

void config_free(struct serve_config *c)
{
    for (uint32_t i = 0; c->pools && i < c->n_pools; i++)
        free(c->pools[i].workers);
    free(c->pools);
    free(c->tenants);
    free(c->routes);
    OPENSSL_cleanse(c->admin_token, sizeof c->admin_token);
    memset(c, 0, sizeof *c);
}

/* ---- what a reload cannot do */

static const struct config_pool *pool_named(const struct serve_config *c, const char *name)
{
    for (uint32_t i = 0; i < c->n_pools; i++) {
        if (!strcmp(c->pools[i].name, name))
            return &c->pools[i];
    }
    return NULL;
}

static void add_changes(int scope, const void *from, const void *to, const char *before, char *out,
                        size_t n)
{
    for (unsigned i = 0; i < config_table.n; i++) {
        const struct key *k = &config_table.keys[i];
        char name[SERVE_HOST_BYTES + 64];
        if (k->scope != scope || !k->fixed || k->type == KEY_INNER || key_same(k, from, to))
            continue;
        snprintf(name, sizeof name, "%s%s", before, k->name);
        word_add(out, n, name);
    }
}

void config_fixed_changes(const struct serve_config *from, const struct serve_config *to, char *out,
                          size_t n)
{
    out[0] = '\0';
    add_changes(CONFIG_TOP, from, to, "", out, n);
    for (uint32_t i = 0; i < to->n_pools; i++) {
        const struct config_pool *old = pool_named(from, to->pools[i].name);
        char before[SERVE_HOST_BYTES + 16];
        snprintf(before, sizeof before, "pools.%s.", to->pools[i].name);
        if (old)
            add_changes(CONFIG_POOL, old, &to->pools[i], before, out, n);
        else
            word_add(out, n, before);
        if (old && !core_policy_find(old->policy)->tune &&
            memcmp(old->policy_param, to->pools[i].policy_param, sizeof old->policy_param) != 0) {
            snprintf(before, sizeof before, "pools.%.64s.policy_params", to->pools[i].name);
            word_add(out, n, before);
        }
    }
    for (uint32_t i = 0; i < from->n_pools; i++) {
        char gone[SERVE_HOST_BYTES + 16];
        if (pool_named(to, from->pools[i].name))
            continue;
        snprintf(gone, sizeof gone, "pools.%s(removed)", from->pools[i].name);
        word_add(out, n, gone);
    }
}

static void keep(int scope, void *to, const void *from)
{
    for (unsigned i = 0; i < config_table.n; i++) {
        const struct key *k = &config_table.keys[i];
        if (k->scope == scope && k->fixed && k->type != KEY_INNER)
            key_copy(k, to, from);
    }
}

void config_keep_fixed(const struct serve_config *from, struct serve_config *to)
{
    keep(CONFIG_TOP, to, from);
    for (uint32_t i = 0; i < to->n_pools; i++) {
        const struct config_pool *old = pool_named(from, to->pools[i].name);
        if (!old)
            continue;
        bool another = strcmp(old->policy, to->pools[i].policy) != 0;
        keep(CONFIG_POOL, &to->pools[i], old);
        if (another || !core_policy_find(old->policy)->tune)
            memcpy(to->pools[i].policy_param, old->policy_param, sizeof old->policy_param);
    }
}
