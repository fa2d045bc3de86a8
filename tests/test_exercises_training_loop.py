"""The checks of 06: right answers pass, and each usual mistake gets a message of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dpo_lab.course.exercises import (
    NotYet,
    check_accumulation,
    check_repaired_loop,
    check_training_step,
    check_warmup_share,
)
from dpo_lab.dpo import completion_logps, dpo_step


def crooked(*, gap=lambda chosen, rejected: chosen - rejected, reduce=torch.mean, **slips):
    """A step of DPO with a part replaced."""

    def one(policy, reference, optimizer, pairs, beta, max_norm):
        with torch.set_grad_enabled("reference_gradient" in slips):
            frozen = completion_logps(reference, pairs)
        logps = completion_logps(policy, pairs)
        ratios = logps if "no_reference" in slips else logps - frozen
        margins = (1 if "no_beta" in slips else beta) * gap(*ratios.unbind(1))
        loss = reduce(-F.logsigmoid(margins))
        loss.backward()
        if "clear_early" in slips:
            optimizer.zero_grad()
        if "clip_late" in slips:
            optimizer.step()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1e9 if "no_clip" in slips else max_norm)
        if "clip_late" not in slips:
            optimizer.step()
        if "keep" not in slips:
            optimizer.zero_grad()
        if "moved_reference" in slips:
            next(reference.parameters()).data += 0.1
        margin = margins.mean().item()
        returned = {
            "graph": (loss, margin),
            "swapped": (margin, loss.item()),
            "log_ratio": (loss.item(), margin / beta),
            "negative": (loss.item(), -margin),
        }
        return next((returned[name] for name in slips if name in returned), (loss.item(), margin))

    return one


def test_a_right_step(capsys):
    state = torch.get_rng_state()
    check_training_step(dpo_step)
    check_training_step(crooked())
    assert capsys.readouterr().out.count("Right: ") == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (crooked(keep=True), "still holds the first one's gradient"),
        (crooked(clear_early=True), "no weight has moved"),
        (crooked(no_clip=True), "longer than max_grad_norm"),
        (crooked(clip_late=True), "before the step is taken"),
        (crooked(gap=lambda w, r: r - w), "towards the rejected"),
        (crooked(no_reference=True), "reference isn't subtracted"),
        (crooked(reference_gradient=True), "reference got a gradient"),
        (crooked(moved_reference=True), "Only the policy is trained"),
        (crooked(reduce=torch.sum), "added up"),
        (crooked(no_beta=True), "β is missing inside"),
        (crooked(gap=lambda w, r: 3 * w - r), "aren't those of forward"),
        (crooked(graph=True), "graph"),
        (crooked(swapped=True), "loss comes first"),
        (crooked(log_ratio=True), "difference of implicit rewards"),
        (crooked(negative=True), "rejected minus chosen"),
        (lambda *_: 0.5, "two numbers"),
        (lambda *_: None, "returned nothing"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_wrong_step_gets_a_message(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_training_step(wrong)


def test_an_empty_answer_is_said_to_be_empty():
    def empty(*_):
        raise NotImplementedError

    for check in (check_training_step, check_accumulation, check_repaired_loop):
        with pytest.raises(NotYet, match="still empty"):
            check(empty)


def accumulate(parts, losses_of):
    num, mean = sum(map(len, parts)), 0.0
    for part in parts:
        loss = losses_of(part).sum() / num
        loss.backward()
        mean += loss.item()
    return mean


def accumulation(weigh, *, report=lambda mean: mean):
    def one(parts, losses_of):
        num, mean = sum(map(len, parts)), 0.0
        for part in parts:
            losses = losses_of(part)
            weigh(losses, num, len(parts)).backward()
            mean += float(losses.detach().sum()) / num
        return report(mean)

    return one


def all_at_once(parts, losses_of):
    loss = torch.cat([losses_of(part) for part in parts]).mean()
    loss.backward()
    return loss.item()


def test_right_accumulation(capsys):
    check_accumulation(accumulate)
    check_accumulation(accumulation(lambda losses, num, parts: losses.mean() * len(losses) / num))
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (accumulation(lambda losses, num, parts: losses.mean() / parts), "mean of means"),
        (accumulation(lambda losses, num, parts: losses.mean()), "number of parts"),
        (accumulation(lambda losses, num, parts: losses.sum()), "grows with the batch"),
        (accumulation(lambda losses, num, parts: losses.sum() / num / parts), "divided twice"),
        (accumulation(lambda losses, num, parts: losses.mean() / num), "means already"),
        (accumulation(lambda losses, num, parts: -losses.sum() / num), "times as long"),
        (accumulation(lambda losses, n, parts: losses.sum() / n, report=lambda mean: 2 * mean), "mean over"),
        (all_at_once, "all graphs were in"),
        (lambda parts, losses_of: 0.5, "No gradient was left"),
    ],
)  # fmt: skip
def test_wrong_accumulation_gets_a_message(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_accumulation(wrong)


def loop(*, moving=False, keep=False, early=False, attached=False, first=False, report=lambda loss: loss):
    def train(model, batches):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        with torch.no_grad():
            references = [completion_logps(model, batch) for batch in batches]
        losses = []
        for reference, batch in zip(references, batches, strict=True):
            logps = completion_logps(model, batch)
            if moving:
                reference = logps.detach()
            if attached:
                reference = logps
            if first:
                reference = references[0]
            ratios = logps - reference
            loss = -F.logsigmoid(0.1 * (ratios[:, 0] - ratios[:, 1])).mean()
            loss.backward()
            if early:
                optimizer.zero_grad()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if not keep:
                optimizer.zero_grad()
            losses.append(report(loss.item()))
        return losses

    return train


def test_a_repaired_loop(capsys):
    check_repaired_loop(loop())
    assert "Right: the reference stays" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (loop(moving=True, keep=True), r"log 2 at every step.*that isn't all"),
        (loop(moving=True), r"log 2 at every step.*scored\?$"),
        (loop(keep=True), "holds those of the steps before"),
        (loop(early=True), "No weight has moved"),
        (loop(attached=True), "No weight has moved"),
        (loop(first=True), "first batch's reference"),
        (loop(report=lambda loss: loss + 0.1), "the losses"),
        (lambda model, batches: loop()(model, batches[:2]), "4 batches gave 2 losses"),
        (lambda model, batches: loop()(model, batches[::-1]), "The first must be log 2"),
    ],
)
def test_a_loop_that_still_has_bugs_gets_a_message(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_repaired_loop(wrong)


def test_the_warm_up(capsys):
    check_warmup_share(30 / 160)
    check_warmup_share(0.1875)
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (30, "a number of steps"),
        (0, "no warm-up"),
        (30 / 32, "share of one epoch"),
        (30 * 32 / 1000, "share of one epoch"),
        (30 / 1000, "number of pairs"),
        (30 / (5 * 31), "short last batch"),
        (30 * 32 / 5000, "short last batch"),
        (30 / math.ceil(5000 / 32), "short last batch"),
        (0.1, "warms up for 16 of 160 steps. Count the steps"),
    ],
)
def test_a_wrong_warm_up_gets_a_message(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_warmup_share(wrong)
