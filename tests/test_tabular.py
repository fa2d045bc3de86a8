"""The finite world against plain Python on its small tables, and against the identities of the derivation."""

import math

import pytest
import torch

from dpo_lab.worlds.tabular import (
    World,
    best_objective,
    expected_reward,
    frontier,
    kitchen_world,
    kl,
    log_partition,
    objective,
    optimal_logps,
    random_world,
    recovered_rewards,
    small_world,
    total_variation,
)

BETAS = (0.1, 1.0, 5.0)


def some_policy(world: World, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(world.shape, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_a_world_worked_by_hand():
    """Reference ½, ½, rewards log 3 and 0 at β = 1: Z = ½·3 + ½·1 = 2, π* = (¾, ¼)."""
    world = World.from_tables([[math.log(3), 0.0]], [[0.5, 0.5]])
    star = optimal_logps(world, 1.0)
    assert log_partition(world, 1.0).item() == pytest.approx(math.log(2))
    assert star.exp().tolist()[0] == pytest.approx([0.75, 0.25])
    assert kl(star, world.reference_logps).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert total_variation(star, world.reference_logps).item() == pytest.approx(0.25)
    assert expected_reward(world, star).item() == pytest.approx(0.75 * math.log(3))
    assert best_objective(world, 1.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("beta", BETAS)
def test_the_optimum_equals_plain_python(beta):
    world = small_world(3)
    rewards, reference = world.rewards.tolist(), world.reference_logps.exp().tolist()
    star = optimal_logps(world, beta).exp().tolist()
    for x in range(3):
        weights = [p * math.exp(r / beta) for p, r in zip(reference[x], rewards[x], strict=True)]
        assert star[x] == pytest.approx([w / sum(weights) for w in weights], abs=1e-12)
        assert log_partition(world, beta)[x].item() == pytest.approx(math.log(sum(weights)))


def test_policy_values_equal_plain_python():
    world = small_world(3)
    policy = some_policy(world)
    p, q, r = policy.exp().tolist(), world.reference_logps.exp().tolist(), world.rewards.tolist()
    rho = world.prompt_probs.tolist()
    cells = [(x, y) for x in range(3) for y in range(5)]
    reward = sum(rho[x] * p[x][y] * r[x][y] for x, y in cells)
    drift = sum(rho[x] * p[x][y] * math.log(p[x][y] / q[x][y]) for x, y in cells)
    assert expected_reward(world, policy).item() == pytest.approx(reward)
    assert world.mean(kl(policy, world.reference_logps)).item() == pytest.approx(drift)
    assert objective(world, policy, 0.3).item() == pytest.approx(reward - 0.3 * drift)
    # Total variation is the largest difference in the probability of any event: try all 2^5 of them.
    events = [sum((p[0][y] - q[0][y]) * (event >> y & 1) for y in range(5)) for event in range(32)]
    assert total_variation(policy, world.reference_logps)[0].item() == pytest.approx(max(events))


@pytest.mark.parametrize("beta", BETAS)
def test_the_best_objective_is_beta_times_the_expected_log_partition(beta):
    world = small_world(1)
    assert objective(world, optimal_logps(world, beta), beta).item() == pytest.approx(
        best_objective(world, beta).item()
    )


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("seed", range(5))
def test_falling_short_of_the_optimum_is_beta_times_the_divergence_from_it(beta, seed):
    world, policy = small_world(seed), some_policy(small_world(seed), seed + 100)
    star = optimal_logps(world, beta)
    gap = best_objective(world, beta) - objective(world, policy, beta)
    assert gap.item() == pytest.approx((beta * world.mean(kl(policy, star))).item(), abs=1e-12)
    assert gap > 0


@pytest.mark.parametrize("beta", BETAS)
def test_rewards_come_back_from_the_optimal_policy(beta):
    world = small_world(2)
    star, log_z = optimal_logps(world, beta), log_partition(world, beta)
    torch.testing.assert_close(recovered_rewards(world, star, beta, log_z), world.rewards)
    # Without Z(x), up to one number per prompt: differences between two responses are exact.
    implicit = recovered_rewards(world, star, beta)
    torch.testing.assert_close(implicit - implicit[:, :1], world.rewards - world.rewards[:, :1])


def test_a_reward_shifted_by_a_function_of_the_prompt_changes_nothing_but_the_partition():
    world = small_world(0)
    shift = torch.tensor([[3.0], [-1.0], [10.0]], dtype=torch.float64)
    shifted = world.with_rewards(world.rewards + shift)
    torch.testing.assert_close(optimal_logps(shifted, 0.5), optimal_logps(world, 0.5))
    torch.testing.assert_close(log_partition(shifted, 0.5), log_partition(world, 0.5) + shift[:, 0] / 0.5)


def test_a_large_beta_gives_the_reference_and_a_small_one_the_best_response():
    world = small_world(4)
    assert total_variation(optimal_logps(world, 1e6), world.reference_logps).max() < 1e-5
    greedy = optimal_logps(world, 1e-3).exp()
    assert greedy.argmax(-1).tolist() == world.rewards.argmax(-1).tolist()
    assert greedy.amax(-1).min() > 1 - 1e-9
    assert bool(optimal_logps(world, 1e-300).isfinite().any())


def test_kl_and_reward_fall_as_beta_grows_and_the_frontier_has_slope_beta():
    world = small_world(5)
    betas = torch.logspace(-1, 1, 201, dtype=torch.float64)
    line = frontier(world, betas.tolist())
    assert bool((line.kl.diff() < 0).all())
    assert bool((line.rewards.diff() < 0).all())
    slope = line.rewards.diff() / line.kl.diff()
    torch.testing.assert_close(slope, (betas[1:] + betas[:-1]) / 2, rtol=1e-3, atol=0.0)


def test_no_policy_lies_above_the_frontier():
    world = small_world(5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        policy = (torch.randn(world.shape, generator=generator, dtype=torch.float64) * 2).log_softmax(-1)
        point = expected_reward(world, policy), world.mean(kl(policy, world.reference_logps))
        for beta in BETAS:  # each β gives a tangent: R ≤ J(π*) + β·KL
            assert point[0] <= best_objective(world, beta) + beta * point[1] + 1e-12


def test_a_response_that_the_policy_never_gives_adds_nothing_to_kl():
    policy = torch.tensor([[0.0, -math.inf]], dtype=torch.float64)
    other = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    assert kl(policy, other).item() == pytest.approx(math.log(2))
    assert kl(other, policy).item() == math.inf


def test_worlds_are_the_same_for_the_same_seed_and_differ_otherwise():
    assert torch.equal(small_world(1).rewards, small_world(1).rewards)
    assert not torch.equal(small_world(1).rewards, small_world(2).rewards)
    world = random_world(40, 70, generator=torch.Generator().manual_seed(0), reward_scale=2.0, spread=0.0)
    assert world.shape == (40, 70)
    torch.testing.assert_close(world.reference_logps, torch.full_like(world.rewards, -math.log(70)))
    assert world.rewards.std().item() == pytest.approx(2.0, rel=0.05)
    torch.testing.assert_close(world.prompt_probs.sum().item(), 1.0)


def test_the_kitchen_speaks_and_its_reference_prefers_what_is_not_best():
    world = kitchen_world()
    assert world.shape == (2, 4)
    assert len(world.prompts) == 2
    assert world.responses[0][0] == "Eight minutes in boiling water."
    assert bool((world.reference_logps.argmax(-1) != world.rewards.argmax(-1)).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [1.0, 2.0]}, r"rewards must have shape \(X, Y\).*got \(2,\)"),
        ({"rewards": [[1.0], [2.0]]}, r"Y >= 2, got \(2, 1\)"),
        ({"rewards": [[1.0, math.inf], [0.0, 0.0]]}, "rewards must be finite, got inf"),
        ({"reference_probs": [[0.5, 0.5]]}, r"shape \(2, 2\) of the rewards, got \(1, 2\)"),
        ({"reference_probs": [[1.0, 0.0], [0.5, 0.5]]}, "must be positive, got 0.0; no β"),
        ({"reference_probs": [[0.5, 0.4], [0.5, 0.5]]}, "sum to 1, got 0.9"),
        ({"prompt_probs": [0.5, 0.6]}, "prompt_probs must sum to 1, got 1.1"),
        ({"prompt_probs": [1.5, -0.5]}, "2 numbers >= 0"),
        ({"lengths": torch.ones(2, 3)}, r"lengths must have the shape \(2, 2\)"),
        ({"prompts": ["one"]}, "name 2 prompts, got 1"),
        ({"responses": [["a", "b"], ["a"]]}, r"name 2 responses for each of 2 prompts, got \[2, 1\]"),
    ],
)
def test_wrong_tables_are_refused_with_value_and_rule(change, message):
    tables = {"rewards": [[1.0, 0.0], [0.0, 1.0]], "reference_probs": [[0.5, 0.5], [0.5, 0.5]], **change}
    with pytest.raises(ValueError, match=message):
        World.from_tables(**tables)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_beta_that_is_no_price_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must be positive and finite, got .*; smaller values"):
        optimal_logps(small_world(), beta)
