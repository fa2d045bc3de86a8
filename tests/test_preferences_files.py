"""Every file kind is read, and every broken file says where it is broken and what to do."""
# ruff: noqa: E501  tables of cases read best with one case on a line

import csv
import gzip
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_lab.preferences import BadRow, load_preferences, read_preferences

ROWS = [{"prompt": f"p{n}", "chosen": f" yes {n} é", "rejected": " no"} for n in range(3)]


def as_lines(rows=ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows=ROWS) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows=ROWS) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


SOUND = {
    "rows.jsonl": as_lines(),
    "rows.jsonl.gz": gzip.compress(as_lines()),
    "rows.json": json.dumps(ROWS).encode(),
    "object.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": as_lines(),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.parquet": as_parquet(),
    "rows.csv": as_csv(),
    "UPPER.JSONL": as_lines(),
    "bom.jsonl": b"\xef\xbb\xbf" + as_lines(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(),
    "windows.jsonl": as_lines().replace(b"\n", b"\r\n"),
    "blank_lines.jsonl": as_lines().replace(b"\n", b"\n\n"),
}


@pytest.mark.parametrize("name", SOUND)
def test_every_file_kind_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SOUND[name])
    rows, report = read_preferences(path)
    assert rows == ROWS
    assert report.rows_read == report.rows_kept == 3
    assert ("byte order mark" in report.summary()) == name.startswith("bom")


def test_one_json_line_in_a_json_file_is_one_row(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0]))
    assert read_preferences(tmp_path / "one.json")[0] == ROWS[:1]


LINES = as_lines().splitlines(keepends=True)
# name → (bytes, what the message must say)
BROKEN_LINES = {
    "not_json.jsonl": (LINES[0] + b'{"prompt": oh}\n' + LINES[2],
        r"not_json.jsonl, line 2: is not JSON: Expecting value at column 12; write one JSON object per line"),
    "not_utf8.jsonl": (LINES[0] + LINES[1].replace("é".encode(), b"\xe9") + LINES[2],
        r"not_utf8.jsonl, line 2: is not UTF-8: byte 0xe9 at offset 35 of the line; save the file as UTF-8"),
    "not_object.jsonl": (LINES[0] + b"[1, 2]\n" + LINES[2],
        r"not_object.jsonl, line 2: must be an object with named fields, got \[1, 2\]"),
    "deep.jsonl": (LINES[0] + b"[" * 100_000 + b"\n" + LINES[2], r"deep.jsonl, line 2: is nested too deeply"),
    "cells.csv": (as_csv().replace(b"p1,", b"p1,,"), r"cells.csv, line 3: has 4 cells under a header of 3; quote texts"),
    "not_object.json": (json.dumps([ROWS[0], "x", ROWS[2]]).encode(),
        r"not_object.json, row index 1: must be an object with named fields, got 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_broken_line_is_refused_with_its_place_or_skipped_and_listed(tmp_path, name):
    path, (data, message) = tmp_path / name, BROKEN_LINES[name]
    path.write_bytes(data)
    with pytest.raises(BadRow, match=message):
        load_preferences(path)
    rows, report = read_preferences(path, on_bad_row="skip")
    assert rows == [ROWS[0], ROWS[2]]
    assert (report.rows_read, report.rows_kept, len(report.bad)) == (3, 2, 1)
    assert re.search(message, report.summary())


BROKEN_FILES = {
    "empty.jsonl": (b"", r"empty.jsonl is empty; it should hold rows"),
    "blank.jsonl": (b"\n\n", r"blank.jsonl holds no rows"),
    "blank.json": (b" \n", r"blank.json, line \d: holds no JSON"),
    "empty.json": (b"[]", r"empty.json holds no rows"),
    "broken.json": (b'[{"prompt": "p"},\n {"prompt": }]', r"broken.json, line 2: is not JSON: Expecting value at column 13"),
    "cut.json": (json.dumps(ROWS).encode()[:-20], r"cut.json, line 1: is not JSON"),
    "number.json": (b"3", r"number.json must hold a list of rows, got 3"),
    "no_list.json": (b'{"a": 1}', r"holds an object with no list; it should hold one list of rows"),
    "two_lists.json": (b'{"a": [], "b": []}', r"holds an object with lists under 'a', 'b'"),
    "latin1.json": (json.dumps(ROWS, ensure_ascii=False, indent=0).encode("latin-1"),
        r"latin1.json, line 4: is not UTF-8: byte 0xe9 at offset \d+ of the file"),
    "utf16.jsonl": (as_lines().decode().encode("utf-16"), r"utf16.jsonl, line 1: begins with a UTF-16 byte order mark"),
    "utf16.csv": (as_csv().decode().encode("utf-16"), r"utf16.csv, line 1: begins with a UTF-16 byte order mark"),
    "plain.jsonl.gz": (as_lines(), r"plain.jsonl.gz is not a sound gzip file .* take .gz off the name"),
    "not.parquet": (as_lines(), r"not.parquet is not a sound parquet file .* copy or download it again"),
    "name.parquet": (as_parquet().replace(b"prompt", b"\xfarompt"), r"name.parquet is not a sound parquet file"),
    "twice.csv": (b"prompt,prompt\na,b\n", r"twice.csv needs a header of distinct column names in line 1"),
    "quote.csv": (b'prompt,chosen,rejected\na,"b,c\n', r"quote.csv, line 2: is not CSV: unexpected end of data"),
    "rows.txt": (as_lines(), r"rows.txt has a file kind that is not read; use one of .jsonl, .json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_refused_even_when_bad_rows_are_skipped(tmp_path, name):
    path, (data, message) = tmp_path / name, BROKEN_FILES[name]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_preferences(path, on_bad_row="skip")


def test_the_byte_offset_points_at_the_byte(tmp_path):
    data = json.dumps(ROWS, ensure_ascii=False, indent=0).encode("latin-1")
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + data)
    with pytest.raises(BadRow, match=f"offset {data.index(0xE9) + 3} of the file"):
        load_preferences(tmp_path / "x.json")


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_truncated_gzip_says_after_which_line_it_breaks_off(tmp_path, keep):
    data = gzip.compress(
        "".join(f'{{"prompt": "{n * 7919}", "chosen": "a", "rejected": "b"}}\n' for n in range(500)).encode()
    )
    (tmp_path / "cut.jsonl.gz").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(
        ValueError, match=r"cut.jsonl.gz breaks off (after line \d+|before the first row): the gzip stream has no end"
    ):
        load_preferences(tmp_path / "cut.jsonl.gz", on_bad_row="skip")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    for path in (tmp_path / "no.jsonl", str(tmp_path / "no.jsonl"), tmp_path / "no" / "folder"):
        with pytest.raises(FileNotFoundError, match=r"does not exist; .*relative to"):
            load_preferences(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "secret.jsonl"
    path.write_bytes(as_lines())

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)  # the mode alone would not stop root
    with pytest.raises(PermissionError, match=r"no permission to read .*secret.jsonl; change its mode"):
        load_preferences(path)


def test_csv_cells_hold_long_texts_messages_and_empty_columns(tmp_path):
    turns = [{"role": "user", "content": "x" * 200_000}]
    rows = [{"prompt": json.dumps(turns), "chosen": "a\nb, c", "rejected": "[{not json", "system": "", "weight": "0.5"}]
    (tmp_path / "rows.csv").write_bytes(as_csv(rows))
    before = csv.field_size_limit()
    [row], _ = read_preferences(tmp_path / "rows.csv")
    assert csv.field_size_limit() == before
    assert row["prompt"] == turns
    assert row["chosen"] == [{"role": "assistant", "content": "a\nb, c"}]
    assert row["rejected"] == [{"role": "assistant", "content": "[{not json"}]
    assert row["weight"] == 0.5
    assert "system" not in row


def test_none_that_arrow_filled_in_is_taken_off_again(tmp_path):
    def row(arguments):
        call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": arguments}]}
        return {
            "prompt": [{"role": "user", "content": "hi"}],
            "chosen": [call],
            "rejected": [{"role": "assistant", "content": "no"}],
        }

    (tmp_path / "rows.parquet").write_bytes(as_parquet([row({"city": "Oslo"}), row({"amount": 3})]))
    rows, _ = read_preferences(tmp_path / "rows.parquet")
    assert [r["chosen"][0]["tool_calls"][0]["arguments"] for r in rows] == [{"city": "Oslo"}, {"amount": 3}]
    assert "content" not in rows[0]["chosen"][0]
    assert "tool_calls" not in rows[0]["rejected"][0]


# ── other people's habits ────────────────────────────────────────────────────────────────────────────────────────────

HEADER = "prompt\tchosen\trejected\n"
# name → (text, the prompts that are read all the same, what is said of the bad row)
BAD_TABLE_ROWS = {
    "open.tsv": (f'{HEADER}Who one?\t"Hmm\tAnn\nWho two?\tx\ty\nWho three?\tyes"\tno\nWho four?\ta\tb\n', ["Who four?"],
        "open.tsv, line 2: is not CSV: a quote is not closed, and each of these lines would be a row, read up to line 4"),
    "after.tsv": (f'{HEADER}One?\tx\ty\nWho?\t"Tom" he said\tAnn\nTwo?\tx\ty\n', ["One?", "Two?"],
        "after.tsv, line 3: is not CSV: '\t' expected after '\"', read up to line 3"),
    "after.csv": ('prompt,chosen,rejected\nOne?,x,y\nWho?,"Tom" he said,Ann\nTwo?,x,"y\nz"\n', ["One?", "Two?"],
        "after.csv, line 3: is not CSV: ',' expected after '\"', read up to line 3"),
    "end.csv": ('prompt,chosen,rejected\nOne?,x,y\nWho?,"Tom,Ann\nTwo?,x,y\n', ["One?"],
        "end.csv, line 3: is not CSV: unexpected end of data, read up to line 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLE_ROWS)
def test_one_bad_row_of_a_table_is_refused_with_its_line_or_left_out_and_the_others_are_read(tmp_path, name):
    text, prompts, message = BAD_TABLE_ROWS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(BadRow, match=re.escape(message)):
        load_preferences(tmp_path / name)
    rows, report = read_preferences(tmp_path / name, on_bad_row="skip")
    assert [row["prompt"] for row in rows] == prompts
    assert [str(problem).startswith(message) for problem in report.bad] == [True]


AS_IS = [{"prompt": "a;;;;;;;;;", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
READ_ALL_THE_SAME = {
    "list.jsonl": json.dumps(AS_IS).encode(),
    "list_on_lines.jsonl": json.dumps(AS_IS, indent=1).encode(),
    "packed.jsonl": gzip.compress(as_lines(AS_IS)),
    "packed.csv": gzip.compress(as_csv(AS_IS)),
    "packed.csv.gz": gzip.compress(as_csv(AS_IS)),
    "excel.csv": b'sep=;\r\nprompt;chosen;rejected\r\n"a;;;;;;;;;";b;c\r\nd;e;f\r\n',
    "old_mac.csv": as_csv(AS_IS).replace(b"\r\n", b"\r"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ_ALL_THE_SAME)
def test_a_file_that_is_not_what_its_name_says_is_read_where_it_can_be(tmp_path, name):
    (tmp_path / name).write_bytes(READ_ALL_THE_SAME[name])
    assert read_preferences(tmp_path / name)[0] == AS_IS


def test_lines_that_are_lists_are_bad_lines_and_a_packed_table_that_breaks_off_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"[1, 2]\n" + as_lines())
    rows, report = read_preferences(tmp_path / "a.jsonl", on_bad_row="skip")
    assert (rows, [problem.place.line for problem in report.bad]) == (ROWS, [1])
    (tmp_path / "cut.csv").write_bytes(gzip.compress(as_csv())[:-9])
    with pytest.raises(ValueError, match=r"cut.csv breaks off before the first row: the gzip stream has no end"):
        read_preferences(tmp_path / "cut.csv")


@pytest.mark.parametrize("kind", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_and_objects_over_several_lines_are_named(tmp_path, kind):
    for name, text in (("a.jsonl", as_lines().decode()), ("a.csv", as_csv().decode())):
        (tmp_path / name).write_bytes(text.encode(kind))
        with pytest.raises(BadRow, match=rf"{name}, line 1: looks like UTF-16: .*; save the file as UTF-8"):
            read_preferences(tmp_path / name)
    for name in ("b.jsonl", "b.json"):
        (tmp_path / name).write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
        with pytest.raises(BadRow, match=r"line 1: is not JSON: .*one JSON object per line \(jq -c . FILE"):
            read_preferences(tmp_path / name)


def test_code_with_tabs_and_line_ends_stands_in_a_quoted_cell(tmp_path):
    path = tmp_path / "code.tsv"
    path.write_text('prompt\tchosen\trejected\nWrite f\t"def f():\n\treturn 1"\t"def f(): pass"\n')
    [row], report = read_preferences(path)
    assert row["chosen"] == "def f():\n\treturn 1"
    assert not report.bad
