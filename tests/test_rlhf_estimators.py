"""The formulas of policy gradient against worlds that can be listed: their expectation is the gradient of J."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from dpo_lab.course.rlhf import (
    best_of_n_kl,
    best_of_n_kl_of_samples,
    best_of_n_logps,
    clipped_loss,
    generalised_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    normalised,
    penalised_rewards,
    reference_penalty,
    reinforce_loss,
    value_loss,
)
from dpo_lab.course.rlhf.rollouts import unflatten
from dpo_lab.logprobs import token_logps
from dpo_lab.preferences import TokenData
from dpo_lab.worlds.enumerable import END, EnumerableWorld, enumerable_world
from dpo_lab.worlds.learning import one_thread
from dpo_lab.worlds.tabular import expected_reward, kitchen_world, kl, objective, small_world

BETA = 0.4


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def world() -> EnumerableWorld:
    return enumerable_world()


@pytest.fixture(scope="module")
def policy(world):
    """A policy that has gone from the reference, so that the KL has a gradient too."""
    model = world.new_policy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def logits_of(world, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(world.rewards.shape, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(value: torch.Tensor, parameters) -> torch.Tensor:
    found = torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def expected_rloo_loss(logps, rewards, reference, rho, num_samples: int) -> torch.Tensor:
    """Σ over all K-tuples of answers of their probability times the mean RLOO loss."""
    total = torch.zeros((), dtype=torch.float64)
    tuples = torch.tensor(list(itertools.product(range(logps.shape[1]), repeat=num_samples)))  # (M, K)
    for x in range(len(logps)):
        own = logps[x][tuples]  # (M, K)
        returns = (rewards[x] - BETA * (logps[x].detach() - reference[x]))[tuples]
        losses = reinforce_loss(own, leave_one_out_advantages(returns)).mean(-1)
        total = total + rho[x] * (own.sum(-1).exp().detach() * losses).sum()
    return total


@pytest.mark.parametrize("num_samples", [2, 3])
def test_the_expected_rloo_gradient_is_that_of_the_objective(num_samples):
    world = small_world()
    logits = logits_of(world)
    logps = logits.log_softmax(-1)
    loss = expected_rloo_loss(logps, world.rewards, world.reference_logps, world.prompt_probs, num_samples)
    exact = gradient(-objective(world, logps, BETA), [logits])
    torch.testing.assert_close(gradient(loss, [logits]), exact, atol=1e-12, rtol=1e-9)


def test_the_expected_rloo_gradient_is_the_slope_by_finite_differences():
    world = kitchen_world()
    logits = logits_of(world, seed=3)
    found = gradient(
        expected_rloo_loss(
            logits.log_softmax(-1), world.rewards, world.reference_logps, world.prompt_probs, num_samples=2
        ),
        [logits],
    ).view(logits.shape)
    with torch.no_grad():
        for x, y in itertools.product(*map(range, world.shape)):
            step = torch.zeros_like(logits)
            step[x, y] = 1e-5
            ahead, behind = (objective(world, (logits + s).log_softmax(-1), BETA) for s in (step, -step))
            assert -found[x, y].item() == pytest.approx((ahead - behind).item() / 2e-5, abs=1e-8)


def test_in_a_real_transformer_too(world, policy):
    table = world.table
    logps = world.logps(policy)
    loss = expected_rloo_loss(logps, table.rewards, table.reference_logps, table.prompt_probs, num_samples=2)
    found = gradient(loss, policy.parameters())
    exact = gradient(-objective(table, world.logps(policy), BETA), policy.parameters())
    assert exact.norm() > 0.1
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)


def test_a_baseline_that_counts_the_answer_itself_shrinks_the_gradient():
    """With the mean over all K the expected gradient is (K − 1)/K of the true one, which leaving one out mends."""
    rewards = torch.tensor([[3.0, 1.0, 2.0, 6.0]])
    own_mean = rewards - rewards.mean(-1, keepdim=True)
    torch.testing.assert_close(own_mean, 3 / 4 * leave_one_out_advantages(rewards))


def test_group_relative_advantages_by_hand():
    found = group_relative_advantages(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [0.1, 0.1, 0.1]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    scaled = group_relative_advantages(torch.tensor([[10.0, 20.0, 30.0]]) + 7)
    torch.testing.assert_close(scaled, found[:1])  # neither the scale nor the level of a prompt's rewards counts
    rewards = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(
        group_relative_advantages(rewards) * rewards.std(-1, keepdim=True), 5 / 6 * leave_one_out_advantages(rewards)
    )
    with pytest.raises(ValueError, match="a group needs at least 2 answers per prompt, got 1"):
        group_relative_advantages(torch.ones(3, 1))


def test_the_penalty_of_the_reference_is_the_kl_in_the_mean_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    own, frozen = torch.randn(2, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    penalty = reference_penalty(own, frozen)
    assert (penalty >= 0).all()
    assert reference_penalty(own, own).abs().max() == 0
    assert (own.exp() * penalty).sum() == pytest.approx((own.exp() * (own - frozen)).sum())


def test_leave_one_out_by_hand():
    advantages = leave_one_out_advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(
        leave_one_out_advantages(torch.tensor([[101.0, 102.0]])), leave_one_out_advantages(torch.tensor([[1.0, 2.0]]))
    )
    with pytest.raises(ValueError, match="at least 2 answers per prompt, got 1"):
        leave_one_out_advantages(torch.ones(3, 1))


def every_answer(world) -> TokenData:
    """The world's prompts, each with all of its answers as completions."""
    tree = world.tree
    answers = tuple(tree.encode(text).numpy() for text in tree.responses)
    return TokenData.from_rows([(tree.encode(END + x).numpy(), answers) for x in world.table.prompts])


@pytest.mark.parametrize("critic_is_wrong", [False, True])
def test_the_expected_ppo_gradient_is_that_of_the_objective(world, policy, critic_is_wrong):
    """At π = π_old, with λ = γ = 1, whatever the critic says, per token and with the KL penalty per token."""
    from dpo_lab.batching import make_batch

    table, data = world.table, every_answer(world)
    batch = make_batch(data, range(len(data)), "separate")
    lengths = torch.from_numpy(data.completion_lengths.reshape(-1))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = token_logps(policy, batch)
    logps = unflatten(tokens.detach(), mask)
    reference = unflatten(token_logps(world.reference, batch).detach(), mask)
    # What a critic says depends on what it has seen so far, and on nothing that comes.
    values = torch.zeros(mask.shape)
    if critic_is_wrong:
        tree = world.tree
        seen = [x + text[:t] for x in table.prompts for text in tree.responses for t in range(len(text))]
        values[mask] = torch.tensor([math.sin(7 * sum(map(ord, s)) + len(s)) for s in seen])
    rewards = penalised_rewards(table.rewards.flatten().float(), logps, reference, mask, beta=BETA)
    advantages = generalised_advantages(rewards, values, mask, discount=1.0, lam=1.0)
    loss = clipped_loss(tokens, logps[mask], advantages[mask], clip=0.2).loss
    chance = (table.prompt_probs[:, None] * world.logps(policy).detach().exp()).flatten().float()
    weights = chance[:, None].expand(mask.shape)[mask]
    found = gradient((weights * loss).sum(), policy.parameters())
    exact = gradient(-objective(table, world.logps(policy), BETA), policy.parameters())
    torch.testing.assert_close(found, exact, atol=2e-5, rtol=1e-3)


def test_token_rewards_add_up_to_reward_minus_penalty():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logps, reference = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 9.0, 9.0]]), torch.full((2, 3), -1.0)
    found = penalised_rewards(torch.tensor([10.0, 20.0]), logps, reference, mask, beta=0.5)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 11.0], [21.5, 0.0, 0.0]]))
    kl_per_answer = ((logps - reference) * mask).sum(-1)
    torch.testing.assert_close(found.sum(-1), torch.tensor([10.0, 20.0]) - 0.5 * kl_per_answer)


def test_generalised_advantages_by_hand():
    """γ = 0.5, λ = 0.8: δ = (1 + 0.5·2 − 1, 0 + 0.5·3 − 2, 4 − 3) = (1, −0.5, 1); A = (1 + 0.4·A₂, −0.5 + 0.4, 1)."""
    rewards, values = torch.tensor([[1.0, 0.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = generalised_advantages(rewards, values, mask, discount=0.5, lam=0.8)
    torch.testing.assert_close(found, torch.tensor([[0.96, -0.1, 1.0]]))


def test_generalised_advantages_at_their_ends():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 6, generator=generator)
    lengths = torch.tensor([6, 3, 1, 5])
    mask = torch.arange(6) < lengths[:, None]
    rewards, values = rewards * mask, values * mask
    one_step = generalised_advantages(rewards, values, mask, discount=0.9, lam=0.0)
    whole = generalised_advantages(rewards, values, mask, discount=0.9, lam=1.0)
    for i, length in enumerate(lengths.tolist()):
        for t in range(length):
            after = values[i, t + 1] if t + 1 < length else 0.0
            assert one_step[i, t].item() == pytest.approx(float(rewards[i, t] + 0.9 * after - values[i, t]), abs=1e-5)
            to_come = sum(0.9 ** (s - t) * rewards[i, s].item() for s in range(t, length))
            assert whole[i, t].item() == pytest.approx(to_come - values[i, t].item(), abs=1e-5)
    assert not whole[~mask].any()


def test_what_stands_behind_an_answers_end_changes_nothing():
    mask = torch.tensor([[True, True, False]])
    rewards, values = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.5, 0.25, 0.0]])
    garbage = torch.tensor([[0.0, 0.0, 99.0]])
    kept = generalised_advantages(rewards, values, mask, discount=1.0, lam=0.95)
    torch.testing.assert_close(
        generalised_advantages(rewards + garbage, values + garbage, mask, discount=1.0, lam=0.95), kept
    )
    assert kept[0, 1].item() == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.0, 2.0, -2.0),  # at the start: the policy gradient
        (1.0, -2.0, 2.0),
        (1.1, 2.0, -2.2),  # inside the band: ratio × advantage
        (1.3, 2.0, 0.0),  # gone far enough in the direction that pays: nothing more
        (1.3, -2.0, 2.6),  # gone the wrong way: pulled back in full
        (0.7, 2.0, -1.4),
        (0.7, -2.0, 0.0),
        (0.9, -2.0, 1.8),
    ],
)
def test_where_the_clipped_loss_pulls(ratio, advantage, slope):
    """d loss / d log π = −ρ·A where it flows, 0 where it is cut: the sign table of PPO."""
    logps = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    found = clipped_loss(logps, old, advantages, clip=0.2)
    assert gradient(found.loss.sum(), [logps]).item() == pytest.approx(slope, abs=1e-9)
    assert found.is_clipped.item() == (slope == 0)
    assert found.kl.item() == pytest.approx(ratio - 1 - math.log(ratio))


def test_the_estimate_of_kl_has_the_right_mean():
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    found = clipped_loss(new, old, torch.zeros(6), clip=0.2).kl
    assert (found >= 0).all()
    assert (old.exp() * found).sum().item() == pytest.approx(kl(old, new).item())


def test_normalised_advantages_leave_padding_alone():
    mask = torch.tensor([[True, True], [True, False]])
    found = normalised(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), mask)
    assert found[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert found[mask].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert found[1, 1] == 0


def test_value_loss_by_hand():
    assert value_loss(torch.tensor(3.0), torch.tensor(1.0)).item() == 2.0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_in_a_finite_world_equals_listing_all_draws(n):
    world = kitchen_world().with_rewards(torch.tensor([[2.0, 0.5, 0.5, -1.0], [2.0, 2.0, 0.5, -3.0]]))
    probs = world.reference_logps.exp()
    by_hand = torch.zeros_like(probs)
    for x in range(2):
        for draw in itertools.product(range(4), repeat=n):
            chance = math.prod(probs[x, y].item() for y in draw)
            best = max(world.rewards[x, y].item() for y in draw)
            winners = [y for y in draw if world.rewards[x, y] == best]
            for y in winners:
                by_hand[x, y] += chance / len(winners)
    torch.testing.assert_close(best_of_n_logps(world, world.reference_logps, n).exp(), by_hand)


def test_the_kl_of_best_of_n_stays_below_the_formula_and_reaches_it_where_answers_are_many():
    world = small_world()
    for n in (2, 4, 16):
        drift = kl(best_of_n_logps(world, world.reference_logps, n), world.reference_logps)
        assert (drift <= best_of_n_kl(n) + 1e-12).all()
    many = type(world).from_tables(torch.linspace(0, 1, 500)[None], torch.full((1, 500), 1 / 500))
    best = best_of_n_logps(many, many.reference_logps, 4)
    assert kl(best, many.reference_logps).item() == pytest.approx(float(best_of_n_kl(4)), abs=0.01)
    assert expected_reward(many, best).item() == pytest.approx(4 / 5, abs=0.01)  # the largest of 4 uniform draws
    np.testing.assert_allclose(best_of_n_kl([1, 4]), [0, math.log(4) - 0.75])
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n_kl(0)


def test_the_kl_of_best_of_n_is_estimated_from_rewards_alone():
    """Answers drawn from a world whose exact KL is known, some of them worth the same."""
    world = kitchen_world().with_rewards(torch.tensor([[2.0, 0.5, 0.5, -1.0], [2.0, 2.0, 0.5, -3.0]]))
    rng, probs = np.random.default_rng(0), world.reference_logps.exp().numpy()
    drawn = np.stack([rng.choice(world.rewards[x].numpy(), 50_000, p=probs[x]) for x in range(2)])
    for n in (1, 2, 4, 8):
        exact = kl(best_of_n_logps(world, world.reference_logps, n), world.reference_logps).mean().item()
        assert best_of_n_kl_of_samples(drawn, n) == pytest.approx(exact, abs=0.01)
        assert exact <= best_of_n_kl(n) + 1e-9


def test_where_no_reward_comes_twice_the_estimate_is_near_the_formula_for_n_well_below_the_answers():
    rewards = np.random.default_rng(0).normal(size=(5, 16))
    for n in (2, 4, 8):
        found = best_of_n_kl_of_samples(rewards, n)
        assert 0.85 * best_of_n_kl(n) < found < best_of_n_kl(n)
    assert best_of_n_kl_of_samples(rewards + 0.0, 1) == pytest.approx(0)


def test_one_answer_in_two_batches_is_one_reward():
    rewards = np.array([[1.0, 1.0 + 1e-6, 1.0 - 1e-6, 1.0]])
    assert best_of_n_kl_of_samples(rewards, 4) == pytest.approx(0)
    with pytest.raises(ValueError, match="between 1 and the 4 answers per prompt, got 5"):
        best_of_n_kl_of_samples(rewards, 5)
    with pytest.raises(ValueError, match=r"must have shape \(prompts, answers\), got \(4,\)"):
        best_of_n_kl_of_samples(rewards[0], 2)
