"""The README's pictures and the numbers beside them are those of the saved results."""

from __future__ import annotations

import json
from statistics import mean

import pytest
from PIL import Image

from dpo_lab import load_preferences
from dpo_lab.preferences.chat import prompt_text
from dpo_lab.worlds.pocket import Conversation, judge
from tests.conftest import ROOT

RESULTS = ROOT / "data" / "results"
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_demos_run_is_judged_again_to_the_saved_rewards():
    found = json.loads((RESULTS / "demo_run.json").read_text(encoding="utf-8"))
    rows = load_preferences("embedded", split="test").to_list()[: found["made"]["prompts"]]
    (prompt,) = (row for row in rows if prompt_text(row) == found["prompt"])
    for row in found["rows"]:
        assert judge(Conversation.from_row(prompt), row["answer"]).reward == pytest.approx(row["its reward"])
    assert found["rows"][-1]["step"] == len(found["losses"])
    assert f"{found['made']['pairs']:,} pairs in {len(found['losses'])} steps" in README
    assert f"one of {found['made']['prompts']} new prompts" in README
    assert mean(found["losses"][-10:]) < found["losses"][0]
    assert found["rows"][0]["reward"] < found["rows"][-1]["reward"]


def test_the_animation_is_small_and_comes_to_rest_within_five_seconds():
    """WCAG 2.2.2: what moves for longer needs a button that stops it."""
    path = RESULTS / "demo_run.gif"
    assert path.stat().st_size < 1.5e6
    with Image.open(path) as picture:
        assert "loop" not in picture.info
        durations = []
        for i in range(picture.n_frames):
            picture.seek(i)
            durations.append(picture.info["duration"])
    assert len(durations) == len(json.loads((RESULTS / "demo_run.json").read_text())["rows"])
    assert sum(durations) < 5000


def test_the_real_models_costs_are_those_of_the_saved_runs():
    rows = json.loads((RESULTS / "real_model.json").read_text())["rows"]
    of = lambda method, name: mean(row[name] for row in rows if row["method"] == method and name in row)
    text = "perplexity/reference of Python 3.11.7"
    assert f"{of('RPO', 'kl'):.0f} nats of KL per answer" in README
    assert f"from {of('base', 'words'):.0f} words to {of('RPO', 'words'):.0f}" in README
    assert f"from {of('base', text):.1f} to {of('RPO', text):.1f}" in README
