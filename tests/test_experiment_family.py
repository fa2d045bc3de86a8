"""The family's experiment: equal effort, labels of three kinds, and settings that no seed had a say in."""

from __future__ import annotations

import importlib
import sys

import pytest

from dpo_lab.losses import LOSSES
from tests.conftest import ROOT


@pytest.fixture
def family(monkeypatch):
    folder = ROOT / "data" / "experiments"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return importlib.import_module("family")


def pair(gap: float, chosen: str = "one two", rejected: str = "one two") -> dict:
    said = lambda text: [{"role": "assistant", "content": text}]
    return {"chosen": said(chosen), "rejected": said(rejected), "reward_chosen": 1 + gap, "reward_rejected": 1.0}


def test_every_loss_is_tried_as_often_as_every_other_and_each_trial_can_be_run(family):
    for kind in family.KINDS:
        assert {name for name, spec in LOSSES.items() if spec.knobs} <= set(family.members(kind))
        for member in family.members(kind):
            settings = family.trials(member)
            assert len(settings) == len({tuple(one.items()) for one in settings}) == 4
            for setting in settings:
                config = family.configured(member, setting, seed=0)
                spec = LOSSES[config.loss]
                assert set(config.knobs) <= set(spec.knobs)
                spec.bind(**config.knobs)
    cells = family.tuning_cells()
    assert len(cells) == 224


def test_the_losses_that_know_the_share_of_flips_take_part_on_noisy_labels_only(family):
    assert [kind for kind in family.KINDS if "robust, known share" in family.members(kind)] == ["noisy"]
    config = family.configured("robust, known share", family.trials("robust, known share")[0], seed=0)
    assert (config.loss, config.knobs["label_smoothing"]) == ("robust", family.FLIPPED)


def test_clean_labels_follow_the_true_reward_and_ties_are_counted(family):
    rows = [pair(2.0), pair(-1.0, "worse", "better"), pair(0.0)]
    kept, about = family.labelled(rows, "clean", seed=0)
    assert about == {"pairs": 2, "ties": 1, "wrong_labels": 0.0}
    assert kept[1]["chosen"][0]["content"] == "better"
    assert all(row["reward_chosen"] > row["reward_rejected"] for row in kept)
    assert rows[1]["chosen"][0]["content"] == "worse"  # the caller's own is left as it was


def test_noisy_labels_are_flipped_at_the_share_that_is_said_and_by_the_seed_alone(family):
    rows = [pair(1.0)] * 4000
    kept, about = family.labelled(rows, "noisy", seed=1)
    assert about["wrong_labels"] == pytest.approx(family.FLIPPED, abs=0.03)
    assert about["wrong_labels"] == sum(row["reward_chosen"] < row["reward_rejected"] for row in kept) / 4000
    assert family.labelled(rows, "noisy", seed=1)[0] == kept
    assert family.labelled(rows, "noisy", seed=2)[0] != kept


def test_length_biased_labels_pay_for_every_word(family):
    short_and_better = pair(2.0, "one", "one two three four")  # 3 words for 2 points
    slightly_longer = pair(2.0, "one", "one two")
    even = pair(1.0, "one", "one two")
    kept, about = family.labelled([short_and_better, slightly_longer, even], "length", seed=0)
    assert about == {"pairs": 2, "ties": 1, "wrong_labels": 0.5}
    assert [len(row["chosen"][0]["content"].split()) for row in kept] == [4, 1]


def trial(number: int, reward: float | None, loss: str = "dpo") -> dict:
    row = {"stage": "trial", "labels": "clean", "loss": loss, "trial": number}
    return row | ({"diverged": "nan"} if reward is None else {"reward": reward})


def test_the_best_trial_is_taken_once_all_are_done_and_one_that_diverged_never(family):
    rows = [trial(0, 1.0), trial(1, None), trial(2, 3.0)]
    assert family.chosen(rows, "clean", "dpo") is None
    rows.append(trial(3, 3.0))
    assert family.chosen(rows, "clean", "dpo") == family.trials("dpo")[2]
    assert family.chosen(rows, "noisy", "dpo") is None
    cells = family.seed_cells(2, rows)
    assert [(cell["loss"], cell["seed"]) for cell in cells] == [("base", 0), ("dpo", 0), ("base", 1), ("dpo", 1)]
    assert cells[1]["setting"] == family.trials("dpo")[2]
