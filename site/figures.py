"""The figures of the page "Try it": their data, computed by the package's own functions when the site is built.

A figure holds tables and says how they are drawn; `static/figures.js` picks rows of the tables and draws them. It
computes nothing: whatever a slider shows stands in a table, one entry for each of its positions.

A table is {"by": names, "values": nested lists}: one level of lists per name, in that order. A name of a control is
settled by where the control stands; any other name stays and makes a list. Numbers are rounded to six digits. In the
place of values may stand the name of another table, whose values they are.
Where the drawing says "@name", the table of that name is meant. Sentences hold {table}, {table:digits} or {control}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from dpo_lab import LOSSES
from dpo_lab.course.loss_curves import LossCurve, loss_curve
from dpo_lab.course.plots.failures import plot_levels
from dpo_lab.course.plots.family import describe_member, member_figure
from dpo_lab.course.plots.frontier import plot_methods, settings_of
from dpo_lab.course.plots.jobs import plot_shares
from dpo_lab.course.plots.loss import describe_loss, loss_at, loss_figure, plot_courses, weight_at
from dpo_lab.course.plots.preferences import bradley_terry_figure, describe_bradley_terry, win_probability
from dpo_lab.course.saved_results import demand_gain, demand_share, read_real_model, read_results
from dpo_lab.course.sliders import describe_optimum, draw_optimum
from dpo_lab.course.statistics import rewards_at_kl, seed_interval
from dpo_lab.losses import DIVERGENCES
from dpo_lab.worlds.instructions import GROUPS, draw
from dpo_lab.worlds.tabular import expected_reward, kitchen_world, kl, optimal_logps

GAPS = np.arange(-30, 30.5, 0.5)  # h in nats
BETAS = np.geomspace(0.01, 1.0, 25)
MEMBER_GAPS = np.arange(-20, 20.5, 0.5)  # h in nats
PRICES = np.geomspace(0.05, 20.0, 53)  # β of π*
REWARD_GAPS, TEMPERATURES = np.arange(-6, 6.1, 0.2), (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
FLIPS = np.arange(0, 0.51, 0.05)
NATS = np.arange(0.05, 1.01, 0.05)  # KL at which methods are compared

COMPARED = {"dpo": "DPO", "rloo-learnt": "RLOO, learnt reward", "ppo-learnt": "PPO, learnt reward",
         "best-of-n": "best of n, learnt reward", "sft": "SFT on the chosen",
         "unlikelihood": "unlikelihood"}  # fmt: skip
MEASURES = {"reward": "true reward (points)", "heldout_loss": "loss of held-out pairs (nats)",
            "heldout_accuracy": "held-out pairs ranked right (share)", "kl": "KL from the start (nats per answer)",
            "chosen_change": "change of log π of chosen answers (nats)", "words": "words per answer"}  # fmt: skip
METHODS = {"SFT": "SFT", "DPO": "DPO", "SFT + DPO": "SFT, then DPO", "RPO": "RPO"}


@dataclass(frozen=True)
class Control:
    """A slider or a menu: what stands beside each of its positions, and where it begins."""

    name: str
    label: str
    texts: list[str]
    start: int
    is_menu: bool = False


@dataclass(frozen=True)
class Figure:
    """What a figure draws, and the picture that stands for it where no script runs."""

    title: str
    controls: list[Control]
    panels: list[dict[str, Any]]
    sentence: str
    """What the figure shows where its controls stand, in words; read aloud after each change."""
    tables: dict[str, dict[str, Any]]
    still: Callable[[], tuple[Drawing, str]] = field(repr=False)
    """The first state, drawn by the course's own plots, and what it shows in words."""

    def as_json(self) -> dict[str, Any]:
        """Everything but the still picture."""
        controls = [asdict(control) for control in self.controls]
        return {"title": self.title, "controls": controls, "panels": self.panels, "sentence": self.sentence,
                "tables": self.tables}  # fmt: skip


def table(by: str, values: Any) -> dict[str, Any]:
    """A table over the names in `by`, separated by blanks; `values` are its own, or the name of the table with them."""
    return {"by": by.split(), "values": _rounded(values)}


def _rounded(value: Any) -> Any:
    """Six digits; None where a number is not finite, for JSON has no word for it."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _rounded(value.tolist())
    if isinstance(value, Sequence):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if math.isfinite(value) else None


def slider(name: str, label: str, texts: Sequence[str], start: int) -> Control:
    """A slider with a position per text."""
    return Control(name, label, list(texts), start)


def menu(name: str, label: str, texts: Sequence[str], start: int = 0) -> Control:
    """A menu with a line per text."""
    return Control(name, label, list(texts), start, is_menu=True)


def panel(title: str, x: dict[str, Any], y: dict[str, Any], *layers: dict[str, Any]) -> dict[str, Any]:
    """Axes with what is drawn on them, the first layer lowest."""
    return {"title": title, "x": x, "y": y, "layers": list(layers)}


def axis(label: str, domain: Any, **options: Any) -> dict[str, Any]:
    """An axis; `scale` is linear, log or sqrt, `percent` writes shares as percentages."""
    return {"label": label, "domain": domain, **options}


def line(x: str, y: str, name: str = "", **options: Any) -> dict[str, Any]:
    """A curve through the points (x, y); with `low` and `high`, a bar at each."""
    return {"kind": "line", "x": x, "y": y, "name": name, **options}


def point(x: str, y: str, name: str = "", **options: Any) -> dict[str, Any]:
    """A marked point."""
    return {"kind": "point", "x": x, "y": y, "name": name, **options}


def rule(axis_name: str, at: Any, name: str = "") -> dict[str, Any]:
    """A thin line across the panel, at a value of x or of y."""
    return {"kind": "rule", "axis": axis_name, "at": at, "name": name}


def bars(value: str, name: str, **options: Any) -> dict[str, Any]:
    """A row of horizontal bars, one for each name of the panel's y axis; with `low` and `high`, their intervals.

    With `dots` a mark stands at the end of each bar that is left out: for an axis that doesn't begin at 0.
    """
    return {"kind": "bars", "value": value, "name": name, **options}


def _nearest(values: Any, value: float) -> int:
    return int(np.abs(np.asarray(values) - value).argmin())


def loss() -> Figure:
    """The DPO loss of a pair and how hard it pulls, against the gap h and β."""
    h, beta = _nearest(GAPS, -8), _nearest(BETAS, 0.1)
    gap_axis = axis("log-ratio gap h (nats)", [-30, 30])
    return Figure(
        "The DPO loss of one pair",
        [slider("h", "gap h (nats)", [f"{gap:.1f}" for gap in GAPS], h),
         slider("beta", "β", [f"{beta:.3g}" for beta in BETAS], beta)],
        [panel("What a pair costs", gap_axis, axis("loss −log σ(βh) (nats)", "@top"),
               rule("y", math.log(2), "log 2"), line("@gaps", "@losses", "loss"), point("@gap", "@loss", "this pair")),
         panel("How hard it pulls", gap_axis, axis("weight βσ(−βh) (loss per nat)", "@top_weight"),
               line("@gaps", "@weights", "weight"), point("@gap", "@weight", "this pair"))],
        "A pair with a gap of {h} nats costs {loss:3} at β = {beta}. Its weight is {weight:3}: a step of gradient "
        "descent pulls log π of the chosen answer up, and that of the rejected one down, in proportion to it.",
        {
            "gaps": table("i", GAPS), "gap": table("h", "gaps"),
            "losses": table("beta i", [loss_at(GAPS, b) for b in BETAS]),
            "loss": table("beta h", "losses"),
            "weights": table("beta i", [weight_at(GAPS, b) for b in BETAS]),
            "weight": table("beta h", "weights"),
            "top": table("beta end", [[0, max(3.5, 1.08 * float(loss_at(-30, b)))] for b in BETAS]),
            "top_weight": table("beta end", [[0, 1.1 * b] for b in BETAS]),
        },
        lambda: (loss_figure(-8.0, 0.1), describe_loss(-8.0, 0.1)),
    )  # fmt: skip


def optimum() -> Figure:
    """π* against β on the kitchen world, and the most reward for every KL."""
    world = kitchen_world()
    start = _nearest(PRICES, 0.5)
    optima = [optimal_logps(world, float(beta)) for beta in PRICES]
    probs = np.stack([logps.exp().numpy() for logps in optima])  # (β, X, Y)
    drift = np.stack([kl(logps, world.reference_logps).numpy() for logps in optima])  # (β, X)
    worth = np.stack([(logps.exp() * world.rewards).sum(-1).numpy() for logps in optima])
    num = world.shape[1]
    reference = world.reference_logps.exp().numpy()
    mean_reward = [float(expected_reward(world, logps)) for logps in optima]
    return Figure(
        "The best policy for a reward and a β",
        [slider("beta", "β (reward per nat)", [f"{beta:.3g}" for beta in PRICES], start),
         menu("prompt", "prompt", world.prompts)],
        [panel("π* of each answer", axis("β (reward per nat)", [0.05, 20], scale="log"),
               axis("probability", [0, 1], percent=True), rule("x", "@price", "this β"),
               *(line("@prices", f"@probs{y}", f"@answer{y}") for y in range(num))),
         panel("The most reward for every KL", axis("KL(π*‖π_ref) (nats)", "@drift_axis"),
               axis("expected reward", "@reward_axis"), line("@drifts", "@rewards", "π* at every β"),
               point("@drift", "@reward", "this β"))],
        "At β = {beta} π* has moved {drift:3} nats from the reference and earns an expected reward of {reward:3} on "
        "this prompt; over both prompts it earns {mean:3}. {answers}",
        {
            "prices": table("i", PRICES), "price": table("beta", "prices"),
            **{f"probs{y}": table("prompt i", probs[:, :, y].T) for y in range(num)},
            **{f"answer{y}": table("prompt", [row[y] for row in world.responses]) for y in range(num)},
            "drifts": table("prompt i", drift.T), "drift": table("prompt beta", "drifts"),
            "rewards": table("prompt i", worth.T), "reward": table("prompt beta", "rewards"),
            "mean": table("beta", mean_reward),
            "drift_axis": table("prompt end", [[0, 1.05 * float(top)] for top in drift.max(0)]),
            "reward_axis": table("prompt end", [[float(low) - 0.1, float(high) + 0.1] for low, high in
                                                zip(worth.min(0), worth.max(0), strict=True)]),
            "answers": table("prompt beta", [[
                "; ".join(f"“{answer}” {p:.1%} (reference {q:.0%})" for answer, p, q in
                          zip(world.responses[x], probs[b, x], reference[x], strict=True)) + "."
                for b in range(len(PRICES))] for x in range(world.shape[0])]),
        },
        lambda: (draw_optimum(0.5), describe_optimum(0.5)),
    )  # fmt: skip


def bradley_terry() -> Figure:
    """Who wins a comparison, with the temperature of the labeller and flipped labels."""
    share = np.array([[win_probability(REWARD_GAPS, t, min(float(f), 0.5)) for f in FLIPS] for t in TEMPERATURES])
    return Figure(
        "Bradley–Terry: who wins a comparison",
        [slider("gap", "reward gap r(A) − r(B)", [f"{gap:+.1f}" for gap in REWARD_GAPS], _nearest(REWARD_GAPS, 1)),
         slider("temperature", "temperature of the labeller", [f"{t:g}" for t in TEMPERATURES], 2),
         slider("flip", "flipped labels", [f"{flip:.0%}" for flip in FLIPS], 0)],
        [panel("How often A is preferred", axis("reward gap r(A) − r(B)", [-6, 6]),
               axis("P(A ≻ B)", [0, 1], percent=True), line("@gaps", "@plain", "without noise: σ(gap)", quiet=True),
               line("@gaps", "@curve", "P(A ≻ B)"), point("@at", "@share", "this gap")),
         panel("Of a hundred people", axis("say A", [0, 1], percent=True), {"names": ["A"]},
               bars("@share", "share of the votes"))],
        "At a gap of {gap}, temperature {temperature} and {flip} flipped labels, A is preferred with probability "
        "{share:3}.",
        {
            "gaps": table("i", REWARD_GAPS), "at": table("gap", "gaps"),
            "plain": table("i", win_probability(REWARD_GAPS)),
            "curve": table("temperature flip i", share), "share": table("temperature flip gap", "curve"),
        },
        lambda: (bradley_terry_figure(1.0), describe_bradley_terry(1.0)),
    )  # fmt: skip


def members() -> dict[str, tuple[Callable[..., Any], str]]:
    """Every loss of pairs with its own knobs, and DPO under the other divergences: name → (loss, summary)."""
    found = {name: (spec.bind(), f"{spec.summary} ({spec.equation}.)") for name, spec in LOSSES.items()}
    for name in list(DIVERGENCES)[1:]:
        found[f"dpo under {name}"] = (
            LOSSES["dpo"].bind(divergence=name),
            f"DPO with the divergence {name} in the place of the reverse KL (Wang et al. 2023, Table 1).",
        )
    return found


def family() -> Figure:
    """Every member of the family: what it costs a pair, and how hard it pulls on each of the answers."""
    curves: dict[str, LossCurve] = {
        name: loss_curve(bound, torch.tensor(MEMBER_GAPS)) for name, (bound, _) in members().items()
    }
    values, up, down = (np.stack([np.asarray(curve[part]) for curve in curves.values()]) for part in (1, 2, 3))
    pulls = np.concatenate([up, down], 1)
    gap_axis = axis("log-ratio gap h (nats)", [-20, 20])
    start = _nearest(MEMBER_GAPS, -5)
    first = "nca_pair"
    return Figure(
        "The family of losses",
        [menu("loss", "loss", list(curves), list(curves).index(first)),
         slider("h", "gap h (nats)", [f"{gap:.1f}" for gap in MEMBER_GAPS], start)],
        [panel("What a pair costs", gap_axis, axis("loss, in its own unit", "@value_axis"),
               line("@gaps", "@values", "loss"), point("@gap", "@value", "this pair")),
         panel("How hard it pulls", gap_axis, axis("pull (loss per nat)", "@pull_axis"), rule("y", 0),
               rule("x", "@gap"), line("@gaps", "@ups", "on the chosen answer"),
               line("@gaps", "@downs", "on the rejected answer"))],
        "{about} At h = {h} nats it costs {value:3} and pulls log π of the chosen answer by {up:4} and that of the "
        "rejected one by {down:4} per nat.",
        {
            "gaps": table("i", MEMBER_GAPS), "gap": table("h", "gaps"),
            "values": table("loss i", values), "value": table("loss h", "values"),
            "ups": table("loss i", up), "up": table("loss h", "ups"),
            "downs": table("loss i", down), "down": table("loss h", "downs"),
            "value_axis": table("loss end", [_around(row) for row in values]),
            "pull_axis": table("loss end", [_around(row) for row in pulls]),
            "about": table("loss", [about for _, about in members().values()]),
        },
        lambda: (member_figure(first, curves[first], -5.0), describe_member(first, curves[first], -5.0)),
    )  # fmt: skip


def margins() -> Figure:
    """How the margins of 400 held-out pairs spread while a policy trains (`data/implicit_rewards.py`)."""
    rows = read_results("implicit_rewards.json", "python data/implicit_rewards.py")
    course = rows["margins over training"]
    shares = [5, 25, 50, 75, 95]
    quantiles = np.array([row["quantiles 5 25 50 75 95"] for row in course])  # (S, 5)
    steps = [row["step"] for row in course]
    names = {f"{share}% of the pairs lie below": quantiles[:, i] for i, share in enumerate(shares)}
    return Figure(
        "Margins of held-out pairs through training",
        [slider("step", "optimiser step", [str(step) for step in steps], 2)],
        [panel("Margins of 400 held-out pairs", axis("optimiser step", [0, max(steps)]),
               axis("margin, chosen − rejected (β × nats)", _around(quantiles)), rule("y", 0), rule("x", "@at"),
               *(line("@steps", f"@q{share}", name) for share, name in zip(shares, names, strict=True)))],
        "After step {step} half of the margins lie below {median:3}, nine in ten between {low:3} and {high:3}, and "
        "{wrong} of the pairs have a margin below 0. {note}",
        {
            "steps": table("i", steps), "at": table("step", "steps"),
            **{f"q{share}": table("i", quantiles[:, i]) for i, share in enumerate(shares)},
            "low": table("step", quantiles[:, 0]), "median": table("step", quantiles[:, 2]),
            "high": table("step", quantiles[:, 4]),
            "wrong": table("step", [f"{100 * row['wrong']:.3g}%" for row in course]),
            "note": table("step", ["Policy and reference are still the same: what is not 0 is rounding."
                                   if row["step"] == 0 else "" for row in course]),
        },
        lambda: (plot_courses(steps, names, title="Margins through training", ylabel="margin (β × nats)").figure,
                 f"Five curves over {max(steps)} steps, all from 0. At the end half of the margins lie below "
                 f"{quantiles[-1, 2]:.2f} and nine in ten between {quantiles[-1, 0]:.2f} and {quantiles[-1, 4]:.2f}."),
    )  # fmt: skip


def methods() -> Figure:
    """True reward against KL for DPO and what competes with it, and all of them at the same KL."""
    rows = read_results("rlhf_frontier.json", "python data/experiments/frontier.py")["rows"]
    start = float(np.mean([row["reward"] for row in rows if row["method"] == "base"]))
    tables: dict[str, Any] = {"nats": table("k", NATS)}
    layers = []
    for i, (method, name) in enumerate(COMPARED.items()):
        near = [setting for setting in settings_of(rows, method) if setting["kl"][0] <= 3]
        along = {key: np.array([(at, 0.0)] + [setting[key] for setting in near])
                 for key, at in (("kl", 0.0), ("reward", start))}  # fmt: skip
        tables |= {f"{key}{i}": table("i", points[:, 0]) for key, points in along.items()}
        tables |= {f"{end}{i}": table("i", along["reward"] @ [1, sign]) for end, sign in (("low", -1), ("high", 1))}
        layers.append(line(f"@kl{i}", f"@reward{i}", name, low=f"@low{i}", high=f"@high{i}", dots=True))
    at = np.array([[_same_kl(rows, method, float(k)) for method in COMPARED] for k in NATS])  # (K, methods, 3)
    tables |= {name: table("k i", at[:, :, part]) for part, name in enumerate(("mean", "low", "high"))}
    noted = ["; ".join(f"{name} {mean:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(mean) else f"{name} stays nearer"
                       for name, (mean, low, high) in zip(COMPARED.values(), row, strict=True))
             for row in at]  # fmt: skip
    return Figure(
        "DPO against RLHF, at the same KL",
        [slider("k", "compared at a KL of (nats)", [f"{k:.2f}" for k in NATS], _nearest(NATS, 0.3))],
        [panel("True reward against KL", axis("KL from the reference (nats per answer)", [0, 2], scale="sqrt"),
               axis("true reward (points)", [1.4, 3]), rule("x", "@nats", "compared here"), *layers),
         panel("True reward at that KL", axis("true reward, 95% interval over seeds", [1.4, 3]),
               {"names": list(COMPARED.values())},
               bars("@mean", "mean of three seeds", low="@low", high="@high", dots=True))],
        "At {k} nats from the reference: {noted}. Between two settings the reward is read off a straight line in √KL; "
        "nothing is extrapolated.",
        tables | {"noted": table("k", noted)},
        lambda: (plot_methods(rows, COMPARED, max_kl=2.0, matched=0.3, title="True reward against KL").figure,
                 f"True reward against KL from the reference, a line per method from {start:.2f} at KL 0. "
                 f"At 0.3 nats: {noted[_nearest(NATS, 0.3)]}."),
    )  # fmt: skip


def turn() -> Figure:
    """The true reward turns while the losses go on falling: few pairs many times, and fresh ones."""
    return _failure("turn", "The reward turns, the loss doesn't", "step", "optimiser step", "{:g}".format, 3)


def noise() -> Figure:
    """Wrong labels: three losses with up to 40 % of the labels flipped."""
    return _failure("noise", "Wrong labels", "level", "labels flipped", "{:.0%}".format, 1)


def _failure(name: str, title: str, key: str, label: str, write: Callable[[float], str], start: int) -> Figure:
    """Every measure of a failure against a step or a strength, a line per run or loss: mean and deviation of seeds."""
    rows = read_results("failures.json", "python data/experiments/failures.py")["rows"]
    own = [row for row in rows if row["failure"] == name]
    lines = list(dict.fromkeys(row["method"] for row in own))
    if name == "noise":  # without noise all three were plain DPO, or are it at ε = 0
        own += [row | {"method": method} for row in rows if row["failure"] == "sound" for method in lines]
    places = sorted({row[key] for row in own})
    found = np.array([[[[row[measure] for row in own if (row["method"], row[key]) == (method, place)]
                        for place in places] for measure in MEASURES] for method in lines])  # fmt: skip
    mean, spread = found.mean(-1), found.std(-1, ddof=1)  # (lines, measures, places)
    curves = {method: {place: found[i, 0, j] for j, place in enumerate(places)} for i, method in enumerate(lines)}
    noted = [[", ".join(f"{mean[i, m, j]:.3g} for “{method}”" for i, method in enumerate(lines))
             for j in range(len(places))] for m in range(len(MEASURES))]  # fmt: skip
    still = plot_levels(curves, label, MEASURES["reward"], title=title, level=None, is_share=name == "noise")
    return Figure(
        title,
        [menu("measure", "measure", list(MEASURES.values())), slider("at", label, [write(p) for p in places], start)],
        [panel(title, axis(label, [places[0], places[-1]], percent=name == "noise"),
               axis("@measures", "@range"), rule("x", "@place"),
               *(line("@places", f"@mean{i}", method, low=f"@low{i}", high=f"@high{i}", dots=True)
                 for i, method in enumerate(lines)))],
        f"At {label} {{at}}, {{measure}}: {{noted}}. Each is the mean of five seeds; a bar is one standard deviation.",
        {
            "places": table("i", places), "place": table("at", "places"),
            "measures": table("measure", list(MEASURES.values())),
            "range": table("measure end", [_around(np.stack([mean[:, m] - spread[:, m], mean[:, m] + spread[:, m]]))
                                           for m in range(len(MEASURES))]),
            **{f"mean{i}": table("measure i", mean[i]) for i in range(len(lines))},
            **{f"low{i}": table("measure i", mean[i] - spread[i]) for i in range(len(lines))},
            **{f"high{i}": table("measure i", mean[i] + spread[i]) for i in range(len(lines))},
            "noted": table("measure at", noted),
        },
        lambda: (still.figure, f"True reward against {label}: "
                 + "; ".join(f"{method} from {mean[i, 0, 0]:.2f} to {mean[i, 0, -1]:.2f}"
                             for i, method in enumerate(lines)) + "."),
    )  # fmt: skip


def real_model() -> Figure:
    """SmolLM2-135M before and after: demands met by kind, the mean of the seeds with intervals over tasks."""
    made, rows = read_real_model()
    tasks = draw("test", made["prompts"], seed=0)
    shares = {name: [demand_share(rows, name, tasks, belongs) for belongs in GROUPS.values()]
              for name in ("base", *METHODS)}  # fmt: skip
    gains = [[demand_gain(rows, name, "base", tasks, belongs) for belongs in GROUPS.values()] for name in METHODS]
    after = np.array([[one[:3] for one in shares[name]] for name in METHODS])  # (methods, groups, 3)
    before = np.array([one[:3] for one in shares["base"]])
    parts = ("share", "low", "high")
    start = list(METHODS).index("RPO")
    return Figure(
        "A real model, before and after",
        [menu("method", "trained by", list(METHODS.values()), start),
         slider("group", "kind of demand", list(GROUPS), 0)],
        [panel("Demands met on test tasks", axis("share of demands met, 95% interval", [0, 1], percent=True),
               {"names": list(GROUPS), "marked": "group"},
               bars("@before_share", "before", low="@before_low", high="@before_high", quiet=True),
               bars("@after_share", "after", low="@after_low", high="@after_high"))],
        "{method}, {group}: {noted}",
        {
            **{f"before_{part}": table("i", before[:, i]) for i, part in enumerate(parts)},
            **{f"after_{part}": table("method i", after[:, :, i]) for i, part in enumerate(parts)},
            "noted": table("method group", [[
                f"{before[g, 0]:.0%} of the demands before, {after[m, g, 0]:.0%} after; the difference is "
                f"{100 * gain.share:+.0f} points, 95% interval over tasks {100 * gain.low:+.0f} to "
                f"{100 * gain.high:+.0f}."
                for g, gain in enumerate(own)] for m, own in enumerate(gains)]),
        },
        lambda: (plot_shares({label: dict(zip(GROUPS, shares[name], strict=True))
                              for name, label in (("base", "before"), ("RPO", "after RPO"))},
                             title="Demands met by a real model", xlabel="share of demands met, 95% interval").figure,
                 "Demands met before and after RPO: "
                 + "; ".join(f"{group} {before[g, 0]:.0%} to {after[start, g, 0]:.0%}"
                             for g, group in enumerate(GROUPS)) + "."),
    )  # fmt: skip


FIGURES: Mapping[str, tuple[Callable[[], Figure], str]] = {
    "bradley-terry": (bradley_terry, "01_preferences"),
    "optimum": (optimum, "02_derivation"),
    "loss": (loss, "03_loss_and_gradient"),
    "margins": (margins, "08_implicit_rewards"),
    "turn": (turn, "10_when_dpo_fails"),
    "noise": (noise, "10_when_dpo_fails"),
    "family": (family, "11_the_dpo_family"),
    "methods": (methods, "12_dpo_against_rlhf"),
    "real-model": (real_model, "16_a_real_model"),
}
"""Name → what makes the figure, and the notebook it belongs to; in the order of the notebooks."""


def _around(values: Any) -> list[float]:
    """A range with a little room on both sides."""
    values = np.asarray(values, np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.06 * (high - low) or 0.1
    return [float(f"{low - room:.3g}"), float(f"{high + room:.3g}")]


def _same_kl(rows: Any, method: str, at: float) -> tuple[float, float, float]:
    """Mean and interval over seeds of the reward at a KL; nan where a seed does not go so far."""
    found = list(rewards_at_kl(rows, method, at).values())
    return seed_interval(found)[:3] if np.isfinite(found).all() else (math.nan, math.nan, math.nan)
