"""The expected loss against plain Python; its minimiser against the closed forms of RLHF, DPO and IPO."""

import itertools
import math

import pytest
import torch

from dpo_lab.losses import LOSSES
from dpo_lab.worlds.comparisons import (
    all_comparisons,
    fit_rewards,
    preference_probs,
    reference_pairs,
    sample_comparisons,
    uniform_pairs,
)
from dpo_lab.worlds.learning import (
    descend,
    expected_loss,
    minimise,
    one_thread,
    value_and_gradient,
)
from dpo_lab.worlds.tabular import (
    kitchen_world,
    kl,
    objective,
    optimal_logps,
    random_world,
    small_world,
    total_variation,
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tables gain nothing from threads, and on a busy machine wait for them."""
    with one_thread():
        yield


def dpo(beta):
    return LOSSES["dpo"].bind(beta=beta)


def some_logits(world, seed=7):
    return torch.randn(world.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_expected_loss_equals_plain_python():
    world, beta = small_world(2), 0.4
    logits = some_logits(world)
    rho, mu, r = world.prompt_probs.tolist(), reference_pairs(world).tolist(), world.rewards.tolist()
    ratio = (logits.log_softmax(-1) - world.reference_logps).tolist()
    total = 0.0
    for x in range(3):
        for i in range(5):
            for j in range(5):
                wins = 1 / (1 + math.exp(r[x][j] - r[x][i]))
                z = beta * (ratio[x][i] - ratio[x][j])
                # mu lists (i, j) and (j, i): together they are one pair, in which i wins with this probability.
                total += rho[x] * (mu[x][i][j] + mu[x][j][i]) * wins * math.log(1 + math.exp(-z))
    assert expected_loss(world, logits, dpo(beta)).item() == pytest.approx(total)


def test_at_the_reference_the_loss_is_log_two_and_the_gradient_is_not_zero():
    world = small_world(0)
    value, gradient = value_and_gradient(lambda logits: expected_loss(world, logits, dpo(0.1)), world.reference_logps)
    assert value.item() == pytest.approx(math.log(2))
    assert gradient.norm() > 1e-3


def test_the_gradient_equals_its_formula_and_finite_differences():
    """∂/∂θ(x, y) = −β Σ_j ρ(x)·2μ(y, j)·(P(y ≻ j) − σ(h(y) − h(j))), h = β log π/π_ref: what is said minus believed."""
    world, beta = small_world(1), 0.5
    logits = some_logits(world)
    _, gradient = value_and_gradient(lambda at: expected_loss(world, at, dpo(beta)), logits)
    shown = world.prompt_probs[:, None, None] * 2 * reference_pairs(world)
    believed = preference_probs(beta * (logits - world.reference_logps))
    torch.testing.assert_close(gradient, -beta * (shown * (preference_probs(world.rewards) - believed)).sum(-1))
    for x, y in ((0, 0), (1, 3), (2, 4)):
        step = torch.zeros_like(logits)
        step[x, y] = 1e-5
        ahead, behind = (expected_loss(world, logits + sign * step, dpo(beta)) for sign in (1, -1))
        assert gradient[x, y].item() == pytest.approx(((ahead - behind) / 2e-5).item(), abs=1e-9)


WORLDS = {
    "kitchen": kitchen_world(),
    "small": small_world(0),
    "ten by ten": random_world(10, 10, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("name", WORLDS)
def test_gradient_descent_on_the_expected_dpo_loss_reaches_the_optimal_policy(name, beta):
    world = WORLDS[name]
    star, comparisons = optimal_logps(world, beta), all_comparisons(world)
    assert total_variation(world.reference_logps, star).max() > 0.2  # there is a way to go
    found = minimise(lambda logits: expected_loss(world, logits, dpo(beta), comparisons), world.reference_logps,
                     steps=2_000, tolerance=1e-8)  # fmt: skip
    assert total_variation(found.logits.log_softmax(-1), star).max() < 1e-4


@pytest.mark.parametrize("pairs", [reference_pairs, uniform_pairs])
def test_the_minimiser_does_not_depend_on_how_pairs_are_drawn(pairs):
    world, beta = small_world(3), 0.5
    comparisons = all_comparisons(world, pairs=pairs(world))
    found = minimise(lambda logits: expected_loss(world, logits, dpo(beta), comparisons), world.reference_logps)
    assert total_variation(found.logits.log_softmax(-1), optimal_logps(world, beta)).max() < 1e-6


def test_climbing_the_rlhf_objective_ends_where_dpo_ends():
    world, beta = small_world(4), 0.5
    found = minimise(lambda logits: -objective(world, logits.log_softmax(-1), beta), world.reference_logps,
                     tolerance=1e-5)  # fmt: skip
    assert total_variation(found.logits.log_softmax(-1), optimal_logps(world, beta)).max() < 1e-4


def test_label_temperature_acts_as_a_larger_beta():
    world = small_world(5)
    noisy = all_comparisons(world, temperature=2.0)
    found = minimise(lambda logits: expected_loss(world, logits, dpo(0.5), noisy), world.reference_logps)
    assert total_variation(found.logits.log_softmax(-1), optimal_logps(world, 0.5 * 2.0)).max() < 1e-6


def test_flipped_labels_pull_dpo_towards_the_reference_and_robust_dpo_not():
    world, beta = small_world(0), 0.5
    star, noisy = optimal_logps(world, beta), all_comparisons(world, flip=0.2)
    robust = LOSSES["robust"].bind(beta=beta, label_smoothing=0.2)
    logits = some_logits(world)
    assert expected_loss(world, logits, robust, noisy).item() == pytest.approx(
        expected_loss(world, logits, dpo(beta)).item()
    )
    plain = minimise(lambda at: expected_loss(world, at, dpo(beta), noisy), world.reference_logps).logits.log_softmax(
        -1
    )
    clean = minimise(lambda at: expected_loss(world, at, robust, noisy), world.reference_logps).logits.log_softmax(-1)
    assert total_variation(clean, star).max() < 1e-6
    assert bool((kl(plain, world.reference_logps) < kl(star, world.reference_logps)).all())
    assert total_variation(plain, star).min() > 0.05


def test_on_the_same_sample_dpo_equals_a_fitted_reward_with_its_closed_form_optimum():
    """Both methods meet on finite data too, as long as policies are tables: DPO is the reward fit, reparametrised."""
    world, beta = small_world(1), 0.3
    sample = sample_comparisons(world, 2_000, generator=torch.Generator().manual_seed(0)).merged()
    by_reward = optimal_logps(world.with_rewards(fit_rewards(world, sample)), beta)
    by_dpo = minimise(lambda logits: expected_loss(world, logits, dpo(beta), sample), world.reference_logps)
    assert total_variation(by_dpo.logits.log_softmax(-1), by_reward).max() < 1e-5
    assert total_variation(by_reward, optimal_logps(world, beta)).max() > 1e-2  # and both err, as samples do


def test_the_sampled_policy_comes_nearer_to_the_optimum_as_one_over_root_n():
    world, beta = small_world(0), 1.0
    star, means = optimal_logps(world, beta), []
    for n in (1_000, 10_000, 100_000):
        distances = [
            world.mean(total_variation(optimal_logps(world.with_rewards(fit_rewards(world, sample)), beta), star))
            for sample in (sample_comparisons(world, n, generator=torch.Generator().manual_seed(s)) for s in range(20))
        ]
        means.append(torch.stack(distances).mean().item())
    assert means[0] / means[1] == pytest.approx(math.sqrt(10), rel=0.3)
    assert means[1] / means[2] == pytest.approx(math.sqrt(10), rel=0.3)


def ipo_optimal_logps(world, beta, *, proposal=None, temperature=1.0):
    """What IPO converges to: π ∝ π_ref·exp(P(y ≻ μ)/β), with P(y ≻ μ) the chance to beat a draw from μ. (X, Y)

    Holds for `pairs_of(μ)`; μ is `proposal` (X, Y) or else π_ref. Azar et al. 2023 (arXiv 2310.12036), Section 5.
    """
    mu = world.reference_logps.exp() if proposal is None else proposal.double()
    wins = preference_probs(world.rewards, temperature=temperature) * mu[:, None, :]
    return (world.reference_logps + wins.sum(-1) / beta).log_softmax(-1)


def test_with_certain_labels_dpo_runs_away_and_ipo_stays():
    world, beta = kitchen_world(), 0.5
    certain = all_comparisons(world, temperature=0.0)
    points = list(descend(lambda at: expected_loss(world, at, dpo(beta), certain), world.reference_logps,
                          learning_rate=20.0, steps=2_000))  # fmt: skip
    widths = [(points[step].logits - world.reference_logps).std(-1).min() for step in (20, 200, 2_000)]
    # Grows like log(steps), without a limit.
    assert widths[0] + 1 < widths[1]
    assert widths[1] + 1 < widths[2]
    ipo = LOSSES["ipo"].bind(beta=beta, length_power=0.0)
    found = minimise(lambda at: expected_loss(world, at, ipo, certain), world.reference_logps)
    closed = ipo_optimal_logps(world, beta, temperature=0.0)
    assert total_variation(found.logits.log_softmax(-1), closed).max() < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ipo_ends_at_its_closed_form_for_any_proposal(temperature):
    world, beta = small_world(2), 0.3
    loss = LOSSES["ipo"].bind(beta=beta, length_power=0.0)
    uniform = torch.full(world.shape, 1 / world.shape[1], dtype=torch.float64)
    for pairs, proposal in ((reference_pairs(world), None), (uniform_pairs(world), uniform)):
        comparisons = all_comparisons(world, pairs=pairs, temperature=temperature)
        found = minimise(lambda at, on=comparisons: expected_loss(world, at, loss, on), world.reference_logps)
        closed = ipo_optimal_logps(world, beta, proposal=proposal, temperature=temperature)
        assert total_variation(found.logits.log_softmax(-1), closed).max() < 1e-6


def test_the_chosen_learning_rate_never_lets_the_dpo_loss_rise():
    world = small_world(2)
    for beta in (0.05, 5.0):
        comparisons = all_comparisons(world)
        points = descend(lambda at, b=beta, on=comparisons: expected_loss(world, at, dpo(b), on),
                         world.reference_logps, steps=300)  # fmt: skip
        losses = [point.loss for point in points]
        assert all(later <= earlier + 1e-15 for earlier, later in itertools.pairwise(losses))
        assert losses[-1] < losses[0]


def test_one_thread_gives_the_threads_back_even_after_an_error():
    def fail(at):
        assert torch.get_num_threads() == 1
        raise KeyError

    torch.set_num_threads(2)
    with pytest.raises(KeyError):
        value_and_gradient(fail, torch.zeros(1, 2))
    assert torch.get_num_threads() == 2


def test_mistakes_are_reported_at_the_call():
    with pytest.raises(ValueError, match=r"steps must be >= 0 and learning_rate positive, got 5 and -1\.0"):
        descend(lambda at: at.square().sum(), torch.zeros(1, 2), learning_rate=-1.0, steps=5)
    with pytest.raises(ValueError, match=r"must be curved at the start, got curvature 0.0; give a learning_rate"):
        descend(lambda at: at.sum() * 1.0, torch.zeros(1, 2), steps=5)
