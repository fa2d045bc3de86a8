"""Every loss that TRL has too, by TRL's own code on the same numbers: values and gradients.

TRL computes its losses inside a trainer. Here the trainer is a bare object with the settings that the loss reads, and
the model a stand-in that returns given per-token log-probabilities; what runs in between is TRL's unchanged method.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from dpo_lab import losses
from dpo_lab.losses import LOSSES, UNPAIRED_LOSSES, PairScores, UnpairedScores

trl = pytest.importorskip("trl", reason="trl is not installed (it comes with the extra `bench`)")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"written for the internals of trl 1.16, found {trl.__version__}", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's neighbours, and its notice that CPO and ORPO are experimental
    from trl import DPOTrainer, KTOTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

PROMPT = 3
LENGTHS = [(4, 5), (7, 2), (6, 6), (1, 9)]  # scored tokens of chosen and rejected, one pair per row


class Pair:
    """One pair's per-token log-probabilities under policy and reference, as TRL and as we want to see them."""

    def __init__(self, chosen_length: int, rejected_length: int, seed: int, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = max(chosen_length, rejected_length)
        self.lengths = torch.tensor([chosen_length, rejected_length])
        self.mask = torch.zeros(2, PROMPT + width, dtype=torch.long)
        for row, length in enumerate(self.lengths):
            self.mask[row, PROMPT : PROMPT + length] = 1
        shifted = self.mask[:, 1:]  # TRL's log-probabilities are 0 wherever nothing is scored
        self.policy = (-2 * scale * torch.rand(shifted.shape, generator=generator) * shifted).requires_grad_()
        self.reference = self.policy.detach() + 0.7 * torch.randn(shifted.shape, generator=generator) * shifted
        self.collision = -1.5 * torch.rand(shifted.shape, generator=generator) * shifted  # log Σ_v π(v)²

    def __str__(self) -> str:
        return "{}-{}".format(*self.lengths.tolist())

    def model(self, **_):
        zeros = torch.zeros_like(self.policy)
        return SimpleNamespace(
            log_probs=self.policy,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            log_sum_sq_probs=self.collision,
        )

    @property
    def scores(self) -> PairScores:
        return PairScores(
            *(logps[row : row + 1].sum(-1) for logps in (self.policy, self.reference) for row in (0, 1)),
            self.lengths[0:1].float(),
            self.lengths[1:2].float(),
        )

    def split(self) -> tuple[PairScores, PairScores]:
        """The sums up to the shorter completion's length, and beyond it."""
        shared = int(self.lengths.min())
        parts = []
        for part in (slice(PROMPT - 1, PROMPT - 1 + shared), slice(PROMPT - 1 + shared, None)):
            sums = (logps[row : row + 1, part].sum(-1) for logps in (self.policy, self.reference) for row in (0, 1))
            parts.append(PairScores(*sums, *(self.mask[row : row + 1, 1:][:, part].sum(-1) for row in (0, 1))))
        return parts[0], parts[1]

    def trl_loss(self, loss_type: str | list[str], weights: list[float] | None = None, **settings) -> torch.Tensor:
        """TRL's loss of this pair: a batch of one, so that its mean is the pair's own."""
        same = lambda values: values
        types = [loss_type] if isinstance(loss_type, str) else loss_type
        trainer = SimpleNamespace(
            model=torch.nn.Identity(),
            accelerator=SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
            loss_types=types,
            loss_weights=weights or [1.0] * len(types),
            args=SimpleNamespace(discopop_tau=settings.pop("tau", 0.05)),
            precompute_ref_logps=True,
            aux_loss_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
            **{
                "beta": 0.1,
                "label_smoothing": 0.0,
                "ld_alpha": None,
                "f_divergence_type": "reverse_kl",
                "f_alpha_divergence_coef": 0.5,
                "use_weighting": False,
                **settings,
            },
        )
        with torch.no_grad():
            reference_chosen, reference_rejected = self.reference_sums(trainer.ld_alpha)
        inputs = {
            "input_ids": torch.ones_like(self.mask),
            "attention_mask": torch.ones_like(self.mask),
            "completion_mask": self.mask,
            "ref_chosen_logps": reference_chosen,
            "ref_rejected_logps": reference_rejected,
        }
        return DPOTrainer._compute_loss(trainer, self.model, inputs, return_outputs=False)

    def reference_sums(self, ld_alpha: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        head, tail = self.split()
        discounted = losses.discount_tail(head, tail, alpha=1.0 if ld_alpha is None else ld_alpha)
        return discounted.reference_chosen, discounted.reference_rejected


PAIRS = [Pair(*lengths, seed=seed) for seed, lengths in enumerate(LENGTHS)]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, pair: Pair | Answers) -> None:
    """Values to 1e-5, and the gradients that reach the per-token log-probabilities."""
    torch.testing.assert_close(ours.squeeze(), theirs.squeeze(), atol=1e-5, rtol=1e-5)
    (our_gradient,) = torch.autograd.grad(ours.sum(), pair.policy)
    (their_gradient,) = torch.autograd.grad(theirs.sum(), pair.policy)
    scored = pair.mask[:, 1:].bool()
    torch.testing.assert_close(our_gradient[scored], their_gradient[scored], atol=1e-5, rtol=1e-5)


BY_NAME = [
    ("dpo", "sigmoid", {"beta": 0.3}),
    ("robust", "robust", {"beta": 0.3, "label_smoothing": 0.2}),
    ("ipo", "ipo", {"beta": 0.3}),
    ("hinge", "hinge", {"beta": 0.3}),
    ("sigmoid_norm", "sigmoid_norm", {"beta": 2.0}),
    ("exo_pair", "exo_pair", {"beta": 0.3, "label_smoothing": 0.1}),
    ("nca_pair", "nca_pair", {"beta": 0.3}),
    ("bco_pair", "bco_pair", {"beta": 0.3}),
    ("sppo_hard", "sppo_hard", {"beta": 0.3}),
    ("apo_zero", "apo_zero", {"beta": 0.3}),
    ("apo_down", "apo_down", {"beta": 0.3}),
    ("discopop", "discopop", {"beta": 0.3, "tau": 0.2}),
]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(("name", "loss_type", "knobs"), BY_NAME)
def test_loss_equals_the_one_of_dpo_trainer(name, loss_type, knobs, pair):
    assert_same(LOSSES[name].bind(**knobs)(pair.scores), pair.trl_loss(loss_type, **knobs), pair)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_rpo_equals_the_weighted_sum_of_dpo_and_sft(pair):
    theirs = pair.trl_loss(["sigmoid", "sft"], weights=[1.0, 0.7], beta=0.3)
    assert_same(losses.rpo(pair.scores, beta=0.3, alpha=0.7), theirs, pair)


DIVERGENCES = {
    "reverse_kl": ("reverse_kl", 0.5),
    "forward_kl": ("forward_kl", 0.5),
    "js": ("js_divergence", 0.5),
    "alpha": ("alpha_divergence", 0.5),
}


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("name", "loss_type", "knobs"), [row for row in BY_NAME if LOSSES[row[0]].takes_divergence])
def test_loss_under_a_divergence_equals_the_one_of_dpo_trainer(name, loss_type, knobs, divergence, pair):
    theirs_named, coefficient = DIVERGENCES[divergence]
    ours = LOSSES[name].bind(divergence=divergence, **knobs)(pair.scores)
    settings = {"f_divergence_type": theirs_named, "f_alpha_divergence_coef": coefficient}
    assert_same(ours, pair.trl_loss(loss_type, **knobs, **settings), pair)


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_our_alpha_is_one_minus_the_coefficient_of_dpo_trainer(alpha):
    pair = PAIRS[0]
    divergence = lambda ratio: losses.alpha_divergence(ratio, alpha=alpha)
    ours = LOSSES["dpo"].bind(beta=0.3, divergence=divergence)(pair.scores)
    settings = {"beta": 0.3, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - alpha}
    assert_same(ours, pair.trl_loss("sigmoid", **settings), pair)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["dpo", "sigmoid_norm"])
def test_discounted_tail_equals_ld_alpha(name, alpha, pair):
    loss_type = "sigmoid" if name == "dpo" else name
    ours = LOSSES[name].bind(beta=0.3)(losses.discount_tail(*pair.split(), alpha=alpha))
    assert_same(ours, pair.trl_loss(loss_type, beta=0.3, ld_alpha=alpha), pair)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_aligned_weights_equal_use_weighting(pair):
    weights = losses.wpo_weights(
        pair.scores,
        chosen_log_collision=pair.collision[0:1].sum(-1),
        rejected_log_collision=pair.collision[1:2].sum(-1),
    )
    theirs = pair.trl_loss("sigmoid", beta=0.3, use_weighting=True)
    assert_same(weights * losses.dpo(pair.scores, beta=0.3), theirs, pair)


class Answers:
    """Four answers to single prompts with their labels, and as many mismatched ones, per token as TRL wants them."""

    labels = torch.tensor([True, False, True, True])

    def __init__(self, moved: float) -> None:
        """moved: how far the policy's log-probs of mismatched answers lie above the reference's, nats per token."""
        generator = torch.Generator().manual_seed(0)
        self.mask = torch.zeros(4, PROMPT + 9, dtype=torch.long)
        for row, length in enumerate((4, 9, 1, 6)):
            self.mask[row, PROMPT : PROMPT + length] = 1
        shifted = self.mask[:, 1:]
        draw = lambda: torch.randn(shifted.shape, generator=generator) * shifted
        self.policy = (-draw().abs()).requires_grad_()
        self.reference = self.policy.detach() + 0.7 * draw()
        self.other_policy = -draw().abs()
        self.other_reference = self.other_policy - moved * shifted

    def model(self, input_ids, **_):
        zeros = torch.zeros_like(self.policy)
        logps = self.policy if input_ids is self.own_ids else self.other_policy
        return SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros)

    def trl_loss(self, loss_type: str, beta: float, weights: tuple[float, float] = (1.0, 1.0)) -> torch.Tensor:
        same, needs_kl = lambda values: values, loss_type == "kto"
        trainer = SimpleNamespace(
            model=torch.nn.Identity(),
            accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=same),
            calculate_KL=needs_kl, loss_type=loss_type, beta=beta, desirable_weight=weights[0],
            undesirable_weight=weights[1], precompute_ref_logps=True, aux_loss_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        )  # fmt: skip
        trainer._compute_kl_logps = lambda *arguments: KTOTrainer._compute_kl_logps(trainer, *arguments)
        self.own_ids, ones = torch.ones_like(self.mask), torch.ones_like(self.mask)
        inputs = {
            "input_ids": self.own_ids, "attention_mask": ones, "completion_mask": self.mask, "label": self.labels,
            "KL_input_ids": torch.zeros_like(self.mask), "KL_attention_mask": ones, "KL_completion_mask": self.mask,
            "ref_logps": self.reference.sum(-1), "ref_KL_logps": self.other_reference.sum(-1),
        }  # fmt: skip
        if not needs_kl:
            inputs = {name: value for name, value in inputs.items() if "KL" not in name}
        return KTOTrainer._compute_loss(trainer, self.model, inputs, return_outputs=False)


@pytest.mark.parametrize("moved", [0.3, -0.3], ids=["above", "below"])  # below the reference the KL counts as 0
@pytest.mark.parametrize(("name", "knobs"), [
    ("kto", {}), ("kto", {"good_weight": 0.7, "bad_weight": 1.6}), ("apo_zero_unpaired", {}),
])  # fmt: skip
def test_losses_of_single_answers_equal_those_of_kto_trainer(name, knobs, moved):
    answers = Answers(moved)
    other = (answers.other_policy - answers.other_reference).sum(-1).mean().clamp(min=0)
    scores = UnpairedScores(answers.policy.sum(-1), answers.reference.sum(-1), answers.labels, other)
    ours = UNPAIRED_LOSSES[name].bind(beta=0.3, **knobs)(scores).mean()
    theirs = answers.trl_loss(name, 0.3, tuple(knobs.values()) or (1.0, 1.0))
    assert_same(ours, theirs, answers)


def bare_trainer(pair: Pair, sums: tuple[torch.Tensor, torch.Tensor], **settings) -> SimpleNamespace:
    """A CPO or ORPO trainer after its forward pass: the given log-probabilities and the chosen one's cross-entropy."""
    zeros = torch.zeros(1, 1, 1)
    cross_entropy = -pair.policy[0].sum() / pair.lengths[0]
    return SimpleNamespace(
        concatenated_forward=lambda model, batch: (*sums, zeros, zeros, cross_entropy),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda values: values),
        aux_loss_enabled=False,
        **settings,
    )


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_orpo_equals_orpo_trainer(pair):
    trainer = bare_trainer(pair, losses.mean_logps(pair.scores), beta=0.3)
    trainer.odds_ratio_loss = lambda *sums: ORPOTrainer.odds_ratio_loss(trainer, *sums)
    theirs, _ = ORPOTrainer.get_batch_loss_metrics(trainer, None, {})
    assert_same(losses.orpo(pair.scores, lam=0.3), theirs, pair)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(
    ("name", "knobs"), [("cpo", {"beta": 0.3, "alpha": 0.7}), ("simpo", {"beta": 2.0, "gamma": 0.5})]
)
def test_cpo_and_simpo_equal_cpo_trainer(name, knobs, pair):
    sums = losses.mean_logps(pair.scores) if name == "simpo" else pair.scores[:2]
    trainer = bare_trainer(
        pair,
        sums,
        beta=knobs["beta"],
        loss_type="simpo" if name == "simpo" else "sigmoid",
        simpo_gamma=knobs.get("gamma", 0.0),
        cpo_alpha=knobs.get("alpha", 0.0),
        alpha=0.0,
        label_smoothing=0.0,
    )
    trainer.cpo_loss = lambda *sums: CPOTrainer.cpo_loss(trainer, *sums)
    theirs, _ = CPOTrainer.get_batch_loss_metrics(trainer, None, {})
    assert_same(LOSSES[name].function(pair.scores, **knobs), theirs, pair)


def test_every_loss_is_compared_but_those_that_trl_lacks():
    compared = {name for name, _, _ in BY_NAME} | {"rpo", "orpo", "cpo", "simpo"}
    assert set(LOSSES) - compared == {"cdpo", "dpop", "simper"}
    assert set(UNPAIRED_LOSSES) - {"kto", "apo_zero_unpaired"} == {"bco"}  # no longer in TRL
