"""The checks of the notebook on which pairs are worth their price: right answers pass, wrong ones get a hint."""

import numpy as np
import pytest

from dpo_lab.course.exercises import NotYet, check_easy_half, check_noisy_push, check_two_sets


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def two_sets(triples, tolerance, *, fits=lambda gap, other, tolerance: abs(gap - other) <= tolerance):
    strong, weak = [], []
    for prompt, own in enumerate(triples):
        high, mid, low = sorted(own, reverse=True)
        if fits(high - mid, mid - low, tolerance):
            strong.append((prompt, high, mid))
            weak.append((prompt, mid, low))
    return strong, weak


def test_right_answers(capsys):
    check_noisy_push(lambda z, share: (1 - share) * sigmoid(-z) - share * sigmoid(z))
    check_easy_half(lambda gaps: np.sort(np.argsort(-gaps)[: len(gaps) // 2]))
    check_two_sets(two_sets)
    assert capsys.readouterr().out.count("Right: ") == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda z, share: (1 - share) * sigmoid(-z) + share * sigmoid(z), "pulls the other way"),
        (lambda z, share: (1 - share) * sigmoid(-z) - share * sigmoid(-z), "Weigh both kinds"),
        (lambda z, share: (1 - share) * sigmoid(z) - share * sigmoid(-z), "of its own margin"),
        (lambda z, share: 0.5, "shape"),
    ],
)
def test_wrong_pushes(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_noisy_push(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda gaps: np.sort(np.argsort(gaps)[: len(gaps) // 2]), "ranks worst"),
        (lambda gaps: np.argsort(-gaps)[: len(gaps) // 2], "order in which they came"),
        (lambda gaps: np.sort(np.argsort(-np.abs(gaps))[: len(gaps) // 2]), "wrong sign"),
        (lambda gaps: np.arange(3), "shape"),
    ],
)
def test_wrong_halves(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_easy_half(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda triples, tolerance: two_sets(triples, tolerance)[::-1], "strong is"),
        (lambda triples, tolerance: two_sets(triples, 9), "gaps differ"),
        (lambda triples, tolerance: two_sets(triples, tolerance, fits=lambda a, b, t: a - b <= t), "gaps differ"),
        (lambda triples, tolerance: two_sets(triples, tolerance, fits=lambda a, b, t: b - a <= t), "gaps differ"),
        (lambda triples, tolerance: two_sets(triples, 1e-9), "others are equal enough"),
        (lambda triples, tolerance: (two_sets(triples, 9)[0], two_sets(triples, tolerance)[1]), "other prompts"),
        (
            lambda triples, tolerance: [[(p, b, a) for p, a, b in one] for one in two_sets(triples, tolerance)],
            "worth more",
        ),
        (lambda triples, tolerance: [], "two lists"),
    ],
)
def test_wrong_sets(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_two_sets(wrong)
