/* The KV cache, rule by rule, in examples that can be followed by hand. tests/property/prop_kv.c compares it with a
 * model that keeps every block by itself. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <string.h>

#include "predictor/kv.h"
#include "tests/support/kv_view.h"

#define BLOCK 4 /* tokens, as many as a key covers */
#define MAX_KEYS 16

/* A request, what it holds, and its prompt in letters, one for each block: "ab" and "ac" share their first block. */
struct user {
    struct request_spec spec;
    struct kv_hold hold;
    uint64_t keys[MAX_KEYS];
};

static void user_init(struct user *u, uint64_t uid, const char *letters)
{
    uint32_t n = (uint32_t)strlen(letters);
    memset(u, 0, sizeof *u);
    for (uint32_t i = 0; i < n; i++)
        u->keys[i] = request_chain_key(i ? u->keys[i - 1] : 0, (uint64_t)letters[i]);
    u->spec = (struct request_spec){.uid = uid,
                                    .prompt_tok = n * BLOCK,
                                    .output_tok = 100 * BLOCK,
                                    .max_tokens = 100 * BLOCK,
                                    .keys = u->keys,
                                    .n_keys = n,
                                    .key_tok = BLOCK};
    kv_hold_init(&u->hold);
}

static void make(struct kv *kv, uint32_t blocks, enum evict_kind evict)
{
    assert_int_equal(kv_init(kv, BLOCK, blocks, true, evict), 0);
    kv->log_on = true;
}

static uint32_t found(const struct kv *kv, const struct user *u)
{
    return kv_lookup(kv, &u->spec, u->spec.n_keys).blocks;
}

/* As an engine does it: what is cached, blocks for the rest, and names for all. */
static void enter(struct kv *kv, struct user *u)
{
    struct kv_match m = kv_lookup(kv, &u->spec, u->spec.n_keys);
    kv_attach(kv, &u->spec, m.blocks, &u->hold);
    kv_take(kv, &u->hold, u->spec.n_keys - m.blocks);
    kv_name(kv, &u->spec, &u->hold, u->spec.n_keys);
    assert_null(kv_validate(kv));
}

static void leave(struct kv *kv, struct user *u)
{
    kv_release(kv, &u->hold);
    assert_null(kv_validate(kv));
}

/* The letters of the blocks that were dropped since the last look, in order; the log is emptied. */
static const char *dropped(struct kv *kv, const struct user *users, uint32_t n)
{
    static char text[64];
    uint32_t len = 0;
    for (uint32_t i = 0; i < kv->log_used; i++) {
        const struct kv_log_entry *l = &kv->log[i];
        for (uint32_t k = l->n_blocks; k-- && !l->stored;) {
            char letter = '?';
            for (uint32_t u = 0; u < n; u++) {
                if (users[u].keys[l->depth + k] == kv->log_names[l->name_off + k])
                    letter = (char)('a' + u * 4 + l->depth + k);
            }
            text[len++] = letter;
        }
    }
    text[len] = 0;
    kv->log_used = kv->log_names_used = 0;
    return text;
}

static void init_refuses_what_is_out_of_range(void **state)
{
    (void)state;
    struct kv kv;
    assert_int_equal(kv_init(&kv, 0, 10, true, EVICT_LRU), WEIR_E_INVALID);
    assert_int_equal(kv_init(&kv, 16, 0, true, EVICT_LRU), WEIR_E_INVALID);
    assert_int_equal(kv_init(&kv, 16, ENGINE_MAX_BLOCKS + 1, true, EVICT_LRU), WEIR_E_INVALID);
    assert_int_equal(kv_init(&kv, 16, ENGINE_MAX_BLOCKS, true, EVICT_LRU), 0);
    assert_int_equal(kv_free_blocks(&kv),
                     ENGINE_MAX_BLOCKS); /* no memory for blocks that nobody has */
    kv_deinit(&kv);
}

static void blocks_are_found_once_they_have_names(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "abc");
    user_init(&b, 2, "abx");
    kv_take(&kv, &a.hold, 3);
    assert_int_equal(kv_free_blocks(&kv), 7);
    assert_int_equal(found(&kv, &b), 0);
    kv_name(&kv, &a.spec, &a.hold, 1);
    assert_int_equal(found(&kv, &b), 1);
    kv_name(&kv, &a.spec, &a.hold, 3);
    assert_int_equal(found(&kv, &b), 2);
    assert_int_equal(kv_lookup(&kv, &b.spec, 1).blocks, 1); /* never more than asked for */
    kv_deinit(&kv);
}

static void a_shared_block_is_there_once(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "abc");
    user_init(&b, 2, "abx");
    enter(&kv, &a);
    struct kv_match m = kv_lookup(&kv, &b.spec, 3);
    assert_int_equal(m.blocks, 2);
    assert_int_equal(m.free_blocks, 0); /* in use: it costs nothing to join */
    enter(&kv, &b);
    assert_int_equal(kv_free_blocks(&kv), 10 - 4);
    leave(&kv, &a);
    assert_int_equal(kv_free_blocks(&kv), 10 - 3);
    leave(&kv, &b);
    assert_int_equal(kv_free_blocks(&kv), 10);
    kv_deinit(&kv);
}

static void what_left_is_found_until_it_is_needed(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 4, EVICT_LRU);
    user_init(&a, 1, "abc");
    user_init(&b, 2, "abc");
    enter(&kv, &a);
    leave(&kv, &a);
    struct kv_match m = kv_lookup(&kv, &b.spec, 3);
    assert_int_equal(m.blocks, 3);
    assert_int_equal(m.free_blocks, 3); /* taking them takes free blocks away */
    kv_take(&kv, &b.hold, 2);           /* one was never used, and goes first; then c */
    assert_int_equal(found(&kv, &b), 2);
    assert_string_equal(dropped(&kv, &a, 1), "c");
    kv_deinit(&kv);
}

/* A chain is only good from its root on: tails go first, and of several chains the one that left first. */
static void eviction_takes_tails_of_the_least_recently_used(void **state)
{
    (void)state;
    struct kv kv;
    struct user u[2], late;
    make(&kv, 8, EVICT_LRU);
    user_init(&u[0], 1, "abcd");
    user_init(&u[1], 2, "efgh");
    user_init(&late, 3, "wxyz");
    enter(&kv, &u[0]);
    enter(&kv, &u[1]);
    leave(&kv, &u[1]);
    leave(&kv, &u[0]);
    dropped(&kv, u, 2);
    kv_take(&kv, &late.hold, 6);
    assert_string_equal(dropped(&kv, u, 2), "hgfedc");
    kv_deinit(&kv);
}

static void use_moves_to_the_end_of_the_queue(void **state)
{
    (void)state;
    struct kv kv;
    struct user u[2], again, late;
    make(&kv, 8, EVICT_LRU);
    user_init(&u[0], 1, "abcd");
    user_init(&u[1], 2, "efgh");
    user_init(&again, 3, "ab");
    user_init(&late, 4, "wxyz");
    enter(&kv, &u[0]);
    enter(&kv, &u[1]);
    leave(&kv, &u[0]);
    leave(&kv, &u[1]);
    enter(&kv, &again); /* only the first half is used again */
    leave(&kv, &again);
    dropped(&kv, u, 2);
    kv_take(&kv, &late.hold, 7);
    assert_string_equal(dropped(&kv, u, 2), "dchgfeb");
    kv_deinit(&kv);
}

/* A block that was not full when its request left has no name: nobody can find it, so it is taken first. */
static void blocks_without_a_name_go_first(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, late;
    make(&kv, 4, EVICT_LRU);
    user_init(&a, 1, "abc");
    user_init(&late, 2, "xyz");
    kv_take(&kv, &a.hold, 4);
    kv_name(&kv, &a.spec, &a.hold, 3);
    leave(&kv, &a);
    assert_int_equal(kv.free_unnamed, 1);
    assert_int_equal(kv.free_named, 3);
    dropped(&kv, &a, 1);
    kv_take(&kv, &late.hold, 1);
    assert_string_equal(dropped(&kv, &a, 1), "");
    kv_take(&kv, &late.hold, 1);
    assert_string_equal(dropped(&kv, &a, 1), "c");
    kv_deinit(&kv);
}

/* Two requests that compute the same prompt at the same time: neither finds the other's blocks, both are kept. */
static void the_older_of_two_copies_is_found(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b, c;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "ab");
    user_init(&b, 2, "ab");
    user_init(&c, 3, "ab");
    kv_take(&kv, &a.hold, 2);
    kv_take(&kv, &b.hold, 2);
    kv_name(&kv, &a.spec, &a.hold, 2);
    kv_name(&kv, &b.spec, &b.hold, 2);
    assert_int_equal(kv_free_blocks(&kv), 6);
    leave(&kv, &a); /* the older copy is free now, the younger in use */
    assert_int_equal(kv_lookup(&kv, &c.spec, 2).free_blocks, 2);
    enter(&kv, &c); /* takes the older one all the same */
    assert_int_equal(kv_free_blocks(&kv), 6);
    leave(&kv, &c);
    leave(&kv, &b);
    kv.log_used = kv.log_names_used = 0;
    struct user late;
    user_init(&late, 4, "x");
    kv_take(&kv, &late.hold, 8); /* the older copy goes: nothing is lost by that */
    assert_int_equal(kv.log_used, 0);
    kv_take(&kv, &late.hold, 2);
    assert_string_equal(dropped(&kv, &a, 1), "ba");
    kv_deinit(&kv);
}

/* SGLang's radix tree and DynoSim: the copy that was just computed is given back. */
static void shared_naming_keeps_no_copies(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "ab");
    user_init(&b, 2, "ax");
    kv_take(&kv, &a.hold, 2);
    kv_take(&kv, &b.hold, 2);
    kv_name_shared(&kv, &a.spec, &a.hold, 2);
    assert_int_equal(kv_free_blocks(&kv), 6);
    kv_name_shared(&kv, &b.spec, &b.hold, 2);
    assert_int_equal(kv_free_blocks(&kv), 7);
    leave(&kv, &a);
    assert_int_equal(kv_free_blocks(&kv), 8);
    leave(&kv, &b);
    assert_int_equal(kv_free_blocks(&kv), 10);
    kv_deinit(&kv);
}

/* A preempted request finds its own answer again, as long as it is there. */
static void generated_blocks_are_found_by_their_request(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "ab");
    user_init(&b, 2, "ab");
    kv_take(&kv, &a.hold, 5);
    kv_name(&kv, &a.spec, &a.hold, 4); /* two of them hold what it generated */
    leave(&kv, &a);
    assert_int_equal(kv_lookup(&kv, &a.spec, 9).blocks, 4);
    assert_int_equal(kv_lookup(&kv, &b.spec, 9).blocks, 2);
    kv_deinit(&kv);
}

/* What was found often stays, whenever it was used last; four uses count more than one to three. */
static void lfu_drops_what_was_useful_least(void **state)
{
    (void)state;
    struct kv kv;
    struct user u[2], late;
    make(&kv, 8, EVICT_LFU);
    user_init(&u[0], 1, "abcd");
    user_init(&u[1], 2, "efgh");
    user_init(&late, 3, "wxyz");
    for (int i = 0; i < 4; i++) {
        enter(&kv, &u[0]);
        leave(&kv, &u[0]);
    }
    enter(&kv, &u[1]);
    leave(&kv, &u[1]);
    dropped(&kv, u, 2);
    kv_take(&kv, &late.hold, 5);
    assert_string_equal(dropped(&kv, u, 2), "hgfed"); /* lru: dcbah */
    kv_deinit(&kv);
}

/* A block counts at least as often as what hangs on it: a chain never breaks in its middle. */
static void lfu_keeps_the_roots_of_what_it_keeps(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b, late;
    make(&kv, 4, EVICT_LFU);
    user_init(&a, 1, "a");
    user_init(&b, 2, "ab");
    user_init(&late, 3, "xyz");
    kv_take(&kv, &a.hold, 1); /* two copies of the root; b's child hangs on the younger one */
    kv_take(&kv, &b.hold, 2);
    kv_name(&kv, &a.spec, &a.hold, 1);
    kv_name(&kv, &b.spec, &b.hold, 2);
    struct user again[8];
    for (int i = 0; i < 8; i++) { /* finds the older root, and the child */
        user_init(&again[i], 10 + (uint64_t)i, "ab");
        enter(&kv, &again[i]);
        leave(&kv, &again[i]);
    }
    leave(&kv, &a);
    leave(&kv, &b);
    kv_take(&kv, &late.hold, 2);
    user_init(&again[0], 20, "ab");
    assert_int_equal(found(&kv, &again[0]), 2);
    kv_deinit(&kv);
}

static void without_caching_nothing_is_named(void **state)
{
    (void)state;
    struct kv kv;
    struct user a;
    assert_int_equal(kv_init(&kv, BLOCK, 4, false, EVICT_LRU), 0);
    user_init(&a, 1, "ab");
    kv_take(&kv, &a.hold, 2);
    kv_name(&kv, &a.spec, &a.hold, 2);
    kv_name_shared(&kv, &a.spec, &a.hold, 2);
    assert_int_equal(a.hold.n_named, 0);
    assert_int_equal(found(&kv, &a), 0);
    leave(&kv, &a);
    assert_int_equal(kv.free_unnamed, 4);
    kv_deinit(&kv);
}

static void drop_cache_spares_what_is_in_use(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "abc");
    user_init(&b, 2, "ab");
    enter(&kv, &a);
    enter(&kv, &b);
    leave(&kv, &a);
    kv_drop_cache(&kv);
    assert_int_equal(found(&kv, &a), 2);
    assert_int_equal(kv.free_unnamed, 8);
    leave(&kv, &b);
    kv_drop_cache(&kv);
    assert_int_equal(found(&kv, &a), 0);
    assert_int_equal(kv.free_unnamed, 10);
    assert_int_equal(kv.free_named, 0);
    kv_deinit(&kv);
}

static void a_copy_goes_its_own_way(void **state)
{
    (void)state;
    struct kv kv, copy, empty;
    struct user a, b, c;
    make(&kv, 10, EVICT_LRU);
    make(&copy, 3, EVICT_LFU); /* another size, another policy, something in it */
    user_init(&a, 1, "abc");
    user_init(&b, 2, "abx");
    user_init(&c, 3, "pqr");
    enter(&copy, &c);
    leave(&copy, &c);
    enter(&kv, &a);
    struct user a2 = a;
    assert_int_equal(kv_copy(&copy, &kv), 0);
    assert_null(kv_validate(&copy));
    assert_false(copy.log_on);
    assert_int_equal(copy.usable, 10);
    assert_int_equal(found(&copy, &c), 0);
    leave(&copy, &a2);
    kv_drop_cache(&copy);
    assert_int_equal(found(&copy, &b), 0);
    assert_int_equal(found(&kv, &b), 2);
    assert_int_equal(kv_free_blocks(&kv), 7);
    /* of one that never held anything */
    make(&empty, 5, EVICT_LRU);
    assert_int_equal(kv_copy(&kv, &empty), 0);
    assert_int_equal(kv_free_blocks(&kv), 5);
    kv_hold_init(&a.hold);
    enter(&kv, &a);
    assert_int_equal(found(&kv, &a), 3);
    kv_deinit(&kv);
    kv_deinit(&copy);
    kv_deinit(&empty);
}

/* Far beyond the sizes that arrays start with; a long prompt is one run, whatever its blocks. */
static void long_prompts_stay_short(void **state)
{
    (void)state;
    enum { N = 50000 };
    static uint64_t keys[N];
    struct kv kv;
    assert_int_equal(kv_init(&kv, BLOCK, 2 * N, true, EVICT_LRU), 0);
    for (uint32_t i = 0; i < N; i++)
        keys[i] = request_chain_key(i ? keys[i - 1] : 0, i);
    struct request_spec s = {.uid = 1,
                             .prompt_tok = N * BLOCK,
                             .output_tok = 1,
                             .keys = keys,
                             .n_keys = N,
                             .key_tok = BLOCK};
    struct kv_hold h;
    kv_hold_init(&h);
    for (uint32_t n = 1000; n <= N; n += 1000) {
        kv_take(&kv, &h, 1000);
        kv_name(&kv, &s, &h, n);
    }
    assert_int_equal(kv.n_runs, 1);
    kv_release(&kv, &h);
    assert_int_equal(kv_lookup(&kv, &s, N).free_blocks, N);
    for (uint32_t i = 0; i < 1000;
         i++) { /* many short ones: each a run, found through a table that grew */
        uint64_t key = request_chain_key(1, i);
        struct request_spec t = {.uid = 2 + i,
                                 .prompt_tok = BLOCK,
                                 .output_tok = 1,
                                 .keys = &key,
                                 .n_keys = 1,
                                 .key_tok = BLOCK};
        kv_hold_init(&h);
        kv_take(&kv, &h, 1);
        kv_name(&kv, &t, &h, 1);
        kv_release(&kv, &h);
        assert_int_equal(kv_lookup(&kv, &t, 1).blocks, 1);
    }
    assert_null(kv_validate(&kv));
    kv_deinit(&kv);
}

static void the_log_follows_the_set_of_names(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "abc");
    user_init(&b, 2, "abx");
    enter(&kv, &a);
    assert_int_equal(kv.log_used, 1);
    assert_true(kv.log[0].stored);
    assert_int_equal(kv.log[0].depth, 0);
    assert_int_equal(kv.log[0].n_blocks, 3);
    assert_memory_equal(&kv.log_names[kv.log[0].name_off], a.keys, 3 * sizeof *a.keys);
    enter(&kv, &b); /* only what is new */
    assert_int_equal(kv.log_used, 2);
    assert_int_equal(kv.log[1].depth, 2);
    assert_int_equal(kv.log[1].n_blocks, 1);
    assert_int_equal(kv.log_names[kv.log[1].name_off], b.keys[2]);
    leave(&kv, &a); /* still cached: no change */
    assert_int_equal(kv.log_used, 2);
    kv_deinit(&kv);
}

static void validate_sees_damage(void **state)
{
    (void)state;
    struct kv kv;
    struct user a, b;
    make(&kv, 10, EVICT_LRU);
    user_init(&a, 1, "abc");
    user_init(&b, 2, "x");
    enter(&kv, &a);
    enter(&kv, &b);
    leave(&kv, &a);
    assert_null(kv_validate(&kv));
    uint32_t run = kv.head[0];
    kv.free_named++;
    assert_non_null(kv_validate(&kv));
    kv.free_named--;
    kv.runs[run].ref = 1; /* in use and free */
    assert_non_null(kv_validate(&kv));
    kv.runs[run].ref = 0;
    kv.runs[run].key0 ^= 1; /* cannot be found under its name */
    assert_non_null(kv_validate(&kv));
    kv.runs[run].key0 ^= 1;
    kv.tail[0] = KV_NONE;
    assert_non_null(kv_validate(&kv));
    kv.tail[0] = run;
    kv.free_unnamed += 8; /* more than there are */
    assert_non_null(kv_validate(&kv));
    kv.free_unnamed -= 8;
    kv.n_runs++;
    assert_non_null(kv_validate(&kv));
    kv.n_runs--;
    assert_null(kv_validate(&kv));
    kv_deinit(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(init_refuses_what_is_out_of_range),
        cmocka_unit_test(blocks_are_found_once_they_have_names),
        cmocka_unit_test(a_shared_block_is_there_once),
        cmocka_unit_test(what_left_is_found_until_it_is_needed),
        cmocka_unit_test(eviction_takes_tails_of_the_least_recently_used),
        cmocka_unit_test(use_moves_to_the_end_of_the_queue),
        cmocka_unit_test(blocks_without_a_name_go_first),
        cmocka_unit_test(the_older_of_two_copies_is_found),
        cmocka_unit_test(shared_naming_keeps_no_copies),
        cmocka_unit_test(generated_blocks_are_found_by_their_request),
        cmocka_unit_test(lfu_drops_what_was_useful_least),
        cmocka_unit_test(lfu_keeps_the_roots_of_what_it_keeps),
        cmocka_unit_test(without_caching_nothing_is_named),
        cmocka_unit_test(drop_cache_spares_what_is_in_use),
        cmocka_unit_test(a_copy_goes_its_own_way),
        cmocka_unit_test(long_prompts_stay_short),
        cmocka_unit_test(the_log_follows_the_set_of_names),
        cmocka_unit_test(validate_sees_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
