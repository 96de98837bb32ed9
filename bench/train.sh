#!/bin/sh
# What the compiler learns the programs' habits from (WEIR_PROFILE_GUIDED in CMakeLists.txt): generated traces through
# the schedulers, policies and set-ups that replays are about, and requests through weir serve; some seconds in all.
#
#     bench/train.sh WEIR FOLDER      WEIR: built to write its profile, weir-live beside it; FOLDER: for the traces
set -eu
weir=$(realpath "$1")
mkdir -p "$2"
dir=$(realpath "$2")
cd "$(dirname "$0")/.." # where profiles are found
stacks=deploy/stacks

"$weir" gen --seed 1 --rate 3 --minutes 40 --shared-prefix 40,1024 --input lognormal:7000,1 >"$dir/single.jsonl"
"$weir" gen --seed 2 --rate 6 --minutes 8 --sessions 4,30 --shared-prefix 20,2048 --tenants 10 >"$dir/chat.jsonl"

replay() {
    "$weir" replay "$@" -q --report "$dir/report.json"
}
# long prompts that share little, one after another on each worker: the case that bench/replay_speed.py is about
replay "$dir/single.jsonl" --workers 8 --set block_size=512
replay "$dir/single.jsonl" --workers 8 --set block_size=512
replay "$dir/single.jsonl" --workers 8 --set block_size=512 --set num_gpu_blocks=1024
replay "$dir/single.jsonl" --workers 8 --set block_size=64
replay "$dir/single.jsonl" --stack "$stacks/dynosim.yaml" --policy round_robin,dynamo_cost
replay "$dir/chat.jsonl" --workers 4 --policy round_robin,sticky,cache_aware,lmetric,dynamo_cost,least_loaded
replay "$dir/chat.jsonl" --stack "$stacks/llama8b-h100-pd.yaml" --policy round_robin,dynamo_cost
replay "$dir/chat.jsonl" --workers 4 --set scheduler=sglang
replay "$dir/chat.jsonl" --workers 4 --set scheduler=trtllm
if command -v python3 >/dev/null; then
    python3 bench/train_live.py "$weir-live"
fi
