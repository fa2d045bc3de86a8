"""What a sweep may try: one range or list of values per knob, written as a short text. No torch, no Optuna.

0.1               one value: fixed
0.05,0.1,0.5      one of these
0.05:1            any number between the two
0.05:1:log        the same, each factor as likely as the other: for β and the learning rate
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from dpo_lab.config import DPOConfig

SEARCHED = (
    "loss", "beta", "label_smoothing", "divergence", "learning_rate", "schedule", "warmup", "epochs", "max_steps",
    "batch_size", "optimizer", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
)  # fmt: skip
"""The fields of `DPOConfig` that a sweep may vary: those that decide what is learnt."""

Value = float | int | str | None


@dataclass(frozen=True)
class Choice:
    """One of several values. Their order has no meaning."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ",".join("none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                        for value in self.values)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Any number from `low` to `high`, both included."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}{':log' if self.is_log else ''}"


@dataclass(frozen=True)
class Space:
    """What is searched, and what is fixed for all trials."""

    searched: dict[str, Choice | Range]
    fixed: dict[str, Value]

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination of the listed values; the last knob turns fastest. ValueError where a knob has a range."""
        for name, dimension in self.searched.items():
            if isinstance(dimension, Range):
                raise ValueError(
                    f"a grid needs listed values, got {name} {dimension}; "
                    f"write {dimension.low:g},{dimension.high:g} with the points between, or take sampler tpe"
                )
        lists = [dimension.values for dimension in self.searched.values() if isinstance(dimension, Choice)]
        return (dict(zip(self.searched, values, strict=True)) for values in product(*lists))

    def corners(self) -> Iterator[dict[str, Value]]:
        """The ends of every range and every listed value, all combined: where a rule breaks first."""
        ends = [
            (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.values
            for dimension in self.searched.values()
        ]
        return (self.fixed | dict(zip(self.searched, values, strict=True)) for values in product(*ends))


def parse_space(texts: Mapping[str, str]) -> Space:
    """The space that texts such as {"beta": "0.05:1:log", "loss": "dpo,ipo"} describe.

    ValueError names the knob, the value, the rule and what to write instead.
    """
    searched: dict[str, Choice | Range] = {}
    fixed: dict[str, Value] = {}
    for name, text in texts.items():
        dimension = parse_dimension(name, text)
        if isinstance(dimension, Choice) and len(dimension.values) == 1:
            fixed[name] = dimension.values[0]
        else:
            searched[name] = dimension
    if not searched:
        raise ValueError(
            f"a sweep needs a knob to turn, got {', '.join(f'{n} {t}' for n, t in texts.items()) or 'none'}; "
            "give one several values, such as beta 0.05:1:log or loss dpo,ipo"
        )
    return Space(searched, fixed)


def parse_dimension(name: str, text: str) -> Choice | Range:
    """One knob's text as a list of values or a range."""
    if name not in SEARCHED:
        raise ValueError(f"{name} is no knob that a sweep turns; choose among {', '.join(SEARCHED)}")
    kinds = _kinds(name)
    text = str(text).strip()
    if ":" in text:
        dimension: Choice | Range = _range(name, text, kinds)
        ends: tuple[Value, ...] = (dimension.low, dimension.high)
    else:
        values = tuple(_value(name, part.strip(), kinds) for part in text.split(","))
        if len(set(values)) < len(values):
            raise ValueError(f"{name} lists a value twice, got {text!r}; each would only be tried more often")
        dimension, ends = Choice(values), values
    for end in ends:
        try:
            DPOConfig(**{name: end})  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ValueError(f"the space {name} {text} reaches too far: {error}") from None
    return dimension


def _range(name: str, text: str, kinds: tuple[type, ...]) -> Range:
    parts = [part.strip() for part in text.split(":")]
    if not {int, float} & set(kinds):
        raise ValueError(f"{name} has names and no numbers, got the range {text!r}; list them, as a,b,c")
    if len(parts) > 3 or (len(parts) == 3 and parts[2] != "log"):
        raise ValueError(f"{name} must be low:high or low:high:log, got {text!r}; for chosen values write a,b,c")
    is_log, is_whole = len(parts) == 3, float not in kinds
    low, high = (_value(name, part, tuple(set(kinds) & {int, float})) for part in parts[:2])
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must have low below high, both finite, got {text!r}; write the smaller one first")
    if is_log and low <= 0:
        raise ValueError(
            f"{name} can't begin at {low:g} on a log scale, got {text!r}; begin above 0, or leave out :log"
        )
    return Range(low, high, is_log, is_whole)


def _value(name: str, text: str, kinds: tuple[type, ...]) -> Value:
    if text.lower() == "none" and types.NoneType in kinds:
        return None
    for kind in (int, float):  # a whole number stays one, where the knob has both
        if kind in kinds:
            try:
                value = kind(text)
            except ValueError:
                continue
            return float(value) if float in kinds else value
    if str in kinds and text:
        return text
    wanted = "a whole number" if float not in kinds and int in kinds else "a name" if str in kinds else "a number"
    raise ValueError(f"{name} must be {wanted}, got {text!r}; write one value, a,b,c, low:high or low:high:log")


def _kinds(name: str) -> tuple[type, ...]:
    """What a field of the configuration may hold: some of float, int, str and NoneType."""
    hint: Any = typing.get_type_hints(DPOConfig)[name]
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(member if isinstance(member, type) else str for member in members)  # a Literal holds names
