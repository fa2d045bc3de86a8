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
    said = [[line for line in seen.out.splitlines() if "rows" in line] for seen in (first, second)]
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


# ── what the commands say of data ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tell(capsys, monkeypatch, tmp_path):
    """Call `dpo-lab` in a folder with a model and thirty pairs."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    chat_model(tmp_path / "model")
    write_rows(tmp_path / "pairs.jsonl", some_rows(30))
    return lambda *arguments: dpo_lab(capsys, *arguments)


TRAIN = ("train", "--model", "model", *QUICK, "--max-steps", 1, "--run", "run")


@pytest.mark.parametrize("option", ["--model", "--pairs", "--held-out"])
def test_an_empty_name_is_refused(tell, option):
    seen = tell(*TRAIN, "--pairs", "pairs.jsonl", option, "")
    assert (seen.status, f"{option} is empty, as with a shell variable that is not set" in seen.message) == (2, True)
    seen = tell("inspect", "")
    assert (seen.status, "the name of the data is empty" in seen.message) == (2, True)


def test_a_share_cannot_be_held_out_of_a_stream(tell):
    stream = (*TRAIN, "--pairs", "pairs.jsonl", "--tokens", "tokens")
    seen = tell(*stream, "--validation", 0.2)
    assert seen.status == 2
    assert "--tokens streams all rows, and --validation 0.2 cannot hold some of them out; give" in seen.message
    seen = tell(*stream)
    assert seen.status == 0, seen
    assert "nothing is held out: rows are streamed; give --held-out DATA" in seen.out.replace("\n", " ")


def test_every_row_that_is_left_out_is_listed(tell, tmp_path):
    write_rows(tmp_path / "a.jsonl", [*some_rows(8), *({"prompt": n} for n in range(30))])
    for run in ("first", "again"):  # the second time from what was saved
        seen = tell(*TRAIN, "--pairs", "a.jsonl", "--on-bad-row", "skip", "--run", run)
        assert seen.status == 0, seen
        assert all(f"a.jsonl, line {line}: field 'prompt'" in seen.out for line in range(9, 39))
    seen = tell("inspect", "a.jsonl", "--model", "model", "--rows", 0)
    assert "a.jsonl, line 38: " in seen.out


def test_held_out_data_that_are_the_pairs_are_refused(tell, tmp_path):
    say = "is --pairs: the same rows would be learnt and judged; leave it out (--validation holds rows out)"
    for name in ("pairs.jsonl", "./pairs.jsonl", tmp_path / "pairs.jsonl"):
        seen = tell(*TRAIN, "--pairs", "pairs.jsonl", "--held-out", name)
        assert (seen.status, f"--held-out {name} {say}" in seen.message) == (2, True), seen
    names = ["test", *["train"] * 8]
    write_rows(tmp_path / "split.jsonl", [row | {"split": name} for row, name in zip(some_rows(9), names, strict=True)])
    both = (*TRAIN, "--pairs", "split.jsonl", "--held-out", "split.jsonl")
    assert say in tell(*both).message, "without --split the test rows are learnt too"
    assert say in tell(*both, "--split", "test").message
    seen = tell(*both, "--split", "train")
    assert seen.status == 0, seen
    assert "8 rows to train on, 1 held out" in seen.out


def test_columns_that_say_nothing_or_two_things_are_refused(tell):
    for command in (("inspect", "embedded"), (*TRAIN, "--pairs", "embedded"), ("cache", "--model", "model")):
        seen = tell(*command, "--columns", "prompt=question")
        assert seen.status == 2
        assert "--columns prompt=question has no effect on the embedded data; leave it out" in seen.message
    seen = tell("inspect", "pairs.jsonl", "--model", "model", "--columns", "prompt=a", "prompt=b")
    assert (seen.status, "--columns names a field more than once, got prompt=a prompt=b" in seen.message) == (2, True)


def test_inspect_shows_label_and_weight_and_ends_with_2_where_nothing_is_kept(tell, tmp_path):
    answer = {"prompt": "the cat", "completion": "sat"}
    write_rows(tmp_path / "a.jsonl", [{**answer, "label": True}, {**answer, "label": False, "weight": 0.5}])
    seen = tell("inspect", "a.jsonl", "--model", "model")
    assert "a.jsonl, line 1, label true\n" in seen.out
    assert "a.jsonl, line 2, label false, weight 0.5\n" in seen.out
    assert "label" not in tell("inspect", "pairs.jsonl", "--model", "model", "--rows", 1).out
    seen = tell("inspect", "a.jsonl", "--model", "model", "--rows", -1)
    assert (seen.status, "rows to show must not be negative, got -1; 0 shows" in seen.message) == (2, True)
    write_rows(tmp_path / "long.jsonl", [row | {"system": "be brief " * 30} for row in some_rows(3)])
    seen = tell("inspect", "long.jsonl", "--model", "model", "--max-length", 20)
    assert (seen.status, "of long.jsonl no row is kept to learn from; the report above" in seen.message) == (2, True)
    assert "3 rows tokenised, 0 kept\nleft out, unusable: 3\n" in seen.out, "no word of an end token"
    for command in (("cache",), ("evaluate", "--reference", "model")):
        seen = tell(*command, "--model", "model", "--pairs", "long.jsonl", "--max-length", 20, "--on-bad-row", "skip")
        assert seen.status == 2
        assert f"{seen.out}{seen.err}".count("tokenised, 0 kept") == 1


def test_prompts_alone_are_sampled_from(tell, tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"prompt": "the cat"}, {"prompt": "the dog", "completion": "sat", "label": 0}])
    seen = tell("sample", "--model", "model", "--pairs", "a.jsonl", "--max-new-tokens", 2)
    assert seen.status == 0, seen
    assert "2 kept (layout: prompt)" in seen.out
    assert seen.out.count("→ ") == 2


def test_one_pair_has_no_standard_error_and_a_reference_may_never_move(tell):
    seen = tell("evaluate", "--model", "model", "--reference", "model", "--pairs", "pairs.jsonl", "--limit", 1)
    assert seen.status == 0, seen
    assert "needs two rows" in seen.out
    assert "nan" not in seen.out
    move = (*TRAIN, "--pairs", "pairs.jsonl", "--max-steps", 2, "--sync-reference")
    say = "it would move after step 2, and there are 2: it never moves"
    assert say in tell(*move, 2, "--run", "a").out.replace("\n", " ")
    assert "reference: it follows the policy" in tell(*move, 1, "--run", "b").out
