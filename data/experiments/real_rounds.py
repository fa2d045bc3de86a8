"""Offline, semi-online and online DPO with a real model: `python data/experiments/real_rounds.py`.

`rounds.py` in small on SmolLM2-135M-Instruct: the judge is a program that checks the demands of a request (the world of
instructions, texts alone), so no verdict is a matter of taste. Every run takes as many tasks of the train split, has as
many answers judged, and takes as many optimiser steps.

    base           the model itself
    offline        DPO; the answers are the base's
    semi-online-4  DPO; the policy that answers is renewed every four steps
    online         DPO; it is renewed at each step

The learning rate is twice what real_model.py found for longer runs, and was not searched here; β is the default. Each
policy answers tasks of the test split (the kinds of demand are those of training, the topics or the words are new) once
at temperature 1: the share of demands met, KL from the base in nats per answer, words, and the share of answers that
are answers. `mixed` is the share of training prompts whose answers differ in score, by quarters of the run; seconds are
of training, on a machine that did other work.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from typing import Any

import numpy as np
from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab import load_policy
from dpo_lab.loop import Step
from dpo_lab.workbench.evaluation import run_suites
from dpo_lab.workbench.rounds import RoundsConfig, train_rounds
from dpo_lab.workbench.rounds.judges import InstructionReward
from dpo_lab.worlds.instructions import draw

ROUNDS = {"offline": 4, "semi-online-4": 4, "online": 1}
SAMPLER = {"offline": "never", "semi-online-4": "round", "online": "step"}
TRAIN_SEED, TEST_SEED, MAX_NEW_TOKENS, ANSWERS, BATCH, PRECISION = 31, 32, 64, 4, 8, "bfloat16"
COLUMNS = ("demands_met", "kl", "answers", "words", "pairs", "judged_answers", "steps", "seconds")


class Lab:
    """What the cells share: the base, the tasks to learn from and to judge by."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.base, self.tokenizer = load_policy(arguments.model, device=arguments.device)
        self.tasks = draw("train", arguments.prompts, seed=TRAIN_SEED, sections=("format", "system"))
        drawn = draw("test", 4 * arguments.test_tasks, seed=TEST_SEED, sections=("format", "system"))
        self.test = [task for task in drawn if task.kinds_seen][: arguments.test_tasks]

    def run(self, cell: Cell) -> Result:
        method, seed = cell["method"], cell["seed"]
        model = copy.deepcopy(self.base)
        found = self.trained(model, method, seed) if method != "base" else {}
        suites = run_suites(
            model, self.tokenizer, "instructions", reference=self.base, tasks=self.test, seed=seed,
            max_new_tokens=MAX_NEW_TOKENS, batch_size=128, precision=PRECISION,
        )  # fmt: skip
        own = suites["instructions"]
        gc.collect()
        return found | {name: own[name]["value"] for name in ("demands_met", "answers", "words", "kl")} | {
            "met": "".join(str(sum(record["met"])) for record in suites["answers"]),
            "demands": "".join(str(len(record["met"])) for record in suites["answers"]),
        } | ({"said": [record["answer"] for record in suites["answers"][:12]]} if seed == 0 else {})  # fmt: skip

    def trained(self, model: Any, method: str, seed: int) -> Result:
        options, rounds = self.arguments, ROUNDS[method]
        config = RoundsConfig(
            rounds=rounds, steps=options.steps // rounds, prompts=options.prompts // rounds, answers=ANSWERS,
            sampler=SAMPLER[method], batch_size=BATCH, learning_rate=options.learning_rate, seed=seed,
            max_new_tokens=MAX_NEW_TOKENS, sampling_batch_size=128, device=options.device, precision=PRECISION,
        )  # fmt: skip
        rows, judge = [task.row() for task in self.tasks], InstructionReward(self.tasks)
        began, step, pairs, mixed, judged = time.perf_counter(), 0, 0.0, [], 0.0
        for event in train_rounds(model, self.tokenizer, rows, judge, config, reference=self.base):
            metrics = getattr(event, "metrics", {})
            if "mixed" in metrics:
                pairs, judged = pairs + metrics["pairs"], metrics["cost/judged_answers"]
                mixed.append(metrics["mixed"])
            step = event.step if isinstance(event, Step) else step
        assert (step, judged) == (options.steps, options.prompts * ANSWERS), f"{method}: {step} steps, {judged} answers"
        quarters = [round(float(np.mean(part)), 4) for part in np.array_split(mixed, 4)]
        return {"steps": step, "pairs": int(pairs), "judged_answers": int(judged), "mixed": quarters,
                "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


def main() -> None:
    options = parser(__doc__, seeds=2)
    options.add_argument("--model", default="smollm2")
    options.add_argument("--prompts", type=int, default=128, help="tasks of a run, a multiple of the steps")
    options.add_argument("--steps", type=int, default=16, help="optimiser steps of a run, a multiple of 4")
    options.add_argument("--test-tasks", type=int, default=160, help="tasks of the test split")
    options.add_argument("--learning-rate", type=float, default=8e-5)
    arguments = options.parse_args()
    if arguments.steps % 4 or arguments.prompts % arguments.steps:
        raise SystemExit(f"--steps must be a multiple of 4 and divide --prompts, got {arguments.steps} and "
                         f"{arguments.prompts}; each step takes whole prompts, each round whole steps")  # fmt: skip
    cells = [{"method": method, "seed": seed} for seed in range(arguments.seeds) for method in ("base", *ROUNDS)]
    names = ("prompts", "steps", "test_tasks", "learning_rate")
    about = Experiment(
        "real_rounds", "Rounds with a real model", "Offline, semi-online and online DPO with SmolLM2-135M-Instruct at "
        "equally many judged answers; what each is: data/experiments/real_rounds.py.", COLUMNS,
        {name: getattr(arguments, name) for name in names}, group_by=("method",), model=arguments.model,
    )  # fmt: skip
    carry_out(about, cells, Lab, arguments)


if __name__ == "__main__":
    main()
