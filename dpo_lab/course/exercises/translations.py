"""The course in other languages: its notebooks with text cells of their own. No code and no output is written twice.

`notebooks/LANGUAGE/NN_name.md` holds the texts of a notebook, each under a mark such as `<!-- 1f0a3c92 -->`: the first
digits of the SHA-256 of the English cell. Where the English was changed since, no mark fits, and the notebook shows the
English. A mark without a text below it says that a cell stays English for now.
"""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import Any


def translated(notebook: Any, path: Path) -> tuple[Any, list[str]]:
    """The notebook with its texts from a file, and a line for each that is missing, or translates no cell any more."""
    notebook, problems = copy.deepcopy(notebook), []
    _, *parts = re.split(r"^<!-- ([0-9a-f]{8}) -->$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    unused = set(texts := dict(zip(parts[::2], parts[1::2], strict=True)))
    for cell in [cell for cell in notebook.cells if cell.cell_type == "markdown"]:
        mark = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        if mark not in texts:
            problems.append(f"{path.name}, <!-- {mark} -->: no text for {cell.id}, {cell.source[:40]!r}")
        cell.source = texts.get(mark, "").strip() or cell.source
        unused.discard(mark)
    return notebook, [*problems, *(f"{path.name}, <!-- {mark} -->: no such cell" for mark in sorted(unused))]


def with_links(notebook: Any, folder: Path, *, is_student: bool) -> Any:
    """The notebook with its links as they are right in a language's folder, or in `student` below it.

    A link to a notebook or to the map leads to the one in this language, and to the English one where there is none.
    """

    def one(match: re.Match[str]) -> str:
        target = match[1]
        is_own = re.match(r"\d\d\w*\.ipynb|README\.md", target)
        if is_own and (folder / target.partition("#")[0]).with_suffix(".md").is_file():
            return f"](../{target})" if is_student and target.startswith("README") else match[0]
        return f"](../../student/{target})" if is_own and is_student else f"](../{target})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", one, cell.source)
    return notebook
