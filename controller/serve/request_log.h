/* request_log.h - one JSON line for each request that is over, which `weir replay` reads as a trace (trace.h: rows of
 * weir's log, "live":true): record production today, replay it tonight.
 *
 *   loops ── reqlog_put() ──► ring of REQLOG_RING ──► a thread of its own: text, write(2), rotation
 *
 * A loop never waits for the disk: with the ring full, or more than REQLOG_RING_KEYS keys in it, a line is dropped and counted,
 * and so are lines that cannot be written (disk full, file size limit). The file never ends in half a line for that: what was
 * written of one is cut off again, and writing goes on as soon as there is room. Lines come in order of the ends of
 * requests, at most REQLOG_EVERY_MS late.
 *
 * No prompt and no API key is in it, nor anything that they could be guessed from: prefix keys, sessions and tenants are
 * SipHash-2-4 of weir's own hashes under a salt, which the config names or which is random for each process. Equal prefixes stay
 * equal under one salt, so that a replay sees the same reuse.
 */
#ifndef WEIR_SERVE_REQUEST_LOG_H
#define WEIR_SERVE_REQUEST_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "controller/core/core.h"

#define REQLOG_RING 4096u           /* requests that wait to be written */
#define REQLOG_RING_KEYS (4u << 20) /* and their keys: 32 MiB */
#define REQLOG_MAX_KEYS 8192u       /* of one line; the rest of a longer prompt has no name */
#define REQLOG_EVERY_MS 50u
#define REQLOG_NAME_BYTES 96u /* of a worker; longer ones are cut */
#define REQLOG_ID_BYTES 129u
#define REQLOG_MODEL_BYTES 256u
#define REQLOG_ERROR_BYTES 512u
#define REQLOG_SALT_MIN_BYTES 8u

struct reqlog_candidate {
    char worker[REQLOG_NAME_BYTES];
    struct core_candidate was;
};

/* Times in ns since the arrival; -1: it did not happen. */
struct reqlog_entry {
    int64_t arrival_us; /* since 1970 */
    int64_t decided_ns, sent_ns, first_byte_ns, first_token_ns, end_ns;
    char id[REQLOG_ID_BYTES], model[REQLOG_MODEL_BYTES];
    const char *pool, *policy, *endpoint; /* live as long as the log */
    const char *status;                   /* completed, failed, rejected, left */
    const char *reason, *finish;          /* static; NULL: none */
    char worker[REQLOG_NAME_BYTES], prefill_worker[REQLOG_NAME_BYTES]; /* empty: none */
    int http_status;                                                   /* 0: none was sent */
    bool stream, has_usage;
    uint32_t prompt_tok, estimated_tok, output_tok, cached_tok, max_tokens, retries;
    int32_t priority;
    uint64_t session, tenant; /* 0: none; not yet salted */
    double overlap_tok;       /* < 0: none */
    int64_t ttft_ps, tpot_ps; /* predicted; < 0: not */
    uint32_t n_candidates;    /* that there were */
    uint32_t n;               /* in candidates */
    struct reqlog_candidate candidates[CORE_MAX_TOLD];
    uint64_t *keys; /* from malloc; the log's once put; not yet salted */
    uint32_t n_keys, key_tok;
};

struct reqlog_options {
    const char *path;
    uint64_t rotate_bytes; /* at this size FILE becomes FILE.1; 0: never */
    const void *salt;      /* NULL: random */
    size_t salt_len;
};

struct reqlog_stats {
    uint64_t written, dropped_full, dropped_disk, bytes;
    bool failing; /* the last write failed */
};

struct reqlog;

/* Appends to the file. NULL: error has one line. */
struct reqlog *reqlog_open(const struct reqlog_options *o, char error[REQLOG_ERROR_BYTES]);
/* From any thread. Copies e and takes its keys, whether or not the line is dropped. */
void reqlog_put(struct reqlog *l, const struct reqlog_entry *e);
/* The file is opened anew by its name, after somebody has moved it away. From any thread. */
void reqlog_reopen(struct reqlog *l);
struct reqlog_stats reqlog_stats(struct reqlog *l);
/* Writes what waits, and ends. NULL is fine. */
void reqlog_close(struct reqlog *l);

#endif
