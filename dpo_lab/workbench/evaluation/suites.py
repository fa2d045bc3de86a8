"""What did training do to the model as a whole? Three suites, each a nested dict of plain JSON with 95 % intervals.

    instructions   test tasks of the world of instructions, answered and judged; KL from the reference on these answers
    perplexity     of plain text, and of the chosen answers of preference sets
    repetition     of the same sampled answers: repeated 4-grams, distinct 2-grams, answers cut at the limit, lengths

Intervals are over tasks: several answers to one task stay together (`intervals`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from dpo_lab.logprobs import score
from dpo_lab.preferences.tokens import encode_prompt, tokenize_examples
from dpo_lab.sampling import Completion, generate_ids
from dpo_lab.workbench.evaluation.intervals import Measured, ratio, share
from dpo_lab.workbench.evaluation.kl import answer_tokens
from dpo_lab.workbench.evaluation.perplexity import perplexity_of, standard_text, text_blocks, text_facts

SUITES = ("instructions", "perplexity", "repetition")


def run_suites(
    model: nn.Module, tokenizer: Any, suites: str | Sequence[str] = SUITES,
    *, reference: nn.Module | None = None, tasks: Sequence[Any] | None = None,
    judge: Callable[[Any, str], Any] | None = None, limit: int = 200, num_samples: int = 1, temperature: float = 1.0,
    max_new_tokens: int = 128, seed: int = 0, batch_size: int = 32, text: tuple[str, str] | None = None,
    chosen: Mapping[str, Any] | None = None, num_tokens: int | None = 20_000, block: int = 512,
    max_length: int = 1024, precision: str = "float32",
) -> dict[str, Any]:  # fmt: skip
    """The suites' results by name, with "conditions" and, where answers were sampled, "answers": one record each.

    suites: names, or one text with commas between them. reference: adds the KL per answer and the ratios of perplexity.
    tasks, judge: None draws `limit` test tasks of the world of instructions, and takes its judge.
    temperature: the KL is one only at 1; elsewhere the mean log-ratio of the answers is called that, `log_ratio`.
    text: (name, text) to measure perplexity on; None takes `standard_text`. `num_tokens` of it, in blocks.
    chosen: name → rows of preferences, whose chosen answers are measured.
    precision: of scoring, and of sampling where it is bfloat16, which is several times as fast on many processors.
    """
    names = suite_names(suites)
    conditions: dict[str, Any] = {"suites": names, "seed": seed, "precision": precision, "max_length": max_length}
    found: dict[str, Any] = {"conditions": conditions}
    if {"instructions", "repetition"} & set(names):
        tasks = instruction_tasks(limit, seed) if tasks is None else tasks
        sampled, shortened = sample_answers(
            model, tokenizer, tasks, num_samples=num_samples, temperature=temperature, max_new_tokens=max_new_tokens,
            seed=seed, batch_size=batch_size, max_length=max_length, precision=precision,
        )  # fmt: skip
        conditions |= {
            "num_tasks": len(tasks), "num_samples": num_samples, "temperature": temperature,
            "max_new_tokens": max_new_tokens, "prompts_shortened": shortened,
        }  # fmt: skip
        records = [
            {"task": i, "answer": one.text, "words": len(one.text.split()), "tokens": len(one.ids),
             "is_cut": not one.is_finished}
            for i, row in enumerate(sampled) for one in row
        ]  # fmt: skip
        if "instructions" in names:
            _add_verdicts(records, tasks, judge or _judge_of_the_world())
            if reference is not None:
                _add_log_ratios(records, model, reference, tokenizer, tasks, sampled, max_length, precision)
            found["instructions"] = instruction_results(records, "kl" if temperature == 1 else "log_ratio", seed=seed)
        if "repetition" in names:
            found["repetition"] = repetition_results(records, seed=seed)
        found["answers"] = records
    if "perplexity" in names:
        name, content = standard_text() if text is None else text
        scoring: dict[str, Any] = {"reference": reference, "precision": precision, "seed": seed}
        blocks = text_blocks(content, tokenizer, block=block, num_tokens=num_tokens, model=model)
        facts = text_facts(content, tokenizer, num_tokens)
        found["perplexity"] = {name: perplexity_of(model, blocks, **scoring) | facts}
        for name, rows in (chosen or {}).items():
            data, report = tokenize_examples(rows, tokenizer, max_length=max_length)
            counts = {"prompts_shortened": report.prompts_shortened, "answers_cut": report.completions_cut}
            found["perplexity"][f"chosen of {name}"] = perplexity_of(model, data, **scoring) | counts
    return found


def suite_names(suites: str | Sequence[str]) -> list[str]:
    """The names of suites, each once. ValueError for one that is not known."""
    names = [name.strip() for name in (suites.split(",") if isinstance(suites, str) else suites)]
    for name in names:
        if name not in SUITES:
            raise ValueError(f"suite {name!r} is not known; choose among {', '.join(SUITES)}")
    return list(dict.fromkeys(names))


def instruction_tasks(limit: int, seed: int) -> list[Any]:
    """Test tasks of the world of instructions."""
    if limit < 1:
        raise ValueError(f"limit must be at least 1 task, got {limit}; 200 are usual")
    from dpo_lab.worlds.instructions import draw

    return list(draw("test", limit, seed=seed))


def sample_answers(
    model: nn.Module, tokenizer: Any, tasks: Sequence[Any],
    *, num_samples: int = 1, temperature: float = 1.0, max_new_tokens: int = 128, seed: int = 0, batch_size: int = 32,
    max_length: int = 1024, precision: str = "float32",
) -> tuple[list[list[Completion]], int]:  # fmt: skip
    """`num_samples` answers to each task (or row with a prompt), and how many prompts were longer than `max_length`."""
    if not len(tasks):
        raise ValueError("there are no tasks to answer; give at least one")
    full, prompts = ([encode_prompt(_row(task), tokenizer, most) for task in tasks] for most in (None, max_length))
    answers = generate_ids(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, num_samples=num_samples,
        seed=seed, batch_size=batch_size, precision="bfloat16" if precision == "bfloat16" else "float32",
    )  # fmt: skip
    return answers, sum(len(one) != len(other) for one, other in zip(full, prompts, strict=True))


def instruction_results(
    records: Sequence[Mapping[str, Any]], ratio_name: str = "kl", *, seed: int = 0
) -> dict[str, Any]:
    """What the verdicts in the records come to: overall, per section, by whether the train split has the demands' kinds
    too, and per kind of demand."""
    sections = dict.fromkeys(record["section"] for record in records)
    kinds = dict.fromkeys(kind for record in records for kind in record["kinds"])
    of_kind = lambda kind: [
        {
            "task": record["task"],
            "met": [met for met, own in zip(record["met"], record["kinds"], strict=True) if own == kind],
        }
        for record in records
    ]
    found = _verdict_shares(records)
    found["words"] = _mean(records, "words", seed)
    if "log_ratio" in records[0]:
        found[ratio_name] = _mean(records, "log_ratio", seed)
    found["per_section"] = {name: _verdict_shares([r for r in records if r["section"] == name]) for name in sections}
    found["per_novelty"] = {
        name: _verdict_shares([r for r in records if r["kinds_seen"] is is_seen])
        for name, is_seen in (("seen kinds", True), ("new kinds", False))
    }
    found["per_kind"] = {kind: _demands_met(of_kind(kind)) for kind in sorted(kinds)}
    return found


def repetition_results(records: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Measured]:
    """Repetition and lengths of answers, over words as white space divides them, in lower case.

    repeated_4grams: 1 − (different 4-grams)/(4-grams) of an answer, the mean over those of at least four words
        (seq-rep-4 of Welleck et al. 2019, arXiv 1908.04319, on words). `n` counts the tasks that have any.
    distinct_2: different 2-grams / 2-grams of all answers together (Li et al. 2016, arXiv 1510.03055). It falls with
        the number of words, so compare it over as many answers of much the same length; it has no interval, since
        drawing an answer twice makes pairs repeat.
    """
    per_answer = [_ngrams(record["answer"], 4) for record in records]
    is_long = np.array([bool(grams) for grams in per_answer])
    repeated = np.array([1 - len(set(grams)) / len(grams) if grams else 0.0 for grams in per_answer])
    pairs = [gram for record in records for gram in _ngrams(record["answer"], 2)]
    tasks = [record["task"] for record in records]
    distinct = len(set(pairs)) / len(pairs) if pairs else None
    return {
        "repeated_4grams": ratio(_per_task(tasks, repeated), _per_task(tasks, is_long), seed=seed),
        "distinct_2": {"value": distinct, "low": None, "high": None, "n": len(pairs)},
        "cut_at_limit": _share(records, "is_cut"),
        "words": _mean(records, "words", seed),
        "tokens": _mean(records, "tokens", seed),
    }


def measures(results: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Measured]]:
    """Every number with its interval, and the names that lead to it: ("instructions", "per_kind", …). For a table."""
    for name, value in results.items():
        if isinstance(value, Mapping) and {"value", "low", "high", "n"} <= value.keys():
            yield (name,), dict(value)
        elif isinstance(value, Mapping):
            yield from (((name, *path), one) for path, one in measures(value))


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _judge_of_the_world() -> Callable[[Any, str], Any]:
    from dpo_lab.worlds.instructions import judge

    return judge


def _row(task: Any) -> dict[str, Any]:
    row = dict(task) if isinstance(task, Mapping) else task.row()
    return {name: value for name, value in row.items() if value is not None}


def _add_verdicts(records: list[dict[str, Any]], tasks: Sequence[Any], judge: Callable[[Any, str], Any]) -> None:
    for record in records:
        task = tasks[record["task"]]
        verdict = judge(task, record["answer"])
        record |= {
            "section": task.section, "kinds_seen": task.kinds_seen, "kinds": [demand.kind for demand in task.demands],
            "met": list(verdict.met), "all_met": verdict.all_met, "answers": verdict.answers, "score": verdict.score,
            "reasons": list(verdict.reasons),
        }  # fmt: skip


def _add_log_ratios(
    records: list[dict[str, Any]], model: nn.Module, reference: nn.Module, tokenizer: Any, tasks: Sequence[Any],
    sampled: Sequence[Sequence[Completion]], max_length: int, precision: str,
) -> None:  # fmt: skip
    """log π(y|x) − log π_ref(y|x) of every sampled answer, in nats."""
    data = answer_tokens([encode_prompt(_row(task), tokenizer, max_length) for task in tasks], sampled)
    own, frozen = (score(one, data, precision=precision).astype(float).ravel() for one in (model, reference))
    for record, value in zip(records, own - frozen, strict=True):
        record["log_ratio"] = float(value)


def _verdict_shares(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"demands_met": _demands_met(records)} | {name: _share(records, name) for name in ("all_met", "answers")}


def _demands_met(records: Sequence[Mapping[str, Any]]) -> Measured:
    """The share of demands met, each demand counting as much as any other."""
    tasks = [record["task"] for record in records]
    met, counts = ([count(record["met"]) for record in records] for count in (sum, len))
    return share(_per_task(tasks, met), _per_task(tasks, counts))


def _share(records: Sequence[Mapping[str, Any]], name: str) -> Measured:
    tasks = [record["task"] for record in records]
    return share(_per_task(tasks, [record[name] for record in records]), _per_task(tasks, np.ones(len(tasks))))


def _mean(records: Sequence[Mapping[str, Any]], name: str, seed: int) -> Measured:
    tasks = [record["task"] for record in records]
    sums = _per_task(tasks, [record[name] for record in records])
    return ratio(sums, _per_task(tasks, np.ones(len(tasks))), seed=seed)


def _per_task(tasks: Sequence[int], values: Any) -> np.ndarray:
    """The sum of each task's values; tasks without any are 0 and count for nothing."""
    return np.bincount(tasks, weights=np.asarray(values, np.float64))


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
