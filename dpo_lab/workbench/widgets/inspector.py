"""A panel that walks through preference pairs and shows what every token of both answers is worth to a policy.

The plain functions come first: `inspect_pairs` measures, `ordered` sorts and filters, `describe_pair` says it in words,
`token_table` gives the numbers behind the colours. The panel only wires them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np

from dpo_lab.preferences.chat import prompt_text
from dpo_lab.workbench.plots.style import Picture, to_png
from dpo_lab.workbench.plots.token_rewards import token_heatmap, token_html
from dpo_lab.workbench.plots.token_text import visible
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.background import Job
from dpo_lab.workbench.widgets.layout import DRAWN, Panel, button, room, row, texts, tip
from dpo_lab.workbench.widgets.sources import PolicySource, named, policy_of, run_of, with_checkpoints

Table = Mapping[str, np.ndarray]

# What a menu says → the key by which pairs stand, smallest first; equal ones stay in the order of the data.
ORDERS = {
    "order of the data": lambda table: np.zeros(len(table["row"])),
    "margin, lowest first": lambda table: table["margin"],
    "margin, highest first": lambda table: -table["margin"],
    "margin, nearest to 0 first": lambda table: np.abs(table["margin"]),
    "error, worst first": lambda table: np.minimum(table["margin"], 0),
    "length, longest first": lambda table: -(table["length_chosen"] + table["length_rejected"]),
    "length, chosen longer first": lambda table: table["length_rejected"] - table["length_chosen"],
}
ALL_JOBS = "all jobs"
_LONGEST = 400  # tokens of an answer in the table of numbers


def inspect_pairs(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], *, reference: Any, beta: float | None = None,
    max_length: int = 1024,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The table of `evaluate` for the loss "dpo", one entry per usable pair, and `job` where the rows have one."""
    from dpo_lab.workbench.evaluation.pairs import evaluate

    table = dict(evaluate(model, tokenizer, rows, reference=reference, beta=beta, max_length=max_length).table)
    if any(row.get("job") for row in rows):
        table["job"] = np.array([str(rows[int(row)].get("job") or "none") for row in table["row"]])
    return table


def ordered(table: Table, by: str = "order of the data", job: str = ALL_JOBS) -> list[int]:
    """Places in the table: those of one job, sorted. "error" begins with the pairs that are ranked most wrongly."""
    if by not in ORDERS:
        raise ValueError(f"pairs can't be sorted by {by!r}; choose one of: {'; '.join(ORDERS)}")
    order = np.argsort(ORDERS[by](table), kind="stable")
    if job != ALL_JOBS:
        if "job" not in table or job not in table["job"]:
            known = sorted(set(table["job"].tolist())) if "job" in table else "no such column"
            raise ValueError(f"no pair is of the job {job!r}; there are {known}")
        order = order[table["job"][order] == job]
    return order.tolist()


def describe_pair(table: Table, place: int, row: Mapping[str, Any] | None = None) -> str:
    """One pair's numbers in words: margin, rewards, lengths, and the true rewards where the row has them."""
    margin = float(table["margin"][place])
    verdict = "ranked right" if margin > 0 else "ranked wrong" if margin < 0 else "a tie"
    words = (
        f"Margin {margin:+.3f}, {verdict}; implicit rewards {table['reward_chosen'][place]:+.3f} (chosen) and "
        f"{table['reward_rejected'][place]:+.3f} (rejected); log π {table['logp_chosen'][place]:.2f} and "
        f"{table['logp_rejected'][place]:.2f} nats over {int(table['length_chosen'][place])} and "
        f"{int(table['length_rejected'][place])} tokens"
    )
    true = [(row or {}).get(f"reward_{side}") for side in ("chosen", "rejected")]
    if all(isinstance(value, int | float) for value in true):
        words += f"; true rewards {true[0]:+.2f} and {true[1]:+.2f}"
    return f"{words}."


def token_table(answer: Any, side: str) -> str:
    """An HTML table of one answer's tokens with log π, log π_ref and the reward, folded away."""
    numbers = np.stack([answer.logps, answer.reference_logps, answer.rewards], axis=1)
    names = [visible(token) for token in answer.tokens[:_LONGEST]]
    if (more := len(answer.tokens) - _LONGEST) > 0:
        names.append(f"… {more} more, together")
        numbers = np.vstack([numbers[:_LONGEST], numbers[_LONGEST:].sum(0)])
    rows = [
        {"token": name, "log π": f"{logp:.4f}", "log π_ref": f"{frozen:.4f}", "reward": f"{reward:+.4f}"}
        for name, (logp, frozen, reward) in zip(names, numbers, strict=True)
    ]
    table = markup.table(f"{side}, token by token", rows)
    return f"<details><summary>numbers of the {markup.text(side)} answer</summary>{table}</details>"


class Inspector(Panel):
    """Pairs under one or several policies, sorted, filtered, token by token; the last value of a cell shows it.

        Inspector({"after": "runs/mine"}, "embedded", reference="embedded")

    models: sources as `policy_of` takes them, one, a list, or by name; of a run its checkpoints are in the menu too.
    data: rows, or a source of rows, of which at most `limit` are drawn by `seed`; of the embedded ones the test split.
    reference: the frozen model; None takes the one from which the first run began. beta: None takes the default of the
        loss "dpo". The measuring runs in a thread: `wait()` returns when its numbers stand.
    """

    def __init__(
        self, models: Any, data: Any = "embedded", *, reference: PolicySource | None = None, split: str | None = None,
        limit: int = 100, seed: int = 0, beta: float | None = None, max_length: int = 1024, device: str = "auto",
    ) -> None:  # fmt: skip
        self.models = with_checkpoints(named(models))
        self._reference_source = _reference_of(self.models) if reference is None else reference
        self._reference: Any = None
        self._options = {"beta": beta, "max_length": max_length}
        self._device, self._lock = device, threading.RLock()
        self._loaded: tuple[str, Any, Any] | None = None
        self.rows = _rows(data, split, limit, seed)
        self.table: dict[str, np.ndarray] = {}
        self.tokens: Any = None
        """The `PairTokens` of the pair in view."""
        self._order: list[int] = []
        self._build()
        self.job = self._measure()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the chosen model's numbers stand. What went wrong is raised."""
        while True:
            job = self.job
            job.wait(timeout)
            if job is self.job:
                return

    @property
    def row(self) -> Mapping[str, Any]:
        """The row in view."""
        return self.rows[int(self.table["row"][self._order[self.place.value - 1]])]

    def figure(self) -> Picture:
        """The heat map of the shown pair as a picture: the panel's static twin."""
        if self.tokens is None:
            raise ValueError("no pair is shown yet; call wait() first")
        return token_heatmap(self.tokens)

    def picture(self) -> bytes | None:
        return None if self.tokens is None else to_png(self.figure())

    def _build(self) -> None:
        wide = room("24em")
        self.model = ipywidgets.Dropdown(options=list(self.models), description="model",
                                         **tip("the policy, or its checkpoint, to look at"), **wide)  # fmt: skip
        self.by = ipywidgets.Dropdown(options=list(ORDERS), description="sorted by",
                                      **tip("error: those ranked most wrongly first"), **wide)  # fmt: skip
        jobs = sorted({str(row["job"]) for row in self.rows if row.get("job")})
        self.job_filter = ipywidgets.Dropdown(options=[ALL_JOBS, *jobs], description="job",
                                              **tip("only pairs of this job"), **wide)  # fmt: skip
        if not jobs:
            self.job_filter.layout.display = "none"
        self.place = ipywidgets.BoundedIntText(value=1, min=1, max=1, description="pair",
                                               **tip("which pair of the list; the arrow keys walk through it"),
                                               layout=ipywidgets.Layout(width="12em"))  # fmt: skip
        self.previous = button("Previous", "the pair before this one", lambda: self._walk(-1))
        self.following = button("Next", "the pair after this one", lambda: self._walk(+1))
        self.of, self.message, self.words, self.prompt, self.heat = texts(5)
        for box in (self.prompt, self.heat):
            box.layout = ipywidgets.Layout(width="auto")
        self.model.observe(self._on_model, names="value")
        for control in (self.by, self.job_filter):
            control.observe(lambda _: self._sort(), names="value")
        self.place.observe(lambda _: self._show(), names="value")
        super().__init__([
            row(self.model, self.by, self.job_filter), row(self.previous, self.place, self.of, self.following),
            self.message, self.words, self.prompt, self.heat,
        ])  # fmt: skip

    # ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────

    def _measure(self) -> Job:
        self.message.value = markup.line(f"Measuring {self.model.value} on {len(self.rows)} pairs …")
        return Job(lambda stop: self._stream(str(self.model.value), stop), on_end=self._on_end, name="inspection")

    def _stream(self, name: str, stop: threading.Event) -> Iterator[None]:
        if self._reference is None:
            self._reference = policy_of(self._reference_source, device=self._device)
        yield
        model, tokenizer = policy_of(self.models[name], device=self._device)
        if self._reference[1].get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"the reference has another tokenizer than {name}, so their log-probs are of other "
                             "tokens; give the model that training began from")  # fmt: skip
        yield
        if stop.is_set():
            return
        table = inspect_pairs(model, tokenizer, self.rows, reference=self._reference[0], **self._options)
        with self._lock:
            self.table, self._loaded = table, (name, model, tokenizer)
        self._sort()

    def _on_end(self, error: BaseException | None) -> None:
        if error is not None:
            self.message.value = markup.line(str(error))
        elif self._loaded is not None and self._loaded[0] != self.model.value:  # chosen while another was measured
            self.job = self._measure()

    def _on_model(self, _: object) -> None:
        if not self.job.running:
            self.job = self._measure()

    # ── showing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _sort(self) -> None:
        with self._lock:
            if not self.table:
                return
            self._order = ordered(self.table, str(self.by.value), str(self.job_filter.value))
            wrong = int((self.table["margin"][self._order] < 0).sum())
            left_out = len(self.rows) - len(self.table["row"])
            words = f"{wrong} of {len(self._order)} pairs are ranked wrong by {self._loaded and self._loaded[0]}."
            if left_out:
                words += f" {left_out} pairs with the same tokens twice are left out."
            self.message.value = markup.line(words)
            self.of.value = f"of {len(self._order)}"
            self.place.max = len(self._order)
            if self.place.value != 1:
                self.place.value = 1  # which shows it
            else:
                self._show()

    def _walk(self, step: int) -> None:
        self.place.value = min(max(self.place.value + step, 1), self.place.max)
        getattr(self.place, "focus", int)()  # so that the arrow keys go on from here

    def _show(self) -> None:
        from dpo_lab.workbench.evaluation.per_token import token_rewards

        with self._lock:
            if not self._order or self._loaded is None:
                return
            _, model, tokenizer = self._loaded
            place = self._order[self.place.value - 1]
            (self.tokens,) = token_rewards(model, tokenizer, [self.row], reference=self._reference[0], **self._options)
            self.words.value = markup.line(describe_pair(self.table, place, self.row))
            self.prompt.value = markup.text_box("Prompt", prompt_text(self.row))
            numbers = "".join(token_table(getattr(self.tokens, side), side) for side in ("chosen", "rejected"))
            heat = token_html(self.tokens, has_prompt=False)
            self.heat.value = f'<div class="{DRAWN}">{heat}</div>{numbers}'
            self.previous.disabled = self.place.value <= 1
            self.following.disabled = self.place.value >= self.place.max

    def __repr__(self) -> str:
        return f"Inspector({', '.join(self.models)}: {len(self.rows)} pairs)"


def _reference_of(models: Mapping[str, PolicySource]) -> PolicySource:
    for source in models.values():
        if (run := run_of(source)) is not None and isinstance(base := run.config.get("settings", {}).get("model"), str):
            return base
    raise ValueError("an implicit reward compares with a reference, and none was given; pass the model that training "
                     "began from, such as reference='embedded'")  # fmt: skip


def _rows(data: Any, split: str | None, limit: int, seed: int) -> list[dict[str, Any]]:
    from dpo_lab.preferences.reading import read_preferences

    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}; 100 pairs are the usual start")
    is_embedded = isinstance(data, str | os.PathLike) and str(data) == "embedded"
    return read_preferences(data, split or ("test" if is_embedded else None), limit=limit, seed=seed)[0]
