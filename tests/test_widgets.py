"""Widgets without a browser: what a control changes, the words under the picture, and failures of drawing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from dpo_lab.course.plots.loss import describe_loss, loss_figure
from dpo_lab.course.plots.preferences import bradley_terry_figure, describe_bradley_terry
from dpo_lab.workbench.plots import new_figure, to_png

ipywidgets = pytest.importorskip("ipywidgets")

from dpo_lab.course import sliders  # noqa: E402  after the skip
from dpo_lab.workbench import widgets  # noqa: E402
from dpo_lab.workbench.widgets import LiveFigure, choice, log_slider, slider  # noqa: E402


def small(**values):
    """A quick picture whose pixels depend on the values."""
    figure = new_figure(2, 1)
    ax = figure.subplots()
    ax.plot([0, 1], [0, float(values.get("height", 1))])
    ax.set_ylim(0, 10)
    return figure


def is_png(data: bytes) -> bool:
    return bytes(data[:8]) == b"\x89PNG\r\n\x1a\n"


# ── the live figure ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_of_value_draws_anew_with_all_values():
    seen = []

    def draw(height, name):
        seen.append((height, name))
        return small(height=height)

    figure = LiveFigure(draw, height=slider("height", 1.0, low=0, high=9), name=choice("name", "a", options=["a", "b"]))
    first = figure.image.value
    assert is_png(first)
    figure.controls["height"].value = 7.5
    figure.controls["name"].value = "b"
    assert seen == [(1.0, "a"), (7.5, "a"), (7.5, "b")]
    assert is_png(figure.image.value)
    assert figure.image.value != first
    assert figure.values == {"height": 7.5, "name": "b"}


def test_the_picture_is_what_the_plain_function_draws():
    figure = LiveFigure(small, height=slider("height", 4.0, low=0, high=9))
    assert figure.image.value == to_png(small(height=4.0))
    assert (figure.image.width, figure.image.height) == ("192", "96")


def test_words_follow_the_values_and_are_escaped():
    figure = LiveFigure(small, describe=lambda height: f"<b>{height:.0f}</b> & more",
                        height=slider("height", 1.0, low=0, high=9))  # fmt: skip
    assert "&lt;b&gt;1&lt;/b&gt; &amp; more" in figure.words.value
    assert 'role="status"' in figure.words.value
    figure.controls["height"].value = 5.0
    assert "&lt;b&gt;5&lt;/b&gt;" in figure.words.value


def test_without_a_description_the_values_are_told():
    figure = LiveFigure(small, height=slider("how <high>", 1.5, low=0, high=9))
    assert "how &lt;high&gt; = 1.5" in figure.words.value


def test_a_control_without_a_label_takes_its_arguments_name():
    figure = LiveFigure(small, height=ipywidgets.FloatSlider(1.0))
    assert figure.controls["height"].description == "height"
    assert figure.controls["height"] in figure.children


def test_what_is_no_control_is_refused():
    with pytest.raises(ValueError, match=r"control 'height' must be a widget with a value, got 3"):
        LiveFigure(small, height=3)


def test_a_failure_stands_under_the_picture_and_is_raised_and_the_next_value_mends_it():
    def draw(height):
        if height > 5:
            raise ValueError("too high by <far>")
        return small(height=height)

    figure = LiveFigure(draw, height=slider("height", 1.0, low=0, high=9))
    before = figure.image.value
    with pytest.raises(ValueError, match="too high"):
        figure.controls["height"].value = 6.0
    assert "This could not be drawn: too high by &lt;far&gt;" in figure.words.value
    assert figure.image.value == before
    figure.controls["height"].value = 2.0
    assert "could not" not in figure.words.value


def test_only_one_thread_draws_at_a_time_and_the_last_picture_shows_the_last_values():
    inside, most = 0, 0

    def draw(height):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        picture = small(height=height)
        inside -= 1
        return picture

    figures = [LiveFigure(draw, height=slider("height", 0.0, low=0, high=9)) for _ in range(2)]
    threads = [threading.Thread(target=setattr, args=(figures[i % 2].controls["height"], "value", float(1 + i)))
               for i in range(6)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    for figure in figures:
        assert figure.image.value == to_png(small(height=figure.values["height"]))


def test_where_widgets_are_not_shown_a_short_text_stands_for_them():
    figure = LiveFigure(small, height=slider("height", 1.0, low=0, high=9))
    assert repr(figure) == "LiveFigure(height = 1)"
    if hasattr(figure, "_repr_mimebundle_"):  # ipywidgets 8
        assert figure._repr_mimebundle_()["text/plain"] == "LiveFigure(height = 1)"


def test_no_pyplot_and_no_output_widget():
    code = (
        "import sys; from dpo_lab.course.sliders import loss_widget; w = loss_widget(); w.controls['gap'].value = 3.0; "
        "import ipywidgets; assert 'matplotlib.pyplot' not in sys.modules; "
        "print([type(c).__name__ for c in w.children])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['FloatSlider', 'FloatLogSlider', 'Image', 'HTML', 'HTML']"


def test_ipywidgets_loads_with_the_first_name_and_its_absence_is_told():
    code = (
        "import sys; import dpo_lab.workbench.widgets as w; assert 'ipywidgets' not in sys.modules\n"
        "sys.modules['ipywidgets'] = None\n"
        "try: w.LiveFigure\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "dpo-lab[course]" in done.stdout


def test_every_offered_name_exists_and_others_are_told_what_there_is():
    assert all(hasattr(widgets, name) for name in dir(widgets))
    with pytest.raises(AttributeError, match="it offers Arena, Cockpit"):
        _ = widgets.dead_figure


# ── controls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_logarithmic_slider_runs_from_low_to_high():
    control = log_slider("β", 0.1, low=0.01, high=10)
    assert (control.base**control.min, control.base**control.max) == pytest.approx((0.01, 10))
    assert control.value == 0.1
    for low, value in ((0.0, 0.1), (-1.0, 0.1), (0.2, 0.1)):
        with pytest.raises(ValueError, match="needs 0 < low <= value <= high"):
            log_slider("β", value, low=low, high=1)


def test_sliders_act_when_they_are_released_unless_told_otherwise():
    assert not slider("a", 1, low=0, high=2).continuous_update
    assert not log_slider("a", 1, low=0.1, high=2).continuous_update
    assert slider("a", 1, low=0, high=2, is_live=True).continuous_update


# ── the course's widgets: the same picture as their static twin ──────────────────────────────────────────────────────


def test_the_bradley_terry_widget_draws_its_static_twin():
    figure = sliders.bradley_terry_widget(gap=1.0)
    assert "73.1%" in figure.words.value
    figure.controls["gap"].value = 0.0
    assert "50 of a hundred people say A" in figure.words.value
    figure.controls["gap"].value = 4.0
    figure.controls["flip"].value = 0.1
    assert figure.image.value == to_png(bradley_terry_figure(4.0, temperature=1.0, flip=0.1))
    assert describe_bradley_terry(4.0, 1.0, 0.1) in figure.words.value


def test_the_loss_widget_draws_its_static_twin():
    figure = sliders.loss_widget()
    assert "the loss is 0.693 and the weight 0.050" in figure.words.value
    figure.controls["beta"].value = 0.5
    figure.controls["gap"].value = -12.0
    assert figure.image.value == to_png(loss_figure(-12.0, 0.5))
    assert describe_loss(-12.0, 0.5) in figure.words.value


@pytest.mark.parametrize("name", ["bradley_terry_widget", "loss_widget"])
def test_every_end_of_every_slider_can_be_drawn(name):
    figure = getattr(sliders, name)()
    for control in figure.controls.values():
        base = getattr(control, "base", None)
        for end in (control.min, control.max):
            control.value = base**end if base else end
            assert is_png(figure.image.value)
            assert "could not" not in figure.words.value


def test_pictures_darken_with_the_page_and_the_style_sheet_is_in_no_saved_output():
    """`LOOK` names the class that pictures have."""
    from dpo_lab.workbench.widgets.layout import DRAWN, LOOK, Panel, picture_box, texts

    assert f'[data-jp-theme-light="false"] .{DRAWN} ' in LOOK
    assert DRAWN in picture_box()._dom_classes
    bundle = Panel(texts(1))._repr_mimebundle_()
    assert "style" not in bundle["text/html"]
