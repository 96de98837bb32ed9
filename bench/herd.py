#!/usr/bin/env python3
"""Do several controllers herd? With shared state and without, side by side, on a redis-server of our own.

    bench/herd.py [--weir build/release/weir] [--controllers 4] [--bursts 40] [--policy least_loaded]

As many mock engines as controllers. In each burst every controller gets one long prompt, GAP_S after the one before: less
than the interval at which engines are polled (100 ms), so that only what controllers tell one another can keep the
second request away from the worker of the first. Printed: how many requests of a burst one worker got at most
(1 is perfect, on average), and times to first token.
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
GAP_S = 0.012
PROMPT_WORDS = 4000
START_S = 1.5


def start(*command):
    """A process, and the first port that it names."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return child, re.findall(r":(\d+)", child.stdout.readline())[0]


class Burst:
    def __init__(self, ports):
        self.ports, self.answers = ports, []

    def ask(self, port, text):
        body = json.dumps({"model": "mock", "prompt": text * PROMPT_WORDS, "max_tokens": 8, "stream": True}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"})
        began = time.monotonic()
        with urllib.request.urlopen(request) as answer:
            answer.readline()
            self.answers.append((answer.headers["x-weir-worker"], time.monotonic() - began))
            answer.read()

    def run(self, number):
        threads = [threading.Thread(target=self.ask, args=(p, f"{number}.{i} ")) for i, p in enumerate(self.ports)]
        for t in threads:
            t.start()
            time.sleep(GAP_S)
        for t in threads:
            t.join()
        workers = [w for w, _ in self.answers]
        return max(workers.count(w) for w in workers), [s for _, s in self.answers]


def measure(a, store):
    started = []
    try:
        engines = [start(a.weir, "mock", "--port", "0", "--seed", str(i)) for i in range(a.controllers)]
        started += [c for c, _ in engines]
        workers = [x for _, port in engines for x in ("--worker", f"http://127.0.0.1:{port}")]
        fronts = [start(a.weir, "serve", *workers, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--state", store,
                        "--policy", a.policy, "--explain") for _ in range(a.controllers)]
        started += [c for c, _ in fronts]
        time.sleep(START_S)
        most, seconds = zip(*(Burst([port for _, port in fronts]).run(n) for n in range(a.bursts)))
        seconds = sorted(s for burst in seconds for s in burst)
        print(f"| {'shared' if store != 'none' else 'alone'} | {statistics.mean(most):.2f} | "
              f"{1e3 * seconds[len(seconds) // 2]:.0f} | {1e3 * seconds[len(seconds) * 95 // 100]:.0f} |", flush=True)
    finally:
        for child in started:
            child.kill()
            child.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--weir", default=str(ROOT / "build/release/weir"))
    parser.add_argument("--controllers", type=int, default=4)
    parser.add_argument("--bursts", type=int, default=40)
    parser.add_argument("--policy", default="least_loaded")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/redis.sock"
        redis = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder],
                                 stdout=subprocess.DEVNULL)
        try:
            print("| controllers | most requests of a burst at one worker | TTFT p50 ms | p95 ms |\n|---|---|---|---|")
            for store in ("none", f"unix://{socket}") * 2:
                measure(a, store)
        finally:
            redis.kill()
            redis.wait()


if __name__ == "__main__":
    main()
