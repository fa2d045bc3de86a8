"""Load and save a policy and its tokenizer: the embedded model, a folder, or a model of the Hub. Knows no training.

Weights are read from safetensors only: a pickle can run code when it is opened. A model's own Python code runs only
when `trust_remote_code` is set.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpo_lab.models.checks import check_source, check_tokenizer, check_weights, explain_loading, quiet_transformers
from dpo_lab.models.inside import pick_device
from dpo_lab.storage.embedded import embedded_path

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
    one without a chat template gets the plain default when messages are rendered. Both are logged.
    Raises ValueError for what is no model, with what to do.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    target = pick_device(device)
    name = str(embedded_path("models", EMBEDDED_MODEL)) if str(source) == "embedded" else os.fspath(source)
    if Path(name).expanduser().is_dir() and name.strip():
        name = str(Path(name).expanduser())
    try:
        check_source(name)
    except PermissionError as error:
        raise PermissionError(
            f"no permission to read {error.filename}; change its mode or load a copy of your own"
        ) from None
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    tokenizer = _load_tokenizer(name, options)
    model = _load_model(name, options, DTYPES[dtype])
    check_tokenizer(model, tokenizer, name)
    return model.to(target).eval(), tokenizer


def save_policy(model: nn.Module, tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Write model and tokenizer so that plain `AutoModelForCausalLM.from_pretrained` loads them. Returns the folder.

    An adapter is merged into a copy of its base first, so that the folder holds one whole model.
    """
    folder = Path(folder)
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()  # pyright: ignore[reportCallIssue]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
            tokenizer.save_pretrained(folder)
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):  # the tokenizers' own
            raise
        raise OSError(
            f"the model cannot be written to {folder} ({error}); free space or permissions there, "
            "or name another folder"
        ) from error
    return folder


def _load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    with explain_loading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
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
    with explain_loading(name, "model"):
        config = AutoConfig.from_pretrained(name, **options)
        # Sizes that do not match are let through here, and named below with the other misfits.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    model, found = loaded
    check_weights(name, found)
    return model
