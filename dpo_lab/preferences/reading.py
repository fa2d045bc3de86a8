"""Sources → rows with prompt, chosen, rejected (pairs) or prompt, completion (examples), and the report on them.

Rows are read as a list, as a stream, or loaded as a `datasets.Dataset`; each way exists for pairs and for examples.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from dpo_lab.preferences.layouts import EXAMPLE_LAYOUTS, LAYOUTS, UNPAIRED_LAYOUTS
from dpo_lab.preferences.raw_rows import PAIRINGS, Pairing, Raw, check_columns, raw_rows
from dpo_lab.preferences.reports import BadRow, Place, ReadReport, counted
from dpo_lab.preferences.rows import ParsedRow, PlacedRow, example_row, pair_row, preference_row
from dpo_lab.preferences.sources import Source, open_source

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

OnBadRow = Literal["raise", "skip"]
Rows = TypeVar("Rows", bound="Sequence[dict[str, Any]] | datasets.Dataset")


def _prompt_row(raw: Raw, layout: str | None = None, *, from_arrow: bool = False) -> ParsedRow:
    """For sampling: of a row that has a prompt and no two answers beside it, the prompt alone."""
    if raw.get("prompt") is None or all(raw.get(name) is not None for name in ("chosen", "rejected")):
        return preference_row(raw, layout, from_arrow=from_arrow)
    beside = {name: raw[name] for name in ("prompt", "system", "tools") if name in raw}
    row = example_row({**beside, "completion": "none"}, from_arrow=from_arrow)
    del row.fields["completion"]
    return replace(row, layout="prompt")


class RowKind(NamedTuple):
    """What a source is read for: how a row is parsed, under which layouts, and the splits read first."""

    parse: Callable[..., ParsedRow]
    layouts: Collection[str]
    splits: tuple[str, ...]


PREFERENCES = RowKind(preference_row, LAYOUTS | UNPAIRED_LAYOUTS, ("train",))
PAIRS = RowKind(pair_row, LAYOUTS, ("train",))  # of which every row must be a pair
PROMPTS = RowKind(_prompt_row, LAYOUTS | UNPAIRED_LAYOUTS, ("train",))
EXAMPLES = RowKind(example_row, EXAMPLE_LAYOUTS | LAYOUTS, ("sft", "train"))


def load_preferences(
    source: object, split: str | None = None, *, layout: str | None = None, on_bad_row: OnBadRow = "raise",
    limit: int | None = None, seed: int = 0, columns: Mapping[str, str] | None = None, pairing: Pairing = "best_worst",
) -> datasets.Dataset | list[dict[str, Any]]:  # fmt: skip
    """Rows of prompt, chosen, rejected; the report is logged where anything was left out or split early.

    `source` is a file (.jsonl, .ndjson, .json, .csv, .tsv, also with .gz; .parquet), a folder of such files, a Hub id
    (`owner/name` or `owner/name:configuration`), "embedded", a `datasets.Dataset`, a mapping of splits, a list of
    dicts, a dict of columns, or a data frame. Without `split`, the training split is read. `layout` is found row by row
    (see `LAYOUTS`) unless given.

    Prompt and answers are plain text where the source has plain text, else message lists. Instruction rows are
    conversations of one user turn. `system`, `tools` and `weight` stay beside them, and so do all other columns.

    Rows of a single answer, `prompt`, `completion` and a yes or no in `label`, come as these three, with label a bool:
    the unpaired losses (`UNPAIRED_LOSSES`, such as kto) learn from them.

    A row that cannot be used raises BadRow, or with on_bad_row="skip" is left out and listed in the report. Rows whose
    chosen equals rejected are always left out and listed. `limit` draws that many usable rows, evenly by `seed`.

    columns: where a field has another name, as in {"prompt": "question", "chosen": "good", "rejected": "bad"}.
    pairing: which pairs are made of more than two answers to a prompt with scores or ranks: `best_worst` (one pair),
        `best_each` (the best with every worse one), or `all`.

    The rows come as a `datasets.Dataset`, or as a list of dicts where `datasets` is not installed or cannot hold the
    values exactly. `read_preferences` returns the list and its report, `stream_preferences` yields row by row.
    """
    read = read_rows(
        PREFERENCES, source, split, layout=layout, on_bad_row=on_bad_row, limit=limit, seed=seed, columns=columns,
        pairing=pairing,
    )  # fmt: skip
    return _as_dataset_with_warning(*read)


def load_examples(
    source: object, split: str | None = None, *, layout: str | None = None, on_bad_row: OnBadRow = "raise",
    limit: int | None = None, seed: int = 0, columns: Mapping[str, str] | None = None, pairing: Pairing = "best_worst",
) -> datasets.Dataset | list[dict[str, Any]]:  # fmt: skip
    """Rows of prompt, completion for supervised fine-tuning, read as `load_preferences` reads pairs.

    Of a conversation the last assistant turn is the completion, of a preference row the chosen answer. Without
    `split`, a split called sft is read before the training split.
    """
    read = read_rows(
        EXAMPLES, source, split, layout=layout, on_bad_row=on_bad_row, limit=limit, seed=seed, columns=columns,
        pairing=pairing,
    )  # fmt: skip
    return _as_dataset_with_warning(*read)


def read_rows(
    kind: RowKind, source: object, split: str | None = None,
    *, layout: str | None = None, on_bad_row: OnBadRow = "raise", limit: int | None = None, seed: int = 0,
    columns: Mapping[str, str] | None = None, pairing: Pairing = "best_worst",
) -> tuple[list[dict[str, Any]], ReadReport]:  # fmt: skip
    """All rows of a source, and the report on what was left out; arguments as in `load_preferences`."""
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise ValueError(f"limit must be at least 1, got {limit!r}; give a whole number, or None keeps all rows")
    opened, report = _open(kind, source, split, layout, on_bad_row, columns, pairing)
    rows: list[dict[str, Any]] = []
    seen: set[bytes] = set()
    for place, fields in _usable(opened, report, kind.parse, layout, on_bad_row, columns, pairing):
        fingerprint, contrary = _fingerprints(fields)
        if fingerprint in seen:
            report.duplicates.append(place)
        if contrary in seen:
            report.remark("contradicting", place)
        seen.add(fingerprint)
        rows.append(fields)
    if limit is not None and limit < len(rows):
        report.not_drawn = len(rows) - limit
        rows = [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), limit))]
    report.rows_kept = len(rows)
    return rows, report


def stream_rows(
    kind: RowKind,
    source: object,
    split: str | None = None,
    *,
    layout: str | None = None,
    on_bad_row: OnBadRow = "raise",
    columns: Mapping[str, str] | None = None,
    pairing: Pairing = "best_worst",
) -> tuple[Iterator[dict[str, Any]], ReadReport]:
    """The rows one by one: nothing is held, however many rows there are; the report fills as they are read.

    Rows of .jsonl(.gz) and .parquet files and of `datasets` come one by one; .json lists and .csv files are parsed
    whole first. Repeated rows are not looked for, since that would need a memory of all rows; the reference cache
    finds them. `tokenize_pairs(rows, tokenizer, folder=...)` takes the stream.
    """
    opened, report = _open(kind, source, split, layout, on_bad_row, columns, pairing)

    def rows() -> Iterator[dict[str, Any]]:
        for _, fields in _usable(opened, report, kind.parse, layout, on_bad_row, columns, pairing):
            report.rows_kept += 1
            yield fields

    return rows(), report


read_preferences, read_pairs, read_examples = (partial(read_rows, kind) for kind in (PREFERENCES, PAIRS, EXAMPLES))
read_prompts = partial(read_rows, PROMPTS)
stream_preferences, stream_pairs, stream_examples = (
    partial(stream_rows, kind) for kind in (PREFERENCES, PAIRS, EXAMPLES)
)


def check_on_bad_row(on_bad_row: str) -> None:
    if on_bad_row not in ("raise", "skip"):
        raise ValueError(f"on_bad_row must be 'raise' or 'skip', got {on_bad_row!r}; skip counts and lists such rows")


def _open(
    kind: RowKind, source: object, split: str | None, layout: str | None, on_bad_row: OnBadRow,
    columns: Mapping[str, str] | None, pairing: Pairing,
) -> tuple[Source, ReadReport]:  # fmt: skip
    if layout is not None and layout not in kind.layouts:
        raise ValueError(f"layout {layout!r} is not known; choose one of {', '.join(kind.layouts)}, or None to find it")
    check_on_bad_row(on_bad_row)
    check_columns(columns or {})
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(PAIRINGS)}, got {pairing!r}; best_worst makes one pair")
    opened = open_source(source, split, kind.splits, (columns or {}).values())
    return opened, ReadReport(opened.name, opened.split, unread=opened.unread, notes=opened.notes)


def _usable(
    opened: Source,
    report: ReadReport,
    parse: Callable[..., ParsedRow],
    layout: str | None,
    on_bad_row: OnBadRow,
    columns: Mapping[str, str] | None,
    pairing: Pairing,
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The rows that state a preference, in our shape; all others are listed in the report, or raise."""
    num_usable = 0
    for place, raw in opened.rows:
        report.rows_read += 1
        try:
            if isinstance(raw, BadRow):
                raise raw
            rows = [_parsed(*made, parse, layout, opened.from_arrow) for made in raw_rows(raw, columns, pairing)]
        except BadRow as problem:
            problem = problem if problem.place else problem.at(place)
            if on_bad_row == "raise":
                raise problem.or_skip() from None
            report.bad.append(problem)
            continue
        if not rows:
            report.remark("tied", place)
        for row in rows:
            if "rejected" in row.fields and row.fields["chosen"] == row.fields["rejected"]:
                report.identical.append(place)
                continue
            report.layouts[row.layout] += 1
            if (weight := row.fields.get("weight", 1)) != 1:
                row.remarks.add("weighted" if weight else "weightless")
            for remark in sorted(row.remarks):
                report.remark(remark, place)
            num_usable += 1
            yield place, PlacedRow.at(place, row.fields)
    if not num_usable:
        nothing = "no rows" if not report.rows_read else f"no usable row among {report.rows_read:,}"
        raise ValueError(f"{opened.name} holds {nothing}; each row needs a prompt and answers\n{report.summary()}")


def _parsed(
    raw: Raw, made_of: str | None, remarks: set[str], parse: Callable[..., ParsedRow], layout: str | None, arrow: bool
) -> ParsedRow:
    row = parse(raw, layout, from_arrow=arrow)
    return replace(row, layout=made_of or row.layout, remarks=row.remarks | remarks)


def _fingerprints(fields: dict[str, Any]) -> tuple[bytes, bytes]:
    """Of what a row says; and of the contrary, its answers the other way round or its answer with the other label."""
    rest = [fields.get(name) for name in ("prompt", "completion", "system", "tools")]
    pair, label = [fields.get("chosen"), fields.get("rejected")], fields.get("label")
    says = (pair, pair[::-1]) if "rejected" in fields else ([label], [label is False])
    own, contrary = (hashlib.blake2b(_content([*rest, *one]), digest_size=16).digest() for one in says)
    return own, contrary


def _content(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _as_dataset_with_warning(rows: list[dict[str, Any]], report: ReadReport) -> datasets.Dataset | list[dict[str, Any]]:
    if report.is_remarkable:
        logger.warning(report.summary())
    try:
        import datasets
    except ImportError:
        return rows
    return as_dataset(rows, datasets)


def as_dataset(rows: list[dict[str, Any]], datasets: Any) -> datasets.Dataset | list[dict[str, Any]]:
    """The rows as a Dataset that gives back exactly these values; a field that a row lacks comes back as None.

    Arrow would give all structs of a column the same fields, filled up with None: a tool call's arguments would come
    back with those of other tools. So columns of anything but plain values and plain messages are stored as JSON.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    features = {}
    for name, values in columns.items():
        features[name] = _exact_feature([value for value in values if value is not None], datasets)
        if features[name] is None:
            logger.warning("column %r does not fit a datasets.Dataset exactly: the rows are a list of dicts", name)
            return rows
        if type(features[name]).__name__ == "Json":
            columns[name] = [None if value is None else json.dumps(value) for value in values]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _exact_feature(values: list[Any], datasets: Any) -> Any:
    """The feature under which `datasets` gives back the same values, None if there is none."""
    import pyarrow as pa

    kinds = {type(value) for value in values}
    if kinds == {list} and all(_is_plain_conversation(value) for value in values):
        return [{"role": datasets.Value("string"), "content": datasets.Value("string")}]
    if len(kinds) == 1 and kinds.isdisjoint({list, dict, tuple}):
        try:
            return datasets.features.features.generate_from_arrow_type(pa.array(values).type)
        except (pa.ArrowException, OverflowError):
            return None
    if not kinds:
        return datasets.Value("string")
    return datasets.Json() if hasattr(datasets, "Json") and _survives_json(values) else None


def _is_plain_conversation(value: list[Any]) -> bool:
    return all(
        isinstance(turn, dict)
        and turn.keys() == {"role", "content"}
        and isinstance(turn["role"], str)
        and isinstance(turn["content"], str)
        for turn in value
    )


def _survives_json(values: Sequence[Any]) -> bool:
    """Whether `datasets` reads the JSON back as it was: its parser rounds some floats and stops at 64-bit integers."""
    from datasets.utils.json import ujson_loads

    try:
        return all(ujson_loads(json.dumps(value)) == value for value in values)
    except (TypeError, ValueError):
        return False


class OnePrompt(ValueError):
    """All rows answer one prompt, so that none can be held out."""


def of_job(rows: Sequence[Any], job: str) -> list[Any]:
    """The rows of one of the embedded data's jobs."""
    if not (found := [row for row in rows if row.get("job") == job]) and len(rows):
        raise ValueError(f"no row is of the job {job!r}; there are {sorted({str(row.get('job')) for row in rows})}")
    return found


def flip_labels(rows: Sequence[Mapping[str, Any]], share: float, seed: int = 0) -> list[dict[str, Any]]:
    """The rows, `share` of them, drawn by `seed`, labelled wrongly: chosen and rejected swapped, or label negated."""
    turned = [dict(row) for row in rows]
    for place in random.Random(seed).sample(range(len(rows)), round(share * len(rows))):
        row = turned[place]
        swapped = {"chosen": row["rejected"], "rejected": row["chosen"]} if "chosen" in row else {}
        row |= swapped or {"label": not row["label"]}
    return turned


def split_rows(rows: Rows, validation: float = 0.1, seed: int = 0) -> tuple[Rows, Rows]:
    """(train, validation): about that share of the rows, and all rows of a prompt on the same side.

    Prompts are taken for validation in the order of a hash of their content and `seed`, as long as they fit into the
    share: the order of the rows plays no part, and new rows move few of the old ones.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation is a share and must lie in (0, 1), got {validation}; 0.1 is usual")
    groups: dict[bytes, list[int]] = {}
    prompts = rows["prompt"] if hasattr(rows, "column_names") else [row["prompt"] for row in rows]  # type: ignore[index]
    for index, prompt in enumerate(prompts):
        key = hashlib.blake2b(_content([seed, prompt]), digest_size=16).digest()
        groups.setdefault(key, []).append(index)
    if len(groups) < 2:
        raise OnePrompt(
            f"{counted(len(prompts), 'row')} with {len(groups)} distinct prompt(s) cannot be split: the same one would "
            "stand on both sides; hold nothing out with --validation 0, add other prompts, or give --held-out data"
        )
    ordered = [groups[key] for key in sorted(groups)]
    target = round(validation * len(prompts))
    held_out: list[int] = []
    for taken, group in enumerate(ordered):
        if len(held_out) + len(group) <= target and taken < len(ordered) - 1:
            held_out += group
    held = set(held_out or min(ordered, key=len))
    sides = [index for index in range(len(prompts)) if index not in held], sorted(held)
    if hasattr(rows, "select"):
        return rows.select(sides[0]), rows.select(sides[1])  # type: ignore[union-attr]
    return [rows[index] for index in sides[0]], [rows[index] for index in sides[1]]  # type: ignore[return-value]
