"""The committed notebooks: run from top to bottom, readable by everyone, whole in themselves, and on the map.

What each cell prints is compared by nbval, in the second half of `make test`. Here is everything that nbval doesn't
see: an unrun cell, a missing caption, a link that leads nowhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]*.ipynb"))
MAP = FOLDER / "README.md"
PART_ONE = ["00_quickstart", "01_preferences", "02_derivation", "02b_what_follows", "03_loss_and_gradient",
            "04_log_probabilities", "05_reference_cache", "06_training_loop"]  # fmt: skip
NBVAL_SAVES = re.compile(r"\b(assert|check_\w+\()")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def begins(cell: Any) -> str:
    return cell.source.strip().split("\n")[0][:60]


def test_part_one_is_complete():
    assert [path.stem for path in NOTEBOOKS][: len(PART_ONE)] == PART_ONE


@each_notebook
def test_it_is_valid_and_was_run_from_top_to_bottom(path: Path):
    nbformat.validate(read(path))
    counts = [cell.execution_count for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1)), "run it from a fresh kernel, then `make release`"


@each_notebook
def test_no_output_is_an_error_or_a_warning(path: Path):
    wrong = [begins(cell) for cell in code(path) for output in cell.outputs
             if output.output_type == "error" or output.get("name") == "stderr"]  # fmt: skip
    assert not wrong


@each_notebook
def test_nothing_is_saved_that_differs_between_machines(path: Path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert "widgets" not in notebook["metadata"]
    assert "version" not in notebook["metadata"]["language_info"]
    assert not re.search(r"/(home|Users|root|work)/\w+/|/tmp/\w|ipykernel_\d+", text), "a path of one machine"
    assert "application/vnd.jupyter.widget-view+json" not in text
    assert all(set(cell["metadata"]) <= {"tags", "slideshow", "nbgrader", "jupyter", "deletable", "editable"}
               for cell in notebook["cells"])  # fmt: skip


@each_notebook
def test_every_picture_has_a_caption_and_words(path: Path):
    for cell in code(path):
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        captions = [output for output in cell.outputs if "text/markdown" in output.get("data", {})]
        panels = [output for output in pictures if output.output_type == "execute_result"]  # the picture that it leaves
        for output in pictures:
            alt = output.metadata.get("image/png", {}).get("alt", "")
            assert len(alt) > 30, f"{begins(cell)}: show(figure, caption=..., alt=...) gives a figure its words"
            assert alt in output.data["text/plain"]
        assert len(captions) >= len(pictures) - len(panels), f"{begins(cell)}: a picture has no caption"
    for image in re.findall(r"<img [^>]*>|!\[[^\]]*\]\(", prose(path)):
        assert re.search(r'alt="[^"]{20,}"|!\[[^\]]{20,}\]', image), f"{image} needs alternative text"


@each_notebook
def test_a_widget_has_a_static_twin(path: Path):
    """Widget state isn't saved, so readers on paper see the text of the widget; a figure must follow."""
    cells = code(path)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if re.search(r"^\w+_widget\(|LiveFigure\(", cell.source, re.MULTILINE):
            assert following is not None
            assert any("image/png" in output.get("data", {}) for output in following.outputs), begins(cell)


@each_notebook
def test_the_shape_of_a_notebook(path: Path):
    notebook, text = read(path), prose(path)
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1, "one title"
    assert re.search(r"(?i)\b(minutes?|seconds?)\b", text[:800]), "the time that it takes, near the top"
    opening = text[: text.index("\n## 1")] if "\n## 1" in text else text[:4000]
    assert re.search(r"(?i)you will be able to|able to|you can", opening), "what the reader will be able to do"
    assert re.search(r"(?i)the idea", opening), "the idea"
    assert re.search(r"^## (\d+\W+)?Exercises", text, re.MULTILINE)
    assert re.search(r"^## (\d+\W+)?What you saw", text, re.MULTILINE)
    assert re.search(r"^## (\d+\W+)?References", text, re.MULTILINE)
    assert re.search(r"(?i)arxiv\W+\d{4}\.\d{4,5}|arxiv\.org|doi\.org", text[text.index("References") :]), (
        "references that lead somewhere"
    )
    assert "](README.md)" in text, "a link back to the map"
    own = NOTEBOOKS.index(path)
    if own + 1 < len(NOTEBOOKS):
        assert f"]({NOTEBOOKS[own + 1].name})" in text, "a link to the next notebook"


@each_notebook
def test_no_formula_escapes_a_letter_in_text(path: Path):
    """MathJax takes the words of a text as they stand, and shows the backslash before an underscore: use mathrm."""
    assert not re.findall(r"\\text\w*\{[^}]*\\_", prose(path))


@each_notebook
def test_it_can_be_shown_as_slides(path: Path):
    slides = [c for c in read(path).cells if c.metadata.get("slideshow", {}).get("slide_type") == "slide"]
    assert len(slides) >= 4


@each_notebook
def test_an_output_that_nbval_ignores_is_asserted(path: Path):
    """The tag switches the comparison off; this cell, the one before or one of the next two must state the claim."""
    cells, bare = code(path), []
    for index, cell in enumerate(cells):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            is_figure = re.search(r"^show\(", cell.source, re.MULTILINE) is not None
            near = "\n".join(c.source for c in cells[max(0, index - 1) : index + 3])
            if not is_figure and not NBVAL_SAVES.search(near):
                bare.append(begins(cell))
    assert not bare
    num_ignored = sum("nbval-ignore-output" in cell.metadata.get("tags", []) for cell in cells)
    assert num_ignored <= sum(bool(cell.outputs) for cell in cells) / 4, "compare at least three outputs in four"
    assert not any("nbval-skip" in c.metadata.get("tags", []) or "# NBVAL_" in c.source for c in cells)
    assert not any("raises-exception" in c.metadata.get("tags", []) for c in cells)


@each_notebook
def test_exercises_are_complete(path: Path):
    """Two to four exercises: a solution between marks, a locked check after it, a folded hint before it."""
    notebook = read(path)
    solutions = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")]
    checks = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade")]
    number = path.stem.split("_")[0]
    assert 2 <= len(solutions) <= 4
    assert [c.metadata.nbgrader.grade_id for c in solutions] == [f"ex-{number}-{i + 1}" for i in range(len(solutions))]
    assert [c.metadata.nbgrader.grade_id for c in checks] == [f"check-{number}-{i + 1}" for i in range(len(solutions))]
    for cell in solutions:
        assert cell.source.count("### BEGIN SOLUTION") == cell.source.count("### END SOLUTION") >= 1
        assert cell.metadata.nbgrader.schema_version == 3
        assert not cell.metadata.nbgrader.locked
    for cell in checks:
        assert re.search(r"\bcheck_\w+\(", cell.source)
        assert cell.metadata.nbgrader.locked
        assert cell.metadata.nbgrader.points > 0
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert printed.startswith("Right: "), begins(cell)
    assert prose(path).count("<details>") >= len(solutions), "each exercise has a folded hint"
    headings = re.findall(r"^#+ Exercise \d.*$", prose(path), re.MULTILINE)
    assert len(headings) == len(solutions)
    without = [heading for heading in headings if not re.search(r" \((easy|medium|hard), \d+ minutes\)$", heading)]
    assert not without, "an exercise says how difficult it is, and how long it takes"


def test_every_part_has_an_open_task_with_ten_points():
    _, *parts = MAP.read_text(encoding="utf-8").split("\n## Twelve beliefs\n")[0].split("\n## Part ")
    for part in parts:
        names = set(re.findall(r"\((\d\d\w+\.ipynb)\)", part))
        tasks = [text for name in names for text in prose(FOLDER / name).split("\n### Open task. ")[1:]]
        assert tasks, f"part {part[:6]} has none"
        for text in tasks:
            rubric = text.split("\n#")[0].split("| points | for |")[1]
            assert sum(map(int, re.findall(r"^\| (\d+) \|", rubric, re.MULTILINE))) == 10, text[:40]


def test_there_are_twenty_exercises_and_planted_bugs():
    counts = {p.stem: sum(bool(c.metadata.get("nbgrader", {}).get("solution")) for c in code(p)) for p in NOTEBOOKS}
    assert sum(counts[name] for name in PART_ONE) >= 20, counts
    for name in ("03_loss_and_gradient", "04_log_probabilities", "05_reference_cache"):
        assert re.search(r"(?i)planted bug", prose(FOLDER / f"{name}.ipynb"))


@pytest.mark.parametrize("path", [*NOTEBOOKS, MAP], ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path):
    assert not broken_links(path)


def broken_links(path: Path) -> list[str]:
    """Relative links whose file or heading doesn't exist. Other sites aren't asked: tests need no network."""
    text, broken = prose(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8"), []
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = unquote(target).partition("#")
        there = (path.parent / name).resolve() if name else path
        if not there.exists() or (anchor and not has_heading(there, anchor)):
            broken.append(target)
    return broken


def has_heading(path: Path, anchor: str) -> bool:
    if path.suffix not in (".md", ".ipynb"):
        return True
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else prose(path)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = {re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h)).strip() for h in headings}
    return anchor.lower() in {h.lower().replace(" ", "-") for h in plain}


def test_the_map_lists_every_notebook_in_order():
    linked = re.findall(r"\((\d\d\w+\.ipynb)\)", MAP.read_text(encoding="utf-8"))
    assert list(dict.fromkeys(linked)) == [path.name for path in NOTEBOOKS]


def beliefs_on_the_map() -> str:
    return MAP.read_text(encoding="utf-8").split("\n## Twelve beliefs\n")[1].split("\n## ")[0]


def test_beliefs_are_where_the_map_says():
    """A row of the map's table of beliefs names notebooks; each must state the belief and overturn it at its end."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|", beliefs_on_the_map(), re.MULTILINE)
    places = {int(number): re.findall(r"\((\d\d\w+\.ipynb)(?:#[^)]*)?\)", where) for number, _, where in rows}
    assert list(places) == list(range(1, 13))
    for number, names in places.items():
        if number in (1, 2, 3, 4, 5, 6, 7, 8, 11):
            assert names, f"belief {number} belongs to part one"
        for name in names:
            text = prose(FOLDER / name)
            summary = text[text.index("What you saw") :]
            assert re.search(rf"\*\*Belief {number}\b", text), f"{name} doesn't state belief {number}"
            assert re.search(rf"Belief {number}\b", summary), f"the summary of {name} doesn't name belief {number}"


def test_every_belief_in_a_notebook_is_on_the_map():
    rows = re.findall(r"^\| (\d+) \| .+? \| (.+?) \|", beliefs_on_the_map(), re.MULTILINE)
    on_the_map = {(int(number), name) for number, where in rows for name in re.findall(r"(\d\d\w+\.ipynb)", where)}
    stated = {(int(n), p.name) for p in NOTEBOOKS for n in re.findall(r"\*\*Belief (\d+)[.,]", prose(p))}
    assert stated <= on_the_map


def test_every_sanitising_pair_is_read():
    """nbval drops a pair without a word where a space after `replace:` is missing."""
    from nbval.plugin import get_sanitize_patterns

    text = (ROOT / "tests" / "nbval_sanitize.cfg").read_text()
    assert len(dict(get_sanitize_patterns(text))) == len(re.findall(r"^regex:", text, re.MULTILINE)) == 1


def test_make_test_runs_nbval_strictly_over_all_notebooks():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^\t.*pytest notebooks \$\(NBVAL\)", makefile, re.MULTILINE)
    assert "--nbval --nbval-current-env --nbval-sanitize-with" in makefile
    assert "nbval-lax" not in makefile


def test_a_cell_that_prints_something_else_fails(tmp_path: Path):
    """The strict comparison that the course relies on, tried on a notebook whose output is not what it prints."""
    cell = nbformat.v4.new_code_cell("print(1 + 1)", execution_count=1)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for printed, status in (("2\n", 0), ("3\n", 1)):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)]
        path = tmp_path / f"prints_{status}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
        done = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, done.stdout + done.stderr


# The quickest notebook always; all of them with --run-slow, since nbval runs each of them in `make test` as it is.
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem == "01_preferences" else pytest.mark.slow) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs_from_another_folder(path: Path, tmp_path: Path, request: pytest.FixtureRequest):
    """As a plain script under `jupyter nbconvert --execute`, with the kernel in a folder that holds nothing else."""
    if request.node.get_closest_marker("slow") and not request.config.getoption("--run-slow"):
        pytest.skip("minutes; --run-slow runs it")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "out.ipynb", copy.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [p for p in tmp_path.iterdir() if p.name not in (copy.name, "out.ipynb", "cache")], "it left files"
    assert len(code(tmp_path / "out.ipynb")) == len(code(path))
