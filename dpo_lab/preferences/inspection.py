"""Data as a model will see it: the layout, what was reported, and rows as tokens, with what is scored and cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dpo_lab.config import ScoreTurns
from dpo_lab.preferences.encoding import common_prefix, token_texts
from dpo_lab.preferences.raw_rows import Pairing
from dpo_lab.preferences.reading import OnBadRow
from dpo_lab.preferences.reports import ReadReport, TokenReport
from dpo_lab.preferences.token_cache import EXAMPLES, UNPAIRED
from dpo_lab.preferences.token_data import TokenRow
from dpo_lab.preferences.token_data import plain as plain_ids
from dpo_lab.preferences.tokens import single_answers, tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fate = Literal["prompt", "scored", "cut"]
_NO_LIMIT = 2**40
_LOOKS = {
    "prompt": "color: #767676",
    "scored": "background: #d8f0d8; color: #222222",
    "cut": "color: #a02020; text-decoration: line-through",
}


class Part(NamedTuple):
    """Tokens that have the same fate."""

    fate: Fate
    tokens: list[str]


class ShownRow(NamedTuple):
    """A row as tokens: its prompt and each answer, in parts."""

    place: str
    texts: dict[str, list[Part]]


@dataclass(frozen=True)
class Inspection:
    """What `inspect_data` found. Printed it is plain text; a notebook shows it in colours."""

    read: ReadReport
    tokens: TokenReport
    rows: list[ShownRow]

    def __str__(self) -> str:
        lines = [self.read.summary(), self.tokens.summary()]
        for row in self.rows:
            lines += ["", row.place, *(f"{name:>10} {''.join(map(plain, parts))}" for name, parts in row.texts.items())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        reports = escape(f"{self.read.summary()}\n{self.tokens.summary()}")
        legend = " ".join(f'<span style="{look}">{fate}</span>' for fate, look in _LOOKS.items())
        rows = "".join(
            f"<tr><th colspan=2>{escape(row.place)}</th></tr>" + "".join(
                f"<tr><td>{escape(name)}</td><td>{''.join(map(_html, parts))}</td></tr>"
                for name, parts in row.texts.items()
            ) for row in self.rows
        )  # fmt: skip
        cells = "text-align: left; white-space: pre-wrap; overflow-wrap: anywhere"
        return f"<pre>{reports}</pre><p>{legend}</p><table style='{cells}'>{rows}</table>"


def plain(part: Part) -> str:
    """A part as text: |to|kens| that are scored, ⟨those⟩ that are cut, and the prompt as it reads."""
    match part.fate:
        case "scored":
            return f"|{'|'.join(part.tokens)}|".replace("\n", "↵") if part.tokens else ""
        case "cut":
            return f"⟨cut: {''.join(part.tokens)}⟩".replace("\n", "↵") if part.tokens else ""
    return "".join(part.tokens).replace("\n", "↵")


def _html(part: Part) -> str:
    tokens = (escape(token).replace("\n", "↵\n") for token in part.tokens)
    return "".join(
        f'<span style="{_LOOKS[part.fate]}; border-left: 1px solid #bbbbbb">{token}</span>' for token in tokens
    )


def inspect_data(
    source: object,
    tokenizer: PreTrainedTokenizerBase,
    split: str | None = None,
    *,
    num_rows: int = 3,
    max_length: int = 1024,
    score_turns: ScoreTurns = "assistant",
    sft: bool = False,
    on_bad_row: OnBadRow = "skip",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    pairing: Pairing = "best_worst",
) -> Inspection:
    """Read and tokenise a source as a training does, and show `num_rows` rows as tokens.

    sft: as examples to imitate, in place of preferences. The other arguments are those of `load_preferences` and
    `tokenize_pairs`; rows that cannot be used are listed here unless on_bad_row is "raise".
    """
    if num_rows < 0:
        raise ValueError(f"the number of rows to show must not be negative, got {num_rows}; 0 shows the reports alone")
    kind = EXAMPLES if sft else UNPAIRED
    rows, read = kind.read(source, split, on_bad_row=on_bad_row, limit=limit, columns=columns, pairing=pairing)
    tokenize = kind.tokenize
    if not sft and all("chosen" in row for row in rows):
        tokenize = tokenize_pairs
    elif not sft:
        rows = list(single_answers(rows))
    data, report = tokenize(rows, tokenizer, max_length=max_length, score_turns=score_turns, on_bad_row=on_bad_row)
    shown = []
    for index in range(min(num_rows, len(data))):
        row = rows[int(data.source_rows[index])]
        whole, _ = tokenize([row], tokenizer, max_length=_NO_LIMIT, score_turns=score_turns)
        names = ("chosen", "rejected") if data.num_completions == 2 else ("completion",)
        facts = {name: row.get(name) for name in ("label", "weight")}
        more = [f", {name} {fact}".lower() for name, fact in facts.items() if fact is True or fact not in (None, 1)]
        place = "".join([str(getattr(row, "place", f"row {index}")), *more])
        shown.append(ShownRow(place, _parts(tokenizer, names, whole.row(0), data.row(index))))
    return Inspection(read, report, shown)


def _fate(is_scored: bool) -> Fate:
    return "scored" if is_scored else "prompt"


def _parts(tokenizer: Any, names: tuple[str, ...], whole: TokenRow, kept: TokenRow) -> dict[str, list[Part]]:
    """Prompt and answers before they were shortened, with what of them was kept."""
    lost, head = len(whole.prompt) - len(kept.prompt), common_prefix(whole.prompt, kept.prompt)
    texts = token_texts(tokenizer, whole.prompt)
    parts = {"prompt": [Part("prompt", texts[:head]), Part("cut", texts[head : head + lost]),
                        Part("prompt", texts[head + lost :])]}  # fmt: skip
    unscored = 0 if len(kept.prompt) else 1  # nothing predicts the first token of all
    for name, ids, short in zip(names, whole.completions, kept.completions, strict=True):
        texts = token_texts(tokenizer, plain_ids(ids), before=whole.prompt)
        is_scored = [place >= unscored and token >= 0 for place, token in enumerate(short.tolist())]
        cut: list[Fate] = ["cut"] * (len(texts) - len(short))
        fates = [*(_fate(scored) for scored in is_scored), *cut]
        runs = groupby(zip(fates, texts, strict=True), key=itemgetter(0))
        parts[name] = [Part(fate, [text for _, text in run]) for fate, run in runs]
    return parts
