"""Two models answer the same prompts; someone chooses without knowing which is which.

The answers are sampled in a thread and become the questions of a book of labels; from there on it is the labeller's
panel. Sources are named in the results only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets

from dpo_lab.workbench.labels.book import LabelBook
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.background import HasJob, Job
from dpo_lab.workbench.widgets.labeller import Labeller
from dpo_lab.workbench.widgets.layout import Panel, attempt, button, row, tip
from dpo_lab.workbench.widgets.sources import PolicySource, named, policy_of

_AT_ONCE = 16  # prompts between two looks at the stop button


class Sampled(NamedTuple):
    """How far sampling is."""

    done: int
    total: int
    rows: list[dict[str, Any]] | None = None
    """The rows to label, once all answers are there."""
    empty: dict[str, int] | None = None
    """How often each policy said nothing at all: an empty answer is no row of preference data, so it is no question."""


def sample_rows(
    policies: Mapping[str, PolicySource], prompts: Sequence[Mapping[str, Any]], *, seed: int = 0, temperature: float =
    1.0, max_new_tokens: int = 128, device: str = "auto", stop: Callable[[], bool] = lambda: False,
) -> Iterator[Sampled]:  # fmt: skip
    """Rows with one answer of each of two policies to every prompt, as a stream that reports how far it is.

    policies: two, by the name that stands in the results. prompts: rows with a prompt, as `load_preferences` gives
    them; their own answers, and the columns about them, are left behind. Each policy draws with random numbers of its
    own from `seed`, since two equal models would else give equal answers. When `stop()` is true it ends without rows.
    """
    if len(policies) != 2:
        raise ValueError(f"an arena compares two models, got {len(policies)}: {', '.join(policies) or 'none'}")
    if not len(prompts):
        raise ValueError("an arena needs at least one prompt, got none; give rows that have one")
    rows, names = [_question_row(row) for row in prompts], list(policies)

    def stream() -> Iterator[Sampled]:
        from dpo_lab.sampling import generate

        total, answers = 2 * len(rows), []
        yield Sampled(0, total)
        for place, source in enumerate(policies.values()):
            model, tokenizer = policy_of(source, device=device)
            texts: list[Any] = []
            for begin in range(0, len(rows), _AT_ONCE):
                if stop():
                    return
                part = rows[begin : begin + _AT_ONCE]
                # A seed for each part and policy; the same part of the other policy must draw otherwise.
                texts += generate(model, tokenizer, part, temperature=temperature, max_new_tokens=max_new_tokens,
                                  seed=(seed * 2 + place) * 1_000_003 + begin)  # fmt: skip
                yield Sampled(place * len(rows) + len(texts), total)
            answers.append(texts)
        questions = [row | {"answers": [_answer(row, text) for text in pair], "sources": names}
                     for row, *pair in zip(rows, *answers, strict=True) if all(pair)]  # fmt: skip
        empty = {name: texts.count("") for name, texts in zip(names, answers, strict=True)}
        yield Sampled(total, total, questions, empty)

    return stream()


class Arena(HasJob, Panel):
    """Two models, the same prompts, a blind choice; the last value of a cell shows it.

        Arena({"before": "embedded", "after": "runs/mine"}, "embedded", book="before_after.book.jsonl", who="ann")

    policies: two sources as `policy_of` takes them, by name or as a list. prompts: rows, or a source of rows; of these
        `num_prompts` are drawn by `seed`. "Sample answers" begins; `wait()` returns when the answers are there. Where
        the book is there already, the arena goes on with its answers and samples none.
    """

    def __init__(
        self, policies: Mapping[str, PolicySource] | Sequence[PolicySource], prompts: Any = "embedded", *, book: str |
        os.PathLike[str], who: str | None = None, split: str | None = None, num_prompts: int = 20, seed: int = 0,
        temperature: float = 1.0, max_new_tokens: int = 128, device: str = "auto", pause: float = 0.25,
    ) -> None:  # fmt: skip
        self.policies, self.prompts, self.split = named(policies), prompts, split
        if len(self.policies) != 2:
            raise ValueError(f"an arena compares two models, got {len(self.policies)}: {', '.join(self.policies)}")
        self.path, self.who, self.labeller = Path(book), who, None
        self._sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "device": device}
        self._pause, self._lock = pause, threading.RLock()
        self._build(num_prompts, seed)
        super().__init__([self.settings, self.place])
        if self.path.exists():
            self._show(LabelBook.open(self.path, who=who))

    def start(self) -> Job:
        """Sample the answers in a thread."""
        with self._lock:
            if self.labeller is not None:
                raise ValueError(
                    f"the answers are there already, in {self.path}; another comparison needs another book"
                )
            if self.running:
                raise ValueError("the answers are being sampled; wait for them, or stop")
            self.go.disabled, self.halt.disabled = True, False
            self._say("Loading the models …")
            self.job = Job(self._stream, self._on_event, on_end=self._on_end, name="sampling")
            return self.job

    @property
    def book(self) -> LabelBook:
        """The book of labels, once the answers are there."""
        return self._panel().book

    def choose(self, choice: str) -> None:
        """As the panel's buttons do: "left", "right", "tie" or "skip"."""
        self._panel().choose(choice)

    def _panel(self) -> Labeller:
        if self.labeller is None:
            raise ValueError(
                "there are no answers to choose from yet: press Sample answers, or call start() and wait()"
            )
        return self.labeller

    def _build(self, num_prompts: int, seed: int) -> None:
        wide = ipywidgets.Layout(width="16em")
        self.count = ipywidgets.BoundedIntText(value=num_prompts, min=1, max=10_000, description="prompts", layout=wide,
                                               **tip("how many prompts both models answer"))  # fmt: skip
        self.seed = ipywidgets.IntText(value=seed, description="seed", layout=wide,
                                       **tip("draws the prompts, the answers and their sides"))  # fmt: skip
        self.go = button("Sample answers", "both models answer every prompt; then labelling begins",
                         lambda: attempt(self.start, self.message), button_style="primary")  # fmt: skip
        self.halt = button("Stop", "end the sampling", self.stop, disabled=True)
        self.bar = ipywidgets.IntProgress(max=1, description="answers", layout=ipywidgets.Layout(width="auto"))
        self.message = ipywidgets.HTML(markup.line(f"{' and '.join(self.policies)} will answer the same prompts."))
        self.settings = ipywidgets.VBox([row(self.count, self.seed, self.go, self.halt), self.bar, self.message])
        self.place = ipywidgets.VBox()  # where the labeller's panel appears

    def _stream(self, stop: threading.Event) -> Iterator[Sampled]:
        rows = self.prompts
        if isinstance(rows, str | os.PathLike):
            from dpo_lab.preferences.reading import load_preferences

            split = self.split or ("test" if str(rows) == "embedded" else None)
            rows = load_preferences(rows, split)
        from random import Random

        wanted = min(self.count.value, len(rows))
        drawn = sorted(Random(self.seed.value).sample(range(len(rows)), wanted))
        return sample_rows(self.policies, [rows[i] for i in drawn], seed=self.seed.value, stop=stop.is_set,
                           **self._sampling)  # fmt: skip

    def _on_event(self, event: Sampled) -> None:
        self.bar.max, self.bar.value = event.total, event.done
        self._say(f"{event.done} of {event.total} answers")
        if event.rows is not None:
            silent = [f"{name} {count}" for name, count in (event.empty or {}).items() if count]
            if not event.rows:
                raise ValueError(f"no prompt got two answers; empty ones: {', '.join(silent)}; look at the models")
            note = f" Empty answers, not asked: {', '.join(silent)}." if silent else ""
            self._show(LabelBook.open(self.path, event.rows, who=self.who, seed=self.seed.value), note)

    def _on_end(self, error: BaseException | None) -> None:
        self.halt.disabled, self.go.disabled = True, self.labeller is not None
        if error is not None:
            self._say(str(error))
        elif self.labeller is None:
            self._say("Stopped. Sample answers begins anew.")

    def _show(self, book: LabelBook, note: str = "") -> None:
        names = {name for question in book.questions for name in question.sources}
        if names != set(self.policies):
            raise ValueError(f"{self.path} compares {' and '.join(sorted(names))}, got {' and '.join(self.policies)}; "
                             "give the same names to go on with it, or another book")  # fmt: skip
        self.go.disabled = self.count.disabled = self.seed.disabled = True
        self.bar.max = self.bar.value = max(1, 2 * len(book.questions))
        count = len(book.questions)
        self._say(f"Both have answered {count} prompts, and which is which stays hidden.{note}")
        self.labeller = Labeller(book=book, pause=self._pause)
        self.place.children = (self.labeller,)

    def _say(self, words: str) -> None:
        self.message.value = markup.line(words)

    def __repr__(self) -> str:
        where = self.labeller.book.progress if self.labeller else "no answers yet"
        return f"Arena({' against '.join(self.policies)}: {where})"


def _question_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The question to both models, without the answers that the row has and the columns about them."""
    return {
        name: value
        for name, value in row.items()
        if value is not None and name != "weight" and not any(side in name for side in ("chosen", "rejected"))
    }


def _answer(row: Mapping[str, Any], text: str) -> str | list[dict[str, str]]:
    """An answer in the shape of its prompt."""
    is_chat = isinstance(row["prompt"], list)
    return [{"role": "assistant", "content": text}] if is_chat else text
