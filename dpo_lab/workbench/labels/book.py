"""A book of labels: questions, and what one person chose, on the disk before the next question is shown.

One file of JSON lines. First a header and the questions, written whole or not at all; then one line per event:

    {"kind": "choice", "question": 3, "choice": "left", "left": 1, ...}    answer 1 stood on the left and was chosen
    {"kind": "undo", "question": 3, ...}                                   the choice before it holds no more

Lines are only ever added, each is with the disk when the call returns, and an undo is a line too: a process killed at
any byte loses at most the line in hand, and the file records how the labels came about.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from dpo_lab.storage.files import append_line, mend, read_lines, write_lines
from dpo_lab.workbench.labels.questions import Question, questions_of, task_of

logger = logging.getLogger("dpo_lab")

CHOICES = ("left", "right", "tie", "skip")
VERSION = 1
REMEDY = "free space or permissions there, or name another file; what was chosen before is safe"


class Choice(NamedTuple):
    """What was chosen at one question."""

    question: int
    choice: str
    left: int
    """Which answer stood on the left, 0 or 1."""
    when: str
    seconds: float | None = None
    """How long the question was looked at, where the panel knows."""

    @property
    def winner(self) -> int | None:
        """The preferred answer, 0 or 1; None for a tie and for a skipped question."""
        return {"left": self.left, "right": 1 - self.left}.get(self.choice)


class LabelBook:
    """Questions and the choices of one person about them. `LabelBook.open` begins a book or goes on with it."""

    def __init__(self, path: Path, header: Mapping[str, Any], questions: Sequence[Question]) -> None:
        self.path, self.header, self.questions = path, dict(header), list(questions)
        self.events: list[dict[str, Any]] = []
        """Every event of the file, undone choices included."""
        self.left_out: list[int] = []
        """Rows that are no questions, as given to `open` when the book began: both answers were the same."""
        self.torn = 0
        """Bytes of a last line that a kill had cut off, taken away when the book was opened."""
        self._standing: dict[int, Choice] = {}
        self._lefts = _lefts(len(self.questions), self.header["seed"], self.header["who"])
        self._lock = threading.RLock()
        self._size = 0

    def __repr__(self) -> str:
        return f"LabelBook({str(self.path)!r}, {self.who}: {self.progress})"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        rows: Iterable[Mapping[str, Any]] | None = None,
        *,
        who: str | None = None,
        seed: int = 0,
    ) -> LabelBook:
        """The book in the file `path`, where it stopped; a new one about `rows` where there is no such file.

        rows: as `questions_of` takes them. Of a book that is there they may be left out; where given, they must be its
            questions. who: the labeller, "someone" by default; a book belongs to one person. seed: decides with `who`
            which answer stands on the left, half of the time the first. An existing book has its own seed.
        """
        path = Path(path)
        if path.exists():
            book = cls._read(path)
            book._check(rows, who)
            return book
        if rows is None:
            raise ValueError(f"there is no book {path} to go on with; give the rows to label, to begin one")
        questions, left_out = questions_of(rows)
        header = {"kind": "book", "version": VERSION, "who": _name(who), "seed": seed, "task": task_of(questions),
                  "num_questions": len(questions), "left_out": left_out, "when": _now()}  # fmt: skip
        lines = [header, *({"kind": "question", **question.as_json()} for question in questions)]
        write_lines(path, lines, remedy=REMEDY)
        if left_out:
            logger.warning("%d of %d rows have the same answer twice and are left out: rows %s", len(left_out),
                           len(questions) + len(left_out), ", ".join(map(str, left_out[:8])))  # fmt: skip
        return cls._read(path)

    # ── labelling ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def next(self) -> int | None:
        """The first question without a choice; None when all are done."""
        return next((number for number in range(len(self.questions)) if number not in self._standing), None)

    def left_of(self, question: int) -> int:
        """Which answer of a question stands on the left, 0 or 1: random by seed and labeller, the same every time."""
        return self._lefts[question]

    def choose(self, choice: str, *, seconds: float | None = None) -> Choice:
        """Record "left", "right", "tie" or "skip" for the next question; it is on the disk when this returns."""
        if choice not in CHOICES:
            raise ValueError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
        with self._lock:
            number = self.next
            if number is None:
                raise ValueError(f"all {len(self.questions)} questions have their label; undo goes back to the last")
            made = Choice(number, choice, self.left_of(number), _now(), None if seconds is None else round(seconds, 2))
            self._add({"kind": "choice", **made._asdict()})
            return made

    def undo(self) -> Choice:
        """Take back the last choice that stands, which is returned; its question comes next. May be repeated."""
        with self._lock:
            if not self._standing:
                raise ValueError("there is nothing to undo: no choice stands; label a question first")
            last = next(reversed(self._standing.values()))
            self._add({"kind": "undo", "question": last.question, "when": _now()})
            return last

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def who(self) -> str:
        """The labeller."""
        return self.header["who"]

    @property
    def task(self) -> str:
        """The questions, as a fingerprint: see `task_of`."""
        return self.header["task"]

    @property
    def choices(self) -> list[Choice]:
        """The choices that stand, in the order in which they were made."""
        with self._lock:
            return list(self._standing.values())

    def choice_at(self, question: int) -> Choice | None:
        """The choice that stands at a question, or None."""
        return self._standing.get(question)

    @property
    def counts(self) -> dict[str, int]:
        """How many questions have which choice; "open" counts those without any."""
        found = Counter(choice.choice for choice in self.choices)
        return {name: found[name] for name in CHOICES} | {"open": len(self.questions) - found.total()}

    @property
    def progress(self) -> str:
        """One line on how far the labelling is."""
        counts = self.counts
        num_done = len(self.questions) - counts["open"]
        others = [f"{counts[name]} {name if counts[name] == 1 else plural}"
                  for name, plural in (("tie", "ties"), ("skip", "skips")) if counts[name]]  # fmt: skip
        return f"{num_done} of {len(self.questions)} done" + (f" ({', '.join(others)})" if others else "")

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def _read(cls, path: Path) -> LabelBook:
        found = read_lines(path)
        lines = found.rows
        header = lines[0] if lines else {}
        wanted = {"version": int, "who": str, "seed": int, "task": str, "num_questions": int}
        if header.get("kind") != "book" or any(type(header.get(name)) is not kind for name, kind in wanted.items()):
            raise ValueError(f"{path} is no book of labels: its first line has no header; give another file")
        if header["version"] != VERSION:
            raise ValueError(f"{path} has version {header['version']}, and version {VERSION} is read here; "
                             "use the dpo_lab that wrote it")  # fmt: skip
        count = header["num_questions"]
        try:
            questions = [Question.from_json(line) for line in lines[1 : 1 + count] if line.get("kind") == "question"]
        except (KeyError, TypeError, ValueError):
            questions = []
        if len(questions) != count or task_of(questions) != header["task"]:
            raise ValueError(f"{path} doesn't hold the {count} questions that it began with; restore the file")
        book = cls(path, header, questions)
        book.left_out = list(header.get("left_out", []))
        for number, event in enumerate(lines[1 + count :], start=2 + count):
            if not book._apply(event):
                raise ValueError(f"{path}, line {number} doesn't follow from the lines before it; restore the file, "
                                 "or delete this line and those after it")  # fmt: skip
        book._size, book.torn = mend(path, found, remedy=REMEDY), found.torn
        if book.torn:
            logger.warning("%s ended in a line that was cut off after %d bytes; it is removed", path, book.torn)
        return book

    def _check(self, rows: Iterable[Mapping[str, Any]] | None, who: str | None) -> None:
        if who is not None and who != self.who:
            raise ValueError(f"{self.path} is the book of {self.who!r}, and {who!r} would write into it; give everyone "
                             "a book of their own, so that their agreement can be measured")  # fmt: skip
        if rows is not None and task_of(questions_of(rows).questions) != self.task:
            raise ValueError(f"{self.path} holds labels of {len(self.questions)} other questions than those given; "
                             "leave the rows out to go on with it, or begin another file")  # fmt: skip

    def _add(self, event: dict[str, Any]) -> None:
        self._size = append_line(self.path, event, expected_size=self._size, remedy=REMEDY)
        assert self._apply(event)

    def _apply(self, event: dict[str, Any]) -> bool:
        """Take an event in; False where it makes no sense here."""
        number = event.get("question")
        if not isinstance(number, int):
            return False
        if event.get("kind") == "undo":
            if not self._standing or next(reversed(self._standing)) != number:
                return False
            del self._standing[number]
        else:
            fits = event.get("kind") == "choice" and event.get("choice") in CHOICES and event.get("left") in (0, 1)
            if not fits or number in self._standing or not 0 <= number < len(self.questions):
                return False
            when, seconds = str(event.get("when", "")), event.get("seconds")
            self._standing[number] = Choice(number, event["choice"], event["left"], when, seconds)
        self.events.append(event)
        return True


def _lefts(count: int, seed: int, who: str) -> list[int]:
    """For each question the answer on the left: half of them 0, half 1, in random order."""
    lefts = [number % 2 for number in range(count)]
    random = Random(json.dumps([seed, who]))
    random.shuffle(lefts)
    # Of an odd number of questions one more would always show answer 0 on the left.
    return [1 - left for left in lefts] if count % 2 and random.random() < 0.5 else lefts


def _name(who: str | None) -> str:
    if who is not None and not who.strip():
        raise ValueError("who is empty; name the labeller, so that two books can be distinguished")
    return who or "someone"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
