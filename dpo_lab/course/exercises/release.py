"""Notebooks made ready to commit, and the student version made from them. No solution is written twice.

`python -m dpo_lab.course.exercises.release` cleans every notebook of the course of what differs between two runs
(times, versions, widget state, the addresses of cells) and writes `notebooks/student/`, where solutions are replaced as
nbgrader's ClearSolutions replaces them and outputs are empty, with a map of its own; both also in other languages
(`translations`). `--check` changes nothing and says what would change; `--quizzes` puts its quiz into a notebook that
has none yet.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_lab.course.exercises.quizzes import with_quiz
from dpo_lab.course.exercises.translations import translated, with_links

CODE_STUB = "# YOUR CODE HERE\nraise NotImplementedError()"
TEXT_STUB = "YOUR ANSWER HERE"
BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"
HIDDEN = ("BEGIN HIDDEN TESTS", "END HIDDEN TESTS")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_OF_CELLS = ("tags", "slideshow", "nbgrader", "jupyter", "deletable", "editable")


def course_folder() -> Path:
    """The folder of notebooks in this checkout. Raises ValueError where the package is installed without them."""
    folder = Path(__file__).resolve().parents[3] / "notebooks"
    if not folder.is_dir():
        raise ValueError(f"the notebooks are not part of the installed package, looked in {folder}; get the source")
    return folder


def finish(notebook: Any, name: str) -> Any:
    """The same notebook without what differs between two runs or two machines; outputs and counts are kept.

    Raises ValueError where it was not run from top to bottom, or has an error among its outputs.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata = type(notebook.metadata)(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = type(cell.metadata)({key: cell.metadata[key] for key in KEPT_OF_CELLS if key in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET_VIEW, None)  # it names a live object of the kernel that is gone
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    problems = list(_unfinished(notebook))
    if problems:
        raise ValueError(
            f"{name} must be run from a fresh kernel, top to bottom, without errors; {'; '.join(problems)}"
        )
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs in which what was printed in one go stands together, however the kernel cut it."""
    joined: list[Any] = []
    for output in outputs:
        is_stream = output.output_type == "stream" and joined and joined[-1].output_type == "stream"
        if is_stream and joined[-1].name == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def student_version(notebook: Any) -> Any:
    """What a student gets: solutions and hidden tests taken out, outputs empty, links for the folder below.

    The semantics are nbgrader's (docs, "Developing assignments with the assignment toolbar" and ClearSolutions): a
    marked region becomes a stub at its own indent; a solution cell without a mark becomes a stub as a whole.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        is_solution = bool(cell.metadata.get("nbgrader", {}).get("solution"))
        cell.source, was_marked = _without_regions(cell.source, CODE_STUB if cell.cell_type == "code" else TEXT_STUB)
        if was_marked and not is_solution:
            raise ValueError(
                f"a marked solution stands in a cell that is none; give it nbgrader metadata: {cell.source!r}"
            )
        if is_solution and not was_marked:
            cell.source = CODE_STUB if cell.cell_type == "code" else TEXT_STUB
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = links_one_deeper(cell.source)
    return notebook


def links_one_deeper(text: str) -> str:
    """A page of the course with its links as the student version needs them, which lies one folder deeper.

    A link to a notebook or to the map stays, and then leads to the student version's own.
    """
    return re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", _one_deeper, text)


def _without_regions(source: str, stub: str) -> tuple[str, bool]:
    kept: list[str] = []
    inside = hidden = was_marked = False
    for line in source.split("\n"):
        if HIDDEN[0] in line:
            hidden = True
        elif HIDDEN[1] in line:
            hidden = False
        elif hidden:
            continue
        elif BEGIN in line:
            if inside:
                raise ValueError(f"a solution begins inside a solution: {source!r}")
            inside = was_marked = True
            indent = line[: len(line) - len(line.lstrip())]
            kept += [indent + stub_line for stub_line in stub.split("\n")]
        elif END in line:
            inside = False
        elif not inside:
            kept.append(line)
    if inside or hidden:
        raise ValueError(f"a mark is not closed: {source!r}")
    return "\n".join(kept), was_marked


def _one_deeper(match: re.Match[str]) -> str:
    target = match[1]
    if re.match(r"\d\d\w+\.ipynb|README\.md", target):
        return match[0]
    return f"]({target.removeprefix('student/')})" if target.startswith("student/") else f"](../{target})"


def _unfinished(notebook: Any) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"the execution counts are {counts}"
    for cell in code:
        yield from (f"{cell.source[:40]!r} gave {o.ename}" for o in cell.outputs if o.output_type == "error")


def released(path: Path, *, is_new_quiz: bool = False) -> dict[Path, str]:
    """The files that a release writes for a notebook or the map, with their texts: both versions, in every language."""
    if path.suffix == ".md":
        return {path.parent / "student" / path.name: links_one_deeper(path.read_text(encoding="utf-8"))}
    import nbformat

    notebook = with_quiz(nbformat.read(path, as_version=4), path.stem.split("_")[0], is_new=is_new_quiz)
    finished = finish(notebook, path.name)
    made = {path: finished, path.parent / "student" / path.name: student_version(finished)}
    for texts in path.parent.glob(f"*/{path.stem}.md"):
        other, _ = translated(finished, texts)
        student = with_links(student_version(other), texts.parent, is_student=True)
        made[texts.parent / "student" / path.name] = student
        made[texts.parent / path.name] = with_links(other, texts.parent, is_student=False)
    return {file: nbformat.writes(one) + "\n" for file, one in made.items()}


def main(arguments: list[str]) -> int:
    if set(arguments) - {"--check", "--quizzes"}:
        raise SystemExit("usage: python -m dpo_lab.course.exercises.release [--check] [--quizzes]")
    folder, is_check, failed = course_folder(), "--check" in arguments, False
    for page in (folder / "README.md", *sorted(folder.glob("[0-9][0-9]*.ipynb"))):
        try:
            files = released(page, is_new_quiz="--quizzes" in arguments)
        except ValueError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        for path, text in files.items():
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            print(f"{'would change' if is_check else 'wrote'} {path.relative_to(folder.parent)}")
            failed |= is_check
            if not is_check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
