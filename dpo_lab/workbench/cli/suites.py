"""`dpo-lab evaluate --suite` and `--against`: suites of answers and plain text; which of two models answers better."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from dpo_lab.models.loading import load_policy
from dpo_lab.preferences.reading import read_preferences
from dpo_lab.storage.files import explain_os_error, spelled, to_json, write_whole
from dpo_lab.workbench.cli.inputs import load_model, load_reference, read_rows, settled
from dpo_lab.workbench.cli.options import EvaluateOptions
from dpo_lab.workbench.cli.tables import REMEDY, check_output
from dpo_lab.workbench.cli.terminal import console, plain_table
from dpo_lab.workbench.evaluation.head_to_head import Judge, instructions_judge, win_rate
from dpo_lab.workbench.evaluation.suites import instruction_tasks, measures, run_suites, sample_answers, suite_names
from dpo_lab.workbench.recipes.answers import longest_prompt

NUM_TASKS = 200


def evaluate_suites(options: EvaluateOptions) -> int:
    """Print what the suites and the other model come to; with --out, write it with every answer."""
    names = [] if options.suite is None else suite_names(options.suite)
    judge = find_judge(options.judge)
    text = None if options.text is None else (options.text.name, read_text(options.text))
    if options.out is not None:
        check_output(options.out, (".json",))
    limit = NUM_TASKS if options.limit is None else options.limit
    has_rows, has_own_judge = options.pairs != "embedded", judge is not instructions_judge
    judges_rows = options.against is not None and has_own_judge and has_rows
    if has_rows and "perplexity" not in names and not judges_rows:
        raise ValueError(
            f"--pairs {options.pairs} is of no use here: the answers are to the tasks of the world of instructions; "
            "add --suite perplexity, or --against with --judge MODULE:FUNCTION"
        )
    needs_tasks = bool({"instructions", "repetition"} & {*names}) or (options.against is not None and not judges_rows)
    tasks = instruction_tasks(limit, options.seed) if needs_tasks else []
    options = settled(options)
    model, tokenizer = load_model(options, options.device)
    reference = None if options.reference is None else load_reference(options, options.reference, tokenizer)
    rows = read_rows(options, options.seed, read_preferences, embedded_split="test") if has_rows else []
    sampling: dict[str, Any] = {
        "temperature": options.temperature, "max_new_tokens": options.max_new_tokens, "seed": options.seed,
        "max_length": longest_prompt(model, options.max_length, options.max_new_tokens), "precision": options.precision,
    }  # fmt: skip
    found: dict[str, Any] = {"model": options.model, "reference": options.reference}
    if names:
        found |= run_suites(
            model, tokenizer, names, reference=reference, tasks=tasks, text=text,
            chosen={Path(options.pairs).name: rows} if has_rows else None, **sampling,
        )  # fmt: skip
    if options.against is not None:
        asked = rows if judges_rows else tasks
        answers_of = lambda one, own: [row[0].text for row in sample_answers(one, own, asked, **sampling)[0]]
        if "answers" in found and not judges_rows:  # the suites have sampled them
            ours = [record["answer"] for record in found["answers"]]
        else:
            ours = answers_of(model, tokenizer)
        other = load_policy(options.against, device=options.device, trust_remote_code=options.trust_remote_code)
        console.print(f"against: {options.against}", soft_wrap=True)
        theirs = answers_of(*other)
        prompts = [task["prompt"] if isinstance(task, dict) else task.row()["prompt"] for task in asked]
        found["against"] = win_rate(prompts if has_own_judge else asked, ours, theirs, judge, seed=options.seed) | {
            "model": options.against, "judge": options.judge, "sampling": sampling, "prompts": prompts,
            "answers": ours, "others": theirs,
        }  # fmt: skip
    show(found)
    if options.out is not None:
        write_whole(options.out, to_json(spelled(found), indent=1), remedy=REMEDY)
        console.print(f"all of it, with every answer: {options.out}", soft_wrap=True)
    return 0


def show(found: dict[str, Any]) -> None:
    """A table for each suite, and one for the other model."""
    for name in ("instructions", "repetition", "perplexity", "against"):
        rows = [
            (
                ": ".join(path).replace("_", " ").removeprefix("per "),
                *map(_number, (one["value"], one["low"], one["high"])),
                str(one["n"]),
            )
            for path, one in measures(found.get(name, {}))
        ]
        if rows:
            console.print(plain_table((name, "value", "95 % from", "to", "n"), rows))
    if "against" in found:
        console.print(", ".join(f"{count} {name}" for name, count in found["against"]["counts"].items()))
        if why := found["against"]["length_controlled"].get("why"):
            console.print(f"no rate at equal length: {why}", soft_wrap=True)


def find_judge(name: str) -> Judge:
    """The judge that --judge names; a module is looked for in the working folder too."""
    if name == "instructions":
        return instructions_judge
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"judge {name!r} is not known; take instructions, or name a function as MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"judge {name!r}: {error}; name a module that Python finds from this folder") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ValueError(f"judge {name!r}: {module} has no function {function!r}; name one of (prompt, first, second)")
    return cast("Judge", found)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8."""
    with explain_os_error(f"--text {path} cannot be read", "name a file of plain text"):
        data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {path} is not UTF-8 ({error.reason}); save it as plain text in UTF-8") from error


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
