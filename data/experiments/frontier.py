"""True reward against KL for DPO and the roads beside it: `python data/experiments/frontier.py --seeds 3`.

Every method starts from the embedded model and learns from the embedded pairs, whose labels were drawn with noise from
the true reward (σ(difference / 0.3)). It is judged on prompts of the test split by the true reward, at the KL that its
own answers show.

    reward-model   the Bradley–Terry reward model of the seed; what follows with "learnt" climbs it
    dpo            a run per β
    rloo-learnt    RLOO on the learnt reward, a run per β
    ppo-learnt     PPO on the learnt reward, its critic begun from the reward model
    rloo-true      RLOO on the true reward, at 0.3·β: the learnt reward is the true one over the labels' temperature, so
                   this is the same price
    sft            cross-entropy on the chosen answers
    unlikelihood   the DPO paper's baseline, a run per α
    best-of-n      the learnt reward picks among n answers of the base model; KL is the bound log n − (n − 1)/n
    best-of-n-true the same, picked by the true reward

One cell is a method, its knob and a seed. Each is written to data/results/rlhf_frontier.json as it is done, and a
second start goes on with those that are missing. The settings are the defaults of the package, not tuned per method.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from dpo_lab import DPOConfig, SFTConfig, load_policy, load_preferences, train_dpo, train_sft
from dpo_lab.evaluation import best_of_n, kl_of_samples
from dpo_lab.loop import Event
from dpo_lab.preferences import encode_prompt, tokenize_examples, tokenize_pairs
from dpo_lab.rlhf import (
    LearntReward,
    Meter,
    PPOConfig,
    RewardConfig,
    RewardModel,
    RLOOConfig,
    bayes_accuracy,
    best_of_n_kl,
    evaluate_rewards,
    judge_reward,
    sample_best_of_n,
    train_ppo,
    train_reward_model,
    train_rloo,
    train_unlikelihood,
)
from dpo_lab.sampling import generate_ids
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket.quality import quality

RESULTS = Path(__file__).resolve().parents[1] / "results"
NAME = "rlhf_frontier"
LABEL_TEMPERATURE = 0.3
PROMPT_SEED = 77_000  # those of data/measure.py
MAX_NEW_TOKENS = 80
BETAS = (0.1, 0.3, 0.5, 1.0, 2.0)
SIZES = (1, 2, 4, 8, 16)


class Cell(NamedTuple):
    """One run: what identifies its row."""

    method: str
    knob: float
    seed: int


def cells(seeds: int) -> list[Cell]:
    """Everything that is to be run, the seeds one after the other, so that a part is a whole with fewer seeds."""
    found = []
    for seed in range(seeds):
        found += [Cell("base", 0.0, seed), Cell("reward-model", 0.0, seed), Cell("sft", 0.0, seed)]
        found += [Cell("unlikelihood", alpha, seed) for alpha in (0.1, 0.5)]
        found += [Cell(method, 0.0, seed) for method in ("best-of-n", "best-of-n-true")]
        found += [Cell("dpo", beta, seed) for beta in BETAS]
        found += [Cell(method, beta, seed) for beta in BETAS for method in ("rloo-learnt", "ppo-learnt", "rloo-true")]
    return found


class Lab:
    """What the cells share: data, prompts to judge by, and the reward model of each seed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.work = arguments, Path(arguments.work)
        self.reference, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.pairs = load_preferences("embedded", split="train")
        if arguments.pairs:
            self.pairs = self.pairs.select(range(arguments.pairs))
        self.test_pairs = load_preferences("embedded", split="test")
        self.conversations = corpus.prompts(arguments.prompts, split="test", seed=PROMPT_SEED)
        self.rows = [conversation.row() for conversation in self.conversations]
        self.ids = [encode_prompt(row, self.tokenizer) for row in self.rows]
        self.data, _ = tokenize_pairs(self.pairs, self.tokenizer)

    def run(self, cell: Cell) -> list[dict[str, Any]]:
        """The rows of a cell; one, but for best-of-n, which has one for each n."""
        found = getattr(self, cell.method.replace("-", "_"))(cell.knob, cell.seed)
        return [{**cell._asdict(), **row} for row in (found if isinstance(found, list) else [found])]

    def policy(self) -> Any:
        """A new copy of the embedded model, to be trained."""
        return copy.deepcopy(self.reference).requires_grad_(True)

    def settings(self, seed: int) -> dict[str, Any]:
        return {"seed": seed, "device": self.arguments.device, "max_steps": self.arguments.max_steps}

    def judged(self, model: Any, seed: int) -> dict[str, float]:
        """One answer to each test prompt: true and learnt reward, shares, and KL from the embedded model."""
        answers = generate_ids(
            model, self.tokenizer, self.ids, max_new_tokens=MAX_NEW_TOKENS, seed=seed, batch_size=128
        )
        own = [row[0] for row in answers]
        found = quality(self.conversations, [answer.text for answer in own])
        rewards = np.array(judge_reward(self.rows, own))
        drift = kl_of_samples(model, self.reference, self.ids, [[answer.ids] for answer in own])
        learnt = self.learnt(seed)(self.rows, own)
        return found | {
            "reward_standard_error": float(rewards.std(ddof=1) / np.sqrt(len(rewards))),
            "kl": drift.mean, "kl_standard_error": drift.standard_error, "learnt_reward": float(learnt.mean()),
            "tokens": mean(len(answer.ids) for answer in own),
        }  # fmt: skip

    def learnt(self, seed: int) -> LearntReward:
        """The reward model of a seed, trained when it is first needed."""
        folder = self.work / f"reward-model-{seed}"
        if not (folder / "done.json").is_file():
            model = RewardModel.on(self.reference, seed=seed)
            config = RewardConfig(**self.settings(seed))
            costs = spent(lambda: train_reward_model(model, self.tokenizer, self.data, config), Meter(model))
            model.save(folder, self.tokenizer)
            (folder / "done.json").write_text(json.dumps(costs))
        model, tokenizer = RewardModel.load(folder, device=self.arguments.device)
        return LearntReward(model, tokenizer)

    # ── the methods: a knob and a seed in, a row out ─────────────────────────────────────────────────────────────

    def reward_model(self, knob: float, seed: int) -> dict[str, Any]:
        reward = self.learnt(seed)
        held, _ = tokenize_pairs(self.test_pairs, self.tokenizer)
        found = evaluate_rewards(reward.model, held)
        true = [row["reward_chosen"] - row["reward_rejected"] for row in self.test_pairs]
        costs = json.loads((self.work / f"reward-model-{seed}" / "done.json").read_text())
        kept = {"accuracy": "rewards/accuracies", "loss": "loss", "calibration_error": "calibration_error"}
        return {name: found.metrics[metric] for name, metric in kept.items()} | costs | {
            "bayes_accuracy": bayes_accuracy(true, LABEL_TEMPERATURE),
            "agrees_with_truth": float(np.mean(np.sign(found.margins) == np.sign(np.array(true)[held.source_rows]))),
        }  # fmt: skip

    def base(self, knob: float, seed: int) -> dict[str, Any]:
        return self.judged(self.reference, seed)

    def dpo(self, beta: float, seed: int) -> dict[str, Any]:
        model, config = self.policy(), DPOConfig(beta=beta, **self.settings(seed))
        start = lambda: train_dpo(model, self.tokenizer, self.data, config, reference=self.reference)
        return spent(start, Meter(model, self.reference)) | self.judged(model, seed)

    def sft(self, knob: float, seed: int) -> dict[str, Any]:
        model, default = self.policy(), DPOConfig()
        config = SFTConfig(learning_rate=default.learning_rate, epochs=default.epochs, **self.settings(seed))
        data, _ = tokenize_examples(self.pairs, self.tokenizer)
        costs = spent(lambda: train_sft(model, self.tokenizer, data, config), Meter(model))
        return costs | self.judged(model, seed)

    def unlikelihood(self, alpha: float, seed: int) -> dict[str, Any]:
        model, config = self.policy(), DPOConfig(**self.settings(seed))
        start = lambda: train_unlikelihood(model, self.tokenizer, self.data, config, alpha=alpha)
        return spent(start, Meter(model)) | self.judged(model, seed)

    def rloo_learnt(self, beta: float, seed: int) -> dict[str, Any]:
        return self._rloo(self.learnt(seed), beta, seed)

    def rloo_true(self, beta: float, seed: int) -> dict[str, Any]:
        return self._rloo(judge_reward, LABEL_TEMPERATURE * beta, seed)

    def _rloo(self, reward: Any, beta: float, seed: int) -> dict[str, Any]:
        model = self.policy()
        settings = self.settings(seed) | {"max_steps": self.arguments.rollouts}
        config = RLOOConfig(beta=beta, batch_size=32, num_samples=4, epochs=1_000, max_new_tokens=MAX_NEW_TOKENS,
                            schedule="linear", **settings)  # fmt: skip
        start = lambda: train_rloo(model, self.tokenizer, self.pairs, reward, config, reference=self.reference)
        return spent(start) | self.judged(model, seed)

    def ppo_learnt(self, beta: float, seed: int) -> dict[str, Any]:
        model, reward = self.policy(), self.learnt(seed)
        settings = self.settings(seed) | {"max_steps": 4 * self.arguments.rollouts}  # four steps learn from a rollout
        config = PPOConfig(beta=beta, batch_size=128, epochs=1_000, max_new_tokens=MAX_NEW_TOKENS, schedule="linear",
                           **settings)  # fmt: skip
        critic = copy.deepcopy(reward.model).requires_grad_(True)
        start = lambda: train_ppo(
            model, self.tokenizer, self.pairs, reward, config, reference=self.reference, critic=critic
        )
        return spent(start) | self.judged(model, seed)

    def best_of_n(self, knob: float, seed: int) -> list[dict[str, Any]]:
        return self._best_of_n(self.learnt(seed), seed)

    def best_of_n_true(self, knob: float, seed: int) -> list[dict[str, Any]]:
        return self._best_of_n(judge_reward, seed)

    def _best_of_n(self, reward: Any, seed: int) -> list[dict[str, Any]]:
        """Every n from the same answers; costs are those of the largest, for the test prompts alone."""
        models = [reward.model] if isinstance(reward, LearntReward) else []
        began = time.perf_counter()
        with Meter(self.reference, *models) as meter:
            found = sample_best_of_n(self.reference, self.tokenizer, self.rows, max(SIZES), reward, seed=seed,
                                     max_new_tokens=MAX_NEW_TOKENS)  # fmt: skip
            meter.generated_tokens = sum(len(answer.ids) for row in found.candidates for answer in row)
        true = best_of_n(found.rewards, found.rewards_by(judge_reward), SIZES)
        learnt = best_of_n(found.rewards, found.rewards_by(self.learnt(seed)), SIZES)
        seconds = round(time.perf_counter() - began, 1)
        row = lambda n: {
            "n": n, "seconds": seconds, "reward": true[n][0], "reward_standard_error": true[n][1],
            "learnt_reward": learnt[n][0], "kl": float(best_of_n_kl(n)), "kl_is_a_bound": True,
        }  # fmt: skip
        return [row(n) | meter.counts() for n in SIZES]


def spent(start: Callable[[], Iterable[Event]], meter: Meter | None = None) -> dict[str, float]:
    """Carry a training out; its seconds and costs. PPO and RLOO count for themselves."""
    began, last = time.perf_counter(), None
    with meter or nullcontext():
        for event in start():
            last = event
    assert last is not None
    counts = meter.counts() if meter else {k: v for k, v in last.metrics.items() if k.startswith("cost/")}
    return {"seconds": round(time.perf_counter() - began, 1)} | counts


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


def identity(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that a row depends on: rows of other settings are never mixed in."""
    return {name: getattr(arguments, name) for name in ("prompts", "pairs", "rollouts", "max_steps")}


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    kept = json.loads(path.read_text())
    if kept["settings"] != settings:
        raise SystemExit(f"{path} was made with {kept['settings']}, asked for are {settings}; name another --out")
    return kept["rows"]


def write(path: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The JSON, whole or not at all, and the table beside it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    made = {
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": "python data/experiments/frontier.py",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"made": made, "settings": settings, "rows": rows}, indent=1) + "\n")
    partial.replace(path)
    path.with_suffix(".md").write_text(table(made | settings, rows))


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds, a line per method and knob."""
    names = ["reward", "kl", "learnt_reward", "success", "well_formed", "words", "accuracy", "bayes_accuracy",
             "calibration_error", "cost/models", "cost/generated_tokens", "cost/forward_passes", "cost/forward_tokens",
             "cost/trained_tokens", "seconds"]  # fmt: skip
    lines = ["# True reward against KL", "", "DPO and the roads beside it in the pocket world; what each is: "
             "data/experiments/frontier.py. KL of best-of-n is a bound.", ""]  # fmt: skip
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "| method | knob | seeds | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 3)]
    for method, knob in dict.fromkeys((row["method"], row.get("n", row["knob"])) for row in rows):
        own = [row for row in rows if (row["method"], row.get("n", row["knob"])) == (method, knob)]
        lines.append(f"| {method} | {knob:g} | {len(own)} | " + " | ".join(spread(own, name) for name in names) + " |")
    return "\n".join(lines) + "\n"


def spread(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    if name.startswith("cost/"):
        return f"{mean(values):,.0f}"
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=None, help="methods to run; all by default")
    parser.add_argument("--prompts", type=int, default=400, help="test prompts to judge by")
    parser.add_argument("--pairs", type=int, default=None, help="training pairs; all by default")
    parser.add_argument("--rollouts", type=int, default=160, help="rollouts of 128 answers for RLOO and PPO")
    parser.add_argument("--max-steps", type=int, default=None, help="fewer steps for what learns from pairs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "dpo-lab-frontier"),
                        help="where reward models are kept")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json")
    arguments = parser.parse_args()
    settings = identity(arguments)
    rows = read(arguments.out, settings)
    done = {(row["method"], row["knob"], row["seed"]) for row in rows}
    lab = Lab(arguments)
    for cell in cells(arguments.seeds):
        if tuple(cell) in done or (arguments.only and cell.method not in arguments.only):
            continue
        rows += lab.run(cell)
        write(arguments.out, settings, rows)
        shown = {name: value for name, value in rows[-1].items() if name in ("reward", "kl", "accuracy", "seconds")}
        print(*cell, json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
