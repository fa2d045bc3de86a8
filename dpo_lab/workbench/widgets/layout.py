"""Parts of every panel: rows of controls, buttons, pictures, and what went wrong in words."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from dpo_lab.workbench.plots.style import Picture, to_png
from dpo_lab.workbench.widgets import markup

# JupyterLab may run callbacks on another thread than cells. matplotlib's fonts are shared by all figures, so only one
# thread draws at a time.
drawing = threading.RLock()

FULL_WIDTH = "calc(100% - 4px)"
"""The most room that a control may take: ipywidgets leaves two pixels free on each of its sides."""


DRAWN = "dpo-lab-drawn"
"""The class of what is drawn on white: JupyterLab's dark theme shows it with light and dark exchanged, hues kept."""

# A click waits in a queue while the kernel runs cells, and only the page itself can say so: a button that was clicked
# has the focus until the kernel answers and switches it off.
LOOK = """<style>
[data-jp-theme-light="false"] .dpo-lab-drawn { filter: invert(0.92) hue-rotate(180deg) brightness(1.3); }
.dpo-lab-waits:focus:not(:focus-visible):enabled::after { content: " …waiting for the kernel";
animation: dpo-lab-late 0s 1s both; }
@keyframes dpo-lab-late { from { font-size: 0; } to { font-size: inherit; } }
</style>"""


def look() -> ipywidgets.HTML:
    """The style sheet of the panels, as a part of a panel that takes no room."""
    return ipywidgets.HTML(LOOK, layout=ipywidgets.Layout(display="none"))


class Panel(ipywidgets.VBox):
    """A panel that leaves a picture of itself in the notebook, or its texts, beside the view that needs a kernel."""

    def __init__(self, children: Sequence[ipywidgets.Widget]) -> None:
        super().__init__([*children, look()])

    def picture(self) -> bytes | None:
        """A PNG file of what the panel shows now; None where it shows texts."""
        return next((value for value in self._values(ipywidgets.Image) if value), None)

    def _values(self, kind: type) -> list[Any]:
        parts: list[Any] = [self]
        for part in parts:  # grows while it is read
            parts += getattr(part, "children", ())
        return [part.value for part in parts if isinstance(part, kind) and part.value != LOOK]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs) or {"text/plain": repr(self)}
        if (png := self.picture()) is None:
            return bundle | {"text/html": "\n".join(filter(None, self._values(ipywidgets.HTML)))}
        alt = f"{type(self).__name__}: the panel's picture, as it stood when this cell was run."
        plain = {"text/plain": f"{bundle['text/plain']}\n{alt}", "image/png": base64.b64encode(png).decode()}
        return bundle | plain, {"image/png": {"alt": alt}}


def room(width: str, label: str | None = None) -> dict[str, Any]:
    """The traits that give a control its width, as far as the page has it, and space for its label."""
    traits: dict[str, Any] = {"layout": ipywidgets.Layout(width=width, max_width=FULL_WIDTH)}
    return traits if label is None else traits | {"style": {"description_width": label}}


def tip(text: str) -> dict[str, str]:
    """The trait that shows a text beside the mouse that rests on a control; ipywidgets 7 has it under another name."""
    return {"tooltip" if hasattr(ipywidgets.Text, "tooltip") else "description_tooltip": text}


def row(*children: ipywidgets.Widget) -> ipywidgets.HBox:
    """Controls side by side, on a second line where the page is narrow."""
    return ipywidgets.HBox(children, layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center"))


def button(label: str, tooltip: str, act: Callable[[], Any], **traits: Any) -> ipywidgets.Button:
    """A button that calls `act`."""
    made = ipywidgets.Button(description=label, tooltip=tooltip, **traits)
    made.on_click(lambda _: act())
    return made


def texts(num: int) -> list[ipywidgets.HTML]:
    """Places for HTML, empty."""
    return [ipywidgets.HTML() for _ in range(num)]


def picture_box() -> ipywidgets.Image:
    """A place for a picture: where the page is narrower than the picture, it shrinks and keeps its shape."""
    box = ipywidgets.Image(
        format="png", layout=ipywidgets.Layout(max_width=FULL_WIDTH, height="auto", object_fit="contain")
    )
    box.add_class(DRAWN)
    return box


def show_picture(box: ipywidgets.Image, picture: Picture) -> None:
    """Put a picture in its place; call it while `drawing` is held."""
    data = to_png(picture)
    width, height = picture.get_size_inches() * 96
    # The same size each time, so that the page does not jump.
    box.width, box.height = f"{width:.0f}", f"{height:.0f}"
    box.value = data


def attempt(act: Callable[[], Any], message: ipywidgets.HTML) -> None:
    """Do what a button stands for; a mistake of the user stands in `message`, where a method would raise it."""
    try:
        act()
    except (ValueError, OSError, ImportError) as error:
        message.value = markup.line(str(error))
