/* gen.c - see gen.h. Fixed point throughout: Q32 means a value times 2^32. */
#include "controller/replay/gen.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "predictor/rng.h"
#include "predictor/units.h"

#define COMMAND "gen"

#define Q32 (UINT64_C(1) << 32)
#define LN2_Q32 UINT64_C(2977044472)   /* ln 2 */
#define LOG2E_Q32 UINT64_C(6196328019) /* 1 / ln 2 */
#define EXP2_STEPS 32
#define ROW_BYTES 256 /* of a row without its ids */

/* ---- integer mathematics ---------------------------------------------------------------------- */

/* log2(x / 2^64) for x > 0, negative, Q32. Bits by repeated squaring. */
static int64_t log2_unit_q32(uint64_t x)
{
    int shift = __builtin_clzll(x);
    uint64_t m = x << shift; /* [1, 2) as Q63 */
    int64_t out = -(int64_t)(shift + 1) * (int64_t)Q32;
    for (int i = 31; i >= 0; i--) {
        unsigned __int128 sq = (unsigned __int128)m * m; /* Q126 in [1, 4) */
        if (sq >> 127) {
            out += INT64_C(1) << i;
            m = (uint64_t)(sq >> 64);
        } else {
            m = (uint64_t)(sq >> 63);
        }
    }
    return out;
}

static uint64_t isqrt128(unsigned __int128 v)
{
    uint64_t r = 0;
    for (int b = 63; b >= 0; b--) {
        uint64_t c = r | UINT64_C(1) << b;
        if ((unsigned __int128)c * c <= v)
            r = c;
    }
    return r;
}

/* 2^(f / 2^32) for f < 2^32 as Q32, from roots[i] = 2^(2^-(i+1)) in Q62. */
static uint64_t exp2_q32(const uint64_t *roots, uint32_t f)
{
    uint64_t r = UINT64_C(1) << 62;
    for (int i = 0; i < EXP2_STEPS; i++)
        if (f >> (31 - i) & 1)
            r = (uint64_t)(((unsigned __int128)r * roots[i]) >> 62);
    return r >> 30;
}

/* Unit exponential, Q32. */
static uint64_t draw_exp(struct rng *g)
{
    uint64_t u = rng_u64(g);
    uint64_t l = (uint64_t)-log2_unit_q32(u ? u : 1);
    return (uint64_t)(((unsigned __int128)l * LN2_Q32) >> 32);
}

/* Standard normal, Q32: Marsaglia's polar method. */
static int64_t draw_normal(struct rng *g)
{
    for (;;) {
        int64_t a = (int64_t)(rng_u64(g) >> 32) - (INT64_C(1) << 31); /* Q31 in [-1, 1) */
        int64_t b = (int64_t)(rng_u64(g) >> 32) - (INT64_C(1) << 31);
        uint64_t s = (uint64_t)(a * a) + (uint64_t)(b * b); /* Q62 */
        if (!s || s >= UINT64_C(1) << 62)
            continue;
        uint64_t l = (uint64_t)-log2_unit_q32(s << 2);
        uint64_t ln = (uint64_t)(((unsigned __int128)l * LN2_Q32) >> 32); /* -ln s, Q32 */
        unsigned __int128 ratio = ((unsigned __int128)ln * 2 << 92) / s;  /* -2 ln s / s, Q62 */
        /* (-2 ln s) < 2^7, s >= 2^-62: the ratio needs 69 + 62 bits at worst; such an s is redrawn */
        if (s < UINT64_C(1) << 12)
            continue;
        int64_t f = (int64_t)isqrt128(ratio); /* Q31 */
        return (int64_t)((__int128)a * f >> 30);
    }
}

/* sin(2 pi t / day) in Q32. */
static int64_t wave_q32(uint64_t t, uint64_t day)
{
    uint64_t phase = (uint64_t)(((unsigned __int128)(t % day) << 33) / day); /* half waves, Q32 */
    uint64_t x = phase & (Q32 - 1);
    uint64_t y = (uint64_t)(((unsigned __int128)x * (Q32 - x)) >> 32); /* x (1 - x) */
    int64_t s = (int64_t)(((unsigned __int128)y * 16 << 32) / (5 * Q32 - 4 * y));
    return phase >= Q32 ? -s : s;
}

/* ---- the generator ----------------------------------------------------------------------------- */

/* The session (or lone request) that is being written, at its next turn. */
struct turn {
    uint64_t session; /* 0: lone request */
    uint32_t tenant, group;
    bool follows;
    uint64_t delay_ms, thought_ms; /* before this turn; before all turns so far */
    uint32_t history_tok;          /* previous prompt + answer */
    uint32_t n_ids;                /* in gen.ids: of the history's whole blocks */
};

struct gen {
    const struct gen_options *opt;
    struct rng arrivals, shape; /* apart, so that one option does not shift the other's draws */
    uint64_t roots[EXP2_STEPS];
    uint64_t mean_ps; /* between session starts */
    uint64_t now_ps, end_ps;
    bool bursting;
    uint64_t dwell_left_ps;
    uint64_t starts;
    uint64_t *tenant_cum, *group_cum; /* running sums of Zipf weights */
    uint64_t *prefix_ids;             /* first id of each group */
    uint64_t next_id, next_session, rows;
    uint64_t *ids;
    uint64_t ids_cap;
    char *buf;
    size_t len, cap;
    FILE *out;
    char *error;
};

static int out_of_memory(struct gen *g)
{
    snprintf(g->error, GEN_ERROR_BYTES, "out of memory");
    return WEIR_E_NOMEM;
}

static uint64_t scaled(uint64_t a, uint64_t q32)
{
    unsigned __int128 v = ((unsigned __int128)a * q32) >> 32;
    return v > INT64_MAX / 4 ? INT64_MAX / 4 : (uint64_t)v;
}

static uint64_t to_q32(double x)
{
    return (uint64_t)(x * 0x1p32);
}

static uint32_t draw_length(struct gen *g, const struct gen_length *l, uint32_t most)
{
    uint64_t v = to_q32(l->median_tok);
    if (l->sigma > 0) {
        int64_t z = draw_normal(&g->shape);
        __int128 e = (__int128)z * (int64_t)to_q32(l->sigma) >> 32; /* Q32, natural */
        e = e * (int64_t)LOG2E_Q32 >> 32;
        int64_t whole = (int64_t)(e >> 32);
        if (whole > 30)
            whole = 30;
        if (whole < -60)
            whole = -60;
        unsigned __int128 p = (unsigned __int128)v * exp2_q32(g->roots, (uint32_t)e) >> 32;
        p = whole >= 0 ? p << whole : p >> -whole;
        v = p > UINT64_MAX / 2 ? UINT64_MAX / 2 : (uint64_t)p;
    }
    v = (v + Q32 / 2) >> 32;
    return v < 1 ? 1 : v > most ? most : (uint32_t)v;
}

/* Index by weights 1/1, 1/2, 1/3 ... */
static uint32_t draw_zipf(struct rng *r, const uint64_t *cum, uint32_t n)
{
    uint64_t x = rng_below(r, cum[n - 1]);
    uint32_t low = 0, high = n - 1;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (cum[mid] > x)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static uint64_t *zipf_new(uint32_t n)
{
    uint64_t *cum = malloc((size_t)n * sizeof *cum), sum = 0;
    for (uint32_t i = 0; cum && i < n; i++)
        cum[i] = sum += (UINT64_C(1) << 40) / (i + 1);
    return cum;
}

/* Time of the next arrival after now, in a process whose rate switches. */
static void next_mmpp(struct gen *g)
{
    const struct gen_options *o = g->opt;
    uint64_t burst_ps = (uint64_t)((double)g->mean_ps / o->burst_factor);
    double calm = (1 - o->burst_share * o->burst_factor) / (1 - o->burst_share);
    uint64_t calm_ps = calm > 1e-9 ? (uint64_t)((double)g->mean_ps / calm) : UINT64_MAX / 4;
    uint64_t dwell_ps = (uint64_t)(o->burst_dwell_s * 1e12);
    uint64_t pause_ps = (uint64_t)((double)dwell_ps * ((1 - o->burst_share) / o->burst_share));
    uint64_t unit = draw_exp(&g->arrivals); /* of the integrated rate still to pass */
    for (;;) {
        uint64_t mean = g->bursting ? burst_ps : calm_ps, wait = scaled(mean, unit);
        if (wait < g->dwell_left_ps) {
            g->dwell_left_ps -= wait;
            g->now_ps += wait;
            return;
        }
        if (g->now_ps > g->end_ps)
            return;
        unit -= (uint64_t)(((unsigned __int128)g->dwell_left_ps << 32) / mean);
        g->now_ps += g->dwell_left_ps;
        g->bursting = !g->bursting;
        g->dwell_left_ps = scaled(g->bursting ? dwell_ps : pause_ps, draw_exp(&g->arrivals)) + 1;
    }
}

static void next_diurnal(struct gen *g)
{
    uint64_t amplitude = to_q32(g->opt->day_amplitude),
             day = (uint64_t)(g->opt->day_minutes * 60e12);
    uint64_t fastest = (uint64_t)((double)g->mean_ps / (1 + g->opt->day_amplitude));
    do { /* thinning */
        g->now_ps += scaled(fastest, draw_exp(&g->arrivals));
        int64_t rate =
            (int64_t)Q32 + (int64_t)((__int128)wave_q32(g->now_ps, day) * (int64_t)amplitude >> 32);
        if ((int64_t)rng_below(&g->arrivals, Q32 + amplitude) < rate)
            return;
    } while (g->now_ps <= g->end_ps);
}

static void next_arrival(struct gen *g)
{
    switch (g->opt->arrivals) {
    case GEN_CONSTANT: g->now_ps = g->starts * g->mean_ps; break;
    case GEN_POISSON: g->now_ps += scaled(g->mean_ps, draw_exp(&g->arrivals)); break;
    case GEN_MMPP: next_mmpp(g); break;
    case GEN_DIURNAL: next_diurnal(g); break;
    }
    g->starts++;
}

/* ---- rows ------------------------------------------------------------------------------------------ */

static void put(struct gen *g, const char *s)
{
    size_t n = strlen(s);
    memcpy(g->buf + g->len, s, n);
    g->len += n;
}

static void put_uint(struct gen *g, uint64_t v)
{
    char d[20];
    int n = 0;
    do
        d[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n)
        g->buf[g->len++] = d[--n];
}

static int row_reserve(struct gen *g, uint64_t n_ids)
{
    size_t want = ROW_BYTES + (size_t)n_ids * 22;
    if (want <= g->cap)
        return 0;
    char *p = realloc(g->buf, want * 2);
    if (!p)
        return out_of_memory(g);
    g->buf = p;
    g->cap = want * 2;
    return 0;
}

/* Whole blocks of [0, tok) get ids that stay; g->ids grows to them. */
static int extend_ids(struct gen *g, struct turn *t, uint64_t tok)
{
    uint64_t n = tok / g->opt->block_tok;
    if (n > g->ids_cap) {
        uint64_t cap = g->ids_cap ? g->ids_cap : 256;
        while (cap < n)
            cap *= 2;
        uint64_t *p = realloc(g->ids, cap * sizeof *p);
        if (!p)
            return out_of_memory(g);
        g->ids = p;
        g->ids_cap = cap;
    }
    uint32_t shared = g->opt->prefix_groups ? g->opt->prefix_tok / g->opt->block_tok : 0;
    for (; t->n_ids < n; t->n_ids++)
        g->ids[t->n_ids] = t->n_ids < shared ? g->prefix_ids[t->group] + t->n_ids : g->next_id++;
    return 0;
}

static int put_row(struct gen *g, struct turn *t, uint32_t input, uint32_t output)
{
    bool fresh = g->opt->delta && t->follows; /* only the new input */
    uint32_t shown = fresh ? input : t->history_tok + input;
    uint32_t bt = g->opt->block_tok, blocks = (shown + bt - 1) / bt;
    int rc = row_reserve(g, blocks);
    if (!rc && !fresh)
        rc = extend_ids(g, t, shown);
    if (rc)
        return rc;
    g->len = 0;
    put(g, "{");
    if (!t->follows) {
        put(g, "\"timestamp\": ");
        put_uint(g, g->now_ps / PS_PER_MS);
        put(g, ", ");
    }
    put(g, "\"input_length\": ");
    put_uint(g, shown);
    put(g, ", \"output_length\": ");
    put_uint(g, output);
    put(g, ", \"hash_ids\": [");
    for (uint32_t i = 0; i < blocks; i++) {
        if (i)
            put(g, ", ");
        put_uint(g, !fresh && i < t->n_ids ? g->ids[i] : g->next_id++);
    }
    put(g, "]");
    if (t->session) {
        put(g, ", \"session_id\": \"s");
        put_uint(g, t->session);
        put(g, "\"");
    }
    if (t->follows) {
        put(g, ", \"delay\": ");
        put_uint(g, t->delay_ms);
    }
    if (g->opt->tenants) {
        put(g, ", \"tenant\": \"t");
        put_uint(g, t->tenant);
        put(g, "\"");
    }
    put(g, "}\n");
    assert(g->len <= g->cap);
    g->rows++;
    if (fwrite(g->buf, 1, g->len, g->out) == g->len)
        return 0;
    snprintf(g->error, GEN_ERROR_BYTES, "writing failed: %s", strerror(errno));
    return WEIR_E_IO;
}

/* Writes one turn. *ends: the session has no other. */
static int put_turn(struct gen *g, struct turn *t, bool *ends)
{
    const struct gen_options *o = g->opt;
    uint32_t room = o->max_context_tok - t->history_tok; /* >= 2 */
    uint32_t prefix = t->follows || !o->prefix_groups ? 0 : o->prefix_tok;
    uint32_t input = prefix + draw_length(g, &o->input, room - 1 - prefix);
    uint32_t output = draw_length(g, &o->output, room - input);
    int rc = put_row(g, t, input, output);
    uint64_t more = rng_u64(&g->shape) >> 32, think = draw_exp(&g->shape);
    t->follows = true;
    t->history_tok += input + output;
    t->delay_ms = scaled((uint64_t)(o->think_s * 1e3), think);
    t->thought_ms += t->delay_ms;
    *ends = !t->session || more >= to_q32(1 - 1 / o->turns_mean) ||
            o->max_context_tok - t->history_tok < 2 ||
            g->now_ps / PS_PER_MS + t->thought_ms > g->end_ps / PS_PER_MS;
    return rc;
}

/* Writes a session whole, so that each of its turns is known when the one before it ends. */
static int put_session(struct gen *g)
{
    const struct gen_options *o = g->opt;
    struct turn t = {.session = 0};
    bool ends = false;
    int rc = 0;
    if (o->turns_mean > 1)
        t.session = ++g->next_session;
    if (o->tenants)
        t.tenant = draw_zipf(&g->shape, g->tenant_cum, o->tenants);
    if (o->prefix_groups)
        t.group = o->tenants ? t.tenant % o->prefix_groups
                             : draw_zipf(&g->shape, g->group_cum, o->prefix_groups);
    while (!rc && !ends && (!o->requests || g->rows < o->requests))
        rc = put_turn(g, &t, &ends);
    return rc;
}

static int invalid(char *error, const char *what)
{
    snprintf(error, GEN_ERROR_BYTES, "%s", what);
    return WEIR_E_INVALID;
}

static bool within(double x, double low, double high)
{
    return x >= low && x <= high; /* false for NaN */
}

static int check_lengths(const struct gen_options *o, char *error)
{
    if (o->block_tok < 1 || o->block_tok > GEN_CONTEXT_MAX)
        return invalid(error, "--block-size: expected 1 to 16777216 tokens");
    if (o->max_context_tok < 2 || o->max_context_tok > GEN_CONTEXT_MAX)
        return invalid(error, "--max-context: expected 2 to 16777216 tokens");
    if (!within(o->input.median_tok, 1, GEN_CONTEXT_MAX) || !within(o->input.sigma, 0, 8))
        return invalid(error,
                       "--input: expected a median of 1 to 16777216 tokens and a sigma of 0 to 8");
    if (!within(o->output.median_tok, 1, GEN_CONTEXT_MAX) || !within(o->output.sigma, 0, 8))
        return invalid(error,
                       "--output: expected a median of 1 to 16777216 tokens and a sigma of 0 to 8");
    if (o->prefix_groups > GEN_PREFIX_GROUPS_MAX || (o->prefix_groups && !o->prefix_tok))
        return invalid(error,
                       "--shared-prefix: expected 1 to 100000 groups and a length of 1 or more");
    if (o->prefix_groups && o->prefix_tok > o->max_context_tok - 2)
        return invalid(error,
                       "--shared-prefix: expected a length that leaves room for input and output "
                       "within --max-context");
    return 0;
}

static int check(const struct gen_options *o, char *error)
{
    if (!within(o->rate, 1e-6, 1e6))
        return invalid(error, "--rate: expected 0.000001 to 1000000 requests a second");
    if ((o->minutes != 0) == (o->requests != 0))
        return invalid(error, "expected either --minutes or --requests, to know when to stop");
    if (o->minutes != 0 && !within(o->minutes, 1e-6, 70000))
        return invalid(error, "--minutes: expected more than 0 and at most 70000");
    if (!within(o->turns_mean, 1, 1e6) || !within(o->think_s, 0, 1e6))
        return invalid(error,
                       "--sessions: expected a mean of 1 to 1000000 turns and a think time of 0 to "
                       "1000000 seconds");
    if (o->tenants > GEN_TENANTS_MAX)
        return invalid(error, "--tenants: expected at most 100000");
    if (o->arrivals == GEN_MMPP &&
        (!within(o->burst_factor, 1, 1e6) || !within(o->burst_share, 1e-6, 0.999999) ||
         !within(o->burst_dwell_s, 1e-6, 1e6) || o->burst_factor * o->burst_share > 1))
        return invalid(error,
                       "--burst: expected FACTOR >= 1, 0 < SHARE < 1 with FACTOR * SHARE <= 1, and "
                       "a dwell time of more than 0 seconds");
    if (o->arrivals == GEN_DIURNAL &&
        (!within(o->day_minutes, 1e-3, 1e6) || !within(o->day_amplitude, 0, 1)))
        return invalid(error, "--day: expected more than 0 minutes and an amplitude of 0 to 1");
    return check_lengths(o, error);
}

static int setup(struct gen *g)
{
    const struct gen_options *o = g->opt;
    rng_init(&g->arrivals, rng_mix64(o->seed));
    rng_init(&g->shape, rng_mix64(o->seed ^ UINT64_C(0x7368617065)));
    uint64_t r = UINT64_C(1) << 63; /* 2 in Q62 */
    for (int i = 0; i < EXP2_STEPS; i++)
        g->roots[i] = r = isqrt128((unsigned __int128)r << 62);
    g->mean_ps = (uint64_t)(1e12 / o->rate * o->turns_mean);
    g->end_ps = o->requests ? (uint64_t)PS_LIMIT : (uint64_t)(o->minutes * 60e12);
    g->dwell_left_ps = 0;
    g->bursting = true; /* a calm stretch is drawn first */
    if (o->tenants)
        g->tenant_cum = zipf_new(o->tenants);
    if (o->prefix_groups) {
        g->group_cum = zipf_new(o->prefix_groups);
        g->prefix_ids = malloc((size_t)o->prefix_groups * sizeof *g->prefix_ids);
    }
    if ((o->tenants && !g->tenant_cum) || (o->prefix_groups && (!g->group_cum || !g->prefix_ids)))
        return out_of_memory(g);
    for (uint32_t i = 0; i < o->prefix_groups; i++, g->next_id += o->prefix_tok / o->block_tok)
        g->prefix_ids[i] = g->next_id;
    return 0;
}

static int run(struct gen *g)
{
    int rc = 0;
    for (next_arrival(g);
         !rc && g->now_ps <= g->end_ps && (!g->opt->requests || g->rows < g->opt->requests);
         next_arrival(g))
        rc = put_session(g);
    if (rc)
        return rc;
    if (g->opt->requests && g->rows < g->opt->requests) {
        snprintf(g->error, GEN_ERROR_BYTES, "only %llu requests fit into 53 days; raise --rate",
                 (unsigned long long)g->rows);
        return WEIR_E_LIMIT;
    }
    if (!g->rows) {
        snprintf(g->error, GEN_ERROR_BYTES,
                 "no request comes in that time; raise --rate or --minutes, or lower the turns of "
                 "--sessions");
        return WEIR_E_LIMIT;
    }
    if (fflush(g->out) == 0)
        return 0;
    snprintf(g->error, GEN_ERROR_BYTES, "writing failed: %s", strerror(errno));
    return WEIR_E_IO;
}

void gen_defaults(struct gen_options *opt)
{
    *opt = (struct gen_options){
        .rate = 1,
        .burst_factor = 4,
        .burst_share = 0.1,
        .burst_dwell_s = 10,
        .day_minutes = 1440,
        .day_amplitude = 0.5,
        .turns_mean = 1,
        .think_s = 30,
        .input = {1024, 1.0},
        .output = {200, 0.8},
        .max_context_tok = 131072,
        .block_tok = 512,
    };
}

int gen_run(const struct gen_options *opt, FILE *out, char *error)
{
    int rc = check(opt, error);
    if (rc)
        return rc;
    struct gen g = {.opt = opt, .out = out, .error = error};
    rc = setup(&g);
    if (!rc)
        rc = run(&g);
    free(g.ids);
    free(g.tenant_cum);
    free(g.group_cum);
    free(g.prefix_ids);
    free(g.buf);
    return rc;
}

/* ---- command line ------------------------------------------------------------------------------------ */

static const char help[] =
    "usage: weir gen --rate R (--minutes M | --requests N) [options] > trace.jsonl\n"
    "\n"
    "Writes a synthetic trace as Mooncake JSONL. Same options, same bytes, on every machine.\n"
    "\n"
    "How many, and when\n"
    "  --rate R               mean requests a second, later turns included (1)\n"
    "  --minutes M            stop after this much time (turns that think times alone put behind it\n"
    "                         are left out), or\n"
    "  --requests N           stop after so many requests\n"
    "  --arrivals KIND        poisson, constant, mmpp (bursts) or diurnal (poisson)\n"
    "  --burst F,SHARE,DWELL  mmpp: rate in bursts over mean rate, share of time in bursts, mean\n"
    "                         seconds of one (4,0.1,10)\n"
    "  --day MINUTES,AMPL     diurnal: length of a day, amplitude 0..1 around the mean (1440,0.5)\n"
    "  --seed N               (0)\n"
    "\n"
    "Who, and what\n"
    "  --tenants N            tenants with Zipf shares, in the field tenant (none)\n"
    "  --sessions TURNS,THINK mean turns of a session (geometric) and mean seconds from an answer to\n"
    "                         the next turn (1,30: no sessions)\n"
    "  --shared-prefix G,TOK  G groups (by tenant if there are any) whose prompts start with the same\n"
    "                         TOK tokens, in whole blocks (none)\n"
    "  --input DIST           tokens of a turn's own input: lognormal:MEDIAN,SIGMA or fixed:N\n"
    "                         (lognormal:1024,1.0)\n"
    "  --output DIST          tokens of an answer (lognormal:200,0.8)\n"
    "  --max-context N        longest prompt and answer together; longer ones are cut and sessions end\n"
    "                         there (131072)\n"
    "\n"
    "Format\n"
    "  --block-size N         tokens that one hash_id covers (512)\n"
    "  --format F             mooncake: each turn repeats the history; mooncake-delta: each brings\n"
    "                         its new input, and answers are reused too (mooncake)\n"
    "  -h, --help\n"
    "\n"
    "Example: one busy hour of chat with system prompts, four turns a conversation\n"
    "  weir gen --rate 12 --minutes 60 --sessions 4,45 --shared-prefix 20,2048 --tenants 50 > chat.jsonl\n";

static bool whole32(const char *text, uint32_t *out)
{
    uint64_t v = 0;
    bool ok = cli_whole(text, 0, UINT32_MAX, &v);
    *out = (uint32_t)v;
    return ok;
}

static bool length(const char *text, struct gen_length *out)
{
    double d[2];
    if (!strncmp(text, "lognormal:", 10) && cli_reals(text + 10, d, 2)) {
        *out = (struct gen_length){d[0], d[1]};
        return true;
    }
    if (!strncmp(text, "fixed:", 6))
        text += 6;
    uint32_t n;
    bool ok = whole32(text, &n);
    *out = (struct gen_length){n, 0};
    return ok;
}

static bool arrivals(const char *text, enum gen_arrivals *out)
{
    static const char *const names[] = {"poisson", "constant", "mmpp", "diurnal"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!strcmp(text, names[i])) {
            *out = (enum gen_arrivals)i;
            return true;
        }
    }
    return false;
}

enum {
    OPT_RATE = 256,
    OPT_MINUTES,
    OPT_REQUESTS,
    OPT_SEED,
    OPT_ARRIVALS,
    OPT_BURST,
    OPT_DAY,
    OPT_TENANTS,
    OPT_SESSIONS,
    OPT_PREFIX,
    OPT_INPUT,
    OPT_OUTPUT,
    OPT_CONTEXT,
    OPT_BLOCK,
    OPT_FORMAT
};

static const struct option long_options[] = {
    {"rate", required_argument, NULL, OPT_RATE},
    {"minutes", required_argument, NULL, OPT_MINUTES},
    {"requests", required_argument, NULL, OPT_REQUESTS},
    {"seed", required_argument, NULL, OPT_SEED},
    {"arrivals", required_argument, NULL, OPT_ARRIVALS},
    {"burst", required_argument, NULL, OPT_BURST},
    {"day", required_argument, NULL, OPT_DAY},
    {"tenants", required_argument, NULL, OPT_TENANTS},
    {"sessions", required_argument, NULL, OPT_SESSIONS},
    {"shared-prefix", required_argument, NULL, OPT_PREFIX},
    {"input", required_argument, NULL, OPT_INPUT},
    {"output", required_argument, NULL, OPT_OUTPUT},
    {"max-context", required_argument, NULL, OPT_CONTEXT},
    {"block-size", required_argument, NULL, OPT_BLOCK},
    {"format", required_argument, NULL, OPT_FORMAT},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* NULL: taken; else what was expected. */
static const char *take_option(struct gen_options *o, int c, const char *arg)
{
    double d[3] = {0};
    switch (c) {
    case OPT_RATE: return cli_reals(arg, &o->rate, 1) ? NULL : "requests a second, as 12 or 0.5";
    case OPT_MINUTES: return cli_reals(arg, &o->minutes, 1) ? NULL : "minutes, as 60 or 0.5";
    case OPT_REQUESTS:
        return cli_whole(arg, 0, UINT64_MAX, &o->requests) && o->requests
                   ? NULL
                   : "a whole number, 1 or more";
    case OPT_SEED:
        return cli_whole(arg, 0, UINT64_MAX, &o->seed) ? NULL : "a whole number of 64 bits";
    case OPT_ARRIVALS:
        return arrivals(arg, &o->arrivals) ? NULL : "poisson, constant, mmpp or diurnal";
    case OPT_BURST:
        if (!cli_reals(arg, d, 3))
            return "FACTOR,SHARE,DWELL, as 4,0.1,10";
        o->burst_factor = d[0], o->burst_share = d[1], o->burst_dwell_s = d[2];
        return NULL;
    case OPT_DAY:
        if (!cli_reals(arg, d, 2))
            return "MINUTES,AMPLITUDE, as 1440,0.5";
        o->day_minutes = d[0], o->day_amplitude = d[1];
        return NULL;
    case OPT_TENANTS: return whole32(arg, &o->tenants) ? NULL : "a whole number";
    case OPT_SESSIONS:
        if (!cli_reals(arg, d, 2))
            return "TURNS,THINK, as 4,30";
        o->turns_mean = d[0], o->think_s = d[1];
        return NULL;
    case OPT_PREFIX:
        if (!cli_reals(arg, d, 2) || !within(d[0], 1, GEN_PREFIX_GROUPS_MAX) ||
            !within(d[1], 1, GEN_CONTEXT_MAX))
            return "GROUPS,TOKENS, as 20,2048";
        o->prefix_groups = (uint32_t)d[0], o->prefix_tok = (uint32_t)d[1];
        return NULL;
    case OPT_INPUT: return length(arg, &o->input) ? NULL : "lognormal:MEDIAN,SIGMA or fixed:N";
    case OPT_OUTPUT: return length(arg, &o->output) ? NULL : "lognormal:MEDIAN,SIGMA or fixed:N";
    case OPT_CONTEXT: return whole32(arg, &o->max_context_tok) ? NULL : "a whole number of tokens";
    case OPT_BLOCK: return whole32(arg, &o->block_tok) ? NULL : "a whole number of tokens";
    case OPT_FORMAT:
        o->delta = !strcmp(arg, "mooncake-delta");
        return o->delta || !strcmp(arg, "mooncake") ? NULL : "mooncake or mooncake-delta";
    default: assert(false); return "";
    }
}

static int parse(struct gen_options *o, int argc, char **argv, bool *helped)
{
    int c, index = 0;
    cli_start();
    while ((c = getopt_long(argc, argv, ":h", long_options, &index)) != -1) {
        if (c == 'h') {
            *helped = true;
            (void)fputs(help, stdout);
            return 0;
        }
        if (c == '?' || c == ':')
            return cli_bad_option(COMMAND, long_options, argv, c);
        const char *expected = take_option(o, c, optarg);
        if (expected)
            return cli_fail(COMMAND, "--%s: expected %s, found '%.60s'", long_options[index].name,
                            expected, optarg);
    }
    if (optind < argc)
        return cli_fail(COMMAND,
                        "expected only options, found '%.60s'; the trace goes to standard output",
                        argv[optind]);
    return 0;
}

int gen_main(int argc, char **argv)
{
    struct gen_options o;
    char error[GEN_ERROR_BYTES];
    bool helped = false;
    gen_defaults(&o);
    int rc = parse(&o, argc, argv, &helped);
    if (rc || helped)
        return cli_finish(COMMAND, rc);
    if (gen_run(&o, stdout, error))
        return cli_fail(COMMAND, "%s", error);
    return 0;
}
