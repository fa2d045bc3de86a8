"""The student version is what the notebooks make of themselves, and what nbgrader would make of them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from dpo_lab.course.exercises.release import finish, released, student_version
from tests.test_notebooks import FOLDER, MAP, NOTEBOOKS, broken_links, code, read

STUDENT = FOLDER / "student"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", [MAP, *NOTEBOOKS], ids=lambda path: path.stem)


@each_page
def test_committed_is_what_a_release_writes(path: Path):
    for written, text in released(path).items():
        assert written.is_file(), "run `make release`"
        assert written.read_text(encoding="utf-8") == text, "run `make release`"


def test_every_notebook_has_its_student_version_and_no_other_is_there():
    assert {p.name for p in STUDENT.glob("*.ipynb")} == {p.name for p in NOTEBOOKS}


@each_notebook
def test_no_solution_and_no_output_is_given_away(path: Path):
    student = STUDENT / path.name
    text = student.read_text()
    assert "SOLUTION" not in text
    assert all(not cell.outputs and cell.execution_count is None for cell in code(student))
    for own, cell in zip(read(path).cells, read(student).cells, strict=True):
        if own.metadata.get("nbgrader", {}).get("solution"):
            assert "raise NotImplementedError()" in cell.source
            (solution,) = re.findall(r"### BEGIN SOLUTION\n(.*?)\n *### END SOLUTION", own.source, re.DOTALL)
            assert solution.strip() not in cell.source
            compile(cell.source, student.name, "exec")
        elif own.cell_type == "code":
            assert own.source == cell.source


@each_notebook
def test_both_versions_open_in_any_editor(path: Path):
    """What VS Code and Colab look at: the format and its ids, the kernel and the language, and no state of widgets."""
    for file in (path, STUDENT / path.name):
        notebook = read(file)
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
        assert notebook.metadata.language_info.name == "python"
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@each_page
def test_links_of_the_student_version_lead_somewhere(path: Path):
    assert not broken_links(STUDENT / path.name)


@each_notebook
def test_nbgrader_makes_the_same(path: Path):
    """Where nbgrader is installed (the extra `teach`): its ClearSolutions on the committed source."""
    pytest.importorskip("nbgrader", reason="pip install 'dpo-lab[teach]'")
    from nbgrader.preprocessors import CheckCellMetadata, ClearSolutions

    notebook = read(path)
    CheckCellMetadata().preprocess(notebook, {})
    cleared, _ = ClearSolutions().preprocess(notebook, {})
    ours = read(STUDENT / path.name)
    theirs = [cell.source for cell in cleared.cells if cell.cell_type == "code"]
    assert theirs == [cell.source for cell in ours.cells if cell.cell_type == "code"]


def cell(source: str, **nbgrader: object):
    made = nbformat.v4.new_code_cell(source, execution_count=1)
    made.metadata["nbgrader"] = nbformat.from_dict(nbgrader)
    return made


def test_a_marked_region_becomes_a_stub_at_its_indent():
    source = "def f(x):\n    y = x\n    ### BEGIN SOLUTION\n    return y\n    ### END SOLUTION\n"
    made = student_version(nbformat.v4.new_notebook(cells=[cell(source, solution=True)]))
    stub = "def f(x):\n    y = x\n    # YOUR CODE HERE\n    raise NotImplementedError()\n"
    assert made.cells[0].source == stub


def test_a_solution_cell_without_marks_is_emptied():
    made = student_version(nbformat.v4.new_notebook(cells=[cell("answer = 42", solution=True)]))
    assert made.cells[0].source == "# YOUR CODE HERE\nraise NotImplementedError()"


def test_hidden_tests_are_taken_out():
    source = "check(f)\n### BEGIN HIDDEN TESTS\nassert f(2) == 4\n### END HIDDEN TESTS"
    made = student_version(nbformat.v4.new_notebook(cells=[cell(source, grade=True, solution=False)]))
    assert made.cells[0].source == "check(f)"


@pytest.mark.parametrize(
    ("source", "solution", "told"),
    [
        ("### BEGIN SOLUTION\nx = 1", True, "not closed"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", True, "inside a solution"),
        ("### BEGIN SOLUTION\nx = 1\n### END SOLUTION", False, "give it nbgrader metadata"),
    ],
)
def test_wrong_marks_are_refused(source: str, solution: bool, told: str):
    with pytest.raises(ValueError, match=told):
        student_version(nbformat.v4.new_notebook(cells=[cell(source, solution=solution)]))


def test_links_are_rewritten_for_the_folder_below():
    text = (
        "[map](README.md) [next](01_preferences.ipynb) [a](https://a.org) [here](#a) [p](../dpo_lab/README.md) "
        "[student](student/README.md) [solved](../notebooks/README.md)"
    )
    made = student_version(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]))
    assert made.cells[0].source == (
        "[map](README.md) [next](01_preferences.ipynb) [a](https://a.org) [here](#a) [p](../../dpo_lab/README.md) "
        "[student](README.md) [solved](../../notebooks/README.md)"
    )


def test_finishing_takes_out_what_differs_between_runs_and_refuses_what_was_not_run():
    ran = cell("x", solution=False)
    ran.metadata["execution"] = {"iopub.execute_input": "2026"}
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1f"}, "text/plain": "LiveFigure()"}
    ran.outputs = [nbformat.v4.new_output("display_data", widget)]
    notebook = nbformat.v4.new_notebook(
        cells=[ran], metadata={"widgets": {}, "language_info": {"name": "python", "version": "3.11.9"}}
    )
    done = finish(notebook, "a.ipynb")
    assert done.cells[0].outputs[0].data == {"text/plain": "LiveFigure()"}
    assert "execution" not in done.cells[0].metadata
    assert "widgets" not in done.metadata
    assert "version" not in done.metadata.language_info
    assert finish(done, "a.ipynb") == done
    assert "widgets" in notebook.metadata  # the caller's own is left as it was
    ran.execution_count = 2
    with pytest.raises(ValueError, match="fresh kernel"):
        finish(notebook, "a.ipynb")
    ran.execution_count = 1
    ran.outputs = [nbformat.v4.new_output("error", ename="KeyError", evalue="", traceback=[])]
    with pytest.raises(ValueError, match="KeyError"):
        finish(notebook, "a.ipynb")
