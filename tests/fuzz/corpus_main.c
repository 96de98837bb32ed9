/* corpus_main.c - run a fuzz target over kept inputs, in a build without libFuzzer.
 *
 * usage: corpus_NAME FILE-OR-FOLDER...
 * Folders are not descended into; one that is not there counts as empty. The empty input is always
 * tried. The name of an input is written before it runs, so that a crash names its file.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INPUT_MAX_BYTES ((size_t)64 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fail(const char *path, const char *what)
{
    fprintf(stderr, "%s: %s\n", path, what);
    exit(2);
}

static void run_file(const char *path, size_t size)
{
    uint8_t *data;
    FILE *file;

    if (size > INPUT_MAX_BYTES)
        fail(path, "larger than 64 MiB");
    file = fopen(path, "rb");
    if (!file)
        fail(path, strerror(errno));
    /* exactly the size, so that a sanitizer sees a read past the end */
    data = malloc(size ? size : 1);
    if (!data)
        fail(path, "out of memory");
    if (fread(data, 1, size, file) != size)
        fail(path, "could not be read whole");
    fclose(file);
    printf("%s\n", path);
    fflush(stdout);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static unsigned run_folder(const char *path)
{
    struct dirent **entries;
    unsigned n_run = 0;
    int n = scandir(path, &entries, NULL, compare_names);

    if (n < 0)
        fail(path, strerror(errno));
    for (int i = 0; i < n; i++) {
        char *name;
        struct stat st;

        if (asprintf(&name, "%s/%s", path, entries[i]->d_name) < 0)
            fail(path, "out of memory");
        if (!stat(name, &st) && S_ISREG(st.st_mode)) {
            run_file(name, (size_t)st.st_size);
            n_run++;
        }
        free(name);
        free(entries[i]);
    }
    free(entries);
    return n_run;
}

int main(int argc, char **argv)
{
    static const uint8_t nothing[1];
    unsigned n_run = 1;

    LLVMFuzzerTestOneInput(nothing, 0);
    for (int i = 1; i < argc; i++) {
        struct stat st;

        if (stat(argv[i], &st)) {
            if (errno != ENOENT)
                fail(argv[i], strerror(errno));
        } else if (S_ISDIR(st.st_mode)) {
            n_run += run_folder(argv[i]);
        } else {
            run_file(argv[i], (size_t)st.st_size);
            n_run++;
        }
    }
    printf("%u inputs\n", n_run);
    return 0;
}
