"""The results of a book: pairs to train on, which source wins how often, and whether the left side wins too often.

Ties and skips are counted in every answer; nothing is dropped in silence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from dpo_lab.storage.files import write_lines
from dpo_lab.workbench.labels.book import REMEDY, LabelBook

Ties = Literal["leave out", "both ways"]


@dataclass(frozen=True)
class ExportReport:
    """What became of every question of the books."""

    who: tuple[str, ...]
    num_rows: int
    """Rows written."""
    num_preferred: int
    """Questions with a preferred answer: one row each."""
    num_ties: int
    num_skipped: int
    num_open: int
    ties: Ties

    def summary(self) -> str:
        """The counts in words."""
        fate = "left out" if self.ties == "leave out" else "written both ways with half the weight each"
        return (
            f"{_counted(self.num_rows, 'row')} written, of {', '.join(self.who)}: "
            f"{_counted(self.num_preferred, 'preference')}; {_counted(self.num_ties, 'tie')} {fate}; "
            f"{self.num_skipped} skipped and {self.num_open} open, left out"
        )


def export_rows(
    books: LabelBook | Sequence[LabelBook], *, ties: Ties = "leave out"
) -> tuple[list[dict[str, Any]], ExportReport]:
    """Rows that `load_preferences` reads: prompt, chosen, rejected, who, when, question, and the sources.

    ties: "leave out" counts them only. "both ways" writes a tie as two rows, one each way, with weight ½ each: their
        losses are least where the margin is 0, which is what a tie means. All rows have a `weight` then.
    """
    if ties not in ("leave out", "both ways"):
        raise ValueError(f"ties must be 'leave out' or 'both ways', got {ties!r}; either way they are counted")
    given = [books] if isinstance(books, LabelBook) else list(books)
    rows: list[dict[str, Any]] = []
    found: Counter[str] = Counter()
    for book in given:
        found.update(book.counts)
        for choice in sorted(book.choices):
            winners = [choice.winner] if choice.winner is not None else []
            if choice.choice == "tie" and ties == "both ways":
                winners = [0, 1]
            for winner in winners:
                row = book.questions[choice.question].row(winner)
                if ties == "both ways":
                    row["weight"] = row.get("weight", 1.0) * (0.5 if choice.choice == "tie" else 1.0)
                rows.append(row | {"who": book.who, "when": choice.when, "question": choice.question})
    report = ExportReport(tuple(book.who for book in given), len(rows), found["left"] + found["right"], found["tie"],
                          found["skip"], found["open"], ties)  # fmt: skip
    return rows, report


def export_labels(
    books: LabelBook | Sequence[LabelBook], path: str | Path, *, ties: Ties = "leave out"
) -> ExportReport:
    """Write `export_rows` as a JSONL file, whole or not at all, and report what became of every question."""
    rows, report = export_rows(books, ties=ties)
    if Path(path).suffix != ".jsonl":
        raise ValueError(f"labels are exported as .jsonl, one row per line, got {str(path)!r}; name it LABELS.jsonl")
    if not rows:
        raise ValueError(f"there is no preference to export yet ({report.summary()}); label some questions first")
    write_lines(Path(path), rows, remedy=REMEDY)
    return report


class Share(NamedTuple):
    """A share of n with its confidence interval."""

    share: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, *, level: float = 0.95) -> Share:
    """A share with Wilson's score interval: every p that a two-sided test at 1 − level would not reject.

    (p̂ + z²/2n ± z·√(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), with z the normal quantile. It stays inside 0..1 and holds its
    level for small n, where p̂ ± z·√(p̂(1−p̂)/n) does not. For n = 0 the share is nan, the interval 0..1.
    Wilson 1927, J. Am. Stat. Assoc. 22, 209–212; compared with others in Brown, Cai & DasGupta 2001.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}; 0.95 is usual")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, got {successes} of {n}; n counts all comparisons")
    if n == 0:
        return Share(math.nan, 0.0, 1.0, 0)
    z, p = NormalDist().inv_cdf((1 + level) / 2), successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = (centre - spread) / (1 + z * z / n) if successes else 0.0  # exactly: rounding would leave 1e-17
    high = (centre + spread) / (1 + z * z / n) if successes < n else 1.0
    return Share(p, low, high, n)


class WinRate(NamedTuple):
    """How one source does against the others."""

    source: str
    wins: int
    losses: int
    ties: int
    rate: Share
    """Wins plus half of the ties, as a share of all three. Counting ties as halves makes the interval a little wide."""


def win_rates(book: LabelBook) -> list[WinRate]:
    """The win rate of each source, in the order of their names; skipped and open questions count for nobody."""
    names = sorted({name for question in book.questions for name in question.sources})
    wins, losses, ties = (Counter[str]() for _ in range(3))
    for choice in book.choices:
        sources = book.questions[choice.question].sources
        if choice.choice == "skip" or sources[0] == sources[1]:
            continue
        if choice.winner is None:
            ties.update(sources)
        else:
            wins[sources[choice.winner]] += 1
            losses[sources[1 - choice.winner]] += 1
    return [
        WinRate(n, wins[n], losses[n], ties[n], wilson(wins[n] + ties[n] / 2, wins[n] + losses[n] + ties[n]))
        for n in names
    ]


def left_share(book: LabelBook) -> Share:
    """How often the left answer won, where one did: sides are random, so an unbiased labeller comes to one half."""
    counts = book.counts
    return wilson(counts["left"], counts["left"] + counts["right"])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
