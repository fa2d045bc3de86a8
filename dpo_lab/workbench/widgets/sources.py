"""What a panel may be given for a model: a name, a folder, a run, a checkpoint, or the model itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PolicySource = Any
"""What `policy_of` takes."""


def policy_of(source: PolicySource, *, device: str = "auto") -> tuple[Any, Any]:
    """A model and its tokenizer.

    source: what `load_policy` takes; a `Run` or a run's folder (its tuned model); a run's checkpoint folder
        (`RUN/checkpoints/step-00000120`), for which the model that the run began from is loaded and given the
        checkpoint's weights; or a pair (model, tokenizer), which is taken as it is.
    """
    from dpo_lab.models.loading import load_policy

    if isinstance(source, tuple | list):
        if len(source) != 2:
            raise ValueError(f"a loaded model comes as (model, tokenizer), got {len(source)} things; "
                             "or give its name or folder")  # fmt: skip
        return source[0], source[1]
    if (run := run_of(source)) is not None:
        return load_policy(_model_of(run), device=device)
    path = Path(os.path.expanduser(os.fspath(source)))
    if (path / "manifest.json").is_file() and (path / "weights.safetensors").is_file():
        return _at_checkpoint(path, device)
    return load_policy(source, device=device)


def name_of(source: PolicySource) -> str:
    """What a menu calls a source: the end of its path, or what the model was loaded from."""
    if isinstance(source, tuple | list):
        return Path(str(getattr(source[0], "name_or_path", "") or type(source[0]).__name__)).name
    path = Path(str(getattr(source, "folder", source)))
    return f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name


def named(sources: Mapping[str, PolicySource] | Sequence[PolicySource] | PolicySource) -> dict[str, PolicySource]:
    """Several sources by name: a mapping as it is, a list under the names that the sources have."""
    if isinstance(sources, Mapping):
        return dict(sources)
    is_one = not isinstance(sources, list | tuple) or _is_loaded(sources)
    listed = [sources] if is_one else list(sources)
    by_name = {name_of(source): source for source in listed}
    if len(by_name) < len(listed):
        names = [name_of(source) for source in listed]
        raise ValueError(f"two of the models have the same name, {names}; name them: {{'before': ..., 'after': ...}}")
    return by_name


def run_of(source: PolicySource) -> Any | None:
    """The run that a source is, or None."""
    from dpo_lab.workbench.runs.run import Run

    if isinstance(source, Run):
        return source
    is_path = isinstance(source, str | os.PathLike)
    path = Path(os.path.expanduser(os.fspath(source))) if is_path else None
    if path is None or not (path / "config.json").is_file() or not (path / "metrics.jsonl").is_file():
        return None
    return Run.load(path)


def with_checkpoints(sources: Mapping[str, PolicySource]) -> dict[str, PolicySource]:
    """The same sources; after each run the checkpoints that lie in its folder. A run without a model has only these."""
    policies: dict[str, PolicySource] = {}
    for name, source in sources.items():
        run = run_of(source)
        if run is None or run.model_folder.is_dir():
            policies[name] = source
        if run is not None:
            steps = sorted(p for p in run.checkpoints.glob("step-*") if (p / "manifest.json").is_file())
            policies |= {f"{name}, step {int(step.name.removeprefix('step-'))}": step for step in steps}
            if not run.model_folder.is_dir() and not steps:
                policies[name] = source  # which is refused with the reason when it is loaded
    return policies


def _is_loaded(source: Sequence[Any]) -> bool:
    return len(source) == 2 and hasattr(source[0], "parameters")


def _model_of(run: Any) -> Path:
    if not run.model_folder.is_dir():
        raise ValueError(f"the run {run.folder} has no model yet: it has not ended; give one of its checkpoints, "
                         f"{run.checkpoints}/step-…, or go on with it")  # fmt: skip
    return run.model_folder


def _at_checkpoint(path: Path, device: str) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    from dpo_lab.models.loading import load_policy
    from dpo_lab.workbench.runs.run import Run

    settings = Run.load(path.parent.parent).config.get("settings", {})
    base = settings.get("model")
    if not isinstance(base, str):
        raise ValueError(f"the run of {path} doesn't say which model it began from; load it with load_policy and give "
                         "(model, tokenizer)")  # fmt: skip
    model, tokenizer = load_policy(base, device=device)
    try:
        load_model(model, str(path / "weights.safetensors"), device=str(next(model.parameters()).device))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {path} don't fit {base} ({str(error).strip().splitlines()[0]}); a checkpoint "
                         "of an adapter needs its base: give the run's model instead") from error  # fmt: skip
    return model, tokenizer
