"""A panel for choosing the better of two answers, which saves every choice at once.

The answers' sources are hidden, their sides are random; buttons and a field of one letter do the same. All that is
saved and counted is the book's (`dpo_lab.workbench.labels`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets

from dpo_lab.workbench.labels.book import CHOICES, LabelBook
from dpo_lab.workbench.labels.results import export_labels, left_share, win_rates
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.layout import Panel, attempt, button, room, row, texts, tip

KEYS = {"a": "left", "b": "right", "t": "tie", "s": "skip", "u": "undo"}
_BUTTONS = {
    "left": ("Left is better (a)", "the answer on the left is the better one"),
    "right": ("Right is better (b)", "the answer on the right is the better one"),
    "tie": ("Tie (t)", "neither is better; counted, and exported only if you say so"),
    "skip": ("Skip (s)", "you can't judge this one; counted, and never exported"),
    "undo": ("Undo (u)", "take back the last choice and answer its question again; may be repeated"),
}


class Labeller(Panel):
    """Label rows one by one; the last value of a cell shows it.

        Labeller(rows, book="my_labels.book.jsonl", who="ann")

    rows: as `questions_of` takes them, or the name of a source that `load_preferences` reads; not needed to go on with
        a book. book: the file of the choices, or an open `LabelBook`. Where the file is there already, the
        panel goes on where it stopped. pause: a button or key that comes sooner than this many seconds after the one
        before is not taken, so that a held key or a double click labels nothing unseen.
    """

    def __init__(
        self, rows: Any = None, *, book: LabelBook | str | os.PathLike[str], who: str | None = None, seed: int = 0,
        pause: float = 0.25,
    ) -> None:  # fmt: skip
        if isinstance(rows, str | os.PathLike):
            from dpo_lab.preferences.reading import load_preferences

            rows = load_preferences(os.fspath(rows))
        self.book = book if isinstance(book, LabelBook) else LabelBook.open(book, rows, who=who, seed=seed)
        self._pause, self._last, self._shown_at = pause, -float("inf"), time.monotonic()
        self._lock = threading.RLock()
        self._build()
        self.refresh()

    # ── what buttons and keys do ─────────────────────────────────────────────────────────────────────────────────

    def choose(self, choice: str) -> None:
        """Save "left", "right", "tie" or "skip" for the question that is shown, and show the next one."""
        with self._lock:
            made = self.book.choose(choice, seconds=time.monotonic() - self._shown_at)
            self.refresh(f"Question {made.question + 1}: {choice}, saved.")

    def undo(self) -> None:
        """Take back the last choice; its question is shown again."""
        with self._lock:
            taken = self.book.undo()
            self.refresh(f"Question {taken.question + 1}: {taken.choice} taken back.")

    def press(self, key: str) -> None:
        """What the letter does: a left, b right, t tie, s skip, u undo."""
        if key.lower() not in KEYS:
            known = ", ".join(f"{letter} {what}" for letter, what in KEYS.items())
            raise ValueError(f"the letter {key!r} does nothing here; use {known}")
        self._do(KEYS[key.lower()])

    def show_results(self) -> None:
        """Name the sources: how often each won, with Wilson's interval, and whether the left side won too often."""
        self.results.value = results_html(self.book)

    def export(self, path: str | os.PathLike[str] | None = None, *, ties: str | None = None) -> str:
        """Write the preferences for `load_preferences`; returns what became of every question, in words."""
        path = self.path.value if path is None else os.fspath(path)
        report = export_labels(self.book, path, ties=ties or self.ties.value)  # pyright: ignore[reportArgumentType]
        return report.summary()

    def refresh(self, message: str = "") -> None:
        """Show the book as it stands."""
        with self._lock:
            number, count = self.book.next, len(self.book.questions)
            if number is None:
                words = f"All {count} questions have their choice. Undo goes back to the last one."
                self.prompt.value = markup.line(words)
                self.left.value = self.right.value = ""
            else:
                question, left = self.book.questions[number], self.book.left_of(number)
                self.prompt.value = markup.text_box(f"Question {number + 1} of {count}", question.prompt_text)
                self.left.value = markup.text_box("Left", question.answer_text(left))
                self.right.value = markup.text_box("Right", question.answer_text(1 - left))
            for name in CHOICES:
                self.buttons[name].disabled = number is None
            self.buttons["undo"].disabled = not self.book.choices
            self.bar.value = len(self.book.choices)
            left_out = len(self.book.left_out)
            note = f"; the same answer twice, not asked: {left_out}" if left_out else ""
            self.progress.value = markup.keyless(markup.line(f"{self.book.progress}, by {self.book.who}{note}"))
            self._say(message)
            self.results.value = ""  # revealed by its button, and never a stale count
            self._shown_at = time.monotonic()

    # ── wiring ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _build(self) -> None:
        wide = ipywidgets.Layout(width="auto")
        half = ipywidgets.Layout(flex="1 1 20em", min_width="16em", margin="0 4px 0 2px")
        self.bar = ipywidgets.IntProgress(max=len(self.book.questions), description="progress", layout=wide)
        self.progress, self.message, self.results = texts(3)
        self.prompt = ipywidgets.HTML(layout=wide)
        self.left, self.right = ipywidgets.HTML(layout=half), ipywidgets.HTML(layout=half)
        self.buttons = {
            name: button(label, what, lambda name=name: self._guarded(lambda: self._do(name)),
                         layout={"width": "11em" if "better" in label else "7em"})  # a small screen has room for `key`
            for name, (label, what) in _BUTTONS.items()
        }  # fmt: skip
        self.key = ipywidgets.Text(
            description="key", placeholder="a, b, t, s or u", continuous_update=True, **room("13em", "2.5em"),
            **tip("type one letter: a left, b right, t tie, s skip, u undo; the field empties itself"),
        )  # fmt: skip
        self.key.observe(self._on_key, names="value")
        self.reveal = button("Show results", "name the sources and count their wins; labelling can go on",
                             lambda: attempt(self.show_results, self.message), layout={"width": "11em"})  # fmt: skip
        name = self.book.path.name.removesuffix(".jsonl").removesuffix(".book")
        self.path = ipywidgets.Text(
            value=str(self.book.path.with_name(f"{name}.labels.jsonl")), description="export to",
            **tip("the JSONL file that load_preferences reads"), layout=ipywidgets.Layout(flex="1 1 20em"),
        )  # fmt: skip
        self.ties = ipywidgets.Dropdown(
            options=["leave out", "both ways"], description="ties",
            **tip("both ways writes a tie as two rows of half the weight"), layout=ipywidgets.Layout(width="14em"),
        )  # fmt: skip
        self.write = button("Export", "write the preferences as JSONL",
                            lambda: attempt(self._export, self.message), layout={"width": "8em"})  # fmt: skip
        super().__init__(
            [
                # Above the texts, whose length changes: a button stays under the mouse.
                self.bar, self.progress, row(*self.buttons.values(), self.key), self.message, self.prompt,
                ipywidgets.HBox([self.left, self.right], layout=ipywidgets.Layout(flex_flow="row wrap")),
                row(self.path, self.ties, self.write, self.reveal),
                self.results,
            ]
        )  # fmt: skip

    def _on_key(self, change: Mapping[str, Any]) -> None:
        typed = change["new"].strip()
        if not change["new"]:
            return
        self.key.value = ""
        if len(typed) == 1:
            self._guarded(lambda: self.press(typed))
        elif typed:  # a held key, or letters typed before the next question stood in the page
            self._last = time.monotonic()
            self._say(f"Not taken: {len(typed)} letters came at once. One for each question, please.")

    def _do(self, name: str) -> None:
        self.undo() if name == "undo" else self.choose(name)

    def _guarded(self, act: Callable[[], None]) -> None:
        with self._lock:
            if time.monotonic() - self._last < self._pause:
                self._say("Not taken: it came too soon after the one before. Once more, please.")
            else:
                attempt(act, self.message)
            self._last = time.monotonic()  # when it was done: writing may have taken a while
            getattr(self.key, "focus", int)()  # else the letters go to the notebook, where `a` inserts a cell

    def _say(self, words: str) -> None:
        self.message.value = markup.keyless(markup.line(words))

    def _export(self) -> None:
        summary = self.export()
        self._say(f"{summary}. Read it with load_preferences({str(Path(self.path.value))!r}).")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.book.path.name!r}, {self.book.who}: {self.book.progress})"


def results_html(book: LabelBook) -> str:
    """The sources by name with their win rates, and the share of left answers among those preferred."""
    rates, left = win_rates(book), left_share(book)
    rows = [
        {"source": one.source, "wins": one.wins, "losses": one.losses, "ties": one.ties,
         "win rate": _percent(one.rate.share),
         "95% interval (Wilson 1927)": f"{_percent(one.rate.low)} to {_percent(one.rate.high)}"}
        for one in rates
    ]  # fmt: skip
    counts = book.counts
    decided = rates[0].rate.n if len(rates) == 2 else len(book.choices) - counts["skip"]
    caption = f"{decided} question{'s' if decided != 1 else ''} decided"
    sides = (
        f"A tie counts as half a win. {counts['skip']} skipped, {counts['open']} open. The answer on the left was "
        f"preferred {_percent(left.share)} of the time ({_percent(left.low)} to {_percent(left.high)}); an unbiased "
        "labeller comes to about one half."
    )
    return markup.table(caption, rows) + markup.line(sides)


def _percent(share: float) -> str:
    return "–" if share != share else f"{share:.0%}"
