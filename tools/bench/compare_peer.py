#!/usr/bin/env python3
"""Sets our training step against a peer's, alternating, so that both meet the same noise.

usage: compare_peer.py [--rounds 10] [--avx2] OURS PEER
  OURS  a command that prints the JSON of `omnitrain bench`
  PEER  a command that prints that JSON too, or a line as peer_torch.py's

e.g.   compare_peer.py "build/bin/step_bench gpt 2 3" \\
                       "/usr/bin/python3 tools/bench/peer_torch.py gpt 2 3"

--avx2 holds both sides to AVX2, whatever the processor has: ours by OMNI_CPU, PyTorch by the variables
of MKL, oneDNN and ATen. What this shell may have set for OpenBLAS never reaches the peer.

Prints, for each side, the medians over the rounds of each round's median and best tokens/s, with
the spread; then the ratio of each round (ours / peer), its median and quartiles. Processor seconds
of a step tell more than tokens/s where other programs take the cores.
"""
import argparse
import json
import os
import re
import shlex
import statistics
import subprocess


AVX2 = {"ours": {"OMNI_CPU": "avx2"},
        "peer": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
                 "ATEN_CPU_CAPABILITY": "avx2"}}


def environment(side, avx2):
    found = dict(os.environ)
    if side == "peer":
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            found.pop(name, None)
    return {**found, **(AVX2[side] if avx2 else {})}


def run(command, env):
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False,
                          env=env)
    if done.returncode != 0:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            found = json.loads(line)
            return {"median": found["tokens_per_s"]["median"],
                    "best": found["tokens_per_s"]["best"],
                    "rss": found["peak_bytes"]["rss"] / 1e9,
                    "share": found.get("share_of_peak", {}).get("median"),
                    "best_share": found.get("share_of_peak", {}).get("best"),
                    "peak": found.get("peak_gflops"),
                    "cpu": found["step_ms"]["best_cpu"] / 1e3}
        match = re.search(r"cpu ([\d.]+)s\) tokens/s best ([\d.]+) median ([\d.]+).*?maxrss ([\d.]+) GB", line)
        if match:
            return {"cpu": float(match[1]), "best": float(match[2]), "median": float(match[3]),
                    "rss": float(match[4])}
    raise SystemExit(f"{command}: no tokens/s in its output:\n{done.stdout}")


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.4g} (quartiles {low:.4g} .. {high:.4g}, all {min(values):.4g} .. {max(values):.4g})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--avx2", action="store_true", help="hold both sides to AVX2")
    parser.add_argument("ours")
    parser.add_argument("peer")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2")
    rounds = []
    for index in range(arguments.rounds):
        # Who goes first changes too.
        order = ("ours", "peer") if index % 2 == 0 else ("peer", "ours")
        found = {side: run(getattr(arguments, side), environment(side, arguments.avx2))
                 for side in order}
        rounds.append(found)
        print(f"round {index + 1}: ours {found['ours']['median']:.0f}, peer "
              f"{found['peer']['median']:.0f} tokens/s (medians), ratio "
              f"{found['ours']['median'] / found['peer']['median']:.2f}", flush=True)
    for side in ("ours", "peer"):
        for key in ("median", "best"):
            print(f"{side} {key} tokens/s: {spread([r[side][key] for r in rounds])}")
        print(f"{side} processor seconds of a step: {spread([r[side]['cpu'] for r in rounds])}")
        print(f"{side} peak memory: {max(r[side]['rss'] for r in rounds):.2f} GB")
    for key, name in (("peak", "FMA peak, GFLOP/s"), ("share", "share of the FMA peak, median step"),
                      ("best_share", "share of the FMA peak, best step")):
        if all(r["ours"].get(key) for r in rounds):
            print(f"ours {name}: {spread([r['ours'][key] for r in rounds])}")
    for key in ("median", "best"):
        print(f"ratio of {key}s: {spread([r['ours'][key] / r['peer'][key] for r in rounds])}")
    print(f"ratio of processor seconds (peer / ours): "
          f"{spread([r['peer']['cpu'] / r['ours']['cpu'] for r in rounds])}")


if __name__ == "__main__":
    main()
