#!/usr/bin/env python3
"""Faults of real processes under load: what breaks, and what its clients see. Ends with 'N passed, N failed'.

    fault_checks.py PATH/TO/weir [NAME...]

The promise: no request is lost that had not been answered in part, and those end in a clear error within a second of the
loss being noticed.
"""
import asyncio
import contextlib
import json
import signal
import socket
import sys
import threading
import time

sys.argv, names = sys.argv[:2], sys.argv[2:]
from serve_checks import PATIENCE_S, Process, fault, fleet, metric, run_checks, state, wait_for  # noqa: E402

CLIENTS = 24


class Outcome:
    def __init__(self, port, stream):
        self.port, self.stream, self.data, self.head = port, stream, b"", b""
        self.kind, self.began, self.ended, self.worker = "broken", time.monotonic(), None, None

    def __repr__(self):
        return f"<{self.kind} stream={self.stream} tokens={self.tokens()} worker={self.worker} {self.head[:40]} {self.data[-200:]}>"

    def tokens(self):
        return self.data.count(b" tok")

    def judge(self, whole):
        self.ended = time.monotonic()
        if not whole:
            return
        if b" 200 " not in self.head.split(b"\r\n")[0]:
            self.kind = "status"
        elif not self.stream:
            self.kind = "ok" if json.loads(self.data)["choices"] else "broken"
        elif b'"error"' in self.data:
            self.kind = "error" if self.data.endswith(b"data: [DONE]\n\n") else "broken"
        elif self.data.endswith(b"data: [DONE]\n\n"):
            self.kind = "ok"


class Load:
    """Clients that ask one request after the other, streamed and not, of one port after the other."""

    def __init__(self, *ports, clients=CLIENTS, tokens=40):
        self.ports, self.tokens, self.outcomes, self.stopping = ports, tokens, [], False
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run(clients)))
        self.thread.start()

    async def run(self, clients):
        await asyncio.gather(*(self.client(i) for i in range(clients)))

    async def client(self, i):
        while not self.stopping:
            port, stream = self.ports[i % len(self.ports)], i % 3 > 0
            i += 1
            o = Outcome(port, stream)
            try:
                o.judge(await asyncio.wait_for(self.ask(o), PATIENCE_S))
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            except (OSError, asyncio.IncompleteReadError, ValueError):
                o.judge(False)
            except asyncio.TimeoutError:
                o.judge(False)
                o.kind = "hung"
            self.outcomes.append(o)

    async def ask(self, o):
        body = json.dumps({"model": "mock", "stream": o.stream, "max_tokens": self.tokens,
                           "messages": [{"role": "user", "content": f"{id(o)}"}]})
        reader, writer = await asyncio.open_connection("127.0.0.1", o.port)
        try:
            writer.write((f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\n"
                          f"Content-Length: {len(body)}\r\n\r\n{body}").encode())
            o.head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in o.head.lower().split(b"\r\n")[1:] if b": " in line)
            o.worker = fields.get(b"x-weir-worker", b"").decode()
            if b"content-length" in fields:
                o.data = await reader.readexactly(int(fields[b"content-length"]))
                return True
            while size := int(await reader.readuntil(b"\r\n"), 16):
                o.data += (await reader.readexactly(size + 2))[:-2]
            return True
        finally:
            writer.close()

    def wait_for_answers(self, n):
        before = len(self.outcomes)
        wait_for(lambda: len(self.outcomes) >= before + n, f"{n} more answers")

    def stop(self):
        self.stopping = True
        self.thread.join(2 * PATIENCE_S)
        return self.outcomes


@contextlib.contextmanager
def load(*ports, **more):
    under = Load(*ports, **more)
    try:
        yield under
    finally:
        under.stop()


def busiest(engines):
    """The engine with the most requests, once it has some."""
    running = {}

    def look():
        running.update({e: metric(e.port, "vllm:num_requests_running") for e in engines})
        return max(running.values()) >= 4
    wait_for(look, "an engine is busy")
    return max(running, key=running.get)


def only_started_streams_broke(outcomes, noticed, engine):
    """All is well but for streams of that worker that had begun, which say so."""
    bad = [o for o in outcomes if o.kind != "ok"]
    for o in bad:
        assert o.kind == "error" and o.tokens() > 0 and o.worker == f"127.0.0.1:{engine.port}", o
        assert b"worker_lost" in o.data and o.ended <= noticed + 1.0, (o.ended - noticed, o)
    return len(bad)


# ---- the faults


def an_engine_is_killed():
    with fleet(3) as (weir, engines), load(weir.port) as clients:
        clients.wait_for_answers(60)
        victim = busiest(engines)
        victim.child.kill()
        at = time.monotonic()
        clients.wait_for_answers(100)
        assert only_started_streams_broke(clients.stop(), at, victim) > 0, "no stream broke"
        assert metric(weir.admin, "weir_inflight_requests") == 0


def an_engine_hangs():
    with fleet(3) as (weir, engines), load(weir.port) as clients:
        clients.wait_for_answers(60)
        victim = busiest(engines)
        number, name = engines.index(victim), f"127.0.0.1:{victim.port}"
        victim.child.send_signal(signal.SIGSTOP)
        wait_for(lambda: state(weir)[number]["state"] == "down", "the hanging worker is seen")
        at = time.monotonic()
        clients.wait_for_answers(100)
        assert only_started_streams_broke(clients.stop(), at, victim) > 0, "no stream broke"
        victim.child.send_signal(signal.SIGCONT)
        wait_for(lambda: state(weir)[number]["state"] == "up", "it is back")
        with load(weir.port) as again:
            wait_for(lambda: any(o.worker == name for o in again.outcomes), "it gets requests again")


def an_engine_hangs_before_its_first_token():
    """A hang that only its own requests tell: the engine goes on answering polls, and it has sent heads."""
    with fleet(2, serve=("--first-byte", "500", "--stall", "500")) as (weir, engines), load(weir.port) as clients:
        clients.wait_for_answers(40)
        fault(engines[0], kind="hang")
        at = time.monotonic()
        clients.wait_for_answers(60)
        only_started_streams_broke(clients.stop(), at + 1, engines[0])


def one_of_two_controllers_is_killed():
    with fleet(2) as (weir, engines):
        workers = [a for e in engines for a in ("--worker", e.url())]
        other = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--explain", *workers, admin=True)
        try:
            wait_for(lambda: all(w["state"] == "up" for w in state(other)), "the other one is ready")
            with load(weir.port, other.port) as clients:
                clients.wait_for_answers(60)
                other.child.kill()
                at = time.monotonic()
                clients.wait_for_answers(60)
                for o in clients.stop():
                    assert o.kind == "ok" or (o.kind == "broken" and o.port == other.port and o.ended <= at + 1), o
            wait_for(lambda: all(metric(e.port, "vllm:num_requests_running") == 0 for e in engines),
                     "the engines have dropped what the dead controller had asked")
        finally:
            other.end(signal.SIGKILL)


class Liar:
    """An engine whose polls look well and whose answers are bytes of the test's choice; then it closes, stays silent or goes on."""

    def __init__(self, stays=False, endless=b""):
        self.answer, self.asked, self.heads, self.stays, self.endless = b"", 0, [], stays, endless
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def end(self, _):
        self.sock.close()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=(self.sock.accept()[0],), daemon=True).start()

    def serve(self, s):
        with s, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                piece = s.recv(65536)
                if not piece:
                    return
                data += piece
            if data.startswith(b"GET /metrics"):
                s.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif data.startswith(b"GET "):
                s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                self.asked += 1
                self.heads.append(data)
                s.sendall(self.answer)
                while self.endless:
                    s.sendall(self.endless)
                while self.stays and s.recv(65536):
                    pass


ALL, STREAMS, NONE = "all", "streams", "none"
LIES = {  # name: (what the engine sends, which requests end well all the same)
    "nothing": (b"", ALL),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no HTTP at all\r\n\r\n", ALL),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", ALL),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", ALL),
    "length and chunks": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", ALL),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20000)), ALL),
    "1xx without end": (b"HTTP/1.1 102 Processing\r\n\r\n" * 5000, ALL),
    "a bad gateway": (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", ALL),
    "an empty stream": (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n", STREAMS),
    "fewer bytes than promised": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", NONE),
    "a bad chunk": (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b"e\r\ndata: \" tok\"\n\n\r\nzz\r\n", ALL),
    "a stream that is cut": (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                             b"e\r\ndata: \" tok\"\n\n\r\n", NONE),
}


def engines_that_lie():
    """Each lie to a weir of its own: after five failures in a row the breaker leaves the liar out."""
    good = Process("mock", "--port", "0")
    liar = Liar()
    try:
        for lie, (answer, well) in LIES.items():
            liar.answer, liar.asked = answer, 0
            an_engine_that_lies(good, liar, lie, well)
    finally:
        for p in (good, liar):
            p.end(signal.SIGKILL)


def an_engine_that_lies(good, liar, lie, well):
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--policy", "round_robin", "--explain",
                   "--worker", good.url(), "--worker", liar.url(), admin=True)
    try:
        wait_for(lambda: sum(w["state"] == "up" for w in state(weir)) == 2, "both are up")
        outcomes = []
        while liar.asked < 3 and len(outcomes) < 200:
            under = Load(weir.port, clients=3, tokens=2)
            under.wait_for_answers(3)
            outcomes += under.stop()
        assert liar.asked >= 3, f"{lie}: never asked"
        for o in outcomes:
            may_end_badly = well == NONE or (well == STREAMS and not o.stream)
            assert o.kind == "ok" or (may_end_badly and o.worker == f"127.0.0.1:{liar.port}" and
                                      o.kind in ("error", "broken")), (lie, o)
        assert well != NONE or any(o.kind != "ok" for o in outcomes), f"{lie}: nobody noticed"
        assert metric(weir.admin, "weir_inflight_requests") == 0
    finally:
        weir.end(signal.SIGKILL)


def mock_faults_under_load():
    """Shares of refusals, slowness, then a crash: what could be sent elsewhere was."""
    with fleet(3) as (weir, engines), load(weir.port) as clients:
        for what in ({"kind": "error", "share": 0.5}, {"kind": "slow", "factor": 4}, {"kind": "crash"}):
            clients.wait_for_answers(40)
            fault(engines[0], **what)
        at = time.monotonic()
        clients.wait_for_answers(60)
        only_started_streams_broke(clients.stop(), at, engines[0])
        assert metric(weir.admin, "weir_redispatched_total") > 0


def the_disk_is_full_for_the_log():
    with fleet(2, serve=("--request-log", "/dev/full")) as (weir, _), load(weir.port) as clients:
        clients.wait_for_answers(100)
        assert all(o.kind == "ok" for o in clients.stop())
        wait_for(lambda: metric(weir.admin, "weir_request_log_dropped_disk_total") > 0, "it says that lines are missing")
        assert metric(weir.admin, "weir_live_requests") == 0


if __name__ == "__main__":
    sys.exit(run_checks([an_engine_is_killed, an_engine_hangs, an_engine_hangs_before_its_first_token,
                         one_of_two_controllers_is_killed, engines_that_lie, mock_faults_under_load,
                         the_disk_is_full_for_the_log], names))
