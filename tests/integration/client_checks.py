#!/usr/bin/env python3
"""Real clients through `weir serve` in front of two mock engines: the OpenAI SDKs for Python and Node, aiperf, guidellm, vegeta.

    client_checks.py PATH/TO/weir [CLIENT...]        py node aiperf guidellm vegeta (py node)

The checks themselves are ../shared/bench/peers/clients (its README says how to install the clients, under $PEERS_DIR); here
is what they run against: an engine's metrics to see cancelled requests leave it, a weir that always answers 429 and one
that always answers 5xx. What is not installed is skipped with a line; with nothing left to run the exit status is 77.
"""
import contextlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading

sys.argv, clients = sys.argv[:2], sys.argv[2:] or ["py", "node"]
from serve_checks import SOURCE, Stream, call, fault, fleet, metric, wait_for  # noqa: E402 (it reads sys.argv)

CHECKS = SOURCE.parent / "shared/bench/peers/clients"
PEERS = pathlib.Path(os.environ.get("PEERS_DIR", "/opt/peers"))
NEEDS = {"py": "venv/openai/bin/python", "node": "node/node_modules/openai", "aiperf": "venv/aiperf/bin/aiperf",
         "guidellm": "venv/guidellm/bin/guidellm", "vegeta": "bin/vegeta"}


def installed(client):
    if client not in NEEDS:
        sys.exit(f"client_checks: no client is called '{client}' ({', '.join(NEEDS)})")
    if not (PEERS / NEEDS[client]).exists():
        print(f"skipped {client}: not under {PEERS} (../shared/bench/peers/routers/setup.sh clients guidellm)")
        return False
    return True


@contextlib.contextmanager
def all_metrics(engines):
    """The metrics of all engines at one address, for checks that know of one."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = b"".join(call(e.port, "GET", "/metrics")[2] for e in engines)
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()


@contextlib.contextmanager
def always_429():
    """One place, taken by a stream that does not end, and no queue."""
    with fleet(1, mock=("--scale", "20"), serve=("--max-inflight", "1", "--queue", "0")) as (weir, _):
        s = Stream(weir, 100_000)
        assert s.until(b" tok")
        yield weir
        s.sock.close()


@contextlib.contextmanager
def always_500():
    with fleet(2) as (weir, engines):
        for e in engines:
            fault(e, kind="error")
        yield weir


def main():
    chosen = [c for c in clients if installed(c)]
    if not (CHECKS / "run.sh").exists():
        print(f"skipped: {CHECKS} is not here")
        return 77
    if not chosen:
        return 77
    with fleet(2, mock=("--scale", "0.2")) as (weir, engines), always_429() as full, always_500() as broken, \
            all_metrics(engines) as metrics:
        env = {**os.environ, "PEERS_DIR": str(PEERS), "URL_429": full.url() + "/v1", "URL_500": broken.url() + "/v1",
               "WANT_RETRY_AFTER": "1", "METRICS_URL": metrics}
        code = subprocess.run(["bash", CHECKS / "run.sh", weir.url(), "mock", *chosen], env=env).returncode
        wait_for(lambda: all(metric(e.port, "vllm:num_requests_running") == 0 for e in engines), "the engines are free")
        assert metric(weir.admin, "weir_inflight_requests") == 0
        return code


if __name__ == "__main__":
    sys.exit(main())
