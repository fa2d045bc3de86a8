"""Requests that a function answers: the functions as JSON schemas, what is asked, and the call that is right."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from dpo_lab.worlds.instructions.text import parse_object

Schema = dict[str, Any]
CITIES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Tokyo", "Berlin", "Madrid", "Dublin", "Vienna")
PEOPLE = ("Anna", "Tom", "Maria", "Ben", "Ines", "Omar", "Lena", "Paul")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LANGUAGES = ("French", "Spanish", "German", "Italian", "Polish")
SONGS = ("Blue Moon", "Yesterday", "Imagine", "Summertime", "Hey Jude", "Stand by Me")
THINGS = ("milk", "eggs", "apples", "rice", "bread", "soap", "tea")
TEXT, WHOLE = {"type": "string"}, {"type": "integer", "minimum": 1}


class Tool(NamedTuple):
    """A function: its schema as models are shown it, and ways of asking for it. The names in braces are arguments."""

    name: str
    description: str
    properties: Schema
    values: dict[str, tuple[Any, ...]]
    requests: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        parameters = {"type": "object", "properties": self.properties, "required": [*self.properties],
                      "additionalProperties": False}  # fmt: skip
        return {"name": self.name, "description": self.description, "parameters": parameters}


def _choice(values: tuple[str, ...]) -> Schema:
    return {"type": "string", "enum": [*values]}


TOOLS = (
    Tool("get_weather", "The weather in a city on a day.", {"city": TEXT, "day": _choice(DAYS)},
         {"city": CITIES, "day": DAYS},
         ("What will the weather be like in {city} on {day}?", "Will it rain in {city} on {day}?",
          "I travel to {city} on {day}. Do I need a coat?")),
    Tool("set_timer", "Starts a timer.", {"minutes": WHOLE}, {"minutes": (3, 5, 8, 10, 12, 20, 25, 45)},
         ("Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes.",
          "The eggs need {minutes} minutes. Tell me when.")),
    Tool("send_message", "Sends a short message to a person.", {"to": TEXT, "text": TEXT},
         {"to": PEOPLE, "text": ("I am late", "See you soon", "Dinner is ready", "Happy birthday", "Call me back")},
         ("Send {to} the message: {text}", "Tell {to} this: {text}", "Please write to {to}: {text}")),
    Tool("play_song", "Plays a song.", {"title": TEXT}, {"title": SONGS},
         ("Play {title}.", "I want to hear {title}.", "Put on the song {title}, please.")),
    Tool("translate", "Translates a word into a language.", {"word": TEXT, "language": _choice(LANGUAGES)},
         {"word": ("house", "tree", "bread", "friend", "window", "river"), "language": LANGUAGES},
         ("What is the word {word} in {language}?", "Translate {word} into {language}.",
          "How do I say {word} in {language}?")),
    Tool("add_to_list", "Puts a thing on the shopping list.", {"thing": TEXT, "amount": WHOLE},
         {"thing": THINGS, "amount": (1, 2, 3, 4, 6)},
         ("Put {amount} {thing} on my shopping list.", "We need {thing}, {amount} of them. Add it to the list.",
          "Add {amount} {thing} to what I must buy.")),
    Tool("book_table", "Books a table at a restaurant.", {"people": WHOLE, "day": _choice(DAYS)},
         {"people": (2, 3, 4, 5, 6), "day": DAYS},
         ("Book a table for {people} on {day}.", "We are {people} and want to eat out on {day}.",
          "Can you reserve a table on {day}? We are {people}.")),
    # For the test split only:
    Tool("convert_currency", "Converts an amount of money.",
         {"amount": WHOLE, "to": _choice(("euros", "dollars", "pounds"))},
         {"amount": (10, 20, 50, 75, 100), "to": ("euros", "dollars", "pounds")},
         ("How much is {amount} in {to}?", "Convert {amount} to {to}.", "I have {amount}. What is that in {to}?")),
    Tool("find_recipe", "Finds a recipe with an ingredient.", {"ingredient": TEXT, "minutes": WHOLE},
         {"ingredient": ("rice", "eggs", "beans", "fish", "apples"), "minutes": (15, 20, 30, 40)},
         ("Find a recipe with {ingredient} that takes {minutes} minutes.",
          "What can I cook with {ingredient} in {minutes} minutes?",
          "I have {ingredient} and {minutes} minutes. Any recipe?")),
    Tool("set_alarm", "Sets an alarm at an hour on a day.", {"hour": {"type": "integer", "minimum": 0, "maximum": 23},
         "day": _choice(DAYS)}, {"hour": (5, 6, 7, 8, 9), "day": DAYS},
         ("Set an alarm for {hour} on {day}.", "Wake me at {hour} on {day}.", "I must get up at {hour} on {day}.")),
)  # fmt: skip
TRAIN_TOOLS, TEST_TOOLS = TOOLS[:-3], TOOLS[-3:]
PARTS = {
    "call": "One JSON object with the keys name and arguments, and nothing else.",
    "function": "The function that does it.",
    "arguments": "The arguments, as the schema wants them, with the values of the request.",
}
RULE = ('You can call functions. Answer every request with one JSON object with the keys "name" and "arguments", '
        "and nothing else. The functions are:\n")  # fmt: skip
EXAMPLE = (
    Tool("get_time", "The time in a city.", {"city": TEXT}, {"city": ("Athens",)}, ("What time is it in Athens?",)),
    {"name": "get_time", "arguments": {"city": "Athens"}},
)


def system_turn(tools: list[Schema]) -> str:
    """The system prompt that offers the functions: SmolLM2's template, as many, has no place of its own for them."""
    return RULE + "\n".join(json.dumps(schema) for schema in tools)


def draw_request(rng: Random, *, is_test: bool, is_seen: bool) -> tuple[str, Schema, list[Schema]]:
    """A request, the right call, and the functions on offer: the right one among two others."""
    tool = rng.choice(TRAIN_TOOLS if is_seen else TEST_TOOLS)
    others = rng.sample([other for other in (TOOLS if is_test else TRAIN_TOOLS) if other is not tool], 2)
    values = {name: rng.choice(given) for name, given in tool.values.items()}
    forms = tool.requests[:-1] if not is_test else tool.requests[-1:] if is_seen else tool.requests
    request = rng.choice(forms).format(**values)
    offered = [own.schema for own in rng.sample([tool, *others], 3)]
    return request, {"name": tool.name, "arguments": values}, offered


def check_call(answer: str, part: str, call: Schema, tools: list[Schema]) -> tuple[bool, str]:
    """One of PARTS. Every part needs the first; text arguments may differ in case and in white space."""
    found, why = parse_object(answer)
    if found is None:
        return False, why
    if (
        {*found} != {"name", "arguments"}
        or not isinstance(found["arguments"], dict)
        or not isinstance(found["name"], str)
    ):
        return False, f"the keys are {', '.join(found)}; wanted name and arguments"
    if part == "call":
        return True, "a call"
    if found["name"] != call["name"]:
        return False, f"calls {found['name']!r}, wanted {call['name']!r}"
    if part == "function":
        return True, f"calls {call['name']}"
    schema = next(tool["parameters"] for tool in tools if tool["name"] == call["name"])
    error = next(Draft202012Validator(schema).iter_errors(found["arguments"]), None)
    if error is not None:
        return False, f"against the schema: {error.message[:80]}"
    wrong = [name for name, value in call["arguments"].items() if _bare(found["arguments"][name]) != _bare(value)]
    return not wrong, f"{wrong[0]} is {found['arguments'][wrong[0]]!r}" if wrong else "the arguments wanted"


def _bare(value: Any) -> Any:
    return " ".join(value.lower().split()).rstrip(".!") if isinstance(value, str) else value
