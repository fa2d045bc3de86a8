"""What DPO does to a real model: `python data/experiments/real_model.py`.

Every policy starts from SmolLM2-135M-Instruct and learns from pairs of its own answers (data/real, `real_pairs.py`):

    base                     the model itself, sampled with several seeds, of which the best of four is read off
    RPO                      DPO plus the cross-entropy of the chosen answers (Pang et al. 2024), all weights
    DPO                      on the pairs, all weights
    SFT                      cross-entropy on the chosen answers
    SFT + DPO                DPO on top of that, with the model after SFT as the reference
    RPO, LoRA                an adapter of rank 16
    RPO, only sampled        pairs of sampled answers alone: none that a rule has rewritten
    RPO, crude judge         such pairs by a judge without guards: a demand is met by any text that passes its check
    search                   RPO and DPO on half of the pairs, other settings, judged on more tasks of the train split

Each is judged on the same tasks of the test split: demands met, by whether the train split has the topic and the kinds
of demand; KL from the base; and what it cost elsewhere: perplexity on plain text and on answers that people preferred,
repetition, length. Rows go to data/results/real_model.json; `dpo_lab.course.saved_results` reads them.
"""

from __future__ import annotations

import argparse
import copy
import gc
import gzip
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab import DPOConfig, ReferenceCache, SFTConfig, load_policy, load_preferences, train_dpo, train_sft
from dpo_lab.loop import Step
from dpo_lab.models.lora import add_lora
from dpo_lab.preferences import tokenize_examples, tokenize_pairs
from dpo_lab.workbench.evaluation import run_suites
from dpo_lab.worlds.instructions import GROUPS, Task, Verdict, draw, judge, pair_answers
from dpo_lab.worlds.instructions.judging import check_demand

REAL = Path(__file__).resolve().parents[1] / "real"
PRECISION = "bfloat16"
TOKENS_PER_PASS = 2048  # several processes share the memory: they peaked at 11 GB each with 4096
TEST_SEED, MAX_NEW_TOKENS, TEMPERATURE = 0, 96, 0.7
KL_TASKS = 48  # answered once more at temperature 1, where the mean log-ratio is a KL
METHODS = ("RPO", "DPO", "SFT + DPO", "RPO, LoRA")
ONCE = ("RPO, only sampled", "RPO, crude judge")  # to compare with the first seed's RPO
BASE_SEEDS = 4
SEARCH = (
    ("rpo", 4e-5, 0.1),
    ("rpo", 8e-5, 0.1),
    ("rpo", 8e-5, 0.3),
    ("dpo", 2e-5, 0.1),
    ("dpo", 4e-5, 0.1),
    ("dpo", 8e-5, 0.1),
)  # loss, learning rate, β
SAVED_ANSWERS = 40  # of the first seed, to read


def cells(seeds: int) -> list[Cell]:
    """Everything that is to be run, what matters most at first."""
    base = [{"method": "base", "seed": seed} for seed in range(BASE_SEEDS)]
    search = [
        {"method": "search", "loss": loss, "rate": f"{rate:g}", "beta": beta, "seed": 0} for loss, rate, beta in SEARCH
    ]
    trained = [{"method": method, "seed": seed} for method in METHODS for seed in range(seeds)]
    once = [{"method": method, "seed": 0} for method in ONCE]
    return base + trained[:-seeds] + once + trained[-seeds:] + search


def crude(task: Task, answer: str) -> Verdict:
    """The judge without its guards: whatever passes a demand's check meets it."""
    met = tuple(check_demand(demand, answer)[0] for demand in task.demands)
    return Verdict(True, met, judge(task, answer).reasons, "not looked at")


class Lab:
    """What the cells share: the base, its answers, the tasks to judge by, and the cache of reference log-probs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.base, self.tokenizer = load_policy(arguments.model, device=arguments.device)
        with gzip.open(REAL / "answers.jsonl.gz", "rt", encoding="utf-8") as lines:
            saved = [json.loads(line) for line in lines]
        self.answers = [row["answers"] for row in saved]
        drawn = draw(
            "train", len(saved) + 64, seed=json.loads((REAL / "manifest.json").read_text())["settings"]["seed"]
        )
        with gzip.open(REAL / "pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
            self.saved = [json.loads(line) for line in lines]
        self.tasks, self.further = drawn[: len(saved)], drawn[len(saved) :]
        self.test = draw("test", arguments.prompts, seed=TEST_SEED)
        self.human = {path.name.split(".")[0]: load_preferences(path).to_list()[:40] for path in arguments.human}
        arguments.work.mkdir(parents=True, exist_ok=True)
        self.cache = ReferenceCache(arguments.work / "real-model.sqlite")

    def pairs(self, method: str) -> list[Result]:
        """The pairs that a method learns from: the saved ones, or others of the same answers, as many at most."""
        options: dict[str, Any] = {"judge": crude} if method == "RPO, crude judge" else {}
        found = pair_answers(self.tasks, self.answers, pairs_per_task=2, **options) if method in ONCE else self.saved
        return found[: self.arguments.pairs]

    def run(self, cell: Cell) -> list[Result]:
        method, seed = cell["method"], cell["seed"]
        if method == "base":
            return [self.judged(self.base, seed)]
        model = copy.deepcopy(self.base)
        pairs, found = self.pairs(method), []
        if method == "SFT + DPO":
            seconds = self.sft(model, pairs, seed)
            found.append(self.judged(model, seed) | {"method": "SFT", "pairs": len(pairs), "seconds": seconds})
        row = self.dpo(model, pairs, cell)
        model = row.pop("model")
        row |= self.searched(model, seed) if method == "search" else self.judged(model, seed)
        gc.collect()
        return [*found, row]

    def sft(self, model: Any, pairs: Sequence[Result], seed: int) -> float:
        options = self.arguments
        config = SFTConfig(
            seed=seed, device=options.device, precision=PRECISION, learning_rate=options.sft_learning_rate,
            epochs=options.epochs, batch_size=options.batch_size, max_steps=options.max_steps,
            tokens_per_pass=TOKENS_PER_PASS,
        )  # fmt: skip
        data, _ = tokenize_examples(pairs, self.tokenizer, max_length=config.max_length)
        began = time.perf_counter()
        for _ in train_sft(model, self.tokenizer, data, config):
            pass
        return round(time.perf_counter() - began, 1)

    def dpo(self, model: Any, pairs: Sequence[Result], cell: Cell) -> Result:
        """The reference is the model as it is when DPO begins. Returns the model, seconds, and the last metrics."""
        options, is_search, has_adapter = self.arguments, cell["method"] == "search", "LoRA" in cell["method"]
        loss = cell.get("loss", "rpo" if "RPO" in cell["method"] else "dpo")
        own_rate = options.learning_rate if loss == "rpo" else options.dpo_learning_rate
        rate = float(cell.get("rate", own_rate * (8 if has_adapter else 1)))
        config = DPOConfig(
            loss=loss,
            beta=cell.get("beta", options.beta), learning_rate=rate, seed=cell["seed"], device=options.device,
            precision=PRECISION, epochs=1.0 if is_search else options.epochs, batch_size=options.batch_size,
            max_steps=options.max_steps, tokens_per_pass=TOKENS_PER_PASS,
        )  # fmt: skip
        pairs = pairs[: len(pairs) // 2] if is_search else pairs
        model = add_lora(model, rank=16, seed=cell["seed"]) if has_adapter else model
        data, _ = tokenize_pairs(pairs, self.tokenizer, max_length=config.max_length)
        began, steps = time.perf_counter(), []
        for event in train_dpo(model, self.tokenizer, data, config, cache=self.cache):
            if isinstance(event, Step):
                steps.append(event.metrics)
        tail = steps[-max(len(steps) // 4, 1) :]
        mean = lambda name: sum(step[name] for step in tail) / len(tail)
        return {
            "model": model, "pairs": len(pairs), "seconds": round(time.perf_counter() - began, 1),
            "loss": config.loss, "rate": f"{rate:g}", "beta": config.beta,
            "steps": len(steps), "train_accuracy": mean("rewards/accuracies"), "train_margin": mean("rewards/margins"),
            "logps_chosen_change": mean("rewards/chosen") / config.beta,
        }  # fmt: skip

    def followed(self, model: Any, tasks: Sequence[Task], seed: int) -> Result:
        """Demands met, lengths and repetition of one answer to each task; KL from the base on some of the tasks."""
        options: dict[str, Any] = {
            "seed": seed,
            "max_new_tokens": MAX_NEW_TOKENS,
            "batch_size": 128,
            "precision": PRECISION,
        }
        found = run_suites(
            model, self.tokenizer, ("instructions", "repetition"), tasks=tasks, temperature=TEMPERATURE, **options
        )
        own, repetition = found["instructions"], found["repetition"]
        kl = run_suites(model, self.tokenizer, "instructions", reference=self.base, tasks=tasks[:KL_TASKS], **options)
        return {
            "demands_met": own["demands_met"]["value"], "all_met": own["all_met"]["value"],
            "answers": own["answers"]["value"], "words": own["words"]["value"],
            "repeated_4grams": repetition["repeated_4grams"]["value"],
            "cut_at_limit": repetition["cut_at_limit"]["value"], "kl": kl["instructions"]["kl"]["value"],
            "records": found["answers"],
        }  # fmt: skip

    def searched(self, model: Any, seed: int) -> Result:
        """What further tasks of the train split say: settings are never chosen on the test split."""
        row = self.followed(model, self.further, seed)
        row.pop("records")
        return row

    def judged(self, model: Any, seed: int) -> Result:
        """What the test split says, sampled and greedy, and what training cost elsewhere."""
        row = self.followed(model, self.test, seed)
        records = row.pop("records")
        row["verdicts"] = compact(records)
        row |= shares(self.test, row["verdicts"])
        if seed == 0:
            row["saved_answers"] = [record["answer"] for record in records[:SAVED_ANSWERS]]
        elsewhere = run_suites(
            model, self.tokenizer, "perplexity", chosen=self.human, num_tokens=self.arguments.text_tokens,
            precision=PRECISION,
        )["perplexity"]  # fmt: skip
        return row | {f"perplexity/{name}": value["perplexity"]["value"] for name, value in elsewhere.items()}


def compact(records: Sequence[Any]) -> str:
    """Of each task in turn, the demands met as letters 1 and 0; tasks are divided by spaces, "x" marks no answer."""
    return " ".join(
        ("" if record["answers"] else "x") + "".join(str(int(bit)) for bit in record["met"]) for record in records
    )


def shares(tasks: Sequence[Task], verdicts: str) -> Result:
    """Demands met by topic and kind, section by section."""
    bits = [[int(bit) for bit in word.lstrip("x")] for word in verdicts.split()]
    found: Result = {
        "demands_met": sum(map(sum, bits)) / sum(map(len, bits)),
        "all_met": sum(map(all, bits)) / len(bits),
    }
    for name, belongs in GROUPS.items():
        own = [bit for task, row in zip(tasks, bits, strict=True) if belongs(task) for bit in row]
        found[name] = sum(own) / len(own) if own else None
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2")
    options.add_argument("--prompts", type=int, default=320, help="tasks of the test split")
    options.add_argument("--pairs", type=int, default=560, help="pairs to learn from, at most")
    options.add_argument("--epochs", type=float, default=1.0)
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--learning-rate", type=float, default=5e-5)
    options.add_argument("--dpo-learning-rate", type=float, default=4e-5)
    options.add_argument("--sft-learning-rate", type=float, default=2e-5)
    options.add_argument("--beta", type=float, default=0.1)
    options.add_argument("--text-tokens", type=int, default=4_000)
    options.add_argument("--max-steps", type=int, default=None, help="fewer steps, to try the script out")
    options.add_argument("--human", type=Path, nargs="*", default=[], help="files of human preferences; numbers only")
    arguments = options.parse_args()
    names = ("prompts", "pairs", "epochs", "batch_size", "learning_rate", "dpo_learning_rate", "sft_learning_rate",
             "beta", "text_tokens", "max_steps")  # fmt: skip
    settings = {name: getattr(arguments, name) for name in names} | {"human": [path.name for path in arguments.human]}
    settings["answers"] = json.loads((REAL / "manifest.json").read_text())["sha256"]["answers.jsonl.gz"][:16]
    columns = ["pairs", "demands_met", *GROUPS, "words", "kl",
               "repeated_4grams", "seconds"]  # fmt: skip
    lead = ("What each row is: data/experiments/real_model.py. Seconds are of cells that ran two at a time, each on a "
            "core.")  # fmt: skip
    about = Experiment("real_model", "DPO on a real model", lead, columns, settings,
                       group_by=("method", "loss", "rate", "beta"), model=arguments.model)  # fmt: skip
    carry_out(about, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    sys.exit(main())
