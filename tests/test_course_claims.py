"""What notebooks 00 to 08 say of results that are kept, weighed against their rows. One test for each claim."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

import pytest

from dpo_lab.course.saved_results import read_real_model, read_real_preferences
from dpo_lab.workbench.recipes import RECIPES
from tests.conftest import ROOT

POLITE, HH = "instruction-polite", "hh-harmless-base-test"


def prose(number: str) -> str:
    """The markdown of a notebook with single spaces."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return " ".join(" ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").split())


def says(number: str, words: str) -> None:
    assert words in prose(number), f"notebook {number} no longer says {words!r}; does this test still weigh its claim?"


def lesson(beginning: str) -> dict[str, Any]:
    """What the kept table of lessons says of each set: value and interval."""
    _, _, lessons = read_real_preferences()
    (found,) = (one["sets"] for one in lessons if one["lesson"].startswith(beginning))
    return found


def percent(found: dict[str, Any], *keys: str) -> list[int]:
    return [round(100 * found[key]) for key in keys or ("value",)]


def real(name: str, **wanted: Any) -> float:
    """The mean of one field over the rows of the real model's study."""
    rows = [row for row in read_real_model()[1] if all(row.get(key) == value for key, value in wanted.items())]
    return mean(row[name] for row in rows)


def kept(name: str) -> Any:
    return json.loads((ROOT / "data" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_00_a_real_model_met_40_percent_of_its_demands_after_dpo_and_16_before():
    says("00", "met 40 % of them after DPO, and 16 % before")
    assert round(100 * real("trained, on new topics", method="DPO")) == 40
    assert round(100 * real("trained, on new topics", method="base")) == 16
    assert read_real_model()[0]["dpo_learning_rate"] == 4e-5


def test_01_one_set_of_people_could_be_learnt_from_200_pairs_and_one_could_not():
    says("01", "SmolLM2 ranked 50 % of new pairs right [44 %, 57 %], on 200 pairs about politeness 84 % [80 %, 87 %]")
    text = (ROOT / "data" / "results" / "real_preferences.md").read_text(encoding="utf-8")
    assert "| DPO | 50 % [44, 57] | 84 % [80, 87] |" in text
    assert read_real_preferences()[0]["pairs"] == 200


def test_02b_a_larger_beta_did_not_bound_the_kl_of_a_real_model_and_the_rate_moved_it():
    says("02b", "β = 0.3 in place of 0.1 left the KL of RPO at 12 nats")
    says("02b", "doubling DPO's learning rate took it from 2 to 6 to 18")
    search = [row for row in read_real_model()[1] if row["method"] == "search"]
    kl = {(row["loss"], row["rate"], row["beta"]): row["kl"] for row in search}
    assert [round(kl["rpo", "8e-05", beta]) for beta in (0.1, 0.3)] == [12, 12]
    assert [round(kl["dpo", rate, 0.1]) for rate in ("2e-05", "4e-05", "8e-05")] == [2, 6, 18]


@pytest.mark.parametrize("number", ["03", "06"])
def test_03_06_many_chosen_answers_fall_on_a_real_model(number: str):
    says(number, "47 % of")
    says(number, "78 % on HH")
    found = lesson("A chosen answer need not become likelier")
    assert (percent(found[POLITE]), percent(found[HH])) == ([47], [78])


def test_03_a_negative_chosen_reward_depends_on_the_data():
    says("03", "74 % of such pairs were ranked right on the first set and 38 % on the second")
    found = lesson("A negative chosen reward is no failure")
    assert (percent(found[POLITE]), percent(found[HH])) == ([74], [38])


def test_03_whether_the_first_gradient_is_the_largest_is_open_on_a_real_model():
    says("03", "Whether the first gradient is larger than later ones stayed open there")
    assert {found["verdict"] for found in lesson("A loss of 0.693 is no standstill").values()} == {"open"}


def test_04_sum_and_mean_rank_a_real_models_pairs_differently():
    says("04", "its sums rank 56 % of the pairs about politeness right and its means 61 %")
    rows = [row for row in read_real_preferences()[1] if row["method"] == "base" and row["set"] == POLITE]
    assert round(100 * mean(row["accuracy"] for row in rows)) == 56
    assert round(100 * mean(row["per_token_accuracy"] for row in rows)) == 61


def test_06_a_drag_above_1_is_rare_on_a_real_model():
    says("06", "On SmolLM2 $d > 1$ happened in 4 % [1 %, 12 %] of the pairs about politeness and in none of 48 on HH")
    found = lesson("Hardly any pair's own step")
    assert percent(found[POLITE], "value", "low", "high") == [4, 1, 12]
    assert (found[HH]["value"], found[HH]["n"]) == (0, 48)


def test_06_sft_ranks_worse_than_dpo_on_a_real_model_and_raises_rejected_answers():
    says("06", "on the pairs about politeness it is 22 points behind [16, 28]")
    assert percent(lesson("SFT on the chosen answers ranks")[POLITE], "value", "low", "high") == [22, 16, 28]
    assert all(found["low"] > 0 for found in lesson("SFT lowers rejected answers").values())


def test_07_says_so_as_long_as_no_gpu_was_measured():
    is_measured = (ROOT / "data" / "results" / "gpu.json").exists()
    assert ("No GPU has been measured for this edition" in prose("07")) is not is_measured


def test_08_more_answers_stop_helping_in_the_kept_run_too():
    says("08", "it went 1.79, 2.44, 2.82, 2.90 and 2.87")
    by_reward = kept("implicit_rewards")["fresh answers"]["best of n by implicit reward"]
    values = [by_reward[str(n)] for n in (1, 2, 4, 8, 16)]
    assert [round(value, 2) for value, _ in values] == [1.79, 2.44, 2.82, 2.90, 2.87]
    assert abs(values[4][0] - values[3][0]) < values[4][1]  # within one standard error


def test_08_margins_are_small_and_length_explains_more_on_a_real_model():
    says("08", "the fitted temperature was 0.09")
    says("08", "the first differing token carried a quarter of the margin, not half")
    says("08", "length explained 14 % of the margins there and 41 % on HH")
    assert round(lesson("The margins of a short training")[POLITE]["value"], 2) == 0.09
    assert 0.15 < lesson("The first token in which two answers differ")[POLITE]["value"] < 0.3
    found = lesson("Length explains little")
    assert (percent(found[POLITE]), percent(found[HH])) == ([14], [41])


@pytest.mark.parametrize("number", ["02b", *(f"{n:02d}" for n in range(9))])
def test_every_summary_says_what_carries_over(number: str):
    text = prose(number)
    assert "**What carries over to real models.**" in text[text.index("What you saw") :]


def test_the_learning_rates_quoted_are_those_of_recipes():
    rates = {named.recipe.config.learning_rate for named in RECIPES.values() if not named.recipe.lora}
    assert (min(rates), max(rates)) == (5e-7, 1e-6)
    for number in ("00", "06"):
        says(number, "published recipes 5e-7 to 1e-6")


# What a critical reading found wrong, and what stands there now. In each row: words of the text, what a cell prints
# (which strict nbval compares, and its asserts hold), and words of the old claim, none of which may come back.
CORRECTED = {
    "00 wrong labels are no reason": (
        "00", "none of the 160 held-out labels is wrong", "0 of 160 held-out labels are wrong",
        ("keeps it below", "as noisy as", "about a million", "half or less", "four curves", "majority of"),
    ),
    "01 errors of a singular matrix": ("01", "$H^{+}/n$", "true rewards within 2 standard errors", ("$H^{-1}/n$",)),
    "02b β is a price and no bound": (
        "02b", "At one learning rate the largest β is the fastest at first", "β = 5.0     0.032          0.049",
        ("keeps the policy near", "end on the best answer", "take longer", "takes longer"),
    ),
    "03 β at one learning rate": (
        "03", "At one learning rate the larger β was ahead after 10 steps", "β = 3, unanimous: KL after 10, 100, 1000",
        ("the same drift take longer",),
    ),
    "03 the first gradient": (
        "03", "The first gradient need not be the largest", "without no_grad: largest gradient 0.0", ("of every run",)
    ),
    "04 folklore without a source": ("04", "", "", ("most reported bug", "healthy")),
    "05 what is in a key": (
        "05", "everything that can change a value is in the key, and nothing else",
        "whatever can change a value is in the key", ("names of the model are enough",),
    ),
    "05 no reference": ("05", "It earns *more* reward, because nothing in its loss charges", "", ("it forgets",)),
    "06 DPO and SFT are level": (
        "06", "**DPO and SFT are level here.**", "true reward, DPO less SFT: -0.04 ± 0.07",
        ("the poorer tool", "pushes chosen", "healthy"),
    ),
    "07 the peak is predicted": (
        "07", "Add a third to such a prediction", "the prediction is 10 to 30 % short: True",
        ("not measured yet", "at the end of every forward pass"),
    ),
    "08 a correlation of signs": (
        "08", "most of it restates that nine signs in ten are right", "rank correlation, sizes shuffled   0.640",
        ("padding is liked",),
    ),
    "08 three of four sentences": (
        "08", "agrees with the judge on three of the four sentences",
        "the judge dislikes all 4, the pushed policy likes 1", (),
    ),
    "08 log π alone": (
        "08", "alone picks no worse", "of eight, log π less implicit reward: +0.20 ± 0.32", ("more samples are better",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECTED)
def test_a_corrected_claim_stays_corrected(name: str):
    number, words, output, gone = CORRECTED[name]
    says(number, words)
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    printed = "".join("".join(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in outputs)
    assert output in printed
    assert not [old for old in gone if old in prose(number)]
