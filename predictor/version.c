/* version.c - the version the build was configured with. */
#include "predictor/version.h"

#ifndef WEIR_VERSION
#error "WEIR_VERSION is not defined: build through CMakeLists.txt"
#endif

const char *weir_version(void)
{
    return WEIR_VERSION;
}
