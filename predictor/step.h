/* step.h - how long one iteration of an engine takes. One call, several forms behind it.
 *
 * All forms see the same description of a batch. Results are whole picoseconds, computed with
 * integer arithmetic or with plain IEEE double operations in a fixed order (no libm, no fused
 * multiply-add), so that every machine gets the same bits.
 */
#ifndef WEIR_STEP_H
#define WEIR_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "predictor/error.h"

/* What one iteration works on. Decode requests feed one token each (times gamma+1 when
 * speculating); prefill chunks feed n_i tokens on c_i already computed ones. */
struct step_batch {
    uint32_t decode_reqs;     /* B: requests that generate in this step */
    uint64_t decode_ctx_tok;  /* K: sum of their context lengths (KV tokens read) */
    uint32_t prefill_reqs;    /* chunks in the batch */
    uint64_t prefill_tok;     /* sum n_i */
    uint64_t prefill_ctx_tok; /* sum c_i: tokens before each chunk (cached or computed earlier) */
    uint64_t
        prefill_attn; /* sum over chunks of n_i*c_i + n_i*n_i/2, in token^2, doubled: 2*n*c + n*n */
    uint64_t
        active_kv_tok; /* polynomial form: KV tokens in use (whole blocks or logical: caller's choice) */
    uint64_t total_kv_tok; /* capacity in tokens */
    uint64_t peer_tok; /* tokens of data-parallel ranks beside this one, which share its experts */
};

enum step_form { STEP_LINEAR, STEP_TABLE, STEP_FIXED, STEP_POLYNOMIAL };

#define STEP_TABLE_MAX 64 /* points per axis of a table */
#define STEP_SPEC_MAX 16  /* speculative tokens per step */
#define STEP_MAX_MS 1e9   /* every coefficient in ms */
#define STEP_MAX_TOK 1e15 /* every point on a table's axis */
#define STEP_MAX_SCALE 1e6
/* Longest pass: an hour. What comes out longer is cut to that, so that sums of a thousand passes stay inside
 * 64 bits however absurd the coefficients. */
#define STEP_MAX_PS (INT64_C(3600) * 1000000000000)

/* Coefficients as users write them (milliseconds, tokens). Zero-initialise, fill, step_model_init. */
struct step_params {
    enum step_form form;
    /* linear: T = W + d0*B + k*K + p*sum(n) + q*sum(n*(c + n/2)); DESIGN 4, engine-model.md 3.1 */
    double w_ms, d0_ms_per_req, k_ms_per_tok, p_ms_per_tok, q_ms_per_tok2;
    /* prefill work P = p*.. + q*.. adds max(0, P - floor): what is shorter hides under W, which is bound by
     * memory; with floor = W a prefill takes max(W, P), the roofline (engine-model.md 3.1). 0: off */
    double prefill_floor_ms;
    /* a step that also prefills reads each decoding request's KV token with the prefill's kernels, which take this
     * much longer for it than k; 0: no difference (bench/fidelity) */
    double mix_ms_per_tok;
    /* MoE: of w_ms, the experts' share is scaled by how many of them the tokens touch (those of all ranks that
     * share them), 1 - (1 - active/experts)^tokens (engine-model.md 3.1); 0 experts: off */
    uint32_t moe_experts, moe_active;
    double moe_w_share; /* share of w_ms that is expert weights, 0..1 */
    /* speculative decoding: gamma draft tokens, chance that position i is accepted given i-1 was. A pass with
     * decoding requests verifies gamma + 1 tokens of each (engine-model.md 3.1): linear, d0 for the first and
     * the dearer of d0 and p for each draft, as a fit may have put a token's cost into either; other forms take
     * the pass as it is, as DynoSim does. Drafting adds gamma * spec_draft_ms in all forms. */
    uint32_t spec_gamma;
    double spec_accept[STEP_SPEC_MAX];
    double spec_draft_ms; /* cost of one draft token for the batch */
    /* fixed */
    double fixed_prefill_ms, fixed_decode_ms;
    /* polynomial (DynoSim): prefill(T) = pa*T^2 + pb*T + pc, decode(u) = max(1, da*u^2 + db*u + dc) */
    double pa, pb, pc, da, db, dc;
    /* table: piecewise linear in each axis, extrapolating from the last two points (DynoSim's NPZ form):
     * prefill_ms over new tokens; itl over (active_kv_tok, mean context) */
    uint32_t n_prefill, n_kv, n_ctx;
    double prefill_x[STEP_TABLE_MAX], prefill_y[STEP_TABLE_MAX];
    double kv_x[STEP_TABLE_MAX], ctx_x[STEP_TABLE_MAX], itl_y[STEP_TABLE_MAX * STEP_TABLE_MAX];
    /* how a measured system is scaled: multiplies every time (1 = as measured) */
    double scale; /* 0 means 1 */
};

/* Ready-to-run form: integers in ps. Plain data: copy freely, nothing to own. Small, because every engine
 * and every clone of one carries it; so a table, which is not, stays where the caller has it. */
struct step_model {
    enum step_form form;
    bool additive;             /* prefill and decode parts are added (polynomial, table, fixed) */
    bool linear_decode;        /* decode time is A + k*K exactly: segments have a closed form */
    int64_t w_ps, d0_ps, k_ps; /* linear; per step, per request, per KV token */
    int64_t p_fs,
        q_as2; /* linear: p in 2^-10 ps per token, q in 2^-20 ps per token^2 (of 2*n*c+n*n halves) */
    int64_t mix_ps;   /* linear: per KV token of decoding requests in a step that prefills */
    int64_t w_moe_ps; /* linear: the part of W that experts make, w_ps without it */
    int64_t floor_ps, verify_ps; /* linear: hidden prefill work; gamma draft tokens of a request */
    int64_t draft_ps;            /* all forms: drafting gamma tokens */
    double moe_miss;             /* chance that a token does not use a given expert */
    double prefill_c[3], decode_c[3], decode_min_ps; /* polynomial, fixed: c0*x^2 + c1*x + c2, ps */
    double ps_per_ms;                                /* scale included */
    uint32_t spec_gamma;
    double spec_chance[STEP_SPEC_MAX]; /* that drafts 0..i are all accepted */
    const struct step_params *table;   /* table: the caller's numbers, borrowed; else NULL */
};

/* Checks and converts. For the table form *p must outlive the model and its copies; for the others it is
 * not needed any more. Returns 0 or WEIR_E_INVALID (negative or not finite coefficient, table axis
 * not strictly increasing, accept outside 0..1, more than the named limits); *why then says which
 * (static text). A negative k, p or q from a fit that did not identify it must be clamped by the
 * caller. */
WEIR_NODISCARD int step_model_init(struct step_model *m, const struct step_params *p,
                                   const char **why);

/* Time of one iteration, ps, >= 1 for a batch that is not empty; 0 for an empty one. */
int64_t step_time_ps(const struct step_model *m, const struct step_batch *b);

/* The two parts of an additive form (engine-model.md 1.3: pass time = prefill + decode); 0 for the linear
 * form, whose parts cannot be told apart. */
int64_t step_prefill_ps(const struct step_model *m, uint32_t reqs, uint64_t new_tok,
                        uint64_t ctx_tok);
int64_t step_decode_ps(const struct step_model *m, uint32_t reqs, uint64_t active_kv_tok,
                       uint64_t ctx_tok, uint64_t total_kv_tok);

/* Times of n iterations that only decode and follow one another from b on: each adds one token to every
 * request's context, and grow_kv_tok to active_kv_tok. The same bits as n calls of step_time_ps. */
void step_decode_run(const struct step_model *m, const struct step_batch *b, uint64_t grow_kv_tok,
                     uint32_t n, int64_t *ps);

/* Expected tokens that one speculative step yields, 1 + a1 + a1*a2 + ... (1 without speculation). */
double step_spec_expected_tok(const struct step_model *m);

/* Tokens a speculative step yields for one request, 1..gamma+1, drawn by u uniform in [0,1). */
uint32_t step_spec_draw_tok(const struct step_model *m, double u);

#endif
