"""DPO offline, semi-online and online, RLOO and GRPO, at equal judged answers: `python data/experiments/rounds.py`.

Every method starts from the embedded model, takes the same number of prompts of the embedded pairs with four answers
each, has them judged by the true reward, and is measured on prompts of the test split: true reward, and KL from the
embedded model.

    base         the embedded model, where all begin
    offline      DPO on the base's own answers, best with worst; the sampler never follows
    semi-online  the same in rounds, each sampled from the policy that the last one left
    online       the same with new answers for each step
    rloo, grpo   policy gradient; a rollout has as many prompts as two of online DPO's steps

Equal effort: each method has three learning rates, larger ones for policy gradient, and no other knob is searched. β
is each method's default in this package. Judged answers are equal, optimiser steps are not: DPO takes two where policy
gradient takes one.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab import load_policy, load_preferences
from dpo_lab.course.rlhf import GRPOConfig, RLOOConfig, judge_reward, train_grpo, train_rloo
from dpo_lab.loop import Finished
from dpo_lab.preferences import encode_prompt
from dpo_lab.sampling import generate_ids
from dpo_lab.workbench.evaluation import kl_of_samples
from dpo_lab.workbench.rounds import Round, RoundsConfig, train_rounds
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket.quality import quality

ANSWERS, MAX_NEW_TOKENS, PROMPT_SEED = 4, 80, 79_000
SAMPLERS = {"offline": "never", "semi-online": "round", "online": "step"}
RATES = {"dpo": (1e-4, 3e-4, 1e-3), "rl": (3e-4, 1e-3, 3e-3)}
COLUMNS = ("reward", "kl", "success", "well_formed", "words", "mixed_first", "mixed_last", "judged_answers", "steps",
           "seconds")  # fmt: skip


def cells(seeds: int) -> list[Cell]:
    """Every method at every rate, a whole seed before the next one, so that a run that is cut short compares all."""
    found = []
    for seed in range(seeds):
        found.append({"method": "base", "knob": "", "seed": seed})
        for method in (*SAMPLERS, "rloo", "grpo"):
            rates = RATES["dpo" if method in SAMPLERS else "rl"]
            found += [{"method": method, "knob": f"{rate:g}", "seed": seed} for rate in rates]
    return found


class Lab:
    """What the cells share: the model, the prompts to learn from, the prompts to judge by."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.reference, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.rows = list(load_preferences("embedded", split="train"))
        self.test = corpus.prompts(arguments.test_prompts, split="test", seed=PROMPT_SEED)

    def run(self, cell: Cell) -> Result:
        """The row of a cell. Raises where a method was not given the judged answers that all are given."""
        method, rate, seed = cell["method"], cell["knob"], cell["seed"]
        model, began = copy.deepcopy(self.reference).requires_grad_(True), time.perf_counter()
        if method == "base":
            return self.measured(model, seed)
        shared = {"learning_rate": float(rate), "seed": seed, "device": self.arguments.device,
                  "max_new_tokens": MAX_NEW_TOKENS}  # fmt: skip
        found = self.in_rounds(model, method, shared) if method in SAMPLERS else self.by_gradient(model, method, shared)
        expected = self.arguments.rounds * self.arguments.prompts * ANSWERS
        assert found["judged_answers"] == expected, f"{method}: {found['judged_answers']} answers, not {expected}"
        return found | {"seconds": round(time.perf_counter() - began, 1)} | self.measured(model, seed)

    def in_rounds(self, model: Any, method: str, shared: dict[str, Any]) -> Result:
        options = self.arguments
        config = RoundsConfig(rounds=options.rounds, prompts=options.prompts, answers=ANSWERS, steps=options.steps,
                              sampler=SAMPLERS[method], **shared)  # fmt: skip
        rounds, end = [], None
        for event in train_rounds(model, self.tokenizer, self.rows, judge_reward, config, reference=self.reference):
            rounds += [event.metrics] if isinstance(event, Round) else []
            end = event
        assert isinstance(end, Finished)
        return {"mixed_first": rounds[0]["mixed"], "mixed_last": rounds[-1]["mixed"], "steps": end.step,
                "judged_answers": int(rounds[-1]["cost/judged_answers"])}  # fmt: skip

    def by_gradient(self, model: Any, method: str, shared: dict[str, Any]) -> Result:
        options = self.arguments
        steps = options.rounds * options.steps // 2
        shared |= {"batch_size": 2 * options.prompts // options.steps, "num_samples": ANSWERS, "max_steps": steps,
                   "epochs": 1_000, "schedule": "linear", "warmup": 0.1}  # fmt: skip
        train, config = {"rloo": (train_rloo, RLOOConfig), "grpo": (train_grpo, GRPOConfig)}[method]
        *_, end = train(model, self.tokenizer, self.rows, judge_reward, config(**shared), reference=self.reference)
        return {"steps": end.step, "judged_answers": int(end.metrics["cost/judged_answers"])}

    def measured(self, model: Any, seed: int) -> Result:
        """One answer to each test prompt: what it is truly worth, and KL from the embedded model."""
        rows = [conversation.row() for conversation in self.test]
        ids = [encode_prompt(row, self.tokenizer) for row in rows]
        own = [row[0] for row in generate_ids(model, self.tokenizer, ids, max_new_tokens=MAX_NEW_TOKENS, seed=seed)]
        rewards = np.array(judge_reward(rows, own))
        drift = kl_of_samples(model, self.reference, ids, [[answer.ids] for answer in own])
        return quality(self.test, [answer.text for answer in own]) | {
            "reward_standard_error": float(rewards.std(ddof=1) / np.sqrt(len(rewards))),
            "kl": drift.mean, "kl_standard_error": drift.standard_error,
        }  # fmt: skip


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=6, help="rounds of DPO (default: %(default)s)")
    made.add_argument("--prompts", type=int, default=256, help="prompts a round (default: %(default)s)")
    made.add_argument("--steps", type=int, default=16, help="steps a round, an even number (default: %(default)s)")
    made.add_argument("--test-prompts", type=int, default=512, help="prompts to judge by (default: %(default)s)")
    return made


def main() -> None:
    arguments = options().parse_args()
    if arguments.steps % 2 or 2 * arguments.prompts % arguments.steps:
        raise SystemExit(f"--steps must be even and divide twice the prompts, got {arguments.steps} of "
                         f"{arguments.prompts}; rollouts are of whole prompts")  # fmt: skip
    settings = {name: getattr(arguments, name) for name in ("rounds", "prompts", "steps", "test_prompts")}
    about = Experiment(
        "rounds", "Offline, semi-online and online", "DPO in rounds beside RLOO and GRPO at equally many judged "
        "answers in the pocket world; what each is: data/experiments/rounds.py. knob is the learning rate, KL is in "
        "nats per answer, mixed is the share of prompts whose answers differ in reward.", COLUMNS, settings,
    )  # fmt: skip
    carry_out(about, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    main()
