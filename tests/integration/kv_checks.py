#!/usr/bin/env python3
"""Checks of KV events from mock engines to `weir serve`'s decisions: one function a promise. Ends with 'N passed, N failed'.

    kv_checks.py PATH/TO/weir [NAME...]

Prompts are sent to an engine behind weir's back: that it has them, weir can only know by the engine's events.
"""
import contextlib
import pathlib
import random
import re
import signal
import socket
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from serve_checks import THREADS, Process, call, fault, run_checks, state, wait_for  # noqa: E402

BLOCK = 16


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Engine:
    """A mock engine with KV events, on ports that it keeps when it is started again."""

    def __init__(self, encoding="map", replay=True):
        self.encoding, self.replay = encoding, replay
        self.ports = [free_port() for _ in range(3)]
        self.start()

    def start(self):
        http, events, replay = map(str, self.ports)
        self.process = Process("mock", "--port", http, "--kv-events", events, "--kv-replay", replay,
                               "--kv-encoding", self.encoding, "--scale", "0.2")
        self.port = self.process.port

    def worker(self):
        replay = f",kv_replay=tcp://127.0.0.1:{self.ports[2]}" if self.replay else ""
        return f"{self.process.url()}#kv_events=tcp://127.0.0.1:{self.ports[1]}{replay}"


@contextlib.contextmanager
def fleet(n=2, policy="dynamo_cost", **engine):
    engines = [Engine(**engine) for _ in range(n)]
    workers = [a for e in engines for a in ("--worker", e.worker())]
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "20", "--explain",
                   "--policy", policy, *workers, *THREADS, admin=True)
    try:
        wait_for(lambda: sum(w["state"] == "up" for w in state(weir)) == n, "all workers are up")
        yield weir, engines
    finally:
        for p in (weir, *(e.process for e in engines)):
            p.end(signal.SIGKILL)


def prompt(seed, blocks=40):
    return [random.Random(seed).randrange(100000) for _ in range(blocks * BLOCK)]


def complete(port, ids, **more):
    body = {"model": "mock", "prompt": ids, "max_tokens": 2, **more}
    status, headers, data = call(port, "POST", "/v1/completions", body)
    assert status == 200, data
    return headers


def figure(weir, name, engine):
    text = call(weir.admin, "GET", "/metrics")[2].decode()
    found = re.search(rf'^{name}{{[^}}]*worker="127.0.0.1:{engine.port}"[^}}]*}} ([-0-9.e+]+)$', text, re.M)
    return float(found.group(1)) if found else None


def heard(weir, engine, at_least):
    wait_for(lambda: figure(weir, "weir_kv_blocks", engine) >= at_least, f"{at_least} blocks are followed")


def goes_to(weir, ids, engine, **more):
    for extra in range(3):  # what comes behind the prefix is always new
        sent = complete(weir.port, ids + prompt(f"{ids[0]} {extra}", 2), **more)["x-weir-worker"]
        assert sent == f"127.0.0.1:{engine.port}", (sent, engine.port)


def check_events_reach_decisions():
    """In all encodings: a request goes where its prefix is, though weir has never sent it there."""
    for encoding in ("map", "array", "sglang"):
        with fleet(encoding=encoding) as (weir, engines):
            for i, e in enumerate(engines):
                complete(e.port, prompt(i))
            for i, e in enumerate(engines):
                heard(weir, e, 40)
                goes_to(weir, prompt(i), e)
                assert figure(weir, "weir_kv_batches_refused_total", e) == 0
                assert figure(weir, "weir_kv_blocks_untold_total", e) == 0


def check_history_is_replayed():
    """What an engine cached before weir was started is known, though it is idle since."""
    engines = [Engine(), Engine()]
    complete(engines[1].port, prompt(7))
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "20", "--explain",
                   "--policy", "dynamo_cost", *(a for e in engines for a in ("--worker", e.worker())), *THREADS,
                   admin=True)
    try:
        heard(weir, engines[1], 40)
        goes_to(weir, prompt(7), engines[1])
    finally:
        for p in (weir, *(e.process for e in engines)):
            p.end(signal.SIGKILL)


def check_salts_are_apart():
    """A prompt under one salt is not cached under another."""
    with fleet() as (weir, engines):
        complete(engines[1].port, prompt(1), cache_salt="a")
        heard(weir, engines[1], 40)
        goes_to(weir, prompt(1), engines[1], cache_salt="a")
        complete(engines[0].port, prompt(1), cache_salt="b")
        heard(weir, engines[0], 40)
        goes_to(weir, prompt(1), engines[0], cache_salt="b")


def check_a_gap_is_replayed():
    """Batches that were never published are asked for when the next one shows that they are missing."""
    with fleet() as (weir, engines):
        e = engines[1]
        complete(e.port, prompt(1))
        heard(weir, e, 40)
        fault(e, kind="mute")
        complete(e.port, prompt(2))
        fault(e, kind="none")
        assert figure(weir, "weir_kv_gaps_total", e) == 0
        complete(e.port, prompt(3))
        heard(weir, e, 120)
        assert figure(weir, "weir_kv_gaps_total", e) == 1
        assert figure(weir, "weir_kv_gaps_healed_total", e) == 1
        for i in (1, 2, 3):
            goes_to(weir, prompt(i), e)


def check_a_gap_without_replay_forgets():
    """Where nobody replays, what was known before a gap is not believed any more."""
    with fleet(replay=False) as (weir, engines):
        e = engines[1]
        complete(e.port, prompt(1))
        heard(weir, e, 40)
        fault(e, kind="mute")
        complete(e.port, prompt(2))
        fault(e, kind="none")
        complete(e.port, prompt(3))
        wait_for(lambda: figure(weir, "weir_kv_gaps_total", e) == 1, "the gap is seen")
        heard(weir, e, 40)
        assert figure(weir, "weir_kv_gaps_healed_total", e) == 0
        assert figure(weir, "weir_kv_blocks", e) < 80
        goes_to(weir, prompt(3), e)


def check_a_new_life_is_an_epoch():
    """kill -9: the new engine has nothing, and what it caches from then on is known."""
    with fleet() as (weir, engines):
        e = engines[1]
        complete(e.port, prompt(1))
        heard(weir, e, 40)
        e.process.end(signal.SIGKILL)
        wait_for(lambda: any(w["state"] == "down" for w in state(weir)), "it is seen to be down")
        e.start()
        wait_for(lambda: all(w["state"] == "up" for w in state(weir)), "it is up again")
        complete(e.port, prompt(2, 50))
        wait_for(lambda: figure(weir, "weir_kv_epochs_total", e) == 1, "its new life is seen")
        heard(weir, e, 50)
        assert figure(weir, "weir_kv_blocks", e) < 90
        goes_to(weir, prompt(2, 50), e)


def check_a_hang_forgets_nothing():
    """SIGSTOP until it counts as down: when it goes on, what it has is known again, from the same life."""
    with fleet() as (weir, engines):
        e = engines[1]
        complete(e.port, prompt(1))
        heard(weir, e, 40)
        e.process.child.send_signal(signal.SIGSTOP)
        wait_for(lambda: any(w["state"] == "down" for w in state(weir)), "it is seen to be down")
        e.process.child.send_signal(signal.SIGCONT)
        wait_for(lambda: all(w["state"] == "up" for w in state(weir)), "it is up again")
        complete(e.port, prompt(2))
        heard(weir, e, 80)
        assert figure(weir, "weir_kv_epochs_total", e) == 0
        goes_to(weir, prompt(1), e)


if __name__ == "__main__":
    sys.exit(run_checks([v for k, v in globals().items() if k.startswith("check_")], sys.argv[2:]))
