#!/usr/bin/env python3
"""Clients and engines that mean harm, or behave as if: real sockets against `weir serve`. Ends with 'N passed, N failed'.

    hostile_checks.py PATH/TO/weir [NAME...]

What each layer refuses is tested there (tests/unit/test_http_*.c, test_json_scan.c); here: that the whole stands it, and that
others are served meanwhile. tests/harm.md has the table.
"""
import contextlib
import json
import re
import resource
import signal
import socket
import sys
import threading
import time

sys.argv, names = sys.argv[:2], sys.argv[2:]
from fault_checks import Liar  # noqa: E402
from serve_checks import PATIENCE_S, Process, Stream, call, chat, fleet, metric, run_checks, state, wait_for  # noqa: E402

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def raw(weir, data, more=b""):
    """Everything that comes back for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", weir.port), PATIENCE_S) as s:
        with contextlib.suppress(ConnectionError):
            s.sendall(data)
            if more:
                s.sendall(more)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := s.recv(65536):
                answer += piece
        return answer


def rss_kib(weir):
    """0 with a sanitizer, which has memory of its own."""
    if re.search(r"lib[at]san", open(f"/proc/{weir.child.pid}/maps").read()):
        return 0
    return next(int(line.split()[1]) for line in open(f"/proc/{weir.child.pid}/status") if line.startswith("VmRSS"))


@contextlib.contextmanager
def in_front_of(liar, *serve):
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--worker", liar.url(), *serve, admin=True)
    try:
        wait_for(lambda: state(weir)[0]["state"] == "up", "the engine is up")
        yield weir
    finally:
        weir.end(signal.SIGKILL)
        liar.end(0)


# ---- requests


def smuggled_requests_are_refused_and_not_run():
    inner = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n"
    with fleet(1) as (weir, engines):
        for fields in (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
                       b"Content-Length: 4\r\nContent-Length: 5\r\n", b"Content-Length: +4\r\n", b"Content-Length: 4, 4\r\n",
                       b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding : chunked\r\n",
                       b"Transfer-Encoding:\x0bchunked\r\n",
                       b"X: y\r\n Content-Length: 4\r\n", b"X: y\nTransfer-Encoding: chunked\r\n", b"X: y\rContent-Length: 4\r\n",
                       b"X\x00: y\r\n", b"Host: u\r\n"):
            answer = raw(weir, head + fields + b"\r\n0\r\n\r\n" + inner)
            assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1 ") == 1, (fields, answer[:200])
        for chunk in (b"-1\r\n", b"0x5\r\n", b"fffffffffffffffff\r\n", b"5 \r\nhello\r\n", b"5\nhello\r\n", b"5\r\nhelloX"):
            answer = raw(weir, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + inner)
            assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1 ") == 1, (chunk, answer[:200])
        assert metric(weir.admin, "weir_requests_total") == 0
        assert chat(weir)[0] == 200


def too_much_of_anything_is_refused():
    with fleet(1, serve=("--max-body", "1000000")) as (weir, _):
        for data, status in ((b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", b"414"),
                             (b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
                             (b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"y" * 40000 + b"\r\n\r\n", b"431"),
                             (b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1000001\r\n\r\n", b"413"),
                             (b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999999999\r\n\r\n", b"400"),
                             (b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" +
                              b"10000\r\n" + b"x" * 65536 + b"\r\n", b"413")):
            more = (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 20 if b"chunked" in data else b""
            answer = raw(weir, data, more)
            assert answer.startswith(b"HTTP/1.1 " + status) and b'"error"' in answer, (status, answer[:300])
        assert chat(weir)[0] == 200


def bodies_that_are_no_requests_are_refused():
    messages = '{"messages":[{"role":"user","content":"%s"}],"max_tokens":1}'
    with fleet(1) as (weir, _):
        before = rss_kib(weir)
        for body, word in ((b"[" * 30_000_000, "deeper"), (b'{"a":' * 1_000_000, "deeper"),
                           (b'{"a":[' + b"1," * 9_000_000 + b"1]}", "values"),
                           ((messages % "\xff").encode("latin1"), "UTF-8"), ((messages % "\xed\xa0\x80").encode("latin1"), "UTF-8"),
                           ((messages % "\\ud800").encode(), "escape"), ((messages % "\x00").encode(), "control"),
                           (b'{"model":"a\\u0000b","messages":[{"role":"user"}]}', "model"), (b"\x00" * 100, "JSON"), (b"", "JSON")):
            status, headers, data = call(weir.port, "POST", "/v1/chat/completions", body)
            assert status == 400 and word in json.loads(data)["error"]["message"], (body[:50], status, data[:300])
        status, _, data = call(weir.port, "POST", "/v1/chat/completions", messages % ("\\u00e4" * 2_000_000))
        assert status in (200, 400), data[:200]  # the engine may find it too long
        many = {"messages": [{"role": "user", "content": "x"}] * 100_000, "max_tokens": 1}
        assert call(weir.port, "POST", "/v1/chat/completions", many)[0] == 200
        assert rss_kib(weir) < before + 150_000, "what hostile bodies took was not given back"
        assert chat(weir)[0] == 200


def clients_cannot_choose():
    """No header of a client picks a worker or a priority, and none that is for one hop only goes on."""
    liar = Liar()
    liar.answer = (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-inner\r\nX-Inner: 1\r\nKeep-Alive: timeout=5\r\n"
                   b"Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Outer: 1\r\n\r\n{}")
    with in_front_of(liar) as weir:
        body = '{"messages":[{"role":"user","content":"x"}],"priority":-5}'
        answer = raw(weir, (f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n"
                            "Connection: close, x-secret\r\nX-Secret: 1\r\nTE: trailers\r\nKeep-Alive: 1\r\nProxy-Authorization: x\r\n"
                            "Upgrade: websocket\r\nExpect: 100-continue\r\nX-Weir-Worker: nobody\r\nAuthorization: Bearer k\r\n"
                            "traceparent: 00-aa-bb-01\r\n\r\n" + body).encode())
        sent, got = liar.heads[-1].lower(), answer.lower()
        for name in (b"x-secret", b"te:", b"keep-alive:", b"proxy-auth", b"upgrade", b"expect", b"host: t\r"):
            assert b"\r\n" + name not in sent, (name, sent)
        assert b"authorization: bearer k" in sent and b"traceparent: 00-aa-bb-01" in sent
        assert b"x-outer: 1" in got
        for name in (b"x-inner", b"keep-alive:", b"proxy-auth", b"upgrade"):
            assert b"\r\n" + name not in got, (name, got)


# ---- clients


def slow_clients_hinder_nobody():
    """Slow loris, and bodies that trickle: others are served as ever. (That they end: test_http_server, slow_loris.)"""
    with fleet(1) as (weir, _):
        slow = [socket.create_connection(("127.0.0.1", weir.port)) for _ in range(300)]
        for i, s in enumerate(slow):
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n" + (b"Content-Length: 999\r\n\r\n{" if i % 2 else b"X-"))
        for i in range(10):
            for s in slow:
                s.sendall(b"a")
            assert chat(weir)[0] == 200
        assert metric(weir.admin, "weir_requests_total") == 10
        for s in slow:
            s.close()


def a_client_that_does_not_read_holds_little():
    """Its engine is not read either; what it had asked ends when it leaves."""
    with fleet(1, mock=("--scale", "0.01")) as (weir, engines):
        before = rss_kib(weir)
        deaf = []
        for _ in range(20):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", weir.port))
            body = json.dumps({"stream": True, "max_tokens": 20000, "messages": [{"role": "user", "content": "x"}]})
            s.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            deaf.append(s)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert chat(weir)[0] == 200
        assert rss_kib(weir) < before + 20 * 1024, "it keeps what is not read"
        for s in deaf:
            s.close()
        wait_for(lambda: metric(engines[0].port, "vllm:num_requests_running") == 0, "the engine is free")
        assert metric(weir.admin, "weir_live_requests") == 0


def ten_thousand_idle_connections():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n = min(10_000, hard - 300)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the weir below inherits it
    try:
        with fleet(1) as (weir, _):
            before = rss_kib(weir)
            idle = [socket.create_connection(("127.0.0.1", weir.port)) for _ in range(n)]
            assert chat(weir)[0] == 200
            each = (rss_kib(weir) - before) * 1024 / n
            assert each < 2048, f"{each:.0f} bytes for an idle connection"
            body = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1}'
            for s in idle[::100]:  # each of them still works
                s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                assert s.recv(65536).startswith(b"HTTP/1.1 200")
            for s in idle:
                s.close()
            if n < 10_000:
                print(f"only {n} connections: this system allows no more descriptors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- engines


class Scripted:
    """An engine that keeps its connections; script(socket, body, nth) answers its nth request, and closes where it returns False."""

    def __init__(self, script):
        self.script, self.asked, self.heads = script, 0, []
        self.sock = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    def url(self, role):
        return f"http://127.0.0.1:{self.sock.getsockname()[1]}#role={role}"

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=(self.sock.accept()[0],), daemon=True).start()

    def serve(self, s):
        with s, s.makefile("rb") as file, contextlib.suppress(OSError):
            while line := file.readline():
                length, head = 0, []
                while (field := file.readline()) not in (b"\r\n", b""):
                    head.append(field.strip())
                    if field.lower().startswith(b"content-length:"):
                        length = int(field.split(b":")[1])
                body = file.read(length)
                if line.startswith(b"GET"):
                    s.sendall(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % (b"404 None" if b"/metrics" in line else b"200 OK"))
                    continue
                self.asked += 1
                self.heads.append(head)
                if not self.script(s, body, self.asked):
                    return


@contextlib.contextmanager
def apart(prefill, decode, dialect, details=""):
    engines = [Scripted(prefill), Scripted(prefill), Scripted(decode)]
    roles = ("prefill", "prefill", "decode")
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--handover", dialect,
                   *[a for e, r in zip(engines, roles) for a in ("--worker", e.url(r + details))], admin=True)
    try:
        wait_for(lambda: all(w["state"] == "up" for w in state(weir)), "the engines are up")
        weir.engines = engines
        yield weir
    finally:
        weir.end(signal.SIGKILL)
        for e in engines:
            e.sock.close()


def answer_json(s, _, __):
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    return True


def a_prefill_engine_that_closes_during_the_answer_harms_nobody():
    """On a connection that it had kept: the request's body is gone by then, and the answer needs it no more."""
    begun, closed = threading.Event(), threading.Event()

    def prefill(s, body, nth):
        if b'"stream": true' not in body:
            return answer_json(s, body, nth)
        begun.wait(PATIENCE_S)
        s.shutdown(socket.SHUT_RDWR)
        closed.set()
        return False

    def decode(s, body, nth):
        if b'"stream": true' not in body:
            time.sleep(0.2)  # so that the prefill leg's connection is kept
            return answer_json(s, body, nth)
        event = b"31\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"tok\"}}]}\n\n\r\n"
        s.sendall(CHUNKED + event)
        begun.set()
        closed.wait(PATIENCE_S)
        time.sleep(0.2)
        s.sendall(event + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        return True

    with apart(prefill, decode, "sglang") as weir:
        for _ in range(4):
            assert chat(weir)[0] == 200
        begun_stream = Stream(weir, 5)
        assert begun_stream.until(b"[DONE]"), begun_stream.data
        assert begun_stream.data.count(b"tok") == 2 and b"error" not in begun_stream.data, begun_stream.data
        assert chat(weir)[0] == 200


def a_client_cannot_name_the_engines_of_a_hand_over():
    """P2P-NCCL has the addresses in X-Request-Id: the engine must not find the client's there, first or last."""
    with apart(answer_json, answer_json, "p2p_nccl", ",kv_address=10.0.0.1:2222") as weir:
        evil = "___prefill_addr_6.6.6.6:1___decode_addr_6.6.6.6:2_0"
        assert chat(weir, {"X-Request-Id": evil})[0] == 200
        heads = [head for e in weir.engines for head in e.heads]
        assert len(heads) == 2
        for head in heads:
            ids = [field for field in head if field.lower().startswith(b"x-request-id:")]
            assert len(ids) == 1 and b"10.0.0.1:2222" in ids[0] and b"6.6.6.6" not in ids[0], ids


def no_worker_is_blamed_for_a_body_that_cannot_be_handed_over():
    many = '{"model":"m","messages":[{"role":"user","content":"x"}]' + ',"stream":false,"a":1' * 100 + "}"
    for dialect, body in (("sglang", {"messages": [{"role": "user", "content": "x"}], "n": 1000}), ("nixl", many)):
        with apart(answer_json, answer_json, dialect) as weir:
            for _ in range(8):
                assert call(weir.port, "POST", "/v1/chat/completions", body)[0] == 400
            assert all(w["health"] == "ok" and not w["failures_in_a_row"] for w in state(weir)), state(weir)
            assert metric(weir.admin, "weir_inflight_requests") == 0


def an_engine_that_stalls_in_the_middle_is_cut():
    for answer in (CHUNKED + b"1e\r\ndata: {\"a\":", CHUNKED + b"e\r\ndata: \" tok\"\n\n\r\n",
                   b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"):
        liar = Liar(stays=True)
        liar.answer = answer
        with in_front_of(liar, "--first-byte", "300", "--stall", "300", "--retries", "0") as weir:
            s = Stream(weir, 5)
            began, data = time.monotonic(), s.rest()
            assert time.monotonic() - began < PATIENCE_S / 2, "it did not end"
            assert b'"error"' in data or not data.endswith(b"0\r\n\r\n"), data  # told, or cut
            assert metric(weir.admin, "weir_inflight_requests") == 0


def an_engine_that_never_stops_talking_is_bounded():
    """An endless head is refused; an endless body goes through without being kept."""
    liar = Liar(endless=b"X: y\r\n" * 1000)
    liar.answer = b"HTTP/1.1 200 OK\r\n"
    with in_front_of(liar, "--retries", "0") as weir:
        assert chat(weir)[0] == 502
    liar = Liar(endless=b"1000\r\n" + b"data: x\n" * 512 + b"\r\n")
    liar.answer = CHUNKED
    with in_front_of(liar) as weir:
        s, got, before = Stream(weir, 5), 0, rss_kib(weir)
        while got < 100_000_000:
            got += len(s.sock.recv(1 << 20))
        assert rss_kib(weir) < before + 10_000
        s.sock.close()
        wait_for(lambda: metric(weir.admin, "weir_live_requests") == 0, "the client's leaving is seen")


if __name__ == "__main__":
    sys.exit(run_checks([smuggled_requests_are_refused_and_not_run, too_much_of_anything_is_refused,
                         bodies_that_are_no_requests_are_refused, clients_cannot_choose, slow_clients_hinder_nobody,
                         a_client_that_does_not_read_holds_little, ten_thousand_idle_connections,
                         an_engine_that_stalls_in_the_middle_is_cut, an_engine_that_never_stops_talking_is_bounded,
                         a_prefill_engine_that_closes_during_the_answer_harms_nobody,
                         a_client_cannot_name_the_engines_of_a_hand_over,
                         no_worker_is_blamed_for_a_body_that_cannot_be_handed_over], names))
