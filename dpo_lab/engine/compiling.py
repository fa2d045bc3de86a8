"""A model made faster by `torch.compile`, whatever the lengths of a batch; `compile` in a run's configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dpo_lab.engine.attention import can_share, use_block_attention


def compile_model(module: nn.Module) -> None:
    """`compile_blocks`, and attention over shared rows in blocks where a GPU does it, for every model in `module`.

    The weights, their names and what is saved stay as they are; values change by rounding. A second call changes
    nothing. ValueError for a model without such blocks, RuntimeError where nothing can be compiled.
    """
    device = next(module.parameters()).device
    if device.type != "meta":
        _check_compiler(device)
    for model in module.modules():
        if isinstance(model, PreTrainedModel) and can_share(model):
            use_block_attention(model)
    compile_blocks(module)


@cache
def _check_compiler(device: torch.device) -> None:
    """Before a run begins rather than in its first step."""
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler that is missing or broken brings
        reason = next(iter(str(error).strip().splitlines()), "")
        raise RuntimeError(
            f"compile is True, and nothing can be compiled for {device} here ({type(error).__name__}: {reason}); "
            "install a C++ compiler (on a GPU, Triton too), or leave compile at False"
        ) from error


def compile_blocks(model: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the norms and the feed-forward part of every layer, in place; returns how many are compiled.

    They treat every token alike, so one compilation serves all lengths (`dynamic=True`). Attention over shared rows
    depends on where each prompt ends and would be compiled anew for every batch; it is left as it is. All layers
    share one compilation for each way of calling: with a gradient or without, each precision. The first calls take
    long; it pays where steps are many and small pieces of work dominate, as on a GPU with a small model.
    """
    blocks = [m for m in model.modules() if type(m).__name__.endswith(("MLP", "RMSNorm", "LayerNorm"))]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no part whose name ends in MLP, RMSNorm or LayerNorm to compile")
    for block in blocks:
        if block._compiled_call_impl is None:
            block.compile(dynamic=True, backend=backend)
    return len(blocks)
