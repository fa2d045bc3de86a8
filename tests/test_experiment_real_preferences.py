"""The experiment on preferences of people: what it learns from, what its rows keep, how its verdicts come about."""

from __future__ import annotations

import importlib
import json
import math
import sys

import numpy as np
import pytest

from dpo_lab.course.saved_results import margins_of, numbers, read_real_preferences
from dpo_lab.preferences import TokenData
from tests.conftest import ROOT


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "data" / "experiments"), *sys.path])
    return importlib.import_module("real_preferences")


def talk(*turns):
    return [{"role": role, "content": text} for role, text in turns]


# ── the pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_transcript_becomes_a_conversation(experiment):
    row = {
        "prompt": "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:",
        "chosen": " So.",
        "rejected": " No.",
    }
    assert experiment.as_conversation(row) == {
        "prompt": talk(("user", "Hi."), ("assistant", "Hello."), ("user", "Why?")),
        "chosen": talk(("assistant", "So.")), "rejected": talk(("assistant", "No.")),
    }  # fmt: skip
    messages = {
        "prompt": talk(("user", "Hi.")),
        "chosen": talk(("assistant", "A")),
        "rejected": talk(("assistant", "B")),
    }
    assert experiment.as_conversation(messages | {"output": "C"}) == messages


@pytest.mark.parametrize("change", [
    {"chosen": "  "}, {"rejected": " No.\n\nHuman: And?"}, {"prompt": "Hm\n\nHuman: Hi.\n\nAssistant:"},
    {"prompt": "\n\nHuman:\n\nAssistant:"}, {"prompt": "\n\nHuman: Hi."},
])  # fmt: skip
def test_what_is_no_conversation_is_left_out_and_counted(experiment, change):
    row = {"prompt": "\n\nHuman: Hi.\n\nAssistant:", "chosen": " So.", "rejected": " No."}
    assert experiment.as_conversation(row | change) is None
    same, again = row | {"chosen": " No. "}, row | {"chosen": " Maybe."}
    kept, left_out = experiment.usable([same, row, row | change, again])
    assert [pair["chosen"][0]["content"] for pair in kept] == ["So."]
    assert left_out == {"identical": 1, "no_conversation": 1, "repeated_prompt": 1}


def test_no_held_out_pair_is_trained_on_or_held_out_twice(experiment):
    parts = [experiment.split(100, seed, held_out=20, pairs=60) for seed in range(3)]
    assert len(set(np.concatenate([held for held, _ in parts]))) == 60
    for held, train in parts:
        assert (len(held), len(set(train))) == (20, 60)
        assert not set(held) & set(train)
    with pytest.raises(SystemExit, match=r"100 usable pairs, and seed 5 needs 120"):
        experiment.split(100, 5, held_out=20, pairs=60)


def test_flips_turn_the_share_of_labels_and_their_log_probs(experiment):
    turned = experiment.flips(10, 0.2, seed=0)
    assert turned.sum() == 2
    assert (turned != experiment.flips(10, 0.2, seed=1)).any()
    data = TokenData.from_rows(([1], ([2, i], [3])) for i in range(10))
    found = experiment.with_flips(data, turned)
    for i in range(10):
        assert [one.tolist() for one in found.row(i).completions] == ([[3], [2, i]] if turned[i] else [[2, i], [3]])
    values = np.arange(20.0).reshape(10, 2)
    assert experiment.Known(values).logps(None, found).values is values


def test_every_seed_runs_every_method_once_and_the_last_set_all(experiment):
    found = [tuple(cell.values()) for cell in experiment.cells(3, ["long", "short"])]
    assert len(set(found)) == len(found) == 3 * (4 + 6)
    assert {method for name, method, _ in found if name == "long"} == set(experiment.FOR_ALL)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_held_out_numbers_by_hand(experiment):
    moved = np.array([[1.0, -1.0], [-2.0, -6.0], [-3.0, -1.0], [0.0, 0.0]])
    lengths = np.array([[4, 5], [9, 2], [3, 8], [5, 5]])
    found = experiment.held_out_numbers(moved, lengths, beta=0.5)
    margins = np.array([1.0, 2.0, -1.0, 0.0])
    assert found["accuracy"] == (2 + 0.5) / 4
    assert found["margin"] == pytest.approx(margins.mean())
    assert (found["chosen_change"], found["rejected_change"]) == (-1.0, -2.0)
    assert (found["reward_chosen"], found["reward_rejected"]) == (-0.5, -1.0)
    assert found["chosen_fell"] == 0.5
    assert (found["accuracy_chosen_shorter"], found["accuracy_chosen_longer"]) == (0.5, 1.0)
    chances = 1 / (1 + np.exp(-margins))
    assert found["brier"] == pytest.approx(((1 - chances) ** 2).mean())
    assert found["loss"] == pytest.approx(-np.log(chances).mean())
    assert found["length_r2"] == pytest.approx(np.corrcoef(margins, [-1, 7, -5, 0])[0, 1] ** 2)
    assert numbers(found["chosen_changes"]).tolist() == moved[:, 0].tolist()
    json.dumps(found, allow_nan=False)


def test_before_training_sums_means_and_lengths_disagree(experiment):
    held = TokenData.from_rows([([1], ([2, 3, 4, 5], [6])), ([1], ([2], [6, 7]))])
    found = experiment.before_training(held, np.array([[-4.0, -3.0], [-1.0, -5.0]], np.float32))
    assert (found["accuracy"], found["per_token_accuracy"], found["longer_is_chosen"]) == (0.5, 1.0, 0.5)
    rows = {"base": [found | {"seed": 0}]}
    gaps = {by: experiment.base_gap(rows, by) for by in ("sum", "mean", "length")}
    assert gaps["mean"].tolist() == [[-1.0, -3.0], [-1.0, -2.5]]
    assert gaps["length"].tolist() == [[4, 1], [1, 2]]


def test_the_share_of_flips_comes_from_two_accuracies(experiment):
    clean, share = 0.9, 0.2
    assert experiment.flip_rate(clean, (1 - share) * clean + share * (1 - clean)) == pytest.approx(share)
    assert experiment.flip_rate(0.5, 0.5) is None


# ── lessons ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def text(values):
    return " ".join(map(str, values))


def row_of(method, seed, moved, **more):
    changes = {"chosen_changes": text(moved[:, 0]), "rejected_changes": text(moved[:, 1])}
    return {"set": "made", "method": method, "seed": seed} | changes | more


def made_rows():
    """Two seeds: DPO ranks all of 60 pairs right and half of the chosen answers fall; SFT ranks half of them right."""
    rows = []
    for seed in range(2):
        sign = np.where(np.arange(30) % 2, 1.0, -1.0)
        spread = np.linspace(1.0, 2.0, 30)
        dpo = np.stack([0.1 * sign, 0.1 * sign - 2 * spread], 1)
        sft = np.stack([np.full(30, 0.5), 0.5 + sign * spread], 1)
        rows += [
            {"set": "made", "method": "base", "seed": seed, "drags": "0.1 1.4 0.3 1.2", "logps_chosen": text(-spread),
             "logps_rejected": text(-2 * spread), "lengths_chosen": text([3] * 30),
             "lengths_rejected": text(3 + (np.arange(30) % 3))},
            row_of("DPO", seed, dpo, first_norm_ratio=2.0 + seed / 100, parting_margins=text(0.2 * spread),
                   token_margins=text(0.3 * spread)),
            row_of("SFT", seed, sft),
            row_of("DPO, flipped", seed, np.where(np.arange(30)[:, None] < 9, dpo[:, ::-1], dpo),
                   train_margins=text([1.0] * 24 + [-1.0] * 6), train_flips="1" * 6 + "0" * 24),
        ]  # fmt: skip
    return rows


SETTINGS = {"beta": 0.1, "flips": 0.2}


def test_verdicts_are_computed_from_the_rows(experiment):
    found = {one["lesson"].claim: one for one in experiment.lessons_of(made_rows(), SETTINGS)}
    verdicts = {
        claim: (one["measured"]["made"]["value"], one["together"]) for claim, one in found.items() if one["measured"]
    }
    starts = lambda text: next(value for claim, value in verdicts.items() if claim.startswith(text))
    assert starts("A loss of 0.693") == (pytest.approx(2.005), "holds")
    assert starts("A chosen answer need not") == (0.5, "holds")
    assert starts("A negative chosen reward") == (1.0, "holds")
    assert starts("Hardly any pair's own step") == (0.5, "the pocket world's")
    assert starts("SFT on the chosen answers ranks") == (0.5, "the pocket world's")
    assert starts("SFT lowers rejected")[1] == "the pocket world's"
    assert starts("The first token in which") == (pytest.approx(2 / 3), "holds")
    assert starts("Length explains little") == (pytest.approx(0, abs=0.05), "holds")
    assert starts("Flipped labels cost") == (pytest.approx(0.3), "holds")
    assert [claim for claim, one in found.items() if one["together"] == "not measured"] == [
        "Accuracy on training pairs says nothing of the policy: a hot run ruins it",
        "In a short run `robust` hardly differs from DPO on flipped labels",
    ]


def test_the_page_tells_every_lesson_with_its_number(experiment):
    page = experiment.page(made_rows(), SETTINGS)
    assert "| base: log-prob of the answer | 100 % [94, 100] |" in page
    assert "| base: log-prob per token | 100 % [94, 100] |" in page
    assert "| SFT | 50 % [38, 62] |" in page
    assert "it was 20%" in page
    assert "| 50 % [38, 62]: holds | above 10 % | **holds** |" in page
    assert page.count("| not measured |") == 2


@pytest.mark.parametrize(("low", "high", "holds", "expected"), [
    (0.2, 0.4, (0.1, math.inf), "holds"), (0.05, 0.4, (0.1, math.inf), "open"),
    (0.02, 0.05, (0.1, math.inf), "does not hold"), (-0.2, 0.2, (-0.05, 0.05), "open"),
    (0.06, 0.2, (-0.05, 0.05), "does not hold"), (-0.04, 0.04, (-0.05, 0.05), "holds"),
    (0.0, 0.0, (0.0, math.inf), "open"),
    (None, None, (0.0, 1.0), "open"), (math.nan, 1.0, (0.0, 1.0), "open"),
])  # fmt: skip
def test_a_verdict_asks_the_whole_interval(experiment, low, high, holds, expected):
    assert experiment.verdict({"value": 0.0, "low": low, "high": high, "n": 1}, holds) == expected


def test_verdicts_of_several_sets_together(experiment):
    say = experiment.together
    assert say(["holds", "holds"]) == "holds"
    assert say(["does not hold"]) == "the pocket world's"
    assert say(["holds", "does not hold"]) == "depends on the data"
    assert say(["holds", "open"]) == "holds; one set is open"
    assert say(["open"]) == "open"


def test_what_the_notebooks_are_said_to_print_is_what_they_print(experiment):
    printed = {}
    for number in {lesson.notebook for lesson in experiment.LESSONS}:
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        outputs = [
            out for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for out in cell.get("outputs", [])
        ]
        printed[number] = " ".join(" ".join("".join(out.get("text", "")) for out in outputs).split())
    for lesson in experiment.LESSONS:
        for words in lesson.pocket:
            assert words in printed[lesson.notebook], f"notebook {lesson.notebook} no longer prints {words!r}"


# ── read back ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_read_back(experiment, tmp_path):
    rows = made_rows()
    path = tmp_path / "it.json"
    lessons = experiment.saved_lessons(rows, SETTINGS)
    path.write_text(json.dumps({"made": {"commit": "abc"}, "settings": SETTINGS, "rows": rows, "lessons": lessons}))
    made, found, read = read_real_preferences(path)
    assert read == lessons
    assert len(read) == len(experiment.LESSONS)
    assert {"text", "verdict", "value", "low"} <= read[0]["sets"]["made"].keys()
    assert (made["commit"], made["beta"]) == ("abc", 0.1)
    margins = margins_of(found, "made", "DPO", made["beta"])
    assert margins.shape == (60,)
    assert margins[:30].tolist() == pytest.approx((0.2 * np.linspace(1, 2, 30)).tolist())
    with pytest.raises(ValueError, match=r"no row is of RLHF on made; there are base on made, DPO on made"):
        margins_of(found, "made", "RLHF", 0.1)
