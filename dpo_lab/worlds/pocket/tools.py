"""Tool calls: choose the tool, fill its arguments from the conversation, answer from its result, or leave it alone.

A call is written as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` and is the whole answer.
"""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any, NamedTuple

from dpo_lab.worlds.pocket import prose, words
from dpo_lab.worlds.pocket.schema import Assessment, Conversation, Flaw, JobSpec, Part, Split


class Tool(NamedTuple):
    """A tool: its names (one is offered), its parameters, how it is requested, what it returns and how that is said.

    In the texts `{...}` are the arguments and the result's fields.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    requests: tuple[str, ...]
    vague: tuple[str, ...]
    """The request without its first argument, and"""
    missing: tuple[str, ...]
    """how one asks back for it."""
    subject: str
    """What it is about, for `I have no tool for ...`."""
    tellings: tuple[str, ...]
    failures: tuple[str, ...]
    ask_pattern: str


TOOLS: dict[str, Tool] = {
    "weather": Tool(("weather", "forecast"), ("city",),
        ("How is the weather in {city}?", "What is the weather like in {city}?", "Do I need a coat in {city}?"),
        ("How is the weather?", "Do I need a coat?"), ("In which city?", "Which city do you mean?"), "the weather",
        ("It is {degrees} degrees with {sky} in {city}.", "In {city} there is {sky} at {degrees} degrees."), (),
        r"which (city|town|place)|where|what (city|town|place)|(city|town|place)\?"),
    "timer": Tool(("timer", "alarm"), ("minutes",),
        ("Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes.", "Ring in {minutes} minutes, please."),
        ("Set a timer.", "Wake me later."), ("For how many minutes?", "How many minutes shall it be?"), "timers",
        ("The timer will ring in {minutes} minutes.", "I have set it for {minutes} minutes."),
        ("I could not set the timer.", "Sorry, the timer was not set."),
        r"how (many minutes|long|many)|which time|when|what time|minutes\?"),
    "message": Tool(("message", "send"), ("to", "text"),
        ("Tell {to} that {text}.", "Send {to} the message that {text}.", "Let {to} know that {text}."),
        ("Send a message.", "Write a message for me."), ("To whom, and what shall it say?",
            "Who shall get the message?"), "messages",
        ("I have sent the message to {to}.", "{to} has got your message."),
        ("I could not send it to {to}.", "Sorry, the message to {to} was not sent."),
        r"\b(who|whom)\b|what (shall|should|is)"),
    "shop": Tool(("shop", "buy"), ("item", "count"),
        ("Buy {count} {item}.", "Order {count} {item} for me.", "Please get {count} {item}."),
        ("Buy something for me.", "Order some food."), ("What shall I buy?", "What would you like, and how much?"),
            "shopping",
        ("I have bought {count} {item}.", "Done, {count} {item} are on the way."),
        ("Sorry, there are no {item} left.", "I could not buy the {item}."),
        r"\bwhat\b|which"),
    "phone": Tool(("phone", "call"), ("person",),
        ("Call {person}.", "Ring {person} up for me.", "I want to talk to {person} on the phone."),
        ("Call someone for me.", "I want to talk on the phone."), ("Whom shall I call?",
            "Who is it that you want to call?"), "phone calls",
        ("{person} is on the phone now.", "I have called {person}."),
        ("{person} did not pick up.", "I could not reach {person}."),
        r"\b(who|whom)\b"),
    "train": Tool(("train", "trip"), ("start", "goal"),
        ("When is the next train from {start} to {goal}?", "I want to go from {start} to {goal} by train.",
         "Find a train to {goal} from {start}."),
        ("When is the next train?", "Find me a train."), ("From where to where?",
            "Where do you start, and where do you go?"), "trains",
        ("The next train to {goal} leaves at {hour}.", "Your train from {start} leaves at {hour}."),
        ("There is no train to {goal} today.", "Sorry, I found no train to {goal}."),
        r"\bwhere\b|which (city|town|place)"),
    "table": Tool(("table", "dinner"), ("place", "day"),
        ("Book a table in {place} for {day}.", "I want to eat out in {place} on {day}.",
            "Get us a table in {place} on {day}."),
        ("Book a table.", "I want to eat out."), ("In which town, and on which day?", "Where, and on which day?"),
            "table bookings",
        ("Your table in {place} is booked for {day}.", "I have booked a table for {day} in {place}."),
        ("There is no table left in {place} on {day}.", "Sorry, I could not book for {day}."),
        r"\bwhere\b|which (city|town|place|day)"),
}  # fmt: skip
TEXTS = (
    "dinner is ready", "I am late", "the train is late", "we need milk", "the party is on Friday", "the dog is fine",
    "I am at home",
    "it is raining", "the game is over", "I lost my key",
)  # fmt: skip
SKIES = ("rain", "snow", "sun", "wind", "fog", "clouds")
CHATS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("Thank you!", ("You are welcome.", "My pleasure."), r"welcome|pleasure|glad|happy|any time|no problem"),
    ("Hello!", ("Hello! How can I help?", "Hi there!"), r"hello|\bhi\b|good (day|morning|evening)|help"),
    ("Good night!", ("Good night!", "Sleep well!"), r"good night|sleep|dreams"),
    ("How are you?", ("I am fine, thank you.", "Very well, and you?"), r"fine|well|good|great"),
    ("That was great.", ("I am glad to hear that.", "That is good to hear."), r"glad|good|happy|nice|great|pleas"),
)
CONTEXTS = {
    "weather": ("I live in {city}.", "How is the weather at home?"),
    "message": ("I am meeting {to} tonight.", "Send a message there that {text}."),
    "phone": ("My best friend is {person}.", "Call my best friend."),
    "shop": ("For the cake I need {count} {item}.", "Please buy them."),
    "train": ("I am in {start} now.", "When is the next train to {goal}?"),
    "table": ("I will be in {place} on {day}.", "Book a table for me then."),
    "timer": ("The eggs need {minutes} minutes.", "Set a timer for them."),
}
REPLIES = ("I see. What can I do for you?", "Good to know.", "Okay. How can I help?")
SYSTEMS = ("You can use tools.", "Use a tool where it helps.", "Call a tool only when you need one.")


def arguments_for(kind: str, rng: Random, split: Split) -> dict[str, Any]:
    if kind == "weather":
        return {"city": words.place(rng, split)}
    if kind == "timer":
        return {"minutes": rng.randrange(2, 60)}
    if kind == "message":
        return {"to": words.person(rng, split), "text": rng.choice(TEXTS)}
    if kind == "shop":
        return {"item": words.foods(rng, split, 1)[0], "count": rng.randrange(2, 30)}
    if kind == "phone":
        return {"person": words.person(rng, split)}
    if kind == "train":
        return {"start": words.place(rng, split), "goal": words.place(rng, split)}
    return {"place": words.place(rng, split), "day": rng.choice(words.DAYS)}


def _result_for(kind: str, rng: Random) -> dict[str, Any]:
    if kind == "weather":
        return {"sky": rng.choice(SKIES), "degrees": rng.randrange(1, 35)}
    if TOOLS[kind].failures and rng.random() < 0.35:
        return {"ok": False}
    return {"hour": f"{rng.randrange(6, 23)}:{rng.choice((10, 20, 30, 40, 50))}"} if kind == "train" else {"ok": True}


def definition(name: str, kind: str) -> dict[str, Any]:
    """A tool as transformers' chat templates take it."""
    kinds = {"minutes": "integer", "count": "integer"}
    properties = {key: {"type": kinds.get(key, "string")} for key in TOOLS[kind].parameters}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": TOOLS[kind].subject, "parameters": parameters},
    }


def render_call(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def sample(rng: Random, split: Split) -> Conversation:
    kind = rng.choice(list(TOOLS))
    case = rng.choice(("call",) * 9 + ("result",) * 4 + ("chat",) * 3 + ("no tool",) * 2 + ("ask",) * 2)
    tool, arguments = TOOLS[kind], arguments_for(kind, rng, split)
    others = rng.sample([other for other in TOOLS if other != kind], rng.choice((1, 2, 2)))
    offered = others if case == "no tool" else [*others[:-1], kind] if len(others) > 1 else [*others, kind]
    rng.shuffle(offered)
    names = {other: rng.choice(TOOLS[other].names) for other in offered}
    task: dict[str, Any] = {"case": case, "kind": kind, "names": names, "arguments": arguments}
    messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.3 else []

    def say(role: str, content: str) -> None:
        messages.append({"role": role, "content": content})

    request = rng.choice(tool.requests).format(**arguments)
    if case == "ask":
        say("user", rng.choice(tool.vague))
    elif case == "chat":
        _chat(rng, split, task, say)
    elif case in ("call", "result") and rng.random() < (0.3 if case == "call" else 0.1):
        context, follow = CONTEXTS[kind]
        say("user", context.format(**arguments))
        if rng.random() < 0.6:
            say("assistant", rng.choice(REPLIES))
            say("user", follow.format(**arguments))
        else:
            messages[-1]["content"] += " " + follow.format(**arguments)
    else:
        say("user", request)
    if case == "result":
        task["result"] = _result_for(kind, rng)
        say("assistant", render_call(names[kind], arguments))
        say("tool", json.dumps(task["result"]))
    tools = [definition(names[other], other) for other in offered]
    return Conversation(messages, "tools", task, tools, split)


def _chat(rng: Random, split: Split, task: dict[str, Any], say: Any) -> None:
    """A turn that needs no tool: small talk, a fact, or thanks after a tool has done its work."""
    if rng.random() < 0.6:
        question, sentence, key = rng.choice(words.FACTS)
        task |= {"answers": [f"{sentence}."], "pattern": rf"\b{key}\b", "key": key}
        say("user", question)
        return
    kind, arguments = task["kind"], task["arguments"]
    question, answers, pattern = rng.choice(CHATS)
    if question == "That was great." or rng.random() < 0.4:
        result = _result_for(kind, rng)
        say("user", rng.choice(TOOLS[kind].requests).format(**arguments))
        say("assistant", render_call(task["names"][kind], arguments))
        say("tool", json.dumps(result))
        say("assistant", _tell(kind, arguments, result, rng))
    task |= {"answers": list(answers), "pattern": pattern}
    say("user", question)


# Writing


def _tell(kind: str, arguments: dict[str, Any], result: dict[str, Any], rng: Random) -> str:
    tool = TOOLS[kind]
    lines = tool.tellings if result.get("ok", True) else tool.failures
    return rng.choice(lines).format(**arguments, **result)


def _decline(task: dict[str, Any], rng: Random) -> str:
    subject = TOOLS[task["kind"]].subject
    return rng.choice((f"I have no tool for {subject}.", f"Sorry, I can't do that. I have no tool for {subject}.",
                       f"I can't help with {subject}, I have no tool for that."))  # fmt: skip


def good(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    case, kind = task["case"], task["kind"]
    if case == "call":
        return render_call(task["names"][kind], task["arguments"])
    if case == "result":
        return _tell(kind, task["arguments"], task["result"], rng)
    if case == "chat":
        return rng.choice(task["answers"])
    return _decline(task, rng) if case == "no tool" else rng.choice(TOOLS[kind].missing)


def _some_call(conversation: Conversation, rng: Random) -> str:
    """A call that nobody requested; its arguments are invented, as models do."""
    task = conversation.task
    kind = rng.choice(list(task["names"]))
    if task["case"] == "ask":
        kind = task["kind"]
    if kind == task["kind"] and task["case"] == "result":
        return render_call(task["names"][kind], task["arguments"])
    return render_call(task["names"][kind], arguments_for(kind, rng, conversation.split))


def _missing_tool(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    return render_call(TOOLS[task["kind"]].names[0], task["arguments"])


def _wrong_tool(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    other = rng.choice([name for kind, name in task["names"].items() if kind != task["kind"]])
    return render_call(other, task["arguments"])


def _wrong_argument(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    arguments = dict(task["arguments"])
    key = rng.choice(list(arguments))
    while arguments[key] == task["arguments"][key]:
        arguments[key] = arguments_for(task["kind"], rng, "train")[key]
    return render_call(task["names"][task["kind"]], arguments)


def _lost_argument(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    arguments = dict(task["arguments"])
    del arguments[rng.choice(list(arguments))]
    return render_call(task["names"][task["kind"]], arguments)


def _no_call(conversation: Conversation, rng: Random) -> str:
    """Talk instead of a call: a promise, or a result that nobody has looked up."""
    task = conversation.task
    if rng.random() < 0.5:
        return rng.choice(("I will do that for you.", "Okay, I will see to it.", "Sure, one moment please."))
    return _tell(task["kind"], task["arguments"], _result_for(task["kind"], rng), rng)


def _wrong_result(conversation: Conversation, rng: Random) -> str:
    task = conversation.task
    for _ in range(50):
        result = _result_for(task["kind"], rng)
        answer = _tell(task["kind"], task["arguments"], result, rng)
        if not _tells(task, answer):
            return answer
    return "Done."


def _call_and_talk(conversation: Conversation, rng: Random) -> str:
    return rng.choice(("Sure, I will do that. ", "Okay! ", "One moment please. ")) + good(conversation, rng)


def flaws(conversation: Conversation) -> dict[str, Flaw]:
    case = conversation.task["case"]
    if case == "call":
        return {
            "wrong tool": Flaw("tool", _wrong_tool, 1.5), "wrong argument": Flaw("arguments", _wrong_argument, 1.2),
            "lost argument": Flaw("arguments", _lost_argument, 0.8), "no call": Flaw("decision", _no_call, 2.0),
            "call and talk": Flaw("alone", _call_and_talk, 0.8),
        }  # fmt: skip
    if case == "result":
        return {
            "calls again": Flaw("decision", _some_call, 1.0), "wrong result": Flaw("answer", _wrong_result, 1.5),
            "vague": Flaw("answer", lambda c, rng: rng.choice(("Done.", "I have looked it up.",
            "The tool has answered.")), 1.0),
        }  # fmt: skip
    if case == "chat":
        vague = Flaw("answer", lambda c, rng: rng.choice(("I have no tool for that.", "I can't answer that.")), 1.0)
        return {"needless call": Flaw("decision", _some_call, 2.5), "no answer": vague}
    if case == "no tool":
        return {
            "missing tool": Flaw("decision", _missing_tool, 1.5), "wrong tool": Flaw("decision", _some_call, 1.0),
            "made up": Flaw("answer", _no_call, 1.5),
        }  # fmt: skip
    return {
        "invented argument": Flaw("decision", _some_call, 2.0), "no question": Flaw("answer", lambda c,
        rng: rng.choice((
            "I will do that for you.", "Okay, I will see to it.", "I have no tool for that.")), 1.0),
    }  # fmt: skip


# Judging


def parse_calls(response: str) -> tuple[list[dict[str, Any]], str]:
    """The calls in an answer, and the text around them. None counts when one of them doesn't parse."""
    calls = []
    for text in re.findall(r"<tool_call>(.*?)</tool_call>", response, re.DOTALL):
        try:
            call = json.loads(text)
        except ValueError:
            return [], response.strip()
        is_call = isinstance(call, dict) and isinstance(call.get("name"), str)
        if not is_call or not isinstance(call.get("arguments"), dict):
            return [], response.strip()
        calls.append(call)
    return calls, re.sub(r"<tool_call>.*?</tool_call>", "", response, flags=re.DOTALL).strip()


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        return False
    return str(given).strip().rstrip(".").lower() == str(wanted).lower()


def _tells(task: dict[str, Any], response: str) -> bool:
    """Whether an answer says what the tool's result says, and nothing against it."""
    kind, arguments, result = task["kind"], task["arguments"], task["result"]
    text = " " + " ".join(re.findall(r"[a-z']+|\d+(?::\d+)?", response.lower())) + " "
    failed = bool(re.search(r"\b(not|no|couldn't|can't|sorry|nobody|failed|didn't|never)\b", text))
    numbers = set(re.findall(r"\d+(?::\d+)?", text))
    if kind == "weather":
        rivals = [sky for sky in SKIES if sky != result["sky"] and f" {sky}" in text]
        return result["sky"].rstrip("s") in text and numbers == {str(result["degrees"])} and not rivals and not failed
    if failed != (not result.get("ok", True)):
        return False
    if kind == "train" and "hour" in result:
        return numbers == {result["hour"]} and (arguments["goal"].lower() in text or arguments["start"].lower() in text)
    about = {"timer": r"timer|minutes|alarm|ring", "message": arguments.get("to", ""), "shop": arguments.get("item",
        ""),
             "phone": arguments.get("person", ""), "train": "train", "table": "table|book"}[kind]  # fmt: skip
    if numbers - {str(value) for value in arguments.values()}:
        return False
    if kind == "table" and [day for day in words.DAYS if day.lower() in text and day != arguments["day"]]:
        return False
    done = r"will ring|\bset\b|\bsent\b|\bgot\b|bought|ordered|on the way|on the phone|called|booked|\bdone\b"
    return bool(re.search(about.lower(), text)) and (failed or bool(re.search(done, text)))


def assess(conversation: Conversation, response: str) -> Assessment:
    task = conversation.task
    calls, around = parse_calls(response)
    if task["case"] == "call":
        return _assess_call(task, calls, around)
    decided = not calls
    why = "it calls a tool, and should not"
    return Assessment([
        Part("decision", 0.4, float(decided), why),
        Part("answer", 0.5, float(decided and _answers(task, response)), {
            "result": "it does not say what the tool's result says", "chat": "it does not answer what was said",
            "no tool": "it does not say that the tool is missing", "ask": "it does not ask for what is missing",
        }[task["case"]]),
        Part("focus", 0.1, float(decided and not prose.strays(response, _about(task))),
            "sentences that have nothing to do with it"),
    ], enough=14)  # fmt: skip


def _about(task: dict[str, Any]) -> str:
    """A pattern of what the answer's sentences may speak of."""
    if task["case"] == "result":
        values = [*task["arguments"].values(), *task["result"].values(), TOOLS[task["kind"]].subject.removesuffix("s")]
        return "|".join(rf"\b{re.escape(str(value).lower())}" for value in values)
    return {"chat": task.get("pattern", ""), "no tool": r"tool|can't|cannot|not able", "ask": r"\?"}[task["case"]]


def _answers(task: dict[str, Any], response: str) -> bool:
    text = response.lower()
    if "{" in text:  # the tool's result as it came is no answer
        return False
    if task["case"] == "result":
        return _tells(task, response)
    if task["case"] == "chat":
        if "key" in task:
            found = prose.tokens(text)
            rivals = {key for _, _, key in words.FACTS} - {task["key"]} - set(prose.tokens(task["answers"][0]))
            return task["key"] in found and not rivals.intersection(found) and "not" not in found
        return bool(re.search(task["pattern"], text)) and not re.search(r"\bno tool\b|can't", text)
    if task["case"] == "no tool":
        lack = r"\b(no|not have a|don't have a|without a|lack a) (\w+ )?tool|\bno way to\b|(can't|cannot|not able to)"
        lacking = re.search(lack, text)
        return bool(lacking) and not _claims(text) and not re.search(r"\b(sure|of course|yes|okay)\b", text)
    return "?" in response and bool(re.search(TOOLS[task["kind"]].ask_pattern, text)) and not _claims(text)


def _claims(text: str) -> bool:
    """Whether an answer reports a result."""
    pattern = (
        r"\d|\bi have (set|sent|bought|called|booked)|on the way|is booked|will ring|on the phone now|degrees"
        r"|i will (do|see)"
    )
    return bool(re.search(pattern, text))


def _assess_call(task: dict[str, Any], calls: list[dict[str, Any]], around: str) -> Assessment:
    if not calls:
        return Assessment([
            Part("decision", 0.3, 0.0, "it does not call a tool"), Part("tool", 0.25, 0.0, "no tool"),
            Part("arguments", 0.35, 0.0, "no arguments"), Part("alone", 0.1, 0.0, "no call"),
        ], enough=20)  # fmt: skip
    call = calls[0]
    given, wanted = call["arguments"], task["arguments"]
    right = sum(key in given and _same(given[key], value) for key, value in wanted.items())
    name = task["names"][task["kind"]]
    score = right / len(set(given) | set(wanted)) if call["name"] == name else 0.0
    return Assessment([
        Part("decision", 0.3, 1.0, ""),
        Part("tool", 0.25, float(call["name"] == name), f"the tool should be {name}"),
        Part("arguments", 0.35, score, "the arguments are not those of the conversation"),
        Part("alone", 0.1, float(not around and len(calls) == 1 and set(call) == {"name", "arguments"}),
            "there is something besides the call"),
    ], enough=len(prose.tokens(render_call(name, wanted))) + 2)  # fmt: skip


SPEC = JobSpec(sample, good, flaws, assess)
