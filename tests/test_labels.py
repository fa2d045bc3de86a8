"""Labels of one's own: what is asked, what survives a kill, what is exported, and how alike two people choose."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from itertools import product

import pytest

from dpo_lab.preferences import BadRow, load_preferences, read_preferences
from dpo_lab.workbench.labels import (
    LabelBook,
    agreement,
    cohen_kappa,
    export_labels,
    export_rows,
    left_share,
    questions_of,
    wilson,
    win_rates,
)


def rows(count=6):
    return [{"prompt": f"Question {i}?", "answers": [f" First {i}.", f" Second {i}."], "sources": ["ann", "ben"]}
            for i in range(count)]  # fmt: skip


def book_at(tmp_path, count=6, *, who="me", name=None, seed=0):
    return LabelBook.open(tmp_path / (name or f"{who}.jsonl"), rows(count), who=who, seed=seed)


def prefer(book, answers):
    """Choose these answers (0, 1, or "tie", "skip"), whatever side they stand on."""
    for answer in answers:
        number = book.next
        book.choose(answer if isinstance(answer, str) else "left" if book.left_of(number) == answer else "right")


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_every_layout_become_questions():
    turn = lambda role, text: {"role": role, "content": text}
    said = {"chosen": "Yo", "rejected": "Hm"}
    asked, identical = questions_of(
        [
            {"prompt": "Why?", "chosen": " So.", "rejected": " No."},
            {name: [turn("user", "Hi"), turn("assistant", text)] for name, text in said.items()},
            {"prompt": [turn("user", "Hi")], "answers": ["Yo", "Hm"], "sources": ["a", "b"]},
            {"prompt": "Why?", "answers": ["same", "same"]},
        ]
    )  # fmt: skip
    assert [question.sources for question in asked] == [("chosen", "rejected"), ("chosen", "rejected"), ("a", "b")]
    assert asked[1].answers == asked[2].answers == ([turn("assistant", "Yo")], [turn("assistant", "Hm")])
    assert [asked[2].prompt_text, asked[2].answer_text(0), asked[2].answer_text(1)] == ["User: Hi", "Yo", "Hm"]
    assert identical == [3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Why?", "answers": ["one"]}, "row index 0: field 'answers' must be a list of two answers"),
        ({"prompt": "Why?", "chosen": "So."}, "rejected"),
        ({"prompt": "Why?", "answers": ["a", "b"], "sources": "ab"}, "sources"),
        ({"prompt": "Why?", "answers": ["a", "b"], "score": float("nan")}, "JSON can't hold"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_place(row, message):
    with pytest.raises(BadRow, match=message):
        questions_of([row])


def test_nothing_to_label_is_told():
    with pytest.raises(ValueError, match="nothing to label"):
        questions_of([{"prompt": "Why?", "answers": ["same", "same"]}])


def test_columns_of_one_answer_change_sides_with_it():
    row = {"prompt": "x", "chosen": "a", "rejected": "b", "job": "tools", "reward_chosen": 3.0, "reward_rejected": -1.0,
           "chosen_model": "old", "rejected_model": "new", "note_chosen": "alone"}  # fmt: skip
    ((question,), _) = questions_of([row])
    turned = question.row(1)
    assert (turned["chosen"], turned["rejected"], turned["source_chosen"]) == ("b", "a", "rejected")
    assert (turned["reward_chosen"], turned["reward_rejected"]) == (-1.0, 3.0)
    assert (turned["chosen_model"], turned["rejected_model"]) == ("new", "old")
    assert (turned["job"], turned["note_chosen"]) == ("tools", "alone")
    kept = question.row(0)
    assert {name: kept[name] for name in row} == row


# ── choosing, undoing, going on ──────────────────────────────────────────────────────────────────────────────────────


def test_choices_are_kept_by_answer_whatever_the_side(tmp_path):
    book = book_at(tmp_path)
    prefer(book, [0, 1, "tie", "skip"])
    assert [choice.winner for choice in book.choices] == [0, 1, None, None]
    assert book.counts["open"] == 2
    assert book.next == 4
    assert book.progress == "4 of 6 done (1 tie, 1 skip)"


def test_half_of_the_questions_show_each_answer_on_the_left_in_an_order_of_the_seed(tmp_path):
    lefts = {
        (who, seed): [b.left_of(i) for i in range(40)]
        for who, seed in product(("me", "you"), (0, 1))
        for b in [book_at(tmp_path, 40, who=who, seed=seed, name=f"{who}{seed}")]
    }
    assert all(sum(sides) == 20 for sides in lefts.values())
    assert len({tuple(sides) for sides in lefts.values()}) == 4  # nobody sees the sides of somebody else
    again = LabelBook.open(tmp_path / "me1")
    assert [again.left_of(i) for i in range(40)] == lefts["me", 1]


def test_undo_takes_back_one_choice_after_the_other_and_stays_in_the_file(tmp_path):
    book = book_at(tmp_path, 3)
    prefer(book, [0, 1, "skip"])
    assert book.next is None
    assert book.undo().choice == "skip"
    assert book.undo().winner == 1
    assert book.next == 1
    prefer(book, [0])
    assert [choice.winner for choice in book.choices] == [0, 0]
    assert [event["kind"] for event in book.events] == ["choice"] * 3 + ["undo"] * 2 + ["choice"]
    again = LabelBook.open(book.path)
    assert again.choices == book.choices
    assert again.events == book.events
    book.undo(), book.undo()
    with pytest.raises(ValueError, match="nothing to undo"):
        book.undo()


def test_a_book_goes_on_where_it_stopped_without_its_rows(tmp_path):
    prefer(book_at(tmp_path), [0, 1])
    again = LabelBook.open(tmp_path / "me.jsonl")
    assert (again.next, again.who, again.questions[2].answers) == (2, "me", (" First 2.", " Second 2."))
    prefer(again, [1])
    assert len(LabelBook.open(tmp_path / "me.jsonl", rows(), who="me", seed=7).choices) == 3


def test_wrong_calls_are_told(tmp_path):
    book = book_at(tmp_path, 2)
    with pytest.raises(ValueError, match="one of left, right, tie, skip, got 'best'"):
        book.choose("best")
    prefer(book, [0, 0])
    with pytest.raises(ValueError, match="all 2 questions have their label"):
        book.choose("left")
    with pytest.raises(ValueError, match="book of 'me', and 'you' would write into it"):
        LabelBook.open(book.path, who="you")
    with pytest.raises(ValueError, match="2 other questions than those given"):
        LabelBook.open(book.path, rows(3))
    with pytest.raises(ValueError, match="no book"):
        LabelBook.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="who is empty"):
        LabelBook.open(tmp_path / "nowhere", rows(), who=" ")


def test_rows_with_the_same_answer_twice_are_listed_in_the_book(tmp_path, caplog):
    given = [*rows(2), {"prompt": "x", "answers": ["same", "same"]}]
    assert LabelBook.open(tmp_path / "b", given).left_out == [2]
    assert "1 of 3 rows have the same answer twice and are left out: rows 2" in caplog.text
    assert LabelBook.open(tmp_path / "b").left_out == [2]


def test_a_second_window_cannot_write_into_the_same_book(tmp_path):
    one, other = book_at(tmp_path), book_at(tmp_path)
    prefer(one, [0])
    with pytest.raises(ValueError, match="another window or program wrote to it"):
        prefer(other, [1])
    assert not other.choices
    assert [c.winner for c in LabelBook.open(one.path).choices] == [0]


# ── a kill at any byte ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_cut_at_any_byte_of_its_events_opens_with_every_whole_event(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # some thousand times
    book = book_at(tmp_path, 3)
    begun = book.path.stat().st_size
    prefer(book, [0, "tie"])
    book.undo()
    prefer(book, [1])
    data, events = book.path.read_bytes(), book.events
    cut_file = tmp_path / "cut.jsonl"
    for size in range(begun, len(data) + 1):
        cut_file.write_bytes(data[:size])
        cut = LabelBook.open(cut_file)
        whole = data[begun:size].count(b"\n") + (data[size : size + 1] == b"\n" and size > begun)
        assert cut.events == events[:whole]
        assert cut.torn in (0, size - data.rfind(b"\n", 0, size) - 1)
        if size % 5 == 0 and cut.next is not None:  # and it goes on from there
            cut.choose("skip")
            assert LabelBook.open(cut_file).events == cut.events


def test_a_kill_while_the_book_begins_leaves_no_book(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        book_at(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "me.jsonl").exists()
    (tmp_path / ".me.jsonl.partial").write_bytes(b'{"kind": "bo')  # as a power cut leaves it
    assert book_at(tmp_path).next == 0


KILLED = """
import os, sys
from dpo_lab.workbench.labels import LabelBook
rows = [{"prompt": f"Question {i}?", "answers": [" a", " b"]} for i in range(1000)]
book = LabelBook.open(sys.argv[1], rows)
while True:
    book.choose("left")
    print(len(book.choices), flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_said_was_saved(tmp_path):
    path = tmp_path / "book.jsonl"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = 0
        while said < 20:
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    said = int(rest[-1]) if rest else said
    book = LabelBook.open(path)
    assert said <= len(book.choices) <= said + 1  # the one in hand may or may not have been written
    assert book.next == len(book.choices)
    book.choose("tie")


def test_a_disk_that_fills_up_leaves_no_half_line_and_the_choice_is_not_taken(tmp_path, monkeypatch):
    book = book_at(tmp_path)
    prefer(book, [0])
    before = book.path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\); free space"):
        book.choose("left")
    monkeypatch.undo()
    assert book.path.read_bytes() == before
    assert book.next == 1
    prefer(book, [1])
    assert [c.winner for c in LabelBook.open(book.path).choices] == [0, 1]


def test_damage_that_no_kill_explains_is_refused_and_the_file_is_left_alone(tmp_path):
    book = book_at(tmp_path, 2)
    prefer(book, [0, 1])
    lines = book.path.read_bytes().split(b"\n")
    other = tmp_path / "other"
    for damaged, message in (
        ([*lines[:3], b"{oops", *lines[4:]], r"line 4 is no JSON object"),
        (lines[:3] + lines[4:], None),  # without its first choice the second still stands
        ([*lines[:3], lines[3], *lines[3:]], r"line 5 doesn't follow"),
        ([*lines[:1], *lines[2:]], "the 2 questions that it began with"),
        (lines[1:], "no header"),
        ([lines[0].replace(b'"version": 1', b'"version": 2'), *lines[1:]], "version 2"),
        ([b"some notes of mine, without an end"], "no header"),
    ):
        data = b"\n".join(damaged)
        other.write_bytes(data)
        if message is None:
            assert len(LabelBook.open(other).choices) == 1
        else:
            with pytest.raises(ValueError, match=message):
                LabelBook.open(other)
        assert other.read_bytes() == data


# ── export ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_export_is_read_as_preferences_and_every_question_is_accounted_for(tmp_path):
    book = book_at(tmp_path)
    prefer(book, [0, 1, "tie", "skip"])
    report = export_labels(book, tmp_path / "labels.jsonl")
    found, read = read_preferences(str(tmp_path / "labels.jsonl"))
    assert (read.rows_read, read.rows_kept) == (2, 2)
    assert [(row["chosen"], row["rejected"]) for row in found] == [
        (" First 0.", " Second 0."),
        (" Second 1.", " First 1."),
    ]
    assert [(row["who"], row["question"], row["source_chosen"]) for row in found] == [
        ("me", 0, "ann"),
        ("me", 1, "ben"),
    ]
    assert all(row["when"].endswith("+00:00") for row in found)
    assert report.num_preferred + report.num_ties + report.num_skipped + report.num_open == 6
    assert report.summary() == (
        "2 rows written, of me: 2 preferences; 1 tie left out; 1 skipped and 2 open, left out"
    )  # fmt: skip
    assert load_preferences(str(tmp_path / "labels.jsonl")).column_names[:3] == ["prompt", "chosen", "rejected"]


def test_a_tie_can_be_written_both_ways_with_half_the_weight_each(tmp_path):
    book = book_at(tmp_path)
    prefer(book, [0, "tie"])
    found, report = export_rows(book, ties="both ways")
    assert [(row["question"], row["chosen"], row["weight"]) for row in found] == [
        (0, " First 0.", 1.0), (1, " First 1.", 0.5), (1, " Second 1.", 0.5),
    ]  # fmt: skip
    assert (report.num_rows, report.num_ties) == (3, 1)
    assert "1 tie written both ways" in report.summary()
    with pytest.raises(ValueError, match="got 'drop'"):
        export_rows(book, ties="drop")


def test_the_books_of_several_people_are_exported_together(tmp_path):
    mine, yours = book_at(tmp_path, who="me"), book_at(tmp_path, who="you")
    prefer(mine, [0, 0])
    prefer(yours, [1])
    found, report = export_rows([mine, yours])
    assert [(row["who"], row["question"], row["source_chosen"]) for row in found] == [
        ("me", 0, "ann"), ("me", 1, "ann"), ("you", 0, "ben"),
    ]  # fmt: skip
    assert (report.who, report.num_open) == (("me", "you"), 9)


def test_conversations_with_tools_and_strange_letters_come_back_as_they_were(tmp_path):
    tools = [{"type": "function", "function": {"name": "buy", "parameters": {"type": "object", "properties": {}}}}]
    text = "<script>alert(1)</script> $x^2$ \u2028 ½ 😀 \x00 'quoted' \"twice\""
    row = {"prompt": [{"role": "user", "content": text}], "answers": [text, "no"], "tools": tools, "system": "Be kind."}
    book = LabelBook.open(tmp_path / "b", [row])
    again = LabelBook.open(tmp_path / "b")
    prefer(book, [0])
    export_labels(book, tmp_path / "out.jsonl")
    ((found,), _) = read_preferences(str(tmp_path / "out.jsonl"))
    assert again.questions == book.questions
    assert found["chosen"] == [{"role": "assistant", "content": text}]
    assert (found["tools"], found["system"], found["prompt"]) == (tools, "Be kind.", row["prompt"])


def test_an_export_without_a_preference_or_with_another_ending_is_refused(tmp_path):
    book = book_at(tmp_path)
    with pytest.raises(ValueError, match="no preference to export yet"):
        export_labels(book, tmp_path / "labels.jsonl")
    with pytest.raises(ValueError, match=r"got .*labels\.csv'; name it LABELS\.jsonl"):
        export_labels(book, tmp_path / "labels.csv")


def test_what_was_exported_can_be_labelled_again_under_its_sources(tmp_path):
    book = book_at(tmp_path)
    prefer(book, [1, 0])
    second = LabelBook.open(tmp_path / "again", export_rows(book)[0], who="you")
    assert [question.sources for question in second.questions] == [("ben", "ann"), ("ann", "ben")]


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wilson_holds_every_share_that_a_test_would_not_reject():
    # By hand from the definition: the borders are where |p̂ − p| = z·√(p(1−p)/n), here z = 1.959964.
    for successes, n in ((0, 10), (3, 10), (10, 10), (55, 100)):
        found = wilson(successes, n)
        for border in (found.low, found.high):
            if 0 < border < 1:
                assert abs(successes / n - border) == pytest.approx(
                    1.959964 * math.sqrt(border * (1 - border) / n), rel=1e-5
                )
        assert 0 <= found.low <= found.share <= found.high <= 1
    # Newcombe 1998, Statistics in Medicine 17, Table I, method 3.
    assert wilson(81, 263)[1:3] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    assert tuple(wilson(0, 0))[1:] == (0.0, 1.0, 0)
    with pytest.raises(ValueError, match="between 0 and n, got 11 of 10"):
        wilson(11, 10)


def test_win_rates_count_ties_as_halves_and_leave_out_skips(tmp_path):
    book = book_at(tmp_path)
    prefer(book, [0, 0, 1, "tie", "skip"])
    ann, ben = win_rates(book)
    assert (ann.source, ann.wins, ann.losses, ann.ties, ann.rate.share, ann.rate.n) == ("ann", 2, 1, 1, 2.5 / 4, 4)
    assert (ben.source, ben.wins, ben.losses, ben.ties, ben.rate.share) == ("ben", 1, 2, 1, 1.5 / 4)


def test_a_labeller_who_always_takes_the_left_shows(tmp_path):
    book = book_at(tmp_path, 40)
    for _ in range(40):
        book.choose("left")
    assert left_share(book)[:2] == (1.0, pytest.approx(0.912, abs=1e-3))
    assert [rate.wins for rate in win_rates(book)] == [20, 20]  # and helps no source


# ── agreement ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kappa_by_hand_and_at_its_ends():
    assert cohen_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)  # p_o = 0.7, p_e = 0.5·0.6 + 0.5·0.4 = 0.5
    assert cohen_kappa([[7, 0, 0], [0, 2, 0], [0, 0, 1]]) == 1
    assert cohen_kappa([[25, 25], [25, 25]]) == 0
    assert cohen_kappa([[0, 10], [10, 0]]) == -1
    assert math.isnan(cohen_kappa([[10, 0], [0, 0]]))
    assert math.isnan(cohen_kappa([[0, 0], [0, 0]]))
    with pytest.raises(ValueError, match="square"):
        cohen_kappa([[1, 2, 3], [4, 5, 6]])


def test_agreement_counts_by_answer_and_names_the_questions_that_differ(tmp_path):
    mine, yours = book_at(tmp_path, 8, who="me"), book_at(tmp_path, 8, who="you")
    assert [mine.left_of(i) for i in range(8)] != [yours.left_of(i) for i in range(8)]
    prefer(mine, [0, 1, 0, "tie", "tie", "skip", 1])
    prefer(yours, [0, 1, 1, "tie", 0, 1, "skip", 0])
    found = agreement(mine, yours)
    assert found.table == ((1, 1, 0), (0, 1, 0), (1, 0, 1))
    assert (found.num_both, found.share, found.differ, found.num_skipped, found.num_open) == (5, 0.6, (2, 4), 2, 1)
    chance = (2 * 2 + 1 * 2 + 2 * 1) / 25
    assert found.kappa == pytest.approx((0.6 - chance) / (1 - chance))
    assert found.kappa_error == pytest.approx(math.sqrt(0.6 * 0.4 / 5) / (1 - chance))
    assert "me and you agree on 3 of 5 questions (60%)" in found.summary()
    assert agreement(yours, mine).kappa == found.kappa


def test_books_of_different_tasks_are_refused_and_of_other_sources_are_not(tmp_path):
    with pytest.raises(ValueError, match="different tasks"):
        agreement(book_at(tmp_path, 3, who="me"), book_at(tmp_path, 4, who="you"))
    renamed = [row | {"sources": ["x", "y"]} for row in rows(3)]
    other = LabelBook.open(tmp_path / "other", renamed, who="him")
    found = agreement(LabelBook.open(tmp_path / "me.jsonl"), other)
    assert (found.num_both, found.num_open) == (0, 3)
    assert math.isnan(found.kappa)
    assert "no question both" in found.summary()


def test_kappa_of_noisy_labellers_is_what_the_noise_predicts(tmp_path):
    """Flips at rates e and f leave (1 − 2e)(1 − 2f) of the agreement beyond chance, where each truth is as likely."""
    import random

    draw, found = random.Random(0), {}
    truth = [i % 2 for i in range(4000)]
    for e, f in ((0.0, 0.2), (0.1, 0.3)):
        said = [[right ^ (draw.random() < flip) for right in truth] for flip in (e, f)]
        table = [[sum(a == i and b == j for a, b in zip(*said, strict=True)) for j in (0, 1)] for i in (0, 1)]
        found[e, f] = cohen_kappa(table)
        assert found[e, f] == pytest.approx((1 - 2 * e) * (1 - 2 * f), abs=0.05)


def test_no_torch():
    code = "import sys, dpo_lab.workbench.labels; print([m for m in ('torch', 'numpy.random') if m in sys.modules][:1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout


def test_every_line_of_a_book_is_json_that_others_can_read(tmp_path):
    book = book_at(tmp_path, 2)
    prefer(book, [0])
    book.undo()
    kinds = [json.loads(line)["kind"] for line in book.path.read_text(encoding="utf-8").splitlines()]
    assert kinds == ["book", "question", "question", "choice", "undo"]
