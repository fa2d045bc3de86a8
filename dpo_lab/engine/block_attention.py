"""Attention over shared rows in blocks, for a GPU: of the square of all tokens only the blocks that hold something.

A row `[prompt | chosen | rejected | next prompt | ...]` (spans of `batching.Batch`) is cut into blocks of 128 tokens.
From the spans alone follows which blocks of queries see something of which blocks of keys, and which of them see all
of it. FlexAttention (Dong et al. 2024, arXiv 2412.05496) leaves out the rest: no row is padded to the longest, and no
mask over all pairs of tokens is made. It is compiled, which takes a while the first time.

Before the first use on a device, for each precision and shape of heads, values and gradients of a small input are
compared with the plain way; where they differ, or the compiler fails, `is_exact_here` says so once and the plain way
stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_lab.batching import Spans

BLOCK = 128
DEVICES = ("cuda",)
"""Where the compiled kernels have a backward pass; on a CPU they have none."""

Attend = Callable[[Tensor, Tensor, Tensor, Spans, dict[str, Any]], Tensor]

_RECOMPILATIONS = 64  # more than there are widths of a mask between a hundred and a million tokens
_TOLERANCE = {torch.float32: 5e-3}  # of the largest entry: room for TF32 products; a wrong mask is off by far more
_HALF_TOLERANCE = 5e-2
_TRIAL: Spans = ((0, 100, 170, 190), (190, 190, 200, 340), (340, 400, 530, 700))

logger = logging.getLogger("dpo_lab")


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, spans: Spans, options: dict[str, Any]) -> Tensor:
    """query (1, H, T, d), key and value (1, H_kv, T, d) → (1, T, H, d); options: `scale`, as for the plain way."""
    query, key, value = _in_autocast(query, key, value)
    num_tokens = query.shape[2]
    mask = block_mask(spans, query.device)
    padded = [F.pad(x, (0, 0, 0, mask.seq_lengths[1] - num_tokens)) for x in (query, key, value)]
    with torch._dynamo.config.patch(recompile_limit=_RECOMPILATIONS):
        output = _kernel()(
            *padded, block_mask=mask, scale=options.get("scale"), enable_gqa=query.shape[1] != key.shape[1]
        )
    return output[:, :, :num_tokens].transpose(1, 2).contiguous()


def is_exact_here(query: Tensor, key: Tensor, plain: Attend) -> bool:
    """Whether blocks give what `plain` gives for heads, precision and device such as these; found out once each."""
    query, key = _in_autocast(query, key)
    return query.device.type in DEVICES and _tried(
        query.device, query.dtype, query.shape[1], key.shape[1], query.shape[-1], plain
    )


def block_map(spans: Spans, num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of queries (rows) see something of which blocks of keys, and which see all, both (n, n) bool."""
    some, everything = np.zeros((2, num_blocks, num_blocks), bool)

    def see_own_past(start: int, end: int) -> None:
        first, last = start // BLOCK, -(-end // BLOCK)
        some[first:last, first:last] |= np.tri(last - first, dtype=bool)
        first, last = -(-start // BLOCK), end // BLOCK
        if first < last:  # below the diagonal of blocks that lie inside
            everything[first:last, first:last] |= np.tri(last - first, k=-1, dtype=bool)

    for start, prompt_end, first_end, *ends in spans:
        if start < first_end:
            see_own_past(start, first_end)
        begin = first_end
        for end in ends:
            if begin < end:
                see_own_past(begin, end)
            if begin < end and start < prompt_end:
                some[begin // BLOCK : -(-end // BLOCK), start // BLOCK : -(-prompt_end // BLOCK)] = True
                everything[-(-begin // BLOCK) : end // BLOCK, -(-start // BLOCK) : prompt_end // BLOCK] = True
            begin = end
    return some, everything


@lru_cache(maxsize=4)  # every layer needs the same
def block_mask(spans: Spans, device: torch.device) -> Any:
    """The `BlockMask` of spans, over `padded_length` tokens: those behind the last see their own block's past."""
    from torch.nn.attention.flex_attention import BlockMask

    num_tokens = spans[-1][-1]
    length = padded_length(num_tokens)
    edges = [num_tokens, *range(num_tokens // BLOCK * BLOCK + BLOCK, length + 1, BLOCK)]
    rest = tuple((start, start, end) for start, end in pairwise(edges))
    rows, parts = np.zeros((2, length), np.int32)
    for index, (start, prompt_end, *ends) in enumerate((*spans, *rest)):
        rows[start : ends[-1]] = index
        for part, (begin, end) in enumerate(pairwise((prompt_end, *ends)), 1):
            parts[begin:end] = part
    some, everything = block_map((*spans, *rest), length // BLOCK)
    row_of, part_of = (torch.from_numpy(x).to(device) for x in (rows, parts))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_related = (part_of[key] == 0) | (part_of[key] == part_of[query])
        return (row_of[key] == row_of[query]) & is_related & (key <= query)

    listed = [x for blocks in (some & ~everything, everything) for x in _listed(blocks, device)]
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(length, length))


def padded_length(num_tokens: int) -> int:
    """A length of whole blocks and of few kinds, so that few are compiled: at most four between a power of two and the
    next."""
    blocks = max(1, -(-num_tokens // BLOCK))
    grain = max(1, 1 << max(0, (blocks - 1).bit_length() - 3))
    return -(-blocks // grain) * grain * BLOCK


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """A map of blocks as FlexAttention wants it: how many keys' blocks each row has, and which, those first."""
    order = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    count = blocks.sum(1, dtype=np.int32)
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)


@cache
def _kernel() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # `fullgraph`: where it cannot be compiled it fails, rather than silently make the square of all tokens.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _in_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the precision that autocast gives to torch's own attention."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


@cache
def _tried(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int, plain: Attend) -> bool:
    generator = torch.Generator().manual_seed(0)
    draw = lambda heads: torch.randn(1, heads, _TRIAL[-1][-1], size, generator=generator).to(device, dtype)
    query, key, value = (draw(num).requires_grad_() for num in (heads, key_heads, key_heads))
    upstream = draw(heads).transpose(1, 2)
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            found = []
            for attend in (attend_in_blocks, plain):
                output = attend(query, key, value, _TRIAL, {})
                found.append((output.detach(), *torch.autograd.grad((output * upstream).sum(), (query, key, value))))
        tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
        far = float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(*found, strict=True)]).max())
        # Not a number is not within the tolerance either, and torch's maximum keeps it.
        reason = "" if far <= tolerance else f"its values differ by {far:.2g} of the largest, {tolerance:g} is allowed"
    except Exception as error:  # no compiler, a size of head it cannot do, too little memory on the chip: many kinds
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
    if reason:
        logger.warning("attention in blocks is not used, rows are padded instead: %s", reason)
    return not reason
