"""SFT and DPO as streams: the loop against a loop by hand, and every way of cutting the same work."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_lab.config import DPOConfig, LossName, SFTConfig
from dpo_lab.logprobs import score
from dpo_lab.loop import Checkpoint, Evaluation, Finished, Schedule, Step, TrainingDiverged
from dpo_lab.losses import LOSSES
from dpo_lab.preferences import TokenData
from dpo_lab.reference import ReferenceCache, fingerprint
from dpo_lab.training import train_dpo, train_sft
from tests.conftest import random_pairs, tiny_llama

SETTINGS = {"batch_size": 8, "learning_rate": 3e-3, "epochs": 2, "device": "cpu"}


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(config=None, *, data=None, model=None, **options):
    model = model if model is not None else tiny_llama()
    data = data if data is not None else random_pairs(20)
    events = list(train_dpo(model, None, data, config or DPOConfig(**SETTINGS), **options))
    return model, events


def losses_of(events) -> list[float]:
    return [event.metrics["loss"] for event in events if isinstance(event, Step)]


def test_the_first_step_starts_at_log_2_with_a_gradient():
    _, events = run(DPOConfig(**SETTINGS, max_steps=1))
    first = next(event for event in events if isinstance(event, Step))
    assert first.metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first.metrics["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert first.metrics["grad_norm"] > 0


@pytest.mark.parametrize("name", LossName.__args__)
def test_every_loss_trains(name):
    config = DPOConfig(**{**SETTINGS, "epochs": 8, "learning_rate": 1e-3}, loss=name)
    _, events = run(config, data=random_pairs(8))
    assert all(map(math.isfinite, losses_of(events)))
    assert losses_of(events)[-1] < losses_of(events)[0]
    margins = [e.metrics["rewards/margins"] for e in events if isinstance(e, Step)]
    if name != "discopop":  # not convex: it rises with the margin around 0, so it may lead the wrong way from the start
        assert margins[-1] > margins[0]


@pytest.mark.parametrize(
    "cut", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"tokens_per_pass": 40}, {"layout": "separate"}]
)
def test_however_a_batch_is_cut_the_step_is_the_same(cut):
    whole, events = run(DPOConfig(**SETTINGS, optimizer="sgd"))
    parts, cut_events = run(DPOConfig(**SETTINGS, optimizer="sgd", **cut))  # 20 pairs: the last batch holds 4
    np.testing.assert_allclose(losses_of(events), losses_of(cut_events), atol=1e-5)
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-5, rtol=1e-4)


def test_the_mean_is_over_pairs_not_over_passes():
    data = random_pairs(5)
    _, events = run(DPOConfig(**{**SETTINGS, "batch_size": 5}, micro_batch_size=4, loss="ipo", beta=0.5), data=data)
    metrics = next(e for e in events if isinstance(e, Step)).metrics
    assert metrics["loss"] == pytest.approx(1.0, abs=1e-5)  # (0 − 1/(2β))² = 1 for every pair
    logps = score(tiny_llama(), data)
    assert metrics["logps/chosen"] == pytest.approx(float(logps[:, 0].mean()), rel=1e-5)
    assert metrics["logps/rejected"] == pytest.approx(float(logps[:, 1].mean()), rel=1e-5)


def test_weights_multiply_the_loss_of_their_pair():
    rows = [random_pairs(4).row(i) for i in range(4)]
    weigh = lambda ws: TokenData.from_rows([(r.prompt, r.completions, w) for r, w in zip(rows, ws, strict=True)])
    only_two, _ = run(data=weigh([1, 0, 1, 0]))
    half, _ = run(DPOConfig(**SETTINGS), data=weigh([1, 0, 1, 0]), model=tiny_llama())
    all_four, _ = run(data=weigh([1, 1, 1, 1]))
    assert torch.equal(weights(only_two), weights(half))
    assert not torch.allclose(weights(only_two), weights(all_four), atol=1e-4)


def test_the_reference_is_bit_identical_after_training_and_has_no_gradient():
    reference = tiny_llama(seed=3)
    before = fingerprint(reference)
    run(reference=reference)
    assert fingerprint(reference) == before
    assert all(p.grad is None for p in reference.parameters())


def test_a_reference_given_is_the_one_that_is_used():
    reference, data = tiny_llama(seed=3), random_pairs(8)
    _, events = run(DPOConfig(**SETTINGS, max_steps=1), data=data, reference=reference)
    ratio = score(tiny_llama(), data) - score(reference, data)
    expected = 0.5 * (ratio[:, 0] - ratio[:, 1])
    assert next(e for e in events if isinstance(e, Step)).metrics["rewards/margins"] == pytest.approx(
        expected.mean(), abs=1e-5
    )


@pytest.mark.parametrize("name", LossName.__args__)
def test_cached_equals_live_for_every_loss(name, tmp_path):
    config = DPOConfig(**SETTINGS, loss=name)
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        list(train_dpo(tiny_llama(), None, random_pairs(20), config, cache=cache))
        cached, cached_events = run(config, cache=cache)
    live, live_events = run(config)
    assert losses_of(cached_events) == losses_of(live_events)
    assert torch.equal(weights(cached), weights(live))


def test_events_come_in_order_with_the_metrics_that_the_field_knows(tmp_path):
    config = DPOConfig(**SETTINGS, evaluate_every=2, checkpoint_every=4)
    _, events = run(config, held_out=random_pairs(6, seed=9), checkpoints=tmp_path)
    told = [(type(e).__name__, e.step) for e in events]
    assert told == [
        ("Evaluation", 0), ("Step", 1), ("Step", 2), ("Evaluation", 2), ("Step", 3), ("Step", 4), ("Evaluation", 4),
        ("Checkpoint", 4), ("Step", 5), ("Step", 6), ("Evaluation", 6), ("Checkpoint", 6), ("Finished", 6),
    ]  # fmt: skip
    names = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
             "logps/rejected", "grad_norm", "learning_rate", "epoch"}  # fmt: skip
    assert set(events[1].metrics) == names
    assert all(name.startswith("eval_") for name in events[0].metrics)
    assert len(events[0].margins) == 6
    assert events[-1].is_complete


def test_evaluation_equals_evaluating_the_model_afterwards():
    from dpo_lab.workbench.evaluation import evaluate

    held = random_pairs(6, seed=9)
    model, events = run(DPOConfig(**SETTINGS, beta=0.2), held_out=held)
    last = [e for e in events if isinstance(e, Evaluation)][-1]
    result = evaluate(model, None, held, reference=tiny_llama(), beta=0.2)
    for name, value in result.metrics.items():
        assert last.metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-6)
    assert last.margins == pytest.approx(result.table["margin"], abs=1e-6)


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("dropout", [False, True])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, at, dropout):
    config = DPOConfig(**SETTINGS, checkpoint_every=1, keep_checkpoints=10, dropout=dropout)
    make = lambda: tiny_llama(attention_dropout=0.1 if dropout else 0.0)
    whole, events = run(config, model=make(), checkpoints=tmp_path / "whole")
    asked = iter([False] * (at - 1) + [True])
    _, first = run(config, model=make(), checkpoints=tmp_path / "part", stop=lambda: next(asked))
    assert not first[-1].is_complete
    assert first[-1].step == at
    torch.manual_seed(12345)  # what the process did in between must not matter
    resumed, second = run(
        config, model=make(), checkpoints=tmp_path / "part", resume=tmp_path / "part" / f"step-{at:08d}"
    )
    assert torch.equal(weights(resumed), weights(whole))
    steps = lambda events: [(e.step, e.metrics) for e in events if isinstance(e, Step)]
    assert steps(first) + steps(second) == steps(events)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    config = DPOConfig(**SETTINGS, max_steps=2)
    run(config, checkpoints=tmp_path)
    checkpoint = tmp_path / "step-00000002"
    with pytest.raises(ValueError, match=r"settings.beta was None and is 0.5"):
        run(DPOConfig(**SETTINGS, max_steps=2, beta=0.5), resume=checkpoint)
    with pytest.raises(ValueError, match="data was"):
        run(config, data=random_pairs(20, seed=5), resume=checkpoint)
    with pytest.raises(ValueError, match="reference was"):
        run(config, model=tiny_llama(seed=4), resume=checkpoint)
    with pytest.raises(ValueError, match="no checkpoint at"):
        run(config, resume=tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_named(tmp_path):
    config = DPOConfig(**SETTINGS, max_steps=2)
    run(config, checkpoints=tmp_path)
    file = tmp_path / "step-00000002" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: weights.safetensors"):
        run(config, resume=tmp_path / "step-00000002")


def test_only_the_newest_checkpoints_stay(tmp_path):
    run(DPOConfig(**SETTINGS, checkpoint_every=1, keep_checkpoints=2), checkpoints=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_rows(tmp_path):
    config = DPOConfig(**SETTINGS, checkpoint_every=1)
    model = tiny_llama()
    stream = train_dpo(model, None, random_pairs(20), config, checkpoints=tmp_path)
    for event in stream:
        if isinstance(event, Checkpoint) and event.step == 2:
            with torch.no_grad():
                next(model.parameters())[:] = math.inf
            break
    with pytest.raises(TrainingDiverged, match=r"step 3: the loss is nan.*rows \d+.*lower learning rate"):
        list(stream)
    assert (tmp_path / "step-00000002").is_dir()
    assert not (tmp_path / "step-00000003").exists()


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, two, other = (run(DPOConfig(**SETTINGS, seed=seed))[0] for seed in (0, 0, 1))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_bfloat16_follows_float32():
    exact, rough = (losses_of(run(DPOConfig(**SETTINGS, precision=p))[1]) for p in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact, rough, atol=0.05)


def test_dropout_is_off_unless_asked_for():
    off, on, none = (
        losses_of(run(DPOConfig(**SETTINGS, dropout=d), model=tiny_llama(attention_dropout=rate))[1])
        for d, rate in ((False, 0.5), (True, 0.5), (False, 0.0))
    )
    assert off == none
    assert on != off


def test_sft_lowers_the_cross_entropy_of_completions_only():
    data = random_pairs(16)
    rows = [data.row(i) for i in range(16)]
    examples = TokenData.from_rows([(r.prompt, (r.completions[0],)) for r in rows])
    model = tiny_llama()
    expected = -score(model, examples).sum() / examples.completion_lengths.sum()
    config = SFTConfig(batch_size=16, epochs=20, learning_rate=1e-2, device="cpu")
    events = list(train_sft(model, None, examples, config, held_out=examples))
    assert losses_of(events)[0] == pytest.approx(expected, rel=1e-5)
    assert losses_of(events)[-1] < 0.3 * expected
    last = [e for e in events if isinstance(e, Evaluation)][-1]
    assert last.metrics["eval_perplexity"] == pytest.approx(math.exp(last.metrics["eval_loss"]))


def test_schedules_at_their_ends():
    class Ten:
        def epoch(self, epoch):
            return [np.arange(1)] * 10

    rates = lambda **s: [
        Schedule(Ten(), SFTConfig(learning_rate=1.0, epochs=1, **s)).plan(i).learning_rate for i in range(10)
    ]
    assert rates(schedule="constant", warmup=0) == [1.0] * 10
    assert rates(schedule="linear", warmup=0) == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates(schedule="constant", warmup=0.3)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    cosine = rates(schedule="cosine", warmup=0)
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    fraction = Schedule(Ten(), SFTConfig(epochs=0.25))
    assert fraction.num_steps == 3
    assert Schedule(Ten(), SFTConfig(epochs=5, max_steps=7)).num_steps == 7


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adafactor"])
def test_every_optimizer_learns(name):
    rate = {"sgd": 0.5, "adafactor": 0.05}.get(name, 3e-3)
    _, events = run(DPOConfig(**{**SETTINGS, "learning_rate": rate, "epochs": 6}, optimizer=name))
    assert losses_of(events)[-1] < losses_of(events)[0] - 0.05


def test_weight_decay_spares_norms():
    from dpo_lab.loop import make_optimizer

    groups = make_optimizer(tiny_llama(), DPOConfig(weight_decay=0.1)).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.ndim == 1 for p in groups[1]["params"])


def test_mistakes_are_told_at_the_call_not_at_the_first_event():
    data = random_pairs(4)
    with pytest.raises(ValueError, match="must hold 2 completions"):
        train_dpo(tiny_llama(), None, TokenData.from_rows([(np.array([5]), (np.array([6]),))]))
    with pytest.raises(ValueError, match="gamma"):
        train_dpo(tiny_llama(), None, data, DPOConfig(knobs={"gamma": 1.0}))
    with pytest.raises(ValueError, match=r"token id \d+ has no embedding: the model has 20"):
        train_dpo(tiny_llama(vocab_size=20), None, data)
    with pytest.raises(ValueError, match="no usable rows"):
        train_dpo(tiny_llama(), None, TokenData.from_rows([]))
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        train_dpo(tiny_llama(), None, data, DPOConfig(precision="float16", device="cpu"))
    frozen = tiny_llama().requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        train_dpo(frozen, None, data, DPOConfig(device="cpu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0; smaller values allow more drift"),
        ({"beta": -1.0}, "got -1.0"),
        ({"beta": math.nan}, "got nan"),
        ({"label_smoothing": 0.5}, r"label_smoothing must lie in \[0, 0.5\), got 0.5"),
        ({"loss": "dop"}, "loss is not known, got 'dop'; choose one of dpo, "),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"warmup": 1.5}, "warmup is a share"),
        ({"optimizer": "lion"}, "optimizer is not known, got 'lion'; choose one of adamw"),
        ({"precision": "int8"}, "precision is not known"),
        ({"max_length": 1}, "max_length must be at least 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DPOConfig(**settings)


def test_finished_repeats_the_last_numbers():
    _, events = run()
    assert isinstance(events[-1], Finished)
    assert events[-1].metrics["loss"] == losses_of(events)[-1]
    assert LOSSES


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what stays in memory is read from /proc")
def test_the_pages_of_mapped_tokens_do_not_pile_up(tmp_path):
    random_pairs(4000, seed=0, longest=60).save(tmp_path)
    data = TokenData.load(tmp_path)
    steps = list(train_dpo(tiny_llama(), None, data, DPOConfig(batch_size=8, max_steps=40, device="cpu")))
    assert isinstance(steps[-1], Finished)
    held = dict.fromkeys(("ids.npy", "bounds.npy"), 0)
    mapping = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            mapping = Path(line.split()[-1]).name if str(tmp_path) in line else ""
        elif mapping in held and line.startswith("Rss:"):
            held[mapping] += int(line.split()[1])
    assert held == {"ids.npy": 0, "bounds.npy": 0}


# ── the evaluation before the first step ─────────────────────────────────────────────────────────────────────────────


def test_before_the_first_step_the_policy_is_its_own_reference_and_is_not_scored_again(monkeypatch):
    scored = []
    for module in ("training", "objectives.base"):
        monkeypatch.setattr(f"dpo_lab.{module}.score", lambda *a, **k: scored.append(len(a[1])) or score(*a, **k))
    data, held = random_pairs(20), random_pairs(7, seed=9)
    _, events = run(data=data, held_out=held)
    first = events[0]
    assert scored == [20, 7, 7]  # the reference on both, and the policy at the end
    assert first.margins == (0.0,) * 7
    assert first.metrics["eval_loss"] == pytest.approx(math.log(2))
    assert first.metrics["eval_logps/chosen"] == pytest.approx(float(score(tiny_llama(), held)[:, 0].mean()), rel=1e-6)


def test_a_policy_that_is_not_its_reference_is_scored_before_the_first_step(tmp_path):
    held = random_pairs(7, seed=9)
    _, events = run(held_out=held, reference=tiny_llama(seed=3))
    expected = score(tiny_llama(), held) - score(tiny_llama(seed=3), held)
    np.testing.assert_allclose(events[0].margins, 0.5 * (expected[:, 0] - expected[:, 1]), atol=1e-5)
    _, events = run(DPOConfig(**SETTINGS | {"loss": "simpo"}), held_out=held)
    assert any(events[0].margins)


def test_nothing_of_a_training_stays_in_memory_once_it_has_ended():
    """Freed as the last name goes, without waiting for the collector: gradients and Adam's moments are large."""
    gc.collect()
    gc.disable()
    try:
        model, _ = run()
        gone = weakref.ref(model)
        del model, _
        assert gone() is None
    finally:
        gc.enable()
