/* openai_request.h - what the decision core has to know of a request body, read without a tokenizer.
 *
 * Prompt identity: the prompt in the order in which chat templates put it (model, LoRA, cache salt, tools,
 * messages) is one stream of bytes, cut into chunks of OPENAI_CHUNK_BYTES; keys[i] names everything up to
 * the end of chunk i (request_chain_key over xxh3-64 of the chunk). Two requests share as many keys as
 * they share whole chunks, so a later turn of a conversation has the keys of the turns before it. Texts are
 * compared as JSON strings mean them, not as they are escaped. Prompts that come as token ids are hashed
 * as ids, OPENAI_CHUNK_TOK to a chunk: then tokens are exact, else they are an estimate that the caller
 * makes from prompt_bytes.
 *
 * A prompt costs one pass of the JSON parser (yyjson) and one of the hash over its bytes. No I/O.
 */
#ifndef WEIR_OPENAI_REQUEST_H
#define WEIR_OPENAI_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/error.h"

#define OPENAI_CHUNK_BYTES 256u /* of prompt text per key: about 64 tokens */
#define OPENAI_CHUNK_TOK 16u    /* token ids per key: vLLM's default block */
#define OPENAI_MAX_KEYS                                                                            \
    16384u /* of one prompt: its first 4 MiB, or 262,144 ids; the rest has no name */
#define OPENAI_NAME_BYTES 256u /* model and LoRA names, with the final NUL */
#define OPENAI_ERROR_BYTES 256u
#define OPENAI_MAX_TOKENS (UINT32_C(1) << 28)
#define OPENAI_MAX_CHOICES 1024u

enum openai_endpoint {
    OPENAI_CHAT,            /* /v1/chat/completions */
    OPENAI_COMPLETIONS,     /* /v1/completions */
    OPENAI_RESPONSES,       /* /v1/responses */
    OPENAI_EMBEDDINGS,      /* /v1/embeddings */
    OPENAI_TOKENIZE,        /* /tokenize (vLLM) */
    OPENAI_VLLM_GENERATE,   /* /inference/v1/generate */
    OPENAI_SGLANG_GENERATE, /* /generate */
    OPENAI_MODELS,          /* /v1/models */
    OPENAI_OTHER,
};

/* By the path alone, up to its '?'. */
enum openai_endpoint openai_endpoint_of(const char *path, size_t len);
/* "chat", "completions" ...; for metrics and logs. */
const char *openai_endpoint_name(enum openai_endpoint e);

struct openai_request {
    enum openai_endpoint endpoint;
    char model[OPENAI_NAME_BYTES]; /* empty: not named */
    bool stream, include_usage;
    uint32_t choices;    /* n, or the number of prompts of a batch; >= 1 */
    uint32_t max_tokens; /* of one answer; 0: the caller does not say */
    uint32_t
        expected_output_tok; /* caller's hint (nvext.agent_hints.osl, expected_output_length); 0 none */
    bool has_priority;
    int32_t priority;    /* smaller is more urgent (vLLM's meaning) */
    uint64_t user;       /* hash of `user` or `safety_identifier`; 0: none */
    uint64_t cache_salt; /* hash; 0: none */
    uint64_t session;    /* hash of previous_response_id or prompt_cache_key; 0: none */

    uint64_t prompt_bytes; /* of text; templates' own tokens not counted */
    uint32_t prompt_tok;   /* exact, when the prompt was given as ids; else 0 */
    uint32_t media;        /* images, audio and files: their tokens are in no count */
    const uint64_t *keys;  /* in the reader: until its next read */
    uint32_t n_keys;
    uint32_t key_tok; /* OPENAI_CHUNK_TOK: ids; 0: chunks of OPENAI_CHUNK_BYTES bytes */
};

/* How the chain of keys[] begins and goes on, for those who learn of token ids in other ways than from a body. */
uint64_t openai_root(const char *model, size_t len, const char *salt, size_t salt_len);
uint64_t openai_ids_key(uint64_t parent, const uint32_t ids[OPENAI_CHUNK_TOK]);

/* Scratch memory of one thread: parser arena and keys. */
struct openai_reader;

struct openai_reader *openai_reader_new(void); /* NULL: out of memory */
void openai_reader_free(struct openai_reader *r);

/* Reads a body. 0; WEIR_E_INPUT: not a JSON object of this endpoint (broken JSON or UTF-8, a member of the wrong
 * type, a number out of its range, no prompt): error has one line for the caller of the API and *param the
 * member it is about ("" none; static text); WEIR_E_NOMEM. For OPENAI_OTHER nothing but `model`, `stream` and
 * `user` is looked at. */
WEIR_NODISCARD int openai_request_read(struct openai_reader *r, enum openai_endpoint endpoint,
                                       const char *body, size_t len, struct openai_request *out,
                                       char error[OPENAI_ERROR_BYTES], const char **param);

#endif
