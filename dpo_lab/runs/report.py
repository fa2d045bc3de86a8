"""A run as one page of HTML that needs no other file, no network and no script.

Everything that comes from data, models, settings or paths goes through `text` or `folded`, which escape it.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.config import DPOConfig, SFTConfig
from dpo_lab.plots import (
    PANELS,
    describe_margins,
    describe_panel,
    metric_label,
    new_figure,
    panels_of,
    plot_margins,
    plot_panel,
    to_png,
)

Row = Mapping[str, Any]

LONG = 600  # letters; longer texts are folded
COMMANDS = {"train": "Preference tuning", "sft": "Supervised fine-tuning"}
# Nothing but what is in the page itself may load or run, whatever a text contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# Control letters have no place in HTML, halves of surrogate pairs none in UTF-8.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def render_report(
    *,
    folder: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    margins: Mapping[int, Sequence[float]],
    samples: Sequence[Row],
    has_model: bool,
    has_checkpoint: bool,
) -> str:
    """The page. `rows`, `margins` (by step) and `samples` are those of the run's files."""
    name = Path(folder).name or folder
    sections = [
        ("What was run", _settings(config)),
        ("Result", _results(rows)),
        ("Curves", _curves(rows)),
        ("Margins", _margins(margins)),
        ("Samples", _samples(samples)),
        ("The model, and how to go on", _next(folder, config, rows, has_model, has_checkpoint)),
    ]
    body = "\n".join(f"<section>\n<h2>{title}</h2>\n{content}\n</section>" for title, content in sections if content)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(name)} · DPO Lab</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{text(name)}</h1>
<p>{_lead(config, rows)}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def text(value: Any) -> str:
    """Any value as text that is safe inside an element or a quoted attribute."""
    if not isinstance(value, str):
        value = f"{value:.5g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    return html.escape(UNPRINTABLE.sub("\ufffd", value), quote=True)


def folded(value: Any, *, limit: int = LONG) -> str:
    """A text from data or a model as a block; its end is folded away where it is long."""
    full = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    if not full.strip():
        return '<div class="quiet">(empty)</div>'
    if len(full) <= limit:
        return f'<div class="text" dir="auto">{text(full)}</div>'
    start = " ".join(full[: limit // 3].split())
    return (
        f'<details class="long"><summary><span class="text" dir="auto">{text(start)}…</span> '
        f'<span class="quiet">({len(full):,} letters)</span></summary>'
        f'<div class="text" dir="auto">{text(full)}</div></details>'
    )


def _lead(config: Mapping[str, Any], rows: Sequence[Row]) -> str:
    settings = config.get("settings", {})
    command = config.get("command")
    what = COMMANDS.get(command, command) if isinstance(command, str) else "A run"
    loss = f" with the loss <code>{text(settings['loss'])}</code>" if settings.get("loss") else ""
    model = f" of <code>{text(config['model'])}</code>" if config.get("model") else ""
    data = config.get("data") or {}
    source = next(iter(data.values()), None) if isinstance(data, dict) else data
    on = f" on <code>{text(source)}</code>" if source else ""
    last = max((row["step"] for row in rows), default=0)
    seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    match [row for row in rows if row["kind"] == "finished"][-1:]:
        case [row] if row["is_complete"]:
            state = f"Complete: {last:,} steps in {_duration(seconds)}."
        case [row]:
            state = f"Stopped after step {last:,} of {row['num_steps']:,}."
        case _:
            state = f"Not ended: the record reaches step {last:,}."
    return f"{text(what)}{loss}{model}{on}. <strong>{state}</strong>"


def _settings(config: Mapping[str, Any]) -> str:
    settings = dict(config.get("settings", {}))
    default = vars(SFTConfig() if config.get("command") == "sft" else DPOConfig())
    changed = {name: value for name, value in settings.items() if name in default and value != default[name]}
    usual = {name: value for name, value in settings.items() if name in default and name not in changed}
    asked = {name: value for name, value in settings.items() if name not in default and value is not None}
    about = {name: value for name, value in config.items() if name not in ("settings", "data", *settings)}
    about |= config.get("data") or {}
    facts = "".join(f"<dt>{text(_words(name))}</dt><dd>{_fact(value)}</dd>" for name, value in (about | asked).items())
    parts = [f"<dl>{facts}</dl>"]
    head = '<thead><tr><th scope="col">setting</th><th scope="col">value</th><th scope="col">default</th></tr></thead>'
    if changed:
        body = "".join(
            f'<tr class="changed"><th scope="row">{text(name)}</th><td>{text(value)}</td>'
            f"<td>{_default(default[name])}</td></tr>"
            for name, value in changed.items()
        )
        caption = "<caption>Settings that differ from their defaults</caption>"
        parts.append(f'<div class="scroll"><table>{caption}{head}<tbody>{body}</tbody></table></div>')
    elif usual:
        parts.append("<p>Every setting has its default.</p>")
    if usual:
        body = "".join(
            f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in usual.items()
        )
        table = f'<div class="scroll"><table><tbody>{body}</tbody></table></div>'
        parts.append(f"<details><summary>{len(usual)} settings at their defaults</summary>{table}</details>")
    return "\n".join(parts)


def _results(rows: Sequence[Row]) -> str:
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    steps = [row for row in rows if row["kind"] == "step"]
    results = [row for row in rows if row["kind"] == "result"]
    compared = evaluations or steps
    if not compared:
        return "<p>Nothing was measured yet.</p>"
    first, last = compared[0], compared[-1]
    names = [name for name in last if name not in ("kind", "step", "seconds", "epoch", "learning_rate")]
    body = ""
    for name in names:
        before, after = (row.get(name, math.nan) for row in (first, last))
        numbers = [_number(before), _number(after), f"{after - before:+.4g}"] if last is not first else [_number(after)]
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        title, unit = metric_label(name)
        title = title.removesuffix(", held out")
        body += f'<tr><th scope="row">{text(title)} <small>{text(unit)}</small></th>{cells}</tr>'
    columns = (
        [f"after step {first['step']}", f"after step {last['step']}", "change"]
        if last is not first
        else [f"after step {last['step']}"]
    )
    head = "".join(f'<th scope="col" class="number">{column}</th>' for column in columns)
    what = (
        "Held-out data" if evaluations else "Training batches (no held-out data was given): noisy, and seen in training"
    )
    table = (
        f'<div class="scroll"><table><caption>{what}</caption><thead><tr><th scope="col">metric</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    extra = {name: value for row in results for name, value in row.items() if name not in ("kind", "step")}
    facts = "".join(f"<dt>{text(_words(name))}</dt><dd>{_number(value)}</dd>" for name, value in extra.items())
    return table + (f"\n<h3>Measured after training</h3>\n<dl>{facts}</dl>" if facts else "")


def _curves(rows: Sequence[Row]) -> str:
    figures = []
    for name in panels_of(rows):
        figure = new_figure(5.2, 3.2)
        plot_panel(rows, name, ax=figure.subplots())
        figures.append(_figure(to_png(figure), describe_panel(rows, name), PANELS[name].meaning))
    return f'<div class="figures">\n{"".join(figures)}</div>' if figures else ""


def _margins(margins: Mapping[int, Sequence[float]]) -> str:
    steps = [step for step in sorted(margins) if len(margins[step]) and np.isfinite(margins[step]).all()]
    if not steps:
        return ""
    before, after = (margins[steps[0]] if len(steps) > 1 else None), margins[steps[-1]]
    caption = (
        f"After step {steps[-1]}{f', and before (step {steps[0]})' if before is not None else ''}. "
        "A pair whose margin is below 0 is ranked the wrong way round."
    )
    figure = new_figure(6.4, 3.6)
    plot_margins(after, before, ax=figure.subplots())
    return f'<div class="single">{_figure(to_png(figure), describe_margins(after, before), caption)}</div>'


def _samples(samples: Sequence[Row]) -> str:
    return "\n".join(_sample(i, row) for i, row in enumerate(samples, start=1))


def _sample(number: int, row: Row) -> str:
    def answers(sides: tuple[str, ...]) -> str:
        found = [side for side in sides if row.get(side) is not None]
        blocks = "".join(
            f'<div class="{side}"><h4>{side.capitalize()}{_reward(row, side)}</h4>{folded(row[side])}</div>'
            for side in found
        )
        return f'<div class="answers">{blocks}</div>' if blocks else ""

    data = answers(("chosen", "rejected"))
    data = f'<details><summary class="quiet">what the data prefers</summary>{data}</details>' if data else ""
    return (
        f'<article class="sample"><h3>Prompt {number}</h3>{folded(row.get("prompt", ""))}'
        f"{answers(('before', 'after'))}{data}</article>"
    )


def _reward(row: Row, side: str) -> str:
    value = row.get(f"reward_{side}")
    return "" if value is None else f' <span class="quiet">reward {_number(value)}</span>'


def _next(folder: str, config: Mapping[str, Any], rows: Sequence[Row], has_model: bool, has_checkpoint: bool) -> str:
    command = config.get("command") if config.get("command") in COMMANDS else "train"
    model = f"{folder}/model"
    parts = []
    if has_model:
        parts.append(f"<p>The tuned model lies in <code>{text(model)}</code>. Load it in Python:</p>")
        parts.append(_code(f"from dpo_lab import load_policy\n\nmodel, tokenizer = load_policy({model!r})"))
        parts.append("<p>or without DPO Lab:</p>")
        parts.append(_code(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({model!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({model!r})"
        ))  # fmt: skip
        further = f"dpo-lab sample --model {shlex.quote(model)}\n"
        further += f"dpo-lab train --model {shlex.quote(model)} --run another-run\n"
        further += f"dpo-lab compare {shlex.quote(folder)} another-run"
        parts.append("<p>Ask it, tune it further, compare it with another run:</p>")
        parts.append(_code(further))
    else:
        parts.append("<p>No model was saved, since training did not come to its end.</p>")
        where = "from the last checkpoint" if has_checkpoint else "from the beginning, since there is no checkpoint"
        parts.append(f"<p>To go on {where}, give the same command again, with its settings and these two options:</p>")
        parts.append(_code(f"dpo-lab {command} … --run {shlex.quote(folder)} --resume"))
    return "\n".join(parts)


def _figure(png: bytes, alt: str, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text(alt)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>\n"
    )


def _code(source: str) -> str:
    return f"<pre><code>{text(source)}</code></pre>"


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return text(", ".join(f"{name} {one}" for name, one in value.items()))
    return folded(value) if isinstance(value, str) else text(value)


def _default(value: Any) -> str:
    return '<span class="quiet">none</span>' if value is None else text(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else text(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
