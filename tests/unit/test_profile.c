/* Profiles: reading, finding, and all that are shipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "controller/replay/profile.h"
#include "tests/support/files.h"

#define LLAMA "llama-3.1-8b-instruct_h100_trtllm-1.0.0rc3_tp1"

static char error[STACK_ERROR_BYTES];
static struct step_params step;
static uint64_t kv_bytes;
static uint32_t gpus;

static int load(const char *text)
{
    return profile_load_memory(&step, &kv_bytes, &gpus, "p.yaml", text, strlen(text), error);
}

static void reads(void **state)
{
    (void)state;
    if (load("source: fit\nmodel: m\ngpus: 4\nkv_bytes_per_token: 70000\n"
             "step: {w_ms: 7.5, k_ms_per_tok: 1e-4}\n"))
        fail_msg("%s", error);
    assert_int_equal(step.form, STEP_LINEAR);
    assert_true(fabs(step.w_ms - 7.5) < 1e-12 && fabs(step.k_ms_per_tok - 1e-4) < 1e-16);
    assert_true(fabs(step.scale - 1) < 1e-12);
    assert_int_equal(gpus, 4);
    assert_int_equal(kv_bytes, 70000);
}

static void refuses(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"", "p.yaml: empty"},
        {"source: x\n", "p.yaml: expected source and step; is this a profile?"},
        {"step: {w_ms: 1}\n", "p.yaml: expected source and step"},
        {"- 1\n", "p.yaml:1: expected keys and values"},
        {"source: x\nsorce: y\n", "p.yaml:2: sorce: unknown key; did you mean source?"},
        {"source: x\nstep:\n  w_m: 3\n", "p.yaml:3: step.w_m: unknown key; did you mean w_ms?"},
        {"source: x\nsource: y\n", "p.yaml:2: source: given twice, first on line 1"},
        {"source: x\nstep:\n  w_ms: 1\n  w-ms: 1\n", "p.yaml:4: step.w-ms: given twice"},
        {"source: x\nstep: {w_ms: -1}\n",
         "p.yaml:2: step.w_ms: expected a number 0..1000000000 ms, got -1"},
        {"source: x\nstep: {w_ms: .nan}\n", "p.yaml:2: step.w_ms: expected a number"},
        {"source: x\nstep: {form: lineal}\n", "p.yaml:2: step.form: expected one of"},
        {"source: x\nstep: {form: table}\n", "p.yaml:2: step:"},
        {"source: x\nstep: {form: table, prefill_tok: [2, 1], prefill_ms: [1, 2], decode_kv_tok: [1, 2], "
         "decode_ctx_tok: [1, 2], decode_ms: [[1, 2], [3, 4]]}\n",
         "p.yaml:2: step:"},
        {"source: x\ngpus: 0\nstep: {w_ms: 1}\n",
         "p.yaml:2: gpus: expected a whole number 1..65536"},
        {"source: ''\nstep: {w_ms: 1}\n", "p.yaml:1: source: expected text of 1.."},
        {"source: x\nstep: 4\n", "p.yaml:2: expected keys and values"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (load(bad[i][0]) != WEIR_E_INPUT)
            fail_msg("accepted:\n%s", bad[i][0]);
        if (strncmp(error, bad[i][1], strlen(bad[i][1])) != 0)
            fail_msg("expected '%s', got '%s'", bad[i][1], error);
    }
}

/* Names in the folders in their order; paths from where the stack file is. */
static void finds(void **state)
{
    (void)state;
    char one[] = "/tmp/weir-test-XXXXXX", two[] = "/tmp/weir-test-XXXXXX", path[64], stack[64];
    assert_non_null(mkdtemp(one));
    assert_non_null(mkdtemp(two));
    const char *const folders[] = {one, two};
    for (unsigned i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s/mine.yaml", folders[i]);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        (void)fprintf(f, "source: x\nstep: {w_ms: %u}\n", i + 1);
        assert_int_equal(fclose(f), 0);
    }
    (void)snprintf(stack, sizeof stack, "%s/stack.yaml", two);
    const char *const dirs[] = {one, two, NULL}, *const swapped[] = {two, one, NULL};
    const struct {
        const char *name, *stack;
        const char *const *dirs;
        double w_ms; /* 0: not found */
        const char *says;
    } cases[] = {
        {"mine", stack, dirs, 1, NULL},
        {"mine", stack, swapped, 2, NULL},
        {"./mine.yaml", stack, dirs, 2, NULL},
        {"mine.yaml", stack, dirs, 2, NULL},
        {"mien", stack, dirs, 0, "here: no profile 'mien'; did you mean mine?"},
        {"quite_another", stack, dirs, 0, "here: no profile 'quite_another' in /tmp/weir-test-"},
        {"mine", stack, NULL, 0, "in any folder (none is configured)"},
        {"./nothing.yaml", stack, dirs, 0, "cannot open it"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int rc = profile_find(&step, &kv_bytes, &gpus, cases[i].name, cases[i].stack, cases[i].dirs,
                              "here", error);
        if (cases[i].w_ms > 0 ? rc != 0 || fabs(step.w_ms - cases[i].w_ms) > 1e-12
                              : rc != WEIR_E_INPUT || !strstr(error, cases[i].says))
            fail_msg("case %zu: %d, %g, %s", i, rc, step.w_ms, error);
    }
    for (unsigned i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s/mine.yaml", folders[i]);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(rmdir(folders[i]), 0);
    }
}

static void where_they_are(void **state)
{
    (void)state;
    static struct profile_dirs d;
    assert_int_equal(setenv("WEIR_PROFILES", "/tmp", 1), 0);
    profile_dirs_init(&d);
    assert_string_equal(d.list[0], "/tmp"); /* the user's own first */
    assert_int_equal(setenv("WEIR_PROFILES", "/no/such/folder", 1), 0);
    profile_dirs_init(&d);
    for (unsigned i = 0; d.list[i]; i++)
        assert_string_not_equal(d.list[i], "/no/such/folder");
    assert_int_equal(unsetenv("WEIR_PROFILES"), 0);
    profile_dirs_init(&d);
    assert_non_null(d.list[0]); /* tests run in the source tree */
    assert_string_equal(d.list[0], "deploy/profiles");
    if (profile_find(&step, &kv_bytes, &gpus, LLAMA, NULL, d.list, "here", error))
        fail_msg("%s", error);
}

/* Every shipped profile has a source and makes a decode step of some milliseconds. */
static void shipped(void **state)
{
    (void)state;
    unsigned n = 0;
    DIR *dir = opendir("deploy/profiles");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        char path[512];
        struct step_model m;
        const char *why = NULL;
        size_t len = strlen(e->d_name);
        if (len < 5 || strcmp(e->d_name + len - 5, ".yaml") != 0)
            continue;
        (void)snprintf(path, sizeof path, "deploy/profiles/%s", e->d_name);
        if (profile_load(&step, &kv_bytes, &gpus, path, error) || step_model_init(&m, &step, &why))
            fail_msg("%s: %s %s", path, error, why ? why : "");
        struct step_batch b = {.decode_reqs = 32,
                               .decode_ctx_tok = 32 * 1024,
                               .active_kv_tok = 32 * 1024,
                               .total_kv_tok = 1 << 20};
        int64_t ps = step_time_ps(&m, &b);
        if (ps < PS_PER_MS || ps > 200 * PS_PER_MS)
            fail_msg("%s: a decode step of %g ms", path, ms_from_ps(ps));
        n++;
    }
    (void)closedir(dir);
    assert_true(n >= 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads),          cmocka_unit_test(refuses), cmocka_unit_test(finds),
        cmocka_unit_test(where_they_are), cmocka_unit_test(shipped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
