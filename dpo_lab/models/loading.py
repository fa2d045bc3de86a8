"""Load and save a policy and its tokenizer: the embedded model, a folder, a .gguf file, or one of the Hub. No training.

Weights are read from safetensors only: a pickle can run code when it is opened. A model's own Python code runs only
when `trust_remote_code` is set.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpo_lab.models.checks import (
    check_source,
    check_template,
    check_tokenizer,
    check_weights,
    explain_loading,
    explain_saving,
)
from dpo_lab.models.gguf import converted, smollm2_source
from dpo_lab.models.inside import end_tokens, in_precision, inner_model, pick_device
from dpo_lab.storage.embedded import embedded_path

EMBEDDED_MODEL = "pocket-sft"
_READ_DTYPE = "read_dtype"
"""The attribute of a loaded model that holds the dtype of its files; weights in memory are float32."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger("dpo_lab")


_OF_A_MODEL = ("model*.safetensors", "model.safetensors.index.json", "chat_template.jinja", "additional_chat_templates")
"""Files of an earlier model that would be read beside those of another."""


def load_policy(
    source: str | os.PathLike[str] = "embedded",
    *,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode and its tokenizer.

    source: "embedded"; "smollm2", a real model that needs no network where its package is installed (`models.gguf`); a
    folder that `save_pretrained` wrote; a .gguf file; or a Hub id ("HuggingFaceTB/SmolLM2-135M-Instruct").
    dtype: of the weights in memory. float32 is right for training; the configuration's `precision` sets the arithmetic.

    A tokenizer without a pad token takes its end token for padding (padding is masked by length, so nothing changes);
    one without a chat template gets the plain default when messages are rendered. Both are logged.
    Raises ValueError for what is no model, with what to do.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    target = pick_device(device)
    try:
        name = _place(os.fspath(source), revision)
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


def load_tokenizer(source: str | os.PathLike[str] = "embedded", *, trust_remote_code: bool = False) -> Any:
    """The tokenizer alone of what `load_policy` loads; no weights are read."""
    name = _place(os.fspath(source), None)
    check_source(name)
    return _load_tokenizer(name, {"trust_remote_code": trust_remote_code})


def save_policy(
    model: nn.Module, tokenizer: Any, folder: str | os.PathLike[str],
    *, dtype: Literal["base", "float32", "bfloat16", "float16"] = "base",
) -> Path:  # fmt: skip
    """Write model and tokenizer so that plain `AutoModelForCausalLM.from_pretrained` loads them. Returns the folder.

    An adapter is merged into a copy of its base first, so that the folder holds one whole model. Plain `generate` stops
    where training taught it to: the end of a turn in the template joins the end tokens of `generation_config`. All is
    written beside the folder first, so that what is broken off leaves no half a model there.

    dtype: of the saved weights. "base" is that of the files which `load_policy` read; another than the one in memory
        rounds a copy.
    """
    folder = Path(folder)
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()  # pyright: ignore[reportCallIssue]
    wanted = getattr(model, _READ_DTYPE, None) if dtype == "base" else DTYPES[dtype]
    if wanted is not None and wanted != next(model.parameters()).dtype:
        model = in_precision(model, wanted)
    ends = end_tokens(model, tokenizer)
    inner_model(model).generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    with explain_saving(folder, "free space or permissions there, or name another folder"):
        place = folder.resolve()
        # Inside a folder that is there, which may be another disk's; else beside it, so that it comes as a whole.
        partial = place / ".partial" if place.exists() else place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        model.save_pretrained(partial)  # pyright: ignore[reportCallIssue]
        tokenizer.save_pretrained(partial)
        if partial.parent != place:
            partial.rename(place)
            return folder
        for old in (path for pattern in _OF_A_MODEL for path in place.glob(pattern)):  # what the new one may not have
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for path in partial.iterdir():
            path.replace(place / path.name)
        partial.rmdir()
    return folder


def _place(source: str, revision: str | None) -> str:
    """The folder or Hub id that a source stands for; a .gguf file is converted into a folder first."""
    if source == "embedded":
        return str(embedded_path("models", EMBEDDED_MODEL))
    if source == "smollm2":
        return smollm2_source(revision)
    path = Path(os.path.expanduser(source))
    if path.suffix.lower() == ".gguf" and path.is_file():
        return str(converted(path))
    return str(path) if source.strip() and path.is_dir() else source


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
    else:
        check_template(tokenizer, name)
    return tokenizer


def _load_model(name: str, options: dict[str, Any], dtype: torch.dtype) -> Any:
    with explain_loading(name, "model"):
        config = AutoConfig.from_pretrained(name, **options)
        read_dtype = config.dtype
        if getattr(config, "quantization_config", None):
            raise ValueError("its weights are quantised, and training needs whole ones; give the original")
        # Sizes that do not match are let through here, and named below with the other misfits.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    model, found = loaded
    check_weights(name, found)
    setattr(model, _READ_DTYPE, read_dtype if read_dtype in DTYPES.values() else None)
    return model
