"""The table of losses: what the command line, the widgets, the course and the tests read.

One entry per loss, with its formula in LaTeX, its own default knobs, what each knob does, and where it comes from.
Adding a loss is a function in this folder, an entry here, and its name in `config.LossName`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from dpo_lab.config import DPOConfig, parts_of_loss
from dpo_lab.loss import PairScores, dpo
from dpo_lab.losses import family, unpaired
from dpo_lab.losses.modifiers import Divergence, divergence_named, under_divergence

SYMBOLS: dict[str, str] = {
    r"a": "log π/π_ref of the chosen completion, in nats",
    r"b": "log π/π_ref of the rejected completion, in nats",
    r"z": "β(a − b), the margin between the implicit rewards",
    r"\sigma": "the logistic function",
    r"y_w, y_l": "the chosen and the rejected completion",
    r"|y|": "the number of scored tokens",
    r"\beta": "the knob beta",
    r"\varepsilon": "the knob label_smoothing",
    r"\lambda": "the knob lam",
    r"\alpha": "the knob alpha",
    r"\gamma": "the knob gamma",
    r"\tau": "the knob tau",
    r"p": "the knob length_power",
}
"""LaTeX to words: what the formulas of `LOSSES` abbreviate."""


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """One row of the table `LOSSES`, or of `UNPAIRED_LOSSES`."""

    function: Callable[..., Tensor]
    """`(PairScores, *, knobs) -> (B,)`."""
    formula: str
    """The loss of one pair in LaTeX, in the symbols of `SYMBOLS`."""
    needs_reference: bool = True
    """Whether it reads the reference's log-probabilities; where not, no reference pass is needed."""
    baseline: Literal["mismatched", "midpoint"] | None = None
    """Of an unpaired loss: where its r₀ comes from. Answers to other prompts; midway between good and bad; or 0."""
    takes_divergence: bool = False
    """Whether it sees the policy only through the difference of the log-ratios, so that f-divergences make sense."""
    knobs: dict[str, float]
    """The loss's own default knobs."""
    directions: dict[str, str]
    """What turning each knob does; the same keys."""
    paper: str
    """arXiv number, or a web address."""
    equation: str
    """Authors, year and place in the paper."""
    summary: str
    """What it is, in one sentence."""
    assumes: str
    """What it assumes of labels or answers, in one sentence, read from its formula and its paper's argument."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def url(self) -> str:
        return self.paper if self.paper.startswith("http") else f"https://arxiv.org/abs/{self.paper}"

    def bind(self, *, divergence: str | Divergence = "reverse_kl", **knobs: float) -> Callable[[Any], Tensor]:
        """The loss with its knobs settled: `(PairScores) -> (B,)`. Knobs not given keep this loss's defaults.

        `divergence` is a name of `DIVERGENCES`, or a function from log-ratios to f'(u). Raises ValueError for unknown
        knobs, for values outside a knob's range, and for a divergence under a loss that has no such form.
        """
        for knob, value in knobs.items():
            self._check(knob, value)
        settled = partial(self.function, **(self.knobs | knobs))
        transform = divergence_named(divergence) if isinstance(divergence, str) else divergence
        if transform is divergence_named("reverse_kl"):
            return settled
        if not self.takes_divergence:
            able = ", ".join(name for name, spec in LOSSES.items() if spec.takes_divergence)
            raise ValueError(
                f"divergence must be reverse_kl for the loss {self.name}, got {divergence!r}; the others hold for "
                f"losses that see the policy through the difference of the log-ratios only: {able}"
            )
        return lambda scores: settled(under_divergence(scores, transform))

    def _check(self, knob: str, value: float) -> None:
        if knob not in self.knobs:
            own = ", ".join(f"{name} ({default:g})" for name, default in self.knobs.items())
            those = f"its knobs are {own}" if own else "it has none"
            raise ValueError(f"the loss {self.name} has no knob {knob!r}, got {knob}={value!r}; {those}")
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{knob} must be a number, got {value!r}; {self.knobs[knob]:g} is the usual start")
        holds, rule = _RANGES.get(f"{self.name}.{knob}") or _RANGES[knob]
        if not (math.isfinite(value) and holds(float(value))):
            raise ValueError(
                f"{knob} {rule}, got {value!r}; {self.directions[knob]}, {self.knobs[knob]:g} is the usual start"
            )


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "beta": (lambda value: value > 0, "must be positive and finite"),
    "label_smoothing": (lambda value: 0 <= value < 0.5, "must lie in [0, 0.5)"),
    "exo_pair.label_smoothing": (lambda value: 0 < value < 0.5, "must lie in (0, 0.5), for its logarithm is taken"),
    "length_power": (lambda value: 0 <= value <= 1, "must lie in [0, 1]"),
    "tau": (lambda value: 0 < value <= 1, "must lie in (0, 1]"),
    "lam": (lambda value: value >= 0, "must not be negative"),
    "alpha": (lambda value: value >= 0, "must not be negative"),
    "gamma": (lambda value: value >= 0, "must not be negative"),
    "good_weight": (lambda value: value >= 0, "must not be negative"),
    "bad_weight": (lambda value: value >= 0, "must not be negative"),
}
"""What each knob may be, wherever it occurs; `loss.knob` where one loss is stricter."""

_DRIFT = "smaller values allow more drift from the reference"
_TARGET = "smaller values ask for more drift from the reference"
_TRUST = "larger values trust the labels less and stop at a smaller margin"
_WIDER = "ask for a wider margin per token, gamma / beta"
_IMITATE = "larger values imitate the chosen completions more"

# β of the DPO paper's experiments: 0.1, and 0.5 for summarization. The three that follow start at 0.5, which did best
# in the sweep that the other defaults come from (data/results/defaults_sweep.md).
LOSSES: dict[str, LossSpec] = {
    "dpo": LossSpec(
        function=dpo, takes_divergence=True,
        formula=r"-\log \sigma(z)",
        knobs={"beta": 0.5}, directions={"beta": _DRIFT},
        paper="2305.18290", equation="Rafailov et al. 2023, Eq. 7",
        summary="Logistic regression on which of two completions was chosen, with the policy as the reward model.",
        assumes="Labels are Bradley–Terry votes; a pair on which all agree may be pulled apart without end.",
    ),
    "cdpo": LossSpec(
        function=family.cdpo, takes_divergence=True,
        formula=r"-(1-\varepsilon) \log \sigma(z) - \varepsilon \log \sigma(-z)",
        knobs={"beta": 0.5, "label_smoothing": 0.1}, directions={"beta": _DRIFT, "label_smoothing": _TRUST},
        paper="https://ericmitchell.ai/cdpo.pdf", equation="Mitchell 2023, the conservative DPO loss",
        summary="DPO that believes each label with probability 1 − ε only, and so stops at a finite margin.",
        assumes="Every label is right with the same probability 1 − ε.",
    ),
    "robust": LossSpec(
        function=family.robust, takes_divergence=True,
        formula=r"\frac{-(1-\varepsilon) \log \sigma(z) + \varepsilon \log \sigma(-z)}{1 - 2\varepsilon}",
        knobs={"beta": 0.5, "label_smoothing": 0.1},
        directions={"beta": _DRIFT,
                    "label_smoothing": "larger values undo more flipped labels, at the price of variance"},
        paper="2403.00409", equation="Chowdhury et al. 2024, Section 3.1",
        summary="DPO whose average over labels flipped at rate ε equals DPO on clean labels.",
        assumes="Labels are flipped at a known rate ε, whatever the pair.",
    ),
    "ipo": LossSpec(
        function=family.ipo, takes_divergence=True,
        formula=r"\left(\frac{a}{|y_w|^p} - \frac{b}{|y_l|^p} - \frac{1}{2\beta}\right)^2",
        knobs={"beta": 0.1, "length_power": 1.0},
        directions={"beta": "smaller values ask for a wider gap",
                    "length_power": "1 takes means per token as libraries do, 0 the sums of the paper's formula"},
        paper="2310.12036", equation="Azar et al. 2023, Eq. 17",
        summary="Regression of the gap on a fixed target, so that even certain labels do not drive it to infinity.",
        assumes="A vote is worth a fixed gap, sure or not; nothing is said about Bradley–Terry.",
    ),
    "hinge": LossSpec(
        function=family.hinge, takes_divergence=True,
        formula=r"\max(0, 1 - z)",
        knobs={"beta": 0.1}, directions={"beta": _TARGET},
        paper="2309.06657", equation="Liu et al. 2023, hinge-norm; after SLiC-HF (2305.10425)",
        summary="A support-vector margin: pairs with a margin of 1 are done.",
        assumes="A margin of 1 is enough, for every pair.",
    ),
    "sigmoid_norm": LossSpec(
        function=family.sigmoid_norm, takes_divergence=True,
        formula=r"-\log \sigma\left(\beta \left(\frac{a}{|y_w|} - \frac{b}{|y_l|}\right)\right)",
        knobs={"beta": 5.0}, directions={"beta": _DRIFT},
        paper="2411.15124", equation="Lambert et al. 2024, Section 5, length-normalized DPO",
        summary="DPO on log-ratios per token, so that length alone earns nothing.",
        assumes="What is good shows in every token; length should earn nothing.",
    ),
    "exo_pair": LossSpec(
        function=family.exo_pair, takes_divergence=True,
        formula=r"\sigma(z) \log \frac{\sigma(z)}{1-\varepsilon} + \sigma(-z) \log \frac{\sigma(-z)}{\varepsilon}",
        knobs={"beta": 0.1, "label_smoothing": 0.001}, directions={"beta": _DRIFT, "label_smoothing": _TRUST},
        paper="2402.00856", equation="Ji et al. 2024, Eq. 16",
        summary="The reverse KL from the label to the policy's own choice: mode-seeking where DPO covers.",
        assumes="Labels as in cdpo; few good answers are better than some of all.",
    ),
    "nca_pair": LossSpec(
        function=family.nca_pair,
        formula=r"-\log \sigma(\beta a) - \frac{1}{2} \log \sigma(-\beta a) - \frac{1}{2} \log \sigma(-\beta b)",
        knobs={"beta": 0.1}, directions={"beta": _DRIFT},
        paper="2402.05369", equation="Chen et al. 2024, Section 4.1",
        summary="Noise-contrastive estimation: the chosen reward settles at log 2 and does not sink with the rejected.",
        assumes="Chosen answers are good, not only better than the rejected ones.",
    ),
    "bco_pair": LossSpec(
        function=family.bco_pair,
        formula=r"-\log \sigma(\beta a) - \log \sigma(-\beta b)",
        knobs={"beta": 0.1}, directions={"beta": _DRIFT},
        paper="2404.04656", equation="Jung et al. 2024, Section 4, without the reward shift",
        summary="Two yes-or-no questions in place of one comparison: chosen above zero, rejected below.",
        assumes="Chosen answers are good and rejected ones bad, each by itself.",
    ),
    "sppo_hard": LossSpec(
        function=family.sppo_hard,
        formula=r"\left(a - \frac{1}{2\beta}\right)^2 + \left(b + \frac{1}{2\beta}\right)^2",
        knobs={"beta": 0.1}, directions={"beta": _TARGET},
        paper="2405.00675", equation="Wu et al. 2024, Eq. 4.7 with win probabilities 1 and 0",
        summary="Self-play against the last policy: each log-ratio is regressed on its own target.",
        assumes="The chosen answer would win and the rejected one lose against the policy's usual answer.",
    ),
    "apo_zero": LossSpec(
        function=family.apo_zero,
        formula=r"1 - \sigma(\beta a) + \sigma(\beta b)",
        knobs={"beta": 0.1}, directions={"beta": _DRIFT},
        paper="2408.06266", equation="D'Oosterlinck et al. 2024, Eq. 7",
        summary="Chosen up and rejected down, for chosen answers better than the policy's own.",
        assumes="Chosen answers are better than what the policy writes.",
    ),
    "apo_down": LossSpec(
        function=family.apo_down,
        formula=r"\sigma(\beta a) + 1 - \sigma(z)",
        knobs={"beta": 0.1}, directions={"beta": _DRIFT},
        paper="2408.06266", equation="D'Oosterlinck et al. 2024, Eq. 8",
        summary="Both down, the rejected more, for chosen answers worse than the policy's own.",
        assumes="Chosen answers are worse than what the policy writes, and the rejected ones more so.",
    ),
    "discopop": LossSpec(
        function=family.discopop, takes_divergence=True,
        formula=r"-(1 - \sigma(z/\tau)) \log \sigma(z) + \sigma(z/\tau)\, e^{-z}",
        knobs={"beta": 0.1, "tau": 0.05},
        directions={"beta": _DRIFT, "tau": "smaller values switch more abruptly between the two parts"},
        paper="2406.08414", equation="Lu et al. 2024, Section 4, LRML",
        summary="A blend of logistic and exponential loss that a language model's search came up with.",
        assumes="Nothing: its shape was found by trying, on other data.",
    ),
    "dpop": LossSpec(
        function=family.dpop,
        formula=r"-\log \sigma(\beta (a - b - \lambda \max(0, -a)))",
        knobs={"beta": 0.1, "lam": 50.0},
        directions={"beta": _DRIFT, "lam": "larger values defend the chosen log-probability harder"},
        paper="2402.13228", equation="Pal et al. 2024, Eq. 3",
        summary="DPO that pays when the chosen completion becomes less likely than under the reference.",
        assumes="A chosen answer must never become less likely.",
    ),
    "rpo": LossSpec(
        function=family.rpo,
        formula=r"-\log \sigma(z) - \alpha \frac{\log \pi(y_w|x)}{|y_w|}",
        knobs={"beta": 0.1, "alpha": 1.0}, directions={"beta": _DRIFT, "alpha": _IMITATE},
        paper="2404.19733", equation="Pang et al. 2024, Eq. 1",
        summary="DPO plus the cross-entropy of the chosen completion.",
        assumes="Chosen answers are worth imitating, every one.",
    ),
    "simpo": LossSpec(
        function=family.simpo, needs_reference=False,
        formula=r"-\log \sigma\left(\beta \left(\frac{\log \pi(y_w|x)}{|y_w|} - \frac{\log \pi(y_l|x)}{|y_l|}\right)"
        r" - \gamma\right)",
        knobs={"beta": 2.0, "gamma": 1.0},
        directions={"beta": f"smaller values {_WIDER}", "gamma": f"larger values {_WIDER}"},
        paper="2405.14734", equation="Meng et al. 2024, Eq. 6",
        summary="Compare mean log-probabilities and ask for a margin, without a reference.",
        assumes="Mean nats per token say how good an answer is; the start need not be remembered.",
    ),
    "orpo": LossSpec(
        function=family.orpo, needs_reference=False,
        formula=r"-\frac{\log \pi(y_w|x)}{|y_w|} - \lambda \log \sigma\left(\log \frac{P_w}{1-P_w}"
        r" - \log \frac{P_l}{1-P_l}\right), \quad P = \pi(y|x)^{1/|y|}",
        knobs={"lam": 0.1}, directions={"lam": "larger values weigh the comparison more against the cross-entropy"},
        paper="2403.07691", equation="Hong et al. 2024, Eqs. 6 and 7",
        summary="Supervised fine-tuning with an odds-ratio term that pushes the rejected completion away.",
        assumes="Chosen answers are worth imitating; task and preference are learnt in one go.",
    ),
    "cpo": LossSpec(
        function=family.cpo, needs_reference=False,
        formula=r"-\log \sigma(\beta (\log \pi(y_w|x) - \log \pi(y_l|x))) - \alpha \frac{\log \pi(y_w|x)}{|y_w|}",
        knobs={"beta": 0.1, "alpha": 1.0},
        directions={"beta": "smaller values let the log-probabilities part further", "alpha": _IMITATE},
        paper="2401.08417", equation="Xu et al. 2024, Section 3",
        summary="DPO under a uniform reference, held in place by the cross-entropy of the chosen completion.",
        assumes="Chosen answers are worth imitating; all answers were as likely before.",
    ),
    "simper": LossSpec(
        function=family.simper, needs_reference=False,
        formula=r"\pi(y_l|x)^{1/|y_l|} - \pi(y_w|x)^{1/|y_w|}",
        knobs={}, directions={},
        paper="2502.00883", equation="Xiao et al. 2025, the objective of SimPER",
        summary="Raise the mean probability per token of the chosen completion, lower that of the rejected one.",
        assumes="Mean probability per token says how good an answer is; what is unlikely already needs no push.",
    ),
}  # fmt: skip
"""Every loss of pairs by name; the names are `config.LossName`."""

_MORE = "larger values make {} answers count more"
UNPAIRED_LOSSES: dict[str, LossSpec] = {
    "kto": LossSpec(
        function=unpaired.kto, baseline="mismatched",
        formula=r"\lambda\, (1 - \sigma(\pm\beta (r - r_0)))",
        knobs={"beta": 0.1, "good_weight": 1.0, "bad_weight": 1.0},
        directions={"beta": _DRIFT, "good_weight": _MORE.format("good"), "bad_weight": _MORE.format("bad")},
        paper="2402.01306", equation="Ethayarajh et al. 2024, Eqs. 7 and 8",
        summary="Good answers above the policy's usual drift, bad ones below; far-off answers are given up as noise.",
        assumes="Each answer is good or bad by itself; answers far on the wrong side are wrongly labelled.",
    ),
    "bco": LossSpec(
        function=unpaired.bco, baseline="midpoint",
        formula=r"-\log \sigma(\pm\beta (r - r_0))",
        knobs={"beta": 0.1}, directions={"beta": _DRIFT},
        paper="2404.04656", equation="Jung et al. 2024, Section 4, with the shift of the batch",
        summary="A classifier of good and bad answers whose logit is the implicit reward.",
        assumes="Each answer is good or bad by itself, whatever its prompt.",
    ),
    "apo_zero_unpaired": LossSpec(
        function=unpaired.apo_zero_unpaired,
        formula=r"1 - \sigma(\pm\beta r)",
        knobs={"beta": 0.1}, directions={"beta": _DRIFT},
        paper="2408.06266", equation="D'Oosterlinck et al. 2024, Eq. 7 by single answers",
        summary="Good answers up and bad ones down, each against the reference.",
        assumes="Good answers are better than what the policy writes.",
    ),
}  # fmt: skip
"""Every loss of single answers with a label by name; the names are `config.UnpairedLossName`. In the formulas r is the
answer's log π/π_ref, r₀ the baseline, and ± the label."""


def reward_beta(spec: Any, knobs: dict[str, float]) -> float:
    """The β that scales implicit rewards: the loss's own knob, or 1 where it has none."""
    return float(({"beta": 1.0} | spec.knobs | knobs)["beta"])


def loss_of(config: DPOConfig) -> tuple[LossSpec, Callable[[Any], Tensor], float]:
    """The loss that a configuration names: its row of the table, the function with its knobs settled, and its β.

    A sum has the row of its first part, and each knob goes to every part that has it. Raises ValueError for a knob that
    no part has.
    """
    parts, tables = parts_of_loss(config.loss), LOSSES | UNPAIRED_LOSSES
    specs = {name: tables[name] for name in parts if name != "sft"}
    first = next(iter(specs.values()))
    named = {"beta": config.beta, "label_smoothing": config.label_smoothing}
    knobs = {name: float(value) for name, value in named.items() if value is not None} | dict(config.knobs)
    if len(parts) == 1:
        return first, first.bind(divergence=config.divergence, **knobs), reward_beta(first, knobs)
    for knob, value in knobs.items():
        if not any(knob in spec.knobs for spec in specs.values()):
            first._check(knob, value)
    terms: list[tuple[float, Callable[[PairScores], Tensor]]] = []
    for name, weight in parts.items():
        own = {knob: value for knob, value in knobs.items() if name != "sft" and knob in specs[name].knobs}
        bound = family.sft if name == "sft" else specs[name].bind(divergence=config.divergence, **own)
        terms.append((weight, bound))
    spec = replace(first, needs_reference=any(spec.needs_reference for spec in specs.values()))
    total = lambda scores: torch.stack([weight * loss(scores) for weight, loss in terms]).sum(0)
    return spec, total, reward_beta(first, {name: value for name, value in knobs.items() if name in first.knobs})
