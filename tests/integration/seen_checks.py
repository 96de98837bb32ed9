#!/usr/bin/env python3
"""What `weir serve` lets others see, as real processes: the request log and its replay, headers, forecasts, metrics, `weir top`.

    seen_checks.py PATH/TO/weir [NAME...]
"""
import contextlib
import http.server
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading

names = sys.argv[2:]
sys.argv = sys.argv[:2]
from serve_checks import SOURCE, WEIR, Process, call, chat, fleet, metric, run_checks, state, wait_for  # noqa: E402


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def turn(system, n, words):
    """A prompt that shares `system` with others and goes on for n words."""
    return [{"role": "system", "content": system * 400}, {"role": "user", "content": words * n}]


@contextlib.contextmanager
def logged(n=2, **more):
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "requests.jsonl")
        with fleet(n, serve=("--request-log", log, *more.pop("serve", ())), **more) as (weir, engines):
            yield weir, engines, log


def replay(log, workers, *more):
    report = log + ".json"
    done = subprocess.run([WEIR, "replay", log, "--workers", str(workers), "--report", report, *more],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(pathlib.Path(report).read_text())


# ---- the request log


def a_log_is_replayed_with_its_times_and_reuse():
    with logged(1, mock=("--scale", "0.2"), serve=("--policy", "cache_aware")) as (weir, _, log):
        usage = []
        for i in range(24):
            body = {"messages": turn("system %d " % (i % 3), i + 1, "w%d " % i), "max_tokens": 3 + i % 5}
            _, _, data = chat(weir, stream=True, stream_options={"include_usage": True}, **body)
            usage.append(json.loads(data.decode().split("\n\n")[-3][6:])["usage"])
        assert weir.end() == 0
        rows = lines(log)
        assert len(rows) == 24 and all(r["status"] == "completed" and r["http_status"] == 200 for r in rows)
        assert [r["prompt_tok"] for r in rows] == [u["prompt_tokens"] for u in usage]
        assert [r["output_tok"] for r in rows] == [u["completion_tokens"] for u in usage]
        for r in rows:
            assert 0 <= r["decided_ms"] <= r["sent_ms"] <= r["first_byte_ms"] <= r["ttft_ms"] <= r["e2e_ms"]
            assert r["candidates"][0]["name"] == r["worker"] and r["predicted_ttft_ms"] > 0
        text = pathlib.Path(log).read_text()
        assert "system 1" not in text and "w7" not in text
        report = replay(log, 1, "--set", "block_size=16")
        cached = [(u.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for u in usage]
        real = sum(cached) / sum(r["prompt_tok"] for r in rows)
        assert [r["cached_tok"] for r in rows] == cached
        seen = report["prefix_cache_reused_ratio"]
        assert real > 0.5 and abs(seen - real) < 0.05, (real, seen)
        assert report["completed_requests"] == 24 and report["total_output_tokens"] == sum(r["output_tok"] for r in rows)
        span = (rows[-1]["arrival_ms"] - rows[0]["arrival_ms"] + rows[-1]["e2e_ms"])
        assert abs(report["duration_ms"] - span) < 0.25 * span + 200, (report["duration_ms"], span)


def what_did_not_end_well_is_in_the_log():
    with logged(1, mock=("--scale", "5"), serve=("--max-inflight", "1", "--queue", "0")) as (weir, engines, log):
        from serve_checks import Stream
        left = Stream(weir, 3000)
        assert left.until(b" tok")
        assert chat(weir)[0] == 429
        left.sock.close()
        wait_for(lambda: metric(weir.admin, "weir_client_left_total") == 1, "it has left")
        cut = Stream(weir, 3000)
        assert cut.until(b" tok")
        engines[0].end(signal.SIGKILL)
        cut.rest()
        wait_for(lambda: len(lines(log)) == 3, "all three are in the log")
        by = {r["status"]: r for r in lines(log)}
        assert by["rejected"]["reason"] == "queue_full" and by["rejected"]["worker"] is None
        assert by["left"]["output_tok"] > 0 and by["failed"]["reason"] == "partial"


def a_full_disk_costs_lines_and_nothing_else():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # the child inherits it
    try:
        context = logged(1)
        weir, _, log = context.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    try:
        assert all(chat(weir)[0] == 200 for _ in range(30))
        wait_for(lambda: metric(weir.admin, "weir_request_log_lines_total")
                 + metric(weir.admin, "weir_request_log_dropped_disk_total") == 30, "all are written or counted")
        assert metric(weir.admin, "weir_request_log_failing") == 1
        kept = lines(log)  # whole lines only
        assert 0 < len(kept) == metric(weir.admin, "weir_request_log_lines_total") < 30
        assert "cannot be written" in weir.messages()
    finally:
        context.__exit__(None, None, None)


def a_log_that_was_moved_away_is_opened_anew():
    with logged(1) as (weir, _, log):
        chat(weir)
        wait_for(lambda: os.path.getsize(log) > 0, "the first line is there")
        os.rename(log, log + ".old")
        weir.child.send_signal(signal.SIGHUP)
        wait_for(lambda: os.path.exists(log), "it is opened anew")
        chat(weir)
        wait_for(lambda: os.path.getsize(log) > 0, "the second line is there")
        assert len(lines(log)) == len(lines(log + ".old")) == 1


# ---- headers


class Engine(http.server.ThreadingHTTPServer):
    """An engine that only remembers what headers came."""

    def __init__(self):
        outer = self
        self.heads = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, body, kind="application/json"):
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.answer(b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n" if self.path == "/metrics" else b"{}",
                            "text/plain")

            def do_POST(self):
                outer.heads.append({k.lower(): v for k, v in self.headers.items()})
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}],'
                            b'"usage":{"prompt_tokens":3,"completion_tokens":1}}')

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def ids_and_traces_go_through():
    engine = Engine()
    weir = Process("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "50", "--explain",
                   "--worker", f"http://127.0.0.1:{engine.server_port}", admin=True)
    try:
        wait_for(lambda: state(weir)[0]["state"] == "up", "the engine is up")
        trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b,c=d"}
        _, got, _ = chat(weir, {"X-Request-Id": "mine-1.2:3", **trace})
        assert got["x-request-id"] == "mine-1.2:3"
        assert engine.heads[-1]["x-request-id"] == "mine-1.2:3"
        assert all(engine.heads[-1][k] == v for k, v in trace.items())
        assert float(got["x-weir-predicted-ttft-ms"]) > 0 and 0 <= int(got["x-weir-overhead-us"]) < 10_000_000
        assert got["x-weir-worker"].endswith(str(engine.server_port))
        ids = {chat(weir)[1]["x-request-id"] for _ in range(5)}
        assert len(ids) == 5 and all(re.fullmatch("[0-9a-f]{32}", i) for i in ids)
        assert engine.heads[-1]["x-request-id"] in ids
        for bad in ("no spaces", "x" * 129, "a\"b", "<script>"):
            _, got, _ = chat(weir, {"X-Request-Id": bad})
            assert re.fullmatch("[0-9a-f]{32}", got["x-request-id"]), got
            assert engine.heads[-1]["x-request-id"] == got["x-request-id"]
        status, got, _ = call(weir.port, "POST", "/v1/chat/completions", "{", {"X-Request-Id": "bad-body"})
        assert status == 400 and got["x-request-id"] == "bad-body"
    finally:
        weir.end()
        engine.shutdown()


# ---- forecasts


def forecasts_learn_what_engines_do():
    with fleet(1, mock=("--scale", "3", "--jitter", "0")) as (weir, _):
        def ask():
            return float(chat(weir, stream=True, max_tokens=5)[1]["x-weir-predicted-ttft-ms"])

        first = ask()
        for _ in range(30):
            last = ask()
        w = state(weir)[0]
        assert last > first and w["ttft_bias"] > 1.2 and w["tpot_bias"] > 1.2, (first, last, w)
        assert metric(weir.admin, "weir_ttft_prediction_ratio_count") == 31
        assert metric(weir.admin, "weir_tpot_prediction_ratio_count") == 31
        recent = json.loads(call(weir.admin, "GET", "/admin/state")[2])["decisions"]
        assert len(recent) == 16 and recent[0]["outcome"] == "completed" and recent[0]["ttft_ms"] > 0
        assert abs(recent[0]["predicted_ttft_ms"] / recent[0]["ttft_ms"] - 1) < 0.7, recent[0]


# ---- weir top


def top_prints_a_page():
    with fleet(2) as (weir, _):
        chat(weir, stream=True)
        done = subprocess.run([WEIR, "top", "--once", "--admin", f"127.0.0.1:{weir.admin}"], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0, done.stderr
        for w in state(weir):
            assert re.search(rf"^ {re.escape(w['name'])} +up ", done.stdout, re.M), done.stdout
        assert "pool main: least_loaded, 0 waiting, 0 in flight" in done.stdout and "completed" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
    done = subprocess.run([WEIR, "top", "--once", "--admin", "127.0.0.1:1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "127.0.0.1:1" in done.stderr and done.stderr.count("\n") == 1
    with fleet(1) as (weir, engines):  # an engine is no weir
        done = subprocess.run([WEIR, "top", "--once", "--admin", f"127.0.0.1:{engines[0].port}"], capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 2 and "no admin listener" in done.stderr


def top_lives_in_a_terminal():
    import fcntl
    import pty
    import struct
    import termios
    with fleet(1) as (weir, _):
        pid, tty = pty.fork()
        if not pid:
            os.environ["TERM"] = "xterm"
            os.execv(WEIR, [WEIR, "top", "--interval", "100", "--admin", f"127.0.0.1:{weir.admin}"])
        fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        seen = b""
        while b"last requests" not in seen or b"pool main" not in seen:
            seen += os.read(tty, 65536)
        os.write(tty, b"q")
        with contextlib.suppress(OSError):
            while os.read(tty, 65536):
                pass
        assert os.waitpid(pid, 0)[1] == 0


# ---- deploy/live_demo.py, of the quickstart


def demo(folder, *more):
    trace = os.path.join(folder, "trace.jsonl")
    with open(trace, "w") as f:
        subprocess.run([WEIR, "gen", "--rate", "10", "--minutes", "1", "--shared-prefix", "4,2048"], stdout=f, check=True)
    return subprocess.Popen([sys.executable, SOURCE / "deploy/live_demo.py", WEIR, trace, *more], stdout=subprocess.PIPE, text=True,
                            start_new_session=True)


def children_of(pid):
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def the_demo_shows_a_row_a_policy():
    with tempfile.TemporaryDirectory() as folder:
        child = demo(folder, "--seconds", "1", "--engines", "2", "--policies", "round_robin,cache_aware")
        out = child.communicate(timeout=100)[0]
        assert child.returncode == 0, out
        assert re.search(r"^round_robin +\d+ +0 ", out, re.M) and re.search(r"^cache_aware +\d+ +0 ", out, re.M), out


def the_demo_stops_what_it_started():
    for sig in (signal.SIGINT, signal.SIGTERM):
        with tempfile.TemporaryDirectory() as folder:
            child = demo(folder, "--seconds", "50", "--engines", "2")
            wait_for(lambda: len(children_of(child.pid)) == 3, "two engines and weir run")
            started = children_of(child.pid)
            child.send_signal(sig)
            assert child.wait(60) in (130, 143)
            child.stdout.close()
            assert not any(os.path.exists(f"/proc/{p}") for p in started)


if __name__ == "__main__":
    sys.exit(run_checks([a_log_is_replayed_with_its_times_and_reuse, what_did_not_end_well_is_in_the_log,
                         a_full_disk_costs_lines_and_nothing_else, a_log_that_was_moved_away_is_opened_anew,
                         ids_and_traces_go_through, forecasts_learn_what_engines_do, top_prints_a_page,
                         top_lives_in_a_terminal, the_demo_shows_a_row_a_policy,
                         the_demo_stops_what_it_started], names))
