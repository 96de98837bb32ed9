/* words.h - text that users write: lists of words in one string, the word that a slip was meant to be,
 * and whether bytes are UTF-8. Pure; one thread is as good as another.
 */
#ifndef WEIR_WORDS_H
#define WEIR_WORDS_H

#include <stdbool.h>
#include <stddef.h>

#define WORD_BYTES 96 /* of a word with its NUL; longer ones are cut */

/* Copies the next word of a list separated by spaces to out. Returns what is behind it, NULL at the
 * end of the list. */
const char *word_next(const char *list, char out[WORD_BYTES]);

/* Appends a word to a list of n bytes; what does not fit is left out. */
void word_add(char *list, size_t n, const char *word);

/* The nearest of `list` to `word`, in out (n bytes); false if none is near enough to be a slip: at most
 * 1 + a third of its length in edits (Levenshtein), or within `limit` if that is not 0. A word of the
 * list that begins with what was written (3 characters or more) counts as one edit; of equally near
 * ones the first in the alphabet is taken, whatever the order of the list. */
bool word_nearest(const char *list, const char *word, unsigned limit, char *out, size_t n);

/* How many bytes at the head of s are well-formed UTF-8 (RFC 3629: no overlong form, no surrogate):
 * len if all are. */
size_t utf8_span(const char *s, size_t len);

#endif
