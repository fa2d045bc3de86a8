"""DPO Lab and TRL in turn, each in a process of its own: pairs per second, memory, and the share of the machine's rate.

    make bench                                          the whole comparison, written to build/benchmarks/results
    python -m tests.benchmarks.speed --repetitions 5    the same by itself, written to data/results

As cpu_speed.{md,json,png}.

A repetition runs every contestant once, one after the other, so that a slow minute of the machine hits all of them. We
train on all pairs in every repetition; TRL, which takes many times as long, on another fifth of them each time, each
with short and long pairs in the same shares (all pairs with --trl-parts 1), and pairs per second are compared. TRL with
its pairs grouped by length, as ours are, needs all of them: a fifth holds too few to group.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.workbench.plots import Picture, add_title, dress, new_figure, to_png
from dpo_lab.workbench.plots.style import BLUE, GREY, ORANGE, PURPLE, VERMILLION
from tests.benchmarks.machine import KEPT, ROOT, heading, machine

LABELS = {
    "dpo_lab": "DPO Lab",
    "trl_precomputed": "TRL, precomputed log-probs",
    "trl_live": "TRL, live reference",
    "trl_precomputed_grouped": "TRL, precomputed log-probs, grouped by length",
}
PAIRS, TRL_PARTS = 320, 5
TARGETS = {
    "training": (7.0, "training, against TRL with precomputed log-probs", "at least {:g} times"),
    "with_reference": (6.0, "cache pass and one epoch, against TRL with a live reference", "at least {:g} times"),
    "memory": (0.55, "peak memory, against TRL with precomputed log-probs", "at most {:g} of it"),
    "rate": (0.50, "useful operations, against the measured matrix rate", "at least {:g} of it"),
}


def run_contestant(name: str, *, threads: int = 2, **options: Any) -> dict[str, float]:
    """Start a contestant in a fresh process and read what it took; options as `contestants` takes them."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.contestants", name]
    options["threads"] = threads
    command += [str(word) for option, value in options.items() for word in (f"--{option}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_rate(threads: int, dtype: str = "float32") -> float:
    """The matrix rate, in a process of its own too, so that this one stays small and idle."""
    code = f"from tests.benchmarks.machine import matrix_rate; print(matrix_rate({threads}, {dtype!r}))"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def measure(repetitions: int, *, pairs: int = PAIRS, trl_parts: int = TRL_PARTS, threads: int = 2) -> dict[str, Any]:
    """All contestants in turn, `repetitions` times."""
    rows = []
    for repetition in range(repetitions):
        row: dict[str, Any] = {"matrix_rate": measure_rate(threads)}
        for name in LABELS:
            parts = trl_parts if name in ("trl_precomputed", "trl_live") else 1
            row[name] = run_contestant(name, pairs=pairs, part=repetition % parts, parts=parts, threads=threads)
        rows.append(row)
        print(f"repetition {repetition + 1} of {repetitions}: " + _in_words(row), flush=True)
    return {"machine": machine(), "threads": threads, "repetitions": rows, **_work(pairs)}


def _work(pairs: int) -> dict[str, Any]:
    """What one epoch needs, counted in a process of its own: this one does not load torch."""
    code = (
        "import json; from dpo_lab.course.speed.flops import forward_flops; from tests.benchmarks.workload import *; "
        f"data = load_pairs(prepare(), {pairs}); model = make_model(); "
        "f = forward_flops(model.config, data); print(json.dumps(dict("
        "parameters=sum(p.numel() for p in model.parameters()), pairs=len(data), data=source().name, "
        "tokens=int(data.prompt_lengths.sum() + data.completion_lengths.sum()), "
        "prompt_tokens=int(data.prompt_lengths.sum()), forward_flops=float(f.sum()))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {"work": json.loads(done.stdout.strip().splitlines()[-1])}


def pairs_per_second(row: dict[str, Any], name: str, what: str = "seconds") -> float:
    return row[name]["pairs"] / row[name][what]


def reached(found: dict[str, Any]) -> dict[str, list[float]]:
    """The number that each target is about, per repetition."""
    flops = found["work"]["forward_flops"]
    rows = found["repetitions"]
    rate = lambda row, name, what="seconds": pairs_per_second(row, name, what)
    return {
        "training": [rate(row, "dpo_lab") / rate(row, "trl_precomputed") for row in rows],
        "grouped": [rate(row, "dpo_lab") / rate(row, "trl_precomputed_grouped") for row in rows],
        "with_reference": [rate(row, "dpo_lab", "seconds_with_reference") / rate(row, "trl_live") for row in rows],
        "memory": [row["dpo_lab"]["peak_memory"] / row["trl_precomputed"]["peak_memory"] for row in rows],
        # forward, and backward at twice its cost
        "rate": [3 * flops / row["dpo_lab"]["seconds"] / row["matrix_rate"] for row in rows],
    }


def verdicts(found: dict[str, Any]) -> list[str]:
    """One line per target: its number, and whether it is met."""
    lines = []
    for key, values in reached(found).items():
        median = statistics.median(values)
        if key not in TARGETS:
            lines.append(
                f"beside  training, against TRL grouped by length: {median:.2f} "
                f"({min(values):.2f} to {max(values):.2f}); no target"
            )
            continue
        target, what, rule = TARGETS[key]
        is_met = median <= target if rule.startswith("at most") else median >= target
        span = f"{min(values):.2f} to {max(values):.2f}"
        lines.append(
            f"{'met   ' if is_met else 'missed'}  {what}: {median:.2f} ({span}); target: {rule.format(target)}"
        )
    return lines


def table(found: dict[str, Any]) -> str:
    """The result as markdown."""
    rows, work = found["repetitions"], found["work"]
    median = lambda values: statistics.median(list(values))

    def line(label: str, name: str, what: str = "seconds", memory: str = "") -> str:
        speed = median(pairs_per_second(row, name, what) for row in rows)
        memory = memory or f"{median(row[name]['peak_memory'] for row in rows) / 2**30:.2f}"
        return f"| {label} | {speed:.2f} | {memory} |"

    rate = median(row["matrix_rate"] for row in rows)
    trl_parts = round(work["pairs"] / rows[0]["trl_live"]["pairs"])
    command = f"python -m tests.benchmarks.speed --repetitions {len(rows)}"
    command += "" if work["pairs"] == PAIRS else f" --pairs {work['pairs']}"
    command += "" if trl_parts == TRL_PARTS else f" --trl-parts {trl_parts}"
    lines = [
        "# Speed on a CPU",
        "",
        heading(command, found["machine"]),
        "",
        f"A Llama of {work['parameters'] / 1e6:.1f} M parameters (vocabulary 8,192, hidden 256, 8 layers), "
        f"{work['pairs']} pairs of {work['data']} ({work['tokens']} tokens, {work['prompt_tokens']} of them in "
        f"prompts), batches of 8, at most 512 tokens, float32, {found['threads']} threads. Medians of {len(rows)} "
        f"repetitions; DPO Lab trains on all pairs, and so does TRL grouped by length; TRL in a random order, its "
        f"default, on {rows[0]['trl_live']['pairs']} of them, others each time. DPO Lab groups by length by default.",
        "",
        "| | pairs/s | peak memory (GiB) |",
        "|---|---|---|",
        line("DPO Lab, cache filled", "dpo_lab"),
        line("DPO Lab, cache pass and one epoch", "dpo_lab", "seconds_with_reference", "the same process"),
        *(line(LABELS[name], name) for name in ("trl_precomputed", "trl_precomputed_grouped", "trl_live")),
        "",
        f"The work of one epoch: {work['forward_flops'] / 1e9:.0f} GFLOP forward and twice that backward. The machine "
        f"multiplies matrices at {rate / 1e9:.0f} GFLOP/s, so the epoch cannot take less than "
        f"{3 * work['forward_flops'] / rate:.1f} s.",
        "",
        "```",
        *verdicts(found),
        "```",
        "",
        "![Pairs per second of DPO Lab and TRL](cpu_speed.png)",
    ]
    return "\n".join(lines) + "\n"


def figure(found: dict[str, Any]) -> Picture:
    """Pairs per second and memory as bars, one dot per repetition."""
    rows = found["repetitions"]
    picture = new_figure(9.6, 3.6)
    speed, memory = picture.subplots(1, 2, width_ratios=(1.5, 1))
    bars = [
        ("DPO Lab,\ncache filled", "dpo_lab", "seconds", BLUE),
        ("TRL, log-probs\nprecomputed", "trl_precomputed", "seconds", ORANGE),
        ("TRL, grouped\nby length", "trl_precomputed_grouped", "seconds", PURPLE),
        ("DPO Lab, cache\nand one epoch", "dpo_lab", "seconds_with_reference", BLUE),
        ("TRL, live\nreference", "trl_live", "seconds", VERMILLION),
    ]
    for x, (_, name, what, color) in enumerate(bars):
        draw_bar(speed, x, [pairs_per_second(row, name, what) for row in rows], color)
    speed.set_xticks(range(len(bars)), [label for label, *_ in bars])
    shown = {"dpo_lab": BLUE, "trl_precomputed": ORANGE, "trl_precomputed_grouped": PURPLE, "trl_live": VERMILLION}
    for x, (name, color) in enumerate(shown.items()):
        draw_bar(memory, x, [row[name]["peak_memory"] / 2**30 for row in rows], color)
    memory.set_xticks(range(4), ["DPO Lab", "TRL, pre-\ncomputed", "TRL,\ngrouped", "TRL,\nlive"])
    dress(speed, "Training speed", "", "pairs per second")
    dress(memory, "Peak memory", "", "GiB")
    work = found["work"]
    add_title(picture, f"{work['parameters'] / 1e6:.1f} M parameters, {found['threads']} CPU threads, float32")
    return picture


def draw_bar(ax: Any, x: int, values: list[float], color: str) -> None:
    median = statistics.median(values)
    ax.bar(x, median, width=0.62, color=color, zorder=2)
    ax.plot(np.full(len(values), x), values, "o", color=GREY, markersize=3.5, zorder=3)
    ax.annotate(f"{median:.2f}", (x, max(*values, median)), (0, 4), textcoords="offset points", ha="center", fontsize=8)
    ax.set_ylim(0, max(ax.get_ylim()[1], 1.15 * max(values)))


def write(found: dict[str, Any], folder: Path) -> None:
    text, picture = table(found), to_png(figure(found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu_speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "cpu_speed.md").write_text(text, encoding="utf-8")
    (folder / "cpu_speed.png").write_bytes(picture)


def _in_words(row: dict[str, Any]) -> str:
    speeds = ", ".join(f"{label} {pairs_per_second(row, name):.2f} pairs/s" for name, label in LABELS.items())
    return f"{speeds}; matrix products {row['matrix_rate'] / 1e9:.0f} GFLOP/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--trl-parts", type=int, default=TRL_PARTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=KEPT)
    given = parser.parse_args()
    found = measure(given.repetitions, pairs=given.pairs, trl_parts=given.trl_parts, threads=given.threads)
    write(found, given.results)
    print(table(found))


if __name__ == "__main__":
    main()
