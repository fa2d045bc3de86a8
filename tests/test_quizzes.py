"""The quizzes of the notebooks: their form, what is shown, where they stand, and that nbgrader can grade them."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from dpo_lab.course.exercises import NotYet, Quiz
from dpo_lab.course.exercises.quizzes import graded, with_quiz
from tests.test_notebooks import FOLDER, NOTEBOOKS, code, prose, read

FILES = sorted((FOLDER / "quizzes").glob("*.json"))

each_quiz = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def notebook_of(path: Path) -> Path:
    (found,) = FOLDER.glob(f"{path.stem}_*.ipynb")
    return found


@each_quiz
def test_its_form(path: Path):
    """Three to five questions; one right choice of three or more; a reason for each; a section that exists."""
    questions = json.loads(path.read_text(encoding="utf-8"))
    assert 3 <= len(questions) <= 5
    sections = [question["section"] for question in questions]
    assert sections == sorted(sections)
    headings = set(map(int, re.findall(r"^## (\d+)\. ", prose(notebook_of(path)), re.MULTILINE)))
    assert set(sections) <= headings, "a question names a section that its notebook has"
    for question in questions:
        assert set(question) == {"section", "question", "choices"}
        choices = question["choices"]
        assert 3 <= len(choices) <= 6
        assert sum("is_right" in choice for choice in choices) == 1
        assert all(set(choice) <= {"text", "reason", "is_right"} for choice in choices)
        assert all(len(choice["reason"]) > 10 and choice["reason"].endswith(".") for choice in choices)
        assert len({choice["text"] for choice in choices}) == len({c["reason"] for c in choices}) == len(choices)


def test_no_question_is_asked_twice_and_no_place_or_length_gives_the_answer_away():
    quizzes = [Quiz(path.stem) for path in FILES]
    questions = [question for quiz in quizzes for question in quiz.questions]
    assert len({question["question"] for question in questions}) == len(questions)
    letters = Counter("".join(quiz.key for quiz in quizzes))
    assert max(letters.values()) < 0.45 * len(questions)
    assert all(len(set(quiz.key)) > 1 for quiz in quizzes)
    is_longest = [
        max(one["choices"], key=lambda choice: len(choice["text"])).get("is_right", False) for one in questions
    ]
    assert sum(is_longest) < 0.45 * len(questions)


@each_quiz
def test_what_is_shown_holds_every_choice_and_needs_nothing_else(path: Path):
    """Folded parts that a browser opens by click or key: no script, no style, nothing to fetch, markup as text."""
    quiz = Quiz(path.stem)
    shown = quiz._repr_html_()
    assert set(re.findall(r"</?(\w+)", shown)) == {"p", "b", "i", "details", "summary"}
    assert not re.search(r"=[\"']|http", shown)
    for question in quiz.questions:
        assert html.escape(question["question"]) in shown
        for choice in question["choices"]:
            verdict = "Right" if choice.get("is_right") else "No"
            assert f"{html.escape(choice['text'])}</summary><p><i>{verdict}. {html.escape(choice['reason'])}" in shown


def test_letters_are_graded_with_their_reasons(capsys):
    quiz = Quiz("00")
    assert quiz.grade(quiz.key) == len(quiz.questions)
    assert capsys.readouterr().out.count("Right.") == len(quiz.questions)
    wrong = "".join("b" if letter == "a" else "a" for letter in quiz.key)
    assert quiz.grade(wrong) == 0
    told = capsys.readouterr().out
    assert all(question["choices"]["ab".index(letter)]["reason"] in told
               for question, letter in zip(quiz.questions, wrong, strict=True))  # fmt: skip
    assert quiz.grade(wrong[0] + quiz.key[1:]) == len(quiz.questions) - 1


@pytest.mark.parametrize("letters", ["", "a", "abcda", "abxc"])
def test_what_is_no_answer_is_refused(letters: str):
    with pytest.raises(NotYet, match="4 questions"):
        Quiz("00").grade(letters)


def test_a_quiz_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"one of 00, 01.* got '99'"):
        Quiz("99")


def test_it_is_put_before_the_summary_once_and_follows_its_questions():
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("1", execution_count=1),
        nbformat.v4.new_markdown_cell("## What you saw\n\n- much"),
    ])  # fmt: skip
    assert with_quiz(notebook, "05", is_new=False) == notebook
    made = with_quiz(notebook, "05", is_new=True)
    assert len(notebook.cells) == 3
    assert [cell.cell_type for cell in made.cells] == ["markdown", "code", "markdown", "code", "markdown"]
    assert made.cells[2].source.startswith("## Quiz\n")
    assert made.cells[3].execution_count == made.cells[3].outputs[0].execution_count == 2
    assert made.cells[3].outputs[0].data["text/html"] == Quiz("05")._repr_html_()
    again = with_quiz(made, "05", is_new=True)
    assert again == made
    made.cells[3].outputs[0].data["text/html"] = "old"
    assert with_quiz(made, "05", is_new=False) == again


@each_quiz
def test_every_notebook_asks_its_own_quiz(path: Path):
    (cell,) = [cell for cell in code(notebook_of(path)) if "Quiz(" in cell.source]
    assert cell.source == f'from dpo_lab.course.exercises import Quiz\n\nQuiz("{path.stem}")'
    assert not cell.metadata.get("tags")


def test_every_notebook_has_a_quiz():
    assert {path.name.split("_")[0] for path in NOTEBOOKS} <= {path.stem for path in FILES}


def test_for_nbgrader_the_letters_are_a_solution_and_each_right_one_a_point(capsys):
    notebook = graded(with_quiz(read(FOLDER / "00_quickstart.ipynb"), "00", is_new=True), "00")
    place = next(i for i, cell in enumerate(notebook.cells) if cell.source.endswith('Quiz("00")'))
    answer, check = notebook.cells[place + 1 : place + 3]
    assert answer.metadata.nbgrader.solution
    assert not answer.metadata.nbgrader.grade
    assert check.metadata.nbgrader.grade
    assert check.metadata.nbgrader.locked
    assert check.metadata.nbgrader.points == len(Quiz("00").questions)
    names: dict[str, object] = {"Quiz": Quiz}
    exec(answer.source, names)
    assert eval(check.source, names) == check.metadata.nbgrader.points
    nbformat.validate(notebook)


def test_nbgrader_gets_every_notebook_with_a_quiz(tmp_path: Path):
    command = [sys.executable, "-m", "dpo_lab.course.exercises.quizzes", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    written = {path.name: read(path) for path in tmp_path.glob("*/*.ipynb")}
    assert set(written) == {path.name for path in NOTEBOOKS}
    assert all(path.parent.name == path.stem for path in tmp_path.glob("*/*.ipynb"))


@each_quiz
def test_nbgrader_hides_the_letters(path: Path):
    pytest.importorskip("nbgrader", reason="pip install 'dpo-lab[teach]'")
    from nbgrader.preprocessors import CheckCellMetadata, ClearSolutions

    notebook = graded(with_quiz(read(notebook_of(path)), path.stem, is_new=True), path.stem)
    CheckCellMetadata().preprocess(notebook, {})
    cleared, _ = ClearSolutions().preprocess(notebook, {})
    assert f'letters = "{Quiz(path.stem).key}"' not in "\n".join(cell.source for cell in cleared.cells)
