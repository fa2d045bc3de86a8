"""A question for a labeller: a prompt with two answers, and where each came from, which stays hidden while labelling.

Rows of pairs in, questions out. Knows no files and no choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dpo_lab.preferences.chat import completion_text, prompt_text
from dpo_lab.preferences.layouts import TextOrTurns
from dpo_lab.preferences.reports import BadRow, Place, shown
from dpo_lab.preferences.rows import pair_row

SOURCES = ("chosen", "rejected")
"""The names of the two answers of a row that doesn't name their sources."""


@dataclass(frozen=True)
class Question:
    """A prompt and two answers, 0 and 1. Which of them stands on the left is the book's business."""

    prompt: TextOrTurns
    answers: tuple[TextOrTurns, TextOrTurns]
    sources: tuple[str, str] = SOURCES
    columns: dict[str, Any] = field(default_factory=dict)
    """What else the row has: system, tools, and columns that are carried along."""

    @property
    def prompt_text(self) -> str:
        """The prompt for a human reader, the system's and earlier turns included."""
        return prompt_text(self.columns | {"prompt": self.prompt})

    def answer_text(self, answer: int) -> str:
        """Answer 0 or 1 for a human reader."""
        return completion_text({"prompt": self.prompt, "answer": self.answers[answer]}, "answer")

    def row(self, winner: int) -> dict[str, Any]:
        """A row of preference data in which answer `winner` is the chosen one.

        Columns that describe one answer (`reward_chosen`, `chosen_model`) go with it to the other side.
        """
        columns = dict(self.columns)
        if winner == 1:
            columns = {_other_side(name, columns): value for name, value in columns.items()}
        pair = {"prompt": self.prompt, "chosen": self.answers[winner], "rejected": self.answers[1 - winner]}
        sources = {"source_chosen": self.sources[winner], "source_rejected": self.sources[1 - winner]}
        return pair | columns | sources

    def as_json(self) -> dict[str, Any]:
        """The question as a book stores it."""
        return {"prompt": self.prompt, "answers": [*self.answers], "sources": [*self.sources], "columns": self.columns}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Question:
        """The inverse of `as_json`. KeyError, TypeError or ValueError where it is none."""
        first, second = stored["answers"]
        one, other = stored["sources"]
        return cls(stored["prompt"], (first, second), (one, other), dict(stored["columns"]))


class Questions(NamedTuple):
    """The questions of some rows, and the rows that make none."""

    questions: list[Question]
    identical: list[int]
    """Indices of rows whose two answers are the same text: nobody can prefer one, so they are left out."""


def questions_of(rows: Iterable[Mapping[str, Any]]) -> Questions:
    """Questions from rows of `prompt` with `chosen` and `rejected` in any layout, or with `answers`, a list of two.

    `sources` (a list of two names), or `source_chosen` and `source_rejected`, name where the answers came from.
    A row that is no pair raises BadRow with its index. Rows with the same answer twice are left out and listed.
    """
    questions, identical = [], []
    for index, raw in enumerate(rows):
        try:
            question = _question(raw)
        except BadRow as problem:
            raise problem.at(Place("the rows to label", row=index)) from None
        if question.answers[0] == question.answers[1]:
            identical.append(index)
        else:
            questions.append(question)
    if not questions:
        raise ValueError(
            f"there is nothing to label: no row with two different answers among {len(identical)}; "
            "give rows with a prompt and answers, or sample the answers at a higher temperature"
        )
    return Questions(questions, identical)


def task_of(questions: Sequence[Question]) -> str:
    """A SHA-256 over the questions, as hex: two books with the same task hold labels of the same questions.

    Sources and carried columns play no part: the labeller doesn't see them.
    """
    digest = hashlib.sha256()
    for question in questions:
        columns = {name: question.columns.get(name) for name in ("system", "tools")}
        digest.update(json.dumps([question.prompt, question.answers, columns], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _question(raw: Mapping[str, Any]) -> Question:
    row = {name: value for name, value in raw.items() if value is not None}
    if "answers" in row:
        answers = row.pop("answers")
        if not isinstance(answers, list | tuple) or len(answers) != 2:
            raise BadRow("answers", f"must be a list of two answers, got {shown(answers)}", "give two to compare")
        row["chosen"], row["rejected"] = answers
    named = [row.pop(f"source_{side}", None) for side in SOURCES]
    sources = row.pop("sources", named if all(named) else SOURCES)
    if not isinstance(sources, list | tuple) or len(sources) != 2 or not all(isinstance(name, str) for name in sources):
        raise BadRow("sources", f"must be two names, got {shown(sources)}", "name where each answer came from")
    fields = pair_row(row).fields
    columns = {name: value for name, value in fields.items() if name not in ("prompt", "chosen", "rejected")}
    try:
        json.dumps(columns, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow(None, f"has a column that JSON can't hold ({error})", "leave that column out") from None
    return Question(fields["prompt"], (fields["chosen"], fields["rejected"]), (sources[0], sources[1]), columns)


def _other_side(name: str, columns: Mapping[str, Any]) -> str:
    """The name under which a column of one answer stands once the answers change places."""
    for one, other in (SOURCES, SOURCES[::-1]):
        for swapped in (
            f"{name.removesuffix(f'_{one}')}_{other}" if name.endswith(f"_{one}") else name,
            f"{other}_{name.removeprefix(f'{one}_')}" if name.startswith(f"{one}_") else name,
        ):
            if swapped != name and swapped in columns:
                return swapped
    return name
