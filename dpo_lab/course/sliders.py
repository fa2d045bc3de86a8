"""The course's figures with controls: each a thin layer over a plain function that draws the same without it.

π* against β on a finite world, the Bradley–Terry curve, the DPO loss, and a run on several devices.
"""

from __future__ import annotations

import numpy as np

from dpo_lab.course.plots.finite_world import optimum_figure
from dpo_lab.course.plots.loss import WIDEST_GAP, describe_loss, loss_figure
from dpo_lab.course.plots.preferences import bradley_terry_figure, describe_bradley_terry
from dpo_lab.course.plots.scaling import describe_scaling, scaling_figure
from dpo_lab.course.speed.scaling import SHAPES, cut_batch, live_references, num_weights, ways_to_train
from dpo_lab.workbench.plots.style import Picture
from dpo_lab.workbench.widgets.live_figure import LiveFigure, choice, log_slider, slider
from dpo_lab.worlds.tabular import World, kitchen_world, kl, log_partition, optimal_logps

LOWEST, HIGHEST = 0.05, 20.0
"""The range of β in the picture of π*."""

PROCESSES, BATCHES, PASSES, RANKS = (1, 2, 3, 4, 8, 16), (8, 16, 32, 64, 128), (1, 2, 4, 8, 16, 32), (8, 16, 32, 64)
DEVICE = 80e9
"""Bytes of memory of the device that the picture of a run compares with."""


def bradley_terry_widget(gap: float = 1.0, *, temperature: float = 1.0, flip: float = 0.0) -> LiveFigure:
    """`bradley_terry_figure` with a slider for the reward gap and one for each kind of label noise."""
    return LiveFigure(
        bradley_terry_figure,
        describe=describe_bradley_terry,
        gap=slider("reward gap", gap, low=-6, high=6, step=0.1),
        temperature=slider("temperature", temperature, low=0.1, high=5, step=0.1),
        flip=slider("flipped labels", flip, low=0, high=0.5, step=0.01),
    )


def loss_widget(gap: float = 0.0, beta: float = 0.1) -> LiveFigure:
    """`loss_figure` with a slider for the log-ratio gap h and a logarithmic one for β."""
    return LiveFigure(
        loss_figure,
        describe=describe_loss,
        gap=slider("gap h (nats)", gap, low=-WIDEST_GAP, high=WIDEST_GAP, step=0.5),
        beta=log_slider("β", beta, low=0.01, high=1.0),
    )


def draw_optimum(beta: float, prompt: str | None = None, *, world: World | None = None) -> Picture:
    """π*(y|x) of one prompt against β, and the most reward for every KL, marked at `beta`.

    `prompt` is one of `world.prompts`, by default the first; `world` is by default the kitchen.
    """
    world = world or kitchen_world()
    x = _place_of(prompt, world, beta)
    betas = np.unique(np.append(np.geomspace(LOWEST, HIGHEST, 121), beta))
    optima = [optimal_logps(world, float(b))[x] for b in betas]
    return optimum_figure(
        betas,
        np.stack([logps.exp().numpy() for logps in optima]),
        world.reference_logps[x].exp().numpy(),
        world.responses[x],
        kl=np.array([float(kl(logps, world.reference_logps[x])) for logps in optima]),
        rewards=np.array([float(logps.exp() @ world.rewards[x]) for logps in optima]),
        at=int(np.searchsorted(betas, beta)),
        title=world.prompts[x],
    )


def describe_optimum(beta: float, prompt: str | None = None, *, world: World | None = None) -> str:
    """What `draw_optimum` marks, in words."""
    world = world or kitchen_world()
    x = _place_of(prompt, world, beta)
    logps = optimal_logps(world, beta)
    probs, before = logps[x].exp(), world.reference_logps[x].exp()
    parts = [
        f"“{response}” {p:.1%} (reference {q:.0%})"
        for response, p, q in zip(world.responses[x], probs.tolist(), before.tolist(), strict=True)
    ]
    drift, reward = float(kl(logps, world.reference_logps)[x]), float(probs @ world.rewards[x])
    return (
        f"β = {beta:.3g}, “{world.prompts[x]}”: π* gives {', '.join(parts)}. KL from the reference {drift:.3f} nats, "
        f"expected reward {reward:.3f}, log Z = {float(log_partition(world, beta)[x]):.3f}."
    )


def optimum_widget(world: World | None = None, *, beta: float = 0.5) -> LiveFigure:
    """A slider for β and a menu of prompts over `draw_optimum`."""
    world = world or kitchen_world()
    return LiveFigure(
        lambda beta, prompt: draw_optimum(beta, prompt, world=world),
        describe=lambda beta, prompt: describe_optimum(beta, prompt, world=world),
        beta=log_slider("β (reward per nat)", beta, low=LOWEST, high=HIGHEST),
        prompt=choice("prompt", world.prompts[0], options=world.prompts),
    )


def draw_scaling(
    model: str = "Qwen2.5-0.5B", num_processes: int = 4, batch_size: int = 64, pairs_per_pass: int = 8,
    rank: int = 16, *, device: float = DEVICE,
) -> Picture:  # fmt: skip
    """Memory of the four ways to train `model` (a name of `SHAPES`), and the cut of a step over the processes."""
    ways = ways_to_train(SHAPES[_known(model)], num_processes=num_processes, rank=rank)
    cut = cut_batch(batch_size, num_processes, pairs_per_pass)
    return scaling_figure(ways, cut, live_references=live_references(ways), device=device, title=model)


def describe_scaling_of(
    model: str = "Qwen2.5-0.5B", num_processes: int = 4, batch_size: int = 64, pairs_per_pass: int = 8,
    rank: int = 16, *, device: float = DEVICE,
) -> str:  # fmt: skip
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


def _place_of(prompt: str | None, world: World, beta: float) -> int:
    """Where the prompt is among the world's, the first by default; ValueError where prompt or β are not in range."""
    # A slider counts in powers of ten, so that its ends come back rounded.
    if not LOWEST * (1 - 1e-9) <= beta <= HIGHEST * (1 + 1e-9):
        raise ValueError(f"beta must lie in [{LOWEST:g}, {HIGHEST:g}], the range of the picture, got {beta}; "
                         "optimal_logps takes any positive β")  # fmt: skip
    if prompt is None:
        return 0
    if prompt not in world.prompts:
        raise ValueError(f"prompt must be one of {list(world.prompts)}, got {prompt!r}; None takes the first")
    return world.prompts.index(prompt)


def _known(model: str) -> str:
    if model not in SHAPES:
        raise ValueError(f"model must be one of {', '.join(SHAPES)}, got {model!r}; num_weights takes any Shape")
    return model
