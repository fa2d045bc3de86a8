"""The panel of rounds: rounds as they come, the answers of a prompt over the rounds, Stop, and errors in words."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("ipywidgets")

from dpo_lab.workbench.rounds import RoundsConfig
from dpo_lab.workbench.widgets import RoundsPanel
from dpo_lab.worlds.learning import one_thread
from tests.conftest import tiny_llama
from tests.test_rounds import PROMPTS, SETTINGS, low_tokens
from tests.tiny import tiny_tokenizer


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def panel(judge=low_tokens, **changed) -> RoundsPanel:
    config = RoundsConfig(**SETTINGS | changed)
    return RoundsPanel(tiny_llama(), tiny_tokenizer(), PROMPTS, judge, config, watched=2)


def wait(panel: RoundsPanel, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while panel.stop_button.disabled is False:
        assert time.monotonic() < end, panel.words.value
        time.sleep(0.05)


def test_rounds_are_shown_as_they_come():
    one = panel()
    assert "3 rounds of 6 prompts" in one.words.value
    assert one.table.value == ""
    before = one.image.value
    one.start()
    wait(one)
    assert "3 of 3 rounds are done" in one.words.value
    assert [row["step"] for row in one.rows] == [1, 2, 3]
    assert one.bar.value == 1
    assert one.image.value != before
    assert len(one.answers) == 4  # as each round begins, and at the end
    assert one.table.value.count("<tr>") == 1 + 4
    assert "the end" in one.table.value
    for number in (1, 2):
        one.prompt.value = number
        assert one.answers[-1][number - 1].strip()[:5] in one.table.value
    assert repr(one) == "RoundsPanel(3 of 3 rounds)"


def test_they_begin_once():
    one = panel(rounds=1)
    one.start()
    wait(one)
    with pytest.raises(RuntimeError, match="begun already; make another panel"):
        one.start()


def test_stop_ends_after_the_round_in_hand():
    one = panel(rounds=50)
    one.start()
    while not one.rows:
        time.sleep(0.01)
    one.stop()
    wait(one)
    assert 1 <= len(one.rows) < 50
    assert f"{len(one.rows)} of 50 rounds" in one.words.value


def test_what_a_judge_raises_is_said():
    def judge(prompts, answers):
        raise RuntimeError("<b>no judge</b>")

    one = panel(judge)
    one.start()
    wait(one)
    assert "RuntimeError" in one.words.value
    assert "&lt;b&gt;no judge" in one.words.value
