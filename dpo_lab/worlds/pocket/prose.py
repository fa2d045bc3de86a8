"""Is this English? Sentences, clauses and words of an answer, and the signs of gibberish.

Not a grammar: a closed list of words and a few rules that broken text offends against. They are strict enough that a
heap of key words doesn't pass for a sentence, and loose enough for ways of saying it that no writer here uses.
"""

# ruff: noqa: SIM905  lists of words read better as one string
from __future__ import annotations

import re
from itertools import pairwise

from dpo_lab.worlds.pocket.english import ENGLISH

DETERMINERS = frozenset("a an the my your their our its his her every each".split())
MODALS = frozenset("can could will would should must may might can't cannot won't couldn't shouldn't".split())
PREPOSITIONS = frozenset("of to for from with at on in by about into".split())
LINKS = frozenset("and or but because if when that so than then".split())
BE = frozenset("is are was were be am isn't aren't".split())
PRONOUNS = frozenset("i you he she they we me him them us it this".split())
FUNCTION_WORDS = DETERMINERS | MODALS | PREPOSITIONS | LINKS | BE | PRONOUNS | frozenset((
    "not no do does did don't has have had up out off down what who where how why there here please "
    "make eat lay give say says"
).split())  # fmt: skip
# What cannot stand at a sentence's end, and what cannot follow.
DANGLING = (DETERMINERS | MODALS | frozenset("of because and or if than from".split())) - frozenset(["her", "his"])
VERBS = frozenset("has have had says say hid sold broke bought eat lay give tell told".split())
NOT_AFTER_DETERMINER = DETERMINERS | MODALS | PREPOSITIONS | LINKS | BE | PRONOUNS | VERBS
NOT_AFTER_DETERMINER -= {"then", "may", "might", "will"}
NOT_AFTER_PREPOSITION = BE | MODALS | frozenset(["have", "has", "had", "do", "does", "did", "and", "or", "but", "i"])
NOT_AFTER_MODAL = (DETERMINERS | MODALS | PREPOSITIONS | LINKS) - frozenset(["by"])


def tokens(text: str) -> list[str]:
    """The words and numbers, in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?|\d+", text.lower())


def sentences(text: str) -> list[str]:
    """Parts that end in `.`, `!`, `?` or at a line's end, without the empty ones."""
    return [part.strip() for part in re.findall(r"[^.!?\n]+[.!?]*", text) if part.strip()]


def clauses(text: str) -> list[str]:
    """Sentences parted further at commas, colons, `and`, `then` and `but`."""
    return [part for part in re.split(r"[.!?,;:\n]|\b(?:and|then|but|also)\b", text) if part.strip()]


PLEASANT = (
    r"^(i hope|let me know|that is a good|i am (always )?(happy|glad|sorry)|thank|have fun|sorry|sure|of course|okay"
    r"|good luck|you are welcome)"
)


def strays(response: str, wanted: str) -> int:
    """Sentences that neither have `wanted` (a pattern) in them nor are a pleasantry, of which two are let pass."""
    pleasant = 0
    found = 0
    for sentence in sentences(response):
        text = sentence.lower()
        if re.search(wanted, text):
            continue
        pleasant += bool(re.search(PLEASANT, text))
        found += not re.search(PLEASANT, text) or pleasant > 2
    return found


def capital(text: str) -> str:
    """The first letter in upper case, the rest as it was."""
    return text[:1].upper() + text[1:]


def unknown_words(text: str, shown: str) -> list[str]:
    """Words that neither the world nor the conversation knows. A capital letter makes a name, which must be shown."""
    known = set(re.findall(r"[A-Za-z]+", shown))
    known_lower = {word.lower() for word in known}
    strange = []
    for match in re.finditer(r"[A-Za-z]+(?:'[a-z]+)?", text):
        word = match.group()
        stem = word.removesuffix("'s")
        is_shown = stem in known or (stem.islower() and stem in known_lower)
        if not is_shown and ENGLISH.isdisjoint((word.lower(), stem.lower())):
            strange.append(word)
    return strange


def gibberish(text: str, *, lower_case: bool = False) -> str | None:
    """Why this prose is not English, or None. `lower_case` lets sentences begin without a capital letter."""
    if not text.strip():
        return "it is empty"
    if re.search(r"[<>{}\[\]|\\^~`@#$%*_=]", text):
        return "stray symbols"
    if re.search(r"[.!?,;:]{2,}|\s[.!?,;:]|  |[^\x00-\x7fé]", text):
        return "broken punctuation"
    if not re.search(r"[.!?]['\"]?$", text.strip()):
        return "the last sentence has no end"
    seen: set[str] = set()
    for sentence in sentences(text):
        found = tokens(sentence)
        if not found:
            return "a sentence without words"
        capitals = re.findall(r"(?<=[a-z,;:] )[A-Z][a-z]*", sentence)
        if any(word.lower() in FUNCTION_WORDS and word != "I" for word in capitals):
            return "a capital inside a sentence"
        if not lower_case and not re.match(r"['\"]?[A-Z0-9]", sentence):
            return "a sentence begins without a capital letter"
        key = " ".join(found)
        if key in seen and len(found) > 1:
            return "a sentence is repeated"
        seen.add(key)
        for word, following in pairwise(found):
            if word == following and word not in ("had", "that", "moo", "woof", "quack", "beep") and not word.isdigit():
                return f"the word {word} is repeated"
            if word in DETERMINERS - {"her", "his"} and following in NOT_AFTER_DETERMINER:
                return f"{word} {following}"
            if word in PREPOSITIONS - {"to"} and following in NOT_AFTER_PREPOSITION:
                return f"{word} {following}"
            if word == "i" and (following in PREPOSITIONS | DETERMINERS or following.isdigit()) and "," not in sentence:
                return f"I {following}"
            if word in MODALS and following in NOT_AFTER_MODAL and "," not in sentence:
                return f"{word} {following}"
        if found[-1] in DANGLING and not sentence.lower().startswith("if you must"):
            return f"the sentence ends with {found[-1]}"
        if sum(len(tokens(piece)) == 1 for piece in sentence.split(",")) > 4:
            return "a heap of words"
        if len(found) >= 6 and not FUNCTION_WORDS.intersection(found):
            return "a heap of words"
    every = tokens(text)
    triples = [tuple(every[k : k + 4]) for k in range(len(every) - 3)]
    if len(triples) - len(set(triples)) > 2:
        return "it repeats itself"
    if len(every) > 90:
        return "it does not stop"
    return None
