"""The checks of the GPU exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpo_lab.course.exercises import NotYet, check_bfloat16_logp, check_choice, check_clock, check_useful_share


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


def choice(device, weights, adapter, per_token, longest, *, trained=16, frozen=4, free=0.1, least=True):
    for name, held in (("all weights", trained * weights), ("adapter", frozen * weights + trained * adapter)):
        tokens = int(((1 - free) * device - held) // per_token)
        if tokens >= (longest if least else 1):
            return name, tokens
    return "nothing", 0


def test_right_choices(capsys):
    check_choice(choice)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: choice(*a, trained=12), "does not fit|number of tokens"),
        (lambda *a: choice(*a, trained=4), "does not fit|number of tokens"),
        (lambda *a: choice(*a, frozen=16), "More would fit"),
        (lambda *a: choice(*a, free=0.0), "tenth of the device must stay free"),
        (lambda *a: choice(*a, least=False), "does not fit"),
        (lambda *a: (choice(*a)[0], a[-1]), "least that must fit"),
        (lambda *a: (choice(*a)[0], choice(*a)[1] + 1), "isn't right"),
        (lambda *a: (choice(*a)[0], 0.9 * a[0] - 16 * a[1]), "Those are bytes"),
        (lambda *a: ("all weights", choice(*a)[1]), "does not fit"),
        (lambda *a: (choice(*a)[0], round((0.9 * a[0] - 16 * a[1]) / a[3])), "rounded down"),
        (lambda *a: ("nothing", 0), "More would fit"),
        (lambda *a: ("LoRA", 0), "say one of"),
        (lambda *a: choice(*a)[0], "a name and a number"),
    ],
)
def test_wrong_choices(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_choice(wrong)
