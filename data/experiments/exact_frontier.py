"""Reward against KL where both are exact: `python data/experiments/exact_frontier.py --seeds 3`.

The enumerable world: a small transformer all of whose answers can be listed, so every policy's reward and KL are sums,
not estimates, and the best reward for each KL is known (`worlds.tabular.frontier`). Methods start from the world's
reference and share its sampled comparisons (Bradley–Terry, temperature 1, so learnt and true reward have one scale and
one β means one optimum):

    base           the reference, where every curve begins
    frontier       π*, exact, without a seed; best-of-n by the true reward is exact too
    dpo            on the comparisons, trained until it stands still
    sft            cross-entropy on the winners, a run per number of epochs
    unlikelihood   winners up, losers down, a run per α
    rloo-learnt, ppo-learnt   on a reward model learnt from the comparisons
    rloo-true, ppo-true       on the true reward

`shortfall` is what a policy's reward lacks of the best reward at its own KL; `total_variation` is from π* at the same
β, at the worst prompt, and `from_sample` from the optimum for the rewards that fit the run's comparisons best.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab.config import DPOConfig, SFTConfig
from dpo_lab.course.rlhf import (
    LearntReward,
    PPOConfig,
    RewardConfig,
    RewardModel,
    RLOOConfig,
    best_of_n_logps,
    train_ppo,
    train_reward_model,
    train_rloo,
    train_unlikelihood,
)
from dpo_lab.course.statistics import reward_at_kl
from dpo_lab.loop import Event
from dpo_lab.preferences import TokenData
from dpo_lab.training import train_dpo, train_sft
from dpo_lab.worlds.comparisons import Comparisons, fit_rewards, sample_comparisons
from dpo_lab.worlds.enumerable import EnumerableWorld, enumerable_world
from dpo_lab.worlds.letters import LetterReward, letter_tokenizer, prompt_tokens
from dpo_lab.worlds.tabular import expected_reward, frontier, kl, objective, optimal_logps, total_variation

LETTERS = "ab"
BETAS = (0.25, 0.5, 1.0)
SETTINGS: dict[str, tuple[float, ...]] = {
    "dpo": BETAS,
    "rloo-learnt": BETAS,
    "ppo-learnt": BETAS,
    "rloo-true": BETAS,
    "ppo-true": BETAS,
    "sft": (0.5, 2.0, 8.0),
    "unlikelihood": (0.1, 0.3, 0.5),
}
"""The settings of each method's knob: β, the epochs of SFT, α of unlikelihood."""
EXACT = {
    "base": (0.0,),
    "frontier": (0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0),
    "best-of-n": (1, 2, 4, 8, 16, 32),
}
SAMPLING = {"batch_size": 32, "num_samples": 4, "max_new_tokens": 3, "max_length": 16, "epochs": 10_000,
            "device": "cpu", "learning_rate": 5e-3, "schedule": "cosine", "log_every": 40}  # fmt: skip
PAIRS = {"batch_size": 64, "learning_rate": 3e-3, "schedule": "cosine", "device": "cpu", "log_every": 100}
COLUMNS = ("reward", "kl", "shortfall", "objective", "total_variation", "from_sample", "cell_seconds")


def cells(seeds: int) -> list[Cell]:
    """What is exact once, what is trained once per seed."""
    made = lambda method, knob, seed: {"method": method, "knob": float(knob), "seed": seed}
    found = [made(method, knob, 0) for method, knobs in EXACT.items() for knob in knobs]
    return found + [made(method, knob, seed) for seed in range(seeds) for method, knobs in SETTINGS.items()
                    for knob in knobs]  # fmt: skip


def token_pairs(world: EnumerableWorld, drawn: Comparisons) -> TokenData:
    """Comparisons as token ids, as every method that learns from pairs sees them."""
    prompts, tree = prompt_tokens(world), world.tree
    ids = [tree.encode(text).numpy() for text in tree.responses]
    columns = zip(drawn.prompt.tolist(), drawn.chosen.tolist(), drawn.rejected.tolist(), strict=True)
    return TokenData.from_rows((prompts[x], (ids[won], ids[lost])) for x, won, lost in columns)


def winners(world: EnumerableWorld, drawn: Comparisons) -> TokenData:
    """The chosen answers alone, for SFT."""
    prompts, tree = prompt_tokens(world), world.tree
    ids = [tree.encode(text).numpy() for text in tree.responses]
    columns = zip(drawn.prompt.tolist(), drawn.chosen.tolist(), strict=True)
    return TokenData.from_rows((prompts[x], (ids[won],)) for x, won in columns)


class Lab:
    """The world, and for each seed its comparisons and the reward model learnt from them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(1)  # small tables gain nothing from threads
        self.arguments, self.world = arguments, enumerable_world(letters=LETTERS)
        self.tokenizer, self.prompts = letter_tokenizer(LETTERS), prompt_tokens(self.world)
        table = self.world.table
        curve = frontier(table, np.geomspace(0.02, 50, 400).tolist())
        start = float(expected_reward(table, table.reference_logps))
        self.frontier = np.append(curve.kl.numpy(), 0.0), np.append(curve.rewards.numpy(), start)
        self.comparisons, self.reward_model = cache(self.comparisons), cache(self.reward_model)

    def comparisons(self, seed: int) -> Comparisons:
        return sample_comparisons(
            self.world.table, self.arguments.comparisons, generator=torch.Generator().manual_seed(seed)
        )

    def reward_model(self, seed: int) -> RewardModel:
        model = RewardModel.on(self.world.reference, seed=seed)
        config = RewardConfig(seed=seed, epochs=self.arguments.reward_epochs, **PAIRS)
        drain(train_reward_model(model, None, token_pairs(self.world, self.comparisons(seed)), config))
        return model

    def run(self, cell: Cell) -> Result:
        """Train where there is something to train, and judge exactly."""
        method, knob, seed, table = cell["method"], cell["knob"], cell["seed"], self.world.table
        if method == "base":
            return self.judged(table.reference_logps)
        if method == "frontier":
            return self.judged(optimal_logps(table, knob))
        if method == "best-of-n":
            return self.judged(best_of_n_logps(table, table.reference_logps, int(knob)))
        policy = self.world.new_policy()
        drain(self.events(policy, method, knob, seed))
        with torch.no_grad():
            logps = self.world.logps(policy)
        found = self.judged(logps)
        if method in ("sft", "unlikelihood"):
            return found
        # A little ridge where the comparisons are unanimous and the best fit would be infinite.
        fitted = table.with_rewards(fit_rewards(table, self.comparisons(seed), ridge=1e-5))
        return found | {
            "objective": float(objective(table, logps, knob)),
            "total_variation": far(logps, optimal_logps(table, knob)),
            "from_sample": far(logps, optimal_logps(fitted, knob)),
        }

    def judged(self, logps: torch.Tensor) -> Result:
        table = self.world.table
        reward, drift = float(expected_reward(table, logps)), float(table.mean(kl(logps, table.reference_logps)))
        furthest = self.frontier[0].max()  # all but the best answers gone: beyond it the frontier is flat
        best = float(reward_at_kl(*self.frontier, min(max(drift, 0.0), furthest)))
        return {"reward": reward, "kl": drift, "shortfall": best - reward}

    def events(self, policy: Any, method: str, knob: float, seed: int) -> Iterable[Event]:
        """The training that a cell asks for; every learning rate is the same."""
        drawn = self.comparisons(seed)
        if method == "sft":
            config = SFTConfig(seed=seed, epochs=knob, **PAIRS)
            return train_sft(policy, None, winners(self.world, drawn), config)
        pairs = token_pairs(self.world, drawn)
        if method == "dpo":
            return train_dpo(
                policy, None, pairs, DPOConfig(beta=knob, seed=seed, epochs=self.arguments.epochs, **PAIRS)
            )
        if method == "unlikelihood":
            return train_unlikelihood(policy, None, pairs, DPOConfig(seed=seed, **PAIRS), alpha=knob)
        algorithm, _, kind = method.partition("-")
        reward: Any = (
            LetterReward(self.world) if kind == "true" else LearntReward(self.reward_model(seed), self.tokenizer)
        )
        settings = SAMPLING | {"beta": knob, "seed": seed}
        if algorithm == "rloo":
            config = RLOOConfig(max_steps=self.arguments.rollouts, **settings)
            return train_rloo(policy, self.tokenizer, self.prompts, reward, config)
        config = PPOConfig(
            max_steps=4 * self.arguments.rollouts, gae_lambda=1.0, normalise_advantages=False, **settings
        )
        return train_ppo(policy, self.tokenizer, self.prompts, reward, config)


def drain(events: Iterable[Event]) -> None:
    """Carry a training out."""
    for _ in events:
        pass


def far(logps: torch.Tensor, other: torch.Tensor) -> float:
    """Total variation at the prompt where it is largest."""
    return float(total_variation(logps, other).max())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--comparisons", type=int, default=4096)
    options.add_argument("--epochs", type=float, default=8.0, help="of DPO")
    options.add_argument("--reward-epochs", type=float, default=24.0, help="of the reward model, which learns slower")
    options.add_argument("--rollouts", type=int, default=100, help="of 128 answers")
    arguments = options.parse_args()
    about = Experiment(
        "exact_frontier", "Reward against KL in the enumerable world", "Exact values; what each method is: "
        "data/experiments/exact_frontier.py. Shortfall: what the reward lacks of the best one at the same KL.", COLUMNS,
        {name: getattr(arguments, name) for name in ("comparisons", "epochs", "reward_epochs", "rollouts")},
    )  # fmt: skip
    carry_out(about, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    main()
