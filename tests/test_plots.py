"""Pictures: what they show is what was given, they stand alone, and words describe them."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpo_lab.workbench import plots
from dpo_lab.workbench.plots.margins import edges_through_zero
from dpo_lab.workbench.plots.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION


def dpo_rows(num_steps: int = 40, evaluate_at: tuple[int, ...] = (0, 40)) -> list[dict]:
    """Rows of a made-up DPO run in which margins grow and both log-probs fall."""
    noise = np.random.default_rng(0).normal(0, 1, (num_steps + 1, 2))

    def metrics(step: int, scale: float) -> dict[str, float]:
        chosen, rejected = -0.01 * step + 0.02 * scale * noise[step, 0], -0.04 * step + 0.02 * scale * noise[step, 1]
        return {
            "loss": float(np.log1p(np.exp(rejected - chosen))), "rewards/chosen": chosen, "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected, "rewards/accuracies": 0.5 if step == 0 else 0.9,
            "logps/chosen": -90 + 10 * chosen, "logps/rejected": -80 + 10 * rejected,
        }  # fmt: skip

    rows: list[dict] = []
    for step in range(num_steps + 1):
        if step:
            extra = {"grad_norm": 1.5, "learning_rate": 1e-4 * (1 - step / num_steps), "epoch": step / 20}
            rows.append({"kind": "step", "step": step, **metrics(step, 1), **extra, "seconds": step / 10})
        if step in evaluate_at:
            named = {f"eval_{name}": value for name, value in metrics(step, 0).items()}
            rows.append({"kind": "evaluation", "step": step, **named, "seconds": step / 10})
    return rows


def sft_rows(num_steps: int = 30) -> list[dict]:
    rows = [{"kind": "evaluation", "step": s, "eval_loss": 3.0 - s / 20, "eval_perplexity": 20.0 - s / 3, "seconds": s}
            for s in (0, num_steps)]  # fmt: skip
    steps = [{"kind": "step", "step": s, "loss": 3.0 - s / 20, "grad_norm": 1.0, "learning_rate": 1e-3, "seconds": s}
             for s in range(1, num_steps + 1)]  # fmt: skip
    return rows[:1] + steps + rows[1:]


def line(ax, label: str):
    (found,) = [one for one in ax.get_lines() if one.get_label() == label]
    return found


# ── series and smoothing ─────────────────────────────────────────────────────────────────────────────────────────────


def test_series_takes_the_rows_that_have_the_metric():
    steps, values = plots.series(dpo_rows(), "eval_rewards/margins")
    assert steps.tolist() == [0, 40]
    np.testing.assert_allclose(values, [0.0, 1.2])
    assert [len(part) for part in plots.series(dpo_rows(), "unheard of")] == [0, 0]


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3) | st.just(float("nan")), max_size=30), st.sampled_from([1, 3, 7, 101]))
def test_smoothing_is_the_mean_of_the_neighbours_that_exist(values, window):
    reach = window // 2
    near = [np.array(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
    expected = [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in near]
    np.testing.assert_allclose(plots.smooth(np.array(values), window), expected, rtol=1e-9, atol=1e-9)


def test_smoothing_refuses_a_window_without_a_middle():
    for window in (0, 4, -1):
        with pytest.raises(ValueError, match=rf"window must be odd and positive, got {window}"):
            plots.smooth(np.ones(5), window)


def test_windows_are_odd_and_few_points_are_left_alone():
    assert [plots.smoothing_window(num) for num in (0, 1, 19, 20, 150, 10**6)] == [1, 1, 1, 3, 15, 101]


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_panel_shows_points_their_mean_and_the_held_out_values():
    rows = dpo_rows()
    ax = plots.plot_panel(rows, "loss")
    steps, values = plots.series(rows, "loss")
    np.testing.assert_array_equal(line(ax, "each logged step").get_xydata(), np.column_stack([steps, values]))
    np.testing.assert_allclose(line(ax, "mean over 5 logged steps").get_ydata(), plots.smooth(values, 5))
    np.testing.assert_allclose(line(ax, "loss, held out").get_ydata(), plots.series(rows, "eval_loss")[1])


def test_two_evaluations_are_not_joined_as_if_the_course_between_were_known():
    assert line(plots.plot_panel(dpo_rows(), "loss"), "loss, held out").get_linestyle() == "None"
    often = plots.plot_panel(dpo_rows(evaluate_at=(0, 20, 40)), "loss")
    assert line(often, "loss, held out").get_linestyle() == ":"


def test_chosen_and_rejected_differ_in_more_than_colour():
    curves = [curve for panel in plots.PANELS.values() for curve in panel.curves]
    chosen = {(c.color, c.line, c.marker) for c in curves if "chosen" in c.metric}
    rejected = {(c.color, c.line, c.marker) for c in curves if "rejected" in c.metric}
    assert len(chosen) == len(rejected) == 1  # the same everywhere
    assert all(a != b for a, b in zip(*chosen, *rejected, strict=True))


def test_panels_fit_the_kind_of_run():
    preference = [
        "loss",
        "accuracy",
        "rewards",
        "margins",
        "logps_chosen",
        "logps_rejected",
        "grad_norm",
        "learning_rate",
    ]
    assert plots.panels_of(dpo_rows()) == preference
    assert plots.panels_of(sft_rows()) == ["token_loss", "perplexity", "grad_norm", "learning_rate"]
    assert plots.panels_of([]) == []
    rounds = [{"kind": "round", "step": 0, "reward": 1.0, "kl": 0.0}, {"kind": "result", "step": 9, "kl": 2.0}]
    assert plots.panels_of(rounds) == ["judged_reward", "kl"]
    assert plots.panels_of(rounds[1:]) == []


@pytest.mark.parametrize(
    "rows",
    [dpo_rows(), sft_rows(), dpo_rows(1, ()), dpo_rows(2, (0,)), dpo_rows(0, (0,)), sft_rows()[1:2]],
    ids=["dpo", "sft", "one step", "two steps", "evaluation only", "one sft step"],
)
def test_every_run_can_be_drawn_and_every_axis_is_labelled(rows):
    figure = plots.curves_figure(rows, title="runs/a")
    drawn = [ax for ax in figure.axes if ax.axison]
    assert len(drawn) == len(plots.panels_of(rows))
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title("left") for ax in drawn)
    assert all(ax.has_data() for ax in drawn)
    assert plots.to_png(figure, 40).startswith(b"\x89PNG")


def test_a_sheet_without_a_metric_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.curves_figure([{"kind": "finished", "step": 3, "num_steps": 3, "is_complete": True}])
    with pytest.raises(ValueError, match=r"nothing to draw for \['perplexity'\]"):
        plots.curves_figure(dpo_rows(), panels=["loss", "perplexity"])


def test_a_sheet_of_some_panels_has_them_in_the_order_given():
    figure = plots.curves_figure(dpo_rows(), panels=["margins", "loss"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Reward margin", "Loss"]


def test_values_that_are_no_numbers_do_not_stop_the_drawing():
    rows = dpo_rows()
    rows[3]["grad_norm"], rows[4]["loss"] = float("inf"), float("nan")
    assert plots.to_png(plots.curves_figure(rows), 40)


def test_a_function_draws_on_the_axes_it_is_given():
    ax = plots.new_figure().subplots()
    assert plots.plot_panel(dpo_rows(), "margins", ax=ax) is ax
    assert plots.plot_margins([1.0, -1.0], ax=plots.new_figure().subplots()).get_xlabel()
    assert plots.plot_runs({"a": dpo_rows()}, "loss", ax=ax) is ax


# ── several runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_told_apart_without_colour_as_well():
    ax = plots.plot_runs({f"run {i}": dpo_rows() for i in range(4)}, "eval_loss")
    looks = [(one.get_color(), one.get_linestyle(), one.get_marker()) for one in ax.get_lines()]
    for part in zip(*looks, strict=True):
        assert len(set(part)) == 4
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"run {i}" for i in range(4)]


def test_runs_without_the_metric_are_left_out_of_the_legend():
    ax = plots.plot_runs({"a": dpo_rows(), "b": sft_rows()}, "rewards/margins")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a"]


@pytest.mark.parametrize("name", ["$\\frac$", "_hidden", "日本語😀", "a" * 300, "$"])
def test_a_name_from_outside_is_drawn_as_text(name):
    ax = plots.plot_runs({name: dpo_rows()}, "loss")
    assert len(ax.get_legend().get_texts()) == 1
    assert plots.to_png(plots.runs_figure({name: dpo_rows()}, ["loss"], title=name), 40)


# ── margins ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40))
def test_every_margin_is_in_one_bar_and_no_bar_mixes_right_with_wrong(margins):
    edges = edges_through_zero(np.array(margins))
    counts, _ = np.histogram(margins, edges)
    assert counts.sum() == len(margins)
    assert counts[np.array(edges[1:]) <= 0].sum() == sum(margin < 0 for margin in margins)


def test_bars_are_as_high_as_there_are_pairs():
    ax = plots.plot_margins([-1.0, -0.99, 0.0, 2.0])
    assert sum(bar.get_height() for bar in ax.containers[0]) == 4
    assert sum(bar.get_height() for bar in ax.containers[0] if bar.get_x() < -1e-9) == 2


def test_the_share_of_pairs_ranked_wrong_is_written():
    ax = plots.plot_margins([-1.0, 0.0, 1.0, 2.0, 3.0], [0.5, -0.5])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["after: 20 % below 0, 20 % at 0", "before: 50 % below 0"]


def test_a_policy_that_was_its_reference_is_a_line_at_zero():
    ax = plots.plot_margins([1.0, 2.0], [0.0, 0.0])
    assert "before: all 0" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert list(line(ax, "before: all 0").get_xdata()) == [0, 0]


@pytest.mark.parametrize("margins", [[], [1.0, float("nan")], [[1.0]]])
def test_margins_that_cannot_be_drawn_are_refused(margins):
    with pytest.raises(ValueError, match="after must be one finite margin per pair"):
        plots.plot_margins(margins)


# ── words, and standing alone ────────────────────────────────────────────────────────────────────────────────────────


def test_words_say_what_the_picture_shows():
    words = plots.describe_panel(dpo_rows(1, (0,)), "loss")
    assert words.startswith("Loss (mean per pair): loss 0.")
    assert "on held-out data 0.6931 at step 0" in words
    assert "margin on held-out data from 0 at step 0 to 1.2 at step 40" in plots.describe_curves(dpo_rows())
    assert "0.5 % below 0" in plots.describe_margins([-1.0] + [1.0] * 199)
    assert "a ends at 1.2 after step 40" in plots.describe_runs({"a": dpo_rows()}, "eval_rewards/margins")


def test_metrics_have_titles_and_units():
    assert plots.metric_label("eval_rewards/chosen") == ("Implicit rewards, chosen, held out", "β × nats")
    assert plots.metric_label("learning_rate") == ("Learning rate", "per step")
    assert plots.metric_label("my_metric") == ("my_metric", "value")


def test_a_notebook_shows_a_figure_by_itself():
    png, metadata = plots.new_figure(5, 2)._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert metadata == {"width": 480}


def test_drawing_needs_no_torch_and_no_pyplot():
    code = (
        "import sys, dpo_lab.workbench.plots as p\n"
        "p.to_png(p.plot_margins([1.0, -1.0]).figure)\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib.pyplot') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"


# Machado, Oliveira & Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency",
# severity 1.0: matrices for linear RGB.
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


@pytest.mark.parametrize("matrix", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["full", "protanopia", "deuteranopia"])
def test_colours_stay_apart_for_colour_blind_eyes(matrix):
    def seen(color: str) -> np.ndarray:
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return np.clip(matrix @ linear, 0, 1) ** (1 / 2.2)

    assert {plots.CHOSEN, plots.REJECTED, plots.TRAINING} == {BLUE, VERMILLION, GREEN}
    colours = [BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY]
    distances = {pair: np.linalg.norm(seen(pair[0]) - seen(pair[1])) for pair in itertools.combinations(colours, 2)}
    assert min(distances.values()) > 0.1
    assert distances[BLUE, VERMILLION] > 0.4  # chosen and rejected


def test_a_panel_of_the_sheet_is_cut_out_with_its_labels():
    whole, panels = plots.curves_pngs(dpo_rows(), title="a run")
    sheet, cuts = (np.asarray(Image.open(io.BytesIO(whole))), {n: Image.open(io.BytesIO(p)) for n, p in panels.items()})
    assert list(panels) == plots.panels_of(dpo_rows())
    for cut in cuts.values():
        assert sheet.shape[1] / 3 < cut.width < 0.52 * sheet.shape[1]
        border = np.concatenate(
            [np.asarray(cut)[0], np.asarray(cut)[-1], np.asarray(cut)[:, 0], np.asarray(cut)[:, -1]]
        )
        assert (border == 255).all()  # nothing is cut through


def test_a_picture_drawn_once_is_the_one_that_savefig_draws():
    figure, target = plots.curves_figure(dpo_rows()), io.BytesIO()
    once = np.asarray(Image.open(io.BytesIO(plots.to_png(figure))))
    plots.curves_figure(dpo_rows()).savefig(target, format="png", dpi=150)
    assert (once == np.asarray(Image.open(target).convert("RGB"))).all()
