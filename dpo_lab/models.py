"""Load and save a policy and its tokenizer: the embedded model, a folder, or a model of the Hub. Knows no training.

Weights are read from safetensors only: a pickle can run code when it is opened. A model's own Python code runs only
when `trust_remote_code` is set.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
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
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    target = pick_device(device)
    name = str(embedded_path("models", EMBEDDED_MODEL)) if str(source) == "embedded" else os.fspath(source)
    if Path(name).expanduser().is_dir() and name.strip():
        name = str(Path(name).expanduser())
    try:
        _check_source(name)
    except PermissionError as error:
        raise PermissionError(
            f"no permission to read {error.filename}; change its mode or load a copy of your own"
        ) from None
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    tokenizer = _load_tokenizer(name, options)
    model = _load_model(name, options, DTYPES[dtype])
    _fit(model, tokenizer, name)
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
        with _quiet_transformers():
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


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ValueError for a device that is not there.

    Of several processes that were launched together each takes its own GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"device {device!r} cannot be used ({reason}); auto takes what is there") from None
    return picked


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to zero, an adapter's and the attention's included: policy and reference are scored alike."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        # Layers that call a function keep its rate as a number: attention_dropout, activation_dropout, layerdrop.
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def inner_model(model: nn.Module) -> Any:
    """The transformers model inside an adapter's wrapper; its layers still hold the adapter."""
    if not hasattr(model, "get_base_model"):
        return model
    settings = getattr(model, "active_peft_config", None)
    if getattr(settings, "is_prompt_learning", False):
        raise ValueError(
            f"{type(settings).__name__} puts made-up tokens before the prompt, outside the model that is scored; "
            "use an adapter inside the layers, such as LoRA"
        )
    return model.get_base_model()  # pyright: ignore[reportCallIssue]


def output_layer(model: nn.Module) -> nn.Linear:
    """The layer that turns hidden states into logits."""
    return inner_model(model).get_output_embeddings()


def position_limit(model: nn.Module) -> int | None:
    """Most tokens that a model with a table of positions can take, as GPT-2; None where positions are computed."""
    inner = inner_model(model)
    limit = getattr(inner.config, "max_position_embeddings", None)
    tables = [module for module in inner.modules() if isinstance(module, nn.Embedding)]
    tables = [table for table in tables if table is not inner.get_input_embeddings()]
    # OPT's table has two rows before its first position.
    return limit if limit and any(limit <= table.num_embeddings <= limit + 2 for table in tables) else None


def check_length(model: nn.Module, longest: int, name: str) -> None:
    """Refuse `longest` tokens in a row where the model has no position for the last of them."""
    limit = position_limit(model)
    if limit is not None and longest > limit:
        raise ValueError(f"{name} has a row of {longest} tokens, and the model has {limit} positions; "
                         f"lower max_length to {limit} or less")  # fmt: skip


def num_parameters(model: nn.Module) -> int:
    """Weights of the model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _check_source(name: str) -> None:
    path = Path(name)
    if not name.strip():
        raise ValueError("the name of the model is empty; give a folder, a Hub id (owner/name) or 'embedded'")
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ValueError(
                f"{name} holds a LoRA adapter without its base model, and a policy needs one whole model, for with the "
                "adapter off it would be another reference; merge the two first: dpo-lab merge ADAPTER --output FOLDER"
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
        for file in (path / "config.json", *weights):
            file.open("rb").close()  # safetensors says of a file that may not be read that it isn't there
        for index in path.glob("*.safetensors.index.json"):
            _check_shards(index)
        return
    if path.is_file():
        raise ValueError(f"{name} is a file; a model is a folder with config.json, safetensors and a tokenizer")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    if looks_like_path:
        raise ValueError(f"no model folder at {name!r}; check the path, or give a Hub id (owner/name) or 'embedded'")


def _check_shards(index: Path) -> None:
    """A model in several files names them in an index; none of them may lie elsewhere."""
    try:
        shards = {str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is damaged ({error}); copy it again from where it came") from None
    for shard in sorted(shards):
        if Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}, which lies outside of its folder; get the model again")


def _load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    try:
        with _quiet_transformers():
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
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(name, **options)
            # Sizes that do not match are let through here, to be told below with the other misfits.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except Exception as error:
        raise _explained(name, "model", error) from error
    model, found = loaded
    _check_weights(name, found)
    return model


def _check_weights(name: str, found: Any) -> None:
    """Refuse what transformers would make up: a weight without a value in the file starts at random."""
    listed = {kind: _listed(found[f"{kind}_keys"]) for kind in ("missing", "mismatched", "unexpected")}
    for kind, what in (("missing", "are missing"), ("mismatched", "have another shape than its config.json says")):
        if listed[kind]:
            raise ValueError(
                f"{name} is not a whole causal language model: the weights {listed[kind]} {what} and would start at "
                "random; copy weights and config.json again from one place"
            )
    if listed["unexpected"]:
        logger.warning("%s holds weights that its config.json has no use for: %s", name, listed["unexpected"])


def _listed(keys: Any) -> str:
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its progress bars and loading reports; what matters in them is said here."""
    bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _explained(name: str, what: str, error: Exception) -> ValueError:
    """Say what stands behind the many faces of a failed download or a broken folder."""
    text = f"{type(error).__name__}: {error}"
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in text:
        return ValueError(f"{name} brings Python code of its own; read it, then allow it with trust_remote_code=True")
    if Path(name).is_dir():
        if "backend tokenizer" in text:
            return ValueError(f"{name} holds no tokenizer; save the model's own there with tokenizer.save_pretrained")
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
