"""LD-DPO, WPO and TR-DPO as options of a run: each against the formula, computed by hand on padded rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpo_lab import DPOConfig, ReferenceCache, train_dpo
from dpo_lab.batching import epoch_batches, make_batch, row_lengths, separate_rows
from dpo_lab.logprobs import Scorer, own_logits, plain_token_logps, sum_per_sequence
from dpo_lab.loop import Checkpoint, Evaluation, Step
from dpo_lab.losses import PairScores, discount_tail, dpo, loss_of, wpo_weights
from dpo_lab.objectives.options import tail_weights
from tests.conftest import random_pairs, tiny_llama

SETTINGS = {"batch_size": 8, "learning_rate": 3e-3, "epochs": 2, "device": "cpu"}
DESCENT = {"optimizer": "sgd", "adam_beta1": 0.0, "max_grad_norm": None, "schedule": "constant", "warmup": 0.0}


def run(config, data=None, **options):
    model = tiny_llama()
    return model, list(train_dpo(model, None, random_pairs(20) if data is None else data, config, **options))


def weights(model) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def first_step(events) -> dict[str, float]:
    return next(event.metrics for event in events if isinstance(event, Step))


def parts(model, data, rows) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Sums over the first min(|y_w|, |y_l|) tokens of each answer and over the rest, by slices: two lists of (B,)."""
    batch = separate_rows(data, rows)
    logps, sums = plain_token_logps(model, batch), ([], [])
    for sequence, length in enumerate(batch.lengths.flatten().tolist()):
        own = logps[batch.sequences == sequence]
        shorter = int(batch.lengths[sequence // 2].min())
        assert len(own) == length
        sums[0].append(own[:shorter].sum())
        sums[1].append(own[shorter:].sum())
    return tuple([torch.stack(side[k::2]) for k in range(2)] for side in sums)  # type: ignore[return-value]


def tail_scores(policy, reference, data, rows, alpha: float) -> PairScores:
    ours, theirs, lengths = parts(policy, data, rows), parts(reference, data, rows), separate_rows(data, rows).lengths
    zero = torch.zeros(len(rows))
    return discount_tail(
        PairScores(*ours[0], *theirs[0], *lengths.float().unbind(1)),
        PairScores(*ours[1], *theirs[1], zero, zero), alpha=alpha,
    )  # fmt: skip


# ── LD-DPO ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_step_of_ld_dpo_is_that_of_its_formula(alpha):
    data, reference = random_pairs(8, empty_prompts=True), tiny_llama(seed=3)
    config = DPOConfig(**SETTINGS | DESCENT | {"learning_rate": 0.1, "max_steps": 1}, ld_alpha=alpha)
    model, events = run(config, data, reference=reference, held_out=data)
    policy = tiny_llama()
    losses = dpo(tail_scores(policy, reference, data, range(8), alpha), beta=0.5)
    losses.mean().backward()
    expected = torch.cat([(weight - 0.1 * weight.grad).detach().flatten() for weight in policy.parameters()])
    assert first_step(events)["loss"] == pytest.approx(float(losses.mean().detach()), abs=1e-4)
    torch.testing.assert_close(weights(model), expected, atol=2e-5, rtol=1e-4)
    evaluation = next(event for event in events if isinstance(event, Evaluation))
    assert evaluation.metrics["eval_loss"] == pytest.approx(float(losses.mean().detach()), abs=1e-4)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_tail_weights_are_one_as_far_as_the_shorter_answer_goes(layout):
    from dpo_lab.preferences import TokenData

    data = TokenData.from_rows([([1, 2], ([3, 4, 5], [6])), ([], ([3, 4], [5, 6, 7]))])
    found = tail_weights(make_batch(data, [0, 1], layout), 0.25)
    # an answer to an empty prompt loses its first token, which nothing predicts
    assert found.tolist() == [1, 0.25, 0.25, 1, 1, 1, 0.25]


def test_the_heads_of_ld_dpo_come_from_the_cache_too(tmp_path):
    config, asked = DPOConfig(**SETTINGS, ld_alpha=0.3), []
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        first, _ = run(config, cache=cache)
        again, _ = run(config, cache=cache, on_reference=lambda *done: asked.append(done))
    live, _ = run(config)
    assert asked == []
    assert torch.equal(weights(first), weights(again))
    torch.testing.assert_close(weights(again), weights(live), atol=1e-5, rtol=1e-4)


# ── WPO ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_of_wpo_is_that_of_its_formula_and_no_gradient_flows_through_the_weights():
    data, reference = random_pairs(8), tiny_llama(seed=3)
    config = DPOConfig(**SETTINGS | DESCENT | {"learning_rate": 0.1, "max_steps": 1}, weighting="wpo")
    model, events = run(config, data, reference=reference)
    policy, batch = tiny_llama(), separate_rows(data, range(8))
    logits = own_logits(policy, batch).flatten(0, 1)[batch.predictors].double()
    agree = sum_per_sequence(logits.softmax(-1).square().sum(-1).log(), batch)  # Σ_t log Σ_v π²
    own = sum_per_sequence(plain_token_logps(policy, batch), batch)
    frozen = sum_per_sequence(plain_token_logps(reference, batch), batch).detach()
    scores = PairScores(*own.unbind(1), *frozen.unbind(1), *batch.lengths.float().unbind(1))
    share = torch.exp(((own - agree) / batch.lengths).sum(1)).detach()
    losses = share * dpo(scores, beta=0.5)
    losses.mean().backward()
    expected = torch.cat([(weight - 0.1 * weight.grad).detach().flatten() for weight in policy.parameters()])
    assert first_step(events)["loss"] == pytest.approx(float(losses.mean().detach()), rel=1e-4)
    torch.testing.assert_close(weights(model), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        wpo_weights(scores, chosen_log_collision=agree[:, 0], rejected_log_collision=agree[:, 1]), share
    )


def test_the_held_out_loss_of_wpo_is_the_plain_one():
    data, reference = random_pairs(8), tiny_llama(seed=3)
    evaluations = []
    for weighting in ("wpo", None):
        _, events = run(DPOConfig(**SETTINGS, weighting=weighting), data, reference=reference, held_out=data)
        evaluations.append([event.metrics["eval_loss"] for event in events if isinstance(event, Evaluation)])
    assert evaluations[0][0] == evaluations[1][0]  # before the first step
    assert evaluations[0][-1] != evaluations[1][-1]


def test_the_scorer_gives_collisions_without_a_gradient_of_its_own_kind():
    policy, batch = tiny_llama(), make_batch(random_pairs(4), range(4))
    plain = own_logits(policy, batch).flatten(0, 1)[batch.predictors].double().softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(Scorer(policy)(batch, collisions=True).double(), plain, atol=1e-5, rtol=1e-5)


# ── TR-DPO ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mixup", [None, 0.6])
def test_the_reference_moves_to_the_policy_after_every_second_step(mixup):
    data, held = random_pairs(20), random_pairs(5, seed=9)
    config = DPOConfig(
        **SETTINGS | DESCENT | {"learning_rate": 0.01, "epochs": 3}, sync_reference=2, sync_mixup=mixup,
        evaluate_every=8,
    )  # fmt: skip
    model, events = run(config, data, held_out=held)
    policy, reference, losses = tiny_llama(), tiny_llama(), []
    orders = [rows for epoch in range(3) for rows in epoch_batches(row_lengths(data), 8, seed=0, epoch=epoch)]
    for number, rows in enumerate(orders):
        if number in (2, 4, 6, 8):
            with torch.no_grad():
                for frozen, weight in zip(reference.parameters(), policy.parameters(), strict=True):
                    frozen.copy_(weight if mixup is None else 0.6 * weight + 0.4 * frozen)
        loss = dpo(tail_scores(policy, reference, data, rows, 1.0), beta=0.5).mean()
        policy.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in policy.parameters():
                weight -= 0.01 * weight.grad
        losses.append(float(loss.detach()))
    found = [event.metrics["loss"] for event in events if isinstance(event, Step)]
    np.testing.assert_allclose(found, losses, atol=1e-4)
    torch.testing.assert_close(weights(model), weights(policy), atol=5e-5, rtol=1e-3)
    last = [event for event in events if isinstance(event, Evaluation)][-1]
    with torch.no_grad():
        expected = dpo(tail_scores(policy, reference, held, range(5), 1.0), beta=0.5).mean()
    assert last.metrics["eval_loss"] == pytest.approx(float(expected), abs=1e-4)


def test_a_reference_that_follows_asks_the_cache_for_nothing(tmp_path):
    asked = []
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        run(DPOConfig(**SETTINGS, sync_reference=2), cache=cache, on_reference=lambda *done: asked.append(done))
    assert asked == []


def test_a_run_whose_reference_follows_is_not_resumed_and_needs_one(tmp_path):
    config = DPOConfig(**SETTINGS, sync_reference=2)
    _, events = run(config, checkpoints=tmp_path)
    path = next(event.path for event in reversed(events) if isinstance(event, Checkpoint))
    with pytest.raises(ValueError, match="no checkpoint holds it"):
        run(config, resume=path)
    with pytest.raises(ValueError, match="sync_reference moves the reference, and simpo has none"):
        run(DPOConfig(**SETTINGS, loss="simpo", sync_reference=2))


@pytest.mark.parametrize(("settings", "message"), [
    ({"ld_alpha": 1.5}, r"ld_alpha must lie in \[0, 1\]"), ({"weighting": "all"}, "weighting is not known"),
    ({"sync_reference": 0}, "sync_reference must be at least 1"), ({"sync_mixup": 0.5}, "needs sync_reference"),
    ({"sync_reference": 2, "sync_mixup": 0.0}, r"sync_mixup must lie in \(0, 1\]"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DPOConfig(**settings)


@pytest.mark.parametrize("loss", ["dpo", "simpo", "dpo+sft:0.1"])
def test_the_options_go_with_other_losses_and_with_each_other(loss):
    config = DPOConfig(**SETTINGS, loss=loss, ld_alpha=0.5, weighting="wpo")
    if loss_of(config)[0].needs_reference:
        config = DPOConfig(**SETTINGS, loss=loss, ld_alpha=0.5, weighting="wpo", sync_reference=1)
    _, events = run(config, held_out=random_pairs(4, seed=9))
    assert all(np.isfinite(event.metrics["loss"]) for event in events if isinstance(event, Step))
