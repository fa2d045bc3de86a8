"""What was read, left out, shortened: places, bad rows, and the two reports. Counts only, no reading here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dpo_lab.config import ScoreTurns


@dataclass(frozen=True)
class Place:
    """Where a row came from. Lines count from 1, as editors do; row indices from 0, as Python does."""

    source: str
    line: int | None = None
    row: int | None = None
    of_several: bool = field(default=False, compare=False)
    """Whether the rows come from several files, so that the number alone does not say where it is."""

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.source}, line {self.line}"
        return self.source if self.row is None else f"{self.source}, row index {self.row}"

    @property
    def short(self) -> str:
        """Only the number, for lists, where one file is read."""
        if self.of_several:
            return str(self)
        return f"line {self.line}" if self.line is not None else f"row {self.row}"


class BadRow(ValueError):
    """A row that cannot be used: where it is, which field, which rule it breaks, what to do."""

    def __init__(self, field: str | None, rule: str, remedy: str, place: Place | None = None) -> None:
        self.field, self.rule, self.remedy, self.place = field, rule, remedy, place
        where = f"{place}: " if place else ""
        what = f"field {field!r} " if field else ""
        super().__init__(f"{where}{what}{rule}; {remedy}")

    def at(self, place: Place) -> BadRow:
        return BadRow(self.field, self.rule, self.remedy, place)

    def or_skip(self) -> BadRow:
        """With the other remedy, where the caller can leave such rows out."""
        remedy = f'{self.remedy}. --on-bad-row skip (on_bad_row="skip") leaves such rows out and lists them'
        return BadRow(self.field, self.rule, remedy, self.place)


def shown(value: object, width: int = 60) -> str:
    """A value for an error message: its repr, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listed(items: Sequence[str], most: int = 6) -> str:
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more:,} more" if more > 0 else "")


def _placed(what: str, places: Sequence[Place]) -> list[str]:
    """The line of a summary about rows: how many, and the first places."""
    return [f"{what}: {len(places):,} ({_listed([place.short for place in places])})"] if places else []


def _left_out(bad: Sequence[BadRow], most: int | None) -> list[str]:
    """The lines of a summary about rows that cannot be used: how many, and the first ones (None: all)."""
    if not bad:
        return []
    more = [f"  and {len(bad) - most:,} more"] if most is not None and len(bad) > most else []
    return [f"left out, unusable: {len(bad):,}", *(f"  {problem}" for problem in bad[:most]), *more]


READ_AS = {
    "text_messages": "messages written as text, read as messages",
    "text_kept": "answers that are messages written as text beside one that is none, kept as text",
    "answer_in_prompt": "conversations that ended with one of the answers, which was taken once",
    "prefill": "prompts that end with the beginning of the answer, which is not learnt",
    "repeated_prompt": "answers that began with their prompt, which was taken off",
    "restates": "answers that begin with the words of their prompt, kept",
    "end_marker": "end markers typed at the end of answers, taken off",
    "marker_inside": "markers of turns or of the end inside answers, kept",
    "media": "rows with images, video or audio beside the text, which are not looked at",
    "media_marker": "texts that speak of an <image>, <video> or <audio>, learnt as these words",
    "human_inside": "answers with a human's turn inside, which is learnt as well (as messages it would not be)",
    "unused": "columns that took no part and look like a part of the prompt or of an answer",
    "tied": "left out, no answer is preferred to the others",
    "contradicting": "rows that contradict an earlier row (the same answers, judged the other way), kept",
    "weightless": "rows with weight 0, which do not count in the loss",
    "weighted": "rows with another weight than 1",
}
"""What a remark says of the rows that it counts."""


@dataclass
class ReadReport:
    """What became of every row of a source. `rows_read` = `rows_kept` + bad + identical + not drawn + tied, where each
    row is one pair; of several answers to a prompt there may be more."""

    source: str
    split: str | None = None
    rows_read: int = 0
    rows_kept: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)
    """Rows left out because they cannot be used (only with on_bad_row="skip")."""
    identical: list[Place] = field(default_factory=list)
    """Rows left out because chosen = rejected states no preference."""
    split_early: list[Place] = field(default_factory=list)
    """The two conversations part before the last assistant turn of chosen; the pair is split where they part."""
    run_on: list[Place] = field(default_factory=list)
    """Only the rejected conversation goes on after the shared part with more than one assistant turn."""
    silent: list[Place] = field(default_factory=list)
    """Transcripts in which an assistant turn is there but empty: kept, the answer is the end token alone."""
    wrapped: list[Place] = field(default_factory=list)
    """Plain-text rows with a `system` or `tools` column: the prompt became a user turn, to carry them."""
    remarks: dict[str, list[Place]] = field(default_factory=dict)
    """Rows that were read in one of the ways of `READ_AS`, by its name."""
    duplicates: list[Place] = field(default_factory=list)
    """Rows that repeat an earlier row word for word: kept, and so counted twice in training."""
    not_drawn: int = 0
    """Usable rows beyond `limit`."""
    unread: list[str] = field(default_factory=list)
    """Files of a folder that may hold rows, of kinds that are not read."""
    notes: list[str] = field(default_factory=list)
    """What else a reader should know about the source, such as splits that were not read."""

    @property
    def is_remarkable(self) -> bool:
        """Whether anything was left out or read in a way that the reader might not expect."""
        # Some answers do take up the question; where many do, a tool has put it there.
        usual = {"weighted", *(["restates"] if len(self.remarks.get("restates", ())) <= self.rows_read / 50 else [])}
        own = self.bad, self.identical, self.split_early, self.run_on, self.silent, self.wrapped, self.unread
        return any(own) or not self.remarks.keys() <= usual

    def remark(self, name: str, place: Place) -> None:
        own = getattr(self, name, None)
        (self.remarks.setdefault(name, []) if own is None else own).append(place)

    def summary(self, most: int | None = 5) -> str:
        """All of it as text, with the first `most` of the rows that cannot be used (None: all of them)."""
        layouts = ", ".join(f"{name} {count:,}" if len(self.layouts) > 1 else name for name, count in
                            self.layouts.most_common())  # fmt: skip
        split = f" [{self.split}]" if self.split else ""
        lines = [f"{self.source}{split}: {counted(self.rows_read, 'row')} read, {self.rows_kept:,} kept"
                 + (f" (layout: {layouts})" if layouts else "")]  # fmt: skip
        lines += _left_out(self.bad, most)
        for places, what in (
            (self.identical, "left out, chosen = rejected states no preference"),
            (self.split_early, "split early: the two conversations differ before the last assistant turn"),
            (self.run_on, "rejected answer runs on into a further turn"),
            (self.silent, "answers that are an empty turn"),
            (self.wrapped, "plain prompts made a user turn, to carry a system or tools column"),
            *((places, READ_AS[name]) for name, places in self.remarks.items()),
            (self.duplicates, "repeats of an earlier row, kept"),
        ):
            lines += _placed(what, places)
        if self.not_drawn:
            lines.append(f"left out by the limit, drawn at random: {self.not_drawn:,}")
        if self.unread:
            lines.append(f"files of a kind that is not read: {_listed(self.unread)}; unpack or convert them")
        return "\n".join([*lines, *self.notes])


@dataclass
class TokenReport:
    """What became of every row on its way to token ids. `rows` = `kept` + dropped + identical."""

    max_length: int
    score_turns: ScoreTurns = "assistant"
    rows: int = 0
    kept: int = 0
    dropped: list[BadRow] = field(default_factory=list)
    """Rows that could not be made to fit or to render (only with on_bad_row="skip")."""
    identical: list[Place] = field(default_factory=list)
    """Rows left out because both answers have the same tokens (after truncation)."""
    alike_by_cutting: list[Place] = field(default_factory=list)
    """Those of them that truncation made alike."""
    alike_by_template: list[Place] = field(default_factory=list)
    """Those of them of which the chat template leaves out text."""
    leaving_out: list[Place] = field(default_factory=list)
    """Rows with an answer of which the chat template leaves out text, such as its reasoning, or a call."""
    num_left_out: int = 0
    """Answers of which the chat template leaves out text; `left_out` holds what, of the first."""
    left_out: str = ""
    prompts_left_out: list[Place] = field(default_factory=list)
    """Rows of whose prompt the chat template leaves out a turn, a call or a function on offer; the first stands in
    `prompt_left_out`."""
    prompt_left_out: str = ""
    prompts_shortened: int = 0
    completions_cut: int = 0
    """Completions, not rows: a pair can have two. A cut completion has no end token."""
    empty_prompts: int = 0
    """Rows whose prompt has no token, so that the first completion token has no predictor and is not scored."""
    border_moved: int = 0
    """Rows whose last prompt token merges with the completion's first: that token is scored with the completion."""
    unstable_prompts: int = 0
    """Rows whose rendered prompt does not begin the rendered whole (a template that rewrites earlier turns)."""
    foreign_turns: int = 0
    """Completions with a tool's or user's turn inside, which is scored only under `score_turns="all"`."""
    mean_prompt: float = 0.0
    mean_completion: float = 0.0
    longest_prompt: int = 0
    longest_completion: int = 0
    longest: int = 0
    """Tokens of the longest prompt with one of its completions."""
    template: str = "none"
    """Whose chat template was used: `none` (plain text), `tokenizer`, `default`, or `mixed`."""
    end_tokens: list[str] = field(default_factory=list)
    """The token with which completions end; empty where the tokenizer has none."""

    def leave_out(self, texts: Sequence[str], place: Place) -> None:
        """Count a row of whose answers the chat template leaves out these texts."""
        self.leaving_out.append(place)
        self.num_left_out += len(texts)
        self.left_out = self.left_out or texts[0]

    def measure(self, prompts: np.ndarray, completions: np.ndarray) -> None:
        """Take the lengths from (N,) prompt and (N, K) completion lengths, in tokens."""
        self.kept = len(prompts)
        if not self.kept:
            return
        self.mean_prompt, self.longest_prompt = float(prompts.mean()), int(prompts.max())
        self.mean_completion, self.longest_completion = float(completions.mean()), int(completions.max())
        self.longest = int((prompts + completions.max(axis=1)).max())
        self.empty_prompts = int((prompts == 0).sum())

    def summary(self, most: int | None = 5) -> str:
        """All of it as text, with the first `most` of the rows that were dropped (None: all of them)."""
        end = " or ".join(self.end_tokens) or "none: the tokenizer has no end token"
        lines = [
            f"{counted(self.rows, 'row')} tokenised, {self.kept:,} kept",
            f"prompt: {self.mean_prompt:.0f} tokens on average, at most {self.longest_prompt:,}; "
            f"completion: {self.mean_completion:.0f}, at most {self.longest_completion:,}; "
            f"together at most {self.longest:,} of the {self.max_length:,} allowed",
            f"chat template: {self.template}; end token: {end}",
        ][: None if self.kept else 1]
        for count, what in (
            (self.prompts_shortened, "prompts shortened at their oldest part"),
            (self.completions_cut, "completions cut, which have no end token now"),
            (self.empty_prompts, "empty prompts: nothing predicts the first completion token, so it is not scored"),
            (self.border_moved, "prompts whose last token merges with the completion and is scored with it"),
            (self.unstable_prompts, "prompts that the chat template changes when an answer follows"),
            (
                self.foreign_turns,
                "completions with a tool's or user's turn inside, which is "
                + ("scored too" if self.score_turns == "all" else "not scored"),
            ),
        ):
            if count:
                lines.append(f"{what}: {count:,}")
        for places, what in (
            (
                self.leaving_out,
                f"the chat template leaves out text of {counted(self.num_left_out, 'answer')}, "
                f"such as {shown(self.left_out)}; rows",
            ),
            (
                self.prompts_left_out,
                f"the chat template leaves out a part of the prompt, such as {shown(self.prompt_left_out)}; rows",
            ),
            (self.identical, "left out, both answers have the same tokens"),
            (self.alike_by_cutting, f"  alike since they are cut at max_length = {self.max_length:,}, raise it"),
            (self.alike_by_template, "  alike since the chat template leaves out where they differ"),
        ):
            lines += _placed(what, places)
        return "\n".join(lines + _left_out(self.dropped, most))
