"""The page of a run: what was run, its results, and how to go on."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.config import DPOConfig, LoRAConfig, SFTConfig
from dpo_lab.workbench.plots.curves import PANELS, describe_panel, metric_label, panels_of
from dpo_lab.workbench.plots.margins import describe_margins, plot_margins
from dpo_lab.workbench.plots.style import new_figure, to_png
from dpo_lab.workbench.runs.page import code, folded, picture, table, terms, text, whole_page
from dpo_lab.workbench.runs.settings import HeldOutSettings, SourceSettings

Row = Mapping[str, Any]

FIGURE = (4.6, 3.0)  # inches: small, so that its letters can be read on a phone
COMMANDS = {"train": "Preference tuning", "sft": "Supervised fine-tuning", "rounds": "Preference tuning in rounds"}


def render_report(run: Any, panels: Mapping[str, bytes]) -> str:
    """The page of a `Run`; panels: PNG files by the name of their panel."""
    config, rows, samples = run.config, run.metrics, run.samples
    changed_first = sorted(enumerate(samples, start=1), key=lambda one: one[1].get("before") == one[1].get("after"))
    sections = [
        ("Result", f"<p>{text(verdict(samples))}</p>\n{_results(rows)}"),
        ("Curves", _curves(rows, panels)),
        ("Margins", _margins(run.margins)),
        ("Samples", "\n".join(_sample(i, row) for i, row in changed_first)),
        ("The model, and how to go on", _next(run, rows)),
        ("What was run", _settings(config)),
    ]
    title = Path(run.folder).resolve().name or str(run.folder)
    return whole_page(title, _lead(config, rows), [section for section in sections if section[1]])


def verdict(samples: Sequence[Row]) -> str:
    """The true reward of the answers before and after, in a sentence, with what so few answers can say."""
    known = [row for row in samples if "reward_before" in row and "reward_after" in row]
    if len(known) < 2:
        return ""
    before, after = (np.array([row[f"reward_{side}"] for row in known]) for side in ("before", "after"))
    change, error = float((after - before).mean()), float((after - before).std(ddof=1) / len(known) ** 0.5)
    sure = "" if abs(change) > 2 * error else ", too few answers to be sure"
    return (f"True reward of {len(known)} sampled answers from {before.mean():.2f} to {after.mean():.2f}: a change of "
            f"{change:+.2f} ± {error:.2f} (standard error){sure}.")  # fmt: skip


def _lead(config: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """One sentence: what, of which model, on which data; and whether it came to its end."""
    command, settings, data = config.get("command"), config.get("settings") or {}, config.get("data") or {}
    parts = [
        ("with the loss", settings.get("loss")),
        ("of", config.get("model")),
        ("on", next(iter(data.values()), None)),
    ]
    named = "".join(f" {word} <code>{text(value)}</code>" for word, value in parts if value)
    last = max((row["step"] for row in rows), default=0)
    seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    of = f" of {settings['batch_size']} examples" if settings.get("batch_size") else ""
    of += f", drawn from {config['num_examples']:,}," if of and config.get("num_examples") else ""
    match [row for row in rows if row["kind"] == "finished"][-1:]:
        case [row] if row["is_complete"]:
            state = f"Complete: {last:,} steps{of} in {_duration(seconds)}."
        case [row]:
            state = f"Stopped after step {last:,} of {row['num_steps']:,}."
        case _:
            state = f"Not ended: the record reaches step {last:,}."
    return f"{text(COMMANDS.get(str(command), command))}{named}. <strong>{state}</strong>"


def _settings(config: Mapping[str, Any]) -> str:
    settings, data = config.get("settings") or {}, config.get("data") or {}
    default = vars(SourceSettings()) | vars(HeldOutSettings()) | vars(LoRAConfig())
    default |= vars(SFTConfig() if config.get("command") == "sft" else DPOConfig())
    if settings.get("loss") and settings.get("beta", 1.0) is None:
        from dpo_lab.losses.table import loss_of  # which brings torch along

        with suppress(ValueError):  # a folder that another release wrote
            settings = settings | {"beta": f"{loss_of(DPOConfig(loss=settings['loss']))[2]:g}, the loss's own"}
    told = ("command", "model", "pairs")
    changed = {n: value for n, value in settings.items() if n in default and n not in told and value != default[n]}
    first = {name: config[name] for name in ("command", "model") if config.get(name) is not None}
    facts = first | data | {name: value for name, value in config.items() if name not in ("settings", "data", *first)}
    others = {name: value for name, value in settings.items() if name not in changed and name not in facts}
    parts = [terms({_words(name): _fact(value) for name, value in facts.items() if value is not None})]
    if changed:
        rows = [_table_row(name, value, default[name], kind="changed") for name, value in changed.items()]
        parts.append(table("Settings that differ from their defaults", ("setting", "value", "default"), rows))
    if others:
        rows = [_table_row(name, value) for name, value in others.items()]
        title = "The other settings" if changed else "All settings: none differs from its default"
        inside = table("As they were when the run began", ("setting", "value"), rows)
        parts.append(f"<details><summary>{title} ({len(others)})</summary>\n{inside}</details>")
    return "\n".join(parts)


def _results(rows: Sequence[Row]) -> str:
    """The first and the last evaluation, or step where there was none, and what was measured after training."""
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    compared = evaluations or [row for row in rows if row["kind"] == "step"]
    if not compared:
        return "<p>Nothing was measured yet.</p>"
    first, last = compared[0], compared[-1]
    names = [curve.metric for name in panels_of(rows) for curve in PANELS[name].curves if name != "learning_rate"]
    names = [f"eval_{name}" for name in names] if evaluations else names
    names += [name for name in last if name.startswith("eval_") and name not in names]
    lines = []
    for name in names:
        if name in last:
            before, after = first.get(name, math.nan), last[name]
            title, unit = metric_label(name)
            numbers = [_number(before), _number(after), _number(after - before, "+.4g")]
            cells = "".join(f'<td class="number">{one}</td>' for one in (numbers if first is not last else numbers[:1]))
            head = f"{text(title.removesuffix(', held out'))} <small>{text(unit)}</small>"
            lines.append(f'<tr><th scope="row">{head}</th>{cells}</tr>')
    steps = [f"step {first['step']}", f"step {last['step']}", "change"]
    what = "Held-out data" if evaluations else "Training batches, which are noisy; nothing was held out"
    columns = ("metric", *(steps if first is not last else steps[:1]))
    return table(what, columns, lines, has_numbers=True) + _after_training(rows)


def _after_training(rows: Sequence[Row]) -> str:
    found = {name: value for row in rows if row["kind"] == "result" for name, value in row.items()}
    shown = {}
    for name, value in found.items():
        if name not in ("kind", "step") and not name.endswith("_standard_error"):
            error = found.get(f"{name}_standard_error")
            shown[_words(name)] = _number(value) + ("" if error is None else f" ± {_number(error, '.2g')}")
    return f"\n<h3>Measured after training</h3>\n{terms(shown)}" if shown else ""


def _curves(rows: Sequence[Row], panels: Mapping[str, bytes]) -> str:
    figures = [picture(png, describe_panel(rows, name), PANELS[name].meaning) for name, png in panels.items()]
    if not figures:
        return ""
    key = "<p>Light points are logged steps, lines their running mean, larger markers the held-out data.</p>"
    return "\n".join([key, '<div class="figures">', *figures, "</div>"])


def _margins(margins: Mapping[int, Sequence[float]]) -> str:
    steps = [step for step in sorted(margins) if len(margins[step]) and np.isfinite(margins[step]).all()]
    if not steps:
        return ""
    before, after = (margins[steps[0]] if len(steps) > 1 else None), margins[steps[-1]]
    when = f"After step {steps[-1]}" + (f", and before, at step {steps[0]}" if before is not None else "")
    figure = new_figure(*FIGURE)
    plot_margins(after, before, ax=figure.subplots())
    caption = f"{when}. A pair whose margin is below 0 is ranked the wrong way round."
    return f'<div class="single">{picture(to_png(figure), describe_margins(after, before), caption)}</div>'


def _sample(number: int, row: Row) -> str:
    def answers(*sides: str) -> str:
        blocks = "".join(
            f'<div class="{side}"><h4>{side.capitalize()}{_reward(row, side)}</h4>{folded(row[side])}</div>\n'
            for side in sides
            if row.get(side) is not None
        )
        return f'<div class="answers">\n{blocks}</div>' if blocks else ""

    data = answers("chosen", "rejected")
    return "\n".join([
        f'<article class="sample">\n<h3>Prompt {number}</h3>',
        folded(row.get("prompt", "")),
        answers("before", "after"),
        f'<details><summary class="quiet">what the data prefers</summary>\n{data}</details>' if data else "",
        "</article>",
    ])  # fmt: skip


def _reward(row: Row, side: str) -> str:
    value = row.get(f"reward_{side}")
    return "" if value is None else f' <span class="quiet">reward {_number(value)}</span>'


def _next(run: Any, rows: Sequence[Row]) -> str:
    model, folder, has_model = f"{run.folder}/model", shlex.quote(str(run.folder)), run.model_folder.is_dir()
    if not has_model and any(row["kind"] == "finished" and row["is_complete"] for row in rows):
        return "<p>No model is saved in this run. In Python, save it with:</p>\n" + code(
            f"from dpo_lab.models.loading import save_policy\n\nsave_policy(model, tokenizer, {model!r})"
        )
    if not has_model:
        command = run.config["command"] if run.config.get("command") in COMMANDS else "train"
        has_checkpoint = any(run.checkpoints.glob("step-*"))
        where = "from the last checkpoint" if has_checkpoint else "from the beginning, since there is no checkpoint"
        return "\n".join([
            "<p>No model is saved yet, since training did not come to its end.</p>",
            f"<p>To go on {where}, give the same command again, with its settings and these two options:</p>",
            code(f"dpo-lab {command} … --run {folder} --resume"),
        ])  # fmt: skip
    return "\n".join([
        f"<p>The tuned model lies in <code>{text(model)}</code>. Load it in Python:</p>",
        code(f"from dpo_lab import load_policy\n\nmodel, tokenizer = load_policy({model!r})"),
        "<p>or without DPO Lab:</p>",
        code(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({model!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({model!r})"
        ),
        "<p>Ask it, tune it further, compare it with another run:</p>",
        code(
            f"dpo-lab sample --model {shlex.quote(model)}\n"
            f"dpo-lab train --model {shlex.quote(model)} --run another-run\n"
            f"dpo-lab compare {folder} another-run"
        ),
    ])  # fmt: skip


def _table_row(name: str, *values: Any, kind: str = "") -> str:
    cells = "".join(f"<td>{text(value)}</td>" for value in values)
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return f'{start}<th scope="row">{text(name)}</th>{cells}</tr>'


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return text(", ".join(f"{name} {one}" for name, one in value.items()))
    return folded(value) if isinstance(value, str) else text(value)


def _words(name: str) -> str:
    return {"kl": "KL from the reference, nats per answer"}.get(name, name.replace("_", " "))


def _number(value: Any, form: str = ".4g") -> str:
    return format(value, form).replace("-", "−") if isinstance(value, int | float) else text(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
