"""What the implicit reward of a trained policy is worth in the pocket world: `python data/implicit_rewards.py`.

Trains with the defaults of `dpo-lab train` (and once with ten times the learning rate), then measures on test pairs:
calibration of σ(margin), rank correlation of implicit and true margins per job, what length explains, where in the
answer the margin arises; on fresh answers: best of n by implicit reward against the judge; and of each policy's own
answers the implicit beside the true reward.

Results go to data/results/implicit_rewards.md and .json with the settings, the versions and the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, made_with

from dpo_lab import DPOConfig, ReferenceCache, evaluate, load_policy, load_preferences, train_dpo
from dpo_lab.course.statistics import margin_by_position, margin_parts, tokens_for_half
from dpo_lab.loop import Evaluation
from dpo_lab.preferences import encode_prompt, tokenize_pairs
from dpo_lab.sampling import generate_ids
from dpo_lab.workbench.evaluation import (
    answer_rewards,
    best_of_n,
    calibration,
    coin_sides,
    fit_temperature,
    length_matched,
    length_share,
    partial_rank_correlation,
    per_group,
    rank_correlation,
    sigmoid,
    token_rewards,
)
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import judge

LABEL_TEMPERATURE = 0.3  # of data/build.py: labels are drawn from σ(true margin / 0.3)
PROMPT_SEED, NUM_PROMPTS, NUM_ANSWERS, MAX_NEW_TOKENS = 88_000, 100, 16, 80
NUM_FRESH_PROMPTS, FRESH_SEED = 2_500, 99_000
COIN_SEED = 0


def train(
    reference: Any, tokenizer: Any, pairs: Any, config: DPOConfig, test_pairs: Any, cache: ReferenceCache
) -> tuple[Any, list[dict[str, Any]]]:
    """A policy trained from a copy of the reference, and the margins of the test pairs as they spread out."""
    model = copy.deepcopy(reference)
    events = train_dpo(model, tokenizer, pairs, config, held_out=test_pairs, cache=cache)
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    quartiles = lambda margins: np.quantile(margins, [0.05, 0.25, 0.5, 0.75, 0.95]).round(3).tolist()
    spread = [{"step": e.step, "quantiles 5 25 50 75 95": quartiles(e.margins),
               "wrong": float((np.array(e.margins) < 0).mean())} for e in evaluations]  # fmt: skip
    return model, spread


def on_pairs(model: Any, reference: Any, tokenizer: Any, test_pairs: Any, beta: float) -> dict[str, Any]:
    """Calibration, ranks, length and place of the margins of the test pairs, which answer is first by a coin."""
    table = evaluate(model, tokenizer, test_pairs, reference=reference, beta=beta).table
    rows = [test_pairs[int(i)] for i in table["row"]]
    sides = coin_sides(len(rows), seed=COIN_SEED)
    margins, labels = sides * table["margin"], sides > 0
    true = sides * np.array([row["reward_chosen"] - row["reward_rejected"] for row in rows])
    lengths = sides * (table["length_chosen"] - table["length_rejected"])
    chances = sigmoid(true / LABEL_TEMPERATURE)  # what the labels were drawn from
    half = np.arange(len(rows)) % 2 == 0
    temperature = fit_temperature(margins[half], labels[half])
    plain, cooled = (calibration(margins[~half], labels[~half], temperature=t) for t in (1.0, temperature))
    whole, against_chance = calibration(margins, labels), calibration(margins, chances)
    is_matched = length_matched(lengths)
    pairs = token_rewards(model, tokenizer, test_pairs, reference=reference, beta=beta)
    parts = margin_parts(pairs)
    return {
        "pairs": len(rows),
        "calibration error": whole.error,
        "calibration error, if exactly right (chance alone)": whole.noise,
        "calibration error against the true chance of each label": against_chance.error,
        "temperature fitted on one half of the pairs": temperature,
        "calibration error on the other half": plain.error,
        "calibration error on the other half, after temperature": cooled.error,
        "calibration bins": [{"predicted": p, "observed": o, "pairs": n} for p, o, n in zip(
            whole.predicted.tolist(), whole.observed.tolist(), whole.counts.tolist(), strict=True)],
        "rank correlation": rank_correlation(margins, true),
        "per job": per_group([row["job"] for row in rows], margins, true, labels),
        "length explains of the implicit margin": length_share(margins, lengths),
        "length explains of the true margin": length_share(true, lengths),
        "rank correlation with length held fixed": partial_rank_correlation(margins, true, lengths),
        "length-matched pairs (at most 1 token apart)": int(is_matched.sum()),
        "rank correlation, length-matched": rank_correlation(margins[is_matched], true[is_matched]),
        "parts of the mean margin": {name: float(values.mean()) for name, values in parts.items()},
        "mean margin by tenth of the answers": margin_by_position(pairs).tolist(),
        "tokens that carry half of an answer's reward": float(
            np.median([tokens_for_half(one.rewards) for pair in pairs for one in (pair.chosen, pair.rejected)])),
        "tokens of an answer": float(np.median([table["length_chosen"], table["length_rejected"]])),
    }  # fmt: skip


def on_fresh_pairs(model: Any, reference: Any, tokenizer: Any, test_pairs: Any, beta: float) -> dict[str, Any]:
    """Calibration on several times as many pairs, made as the embedded ones are: 400 pairs hardly resolve 0.05.

    The temperature is fitted on the embedded test pairs, which are none of these.
    """
    conversations = corpus.prompts(NUM_FRESH_PROMPTS, split="test", seed=FRESH_SEED)
    prompts = [encode_prompt(one.row(), tokenizer) for one in conversations]
    answers = generate_ids(reference, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, num_samples=4, seed=2,
                           batch_size=1024)  # fmt: skip
    texts = [[one.text for one in row] for row in answers]
    fresh, _ = corpus.pair_answers(conversations, texts, temperature=LABEL_TEMPERATURE, seed=FRESH_SEED)
    of = lambda rows: evaluate(model, tokenizer, rows, reference=reference, beta=beta).table["margin"]
    known, margins = of(test_pairs), of(fresh)
    temperature = fit_temperature(known * (sides := coin_sides(len(known), seed=COIN_SEED)), sides > 0)
    sides = coin_sides(len(margins), seed=COIN_SEED)
    plain, cooled = (calibration(sides * margins, sides > 0, temperature=t) for t in (1.0, temperature))
    return {
        "pairs": len(fresh),
        "calibration error": plain.error,
        "temperature fitted on the embedded test pairs": temperature,
        "calibration error after temperature": cooled.error,
        "calibration error, if exactly right (chance alone)": cooled.noise,
    }


def on_fresh_answers(policies: dict[str, Any], reference: Any, tokenizer: Any, beta: float) -> dict[str, Any]:
    """Best of n among the reference's answers, and the rewards of each policy's own answers, implicit and true."""
    conversations = corpus.prompts(NUM_PROMPTS, split="test", seed=PROMPT_SEED)
    prompts = [encode_prompt(one.row(), tokenizer) for one in conversations]
    worth_of = lambda answers: np.array([[judge(c, one.text).reward for one in row]
                                         for c, row in zip(conversations, answers, strict=True)])  # fmt: skip
    sample = lambda model, num: generate_ids(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, num_samples=num,
                                             seed=1, batch_size=256)  # fmt: skip
    answers = sample(reference, NUM_ANSWERS)
    worth, sizes = worth_of(answers), [1, 2, 4, 8, 16]
    scores = answer_rewards(policies["default"], reference, prompts, answers, beta=beta)
    within = [rank_correlation(s, w, resamples=0).value for s, w in zip(scores, worth, strict=True) if np.ptp(w)]
    found: dict[str, Any] = {
        "prompts": NUM_PROMPTS,
        "answers per prompt": NUM_ANSWERS,
        "best of n by implicit reward": best_of_n(scores, worth, sizes),
        "best of n by the judge": best_of_n(worth, worth, sizes),
        "rank correlation of single answers, within a prompt (mean)": float(np.mean(within)),
        "rank correlation of single answers, over all prompts": rank_correlation(
            scores.ravel(), worth.ravel(), resamples=0).value,
    }  # fmt: skip
    own = []
    for name, model in {"reference": reference, **policies}.items():
        theirs = sample(model, 2)
        implicit = answer_rewards(model, reference, prompts, theirs, beta=beta)
        own.append({"policy": name, "implicit reward": float(implicit.mean()), "KL": float(implicit.mean() / beta),
                    "true reward": float(worth_of(theirs).mean())})  # fmt: skip
    return found | {"each policy's own answers": own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="fewer steps, to try the script out")
    parser.add_argument("--keep", type=Path, help="a folder to which the trained policies are saved")
    arguments = parser.parse_args()
    test_pairs = load_preferences("embedded", split="test")
    reference, tokenizer = load_policy("embedded", device="cpu")
    pairs, _ = tokenize_pairs(load_preferences("embedded", split="train"), tokenizer, max_length=DPOConfig().max_length)
    default = DPOConfig(device="cpu", seed=arguments.seed, max_steps=arguments.max_steps, evaluate_every=40)
    hot = replace(default, learning_rate=10 * default.learning_rate, evaluate_every=None)
    beta = 0.5 if default.beta is None else default.beta
    found: dict[str, Any] = {}
    with ReferenceCache() as cache:
        trained, found["margins over training"] = train(reference, tokenizer, pairs, default, test_pairs, cache)
        overdone, _ = train(reference, tokenizer, pairs, hot, test_pairs, cache)
    policies = {"default": trained, "learning rate × 10": overdone}
    if arguments.keep:
        for name, policy in policies.items():
            policy.save_pretrained(arguments.keep / name.replace(" ", "_"))
        tokenizer.save_pretrained(arguments.keep / "default")
    for name, policy in policies.items():
        found[f"test pairs, {name}"] = on_pairs(policy, reference, tokenizer, test_pairs, beta)
    found["fresh pairs, default"] = on_fresh_pairs(trained, reference, tokenizer, test_pairs, beta)
    found["fresh answers"] = on_fresh_answers(policies, reference, tokenizer, beta)
    keep(found, default)


def keep(found: dict[str, Any], config: DPOConfig) -> None:
    """Write data/results/implicit_rewards.json and .md."""
    made = made_with("python data/implicit_rewards.py") | {"seed": config.seed}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"made": made} | found, indent=1, ensure_ascii=False)
    (RESULTS / "implicit_rewards.json").write_text(text + "\n")
    lines = ["# What the implicit reward is worth in the pocket world", "", *(f"- {k}: {v}" for k, v in made.items())]
    lines += [
        "",
        "Intervals: 95 %, bootstrap over pairs. Which answer of a pair comes first, a coin decides.",
        "",
    ]
    for title, values in found.items():
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        lines += _table(values) if isinstance(values, list) else _entries(values)
    (RESULTS / "implicit_rewards.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


def _entries(values: dict[str, Any]) -> list[str]:
    short = {name: value for name, value in values.items() if not _is_table(value)}
    lines = ["| | |", "|---|---|", *(f"| {name} | {_told(value)} |" for name, value in short.items()), ""]
    for name, value in values.items():
        if _is_table(value):
            lines += [f"{name[0].upper()}{name[1:]}:", "", *_table(value)]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    body = ["| " + " | ".join(_told(row[name]) for name in names) + " |" for row in rows]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *body, ""]


def _told(value: Any) -> str:
    if hasattr(value, "r_squared"):
        return f"R² {value.r_squared:.3f}, rank correlation {value.rank}"
    if hasattr(value, "low"):
        return str(value)
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_told(one)}" for name, one in value.items())
    if isinstance(value, tuple):  # a mean and its standard error
        return f"{value[0]:.2f} ± {value[1]:.2f}"
    if isinstance(value, list):
        return ", ".join(_told(one) for one in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
