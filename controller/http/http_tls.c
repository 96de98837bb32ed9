/* http_tls.c - see http_tls.h. */
#include "controller/http/http_tls.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

struct http_tls {
    SSL_CTX *ctx; /* counted by OpenSSL: sessions hold it */
};

struct http_tls_session {
    SSL *ssl;
    const char *in; /* records that were fed and not yet read: the caller's until http_tls_keep */
    size_t in_len;
    char *kept, *out; /* copies: of records that could not be read yet; of those for the network */
    size_t out_len, out_cap;
    bool ready;
    char error[160];
};

static const unsigned char alpn_http11[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};

/* --- contexts -------------------------------------------------------------------------------------------- */

static void say(char *error, size_t size, const char *what, const char *file)
{
    unsigned long e = ERR_peek_last_error();
    const char *why = e ? ERR_reason_error_string(e) : NULL;
    snprintf(error, size, "%s %s: %s", what, file,
             why     ? why
             : errno ? strerror(errno)
                     : "not usable");
    ERR_clear_error();
}

/* Of what the client offers only http/1.1 is taken; a client that offers no HTTP/1.1 at all is told so. */
static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                       const unsigned char *in, unsigned in_len, void *arg)
{
    (void)ssl, (void)arg;
    for (unsigned i = 0; i + 1 <= in_len; i += 1u + in[i])
        if (i + sizeof alpn_http11 <= in_len && !memcmp(in + i, alpn_http11, sizeof alpn_http11)) {
            *out = in + i + 1;
            *out_len = 8;
            return SSL_TLSEXT_ERR_OK;
        }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

static int load_identity(SSL_CTX *ctx, const struct http_tls_options *o, char *error, size_t size)
{
    errno = 0;
    if (SSL_CTX_use_certificate_chain_file(ctx, o->cert_file) != 1) {
        say(error, size, "TLS certificate", o->cert_file);
        return -1;
    }
    const char *key = o->key_file ? o->key_file : o->cert_file;
    errno = 0;
    if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(ctx) != 1) {
        say(error, size, "TLS key", key);
        return -1;
    }
    return 0;
}

static int load_authorities(SSL_CTX *ctx, const char *file, char *error, size_t size)
{
    errno = 0;
    if (file && SSL_CTX_load_verify_locations(ctx, file, NULL) != 1) {
        say(error, size, "TLS authorities", file);
        return -1;
    }
    if (!file && SSL_CTX_set_default_verify_paths(ctx) != 1) {
        say(error, size, "TLS authorities", "of the system");
        return -1;
    }
    return 0;
}

static int configure_server(SSL_CTX *ctx, const struct http_tls_options *o, char *error,
                            size_t size)
{
    if (!o->cert_file) {
        snprintf(error, size, "TLS certificate: no file was given");
        return -1;
    }
    SSL_CTX_set_alpn_select_cb(ctx, choose_alpn, NULL);
    SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"weir", 4);
    if (load_identity(ctx, o, error, size))
        return -1;
    if (!o->ca_file)
        return 0;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    if (load_authorities(ctx, o->ca_file, error, size))
        return -1;
    SSL_CTX_set_client_CA_list(ctx, SSL_load_client_CA_file(o->ca_file));
    return 0;
}

static int configure_client(SSL_CTX *ctx, const struct http_tls_options *o, char *error,
                            size_t size)
{
    if (SSL_CTX_set_alpn_protos(ctx, alpn_http11, sizeof alpn_http11)) /* 0 is success here */
        return -1;
    if (o->cert_file && load_identity(ctx, o, error, size))
        return -1;
    if (o->insecure)
        return 0;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    return load_authorities(ctx, o->ca_file, error, size);
}

static struct http_tls *context_new(bool server, const struct http_tls_options *o, char *error,
                                    size_t size)
{
    struct http_tls *tls = calloc(1, sizeof *tls);
    SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    snprintf(error, size, "TLS: out of memory");
    if (!tls || !ctx)
        goto fail;
    ERR_clear_error();
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (server ? configure_server(ctx, o, error, size) : configure_client(ctx, o, error, size))
        goto fail;
    tls->ctx = ctx;
    error[0] = 0;
    return tls;
fail:
    SSL_CTX_free(ctx);
    free(tls);
    return NULL;
}

struct http_tls *http_tls_server_new(const struct http_tls_options *o, char *error, size_t size)
{
    return context_new(true, o, error, size);
}

struct http_tls *http_tls_client_new(const struct http_tls_options *o, char *error, size_t size)
{
    return context_new(false, o, error, size);
}

void http_tls_free(struct http_tls *tls)
{
    if (!tls)
        return;
    SSL_CTX_free(tls->ctx);
    free(tls);
}

/* --- sessions -------------------------------------------------------------------------------------------- */

/* The name to ask for and to find in the certificate; addresses are compared as such and not asked for. */
static bool set_host(SSL *ssl, const char *host)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(param, host))
        return true;
    ERR_clear_error();
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set_tlsext_host_name(ssl, host) && SSL_set1_host(ssl, host);
}

/* --- between OpenSSL and the session's buffers --------------------------------------------------------------- */

static int on_bio_read(BIO *bio, char *out, int want)
{
    struct http_tls_session *s = BIO_get_data(bio);
    size_t n = s->in_len < (size_t)want ? s->in_len : (size_t)want;
    BIO_clear_retry_flags(bio);
    if (!n) {
        BIO_set_retry_read(bio);
        return -1;
    }
    memcpy(out, s->in, n);
    s->in += n;
    s->in_len -= n;
    return (int)n;
}

static int on_bio_write(BIO *bio, const char *records, int len)
{
    struct http_tls_session *s = BIO_get_data(bio);
    size_t want = s->out_len + (size_t)len;
    BIO_clear_retry_flags(bio);
    if (want > s->out_cap) {
        s->out_cap = want < 2 * s->out_cap ? 2 * s->out_cap : want;
        s->out = realloc(s->out, s->out_cap);
        if (!s->out)
            abort();
    }
    memcpy(s->out + s->out_len, records, (size_t)len);
    s->out_len = want;
    return len;
}

static long on_bio_ctrl(BIO *bio, int what, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return what == BIO_CTRL_FLUSH || what == BIO_CTRL_DUP;
}

static BIO_METHOD *bio_method;

static void make_bio_method(void)
{
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "weir buffers");
    if (!bio_method)
        abort();
    BIO_meth_set_read(bio_method, on_bio_read);
    BIO_meth_set_write(bio_method, on_bio_write);
    BIO_meth_set_ctrl(bio_method, on_bio_ctrl);
}

static BIO *bio_new(struct http_tls_session *s)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_bio_method);
    BIO *bio = BIO_new(bio_method);
    if (!bio)
        return NULL;
    BIO_set_data(bio, s);
    BIO_set_init(bio, 1);
    return bio;
}

struct http_tls_session *http_tls_session_new(struct http_tls *tls, bool is_server,
                                              const char *host)
{
    struct http_tls_session *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->ssl = SSL_new(tls->ctx);
    BIO *bio = s->ssl ? bio_new(s) : NULL;
    if (!bio) {
        http_tls_session_free(s);
        return NULL;
    }
    SSL_set_bio(s->ssl, bio, bio);
    if (is_server)
        SSL_set_accept_state(s->ssl);
    else
        SSL_set_connect_state(s->ssl);
    if (!is_server && host && !set_host(s->ssl, host)) {
        http_tls_session_free(s);
        return NULL;
    }
    return s;
}

void http_tls_session_free(struct http_tls_session *s)
{
    if (!s)
        return;
    SSL_free(s->ssl);
    free(s->kept);
    free(s->out);
    free(s);
}

void http_tls_feed(struct http_tls_session *s, const char *records, size_t len)
{
    if (s->in_len) { /* these come behind what is kept */
        char *both = malloc(s->in_len + len);
        if (!both)
            abort();
        memcpy(both, s->in, s->in_len);
        memcpy(both + s->in_len, records, len);
        free(s->kept);
        s->kept = both;
        s->in = both;
        s->in_len += len;
        return;
    }
    free(s->kept);
    s->kept = NULL;
    s->in = records;
    s->in_len = len;
}

void http_tls_keep(struct http_tls_session *s)
{
    if (!s->in_len) {
        free(s->kept);
        s->kept = NULL;
        return;
    }
    if (s->kept)
        return; /* it is a copy already */
    s->kept = malloc(s->in_len);
    if (!s->kept)
        abort();
    memcpy(s->kept, s->in, s->in_len);
    s->in = s->kept;
}

/* What OpenSSL's answer `r` means. */
static int outcome(struct http_tls_session *s, int r)
{
    int e = SSL_get_error(s->ssl, r);
    if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE)
        return HTTP_TLS_MORE;
    if (e == SSL_ERROR_ZERO_RETURN)
        return HTTP_TLS_EOF;
    unsigned long code = ERR_peek_error();
    const char *why = code ? ERR_reason_error_string(code) : NULL;
    long verify = SSL_get_verify_result(s->ssl);
    if (verify != X509_V_OK)
        why = X509_verify_cert_error_string(verify);
    snprintf(s->error, sizeof s->error, "TLS: %s", why ? why : "the connection broke");
    ERR_clear_error();
    return HTTP_TLS_FAIL;
}

int http_tls_handshake(struct http_tls_session *s)
{
    ERR_clear_error();
    int r = SSL_do_handshake(s->ssl);
    if (r != 1)
        return outcome(s, r);
    s->ready = true;
    return 1;
}

bool http_tls_ready(const struct http_tls_session *s)
{
    return s->ready;
}

long http_tls_read(struct http_tls_session *s, char *out, size_t cap)
{
    size_t n;
    ERR_clear_error();
    int r = SSL_read_ex(s->ssl, out, cap, &n);
    return r == 1 ? (long)n : outcome(s, r);
}

int http_tls_write(struct http_tls_session *s, const char *data, size_t len)
{
    size_t n;
    ERR_clear_error();
    if (SSL_write_ex(s->ssl, data, len, &n) == 1 && n == len)
        return 0; /* without SSL_MODE_ENABLE_PARTIAL_WRITE it is all or nothing, and memory takes all */
    (void)outcome(s, 0);
    return HTTP_TLS_FAIL;
}

void http_tls_goodbye(struct http_tls_session *s)
{
    ERR_clear_error();
    (void)SSL_shutdown(s->ssl);
}

size_t http_tls_outgoing(struct http_tls_session *s, const char **records)
{
    *records = s->out;
    return s->out_len;
}

void http_tls_sent(struct http_tls_session *s)
{
    free(s->out); /* a connection that is idle holds no buffer */
    s->out = NULL;
    s->out_len = s->out_cap = 0;
}

const char *http_tls_error(const struct http_tls_session *s)
{
    return s->error;
}
