#!/usr/bin/env bash
# install.sh - an installed libweir can be embedded: installs into a folder of its own, finds it with pkg-config alone, builds a
# program against the shared and the static library, and runs both and the installed `weir`.
set -uo pipefail
build=${WEIR_BIN:?}
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-install-XXXXXX")
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*"
    [ ! -f "$work/log" ] || tail -n 20 "$work/log"
    exit 1
}

[ -f "$build/build.ninja" ] && [ -f "$build/libweir.a" ] || { echo "skipped: this build has no library to install"; exit 77; }
grep -q '^WEIR_SANITIZE:STRING=$' "$build/CMakeCache.txt" || { echo "skipped: sanitizers are not for embedding"; exit 77; }
cmake --install "$build" --prefix "$work/prefix" >"$work/log" 2>&1 || fail "cmake --install"
pc=$(find "$work/prefix" -name weir.pc -printf '%h')
export PKG_CONFIG_PATH=$pc
version=$(pkg-config --modversion weir) || fail "pkg-config does not find weir"

cat >"$work/embed.c" <<'C'
/* What a router author does: one engine of the predictor, one decision of the core. */
#include <stdio.h>

#include "controller/core/core.h"
#include "predictor/engine.h"
#include "predictor/version.h"

int main(void)
{
    struct step_params p = {.form = STEP_LINEAR, .w_ms = 6, .p_ms_per_tok = 0.02};
    struct engine_config c;
    struct request_spec r = {.uid = 1, .prompt_tok = 1000, .output_tok = 10, .max_tokens = 10};
    struct core_worker_config w[2] = {{ROLE_BOTH, 16, 1000, 256, 8192, 0, true}, {ROLE_BOTH, 16, 1000, 256, 8192, 0, true}};
    struct core_config cc = {.policy = "round_robin", .n_workers = 2, .workers = w, .queue_max_requests = 8,
                             .queue_timeout_ps = PS_NEVER, .max_requests = 8};
    struct core_request q = {.prompt_tok = 1000, .slo_ttft_ps = PS_NEVER, .slo_tpot_ps = PS_NEVER};
    struct core_event ev = {.kind = CORE_EV_ARRIVAL, .req = &q};
    struct core_command cmd;
    const char *why = NULL;
    uint32_t slot, n;
    engine_config_default(&c, SCHED_VLLM);
    if (step_model_init(&c.step, &p, &why))
        return puts(why), 1;
    struct engine *e = engine_new(&c, 1);
    struct core *core = core_new(&cc, &why);
    if (!e || !core || engine_submit(e, 0, &r, 0, 0, &slot) || core_event(core, &ev) || !core_next(core, &cmd))
        return 1;
    engine_run(e, PS_PER_S);
    const struct engine_event *out = engine_events(e, &n);
    if (n != 1 || out->kind != ENGINE_EV_DONE || cmd.kind != CORE_CMD_DISPATCH)
        return 1;
    printf("weir %s: %.1f ms to the first token, worker %u\n", weir_version(), ms_from_ps(out->record.first_token_ps),
           cmd.worker);
    engine_free(e);
    core_free(core);
    return 0;
}
C
# shellcheck disable=SC2046 # words are meant
cc -std=gnu17 -Wall -Werror "$work/embed.c" $(pkg-config --cflags --libs weir) -o "$work/shared" >"$work/log" 2>&1 ||
    fail "linking the shared library"
# shellcheck disable=SC2046
cc -std=gnu17 -Wall -Werror "$work/embed.c" $(pkg-config --cflags weir) "$(pkg-config --variable=libdir weir)/libweir.a" -lm \
    -o "$work/static" >"$work/log" 2>&1 || fail "linking the static library"
expected="weir $version: 26.0 ms to the first token, worker 0"
for kind in shared static; do
    got=$(LD_LIBRARY_PATH=$(pkg-config --variable=libdir weir) "$work/$kind") || fail "$kind: exit status $?"
    [ "$got" = "$expected" ] || fail "$kind says '$got', not '$expected'"
done
got=$("$work/prefix/bin/weir" --version) || fail "the installed weir does not run"
[ "$got" = "weir $version" ] || fail "weir --version says '$got'"
"$work/prefix/bin/weir" gen --rate 4 --requests 50 >"$work/t.jsonl" || fail "the installed weir gen"
stack=$work/prefix/share/weir/stacks/llama8b-h100-agg8.yaml
(cd "$work" && "$work/prefix/bin/weir" replay t.jsonl --quiet --stack "$stack" >"$work/log" 2>&1) ||
    fail "the installed weir does not find its profiles"
echo "ok: weir $version embedded through pkg-config, shared and static"
