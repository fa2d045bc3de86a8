"""Results of experiments, read back for tables and pictures: jobs, failures, the hyperparameter map, real models, GPU.

A row of `data/experiments/jobs.py` is one trained policy judged with one seed. It holds, for each prompt in turn, a
letter "1" or "0" for success:

    {"method": "DPO", "trained": "all", "seed": 0,
     "successes": {"safety": "0111…", …}, "stages": {"calls": [41, 45], …},
     "refusals": {"harmful": [48, 50], …}, "attacks": {"none": "11…", "known": "10…", "new": "10…"}, "samples": […]}

Fields that were not judged are absent. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.course.statistics.jobs import Judged, Refusals, difference, judge_answers, over_seeds
from dpo_lab.storage.embedded import embedded_path
from dpo_lab.workbench.evaluation.intervals import ratio, share
from dpo_lab.workbench.labels.results import Share, wilson
from dpo_lab.worlds.pocket.schema import JOBS, Conversation

Result = dict[str, Any]
Policy = tuple[str, str]
"""(method, trained): how a policy was trained, and on what."""

ATTACKS = {"none": "no attack", "known": "attack as in training", "new": "new attack"}


def read_results(name: str, command: str, path: str | Path | None = None) -> dict[str, Any]:
    """What `command` wrote into `name`; path None reads the file that comes along with the project.

    ValueError says how to compute what is missing.
    """
    if path is None:
        with suppress(FileNotFoundError):
            path = embedded_path("results", name)
    if path is None or not Path(path).is_file():
        raise ValueError(f"there are no results at {path or f'results/{name}'}; {command} computes them")
    return json.loads(Path(path).read_text(encoding="utf-8"))


# The four jobs.


def read_jobs(path: str | Path | None = None) -> tuple[Result, list[Result]]:
    """How the results on the four jobs were made, and their rows."""
    saved = read_results("jobs.json", "python data/experiments/jobs.py", path)
    return saved["made"] | saved["settings"], saved["rows"]


def seeds_of(rows: Sequence[Result], policy: Policy) -> list[Result]:
    """The rows of one policy, a seed each."""
    own = [row for row in rows if (row["method"], row["trained"]) == tuple(policy)]
    if not own:
        known = ", ".join(f"{a} on {b}" for a, b in dict.fromkeys((row["method"], row["trained"]) for row in rows))
        raise ValueError(f"no row is {policy[0]} on {policy[1]}; there are {known or 'none'}")
    return own


def outcomes(rows: Sequence[Result], policy: Policy, job: str, field: str = "successes") -> np.ndarray:
    """Success of each seed on each prompt of a job (`field` "attacks": of a kind of attack), (seeds, P), 0 or 1."""
    return np.array([[int(letter) for letter in row[field][job]] for row in seeds_of(rows, policy)])


def success_shares(
    rows: Sequence[Result], policies: Mapping[str, Policy], jobs: Sequence[str] = JOBS
) -> dict[str, dict[str, Share]]:
    """Name → job → success over seeds with its interval; with several jobs, `all` of them at the end."""
    found = {}
    for name, policy in policies.items():
        by_job = {job: outcomes(rows, policy, job) for job in jobs}
        if len(jobs) > 1:
            by_job["all"] = np.concatenate(list(by_job.values()), axis=1)
        found[name] = {job: _share(bits) for job, bits in by_job.items()}
    return found


def success_seeds(
    rows: Sequence[Result], policies: Mapping[str, Policy], jobs: Sequence[str] = JOBS
) -> dict[str, dict[str, list[float]]]:
    """Name → job → the success of every seed by itself."""
    return {name: {job: outcomes(rows, policy, job).mean(1).tolist() for job in jobs}
            for name, policy in policies.items()}  # fmt: skip


def stage_shares(rows: Sequence[Result], policies: Mapping[str, Policy]) -> dict[str, dict[str, Share]]:
    """Name → stage of a tool call (as `tool_stages` names them) → its share over seeds."""
    return {name: _counted(seeds_of(rows, policy), "stages") for name, policy in policies.items()}


def refusals_over_seeds(rows: Sequence[Result], policies: Mapping[str, Policy]) -> dict[str, Refusals]:
    """Name → the two shares of requests that were declined, over seeds."""
    return {name: Refusals(**_counted(seeds_of(rows, policy), "refusals")) for name, policy in policies.items()}


def attack_shares(rows: Sequence[Result], policies: Mapping[str, Policy]) -> dict[str, dict[str, Share]]:
    """Name → kind of attack → success on the system prompts, the same ones each time, over seeds."""
    return {name: {ATTACKS[kind]: _share(outcomes(rows, policy, kind, "attacks")) for kind in ATTACKS}
            for name, policy in policies.items()}  # fmt: skip


def transfer(
    rows: Sequence[Result], trained: Sequence[str], jobs: Sequence[str] = JOBS, *, method: str = "DPO",
    before: Policy = ("base", "nothing"),
) -> np.ndarray:  # fmt: skip
    """Change of success against the untrained model, (trained, jobs, 3): value, low and high of `difference`."""
    return np.array([
        [difference(outcomes(rows, (method, name), job), outcomes(rows, before, job)) for job in jobs]
        for name in trained
    ])  # fmt: skip


def samples(rows: Sequence[Result], policy: Policy, job: str) -> list[Judged]:
    """The answers that were saved of a policy's first seed to prompts of a job, judged now."""
    first = min(seeds_of(rows, policy), key=lambda row: row["seed"])
    some = [(Conversation.from_row(one["row"]), one["answer"]) for one in first["samples"] if one["row"]["job"] == job]
    return judge_answers([conversation for conversation, _ in some], [answer for _, answer in some])


def _share(bits: np.ndarray) -> Share:
    return over_seeds([wilson(int(row.sum()), len(row)) for row in bits])


def _counted(rows: Sequence[Result], field: str) -> dict[str, Share]:
    names = rows[0][field]
    return {name: over_seeds([wilson(*row[field][name]) for row in rows]) for name in names}


# Runs that go wrong.


_RECORDED = {"A": "length", "B": "few pairs", "C": "sound", "D": "flips", "E": "rate"}
"""The runs that notebook 10 opens with: their letter, and what the experiment calls their cause."""


def recorded_runs(*, seed: int = 0) -> dict[str, Result]:
    """Five runs of `data/experiments/failures.py` in the pocket world, under the names A to E.

    Each has losses and accuracies (T,) of its training steps; steps, heldout_loss, heldout_accuracy, kl, words,
    well_formed and the true reward (E,) as measured on the way; and its cause, as the experiment names it.
    """
    rows = read_results("failures.json", "python data/experiments/failures.py --only recorded")["rows"]
    measures = ("heldout_loss", "heldout_accuracy", "kl", "words", "well_formed", "reward")
    runs = {}
    for letter, cause in _RECORDED.items():
        own = [row for row in rows if (row["failure"], row["method"], row["seed"]) == ("recorded", cause, seed)]
        if not own:
            raise ValueError(f"no recorded run is {cause!r} with seed {seed}; data/experiments/failures.py makes them")
        runs[letter] = {"cause": cause, "steps": [row["step"] for row in own]}
        runs[letter] |= {name: [row[name] for row in own] for name in measures}
        runs[letter] |= {name: [value for row in own for value in row[name]] for name in ("losses", "accuracies")}
    return runs


# A real model.


def read_real_model(path: str | Path | None = None) -> tuple[Result, list[Result]]:
    """How the results on a real model were made, and their rows."""
    saved = read_results("real_model.json", "python data/experiments/real_model.py", path)
    return saved["made"] | saved["settings"], saved["rows"]


def demands(rows: Sequence[Result], method: str, tasks: Sequence[Any], group: Callable[[Any], bool]) -> np.ndarray:
    """Of a method and the tasks of a group: demands met, (seeds, tasks), with the tasks' numbers of demands below."""
    own = [row for row in rows if row["method"] == method]
    if not own:
        raise ValueError(f"no row is of {method!r}; there are {', '.join({row['method']: 0 for row in rows})}")
    met = [[word.count("1") for word in row["verdicts"].split()] for row in own]
    kept = [i for i, task in enumerate(tasks) if group(task)]
    return np.array([*met, [len(task.demands) for task in tasks]], float)[:, kept]


def demand_share(rows: Sequence[Result], method: str, tasks: Sequence[Any], group: Callable[[Any], bool]) -> Share:
    """Demands met, the mean over seeds, with an interval over tasks: more seeds on the same tasks are no more tasks."""
    *met, counts = demands(rows, method, tasks, group)
    found = share(np.mean(met, 0), counts)
    return Share(found["value"], found["low"], found["high"], found["n"])


def best_of(rows: Sequence[Result], method: str, tasks: Sequence[Any], group: Callable[[Any], bool]) -> Share:
    """Demands met where the judge picks the best of all seeds' answers to a task."""
    *met, counts = demands(rows, method, tasks, group)
    found = share(np.max(met, 0), counts)
    return Share(found["value"], found["low"], found["high"], found["n"])


def demand_gain(
    rows: Sequence[Result], method: str, other: str, tasks: Sequence[Any], group: Callable[[Any], bool]
) -> Share:
    """How many more demands a method meets than another, task by task: a bootstrap over tasks."""
    *met, counts = demands(rows, method, tasks, group)
    found = ratio(np.mean(met, 0) - np.mean(demands(rows, other, tasks, group)[:-1], 0), counts)
    return Share(found["value"], found["low"], found["high"], found["n"])


# The hyperparameter map.


def read_map(path: str | Path | None = None) -> tuple[Result, list[Result], dict[tuple[float, float], list[Result]]]:
    """How the map was made; its cells, one run each; and all seeds of those cells that were run with several.

    The cells are those of the first seed, so that they compare; the others show how much a seed matters.
    """
    saved = read_results("hyperparameter_map.json", "python data/hyperparameter_map.py", path)
    rows = saved["rows"]
    first = min(row["seed"] for row in rows)
    together: dict[tuple[float, float], list[Result]] = {}
    for row in rows:
        together.setdefault((row["beta"], row["learning_rate"]), []).append(row)
    repeats = {cell: runs for cell, runs in together.items() if len(runs) > 1}
    return saved["made"], [row for row in rows if row["seed"] == first], repeats


# A real model on preferences of people.


def read_real_preferences(path: str | Path | None = None) -> tuple[Result, list[Result], list[Result]]:
    """How the results on real preferences were made; their rows, a set, a method and a seed each; and the lessons of
    the course with what each set says of them."""
    saved = read_results("real_preferences.json", "python data/experiments/real_preferences.py --sets FILE…", path)
    return saved["made"] | saved["settings"], saved["rows"], saved["lessons"]


def numbers(text: str) -> np.ndarray:
    """A list of numbers that a row keeps as one text, such as `chosen_changes`: a number for each held-out pair."""
    return np.array(text.split(), float)


def margins_of(rows: Sequence[Result], name: str, method: str, beta: float) -> np.ndarray:
    """Implicit margins on a set's held-out pairs, the seeds one after the other: β·(change of chosen − of rejected)."""
    own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
    if not own:
        known = ", ".join(dict.fromkeys(f"{row['method']} on {row['set']}" for row in rows))
        raise ValueError(f"no row is of {method} on {name}; there are {known or 'none'}")
    return np.concatenate([beta * (numbers(row["chosen_changes"]) - numbers(row["rejected_changes"])) for row in own])


# A GPU.


def gpu_ways(model: str = "135m", path: str | Path | None = None) -> dict[str, dict[str, float]]:
    """Device → way → pairs per second of one model of `data/gpu.py`; empty where nobody has measured a GPU."""
    try:
        found = read_results("gpu.json", "python data/gpu.py on a machine with a GPU", path)
    except ValueError:
        return {}
    ways = found["models"][model]["ways"]
    return {found["made"]["device"]: {way["way"]: way["pairs_per_second"] for way in ways}}
