/* input.h - lines of a file, of standard input or of a buffer in memory; plain, gzip or zstd.
 *
 * The encoding is found from the first bytes, not from the name. Concatenated gzip members and zstd
 * frames are read as one stream. Compressed data that ends early or does not check is an error, never
 * a silent end.
 *
 *   read(2) / memory -> raw window -> inflate / zstd -> window -> lines (pointers into the window)
 *
 * Plain files are read straight into the window (a mapping would turn a file that shrinks meanwhile
 * into a SIGBUS); plain memory is its own window. Memory: one window, as large as the longest line
 * needs, plus the decoder's. One owner, one thread.
 */
#ifndef WEIR_INPUT_H
#define WEIR_INPUT_H

#include <stddef.h>
#include <stdint.h>

#include "predictor/error.h"

#define INPUT_ERROR_BYTES 512
#define INPUT_NAME_BYTES 160 /* of a name in messages; longer ones keep their end */

struct input;

/* "-" is standard input. NULL: error (INPUT_ERROR_BYTES) holds one line that names the file. */
struct input *input_open(const char *path, size_t line_max, char *error);

/* The buffer is borrowed until input_close; name stands in for the file in messages. */
struct input *input_open_memory(const char *name, const void *data, size_t len, size_t line_max,
                                char *error);

/* The next line without its '\n' or "\r\n" (nor a byte order mark at the start of the file); the last
 * one needs no end of line. 1: *line and *len set, valid until the next call; line[*len] is readable
 * and is '\n', '\r' or NUL. 0: end. WEIR_E_INPUT (longer than line_max, cut off, corrupt), WEIR_E_IO,
 * WEIR_E_NOMEM: input_error() says what; every later call returns the same. */
WEIR_NODISCARD int input_line(struct input *in, const char **line, size_t *len);

uint64_t input_line_number(const struct input *in); /* of the last line returned, from 1 */
const char *input_name(const struct input *in);     /* printable, shortened */
const char *input_error(const struct input *in);

void input_close(struct input *in); /* NULL is fine */

/* Writes at most `max` bytes of s as printable ASCII ("\xff" for others) into out (cap bytes), with
 * "..." where something was left out. Returns out. */
char *input_quote(char *out, size_t cap, const char *s, size_t len, size_t max);

#endif
