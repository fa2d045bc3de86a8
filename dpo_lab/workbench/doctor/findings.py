"""What is wrong with a run: one function per cause, from a log to a finding or None.

`CAUSES` says in words what each means and what to try. Margins and rewards are in β × nats, log-probs in nats per
answer. Thresholds are numbers that mean something (log 2, odds, nats), and none is fitted to a log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from dpo_lab.workbench.doctor.reading import Log, read_log

Level = Literal["problem", "warning", "note"]
Sureness = Literal["certain", "likely", "possible"]
LEVELS, SURENESS = Level.__args__, Sureness.__args__

LOG_2 = math.log(2)
AT_START = 0.02  # β × nats: beyond the rounding of bfloat16; exactly 0 is right before the first step
NEAR_LOG_2, NO_MARGIN = 0.005, 0.05  # nats per pair below log 2, which is a margin of 0.01; β × nats, batches are noisy
FEWEST_STEPS = 20  # a warm-up and little more
ALL_RIGHT, NO_LOSS = 0.99, 0.1  # a loss of 0.1 is a margin of 2.3: odds of ten to one on the average pair
SURE = 7.0  # margin: odds of a thousand to one, and no label is so certain
GROWS = 0.25  # β × nats from the middle third to the last; pairs that can all be ranked right give log 5/3 = 0.5
FALLEN = 5.0  # nats: an answer is 150 times less likely
SHARED = 0.5  # share of the rejected answers' fall that the chosen ones fall too
FAR = 50.0  # nats per answer: samples of the policy that the reference practically never gives
HELD_OUT_RISE = 0.05  # nats per pair above the lowest held-out loss
GAP = 0.3  # nats per pair between the held-out loss and that of training
WORSE = 0.1  # nats per pair above log 2: the average pair is ranked wrong by a margin of 0.2
SPIKE = 5.0  # times the median of the ten steps before
LONGER = 1.25  # mean length of answers, end over start
CLIPPED, FAR_ABOVE = 0.95, 10.0  # share of steps; times the limit
WITHOUT_REFERENCE = ("simpo", "orpo", "cpo", "simper")


@dataclass(frozen=True)
class Cause:
    """What a finding means, for a reader. `notebook` and `panels`: where it is shown, what to look at."""

    title: str
    means: str
    remedy: str
    notebook: str
    panels: tuple[str, ...]


FAILS, KNOBS, LOOP = "10_when_dpo_fails", "09_hyperparameters", "06_training_loop"
CAUSES: dict[str, Cause] = {  # of equal weight, the earlier is more often the cause and the later its symptom
    "not_finite": Cause(
        "Values are not finite",
        "An overflow (float16 above all), a learning rate that is too high, or a row without any scored token.",
        "Train in bfloat16 or float32, lower the learning rate, lengthen the warm-up, and look at that step's rows.",
        LOOP, ("loss", "grad_norm"),
    ),
    "wrong_reference": Cause(
        "Rewards do not start at zero",
        "Before the first step policy and reference are one model, so every reward is 0 and the loss is log 2. Here "
        "the reference is another model, its log-probs are stale, or one of the two has its dropout on.",
        "Score the reference again, from the weights that training starts with, in evaluation mode. Check that the "
        "first loss is 0.6931.",
        FAILS, ("rewards", "loss"),
    ),
    "stuck": Cause(
        "The loss stays at log 2",
        "The policy does not learn to tell the answers apart: the learning rate is far too low, the weights are "
        "frozen, chosen and rejected are cut to the same tokens, or the labels are random.",
        "Raise the learning rate tenfold. See that weights require a gradient, and look at some rows as tokens "
        "(dpo-lab inspect): do chosen and rejected differ?",
        LOOP, ("loss", "margins"),
    ),
    "learning_rate": Cause(
        "The learning rate is too high",
        "Steps overshoot: the loss jumps above that of an untrained model, or the log-probs of both answers collapse. "
        "Pairs may be ranked well all the same, while answers fall apart.",
        "Take a tenth of the learning rate and a longer warm-up, then read some answers.",
        KNOBS, ("loss", "grad_norm", "logps_chosen", "logps_rejected"),
    ),
    "overfitting": Cause(
        "The held-out loss leaves the training loss",
        "The policy memorises its pairs; what it learns of them no longer holds for others.",
        "Train one epoch, find more pairs, or take a larger β. Choose the checkpoint by its answers: the one with the "
        "lowest held-out loss may write badly.",
        FAILS, ("loss", "accuracy"),
    ),
    "margins": Cause(
        "Margins grow without end",
        "Nothing holds the policy back: pairs that are ranked right are pushed on, at the cost of everything else. "
        "People who agree nine times in ten justify a margin of 2.2.",
        "Stop earlier. Take fewer epochs, a larger β, label smoothing, or a loss with a target (ipo).",
        FAILS, ("margins", "rewards"),
    ),
    "memorised": Cause(
        "Every training pair is ranked right and the loss is near 0",
        "The pairs are memorised, or too easy, or a shortcut such as length tells them apart. The curve alone cannot "
        "say which.",
        "Measure accuracy on held-out pairs (low: memorised) and by length alone (high: a shortcut). Then fewer epochs "
        "or more pairs; harder pairs; or pairs of equal length.",
        FAILS, ("accuracy", "loss"),
    ),
    "kl": Cause(
        "The policy has gone far from the reference",
        "β does not bound the KL, it only prices it: many steps, a high learning rate or a small β lead far away, and "
        "what the pairs do not show is lost on the way.",
        "Take a larger β, fewer steps or a lower learning rate, and read some answers.",
        FAILS, ("rewards", "logps_chosen"),
    ),
    "displacement": Cause(
        "Chosen and rejected answers become less likely together",
        "Likelihood displacement: the margin grows because the rejected answer falls faster, and the probability goes "
        "to answers that nobody compared. Harmless if those are good, as they often are.",
        "Read some answers. If they got worse: drop pairs that are nearly alike, add the chosen answer's likelihood "
        "(rpo, or dpo:1 sft:0.1), or try dpop.",
        FAILS, ("rewards", "logps_chosen", "logps_rejected"),
    ),
    "length": Cause(
        "Answers grow longer",
        "The labels prefer the longer answer more often than its quality explains, and the policy learns that.",
        "Count how often the longer answer is chosen. Pairs of equal length, ld_alpha, or sigmoid_norm.",
        FAILS, ("answer_length",),
    ),
    "too_short": Cause(
        "Training ended too early",
        "The run stopped before its last step, or has so few that the learning rate had hardly risen.",
        "Go on from the last checkpoint, or train for more steps.",
        KNOBS, ("loss", "learning_rate"),
    ),
    "clipped": Cause(
        "The gradient is clipped at every step",
        "The limit sets the step's length then, and no longer the gradient. Adam hides it; with SGD the learning rate "
        "has lost its meaning.",
        "Raise max_grad_norm above the usual norm, so that it catches outliers only.",
        LOOP, ("grad_norm",),
    ),
    "beta": Cause(
        "Rewards and margins of the two runs cannot be compared",
        "Both are in β × nats, so another β changes them without any change of the policy; so do losses.",
        "Compare accuracies, log-probs, KL, or rewards divided by β.",
        KNOBS, ("margins",),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One cause, with the numbers that point to it. A note is worth knowing and no alarm."""

    cause: str
    level: Level
    sureness: Sureness
    seen: str

    @property
    def words(self) -> Cause:
        """What it means, what to try, where it is shown."""
        return CAUSES[self.cause]


@dataclass(frozen=True)
class Diagnosis:
    """Findings in order of weight; `vitals` are the numbers that show how the run went, healthy or not."""

    log: Log
    findings: tuple[Finding, ...]
    vitals: tuple[str, ...]
    unchecked: tuple[str, ...]  # what could not be looked at, and why

    @cached_property
    def panels(self) -> tuple[str, ...]:
        """The curves that matter: those of the findings, or of any run, as far as they were logged."""
        from dpo_lab.workbench.plots.curves import panels_of

        wanted = [name for finding in self.findings for name in finding.words.panels] or ["loss", "accuracy", "rewards"]
        drawn = panels_of(self.log.rows())
        return tuple(dict.fromkeys(name for name in wanted if name in drawn)) or tuple(drawn[:1])


def diagnose(path: str | Path, other: str | Path | None = None) -> Diagnosis:
    """Read a log and say what is wrong with the run; with another log, also what cannot be compared."""
    log = read_log(path)
    found = [finding for check in CHECKS if (finding := check(log))]
    if other is not None:
        found += [one for one in [incomparable(log, read_log(other))] if one]
    order = list(CAUSES)
    found.sort(key=lambda one: (LEVELS.index(one.level), SURENESS.index(one.sureness), order.index(one.cause)))
    return Diagnosis(log, tuple(found), vitals(log), unchecked(log))


# ── reading curves ───────────────────────────────────────────────────────────────────────────────────────────────────


def parts_of(values: np.ndarray, num: int) -> list[float]:
    """Means of `num` successive parts of a curve: batches are noisy, single steps say little."""
    return [float(part.mean()) for part in np.array_split(values, num)]


def ends(values: np.ndarray) -> tuple[float, float]:
    """Means of the first and the last tenth, at least one value each."""
    num = max(1, len(values) // 10)
    return float(values[:num].mean()), float(values[-num:].mean())


def change(log: Log, metric: str) -> float | None:
    """End minus start: of held-out data where it was scored twice, since they stay the same; else of training batches,
    0 where it is within two standard errors of them, None where there are fewer than ten."""
    held = log.values(f"eval_{metric}")
    if len(held) >= 2:
        return float(held[-1] - held[0])
    values = log.values(metric)
    if len(values) < 10:
        return None
    num = max(3, len(values) // 10)
    first, last = values[:num], values[-num:]
    difference = float(last.mean() - first.mean())
    return difference if abs(difference) > 2 * math.sqrt((first.var() + last.var()) / num) else 0.0


def beta_of(log: Log) -> float | None:
    """β: as the log states it, or from held-out data, whose rewards change by β times the change of the log-probs."""
    if isinstance(beta := log.facts.get("beta"), int | float):
        return float(beta)
    for side in ("chosen", "rejected"):
        rewards, logps = (log.values(f"eval_{name}/{side}") for name in ("rewards", "logps"))
        if len(rewards) >= 2 and len(rewards) == len(logps) and abs(logps[-1] - logps[0]) > 0.1:
            return float((rewards[-1] - rewards[0]) / (logps[-1] - logps[0]))
    return None


def nats_moved(log: Log, side: str) -> float | None:
    """Change of the answers' log-prob, nats per answer. From rewards and β where both are known: the reference in them
    cancels how likely the answers of a batch are."""
    beta, rewards = beta_of(log), change(log, f"rewards/{side}")
    return rewards / beta if beta and rewards is not None else change(log, f"logps/{side}")


def starts_at_log_2(log: Log) -> bool:
    """Whether the loss is one that begins at log 2, as DPO's does, and rewards were logged."""
    loss = log.values("loss")
    return len(loss) > 0 and len(log.values("rewards/accuracies")) > 0 and abs(loss[0] - LOG_2) < 0.05


def is_without_reference(log: Log) -> bool:
    """Whether rewards are β·log π, as with SimPO, ORPO and CPO: they are in a fixed ratio to the log-probs then."""
    if log.facts.get("loss") in WITHOUT_REFERENCE:
        return True
    rewards, logps = log.values("rewards/chosen"), log.values("logps/chosen")
    if len(rewards) < 3 or len(rewards) != len(logps) or not logps.all():
        return False
    ratios = rewards / logps
    return bool(np.ptp(ratios) < 0.02 * abs(ratios.mean()))


# ── one function per cause ───────────────────────────────────────────────────────────────────────────────────────────


def not_finite(log: Log) -> Finding | None:
    """Any NaN or infinity. transformers logs a loss of 0 for a NaN, but its gradient norm tells."""
    for metric, (steps, values) in log.series.items():
        if (bad := ~np.isfinite(values)).any():
            seen = f"{metric} is {values[bad][0]} at step {steps[bad][0]}, the first of {bad.sum()} such values."
            skipped = metric == "grad_norm" and bad.sum() == 1  # float16's scaler skips such a step
            return Finding("not_finite", "warning" if skipped else "problem", "certain", seen)
    return None


def wrong_reference(log: Log) -> Finding | None:
    """Rewards off zero by more than AT_START before any step; of a later first row, by more than training moves them
    from there to the next row."""
    if is_without_reference(log):
        return None
    for prefix in ("eval_", ""):
        rewards = {side: log.series.get(f"{prefix}rewards/{side}") for side in ("chosen", "rejected")}
        found = {side: (int(one[0][0]), *map(float, one[1][:2])) for side, one in rewards.items() if one}
        for side, (step, first, *following) in found.items():
            exact = step == 0 or (step == 1 and not prefix)
            if prefix and not exact:
                continue
            allowed = AT_START if exact else AT_START + 2 * abs(first - (following or [0.0])[0])
            if abs(first) > allowed:
                seen = f"The first reward of {side} answers is {first:+.3f} at step {step}; 0 is right before training."
                return Finding("wrong_reference", "problem", "certain" if exact else "likely", seen)
    return None


def stuck(log: Log) -> Finding | None:
    """Over the last third, after FEWEST_STEPS, NO_MARGIN and a loss from NEAR_LOG_2 below log 2 to WORSE above it."""
    if not starts_at_log_2(log) or log.last_step < FEWEST_STEPS or len(loss := log.values("loss")) < 3:
        return None
    late = parts_of(loss, 3)[-1]
    gaps = log.values("rewards/margins")
    if not LOG_2 - NEAR_LOG_2 <= late <= LOG_2 + WORSE or (len(gaps) >= 3 and abs(parts_of(gaps, 3)[-1]) > NO_MARGIN):
        return None
    seen = f"Over the last third the loss is {late:.4f} on average, and log 2 is {LOG_2:.4f}."
    rewards = np.concatenate([log.values("rewards/chosen"), log.values("rewards/rejected")])
    if len(rewards) and not rewards.any():
        return Finding("stuck", "problem", "certain", f"{seen} All rewards are exactly 0: no weight moves, or the "
                       "reference is the policy itself.")  # fmt: skip
    if len(norm := log.values("grad_norm")) and norm.max() < 1e-6:
        return Finding("stuck", "problem", "certain", f"{seen} The gradient is 0: both answers are the same tokens.")
    moved = f" Rewards move (by up to {np.abs(rewards).max():.2g}), the margin does not." if len(rewards) else ""
    return Finding("stuck", "problem", "likely", seen + moved)


def learning_rate(log: Log) -> Finding | None:
    """A tenth of the run whose mean loss is WORSE than that of an untrained policy; surer with gradient norms that are
    SPIKE times the median of the ten before."""
    loss, norm = log.values("loss"), log.values("grad_norm")
    if not starts_at_log_2(log) or len(loss) < FEWEST_STEPS or (worst := max(parts_of(loss, 10))) < LOG_2 + WORSE:
        return None
    spikes = sum(norm[i] > SPIKE * np.median(norm[i - 10 : i]) for i in range(10, len(norm)))
    seen = (
        f"Over a tenth of the run the loss is {worst:.3f} on average ({loss.max():.3g} at most); log 2 is {LOG_2:.3f}."
    )
    if spikes:
        seen += f" {spikes} of {len(norm)} gradient norms are {SPIKE:g} times the median of the ten before."
    return Finding("learning_rate", "problem", "certain" if spikes else "likely", seen)


def overfitting(log: Log) -> Finding | None:
    """A held-out loss HELD_OUT_RISE above its lowest while that of training falls, or GAP above it at the end."""
    held, loss = log.values("eval_loss"), log.values("loss")
    if len(held) < 2 or len(loss) < 3:
        return None
    first, last = ends(loss)
    steps, held_values = log.series["eval_loss"]
    rise = float(held[-1] - held.min())
    if last < first and rise > HELD_OUT_RISE and last < held[-1]:
        step = int(steps[held_values == held.min()][0])
        seen = f"The held-out loss was lowest at step {step} ({held.min():.3f}) and ends at {held[-1]:.3f}; that of "
        return Finding("overfitting", "problem" if held[-1] > held[0] else "warning", "certain",
                       f"{seen}training ends at {last:.3f}.")  # fmt: skip
    if held[-1] - last > GAP:
        seen = f"At the end the held-out loss is {held[-1]:.3f} and that of training {last:.3f}."
        return Finding("overfitting", "warning", "certain", seen)
    return None


def margins(log: Log) -> Finding | None:
    """A margin beyond SURE that grows on from the middle third to the last."""
    values = log.values("rewards/margins")
    if len(values) < 6:
        return None
    _, middle, late = parts_of(values, 3)
    _, last = ends(values)
    if last < SURE or late < middle + GROWS:
        return None
    return Finding("margins", "warning", "certain", f"The mean margin is {last:.1f} at the end, {late:.1f} over the "
                   f"last third and {middle:.1f} over the one before.")  # fmt: skip


def memorised(log: Log) -> Finding | None:
    """Over the last tenth an accuracy of ALL_RIGHT and a loss below NO_LOSS."""
    accuracy, loss = log.values("rewards/accuracies"), log.values("loss")
    if len(accuracy) < 3 or len(loss) < 3 or ends(accuracy)[1] < ALL_RIGHT or ends(loss)[1] > NO_LOSS:
        return None
    seen = f"Over the last tenth accuracy is {ends(accuracy)[1]:.3f} and the loss {ends(loss)[1]:.4f}."
    if len(held := log.values("eval_rewards/accuracies")):
        what = "memorised" if held[-1] < 0.9 else "too easy, or a shortcut that held-out pairs share"
        seen += f" Accuracy on held-out pairs is {held[-1]:.3f}: {what}."
    return Finding("memorised", "warning", "certain" if len(held) else "likely", seen)


def kl(log: Log) -> Finding | None:
    """A measured KL beyond FAR; where none was measured, chosen answers that are FAR less likely."""
    for name in ("eval_kl", "kl"):
        if len(values := log.values(name)):
            seen = f"The KL from the reference is {values[-1]:.1f} nats per answer."
            return Finding("kl", "problem", "certain", seen) if values[-1] > FAR else None
    moved = nats_moved(log, "chosen")
    if moved is None or moved > -FAR:
        return None
    return Finding("kl", "warning", "possible", f"Chosen answers have lost {-moved:.0f} nats each; no KL was measured.")


def displacement(log: Log) -> Finding | None:
    """Chosen answers that lose FALLEN nats, and SHARED of what the rejected ones lose."""
    chosen, rejected = nats_moved(log, "chosen"), nats_moved(log, "rejected")
    if chosen is None or rejected is None or chosen > -FALLEN or chosen > SHARED * rejected or chosen < rejected:
        return None
    is_held = len(log.values("eval_rewards/chosen")) >= 2 or len(log.values("eval_logps/chosen")) >= 2
    return Finding("displacement", "warning", "certain" if is_held else "likely", f"Log-probs moved by {chosen:+.1f} "
                   f"nats per chosen answer and {rejected:+.1f} per rejected one.")  # fmt: skip


def length(log: Log) -> Finding | None:
    """Answers LONGER at the end than at the start."""
    for name in ("eval_answer_length", "answer_length"):
        if len(values := log.values(name)) >= 2 and (last := ends(values)[1]) > LONGER * (first := ends(values)[0]):
            sureness = "likely" if len(values) >= 10 else "possible"
            return Finding("length", "warning", sureness, f"Sampled answers grew from {first:.1f} to {last:.1f}.")
    return None


def too_short(log: Log) -> Finding | None:
    """Stopped before the planned last step, or while a falling learning rate was not near 0; or under FEWEST_STEPS."""
    planned, rate = log.facts.get("num_steps"), log.values("learning_rate")
    if isinstance(planned, int | float) and log.last_step < 0.95 * planned:
        return Finding("too_short", "warning", "certain", f"The log ends at step {log.last_step} of {planned:g}.")
    if log.last_step < FEWEST_STEPS:
        return Finding("too_short", "warning", "likely", f"The run has {log.last_step} steps.")
    if len(rate) >= 10 and rate[-1] < rate[-3] and rate[-1] > 0.2 * rate.max():
        return Finding("too_short", "warning", "likely", f"The learning rate was falling to 0, and the log ends at "
                       f"{rate[-1] / rate.max():.0%} of its peak.")  # fmt: skip
    return None


def clipped(log: Log) -> Finding | None:
    """Gradient norms above the limit in CLIPPED of the steps, and a warning where they are mostly FAR_ABOVE it. Where
    the log has no limit, transformers' 1 is assumed, and only the latter is said."""
    norm, limit = log.values("grad_norm"), log.facts.get("max_grad_norm")
    assumed = 1.0 if limit is None else limit
    if len(norm) < 10 or (share := float((norm > assumed).mean())) < CLIPPED:
        return None
    is_far = float(np.median(norm)) > FAR_ABOVE * assumed
    seen = f"{share:.0%} of the gradient norms are above {assumed:g} (median {np.median(norm):.3g})."
    if limit is None:
        seen += " The log does not state the limit; 1 is the usual one."
        return Finding("clipped", "warning", "possible", seen) if is_far else None
    return Finding("clipped", "warning" if is_far else "note", "certain", seen)


CHECKS: tuple[Callable[[Log], Finding | None], ...] = (
    not_finite, wrong_reference, stuck, learning_rate, overfitting, margins, memorised, kl, displacement, length,
    too_short, clipped,
)  # fmt: skip


def incomparable(log: Log, other: Log) -> Finding | None:
    """A note where two runs have different β, or one is not known."""
    one, two = beta_of(log), beta_of(other)
    if one and two and abs(one - two) < 0.02 * one:
        return None
    named = lambda beta: "not known" if beta is None else f"{beta:.3g}"
    return Finding("beta", "note", "certain" if one and two else "possible",
                   f"β is {named(one)} here and {named(two)} in {other.place}.")  # fmt: skip


# ── what is said of any run ──────────────────────────────────────────────────────────────────────────────────────────


def vitals(log: Log) -> tuple[str, ...]:
    """The numbers that show how a run went, as far as they were logged."""
    numbers = []
    for metric, name in (("loss", "loss"), ("eval_loss", "held-out loss"), ("eval_rewards/accuracies", "held-out "
                         "accuracy"), ("rewards/accuracies", "accuracy"), ("rewards/margins", "margin")):  # fmt: skip
        if len(values := log.values(metric)):
            numbers.append("{} {:.3f} → {:.3f}".format(name, *(ends(values))))
    if (moved := nats_moved(log, "chosen")) is not None:
        numbers.append(f"log-prob of chosen answers {moved:+.1f} nats")
    return tuple(numbers)


def unchecked(log: Log) -> tuple[str, ...]:
    """What a log without some metrics cannot show."""
    needs = {
        "rewards/chosen": "where rewards start and go",
        "eval_loss": "whether held-out pairs are ranked as well as training pairs",
        "grad_norm": "gradients",
        "kl": "the KL on sampled answers",
        "answer_length": "the length of answers",
    }
    have = {name.removeprefix("eval_") if name != "eval_loss" else name for name in log.series}
    return tuple(f"{what} (no {name})" for name, what in needs.items() if name not in have)
