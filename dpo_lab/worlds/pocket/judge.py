"""The judge: the true reward of an answer, from the hidden specification that comes with its conversation.

Scale. An answer that isn't well formed gets -2. Any other starts at -1, earns up to 3 points for the parts of its job,
one more when every part is complete (that is success), and loses 0.03 for each needless word, at most 0.6. So:

    -2            not well formed
    -2.1 to -1    well formed, and nothing right (a word that nobody used costs 0.5)
    below 2       something is missing
    2.4 to 3      success; 3 without a needless word
"""

from __future__ import annotations

import json
import re
from itertools import accumulate

from dpo_lab.worlds.pocket import formatting, prose, safety, system_prompts, tools
from dpo_lab.worlds.pocket.schema import Conversation, Job, JobSpec, Verdict

SPECS: dict[Job, JobSpec] = {
    "safety": safety.SPEC,
    "system": system_prompts.SPEC,
    "format": formatting.SPEC,
    "tools": tools.SPEC,
}
ILL_FORMED, START, EARNED, WHOLE = -2.0, -1.0, 3.0, 1.0
WORD_PRICE, MOST_FOR_WORDS = 0.03, 0.6
DEEPEST = 100  # brackets within brackets: the world's formats have two, and Python's parser gives up at a thousand


def judge(conversation: Conversation, response: str) -> Verdict:
    """The true reward of `response`, its parts, which add up to it, success, well-formedness and the reason."""
    broken = ill_formed(conversation, response)
    if broken:
        return Verdict(ILL_FORMED, {"ill formed": ILL_FORMED}, False, False, f"not well formed: {broken}")
    found = SPECS[conversation.job].assess(conversation, response)
    checks = [*found.parts]
    total = sum(part.weight for part in checks)
    parts = {"start": START} | {part.name: EARNED * part.weight / total * part.score for part in checks}
    strange = prose.unknown_words(response, shown(conversation))
    missing = [part.why for part in checks if part.score < 1]
    if strange:
        # A name that nobody mentioned is an invention; a single odd word is a slip. Neither is success.
        missing.append(f"a word that nobody used: {strange[0]}")
    success = not missing
    parts["whole"] = WHOLE * success - (0.5 if strange else 0.0)
    needless = max(len(prose.tokens(response)) - found.enough, 0)
    parts["length"] = -min(WORD_PRICE * needless, MOST_FOR_WORDS)
    reason = "; ".join(missing) if missing else "all that was asked for"
    reason += f"; {needless} needless words" if needless else ""
    return Verdict(round(sum(parts.values()), 6), parts, success, True, reason)


def ill_formed(conversation: Conversation, response: str) -> str | None:
    """Why a text is neither English prose nor one of the world's formats, or None."""
    text = response.strip()
    if not text:
        return "it is empty"
    unknown = prose.unknown_words(text, shown(conversation))
    strange = [word for word in unknown if not re.fullmatch(r"[A-Z][a-z]+", word)]
    if len(strange) > max(1, len(prose.tokens(text)) // 8):  # one is a slip
        return f"{strange[0]} is no word"
    if "<|im_" in text:
        return "a turn's mark inside the answer"
    if max(accumulate((letter in "[{") - (letter in "]}") for letter in text)) > DEEPEST:
        return "brackets that are nested too deeply to parse"
    if "tool_call" in text:
        calls, around = tools.parse_calls(text)
        if not calls or "tool_call" in around:
            return "a tool call that does not parse"
        return prose.gibberish(around) if around else None
    if "{" in text or "}" in text:
        return _broken_json(text)
    lines = [line.strip() for line in text.split("\n")]
    if any(re.match(r"[-*•|]|\d+[.)] ", line) for line in lines):
        return _broken_lines(lines)
    lower_case = "lower" in conversation.task.get("rules", ())
    return prose.gibberish(text, lower_case=lower_case)


def _broken_json(text: str) -> str | None:
    match = re.search(r"\{.*\}", text, re.DOTALL)
    if not match:
        return "JSON that does not parse"
    try:
        json.loads(match.group())
    except ValueError:
        return "JSON that does not parse"
    around = (text[: match.start()] + text[match.end() :]).strip()
    return prose.gibberish(around.removesuffix(":") + ("." if around.endswith(":") else "")) if around else None


def _broken_lines(lines: list[str]) -> str | None:
    """Lists and tables: every line has something to say, none says it twice; other lines must be prose."""
    items = []
    for line in lines:
        if re.fullmatch(r"\|[\s:|-]*-[\s:|-]*\|", line):
            continue
        match = re.match(r"(?:[-*•]|\d+[.)]) ?(.*)|\|(.*)\|$", line)
        if not match:
            if line and (broken := prose.gibberish(line.removesuffix(":") + ("." if line.endswith(":") else ""))):
                return broken
            continue
        item = (match.group(1) or match.group(2) or "").strip(" |")
        if not re.search(r"[A-Za-z0-9]", item):
            return "an empty item"
        if len(prose.tokens(item)) > 12 or re.search(r"[<>{}\[\]\\^~`@#$%*_=]", item):
            return "an item that is none"
        items.append(item.lower())
    return "an item is repeated" if len(set(items)) < len(items) else None


def shown(conversation: Conversation) -> str:
    """What an answer may quote: the conversation, the tools' names, and the markup of a call."""
    offered = " ".join(json.dumps(tool) for tool in conversation.tools or ())
    return f"{conversation.shown} {offered} tool_call name arguments {json.dumps(conversation.task.get('names', ''))}"
