"""Load and save a policy and its tokenizer: the embedded model, a folder, or a model of the Hub. Knows no training.

Weights are read from safetensors only: a pickle can run code when it is opened. A model's own Python code runs only
when `trust_remote_code` is set.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from dpo_lab.embedded import embedded_path

EMBEDDED_MODEL = "pocket-sft"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger("dpo_lab")


def load_policy(
    source: str | os.PathLike[str] = "embedded",
    *,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode and its tokenizer.

    source: "embedded", a folder that `save_pretrained` wrote, or a Hub id ("HuggingFaceTB/SmolLM2-135M-Instruct").
    dtype: of the weights in memory. float32 is right for training; the configuration's `precision` sets the arithmetic.

    A tokenizer without a pad token takes its end token for padding (padding is masked by length, so nothing changes);
    one without a chat template gets the plain default when messages are rendered. Both are said in the log.
    Raises ValueError for what is no model, with what to do.
    """
    name = str(embedded_path("models", EMBEDDED_MODEL)) if str(source) == "embedded" else os.fspath(source)
    _check_source(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    tokenizer = _load_tokenizer(name, options)
    model = _load_model(name, options, DTYPES[dtype])
    _fit(model, tokenizer, name)
    return model.to(pick_device(device)).eval(), tokenizer


def save_policy(model: nn.Module, tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Write model and tokenizer so that plain `AutoModelForCausalLM.from_pretrained` loads them. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(folder)
    return folder


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ValueError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used ({reason}); auto takes what is there") from None
    return picked


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to zero, an adapter's and the attention's included: policy and reference are scored alike."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def inner_model(model: nn.Module) -> Any:
    """The transformers model inside an adapter's wrapper; its layers still hold the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]


def output_layer(model: nn.Module) -> nn.Linear:
    """The layer that turns hidden states into logits."""
    return inner_model(model).get_output_embeddings()


def num_parameters(model: nn.Module) -> int:
    """Weights of the model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _check_source(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ValueError(
                f"{name} holds a LoRA adapter without its base model, and a policy needs one whole model; merge the "
                "adapter into its base first (peft: merge_and_unload, then save_pretrained)"
            )
        if not (path / "config.json").is_file():
            held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise ValueError(
                f"{name} is a folder but no model: config.json is missing (it holds {held}); "
                "give a folder that save_pretrained wrote, such as RUN/model"
            )
        weights = list(path.glob("*.safetensors"))
        if not weights:
            pickled = [entry.name for entry in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))]
            what = f"only pickled weights ({', '.join(pickled)}), which can run code" if pickled else "no weights"
            raise ValueError(f"{name} holds {what}; convert them to safetensors with save_pretrained")
        return
    if path.is_file():
        raise ValueError(f"{name} is a file; a model is a folder with config.json, safetensors and a tokenizer")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    if looks_like_path or not name.strip():
        raise ValueError(f"no model folder at {name!r}; check the path, or give a Hub id (owner/name) or 'embedded'")


def _load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:
        raise _explained(name, "tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name} has no end token, and a completion must end with one; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("the tokenizer of %s has no pad token: its end token %r pads", name, tokenizer.eos_token)
    if not tokenizer.chat_template:
        logger.info("the tokenizer of %s has no chat template: messages are written in the plain default one", name)
    return tokenizer


def _load_model(name: str, options: dict[str, Any], dtype: torch.dtype) -> Any:
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name, **options)
        return AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, use_safetensors=True, **options)
    except Exception as error:
        raise _explained(name, "model", error) from error
    finally:
        if bar:
            transformers_logging.enable_progress_bar()


def _explained(name: str, what: str, error: Exception) -> ValueError:
    """Say what stands behind the many faces of a failed download or a broken folder."""
    text = f"{type(error).__name__}: {error}"
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in text:
        return ValueError(f"{name} brings Python code of its own; read it, then allow it with trust_remote_code=True")
    if Path(name).expanduser().is_dir():
        if isinstance(error, json.JSONDecodeError) or "JSON" in text or "HeaderToo" in text or "deserializ" in text:
            return ValueError(f"the {what} in {name} is damaged ({first}); copy it again from where it came")
        return ValueError(f"the {what} in {name} cannot be loaded: {first}")
    if "gated" in text.lower() or "401" in text or "403" in text:
        return ValueError(f"{name} is gated or private; accept its terms on the Hub and log in with `hf auth login`")
    if "404" in text or "RepositoryNotFound" in text or "is not a valid model identifier" in text:
        return ValueError(f"the Hub has no model {name!r}; check the spelling, or give a folder")
    return ValueError(
        f"the {what} {name!r} is no folder here and cannot be fetched from the Hub ({first}); "
        "go online once, or download it and give its folder"
    )


def _fit(model: nn.Module, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer whose ids the model has no embedding for."""
    rows = inner_model(model).get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ValueError(
            f"the tokenizer of {name} does not fit its model: it gives ids up to {largest}, the model has {rows} "
            "embeddings; use the tokenizer that the model was trained with"
        )
    if model.config.pad_token_id is None:  # pyright: ignore[reportAttributeAccessIssue]
        model.config.pad_token_id = tokenizer.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
