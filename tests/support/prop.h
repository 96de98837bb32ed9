/* prop.h - runs a property on many random cases, each from a seed of its own.
 *
 * Seeds are 1, 2, 3 ...: the same cases on every machine. WEIR_RUNS=n runs n times as many, WEIR_SEED=s only
 * the one of seed s. Whatever ends a case (a cmocka assertion, an assert(), a sanitizer), the seed and how to
 * repeat it are printed.
 */
#ifndef WEIR_TESTS_PROP_H
#define WEIR_TESTS_PROP_H

#include <stdint.h>

/* Runs one(seed) for `cases` seeds. `what` is the test's name in messages. */
void prop_run(const char *what, uint32_t cases, void (*one)(uint64_t seed));

/* Whether a single case was asked for (WEIR_SEED): totals over all cases mean nothing then. */
int prop_single(void);

/* cmocka teardown: names the case that was running if it did not end. */
int prop_teardown(void **state);

#endif
