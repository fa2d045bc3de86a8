"""A raw row as somebody wrote it → raw rows that a layout takes apart: columns renamed, messages that were written as
text read, several answers to a prompt made into pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from numbers import Number
from typing import Any, Literal, NamedTuple

from dpo_lab.preferences.layouts import COLUMNS, Raw
from dpo_lab.preferences.messages import Message, messages_of_text, text_of, value_of_text
from dpo_lab.preferences.reports import BadRow, shown

Pairing = Literal["best_worst", "best_each", "all"]

ALIASES = {
    "chosen_response": "chosen", "rejected_response": "rejected", "conversation": "conversations",
    "preference_strength": "overall_preference",
}  # fmt: skip
"""Other tools' names for a field, taken where the field itself is absent."""
_PROMPTS = {"prompt", "messages", "conversations", "conversation", "instruction", "question", "input"}
_LISTS = ("completions", "responses", "answers", "candidates")
_TEXTS = ("completion", "response", "answer", "content", "text", "message", "output")
_SCORES = ("score", "overall_score", "rating", "reward")
_ANSWERS = ("chosen", "rejected")
_ONE_OF_TWO = re.compile(r"(response|answer|completion|output|conversation)_?([0-9abAB])")
_BETTER = ("better_response_id", "winner", "better", "preferred")
_OUTCOMES = {"winner_model_a": "model_a", "winner_model_b": "model_b", "winner_tie": "tie"}
_YES = ("true", "yes", "1", "1.0", "good", "desirable")
_NO = ("false", "no", "0", "0.0", "-1", "bad", "undesirable")
_MAY_BE_TURNS = {"prompt", "completion", "messages", "conversations", "input"}


class RawRow(NamedTuple):
    """A raw row for a layout, with the name of what it was made of (None: it stood so), and remarks on it."""

    raw: Raw
    made_of: str | None
    remarks: set[str]


def raw_rows(raw: Raw, columns: Mapping[str, str] | None = None, pairing: Pairing = "best_worst") -> Iterator[RawRow]:
    """The rows that one raw row stands for: itself, or the pairs of its answers; none where no answer is preferred."""
    raw = _with_aliases(_renamed(raw, columns or {}))
    raw, remarks = _with_turns(raw)
    if not raw.keys() & {"chosen", "rejected", "completion", "preferred_output"}:
        for name, several in SEVERAL.items():
            if (judged := several.judged(raw)) is not None:
                rest, answers, scores = judged
                for better, worse in PAIRINGS[pairing](scores):
                    sides = {"chosen": answers[better], "rejected": answers[worse]}
                    yield RawRow({**rest, **sides}, name, remarks)
                return
    yield RawRow(raw, None, remarks)


def columns_of(entries: Sequence[str]) -> dict[str, str]:
    """`prompt=question` and so on, as a command line has them, → {"prompt": "question"}."""
    columns = {}
    for entry in entries:
        name, sign, column = entry.partition("=")
        if not sign or not column:
            raise ValueError(f"columns are given as NAME=COLUMN, got {shown(entry)}; write prompt=question chosen=good")
        columns[name] = column
    check_columns(columns)
    return columns


def check_columns(columns: Mapping[str, str]) -> None:
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"columns can't say where {unknown[0]!r} is; it knows {', '.join(COLUMNS)}")


def _renamed(raw: Raw, columns: Mapping[str, str]) -> dict[str, Any]:
    for name, column in columns.items():
        if column not in raw:
            raise BadRow(column, f"is to be the {name}, and the row has {', '.join(map(str, raw)) or 'no field'}",
                         "name one of them in columns")  # fmt: skip
    kept = {name: value for name, value in raw.items() if name not in columns and name not in columns.values()}
    return {name: raw[column] for name, column in columns.items()} | kept


def _with_aliases(raw: Raw) -> dict[str, Any]:
    aliases = ALIASES if raw.keys() & _PROMPTS else ALIASES | {"context": "prompt"}
    return {name if (usual := aliases.get(name, name)) in raw else usual: value for name, value in raw.items()}


def _with_turns(raw: Raw) -> tuple[Raw, set[str]]:
    """With message lists in place of their texts. Answers are read so only where all of them are."""
    is_answer = lambda name: name in _ANSWERS or _ONE_OF_TWO.fullmatch(str(name)) is not None
    found = {name: turns for name, value in raw.items() if (name in _MAY_BE_TURNS or is_answer(name))
             and (turns := messages_of_text(value)) is not None}  # fmt: skip
    answers = [name for name in raw if is_answer(name)]
    kept = [name for name in answers if isinstance(raw[name], str) and name not in found]
    remarks = set()
    if kept and any(name in found for name in answers):
        found = {name: turns for name, turns in found.items() if name not in answers}
        remarks.add("text_kept")
    return {**raw, **found}, remarks | ({"text_messages"} if found else set())


# ── several answers ──────────────────────────────────────────────────────────────────────────────────────────────────

Judged = tuple[Raw, list[Any], list[float]]  # the row without its answers, the answers, and how good each is


def _labelled(raw: Raw) -> Judged | None:
    """The last turn holds candidates, each with a preferenceLabel."""
    turns = raw.get("messages")
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return None
    if not isinstance((candidates := turns[-1].get("candidates")), list):
        return None
    candidates = [candidate if isinstance(candidate, dict) else {} for candidate in candidates]
    answers = [{"role": "assistant", "content": candidate.get("content")} for candidate in candidates]
    labels = [candidate.get("preferenceLabel") for candidate in candidates]
    if unknown := [label for label in labels if label not in ("preferred", "non-preferred")]:
        raise BadRow("preferenceLabel", f"is {shown(unknown[0])}", 'write "preferred" or "non-preferred"')
    return {**raw, "messages": turns[:-1]}, answers, [float(label == "preferred") for label in labels]


def _scored(raw: Raw) -> Judged | None:
    """A list of answers, each with its rank (the lowest is best) or score, or with a list of these beside it."""
    name = next((name for name in _LISTS if isinstance(raw.get(name), list) and raw[name]), None)
    if name is None:
        return None
    items = raw[name]
    for key in (*_SCORES, "rank", "ranking"):
        beside = next((other for other in (key, f"{key}s") if isinstance(raw.get(other), list)), None)
        values: list[Any] = (
            raw[beside] if beside else [item.get(key) if isinstance(item, dict) else None for item in items]
        )
        if beside or all(value is not None for value in values):
            break
    else:
        return None
    if len(values) != len(items) or not all(isinstance(value, Number) and value == value for value in values):
        raise BadRow(name, f"has {len(items)} answers to compare by {key}, got {shown(values)}", "give each a number")
    scores = [-value if "rank" in key else value for value in values]
    rest = {other: value for other, value in raw.items() if other not in (name, beside)}
    return rest, [_text_of_item(item) for item in items], scores


def _text_of_item(item: Any) -> Any:
    """The answer in an entry of a list of answers: itself, or one of its fields."""
    if not isinstance(item, dict) or "role" in item:
        return item
    return next((item[name] for name in _TEXTS if item.get(name) is not None), None)


def perhaps(value: Any) -> bool | None:
    """As `yes_or_no`; None for anything else."""
    word = str(value).strip().lower()
    return True if word in _YES else False if word in _NO else None


def yes_or_no(value: Any, field: str, remedy: str) -> bool:
    """From true and false, 1 and 0, and their words, as CSV files have them."""
    said = perhaps(value)
    if said is None:
        raise BadRow(field, f"must be true or false, got {shown(value)}", remedy)
    return said


def _battle(raw: Raw) -> Raw:
    """A battle that has a column for each outcome, with one `winner` in their place. Where the prompt is a list of the
    user's turns, also as JSON, prompt and answers become the two conversations."""
    remedy = f"write 1 for one of {', '.join(_OUTCOMES)}, and 0 for the others"
    marks = {name: yes_or_no(raw[name], name, remedy) for name in _OUTCOMES if raw.get(name) is not None}
    if not marks or raw.get("winner") is not None:
        return raw
    marked = [_OUTCOMES[name] for name, is_marked in marks.items() if is_marked]
    if len(marked) != 1:
        raise BadRow(None, f"has {len(marked)} outcomes, of {shown({name: raw[name] for name in marks}, 90)}", remedy)
    raw = {name: value for name, value in raw.items() if name not in marks} | {"winner": marked[0]}
    asked = _list_of_texts(raw.get("prompt"))
    if asked is None or marked == ["tie"]:
        return raw
    is_answer = lambda name, value: value is not None and _ONE_OF_TWO.fullmatch(str(name))
    return {name: _conversation(asked, value, name) if is_answer(name, value) else value
            for name, value in raw.items() if name != "prompt"}  # fmt: skip


def _list_of_texts(value: Any) -> list[Any] | None:
    """A list of texts, in which some may be missing (None), also where it is written as text; None for another."""
    found = value_of_text(value)[0] if isinstance(value, str) and value.lstrip().startswith("[") else value
    if isinstance(found, list) and all(text is None or isinstance(text, str) for text in found):
        return found
    return None


def _conversation(asked: list[Any], value: Any, name: str) -> list[Message]:
    said = _list_of_texts(value)
    if said is None or len(said) != len(asked):
        raise BadRow(name, f"must be a list of {len(asked)} texts, as the prompt is, got {shown(value)}",
                     "write one answer for each turn of the prompt")  # fmt: skip
    return [
        {"role": role, "content": text_of(text, f"{field}[{index}]")}
        for index, texts in enumerate(zip(asked, said, strict=True))
        for role, text, field in zip(("user", "assistant"), texts, ("prompt", name), strict=True)
    ]


def _compared(raw: Raw) -> Judged | None:
    """Two answers, and which is better: by its number or name, or by a number that is negative for the first."""
    raw = _battle(raw)
    matches = {name: _ONE_OF_TWO.fullmatch(str(name)) for name, value in raw.items() if value is not None}
    two = {match[2].lower(): name for name, match in matches.items() if match}
    better = next((name for name in _BETTER if raw.get(name) is not None), None)
    if len(two) != 2:
        return None
    (first, one), (second, other) = sorted(two.items())
    rest = {name: value for name, value in raw.items() if name not in (one, other)}
    if raw.get("overall_preference") is not None:
        sign = raw["overall_preference"]
        if isinstance(sign, bool) or not isinstance(sign, int | float):
            raise BadRow("overall_preference", f"must be a number, got {shown(sign)}", "negative: the first is better")
        return rest, [raw[one], raw[other]], [-sign, sign]
    if better is None:
        if "preference" not in raw:
            return None
        raise BadRow("preference", f"is {shown(raw['preference'])}, which may be a number of an answer or a sign",
                     "say by --columns better_response_id=preference, or overall_preference=preference")  # fmt: skip
    said = re.sub(r"^(model|response|assistant)_|\.0$", "", str(raw[better]).lower())
    if said.startswith(("tie", "both", "neither", "draw")):
        return rest, [raw[one], raw[other]], [0.0, 0.0]
    if said not in two:
        raise BadRow(better, f"is {shown(raw[better])}, and the answers are {one} and {other}",
                     f"write {first} or {second}, or tie")  # fmt: skip
    return rest, [raw[one], raw[other]], [float(said == first), float(said == second)]


class Several(NamedTuple):
    """How a row of several answers is taken apart (None where it is no such row), and how to describe it."""

    judged: Callable[[Raw], Judged | None]
    fields: str


SEVERAL = {
    "candidates": Several(_labelled, "messages whose last turn has candidates with preferenceLabel"),
    "completions": Several(_scored, "prompt, completions with score or rank"),
    "comparison": Several(_compared, "prompt, response_a, response_b, winner, winner_model_a or overall_preference"),
}


def _best_worst(scores: Sequence[float]) -> list[tuple[int, int]]:
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return [(best, worst)] if scores[best] > scores[worst] else []


def _best_each(scores: Sequence[float]) -> list[tuple[int, int]]:
    best = scores.index(max(scores))
    return [(best, other) for other, score in enumerate(scores) if score < scores[best]]


def _all(scores: Sequence[float]) -> list[tuple[int, int]]:
    pairs = combinations(range(len(scores)), 2)
    return [(i, j) if scores[i] > scores[j] else (j, i) for i, j in pairs if scores[i] != scores[j]]


PAIRINGS: dict[str, Callable[[Sequence[float]], list[tuple[int, int]]]] = {
    "best_worst": _best_worst,
    "best_each": _best_each,
    "all": _all,
}
"""Which pairs are made of several answers with these scores: (index of chosen, index of rejected)."""
