/* kv_feed.h - subscribes to one engine's KV events over ZeroMQ, on a uv loop, and tells what they say (kv_blocks.h).
 *
 *   PUB   [topic, seq (8 bytes, big-endian), batch]     seq counts from 0 in every life of the engine
 *   ROUTER (replay)   ask ["", seq]; answers ["", (topic,) seq, batch] ... and at the end seq -1 with an empty batch
 *
 *   in order      told
 *   a gap         replayed from there, while what comes next waits; what cannot be had any more: all is forgotten
 *   back to less  the engine began a new life: all is forgotten, and its life replayed from its beginning
 *   up again      after it was down (kv_feed_up) the last batch is asked for: if it is another one than the last that was seen,
 *                 as above; else all that is known is told again, to a core that forgot it
 *
 *   silence       asked for once in a while: the last batches before it may have been missed
 *
 * Without a replay address, a gap and a time away mean that all is forgotten. Reconnecting is ZeroMQ's own.
 * Sources: vLLM vllm/distributed/kv_events.py (ZmqEventPublisher); the empty frame and the topic in replays: seen on vLLM 0.32.
 */
#ifndef WEIR_KV_FEED_H
#define WEIR_KV_FEED_H

#include <uv.h>

#include "controller/engines/kv_blocks.h"

#define KV_FEED_REPLAY_MS 2000u /* between two answers of a replay; then it counts as failed */
#define KV_FEED_QUIET_MS 2000u
#define KV_FEED_BATCH_MESSAGES 32 /* between two looks at what else the loop has to do */
#define KV_FEED_RECONNECT_MAX_MS 5000
#define KV_FEED_QUEUE 100000 /* messages that wait in ZeroMQ; further ones are dropped: a gap */

struct kv_feed_options {
    uv_loop_t *loop;
    void *zmq;          /* its context */
    const char *events; /* tcp://HOST:PORT */
    const char *replay; /* likewise; NULL or empty: there is none */
    uint32_t block_tok; /* as for kv_blocks_new, with the next three */
    const char *model;
    kv_tell_fn tell;
    void *ctx;
};

struct kv_feed_stats {
    uint64_t batches, refused; /* refused: malformed; all is forgotten then */
    uint64_t gaps, healed;     /* healed: the replay had all that was missed */
    uint64_t epochs;           /* new lives of the engine, after the first */
    uint64_t unknown;          /* events of a kind that is not known */
    struct kv_blocks_stats blocks;
};

struct kv_feed;

/* NULL and *why: no such address, or out of memory. Whether somebody is there shows later. */
struct kv_feed *kv_feed_new(const struct kv_feed_options *o, const char **why);
/* Memory is freed as the loop runs. */
void kv_feed_close(struct kv_feed *f);

/* The engine is up (again). */
void kv_feed_up(struct kv_feed *f);

void kv_feed_stats(const struct kv_feed *f, struct kv_feed_stats *out);

#endif
