"""A quiz as it is saved in a notebook, opened in JupyterLab by somebody who has run nothing."""

from __future__ import annotations

import nbformat
from playwright.sync_api import expect

from dpo_lab.course.exercises import Quiz
from dpo_lab.course.exercises.quizzes import with_quiz
from tests.browser.lab import WAIT, Sheet


def test_a_saved_quiz_answers_by_click_and_by_key(sheet: Sheet):
    summary = nbformat.v4.new_markdown_cell("## What you saw")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = with_quiz(nbformat.v4.new_notebook(cells=[summary], metadata=kernel), "05", is_new=True)
    nbformat.write(notebook, sheet.folder / "quiz.ipynb")
    page = sheet.page
    page.goto(f"{sheet.lab.url}/lab/workspaces/quiz/tree/quiz.ipynb?token={sheet.lab.token}", timeout=WAIT)
    choices = page.locator(".jp-OutputArea-output details")
    questions = Quiz("05").questions
    expect(choices).to_have_count(sum(len(question["choices"]) for question in questions), timeout=WAIT)
    first, second, third = (choices.nth(place) for place in range(3))
    expect(first.locator("p")).to_be_hidden()
    first.locator("summary").click()
    expect(first.locator("p")).to_have_text(f"No. {questions[0]['choices'][0]['reason']}")
    for key, choice in (("Enter", second), ("Space", third)):
        page.keyboard.press("Tab")
        expect(choice.locator("summary")).to_be_focused()
        page.keyboard.press(key)
        expect(choice.locator("p")).to_be_visible()
    sheet.shoot(page.locator(".jp-OutputArea").first, "open")
