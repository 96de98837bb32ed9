#!/usr/bin/env python3
"""`weir serve` beside nginx, HAProxy and whatever else forwards HTTP, in one run, round by round.

    bench/proxy_speed.py [--weir DIR] [-n ROUNDS] [--seconds S] [--test NAME...] [--streams N] [ROUTER...]

ROUTER: nginx haproxy weir (all three), direct (no router: what latency is added to), floor (proxy_floor: weir's HTTP toolkit
without a decision), or NAME=COMMAND, which
listens on $PORT and forwards to 127.0.0.1:$B1 and :$B2. All of them run at once, each alone on core 0 (an idle one costs
nothing); load generator and two stand-in engines share core 1. In each round every router is measured once, in changing
order, so that a busy machine hurts all alike. CPU time is the process's own, in ns, from the kernel's scheduler.

Tests: post4k, post400k (closed loop), open300, open5000 (4 KB at that rate: latency from the intended send time), sse
(128 streams of 50 events/s). --streams N: opens N streams on each router and tells its memory a stream.

Load generator, engines, bodies and the peers' configurations are ../shared/bench/peers/routers; nginx-light and
haproxy come from Debian.
"""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
KIT = ROOT.parent / "shared/bench/peers/routers"
TESTS = {
    "post4k": ("post4k", ["-c", "64"], ("rps", "us_per_req")),
    "post400k": ("post400k", ["-c", "8"], ("rps", "us_per_req")),
    "open300": ("post4k", ["-c", "32", "-r", "300"], ("p50", "p99", "us_per_req")),
    "open5000": ("post4k", ["-c", "64", "-r", "5000"], ("p50", "p99", "us_per_req")),
    "sse": ("sse4k", ["-c", "128"], ("eps", "us_per_event")),
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_ns(pid):
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total


def rss_kib(pid):
    return next(int(line.split()[1]) for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS"))


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder, self.children = args, pathlib.Path(folder), []
        for tool in ("peerbackend", "peerload"):
            subprocess.run(["cc", "-O2", "-w", "-o", self.folder / tool, KIT / f"{tool}.c"], check=True)
        subprocess.run([sys.executable, KIT / "mkbodies.py", self.folder], check=True)
        self.backends, self.routers = [free_port(), free_port()], {}

    def start_all(self):
        args = self.args
        for b in self.backends:
            direct = self.start(1, [self.folder / "peerbackend", str(b), str(args.events), str(args.period)])
        for name in args.routers:
            name, _, command = name.partition("=")
            if name == "direct":
                self.routers[name] = (self.backends[-1], direct.pid)
                continue
            port = free_port()
            self.routers[name] = (port, self.start(0, self.command(name, command, port)).pid)
        for name, (port, pid) in self.routers.items():
            self.wait_for(name, port, pid)

    def start(self, core, argv):
        child = subprocess.Popen(["taskset", "-c", str(core), *map(str, argv)], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        self.children.append(child)
        return child

    def end(self):
        for child in self.children:
            child.send_signal(signal.SIGKILL)
            child.wait()

    def filled(self, name, port):
        text = (KIT / "conf" / (name + ".in")).read_text()
        for key, value in (("@RUN@", self.folder), ("@PORT@", port), ("@B1@", self.backends[0]), ("@B2@", self.backends[1])):
            text = text.replace(key, str(value))
        (self.folder / name).write_text(text)
        return self.folder / name

    def command(self, name, command, port):
        b1, b2 = self.backends
        if command:
            for key, value in (("$PORT", port), ("$B1", b1), ("$B2", b2)):
                command = command.replace(key, str(value))
            return command.split()
        if name == "nginx":
            return ["nginx", "-p", f"{self.folder}/", "-c", self.filled("nginx.conf", port)]
        if name == "haproxy":
            return ["haproxy", "-db", "-q", "-f", self.filled("haproxy.cfg", port)]
        if name == "floor":
            return [self.args.weir / "bench/proxy_floor", port, b1, b2]
        if name == "weir":
            return [self.args.weir / "weir", "serve", "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0",
                    "--worker", f"http://127.0.0.1:{b1}", "--worker", f"http://127.0.0.1:{b2}"]
        sys.exit(f"proxy_speed: '{name}' is not nginx, haproxy, weir, floor or NAME=COMMAND")

    def load(self, port, body, more):
        done = subprocess.run(["taskset", "-c", "1", self.folder / "peerload", "-p", str(port), *more,
                               "-b", self.folder / f"{body}.json"], capture_output=True, text=True)
        return json.loads(done.stdout) if not done.returncode else {"done": 0, "errors": -1}

    def wait_for(self, name, port, pid):
        for _ in range(100):
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                if self.load(port, "post4k", ["-c", "1", "-n", "1", "-d", "1", "-w", "0"]).get("errors") == 0:
                    self.load(port, "post4k", ["-c", "64", "-d", "0.5", "-w", "0"])
                    return
        sys.exit(f"proxy_speed: {name} does not answer on port {port} (process {pid})")

    def one(self, test, name):
        body, more, _ = TESTS[test]
        port, pid = self.routers[name]
        before = cpu_ns(pid)
        r = self.load(port, body, [*more, "-d", str(self.args.seconds), "-w", "0.2"])
        us = (cpu_ns(pid) - before) / 1e3
        r["us_per_req"] = us / r["done"] if r["done"] else None
        r["us_per_event"] = us / r["events"] if r.get("events") else None
        return r

    def rounds(self, test):
        names = list(self.routers)
        got = {n: [] for n in names}
        for i in range(self.args.rounds):
            for n in names[i % len(names):] + names[:i % len(names)]:
                got[n].append(self.one(test, n))
        keys = TESTS[test][2]
        for n in names:
            bad = sum(r["errors"] for r in got[n])
            cells = []
            for k in keys:
                values = [r[k] for r in got[n] if r.get(k) is not None]
                best = max(values, default=0) if k in ("rps", "eps") else min(values, default=0)
                cells.append(f"{statistics.median(values or [0]):.1f} ({best:.1f})")
            print(f"| {test} | {n} | " + " | ".join(f"{k} {c}" for k, c in zip(keys, cells)) + f" | {bad} errors |", flush=True)

    def streams(self, n):
        for name, (port, pid) in self.routers.items():
            before = rss_kib(pid)
            child = subprocess.Popen([self.folder / "peerload", "-p", str(port), "-c", str(n), "-n", str(n), "-d", "60",
                                      "-w", "0", "-b", self.folder / "sse4k.json"], stdout=subprocess.DEVNULL)
            most = 0
            while child.poll() is None and most < n * 2:
                time.sleep(0.5)
                fds = len(os.listdir(f"/proc/{pid}/fd"))
                if fds <= most:
                    break
                most = fds
            print(f"| streams | {name} | {n} open ({most} descriptors) | {(rss_kib(pid) - before) / n:.1f} KiB a stream |",
                  flush=True)
            child.kill()
            child.wait()


def main():
    ap = argparse.ArgumentParser(usage=__doc__)
    ap.add_argument("--weir", type=pathlib.Path, default=ROOT / "build/release")
    ap.add_argument("-n", dest="rounds", type=int, default=5)
    ap.add_argument("--seconds", type=float, default=1.5)
    ap.add_argument("--test", nargs="*", choices=TESTS, default=list(TESTS))
    ap.add_argument("--streams", type=int, default=0)
    ap.add_argument("--events", type=int, default=200)
    ap.add_argument("--period", type=int, default=20)
    ap.add_argument("routers", nargs="*", default=[])
    args = ap.parse_args()
    args.routers = args.routers or ["nginx", "haproxy", "weir"]
    if not KIT.exists():
        sys.exit(f"proxy_speed: {KIT} is not here")
    for r in ("nginx", "haproxy"):
        if r in args.routers and not shutil.which(r):
            sys.exit(f"proxy_speed: {r} is not installed (apt-get install nginx-light haproxy)")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, folder)
        try:
            bench.start_all()
            for test in args.test:
                bench.rounds(test)
            if args.streams:
                bench.streams(args.streams)
        finally:
            bench.end()


if __name__ == "__main__":
    main()
