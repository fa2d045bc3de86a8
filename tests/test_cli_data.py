"""The command's words about data: columns under other names, several answers, escape codes; inspect and convert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_lab.preferences import read_preferences
from dpo_lab.preferences.writing import WRITERS
from dpo_lab.workbench.cli.options import ConvertOptions
from dpo_lab.workbench.runs import Run
from tests.command_line import QUICK, chat_model, dpo_lab, some_rows, without_seconds, write_rows

ROWS = some_rows(12)
OTHER = [{"question": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in ROWS]
COLUMNS = ("--columns", "prompt=question", "chosen=good", "rejected=bad")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    chat_model(folder / "model")
    write_rows(folder / "pairs.jsonl", ROWS)
    write_rows(folder / "other.jsonl", OTHER)
    return folder


@pytest.fixture
def tell(capsys, monkeypatch, tmp_path, shelf):
    """Call `dpo-lab` in an empty folder; SHELF in an argument stands for the shelf."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: dpo_lab(capsys, *(str(word).replace("SHELF", str(shelf)) for word in arguments))


def test_columns_under_other_names_train_the_same_and_stay_with_the_run(tell, tmp_path):
    common = ("train", "--model", "SHELF/model", *QUICK, "--validation", "0.2", "--max-steps", 2)
    assert tell(*common, "--pairs", "SHELF/pairs.jsonl", "--run", "plain").status == 0
    assert tell(*common, "--pairs", "SHELF/other.jsonl", *COLUMNS, "--run", "other").status == 0
    plain, other = (Run.load(tmp_path / name) for name in ("plain", "other"))
    assert without_seconds(plain.metrics) == without_seconds(other.metrics)
    assert other.config["settings"]["columns"] == ["prompt=question", "chosen=good", "rejected=bad"]
    assert tell("train", "--run", "other", "--resume").status == 0
    outcome = tell("train", "--run", "other", "--resume", "--columns", "prompt=bad")
    assert (outcome.status, "was begun with" in outcome.message) == (2, True)


def test_other_commands_take_columns_too(tell):
    reads = ("--model", "SHELF/model", "--pairs", "SHELF/other.jsonl", *COLUMNS, "--device", "cpu")
    assert tell("cache", *reads).status == 0
    assert tell("evaluate", *reads, "--reference", "SHELF/model", "--kl-prompts", 0).status == 0
    assert tell("sample", *reads, "--limit", 1, "--max-new-tokens", 2).status == 0
    outcome = tell("sample", *reads[:4])
    assert outcome.message.startswith(
        "dpo-lab: other.jsonl, line 1: field 'chosen' is missing; the row has question, good, bad"
    )
    assert "--columns" in outcome.message
    outcome = tell("cache", *reads[:4], "--columns", "prompt:question")
    assert "columns are given as NAME=COLUMN, got 'prompt:question'; write prompt=question" in outcome.message


def test_a_sweep_writes_down_and_reads_back_its_columns(tmp_path):
    from dpo_lab.workbench.sweeps.settings import SweepSettings
    from dpo_lab.workbench.sweeps.study import SETTINGS, read_settings
    from dpo_lab.workbench.sweeps.sweep import train_line

    settings = SweepSettings(columns=COLUMNS[1:], pairing="all")
    (tmp_path / SETTINGS).write_text(json.dumps(vars(settings)))
    assert read_settings(tmp_path) == settings
    assert "--columns prompt=question chosen=good rejected=bad --pairing all" in train_line({}, settings)
    (tmp_path / SETTINGS).write_text(json.dumps(vars(settings) | {"columns": [3]}))
    with pytest.raises(ValueError, match="columns can't be"):
        read_settings(tmp_path)


def test_escape_codes_of_data_do_not_reach_the_terminal(tell):
    evil = {"prompt": "\x1b[2J\x1b]0;owned\x07hi\x9b31m", "chosen": "yes", "rejected": "no"}
    write_rows(path := Path("evil.jsonl"), [evil, {"\x1b[31mprompt": 1}])
    outcome = tell("sample", "--model", "SHELF/model", "--pairs", path, "--on-bad-row", "skip", "--max-new-tokens", 1)
    assert outcome.status == 0
    assert "␛[2J" in outcome.out
    refused = tell("sample", "--model", "SHELF/model", "--pairs", path)
    assert "␛[31mprompt" in refused.err
    assert not set("\x1b\x07\x9b") & set(outcome.out + outcome.err + refused.out + refused.err)


def test_inspect_shows_layout_reports_and_rows_as_tokens(tell):
    outcome = tell("inspect", "SHELF/other.jsonl", "--model", "SHELF/model", *COLUMNS, "--rows", 2, "--max-length", 40)
    assert outcome.status == 0, outcome
    assert "12 rows read, 12 kept (layout: explicit)" in outcome.out
    assert "chat template: none; end token: <|im_end|>" in outcome.out
    assert outcome.out.count("    prompt ") == outcome.out.count("  rejected |") == 2
    assert "other.jsonl, line 1" in outcome.out
    assert tell("inspect", "embedded", "--rows", 1, "--limit", 5).status == 0


@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
def test_convert_writes_a_file_that_reads_back_as_the_same_rows(tell, tmp_path, name):
    outcome = tell("convert", "SHELF/other.jsonl", name, *COLUMNS)
    assert outcome.status == 0, outcome
    assert "12 rows written as trl: out.json" in outcome.out
    assert read_preferences(tmp_path / name)[0] == ROWS
    assert f"{name} is there already, and no file is written over" in tell("convert", "embedded", name).message
    name = f"other-{name}"
    assert tell("convert", "SHELF/pairs.jsonl", f"turns-{name}", "--to", "openai").status == 0
    [first, *_] = read_preferences(tmp_path / f"turns-{name}")[0]
    assert first["prompt"][-1]["role"] == "user", "plain text becomes turns"
    assert tell("convert", "embedded", name, "--to", "openai", "--limit", 5, "--on-bad-row", "skip").status == 0
    outcome = tell("convert", "SHELF/pairs.jsonl", "out.xlsx")
    assert "out.xlsx must end in .jsonl or .json" in outcome.message


def test_the_layouts_of_convert_are_those_that_are_written():
    from typing import get_args, get_type_hints

    assert get_args(get_type_hints(ConvertOptions)["to"]) == tuple(WRITERS)


def test_a_single_pair_is_cached_though_none_can_be_held_out(tell, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    assert "1 pairs computed" in tell("cache", "--pairs", "one.jsonl", "--device", "cpu").out.replace(
        "1 pair ", "1 pairs "
    )
