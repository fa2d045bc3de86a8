"""Controls made from a configuration dataclass: its documentation is the tooltip, its checks are the limits.

    controls = {name: control(DPOConfig, name) for name in ("loss", "beta", "learning_rate")}

A range stands here for each knob that has a slider or a box; it is cut to what the dataclass accepts, so a control
cannot offer a value that the configuration refuses.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import cache
from math import log10
from typing import Any, NamedTuple

import ipywidgets

from dpo_lab.workbench.widgets.layout import room, tip


class Knob(NamedTuple):
    """How a field is shown, and the range that is of use."""

    label: str
    low: float
    high: float
    step: float  # of a logarithmic slider in powers of ten
    kind: str  # "log", "slider", "number", "whole"


KNOBS = {
    "beta": Knob("β", 0.01, 10, 0.05, "log"),
    "learning_rate": Knob("learning rate", 1e-6, 1e-2, 0.05, "log"),
    "label_smoothing": Knob("label smoothing", 0, 1, 0.01, "slider"),
    "epochs": Knob("epochs", 0, 100, 0.25, "number"),
    "batch_size": Knob("batch size", 0, 4096, 1, "whole"),
    "max_length": Knob("length (tokens)", 0, 32768, 1, "whole"),
    "seed": Knob("seed", 0, 2**31 - 1, 1, "whole"),
    "evaluate_every": Knob("evaluate every", 0, 100_000, 1, "whole"),
    "max_steps": Knob("steps at most", 0, 1_000_000, 1, "whole"),
    "limit": Knob("pairs at most", 0, 1_000_000, 1, "whole"),
    "samples": Knob("prompts to answer", 0, 512, 1, "whole"),
    "max_new_tokens": Knob("answer length (tokens)", 0, 4096, 1, "whole"),
}


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The line of documentation under each field of a dataclass, those of its bases included."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is object or base.__module__ == "builtins":
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for entry, following in zip(tree.body, tree.body[1:], strict=False):
            is_field = isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
            if is_field and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[entry.target.id] = inspect.cleandoc(str(following.value.value))  # pyright: ignore
    return docs


def accepted_range(kind: type, name: str, low: float, high: float, step: float) -> tuple[float, float]:
    """The part of [low, high] that the dataclass accepts for a field, each end moved inwards by whole steps."""

    def is_accepted(value: float) -> bool:
        try:
            kind(**{name: value})
        except ValueError:
            return False
        return True

    num = round((high - low) / step)
    at = lambda i: type(step)(round(low + i * step, 10))
    good = next((i for i in range(num + 1) if is_accepted(at(i))), None)
    if good is None:
        raise ValueError(f"{kind.__name__} accepts no {name} between {low} and {high} in steps of {step}; "
                         "give another range")  # fmt: skip
    # Between the first accepted value and the end, the rule may forbid a tail: its border is found by halving.
    first, last = good, num
    if not is_accepted(at(last)):
        while last - good > 1:
            middle = (good + last) // 2
            good, last = (middle, last) if is_accepted(at(middle)) else (good, middle)
        last = good
    return at(first), at(last)


def control(kind: type, name: str, value: Any = MISSING, **changes: Any) -> Any:
    """An ipywidgets control for a field of a dataclass: its label, its tooltip, its limits, and a start value.

    value: where it starts; the field's default where none is given. `changes` are traits of the control.
    """
    (entry,) = (entry for entry in fields(kind) if entry.name == name)
    if value is MISSING:
        value = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    hint = typing.get_type_hints(kind)[name]
    if typing.get_origin(hint) is typing.Literal:
        return control_of(
            ipywidgets.Dropdown, kind, name, **{"options": typing.get_args(hint), "value": value} | changes
        )
    waits = {"continuous_update": False}  # for the mouse to be released, or for Enter
    if name not in KNOBS:
        return control_of(ipywidgets.Text, kind, name, **waits | {"value": str(value)} | changes)
    knob = KNOBS[name]
    if knob.kind == "log":
        low, high = min(knob.low, value), max(knob.high, value)  # a slider would cut the value without a word
        rounding = 1e-12  # of the logarithm; else a value at an end would be moved
        limits = {"base": 10, "min": log10(low) - rounding, "max": log10(high) + rounding, "readout_format": ".3g"}
    else:
        step = int(knob.step) if knob.kind == "whole" else knob.step
        low, high = accepted_range(kind, name, knob.low, knob.high, step)
        limits = {"min": min(low, value), "max": max(high, value)}
    make = {
        "log": ipywidgets.FloatLogSlider, "slider": ipywidgets.FloatSlider, "number": ipywidgets.BoundedFloatText,
        "whole": ipywidgets.BoundedIntText,
    }[knob.kind]  # fmt: skip
    return control_of(make, kind, name, **waits | limits | {"step": knob.step, "value": value} | changes)


def control_of(make: Callable[..., Any], kind: type, name: str, **traits: Any) -> Any:
    """A control of one's own choice for a field: with its label, its tooltip and room for both."""
    look = {
        "description": KNOBS[name].label if name in KNOBS else name.replace("_", " "),
        **tip(field_docs(kind)[name]),
    }
    return make(**look | room("30em", "11em") | traits)


def source_box(kind: type, name: str, value: str, *, options: Sequence[str] = ()) -> ipywidgets.Combobox:
    """A box for a source of model or data: type one, or take one of `options`."""
    return control_of(
        ipywidgets.Combobox, kind, name, value=value, options=tuple(options), ensure_option=False,
        continuous_update=False, placeholder="embedded, a path, or a Hub id",
    )  # fmt: skip


def tidy(value: Any) -> Any:
    """A number as a person would write it: a slider of powers of ten gives 0.12589254, this 0.126."""
    return float(f"{value:.3g}") if isinstance(value, float) else value
