"""Bytes on disk → raw rows, each with its place. Knows file kinds, not what a preference is.

A reader yields `(place, row)`. A line that cannot be read arrives as a `BadRow` in place of the row, so that
the caller decides whether to stop; what spoils the whole file (a truncated gzip, a broken JSON list) raises.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from dpo_lab.preferences.reports import BadRow, Place, counted, shown

RawRow = tuple[Place, dict[str, Any] | BadRow]

_LINES, _TABLES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), (".csv", ".tsv", ".csv.gz", ".tsv.gz")
DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".ndjson", ".ndjson.gz", ".parquet", *_TABLES)
ROW_KEYS = {"prompt", "chosen", "rejected", "messages", "conversations", "instruction", "question", "preferred_output"}
_SEPARATORS = ",;\t|"


def data_suffix(path: Path) -> str | None:
    """The supported suffix of a file name, `.jsonl.gz` before `.gz`; None where there is none."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(DATA_SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def read_file(path: Path) -> Iterator[RawRow]:
    """Rows of one file. Checks at the call that the file can be opened and that its kind is known."""
    suffix = data_suffix(path)
    if suffix is None:
        raise ValueError(f"{path} has a file kind that is not read; use one of {', '.join(DATA_SUFFIXES)}")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; check the path, it is relative to {Path.cwd()}") from None
    except PermissionError:
        raise PermissionError(f"no permission to read {path}; change its mode or read a copy of your own") from None
    if not start:
        raise ValueError(f"{path} is empty; it should hold rows of preferences")
    if suffix == ".parquet":
        return _parquet(path)
    read = _csv if suffix in _TABLES else _json_lines if suffix in _LINES else _json
    return _whole_stream(path, read(path))


def has_bom(path: Path) -> bool:
    """Whether a text file begins with a UTF-8 byte order mark (read, and skipped)."""
    if data_suffix(path) in (None, ".parquet") or path.name.lower().endswith(".gz"):
        return False
    with path.open("rb") as file:
        return file.read(3) == b"\xef\xbb\xbf"


def _whole_stream(path: Path, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Tells what is wrong with a compressed stream that breaks off."""
    last = "before the first row"
    try:
        for place, row in rows:
            yield place, row
            last = f"after {place.short}"
    except EOFError:
        raise ValueError(f"{path} breaks off {last}: the gzip stream has no end; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as problem:
        raise ValueError(f"{path} is not a sound gzip file ({problem}, {last}); copy or download it again, "
                         "or take .gz off the name if it is not compressed") from None  # fmt: skip


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    with path.open("rb") as file:
        is_gzip = path.name.lower().endswith(".gz") or file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else path.open("rb")


def _refuse_utf16(start: bytes, place: Place) -> None:
    if (has_mark := start[:2] in (b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:2]:
        rule = "begins with a UTF-16 byte order mark" if has_mark else "looks like UTF-16: each second byte is zero"
        raise BadRow(None, rule, "save the file as UTF-8", place)


def _json_lines(path: Path, *, may_be_list: bool = True) -> Iterator[RawRow]:
    """One object a line; or a JSON list in spite of the name."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            place = Place(path.name, line=number)
            if number == 1:
                _refuse_utf16(line, place)
                line = line.removeprefix(b"\xef\xbb\xbf")
                if may_be_list and line.lstrip().startswith(b"["):
                    yield from _json(path)
                    return
            if line.strip():
                yield place, _parsed_line(line, place)


def _loads(text: str) -> Any:
    """The value of a text of JSON. Whole numbers of more digits than Python reads are decimals."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=Decimal)


def _parsed_line(line: bytes, place: Place) -> dict[str, Any] | BadRow:
    try:
        row = _loads(line.decode("utf-8"))
    except UnicodeDecodeError as problem:
        return _not_utf8(line, problem.start, "line", place)
    except json.JSONDecodeError as problem:
        goes_on = " (jq -c . FILE joins the lines of each)" if line.strip() == b"{" else ""
        return BadRow(None, f"is not JSON: {problem.msg} at column {problem.colno}",
                      f"write one JSON object per line{goes_on}", place)  # fmt: skip
    except RecursionError:
        return BadRow(None, "is nested too deeply to be a row", "write one JSON object per line", place)
    return _object(row, place)


def _not_utf8(data: bytes, at: int, what: str, place: Place) -> BadRow:
    around = data[max(0, at - 10) : at + 10].decode("cp1252", errors="replace")
    return BadRow(None, f"is not UTF-8: byte 0x{data[at]:02x} at offset {at} of the {what}",
                  f"save the file as UTF-8; where {around!r} reads right, iconv -f cp1252 does it", place)  # fmt: skip


def _object(row: object, place: Place) -> dict[str, Any] | BadRow:
    if isinstance(row, dict):
        return row
    return BadRow(None, f"must be an object with named fields, got {shown(row)}",
                  'write {"prompt": ..., "chosen": ..., "rejected": ...}', place)  # fmt: skip


def _decoded(path: Path) -> str:
    with _open(path) as file:
        data = file.read()
    _refuse_utf16(data, Place(path.name, line=1))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        # utf-8-sig counts from behind the byte order mark; count from the file's start.
        start = problem.start + (3 if data.startswith(b"\xef\xbb\xbf") and len(problem.object) < len(data) else 0)
        place = Place(path.name, line=data.count(b"\n", 0, start) + 1)
        raise _not_utf8(data, start, "file", place) from None


def _json(path: Path) -> Iterator[RawRow]:
    """A list of rows, an object that holds one list of rows, or JSON lines in spite of the name."""
    text = _decoded(path)
    try:
        document = _loads(text)
    except json.JSONDecodeError as problem:
        if problem.msg == "Extra data" and (text.lstrip().startswith("{") or data_suffix(path) in _LINES):
            yield from _json_lines(path, may_be_list=False)
            return
        place = Place(path.name, line=problem.lineno)
        rule = "holds no JSON" if not text.strip() else f"is not JSON: {problem.msg} at column {problem.colno}"
        raise BadRow(None, rule, "write a list of objects", place) from None
    except RecursionError:
        raise BadRow(None, "is nested too deeply", "write a list of objects", Place(path.name)) from None
    for index, row in enumerate(_rows_of(document, path)):
        place = Place(path.name, row=index)
        yield place, _object(row, place)


def _rows_of(document: object, path: Path) -> list[Any]:
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a list of rows, got {shown(document)}; write a list of objects")
    if ROW_KEYS & document.keys():
        return [document]  # a single JSON line
    lists = [key for key, value in document.items() if isinstance(value, list)]
    if len(lists) != 1:
        found = f"lists under {', '.join(map(repr, lists))}" if lists else "no list"
        raise ValueError(f"{path} holds an object with {found}; it should hold one list of rows, or be that list")
    return document[lists[0]]


def _csv(path: Path) -> Iterator[RawRow]:
    """A header and rows; the header shows what stands between the cells, or a line before it does, such as sep=; ."""
    text = _decoded(path)
    own = re.match(r"sep=(.)\s*[\r\n]", text)
    text, above = (text[own.end() :], 1) if own else (text, 0)
    separator = own[1] if own else _separator(re.split(r"[\r\n]", text, maxsplit=1)[0])
    lines = re.split(r"\r\n|\r|\n", text) if separator == "\t" else []
    records: list[tuple[Place, list[str] | BadRow]] = []
    limit = csv.field_size_limit(len(text) + 1)  # room for long texts; one setting for all of Python, so put back below
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        cells: list[str] | BadRow | None = []
        while cells is not None:
            begun = reader.line_num
            place = Place(path.name, line=above + begun + 1)
            try:
                cells = next(reader, None)
                tabs = [line.count("\t") for line in lines[begun : reader.line_num]]
                if len(tabs) > 1 and set(tabs) == {lines[0].count("\t")}:
                    raise csv.Error("a quote is not closed, and each of these lines would be a row")
            except csv.Error as problem:  # the next row begins on the next line
                cells = BadRow(None, f"is not CSV: {problem}, read up to line {above + reader.line_num:,}",
                               'quote texts with " and double the quotes inside, or write .jsonl', place)  # fmt: skip
            records += [(place, cells)] if cells else []
    finally:
        csv.field_size_limit(limit)
    header = records[0][1] if records else None
    if isinstance(header, BadRow):
        raise header
    if not header or len(set(header)) < len(header):
        raise ValueError(f"{path} needs a header of distinct column names in line 1, got {shown(header)}; "
                         "write prompt,chosen,rejected")  # fmt: skip
    for place, cells in records[1:]:
        if isinstance(cells, BadRow):
            yield place, cells
        elif len(cells) != len(header):
            yield place, BadRow(None, f"has {counted(len(cells), 'cell')} under a header of {len(header)}",
                                "quote texts that hold commas or line ends", place)  # fmt: skip
        else:
            yield place, dict(zip(header, cells, strict=True))


def _separator(header: str) -> str:
    """The one between the most names; a comma where there is none."""
    return max(_SEPARATORS, key=header.count)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise _unsound_parquet(path, problem, 0) from None
    return _parquet_rows(path, file)


def _parquet_rows(path: Path, file: Any) -> Iterator[RawRow]:
    import pyarrow as pa

    index = 0
    with file:
        try:
            # `datasets` writes mixed structures as arrow's JSON type, which pyarrow hands back as text.
            is_encoded = lambda kind: "json" in str(getattr(kind, "extension_name", ""))
            encoded = [column.name for column in file.schema_arrow if is_encoded(column.type)]
            about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            features = about.get("info", {}).get("features") if "ClassLabel" in str(about) else None
            for batch in file.iter_batches(batch_size=1000):
                for row in _rows_of_batch(batch, Place(path.name)):
                    if isinstance(row, BadRow):
                        yield Place(path.name, row=index), row
                        index += 1
                        continue
                    place = Place(path.name, row=index)
                    try:
                        for name in encoded:
                            row[name] = None if row[name] is None else _loads(row[name])
                        yield place, with_class_names(row, features)
                    except (ValueError, RecursionError) as problem:
                        yield place, BadRow(None, f"holds JSON that can't be read: {problem}", "mend it", place)
                    index += 1
        except (pa.ArrowException, OSError, ValueError, AttributeError, RecursionError) as problem:
            raise _unsound_parquet(path, problem, index) from None


def _rows_of_batch(batch: Any, place: Place) -> list[dict[str, Any] | BadRow]:
    """A batch as rows; a value that Python has no place for, as a date after 9999, costs its row alone."""
    try:
        return batch.to_pylist()
    except (OverflowError, ValueError, KeyError):
        rows: list[dict[str, Any] | BadRow] = []
        for index in range(len(batch)):
            try:
                rows += batch.slice(index, 1).to_pylist()
            except (OverflowError, ValueError, KeyError) as problem:
                rule = f"holds a value that can't be read ({problem})"
                rows.append(BadRow(None, rule, "mend it, or leave its column out", place))
        return rows


def _unsound_parquet(path: Path, problem: Exception, row: int) -> ValueError:
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return ValueError(f"{path} is not a sound parquet file ({reason}, at row index {row}); copy or download it again")


def with_class_names(value: Any, kind: Any) -> Any:
    """A value with the names of classes in place of their numbers. kind: how `datasets` describes it, in its JSON."""
    if not kind:
        return value
    if isinstance(value, list):
        return [with_class_names(item, kind[0] if isinstance(kind, list) else kind.get("feature")) for item in value]
    if isinstance(value, dict):
        return {name: with_class_names(item, kind.get(name)) for name, item in value.items()}
    names = kind.get("names") if kind.get("_type") == "ClassLabel" else None
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
