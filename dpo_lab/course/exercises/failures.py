"""Checks for the notebook on failures: which way a pair moves, a reference at rest, swapped labels, five curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_array, call, expect, right


def check_first_moves(answer: Callable[..., Any]) -> None:
    """`answer(g_w, g_l)`, gradients (P,) of log π(y_w) and log π(y_l) → how both change under a step on the DPO loss.

    Per unit of ηβσ(−z): the first-order changes of log π(y_w) and log π(y_l), two numbers.
    """
    cases = [
        (np.array([3.0, 1.0, 0.0]), np.array([1.0, -2.0, 1.0])),
        (np.array([1.0, 0.5, -1.0]), np.array([4.0, 1.0, -2.0])),  # the chosen answer falls
        (np.array([-2.0, 0.0, 1.0]), np.array([0.5, 1.0, 0.25])),
    ]
    for chosen, rejected in cases:
        given = as_array(call(answer, chosen.copy(), rejected.copy()), "what you return", shape=(2,))
        step = chosen - rejected
        true = np.array([chosen @ step, rejected @ step])
        expect(given, true, name="the pair of changes", instead={
            "The signs are flipped: descent moves *against* the gradient of the loss.": -true,
            "You return chosen and rejected in the other order.": true[::-1],
            "The second sign is flipped: a positive number would mean that the rejected answer rises.": true * [1, -1],
            "That is how far each answer would move if it were alone in the loss. A step moves the weights along "
            "g_w − g_l, and both answers feel all of it.": np.array([chosen @ chosen, -(rejected @ rejected)]),
            "Those are the overlaps alone; each answer's own part is missing.":
                np.array([-(chosen @ rejected)] * 2) * [1, -1],
            "Leave the lengths of the gradients in: they decide who wins.":
                true / (np.linalg.norm(chosen) * np.linalg.norm(rejected)),
        }, otherwise="To first order, log π(y) changes by its gradient times the step of the weights, and the step is "
                     "along g_w − g_l.")  # fmt: skip
    right("log π(y_w) falls at once if g_w·g_l > |g_w|²: answers that resemble each other pull each other down, and "
          "that can be known before training")  # fmt: skip


def check_resting_reference(answer: Callable[..., Any]) -> None:
    """`answer(model, score, batch)` → `score(model, batch)` (B, 2) as a reference needs it: the planted bug mended.

    No dropout, no gradient, and the model left in the mode in which it was found.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 2))
        batch = torch.randn(8, 4)
        resting = model.eval()(batch).detach()
        score = lambda of, rows: of(rows)
        for mode in (True, False):
            model.train(mode)
            weights = [value.detach().clone() for value in model.parameters()]
            first, second = (call(answer, model, score, batch) for _ in range(2))
            if not isinstance(first, torch.Tensor) or first.shape != (8, 2):
                raise NotYet(f"Your function gave {getattr(first, 'shape', first)!r}; return what `score` gives, for "
                             "8 pairs of shape (8, 2).")  # fmt: skip
            found, wanted = first.detach(), resting
            if not torch.equal(first.detach(), second.detach()):
                raise NotYet("Two calls on the same batch differ: dropout is on while the reference is scored. "
                             "`torch.no_grad()` switches gradients off and nothing else.")  # fmt: skip
            if not torch.allclose(found, wanted, atol=1e-6):
                raise NotYet("Both calls agree, but not with the model at rest. Should the values be scaled, or the "
                             "weights changed?")  # fmt: skip
            if first.requires_grad:
                raise NotYet("The values are right and carry a gradient: the reference would be trained, and each "
                             "batch would keep its whole graph.")  # fmt: skip
            if model.training != mode:
                raise NotYet(f"The model was found in {'training' if mode else 'evaluation'} mode and is left in the "
                             "other. Where policy and reference are one model, that changes the rest of the run "
                             "without a word.")  # fmt: skip
            if not all(map(torch.equal, weights, (value.detach() for value in model.parameters()))):
                raise NotYet("The weights are not what they were. Scoring a reference changes nothing.")
    right("the same numbers at every call, no gradient, and the model as it was; now the first loss is log 2 again")


def check_swapped_source(answer: Callable[..., Any]) -> None:
    """`answer(margins, sources)`, both (N,) → the name of the source whose labels were swapped."""
    generator = np.random.default_rng(4)
    sizes = {"ada": 120, "ben": 1200, "cleo": 60, "dan": 90}
    # Ben's pairs are hard: his margins are near 0, and so many that their sum is the lowest. Dan's are swapped.
    means = {"ada": 1.2, "ben": -0.1, "cleo": 0.9, "dan": -1.0}
    widths = {"ada": 0.8, "ben": 0.6, "cleo": 2.5, "dan": 0.9}
    for names in (list(sizes), ["dan", "cleo", "ada", "ben"]):
        sources = np.concatenate([[name] * sizes[name] for name in names])
        margins = np.concatenate([generator.normal(means[name], widths[name], sizes[name]) for name in names])
        order = generator.permutation(len(margins))
        given = str(call(answer, margins[order].copy(), sources[order].copy()))
        if given not in sizes:
            raise NotYet(f"You return {given!r}; return the name of a source, one of {', '.join(sizes)}.")
        wrong = {name: int((margins[sources == name] < 0).sum()) for name in sizes}
        if given == max(wrong, key=lambda name: wrong[name]) != "dan":
            raise NotYet(f"{given} has the most wrong pairs and the lowest sum, and by far the most pairs. Compare "
                         "shares or means.")  # fmt: skip
        if given == sources[order][margins[order].argmin()]:
            raise NotYet(f"{given} has the single lowest margin. One pair proves little: these margins are wide on "
                         "both sides. Compare means over a source.")  # fmt: skip
        if given == max(means, key=lambda name: means[name]):
            raise NotYet(f"{given} has the highest mean margin: those are the labels that the policy agrees with most.")
        if given != "dan":
            raise NotYet(f"The policy agrees with {given}'s labels more often than not.")
    right("the policy learns from all, and disagrees with the one who contradicts the rest; a noisy source lies near "
          "one half, a swapped one below")  # fmt: skip


# Five curves.

CAUSES = ("sound", "wrong reference", "reference follows the policy", "swapped labels", "memorised")
_LOOK = {
    "sound": "Nothing about this run needs a cure: where does its loss begin, and how far apart are its two curves?",
    "wrong reference": "Look at its very first loss, and the accuracy beside it. Before any step, what must they be?",
    "reference follows the policy": "Its loss says something about every step, not only about the first.",
    "swapped labels": "Compare its training accuracy with the one on the clean held-out labels: which is higher?",
    "memorised": "Look at the distance between its training curve and its held-out curve, and where each goes.",
}
_ORDER = (3, 0, 4, 2, 1)


def mystery_runs(*, steps: int = 60) -> dict[str, dict[str, np.ndarray]]:
    """Five DPO runs in a finite world, one per entry of `CAUSES`, under the names A to E.

    Each is a mapping of the columns that a run's `metrics.jsonl` has: loss and accuracy of the training pairs and of
    held-out pairs whose labels are clean, (steps + 1,) each.
    """
    import torch

    from dpo_lab.loss import log_ratio_gap
    from dpo_lab.losses.table import LOSSES
    from dpo_lab.worlds.comparisons import sample_comparisons
    from dpo_lab.worlds.learning import expected_loss, pair_scores, value_and_gradient
    from dpo_lab.worlds.tabular import random_world

    generator = torch.Generator().manual_seed(0)
    world = random_world(6, 6, generator=generator, reward_scale=1.5)
    other = random_world(6, 6, generator=generator).reference_logps
    draw = lambda number, **how: sample_comparisons(world, number, generator=generator, temperature=0.5, **how)
    held, many, dpo = draw(4000), draw(4000), LOSSES["dpo"].bind(beta=1.0)
    swapped, few = draw(4000, flip=0.3), draw(24)

    def course(train: Any, *, begins: Any = world, follows: bool = False) -> dict[str, np.ndarray]:
        logits, at, rows = world.reference_logps, begins, []
        for _ in range(steps + 1):
            at = replace(at, reference_logps=logits.log_softmax(-1)) if follows else at
            row = {}
            for name, pairs in (("", train), ("held-out ", held)):
                scores = pair_scores(at, logits.log_softmax(-1), pairs)
                gap = log_ratio_gap(scores)
                is_right = torch.where(gap.abs() < 1e-9, 0.5, (gap > 0).double())
                row[f"{name}loss"] = float((pairs.weight * dpo(scores)).sum())
                row[f"{name}accuracy"] = float((pairs.weight * is_right).sum())
            rows.append(row)
            _, gradient = value_and_gradient(lambda theta, now=at: expected_loss(now, theta, dpo, train), logits)
            logits = logits - 4.0 * gradient
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    runs = {
        "sound": course(many),
        "wrong reference": course(many, begins=replace(world, reference_logps=other)),
        "reference follows the policy": course(many, follows=True),
        "swapped labels": course(swapped),
        "memorised": course(few),
    }
    return {letter: runs[CAUSES[place]] for letter, place in zip("ABCDE", _ORDER, strict=True)}


def check_diagnoses(answer: Mapping[str, str]) -> None:
    """`answer`: the cause of each of `mystery_runs`, a mapping from letter to one of `CAUSES`."""
    truth = {letter: CAUSES[place] for letter, place in zip("ABCDE", _ORDER, strict=True)}
    if not isinstance(answer, Mapping) or set(answer) != set(truth):
        raise NotYet(f"Give a cause for each of A, B, C, D and E, such as {{'A': 'sound', …}}; got {answer!r}.")
    for letter, cause in answer.items():
        if cause not in CAUSES:
            raise NotYet(f"{letter}: {cause!r} is none of the five causes: {'; '.join(CAUSES)}.")
    if len(set(answer.values())) < len(CAUSES):
        twice = next(cause for cause in answer.values() if list(answer.values()).count(cause) > 1)
        raise NotYet(f"Each cause occurs once, and you name “{twice}” more than once.")
    for letter, cause in answer.items():
        if cause != truth[letter]:
            raise NotYet(f"{letter} isn't “{cause}”. {_LOOK[cause]} Which run fits that better?")
    right("five causes, told apart by the first loss, by training against held-out, and by a loss that never moves; "
          "none of them needed an answer to be read, and none is seen in one curve alone")  # fmt: skip
