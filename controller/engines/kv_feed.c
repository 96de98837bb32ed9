/* kv_feed.c - see kv_feed.h. */
#include "controller/engines/kv_feed.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>
#include <zmq.h>

#define MAX_FRAMES 4
#define END_SEQ UINT64_MAX

/* Frames of one message. */
struct message {
    zmq_msg_t frame[MAX_FRAMES];
    int n;
    bool whole; /* no frames beyond MAX_FRAMES */
};

/* A socket with its descriptor in the loop. */
struct port {
    struct kv_feed *feed;
    void *socket;
    uv_poll_t poll;
};

struct kv_feed {
    struct kv_blocks *blocks;
    struct kv_decoder decoder;
    uv_loop_t *loop;
    void *zmq;
    char *replay_address;        /* NULL: none */
    struct port events, *replay; /* replay: while one is under way; events are not read then */
    uv_timer_t again;            /* more messages are there than one turn takes */
    uv_timer_t patience;         /* with the replay */
    uv_timer_t quiet;
    uint64_t heard;     /* batches at the last look whether it is quiet */
    int closing;        /* handles that are still open */
    uint64_t next;      /* the number that is due */
    uint64_t live;      /* one more than the last that came live; 0: none in this life */
    uint64_t last_hash; /* of batch next - 1 */
    bool began;         /* next is known */
    bool verify;        /* the replay began with batch next - 1, to see whether it is the same */
    bool failed;        /* no replay could be opened */
    uint64_t asked;
    struct message held; /* showed the gap */
    bool holds;
    struct kv_feed_stats stats;
};

/* ---- messages */

static void message_close(struct message *m)
{
    for (int i = 0; i < m->n; i++)
        zmq_msg_close(&m->frame[i]);
    m->n = 0;
}

/* False: none is there. */
static bool message_read(struct message *m, void *socket)
{
    zmq_msg_t beyond;
    m->n = 0;
    m->whole = true;
    for (bool more = true; more;) {
        zmq_msg_t *to = m->n < MAX_FRAMES ? &m->frame[m->n] : &beyond;
        zmq_msg_init(to);
        if (zmq_msg_recv(to, socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(to);
            message_close(m);
            return false;
        }
        more = zmq_msg_more(to);
        if (to == &beyond) {
            m->whole = false;
            zmq_msg_close(to);
        } else {
            m->n++;
        }
    }
    return true;
}

static void message_move(struct message *to, struct message *from)
{
    for (int i = 0; i < from->n; i++) {
        zmq_msg_init(&to->frame[i]);
        zmq_msg_move(&to->frame[i], &from->frame[i]);
    }
    to->n = from->n;
    to->whole = from->whole;
    message_close(from);
}

/* The last two frames: number and batch. */
static bool message_parts(struct message *m, uint64_t *seq, const char **batch, size_t *n)
{
    if (m->n < 2 || !m->whole || zmq_msg_size(&m->frame[m->n - 2]) != 8)
        return false;
    const unsigned char *s = zmq_msg_data(&m->frame[m->n - 2]);
    *seq = 0;
    for (int i = 0; i < 8; i++)
        *seq = *seq << 8 | s[i];
    *batch = zmq_msg_data(&m->frame[m->n - 1]);
    *n = zmq_msg_size(&m->frame[m->n - 1]);
    return true;
}

/* ---- sockets in the loop */

static void on_ready(uv_poll_t *poll, int status, int events);

static void *open_socket(struct kv_feed *f, int type, const char *address)
{
    int none = 0, most = KV_FEED_RECONNECT_MAX_MS, queue = KV_FEED_QUEUE, on = 1;
    int64_t bytes = KV_EVENTS_MAX_BYTES;
    void *s = zmq_socket(f->zmq, type);
    if (!s)
        return NULL;
    zmq_setsockopt(s, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(s, ZMQ_IPV6, &on, sizeof on);
    zmq_setsockopt(s, ZMQ_RECONNECT_IVL_MAX, &most, sizeof most);
    zmq_setsockopt(s, ZMQ_RCVHWM, &queue, sizeof queue);
    zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &bytes, sizeof bytes);
    if (type == ZMQ_SUB)
        zmq_setsockopt(s, ZMQ_SUBSCRIBE, "", 0);
    if (!zmq_connect(s, address))
        return s;
    zmq_close(s);
    return NULL;
}

static bool port_open(struct port *p, struct kv_feed *f, int type, const char *address)
{
    int fd;
    size_t n = sizeof fd;
    p->feed = f;
    p->socket = open_socket(f, type, address);
    if (!p->socket)
        return false;
    if (zmq_getsockopt(p->socket, ZMQ_FD, &fd, &n) || uv_poll_init(f->loop, &p->poll, fd)) {
        zmq_close(p->socket);
        return false;
    }
    p->poll.data = p;
    uv_poll_start(&p->poll, UV_READABLE, on_ready);
    return true;
}

/* ---- batches */

static void on_event(void *ctx, const struct kv_event *ev)
{
    kv_blocks_event(((struct kv_feed *)ctx)->blocks, ev);
}

static void take(struct kv_feed *f, uint64_t seq, const char *batch, size_t n)
{
    f->stats.batches++;
    if (kv_events_decode(&f->decoder, batch, n, on_event, f)) {
        f->stats.refused++;
        kv_blocks_clear(f->blocks);
    }
    f->next = seq + 1;
    f->last_hash = XXH3_64bits(batch, n);
    f->began = true;
}

/* What was known is not to be believed any more. new_life: the engine counts from 0 again. */
static void forget(struct kv_feed *f, bool new_life)
{
    kv_blocks_clear(f->blocks);
    f->stats.epochs += new_life;
    if (new_life)
        f->next = f->live = 0;
}

/* ---- replays */

static void on_port_closed(uv_handle_t *handle)
{
    free(handle->data);
}

/* The socket goes after its descriptor has left the loop. */
static void close_replay(struct kv_feed *f)
{
    struct port *p = f->replay;
    f->replay = NULL;
    uv_timer_stop(&f->patience);
    if (!p)
        return;
    uv_close((uv_handle_t *)&p->poll, on_port_closed);
    zmq_close(p->socket);
}

static void on_patience(uv_timer_t *timer);
static void on_again(uv_timer_t *timer);

static void ask(struct kv_feed *f, uint64_t from)
{
    unsigned char s[8];
    for (int i = 0; i < 8; i++)
        s[i] = (unsigned char)(from >> (56 - 8 * i));
    f->asked = from;
    f->replay = calloc(1, sizeof *f->replay);
    if (f->replay && !port_open(f->replay, f, ZMQ_DEALER, f->replay_address)) {
        free(f->replay);
        f->replay = NULL;
    }
    f->failed = !f->replay;
    if (f->replay) {
        (void)zmq_send(f->replay->socket, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
        (void)zmq_send(f->replay->socket, s, sizeof s, ZMQ_DONTWAIT);
        uv_timer_start(&f->again, on_again, 0, 0); /* its descriptor tells only of changes */
    }
    uv_timer_start(&f->patience, on_patience, f->failed ? 0 : KV_FEED_REPLAY_MS, 0);
}

static bool replaying(const struct kv_feed *f)
{
    return f->replay || f->failed;
}

/* A batch that is due, or behind what is missing for good. */
static void take_on(struct kv_feed *f, uint64_t seq, const char *batch, size_t n)
{
    if (f->began && seq > f->next)
        forget(f, false);
    take(f, seq, batch, n);
}

/* What was missed is there, or will never be: on with what waited. */
static void end_replay(struct kv_feed *f)
{
    uint64_t seq;
    const char *batch;
    size_t n;
    close_replay(f);
    f->failed = f->verify = false;
    if (f->holds && message_parts(&f->held, &seq, &batch, &n)) {
        f->stats.healed += seq <= f->next;
        if (seq >= f->next)
            take_on(f, seq, batch, n);
    }
    if (f->holds)
        message_close(&f->held);
    f->holds = false;
    uv_timer_start(&f->again, on_again, 0, 0);
}

static void on_patience(uv_timer_t *timer)
{
    struct kv_feed *f = timer->data;
    if (f->verify) /* whose life it is cannot be known */
        forget(f, false);
    end_replay(f);
}

/* The engine has begun a new life, by its answer to what was asked after a time away: all of it is asked for. */
static void ask_again(struct kv_feed *f, bool new_life)
{
    forget(f, new_life);
    f->next = 0;
    f->verify = false;
    close_replay(f);
    ask(f, 0);
}

/* A batch of a replay. */
static void take_replayed(struct kv_feed *f, uint64_t seq, const char *batch, size_t n)
{
    bool end = seq == END_SEQ;
    if (f->verify && !end && seq + 1 == f->next && XXH3_64bits(batch, n) == f->last_hash) {
        f->verify = false;
        kv_blocks_tell_all(f->blocks);
    } else if (f->verify) {
        ask_again(f, end || seq + 1 <= f->next);
        return;
    }
    if (end) {
        end_replay(f);
        return;
    }
    uv_timer_start(&f->patience, on_patience, KV_FEED_REPLAY_MS, 0);
    if (seq >= f->next)
        take_on(f, seq, batch, n);
}

/* More may be there: true. */
static bool read_replay(struct kv_feed *f)
{
    struct message m;
    uint64_t seq;
    const char *batch;
    size_t n;
    for (int i = 0; f->replay && i < KV_FEED_BATCH_MESSAGES; i++) {
        if (!message_read(&m, f->replay->socket))
            return false;
        if (message_parts(&m, &seq, &batch, &n))
            take_replayed(f, seq, batch, n);
        else
            f->stats.refused++;
        message_close(&m);
    }
    return true;
}

/* ---- live */

static void take_live(struct kv_feed *f, struct message *m)
{
    uint64_t seq;
    const char *batch;
    size_t n;
    if (!message_parts(m, &seq, &batch, &n) || seq == END_SEQ) {
        f->stats.refused++;
        return;
    }
    if (seq < f->live)
        forget(f, true);
    f->live = seq + 1;
    if (seq < f->next) /* a replay had it */
        return;
    bool gap = seq > f->next;
    f->stats.gaps += gap && f->began;
    if (gap && f->replay_address) {
        message_move(&f->held, m);
        f->holds = true;
        ask(f, f->next);
    } else {
        take_on(f, seq, batch, n);
    }
}

static bool read_events(struct kv_feed *f)
{
    struct message m;
    for (int i = 0; !replaying(f) && i < KV_FEED_BATCH_MESSAGES; i++) {
        if (!message_read(&m, f->events.socket))
            return false;
        take_live(f, &m);
        message_close(&m);
    }
    return true;
}

/* A turn: the rest has to wait for the loop to look at others. */
static void turn(struct kv_feed *f)
{
    if (f->replay ? read_replay(f) : read_events(f))
        uv_timer_start(&f->again, on_again, 0, 0);
}

static void on_again(uv_timer_t *timer)
{
    turn(timer->data);
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    turn(((struct port *)poll->data)->feed);
}

/* ---- quiet */

/* Whoever publishes does not wait for a connection that is being made again: the last batches before a silence may have been
 * missed, and no later one shows it. */
static void on_quiet(uv_timer_t *timer)
{
    struct kv_feed *f = timer->data;
    if (!replaying(f) && f->replay_address && f->heard == f->stats.batches)
        ask(f, f->next);
    f->heard = f->stats.batches;
}

/* ---- life */

void kv_feed_up(struct kv_feed *f)
{
    close_replay(f);
    f->failed = false;
    f->verify = f->began && f->next;
    if (f->replay_address)
        ask(f, f->verify ? f->next - 1 : 0);
    else if (f->began)
        forget(f, false);
}

static const char *nothing_wrong(const struct kv_feed_options *o, struct kv_feed *f)
{
    bool replay = o->replay && *o->replay;
    f->blocks = kv_blocks_new(o->block_tok, o->model, o->tell, o->ctx);
    f->replay_address = replay ? strdup(o->replay) : NULL;
    if (!f->blocks || (replay && !f->replay_address))
        return "out of memory";
    return port_open(&f->events, f, ZMQ_SUB, o->events) ? NULL : zmq_strerror(zmq_errno());
}

static void let_go(struct kv_feed *f)
{
    kv_blocks_free(f->blocks);
    kv_decoder_deinit(&f->decoder);
    free(f->replay_address);
    free(f);
}

struct kv_feed *kv_feed_new(const struct kv_feed_options *o, const char **why)
{
    struct kv_feed *f = calloc(1, sizeof *f);
    *why = "out of memory";
    if (!f)
        return NULL;
    f->loop = o->loop;
    f->zmq = o->zmq;
    *why = nothing_wrong(o, f);
    if (*why) {
        let_go(f);
        return NULL;
    }
    uv_timer_init(o->loop, &f->again);
    uv_timer_init(o->loop, &f->patience);
    uv_timer_init(o->loop, &f->quiet);
    f->again.data = f->patience.data = f->quiet.data = f;
    uv_timer_start(&f->quiet, on_quiet, KV_FEED_QUIET_MS, KV_FEED_QUIET_MS);
    uv_timer_start(&f->again, on_again, 0, 0);
    return f;
}

static void on_closed(uv_handle_t *handle)
{
    struct kv_feed *f =
        handle->type == UV_POLL ? ((struct port *)handle->data)->feed : handle->data;
    if (!--f->closing)
        let_go(f);
}

void kv_feed_close(struct kv_feed *f)
{
    if (!f)
        return;
    close_replay(f);
    if (f->holds)
        message_close(&f->held);
    f->closing = 4;
    uv_close((uv_handle_t *)&f->events.poll, on_closed);
    uv_close((uv_handle_t *)&f->again, on_closed);
    uv_close((uv_handle_t *)&f->patience, on_closed);
    uv_close((uv_handle_t *)&f->quiet, on_closed);
    zmq_close(f->events.socket);
}

void kv_feed_stats(const struct kv_feed *f, struct kv_feed_stats *out)
{
    *out = f->stats;
    out->unknown = f->decoder.unknown;
    out->blocks = *kv_blocks_stats(f->blocks);
}
