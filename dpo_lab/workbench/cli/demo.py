"""`dpo-lab demo`: the embedded model before and after DPO, judged by the true reward that the pocket world knows."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table
from rich.text import Text

from dpo_lab.models.loading import load_policy
from dpo_lab.preferences.chat import prompt_text, render_prompt
from dpo_lab.preferences.reading import read_preferences
from dpo_lab.sampling import generate
from dpo_lab.workbench.cli.inputs import dated_folder
from dpo_lab.workbench.cli.options import DemoOptions, TrainOptions
from dpo_lab.workbench.cli.terminal import console, plain_table
from dpo_lab.workbench.cli.train import train
from dpo_lab.workbench.runs.run import Run
from dpo_lab.worlds.pocket.quality import quality
from dpo_lab.worlds.pocket.schema import JOBS, Conversation

TITLES = {
    "safety": "safe conversation",
    "system": "system prompts",
    "format": "response formatting",
    "tools": "tool calls",
}
MAX_NEW_TOKENS = 80
NUM_PAIRS = 5120  # of 10,240; all of them take twice as long and gain little


def demo(options: DemoOptions) -> int:
    """Train on embedded pairs with the default settings, and show what it did to answers on unseen prompts."""
    began = time.perf_counter()
    folder = options.run or dated_folder("demo")
    rows, _ = read_preferences("embedded", split="test")
    prompts = [Conversation.from_row(row) for row in rows]
    texts = {"before": _answers("embedded", rows, options)}
    status = train(
        TrainOptions(
            run=folder, limit=NUM_PAIRS, seed=options.seed, device=options.device, max_new_tokens=MAX_NEW_TOKENS
        )
    )
    if status:
        return status
    run = Run.load(folder)
    texts["after"] = _answers(str(run.model_folder), rows, options)
    found = {when: quality(prompts, answers) for when, answers in texts.items()}
    run.add_results({f"true/{name}/{when}": value for when, by in found.items() for name, value in by.items()})
    console.print()
    console.print(quality_table(found["before"], found["after"], len(prompts)))
    console.print()
    for shown in _striking(prompts, texts):
        console.print(_side_by_side(rows[shown], texts["before"][shown], texts["after"][shown]))
    console.print(f"All of this in {time.perf_counter() - began:.0f} s. The run: {folder}", soft_wrap=True)
    console.print(f"Its report: {folder / 'report.html'}. The course: make lab", soft_wrap=True)
    return 0


def quality_table(before: dict[str, float], after: dict[str, float], num_prompts: int) -> Table:
    """Success for each job and overall, well-formedness, over-refusal and true reward."""
    title = f"Judged by the true reward, {num_prompts} unseen prompts, one answer each at temperature 1"
    names = {f"success/{job}": f"success: {TITLES[job]}" for job in JOBS} | {
        "success": "success: all four",
        "well_formed": "well-formed",
        "over_refusal": "harmless requests refused",
    }
    share = lambda by, name: f"{100 * by[name]:.0f} %" if name in by else "–"
    rows = [(what, *(share(by, name) for by in (before, after))) for name, what in names.items()]
    rows.append(("mean true reward", *(f"{by['reward']:+.2f}" for by in (before, after))))
    rows.append(("mean length in words", *(f"{by['words']:.1f}" for by in (before, after))))
    return plain_table(("", "before", "after"), rows, title=title)


def _answers(model_source: str, rows: list[dict[str, Any]], options: DemoOptions) -> list[str]:
    model, tokenizer = load_policy(model_source, device=options.device)
    prompts = [render_prompt(row, tokenizer) for row in rows]
    answers = generate(
        model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=options.seed, batch_size=128
    )
    return [str(answer) for answer in answers]


def _striking(prompts: list[Conversation], texts: dict[str, list[str]]) -> list[int]:
    """Three prompts of different jobs whose answers differ: where the answer improved, if there is such a one."""
    from dpo_lab.worlds.pocket.judge import judge

    chosen = []
    for job in JOBS:
        own = [i for i, prompt in enumerate(prompts) if prompt.job == job and texts["before"][i] != texts["after"][i]]
        gain = lambda i: judge(prompts[i], texts["after"][i]).reward - judge(prompts[i], texts["before"][i]).reward
        chosen += sorted(own, key=gain)[-1:]
    return chosen[:3]


def _side_by_side(row: dict[str, Any], before: str, after: str) -> Table:
    width = min(100, console.width)  # where the output is a file, rich takes 80 columns
    table = Table(pad_edge=False, title=Text(prompt_text(row)), title_justify="left", title_style="", width=width)
    table.add_column("before", ratio=1)
    table.add_column("after", ratio=1)
    table.add_row(Text(before), Text(after))  # not markup: an answer may hold brackets
    return table
