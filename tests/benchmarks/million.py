"""A million pairs on a laptop: read, tokenised, cached and trained on, in the memory that ten thousand take.

    python -m tests.benchmarks.million                 writes data/results/million_pairs.{json,md}
    python -m tests.benchmarks.million --many 100000   a shorter look, printed only

The pairs are made up: distinct, short (eleven tokens or so), one JSON object per line. Each stage is a process of its
own, whose peak memory is read at its end: what it held at most (VmHWM), and how much of that was its own rather than
pages of files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.course.speed.process import peak_memory
from tests.benchmarks.machine import KEPT, ROOT, heading, machine

STAGES = ("tokenise", "cache", "train")
WHAT = {
    "tokenise": "read line by line and tokenise into mapped files",
    "cache": "the reference's log-probs of every pair, into SQLite",
    "train": "100 steps of 8 pairs, log-probs from the cache",
}
FEW, MANY, STEPS = 10_000, 1_000_000, 100


def write_pairs(path: Path, num: int) -> None:
    """`num` distinct made-up pairs as JSON lines: the prompt counts in words, the answers are drawn."""
    from tests.tiny import WORDS

    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for start in range(0, num, 10_000):
            draws = generator.integers(0, len(WORDS), (min(10_000, num - start), 4))
            for number, (a, b, c, d) in enumerate(draws.tolist(), start):
                digits = [WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(5)]
                row = {"prompt": " ".join(digits), "chosen": f" {WORDS[a]} {WORDS[b]}",
                       "rejected": f" {WORDS[c]} {WORDS[d]} {WORDS[(a + c) % len(WORDS)]}"}  # fmt: skip
                file.write(json.dumps(row) + "\n")


def tokenise(folder: Path) -> dict[str, float]:
    from dpo_lab.preferences import stream_preferences, tokenize_pairs
    from tests.tiny import tiny_tokenizer

    rows, report = stream_preferences(folder / "pairs.jsonl")
    data, _ = tokenize_pairs(rows, tiny_tokenizer(bos=False), folder=folder / "tokens")
    assert len(data) == report.rows_kept == report.rows_read
    return {"pairs": len(data), "tokens": float(data.bounds[-1, -1])}


def cache(folder: Path) -> dict[str, float]:
    from dpo_lab.preferences import TokenData
    from dpo_lab.reference import ReferenceCache
    from tests.conftest import tiny_llama

    data = TokenData.load(folder / "tokens")
    for begun in folder.glob("reference.sqlite*"):  # by a stage that was broken off: it would be measured in part
        begun.unlink()
    with ReferenceCache(folder / "reference.sqlite") as store:
        found = store.logps(tiny_llama(), data)
    assert found.num_computed == len(data)
    return {"pairs": found.num_computed}


def train(folder: Path) -> dict[str, float]:
    from dpo_lab.config import DPOConfig
    from dpo_lab.loop import Step
    from dpo_lab.preferences import TokenData
    from dpo_lab.reference import ReferenceCache
    from dpo_lab.training import train_dpo
    from tests.conftest import tiny_llama

    data = TokenData.load(folder / "tokens")
    config = DPOConfig(batch_size=8, max_steps=STEPS, device="cpu")
    scored: list[int] = []
    with ReferenceCache(folder / "reference.sqlite") as store:
        events = train_dpo(
            tiny_llama(), None, data, config, cache=store, on_reference=lambda done, _: scored.append(done)
        )
        began = time.perf_counter()  # the log-probs are looked up by now
        steps = [event for event in events if isinstance(event, Step)]
    assert not scored, "every log-prob was to be found"
    assert len(steps) == STEPS
    return {"pairs": 8 * STEPS, "seconds_of_steps": time.perf_counter() - began}


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """The most memory of this process that is no page of a file, in bytes, looked at fifty times a second."""
    peak, is_done = [0], threading.Event()

    def look() -> None:
        while not is_done.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    peak[0] = max(peak[0], 1024 * int(line.split()[1]))

    watcher = threading.Thread(target=look, daemon=True)
    if Path("/proc/self/status").exists():
        watcher.start()
    try:
        yield peak
    finally:
        is_done.set()


def stage(name: str, folder: str) -> dict[str, float]:
    """One stage, in this process; what it took."""
    began = time.perf_counter()
    with own_memory() as own:
        found = {"tokenise": tokenise, "cache": cache, "train": train}[name](Path(folder))
    return found | {"seconds": time.perf_counter() - began, "peak_memory": peak_memory(), "own_memory": own[0]}


def in_a_process(name: str, folder: Path) -> dict[str, float]:
    """One stage in a process of its own."""
    code = (
        f"import json; from tests.benchmarks.million import stage; print(json.dumps(stage({name!r}, {str(folder)!r})))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(sizes: tuple[int, int], work: Path) -> dict[str, Any]:
    """Every stage at both sizes."""
    found: dict[str, Any] = {"machine": machine(), "threads": 1, "sizes": list(sizes), "stages": {}, "files": {}}
    for num in sizes:
        folder = work / str(num)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tokenise.json").exists():
            write_pairs(folder / "pairs.jsonl", num)
        for name in STAGES:
            kept = folder / f"{name}.json"  # a second start goes on after the last whole stage
            row = json.loads(kept.read_text()) if kept.exists() else in_a_process(name, folder)
            kept.write_text(json.dumps(row))
            found["stages"].setdefault(name, []).append(row)
            print(f"{num:>9,} pairs, {name}: {row['seconds']:.0f} s, {row['peak_memory'] / 2**20:.0f} MiB", flush=True)
        sizes_of = {"pairs.jsonl": [folder / "pairs.jsonl"], "tokens": [*(folder / "tokens").iterdir()],
                    "reference.sqlite": [folder / "reference.sqlite"]}  # fmt: skip
        found["files"][str(num)] = {
            name: sum(path.stat().st_size for path in paths) for name, paths in sizes_of.items()
        }
    return found


def growth(found: dict[str, Any]) -> dict[str, float]:
    """Peak memory at the larger size over that at the smaller, for each stage."""
    return {name: rows[1]["peak_memory"] / rows[0]["peak_memory"] for name, rows in found["stages"].items()}


def table(found: dict[str, Any]) -> str:
    few, many = found["sizes"]
    lines = [
        f"# {many:,} pairs",
        "",
        heading("python -m tests.benchmarks.million", found["machine"]),
        "",
        "Made-up pairs of eleven tokens or so, a random Llama of 2 layers of width 32, one thread, float32. Each stage "
        "is a process of its own. Peak memory is all that the process held (VmHWM), Python and torch included; "
        "own memory leaves out pages of files, which the system takes back when it needs them.",
        "",
        f"| stage | pairs | seconds | peak memory (MiB) | own memory (MiB) | peak at {many:,} / at {few:,} |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in found["stages"].items():
        for num, row in zip((few, many), rows, strict=True):
            ratio = f"{growth(found)[name]:.3f}" if num == many else ""
            lines.append(f"| {WHAT[name]} | {num:,} | {row['seconds']:.1f} | {row['peak_memory'] / 2**20:.0f} | "
                         f"{row['own_memory'] / 2**20:.0f} | {ratio} |")  # fmt: skip
    lines += ["", "| on the disk (MiB) | text | token ids | log-probs |", "|---|---|---|---|"]
    for num, files in found["files"].items():
        sizes = " | ".join(f"{size / 2**20:.1f}" for size in files.values())
        lines.append(f"| {int(num):,} pairs | {sizes} |")
    return "\n".join(lines) + "\n\n" + Path(__file__).with_name("hundred_million.md").read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=FEW)
    parser.add_argument("--many", type=int, default=MANY)
    parser.add_argument("--work", type=Path, default=None, help="folder for the files; None takes a temporary one")
    parser.add_argument("--results", type=Path, default=KEPT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measure((arguments.few, arguments.many), arguments.work or Path(temporary))
    print(table(found))
    if (arguments.few, arguments.many) == (FEW, MANY):
        (arguments.results / "million_pairs.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (arguments.results / "million_pairs.md").write_text(table(found), encoding="utf-8")
    assert max(growth(found).values()) <= 1.15, f"memory grew: {growth(found)}"


if __name__ == "__main__":
    main()
