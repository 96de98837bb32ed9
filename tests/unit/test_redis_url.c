/* Addresses of a Redis: every form, and every fault with a reason that gives nothing of the URL away. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "controller/state/redis_url.h"

static struct redis_url u;

static void good(const char *text)
{
    const char *why = NULL;
    if (redis_url_read(&u, text, &why))
        fail_msg("%s: %s", text, why);
}

static void forms(void **state)
{
    (void)state;
    good("redis://localhost");
    assert_true(!u.tls && !strcmp(u.host, "localhost") && u.port == 6379 && !u.db && !u.user[0] &&
                !u.password[0]);
    good("redis://10.0.0.1:7000/3");
    assert_true(!strcmp(u.host, "10.0.0.1") && u.port == 7000 && u.db == 3);
    good("rediss://weir:p%40ss%3aword@redis.example:6380/");
    assert_true(u.tls && !strcmp(u.user, "weir") && !strcmp(u.password, "p@ss:word") &&
                u.port == 6380 && !u.db);
    good("redis://:secret@[::1]:6379/1");
    assert_true(!strcmp(u.host, "::1") && !u.user[0] && !strcmp(u.password, "secret") && u.db == 1);
    good("redis://[fe80::1]");
    assert_true(!strcmp(u.host, "fe80::1") && u.port == 6379);
    good("unix:///run/redis.sock");
    assert_true(!u.host[0] && !strcmp(u.path, "/run/redis.sock") && !u.db);
    good("unix://u:p@/run/redis.sock?db=7");
    assert_true(!strcmp(u.user, "u") && !strcmp(u.path, "/run/redis.sock") && u.db == 7);
}

static void faults(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "localhost",
                                      "http://localhost",
                                      "redis://",
                                      "redis://:6379",
                                      "redis://h:0",
                                      "redis://h:65536",
                                      "redis://h:x",
                                      "redis://h/x",
                                      "redis://h/65536",
                                      "redis://h/1/2",
                                      "redis://tops3cret@h",
                                      "redis://user:@h",
                                      "redis://u:tops3cret%4@h",
                                      "redis://u:tops3cret%00@h",
                                      "redis://[::1",
                                      "redis://[::1]x",
                                      "redis://[]",
                                      "unix://relative",
                                      "unix:///x?db=",
                                      "unix:///x?tops3cret=1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *why = NULL;
        if (redis_url_read(&u, bad[i], &why) != WEIR_E_INPUT || !why)
            fail_msg("taken: %s", bad[i]);
        assert_null(strstr(why, "tops3cret"));
    }
    char text[REDIS_URL_BYTES + 1] = "redis://";
    const char *why;
    memset(text + 8, 'a', REDIS_URL_BYTES - 8);
    assert_int_equal(redis_url_read(&u, text, &why), WEIR_E_INPUT);
    text[8 + sizeof u.host] = '\0';
    assert_int_equal(redis_url_read(&u, text, &why), WEIR_E_INPUT);
    text[8 + sizeof u.host - 1] = '\0';
    good(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(forms), cmocka_unit_test(faults)};
    return cmocka_run_group_tests_name("redis_url", tests, NULL, NULL);
}
