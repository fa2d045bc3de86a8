"""How every picture looks: colours, figures, axes, letters.

No pyplot and no global style: every figure stands alone, so several threads may draw at once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter
from PIL import Image

# Okabe & Ito's palette (Color Universal Design, 2008): distinct under the common kinds of colour blindness.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, INK, GREY, PALE = "#CC79A7", "#56B4E9", "#222222", "#767676", "#E4E4E4"
CHOSEN, REJECTED, TRAINING = BLUE, VERMILLION, GREEN
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, INK)
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v", "P", "X")
FONT = "DejaVu Sans"  # comes along with matplotlib


def color(i: int) -> str:
    """The i-th colour of the palette, from its start again after the last."""
    return PALETTE[i % len(PALETTE)]


def line(i: int) -> str:
    """The i-th line style. Seven colours and four lines: the pair repeats only after 28 curves."""
    return LINES[i % len(LINES)]


def marker(i: int) -> str:
    """The i-th marker."""
    return MARKERS[i % len(MARKERS)]


def look(i: int, name: str, **changes: Any) -> dict[str, Any]:
    """Colour, line and label of the i-th of several curves, for `ax.plot`; `changes` replaces some of them."""
    return {"color": color(i), "linestyle": line(i), "label": plain(name)} | changes


class Picture(Figure):
    """A matplotlib figure that a notebook shows by itself, without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return to_png(self), {"width": round(self.get_figwidth() * 96)}


def text(size: float = 8, color: str = INK) -> dict[str, Any]:
    """Letters inside a picture, for `ax.text`, `ax.annotate` and titles."""
    return {"fontfamily": FONT, "fontsize": size, "color": color}


def new_figure(width: float = 6.4, height: float = 4.0) -> Picture:
    """An empty white figure of `width` × `height` inches; add axes with `.subplots(nrows, ncols)`."""
    figure = Picture(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def grid_of(figure: Figure, num: int, columns: int, **shared: Any) -> list[Axes]:
    """`num` panels in rows of `columns`; what is left of the last row stays empty."""
    cells = figure.subplots(-(-num // columns), columns, squeeze=False, **shared).ravel().tolist()
    for ax in cells[num:]:
        ax.set_axis_off()
    return cells[:num]


def new_axes(width: float = 6.4, height: float = 4.0) -> Axes:
    """The only axes of a new figure."""
    return new_figure(width, height).subplots()


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG file."""
    return pngs_of_parts(figure, (), dpi)[0]


def pngs_of_parts(figure: Figure, parts: Sequence[Axes], dpi: int = 150) -> list[bytes]:
    """The whole figure as a PNG file, then each of the axes with its labels, cut out of the same drawing.

    Drawn once, where `savefig` lays a figure out and draws it twice: a run's report would take as long as many steps.
    """
    canvas, was = FigureCanvasAgg(figure), figure.dpi
    figure.set_dpi(dpi)
    try:
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        cuts = [_around(ax, canvas, drawn.shape[0]) for ax in parts]
    finally:
        figure.set_dpi(was)
    return [_encode(drawn), *(_encode(drawn[rows, columns]) for rows, columns in cuts)]


def _around(ax: Axes, canvas: FigureCanvasAgg, height: int) -> tuple[slice, slice]:
    """The pixels of axes with all that is written around them: rows from the top, columns."""
    box = ax.get_tightbbox(canvas.get_renderer())
    assert box is not None, "axes that were drawn have a place"
    corners = np.floor(box.get_points()).astype(int) + np.array([[-8, -8], [9, 9]])
    (left, low), (right, high) = corners.tolist()
    return slice(max(0, height - high), height - max(0, low)), slice(max(0, left), right)


def _encode(pixels: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format="png", compress_level=4)
    return target.getvalue()


def dress(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    """The house's look on axes: a title on the left, labels with units, a quiet grid."""
    ax.set_title(title, loc="left", fontweight="bold", **text(10.5))
    ax.set_xlabel(xlabel, **text(9))
    ax.set_ylabel(ylabel, **text(9))
    ax.tick_params(labelsize=8, colors=INK, labelfontfamily=FONT, length=3, color=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.set_facecolor("white")
    ax.grid(color=PALE, linewidth=0.7)
    ax.set_axisbelow(True)
    if isinstance(formatter := ax.yaxis.get_major_formatter(), ScalarFormatter):
        formatter.set_useOffset(False)  # 0.6930, not 0.0 with +6.93e-1 in a corner
    return ax


def count_steps(ax: Axes) -> None:
    """Only whole numbers on the horizontal axis, one at least."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def in_percent(*axes: Axis) -> None:
    """Shares written as whole percentages."""
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def name_rows(ax: Axes, names: Iterable[str]) -> None:
    """A name for each of the lines 0, 1, … of a chart of horizontal bars or intervals; no grid lines across them."""
    labels = [plain(name) for name in names]
    ax.set_yticks(range(len(labels)), labels)
    ax.grid(visible=False, axis="y")


def text_color(red: float, green: float, blue: float) -> str:
    """Black or white, whichever can be read on the colour; its parts lie in [0, 1]."""
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2  # relative, WCAG 2
    return "black" if luminance > 0.18 else "white"


def add_title(figure: Figure, title: str, size: float = 12) -> None:
    """A title over a whole figure, on the left; nothing where it is empty."""
    if title:
        figure.suptitle(plain(title), x=0.01, ha="left", fontweight="bold", **text(size))


def plain(words: str) -> str:
    """A text from outside as matplotlib can draw it: no formula, no hidden label, no letter that the font lacks."""
    drawn = "".join(letter if ord(letter) in _letters() else "?" for letter in words)
    drawn = drawn if len(drawn) <= 60 else f"{drawn[:28]}…{drawn[-28:]}"
    return (" " if drawn.startswith("_") else "") + drawn.replace("$", r"\$")


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def add_legend(ax: Axes, *, skip: tuple[str, ...] = (), ncols: int = 1, loc: Any = "best") -> None:
    """A small legend of everything that carries a label, but for those in `skip`."""
    handles, labels = ax.get_legend_handles_labels()
    shown = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label not in skip]
    if shown:
        handles, labels = map(list, zip(*shown, strict=True))
        # Handles are long enough for a whole period of "-.", which would look like "--" otherwise.
        legend = ax.legend(
            handles=handles, labels=labels, loc=loc, ncols=ncols, fontsize=8, framealpha=0.9, handlelength=3.2
        )
        legend.get_frame().set_linewidth(0)


def add_legend_beside(ax: Axes) -> None:
    """A small legend to the right of the panel, where no curve is."""
    look = {"fontsize": 8, "frameon": False, "handlelength": 3.2}
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), **look).set_in_layout(True)


def add_legend_below(ax: Axes, *, pad: float, ncols: int = 2) -> None:
    """A small legend under a panel that curves or areas fill; `pad`, in letters, clears the labels of the axis."""
    look = {"fontsize": 8, "frameon": False, "handlelength": 3.2}
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=pad, ncols=ncols, **look)
