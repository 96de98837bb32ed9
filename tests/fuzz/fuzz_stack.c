/* fuzz_stack.c - any bytes as a stack file, and one key as on the command line.
 *
 * What is accepted can be printed and read back as the same stack; what is not gets one line. A first line
 * "#set KEY=VALUE" is also tried with --set, on the stack that the text gives or on the default one: a
 * refused change changes nothing.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/replay/stack.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *printed(const struct stack *s)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    need(f != NULL, "open_memstream");
    stack_print(f, s);
    need(!fclose(f), "open_memstream");
    return text;
}

static void round_trip(const struct stack *s)
{
    static struct stack again;
    char error[STACK_ERROR_BYTES];
    char *one = printed(s);
    if (stack_load_memory(&again, "again", one, strlen(one), NULL, error)) {
        fprintf(stderr, "%s\n%s", error, one);
        abort();
    }
    char *two = printed(&again);
    need(strcmp(one, two) == 0, "printing and loading changes a stack");
    stack_deinit(&again);
    free(one);
    free(two);
}

static void set_one(struct stack *s, const uint8_t *data, size_t size)
{
    char line[512], error[STACK_ERROR_BYTES];
    size_t n = 5;
    while (n < size && data[n] != '\n' && n - 5 < sizeof line - 1)
        n++;
    memcpy(line, data + 5, n - 5);
    line[n - 5] = '\0';
    const char *sets[] = {line};
    char *before = printed(s);
    if (stack_set_all(s, sets, 1, error)) {
        need_line(error);
        char *after = printed(s);
        need(strcmp(before, after) == 0, "a refused --set changes the stack");
        free(after);
    } else if (stack_check(s, "f", error)) {
        need_line(error);
    } else {
        round_trip(s);
    }
    free(before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct stack s;
    char error[STACK_ERROR_BYTES];
    bool set = size > 5 && !memcmp(data, "#set ", 5);
    if (stack_load_memory(&s, "f", (const char *)data, size, NULL, error)) {
        need_line(error);
        stack_deinit(&s);
        if (!set)
            return 0;
        stack_default(&s, 2);
    } else {
        round_trip(&s);
    }
    if (set)
        set_one(&s, data, size);
    stack_deinit(&s);
    return 0;
}
