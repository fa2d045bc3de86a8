"""The model card of a run: the README.md in the folder of the trained model, as the Hub shows it.

It states what the run's record holds, and that nothing else was measured. Local paths are not in it, only the
names of their last parts: a card is made to be published.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
_METHODS = {"train": "preference tuning", "sft": "supervised fine-tuning", "rounds": "preference tuning in rounds"}
_PLACES = {"run", "resume", "cache", "model", "pairs", "held_out", "push_to_hub", "track"}
"""Settings that name places; model and data stand in the card's first table."""


def model_card(name: str, config: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The card as Markdown. config and rows: those of the run's config.json and metrics.jsonl."""
    settings, data = config.get("settings") or {}, config.get("data") or {}
    command, base = str(config.get("command")), str(config.get("model") or "")
    method = _METHODS.get(command, command)
    what = f"{method} with the loss `{_cell(settings['loss'])}`" if settings.get("loss") else method
    on = (
        " and ".join(dict.fromkeys(f"`{_cell(_named(value))}`" for value in data.values()))
        or "data that was not recorded"
    )
    facts = {
        "base": _named(base) + _described(base),
        **{{"pairs": "data", "held_out": "held-out data"}.get(key, key): _named(value) for key, value in data.items()},
        **{key: settings[key] for key in ("loss", "beta", "learning_rate", "epochs", "batch_size") if key in settings},
        "adapter": f"LoRA of rank {settings['lora']}, merged into the base" if settings.get("lora") else None,
        "seed": config.get("seed"),
        "device": config.get("device"),
        "trained": config.get("started"),
    }
    others = {key: value for key, value in settings.items() if key not in facts and key not in _PLACES}
    return "\n\n".join([
        _front_matter(command, base, list(data.values())),
        f"# {_cell(name)}",
        f"`{_cell(_named(base))}` after {what} on {on}, made with DPO Lab. {_state(rows)}",
        "## How it was made",
        _table(("", ""), [(key, value) for key, value in facts.items() if value is not None]),
        "## What was measured",
        _measured(rows),
        "Nothing else was measured: whether the model is safe or right in your use is for you to find out.",
        "## How to use it",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model = AutoModelForCausalLM.from_pretrained(FOLDER_OR_NAME)\n"
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER_OR_NAME)\n```",
        "<details><summary>All settings, and versions</summary>",
        _table(("setting", "value"), list(others.items())),
        _table(("package", "version"), list((config.get("versions") or {}).items())),
        "</details>",
    ]) + "\n"  # fmt: skip


def _front_matter(command: str, base: str, sources: Sequence[Any]) -> str:
    """What the Hub reads: YAML, whose strings are written as JSON, which YAML contains."""
    of_hub = [str(source).partition(":")[0] for source in sources if _is_hub_id(str(source))]
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if _is_hub_id(base):
        lines.append(f"base_model: {json.dumps(base)}")
    if of_hub:
        lines.append(f"datasets: {json.dumps(list(dict.fromkeys(of_hub)))}")
    tags = ["dpo-lab", "sft" if command == "sft" else "preference-optimization"]
    return "\n".join(["---", *lines, f"tags: {json.dumps(tags)}", "---"])


def _measured(rows: Sequence[Row]) -> str:
    """The first and the last evaluation (or step), and what was measured after training."""
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    seen = evaluations or [row for row in rows if row["kind"] == "step"]
    if not seen:
        return "Nothing."
    first, last = seen[0], seen[-1]
    names = [name for name in last if name not in ("kind", "step", "seconds", "learning_rate", "epoch", "grad_norm")]
    title = "held-out data" if evaluations else "training batch"
    lines = [(name.removeprefix("eval_"), _number(first.get(name, "")), _number(last[name])) for name in names]
    parts = [_table((title, f"step {first['step']}", f"step {last['step']}"), lines)]
    after = {name: value for row in rows if row["kind"] == "result" for name, value in row.items()}
    results = [(name, _number(value)) for name, value in after.items() if name not in ("kind", "step")]
    return "\n\n".join(parts + ([_table(("after training", ""), results)] if results else []))


def _state(rows: Sequence[Row]) -> str:
    ended = [row for row in rows if row["kind"] == "finished"]
    last = max((row["step"] for row in rows), default=0)
    if ended and ended[-1]["is_complete"]:
        return f"Training came to its end after {last:,} steps."
    return f"Training was stopped after {last:,} steps, before its end."


def _is_hub_id(source: str) -> bool:
    return bool(_HUB_ID.fullmatch(source)) and not Path(os.path.expanduser(source)).exists()


def _named(source: Any) -> str:
    """A Hub id whole, a path by its last part."""
    text = str(source)
    return text if _is_hub_id(text) else Path(text).name or text


def _described(base: str) -> str:
    known = {
        "embedded": ", the small model of DPO Lab's pocket world",
        "smollm2": ", SmolLM2-135M-Instruct: the Hub's, or a copy decoded from 4 bits where the Hub was out of reach",
    }
    return known.get(base, "" if _is_hub_id(base) else ", a folder")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(one) for one in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    """Text that stays in its place: no end of a cell, of a line or of code, and no HTML."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return text.replace("&", "&amp;").replace("<", "&lt;")
