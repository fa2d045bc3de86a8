"""What a preference-tuning run is made of, in one record, and the two ways to write it down. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from dpo_lab.config import DPOConfig, LoRAConfig
from dpo_lab.preferences.token_cache import DataSettings
from dpo_lab.workbench.runs.settings import HeldOutSettings, SourceSettings, option


@dataclass(frozen=True, kw_only=True)
class Recipe(LoRAConfig, HeldOutSettings, SourceSettings):
    """One run of `dpo-lab train`: where model and pairs come from, what is sampled, and the training's settings.

    The defaults are those of the command line.
    """

    config: DPOConfig = field(default_factory=DPOConfig)
    """Everything else: loss, β, learning rate and all that a training needs."""

    def __post_init__(self) -> None:
        for name in ("model", "pairs"):
            if not str(getattr(self, name)).strip():
                raise ValueError(f"{name} must name a source, got {getattr(self, name)!r}; 'embedded' comes along")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit must be at least 2, got {self.limit}; None takes all rows")
        self.check_held_out()
        self.check_lora(self.config.dropout)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything by name, flat, as a run folder's config.json records it."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "config"}
        return own | vars(self.config)

    @property
    def data(self) -> DataSettings:
        """What is trained on, and what is held out."""
        names = {entry.name for entry in fields(DataSettings)}
        return DataSettings(**{name: value for name, value in self.settings.items() if name in names})


def command_line(recipe: Recipe) -> str:
    """The same run as a line for a terminal: `dpo-lab train` with every setting that differs from its default."""
    return " ".join(["dpo-lab train", *(option(name, value) for name, value in _changed(recipe).items())])


def python_code(recipe: Recipe, folder: str = "runs/by-hand") -> str:
    """The same run as Python: it trains, records the run in `folder` (new or empty), and saves the model there."""
    config = recipe.config
    changed = {name: value for name, value in _changed(recipe).items() if name in vars(config)}
    drawn = f", limit={recipe.limit}, seed={config.seed}" if recipe.limit is not None else ""
    imports = ["DPOConfig", "ReferenceCache", "Run", "load_policy", "load_preferences", "train_dpo"]
    lines = [f"from dpo_lab import {', '.join(imports)}"]
    if recipe.lora is not None:
        lines += [
            "from dpo_lab.models.lora import add_lora, save_adapter",
            "from dpo_lab.models.loading import save_policy",
        ]
    if recipe.pairs == "embedded":
        data = [
            f'pairs = load_preferences("embedded", split="train"{drawn})',
            'held_out = load_preferences("embedded", split="test")',
        ]
    elif recipe.validation:
        lines.append("from dpo_lab.preferences import split_rows")
        data = [
            f"pairs = load_preferences({_literal(recipe.pairs)}{drawn})",
            f"pairs, held_out = split_rows(pairs, {recipe.validation!r}, seed={config.seed})",
        ]
    else:
        data = [f"pairs = load_preferences({_literal(recipe.pairs)}{drawn})", "held_out = None"]
    return "\n".join([
        *lines,
        "",
        *_call("config = DPOConfig", changed),
        f"model, tokenizer = load_policy({_literal(recipe.model)}, device=config.device)",
        *_adapter_lines(recipe),
        *data,
        f"source = {{\"model\": {_literal(recipe.model)}, \"pairs\": {_literal(recipe.pairs)}}}",
        f"run = Run.create({_literal(folder)}, {{\"command\": \"train\", \"settings\": source | vars(config)}})",
        "with ReferenceCache() as cache:",
        "    events = train_dpo(model, tokenizer, pairs, config, held_out=held_out, cache=cache)",
        "    for event in run.follow(events):",
        "        print(event)",
        "run.write_report()",
        *_saving_lines(recipe),
        "",
    ])  # fmt: skip


def _adapter_lines(recipe: Recipe) -> list[str]:
    """The call of `add_lora`, where the recipe has an adapter."""
    if recipe.lora is None:
        return []
    adapter = {"rank": recipe.lora, "alpha": recipe.lora_alpha, "dropout": recipe.lora_dropout,
               "targets": recipe.lora_targets, "seed": recipe.config.seed}  # fmt: skip
    return _call("model = add_lora", {name: value for name, value in adapter.items() if value}, "model")


def _saving_lines(recipe: Recipe) -> list[str]:
    if recipe.lora is None:
        return ["model.save_pretrained(run.model_folder)", "tokenizer.save_pretrained(run.model_folder)"]
    return ["save_policy(model, tokenizer, run.model_folder)  # merged", "save_adapter(model, run.adapter_folder)"]


def _changed(recipe: Recipe) -> dict[str, Any]:
    """The settings that differ from their defaults, sources first."""
    usual = Recipe().settings
    return {name: value for name, value in recipe.settings.items() if value != usual[name]}


def _call(start: str, arguments: dict[str, Any], *first: str) -> list[str]:
    """A call with keywords, on one line where it fits."""
    parts = [*first, *(f"{name}={_literal(value)}" for name, value in arguments.items())]
    line = f"{start}({', '.join(parts)})"
    return [line] if len(line) <= 100 else [f"{start}(", *(f"    {part}," for part in parts), ")"]


def _literal(value: Any) -> str:
    """A value as Python, texts in double quotes."""
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str) else repr(value)
