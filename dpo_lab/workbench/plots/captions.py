"""How a notebook shows a figure: with a caption under it, and with words for those who can't see it.

`show` is the last expression of a cell. nbval compares the words of a figure and never its pixels, so a caption or
an alternative text that no longer fits what was computed fails the notebook's test.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpo_lab.workbench.plots.style import to_png


@dataclass(frozen=True)
class Shown:
    """A figure with its caption and alternative text, in the form that Jupyter displays."""

    figure: Figure
    caption: str
    alt: str

    def __repr__(self) -> str:
        return f"Figure: {self.caption}\nIn words: {self.alt}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        about = {"alt": self.alt, "width": round(self.figure.get_figwidth() * 96)}
        return {"image/png": to_png(self.figure), "text/plain": repr(self)}, {"image/png": about}

    def _ipython_display_(self) -> None:
        """The picture, then its caption as text: readers can select it, and screen readers read it everywhere.

        JupyterLab gives no alternative text to pictures, so the words also unfold under the caption.
        """
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)
        words = f"<details><summary>In words</summary>{escape(self.alt, quote=False)}</details>"
        display({"text/markdown": f"*{_as_text(self.caption)}*\n\n{words}", "text/plain": self.caption}, raw=True)


def _as_text(caption: str) -> str:
    """The caption with its markup as text; what stands between dollars is a formula, which Jupyter escapes itself."""
    parts = caption.split("$")
    is_paired = len(parts) % 2 == 1
    return "$".join(part if i % 2 and is_paired else escape(part, quote=False) for i, part in enumerate(parts))


def show(figure: Figure | Axes, caption: str, alt: str) -> Shown:
    """The figure (or the figure of these axes) with a caption and alternative text; the last expression of a cell.

    The caption says what to look at and may hold $formulas$ and no asterisk; `alt` says what there is to see, for
    readers who can't: the axes, the curves, where they go. Both are compared when the notebook is tested, so a
    number that differs between machines belongs in neither.
    """
    whole = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    if not isinstance(whole, Figure):
        raise ValueError(f"show needs a matplotlib figure or axes, got {type(figure).__name__}")
    texts = {"caption": " ".join(caption.split()), "alt": " ".join(alt.split())}
    for name, text in texts.items():
        if len(text) < 20:
            raise ValueError(f"{name} must be a sentence that says what the figure shows, got {text!r}")
    if "*" in texts["caption"]:
        raise ValueError(
            f"the caption is set in italics and can't hold an asterisk, got {texts['caption']!r}; use $\\ast$"
        )
    return Shown(whole, **texts)
