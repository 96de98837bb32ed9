/* top_view.c - see top_view.h. */
#include "controller/top/top_view.h"

#include <string.h>

#include <yyjson.h>

#define NAME_CHARS 22
#define HEAD_LINES 2
#define MIN_DECISIONS 4 /* lines for decisions where there is not room for all */

static double number(yyjson_val *o, const char *name)
{
    return yyjson_get_num(yyjson_obj_get(o, name));
}

/* A text, cut to n characters (its end is what tells addresses apart), harmless on a terminal. */
static const char *text(yyjson_val *o, const char *name, size_t n, char out[NAME_CHARS + 1])
{
    const char *s = yyjson_get_str(yyjson_obj_get(o, name));
    size_t len = s ? strlen(s) : 0;
    const char *from = len > n ? s + len - n : s;
    size_t at = 0;
    for (; from && *from && at < n; from++)
        out[at++] = *from >= 0x20 && *from < 0x7f ? *from : '?';
    out[at] = '\0';
    return out;
}

/* In at most five characters. */
static const char *figure(double x, char out[16])
{
    if (!(x >= 0 && x < 1e12))
        return "?";
    if (x >= 1e9)
        snprintf(out, 16, "%.0fG", x / 1e9);
    else if (x >= 1e6)
        snprintf(out, 16, "%.0fM", x / 1e6);
    else if (x > 99999)
        snprintf(out, 16, "%.0fk", x / 1e3);
    else
        snprintf(out, 16, x < 99.95 && x != (double)(long)x ? "%.1f" : "%.0f", x);
    return out;
}

static const char *member(yyjson_val *o, const char *name, char out[16])
{
    yyjson_val *v = yyjson_obj_get(o, name);
    return yyjson_is_num(v) ? figure(yyjson_get_num(v), out) : "-";
}

static void write_head(FILE *out, const struct top_view *v, yyjson_val *root)
{
    yyjson_val *t = yyjson_obj_get(root, "totals");
    char name[NAME_CHARS + 1], f[6][16];
    double prompt = number(t, "prompt_tok"), cached = number(t, "cached_tok");
    fprintf(out, "weir %s at %.21s%s: %s req", text(root, "version", 7, name), v->address,
            yyjson_get_bool(yyjson_obj_get(root, "draining")) ? " (draining)" : "",
            member(t, "requests", f[0]));
    if (v->rate >= 0)
        fprintf(out, ", %s/s", figure(v->rate, f[1]));
    fprintf(out, ", %s live\n", member(t, "live", f[0]));
    fprintf(out, "TTFT p50 %s p99 %s ms, TPOT %s ms, ", member(t, "ttft_p50_ms", f[0]),
            member(t, "ttft_p99_ms", f[1]), member(t, "tpot_p50_ms", f[2]));
    fprintf(out, "cached %.0f%%, refused %s cut %s\n",
            prompt > 0 && cached <= prompt ? 100 * cached / prompt : 0, member(t, "refused", f[3]),
            member(t, "cut", f[4]));
}

/* Two digits and one behind the point. */
static const char *bias(yyjson_val *w, const char *name, char out[16])
{
    double x = number(w, name);
    if (!(x >= 0 && x < 99))
        return "?";
    snprintf(out, 16, "%.1f", x);
    return out;
}

static void write_worker(FILE *out, yyjson_val *w)
{
    char name[NAME_CHARS + 1], state[NAME_CHARS + 1], health[NAME_CHARS + 1];
    char f[8][16];
    text(w, "state", 8, state);
    text(w, "health", 8, health);
    bool sick = *health && strcmp(health, "ok") != 0;
    fprintf(out, " %-22s %-8s %5s %5s %4s %5s %6s %6s %4s %4s\n", text(w, "name", NAME_CHARS, name),
            sick ? health : state, member(w, "running", f[0]), member(w, "waiting", f[1]),
            figure(100 * number(w, "kv_usage"), f[2]), member(w, "inflight", f[3]),
            member(w, "prefill_tokens", f[4]), member(w, "predicted_ttft_ms", f[5]),
            bias(w, "ttft_bias", f[6]), bias(w, "tpot_bias", f[7]));
}

/* At most `room` workers. */
static void write_pool(FILE *out, yyjson_val *p, int room)
{
    yyjson_val *workers = yyjson_obj_get(p, "workers"), *w;
    char name[NAME_CHARS + 1], policy[NAME_CHARS + 1], a[16], b[16];
    size_t i, n;
    fprintf(out, "pool %s: %s, %s waiting, %s in flight%s\n", text(p, "name", 16, name),
            text(p, "policy", 16, policy), member(p, "queued", a), member(p, "inflight", b),
            yyjson_get_bool(yyjson_obj_get(p, "panic")) ? ", PANIC" : "");
    fprintf(out, " %-22s %-8s %5s %5s %4s %5s %6s %6s %4s %4s\n", "worker", "state", "run", "wait",
            "KV%", "mine", "ahead", "TTFT1k", "xTTF", "xTPO");
    yyjson_arr_foreach (workers, i, n, w) {
        if ((int)i == room - 1 && n > i + 1) {
            fprintf(out, " ... and %zu more\n", n - i);
            break;
        }
        write_worker(out, w);
    }
}

static void write_decision(FILE *out, yyjson_val *d)
{
    char worker[NAME_CHARS + 1], outcome[NAME_CHARS + 1], reason[NAME_CHARS + 1];
    char f[7][16];
    text(d, "reason", 16, reason);
    text(d, "outcome", 9, outcome);
    fprintf(out, " %-18s %6s %6s %5s %6s %6s %5s %5s %.14s\n", text(d, "worker", 18, worker),
            member(d, "prompt_tok", f[0]), member(d, "cached_tok", f[1]),
            member(d, "output_tok", f[2]), member(d, "ttft_ms", f[3]),
            member(d, "predicted_ttft_ms", f[4]), member(d, "tpot_ms", f[5]),
            member(d, "predicted_tpot_ms", f[6]), *reason ? reason : outcome);
}

static void write_decisions(FILE *out, yyjson_val *list, int room)
{
    yyjson_val *d;
    size_t i, n;
    fprintf(out, "last requests\n");
    fprintf(out, " %-18s %6s %6s %5s %6s %6s %5s %5s %s\n", "worker", "prompt", "cached", "out",
            "TTFT", "(pred)", "TPOT", "(pred)", "outcome");
    yyjson_arr_foreach (list, i, n, d) {
        if ((int)i >= room)
            break;
        write_decision(out, d);
    }
}

int top_view_write(FILE *out, const struct top_view *v, const char *json, size_t len)
{
    yyjson_doc *doc = yyjson_read(json, len, 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *pools = yyjson_obj_get(root, "pools"), *p;
    size_t i, n = yyjson_arr_size(pools);
    if (!yyjson_is_arr(pools) || !yyjson_is_obj(yyjson_obj_get(root, "totals"))) {
        yyjson_doc_free(doc);
        return WEIR_E_INPUT;
    }
    int left = v->height ? v->height - HEAD_LINES - 2 - MIN_DECISIONS : INT32_MAX;
    write_head(out, v, root);
    yyjson_arr_foreach (pools, i, n, p) {
        int workers = (int)yyjson_arr_size(yyjson_obj_get(p, "workers"));
        int room = v->height ? (left - 2 * (int)(n - i)) / (int)(n - i) : workers;
        if (room < 1 && v->height) { /* not even a line a pool */
            fprintf(out, "... and %zu more pools\n", n - i);
            left--;
            break;
        }
        write_pool(out, p, room);
        left -= 2 + (workers < room ? workers : room);
    }
    write_decisions(out, yyjson_obj_get(root, "decisions"),
                    v->height ? left + MIN_DECISIONS : INT32_MAX);
    yyjson_doc_free(doc);
    return 0;
}

double top_view_requests(const char *json, size_t len)
{
    yyjson_doc *doc = yyjson_read(json, len, 0);
    yyjson_val *r = yyjson_obj_get(yyjson_obj_get(yyjson_doc_get_root(doc), "totals"), "requests");
    double x = yyjson_is_num(r) ? yyjson_get_num(r) : -1;
    yyjson_doc_free(doc);
    return x;
}
