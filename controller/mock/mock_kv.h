/* mock_kv.h - KV events of `weir mock`, published over ZeroMQ as vLLM does it: a PUB socket, and a ROUTER that replays the
 * last batches. */
#ifndef WEIR_MOCK_KV_H
#define WEIR_MOCK_KV_H

#include <stdbool.h>
#include <uv.h>

#include "controller/mock/mock_batch.h"

#define MOCK_KV_BUFFER 10000u /* batches that can be replayed: vLLM's default */

struct mock_kv;

/* Ports on host; 0: the system chooses. NULL and *why. */
struct mock_kv *mock_kv_new(uv_loop_t *loop, const char *host, uint32_t port, uint32_t replay_port,
                            const char **why);
void mock_kv_close(struct mock_kv *k);

/* The ports, as bound. */
uint32_t mock_kv_port(const struct mock_kv *k);
uint32_t mock_kv_replay_port(const struct mock_kv *k);

/* Numbers a batch, keeps it, and sends it, unless mute: then it can be replayed, but nobody hears of it. */
void mock_kv_publish(struct mock_kv *k, const struct mock_bytes *batch, bool mute);

#endif
