#!/usr/bin/env bash
# run.sh - install what is missing, build, and run every test. CI runs the same.
#
#   tests/run.sh            everything: release, sanitizers, fuzzing, format
#   tests/run.sh release    only the named parts, of: release asan tsan fuzz format
#
# Builds go to build/<preset>, logs to build/logs. Environment:
#   FUZZ_SECONDS=5          how long each fuzz target runs
#   JOBS=<cores>            how much runs at once
#   WEIR_WERROR=ON          warnings are errors
set -uo pipefail
cd "$(dirname "$0")/.."

FUZZ_SECONDS=${FUZZ_SECONDS:-5}
JOBS=${JOBS:-$(nproc)}
WEIR_WERROR=${WEIR_WERROR:-ON}
LOGS=$PWD/build/logs
CLANG_FORMAT_VERSION=14 # others format differently

passed=0 failed=0 skipped=0
failures=()

if [ -t 1 ]; then
    bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' off=$'\e[0m'
else
    bold='' red='' green='' off=''
fi

title() { printf '\n%s== %s%s\n' "$bold" "$*" "$off"; }
pass() {
    printf '%sok%s      %s\n' "$green" "$off" "$1"
    passed=$((passed + 1))
}
fail() { # NAME [LOG]: one failed case, with the end of its log
    printf '%sFAILED%s  %s\n' "$red" "$off" "$1"
    [ -z "${2:-}" ] || tail -n "${3:-40}" "$2" | sed 's/^/        /'
    failed=$((failed + 1))
    failures+=("$1")
}
skip() {
    printf 'skipped %s\n' "$1"
    skipped=$((skipped + 1))
}
# An attribute of the <testsuite> element, which ctest spreads over lines.
attribute() { sed -n "s/^.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" "$2" | head -n 1; }

# Configure and build a preset; a build that fails counts as one failed case.
build() {
    local preset=$1 log=$LOGS/build-$1.log started=$SECONDS
    if ! { cmake --preset "$preset" -DWEIR_WERROR="$WEIR_WERROR" &&
        cmake --build --preset "$preset" -j "$JOBS"; } >"$log" 2>&1; then
        # the first errors say more than the last lines
        grep -nE 'error:|Error |undefined reference|FAILED:' "$log" | head -n 20 | cut -c1-300
        fail "$preset: build" "$log" 15
        return 1
    fi
    printf 'built in %d s%s\n' $((SECONDS - started)) \
        "$(awk '/warning:/ { n++ } END { if (n) printf ", %d warnings (see %s)", n, FILENAME }' "$log")"
}

# Run a preset's ctest cases and add them up.
run_ctest() {
    local preset=$1 xml=$LOGS/ctest-$1.xml total bad off_
    rm -f "$xml"
    ctest --preset "$preset" -j "$JOBS" --no-tests=ignore --output-junit "$xml" \
        --output-log "$LOGS/ctest-$preset.log" 2>&1 |
        sed -u -e '/^Test project/d' -e '/^ *Start *[0-9]*:/d' -e '/^$/d' -e '/^Preset /d'
    if [ ! -s "$xml" ]; then
        fail "$preset: ctest gave no result"
        return
    fi
    total=$(attribute tests "$xml")
    bad=$(attribute failures "$xml")
    off_=$(($(attribute skipped "$xml") + $(attribute disabled "$xml")))
    passed=$((passed + total - bad - off_))
    failed=$((failed + bad))
    skipped=$((skipped + off_))
    while read -r name; do
        failures+=("$preset: $name")
    done < <(sed -n 's/.*<testcase name="\([^"]*\)".*status="fail".*/\1/p' "$xml")
}

part_tests() { # PRESET TITLE
    title "$2"
    build "$1" && run_ctest "$1"
}

part_fuzz() {
    title "fuzz: every target for $FUZZ_SECONDS s (libFuzzer, with sanitizers)"
    build fuzz || return
    local target name log kept found any=
    for target in build/fuzz/fuzz/fuzz_*; do
        [ -x "$target" ] || continue
        any=1
        name=${target##*/fuzz_}
        log=$LOGS/fuzz-$name.log
        kept=tests/fuzz/corpus/$name found=build/fuzz/found/$name
        mkdir -p "$found"
        # new inputs go to build/; the kept corpus is only read
        local inputs=("$found")
        [ ! -d "$kept" ] || inputs+=("$kept")
        if "$target" -max_total_time="$FUZZ_SECONDS" -timeout=10 -rss_limit_mb=2048 \
            -artifact_prefix="$LOGS/crash-$name-" -print_final_stats=1 \
            "${inputs[@]}" >"$log" 2>&1; then
            pass "fuzz $name ($(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs)"
        else
            fail "fuzz $name (input kept in build/logs/crash-$name-*)" "$log"
        fi
    done
    [ -n "$any" ] || echo "no fuzz targets"
}

part_format() {
    title "format"
    local version log=$LOGS/format.log files
    version=$(clang-format --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p')
    if [ "$version" != "$CLANG_FORMAT_VERSION" ]; then
        skip "clang-format $CLANG_FORMAT_VERSION is not here (found: ${version:-none})"
        return
    fi
    mapfile -t files < <(find predictor controller bench tests -name '*.[ch]' | sort)
    if clang-format --dry-run --Werror "${files[@]}" >"$log" 2>&1; then
        pass "clang-format: ${#files[@]} files"
    else
        sed -n 's/^\([^:]*\):[0-9]*:[0-9]*: error: .*/\1/p' "$log" | sort | uniq -c |
            awk '{ printf "        %s: %d places\n", $2, $1 }'
        echo "        to repair: clang-format -i FILE..."
        fail "clang-format"
    fi
}

started=$SECONDS
title "dependencies"
deploy/install-deps.sh || {
    echo "0 passed, 1 failed"
    exit 1
}
mkdir -p "$LOGS"

[ $# -gt 0 ] || set -- release asan fuzz format
for part in "$@"; do
    case $part in
    release) part_tests release "release: unit, property, corpus and integration tests" ;;
    asan) part_tests asan "asan: the same with AddressSanitizer and UBSan" ;;
    tsan) part_tests tsan "tsan: the same with ThreadSanitizer" ;;
    fuzz) part_fuzz ;;
    format) part_format ;;
    *)
        echo "run.sh: no such part: $part (release asan tsan fuzz format)" >&2
        exit 2
        ;;
    esac
done

title "result, after $((SECONDS - started)) s"
for name in ${failures[@]+"${failures[@]}"}; do
    printf '%sFAILED%s  %s\n' "$red" "$off" "$name"
done
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || printf ', %d skipped' $skipped)"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
