"""What the benchmarks say of their targets, on made-up numbers; the GPU's comparison run at a tiny size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from tests.benchmarks import gpu_speed, growth, real_speed, speed
from tests.benchmarks.contestants import part_of
from tests.benchmarks.machine import KEPT
from tests.conftest import random_pairs

ROOT = Path(__file__).resolve().parents[1]


def measured(ours: float, compiled: float, theirs: float | None, *, memory: float = 1.0, model: str = "135m") -> dict:
    made = lambda speed, peak: {"pairs_per_second": speed, "peak_memory": peak * 2**30, "at_a_time": 16}
    row = {"dpo_lab": made(ours, memory), "dpo_lab_compiled": made(compiled, memory)}
    if theirs is not None:
        row |= {gpu_speed.TRL: made(theirs, 8.0), gpu_speed.TRL_AS_OURS: made(theirs, 4.0)}
    case = {"model": model, "data": "hh", "work": {"flops": 4e12, "tokens": 300.0}, "rows": [row, row, row]}
    return {
        "machine": {"processor": "a processor", "cores": 16, "memory_gib": 128, "system": "Linux", "versions": {},
                    "commit": "abc", "date": "2026-01-01"},
        "device": {"name": "a device", "rate": 1e14}, "plan": {"device": "cuda", "steps": 18, "long": 2048},
        "cases": [case],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((9.0, 12.0, 6.0), ["met", "met", "met"]),  # a share of 0.48, twice as fast, a quarter of the memory
        ((9.0, 11.9, 6.0), ["met", "missed", "met"]),
        ((9.9, 8.0, 4.0), ["missed", "met", "met"]),  # a share of 0.396
        ((12.0, 9.0, None), ["met", "unknown"]),
    ],
)
def test_the_gpu_benchmark_says_where_each_target_stands(numbers, expected):
    found = measured(*numbers)
    lines = gpu_speed.verdicts(found)
    assert [line.split()[0] for line in lines] == expected
    text = gpu_speed.table(found, "command")
    assert all(line in text for line in lines)
    assert "a device" in text


def test_memory_that_is_more_than_half_misses():
    lines = gpu_speed.verdicts(measured(12.0, 12.0, 6.0, memory=2.1))
    assert [line.split()[0] for line in lines] == ["met", "met", "missed"]


def test_the_larger_model_must_reach_more_of_the_rate():
    lines = gpu_speed.verdicts(measured(12.0, 12.0, 6.0, model="1b"))
    assert lines[0].startswith("missed  1b, HH lengths, useful operations: 0.48 of the rate; target: at least 0.5")


def test_the_gpu_benchmark_draws_its_figure():
    picture = gpu_speed.figure(measured(9.0, 12.0, 6.0))
    assert [ax.get_title("left") or ax.get_title() for ax in picture.axes] == ["Training speed", "Peak memory"]
    assert len(picture.axes[0].patches) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tiny"], "name another folder"),
        (["--device", "cpu"], "take days"),
        (["--device", "cpu", "--tiny", "--results", "x", "--without", "dpo_lab", "dpo_lab_compiled"], "leaves nothing"),
    ],
)
def test_what_the_gpu_benchmark_refuses(arguments, said):
    with pytest.raises(SystemExit, match=said):
        gpu_speed.main(arguments)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_to_its_end(tmp_path, request):
    if not request.config.getoption("--run-slow"):
        pytest.skip("minutes; --run-slow runs it")
    command = [sys.executable, "-m", "tests.benchmarks.gpu_speed", "--tiny", "--device", "cpu", "--repetitions", "1"]
    command += ["--results", str(tmp_path), "--without", "trl_precomputed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu_speed.json").read_text())
    assert [case["data"] for case in found["cases"]] == ["hh", "long"]
    assert all(set(row) == set(gpu_speed.OURS) for case in found["cases"] for row in case["rows"])
    assert "A trial of the GPU benchmark" in (tmp_path / "gpu_speed.md").read_text()


# ── what the README says ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_readme_tells_the_speed_that_was_measured():
    found = json.loads((KEPT / "cpu_speed.json").read_text())
    rows, readme = found["repetitions"], (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(rows) == 5
    for label, name, what in [
        ("DPO Lab, reference log-probs kept", "dpo_lab", "seconds"),
        ("DPO Lab, with the reference's pass", "dpo_lab", "seconds_with_reference"),
        ("TRL, precomputed log-probs", "trl_precomputed", "seconds"),
        ("TRL, the same, grouped by length", "trl_precomputed_grouped", "seconds"),
        ("TRL, live reference", "trl_live", "seconds"),
    ]:
        rate = median(speed.pairs_per_second(row, name, what) for row in rows)
        memory = f"{median(row[name]['peak_memory'] for row in rows) / 2**30:.1f} GiB"
        memory = "the same process" if what == "seconds_with_reference" else memory
        assert f"| {label} | {rate:.1f} | {memory} |" in readme
    times = {name: f"{median(values):.1f}" for name, values in speed.reached(found).items()}
    assert (
        f"That is {times['training']} times TRL's speed as it comes, {times['grouped']} times with its pairs" in readme
    )
    reached = {name: median(values) for name, values in speed.reached(found).items()}
    assert f"{100 * reached['rate']:.0f} % of the rate" in readme
    assert f"{found['work']['pairs']} pairs of HH harmless-base" in readme
    plain = re.search(r"steps of 8 pairs: ([\d.]+) pairs/s", (KEPT / "profile_before.txt").read_text())
    assert plain is not None
    assert f"the kit itself makes {float(plain[1]):.1f} pairs/s" in readme
    told = growth.verdicts(json.loads((KEPT / "growth.json").read_text()))
    assert "Nothing slows down or swells from 1,000 pairs to 100,000" in readme
    assert all(line.startswith("met") for line in told if "100,000 pairs" in line)


def test_the_readme_begins_with_the_speed_on_a_real_model():
    found = json.loads((KEPT / "real_speed.json").read_text())
    rows, readme = found["repetitions"], (ROOT / "README.md").read_text(encoding="utf-8")
    for key, one in real_speed.CONTESTANTS.items():
        rate = median(real_speed.speed(row, key) for row in rows)
        memory = median(real_speed.memory(row, key) for row in rows)
        assert f"| {one.label} | {one.precision} | {rate:.2f} | {memory:.1f} GiB |" in readme
    reached = {name: median(values) for name, values in real_speed.reached(found).items()}
    assert f"{reached['bfloat16 / TRL']:.1f} times TRL's speed in bfloat16" in readme
    assert f"{reached['float32 / TRL']:.1f} times in float32" in readme
    assert f"{reached['sampling, SmolLM2 / generate']:.1f} times as fast as transformers' `generate`" in readme


@pytest.mark.parametrize(("name", "module"), [("cpu_speed", speed), ("growth", growth), ("real_speed", real_speed)])
def test_kept_tables_are_those_of_the_kept_numbers(name, module):
    found = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    assert module.table(found) == (KEPT / f"{name}.md").read_text(encoding="utf-8")


def test_parts_of_the_data_are_alike_and_make_up_the_whole():
    data = random_pairs(50, longest=40)
    parts = [part_of(data, part, 5) for part in range(5)]
    tokens = [int(part.prompt_lengths.sum() + part.completion_lengths.sum()) for part in parts]
    assert [len(part) for part in parts] == [10] * 5
    assert sum(tokens) == data.prompt_lengths.sum() + data.completion_lengths.sum()
    assert max(tokens) < 1.3 * min(tokens)
    assert sorted(np.concatenate([part.source_rows for part in parts])) == sorted(data.source_rows)


# ── growth ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def grown(speed: float = 1.0, memory: float = 1.0, warm: float = 2.9, computed: int = 0, tenth: int = 200) -> dict:
    rows = [{"pairs": 1_000, "pairs_per_second": 100.0, "peak_memory": 1e9},
            {"pairs": 100_000, "pairs_per_second": 100.0 * speed, "peak_memory": 1e9 * memory}]  # fmt: skip
    cache = {"warm_computed": computed, "tenth_computed": tenth}
    return {"series": {"pairs": rows}, "cache": cache, "start_up": {"train_warm": warm}}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"speed": 0.89}, ["pairs/s at 100,000 pairs"]),
        ({"speed": 1.3}, []),
        ({"memory": 1.16}, ["memory at 100,000 pairs"]),
        ({"warm": 3.1}, ["first step at another β"]),
        ({"computed": 1}, ["log-probs of the reference computed at another β"]),
        ({"tenth": 2200}, ["log-probs of the reference computed for 200 pairs more"]),
    ],
)
def test_growth_says_where_each_target_stands(changes, missed):
    lines = growth.verdicts(grown(**changes))
    assert len(lines) == 5
    told = [line for line in lines if line.startswith("missed")]
    assert len(told) == len(missed)
    assert all(what in line for what, line in zip(missed, told, strict=True))
