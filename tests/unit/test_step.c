/* test_step.c - the forms of step time against their formulas, and what is refused. */
#include "predictor/step.c"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdint.h>

#include <cmocka.h>

#define MS PS_PER_MS

static struct step_model make(const struct step_params *p)
{
    struct step_model m;
    const char *why = "not set";
    if (step_model_init(&m, p, &why))
        fail_msg("refused: %s", why);
    assert_null(why);
    return m;
}

static struct step_batch decode(uint32_t reqs, uint64_t ctx_tok)
{
    return (struct step_batch){.decode_reqs = reqs,
                               .decode_ctx_tok = ctx_tok,
                               .active_kv_tok = ctx_tok,
                               .total_kv_tok = 1000000};
}

/* One chunk of n tokens on c. */
static struct step_batch prefill(uint64_t n, uint64_t c)
{
    return (struct step_batch){.prefill_reqs = 1,
                               .prefill_tok = n,
                               .prefill_ctx_tok = c,
                               .prefill_attn = 2 * n * c + n * n,
                               .active_kv_tok = n + c,
                               .total_kv_tok = 1000000};
}

static int64_t time_of(const struct step_model *m, struct step_batch b)
{
    return step_time_ps(m, &b);
}

/* ---- linear */

static const struct step_params llama = {.form = STEP_LINEAR,
                                         .w_ms = 6.4343,
                                         .d0_ms_per_req = 0.011,
                                         .k_ms_per_tok = 5.131e-5,
                                         .p_ms_per_tok = 0.019613,
                                         .q_ms_per_tok2 = 1.31e-6};

static void linear_formula(void **state)
{
    (void)state;
    struct step_model m = make(&llama);
    assert_false(m.additive);
    assert_true(m.linear_decode);
    assert_int_equal(m.k_ps, 51310);
    assert_int_equal(time_of(&m, decode(1, 0)), 6434300000 + 11000000);
    assert_int_equal(time_of(&m, decode(30, 60000)),
                     6434300000 + 30 * 11000000 + INT64_C(60000) * 51310);
    struct step_batch b = prefill(2048, 4096);
    b.decode_reqs = 12;
    b.decode_ctx_tok = 9000;
    double ms = 6.4343 + 12 * 0.011 + 9000 * 5.131e-5 + 0.019613 * 2048 +
                1.31e-6 * 2048 * (4096 + 2048 / 2.0);
    assert_true(fabs((double)time_of(&m, b) / (double)MS - ms) < 1e-6);
    /* only what is not in the additive parts */
    assert_int_equal(step_prefill_ps(&m, 1, 100, 0), 0);
    assert_int_equal(step_decode_ps(&m, 1, 100, 100, 1000), 0);
}

/* What fast-forward relies on: k_ps * B more for every pass, to the last bit. */
static void decode_grows_exactly(void **state)
{
    (void)state;
    struct step_params p = llama;
    p.moe_experts = 128;
    p.moe_active = 8;
    p.moe_w_share = 0.7;
    p.scale = 1.37;
    struct step_model m = make(&p);
    struct step_batch b = decode(37, 12345);
    int64_t last = step_time_ps(&m, &b);
    for (int i = 0; i < 10000; i++) {
        b.decode_ctx_tok += 37;
        int64_t t = step_time_ps(&m, &b);
        assert_int_equal(t - last, 37 * m.k_ps);
        last = t;
    }
}

static void empty_batch_takes_no_time(void **state)
{
    (void)state;
    struct step_params zero = {.form = STEP_LINEAR};
    struct step_model m = make(&zero);
    assert_int_equal(time_of(&m, (struct step_batch){0}), 0);
    assert_int_equal(time_of(&m, decode(1, 100)), 1);
    assert_int_equal(time_of(&m, prefill(1, 100)), 1);
    zero.form = STEP_FIXED;
    m = make(&zero);
    assert_int_equal(time_of(&m, decode(1, 100)), 1);
}

static void mixed_steps_read_kv_at_another_price(void **state)
{
    (void)state;
    struct step_params p = {.form = STEP_LINEAR,
                            .w_ms = 5,
                            .k_ms_per_tok = 1e-3,
                            .p_ms_per_tok = 0.02,
                            .mix_ms_per_tok = 5e-4};
    struct step_model m = make(&p);
    struct step_batch b = prefill(100, 0);
    assert_int_equal(step_time_ps(&m, &b), 7 * MS);
    b.decode_reqs = 2;
    b.decode_ctx_tok = 4000;
    assert_int_equal(step_time_ps(&m, &b), 13 * MS);
    b = (struct step_batch){.decode_reqs = 2, .decode_ctx_tok = 4000};
    assert_int_equal(step_time_ps(&m, &b), 9 * MS);
}

/* Half of W is 8 experts, of which a token uses one: 1 - (7/8)^tokens of that half is read. */
static void experts_are_read_for_the_ranks_beside(void **state)
{
    (void)state;
    struct step_params p = {
        .form = STEP_LINEAR, .w_ms = 16, .moe_experts = 8, .moe_active = 1, .moe_w_share = 0.5};
    struct step_model m = make(&p);
    struct step_batch b = {.decode_reqs = 1};
    assert_int_equal(step_time_ps(&m, &b), 9 * MS);
    b.peer_tok = 1;
    assert_int_equal(step_time_ps(&m, &b), 9 * MS + 7 * MS / 8);
    struct step_batch alone = {.decode_reqs = 2};
    assert_int_equal(step_time_ps(&m, &alone), step_time_ps(&m, &b));
}

static void floor_hides_short_prefills(void **state)
{
    (void)state;
    struct step_params p = {
        .form = STEP_LINEAR, .w_ms = 5, .p_ms_per_tok = 0.02, .prefill_floor_ms = 5};
    struct step_model m = make(&p);
    assert_int_equal(time_of(&m, prefill(1, 0)), 5 * MS);
    assert_int_equal(time_of(&m, prefill(250, 0)), 5 * MS); /* 5 ms of compute: max(W, p*n) */
    assert_int_equal(time_of(&m, prefill(300, 0)), 6 * MS);
    assert_int_equal(time_of(&m, prefill(1000, 0)), 20 * MS);
    struct step_batch b = prefill(300, 0);
    b.decode_reqs = 1;
    assert_int_equal(step_time_ps(&m, &b), 6 * MS);
}

static void experts_read_grow_with_the_batch(void **state)
{
    (void)state;
    struct step_params p = {
        .form = STEP_LINEAR, .w_ms = 10, .moe_experts = 128, .moe_active = 8, .moe_w_share = 0.8};
    struct step_model m = make(&p);
    for (uint32_t b = 1; b < 300; b++) {
        double ms = 2 + 8 * (1 - pow(1 - 8 / 128.0, b));
        assert_true(fabs((double)time_of(&m, decode(b, 0)) / (double)MS - ms) < 1e-9);
    }
    struct step_batch mixed = prefill(90, 0);
    mixed.decode_reqs = 10;
    assert_int_equal(step_time_ps(&m, &mixed), time_of(&m, decode(100, 0)));
    assert_int_equal(time_of(&m, prefill(1u << 20, 0)), 10 * MS);
    p.moe_active = 128; /* every token reads them all */
    m = make(&p);
    assert_int_equal(time_of(&m, decode(1, 0)), 10 * MS);
    p.moe_experts = 0;
    m = make(&p);
    assert_int_equal(time_of(&m, decode(1, 0)), 10 * MS);
}

/* 0.9^n has one value: these bits. */
static void powers_have_the_same_bits_everywhere(void **state)
{
    (void)state;
    assert_true(power(0.9, 0) == 1);
    assert_true(power(0.9, 1) == 0.9);
    assert_true(power(0.9375, 4) == 0.772476196289062500);
    assert_true(power(0.9, 100) == 0x1.bda056ed49422p-16);
    assert_true(power(0.5, 4000) == 0);
}

static void verification_costs_its_tokens(void **state)
{
    (void)state;
    struct step_params p = llama;
    p.spec_gamma = 3;
    p.spec_draft_ms = 0.5;
    struct step_model m = make(&p);
    /* p is dearer than d0: the 3 drafts of each of 10 requests cost p each */
    assert_int_equal(time_of(&m, decode(10, 500)), 6434300000 + 10 * 11000000 + 500 * 51310 +
                                                       INT64_C(30) * 19613000 + 3 * 500000000);
    p.d0_ms_per_req = 0.1; /* and now d0 is: d0 * B * (gamma + 1) */
    m = make(&p);
    assert_int_equal(time_of(&m, decode(10, 500)),
                     6434300000 + INT64_C(40) * 100000000 + 500 * 51310 + 3 * 500000000);
    /* a prefill alone drafts nothing */
    struct step_model plain = make(&llama);
    assert_int_equal(time_of(&m, prefill(100, 0)), time_of(&plain, prefill(100, 0)));
}

static void experts_see_drafts(void **state)
{
    (void)state;
    struct step_params p = {
        .form = STEP_LINEAR, .w_ms = 10, .moe_experts = 64, .moe_active = 2, .moe_w_share = 1};
    struct step_model plain = make(&p);
    p.spec_gamma = 1;
    struct step_model m = make(&p);
    assert_int_equal(time_of(&m, decode(5, 0)), time_of(&plain, decode(10, 0)));
}

/* ---- the others */

static const struct step_params dynosim = {.form = STEP_POLYNOMIAL,
                                           .pa = 4.209989e-07,
                                           .pb = 1.518344e-02,
                                           .pc = 16.50142,
                                           .da = -25.74,
                                           .db = 54.01,
                                           .dc = 5.74};

/* Points that the peer simulator itself gave (engine-model.md 1.5 and its recorded rows). */
static void polynomial_points(void **state)
{
    (void)state;
    struct step_model m = make(&dynosim);
    assert_true(m.additive);
    assert_false(m.linear_decode);
    assert_true(fabs((double)time_of(&m, prefill(8192, 0)) / (double)MS - 169.136918) < 1e-6);
    assert_true(fabs((double)time_of(&m, prefill(3119, 5000)) / (double)MS - 67.954114) < 1e-6);
    struct step_batch b = {.decode_reqs = 1,
                           .active_kv_tok = UINT64_C(7) * 512,
                           .total_kv_tok = UINT64_C(16384) * 512};
    assert_true(fabs((double)step_time_ps(&m, &b) / (double)MS - 5.763) < 5e-4);
    b.prefill_reqs = 1;
    b.prefill_tok = 8192;
    assert_int_equal(step_time_ps(&m, &b),
                     step_prefill_ps(&m, 1, 8192, 0) +
                         step_decode_ps(&m, 1, b.active_kv_tok, 0, b.total_kv_tok));
}

static void polynomial_ends(void **state)
{
    (void)state;
    struct step_params p = dynosim;
    struct step_model m = make(&p);
    double full = -25.74 + 54.01 + 5.74;
    assert_true(fabs((double)step_decode_ps(&m, 3, 1000, 0, 1000) / (double)MS - full) < 1e-9);
    assert_int_equal(step_decode_ps(&m, 3, 2000, 0, 1000), step_decode_ps(&m, 3, 1000, 0, 1000));
    assert_int_equal(step_decode_ps(&m, 3, 0, 0, 0), step_decode_ps(&m, 3, 1000, 0, 1000));
    assert_int_equal(step_decode_ps(&m, 0, 500, 0, 1000), 0);
    assert_int_equal(step_prefill_ps(&m, 0, 500, 0), 0);
    assert_int_equal(step_prefill_ps(&m, 1, 0, 0), 16501420000); /* DynoSim 1.4.2 charges it */
    p.dc = -100; /* never less than 1 ms, nor less than nothing */
    p.pc = -1000;
    m = make(&p);
    assert_int_equal(step_decode_ps(&m, 1, 0, 0, 1000), MS);
    assert_int_equal(step_prefill_ps(&m, 1, 1, 0), 0);
}

static void fixed_parts(void **state)
{
    (void)state;
    struct step_params p = {.form = STEP_FIXED, .fixed_prefill_ms = 20, .fixed_decode_ms = 6};
    struct step_model m = make(&p);
    assert_true(m.additive);
    assert_true(m.linear_decode);
    assert_int_equal(m.k_ps, 0);
    assert_int_equal(time_of(&m, prefill(1, 0)), 20 * MS);
    assert_int_equal(time_of(&m, decode(1, 0)), 6 * MS);
    assert_int_equal(time_of(&m, decode(200, 100000)), 6 * MS);
    struct step_batch b = prefill(700, 0);
    b.decode_reqs = 3;
    assert_int_equal(step_time_ps(&m, &b), 26 * MS);
}

static const struct step_params table = {.form = STEP_TABLE,
                                         .n_prefill = 3,
                                         .prefill_x = {100, 1000, 8000},
                                         .prefill_y = {5, 20, 160},
                                         .n_kv = 2,
                                         .kv_x = {1000, 100000},
                                         .n_ctx = 3,
                                         .ctx_x = {100, 1000, 10000},
                                         .itl_y = {5, 6, 7, 8, 9, 12}};

static void table_hits_its_points(void **state)
{
    (void)state;
    struct step_model m = make(&table);
    assert_true(m.additive);
    assert_false(m.linear_decode);
    assert_ptr_equal(m.table, &table);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(step_prefill_ps(&m, 1, (uint64_t)table.prefill_x[i], 0),
                         (int64_t)table.prefill_y[i] * MS);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t j = 0; j < 3; j++)
            assert_int_equal(
                step_decode_ps(&m, 2, (uint64_t)table.kv_x[i], 2 * (uint64_t)table.ctx_x[j], 0),
                (int64_t)table.itl_y[i * 3 + j] * MS);
    }
}

static void table_between_and_beyond(void **state)
{
    (void)state;
    struct step_model m = make(&table);
    assert_int_equal(step_prefill_ps(&m, 1, 550, 0), 12500 * PS_PER_US);
    assert_int_equal(step_prefill_ps(&m, 1, 4500, 0), 90 * MS);
    assert_int_equal(step_prefill_ps(&m, 1, 15000, 0), 300 * MS); /* on from the last two */
    assert_true(llabs(step_prefill_ps(&m, 1, 40, 0) - 4 * MS) <= 1);
    struct step_params steep = table;
    steep.prefill_y[0] = 0;
    steep.prefill_y[1] = 100;
    struct step_model s = make(&steep);
    assert_int_equal(step_prefill_ps(&s, 1, 1, 0), 0); /* never less than nothing */
    /* the middle of the four corners 5 6 8 9 */
    assert_int_equal(step_decode_ps(&m, 1, 50500, 550, 0), 7 * MS);
    /* beyond the last row and the last column: 12 + (12-7) + (12-9) + (12-7-9+6) */
    assert_int_equal(step_decode_ps(&m, 1, 199000, 19000, 0), 22 * MS);
}

static void table_of_one_point(void **state)
{
    (void)state;
    struct step_params p = {.form = STEP_TABLE,
                            .n_prefill = 1,
                            .prefill_x = {512},
                            .prefill_y = {30, NAN}, /* not a point */
                            .n_kv = 1,
                            .n_ctx = 1,
                            .itl_y = {7, NAN, NAN}};
    struct step_model m = make(&p);
    struct step_batch b = prefill(1, 0);
    b.decode_reqs = 9;
    assert_int_equal(step_time_ps(&m, &b), 37 * MS);
    p.n_kv = 2;
    p.kv_x[1] = 100;
    p.itl_y[1] = 17; /* two rows of one column */
    assert_int_equal(step_decode_ps(&m, 1, 50, 3, 0), 12 * MS);
    m = make(&p);
    assert_int_equal(step_decode_ps(&m, 1, 50, 3, 0), 12 * MS);
}

static void full_table(void **state)
{
    (void)state;
    struct step_params p = {.form = STEP_TABLE,
                            .n_prefill = STEP_TABLE_MAX,
                            .n_kv = STEP_TABLE_MAX,
                            .n_ctx = STEP_TABLE_MAX};
    for (uint32_t i = 0; i < STEP_TABLE_MAX; i++) {
        p.prefill_x[i] = p.prefill_y[i] = p.kv_x[i] = p.ctx_x[i] = 10 * i;
        for (uint32_t j = 0; j < STEP_TABLE_MAX; j++)
            p.itl_y[i * STEP_TABLE_MAX + j] = 10 * i + 20 * j;
    }
    struct step_model m = make(&p);
    for (uint64_t x = 0; x < 700; x += 7) {
        assert_true(llabs(step_prefill_ps(&m, 1, x, 0) - (int64_t)x * MS) <= 1);
        for (uint64_t y = 0; y < 700; y += 13)
            assert_true(llabs(step_decode_ps(&m, 1, x, y, 0) - (int64_t)(x + 2 * y) * MS) <= 1);
    }
}

static void scale_multiplies_everything(void **state)
{
    (void)state;
    const struct step_params *forms[] = {&llama, &dynosim, &table};
    struct step_batch b = prefill(2000, 1000);
    b.decode_reqs = 20;
    b.decode_ctx_tok = 40000;
    b.active_kv_tok = 42000;
    for (int i = 0; i < 3; i++) {
        struct step_params p = *forms[i];
        p.spec_gamma = 2;
        p.spec_draft_ms = 0.25;
        struct step_model once = make(&p);
        p.scale = 1;
        struct step_model same = make(&p);
        assert_int_equal(step_time_ps(&once, &b), step_time_ps(&same, &b));
        p.scale = 2;
        struct step_model twice = make(&p);
        /* what is rounded is a coefficient: up to half a ps for each of 40,000 tokens */
        assert_true(llabs(step_time_ps(&twice, &b) - 2 * step_time_ps(&once, &b)) <= 40000);
    }
    struct step_params p = dynosim;
    p.scale = 0.001; /* the least decode time is scaled, too */
    p.dc = -100;
    struct step_model m = make(&p);
    assert_int_equal(time_of(&m, decode(1, 1)), PS_PER_US);
}

static void nothing_takes_longer_than_the_limit(void **state)
{
    (void)state;
    struct step_params p = {.form = STEP_LINEAR,
                            .w_ms = STEP_MAX_MS,
                            .d0_ms_per_req = STEP_MAX_MS,
                            .k_ms_per_tok = STEP_MAX_MS,
                            .p_ms_per_tok = STEP_MAX_MS,
                            .q_ms_per_tok2 = STEP_MAX_MS,
                            .spec_gamma = STEP_SPEC_MAX,
                            .spec_draft_ms = STEP_MAX_MS,
                            .scale = STEP_MAX_SCALE};
    struct step_batch b = {.decode_reqs = UINT32_MAX,
                           .decode_ctx_tok = UINT64_MAX >> 1,
                           .prefill_reqs = UINT32_MAX,
                           .prefill_tok = UINT64_MAX >> 1,
                           .prefill_attn = UINT64_MAX >> 1,
                           .active_kv_tok = UINT64_MAX >> 1,
                           .total_kv_tok = 1};
    struct step_model m = make(&p);
    assert_int_equal(step_time_ps(&m, &b), STEP_MAX_PS);
    struct step_params poly = {.form = STEP_POLYNOMIAL,
                               .pa = STEP_MAX_MS,
                               .da = STEP_MAX_MS,
                               .spec_gamma = STEP_SPEC_MAX,
                               .spec_draft_ms = STEP_MAX_MS};
    m = make(&poly);
    assert_int_equal(step_time_ps(&m, &b), STEP_MAX_PS);
    struct step_params steep = {.form = STEP_TABLE,
                                .n_prefill = 2,
                                .prefill_x = {0, 1},
                                .prefill_y = {0, STEP_MAX_MS},
                                .n_kv = 1,
                                .n_ctx = 2,
                                .ctx_x = {0, 1},
                                .itl_y = {0, STEP_MAX_MS},
                                .scale = STEP_MAX_SCALE};
    m = make(&steep);
    assert_int_equal(step_time_ps(&m, &b), STEP_MAX_PS);
}

/* ---- speculation */

static void tokens_of_a_speculative_step(void **state)
{
    (void)state;
    struct step_params p = llama;
    struct step_model m = make(&p);
    assert_true(step_spec_expected_tok(&m) == 1);
    assert_int_equal(step_spec_draw_tok(&m, 0), 1);
    p.spec_gamma = 3;
    p.spec_accept[0] = 0.5;
    p.spec_accept[1] = 0.5;
    p.spec_accept[2] = 1;
    m = make(&p);
    assert_true(step_spec_expected_tok(&m) == 1 + 0.5 + 0.25 + 0.25);
    assert_int_equal(step_spec_draw_tok(&m, 0), 4);
    assert_int_equal(step_spec_draw_tok(&m, 0.2499), 4);
    assert_int_equal(step_spec_draw_tok(&m, 0.25),
                     2); /* the third is certain once it comes to it */
    assert_int_equal(step_spec_draw_tok(&m, 0.4999), 2);
    assert_int_equal(step_spec_draw_tok(&m, 0.5), 1);
    assert_int_equal(step_spec_draw_tok(&m, 0.999), 1);
    double sum = 0;
    for (int i = 0; i < 4000; i++)
        sum += step_spec_draw_tok(&m, (i + 0.5) / 4000);
    assert_true(fabs(sum / 4000 - step_spec_expected_tok(&m)) < 1e-12);
    p.spec_accept[0] = 0;
    m = make(&p);
    assert_int_equal(step_spec_draw_tok(&m, 0), 1);
}

/* ---- what is refused */

static void refuse(struct step_params p, const char *name)
{
    struct step_model m;
    const char *why = NULL;
    assert_int_equal(step_model_init(&m, &p, &why), WEIR_E_INVALID);
    assert_non_null(why);
    if (!strstr(why, name))
        fail_msg("\"%s\" does not name %s", why, name);
}

static void bad_numbers(void **state)
{
    (void)state;
    static const double bad[] = {-1e-9, NAN, INFINITY, -INFINITY, 1.0001e9};
#define REFUSE(base, field, name)                                                                  \
    do {                                                                                           \
        for (unsigned i_ = 0; i_ < 5; i_++) {                                                      \
            struct step_params p_ = base;                                                          \
            p_.field = bad[i_];                                                                    \
            refuse(p_, name);                                                                      \
        }                                                                                          \
    } while (0)
    REFUSE(llama, w_ms, "w_ms");
    REFUSE(llama, d0_ms_per_req, "d0_ms_per_req");
    REFUSE(llama, k_ms_per_tok, "k_ms_per_tok");
    REFUSE(llama, p_ms_per_tok, "p_ms_per_tok");
    REFUSE(llama, q_ms_per_tok2, "q_ms_per_tok2");
    REFUSE(llama, prefill_floor_ms, "prefill_floor_ms");
    REFUSE(llama, mix_ms_per_tok, "mix_ms_per_tok");
    REFUSE(llama, spec_draft_ms, "spec_draft_ms");
    REFUSE(llama, scale, "scale");
    REFUSE(table, prefill_y[1], "prefill_ms");
    REFUSE(table, itl_y[5], "decode_ms");
    struct step_params fixed = {.form = STEP_FIXED};
    REFUSE(fixed, fixed_prefill_ms, "fixed_prefill_ms");
    REFUSE(fixed, fixed_decode_ms, "fixed_decode_ms");
    struct step_params p = dynosim;
    p.da = NAN;
    refuse(p, "da");
    p.da = -1.1e9;
    refuse(p, "da");
    p = llama;
    p.form = (enum step_form)9;
    refuse(p, "form");
    p = llama;
    p.itl_y[0] = NAN; /* nobody looks at another form's numbers */
    p.pa = INFINITY;
    make(&p);
}

static void bad_experts_and_drafts(void **state)
{
    (void)state;
    struct step_params p = llama;
    p.moe_experts = 8;
    refuse(p, "moe_active");
    p.moe_active = 9;
    refuse(p, "moe_active");
    p.moe_active = 8;
    make(&p);
    p.moe_w_share = 1.01;
    refuse(p, "moe_w_share");
    p = llama;
    p.spec_gamma = STEP_SPEC_MAX;
    make(&p);
    p.spec_accept[STEP_SPEC_MAX - 1] = 1.5;
    refuse(p, "spec_accept");
    p.spec_accept[STEP_SPEC_MAX - 1] = -0.5;
    refuse(p, "spec_accept");
    p.spec_gamma = STEP_SPEC_MAX - 1; /* not one of them */
    make(&p);
    p.spec_gamma = STEP_SPEC_MAX + 1;
    refuse(p, "spec_gamma");
}

static void bad_tables(void **state)
{
    (void)state;
    struct step_params p = table;
    p.n_prefill = 0;
    refuse(p, "prefill_tok");
    p.n_prefill = STEP_TABLE_MAX + 1;
    refuse(p, "prefill_tok");
    p = table;
    p.n_kv = 0;
    refuse(p, "decode_kv_tok");
    p = table;
    p.n_ctx = STEP_TABLE_MAX + 1;
    refuse(p, "decode_ctx_tok");
    p = table;
    p.prefill_x[1] = p.prefill_x[0];
    refuse(p, "prefill_tok");
    p = table;
    p.kv_x[1] = 10;
    refuse(p, "decode_kv_tok");
    p = table;
    p.ctx_x[2] = NAN;
    refuse(p, "decode_ctx_tok");
    p = table;
    p.ctx_x[0] = -1;
    refuse(p, "decode_ctx_tok");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_formula),
        cmocka_unit_test(decode_grows_exactly),
        cmocka_unit_test(empty_batch_takes_no_time),
        cmocka_unit_test(experts_are_read_for_the_ranks_beside),
        cmocka_unit_test(floor_hides_short_prefills),
        cmocka_unit_test(mixed_steps_read_kv_at_another_price),
        cmocka_unit_test(experts_read_grow_with_the_batch),
        cmocka_unit_test(powers_have_the_same_bits_everywhere),
        cmocka_unit_test(verification_costs_its_tokens),
        cmocka_unit_test(experts_see_drafts),
        cmocka_unit_test(polynomial_points),
        cmocka_unit_test(polynomial_ends),
        cmocka_unit_test(fixed_parts),
        cmocka_unit_test(table_hits_its_points),
        cmocka_unit_test(table_between_and_beyond),
        cmocka_unit_test(table_of_one_point),
        cmocka_unit_test(full_table),
        cmocka_unit_test(scale_multiplies_everything),
        cmocka_unit_test(nothing_takes_longer_than_the_limit),
        cmocka_unit_test(tokens_of_a_speculative_step),
        cmocka_unit_test(bad_numbers),
        cmocka_unit_test(bad_experts_and_drafts),
        cmocka_unit_test(bad_tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
