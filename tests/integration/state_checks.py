#!/usr/bin/env python3
"""Checks of shared state over a real redis-server. 'N passed, N failed'; without redis-server it skips (77).

    state_checks.py PATH/TO/weir [NAME...]
"""
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.argv, names = sys.argv[:2], sys.argv[2:]
from fault_checks import Load  # noqa: E402
from serve_checks import (PATIENCE_S, THREADS, WEIR, Process, Stream, call, chat, fault, metric, run_checks, state,  # noqa: E402
                          wait_for)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Redis:
    """A redis-server of our own, without anything on disk; restart() is a new one, empty, at the same place."""

    def __init__(self, folder, *options):
        self.folder, self.options, self.port = folder, options, free_port()
        self.start()

    def start(self):
        self.child = subprocess.Popen(["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                                       "--unixsocket", f"{self.folder}/redis.sock", "--dir", self.folder, *self.options],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: self.answers(), "redis-server answers")

    def answers(self):
        with contextlib.suppress(OSError):
            return self.say("PING")[:1] in (b"+", b"-")

    def url(self, login="", db=0):
        return f"redis://{login}127.0.0.1:{self.port}/{db}"

    def say(self, *words):
        """One command; the answer's first bytes."""
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        with socket.create_connection(("127.0.0.1", self.port), 2) as s:
            s.settimeout(2)
            s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
            return s.recv(65536)

    def send_signal(self, number):
        self.child.send_signal(number)

    def kill(self):
        self.child.kill()
        self.child.wait()


@contextlib.contextmanager
def controllers(n=2, engines=2, redis=(), mock=(), url=None, serve=()):
    """n controllers in front of the same engines, on one Redis, all connected."""
    with tempfile.TemporaryDirectory() as folder:
        store = Redis(folder, *redis)
        backs = [Process("mock", "--port", "0", "--seed", str(i), *mock) for i in range(engines)]
        workers = [a for e in backs for a in ("--worker", e.url())]
        fronts = [Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "50", "--explain",
                          "--state", url(store) if url else store.url(), *workers, *THREADS, *serve, admin=True) for _ in range(n)]
        try:
            for f in fronts:
                wait_for(lambda: sum(w["state"] == "up" for w in state(f)) == engines, "all workers are up")
                wait_for(lambda: connected(f), "the store is reached")
            yield store, backs, fronts
        finally:
            for p in (*fronts, *backs):
                p.end(signal.SIGKILL)
            with contextlib.suppress(OSError):
                store.send_signal(signal.SIGCONT)
            store.kill()


def connected(weir):
    return metric(weir.admin, "weir_state_connected") == 1


def foreign(weir):
    return metric(weir.admin, "weir_state_foreign_requests")


def errors(weir, kind):
    for line in call(weir.admin, "GET", "/metrics")[2].decode().split("\n"):
        if line.startswith(f'weir_state_errors_total{{kind="{kind}"}} '):
            return float(line.split()[-1])


def of_worker(weir, name, worker):
    for line in call(weir.admin, "GET", "/metrics")[2].decode().split("\n"):
        if line.startswith(name + "{") and f'worker="{worker}"' in line:
            return int(float(line.split()[-1]))


def agent_says(weir, engine):
    return of_worker(weir, "weir_worker_agent_failure", f"127.0.0.1:{engine.port}")


def all_good(outcomes, least):
    assert len(outcomes) >= least, len(outcomes)
    assert all(o.kind == "ok" for o in outcomes), [(o.kind, o.data[:200]) for o in outcomes if o.kind != "ok"][:3]


def controllers_do_not_herd():
    # lmetric does not look at what engines report: b knows of a's requests from a alone
    with controllers(engines=2, mock=("--scale", "20"), serve=("--policy", "lmetric")) as (_, _, (a, b)):
        wait_for(lambda: metric(a.admin, "weir_state_controllers") == 1 == metric(b.admin, "weir_state_controllers"), "they meet")
        streams = [Stream(a, 200) for _ in range(4)]
        assert all(s.until(b"tok") for s in streams)
        wait_for(lambda: foreign(b) == 4, "the other one sees them")
        used = {s.data.decode().lower().split("x-weir-worker: ")[1].split("\r\n")[0] for s in streams}
        assert len(used) == 2, used
        # one worker is left with all of a's load; b, which has none itself, goes elsewhere every time
        busy = sorted(used)[0]
        for s in streams:
            if busy not in s.data.decode().lower():
                s.sock.close()
        wait_for(lambda: foreign(b) == 2, "it sees that two have ended")
        for i in range(8):
            status, headers, _ = chat(b, messages=[{"role": "user", "content": f"{i} is not cached"}])
            assert status == 200 and headers["x-weir-worker"] != busy, headers
        a.end(signal.SIGKILL)  # it cannot say good-bye
        wait_for(lambda: foreign(b) == 0 and metric(b.admin, "weir_state_controllers") == 0, "its lease runs out")


def a_killed_redis_costs_nothing():
    with controllers() as (redis, _, (a, b)):
        load = Load(a.port, b.port, clients=8, tokens=10)
        load.wait_for_answers(20)
        redis.kill()
        wait_for(lambda: not connected(a) and not connected(b), "both notice")
        load.wait_for_answers(40)
        assert foreign(a) == 0 or metric(a.admin, "weir_state_age_seconds") < 4
        wait_for(lambda: errors(a, "connect") > 0, "it is tried again")
        redis.start()
        wait_for(lambda: connected(a) and connected(b), "both are back")
        wait_for(lambda: metric(a.admin, "weir_state_controllers") == 1, "they meet again")
        load.wait_for_answers(20)
        all_good(load.stop(), 80)
        assert metric(a.admin, "weir_state_connects_total") >= 2 and errors(a, "closed") >= 1
        assert metric(a.admin, "weir_core_refused_events_total") == 0
        assert a.end() == 0 and b.end() == 0


def a_redis_that_hangs_costs_nothing():
    with controllers() as (redis, _, (a, b)):
        load = Load(a.port, b.port, clients=8, tokens=10)
        load.wait_for_answers(10)
        redis.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_for(lambda: errors(a, "timeout") > 0 and not connected(a), "it notices")
        time.sleep(max(0.0, 3 - (time.monotonic() - began)))
        load.wait_for_answers(10)
        assert not connected(a), "a stopped Redis accepts connections, and that is all"
        redis.send_signal(signal.SIGCONT)
        wait_for(lambda: connected(a) and connected(b), "both are back")
        outcomes = load.stop()
        all_good(outcomes, 40)


def a_full_redis_costs_nothing():
    with controllers(n=1) as (redis, _, (a,)):
        redis.say("CONFIG", "SET", "maxmemory", "1")
        load = Load(a.port, clients=4, tokens=10)
        wait_for(lambda: errors(a, "full") > 2, "errors are counted")
        load.wait_for_answers(10)
        wait_for(lambda: connected(a), "it stays connected")
        redis.say("CONFIG", "SET", "maxmemory", "0")
        sent = metric(a.admin, "weir_state_sent_total")
        wait_for(lambda: metric(a.admin, "weir_state_sent_total") > sent, "it goes on")
        all_good(load.stop(), 10)


def what_is_not_ours_is_refused():
    with controllers(n=1, engines=1) as (redis, (engine,), (a,)):
        redis.say("XADD", "weir:v1:dispatches", "*", "d", b"\xff\xff\xff")
        redis.say("XADD", "weir:v1:workers", "*", "d", b"x" * 70000)
        redis.say("XADD", "weir:v1:workers", "*", "something", "else")

        def refused(reason):
            text = call(a.admin, "GET", "/metrics")[2].decode()
            return float(text.split(f'weir_state_refused_total{{reason="{reason}"}} ')[1].split("\n")[0])
        wait_for(lambda: refused("malformed") == 2 and refused("too_large") == 1, "all three are counted")
        redis.say("DEL", "weir:v1:dispatches")
        redis.say("SET", "weir:v1:dispatches", "a string")
        wait_for(lambda: errors(a, "type") > 0, "a wrong type is noticed")
        assert chat(a)[0] == 200
        redis.say("DEL", "weir:v1:dispatches")
        wait_for(lambda: connected(a), "it is well again")


def an_agent_reports_and_its_lease_runs_out():
    with controllers(n=1, engines=1) as (redis, (engine,), (a,)):
        assert agent_says(a, engine) == -1
        agent = Process("agent", "--engine", engine.url(), "--redis", redis.url(), "--interval", "100", "--stall", "500")
        try:
            wait_for(lambda: agent_says(a, engine) == 0, "the agent is heard of")
            assert metric(a.admin, "weir_state_workers") == 1
            assert b"mock" in redis.say("GET", f"weir:v1:worker:127.0.0.1:{engine.port}")
            stream = Stream(a, 500)
            assert stream.until(b"tok")
            fault(engine, kind="hang")
            wait_for(lambda: agent_says(a, engine) == 2, "stalled")
            fault(engine, kind="none")
            wait_for(lambda: agent_says(a, engine) == 0, "well again")
            stream.sock.close()
            engine.child.send_signal(signal.SIGSTOP)
            wait_for(lambda: agent_says(a, engine) == 1, "unreachable")
            engine.child.send_signal(signal.SIGCONT)
            wait_for(lambda: agent_says(a, engine) == 0, "reachable")
            agent.end(signal.SIGKILL)
            wait_for(lambda: agent_says(a, engine) == -1, "its lease runs out")
            assert metric(a.admin, "weir_state_workers") == 0
            assert redis.say("EXISTS", f"weir:v1:worker:127.0.0.1:{engine.port}") == b":0\r\n"
            assert chat(a)[0] == 200
        finally:
            agent.end(signal.SIGKILL)


def logins_databases_and_sockets():
    secret = "p%40ss"
    with controllers(n=1, engines=1, redis=("--requirepass", "p@ss"), url=lambda r: r.url(f":{secret}@", 3)) as (redis, (engine,), (a,)):
        weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--worker", "http://127.0.0.1:1",
                       "--state", f"unix://:{secret}@{redis.folder}/redis.sock?db=3", admin=True)
        wrong = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--worker", "http://127.0.0.1:1",
                        "--state", redis.url(":wrong@"), admin=True)
        try:
            wait_for(lambda: metric(weir.admin, "weir_state_controllers") == 1, "over a socket, the same database")
            wait_for(lambda: errors(wrong, "auth") > 0, "a wrong password is an error of its own kind")
            assert not connected(wrong)
            assert weir.end() == 0 and wrong.end() == 0
            agent = Process("agent", "--engine", engine.url(), "--redis", redis.url(f":{secret}@", 3), "--name", "other:1")
            wait_for(lambda: metric(a.admin, "weir_state_workers") == 1, "an agent, under a name of its own")
            assert agent.end() == 0
        finally:
            weir.end(signal.SIGKILL)
            wrong.end(signal.SIGKILL)


def certificates_are_verified():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test", "-addext",
                        "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder}/key", "-out", f"{folder}/cert"],
                       check=True, capture_output=True)
        port = free_port()
        redis = Redis(folder, "--tls-port", str(port), "--tls-cert-file", f"{folder}/cert", "--tls-key-file",
                      f"{folder}/key", "--tls-auth-clients", "no")
        started = []

        def front(trusts, host):
            os.environ["SSL_CERT_FILE"] = trusts
            started.append(Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--worker", "http://127.0.0.1:1",
                                   "--state", f"rediss://{host}:{port}", admin=True))
            return started[-1]
        try:
            good, stranger, other = (front(f"{folder}/cert", "127.0.0.1"), front("/dev/null", "127.0.0.1"),
                                     front(f"{folder}/cert", "localhost"))
            wait_for(lambda: connected(good), "over TLS")
            wait_for(lambda: errors(stranger, "connect") + errors(stranger, "closed") > 1, "a certificate that nobody vouches for")
            wait_for(lambda: errors(other, "connect") + errors(other, "closed") > 1, "a certificate for another host")
            assert not connected(stranger) and not connected(other)
            assert good.end() == 0 and stranger.end() == 0 and other.end() == 0
        finally:
            del os.environ["SSL_CERT_FILE"]
            for p in started:
                p.end(signal.SIGKILL)
            redis.kill()


def bad_addresses_are_one_line():
    for args, says in ((("serve", "--worker", "http://127.0.0.1:1", "--check", "--state", "redis:/x"), "expected redis://"),
                       (("agent", "--engine", "http://127.0.0.1:1"), "--redis"),
                       (("agent", "--engine", "x", "--redis", "redis://h"), "expected http://HOST:PORT"),
                       (("agent", "--engine", "http://h:1", "--redis", "redis://u:tops3cret@"), "expected redis://"),
                       (("agent", "--rolle", "both"), "did you mean --role")):
        done = subprocess.run([WEIR, *args], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done
        assert "tops3cret" not in done.stderr


CHECKS = [bad_addresses_are_one_line, controllers_do_not_herd, a_killed_redis_costs_nothing, a_redis_that_hangs_costs_nothing,
          a_full_redis_costs_nothing, what_is_not_ours_is_refused, an_agent_reports_and_its_lease_runs_out,
          logins_databases_and_sockets, certificates_are_verified]

if __name__ == "__main__":
    if not shutil.which("redis-server"):
        print("skipped: no redis-server here (deploy/install-deps.sh installs it)")
        sys.exit(77)
    sys.exit(run_checks(CHECKS, names))
