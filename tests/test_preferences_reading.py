"""Sources and their splits, exact data sets, the validation split."""
# ruff: noqa: E501  tables of cases read best with one case on a line

import builtins
import datetime
import gzip
import json
import random
import subprocess
import sys

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_lab.preferences import load_examples, load_preferences, read_examples, read_preferences, split_rows
from dpo_lab.storage.embedded import embedded_path

QUICK = settings(max_examples=50, deadline=None)


def rows(start, count=2):
    return [{"prompt": f"p{n}", "chosen": "yes", "rejected": "no"} for n in range(start, start + count)]


def write(path, start, count=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(start, count)))


def prompts(source, split=None, **arguments):
    return [row["prompt"] for row in read_preferences(source, split, **arguments)[0]]


# Splits of folders


def test_a_folder_has_the_splits_that_its_file_names_say(tmp_path):
    for start, name in enumerate(("train.jsonl", "my-validation.jsonl", "test_set.jsonl")):
        write(tmp_path / name, start * 10)
    assert prompts(tmp_path) == prompts(str(tmp_path), "train") == ["p0", "p1"]
    assert prompts(tmp_path, "validation") == ["p10", "p11"]
    assert prompts(tmp_path, "test") == ["p20", "p21"]
    assert "other splits, not read: test, validation" in read_preferences(tmp_path)[1].summary()
    with pytest.raises(ValueError, match=r"split 'dev' is not in .*; it has test, train, validation"):
        read_preferences(tmp_path, "dev")


def test_shards_laid_out_as_on_the_hub_are_joined_in_order(tmp_path):
    for shard in (1, 0):
        write(tmp_path / "data" / f"train_prefs-0000{shard}-of-00002.jsonl", shard * 10)
    write(tmp_path / "data" / "test_prefs-00000-of-00001.jsonl", 50)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert prompts(tmp_path, "train_prefs") == ["p0", "p1", "p10", "p11"]
    with pytest.raises(
        ValueError, match="has several splits and none is called train; choose one of test_prefs, train_prefs"
    ):
        read_preferences(tmp_path)


def test_folders_can_be_splits_and_hidden_files_are_none(tmp_path):
    write(tmp_path / "train" / "a.jsonl", 0)
    write(tmp_path / "test" / "a.jsonl", 10)
    write(tmp_path / ".cache" / "train.jsonl", 20)
    assert prompts(tmp_path) == ["p0", "p1"]
    assert prompts(tmp_path, "test") == ["p10", "p11"]


def test_files_that_say_no_split_are_all_training_data(tmp_path):
    write(tmp_path / "a.jsonl", 0)
    write(tmp_path / "b.jsonl", 10)
    assert prompts(tmp_path, "train") == ["p0", "p1", "p10", "p11"]


def test_a_file_that_says_none_beside_files_that_do_is_a_split_of_its_own_name(tmp_path):
    write(tmp_path / "train.jsonl", 0)
    write(tmp_path / "sft.jsonl", 10)
    assert prompts(tmp_path) == ["p0", "p1"]
    assert [row["prompt"] for row in read_examples(tmp_path)[0]] == ["p10", "p11"]


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"holds no data file \(.jsonl, .*; it holds notes.txt"):
        read_preferences(tmp_path)


def test_a_single_file_has_a_split_only_where_its_name_or_its_rows_say_so(tmp_path):
    write(tmp_path / "test" / "train.jsonl", 0)
    path = tmp_path / "test" / "train.jsonl"
    assert prompts(path, "train") == ["p0", "p1"]
    with pytest.raises(
        ValueError, match=r"split 'test' is not in train.jsonl: it has no column 'split'; leave `split` out"
    ):
        read_preferences(path, "test")
    marked = [{**row, "split": name} for row, name in zip(rows(0, 3), ("train", "test", "train"), strict=True)]
    assert prompts(marked, "train") == ["p0", "p2"]
    with pytest.raises(ValueError, match="split 'dev' is not in the rows: its column 'split' says train, test"):
        read_preferences(marked, "dev")


# Data sets in memory, on disk, on the Hub


def test_data_sets_and_mappings_of_splits_are_read(tmp_path):
    train, test = datasets.Dataset.from_list(rows(0)), datasets.Dataset.from_list(rows(10))
    both = datasets.DatasetDict({"train": train, "test": test})
    assert prompts(train) == ["p0", "p1"]
    assert prompts(both) == ["p0", "p1"]
    assert prompts(both, "test") == ["p10", "p11"]
    assert prompts({"test": rows(3)}) == ["p3", "p4"]
    assert prompts(iter(rows(5))) == ["p5", "p6"]
    both.save_to_disk(tmp_path / "saved")
    assert prompts(tmp_path / "saved", "test") == ["p10", "p11"]
    train.save_to_disk(tmp_path / "one")
    assert prompts(str(tmp_path / "one")) == ["p0", "p1"]
    with pytest.raises(ValueError, match="split 'dev' is not in the mapping; it has test, train"):
        read_preferences(both, "dev")


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="a source is a path, a Hub id, a data set or a list of dicts, got 3"):
        read_preferences(3)


def test_a_hub_id_is_loaded_with_its_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(*arguments, **more):
        asked.append((arguments, more))
        train = datasets.Dataset.from_list(rows(0))
        return train if more["split"] else datasets.DatasetDict({"train": train, "test": train})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert prompts("owner/name:config", "train[:1%]") == ["p0", "p1"]
    _, report = read_preferences("owner/name")
    assert asked == [(("owner/name", "config"), {"split": "train[:1%]"}), (("owner/name", None), {"split": None})]
    assert (report.source, report.split) == ("owner/name", "train")


class GatedRepoError(Exception):
    pass


@pytest.mark.parametrize(
    ("problem", "kind", "message"),
    [
        (ConnectionError("Couldn't reach it"), ConnectionError, "the Hub cannot be reached .*; check the path, go online"),
        (datasets.exceptions.DatasetNotFoundError("no"), FileNotFoundError, "neither a file here nor a data set on the Hub"),
        (GatedRepoError("401"), PermissionError, "is gated: accept its terms on huggingface.co/datasets/owner/name"),
        (ValueError('Unknown split "dev". Should be one of [train]'), ValueError, "split 'dev' is not in owner/name: Unknown"),
        (ValueError("Config name is missing."), ValueError, "several configurations, write owner/name:configuration"),
        (KeyError("something new"), KeyError, "something new"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_explained(monkeypatch, problem, kind, message):
    def refuse(*_arguments, **_more):
        raise problem

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(kind, match=message):
        load_preferences("owner/name", "dev")


def test_offline_the_real_library_is_explained_too():
    code = "from dpo_lab.preferences import load_preferences as l\ntry: l('no/such')\nexcept ConnectionError as e: print(e)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
        check=True,
    )
    assert "no/such is not a file here and the Hub cannot be reached" in run.stdout


def test_a_slip_in_a_path_does_not_go_to_the_hub(tmp_path, monkeypatch):
    (tmp_path / "pairs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_a, **_k: pytest.fail("asked the Hub"))
    for text in ("pairs/trian", "embeded", "./owner/name", "owner/name.jsonl"):
        with pytest.raises(FileNotFoundError, match="a Hub id such as owner/name"):
            read_preferences(text)


# What is kept, what is drawn


def test_limit_draws_evenly_by_seed_and_keeps_the_order():
    first, report = read_preferences(rows(0, 100), limit=10, seed=1)
    numbers = [int(row["prompt"][1:]) for row in first]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 10
    assert max(numbers) > 50
    assert report.not_drawn == 90
    assert prompts(rows(0, 100), limit=10, seed=1) == [row["prompt"] for row in first]
    assert prompts(rows(0, 100), limit=10, seed=2) != [row["prompt"] for row in first]
    assert len(prompts(rows(0, 5), limit=10)) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"on_bad_row": "drop"}, "on_bad_row must be 'raise' or 'skip'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_preferences(rows(0), **arguments)


def test_what_was_left_out_is_logged_and_silence_means_nothing_was(caplog):
    load_preferences(rows(0))
    assert not caplog.records
    load_preferences([*rows(0), {"prompt": "q", "chosen": "same", "rejected": "same"}])
    assert "states no preference: 1 (row 2)" in caplog.text


# Exact data sets


def call(name, arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]}


def tool_rows():
    tools = [
        {
            "type": "function",
            "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
        },
        {
            "type": "function",
            "function": {"name": "convert", "parameters": {"properties": {"amount": {"enum": [1, 2.5]}}}},
        },
    ]
    ask = [{"role": "user", "content": "?"}]
    return [
        {"prompt": ask, "chosen": [call("weather", {"city": "Zürich"})], "rejected": [call("convert", {"amount": 1, "to": None})],
         "tools": tools, "reward": 1, "job": "tools"},
        {"prompt": [*ask, call("weather", '{"city": '), {"role": "tool", "content": "42", "name": "weather"}],
         "chosen": [{"role": "assistant", "content": "42"}], "rejected": [call("convert", {"amount": 2.5, "deep": [{"a": 1}, {"b": []}]})],
         "tools": tools[:1], "reward": 2.5, "job": "tools"},
        {"prompt": ask, "chosen": [{"role": "assistant", "content": "123"}], "rejected": [{"role": "assistant", "content": "true"}],
         "reward": None, "job": None},
    ]  # fmt: skip


def lacking(row, names):
    return {name: row.get(name) for name in names}


def typed(value):
    """Equality that tells 1 from 1.0 and from True."""
    return json.dumps(value, sort_keys=True)


needs_json = pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this release of datasets has no type for them")


@needs_json
def test_tools_and_messages_come_back_from_a_data_set_exactly():
    data = load_preferences(tool_rows())
    assert isinstance(data, datasets.Dataset)
    for got, given_row in zip(data, tool_rows(), strict=True):
        assert typed(got) == typed(lacking(given_row, data.column_names))
    assert typed(list(data.select([2, 0]))) == typed([lacking(tool_rows()[i], data.column_names) for i in (2, 0)])
    again, _ = read_preferences(data)
    assert [row["prompt"] for row in again] == [row["prompt"] for row in tool_rows()]
    assert [row.get("tools") for row in again] == [row.get("tools") for row in tool_rows()]


def test_without_a_type_for_tools_rows_come_as_a_list_and_it_is_said(monkeypatch, caplog):
    monkeypatch.delattr(datasets, "Json", raising=False)
    data = load_preferences(tool_rows())
    assert isinstance(data, list)
    assert [typed(lacking(row, list(given_row))) for row, given_row in zip(data, tool_rows(), strict=True)] == [
        typed(row) for row in tool_rows()
    ]
    assert "does not fit a datasets.Dataset exactly: the rows are a list of dicts" in caplog.text


def test_text_that_looks_like_json_stays_text():
    mixed = [{"prompt": "42", "chosen": "true", "rejected": "[1]", "note": "7"}, {**rows(0)[0], "note": 7}]
    assert [row["note"] for row in load_preferences(mixed)] == ["7", 7]
    assert load_preferences(mixed)[0]["prompt"] == "42"
    both = [{"prompt": "42", "chosen": "a", "rejected": "b"}, {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}]  # fmt: skip
    assert [row["prompt"] for row in load_preferences(both)] == ["42", [{"role": "user", "content": "q"}]]


def test_plain_columns_stay_plain_arrow_columns():
    data = load_preferences(
        [{**row, "score": 0.1, "n": 3, "ok": True, "day": datetime.date(2024, 2, 29)} for row in rows(0)]
    )
    kinds = {name: getattr(data.features[name], "dtype", None) for name in data.column_names}
    assert kinds == {"prompt": "string", "chosen": "string", "rejected": "string", "score": "float64", "n": "int64",
                     "ok": "bool", "day": "date32"}  # fmt: skip


@pytest.mark.parametrize("value", [{"x": 2**70}, {"x": 0.1 + 0.2}, {1: 2}, 2**70])
def test_what_a_data_set_cannot_hold_exactly_comes_as_a_list_and_is_said(value, caplog):
    data = load_preferences([{**row, "extra": value} for row in rows(0)])
    if isinstance(data, list):
        assert "column 'extra' does not fit a datasets.Dataset exactly" in caplog.text
    assert data[0]["extra"] == value


def test_without_datasets_the_rows_are_a_list(monkeypatch):
    real_import = builtins.__import__

    def without(name, *arguments, **more):
        if name == "datasets":
            raise ImportError(name)
        return real_import(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert load_preferences(rows(0)) == rows(0)
    assert load_examples(rows(0, 1)) == [{"prompt": "p0", "completion": "yes"}]
    with pytest.raises(ImportError, match="reading owner/name from the Hub needs the package `datasets`"):
        load_preferences("owner/name")


def test_importing_preferences_loads_neither_torch_nor_transformers_nor_datasets():
    code = "import sys, dpo_lab.preferences; print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


# Validation split


@QUICK
@given(st.lists(st.integers(0, 30), min_size=2, max_size=120), st.floats(0.02, 0.98), st.integers(0, 5))
def test_a_prompt_stands_on_one_side_and_nothing_is_lost(names, share, seed):
    given_rows = [{"prompt": f"p{name}", "n": n} for n, name in enumerate(names)]
    if len(set(names)) < 2:
        with pytest.raises(ValueError, match=r"with 1 distinct prompt\(s\) cannot be split"):
            split_rows(given_rows, share, seed)
        return
    train, validation = split_rows(given_rows, share, seed)
    assert train
    assert validation
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in validation}
    assert sorted([*train, *validation], key=lambda row: row["n"]) == given_rows


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_close_to_what_was_asked(share):
    generator = random.Random(0)
    given_rows = [{"prompt": f"p{generator.randrange(500)}"} for _ in range(1000)]
    _, validation = split_rows(given_rows, share)
    assert abs(len(validation) - 1000 * share) <= 2


def test_the_split_depends_on_prompts_and_seed_not_on_the_order():
    given_rows = rows(0, 200)
    train, validation = split_rows(given_rows, 0.1, seed=3)
    shuffled = random.Random(1).sample(given_rows, 200)
    assert {row["prompt"] for row in split_rows(shuffled, 0.1, seed=3)[1]} == {row["prompt"] for row in validation}
    assert split_rows(given_rows, 0.1, seed=4)[1] != validation
    more, _ = split_rows([*given_rows, *rows(1000, 5)], 0.1, seed=3)
    kept = {row["prompt"] for row in train} & {row["prompt"] for row in more}
    assert len(kept) >= len(train) - 3


@needs_json
def test_a_data_set_is_split_into_data_sets_just_like_its_rows():
    data = load_preferences(tool_rows())
    train, validation = split_rows(data, 0.3)
    assert isinstance(train, datasets.Dataset)
    expected, held = split_rows(tool_rows(), 0.3)
    assert [row["prompt"] for row in train] == [row["prompt"] for row in expected]
    assert [row["prompt"] for row in validation] == [row["prompt"] for row in held]


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan"), 100])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(ValueError, match=r"validation is a share and must lie in \(0, 1\)"):
        split_rows(rows(0), share)


# Embedded data


def test_embedded_data_is_found_in_the_wheel_or_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_lab.storage.embedded._PACKAGE", tmp_path / "dpo_lab")
    with pytest.raises(FileNotFoundError, match=r"embedded pairs/train.jsonl.gz is missing: .*install the wheel again"):
        embedded_path("pairs", "train.jsonl.gz")
    write(tmp_path / "data" / "pairs" / "train.jsonl", 0)
    write(tmp_path / "data" / "pairs" / "test.jsonl", 10)
    write(tmp_path / "data" / "pairs" / "sft.jsonl", 20)
    assert prompts("embedded") == ["p0", "p1"]
    assert prompts("embedded", "test") == ["p10", "p11"]
    assert [row["prompt"] for row in read_examples("embedded")[0]] == ["p20", "p21"]
    write(tmp_path / "dpo_lab" / "_data" / "pairs" / "train.jsonl", 30)
    assert prompts("embedded") == ["p30", "p31"]


def test_numpy_values_are_no_messages():
    with pytest.raises(ValueError, match="must be a message, got 1"):
        read_preferences([{"prompt": np.array([1]), "chosen": "a", "rejected": "b"}])


# What a source says beside its texts


def class_labels(names, column="label"):
    kinds = {name: datasets.Value("string") for name in ("prompt", "completion")}
    kinds[column] = datasets.ClassLabel(names=names)
    given_rows = {"prompt": ["a", "b"], "completion": ["x", "y"], column: [0, 1]}
    return datasets.Dataset.from_dict(given_rows, features=datasets.Features(kinds))


@pytest.mark.parametrize("where", ["memory", "stream", "disk", "parquet"])
def test_a_class_is_read_by_its_name_and_not_by_its_number(tmp_path, where):
    for names, labels in (
        (["yes", "no"], [True, False]),
        (["no", "yes"], [False, True]),
        (["good", "bad"], [True, False]),
        (["fine", "poor"], None),
    ):
        source = made = class_labels(names)
        if where == "stream":
            source = made.to_iterable_dataset()
        elif where == "disk":
            made.save_to_disk(source := tmp_path / names[0])
        elif where == "parquet":
            made.to_parquet(source := tmp_path / f"{names[0]}.parquet")
        if labels is None:
            with pytest.raises(ValueError, match="field 'label' must be true or false, got 'fine'"):
                read_preferences(source)
        else:
            assert [row["label"] for row in read_preferences(source)[0]] == labels


def test_a_class_within_a_message_is_read_by_its_name_too(tmp_path):
    turn = {"role": datasets.ClassLabel(names=["user", "assistant"]), "content": datasets.Value("string")}
    made = datasets.Dataset.from_dict(
        {name: [[{"role": role, "content": name}]] for name, role in (("prompt", 0), ("chosen", 1), ("rejected", 1))},
        features=datasets.Features({name: [turn] for name in ("prompt", "chosen", "rejected")}),
    )
    made.to_parquet(tmp_path / "a.parquet")
    for source in (made, tmp_path / "a.parquet"):
        [row] = read_preferences(source)[0]
        assert row["prompt"] == [{"role": "user", "content": "prompt"}]


def test_a_source_without_a_name_is_refused_and_not_taken_for_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", 0)
    with pytest.raises(ValueError, match=r"the name of the data is empty, .*; give a file, a folder, a Hub id"):
        read_preferences("")
    assert prompts(".") == ["p0", "p1"]


def test_a_folder_names_the_files_that_it_leaves_and_the_file_of_each_remark(tmp_path, caplog):
    write(tmp_path / "part1.jsonl", 0)
    (tmp_path / "part2.csv.gz").write_bytes(gzip.compress(b"prompt,chosen,rejected\np9,a,b\np9,a,b\np8,a,a\n"))
    for name in ("part3.jsonl.zst", "README.md", "LICENSE", ".hidden.zst"):
        (tmp_path / name).write_text("x")
    assert len(load_preferences(tmp_path)) == 4
    assert "files of a kind that is not read: part3.jsonl.zst; unpack or convert them" in caplog.text
    assert "repeats of an earlier row, kept: 1 (part2.csv.gz, line 3)" in caplog.text
    assert "states no preference: 1 (part2.csv.gz, line 4)" in caplog.text
    (tmp_path / "part1.jsonl").unlink()
    assert "kept: 1 (line 3)" in read_preferences(tmp_path)[1].summary(), "one file needs no name"
    class_labels(["no", "yes"]).save_to_disk(tmp_path / "saved")
    write(tmp_path / "saved" / "more.jsonl", 0)
    assert "not read: more.jsonl;" in read_preferences(tmp_path / "saved")[1].summary()


def test_rows_that_contradict_and_rows_with_weights_are_counted_with_their_places():
    pair = rows(0, 1)[0]
    other = {"prompt": "p0", "chosen": "no", "rejected": "yes", "weight": 0}
    report = read_preferences([pair, other, {**pair, "weight": 0.5}])[1]
    assert "(the same answers, judged the other way), kept: 2 (row 1, row 2)" in report.summary()
    assert "rows with weight 0, which do not count in the loss: 1 (row 1)" in report.summary()
    assert "rows with another weight than 1: 1 (row 2)" in report.summary()
    assert "repeats of an earlier row, kept: 1 (row 2)" in report.summary()
    answer = {"prompt": "q", "completion": "a"}
    report = read_preferences([{**answer, "label": True}, {**answer, "label": False}, {**answer, "label": 1}])[1]
    assert ([place.row for place in report.duplicates], [place.row for place in report.remarks["contradicting"]]) == (
        [2], [1, 2],
    )  # fmt: skip
    report = read_examples([answer, answer, {**answer, "label": True}])[1]
    assert not report.remarks, "an example has no contrary"


def test_arrays_in_the_cells_of_a_frame_are_lists(tmp_path):
    pandas = pytest.importorskip("pandas")
    calls = [{"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": "{}"}]}]
    given_rows = [{"prompt": [{"role": "user", "content": "q"}], "chosen": calls,
                   "rejected": [{"role": "assistant", "content": "no"}]}]  # fmt: skip
    pandas.DataFrame(given_rows).to_parquet(tmp_path / "a.parquet")
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    assert isinstance(frame["chosen"][0], np.ndarray)
    assert read_preferences(frame)[0] == read_preferences(frame.to_dict("records"))[0] == given_rows


def test_a_dict_of_columns_is_known_by_columns_and_may_hold_arrays():
    pandas = pytest.importorskip("pandas")
    wanted = [{"prompt": "p", "chosen": "yes", "rejected": "no", "weight": 0.5}]
    other = {"q": ["p"], "good": ["yes"], "bad": ["no"], "weight": [0.5]}
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert list(load_preferences(other, columns=columns)) == wanted
    assert read_preferences({name: np.array(values) for name, values in other.items()}, columns=columns)[0] == wanted
    mixed = {"prompt": pandas.Series(["p"]), "chosen": ("yes",), "rejected": ["no"], "weight": np.array([0.5])}
    assert read_preferences(mixed)[0] == wanted
    with pytest.raises(ValueError, match="lists of one length, got prompt: 2, chosen: 1, rejected: 'no'"):
        read_preferences({"prompt": pandas.Series(["p", "q"]), "chosen": ["yes"], "rejected": "no"})


@pytest.mark.parametrize("limit", ["3", 2.0, -1])
def test_a_limit_that_is_no_count_is_refused(limit):
    with pytest.raises(ValueError, match=f"limit must be at least 1, got {limit!r}; give a whole number"):
        load_preferences(rows(0), limit=limit)
    assert len(read_preferences(rows(0), limit=np.int64(1))[0]) == 1
