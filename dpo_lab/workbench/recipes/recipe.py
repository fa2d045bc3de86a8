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
    settings = _changed(recipe)
    if recipe.model != "embedded":  # for another model the command might settle on others
        settings |= {name: getattr(recipe.config, name) for name in ("precision", "learning_rate")}
    return " ".join(["dpo-lab train", *(option(name, value) for name, value in settings.items())])


def python_code(recipe: Recipe, folder: str = "runs/by-hand") -> str:
    """The same run as Python: it trains, records the run in `folder` (new or empty), and saves the model there."""
    config = recipe.config
    changed = {name: value for name, value in _changed(recipe).items() if name in vars(config)}
    drawn = f", limit={recipe.limit}, seed={config.seed}" if recipe.limit is not None else ""
    model, pairs = _literal(recipe.model), _literal(recipe.pairs)
    imports = ["from dpo_lab import DPOConfig, ReferenceCache, Run, load_policy, load_preferences, train_dpo"]
    adapter: list[str] = []
    saving = ["model.save_pretrained(run.model_folder)", "tokenizer.save_pretrained(run.model_folder)"]
    if recipe.lora is not None:
        imports += ["from dpo_lab.models.lora import add_lora, save_adapter",
                    "from dpo_lab.models.loading import save_policy"]  # fmt: skip
        settings = {"rank": recipe.lora, "alpha": recipe.lora_alpha, "dropout": recipe.lora_dropout,
                    "targets": recipe.lora_targets, "seed": config.seed}  # fmt: skip
        adapter = _call("model = add_lora", {name: value for name, value in settings.items() if value}, "model")
        saving = [
            "save_policy(model, tokenizer, run.model_folder)  # merged",
            "save_adapter(model, run.adapter_folder)",
        ]
    split, held, of_rows = "", "held_out = None", []
    if recipe.pairs == "embedded":
        split, held = ', split="train"', 'held_out = load_preferences("embedded", split="test")'
    elif recipe.validation:
        imports.append("from dpo_lab.preferences import split_rows")
        held = f"pairs, held_out = split_rows(pairs, {recipe.validation!r}, seed={config.seed})"
    if recipe.job is not None:
        imports.append("from dpo_lab.preferences import of_job")
        of_rows.append(f"pairs, held_out = (of_job(rows, {_literal(recipe.job)}) for rows in (pairs, held_out))")
    if recipe.flip:
        imports.append("from dpo_lab.preferences import flip_labels")
        of_rows.append(f"pairs = flip_labels(pairs, {recipe.flip!r}, seed={config.seed})")
    return "\n".join([
        *imports,
        "",
        *_call("config = DPOConfig", changed),
        f"model, tokenizer = load_policy({model}, device=config.device)",
        *adapter,
        f"pairs = load_preferences({pairs}{split}{drawn})",
        held,
        *of_rows,
        f"source = {{\"model\": {model}, \"pairs\": {pairs}}}",
        f"run = Run.create({_literal(folder)}, {{\"command\": \"train\", \"settings\": source | vars(config)}})",
        "with ReferenceCache() as cache:",
        "    events = train_dpo(model, tokenizer, pairs, config, held_out=held_out, cache=cache)",
        "    for event in run.follow(events):",
        "        print(event)",
        "run.write_report()",
        *saving,
        "",
    ])  # fmt: skip


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
