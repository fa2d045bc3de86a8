"""The course in other languages: the same cells and outputs, nothing out of date, links and formulas as in English."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from markdown_it import MarkdownIt

from dpo_lab.course.exercises.release import released
from dpo_lab.course.exercises.translations import translated, with_links
from tests.test_notebooks import FOLDER, NOTEBOOKS, broken_links, read
from tests.test_student_notebooks import cell as code_cell

TEXTS = sorted(FOLDER.glob("*/[0-9]*.md"))
CHINESE = "[\u4e00-\u9fff]"

each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def english(path: Path) -> Path:
    """The notebook that a file of texts belongs to."""
    return FOLDER / f"{path.stem}.ipynb"


def cells(path: Path) -> list[tuple[str, str]]:
    """The text cells of a notebook that are translated, each beside its translation."""
    ours = read(english(path))
    pairs = zip(ours.cells, translated(ours, path)[0].cells, strict=True)
    return [(one.source, other.source) for one, other in pairs if one.source != other.source]


def terms(folder: Path) -> list[tuple[str, str]]:
    """The words of a language's table of terms: what to look for in the English, and what must stand in the text."""
    rows = re.findall(r"^\| ([a-z][^|]+) \| ([^|]+) \|$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    return [
        (word, re.sub("（.*", "", other)) for words, other in rows for word in re.sub(r" \(.*", "", words).split(", ")
    ]


@each_text
def test_no_text_is_missing_or_out_of_date(path: Path):
    """A mark with nothing below it says that a cell stays English for now: CONTRIBUTING.md, Translations."""
    _, problems = translated(read(english(path)), path)
    assert not problems, "\n".join(["these texts want a translator (CONTRIBUTING.md, Translations):", *problems])


@each_text
def test_no_mark_stands_twice(path: Path):
    marks = re.findall(r"^<!-- (.*) -->$", path.read_text(encoding="utf-8"), re.M)
    assert len(marks) == len(set(marks))
    assert all(re.fullmatch("[0-9a-f]{8}", mark) for mark in marks)


@each_text
def test_cells_code_and_outputs_are_those_of_the_english_notebook(path: Path):
    name = f"{path.stem}.ipynb"
    for version in ("", "student"):
        one, other = read(FOLDER / version / name), read(path.parent / version / name)
        assert one.metadata == other.metadata
        for own, cell in zip(one.cells, other.cells, strict=True):
            assert {**own, "source": ""} == {**cell, "source": ""}  # type, id, tags, marks for grading, outputs
            if own.cell_type == "code":
                assert own.source == cell.source


def test_no_notebook_is_there_without_its_texts():
    assert {path for path in FOLDER.glob("[a-z]*/**/[0-9]*.ipynb") if path.parent != FOLDER / "student"} == {
        folder / f"{path.stem}.ipynb" for path in TEXTS for folder in (path.parent, path.parent / "student")
    }


@each_text
def test_links_lead_somewhere(path: Path):
    assert not broken_links(path.with_suffix(".ipynb"))
    assert not broken_links(path.parent / "student" / f"{path.stem}.ipynb")
    assert not broken_links(path.parent / "README.md")


@pytest.mark.parametrize("folder", sorted({path.parent for path in TEXTS}), ids=lambda folder: folder.name)
def test_the_map_of_a_language_lists_its_notebooks(folder: Path):
    linked = re.findall(r"\(((?:student/)?\d\w+\.ipynb)\)", (folder / "README.md").read_text(encoding="utf-8"))
    names = [f"{path.stem}.ipynb" for path in TEXTS if path.parent == folder]
    assert sorted(set(linked)) == sorted([*names, *(f"student/{name}" for name in names)])


@each_text
def test_a_text_keeps_links_formulas_code_percentages_and_structure(path: Path):
    patterns = {
        "links": r"\]\(([^)\s]+)\)",
        "code": r"`[^`]+`",
        "formulas": r"\$\$.*?\$\$|\$[^$]+\$",
        "headings": r"^#+ ",
        "percentages": r"\d+(?:\.\d+)? ?\\?%",
        "folded parts": r"</?details>|</?summary>",
        "rows and lists": r"^(?:- |\|)",
    }
    for ours, theirs in cells(path):
        for name, pattern in patterns.items():
            found = [sorted(re.findall(pattern, text, re.M | re.S)) for text in (ours, theirs)]
            if name == "formulas":  # in which words may be translated, and spaces don't count
                found = [[re.sub(r"\\text\{[^{}]*\}|\s", "", one) for one in side] for side in found]
                found = [
                    sorted(re.sub(r"_\{.*?\}", "", one) if "underbrace" in one else one for one in side)
                    for side in found
                ]
            if name == "percentages":
                found = [[one.replace(" ", "") for one in side] for side in found]
            assert found[0] == found[1], f"{path.stem}, {ours[:40]!r}: {name}"


@each_text
def test_terms_are_those_of_the_table(path: Path):
    plain = r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|## References.*"
    for ours, theirs in cells(path):
        text = re.sub(plain, "", ours, flags=re.S)
        for word, other in terms(path.parent):
            if re.search(rf"\b{word}(e?s)?\b", text, re.I):
                assert any(one in theirs for one in other.split("、")), (
                    f"{path.stem}, {ours[:40]!r}: {word} is {other} in the table of README.md"
                )


@each_text
def test_markdown_shows_as_it_is_meant(path: Path):
    """Stars next to full-width punctuation may stay stars, and a line's end between two ideographs becomes a space."""
    for _, theirs in cells(path):
        prose = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$", "x", theirs, flags=re.S)
        shown = re.sub(r"<code>.*?</code>", "", MarkdownIt("commonmark").enable("table").render(prose))
        assert "*" not in shown, re.findall(".{0,20}[*].{0,20}", shown)
        assert not re.search(rf"{CHINESE}\n{CHINESE}", theirs)
        assert not re.search(rf"{CHINESE}[,;:?!]|[,;:?!]{CHINESE}", theirs), "full-width punctuation between ideographs"
        assert not re.search(rf"{CHINESE}[A-Za-z0-9$`]|[A-Za-z0-9$`]{CHINESE}", prose), (
            "a space around words of Latin letters"
        )


# How it is made.


def notebook(*texts: str) -> Any:
    made = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_markdown_cell, texts), code_cell("x = 1")])
    for index, cell in enumerate(made.cells):
        cell.id = f"cell-{index:02d}"
    return made


def test_a_changed_cell_shows_its_english_until_somebody_translates_it(tmp_path: Path):
    path = tmp_path / "00_a.md"
    path.write_text("<!-- 185f8db3 -->\n你好\n\n<!-- 78ae647d -->\n")
    made, problems = translated(notebook("Hello", "World"), path)
    assert [cell.source for cell in made.cells] == ["你好", "World", "x = 1"]  # the second mark has no text on purpose
    assert not problems
    made, problems = translated(notebook("World", "Hello", "Hello!"), path)  # another order is no other text
    assert [cell.source for cell in made.cells][:3] == ["World", "你好", "Hello!"]
    assert problems == ["00_a.md, <!-- 334d016f -->: no text for cell-02, 'Hello!'"]
    _, problems = translated(notebook("Hello"), path)
    assert problems == ["00_a.md, <!-- 78ae647d -->: no such cell"]


def test_links_lead_to_the_same_language_where_it_has_the_page(tmp_path: Path):
    for name in ("01_a.md", "README.md"):
        (tmp_path / name).write_text("")
    text = "[a](01_a.ipynb#b) [n](04_n.ipynb) [map](README.md) [p](../dpo_lab/README.md) [o](https://a.org) [h](#h)"
    solved = with_links(notebook(text), tmp_path, is_student=False).cells[0].source
    assert solved == text.replace("(04", "(../04").replace("(../d", "(../../d")
    text = text.replace("(../d", "(../../d")  # as the student version has it
    student = with_links(notebook(text), tmp_path, is_student=True).cells[0].source
    assert student == text.replace("(04", "(../../student/04").replace("(README", "(../README").replace(
        "(../../d", "(../../../d"
    )


def test_a_release_writes_both_versions_in_each_language():
    for path in TEXTS:
        assert {path.with_suffix(".ipynb"), path.parent / "student" / f"{path.stem}.ipynb"} <= set(
            released(english(path))
        )
    assert {english(path) for path in TEXTS} <= set(NOTEBOOKS)
