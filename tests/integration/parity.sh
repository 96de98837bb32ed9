#!/usr/bin/env bash
# parity.sh - bench/parity vllm: a recording in small that agrees, one that does not, and every way in which one can be
# broken; and, where they are, the recorded runs of a real engine (14,515 steps, no difference).
set -uo pipefail
parity=${WEIR_BIN:?}/bench/parity
[ -x "$parity" ] || { echo "no bench/parity in this build: skipped"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-parity-XXXXXX")
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $*"
    failures=$((failures + 1))
}

# Two requests that share a block of four tokens. Blocks can be found when they are scheduled: the second one finds it in
# the step that computes it. Its last block has no name and goes back alone.
record() {
    rm -rf "$work/case"
    mkdir "$work/case"
    cat >"$work/case/config.json" <<'JSON'
{"engine": {"block_size": 4, "num_gpu_blocks": 6, "max_num_seqs": 2, "max_num_batched_tokens": 8,
            "long_prefill_token_threshold": 0, "policy": "fcfs"}}
JSON
    cat >"$work/case/requests.jsonl" <<'JSON'
{"i": 0, "prompt": 6, "max_tokens": 2, "hash_ids": [1, 2], "arrival": 0.01}
{"i": 1, "prompt": 5, "max_tokens": 1, "hash_ids": [1, 3], "arrival": 0.02}
JSON
    cat >"$work/case/steps.csv" <<'CSV'
step,t0,run0,run,wait,free0,free,free3,added,new,resumed,preempted,finished,aborted,batch
0,0.1,0,2,0,5,2,3,0@0.01 1@0.02,0 1,,,1,,0:0:6 1:4:1
1,0.2,1,1,0,3,3,5,,,,,0,,0:6:1
CSV
}

run() { # EXPECTED_STATUS: packs the steps and runs
    [ -f "$work/case/steps.csv" ] && gzip -nf "$work/case/steps.csv"
    "$parity" vllm "${2:-$work/case}" >"$work/out" 2>"$work/err"
    local status=$?
    [ $status = "$1" ] || { fail "status $status, not $1"; cat "$work/out" "$work/err"; }
}

record
run 0
grep -q "all .* 2 steps  0 differences" "$work/out" || { fail "the small recording differs"; cat "$work/out"; }
run 0 "$work" # the directory above
record
sed -i 's/,3,5,/,3,4,/' "$work/case/steps.csv"
run 1
grep -q "step 1 free3: weir '5', engine '4'" "$work/out" || { fail "a difference is not shown"; cat "$work/out"; }

# broken WHAT FILE SED_SCRIPT: one line that says it, and status 2
broken() {
    record
    sed -i "$3" "$work/case/$2"
    run 2
    [ "$(wc -l <"$work/err")" = 1 ] || { fail "$1: not one line"; cat "$work/err"; }
    grep -q "$1" "$work/err" || { fail "no word of '$1'"; cat "$work/err"; }
}
broken "block_size must be a whole number" config.json 's/"block_size": 4/"block_size": "4"/'
broken "num_gpu_blocks must be" config.json 's/"num_gpu_blocks": 6/"num_gpu_blocks": 0/'
broken "policy must be" config.json 's/fcfs/lifo/'
broken "config.json" config.json 's/}//'
broken "engine must be an object" config.json 's/engine/motor/'
broken "requests.jsonl:2: a JSON object" requests.jsonl '2s/{/[/'
broken "requests.jsonl:1: prompt must be" requests.jsonl '1s/"prompt": 6/"prompt": 0/'
broken "hash_ids must be a list" requests.jsonl '1s/\[1, 2\]/[]/'
broken "hash_ids must be whole numbers" requests.jsonl '1s/\[1, 2\]/["x", 2]/'
broken "a second request with this i" requests.jsonl '2s/"i": 1/"i": 0/'
broken "i must be below" requests.jsonl '2s/"i": 1/"i": 4000000000/'
broken "arrival must be" requests.jsonl '2s/0.02/"soon"/'
broken "no column free3" steps.csv '1s/free3/free4/'
broken "steps.csv.gz:3: another number of columns" steps.csv '3s/,0:6:1//'
broken "steps.csv.gz:2: t0 must be" steps.csv '2s/0.1,/now,/'
broken "a list of numbers is expected" steps.csv '2s/1@0.02/x@0.02/'
broken "requests.jsonl does not have" steps.csv '2s/1@0.02/7@0.02/'
broken "there already" steps.csv '2s/1@0.02/0@0.02/'
broken "can never fit" requests.jsonl '2s/"max_tokens": 1/"max_tokens": 1000/'
broken "no line with the names" steps.csv 'd'

record
gzip -n "$work/case/steps.csv"
head -c 60 "$work/case/steps.csv.gz" >"$work/half"
mv "$work/half" "$work/case/steps.csv.gz"
run 2
grep -q "cut off" "$work/err" || { fail "a file that is cut off"; cat "$work/err"; }
for gone in config.json requests.jsonl steps.csv; do
    record
    rm "$work/case/$gone"
    run 2
    [ "$(wc -l <"$work/err")" = 1 ] || { fail "$gone is not there: not one line"; cat "$work/err"; }
done
run 2 "$work/nowhere"
grep -q "no recording" "$work/err" || fail "a directory that is not there"

real=${WEIR_SOURCE:?}/../shared/data/vllm_cpu_runs
if [ -d "$real" ]; then
    run 0 "$real"
    grep -q "all .* 14515 steps  0 differences" "$work/out" || { fail "the real engine differs"; cat "$work/out"; }
else
    echo "no recorded runs in $real: that part skipped"
fi

[ $failures = 0 ] && echo "parity: all as expected"
exit $((failures > 0))
