"""How time and memory grow: with the pairs, the prompt's share, the vocabulary and the length; start-up and the cache.

    python -m tests.benchmarks.growth      writes data/results/growth.{md,json,png}

Made-up tokens and small random Llamas: what matters here is the shape of the curves. Every point is a process of its
own, and times only what follows two steps of warming up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.course.speed.process import peak_memory
from dpo_lab.workbench.plots import Picture, add_title, dress, new_figure, to_png
from dpo_lab.workbench.plots.style import BLUE, ORANGE
from tests.benchmarks.machine import KEPT, ROOT, heading, machine

SMALL = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 4, "max_position_embeddings": 4096}  # fmt: skip
# What stays the same in each series, and what is varied.
PLAIN = {"pairs": 1000, "tokens": 256, "prompt_share": 0.5, "vocabulary": 4096, "steps": 24, "layout": "shared"}
SERIES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "pairs": ([1_000, 10_000, 100_000], {"tokens": 128, "steps": 60}),
    "prompt_share": ([0.1, 0.3, 0.5, 0.7, 0.9], {}),
    "vocabulary": ([1_000, 10_000, 50_000, 150_000], {"steps": 8}),
    "tokens": ([128, 256, 512, 1024, 2048], {"steps": 12}),
}
NAMES = {
    "pairs": "pairs in the data",
    "prompt_share": "share of the prompt in a sequence",
    "vocabulary": "vocabulary",
    "tokens": "tokens of prompt and completion",
}


def made_up(num: int, tokens: int, prompt_share: float, vocabulary: int, *, spread: float = 0.2):
    """`num` pairs whose prompt with either completion has about `tokens` tokens, more or less by `spread`."""
    from dpo_lab.preferences import TokenData

    generator = np.random.default_rng(0)
    lengths = (
        tokens
        * generator.uniform(1 - spread, 1 + spread, (num, 1))
        * [prompt_share, 1 - prompt_share, 1 - prompt_share]
    ).astype(np.int64)
    ends = np.concatenate([np.zeros((num, 1), np.int64), np.maximum(lengths, 1).cumsum(1)], 1)
    starts = np.concatenate([[0], ends[:-1, -1].cumsum()])
    ids = generator.integers(3, vocabulary, int(ends[:, -1].sum()), dtype=np.int32)
    return TokenData(ids, ends + starts[:, None], np.ones(num, np.float32), np.arange(num))


def point(pairs: int, tokens: int, prompt_share: float, vocabulary: int, steps: int, layout: str) -> dict[str, float]:
    """Train `steps` steps of 8 pairs; how fast, at how much memory, how long until the first step, and how many
    operations a pair needs in this layout, forward and backward.

    The token ids are mapped from the disk, as those of a run are.
    """
    from dpo_lab.config import DPOConfig
    from dpo_lab.course.speed.flops import FORWARD_AND_BACKWARD, forward_flops
    from dpo_lab.loop import Step
    from dpo_lab.preferences import TokenData
    from dpo_lab.training import train_dpo
    from tests.benchmarks.workload import make_model

    with tempfile.TemporaryDirectory() as folder:
        made_up(pairs, tokens, prompt_share, vocabulary).save(folder)
        data = TokenData.load(folder, verify=False)
    model = make_model(vocab_size=vocabulary, **SMALL)
    # Without a reference: its pass over all pairs is the cache's business and is measured there.
    config = DPOConfig(loss="simpo", batch_size=8, max_steps=steps + 2, layout=layout, device="cpu", max_length=4096)
    began = time.perf_counter()
    stamps, scored = [], []
    for event in train_dpo(model, None, data, config):
        if isinstance(event, Step):
            stamps.append(time.perf_counter())
            scored.append(event.step)
    seconds, memory = stamps[-1] - stamps[1], peak_memory()
    return {
        "pairs_per_second": 8 * (len(stamps) - 2) / seconds,
        "peak_memory": memory,
        "seconds_to_first_step": stamps[0] - began,
        "flops_per_pair": FORWARD_AND_BACKWARD * float(forward_flops(model.config, data, layout).mean()),
    }


def cache_timings() -> dict[str, float]:
    """A cold start, a warm one at another β, one with a tenth more pairs: seconds to the first step, pairs computed."""
    from dpo_lab.config import DPOConfig
    from dpo_lab.loop import Step
    from dpo_lab.reference import ReferenceCache
    from dpo_lab.training import train_dpo
    from tests.benchmarks.workload import make_model

    data = made_up(2200, 128, 0.5, 4096)
    first, found = data.select(range(2000)), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part, beta in (("cold", first, 0.1), ("warm", first, 0.3), ("tenth", data, 0.1)):
            computed = 0

            def count(done: int, _: int) -> None:
                nonlocal computed
                computed = done

            model = make_model(vocab_size=4096, **SMALL)
            with ReferenceCache(Path(folder) / "reference.sqlite") as cache:
                count(0, 0)
                began = time.perf_counter()
                config = DPOConfig(batch_size=8, max_steps=1, beta=beta, device="cpu")
                # on_reference is told of every pass through the reference, so it counts the pairs computed.
                stream = train_dpo(model, None, part, config, cache=cache, on_reference=count)
                next(event for event in stream if isinstance(event, Step))
                found[f"{name}_seconds"] = time.perf_counter() - began
            found[f"{name}_computed"] = computed
    return found


def start_up() -> dict[str, float]:
    """Seconds of `import dpo_lab`, of `dpo-lab --help`, of Python alone, and of the libraries that a run cannot do
    without, imported as the command does it and left without clearing up; the best of five."""
    command = Path(sys.executable).with_name("dpo-lab")
    libraries = "import gc, os; gc.disable(); import torch, accelerate; from transformers import LlamaForCausalLM"
    programs = {
        "python": [sys.executable, "-c", "pass"],
        "libraries": [sys.executable, "-c", f"{libraries}; os._exit(0)"],
        "import_dpo_lab": [sys.executable, "-c", "import dpo_lab"],
        "help": [str(command), "--help"],
        "train_help": [str(command), "train", "--help"],
    }
    found = {}
    for name, program in programs.items():
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(program, cwd=ROOT, capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        found[name] = min(times)
    with tempfile.TemporaryDirectory() as folder:
        found["train_cold"] = first_step_of_a_command(Path(folder), "cold", beta=0.5)
        found["train_warm"] = min(first_step_of_a_command(Path(folder), f"warm-{k}", beta=0.2 + k) for k in range(3))
    return found


def first_step_of_a_command(folder: Path, name: str, beta: float) -> float:
    """Seconds from the start of `dpo-lab train`, with all the embedded pairs, to its first line of metrics."""
    command = [str(Path(sys.executable).with_name("dpo-lab")), "train", "--max-steps", "1", "--beta", str(beta)]
    command += ["--samples", "0", "--kl-prompts", "0", "--device", "cpu", "--run", str(folder / name)]
    command += ["--cache", str(folder / "reference.sqlite")]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        metrics = folder / name / "metrics.jsonl"
        while not (metrics.exists() and '"kind": "step"' in metrics.read_text()):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command[1:])} ended without a step")
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        process.wait()


def in_a_process(call: str, threads: int) -> dict[str, float]:
    """Evaluate a call of this module in a fresh process."""
    code = f"import json; from tests.benchmarks.growth import *; print(json.dumps({call}))"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(threads: int) -> dict[str, Any]:
    series = {}
    for name in SERIES:
        series |= measure_series(name, threads)
    return {
        "machine": machine(), "threads": threads, "series": series, "again": {},
        "cache": in_a_process("cache_timings()", threads), "start_up": start_up(),
    }  # fmt: skip


def measure_series(name: str, threads: int) -> dict[str, list[dict[str, float]]]:
    """The points of a series, in both layouts for the prompt's share: in turn, for a machine has slow minutes."""
    values, changes = SERIES[name]
    series: dict[str, list[dict[str, float]]] = {}
    for value in values:
        for layout in ("shared", "separate") if name == "prompt_share" else ("shared",):
            settings = PLAIN | changes | {name: value, "layout": layout}
            row = {name: value} | in_a_process(f"point(**{settings!r})", threads)
            series.setdefault(name if layout == "shared" else f"{name}, separate rows", []).append(row)
            print(name, layout, row, flush=True)
    return series


def measure_again(name: str, threads: int, folder: Path) -> dict[str, Any]:
    """The kept result with one series measured anew on the same kind of machine; it says so."""
    found = json.loads((folder / "growth.json").read_text(encoding="utf-8"))
    now = machine()
    if found["machine"]["processor"] != now["processor"] or found["threads"] != threads:
        raise SystemExit("the kept result is of another machine or number of threads; measure all series")
    found["series"] |= measure_series(name, threads)
    return found | {"again": found.get("again", {}) | {name: now["commit"]}}


def verdicts(found: dict[str, Any]) -> list[str]:
    """One line per target: its number, and whether it is met."""
    few, many = (next(r for r in found["series"]["pairs"] if r["pairs"] == num) for num in (1_000, 100_000))
    speed, memory = (many[what] / few[what] for what in ("pairs_per_second", "peak_memory"))
    cache, warm = found["cache"], found["start_up"]["train_warm"]
    told = [
        (speed >= 0.9, f"pairs/s at 100,000 pairs, against 1,000: {speed:.2f}; target: at least 0.9"),
        (memory <= 1.15, f"memory at 100,000 pairs, against 1,000: {memory:.2f}; target: at most 1.15"),
        (warm <= 3, f"first step at another β, cache filled: {warm:.2f} s; target: at most 3 s"),
        (
            cache["warm_computed"] == 0,
            f"log-probs of the reference computed at another β: {cache['warm_computed']}; target: none",
        ),
        (
            cache["tenth_computed"] == 200,
            f"log-probs of the reference computed for 200 pairs more: {cache['tenth_computed']}; target: 200",
        ),
    ]
    return [f"{'met   ' if is_met else 'missed'}  {line}" for is_met, line in told]


def table(found: dict[str, Any]) -> str:
    lines = [
        "# Growth",
        "",
        heading("python -m tests.benchmarks.growth", found["machine"]),
        *(f"Then `--series {name}` at commit {commit}." for name, commit in found.get("again", {}).items()),
        "",
        f"A Llama of 2 layers of width 128, made-up tokens, batches of 8 pairs, float32, {found['threads']} threads. "
        f"Where a table does not vary it: {PLAIN['pairs']} pairs of {PLAIN['tokens']} tokens, half of them prompt, "
        f"vocabulary {PLAIN['vocabulary']}. Trained with SimPO, which needs no reference; the cache has a table of its "
        "own, and `million_pairs.md` trains DPO from ten thousand pairs to a million.",
        "",
        "The last two columns explain the shapes. Attention's operations grow with the square of the length and the "
        "output layer's with the vocabulary, and a shared prompt is computed once; where the operations a second stay "
        "level, growth is that of the work. The pieces of a small point are small, so it reaches a lower rate.",
    ]
    for name, rows in found["series"].items():
        key = name.split(",")[0]
        lines += [
            "",
            f"| {NAMES[key]}{name.removeprefix(key)} | pairs/s | peak memory (GiB) | first step after (s) | "
            "GFLOP a pair needs | GFLOP/s |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row[key]:g} | {row['pairs_per_second']:.1f} | {row['peak_memory'] / 2**30:.2f} | "
            f"{row['seconds_to_first_step']:.2f} | {row['flops_per_pair'] / 1e9:.2f} | "
            f"{row['flops_per_pair'] * row['pairs_per_second'] / 1e9:.0f} |"
            for row in rows
        ]
    cache, start = found["cache"], found["start_up"]
    lines += [
        "",
        "| the cache, 2,000 pairs | pairs computed | first step after (s) |",
        "|---|---|---|",
        f"| empty | {cache['cold_computed']} | {cache['cold_seconds']:.2f} |",
        f"| filled, another β | {cache['warm_computed']} | {cache['warm_seconds']:.2f} |",
        f"| filled, 200 pairs more | {cache['tenth_computed']} | {cache['tenth_seconds']:.2f} |",
        "",
        "| start-up | seconds |",
        "|---|---|",
        f"| Python alone | {start['python']:.2f} |",
        f"| torch, accelerate and a Llama of transformers, imported alone | {start['libraries']:.2f} |",
        f"| `import dpo_lab` | {start['import_dpo_lab']:.2f} |",
        f"| `dpo-lab --help` | {start['help']:.2f} |",
        f"| `dpo-lab train --help` | {start['train_help']:.2f} |",
        f"| `dpo-lab train` on all embedded pairs, until the first step, empty cache | {start['train_cold']:.2f} |",
        f"| the same at another β, cache filled | {start['train_warm']:.2f} |",
        "",
        "```",
        *verdicts(found),
        "```",
        "",
        "![Growth of speed and memory](growth.png)",
    ]
    return "\n".join(lines) + "\n"


def figure(found: dict[str, Any]) -> Picture:
    """Pairs per second above and peak memory below, over each quantity."""
    picture = new_figure(9.6, 4.8)
    axes = picture.subplots(2, 4)
    for column, name in enumerate(SERIES):
        rows = found["series"][name]
        x = [row[name] for row in rows]
        speed, memory = axes[0][column], axes[1][column]
        speed.plot(x, [row["pairs_per_second"] for row in rows], "-o", color=BLUE, label="shared prompts")
        if separate := found["series"].get(f"{name}, separate rows"):
            speed.plot(x, [row["pairs_per_second"] for row in separate], "--s", color=ORANGE, label="separate rows")
            speed.legend(fontsize=7)
        memory.plot(x, [row["peak_memory"] / 2**30 for row in rows], "-o", color=BLUE)
        for ax in (speed, memory):
            if name != "prompt_share":
                ax.set_xscale("log")
                ax.set_xticks(x, [f"{value // 1000}k" if value % 1000 == 0 else f"{value}" for value in x])
                ax.minorticks_off()
            ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
        dress(
            speed,
            NAMES[name].capitalize() if len(NAMES[name]) < 20 else name.replace("_", " ").capitalize(),
            "",
            "pairs per second" if column == 0 else "",
        )
        dress(memory, "", NAMES[name], "peak memory, GiB" if column == 0 else "")
    add_title(picture, "Speed and memory as the work grows")
    return picture


def write(found: dict[str, Any], folder: Path) -> None:
    text, picture = table(found), to_png(figure(found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "growth.md").write_text(text, encoding="utf-8")
    (folder / "growth.png").write_bytes(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=KEPT)
    parser.add_argument("--series", choices=SERIES, help="measure this one anew and keep the others")
    arguments = parser.parse_args()
    if arguments.series:
        found = measure_again(arguments.series, arguments.threads, arguments.results)
    else:
        found = measure(arguments.threads)
    write(found, arguments.results)
    print(table(found))


if __name__ == "__main__":
    main()
