"""Lists to choose from: runs over each other in a figure, and texts cut to an entry of a menu."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dpo_lab.workbench.widgets.live_figure import LiveFigure


class RunsFigure(LiveFigure):
    """A live figure over a list of runs in the control `runs`; another list comes in without drawing twice."""

    _is_quiet = False

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
        """Draw; a failure is said under the picture, and is no reason to end a training."""
        with suppress(Exception):
            self.redraw()

    def _on_change(self, change: object) -> None:
        if not self._is_quiet:
            super()._on_change(change)


def shortened(text: str, most: int = 70) -> str:
    """A text as an entry of a menu: on one line, cut where it is long."""
    words = " ".join(text.split())
    return words if len(words) <= most else f"{words[: most - 1]}…"
