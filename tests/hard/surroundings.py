"""What goes wrong around a command: the disk fills up, a folder is closed, a byte changes, the clock jumps.

Like `kills`: functions for a process of its own, whose forks do the work. A command either leaves what the calm one
leaves, or ends with status 2 and one message that names the place and the remedy, and goes on once that is done.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import dpo_lab.workbench.cli.models
import dpo_lab.workbench.cli.sweep
import dpo_lab.workbench.cli.train  # noqa: F401 - loaded before anything is forked
from dpo_lab.workbench.cli import main
from dpo_lab.workbench.labels import LabelBook
from dpo_lab.workbench.runs import Run
from dpo_lab.workbench.sweeps import StoredStudy
from tests.command_line import chat_model, some_rows, without_seconds, write_rows
from tests.faults import forked
from tests.hard import shim
from tests.hard.kills import QUICK, SWEEP, assert_same_run, stored

PLENTY = 2**40
DAYS = 3 * 86_400


class Ended(NamedTuple):
    status: int
    said: str


def carried_out(work: Callable[[], int], log: Path) -> Ended:
    """Do the work in a fork; its status, and all that it said."""

    def told() -> None:
        with log.open("w") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            try:
                status = work()
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    status = os.waitstatus_to_exitcode(os.waitpid(forked(told), 0)[1])
    return Ended(status, log.read_text())


def command(*words: object) -> int:
    return main([str(word) for word in words])


def is_told(ended: Ended, *pieces: str) -> bool:
    """Whether it ended with one message that has each of the pieces, and without Python's traceback."""
    assert ended.status == 2, f"status {ended.status}: {ended.said[-3000:]}"
    assert "Traceback" not in ended.said, ended.said[-3000:]
    one_line = " ".join(ended.said.split()).lower()
    return all(piece.lower() in one_line for piece in pieces)


class Workplace:
    """A model, pairs, and the commands of this room, all under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, folder / "disk"
        self.disk.mkdir(parents=True, exist_ok=True)
        self.model = chat_model(folder / "model")
        self.pairs = write_rows(folder / "pairs.jsonl", some_rows(24))
        self.rows = some_rows(40)

    def commands(self, name: str) -> dict[str, Callable[[], int]]:
        """What is tried, each on files of its own under `disk`; begun again, each goes on."""
        inputs = ("--model", self.model, "--pairs", self.pairs)
        run, study, book = self.disk / f"{name}-run", self.disk / f"{name}-study", self.disk / f"{name}-book.jsonl"
        own = lambda kind: ("--cache", self.disk / f"{name}-{kind}.sqlite")

        def train() -> int:
            is_begun = (run / "config.json").exists()
            return command("train", *own("train"), "--run", run, *(("--resume",) if is_begun else (*inputs, *QUICK)))

        def sweep() -> int:
            is_begun = (study / "sweep.json").exists()
            return command("sweep", *own("sweep"), "--study", study, *(() if is_begun else (*inputs, *SWEEP)))

        def label() -> int:
            try:
                labels = LabelBook.open(book, self.rows, who="me")
                while (number := labels.next) is not None:
                    labels.choose(("left", "right", "tie")[number % 3])
            except OSError as error:
                print(f"dpo-lab: {error}", file=sys.stderr)
                return 2
            return 0

        return {"train": train, "cache": lambda: command("cache", *inputs, *own("cache"), "--device", "cpu",
                                                         "--tokens-per-pass", "250"),
                "sweep": sweep, "label": label}  # fmt: skip

    def assert_same(self, kind: str, name: str, other: str) -> None:
        """What the command left is what it left under the other name."""
        if kind == "train":
            assert_same_run(Run.load(self.disk / f"{name}-run"), Run.load(self.disk / f"{other}-run"))
        elif kind == "cache":
            one, two = (stored(self.disk / f"{which}-cache.sqlite") for which in (name, other))
            assert one == two
            assert one
        elif kind == "sweep":
            one, two = (self.trials(which) for which in (name, other))
            assert one == two
            assert len(one) == 5
        else:
            one, two = ([choice[:3] for choice in LabelBook.open(self.disk / f"{which}-book.jsonl").choices]
                        for which in (name, other))  # fmt: skip
            assert one == two
            assert len(one) == len(self.rows)

    def trials(self, name: str) -> dict[tuple[float, float], float]:
        rows = StoredStudy.load(self.disk / f"{name}-study").rows()
        return {(row["beta"], row["learning_rate"]): row["value"] for row in rows if row["state"] == "complete"}


def fill_disk(place: str, levels: dict[str, int], seed: int = 0) -> None:
    """The disk fills up at so many random moments of each command; then there is room, and it goes on."""
    work, random, report = Workplace(Path(place)), Random(seed), Counter()
    for kind, num in levels.items():
        shim.room(work.disk, PLENTY)
        reader, writer = os.pipe()

        def calm(kind: str = kind, writer: int = writer) -> int:
            status = work.commands("calm")[kind]()
            os.write(writer, b"%d" % (PLENTY - shim.room_left()))
            return status

        ended = carried_out(calm, work.folder / "calm.log")
        assert ended.status == 0, ended.said[-3000:]
        written = int(os.read(reader, 40))
        assert written > 1000
        for number in range(num):
            name = f"full-{number}"
            shim.room(work.disk, random.randrange(written))
            ended = carried_out(work.commands(name)[kind], work.folder / f"{kind}-{name}.log")
            # Only SQLite may do with less: what it can't copy from its log at the end stays in the log.
            assert ended.status or kind == "cache", "it wrote less than the calm one"
            assert not ended.status or is_told(ended, str(work.disk), "free space"), ended.said[-2000:]
            shim.room(work.disk, -1)
            ended = carried_out(work.commands(name)[kind], work.folder / f"{kind}-{name}-on.log")
            assert ended.status == 0, ended.said[-3000:]
            work.assert_same(kind, name, "calm")
            report[kind] += 1
    print(json.dumps(report))


def jump_clock(place: str) -> None:
    """Every command once with a right clock and once with one that jumps by days between two readings."""
    work = Workplace(Path(place))
    for kind in work.commands("calm"):
        for name, seconds in (("calm", 0), ("jumpy", DAYS)):
            shim.clock(seconds)
            ended = carried_out(work.commands(name)[kind], work.folder / "clock.log")
            shim.clock(0)
            assert ended.status == 0, ended.said[-3000:]
        work.assert_same(kind, "jumpy", "calm")
    rows = Run.load(work.disk / "jumpy-run").metrics
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    assert seconds == sorted(seconds), "time ran backwards in the record"
    assert 0 <= seconds[0] <= seconds[-1] < 600
    trials = StoredStudy.load(work.disk / "jumpy-study").rows()
    assert all(0 <= row["seconds"] < 600 for row in trials if row["state"] == "complete")
    print("done")


def close_folders(place: str) -> None:
    """What may not be read or written. Permissions bind root too once it has put off its right to pass over them."""
    work = Workplace(Path(place))
    folder = work.folder

    def bound(words: tuple[object, ...]) -> Ended:
        def run() -> int:
            put_off_override()
            return command(*words)

        return carried_out(run, folder / "log")

    inputs = ("--model", work.model, "--pairs", work.pairs, "--cache", work.disk / "c.sqlite")
    own = ("--run", work.disk / "run")
    train = ("train", *inputs, *QUICK, *own)
    ended = bound(train)
    assert ended.status == 0, ended.said[-3000:]

    shutil.rmtree(sorted((work.disk / "run" / "checkpoints").iterdir())[-1])  # so that one is to be written again
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    cases: list[tuple[Path, int, tuple[object, ...]]] = [
        (closed, 0o555, ("train", *inputs, *QUICK, "--run", closed / "run")),
        (closed, 0o555, ("cache", *inputs[:4], "--device", "cpu", "--cache", closed / "c.sqlite")),
        (closed, 0o555, ("sweep", *inputs, *SWEEP, "--study", closed / "study")),
        (work.pairs, 0o000, ("train", *inputs, *QUICK, "--run", work.disk / "other")),
        (work.model / "model.safetensors", 0o000, ("train", *inputs, *QUICK, "--run", work.disk / "other")),
        (work.model, 0o000, ("train", *inputs, *QUICK, "--run", work.disk / "other")),
        (work.disk / "c.sqlite", 0o000, ("train", *inputs, *QUICK, "--run", work.disk / "other")),
        (work.disk / "run" / "checkpoints", 0o555, ("train", *own, "--resume")),
        (work.disk / "run" / "metrics.jsonl", 0o000, ("train", *own, "--resume")),
        (work.disk / "run" / "config.json", 0o000, ("train", *own, "--resume")),
    ]
    for path, mode, words in cases:
        before = path.stat().st_mode
        path.chmod(mode)
        ended = bound(words)
        path.chmod(before)
        assert is_told(ended, path.name, "permission"), f"{path.name}: {ended.said[-2000:]}"
    ended = bound(("train", *own, "--resume"))
    assert ended.status == 0, ended.said[-3000:]
    print(len(cases))


def put_off_override() -> None:
    """Take CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH from this process, where it has them: modes of files count."""
    libc = ctypes.CDLL(None)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~0b110  # effective: bits 1 and 2
    assert libc.capset(header, data) == 0


def change_bytes(place: str, flips: int, seed: int = 0) -> None:
    """One byte changes in a run that is to go on, in its cache or in its data: it ends as if nothing had happened, or
    is refused by name; never with other numbers."""
    work, random, report = Workplace(Path(place)), Random(seed), Counter()
    begin = lambda name: command("train", "--model", work.model, "--pairs", work.pairs, *QUICK, "--run",
                                 work.disk / name, "--cache", work.disk / f"{name}.sqlite")  # fmt: skip
    ended = carried_out(lambda: begin("calm"), work.folder / "calm.log")
    assert ended.status == 0, ended.said[-3000:]
    calm = Run.load(work.disk / "calm")
    good = work.folder / "good"
    work.disk.rename(good)
    shutil.copy(work.pairs, good / "pairs.jsonl")
    # As a kill after the last checkpoint but one leaves it: the newest is what a byte is changed in.
    shutil.rmtree(good / "calm" / "model")
    last = sorted((good / "calm" / "checkpoints").iterdir())[-1]
    config = json.loads((good / "calm" / "config.json").read_text())
    targets = [*last.iterdir(), good / "calm" / "config.json", good / "calm.sqlite", good / "pairs.jsonl"]
    calm = Run(good / "kept", config)
    shutil.copytree(good / "calm", calm.folder)
    for number in range(flips):
        target = targets[number % len(targets)]
        shutil.rmtree(work.disk, ignore_errors=True)
        shutil.copytree(good, work.disk)
        path = work.disk / target.relative_to(good)
        content = bytearray(path.read_bytes())
        place_of_it = random.randrange(len(content))
        content[place_of_it] ^= random.randrange(1, 256)
        path.write_bytes(content)
        shutil.copy(work.disk / "pairs.jsonl", work.pairs)
        ended = carried_out(lambda: command("train", "--run", work.disk / "calm", "--resume"), work.folder / "log")
        what = f"byte {place_of_it} of {target.name}"
        if ended.status:
            names = (path.name, path.parent.name, "data")
            assert any(is_told(ended, name) for name in names), f"{what}: {ended.said[-2000:]}"
            report[f"{target.name}, refused"] += 1
            continue
        assert_same_numbers(Run.load(work.disk / "calm"), calm, what)
        if target.parent == last:
            assert f"checkpoint {path.parent} is damaged" in " ".join(ended.said.split()), what
        report[f"{target.name}, no matter"] += 1
    print(json.dumps(report))


def assert_same_numbers(run: Run, calm: Run, what: str) -> None:
    assert without_seconds(run.metrics) == without_seconds(calm.metrics), what
    assert run.margins == calm.margins, what
    one, two = (sorted(each.checkpoints.iterdir())[-1] for each in (run, calm))
    assert (one / "weights.safetensors").read_bytes() == (two / "weights.safetensors").read_bytes(), what
