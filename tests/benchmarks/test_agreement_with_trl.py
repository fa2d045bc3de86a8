"""DPO Lab and TRL's `DPOTrainer` on the same batch: log-probs, losses, rewards, gradients, and ten steps of training.

On a random Llama, and on a trained model with real preference pairs where they lie beside the checkout. What runs on
the other side is TRL's unchanged collator, forward pass, loss and optimiser loop; see `trl_side`.
`python -m tests.benchmarks.test_agreement_with_trl` writes the largest differences to data/results/trl_agreement.md.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dpo_lab.batching import epoch_batches, make_batch, row_lengths
from dpo_lab.config import DPOConfig
from dpo_lab.logprobs import sequence_logps
from dpo_lab.loop import Step
from dpo_lab.losses import LOSSES, PairScores, implicit_rewards
from dpo_lab.preferences import TokenData, completion_text, load_preferences, render_prompt, tokenize_pairs
from dpo_lab.preferences.unpaired import mismatched, taken_apart
from dpo_lab.training import train_dpo
from tests.conftest import ROOT, random_pairs, tiny_llama
from tests.tiny import tiny_tokenizer

trl = pytest.importorskip("trl", reason="trl is not installed (it comes with the extra `bench`)")

from tests.benchmarks import trl_side  # noqa: E402

if not trl.__version__.startswith(trl_side.VERSION):
    pytest.skip(
        f"written for the internals of trl {trl_side.VERSION}x, found {trl.__version__}", allow_module_level=True
    )

TOLERANCE = 1e-4
REAL = ROOT.parent / "shared" / "real"
BATCH = 8
SIDES = ("chosen", "rejected")

# Our name, TRL's name, knobs of ours; beta and label_smoothing are called alike on both sides.
COMPARED = [
    ("dpo", "sigmoid", {"beta": 0.1}),
    ("robust", "robust", {"beta": 0.1, "label_smoothing": 0.2}),
    ("ipo", "ipo", {"beta": 0.1}),
    ("hinge", "hinge", {"beta": 0.1}),
    ("sigmoid_norm", "sigmoid_norm", {"beta": 2.0}),
    ("exo_pair", "exo_pair", {"beta": 0.1, "label_smoothing": 0.1}),
    ("nca_pair", "nca_pair", {"beta": 0.1}),
    ("bco_pair", "bco_pair", {"beta": 0.1}),
    ("sppo_hard", "sppo_hard", {"beta": 0.1}),
    ("apo_zero", "apo_zero", {"beta": 0.1}),
    ("apo_down", "apo_down", {"beta": 0.1}),
    ("discopop", "discopop", {"beta": 0.1}),
]


class Case(NamedTuple):
    """A policy, another model as its reference, a tokenizer (TRL asks it for the pad token), and pairs."""

    policy: Any
    reference: Any
    tokenizer: Any
    data: TokenData


@cache
def random_case() -> Case:
    return Case(tiny_llama(seed=0), tiny_llama(seed=1), tiny_tokenizer(), random_pairs(80, longest=40))


@cache
def real_case() -> Case:
    """A trained model; the reference is the same one with its weights moved a little, so that no reward is 0."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, pairs = REAL / "models" / "stories260k", REAL / "preferences" / "instruction-polite.json"
    if not (model.is_dir() and pairs.is_file()):
        pytest.skip("the real model and pairs (../shared/real) are absent")
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    reference = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
    data, _ = tokenize_pairs(load_preferences(pairs, limit=90), tokenizer, max_length=384)
    return Case(policy, reference, tokenizer, data.select(range(80)))


CASES = {"random Llama": random_case, "stories260k on instruction-polite": real_case}
cases = pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "-") for name in CASES])


def fresh(case: Case) -> tuple[Any, Any]:
    """Copies, since TRL changes the models' forward pass."""
    return copy.deepcopy(case.policy), copy.deepcopy(case.reference)


def their_trainer(case: Case, folder: Path, rows=None, kind=trl_side.GivenTokens, **changes: Any):
    policy, reference = fresh(case)
    rows = trl_side.rows_of(case.data, range(BATCH)) if rows is None else rows
    config = trl_side.settings(folder, per_device_train_batch_size=BATCH, **changes)
    return trl_side.make_trainer(kind, policy, reference, rows, case.tokenizer, config)


def their_batch(trainer) -> dict[str, torch.Tensor]:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


def our_scores(case: Case, policy: Any | None = None) -> PairScores:
    """The first batch in shared rows, with the gradient of `policy`'s weights."""
    batch = make_batch(case.data, range(BATCH))
    ours = sequence_logps(case.policy if policy is None else policy, batch)
    with torch.no_grad():
        reference = sequence_logps(case.reference, batch)
    return PairScores(*ours.unbind(1), *reference.unbind(1), *batch.lengths.float().unbind(1))


def largest(ours: Any, theirs: Any) -> float:
    """The largest absolute difference; log-probs reach hundreds of nats, so beyond 1 it is relative."""
    ours, theirs = (torch.as_tensor(side).detach().double() for side in (ours, theirs))
    return float(((ours - theirs).abs() / theirs.abs().clamp_min(1.0)).max())


def logps_difference(case: Case, folder: Path) -> float:
    trainer, scores = their_trainer(case, folder), our_scores(case)
    batch = their_batch(trainer)
    theirs = [
        *trainer.compute_ref_log_probs(trainer.model, batch),
        *trainer.compute_ref_log_probs(trainer.ref_model, batch),
    ]
    return max(largest(ours, other) for ours, other in zip(scores[:4], theirs, strict=True))


def loss_differences(case: Case, folder: Path, name: str, their_name: str, knobs: dict) -> tuple[float, float, float]:
    """Of the batch's mean loss, of its mean rewards, and of the gradient (relative to its norm)."""
    knobs_of_theirs = {key: value for key, value in knobs.items() if key in ("beta", "label_smoothing")}
    trainer = their_trainer(case, folder, loss_type=[their_name], **knobs_of_theirs)
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, their_batch(trainer))
    theirs.backward()

    policy = copy.deepcopy(case.policy)
    scores = our_scores(case, policy)
    ours = LOSSES[name].bind(**knobs)(scores).mean()
    ours.backward()

    rewards = torch.stack([side.detach().mean() for side in implicit_rewards(scores, knobs["beta"])])
    their_rewards = [trainer._metrics["train"][f"rewards/{side}"][-1] for side in SIDES]
    gradient, their_gradient = (
        torch.cat([weight.grad.flatten() for weight in model.parameters()]) for model in (policy, trainer.model)
    )
    relative = float((gradient - their_gradient).norm() / their_gradient.norm())
    return largest(ours, theirs), largest(rewards, their_rewards), relative


def curve_differences(case: Case, folder: Path, name: str, their_name: str, knobs: dict) -> tuple[float, float, float]:
    """Ten steps on both sides, same order: of the losses, of the rewards, and how far the loss moved on the way."""
    rate = 1e-3
    config = DPOConfig(
        loss=name, epochs=1, batch_size=BATCH, learning_rate=rate, schedule="constant", warmup=0.0, device="cpu",
        beta=knobs["beta"], label_smoothing=knobs.get("label_smoothing"),
    )  # fmt: skip
    order = np.concatenate(epoch_batches(row_lengths(case.data), BATCH, seed=config.seed, epoch=0))
    trainer = their_trainer(
        case, folder, trl_side.rows_of(case.data, order), trl_side.Recorded, loss_type=[their_name],
        learning_rate=rate, lr_scheduler_type="constant", train_sampling_strategy="sequential",
        **{key: value for key, value in knobs.items() if key in ("beta", "label_smoothing")},
    )  # fmt: skip
    trainer.train()
    policy, reference = fresh(case)
    events = train_dpo(policy, None, case.data, config, reference=reference)
    steps = [event.metrics for event in events if isinstance(event, Step)]
    losses = [metrics["loss"] for metrics in steps]
    rewards = [(metrics["rewards/chosen"], metrics["rewards/rejected"]) for metrics in steps]
    assert len(steps) == len(trainer.losses) == 10
    return largest(losses, trainer.losses), largest(rewards, trainer.rewards), max(losses) - min(losses)


@cases
def test_log_probs_of_policy_and_reference_agree(case: Callable[[], Case], tmp_path):
    assert logps_difference(case(), tmp_path) < TOLERANCE


@cases
@pytest.mark.parametrize(("name", "their_name", "knobs"), COMPARED, ids=[row[0] for row in COMPARED])
def test_loss_rewards_and_gradient_agree(case: Callable[[], Case], name, their_name, knobs, tmp_path):
    assert max(loss_differences(case(), tmp_path, name, their_name, knobs)) < TOLERANCE


@cases
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_loss_rewards_and_gradient_of_single_answers_agree(case: Callable[[], Case], name, tmp_path):
    policy, reference = fresh(case())
    data = taken_apart(case().data.select(range(BATCH // 2)))
    config = trl_side.settings(
        tmp_path, trl_side.KTOConfig, per_device_train_batch_size=BATCH, loss_type=name, beta=0.1,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    rows = trl_side.answers_of(data, mismatched(data, 1024))
    trainer = trl_side.make_trainer(trl_side.GivenAnswers, policy, reference, rows, case().tokenizer, config)
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, their_batch(trainer))
    theirs.backward()
    names = [f"rewards/{side}" for side in SIDES]
    their_rewards = [trainer._metrics["train"][name][-1] for name in names]
    their_gradient = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])

    policy, reference = fresh(case())
    settings = DPOConfig(
        loss=name, beta=0.1, batch_size=BATCH, max_steps=1, optimizer="sgd", adam_beta1=0.0, learning_rate=1000.0,
        warmup=0.0, max_grad_norm=None, device="cpu",
    )  # fmt: skip
    before = torch.cat([weight.detach().flatten().clone() for weight in policy.parameters()])
    (step,) = (e.metrics for e in train_dpo(policy, None, data, settings, reference=reference) if isinstance(e, Step))
    # A long step, so that the weights' own rounding does not hide the gradient that moved them.
    gradient = (before - torch.cat([weight.detach().flatten() for weight in policy.parameters()])) / 1000
    assert largest(step["loss"], theirs) < 1e-5
    assert largest([step[name] for name in names], their_rewards) < 1e-5
    assert float((gradient - their_gradient).norm() / their_gradient.norm()) < 1e-5


@cases
@pytest.mark.parametrize(("name", "their_name", "knobs"), COMPARED[:3], ids=[row[0] for row in COMPARED[:3]])
def test_ten_steps_of_training_give_the_same_curves(case: Callable[[], Case], name, their_name, knobs, tmp_path):
    of_losses, of_rewards, moved = curve_differences(case(), tmp_path, name, their_name, knobs)
    assert of_losses < TOLERANCE
    assert of_rewards < TOLERANCE
    assert moved > 100 * TOLERANCE  # curves that stand still would agree as well


def test_real_pairs_become_the_same_tokens(tmp_path):
    """TRL's own tokenisation of the same texts, for the pairs that neither side shortens."""
    case = real_case()
    rows = load_preferences(REAL / "preferences" / "instruction-polite.json", limit=90)
    kept = [rows[int(i)] for i in case.data.source_rows]
    texts = [
        {"prompt": render_prompt(row, case.tokenizer), **{side: completion_text(row, side) for side in SIDES}}
        for row in kept
    ]
    texts = trl_side.datasets.Dataset.from_list(texts)
    trainer = their_trainer(case, tmp_path)
    theirs = trl_side.DPOTrainer._prepare_dataset(trainer, texts, case.tokenizer, trainer.args, "train")
    num_whole = 0
    for i, other in enumerate(theirs):
        if len(other["prompt_ids"]) + max(len(other["chosen_ids"]), len(other["rejected_ids"])) > 384:
            continue
        num_whole += 1
        row = case.data.row(i)
        assert row.prompt.tolist() == other["prompt_ids"]
        assert row.completions[0].tolist() == other["chosen_ids"]
        assert row.completions[1].tolist() == other["rejected_ids"]
    assert num_whole > 40


def measured() -> Iterator[tuple[str, str, str, float]]:
    """(case, what, loss, largest difference) of everything that the tests compare."""
    with tempfile.TemporaryDirectory() as folder:
        for label, make in CASES.items():
            try:
                case = make()
            except pytest.skip.Exception:
                continue
            yield label, "log-probs", "", logps_difference(case, Path(folder))
            for row in COMPARED:
                differences = loss_differences(case, Path(folder), *row)
                for what, difference in zip(("loss", "rewards", "gradient"), differences, strict=True):
                    yield label, what, row[0], difference
            for row in COMPARED[:3]:
                of_losses, of_rewards, _ = curve_differences(case, Path(folder), *row)
                yield label, "loss over 10 steps", row[0], of_losses
                yield label, "rewards over 10 steps", row[0], of_rewards


def main() -> None:
    """Write data/results/trl_agreement.md."""
    from tests.benchmarks.machine import heading

    found = list(measured())
    lines = [
        "# DPO Lab and TRL on the same batch",
        "",
        heading("python -m tests.benchmarks.test_agreement_with_trl"),
        "",
        f"Largest differences, absolute below 1 and relative above; the tests allow {TOLERANCE:g}. A batch is {BATCH}",
        "pairs in float32, shared rows on our side, TRL's padded rows on the other; the gradient is that of all",
        "weights, relative to its norm; the ten steps of training use AdamW, learning rate 0.001, no warm-up, the same",
        "order.",
        "",
        "| compared | " + " | ".join(dict.fromkeys(label for label, *_ in found)) + " |",
        "|---|" + "---|" * len({label for label, *_ in found}),
    ]
    for what in dict.fromkeys(what for _, what, _, _ in found):
        worst = []
        for label in dict.fromkeys(label for label, *_ in found):
            values = {loss: value for other, kind, loss, value in found if (other, kind) == (label, what)}
            loss = max(values, key=values.get)
            worst.append(f"{values[loss]:.1e}" + (f" ({loss}, the largest of {len(values)} losses)" if loss else ""))
        lines.append(f"| {what} | " + " | ".join(worst) + " |")
    path = ROOT / "data" / "results" / "trl_agreement.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
