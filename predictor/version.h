/* version.h - which weir this is. The number lives in CMakeLists.txt, in project(VERSION). */
#ifndef WEIR_VERSION_H
#define WEIR_VERSION_H

/* "MAJOR.MINOR.PATCH"; static storage. */
const char *weir_version(void);

#endif
