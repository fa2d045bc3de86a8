"""What DPO does in the pocket world, measured: `python data/measure.py sweep` and `python data/measure.py seeds`.

sweep   a small grid of learning rate, β and epochs, judged on prompts of the training split that no pair was made
        from. The defaults of `dpo-lab train` were chosen from it.
seeds   those defaults with five seeds on the test split, beside SFT on the chosen answers alone, and ten times the
        learning rate.

Results go to data/results/ with the settings, the versions and the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from statistics import mean, stdev
from typing import Any

import numpy as np
from measuring import VALIDATION_SEED, keep, kl, trained, true_quality
from scipy.stats import spearmanr

from dpo_lab import (
    DPOConfig,
    ReferenceCache,
    SFTConfig,
    evaluate,
    load_policy,
    load_preferences,
    train_dpo,
    train_sft,
)
from dpo_lab.preferences import tokenize_examples, tokenize_pairs
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import JOBS, Conversation


def dpo_trial(
    config: DPOConfig, conversations: list[Conversation], pairs: Any, test_pairs: Any, cache: ReferenceCache
) -> dict[str, Any]:
    """Train on the embedded pairs; true quality, KL and how implicit margins rank afterwards."""
    model, tokenizer = load_policy("embedded")
    data, _ = tokenize_pairs(pairs, tokenizer, max_length=config.max_length)
    seconds, last = trained(train_dpo(model, tokenizer, data, config, cache=cache))
    found = true_quality(model, tokenizer, conversations, config.seed)
    ranks = margins(model, tokenizer, test_pairs, cache)
    return found | ranks | kl(model, tokenizer, conversations, config.seed) | {
        "train_accuracy": last.metrics["rewards/accuracies"], "train_loss": last.metrics["loss"], "seconds": seconds,
    }  # fmt: skip


def sweep(arguments: argparse.Namespace) -> None:
    """Every combination of learning rate, β, epochs and batch size, one seed; a line of JSON as each is done."""
    conversations = corpus.prompts(400, split="train", seed=VALIDATION_SEED)
    pairs, test_pairs = (load_preferences("embedded", split=split) for split in ("train", "test"))
    grid = itertools.product(arguments.learning_rates, arguments.betas, arguments.epochs, arguments.batch_sizes)
    rows = []
    with ReferenceCache() as cache:
        for values in grid:
            settings = dict(zip(("learning_rate", "beta", "epochs", "batch_size"), values, strict=True))
            config = DPOConfig(**settings, seed=0, device="cpu")
            rows.append(settings
                        | dpo_trial(config, conversations, pairs, test_pairs, cache))  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    names = ["learning_rate", "beta", "epochs", "batch_size", "success", *(f"success/{job}" for job in JOBS),
             "well_formed", "over_refusal", "words", "reward", "kl", "rank_correlation",
             "rank_correlation/chosen first", "agrees_with_truth", "train_accuracy", "seconds"]  # fmt: skip
    keep("defaults_sweep", "Choosing the defaults of `dpo-lab train`", sweep.__doc__ or "", names, rows, conversations,
         command=shlex.join(["python", "data/measure.py", *sys.argv[1:]]))  # fmt: skip


def seeds(arguments: argparse.Namespace) -> None:
    """The defaults with several seeds on the test split, SFT on the chosen answers, ten times the learning rate."""
    conversations = corpus.prompts(400, split="test", seed=VALIDATION_SEED)
    pairs, test_pairs = (load_preferences("embedded", split=split) for split in ("train", "test"))
    default = DPOConfig(device="cpu")
    rows: list[dict[str, Any]] = []
    base, tokenizer = load_policy("embedded")
    for seed in range(arguments.seeds):
        rows.append({"method": "base", "seed": seed} | true_quality(base, tokenizer, conversations, seed))
    with ReferenceCache() as cache:
        for seed in range(arguments.seeds):
            config = DPOConfig(seed=seed, device="cpu")
            rows.append({"method": "DPO", "seed": seed}
                        | dpo_trial(config, conversations, pairs, test_pairs, cache))  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        for seed in range(arguments.seeds):
            rows.append({"method": "SFT on chosen", "seed": seed} | sft_trial(default, seed, conversations, pairs))
            print(json.dumps(rows[-1]), flush=True)
        hot = DPOConfig(learning_rate=10 * default.learning_rate, device="cpu")
        rows.append({"method": "DPO, learning rate × 10", "seed": 0}
                    | dpo_trial(hot, conversations, pairs, test_pairs, cache))  # fmt: skip
    names = ["success", *(f"success/{job}" for job in JOBS), "well_formed", "over_refusal", "words", "reward", "kl",
             "rank_correlation", "rank_correlation/chosen first", "agrees_with_truth", "seconds"]  # fmt: skip
    summary = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        summary.append({"method": method, "seeds": len(own)} | {name: spread(own, name) for name in names})
    keep("pocket_dpo", "DPO in the pocket world", seeds.__doc__ or "", ["method", "seeds", *names], summary,
         conversations, command="python data/measure.py seeds", raw=rows)  # fmt: skip


def sft_trial(default: DPOConfig, seed: int, conversations: list[Conversation], pairs: Any) -> dict[str, Any]:
    """SFT on the chosen answers with the same data, epochs, batch and learning rate."""
    model, tokenizer = load_policy("embedded")
    config = SFTConfig(
        epochs=default.epochs,
        batch_size=default.batch_size,
        learning_rate=default.learning_rate,
        seed=seed,
        device="cpu",
    )
    data, _ = tokenize_examples(pairs, tokenizer, max_length=config.max_length)
    seconds, _ = trained(train_sft(model, tokenizer, data, config))
    found = true_quality(model, tokenizer, conversations, seed)
    return found | kl(model, tokenizer, conversations, seed) | {"seconds": seconds}


def margins(model: Any, tokenizer: Any, test_pairs: Any, cache: ReferenceCache) -> dict[str, float]:
    """Spearman's rank correlation of implicit and true reward margins on the test pairs.

    A coin decides which answer of a pair comes first: with the chosen one first almost every true margin is positive,
    and only their sizes are compared, which is told apart.
    """
    reference, _ = load_policy("embedded")
    table = evaluate(model, tokenizer, test_pairs, reference=reference, cache=cache).table
    rows = [test_pairs[int(i)] for i in table["row"]]
    true = np.array([row["reward_chosen"] - row["reward_rejected"] for row in rows])
    agrees = (np.sign(true) == np.sign(table["margin"])).mean()
    coin = np.random.default_rng(0).choice([-1, 1], len(true))
    return {
        "rank_correlation": float(spearmanr(coin * table["margin"], coin * true).statistic),
        "rank_correlation/chosen first": float(spearmanr(table["margin"], true).statistic),
        "agrees_with_truth": float(agrees),
    }


def spread(rows: list[dict[str, Any]], name: str) -> str:
    """Mean ± standard deviation over seeds."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sweep", "seeds"])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 1.5e-4, 2e-4, 3e-4])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.3, 0.5])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32])
    parser.add_argument("--epochs", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    {"sweep": sweep, "seeds": seeds}[arguments.what](arguments)


if __name__ == "__main__":
    main()
