"""The checks of the exercises on scaling out: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_lab.course.exercises import (
    NotYet,
    check_adapter_margins,
    check_device_bytes,
    check_global_mean,
    check_passes,
)


def mean_or_zero(share):
    return share.mean() if len(share) else 0.0


def test_right_global_means(capsys):
    check_global_mean(lambda shares: sum(share.sum() for share in shares) / sum(map(len, shares)))
    check_global_mean(lambda shares: np.concatenate(shares).mean())
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda shares: np.mean([share.mean() for share in shares]), r"5 \+ 4 losses .*mean of the processes' means"),
        (lambda shares: np.concatenate(shares).sum(), "sum over the pairs"),
        (lambda shares: np.concatenate(shares).sum() / len(shares), "by the pairs, not by the processes"),
        (
            lambda shares: (
                np.concatenate(shares).mean() if min(map(len, shares)) else np.mean([*map(mean_or_zero, shares)])
            ),
            "without a pair took part",
        ),
        (lambda shares: 0.5, "divide once"),
        (lambda shares: [share.mean() for share in shares], "shape"),
        (lambda shares: None, "returned nothing"),
    ],
)
def test_wrong_global_means(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_global_mean(wrong)


def test_a_mean_that_forgets_empty_shares_is_told_about_them():
    def non_empty(shares):
        return np.mean([share.mean() for share in shares if len(share)])

    with pytest.raises(NotYet, match="counts more than one in a long share"):
        check_global_mean(non_empty)


gap = lambda values: values[:, 0] - values[:, 1]


def test_right_adapter_margins(capsys):
    check_adapter_margins(lambda base, now, start, beta: beta * (gap(base + now) - gap(base + start)))
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b, n, s, beta: beta * (gap(b + n) - gap(b + n)), "the planted bug"),
        (lambda b, n, s, beta: beta * gap(n), "an adapter that SFT trained .*did something before the first step"),
        (lambda b, n, s, beta: gap(n - s), "β is missing"),
        (lambda b, n, s, beta: -beta * gap(n - s), "sign is flipped"),
        (lambda b, n, s, beta: beta * gap(b + n), "the reference is missing"),
        (lambda b, n, s, beta: beta * gap(n - s - b), "stand on one"),
        (lambda b, n, s, beta: beta * gap(n - s) + 1, "as it was at the start"),
        (lambda b, n, s, beta: beta * (n - s), "shape"),
    ],
)
def test_wrong_adapter_margins(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_adapter_margins(wrong)


def test_right_passes(capsys):
    check_passes(lambda b, n, m: math.ceil(math.ceil(b / n) / m))
    check_passes(lambda b, n, m: math.ceil(b / (n * m)))  # the same number, in one division
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b, n, m: math.ceil(b / m), "only its part to cut"),
        (lambda b, n, m: b // (n * m), "round up"),
        (lambda b, n, m: b / (n * m), "a quotient"),
        (lambda b, n, m: math.ceil((b // n) / m), "9 pairs, 2 processes, 2 a pass: .* longest share decides"),
        (lambda b, n, m: 7, "the process with the most"),
        (lambda b, n, m: [2, 2], "one number"),
    ],
)
def test_wrong_passes(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_passes(wrong)


def test_right_device_bytes(capsys):
    check_device_bytes(lambda w, t, n, is_split: (4 * w + 12 * t) / (n if is_split else 1))
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, t, n, is_split: (4 * w + 12 * t) / n, "every device holds everything"),
        (lambda w, t, n, is_split: 4 * w + 12 * t, "its share alone"),
        (lambda w, t, n, is_split: 16 * w / (n if is_split else 1), "neither a gradient nor moments"),
        (lambda w, t, n, is_split: (4 * w + 8 * t) / (n if is_split else 1), "One is missing"),
        (lambda w, t, n, is_split: 16 * t / (n if is_split else 1), "have to be somewhere"),
        (lambda w, t, n, is_split: (w + 3 * t) / (n if is_split else 1), "4 bytes in float32"),
        (lambda w, t, n, is_split: 1.0, "which are split"),
    ],
)
def test_wrong_device_bytes(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_device_bytes(wrong)
