"""Training, caching, sweeping and labelling, killed with -9 at random moments and begun again until they are through.

Everything goes through the commands that a user calls. `campaign` runs in a process of its own that has loaded torch
once; each victim is a fork of it, so a kill costs the work and not the start-up. What is checked after each run:

- what stands on the disk in the end is what an uninterrupted run leaves: weights and optimiser bit for bit, metrics,
  margins, samples, cached log-probs, trials, labels;
- what was told as kept before a kill is there after it;
- no pair is scored again but those of the pass that a kill struck.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import dpo_lab.workbench.cli.models
import dpo_lab.workbench.cli.sweep
import dpo_lab.workbench.cli.train  # noqa: F401 - loaded before anything is forked
from dpo_lab.reference import ReferenceCache
from dpo_lab.workbench.cli import main
from dpo_lab.workbench.labels import LabelBook
from dpo_lab.workbench.runs import Run
from dpo_lab.workbench.sweeps import StoredStudy
from tests.command_line import chat_model, some_rows, without_seconds, write_rows
from tests.conftest import ROOT
from tests.faults import forked

PEACE = 300.0
"""Seconds that a run gets which nobody is to kill."""

QUICK = ("--samples", "1", "--max-new-tokens", "4", "--kl-prompts", "2", "--batch-size", "4", "--device", "cpu",
         "--epochs", "2", "--learning-rate", "1e-3", "--checkpoint-every", "2", "--evaluate-every", "3",
         "--tokens-per-pass", "250")  # fmt: skip
SWEEP = ("--beta", "0.05:1:log", "--learning-rate", "1e-4,1e-3", "--batch-size", "4", "--trials", "5", "--max-steps",
         "3", "--evaluations", "1", "--no-prune", "--device", "cpu")  # fmt: skip

Report = dict[str, int]
Strike = Callable[[str, float], bool]
"""Work on the run of that name and kill it after so many seconds; False if it was through by then."""


def campaign(place: str, kills: dict[str, int], seed: int = 0) -> None:
    """Kill each victim as often as asked for; prints a line of JSON on what was seen."""
    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    model = chat_model(folder / "model")
    pairs = write_rows(folder / "pairs.jsonl", some_rows(24))
    many = write_rows(folder / "many.jsonl", some_rows(300))
    inputs = ("--model", str(model), "--pairs", str(pairs))
    victims: dict[str, Callable[[Path, int, Random], Report]] = {
        "train": lambda place, num, moments: train(place, num, moments, inputs),
        "fresh": lambda place, num, moments: train(place, num, moments, inputs, is_fresh=True),
        "cache": lambda place, num, moments: cache(place, num, moments, ("--model", str(model), "--pairs", str(many))),
        "sweep": lambda place, num, moments: sweep(place, num, moments, inputs),
        "label": label,
    }
    report = {}
    for name, num in kills.items():
        (folder / name).mkdir()
        report[name] = victims[name](folder / name, num, Random(f"{seed} {name}"))
    print(json.dumps(report))


# ── the victims ──────────────────────────────────────────────────────────────────────────────────────────────────────


def train(folder: Path, kills: int, moments: Random, inputs: tuple[str, ...], *, is_fresh: bool = False) -> Report:
    """`dpo-lab train` against a calm run of the same command."""

    def strike(name: str, seconds: float) -> bool:
        run = folder / name
        own = ("--run", str(run), "--cache", str(folder / f"{name}.sqlite"))
        is_begun = (run / "config.json").exists()
        command = ("train", *own, "--resume") if is_begun else ("train", *inputs, *QUICK, *own)
        if is_fresh:
            return struck_process(command, seconds, folder / f"{name}.log")
        return struck(lambda: command_told(command, folder / f"{name}.scored"), seconds, folder / f"{name}.log")

    seconds, report = in_peace(strike), Counter(kills=0, runs=0, scored_again=0)
    for name, deaths in troubled(strike, kills, moments, seconds):
        assert_same_run(Run.load(folder / name), Run.load(folder / "calm"))
        again = 0 if is_fresh else check_scored(folder / f"{name}.scored", folder / "calm.scored", deaths)
        report.update(kills=deaths, runs=1, scored_again=again)
    return dict(report)


def cache(folder: Path, kills: int, moments: Random, inputs: tuple[str, ...]) -> Report:
    """`dpo-lab cache`: the same log-probs in the end, bit for bit, and no pass computed that was there."""

    def strike(name: str, seconds: float) -> bool:
        store = folder / f"{name}.sqlite"
        command = ("cache", *inputs, "--cache", str(store), "--tokens-per-pass", "300", "--device", "cpu")
        before = stored(store)
        is_dead = struck(lambda: command_told(command, folder / f"{name}.scored"), seconds, folder / f"{name}.log")
        assert before.items() <= stored(store).items(), "a stored value was lost or changed"
        return is_dead

    seconds, report = in_peace(strike), Counter(kills=0, runs=0, scored_again=0)
    calm = stored(folder / "calm.sqlite")
    assert len(calm) == 300
    for name, deaths in troubled(strike, kills, moments, seconds):
        assert stored(folder / f"{name}.sqlite") == calm
        again = check_scored(folder / f"{name}.scored", folder / "calm.scored", deaths)
        report.update(kills=deaths, runs=1, scored_again=again)
    return dict(report)


def sweep(folder: Path, kills: int, moments: Random, inputs: tuple[str, ...]) -> Report:
    """`dpo-lab sweep`: it tries what the calm one tries and finds what it finds; what was complete stays complete.

    Values whose process died twice under them are not tried a third time, since it may be they that kill; the search
    goes another way from there.
    """

    def rows_of(name: str) -> list[dict[str, Any]]:
        is_begun = (folder / name / "sweep.json").exists()
        return StoredStudy.load(folder / name).rows() if is_begun else []

    def complete(name: str) -> dict[tuple[float, float], float]:
        rows = [row for row in rows_of(name) if row["state"] == "complete"]
        found = {(row["beta"], row["learning_rate"]): row["value"] for row in rows}
        assert len(found) == len(rows), "values were tried twice"
        return found

    def strike(name: str, seconds: float) -> bool:
        own = ("--study", str(folder / name), "--cache", str(folder / f"{name}.sqlite"))
        command = ("sweep", *own) if rows_of(name) else ("sweep", *inputs, *SWEEP, *own)
        before = complete(name)
        is_dead = struck(lambda: command_told(command, folder / f"{name}.scored"), seconds, folder / f"{name}.log")
        assert before.items() <= complete(name).items(), "a complete trial was lost"
        return is_dead

    seconds, report = in_peace(strike), Counter(kills=0, runs=0, given_up=0)
    calm = complete("calm")
    assert len(calm) == 5
    for name, deaths in troubled(strike, kills, moments, seconds):
        rows = rows_of(name)
        given_up = sum("second time" in row["why"] for row in rows)
        assert complete(name) == calm if not given_up else len(complete(name)) == 5 - given_up
        assert not [row for row in rows if row["state"] in ("running", "waiting")]
        report.update(kills=deaths, runs=1, given_up=given_up)
    return dict(report)


def label(folder: Path, kills: int, moments: Random) -> Report:
    """A person labels 60 questions; the book is killed again and again, also while it begins."""
    rows = some_rows(60)

    def work(name: str) -> None:
        book = LabelBook.open(folder / f"{name}.jsonl", rows, who="me")
        with (folder / f"{name}.said").open("a", buffering=1) as said:
            while (number := book.next) is not None:
                said.write(f"{book.choose(('left', 'right', 'tie', 'skip')[number % 4]).question}\n")
                time.sleep(0.002)

    def made(name: str) -> list[tuple[int, str, int]]:
        path = folder / f"{name}.jsonl"
        return [(one.question, one.choice, one.left) for one in LabelBook.open(path).choices] if path.exists() else []

    def strike(name: str, seconds: float) -> bool:
        is_dead, said = struck(lambda: work(name), seconds, folder / f"{name}.log"), folder / f"{name}.said"
        told = [int(line) for line in said.read_text().split("\n")[:-1]] if said.exists() else []
        assert set(told) <= {question for question, _, _ in made(name)}, "a choice was lost"
        return is_dead

    seconds, report = in_peace(strike), Counter(kills=0, runs=0)
    assert len(made("calm")) == 60
    for name, deaths in troubled(strike, kills, moments, seconds):
        assert made(name) == made("calm")
        report.update(kills=deaths, runs=1)
    return dict(report)


# ── killing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def troubled(strike: Strike, kills: int, moments: Random, longest: float) -> Iterator[tuple[str, int]]:
    """Names of runs that were killed up to three times and then went through, and how often each was; `kills` in all.

    The moments lie evenly over the time that a calm run takes.
    """
    num_killed = number = 0
    while num_killed < kills:
        assert number < 4 * kills + 20, "the kills come too late"
        name, number = f"run-{number}", number + 1
        tries = min(moments.randint(1, 3), kills - num_killed)
        deaths = sum(strike(name, moments.uniform(0, longest)) for _ in range(tries))
        assert not strike(name, PEACE)
        num_killed += deaths
        yield name, deaths


def struck(work: Callable[[], None], seconds: float, log: Path) -> bool:
    """Do the work in a fork and kill it after so many seconds; False if it was through by then, as it should be."""

    def logged() -> None:
        with log.open("a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            try:
                work()
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stdout.flush()
                sys.stderr.flush()

    child, until = forked(logged), time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, log.read_text()[-3000:]
            return False
        time.sleep(min(0.01, max(0.0, until - time.monotonic())))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def struck_process(command: tuple[str, ...], seconds: float, log: Path) -> bool:
    """The same with a Python that starts anew."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("a") as file:
        child = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "dpo_lab", *command], env=environment,
                                 stdout=file, stderr=file)  # fmt: skip
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait() == -signal.SIGKILL
    assert status == 0, log.read_text()[-3000:]
    return False


def in_peace(strike: Strike) -> float:
    """Seconds of the run `calm`, which nobody kills."""
    began = time.monotonic()
    assert not strike("calm", PEACE)
    return time.monotonic() - began


def command_told(command: tuple[str, ...], scored: Path) -> None:
    """Carry out a command; every pass through the reference leaves a line before it is stored."""
    write = ReferenceCache.write

    def noted(self: ReferenceCache, keys: list[bytes], values: Any) -> None:
        with scored.open("a") as file:
            file.write(" ".join(key.hex() for key in keys) + "\n")
        write(self, keys, values)

    ReferenceCache.write = noted
    assert main(list(command)) == 0


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_scored(scored: Path, calm: Path, deaths: int) -> int:
    """Pairs that were scored again: no more than a pass for each death. Returns how many."""
    passes = [line.split() for line in scored.read_text().splitlines()]
    times = Counter(key for keys in passes for key in keys)
    wanted = {key for line in calm.read_text().splitlines() for key in line.split()}
    assert times.keys() == wanted
    again = times.total() - len(times)
    assert again <= deaths * max(map(len, passes)), f"{again} pairs were scored again after {deaths} kills"
    return again


def stored(path: Path) -> dict[bytes, list[Any]]:
    """Every row of a cache as it stands: what a dead process wrote to the log counts."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as store:
        is_begun = store.execute("SELECT count(*) FROM sqlite_master WHERE name = 'logps'").fetchone()[0]
        return {key: rest for key, *rest in store.execute("SELECT * FROM logps")} if is_begun else {}


def assert_same_run(run: Run, calm: Run) -> None:
    """Weights and optimiser bit for bit, and everything measured but the time."""
    for name in ("model/model.safetensors", "model/config.json", "model/tokenizer.json"):
        assert (run.folder / name).read_bytes() == (calm.folder / name).read_bytes(), name
    last, wanted = (sorted(one.checkpoints.glob("step-*"))[-1] for one in (run, calm))
    assert last.name == wanted.name
    for name in ("weights.safetensors", "state.pt"):
        assert (last / name).read_bytes() == (wanted / name).read_bytes(), name
    assert without_seconds(run.metrics) == without_seconds(calm.metrics)
    assert run.margins == calm.margins
    assert run.samples == calm.samples
    assert (run.folder / "report.html").is_file()
    assert not list(run.folder.rglob("*.partial")), "something half-written is left"
