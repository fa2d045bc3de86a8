"""The checks of 06: right answers pass, and each usual mistake is told by its own message."""

from __future__ import annotations

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
from dpo_lab.logprobs import sequence_logps


def step(model, optimizer, batch, reference, beta, max_norm):
    logps = sequence_logps(model, batch)
    h = (logps[:, 0] - reference[:, 0]) - (logps[:, 1] - reference[:, 1])
    loss = -F.logsigmoid(beta * h).mean()
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item(), norm.item()


def crooked(*, gap=lambda chosen, rejected, lengths: chosen - rejected, reduce=torch.mean, **slips):
    """`step` with a part replaced."""

    def one(model, optimizer, batch, reference, beta, max_norm):
        logps = sequence_logps(model, batch)
        ratios = logps if slips.get("no_reference") else logps - reference
        h = gap(ratios[:, 0], ratios[:, 1], batch.lengths)
        loss = reduce(-F.logsigmoid((1 if slips.get("no_beta") else beta) * h))
        loss.backward()
        if slips.get("clear_early"):
            optimizer.zero_grad()
        if slips.get("clip_late"):
            optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9 if slips.get("no_clip") else max_norm)
        if not slips.get("clip_late"):
            optimizer.step()
        if not slips.get("keep"):
            optimizer.zero_grad()
        if slips.get("graph"):
            return loss, norm.item()
        if slips.get("clipped_norm"):
            return loss.item(), min(norm.item(), max_norm)
        if slips.get("swapped"):
            return norm.item(), loss.item()
        return loss.item(), norm.item()

    return one


def test_a_right_step(capsys):
    state = torch.get_rng_state()
    check_training_step(step)
    check_training_step(crooked())
    assert capsys.readouterr().out.count("Right: ") == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (crooked(keep=True), "still holds the first one's gradient"),
        (crooked(clear_early=True), "no weight has moved"),
        (crooked(no_clip=True), "longer than max_norm"),
        (crooked(clip_late=True), "before the step is taken"),
        (crooked(gap=lambda w, r, n: r - w), "towards the rejected"),
        (crooked(gap=lambda w, r, n: w / n[:, 0] - r / n[:, 1]), "divided by the lengths"),
        (crooked(no_reference=True), "reference isn't taken away"),
        (crooked(reduce=torch.sum), "added up"),
        (crooked(no_beta=True), "β is missing"),
        (crooked(gap=lambda w, r, n: 3 * w - r), "aren't those of forward"),
        (crooked(graph=True), "graph"),
        (crooked(clipped_norm=True), "after clipping"),
        (crooked(swapped=True), "loss comes first"),
        (lambda *_: 0.5, "two numbers"),
        (lambda *_: None, "returned nothing"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_told_what_is_wrong(wrong, message):
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


def accumulation(weigh, *, tell=lambda mean: mean):
    def one(parts, losses_of):
        num, mean = sum(map(len, parts)), 0.0
        for part in parts:
            losses = losses_of(part)
            weigh(losses, num, len(parts)).backward()
            mean += float(losses.detach().sum()) / num
        return tell(mean)

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
        (accumulation(lambda losses, n, parts: losses.sum() / n, tell=lambda mean: 2 * mean), "mean over"),
        (all_at_once, "all graphs were in"),
        (lambda parts, losses_of: 0.5, "No gradient was left"),
    ],
)  # fmt: skip
def test_wrong_accumulation_is_told_what_is_wrong(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_accumulation(wrong)


def loop(*, moving=False, keep=False, early=False, attached=False, first=False, tell=lambda loss: loss):
    def train(model, batches):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        with torch.no_grad():
            references = [sequence_logps(model, batch) for batch in batches]
        losses = []
        for reference, batch in zip(references, batches, strict=True):
            logps = sequence_logps(model, batch)
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
            losses.append(tell(loss.item()))
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
        (loop(tell=lambda loss: loss + 0.1), "the losses"),
        (lambda model, batches: loop()(model, batches[:2]), "4 batches gave 2 losses"),
        (lambda model, batches: loop()(model, batches[::-1]), "The first must be log 2"),
    ],
)
def test_a_loop_that_still_has_bugs_is_told_which(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_repaired_loop(wrong)


def test_the_warm_up(capsys):
    check_warmup_share(20 / 189)
    check_warmup_share(0.106)
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (20, "a number of steps"),
        (0, "no warm-up"),
        (20 / 63, "share of one epoch"),
        (20 * 32 / 2000, "share of one epoch"),
        (20 / 2000, "number of pairs"),
        (0.1, "warms up for 19 of 189 steps. Count the steps"),
    ],
)
def test_a_wrong_warm_up_is_told_what_is_wrong(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_warmup_share(wrong)
