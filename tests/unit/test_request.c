/* How prefixes and blocks get their names. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdlib.h>

#include "predictor/kv.c"
#include "predictor/request.h"

static void a_key_depends_on_all_before_it(void **state)
{
    (void)state;
    uint64_t a = request_chain_key(0, 1), b = request_chain_key(0, 2);
    assert_int_equal(a, request_chain_key(0, 1));
    assert_int_not_equal(a, b);
    assert_int_not_equal(request_chain_key(a, 3), request_chain_key(b, 3));
    assert_int_not_equal(request_chain_key(a, 3), request_chain_key(a, 4));
    assert_int_not_equal(request_chain_key(a, 1), request_chain_key(0, 1));
    /* ids that are keys themselves do not cancel against their parent */
    assert_int_not_equal(request_chain_key(a, a), request_chain_key(b, b));
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void keys_do_not_collide(void **state)
{
    (void)state;
    enum { N = 20000 };
    static uint64_t keys[2 * N];
    for (uint64_t i = 0; i < N; i++) {
        keys[2 * i] = request_chain_key(0, i);
        keys[2 * i + 1] = request_generated_key(i);
        assert_int_not_equal(keys[2 * i], 0); /* 0 is no key */
        assert_int_not_equal(keys[2 * i + 1], 0);
    }
    qsort(keys, 2 * N, sizeof *keys, by_value);
    for (int i = 1; i < 2 * N; i++)
        assert_int_not_equal(keys[i - 1], keys[i]);
}

/* The key that names block b of a prompt with keys k0, k1, ...: its number, or -1 for the request's own name. */
static int key_of(uint32_t block_size, uint32_t key_tok, uint32_t n_keys, uint32_t prompt_tok,
                  uint32_t block)
{
    static uint64_t keys[64];
    for (unsigned i = 0; i < 64; i++)
        keys[i] = 100 + i;
    struct request_spec s = {.uid = 7,
                             .prompt_tok = prompt_tok,
                             .output_tok = 1000,
                             .keys = keys,
                             .n_keys = n_keys,
                             .key_tok = key_tok};
    struct kv kv = {.block_size = block_size};
    uint64_t name = block_name(&kv, &s, keyed_blocks(&kv, &s), block);
    return name == request_generated_key(7) ? -1 : (int)(name - 100);
}

static void a_block_has_the_name_of_the_key_that_covers_its_end(void **state)
{
    (void)state;
    /* as large as a key: one to one */
    assert_int_equal(key_of(16, 16, 4, 64, 0), 0);
    assert_int_equal(key_of(16, 16, 4, 64, 3), 3);
    /* smaller: several blocks share a key, told apart by their depth */
    assert_int_equal(key_of(16, 512, 2, 1024, 0), 0);
    assert_int_equal(key_of(16, 512, 2, 1024, 31), 0);
    assert_int_equal(key_of(16, 512, 2, 1024, 32), 1);
    /* larger: the last of several keys, which knows of those before it */
    assert_int_equal(key_of(64, 16, 8, 128, 0), 3);
    assert_int_equal(key_of(64, 16, 8, 128, 1), 7);
    /* neither divides the other: block 1 of 6 tokens ends at token 12, in the third key of 4 ... */
    assert_int_equal(key_of(6, 4, 8, 32, 1), 2);
    /* ... and block 2 at token 18, in the fifth */
    assert_int_equal(key_of(6, 4, 8, 32, 2), 4);
}

static void the_last_key_ends_with_the_prompt(void **state)
{
    (void)state;
    /* 40 tokens, keys of 32: the second covers 8 of them, and so names the fifth block of 8, not the sixth */
    assert_int_equal(key_of(8, 32, 2, 40, 3), 0);
    assert_int_equal(key_of(8, 32, 2, 40, 4), 1);
    assert_int_equal(key_of(8, 32, 2, 40, 5), -1);
    /* a block that begins in the prompt and ends in the answer is the request's own */
    assert_int_equal(key_of(16, 32, 2, 40, 2), -1);
}

static void what_no_key_covers_is_the_requests_own(void **state)
{
    (void)state;
    assert_int_equal(key_of(16, 16, 0, 64, 0), -1);
    assert_int_equal(key_of(16, 16, 2, 64, 1), 1);
    assert_int_equal(key_of(16, 16, 2, 64, 2), -1);
}

static void keys_beyond_the_prompt_name_the_answer(void **state)
{
    (void)state;
    /* a session whose next turn repeats this answer: 40 tokens of prompt, keys for 64 */
    assert_int_equal(key_of(16, 16, 4, 40, 2), 2);
    assert_int_equal(key_of(16, 16, 4, 40, 3), 3);
    assert_int_equal(key_of(16, 16, 4, 40, 4), -1);
    /* one key less only covers the prompt's end (the rule: n_keys * key_tok > prompt + key_tok - 1) */
    assert_int_equal(key_of(16, 16, 3, 40, 2), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_depends_on_all_before_it),
        cmocka_unit_test(keys_do_not_collide),
        cmocka_unit_test(a_block_has_the_name_of_the_key_that_covers_its_end),
        cmocka_unit_test(the_last_key_ends_with_the_prompt),
        cmocka_unit_test(what_no_key_covers_is_the_requests_own),
        cmocka_unit_test(keys_beyond_the_prompt_name_the_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
