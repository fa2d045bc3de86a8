"""A model, a number of devices and a batch: what each device holds, and how the batch is cut.

`draw_scaling` is the plain function; `scaling_widget` puts menus before it.
"""

from __future__ import annotations

from dpo_lab.plots import Picture
from dpo_lab.plots.scaling import describe_scaling, scaling_figure
from dpo_lab.scaling import SHAPES, cut_batch, live_references, num_weights, ways_to_train
from dpo_lab.widgets.live_figure import LiveFigure, choice

PROCESSES, BATCHES, PASSES, RANKS = (1, 2, 3, 4, 8, 16), (8, 16, 32, 64, 128), (1, 2, 4, 8, 16, 32), (8, 16, 32, 64)
DEVICE = 80e9


def draw_scaling(
    model: str = "Qwen2.5-0.5B",
    num_processes: int = 4,
    batch_size: int = 64,
    pairs_per_pass: int = 8,
    rank: int = 16,
    *,
    device: float = DEVICE,
) -> Picture:
    """Memory of the four ways to train `model` (a name of `SHAPES`), and the cut of a step over the processes."""
    ways = ways_to_train(SHAPES[_known(model)], num_processes=num_processes, rank=rank)
    return scaling_figure(
        ways,
        cut_batch(batch_size, num_processes, pairs_per_pass),
        live_references=live_references(ways),
        device=device,
        title=model,
    )


def describe_scaling_of(
    model: str = "Qwen2.5-0.5B",
    num_processes: int = 4,
    batch_size: int = 64,
    pairs_per_pass: int = 8,
    rank: int = 16,
    *,
    device: float = DEVICE,
) -> str:
    """What `draw_scaling` shows, in words."""
    ways = ways_to_train(SHAPES[_known(model)], num_processes=num_processes, rank=rank)
    cut = cut_batch(batch_size, num_processes, pairs_per_pass)
    return f"{model}: {num_weights(SHAPES[model]):,} weights. {describe_scaling(ways, cut, device=device)}"


def scaling_widget(model: str = "Qwen2.5-0.5B", num_processes: int = 4) -> LiveFigure:
    """Menus for the model, the devices, the batch, its passes and the adapter's rank over `draw_scaling`."""
    return LiveFigure(
        draw_scaling,
        describe=describe_scaling_of,
        model=choice("model", model, options=tuple(SHAPES)),
        num_processes=choice("processes, a device each", num_processes, options=PROCESSES),
        batch_size=choice("pairs per step, of all", 64, options=BATCHES),
        pairs_per_pass=choice("pairs per pass", 8, options=PASSES),
        rank=choice("rank of the adapter", 16, options=RANKS),
    )


def _known(model: str) -> str:
    if model not in SHAPES:
        raise ValueError(f"model must be one of {', '.join(SHAPES)}, got {model!r}; num_weights takes any Shape")
    return model
