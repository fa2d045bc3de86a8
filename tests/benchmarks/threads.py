"""What threads cost on a machine that is shared: training, sampling and plain torch, alone and beside other work.

    python -m tests.benchmarks.threads      writes data/results/threads.{json,md}; about ten minutes

Every cell is a process of its own. Beside other work means: as many processes that only compute as there are cores.
An OpenMP thread that waits for the others spins for a while before it sleeps; where the others have no core, it spins
their time away. `GOMP_SPINCOUNT` says for how long (gcc.gnu.org/onlinedocs/libgomp, 4.22), and counts only when it is
set before torch is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import KEPT, ROOT, heading, machine

WORKS = ("training", "sampling", "plain torch")
SPINS = {"as libgomp comes": "300000", "as DPO Lab sets it": None}
"""What GOMP_SPINCOUNT is in the environment, where it isn't None; libgomp's own number is that of its source."""


def work(name: str) -> None:
    """One of the works, in this process; prints seconds."""
    import_module("dpo_lab")  # what it sets must be set before torch is loaded
    import torch

    if name == "plain torch":
        layers = [torch.nn.TransformerEncoderLayer(192, 4, 768, batch_first=True) for _ in range(4)]
        model, rows = torch.nn.Sequential(*layers), torch.randn(32, 64, 192)
        step = lambda: model(rows).square().mean().backward()
        repeats = 12
    elif name == "training":
        from dpo_lab import DPOConfig, load_policy, load_preferences, train_dpo

        policy, tokenizer = load_policy(device="cpu")
        pairs = load_preferences("embedded", split="train", limit=160)
        step = lambda: list(train_dpo(policy, tokenizer, pairs, DPOConfig(batch_size=32, device="cpu", max_steps=5)))
        repeats = 1
    else:
        from dpo_lab import generate, load_policy, load_preferences

        policy, tokenizer = load_policy(device="cpu")
        prompts = list(load_preferences("embedded", split="test", limit=64))
        step = lambda: generate(policy, tokenizer, prompts, num_samples=4, max_new_tokens=48, temperature=1.0)
        repeats = 2
    step()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    print(time.perf_counter() - began)


def measure(repetitions: int) -> dict[str, Any]:
    """Seconds of every cell, all in turn."""
    rows = []
    for _ in range(repetitions):
        for busy in (False, True):
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy * cores())]
            try:
                for name in WORKS:
                    for threads in (1, cores()):
                        for spin in SPINS if threads > 1 else list(SPINS)[:1]:
                            rows.append({"work": name, "threads": threads, "busy": busy, "spin": spin,
                                         "seconds": seconds_of(name, threads, spin)})  # fmt: skip
                            print(rows[-1], flush=True)
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    return {"machine": machine(), "rows": rows}


def cores() -> int:
    return len(os.sched_getaffinity(0))


def seconds_of(name: str, threads: int, spin: str) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    environment.pop("GOMP_SPINCOUNT", None)
    if (number := SPINS[spin]) is not None:
        environment["GOMP_SPINCOUNT"] = number
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.threads", "--work", name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def table(found: dict[str, Any]) -> str:
    """The result as markdown: a row for each work and its threads, medians."""
    names = ("work", "threads", "busy", "spin")
    repetitions = len(found["rows"]) // len({tuple(row[name] for name in names) for row in found["rows"]})
    about = heading(f"python -m tests.benchmarks.threads --repetitions {repetitions}", found["machine"])
    lines: list[str] = ["# Threads on a shared machine", "", about, "",
             "Seconds, medians. Beside other work: each core has another process that only computes.", "",
             "| | threads | waiting threads spin | alone | beside other work | times as long |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    cells = dict.fromkeys((row["work"], row["threads"], row["spin"]) for row in found["rows"])
    for name, threads, spin in cells:
        alone, beside = (
            statistics.median(row["seconds"] for row in found["rows"]
                              if (row["work"], row["threads"], row["spin"], row["busy"]) == (name, threads, spin, busy))
            for busy in (False, True)
        )  # fmt: skip
        how = spin if threads > 1 else "–"
        lines.append(f"| {name} | {threads} | {how} | {alone:.2f} | {beside:.2f} | {beside / alone:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="What threads cost on a shared machine.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", choices=WORKS)
    parser.add_argument("--results", type=Path, default=KEPT)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work)
        return
    found = measure(given.repetitions)
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "threads.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (given.results / "threads.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
