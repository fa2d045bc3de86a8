"""The checks of the implicit-reward exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.exercises import (
    NotYet,
    check_best_answers,
    check_calibration_error,
    check_heaviest_token,
    check_mean_rewards,
)
from dpo_lab.workbench.evaluation import calibration


def test_right_heaviest_tokens(capsys):
    def heaviest(logps, reference, beta):
        rewards = beta * (logps - reference)
        return rewards.sum(), np.abs(rewards).argmax()

    check_heaviest_token(heaviest)
    assert capsys.readouterr().out.startswith("Right: ")


heaviest_of = lambda values: int(np.abs(values).argmax())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, r, b: ((p - r).sum(), heaviest_of(p - r)), "β is missing"),
        (lambda p, r, b: (b * (r - p).sum(), heaviest_of(p - r)), "sign is flipped"),
        (lambda p, r, b: (b * (p - r).mean(), heaviest_of(p - r)), "is a sum"),
        (lambda p, r, b: (b * p.sum(), heaviest_of(p - r)), "reference is missing"),
        (lambda p, r, b: (b * (p - r).sum(), int((p - r).argmax())), "weigh downwards"),
        (lambda p, r, b: (b * (p - r).sum(), heaviest_of(p)), "least likely"),
        (lambda p, r, b: (b * (p - r).sum(), 2), "isn't the one"),
        (lambda p, r, b: b * (p - r).sum(), "two things"),
        (lambda p, r, b: None, "returned nothing"),
    ],
)
def test_wrong_heaviest_tokens(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_heaviest_token(wrong)


def parts(margins, labels, num_bins):
    chances = np.exp(-np.logaddexp(0, -margins))
    place = np.minimum((chances * num_bins).astype(int), num_bins - 1)
    bins = [place == b for b in np.unique(place)]
    gaps = np.array([labels[own].mean() - chances[own].mean() for own in bins])
    return chances, gaps, np.array([own.mean() for own in bins])


def test_right_calibration_errors(capsys):
    check_calibration_error(lambda m, y, bins: calibration(m, y, bins).error)
    check_calibration_error(lambda m, y, bins: parts(m, y, bins)[2] @ np.abs(parts(m, y, bins)[1]))
    assert capsys.readouterr().out.count("Right: ") == 2


def without_the_last_bin(margins, labels, num_bins):
    chances = np.exp(-np.logaddexp(0, -margins))
    place = (chances * num_bins).astype(int)
    bins = [place == b for b in range(num_bins) if (place == b).any()]
    return sum(own.mean() * abs(labels[own].mean() - chances[own].mean()) for own in bins)


def with_middles(margins, labels, num_bins):
    chances = np.exp(-np.logaddexp(0, -margins))
    place = np.minimum((chances * num_bins).astype(int), num_bins - 1)
    return sum((place == b).mean() * abs(labels[place == b].mean() - (b + 0.5) / num_bins) for b in np.unique(place))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m, y, n: np.abs(parts(m, y, n)[1]).mean(), "weight each by its share"),
        (lambda m, y, n: abs(parts(m, y, n)[2] @ parts(m, y, n)[1]), "opposite sign cancel"),
        (lambda m, y, n: np.abs(parts(m, y, n)[1]).max(), "worst bin"),
        (lambda m, y, n: len(m) * (parts(m, y, n)[2] @ np.abs(parts(m, y, n)[1])), "divide by their number"),
        (lambda m, y, n: np.abs(y - parts(m, y, n)[0]).mean(), "single pairs"),
        (with_middles, "not with its middle"),
        (without_the_last_bin, "belongs to the last bin"),
        (lambda m, y, n: 0.0, "equal width"),
        (lambda m, y, n: parts(m, y, n)[1], "shape"),
    ],
)
def test_wrong_calibration_errors(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_calibration_error(wrong)


def test_right_best_answers(capsys):
    check_best_answers(lambda logps, reference: (logps - reference).argmax(1))
    check_best_answers(lambda logps, reference: [int(np.argmax(row)) for row in logps - reference])
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, r: p.argmax(1), "missing reference"),
        (lambda p, r: (p - r).argmin(1), "moved away"),
        (lambda p, r: r.argmax(1), "likeliest answers under the reference"),
        (lambda p, r: (p - r).argmax(), "one answer"),
        (lambda p, r: (p - r).argmax(0), "down the columns"),
        (lambda p, r: p - r, "three indices"),
        (lambda p, r: [2, 2, 1], "Which answer of each prompt"),
    ],
)
def test_wrong_best_answers(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_best_answers(wrong)


def test_right_mean_rewards(capsys):
    check_mean_rewards(lambda p, r, b: (b * (p * np.log(p / r)).sum(), b * (r * np.log(p / r)).sum()))
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, r, b: (b * (r * np.log(p / r)).sum(), b * (p * np.log(p / r)).sum()), "the reference's answers"),
        (lambda p, r, b: ((p * np.log(p / r)).sum(), (r * np.log(p / r)).sum()), "β is missing"),
        (lambda p, r, b: (b * np.log(p / r).mean(),) * 2, "not once"),
        (lambda p, r, b: (b * (p * np.log(p / r)).sum(), b * (r * np.log(r / p)).sum()), "sign is flipped"),
        (lambda p, r, b: (b * (p * np.log(p / r)).sum(), 0.0), "how often it is written"),
        (lambda p, r, b: b * (p * np.log(p / r)).sum(), "two numbers"),
    ],
)
def test_wrong_mean_rewards(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_mean_rewards(wrong)
