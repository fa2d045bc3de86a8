"""The parts of a model that `torch.compile` can make faster whatever the lengths of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dpo_lab.models import inner_model


def compile_blocks(model: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the norms and the feed-forward part of every layer, in place; returns how many were.

    They treat every token alike, so one compilation serves all lengths (`dynamic=True`). Attention over shared rows
    depends on where each prompt ends and would be compiled anew for every batch; it is left as it is. All layers
    share one compilation for each way of calling: with a gradient or without, each precision. The first calls take
    long; it pays where steps are many and small pieces of work dominate, as on a GPU with a small model.
    """
    blocks = [m for m in inner_model(model).modules() if type(m).__name__.endswith(("MLP", "RMSNorm", "LayerNorm"))]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no part whose name ends in MLP, RMSNorm or LayerNorm to compile")
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)
