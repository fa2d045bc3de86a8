"""From a source to the token ids of a run in one call; and on disk, so that the next run on the same data maps them.

Rendering and tokenising take longer than everything else before the first step. What a run trains on is therefore
cached in a folder under a key, the SHA-256 of all that it is made of: the files' bytes, the settings, the tokenizer,
the code that reads and tokenises. A change of any of them is another key, so nothing stale is ever served. β, the loss
and the learning rate are not in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_lab.config import ScoreTurns
from dpo_lab.preferences.encoding import tokenizer_settings
from dpo_lab.preferences.raw_rows import Pairing, columns_of
from dpo_lab.preferences.reading import (
    OnBadRow,
    flip_labels,
    of_job,
    read_examples,
    read_pairs,
    read_preferences,
    split_rows,
    stream_examples,
    stream_pairs,
    stream_preferences,
)
from dpo_lab.preferences.rows import Row
from dpo_lab.preferences.sources import source_files
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import check_kept, single_answers, tokenize_examples, tokenize_pairs, tokenize_unpaired
from dpo_lab.storage import token_files
from dpo_lab.storage.files import sha256_of_file, write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("dpo_lab")

MAX_DATA_SETS = 8
"""Data sets that stay on disk; beyond it the one that was not used for longest goes."""
_BODY = "prepared.json"
_OUR_NAME = re.compile(r"[0-9a-f]{64}(\.\d+\.partial)?")  # a key; with a process's number while it is written
_PACKAGES = ("transformers", "tokenizers", "jinja2")
# All that decides what is in the files of a data set: this folder, and how arrays are written.
_OWN_CODE = [*sorted(Path(__file__).parent.glob("*.py")), Path(token_files.__file__)]


class Kind(NamedTuple):
    """How rows of a kind are read, read one by one, and tokenised."""

    name: str
    read: Callable[..., tuple[Sequence[Row], Any]]
    stream: Callable[..., Any]
    tokenize: Callable[..., tuple[TokenData, Any]]


PAIRS = Kind("pairs", read_pairs, stream_pairs, tokenize_pairs)
UNPAIRED = Kind("rows", read_preferences, stream_preferences, tokenize_unpaired)
EXAMPLES = Kind("examples", read_examples, stream_examples, tokenize_examples)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What a run trains on and is evaluated on; the command line's options of these names."""

    pairs: str = "embedded"
    split: str | None = None
    limit: int | None = None
    on_bad_row: OnBadRow = "raise"
    columns: tuple[str, ...] = ()
    pairing: Pairing = "best_worst"
    held_out: str | None = None
    held_out_split: str | None = None
    validation: float = 0.1
    job: str | None = None
    flip: float = 0.0
    seed: int = 0
    max_length: int = 1024
    score_turns: ScoreTurns = "assistant"

    @property
    def tokens(self) -> dict[str, Any]:
        """How rows become token ids."""
        return {"max_length": self.max_length, "score_turns": self.score_turns, "on_bad_row": self.on_bad_row}

    @property
    def train_split(self) -> str | None:
        return self.split or ("train" if self.pairs == "embedded" else None)

    @property
    def held_out_source(self) -> tuple[str, str | None] | None:
        """Source and split of the held-out rows; None where they are split off, or there are none."""
        if self.held_out is not None:
            ours, theirs = (os.path.realpath(os.path.expanduser(name)) for name in (self.pairs, self.held_out))
            is_same = ours == theirs
            split = self.held_out_split or ("test" if is_same or self.held_out == "embedded" else None)
            if is_same and (split == self.train_split or (self.train_split is None and os.path.isfile(ours))):
                raise ValueError(f"--held-out {self.held_out} is --pairs: the same rows would be learnt and judged; "
                                 "leave it out (--validation holds rows out), or name two splits")  # fmt: skip
            return self.held_out, split
        if self.held_out_split is not None:
            raise ValueError(f"held_out_split is {self.held_out_split!r} without --held-out; name the source as well")
        return ("embedded", "test") if self.pairs == "embedded" and self.split != "test" else None


def reading(settings: Any, source: str) -> dict[str, Any]:
    """How settings or options of these names say that the rows of a source are read."""
    given = [entry.partition("=")[0] for entry in settings.columns]
    if len({*given}) < len(given):
        raise ValueError(f"--columns names a field more than once, got {' '.join(settings.columns)}; name each once")
    if given and {vars(settings).get(name) for name in ("data", "pairs", "held_out")} <= {None, "embedded"}:
        raise ValueError(f"--columns {settings.columns[0]} has no effect on the embedded data; leave it out")
    columns = {} if source == "embedded" else columns_of(settings.columns)
    return {"on_bad_row": settings.on_bad_row, "columns": columns, "pairing": settings.pairing}


class PreparedData(NamedTuple):
    """Token ids to train on and to evaluate on, and the held-out rows themselves."""

    train: TokenData
    held: TokenData | None
    held_rows: list[Row]


def prepare(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind = PAIRS,
    *,
    folder: Path | None = None,
    log: Callable[[str], None] = lambda note: None,
    check: Callable[[], None] = lambda: None,
) -> PreparedData:
    """Read, split and tokenise; or map what an earlier call with the same key has left in `folder`.

    log: called with each report on the rows, what was left out or shortened; with the same text both times.
    check: called between the stages; what it raises breaks off.

    A source that is not a file or folder here, such as a data set of the Hub, is read anew each time.
    """
    key = None if folder is None else _key(settings, tokenizer, kind)
    if folder is not None and key is not None and (found := _load(folder / key)) is not None:
        for note in found[1]:
            log(note)
        return found[0]
    notes: list[str] = []

    def log_and_save(note: str) -> None:
        notes.append(note)
        log(note)

    rows, report = kind.read(
        settings.pairs, split=settings.train_split, limit=settings.limit, seed=settings.seed,
        **reading(settings, settings.pairs),
    )  # fmt: skip
    log_and_save(report.summary(None))
    held = read_held_out(settings, kind, log_and_save)
    if held is None:
        rows, held = split_rows(list(rows), settings.validation, settings.seed) if settings.validation else (rows, [])
    if settings.job is not None:
        rows, held = of_job(rows, settings.job), of_job(held, settings.job)
    if settings.flip:
        if kind is EXAMPLES:
            raise ValueError(f"flip is {settings.flip} and good answers have no label to flip; leave it out")
        rows = flip_labels(rows, settings.flip, settings.seed)
    check()
    train, report = kind.tokenize(rows, tokenizer, **settings.tokens)
    check_kept(train, report, settings.pairs)
    log_and_save(report.summary(None))
    check()
    data = PreparedData(train, *tokenize_held_out(held, settings, tokenizer, kind, log_and_save))
    # A file that changed while it was read is not what the key says.
    if folder is not None and key is not None and len(train) and key == _key(settings, tokenizer, kind):
        _save(folder, key, data, notes)
        saved = _load(folder / key)  # mapped, so that it need not stay in memory while training
        return data if saved is None else saved[0]
    return data


def stream_tokens(
    folder: Path, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, kind: Kind, log: Callable[[str], None]
) -> None:
    """Have the token ids of rows that are read one by one in `folder`, for `TokenData.load` to map.

    What stands there under the same key stays, for any number of runs, and so do the same token ids under another key,
    as of another release. ValueError where they are others: a file that others may have mapped is never written to.
    """
    key = _key(replace(settings, held_out=None, held_out_split=None, validation=0.0, seed=0), tokenizer, kind)
    found = _read_body(folder / _BODY)
    if key is not None and found is not None and found["key"] == key:
        token_files.check_manifest(folder, verify=True)
        for note in found["notes"]:
            log(note)
        return
    is_new = not (folder / token_files.MANIFEST).exists()
    rows, read = kind.stream(settings.pairs, split=settings.train_split, **reading(settings, settings.pairs))
    tokens, report = kind.tokenize(rows, tokenizer, **settings.tokens, folder=folder)
    if is_new and not len(tokens):
        shutil.rmtree(folder, ignore_errors=True)
    check_kept(tokens, report, settings.pairs)
    notes = [part.summary(None) for part in (read, report)]
    for note in notes:
        log(note)
    if key is not None:
        body = _with_digest({"key": key, "notes": notes})
        write_whole(folder / _BODY, body, remedy="free space or permissions there")


def _read_body(path: Path) -> dict[str, Any] | None:
    """What `_with_digest` wrote; None where it is not there, or not whole."""
    with suppress(OSError, UnicodeDecodeError):
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
        return json.loads(text) if digest == _sha256(text) else None
    return None


def _with_digest(body: dict[str, Any]) -> bytes:
    text = json.dumps(body)
    return f"{_sha256(text)}\n{text}".encode()


def read_held_out(settings: DataSettings, kind: Kind, log: Callable[[str], None]) -> list[Row] | None:
    """The rows of a source of their own; None where there is none."""
    source = settings.held_out_source
    if source is None:
        return None
    held, report = kind.read(source[0], split=source[1], **reading(settings, source[0]))
    if settings.held_out is not None:
        log(report.summary(None))
    return list(held)


def tokenize_held_out(
    rows: Sequence[Row], settings: DataSettings, tokenizer: PreTrainedTokenizerBase, kind: Kind,
    log: Callable[[str], None],
) -> tuple[TokenData | None, list[Row]]:  # fmt: skip
    """Token ids, and the rows that have them; (None, []) without rows. What was left out is logged."""
    if not rows:
        return None, []
    tokens, report = kind.tokenize(rows, tokenizer, **settings.tokens)
    if report.dropped or report.identical:
        log(report.summary(None))
    singles = single_answers if kind is UNPAIRED else list  # of a pair two
    of = [index for index, row in enumerate(rows) for _ in singles([row])]
    return tokens, [rows[index] for index in dict.fromkeys(of[place] for place in tokens.source_rows)]


def _key(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, kind: Kind) -> str | None:
    """None where source and tokenizer cannot be identified without using them."""
    sources = [settings.pairs]
    if held := settings.held_out_source:
        sources.append(held[0])
    about = tokenizer_settings(tokenizer)
    files = [source_files(source) for source in sources]
    if about is None or None in files:
        return None
    draws = settings.limit is not None or held is None or settings.flip
    what = {
        "settings": asdict(replace(settings, seed=settings.seed if draws else 0)),
        "kind": kind.name,
        "tokenizer": about,
        "packages": [_version(name) for name in _PACKAGES],
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=repr).encode())
    try:
        for path in [*_OWN_CODE, *(path for paths in files for path in paths or ())]:
            digest.update(f"{path.name} {sha256_of_file(path)}\n".encode())
    except OSError:  # reading it explains why
        return None
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _save(folder: Path, key: str, data: PreparedData, notes: list[str]) -> None:
    """Write everything beside its place, then move it there: others see the whole or nothing."""
    body = {"notes": notes, "held_rows": data.held_rows, "is_held": data.held is not None}
    partial = folder / f"{key}.{os.getpid()}.partial"
    try:
        text = _with_digest(body)
        if json.loads(text.partition(b"\n")[2]) != body:
            return  # rows that JSON cannot give back
        partial.mkdir(parents=True)
        data.train.save(partial / "train")
        if data.held is not None:
            data.held.save(partial / "held")
        (partial / _BODY).write_bytes(text)
        with suppress(OSError):  # another run has just saved the same
            partial.rename(folder / key)
        _trim(folder)
    except TypeError:  # rows with values that JSON does not know
        return
    except OSError as error:
        logger.warning("the token ids cannot be saved in %s (%s): the next run makes them again", folder, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(folder: Path) -> tuple[PreparedData, list[str]] | None:
    if not folder.exists():
        return None
    try:
        if (body := _read_body(folder / _BODY)) is None:
            raise ValueError(f"{folder / _BODY} is missing, or has changed since it was written")
        train = TokenData.load(folder / "train")
        held = TokenData.load(folder / "held") if body["is_held"] else None
        with suppress(OSError):
            os.utime(folder)  # used just now
    except (OSError, ValueError) as error:
        logger.warning("the token ids saved in %s cannot be used (%s): they are made again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return PreparedData(train, held, body["held_rows"]), body["notes"]


def _trim(folder: Path) -> None:
    """Remove the data sets that were not used for longest, and what a run that was killed left half written. Nothing
    that does not have our own kind of name is touched: the folder may be anybody's."""
    ours = [path for path in folder.iterdir() if _OUR_NAME.fullmatch(path.name) and path.is_dir()]
    finished = sorted((path for path in ours if path.suffix == ""), key=_last_used)
    abandoned = [path for path in ours if path.suffix and time.time() - _last_used(path) > token_files.A_DAY]
    for path in [*finished[:-MAX_DATA_SETS], *abandoned]:
        shutil.rmtree(path, ignore_errors=True)


def _last_used(path: Path) -> float:
    with suppress(OSError):  # another run has just removed it
        return path.stat().st_mtime
    return 0.0


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
