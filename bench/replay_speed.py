#!/usr/bin/env python3
"""How long a whole `weir replay` takes beside NVIDIA's DynoSim, case by case, in one run on one core.

    bench/replay_speed.py TRACE.jsonl [-n RUNS] [--core N] [--peer PYTHON] [CASE...]

Each case is run as a process from nothing: reading the trace, simulating, writing the JSON report. Runs of
weir (linear step time; the peer's own scheduler and polynomial) and of the peer alternate, so that a busy
machine hurts all of them alike. Printed are medians of the elapsed time with the minimum behind, and the
ratios of the medians. --peer names a Python that has ai-dynamo 1.4.2 installed (default: $DYNAMO_PYTHON);
without one the peer's columns stay empty, and published figures are not put in their place.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DYNOSIM = ["--stack", str(ROOT / "deploy/stacks/dynosim.yaml")]
DYNOSIM_PD = ["--stack", str(ROOT / "deploy/stacks/dynosim-pd.yaml")]


def agg(policy, workers, block, more_weir=(), more_peer=(), **engine):
    """(weir with linear steps, weir as the peer, the peer's own arguments) of an aggregated case."""
    peer_policy = {"round_robin": "round_robin", "dynamo_cost": "kv_router"}[policy]
    sets = [a for k, v in {"block_size": block, **engine}.items() for a in ("--set", f"{k}={v}")]
    ours = [*sets, "--policy", policy, *more_weir]
    engine_args = json.dumps({"block_size": block, **engine})
    peer = ["--router-mode", peer_policy, "--num-workers", str(workers), "--extra-engine-args", engine_args, *more_peer]
    return (["--workers", str(workers), *ours], [*DYNOSIM, "--set", f"workers={workers}", *ours], peer)


def disaggregated(policy):
    peer_policy = {"round_robin": "round_robin", "dynamo_cost": "kv_router"}[policy]
    transfer = {"block_size": 512, "kv_bytes_per_token": 131072, "kv_transfer_bandwidth": 64}
    peer = ["--router-mode", peer_policy, "--num-prefill-workers", "4", "--num-decode-workers", "4",
            "--prefill-engine-args", json.dumps({**transfer, "worker_type": "prefill"}),
            "--decode-engine-args", json.dumps({**transfer, "worker_type": "decode"})]
    stack = str(ROOT / "deploy/stacks/llama8b-h100-pd.yaml")
    linear = ["--stack", stack, "--set", "block_size=512", "--policy", policy]
    return (linear, [*DYNOSIM_PD, "--policy", policy], peer)


FAST = (["--speedup", "8"], ["--arrival-speedup-ratio", "8"])
CASES = {
    "rr8": agg("round_robin", 8, 512),
    "kv8": agg("dynamo_cost", 8, 512),
    "rr8_2048": agg("round_robin", 8, 512, num_gpu_blocks=2048),
    "rr8_512": agg("round_robin", 8, 512, num_gpu_blocks=512),
    "kv8_2048": agg("dynamo_cost", 8, 512, num_gpu_blocks=2048),
    "kv8_512": agg("dynamo_cost", 8, 512, num_gpu_blocks=512),
    "rr8_b64": agg("round_robin", 8, 64),
    "kv8_b64": agg("dynamo_cost", 8, 64),
    "rr8_b16": agg("round_robin", 8, 16, num_gpu_blocks=65536),
    "kv8_b16": agg("dynamo_cost", 8, 16, num_gpu_blocks=65536),
    "pd_rr_xfer": disaggregated("round_robin"),
    "pd_kv_xfer": disaggregated("dynamo_cost"),
    "rr64_x8": agg("round_robin", 64, 512, *FAST),
    "kv64_x8": agg("dynamo_cost", 64, 512, *FAST),
}


def run(command):
    """(elapsed ms, CPU ms) of one process; ends the benchmark if it fails."""
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        # nothing that would make Python fork itself first: it is larger than what is measured
        child = subprocess.Popen(command, stdout=log, stderr=log, close_fds=False)
        _, status, used = os.wait4(child.pid, 0)
        elapsed = (time.monotonic() - start) * 1e3
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            sys.exit(f"replay_speed: exit status {child.returncode} of: {' '.join(command)}\n"
                     f"{log.read().decode(errors='replace')[-2000:]}")
        return elapsed, (used.ru_utime + used.ru_stime) * 1e3


class Side:
    """The runs of one program in one case."""

    def __init__(self, command, wall_of=None):
        self.command, self.wall_of = command, wall_of
        self.elapsed, self.cpu, self.wall = [], [], []

    def go(self):
        elapsed, cpu = run(self.command)
        self.elapsed.append(elapsed)
        self.cpu.append(cpu)
        report = json.loads(pathlib.Path(self.wall_of).read_text())
        self.wall.append(report.get("trace_report", report)["wall_time_ms"])

    def show(self):
        return f"{statistics.median(self.elapsed):9.1f} {min(self.elapsed):9.1f} {statistics.median(self.wall):9.1f}"


def sides(args, case, folder):
    linear, polynomial, peer = CASES[case]
    report = [str(folder / f"{case}.{k}.json") for k in ("linear", "dynosim", "peer")]
    weir = [str(args.weir), "replay", args.trace, "--quiet"]
    out = [Side([*weir, *linear, "--report", report[0]], report[0]),
           Side([*weir, *polynomial, "--report", report[1]], report[1])]
    if args.peer:
        out.append(Side([args.peer, "-m", "dynamo.replay", args.trace, "--trace-block-size", "512", "--replay-mode",
                         "offline", *peer, "--report-json", report[2]], report[2]))
    return out


def ratio(ours, peer):
    return f"{statistics.median(peer.elapsed) / statistics.median(ours.elapsed):7.0f}x"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("trace", help="Mooncake JSONL, not compressed")
    p.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {' '.join(CASES)} (all)")
    p.add_argument("-n", "--runs", type=int, default=5)
    p.add_argument("--core", type=int, default=0, help="pin everything to this core; -1: do not pin")
    p.add_argument("--weir", type=pathlib.Path, default=ROOT / "build/release/weir")
    p.add_argument("--peer", default=os.environ.get("DYNAMO_PYTHON"))
    args = p.parse_args()
    bad = [c for c in args.cases if c not in CASES]
    if bad or args.runs < 1 or not args.weir.exists() or not pathlib.Path(args.trace).exists():
        sys.exit(f"replay_speed: no such case: {bad[0]}" if bad else
                 "replay_speed: needs a trace, --runs >= 1 and a built weir (cmake --preset release)")
    core = args.core if args.core >= 0 else None
    if core is not None:
        os.sched_setaffinity(0, {core})  # children inherit it
    os.environ.update(HF_HUB_OFFLINE="1", DYN_LOG="error")
    head = "   median       min  own wall"
    print(f"whole process, ms, {args.runs} runs each on {'one core' if core is not None else 'any core'}; "
          "own wall: what the program's report says it took")
    print(f"{'case':11} | {'weir, linear':^29} | {'weir, dynosim':^29} | {'DynoSim 1.4.2':^29} | times as fast")
    print(f"{'':11} | {head} | {head} | {head} |  linear dynosim")
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases or CASES:
            group = sides(args, case, pathlib.Path(folder))
            for _ in range(args.runs):
                for side in group:
                    side.go()
            if args.peer:
                print(f"{case:11} | {group[0].show()} | {group[1].show()} | {group[2].show()} |"
                      f"{ratio(group[0], group[2])}{ratio(group[1], group[2])}", flush=True)
            else:
                print(f"{case:11} | {group[0].show()} | {group[1].show()} | {'no peer here':^29} |", flush=True)


if __name__ == "__main__":
    main()
