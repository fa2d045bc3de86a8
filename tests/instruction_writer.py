"""A writer that meets the demands of a task: what shows that no drawn task asks for the impossible."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product

from dpo_lab.worlds.instructions import Task

FILLERS = (
    "You will find old tales of them in this town.", "We sing of the best days when the year ends.",
    "Some of us go there with a book in the hand.", "They talk of that for hours at home.",
    "Let us look at what all the others do.",
)  # fmt: skip


def texts(task: Task) -> Iterator[str]:
    """Texts of one to six sentences and more; one of them should meet every demand of a format or system task."""
    demands = {demand.kind: demand.values for demand in task.demands}
    needed = demands.get("include", demands.get("include_two", {})).get("needed", [])
    word = demands.get("often", {}).get("word", "")
    who, whose = (
        ("You", "your") if "to_reader" in demands else ("I", "my") if "first_person" in demands else ("We", "our")
    )
    clauses = " for 3 years" * ("a_number" in demands) + " (so we do)" * ("brackets" in demands)
    clauses += "".join(f" and {own}" for own in needed)
    clauses += f" in {word} years with {word} luck to a {word} end" * bool(word)
    love = "**like**" if "bold" in demands else "like"
    for how, num in product(
        (f"with all {whose} heart", f"with all {whose} big heart", f"as {whose} best", "so"), range(6)
    ):
        parts = [f"{who} {love} {task.topic} {how}{clauses}.", *FILLERS[:num]]
        if "begin" in demands:
            parts[0] = f"{demands['begin']['start']} {parts[0]}"
        if "question" in demands:
            parts.append("Do you like this?")
        if "end" in demands:
            parts.append(demands["end"]["end"])
        if "exclaim" in demands:
            parts = [part.replace(".", "!") for part in parts]
        yield _marked(_shaped(task, demands, parts, needed, word), demands)


def _shaped(task: Task, demands: dict, parts: list[str], needed: list[str], word: str) -> str:
    if "bullets" in demands:
        return "\n".join(f"* {part}" for part in parts)
    if "steps" in demands:
        return "\n".join(f"{i}. {part}" for i, part in enumerate(parts, 1))
    if "paragraphs" in demands:
        return "\n\n".join(parts)
    if "comma_list" in demands:
        items = [f"{word} {word} {task.topic}", f"{word} years", f"{word} old songs", "dreams", "tales"]
        return ", ".join(item.strip() for item in items[: demands["comma_list"]["num"]])
    if "table" in demands:
        rows = [f"| {' | '.join(demands['table']['columns'])} |", "|---|---|"]
        return "\n".join([*rows, *(f"| our text | {part} |" for part in parts)])
    if "json" in demands:
        name = " ".join([task.topic, *needed])
        values = {"name": name, "summary": f"{parts[0]} So we go.", "rating": 4, "tags": [name, "life"],
                  "is_useful": True, "year": 1900}  # fmt: skip
        return json.dumps({key: values[key] for key in demands["json"]["keys"]})
    return " ".join(parts)


def _marked(text: str, demands: dict) -> str:
    if "postscript" in demands:
        text += "\nP.S. Do write to us soon" + ("!" if "exclaim" in demands else ".")
    if "heading" in demands:
        text = f"# Our text\n{text}"
    if "title" in demands:
        text = f"<<Our text>>\n{text}"
    if "quoted" in demands:
        text = f'"{text}"'
    return text.upper() if "uppercase" in demands else text.lower() if "lowercase" in demands else text
