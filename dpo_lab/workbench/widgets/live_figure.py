"""A picture that is drawn anew when a control changes. Core controls of ipywidgets only; no pyplot, no Output widget.

    LiveFigure(draw, beta=log_slider("β", 0.1, low=0.01, high=10))

`draw(beta=0.1)` returns the picture: a plain function, which a static twin calls with values of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import log10
from typing import Any

import ipywidgets

from dpo_lab.workbench.plots.style import Picture
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.layout import drawing, look, picture_box, room, show_picture

_ROOM = ("34em", "12em")  # of a control, and of a label of several words


class LiveFigure(ipywidgets.VBox):
    """Controls, and under them the picture that `draw(**values)` returns for their values.

    `controls` maps the argument names of `draw` to ipywidgets with a `value`; a control without a description takes
    its argument's name. `describe(**values)` says in words what the picture shows: the text stands under it, where a
    screen reader announces each change. Without it the values stand there. All controls stay reachable in `controls`:
    `figure.controls["beta"].value = 1.0` redraws, in a test as in a notebook.
    """

    def __init__(
        self, draw: Callable[..., Picture], /, *, describe: Callable[..., str] | None = None, **controls: Any
    ) -> None:
        for name, control in controls.items():
            if not isinstance(control, ipywidgets.Widget) or not control.has_trait("value"):
                raise ValueError(f"control {name!r} must be a widget with a value, got {control!r}; "
                                 f"try slider({name!r}, 1.0, low=0, high=2)")  # fmt: skip
            if not getattr(control, "description", ""):
                control.set_trait("description", name)
        self.controls = controls
        self._draw, self._describe = draw, describe
        self.image, self.words = picture_box(), ipywidgets.HTML()
        super().__init__([*controls.values(), self.image, self.words, look()])
        self.redraw()
        for control in controls.values():
            control.observe(self._on_change, names="value")

    @property
    def values(self) -> dict[str, Any]:
        """What the controls say now: the arguments of `draw`."""
        return {name: control.value for name, control in self.controls.items()}

    def redraw(self) -> None:
        """Draw for the present values. A failure stands under the picture, and is raised."""
        with drawing:
            values = self.values  # read under the lock: the last to draw draws the newest values
            try:
                picture = self._draw(**values)
                words = self._describe(**values) if self._describe else self._values_as_text()
                show_picture(self.image, picture)
            except Exception as error:
                self.words.value = markup.line(f"This could not be drawn: {error}")
                raise
            self.words.value = self._in_html(words)

    def _on_change(self, _change: object) -> None:
        self.redraw()

    _in_html = staticmethod(markup.line)

    def _values_as_text(self) -> str:
        pairs = [(control.description, control.value) for control in self.controls.values()]
        return ", ".join(f"{name} = {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in pairs)

    def __repr__(self) -> str:
        # What is shown where widgets are not, such as on GitHub; the picture's bytes would fill the page.
        return f"LiveFigure({self._values_as_text()})"


class RunsFigure(LiveFigure):
    """A live figure over a list of runs in the control `runs`; another list comes in without drawing twice."""

    _is_quiet, _in_html = False, staticmethod(lambda words: markup.notes([words], "The curves in words"))

    def offer(self, options: Sequence[tuple[str, Any]], chosen: tuple[Any, ...]) -> None:
        """Another list of runs, of which some are shown."""
        self._is_quiet = True
        try:
            self.controls["runs"].options = options
            self.controls["runs"].value = chosen
        finally:
            self._is_quiet = False
        self.try_redraw()

    def try_redraw(self) -> None:
        """Draw; a failure stands under the picture, and is no reason to end a training."""
        with suppress(Exception):
            self.redraw()

    def _on_change(self, change: object) -> None:
        if not self._is_quiet:
            super()._on_change(change)


def slider(
    label: str, value: float, *, low: float, high: float, step: float = 0.1, is_live: bool = False
) -> ipywidgets.FloatSlider:
    """A slider from `low` to `high`. It acts when the mouse is released; `is_live` also draws on the way there."""
    return ipywidgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=label, readout_format=".2f", continuous_update=is_live,
        **room(*_ROOM),
    )  # fmt: skip


def log_slider(
    label: str, value: float, *, low: float, high: float, is_live: bool = False
) -> ipywidgets.FloatLogSlider:
    """A slider from `low` to `high`, powers of ten both, on which each step is a factor: for β and other positives."""
    if not 0 < low <= value <= high:
        raise ValueError(f"a logarithmic slider needs 0 < low <= value <= high, got low {low}, value {value}, "
                         f"high {high}; slider() takes zero and negative values")  # fmt: skip
    return ipywidgets.FloatLogSlider(
        value=value, base=10, min=log10(low), max=log10(high), step=0.05, description=label, readout_format=".3g",
        continuous_update=is_live, **room(*_ROOM),
    )  # fmt: skip


def choice(label: str, value: Any, *, options: Sequence[Any]) -> ipywidgets.Dropdown:
    """A menu of `options`: values, or (text, value) pairs."""
    return ipywidgets.Dropdown(value=value, options=options, description=label, **room(*_ROOM))
