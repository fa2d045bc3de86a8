"""The kinds of demand: how each is put into words, and the check that says whether a text meets it.

A check gets the text and the demand's own values and returns whether it is met and what it found, in words. It looks
at its demand alone; that the text also answers is the judge's business. `example` meets the demand about umbrellas,
which are no topic here: the worked example of hints and of earlier turns, and a test of every check.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from dpo_lab.worlds.instructions import text as t

Found = tuple[bool, str]
Values = dict[str, Any]

SENTENCES = (
    "An umbrella keeps the rain off your head.", "You can open an umbrella with one hand.",
    "Most umbrellas have a round handle.", "The cloth of an umbrella is light and strong.",
    "A folded umbrella fits into a small bag.", "Wind can turn an umbrella inside out.",
    "People also use umbrellas against the sun.", "A bright umbrella cheers up a grey street.",
    "Many umbrellas are lost on buses and trains.", "Let a wet umbrella dry before you fold it.",
)  # fmt: skip
WORDS = ("lantern", "silver", "quiet", "window", "paper", "orange", "bridge", "golden", "morning", "circle", "simple",
         "gentle", "story", "secret", "corner", "gift")  # fmt: skip
BEGINNINGS = ("Well,", "In short,", "Of course.", "Good question.", "Dear reader,", "To begin with,")
ENDINGS = ("Thank you.", "That is all.", "The end.", "I hope this helps.", "Have a nice day.", "See you soon.")
KEYS = {"name": "a string", "summary": "a string", "rating": "an integer", "tags": "a list of strings",
        "is_useful": "true or false", "year": "an integer"}  # fmt: skip
TYPES: dict[str, Callable[[Any], bool]] = {
    "a string": lambda value: isinstance(value, str) and bool(value.strip()),
    "an integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "a list of strings": lambda value: (
        isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)
    ),
    "true or false": lambda value: isinstance(value, bool),
}
TEXT_KEYS = {"name", "summary", "tags"}  # whose values are words
COLUMNS = ("Aspect", "Example", "Reason", "Detail", "Benefit")
CONTRACTION = re.compile(
    r"\b(?:[a-z]{1,8}n['’]t|"
    r"(?:i|you|he|she|it|we|they|that|there|here|what|who|how|where|let)['’](?:s|m|re|ve|ll|d)|y['’]all)\b", re.I
)  # fmt: skip
SLANG = re.compile(r"\b(?:gonna|wanna|kinda|gotta|yeah|yep|nope|ok|okay|hey|stuff|guys|awesome)\b", re.I)


@dataclass(frozen=True)
class Kind:
    """One kind of demand. `group` says what it is about: a task never has two demands of one group."""

    name: str
    group: str
    phrasings: tuple[str, ...]
    check: Callable[..., Found]
    example: Callable[..., str]
    draw: Callable[[Random], Values] = lambda rng: {}
    is_trained: bool = True
    """Whether it occurs in the train split. The others show what is learnt about demands as such."""


def _first(num: int) -> str:
    return " ".join(SENTENCES[i % len(SENTENCES)] for i in range(num))


def _few_words(most: int) -> str:
    num = max((n for n in range(1, 9) if len(t.words(_first(n))) <= most), default=1)
    return _first(num)


def _many_words(least: int) -> str:
    return _first(next(n for n in range(1, 20) if len(t.words(_first(n))) >= least))


def max_words(answer: str, most: int) -> Found:
    num = len(t.words(answer))
    return num <= most, f"{num} words, at most {most} wanted"


def min_words(answer: str, least: int) -> Found:
    num = len(t.words(answer))
    return num >= least, f"{num} words, at least {least} wanted"


def word_range(answer: str, least: int, most: int) -> Found:
    num = len(t.words(answer))
    return least <= num <= most, f"{num} words, {least} to {most} wanted"


def num_sentences(answer: str, num: int) -> Found:
    found = t.sentences(answer)
    if found and not {*t.closing(found[-1])} & {*".!?…"}:
        return False, "the last sentence is not finished"
    return len(found) == num, f"{len(found)} sentences, {num} wanted"


def num_paragraphs(answer: str, num: int) -> Found:
    found = t.paragraphs(answer)
    if any(len(t.words(part)) < 4 for part in found):
        return False, "a paragraph of fewer than four words"
    return len(found) == num, f"{len(found)} paragraphs, {num} wanted"


def lowercase(answer: str) -> Found:
    large = [word for word in t.words(answer) if word != word.lower()]
    return not large, f"capital letters in {large[0]!r}" if large else "no capital letter"


def uppercase(answer: str) -> Found:
    small = [word for word in t.words(answer) if word != word.upper()]
    return not small, f"small letters in {small[0]!r}" if small else "no small letter"


def without(answer: str, mark: str, name: str) -> Found:
    found = len(re.findall(mark, answer))
    return not found, f"{found} {name}" if found else f"no {name}"


def _items(answer: str, pattern: str, num: int, name: str) -> Found:
    lines = t.lines(answer)
    items = [line[match.end() :] for line in lines if (match := re.match(pattern, line))]
    if len(items) < len(lines):
        return False, f"{len(lines) - len(items)} lines that are no {name}"
    if any(len(t.words(item)) < 2 for item in items):
        return False, f"a {name} of fewer than two words"
    return len(items) == num, f"{len(items)} {name}s, {num} wanted"


def bullets(answer: str, num: int) -> Found:
    return _items(answer, r"\*\s+", num, "bullet point")


def steps(answer: str, num: int) -> Found:
    good, found = _items(answer, r"\d+[.)]\s+", num, "numbered step")
    order = [re.split("[.)]", line)[0] for line in t.lines(answer)]
    wanted = [str(i) for i in range(1, num + 1)]
    return (False, "the numbers do not run from 1") if good and order != wanted else (good, found)


def comma_list(answer: str, num: int) -> Found:
    items = [item.strip(" .\n") for item in answer.split(",")]
    if len(t.lines(answer)) != 1 or any(not 1 <= len(t.words(item)) <= 5 for item in items):
        return False, "not one line of short items"
    if len({item.lower() for item in items}) < len(items):
        return False, "an item twice"
    return len(items) == num, f"{len(items)} items, {num} wanted"


def json_keys(answer: str, keys: list[str]) -> Found:
    found, why = t.parse_object(answer)
    if found is None:
        return False, why
    if {*found} != {*keys}:
        return False, f"the keys are {', '.join(found) or 'none'}; wanted {', '.join(keys)}"
    wrong = [key for key in keys if not TYPES[KEYS[key]](found[key])]
    return not wrong, f"{wrong[0]!r} is not {KEYS[wrong[0]]}" if wrong else "the keys and types wanted"


def table(answer: str, columns: list[str], num: int) -> Found:
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in t.lines(answer)]
    if len(rows) < 3 or not all(line.startswith("|") for line in t.lines(answer)):
        return False, "not a table of lines that begin with |"
    if not all(re.fullmatch(r":?-+:?", cell) for cell in rows[1]) or any(len(row) != len(columns) for row in rows):
        return False, "the second line must be dashes, and every line must have a cell for every column"
    if [cell.lower() for cell in rows[0]] != [column.lower() for column in columns]:
        return False, f"the columns are {', '.join(rows[0])}"
    if any(not t.words(cell) for row in rows[2:] for cell in row):
        return False, "an empty cell"
    return len(rows) - 2 == num, f"{len(rows) - 2} rows, {num} wanted"


def includes(answer: str, needed: list[str]) -> Found:
    have = {*t.tokens(answer)}
    missing = [word for word in needed if word not in have]
    return not missing, f"{missing[0]!r} is missing" if missing else f"has {', '.join(needed)}"


def often(answer: str, word: str, num: int) -> Found:
    found = t.tokens(answer).count(word)
    return found >= num, f"{word!r} stands {found} times, {num} wanted"


def avoids(answer: str, word: str) -> Found:
    found = word in t.tokens(answer)
    return not found, f"{word!r} is there" if found else f"no {word!r}"


def _letters(text: str) -> str:
    return " ".join(t.words(text.lower()))


def begins(answer: str, start: str) -> Found:
    good = answer.lstrip().lower().startswith(start.lower()) and _letters(answer) != _letters(start)
    return good, f"begins with {answer.strip()[: len(start)]!r}"


def ends(answer: str, end: str) -> Found:
    bare = answer.rstrip().rstrip('"”*_').rstrip().lower()
    good = bare.endswith(end.lower()) and not bare[: -len(end)][-1:].isalnum() and _letters(answer) != _letters(end)
    return good, f"ends with {answer.strip()[-len(end) :]!r}"


def question(answer: str) -> Found:
    found = t.sentences(answer)
    good = bool(found) and "?" in t.closing(found[-1]) and len(t.words(found[-1])) >= 3
    return good, "ends with a question" if good else "does not end with a question"


def quoted(answer: str) -> Found:
    bare = answer.strip()
    good = len(bare) > 2 and bare[0] in '"“' and bare[-1] in '"”' and not re.search('["“”]', bare[1:-1])
    return good, "in quotation marks" if good else "not in one pair of quotation marks"


def titled(answer: str) -> Found:
    match = re.match(r"<<([^<>\n]+)>>\s+\S", answer.strip())
    good = bool(match and 1 <= len(t.words(match.group(1))) <= 10 and _letters(match.group(1)) != "title")
    return good, "a title in << >>" if good else "no title in << >> before the text"


def headed(answer: str) -> Found:
    lines = t.lines(answer)
    good = len(lines) >= 2 and lines[0].startswith("# ") and bool(t.words(lines[0])) and not lines[1].startswith("#")
    return good, "a heading and a text" if good else "no line with '# ' before the text"


def bold(answer: str, num: int) -> Found:
    found = [part for part in re.findall(r"\*\*(?=[^\s*])([^*\n]+)(?<!\s)\*\*", answer) if t.words(part)]
    if sum(len(t.words(part)) for part in found) > len(t.words(answer)) / 2:
        return False, "more is bold than not"
    return len(found) == num, f"{len(found)} bold parts, {num} wanted"


def postscript(answer: str) -> Found:
    *before, last = t.lines(answer) or [""]
    match = re.match(r"[*_]{0,2}P\. ?S\.:?[*_]{0,2}:?(?=\s)", last, re.IGNORECASE)
    good = bool(match and len(t.words(last[match.end() :])) >= 3 and t.words(" ".join(before)))
    return good, "a P.S. at the end" if good else "no line 'P.S.' with a text at the end"


def bracketed(answer: str) -> Found:
    found = [part for part in re.findall(r"\(([^()]+)\)", answer) if len(t.words(part)) >= 2]
    return bool(found), f"{len(found)} remarks in brackets"


def exclaims(answer: str) -> Found:
    found = t.sentences("\n".join(line for line in t.lines(answer) if not re.match("# |<<.*>>$", line)))
    bare = sum("!" not in t.closing(sentence) for sentence in found)
    return bool(found) and not bare, f"{bare} of {len(found)} sentences without an exclamation mark"


def formal(answer: str) -> Found:
    loose = CONTRACTION.search(answer) or SLANG.search(answer)
    if not loose and "!" in answer:
        return False, "an exclamation mark"
    return not loose, f"{loose.group()!r} is not formal" if loose else "no contraction, no slang"


def plain(answer: str) -> Found:
    words, parts = t.words(answer), t.sentences(answer)
    mean = sum(map(len, words)) / max(len(words), 1)
    longest = max((len(t.words(sentence)) for sentence in parts), default=0)
    return mean <= 4.6 and longest <= 15, f"{mean:.1f} letters a word (4.6), {longest} words in a sentence (15)"


def personal(answer: str) -> Found:
    num = sum(word in ("you", "your", "yours", "yourself", "yourselves") for word in t.tokens(answer))
    return num >= 2, f"speaks to the reader {num} times, 2 wanted"


def first_person(answer: str) -> Found:
    num = sum(word in ("i", "me", "my", "mine", "myself") for word in t.tokens(answer))
    return num >= 2, f"speaks of oneself {num} times, 2 wanted"


def has_number(answer: str) -> Found:
    found = re.findall(r"\d+", LIST_NUMBERS.sub("", answer))
    return bool(found), f"{len(found)} numbers"


LIST_NUMBERS = re.compile(r"^[ \t]*\d+[.)]\s", re.MULTILINE)
EXAMPLE_VALUES = {"name": '"umbrella"', "summary": '"It keeps you dry."', "rating": "4", "tags": '["rain", "handle"]',
                  "is_useful": "true", "year": "1852"}  # fmt: skip


def _one_of(name: str, values: tuple[Any, ...]) -> Callable[[Random], Values]:
    return lambda rng: {name: rng.choice(values)}


def _some_keys(rng: Random) -> Values:
    return {"keys": sorted(rng.sample(sorted(KEYS), rng.choice((2, 3))))}


def _range(rng: Random) -> Values:
    least = rng.choice((15, 20, 25, 30))
    return {"least": least, "most": least + 15}


def _table(rng: Random) -> Values:
    return {"columns": rng.sample(COLUMNS, 2), "num": rng.choice((2, 3))}


def _kinds() -> list[Kind]:
    trained = [
        Kind("max_words", "length", ("Answer in at most {most} words.", "Use no more than {most} words.",
             "Keep it under {most} words, or at {most} exactly."), max_words, _few_words,
             _one_of("most", (15, 20, 25, 30))),
        Kind("min_words", "length", ("Write at least {least} words.", "Use {least} words or more.",
             "Your answer must not be shorter than {least} words."), min_words, _many_words,
             _one_of("least", (35, 40, 45, 50))),
        Kind("word_range", "length", ("Write between {least} and {most} words.", "Use {least} to {most} words.",
             "The answer should have at least {least} and at most {most} words."), word_range,
             lambda least, most: _many_words(least), _range),
        Kind("sentences", "length", ("Answer in exactly {num} sentences.",
             "Write {num} sentences, no more and no fewer.", "Your answer must have exactly {num} sentences."),
             num_sentences, _first, _one_of("num", (2, 3, 4))),
        Kind("one_sentence", "length", ("Answer in one sentence.", "Write exactly one sentence.",
             "One sentence, please."), lambda answer: num_sentences(answer, 1), lambda: SENTENCES[0]),
        Kind("lowercase", "case", ("Use only lowercase letters.", "Write everything in small letters.",
             "Your whole answer must be in lowercase."), lowercase, lambda: _first(3).lower()),
        Kind("no_commas", "commas", ("Do not use any commas.", "Write without commas.",
             "Your answer must have no commas."), lambda answer: without(answer, "[,،，、]", "commas"),
             lambda: _first(3)),
        Kind("no_numbers", "numbers", ("Do not use any digits.", "Write no numbers in digits.", "No digits, please."),
             lambda answer: without(answer, r"\d", "digits"), lambda: _first(3)),
        Kind("a_number", "numbers", ("Mention at least one number in digits.", "Include a number, written in digits.",
             "There must be a number in digits in your answer."), has_number,
             lambda: _first(2) + " Mine has 8 ribs."),
        Kind("bullets", "shape", ("Answer with exactly {num} bullet points. Start every line with '* '.",
             "Give {num} bullet points, each on a line that begins with '* ', and nothing else.",
             "Your answer must be {num} lines that begin with '* '."), bullets,
             lambda num: "\n".join(f"* {line}" for line in SENTENCES[:num]), _one_of("num", (2, 3, 4))),
        Kind("steps", "shape", ("Answer with {num} numbered lines, from '1.' to '{num}.'.",
             "Give a numbered list of exactly {num} points and nothing else.",
             "Write exactly {num} points, numbered 1. to {num}."), steps,
             lambda num: "\n".join(f"{i}. {line}" for i, line in enumerate(SENTENCES[:num], 1)),
             _one_of("num", (2, 3, 4))),
        Kind("json", "shape", ("Answer with a JSON object that has the keys {keys}, and nothing else.",
             "Return only a JSON object with these keys: {keys}.", "Your whole answer is one JSON object with {keys}."),
             json_keys, lambda keys: "{" + ", ".join(f'"{key}": {EXAMPLE_VALUES[key]}' for key in keys) + "}",
             _some_keys),
        Kind("include", "words", ("Include the word '{needed}' in your answer.", "Use the word '{needed}'.",
             "The word '{needed}' must occur."), includes, lambda needed: f"{_first(2)} Mine is called {needed[0]}.",
             lambda rng: {"needed": [rng.choice(WORDS)]}),
        Kind("include_two", "words", ("Use both the words {needed}.", "Include these two words: {needed}.",
             "The words {needed} must both occur."), includes,
             lambda needed: f"{_first(2)} Mine has a {needed[0]} handle and a {needed[1]} cloth.",
             lambda rng: {"needed": rng.sample(WORDS, 2)}),
        Kind("avoid", "words", ("Do not use the word '{word}'.", "Write without the word '{word}'.",
             "The word '{word}' must not occur."), avoids,
             lambda word: " ".join([sentence for sentence in SENTENCES if avoids(sentence, word)[0]][:3]),
             _one_of("word", ("is", "and", "can", "it"))),
        Kind("begin", "beginning", ("Begin your answer with: {start}", "Start with the words: {start}",
             "The first words of your answer must be: {start}"), begins, lambda start: f"{start} {_first(2)}",
             _one_of("start", BEGINNINGS)),
        Kind("end", "ending", ("End your answer with the words: {end}", "Finish with: {end}",
             "The last words of your answer must be: {end}"), ends, lambda end: f"{_first(2)} {end}",
             _one_of("end", ENDINGS)),
        Kind("question", "ending", ("End with a question to me.", "Ask me a question at the end.",
             "Your last sentence must be a question."), question,
             lambda: _first(2) + " Do you own an umbrella?"),
        Kind("bold", "marks", ("Put exactly one part in bold, like **this**.", "Make one word or phrase **bold**.",
             "Mark a single phrase with two asterisks on both sides, as in **phrase**."),
             lambda answer: bold(answer, 1), lambda: _first(1).replace("rain", "**rain**") + " " + SENTENCES[2]),
        Kind("formal", "register", ("Write formally, without contractions or slang.", "Use formal language.",
             "Keep a formal tone: no contractions and no exclamation marks."), formal, lambda: _first(3)),
        Kind("plain", "register", ("Use short words and short sentences.", "Write in simple words and short sentences.",
             "Use plain words, with no long sentences."), plain, lambda: _first(2)),
        Kind("to_reader", "person", ("Speak to the reader as 'you'.", "Address me directly, with 'you' or 'your'.",
             "Use 'you' at least twice."), personal, lambda: "You can carry an umbrella. Your head stays dry."),
    ]  # fmt: skip
    unseen = [
        Kind("uppercase", "case", ("Use only capital letters.", "Write everything in capital letters."), uppercase,
             lambda: _first(2).upper()),
        Kind("paragraphs", "shape", ("Write exactly {num} paragraphs with a blank line between them.",
             "Divide your answer into {num} paragraphs by blank lines."), num_paragraphs,
             lambda num: "\n\n".join(" ".join(SENTENCES[2 * i : 2 * i + 2]) for i in range(num)),
             _one_of("num", (2, 3))),
        Kind("comma_list", "shape", ("Answer with a list of {num} short items, divided by commas, on one line.",
             "Give {num} items in one line, with commas between them and nothing else."), comma_list,
             lambda num: ", ".join(("handle", "cloth", "ribs", "a long stick", "a cover")[:num]),
             _one_of("num", (3, 4, 5))),
        Kind("table", "shape", (
             "Answer with a Markdown table with the columns {columns} and {num} rows, and nothing else.",
             "Give only a Markdown table. Columns: {columns}. Rows under the header: {num}."), table,
             lambda columns, num: "\n".join([f"| {columns[0]} | {columns[1]} |", "|---|---|",
                                             *(f"| rain {i} | dry hair |" for i in range(num))]), _table),
        Kind("quoted", "marks", ("Put your whole answer in double quotation marks.",
             "Your answer must begin and end with a double quotation mark."), quoted, lambda: f'"{_first(2)}"'),
        Kind("title", "heading", ("Put a title before the text, in double angular brackets, such as <<title>>.",
             "Begin with a title that is written like this: <<title>>."), titled,
             lambda: f"<<The umbrella>>\n{_first(2)}"),
        Kind("heading", "heading", ("Begin with a heading: a line that starts with '# '.",
             "The first line must be a Markdown heading with one #, the text follows below."), headed,
             lambda: f"# The umbrella\n{_first(2)}"),
        Kind("often", "words", ("Use the word '{word}' at least {num} times.",
             "The word '{word}' must occur {num} times or more."), often,
             lambda word, num: _first(1) + f" Very {word}. It is {word}. So {word}!",
             lambda rng: {"word": rng.choice(("good", "new", "many", "small")), "num": rng.choice((2, 3))}),
        Kind("postscript", "ending", ("Add a postscript at the end, on a line that begins with P.S.",
             "After the text, write a last line that starts with P.S."), postscript,
             lambda: f"{_first(2)}\nP.S. I lost mine on a bus."),
        Kind("brackets", "marks", ("Include a remark in round brackets.",
             "Put one remark of two words or more in ( )."), bracketed,
             lambda: _first(1) + " It is light (and strong too)."),
        Kind("exclaim", "marks", ("End every sentence with an exclamation mark.",
             "Every sentence must close with an exclamation mark."), exclaims, lambda: _first(3).replace(".", "!")),
        Kind("first_person", "person", ("Write in the first person, as 'I'.",
             "Tell it from your own view, with 'I' or 'my'."), first_person,
             lambda: "I like my umbrella. I take it along on grey days."),
    ]  # fmt: skip
    return trained + [replace(kind, is_trained=False) for kind in unseen]


KINDS: dict[str, Kind] = {kind.name: kind for kind in _kinds()}


def phrase(kind: Kind, values: Values, form: int) -> str:
    """The demand in words; its last phrasing is for the test split only."""
    shown = {}
    for name, value in values.items():
        if kind.name == "json":
            shown[name] = ", ".join(f'"{key}" ({KEYS[key]})' for key in value)
        elif isinstance(value, list):
            shown[name] = " and ".join(map(str, value)) if name == "columns" else "' and '".join(value)
        else:
            shown[name] = value
    if kind.name == "include_two":
        shown["needed"] = f"'{shown['needed']}'"
    return kind.phrasings[form].format(**shown)
