#!/usr/bin/env python3
"""Checks of `weir serve` against mock engines: one function a promise. Ends with 'N passed, N failed'.

    serve_checks.py PATH/TO/weir [NAME...]

WEIR_THREADS=n gives every weir that many loops.
"""
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

WEIR = sys.argv[1]
SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
THREADS = ("--threads", os.environ["WEIR_THREADS"]) if "WEIR_THREADS" in os.environ else ()
PATIENCE_S = int(os.environ.get("WEIR_PATIENCE_S", "30"))  # for things that take milliseconds on an idle machine


class Process:
    """A weir process that says where it listens in its first line; ended with the context."""

    def __init__(self, *args, admin=False):
        self.log = tempfile.TemporaryFile()
        self.child = subprocess.Popen([WEIR, *args], stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.child.stdout.readline()
        ports = re.findall(r":(\d+)", line)
        if not ports:
            self.child.wait()
            self.log.seek(0)
            raise AssertionError(f"{args}: {line} {self.log.read().decode()}")
        self.port = int(ports[0])
        self.admin = int(ports[1]) if admin else None

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def end(self, sig=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(sig)
        code = self.child.wait(PATIENCE_S)
        self.child.stdout.close()
        report = re.search(r"(?:ERROR|WARNING): \w+Sanitizer|runtime error:", self.messages())
        assert not report, self.messages()[report.start():report.start() + 4000]
        return code

    def messages(self):
        self.log.seek(0)
        return self.log.read().decode()


@contextlib.contextmanager
def fleet(n=2, mock=(), serve=(), roles=None):
    """n mock engines and weir in front of them, ready."""
    engines = [Process("mock", "--port", "0", "--seed", str(i), *mock) for i in range(n)]
    details = [f"#role={r}" for r in roles] if roles else [""] * n
    workers = [a for e, d in zip(engines, details) for a in ("--worker", e.url() + d)]
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "50", "--explain",
                   *workers, *THREADS, *serve, admin=True)
    try:
        wait_for(lambda: sum(w["state"] == "up" for w in state(weir)) == n, "all workers are up")
        yield weir, engines
    finally:
        for p in (weir, *engines):
            p.end(signal.SIGKILL)


def wait_for(condition, what):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE_S} s: {what}")
        time.sleep(0.02)


def call(port, method, path, body=None, headers=None):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        headers = {"Content-Type": "application/json", **(headers or {})}
        c.request(method, path, json.dumps(body) if isinstance(body, (dict, list)) else body, headers)
        r = c.getresponse()
        return r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()
    finally:
        c.close()


def chat(weir, headers=None, **more):
    body = {"model": "mock", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **more}
    return call(weir.port, "POST", "/v1/chat/completions", body, headers)


def state(weir):
    return json.loads(call(weir.admin, "GET", "/admin/state")[2])["pools"][0]["workers"]


def metric(port, name):
    text = call(port, "GET", "/metrics")[2].decode()
    found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([-0-9.e+]+)$", text, re.M)
    return float(found.group(1)) if found else None


def fault(engine, **what):
    with contextlib.suppress(http.client.HTTPException, ConnectionError):
        return call(engine.port, "POST", "/mock/fault", what)


def events(data):
    return [e[6:] for e in data.decode().split("\n\n") if e.startswith("data: ")]


class Stream:
    """A streamed request on a socket of its own, so that it can be left in the middle."""

    def __init__(self, weir, max_tokens, **more):
        body = json.dumps({"model": "mock", "stream": True, "max_tokens": max_tokens,
                           "messages": [{"role": "user", "content": "x"}], **more})
        self.sock = socket.create_connection(("127.0.0.1", weir.port), PATIENCE_S)
        self.sock.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
                          f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        self.data = b""

    def until(self, text):
        while text not in self.data:
            piece = self.sock.recv(65536)
            if not piece:
                return False
            self.data += piece
        return True

    def rest(self):
        with contextlib.suppress(ConnectionError):
            while piece := self.sock.recv(65536):
                self.data += piece
                if self.data.endswith(b"0\r\n\r\n"):
                    break
        self.sock.close()
        return self.data


# ---- the promises


def answers_pass_through_whole():
    with fleet() as (weir, engines):
        status, headers, data = chat(weir)
        assert status == 200 and json.loads(data)["usage"]["completion_tokens"] == 4
        assert headers["x-weir-worker"].split(":")[1] in {str(e.port) for e in engines}
        status, headers, data = chat(weir, stream=True, stream_options={"include_usage": True})
        assert headers["content-type"].startswith("text/event-stream")
        got = events(data)
        assert got[-1] == "[DONE]" and json.loads(got[-2])["usage"]["completion_tokens"] == 4
        assert sum('" tok"' in e for e in got) == 4
        status, _, data = call(weir.port, "POST", "/v1/completions", {"prompt": "x" * 400_000, "max_tokens": 1})
        assert status == 200 and json.loads(data)["usage"]["prompt_tokens"] > 90_000


def models_are_merged():
    with fleet() as (weir, _):
        wait_for(lambda: b"mock" in call(weir.port, "GET", "/v1/models")[2], "the models are known")
        models = json.loads(call(weir.port, "GET", "/v1/models")[2])["data"]
        assert [m["id"] for m in models] == ["mock"]


def health_means_that_somebody_can_answer():
    with fleet(1) as (weir, engines):
        assert call(weir.port, "GET", "/health")[0] == 200
        assert call(weir.port, "HEAD", "/health")[0] == 200 and call(weir.port, "HEAD", "/v1/models")[::2] == (200, b"")
        engines[0].end(signal.SIGKILL)
        wait_for(lambda: call(weir.port, "GET", "/health")[0] == 503, "the dead worker is seen")


def bad_requests_are_told_why():
    with fleet(1) as (weir, _):
        for body, status, word in (("{", 400, "JSON"), ({"messages": []}, 400, "messages"),
                                   ({"messages": [{}], "max_tokens": "many"}, 400, "max_tokens"),
                                   ({"model": "other", "messages": [{"role": "user"}]}, 404, "model")):
            got, headers, data = call(weir.port, "POST", "/v1/chat/completions", body)
            assert got == status and headers["content-type"] == "application/json", (got, body)
            assert word in json.loads(data)["error"]["message"]
        assert call(weir.port, "GET", "/v1/chat/completions")[0] == 405
        assert call(weir.port, "GET", "/version")[0] == 404
        assert metric(weir.admin, "weir_live_requests") == 0


def an_engine_that_refuses_is_replaced():
    with fleet() as (weir, engines):
        fault(engines[0], kind="error")
        assert [chat(weir)[0] for _ in range(12)] == [200] * 12
        assert metric(weir.admin, "weir_redispatched_total") > 0


def an_engine_that_keeps_failing_is_left_out():
    with fleet(3, serve=("--policy", "round_robin")) as (weir, engines):
        fault(engines[0], kind="error")
        for _ in range(20):  # every third goes to it first, until five have failed
            assert chat(weir)[0] == 200
        name = f"127.0.0.1:{engines[0].port}"
        sick = next(w for w in state(weir) if w["name"] == name)
        assert not sick["used"] and sick["health"] == "ejected" and sick["health_cause"] == "failures", sick
        assert sick["ejected_for_ms"] > 0
        assert metric(weir.admin, "weir_ejections_total") == 1
        assert metric(weir.admin, "weir_panic") == 0
        assert all(w["used"] for w in state(weir) if w["name"] != name)


def engines_that_all_fail_are_all_tried():
    with fleet(2, serve=("--policy", "round_robin")) as (weir, engines):
        for e in engines:
            fault(e, kind="error")
        for _ in range(8):
            assert chat(weir)[0] == 502
        assert metric(weir.admin, "weir_panic") == 1
        for e in engines:
            fault(e, kind="none")
        assert chat(weir)[0] == 200  # nobody has to wait for an ejection to end


def an_engine_that_is_killed_is_replaced():
    with fleet() as (weir, engines):
        engines[0].end(signal.SIGKILL)
        assert [chat(weir)[0] for _ in range(12)] == [200] * 12
        wait_for(lambda: state(weir)[0]["state"] == "down", "the dead worker is seen")


def an_engine_comes_back():
    with fleet() as (weir, engines):
        port = str(engines[0].port)
        engines[0].end(signal.SIGKILL)
        wait_for(lambda: state(weir)[0]["state"] == "down", "the dead worker is seen")
        engines[0] = Process("mock", "--port", port)
        try:
            wait_for(lambda: state(weir)[0]["state"] == "up", "the new one is seen")
            workers = {chat(weir)[1]["x-weir-worker"] for _ in range(20)}
            assert len(workers) == 2
        finally:
            engines[0].end()


def a_stream_that_loses_its_engine_ends_with_an_error():
    with fleet(1, mock=("--scale", "3")) as (weir, engines):
        s = Stream(weir, 400)
        assert s.until(b" tok")
        engines[0].end(signal.SIGKILL)
        data = s.rest()
        assert b'"error"' in data and b"[DONE]" in data and b"worker_lost" in data
        wait_for(lambda: metric(weir.admin, "weir_cut_total") == 1, "it is counted")


def a_stream_that_is_cut_ends_with_an_error():
    with fleet(1) as (weir, engines):
        fault(engines[0], kind="cut")
        data = chat(weir, stream=True, max_tokens=20)[2]
        assert b'"error"' in data and data.endswith(b"data: [DONE]\n\n")


def a_client_that_leaves_stops_the_engine():
    with fleet(1, mock=("--scale", "5")) as (weir, engines):
        streams = [Stream(weir, 5000) for _ in range(4)]
        for s in streams:
            assert s.until(b" tok")
        assert metric(engines[0].port, "vllm:num_requests_running") == 4
        for s in streams:
            s.sock.close()
        wait_for(lambda: metric(engines[0].port, "vllm:num_requests_running") == 0, "the engine is free again")
        assert metric(weir.admin, "weir_client_left_total") == 4
        assert metric(weir.admin, "weir_inflight_requests") == 0


def a_full_queue_is_429_with_retry_after():
    with fleet(1, mock=("--scale", "5"), serve=("--max-inflight", "1", "--queue", "1")) as (weir, _):
        first, second = Stream(weir, 300), None
        assert first.until(b" tok")
        second = Stream(weir, 1)
        wait_for(lambda: metric(weir.admin, "weir_queued_requests") == 1, "the second one waits")
        status, headers, data = chat(weir)
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
        assert json.loads(data)["error"]["code"] == "queue_full"
        first.sock.close()
        assert b"[DONE]" in second.rest()


def a_held_stream_gets_comments():
    with fleet(1, mock=("--scale", "5"), serve=("--max-inflight", "1", "--hold-comments", "40")) as (weir, _):
        first = Stream(weir, 300)
        assert first.until(b" tok")
        second = Stream(weir, 1)
        assert second.until(b": waiting\n\n")
        first.sock.close()
        assert b"[DONE]" in second.rest()


def waiting_too_long_is_504():
    with fleet(1, mock=("--scale", "5"), serve=("--max-inflight", "1", "--queue-timeout", "100")) as (weir, _):
        first = Stream(weir, 3000)
        assert first.until(b" tok")
        assert chat(weir)[0] == 504
        first.sock.close()


def an_engine_that_hangs_before_it_answers_is_replaced():
    with fleet(2, serve=("--first-byte", "300")) as (weir, engines):
        fault(engines[0], kind="hang")
        assert [chat(weir)[0] for _ in range(6)] == [200] * 6


def sigterm_lets_streams_end():
    with fleet(1, mock=("--scale", "2")) as (weir, _):
        s = Stream(weir, 60)
        assert s.until(b" tok")
        weir.child.send_signal(signal.SIGTERM)
        wait_for(lambda: call(weir.admin, "GET", "/readyz")[0] == 503, "it says that it drains")
        data = s.rest()
        assert data.count(b" tok") == 60 and b"[DONE]" in data and b'"error"' not in data
        assert weir.child.wait(PATIENCE_S) == 0


def a_drained_worker_gets_nothing_new():
    with fleet() as (weir, engines):
        name = f"127.0.0.1:{engines[0].port}"
        assert call(weir.admin, "POST", f"/admin/workers/{name}/drain")[0] == 200
        assert {chat(weir)[1]["x-weir-worker"] for _ in range(10)} == {f"127.0.0.1:{engines[1].port}"}
        assert call(weir.admin, "POST", f"/admin/workers/{name}/undrain")[0] == 200
        assert len({chat(weir)[1]["x-weir-worker"] for _ in range(20)}) == 2
        assert call(weir.admin, "POST", "/admin/workers/nobody/drain")[0] == 404


def prefill_and_decode_apart():
    with fleet(3, roles=("prefill", "decode", "decode")) as (weir, engines):
        for stream in (False, True):
            status, headers, data = chat(weir, stream=stream, max_tokens=6)
            assert status == 200 and headers["x-weir-worker"].split(":")[1] != str(engines[0].port)
            assert data.count(b" tok") == 6
        assert metric(engines[0].port, "vllm:prompt_tokens_total") > 0
        fault(engines[0], kind="error")
        assert chat(weir)[0] == 502
        fault(engines[0], kind="none")
        assert chat(weir)[0] == 200


def several_loops_share_one_core():
    with fleet(2, serve=("--threads", "4")) as (weir, _):
        bad = []

        def client():
            for _ in range(25):
                if chat(weir, max_tokens=2)[0] != 200:
                    bad.append(1)

        threads = [threading.Thread(target=client) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not bad and metric(weir.admin, "weir_requests_total") == 200
        wait_for(lambda: metric(weir.admin, "weir_inflight_requests") == 0, "the core has heard of every end")
        assert metric(weir.admin, "weir_core_refused_events_total") == 0
        assert weir.end() == 0, weir.messages()


def the_admin_listener_wants_its_token():
    with tempfile.NamedTemporaryFile("w") as f:
        f.write("s3cret\n")
        f.flush()
        p = Process("serve", "--worker", "http://127.0.0.1:9", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                    "--admin-token-file", f.name, admin=True)
        try:
            assert call(p.admin, "GET", "/healthz")[0] == 200
            assert call(p.admin, "GET", "/readyz")[0] == 503
            assert call(p.admin, "GET", "/metrics")[0] == 401
            assert call(p.admin, "GET", "/metrics", headers={"Authorization": "Bearer wrong!"})[0] == 401
            assert call(p.admin, "GET", "/metrics", headers={"Authorization": "Bearer s3cret"})[0] == 200
        finally:
            p.end()


def bad_options_are_told_why():
    for args, word in (((), "--worker"), (("--worker", "ftp://x"), "http://"), (("--worker", "http://a", "-p", "x"), "policy"),
                       (("--worker", "http://a#role=x"), "role"), (("--worker", "http://a#role=prefill"), "decode"),
                       (("--worker", "http://a", "--worker", "http://a"), "twice"),
                       (("--worker", "http://a", "--admin", "0.0.0.0:0"), "token"),
                       (("--worker", "http://a", "--listen", "nonsense"), "HOST:PORT")):
        done = subprocess.run([WEIR, "serve", *args], capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1, (args, done.stderr)


def the_metrics_page_is_current():
    page = subprocess.run([WEIR, "serve", "--metrics-page"], capture_output=True, text=True, timeout=PATIENCE_S).stdout
    kept = (SOURCE / "deploy/metrics.md").read_text()
    assert page == kept, "run: weir serve --metrics-page > deploy/metrics.md"
    with fleet(1) as (weir, _):
        told = set(re.findall(r"^# TYPE (\S+)", call(weir.admin, "GET", "/metrics")[2].decode(), re.M))
    assert told == set(re.findall(r"^\| `(weir_\w+)`", kept, re.M))


def run_checks(checks, wanted):
    """Runs those that are wanted, or all; prints a line for each. The exit status."""
    checks = [c for c in checks if not wanted or c.__name__ in wanted]
    failed = 0
    for check in checks:
        began = time.monotonic()
        try:
            check()
            print(f"ok      {check.__name__.replace('_', ' ')} ({time.monotonic() - began:.1f} s)", flush=True)
        except Exception as e:  # every failure is reported, and the others still run
            failed += 1
            print(f"FAILED  {check.__name__.replace('_', ' ')}: {type(e).__name__} {e}", flush=True)
            if os.environ.get("TRACE"):
                raise
    print(f"{len(checks) - failed} passed, {failed} failed")
    return failed > 0


def main():
    helpers = ("fleet", "wait_for", "call", "chat", "state", "metric", "fault", "events", "run_checks", "main")
    return run_checks([v for k, v in globals().items()
                       if callable(v) and getattr(v, "__module__", "") == "__main__" and not isinstance(v, type)
                       and k not in helpers], sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
