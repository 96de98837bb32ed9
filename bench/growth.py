#!/usr/bin/env python3
"""How the time and memory of a replay grow: with the number of requests, and with the number of workers.

    bench/growth.py [--most-requests 1e7] [--most-workers 10000] [--svg FILE] [--json FILE]

A trace is generated and piped into `weir replay -`, so nothing but the replay is measured: CPU time and peak
memory of that one process, by the system's own account. Load per worker stays the same along both axes: the
arrival rate grows with the workers, the length of the trace with the requests. Two policies: round_robin,
which looks at nothing, and dynamo_cost, which scores every worker and follows every cache event.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
POLICIES = ("round_robin", "dynamo_cost")
RATE_PER_WORKER = 1.5  # requests/s: about 60 % of what a worker can take of this mix


def gen_command(weir, requests, workers):
    rate = RATE_PER_WORKER * workers
    return [str(weir), "gen", "--rate", f"{rate:g}", "--minutes", f"{requests / rate / 60:.6f}", "--seed", "1"]


def measure(weir, requests, workers, policy):
    """us of CPU a request, peak MiB, and the number of requests that there really were."""
    gen = subprocess.Popen(gen_command(weir, requests, workers), stdout=subprocess.PIPE)
    replay = subprocess.Popen([str(weir), "replay", "-", "--workers", str(workers), "--policy", policy, "--quiet",
                               "--report", "/dev/stdout"], stdin=gen.stdout, stdout=subprocess.PIPE)
    gen.stdout.close()
    report = json.loads(replay.stdout.read())
    _, status, used = os.wait4(replay.pid, 0)
    replay.returncode = os.waitstatus_to_exitcode(status)
    if gen.wait() or replay.returncode:
        sys.exit("growth: a process failed")
    n = report["num_requests"]
    cpu_us = (used.ru_utime + used.ru_stime) * 1e6
    return {"policy": policy, "requests": n, "workers": workers, "us_per_request": cpu_us / n,
            "rss_mib": used.ru_maxrss / 1024, "passes_per_request": report["passes"] / n}


def powers(first, most):
    x = first
    while x <= most:
        yield int(x)
        x *= 10


def curve(rows, axis):
    """Points of each policy along an axis."""
    return {p: [(r[axis], r["us_per_request"], r["rss_mib"]) for r in rows if r["policy"] == p] for p in POLICIES}


def svg(panels):
    """Log-log curves, one panel for each (title, axis label, {name: [(x, y)]})."""
    import math
    width, height, margin = 360, 240, 46
    colours = {"round_robin": "#1f77b4", "dynamo_cost": "#d62728"}
    size = f'width="{width * 2}" height="{height * 2}"'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
           f'<rect {size} fill="white"/>']
    for k, (title, label, lines) in enumerate(panels):
        left, top = (k % 2) * width + margin, (k // 2) * height + 24
        w, h = width - margin - 14, height - 66
        xs = [math.log10(x) for pts in lines.values() for x, _ in pts]
        ys = [math.log10(max(y, 1e-3)) for pts in lines.values() for _, y in pts]
        x0, x1 = math.floor(min(xs)), math.ceil(max(xs))
        y0, y1 = math.floor(min(ys)), math.ceil(max(ys)) or 1
        at = lambda x, y: (left + (math.log10(x) - x0) / max(x1 - x0, 1) * w,
                           top + h - (math.log10(max(y, 1e-3)) - y0) / max(y1 - y0, 1) * h)
        out.append(f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}</text>')
        for e in range(x0, x1 + 1):
            x, _ = at(10 ** e, 10 ** y0)
            out.append(f'<path d="M{x:.1f} {top}V{top + h}" stroke="#ddd"/>'
                       f'<text x="{x:.1f}" y="{top + h + 14}" text-anchor="middle">10^{e}</text>')
        for e in range(y0, y1 + 1):
            _, y = at(10 ** x0, 10 ** e)
            out.append(f'<path d="M{left} {y:.1f}H{left + w}" stroke="#ddd"/>'
                       f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{10 ** e:g}</text>')
        out.append(f'<text x="{left + w / 2}" y="{top + h + 30}" text-anchor="middle">{label}</text>')
        for name, pts in lines.items():
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in pts))
            out.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colours[name]}"/>'
                    for x, y in (at(*p) for p in pts)]
            x, y = at(*pts[-1])
            out.append(f'<text x="{x - 4:.1f}" y="{y - 7:.1f}" text-anchor="end" fill="{colours[name]}">{name}</text>')
    return "\n".join(out + ["</svg>", ""])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--most-requests", type=float, default=1e7)
    p.add_argument("--most-workers", type=int, default=10000)
    p.add_argument("--weir", type=pathlib.Path, default=ROOT / "build/release/weir")
    p.add_argument("--svg", type=pathlib.Path)
    p.add_argument("--json", type=pathlib.Path)
    args = p.parse_args()
    if not args.weir.exists():
        sys.exit("growth: build weir first: cmake --preset release && cmake --build --preset release")
    print(f"{'policy':12} {'requests':>10} {'workers':>8} {'us/request':>11} {'passes/req':>11} {'peak MiB':>9}")
    series = {"requests": [], "workers": []}
    workers = [8, *[x for x in powers(100, args.most_workers)]]
    grid = [("requests", n, 8) for n in powers(1e4, args.most_requests)] + [("workers", 100_000, w) for w in workers]
    for axis, n, w in grid:
        for policy in POLICIES:
            r = measure(args.weir, n, w, policy)
            series[axis].append(r)
            print(f"{policy:12} {r['requests']:10d} {w:8d} {r['us_per_request']:11.2f} "
                  f"{r['passes_per_request']:11.1f} {r['rss_mib']:9.1f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(series, indent=1) + "\n")
    if args.svg:
        by = {axis: curve(rows, axis) for axis, rows in series.items()}
        pick = lambda axis, k: {p: [(q[0], q[k]) for q in pts] for p, pts in by[axis].items()}
        args.svg.write_text(svg([("CPU us a request, 8 workers", "requests", pick("requests", 1)),
                                 ("CPU us a request, 10^5 requests", "workers", pick("workers", 1)),
                                 ("peak MiB, 8 workers", "requests", pick("requests", 2)),
                                 ("peak MiB, 10^5 requests", "workers", pick("workers", 2))]))


if __name__ == "__main__":
    main()
