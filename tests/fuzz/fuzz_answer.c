/* fuzz_answer.c - responses that stream through: any cut of the bytes must be seen the same. The first byte says
 * whether it is a stream, and where it is cut. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "controller/openai/answer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct answer look(const char *s, size_t len, bool stream, size_t piece)
{
    struct answer a;
    answer_init(&a, stream);
    for (size_t i = 0; i < len; i += piece)
        answer_feed(&a, s + i, len - i < piece ? len - i : piece);
    answer_end(&a);
    answer_deinit(&a);
    return a;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    const char *s = (const char *)data + 1;
    size_t len = size - 1;
    bool stream = data[0] & 1;
    struct answer whole = look(s, len, stream, len ? len : 1),
                  cut = look(s, len, stream, (data[0] >> 1) % 13 + 1u);
    if (whole.first_token != cut.first_token || whole.done != cut.done ||
        whole.events != cut.events || whole.tokens != cut.tokens ||
        whole.output_tok != cut.output_tok || whole.finish != cut.finish ||
        whole.prompt_tok != cut.prompt_tok || whole.too_large != cut.too_large)
        abort();
    return 0;
}
