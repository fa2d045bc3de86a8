"""The checks of the failures' exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dpo_lab.course.exercises import (
    NotYet,
    check_diagnoses,
    check_first_moves,
    check_resting_reference,
    check_swapped_source,
    mystery_runs,
)
from dpo_lab.course.exercises.failures import CAUSES
from dpo_lab.course.saved_results import recorded_runs

ANSWER = {"A": "swapped labels", "B": "sound", "C": "memorised", "D": "reference follows the policy",
          "E": "wrong reference"}  # fmt: skip


def test_right_first_moves(capsys):
    check_first_moves(lambda w, y: (w @ (w - y), y @ (w - y)))
    check_first_moves(lambda w, y: [float(w @ w - w @ y), float(w @ y - y @ y)])
    assert capsys.readouterr().out.count("Right: ") == 2


def test_first_moves_are_those_of_a_small_step():
    """On a table of logits: the change of log π after one small step of descent, in units of ηβ/2."""
    logits, eta, beta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), 1e-6, 0.5
    gradients = torch.eye(3).double() - logits.softmax(0)  # of log π(y), one row per answer
    stepped = logits + eta * beta / 2 * (gradients[0] - gradients[1])
    moved = (stepped.log_softmax(0) - logits.log_softmax(0)) / (eta * beta / 2)
    step = gradients[0] - gradients[1]
    torch.testing.assert_close(moved, gradients @ step, rtol=1e-4, atol=1e-4)
    check_first_moves(lambda w, y: np.array([w @ (w - y), y @ (w - y)]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, y: (w @ (y - w), y @ (y - w)), "flipped"),
        (lambda w, y: (y @ (w - y), w @ (w - y)), "other order"),
        (lambda w, y: (w @ (w - y), y @ (y - w)), "second sign"),
        (lambda w, y: (w @ w, -(y @ y)), "alone in the loss"),
        (lambda w, y: (-(w @ y), w @ y), "overlaps alone"),
        (lambda w, y: np.array([w @ (w - y), y @ (w - y)]) / np.linalg.norm(w) / np.linalg.norm(y), "lengths"),
        (lambda w, y: (0.0, 0.0), "to first order|To first order"),
        (lambda w, y: w @ (w - y), "shape"),
        (lambda w, y: None, "returned nothing"),
    ],
)
def test_wrong_first_moves(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_first_moves(wrong)


def resting(model, score, batch):
    was_training = model.training
    model.eval()
    with torch.no_grad():
        found = score(model, batch)
    model.train(was_training)
    return found


def test_a_resting_reference(capsys):
    check_resting_reference(resting)
    assert capsys.readouterr().out.startswith("Right: ")


def dropout_on(model, score, batch):
    with torch.no_grad():
        return score(model.train(), batch)


def with_gradient(model, score, batch):
    was_training = model.training
    found = score(model.eval(), batch)
    model.train(was_training)
    return found


def mode_lost(model, score, batch):
    with torch.no_grad():
        return score(model.eval(), batch)


def weights_changed(model, score, batch):
    found = resting(model, score, batch)
    with torch.no_grad():
        model[0].bias += 1e-3
    return found


def seeded(model, score, batch):
    torch.manual_seed(0)
    return dropout_on(model, score, batch)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dropout_on, "dropout is on"),
        (with_gradient, "carry a gradient"),
        (mode_lost, "mode and is left in the other"),
        (weights_changed, "weights|two calls|Two calls"),
        (seeded, "not with the model at rest"),
        (lambda m, s, b: resting(m, s, b).sum(1), "of shape"),
        (lambda m, s, b: 1.0, "of shape"),
    ],
)
def test_references_that_do_not_rest(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_resting_reference(wrong)


def by_source(margins, sources, of):
    names = np.unique(sources)
    return names, np.array([of(margins[sources == name]) for name in names])


def picked(of, best=np.argmin):
    def answer(margins, sources):
        names, values = by_source(margins, sources, of)
        return names[best(values)]

    return answer


def test_right_swapped_sources(capsys):
    check_swapped_source(picked(np.mean))
    check_swapped_source(picked(lambda own: (own > 0).mean()))
    check_swapped_source(picked(np.median))
    assert capsys.readouterr().out.count("Right: ") == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (picked(lambda own: (own < 0).sum(), np.argmax), "not counts|Compare shares"),
        (picked(np.sum), "lowest sum"),
        (lambda m, s: s[m.argmin()], "single lowest"),
        (picked(np.mean, np.argmax), "highest mean"),
        (picked(lambda own: np.abs(own).mean()), "most wrong|Hard pairs|not counts"),
        (lambda m, s: 3, "name of a source"),
    ],
)
def test_wrong_swapped_sources(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_swapped_source(wrong)


def test_the_mystery_runs_show_their_causes():
    """What the exercise asks to be seen is there, with room."""
    runs = mystery_runs()
    of = {cause: runs[letter] for letter, cause in ANSWER.items()}
    assert set(of) == set(CAUSES)
    for cause, run in of.items():
        is_wrong = cause == "wrong reference"
        assert (abs(run["loss"][0] - math.log(2)) > 0.05) == is_wrong
        assert (abs(run["accuracy"][0] - 0.5) > 0.02) == is_wrong
    flat = of["reference follows the policy"]
    assert np.ptp(flat["loss"]) < 1e-9
    sound, swapped, by_heart = of["sound"], of["swapped labels"], of["memorised"]
    assert abs(sound["loss"][-1] - sound["held-out loss"][-1]) < 0.05
    assert swapped["held-out accuracy"][-1] > swapped["accuracy"][-1] + 0.1
    assert by_heart["accuracy"][-1] > by_heart["held-out accuracy"][-1] + 0.1
    assert by_heart["held-out loss"][-1] > by_heart["held-out loss"].min() + 0.05


def test_right_diagnoses(capsys):
    check_diagnoses(ANSWER)
    assert capsys.readouterr().out.startswith("Right: ")


def swapped_letters(a, b):
    return ANSWER | {a: ANSWER[b], b: ANSWER[a]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (swapped_letters("A", "B"), "needs a cure"),
        (swapped_letters("D", "E"), "very first loss"),
        (swapped_letters("C", "D"), "every step"),
        (swapped_letters("B", "E"), "very first loss"),
        (swapped_letters("B", "C"), "distance between"),
        (ANSWER | {"A": "sound"}, "more than once"),
        (ANSWER | {"A": "bad luck"}, "none of the five"),
        ({"A": "sound"}, "for each of A"),
        ("sound", "for each of A"),
    ],
)
def test_wrong_diagnoses(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_diagnoses(wrong)


def test_the_recorded_runs_show_their_causes():
    runs = recorded_runs()
    assert list(runs) == list("ABCDE")
    assert sorted(run["cause"] for run in runs.values()) == ["few pairs", "flips", "length", "rate", "sound"]
    by_cause = {run["cause"]: run for run in runs.values()}
    for run in runs.values():
        assert len(run["losses"]) == len(run["accuracies"]) == run["steps"][-1] == 60
        assert len(run["kl"]) == len(run["steps"]) == 6
    last = lambda cause, name: float(np.mean(by_cause[cause][name][-10:]))
    assert last("few pairs", "accuracies") > 0.98 > 0.8 > by_cause["few pairs"]["heldout_accuracy"][-1]
    assert last("flips", "accuracies") < by_cause["flips"]["heldout_accuracy"][-1] - 0.1
    assert by_cause["length"]["words"][-1] > by_cause["sound"]["words"][-1] + 2
    assert by_cause["rate"]["kl"][-1] > 10 * by_cause["sound"]["kl"][-1]
    assert max(runs.values(), key=lambda run: run["reward"][-1])["cause"] == "sound"
    with pytest.raises(ValueError, match="with seed 99"):
        recorded_runs(seed=99)
