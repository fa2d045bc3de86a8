"""What is inside a model: the device, the body, the output layer, positions, dropout. Knows no files."""

from __future__ import annotations

import copy
import logging
import os
import time
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from dpo_lab.preferences.token_data import TokenData, plain
from dpo_lab.storage.token_files import parts

logger = logging.getLogger("dpo_lab")

SMALL_MODEL = 2**24
"""Weights below which a model is small and takes larger steps than a pretrained one."""


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


@cache
def bfloat16_gain(device: torch.device) -> float:
    """How many times as fast as in float32 this device multiplies matrices of a small transformer's size in bfloat16:
    the shortest of five tries each."""
    shortest = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((512, 768), (768, 2048)))
        took = []
        for _ in range(6):
            began = time.perf_counter()
            (left @ right)[0, 0].item()  # which waits for the device
            took.append(time.perf_counter() - began)
        shortest[dtype] = min(took[1:])
    return shortest[torch.float32] / shortest[torch.bfloat16]


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


def in_precision(model: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a model with its weights in another precision, for a forward pass. Buffers, such as the frequencies of
    rotary positions, stay as they are."""
    cast: dict[int, Any] = {
        id(weight): nn.Parameter(
            weight.detach().to(dtype) if weight.is_floating_point() else weight, requires_grad=False
        )
        for weight in model.parameters()
    }
    return copy.deepcopy(model, cast)  # which takes the weights from there instead of copying them


def body(inner: Any) -> Any:
    """A transformers model without its output layer; None where it has no such part. Some, such as Llama 4's text
    model, call themselves their base."""
    return inner.base_model if inner.base_model is not inner else getattr(inner, "model", None)


def output_layer(model: nn.Module) -> nn.Linear:
    """The layer that turns hidden states into logits."""
    return inner_model(model).get_output_embeddings()


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """Where an answer ends: the end tokens of model and tokenizer, and the token that closes a turn in its template."""
    from dpo_lab.preferences.encoding import end_token_id  # training has no use for templates
    from dpo_lab.preferences.reports import BadRow

    configured = inner_model(model).generation_config.eos_token_id
    found = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    if tokenizer.chat_template:
        with suppress(BadRow):  # a template that cannot render a question and its answer closes no turn
            found.append(end_token_id(tokenizer, is_chat=True))
    return sorted({int(token) for token in found if token is not None})


def position_limit(model: nn.Module) -> int | None:
    """Most tokens that a model with a table of positions can take, as GPT-2; None where positions are computed."""
    inner = inner_model(model)
    limit = getattr(inner.config, "max_position_embeddings", None)
    tables = [module for module in inner.modules() if isinstance(module, nn.Embedding)]
    tables = [table for table in tables if table is not inner.get_input_embeddings()]
    # OPT's table has two rows before its first position.
    return limit if limit and any(limit <= table.num_embeddings <= limit + 2 for table in tables) else None


def check_length(model: nn.Module, longest: int, name: str) -> None:
    """Refuse `longest` tokens in a row where the model has no position for the last of them; remark on a position that
    it was not trained on."""
    limit, known = position_limit(model), inner_model(model).config.get_text_config()
    if limit is not None and longest > limit:
        raise ValueError(f"{name} has a row of {longest} tokens, and the model has {limit} positions; "
                         f"lower max_length to {limit} or less")  # fmt: skip
    trained = getattr(known, "max_position_embeddings", None)
    if trained is not None and longest > trained:
        logger.warning("%s has a row of %d tokens, and the model was trained on %d positions: what it says beyond them "
                       "means little; lower max_length", name, longest, trained)  # fmt: skip


def warn_of_rate(model: nn.Module, rate: float, highest: float) -> None:
    """A word on a learning rate that is likely to ruin a pretrained model: above `highest`, the most that published
    recipes take where all weights are trained; ten times as much for an adapter."""
    is_adapter = (
        sum(weight.numel() for weight in model.parameters() if weight.requires_grad) < num_parameters(model) / 2
    )
    what, highest = ("an adapter", 10 * highest) if is_adapter else ("full training of a pretrained model", highest)
    if num_parameters(model) > SMALL_MODEL and rate > highest:
        logger.warning("learning rate %g is above %g, the highest that published recipes take for %s: compare KL and "
                       "perplexity before and after", rate, highest, what)  # fmt: skip


def num_parameters(model: nn.Module) -> int:
    """Weights of the model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_fit(model: nn.Module, data: TokenData, name: str) -> None:
    """Every token needs an embedding, and every position a row where positions are a table."""
    rows = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportCallIssue]
    largest = max(int(plain(part).max()) for part in parts(data.ids))
    if largest >= rows:
        raise ValueError(
            f"token id {largest} has no embedding: the model has {rows}; tokenise {name} with this model's tokenizer"
        )
    check_length(model, data.longest(), name)
