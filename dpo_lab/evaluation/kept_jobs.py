"""The four jobs as `data/experiments/jobs.py` keeps them: its rows read back, and put together for tables and pictures.

A row is one trained policy judged with one seed. It holds, for each prompt in turn, a letter "1" or "0" for success:

    {"method": "DPO", "trained": "all", "seed": 0,
     "successes": {"safety": "0111…", …}, "stages": {"calls": [41, 45], …},
     "refusals": {"harmful": [48, 50], …}, "attacks": {"none": "11…", "known": "10…", "new": "10…"}, "samples": […]}

Fields that were not judged are absent. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.embedded import embedded_path
from dpo_lab.evaluation.jobs import Judged, Refusals, difference, judge_answers, over_seeds
from dpo_lab.preferences.labels import Share, wilson
from dpo_lab.worlds.pocket import JOBS, Conversation

Row = dict[str, Any]
Policy = tuple[str, str]
"""(method, trained): how a policy was trained, and on what."""

ATTACKS = {"none": "no attack", "known": "attack as in training", "new": "new attack"}


def read_jobs(path: str | Path | None = None) -> tuple[Row, list[Row]]:
    """How the results were made, and their rows; None reads those that come along with the project."""
    if path is None:
        with suppress(FileNotFoundError):
            path = embedded_path("results", "jobs.json")
    if path is None or not Path(path).is_file():
        raise ValueError(f"there are no results at {path or 'results/jobs.json'}; python data/experiments/jobs.py "
                         "computes them")  # fmt: skip
    path = Path(path)
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["made"] | kept["settings"], kept["rows"]


def seeds_of(rows: Sequence[Row], policy: Policy) -> list[Row]:
    """The rows of one policy, a seed each."""
    own = [row for row in rows if (row["method"], row["trained"]) == tuple(policy)]
    if not own:
        known = ", ".join(f"{a} on {b}" for a, b in dict.fromkeys((row["method"], row["trained"]) for row in rows))
        raise ValueError(f"no row is {policy[0]} on {policy[1]}; there are {known or 'none'}")
    return own


def outcomes(rows: Sequence[Row], policy: Policy, job: str, field: str = "successes") -> np.ndarray:
    """Success of each seed on each prompt of a job (`field` "attacks": of a kind of attack), (seeds, P), 0 or 1."""
    return np.array([[int(letter) for letter in row[field][job]] for row in seeds_of(rows, policy)])


def success_shares(
    rows: Sequence[Row], policies: Mapping[str, Policy], jobs: Sequence[str] = JOBS
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
    rows: Sequence[Row], policies: Mapping[str, Policy], jobs: Sequence[str] = JOBS
) -> dict[str, dict[str, list[float]]]:
    """Name → job → the success of every seed by itself."""
    return {name: {job: outcomes(rows, policy, job).mean(1).tolist() for job in jobs}
            for name, policy in policies.items()}  # fmt: skip


def stage_shares(rows: Sequence[Row], policies: Mapping[str, Policy]) -> dict[str, dict[str, Share]]:
    """Name → stage of a tool call (as `tool_stages` names them) → its share over seeds."""
    return {name: _counted(seeds_of(rows, policy), "stages") for name, policy in policies.items()}


def refusals_over_seeds(rows: Sequence[Row], policies: Mapping[str, Policy]) -> dict[str, Refusals]:
    """Name → the two shares of requests that were declined, over seeds."""
    return {name: Refusals(**_counted(seeds_of(rows, policy), "refusals")) for name, policy in policies.items()}


def attack_shares(rows: Sequence[Row], policies: Mapping[str, Policy]) -> dict[str, dict[str, Share]]:
    """Name → kind of attack → success on the system prompts, the same ones each time, over seeds."""
    return {name: {ATTACKS[kind]: _share(outcomes(rows, policy, kind, "attacks")) for kind in ATTACKS}
            for name, policy in policies.items()}  # fmt: skip


def transfer(
    rows: Sequence[Row], trained: Sequence[str], jobs: Sequence[str] = JOBS, *, method: str = "DPO",
    before: Policy = ("base", "nothing"),
) -> np.ndarray:  # fmt: skip
    """Change of success against the untrained model, (trained, jobs, 3): value, low and high of `difference`."""
    return np.array([
        [difference(outcomes(rows, (method, name), job), outcomes(rows, before, job)) for job in jobs]
        for name in trained
    ])  # fmt: skip


def samples(rows: Sequence[Row], policy: Policy, job: str) -> list[Judged]:
    """The answers that were kept of a policy's first seed to prompts of a job, judged now."""
    first = min(seeds_of(rows, policy), key=lambda row: row["seed"])
    some = [(Conversation.from_row(one["row"]), one["answer"]) for one in first["samples"] if one["row"]["job"] == job]
    return judge_answers([conversation for conversation, _ in some], [answer for _, answer in some])


def _share(bits: np.ndarray) -> Share:
    return over_seeds([wilson(int(row.sum()), len(row)) for row in bits])


def _counted(rows: Sequence[Row], field: str) -> dict[str, Share]:
    names = rows[0][field]
    return {name: over_seeds([wilson(*row[field][name]) for row in rows]) for name in names}
