"""`dpo-lab real`: a real model before and after DPO on its own answers, judged by checks that anyone can repeat."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from dpo_lab.models.gguf import origin_of
from dpo_lab.models.loading import load_policy
from dpo_lab.preferences.chat import prompt_text
from dpo_lab.sampling import generate
from dpo_lab.storage.embedded import embedded_path
from dpo_lab.storage.files import write_whole
from dpo_lab.workbench.cli.inputs import dated_folder, settled
from dpo_lab.workbench.cli.options import RealOptions, TrainOptions
from dpo_lab.workbench.cli.terminal import console, plain_table
from dpo_lab.workbench.cli.train import train
from dpo_lab.workbench.evaluation.suites import run_suites
from dpo_lab.workbench.runs.run import Run
from dpo_lab.worlds.instructions import GROUPS, Task, draw, pair_answers

MAX_NEW_TOKENS, TEMPERATURE = 96, 0.7
KL_TASKS = 48


def real(options: RealOptions) -> int:
    """Pairs of the model's own answers, DPO on them, and what test tasks say before and after."""
    began = time.perf_counter()
    options = settled(options)
    folder = options.run or dated_folder("real")
    base, tokenizer = load_policy(options.model, device=options.device)
    console.print(f"The model is {origin_of(base)}.", soft_wrap=True)
    pairs = folder.with_name(f"{folder.name}-pairs.jsonl")
    source = str(embedded_path("real", "pairs.jsonl.gz"))
    if options.sample:
        write_whole(pairs, "".join(json.dumps(row) + "\n" for row in sampled_pairs(base, tokenizer, options)).encode())
        source = str(pairs)
    tasks = draw("test", options.tasks, seed=options.seed)
    console.print(f"{len(tasks)} test tasks are answered before training.")
    found = {"before": measured(base, base, tokenizer, tasks, options)}
    status = train(TrainOptions(
        model=options.model, pairs=source, run=folder, seed=options.seed, device=options.device, limit=options.pairs,
        epochs=options.epochs, loss=options.loss, learning_rate=options.learning_rate, beta=options.beta,
        batch_size=options.batch_size,
        precision=options.precision, kl_prompts=0, validation=0.05,
    ))  # fmt: skip
    if status:
        return status
    run = Run.load(folder)
    policy, _ = load_policy(str(run.model_folder), device=options.device)
    console.print("The same tasks are answered after training.")
    found["after"] = measured(policy, base, tokenizer, tasks, options)
    run.add_results(
        {f"real/{name}/{when}": value for when, own in found.items() for name, value in numbers(own).items()}
    )
    console.print()
    for table in (overall_table(found, tasks), kinds_table(found)):
        console.print(table)
        console.print()
    answers = {when: [record["answer"] for record in own["answers"]] for when, own in found.items()}
    scores = {when: [record["score"] for record in own["answers"]] for when, own in found.items()}
    for i in striking(tasks, scores):
        console.print(side_by_side(tasks[i], *(f"{answers[when][i]}\n[{scores[when][i]:.2f}]" for when in answers)))
    console.print(f"All of this in {time.perf_counter() - began:.0f} s. The run: {folder}", soft_wrap=True)
    return 0


def measured(model: Any, base: Any, tokenizer: Any, tasks: Sequence[Task], options: RealOptions) -> dict[str, Any]:
    """The suites' results at the temperature at which people sample, and the KL from the base, which is at 1."""
    settings: dict[str, Any] = {
        "seed": options.seed, "max_new_tokens": MAX_NEW_TOKENS, "batch_size": 128, "precision": options.precision,
    }  # fmt: skip
    found = run_suites(model, tokenizer, tasks=tasks, temperature=TEMPERATURE, num_tokens=4_000, **settings)
    kl = run_suites(model, tokenizer, "instructions", tasks=tasks[:KL_TASKS], reference=base, **settings)
    return found | {"kl": kl["instructions"]["kl"]}


def sampled_pairs(model: Any, tokenizer: Any, options: RealOptions) -> list[dict[str, Any]]:
    """New pairs: tasks of the train split, answered eight times, judged, paired."""
    tasks = draw("train", options.sample, seed=options.seed)
    console.print(f"{len(tasks)} train tasks are answered eight times each: this takes the most time.")
    sampling: dict[str, Any] = {
        "num_samples": 8, "temperature": TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS, "batch_size": 128,
        "precision": options.precision,
    }  # fmt: skip
    answers: Any = generate(model, tokenizer, [task.row() for task in tasks], seed=options.seed, **sampling)
    pairs = pair_answers(tasks, answers, pairs_per_task=2, revised=True, seed=options.seed)
    num = len({row["task"] for row in pairs})
    if num < 2:  # some are held out, by prompt
        raise ValueError(f"{num or 'none'} of {len(tasks)} tasks gave a pair, and two must: all answers to each of the "
                         "others score alike; raise --sample")  # fmt: skip
    console.print(f"{num} of {len(tasks)} tasks gave {len(pairs)} pairs.")
    return pairs


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The suites' results that a run folder keeps, flat."""
    followed, repetition = found["instructions"], found["repetition"]
    (text,) = found["perplexity"].values()
    return {
        "demands_met": followed["demands_met"]["value"], "all_met": followed["all_met"]["value"],
        "kl": found["kl"]["value"], "words": followed["words"]["value"],
        "repeated_4grams": repetition["repeated_4grams"]["value"], "perplexity": text["perplexity"]["value"],
    }  # fmt: skip


def overall_table(found: Mapping[str, Any], tasks: Sequence[Task]) -> Table:
    """Demands met by topic and kind and by section, and what it cost."""
    rows = [(name, *(percent(group(own["answers"], tasks, belongs)) for own in found.values()))
            for name, belongs in GROUPS.items()]  # fmt: skip
    flat = {when: numbers(own) for when, own in found.items()}
    for name, what, form in (
        ("all_met", "every demand of the task met", "{:.0%}"), ("words", "mean length in words", "{:.1f}"),
        ("kl", "KL from the base per answer, in nats", "{:.1f}"), ("perplexity", "perplexity of plain text", "{:.2f}"),
        ("repeated_4grams", "repeated runs of four words", "{:.1%}"),
    ):  # fmt: skip
        rows.append((what, *(form.format(own[name]).replace("%", " %") for own in flat.values())))
    title = f"Demands met, {len(tasks)} test tasks, one answer each at temperature {TEMPERATURE}"
    return plain_table(("", *found), rows, title=title)


def kinds_table(found: Mapping[str, Any]) -> Table:
    """Demands met, kind by kind."""
    per_kind = {when: own["instructions"]["per_kind"] for when, own in found.items()}
    rows = [(kind, *(f"{own[kind]['value']:.0%}".replace("%", " %") for own in per_kind.values()),
             str(per_kind["before"][kind]["n"])) for kind in per_kind["before"]]  # fmt: skip
    return plain_table(("kind of demand", *found, "tasks"), rows)


def group(records: Sequence[Mapping[str, Any]], tasks: Sequence[Task], belongs: Any) -> list[int]:
    """Of the answers to tasks that belong, each demand: 1 met, 0 not."""
    return [int(bit) for record in records if belongs(tasks[record["task"]]) for bit in record["met"]]


def percent(bits: Sequence[int]) -> str:
    return f"{100 * sum(bits) / len(bits):.0f} %" if bits else "–"


def striking(tasks: Sequence[Task], scores: Mapping[str, Sequence[float]]) -> list[int]:
    """Three tasks of different sections: two whose answers improved the most, and one that got the worst."""
    gains = [after - before for before, after in zip(scores["before"], scores["after"], strict=True)]
    order = sorted(range(len(tasks)), key=lambda i: -gains[i])
    best = list(_one_per_section(tasks, order))[:2]
    return [*best, order[-1]] if order[-1] not in best else best


def _one_per_section(tasks: Sequence[Task], order: Sequence[int]) -> Iterator[int]:
    seen = set()
    for i in order:
        if tasks[i].section not in seen:
            seen.add(tasks[i].section)
            yield i


def side_by_side(task: Task, before: str, after: str) -> Table:
    width = min(100, console.width)  # where the output is a file, rich takes 80 columns
    title = Text(prompt_text(task.row())[-600:])
    table = Table(pad_edge=False, title=title, title_justify="left", title_style="", width=width)
    table.add_column("before", ratio=1)
    table.add_column("after", ratio=1)
    table.add_row(Text(before), Text(after))  # not markup: an answer may hold brackets
    return table
