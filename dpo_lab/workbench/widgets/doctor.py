"""The doctor's panel: the path of a log, and what its curves say. Layout and wiring; `diagnose` does the reading."""

from __future__ import annotations

from pathlib import Path

import ipywidgets

from dpo_lab.workbench.doctor.findings import Diagnosis, diagnose
from dpo_lab.workbench.doctor.page import entries, headline
from dpo_lab.workbench.plots import style
from dpo_lab.workbench.plots.curves import PANELS, describe_panel, plot_panel
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.layout import (
    Panel,
    attempt,
    button,
    drawing,
    picture_box,
    room,
    row,
    show_picture,
    texts,
)


def draw_diagnosis(diagnosis: Diagnosis) -> style.Picture:
    """The curves that show what was found, at most six, three to a row."""
    names, rows = diagnosis.panels[:6], diagnosis.log.rows()
    figure = style.new_figure(9.6, 2.4 * -(-len(names) // 3))
    for name, ax in zip(names, style.grid_of(figure, len(names), 3), strict=True):
        plot_panel(rows, name, ax=ax).set_title(PANELS[name].title, loc="left", **style.text(9))
    return figure


class DoctorPanel(Panel):
    """A field for a path, and Look; the last value of a cell shows it.

    path: a run folder or a log that `diagnose` reads; one given here is read at once, and raises ValueError or OSError
        where it can't be. `diagnosis` is the last one made.
    """

    def __init__(self, path: str | Path = "") -> None:
        self.diagnosis: Diagnosis | None = None
        self.path = ipywidgets.Text(value=str(path), description="log", placeholder="runs/first, trainer_state.json, …",
                                    **room("46em", "3em"))  # fmt: skip
        self.words, self.findings, self.in_words = texts(3)
        self.image = picture_box()
        self.button = button("Look", "Read the log", lambda: attempt(self.look, self.words), button_style="primary")
        super().__init__([row(self.path, self.button), self.words, self.findings, self.image, self.in_words])
        if path:
            self.look()

    def look(self) -> None:
        """Read the log that the field names, and show what is found."""
        self.diagnosis, self.findings.value, self.in_words.value = None, "", ""  # no earlier log beside an error
        self.image.value, self.image.width, self.image.height = b"", "", ""
        if not self.path.value.strip():
            raise ValueError("no log is named; give a run folder, or a file such as trainer_state.json or events.jsonl")
        self.diagnosis = found = diagnose(self.path.value.strip())
        self.words.value = markup.line(headline(found))
        self.findings.value = "".join(
            markup.table(f"{one.level}: {one.words.title}", [entries(one)], upright=True) for one in found.findings
        )
        with drawing:
            show_picture(self.image, draw_diagnosis(found))
        self.in_words.value = markup.notes(
            [*(describe_panel(found.log.rows(), name) for name in found.panels), *found.log.notes,
             f"Not looked at: {'; '.join(found.unchecked) or 'nothing'}."], "The curves in words",
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"DoctorPanel({headline(self.diagnosis) if self.diagnosis else 'no log yet'})"
