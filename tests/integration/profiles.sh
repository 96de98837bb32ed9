#!/usr/bin/env bash
# profiles.sh - what is shipped works: every profile in deploy/profiles is accepted by a stack that names it,
# says where its numbers come from, and gives a worker that answers; every example in deploy/stacks
# checks clean and replays a small trace to the end; a derived profile is one like the others.
set -uo pipefail
weir=${WEIR_BIN:?}/weir
cd "${WEIR_SOURCE:?}" || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-profiles-XXXXXX")
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $*"
    head -n 20 "$work/out" "$work/err" | sed 's/^/    /'
    failures=$((failures + 1))
}

# run COMMAND...: must succeed and be silent on standard error; its output is in $work/out.
run() {
    "$@" >"$work/out" 2>"$work/err" </dev/null && [ ! -s "$work/err" ] || fail "$*"
}

# a number of the report
number() { sed -n "s/^ *\"$1\": \([-0-9.e+]*\),\{0,1\}\$/\1/p" "$work/report.json" | head -n 1; }

# replays TRACE with the given stack: everything in it is answered
replays() { # STACK TRACE
    run "$weir" replay "$2" --stack "$1" --policy round_robin --report "$work/report.json"
    [ "$(number completed_requests)" = "$(wc -l <"$2")" ] ||
        fail "$1: $(number completed_requests) of $(wc -l <"$2") requests completed"
}

"$weir" gen --rate 2 --requests 40 --seed 5 --sessions 2,3 --input lognormal:600,0.5 \
    --output lognormal:60,0.5 --max-context 4096 >"$work/trace.jsonl" || fail "weir gen"

# --- profiles: all as pools of one stack, each with the scheduler of the engine it was measured on
n=0
echo "pools:" >"$work/all.yaml"
for file in deploy/profiles/*.yaml; do
    name=$(basename "$file" .yaml)
    n=$((n + 1))
    grep -q '^source: .' "$file" || fail "$file: no source"
    engine=$(sed -n 's/^engine: "\([a-z]*\)".*/\1/p' "$file")
    printf '  - {name: p%d, workers: 1, profile: %s, engine: {scheduler: %s}}\n' "$n" "$name" \
        "${engine:-vllm}" >>"$work/all.yaml"
done
[ "$n" -ge 39 ] || fail "$n profiles; 38 measured systems and the peer simulator's polynomial are shipped"
run "$weir" check "$work/all.yaml"
replays "$work/all.yaml" "$work/trace.jsonl"

# the table that they were made from, where it is
table=../shared/data/calibration/fitted_step_coefficients.csv
if [ -r "$table" ]; then
    mkdir "$work/made"
    python3 deploy/profiles/generate.py "$table" "$work/made" >"$work/out" 2>"$work/err" || fail generate.py
    for file in "$work"/made/*.yaml; do
        cmp -s "$file" "deploy/profiles/$(basename "$file")" ||
            fail "deploy/profiles/$(basename "$file") is not what generate.py makes"
    done
else
    echo "no $table: profiles are not compared with it"
fi

# --- example stacks
for stack in deploy/stacks/*.yaml; do
    run "$weir" check "$stack"
    replays "$stack" "$work/trace.jsonl"
done

# --- a profile of one's own
run "$weir" profile --config tests/fuzz/corpus/model_config/qwen3-30b-a3b --gpu h200 --dp 2 --model mine
cp "$work/out" "$work/mine.yaml"
grep -q '^source: roofline' "$work/mine.yaml" || fail "a derived profile does not say so"
cat >"$work/own.yaml" <<'END'
pools:
  - workers: 1
    profile: ./mine.yaml
    engine: {max_num_seqs: 64}
END
replays "$work/own.yaml" "$work/trace.jsonl"

echo "$n profiles, $(ls deploy/stacks/*.yaml | wc -l) stacks, $failures failures"
[ $failures -eq 0 ]
