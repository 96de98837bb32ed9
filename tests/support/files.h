/* files.h - files and compressed bytes for tests. A failure of the system fails the test. */
#ifndef WEIR_TESTS_FILES_H
#define WEIR_TESTS_FILES_H

#include <stddef.h>

/* Writes a new file below the folder for temporary files; it is removed when the program ends. The name
 * holds until then. */
const char *file_with(const void *data, size_t len);
const char *file_of(const char *text);

/* Compressed copies; free them. */
void *gzip_of(const void *data, size_t len, size_t *out_len);
void *zstd_of(const void *data, size_t len, size_t *out_len);

/* Runs a subcommand's main in this process and returns what it wrote to standard output and standard
 * error, together; free it. argv[0] is the command's name; input (NULL: none) is its standard input. */
char *output_of(int (*command)(int, char **), const char *const *argv, const char *input,
                int *status);

/* output_of with its arguments written out. */
#define OUTPUT(command, status, ...)                                                               \
    output_of(command, (const char *const[]){__VA_ARGS__, NULL}, NULL, status)

#endif
