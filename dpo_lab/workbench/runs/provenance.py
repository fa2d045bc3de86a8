"""What it takes to know later what was run: sources, seed, device, versions, time, as plain JSON."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dpo_lab
from dpo_lab.storage.files import spelled


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with everything filled in that it takes to know later what was run."""
    settings = config.setdefault("settings", {})
    config.setdefault("command", "train")
    config.setdefault("model", settings.get("model"))
    config.setdefault("data", {name: settings[name] for name in ("pairs", "held_out") if settings.get(name)})
    config.setdefault("seed", settings.get("seed"))
    config.setdefault("device", _device_name(str(settings.get("device", "auto"))))
    config.setdefault("versions", _versions())
    config.setdefault("started", datetime.now(UTC).isoformat(timespec="seconds"))
    return config


def _versions() -> dict[str, str]:
    versions = {"dpo_lab": dpo_lab.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _device_name(device: str) -> str:
    """The GPU's or the machine's name. torch is used only where it is loaded already, as it is when training."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith(("auto", "cuda")) and torch.cuda.is_available():
        return torch.cuda.get_device_name(device if ":" in device else None)
    return f"{'cpu' if device == 'auto' else device} ({platform.machine()}, {platform.system()})"


def plain_json(values: dict[str, Any], what: str) -> dict[str, Any]:
    """The values as JSON has them: paths as text, tuples as lists. ValueError names what JSON cannot hold."""
    for name, value in values.items():
        try:
            values[name] = json.loads(json.dumps(spelled(value), default=_path_as_text))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{what} field {name!r} cannot be written as JSON ({error}); give text or numbers"
            ) from None
    return values


def _path_as_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r:.60}")
