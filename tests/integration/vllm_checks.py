#!/usr/bin/env python3
"""A real vLLM on the CPU behind `weir serve`: two engines, then a prefill and a decode engine with NIXL between them.

    vllm_checks.py PATH/TO/weir [both|apart]

Installed by ../shared/bench/peers/vllm_cpu/setup.sh (6.5 GB); skipped with a line where it is not. Engines take two minutes to
start, so this is no part of the normal run. NIXL keeps a core busy in each engine: run `apart` on a machine that is idle.
"""
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.argv, names = sys.argv[:2], sys.argv[2:]
os.environ.setdefault("WEIR_PATIENCE_S", "180")
from serve_checks import SOURCE, Process, Stream, call, events, metric, run_checks, state, wait_for  # noqa: E402

KIT = SOURCE.parent / "shared/bench/peers/vllm_cpu"
PEERS = pathlib.Path(os.environ.get("PEERS_DIR", "/opt/peers"))
PORT = int(os.environ.get("VLLM_PORT", "8151"))
NIXL = ["--", "--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_device":"cpu"}']


@contextlib.contextmanager
def engines(*more):
    with tempfile.TemporaryDirectory() as run:
        try:
            subprocess.run(["bash", KIT / "serve.sh", "-n", "2", "-p", str(PORT), "-m", "small", "-r", run, *more], check=True)
            yield
        finally:
            subprocess.run(["bash", KIT / "stop.sh", run])


@contextlib.contextmanager
def weir_before(*roles, serve=()):
    workers = [f"http://127.0.0.1:{PORT + i}" + (f"#role={role}" if role else "") for i, role in enumerate(roles)]
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--explain",
                   *(a for w in workers for a in ("--worker", w)), *serve, admin=True)
    try:
        wait_for(lambda: all(w["state"] == "up" and w["engine"] == "vllm" for w in state(weir)), "both are up")
        yield weir
    finally:
        weir.end(signal.SIGKILL)


def prompt(seed, n):
    r = random.Random(seed)
    return [r.randrange(4, 4096) for _ in range(n)]


def complete(weir, ids, tokens=4, **more):
    body = {"model": "m", "prompt": ids, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "return_token_ids": True, **more}
    status, headers, data = call(weir.port, "POST", "/v1/completions", body)
    assert status == 200, (status, data[:500])
    return headers["x-weir-worker"], json.loads(data)


def running():
    return [metric(PORT + i, "vllm:num_requests_running") for i in range(2)]


def both():
    with engines("-k", "512", "-t", "512", "-s", "16"), weir_before("", "", serve=("--policy", "cache_aware")) as weir:
        wait_for(lambda: b'"m"' in call(weir.port, "GET", "/v1/models")[2], "the model is listed")
        # the same prompt goes where it is cached, and the engine says so
        for seed in range(4):
            worker, first = complete(weir, prompt(seed, 320))
            again, second = complete(weir, prompt(seed, 320))
            assert again == worker and second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 256, second["usage"]
            assert first["choices"][0]["token_ids"] == second["choices"][0]["token_ids"]
        assert metric(weir.admin, "weir_cached_tokens_total") >= 4 * 256
        assert len({complete(weir, prompt(100 + i, 40))[0] for i in range(8)}) == 2, "both get work"
        # streams are counted as the engine counts them
        body = {"model": "m", "messages": [{"role": "user", "content": "w5 w6 w7"}], "max_tokens": 12, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}
        before = metric(weir.admin, "weir_output_tokens_total")
        got = events(call(weir.port, "POST", "/v1/chat/completions", body)[2])
        assert got[-1] == "[DONE]" and json.loads(got[-2])["usage"]["completion_tokens"] == 12
        assert metric(weir.admin, "weir_output_tokens_total") - before == 12
        # a client that leaves frees its engine: within a stream, and before a whole answer
        for stream in (True, False):
            s = Stream(weir, 3000, model="m", ignore_eos=True, stream=stream)
            wait_for(lambda: sum(running()) == 1, "the engine runs it")
            s.sock.close()
            began = time.monotonic()
            wait_for(lambda: sum(running()) == 0, "the engine is free")
            print(f"stream {stream}: the engine is free {time.monotonic() - began:.2f} s after the client left")
        # the engine's own errors come through
        for body, status in (({"model": "other", "prompt": "x"}, 404), ({"model": "m", "prompt": [1] * 9000}, 400),
                             ({"model": "m", "prompt": "x", "temperature": -1}, 400)):
            assert call(weir.port, "POST", "/v1/completions", body)[0] == status, body
        assert metric(weir.admin, "weir_inflight_requests") == 0


def apart():
    with engines("-k", "256", *NIXL):
        with weir_before("", "") as weir:
            alone = {seed: complete(weir, prompt(seed, 200), 8)[1]["choices"][0]["token_ids"] for seed in (1000, 2000)}
        with weir_before("prefill", "decode", serve=("--handover", "nixl")) as weir:
            for seed in alone:
                worker, answer = complete(weir, prompt(seed, 200), 8)
                assert worker == f"127.0.0.1:{PORT + 1}", "the decode engine answers"
                assert answer["choices"][0]["token_ids"] == alone[seed], (answer, alone[seed])
            # on a busy machine a hand-over may time out in the engine: then another attempt has answered
            print(f"{metric(weir.admin, 'weir_redispatched_total'):.0f} legs had to be sent again")
            pulled = [line for line in call(PORT + 1, "GET", "/metrics")[2].decode().splitlines()
                      if line.startswith("vllm:prompt_tokens_by_source_total") and "external" in line]
            assert sum(float(line.split()[-1]) for line in pulled) > 0, f"no KV was handed over: {pulled}"
            assert metric(weir.admin, "weir_inflight_requests") == 0


if __name__ == "__main__":
    if not (PEERS / "vllm-cpu/bin/python").exists() or not KIT.exists():
        print(f"skipped: no vLLM under {PEERS / 'vllm-cpu'} (../shared/bench/peers/vllm_cpu/setup.sh installs it, 6.5 GB)")
        sys.exit(77)
    sys.exit(run_checks([both, apart], names))
