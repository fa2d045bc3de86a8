"""What one device must hold, and how a batch is cut over processes: counted before anything is started.

Counts follow from shapes alone. A weight that is trained takes 16 bytes in float32 with Adam: itself, its gradient and
two moments, 4 each. (Mixed precision with weights in 16 bits and a float32 copy takes 16 as well: Rajbhandari et al.
2020, arXiv 1910.02054, section 3.1.) Activations and logits come on top; they grow with the tokens of a pass, not with
the number of processes. Knows no models and starts no processes.
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT32 = 4
"""Bytes of a number. The package keeps weights, gradients and moments so; `precision` is the forward pass's own."""


class Shape(NamedTuple):
    """A transformer of the Llama kind: what its `config.json` says."""

    vocabulary: int
    width: int
    inner: int  # width of the feed-forward layers
    layers: int
    heads: int
    kv_heads: int
    is_tied: bool = True  # one table for embeddings and output
    has_biases: bool = False  # on q, k and v, as Qwen2's

    @property
    def kv_width(self) -> int:
        """Width of the keys, which several heads may share."""
        return self.width // self.heads * self.kv_heads


SHAPES: dict[str, Shape] = {
    "pocket-sft": Shape(1600, 160, 416, 4, 5, 5),
    "SmolLM2-135M": Shape(49152, 576, 1536, 30, 9, 3),
    "Qwen2.5-0.5B": Shape(151936, 896, 4864, 24, 14, 2, has_biases=True),
    "Llama-2-7B": Shape(32000, 4096, 11008, 32, 32, 32, is_tied=False),
    "Llama-2-70B": Shape(32000, 8192, 28672, 80, 64, 8, is_tied=False),
}
"""Shapes as published; the first is the embedded model."""


def num_weights(shape: Shape) -> int:
    """All weights: tables, and per layer q and o, k and v, the three feed-forward matrices, two norms; a last norm."""
    tables = shape.vocabulary * shape.width * (1 if shape.is_tied else 2)
    layer = 2 * shape.width**2 + 2 * shape.width * shape.kv_width + 3 * shape.width * shape.inner + 2 * shape.width
    layer += (shape.width + 2 * shape.kv_width) * shape.has_biases
    return tables + shape.layers * layer + shape.width


def num_adapter_weights(shape: Shape, rank: int) -> int:
    """Weights of an adapter in every linear layer but the output's: r·(in + out) for each.

    Hu et al. 2021, arXiv 2106.09685, section 4.1.
    """
    ends = 2 * (shape.width + shape.width) + 2 * (shape.width + shape.kv_width) + 3 * (shape.width + shape.inner)
    return shape.layers * rank * ends


def device_memory(
    num_weights: int, *, num_trained: int | None = None, num_processes: int = 1, is_split: bool = False
) -> dict[str, float]:
    """Bytes on each device for weights, their gradients and Adam's two moments.

    num_weights: all of them, an adapter's included. num_trained: those with a gradient; None means all.
    is_split: over the processes, as FSDP does (ZeRO's third stage); without it each device holds everything (DDP).
    """
    num_trained = num_weights if num_trained is None else num_trained
    if not 0 < num_trained <= num_weights:
        raise ValueError(
            f"num_trained must lie between 1 and num_weights, {num_weights:,}, got {num_trained:,}; "
            "count an adapter among the weights"
        )
    if num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}; 1 is a run without a launcher")
    share = num_processes if is_split else 1
    return {
        "weights": FLOAT32 * num_weights / share,
        "gradients": FLOAT32 * num_trained / share,
        "Adam's moments": 2 * FLOAT32 * num_trained / share,
    }


def ways_to_train(shape: Shape, *, num_processes: int, rank: int) -> dict[str, dict[str, float]]:
    """`device_memory` of the four ways: all weights or an adapter, whole on each device (DDP) or split (FSDP)."""
    whole, adapter = num_weights(shape), num_adapter_weights(shape, rank)
    kinds = {"all weights": (whole, whole), f"LoRA {rank}": (whole + adapter, adapter)}
    return {
        f"{kind}, {'FSDP' if is_split else 'DDP'}": device_memory(
            total, num_trained=trained, num_processes=num_processes, is_split=is_split
        )
        for kind, (total, trained) in kinds.items()
        for is_split in (False, True)
    }


def live_references(ways: dict[str, dict[str, float]]) -> dict[str, float]:
    """Bytes of a second model beside each way, held as the first one is, were the reference to run in every step.

    Under an adapter (fewer gradients than weights) there would be none: its base is at hand.
    """
    return {way: parts["weights"] if parts["gradients"] == parts["weights"] else 0.0 for way, parts in ways.items()}


def cut_batch(batch_size: int, num_processes: int, pairs_per_pass: int) -> list[list[int]]:
    """Pairs in each pass of each process: a list of equally many passes for each.

    Process k takes every n-th pair from the k-th on, and puts at most `pairs_per_pass` through the model at a time. One
    with fewer passes than the others makes up for it with passes that count nothing, 0 here: all meet in each.
    """
    named = {"batch_size": batch_size, "num_processes": num_processes, "pairs_per_pass": pairs_per_pass}
    for name, value in named.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; it is a number of pairs or processes")
    shares = [len(range(k, batch_size, num_processes)) for k in range(num_processes)]
    num_passes = -(-max(shares) // pairs_per_pass)
    return [[max(0, min(pairs_per_pass, share - i * pairs_per_pass)) for i in range(num_passes)] for share in shares]
