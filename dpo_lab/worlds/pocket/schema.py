"""The records that the four jobs, the writer and the judge pass around. Knows no English."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, NamedTuple

Job = Literal["safety", "system", "format", "tools"]
Split = Literal["train", "test"]
JOBS: tuple[Job, ...] = ("safety", "system", "format", "tools")


@dataclass(frozen=True)
class Conversation:
    """What a model is shown, and the hidden specification by which its answer is judged.

    `task` is plain JSON. It is stored with each row and never shown to the model.
    """

    messages: list[dict[str, str]]
    job: Job
    task: dict[str, Any]
    tools: list[dict[str, Any]] | None = None
    split: Split = "train"

    @property
    def shown(self) -> str:
        """All the text of the conversation: an answer may use any word of it."""
        return "\n".join(message["content"] for message in self.messages)

    def row(self) -> dict[str, Any]:
        """The conversation as a row of the data files, to which the answers are added."""
        row: dict[str, Any] = {"prompt": self.messages, "job": self.job, "split": self.split, "task": self.task}
        return row | {"tools": self.tools} if self.tools else row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Conversation:
        """The inverse of `row`."""
        return cls(row["prompt"], row["job"], row["task"], row.get("tools"), row.get("split", "train"))


class Part(NamedTuple):
    """One thing that the judge looked at. An answer succeeds when every part is complete."""

    name: str
    weight: float
    """Share of the three points that the parts can earn; the weights of an answer add up to 1."""
    score: float
    """0 missing, 1 complete, in between for halves."""
    why: str
    """What was missing, in words; unused when the part is complete."""


class Assessment(NamedTuple):
    """What a job's own checker says about a well-formed answer."""

    parts: list[Part]
    enough: int
    """Words that the answer may have before its length costs."""


class Verdict(NamedTuple):
    """The true reward of an answer, and how it came about. `parts` adds up to `reward`."""

    reward: float
    parts: dict[str, float]
    success: bool
    well_formed: bool
    reason: str


class Flaw(NamedTuple):
    """A realistic way to go wrong, and the judge's part that must notice it."""

    part: str
    write: Callable[[Conversation, Random], str]
    weight: float = 1.0
    """How often the mixture for SFT makes this mistake, relative to the job's other ones."""


@dataclass(frozen=True)
class JobSpec:
    """A job: where its prompts come from, how answers are written, how they are checked."""

    sample: Callable[[Random, Split], Conversation]
    good: Callable[[Conversation, Random], str]
    flaws: Callable[[Conversation], dict[str, Flaw]]
    assess: Callable[[Conversation, str], Assessment]
    good_share: float = field(default=0.6)
    """Share of good answers in the mixture for SFT."""
