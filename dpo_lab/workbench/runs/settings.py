"""What the settings of runs, recipes, sweeps and commands have in common: fields, going on as begun, the command line.

No torch: `dpo-lab --help` answers at once.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from dpo_lab.config import Precision, ScoreTurns

Settings = TypeVar("Settings", bound=Any)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Where the model and the pairs come from."""

    model: str = "embedded"
    """`embedded`, `smollm2` (a real model; without a network once `make real` has run), a folder that save_pretrained
    wrote (RUN/model), a .gguf file, or a Hub id."""
    pairs: str = "embedded"
    """`embedded`, a file (.jsonl .ndjson .json .parquet .csv .tsv), a folder, or a Hub id."""
    limit: int | None = None
    """Use at most this many rows, drawn with the seed; fewer rows make a quicker run."""


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """How rows are read."""

    split: str | None = None
    """Which split of the data, where it has several; None takes train."""
    on_bad_row: Literal["raise", "skip"] = "raise"
    """Stop at a row that cannot be used, or leave it out, count it and list it."""
    columns: tuple[str, ...] = ()
    """Where a field has another name in the data: prompt=question chosen=good rejected=bad."""
    pairing: Literal["best_worst", "best_each", "all"] = "best_worst"
    """Which pairs are made of several answers to a prompt with scores or ranks: the best with the worst, the best with
    each worse one, or all."""


@dataclass(frozen=True, kw_only=True)
class ReadingSettings(RowSettings, SourceSettings):
    """How model and pairs are read."""

    trust_remote_code: bool = False
    """Run Python code that comes with a Hub model. Read it first."""


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a model is run over rows."""

    max_length: int = 1024
    """Most tokens of prompt plus one completion, as in training."""
    score_turns: ScoreTurns = "assistant"
    """Of an answer of several turns: score those of the assistant, also what users and tools say (`all`), or `last`."""
    precision: Precision = "float32"
    """Arithmetic of the forward pass, as in training."""
    device: str = "auto"
    """`auto` takes the GPU where there is one."""


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """What is learnt from and what is held out."""

    validation: float = 0.1
    """Share of the rows held out for evaluation, by prompt, where no held-out data is named; 0 evaluates nothing."""
    job: str | None = None
    """Of the embedded data only the rows of this job, to train on and held out: safety, system, format or tools."""
    flip: float = 0.0
    """Share of the training rows that get the wrong label, drawn with the seed: noise made on purpose."""

    def check_split(self) -> None:
        """ValueError for a share that is none."""
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a share and must lie in [0, 1], got {self.flip}; 0.2 is much noise, 0 is none")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is a share and must lie in [0, 1), got {self.validation}; 0.1 is usual, 0 "
                             "holds none out")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings(SplitSettings):
    """What is held out, and how the model answers it."""

    samples: int = 8
    """Held-out prompts answered before and after training, in a panel at every evaluation; 0 samples nothing."""
    sample_temperature: float = 0.7
    """Temperature of those answers; 0 is greedy."""
    max_new_tokens: int = 128
    """Longest sampled answer, in tokens."""

    def check_held_out(self) -> None:
        """ValueError for what would fail only after training."""
        self.check_split()
        if self.samples < 0:
            raise ValueError(f"samples must not be negative, got {self.samples}; 0 samples nothing")
        if not 0 <= self.sample_temperature < math.inf:
            raise ValueError(
                f"sample_temperature must be finite and not negative, got {self.sample_temperature}; 0 is greedy"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}; 128 is the usual start")


def shared_fields(settings: Any, kind: type) -> dict[str, Any]:
    """The fields of the dataclass `kind` among the settings, such as a configuration's among a command's options."""
    return {entry.name: getattr(settings, entry.name) for entry in fields(kind)}


def as_begun(
    settings: Settings, begun: Mapping[str, Any], kind: str, folder: Path, *, free: Collection[str] = ()
) -> Settings:
    """The settings that a run or a sweep (`kind`) was begun with. One given otherwise is refused, unless `free`."""
    what = f"the {kind} in {folder}"
    taken: dict[str, Any] = {}
    hints = get_type_hints(type(settings))
    for entry in fields(settings):
        if entry.name not in begun:
            continue
        given, recorded = getattr(settings, entry.name), begun[entry.name]
        if not is_of(recorded, hints[entry.name]):
            raise ValueError(f"{what} is damaged: its {entry.name} can't be {recorded!r}; restore it, or begin "
                             f"another {kind}")  # fmt: skip
        if entry.name == "trust_remote_code" and recorded and not given:
            raise ValueError(
                f"{what} runs Python code that comes with its model, which a file alone can't allow; read that code, "
                "then say --trust-remote-code again"
            )
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        if given in (default, recorded):
            taken[entry.name] = recorded
        elif entry.name not in free:
            raise ValueError(
                f"--{entry.name.replace('_', '-')} is {given!r}, but {what} was begun with {recorded!r}; leave it out "
                f"to go on, or begin another {kind}"
            )
    return replace(settings, **taken)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a field's type: a plain type, a union of such, texts, or a mapping."""
    kind = get_origin(hint)
    if kind is tuple:
        return type(value) is tuple and all(type(item) is str for item in value)
    if kind is dict or hint is dict:
        return type(value) is dict
    if options := get_args(hint):
        return value in options if kind is Literal else any(is_of(value, option) for option in options)
    return type(value) is hint or (hint is float and type(value) is int) or (hint is Path and isinstance(value, Path))


def option(name: str, value: Any) -> str:
    """A setting as a shell takes it: `--learning-rate 0.0001`, `--no-prune`."""
    flag = f"--{name.replace('_', '-')}"
    match value:
        case bool():
            return flag if value else f"--no-{flag[2:]}"
        case str() if value.startswith("-"):
            return shlex.quote(f"{flag}={value}")
        case dict():
            words = [word for pair in value.items() for word in pair]
        case tuple():
            words = list(value)
        case _:
            words = [value]
    return shlex.join([flag, *map(str, words)])
