/* mock_kv.c - see mock_kv.h. */
#include "controller/mock/mock_kv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zmq.h>

#include "controller/engines/kv_feed.h"

#define END_SEQ UINT64_MAX

struct mock_kv {
    void *zmq, *pub, *router;
    uv_poll_t poll;                         /* of router */
    uint64_t seq;                           /* of the next batch */
    struct mock_bytes kept[MOCK_KV_BUFFER]; /* batch n at n % MOCK_KV_BUFFER */
};

static void number(unsigned char s[8], uint64_t seq)
{
    for (int i = 0; i < 8; i++)
        s[i] = (unsigned char)(seq >> (56 - 8 * i));
}

/* ---- replays */

static void answer(struct mock_kv *k, zmq_msg_t *who, uint64_t seq, const struct mock_bytes *batch)
{
    unsigned char s[8];
    number(s, seq);
    (void)zmq_send(k->router, zmq_msg_data(who), zmq_msg_size(who), ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(k->router, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(k->router, s, sizeof s, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(k->router, batch ? batch->s : "", batch ? batch->len : 0, ZMQ_DONTWAIT);
}

static void replay(struct mock_kv *k, zmq_msg_t *who, const unsigned char *s)
{
    uint64_t from = 0, oldest = k->seq > MOCK_KV_BUFFER ? k->seq - MOCK_KV_BUFFER : 0;
    for (int i = 0; i < 8; i++)
        from = from << 8 | s[i];
    for (uint64_t seq = from > oldest ? from : oldest; seq < k->seq; seq++)
        answer(k, who, seq, &k->kept[seq % MOCK_KV_BUFFER]);
    answer(k, who, END_SEQ, NULL);
}

/* [who, "", seq]; like vLLM, anything else is ignored. False: nothing is there. */
static bool read_question(struct mock_kv *k)
{
    zmq_msg_t part[3], beyond;
    int n = 0;
    for (bool more = true; more; n++) {
        zmq_msg_t *to = n < 3 ? &part[n] : &beyond;
        zmq_msg_init(to);
        if (zmq_msg_recv(to, k->router, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(to);
            return false; /* before the first one: messages come whole */
        }
        more = zmq_msg_more(to);
        if (to == &beyond)
            zmq_msg_close(to);
    }
    if (n == 3 && !zmq_msg_size(&part[1]) && zmq_msg_size(&part[2]) == 8)
        replay(k, &part[0], zmq_msg_data(&part[2]));
    for (int i = 0; i < n && i < 3; i++)
        zmq_msg_close(&part[i]);
    return true;
}

static void on_question(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    while (read_question(poll->data))
        ;
}

/* ---- life */

static void *bind_to(void *zmq, int type, const char *host, uint32_t port)
{
    char address[300];
    int none = 0, queue = KV_FEED_QUEUE;
    void *s = zmq_socket(zmq, type);
    if (!s)
        return NULL;
    zmq_setsockopt(s, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(s, ZMQ_SNDHWM, &queue, sizeof queue);
    snprintf(address, sizeof address, port ? "tcp://%s:%u" : "tcp://%s:*", host, port);
    if (!zmq_bind(s, address))
        return s;
    zmq_close(s);
    return NULL;
}

static uint32_t port_of(void *socket)
{
    char address[300];
    size_t n = sizeof address;
    const char *colon =
        zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, address, &n) ? NULL : strrchr(address, ':');
    return colon ? (uint32_t)strtoul(colon + 1, NULL, 10) : 0;
}

struct mock_kv *mock_kv_new(uv_loop_t *loop, const char *host, uint32_t port, uint32_t replay_port,
                            const char **why)
{
    struct mock_kv *k = calloc(1, sizeof *k);
    int fd;
    size_t n = sizeof fd;
    *why = "out of memory";
    if (!k)
        return NULL;
    k->zmq = zmq_ctx_new();
    k->pub = k->zmq ? bind_to(k->zmq, ZMQ_PUB, host, port) : NULL;
    k->router = k->pub ? bind_to(k->zmq, ZMQ_ROUTER, host, replay_port) : NULL;
    if (!k->router || zmq_getsockopt(k->router, ZMQ_FD, &fd, &n) ||
        uv_poll_init(loop, &k->poll, fd)) {
        *why = zmq_strerror(zmq_errno());
        if (k->router)
            zmq_close(k->router);
        if (k->pub)
            zmq_close(k->pub);
        if (k->zmq)
            zmq_ctx_term(k->zmq);
        free(k);
        return NULL;
    }
    k->poll.data = k;
    uv_poll_start(&k->poll, UV_READABLE, on_question);
    return k;
}

static void on_closed(uv_handle_t *handle)
{
    struct mock_kv *k = handle->data;
    zmq_close(k->router);
    zmq_close(k->pub);
    zmq_ctx_term(k->zmq);
    for (uint32_t i = 0; i < MOCK_KV_BUFFER; i++)
        free(k->kept[i].s);
    free(k);
}

void mock_kv_close(struct mock_kv *k)
{
    if (k)
        uv_close((uv_handle_t *)&k->poll, on_closed);
}

uint32_t mock_kv_port(const struct mock_kv *k)
{
    return port_of(k->pub);
}

uint32_t mock_kv_replay_port(const struct mock_kv *k)
{
    return port_of(k->router);
}

void mock_kv_publish(struct mock_kv *k, const struct mock_bytes *batch, bool mute)
{
    unsigned char s[8];
    struct mock_bytes *keep = &k->kept[k->seq % MOCK_KV_BUFFER];
    char *copy = realloc(keep->s, batch->len);
    if (!copy)
        abort(); /* as mem_grow does */
    memcpy(copy, batch->s, batch->len);
    *keep = (struct mock_bytes){copy, batch->len, batch->len};
    number(s, k->seq++);
    if (!mute) {
        (void)zmq_send(k->pub, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
        (void)zmq_send(k->pub, s, sizeof s, ZMQ_SNDMORE | ZMQ_DONTWAIT);
        (void)zmq_send(k->pub, batch->s, batch->len, ZMQ_DONTWAIT);
    }
    while (
        read_question(k)) /* the descriptor tells only of changes, and sending may have eaten one */
        ;
}
