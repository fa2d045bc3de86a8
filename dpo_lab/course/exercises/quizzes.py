"""The quiz of each notebook: a few questions, answered by a click, with a reason for every choice.

`notebooks/quizzes/NN.json` holds them: a list of {"question", "section", "choices"}, `section` the number of the
notebook's section that answers it, a choice {"text", "reason"}, and "is_right": true in the right one. They are shown
as folded HTML, so a saved notebook answers without a kernel, and the keyboard reaches every choice.

`python -m dpo_lab.course.exercises.quizzes FOLDER` writes each notebook for nbgrader, with its quiz graded.
"""

from __future__ import annotations

import copy
import html
import json
import sys
from pathlib import Path
from typing import Any

from dpo_lab.course.exercises.checking import NotYet

HEADING = "## Quiz\n\nClick a choice, or press Enter on it: it says whether it is right, and why. No kernel is needed."
LETTERS = "abcdef"


class Quiz:
    """`Quiz("05")` as the last line of a cell asks the quiz of notebook 05. ValueError where there is no such quiz."""

    def __init__(self, number: str) -> None:
        files = {path.stem: path for path in (_notebooks() / "quizzes").glob("*.json")}
        if number not in files:
            raise ValueError(f"number must be one of {', '.join(sorted(files)) or 'none'}, got {number!r}")
        self.number: str = number
        self.questions: list[dict[str, Any]] = json.loads(files[number].read_text(encoding="utf-8"))

    @property
    def key(self) -> str:
        """The letters of the right choices, one per question."""
        right = [[bool(choice.get("is_right")) for choice in one["choices"]].index(True) for one in self.questions]
        return "".join(LETTERS[place] for place in right)

    def grade(self, letters: str) -> int:
        """How many letters, one per question, are right, with the reasons printed. NotYet where one names no choice."""
        offered = [LETTERS[: len(one["choices"])] for one in self.questions]
        if len(letters) != len(offered) or not all(map(str.__contains__, offered, letters)):
            raise NotYet(f"Give the letter of a choice for each of {len(offered)} questions, got {letters!r}.")
        for number, (letter, one) in enumerate(zip(letters, self.questions, strict=True), start=1):
            print(f"{number}{letter}) {_verdict(one['choices'][LETTERS.index(letter)])}")
        return sum(map(str.__eq__, letters, self.key))

    def __repr__(self) -> str:
        return f"Quiz({self.number!r}): {len(self.questions)} questions, graded by Quiz({self.number!r}).grade(letters)"

    def _repr_html_(self) -> str:
        parts = []
        for number, one in enumerate(self.questions, start=1):
            parts.append(f"<p><b>{number}. {html.escape(one['question'])}</b> (section {one['section']})</p>")
            for letter, choice in zip(LETTERS, one["choices"], strict=False):
                text, verdict = html.escape(choice["text"]), html.escape(_verdict(choice))
                parts.append(f"<details><summary>{letter}) {text}</summary><p><i>{verdict}</i></p></details>")
        return "\n".join(parts)


def _notebooks() -> Path:
    package = Path(__file__).resolve().parents[2]  # a wheel carries the course, a checkout has it beside
    return (own if (own := package / "_course").is_dir() else package.parent) / "notebooks"


def _verdict(choice: dict[str, Any]) -> str:
    return f"{'Right' if choice.get('is_right') else 'No'}. {choice['reason']}"


def _is_quiz(cell: Any) -> bool:
    return cell.cell_type == "code" and "\nQuiz(" in cell.source


def with_quiz(notebook: Any, number: str, *, is_new: bool) -> Any:
    """The same notebook with the output of its quiz as the questions are now; nothing has to be run for it.

    Where it has no quiz and `is_new`, a heading and the cell come before its summary, once.
    """
    from nbformat import from_dict, v4

    notebook = copy.deepcopy(notebook)
    if is_new and not any(map(_is_quiz, notebook.cells)):
        end = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## What you saw"))
        heading = v4.new_markdown_cell(HEADING, metadata=from_dict({"slideshow": {"slide_type": "slide"}}))
        before = sum(cell.cell_type == "code" for cell in notebook.cells[:end])
        source = f'from dpo_lab.course.exercises import Quiz\n\nQuiz("{number}")'
        notebook.cells[end:end] = [heading, v4.new_code_cell(source, execution_count=before + 1)]
    for cell in filter(_is_quiz, notebook.cells):
        data = {"text/html": Quiz(number)._repr_html_(), "text/plain": repr(Quiz(number))}
        cell.outputs = [v4.new_output("execute_result", data, execution_count=cell.execution_count)]
    return notebook


def graded(notebook: Any, number: str) -> Any:
    """The same notebook with two cells under its quiz for nbgrader: the letters, and a point for each right one."""
    from nbformat import from_dict, v4

    quiz, notebook = Quiz(number), copy.deepcopy(notebook)
    letters = f'### BEGIN SOLUTION\nletters = "{quiz.key}"\n### END SOLUTION'
    place = next(i for i, cell in enumerate(notebook.cells) if _is_quiz(cell)) + 1
    for name, source in (("check-quiz", f'Quiz("{number}").grade(letters)'), ("quiz", letters)):
        about = {"grade_id": f"{name}-{number}", "schema_version": 3, "task": False, "points": len(quiz.questions)}
        about |= {"grade": source != letters, "locked": source != letters, "solution": source == letters}
        notebook.cells.insert(place, v4.new_code_cell(source, metadata=from_dict({"nbgrader": about})))
    return notebook


if __name__ == "__main__":
    import nbformat

    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m dpo_lab.course.exercises.quizzes FOLDER")
    for page in sorted(_notebooks().glob("[0-9][0-9]*_*.ipynb")):
        target = Path(sys.argv[1]) / page.stem / page.name
        target.parent.mkdir(parents=True, exist_ok=True)
        own = page.stem.split("_")[0]
        nbformat.write(graded(with_quiz(nbformat.read(page, as_version=4), own, is_new=True), own), target)
