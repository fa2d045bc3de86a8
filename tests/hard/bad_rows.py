"""Rows that cannot be used, made from good ones by one mistake each, as many as are asked for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Row = dict[str, Any]

WORDS = ("cat", "the mat", "é ü ß", "猫", "🙂", "a\nb", "\t", "«»", "ع", "0", "null", "<b>", "\\", '"')
NO_TEXT = (0, 1, -1.5, True, {}, [], [1], [None], {"a": 1}, [["a"]], 10**30, [{}], [{"role": "user"}])
NO_ROLE = (None, 3, "", "boss", "Narrator", ["user"], {"a": 1}, "narrator", "system ", True)


def good_row(random: Random) -> Row:
    """A row that is fine, in one of the layouts."""
    text = lambda: " ".join(random.choice(WORDS[:5]) for _ in range(random.randint(1, 5))) + f" {random.random()}"
    turn = lambda role: {"role": role, "content": text()}
    return random.choice((
        lambda: {"prompt": text(), "chosen": text(), "rejected": text()},
        lambda: {"prompt": [turn("user")], "chosen": [turn("assistant")], "rejected": [turn("assistant")]},
        lambda: {"prompt": [turn("system"), turn("user")], "chosen": text(), "rejected": text()},
        lambda: {"instruction": text(), "input": text(), "chosen": text(), "rejected": text()},
        lambda: {"conversations": [{"from": "human", "value": text()}], "chosen": {"from": "gpt", "value": text()},
                 "rejected": {"from": "gpt", "value": text()}},
        lambda: {"input": {"messages": [turn("user")]}, "preferred_output": [turn("assistant")],
                 "non_preferred_output": [turn("assistant")]},
    ))()  # fmt: skip


def _answers(row: Row) -> list[str]:
    return [name for name in ("chosen", "rejected", "preferred_output", "non_preferred_output") if name in row]


def _missing(row: Row, random: Random) -> None:
    del row[random.choice(_answers(row))]


def _none(row: Row, random: Random) -> None:
    row[random.choice(_answers(row))] = None


def _no_text(row: Row, random: Random) -> None:
    row[random.choice(_answers(row))] = copy.deepcopy(random.choice(NO_TEXT))


def _empty(row: Row, random: Random) -> None:
    blank = random.choice(("", " ", "\n\n", "\t"))
    name = random.choice(_answers(row))
    row[name] = [{"role": "assistant", "content": blank}] if name.endswith("output") else blank


def _role(row: Row, random: Random) -> None:
    row.pop("conversations", None)
    row["prompt"] = [{"role": random.choice(NO_ROLE), "content": "x"}]


def _turns(row: Row, random: Random) -> None:
    row.pop("conversations", None)
    row["prompt"] = random.choice(([], [[]], ["x"], [None], [{"role": "user"}], [{"content": "x"}], 7, {},
                                   [{"role": "user", "content": 7}], [{"role": "user", "content": None}],
                                   [{"role": "user", "content": [{"type": "image"}]}],
                                   [{"role": "user", "tool_calls": []}],
                                   [{"role": "assistant", "tool_calls": [{"name": 3}]}],
                                   [{"role": "assistant", "tool_calls": "x"}]))  # fmt: skip


def _sharegpt(row: Row, random: Random) -> None:
    row.clear()
    row.update(chosen="a", rejected="b", conversations=random.choice((
        [{"from": "boss", "value": "x"}], [{"from": 3, "value": "x"}], [{"from": "human"}], 7, [], [{}],
        {"from": "human"}, [{"from": "function_call", "value": random.choice(("{", "[" * 5000))}],
        [{"from": ["human"], "value": "x"}],
        [{"from": "human", "value": {"a": 1}}])))  # fmt: skip


def _history(row: Row, random: Random) -> None:
    history = random.choice(([["a"]], [["a", "b", "c"]], ["ab"], [[1, 2]], 7, "ab", [["a", None]], {"a": "b"}))
    row.clear()
    row.update(instruction="x", input="", chosen="a", rejected="b", history=history)


def _surrogate(row: Row, random: Random) -> None:
    half = random.choice(("\ud800", "a\udfff", "\udc00b"))
    name = random.choice(_answers(row))
    row[name] = [{"role": "assistant", "content": half}] if name.endswith("output") else half


def _weight(row: Row, random: Random) -> None:
    row["weight"] = random.choice((-1, -1e-9, "much", [1], {}, True, float("nan"), float("inf"), "1e999", [], "nan"))


def _tools(row: Row, random: Random) -> None:
    row["tools"] = random.choice(("{", "7", 7, [1], ["x"], {"name": "f"}, '"x"', "[1]", True, [[]], "[" * 5000))


def _system(row: Row, random: Random) -> None:
    row["system"] = random.choice((7, [7], {"a": 1}, True, "\ud800", 1.5))


def _unpaired(row: Row, random: Random) -> None:
    row.clear()
    row.update(random.choice((
        {"prompt": "a", "completion": "b", "label": True}, {"text": "x"}, {}, {"prompt": "x"}, {"chosen_": "a"},
        {"": ""}, {"messages": [{"role": "user", "content": "x"}], "label": False},
        {"instruction": "x", "output": "y"})))  # fmt: skip


def _transcript(row: Row, random: Random) -> None:
    row.clear()
    row.update(random.choice((
        {"chosen": "no turns", "rejected": "none here"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": 7},
        {"chosen": [{"role": "user", "content": "x"}], "rejected": [{"role": "user", "content": "x"}]})))  # fmt: skip


def _answer_of_the_user(row: Row, random: Random) -> None:
    row.clear()
    row.update(prompt=[{"role": "user", "content": "x"}], chosen=[{"role": "user", "content": "y"}],
               rejected=[{"role": "assistant", "content": "z"}])  # fmt: skip


MISTAKES: tuple[Callable[[Row, Random], None], ...] = (
    _missing, _none, _no_text, _empty, _role, _turns, _sharegpt, _history, _surrogate, _weight, _tools, _system,
    _unpaired, _transcript, _answer_of_the_user,
)  # fmt: skip
NO_ROWS = ("[1, 2]", "7", '"text"', "null", "true", "{", "{]", '{"prompt": oops}', '{"prompt": "a" "chosen": "b"}',
           "\x00", "}{", '{"prompt": "a', "NaN", "[" * 5000, "'a'", '{"a": 1}{"b": 2}')  # fmt: skip


def bad_rows(num: int, seed: int = 0) -> Iterator[tuple[str, Row]]:
    """`num` rows, each with the name of its mistake. A mistake may stand beside harmless columns of any kind."""
    random = Random(seed)
    for number in range(num):
        row, mistake = good_row(random), MISTAKES[number % len(MISTAKES)]
        mistake(row, random)
        if random.random() < 0.2:
            row[random.choice(("id", "meta", "source", "number", "ключ"))] = random.choice((*WORDS, *NO_TEXT))
        yield mistake.__name__.strip("_"), row


def bad_lines(num: int, seed: int = 0) -> Iterator[bytes]:
    """`num` lines of a .jsonl file: bad rows, and now and then what is no row or no text at all."""
    random = Random(seed)
    for _, row in bad_rows(num, seed):
        kind = random.random()
        if kind < 0.1:
            yield random.choice(NO_ROWS).encode()
        elif kind < 0.15:
            line = bytearray(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            line.insert(random.randrange(len(line) + 1), random.choice((0xFF, 0xC0, 0x80, 0xFE)))
            yield bytes(line)
        else:
            yield json.dumps(row).encode()
