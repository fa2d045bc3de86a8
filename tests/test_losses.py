"""Losses against numbers worked by hand, identities, limits, finite differences and extremes.

Two pairs are worked throughout. Pair A: a = 2, b = −3, so z = 0.1·(2 + 3) = 0.5; 4 and 5 tokens.
Pair B: a = −1, b = 3, so z = 0.1·(−1 − 3) = −0.4; 3 and 8 tokens. Below, ℓ(u) = log(1 + e^−u) and σ(u) = 1/(1 + e^−u).
"""

import inspect
import itertools
import math
import typing
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_lab import config, losses
from dpo_lab.losses import DIVERGENCES, LOSSES, PairScores

LOG2 = math.log(2)
NAMES = list(LOSSES)
GAP_NAMES = [name for name, spec in LOSSES.items() if spec.takes_divergence]


def pair_scores(*rows, dtype=torch.float64) -> PairScores:
    """Rows of (policy chosen, rejected, reference chosen, rejected, chosen length, rejected length)."""
    return PairScores(*torch.tensor(rows, dtype=dtype).T)


PAIRS = pair_scores((-6, -10, -8, -7, 4, 5), (-9, -4, -8, -7, 3, 8))


def close(values, expected, tolerance=1e-6) -> None:
    torch.testing.assert_close(values, torch.tensor(expected, dtype=values.dtype), atol=tolerance, rtol=0)


def random_scores(num_pairs=7, seed=0) -> PairScores:
    generator = torch.Generator().manual_seed(seed)
    logps = -20 * torch.rand(4, num_pairs, generator=generator, dtype=torch.float64) - 0.5
    lengths = torch.randint(1, 20, (2, num_pairs), generator=generator).double()
    return PairScores(*logps, *lengths)


def with_gap(gap, dtype=torch.float64) -> PairScores:
    """One-token pairs with a = gap and b = 0."""
    gap = torch.as_tensor(gap, dtype=dtype)
    zero, one = torch.zeros_like(gap), torch.ones_like(gap)
    return PairScores(gap, zero, zero, zero, one, one)


def slopes(loss, scores: PairScores) -> tuple[torch.Tensor, torch.Tensor]:
    """∂loss/∂policy_chosen and ∂loss/∂policy_rejected, per pair."""
    chosen = scores.policy_chosen.clone().requires_grad_()
    rejected = scores.policy_rejected.clone().requires_grad_()
    values = loss(scores._replace(policy_chosen=chosen, policy_rejected=rejected))
    gradients = torch.autograd.grad(values.sum(), (chosen, rejected), allow_unused=True, materialize_grads=True)
    return gradients[0], gradients[1]


# --- Numbers worked by hand -----------------------------------------------------------------------------------------

HAND = [
    # ℓ(0.5), ℓ(−0.4)
    ("dpo", {"beta": 0.1}, (0.474077, 0.913015)),
    # 0.8·0.474077 + 0.2·0.974077, 0.8·0.913015 + 0.2·0.513015
    ("cdpo", {"beta": 0.1, "label_smoothing": 0.2}, (0.574077, 0.833015)),
    # (0.8·0.474077 − 0.2·0.974077)/0.6, (0.8·0.913015 − 0.2·0.513015)/0.6
    ("robust", {"beta": 0.1, "label_smoothing": 0.2}, (0.307410, 1.046349)),
    # (2/4 + 3/5 − 1/(2·0.5))² = 0.1², (−1/3 − 3/8 − 1)² = 1.708333²
    ("ipo", {"beta": 0.5, "length_power": 1.0}, (0.01, 2.918403)),
    # (2 + 3 − 1)² = 4², (−1 − 3 − 1)² = 5²
    ("ipo", {"beta": 0.5, "length_power": 0.0}, (16.0, 25.0)),
    # 1 − 0.5, 1 + 0.4
    ("hinge", {"beta": 0.1}, (0.5, 1.4)),
    # ℓ(2·(2/4 + 3/5)) = ℓ(2.2), ℓ(2·(−1/3 − 3/8)) = ℓ(−1.416667)
    ("sigmoid_norm", {"beta": 2.0}, (0.105083, 1.633809)),
    # σ(0.5) = 0.622459: 0.622459·log(0.622459/0.9) + 0.377541·log(0.377541/0.1) = −0.229504 + 0.501559
    # σ(−0.4) = 0.401312: 0.401312·log(0.401312/0.9) + 0.598688·log(0.598688/0.1) = −0.324122 + 1.071394
    ("exo_pair", {"beta": 0.1, "label_smoothing": 0.1}, (0.272055, 0.747272)),
    # ℓ(0.2) + ½·ℓ(−0.2) + ½·ℓ(0.3) = 0.598139 + 0.399069 + 0.277178
    # ℓ(−0.1) + ½·ℓ(0.1) + ½·ℓ(−0.3) = 0.744397 + 0.322198 + 0.427178
    ("nca_pair", {"beta": 0.1}, (1.274386, 1.493773)),
    # ℓ(0.2) + ℓ(0.3) = 0.598139 + 0.554355, ℓ(−0.1) + ℓ(−0.3) = 0.744397 + 0.854355
    ("bco_pair", {"beta": 0.1}, (1.152494, 1.598752)),
    # 1/(2·0.5) = 1: (2 − 1)² + (−3 + 1)², (−1 − 1)² + (3 + 1)²
    ("sppo_hard", {"beta": 0.5}, (5.0, 20.0)),
    # 1 − σ(0.2) + σ(−0.3) = 1 − 0.549834 + 0.425557, 1 − σ(−0.1) + σ(0.3) = 1 − 0.475021 + 0.574443
    ("apo_zero", {"beta": 0.1}, (0.875723, 1.099422)),
    # σ(0.2) + 1 − σ(0.5) = 0.549834 + 1 − 0.622459, σ(−0.1) + 1 − σ(−0.4) = 0.475021 + 1 − 0.401312
    ("apo_down", {"beta": 0.1}, (0.927375, 1.073708)),
    # m = σ(0.5/0.5) = 0.731059: 0.268941·0.474077 + 0.731059·e^−0.5 = 0.127499 + 0.443409
    # m = σ(−0.4/0.5) = 0.310026: 0.689974·0.913015 + 0.310026·e^0.4 = 0.629957 + 0.462504
    ("discopop", {"beta": 0.1, "tau": 0.5}, (0.570908, 1.092461)),
    # a = 2 is above the reference, no penalty: ℓ(0.5); a = −1: ℓ(0.1·(−4 − 2·1)) = ℓ(−0.6)
    ("dpop", {"beta": 0.1, "lam": 2.0}, (0.474077, 1.037488)),
    # 0.474077 + 0.5·6/4, 0.913015 + 0.5·9/3
    ("rpo", {"beta": 0.1, "alpha": 0.5}, (1.224077, 2.413015)),
    # ℓ(2·(−6/4 + 10/5) − 0.5) = ℓ(0.5), ℓ(2·(−9/3 + 4/8) − 0.5) = ℓ(−5.5)
    ("simpo", {"beta": 2.0, "gamma": 0.5}, (0.474077, 5.504078)),
    # mean −1.5 has log-odds −1.5 − log(1 − e^−1.5) = −1.247518, −2: −1.854587, −3: −2.948931, −0.5: 0.432752
    # 1.5 + 0.2·ℓ(0.607069) = 1.5 + 0.2·0.434989, 3 + 0.2·ℓ(−3.381683) = 3 + 0.2·3.415108
    ("orpo", {"lam": 0.2}, (1.586998, 3.683022)),
    # ℓ(0.1·(−6 + 10)) + 6/4 = ℓ(0.4) + 1.5, ℓ(0.1·(−9 + 4)) + 9/3 = ℓ(−0.5) + 3
    ("cpo", {"beta": 0.1, "alpha": 1.0}, (2.013015, 3.974077)),
    # e^(−10/5) − e^(−6/4) = 0.135335 − 0.223130, e^(−4/8) − e^(−9/3) = 0.606531 − 0.049787
    ("simper", {}, (-0.087795, 0.556744)),
]


@pytest.mark.parametrize(("name", "knobs", "expected"), HAND, ids=lambda value: value if isinstance(value, str) else "")
def test_loss_equals_the_numbers_worked_by_hand(name, knobs, expected):
    close(LOSSES[name].function(PAIRS, **knobs), expected)


def test_every_loss_is_worked_by_hand():
    assert {name for name, _, _ in HAND} == set(LOSSES)


def test_three_textbook_pairs():
    # z = 0.1·((−0.5 + 0.5) − (−0.1 + 0.1)) = 0, 0.1·(0.1 + 9.9) = 1, 0.1·(−0.9 + 20.9) = 2
    scores = pair_scores(
        (-0.5, -0.1, -0.5, -0.1, 1, 1), (-10, -30, -10.1, -20.1, 1, 1), (-1, -21, -0.1, -0.1, 1, 1), dtype=torch.float32
    )
    close(losses.dpo(scores, beta=0.1), (0.6931, 0.3133, 0.1269), tolerance=5e-5)
    close(losses.hinge(scores, beta=0.1), (1.0, 0.0, 0.0), tolerance=5e-6)
    chosen, rejected = losses.implicit_rewards(scores, 0.1)
    close(chosen, (0.0, 0.01, -0.09), tolerance=1e-6)
    close(rejected, (0.0, -0.99, -2.09), tolerance=1e-6)


def test_shared_pieces_equal_the_numbers_worked_by_hand():
    chosen, rejected = losses.log_ratios(PAIRS)
    close(chosen, (2.0, -1.0))
    close(rejected, (-3.0, 3.0))
    close(losses.log_ratio_gap(PAIRS), (5.0, -4.0))
    chosen, rejected = losses.implicit_rewards(PAIRS, beta=0.5)
    close(chosen, (1.0, -0.5))
    close(rejected, (-1.5, 1.5))
    chosen, rejected = losses.mean_logps(PAIRS)
    close(chosen, (-1.5, -3.0))  # −6/4, −9/3
    close(rejected, (-2.0, -0.5))  # −10/5, −4/8


# --- Limits and identities ------------------------------------------------------------------------------------------

EPSILON_01 = -LOG2 - 0.5 * math.log(0.1 * 0.9)
AT_THE_START = [  # policy = reference, one-token pairs with log π = −1 each, so the cross-entropy terms are 1
    ("dpo", {"beta": 0.3}, LOG2),
    ("cdpo", {"beta": 0.3, "label_smoothing": 0.2}, LOG2),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}, LOG2),
    ("ipo", {"beta": 0.25}, 4.0),  # (1/(2·0.25))²
    ("hinge", {"beta": 0.3}, 1.0),
    ("sigmoid_norm", {"beta": 3.0}, LOG2),
    ("exo_pair", {"beta": 0.3, "label_smoothing": 0.1}, EPSILON_01),
    ("nca_pair", {"beta": 0.3}, 2 * LOG2),
    ("bco_pair", {"beta": 0.3}, 2 * LOG2),
    ("sppo_hard", {"beta": 0.25}, 8.0),  # 2² + 2²
    ("apo_zero", {"beta": 0.3}, 1.0),
    ("apo_down", {"beta": 0.3}, 1.0),
    ("discopop", {"beta": 0.3}, 0.5 * LOG2 + 0.5),
    ("dpop", {"beta": 0.3}, LOG2),
    ("rpo", {"beta": 0.3, "alpha": 2.0}, LOG2 + 2),
    ("simpo", {"beta": 3.0, "gamma": 0.0}, LOG2),
    ("orpo", {"lam": 0.5}, 1 + 0.5 * LOG2),
    ("cpo", {"beta": 0.3, "alpha": 2.0}, LOG2 + 2),
    ("simper", {}, 0.0),
]


@pytest.mark.parametrize(("name", "knobs", "expected"), AT_THE_START, ids=lambda v: v if isinstance(v, str) else "")
def test_loss_where_policy_equals_reference(name, knobs, expected):
    close(LOSSES[name].bind(**knobs)(pair_scores((-1, -1, -1, -1, 1, 1))), (expected,), tolerance=1e-12)


def test_every_limit_is_stated():
    assert [name for name, _, _ in AT_THE_START] == NAMES


def test_dpo_at_the_start_costs_log_2_gives_no_reward_and_still_pulls_with_half_beta():
    scores = pair_scores((-3, -5, -3, -5, 2, 4))
    close(losses.dpo(scores, beta=0.1), (LOG2,), tolerance=1e-15)
    assert [reward.item() for reward in losses.implicit_rewards(scores, 0.1)] == [0.0, 0.0]
    chosen, rejected = slopes(partial(losses.dpo, beta=0.1), scores)
    close(chosen, (-0.05,), tolerance=1e-15)
    close(rejected, (0.05,), tolerance=1e-15)


@given(st.floats(-50, 50), st.floats(0.01, 2))
def test_dpo_pulls_with_beta_times_the_probability_of_being_wrong(gap, beta):
    chosen, rejected = slopes(partial(losses.dpo, beta=beta), with_gap([gap]))
    weight = beta / (1 + math.exp(beta * gap))  # β·σ(−z) = β·σ(r̂_l − r̂_w)
    close(chosen, (-weight,), tolerance=1e-12)
    close(rejected, (weight,), tolerance=1e-12)


@given(st.integers(0, 10_000), st.floats(0.01, 5))
def test_losses_without_their_extra_knob_are_dpo(seed, beta):
    scores = random_scores(seed=seed)
    expected = losses.dpo(scores, beta=beta)
    for same in (
        losses.cdpo(scores, beta=beta, label_smoothing=0.0),
        losses.robust(scores, beta=beta, label_smoothing=0.0),
        losses.dpop(scores, beta=beta, lam=0.0),
        losses.rpo(scores, beta=beta, alpha=0.0),
        losses.dpo(losses.under_divergence(scores, losses.reverse_kl), beta=beta),
    ):
        torch.testing.assert_close(same, expected, atol=1e-12, rtol=1e-12)


def swapped(scores: PairScores) -> PairScores:
    """The same pairs with their labels flipped."""
    chosen, rejected, reference_chosen, reference_rejected, chosen_length, rejected_length = scores
    return PairScores(rejected, chosen, reference_rejected, reference_chosen, rejected_length, chosen_length)


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.4])
def test_robust_averaged_over_flipped_labels_is_dpo_on_clean_ones(epsilon):
    scores = random_scores()
    robust = partial(losses.robust, beta=0.3, label_smoothing=epsilon)
    noisy = (1 - epsilon) * robust(scores) + epsilon * robust(swapped(scores))
    torch.testing.assert_close(noisy, losses.dpo(scores, beta=0.3), atol=1e-12, rtol=1e-12)


def test_cdpo_is_dpo_averaged_over_flipped_labels():
    scores = random_scores()
    expected = 0.8 * losses.dpo(scores, beta=0.3) + 0.2 * losses.dpo(swapped(scores), beta=0.3)
    torch.testing.assert_close(losses.cdpo(scores, beta=0.3, label_smoothing=0.2), expected, atol=1e-12, rtol=1e-12)


def test_cpo_and_simpo_are_dpo_under_a_reference_of_zeros():
    zeros = torch.zeros(7, dtype=torch.float64)
    scores = random_scores()._replace(reference_chosen=zeros, reference_rejected=zeros)
    cpo = losses.cpo(scores, beta=0.3, alpha=0.0)
    torch.testing.assert_close(cpo, losses.dpo(scores, beta=0.3))
    simpo = losses.simpo(scores, beta=0.3, gamma=0.0)
    torch.testing.assert_close(simpo, losses.sigmoid_norm(scores, beta=0.3))


def test_bco_is_an_upper_bound_of_dpo_and_exo_is_never_negative():
    scores = random_scores(200)
    assert (losses.bco_pair(scores, beta=0.3) >= losses.dpo(scores, beta=0.3)).all()
    assert (losses.exo_pair(scores, beta=0.3, label_smoothing=0.1) >= 0).all()


def test_exo_is_the_reverse_of_the_kl_that_cdpo_takes():
    # cdpo = KL((1−ε, ε) ‖ (σ(z), σ(−z))) + entropy(ε); exo = KL((σ(z), σ(−z)) ‖ (1−ε, ε)).
    label = torch.tensor([0.9, 0.1], dtype=torch.float64)
    z = 0.1 * losses.log_ratio_gap(PAIRS)
    choice = torch.stack([torch.sigmoid(z), torch.sigmoid(-z)], dim=-1)
    reverse = (choice * (choice / label).log()).sum(-1)
    forward = (label * (label / choice).log()).sum(-1)
    entropy = -(label * label.log()).sum()
    torch.testing.assert_close(losses.exo_pair(PAIRS, beta=0.1, label_smoothing=0.1), reverse)
    torch.testing.assert_close(losses.cdpo(PAIRS, beta=0.1, label_smoothing=0.1), forward + entropy)


# --- What the knobs do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
@pytest.mark.parametrize(
    ("name", "knobs", "rest"),  # the gap, times β, at which the loss stops pulling
    [
        ("cdpo", {"label_smoothing": 0.2}, math.log(4)),
        ("exo_pair", {"label_smoothing": 0.2}, math.log(4)),
        ("ipo", {}, 0.5),
        ("nca_pair", {}, LOG2),
    ],
)
def test_a_smaller_beta_lets_the_policy_drift_further_before_it_rests(name, knobs, rest, beta):
    chosen, _ = slopes(LOSSES[name].bind(beta=beta, **knobs), with_gap([rest / beta, 0.9 * rest / beta]))
    assert abs(chosen[0]) < 1e-12
    assert chosen[1] < 0


def test_hinge_lets_go_at_a_margin_of_one_and_sppo_at_its_two_targets():
    chosen, rejected = slopes(partial(losses.hinge, beta=0.25), with_gap([3.9, 4.1]))
    close(chosen, (-0.25, 0.0))
    close(rejected, (0.25, 0.0))
    scores = pair_scores((2, -2, 0, 0, 1, 1))  # 1/(2·0.25) = 2
    close(torch.cat(slopes(partial(losses.sppo_hard, beta=0.25), scores)), (0.0, 0.0))


def test_more_smoothing_softens_cdpo_and_sharpens_robust():
    right = with_gap([20.0])
    pulls = {
        name: [slopes(LOSSES[name].bind(beta=0.1, label_smoothing=eps), right)[0].item() for eps in (0.0, 0.1, 0.3)]
        for name in ("cdpo", "robust")
    }
    assert pulls["cdpo"][0] < pulls["cdpo"][1] < 0 < pulls["cdpo"][2]  # log(0.7/0.3) is less than 2: pushed back
    assert pulls["robust"][2] < pulls["robust"][1] < pulls["robust"][0] < 0


def test_the_other_knobs_turn_the_way_the_table_says():
    fallen = pair_scores((-9, -12, -8, -7, 3, 8))  # a = −1, b = −5: right, but the chosen has fallen
    weak, strong = (slopes(partial(losses.dpop, beta=0.1, lam=lam), fallen)[0] for lam in (0.0, 5.0))
    assert strong < weak < 0  # λ defends the chosen
    for name in ("rpo", "cpo"):
        weak, strong = (slopes(LOSSES[name].bind(alpha=alpha), fallen)[0] for alpha in (0.0, 5.0))
        assert strong < weak < 0  # α imitates the chosen
    weak, strong = (slopes(partial(losses.simpo, beta=2.0, gamma=gamma), fallen)[0] for gamma in (0.0, 2.0))
    assert strong < weak < 0  # γ asks for more
    weak, strong = (slopes(partial(losses.orpo, lam=lam), fallen)[1] for lam in (0.1, 1.0))
    assert strong > weak > 0  # λ pushes the rejected away
    summed, averaged = (losses.ipo(fallen, beta=0.1, length_power=p) for p in (0.0, 1.0))
    close(summed, (1.0,))  # (−1 + 5 − 5)²
    close(averaged, (22.168403,))  # (−1/3 + 5/8 − 5)² = 4.708333²


def test_discopop_starts_on_a_slope_that_leads_the_wrong_way():
    # At z = 0: −½·½ − ½ + (1 − log 2)/(4τ), positive for τ < (1 − log 2)/3 = 0.1023.
    close(slopes(partial(losses.discopop, beta=1.0, tau=0.05), with_gap([0.0]))[0], (0.784264,))
    assert slopes(partial(losses.discopop, beta=1.0, tau=0.11), with_gap([0.0]))[0] < 0
    grid = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    values = losses.discopop(with_gap(grid), beta=1.0, tau=0.05)
    inner = values[1:-1]
    dips = grid[1:-1][(inner < values[:-2]) & (inner < values[2:])]
    peaks = grid[1:-1][(inner > values[:-2]) & (inner > values[2:])]
    close(dips, (-0.119,), tolerance=1e-9)
    close(peaks, (0.072,), tolerance=1e-9)


# --- Gradients and extremes -----------------------------------------------------------------------------------------


def test_every_loss_matches_finite_differences():
    for name, spec in LOSSES.items():
        scores = random_scores()
        loss = spec.bind()
        function = lambda *policy, loss=loss, rest=scores[2:]: loss(PairScores(*policy, *rest))
        policy = tuple(logps.clone().requires_grad_() for logps in scores[:2])
        assert torch.autograd.gradcheck(function, policy, eps=1e-6, atol=1e-7, rtol=1e-6), name


def test_losses_are_per_pair_and_nothing_reduces_over_the_batch():
    scores = random_scores()
    for name, spec in LOSSES.items():
        together = spec.bind()(scores)
        alone = torch.cat([spec.bind()(PairScores(*(field[i : i + 1] for field in scores))) for i in range(7)])
        assert together.shape == (7,)
        torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_pair_a_is_pulled_further_apart(name):
    # At β 0.5 cdpo is past its finite margin on pair A already, and pulls back.
    knobs = {"beta": 0.1} if name in ("dpo", "cdpo", "robust") else {}
    chosen, rejected = (slope[0] for slope in slopes(LOSSES[name].bind(**knobs), PAIRS))
    assert rejected > 0
    assert chosen > 0 if name == "apo_down" else chosen < 0  # apo_down alone lowers the chosen too


EXTREMES = [-1e4, -100.0, 0.0, 1e4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "divergence"),
    [(name, "reverse_kl") for name in NAMES] + list(itertools.product(GAP_NAMES, list(DIVERGENCES)[1:])),
)
def test_extreme_scores_give_finite_losses_and_gradients(name, divergence, dtype):
    spec = LOSSES[name]
    lengths = [(1.0, 1.0), (1.0, 1000.0)]
    rows = [(*logps, *pair) for logps in itertools.product(EXTREMES, repeat=4) for pair in lengths]
    scores = pair_scores(*rows, dtype=dtype)
    for beta in (1e-8, spec.knobs.get("beta", 1.0), 10.0):
        knobs = {"beta": beta} if "beta" in spec.knobs else {}
        loss = spec.bind(divergence=divergence, **knobs)
        assert loss(scores).dtype == dtype
        for values in (loss(scores), *slopes(loss, scores)):
            assert torch.isfinite(values).all()


def test_far_right_and_far_wrong_pairs_cost_what_the_limit_says():
    right, wrong = with_gap([2e4], torch.float32), with_gap([-2e4], torch.float32)
    close(losses.dpo(wrong, beta=1.0), (2e4,))
    close(losses.dpo(right, beta=1.0), (0.0,))
    close(losses.discopop(wrong, beta=1.0, tau=0.05), (2e4,))  # m = 0: the logistic part
    close(losses.discopop(right, beta=1.0, tau=0.05), (0.0,))
    close(losses.exo_pair(wrong, beta=1.0, label_smoothing=0.001), (-math.log(0.001),))
    close(losses.exo_pair(right, beta=1.0, label_smoothing=0.001), (-math.log(0.999),))


def test_orpo_keeps_pushing_a_rejected_completion_of_which_the_policy_is_sure():
    sure = pair_scores((-20, 0, 0, 0, 10, 10), (-20, -1e-9, 0, 0, 10, 10), dtype=torch.float32)
    loss = partial(losses.orpo, lam=1.0)
    # Log-odds of the chosen, mean −2: −1.85459. At −1e-6 they are log(1e6) = 13.81551, and up to 0 the tangent adds 1.
    # Cross-entropy 2, comparison ℓ(−1.85459 − 14.81551) = 16.67010; the second pair is 1e-10·1e6 nearer.
    close(loss(sure), (18.67010, 18.67000), tolerance=2e-5)
    assert (slopes(loss, sure)[1] > 1e4).all()
    below, above = pair_scores((-20, -1.00001e-5, 0, 0, 10, 10)), pair_scores((-20, -0.99999e-5, 0, 0, 10, 10))
    close(loss(above) - loss(below), (2e-5,), tolerance=1e-7)  # no jump where the tangent begins


def test_simper_pulls_each_completion_in_proportion_to_its_mean_probability_and_is_the_authors_formula():
    scores = random_scores()
    means = [logps / lengths for logps, lengths in zip(scores[:2], scores[4:], strict=True)]
    torch.testing.assert_close(losses.simper(scores), -means[0].exp() + means[1].exp())
    for slope, sign, mean, lengths in zip(slopes(losses.simper, scores), (-1, 1), means, scores[4:], strict=True):
        torch.testing.assert_close(slope, sign * mean.exp() / lengths)
    sure = pair_scores((0, 1e-6, 0, 0, 1, 1))
    close(torch.cat(slopes(losses.simper, sure)), (-1.0, 1.0))  # where rounding passes 0, the pull stays


# --- Modifiers ------------------------------------------------------------------------------------------------------

RATIOS = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reverse_kl", (-2.0, 0.0, 1.0)),
        ("forward_kl", (-6.389056, 0.0, 0.632121)),  # 1 − e², 0, 1 − e^−1
        ("js", (-1.433781, 0.0, 0.379885)),  # log(2e^−2/(1 + e^−2)), log 1, log(2e/(1 + e))
        ("alpha", (-3.436564, 0.0, 0.786939)),  # 2·(1 − e), 0, 2·(1 − e^−½)
    ],
)
def test_divergences_equal_the_numbers_worked_by_hand(name, expected):
    close(losses.divergence_named(name)(RATIOS), expected)


F_OF_U = {
    "reverse_kl": lambda u: u * u.log(),
    "forward_kl": lambda u: -u.log(),
    "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "alpha": lambda u: (u.sqrt() - 0.5 * u - 0.5) / (0.5 * -0.5),  # (u^(1−α) − (1−α)u − α)/(α(α−1)) at α = ½
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_the_derivatives_of_their_f_up_to_a_constant(name):
    ratio = RATIOS.exp().requires_grad_()
    (derivative,) = torch.autograd.grad(F_OF_U[name](ratio).sum(), ratio)
    expected = derivative - derivative[1]  # 0 where u = 1
    torch.testing.assert_close(DIVERGENCES[name](RATIOS), expected, atol=1e-12, rtol=1e-12)


@given(st.floats(-25, 25), st.sampled_from(list(DIVERGENCES)))
def test_divergences_rise_everywhere(ratio, name):
    ratio = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(DIVERGENCES[name](ratio).sum(), ratio)
    assert slope > 0


def test_alpha_runs_from_reverse_to_forward_kl():
    torch.testing.assert_close(losses.alpha_divergence(RATIOS, alpha=0), RATIOS)
    torch.testing.assert_close(losses.alpha_divergence(RATIOS, alpha=1e-9), RATIOS)
    torch.testing.assert_close(losses.alpha_divergence(RATIOS, alpha=1), losses.forward_kl(RATIOS))
    for alpha in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"alpha of the alpha divergence must lie in \[0, 1\], got {alpha}; 0 is"):
            losses.alpha_divergence(RATIOS, alpha=alpha)


def test_a_lost_completion_keeps_a_gradient_beyond_the_largest_exponent():
    ratio = torch.tensor([-29.0, -31.0, -1e4], requires_grad=True)
    values = losses.forward_kl(ratio)
    (slope,) = torch.autograd.grad(values.sum(), ratio)
    e29, e30 = math.exp(29), math.exp(30)
    torch.testing.assert_close(values.detach(), torch.tensor([1 - e29, 1 - 2 * e30, 1 - 9971 * e30]))
    torch.testing.assert_close(slope, torch.tensor([e29, e30, e30]))


def test_dpo_under_a_divergence_equals_the_numbers_worked_by_hand():
    # Forward KL: A: 0.1·[(1 − e^−2) − (1 − e^3)] = 0.1·(e^3 − e^−2) = 1.995020, B: 0.1·(e^−3 − e) = −0.266849.
    loss = LOSSES["dpo"].bind(beta=0.1, divergence="forward_kl")
    close(loss(PAIRS), (0.127523, 0.835447))
    chosen, rejected = losses.implicit_rewards(losses.under_divergence(PAIRS, losses.forward_kl), 0.1)
    close(chosen, (0.086466, -0.171828))  # 0.1·(1 − e^−2), 0.1·(1 − e)
    close(rejected, (-1.908554, 0.095021))  # 0.1·(1 − e^3), 0.1·(1 − e^−3)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", GAP_NAMES)
def test_losses_under_divergences_match_finite_differences(name, divergence):
    scores = random_scores()
    scores = scores._replace(reference_chosen=scores.policy_chosen + torch.linspace(-3, 2, 7, dtype=torch.float64))
    scores = scores._replace(
        reference_rejected=scores.policy_rejected + torch.linspace(1.5, -3, 7, dtype=torch.float64)
    )
    loss = LOSSES[name].bind(divergence=divergence)
    function = lambda *policy: loss(PairScores(*policy, *scores[2:]))
    policy = tuple(logps.clone().requires_grad_() for logps in scores[:2])
    assert torch.autograd.gradcheck(function, policy, eps=1e-6, atol=1e-6, rtol=1e-5)


HEAD = pair_scores((-4, -10, -5, -7, 3, 3), (-3, -6, -2, -8, 2, 2))
TAIL = pair_scores((-6, 0, -3, 0, 2, 0), (0, -5, 0, -3, 0, 4))  # the chosen two tokens longer, the rejected four


def test_discounted_tails_equal_the_numbers_worked_by_hand():
    half = losses.discount_tail(HEAD, TAIL, alpha=0.5)
    close(torch.stack(half)[:, 0], (-7.0, -10.0, -6.5, -7.0, 5.0, 3.0))
    close(torch.stack(half)[:, 1], (-3.0, -8.5, -2.0, -9.5, 2.0, 6.0))
    # a = −7 + 6.5 = −0.5, b = −3: z = 0.25; with the whole tail a = −10 + 8 = −2, z = 0.1; with none a = 1, z = 0.4.
    # a = −1, b = −8.5 + 9.5 = 1: z = −0.2; with the whole tail b = −11 + 11 = 0, z = −0.1; with none b = 2, z = −0.3.
    for alpha, expected in ((0.5, (0.575939, 0.798139)), (1.0, (0.644397, 0.744397)), (0.0, (0.513015, 0.854355))):
        close(losses.dpo(losses.discount_tail(HEAD, TAIL, alpha=alpha), beta=0.1), expected)


def test_the_tail_gets_alpha_times_the_gradient_of_the_head():
    head, tail = (scores.policy_chosen.clone().requires_grad_() for scores in (HEAD, TAIL))
    scores = losses.discount_tail(HEAD._replace(policy_chosen=head), TAIL._replace(policy_chosen=tail), alpha=0.3)
    on_head, on_tail = torch.autograd.grad(losses.dpo(scores, beta=0.1).sum(), (head, tail))
    torch.testing.assert_close(on_tail, 0.3 * on_head)
    function = lambda first, rest: losses.dpo(
        losses.discount_tail(HEAD._replace(policy_chosen=first), TAIL._replace(policy_chosen=rest), alpha=0.3), beta=0.1
    )
    assert torch.autograd.gradcheck(function, (head, tail))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_ld_dpo_refuses_weights_outside_zero_and_one(alpha):
    with pytest.raises(ValueError, match=rf"alpha of LD-DPO must lie in \[0, 1\], got {alpha}; 1 keeps the tail, 0"):
        losses.discount_tail(HEAD, TAIL, alpha=alpha)


def test_wpo_weights_equal_the_numbers_worked_by_hand():
    # e^(−6/4 − 10/5) = e^−3.5, e^(−9/3 − 4/8) = e^−3.5; with collisions e^(−2/4 − 5/5), e^(−6/3 + 4/8)
    close(losses.wpo_weights(PAIRS), (0.030197, 0.030197))
    aligned = losses.wpo_weights(
        PAIRS,
        chosen_log_collision=torch.tensor([-4.0, -3.0], dtype=torch.float64),
        rejected_log_collision=torch.tensor([-5.0, -8.0], dtype=torch.float64),
    )
    close(aligned, (0.223130, 0.223130))


def test_wpo_weights_scale_the_gradient_and_get_none():
    weights = losses.wpo_weights(PAIRS)
    plain, _ = slopes(partial(losses.dpo, beta=0.1), PAIRS)
    weighted, _ = slopes(lambda scores: losses.wpo_weights(scores) * losses.dpo(scores, beta=0.1), PAIRS)
    torch.testing.assert_close(weighted, weights * plain)
    assert not losses.wpo_weights(
        PAIRS._replace(policy_chosen=PAIRS.policy_chosen.clone().requires_grad_())
    ).requires_grad


def test_aligned_wpo_weights_of_a_uniform_policy_are_one():
    # Uniform over 8 words: log π = −log 8 per token, and two samples collide with probability 1/8.
    collision = -math.log(8) * PAIRS.chosen_length, -math.log(8) * PAIRS.rejected_length
    scores = PAIRS._replace(policy_chosen=collision[0], policy_rejected=collision[1])
    weights = losses.wpo_weights(scores, chosen_log_collision=collision[0], rejected_log_collision=collision[1])
    close(weights, (1.0, 1.0))


# --- The record and the table ---------------------------------------------------------------------------------------


def test_pair_scores_is_the_record_that_everyone_else_builds():
    assert PairScores._fields == (
        "policy_chosen",
        "policy_rejected",
        "reference_chosen",
        "reference_rejected",
        "chosen_length",
        "rejected_length",
    )
    assert isinstance(PAIRS, tuple)
    assert all(field.shape == (2,) for field in PAIRS)


def test_the_table_names_the_losses_that_the_configuration_offers():
    assert list(LOSSES) == list(typing.get_args(config.LossName))


@pytest.mark.parametrize("name", NAMES)
def test_the_table_describes_the_function(name):
    spec = LOSSES[name]
    parameters = list(inspect.signature(spec.function).parameters.values())
    assert spec.name == name
    assert getattr(losses, name) is spec.function
    assert [parameter.name for parameter in parameters] == ["scores", *spec.knobs]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[1:])
    assert spec.directions.keys() == spec.knobs.keys()
    assert spec.summary.endswith(".")
    assert "\n" not in spec.summary
    assert spec.url.startswith("https://")
    document = inspect.getdoc(spec.function) or ""
    assert "`(B,)`" in document
    assert spec.paper.startswith("http") or spec.paper in document
    assert all(f"`{knob}`" in document for knob in spec.knobs), "every knob is explained"


@pytest.mark.parametrize("name", NAMES)
def test_formulas_are_latex_that_matplotlib_can_draw(name):
    from matplotlib.mathtext import MathTextParser

    assert MathTextParser("path").parse(f"${LOSSES[name].formula}$").width > 0


@pytest.mark.parametrize("name", NAMES)
def test_only_losses_that_need_a_reference_read_it(name):
    nowhere = torch.full((2,), math.nan, dtype=torch.float64)
    blind = PAIRS._replace(reference_chosen=nowhere, reference_rejected=nowhere)
    assert torch.isfinite(LOSSES[name].bind()(blind)).all().item() is not LOSSES[name].needs_reference


@pytest.mark.parametrize("name", NAMES)
def test_losses_that_take_divergences_are_those_that_see_only_the_gap(name):
    scores = random_scores()
    scores = scores._replace(rejected_length=scores.chosen_length)  # where losses take means, the gap of means
    shifted = scores._replace(policy_chosen=scores.policy_chosen + 3, policy_rejected=scores.policy_rejected + 3)
    loss = LOSSES[name].bind()
    sees_gap_only = LOSSES[name].needs_reference and torch.allclose(loss(scores), loss(shifted), atol=1e-12)
    assert sees_gap_only is LOSSES[name].takes_divergence


def test_bind_keeps_the_defaults_of_the_table_and_lets_some_be_changed():
    torch.testing.assert_close(LOSSES["dpo"].bind()(PAIRS), losses.dpo(PAIRS, beta=0.5))
    expected = losses.simpo(PAIRS, beta=2.0, gamma=0.3)
    torch.testing.assert_close(LOSSES["simpo"].bind(gamma=0.3)(PAIRS), expected)
    torch.testing.assert_close(LOSSES["dpo"].bind(beta=1)(PAIRS), losses.dpo(PAIRS, beta=1.0))


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        (
            "dpo",
            {"beta": 0.0},
            "beta must be positive and finite, got 0.0; "
            "smaller values allow more drift from the reference, 0.5 is the usual start",
        ),
        ("dpo", {"beta": -1}, "beta must be positive and finite, got -1; smaller values"),
        ("dpo", {"beta": math.inf}, "beta must be positive and finite, got inf; smaller values"),
        ("dpo", {"beta": math.nan}, "beta must be positive and finite, got nan; smaller values"),
        ("dpo", {"beta": "0.1"}, "beta must be a number, got '0.1'; 0.5 is the usual start"),
        ("dpo", {"beta": True}, "beta must be a number, got True; 0.5 is the usual start"),
        ("dpo", {"beta": None}, "beta must be a number, got None; 0.5 is the usual start"),
        (
            "cdpo",
            {"label_smoothing": 0.5},
            "label_smoothing must lie in [0, 0.5), got 0.5; "
            "larger values trust the labels less and stop at a smaller margin, 0.1 is the usual start",
        ),
        ("robust", {"label_smoothing": 0.5}, "label_smoothing must lie in [0, 0.5), got 0.5; larger values undo"),
        ("robust", {"label_smoothing": -0.1}, "label_smoothing must lie in [0, 0.5), got -0.1; larger"),
        (
            "exo_pair",
            {"label_smoothing": 0.0},
            "label_smoothing must lie in (0, 0.5), for its logarithm is taken, got 0.0; larger values trust",
        ),
        ("exo_pair", {"label_smoothing": 0.5}, "label_smoothing must lie in (0, 0.5), for its logarithm is taken"),
        ("ipo", {"length_power": 2}, "length_power must lie in [0, 1], got 2; 1 takes means per token"),
        ("discopop", {"tau": 0}, "tau must lie in (0, 1], got 0; smaller values switch more abruptly"),
        ("discopop", {"tau": 1.5}, "tau must lie in (0, 1], got 1.5; smaller"),
        ("dpop", {"lam": -1.0}, "lam must not be negative, got -1.0; larger values defend"),
        ("rpo", {"alpha": -1.0}, "alpha must not be negative, got -1.0; larger values imitate"),
        ("simpo", {"gamma": -1.0}, "gamma must not be negative, got -1.0; larger values ask for a wider margin"),
        ("orpo", {"beta": 0.1}, "the loss orpo has no knob 'beta', got beta=0.1; its knobs are lam (0.1)"),
        ("simper", {"beta": 0.1}, "the loss simper has no knob 'beta', got beta=0.1; it has none"),
        (
            "discopop",
            {"gamma": 1.0},
            "the loss discopop has no knob 'gamma', got gamma=1.0; its knobs are beta (0.1), tau (0.05)",
        ),
        (
            "dpo",
            {"divergence": "kl"},
            "divergence is not known, got 'kl'; choose one of reverse_kl, forward_kl, js, alpha",
        ),
        (
            "rpo",
            {"divergence": "js"},
            "divergence must be reverse_kl for the loss rpo, got 'js'; the others hold for losses that see the policy "
            "through the difference of the log-ratios only: dpo, cdpo, robust, ipo, hinge, sigmoid_norm, exo_pair, "
            "discopop",
        ),
    ],
)
def test_bind_refuses_with_value_rule_and_remedy(name, knobs, message):
    with pytest.raises(ValueError) as refusal:
        LOSSES[name].bind(**knobs)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "knob", "border"),
    [
        ("ipo", "length_power", 0),
        ("ipo", "length_power", 1),
        ("discopop", "tau", 1),
        ("dpop", "lam", 0),
        ("rpo", "alpha", 0),
        ("simpo", "gamma", 0),
        ("robust", "label_smoothing", 0),
        ("dpo", "beta", 1e-12),
    ],
)
def test_bind_takes_the_borders_of_a_range_that_belong_to_it(name, knob, border):
    expected = LOSSES[name].function(PAIRS, **(LOSSES[name].knobs | {knob: border}))
    torch.testing.assert_close(LOSSES[name].bind(**{knob: border})(PAIRS), expected)


def test_bind_takes_a_divergence_by_name_or_as_a_function():
    mild = partial(losses.alpha_divergence, alpha=0.2)
    expected = losses.hinge(losses.under_divergence(PAIRS, mild), beta=0.3)
    torch.testing.assert_close(LOSSES["hinge"].bind(beta=0.3, divergence=mild)(PAIRS), expected)
    by_name = LOSSES["hinge"].bind(beta=0.3, divergence="alpha")(PAIRS)
    half = losses.hinge(losses.under_divergence(PAIRS, partial(losses.alpha_divergence, alpha=0.5)), beta=0.3)
    torch.testing.assert_close(by_name, half)
    assert LOSSES["rpo"].bind(divergence="reverse_kl")(PAIRS).shape == (2,)
