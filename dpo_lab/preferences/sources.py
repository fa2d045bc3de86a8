"""What a reader means by a source → a stream of raw rows: files, folders, the Hub, data sets in memory.

A `Source` has one split. Where a source has several and none is requested, the preferred one is read and the
others are named in its notes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpo_lab.preferences.files import DATA_SUFFIXES, ROW_KEYS, RawRow, data_suffix, has_bom, read_file, with_class_names
from dpo_lab.preferences.reports import BadRow, Place, shown
from dpo_lab.storage.embedded import embedded_path

_HUB_ID = re.compile(r"(?!.*\.\.)(?P<name>[\w-][\w.-]*/[\w.-]+)(?::(?P<config>[\w-][\w.-]*))?")  # never `..`
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
_SPLIT_WORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_MAY_HOLD_ROWS = (
    ".zst", ".zip", ".gz", ".bz2", ".xz", ".tar", ".tgz", ".7z", ".arrow", ".feather", ".xlsx", ".xls", ".pkl", ".avro",
    ".orc", ".db", ".sqlite", ".txt", ".json", ".jsonl", ".parquet", ".csv", ".tsv",
)  # fmt: skip
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass
class Source:
    name: str
    rows: Iterator[RawRow]
    split: str | None = None
    from_arrow: bool = False
    """Whether structs may have been filled up with None fields, as arrow tables do."""
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def open_source(source: object, split: str | None, prefer: Sequence[str] = ("train",), names: Any = ()) -> Source:
    """The rows of one split of a path, Hub id, `datasets` object, mapping of splits, or iterable of dicts. A dict of
    columns is known by our fields, and by `names`."""
    if isinstance(source, str | os.PathLike):
        if not os.fspath(source):
            raise ValueError("the name of the data is empty, as with a shell variable that is not set; give a file, a "
                             "folder, a Hub id, or 'embedded'")  # fmt: skip
        if source == "embedded":
            return _folder(embedded_path("pairs"), split, prefer, name="embedded pairs")
        return _path_or_hub(os.fspath(source), split, prefer, may_be_hub=isinstance(source, str))
    if is_frame(source):
        source = _rows_of_frame(source)
    if isinstance(source, Mapping) and {*ROW_KEYS, *names} & source.keys():
        source = _rows_of_columns(source)
    if isinstance(source, Mapping):
        chosen, notes = _choose_split("the mapping", source, split, prefer)
        opened = open_source(source[chosen], None)
        opened.split = chosen
        opened.notes += notes
        return opened
    if not isinstance(source, Iterable):
        raise ValueError(f"a source is a path, a Hub id, a data set or a list of dicts, got {shown(source)}")
    is_arrow = type(source).__module__.split(".")[0] == "datasets"
    name = "the data set" if is_arrow else "the rows"
    opened = Source(name, _numbered(source, name), from_arrow=is_arrow)
    own_split = str(getattr(source, "split", None) or "")
    return opened if split is None or split == own_split else _one_split(opened, split)


def is_frame(source: object) -> bool:
    """Whether it is a data frame, of pandas or polars."""
    return hasattr(source, "to_dict") and hasattr(source, "columns")


def _rows_of_frame(frame: Any) -> list[dict[str, Any]]:
    """Its rows, without the cells that hold nothing."""
    rows = frame.to_dicts() if hasattr(frame, "to_dicts") else frame.to_dict("records")
    is_missing = lambda value: value is None or (isinstance(value, float) and value != value)
    return [{str(name): _plain(value) for name, value in row.items() if not is_missing(value)} for row in rows]


def _plain(value: Any) -> Any:
    """Arrays as lists, also those within others, as pandas reads nested columns."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _rows_of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A mapping of columns, each a list or an array, as rows."""
    is_column = lambda values: isinstance(values, Collection) and not isinstance(values, str | bytes | Mapping)
    sizes = {name: len(values) for name, values in columns.items() if is_column(values)}
    if len(sizes) < len(columns) or len(set(sizes.values())) > 1:
        got = ", ".join(f"{name}: {sizes.get(name, shown(columns[name]))}" for name in columns)
        raise ValueError(f"a dict of columns needs lists of one length, got {got}; give a list of dicts, one per row")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def source_files(source: str) -> list[Path] | None:
    """The files here that a source is read from; None where there are none, as for a data set of the Hub."""
    path = embedded_path("pairs") if source == "embedded" else Path(os.path.expanduser(source))
    try:
        return [path] if path.is_file() else _data_files(path, (*DATA_SUFFIXES, ".arrow")) if path.is_dir() else None
    except OSError:
        return None


def _data_files(folder: Path, suffixes: tuple[str, ...] = DATA_SUFFIXES) -> list[Path]:
    """All files of a folder that may hold rows; what begins with a dot is left out."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.lower().endswith(suffixes)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _unread(folder: Path, read: tuple[str, ...]) -> list[str]:
    """Names of its files that may hold rows and are of other kinds than those that are read."""
    return [path.name for path in _data_files(folder, _MAY_HOLD_ROWS) if not path.name.lower().endswith(read)]


def _numbered(rows: Iterable[object], name: str) -> Iterator[RawRow]:
    features: Any = getattr(rows, "features", None)
    kinds = features.to_dict() if hasattr(features, "to_dict") and "ClassLabel" in str(features) else None
    for index, row in enumerate(rows):
        place = Place(name, row=index)
        if isinstance(row, Mapping):
            plain = {key: _plain(value) if hasattr(value, "tolist") else value for key, value in row.items()}
            yield place, with_class_names(plain, kinds)
        else:
            yield place, BadRow(None, f"must be a dict, got {shown(row)}", "give a list of dicts", place)


def _path_or_hub(text: str, split: str | None, prefer: Sequence[str], *, may_be_hub: bool) -> Source:
    path = Path(os.path.expanduser(text))
    try:
        if path.is_dir():
            return _folder(path, split, prefer, name=path.name or str(path))
        if path.exists():
            return _file(path, split)
    except PermissionError:
        raise PermissionError(f"no permission to read {path}; change its mode or read a copy of your own") from None
    hub_id = _HUB_ID.fullmatch(text) if may_be_hub else None
    if hub_id and data_suffix(path) is None and not path.parent.is_dir():  # in a folder that is here: a slip of the pen
        return _hub(hub_id["name"], hub_id["config"], split, prefer)
    raise FileNotFoundError(
        f"{text} does not exist; give a file or folder (relative to {Path.cwd()}), a Hub id such as owner/name, "
        "or 'embedded'"
    )


def _file(path: Path, split: str | None) -> Source:
    opened = Source(path.name, read_file(path), from_arrow=data_suffix(path) == ".parquet")
    if has_bom(path):
        opened.notes.append(f"{path.name} begins with a UTF-8 byte order mark, which was skipped")
    if split is None or split == _split_name(Path(path.name)):
        opened.split = split
        return opened
    return _one_split(opened, split)


def _one_split(source: Source, split: str) -> Source:
    """The rows whose own column `split` says so: single files and lists have no other splits."""

    def rows() -> Iterator[RawRow]:
        seen: dict[str, None] = {}
        for place, row in source.rows:
            here = None if isinstance(row, BadRow) else row.get("split")
            if isinstance(row, BadRow) or here == split:
                yield place, row
            if here is not None:
                seen[str(here)] = None
        if split not in seen:
            there = f"its column 'split' says {', '.join(seen)}" if seen else "it has no column 'split'"
            raise ValueError(f"split {split!r} is not in {source.name}: {there}; leave `split` out to read all of it")

    return Source(source.name, rows(), split, source.from_arrow, source.notes)


def _choose_split(
    name: str, splits: Mapping[str, Any], wanted: str | None, prefer: Sequence[str]
) -> tuple[str, list[str]]:
    there = ", ".join(sorted(splits))
    if not splits:
        raise ValueError(f"{name} holds no split; it is empty")
    if wanted is not None:
        if wanted not in splits:
            raise ValueError(f"split {wanted!r} is not in {name}; it has {there}")
        return wanted, []
    chosen = next((split for split in prefer if split in splits), next(iter(splits)) if len(splits) == 1 else None)
    if chosen is None:
        raise ValueError(f"{name} has several splits and none is called {prefer[-1]}; choose one of {there}")
    others = sorted(set(splits) - {chosen})
    return chosen, [f"other splits, not read: {', '.join(others)}"] if others else []


def _split_name(path: Path) -> str | None:
    """The split that a file's name says, else the one its folder says; sharded files say it exactly."""
    stem = path.name[: -len(data_suffix(path) or "")] if data_suffix(path) else path.stem
    if shard := _SHARD.fullmatch(stem):
        return shard["split"]
    for part in (stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def _folder(folder: Path, split: str | None, prefer: Sequence[str], *, name: str) -> Source:
    if any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
        return _saved_by_datasets(folder, split, prefer)
    files = [path for path in _data_files(folder) if path.name not in _NOT_ROWS]
    if not files:
        found = sorted(path.name for path in folder.iterdir())[:5]
        raise FileNotFoundError(
            f"{folder} holds no data file ({', '.join(DATA_SUFFIXES)}); it holds {', '.join(found) or 'nothing'}"
        )
    splits: dict[str, list[Path]] = {}
    named = {path: _split_name(path.relative_to(folder)) for path in files}
    for path, own in named.items():
        # Beside files that say their split, one that says none is a split of its own name; else all are for training.
        other = path.name[: -len(data_suffix(path) or "")] if any(named.values()) else "train"
        splits.setdefault(own or other, []).append(path)
    chosen, notes = _choose_split(str(folder), splits, split, prefer)
    parts = [_file(path, None) for path in splits[chosen]]
    rows = (item for part in parts for item in part.rows)
    if len(parts) > 1:
        rows = ((replace(place, of_several=True), row) for place, row in rows)
    from_arrow = any(part.from_arrow for part in parts)
    notes = [note for part in parts for note in part.notes] + notes
    return Source(name, rows, chosen, from_arrow, notes, _unread(folder, DATA_SUFFIXES))


def _saved_by_datasets(folder: Path, split: str | None, prefer: Sequence[str]) -> Source:
    datasets = _datasets(f"{folder}, which was written by save_to_disk")
    for state in folder.rglob("state.json"):
        _check_names(state)
    opened = open_source(datasets.load_from_disk(str(folder)), split, prefer)
    opened.name, opened.unread = folder.name, _unread(folder, (".arrow", ".json"))
    return opened


def _check_names(state: Path) -> None:
    """A saved data set names its files; none of them may lie elsewhere."""
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, LookupError, TypeError, RecursionError) as problem:
        raise ValueError(f"{state} is damaged ({problem}); save the data set again with save_to_disk") from None
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{state} names {shown(name)}, which lies outside of its folder; save the data set again")


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"reading {what} needs the package `datasets`; install it with pip install datasets"
        ) from None
    return datasets


def _hub(name: str, part: str | None, split: str | None, prefer: Sequence[str]) -> Source:
    """A data set of the Hugging Face Hub, `owner/name` or `owner/name:part`, a configuration or a folder of it."""
    datasets = _datasets(f"{name} from the Hub")
    try:
        loaded = datasets.load_dataset(name, part, split=split)
    except Exception as problem:  # each library underneath has its own; what is not explained is raised as it is
        # How the errors about a configuration that is not there begin, online and offline.
        if part and str(problem).startswith(("BuilderConfig", "Couldn't find cache")):
            return _hub_folder(name, part, split, prefer)
        raise _explained(name, split, problem) from problem
    if isinstance(loaded, Mapping):
        split, notes = _choose_split(name, loaded, None, prefer)
        loaded = loaded[split]
    else:
        notes = []
    return Source(name, _numbered(loaded, name), split, True, notes)


def _hub_folder(name: str, part: str, split: str | None, prefer: Sequence[str]) -> Source:
    """A folder of a data set that keeps its parts in folders and names no configurations, as hh-rlhf."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=f"{part}/*")) / part
    except Exception as problem:
        raise _explained(name, split, problem) from problem
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name} has neither a configuration nor a folder called {part!r}, or it was not fetched yet and the Hub "
            "cannot be reached; the data set's page lists both"
        )
    return _folder(folder, split, prefer, name=f"{name}:{part}")


def _explained(name: str, split: str | None, problem: Exception) -> Exception:
    kind, text = type(problem).__name__, str(problem)
    if "gated" in text.lower() or kind == "GatedRepoError":
        return PermissionError(
            f"{name} is gated: accept its terms on huggingface.co/datasets/{name}, then log in with `hf auth login`"
        )
    if kind in ("DatasetNotFoundError", "RepositoryNotFoundError"):
        return FileNotFoundError(
            f"{name} is neither a file here nor a data set on the Hub; check the spelling, "
            "or log in with `hf auth login` if it is private"
        )
    if isinstance(problem, ConnectionError | TimeoutError) or kind in ("OfflineModeIsEnabled", "ConnectError"):
        return ConnectionError(
            f"{name} is not a file here and the Hub cannot be reached ({text.splitlines()[0] if text else kind}); "
            "check the path, go online, or use 'embedded' data"
        )
    if "split" in text.lower() and split is not None and isinstance(problem, ValueError):
        return ValueError(f"split {split!r} is not in {name}: {text}")
    if "config name" in text.lower():
        return ValueError(f"{name} has several configurations, write {name}:configuration; {text}")
    return problem
