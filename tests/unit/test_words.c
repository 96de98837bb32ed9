/* Lists of words, slips of the pen, UTF-8. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "controller/config/words.h"

static void lists(void **state)
{
    (void)state;
    char list[16] = "", word[WORD_BYTES];
    word_add(list, sizeof list, "one");
    word_add(list, sizeof list, "two");
    word_add(list, sizeof list, "too long to fit");
    word_add(list, sizeof list, "three");
    assert_string_equal(list, "one two three");
    const char *at = word_next(list, word);
    assert_string_equal(word, "one");
    at = word_next(at, word);
    assert_string_equal(word, "two");
    at = word_next(at, word);
    assert_string_equal(word, "three");
    assert_null(word_next(at, word));
    assert_null(word_next("", word));
    assert_null(word_next("   ", word));
    char all[17] = "abcdefgh";
    word_add(all, sizeof all, "ijklmno");
    assert_string_equal(all, "abcdefgh ijklmno"); /* exactly full */
}

static void long_words_are_cut(void **state)
{
    (void)state;
    char list[3 * WORD_BYTES], word[WORD_BYTES];
    memset(list, 'a', sizeof list);
    memcpy(list + sizeof list - 3, " b", 3);
    const char *at = word_next(list, word);
    assert_int_equal(strlen(word), WORD_BYTES - 1);
    at = word_next(at, word);
    assert_string_equal(word, "b");
    assert_null(word_next(at, word));
}

static void nearest(void **state)
{
    (void)state;
    static const char list[] = "sticky random round_robin power_of_two";
    static const struct {
        const char *word, *near;
    } cases[] = {
        {"stiky", "sticky"},
        {"sticky", "sticky"},
        {"round-robin", "round_robin"},
        {"rand", "random"},
        {"power", "power_of_two"},
        {"ranodm", "random"},
        {"zzz", NULL},
        {"", NULL},
        {"xyzzy_of_nothing", NULL},
    };
    char near[WORD_BYTES];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool found = word_nearest(list, cases[i].word, 0, near, sizeof near);
        if (found != (cases[i].near != NULL) || (found && strcmp(near, cases[i].near) != 0))
            fail_msg("'%s': %s", cases[i].word, found ? near : "none");
    }
    /* equally near: whatever the order */
    assert_true(word_nearest("bat cat hat", "aat", 0, near, sizeof near));
    assert_string_equal(near, "bat");
    assert_true(word_nearest("hat cat bat", "aat", 0, near, sizeof near));
    assert_string_equal(near, "bat");
    /* a limit of its own */
    assert_false(word_nearest("timestamp", "timestmap", 1, near, sizeof near));
    assert_true(word_nearest("timestamp", "timestmp", 1, near, sizeof near));
    char endless[4 * WORD_BYTES];
    memset(endless, 'a', sizeof endless - 1);
    endless[sizeof endless - 1] = '\0';
    assert_false(word_nearest("a aa aaa", endless, 0, near, sizeof near));
    assert_true(word_nearest(endless, "aaa", 0, near, sizeof near)); /* begins with it */
}

/* Against the definition: every code point there is, and every pair of bytes. */
static void utf8(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 37) {
        unsigned char s[4];
        size_t n;
        if (c < 0x80)
            s[0] = (unsigned char)c, n = 1;
        else if (c < 0x800)
            s[0] = (unsigned char)(0xc0 | c >> 6), s[1] = (unsigned char)(0x80 | (c & 0x3f)), n = 2;
        else if (c < 0x10000)
            s[0] = (unsigned char)(0xe0 | c >> 12), s[1] = (unsigned char)(0x80 | (c >> 6 & 0x3f)),
            s[2] = (unsigned char)(0x80 | (c & 0x3f)), n = 3;
        else
            s[0] = (unsigned char)(0xf0 | c >> 18), s[1] = (unsigned char)(0x80 | (c >> 12 & 0x3f)),
            s[2] = (unsigned char)(0x80 | (c >> 6 & 0x3f)),
            s[3] = (unsigned char)(0x80 | (c & 0x3f)), n = 4;
        bool surrogate = c >= 0xd800 && c < 0xe000;
        assert_int_equal(utf8_span((const char *)s, n), surrogate ? 0 : n);
        if (n > 1) /* cut off */
            assert_int_equal(utf8_span((const char *)s, n - 1), 0);
    }
    static const char *const bad[] = {"\x80",
                                      "\xc0\xaf",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xc3("};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(utf8_span(bad[i], strlen(bad[i])), 0);
    assert_int_equal(utf8_span("ab\xc3\xa9"
                               "c\xff"
                               "d",
                               7),
                     5);
    assert_int_equal(utf8_span("", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists),
        cmocka_unit_test(long_words_are_cut),
        cmocka_unit_test(nearest),
        cmocka_unit_test(utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
