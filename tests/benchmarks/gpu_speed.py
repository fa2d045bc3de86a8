"""DPO Lab and TRL on a GPU: pairs per second, peak memory, and the share of the device's own rate of matrix products.

    python -m tests.benchmarks.gpu_speed                                          on a GPU
    python -m tests.benchmarks.gpu_speed --tiny --device cpu --results DIR        tries every line, anywhere

Llamas of 135 M and 1 B weights from random values, bfloat16 products over float32 weights on both sides, on the lengths
of HH pairs and on sequences of 2,048 tokens. Each contestant is a process of its own, all of a repetition in turn; the
clock runs from the end of the first third of its steps to the end of the last, the peak of memory is of these steps.
TRL has precomputed log-probs and no gradient checkpointing; where a batch does not fit into memory, half of it at a
time, and so on. Memory is compared with TRL at as many pairs at a time as ours, or fewer. TRL takes its pairs in a
random order, its default; we group them by length, ours. Without TRL (and `datasets`, which it needs) we are measured
alone. Writes gpu_speed.{md,json,png}.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.workbench.plots import Picture, add_title, dress, new_figure, to_png
from dpo_lab.workbench.plots.style import BLUE, GREY, ORANGE, SKY, VERMILLION
from tests.benchmarks.machine import KEPT, ROOT, heading, machine

OURS = {"dpo_lab": "DPO Lab", "dpo_lab_compiled": "DPO Lab, compiled"}
TRL, TRL_AS_OURS = "trl_precomputed", "trl_as_many_at_a_time"
LABELS = OURS | {TRL: "TRL, precomputed log-probs", TRL_AS_OURS: "TRL, as many pairs at a time as ours"}
DATA = {"hh": "HH lengths", "long": "equal lengths"}
LONG = 2048
BATCH = 16

# As SmolLM-135M and Llama 3.2 1B are, by the configurations their makers publish; `tiny` is for trying this file.
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "tiny": {"vocab_size": 8192, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2},
}  # fmt: skip
SPEED, MEMORY = 2.0, 0.5
SHARE = {"135m": 0.4, "1b": 0.5, "tiny": 0.0}


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it."""

    device: str = "cuda"
    models: tuple[str, ...] = ("135m", "1b")
    steps: int = 18
    long: int = LONG
    sizes: tuple[int, ...] = (4096, 8192)
    contestants: tuple[str, ...] = (*OURS, TRL)


def pairs_of(kind: str, plan: Plan) -> Any:
    """Token ids of as many pairs as the steps take; the tokenizer's folder is that of the benchmarks' own."""
    from tests.benchmarks.growth import made_up
    from tests.benchmarks.workload import load_pairs, prepare

    num = plan.steps * BATCH
    if kind == "hh":
        return load_pairs(prepare(), num)
    return made_up(num, plan.long, 0.5, 8192, spread=0.0)  # ids that every vocabulary here has


def dpo_lab(name: str, kind: str, plan: Plan, *, is_compiled: bool) -> dict[str, float]:
    """The steps of `train_dpo` as a user gets them, metrics and waiting for every step included."""
    import torch

    from dpo_lab.config import DPOConfig
    from dpo_lab.course.speed.memory import peak_device_memory, reset_peak
    from dpo_lab.course.speed.rates import wait
    from dpo_lab.loop import Step
    from dpo_lab.training import train_dpo
    from tests.benchmarks.workload import make_model

    device = torch.device(plan.device)
    config = DPOConfig(
        batch_size=BATCH, max_steps=plan.steps, learning_rate=1e-5, max_length=4096, precision="bfloat16",
        device=plan.device, compile=is_compiled,
    )  # fmt: skip
    model, data = make_model(**SHAPES[name], max_position_embeddings=4096).to(device), pairs_of(kind, plan)
    ends = []
    for event in train_dpo(model, None, data, config):
        if isinstance(event, Step):
            wait(device)
            ends.append(time.perf_counter())
            if len(ends) == plan.steps // 3:
                reset_peak(device)
    return _between(ends, plan) | {"peak_memory": peak_device_memory(device), "at_a_time": most_at_a_time(data, config)}


def most_at_a_time(data: Any, config: Any) -> int:
    """The most pairs that one pass of ours takes."""
    from dpo_lab.batching import epoch_batches, row_lengths, split_passes

    lengths = row_lengths(data)
    batches = epoch_batches(lengths, config.batch_size, seed=config.seed, group_by_length=config.group_by_length)
    cut = lambda batch: split_passes(batch, lengths, tokens_per_pass=config.tokens_per_pass)
    return max(len(part) for batch in batches for part in cut(batch))


def trl(name: str, kind: str, plan: Plan, at_a_time: int) -> dict[str, float]:
    """The steps of TRL's trainer, `at_a_time` pairs through the model at once."""
    import torch
    from transformers import AutoTokenizer, TrainerCallback

    from dpo_lab.course.speed.memory import peak_device_memory, reset_peak
    from dpo_lab.course.speed.rates import wait
    from tests.benchmarks import trl_side
    from tests.benchmarks.workload import make_model, prepare

    device, ends = torch.device(plan.device), []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait(device)
            ends.append(time.perf_counter())
            if len(ends) == plan.steps // 3:
                reset_peak(device)

    with tempfile.TemporaryDirectory() as work:
        config = trl_side.settings(
            Path(work), precompute_ref_log_probs=True, use_cpu=device.type == "cpu", bf16=True, learning_rate=1e-5,
            per_device_train_batch_size=at_a_time, gradient_accumulation_steps=BATCH // at_a_time, seed=0,
            precompute_ref_batch_size=at_a_time,
        )  # fmt: skip
        trainer = trl_side.make_trainer(
            trl_side.GivenTokens,
            make_model(**SHAPES[name], max_position_embeddings=4096).to(device),
            None,
            trl_side.rows_of(pairs_of(kind, plan)),
            AutoTokenizer.from_pretrained(prepare() / "tokenizer"),
            config,
        )
        trainer.add_callback(Clock())
        trainer.train()
    return _between(ends, plan) | {"peak_memory": peak_device_memory(device), "at_a_time": at_a_time}


def _between(ends: list[float], plan: Plan) -> dict[str, float]:
    assert len(ends) == plan.steps, (len(ends), plan.steps)
    first = plan.steps // 3 - 1
    return {"pairs_per_second": BATCH * (len(ends) - 1 - first) / (ends[-1] - ends[first])}


def compete(name: str, kind: str, contestant: str, plan: Plan, at_a_time: int = BATCH) -> dict[str, float]:
    """A contestant in a process of its own; TRL with the most pairs at a time, up to `at_a_time`, that fit."""
    while True:
        call = (
            f"trl({name!r}, {kind!r}, plan, {at_a_time})"
            if contestant not in OURS
            else f"dpo_lab({name!r}, {kind!r}, plan, is_compiled={contestant == 'dpo_lab_compiled'})"
        )
        done = _in_a_process(f"plan = Plan(**{asdict(plan)!r}); print(json.dumps({call}))")
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1])
        if contestant in OURS or "out of memory" not in done.stderr or at_a_time == 1:
            raise RuntimeError(f"{contestant}, {name}, {kind} failed:\n{done.stderr[-3000:]}")
        at_a_time //= 2


def _in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    code = f"import json; from tests.benchmarks.gpu_speed import *; {code}"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def device_facts(plan: Plan) -> dict[str, Any]:
    """The device's name, and its fastest product of bfloat16 matrices, operations per second."""
    import torch

    from dpo_lab.course.speed.rates import matrix_rate

    device = torch.device(plan.device)
    rate = max(matrix_rate(size, device=device, dtype="bfloat16", seconds=1.0) for size in plan.sizes)
    return {"name": torch.cuda.get_device_name(device) if device.type == "cuda" else plan.device, "rate": rate}


def work_of(name: str, kind: str, plan: Plan) -> dict[str, float]:
    """What a pair needs on average: operations forward and backward, tokens of prompt and completions."""
    from types import SimpleNamespace

    from dpo_lab.course.speed.flops import FORWARD_AND_BACKWARD, forward_flops

    data = pairs_of(kind, plan)
    return {
        "flops": FORWARD_AND_BACKWARD * float(forward_flops(SimpleNamespace(**SHAPES[name]), data).mean()),
        "tokens": float((data.prompt_lengths + data.completion_lengths.sum(1)).mean()),
    }


def measure(plan: Plan, repetitions: int) -> dict[str, Any]:
    """Every model on both kinds of data, all contestants in turn, `repetitions` times."""

    def asked(call: str) -> dict[str, Any]:
        done = _in_a_process(f"plan = Plan(**{asdict(plan)!r}); print(json.dumps({call}))")
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-3000:])
        return json.loads(done.stdout.strip().splitlines()[-1])

    cases = []
    for name in plan.models:
        for kind in DATA:
            case = {"model": name, "data": kind, "work": asked(f"work_of({name!r}, {kind!r}, plan)")}
            case["rows"] = [{one: [] for one in plan.contestants} for _ in range(repetitions)]
            for row in case["rows"]:
                for contestant in plan.contestants:
                    row[contestant] = found = compete(name, kind, contestant, plan)
                    speed = f"{found['pairs_per_second']:.4g} pairs/s"
                    print(f"{name}, {DATA[kind]}, {LABELS[contestant]}: {speed}", flush=True)
                if TRL in row:
                    row[TRL_AS_OURS] = as_many_at_a_time(name, kind, row, plan)
            cases.append(case)
    return {"machine": machine(), "device": asked("device_facts(plan)"), "plan": asdict(plan), "cases": cases}


def as_many_at_a_time(name: str, kind: str, row: dict[str, Any], plan: Plan) -> dict[str, float]:
    """TRL with at most as many pairs at a time as ours: what its memory is to be compared at."""
    ours = min(row[one]["at_a_time"] for one in OURS if one in row)
    at_a_time = 1 << (ours.bit_length() - 1)  # a batch must be a whole number of them
    return row[TRL] if row[TRL]["at_a_time"] <= at_a_time else compete(name, kind, TRL_AS_OURS, plan, at_a_time)


def median_of(case: dict[str, Any], contestant: str, what: str) -> float:
    return statistics.median(row[contestant][what] for row in case["rows"])


def fastest_of_ours(case: dict[str, Any]) -> str:
    ours = [name for name in OURS if name in case["rows"][0]]
    return max(ours, key=lambda name: median_of(case, name, "pairs_per_second"))


def share(case: dict[str, Any], contestant: str, rate: float) -> float:
    """Useful operations per second over the device's rate."""
    return case["work"]["flops"] * median_of(case, contestant, "pairs_per_second") / rate


def verdicts(found: dict[str, Any]) -> list[str]:
    """A line for each target of each case: its number, and whether it is met."""
    lines = []
    for case in found["cases"]:
        ours, where = fastest_of_ours(case), f"{case['model']}, {DATA[case['data']]}"
        target = SHARE[case["model"]]
        reached = share(case, ours, found["device"]["rate"])
        lines.append(f"{_word(reached >= target)}  {where}, useful operations: {reached:.2f} of the rate; "
                     f"target: at least {target:g}")  # fmt: skip
        if TRL not in case["rows"][0]:
            lines.append(f"unknown {where}, against TRL: it is not installed, or the datasets library is not")
            continue
        times = [row[ours]["pairs_per_second"] / row[TRL]["pairs_per_second"] for row in case["rows"]]
        memory = [row[ours]["peak_memory"] / row[TRL_AS_OURS]["peak_memory"] for row in case["rows"]]
        for what, values, is_met, rule in (
            ("pairs/s against TRL", times, statistics.median(times) >= SPEED, f"at least {SPEED:g} times"),
            (
                "peak memory against TRL at as many pairs",
                memory,
                statistics.median(memory) <= MEMORY,
                f"at most {MEMORY:g} of it",
            ),
        ):
            span = f"{min(values):.2f} to {max(values):.2f}"
            lines.append(f"{_word(is_met)}  {where}, {what}: {statistics.median(values):.2f} ({span}); target: {rule}")
    return lines


def _word(is_met: bool) -> str:
    return "met   " if is_met else "missed"


def table(found: dict[str, Any], command: str) -> str:
    """The result as Markdown."""
    plan, device = found["plan"], found["device"]
    is_gpu = plan["device"] != "cpu"
    lines = [
        "# Speed on a GPU" if is_gpu else "# A trial of the GPU benchmark, on a CPU", "",
        f"{device['name']}. " + heading(command, found["machine"]), "",
        f"Batches of {BATCH} pairs, bfloat16 products over float32 weights, {plan['steps']} steps, the first third of "
        f"which warm up. Medians of {len(found['cases'][0]['rows'])}. HH lengths are those of "
        f"real pairs; equal lengths are {plan['long']} tokens of prompt and completion. The device multiplies bfloat16 "
        f"matrices at {device['rate'] / 1e12:.4g} TFLOP/s; a share counts what a step cannot leave out, of this rate.",
        "", "| model | data | tokens per pair | | pairs at a time | pairs/s | share of the rate | peak memory (GiB) |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case in found["cases"]:
        for name in case["rows"][0]:
            lines.append(
                f"| {case['model']} | {DATA[case['data']]} | {case['work']['tokens']:.0f} | {LABELS[name]} | "
                f"{median_of(case, name, 'at_a_time'):.0f} | {median_of(case, name, 'pairs_per_second'):.4g} | "
                f"{share(case, name, device['rate']):.1%} | {median_of(case, name, 'peak_memory') / 2**30:.2f} |"
            )
    lines += ["", "```", *verdicts(found), "```", "", "![Speed and memory of DPO Lab and TRL](gpu_speed.png)"]
    return "\n".join(lines) + "\n"


def figure(found: dict[str, Any]) -> Picture:
    """Pairs per second and peak memory of every case as bars, a dot for each repetition."""
    picture = new_figure(9.2, 3.8)
    cases = found["cases"]
    names = list(cases[0]["rows"][0])
    colors = dict(zip(LABELS, (BLUE, SKY, ORANGE, VERMILLION), strict=True))
    width = 0.8 / len(names)
    for ax, what, unit, title, label in zip(
        picture.subplots(1, 2), ("pairs_per_second", "peak_memory"), (1, 2**30), ("Training speed", "Peak memory"),
        ("pairs per second", "GiB"), strict=True,
    ):  # fmt: skip
        for place, name in enumerate(names):
            x = np.arange(len(cases)) + (place - (len(names) - 1) / 2) * width
            ax.bar(x, [median_of(c, name, what) / unit for c in cases], width=0.92 * width, color=colors[name],
                   zorder=2, label=LABELS[name])  # fmt: skip
            for at, case in zip(x, cases, strict=True):
                values = [row[name][what] / unit for row in case["rows"]]
                ax.plot(np.full(len(values), at), values, "o", color=GREY, markersize=3, zorder=3)
        ax.set_xticks(range(len(cases)), [f"{case['model']},\n{DATA[case['data']]}" for case in cases])
        ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
        dress(ax, title, "", label)
    picture.legend(*ax.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(names))
    add_title(picture, f"{found['device']['name']}, bfloat16, batches of {BATCH} pairs")
    return picture


def write(found: dict[str, Any], folder: Path, command: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu_speed.md").write_text(table(found, command), encoding="utf-8")
    (folder / "gpu_speed.png").write_bytes(to_png(figure(found)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=("135m", "1b"), default=list(Plan.models))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few steps: tries every line in minutes")
    parser.add_argument("--without", nargs="*", choices=Plan.contestants, default=[], help="contestants to leave out")
    parser.add_argument("--results", type=Path, default=KEPT)
    arguments = parser.parse_args(argv)
    if arguments.tiny and arguments.results == KEPT:
        raise SystemExit("--tiny is a trial; name another folder with --results, so that no result is overwritten")
    if arguments.device == "cpu" and not arguments.tiny:
        raise SystemExit("on a CPU these models take days; try every line with --tiny --device cpu --results DIR")
    is_trl_here = all(importlib.util.find_spec(name) for name in ("trl", "datasets"))
    contestants = tuple(n for n in Plan.contestants if n not in arguments.without and (n != TRL or is_trl_here))
    if not set(contestants) & set(OURS):
        raise SystemExit("--without leaves nothing of DPO Lab to measure; leave out one of its ways at most")
    plan = Plan(device=arguments.device, models=tuple(arguments.models), contestants=contestants)
    if arguments.tiny:
        plan = Plan(arguments.device, ("tiny",), steps=3, long=96, sizes=(256,), contestants=contestants)
    given = [
        f"--device {arguments.device}",
        f"--models {' '.join(plan.models)}",
        f"--repetitions {arguments.repetitions}",
    ]
    command = "python -m tests.benchmarks.gpu_speed " + " ".join(["--tiny", given[0]] if arguments.tiny else given)
    found = measure(plan, arguments.repetitions)
    write(found, arguments.results, command)
    print(table(found, command))


if __name__ == "__main__":
    main()
