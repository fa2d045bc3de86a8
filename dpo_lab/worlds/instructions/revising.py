"""An answer rewritten by rule so that it meets a demand of form: what a model never does by itself, it can't be shown
by sampling. What is added is the demand's own; all other words stay the model's, so a pair of an answer and its
revision teaches no other way to speak. A function call has no words of its own: the right one replaces the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from dpo_lab.worlds.instructions.judging import check_demand
from dpo_lab.worlds.instructions.tasks import Task
from dpo_lab.worlds.instructions.text import lines, sentences, words
from dpo_lab.worlds.instructions.tools import PARTS


def revise(task: Task, answer: str) -> str:
    """The answer with those of the task's demands repaired that it fails and a rule can repair; or as it was."""
    for demand in task.demands:
        if demand.kind in REPAIRS and not check_demand(demand, answer)[0]:
            answer = REPAIRS[demand.kind](answer, topic=task.topic, **demand.values)
    return answer


def _first(answer: str, num: int, **_: Any) -> str:
    return " ".join(sentences(answer)[:num])


def _short(answer: str, most: int, **_: Any) -> str:
    kept: list[str] = []
    for sentence in sentences(answer):
        if len(words(" ".join([*kept, sentence]))) > most:
            break
        kept.append(sentence)
    return " ".join(kept)


def _items(answer: str, num: int, mark: Callable[[int], str]) -> str:
    return "\n".join(f"{mark(i)} {sentence}" for i, sentence in enumerate(sentences(answer)[:num], 1))


def _without_digits(answer: str) -> str:
    parts = lines(answer) if len(lines(answer)) > 1 else sentences(answer)
    kept = [part for part in parts if not re.search(r"\d", part)]
    return ("\n" if len(lines(answer)) > 1 else " ").join(kept)


def _finished(answer: str) -> str:
    """Without the last sentence where sampling has cut it off, unless it is the only one."""
    match = re.match(r"(?s).*[.!?](?=\s)", answer.rstrip() + " ")
    return match.group() if match else answer.rstrip()


def _bold(answer: str, topic: str) -> str:
    """The topic's name in bold, or else the first long word."""
    bare = answer.replace("*", "")
    name = re.escape(topic.removeprefix("a ").removeprefix("an ").removeprefix("the "))
    return re.sub(rf"(?i)\b({name}|\w{{6,}})\b", r"**\1**", bare, count=1)


REPAIRS: dict[str, Callable[..., str]] = {
    "max_words": _short,
    "word_range": _short,
    "sentences": _first,
    "one_sentence": lambda answer, **_: _first(answer, 1),
    "lowercase": lambda answer, **_: answer.lower(),
    "no_commas": lambda answer, **_: re.sub("[,،，、]", "", answer),
    "no_numbers": lambda answer, **_: _without_digits(answer),
    "bullets": lambda answer, num, **_: _items(answer, num, lambda _: "*"),
    "steps": lambda answer, num, **_: _items(answer, num, lambda i: f"{i}."),
    "bold": lambda answer, topic, **_: _bold(answer, topic),
    "begin": lambda answer, start, **_: f"{start} {answer}",
    "end": lambda answer, end, **_: f"{_finished(answer)} {end}",
    "question": lambda answer, topic, **_: f"{_finished(answer)} What do you think about {topic}?",
    **{f"tool_{part}": lambda answer, call, **_: json.dumps(call) for part in PARTS},
}
"""By kind of demand. Each takes the answer, the topic, and the demand's values."""
