"""The operations that a step cannot leave out, counted from the model's shape and the lengths of the data."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo_lab.batching import Layout
from dpo_lab.preferences.token_data import TokenData

FORWARD_AND_BACKWARD = 3
"""A step costs this many forward passes: the backward pass makes two products for each one of the forward pass."""


def forward_flops(config: Any, data: TokenData, layout: Layout = "shared") -> np.ndarray:
    """Floating-point operations of one forward pass of a Llama-shaped model, per row of `data`, (N,).

    Each prompt once (in the `separate` layout once per completion) and each completion once through the layers;
    attention only between a token and those that it sees; the output layer only where a completion token is predicted.
    A product of (m, k) and (k, n) counts 2·m·k·n; norms, activations, rotations, softmax and padding are not counted.
    So it is what must be done, not what is done: over seconds it gives the share of a machine's rate that is useful,
    the model FLOPs utilisation of Chowdhery et al. 2022, arXiv 2204.02311, appendix B.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    per_token = 2 * (2 * width * queries + 2 * width * keys + 3 * width * inner)
    prompt, completions = data.prompt_lengths, data.completion_lengths
    copies = 1 if layout == "shared" else data.num_completions  # of the prompt
    tokens = copies * prompt + completions.sum(1)
    seen = copies * _triangle(prompt) + (_triangle(completions) + prompt[:, None] * completions).sum(1)
    scored = completions.sum(1) - data.num_completions * (prompt == 0)
    return layers * (per_token * tokens + 4 * queries * seen) + 2 * width * config.vocab_size * scored


def _triangle(num: np.ndarray) -> np.ndarray:
    return num * (num + 1) // 2
