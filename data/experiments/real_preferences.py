"""DPO on preferences of people with a real model: `python data/experiments/real_preferences.py --sets FILE...`.

Every policy starts from SmolLM2-135M-Instruct and learns from pairs that it did not write itself:

    base                       nothing is trained: which answer does the model find likelier, and what does length say?
    DPO                        on the pairs, all weights
    SFT                        cross-entropy on the chosen answers of the same pairs
    DPO, flipped               a share of the training labels is flipped
    robust, flipped            the loss that undoes flips, given their share (only on the last of the sets)
    DPO, high rate             the learning rate × 10 (only on the last of the sets: give the one with short pairs last)

Each is judged on held-out pairs, other ones for each seed, and on plain text. Of a pair only numbers are saved: the
texts of some sets are offensive. Rows go to data/results/real_preferences.json; the page beside it ends with lessons
of notebooks 03, 06, 08 and 10, and whether they hold here, which is computed from the rows.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, Cell, Experiment, Result, carry_out, parser

from dpo_lab import DPOConfig, ReferenceCache, SFTConfig, load_policy, train_dpo, train_sft
from dpo_lab.batching import make_batch
from dpo_lab.course.saved_results import numbers
from dpo_lab.course.statistics import margin_parts, seed_interval, tokens_for_half
from dpo_lab.logprobs import Scorer, score, sum_per_sequence
from dpo_lab.loop import Step
from dpo_lab.preferences import TokenData, read_preferences, tokenize_pairs
from dpo_lab.reference import CachedLogps
from dpo_lab.workbench.evaluation import (
    calibration,
    coin_sides,
    fit_temperature,
    length_share,
    run_suites,
    sigmoid,
    token_rewards,
)
from dpo_lab.workbench.evaluation.intervals import Measured, ratio, share
from dpo_lab.workbench.labels.results import wilson

PRECISION = "bfloat16"
TOKENS_PER_PASS = 2048  # two processes fit into 24 GB
FOR_ALL = ("base", "DPO", "SFT", "DPO, flipped")
FOR_THE_LAST = ("robust, flipped", "DPO, high rate")
TURNS = re.compile(r"\n\n(Human|Assistant):")
LESSONS_BEGIN = "\n## Ranked right"
SAME = 0.05  # accuracies that differ by less count as the same


def cells(seeds: int, sets: Sequence[str]) -> list[Cell]:
    """Everything that is to be run, the seeds one after the other."""
    return [{"set": name, "method": method, "seed": seed} for seed in range(seeds)
            for method in FOR_ALL + FOR_THE_LAST for name in sets
            if method in FOR_ALL or name == sets[-1]]  # fmt: skip


# ── the pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def set_name(path: Path) -> str:
    """What a set is called in the rows: the name of its file up to the first dot."""
    return path.name.split(".")[0]


def as_conversation(row: Result) -> Result | None:
    """A transcript of Human and Assistant as messages, so that the model reads it in its own format; None where that
    cannot be: an answer without words, or one with a further turn inside. Rows of messages stay as they are."""
    if not isinstance(row["prompt"], str):
        return {name: row[name] for name in ("prompt", "chosen", "rejected")}
    first, *parts = TURNS.split(row["prompt"])
    roles, texts = parts[::2], [text.strip() for text in parts[1::2]]
    answers = [row[side].strip() for side in ("chosen", "rejected")]
    if first.strip() or roles[-1:] != ["Assistant"] or texts[-1] or not all(texts[:-1]):
        return None
    if not all(answers) or any(TURNS.search(row[side]) for side in ("chosen", "rejected")):
        return None
    named = {"Human": "user", "Assistant": "assistant"}
    prompt = [{"role": named[role], "content": text} for role, text in zip(roles[:-1], texts[:-1], strict=True)]
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def usable(rows: Sequence[Result]) -> tuple[list[Result], Counter[str]]:
    """The pairs of a set, one for each prompt, and how many were left out and why."""
    kept, left_out, prompts = [], Counter(), set()
    for row in rows:
        pair = as_conversation(row)
        if pair is None:
            left_out["no_conversation"] += 1
        elif pair["chosen"] == pair["rejected"]:
            left_out["identical"] += 1
        elif (prompt := repr(pair["prompt"])) in prompts:
            left_out["repeated_prompt"] += 1
        else:
            prompts.add(prompt)
            kept.append(pair)
    return kept, left_out


def split(number: int, seed: int, *, held_out: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the held-out pairs and of the training pairs of a seed. No two seeds share a held-out pair."""
    order = np.random.default_rng(0).permutation(number)
    held = order[seed * held_out : (seed + 1) * held_out]
    rest = np.setdiff1d(order, held)
    if len(held) < held_out or len(rest) < pairs:
        raise SystemExit(f"a set has {number} usable pairs, and seed {seed} needs {(seed + 1) * held_out} to have its "
                         f"own held-out ones and {pairs} to learn from; ask for fewer pairs or seeds")  # fmt: skip
    return held, np.random.default_rng(seed + 1).permutation(rest)[:pairs]


def flips(number: int, share_of_flips: float, seed: int) -> np.ndarray:
    """Which labels are flipped, (number,): as many as the share says, drawn by the seed."""
    turned = np.zeros(number, bool)
    turned[np.random.default_rng(1000 + seed).permutation(number)[: round(share_of_flips * number)]] = True
    return turned


def with_flips(data: TokenData, turned: np.ndarray) -> TokenData:
    """The pairs with these labels flipped."""
    rows = [data.row(i) for i in range(len(data))]
    return TokenData.from_rows((row.prompt, row.completions[::-1] if is_turned else row.completions)
                               for row, is_turned in zip(rows, turned, strict=True))  # fmt: skip


class Known:
    """Log-probs that were computed before, in the place of a cache."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def logps(self, model: Any, data: TokenData, **options: Any) -> CachedLogps:
        assert len(data) == len(self.values), f"{len(data)} pairs, and log-probs of {len(self.values)}"
        return CachedLogps(self.values, len(data), 0)


# ── one run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Lab:
    """What the cells share: the base, the pairs of each set, and the cache of the base's log-probs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.base, self.tokenizer = load_policy(arguments.model, device=arguments.device)
        self.sets: dict[str, tuple[list[Result], dict[str, int]]] = {}
        for path in arguments.sets:
            rows, report = read_preferences(path)
            pairs, left_out = usable(rows)
            left_out["identical"] += len(report.identical)
            self.sets[set_name(path)] = pairs, {"rows_read": report.rows_read} | dict(left_out)
        arguments.work.mkdir(parents=True, exist_ok=True)
        self.cache = ReferenceCache(arguments.work / "real-preferences.sqlite")

    def run(self, cell: Cell) -> Result:
        held, train, counts = self.data(cell["set"], cell["seed"])
        reference = [self.cache.logps(self.base, part, precision=PRECISION).values for part in (held, train)]
        if cell["method"] == "base":
            return before_training(held, reference[0]) | counts | self.drags(train) | self.plain_text(self.base)
        model, turned = copy.deepcopy(self.base), np.zeros(len(train), bool)
        if "flipped" in cell["method"]:
            turned = flips(len(train), self.arguments.flips, cell["seed"])
        row = self.trained(model, cell, train, reference[1], turned) | self.judged(model, held, reference[0])
        own = min(len(held), len(train))  # of the training pairs as many as are held out
        moved = score(model, train.select(range(own)), precision=PRECISION) - reference[1][:own]
        margins = self.arguments.beta * (moved[:, 0] - moved[:, 1])
        row |= {"train_accuracy_clean": ranked_right(margins)["value"], "train_margins": text_of(margins, 3)}
        row |= {"train_accuracy": ranked_right(np.where(turned[:own], -margins, margins))["value"],
                "train_flips": "".join(str(int(is_turned)) for is_turned in turned[:own])}  # fmt: skip
        row["flip_estimate"] = flip_rate(row["accuracy"], row["train_accuracy"])
        if cell["method"] == "DPO":
            row |= self.places(model, held)
        row |= self.plain_text(model)
        del model
        gc.collect()
        return row

    def data(self, name: str, seed: int) -> tuple[TokenData, TokenData, dict[str, int]]:
        """Held-out and training pairs as token ids, and what was left out or shortened."""
        options = self.arguments
        pairs, counts = self.sets[name]
        found, shortened = [], Counter()
        for places in split(len(pairs), seed, held_out=options.held_out, pairs=options.pairs):
            tokens, report = tokenize_pairs([pairs[i] for i in places], self.tokenizer, max_length=options.max_length)
            shortened["prompts_shortened"] += report.prompts_shortened
            shortened["answers_cut"] += report.completions_cut
            shortened["identical_when_cut"] += len(report.identical)
            found.append(tokens)
        return found[0], found[1], counts | {"usable": len(pairs)} | dict(shortened)

    def trained(self, model: Any, cell: Cell, data: TokenData, reference: np.ndarray, turned: np.ndarray) -> Result:
        """Train `model` in place; what its curve says."""
        options, method = self.arguments, cell["method"]
        shared: dict[str, Any] = {
            "seed": cell["seed"], "device": options.device, "precision": PRECISION, "epochs": options.epochs,
            "batch_size": options.batch_size, "max_steps": options.max_steps, "max_length": options.max_length,
            "tokens_per_pass": TOKENS_PER_PASS,
        }  # fmt: skip
        began = time.perf_counter()
        if method == "SFT":
            rows = [data.row(i) for i in range(len(data))]
            examples = TokenData.from_rows((row.prompt, row.completions[:1]) for row in rows)
            config = SFTConfig(learning_rate=options.sft_learning_rate, **shared)
            events = train_sft(model, self.tokenizer, examples, config)
        else:
            rate = options.learning_rate * (10 if "high rate" in method else 1)
            loss: dict[str, Any] = {"loss": "robust", "label_smoothing": options.flips} if "robust" in method else {}
            config = DPOConfig(beta=options.beta, learning_rate=rate, **loss, **shared)
            values = np.where(turned[:, None], reference[:, ::-1], reference)
            events = train_dpo(model, self.tokenizer, with_flips(data, turned), config, cache=Known(values))  # type: ignore[arg-type]
        steps = [event.metrics for event in events if isinstance(event, Step)]
        norms = [step["grad_norm"] for step in steps]
        return {
            "pairs": len(data), "steps": len(steps), "learning_rate": config.learning_rate,
            "seconds": round(time.perf_counter() - began, 1), "first_loss": steps[0]["loss"],
            "first_norm": norms[0], "first_norm_ratio": norms[0] / float(np.median(norms)),
        }  # fmt: skip

    def judged(self, model: Any, held: TokenData, reference: np.ndarray) -> Result:
        moved = score(model, held, precision=PRECISION) - reference
        return held_out_numbers(moved, held.completion_lengths, self.arguments.beta)

    def plain_text(self, model: Any) -> Result:
        """Perplexity on plain text, and how many times that of the base it is."""
        found = run_suites(model, self.tokenizer, "perplexity", reference=self.base, precision=PRECISION,
                           num_tokens=self.arguments.text_tokens)["perplexity"]  # fmt: skip
        (own,) = found.values()
        return {"perplexity": own["perplexity"]["value"], "perplexity_ratio": own["ratio_to_reference"]["value"]}

    def places(self, model: Any, held: TokenData) -> Result:
        """Where in the answers the margins arise, of some held-out pairs."""
        some = held.select(range(min(self.arguments.token_pairs, len(held))))
        found = token_rewards(model, self.tokenizer, some, reference=self.base, beta=self.arguments.beta,
                              precision=PRECISION)  # fmt: skip
        parts = margin_parts(found)
        answers = [answer for pair in found for answer in (pair.chosen, pair.rejected)]
        return {
            "parting_margins": text_of(parts["parting"], 3), "token_margins": text_of(sum(parts.values()), 3),
            "tokens_for_half": float(np.median([tokens_for_half(answer.rewards) for answer in answers])),
            "tokens_of_answer": float(np.median([len(answer.rewards) for answer in answers])),
        }  # fmt: skip

    def drags(self, train: TokenData) -> Result:
        """g_w·g_l/|g_w|² of some training pairs at the base: above 1 the pair's own step lowers its chosen answer."""
        weights, scorer = list(self.base.parameters()), Scorer(self.base, PRECISION)
        found = []
        for index in range(min(self.arguments.drag_pairs, len(train))):
            batch = make_batch(train, [index]).to(weights[0].device)
            chosen, rejected = sum_per_sequence(scorer(batch), batch)[0]
            of_chosen = torch.autograd.grad(chosen, weights, retain_graph=True)
            of_rejected = torch.autograd.grad(rejected, weights)
            dot = lambda one, other: sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))
            found.append(dot(of_chosen, of_rejected) / dot(of_chosen, of_chosen))
        return {"drags": text_of(found, 3), "drag": float(np.median(found)) if found else None}


def before_training(held: TokenData, reference: np.ndarray) -> Result:
    """Which answers the base finds likelier, as sums and per token, and what length alone would say."""
    lengths = held.completion_lengths
    gap, longer = reference[:, 0] - reference[:, 1], lengths[:, 0] - lengths[:, 1]
    per_token = reference / lengths
    found = ranked_right(gap)
    return {
        "held_out": len(held), "accuracy": found["value"], "accuracy_low": found["low"], "accuracy_high": found["high"],
        "per_token_accuracy": ranked_right(per_token[:, 0] - per_token[:, 1])["value"],
        "longer_is_chosen": ranked_right(longer)["value"], "tokens": float(held.lengths().sum(1).mean()),
        "logps_chosen": text_of(reference[:, 0], 2), "logps_rejected": text_of(reference[:, 1], 2),
        "lengths_chosen": text_of(lengths[:, 0], 0), "lengths_rejected": text_of(lengths[:, 1], 0),
    }  # fmt: skip


def held_out_numbers(moved: np.ndarray, lengths: np.ndarray, beta: float) -> Result:
    """What held-out pairs say of a policy. `moved` (N, 2): by how many nats each answer's log-prob has changed."""
    chosen, rejected = moved.T.astype(float)
    margins, longer = beta * (chosen - rejected), lengths[:, 0] - lengths[:, 1]
    sides = coin_sides(len(margins))
    curve = calibration(sides * margins, sides > 0)
    by_length = length_share(margins, longer, resamples=0)
    part = lambda where: ranked_right(margins[where])["value"]
    found = ranked_right(margins)
    return {
        "held_out": len(margins), "accuracy": found["value"], "accuracy_low": found["low"],
        "accuracy_high": found["high"], "margin": float(margins.mean()),
        "reward_chosen": float(beta * chosen.mean()), "reward_rejected": float(beta * rejected.mean()),
        "chosen_change": float(chosen.mean()), "rejected_change": float(rejected.mean()),
        "chosen_fell": float((chosen < 0).mean()), "loss": float(np.logaddexp(0, -margins).mean()),
        "length_r2": by_length.r_squared, "length_rank": finite(by_length.rank.value),
        "accuracy_chosen_shorter": part(longer < 0), "accuracy_chosen_longer": part(longer > 0),
        "calibration_error": curve.error, "calibration_noise": curve.noise,
        "brier": float(((1 - sigmoid(margins)) ** 2).mean()),
        "temperature": fit_temperature(margins, np.ones(len(margins))),
        "chosen_changes": text_of(chosen, 2), "rejected_changes": text_of(rejected, 2),
    }  # fmt: skip


def ranked_right(margins: Any) -> Measured:
    """The share of margins above 0 with Wilson's interval; a tie counts half."""
    margins = np.asarray(margins)
    found = wilson(float((margins > 0).sum() + (margins == 0).sum() / 2), len(margins))
    return {"value": finite(found.share), "low": found.low, "high": found.high, "n": len(margins)}


def flip_rate(clean: float, labelled: float) -> float | None:
    """(c − a)/(2c − 1): the share of flipped labels among pairs that the policy agrees with at rate a, c on clean ones.

    None where the policy ranks clean pairs no better than a coin (notebook 10, section 4).
    """
    return (clean - labelled) / (2 * clean - 1) if clean > 0.5 else None


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def text_of(values: Any, digits: int) -> str:
    """Numbers as one text with spaces between; `numbers` reads them."""
    return " ".join(f"{value:.{digits}f}" for value in np.asarray(values, float))


# ── the lessons ───────────────────────────────────────────────────────────────────────────────────────────────────────

Rows = dict[str, list[Result]]
"""Method → its rows of one set, in the order of the seeds."""


@dataclass(frozen=True)
class Lesson:
    """What a notebook claims, what it printed, and when a number measured here agrees."""

    notebook: str
    claim: str
    pocket: tuple[str, ...]
    """What the notebook's output says, word for word."""
    measured: str
    """What is measured here."""
    measure: Callable[[Rows, float], Measured | None]
    """Rows of a set and β → the number with its interval; None where that set was not measured so."""
    holds: tuple[float, float]
    """The claim holds where the whole interval lies between these."""
    unit: str = ""


def verdict(found: Measured, holds: tuple[float, float]) -> str:
    """Does the whole interval agree with the claim, or contradict it?"""
    low, high = found["low"], found["high"]
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "open"
    if holds[0] < low and high < holds[1]:
        return "holds"
    return "does not hold" if high < holds[0] or holds[1] < low else "open"


def together(verdicts: Sequence[str]) -> str:
    """The verdict over several sets."""
    clear = {one for one in verdicts if one != "open"}
    if not clear:
        return "open"
    if len(clear) == 2:
        return "depends on the data"
    word = {"holds": "holds", "does not hold": "the pocket world's"}[clear.pop()]
    return word if "open" not in verdicts else f"{word}; one set is open"


def moves(rows: Rows, method: str) -> np.ndarray | None:
    """Change of the log-probs of chosen and rejected in nats, all seeds' held-out pairs, (N, 2)."""
    if method not in rows:
        return None
    return np.concatenate([np.stack([numbers(row["chosen_changes"]), numbers(row["rejected_changes"])], 1)
                           for row in rows[method]])  # fmt: skip


def joined(rows: Rows, method: str, field: str) -> np.ndarray:
    return np.concatenate([numbers(row[field]) for row in rows[method]])


def right(moved: np.ndarray) -> np.ndarray:
    """1 where a pair is ranked right, ½ where it is tied, 0 elsewhere."""
    return (1 + np.sign(moved[:, 0] - moved[:, 1])) / 2


def share_of(passed: Any, among: Any = None) -> Measured:
    passed = np.asarray(passed, float)
    counts = np.ones(len(passed)) if among is None else np.asarray(among, float)
    return share(passed * counts, counts)


def mean_of(values: Any) -> Measured:
    return ratio(values, np.ones(len(values)))


def resampled(statistic: Callable[..., float], *groups: np.ndarray, draws: int = 300) -> Measured:
    """A statistic of groups of rows with a bootstrap interval; rows are drawn with replacement, group by group."""
    generator = np.random.default_rng(0)
    if not all(len(group) for group in groups):
        return {"value": None, "low": None, "high": None, "n": 0}
    drawn = [statistic(*(group[generator.integers(0, len(group), len(group))] for group in groups))
             for _ in range(draws)]  # fmt: skip
    drawn = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) > 0.9 * draws else (math.nan, math.nan)
    return {"value": finite(statistic(*groups)), "low": finite(low), "high": finite(high), "n": len(groups[0])}


def over_seeds(rows: Rows, method: str, name: str) -> Measured | None:
    if method not in rows:
        return None
    found = seed_interval(row[name] for row in rows[method])
    return {"value": found.mean, "low": finite(found.low), "high": finite(found.high), "n": found.num_seeds}


def difference(rows: Rows, one: str, other: str) -> Measured | None:
    """Accuracy of one method less that of another on the same held-out pairs."""
    if one not in rows or other not in rows:
        return None
    seeds = [{row["seed"] for row in rows[name]} for name in (one, other)]
    both = [{name: [row for row in rows[name] if row["seed"] in seeds[0] & seeds[1]]} for name in (one, other)]
    found = [moves(own, name) for own, name in zip(both, (one, other), strict=True) if own[name]]
    return mean_of(right(found[0]) - right(found[1])) if len(found) == 2 else None


def of_moves(method: str, statistic: Callable[[np.ndarray], Measured]) -> Callable[[Rows, float], Measured | None]:
    def measure(rows: Rows, beta: float) -> Measured | None:
        moved = moves(rows, method)
        return None if moved is None else statistic(moved)

    return measure


def temperature_of(rows: Rows, beta: float) -> Measured | None:
    moved = moves(rows, "DPO")
    if moved is None:
        return None
    return resampled(lambda own: fit_temperature(own, np.ones(len(own))), beta * (moved[:, 0] - moved[:, 1]), draws=200)


def length_of(rows: Rows, beta: float) -> Measured | None:
    moved = moves(rows, "DPO")
    seeds = {row["seed"] for row in rows.get("DPO", [])}
    base = {"base": [row for row in rows.get("base", []) if row["seed"] in seeds]}
    if moved is None or len(base["base"]) != len(seeds):
        return None
    longer = joined(base, "base", "lengths_chosen") - joined(base, "base", "lengths_rejected")
    both = np.stack([moved[:, 0] - moved[:, 1], longer], 1)
    return resampled(lambda own: length_share(own[:, 0], own[:, 1], resamples=0).r_squared, both)


def drag_of(rows: Rows, beta: float) -> Measured | None:
    return share_of(joined(rows, "base", "drags") > 1) if "base" in rows else None


def parting_of(rows: Rows, beta: float) -> Measured | None:
    if "DPO" not in rows:
        return None
    parts = np.stack([joined(rows, "DPO", name) for name in ("parting_margins", "token_margins")], 1)
    return resampled(lambda own: own[:, 0].sum() / own[:, 1].sum(), parts)


def flips_of(rows: Rows, beta: float) -> Measured | None:
    moved = moves(rows, "DPO, flipped")
    if moved is None:
        return None
    margins = joined(rows, "DPO, flipped", "train_margins")
    turned = np.array([int(bit) for row in rows["DPO, flipped"] for bit in row["train_flips"]])
    labelled = right(np.stack([np.where(turned, -margins, margins), np.zeros(len(margins))], 1))
    clean = right(moved)
    rate = lambda c, a: value if (value := flip_rate(c.mean(), a.mean())) is not None else math.nan
    return resampled(rate, clean, labelled)


def paired(one: str, other: str) -> Callable[[Rows, float], Measured | None]:
    return lambda rows, beta: difference(rows, one, other)


NONE = math.inf
LESSONS = (
    Lesson("03", "A loss of 0.693 is no standstill: later steps pull no harder than the first",
           ("step 0: loss 0.6931, gradient norm 0.1905", "step 20: loss 0.4601, gradient norm 0.0545"),
           "first gradient norm / median norm, DPO",
           lambda rows, beta: over_seeds(rows, "DPO", "first_norm_ratio"), (1.0, NONE)),
    Lesson("06", "A chosen answer need not become likelier: many fall",
           ("the chosen answer became less likely in 65 of 200 pairs",), "chosen answers that fell, DPO",
           of_moves("DPO", lambda moved: share_of(moved[:, 0] < 0)), (0.1, NONE), "%"),
    Lesson("06", "The gap opens because the rejected answer falls; the chosen one moves less",
           ("chosen +0.04 ± 0.05 nats, rejected -1.11 ± 0.09 nats",),
           "nats that rejected answers fell by, less those that chosen ones moved by, DPO",
           of_moves("DPO", lambda moved: resampled(lambda own: -own[:, 1].mean() - abs(own[:, 0].mean()), moved)),
           (0.0, NONE), " nats"),
    Lesson("06", "A negative chosen reward is no failure: most such pairs are ranked right",
           ("chosen reward negative in 65 pairs, 41 of them ranked right (63%)",),
           "ranked right, where the chosen reward is negative, DPO",
           of_moves("DPO", lambda moved: share_of(right(moved), moved[:, 0] < 0)), (0.5, NONE), "%"),
    Lesson("06", "Hardly any pair's own step lowers its chosen answer (drag above 1)",
           ("d > 0 in 13 of 44 pairs, d > 1 in 0",), "pairs with a drag above 1, base", drag_of, (-NONE, 0.1), "%"),
    Lesson("06", "SFT on the chosen answers ranks pairs as well as DPO",
           ("DPO: 155 of 200 pairs ranked right", "SFT: 169 of 200 pairs ranked right"),
           "accuracy, DPO less SFT", paired("DPO", "SFT"), (-NONE, SAME), "%"),
    Lesson("06", "SFT lowers rejected answers that it has never seen",
           ("chosen +0.05 ± 0.05 nats, rejected -0.93 ± 0.07 nats",), "change of rejected answers, SFT",
           of_moves("SFT", lambda moved: mean_of(moved[:, 1])), (-NONE, 0.0), " nats"),
    Lesson("08", "The margins of a short training are not sure enough: a temperature below 1 mends them",
           ("fitted on one half of the pairs, T lies below one half: True",), "fitted temperature, DPO", temperature_of,
           (0.0, 1.0)),
    Lesson("08", "The first token in which two answers differ carries about half of the margin",
           ("parting 0.720 55.5%",), "share of the margin at that token, DPO", parting_of, (0.4, NONE), "%"),
    Lesson("08", "Length explains little of the margins (less than a tenth)",
           ("length explains less than a tenth of the implicit margins (R²): True",), "R² of margin on length, DPO",
           length_of, (-NONE, 0.1), "%"),
    Lesson("10", "Accuracy on training pairs says nothing of the policy: a hot run ruins it",
           ("training: accuracy 1.000, loss 0.0024", "well-formed answers: 99% before"),
           "perplexity on plain text / the base's, learning rate × 10",
           lambda rows, beta: over_seeds(rows, "DPO, high rate", "perplexity_ratio"), (1.2, NONE), " times"),
    Lesson("10", "Flipped labels cost accuracy on clean pairs",
           ("40% flipped: plain DPO against clean labels -0.37 [-0.48, -0.26]",),
           "accuracy, DPO less DPO on flipped labels", paired("DPO", "DPO, flipped"), (0.0, NONE), "%"),
    Lesson("10", "In a short run `robust` hardly differs from DPO on flipped labels",
           ("robust +0.03 [-0.01, +0.07]",),
           "accuracy, robust less DPO, both on flipped labels", paired("robust, flipped", "DPO, flipped"),
           (-SAME, SAME), "%"),
    Lesson("10", "The share of flipped labels can be measured from two accuracies",
           ("so ε is about 0.28, and it was 0.30",), "estimated share of flips, it was {flips:.0%}", flips_of,
           (0.1, 0.3), "%"),
)  # fmt: skip


def number_text(found: Measured, unit: str) -> str:
    """The number and its interval, in per cent where the unit says so."""
    scale, digits, mark = (100, 0, " %") if unit == "%" else (1, 2, unit)
    text = lambda value: "?" if value is None else f"{scale * value:.{digits}f}"
    return f"{text(found['value'])}{mark} [{text(found['low'])}, {text(found['high'])}]"


def by_set(rows: Sequence[Result]) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row["set"], {}).setdefault(row["method"], []).append(row)
    return found


def lessons_of(rows: Sequence[Result], settings: Result) -> list[Result]:
    """Each lesson with what each set says of it: for the page, and for a notebook."""
    found = []
    for lesson in LESSONS:
        measured = {name: lesson.measure(own, settings["beta"]) for name, own in by_set(rows).items()}
        known = {name: one for name, one in measured.items() if one is not None}
        verdicts = {name: verdict(one, lesson.holds) for name, one in known.items()}
        found.append({"lesson": lesson, "measured": known, "verdicts": verdicts,
                      "together": together(list(verdicts.values())) if verdicts else "not measured"})  # fmt: skip
    return found


def page(rows: Sequence[Result], settings: Result) -> str:
    """Accuracies with intervals, and the table of lessons."""
    sets = by_set(rows)
    head = lambda *names: ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lead = ("Held-out pairs of all seeds together, no pair twice, with 95 % intervals over pairs. How much a seed "
            "matters is in the ± of the table above.")  # fmt: skip
    lines = [LESSONS_BEGIN, "", lead, "", *head("what prefers the chosen", *sets)]
    ways = {
        "base: log-prob of the answer": lambda own: base_gap(own, "sum"),
        "base: log-prob per token": lambda own: base_gap(own, "mean"),
        "the longer answer": lambda own: base_gap(own, "length"),
        **{method: lambda own, method=method: moves(own, method)
           for method in (*FOR_ALL[1:], *FOR_THE_LAST)},
    }  # fmt: skip
    for name, way in ways.items():
        gaps = [way(own) for own in sets.values()]
        shares = ["" if gap is None else number_text(share_of_right(gap), "%") for gap in gaps]
        lines.append(f"| {name} | " + " | ".join(shares) + " |")
    lines += ["", "## Which lessons hold on a real model?", "",
              "A lesson holds where the whole interval lies in the range under \"holds in\", does not where the whole "
              "interval lies outside, and is open where a limit lies inside it. Intervals: 95 % over pairs, for "
              "gradient norms and perplexities over seeds. \"The pocket world's\" means: there, and not here.", "",
              *head("lesson (notebook)", "pocket world", "measured here", *sets, "holds in", "verdict")]  # fmt: skip
    for one in lessons_of(rows, settings):
        lesson: Lesson = one["lesson"]
        texts = [f"{number_text(one['measured'][name], lesson.unit)}: {one['verdicts'][name]}"
                if name in one["measured"] else "not measured" for name in sets]  # fmt: skip
        cells = [f"{lesson.claim} ({lesson.notebook})", "; ".join(lesson.pocket), lesson.measured.format(**settings),
                 *texts, range_text(lesson), f"**{one['together']}**"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def saved_lessons(rows: Sequence[Result], settings: Result) -> list[Result]:
    """The table of lessons for a notebook, which reads the saved rows without this file."""
    return [
        {"notebook": one["lesson"].notebook, "lesson": one["lesson"].claim, "holds": range_text(one["lesson"]),
         "measured": one["lesson"].measured.format(**settings), "verdict": one["together"],
         "sets": {name: {**found, "text": number_text(found, one["lesson"].unit), "verdict": one["verdicts"][name]}
                  for name, found in one["measured"].items()}}
        for one in lessons_of(rows, settings)
    ]  # fmt: skip


def range_text(lesson: Lesson) -> str:
    low, high = lesson.holds
    scale, mark = (100, " %") if lesson.unit == "%" else (1, lesson.unit)
    if high == NONE:
        return f"above {scale * low:g}{mark}"
    return f"below {scale * high:g}{mark}" if low == -NONE else f"{scale * low:g} to {scale * high:g}{mark}"


def base_gap(rows: Rows, by: str) -> np.ndarray | None:
    """(N, 2): what is compared of chosen and rejected before training."""
    if "base" not in rows:
        return None
    logps = np.stack([joined(rows, "base", f"logps_{side}") for side in ("chosen", "rejected")], 1)
    lengths = np.stack([joined(rows, "base", f"lengths_{side}") for side in ("chosen", "rejected")], 1)
    return {"sum": logps, "mean": logps / lengths, "length": lengths}[by]


def share_of_right(gap: np.ndarray) -> Measured:
    return ranked_right(gap[:, 0] - gap[:, 1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sets", type=Path, nargs="+", required=True, metavar="FILE", help="files of preferences, as "
                         "load_preferences reads them; the one with the shortest pairs last")  # fmt: skip
    options.add_argument("--model", default="smollm2")
    options.add_argument("--pairs", type=int, default=200, help="pairs to learn from")
    options.add_argument("--held-out", type=int, default=120, help="pairs to judge by, others for each seed")
    options.add_argument("--max-length", type=int, default=384, help="most tokens of a prompt with one answer")
    options.add_argument("--epochs", type=float, default=1.0)
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--learning-rate", type=float, default=1e-5)
    options.add_argument("--sft-learning-rate", type=float, default=2e-5)
    options.add_argument("--beta", type=float, default=0.1)
    options.add_argument("--flips", type=float, default=0.2, help="share of the labels that are flipped")
    options.add_argument("--text-tokens", type=int, default=4_000, help="of plain text, for perplexity")
    options.add_argument("--token-pairs", type=int, default=48, help="held-out pairs whose tokens are looked at")
    options.add_argument("--drag-pairs", type=int, default=24, help="training pairs whose gradients are compared")
    options.add_argument("--max-steps", type=int, default=None, help="fewer steps, to try the script out")
    arguments = options.parse_args()
    for path in arguments.sets:
        if not path.is_file():
            options.error(f"there is no file {path}; give files of preferences that are on this machine")
    names = ("pairs", "held_out", "max_length", "epochs", "batch_size", "learning_rate", "sft_learning_rate", "beta",
             "flips", "text_tokens", "token_pairs", "drag_pairs", "max_steps")  # fmt: skip
    settings = {name: getattr(arguments, name) for name in names}
    settings["sets"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in arguments.sets}
    columns = ["accuracy", "margin", "chosen_change", "rejected_change", "chosen_fell", "loss", "train_accuracy",
               "flip_estimate", "calibration_error", "calibration_noise", "brier", "temperature", "length_r2",
               "accuracy_chosen_shorter", "accuracy_chosen_longer", "perplexity", "perplexity_ratio", "drag",
               "tokens_for_half", "tokens_of_answer", "seconds"]  # fmt: skip
    lead = ("What each row is: data/experiments/real_preferences.py. Changes in nats on held-out pairs; loss and "
            "accuracy are those of the implicit rewards, of the base those of its log-probs.")  # fmt: skip
    about = Experiment("real_preferences", "DPO on preferences of people with a real model", lead, columns, settings,
                       group_by=("set", "method"), model=arguments.model)  # fmt: skip
    rows = carry_out(about, cells(arguments.seeds, [set_name(path) for path in arguments.sets]), Lab, arguments)
    saved = Path(arguments.out or RESULTS / "real_preferences.json")
    content = json.loads(saved.read_text()) | {"lessons": saved_lessons(rows, settings)}
    saved.write_text(json.dumps(content, indent=1) + "\n")
    written = saved.with_suffix(".md")
    written.write_text(written.read_text().split(LESSONS_BEGIN)[0].rstrip() + "\n" + page(rows, settings))


if __name__ == "__main__":
    main()
