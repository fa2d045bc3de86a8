"""DPO offline, semi-online and online, RLOO and GRPO, at equal judged answers: `python data/experiments/rounds.py`.

Every run starts from the embedded model, takes as many prompts of the embedded pairs, has as many answers judged, and
takes as many optimiser steps. A cell has a method, a judge (`true`: the pocket world's reward; `learnt`: a reward
model of some of the embedded pairs, others for each seed) and a seed:

    base           the embedded model, where all begin
    offline        DPO; the answers are the base's, the sampler never follows
    better-model   the same with answers of a better model: the base after DPO on embedded pairs
    semi-online-N  DPO; the policy that answers is renewed every N steps
    online         DPO; it is renewed at each step
    rloo, grpo     policy gradient; a rollout has the prompts of one step of online DPO
    random, margin, two, eight   semi-online-4 with another making of pairs: the best answer with a random worse one;
                   scores more than 1 apart; 2 or 8 answers to each of twice or half as many prompts
    pushed         semi-online-4 with a β of 0.05 in place of 0.5: what cheap drift does to a judge

No learning rate is searched here: each is 1e-3, which offline_online.py took for DPO and which won for RLOO in
frontier.py. β and all else are each method's defaults in this package. A run is short, so that all of it fits an hour.

Of every answer that is judged in training the true reward is kept too, as `judged`: the means of the judge's score and
of the truth, for each quarter of the run. In the middle of a run and at its end the policy gives two answers to each
test prompt (in the middle to half of them), as `looks`: true reward, the judge's score, KL from the base, length, the
share of mixed prompts (the two differ in the judge's score), and how often the implicit reward ranks the two as the
judge does (`accuracy`), and as the truth does. Seconds are CPU seconds of training without the looks.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import cache
from typing import Any

import numpy as np
from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab import DPOConfig, load_policy, load_preferences, train_dpo
from dpo_lab.course.rlhf import (
    GRPOConfig,
    LearntReward,
    RewardConfig,
    RewardModel,
    RLOOConfig,
    judge_reward,
    train_grpo,
    train_reward_model,
    train_rloo,
)
from dpo_lab.logprobs import score
from dpo_lab.loop import Step
from dpo_lab.preferences import encode_prompt
from dpo_lab.sampling import generate_ids
from dpo_lab.workbench.evaluation.kl import answer_tokens
from dpo_lab.workbench.rounds import RoundsConfig, train_rounds
from dpo_lab.worlds import corpus

ANSWERS, MAX_NEW_TOKENS, BATCH, RATE, TEST_SEED = 4, 64, 16, 1e-3, 79_000
INTERVALS = (8, 4, 2)
OTHERWISE: dict[str, dict[str, Any]] = {
    "random": {"pair_by": "best_random"}, "margin": {"margin": 1.0}, "two": {"answers": 2}, "eight": {"answers": 8},
    "pushed": {"beta": 0.05}, "offline": {"sampler": "never"}, "better-model": {"sampler": "never"},
}  # fmt: skip
COLUMNS = ("reward", "kl", "accuracy", "mixed", "words", "learnt", "pairs", "judged_answers", "steps", "seconds")


def cells(seeds: int) -> list[Cell]:
    """A comparison on all seeds before the next comparison, so that a run may be cut short."""
    of = lambda judge, *methods: [{"method": method, "judge": judge, "seed": seed}
                                  for seed in range(seeds) for method in methods]  # fmt: skip
    semi = [f"semi-online-{interval}" for interval in INTERVALS]
    return [
        *of("true", "base", "offline", "semi-online-4", "online"), *of("true", "rloo", "grpo"),
        *of("learnt", "pushed", "semi-online-4"), *of("true", "better-model"),
        *of("true", *(name for name in semi if name != "semi-online-4")), *of("true", "random", "margin"),
        *of("true", "two", "eight"), *of("learnt", "offline", "online", "rloo", "grpo"),
    ]  # fmt: skip


class Lab:
    """What the cells share: the model, the prompts to learn from and to judge by."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.reference, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.pairs = load_preferences("embedded", split="train")
        self.rows = list(self.pairs)
        self.test = [one.row() for one in corpus.prompts(arguments.test_prompts, split="test", seed=TEST_SEED)]
        self.learnt, self.better = cache(self._learnt), cache(self._better)

    def run(self, cell: Cell) -> Result:
        """The row of a cell. Raises where a method was not given the judged answers that all are given."""
        method, seed = cell["method"], cell["seed"]
        judge = self.learnt(seed) if cell["judge"] == "learnt" else judge_reward
        model, judged = copy.deepcopy(self.reference).requires_grad_(True), []

        def watched(rows: Any, answers: Any) -> Any:
            """The judge; what it said, and the truth, are written down."""
            said = judge(rows, answers)
            true = said if judge is judge_reward else judge_reward(rows, answers)
            judged.append((len(answers), float(np.sum(said)), float(np.sum(true))))
            return said

        found: Result = {}
        if method != "base":
            train = self.by_gradient if method in ("rloo", "grpo") else self.in_rounds
            found = self.trained(model, train(model, method, watched, seed), judge, seed)
            expected, number = self.arguments.prompts * ANSWERS, sum(num for num, *_ in judged)
            assert number == expected, f"{method}: {number} answers were judged, not {expected}"
            found |= {"judged_answers": number, "judged": quarters(judged)}
        looks = [*found.pop("looks", []), self.look(model, judge, seed, len(self.test))]
        last = {name: value for name, value in looks[-1].items() if name != "judge"}
        return found | last | {"looks": looks} | ({} if judge is judge_reward else {"learnt": looks[-1]["judge"]})

    # ── the methods ──────────────────────────────────────────────────────────────────────────────────────────────

    def in_rounds(self, model: Any, method: str, judge: Any, seed: int) -> Any:
        settings: dict[str, Any] = {"answers": ANSWERS, "sampler": "round"} | OTHERWISE.get(method, {})
        interval = int(method.rpartition("-")[2]) if method.startswith("semi") else 1 if method == "online" else 4
        rounds = self.arguments.steps // interval
        prompts = self.arguments.prompts * ANSWERS // settings["answers"] // rounds
        config = RoundsConfig(rounds=rounds, steps=interval, prompts=prompts, batch_size=BATCH, **settings,
                              **self.shared(seed))  # fmt: skip
        if method == "better-model":  # an offline run samples from the model as it is at the call
            model.load_state_dict(self.better().state_dict())
        events = train_rounds(model, self.tokenizer, self.rows, judge, config, reference=self.reference)
        model.load_state_dict(self.reference.state_dict())
        return events

    def by_gradient(self, model: Any, method: str, judge: Any, seed: int) -> Any:
        steps = self.arguments.steps
        train, config = {"rloo": (train_rloo, RLOOConfig), "grpo": (train_grpo, GRPOConfig)}[method]
        settings = config(batch_size=self.arguments.prompts // steps, num_samples=ANSWERS, max_steps=steps,
                          epochs=1_000, schedule="linear", warmup=0.1, **self.shared(seed))  # fmt: skip
        return train(model, self.tokenizer, self.rows, judge, settings, reference=self.reference)

    def shared(self, seed: int) -> dict[str, Any]:
        return {"learning_rate": RATE, "seed": seed, "device": self.arguments.device,
                "max_new_tokens": MAX_NEW_TOKENS, "max_length": 256}  # fmt: skip

    def trained(self, model: Any, events: Any, judge: Any, seed: int) -> Result:
        """Train, and look in the middle of the steps; seconds are those of training."""
        looks, pairs, mixed, step, spent, began = [], 0.0, [], 0, 0.0, time.process_time()
        for event in events:
            metrics = getattr(event, "metrics", {})
            if "mixed" in metrics:
                pairs, mixed = pairs + metrics["pairs"], [*mixed, round(metrics["mixed"], 4)]
            if isinstance(event, Step):
                step = event.step
                if 2 * step == self.arguments.steps:
                    spent += time.process_time() - began
                    looks.append({"step": step, "seconds": round(spent, 2)})
                    looks[-1] |= self.look(model, judge, seed, len(self.test) // 2)
                    began = time.process_time()
        spent += time.process_time() - began
        found = {"looks": looks, "steps": step, "seconds": round(spent, 1)}
        return found | ({"pairs": int(pairs), "mixed_in_training": mixed} if mixed else {})

    # ── judges, and a better model ───────────────────────────────────────────────────────────────────────────────

    def _learnt(self, seed: int) -> LearntReward:
        """A reward model of some of the embedded pairs, others for each seed."""
        model = RewardModel.on(self.reference, seed=seed)
        pairs = self.pairs.shuffle(seed=seed).select(range(self.arguments.judge_pairs))
        list(train_reward_model(model, self.tokenizer, pairs, RewardConfig(seed=seed, device=self.arguments.device)))
        return LearntReward(model, self.tokenizer)

    def _better(self) -> Any:
        model = copy.deepcopy(self.reference).requires_grad_(True)
        pairs = self.pairs.select(range(self.arguments.better_pairs))
        list(train_dpo(model, self.tokenizer, pairs, DPOConfig(learning_rate=RATE, device=self.arguments.device),
                       reference=self.reference))  # fmt: skip
        return model

    def look(self, model: Any, judge: Any, seed: int, num: int) -> Result:
        """What the policy's own fresh answers say. Accuracies are None where no two answers differ."""
        rows = self.test[:num]
        ids = [encode_prompt(row, self.tokenizer) for row in rows]
        own = generate_ids(model, self.tokenizer, ids, max_new_tokens=MAX_NEW_TOKENS, num_samples=2, seed=seed)
        flat = [one for both in own for one in both]
        by = lambda judge: np.reshape(judge([row for row in rows for _ in range(2)], flat), (-1, 2))
        data = answer_tokens(ids, [[one.ids for one in both] for both in own])
        implicit = (score(model, data) - score(self.reference, data)).astype(np.float64)  # β scales all alike
        true, said = by(judge_reward), by(judge)

        def agreement(worth: np.ndarray) -> float | None:
            signs = np.sign(np.diff(implicit) * np.diff(worth))[np.ptp(worth, axis=1) > 0]
            return round(float(0.5 + 0.5 * signs.mean()), 4) if len(signs) else None

        return {
            "reward": round(float(true.mean()), 4),
            "reward_standard_error": round(float(true.mean(1).std(ddof=1) / len(true) ** 0.5), 4),
            "judge": round(float(said.mean()), 4), "kl": round(float(implicit.mean()), 4),
            "accuracy": agreement(said), "accuracy_true": agreement(true),
            "mixed": round(float((np.ptp(said, axis=1) > 0).mean()), 4),
            "words": round(float(np.mean([len(one.text.split()) for one in flat])), 3),
        }  # fmt: skip


def quarters(judged: list[tuple[int, float, float]]) -> list[list[float]]:
    """For each quarter of the judged answers: means of the judge's score and of the truth."""
    ends = np.cumsum([num for num, *_ in judged])
    parts = np.minimum((4 * (ends - 1)) // ends[-1], 3)
    table = np.array(judged)
    return [(table[parts == part, 1:].sum(0) / table[parts == part, 0].sum()).round(4).tolist()
            for part in sorted(set(parts))]  # fmt: skip


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=16, help="optimiser steps of a run, a multiple of 8 "
                      "(default: %(default)s)")  # fmt: skip
    made.add_argument("--prompts", type=int, default=256, help="prompts of a run, a multiple of the steps "
                      "(default: %(default)s)")  # fmt: skip
    made.add_argument("--test-prompts", type=int, default=150, help="prompts to judge by (default: %(default)s)")
    made.add_argument("--judge-pairs", type=int, default=384, help="pairs the learnt judge has seen "
                      "(default: %(default)s)")  # fmt: skip
    made.add_argument("--better-pairs", type=int, default=1024, help="pairs of the better model (default: %(default)s)")
    return made


def main() -> None:
    arguments = options().parse_args()
    if arguments.steps % 8 or arguments.prompts % arguments.steps:
        raise SystemExit(f"--steps must be a multiple of 8 and divide --prompts, got {arguments.steps} and "
                         f"{arguments.prompts}; each step takes whole prompts, each interval whole steps")  # fmt: skip
    names = ("steps", "prompts", "test_prompts", "judge_pairs", "better_pairs")
    about = Experiment(
        "rounds", "Offline, semi-online and online", "DPO in rounds beside RLOO and GRPO at equally many judged "
        "answers in the pocket world; what each is: data/experiments/rounds.py. KL is in nats per answer; accuracy is "
        "that of the implicit reward on the policy's own fresh answers at the end, mixed the share of prompts whose "
        "two answers differ in the judge's score; learnt is the learnt judge's score; seconds are CPU seconds of "
        "training.", COLUMNS, {name: getattr(arguments, name) for name in names}, group_by=("method", "judge"),
    )  # fmt: skip
    carry_out(about, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    main()
