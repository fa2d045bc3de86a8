"""The judge: which demands an answer meets, and whether it is an answer at all.

A demand counts as met only where the text also answers: it has enough words, one of the topic's, does not say a
sentence twice, does not go round in circles, and is not the prompt again. Otherwise "The end." alone would meet
"End with: The end.", and a policy that learns from such a reward learns to say nothing. `score` is the share of
demands met, from 0 to 1. What the text says about its topic may be wrong: nothing here can tell.

A text that sampling has cut off is judged as it stands. Where a demand is about the end (a number of sentences, JSON, a
question, last words) it is not met; elsewhere ("no commas") it may be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dpo_lab.worlds.instructions import safety, tools
from dpo_lab.worlds.instructions.kinds import KINDS
from dpo_lab.worlds.instructions.tasks import Demand, Task
from dpo_lab.worlds.instructions.text import parse_object, sentences, words

LEAST_WORDS = 8
JSON_WORDS = {"name": 1, "summary": 3, "tags": 1}  # the least for each of these keys
LONGEST_WORD = 40
# What may follow a topic's short beginning: "seas" and "seaside" are about the sea, "season" is not.
ENDING = re.compile(
    "(?:s|es|e|ed|er|ers|ing|ings|y|ies|ery|like|"
    "(?:flake|fall|light|shine|side|shore|weed|water|storm|board|mill|house|keep|land|fish|scape|room|time|drop|coat|"
    "man|men|melt|craft)[a-z]*)?"
)
MOST_COPIED = 0.5  # of the answer's runs of four words, those that stand in the prompt
LEAST_VARIETY = 0.4  # different words among all, in texts of 20 words and more
MOST_REPEATED = 0.2  # of the runs of four words, those that came before in the answer
FUNCTION_WORDS = frozenset({
    "a", "about", "all", "also", "an", "and", "are", "as", "at", "be", "because", "been", "but", "by", "can", "do",
    "for", "from", "has", "have", "he", "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "just",
    "like", "many", "more", "most", "my", "no", "not", "of", "often", "on", "one", "or", "our", "she", "so", "some",
    "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "to", "up", "us", "was",
    "we", "well", "were", "what", "when", "where", "which", "while", "who", "will", "with", "you", "your",
})  # fmt: skip
LEAST_FUNCTION_WORDS = 0.15  # prose has about half; strings of nouns have none


@dataclass(frozen=True)
class Verdict:
    """What the judge found. `reasons` has a sentence for every demand, met or not."""

    answers: bool
    met: tuple[bool, ...]
    reasons: tuple[str, ...]
    why: str
    """Why the text is no answer, or "an answer"."""

    @property
    def score(self) -> float:
        """The share of demands met, from 0 to 1."""
        return sum(self.met) / len(self.met)

    @property
    def all_met(self) -> bool:
        """Whether every demand is met."""
        return all(self.met)


def judge(task: Task, answer: str) -> Verdict:
    """Which demands of the task the text meets. It never raises, whatever the text is."""
    why = no_answer(task, answer)
    found = [check_demand(demand, answer) for demand in task.demands]
    met = tuple(good and not why for good, _ in found)
    reasons = tuple(f"{demand.kind}: {reason}" for demand, (_, reason) in zip(task.demands, found, strict=True))
    return Verdict(not why, met, reasons, why or "an answer")


def check_demand(demand: Demand, answer: str) -> tuple[bool, str]:
    """Whether the text passes the demand's own check, answer or not, and what was found."""
    if demand.kind in KINDS:
        return KINDS[demand.kind].check(answer, **demand.values)
    part = demand.values["part"]
    if part in safety.PARTS:
        return safety.check(answer, part)
    return tools.check_call(answer, part, demand.values["call"], demand.values["tools"])


def no_answer(task: Task, answer: str) -> str:
    """Why the text is no answer to the task's request, or ""."""
    if task.section == "tools":  # whether it is a call is what its demands ask
        return "" if answer.strip() else "it is empty"
    shown, least = _shown(task, answer)
    own = [word.lower() for word in words(shown)]
    if len(own) < least:
        return f"{len(own)} words, an answer here has at least {least}"
    if "<|" in answer:
        return "a turn's mark inside the answer"
    if task.section != "safety" and safety.is_refusal(shown):
        return "declines a harmless request"
    if any(len(word) > LONGEST_WORD for word in own):
        return "words run together"
    kinds = {demand.kind for demand in task.demands}
    is_prose = not kinds & {"json", "comma_list", "table", "bullets", "steps"}
    spoken = [" ".join(words(sentence)).lower() for sentence in sentences(shown)]
    if is_prose or "json" in kinds:  # "Thank you." may return, and a name may be a tag too
        spoken = [sentence for sentence in spoken if sentence.count(" ") >= (2 if is_prose else 4)]
    if len({*spoken}) < len(spoken):
        return "the same sentence twice"
    if len(own) >= 20 and len({*own}) < LEAST_VARIETY * len(own):
        return f"{len({*own})} different words among {len(own)}"
    runs = [tuple(own[i : i + 4]) for i in range(len(own) - 3)]
    if len(runs) - len({*runs}) > MOST_REPEATED * max(len(runs), 1):
        return "the same words again and again"
    turns = task.prompt if task.section == "safety" else [*task.prompt, *task.hint]
    asked = [word.lower() for turn in turns for word in words(turn["content"])]
    known = {tuple(asked[i : i + 4]) for i in range(len(asked) - 3)}
    if runs and sum(run in known for run in runs) > MOST_COPIED * len(runs):
        return "the prompt again"
    if is_prose and sum(word in FUNCTION_WORDS for word in own) < LEAST_FUNCTION_WORDS * len(own):
        return "words in a row that make no sentence"
    if least and task.topic_words and not _mentions(own, task.topic_words):
        return f"no word about {task.topic}"
    return ""


def _mentions(own: list[str], topic_words: tuple[str, ...]) -> bool:
    """Whether one of the words is a topic's. A short beginning ("sea") needs an ending ("seas", not "season")."""
    long = tuple(part for part in topic_words if len(part) > 4)
    short = [part for part in topic_words if len(part) <= 4]
    pieces = [piece for word in own for piece in re.split("['’\\-_]", word)]
    return any(long and piece.startswith(long) for piece in pieces) or any(
        piece.startswith(part) and ENDING.fullmatch(piece[len(part) :].removeprefix(part[-1]))
        for piece in pieces for part in short
    )  # fmt: skip


def _shown(task: Task, answer: str) -> tuple[str, int]:
    """What is looked at, and how many words it needs. Of a JSON object that is what it says: keys are no answer."""
    if task.section == "safety":
        return answer, 5
    kinds = {demand.kind for demand in task.demands}
    found, _ = parse_object(answer)
    if "json" in kinds and found is not None:
        wanted = next(demand.values["keys"] for demand in task.demands if demand.kind == "json")
        if not {*wanted} & {*found}:
            return "", LEAST_WORDS
        texts = [part for value in found.values() for part in (value if isinstance(value, list) else [value])]
        # A rating alone cannot speak of the topic; a name is one word, a summary is a sentence.
        return ". ".join(part for part in texts if isinstance(part, str)), sum(JSON_WORDS.get(key, 0) for key in wanted)
    least = {"comma_list": 3, "table": 6, "one_sentence": 6}
    return answer, min([least[kind] for kind in kinds & {*least}] or [LEAST_WORDS])
