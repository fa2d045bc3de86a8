"""Figures for slides: each that a notebook shows is written once more, large, under its number and title."""

from __future__ import annotations

import pytest
from PIL import Image

from dpo_lab.course import figures
from dpo_lab.workbench.plots import dress, new_figure, show
from dpo_lab.workbench.plots.captions import Shown


def a_figure(width: float, height: float) -> Shown:
    ax = dress(new_figure(width, height).subplots(), "What a pair costs: β = 0.1", "gap", "loss")
    return show(ax, caption="The loss of a pair against its gap.", alt="One curve that falls from left to right.")


@pytest.mark.parametrize(("width", "height", "pixels"), [(9.6, 3.0, (1920, 600)), (4.0, 6.0, (720, 1080))])
def test_a_figure_fills_a_slide(tmp_path, width, height, pixels):
    name = figures.save(a_figure(width, height), tmp_path)
    assert name == "01-what-a-pair-costs-β-0-1"
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.size == pixels
    svg = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    assert "<title>What a pair costs: β = 0.1</title>" in svg
    assert "The loss of a pair against its gap. One curve that falls from left to right." in svg
    assert figures.save(a_figure(width, height), tmp_path).startswith("02-")


def test_what_is_shown_is_written_and_still_shown(tmp_path, monkeypatch):
    displayed = []
    monkeypatch.setattr(Shown, "_ipython_display_", displayed.append)
    figures.save_what_is_shown(str(tmp_path / "new"))
    shown = a_figure(4.0, 3.0)
    shown._ipython_display_()
    assert displayed == [shown]
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_a_number_without_a_notebook_is_refused():
    with pytest.raises(SystemExit, match="no notebook has the number 99; there are 00, 01"):
        figures.main(["99"])
