"""The checks of the GPU exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
import torch

from dpo_lab.course.exercises import NotYet, check_bfloat16_logp, check_clock, check_peak_bytes, check_useful_share


def test_right_shares(capsys):
    check_useful_share(lambda flops, seconds, rate: 3 * flops.sum() / seconds / rate)
    check_useful_share(lambda flops, seconds, rate: np.sum(flops) * 3 / (seconds * rate))
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda f, s, r: f.sum() / s / r, "forward pass alone"),
        (lambda f, s, r: 2 * f.sum() / s / r, "leaves out the forward"),
        (lambda f, s, r: 3 * f.mean() / s / r, "of one pair"),
        (lambda f, s, r: s * r / 3 / f.sum(), "flipped"),
        (lambda f, s, r: 3 * f.sum() / s, "hold them against"),
        (lambda f, s, r: 3 * f.sum() * s / r, "multiplies by the seconds"),
        (lambda f, s, r: 300 * f.sum() / s / r, "percentage"),
        (lambda f, s, r: 3 * f / s / r, "shape"),
        (lambda f, s, r: 0.5, "over the rate"),
    ],
)
def test_wrong_shares(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_useful_share(wrong)


def timed(device, repeats, *, warms=True, waits_before=True, waits_after=True, waits_within=False, divides=True):
    if warms:
        device.launch()
    if waits_before:
        device.wait()
    began = device.clock()
    for _ in range(repeats):
        device.launch()
        if waits_within:
            device.wait()
    if waits_after:
        device.wait()
    took = device.clock() - began
    return took / repeats if divides else took


def test_right_clocks(capsys):
    check_clock(timed)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"waits_after": False}, "time to write the work down"),
        ({"waits_after": False, "waits_before": False, "warms": False}, "time to write the work down"),
        ({"waits_within": True}, "Wait once, after the last"),
        ({"divides": False}, "all 8 calls together"),
        ({"warms": False}, "loads and compiles, once"),
        ({"waits_before": False}, "off|before you began|read the clock"),
    ],
)
def test_wrong_clocks(changes, message):
    with pytest.raises(NotYet, match=message):
        check_clock(lambda device, repeats: timed(device, repeats, **changes))


def test_a_clock_without_work_is_told():
    with pytest.raises(NotYet, match="never calls"):
        check_clock(lambda device, repeats: 10.0)


def logp(hidden, weight, targets, *, early=True, late=True, products=False, back=False):
    logits = hidden.float() @ weight.float().T if products else hidden @ weight.T
    every = (logits.float() if early else logits).log_softmax(-1)
    picked = every.gather(-1, targets[:, None])[:, 0]
    total = (picked.float() if late else picked).sum()
    return total.bfloat16() if back else total


def test_right_log_probs_in_bfloat16(capsys):
    check_bfloat16_logp(logp)
    check_bfloat16_logp(lambda h, w, t: logp(h, w, t).item())
    cross_entropy = torch.nn.functional.cross_entropy
    check_bfloat16_logp(lambda h, w, t: -cross_entropy((h @ w.T).float(), t, reduction="sum"))
    assert capsys.readouterr().out.count("Right: ") == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h, w, t: logp(h, w, t, early=False, late=False), "4 nats apart"),
        (lambda h, w, t: logp(h, w, t, early=False), "comes too late"),
        (lambda h, w, t: logp(h, w, t, back=True), "4 nats apart"),
        (lambda h, w, t: logp(h, w, t, products=True), "gives away the speed"),
        (lambda h, w, t: logp(h, w, t) / len(t), "a mean"),
        (lambda h, w, t: -logp(h, w, t), "sign"),
        (lambda h, w, t: 0.0, "pick the targets"),
        (lambda h, w, t: (h @ w.T).float().log_softmax(-1), "one number"),
    ],
)
def test_wrong_log_probs_in_bfloat16(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_bfloat16_logp(wrong)


def test_right_peaks(capsys):
    check_peak_bytes(lambda events: max(accumulate(events), default=0))
    check_peak_bytes(lambda events: np.cumsum([0, *events]).max())
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda events: sum(events), "left after the step"),
        (lambda events: max(events, default=0), "largest single piece"),
        (lambda events: sum(e for e in events if e > 0), "as if nothing had been freed"),
        (lambda events: np.cumsum(events).mean() if events else 0, "the mean"),
        (lambda events: np.cumsum(events).argmax() if events else 0, "number of the event"),
        (lambda events: max(accumulate(events), default=1), "nothing is held"),
        (lambda events: max(accumulate(events)), "stopped with ValueError"),
        (lambda events: 7, "remember the largest"),
    ],
)
def test_wrong_peaks(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_peak_bytes(wrong)
