"""What β and the learning rate do together: `python data/hyperparameter_map.py`, a quarter of an hour on two cores.

One short run for each cell of β × learning rate, from the same model, on the same pairs, judged on prompts of the
training split that no pair was made from: nothing here has seen the test split, so a setting may be chosen by it. Four
cells are run with several seeds, to tell differences from noise. Notebook 09 draws and discusses what it writes.

Each cell is saved in build/hyperparameter_map.jsonl: a second call goes on where the first was stopped. Cells of
another model or of other settings are computed anew. `--cells 0.5:2e-4 0.1:2e-3` computes these only, and writes no
table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from measuring import VALIDATION_SEED, answer, keep, kl, trained

from dpo_lab import DPOConfig, ReferenceCache, evaluate, load_policy, load_preferences, train_dpo
from dpo_lab.preferences import prompt_text, tokenize_pairs
from dpo_lab.preferences.token_data import content_hash
from dpo_lab.reference import fingerprint
from dpo_lab.storage.files import append_line, read_lines
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import JOBS
from dpo_lab.worlds.pocket.quality import quality

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0)
LEARNING_RATES = (5e-5, 1e-4, 2e-4, 4e-4, 1e-3, 2e-3)
REPEATED = tuple(itertools.product((0.1, 0.5), (2e-4, 4e-4)))
"""Cells that are run with several seeds."""
NUM_HELD_OUT, NUM_SAMPLES = 400, len(JOBS)
CELLS = Path(__file__).resolve().parents[1] / "build" / "hyperparameter_map.jsonl"
COLUMNS = ("beta", "learning_rate", "seed", "reward", "success", "well_formed", "kl", "kl_standard_error", "accuracy",
           "train_loss", "words", "over_refusal", "seconds")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", metavar="BETA:RATE", help="only these cells, one seed each")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the repeated cells")
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--pairs", type=int, default=2560, help="pairs to train on, of the 10,240 that there are")
    parser.add_argument("--prompts", type=int, default=200, help="prompts that are answered and judged")
    arguments = parser.parse_args()
    base, tokenizer = load_policy("embedded", device="cpu")
    rows = load_preferences("embedded", split="train")
    train = tokenize_pairs(rows.select(range(arguments.pairs)), tokenizer)[0]
    held = tokenize_pairs(rows.select(range(len(rows) - NUM_HELD_OUT, len(rows))), tokenizer)[0]
    conversations = corpus.prompts(arguments.prompts, split="train", seed=VALIDATION_SEED)
    identity = {"model": fingerprint(base)[:16], "pairs": content_hash(train)[:16], "prompts": arguments.prompts}
    saved = read_lines(CELLS).rows
    done = {(row["beta"], row["learning_rate"], row["seed"]): row for row in saved if row["identity"] == identity}
    wanted = cells_wanted(arguments)
    CELLS.parent.mkdir(parents=True, exist_ok=True)
    with ReferenceCache() as cache:
        for place, cell in enumerate(wanted, start=1):
            if cell not in done:
                beta, learning_rate, seed = cell
                config = DPOConfig(beta=beta, learning_rate=learning_rate, seed=seed, device="cpu")
                done[cell] = measured(config, train, held, conversations, cache) | {"identity": identity}
                append_line(CELLS, done[cell])
            measures = {name: done[cell][name] for name in COLUMNS}
            print(f"{place}/{len(wanted)} {json.dumps(measures)}", flush=True)
    if arguments.cells:
        return
    cells = [{name: value for name, value in done[cell].items() if name != "identity"} for cell in wanted]
    answers = answer(base, tokenizer, conversations, 0)
    keep(
        "hyperparameter_map", "β × learning rate in the pocket world", (main.__doc__ or __doc__ or "").split("\n\n")[1],
        list(COLUMNS), cells, conversations,
        command=shlex.join(["python", "data/hyperparameter_map.py", *sys.argv[1:]]), pairs=arguments.pairs,
        held_out_pairs=NUM_HELD_OUT, steps=-(-arguments.pairs // DPOConfig().batch_size), model=identity["model"],
        base={**quality(conversations, answers), "samples": answers[:NUM_SAMPLES]},
        sample_prompts=[prompt_text(one.row()) for one in conversations[:NUM_SAMPLES]],
    )  # fmt: skip


def cells_wanted(arguments: argparse.Namespace) -> list[tuple[float, float, int]]:
    """β, learning rate and seed of each run: those requested, or the whole map and the repeated cells."""
    if arguments.cells:
        return [(float(beta), float(rate), 0) for beta, rate in (cell.split(":") for cell in arguments.cells)]
    grid = list(itertools.product(arguments.betas, arguments.learning_rates))
    once = [(beta, rate, 0) for beta, rate in grid]
    return once + [(*cell, seed) for cell in REPEATED if cell in grid for seed in range(1, arguments.seeds)]


def measured(config: DPOConfig, train: Any, held: Any, conversations: list[Any], cache: ReferenceCache) -> dict:
    """One cell: train, then true quality, KL, accuracy on held-out pairs, and an answer for each job."""
    began = time.perf_counter()
    model, tokenizer = load_policy("embedded", device="cpu")
    reference, _ = load_policy("embedded", device="cpu")
    _, last = trained(train_dpo(model, tokenizer, train, config, cache=cache))
    answers = answer(model, tokenizer, conversations, config.seed)
    accuracy = evaluate(model, tokenizer, held, reference=reference, cache=cache, beta=config.beta).metrics
    return (
        {"beta": config.beta, "learning_rate": config.learning_rate, "seed": config.seed}
        | quality(conversations, answers)
        | kl(model, tokenizer, conversations, config.seed)
        | {"accuracy": accuracy["rewards/accuracies"], "margin": accuracy["rewards/margins"],
           "train_loss": last.metrics["loss"], "samples": [text[:400] for text in answers[:NUM_SAMPLES]],
           "seconds": time.perf_counter() - began}
    )  # fmt: skip


if __name__ == "__main__":
    main()
