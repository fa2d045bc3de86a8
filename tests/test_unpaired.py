"""Single answers with a label: losses by hand, the data, training against a loop by hand, the command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dpo_lab import DPOConfig, ReferenceCache, evaluate, train_dpo
from dpo_lab.batching import separate_rows
from dpo_lab.config import LossName, UnpairedLossName
from dpo_lab.logprobs import plain_token_logps, sum_per_sequence
from dpo_lab.loop import Checkpoint, Evaluation, Step
from dpo_lab.losses import LOSSES, UNPAIRED_LOSSES, PairScores, UnpairedScores, loss_of
from dpo_lab.preferences import TokenData, load_preferences, tokenize_pairs, tokenize_unpaired
from dpo_lab.preferences.reports import BadRow
from dpo_lab.preferences.unpaired import is_good, mismatched, taken_apart
from dpo_lab.training import train_sft
from tests.command_line import dpo_lab
from tests.conftest import ROOT, random_pairs, tiny_llama
from tests.tiny import saved_model, tiny_tokenizer

NAMES = UnpairedLossName.__args__
SETTINGS = {"batch_size": 8, "learning_rate": 3e-3, "epochs": 2, "device": "cpu"}
CASE = ROOT.parent / "shared" / "cases" / "unpaired_labels.jsonl"


def weights(model) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def steps_of(events) -> list[dict[str, float]]:
    return [event.metrics for event in events if isinstance(event, Step)]


def run(config, data=None, **options):
    model = tiny_llama()
    return model, list(train_dpo(model, None, random_pairs(12) if data is None else data, config, **options))


# ── the losses ───────────────────────────────────────────────────────────────────────────────────────────────────────

# r = 2 of a good answer, −1 of a good one, 3 of a bad one; r₀ = 0.5, so s·(r − r₀) = 1.5, −1.5, −2.5; β = 0.4
SCORES = UnpairedScores(
    torch.tensor([-6.0, -9.0, -4.0]), torch.tensor([-8.0, -8.0, -7.0]), torch.tensor([True, True, False]),
    torch.tensor(0.5),
)  # fmt: skip
HAND = [
    # λ·σ(−0.6), λ·σ(0.6), λ·σ(1.0) with σ(0.6) = 0.645656 and σ(1) = 0.731059
    ("kto", {"beta": 0.4, "good_weight": 2.0, "bad_weight": 0.5}, (0.708687, 1.291313, 0.365529)),
    # log(1 + e^−0.6), log(1 + e^0.6), log(1 + e^1)
    ("bco", {"beta": 0.4}, (0.437488, 1.037488, 1.313262)),
    # r itself: σ(−0.8), σ(0.4), σ(1.2)
    ("apo_zero_unpaired", {"beta": 0.4}, (0.310026, 0.598688, 0.768525)),
]


@pytest.mark.parametrize(("name", "knobs", "expected"), HAND)
def test_loss_equals_the_numbers_worked_by_hand(name, knobs, expected):
    torch.testing.assert_close(UNPAIRED_LOSSES[name].bind(**knobs)(SCORES), torch.tensor(expected), atol=1e-6, rtol=0)


def test_the_table_and_the_configuration_name_the_same_losses():
    assert tuple(UNPAIRED_LOSSES) == NAMES == tuple(name for name, *_ in HAND)
    for name, spec in UNPAIRED_LOSSES.items():
        assert spec.name == name
        assert spec.knobs.keys() == spec.directions.keys()
        assert loss_of(DPOConfig(loss=name, beta=0.3))[2] == 0.3


@pytest.mark.parametrize("name", NAMES)
def test_good_answers_are_pulled_up_and_bad_ones_down(name):
    policy = SCORES.policy.clone().requires_grad_()
    (slope,) = torch.autograd.grad(UNPAIRED_LOSSES[name].bind()(SCORES._replace(policy=policy)).sum(), policy)
    assert (torch.sign(slope) == torch.tensor([-1.0, -1.0, 1.0])).all()


def test_apo_zero_of_a_pair_is_the_sum_of_its_two_answers():
    pair = PairScores(*torch.tensor([[-6.0], [-4.0], [-8.0], [-7.0], [4.0], [5.0]]))
    halves = UNPAIRED_LOSSES["apo_zero_unpaired"].bind(beta=0.4)(SCORES)
    torch.testing.assert_close(LOSSES["apo_zero"].bind(beta=0.4)(pair)[0], halves[0] + halves[2])


def test_a_knob_that_the_loss_lacks_and_a_divergence_are_refused():
    with pytest.raises(ValueError, match="the loss bco has no knob 'label_smoothing'"):
        loss_of(DPOConfig(loss="bco", label_smoothing=0.1))
    with pytest.raises(ValueError, match="divergence must be reverse_kl for the loss kto"):
        loss_of(DPOConfig(loss="kto", divergence="js"))
    with pytest.raises(ValueError, match="bad_weight must not be negative"):
        loss_of(DPOConfig(loss="kto", knobs={"bad_weight": -1.0}))
    with pytest.raises(ValueError, match=r"ld_alpha is for losses of pairs, got .*; leave it out with the loss kto"):
        DPOConfig(loss="kto", ld_alpha=0.5)


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pairs_taken_apart_are_their_answers_in_turn_with_the_label_in_the_sign():
    pairs = TokenData.from_rows([([1], ([2, 3], [4]), 0.5), ([5], ([6], [7]), 0.0)])
    rows = taken_apart(pairs)
    assert [(rows.row(i).prompt.tolist(), rows.row(i).completions[0].tolist()) for i in range(4)] == [
        ([1], [2, 3]), ([1], [4]), ([5], [6]), ([5], [7]),
    ]  # fmt: skip
    assert rows.weights.tolist() == [0.5, -0.5, 0, 0]
    assert is_good(rows).tolist() == [True, False, True, False]
    assert rows.source_rows.tolist() == [0, 0, 1, 1]
    assert taken_apart(rows) is rows


def test_mismatched_answers_belong_to_the_nearest_row_before_with_another_prompt():
    rows = TokenData.from_rows(
        [([1], ([11],)), ([1], ([12],)), ([2], ([13, 14, 15],)), ([3, 3], ([16],)), ([1], ([17],))]
    )
    found = mismatched(rows, max_length=4)
    assert [found.row(i).prompt.tolist() for i in range(5)] == [[1], [1], [2], [3, 3], [1]]
    # the first two look back beyond the start, over the last row, which has their prompt too
    assert [found.row(i).completions[0].tolist() for i in range(5)] == [[16], [16], [12], [13, 14], [16]]
    alone = TokenData.from_rows([([1], ([11],)), ([1], ([12],))])
    assert [mismatched(alone, 4).row(i).completions[0].tolist() for i in range(2)] == [[12], [11]]


def test_rows_become_tokens_with_their_label_and_weight():
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "the cat", "completion": " sat", "label": True, "weight": 2.0},
            {"prompt": "the cat", "completion": " ran", "label": False}]  # fmt: skip
    data, _ = tokenize_unpaired(load_preferences(rows), tokenizer)
    assert data.num_completions == 1
    assert data.weights.tolist() == [2.0, -1.0]
    pairs = [{"prompt": "the cat", "chosen": " sat", "rejected": " ran"}]
    both = taken_apart(tokenize_unpaired(pairs, tokenizer)[0])
    assert both.ids.tolist() == data.ids.tolist()
    with pytest.raises(BadRow, match=r"--loss kto.*join a good and a bad answer"):
        tokenize_pairs(load_preferences(rows), tokenizer)


def test_a_bad_answer_is_not_imitated():
    with pytest.raises(ValueError, match="examples holds answers labelled as bad"):
        train_sft(tiny_llama(), None, taken_apart(random_pairs(4)))


def test_answers_of_one_kind_are_refused():
    good = taken_apart(random_pairs(4)).select([0, 2])
    with pytest.raises(ValueError, match="all 2 answers of preferences are labelled good"):
        run(DPOConfig(loss="kto"), good)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def logps(model, data, rows) -> torch.Tensor:
    batch = separate_rows(data, rows)
    return sum_per_sequence(plain_token_logps(model, batch), batch)[:, 0]


def by_hand(name: str, data: TokenData, orders, rate: float) -> tuple[torch.Tensor, list[float]]:
    """Plain gradient descent on the paper's formula, everything on padded rows of their own and in one pass."""
    policy, reference, beta = tiny_llama(), tiny_llama(), 0.1
    other, sign, losses = mismatched(data, 1024), torch.tensor(np.where(is_good(data), 1.0, -1.0)), []
    for rows in orders:
        ratio = logps(policy, data, rows) - logps(reference, data, rows).detach()
        if name == "kto":
            zero = (logps(policy, other, rows) - logps(reference, other, rows)).mean().detach().clamp(min=0)
        else:
            kinds = [ratio[sign[rows] == kind].detach() for kind in (1, -1)]
            zero = sum(kind.mean() for kind in kinds if len(kind)) / sum(len(kind) > 0 for kind in kinds)
        z = beta * sign[rows].float() * (ratio - (0 if name == "apo_zero_unpaired" else zero))
        each = -torch.nn.functional.logsigmoid(z) if name == "bco" else 1 - torch.sigmoid(z)
        policy.zero_grad()
        each.mean().backward()
        with torch.no_grad():
            for weight in policy.parameters():
                weight -= rate * weight.grad
        losses.append(float(each.mean().detach()))
    return weights(policy), losses


@pytest.mark.parametrize("cut", [{}, {"micro_batch_size": 1}, {"tokens_per_pass": 40}, {"layout": "separate"}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_training_is_gradient_descent_on_the_formula_however_a_batch_is_cut(name, cut):
    data = taken_apart(random_pairs(10))
    config = DPOConfig(
        loss=name, batch_size=8, epochs=2, learning_rate=0.3, optimizer="sgd", adam_beta1=0.0, max_grad_norm=None,
        schedule="constant", warmup=0.0, device="cpu", **cut,
    )  # fmt: skip
    orders: list[np.ndarray] = []
    from dpo_lab.batching import epoch_batches, row_lengths

    for epoch in range(2):
        orders += epoch_batches(row_lengths(data), 8, seed=0, epoch=epoch)
    expected, losses = by_hand(name, data, orders, 0.3)
    model, events = run(config, data)
    np.testing.assert_allclose([metrics["loss"] for metrics in steps_of(events)], losses, atol=1e-5)
    torch.testing.assert_close(weights(model), expected, atol=2e-5, rtol=1e-4)
    assert max(losses) - min(losses) > 1e-3


@pytest.mark.parametrize("rows", [range(8), [0, 2, 4, 6, 1]], ids=["as many good as bad", "more good"])
def test_bco_with_a_running_mean_is_ours_in_a_first_batch_of_as_many_good_as_bad_answers(rows):
    """δ as TRL's BCOTrainer had it: the mean of all rewards so far. Whole-model gradients, to 1e-5 of their norm."""
    data = taken_apart(random_pairs(4)).select(list(rows))
    policy, reference, good = tiny_llama(), tiny_llama(seed=3), torch.tensor(is_good(data))
    rewards = 0.3 * (logps(policy, data, range(len(data))) - logps(reference, data, range(len(data))).detach())
    delta = rewards.detach().mean()
    loss = -torch.nn.functional.logsigmoid(torch.where(good, rewards - delta, delta - rewards)).mean()
    loss.backward()
    theirs = torch.cat([weight.grad.flatten() for weight in policy.parameters()])
    config = DPOConfig(
        loss="bco", beta=0.3, batch_size=8, max_steps=1, optimizer="sgd", adam_beta1=0.0, learning_rate=1000.0,
        warmup=0.0, max_grad_norm=None, device="cpu",
    )  # fmt: skip
    before = weights(tiny_llama())
    model, events = run(config, data, reference=reference)
    # A long step, so that the weights' own rounding does not hide the gradient that moved them.
    apart = float(((before - weights(model)) / 1000 - theirs).norm() / theirs.norm())
    midway = (rewards[good].mean() + rewards[~good].mean()).detach() / 2
    if len(data) == 8:
        assert abs(steps_of(events)[0]["loss"] - float(loss.detach())) < 1e-5
        assert apart < 1e-5
    else:
        assert abs(float(midway - delta)) > 0.01
        assert apart > 1e-3
    assert steps_of(events)[0]["rewards/baseline"] == pytest.approx(float(midway), abs=1e-5)


def test_the_metrics_are_means_over_the_good_and_over_the_bad_answers():
    data = taken_apart(random_pairs(8)).select([0, 1, 2, 4, 6])  # four good, one bad
    reference = tiny_llama(seed=3)
    config = DPOConfig(loss="bco", beta=0.2, batch_size=5, max_steps=1, device="cpu")
    _, events = run(config, data, reference=reference, held_out=data)
    ratio = 0.2 * (logps(tiny_llama(), data, range(5)) - logps(reference, data, range(5))).detach()
    good = torch.tensor(is_good(data))
    expected = {"rewards/chosen": ratio[good].mean(), "rewards/rejected": ratio[~good].mean(),
                "rewards/baseline": (ratio[good].mean() + ratio[~good].mean()) / 2,
                "rewards/margins": ratio[good].mean() - ratio[~good].mean()}  # fmt: skip
    evaluation = next(event for event in events if isinstance(event, Evaluation))
    for name, value in expected.items():
        assert steps_of(events)[0][name] == pytest.approx(float(value), abs=1e-4)
        assert evaluation.metrics[f"eval_{name}"] == pytest.approx(float(value), abs=1e-4)


def test_the_step_begins_at_one_half_and_a_batch_of_one_kind_has_no_margin():
    data = taken_apart(random_pairs(8))
    data = data.select([*range(0, 16, 2), 1])
    _, events = run(DPOConfig(loss="kto", batch_size=3, epochs=1, group_by_length=False, device="cpu"), data)
    steps = steps_of(events)
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert sum("rewards/margins" in metrics for metrics in steps) == 1
    assert all("rewards/chosen" in metrics or "rewards/rejected" in metrics for metrics in steps)


def test_weights_multiply_the_loss_of_their_row():
    data = taken_apart(random_pairs(6))
    weigh = lambda factor: TokenData(data.ids, data.bounds, data.weights * np.float32(factor), data.source_rows)
    config = DPOConfig(loss="kto", batch_size=4, epochs=1, optimizer="sgd", learning_rate=0.1, max_grad_norm=None,
                       device="cpu")  # fmt: skip
    half, _ = run(config, weigh(0.5))
    slower, _ = run(DPOConfig(**{**vars(config), "learning_rate": 0.05}), data)
    torch.testing.assert_close(weights(half), weights(slower), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_cached_equals_live_and_the_second_run_scores_nothing(name, tmp_path):
    config, asked = DPOConfig(**SETTINGS, loss=name), []
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        run(config, cache=cache)
        cached, cached_events = run(config, cache=cache, on_reference=lambda *done: asked.append(done))
    live, live_events = run(config)
    assert asked == []
    assert steps_of(cached_events) == steps_of(live_events)
    assert torch.equal(weights(cached), weights(live))


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    config = DPOConfig(**SETTINGS, loss="kto", checkpoint_every=2)
    whole, events = run(config, checkpoints=tmp_path)
    first = [event for event in events if isinstance(event, Checkpoint)][-2]
    rest, later = run(config, resume=first.path)
    assert torch.equal(weights(whole), weights(rest))
    assert steps_of(events)[first.step :] == steps_of(later)


# ── sums of losses ───────────────────────────────────────────────────────────────────────────────────────────────────

PAIRS = PairScores(*torch.tensor([(-6, -10, -8, -7, 4, 5), (-9, -4, -8, -7, 3, 8)], dtype=torch.float64).T)


def test_a_sum_adds_its_parts_with_their_weights_and_gives_each_the_knobs_that_it_has():
    spec, total, beta = loss_of(DPOConfig(loss="dpo:0.8+cdpo:0.3", beta=0.2, label_smoothing=0.1))
    parts = 0.8 * LOSSES["dpo"].bind(beta=0.2)(PAIRS) + 0.3 * LOSSES["cdpo"].bind(beta=0.2, label_smoothing=0.1)(PAIRS)
    torch.testing.assert_close(total(PAIRS), parts)
    assert (spec.name, spec.needs_reference, beta) == ("dpo", True, 0.2)


def test_dpo_and_sft_together_are_rpo():
    total = loss_of(DPOConfig(loss="dpo+sft:0.3", beta=0.2))[1]
    torch.testing.assert_close(total(PAIRS), LOSSES["rpo"].bind(beta=0.2, alpha=0.3)(PAIRS))


def test_a_sum_needs_a_reference_where_a_part_does():
    assert not loss_of(DPOConfig(loss="simpo+sft:0.1"))[0].needs_reference
    assert loss_of(DPOConfig(loss="simpo+dpo:0.1"))[0].needs_reference


@pytest.mark.parametrize(("loss", "message"), [
    ("dpo:1+nothing:2", "loss is not known, got 'nothing'; choose one of dpo"),
    ("dpo:1+kto:2", "loss must name kto alone"),
    ("dpo:0", "positive weights"), ("dpo:x+ipo", "positive weights"), ("dpo+dpo", "different losses"),
    ("sft", "sft not first"), ("sft:1+dpo", "sft not first"), ("", "is not known"),
])  # fmt: skip
def test_a_sum_that_is_none_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        DPOConfig(loss=loss)


def test_a_knob_that_no_part_of_a_sum_has_is_refused():
    with pytest.raises(ValueError, match="the loss dpo has no knob 'gamma'"):
        loss_of(DPOConfig(loss="dpo+sft:0.1", knobs={"gamma": 1.0}))


def test_every_loss_may_stand_in_a_sum():
    for name in LossName.__args__:
        assert torch.isfinite(loss_of(DPOConfig(loss=f"{name}:1+sft:0.1"))[1](PAIRS)).all()


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    answers = [("the cat", " sat", 1), ("the dog", " ran", 0), ("a cat", " ran", 0), ("a dog", " sat", 1)] * 3
    lines = [json.dumps({"prompt": prompt, "completion": answer, "label": label}) for prompt, answer, label in answers]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_the_command_trains_on_rows_and_a_loss_of_pairs_names_both_remedies(rows, tmp_path, capsys):
    model = saved_model(tmp_path / "model")
    words = ["train", "--model", model, "--pairs", rows, "--samples", 0, "--batch-size", 4, "--device", "cpu"]
    outcome = dpo_lab(capsys, *words, "--loss", "kto", "--run", tmp_path / "run")
    assert outcome.status == 0, outcome
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["loss"] == "kto"
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["eval_loss"] == pytest.approx(0.5, abs=1e-5)
    outcome = dpo_lab(capsys, *words, "--run", tmp_path / "other")
    assert outcome.status == 2
    for piece in ("rows.jsonl, line 1", "--loss kto", "to a row with chosen and rejected"):
        assert piece in outcome.message


WORDS = ("--samples", 0, "--kl-prompts", 0, "--batch-size", 4, "--max-steps", 1, "--device", "cpu")


@pytest.mark.parametrize(("name", "num"), [("kto", 24), ("bco", 12), ("apo_zero_unpaired", 12)])
def test_the_cache_is_filled_with_all_that_training_looks_up(name, num, rows, tmp_path, capsys):
    inputs = ("--model", saved_model(tmp_path / "model"), "--pairs", rows, "--loss", name, "--validation", 0.3)
    assert dpo_lab(capsys, "cache", *inputs, "--device", "cpu").status == 0
    # Of KTO also each prompt with a mismatched answer, within its side of the split.
    assert f"0 rows computed, {num} found" in dpo_lab(capsys, "cache", *inputs, "--device", "cpu").out
    told = dpo_lab(capsys, "train", *inputs, *WORDS, "--run", tmp_path / "run")
    assert f"reference: all {num} rows found in the cache, none scored" in told.out, told


def test_the_cache_of_pairs_taken_apart_and_of_held_out_data_is_found_too(tmp_path, capsys):
    pairs = [{"prompt": f"the cat {word}", "chosen": " sat", "rejected": " ran"} for word in ("sat", "ran", "on", "a")]
    for name, part in (("pairs", pairs[:3]), ("held", pairs[3:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    inputs = ("--model", saved_model(tmp_path / "model"), "--pairs", tmp_path / "pairs.jsonl", "--held-out",
              tmp_path / "held.jsonl", "--loss", "kto")  # fmt: skip
    told = dpo_lab(capsys, "cache", *inputs, "--tokens", tmp_path / "tokens", "--device", "cpu")
    assert told.status == 0, told
    told = dpo_lab(capsys, "train", *inputs, *WORDS, "--run", tmp_path / "run")
    assert "reference: all 16 rows found in the cache, none scored" in told.out, told


def test_the_cache_has_nothing_to_save_for_a_loss_without_a_reference_and_names_the_loss_for_labels(rows, capsys):
    told = dpo_lab(capsys, "cache", "--pairs", rows, "--loss", "simpo")
    assert "the loss simpo needs no reference, so there is nothing to save; train at once" in told.message
    for command in ("cache", "evaluate"):
        told = dpo_lab(capsys, command, "--pairs", rows)
        assert told.status == 2
        assert "rows.jsonl, line 1" in told.message
        assert "take an unpaired loss for single answers (--loss kto)" in told.message


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_of_answers_is_what_training_logs_of_held_out_ones(name, tmp_path):
    data, reference = taken_apart(random_pairs(8)).select([0, 1, 2, 4, 6, 7]), tiny_llama(seed=3)
    config = DPOConfig(loss=name, beta=0.3, batch_size=4, max_steps=2, device="cpu")
    model, events = run(config, held_out=data, reference=reference)
    logged = [event for event in events if isinstance(event, Evaluation)][-1].metrics
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        found = evaluate(model, None, data, reference=reference, cache=cache, loss=name, beta=0.3)
    assert {f"eval_{key}": value for key, value in found.metrics.items()} == pytest.approx(
        {key: value for key, value in logged.items() if key.startswith("eval_")}, abs=1e-6
    )
    table = found.table
    assert table["row"].tolist() == data.source_rows.tolist()
    assert table["label"].tolist() == is_good(data).tolist()
    ratio = (logps(model, data, range(6)) - logps(reference, data, range(6))).detach().numpy()
    np.testing.assert_allclose(table["reward"], 0.3 * ratio, atol=1e-4)
    assert table["loss"].mean() == pytest.approx(found.metrics["loss"], abs=1e-6)


def test_the_command_evaluates_labelled_answers_with_a_line_for_each(rows, tmp_path, capsys):
    model = saved_model(tmp_path / "model")
    words = ["evaluate", "--model", model, "--reference", model, "--pairs", rows, "--device", "cpu", "--loss", "kto"]
    told = dpo_lab(capsys, *words, "--kl-prompts", 2, "--max-new-tokens", 3, "--table", tmp_path / "table.jsonl")
    assert told.status == 0, told
    shown = " ".join(told.out.split())
    for piece in ("rows 12", "loss 0.5000", "accuracy 0.5000", "KL from the reference, nats 0.00"):
        assert piece in shown
    table = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [line["label"] for line in table] == [True, False, False, True] * 3
    assert {*table[0]} == {"row", "label", "loss", "reward", "logp", "length"}


def test_the_command_takes_a_sum_as_words(tmp_path, capsys):
    outcome = dpo_lab(capsys, "train", "--loss", "dpo:1", "sft:0.1", "--limit", 16, "--max-steps", 1, "--samples", 0,
                   "--kl-prompts", 0, "--run", tmp_path / "run")  # fmt: skip
    assert outcome.status == 0, outcome
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["loss"] == "dpo:1+sft:0.1"


@pytest.mark.skipif(not CASE.is_file(), reason="the folder of cases (../shared/cases) is absent")
def test_the_case_of_unpaired_labels(tmp_path, capsys):
    words = ["train", "--pairs", CASE, "--validation", 0, "--kl-prompts", 0, "--samples", 0, "--run", tmp_path / "run"]
    outcome = dpo_lab(capsys, *words)
    assert outcome.status == 2
    assert "--loss kto" in outcome.message
    assert "chosen and rejected" in outcome.message
    assert dpo_lab(capsys, *words, "--loss", "kto").status == 0


def test_log_two_is_where_bco_begins():
    assert steps_of(run(DPOConfig(**SETTINGS, loss="bco"))[1])[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_labels_of_single_answers_raise_the_true_reward_in_the_pocket_world():
    """The embedded pairs as labelled answers. Measured with seed 0: 2.26 → 2.53."""
    from dpo_lab import load_policy
    from dpo_lab.workbench.recipes.answers import answer_rows, true_reward
    from dpo_lab.workbench.runs.settings import HeldOutSettings

    model, tokenizer = load_policy("embedded", device="cpu")
    pairs = load_preferences("embedded", split="train", limit=512)
    single = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs for side in ("chosen", "rejected")
    ]  # fmt: skip
    asked = list(load_preferences("embedded", split="test", limit=160))
    settings = HeldOutSettings(max_new_tokens=80)

    def reward() -> float:
        answers = answer_rows(model, tokenizer, asked, settings, max_length=1024, seed=0)
        return float(np.mean([true_reward(row, answer) for row, answer in zip(asked, answers, strict=True)]))

    before = reward()
    config = DPOConfig(loss="kto", learning_rate=1e-3, batch_size=64, device="cpu")
    list(train_dpo(model, tokenizer, load_preferences(single), config))
    assert reward() > before + 0.1
