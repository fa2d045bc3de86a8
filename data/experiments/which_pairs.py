"""What makes a pair worth its price: DPO on pairs that differ in one thing: `python data/experiments/which_pairs.py`.

A program of the pocket world writes good and flawed answers to any prompt, and the true reward says what each is worth.
So pairs can be made to order. Every run takes the embedded model, 256 pairs and one pass over them; a condition says
which pairs:

    high-mid, mid-low, high-low   three written answers to a prompt: a good one (3), one worse by 1.2 to 2.2, and one
                     worse again by about as much. high-mid and mid-low have the same gap and differ in the chosen;
                     high-mid and high-low have the same chosen and differ in the rejected, and so in the gap
    sft-high, sft-mid   SFT on the good answers alone, and on those in the middle
    noise-20, noise-40  high-mid with so many of a hundred pairs flipped
    number-128, number-64, number-32   high-mid with fewer pairs and as many steps: 2, 4 or 8 passes
    own, half-own, written   both answers are the base model's own; half of the pairs are written; all are. The prompts
                     are the same, the chosen are worth 3 and the rejected about as much as the own ones
    all              512 pairs of own answers, right labels, twice as many steps
    random-half, easy-half, hard-half   256 of these: any; those that a policy ranks best, or worst, that has learnt
                     from 256 other pairs
    base             the embedded model

Answered by each: 200 prompts of the embedded test pairs, one answer each; true reward, KL from the base.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import numpy as np
from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab import DPOConfig, load_policy, load_preferences, train_dpo
from dpo_lab.config import SFTConfig
from dpo_lab.logprobs import score
from dpo_lab.loop import Step
from dpo_lab.preferences import encode_prompt, tokenize_pairs
from dpo_lab.sampling import generate_ids
from dpo_lab.training import train_sft
from dpo_lab.workbench.evaluation import kl_of_samples
from dpo_lab.workbench.rounds import true_reward
from dpo_lab.worlds.pocket import Conversation, judge
from dpo_lab.worlds.pocket.writer import flaw_names, write_answer

PAIRS, BATCH, MAX_NEW_TOKENS, EVALUATION_SEED = 256, 16, 64, 99
COMPARISONS = (
    ("base", "own", "written", "high-mid", "mid-low"), ("random-half", "easy-half", "hard-half"), ("all", "high-low"),
    ("noise-40", "number-32"), ("half-own",), ("sft-high", "sft-mid"), ("noise-20", "number-128", "number-64"),
)  # fmt: skip
COLUMNS = ("reward", "kl", "reward_chosen", "reward_rejected", "accuracy", "pairs", "steps", "seconds")


def cells(seeds: int) -> list[Cell]:
    """A comparison on all seeds before the next comparison, so that a run may be cut short."""
    return [{"method": method, "seed": seed} for methods in COMPARISONS for seed in range(seeds) for method in methods]


def written(row: Any, rng: Random) -> list[tuple[float, str]]:
    """What the world's program answers to a row's prompt, good and with each flaw, by true reward, the best first."""
    conversation = Conversation.from_row(row)
    texts = dict.fromkeys(write_answer(conversation, rng, name) for name in ("good", *flaw_names(conversation)))
    return sorted(((judge(conversation, text).reward, text) for text in texts), reverse=True)


def three(answers: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """A good answer, one in the middle and a low one, equally far apart up to ½; empty where there are none."""
    high = answers[0]
    found = [(abs(high[0] - 2 * mid[0] + low[0]), i, j) for i, mid in enumerate(answers)
             for j, low in enumerate(answers) if 1.2 <= high[0] - mid[0] <= 2.2 and low[0] < mid[0]]  # fmt: skip
    if high[0] < 3 or not found or min(found)[0] > 0.5:
        return []
    _, i, j = min(found)
    return [high, answers[i], answers[j]]


def pair(row: Any, chosen: tuple[float, str], rejected: tuple[float, str]) -> dict[str, Any]:
    texts = {name: [{"role": "assistant", "content": text}]
             for name, (_, text) in (("chosen", chosen), ("rejected", rejected))}  # fmt: skip
    return {**row, **texts, "reward_chosen": chosen[0], "reward_rejected": rejected[0]}


class Lab:
    """What the conditions share: the model, prompts with answers, the prompts to judge by."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.reference, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.train = load_preferences("embedded", split="train").to_list()
        self.test = load_preferences("embedded", split="test").to_list()[: arguments.test_prompts]
        self.orders, self.ours, self.scout = map(cache, (self._orders, self._own, self._scout))

    def run(self, cell: Cell) -> Result:
        method, seed, num = cell["method"], cell["seed"], self.arguments.pairs
        if method == "base":
            return self.judged(self.reference)
        if method.startswith("sft"):
            rows = self.three_of(seed)[method.removeprefix("sft-") + "-low"]  # only the chosen are looked at
            return self.learnt(rows, seed, sft=True)
        kind, _, amount = method.partition("-")
        if kind == "noise":
            rows = [pair(row, *[answer_of(row, name) for name in ("rejected", "chosen")])
                    if i < num * int(amount) // 100 else row
                    for i, row in enumerate(self.three_of(seed)["high-mid"])]  # fmt: skip
        elif kind == "number":
            rows = self.three_of(seed)["high-mid"][: int(amount) * num // PAIRS]
        elif method in ("own", "half-own", "written"):
            rows = self.by_author(seed)[method]
        elif method in ("all", "random-half", "easy-half", "hard-half"):
            rows = self.halves(seed)[method]
        else:
            rows = self.three_of(seed)[method]
        return self.learnt(rows, seed, steps=2 * num // BATCH if method == "all" else num // BATCH)

    # ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _orders(self, seed: int) -> list[dict[str, Any]]:
        """The rows of the train split in an order of the seed's own."""
        return [self.train[i] for i in np.random.default_rng(seed).permutation(len(self.train))]

    def three_of(self, seed: int) -> dict[str, list[dict[str, Any]]]:
        """high-mid, mid-low and high-low of the same prompts."""
        rng, found = Random(seed), {name: [] for name in ("high-mid", "mid-low", "high-low")}
        for row in self.orders(seed):
            answers = three(written(row, rng))
            if answers:
                high, mid, low = answers
                for name, (chosen, rejected) in zip(found, ((high, mid), (mid, low), (high, low)), strict=True):
                    found[name].append(pair(row, chosen, rejected))
            if len(found["high-mid"]) == self.arguments.pairs:
                break
        return found

    def _own(self, seed: int) -> list[dict[str, Any]]:
        """Embedded pairs with their labels put right."""
        both = lambda row: sorted((answer_of(row, "chosen"), answer_of(row, "rejected")), reverse=True)
        return [pair(row, *both(row)) for row in self.orders(seed)]

    def by_author(self, seed: int) -> dict[str, list[dict[str, Any]]]:
        """The same prompts with own answers and with written ones that are worth about as much (within ½)."""
        rng, own, others = Random(seed), [], []
        for row in self.ours(seed):
            answers = written(row, rng)
            like = min(answers[1:], key=lambda one: abs(one[0] - row["reward_rejected"]), default=None)
            if (
                like
                and row["reward_chosen"] >= 3
                and abs(like[0] - row["reward_rejected"]) <= 0.5
                and answers[0][0] >= 3
            ):
                own.append(row)
                others.append(pair(row, answers[0], like))
            if len(own) == self.arguments.pairs:
                break
        half = len(own) // 2
        return {"own": own, "half-own": own[:half] + others[half:], "written": others}

    def halves(self, seed: int) -> dict[str, list[dict[str, Any]]]:
        num = self.arguments.pairs
        rows = self.ours(seed)[num : 3 * num]  # the scout has seen the first `num`
        data, _ = tokenize_pairs(rows, self.tokenizer)
        gaps = (score(self.scout(seed), data) - score(self.reference, data)) @ np.array([1.0, -1.0])
        order = np.argsort(-gaps)
        take = lambda places: [rows[i] for i in places]
        return {"all": rows, "random-half": rows[:num], "easy-half": take(order[:num]), "hard-half": take(order[num:])}

    def _scout(self, seed: int) -> Any:
        return self.dpo(self.ours(seed)[: self.arguments.pairs], seed, self.arguments.pairs // BATCH)[0]

    # ── training and judging ─────────────────────────────────────────────────────────────────────────────────────

    def shared(self, seed: int, steps: int) -> dict[str, Any]:
        return {"learning_rate": 1e-3, "batch_size": BATCH, "max_steps": steps, "epochs": 1_000, "seed": seed,
                "max_length": 256, "device": self.arguments.device}  # fmt: skip

    def dpo(self, rows: list[dict[str, Any]], seed: int, steps: int) -> tuple[Any, list[Any]]:
        model = copy.deepcopy(self.reference).requires_grad_(True)
        data, _ = tokenize_pairs(rows, self.tokenizer)
        config = DPOConfig(**self.shared(seed, steps))
        return model, list(train_dpo(model, self.tokenizer, data, config, reference=self.reference))

    def learnt(self, rows: list[dict[str, Any]], seed: int, *, steps: int | None = None, sft: bool = False) -> Result:
        began, steps = time.process_time(), steps or len(rows) // BATCH
        mean = lambda name: round(float(np.mean([row[name] for row in rows])), 3)
        about = {"pairs": len(rows), "steps": steps, "reward_chosen": mean("reward_chosen")}
        if sft:
            model = copy.deepcopy(self.reference).requires_grad_(True)
            examples = [{**row, "completion": row["chosen"]} for row in rows]
            list(train_sft(model, self.tokenizer, examples, SFTConfig(**self.shared(seed, steps))))
        else:
            model, events = self.dpo(rows, seed, steps)
            last = [event.metrics["rewards/accuracies"] for event in events if isinstance(event, Step)][steps // 2 :]
            about |= {"reward_rejected": mean("reward_rejected"), "accuracy": round(float(np.mean(last)), 4)}
        seconds = {"seconds": round(time.process_time() - began, 1)}
        return about | seconds | self.judged(model)

    def judged(self, model: Any) -> Result:
        ids = [encode_prompt(row, self.tokenizer) for row in self.test]
        own = generate_ids(model, self.tokenizer, ids, max_new_tokens=MAX_NEW_TOKENS, seed=EVALUATION_SEED)
        rewards = np.array(true_reward(self.test, [answer for (answer,) in own]))
        drift = kl_of_samples(model, self.reference, ids, [[answer.ids] for (answer,) in own])
        return {"reward": round(float(rewards.mean()), 4), "kl": round(drift.mean, 4),
                "rewards": " ".join(f"{reward:g}" for reward in rewards)}  # fmt: skip


def answer_of(row: Any, name: str) -> tuple[float, str]:
    return row[f"reward_{name}"], row[name][0]["content"]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--pairs", type=int, default=PAIRS, help="pairs of a condition (default: %(default)s)")
    made.add_argument("--test-prompts", type=int, default=200, help="prompts to judge by (default: %(default)s)")
    arguments = made.parse_args()
    settings = {name: getattr(arguments, name) for name in ("pairs", "test_prompts")}
    settings |= {"batch_size": BATCH, "learning_rate": 1e-3, "beta": 0.5}
    about = Experiment(
        "which_pairs", "What makes a pair worth its price", "DPO on pairs of the pocket world that differ in one "
        "thing; what each condition is: data/experiments/which_pairs.py. KL is in nats per answer, accuracy is the "
        "mean over the second half of the steps, each before it is taken, seconds are CPU seconds of training.",
        COLUMNS, settings, group_by=("method",),
    )  # fmt: skip
    carry_out(about, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    main()
