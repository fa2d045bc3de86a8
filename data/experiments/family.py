"""Every loss of the table on clean, noisy and length-biased labels: `python data/experiments/family.py`.

All losses start from the embedded model and see the same pairs in the same order; they differ in the loss alone. The
labels are made anew from the true rewards that the pairs keep (ties are left out, and counted):

    clean    the answer with the larger true reward is the chosen one
    noisy    the same, and then a share FLIPPED of the labels is flipped, drawn by the seed
    length   the answer with the larger (true reward + BONUS points for every word) is the chosen one

Equal effort. Every loss gets the same number of trials on each kind of labels: two values of its first knob, a factor
of five apart, by two learning rates; all other knobs stay as the table has them. A trial trains on pairs that no seed
sees, with the labels in question, and is judged by the true reward of its answers to validation prompts, which belong
to the train split. The best trial's setting is then trained with several seeds. A seed has pairs, flips, an order,
test prompts and draws of its own, the same for all losses; nothing of the test split had a say in a setting.

On noisy labels two members more, `cdpo, known share` and `robust, known share`, whose ε is the true share of flips;
the others keep the table's. Their effort is the same.

The runs are short, so that there can be many: 320 pairs once, in batches of 16.

    trials   (18 · 3 + 2) · 4 = 224 cells
    seeds    (18 · 3 + 2) · 3 + 3 (base) = 171 cells

Every row says how long its own cell took.

Measured per run: true reward, success, well-formed share and words of the answers to the test prompts, KL from the
base model, accuracy on test pairs (how often the policy's log-ratio ranks the truly better answer higher, the same
yardstick for all), and how far the chosen and rejected answers of those pairs have moved, in nats.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import numpy as np
from harness import Cell, Experiment, Result, carry_out, parser
from measuring import VALIDATION_SEED

from dpo_lab import DPOConfig, ReferenceCache, evaluate, load_policy, load_preferences, train_dpo
from dpo_lab.loop import TrainingDiverged
from dpo_lab.losses import LOSSES
from dpo_lab.preferences import encode_prompt, tokenize_pairs
from dpo_lab.sampling import generate_ids
from dpo_lab.workbench.evaluation import kl_of_samples
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket.quality import quality

KINDS = ("clean", "noisy", "length")
FLIPPED, BONUS = 0.3, 1.0
BATCH, MAX_NEW_TOKENS = 16, 80
RATES = (3e-4, 1e-3)
TEST_SEED = 78_000
KNOWN = {
    "cdpo, known share": ("cdpo", {"label_smoothing": FLIPPED}),
    "robust, known share": ("robust", {"label_smoothing": FLIPPED}),
}
LOWER = {"ipo": 0.2, "sigmoid_norm": 2.0, "simpo": 2.0}
"""The lower value of a loss's first knob, where it is not 0.1: these losses count nats per token, not per answer."""
MEASURES = ("reward", "success", "well_formed", "kl", "words", "accuracy", "chosen_moved", "rejected_moved")


def members(kind: str) -> list[str]:
    """Who takes part: every loss with something to set, and on noisy labels the two that know the share of flips."""
    return [*(name for name, spec in LOSSES.items() if spec.knobs), *(KNOWN if kind == "noisy" else ())]


def trials(member: str) -> list[dict[str, float]]:
    """The settings that are tried: the same number for every member."""
    loss, _ = KNOWN.get(member, (member, {}))
    knob = next(iter(LOSSES[loss].knobs))
    low = LOWER.get(loss, 0.1)
    return [{knob: value, "learning_rate": rate} for value in (low, 5 * low) for rate in RATES]


def configured(member: str, setting: dict[str, float], seed: int, device: str = "cpu") -> DPOConfig:
    """The run that a setting stands for."""
    loss, more = KNOWN.get(member, (member, {}))
    knobs = {name: value for name, value in setting.items() if name != "learning_rate"}
    return DPOConfig(loss=loss, knobs=knobs | more, learning_rate=setting["learning_rate"], batch_size=BATCH, seed=seed,
                     device=device)  # fmt: skip


def tuning_cells() -> list[Cell]:
    return [{"stage": "trial", "labels": kind, "loss": member, "trial": number}
            for kind in KINDS for number in range(4) for member in members(kind)]  # fmt: skip


def seed_cells(seeds: int, rows: Iterable[Result]) -> list[Cell]:
    """The base model and the best setting of every member whose trials are all done, a seed after the other."""
    best = {(kind, member): chosen(rows, kind, member) for kind in KINDS for member in members(kind)}
    return [cell for seed in range(seeds) for cell in (
        {"stage": "seed", "labels": "none", "loss": "base", "seed": seed},
        *({"stage": "seed", "labels": kind, "loss": member, "seed": seed, "setting": setting}
          for (kind, member), setting in best.items() if setting is not None),
    )]  # fmt: skip


def chosen(rows: Iterable[Result], kind: str, member: str) -> dict[str, float] | None:
    """The setting with the best true reward on validation prompts; None before all trials are done."""
    own = {row["trial"]: row.get("reward", -math.inf) for row in rows
           if row["stage"] == "trial" and (row["labels"], row["loss"]) == (kind, member)}  # fmt: skip
    settings = trials(member)
    return settings[max(own, key=lambda trial: (own[trial], -trial))] if len(own) == len(settings) else None


def labelled(rows: Sequence[Result], kind: str, seed: int) -> tuple[list[Result], dict[str, float]]:
    """The pairs with labels of a kind; how many ties were left out, and what share of the labels is wrong."""
    rng, drawn, ties, wrong = Random(seed), [], 0, 0
    for row in rows:
        gap = row["reward_chosen"] - row["reward_rejected"]
        score = gap + (BONUS * (words(row["chosen"]) - words(row["rejected"])) if kind == "length" else 0.0)
        is_flipped = kind == "noisy" and rng.random() < FLIPPED
        if gap == 0 or score == 0:
            ties += 1
            continue
        stays = (score > 0) != is_flipped
        wrong += stays != (gap > 0)
        drawn.append(dict(row) if stays else row | swapped(row))
    return drawn, {"pairs": len(drawn), "ties": ties, "wrong_labels": wrong / max(len(drawn), 1)}


def swapped(row: Result) -> Result:
    return {"chosen": row["rejected"], "rejected": row["chosen"], "reward_chosen": row["reward_rejected"],
            "reward_rejected": row["reward_chosen"]}  # fmt: skip


def words(messages: Sequence[dict[str, str]]) -> int:
    return len(messages[-1]["content"].split())


class Lab:
    """What the cells of a process share: the base model, pairs, prompts, and the reference's log-probs on disk."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.base, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.rows = load_preferences("embedded", split="train")
        test, _ = labelled(load_preferences("embedded", split="test", limit=arguments.test_pairs).to_list(), "clean", 0)
        self.test, _ = tokenize_pairs(test, self.tokenizer)
        self.cache = ReferenceCache(arguments.work / "family")

    def run(self, cell: Cell) -> Result:
        """Train and judge. A training that diverged is saved as such: its row says why, and has no measures."""
        is_trial = cell["stage"] == "trial"
        seed = 0 if is_trial else cell["seed"] + 1  # the first slice of the pairs belongs to the trials
        model, found = copy.deepcopy(self.base).requires_grad_(True), {}
        if cell["loss"] != "base":
            setting = trials(cell["loss"])[cell["trial"]] if is_trial else cell["setting"]
            found |= {"setting": setting} if is_trial else {}
            try:
                found |= self.train(
                    model, cell["labels"], configured(cell["loss"], setting, seed, self.arguments.device)
                )
            except TrainingDiverged as error:
                return found | {"diverged": str(error)}
        if is_trial:
            found |= self.judged(model, "train", VALIDATION_SEED, seed)
        else:
            found |= self.judged(model, "test", TEST_SEED + seed, seed) | self.on_test_pairs(model)
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in found.items()}

    def train(self, model: Any, kind: str, config: DPOConfig) -> Result:
        """Train on the seed's own slice of the pairs; returns what the labels were."""
        size = self.arguments.pairs
        start = config.seed * size
        if start + size > len(self.rows):
            raise ValueError(f"seed {config.seed} needs the pairs {start} to {start + size}, and there are "
                             f"{len(self.rows)}; ask for fewer pairs or seeds")  # fmt: skip
        pairs, about = labelled(self.rows.select(range(start, start + size)).to_list(), kind, config.seed)
        data, _ = tokenize_pairs(pairs, self.tokenizer)
        for _ in train_dpo(model, self.tokenizer, data, config, reference=self.base, cache=self.cache):
            pass
        return about

    def judged(self, model: Any, split: Any, prompt_seed: int, seed: int) -> Result:
        """One answer to each prompt: what the judge says, and KL from the base model."""
        conversations = corpus.prompts(self.arguments.prompts, split=split, seed=prompt_seed)
        ids = [encode_prompt(one.row(), self.tokenizer) for one in conversations]
        answers = generate_ids(model, self.tokenizer, ids, max_new_tokens=MAX_NEW_TOKENS, seed=seed, batch_size=128)
        found = quality(conversations, [row[0].text for row in answers])
        drift = kl_of_samples(model, self.base, ids, [[row[0].ids] for row in answers])
        return {name: found[name] for name in MEASURES if name in found} | {"kl": drift.mean}

    def on_test_pairs(self, model: Any) -> Result:
        table = evaluate(model, self.tokenizer, self.test, reference=self.base, cache=self.cache, beta=1.0).table
        accuracy = np.where(np.abs(table["margin"]) < 1e-4, 0.5, table["margin"] > 0).mean()
        return {"accuracy": float(accuracy), "chosen_moved": float(table["reward_chosen"].mean()),
                "rejected_moved": float(table["reward_rejected"].mean())}  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--pairs", type=int, default=320, help="pairs of a run (default: %(default)s)")
    options.add_argument("--prompts", type=int, default=64, help="prompts that are answered (default: %(default)s)")
    options.add_argument("--test-pairs", type=int, default=200, help="test pairs for accuracy (default: %(default)s)")
    arguments = options.parse_args()
    experiment = Experiment(
        "family", "The family of losses on clean, noisy and length-biased labels", (__doc__ or "").split("\n\n", 1)[1],
        MEASURES, {"pairs": arguments.pairs, "prompts": arguments.prompts, "test_pairs": arguments.test_pairs,
                   "flipped": FLIPPED, "bonus": BONUS, "batch": BATCH, "rates": RATES}, ("stage", "labels", "loss"),
    )  # fmt: skip
    trial_cells = tuning_cells()
    rows = carry_out(experiment, trial_cells, Lab, arguments)
    carry_out(experiment, [*seed_cells(arguments.seeds, rows), *trial_cells], Lab, arguments)


if __name__ == "__main__":
    main()
