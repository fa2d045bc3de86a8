"""DPO Lab and TRL on a real model, SmolLM2-135M, on a CPU: training in both precisions, memory, and sampling.

    make bench                                               once, written to build/benchmarks/results
    python -m tests.benchmarks.real_speed --repetitions 5    the same by itself, written to data/results (an hour)

As real_speed.{md,json,png}. Pairs of HH harmless-base, at most 384 tokens, batches of 8. Every contestant is a process
of its own, all of a repetition in turn, on the same pairs, others each time. Only the steps count: what a run of ours
does once besides (hash of the reference, checkpoint, report) weighs nothing in a long run and much in one of 24 pairs,
so it has a column of its own. TRL writes nothing here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lab.workbench.plots import Picture, add_title, dress, new_figure, to_png
from dpo_lab.workbench.plots.style import BLUE, ORANGE, PURPLE
from tests.benchmarks.machine import KEPT, heading, machine
from tests.benchmarks.speed import draw_bar, measure_rate, run_contestant


class Contestant(NamedTuple):
    """What runs, in which precision, on one of `PARTS` parts of `pairs` pairs."""

    label: str
    name: str
    precision: str
    pairs: int
    color: str


PARTS = 4


CONTESTANTS = {
    "ours bfloat16": Contestant("DPO Lab", "dpo_lab", "bfloat16", 96, BLUE),
    "trl bfloat16": Contestant("TRL", "trl_precomputed", "bfloat16", 96, ORANGE),
    "grouped bfloat16": Contestant("TRL, grouped by length", "trl_precomputed_grouped", "bfloat16", 96, PURPLE),
    "ours float32": Contestant("DPO Lab", "dpo_lab", "float32", 64, BLUE),
    "trl float32": Contestant("TRL", "trl_precomputed", "float32", 64, ORANGE),
    "grouped float32": Contestant("TRL, grouped by length", "trl_precomputed_grouped", "float32", 64, PURPLE),
}
SAMPLING = {
    f"{who} {model}": (name, model, precision)
    for model, precision in (("real", "bfloat16"), ("embedded", "float32"))
    for who, name in (("sampler", "sampling"), ("generate", "sampling_plainly"))
}
Row = dict[str, Any]


class Target(NamedTuple):
    """What is to be reached, and how it follows from a repetition."""

    what: str
    least: float
    """A negative one is a most."""
    value: Callable[[Row], float]


def speed(row: Row, name: str) -> float:
    """Pairs per second of a contestant's steps, or tokens per second of a sampler."""
    found = row[name]
    return found.get("tokens", found["pairs"]) / found.get("seconds_of_steps", found["seconds"])


def memory(row: Row, name: str) -> float:
    return row[name]["peak_memory"] / 2**30


def useful(row: Row, precision: str) -> float:
    """Useful operations per second as a share of what products of this precision reach."""
    name = f"ours {precision}"
    return 3 * row[name]["flops_per_pair"] * speed(row, name) / row[f"matrix_rate {precision}"]


def ratio(one: str, other: str, of: Callable[[Row, str], float] = speed) -> Callable[[Row], float]:
    return lambda row: of(row, one) / of(row, other)


TARGETS = (
    Target(
        "useful operations in bfloat16 / the measured rate of its products", 0.5, lambda row: useful(row, "bfloat16")
    ),
    Target("bfloat16 / our float32", 2.5, ratio("ours bfloat16", "ours float32")),
    Target("bfloat16 / TRL", 10.0, ratio("ours bfloat16", "trl bfloat16")),
    Target("bfloat16 / TRL grouped by length", 10.0, ratio("ours bfloat16", "grouped bfloat16")),
    Target("float32 / TRL", 11.0, ratio("ours float32", "trl float32")),
    Target("peak memory in bfloat16 / TRL's", -0.4, ratio("ours bfloat16", "trl bfloat16", memory)),
    Target("peak memory in float32 / TRL's", -0.4, ratio("ours float32", "trl float32", memory)),
    Target("sampling, SmolLM2 / generate", 3.0, ratio("sampler real", "generate real")),
    Target("sampling, embedded model / generate", 2.0, ratio("sampler embedded", "generate embedded")),
    Target("memory of sampling, SmolLM2 / generate", -1.0, ratio("sampler real", "generate real", memory)),
)


def measure(repetitions: int, *, threads: int = 2, shrink: int = 1) -> dict[str, Any]:
    """All contestants in turn, `repetitions` times; `shrink` divides the numbers of pairs, to try this file."""
    rows = []
    for repetition in range(repetitions):
        row: Row = {f"matrix_rate {dtype}": measure_rate(threads, dtype) for dtype in ("bfloat16", "float32")}
        for key, one in CONTESTANTS.items():
            row[key] = run_contestant(one.name, threads=threads, pairs=one.pairs // shrink, part=repetition % PARTS,
                                      parts=PARTS, model="real", precision=one.precision)  # fmt: skip
        for key, (name, model, precision) in SAMPLING.items():
            row[key] = run_contestant(name, threads=threads, pairs=64 // shrink, model=model, precision=precision)
        rows.append(row)
        print(f"repetition {repetition + 1} of {repetitions}: "
              + ", ".join(f"{key} {speed(row, key):.2f}" for key in (*CONTESTANTS, *SAMPLING)), flush=True)  # fmt: skip
    return {"machine": machine(), "threads": threads, "repetitions": rows}


def reached(found: dict[str, Any]) -> dict[str, list[float]]:
    """Each target's number, per repetition."""
    return {one.what: [one.value(row) for row in found["repetitions"]] for one in TARGETS}


def is_met(target: Target, value: float) -> bool:
    return value >= target.least if target.least > 0 else value <= -target.least


def table(found: dict[str, Any]) -> str:
    """The result as markdown."""
    rows = found["repetitions"]
    of_how_many = f"Medians of {len(rows)} repetitions" if len(rows) > 1 else "One repetition"
    median = lambda of: statistics.median(map(of, rows))
    lines = [
        "# Speed on a real model", "", heading(f"python -m tests.benchmarks.real_speed --repetitions {len(rows)}",
                                              found["machine"]), "",
        f"SmolLM2-135M-Instruct, pairs of HH harmless-base, at most 384 tokens, batches of 8, {found['threads']} "
        f"threads; reference log-probs are there before, and only steps count. {of_how_many}, all in turn. "
        "This machine multiplies matrices at "
        f"{median(lambda row: row['matrix_rate bfloat16']) / 1e9:.0f} GFLOP/s in bfloat16 and at "
        f"{median(lambda row: row['matrix_rate float32']) / 1e9:.0f} in float32.", "",
        "| | precision | pairs/s | peak memory (GiB) | pairs | once a run (s) |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for key, one in CONTESTANTS.items():
        once = median(lambda row, key=key: row[key]["seconds"] - row[key].get("seconds_of_steps", row[key]["seconds"]))
        lines.append(f"| {one.label} | {one.precision} | {median(lambda row, key=key: speed(row, key)):.2f} "
                     f"| {median(lambda row, key=key: memory(row, key)):.1f} | {rows[0][key]['pairs']} "
                     f"| {once:.0f} |")  # fmt: skip
    lines += ["", "Sampling: 64 prompts, 8 answers of at most 64 tokens to each, temperature 1, 64 rows at a time.", "",
              "| | model | tokens/s | peak memory (GiB) |", "|---|---|---|---|"]  # fmt: skip
    for key, (name, model, precision) in SAMPLING.items():
        who = "DPO Lab" if name == "sampling" else "transformers' generate"
        what = f"{'SmolLM2-135M' if model == 'real' else 'embedded'}, {precision}"
        lines.append(f"| {who} | {what} | {median(lambda row, key=key: speed(row, key)):.0f} | "
                     f"{median(lambda row, key=key: memory(row, key)):.1f} |")  # fmt: skip
    lines += ["", "| ratio | median | all repetitions | to reach | |", "|---|---|---|---|---|"]
    for target, values in zip(TARGETS, reached(found).values(), strict=True):
        middle = statistics.median(values)
        aim = f"at least {target.least:g}" if target.least > 0 else f"at most {-target.least:g}"
        lines.append(f"| {target.what} | {middle:.2f} | {min(values):.2f} to {max(values):.2f} | {aim} | "
                     f"{'reached' if is_met(target, middle) else 'not reached'} |")  # fmt: skip
    return "\n".join([*lines, "", "![Pairs per second and memory of DPO Lab and TRL](real_speed.png)"]) + "\n"


def figure(found: dict[str, Any]) -> Picture:
    """Pairs per second and memory as bars, one dot per repetition."""
    picture = new_figure(9.6, 3.6)
    axes = picture.subplots(1, 2)
    for axis, title, unit, of in (
        (axes[0], "Training speed", "pairs per second", speed),
        (axes[1], "Peak memory", "GiB", memory),
    ):
        for x, (key, one) in enumerate(CONTESTANTS.items()):
            draw_bar(axis, x, [of(row, key) for row in found["repetitions"]], one.color)
        names = [f"{one.label.replace(', grouped by length', chr(10) + 'grouped')}\n{one.precision}"
                 for one in CONTESTANTS.values()]  # fmt: skip
        axis.set_xticks(range(len(names)), names, fontsize=7)
        dress(axis, title, "", unit)
    add_title(picture, f"SmolLM2-135M, {found['threads']} CPU threads")
    return picture


def write(found: dict[str, Any], folder: Path) -> None:
    text, picture = table(found), to_png(figure(found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "real_speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "real_speed.md").write_text(text, encoding="utf-8")
    (folder / "real_speed.png").write_bytes(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--results", type=Path, default=KEPT)
    given = parser.parse_args()
    found = measure(given.repetitions, threads=given.threads, shrink=given.shrink)
    write(found, given.results)
    print(table(found))


if __name__ == "__main__":
    main()
