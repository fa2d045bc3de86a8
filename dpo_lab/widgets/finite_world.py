"""π* against β on a finite world: what one slider does to the best policy, its KL and its reward.

`draw_optimum` is the plain function; `optimum_widget` puts a slider and a menu before it.
"""

from __future__ import annotations

import numpy as np

from dpo_lab.plots import Picture
from dpo_lab.plots.finite_world import optimum_figure
from dpo_lab.widgets.live_figure import LiveFigure, choice, log_slider
from dpo_lab.worlds.tabular import World, kitchen_world, kl, log_partition, optimal_logps

LOWEST, HIGHEST = 0.05, 20.0
"""The borders of the slider and of the picture."""


def draw_optimum(beta: float, prompt: str | None = None, *, world: World | None = None) -> Picture:
    """π*(y|x) of one prompt against β, and the most reward for every KL, marked at `beta`.

    `prompt` is one of `world.prompts`, by default the first; `world` is by default the kitchen.
    """
    world = world or kitchen_world()
    x = _index(world, prompt)
    betas = np.unique(np.append(np.geomspace(LOWEST, HIGHEST, 121), _checked(beta)))
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
    x, logps = _index(world, prompt), optimal_logps(world, _checked(beta))
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


def _index(world: World, prompt: str | None) -> int:
    if prompt is None:
        return 0
    if prompt not in world.prompts:
        raise ValueError(f"prompt must be one of {list(world.prompts)}, got {prompt!r}; None takes the first")
    return world.prompts.index(prompt)


def _checked(beta: float) -> float:
    # A slider counts in powers of ten, so that its ends come back rounded.
    if not LOWEST * (1 - 1e-9) <= beta <= HIGHEST * (1 + 1e-9):
        raise ValueError(f"beta must lie in [{LOWEST:g}, {HIGHEST:g}], the range of the picture, got {beta}; "
                         "optimal_logps takes any positive β")  # fmt: skip
    return beta
