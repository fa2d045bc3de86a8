"""The labeller's panel and the arena: choices by button, key and call; nothing runs, nothing is lost, nothing told."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from html.parser import HTMLParser

import pytest

from dpo_lab.preferences import read_preferences
from dpo_lab.workbench.labels import LabelBook, win_rates
from tests.conftest import tiny_llama, tooltip_of
from tests.tiny import CHAT_TEMPLATE, saved_model, tiny_tokenizer

ipywidgets = pytest.importorskip("ipywidgets")

from dpo_lab.workbench.widgets import Arena, Labeller  # noqa: E402  after the skip
from dpo_lab.workbench.widgets.arena import sample_rows  # noqa: E402
from dpo_lab.workbench.widgets.labeller import KEYS, results_html  # noqa: E402
from dpo_lab.workbench.widgets.markup import table, text_box  # noqa: E402
from dpo_lab.workbench.widgets.sources import name_of, named, policy_of  # noqa: E402

NASTY = "<script>alert(1)</script> <img src=x onerror=alert(2)> $\\frac{a}{b}$ </pre><b>bold</b> &amp; \x00"
SECRETS = ("source-one", "source-two")


def rows(count=4):
    return [{"prompt": f"Question {i}?", "answers": [f" First {i}.", f" Second {i}."], "sources": SECRETS}
            for i in range(count)]  # fmt: skip


def panel_at(tmp_path, count=4, **settings):
    return Labeller(rows(count), book=tmp_path / "me.book.jsonl", who="me", **{"pause": 0.0} | settings)


def everything(widget) -> str:
    """All that a panel sends to the page, as one text."""
    found = [str(value) for name, value in widget.get_state().items() if not name.startswith("_")]
    return "\n".join(found + [everything(child) for child in getattr(widget, "children", ())])


class Page(HTMLParser):
    """What a browser would make of it: the tags, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_stays_text_whatever_it_holds():
    for html, nul in ((text_box(NASTY, NASTY), "␀"), (table(NASTY, [{NASTY: NASTY, "x": NASTY}]), "\ufffd")):
        page = Page(html)
        assert set(page.tags) <= {"div", "pre", "bdi", "table", "caption", "tr", "th", "td", "span"}
        assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
        assert (
            "<script>alert(1)</script> <img src=x onerror=alert(2)> $\\frac{a}{b}$ </pre><b>bold</b> &amp; " + nul
            in page.text
        )
        assert "mathjax_ignore" in html  # a formula isn't set
    assert Page(text_box("long", "x" * 10_000)).text.count("x") == 10_000


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_buttons_keys_and_calls_do_the_same(tmp_path):
    panel = panel_at(tmp_path, 8)
    panel.buttons["left"].click()
    panel.key.value = "b"
    panel.choose("tie")
    panel.key.value = "S"
    assert [choice.choice for choice in panel.book.choices] == ["left", "right", "tie", "skip"]
    panel.key.value = "u"
    panel.buttons["undo"].click()
    panel.undo()
    assert [choice.choice for choice in panel.book.choices] == ["left"]
    assert panel.key.value == ""
    assert "1 of 8 done" in panel.progress.value
    assert panel.bar.value == 1


def test_what_is_shown_on_the_left_is_what_left_chooses(tmp_path):
    panel = panel_at(tmp_path, 10)
    sides = set()
    while (number := panel.book.next) is not None:
        shown = Page(panel.left.value).text
        panel.buttons["left"].click()
        winner = panel.book.choice_at(number).winner
        assert panel.book.questions[number].answers[winner].strip() in shown
        assert Page(panel.prompt.value).text != shown
        sides.add(winner)
    assert sides == {0, 1}


def test_every_choice_is_on_the_disk_at_once_and_a_new_panel_goes_on(tmp_path):
    panel = panel_at(tmp_path)
    for number, key in enumerate("abt"):
        panel.key.value = key
        assert len(LabelBook.open(panel.book.path).choices) == number + 1
    again = Labeller(book=tmp_path / "me.book.jsonl", pause=0)
    assert "Question 4 of 4" in again.prompt.value
    assert "3 of 4 done (1 tie), by me" in again.progress.value


def test_several_letters_at_once_choose_nothing_and_unknown_ones_are_told(tmp_path):
    panel = panel_at(tmp_path)
    panel.key.value = "aa"  # a held key, as a slow page hands it on
    assert not panel.book.choices
    assert panel.key.value == ""
    assert "2 letters came at once" in panel.message.value
    panel.key.value = "b"
    panel.key.value = "x"
    assert "the letter &#x27;x&#x27; does nothing here; use a left, b right, t tie" in panel.message.value
    panel.key.value = " "
    assert len(panel.book.choices) == 1
    with pytest.raises(ValueError, match="does nothing here"):
        panel.press("ä")


def test_a_held_key_and_a_double_click_label_nothing_unseen(tmp_path):
    panel = panel_at(tmp_path, pause=60.0)
    for _ in range(5):
        panel.key.value = "a"
        panel.buttons["right"].click()
    assert [choice.choice for choice in panel.book.choices] == ["left"]
    assert "Not taken" in panel.message.value
    panel.choose("tie")  # a call is nobody's held key
    assert len(panel.book.choices) == 2


def test_the_end_and_what_cannot_be_done_stand_in_the_panel(tmp_path):
    panel = panel_at(tmp_path, 2)
    assert panel.buttons["undo"].disabled
    panel.key.value = "u"
    assert "there is nothing to undo" in panel.message.value
    panel.choose("left"), panel.choose("left")
    assert "All 2 questions have their choice" in panel.prompt.value
    assert [panel.buttons[name].disabled for name in ("left", "right", "tie", "skip", "undo")] == [True] * 4 + [False]
    panel.key.value = "a"
    assert "all 2 questions have their label" in panel.message.value
    panel.buttons["undo"].click()
    assert "Question 2 of 2" in panel.prompt.value
    assert not panel.buttons["left"].disabled


def test_a_second_window_is_told_and_takes_nothing(tmp_path):
    one, other = panel_at(tmp_path), Labeller(book=tmp_path / "me.book.jsonl", pause=0)
    one.choose("left")
    other.buttons["right"].click()
    assert "another window or program wrote to it" in other.message.value
    assert len(LabelBook.open(one.book.path).choices) == 1


def test_sources_are_told_in_the_results_only(tmp_path):
    panel = panel_at(tmp_path)
    for key in ("a", "b", "t"):
        panel.key.value = key
        assert not any(secret in everything(panel) for secret in SECRETS)
    panel.reveal.click()
    assert all(secret in panel.results.value for secret in SECRETS)
    assert "Wilson" in panel.results.value
    panel.key.value = "u"
    assert not any(secret in everything(panel) for secret in SECRETS)  # labelling goes on blind


def test_the_results_are_the_plain_functions_numbers(tmp_path):
    panel = panel_at(tmp_path, 40)
    for _ in range(30):
        number = panel.book.next
        panel.choose("left" if panel.book.left_of(number) == 0 else "right")
    first, second = win_rates(panel.book)
    assert (first.wins, second.wins) == (30, 0)
    page = Page(results_html(panel.book)).text
    assert "source-one3000100%89% to 100%" in page
    assert "source-two03000%0% to 11%" in page
    assert "30 questions decided" in page
    assert "10 open" in page


def test_the_export_button_writes_what_load_preferences_reads(tmp_path):
    panel = panel_at(tmp_path)
    panel.write.click()
    assert "no preference to export yet" in panel.message.value
    for key in ("a", "b", "t"):
        panel.key.value = key
    panel.write.click()
    assert panel.path.value == str(tmp_path / "me.labels.jsonl")
    assert "2 rows written, of me: 2 preferences; 1 tie left out" in panel.message.value
    found, _ = read_preferences(panel.path.value)
    winners = [panel.book.choice_at(i).winner for i in range(2)]
    assert [row["source_chosen"] for row in found] == [SECRETS[winner] for winner in winners]
    panel.ties.value = "both ways"
    panel.write.click()
    assert len(read_preferences(panel.path.value)[0]) == 4


def test_nasty_texts_are_labelled_as_text(tmp_path):
    given = [{"prompt": NASTY, "answers": [NASTY, "x" * 10_000], "sources": [NASTY, "b"]}]
    panel = Labeller([*given, {"prompt": "x", "answers": ["a", "a"]}], book=tmp_path / "nasty", who=NASTY, pause=0)
    assert "the same answer twice, not asked: 1" in panel.progress.value
    panel.choose("left")
    panel.show_results()
    panel.undo()
    for widget in (panel.prompt, panel.left, panel.right, panel.progress, panel.message):
        assert "script" not in Page(widget.value).tags
        assert "img" not in Page(widget.value).tags
    panel.choose("right")
    panel.show_results()
    assert not {"script", "img"} & set(Page(panel.results.value).tags)
    panel.export(tmp_path / "out.jsonl")
    ((row,), _) = read_preferences(str(tmp_path / "out.jsonl"))
    assert {row["chosen"], row["rejected"]} == {NASTY, "x" * 10_000}


def test_every_control_has_a_label_and_says_what_it_does(tmp_path):
    panel = panel_at(tmp_path)
    controls = [*panel.buttons.values(), panel.key, panel.path, panel.ties, panel.write, panel.reveal]
    assert all(control.description and tooltip_of(control) for control in controls)
    assert set(KEYS.values()) == set(panel.buttons)
    for key, name in KEYS.items():
        assert f"({key})" in panel.buttons[name].description
    assert re.search(r'role="status"', panel.progress.value)
    assert repr(panel) == "Labeller('me.book.jsonl', me: 0 of 4 done)"


def test_a_source_by_name_is_labelled_too(tmp_path, real):
    panel = Labeller(real / "preferences" / "instruction-polite.json", book=tmp_path / "b", pause=0)
    assert len(panel.book.questions) > 500
    assert len(panel.book.left_out) == 0  # load_preferences has left its 6 identical ones out, and says so
    panel.choose("left")


KERNEL = """
import sys
from dpo_lab.workbench.widgets import Labeller
rows = [{"prompt": f"Question {i}?", "answers": [" a", " b"]} for i in range(500)]
panel = Labeller(rows, book=sys.argv[1], pause=0)
for key in "abtsu" * 500:
    panel.key.value = key
    print(len(panel.book.events), flush=True)
"""


def test_a_kernel_killed_in_the_middle_loses_nothing_that_was_saved(tmp_path):
    path = tmp_path / "book.jsonl"
    with subprocess.Popen([sys.executable, "-c", KERNEL, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = 0
        while said < 12:
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    said = int(rest[-1]) if rest else said
    panel = Labeller(book=path, pause=0)
    assert said <= len(panel.book.events) <= said + 1
    panel.choose("left")


# ── the arena ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_policies():
    tokenizer = tiny_tokenizer(template=CHAT_TEMPLATE)
    return {SECRETS[0]: (tiny_llama(seed=0), tokenizer), SECRETS[1]: (tiny_llama(seed=1), tokenizer)}


PROMPTS = [
    {"prompt": "the cat sat", "chosen": " on the mat", "rejected": " no", "weight": 2.0, "reward_chosen": 1.0},
    *({"prompt": f"the {word} dog", "chosen": " ran", "rejected": " sat"} for word in ("big", "small", "red")),
]


def last(stream):
    *_, end = stream
    return end


def test_both_models_answer_every_prompt_with_random_numbers_of_their_own(two_policies):
    *_, before, end = sample_rows(two_policies, PROMPTS, max_new_tokens=8)
    asked, rows = [row["prompt"] for row in PROMPTS], end.rows
    assert (before.done, before.total, end.done) == (8, 8, 8)
    assert [row["prompt"] for row in rows] == [prompt for prompt in asked if prompt in {r["prompt"] for r in rows}]
    assert 1 <= len(rows) <= len(asked)  # tiny models often say nothing, which is counted
    assert sum(end.empty.values()) >= len(asked) - len(rows)
    assert all(row["sources"] == list(SECRETS) and len(row["answers"]) == 2 for row in rows)
    assert all(set(row) == {"prompt", "answers", "sources"} for row in rows)  # nothing about other answers
    assert last(sample_rows(two_policies, PROMPTS, max_new_tokens=8)).rows == rows
    same = {"a": two_policies[SECRETS[0]], "b": two_policies[SECRETS[0]]}
    assert any(len(set(row["answers"])) == 2 for row in last(sample_rows(same, PROMPTS, max_new_tokens=8)).rows)


def test_sampling_can_be_stopped_and_wrong_numbers_of_models_are_refused(two_policies):
    assert last(sample_rows(two_policies, PROMPTS, stop=lambda: True)).rows is None
    with pytest.raises(ValueError, match="compares two models, got 1"):
        sample_rows({"a": None}, PROMPTS)
    with pytest.raises(ValueError, match="at least one prompt"):
        sample_rows(two_policies, [])


def test_an_arena_samples_labels_hides_and_reveals(tmp_path, two_policies):
    arena = Arena(two_policies, PROMPTS, book=tmp_path / "arena", who="me", max_new_tokens=8, pause=0)
    with pytest.raises(ValueError, match="press Sample answers"):
        _ = arena.book
    arena.go.click()
    arena.wait(60)
    assert arena.go.disabled
    assert arena.halt.disabled
    assert arena.labeller in arena.place.children
    shown = everything(arena.place)
    assert not any(secret in shown for secret in SECRETS)
    while arena.book.next is not None:
        arena.choose("left")
    arena.labeller.reveal.click()
    assert all(secret in arena.labeller.results.value for secret in SECRETS)
    assert not [thread for thread in threading.enumerate() if "dpo-lab" in thread.name]

    again = Arena(two_policies, book=tmp_path / "arena", pause=0)  # the answers are in the book
    assert again.book.choices == arena.book.choices
    assert again.job is None
    with pytest.raises(ValueError, match="the answers are there already"):
        again.start()
    with pytest.raises(ValueError, match="compares source-one and source-two, got a and source-two"):
        Arena({"a": None, SECRETS[1]: None}, book=tmp_path / "arena")


def test_a_failure_in_sampling_is_shown_and_raised_and_another_try_may_follow(tmp_path, two_policies):
    arena = Arena({"a": str(tmp_path / "nowhere"), SECRETS[1]: two_policies[SECRETS[1]]}, PROMPTS, book=tmp_path / "b")
    arena.go.click()
    with pytest.raises(ValueError, match="no model folder"):
        arena.wait(60)
    assert "no model folder" in arena.message.value
    assert not arena.go.disabled
    assert not (tmp_path / "b").exists()
    arena.policies["a"] = two_policies[SECRETS[0]]
    arena.go.click()
    arena.wait(60)
    assert arena.book.next == 0


def test_empty_answers_are_counted_and_not_asked(tmp_path, two_policies, monkeypatch):
    silent = two_policies[SECRETS[0]][0]

    def generate(model, tokenizer, prompts, **_):
        return ["" if model is silent and i == 1 else f"{id(model)} {i}" for i in range(len(prompts))]

    monkeypatch.setattr("dpo_lab.sampling.generate", generate)
    arena = Arena(two_policies, PROMPTS, book=tmp_path / "b", pause=0)
    arena.start().wait(60)
    assert len(arena.book.questions) == 3
    assert "Empty answers, not asked: source-one 1" in arena.message.value


def test_an_arena_of_two_saved_models_and_a_file(tmp_path, real):
    """As a reader would: a model's folder twice, under two names, and a file of instructions."""
    stories = str(real / "models" / "stories260k")
    arena = Arena({"one": stories, "other": stories}, str(real / "preferences" / "instruction-polite.json"),
                  book=tmp_path / "b", num_prompts=3, max_new_tokens=12, pause=0)  # fmt: skip
    arena.start().wait(60)
    assert len(arena.book.questions) + len(arena.book.left_out) == 3
    arena.choose("right")


# ── what a panel may be given for a model ────────────────────────────────────────────────────────────────────────────


def test_sources_are_pairs_folders_runs_and_checkpoints(tmp_path):
    import torch

    from dpo_lab.storage.checkpoints import save_checkpoint
    from dpo_lab.workbench.runs import Run

    model, tokenizer = tiny_llama(seed=3), tiny_tokenizer()
    assert policy_of((model, tokenizer))[0] is model
    base = saved_model(tmp_path / "base", tiny_llama(seed=4), tokenizer)
    run = Run.create(tmp_path / "run", {"command": "train", "settings": {"model": str(base)}})
    (run.folder / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="has no model yet"):
        policy_of(run)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpoint = save_checkpoint(run.checkpoints, 7, model, optimizer, {}, keep=2)
    saved_model(run.model_folder, tiny_llama(seed=5), tokenizer)
    weight = lambda one: one.model.embed_tokens.weight
    assert torch.equal(weight(policy_of(checkpoint)[0]), weight(model))
    for source in (run, run.folder, str(run.folder)):
        assert torch.equal(weight(policy_of(source)[0]), weight(tiny_llama(seed=5)))
    assert torch.equal(weight(policy_of(base)[0]), weight(tiny_llama(seed=4)))
    assert [name_of(source) for source in (run, checkpoint, base)] == ["run", "run/step-00000007", "base"]
    with pytest.raises(ValueError, match=r"comes as \(model, tokenizer\), got 3 things"):
        policy_of((1, 2, 3))


def test_sources_get_names():
    pair = (tiny_llama(), tiny_tokenizer())
    assert list(named("embedded")) == ["embedded"]
    assert list(named(["embedded", "runs/mine"])) == ["embedded", "mine"]
    assert list(named(pair)) == ["LlamaForCausalLM"]
    assert named({"a": pair}) == {"a": pair}
    with pytest.raises(ValueError, match="two of the models have the same name"):
        named(["a/model", "b/model"])
