#!/usr/bin/env python3
"""Rules of the house that a tool can check: layers, banned functions, lines, headers, rooms.

Prints one line a finding (FILE:LINE: what, and what to do) and ends with status 1 if there are any.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("controller", "predictor", "proto", "deploy", "bench", "tests")
MAX_COLUMNS = 140  # clang-format keeps code to 100; tables and comments that it leaves alone may be wider
MAX_ROOM_README_LINES = 60

# What a folder may include of the project, and what it must not call: (folder, allowed, banned words).
NO_IO = r"\b(f?printf|fopen|fread|fwrite|open|read|write|socket|getenv|time|clock|clock_gettime|" \
        r"gettimeofday|rand|random|srand|pthread_\w+|usleep|nanosleep)\s*\("
NO_IO_HEADERS = re.compile(r"#include <(stdio|time|unistd|pthread|sys/.*|netinet/.*|fcntl|uv)\.?h?>")
LAYERS = (
    ("predictor/", ("predictor/",), True),
    ("controller/core/", ("predictor/", "controller/core/"), True),
    ("controller/replay/", ("predictor/", "controller/"), False),
    ("bench/", ("predictor/", "controller/", "bench/"), False),
    ("tests/", ("predictor/", "controller/", "bench/", "tests/"), False),
)
BANNED = {
    "strcpy": "use snprintf or memcpy with a length",
    "strcat": "use snprintf",
    "sprintf": "use snprintf",
    "vsprintf": "use vsnprintf",
    "gets": "use fgets",
    "strtok": "not re-entrant",
    "atoi": "use strtol and look at errno",
    "atol": "use strtol and look at errno",
    "atof": "depends on the locale and hides errors",
    "setlocale": "numbers would depend on the machine",
    "alloca": "no unbounded stack",
}
BANNED_CALL = re.compile(r"(?<![\w.>])(" + "|".join(BANNED) + r")\s*\(")

findings = []


def say(path, line, what):
    findings.append(f"{path}:{line}: {what}")


def strip_comments(text):
    """Comments and string contents become blanks; line breaks stay."""
    blank = lambda m: re.sub(r"[^\n]", " ", m.group(0))
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.S)


def check_layers(path, text, code):
    for folder, allowed, no_io in LAYERS:
        if not path.startswith(folder):
            continue
        for m in re.finditer(r'^#include "([^"]+)"', text, re.M):
            if not m.group(1).startswith(allowed) and path.startswith(("predictor", "controller")):
                say(path, text.count("\n", 0, m.start()) + 1,
                    f"{folder} must not include {m.group(1)} (may: {' '.join(allowed)})")
        if no_io:
            for n, line in enumerate(text.split("\n"), 1):
                if NO_IO_HEADERS.match(line):
                    say(path, n, f"{folder} does no I/O and reads no clock: {line}")
            for m in re.finditer(NO_IO, code):
                say(path, code.count("\n", 0, m.start()) + 1,
                    f"{folder} does no I/O and reads no clock: {m.group(1)}()")


def check_header(path, text):
    if not text.startswith("/* " + pathlib.PurePath(path).name + " - "):
        say(path, 1, "a header starts with its purpose: /* NAME.h - what it is for")
    guard = re.search(r"^#ifndef (WEIR_\w+_H)\n#define (\w+)$", text, re.M)
    if not guard or guard.group(1) != guard.group(2):
        say(path, 1, "include guard WEIR_..._H is missing")


def check_c(path, text):
    code = strip_comments(text)
    for m in BANNED_CALL.finditer(code):
        say(path, code.count("\n", 0, m.start()) + 1,
            f"{m.group(1)}() is banned: {BANNED[m.group(1)]}")
    check_layers(path, text, code)
    if path.endswith(".h"):
        check_header(path, text)
    elif not text.startswith("/*"):
        say(path, 1, "a file starts with what it is for: /* NAME.c - ...")


def check_lines(path, text):
    limit = MAX_COLUMNS if path.endswith((".c", ".h", ".py", ".sh")) else None
    for n, line in enumerate(text.split("\n"), 1):
        if limit and len(line) > limit:
            say(path, n, f"{len(line)} columns, more than {limit}")
        if line != line.rstrip() and not path.endswith(".md"):
            say(path, n, "blanks at the end of the line")
        if "\t" in line and path.endswith((".c", ".h", ".py", ".yaml", ".sh")):
            say(path, n, "a tab; indent with blanks")
        if re.search(r"(?<![\w.])/(work|home/\w+|root)/", line) and path != "tests/tidy.py":
            say(path, n, "a path of one machine")
    if text and not text.endswith("\n"):
        say(path, text.count("\n") + 1, "no line break at the end of the file")


def check_rooms():
    for room in ROOMS:
        readme = ROOT / room / "README.md"
        if not (ROOT / room).is_dir():
            continue
        if not readme.exists():
            say(f"{room}/README.md", 1, "each room explains itself: write a screen about it")
        elif len(readme.read_text().split("\n")) > MAX_ROOM_README_LINES:
            say(f"{room}/README.md", 1, f"more than {MAX_ROOM_README_LINES} lines: a screen, not a book")


def check_links(path, text):
    """Every file that a Markdown page links to is there."""
    for m in re.finditer(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        target = (ROOT / path).parent / m.group(1)
        if not target.exists():
            say(path, text.count("\n", 0, m.start()) + 1, f"links to {m.group(1)}, which is not there")


def check_tests():
    """Each module has its unit test, each fuzz target its corpus."""
    for source in sorted((ROOT / "tests/fuzz").glob("fuzz_*.c")):
        name = source.stem[len("fuzz_"):]
        if not any((ROOT / "tests/fuzz/corpus" / name).glob("*")):
            say(f"tests/fuzz/{source.name}", 1, f"no corpus in tests/fuzz/corpus/{name}/")


def main():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
                            capture_output=True, text=True, check=False).stdout.split("\n")
    paths = [p for p in listed if p and (ROOT / p).is_file()]
    if not paths:
        print("tidy: git lists no files here: run it in a checkout")
        return 77
    for path in sorted(paths):
        if path.startswith("tests/fuzz/corpus/"):
            continue
        data = (ROOT / path).read_bytes()
        if b"\0" in data:
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            say(path, 1, "not UTF-8")
            continue
        check_lines(path, text)
        if path.endswith((".c", ".h")):
            check_c(path, text)
        elif path.endswith(".md"):
            check_links(path, text)
    check_rooms()
    check_tests()
    for finding in findings:
        print(finding)
    print(f"tidy: {len(paths)} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
