"""Bradley–Terry both ways: probabilities from rewards by hand, rewards from comparisons with the error due."""

import math

import pytest
import torch

from dpo_lab.worlds.comparisons import (
    Comparisons,
    all_comparisons,
    fit_rewards,
    preference_probs,
    reference_pairs,
    reward_errors,
    sample_comparisons,
    uniform_pairs,
)
from dpo_lab.worlds.learning import one_thread
from dpo_lab.worlds.tabular import World, log_partition, optimal_logps, recovered_rewards, small_world


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tables gain nothing from threads, and on a busy machine wait for them."""
    with one_thread():
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def centred(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean(-1, keepdim=True)


def test_preference_probabilities_worked_by_hand():
    probs = preference_probs(torch.tensor([[math.log(3), 0.0]]))
    torch.testing.assert_close(probs, torch.tensor([[[0.5, 0.75], [0.25, 0.5]]], dtype=torch.float64))
    # 3^(1/2) : 1 at temperature 2; ¾ with a quarter of the labels flipped: ¾·¾ + ¼·¼.
    assert preference_probs(torch.tensor([[math.log(3), 0.0]]), temperature=2.0)[0, 0, 1].item() == pytest.approx(
        math.sqrt(3) / (1 + math.sqrt(3))
    )
    assert preference_probs(torch.tensor([[math.log(3), 0.0]]), flip=0.25)[0, 0, 1].item() == pytest.approx(0.625)


def test_at_temperature_zero_the_better_always_wins_and_ties_are_even():
    probs = preference_probs(torch.tensor([[2.0, 1.0, 1.0]]), temperature=0.0)
    assert probs[0].tolist() == [[0.5, 1.0, 1.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]


def test_either_response_wins():
    probs = preference_probs(small_world(0).rewards, temperature=0.7, flip=0.1)
    torch.testing.assert_close(probs + probs.transpose(1, 2), torch.ones_like(probs))


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_partition_cancels_in_the_preference_probability(beta):
    """Rafailov et al. 2023, Eq. 6: the same probabilities from r, from β log π*/π_ref, and with any Z in between."""
    world = small_world(1)
    star = optimal_logps(world, beta)
    truth = preference_probs(world.rewards)
    torch.testing.assert_close(preference_probs(recovered_rewards(world, star, beta)), truth)
    wrong_z = log_partition(world, beta) + torch.tensor([5.0, -3.0, 100.0])
    torch.testing.assert_close(preference_probs(recovered_rewards(world, star, beta, wrong_z)), truth)


def test_the_exact_comparisons_equal_plain_python():
    world = small_world(2)
    rho, mu, r = world.prompt_probs.tolist(), reference_pairs(world).tolist(), world.rewards.tolist()
    listed = {(x, i, j): weight for x, i, j, weight in zip(*(c.tolist() for c in all_comparisons(world)), strict=True)}
    assert len(listed) == 3 * 5 * 4
    for (x, i, j), weight in listed.items():
        shown = mu[x][i][j] + mu[x][j][i]
        assert weight == pytest.approx(rho[x] * shown / (1 + math.exp(r[x][j] - r[x][i])))
    assert sum(listed.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("pairs_of_world", [reference_pairs, uniform_pairs])
def test_pairs_are_distributions_over_two_different_responses(pairs_of_world):
    pairs = pairs_of_world(small_world(0))
    torch.testing.assert_close(pairs.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    assert bool((pairs.diagonal(dim1=1, dim2=2) == 0).all())
    assert bool((pairs >= 0).all())


def test_the_order_within_a_pair_says_nothing():
    world = small_world(0)
    one_way = uniform_pairs(world).triu() * 2
    for ours, theirs in zip(
        all_comparisons(world, pairs=one_way), all_comparisons(world, pairs=uniform_pairs(world)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_samples_follow_the_exact_distribution_and_repeat_with_the_seed():
    world, n = small_world(3), 200_000
    exact = all_comparisons(world, temperature=0.5, flip=0.1)
    sample = sample_comparisons(world, n, generator=generator(0), temperature=0.5, flip=0.1)
    again = sample_comparisons(world, n, generator=generator(0), temperature=0.5, flip=0.1)
    assert all(torch.equal(a, b) for a, b in zip(sample, again, strict=True))
    assert sample.weight.sum().item() == pytest.approx(1.0)
    merged = sample.merged()
    assert torch.equal(torch.stack(merged[:3]), torch.stack(exact[:3]))  # every statement occurred
    spread = (exact.weight * (1 - exact.weight) / n).sqrt()
    assert ((merged.weight - exact.weight) / spread).abs().max() < 4  # 60 normal scores


def test_merging_adds_the_weights_of_equal_statements():
    rows = torch.tensor([[0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]])
    merged = Comparisons(rows[0], rows[1], rows[2], torch.tensor([0.1, 0.2, 0.3, 0.4])).merged()
    assert torch.stack(merged[:3]).T.tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 0]]
    assert merged.weight.tolist() == pytest.approx([0.4, 0.3, 0.3])


def test_rewards_come_back_exactly_from_exact_comparisons():
    for seed in range(4):
        world = small_world(seed)
        for pairs in (None, uniform_pairs(world)):
            fit = fit_rewards(world, all_comparisons(world, pairs=pairs))
            torch.testing.assert_close(fit, centred(world.rewards), atol=1e-8, rtol=0.0)


def test_the_fit_of_two_responses_is_the_log_odds_of_the_wins():
    world = World.from_tables([[0.0, 0.0]], [[0.5, 0.5]])
    wins = Comparisons(
        torch.zeros(10, dtype=torch.long),
        torch.tensor([0] * 8 + [1] * 2),
        torch.tensor([1] * 8 + [0] * 2),
        torch.full((10,), 0.1),
    )
    fit = fit_rewards(world, wins)[0]
    assert (fit[0] - fit[1]).item() == pytest.approx(math.log(4))


def test_the_error_of_fitted_rewards_falls_as_one_over_root_n_by_the_size_that_fisher_predicts():
    world = small_world(0)
    exact = all_comparisons(world, pairs=uniform_pairs(world))
    root_mean_squares = []
    for n in (3_000, 30_000, 300_000):
        errors = torch.stack(
            [
                fit_rewards(world, sample_comparisons(world, n, generator=generator(seed), pairs=uniform_pairs(world)))
                - centred(world.rewards)
                for seed in range(40)
            ]
        )  # (40, X, Y)
        scores = errors / reward_errors(world, exact, n)
        assert scores.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.15)
        root_mean_squares.append(errors.square().mean().sqrt().item())
    for more, fewer in zip(root_mean_squares[1:], root_mean_squares, strict=False):
        assert fewer / more == pytest.approx(math.sqrt(10), rel=0.2)


def test_the_errors_of_two_rewards_are_half_that_of_their_gap():
    """A shift of both changes no comparison. Its eigenvalue is a rounding error, and inverted it gave huge errors."""
    for gap in torch.linspace(-4, 4, 161).tolist():
        world, share = World.from_tables([[gap, 0.0]], [[0.5, 0.5]]), 1 / (1 + math.exp(-gap))
        expected = 1 / math.sqrt(500 * share * (1 - share)) / 2
        assert reward_errors(world, all_comparisons(world), 500)[0].tolist() == pytest.approx([expected] * 2)


def test_a_response_that_never_lost_has_no_finite_reward_unless_a_ridge_holds_it():
    world = small_world(0)
    sure = all_comparisons(world, temperature=0.0)
    with pytest.raises(ValueError, match=r"prompt 'x0' run to infinity.*add comparisons, or give ridge > 0"):
        fit_rewards(world, sure)
    held = fit_rewards(world, sure, ridge=1e-3)
    assert held.argsort(-1).tolist() == world.rewards.argsort(-1).tolist()


def test_a_cycle_of_wins_has_a_finite_fit_and_a_chain_has_not():
    world = World.from_tables([[0.0, 0.0, 0.0]], [[0.2, 0.3, 0.5]])
    zeros, third = torch.zeros(3, dtype=torch.long), torch.full((3,), 1 / 3)
    cycle = Comparisons(zeros, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), third)
    torch.testing.assert_close(fit_rewards(world, cycle), world.rewards)
    chain = Comparisons(zeros, torch.tensor([0, 1, 0]), torch.tensor([1, 2, 2]), third)
    with pytest.raises(ValueError, match="run to infinity"):
        fit_rewards(world, chain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: all_comparisons(w, temperature=-1.0), "temperature must be >= 0, got -1.0"),
        (lambda w: all_comparisons(w, flip=0.6), r"flip must lie in \[0, 0.5\], got 0.6"),
        (lambda w: all_comparisons(w, pairs=torch.ones(3, 5, 5)), r"pairs must be a distribution.*sums \[25"),
        (lambda w: all_comparisons(w, pairs=torch.ones(5, 5)), "pairs must be a distribution"),
        (lambda w: sample_comparisons(w, 0, generator=generator(0)), "n must be at least 1, got 0"),
        (lambda w: fit_rewards(w, all_comparisons(w), ridge=-1.0), "ridge must be >= 0, got -1.0"),
    ],
)
def test_wrong_settings_are_refused_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_world())
