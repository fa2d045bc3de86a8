"""Preference pairs of a real model's own answers: `python data/real_pairs.py`.

Tasks of the train split of `dpo_lab.worlds.instructions` go to SmolLM2-135M-Instruct, several times each. The judge
scores the answers, and two that differ in score make a pair. Where the answers to a task give none, one that a rule has
rewritten (small letters, an ending, the right function call) is chosen beside itself as it was: `--no-revised` leaves
that out. Written whole or not at all:

    data/real/answers.jsonl.gz   a line per task: its number, and the answers to it
    data/real/pairs.jsonl.gz     a line per pair: prompt, chosen, rejected, and what the judge said
    data/real/manifest.json      settings, sums, where the model came from, and what share of the tasks gave a pair
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measuring import made_with

from dpo_lab import generate, load_policy
from dpo_lab.models.gguf import origin_of
from dpo_lab.storage.files import write_whole
from dpo_lab.worlds.instructions import HOW, SECTIONS, Task, draw, judge, pair_answers

REAL = Path(__file__).resolve().parent / "real"


Answers = dict[int, list[str]]  # by the task's number


def sample(arguments: argparse.Namespace, part: int, threads: int) -> tuple[Answers, str]:
    """Answers to every second task, and where the model came from."""
    torch.set_num_threads(threads)
    model, tokenizer = load_policy(arguments.model)
    own = list(enumerate(draw("train", arguments.tasks, seed=arguments.seed)))[part::2]
    texts = generate(
        model, tokenizer, [task.row() for _, task in own], seed=4 * arguments.seed + part,
        num_samples=arguments.samples, temperature=arguments.temperature, max_new_tokens=arguments.tokens,
        batch_size=arguments.batch_size, precision=arguments.precision,
    )  # fmt: skip
    return {number: row for (number, _), row in zip(own, texts, strict=True)}, origin_of(model)  # pyright: ignore[reportReturnType]


def sample_side_by_side(arguments: argparse.Namespace) -> tuple[list[list[str]], str]:
    """Both halves of the tasks, in a process each: two with half of the cores are faster than one with all."""
    threads = max(torch.get_num_threads() // 2, 1)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(sample, arguments, part, threads) for part in (0, 1)]
        (some, source), (others, _) = (part.result() for part in parts)
    answers = some | others
    return [answers[i] for i in range(arguments.tasks)], source


def about(tasks: Sequence[Task], answers: Sequence[Any], pairs: Sequence[Any]) -> dict[str, Any]:
    """Per section: tasks, the share that gave a pair, and the demands met."""
    found: dict[str, Any] = {}
    with_pair = Counter(tasks[number].section for number in {row["task"] for row in pairs})
    for section in SECTIONS:
        own = [i for i, task in enumerate(tasks) if task.section == section]
        if own:
            met = [bit for i in own for one in answers[i] for bit in judge(tasks[i], one).met]
            found[section] = {
                "tasks": len(own), "tasks_with_a_pair": round(with_pair[section] / len(own), 3),
                "pairs": sum(row["section"] == section for row in pairs),
                "revised": sum(row["section"] == section and row["source"] == "revised" for row in pairs),
                "demands_met": round(sum(met) / len(met), 3),
            }  # fmt: skip
    return found


def zipped(rows: Sequence[Any]) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return gzip.compress(text.encode(), mtime=0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2")
    options.add_argument("--tasks", type=int, default=640, help="tasks of the train split (default: %(default)s)")
    options.add_argument("--samples", type=int, default=8, help="answers to each (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=96, help="most tokens of an answer")
    options.add_argument("--temperature", type=float, default=0.7)
    options.add_argument("--how", choices=HOW, default="near_length", help="which answers make a pair")
    options.add_argument(
        "--revised", action=argparse.BooleanOptionalAction, default=True,
        help="where answers give no pair, choose some that a rule has rewritten (default: yes)",
    )  # fmt: skip
    options.add_argument("--pairs-per-task", type=int, default=2)
    options.add_argument("--batch-size", type=int, default=192)
    options.add_argument("--precision", default="bfloat16")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--from-answers", action="store_true", help="judge and pair the saved answers again")
    options.add_argument("--out", type=Path, default=REAL)
    arguments = options.parse_args()
    tasks = draw("train", arguments.tasks, seed=arguments.seed)
    began = time.perf_counter()
    manifest = arguments.out / "manifest.json"
    if arguments.from_answers:
        with gzip.open(arguments.out / "answers.jsonl.gz", "rt", encoding="utf-8") as lines:
            saved = [json.loads(line) for line in lines]
        answers = [row["answers"] for row in saved]
        sampled = json.loads(manifest.read_text())["sampled"]
    else:
        answers, source = sample_side_by_side(arguments)
        sampled = {
            "model": source, "seconds": round(time.perf_counter() - began), "threads": torch.get_num_threads(),
            "made": made_with(shlex.join(["python", "data/real_pairs.py", *sys.argv[1:]])),
        }  # fmt: skip
    pairs = pair_answers(
        tasks, answers, how=arguments.how, pairs_per_task=arguments.pairs_per_task, revised=arguments.revised,
        seed=arguments.seed,
    )  # fmt: skip
    texts = [{"task": i, "answers": own} for i, own in enumerate(answers)]
    parts = {"answers.jsonl.gz": zipped(texts), "pairs.jsonl.gz": zipped(pairs)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "from_answers")}
    facts = {
        "sampled": sampled, "settings": settings, "sections": about(tasks, answers, pairs),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
    }  # fmt: skip
    for name, content in parts.items():
        write_whole(arguments.out / name, content)
    write_whole(manifest, json.dumps(facts, indent=1).encode() + b"\n")
    print(json.dumps({name: facts[name] for name in ("sampled", "sections")}, indent=1))


if __name__ == "__main__":
    main()
