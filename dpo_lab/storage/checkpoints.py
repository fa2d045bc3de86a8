"""Checkpoints: a training state written whole or not at all, and read back only if it is intact and belongs to the run.

A checkpoint is a folder `step-00000120` with the weights (safetensors), the optimiser's state and the random state
(tensors, loaded without running code), and `manifest.json` with the step, the identity of the run and a SHA-256 of each
file. It is written under a temporary name, flushed, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from dpo_lab.storage.files import flat, flush, sha256_of_file

logger = logging.getLogger("dpo_lab")

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
UNREADABLE = (
    pickle.UnpicklingError, SafetensorError, RuntimeError, ValueError, LookupError, TypeError, EOFError,
)  # fmt: skip
"""What torch and safetensors raise for a state that is another model's, or not a state at all."""


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: Any, identity: dict[str, Any], *, keep: int
) -> Path:
    """Write `folder/step-…`, keep the newest `keep`, return the path. An OSError names the folder and the remedy."""
    path, partial = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
    try:
        for unfinished in folder.glob(".step-*.partial"):  # left by a killed process
            shutil.rmtree(unfinished, ignore_errors=True)
        partial.mkdir(parents=True)
        _save_weights(model, partial / WEIGHTS)
        _save_state({"optimizer": optimizer.state_dict(), "random": _random_state()}, partial / STATE)
        sums = {name: sha256_of_file(partial / name) for name in (WEIGHTS, STATE)}
        manifest = {"step": step, "identity": identity, "sha256": sums}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for entry in partial.iterdir():
            flush(entry)
        shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step makes way
        partial.rename(path)
        flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"the checkpoint of step {step} cannot be written to {folder} ({reason}); free space or "
            "permissions there, then resume from the last complete checkpoint"
        ) from error
    # Later steps are of a run that went on from here before; they are not this one's to count or to delete.
    for old in [other for other in list_checkpoints(folder) if other.name <= path.name][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_checkpoint(path: Path, model: nn.Module, optimizer: Any, identity: dict[str, Any]) -> int:
    """Put a checkpoint's state into model, optimiser and random generators; return its step.

    Raises ValueError for a damaged checkpoint, and for one of another run, naming what differs.
    """
    manifest = read_manifest(path)
    if broken := _broken_files(path, manifest):
        raise ValueError(
            f"checkpoint {path} is damaged: {', '.join(broken)} is not what was written; resume from an earlier one"
        )
    _compare(manifest["identity"], json.loads(json.dumps(identity)), path)
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        _load_weights(model, path / WEIGHTS)
        optimizer.load_state_dict(state["optimizer"])
        _set_random_state(state["random"])
    except UNREADABLE as error:
        raise ValueError(
            f"checkpoint {path} does not fit this model and optimiser, or was not written here "
            f"({str(error).strip().splitlines()[0]}); resume from another one"
        ) from error
    return int(manifest["step"])


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).is_file())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint in `folder`; damaged ones are named in the log and passed over."""
    for path in reversed(list_checkpoints(folder)):
        try:
            broken = _broken_files(path, read_manifest(path))
        except ValueError as error:
            logger.warning("%s; it is passed over", error)
            continue
        if not broken:
            return path
        logger.warning("checkpoint %s is damaged (%s) and is passed over", path, ", ".join(broken))
    return None


def _broken_files(path: Path, manifest: dict[str, Any]) -> list[str]:
    sums = manifest["sha256"]
    return [
        name
        for name in (WEIGHTS, STATE)
        if not (path / name).is_file() or sha256_of_file(path / name) != sums.get(name)
    ]


def read_manifest(path: Path) -> dict[str, Any]:
    """Step, identity and sums of a checkpoint. Raises ValueError where there is none or it cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return {
            "step": int(manifest["step"]),
            "identity": dict(manifest["identity"]),
            "sha256": dict(manifest["sha256"]),
        }
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no checkpoint at {path}; give a folder named step-…, as in RUN/checkpoints") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"checkpoint {path} is damaged: its {MANIFEST} cannot be read ({error})") from None


def _compare(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    flat_saved, flat_now = flat(saved), flat(now)
    different = [
        f"{name} was {flat_saved.get(name)!r} and is {flat_now.get(name)!r}"
        for name in sorted(flat_saved.keys() | flat_now.keys())
        if flat_saved.get(name) != flat_now.get(name)
        # Without held-out data on one side, no two series of evaluations are mixed.
        and (name != "held_out" or {name} <= flat_saved.keys() & flat_now.keys())
    ]
    if different:
        raise ValueError(
            f"checkpoint {path} belongs to another run: {'; '.join(different)}; resume with the same settings and "
            "data, or begin a new run from its model"
        )


def frozen_hash(model: nn.Module) -> str | None:
    """SHA-256 over the weights that are not trained, as under an adapter; None where all are. A checkpoint leaves them
    out, so a run's identity must name them."""
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    digest = hashlib.sha256()
    for name, parameter in frozen:
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if frozen else None


def _save_weights(model: nn.Module, path: Path) -> None:
    """All weights; beside frozen ones only what training changes, so that an adapter's checkpoint is small."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        save_model(model, str(path))
    else:
        save_file({name: tensor.detach().contiguous() for name, tensor in _changing(model).items()}, path)


def _load_weights(model: nn.Module, path: Path) -> None:
    device = str(next(model.parameters()).device)
    if all(parameter.requires_grad for parameter in model.parameters()):
        load_model(model, str(path), device=device)
        return
    saved = load_file(path, device)
    if odd := sorted(saved.keys() ^ _changing(model).keys()):
        raise ValueError(f"{odd[0]} is not trained in both")
    model.load_state_dict(saved, strict=False)


def _changing(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that are trained, and buffers."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {name: p for name, p in model.named_parameters() if p.requires_grad} | buffers


def _save_state(state: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's writer makes this of a full disk
        raise OSError("the disk did not take all of it") from error


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
