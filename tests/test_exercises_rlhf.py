"""The checks of the exercises on DPO against RLHF: right answers pass, each usual mistake gets its own message."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.exercises import (
    NotYet,
    check_best_of_n,
    check_kl_estimate,
    check_reward_at_kl,
    check_rloo_advantages,
)
from dpo_lab.course.statistics import reward_at_kl


def test_a_right_estimate(capsys):
    check_kl_estimate(lambda p, r, mask: ((p - r) * mask).sum(1).mean())
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda p, r, m: (p - r).sum(1).mean(), "the mask says which"),
        (lambda p, r, m: ((r - p) * m).sum(1).mean(), "sign is flipped"),
        (lambda p, r, m: (p - r)[m].mean(), "mean over tokens"),
        (lambda p, r, m: (p - r)[m].sum(), "an expectation"),
        (lambda p, r, m: np.abs(((p - r) * m).sum(1)).mean(), "Single terms may be negative"),
        (lambda p, r, m: np.abs((p - r) * m).sum(1).mean(), "absolute value of each token"),
        (lambda p, r, m: (p * m).sum(1).mean(), "leaves the reference out"),
        (lambda p, r, m: 0.0, "take the mean over answers"),
        (lambda p, r, m: ((p - r) * m).sum(1), "shape"),
        (lambda p, r, m: None, "returned nothing"),
    ],
)
def test_wrong_estimates(wrong, told):
    with pytest.raises(NotYet, match=told):
        check_kl_estimate(wrong)


def rloo(rewards, logps, reference, beta, *, sign=-1.0, own=False, scale=1.0):
    returns = rewards + sign * scale * beta * (logps - reference)
    if own:
        return returns - returns.mean(1, keepdims=True)
    return returns - (returns.sum(1, keepdims=True) - returns) / (returns.shape[1] - 1)


def test_right_advantages(capsys):
    check_rloo_advantages(rloo)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda *a: rloo(*a, sign=1.0, own=True), "Both bugs"),
        (lambda *a: rloo(*a, sign=1.0), "drifting must cost"),
        (lambda *a: rloo(*a, own=True), "half is lost at K = 2"),
        (lambda *a: rloo(*a, scale=0.0), "price of drifting is missing"),
        (lambda r, p, q, b: rloo(r, p, q, 1.0), "β is missing"),
        (lambda r, p, q, b: r - b * (p - q) - (r.sum(1, keepdims=True) - r) / (r.shape[1] - 1), "the same penalised"),
        (lambda r, p, q, b: r - b * (p - q), "No baseline"),
        (lambda r, p, q, b: (x := r - b * (p - q)) - (x.sum() - x) / (x.size - 1), "over all prompts"),
        (lambda r, p, q, b: r * 0, "less the mean of the row"),
        (lambda r, p, q, b: r.sum(), "have shape"),
    ],
)
def test_wrong_advantages(wrong, told):
    with pytest.raises(NotYet, match=told):
        check_rloo_advantages(wrong)


def best(probs, rewards, n):
    order = np.argsort(rewards)
    picked = np.empty_like(probs)
    picked[order] = np.diff(np.concatenate([[0.0], np.cumsum(probs[order])]) ** n)
    return picked, np.sum(picked * np.log(picked / probs))


def test_right_best_of_n(capsys):
    check_best_of_n(best)
    assert capsys.readouterr().out.startswith("Right: ")


def with_kl(function):
    return lambda p, r, n: (best(p, r, n)[0], function(p, best(p, r, n)[0], n))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda p, r, n: (best(p, r, n)[0][np.argsort(r)], 0.0), "the order of the rewards"),
        (lambda p, r, n: (np.diff(np.concatenate([[0], np.cumsum(p)]) ** n), 0.0), "from the worst to the best"),
        (lambda p, r, n: (np.array([p[r <= v].sum() for v in r]) ** n, 0.0), "take off P"),
        (lambda p, r, n: (1 - (1 - p) ** n, 0.0), "at least once"),
        (lambda p, r, n: (p**n / (p**n).sum(), 0.0), "n equal draws"),
        (lambda p, r, n: (p, 0.0), "What is left for r itself"),
        (with_kl(lambda p, q, n: np.log(n) - (n - 1) / n), "an upper bound"),
        (with_kl(lambda p, q, n: np.sum(p * np.log(p / q))), "the other way round"),
        (with_kl(lambda p, q, n: -np.sum(q * np.log(q / p))), "ratio is flipped"),
        (with_kl(lambda p, q, n: np.mean(np.log(q / p))), "how often best-of-n gives"),
        (with_kl(lambda p, q, n: 0.123), "over the answers"),
        (lambda p, r, n: best(p, r, n)[0], "two things"),
    ],
)
def test_wrong_best_of_n(wrong, told):
    with pytest.raises(NotYet, match=told):
        check_best_of_n(wrong)


def test_right_rewards_at_kl(capsys):
    check_reward_at_kl(reward_at_kl)
    assert capsys.readouterr().out.startswith("Right: ")


def held(kl, rewards, at):
    order = np.argsort(kl)
    return np.interp(np.sqrt(at), np.sqrt(kl[order]), rewards[order])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda k, r, at: np.interp(at, np.sort(k), r[np.argsort(k)]), "a chord lies below"),
        (lambda k, r, at: r.max(), "further away"),
        (lambda k, r, at: r[np.abs(k - at).argmin()], "next to it"),
        (lambda k, r, at: np.interp(np.sqrt(at), np.sqrt(k), r), "doesn't complain"),
        (lambda k, r, at: 7.0, "take roots"),
        (held, "say nan"),
    ],
)
def test_wrong_rewards_at_kl(wrong, told):
    with pytest.raises(NotYet, match=told):
        check_reward_at_kl(wrong)
