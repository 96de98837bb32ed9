/* The vLLM scheduler, rule by rule. Each test is a small engine of blocks of four tokens and shows the batches of a few
 * steps; `bench/parity vllm` shows that a real engine's 14,515 recorded steps are the same.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "predictor/engine_internal.h"

#define BLOCK 4
#define MAX_KEYS 32

/* An engine with so many blocks for requests, 64 tokens a step, 8 requests. */
static struct engine_config limits(uint32_t blocks)
{
    struct engine_config c;
    engine_config_default(&c, SCHED_VLLM);
    c.block_size = BLOCK;
    c.num_gpu_blocks = blocks + 1; /* and the null block */
    c.max_num_batched_tokens = 64;
    c.max_num_seqs = 8;
    return c;
}

static struct engine *engine_of(const struct engine_config *c)
{
    struct engine *e = engine_new(c, 1);
    assert_non_null(e);
    return e;
}

static int submit(struct engine *e, uint32_t handle, uint32_t prompt, uint32_t output)
{
    uint32_t slot;
    struct request_spec s = {
        .uid = handle, .prompt_tok = prompt, .output_tok = output, .max_tokens = output};
    return engine_submit(e, 0, &s, handle, 0, &slot);
}

static void add(struct engine *e, uint32_t handle, uint32_t prompt, uint32_t output)
{
    assert_int_equal(submit(e, handle, prompt, output), 0);
}

/* The prompt in letters, one for each block; tail: tokens behind the last whole one. */
static uint32_t add_letters(struct engine *e, uint32_t handle, const char *letters, uint32_t tail,
                            uint32_t output, unsigned flags)
{
    static uint64_t keys[16][MAX_KEYS];
    uint32_t n = (uint32_t)strlen(letters), slot;
    uint64_t *k = keys[handle % 16];
    for (uint32_t i = 0; i < n; i++)
        k[i] = request_chain_key(i ? k[i - 1] : 0, (uint64_t)letters[i]);
    struct request_spec s = {.uid = handle,
                             .prompt_tok = n * BLOCK + tail,
                             .output_tok = output,
                             .max_tokens = output,
                             .keys = k,
                             .n_keys = n,
                             .key_tok = BLOCK};
    assert_int_equal(engine_submit(e, 0, &s, handle, flags, &slot), 0);
    return slot;
}

/* One step; its batch as "handle:computed+scheduled ...". */
static const char *step(struct engine *e)
{
    static char text[256];
    const struct engine_batch_item *b;
    uint32_t n = engine_step_begin(e, 0, &b);
    size_t len = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < n; i++)
        len += (size_t)snprintf(text + len, sizeof text - len, i ? " %u:%u+%u" : "%u:%u+%u",
                                b[i].handle, b[i].computed, b[i].scheduled);
    engine_step_end(e, 0);
    assert_null(kv_validate(&e->kv));
    return text;
}

#define STEPS(e, batch) assert_string_equal(step(e), batch)

/* Handles that the last step preempted, "1 2". */
static const char *preempted(const struct engine *e)
{
    static char text[64];
    const uint32_t *h;
    uint32_t n = engine_step_list(e, STEP_PREEMPTED, &h);
    text[0] = 0;
    for (uint32_t i = 0; i < n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), i ? " %u" : "%u", h[i]);
    return text;
}

/* ---- steps */

static void one_block_is_the_engines_own(void **state)
{
    (void)state;
    struct engine_config c = limits(5);
    struct engine *e = engine_of(&c);
    assert_int_equal(c.num_gpu_blocks, 6);
    assert_int_equal(engine_free_blocks(e), 5);
    assert_int_equal(submit(e, 1, 16, 5), WEIR_E_TOO_LARGE); /* 21 tokens: a sixth block */
    assert_int_equal(submit(e, 1, 16, 4), 0);
    engine_free(e);
}

static void running_ones_go_first_then_those_who_wait(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    c.max_num_batched_tokens = 10;
    struct engine *e = engine_of(&c);
    add(e, 1, 4, 9);
    add(e, 2, 4, 9);
    STEPS(e, "1:0+4 2:0+4");
    add(e, 3, 20, 9);
    STEPS(e, "1:4+1 2:4+1 3:0+8"); /* what the budget leaves */
    add(e, 4, 3, 9);
    STEPS(e, "1:5+1 2:5+1 3:8+8"); /* nothing left for 4 */
    STEPS(e, "1:6+1 2:6+1 3:16+4 4:0+3");
    engine_free(e);
}

static void no_more_than_max_num_seqs_run(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    c.max_num_seqs = 2;
    struct engine *e = engine_of(&c);
    add(e, 1, 4, 2);
    add(e, 2, 4, 3);
    add(e, 3, 4, 3);
    STEPS(e, "1:0+4 2:0+4");
    STEPS(e, "1:4+1 2:4+1"); /* 1 is done */
    STEPS(e, "2:5+1 3:0+4");
    engine_free(e);
}

static void admission_needs_room_for_all_that_is_known(void **state)
{
    (void)state;
    struct engine_config c = limits(5);
    c.max_num_batched_tokens = 8;
    struct engine *e = engine_of(&c);
    add(e, 1, 8, 4);
    add(e, 2, 16, 1);
    STEPS(e, "1:0+8");
    /* one token would fit, and seven more in the chunk; all sixteen do not */
    STEPS(e, "1:8+1");
    assert_int_equal(engine_free_blocks(e), 2);
    STEPS(e, "1:9+1");
    STEPS(e, "1:10+1"); /* and it is gone */
    STEPS(e, "2:0+8");
    engine_free(e);
}

static void admission_takes_only_the_first_chunks_blocks(void **state)
{
    (void)state;
    struct engine_config c = limits(5);
    c.max_num_batched_tokens = 8;
    struct engine *e = engine_of(&c);
    add(e, 1, 16, 1);
    STEPS(e, "1:0+8");
    assert_int_equal(engine_free_blocks(e), 3);
    engine_free(e);
}

static void nobody_passes_the_first_who_waits(void **state)
{
    (void)state;
    struct engine_config c = limits(5);
    struct engine *e = engine_of(&c);
    add(e, 1, 8, 4);
    add(e, 2, 16, 1);
    add(e, 3, 4, 1); /* would fit */
    STEPS(e, "1:0+8");
    STEPS(e, "1:8+1");
    engine_free(e);
}

/* ---- the prefix cache */

static void a_block_is_found_from_when_it_is_scheduled(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    struct engine *e = engine_of(&c);
    add_letters(e, 1, "ab", 2, 2, 0);
    add_letters(e, 2, "ac", 1, 2, 0);
    STEPS(e, "1:0+10 2:4+5"); /* in the very step that computes it */
    engine_free(e);
}

static void a_cached_prompt_computes_its_last_block_again(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    struct engine *e = engine_of(&c);
    add_letters(e, 1, "ab", 0, 1, 0);
    STEPS(e, "1:0+8");
    add_letters(e, 2, "ab", 0, 1, 0);
    STEPS(e, "2:4+4"); /* somebody has to ask for the next token */
    add_letters(e, 3, "ab", 1, 1, 0);
    STEPS(e, "3:8+1");
    engine_free(e);
}

static void the_last_token_is_never_cached(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    struct engine *e = engine_of(&c);
    add_letters(e, 1, "a", 0, 5, 0);
    for (int i = 0; i < 5; i++)
        step(e);
    /* 4 + 5 tokens; what the last one would have been computed for never came */
    assert_int_equal(e->kv.free_named, 2);
    engine_free(e);
    e = engine_of(&c);
    add_letters(e, 1, "a", 0, 4, 0);
    for (int i = 0; i < 4; i++)
        step(e);
    assert_int_equal(e->kv.free_named,
                     1); /* the second block is full but for its last token's KV */
    engine_free(e);
}

static void a_block_that_was_not_full_is_taken_before_cached_ones(void **state)
{
    (void)state;
    struct engine_config c = limits(3);
    struct engine *e = engine_of(&c);
    add_letters(e, 1, "ab", 1, 1, 0);
    STEPS(e, "1:0+9");
    add_letters(e, 2, "x", 0, 1, 0);
    STEPS(e, "2:0+4"); /* has the third block */
    add_letters(e, 3, "ab", 1, 1, 0);
    STEPS(e, "3:8+1");
    engine_free(e);
}

static void caching_can_be_off(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    c.enable_prefix_caching = false;
    struct engine *e = engine_of(&c);
    add_letters(e, 1, "ab", 0, 1, 0);
    STEPS(e, "1:0+8");
    add_letters(e, 2, "ab", 1, 1, 0);
    STEPS(e, "2:0+9");
    engine_free(e);
}

/* ---- preemption */

static void short_of_blocks_the_last_one_gives_way(void **state)
{
    (void)state;
    struct engine_config c = limits(4);
    struct engine *e = engine_of(&c);
    add(e, 1, 7, 6);
    add(e, 2, 7, 6);
    add(e, 3, 1, 1);
    STEPS(e, "1:0+7 2:0+7");
    STEPS(e, "1:7+1 2:7+1"); /* both have their two blocks full */
    STEPS(e, "1:8+1");       /* 1 needs a third: 2 gives way */
    assert_string_equal(preempted(e), "2");
    assert_int_equal(e->n_running, 1);
    /* 2 is in front of 3, its nine tokens need three blocks, and one is free */
    STEPS(e, "1:9+1");
    assert_string_equal(preempted(e), "");
    STEPS(e, "1:10+1");
    STEPS(e, "1:11+1");      /* done */
    STEPS(e, "2:4+5 3:0+1"); /* 1 had taken one of its blocks */
    engine_free(e);
}

static void after_a_preemption_nobody_is_let_in(void **state)
{
    (void)state;
    struct engine_config c = limits(4);
    struct engine *e = engine_of(&c);
    add(e, 1, 7, 3);
    add(e, 2, 7, 3);
    STEPS(e, "1:0+7 2:0+7");
    STEPS(e, "1:7+1 2:7+1");
    add(e, 3, 4, 1);
    STEPS(e, "1:8+1"); /* one block is free now, but 2 goes first */
    assert_string_equal(preempted(e), "2");
    engine_free(e);
}

static void who_gives_way_finds_its_own_blocks_again(void **state)
{
    (void)state;
    struct engine_config c = limits(5);
    struct engine *e = engine_of(&c);
    add(e, 1, 7, 4);
    add(e, 2, 10, 3);
    STEPS(e, "1:0+7 2:0+10");
    STEPS(e, "1:7+1 2:10+1");
    STEPS(e, "1:8+1");
    assert_string_equal(preempted(e), "2");
    STEPS(e, "1:9+1"); /* done: 2's first two blocks are still there */
    STEPS(e, "2:8+4"); /* its prompt's rest, and what it had generated */
    struct engine_load load;
    engine_get_load(e, 0, &load);
    uint32_t n;
    const struct engine_event *ev = engine_events(e, &n);
    assert_int_equal(n, 2);
    assert_int_equal(ev[1].handle, 2);
    assert_int_equal(ev[1].record.preemptions, 1);
    assert_int_equal(ev[1].record.reused_tok, 0); /* at its first admission */
    assert_int_equal(ev[1].record.reused_all_tok, 8);
    engine_free(e);
}

/* Held prefills can leave a running request alone with too few blocks: it is the last one itself. */
static void alone_it_gives_way_to_itself(void **state)
{
    (void)state;
    struct engine_config c = limits(4);
    struct engine *e = engine_of(&c);
    uint32_t held = add_letters(e, 1, "ab", 0, 1, ENGINE_PREFILL_ONLY);
    STEPS(e, "1:0+8");
    add(e, 2, 7, 6);
    STEPS(e, "2:0+7");
    STEPS(e, "2:7+1");
    STEPS(e, "");
    assert_string_equal(preempted(e), "2");
    STEPS(e, ""); /* nine tokens do not fit into two blocks */
    engine_release(e, 0, held);
    STEPS(e, "2:8+1");
    engine_free(e);
}

/* ---- priorities */

static struct request_spec ranked(uint32_t handle, uint32_t prompt, uint32_t output,
                                  int32_t priority, int64_t arrival)
{
    return (struct request_spec){.uid = handle,
                                 .prompt_tok = prompt,
                                 .output_tok = output,
                                 .max_tokens = output,
                                 .priority = priority,
                                 .arrival_ps = arrival};
}

static void add_ranked(struct engine *e, struct request_spec s)
{
    uint32_t slot;
    assert_int_equal(engine_submit(e, 0, &s, (uint32_t)s.uid, 0, &slot), 0);
}

static void the_smallest_priority_enters_first(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    c.policy = SCHED_PRIORITY;
    c.max_num_seqs = 1;
    struct engine *e = engine_of(&c);
    add_ranked(e, ranked(1, 4, 1, 2, 10));
    add_ranked(e, ranked(2, 4, 1, 1, 30));
    add_ranked(e, ranked(3, 4, 1, 1, 20)); /* of equal ones, the earlier arrival */
    add_ranked(e, ranked(4, 4, 1, 1, 20)); /* of equal arrivals, the earlier here */
    STEPS(e, "3:0+4");
    STEPS(e, "4:0+4");
    STEPS(e, "2:0+4");
    STEPS(e, "1:0+4");
    engine_free(e);
}

static void the_largest_priority_gives_way_even_if_scheduled(void **state)
{
    (void)state;
    struct engine_config c = limits(4);
    c.policy = SCHED_PRIORITY;
    struct engine *e = engine_of(&c);
    add_ranked(e, ranked(1, 4, 6, 5, 1)); /* admitted first, but it matters least */
    STEPS(e, "1:0+4");
    add_ranked(e, ranked(2, 8, 6, 0, 2));
    STEPS(e, "1:4+1 2:0+8"); /* four blocks in use */
    STEPS(e, "2:8+1");       /* 1 was in the batch already when 2 needed a block */
    assert_string_equal(preempted(e), "1");
    engine_free(e);
}

/* What the one who gave way had been given of the step's tokens goes to those behind it; none of them is left out. */
static void a_victims_tokens_go_to_others(void **state)
{
    (void)state;
    struct engine_config c = limits(12);
    c.policy = SCHED_PRIORITY;
    c.max_num_batched_tokens = 7;
    c.long_prefill_token_threshold = 4;
    struct engine *e = engine_of(&c);
    add_ranked(e, ranked(1, 1, 20, 5, 1));
    STEPS(e, "1:0+1");
    add_ranked(e, ranked(2, 4, 20, 0, 2));
    STEPS(e, "1:1+1 2:0+4");
    add_ranked(e, ranked(3, 36, 1, 0, 3));
    add_ranked(e, ranked(4, 20, 1, 0, 4));
    STEPS(e, "1:2+1 2:4+1 3:0+4 4:0+1"); /* one token is left for 4 */
    for (int i = 0; i < 3; i++)
        step(e);
    STEPS(e, "1:6+1 2:8+1 3:16+4 4:4+1"); /* all twelve blocks are in use */
    STEPS(e, "2:9+1 3:20+4 4:5+2"); /* 3 needs one: 1 goes, although it was scheduled already */
    assert_string_equal(preempted(e), "1");
    engine_free(e);
}

/* Room for a newcomer there would be, but only from the next step on. */
static void nobody_enters_in_the_step_of_a_preemption(void **state)
{
    (void)state;
    struct engine_config c = limits(8);
    c.policy = SCHED_PRIORITY;
    struct engine *e = engine_of(&c);
    add_ranked(e, ranked(1, 8, 9, 0, 1));
    add_ranked(e, ranked(2, 24, 5, 5, 2));
    STEPS(e, "1:0+8 2:0+24");
    add_ranked(e, ranked(3, 4, 9, 1, 3));
    STEPS(e, "1:8+1"); /* takes a block of 2's */
    assert_string_equal(preempted(e), "2");
    STEPS(e, "1:9+1 3:0+4");
    engine_free(e);
}

/* ---- long prompts */

static void long_prompts_are_cut_but_not_when_alone(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    c.long_prefill_token_threshold = 8;
    struct engine *e = engine_of(&c);
    add(e, 1, 20, 1);
    STEPS(e, "1:0+20");
    add(e, 2, 20, 1);
    add(e, 3, 20, 1);
    STEPS(e, "2:0+8 3:0+8");
    STEPS(e, "2:8+8 3:8+8");
    STEPS(e, "2:16+4 3:16+4");
    engine_free(e);
}

static void without_chunks_a_prompt_is_computed_at_once(void **state)
{
    (void)state;
    struct engine_config c = limits(50);
    c.enable_chunked_prefill = false;
    c.max_num_batched_tokens = 12;
    struct engine *e = engine_of(&c);
    assert_int_equal(submit(e, 9, 13, 1), WEIR_E_TOO_LARGE);
    /* it could be preempted after two tokens, and would have to compute 13 at once */
    assert_int_equal(submit(e, 9, 11, 3), WEIR_E_TOO_LARGE);
    add(e, 1, 8, 3);
    add(e, 2, 5, 3);
    STEPS(e, "1:0+8"); /* five do not go into what is left */
    STEPS(e, "1:8+1 2:0+5");
    engine_free(e);
    c.long_prefill_token_threshold = 3; /* which comes first in the real scheduler, too */
    e = engine_of(&c);
    add(e, 1, 8, 3);
    add(e, 2, 5, 3);
    STEPS(e, "1:0+3 2:0+3");
    engine_free(e);
}

/* ---- prefill and decode apart */

static void a_prefill_alone_is_held(void **state)
{
    (void)state;
    struct engine_config c = limits(8);
    struct engine *e = engine_of(&c);
    uint32_t slot = add_letters(e, 1, "ab", 1, 20, ENGINE_PREFILL_ONLY), n;
    STEPS(e, "1:0+9");
    const struct engine_event *ev = engine_events(e, &n);
    assert_int_equal(n, 1);
    assert_int_equal(ev[0].kind, ENGINE_EV_PREFILL_DONE);
    assert_int_equal(ev[0].record.output_tok, 0);
    struct engine_load load;
    engine_get_load(e, 0, &load);
    assert_int_equal(load.held, 1);
    assert_int_equal(load.running, 0);
    assert_int_equal(engine_free_blocks(e), 5);
    engine_release(e, 0, slot);
    assert_int_equal(engine_free_blocks(e), 8);
    assert_true(engine_empty(e));
    engine_free(e);
}

static void kv_that_came_along_is_not_computed(void **state)
{
    (void)state;
    struct engine_config c = limits(8);
    struct engine *e = engine_of(&c);
    add_letters(e, 1, "ab", 2, 3, ENGINE_REMOTE_KV);
    STEPS(e, "1:9+1"); /* its last token asks for the next one */
    assert_int_equal(engine_free_blocks(e), 5);
    STEPS(e, "1:10+1");
    engine_free(e);
}

static void kv_to_come_waits_with_its_blocks(void **state)
{
    (void)state;
    struct engine_config c = limits(8);
    struct engine *e = engine_of(&c);
    uint32_t slot = add_letters(e, 1, "ab", 2, 3, ENGINE_REMOTE_KV | ENGINE_RESERVE), n;
    STEPS(e, "");
    const struct engine_event *ev = engine_events(e, &n);
    assert_int_equal(n, 1);
    assert_int_equal(ev[0].kind, ENGINE_EV_RESERVED);
    engine_clear_events(e);
    assert_int_equal(engine_free_blocks(e), 5);
    add(e, 2, 4, 2);
    STEPS(e, "2:0+4"); /* others pass it */
    engine_arrived(e, 0, slot);
    STEPS(e, "2:4+1 1:9+1");
    engine_free(e);
}

/* ---- speculation */

static void drafts_need_blocks_too(void **state)
{
    (void)state;
    struct engine_config c = limits(8);
    struct step_params p = {.form = STEP_FIXED, .fixed_decode_ms = 1, .spec_gamma = 3};
    const char *why;
    assert_int_equal(step_model_init(&c.step, &p, &why), 0); /* none is ever accepted */
    struct engine *e = engine_of(&c);
    add(e, 1, 4, 9);
    STEPS(e, "1:0+4");
    assert_int_equal(engine_free_blocks(e), 7);
    STEPS(e, "1:4+1"); /* and three drafts: the block is full */
    assert_int_equal(engine_free_blocks(e), 6);
    STEPS(e, "1:5+1");
    assert_int_equal(engine_free_blocks(e), 5);
    engine_free(e);
}

/* A preempted request that found room for what it knows, but not for its drafts, would give way again at once, for
 * ever. */
static void admission_needs_room_for_drafts(void **state)
{
    (void)state;
    struct engine_config c = limits(5);
    struct step_params p = {.form = STEP_FIXED, .fixed_decode_ms = 1, .spec_gamma = 3};
    const char *why;
    c.enable_prefix_caching = false;
    assert_int_equal(step_model_init(&c.step, &p, &why), 0);
    struct engine *e = engine_of(&c);
    add_letters(e, 1, "ab", 1, 1, ENGINE_PREFILL_ONLY); /* three blocks that are held */
    STEPS(e, "1:0+9");
    add(e, 2, 4, 9);
    STEPS(e, "2:0+4");
    STEPS(e, "2:4+1"); /* both blocks: five to eight */
    STEPS(e, "");
    assert_string_equal(preempted(e), "2");
    STEPS(e, ""); /* six tokens would fit */
    assert_string_equal(preempted(e), "");
    engine_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_block_is_the_engines_own),
        cmocka_unit_test(running_ones_go_first_then_those_who_wait),
        cmocka_unit_test(no_more_than_max_num_seqs_run),
        cmocka_unit_test(admission_needs_room_for_all_that_is_known),
        cmocka_unit_test(admission_takes_only_the_first_chunks_blocks),
        cmocka_unit_test(nobody_passes_the_first_who_waits),
        cmocka_unit_test(a_block_is_found_from_when_it_is_scheduled),
        cmocka_unit_test(a_cached_prompt_computes_its_last_block_again),
        cmocka_unit_test(the_last_token_is_never_cached),
        cmocka_unit_test(a_block_that_was_not_full_is_taken_before_cached_ones),
        cmocka_unit_test(caching_can_be_off),
        cmocka_unit_test(short_of_blocks_the_last_one_gives_way),
        cmocka_unit_test(after_a_preemption_nobody_is_let_in),
        cmocka_unit_test(who_gives_way_finds_its_own_blocks_again),
        cmocka_unit_test(alone_it_gives_way_to_itself),
        cmocka_unit_test(the_smallest_priority_enters_first),
        cmocka_unit_test(the_largest_priority_gives_way_even_if_scheduled),
        cmocka_unit_test(a_victims_tokens_go_to_others),
        cmocka_unit_test(nobody_enters_in_the_step_of_a_preemption),
        cmocka_unit_test(long_prompts_are_cut_but_not_when_alone),
        cmocka_unit_test(without_chunks_a_prompt_is_computed_at_once),
        cmocka_unit_test(a_prefill_alone_is_held),
        cmocka_unit_test(kv_that_came_along_is_not_computed),
        cmocka_unit_test(kv_to_come_waits_with_its_blocks),
        cmocka_unit_test(drafts_need_blocks_too),
        cmocka_unit_test(admission_needs_room_for_drafts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
