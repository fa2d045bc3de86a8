"""True reward against KL for DPO and the methods beside it: `python data/experiments/frontier.py --seeds 3`.

Every method starts from the embedded model and learns from the embedded pairs, whose labels were drawn with noise from
the true reward (σ(difference / 0.3)). It is judged on prompts of the test split by the true reward, at the KL that its
own answers show.

    base           the embedded model, where every curve begins
    reward-model   the Bradley–Terry reward model of the seed; what follows with "learnt" climbs it
    tune-…         learning rates of RLOO and PPO, judged on prompts of the train split: the best one is used below
    dpo            a run per β
    sft            cross-entropy on the chosen answers, a run per learning rate
    unlikelihood   the DPO paper's baseline, a run per α
    rloo-learnt    RLOO on the learnt reward, a run per β
    ppo-learnt     PPO on the learnt reward, its critic begun from the reward model
    ppo-true       PPO on the true reward over the labels' temperature, 0.3: what the learnt reward estimates, so that
                   one β is the same price. Its critic begins from the reward model too: only the reward differs
    rloo-true      RLOO on the same true reward at one β, with 24 rollouts, with 80, which are as many judged answers as
                   DPO has judged pairs, and with ten times the 24. A run per number of rollouts
    ppo-longer     PPO on the true reward at that β, with 240 rollouts
    best-of-n      the learnt reward picks among n answers of the base model
    best-of-n-true the same, picked by the true reward

Equal effort: every method but the last has three settings of the one knob that moves it along KL, and no other knob is
searched but the learning rate of RLOO and PPO, with three values; DPO's default was chosen likewise (data/measure.py
sweep).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from statistics import mean
from typing import Any

import numpy as np
from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab import DPOConfig, SFTConfig, load_policy, load_preferences, train_dpo, train_sft
from dpo_lab.course.rlhf import (
    LearntReward,
    Meter,
    PPOConfig,
    RewardConfig,
    RewardModel,
    RLOOConfig,
    bayes_accuracy,
    best_of_n_kl,
    best_of_n_kl_of_samples,
    evaluate_rewards,
    judge_reward,
    sample_best_of_n,
    train_ppo,
    train_reward_model,
    train_rloo,
    train_unlikelihood,
)
from dpo_lab.loop import Event
from dpo_lab.preferences import encode_prompt, tokenize_examples, tokenize_pairs
from dpo_lab.reference import fingerprint
from dpo_lab.sampling import generate_ids
from dpo_lab.storage.locks import locked
from dpo_lab.workbench.evaluation import best_of_n, kl_of_samples
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket.quality import quality

LABEL_TEMPERATURE = 0.3
PROMPT_SEED, VALIDATION_SEED = 77_000, 78_000
MAX_NEW_TOKENS, ANSWERS = 80, 16
SETTINGS: dict[str, tuple[float, ...]] = {
    "dpo": (0.1, 0.5, 2.0),
    "rloo-learnt": (0.1, 0.5, 2.0),
    "ppo-learnt": (0.1, 0.5, 2.0),
    "ppo-true": (0.1, 0.5, 2.0),
    "sft": (1e-4, 3e-4, 1e-3),
    "unlikelihood": (0.1, 0.3, 0.5),
    "best-of-n": (2, 4, 8),
    "best-of-n-true": (2, 4, 8),
}
"""The settings of each method's knob: β, the learning rate of SFT, α of unlikelihood, n."""
RATES = {"tune-rloo": (3e-4, 1e-3, 3e-3), "tune-ppo": (1e-4, 3e-4, 1e-3)}
TUNING_BETA = 0.5
LONGER = {"ppo-longer": (240,), "rloo-true": (240, 80, 24)}
LONGER_BETA, LONGER_RATE = 2.0, {"ppo-longer": 3e-4, "rloo-true": 1e-3}
"""Rollouts of RLOO and PPO on the true reward: 80 × 128 answers are 10,240, and DPO's pairs are 10,240. The learning
rates are those that tune-rloo and tune-ppo found; at this β the runs stay where DPO was measured."""
REWARD_MODEL = ("reward model: learning rate", "reward model: epochs")
CHOICES: dict[str, tuple[str, ...]] = {
    "dpo": ("beta", "learning_rate", "epochs"),
    "sft": ("learning_rate", "epochs"),
    "unlikelihood": ("alpha", "learning_rate", "epochs"),
    "best-of-n": (*REWARD_MODEL, "n"),
    "rloo-learnt": (*REWARD_MODEL, "beta", "learning_rate", "max_steps", "num_samples", "max_new_tokens"),
    "ppo-learnt": (*REWARD_MODEL, "beta", "learning_rate", "max_steps", "max_new_tokens", "passes", "minibatches",
                   "clip", "gae_lambda", "value_weight", "normalise_advantages", "num_samples"),
}  # fmt: skip
"""What has to be chosen beyond what every training has (batch, optimiser, schedule); the number of knobs."""
COLUMNS = ("reward", "kl", "kl_bound", "learnt_reward", "success", "well_formed", "words", "learning_rate", "accuracy",
           "bayes_accuracy", "calibration_error", "knobs", "cost/models", "cost/generated_tokens",
           "cost/forward_passes", "cost/forward_tokens", "cost/trained_tokens", "seconds")  # fmt: skip


def cells(seeds: int) -> list[Cell]:
    """Every run once. What others need comes first, so that no worker has to wait for it or make it again."""
    made = lambda method, knob, seed: {"method": method, "knob": knob, "seed": seed}
    found = [made("reward-model", 0.0, seed) for seed in range(seeds)]
    found += [made(method, rate, 0) for method, rates in RATES.items() for rate in rates]
    for seed in range(seeds):
        found += [made("base", 0.0, seed), made("best-of-n", 0.0, seed), made("best-of-n-true", 0.0, seed)]
        found += [made(method, knob, seed) for method, knobs in SETTINGS.items() if not method.startswith("best-of-n")
                  for knob in knobs]  # fmt: skip
    found += [made(method, rollouts, seed) for method, numbers in LONGER.items() for rollouts in numbers
              for seed in range(seeds)]  # fmt: skip
    return found


class Lab:
    """What the cells share: data, prompts to judge by, the reward model of each seed, the rates that were tuned."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.reference, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.pairs = load_preferences("embedded", split="train")
        if arguments.pairs:
            self.pairs = self.pairs.select(range(arguments.pairs))
        self.data, _ = tokenize_pairs(self.pairs, self.tokenizer)
        identity = json.dumps(settings_of(arguments) | {"model": fingerprint(self.reference)}, sort_keys=True)
        self.work = arguments.work / f"frontier-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.test = corpus.prompts(arguments.prompts, split="test", seed=PROMPT_SEED)
        self.validation = corpus.prompts(arguments.prompts, split="train", seed=VALIDATION_SEED)

    def run(self, cell: Cell) -> Result | list[Result]:
        """The row of a cell; best-of-n has one for each n."""
        method, knob, seed = cell["method"], cell["knob"], cell["seed"]
        if method in RATES:
            return self.tuned_run(method, knob)
        return getattr(self, method.replace("-", "_"))(knob, seed)

    def policy(self) -> Any:
        """A new copy of the embedded model, to be trained."""
        return copy.deepcopy(self.reference).requires_grad_(True)

    def settings(self, seed: int) -> dict[str, Any]:
        return {"seed": seed, "device": self.arguments.device, "max_steps": self.arguments.max_steps}

    def judged(self, model: Any, seed: int, conversations: list[Any] | None = None, *,
               has_learnt: bool = True) -> Result:  # fmt: skip
        """One answer to each test prompt: true and learnt reward, shares, and KL from the embedded model."""
        conversations = self.test if conversations is None else conversations
        rows = [conversation.row() for conversation in conversations]
        ids = [encode_prompt(row, self.tokenizer) for row in rows]
        answers = generate_ids(model, self.tokenizer, ids, max_new_tokens=MAX_NEW_TOKENS, seed=seed, batch_size=128)
        own = [row[0] for row in answers]
        rewards = np.array(judge_reward(rows, own))
        drift = kl_of_samples(model, self.reference, ids, [[answer.ids] for answer in own])
        return quality(conversations, [answer.text for answer in own]) | {
            "reward_standard_error": float(rewards.std(ddof=1) / np.sqrt(len(rewards))),
            "kl": drift.mean, "kl_standard_error": drift.standard_error,
            "tokens": mean(len(answer.ids) for answer in own),
        } | ({"learnt_reward": float(self.learnt(seed)(rows, own).mean())} if has_learnt else {})  # fmt: skip

    # ── the reward model, and the learning rates ─────────────────────────────────────────────────────────────────

    def learnt(self, seed: int) -> LearntReward:
        """The reward model of a seed, trained when it is first needed."""
        folder = self.work / f"reward-model-{seed}"
        with locked(self.work / f"reward-model-{seed}.lock", patience=3600):  # another worker may be training it
            if not (folder / "costs.json").is_file():
                model = RewardModel.on(self.reference, seed=seed)
                config = RewardConfig(**self.settings(seed))
                costs = spent(lambda: train_reward_model(model, self.tokenizer, self.data, config), Meter(model))
                model.save(folder, self.tokenizer)
                (folder / "costs.json").write_text(json.dumps(costs))
        model, tokenizer = RewardModel.load(folder, device=self.arguments.device)
        return LearntReward(model, tokenizer)

    def reward_model(self, knob: float, seed: int) -> Result:
        """How well it ranks held-out pairs, beside the rate that nobody can pass."""
        reward, test_pairs = self.learnt(seed), load_preferences("embedded", split="test")
        held, _ = tokenize_pairs(test_pairs, self.tokenizer)
        found = evaluate_rewards(reward.model, held)
        true = np.array([row["reward_chosen"] - row["reward_rejected"] for row in test_pairs])
        named = {"accuracy": "rewards/accuracies", "loss": "loss", "calibration_error": "calibration_error"}
        costs = json.loads((self.work / f"reward-model-{seed}" / "costs.json").read_text())
        return {name: found.metrics[metric] for name, metric in named.items()} | costs | {
            "bayes_accuracy": bayes_accuracy(true, LABEL_TEMPERATURE),
            "agrees_with_truth": float(np.mean(np.sign(found.margins) == np.sign(true[held.source_rows]))),
        }  # fmt: skip

    def tuned_run(self, method: str, rate: float) -> Result:
        """A run at one learning rate, judged on prompts of the train split; cached, so that it is made only once."""
        path = self.work / f"{method}-{rate:g}.json"
        with locked(path.with_suffix(".lock"), patience=3600):
            if not path.is_file():
                train = {"tune-rloo": self.trained_by_rloo, "tune-ppo": self.trained_by_ppo}[method]
                model, costs = train(self.learnt(0), TUNING_BETA, seed=0, learning_rate=rate)
                path.write_text(json.dumps(costs | self.judged(model, 0, self.validation)))
            return json.loads(path.read_text())

    def rate(self, method: str) -> float:
        """The learning rate with the highest true reward on the validation prompts."""
        return max(RATES[method], key=lambda rate: self.tuned_run(method, rate)["reward"])

    # ── the methods: a knob and a seed in, a row out ─────────────────────────────────────────────────────────────

    def base(self, knob: float, seed: int) -> Result:
        return self.judged(self.reference, seed) | {"kl": 0.0, "kl_standard_error": 0.0}

    def dpo(self, beta: float, seed: int) -> Result:
        model, config = self.policy(), DPOConfig(beta=beta, **self.settings(seed))
        start = lambda: train_dpo(model, self.tokenizer, self.data, config, reference=self.reference)
        return self.row("dpo", model, seed, config.learning_rate, spent(start, Meter(model, self.reference)))

    def sft(self, rate: float, seed: int) -> Result:
        model, config = self.policy(), SFTConfig(learning_rate=rate, epochs=DPOConfig().epochs, **self.settings(seed))
        data, _ = tokenize_examples(self.pairs, self.tokenizer)
        start = lambda: train_sft(model, self.tokenizer, data, config)
        return self.row("sft", model, seed, rate, spent(start, Meter(model)))

    def unlikelihood(self, alpha: float, seed: int) -> Result:
        model, config = self.policy(), DPOConfig(**self.settings(seed))
        start = lambda: train_unlikelihood(model, self.tokenizer, self.data, config, alpha=alpha)
        return self.row("unlikelihood", model, seed, config.learning_rate, spent(start, Meter(model)))

    def rloo_learnt(self, beta: float, seed: int) -> Result:
        rate = self.rate("tune-rloo")
        model, costs = self.trained_by_rloo(self.learnt(seed), beta, seed=seed, learning_rate=rate)
        return self.row("rloo-learnt", model, seed, rate, costs)

    def ppo_learnt(self, beta: float, seed: int) -> Result:
        rate = self.rate("tune-ppo")
        model, costs = self.trained_by_ppo(self.learnt(seed), beta, seed=seed, learning_rate=rate)
        return self.row("ppo-learnt", model, seed, rate, costs)

    def ppo_true(self, beta: float, seed: int) -> Result:
        rate = self.rate("tune-ppo")
        model, costs = self.trained_by_ppo(true_reward, beta, seed=seed, learning_rate=rate)
        return self.row("ppo-true", model, seed, rate, costs)

    def rloo_true(self, rollouts: int, seed: int) -> Result:
        model, costs = self.trained_by_rloo(
            true_reward, LONGER_BETA, seed=seed, learning_rate=LONGER_RATE["rloo-true"], rollouts=rollouts
        )
        return costs | {"learning_rate": LONGER_RATE["rloo-true"]} | self.judged(model, seed, has_learnt=False)

    def ppo_longer(self, rollouts: int, seed: int) -> Result:
        model, costs = self.trained_by_ppo(
            true_reward, LONGER_BETA, seed=seed, learning_rate=LONGER_RATE["ppo-longer"], rollouts=rollouts
        )
        return costs | {"learning_rate": LONGER_RATE["ppo-longer"]} | self.judged(model, seed)

    def row(self, method: str, model: Any, seed: int, learning_rate: float, costs: Result) -> Result:
        knobs = {"knobs": len(CHOICES[method])} if method in CHOICES else {}
        return costs | knobs | {"learning_rate": learning_rate} | self.judged(model, seed)

    def trained_by_rloo(self, reward: Any, beta: float, *, seed: int, learning_rate: float,
                        rollouts: int | None = None) -> tuple[Any, Result]:  # fmt: skip
        model, sampling = self.policy(), self.sampling(seed, steps_per_rollout=1)
        sampling |= {"max_steps": rollouts or self.arguments.rollouts}
        config = RLOOConfig(beta=beta, learning_rate=learning_rate, **sampling)
        start = lambda: train_rloo(model, self.tokenizer, self.pairs, reward, config, reference=self.reference)
        return model, spent(start)

    def trained_by_ppo(self, reward: Any, beta: float, *, seed: int, learning_rate: float,
                       rollouts: int | None = None) -> tuple[Any, Result]:  # fmt: skip
        model, critic = self.policy(), copy.deepcopy(self.learnt(seed).model).requires_grad_(True)
        sampling = self.sampling(seed, steps_per_rollout=4)
        sampling |= {"max_steps": 4 * (rollouts or self.arguments.rollouts)}
        config = PPOConfig(beta=beta, learning_rate=learning_rate, **sampling)
        start = lambda: train_ppo(
            model, self.tokenizer, self.pairs, reward, config, reference=self.reference, critic=critic
        )
        return model, spent(start)

    def sampling(self, seed: int, *, steps_per_rollout: int) -> Result:
        """Four answers to each of 32 prompts a rollout, and as many rollouts, for both."""
        return self.settings(seed) | {
            "batch_size": 32, "num_samples": 4, "max_steps": steps_per_rollout * self.arguments.rollouts,
            "epochs": 1_000, "max_new_tokens": MAX_NEW_TOKENS, "schedule": "linear", "warmup": 0.1,
        }  # fmt: skip

    def best_of_n(self, knob: float, seed: int) -> list[Result]:
        return self.picked(self.learnt(seed), "best-of-n", seed)

    def best_of_n_true(self, knob: float, seed: int) -> list[Result]:
        return self.picked(judge_reward, "best-of-n-true", seed)

    def picked(self, reward: Any, method: str, seed: int) -> list[Result]:
        """Every n from the same 16 answers to each test prompt; the costs are those of all of them."""
        models = [reward.model] if isinstance(reward, LearntReward) else []
        began, rows = time.perf_counter(), [conversation.row() for conversation in self.test]
        with Meter(self.reference, *models) as meter:
            found = sample_best_of_n(self.reference, self.tokenizer, rows, ANSWERS, reward, seed=seed,
                                     max_new_tokens=MAX_NEW_TOKENS)  # fmt: skip
            meter.generated_tokens = sum(len(answer.ids) for row in found.candidates for answer in row)
        costs = meter.counts() | {"seconds": round(time.perf_counter() - began, 1)}
        costs |= {"knobs": len(CHOICES[method])} if method in CHOICES else {}
        sizes = [int(n) for n in SETTINGS[method]]
        true = best_of_n(found.rewards, found.rewards_by(judge_reward), sizes)
        learnt = best_of_n(found.rewards, found.rewards_by(self.learnt(seed)), sizes)
        return [costs | {
            "knob": n, "reward": true[n][0], "reward_standard_error": true[n][1], "learnt_reward": learnt[n][0],
            "kl": best_of_n_kl_of_samples(found.rewards, n), "kl_bound": float(best_of_n_kl(n)),
        } for n in sizes]  # fmt: skip


def true_reward(prompts: Sequence[Any], answers: Sequence[Any]) -> np.ndarray:
    """The judge's points over the labels' temperature: labels are drawn with σ of their difference."""
    return np.array(judge_reward(prompts, answers)) / LABEL_TEMPERATURE


def spent(start: Callable[[], Iterable[Event]], meter: Meter | None = None) -> Result:
    """Carry a training out; its seconds and costs. PPO and RLOO count for themselves."""
    began, last = time.perf_counter(), None
    with meter or nullcontext():
        for event in start():
            last = event
    assert last is not None
    counts = meter.counts() if meter else {k: v for k, v in last.metrics.items() if k.startswith("cost/")}
    return {"seconds": round(time.perf_counter() - began, 1)} | counts


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every row depends on."""
    return {name: getattr(arguments, name) for name in ("prompts", "pairs", "rollouts", "max_steps")}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--prompts", type=int, default=256, help="prompts to judge by, of each split")
    options.add_argument("--pairs", type=int, default=None, help="training pairs; all by default")
    options.add_argument("--rollouts", type=int, default=24, help="rollouts of 128 answers for RLOO and PPO")
    options.add_argument("--max-steps", type=int, default=None, help="fewer steps for what learns from pairs")
    arguments = options.parse_args()
    about = Experiment(
        "rlhf_frontier", "True reward against KL", "DPO and the methods beside it in the pocket world; what each is: "
        "data/experiments/frontier.py. KL in nats per answer; of best-of-n it is estimated from the rewards of 16 "
        "answers, and kl_bound is log n − (n − 1)/n.", COLUMNS, settings_of(arguments),
    )  # fmt: skip
    carry_out(about, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    main()
