#!/usr/bin/env python3
"""Reloads and restarts of `weir serve` under load: what changes, and that no request is lost. 'N passed, N failed'.

    reload_checks.py PATH/TO/weir [NAME...]
"""
import contextlib
import http.client
import json
import os
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

sys.argv, names = sys.argv[:2], sys.argv[2:]
from fault_checks import Load  # noqa: E402
from serve_checks import (PATIENCE_S, Process, Stream, call, chat, metric, run_checks, state,  # noqa: E402
                          wait_for)

WEIR = sys.argv[1]
TENANTS = "tenants: [{name: gold, header_value: gold, weight: %d}]\n"


class Config:
    """A weir.yaml, and the weir that reads it."""

    def __init__(self, folder, **more):
        self.path = pathlib.Path(folder) / "weir.yaml"
        self.more = more

    def write(self, *engines, text="", pool="", threads=2):
        workers = "".join(f"      - {{url: '{e.url()}', name: e{e.port}}}\n" for e in engines)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(f"listen: 127.0.0.1:0\nthreads: {threads}\npoll_ms: 50\nexplain: true\n"
                             f"admin: {{listen: '127.0.0.1:0'}}\n{text}pools:\n  - name: main\n{pool}    workers:\n{workers}")
        temporary.rename(self.path)


@contextlib.contextmanager
def running(n=2, mock=(), **write):
    engines = [Process("mock", "--port", "0", "--seed", str(i), *mock) for i in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        config = Config(folder)
        config.write(*engines[:2], **write)
        weir = Process("serve", "--config", str(config.path), admin=True)
        try:
            wait_for(lambda: sum(w["state"] == "up" for w in state(weir)) == 2, "both workers are up")
            yield weir, engines, config
        finally:
            for p in (weir, *engines):
                p.end(signal.SIGKILL)


def reload(weir):
    done = metric(weir.admin, "weir_config_reloads_total")
    weir.child.send_signal(signal.SIGHUP)
    wait_for(lambda: metric(weir.admin, "weir_config_reloads_total") > done, "the reload is done")


def refused(weir):
    before = metric(weir.admin, "weir_config_reloads_refused_total")
    weir.child.send_signal(signal.SIGHUP)
    wait_for(lambda: metric(weir.admin, "weir_config_reloads_refused_total") > before, "the reload is refused")
    return weir.messages().strip().split("\n")[-1]


def names_of(weir):
    return sorted(w["name"] for w in state(weir))


def workers_come_and_go_under_load():
    with running(4) as (weir, engines, config):
        load = Load(weir.port, clients=12)
        time.sleep(0.5)
        config.write(*engines[1:])  # one leaves, two join
        reload(weir)
        wait_for(lambda: names_of(weir) == sorted(f"e{e.port}" for e in engines[1:]), "the first one has left")
        wait_for(lambda: sum(w["state"] == "up" for w in state(weir)) == 3, "the new ones are up")
        assert call(engines[0].port, "GET", "/mock/state")[0] in (200, 404)
        engines[0].end()  # nobody misses it
        for i in range(6):  # and again and again: places are used anew
            config.write(*(engines[1:] if i % 2 else engines[2:]))
            reload(weir)
            time.sleep(0.2)
        wait_for(lambda: len(names_of(weir)) == 3, "all three are there")
        seen = set()
        end = time.monotonic() + PATIENCE_S
        while len(seen) < 3 and time.monotonic() < end:
            seen.add(chat(weir)[1]["x-weir-worker"])
        outcomes = load.stop()
        assert len(seen) == 3, seen
        assert len(outcomes) > 30 and all(o.kind == "ok" for o in outcomes), [o for o in outcomes if o.kind != "ok"][:3]
        assert metric(weir.admin, "weir_core_refused_events_total") == 0
        assert weir.end() == 0


def a_leaving_worker_ends_its_streams():
    with running(3, mock=("--scale", "4")) as (weir, engines, config):
        streams = [Stream(weir, 60) for _ in range(4)]
        assert all(s.until(b"tok") for s in streams)
        config.write(engines[2])
        reload(weir)
        assert len(names_of(weir)) == 3, "the old ones are still there"
        assert all(s.until(b"data: [DONE]\n\n") for s in streams)
        wait_for(lambda: names_of(weir) == [f"e{engines[2].port}"], "they have left")


def a_bad_file_changes_nothing():
    with running() as (weir, engines, config):
        load = Load(weir.port, clients=4)
        config.write(*engines, text="threds: 3\n")
        said = refused(weir)
        assert "weir.yaml:6: threds" in said and "did you mean threads?" in said, said
        assert metric(weir.admin, "weir_config_reload_failed") == 1
        config.path.write_text("pools: [\n")
        assert "not YAML" in refused(weir)
        config.path.unlink()
        assert "cannot open" in refused(weir)
        config.write(*engines, text="tls: {cert: /nonexistent, key: /nonexistent}\n")
        refused(weir)
        assert names_of(weir) == sorted(f"e{e.port}" for e in engines)
        config.write(*engines)
        reload(weir)
        assert metric(weir.admin, "weir_config_reload_failed") == 0
        assert all(o.kind == "ok" for o in load.stop())


def limits_and_settings_change():
    with running(2, mock=("--scale", "4"), pool="    max_inflight: 100\n") as (weir, engines, config):
        config.write(*engines, text="tenant_header: x-team\n" + TENANTS % 5, threads=3,
                     pool="    max_inflight: 1\n    queue_max_requests: 0\n    policy: round_robin\n")
        reload(weir)
        said = weir.messages()
        assert "needs a restart, and stays as it was: threads pools.main.policy\n" in said, said
        streams = [Stream(weir, 60) for _ in range(2)]
        assert all(s.until(b"tok") for s in streams)
        status, headers, _ = chat(weir)
        assert status == 429 and headers["retry-after"], status
        config.write(*engines, text="explain: false\n".replace("explain", "trust_headers"), pool="    max_inflight: 0\n")
        reload(weir)
        assert chat(weir)[0] == 200
        config.write(*engines, text="limits: {max_body_bytes: 50}\n")
        reload(weir)
        for _ in range(4):  # on every thread
            assert chat(weir)[0] == 413
        for s in streams:
            s.sock.close()


def certificate(folder, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", f"/CN={name}", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"],
                   check=True, capture_output=True)


def presented(port):
    context = ssl._create_unverified_context()
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as s, context.wrap_socket(s) as t:
        der = t.getpeercert(True)
    return subprocess.run(["openssl", "x509", "-inform", "der", "-noout", "-subject"], input=der, check=True,
                          capture_output=True).stdout.decode()


def certificates_are_read_again():
    with tempfile.TemporaryDirectory() as folder:
        certificate(folder, "first")
        tls = f"tls: {{cert: '{folder}/cert.pem', key: '{folder}/key.pem'}}\n"
        with running(text=tls) as (weir, engines, config):
            assert "first" in presented(weir.port)
            certificate(folder, "second")
            reload(weir)
            for _ in range(4):  # on every thread
                assert "second" in presented(weir.port)
            pathlib.Path(f"{folder}/key.pem").write_text("broken")
            refused(weir)
            assert "second" in presented(weir.port)


class Manager:
    """What a service manager hears on its NOTIFY_SOCKET."""

    def __init__(self, folder):
        self.path = f"{folder}/notify"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.settimeout(PATIENCE_S)

    def hears(self, word):
        """The next message that has this word, as a dict."""
        while True:
            text = self.sock.recv(4096).decode()
            if word in text:
                return dict(line.split("=", 1) for line in text.split("\n"))


@contextlib.contextmanager
def managed(n=2, mock=(), **write):
    """As running, under a manager. Whoever is the service's main process at the end is ended."""
    engines = [Process("mock", "--port", "0", "--seed", str(i), *mock) for i in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        config, manager = Config(folder), Manager(folder)
        config.write(*engines, **write)
        os.environ["NOTIFY_SOCKET"] = manager.path
        try:
            weir = Process("serve", "--config", str(config.path), admin=True)
        finally:
            del os.environ["NOTIFY_SOCKET"]
        weir.main = int(manager.hears("READY")["MAINPID"])
        try:
            yield weir, engines, config, manager
        finally:
            for p in (weir, *engines):
                p.end(signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(weir.main, signal.SIGKILL)


class Patient:
    """A client that keeps its connection as long as it is told that it may."""

    def __init__(self, port):
        self.port, self.done, self.connections, self.stopping, self.wrong = port, 0, 0, False, []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2})
        try:
            while not self.stopping:
                c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
                self.connections += 1
                keep = True
                while keep and not self.stopping:
                    c.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                    r = c.getresponse()
                    r.read()
                    keep = r.getheader("connection", "").lower() != "close"
                    if r.status != 200:
                        self.wrong.append(r.status)
                    self.done += 1
                c.close()
        except Exception as e:  # told by the check
            self.wrong.append(repr(e))

    def stop(self):
        self.stopping = True
        self.thread.join(2 * PATIENCE_S)


def restart(weir, manager):
    before = weir.main
    os.kill(before, signal.SIGUSR2)
    weir.main = int(manager.hears("READY")["MAINPID"])
    assert weir.main != before
    return before


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def a_restart_loses_nothing():
    with managed(mock=("--scale", "0.5")) as (weir, engines, config, manager):
        load, patient = Load(weir.port, clients=10), Patient(weir.port)
        stream = Stream(weir, 100)
        assert stream.until(b"tok")
        time.sleep(0.3)
        for _ in range(3):  # a successor has successors
            old = restart(weir, manager)
            wait_for(lambda: gone(old), "the old process has gone")
            time.sleep(0.2)
        assert stream.until(b"data: [DONE]\n\n")
        assert weir.child.wait(PATIENCE_S) == 0
        patient.stop()
        outcomes = load.stop()
        assert not patient.wrong, patient.wrong[:3]
        assert patient.done > 20 and patient.connections > 3, (patient.done, patient.connections)
        assert len(outcomes) > 30 and all(o.kind == "ok" for o in outcomes), [o for o in outcomes if o.kind != "ok"][:3]
        os.kill(weir.main, signal.SIGTERM)
        manager.hears("STOPPING")
        wait_for(lambda: gone(weir.main), "the last one has gone")


def a_successor_that_fails_changes_nothing():
    with managed() as (weir, engines, config, manager):
        config.write(*engines, text="threds: 3\n")
        os.kill(weir.main, signal.SIGUSR2)
        wait_for(lambda: "no restart: this process goes on" in weir.messages(), "the failure is told")
        assert "did you mean threads?" in weir.messages()
        assert chat(weir)[0] == 200
        config.write(*engines)
        restart(weir, manager)
        assert chat(weir)[0] == 200


def a_manager_hears_of_reloads():
    with managed() as (weir, engines, config, manager):
        os.kill(weir.main, signal.SIGHUP)
        assert int(manager.hears("RELOADING")["MONOTONIC_USEC"]) > 0
        manager.hears("READY")


def sockets_of_a_manager_are_taken():
    """systemd's protocol: descriptors from 3 on, for the process that LISTEN_PID names."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Process("mock", "--port", "0")
        config = Config(folder)
        config.write(engine)
        data, admin = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
        script = ("import os, sys\n"
                  "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='data:admin')\n"
                  "a, b = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))\n"
                  "a, b = os.dup2(a, 100), os.dup2(b, 101)\n"
                  "os.dup2(100, 3); os.dup2(101, 4)\n"
                  "os.execv(sys.argv[3], [sys.argv[3], 'serve', '--config', sys.argv[4]])\n")
        child = subprocess.Popen([sys.executable, "-c", script, str(data.fileno()), str(admin.fileno()), WEIR, str(config.path)],
                                 pass_fds=(data.fileno(), admin.fileno()), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            line = child.stdout.readline()
            assert f":{data.getsockname()[1]}," in line and f":{admin.getsockname()[1]};" in line, line
            data_port, admin_port = data.getsockname()[1], admin.getsockname()[1]
            data.close()
            admin.close()
            assert call(admin_port, "GET", "/healthz")[0] == 200
            body = {"model": "mock", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
            for _ in range(8):
                assert call(data_port, "POST", "/v1/chat/completions", body)[0] == 200
            child.terminate()
            assert child.wait(PATIENCE_S) == 0
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            engine.end(signal.SIGKILL)


def places_run_out():
    with running(3, pool="    spare_workers: 0\n") as (weir, engines, config):
        config.write(*engines, pool="    spare_workers: 0\n")
        said = refused(weir)
        assert "no room for more workers" in said and "raise spare_workers" in weir.messages(), said
        assert len(names_of(weir)) == 2


def pools_go_by_model():
    engines = [Process("mock", "--port", "0", "--model", m) for m in ("red", "blue")]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weir.yaml"
        pools = "".join(f"  - {{name: {m}, workers: [{{url: '{e.url()}', name: e-{m}}}]}}\n" for m, e in zip(("red", "blue"), engines))
        path.write_text(f"listen: 127.0.0.1:0\nadmin: {{listen: '127.0.0.1:0'}}\npoll_ms: 50\nexplain: true\npools:\n{pools}")
        weir = Process("serve", "--config", str(path), admin=True)
        try:
            def models():
                return sorted(m["id"] for m in json.loads(call(weir.port, "GET", "/v1/models")[2])["data"])
            wait_for(lambda: models() == ["blue", "red"], "both pools know their models")
            for m in ("red", "blue", "red"):
                status, headers, _ = chat(weir, model=m)
                assert (status, headers["x-weir-worker"]) == (200, f"e-{m}"), (status, headers)
            status, _, body = chat(weir, model="green")
            assert status == 404 and b"green" in body, (status, body)
        finally:
            for p in (weir, *engines):
                p.end(signal.SIGKILL)


CHECKS = [places_run_out, pools_go_by_model,
          a_restart_loses_nothing, a_successor_that_fails_changes_nothing, a_manager_hears_of_reloads,
          sockets_of_a_manager_are_taken, workers_come_and_go_under_load, a_leaving_worker_ends_its_streams, a_bad_file_changes_nothing,
          limits_and_settings_change, certificates_are_read_again]

if __name__ == "__main__":
    sys.exit(run_checks(CHECKS, names))
