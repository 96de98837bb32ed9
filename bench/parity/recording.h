/* recording.h - reads a recorded vLLM: config.json (the engine's limits), requests.jsonl (one request a line) and
 * steps.csv.gz (one scheduler step a line; uncompressed works as well). What is missing, malformed, cut off or
 * out of range ends the program: one line with the file, the line and what was expected; exit status 2.
 */
#ifndef WEIR_PARITY_RECORDING_H
#define WEIR_PARITY_RECORDING_H

#include <stdint.h>
#include <zlib.h>

#include "predictor/engine.h"

#define RECORDING_MAX_REQUESTS (UINT32_C(1) << 22)
#define RECORDING_MAX_LINE (1 << 20) /* bytes of a step's line */

/* The columns that a comparison needs; a recording may have more. */
enum recording_column {
    REC_STEP,
    REC_T0,
    REC_RUN0,
    REC_RUN,
    REC_WAIT,
    REC_FREE0,
    REC_FREE,
    REC_FREE3,
    REC_ADDED,
    REC_NEW,
    REC_RESUMED,
    REC_PREEMPTED,
    REC_FINISHED,
    REC_ABORTED,
    REC_BATCH,
    REC_COLUMNS,
};

struct recording_request {
    struct request_spec spec; /* spec.prompt_tok 0: no such request */
    uint64_t *keys;
    int64_t session, turn; /* session -1: none */
};

struct recording {
    const char *dir;
    struct engine_config config;
    struct recording_request *requests;
    uint32_t n_requests;

    char steps_name[4096];
    gzFile steps;
    uint64_t line; /* number of the current one */
    uint32_t n_columns, place[REC_COLUMNS];
    char *text; /* the current line, cut into cells */
    const char *cell[REC_COLUMNS];
};

/* dir is borrowed. */
void recording_open(struct recording *r, const char *dir);
void recording_close(struct recording *r);

/* The next step: r->cell. Returns 0 at the end. */
int recording_next(struct recording *r);

/* The request named by number i in a cell; ends the program if there is none. */
struct recording_request *recording_request(struct recording *r, uint32_t i);

/* Reads "12@3.5", "12:4:5" or "12" at *s: the whole number before the first mark, *at the number after '@' (0
 * without). Moves *s to the next word. */
uint32_t recording_word(const struct recording *r, const char **s, double *at);

/* "file:line: what" and the end. */
void recording_refuse(const struct recording *r, const char *what) __attribute__((noreturn));

#endif
