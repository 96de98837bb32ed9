#!/usr/bin/env python3
"""A small fleet of mock engines, weir in front, and a trace's traffic through it, once for each policy; then a table.

    live_demo.py PATH/TO/weir TRACE [--engines N] [--seconds S] [--policies A,B,...]

TRACE is of Mooncake's format (weir gen). Requests are sent when it says, in OpenAI's form, streamed: a hash_id becomes 2 KB of
text, the same each time, so that prompts share what they share in the trace. All that is started is stopped at the end, and
on Ctrl-C too.
"""
import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import time

BYTES_OF_A_BLOCK = 2048  # 512 tokens at four bytes
MAX_OUTPUT = 64  # tokens: a demonstration, not a benchmark
PATIENCE_S = 60

children, starting, stopped = [], [], []


def stop(number, _):
    """SIGINT or SIGTERM, the first of them: the end, but not before a process that is being started is known."""
    stopped.append(number)
    if not starting and len(stopped) == 1:
        sys.exit(128 + number)


def start(weir, *args):
    """A weir process; its ports, as its first line says."""
    starting.append(args)
    children.append(subprocess.Popen([weir, *args], stdout=subprocess.PIPE, text=True, start_new_session=True))
    starting.clear()
    if stopped:
        sys.exit(128 + stopped[0])
    child = children[-1]
    line = child.stdout.readline()
    ports = [int(p) for p in re.findall(r":(\d+)", line)]
    if not ports:
        raise SystemExit(f"live_demo: weir {' '.join(args)} did not start")
    return ports


def stop_all():
    for child in children:
        child.kill()
    for child in children:
        child.wait()
        child.stdout.close()
    children.clear()


def read_trace(path, seconds):
    """Requests of the first seconds. Later turns of a conversation come a while after the answer: they are left out."""
    rows = []
    with open(path) as f:
        for line in f:
            row = json.loads(line)
            if "timestamp" in row and row["timestamp"] < seconds * 1000:
                rows.append((row["timestamp"] / 1000, row["hash_ids"], row["input_length"], row["output_length"]))
    return rows


def body_of(ids, tokens, output):
    text = "".join(f"block {i} ".ljust(16, ".") * (BYTES_OF_A_BLOCK // 16) for i in ids)[:4 * tokens]
    return json.dumps({"model": "mock", "prompt": text, "max_tokens": min(output, MAX_OUTPUT), "stream": True,
                       "stream_options": {"include_usage": True}}).encode()


async def send(port, body):
    """One streamed request: its status, times and usage."""
    began, first, usage = time.monotonic(), None, {}
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\nConnection: close\r\n"
                     b"Content-Length: %d\r\n\r\n" % len(body) + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        predicted = re.search(r"x-weir-predicted-ttft-ms: ([\d.]+)", head)
        async for line in reader:
            if line.startswith(b"data: {"):
                if first is None and b'"text":"' in line:
                    first = time.monotonic()
                if b'"usage":{' in line:
                    usage = json.loads(line[6:])["usage"]
        ended = time.monotonic()
    finally:
        writer.close()
    ok = " 200 " in head.splitlines()[0] and first is not None and usage
    return {"ok": bool(ok), "ttft": (first or ended) - began, "out": usage.get("completion_tokens", 0),
            "tpot": (ended - (first or ended)) / max(1, usage.get("completion_tokens", 1) - 1),
            "prompt": usage.get("prompt_tokens", 0),
            "cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            "predicted": float(predicted.group(1)) / 1000 if predicted else None}


async def drive(port, rows):
    began = time.monotonic()

    async def one(at, body):
        await asyncio.sleep(max(0, began + at - time.monotonic()))
        try:
            return await asyncio.wait_for(send(port, body), PATIENCE_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            return {"ok": False}

    return await asyncio.gather(*(one(at, body_of(ids, tok, out)) for at, ids, tok, out in rows))


async def ready(admin):
    for _ in range(500):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", admin)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")
            line = await reader.readline()
            writer.close()
            if b" 200 " in line:
                return
        except OSError:
            pass
        await asyncio.sleep(0.02)
    raise SystemExit("live_demo: weir did not get ready")


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0


def row_of(policy, results):
    good = [r for r in results if r["ok"]]
    prompt = sum(r["prompt"] for r in good)
    ratios = [r["ttft"] / r["predicted"] for r in good if r["predicted"]]
    return (f"{policy:<16}{len(results):>9}{len(results) - len(good):>8}"
            f"{1000 * quantile([r['ttft'] for r in good], 0.5):>10.0f}{1000 * quantile([r['ttft'] for r in good], 0.9):>7.0f}"
            f"{1000 * quantile([r['tpot'] for r in good], 0.5):>10.1f}"
            f"{100 * sum(r['cached'] for r in good) / prompt if prompt else 0:>9.1f}{quantile(ratios, 0.5):>14.2f}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("weir")
    p.add_argument("trace")
    p.add_argument("--engines", type=int, default=3)
    p.add_argument("--seconds", type=float, default=15)
    p.add_argument("--policies", default="round_robin,least_loaded,cache_aware,lmetric")
    a = p.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    rows = read_trace(a.trace, a.seconds)
    if not rows:
        raise SystemExit(f"live_demo: {a.trace} has no request in its first {a.seconds} s")
    failed = 0
    print(f"{'':<16}{'':>9}{'':>8}{'- TTFT ms -':>17}{'TPOT ms':>10}{'cached':>9}{'measured /':>14}")
    print(f"{'policy':<16}{'requests':>9}{'failed':>8}{'p50':>10}{'p90':>7}{'p50':>10}{'%':>9}{'predicted':>14}", flush=True)
    try:
        for policy in a.policies.split(","):
            ports = [start(a.weir, "mock", "--port", "0", "--seed", str(i))[0] for i in range(a.engines)]
            workers = [x for port in ports for x in ("--worker", f"http://127.0.0.1:{port}")]
            port, admin = start(a.weir, "serve", "--policy", policy, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                                "--explain", *workers)[:2]
            asyncio.run(ready(admin))
            results = asyncio.run(drive(port, rows))
            failed += sum(not r["ok"] for r in results)
            print(row_of(policy, results), flush=True)
            stop_all()
    finally:
        stop_all()
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
