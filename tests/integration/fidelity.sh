#!/usr/bin/env bash
# fidelity.sh - bench/fidelity on recordings made here, of engines whose step times are known: it finds them,
# and says what is wrong with a recording in one line.
set -uo pipefail
fidelity=${WEIR_BIN:?}/bench/fidelity
if [ ! -x "$fidelity" ]; then
    echo "skipped: $fidelity is not built"
    exit 77
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-fidelity-XXXXXX")
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $*"
    head -n 30 "$work/out" "$work/err" | sed 's/^/    /'
    failures=$((failures + 1))
}

good() {
    "$fidelity" "$@" >"$work/out" 2>"$work/err" </dev/null && [ ! -s "$work/err" ] || fail "$*"
}

# bad TEXT ARGUMENTS...: exit status 2 and one line with TEXT
bad() {
    local text=$1
    shift
    "$fidelity" "$@" >"$work/out" 2>"$work/err" </dev/null
    [ $? -eq 2 ] && [ "$(wc -l <"$work/err")" -eq 1 ] && grep -qF -e "$text" "$work/err" || fail "'$text': $*"
}

# near TEXT VALUE TOLERANCE: the number after TEXT in the output
near() {
    local got
    got=$(sed -n "s/.*$1 *\([-+0-9.e]*\).*/\1/p" "$work/out" | head -n 1)
    awk -v got="${got:-nan}" -v want="$2" -v off="$3" \
        'BEGIN { d = got - want; exit !(got ~ /^[-+0-9.e]+$/ && d <= off && d >= -off) }' ||
        fail "$1 is '$got', expected $2"
}

# --- a recording: one request at a time, 10 ms a step, 20 us a prompt token on top, two clocks
recording() { # FOLDER ASYNC
    mkdir -p "$1"
    python3 - "$1" "$2" <<'END'
import json, sys
folder, ahead = sys.argv[1], sys.argv[2] == "true"
with open(folder + "/meta.json", "w") as f:
    json.dump({"model": "some/model", "vllm_version": "0.19.0",
               "engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 4096, "tensor_parallel_size": 1},
               "kv_cache": {"num_gpu_blocks": 1000, "block_size": 16},
               "resolved_config": {"scheduler_config": {"async_scheduling": ahead}}}, f)
with open(folder + "/requests.jsonl", "w") as f:
    for i in range(24):
        prompt, output, arrival = 100 + 37 * i % 400, 20 + 7 * i % 30, 5.0 * i
        queued = 777 + arrival
        first = queued + 0.010 + prompt * 20e-6
        f.write(json.dumps({"request_id": f"r{i}", "input_toks": prompt, "output_toks": output,
                            "arrival_time": 1.7e9 + arrival, "queued_ts": queued, "scheduled_ts": queued,
                            "first_token_ts": first, "last_token_ts": first + 0.010 * (output - 1)}) + "\n")
END
}
recording "$work/run" false
good runs "$work/run" "$work/run/"
near " p" 0.02 0.004
grep -q "fitted on run, held out: run" "$work/out" || fail "no fit was carried over to a run of the same class"
awk '/held out TPOT|held out E2E/ { gsub("%", ""); if ($(NF-7) > 2) exit 1 }' "$work/out" ||
    fail "a recording without noise is not predicted"

recording "$work/ahead" true
good runs "$work/ahead"
grep -q "asynchronous scheduling, 1000 blocks" "$work/out" || fail "limits are not read from meta.json"

# --- what a broken one gets
bad "no/such/run" runs "$work/no/such/run"
recording "$work/cut" false
sed -i '3s/,.*//' "$work/cut/requests.jsonl"
bad "requests.jsonl:3: the line" runs "$work/cut"
recording "$work/missing" false
sed -i '5s/first_token_ts/first/' "$work/missing/requests.jsonl"
bad "requests.jsonl:5: first_token_ts" runs "$work/missing"
recording "$work/limits" false
sed -i 's/"max_num_seqs": 8/"max_num_seqs": -8/' "$work/limits/meta.json"
bad "meta.json: max_num_seqs: expected a whole number" runs "$work/limits"
recording "$work/few" false
sed -i '3,$d' "$work/few/requests.jsonl"
bad "four requests" runs "$work/few"

# --- a table of closed-loop points that the formula made
python3 - >"$work/table.csv" <<'END'
print("backend,backend_version,model_path,system,precision,mode,isl,osl,batch_size,tp_size,pp_size,"
      "attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms")
for isl, osl in ((512, 256), (1024, 256), (1024, 512), (2048, 512), (4096, 1024)):
    for b in (4, 8, 16):
        t = 8 + 0.05 * b + 5e-5 * b * (isl + osl / 2) + 0.02 * b * isl / osl
        print(f"vllm,0.12.0,a/b,h100_sxm,,agg,{isl},{osl},{b},1,1,1,1,1,0,{t}")
END
good silicon "$work/table.csv"
near "median of their medians" 0 0.5
bad "no column mode" silicon <(sed '1s/,mode,/,mood,/' "$work/table.csv")
sed '4s/,[0-9.]*$/,-1/' "$work/table.csv" >"$work/negative.csv"
bad "negative.csv:4: silicon_tpot_ms" silicon "$work/negative.csv"

echo "$failures failures"
[ $failures -eq 0 ]
