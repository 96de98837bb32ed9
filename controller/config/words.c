/* words.c - see words.h. */
#include "controller/config/words.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

const char *word_next(const char *list, char out[WORD_BYTES])
{
    list += strspn(list, " ");
    if (!*list)
        return NULL;
    size_t n = strcspn(list, " ");
    size_t keep = n < WORD_BYTES - 1 ? n : WORD_BYTES - 1;
    memcpy(out, list, keep);
    out[keep] = '\0';
    return list + n;
}

void word_add(char *list, size_t n, const char *word)
{
    size_t used = strlen(list), len = strlen(word);
    if (used + len + 2 <= n)
        (void)snprintf(list + used, n - used, "%s%s", used ? " " : "", word);
}

/* Levenshtein distance; b is shorter than WORD_BYTES. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[WORD_BYTES];
    unsigned nb = (unsigned)strlen(b);
    for (unsigned j = 0; j <= nb; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= nb; j++) {
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

bool word_nearest(const char *list, const char *word, unsigned limit, char *out, size_t n)
{
    char each[WORD_BYTES];
    unsigned best = UINT_MAX;
    size_t len = strlen(word);
    if (len >= WORD_BYTES) /* nobody's slip */
        return false;
    if (!limit)
        limit = 1 + (unsigned)len / 3;
    for (const char *at = list; (at = word_next(at, each));) {
        bool begins = len >= 3 && strncmp(each, word, len) == 0;
        unsigned d = begins ? 1 : edit_distance(word, each);
        if (d <= limit && (d < best || (d == best && strncmp(each, out, n) < 0))) {
            best = d;
            (void)snprintf(out, n, "%s", each);
        }
    }
    return best != UINT_MAX;
}

/* Length of the sequence at s, 0: malformed. left >= 1. */
static size_t utf8_len(const unsigned char *s, size_t left)
{
    unsigned char c = s[0];
    if (c < 0x80)
        return 1;
    size_t n = c >= 0xc2 && c <= 0xdf ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((c == 0xe0 && s[1] < 0xa0) || (c == 0xed && s[1] > 0x9f) || (c == 0xf0 && s[1] < 0x90) ||
        (c == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

size_t utf8_span(const char *s, size_t len)
{
    size_t i = 0, n;
    while (i < len && (n = utf8_len((const unsigned char *)s + i, len - i)))
        i += n;
    return i;
}
