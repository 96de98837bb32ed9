/* proxy_floor.c - the price of forwarding alone: requests go round-robin to the upstreams and their answers back, by
 * controller/http and with no decision at all. What `weir serve` costs beyond this is the decision.
 *
 *   proxy_floor PORT UPSTREAM_PORT...        loopback only; ends on SIGTERM or SIGINT
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "controller/http/http_client.h"
#include "controller/http/http_server.h"

#define MAX_UPSTREAMS 16

static struct http_upstream *upstreams[MAX_UPSTREAMS];
static unsigned n_upstreams, turn;

struct pass {
    struct http_exchange *ex;
    struct http_call *call;
    struct http_slice body;
    struct pass *next;
};

static struct pass *spare;

static void pass_put(struct pass *p)
{
    p->next = spare;
    spare = p;
}

static void on_part(void *user, struct http_call *call, const struct http_part *part)
{
    struct pass *p = user;
    if (part->head) {
        http_exchange_release(p->ex);
        http_reply_head(p->ex, part->head->status,
                        part->head->has_length ? part->head->content_length : HTTP_UNKNOWN_LENGTH);
        http_reply_fields(p->ex, part->head);
    }
    struct http_exchange *ex = p->ex;
    if (part->last)
        pass_put(p);
    if (!http_reply_send(ex, part->data, part->n, part->last) && !part->last)
        http_call_pause(call);
}

static void on_failed(void *user, struct http_call *call, const struct http_failure *failure)
{
    struct pass *p = user;
    (void)call;
    if (http_reply_started(p->ex))
        http_exchange_abort(p->ex);
    else
        http_reply(p->ex, 502, "text/plain",
                   (struct http_slice){failure->detail, __builtin_strlen(failure->detail)});
    pass_put(p);
}

static const struct http_call_ops call_ops = {.part = on_part, .failed = on_failed};

static void on_request(void *user, struct http_exchange *ex)
{
    struct pass *p = spare;
    (void)user;
    if (p)
        spare = p->next;
    else if (!(p = malloc(sizeof *p)))
        abort();
    const struct http_head *head = http_request_head(ex);
    p->ex = ex;
    p->body = http_request_body(ex);
    p->call = http_call_new(upstreams[turn++ % n_upstreams], &call_ops, p);
    http_exchange_set_user(ex, p);
    if (http_call_request(p->call, (enum http_method)head->method, http_target(head)))
        abort(); /* the parser has checked the target */
    http_call_fields(p->call, head, NULL, 0);
    if (http_call_send(p->call, &p->body, 1)) {
        http_reply(ex, 503, NULL, (struct http_slice){NULL, 0});
        pass_put(p);
    }
}

static void on_gone(void *user, struct http_exchange *ex, enum http_gone why)
{
    struct pass *p = http_exchange_user(ex);
    (void)user, (void)why;
    http_call_cancel(p->call);
    pass_put(p);
}

static void on_drained(void *user, struct http_exchange *ex)
{
    struct pass *p = http_exchange_user(ex);
    (void)user;
    http_call_resume(p->call);
}

static void on_signal(uv_signal_t *signal, int number)
{
    (void)number;
    uv_stop(signal->loop);
}

int main(int argc, char **argv)
{
    static const struct http_server_ops ops = {
        .request = on_request, .gone = on_gone, .drained = on_drained};
    struct http_server_options so;
    struct http_upstream_options uo;
    char error[HTTP_ERROR_BYTES];
    uv_loop_t *uv = uv_default_loop();
    uv_signal_t term, interrupt;
    if (argc < 3 || argc > 2 + MAX_UPSTREAMS) {
        fprintf(stderr, "usage: proxy_floor PORT UPSTREAM_PORT...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct http_loop *loop = http_loop_new(uv);
    struct http_client *client = http_client_new(loop);
    for (int i = 2; i < argc; i++) {
        http_upstream_defaults(&uo);
        uo.host = "127.0.0.1";
        uo.port = (uint16_t)strtoul(argv[i], NULL, 10);
        upstreams[n_upstreams++] = http_upstream_new(client, &uo);
    }
    http_server_defaults(&so);
    so.port = (uint16_t)strtoul(argv[1], NULL, 10);
    struct http_server *server = http_server_new(loop, &so, &ops, NULL, error);
    if (!server) {
        fprintf(stderr, "proxy_floor: %s\n", error);
        return 2;
    }
    uv_signal_init(uv, &term);
    uv_signal_init(uv, &interrupt);
    uv_signal_start(&term, on_signal, SIGTERM);
    uv_signal_start(&interrupt, on_signal, SIGINT);
    uv_run(uv, UV_RUN_DEFAULT);
    http_server_close(server);
    http_client_close(client);
    http_loop_free(loop);
    uv_close((uv_handle_t *)&term, NULL);
    uv_close((uv_handle_t *)&interrupt, NULL);
    uv_run(uv, UV_RUN_DEFAULT);
    while (spare) {
        struct pass *next = spare->next;
        free(spare);
        spare = next;
    }
    return 0;
}
