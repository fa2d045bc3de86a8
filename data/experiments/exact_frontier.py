"""Reward against KL where both are exact: `python data/experiments/exact_frontier.py --seeds 3`.

The enumerable world: a small transformer all of whose answers can be listed, so every policy's reward and KL are sums,
not estimates, and the best reward for each KL is known (`worlds.tabular.frontier`). Methods start from the world's
reference and share its sampled comparisons (Bradley–Terry, temperature 1, so learnt and true reward have one scale and
one β means one optimum):

    dpo            on the comparisons
    rloo-learnt    RLOO on a reward model learnt from the comparisons
    rloo-true      RLOO on the true reward
    ppo-true       PPO on the true reward
    best-of-n      of the reference, by the true reward; exact, without a seed
    frontier       π*, exact, without a seed

A cell is a method, its knob and a seed; each is kept in data/results/exact_frontier.json as it is done, and a second
start goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpo_lab.config import DPOConfig
from dpo_lab.preferences import TokenData
from dpo_lab.rlhf import (
    LearntReward,
    PPOConfig,
    RewardConfig,
    RewardModel,
    RLOOConfig,
    best_of_n_logps,
    train_ppo,
    train_reward_model,
    train_rloo,
)
from dpo_lab.training import train_dpo
from dpo_lab.worlds.comparisons import sample_comparisons
from dpo_lab.worlds.enumerable import EnumerableWorld, enumerable_world
from dpo_lab.worlds.letters import LetterReward, letter_tokenizer, prompt_tokens
from dpo_lab.worlds.tabular import expected_reward, kl, objective, optimal_logps, total_variation

RESULTS = Path(__file__).resolve().parents[1] / "results" / "exact_frontier.json"
LETTERS = "abc"
BETAS = (0.2, 0.35, 0.5, 1.0, 2.0)
SIZES = (1, 2, 4, 8, 16, 32)
SAMPLING = {"max_new_tokens": 3, "max_length": 16, "sampling_batch_size": 1024, "epochs": 10_000, "device": "cpu",
            "learning_rate": 3e-3, "schedule": "cosine", "log_every": 100}  # fmt: skip
PAIRS = {"batch_size": 64, "learning_rate": 3e-3, "schedule": "cosine", "device": "cpu", "log_every": 100}


def cells(seeds: int) -> list[tuple[str, float, int]]:
    """Method, knob, seed."""
    exact = [("frontier", beta, 0) for beta in BETAS] + [("best-of-n", float(n), 0) for n in SIZES]
    methods = ("dpo", "rloo-learnt", "rloo-true", "ppo-true")
    return exact + [(method, beta, seed) for seed in range(seeds) for beta in BETAS for method in methods]


def comparisons_of(world: EnumerableWorld, number: int, seed: int) -> TokenData:
    """Sampled comparisons as token ids, as every method that learns from pairs sees them."""
    drawn = sample_comparisons(world.table, number, generator=torch.Generator().manual_seed(seed))
    prompts, tree = prompt_tokens(world), world.tree
    ids = [tree.encode(text).numpy() for text in tree.responses]
    columns = zip(drawn.prompt.tolist(), drawn.chosen.tolist(), drawn.rejected.tolist(), strict=True)
    return TokenData.from_rows((prompts[x], (ids[won], ids[lost])) for x, won, lost in columns)


def run(world: EnumerableWorld, method: str, knob: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train where there is something to train, and judge exactly."""
    began, table, costs = time.perf_counter(), world.table, {}
    if method == "frontier":
        logps = optimal_logps(table, knob)
    elif method == "best-of-n":
        logps = best_of_n_logps(table, table.reference_logps, int(knob))
    else:
        policy, tokenizer, prompts = world.new_policy(), letter_tokenizer(LETTERS), prompt_tokens(world)
        pairs = comparisons_of(world, arguments.comparisons, seed)
        if method == "dpo":
            config = DPOConfig(beta=knob, seed=seed, epochs=arguments.epochs, **PAIRS)
            events = train_dpo(policy, None, pairs, config)
        else:
            reward: Any = LetterReward(world)
            if method == "rloo-learnt":
                model = RewardModel.on(world.reference)
                for _ in train_reward_model(
                    model, None, pairs, RewardConfig(seed=seed, epochs=arguments.epochs, **PAIRS)
                ):
                    pass
                reward = LearntReward(model, tokenizer)
            if method == "ppo-true":
                config = PPOConfig(beta=knob, seed=seed, batch_size=384, max_steps=4 * arguments.rollouts,
                                   gae_lambda=1.0, normalise_advantages=False, **SAMPLING)  # fmt: skip
                events = train_ppo(policy, tokenizer, prompts, reward, config)
            else:
                config = RLOOConfig(beta=knob, seed=seed, batch_size=96, num_samples=4,
                                    max_steps=arguments.rollouts, **SAMPLING)  # fmt: skip
                events = train_rloo(policy, tokenizer, prompts, reward, config)
        for event in events:
            costs = {name: value for name, value in getattr(event, "metrics", {}).items() if name.startswith("cost/")}
        with torch.no_grad():
            logps = world.logps(policy)
    found = {"method": method, "knob": knob, "seed": seed, "reward": float(expected_reward(table, logps)),
             "kl": float(table.mean(kl(logps, table.reference_logps)))}  # fmt: skip
    if method != "best-of-n":
        distance = total_variation(logps, optimal_logps(table, knob)).max()
        found |= {"objective": float(objective(table, logps, knob)), "total_variation": float(distance)}
    return found | costs | {"seconds": round(time.perf_counter() - began, 1)}


def table_of(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """A line per method and knob: mean ± deviation over seeds."""
    names = ["reward", "kl", "objective", "total_variation", "seconds"]
    lines = ["# Reward against KL in the enumerable world", "", "Exact values; what each method is: "
             "data/experiments/exact_frontier.py. total_variation is from π* at the same β, at the worst prompt.", "",
             *(f"- {name}: {value}" for name, value in settings.items()), "",
             "| method | knob | seeds | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 3)]  # fmt: skip
    for method, knob in dict.fromkeys((row["method"], row["knob"]) for row in rows):
        own = [row for row in rows if (row["method"], row["knob"]) == (method, knob)]
        cells_ = []
        for name in names:
            values = [row[name] for row in own if name in row]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells_.append(f"{np.mean(values):.3f}{spread}" if values else "")
        lines.append(f"| {method} | {knob:g} | {len(own)} | " + " | ".join(cells_) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=None, help="methods to run; all by default")
    parser.add_argument("--comparisons", type=int, default=8192)
    parser.add_argument("--epochs", type=float, default=3.0, help="of DPO and the reward model")
    parser.add_argument("--rollouts", type=int, default=300, help="of 384 answers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("comparisons", "epochs", "rollouts")}
    kept = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"settings": settings, "rows": []}
    if kept["settings"] != settings:
        raise SystemExit(
            f"{arguments.out} was made with {kept['settings']}, asked for are {settings}; name another --out"
        )
    torch.set_num_threads(1)  # small tables gain nothing from threads
    world, rows = enumerable_world(letters=LETTERS), kept["rows"]
    done = {(row["method"], row["knob"], row["seed"]) for row in rows}
    for cell in cells(arguments.seeds):
        if cell in done or (arguments.only and cell[0] not in arguments.only):
            continue
        rows.append(run(world, *cell, arguments))
        partial = arguments.out.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
        partial.replace(arguments.out)
        arguments.out.with_suffix(".md").write_text(table_of(rows, settings))
        print(*cell, {name: round(rows[-1][name], 3) for name in ("reward", "kl", "seconds")}, flush=True)


if __name__ == "__main__":
    main()
