/* top.c - `weir top`: what a weir serve knows and does, live in a terminal, from its /admin/state.
 *
 *   timer ──► GET /admin/state ──► top_view (lines) ──► ncurses, or with --once standard output
 */
#include <getopt.h>
#include <ncurses.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <uv.h>

#include "controller/cli.h"
#include "controller/commands.h"
#include "controller/http/http_client.h"
#include "controller/top/top_view.h"

#define MAX_ANSWER_BYTES (16u << 20)
#define TOKEN_BYTES 256u
#define WAIT_MS 5000u /* for an answer */
#define DEFAULT_PORT 9090u

struct top {
    uv_loop_t uv;
    struct http_loop *http;
    struct http_client *client;
    struct http_upstream *upstream;
    struct http_call *call;
    uv_timer_t timer;
    uv_poll_t keys;
    uv_signal_t term, intr, winch;
    bool once, curses, ended;
    int rc;
    uint64_t interval_ms, asked_ms;
    char host[HTTP_HOST_BYTES], address[HTTP_HOST_BYTES + 8], token[TOKEN_BYTES];
    uint16_t port;
    int status;
    char *text;
    size_t len, cap;
    double requests, rate;
    uint64_t counted_ms;
    char trouble[600];
};

static const char help[] =
    "usage: weir top [OPTIONS]\n"
    "\n"
    "Shows what a weir serve knows and does: its workers, queues, KV, what was predicted and what came, its last requests.\n"
    "q ends it.\n"
    "\n"
    "  -a, --admin HOST:PORT    its admin listener (127.0.0.1:9090)\n"
    "      --admin-token-file FILE   bearer token, where one is needed\n"
    "      --interval MS        between two looks, 100 to 60000 (1000)\n"
    "      --once               print one page as text and end\n"
    "  -h, --help\n"
    "\n"
    "run, wait, KV%: as the engine reports. mine: weir's own requests there. ahead: prompt tokens sent there and not\n"
    "prefilled yet. TTFT1k: predicted for a prompt of 1,000 new tokens, ms. xTTF, xTPO: by what it is slower than its step\n"
    "times say. Last requests: times in ms from their dispatch, what was predicted beside them.\n";

/* ---- the end */

static void closed(uv_handle_t *h)
{
    (void)h;
}

static void end(struct top *t, int rc)
{
    uv_handle_t *handles[] = {(uv_handle_t *)&t->timer, (uv_handle_t *)&t->term,
                              (uv_handle_t *)&t->intr, (uv_handle_t *)&t->winch,
                              t->curses ? (uv_handle_t *)&t->keys : NULL};
    if (t->ended)
        return;
    t->ended = true;
    t->rc = rc;
    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++) {
        if (handles[i])
            uv_close(handles[i], closed);
    }
    if (t->call)
        http_call_cancel(t->call);
    http_client_close(t->client);
    http_loop_free(t->http);
}

/* ---- showing */

static void show_lines(const char *text)
{
    int y = 0;
    erase();
    for (const char *line = text, *stop; *line && y < LINES; line = stop + 1, y++) {
        stop = strchrnul(line, '\n');
        attrset(*line == ' ' ? A_NORMAL : A_BOLD);
        mvaddnstr(y, 0, line, (int)(stop - line) < COLS ? (int)(stop - line) : COLS);
        if (!*stop)
            break;
    }
    refresh();
}

static void show_trouble(struct top *t)
{
    if (t->once) {
        end(t, cli_fail("top", "%s", t->trouble));
        return;
    }
    erase();
    mvaddnstr(0, 0, t->trouble, COLS);
    mvaddnstr(1, 0, "trying again; q ends", COLS);
    refresh();
}

static void count_rate(struct top *t)
{
    double n = top_view_requests(t->text, t->len);
    uint64_t now = uv_now(&t->uv);
    t->rate = -1;
    if (t->counted_ms && now > t->counted_ms && n >= t->requests)
        t->rate = 1000 * (n - t->requests) / (double)(now - t->counted_ms);
    t->requests = n;
    t->counted_ms = now;
}

static void show(struct top *t)
{
    char *page = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&page, &len);
    struct top_view v = {t->address, t->rate, t->once ? 0 : LINES};
    int rc = out ? top_view_write(out, &v, t->text, t->len) : WEIR_E_NOMEM;
    if (out)
        fclose(out);
    if (rc) {
        snprintf(t->trouble, sizeof t->trouble,
                 "what answers at %s is no admin listener of weir serve: see --admin", t->address);
        show_trouble(t);
    } else if (t->once) {
        fputs(page, stdout);
        end(t, 0);
    } else {
        show_lines(page);
    }
    free(page);
}

/* ---- asking */

static void ask(struct top *t);

static void on_timer(uv_timer_t *timer)
{
    ask(timer->data);
}

static void later(struct top *t)
{
    if (!t->ended)
        uv_timer_start(&t->timer, on_timer, t->interval_ms, 0);
}

static void answered(struct top *t)
{
    if (t->status == 401) {
        snprintf(t->trouble, sizeof t->trouble, "%s wants its token: --admin-token-file",
                 t->address);
        show_trouble(t);
    } else {
        count_rate(t);
        show(t);
    }
    later(t);
}

static bool keep(struct top *t, struct http_slice s)
{
    if (t->len + s.len > MAX_ANSWER_BYTES)
        return false;
    if (t->len + s.len > t->cap) {
        size_t cap = 2 * (t->len + s.len);
        char *text = realloc(t->text, cap);
        if (!text)
            return false;
        t->text = text;
        t->cap = cap;
    }
    memcpy(t->text + t->len, s.s, s.len);
    t->len += s.len;
    return true;
}

static void part(void *user, struct http_call *call, const struct http_part *p)
{
    struct top *t = user;
    if (p->head)
        t->status = p->head->status;
    for (size_t i = 0; i < p->n; i++) {
        if (keep(t, p->data[i]))
            continue;
        http_call_cancel(call);
        t->call = NULL;
        snprintf(t->trouble, sizeof t->trouble, "the answer of %s is too large", t->address);
        show_trouble(t);
        later(t);
        return;
    }
    if (p->last) {
        t->call = NULL;
        answered(t);
    }
}

static void failed(void *user, struct http_call *call, const struct http_failure *f)
{
    struct top *t = user;
    (void)call;
    t->call = NULL;
    if (f->why == HTTP_FAIL_SHUTDOWN)
        return;
    snprintf(t->trouble, sizeof t->trouble, "%s does not answer: %s", t->address,
             f->detail ? f->detail : http_fail_text(f->why));
    show_trouble(t);
    later(t);
}

static const struct http_call_ops ops = {.part = part, .failed = failed};

static void ask(struct top *t)
{
    char bearer[TOKEN_BYTES + 8];
    t->len = 0;
    t->call = http_call_new(t->upstream, &ops, t);
    int rc = http_call_request(t->call, HTTP_M_GET, HTTP_SLICE("/admin/state"));
    if (!rc && t->token[0]) {
        int n = snprintf(bearer, sizeof bearer, "Bearer %s", t->token);
        http_call_field(t->call, "Authorization", (struct http_slice){bearer, (size_t)n});
    }
    if (!rc)
        rc = http_call_send(t->call, NULL, 0);
    if (!rc) {
        http_call_timeout(t->call, WAIT_MS);
        return;
    }
    t->call = NULL;
    snprintf(t->trouble, sizeof t->trouble, "no connection to %s can be opened", t->address);
    show_trouble(t);
    later(t);
}

/* ---- the terminal */

static void on_keys(uv_poll_t *handle, int status, int events)
{
    struct top *t = handle->data;
    (void)events;
    int key = getch();
    if (status || key == 'q' || key == 'Q' || key == 3)
        end(t, 0);
}

static void on_winch(uv_signal_t *handle, int number)
{
    struct top *t = handle->data;
    (void)number;
    endwin();
    refresh(); /* takes the new size */
    if (!t->call && t->len)
        show(t);
}

static void on_signal(uv_signal_t *handle, int number)
{
    (void)number;
    end(handle->data, 0);
}

static int open_terminal(struct top *t)
{
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return cli_fail("top", "this is no terminal: --once prints a page as text");
    SCREEN *screen = newterm(NULL, stdout, stdin);
    if (!screen)
        return cli_fail("top",
                        "ncurses does not know this terminal (TERM): --once prints a page as text");
    set_term(screen);
    cbreak();
    noecho();
    nodelay(stdscr, TRUE);
    curs_set(0);
    t->curses = true;
    uv_poll_init(&t->uv, &t->keys, STDIN_FILENO);
    t->keys.data = t;
    uv_poll_start(&t->keys, UV_READABLE, on_keys);
    return 0;
}

static int run(struct top *t)
{
    struct http_upstream_options o;
    if (uv_loop_init(&t->uv) || !(t->http = http_loop_new(&t->uv)) ||
        !(t->client = http_client_new(t->http)))
        return cli_fail("top", "out of memory");
    http_upstream_defaults(&o);
    o.host = t->host;
    o.port = t->port;
    t->upstream = http_upstream_new(t->client, &o);
    if (!t->upstream)
        return cli_fail("top", "out of memory");
    uv_timer_init(&t->uv, &t->timer);
    uv_signal_init(&t->uv, &t->term);
    uv_signal_init(&t->uv, &t->intr);
    uv_signal_init(&t->uv, &t->winch);
    t->timer.data = t->term.data = t->intr.data = t->winch.data = t;
    if (!t->once && open_terminal(t))
        return CLI_EXIT_INPUT;
    uv_signal_start(&t->term, on_signal, SIGTERM);
    uv_signal_start(&t->intr, on_signal, SIGINT);
    if (t->curses)
        uv_signal_start(&t->winch, on_winch, SIGWINCH);
    uv_timer_start(&t->timer, on_timer, 0, 0);
    uv_run(&t->uv, UV_RUN_DEFAULT);
    uv_loop_close(&t->uv);
    if (t->curses)
        endwin();
    free(t->text);
    return t->rc;
}

/* ---- options */

enum { OPT_TOKEN = 256, OPT_INTERVAL, OPT_ONCE };

static const struct option options[] = {
    {"admin", required_argument, NULL, 'a'},
    {"admin-token-file", required_argument, NULL, OPT_TOKEN},
    {"interval", required_argument, NULL, OPT_INTERVAL},
    {"once", no_argument, NULL, OPT_ONCE},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int read_address(struct top *t, const char *text)
{
    const char *colon = strrchr(text, ':');
    uint64_t port;
    size_t n = colon ? (size_t)(colon - text) : 0;
    if (n > 1 && text[0] == '[' && text[n - 1] == ']') {
        text++;
        n -= 2;
    }
    if (!n || n >= sizeof t->host || !cli_whole(colon + 1, 1, 65535, &port))
        return cli_fail("top", "--admin takes HOST:PORT, not '%.100s'", text);
    snprintf(t->host, sizeof t->host, "%.*s", (int)n, text);
    t->port = (uint16_t)port;
    return 0;
}

static int read_token(struct top *t, const char *path)
{
    FILE *f = fopen(path, "r");
    bool ok = f && fgets(t->token, sizeof t->token, f);
    if (f)
        fclose(f);
    t->token[strcspn(t->token, "\r\n")] = '\0';
    return ok && t->token[0]
               ? 0
               : cli_fail("top", "--admin-token-file: %.200s cannot be read, or is empty", path);
}

static int read_option(struct top *t, int got, char **argv)
{
    switch (got) {
    case 'a': return read_address(t, optarg);
    case OPT_TOKEN: return read_token(t, optarg);
    case OPT_INTERVAL:
        return cli_whole(optarg, 100, 60000, &t->interval_ms)
                   ? 0
                   : cli_fail("top", "--interval takes 100 to 60000 (ms), not '%.40s'", optarg);
    case OPT_ONCE: t->once = true; return 0;
    default: return cli_bad_option("top", options, argv, got);
    }
}

int top_main(int argc, char **argv)
{
    static struct top t;
    int got, rc = 0;
    t.interval_ms = 1000;
    t.port = DEFAULT_PORT;
    t.rate = -1;
    snprintf(t.host, sizeof t.host, "127.0.0.1");
    cli_start();
    while (!rc && (got = getopt_long(argc, argv, ":a:h", options, NULL)) != -1) {
        if (got == 'h') {
            fputs(help, stdout);
            return cli_finish("top", 0);
        }
        rc = read_option(&t, got, argv);
    }
    if (!rc && optind < argc)
        rc = cli_fail("top", "'%.40s' is not an option; see weir top --help", argv[optind]);
    if (rc)
        return rc;
    snprintf(t.address, sizeof t.address, "%s:%u", t.host, t.port);
    return cli_finish("top", run(&t));
}
