"""Faults of several at once and of the machine: SIGTERM, two runs on one token folder, two resumes, a power cut.

As in `kills`, everything goes through the commands that a user calls, and `rounds` runs in a process of its own whose
forks are the victims. After each round stands on the disk what a calm run leaves; nothing is lost and nothing mixed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from dpo_lab.preferences import TokenData
from dpo_lab.workbench.cli import main
from dpo_lab.workbench.runs import Run
from tests.command_line import chat_model, some_rows, write_rows
from tests.faults import forked
from tests.hard.kills import QUICK, assert_same_run

Words = tuple[str, ...]


def rounds(place: str, num: int, seed: int = 0) -> None:
    """`num` rounds of each fault; prints a line of JSON on what was seen."""
    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    moments = Random(seed)
    pairs = write_rows(folder / "pairs.jsonl", some_rows(24))
    inputs = ("train", "--model", str(chat_model(folder / "model")), "--pairs", str(pairs), *QUICK,
              "--cache", str(folder / "cache.sqlite"))  # fmt: skip
    began = time.monotonic()
    assert ended(started(folder, (*inputs, "--run", str(folder / "calm")))) == 0
    seconds, calm = time.monotonic() - began, Run.load(folder / "calm")
    report: dict[str, Counter[str]] = {name: Counter() for name in FAULTS}
    for name, fault in FAULTS.items():
        for number in range(num):
            inside = folder / f"{name}-{number}"
            inside.mkdir()
            report[name].update(fault(inside, inputs, calm, moments.uniform(0, seconds)))
    print(json.dumps(report))


def sigterm(folder: Path, inputs: Words, calm: Run, moment: float) -> dict[str, int]:
    """Ended by SIGTERM at a moment and gone on with: as if nothing had been."""
    run = folder / "run"
    child = started(folder, (*inputs, "--run", str(run)))
    time.sleep(moment)
    os.kill(child, signal.SIGTERM)
    status = ended(child)
    is_early = status == -signal.SIGTERM and not run.exists()  # the command had not begun
    assert status in (0, 130) or is_early, (status, (folder / "log").read_text()[-2000:])
    seen = {"rounds": 1, "stopped": int(status != 0), "with steps": int((run / "metrics.jsonl").exists())}
    if "what was trained and measured is in" in (folder / "log").read_text():  # it struck the KL or the report
        assert ended(started(folder, ("report", str(run)))) == 0
        assert (run / "report.html").is_file()
        assert (run / "model/model.safetensors").read_bytes() == (calm.model_folder / "model.safetensors").read_bytes()
        return seen | {"in the report": 1}
    if status != 0:
        again = (*inputs, "--run", str(run)) if not run.exists() else ("train", "--run", str(run), "--resume")
        assert ended(started(folder, again)) == 0, (folder / "log").read_text()[-2000:]
    assert_same_run(Run.load(run), calm)
    return seen


def tokens(folder: Path, inputs: Words, calm: Run, moment: float) -> dict[str, int]:
    """Two runs on one token folder, the second a moment later: each learns from its own pairs, or is refused."""
    place = folder / "tokens"
    own = (*inputs, "--validation", "0", "--tokens", str(place))
    others = write_rows(folder / "others.jsonl", list(reversed(some_rows(24))))
    first = started(folder, (*own, "--run", str(folder / "first")))
    time.sleep(moment / 2)
    second = started(folder, (*own, "--pairs", str(others), "--run", str(folder / "second")))
    outcomes = [ended(first), ended(second)]
    assert sorted(outcomes) == [0, 2], (outcomes, (folder / "log").read_text()[-2000:])
    whole = TokenData.load(place)  # its sums are right
    assert len(whole) == 24
    won = folder / ("first" if outcomes[0] == 0 else "second")
    alone = folder / "alone"
    data = () if won.name == "first" else ("--pairs", str(others))
    assert ended(started(folder, (*own, *data, "--tokens", str(folder / "own"), "--run", str(alone)))) == 0
    assert (won / "model/model.safetensors").read_bytes() == (alone / "model/model.safetensors").read_bytes()
    assert ended(started(folder, (*own, *data, "--beta", "0.5", "--run", str(folder / "third")))) == 0  # it is reused
    return {"rounds": 1, "refused": outcomes.count(2)}


def resumes(folder: Path, inputs: Words, calm: Run, moment: float) -> dict[str, int]:
    """Killed, then gone on with twice at once: one goes on, the other is refused, the record is one run's."""
    run = folder / "run"
    child = started(folder, (*inputs, "--run", str(run)))
    until(lambda: list(run.glob("checkpoints/step-*/manifest.json")))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    again = ("train", "--run", str(run), "--resume")
    both = [started(folder, again)]
    time.sleep(min(moment / 4, 0.3))
    both.append(started(folder, again))
    outcomes = [ended(one) for one in both]
    assert 0 in outcomes, (folder / "log").read_text()[-2000:]
    assert set(outcomes) <= {0, 2}
    assert_same_run(Run.load(run), calm)
    return {"rounds": 1, "refused": outcomes.count(2)}


def power_cut(folder: Path, inputs: Words, calm: Run, moment: float) -> dict[str, int]:
    """Killed, and the end of the record is zeros, as a file system leaves what it had not written."""
    run = folder / "run"
    child = started(folder, (*inputs, "--run", str(run)))
    until(lambda: list(run.glob("checkpoints/step-*/manifest.json")))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    record = run / "metrics.jsonl"
    whole = record.read_bytes()
    written = Random(moment).randint(whole.index(b"\n") + 1, len(whole))
    record.write_bytes(whole[:written] + b"\0" * (len(whole) - written + 512))
    assert ended(started(folder, ("train", "--run", str(run), "--resume"))) == 0, (folder / "log").read_text()[-2000:]
    found, wanted = ({row["step"] for row in one.metrics if row["kind"] == "step"} for one in (Run.load(run), calm))
    assert found <= wanted
    assert max(found) == max(wanted)
    assert (run / "model/model.safetensors").read_bytes() == (calm.model_folder / "model.safetensors").read_bytes()
    return {"rounds": 1, "steps that only the record lost": len(wanted - found)}


FAULTS: dict[str, Callable[[Path, Words, Run, float], dict[str, int]]] = {
    "sigterm": sigterm, "tokens": tokens, "resumes": resumes, "power cut": power_cut,
}  # fmt: skip


def started(folder: Path, words: Words) -> int:
    """A command in a fork, which writes to `folder`/log; its process."""

    def work() -> None:
        with (folder / "log").open("a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        os._exit(main(list(words)))

    return forked(work)


def ended(child: int) -> int:
    """Its exit status, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
