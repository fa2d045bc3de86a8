"""The data of a run, cached on disk: as if made anew, and made anew whenever anything it is made of has changed."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpo_lab.preferences import token_cache
from dpo_lab.preferences.token_cache import EXAMPLES, MAX_DATA_SETS, PAIRS, DataSettings, PreparedData, prepare
from dpo_lab.reference import ReferenceCache
from dpo_lab.storage.logp_store import token_cache_folder
from dpo_lab.workbench.cli.options import RunOptions
from dpo_lab.workbench.recipes import Recipe
from dpo_lab.workbench.runs import Run
from tests.command_line import QUICK, chat_model, dpo_lab, some_rows, without_seconds, write_rows
from tests.small_tokenizers import CHATML, bpe

ARRAYS = ("ids", "bounds", "weights", "source_rows")


@pytest.fixture
def settings(tmp_path: Path) -> DataSettings:
    return DataSettings(pairs=str(write_rows(tmp_path / "pairs.jsonl", some_rows(30))), validation=0.2)


@pytest.fixture
def counted(monkeypatch):
    """How often rows were read."""
    calls = []

    def read(*arguments, **options):
        calls.append(arguments)
        return PAIRS.read(*arguments, **options)

    return PAIRS._replace(read=read), calls


def assert_same(one: PreparedData, other: PreparedData) -> None:
    for mine, theirs in ((one.train, other.train), (one.held, other.held)):
        assert (mine is None) == (theirs is None)
        for name in ARRAYS if mine is not None else ():
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert one.held_rows == other.held_rows


def saved_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("validation", [0.2, 0.0])
def test_what_was_saved_is_mapped_and_is_what_is_made_anew(settings, counted, tmp_path, validation):
    settings, (kind, calls) = replace(settings, validation=validation), counted
    notes: dict[str, list[str]] = {"anew": [], "first": [], "second": []}
    anew = prepare(settings, bpe(), log=notes["anew"].append)
    first = prepare(settings, bpe(), kind, folder=tmp_path / "saved", log=notes["first"].append)
    assert len(calls) == 1
    second = prepare(settings, bpe(), kind, folder=tmp_path / "saved", log=notes["second"].append)
    assert len(calls) == 1
    assert_same(first, anew)
    assert_same(second, anew)
    assert isinstance(second.train.ids, np.memmap)
    assert notes["anew"] == notes["first"] == notes["second"]
    assert "30 rows read" in notes["second"][0]


def test_any_change_of_what_the_data_is_made_of_is_another_key(settings, tmp_path, monkeypatch):
    folder, path = tmp_path / "saved", Path(settings.pairs)
    template = bpe(template=CHATML, eos="<|im_end|>")
    for changed in (
        settings, replace(settings, max_length=12), replace(settings, seed=3), replace(settings, validation=0.3),
        replace(settings, limit=10), replace(settings, on_bad_row="skip"),
        replace(settings, columns=("prompt=prompt",)),
        replace(settings, held_out=str(write_rows(tmp_path / "held.jsonl", some_rows(4)))),
    ):  # fmt: skip
        before = len(saved_in(folder))
        assert_same(prepare(changed, bpe(), folder=folder), prepare(changed, bpe()))
        assert len(saved_in(folder)) == min(before + 1, MAX_DATA_SETS)
    prepare(settings, template, folder=folder)
    assert len(saved_in(folder)) == MAX_DATA_SETS == 8
    keys = {token_cache._key(settings, tokenizer, PAIRS) for tokenizer in (bpe(), bpe(bos=True), template)}
    keys.add(token_cache._key(settings, bpe(), EXAMPLES))
    rows = some_rows(30)
    rows[7]["chosen"] += "!"
    write_rows(path, rows)
    keys.add(token_cache._key(settings, bpe(), PAIRS))
    monkeypatch.setattr(token_cache, "version", lambda name: "0.0.1")
    keys.add(token_cache._key(settings, bpe(), PAIRS))
    own_code = {path.name: path for path in token_cache._OWN_CODE}
    assert {"tokens.py", "reading.py", "token_data.py", "token_files.py"} <= own_code.keys()
    for number, name in enumerate(("tokens.py", "token_files.py")):  # one in this folder, and the one that is not
        changed = tmp_path / str(number) / name
        changed.parent.mkdir()
        changed.write_bytes(own_code[name].read_bytes() + b"# changed\n")
        code = [changed if path.name == name else path for path in own_code.values()]
        monkeypatch.setattr(token_cache, "_OWN_CODE", code)
        keys.add(token_cache._key(settings, bpe(), PAIRS))
    assert len(keys) == 8
    assert None not in keys


def test_a_changed_file_is_read_again(settings, tmp_path):
    prepare(settings, bpe(), folder=tmp_path / "saved")
    write_rows(Path(settings.pairs), some_rows(31))
    data = prepare(settings, bpe(), folder=tmp_path / "saved")
    assert len(data.train) + len(data.held_rows) == 31


def test_a_file_that_changes_while_it_is_read_is_not_saved(settings, counted, tmp_path):
    def read(*arguments, **options):
        found = PAIRS.read(*arguments, **options)
        write_rows(Path(settings.pairs), some_rows(12))
        return found

    prepare(settings, bpe(), PAIRS._replace(read=read), folder=tmp_path / "saved")
    assert saved_in(tmp_path / "saved") == []


def test_the_seed_plays_no_part_where_nothing_is_drawn(settings, tmp_path):
    settings = replace(settings, held_out=settings.pairs, held_out_split=None, validation=0.0)
    settings = replace(settings, held_out=str(write_rows(tmp_path / "held.jsonl", some_rows(5))))
    keys = {token_cache._key(replace(settings, seed=seed), bpe(), PAIRS) for seed in range(3)}
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["prepared.json", "train/ids.npy", "held/bounds.npy"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_folder_is_reported_and_made_again(settings, tmp_path, caplog, name, harm):
    folder = tmp_path / "saved"
    anew = prepare(settings, bpe())
    prepare(settings, bpe(), folder=folder)
    path = saved_in(folder)[0] / name
    whole = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if harm == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with caplog.at_level(logging.WARNING):
        again = prepare(settings, bpe(), folder=folder)
    assert_same(again, anew)
    assert "cannot be used" in caplog.text
    assert path.read_bytes() == whole


def test_where_nothing_can_be_written_the_data_is_there_all_the_same(settings, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        data = prepare(settings, bpe(), folder=tmp_path / "file" / "tokens")
    assert len(data.train) == 24
    assert "cannot be saved" in caplog.text


def test_rows_that_json_cannot_give_back_are_not_saved(settings, tmp_path):
    def read(*arguments, **options):
        rows, report = PAIRS.read(*arguments, **options)
        return [row | {"when": {1: "one"}} for row in rows], report  # JSON would make the key a text

    data = prepare(settings, bpe(), PAIRS._replace(read=read), folder=tmp_path / "saved")
    assert data.held_rows[0]["when"] == {1: "one"}
    assert saved_in(tmp_path / "saved") == []


def test_a_tokenizer_with_code_of_its_own_is_not_saved(settings, tmp_path):
    class Own(type(bpe())):
        pass

    tokenizer = Own(tokenizer_object=bpe().backend_tokenizer, eos_token="<eos>")
    assert len(prepare(settings, tokenizer, folder=tmp_path / "saved").train) == 24
    assert saved_in(tmp_path / "saved") == []


def test_only_the_data_sets_used_last_stay(settings, tmp_path):
    folder = tmp_path / "saved"
    for seed in range(MAX_DATA_SETS + 2):
        prepare(replace(settings, seed=seed), bpe(), folder=folder)
    assert len(saved_in(folder)) == MAX_DATA_SETS
    keys = [token_cache._key(replace(settings, seed=seed), bpe(), PAIRS) for seed in range(MAX_DATA_SETS + 2)]
    assert {path.name for path in saved_in(folder)} == set(keys[2:])


def test_what_others_have_in_the_folder_stays_and_what_a_killed_run_left_goes(settings, tmp_path):
    folder, key = tmp_path / "saved", "0123456789abcdef" * 4
    others = [folder / name for name in ("notes", "a.partial", key[:-1], f"{key}.1.partial-of-mine", key.upper())]
    left, written_now = folder / f"{key}.41.partial", folder / f"{key}.42.partial"
    for path in (*others, left, written_now):
        path.mkdir(parents=True)
    for path in (*others, left):
        os.utime(path, (1, 1))  # older than anything saved
    for seed in range(MAX_DATA_SETS + 1):
        prepare(replace(settings, seed=seed), bpe(), folder=folder)
    assert len(saved_in(folder)) == len(others) + MAX_DATA_SETS + 1
    assert all(path.is_dir() for path in (*others, written_now))


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_second_run_reads_and_tokenises_nothing_and_is_the_same(capsys, tmp_path, monkeypatch, command):
    pairs = write_rows(tmp_path / "pairs.jsonl", some_rows(24))
    inputs = ("--model", chat_model(tmp_path / "model"), "--pairs", pairs, "--max-steps", 2)
    quick = QUICK if command == "train" else tuple(part for part in QUICK if part not in ("--kl-prompts", "2"))
    first = dpo_lab(capsys, command, *inputs, *quick, "--run", tmp_path / "one")
    assert first.status == 0, first.err
    monkeypatch.setattr("dpo_lab.preferences.tokens._tokenize", None)
    monkeypatch.setattr("dpo_lab.preferences.reading._open", None)
    second = dpo_lab(capsys, command, *inputs, *quick, "--run", tmp_path / "two")
    assert second.status == 0, second.err
    runs = [Run.load(tmp_path / name) for name in ("one", "two")]
    assert without_seconds(runs[0].metrics) == without_seconds(runs[1].metrics)
    assert runs[0].samples == runs[1].samples
    said = [[line for line in told.out.splitlines() if "rows" in line] for told in (first, second)]
    assert said[0] == said[1]
    assert said[0]


def test_the_folder_lies_beside_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_LAB_CACHE", str(tmp_path / "own"))
    (tmp_path / "folder").mkdir()
    for path in (None, tmp_path / "folder", tmp_path / "there" / "file.sqlite"):
        with ReferenceCache(path) as cache:
            assert token_cache_folder(path) == cache.path.parent / f"{cache.path.name}-tokens"


def test_the_settings_are_the_command_lines_options():
    options = set(RunOptions.__dataclass_fields__)
    assert set(DataSettings.__dataclass_fields__) - options == {
        "seed",
        "max_length",
        "score_turns",
    }  # those of the training
    recipe = Recipe(pairs="here.jsonl", limit=20, validation=0.3)
    assert recipe.data == DataSettings(
        pairs="here.jsonl", limit=20, validation=0.3, max_length=recipe.config.max_length
    )


def test_what_is_saved_is_plain_to_read(settings, tmp_path):
    prepare(settings, bpe(), folder=tmp_path / "saved")
    text = (saved_in(tmp_path / "saved")[0] / "prepared.json").read_text()
    assert len(json.loads(text.partition("\n")[2])["held_rows"]) == 6
