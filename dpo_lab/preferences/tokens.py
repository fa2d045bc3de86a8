"""Rows → token ids: the border between prompt and completion, the end token, and what to do with long rows.

Prompt and completion are never tokenised apart and glued. Each answer is tokenised together with its prompt, and the
border is the longest common token prefix of the prompt alone and of the prompt with each answer: where the last
characters of the prompt merge with an answer into one token, that token belongs to the completion.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from dpo_lab.config import ScoreTurns
from dpo_lab.preferences.chat import (
    dropped_from_prompt,
    dropped_text,
    has_own_template,
    is_conversation,
    prompt_messages,
    render,
    render_prompt,
    render_whole,
)
from dpo_lab.preferences.encoding import Encoder, common_prefix
from dpo_lab.preferences.messages import ROLES
from dpo_lab.preferences.raw_rows import perhaps, yes_or_no
from dpo_lab.preferences.reading import OnBadRow, check_on_bad_row
from dpo_lab.preferences.reports import BadRow, Place, TokenReport, shown
from dpo_lab.preferences.rows import PlacedRow, check_weight, unpaired_problem
from dpo_lab.preferences.sources import is_frame
from dpo_lab.preferences.token_data import Collector, TokenData

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

_CHUNK = 256  # rows per call of the tokenizer: enough to fill its threads, few enough to keep the memory flat


class Texts(NamedTuple):
    """One row, rendered: the prompt as it is continued, and with each of its answers."""

    number: int
    row: Mapping[str, Any]
    is_chat: bool
    weight: float
    prompt: str
    wholes: list[str]
    dropped: list[str]
    """Texts of its answers that the template leaves out."""
    dropped_from_prompt: str | None


def tokenize_pairs(
    rows: Iterable[Mapping[str, Any]] | datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    score_turns: ScoreTurns = "assistant",
    on_bad_row: OnBadRow = "raise",
    folder: str | os.PathLike[str] | None = None,
) -> tuple[TokenData, TokenReport]:
    """Rows of prompt, chosen, rejected → token ids with K = 2, and what was shortened or left out.

    `max_length` counts the prompt with its longer completion. The prompt is shortened first, at its oldest part,
    keeping BOS and the system turn; then completions at their end. Pairs whose answers have the same tokens
    afterwards are left out and counted.

    score_turns: of an answer of several turns, what counts: the assistant's turns, all, or the last of the assistant.
    folder: the ids are written there as they come, and mapped from there: with rows that are streamed
        (`stream_preferences`) the memory does not grow with their number. `TokenData.load(folder)` opens them again.
    """
    return _tokenize(
        cast("Iterable[Mapping[str, Any]]", rows), ("chosen", "rejected"), tokenizer, max_length, score_turns,
        on_bad_row, folder,
    )  # fmt: skip


def tokenize_examples(
    rows: Iterable[Mapping[str, Any]] | datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    score_turns: ScoreTurns = "assistant",
    on_bad_row: OnBadRow = "raise",
    folder: str | os.PathLike[str] | None = None,
) -> tuple[TokenData, TokenReport]:
    """Rows of prompt, completion → token ids with K = 1; rules as in `tokenize_pairs`.

    Preference rows (no completion, but chosen) are taken by their chosen answer.
    """
    stream = iter(cast("Iterable[Mapping[str, Any]]", rows))
    first = list(islice(stream, 1))
    columns = first[0] if first else {}
    answer = "chosen" if "chosen" in columns and "completion" not in columns else "completion"
    return _tokenize(chain(first, stream), (answer,), tokenizer, max_length, score_turns, on_bad_row, folder)


def tokenize_unpaired(
    rows: Iterable[Mapping[str, Any]] | datasets.Dataset, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> tuple[TokenData, TokenReport]:
    """Rows of prompt, completion, label → token ids with K = 1; a bad answer has a weight below zero. A pair becomes
    two rows, a good and a bad one. Rules and options as in `tokenize_pairs`.
    """
    singles = single_answers(cast("Iterable[Mapping[str, Any]]", rows))
    return _tokenize(singles, ("completion",), tokenizer, needs_label=True, **options)


def single_answers(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Rows of single answers as they are; of a pair two, the chosen answer as a good one, the rejected as a bad one."""
    for index, row in enumerate(rows):
        if row.get("chosen") is None:
            yield row
            continue
        for name, label in (("chosen", True), ("rejected", False)):
            rest = {field: value for field, value in row.items() if field not in ("chosen", "rejected")}
            yield PlacedRow.at(_place(row, index), rest | {"completion": row[name], "label": label})


def check_kept(data: TokenData, report: TokenReport, name: str) -> None:
    """ValueError with the report's reasons where no row is left to learn from."""
    if not len(data):
        raise ValueError(f"{name} holds no usable row:\n{report.summary()}")


def encode_prompt(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> list[int]:
    """The prompt alone, for sampling; shortened as in training where it is longer than max_length."""
    encoder = Encoder(tokenizer)
    ids = encoder.started(encoder.ids([render_prompt(row, tokenizer)])[0], is_chat=is_conversation(row))
    if max_length is not None and len(ids) > max_length:
        head, tail = encoder.protected(row, ids, 0)
        ids = shorten(ids, (), max_length, head=head, tail=tail)[0]
    return ids.tolist()


def shorten(
    prompt: np.ndarray, completions: Sequence[np.ndarray], max_length: int, *, head: int, tail: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Prompt (P,) and completions (C_k,) so that the prompt with each completion has at most max_length tokens.

    The prompt gives way first: its oldest tokens behind the first `head` (BOS, the system turn), as far as its last
    `tail` (the header of the answer). One prompt serves all completions, so the longest of them governs. Only when
    nothing is left between head and tail are completions cut, at their end, and never to nothing.
    """
    head, tail = min(head, len(prompt)), min(tail, max(0, len(prompt) - head))
    keep = max(max_length - max(map(len, completions), default=0), head + tail)
    if keep < len(prompt):
        prompt = np.concatenate([prompt[:head], prompt[len(prompt) - (keep - head) :]])
    room = max_length - len(prompt)
    if room < (1 if completions else 0):
        raise BadRow(
            "prompt",
            f"has {len(prompt)} tokens that must be kept (start, system turn, tools, header of the answer), "
            f"which leaves no room within max_length = {max_length}",
            "raise max_length, or shorten the system turn",
        )
    return prompt, tuple(completion[:room] for completion in completions)


def _tokenize(
    rows: Iterable[Mapping[str, Any]],
    names: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 1024,
    score_turns: ScoreTurns = "assistant",
    on_bad_row: OnBadRow = "raise",
    folder: str | os.PathLike[str] | None = None,
    *,
    needs_label: bool = False,
) -> tuple[TokenData, TokenReport]:
    check_on_bad_row(on_bad_row)
    if isinstance(rows, str | os.PathLike | Mapping) or is_frame(rows):
        raise ValueError(
            f"rows must be a list of dicts or a datasets.Dataset, got a {type(rows).__name__}; "
            "load_preferences or load_examples reads a path, a data frame or a dict of columns"
        )
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, got {max_length}; it counts prompt plus completion")
    report = TokenReport(max_length, score_turns)
    encoder, collector = Encoder(tokenizer), Collector(folder)
    kinds: set[bool] = set()

    def left_out(problem: BadRow, place: Place) -> None:
        problem = problem.at(place)
        if on_bad_row == "raise":
            raise problem.or_skip() from None
        report.dropped.append(problem)

    numbered = enumerate(rows)
    try:
        while items := list(islice(numbered, _CHUNK)):
            report.rows += len(items)
            chunk = []
            for index, row in items:
                try:
                    chunk.append(_rendered(index, row, names, encoder, needs_label))
                except BadRow as problem:
                    left_out(problem, _place(row, index))
            for texts, prompt, wholes in _encoded(chunk, encoder):
                kinds.add(texts.is_chat)
                try:
                    _collect(texts, names, prompt, wholes, encoder, collector, report)
                except BadRow as problem:
                    left_out(problem, _place(texts.row, texts.number))
            report.foreign_turns += sum(_has_foreign_turn(texts.row[name]) for texts in chunk for name in names)
        data = collector.data(len(names))
    except BaseException:
        collector.abandon()
        raise
    lengths = data.lengths()
    report.measure(lengths[:, 0], lengths[:, 1:])
    _describe(report, encoder, kinds)
    return data, report


def _rendered(index: int, row: Mapping[str, Any], names: tuple[str, ...], encoder: Encoder, needs_label: bool) -> Texts:
    if "rejected" in names and row.get("rejected") is None and row.get("label") is not None:
        raise unpaired_problem()
    for name in ("prompt", *names):
        value = row.get(name)
        if not isinstance(value, str | list):
            raise BadRow(name, f"must be text or a list of messages, got {shown(value)}",
                         "read the rows with load_preferences or load_examples first")  # fmt: skip
        if isinstance(row["prompt"], str) and not isinstance(value, str):
            raise BadRow(name, "is a list of messages after a prompt that is text",
                         "read the rows with load_preferences or load_examples first")  # fmt: skip
        roles = [turn.get("role") for turn in value] if isinstance(value, list) else []
        if not set(roles) <= set(ROLES) or (name != "prompt" and roles[:1] not in ([], ["assistant"])):
            raise BadRow(name, f"has turns of {', '.join(map(str, roles))}; an answer begins with the assistant's, and "
                         f"the roles are {', '.join(ROLES)}",
                         "read the rows with load_preferences or load_examples first")  # fmt: skip
    is_chat = is_conversation(row)
    ending = encoder.ending(is_chat=is_chat)
    wholes = [encoder.without_surplus(render_whole(row, name, encoder.tokenizer), ending) for name in names]
    weight = 1.0 if row.get("weight") is None else check_weight(row["weight"])
    label = row.get("label") if "completion" in names else None
    remedy = "write true for a good answer, else false; load_preferences knows other names of it"
    if not yes_or_no(label, "label", remedy) if needs_label else perhaps(label) is False:
        weight = -weight  # the sign says that the answer is bad
    dropped = [dropped_text(row[name], whole) for name, whole in zip(names, wholes, strict=True)] if is_chat else []
    prompt = render_prompt(row, encoder.tokenizer)
    lost = dropped_from_prompt(row, prompt) if is_chat else None
    return Texts(index, row, is_chat, weight, prompt, wholes, [text for text in dropped if text], lost)


def _encoded(chunk: list[Texts], encoder: Encoder) -> Iterator[tuple[Texts, np.ndarray, list[np.ndarray]]]:
    """Prompt and wholes of each row as token ids, all of a chunk in one call of the tokenizer."""
    encoded = iter(encoder.ids([text for texts in chunk for text in (texts.prompt, *texts.wholes)]))
    for texts in chunk:
        ids = [encoder.started(next(encoded), is_chat=texts.is_chat) for _ in range(1 + len(texts.wholes))]
        ending = encoder.ending(is_chat=texts.is_chat)
        yield texts, ids[0], [encoder.ended(whole, ending) for whole in ids[1:]]


def _collect(
    texts: Texts,
    names: tuple[str, ...],
    prompt: np.ndarray,
    wholes: list[np.ndarray],
    encoder: Encoder,
    collector: Collector,
    report: TokenReport,
) -> None:
    """Split, shorten, and take the row in."""
    border = min(common_prefix(prompt, whole) for whole in wholes)
    lost = len(prompt) - border
    several = [_has_several_turns(texts.row[name]) and report.score_turns != "all" for name in names]
    wholes = [_marked(texts.row, name, whole, border, encoder, report.score_turns) if is_one else whole
              for name, whole, is_one in zip(names, wholes, several, strict=True)]  # fmt: skip
    remaining, whole_completions = prompt[:border], tuple(whole[border:] for whole in wholes)
    if not all(map(len, whole_completions)):
        raise BadRow(None, "has an answer without a token: the tokenizer drops its text and has no end token",
                     "leave the row out, or give the tokenizer an end token")  # fmt: skip
    completions = whole_completions
    if border + max(map(len, completions)) > report.max_length:
        head, tail = encoder.protected(texts.row, remaining, lost)
        remaining, completions = shorten(remaining, completions, report.max_length, head=head, tail=tail)
    place = _place(texts.row, texts.number)
    if texts.dropped:
        report.leave_out(texts.dropped, place)
    if texts.dropped_from_prompt:
        report.prompts_left_out.append(place)
        report.prompt_left_out = report.prompt_left_out or texts.dropped_from_prompt
    scored = [_up_to_the_last_scored(completion) for completion in completions]
    if len(scored) == 2 and np.array_equal(scored[0], scored[1]):
        report.identical.append(place)
        if not np.array_equal(whole_completions[0], whole_completions[1]):
            report.alike_by_cutting.append(place)
        elif texts.dropped:
            report.alike_by_template.append(place)
        return
    if not all((completion >= 0).any() for completion in completions):
        raise BadRow(None, f"has an answer of which nothing is scored within max_length = {report.max_length}",
                     "raise max_length, or leave the row out")  # fmt: skip
    report.prompts_shortened += len(remaining) < border
    report.completions_cut += sum(len(new) < len(old) for new, old in zip(completions, whole_completions, strict=True))
    if lost:
        stable = all(whole.startswith(texts.prompt) for whole in texts.wholes)
        report.border_moved += stable
        report.unstable_prompts += not stable
    collector.add(remaining, completions, texts.weight, texts.number)


def _marked(
    row: Mapping[str, Any], name: str, whole: np.ndarray, border: int, encoder: Encoder, score_turns: ScoreTurns
) -> np.ndarray:
    """Prompt and answer, with ~id in place of each token after the border that is not scored."""
    before, answer, tools = prompt_messages(row), row[name], row.get("tools")
    ending = encoder.ending(is_chat=True)
    ours = [place for place, turn in enumerate(answer) if turn["role"] == "assistant"]
    is_scored = np.zeros(len(whole), bool)
    for place in ours if score_turns == "assistant" else ours[-1:]:
        opened = render([*before, *answer[:place]], encoder.tokenizer, tools, open_answer=True)
        closed = render([*before, *answer[: place + 1]], encoder.tokenizer, tools)
        ids = encoder.ids([opened, encoder.without_surplus(closed, ending)])
        start, end = (common_prefix(encoder.started(part, is_chat=True), whole) for part in ids)
        is_scored[start : len(whole) if place == len(answer) - 1 else end] = True
    is_scored[:border] = True  # of the prompt; it is never marked
    return np.where(is_scored, whole, ~whole)


def _up_to_the_last_scored(completion: np.ndarray) -> np.ndarray:
    scored = np.flatnonzero(completion >= 0)
    return completion[: scored[-1] + 1 if len(scored) else 0]


def _has_several_turns(answer: object) -> bool:
    return isinstance(answer, list) and len(answer) > 1


def _place(row: Mapping[str, Any], number: int) -> Place:
    """Where a row was read; of a row that was not read from a source, its number among those given."""
    return getattr(row, "place", None) or Place("the rows", row=number)


def _has_foreign_turn(answer: object) -> bool:
    return isinstance(answer, list) and any(turn.get("role") != "assistant" for turn in answer)


def _describe(report: TokenReport, encoder: Encoder, kinds: set[bool]) -> None:
    own = "tokenizer" if has_own_template(encoder.tokenizer) else "default"
    report.template = "mixed" if len(kinds) == 2 else own if True in kinds else "none"
    ends = dict.fromkeys(encoder.ending(is_chat=is_chat).token for is_chat in sorted(kinds))
    report.end_tokens = [str(encoder.tokenizer.convert_ids_to_tokens(token)) for token in ends if token is not None]
