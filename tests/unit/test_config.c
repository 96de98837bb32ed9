/* weir serve's config: every key of the table, messages with file, line and key, options over the file, secrets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "controller/http/http_headers.h"
#include "controller/serve/config.h"
#include "controller/serve/live.h"
#include "controller/serve/start.h"

#define WORKER "pools: [{workers: ['http://127.0.0.1:8000']}]\n"

static struct serve_config c;
static char error[YTREE_ERROR_BYTES];

static int load(const char *text)
{
    return config_load_text(&c, NULL, "weir.yaml", text, strlen(text), error);
}

static void good(const char *text)
{
    int rc = load(text);
    if (rc)
        print_error("%s\n", error);
    assert_int_equal(rc, 0);
}

/* The file is refused with a line that has all of these. */
static void bad(const char *text, const char *where, const char *what)
{
    assert_int_equal(load(text), WEIR_E_INPUT);
    if (!strstr(error, where) || !strstr(error, what))
        print_error("'%s' has no '%s' or no '%s'\n", error, where, what);
    assert_non_null(strstr(error, where));
    assert_non_null(strstr(error, what));
    assert_null(strchr(error, '\n'));
    config_free(&c);
}

static void defaults_come_from_the_table(void **state)
{
    (void)state;
    good(WORKER);
    assert_int_equal(c.set.threads, 1);
    assert_string_equal(c.set.listen_host, "127.0.0.1");
    assert_int_equal(c.set.listen_port, 8080);
    assert_int_equal(c.set.stall_timeout_ms, 60000);
    assert_true(c.set.slo_ttft_ps == PS_NEVER);
    assert_int_equal(c.n_pools, 1);
    assert_string_equal(c.pools[0].name, "main");
    assert_string_equal(c.pools[0].policy, "least_loaded");
    assert_int_equal(c.pools[0].queue_timeout_ps, 60 * PS_PER_S);
    assert_string_equal(c.pools[0].workers[0].name, "127.0.0.1:8000");
    assert_null(c.pools[0].dialect);
    config_free(&c);
}

static void pools_with_everything(void **state)
{
    (void)state;
    good("listen: '[::1]:81'\n"
         "threads: 3\n"
         "limits: {max_body_bytes: 1000}\n"
         "slo: {ttft_ms: 250}\n"
         "allow: [/pause, /resume]\n"
         "pools:\n"
         "  - name: chat\n"
         "    models: [a, b]\n"
         "    policy_params: {affinity: 0.5}\n"
         "    policy: sticky\n"
         "    handover: sglang\n"
         "    max-inflight: 7\n"
         "    workers:\n"
         "      - {url: 'https://p.example', name: p, role: prefill, bootstrap_port: 8998}\n"
         "      - http://10.0.0.2:8000/#role=decode,name=d,max_model_len=4096\n"
         "  - workers: [http://10.0.0.3:1]\n"
         "routes: [{path: /v1/embeddings, slo_ttft_ms: 20, priority: -3}]\n");
    const struct config_pool *p = &c.pools[0];
    assert_string_equal(c.set.listen_host, "::1");
    assert_int_equal(c.set.max_body_bytes, 1000);
    assert_int_equal(c.set.n_allowed, 2);
    assert_int_equal(c.set.slo_ttft_ps, 250 * PS_PER_MS);
    assert_int_equal(p->n_models, 2);
    assert_string_equal(p->models[1], "b");
    assert_int_equal(p->max_inflight_per_worker, 7);
    assert_string_equal(p->dialect->name, "sglang");
    assert_true(p->workers[0].tls);
    assert_int_equal(p->workers[0].port, 443);
    assert_int_equal(p->workers[0].role, ROLE_PREFILL);
    assert_int_equal(p->workers[1].role, ROLE_DECODE);
    assert_int_equal(p->workers[1].max_model_len, 4096);
    assert_string_equal(c.pools[1].name, "pool1");
    assert_int_equal(c.routes[0].priority, -3);
    config_free(&c);
}

static void faults_name_file_line_and_key(void **state)
{
    (void)state;
    bad("thread: 2\n" WORKER, "weir.yaml:1: thread", "did you mean threads?");
    bad(WORKER "threads: 0\n", "weir.yaml:2: threads", "expected a whole number 1..");
    bad(WORKER "threads: 2\nthreads: 3\n", "weir.yaml:3: threads", "first on line 2");
    bad(WORKER "limits:\n  max_body: 1\n", "weir.yaml:3: limits.max_body",
        "did you mean max_body_bytes?");
    bad("pools: [{polisy: sticky, workers: ['http://a:1']}]\n", "weir.yaml:1: pools[0].polisy",
        "did you mean policy?");
    bad("pools: [{policy: stiky, workers: ['http://a:1']}]\n", "pools[0].policy",
        "did you mean sticky?");
    bad("pools:\n- policy_params: {x: 1}\n  workers: ['http://a:1']\n",
        "weir.yaml:2: pools[0].policy_params", "no parameter 'x'");
    bad("pools:\n- workers:\n  - ftp://a:1\n", "weir.yaml:3: pools[0].workers",
        "expected http://HOST:PORT");
    bad("pools:\n- workers:\n  - http://a:99999\n", "weir.yaml:3:", "port from 1 to 65535");
    bad("pools:\n- workers:\n  - http://a:1/v1\n", "weir.yaml:3:", "without a path");
    bad("pools:\n- workers:\n  - http://u:secret@a:1\n", "weir.yaml:3:", "without a user");
    bad("pools:\n- workers: ['http://a:1#rolle=both']\n", "rolle", "did you mean role?");
    bad("pools:\n- workers:\n  - http://a:1\n  - http://a:1\n", "weir.yaml:4:", "given twice");
    bad("pools:\n- workers: [{name: x}]\n", "weir.yaml:2:", "expected url");
    bad("pools:\n- workers: ['http://a:1#role=prefill']\n", "weir.yaml:2: pools[0]",
        "come together: there are 1 and 0");
    bad("pools:\n- workers: []\n", "weir.yaml:2: pools[0]", "no workers");
    bad("pools: [{name: a, workers: ['http://a:1']}, {name: a, workers: ['http://a:2']}]\n",
        "weir.yaml:1", "two pools are called a");
    bad("pools:\n- {models: [m], workers: ['http://a:1']}\n- {models: [x, m], workers: ['http://a:2']}\n",
        "weir.yaml:3: pools[1]", "model m is in pool main already");
    bad("", "weir.yaml", "expected pools");
    bad("pools: 7\n", "weir.yaml:1: pools", "expected a list");
    bad(WORKER "listen: here\n", "weir.yaml:2: listen", "expected HOST:PORT");
    bad(WORKER "tls: {cert: x}\n", "weir.yaml:2: tls.cert", "come together");
    bad(WORKER "admin: {listen: '0.0.0.0:1'}\n", "weir.yaml:2: admin.listen", "a token is needed");
    bad(WORKER "admin: {token_file: /nonexistent}\n", "admin.token_file", "cannot open");
    bad(WORKER "admin: {token_file: /dev}\n", "admin.token_file", "not a regular file");
    bad(WORKER "allow: [pause]\n", "weir.yaml:2: allow", "starts with /");
    bad(WORKER "routes: [{path: x}]\n", "weir.yaml:2: routes[0]", "leading /");
    bad(WORKER "tenants: [{name: a}]\n", "weir.yaml:2: tenants[0]", "expected one of api_key_file");
    bad(WORKER "tenants: [{name: a, header_value: x, api_key_env: Y}]\n", "tenants[0]", "got 2");
    bad(WORKER "tenants: [{name: a, api_key_env: WEIR_NOT_SET}]\n", "tenants[0]", "set it");
    bad(WORKER "tenants: [{name: a, api_key_sha256: abc}]\n", "tenants[0]", "64 hexadecimal");
    bad(WORKER "tenants: [{name: a, header_value: x}, {name: b, header_value: x}]\n", "tenants[1]",
        "same");
    bad(WORKER "tenants: [{name: a, header_value: x, weight: 1001}]\n", "tenants[0].weight",
        "1..1000");
}

static uint64_t tenant(const struct serve_live *l, const char *header, const char *authorization,
                       const struct serve_tenant **known)
{
    return live_tenant(
        l, (struct http_slice){header, header ? strlen(header) : 0},
        (struct http_slice){authorization, authorization ? strlen(authorization) : 0}, 17, known);
}

static void tenants_are_known_by_key_and_by_header(void **state)
{
    (void)state;
    char path[] = "/tmp/weir-key-XXXXXX";
    const struct serve_tenant *known;
    char text[1024];
    int fd = mkstemp(path);
    assert_int_equal(write(fd, "sk-file\n", 8), 8);
    close(fd);
    setenv("WEIR_TEST_KEY", "sk-env", 1);
    snprintf(text, sizeof text,
             WORKER "tenant_header: x-team\n"
                    "tenants:\n"
                    "  - {name: file, api_key_file: %s, weight: 4}\n"
                    "  - {name: env, api_key_env: WEIR_TEST_KEY, priority: -2}\n"
                    "  - {name: header, header_value: red}\n"
                    "  - {name: hash, api_key_sha256: "
                    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad}\n",
             path); /* of "abc" */
    good(text);
    unlink(path);
    struct serve_live *l = serve_live_new(&c, error);
    assert_non_null(l);
    (void)tenant(l, NULL, "Bearer sk-file", &known);
    assert_string_equal(known->name, "file");
    assert_int_equal(known->weight, 4);
    (void)tenant(l, NULL, "bearer sk-env", &known);
    assert_string_equal(known->name, "env");
    assert_int_equal(known->priority, -2);
    assert_true(tenant(l, NULL, "Bearer abc", &known) == known->id);
    assert_string_equal(known->name, "hash");
    (void)tenant(l, "red", "Bearer abc", &known);
    assert_string_equal(known->name, "header");
    /* a header cannot claim to be a key's tenant, nor the other way round */
    (void)tenant(l, "abc", NULL, &known);
    assert_null(known);
    (void)tenant(l, NULL, "Bearer red", &known);
    assert_null(known);
    assert_int_equal(tenant(l, NULL, NULL, &known), 17);
    assert_true(tenant(l, NULL, "Bearer x", &known) != tenant(l, NULL, "Bearer y", &known));
    serve_live_free(l);
    config_free(&c);
}

static void routes_are_found_by_path(void **state)
{
    (void)state;
    good(WORKER "routes: [{path: /v1/a, priority: 1}, {path: /v1/ab, slo_tpot_ms: 5}]\n");
    struct serve_live *l = serve_live_new(&c, error);
    assert_non_null(l);
    assert_int_equal(live_route(l, (struct http_slice){"/v1/a", 5})->priority, 1);
    assert_int_equal(live_route(l, (struct http_slice){"/v1/ab", 6})->slo_tpot_ps, 5 * PS_PER_MS);
    assert_null(live_route(l, (struct http_slice){"/v1/abc", 7}));
    serve_live_free(l);
    config_free(&c);
}

static int with_options(const char *text, int argc, char **argv)
{
    struct config_args a;
    int rc = config_args_read(&a, argc, argv, error);
    if (!rc)
        rc = config_load_text(&c, &a, text ? "weir.yaml" : NULL, text, text ? strlen(text) : 0,
                              error);
    config_args_free(&a);
    return rc;
}
#define OPTIONS(text, ...)                                                                         \
    with_options(text, sizeof((char *[]){__VA_ARGS__}) / sizeof(char *), (char *[]){__VA_ARGS__})

static void options_win_over_the_file(void **state)
{
    (void)state;
    assert_int_equal(OPTIONS("threads: 2\npools: [{workers: ['http://a:1']}, {workers: "
                             "['http://a:2'], max_retries: 9}]\n",
                             "serve", "--threads", "5", "--retries", "1", "-p", "sticky",
                             "--trust-headers"),
                     0);
    assert_int_equal(c.set.threads, 5);
    assert_int_equal(c.pools[0].max_retries, 1);
    assert_int_equal(c.pools[1].max_retries, 1);
    assert_string_equal(c.pools[1].policy, "sticky");
    assert_true(c.set.trust_headers);
    config_free(&c);
    assert_int_equal(OPTIONS(NULL, "serve", "-w", "http://a:1", "--worker", "http://b:2#name=z",
                             "--allow", "/x", "--allow", "/y"),
                     0);
    assert_int_equal(c.pools[0].n_workers, 2);
    assert_string_equal(c.pools[0].workers[1].name, "z");
    assert_int_equal(c.set.n_allowed, 2);
    config_free(&c);
}

static void bad_options_are_told(void **state)
{
    (void)state;
    assert_int_equal(OPTIONS(NULL, "serve"), WEIR_E_INPUT);
    assert_non_null(strstr(error, "no worker is given"));
    config_free(&c);
    assert_int_equal(OPTIONS(NULL, "serve", "--thread-s", "1"), WEIR_E_INPUT);
    assert_non_null(strstr(error, "did you mean --threads?"));
    assert_int_equal(OPTIONS(NULL, "serve", "--threads"), WEIR_E_INPUT);
    assert_non_null(strstr(error, "takes a value"));
    assert_int_equal(OPTIONS(NULL, "serve", "-w", "http://a:1", "--queue", "-1"), WEIR_E_INPUT);
    assert_non_null(strstr(error, "--queue: expected a whole number"));
    config_free(&c);
    assert_int_equal(OPTIONS(NULL, "serve", "stray"), WEIR_E_INPUT);
    assert_int_equal(OPTIONS(NULL, "serve", "-w", "http://a:1", "-p", "round_robbin"),
                     WEIR_E_INPUT);
    assert_non_null(strstr(error, "--policy: no policy 'round_robbin'"));
    config_free(&c);
}

static void what_a_reload_cannot_change_is_named(void **state)
{
    (void)state;
    struct serve_config old;
    char list[1024];
    const char *text = "threads: 2\npools: [{name: a, workers: ['http://a:1']}]\n";
    assert_int_equal(config_load_text(&old, NULL, "weir.yaml", text, strlen(text), error), 0);
    good("threads: 3\ntrust_headers: true\npools: [{name: a, policy: sticky, max_retries: 5, "
         "workers: ['http://a:2']}]\n");
    config_fixed_changes(&old, &c, list, sizeof list);
    assert_string_equal(list, "threads pools.a.policy");
    config_keep_fixed(&old, &c);
    assert_int_equal(c.set.threads, 2);
    assert_true(c.set.trust_headers);
    assert_string_equal(c.pools[0].policy, "least_loaded");
    assert_int_equal(c.pools[0].max_retries, 5);
    assert_true(c.pools[0].policy_param[0] == old.pools[0].policy_param[0]);
    config_free(&c);
    config_free(&old);
    /* knobs change where the policy can take them, and only there */
    text =
        "pools: [{name: g, policy: ttft_gate, workers: ['http://a:1']}, {name: s, policy: sticky, workers: "
        "['http://a:2']}]\n";
    assert_int_equal(config_load_text(&old, NULL, "weir.yaml", text, strlen(text), error), 0);
    good(
        "pools: [{name: g, policy: ttft_gate, policy_params: {min_samples: 9}, workers: ['http://a:1']}, {name: "
        "s, policy: sticky, policy_params: {affinity: 0.25}, workers: ['http://a:2']}]\n");
    config_fixed_changes(&old, &c, list, sizeof list);
    assert_string_equal(list, "pools.g.policy_params");
    config_keep_fixed(&old, &c);
    assert_true(c.pools[1].policy_param[0] == 0.25);
    assert_memory_equal(c.pools[0].policy_param, old.pools[0].policy_param,
                        sizeof old.pools[0].policy_param);
    config_free(&c);
    config_free(&old);
}

/* deploy/serve.md is what the table says now. */
static void page_is_current(void **state)
{
    (void)state;
    char *text = NULL, *page = NULL;
    size_t len = 0, page_len = 0;
    char path[512];
    FILE *out = open_memstream(&text, &len);
    const char *root = getenv("WEIR_SOURCE");
    config_print_reference(out, true);
    fclose(out);
    snprintf(path, sizeof path, "%s/deploy/serve.md", root ? root : ".");
    assert_int_equal(ytree_read_file(path, 1 << 20, &page, &page_len, error), 0);
    assert_string_equal(page, text); /* weir serve --config-page > deploy/serve.md */
    free(text);
    free(page);
}

/* deploy/weir.yaml is a good example. */
static void example_is_good(void **state)
{
    (void)state;
    char *text = NULL, path[512];
    size_t len = 0;
    const char *root = getenv("WEIR_SOURCE");
    snprintf(path, sizeof path, "%s/deploy/weir.yaml", root ? root : ".");
    assert_int_equal(ytree_read_file(path, 1 << 20, &text, &len, error), 0);
    good(text);
    assert_int_equal(serve_check(&c, error), 0);
    config_free(&c);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_come_from_the_table),
        cmocka_unit_test(pools_with_everything),
        cmocka_unit_test(faults_name_file_line_and_key),
        cmocka_unit_test(tenants_are_known_by_key_and_by_header),
        cmocka_unit_test(routes_are_found_by_path),
        cmocka_unit_test(options_win_over_the_file),
        cmocka_unit_test(bad_options_are_told),
        cmocka_unit_test(what_a_reload_cannot_change_is_named),
        cmocka_unit_test(page_is_current),
        cmocka_unit_test(example_is_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
