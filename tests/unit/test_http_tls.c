/* TLS: contexts from files, sessions back to back in memory, and server and client over it. Certificates are made here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "controller/http/http_client.h"
#include "controller/http/http_server.h"
#include "controller/http/http_tls.h"
#include "tests/support/files.h"
#include "tests/support/net.h"

/* --- certificates ------------------------------------------------------------------------------------------ */

struct identity {
    EVP_PKEY *key;
    X509 *cert;
    const char *cert_file, *key_file;
};

static struct identity authority, other_authority, server_id, second_id, client_id;

static const char *file_of_bio(BIO *bio)
{
    char *text;
    long len = BIO_get_mem_data(bio, &text);
    const char *path = file_with(text, (size_t)len);
    BIO_free(bio);
    return path;
}

static void write_files(struct identity *id)
{
    BIO *cert = BIO_new(BIO_s_mem()), *key = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(cert, id->cert);
    PEM_write_bio_PrivateKey(key, id->key, NULL, NULL, 0, NULL, NULL);
    id->cert_file = file_of_bio(cert);
    id->key_file = file_of_bio(key);
}

static void extend(X509 *cert, int nid, const char *value)
{
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, value);
    assert_non_null(e);
    X509_add_ext(cert, e, -1);
    X509_EXTENSION_free(e);
}

/* names: subjectAltName; NULL: an authority. */
static void make(struct identity *id, const char *name, const struct identity *issuer,
                 const char *names)
{
    static long serial = 1;
    id->key = EVP_EC_gen("P-256");
    id->cert = X509_new();
    assert_true(id->key && id->cert);
    X509_set_version(id->cert, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(id->cert), serial++);
    X509_gmtime_adj(X509_getm_notBefore(id->cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(id->cert), 3600);
    X509_set_pubkey(id->cert, id->key);
    X509_NAME *subject = X509_get_subject_name(id->cert);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(id->cert, X509_get_subject_name(issuer ? issuer->cert : id->cert));
    extend(id->cert, NID_basic_constraints, names ? "CA:FALSE" : "critical,CA:TRUE");
    if (names)
        extend(id->cert, NID_subject_alt_name, names);
    assert_true(X509_sign(id->cert, issuer ? issuer->key : id->key, EVP_sha256()));
    write_files(id);
}

static void drop(struct identity *id)
{
    EVP_PKEY_free(id->key);
    X509_free(id->cert);
}

static int make_certificates(void **state)
{
    uv_loop_t uv; /* libuv opens descriptors of its own with the first loop */
    (void)state;
    if (uv_loop_init(&uv) || uv_loop_close(&uv))
        return -1;
    make(&authority, "authority", NULL, NULL);
    make(&other_authority, "other-authority", NULL, NULL);
    make(&server_id, "server", &authority, "DNS:localhost,IP:127.0.0.1");
    make(&second_id, "second", &other_authority, "DNS:localhost,IP:127.0.0.1");
    make(&client_id, "client", &authority, "DNS:client");
    return 0;
}

static int drop_certificates(void **state)
{
    (void)state;
    drop(&authority);
    drop(&other_authority);
    drop(&server_id);
    drop(&second_id);
    drop(&client_id);
    return 0;
}

static char error[256];

static struct http_tls *server_context(const struct identity *id, const char *ca_file)
{
    struct http_tls_options o = {
        .cert_file = id->cert_file, .key_file = id->key_file, .ca_file = ca_file};
    struct http_tls *tls = http_tls_server_new(&o, error, sizeof error);
    if (!tls)
        fail_msg("%s", error);
    return tls;
}

static struct http_tls *client_context(const struct identity *ca, const struct identity *own,
                                       bool insecure)
{
    struct http_tls_options o = {.ca_file = ca ? ca->cert_file : NULL,
                                 .cert_file = own ? own->cert_file : NULL,
                                 .key_file = own ? own->key_file : NULL,
                                 .insecure = insecure};
    struct http_tls *tls = http_tls_client_new(&o, error, sizeof error);
    if (!tls)
        fail_msg("%s", error);
    return tls;
}

/* --- contexts ---------------------------------------------------------------------------------------------- */

static void errors_name_the_file(void **state)
{
    (void)state;
    struct http_tls_options o = {.cert_file = "/nowhere/a.crt", .key_file = server_id.key_file};
    assert_null(http_tls_server_new(&o, error, sizeof error));
    assert_non_null(strstr(error, "certificate /nowhere/a.crt: "));
    o.cert_file = server_id.key_file;
    assert_null(http_tls_server_new(&o, error, sizeof error));
    assert_non_null(strstr(error, server_id.key_file));
    o.cert_file = server_id.cert_file;
    o.key_file = client_id.key_file; /* not the one of the certificate */
    assert_null(http_tls_server_new(&o, error, sizeof error));
    assert_non_null(strstr(error, client_id.key_file));
    o = (struct http_tls_options){0};
    assert_null(http_tls_server_new(&o, error, sizeof error));
    assert_non_null(strstr(error, "no file"));
    o = (struct http_tls_options){.ca_file = "/nowhere/ca.crt"};
    assert_null(http_tls_client_new(&o, error, sizeof error));
    assert_non_null(strstr(error, "/nowhere/ca.crt"));
    http_tls_free(NULL);
}

/* --- sessions in memory ------------------------------------------------------------------------------------ */

/* Carries what `from` has to say over to `to`, a few bytes at a time; what `to` does not read is kept. */
static void carry(struct http_tls_session *from, struct http_tls_session *to, size_t piece)
{
    const char *records;
    size_t len = http_tls_outgoing(from, &records);
    char *copy = malloc(len + 1);
    memcpy(copy, records, len);
    http_tls_sent(from);
    for (size_t i = 0; i < len; i += piece) {
        http_tls_feed(to, copy + i, len - i < piece ? len - i : piece);
        http_tls_keep(to);
    }
    free(copy);
}

static void in_memory(void **state)
{
    static const size_t pieces[] = {1, 100, 100000};
    (void)state;
    struct http_tls *st = server_context(&server_id, NULL),
                    *ct = client_context(&authority, NULL, false);
    for (unsigned i = 0; i < 3; i++) {
        struct http_tls_session *s = http_tls_session_new(st, true, NULL),
                                *c = http_tls_session_new(ct, false, "localhost");
        int rs = HTTP_TLS_MORE, rc = HTTP_TLS_MORE;
        for (unsigned k = 0; k < 10 && (rs != 1 || rc != 1); k++) {
            rc = http_tls_handshake(c);
            carry(c, s, pieces[i]);
            rs = http_tls_handshake(s);
            carry(s, c, pieces[i]);
        }
        assert_true(rs == 1 && rc == 1 && http_tls_ready(s) && http_tls_ready(c));
        char out[64];
        assert_int_equal(http_tls_write(c, "hello", 5), 0);
        carry(c, s, pieces[i]);
        assert_int_equal(http_tls_read(s, out, 3), 3);
        assert_int_equal(http_tls_read(s, out + 3, 10), 2);
        assert_memory_equal(out, "hello", 5);
        assert_int_equal(http_tls_read(s, out, 10), HTTP_TLS_MORE);
        http_tls_goodbye(c);
        carry(c, s, pieces[i]);
        assert_int_equal(http_tls_read(s, out, 10), HTTP_TLS_EOF);
        http_tls_feed(c, "this is no record", 17);
        assert_int_equal(http_tls_read(c, out, 10), HTTP_TLS_FAIL);
        assert_non_null(strstr(http_tls_error(c), "TLS: "));
        http_tls_session_free(s);
        http_tls_session_free(c);
    }
    http_tls_free(st);
    http_tls_free(ct);
}

/* --- server and client ------------------------------------------------------------------------------------- */

struct fixture {
    uv_loop_t uv;
    struct http_loop *loop;
    struct http_server *server;
    struct http_client *client;
    struct http_upstream *up;
    struct http_tls *server_tls, *client_tls;
    struct http_server_options options;
    unsigned fds_before;
    bool hold;
    struct http_exchange *held;

    struct http_slice body;
    char *got;
    size_t len;
    unsigned over, parts;
    bool failed;
    enum http_fail why;
    char detail[200];
};

static void on_request(void *user, struct http_exchange *ex)
{
    struct fixture *f = user;
    assert_true(http_exchange_is_tls(ex));
    if (f->hold)
        f->held = ex;
    else
        http_reply(ex, 200, NULL, http_request_body(ex));
}

static void on_gone(void *user, struct http_exchange *ex, enum http_gone why)
{
    struct fixture *f = user;
    (void)ex, (void)why;
    f->held = NULL;
}

static const struct http_server_ops server_ops = {.request = on_request, .gone = on_gone};

static void on_part(void *user, struct http_call *call, const struct http_part *part)
{
    struct fixture *f = user;
    (void)call;
    f->got = realloc(f->got, f->len + part->bytes + 1);
    for (size_t i = 0; i < part->n; i++) {
        memcpy(f->got + f->len, part->data[i].s, part->data[i].len);
        f->len += part->data[i].len;
    }
    f->parts++;
    f->over += part->last;
}

static void on_failed(void *user, struct http_call *call, const struct http_failure *failure)
{
    struct fixture *f = user;
    (void)call;
    f->over++;
    f->failed = true;
    f->why = failure->why;
    snprintf(f->detail, sizeof f->detail, "%s", failure->detail);
}

static const struct http_call_ops call_ops = {.part = on_part, .failed = on_failed};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->fds_before = net_open_fds();
    uv_loop_init(&f->uv);
    f->loop = http_loop_new(&f->uv);
    f->client = http_client_new(f->loop);
    http_server_defaults(&f->options);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    http_client_close(f->client);
    if (f->server)
        http_server_close(f->server);
    uv_run(&f->uv, UV_RUN_NOWAIT);
    uv_run(&f->uv, UV_RUN_NOWAIT);
    struct http_loop_stats stats = http_loop_stats(f->loop);
    http_loop_free(f->loop);
    uv_run(&f->uv, UV_RUN_DEFAULT);
    int e = uv_loop_close(&f->uv);
    unsigned fds = net_open_fds(), before = f->fds_before;
    http_tls_free(f->server_tls);
    http_tls_free(f->client_tls);
    free(f->got);
    free(f);
    return stats.blocks_used || e || fds != before ? -1 : 0;
}

static void start(struct fixture *f, struct http_tls *server_tls, struct http_tls *client_tls,
                  const char *host)
{
    struct http_upstream_options uo;
    f->server_tls = f->options.tls = server_tls;
    f->client_tls = client_tls;
    f->server = http_server_new(f->loop, &f->options, &server_ops, f, error);
    assert_non_null(f->server);
    http_upstream_defaults(&uo);
    uo.host = host;
    uo.port = http_server_port(f->server);
    uo.tls = client_tls;
    f->up = http_upstream_new(f->client, &uo);
}

static bool is_over(void *arg)
{
    return ((struct fixture *)arg)->over;
}

static bool is_held(void *arg)
{
    return ((struct fixture *)arg)->held;
}

static bool has_part(void *arg)
{
    return ((struct fixture *)arg)->parts;
}

static struct http_call *post(struct fixture *f, const char *data, size_t len)
{
    struct http_call *call = http_call_new(f->up, &call_ops, f);
    f->over = f->parts = 0;
    f->len = 0;
    f->failed = false;
    f->body = (struct http_slice){data, len};
    assert_int_equal(http_call_request(call, HTTP_M_POST, HTTP_SLICE("/")), 0);
    assert_int_equal(http_call_send(call, &f->body, 1), 0);
    return call;
}

static void echo(struct fixture *f, const char *data, size_t len)
{
    post(f, data, len);
    net_run_until(&f->uv, is_over, f, "the answer");
    if (f->failed)
        fail_msg("%s: %s", http_fail_text(f->why), f->detail);
    assert_int_equal(f->len, len);
    assert_memory_equal(f->got, data, len);
}

static void fails(struct fixture *f, const char *detail)
{
    post(f, "x", 1);
    net_run_until(&f->uv, is_over, f, "the failure");
    assert_true(f->failed);
    assert_int_equal(f->why, HTTP_FAIL_TLS);
    if (!strstr(f->detail, detail))
        fail_msg("\"%s\" without \"%s\"", f->detail, detail);
}

static void calls_over_tls(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&server_id, NULL), client_context(&authority, NULL, false),
          "localhost");
    for (unsigned i = 0; i < 3; i++)
        echo(f, "hello", 5);
    assert_int_equal(http_upstream_stats(f->up).connects, 1);
    char *data = malloc(3000000);
    for (size_t i = 0; i < 3000000; i++)
        data[i] = (char)(i * 31 % 251);
    echo(f, data, 3000000);
    echo(f, data, 70000);
    assert_int_equal(http_upstream_stats(f->up).connects, 1);
    free(data);
}

static void address_as_name(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&server_id, NULL), client_context(&authority, NULL, false),
          "127.0.0.1");
    echo(f, "hello", 5);
}

static void unknown_authority(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&server_id, NULL), client_context(&other_authority, NULL, false),
          "localhost");
    fails(f, "issuer certificate");
    assert_int_equal(http_server_stats(f->server).requests, 0);
}

static void system_authorities(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&server_id, NULL), client_context(NULL, NULL, false), "localhost");
    fails(f, "certificate");
}

static void wrong_name(void **state)
{
    struct fixture *f = *state;
    struct http_tls *st = server_context(&client_id, NULL); /* its name is "client" */
    start(f, st, client_context(&authority, NULL, false), "localhost");
    fails(f, "mismatch");
}

static void unverified_on_demand(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&client_id, NULL), client_context(&other_authority, NULL, true),
          "localhost");
    echo(f, "hello", 5);
}

static void clients_show_certificates(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&server_id, authority.cert_file),
          client_context(&authority, &client_id, false), "localhost");
    echo(f, "hello", 5);
}

static void clients_without_certificate_are_refused(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&server_id, authority.cert_file),
          client_context(&authority, NULL, false), "localhost");
    post(f, "x", 1);
    net_run_until(&f->uv, is_over, f,
                  "the failure"); /* with TLS 1.3 the client learns it after its handshake */
    assert_true(f->failed);
    assert_int_equal(http_server_stats(f->server).requests, 0);
    assert_int_equal(http_server_stats(f->server).tls_failed, 1);
}

static void new_certificates_for_new_connections(void **state)
{
    struct fixture *f = *state;
    start(f, server_context(&server_id, NULL), client_context(&authority, NULL, false),
          "localhost");
    echo(f, "hello", 5);
    struct http_tls *fresh = server_context(&second_id, NULL);
    http_server_set_tls(f->server, fresh);
    http_tls_free(f->server_tls); /* those that have it go on */
    f->server_tls = fresh;
    echo(f, "again", 5);
    http_upstream_close_idle(f->up);
    fails(f, "issuer certificate"); /* the new one is of the other authority */
}

static void back_pressure(void **state)
{
    enum { SIZE = 12000000 };
    struct fixture *f = *state;
    char *data = calloc(1, SIZE);
    f->hold = true;
    start(f, server_context(&server_id, NULL), client_context(&authority, NULL, false),
          "localhost");
    struct http_call *call = post(f, "x", 1);
    net_run_until(&f->uv, is_held, f, "the request");
    http_reply_head(f->held, 200, SIZE);
    http_reply_send(f->held, &(struct http_slice){data, 1000}, 1, false);
    net_run_until(&f->uv, has_part, f, "the first part");
    http_call_pause(call);
    http_reply_send(f->held, &(struct http_slice){data + 1000, SIZE - 1000}, 1, true);
    net_run_for(&f->uv, 50);
    assert_int_equal(f->over, 0);
    assert_true(f->len < 200000);
    http_call_resume(call);
    net_run_until(&f->uv, is_over, f, "the rest");
    assert_int_equal(f->len, SIZE);
    free(data);
}

static void client_leaves(void **state)
{
    struct fixture *f = *state;
    f->hold = true;
    start(f, server_context(&server_id, NULL), client_context(&authority, NULL, false),
          "localhost");
    struct http_call *call = post(f, "x", 1);
    net_run_until(&f->uv, is_held, f, "the request");
    http_call_cancel(call);
    net_run_for(&f->uv, 20);
    assert_null(f->held);
    assert_int_equal(http_server_stats(f->server).gone, 1);
}

static void plain_text_to_a_tls_port(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    start(f, server_context(&server_id, NULL), client_context(&authority, NULL, false),
          "localhost");
    net_connect(&p, &f->uv, http_server_port(f->server));
    net_send(&p, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    net_expect_end(&p);
    assert_int_equal(http_server_stats(f->server).tls_failed, 1);
    assert_int_equal(http_server_stats(f->server).requests, 0);
    net_close(&p);
}

static void handshake_that_stalls(void **state)
{
    struct fixture *f = *state;
    struct net_peer p;
    f->options.header_timeout_ms = 40;
    start(f, server_context(&server_id, NULL), client_context(&authority, NULL, false),
          "localhost");
    net_connect(&p, &f->uv, http_server_port(f->server));
    net_send(&p, "\x16\x03\x01");
    net_expect_end(&p);
    net_close(&p);
}

/* --- a scripted TLS server ----------------------------------------------------------------------------------- */

struct scripted {
    struct net_peer p;
    struct http_tls_session *tls;
    size_t fed;
    char plain[2000];
    size_t len;
};

static bool pump(void *arg)
{
    struct scripted *s = arg;
    const char *records;
    net_read(&s->p);
    http_tls_feed(s->tls, s->p.got + s->fed, s->p.len - s->fed);
    s->fed = s->p.len;
    if (http_tls_ready(s->tls) || http_tls_handshake(s->tls) == 1) {
        long n = http_tls_read(s->tls, s->plain + s->len, sizeof s->plain - s->len - 1);
        if (n > 0)
            s->len += (size_t)n;
    }
    http_tls_keep(s->tls);
    size_t out = http_tls_outgoing(s->tls, &records);
    net_send_n(&s->p, records, out);
    http_tls_sent(s->tls);
    return strstr(s->plain, "\r\n\r\nx");
}

static void say(struct scripted *s, const char *text, bool goodbye)
{
    const char *records;
    assert_int_equal(http_tls_write(s->tls, text, strlen(text)), 0);
    if (goodbye)
        http_tls_goodbye(s->tls);
    size_t out = http_tls_outgoing(s->tls, &records);
    net_send_n(&s->p, records, out);
    http_tls_sent(s->tls);
    net_close(&s->p);
}

/* A body that ends with the connection is only whole if TLS says so: else somebody may have cut it. */
static void truncation_is_noticed(void **state)
{
    struct fixture *f = *state;
    f->server_tls = server_context(&server_id, NULL);
    f->client_tls = client_context(&authority, NULL, false);
    struct http_upstream_options uo;
    http_upstream_defaults(&uo);
    uo.host = "localhost";
    uo.tls = f->client_tls;
    int listener = net_listen(&uo.port);
    f->up = http_upstream_new(f->client, &uo);
    for (unsigned goodbye = 0; goodbye < 2; goodbye++) {
        struct scripted s = {0};
        post(f, "x", 1);
        net_accept(&s.p, &f->uv, listener);
        s.tls = http_tls_session_new(f->server_tls, true, NULL);
        net_run_until(&f->uv, pump, &s, "the request");
        say(&s, "HTTP/1.1 200 OK\r\n\r\nall of it?", goodbye);
        net_run_until(&f->uv, is_over, f, "the end");
        assert_int_equal(f->failed, !goodbye);
        assert_int_equal(f->len, 10);
        http_tls_session_free(s.tls);
    }
    close(listener);
}

/* --- versions and protocols ---------------------------------------------------------------------------------- */

/* The outcome of a handshake with a client of OpenSSL's own, set up by `prepare`. */
static bool shakes_hands(void (*prepare)(SSL *ssl))
{
    struct http_tls *st = server_context(&server_id, NULL);
    struct http_tls_session *s = http_tls_session_new(st, true, NULL);
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_security_level(ctx, 0);
    SSL *c = SSL_new(ctx);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    SSL_set_bio(c, in, out);
    SSL_set_connect_state(c);
    prepare(c);
    int server = HTTP_TLS_MORE, client = -1;
    for (unsigned i = 0; i < 10 && (server == HTTP_TLS_MORE || client != 1); i++) {
        char buf[8192];
        const char *records;
        client = SSL_do_handshake(c);
        int n = BIO_read(out, buf, sizeof buf);
        http_tls_feed(s, buf, n > 0 ? (size_t)n : 0);
        server = http_tls_handshake(s);
        http_tls_keep(s);
        size_t len = http_tls_outgoing(s, &records);
        BIO_write(in, records, (int)len);
        http_tls_sent(s);
        if (server == HTTP_TLS_FAIL)
            break;
    }
    SSL_free(c);
    SSL_CTX_free(ctx);
    http_tls_session_free(s);
    http_tls_free(st);
    return server == 1 && client == 1;
}

static void nothing(SSL *ssl)
{
    (void)ssl;
}

static void tls_1_2(SSL *ssl)
{
    SSL_set_max_proto_version(ssl, TLS1_2_VERSION);
}

static void tls_1_1(SSL *ssl)
{
    SSL_set_min_proto_version(ssl, TLS1_VERSION);
    SSL_set_max_proto_version(ssl, TLS1_1_VERSION);
}

static void both_protocols(SSL *ssl)
{
    SSL_set_alpn_protos(ssl, (const unsigned char *)"\x02h2\x08http/1.1", 12);
}

static void http2_only(SSL *ssl)
{
    SSL_set_alpn_protos(ssl, (const unsigned char *)"\x02h2", 3);
}

static void versions_and_protocols(void **state)
{
    (void)state;
    assert_true(shakes_hands(nothing));
    assert_true(shakes_hands(tls_1_2));
    assert_false(shakes_hands(tls_1_1));
    assert_true(shakes_hands(both_protocols));
    assert_false(shakes_hands(http2_only));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_name_the_file),
        cmocka_unit_test(in_memory),
        cmocka_unit_test(versions_and_protocols),
        T(calls_over_tls),
        T(address_as_name),
        T(unknown_authority),
        T(system_authorities),
        T(wrong_name),
        T(unverified_on_demand),
        T(clients_show_certificates),
        T(clients_without_certificate_are_refused),
        T(new_certificates_for_new_connections),
        T(back_pressure),
        T(client_leaves),
        T(plain_text_to_a_tls_port),
        T(handshake_that_stalls),
        T(truncation_is_noticed),
    };
    return cmocka_run_group_tests_name("http_tls", tests, make_certificates, drop_certificates);
}
