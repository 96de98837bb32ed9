/* redis_feed.c - see redis_feed.h. */
#include "controller/state/redis_feed.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <hiredis/adapters/libuv.h>
#include <hiredis/async.h>
#include <hiredis/hiredis_ssl.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "predictor/rng.h"

#define TICK_MS 50u
#define KEY_PREFIX "weir:v1:worker:"
#define KEY_NAMES "weir:v1:names"
#define KEY_WORKERS "weir:v1:workers"
#define KEY_DISPATCHES "weir:v1:dispatches"
#define ID_BYTES 48u
#define MGET_NAMES 64u
#define NAMES_KEPT_MS INT64_C(3600000) /* in weir:v1:names after its lease */

enum link_state { LINK_DOWN, LINK_GREETING, LINK_UP };

/* One connection. */
struct link {
    struct redis_feed *feed;
    redisAsyncContext *ac; /* NULL: none; else its data is this link */
    enum link_state state;
    uint32_t pending;  /* commands without an answer */
    uint64_t since_ms; /* pending: since then nothing has come */
};

struct lease {
    char name[RECORD_NAME_BYTES];
    uint64_t epoch, sequence, until_ms;
    uint32_t lease_ms;
};

struct redis_feed {
    uv_loop_t *uv;
    struct redis_url url;
    struct feed_ops ops;
    void *user;
    bool reads, closing, resolving;
    uv_timer_t tick;
    uv_getaddrinfo_t resolver;
    SSL_CTX *tls;
    struct rng rng;
    struct link talk, listen;
    bool trying;       /* from the first step of connecting on, until fail() */
    uint64_t tried_ms; /* when that began */
    uint64_t retry_ms; /* not before */
    uint32_t failures; /* in a row */
    char last_worker[ID_BYTES], last_dispatch[ID_BYTES]; /* of the streams */
    uint32_t ids_known;
    bool reading_all;
    uint64_t read_all_ms;
    struct lease *leases;
    uint32_t n_leases, leases_cap;
    struct worker_record record;
    struct worker_load loads[RECORD_MAX_LOADS];
    uint8_t bytes[RECORD_MAX_BYTES];
    struct feed_stats stats;
};

const char *feed_error_name(enum feed_error e)
{
    static const char *const names[] = {"connect", "timeout", "closed", "auth",
                                        "type",    "full",    "answer"};
    return names[e];
}

int64_t redis_feed_unix_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

const struct feed_stats *redis_feed_stats(const struct redis_feed *f)
{
    return &f->stats;
}

static uint64_t now_ms(const struct redis_feed *f)
{
    return uv_now(f->uv);
}

/* ---- errors */

static void note(struct redis_feed *f, enum feed_error e, const char *why)
{
    f->stats.errors[e]++;
    snprintf(f->stats.why, sizeof f->stats.why, "%s", why);
}

static void drop_link(struct link *l)
{
    redisAsyncContext *ac = l->ac;
    l->ac = NULL;
    l->state = LINK_DOWN;
    l->pending = 0;
    if (!ac)
        return;
    ac->data = NULL; /* callbacks that are still to come know by this */
    redisAsyncFree(ac);
}

/* Both connections are given up; another try comes later. */
static void fail(struct redis_feed *f, enum feed_error e, const char *why)
{
    note(f, e, why);
    drop_link(&f->talk);
    drop_link(&f->listen);
    f->trying = f->reading_all = f->stats.connected = false;
    f->ids_known = 0;
    uint64_t pause = FEED_RETRY_MIN_MS;
    for (uint32_t i = 0; i < f->failures && pause < FEED_RETRY_MAX_MS; i++)
        pause *= 2;
    if (pause > FEED_RETRY_MAX_MS)
        pause = FEED_RETRY_MAX_MS;
    f->failures++;
    f->retry_ms = now_ms(f) + pause / 2 + rng_below(&f->rng, (uint32_t)(pause / 2 + 1));
}

static enum feed_error error_of(const char *text)
{
    static const struct {
        const char *prefix;
        enum feed_error e;
    } kinds[] = {{"OOM", FEED_E_FULL},
                 {"WRONGTYPE", FEED_E_TYPE},
                 {"NOAUTH", FEED_E_AUTH},
                 {"WRONGPASS", FEED_E_AUTH},
                 {"NOPERM", FEED_E_AUTH},
                 {"ERR AUTH", FEED_E_AUTH},
                 {"ERR invalid password", FEED_E_AUTH}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (!strncmp(text, kinds[i].prefix, strlen(kinds[i].prefix)))
            return kinds[i].e;
    }
    return FEED_E_ANSWER;
}

/* ---- commands */

/* Every reply comes by here. NULL: the connection is going down (whoever notices that says so), or the link is another
 * one's by now. */
static struct link *heard(redisAsyncContext *ac, const redisReply *r)
{
    struct link *l = ac->data;
    if (!l || !r)
        return NULL;
    l->pending--;
    l->since_ms = l->feed->stats.heard_ms = now_ms(l->feed);
    return l;
}

/* As heard; errors are counted. */
static struct link *heard_well(redisAsyncContext *ac, const redisReply *r)
{
    struct link *l = heard(ac, r);
    if (!l || r->type != REDIS_REPLY_ERROR)
        return l;
    note(l->feed, error_of(r->str), r->str);
    return NULL;
}

static void send_as(struct link *l, redisCallbackFn *fn, void *user, int n, const char **argv,
                    const size_t *len)
{
    if (!l->pending++)
        l->since_ms = now_ms(l->feed);
    /* refused only when the connection is going down; then fn would not be called */
    if (redisAsyncCommandArgv(l->ac, fn, user, n, argv, len) != REDIS_OK) {
        l->pending--;
        fn(l->ac, NULL, user);
    }
}

static void send_argv(struct link *l, redisCallbackFn *fn, int n, const char **argv,
                      const size_t *len)
{
    send_as(l, fn, NULL, n, argv, len);
}

static void send_for(struct link *l, redisCallbackFn *fn, void *user, int n, const char **argv)
{
    send_as(l, fn, user, n, argv, NULL);
}

#define SEND(link, fn, ...)                                                                        \
    do {                                                                                           \
        const char *argv_[] = {__VA_ARGS__};                                                       \
        send_argv(link, fn, (int)(sizeof argv_ / sizeof *argv_), argv_, NULL);                     \
    } while (0)

static void on_written(redisAsyncContext *ac, void *reply, void *unused)
{
    struct link *l = heard_well(ac, reply);
    (void)unused;
    if (l)
        l->feed->stats.sent++;
}

bool redis_feed_ready(const struct redis_feed *f, uint32_t n)
{
    return f->talk.state == LINK_UP && f->talk.pending + n <= FEED_MAX_PENDING;
}

/* What write needs of the connection, or it is dropped. */
static int may_put(struct redis_feed *f, uint32_t n_commands)
{
    if (redis_feed_ready(f, n_commands))
        return 0;
    f->stats.dropped++;
    return WEIR_E_LIMIT;
}

static void append(struct redis_feed *f, const char *stream, const char *max, size_t len)
{
    const char *argv[] = {"XADD", stream, "MAXLEN", "~", max, "*", "d", (const char *)f->bytes};
    const size_t n[] = {4, strlen(stream), 6, 1, strlen(max), 1, 1, len};
    send_argv(&f->talk, on_written, 8, argv, n);
}

int redis_feed_put_dispatches(struct redis_feed *f, const struct dispatches *d)
{
    size_t len;
    int rc = may_put(f, 1);
    if (!rc)
        rc = record_write_dispatches(d, f->bytes, sizeof f->bytes, &len);
    if (!rc)
        append(f, KEY_DISPATCHES, FEED_DISPATCHES_LEN, len);
    return rc;
}

int redis_feed_put_worker(struct redis_feed *f, const struct worker_record *r)
{
    char key[sizeof KEY_PREFIX + RECORD_NAME_BYTES], lease[16], until[32];
    size_t len;
    int rc = may_put(f, 3);
    if (!rc)
        rc = record_write_worker(r, f->bytes, sizeof f->bytes, &len);
    if (rc)
        return rc;
    snprintf(key, sizeof key, KEY_PREFIX "%s", r->name);
    snprintf(lease, sizeof lease, "%u", r->lease_ms);
    snprintf(until, sizeof until, "%lld", (long long)(r->sent_at_us / 1000 + r->lease_ms));
    const char *argv[] = {"SET", key, (const char *)f->bytes, "PX", lease};
    const size_t n[] = {3, strlen(key), len, 2, strlen(lease)};
    send_argv(&f->talk, on_written, 5, argv, n);
    SEND(&f->talk, on_written, "ZADD", KEY_NAMES, until, r->name);
    append(f, KEY_WORKERS, FEED_WORKERS_LEN, len);
    return 0;
}

/* ---- leases */

static struct lease *lease_of(struct redis_feed *f, const char *name)
{
    for (uint32_t i = 0; i < f->n_leases; i++) {
        if (!strcmp(f->leases[i].name, name))
            return &f->leases[i];
    }
    return NULL;
}

static struct lease *lease_new(struct redis_feed *f, const char *name)
{
    if (f->n_leases == FEED_MAX_WORKERS)
        return NULL;
    if (f->n_leases == f->leases_cap) {
        uint32_t cap = f->leases_cap ? 2 * f->leases_cap : 64;
        struct lease *more = realloc(f->leases, cap * sizeof *more);
        if (!more)
            return NULL;
        f->leases = more;
        f->leases_cap = cap;
    }
    struct lease *l = &f->leases[f->n_leases++];
    *l = (struct lease){.until_ms = 0};
    memcpy(l->name, name, strlen(name) + 1);
    f->stats.workers = f->n_leases;
    return l;
}

/* Without Redis nobody can renew: leases begin anew when it is back. */
static void renew_leases(struct redis_feed *f)
{
    for (uint32_t i = 0; i < f->n_leases; i++)
        f->leases[i].until_ms = now_ms(f) + f->leases[i].lease_ms;
}

static void expire_leases(struct redis_feed *f)
{
    for (uint32_t i = 0; i < f->n_leases;) {
        if (f->leases[i].until_ms > now_ms(f)) {
            i++;
            continue;
        }
        struct lease gone = f->leases[i];
        f->leases[i] = f->leases[--f->n_leases];
        f->stats.workers = f->n_leases;
        f->ops.worker_gone(f->user, gone.name);
    }
}

/* ---- what comes in */

static void read_all(struct redis_feed *f);

/* name: of the key that it was found under; NULL: announced. */
static void take_worker(struct redis_feed *f, const char *name, const redisReply *bytes)
{
    struct worker_record *r = &f->record;
    enum record_fault fault =
        record_read_worker(r, name, bytes->str, bytes->len, redis_feed_unix_us());
    f->stats.refused[fault]++;
    if (fault)
        return;
    struct lease *l = lease_of(f, r->name);
    bool known = l != NULL;
    if (!l && !(l = lease_new(f, r->name))) {
        f->stats.dropped++;
        return;
    }
    if (known && (r->epoch < l->epoch || (r->epoch == l->epoch && r->sequence <= l->sequence)))
        return; /* a repeat, or one that was overtaken */
    if (known && r->epoch == l->epoch && r->sequence > l->sequence + 1 && !name) {
        f->stats.gaps++;
        read_all(f);
    }
    l->epoch = r->epoch;
    l->sequence = r->sequence;
    l->lease_ms = r->lease_ms;
    l->until_ms = now_ms(f) + r->lease_ms;
    f->stats.received++;
    f->ops.worker(f->user, r);
}

static void take_dispatches(struct redis_feed *f, const redisReply *bytes)
{
    struct dispatches d = {.loads = f->loads};
    enum record_fault fault =
        record_read_dispatches(&d, bytes->str, bytes->len, redis_feed_unix_us());
    f->stats.refused[fault]++;
    if (fault)
        return;
    f->stats.received++;
    f->ops.dispatches(f->user, &d);
}

static bool is_text(const redisReply *r)
{
    return r->type == REDIS_REPLY_STRING || r->type == REDIS_REPLY_STATUS;
}

/* [id, [field, value, ...]]: the value of field "d"; NULL: another form. *id is kept. */
static const redisReply *entry_bytes(const redisReply *e, char id[ID_BYTES])
{
    if (e->type != REDIS_REPLY_ARRAY || e->elements != 2 || !is_text(e->element[0]) ||
        e->element[0]->len >= ID_BYTES)
        return NULL;
    memcpy(id, e->element[0]->str, e->element[0]->len + 1);
    const redisReply *fields = e->element[1];
    for (size_t i = 0; fields->type == REDIS_REPLY_ARRAY && i + 1 < fields->elements; i += 2) {
        if (is_text(fields->element[i]) && !strcmp(fields->element[i]->str, "d") &&
            is_text(fields->element[i + 1]))
            return fields->element[i + 1];
    }
    return NULL;
}

static void take_stream(struct redis_feed *f, const char *name, const redisReply *entries)
{
    bool workers = !strcmp(name, KEY_WORKERS);
    for (size_t i = 0; entries->type == REDIS_REPLY_ARRAY && i < entries->elements; i++) {
        const redisReply *b =
            entry_bytes(entries->element[i], workers ? f->last_worker : f->last_dispatch);
        if (!b)
            f->stats.refused[RECORD_MALFORMED]++;
        else if (workers)
            take_worker(f, NULL, b);
        else
            take_dispatches(f, b);
    }
}

static void listen_on(struct redis_feed *f);

static void on_entries(redisAsyncContext *ac, void *reply, void *unused)
{
    const redisReply *r = reply;
    struct link *l = heard(ac, r);
    (void)unused;
    if (!l)
        return;
    struct redis_feed *f = l->feed;
    if (r->type == REDIS_REPLY_ERROR) { /* asked again at once it would say so again at once */
        fail(f, error_of(r->str), r->str);
        return;
    }
    for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i < r->elements; i++) {
        const redisReply *s = r->element[i];
        if (s->type == REDIS_REPLY_ARRAY && s->elements == 2 && is_text(s->element[0]))
            take_stream(f, s->element[0]->str, s->element[1]);
        if (f->listen.state != LINK_UP) /* given up meanwhile */
            return;
    }
    listen_on(f);
}

static void listen_on(struct redis_feed *f)
{
    char entries[16], block[16];
    snprintf(entries, sizeof entries, "%u", FEED_READ_ENTRIES);
    snprintf(block, sizeof block, "%u", FEED_BLOCK_MS);
    SEND(&f->listen, on_entries, "XREAD", "COUNT", entries, "BLOCK", block, "STREAMS", KEY_WORKERS,
         KEY_DISPATCHES, f->last_worker, f->last_dispatch);
}

/* ---- full read: names, then their records in portions; what changes meanwhile is announced on the stream */

/* A portion: the records of these names. */
struct portion {
    uint32_t n;
    char names[MGET_NAMES][RECORD_NAME_BYTES];
};

static void on_records(redisAsyncContext *ac, void *reply, void *user)
{
    const redisReply *r = reply;
    struct portion *p = user;
    struct link *l = heard_well(ac, r);
    for (size_t i = 0; l && r->type == REDIS_REPLY_ARRAY && i < r->elements && i < p->n; i++) {
        if (is_text(r->element[i]))
            take_worker(l->feed, p->names[i], r->element[i]);
    }
    free(p);
}

static void ask_records(struct link *l, const struct portion *names)
{
    char keys[MGET_NAMES][sizeof KEY_PREFIX + RECORD_NAME_BYTES];
    const char *argv[MGET_NAMES + 1] = {"MGET"};
    struct portion *p = malloc(sizeof *p);
    if (!p)
        return; /* the next full read asks again */
    *p = *names;
    for (uint32_t i = 0; i < p->n; i++) {
        snprintf(keys[i], sizeof keys[i], KEY_PREFIX "%s", p->names[i]);
        argv[i + 1] = keys[i];
    }
    send_for(l, on_records, p, (int)p->n + 1, argv);
}

static void on_names(redisAsyncContext *ac, void *reply, void *unused)
{
    const redisReply *r = reply;
    struct link *l = heard_well(ac, r);
    struct portion p = {.n = 0};
    (void)unused;
    if (!l)
        return;
    l->feed->reading_all = false;
    for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i < r->elements; i++) {
        const redisReply *name = r->element[i];
        if (!is_text(name) || name->len >= RECORD_NAME_BYTES)
            continue;
        memcpy(p.names[p.n++], name->str, name->len + 1);
        if (p.n == MGET_NAMES) {
            ask_records(l, &p);
            p.n = 0;
        }
    }
    if (p.n)
        ask_records(l, &p);
}

static void read_all(struct redis_feed *f)
{
    char last[16], before[32];
    if (f->reading_all || f->talk.state != LINK_UP)
        return;
    f->reading_all = true;
    f->read_all_ms = now_ms(f);
    f->stats.full_reads++;
    snprintf(last, sizeof last, "%u", FEED_MAX_WORKERS - 1);
    snprintf(before, sizeof before, "%lld",
             (long long)(redis_feed_unix_us() / 1000 - NAMES_KEPT_MS));
    SEND(&f->talk, on_written, "ZREMRANGEBYSCORE", KEY_NAMES, "-inf", before);
    SEND(&f->talk, on_names, "ZREVRANGE", KEY_NAMES, "0", last);
}

/* ---- a connection begins */

static void up(struct link *l)
{
    struct redis_feed *f = l->feed;
    l->state = LINK_UP;
    if (f->talk.state != LINK_UP || (f->reads && f->listen.state != LINK_UP))
        return;
    f->failures = 0;
    f->stats.connected = true;
    f->stats.connects++;
    if (f->reads) {
        renew_leases(f);
        read_all(f);
        listen_on(f);
    }
}

/* The last entry's id: what comes after it is read. */
static void on_last(redisAsyncContext *ac, void *reply, void *where)
{
    const redisReply *r = reply;
    struct link *l = heard(ac, r);
    char *id = where;
    if (!l)
        return;
    if (r->type != REDIS_REPLY_ARRAY) {
        fail(l->feed, r->type == REDIS_REPLY_ERROR ? error_of(r->str) : FEED_E_ANSWER,
             r->type == REDIS_REPLY_ERROR ? r->str : "no stream");
        return;
    }
    memcpy(id, "0-0", 4);
    if (r->elements)
        (void)entry_bytes(r->element[0], id);
    if (++l->feed->ids_known == 2)
        up(l);
}

static void ask_last(struct link *l, const char *stream, char *id)
{
    const char *argv[] = {"XREVRANGE", stream, "+", "-", "COUNT", "1"};
    send_for(l, on_last, id, 6, argv);
}

/* AUTH, SELECT or PING: an error of one of them ends the try. A connection without an answer is none: a Redis that was
 * stopped lets everybody connect. */
static void on_greeting(redisAsyncContext *ac, void *reply, void *last)
{
    const redisReply *r = reply;
    struct link *l = heard(ac, r);
    if (!l)
        return;
    struct redis_feed *f = l->feed;
    if (r->type == REDIS_REPLY_ERROR) {
        fail(f, error_of(r->str), r->str);
        return;
    }
    if (!last)
        return;
    if (l == &f->talk) {
        up(l);
        return;
    }
    ask_last(l, KEY_WORKERS, f->last_worker);
    ask_last(l, KEY_DISPATCHES, f->last_dispatch);
}

static void greet(struct link *l)
{
    const struct redis_url *u = &l->feed->url;
    static int yes = 1;
    char db[16];
    const char *ping[] = {"PING"};
    l->state = LINK_GREETING;
    if (u->password[0] && u->user[0])
        SEND(l, on_greeting, "AUTH", u->user, u->password);
    else if (u->password[0])
        SEND(l, on_greeting, "AUTH", u->password);
    if (u->db) {
        snprintf(db, sizeof db, "%u", u->db);
        SEND(l, on_greeting, "SELECT", db);
    }
    send_for(l, on_greeting, &yes, 1, ping);
}

static void on_connect(const redisAsyncContext *ac, int status)
{
    struct link *l = ac->data;
    if (!l || status == REDIS_OK)
        return;
    struct redis_feed *f = l->feed;
    char why[128];
    snprintf(why, sizeof why, "%.120s", ac->errstr && *ac->errstr ? ac->errstr : "no connection");
    l->ac = NULL; /* hiredis frees it */
    fail(f, FEED_E_CONNECT, why);
}

static void on_disconnect(const redisAsyncContext *ac, int status)
{
    struct link *l = ac->data;
    (void)status;
    if (!l)
        return;
    struct redis_feed *f = l->feed;
    char why[128];
    snprintf(why, sizeof why, "%.120s", ac->errstr && *ac->errstr ? ac->errstr : "closed");
    l->ac = NULL; /* hiredis frees it */
    fail(f, FEED_E_CLOSED, why);
}

/* The certificate must be for the host of the URL. */
static bool begin_tls(struct redis_feed *f, redisAsyncContext *ac)
{
    struct in6_addr address;
    SSL *ssl = SSL_new(f->tls);
    if (!ssl)
        return false;
    const char *host = f->url.host;
    bool numeric =
        inet_pton(AF_INET, host, &address) == 1 || inet_pton(AF_INET6, host, &address) == 1;
    bool ok = numeric ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host) == 1
                      : SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
    if (ok && redisInitiateSSL(&ac->c, ssl) == REDIS_OK)
        return true;
    SSL_free(ssl);
    return false;
}

static bool open_link(struct redis_feed *f, struct link *l, const char *address, char why[128])
{
    redisOptions o = {0};
    if (address)
        REDIS_OPTIONS_SET_TCP(&o, address, f->url.port);
    else
        REDIS_OPTIONS_SET_UNIX(&o, f->url.path);
    redisAsyncContext *ac = redisAsyncConnectWithOptions(&o);
    *l = (struct link){.feed = f};
    if (!ac)
        return false;
    if (ac->err || redisLibuvAttach(ac, f->uv) != REDIS_OK || (f->tls && !begin_tls(f, ac))) {
        snprintf(why, 128, "%.120s", ac->err ? ac->errstr : "no connection can be opened");
        redisAsyncFree(ac);
        return false;
    }
    l->ac = ac;
    ac->data = l;
    (void)redisAsyncSetConnectCallback(ac, on_connect);
    (void)redisAsyncSetDisconnectCallback(ac, on_disconnect);
    greet(l);
    return true;
}

static void open_links(struct redis_feed *f, const char *address)
{
    char why[128] = "no connection can be opened";
    if (!open_link(f, &f->talk, address, why) ||
        (f->reads && !open_link(f, &f->listen, address, why)))
        fail(f, FEED_E_CONNECT, why);
}

/* ---- life */

static void free_feed(struct redis_feed *f)
{
    SSL_CTX_free(f->tls);
    free(f->leases);
    free(f);
}

static void on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *list)
{
    struct redis_feed *f = request->data;
    char address[64] = "";
    f->resolving = false;
    if (f->closing) {
        uv_freeaddrinfo(list);
        if (!f->tick.data) /* closed, too */
            free_feed(f);
        return;
    }
    if (status || uv_ip_name(list->ai_addr, address, sizeof address))
        fail(f, FEED_E_CONNECT, status ? uv_strerror(status) : "no address");
    else
        open_links(f, address);
    uv_freeaddrinfo(list);
}

static void try_now(struct redis_feed *f)
{
    char port[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    f->trying = true;
    f->tried_ms = now_ms(f);
    if (!f->url.host[0]) {
        open_links(f, NULL);
        return;
    }
    snprintf(port, sizeof port, "%u", f->url.port);
    f->resolver.data = f;
    int rc = uv_getaddrinfo(f->uv, &f->resolver, on_resolved, f->url.host, port, &hints);
    if (rc)
        fail(f, FEED_E_CONNECT, uv_strerror(rc));
    else
        f->resolving = true;
}

static bool is_silent(const struct link *l, uint64_t now)
{
    return l->ac && l->pending && now - l->since_ms > FEED_TIMEOUT_MS;
}

static void on_tick(uv_timer_t *timer)
{
    struct redis_feed *f = timer->data;
    uint64_t now = now_ms(f);
    if (!f->trying && !f->resolving && now >= f->retry_ms)
        try_now(f);
    else if (is_silent(&f->talk, now) || is_silent(&f->listen, now))
        fail(f, FEED_E_TIMEOUT, "no answer");
    if (!f->reads || !f->stats.connected)
        return;
    expire_leases(f);
    if (now - f->read_all_ms > FEED_FULL_READ_MS)
        read_all(f);
}

static SSL_CTX *make_tls(void)
{
    SSL_CTX *t = SSL_CTX_new(TLS_client_method());
    if (t && SSL_CTX_set_default_verify_paths(t) == 1 &&
        SSL_CTX_set_min_proto_version(t, TLS1_2_VERSION) == 1) {
        SSL_CTX_set_verify(t, SSL_VERIFY_PEER, NULL);
        return t;
    }
    SSL_CTX_free(t);
    return NULL;
}

struct redis_feed *redis_feed_new(uv_loop_t *uv, const struct redis_url *url,
                                  const struct feed_ops *ops, void *user, uint64_t seed,
                                  char error[FEED_ERROR_BYTES])
{
    struct redis_feed *f = calloc(1, sizeof *f);
    snprintf(error, FEED_ERROR_BYTES, "out of memory");
    if (!f)
        return NULL;
    f->uv = uv;
    f->url = *url;
    f->user = user;
    f->talk.feed = f->listen.feed = f;
    rng_init(&f->rng, seed);
    if (ops) {
        f->ops = *ops;
        f->reads = true;
    }
    if (url->tls && !(f->tls = make_tls())) {
        snprintf(error, FEED_ERROR_BYTES, "TLS cannot be set up");
        free(f);
        return NULL;
    }
    uv_timer_init(uv, &f->tick);
    f->tick.data = f;
    uv_timer_start(&f->tick, on_tick, 0, TICK_MS);
    return f;
}

static void on_closed(uv_handle_t *handle)
{
    struct redis_feed *f = handle->data;
    handle->data = NULL;
    if (!f->resolving)
        free_feed(f);
}

void redis_feed_close(struct redis_feed *f)
{
    if (!f)
        return;
    f->closing = true;
    drop_link(&f->talk);
    drop_link(&f->listen);
    uv_timer_stop(&f->tick);
    uv_close((uv_handle_t *)&f->tick, on_closed);
    if (f->resolving)
        uv_cancel((uv_req_t *)&f->resolver);
}
