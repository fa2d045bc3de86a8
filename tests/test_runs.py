"""A run's folder: whole after a crash, without gaps or repeats after resuming, and safe to open in a browser."""

from __future__ import annotations

import html.parser
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dpo_lab.config import DPOConfig, SFTConfig
from dpo_lab.loop import Checkpoint, Evaluation, Event, Finished, Step
from dpo_lab.storage.files import append_line, read_lines, write_whole
from dpo_lab.workbench.runs import Run, compare_runs, comparison_figure, load_runs, row_of
from dpo_lab.workbench.runs.page import folded, text
from tests.conftest import random_pairs, tiny_llama

CONFIG = {"command": "train", "settings": {"model": "embedded", "pairs": "a.jsonl", "beta": 0.1, "seed": 3}}


def step(number: int, loss: float = 0.5) -> Step:
    return Step(number, 4, {"loss": loss, "rewards/chosen": 0.1, "learning_rate": 1e-4}, 0.5 * number)


def evaluation(number: int) -> Evaluation:
    metrics = {"eval_loss": 0.7 - 0.1 * number, "eval_rewards/margins": 0.1 * number}
    return Evaluation(number, metrics, (0.1 * number, -0.2), 0.5 * number)


def whole_run() -> list[Event]:
    """Four steps, a checkpoint after each second, which at the last step comes before the evaluation."""
    return [
        evaluation(0), step(1), step(2), evaluation(2), Checkpoint(2, "step-2"),
        step(3), step(4), Checkpoint(4, "step-4"), evaluation(4), Finished(4, 4, True, {"loss": 0.5}, 2.0),
    ]  # fmt: skip


def record(run: Run, events: list[Event]) -> Run:
    assert list(run.follow(iter(events))) == events  # all pass on
    return run


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "a", CONFIG)


# ── beginning a run ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_configuration_says_what_was_run(run: Run):
    saved = json.loads((run.folder / "config.json").read_text())
    assert saved == run.config == Run.load(run.folder).config
    assert saved["command"] == "train"
    assert saved["settings"] == CONFIG["settings"]
    assert (saved["model"], saved["data"], saved["seed"]) == ("embedded", {"pairs": "a.jsonl"}, 3)
    assert {"dpo_lab", "python", "torch", "transformers"} <= set(saved["versions"])
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", saved["started"])
    assert saved["device"]


def test_what_json_cannot_keep_becomes_text_or_is_refused(tmp_path: Path):
    settings = {"cache": Path("a/b"), "betas": (0.9, 0.99), "limit": math.inf, "name": "\ud800"}
    run = Run.create(tmp_path / "a", {"settings": settings})
    assert run.config["settings"] == {"cache": "a/b", "betas": [0.9, 0.99], "limit": "Infinity", "name": "\ud800"}
    assert Run.load(tmp_path / "a").config == run.config
    with pytest.raises(ValueError, match="config field 'model' cannot be written as JSON"):
        Run.create(tmp_path / "b", {"model": object()})
    assert not (tmp_path / "b").exists()


def test_a_folder_that_holds_something_is_refused(run: Run, tmp_path: Path):
    with pytest.raises(ValueError, match="already holds a run; give another --run, or go on with it by --resume"):
        Run.create(run.folder, CONFIG)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(ValueError, match="thesis is not empty and holds no run; give --run a new or an empty folder"):
        Run.create(tmp_path / "thesis", CONFIG)
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", CONFIG).metrics == []


def test_a_file_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "notes").write_text("")
    with pytest.raises(OSError, match=r"notes cannot be written \(.*\); free space or permissions there"):
        Run.create(tmp_path / "notes", CONFIG)
    with pytest.raises(OSError, match=r"notes/run cannot be written \(Not a directory\)"):
        Run.create(tmp_path / "notes" / "run", CONFIG)


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"runs/a cannot be written \(Permission denied\); free space or permissions"):
        Run.create(tmp_path / "runs" / "a", CONFIG)


def test_resuming_needs_a_run_of_the_same_command(run: Run, tmp_path: Path):
    assert Run.create(run.folder, CONFIG, resume=True).config == run.config
    with pytest.raises(ValueError, match="was begun with 'train' and cannot go on with 'sft'"):
        Run.create(run.folder, {"command": "sft"}, resume=True)
    with pytest.raises(ValueError, match="nowhere holds no run to go on with; leave out --resume"):
        Run.create(tmp_path / "nowhere", CONFIG, resume=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run: config.json is missing"),
        ("{", "config.json is damaged"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Run.load(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        Run.load(tmp_path / "missing")


# ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_event_but_the_end_is_a_line_before_it_passes_on(run: Run):
    for event in run.follow(iter(whole_run())):
        if not isinstance(event, Checkpoint | Finished):
            last = run.metrics[-1]
            assert (last["kind"], last["step"]) == (type(event).__name__.lower(), event.step)
    assert [(row["kind"], row["step"]) for row in run.metrics] == [
        ("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("step", 4), ("evaluation", 4),
        ("finished", 4),
    ]  # fmt: skip
    metrics = {"loss": 0.5, "rewards/chosen": 0.1, "learning_rate": 1e-4}
    assert run.metrics[1] == {"kind": "step", "step": 1, **metrics, "seconds": 0.5}


def test_rows_series_margins_and_summary(run: Run):
    record(run, whole_run())
    assert [part.tolist() for part in run.series("loss")] == [[1, 2, 3, 4], [0.5] * 4]
    np.testing.assert_allclose(run.series("eval_rewards/margins"), [[0, 2, 4], [0, 0.2, 0.4]])
    assert run.margins == {0: [0.0, -0.2], 2: [0.2, -0.2], 4: [0.4, -0.2]}
    run.add_results({"kl": 3.5, "kl_standard_error": math.nan})
    summary = run.summary()
    assert (summary["step"], summary["is_complete"], summary["num_steps"], summary["kl"]) == (4, True, 4, 3.5)
    assert summary["eval_loss"] == pytest.approx(0.3)
    assert math.isnan(summary["kl_standard_error"])
    assert row_of(step(1)) == {**run.metrics[1], "seconds": 0.5}


def test_numbers_that_json_lacks_are_kept(run: Run):
    record(run, [step(1, math.inf), step(2, -math.inf), step(3, math.nan)])
    assert run.series("loss")[1].tolist()[:2] == [math.inf, -math.inf]
    assert math.isnan(run.series("loss")[1][2])
    strict = json.JSONDecoder(parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [strict.decode(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == [
        "Infinity", "-Infinity", "NaN",
    ]  # fmt: skip


@pytest.mark.parametrize("at", [0, 2, 4])
def test_resuming_leaves_neither_gaps_nor_repeats(tmp_path: Path, at: int):
    events = whole_run()
    straight = record(Run.create(tmp_path / "straight", CONFIG), events)
    broken = Run.create(tmp_path / "broken", CONFIG)
    after = {0: 0, 2: 5, 4: 8}[at]  # how many events had come when the checkpoint of `at` stood complete
    for reached in range(after, len(events) + 1):  # killed anywhere after it
        folder = tmp_path / f"broken-{reached}"
        broken = Run.create(folder, CONFIG)
        record(broken, events[:reached])
        again = Run.create(folder, CONFIG, resume=True)
        again.rewind(at)
        record(again, events[after:])
        assert without_seconds(again.metrics) == without_seconds(straight.metrics)
        assert again.margins == straight.margins


def test_a_resumed_complete_run_repeats_no_evaluation(run: Run):
    record(run, whole_run())
    run.rewind(4)
    record(run, whole_run()[8:])  # the loop evaluates again before it says that it has finished
    assert [row["kind"] for row in run.metrics].count("evaluation") == 3


def test_seconds_count_on_after_resuming(run: Run):
    record(run, whole_run()[:3])
    run.rewind(2)
    record(run, [Step(3, 4, {"loss": 0.5}, 0.25)])
    assert run.metrics[-1]["seconds"] == 1.25


def test_rewinding_forgets_samples_and_results_of_a_later_model(run: Run):
    record(run, whole_run())
    run.add_samples([{"prompt": "p", "before": "b", "after": "a"}])
    run.add_results({"kl": 1.0})
    run.rewind(2)
    assert run.samples == []
    assert [row["kind"] for row in run.metrics] == ["evaluation", "step", "step", "evaluation"]


def test_training_twice_into_one_run_is_refused(run: Run):
    record(run, whole_run()[:4])
    with pytest.raises(ValueError, match=r"already records step 2, got step 1; call rewind\(step\)"):
        record(run, whole_run())
    run.rewind(0)
    record(run, whole_run()[1:])
    with pytest.raises(ValueError, match="holds a run that has ended"):
        run.follow(iter([]))


def test_something_that_is_no_event_is_refused(run: Run):
    with pytest.raises(ValueError, match="yields Step, Evaluation, Round, Checkpoint and Finished, got dict"):
        list(run.follow([{"loss": 1}]))  # pyright: ignore


# ── crashes and damage ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_last_line_cut_anywhere_is_left_out_and_repaired(run: Run, caplog: pytest.LogCaptureFixture):
    record(run, whole_run()[:3])
    path = run.folder / "metrics.jsonl"
    whole = path.read_bytes()
    *_, last = whole.splitlines(keepends=True)
    for length in range(1, len(last) - 1, 5):
        path.write_bytes(whole[: len(whole) - len(last) + length])
        assert len(run.metrics) == 2
    assert "ends in a line that was cut off" in caplog.text
    record(run, [step(2)])  # goes on after the cut
    assert path.read_bytes().splitlines()[:2] == whole.splitlines()[:2]
    assert without_seconds(run.metrics) == [
        {name: value for name, value in json.loads(line).items() if name != "seconds"} for line in whole.splitlines()
    ]
    path.write_bytes(whole[:-1])  # only the line's end is missing
    assert len(run.metrics) == 3
    record(run, [step(3)])
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3]


def test_other_damage_is_refused_by_line(run: Run):
    record(run, whole_run()[:3])
    path = run.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (
        b"\n",
        b"null\n",
        b'{"kind": "ste\n',
        b"\xff\xfe\n",
        b'{"step": 1}\n',
        b'{"kind": "step", "step": "1"}\n',
    ):
        path.write_bytes(lines[0] + broken + lines[2])
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 (is no JSON object|must have a)"):
            run.metrics  # noqa: B018


WRITER = """
import sys
from dpo_lab.storage.files import append_line
from pathlib import Path
path, i = Path(sys.argv[1]), 0
while True:
    append_line(path, {"kind": "step", "step": i, "text": "x" * 5000})
    i += 1
"""


def test_a_killed_writer_loses_at_most_its_last_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.exists() or path.stat().st_size < 200_000):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rows = read_lines(path).rows
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= 30


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which stands for a full disk")
def test_a_full_disk_is_told_with_path_and_remedy(run: Run):
    (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"metrics\.jsonl cannot be written \(No space left on device\); free space .*--resume"
    ):
        append_line(run.folder / "metrics.jsonl", {"kind": "step", "step": 1})


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "config.json"
    write_whole(path, b"old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"config\.json cannot be written \(No space left on device\)"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_samples_keep_any_text(run: Run):
    rows = [
        {"prompt": "日本\u2028\n\x00", "before": "\ud800", "after": "", "reward_after": 0.5},
        {"prompt": [{"role": "user"}]},
    ]
    run.add_samples(rows)
    assert run.samples == rows
    with pytest.raises(ValueError, match="a sample needs a prompt, got the fields before"):
        run.add_samples([{"before": "x"}])


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "</div></article></html>",
    "<!--", "]]>", "&lt;b&gt;", "$\\frac{1}{2}$ =SUM(A1) {{7*7}}", "\x00\x07\x1b[31m\ud800\ufffe", "\u202eevil",
    "<script " * 2000,
]  # fmt: skip
VOID = {"meta", "img", "br", "link", "input", "hr"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "article", "h1", "h2", "h3", "h4",
    "p", "dl", "dt", "dd", "div", "span", "small", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td",
    "details", "summary", "figure", "figcaption", "img", "pre", "code",
}  # fmt: skip


class Page(html.parser.HTMLParser):
    """Reads a page, holding that every element is closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.images, self.headings, self.words = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def hostile_run(folder: Path) -> Run:
    settings = {"model": HOSTILE[0], "pairs": HOSTILE[1], "loss": HOSTILE[2], "beta": 0.3, "run": HOSTILE[3]}
    run = Run.create(folder, {"command": "train", "settings": settings, "note": HOSTILE[1]})
    record(run, whole_run())
    run.add_results({HOSTILE[0]: 1.0})
    run.add_samples(
        {"prompt": text, "before": text, "after": text, "chosen": text, "rejected": [text]} for text in HOSTILE
    )
    run.model_folder.mkdir()
    return run


def test_no_text_from_outside_becomes_markup(tmp_path: Path):
    run = hostile_run(tmp_path / "<b onclick=x>&'\"")
    page = run.write_report().read_text(encoding="utf-8")
    read = Page(page)
    assert {tag for tag, _ in read.tags} <= ALLOWED
    attributes = {name for _, attrs in read.tags for name in attrs}
    assert attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "scope", "src", "alt", "dir"}
    assert all(image["src"].startswith("data:image/png;base64,") for image in read.images)
    words = "".join(read.words)
    for hostile in HOSTILE[:8]:
        assert hostile in words  # shown as it is, not swallowed
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", page)


def test_the_page_needs_nothing_else_and_reads_well(tmp_path: Path):
    run = hostile_run(tmp_path / "a")
    page = run.write_report().read_text(encoding="utf-8")
    read = Page(page)
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not re.search(
        r"(?:src|href)=\"?(?!data:)|url\(|@import", re.sub("<script src|img src=x", "", page).split("<body>")[0]
    )
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert len(read.images) == len([alt for image in read.images if (alt := image["alt"])]) >= 4
    assert read.headings[0] == 1
    assert read.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(read.headings, read.headings[1:], strict=False))


def test_long_texts_are_folded_and_whole():
    assert folded("short") == '<div class="text" dir="auto">short</div>'
    block = folded("<" * 10_000)
    assert block.startswith("<details")
    assert block.count("&lt;") == 10_000 + 200
    assert "(10,000 letters)" in block
    assert folded(" \n") == '<div class="quiet">(empty)</div>'


def test_text_shows_values_as_a_reader_expects():
    assert [text(value) for value in (None, 1e-4, 5e-7, True, 3, "a\r\nb", ["<"])] == [
        "none", "0.0001", "5e-07", "true", "3", "a\nb", "[&quot;&lt;&quot;]",
    ]  # fmt: skip


def test_the_report_tells_settings_results_and_the_way_on(run: Run):
    record(run, whole_run())
    run.add_results({"kl": 3.5, "kl_standard_error": 0.25})
    run.model_folder.mkdir()
    words = " ".join("".join(Page(run.write_report().read_text()).words).split())
    assert "Preference tuning of embedded on a.jsonl. Complete: 4 steps in 2.0 s." in words
    assert "beta 0.1 none" in words.replace("beta0.1none", "beta 0.1 none")  # differs from its default
    assert "3.5 ± 0.25" in words
    assert "0.70.3−0.4" in words.replace(" ", "")  # held-out loss before, after, change
    assert f"load_policy('{run.folder}/model')" in words
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_says_of_how_many_examples_and_shows_changed_answers_first(tmp_path: Path):
    run = Run.create(tmp_path / "a", CONFIG | {"settings": {"batch_size": 4}})
    run.add_facts(num_examples=1234)
    assert Run.load(run.folder).config == run.config
    record(run, whole_run())
    run.add_samples([{"prompt": name, "before": "x", "after": name} for name in ("x", "y")])
    words = " ".join("".join(Page(run.write_report().read_text()).words).split())
    assert "Complete: 4 steps of 4 examples, drawn from 1,234, in 2.0 s." in words
    assert words.index("Prompt 2") < words.index("Prompt 1")  # whose answer is as it was


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], "Nothing was measured yet"),
        ([step(1)], "Training batches, which are noisy"),
        ([evaluation(0)], "Not ended: the record reaches step 0"),
        ([step(1), Checkpoint(1, ""), Finished(1, 4, False, {}, 1.0)], "Stopped after step 1 of 4"),
    ],
    ids=["nothing", "one step", "one evaluation", "stopped"],
)
def test_a_run_that_was_cut_short_has_a_report_too(run: Run, events: list[Event], expected: str):
    record(run, events)
    page = run.write_report().read_text()
    assert expected in page
    assert "--resume" in page
    Page(page)


# ── several runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def several(tmp_path: Path) -> list[Run]:
    for name, beta in (("low", 0.05), ("high", 0.5)):
        settings = CONFIG["settings"] | {"beta": beta, "knobs": {"gamma": beta}, "run": name}
        record(Run.create(tmp_path / "runs" / name, CONFIG | {"settings": settings}), whole_run())
    return load_runs([tmp_path / "runs" / "low", tmp_path / "runs" / "high"])


def test_comparing_shows_what_differs_and_the_results(tmp_path: Path):
    rows = compare_runs(several(tmp_path))
    assert [row["run"] for row in rows] == ["low", "high"]
    assert [name for name in rows[0] if "loss" not in name][:4] == ["run", "beta", "knobs.gamma", "step"]
    assert [(row["beta"], row["knobs.gamma"], row["is_complete"]) for row in rows] == [
        (0.05, 0.05, True),
        (0.5, 0.5, True),
    ]
    assert rows[0]["eval_loss"] == pytest.approx(0.3)
    assert "loss" not in rows[0]  # the held-out one stands for it
    assert rows[0].keys() == rows[1].keys()


def test_a_run_without_evaluation_is_compared_by_its_training(tmp_path: Path):
    runs = several(tmp_path)
    bare = record(Run.create(tmp_path / "bare", CONFIG), [step(1, 0.25)])
    rows = compare_runs([*runs, bare])
    assert [row["loss"] for row in rows] == [0.5, 0.5, 0.25]
    assert rows[2]["eval_loss"] is None
    assert rows[2]["knobs.gamma"] is None
    assert rows[2]["is_complete"] is False


def test_a_folder_of_runs_stands_for_all_of_them(tmp_path: Path):
    several(tmp_path)
    assert [run.folder.name for run in load_runs([tmp_path / "runs"])] == ["high", "low"]
    with pytest.raises(ValueError, match="holds no run"):
        load_runs([tmp_path])
    with pytest.raises(ValueError, match="no folder was given"):
        load_runs([])


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path):
    runs = [Run.create(tmp_path / day / "a", CONFIG) for day in ("monday", "tuesday")]
    assert [row["run"] for row in compare_runs(runs)] == ["monday/a", "tuesday/a"]
    assert [row["run"] for row in compare_runs([runs[0], runs[0]])] == [
        f"{runs[0].folder} (1)",
        f"{runs[0].folder} (2)",
    ]


def test_the_comparison_is_drawn(tmp_path: Path):
    figure = comparison_figure(several(tmp_path))
    assert [ax.get_title("left") for ax in figure.axes if ax.axison] == [
        "Loss",
        "Reward margin",
        "Implicit rewards, chosen",
    ]
    with pytest.raises(ValueError, match="nothing to draw: empty recorded no metric yet"):
        comparison_figure([Run.create(tmp_path / "empty", CONFIG)])


def test_looking_at_runs_loads_neither_torch_nor_matplotlib(run: Run):
    record(run, whole_run())
    code = (
        "import sys; from dpo_lab.workbench.runs import compare_runs, load_runs\n"
        "compare_runs(load_runs(sys.argv[1:]))\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip() == "[]"


# ── with a real training ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_real_run_stopped_and_resumed_leaves_the_same_record(tmp_path: Path):
    from dpo_lab.training import train_dpo

    pairs, held = random_pairs(12), random_pairs(6, seed=1)
    config = DPOConfig(epochs=2, batch_size=4, learning_rate=1e-2, evaluate_every=2, checkpoint_every=2, device="cpu")

    def events(run: Run, **options):
        return train_dpo(tiny_llama(), None, pairs, config, held_out=held, checkpoints=run.checkpoints, **options)

    straight = Run.create(tmp_path / "straight", {"settings": vars(config)})
    for _ in straight.follow(events(straight)):
        pass
    broken = Run.create(tmp_path / "broken", {"settings": vars(config)})
    for event in broken.follow(events(broken)):
        if event.step == 3:
            break
    again = Run.create(tmp_path / "broken", {}, resume=True)
    stream = events(again, resume=again.checkpoints / "step-00000002")
    again.rewind(2)
    for _ in again.follow(stream):
        pass
    assert without_seconds(again.metrics) == without_seconds(straight.metrics)
    assert again.margins == straight.margins
    assert [row["step"] for row in straight.metrics if row["kind"] == "evaluation"] == [0, 2, 4, 6]
    assert straight.summary()["is_complete"]
    Page(again.write_report().read_text())


def test_an_sft_run_has_a_report(tmp_path: Path):
    from dpo_lab.preferences import TokenData
    from dpo_lab.training import train_sft

    data = TokenData.from_rows([(np.arange(3, 6, dtype=np.int32), (np.arange(6, 9, dtype=np.int32),))] * 4)
    run = Run.create(tmp_path / "sft", {"command": "sft", "settings": vars(SFTConfig(epochs=2, batch_size=2))})
    for _ in run.follow(
        train_sft(tiny_llama(), None, data, SFTConfig(epochs=2, batch_size=2, device="cpu"), held_out=data)
    ):
        pass
    page = run.write_report().read_text()
    assert "Supervised fine-tuning" in page
    assert "Perplexity" in page
    Page(page)
