/* sched_sglang.c - SGLang's scheduler (engine-model.md 1.4). The KV pool is counted in pages
 * (block_size tokens); its radix tree is kv.h with shared naming: a page that is cached already is
 * not kept twice.
 *
 *   - A pass either prefills or decodes; prefill goes first whenever something can enter.
 *   - Admission promises each request the tokens it may still generate (clipped), and running ones
 *     a share of theirs, the new-token ratio: it falls from init to min over 600 decode steps and
 *     is back at init after a retraction.
 *   - One prompt at a time may be cut by the chunk budget; it goes on first in the next prefill.
 *   - Short of pages in decode: the request with the fewest generated tokens is retracted (its KV
 *     is lost; prompt pages may be found in the tree again, generated tokens are computed again).
 *
 * A request that is alone is let in whenever it fits, whatever it may still ask for: prompt +
 * output_tok fit (engine_fits), so somebody always gets on.
 */
#include "predictor/engine_internal.h"

#include <stddef.h>

#define INIT_NEW_TOKEN_RATIO 0.7
#define MIN_NEW_TOKEN_RATIO_FACTOR 0.14
#define NEW_TOKEN_RATIO_DECAY_STEPS 600

#define LPM_MAX_WAITING 128          /* more wait: first come, first served */
#define IN_BATCH_CHECK_TOK 32        /* lpm: a request with at most this much cached ... */
#define IN_BATCH_DEPRIORITIZE_TOK 32 /* ... goes last if it shares this much with one before it */

/* What one prefill pass may still take. */
struct budget {
    double reserved_tok;   /* running requests' share of what they may generate */
    uint64_t promised_tok; /* to this pass's requests: a page of slack, what they may generate */
    uint64_t input_tok, chunk_tok;
};

static double init_ratio(const struct engine *e)
{
    double r = INIT_NEW_TOKEN_RATIO * e->c.schedule_conservativeness;
    return r < 1 ? r : 1;
}

static double min_ratio(const struct engine *e)
{
    return init_ratio(e) * MIN_NEW_TOKEN_RATIO_FACTOR;
}

static double new_token_ratio(const struct engine *e)
{
    double init = init_ratio(e), min = min_ratio(e);
    if (e->sgl_decay_steps >= NEW_TOKEN_RATIO_DECAY_STEPS)
        return min;
    double r = init - (init - min) * (double)e->sgl_decay_steps / NEW_TOKEN_RATIO_DECAY_STEPS;
    return r > min ? r : min;
}

static bool decodes(const struct seq *q)
{
    return q->out > 0 && seq_tokens(q) - q->computed == 1;
}

static uint64_t page_ceil(const struct engine *e, uint64_t tok)
{
    return (uint64_t)blocks_for(e, tok) * e->c.block_size;
}

/* Tokens that a request may still generate as far as the server knows, clipped. */
static uint64_t new_tok(const struct engine *e, const struct seq *q)
{
    if (q->flags & ENGINE_PREFILL_ONLY)
        return 0;
    uint64_t limit = (uint64_t)e->kv.usable * e->c.block_size;
    if (e->c.max_model_len && e->c.max_model_len < limit)
        limit = e->c.max_model_len;
    uint32_t out =
        q->spec.max_tokens > q->spec.output_tok ? q->spec.max_tokens : q->spec.output_tok;
    uint64_t total = (uint64_t)q->spec.prompt_tok + out;
    uint64_t left = (total < limit ? total : limit) - seq_tokens(q);
    return left < e->c.clip_max_new_tokens ? left : e->c.clip_max_new_tokens;
}

static uint64_t running_new_tok(const struct engine *e)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        if (decodes(q))
            sum += new_tok(e, q);
    }
    return sum;
}

static double free_tok(const struct engine *e)
{
    return (double)kv_free_blocks(&e->kv) * e->c.block_size;
}

static double rem_total_tok(const struct engine *e, const struct budget *b)
{
    return free_tok(e) - b->reserved_tok - (double)b->promised_tok;
}

/* Pages of a request that can be there before it runs. */
static uint32_t most_pages(const struct engine *e, const struct seq *q)
{
    uint32_t tok = seq_tokens(q) - 1;
    return (tok < q->spec.prompt_tok ? tok : q->spec.prompt_tok) / e->c.block_size;
}

/* Cached pages a waiting request can use: prompt only, and never its last token. One whose KV has come has
 * its pages already. */
static struct kv_match prefix_of(const struct engine *e, const struct seq *q)
{
    if (q->kv_came)
        return (struct kv_match){seq_tokens(q) / e->c.block_size, 0};
    return kv_lookup(&e->kv, &q->spec, most_pages(e, q));
}

/* What admission of q takes out of the pool in the end; cached pages that nobody holds count too.
 * */
static uint64_t admission_tok(const struct engine *e, const struct seq *q, const struct kv_match *m)
{
    uint32_t bs = e->c.block_size;
    return seq_tokens(q) - (uint64_t)(m->blocks - m->free_blocks) * bs + new_tok(e, q) + bs;
}

static void take_pages(struct engine *e, struct seq *q, uint64_t tok)
{
    uint32_t want = blocks_for(e, tok);
    if (want > q->hold.n_blocks)
        kv_take(&e->kv, &q->hold, want - q->hold.n_blocks);
}

/* ---- prefill */

/* n tokens of a sequence join the pass. Returns whether it is through then: all tokens, or all but
 * the last of a retracted one, which is a decode step like any other. */
static bool add_prefill(struct engine *e, struct budget *b, uint32_t slot, uint32_t n)
{
    struct seq *q = &e->seqs[slot];
    uint64_t paged = page_ceil(e, n);
    bool through = q->computed + n + (q->out > 0) >= seq_tokens(q);
    take_pages(e, q, (uint64_t)q->computed + n);
    engine_batch_add(e, slot, n);
    b->input_tok -= paged < b->input_tok ? paged : b->input_tok;
    b->chunk_tok -= paged < b->chunk_tok ? paged : b->chunk_tok;
    b->promised_tok += e->c.block_size + (through ? new_tok(e, q) : 0);
    e->sgl_chunked = through ? ENGINE_NO_SLOT : slot;
    return through;
}

/* The prompt that was cut goes on with what the pool has; it may have to wait for decode to end. */
static void continue_chunked(struct engine *e, struct budget *b)
{
    uint32_t slot = e->sgl_chunked, bs = e->c.block_size;
    const struct seq *q = &e->seqs[slot];
    uint64_t left = seq_tokens(q) - q->computed;
    uint64_t own =
        (uint64_t)q->hold.n_blocks * bs - q->computed; /* more than none: its KV came from a tier */
    double rem = rem_total_tok(e, b);
    uint64_t cap = own + (rem >= bs ? (uint64_t)rem : (uint64_t)kv_free_blocks(&e->kv) * bs);
    if (b->chunk_tok < cap)
        cap = b->chunk_tok < bs ? bs : b->chunk_tok;
    uint64_t room = own + (uint64_t)kv_free_blocks(&e->kv) * bs;
    if (room < cap)
        cap = room;
    uint64_t n = left <= cap ? left : cap / bs * bs;
    if (n)
        add_prefill(e, b, slot, (uint32_t)n);
}

/* Tokens of q's `left` that the chunk budget lets into this pass; the first of a pass gets a page
 * at least. */
static uint32_t first_chunk(const struct engine *e, const struct budget *b, uint32_t left)
{
    uint32_t bs = e->c.block_size;
    if (page_ceil(e, left) <= b->chunk_tok)
        return left;
    uint32_t n = (uint32_t)(b->chunk_tok / bs * bs);
    if (!n && !e->n_batch)
        n = bs;
    return n < left ? n : left;
}

static bool fits(const struct engine *e, const struct budget *b, const struct seq *q,
                 const struct kv_match *m)
{
    if (e->n_running)
        return (double)admission_tok(e, q, m) < rem_total_tok(e, b);
    return q->kv_came ||
           engine_new_blocks(m, blocks_for(e, seq_tokens(q))) <= kv_free_blocks(&e->kv);
}

/* Lets waiting[w] in. Returns whether the next one may be tried. */
static bool admit_one(struct engine *e, struct budget *b, uint32_t w)
{
    uint32_t slot = deque_at(&e->waiting, w);
    struct seq *q = &e->seqs[slot];
    uint32_t tok = seq_tokens(q);
    bool remote = (q->flags & ENGINE_REMOTE_KV) && !q->preempted_before && !q->kv_came;
    struct kv_match m = prefix_of(e, q);
    if (!fits(e, b, q, &m)) {
        e->waiting_blocked = true;
        return false;
    }
    if (!q->kv_came && engine_defer(e, w, &m, blocks_for(e, tok), most_pages(e, q)))
        return true;
    uint32_t left = remote ? 1 : tok - (q->kv_came ? q->computed : m.blocks * e->c.block_size);
    if (e->n_batch && page_ceil(e, left) >= b->input_tok)
        return false;
    uint32_t n = first_chunk(e, b, left);
    if (!n)
        return false;
    engine_admit(e, w, m.blocks);
    if (remote)
        q->computed = tok - 1; /* the rest of the prompt's KV was pulled */
    return add_prefill(e, b, slot, n) && b->input_tok && b->chunk_tok;
}

/* Whether s and t begin with the same IN_BATCH_DEPRIORITIZE_TOK tokens. */
static bool same_start(const struct request_spec *s, const struct request_spec *t)
{
    if (!s->n_keys || s->key_tok != t->key_tok || s->prompt_tok < IN_BATCH_DEPRIORITIZE_TOK ||
        t->prompt_tok < IN_BATCH_DEPRIORITIZE_TOK)
        return false;
    uint32_t k = (IN_BATCH_DEPRIORITIZE_TOK + s->key_tok - 1) / s->key_tok - 1;
    return k < s->n_keys && k < t->n_keys && s->keys[k] == t->keys[k];
}

/* Longest cached prefix first. Of those with nearly none, one of each kind goes first, to be the
 * prefix of the others in a later pass. Fills slots; waiting.n of them. */
static void lpm_order(const struct engine *e, uint32_t *slots)
{
    uint32_t rank[LPM_MAX_WAITING]; /* sorts ascending */
    uint32_t fresh[LPM_MAX_WAITING], n_fresh = 0;
    for (uint32_t i = 0; i < e->waiting.n; i++) {
        uint32_t slot = deque_at(&e->waiting, i);
        const struct seq *q = &e->seqs[slot];
        uint32_t hit_tok = prefix_of(e, q).blocks * e->c.block_size;
        uint32_t r = q->kv_came ? 0 : UINT32_MAX - 1 - hit_tok, at = i;
        if (!q->kv_came && hit_tok <= IN_BATCH_CHECK_TOK) {
            uint32_t j = 0;
            while (j < n_fresh && !same_start(&q->spec, &e->seqs[fresh[j]].spec))
                j++;
            if (j < n_fresh)
                r = UINT32_MAX;
            else
                fresh[n_fresh++] = slot;
        }
        for (; at && rank[at - 1] > r; at--) {
            rank[at] = rank[at - 1];
            slots[at] = slots[at - 1];
        }
        rank[at] = r;
        slots[at] = slot;
    }
}

static bool is_lpm(const struct engine *e)
{
    return e->c.policy == SCHED_LPM && e->c.enable_prefix_caching &&
           e->waiting.n <= LPM_MAX_WAITING;
}

static void admit_lpm(struct engine *e, struct budget *b)
{
    uint32_t slots[LPM_MAX_WAITING], n = e->waiting.n;
    lpm_order(e, slots);
    for (uint32_t k = 0; k < n && e->n_running < e->c.max_num_seqs; k++) {
        uint32_t w = 0;
        while (deque_at(&e->waiting, w) != slots[k])
            w++;
        if (!admit_one(e, b, w))
            return;
    }
}

static void prefill(struct engine *e)
{
    bool chunked = e->sgl_chunked != ENGINE_NO_SLOT;
    bool full = e->n_running >= e->c.max_num_seqs;
    if (full && e->waiting.n)
        e->waiting_blocked = true;
    if (!chunked && (full || !e->waiting.n))
        return;
    struct budget b = {
        .reserved_tok = (double)running_new_tok(e) * new_token_ratio(e),
        .input_tok = e->c.max_prefill_tokens,
        .chunk_tok = e->c.enable_chunked_prefill ? e->c.chunked_prefill_size : UINT64_MAX,
    };
    if (chunked) {
        continue_chunked(e, &b);
        if (e->sgl_chunked != ENGINE_NO_SLOT || !b.input_tok || !b.chunk_tok)
            return;
    }
    if (is_lpm(e)) {
        admit_lpm(e, &b);
        return;
    }
    while (e->waiting.n && e->n_running < e->c.max_num_seqs && admit_one(e, &b, 0))
        ;
}

/* ---- decode */

/* Tokens whose KV a request has after its next decode step at most; with speculation, all drafts
 * hold. */
static uint64_t decode_tok(const struct engine *e, const struct seq *q)
{
    uint32_t left = q->spec.output_tok - q->out, gamma = e->c.step.spec_gamma;
    return (uint64_t)q->computed + 1 + (gamma < left ? gamma : left);
}

/* Pages that the next decode step needs; *n: requests in it. */
static uint64_t decode_pages(const struct engine *e, uint32_t *n)
{
    uint64_t need = 0;
    *n = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        if (!decodes(q))
            continue;
        uint32_t want = blocks_for(e, decode_tok(e, q));
        need += want > q->hold.n_blocks ? want - q->hold.n_blocks : 0;
        ++*n;
    }
    return need;
}

/* Fewest generated tokens, then longest prompt, then last in. */
static uint32_t pick_victim(const struct engine *e)
{
    uint32_t v = ENGINE_NO_SLOT;
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        if (!decodes(q))
            continue;
        const struct seq *best = v == ENGINE_NO_SLOT ? NULL : &e->seqs[e->running[v]];
        if (!best || q->out < best->out ||
            (q->out == best->out && q->spec.prompt_tok >= best->spec.prompt_tok))
            v = i;
    }
    return v;
}

/* The prompt in the middle gives way to the last request that decodes. */
static void retract_chunked(struct engine *e)
{
    uint32_t i = 0;
    while (e->running[i] != e->sgl_chunked)
        i++;
    engine_preempt(e, i);
    e->sgl_chunked = ENGINE_NO_SLOT;
}

/* Returns whether the decode step fits now; *retracted: after taking requests out. */
static bool make_room(struct engine *e, bool *retracted)
{
    uint32_t n;
    while (decode_pages(e, &n) > kv_free_blocks(&e->kv)) {
        if (n > 1 || (n && e->waiting.n && e->seqs[deque_at(&e->waiting, 0)].kv_came))
            engine_preempt(e, pick_victim(e)); /* all of them, for one who has its pages already */
        else if (e->sgl_chunked != ENGINE_NO_SLOT)
            retract_chunked(e);
        else
            return false; /* prefills that wait to be pulled hold the rest */
        *retracted = true;
    }
    return n > 0;
}

static void decode(struct engine *e)
{
    bool retracted = false, fits = make_room(e, &retracted);
    if (retracted) {
        e->sgl_decay_steps = 0;
        e->waiting_blocked = false;
    }
    if (!fits)
        return;
    for (uint32_t i = 0; i < e->n_running; i++) {
        struct seq *q = &e->seqs[e->running[i]];
        if (!decodes(q))
            continue;
        take_pages(e, q, decode_tok(e, q));
        engine_batch_add(e, e->running[i], 1);
    }
    if (!retracted)
        e->sgl_decay_steps++;
}

/* Full pages enter the tree when the pass is over; nobody looks before, so it is done at its start.
 * A request keeps its own copy of pages it generates. */
static void name_pages(struct engine *e, bool decoding)
{
    for (uint32_t i = 0; i < e->n_batch; i++) {
        struct seq *q = &e->seqs[e->batch[i].slot];
        uint32_t full = (q->computed + e->batch[i].n) / e->c.block_size;
        if (full > q->hold.n_named)
            (decoding ? kv_name : kv_name_shared)(&e->kv, &q->spec, &q->hold, full);
    }
}

static void schedule(struct engine *e)
{
    prefill(e);
    bool decoding = !e->n_batch;
    if (decoding)
        decode(e);
    name_pages(e, decoding);
}

/* What can the next decode steps change? Let them feed x tokens and take p pages, p * page >= x -
 * open (open: room in pages that running requests hold). The pool shrinks by p pages, the
 * reservation by min_ratio * x at most once the ratio is at its least. A request's cost falls only
 * where an evicted page has a second copy that is held: by p pages at most, and by free_blocks
 * pages at most. As min_ratio <= 1, the best moment is when p == free_blocks, and nothing enters if
 * it cannot then. */
static bool waiting_stays(const struct engine *e)
{
    if (e->n_running >= e->c.max_num_seqs)
        return true;
    uint32_t bs = e->c.block_size;
    uint64_t open_tok = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        const struct seq *q = &e->seqs[e->running[i]];
        open_tok += (uint64_t)q->hold.n_blocks * bs - q->computed;
    }
    double reserved_tok = (double)running_new_tok(e);
    uint32_t n = is_lpm(e) ? e->waiting.n : 1;
    for (uint32_t i = 0; i < n; i++) {
        const struct seq *q = &e->seqs[deque_at(&e->waiting, i)];
        struct kv_match m = prefix_of(e, q);
        double freed_tok = (double)open_tok + (double)m.free_blocks * bs;
        double most_tok = free_tok(e) - min_ratio(e) * (reserved_tok - freed_tok);
        if ((double)admission_tok(e, q, &m) < most_tok + 1) /* more than enough for rounding */
            return false;
    }
    return true;
}

static void skipped(struct engine *e, uint64_t n)
{
    e->sgl_decay_steps += n;
}

const struct sched_ops sched_sglang = {
    .name = "sglang",
    .schedule = schedule,
    .waiting_stays = waiting_stays,
    .skipped = skipped,
    .name_blocks = kv_name_shared,
};
