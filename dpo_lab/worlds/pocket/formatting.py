"""Response formatting: JSON with the requested keys, bullet and numbered lists, tables, and a limit on the words."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from dpo_lab.worlds.pocket import prose, words
from dpo_lab.worlds.pocket.schema import Assessment, Conversation, Flaw, JobSpec, Part, Split

# Field: how a text states it, and the keys under which it may be requested.
FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "name": ("{name}", ("name", "person")),
    "age": ("is {age} years old", ("age", "years")),
    "city": ("lives in {city}", ("city", "town")),
    "pet": ("has a {pet}", ("pet", "animal")),
    "job": ("works as a {job}", ("job", "work")),
    "food": ("likes {food}", ("food", "dish")),
}
JSON_ORDERS = (
    "Write this as JSON with the keys {k}.", "Give me JSON with the keys {k}.", "Put that into JSON. The keys are {k}.",
    "Answer only with JSON, keys {k}.",
)  # fmt: skip
TEST_JSON_ORDERS = ("Write JSON with the keys {k}.",)
LIST_SOURCES = (
    "I need {i}.", "We have {i}.", "{n} wants {i}.", "Today I bought {i}.", "Our list: {i}.",
    "For the party we need {i}.",
)  # fmt: skip
BULLET_ORDERS = (
    "Write that as a bullet list.", "Make a bullet list.", "Turn it into bullet points.", "Use bullet points.",
)  # fmt: skip
NUMBER_ORDERS = (
    "Write that as a numbered list.", "Make a numbered list.", "Number the items.", "Put it into a numbered list.",
)  # fmt: skip
TABLE_ORDERS = (
    "Make a table with the columns {a} and {b}.", "Put that into a table with {a} and {b}.",
    "Show a table of {a} and {b}.",
)  # fmt: skip
COLUMNS = (("item", "price"), ("food", "cost"), ("name", "points"))
LIMIT_ORDERS = ("Say it in at most {k} words.", "Sum that up in {k} words or less.", "Shorten it to at most {k} words.")
STORIES = ("lost", "found", "sold", "painted", "broke", "bought", "washed", "hid")
PLACES_AND_TIMES = (
    "{d} after work", "in {c} last {d}", "on the way to {c}", "in the park near {c}", "on {d} at the market",
    "in the old house in {c}",
)  # fmt: skip
FEELINGS = (
    "and was very happy about it", "and told everyone at home", "and then went back to bed", "while it was raining",
)  # fmt: skip
CHATTER = ("Sure! Here it is:", "Here is what you asked for:", "Of course, here you go:")
NOTES = ("Got it.", "Okay.", "I will remember that.", "Noted.")


def sample(rng: Random, split: Split) -> Conversation:
    kind = rng.choice(("json", "json", "bullets", "numbers", "table", "limit"))
    build = {"json": _json_task, "table": _table_task, "limit": _limit_task}.get(kind, _list_task)
    task, source, order = build(rng, split, kind)
    form = rng.random()
    if form < 0.2:
        turns = [("user", source), ("assistant", rng.choice(NOTES)), ("user", order)]
    elif form < 0.35 and kind != "limit":
        turns = [("system", order), ("user", source)]
    elif form < 0.6:
        turns = [("user", f"{order} {source}")]
    else:
        turns = [("user", f"{source} {order}")]
    return Conversation(
        [{"role": role, "content": text} for role, text in turns], "format", {"kind": kind} | task, split=split
    )


def _json_task(rng: Random, split: Split, kind: str) -> tuple[dict[str, Any], str, str]:
    person = {
        "name": words.person(rng, split), "age": rng.randrange(20, 80), "city": words.place(rng, split),
        "pet": rng.choice(words.PETS), "job": rng.choice(words.TRADES), "food": words.foods(rng, split, 1)[0],
    }  # fmt: skip
    fields = rng.sample([field for field in FIELDS if field != "name"], rng.choice((2, 2, 3)))
    facts = [FIELDS[field][0].format(**person) for field in fields]
    source = f"{person['name']} {words.join(facts)}."
    requested = ["name", *fields]
    if len(requested) > 3 or rng.random() < 0.3:
        requested = rng.sample(requested, len(requested) - 1)
    wanted = {rng.choice(FIELDS[field][1]): person[field] for field in requested}
    orders = TEST_JSON_ORDERS if split == "test" and rng.random() < 0.15 else JSON_ORDERS
    return {"wanted": wanted}, source, rng.choice(orders).format(k=words.join(list(wanted)))


def _list_task(rng: Random, split: Split, kind: str) -> tuple[dict[str, Any], str, str]:
    items = words.foods(rng, split, rng.choice((3, 3, 4)))
    source = rng.choice(LIST_SOURCES).format(i=words.join(items), n=words.person(rng, split))
    order = rng.choice(BULLET_ORDERS if kind == "bullets" else NUMBER_ORDERS)
    wanted, chance = list(items), rng.random()
    if chance < 0.2:
        left_out = rng.choice(items)
        wanted.remove(left_out)
        order += rng.choice((" Leave out the {x}.", " Skip the {x}.")).format(x=left_out)
    elif chance < 0.35:
        wanted = wanted[:2]
        order += rng.choice((" Only the first two.", " Keep only the first two."))
    return {"wanted": wanted, "given": items}, source, order


def _table_task(rng: Random, split: Split, kind: str) -> tuple[dict[str, Any], str, str]:
    columns = rng.choice(COLUMNS)
    count = rng.choice((2, 2, 3))
    if columns[0] == "name":
        keys = list(dict.fromkeys(words.person(rng, split) for _ in range(count + 2)))[:count]
        rows = [[key, str(rng.randrange(1, 30))] for key in keys]
        source = words.join(
            [f"{key} has {value} points" if k == 0 else f"{key} has {value}" for k, (key, value) in enumerate(rows)]
        )
    else:
        rows = [[food, str(rng.randrange(1, 10))] for food in words.foods(rng, split, count)]
        source = "We bought " + words.join([f"{key} for {value}" for key, value in rows])
    order = rng.choice(TABLE_ORDERS).format(a=columns[0], b=columns[1])
    return {"columns": list(columns), "rows": rows}, source + ".", order


def _limit_task(rng: Random, split: Split, kind: str) -> tuple[dict[str, Any], str, str]:
    name, item, verb = words.person(rng, split), words.thing(rng, split), rng.choice(STORIES)
    colour, town = rng.choice(words.COLOURS), words.place(rng, split)
    where = rng.choice(PLACES_AND_TIMES).format(d=rng.choice(words.DAYS), c=town)
    source = f"{name} {verb} {words.article(colour)} {item} {where} {rng.choice(FEELINGS)}."
    limit = rng.choice((5, 6, 7, 8))
    task = {"name": name, "verb": verb, "item": item, "colour": colour, "limit": limit}
    return task, source, rng.choice(LIMIT_ORDERS).format(k=limit)


# Writing


def _list(kind: str, items: list[str]) -> str:
    return "\n".join(f"- {item}" if kind == "bullets" else f"{k}. {item}" for k, item in enumerate(items, 1))


def _table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def _plain(task: dict[str, Any]) -> str:
    """The content as a sentence, whatever was requested."""
    if task["kind"] == "json":
        return prose.capital(words.join([f"the {key} is {value}" for key, value in task["wanted"].items()])) + "."
    if task["kind"] == "table":
        return prose.capital(words.join([f"{key} {value}" for key, value in task["rows"]])) + "."
    return prose.capital(words.join(task["wanted"])) + "."


def _render(task: dict[str, Any]) -> str:
    if task["kind"] == "json":
        return json.dumps(task["wanted"])
    if task["kind"] == "table":
        return _table(task["columns"], task["rows"])
    return _list(task["kind"], task["wanted"])


def good(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    if task["kind"] != "limit":
        return _render(task)
    short = f"{task['name']} {task['verb']} {words.article(task['item'])}."
    full = f"{task['name']} {task['verb']} {words.article(task['colour'])} {task['item']}."
    return rng.choice((short, full))


def _wrong_key(conversation: Conversation, rng: Random) -> str:
    wanted = dict(conversation.task["wanted"])
    key = rng.choice(list(wanted))
    other = {a: b for _, pair in FIELDS.values() for a, b in (pair, pair[::-1])}[key]
    return json.dumps({other if name == key else name: value for name, value in wanted.items()})


def _missing_key(conversation: Conversation, rng: Random) -> str:
    wanted = dict(conversation.task["wanted"])
    del wanted[rng.choice(list(wanted))]
    return json.dumps(wanted)


def _wrong_value(conversation: Conversation, rng: Random) -> str:
    wanted = dict(conversation.task["wanted"])
    first, second = rng.sample(list(wanted), 2)
    wanted[first], wanted[second] = wanted[second], wanted[first]
    return json.dumps(wanted)


def _wrong_items(conversation: Conversation, rng: Random) -> str:
    """One item too few, one too many, or what was to be left out."""
    task = conversation.task
    wanted = list(task["wanted"])
    if len(wanted) < len(task["given"]) and rng.random() < 0.7:
        wanted = list(task["given"])
    elif rng.random() < 0.6:
        wanted.remove(rng.choice(wanted))
    else:
        wanted.append(rng.choice([food for food in words.FOODS if food not in task["given"]]))
    return _list(task["kind"], wanted)


def _other_list(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    return _list("numbers" if task["kind"] == "bullets" else "bullets", task["wanted"])


def _wrong_rows(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    rows = [list(row) for row in task["rows"]]
    if rng.random() < 0.5:
        rows.remove(rng.choice(rows))
    elif rows[0][1] != rows[1][1]:
        rows[0][1], rows[1][1] = rows[1][1], rows[0][1]
    else:
        rows[0][1] = str(int(rows[0][1]) + 1)
    return _table(task["columns"], rows)


def _wrong_columns(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    return _table(list(rng.choice([pair for pair in COLUMNS if list(pair) != task["columns"]])), task["rows"])


def _retell(conversation: Conversation, rng: Random) -> str:
    """The story again, longer than allowed, without the order that stands beside it."""
    task = conversation.task
    for message in conversation.messages:
        for sentence in prose.sentences(message["content"]):
            if sentence.startswith(task["name"]):
                return sentence
    raise AssertionError("the story starts with its person")


def _lost_the_point(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    other = rng.choice([verb for verb in STORIES if verb != task["verb"]])
    return rng.choice((f"{task['name']} was very happy.", f"{task['name']} {other} {words.article(task['item'])}."))


def _chatter(conversation: Conversation, rng: Random) -> str:
    return f"{rng.choice(CHATTER)}\n{_render(conversation.task)}"


def flaws(conversation: Conversation) -> dict[str, Flaw]:
    kind = conversation.task["kind"]
    if kind == "limit":
        return {"too long": Flaw("shape", _retell, 2.0), "lost the point": Flaw("content", _lost_the_point, 1.0)}
    plain = Flaw("shape", lambda c, rng: _plain(c.task), 1.5)
    if kind == "json":
        return {
            "plain": plain, "chatter": Flaw("shape", _chatter, 1.5), "wrong key": Flaw("content", _wrong_key, 1.2),
            "missing key": Flaw("content", _missing_key, 1.2), "wrong value": Flaw("content", _wrong_value, 0.6),
        }  # fmt: skip
    if kind == "table":
        return {
            "plain": plain, "wrong rows": Flaw("content", _wrong_rows, 1.0), "wrong columns": Flaw("columns",
            _wrong_columns, 1.0),
        }  # fmt: skip
    return {
        "plain": plain,
        "other list": Flaw("shape", _other_list, 1.2),
        "wrong items": Flaw("content", _wrong_items, 1.5),
    }


# Judging


def _overlap(given: list[str], wanted: list[str]) -> float:
    """Shared items over all items, 1 only when both hold the same, each once."""
    if given == wanted:
        return 1.0
    left = list(wanted)
    shared = 0
    for item in given:
        if item in left:
            left.remove(item)
            shared += 1
    return shared / max(len(given) + len(wanted) - shared, 1)


def _content(score: float, why: str, weight: float = 0.5) -> Part:
    return Part("content", weight, score, why)


def assess(conversation: Conversation, response: str) -> Assessment:
    task = conversation.task
    assess_kind = {"json": _assess_json, "table": _assess_table, "limit": _assess_limit}.get(task["kind"], _assess_list)
    return assess_kind(task, response)


def _assess_json(task: dict[str, Any], response: str) -> Assessment:
    enough = len(prose.tokens(_render(task))) + 2
    whole = response.strip()
    found = re.search(r"\{.*\}", whole, re.DOTALL)
    try:
        data = json.loads(found.group(), object_pairs_hook=_no_twins) if found else None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        return Assessment([Part("shape", 0.5, 0.0, "it is not a JSON object"), _content(0.0, "no keys")], enough)
    alone = 1.0 if found and found.group() == whole else 0.5
    wanted = task["wanted"]
    right = sum(key in data and _same(data[key], value) for key, value in wanted.items())
    score = right / len(set(data) | set(wanted))
    return Assessment([
        Part("shape", 0.5, alone, "there is text around the JSON"),
        _content(score, "keys or values are not the asked ones"),
    ], enough)  # fmt: skip


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _same(given: Any, wanted: Any) -> bool:
    """Equal values; a number may come as text, and text in another case is another text."""
    return not isinstance(given, bool) and str(given).strip() == str(wanted)


def _lines(response: str) -> tuple[str, list[str]]:
    """An introduction that ends in a colon, and the other lines."""
    lines = [line.strip() for line in response.strip().split("\n") if line.strip()]
    return (lines[0], lines[1:]) if len(lines) > 1 and lines[0].endswith(":") else ("", lines)


def _assess_list(task: dict[str, Any], response: str) -> Assessment:
    _, lines = _lines(response)
    patterns = (r"[-*•] (.+)" if task["kind"] == "bullets" else rf"{k}[.)] (.+)" for k in range(1, len(lines) + 1))
    matches = map(re.fullmatch, patterns, lines)
    items = [match.group(1).strip() for match in matches if match]
    shaped = bool(items) and len(items) == len(lines)
    given = [item.rstrip(".,").lower() for item in items]
    score = _overlap(given, task["wanted"]) if items else 0.0
    if task["kind"] == "numbers" and score == 1 and given != task["wanted"]:
        score = 0.5  # numbers state an order, bullets don't
    name = "bullet list" if task["kind"] == "bullets" else "list numbered from 1"
    return Assessment([
        Part("shape", 0.5, float(shaped), f"it is not a {name}"), _content(score, "the items are not the asked ones"),
    ], enough=len(prose.tokens(_render(task))) + 2)  # fmt: skip


def _assess_table(task: dict[str, Any], response: str) -> Assessment:
    _, lines = _lines(response)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|") and line.endswith("|")
    ]
    width = len(task["columns"])
    shaped = (
        len(cells) >= 3 and len(cells) == len(lines) and all(len(row) == width for row in cells)
        and all(re.fullmatch(r":?-{2,}:?", cell) for cell in cells[1])
    )  # fmt: skip
    columns = shaped and [cell.lower() for cell in cells[0]] == task["columns"]
    rows = [" | ".join(row).lower() for row in cells[2:]] if shaped else []
    score = _overlap(rows, [" | ".join(row).lower() for row in task["rows"]])
    return Assessment([
        Part("shape", 0.4, float(shaped), "it is not a table with a head, a line and rows"),
        Part("columns", 0.2, float(columns), "the columns are not the asked ones"),
        _content(score, "the rows are not the given ones", 0.4),
    ], enough=len(prose.tokens(_render(task))) + 2)  # fmt: skip


def _assess_limit(task: dict[str, Any], response: str) -> Assessment:
    found = prose.tokens(response)
    verb = task["verb"] in found and not any(other in found for other in STORIES if other != task["verb"])
    present = [task["name"].lower() in found, verb, task["item"] in found]
    rivals = [*({*words.COLOURS} - {task["colour"]}), "not", "never", "didn't"]
    wrong = any(word in rivals for word in found) or prose.strays(response, rf"\b{task['name'].lower()}\b") > 0
    if all(present):
        orderly = found.index(task["name"].lower()) < found.index(task["verb"]) < found.index(task["item"])
        wrong = wrong or not orderly
    score = 0.5 if all(present) and wrong else sum(present) / 3
    return Assessment([
        Part("shape", 0.4, float(len(found) <= task["limit"]),
            f"it has {len(found)} words, {task['limit']} were allowed"),
        _content(score, "who did what to what is not said rightly", 0.6),
    ], enough=9)  # fmt: skip


SPEC = JobSpec(sample, good, flaws, assess)
