"""The judge's checks against those of IFEval, on a real model's answers: `python data/judge_agreement.py`.

IFEval (Zhou et al. 2023) is a benchmark whose checkers the library `if-verifiable` carries. Most kinds of demand of
`dpo_lab.worlds.instructions` have a counterpart there. Both look at the same answer twice: "asked" is the demand that
its task makes, "drawn" one of every kind, drawn at random, whether the task asks for it or not. Where they differ, the
table says why: the wordings differ ("at least one highlighted part" is not "exactly one part in bold"), and so do the
ways of counting. The judge's guards against gaming have no counterpart, so they are counted apart.

Answers are those of `data/real/`, or of a JSONL file of {"task": {"demands": [{"kind", "values"}]}, "answer"}.
Of the library's own requirements its IFEval part needs immutabledict, langdetect and nltk, but none of nltk's data:
sentences are counted with the library's own splitter, not with its checker, which loads a model of nltk's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from dpo_lab.storage.files import write_whole
from dpo_lab.worlds.instructions import KINDS, Demand, Task, draw, no_answer
from dpo_lab.worlds.instructions import text as t

REAL = Path(__file__).resolve().parent / "real"
RESULTS = Path(__file__).resolve().parent / "results"
Check = Callable[..., bool]


def checkers() -> dict[str, tuple[str, Check]]:
    """Of each kind that both have: what the library's is called, and the library's verdict on an answer."""
    import langdetect
    from if_verifiable.ifeval import instructions as ifeval
    from if_verifiable.ifeval.instructions_util import split_into_sentences

    langdetect.DetectorFactory.seed = 0  # it draws

    def follows(name: str, answer: str, **arguments: Any) -> bool:
        instruction = getattr(ifeval, name)(name)
        instruction.build_description(**arguments)
        return bool(instruction.check_following(answer))

    def counts(relation: str, num: int, answer: str) -> bool:
        return follows("NumberOfWords", answer, num_words=num, relation=relation)

    def paragraphs(answer: str, num: int) -> bool:
        first = re.split("[.,?!'\"]", (answer.split() or [""])[0].lstrip("'").lstrip('"'))[0].lower()
        arguments = {"num_paragraphs": num, "nth_paragraph": 1, "first_word": first}
        return follows("ParagraphFirstWordCheck", answer, **arguments)

    return {
        "max_words": ("NumberOfWords", lambda a, most: counts("less than", most + 1, a)),
        "min_words": ("NumberOfWords", lambda a, least: counts("at least", least, a)),
        "word_range": ("NumberOfWords, twice",
                       lambda a, least, most: counts("at least", least, a) and counts("less than", most + 1, a)),
        "sentences": ("split_into_sentences", lambda a, num: len(split_into_sentences(a)) == num),
        "one_sentence": ("split_into_sentences", lambda a: len(split_into_sentences(a)) == 1),
        "paragraphs": ("ParagraphFirstWordCheck", paragraphs),
        "lowercase": ("LowercaseLettersEnglishChecker", lambda a: follows("LowercaseLettersEnglishChecker", a)),
        "uppercase": ("CapitalLettersEnglishChecker", lambda a: follows("CapitalLettersEnglishChecker", a)),
        "no_commas": ("CommaChecker", lambda a: follows("CommaChecker", a)),
        "bullets": ("BulletListChecker", lambda a, num: follows("BulletListChecker", a, num_bullets=num)),
        "json": ("JsonFormat", lambda a, keys: follows("JsonFormat", a)),
        "include": ("KeywordChecker", lambda a, needed: follows("KeywordChecker", a, keywords=needed)),
        "include_two": ("KeywordChecker", lambda a, needed: follows("KeywordChecker", a, keywords=needed)),
        "often": ("KeywordFrequencyChecker", lambda a, word, num: follows(
            "KeywordFrequencyChecker", a, keyword=word, frequency=num, relation="at least")),
        "avoid": ("ForbiddenWords", lambda a, word: follows("ForbiddenWords", a, forbidden_words=[word])),
        "begin": ("ConstrainedStartChecker", lambda a, start: follows("ConstrainedStartChecker", a, starter=start)),
        "end": ("EndChecker", lambda a, end: follows("EndChecker", a, end_phrase=end)),
        "bold": ("HighlightSectionChecker", lambda a: follows("HighlightSectionChecker", a, num_highlights=1)),
        "quoted": ("QuotationChecker", lambda a: follows("QuotationChecker", a)),
        "title": ("TitleChecker", lambda a: follows("TitleChecker", a)),
        "postscript": ("PostscriptChecker", lambda a: follows("PostscriptChecker", a, postscript_marker="P.S.")),
    }  # fmt: skip


# ── why the two differ ───────────────────────────────────────────────────────────────────────────────────────────────


def words_differ(answer: str, values: dict[str, Any], found: str) -> str:
    bare = t.LIST_MARK.sub("", answer)
    reasons = {
        "the library cuts words at hyphens and apostrophes": bool(re.search(r"\w['’\-]\w", bare)),
        "the library counts the number of a list's line as a word": bool(re.search(r"(?m)^[ \t]*\d+[.)]\s", answer)),
        "an underscore is a letter for the library": "_" in bare,
    }  # fmt: skip
    return " and ".join(reason for reason, holds in reasons.items() if holds)


def sentences_differ(answer: str, values: dict[str, Any], found: str) -> str:
    if "finished" in found:
        return "here an unfinished last sentence does not meet it"
    if re.search(r"(?m)^[ \t]*\d+[.)]\s", answer):
        return "the library takes the number of a list's line for a sentence"
    if len(t.sentences(" ".join(answer.split()))) != len(t.sentences(answer)) and len(t.lines(answer)) > 1:
        return "here the end of a line ends a sentence"
    if not t.words(answer):
        return "no word at all, which is a sentence for the library"
    if re.search(r"[.?!…]{2,}|[.?!]\S*[.?!]|…|[.?!](?:\w|\[)", answer):
        return "several stops in a row, or a stop inside a word: the library ends a sentence at each"
    if re.search(r"[.?!][\"'”’)\]*]", answer):
        return "a quotation mark or bracket behind the stop"
    if re.search(r"\w(?:Mr|St|Mrs|Ms|Dr)\.", answer):
        return "the library takes the end of a word for Ms. or St."
    if re.search(r"\b[A-Za-z]\.|\b(?:etc|vs|approx|Prof|Mt|Inc|Ltd|Co)\.", answer):
        return "an abbreviation or a single letter before the stop"
    return ""


def case_differs(answer: str, values: dict[str, Any], found: str) -> str:
    if not any(letter.isalpha() for letter in answer):
        return "no letters at all"
    if answer.islower() or answer.isupper():
        return "the library's language detector does not take it for English"
    return "no word with a letter of either case"


def begins_differ(answer: str, values: dict[str, Any], found: str) -> str:
    start, bare = values["start"], answer.strip()
    if bare.lower().startswith(start.lower()):
        same = bare.startswith(start)
        return "nothing but the words asked for" if same else "small or capital letters, which the library minds"
    if any(line.startswith(start) for line in t.lines(answer)):
        return "a later line begins so, which is enough for the library"
    return "the library takes a full stop for any sign"


def reasoned(*rules: tuple[str, str]) -> Callable[..., str]:
    """The first rule whose pattern is in the answer says why."""
    return lambda answer, values, found: next((why for pattern, why in rules if re.search(pattern, answer)), "")


def as_found(answer: str, values: dict[str, Any], found: str) -> str:
    """What the check found, without its numbers and names."""
    if found.startswith("the keys are"):
        return "JSON is enough for the library, whatever its keys"
    if "object" in found:
        return "any JSON is enough for the library, here it must be an object"
    if found.startswith("ends with"):
        return "nothing but the words asked for"
    if "paragraphs, " in found:
        return "marks without a word are a paragraph for the library"
    return "here: " + re.sub(r"'[^']*'|\"[^\"]*\"", "…", re.sub(r"\d+", "N", found.split(";")[0]))


OURS_ONLY: dict[str, Callable[..., str]] = {  # met here, and not for the library
    **dict.fromkeys(("max_words", "min_words", "word_range"), words_differ),
    **dict.fromkeys(("sentences", "one_sentence"), sentences_differ),
    **dict.fromkeys(("lowercase", "uppercase"), case_differs),
    "paragraphs": reasoned((r"(?:\n\n|\A)[\W_]+(?:\n\n|\Z)", "marks without a word are no paragraph here"),
                           (r"\n[ \t]+\n|\n{3,}", "blank lines with spaces, or more than one")),
    "avoid": reasoned((r"\w_|_\w", "a name with underscores"), (".", "a letter beside an accent")),
    "begin": begins_differ, "quoted": reasoned(("[“”]", "curly quotation marks")),
    "end": reasoned((r"[*_”]\s*$", "marks of bold or a curly quotation mark behind it")),
    "postscript": reasoned((r"\*\*|_", "bold marks")),
    "json": reasoned((r"```", "a fence")),
    "bold": reasoned((r"\*\*", "bold")),
}  # fmt: skip
THEIRS_ONLY: dict[str, Callable[..., str]] = {  # met for the library, and not here
    **dict.fromkeys(("max_words", "min_words", "word_range"), words_differ),
    **dict.fromkeys(("sentences", "one_sentence"), sentences_differ),
    **dict.fromkeys(("include", "include_two", "often"),
                    lambda *_: "inside a longer word, which is enough for the library"),
    "avoid": reasoned((r"_", "between underscores"), (".", "inside a chain of hyphens")),
    "no_commas": lambda *_: "a comma of another script",
    "begin": begins_differ,
    "title": lambda *_: "<< >> anywhere is enough for the library; here it stands first, and a text follows",
    "postscript": lambda *_: "P.S. anywhere is enough for the library; here it begins the last line, before a text",
}  # fmt: skip


def explain(demand: Demand, answer: str, ours: bool, found: str) -> str:
    """Why the two differ, or "" where no reason is known."""
    table = OURS_ONLY if ours else THEIRS_ONLY
    if demand.kind in table:
        return table[demand.kind](answer, demand.values, found)
    return "" if ours else as_found(answer, demand.values, found)


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tally:
    """How often both say yes, both say no, and only one says yes."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[bool, bool]] = Counter()
        self.reasons: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, demand: Demand, answer: str, library: Check) -> None:
        ours, found = KINDS[demand.kind].check(answer, **demand.values)
        theirs = library(answer, **demand.values)
        self.counts[ours, theirs] += 1
        if ours != theirs:
            who = "met here only" if ours else "met for the library only"
            why = explain(demand, answer, ours, found) or "no reason known"
            self.reasons[who, why].append(f"{demand.text}\n{answer}")

    def row(self) -> dict[str, Any]:
        num = sum(self.counts.values())
        agree = self.counts[True, True] + self.counts[False, False]
        return {"answers": num, "both_met": self.counts[True, True], "neither_met": self.counts[False, False],
                "met_here_only": self.counts[True, False], "met_for_the_library_only": self.counts[False, True],
                "agreement": round(agree / num, 4) if num else None}  # fmt: skip


def compare(answered: Iterable[tuple[Task | None, tuple[Demand, ...], str]], *, seed: int = 0) -> dict[str, Any]:
    """Per kind, how far the two agree; and what the judge's guards take away from demands that are met in form."""
    library = checkers()
    tallies = {kind: {"asked": Tally(), "drawn": Tally()} for kind in library}
    guards: Counter[str] = Counter()
    rng, num = Random(seed), 0
    for task, demands, answer in answered:
        num += 1
        for demand in demands:
            if demand.kind in library:
                tallies[demand.kind]["asked"].add(demand, answer, library[demand.kind][1])
        for kind, (_, check) in library.items():
            values = KINDS[kind].draw(rng)
            tallies[kind]["drawn"].add(Demand(kind, f"{kind} {values}", values), answer, check)
        if task is not None and task.section in ("format", "system"):
            met = sum(KINDS[demand.kind].check(answer, **demand.values)[0] for demand in demands)
            why = re.sub(r"\d+", "N", no_answer(task, answer)).replace(task.topic, "the topic") if met else ""
            guards["met in form"] += met
            if why:
                guards[f"of these, no answer: {why}"] += met
    kinds = {}
    for kind, tally in tallies.items():
        reasons = defaultdict(lambda: {"times": 0, "example": ""})
        for one in tally.values():
            for (who, why), texts in one.reasons.items():
                entry = reasons[f"{who}: {why}"]
                entry["times"] += len(texts)
                entry["example"] = entry["example"] or min(texts, key=len)[:400]
        kinds[kind] = {"checker": library[kind][0], "asked": tally["asked"].row(), "drawn": tally["drawn"].row(),
                       "disagreements": dict(sorted(reasons.items(), key=lambda item: -item[1]["times"]))}  # fmt: skip
    return {"answers": num, "kinds": kinds, "guards": dict(guards.most_common())}


def in_total(found: dict[str, Any], how: str) -> tuple[int, int]:
    """Verdicts compared, and those in which the two agree."""
    rows = [kind[how] for kind in found["kinds"].values()]
    return sum(row["answers"] for row in rows), sum(row["both_met"] + row["neither_met"] for row in rows)


def page(found: dict[str, Any]) -> str:
    """The table, and every kind of disagreement with its reason."""
    say = lambda row: f"{row['agreement']:.1%} of {row['answers']}" if row["answers"] else "–"
    columns = ("both_met", "neither_met", "met_here_only", "met_for_the_library_only")
    lead = [f"{found['answers']} answers of a model. Asked is the demand of an answer's task, drawn one of every kind."]
    for how in ("asked", "drawn"):
        num, good = in_total(found, how)
        lead.append(f"The two agree on {good / max(num, 1):.1%} of {num} {how} demands.")
    lines = [
        "# The judge against the checkers of IFEval", "",
        " ".join(lead), "",
        *[f"- {key}: {value}" for key, value in found.get("made", {}).items()], "",
        "| kind | the library's checker | asked | drawn | both met | neither | only here | only there |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for kind, row in found["kinds"].items():
        both = " | ".join(str(row["asked"][name] + row["drawn"][name]) for name in columns)
        lines.append(f"| {kind} | {row['checker']} | {say(row['asked'])} | {say(row['drawn'])} | {both} |")
    lines += ["", "## Where they differ, and why", ""]
    for kind, row in found["kinds"].items():
        lines += [f"- **{kind}**, {entry['times']} times, {why}" for why, entry in row["disagreements"].items()]
    lines += [
        "",
        "## What the guards take away",
        "",
        "Demands of format and system tasks that their check calls met, and why the judge does not count some of them:",
        "",
    ]
    lines += [f"- {why}: {times}" for why, times in found["guards"].items()]
    return "\n".join(lines) + "\n"


def saved(path: Path | None) -> Iterator[tuple[Task | None, tuple[Demand, ...], str]]:
    """Answers with their demands: of data/real, or of a JSONL file."""
    if path is not None:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            own = row["task"]["demands"]
            yield (
                None,
                tuple(Demand(d["kind"], d.get("text", d["kind"]), d.get("values", {})) for d in own),
                row["answer"],
            )
        return
    settings = json.loads((REAL / "manifest.json").read_text())["settings"]
    tasks = draw("train", settings["tasks"], seed=settings["seed"])
    with gzip.open(REAL / "answers.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for answer in row["answers"]:
                yield tasks[row["task"]], tasks[row["task"]].demands, answer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--answers", type=Path, help="a JSONL file (default: the answers in data/real)")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = options.parse_args()
    from measuring import made_with  # here, since it loads torch

    made = made_with(shlex.join(["python", "data/judge_agreement.py", *sys.argv[1:]]))
    found = {"made": made, **compare(saved(arguments.answers))}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_whole(
        arguments.out / "judge_agreement.json", json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n"
    )
    write_whole(arguments.out / "judge_agreement.md", page(found).encode())
    print(page(found))


if __name__ == "__main__":
    main()
