"""Tasks: a conversation that ends with a request, and the demands that an answer to it must meet.

Four sections. "format": the demands stand in the user's turn. "system": they stand in the system turn and hold for the
whole conversation, half of the time with an earlier exchange. "tools": a function call against a JSON schema.
"safety": a request to decline, or a harmless one that sounds like it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from dpo_lab.worlds.instructions import safety, tools
from dpo_lab.worlds.instructions.kinds import KINDS, TEXT_KEYS, Kind, phrase
from dpo_lab.worlds.instructions.topics import (
    NUM_TEST_REQUESTS,
    REQUESTS,
    TEST_TOPICS,
    TOPICS,
    TRAIN_TOPICS,
)  # fmt: skip

Section = Literal["format", "system", "tools", "safety"]
Split = Literal["train", "test"]
SECTIONS: dict[Section, float] = {"format": 0.6, "system": 0.15, "tools": 0.15, "safety": 0.1}
"""Each section's share of what is drawn. Safety has few different requests, so among many tasks its share is less."""
NUM_DEMANDS = (1, 1, 1, 2, 2, 3)  # one to three, the fewer the likelier
# Groups that cannot be met at once, or only by luck.
CLASHES = {
    "shape": {"length", "ending", "beginning", "marks", "register", "heading", "person", "case", "commas", "numbers"},
    "case": {"beginning", "ending", "shape", "heading"}, "heading": {"shape", "beginning", "case", "length"},
    "beginning": {"ending"}, "marks": {"register", "ending", "beginning"}, "one_sentence": {"ending", "beginning"},
}  # fmt: skip
# The groups that a system turn asks for.
HOLD = {"length", "case", "commas", "numbers", "beginning", "ending", "register", "marks"}
LEADS = ("", "Please answer briefly. ", "A question: ", "I wonder: ", "Hello! ", "Be honest. ", "One more thing. ")
NUM_TEST_LEADS = 2  # like the last of all ways of putting things: for the test split only
SYSTEM = ("{demands} This holds for all your answers.", "You follow these rules in every answer: {demands}",
          "In this conversation, always do this: {demands}")  # fmt: skip


@dataclass(frozen=True)
class Demand:
    """One demand of a task. `values` are its kind's own, `text` is how the prompt words it."""

    kind: str
    text: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A conversation that ends with a request, and what an answer must do."""

    prompt: list[dict[str, str]]
    demands: tuple[Demand, ...]
    topic: str
    section: Section
    kinds_seen: bool
    """Whether its kinds of demand (its function, its request to decline) occur in the train split."""
    topic_seen: bool
    topic_words: tuple[str, ...] = ()
    hint: tuple[dict[str, str], ...] = ()
    """A worked example: an exchange that meets the same demands on another topic. Never a part of `prompt`; put before
    its last turn it makes answers follow the demands more often, and a copy of it is no answer."""
    tools: None = None
    """Always None: the functions stand in the system turn, since not every chat template takes them."""

    def row(self) -> dict[str, Any]:
        """What `dpo_lab.generate` takes."""
        return {"prompt": self.prompt}


def draw(split: Split, num: int, *, seed: int = 0, sections: Sequence[Section] | None = None) -> list[Task]:
    """`num` different tasks. The same arguments give the same tasks everywhere.

    split: "train" has 30 topics, the kinds of demand with `is_trained`, and all but the last ways of putting things.
        "test" has all of them: half of its tasks have kinds (functions, requests to decline) and topics that the train
        split never has, a third its kinds and new topics, and the rest its kinds and topics in words that it never
        uses. So no prompt is in both.
    sections: those to draw from; None is all, in the shares of SECTIONS.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is not known; choose train or test")
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}; 200 is the usual start")
    chosen: list[Section] = [*SECTIONS] if sections is None else [*sections]
    if not chosen or not {*chosen} <= {*SECTIONS}:
        raise ValueError(f"sections are {chosen}; choose one or more among {', '.join(SECTIONS)}")
    rng = Random(f"{split} {seed}")
    found: dict[str, Task] = {}
    tries = 0
    while len(found) < num:
        section = rng.choices(chosen, [SECTIONS[name] for name in chosen])[0]
        task = _DRAW[section](rng, split == "test")
        if not contradicts(task.demands):
            found.setdefault(str(task.prompt), task)
        tries += 1
        if tries > 50 * num + 1000:
            raise ValueError(f"there are no {num} different tasks in {', '.join(chosen)}; {len(found)} were found")
    return [*found.values()]


def contradicts(demands: Sequence[Demand]) -> bool:
    """Whether no text can meet all of the demands. CLASHES bars groups; these depend on the values drawn.

    Such a task is drawn and left out, so that barring one more changes no other task.
    """
    values = {demand.kind: demand.values for demand in demands}
    if "no_commas" in values and "," in values.get("begin", {}).get("start", ""):
        return True
    fixed = [values.get("begin", {}).get("start", ""), values.get("end", {}).get("end", "")]
    if "avoid" in values and any(values["avoid"]["word"] in own.lower().split() for own in fixed):
        return True
    if "json" in values and not {*values["json"]["keys"]} & TEXT_KEYS and {"include", "include_two"} & {*values}:
        return True
    return "quoted" in values and bool({"title", "heading"} & {*values})


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _exchange(request: str, answer: str) -> tuple[dict[str, str], ...]:
    return _turn("user", request), _turn("assistant", answer)


def _demands(rng: Random, is_test: bool, is_seen: bool, groups: set[str] | None) -> list[tuple[Demand, Kind]]:
    """One to three demands that can be met at once, all of the train split's kinds or none."""
    pool = [kind for kind in KINDS.values() if kind.is_trained == is_seen and (groups is None or kind.group in groups)]
    found: list[tuple[Demand, Kind]] = []
    for _ in range(rng.choice(NUM_DEMANDS)):
        groups_taken = {kind.group for _, kind in found}
        taken = groups_taken | {kind.name for _, kind in found}
        barred = groups_taken.union(*(CLASHES.get(own, set()) for own in taken))
        free = [
            kind for kind in pool if kind.group not in barred
            and not (CLASHES.get(kind.group, set()) | CLASHES.get(kind.name, set())) & taken
        ]  # fmt: skip
        if free:
            kind = rng.choice(free)
            values = kind.draw(rng)
            form = rng.randrange(len(kind.phrasings) if is_test else len(kind.phrasings) - 1)
            found.append((Demand(kind.name, phrase(kind, values, form), values), kind))
    return found


def _topic(rng: Random, is_test: bool, is_seen: bool) -> tuple[str, str, bool]:
    """A topic, a request about it, and whether the train split has the topic."""
    unseen = is_test and (not is_seen or rng.random() < 2 / 3)
    topic = rng.choice(TEST_TOPICS if unseen else TRAIN_TOPICS)
    asked = REQUESTS if unseen else REQUESTS[-NUM_TEST_REQUESTS:] if is_test else REQUESTS[:-NUM_TEST_REQUESTS]
    return topic, rng.choice(asked).format(topic=topic), not unseen


def _example(demands: list[tuple[Demand, Kind]]) -> str:
    """A text about umbrellas that meets the first demand; one that meets several cannot be composed in general."""
    demand, kind = demands[0]
    return kind.example(**demand.values)


def _format(rng: Random, is_test: bool) -> Task:
    is_seen = not is_test or rng.random() < 0.5
    topic, request, topic_seen = _topic(rng, is_test, is_seen)
    demands = _demands(rng, is_test, is_seen, None)
    wanted = " ".join(demand.text for demand, _ in demands)
    hint = tuple(
        turn for demand, kind in demands
        for turn in _exchange(f"Tell me about umbrellas. {demand.text}", kind.example(**demand.values))
    )  # fmt: skip
    prompt = [_turn("user", f"{request} {wanted}")]
    return Task(prompt, tuple(own for own, _ in demands), topic, "format", is_seen, topic_seen, TOPICS[topic], hint)


def _system(rng: Random, is_test: bool) -> Task:
    is_seen = not is_test or rng.random() < 0.5
    topic, request, topic_seen = _topic(rng, is_test, is_seen)
    demands = _demands(rng, is_test, is_seen, HOLD)
    wanted = rng.choice(SYSTEM if is_test else SYSTEM[:-1]).format(demands=" ".join(d.text for d, _ in demands))
    shown = _exchange("Tell me about umbrellas.", _example(demands))
    before = shown if len(demands) == 1 and rng.random() < 0.5 else ()
    prompt = [_turn("system", wanted), *before, _turn("user", request)]
    return Task(prompt, tuple(own for own, _ in demands), topic, "system", is_seen, topic_seen, TOPICS[topic],
                () if before else shown)  # fmt: skip


def _tools(rng: Random, is_test: bool) -> Task:
    is_seen = not is_test or rng.random() < 0.5
    request, call, offered = tools.draw_request(rng, is_test=is_test, is_seen=is_seen)
    demands = tuple(Demand(f"tool_{part}", text, {"part": part, "call": call, "tools": offered})
                    for part, text in tools.PARTS.items())  # fmt: skip
    example, answer = tools.EXAMPLE
    hint = _exchange(example.requests[0], json.dumps(answer))
    return Task([_turn("system", tools.system_turn(offered)), _turn("user", request)], demands, call["name"], "tools",
                is_seen, is_seen, (), hint)  # fmt: skip


def _safety(rng: Random, is_test: bool) -> Task:
    is_seen = not is_test or rng.random() < 0.5
    pool = safety.REQUESTS[: -safety.NUM_TEST] if is_seen else safety.REQUESTS[-safety.NUM_TEST :]
    decline, harmless, about = rng.choice(pool)
    part = rng.choice(("decline", "help"))
    leads = LEADS if not is_seen else LEADS[-NUM_TEST_LEADS:] if is_test else LEADS[:-NUM_TEST_LEADS]
    request = rng.choice(leads) + (decline if part == "decline" else harmless)
    demand = Demand(part, safety.PARTS[part], {"part": part})
    return Task([_turn("user", request)], (demand,), about[0], "safety", is_seen, is_seen,
                about if part == "help" else (), _exchange(*safety.EXAMPLES[part]))  # fmt: skip


_DRAW = {"format": _format, "system": _system, "tools": _tools, "safety": _safety}


def _is_text(task: Task) -> bool:
    return task.section in ("format", "system")


GROUPS: dict[str, Callable[[Task], bool]] = {
    "trained, on new topics": lambda task: not task.topic_seen and (task.kinds_seen or not _is_text(task)),
    "known kinds, known topics": lambda task: _is_text(task) and task.kinds_seen and task.topic_seen,
    "known kinds, new topics": lambda task: _is_text(task) and task.kinds_seen and not task.topic_seen,
    "new kinds, new topics": lambda task: _is_text(task) and not task.kinds_seen,
    "in the system turn": lambda task: task.section == "system",
    "function calls": lambda task: task.section == "tools",
    "declining and helping": lambda task: task.section == "safety",
}
"""Groups of test tasks, reported apart; they overlap. Known is what the train split has too. The first has whatever was
trained (texts, function calls, declining), but every topic, function and request is new; the next three are texts."""
