"""Evaluation: metrics worked by hand, and KL against its exact value by enumeration."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from dpo_lab.logprobs import score
from dpo_lab.losses import LOSSES, PairScores
from dpo_lab.losses.table import reward_beta
from dpo_lab.metrics import evaluate_scores, pair_metrics, pair_scores_of, scored_lengths
from dpo_lab.preferences import TokenData
from dpo_lab.reference import ReferenceCache
from dpo_lab.workbench.evaluation import evaluate, kl_from_reference, kl_of_samples
from tests.conftest import random_pairs, tiny_llama
from tests.test_sampling import exact
from tests.tiny import tiny_tokenizer


def scores_of(*columns) -> PairScores:
    return PairScores(*(torch.tensor(column, dtype=torch.float32) for column in columns))


# correctness: chosen, rejected of policy and reference, and z = (0, 1, 2) at beta 0.1
BY_HAND = scores_of(
    [-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0], [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1], [3, 4, 5], [2, 4, 6]
)  # fmt: skip


def test_metrics_are_those_worked_by_hand():
    data = random_pairs(3)
    result = evaluate_scores(BY_HAND, LOSSES["dpo"].bind(beta=0.1, divergence="reverse_kl"), 0.1, data)
    expected = {
        "loss": (0.693147 + 0.313262 + 0.126928) / 3,
        "rewards/chosen": 0.1 * (0 + 0.1 - 0.9) / 3,
        "rewards/rejected": 0.1 * (0 - 9.9 - 20.9) / 3,
        "rewards/margins": (0 + 1 + 2) / 3,
        "rewards/accuracies": (0.5 + 1 + 1) / 3,  # the tie counts as half right
        "logps/chosen": -11.5 / 3,
        "logps/rejected": -51.1 / 3,
    }
    assert result.metrics == pytest.approx(expected, abs=1e-5)
    assert set(result.table) == {"row", "loss", "reward_chosen", "reward_rejected", "margin", "logp_chosen",
                                 "logp_rejected", "length_chosen", "length_rejected"}  # fmt: skip
    np.testing.assert_allclose(result.table["margin"], [0, 1, 2], atol=1e-5)
    np.testing.assert_allclose(result.table["loss"], [0.693147, 0.313262, 0.126928], atol=1e-5)
    assert result.table["length_chosen"].tolist() == [3, 4, 5]
    rows = result.rows()
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert rows[1]["margin"] == pytest.approx(1, abs=1e-5)
    assert all(type(value) in (int, float) for row in rows for value in row.values())


def test_ties_and_wrong_orders_count_as_they_should():
    scores = scores_of([1, 0, 0, 0], [0, 1, 0, 0.0], [0] * 4, [0] * 4, [1] * 4, [1] * 4)
    losses = torch.zeros(4)
    assert pair_metrics(scores, losses, 0.1)["rewards/accuracies"].tolist() == [1, 0, 0.5, 0.5]


def test_metrics_carry_no_gradient():
    policy = torch.tensor([0.5, 1.0], requires_grad=True)
    scores = PairScores(policy, policy * 2, *(torch.ones(2) for _ in range(4)))
    losses = LOSSES["dpo"].bind(beta=0.1, divergence="reverse_kl")(scores)
    assert not any(value.requires_grad for value in pair_metrics(scores, losses, 0.1).values())


def test_an_empty_prompt_leaves_one_token_unscored():
    data = TokenData.from_rows([([], ([5, 6, 7], [8, 9])), ([4], ([5, 6, 7], [8, 9]))])
    assert scored_lengths(data).tolist() == [[2, 1], [3, 2]]
    assert pair_scores_of(np.zeros((2, 2)), np.zeros((2, 2)), data).rejected_length.tolist() == [1, 2]


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_evaluates_to_its_own_formula(name, tmp_path):
    model, reference, data = tiny_llama(), tiny_llama(seed=3), random_pairs(6)
    spec = LOSSES[name]
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        cached = [evaluate(model, None, data, reference=reference, cache=cache, loss=name) for _ in range(2)]
        assert len(cache) == 6
    live = evaluate(model, None, data, reference=reference, loss=name)
    assert cached[0].metrics == cached[1].metrics == live.metrics
    scores = pair_scores_of(score(model, data), score(reference, data), data)
    expected = spec.bind(divergence="reverse_kl")(scores)
    np.testing.assert_allclose(live.table["loss"], expected.numpy(), rtol=1e-5)
    beta = spec.knobs.get("beta", 1.0)
    assert reward_beta(spec, {}) == beta
    ratio = score(model, data) - score(reference, data)
    np.testing.assert_allclose(live.table["margin"], beta * (ratio[:, 0] - ratio[:, 1]), rtol=1e-4, atol=1e-5)


def test_a_loss_without_reference_takes_its_log_probs_as_zero():
    model, data = tiny_llama(), random_pairs(6)
    result = evaluate(model, None, data, loss="simpo", beta=2.0)
    np.testing.assert_allclose(result.table["reward_chosen"], 2.0 * score(model, data)[:, 0], rtol=1e-5)


def test_precision_layout_and_cut_change_no_metric_beyond_rounding():
    model, reference, data = tiny_llama(), tiny_llama(seed=3), random_pairs(12)
    plain = evaluate(model, None, data, reference=reference)
    for options in ({"layout": "separate"}, {"tokens_per_pass": 50}):
        assert evaluate(model, None, data, reference=reference, **options).metrics == pytest.approx(
            plain.metrics, abs=1e-4
        )
    rough = evaluate(model, None, data, reference=reference, precision="bfloat16").metrics
    assert rough != plain.metrics
    assert rough["rewards/margins"] == pytest.approx(plain.metrics["rewards/margins"], abs=0.5)


def test_rows_are_tokenised_and_what_was_cut_is_said(caplog):
    rows = [
        {"prompt": "the cat ", "chosen": "sat", "rejected": "ran on"},
        {"prompt": "a dog ", "chosen": "sat", "rejected": "sat"},
    ]
    with caplog.at_level(logging.WARNING, "dpo_lab"):
        result = evaluate(tiny_llama(), tiny_tokenizer(), rows, reference=tiny_llama(seed=1))
    assert result.table["row"].tolist() == [0]
    assert result.table["length_chosen"].tolist() == [2]  # the word and the end token
    assert "left out, both answers have the same tokens: 1 (row 1)" in caplog.text
    caplog.clear()
    evaluate(tiny_llama(), tiny_tokenizer(), rows[:1], reference=tiny_llama(seed=1))
    assert caplog.text == ""


def test_mistakes_are_told():
    model, data = tiny_llama(), random_pairs(3)
    with pytest.raises(ValueError, match=r"loss is not known, got 'dop'; choose one of dpo, "):
        evaluate(model, None, data, reference=model, loss="dop")
    with pytest.raises(ValueError, match=r"loss 'dpo' compares with a reference, and none was given; pass reference="):
        evaluate(model, None, data)
    with pytest.raises(ValueError, match=r"beta must be positive.*got 0"):
        evaluate(model, None, data, reference=model, beta=0.0)
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        evaluate(model, None, data.select([]), reference=model)
    with pytest.raises(ValueError, match=r"2 completions per prompt \(chosen, rejected\), got 1"):
        evaluate(model, None, TokenData.from_rows([([5], ([6],))]), reference=model)
    with pytest.raises(ValueError, match="KL needs at least one prompt"):
        kl_from_reference(model, model, tiny_tokenizer(), [])


# ── KL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small():
    """Policy, reference, two prompts, and the exact KL of each over answers of at most three tokens."""
    policy, reference = tiny_llama(vocab_size=5), tiny_llama(vocab_size=5, seed=1)
    prompts = [[1, 3, 4], [1, 4]]
    kls = []
    for prompt in prompts:
        p, q = exact(policy, prompt, 3), exact(reference, prompt, 3)
        kls.append(sum(p[answer] * (math.log(p[answer]) - math.log(q[answer])) for answer in p))
    return policy, reference, prompts, kls


def test_the_kl_estimate_is_within_its_standard_error_of_the_exact_value(small):
    policy, reference, prompts, kls = small
    assert abs(kls[0] - kls[1]) > 0.05
    for prompt, kl in zip(prompts, kls, strict=True):
        estimate = kl_from_reference(policy, reference, tiny_tokenizer(), [prompt] * 2000, max_new_tokens=3,
                                     batch_size=2000)  # fmt: skip
        assert estimate.num_samples == 2000
        assert abs(estimate.mean - kl) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.1 * kl


def test_the_standard_error_is_the_spread_of_repeated_estimates(small):
    policy, reference, prompts, kls = small
    options = {"max_new_tokens": 3, "num_samples": 2, "batch_size": 1000}
    # Sixty prompts drawn from two kinds, two answers each, thirty times.
    mixed = [prompts[0]] * 30 + [prompts[1]] * 30
    estimates = [
        kl_from_reference(policy, reference, tiny_tokenizer(), mixed, seed=seed, **options) for seed in range(30)
    ]
    means = np.array([estimate.mean for estimate in estimates])
    claimed = np.mean([estimate.standard_error for estimate in estimates])
    assert abs(means.mean() - np.mean(kls)) < 4 * claimed / math.sqrt(30)
    assert 0.6 < means.std(ddof=1) / claimed < 1.4  # the spread of 30 values is known to about 13 %
    assert {estimate.num_samples for estimate in estimates} == {120}


def test_answers_to_one_prompt_have_a_standard_error_too(small):
    policy, reference, prompts, kls = small
    options = {"max_new_tokens": 3, "batch_size": 2000}
    one = kl_from_reference(policy, reference, tiny_tokenizer(), prompts[:1], num_samples=2000, **options)
    assert abs(one.mean - kls[0]) < 4 * one.standard_error < kls[0]
    single = kl_from_reference(policy, reference, tiny_tokenizer(), prompts[:1], **options)
    assert math.isnan(single.standard_error)  # one number has no spread


def test_the_kl_from_itself_is_zero_exactly(small):
    policy, _, prompts, _ = small
    estimate = kl_from_reference(policy, policy, tiny_tokenizer(), prompts * 10, max_new_tokens=3)
    assert estimate[:2] == (0.0, 0.0)
    same = kl_from_reference(policy, tiny_llama(vocab_size=5), tiny_tokenizer(), prompts * 10, max_new_tokens=3)
    assert same[:2] == (0.0, 0.0)


def test_prompts_may_be_rows_texts_or_ids(small):
    policy, reference = tiny_llama(), tiny_llama(seed=1)
    text = "the cat sat"
    estimates = [
        kl_from_reference(policy, reference, tiny_tokenizer(), [prompt] * 3, max_new_tokens=4)
        for prompt in ({"prompt": text}, text, [1, 7, 9, 11])
    ]
    assert estimates[0] == estimates[1] == estimates[2]


def test_kl_of_given_samples_is_the_mean_of_their_log_ratios():
    policy, reference = tiny_llama(), tiny_llama(seed=1)
    prompts, answers = [[1, 7], [1, 8]], [[np.array([9, 2]), np.array([10])], [np.array([11, 12]), np.array([2])]]
    data = TokenData.from_rows(zip(prompts, answers, strict=True))
    ratios = (score(policy, data) - score(reference, data)).mean(1)
    estimate = kl_of_samples(policy, reference, prompts, answers)
    assert estimate.mean == pytest.approx(ratios.mean(), rel=1e-6)
    assert estimate.standard_error == pytest.approx(abs(ratios[0] - ratios[1]) / 2, rel=1e-5)
    assert estimate.num_samples == 4
