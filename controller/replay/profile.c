/* profile.c - see profile.h. */
#include "controller/replay/profile.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "controller/replay/stack_keys.h"
#include "controller/config/words.h"
#include "controller/config/yaml_tree.h"

#define WHERE_BYTES 512
#define FILE_BYTES 4096
#define NAMES_BYTES 16384 /* of the profiles there are, for suggestions */
#define SUFFIX ".yaml"

static void start_profile(struct profile *p)
{
    memset(p, 0, sizeof *p);
    key_defaults(SCOPE_PROFILE, p);
    key_defaults(SCOPE_STEP, &p->step);
}

/* Reads the keys of one mapping of a profile. */
static int read_keys(struct profile *p, enum key_scope scope, void *base,
                     const struct ytree_node *map, const char *name, char *error)
{
    unsigned first_line[STACK_KEYS_MAX] = {0};
    char where[WHERE_BYTES];
    const char *prefix = scope == SCOPE_STEP ? "step." : "";

    if (map->kind != YTREE_MAP) {
        ytree_error(error, "%.256s:%u: expected keys and values (source: ..., step: ...)", name,
                    map->line);
        return WEIR_E_INPUT;
    }
    for (const struct ytree_node *n = map->first; n; n = n->next) {
        bool negated;
        const struct key *k = key_find(scope, "", n->key, &negated);
        (void)snprintf(where, sizeof where, "%.256s:%u: %s%.64s", name, n->line, prefix, n->key);
        if (!k) {
            char hint[STACK_ERROR_BYTES];
            key_suggest(scope, "", n->key, hint, sizeof hint);
            ytree_error(error, "%s: unknown key; %s", where, hint);
            return WEIR_E_INPUT;
        }
        unsigned *line = &first_line[k - stack_keys];
        if (*line) {
            ytree_error(error, "%s: given twice, first on line %u; remove one", where, *line);
            return WEIR_E_INPUT;
        }
        *line = n->line;
        int rc = k->type == KEY_INNER ? read_keys(p, SCOPE_STEP, &p->step, n, name, error)
                                      : key_read(k, base, n, negated, where, error);
        if (rc)
            return rc;
        if (k->type == KEY_INNER) {
            struct step_model model;
            const char *why = NULL;
            if (step_model_init(&model, &p->step, &why)) {
                ytree_error(error, "%s: %s", where, why);
                return WEIR_E_INPUT;
            }
        }
    }
    return WEIR_OK;
}

static bool has_key(const struct ytree_node *map, const char *name)
{
    for (const struct ytree_node *n = map->first; n; n = n->next) {
        if (strcmp(n->key, name) == 0)
            return true;
    }
    return false;
}

int profile_load_memory(struct step_params *p, uint64_t *kv_bytes_per_token, uint32_t *gpus,
                        const char *name, const char *text, size_t len, char *error)
{
    struct profile profile;
    struct ytree tree;

    error[0] = '\0';
    start_profile(&profile);
    int rc = ytree_parse(&tree, name, text, len, error);
    if (rc == WEIR_OK && !tree.root) {
        ytree_error(error, "%.256s: empty; expected a profile (source: ..., step: ...)", name);
        rc = WEIR_E_INPUT;
    }
    if (rc == WEIR_OK)
        rc = read_keys(&profile, SCOPE_PROFILE, &profile, tree.root, name, error);
    if (rc == WEIR_OK && (!has_key(tree.root, "source") || !has_key(tree.root, "step"))) {
        ytree_error(error, "%.256s: expected source and step; is this a profile?", name);
        rc = WEIR_E_INPUT;
    }
    ytree_deinit(&tree);
    if (rc)
        return rc;
    *p = profile.step;
    *kv_bytes_per_token = profile.kv_bytes_per_token;
    *gpus = profile.gpus;
    return WEIR_OK;
}

int profile_load(struct step_params *p, uint64_t *kv_bytes_per_token, uint32_t *gpus,
                 const char *path, char *error)
{
    char *text = NULL;
    size_t len = 0;
    int rc = ytree_read_file(path, STACK_FILE_MAX_BYTES, &text, &len, error);
    if (rc == WEIR_OK)
        rc = profile_load_memory(p, kv_bytes_per_token, gpus, path, text, len, error);
    free(text);
    return rc;
}

/* ---- names ---- */

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The names (without .yaml) in a directory, appended to `names` with spaces between. */
static void list_names(const char *dir, char names[NAMES_BYTES])
{
    DIR *d = opendir(dir);
    if (!d)
        return;
    for (struct dirent *e; (e = readdir(d));) {
        if (ends_with(e->d_name, SUFFIX)) {
            e->d_name[strlen(e->d_name) - strlen(SUFFIX)] = '\0';
            word_add(names, NAMES_BYTES, e->d_name);
        }
    }
    (void)closedir(d);
}

static int not_found(const char *name, const char *const *dirs, const char *where, char *error)
{
    char names[NAMES_BYTES] = "", near[STACK_PATH_BYTES], looked[STACK_PATH_BYTES] = "";
    for (size_t i = 0; dirs && dirs[i]; i++) {
        size_t used = strlen(looked);
        list_names(dirs[i], names);
        (void)snprintf(looked + used, sizeof looked - used, "%s%s", used ? ", " : "", dirs[i]);
    }
    if (word_nearest(names, name, 0, near, sizeof near))
        ytree_error(error, "%s: no profile '%.128s'; did you mean %s?", where, name, near);
    else
        ytree_error(error,
                    "%s: no profile '%.128s' in %s; expected NAME for NAME.yaml there, or a path "
                    "with a /",
                    where, name, looked[0] ? looked : "any folder (none is configured)");
    return WEIR_E_INPUT;
}

int profile_find(struct step_params *p, uint64_t *kv_bytes_per_token, uint32_t *gpus,
                 const char *name, const char *stack_path, const char *const *profile_dirs,
                 const char *where, char *error)
{
    char path[FILE_BYTES], inner[STACK_ERROR_BYTES];
    int n = 0;
    bool found = false;

    if (strchr(name, '/') || ends_with(name, SUFFIX)) {
        const char *slash = stack_path && name[0] != '/' ? strrchr(stack_path, '/') : NULL;
        n = snprintf(path, sizeof path, "%.*s%s", slash ? (int)(slash - stack_path) + 1 : 0,
                     slash ? stack_path : "", name);
        found = n > 0 && (size_t)n < sizeof path;
    }
    for (size_t i = 0; !found && profile_dirs && profile_dirs[i]; i++) {
        n = snprintf(path, sizeof path, "%s/%s%s", profile_dirs[i], name, SUFFIX);
        found = n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0;
    }
    if (!found)
        return not_found(name, profile_dirs, where, error);
    int rc = profile_load(p, kv_bytes_per_token, gpus, path, inner);
    if (rc)
        ytree_error(error, "%s: %.700s", where, inner);
    return rc == WEIR_E_IO ? WEIR_E_INPUT : rc; /* the stack names a file that cannot be read */
}

/* ---- where profiles are ---- */

static void add_dir(struct profile_dirs *d, const char *base, int base_len, const char *below)
{
    size_t n = 0;
    while (d->list[n])
        n++;
    if (n == PROFILE_DIRS_MAX)
        return;
    int len = snprintf(d->text[n], sizeof d->text[n], "%.*s%s", base_len, base, below);
    if (len > 0 && (size_t)len < sizeof d->text[n] && access(d->text[n], R_OK | X_OK) == 0) {
        d->list[n] = d->text[n];
        d->list[n + 1] = NULL;
    }
}

void profile_dirs_init(struct profile_dirs *d)
{
    char exe[FILE_BYTES];
    d->list[0] = NULL;

    const char *own = getenv("WEIR_PROFILES");
    if (own && *own)
        add_dir(d, own, (int)strnlen(own, FILE_BYTES), "");
    add_dir(d, "", 0, "deploy/profiles");
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return;
    exe[n] = '\0';
    char *slash = strrchr(exe, '/');
    int len = slash ? (int)(slash - exe) + 1 : 0;
    add_dir(d, exe, len, "../share/weir/profiles");
    add_dir(d, exe, len, "../deploy/profiles");
    add_dir(d, exe, len, "../../deploy/profiles");
}
