#!/usr/bin/env bash
# cli.sh - the program as a user runs it: every command's help, exit statuses and messages, traces from
# files, pipes and archives, and what a mistake looks like.
set -uo pipefail
weir=${WEIR_BIN:?}/weir
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-cli-XXXXXX")
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $*"
    sed 's/^/    /' "$work/out" "$work/err" | head -n 20
    failures=$((failures + 1))
}

# run COMMAND...: its output goes to $work/out and $work/err, its exit status to $status.
run() {
    "$@" >"$work/out" 2>"$work/err" </dev/null
    status=$?
}

# good COMMAND...: exit status 0, nothing on standard error.
good() {
    run "$@"
    [ $status -eq 0 ] && [ ! -s "$work/err" ] || fail "status $status: $*"
}

# bad TEXT COMMAND...: exit status 2, nothing on standard output, one line with TEXT on standard error.
bad() {
    local text=$1
    shift
    run "$@"
    [ $status -eq 2 ] && [ ! -s "$work/out" ] && [ "$(wc -l <"$work/err")" -eq 1 ] &&
        grep -qF -e "$text" "$work/err" || fail "status $status, expected '$text': $*"
}

# says TEXT: the last command printed it.
says() { grep -qF -e "$1" "$work/out" || fail "not printed: '$1'"; }
says_not() { ! grep -qF -e "$1" "$work/out" || fail "printed: '$1'"; }

# is NAME VALUE: a number of $work/report.json.
is() {
    local got
    got=$(sed -n "s/^ *\"$1\": \([-0-9.e+]*\),\{0,1\}\$/\1/p" "$work/report.json" | head -n 1)
    [ "$got" = "$2" ] || fail "$1 is '$got', expected '$2'"
}

# --- help and versions ---------------------------------------------------------------------------

good "$weir" --version
says "weir "
for help in --help -h help; do
    good "$weir" $help
    says "usage: weir COMMAND"
done
for command in replay gen check profile policies; do
    "$weir" --help | grep -q "^  $command " || fail "weir --help does not list $command"
    for help in --help -h; do
        good "$weir" $command $help
        says "usage: weir $command"
    done
    bad "--nonsense: no such option" "$weir" $command --nonsense
done
run "$weir"
[ $status -eq 2 ] && grep -q "usage: weir COMMAND" "$work/err" || fail "weir without a command"
bad "no command 'replya'; did you mean weir replay?" "$weir" replya
bad "no command 'xyzzy'; see weir --help" "$weir" xyzzy

# --- traces and where they come from -------------------------------------------------------------

trace=$work/trace.jsonl
gen() { "$weir" gen --rate 20 --requests 600 --seed 3 --sessions 2,5 --tenants 5 --shared-prefix 4,1024; }
good gen
cp "$work/out" "$trace"
[ "$(wc -l <"$trace")" -eq 600 ] || fail "weir gen --requests 600 gave $(wc -l <"$trace") lines"
replay() { "$weir" replay --workers 4 --report "$work/report.json" --canonical "$@"; }
# What a report says apart from the trace's name and the way it was run.
content() { grep -vE '"(trace|stepped)": ' "$1"; }
same() { cmp -s <(content "$work/first.json") <(content "$work/report.json") || fail "another report: $1"; }

good replay "$trace"
says "trace.jsonl: 600 requests"
is completed_requests 600
is bad_rows 0
cp "$work/report.json" "$work/first.json"
gen | replay - >"$work/out" 2>"$work/err" || fail "gen | replay -"
same "from standard input"
gzip -kn "$trace"
good replay "$trace.gz"
same "from gzip"
if command -v zstd >"$work/out"; then
    zstd -q "$trace"
    good replay "$trace.zst"
    same "from zstd"
fi
head -n 250 "$trace" >"$work/a.jsonl"
tail -n +251 "$trace" | gzip >"$work/b.jsonl.gz"
good replay "$work/a.jsonl" "$work/b.jsonl.gz"
same "from two files"
good replay --step "$trace"
same "one pass at a time"

# several policies read the trace anew, or share what came out of a pipe; threads change nothing
three=round_robin,least_loaded,sticky
good replay -p $three "$trace"
cp "$work/report.json" "$work/first.json"
good replay -p $three --threads 3 "$trace"
same "three threads"
replay -p $three - <"$trace" >"$work/out" 2>"$work/err" || fail "three policies from standard input"
same "three policies from standard input"
good replay -p $three <(cat "$trace")
same "three policies from a pipe"
bad "can be read once" replay -p $three "$trace" <(cat "$trace")
good "$weir" replay -p all --max-requests 50 "$trace"
cp "$work/out" "$work/all"
for policy in $("$weir" policies | grep -E '^[a-z]'); do
    grep -q "^$policy " "$work/all" || fail "-p all leaves out $policy"
done

# --- how requests come ---------------------------------------------------------------------------

good replay --speedup 3 "$trace"
says "speedup 3"
# Most requests (or sessions, "session") in flight at a time, from the log of a replay.
most() {
    awk -v by="$1" -F'[:,]' '
        { for (i = 1; i < NF; i++) v[$i] = $(i + 1)
          at = v["\"arrival_ms\""]; end = at + v["\"e2e_ms\""]
          key = by == "session" ? v["\"session\""] : NR
          if (!(key in from)) from[key] = at
          to[key] = end }
        END { for (k in from) printf "%.6f 1\n%.6f -1\n", from[k], to[k] - 1e-5 }' "$work/loop.jsonl" |
        sort -k1,1g -k2,2g | awk '{ n += $2; if (n > most) most = n } END { print most }'
}
"$weir" gen --rate 20 --requests 300 >"$work/lone.jsonl"
good replay --concurrency 7 --requests "$work/loop.jsonl" "$work/lone.jsonl"
[ "$(most request)" = 7 ] || fail "--concurrency 7 has $(most request) requests in flight"
good replay --concurrency 7 --requests "$work/loop.jsonl" "$trace"
is completed_requests 600
[ "$(most session)" = 7 ] || fail "--concurrency 7 has $(most session) sessions in flight"
# No turn comes before the answer to the one before it and its delay.
good replay --requests "$work/loop.jsonl" "$trace"
early=$(awk -F'[:,]' '
    { for (i = 1; i < NF; i++) v[$i] = $(i + 1)
      at = v["\"arrival_ms\""]; s = v["\"session\""]
      if (s in end && at < end[s] - 1e-5) n++
      end[s] = at + v["\"e2e_ms\""] }
    END { print n + 0 }' "$work/loop.jsonl")
[ "$early" = 0 ] || fail "$early turns come before the answer to the last"
good replay --spread-arrivals 1000 "$trace"
is completed_requests 600
sed 's/"timestamp": [0-9]*, //' "$trace" >"$work/untimed.jsonl"
good replay --concurrency 7 "$work/untimed.jsonl"
is completed_requests 600
bad "untimed.jsonl:1: expected a field timestamp, found none" replay "$work/untimed.jsonl"
printf '%s\r\n' TIMESTAMP,ContextTokens,GeneratedTokens \
    "2023-11-16 18:17:03.97,4808,10" "2023-11-16 18:17:04.03,3180,8" >"$work/azure.csv"
good replay "$work/azure.csv"
is total_input_tokens 7988
printf '%s\n' "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type" \
    "5,ChatGPT,472,18,490,Conversation log" "45,GPT-4,10,0,10,API log" >"$work/burst.csv"
good replay "$work/burst.csv"
is completed_requests 1
is failed_rows 1
says "1 of the trace were skipped: they failed when they were recorded"
"$weir" gen --rate 20 --requests 300 --sessions 3,5 --format mooncake-delta >"$work/delta.jsonl"
good replay --format mooncake-delta "$work/delta.jsonl"
is completed_requests 300

# --- weir's own log, written and read back -------------------------------------------------------

for end in jsonl jsonl.gz jsonl.zst; do
    good replay --requests "$work/log.$end" "$trace"
    good replay "$work/log.$end"
    is completed_requests 600
done
good replay -p round_robin,sticky --requests "$work/two.jsonl" "$trace"
bad "two.jsonl:601: expected the log of one replay" replay "$work/two.jsonl"
grep '"policy":"sticky"' "$work/two.jsonl" >"$work/one.jsonl"
good replay "$work/one.jsonl"
is completed_requests 600

# --- bad traces ----------------------------------------------------------------------------------

{
    head -n 3 "$trace"
    echo 'rubbish'
    echo '{"timestamp": 0, "input_lenght": 5, "output_length": 5}'
    tail -n +4 "$trace"
    echo '{"timestamp": 99999999, "input_length": 100000000, "output_length": 5}'
} >"$work/bad.jsonl"
bad "bad.jsonl:4: expected a JSON object" replay "$work/bad.jsonl"
bad "bad.jsonl:5: expected a field input_length, found input_lenght instead" replay --skip-bad 1 "$work/bad.jsonl"
large="bad.jsonl:603: expected a request that a worker can hold, found 100000000 prompt and 5 output tokens"
bad "$large: the largest worker holds 8388608; raise num_gpu_blocks" replay --skip-bad 2 "$work/bad.jsonl"
good replay --skip-bad 3 "$work/bad.jsonl"
is completed_requests 600
is bad_rows 3
says "3 of the trace were skipped; the first:"
head -c 5000 "$trace.gz" >"$work/cut.gz"
bad "cut.gz: the gzip data is cut off" replay --skip-bad 100 "$work/cut.gz"
{ head -c 3000 "$trace.gz"; echo garbage; tail -c +3100 "$trace.gz"; } >"$work/corrupt.gz"
bad "corrupt.gz: the gzip data is corrupt" replay "$work/corrupt.gz"
: >"$work/empty"
bad "empty: expected a trace, one request a line, found an empty file" replay "$work/empty"
bad "<stdin>: expected a trace, one request a line, found an empty file" replay -
bad "cannot be opened: Is a directory" replay "$work"
bad "/no/such/file: cannot be opened: No such file or directory" replay "$trace" /no/such/file
bad "is this a trace?" replay "$weir"
bad "no trace named" replay

# --- bad command lines ---------------------------------------------------------------------------

bad "--polcy: no such option; did you mean --policy?" replay --polcy sticky "$trace"
bad "no policy 'stiky'; did you mean sticky?" replay --policy stiky "$trace"
bad "no policy ''" replay --policy sticky, "$trace"
bad "--workers: expected a whole number 1..16384, found '0'" "$weir" replay --workers 0 "$trace"
bad "--workers: expected a whole number 1..16384, found '-3'" "$weir" replay --workers -3 "$trace"
bad "--speedup: expected a number 1e-06..1000000, found 'nan'" replay --speedup nan "$trace"
bad "--concurrency: expected a whole number" replay --concurrency 0 "$trace"
bad "--format: expected auto, mooncake" replay --format csv "$trace"
bad "--skip-bad: expected a whole number from 0, found 'all'" replay --skip-bad all "$trace"
bad "--report: expected a value behind it" "$weir" replay "$trace" --report
bad "--report /no/such/folder/x.json: cannot be written: No such file or directory" \
    "$weir" replay "$trace" --report /no/such/folder/x.json
bad "--requests: cannot write /no/such/folder/x" replay "$trace" --requests /no/such/folder/x
bad "--set max_num_seqs: expected KEY=VALUE" replay --set max_num_seqs "$trace"
bad "--set max_num_sequences: unknown key; did you mean max_num_seqs?" \
    replay --set max_num_sequences=3 "$trace"
bad "--set policy_params.stiky.affinity: no policy 'stiky'; did you mean sticky?" \
    replay --set policy_params.stiky.affinity=1 "$trace"
bad "--workers: the stack file says how many" replay --stack deploy/stacks/dynosim.yaml "$trace"
run sh -c '"$0" replay "$1" >/dev/full' "$weir" "$trace"
[ $status -eq 2 ] && grep -q "writing to standard output failed: No space left" "$work/err" ||
    fail "a full disk"
for slow in w_ms=1e9 k_ms_per_tok=1e9 scale=1e6; do # passes of an hour: time ends, nothing overflows
    for how in "" --step "--concurrency 8"; do
        bad "simulated time went beyond 53 days" replay $how --set $slow "$trace"
    done
done
bad "--report /dev/full: writing failed" "$weir" replay -q --report /dev/full "$trace"
bad "no policy 'lmetrik'; did you mean lmetric?" "$weir" policies lmetrik

# --- stacks --------------------------------------------------------------------------------------

for stack in deploy/stacks/*.yaml; do
    good "$weir" check "$stack"
    says "$stack: ok"
    good "$weir" check --print "$stack"
    cp "$work/out" "$work/printed.yaml"
    good "$weir" check --print "$work/printed.yaml"
    cmp -s <(sed 's/ *#.*//' "$work/printed.yaml") <(sed 's/ *#.*//' "$work/out") ||
        fail "$stack: printed and read back, it is another"
    good "$weir" replay --stack "$stack" --max-requests 100 "$trace"
done
good "$weir" check --reference
cmp -s "$work/out" deploy/stack-reference.md ||
    fail "deploy/stack-reference.md is old: weir check --reference writes it"
printf 'pools:\n  - engine:\n      max_num_sequences: 8\n' >"$work/bad.yaml"
wrong="bad.yaml:3: pools[0].engine.max_num_sequences: unknown key; did you mean max_num_seqs?"
bad "$wrong" "$weir" check "$work/bad.yaml"
bad "$wrong" "$weir" replay --stack "$work/bad.yaml" "$trace"
printf 'pools:\n  - workers: 0\n' >"$work/none.yaml"
bad "none.yaml:2: pools[0].workers: expected a whole number 1..16384 workers, got 0" \
    "$weir" check "$work/none.yaml"
bad "cannot open it: No such file or directory" "$weir" check /no/such.yaml
cat >"$work/flags.yaml" <<'YAML'
pools:
  - engine:
      --max-num-seqs: 64
      block-size: 16
      num-gpu-blocks-override: 2000
      --no-enable-prefix-caching: true
YAML
good "$weir" check "$work/flags.yaml"
says "32000        64"
bad "expected a request that a worker can hold" \
    "$weir" replay --stack "$work/flags.yaml" --set num_gpu_blocks=20 "$trace"

# a profile from a config.json, used in a stack
good "$weir" profile --config tests/fuzz/corpus/model_config/llama-3.1-8b --gpu l40s
cp "$work/out" "$work/mine.yaml"
printf 'pools: [{workers: 4, profile: ./mine.yaml}]\n' >"$work/stack.yaml"
good "$weir" check "$work/stack.yaml"
says "./mine.yaml"
good "$weir" replay --stack "$work/stack.yaml" "$trace"
# names are also found in the folder of $WEIR_PROFILES
printf 'pools: [{workers: 4, profile: mine}]\n' >"$work/stack.yaml"
good env WEIR_PROFILES="$work" "$weir" check "$work/stack.yaml"
bad "no profile 'mine'" "$weir" check "$work/stack.yaml"

# --- nothing of the machine that built it --------------------------------------------------------

# (a build with debug information names its sources)
if ! readelf -S "$weir" 2>"$work/err" | grep -q '\.debug_info'; then
    ! grep -qaF "${WEIR_SOURCE:?}" "$weir" || fail "the program holds the path of its sources"
fi

# --- the report ----------------------------------------------------------------------------------

good "$weir" replay --report - "$trace"
says '"completed_requests": 600'
says_not "goodput   SLO"
good "$weir" replay -q "$trace"
[ ! -s "$work/out" ] || fail "-q prints"
echo '{"old": "report", "much longer than nothing": 1}' >"$work/report.json"
bad "cannot be opened" replay /no/such/file
grep -q '"old"' "$work/report.json" || fail "a replay that failed took the old report away"

echo "$failures failed"
[ $failures -eq 0 ]
