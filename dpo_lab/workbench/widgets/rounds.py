"""Rounds as they come: reward, KL, length, the share of mixed prompts, and a prompt's answers over the rounds.

Layout and wiring: what runs is `train_rounds`, and `draw_rounds` draws the rows of its rounds without a kernel too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets

from dpo_lab.loop import Finished, Step
from dpo_lab.preferences.chat import prompt_text
from dpo_lab.sampling import generate
from dpo_lab.workbench.plots import style
from dpo_lab.workbench.plots.curves import PANELS, describe_panel, plot_panel
from dpo_lab.workbench.rounds.config import RoundsConfig
from dpo_lab.workbench.rounds.training import Round, prompt_row, train_rounds
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.background import HasJob, Job
from dpo_lab.workbench.widgets.layout import Panel, button, drawing, picture_box, room, row, show_picture, texts

WATCHED = {"judged_reward": "score per answer", "kl": "nats per answer", "answer_length": "tokens", "mixed": "share"}
"""What is drawn of every round, by the names of `PANELS`, and its unit."""


def draw_rounds(rows: Sequence[Mapping[str, Any]]) -> style.Picture:
    """Rows of rounds, {"step": the round's number, metric: value, …}, as four small panels."""
    figure = style.new_figure(9.6, 2.3)
    for name, ax in zip(WATCHED, style.grid_of(figure, len(WATCHED), len(WATCHED)), strict=True):
        plot_panel(rows, name, ax=ax).set_xlabel("round", **style.text(9))
        ax.set_ylabel(WATCHED[name], **style.text(9))
        ax.set_title(PANELS[name].title, loc="left", **style.text(9))
        if legend := ax.get_legend():  # one curve each, which the title names
            legend.remove()
    return figure


class RoundsPanel(HasJob, Panel):
    """Start, Stop, and the rounds so far; the last value of a cell shows it.

        RoundsPanel(model, tokenizer, prompts, judge, RoundsConfig(rounds=4, prompts=32))

    The arguments, and `options`, are those of `train_rounds`, which trains `model` in place, once. The first `watched`
        prompts are answered greedily when a round begins and at the end. `rows` has the rounds' metrics, `answers` the
        answers, a list for each round.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompts: Sequence[Any], judge: Any, config: RoundsConfig | None = None, *,
        watched: int = 3, **options: Any,
    ) -> None:  # fmt: skip
        self.config = config or RoundsConfig()
        self._arguments, self._options = (model, tokenizer, prompts, judge, self.config), options
        self.watched = [prompt_row(one) for one in list(prompts)[:watched]]
        self.rows: list[dict[str, Any]] = []
        self.answers: list[list[str]] = []
        self.start_button = button("Start", "Sample, judge, pair, learn", self.start, button_style="primary")
        self.stop_button = button("Stop", "End after the round in hand", self.stop, disabled=True)
        self.bar = ipywidgets.FloatProgress(min=0, max=1, description="rounds", **room("24em", "5em"))
        self.prompt = ipywidgets.Dropdown(options=markup.numbered([prompt_text(one) for one in self.watched]),
                                          description="prompt", **room("46em", "5em"))  # fmt: skip
        self.words, self.in_words, self.table = texts(3)
        self.image = picture_box()
        self.prompt.observe(lambda _: self._show_answers(), names="value")
        self._say(f"{self.config.rounds} rounds of {self.config.prompts} prompts; Start trains the model itself.")
        self._show()
        super().__init__([row(self.start_button, self.stop_button, self.bar), self.words, self.image, self.in_words,
                          self.prompt, self.table])  # fmt: skip

    def start(self) -> None:
        """Begin, in a thread. RuntimeError where this panel has begun already, for its model is another one then."""
        if self.job is not None:
            raise RuntimeError("these rounds have begun already; make another panel, with a fresh model")
        self.start_button.disabled, self.stop_button.disabled = True, False
        say = lambda what, done, total: self._say(f"Round {done} of {total}: {what}.")
        stream = lambda stop: train_rounds(*self._arguments, stop=stop.is_set, progress=say, **self._options)
        self.job = Job(stream, self._on_event, on_end=self._on_end, name="rounds")

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Step):
            self.bar.value = event.step / event.num_steps
        elif isinstance(event, Round | Finished):
            if isinstance(event, Round):
                self.rows.append({"kind": "round", "step": event.round} | event.metrics)
            self.answers.append([str(text) for text in generate(
                *self._arguments[:2], self.watched, temperature=0, max_new_tokens=self.config.max_new_tokens,
            )])  # fmt: skip
            self._show()

    def _show(self) -> None:
        with drawing:
            show_picture(self.image, draw_rounds(self.rows))
        self.in_words.value = markup.notes([describe_panel(self.rows, name) for name in WATCHED], "The rounds in words")
        self._show_answers()

    def _show_answers(self) -> None:
        lines = [{"round": i if i <= len(self.rows) else "the end", "answer": texts[(self.prompt.value or 1) - 1]}
                 for i, texts in enumerate(self.answers, start=1)]  # fmt: skip
        self.table.value = markup.table("Its answer as each round begins", lines) if lines else ""

    def _on_end(self, error: BaseException | None) -> None:
        self.stop_button.disabled = True
        words = f"{len(self.rows)} of {self.config.by_sampling().rounds} rounds are done."
        self._say(words if error is None else f"{type(error).__name__}: {error}", is_error=error is not None)

    def _say(self, text: str, *, is_error: bool = False) -> None:
        self.words.value = markup.line(text, is_error=is_error)

    def __repr__(self) -> str:
        return f"RoundsPanel({len(self.rows)} of {self.config.by_sampling().rounds} rounds)"
