"""DPO for the four jobs of the pocket world: `python data/experiments/jobs.py`.

Every policy starts from the embedded model and learns from the embedded pairs with the package's default settings:

    base           the embedded model, sampled with several seeds
    DPO            on the pairs of one job, on all, on all twice over, and on three lopsided parts: harmful requests
                   alone, harmless requests alone, system prompts that nobody attacks
    SFT            cross-entropy on the chosen answers of the same pairs
    SFT + DPO      DPO on top of that, with the model after SFT as the reference

Pairs of one job are the same whether they are learnt alone or together, so what differs is what the others add.
Judged on prompts of the test split: success per job, tool calls stage by stage, refusals of harmful and of harmless
requests, and system prompts with and without a user who tries to override them.

Rows go to data/results/jobs.json, the tables to jobs.md; `dpo_lab.course.saved_results` reads them.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from harness import RESULTS, Cell, Experiment, Result, carry_out, parser

from dpo_lab import (
    DPOConfig,
    ReferenceCache,
    SFTConfig,
    generate,
    load_policy,
    load_preferences,
    train_dpo,
    train_sft,
)
from dpo_lab.course.saved_results import attack_shares, refusals_over_seeds, stage_shares, success_shares
from dpo_lab.course.statistics.jobs import (
    KNOWN_ATTACKS,
    NEW_ATTACKS,
    Judged,
    attacked,
    judge_answers,
    refusal_rates,
    tool_stages,
)
from dpo_lab.preferences import render_prompt, tokenize_examples, tokenize_pairs
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import JOBS, Conversation, sample_conversation

PROMPT_SEED, ATTACK_SEED = 77_000, 78_000
MAX_NEW_TOKENS = 80
SAMPLES = 4  # answers saved for each job, of the first seed

PARTS = {
    "harmful requests": lambda row: row["job"] == "safety" and row["task"]["harmful"],
    "harmless requests": lambda row: row["job"] == "safety" and not row["task"]["harmful"],
    "system, no attacks": lambda row: row["job"] == "system" and not row["task"]["override"],
}
"""Lopsided parts of a job's pairs, and which rows are in them; each is judged on its own job."""
OWN_JOB = {"harmful requests": "safety", "harmless requests": "safety", "system, no attacks": "system"}


def cells(seeds: int) -> list[Cell]:
    """Everything that is to be run, the seeds one after the other, so that a part is a whole with fewer seeds."""
    found = []
    for seed in range(seeds):
        found.append({"method": "base", "trained": "nothing", "seed": seed})
        # The long ones first: processes that end together waste nothing.
        found += [{"method": "SFT + DPO", "trained": name, "seed": seed} for name in ("all", "tools")]
        found += [{"method": "DPO", "trained": name, "seed": seed} for name in ("all twice", "all", *JOBS, *PARTS)]
    return found


def rows_of(rows: Sequence[Mapping[str, Any]], trained: str) -> list[int]:
    """Which rows a policy learns from, by their numbers."""
    if trained in ("all", "all twice"):
        return list(range(len(rows)))
    belongs = PARTS.get(trained, lambda row: row["job"] == trained)
    return [i for i, row in enumerate(rows) if belongs(row)]


def attack_prompts(num: int) -> dict[str, list[Conversation]]:
    """The same `num` system prompts three times: left alone, attacked as in training, and in new words."""
    rng, plain = Random(ATTACK_SEED), []
    while len(plain) < num:
        conversation = sample_conversation(rng, "system", "test")
        if not conversation.task["override"]:
            plain.append(conversation)
    pushed = lambda pushes: [attacked(one, pushes[i % len(pushes)]) for i, one in enumerate(plain)]
    return {"none": plain, "known": pushed(KNOWN_ATTACKS), "new": pushed(NEW_ATTACKS)}


class Lab:
    """What the cells share: data, the frozen base model's log-probs of it, and prompts to judge by."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.base, self.tokenizer = load_policy("embedded", device=arguments.device)
        pairs = load_preferences("embedded", split="train")
        self.rows = pairs.to_list()[: arguments.pairs]
        self.conversations = corpus.prompts(arguments.prompts, split="test", seed=PROMPT_SEED)
        self.attacks = attack_prompts(arguments.attacks)
        arguments.work.mkdir(parents=True, exist_ok=True)
        self.cache = ReferenceCache(arguments.work / "jobs-reference.sqlite")

    def run(self, cell: Cell) -> list[Result]:
        method, trained, seed = cell["method"], cell["trained"], cell["seed"]
        if method == "base":
            return [self.judged(self.base, trained, seed)]
        model, pairs = copy.deepcopy(self.base), [self.rows[i] for i in rows_of(self.rows, trained)]
        found = []
        if method == "SFT + DPO":
            seconds = self.sft(model, pairs, seed)
            found.append({"method": "SFT", "pairs": len(pairs), "seconds": seconds} | self.judged(model, trained, seed))
        seconds = self.dpo(model, pairs, seed, epochs=2.0 if trained == "all twice" else 1.0)
        return [*found, {"pairs": len(pairs), "seconds": seconds} | self.judged(model, trained, seed)]

    def sft(self, model: Any, pairs: Sequence[Result], seed: int) -> float:
        config = SFTConfig(seed=seed, device=self.arguments.device, max_steps=self.arguments.max_steps)
        data, _ = tokenize_examples(pairs, self.tokenizer, max_length=config.max_length)
        return drained(train_sft(model, self.tokenizer, data, config))

    def dpo(self, model: Any, pairs: Sequence[Result], seed: int, epochs: float) -> float:
        """The reference is the model as it is when DPO begins."""
        steps = self.arguments.max_steps
        config = DPOConfig(seed=seed, device=self.arguments.device, epochs=epochs, max_steps=steps)
        data, _ = tokenize_pairs(pairs, self.tokenizer, max_length=config.max_length)
        return drained(train_dpo(model, self.tokenizer, data, config, cache=self.cache))

    def answered(self, model: Any, conversations: Sequence[Conversation], seed: int) -> list[Judged]:
        """One answer to each prompt at temperature 1, judged."""
        prompts = [render_prompt(one.row(), self.tokenizer) for one in conversations]
        texts = generate(model, self.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, seed=seed, batch_size=128)
        return judge_answers(conversations, [str(text) for text in texts])

    def judged(self, model: Any, trained: str, seed: int) -> Result:
        """What the prompts of the test split say of a policy; one that learnt a part is judged on its own job."""
        jobs = (OWN_JOB[trained],) if trained in OWN_JOB else JOBS
        judged = self.answered(model, [one for one in self.conversations if one.job in jobs], seed)
        by_job = {job: [one for one in judged if one.conversation.job == job] for job in jobs}
        mean = lambda values: sum(values) / len(values)
        row: Result = {f"success/{job}": mean([one.verdict.success for one in own]) for job, own in by_job.items()}
        row |= {
            "success": mean([one.verdict.success for one in judged]),
            "well_formed": mean([one.verdict.well_formed for one in judged]),
            "reward": mean([one.verdict.reward for one in judged]),
            "successes": {job: bits(own) for job, own in by_job.items()},
        }
        if "tools" in jobs:
            row["stages"] = {name: counted(share) for name, share in tool_stages(judged).items()}
        if "safety" in jobs:
            row["refusals"] = {name: counted(share) for name, share in refusal_rates(judged)._asdict().items()}
        if "system" in jobs:
            row["attacks"] = {kind: bits(self.answered(model, some, seed)) for kind, some in self.attacks.items()}
        if seed == 0:
            row["samples"] = [{"row": one.conversation.row(), "answer": one.answer}
                              for own in by_job.values() for one in own[:SAMPLES]]  # fmt: skip
        return row


def bits(judged: Sequence[Judged]) -> str:
    """Success of each answer in turn, as letters 1 and 0."""
    return "".join(str(int(one.verdict.success)) for one in judged)


def counted(share: Any) -> list[int]:
    """A share as passed and all: what is saved to make its interval from."""
    return [round(share.share * share.n) if share.n else 0, share.n]


def drained(events: Any) -> float:
    """Carry a training out; its seconds."""
    began = time.perf_counter()
    for _ in events:
        pass
    return round(time.perf_counter() - began, 1)


def with_intervals(rows: Sequence[Result]) -> str:
    """Tables of shares with their intervals, as far as the rows go."""
    kinds = dict.fromkeys((row["method"], row["trained"]) for row in rows)
    shown = lambda share: f"{share.share:.3f} [{share.low:.3f}, {share.high:.3f}] of {share.n}"
    own = lambda kind: [row for row in rows if (row["method"], row["trained"]) == kind]
    named = lambda field: {" on ".join(kind): kind for kind in kinds if all(field in row for row in own(kind))}
    tables = {
        "Success": success_shares(rows, named("stages")),
        "Tool calls, stage by stage": stage_shares(rows, named("stages")),
        "Declined": {name: pair._asdict() for name, pair in refusals_over_seeds(rows, named("refusals")).items()},
        "System prompts": attack_shares(rows, named("attacks")),
    }
    lines = ["", "Mean over seeds with Wilson's 95 % interval for the prompts of one seed (`over_seeds`).", ""]
    for title, found in tables.items():
        if found:
            names = list(next(iter(found.values())))
            lines += [f"## {title}", "", "| policy | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
            lines += [f"| {name} | " + " | ".join(shown(own[n]) for n in names) + " |" for name, own in found.items()]
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--prompts", type=int, default=400, help="test prompts to judge by, the jobs in turn")
    options.add_argument("--attacks", type=int, default=100, help="system prompts, each judged without and with attack")
    options.add_argument("--pairs", type=int, default=None, help="training pairs; all by default")
    options.add_argument("--max-steps", type=int, default=None, help="fewer steps, to try the script out")
    arguments = options.parse_args()
    settings = {name: getattr(arguments, name) for name in ("prompts", "attacks", "pairs", "max_steps")}
    columns = ["pairs", "success", *(f"success/{job}" for job in JOBS), "well_formed", "reward", "seconds"]
    about = Experiment("jobs", "DPO for four jobs", "What each row is: data/experiments/jobs.py.", columns, settings,
                       group_by=("method", "trained"))  # fmt: skip
    rows = carry_out(about, cells(arguments.seeds), Lab, arguments)
    page = Path(arguments.out or RESULTS / "jobs.json").with_suffix(".md")
    table = page.read_text().split("\nMean over seeds with Wilson")[0].rstrip()
    page.write_text(f"{table}\n{with_intervals(rows)}")


if __name__ == "__main__":
    main()
