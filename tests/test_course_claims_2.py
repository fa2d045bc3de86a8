"""What notebooks 09 to 15 claim, weighed against all rows of data/results: one test per claim.

A claim stands in two places, in the rows and in the notebook's words. Each test computes it from the rows and then
looks for its numbers in the notebook, so that neither changes without the other.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from dpo_lab.course.saved_results import outcomes, read_jobs, read_map, read_results, recorded_runs
from dpo_lab.course.statistics import compare_at_kl, curves_of, differences_from, rewards_at_kl, seed_interval
from dpo_lab.course.statistics.jobs import difference
from dpo_lab.losses import LOSSES
from dpo_lab.worlds.pocket import JOBS
from tests.conftest import ROOT

CARRY_OVER = range(9, 16)
REAL_ROUNDS = ("offline", "semi-online-4", "online")


def notebook(number):
    (path,) = (ROOT / "notebooks").glob(f"{number:02d}_*.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def words(number):
    """The prose of a notebook in one line, without marks of emphasis."""
    text = " ".join("".join(cell["source"]) for cell in notebook(number) if cell["cell_type"] == "markdown")
    return re.sub(r"\s+", " ", text.replace("*", "").replace("`", ""))


def printed(number):
    """All that a notebook prints."""
    outputs = [output for cell in notebook(number) for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", "")) for output in outputs)


def summary(number):
    return words(number).split("What you saw")[1].split("## References")[0]


def shown(found, *, scale=1.0, digits=2):
    """A mean with its interval, as the notebooks write it."""
    mean, low, high = (f"{scale * value:.{digits}f}".replace("-", "−") for value in found[:3])
    return f"{mean} [{low}, {high}]"


def groups(pattern, text):
    """What a pattern finds in a text; the text has to hold it once."""
    (found,) = re.findall(pattern, text)
    return found


def rows_of(name):
    return read_results(f"{name}.json", f"data/experiments/{name}.py")["rows"]


def of_method(rows, method, knob):
    return sorted((row for row in rows if (row["method"], row["knob"]) == (method, knob)), key=lambda row: row["seed"])


def failures(failure, method, level=0.0, measure="reward", step=None):
    """A measure of each seed, in the order of the seeds."""
    kind = (failure, method, level, step)
    own = [
        row
        for row in rows_of("failures")
        if (*(row[n] for n in ("failure", "method", "level")), row.get("step")) == kind
    ]
    return np.array([row[measure] for row in sorted(own, key=lambda row: row["seed"])])


def gain(kind, other, measure="reward"):
    return seed_interval(failures(*kind, measure=measure) - failures(*other, measure=measure))


# ── 09 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_belief_10_is_about_the_rate_that_the_base_model_was_trained_with():
    base_rate = json.loads((ROOT / "data" / "manifest.json").read_text())["settings"]["learning_rate"]
    made, cells, _ = read_map()
    hottest = [row for row in cells if row["learning_rate"] == base_rate]
    assert len(hottest) == 3
    assert all(row["success"] < made["base"]["success"] and row["accuracy"] > 0.75 for row in hottest)
    assert max(cells, key=lambda row: row["reward"])["learning_rate"] == base_rate / 2  # the row that disagrees
    assert "At the rate at which the base model was trained, 2e-3" in summary(9)
    assert "At half that rate the map has its best cell" in summary(9)


def test_over_an_epoch_beta_decides():
    rows = rows_of("rlhf_frontier")
    base, low, middle, high = (
        of_method(rows, *kind) for kind in (("base", 0.0), ("dpo", 0.1), ("dpo", 0.5), ("dpo", 2.0))
    )
    assert len(low) == len(base) == 3
    for untrained, small, usual, large in zip(base, low, middle, high, strict=True):
        assert small["reward"] < untrained["reward"] < large["reward"] < usual["reward"]
    kl = lambda own: np.mean([row["kl"] for row in own])
    assert f"ended below the untrained model at KL {kl(low):.0f}" in summary(9)
    assert f"at KL {kl(middle):.1f}" in summary(9)


def test_two_seeds_know_their_spread_only_to_a_factor_of_three():
    _, _, repeats = read_map()
    spreads = [np.std([row["success"] for row in rows], ddof=1) for rows in repeats.values()]
    assert [len(rows) for rows in repeats.values()] == [2, 2, 2, 2]
    assert min(spreads) == 0 < max(spreads)
    assert "Two seeds in four cells know the spread only to a factor of three" in summary(9)


def test_the_panel_of_09_optimises_the_true_reward():
    (cell,) = (cell for cell in notebook(9) if "SweepPanel(\n" in "".join(cell["source"]))
    assert 'objective="reward"' in "".join(cell["source"])


# ── 10 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_lowest_held_out_loss_is_the_worst_model():
    rewards, losses = (
        {step: failures("turn", "few, β 0.1", measure=measure, step=step) for step in range(0, 61, 12)}
        for measure in ("reward", "heldout_loss")
    )
    for before, after in zip(range(0, 60, 12), range(12, 61, 12), strict=True):
        assert (losses[after] < losses[before]).all()
    assert (rewards[60] < rewards[36]).all()
    rise, fall = (rewards[36] - rewards[0]).mean(), (rewards[36] - rewards[60]).mean()
    assert rewards[60].mean() < rewards[0].mean()
    assert f"rose by {rise:.2f} and then fell by {fall:.2f}" in summary(10)
    assert "stop at its lowest" not in words(10)


def test_in_four_of_the_five_recorded_runs_the_held_out_loss_only_falls():
    runs = {run["cause"]: run for run in recorded_runs().values()}
    falls = [cause for cause, run in runs.items() if (np.diff(run["heldout_loss"]) < 0).all()]
    assert sorted(falls) == ["few pairs", "flips", "length", "sound"]
    assert runs["few pairs"]["reward"][-1] < runs["few pairs"]["reward"][0]
    assert runs["rate"]["reward"][-1] < 0


def test_nothing_is_displaced_in_the_pocket_world():
    for kind in (("sound", "dpo"), ("displacement", "dpo")):
        assert (failures(*kind, measure="chosen_change") > 0).all()
        assert len(failures(*kind)) == 5
    assert "In the pocket world nothing was displaced" in summary(10)


def test_a_wrong_reference_did_no_harm_in_forty_steps():
    for method in ("stale", "other", "dropout"):
        assert not gain(("reference", method), ("reference", "right")).leaves_out_zero
        assert (abs(failures("reference", method, measure="first_loss") - np.log(2)) > 0.03).all()
    means = [failures("reference", method).mean() for method in ("right", "stale", "other", "dropout")]
    assert "Nothing that five seeds can see: {:.2f}, {:.2f}, {:.2f} and {:.2f}".format(*means) in words(10)


def test_own_answers_did_worst_of_the_sensible_sources():
    own, other, written = (failures("off-policy", method).mean() for method in ("own", "other", "written"))
    assert own < other < written
    less = {method: gain(("off-policy", method), ("off-policy", "own")) for method in ("other", "written", "hot")}
    assert [method for method, found in less.items() if found.leaves_out_zero] == ["written", "hot"]
    assert f"better by {shown(less['written'])}" in words(10)
    assert f"taught less, {shown(less['hot'])}" in words(10)
    nats = [failures("off-policy", method, measure="nats_per_token").mean() for method in ("own", "other", "written")]
    assert max(nats) - min(nats) < 0.05
    assert f"({own:.2f} against {other:.2f} and {written:.2f})" in words(10)
    assert f"{min(nats):.2f} to {max(nats):.2f} nats per token" in words(10)


def test_three_cures_shorten_answers_and_none_is_seen_to_win_reward_back():
    biased = ("length", "dpo", 0.6)
    assert gain(biased, ("length", "dpo", 0.0)).high < 0
    clear = {method: gain(("length", method, 0.6), biased) for method in ("near", "r, α/4", "r", "sigmoid_norm", "ld")}
    assert not any(found.leaves_out_zero for found in clear.values())
    shorter = {method: gain(("length", method, 0.6), biased, "words") for method in clear}
    assert [method for method, found in shorter.items() if found.high < 0] == ["near", "r, α/4", "r"]
    for method, rest in (("near", ""), ("r, α/4", "; no; no")):
        words_less = -shorter[method].mean
        assert f"shorter by {words_less:.1f} words" in words(10)
        assert f"undecided: +{shown(clear[method])}{rest}" in words(10)
    first_three = seed_interval((failures("length", "near", 0.6) - failures(*biased))[:3])
    assert f"it was {shown(first_three)}" in words(10).replace("the same interval was", "it was")
    assert first_three.low > 0


def test_the_rate_is_guilty_and_not_the_few_pairs():
    mild, hot = failures("rate", "dpo", 2e-4), failures("rate", "dpo", 4e-3)
    assert (failures("rate", "dpo", 2e-4, "accuracy") == 1).all()
    assert (failures("rate", "dpo", 4e-3, "accuracy") == 1).all()
    assert hot.max() < 0 < mild.min()
    assert f"yes: {mild.mean():.2f} against {hot.mean():.2f}".replace("-", "−") in words(10)


def test_flips_cost_reward_and_neither_loss_wins_it_back():
    for level in (0.2, 0.4):
        assert gain(("noise", "dpo", level), ("sound", "dpo", 0.0)).high < 0
        for name in ("cdpo", "robust"):
            assert not gain(("noise", name, level), ("noise", "dpo", level)).low > 0
    robust, cdpo = (gain(("noise", name, 0.4), ("noise", "dpo", 0.4)) for name in ("robust", "cdpo"))
    assert f"no: +{shown(robust)}; {shown(cdpo)}" in words(10)


def test_the_cures_for_too_many_steps():
    last = failures("turn", "few, β 0.1", step=60)
    fresh, larger = (seed_interval(failures("turn", name, step=60) - last) for name in ("fresh, β 0.1", "few, β 1"))
    assert min(fresh.low, larger.low) > 0
    assert f"yes: +{shown(fresh)} and +{shown(larger)}" in words(10)


def test_the_cures_of_displacement_are_compared_at_one_beta_and_length():
    (cell,) = (cell for cell in notebook(10) if 'for name in ("rpo", "bco_pair", "dpop")' in "".join(cell["source"]))
    source = "".join(cell["source"])
    assert "bind(beta=0.5)" in source
    assert "steps=" not in source


# ── 11 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["clean", "noisy", "length"])
def test_the_side_by_side_cannot_show_less_than_all_that_dpo_gained(kind):
    rows = [row for row in rows_of("family") if row["stage"] == "seed"]
    of = lambda loss, labels: np.array([row["reward"] for row in sorted(rows, key=lambda row: row["seed"])
                                        if (row["loss"], row["labels"]) == (loss, labels)])  # fmt: skip
    names = [name for name in LOSSES if len(of(name, kind)) == 3]
    found = differences_from({name: of(name, kind).tolist() for name in names}, "dpo")
    whole = seed_interval(of("dpo", kind) - of("base", "none"))
    assert next(iter(found.values())).wide_half_width > 0.8 * whole.mean
    assert not whole.leaves_out_zero  # with three seeds not even dpo is seen to help
    assert (whole.mean > 0.1) == (kind == "clean")  # under noise and bias it hardly leaves the base
    assert not any(one.is_clear and one.value > 0 for one in found.values())
    assert "these runs could not have shown it" in summary(11)


# ── 12 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sound_runs():
    return [row for row in rows_of("rlhf_frontier") if row.get("well_formed", 1.0) > 0.95]


def test_ppo_on_the_true_reward_loses_to_dpo_so_its_runs_were_too_short():
    found = compare_at_kl(sound_runs(), "ppo-true", "dpo", 0.4)
    assert found.high < 0
    assert read_results("rlhf_frontier.json", "")["settings"]["rollouts"] * 128 == 3072
    assert shown(found) in words(12)
    assert "3,072 judged answers against 10,240" in summary(12)
    assert "level with PPO" not in words(12)


def gaps_at_own_kl(sound, method):
    """Judged answers → seed → reward less DPO's at the run's own KL, where DPO was measured on both sides of it."""
    curves, gaps = curves_of(sound, "dpo"), {}
    for row in (row for row in sound if row["method"] == method):
        if curves[row["seed"]][0][1] <= row["kl"] <= curves[row["seed"]][0][-1]:
            gap = row["reward"] - rewards_at_kl(sound, "dpo", row["kl"])[row["seed"]]
            gaps.setdefault(row["cost/judged_answers"], {})[row["seed"]] = gap
    return gaps


def test_with_ten_times_the_rollouts_ppo_is_above_dpo_in_every_seed_and_three_do_not_decide_it():
    sound = sound_runs()
    (gaps,) = gaps_at_own_kl(sound, "ppo-longer").values()
    found = seed_interval(gaps.values())
    assert len(gaps) == 3
    assert min(gaps.values()) > 0
    assert not found.leaves_out_zero
    assert f"+{shown(found)}" in summary(12)
    assert len(gaps_at_own_kl(sound, "rloo-true")[30_720]) == 2  # the third is beyond DPO's runs, and not compared
    rewards = [np.mean([row["reward"] for row in of_method(sound, "rloo-true", knob)]) for knob in (240, 80)]
    assert " against ".join(f"{reward:.2f}" for reward in rewards) in words(12)


def test_with_as_many_judgements_as_dpo_rl_on_the_true_reward_is_no_longer_below_it():
    sound = sound_runs()
    gaps = gaps_at_own_kl(sound, "rloo-true")
    short, long = (seed_interval(gaps[answers].values()) for answers in (3_072, 10_240))
    gained = seed_interval(gaps[10_240][seed] - gaps[3_072][seed] for seed in range(3))
    assert short.high < 0
    assert not long.leaves_out_zero
    assert gained.low > 0
    assert all(shown(found) in words(12) for found in (short, long, gained))
    assert shown(long) in summary(12)


def test_nothing_is_compared_below_the_lowest_kl_that_was_measured():
    lowest = max(kl[1:].min() for kl, _ in curves_of(sound_runs(), "dpo").values())
    assert 0.3 < lowest < 0.4
    (source,) = ("".join(cell["source"]) for cell in notebook(12) if "KLS = (" in "".join(cell["source"]))
    assert min(map(float, groups(r"KLS = \(([\d., ]+)\)", source).split(","))) >= lowest


def test_dpo_and_sft_are_level_at_the_same_kl():
    found = compare_at_kl(sound_runs(), "sft", "dpo", 0.4)
    assert not found.leaves_out_zero
    assert f"+{shown(found)}" in words(12)


# ── 13 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def jobs():
    return read_jobs()[1]


def others_than_tools(jobs, policy):
    return np.concatenate([outcomes(jobs, policy, job) for job in JOBS if job != "tools"], axis=1)


def points(found):
    return shown(found, scale=100, digits=1)


def test_dpo_forgets_less_than_sft(jobs):
    of = lambda method, trained="tools": others_than_tools(jobs, (method, trained))
    sft, dpo = (difference(of(method), of("base", "nothing")) for method in ("SFT", "DPO"))
    less = difference(of("DPO"), of("SFT"))
    assert sft.high < 0
    assert dpo.low < 0 < dpo.high
    assert less.low > 0
    assert f"+{points(dpo)}" in summary(13)
    assert f"{-100 * sft[0]:.1f} points [{-100 * sft[2]:.1f}, {-100 * sft[1]:.1f}]" in summary(13)
    assert f"{100 * less[0]:.1f} points [{100 * less[1]:.1f}, {100 * less[2]:.1f}]" in words(13)


def test_its_price_dpo_after_sft_does_not_bring_the_other_jobs_back(jobs):
    both = difference(others_than_tools(jobs, ("SFT + DPO", "tools")), others_than_tools(jobs, ("base", "nothing")))
    assert both.high < 0
    assert points(both) in words(13)
    after_sft, after_both = (
        int(groups(rf"(?m)^{name}: success (\d+)%", printed(13))) for name in ("SFT", r"SFT \+ DPO")
    )
    assert after_both < after_sft
    assert f"it lowered success from {after_sft} to {after_both} %" in summary(13)


def test_a_second_pass_costs_success_on_new_attacks(jobs):
    new = lambda method, trained="all": outcomes(jobs, (method, trained), "new", "attacks")
    against_dpo = difference(new("DPO"), new("SFT + DPO"))
    against_sft = difference(new("SFT"), new("SFT + DPO"))
    twice = difference(new("DPO"), new("DPO", "all twice"))
    assert min(against_dpo.low, against_sft.low, twice.low) > 0
    for found in (against_dpo, against_sft, twice):
        mean, low, high = (f"{100 * value:.1f}" for value in found[:3])
        assert re.search(rf"{mean}( points)? \[{low}, {high}\]", words(13))


def test_sft_on_tools_costs_formats(jobs):
    lost = difference(outcomes(jobs, ("base", "nothing"), "format"), outcomes(jobs, ("SFT", "tools"), "format"))
    assert lost.low > 0
    assert points(lost) in words(13)


# ── 14 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kappa_is_reported_without_the_ties_that_both_know():
    text = printed(14)
    with_ties = float(groups(r"Cohen's kappa ([\d.]+)", text))
    without = float(groups(r"without them they agree on \d+%, kappa ([\d.]+)", text))
    assert without < with_ties - 0.2
    assert f"here from {without:.2f} to {with_ties:.2f}" in summary(14)


def test_the_arena_hardly_decides():
    share, low, high = map(int, groups(r"with ties as half a win (\d+)% \[(\d+)%, (\d+)%\]", printed(14)))
    assert low <= 50 < high
    assert f"hardly decided it: {share} % [{low}, {high}]" in summary(14)


# ── 17 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_on_smollm2_the_samplers_do_not_differ_and_all_learn():
    rows = rows_of("real_rounds")
    met = {name: [row["demands_met"] for row in rows if row["method"] == name] for name in ("base", *REAL_ROUNDS)}
    learnt = [share for name in REAL_ROUNDS for share in met[name]]
    assert all(len(shares) == 2 for shares in met.values())
    assert min(learnt) > max(met["base"]) + 0.02
    assert max(learnt) - min(learnt) < 0.05  # offline alone spans most of it
    assert f"met {min(learnt):.0%} to {max(learnt):.0%}".replace("%", " %").replace(" % to", " to") in summary(17)
    pairs = {name: [row["pairs"] for row in rows if row["method"] == name] for name in REAL_ROUNDS}
    assert "offline DPO {} and {}".format(*pairs["offline"]) in words(17)
    assert max(pairs["semi-online-4"] + pairs["online"]) < min(pairs["offline"])


# ── what carries over ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", CARRY_OVER)
def test_a_summary_says_what_carries_over_and_what_does_not(number):
    assert "What carries over to real models." in summary(number)
    assert "What is this world's:" in summary(number)


def test_what_they_say_of_the_real_model_is_in_its_rows():
    rows = [row for row in rows_of("real_preferences") if row["set"] == "instruction-polite"]
    mean = lambda method, measure: np.mean([row[measure] for row in rows if row["method"] == method])
    usual, hot = (100 * mean(method, "accuracy") for method in ("DPO", "DPO, high rate"))
    assert f"raised accuracy from {usual:.0f} to {hot:.0f} %" in summary(9)
    fell = mean("DPO", "chosen_change") - mean("DPO, high rate", "chosen_change")
    assert f"lost {fell:.0f} nats" in summary(9)
    cost = 100 * (mean("DPO, high rate", "perplexity_ratio") - 1)
    assert f"{cost:.0f} % of perplexity" in summary(9)
    assert f"{cost:.0f} % of perplexity" in summary(10)
