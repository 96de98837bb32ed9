#!/usr/bin/env bash
# quickstart.sh - from a fresh checkout to a first comparison of routing policies: simulated, then live in front of mock engines.
#
# QUICKSTART_SECONDS: of live traffic for each of four policies (15; 0: none). Whatever is started is stopped, on Ctrl-C too.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step "1/5  dependencies"
deploy/install-deps.sh

step "2/5  build (log: build/logs/quickstart.log)"
mkdir -p build/logs
{
    cmake --preset release &&
        cmake --build --preset release --target weir_cli
} >build/logs/quickstart.log 2>&1 || {
    tail -n 30 build/logs/quickstart.log >&2
    echo "quickstart: the build failed" >&2
    exit 1
}
weir=build/release/weir
"$weir" --version

step "3/5  a synthetic trace: 5 minutes of chat, 32 requests a second, 40 system prompts, 5 turns a conversation"
trace=build/quickstart.jsonl
"$weir" gen --rate 32 --minutes 5 --seed 1 --sessions 5,20 --shared-prefix 40,2048 --tenants 20 >"$trace"
printf '%s: %d requests\n' "$trace" "$(wc -l <"$trace")"

step "4/5  the trace replayed on 8 simulated workers under 5 routing policies"
"$weir" replay "$trace" --stack deploy/stacks/llama8b-h100-agg8.yaml \
    --policy round_robin,least_loaded,cache_aware,sticky,dynamo_cost

seconds=${QUICKSTART_SECONDS:-15}
if [ "$seconds" != 0 ]; then
    step "5/5  the same live: weir serve in front of 3 mock engines, 8 requests a second for $seconds s under each of 4 policies"
    live=build/quickstart-live.jsonl
    "$weir" gen --rate 8 --minutes 1 --seed 1 --shared-prefix 20,4096 >"$live"
    python3 deploy/live_demo.py "$weir" "$live" --seconds "$seconds"
fi

cat <<NEXT

== what to try next (weir is $weir)
  weir replay $trace --workers 4 --policy sticky   fewer workers: when does the SLO break?
  weir replay YOUR_TRACE.jsonl --workers 8                      your own traffic (Mooncake, Azure, BurstGPT)
  weir replay --help                                            stacks, P/D pools, faults, reports
  weir policies                                                 every policy and where it comes from
  ls deploy/stacks deploy/profiles                              ready-made systems to replay on
  weir mock --port 8001 & weir serve --worker http://127.0.0.1:8001     the inline path, without a GPU
  weir top                                                      what it does, live in a terminal
  weir serve --worker URL --request-log log.jsonl               record traffic; weir replay log.jsonl tries others on it
  tests/run.sh                                                  build and pass every test
NEXT
