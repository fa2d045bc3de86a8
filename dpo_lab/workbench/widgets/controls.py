"""Controls made from a configuration dataclass: its documentation is the tooltip, its checks are the limits.

    controls = {name: control(DPOConfig, name) for name in ("loss", "beta", "learning_rate")}

A range stands here for each knob that has a slider or a box. It holds nothing that the configuration refuses.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import cache
from math import inf, log10
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
    "label_smoothing": Knob("smoothing", 0, 0.49, 0.01, "slider"),
    "flip": Knob("flipped labels", 0, 0.5, 0.01, "slider"),
    "warmup": Knob("warm-up", 0, 1, 0.01, "slider"),
    "lora": Knob("LoRA rank", 0, 1024, 1, "whole"),
    "epochs": Knob("epochs", 0.25, 100, 0.25, "number"),
    "batch_size": Knob("batch size", 1, 4096, 1, "whole"),
    "max_length": Knob("most tokens", 2, 32768, 1, "whole"),
    "seed": Knob("seed", 0, 2**31 - 1, 1, "whole"),
    "evaluate_every": Knob("look every", 1, 100_000, 1, "whole"),
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
        limits = {"min": min(knob.low, value), "max": max(knob.high, value)}
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


def at_its_end(one: Any) -> str:
    """What to say of a number that stands at an end of its control: what was typed may have lain beyond it."""
    low, high = getattr(one, "min", -inf), getattr(one, "max", inf)
    low, high = (one.base**low, one.base**high) if hasattr(one, "base") else (low, high)
    is_inside = not isinstance(one.value, int | float) or low * (1 + 1e-9) < one.value < high * (1 - 1e-9)
    return "" if is_inside else f"{one.description} is {one.value:.3g}; here it may lie from {low:.3g} to {high:.3g}."


def source_box(kind: type, name: str, value: str, *, options: Sequence[str] = ()) -> ipywidgets.Combobox:
    """A box for a source of model or data: type one, or take one of `options`."""
    return control_of(
        ipywidgets.Combobox, kind, name, value=value, options=tuple(options), ensure_option=False,
        continuous_update=False, placeholder="embedded, a path, or a Hub id",
    )  # fmt: skip


def tidy(value: Any) -> Any:
    """A number as a person would write it: a slider of powers of ten gives 0.12589254, this 0.126."""
    return float(f"{value:.3g}") if isinstance(value, float) else value
