/* error.h - the error codes of libweir. Functions that can fail return 0 or one of these; each
 * prototype lists which. Out of memory in a constructor is an ordinary error (NULL or WEIR_E_NOMEM);
 * a limit reached is WEIR_E_LIMIT.
 */
#ifndef WEIR_ERROR_H
#define WEIR_ERROR_H

enum weir_error {
    WEIR_OK = 0,
    WEIR_E_NOMEM = -1,     /* allocation failed */
    WEIR_E_INVALID = -2,   /* an argument is out of its documented range */
    WEIR_E_LIMIT = -3,     /* a named limit was reached */
    WEIR_E_TOO_LARGE = -4, /* the request can never fit this worker */
    WEIR_E_NOT_FOUND = -5, /* no such request, worker or name */
    WEIR_E_STATE = -6,     /* not allowed in this state (e.g. worker down) */
    WEIR_E_INPUT = -7,     /* malformed input; the message names file, line or key */
    WEIR_E_IO = -8,        /* the system refused; the message says what */
};

#define WEIR_NODISCARD __attribute__((warn_unused_result))

#endif
