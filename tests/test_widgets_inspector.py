"""The inspector: its order, its filters, and numbers that are those of `token_logps`."""

from __future__ import annotations

import html
import math
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dpo_lab.batching import make_batch
from dpo_lab.logprobs import token_logps
from dpo_lab.preferences import tokenize_pairs
from tests.conftest import tiny_llama, tooltip_of
from tests.tiny import saved_model, tiny_tokenizer

ipywidgets = pytest.importorskip("ipywidgets")

from dpo_lab.workbench.widgets import Inspector  # noqa: E402  after the skip
from dpo_lab.workbench.widgets.inspector import ORDERS, describe_pair, ordered, token_table  # noqa: E402
from dpo_lab.workbench.widgets.sources import with_checkpoints  # noqa: E402

ROWS = [
    {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " ran", "job": "sitting", "reward_chosen": 3.0,
     "reward_rejected": -1.0},
    {"prompt": "a dog", "chosen": " was happy", "rejected": " was sad and bad", "job": "feeling"},
    {"prompt": "the big tree", "chosen": " it was red", "rejected": " it was blue and small", "job": "feeling"},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def policies(tokenizer):
    return {name: (tiny_llama(seed=seed), tokenizer) for name, seed in (("one", 1), ("two", 2))}


@pytest.fixture(scope="module")
def reference(tokenizer):
    return tiny_llama(seed=0), tokenizer


def table(margins, lengths=None, jobs=None):
    count = len(margins)
    lengths = lengths or [(1, 1)] * count
    made = {"row": np.arange(count), "margin": np.array(margins, float),
            "length_chosen": np.array([one for one, _ in lengths]),
            "length_rejected": np.array([other for _, other in lengths])}  # fmt: skip
    return made | ({"job": np.array(jobs)} if jobs else {})


# ── the plain functions ──────────────────────────────────────────────────────────────────────────────────────────────


def test_orders_by_hand():
    found = table([0.5, -2.0, 0.1, -0.3], [(3, 1), (2, 9), (8, 1), (1, 1)])
    expected = {
        "order of the data": [0, 1, 2, 3],
        "margin, lowest first": [1, 3, 2, 0],
        "margin, highest first": [0, 2, 3, 1],
        "margin, nearest to 0 first": [2, 3, 0, 1],
        "error, worst first": [1, 3, 0, 2],  # the pairs ranked right stay as the data has them
        "length, longest first": [1, 2, 0, 3],
        "length, chosen longer first": [2, 0, 3, 1],
    }
    assert {by: ordered(found, by) for by in ORDERS} == expected


def test_a_job_is_filtered_before_it_is_shown_and_unknown_names_are_told():
    found = table([0.5, -2.0, 0.1], jobs=["a", "b", "a"])
    assert ordered(found, "margin, lowest first", "a") == [2, 0]
    with pytest.raises(ValueError, match=r"no pair is of the job 'c'; there are \['a', 'b'\]"):
        ordered(found, job="c")
    with pytest.raises(ValueError, match="no such column"):
        ordered(table([1.0]), job="a")
    with pytest.raises(ValueError, match="can't be sorted by 'beauty'"):
        ordered(found, "beauty")


def test_a_long_answer_keeps_the_sum_of_what_its_table_leaves_out():
    column = np.arange(1000, dtype=float)
    answer = SimpleNamespace(tokens=["<b>"] * 1000, logps=-column, reference_logps=-2 * column, rewards=column)
    told = token_table(answer, "chosen")
    assert "<b>" not in told.replace("<b>token</b>", "").replace("<b>log π</b>", "").replace(
        "<b>log π_ref</b>", ""
    ).replace("<b>reward</b>", "")
    assert told.count("&lt;b&gt;") == 400
    assert f"{column[400:].sum():+.4f}" in told
    assert "600 more, together" in told


# ── the panel ────────────────────────────────────────────────────────────────────────────────────────────────────────


def numbers_of(panel, side):
    """(tokens, 3) of a side's table in the page: log π, log π_ref, reward."""
    part = panel.heat.value.split(f"<summary>numbers of the {side} answer</summary>")[1].split("</details>")[0]
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", part, re.DOTALL)
    return np.array([[float(cell) for cell in re.findall(r"<td[^>]*>([^<]*)</td>", row)] for row in rows])


@torch.no_grad()
def logps_of(model, tokenizer, row):
    data, _ = tokenize_pairs([row], tokenizer, max_length=1024)
    batch = make_batch(data, np.array([0]))
    return np.split(token_logps(model, batch).numpy(), np.cumsum(batch.lengths.numpy().ravel())[:-1])


def test_its_numbers_are_those_of_token_logps(policies, reference, tokenizer):
    panel = Inspector(policies, ROWS, reference=reference, beta=0.3)
    panel.wait(60)
    for name, (model, _) in policies.items():
        panel.model.value = name
        panel.wait(60)
        for place in (1, 2, 3):
            panel.place.value = place
            mine, frozen = (logps_of(one, tokenizer, panel.row) for one in (model, reference[0]))
            for side, k in (("chosen", 0), ("rejected", 1)):
                shown = numbers_of(panel, side)
                np.testing.assert_allclose(shown[:, 0], mine[k], atol=1e-4)
                np.testing.assert_allclose(shown[:, 1], frozen[k], atol=1e-4)
                np.testing.assert_allclose(shown[:, 2], 0.3 * (mine[k] - frozen[k]), atol=1e-4)
            margin = numbers_of(panel, "chosen")[:, 2].sum() - numbers_of(panel, "rejected")[:, 2].sum()
            told = float(re.findall(r"Margin ([-+.\d]+)", html.unescape(panel.words.value))[0])
            assert told == pytest.approx(margin, abs=2e-3)
    assert not [thread for thread in threading.enumerate() if "dpo-lab" in thread.name]


def test_walking_sorting_and_filtering(policies, reference):
    panel = Inspector(policies["one"], ROWS, reference=reference)
    panel.wait(60)
    margins = panel.table["margin"]
    assert panel.previous.disabled
    panel.by.value = "margin, lowest first"
    seen = []
    for _ in range(3):
        seen.append(panel.row["prompt"])
        panel.following.click()
    assert seen == [ROWS[i]["prompt"] for i in np.argsort(margins, kind="stable")]
    assert (panel.place.value, panel.following.disabled) == (3, True)
    panel.job_filter.value = "feeling"
    assert (panel.place.value, panel.place.max) == (1, 2)
    assert panel.row["job"] == "feeling"
    panel.previous.click()
    assert panel.place.value == 1
    wrong = sum(margins[i] < 0 for i in (1, 2))
    assert f"{wrong} of 2 pairs are ranked wrong" in panel.message.value
    assert "of 2" in panel.of.value


def test_the_picture_is_the_heat_map_of_the_shown_pair(policies, reference):
    panel = Inspector(policies["one"], ROWS, reference=reference)
    with pytest.raises(ValueError, match="call wait"):
        Inspector.figure(SimpleNamespace(tokens=None))
    panel.wait(60)
    titles = [ax.get_title(loc="left") for ax in panel.figure().axes]
    assert any(title.startswith("chosen: implicit reward") for title in titles)


def test_without_a_job_column_there_is_no_filter(policies, reference):
    rows = [{name: value for name, value in row.items() if name != "job"} for row in ROWS]
    panel = Inspector(policies["one"], rows, reference=reference)
    panel.wait(60)
    assert panel.job_filter.layout.display == "none"
    assert "true rewards +3.00 and -1.00" in panel.words.value
    assert "true" not in describe_pair(panel.table, 1, rows[1])


def test_nasty_texts_stay_text(policies, reference):
    nasty = "<script>alert(1)</script> <img src=x onerror=alert(2)> $x^2$ </pre>"
    rows = [{"prompt": nasty, "chosen": f" {nasty}", "rejected": " sat" * 2500, "job": nasty}]
    panel = Inspector({nasty: policies["one"]}, rows, reference=reference, max_length=4096)
    panel.wait(60)
    for widget in (panel.message, panel.words, panel.prompt, panel.heat):
        assert "<script" not in widget.value
        assert "<img" not in widget.value
    assert html.unescape(panel.prompt.value).count(nasty) == 1
    assert len(panel.tokens.rejected.tokens) == 2501
    assert "2101 more, together" in panel.heat.value


def test_what_goes_wrong_is_shown_and_raised_and_another_model_can_be_chosen(policies, reference, tmp_path):
    panel = Inspector({"none": str(tmp_path / "nowhere"), "one": policies["one"]}, ROWS, reference=reference)
    with pytest.raises(ValueError, match="no model folder"):
        panel.wait(60)
    assert "no model folder" in panel.message.value
    panel.model.value = "one"
    panel.wait(60)
    assert panel.row is panel.rows[0]


def test_another_tokenizer_and_a_missing_reference_are_refused(policies, reference):
    other = tiny_tokenizer(unk_token="<other>")
    panel = Inspector({"one": (policies["one"][0], other)}, ROWS, reference=reference)
    with pytest.raises(ValueError, match="another tokenizer than one"):
        panel.wait(60)
    with pytest.raises(ValueError, match="compares with a reference, and none was given"):
        Inspector(policies, ROWS)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        Inspector(policies, ROWS, reference=reference, limit=0)


def test_a_run_brings_its_checkpoints_and_its_reference(tmp_path, tokenizer):
    from dpo_lab.storage.checkpoints import save_checkpoint
    from dpo_lab.workbench.runs import Run

    base = saved_model(tmp_path / "base", tiny_llama(seed=4), tokenizer)
    run = Run.create(tmp_path / "run", {"command": "train", "settings": {"model": str(base)}})
    (run.folder / "metrics.jsonl").touch()
    for step in (3, 12):
        model = tiny_llama(seed=step)
        save_checkpoint(run.checkpoints, step, model, torch.optim.SGD(model.parameters(), 0.1), {}, keep=2)
    assert list(with_checkpoints({"run": run})) == ["run, step 3", "run, step 12"]
    saved_model(run.model_folder, tiny_llama(seed=5), tokenizer)
    panel = Inspector(str(run.folder), ROWS)
    assert list(panel.models) == ["run", "run, step 3", "run, step 12"]
    panel.wait(60)
    before = numbers_of(panel, "chosen")
    panel.model.value = "run, step 12"
    panel.wait(60)
    mine, frozen = logps_of(tiny_llama(seed=12), tokenizer, ROWS[0]), logps_of(tiny_llama(seed=4), tokenizer, ROWS[0])
    np.testing.assert_allclose(numbers_of(panel, "chosen")[:, :2], np.stack([mine[0], frozen[0]], 1), atol=1e-4)
    assert not np.allclose(before, numbers_of(panel, "chosen"))


def test_every_control_has_a_label_and_says_what_it_does(policies, reference):
    panel = Inspector(policies, ROWS, reference=reference)
    panel.wait(60)
    for control in (panel.model, panel.by, panel.job_filter, panel.place, panel.previous, panel.following):
        assert control.description
        assert tooltip_of(control)
    assert repr(panel) == "Inspector(one, two: 3 pairs)"


def test_a_real_model_and_a_file(real):
    stories = str(real / "models" / "stories260k")
    panel = Inspector(stories, str(real / "preferences" / "instruction-polite.json"), reference=stories, limit=4,
                      max_length=256)  # fmt: skip
    panel.wait(120)
    assert len(panel.table["row"]) == 4
    assert float(np.abs(panel.table["margin"]).max()) == pytest.approx(0, abs=1e-4)  # policy = reference
    assert math.isfinite(float(panel.tokens.margin))
