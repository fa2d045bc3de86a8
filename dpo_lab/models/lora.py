"""LoRA through peft: a small trainable adapter beside frozen weights, and the base behind it as the reference.

A linear layer W gets a low-rank part, W + (α/r)·B·A with A (r × in) and B (out × r); only A and B are trained.
B starts at zero, so the policy starts as its base. Hu et al. 2021, arXiv 2106.09685, section 4.1.

With the adapter switched off the model *is* its base, to the bit: DPO needs no second copy of it, and the reference
cache knows it by the base's own fingerprint. That holds for the base alone. What an adapter has learnt already, as
in SFT, is gone when it is switched off; so an adapter that does something is never switched off for a reference: the
policy is scored as it stands before the first step, adapter included, or the adapter is merged first.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpo_lab.config import LoRAConfig
from dpo_lab.models.inside import inner_model, output_layer

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_lora(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    seed: int = 0,
) -> Any:
    """The model with a fresh adapter in its linear layers: all else is frozen. The layers are changed in place.

    rank: r, the width of the adapter; more can learn more, 8 to 64 are usual.
    alpha: scales the adapter's part by alpha / rank; None takes 2 × rank.
    dropout: on the adapter's input while training; it needs `dropout=True` in the run's configuration.
    targets: names of layers, such as q_proj and v_proj; none takes every linear layer but the output layer.
    seed: of A. B is zero, so that nothing changes before the first step.
    """
    check_lora(rank, alpha, dropout)
    if has_adapter(model):
        raise ValueError("the model has an adapter already; train that one, or merge it into its base first")
    peft = _peft()
    layers = _linear_layers(model)
    if missing := [name for name in targets if name not in layers]:
        raise ValueError(f"no linear layer is called {', '.join(missing)}; the model has {', '.join(layers)}")
    inside = [name for name, is_output in layers.items() if not is_output]
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout,  # pyright: ignore[reportArgumentType]
        target_modules=list(targets) or inside, task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
    )  # fmt: skip
    with torch.random.fork_rng(), _old_names():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, settings).eval()  # pyright: ignore[reportArgumentType]


def _linear_layers(model: nn.Module) -> dict[str, bool]:
    """The last names of all linear layers (GPT-2 calls its own Conv1D), and whether it is the output layer's."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D):
            found[name.rpartition(".")[2]] = layer is output_layer(model)
    return dict(sorted(found.items()))


def adapted(model: nn.Module, requested: LoRAConfig, seed: int) -> Any:
    """The model with the adapter that a run's options request, or as it is where they request none."""
    if requested.lora is None:
        return model
    return add_lora(
        model, rank=requested.lora, alpha=requested.lora_alpha, dropout=requested.lora_dropout,
        targets=requested.lora_targets, seed=seed,
    )  # fmt: skip


def check_lora(rank: int, alpha: float | None, dropout: float) -> None:
    """ValueError for what no adapter can have."""
    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, got {rank}; 8 to 64 are usual")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"the alpha of LoRA must be positive, got {alpha}; None takes twice the rank")
    if not 0 <= dropout < 1:
        raise ValueError(f"the dropout of LoRA must lie in [0, 1), got {dropout}; 0 is usual for DPO")


# ── the base behind an adapter ───────────────────────────────────────────────────────────────────────────────────────


def has_adapter(model: nn.Module) -> bool:
    """Whether peft has put adapters into the model."""
    return any(True for _ in adapted_layers(model))


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every layer with an adapter (peft's tuner layers, known by what they can)."""
    for name, module in model.named_modules():
        if hasattr(module, "merged_adapters") and hasattr(module, "disable_adapters"):
            yield name, module


def adds_nothing(model: nn.Module) -> bool:
    """Whether the model has adapters and all of them are as `add_lora` makes them: B is zero, so base and policy are
    the same function."""
    layers = [layer for _, layer in adapted_layers(model)]
    return bool(layers) and all(_is_fresh(layer) for layer in layers)


def _is_fresh(layer: Any) -> bool:
    if layer.merged_adapters or len(getattr(layer, "lora_magnitude_vector", ())):  # DoRA rescales what B leaves alone
        return False
    if not hasattr(layer, "lora_B"):
        return False
    ups = [*(up.weight for up in layer.lora_B.values()), *layer.lora_embedding_B.values()]
    biases = [up.bias for up in layer.lora_B.values() if up.bias is not None]
    return bool(ups) and not any(bool(weight.any()) for weight in (*ups, *biases))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """While it is entered, the model computes what its base computes. A model without an adapter stays as it is.

    Which weights are trainable is the same afterwards; peft alone would make all of the adapter's trainable.
    """
    if not has_adapter(model):
        yield
        return
    if any(layer.merged_adapters for _, layer in adapted_layers(model)):
        raise ValueError(
            "the adapter is merged into its base, and taking it out again is not exact; load the base anew"
        )
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with model.disable_adapter():  # pyright: ignore[reportCallIssue]
            yield
    finally:
        for parameter, is_trained in trained.items():
            parameter.requires_grad_(is_trained)


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """While it is entered, a policy before its first step is its own reference.

    A fresh adapter is switched off: the values are the same, and the reference cache finds what it has of the base.
    An adapter that does something stays on.
    """
    if adds_nothing(model):
        with adapter_off(model):
            yield
    else:
        yield


def is_off(model: nn.Module) -> bool:
    """Whether the model has adapters, none merged, and all of them are switched off."""
    layers = [layer for _, layer in adapted_layers(model)]
    return bool(layers) and all(layer.disable_adapters and not layer.merged_adapters for layer in layers)


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The base's own weights under the names that they have without an adapter."""
    prefixes = [f"{name}." for name, _ in adapted_layers(inner_model(model))]
    weights = {}
    for name, tensor in inner_model(model).state_dict().items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            weights[name] = tensor
        elif name.startswith(f"{prefix}base_layer."):
            weights[prefix + name.removeprefix(f"{prefix}base_layer.")] = tensor
    return weights


def adapter_settings(model: nn.Module) -> dict[str, Any]:
    """What decides an adapter beside its weights, by the adapter's name: rank, alpha, layers; empty without one."""
    deciding = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    found: dict[str, Any] = {}
    for name, settings in getattr(model, "peft_config", {}).items():
        values = settings.to_dict()
        found[name] = {key: str(values[key]) for key in deciding if key in values}
        found[name]["target_modules"] = " ".join(sorted(values.get("target_modules") or ()))
    return found


# ── adapters as folders ──────────────────────────────────────────────────────────────────────────────────────────────


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write the adapter alone: `adapter_config.json` and its weights, as peft and its readers know them."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # With "auto", peft asks the Hub whether the base's embeddings have grown.
        model.save_pretrained(folder, save_embedding_layers=False)  # pyright: ignore[reportCallIssue]
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the adapter cannot be written to {folder} ({error}); free space or permissions there, or name another "
            "folder"
        ) from error
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form; a run writes a card of its own
    return folder


def base_of(folder: str | Path) -> str:
    """The base model that an adapter's folder names, a Hub id or a path. Raises ValueError where it names none."""
    name = _settings_of(Path(folder)).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{folder} does not name the model of its adapter; name it with --model")
    return str(name)


def _settings_of(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no adapter: {ADAPTER_CONFIG} is missing; give a folder such as RUN/adapter"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy the adapter again from where it came") from None


def merge_adapter(base: nn.Module, folder: str | Path) -> Any:
    """`base` with the adapter of a folder added into its weights: one whole model, as a policy needs it.

    The base is changed in place. Raises ValueError where the adapter was made for another model.
    """
    folder, peft = Path(folder), _peft()
    _settings_of(folder)  # names what is missing or damaged
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(
            f"{folder} holds no {ADAPTER_WEIGHTS}; a pickled adapter can run code and is not read: save it with peft"
        )
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        with _old_names():
            model = peft.get_peft_model(base, settings)  # pyright: ignore[reportArgumentType]
        if not hasattr(model, "merge_and_unload"):
            raise ValueError(f"{settings.peft_type} cannot be merged into weights; use an adapter such as LoRA")
        weights = load_file(folder / ADAPTER_WEIGHTS)
        # With "auto", peft asks the Hub here too. Whoever saved the embeddings as well has them in the file.
        expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        if weights.keys() - expected.keys():
            expected = peft.get_peft_model_state_dict(model, save_embedding_layers=True)
        odd = sorted(weights.keys() ^ expected.keys())
        odd += [name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape]
        if odd:
            raise ValueError(f"{odd[0]} is not alike in both")
        peft.set_peft_model_state_dict(model, weights)
    except (ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"the adapter in {folder} does not fit its base model ({str(error).splitlines()[0]}); give the model that "
            "it was trained on"
        ) from error
    return model.merge_and_unload().eval()


@contextmanager
def _old_names() -> Iterator[None]:
    """peft asks a model of transformers for a property by its old name, which is no concern of whoever trains."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ImportError("LoRA needs the package peft; install it with pip install 'dpo-lab[lora]'") from None
    return peft
