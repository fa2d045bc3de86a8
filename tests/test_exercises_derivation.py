"""The derivation's exercises: right answers pass, wrong and almost right ones are told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dpo_lab.course.exercises import (
    NotYet,
    check_beta_for_kl,
    check_open_numbers,
    check_recovered_gaps,
    check_shift,
    check_two_responses,
)
from dpo_lab.worlds.tabular import kitchen_world, kl, optimal_logps


def two_responses(p, r_a, r_b, beta):
    weights = p * math.exp(r_a / beta), (1 - p) * math.exp(r_b / beta)
    return sum(weights), weights[0] / sum(weights)


def gaps(policy, reference, beta):
    values = beta * (policy - reference)
    return values[:, None] - values[None, :]


def beta_for(spent):
    """The answer to the last exercise, with any measure of what a β spends."""

    def search(world, budget, low=1e-3, high=1e3):
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if spent(world, middle) > budget else (low, middle)
        return middle

    return search


def open_numbers(num_answers, pairs):
    """By the rank of the comparisons: each fixes the difference of two of `num_answers` − 1 numbers."""
    rows = np.zeros((max(1, len(pairs)), num_answers))
    for row, (one, other) in zip(rows, pairs, strict=False):
        row[one], row[other] = 1, -1
    return num_answers - 1 - np.linalg.matrix_rank(rows)


def mean_kl(world, beta):
    return world.mean(kl(optimal_logps(world, beta), world.reference_logps)).item()


SHIFT = {"log Z": 6.0, "J(π*)": 1.5, "π*": 0.0, "P": 0.0}

RIGHT = [
    (check_two_responses, two_responses, "reweighted by exp(r/β)"),
    (check_two_responses, lambda *a: np.array(two_responses(*a)), "reweighted by exp(r/β)"),
    (check_recovered_gaps, gaps, "Z was not needed"),
    (check_recovered_gaps, lambda p, q, beta: gaps(p, q, beta).tolist(), "Z was not needed"),
    (check_shift, SHIFT, "neither π* nor any preference"),
    (check_shift, {key: torch.tensor(value) for key, value in SHIFT.items()} | {"π*": 3e-16}, "neither π*"),
    (check_open_numbers, open_numbers, "chains of them join"),
    (check_beta_for_kl, beta_for(mean_kl), "fixes β"),
    (check_beta_for_kl, lambda world, budget: torch.tensor(beta_for(mean_kl)(world, budget)), "fixes β"),
]


@pytest.mark.parametrize(("check", "answer", "shows"), RIGHT)
def test_right_answers_pass_and_say_what_they_show(check, answer, shows, capsys):
    check(answer)
    said = capsys.readouterr().out
    assert said.startswith("Right: ")
    assert said.count("\n") == 1
    assert shows in said


def z_with(weight_a, weight_b):
    """Two responses with other weights in Z, π*(a) consistently."""
    return lambda *args: (weight_a(*args) + weight_b(*args), weight_a(*args) / (weight_a(*args) + weight_b(*args)))


def pi_as(value):
    return lambda *args: (two_responses(*args)[0], value(*args))


WRONG = [
    (check_two_responses, z_with(lambda p, a, b, t: p * math.exp(a * t), lambda p, a, b, t: (1 - p) * math.exp(b * t)),
     "β multiplies the reward"),
    (check_two_responses, z_with(lambda p, a, b, t: math.exp(a / t), lambda p, a, b, t: math.exp(b / t)),
     "both count alike"),
    (check_two_responses, z_with(lambda p, a, b, t: p * math.exp(a), lambda p, a, b, t: (1 - p) * math.exp(b)),
     "β is missing"),
    (check_two_responses, lambda p, a, b, t: (math.log(two_responses(p, a, b, t)[0]), two_responses(p, a, b, t)[1]),
     "That is log Z"),
    (check_two_responses, lambda p, a, b, t: (math.exp((p * a + (1 - p) * b) / t), 0.5), "mean of the exponentials"),
    (check_two_responses, pi_as(lambda p, a, b, t: p * math.exp(a / t)), "divide by Z"),
    (check_two_responses, pi_as(lambda *args: 1 - two_responses(*args)[1]), "the other response"),
    (check_two_responses, pi_as(lambda p, a, b, t: 1 / (1 + math.exp((b - a) / t))), "right only where p = 1/2"),
    (check_two_responses, pi_as(lambda p, a, b, t: math.exp(a / t) / two_responses(p, a, b, t)[0]),
     "missing in the numerator"),
    (check_two_responses, lambda p, a, b, t: two_responses(p, a, b, t)[0], "return two numbers"),
    (check_two_responses, lambda *args: (7.0, 0.5), "compare term by term"),
    (check_two_responses, pi_as(lambda *args: 0.123), "share of a's term"),
    (check_two_responses, pi_as(lambda *args: math.nan), "should be finite"),
    (check_recovered_gaps, lambda p, q, beta: -gaps(p, q, beta), "sign is flipped"),
    (check_recovered_gaps, lambda p, q, beta: gaps(p, 0 * q, beta), "take the log-ratio"),
    (check_recovered_gaps, lambda p, q, beta: gaps(p, q, 1.0), "β is missing"),
    (check_recovered_gaps, lambda p, q, beta: gaps(p, q, 1 / beta), "Here β divides"),
    (check_recovered_gaps, lambda p, q, beta: gaps(p, q, beta).sigmoid(), "step before σ"),
    (check_recovered_gaps, lambda p, q, beta: gaps((p - q).exp(), 0 * q, beta), "in their logarithms"),
    (check_recovered_gaps, lambda p, q, beta: beta * (p - q), "should have shape (5, 5), and has (5,)"),
    (check_recovered_gaps, lambda p, q, beta: torch.zeros(5, 5), "a number that all responses share"),
    (check_shift, SHIFT | {"log Z": 3.0}, "is 3. Rewards enter Z divided by β"),
    (check_shift, SHIFT | {"log Z": 1.5}, "here they were multiplied"),
    (check_shift, SHIFT | {"log Z": math.exp(6.0)}, "the factor by which Z grows"),
    (check_shift, SHIFT | {"log Z": -6.0}, "after minus before"),
    (check_shift, SHIFT | {"J(π*)": 3.0}, "only one of two prompts"),
    (check_shift, SHIFT | {"J(π*)": 6.0}, "β times its mean over prompts"),
    (check_shift, SHIFT | {"J(π*)": 0.0}, "what it earns does not"),
    (check_shift, SHIFT | {"J(π*)": 1.0}, "before and after the shift"),
    (check_shift, SHIFT | {"π*": 0.2}, "the same larger Z"),
    (check_shift, SHIFT | {"P": 0.9}, "only as a difference"),
    (check_shift, {"log Z": 6.0}, "isn't there"),
    (check_shift, 6.0, "should be a dictionary"),
    (check_open_numbers, lambda num, pairs: open_numbers(num, pairs) + 1, "is the number of groups"),
    (check_open_numbers, lambda num, pairs: num - len(set(sum(pairs, ()))), "without a common response"),
    (check_open_numbers, lambda num, pairs: num - 1 - len(pairs), "where a chain joins"),
    (check_open_numbers, lambda num, pairs: 7, "count the groups"),
    (check_open_numbers, lambda num, pairs: None, "returned nothing"),
    (check_beta_for_kl, beta_for(lambda w, b: w.mean(kl(w.reference_logps, optimal_logps(w, b))).item()),
     "charges for KL(π*‖π_ref)"),
    (check_beta_for_kl, beta_for(lambda w, b: kl(optimal_logps(w, b), w.reference_logps).sum().item()),
     "the sum over prompts"),
    (check_beta_for_kl, beta_for(lambda w, b: -mean_kl(w, b)), "too much: a larger β spends less"),
    (check_beta_for_kl, lambda world, budget: 100.0, "too little: a smaller β spends more"),
    (check_beta_for_kl, lambda world, budget: 1 / budget, "spends"),
    (check_beta_for_kl, lambda world, budget: -1.0, "β must be positive"),
    (check_beta_for_kl, lambda world, budget: None, "returned nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "answer", "says"), WRONG)
def test_wrong_answers_are_told_what_is_wrong_with_them(check, answer, says, capsys):
    with pytest.raises(NotYet) as error:
        check(answer)
    assert says in str(error.value)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("check", [check_two_responses, check_recovered_gaps, check_open_numbers, check_beta_for_kl])
def test_an_empty_answer_is_told_apart_from_a_wrong_one(check):
    def empty(*_):
        raise NotImplementedError

    with pytest.raises(NotYet, match="still empty"):
        check(empty)


def test_the_exercise_and_its_check_speak_of_the_same_shift():
    world = kitchen_world()
    assert world.prompt_probs.tolist() == [0.5, 0.5]
    assert world.shape == (2, 4)
