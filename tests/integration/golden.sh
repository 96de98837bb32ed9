#!/usr/bin/env bash
# golden.sh - replays give the same bytes: as kept in tests/golden, in every build type, with any number of threads,
# stepped or fast-forwarded, read from a file, a compressed file or standard input.
#
#   WEIR_BIN=build/release WEIR_SOURCE=. tests/integration/golden.sh --update    after a change that is meant
set -uo pipefail
weir=${WEIR_BIN:?}/weir
cd "${WEIR_SOURCE:?}" || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-golden-XXXXXX")
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $*"
    failures=$((failures + 1))
}

# same WHAT A B
same() { cmp -s "$2" "$3" || { fail "$1 differs"; diff "$2" "$3" | head -n 10; }; }

replay() { # OUT ARGS...: canonical report
    local out=$1
    shift
    "$weir" replay --quiet --canonical --report "$out" "$@" 2>"$work/err" || { fail "replay $*"; cat "$work/err"; }
}

# --- the traces: themselves golden, by checksum
"$weir" gen --rate 12 --minutes 3 --seed 7 --sessions 4,20 --shared-prefix 12,2048 --tenants 9 \
    --input lognormal:900,0.9 --max-context 16384 >"$work/chat.jsonl" || fail "gen"
"$weir" gen --rate 6 --minutes 3 --seed 8 --arrivals mmpp --burst 6,0.1,5 >"$work/bursts.jsonl" || fail "gen"
(cd "$work" && cksum chat.jsonl bursts.jsonl) >"$work/traces.txt"

# --- name, trace, arguments
cases() {
    cat <<'CASES'
agg8 chat --stack deploy/stacks/llama8b-h100-agg8.yaml --policy all
pd chat --stack deploy/stacks/llama8b-h100-pd.yaml --policy round_robin,sticky,dynamo_cost
mixed bursts --stack deploy/stacks/heterogeneous.yaml --policy power_of_two,lmetric,ttft_gate
faults chat --stack deploy/stacks/faults.yaml --policy least_loaded,cache_aware --speedup 0.5 --set admission.retry_partial=true
dynosim chat --stack deploy/stacks/dynosim.yaml --policy round_robin,dynamo_cost
sglang chat --workers 2 --set scheduler=sglang --set num_gpu_blocks=60000 --policy cache_aware --concurrency 60
trtllm chat --workers 2 --set scheduler=trtllm --set num_gpu_blocks=400 --set block_size=128 --policy lmetric
tiers chat --stack deploy/stacks/kv-tiers.yaml --set num_gpu_blocks=2500 --policy round_robin,cache_aware
ranks chat --stack deploy/stacks/moe-dp.yaml --set num_host_blocks=3000 --policy round_robin,least_loaded
lease chat --stack deploy/stacks/llama8b-h100-pd.yaml --set kv_lease_ms=40 --set link.bandwidth_gb_s=4 --policy least_loaded
pairs chat --stack deploy/stacks/llama8b-h100-pd.yaml --set handoff=destination_first --set transfer=destination_missing --policy lmetric
tight chat --workers 3 --set num_gpu_blocks=120 --policy prefix_hash,random --oracle
CASES
}

while read -r name trace args; do
    # shellcheck disable=SC2086 # words are meant
    replay "$work/$name.json" "$work/$trace.jsonl" $args
    sed -i "s|$work/||g" "$work/$name.json"
    if [ "${1:-}" = --update ]; then
        cp "$work/$name.json" "tests/golden/$name.json"
    else
        same "golden replay $name" "tests/golden/$name.json" "$work/$name.json"
    fi
done < <(cases)
[ "${1:-}" != --update ] || cp "$work/traces.txt" tests/golden/
same "generated trace" tests/golden/traces.txt "$work/traces.txt"

# --- the same bytes along every other way
chat="$work/chat.jsonl --stack deploy/stacks/llama8b-h100-agg8.yaml --policy all"
# shellcheck disable=SC2086
{
    replay "$work/threads.json" $chat --threads 4
    sed -i "s|$work/||g" "$work/threads.json"
    same "with four threads" "$work/agg8.json" "$work/threads.json"

    replay "$work/stepped.json" $chat --step
    sed -i "s|$work/||g; s|\"stepped\": true|\"stepped\": false|" "$work/stepped.json"
    same "stepped" "$work/agg8.json" "$work/stepped.json"

    for name in tiers ranks lease pairs; do
        args=$(cases | sed -n "s/^$name chat //p")
        replay "$work/$name-stepped.json" "$work/chat.jsonl" $args --step
        sed -i "s|$work/||g; s|\"stepped\": true|\"stepped\": false|" "$work/$name-stepped.json"
        same "$name stepped" "$work/$name.json" "$work/$name-stepped.json"
    done

    gzip -c "$work/chat.jsonl" >"$work/chat.jsonl.gz"
    replay "$work/gzip.json" "$work/chat.jsonl.gz" --workers 2 --policy sticky
    replay "$work/plain.json" "$work/chat.jsonl" --workers 2 --policy sticky
    replay "$work/stdin.json" - --workers 2 --policy sticky <"$work/chat.jsonl"
    sed -i 's|"trace": "[^"]*"|"trace": ""|' "$work"/{gzip,plain,stdin}.json
    same "from gzip" "$work/plain.json" "$work/gzip.json"
    same "from standard input" "$work/plain.json" "$work/stdin.json"

    replay "$work/again.json" "$work/chat.jsonl" --workers 4 --policy random --seed 2
    replay "$work/seed1.json" "$work/chat.jsonl" --workers 4 --policy random --seed 1
    cmp -s "$work/again.json" "$work/seed1.json" && fail "another seed gives the same replay"
}

# --- a request log is a trace again: every request of it
replay "$work/first.json" "$work/chat.jsonl" --workers 4 --policy sticky --requests "$work/log.jsonl.zst"
replay "$work/second.json" "$work/log.jsonl.zst" --workers 4 --policy sticky
for figure in num_requests total_input_tokens total_output_tokens; do
    grep "\"$figure\"" "$work/first.json" >"$work/a"
    grep "\"$figure\"" "$work/second.json" >"$work/b"
    same "$figure of a replayed log" "$work/a" "$work/b"
done
[ "$failures" -eq 0 ] && echo "ok: $(cases | wc -l) golden replays, and the same bytes along every way"
exit $((failures > 0))
