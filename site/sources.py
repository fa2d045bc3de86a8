"""Gathers what Sphinx reads into one folder that mirrors the repository: chapters, pages, figures, reference.

Nothing of the repository is changed. Chapters are the notebooks as they are committed, with their outputs, but for
what a page needs and a notebook doesn't: a number in the title, links under it, solutions folded behind their stub,
alternative texts where the theme looks for them. Code is not run.
"""

from __future__ import annotations

import copy
import html
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from figures import FIGURES
from nbformat import NotebookNode

from dpo_lab.course.exercises.release import BEGIN, END, student_version
from dpo_lab.workbench.doctor import findings, reading
from dpo_lab.workbench.plots.style import to_png

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "SECURITY.md", "notebooks/README.md",
         "dpo_lab/README.md", "dpo_lab/workbench/README.md", "data/README.md")  # fmt: skip
"""Pages of the repository that become pages of the site, beside those in `text/` and the results in `data/results`."""

PANEL = re.compile(r"^(LiveFigure|Cockpit|SweepPanel|Labeller|Arena)\(")
"""How a panel prints itself: it needs a kernel, and the page says so in its place."""

WORDS = {
    "": {"code": "en", "language": "English", "notebook": "Notebook", "student": "Without solutions",
         "a solution": "A solution", "hide it": "Hide the solution"},
    "zh": {"code": "zh-CN", "language": "中文", "notebook": "下载 notebook", "student": "下载练习版",
           "a solution": "参考答案", "hide it": "收起答案"},
}  # fmt: skip
"""What a chapter's page says in each language of the course, by its folder in `notebooks`."""

_LINK = re.compile(r"\]\((?!https?:|#|mailto:|/)([^)\s#]+)(#[^)\s]*)?\)")


def project() -> Mapping[str, Any]:
    """The metadata of the project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def repository() -> str | None:
    """The address of the repository, without a slash at the end; None where nobody has said it.

    It stands in one place, `Repository` under `[project.urls]` in pyproject.toml; GitHub's own runs know it without.
    """
    address = project().get("urls", {}).get("Repository")
    if address is None and (name := os.environ.get("GITHUB_REPOSITORY")):
        address = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
    return address.rstrip("/") if address else None


def home() -> str:
    """Where the site is published, with a slash at the end: `Documentation` under `[project.urls]`, or GitHub's Pages.

    Where neither is known it is the address at which `python -m http.server` shows it.
    """
    address = project().get("urls", {}).get("Documentation")
    if address is None and (found := re.match(r"https://github\.com/([^/]+)/([^/]+)$", repository() or "")):
        owner, name = found.groups()
        address = f"https://{owner.lower()}.github.io/{name}/"
    return f"{(address or 'http://localhost:8000').rstrip('/')}/"


def notebooks(language: str = "") -> list[Path]:
    """The notebooks of the course, in order; with `language`, such as "zh", those translated."""
    return sorted((ROOT / "notebooks" / language).glob("[0-9][0-9]*.ipynb"))


def gather(target: Path) -> None:
    """Write all sources into `target`, which need not exist; what is there and no longer a source goes."""
    written = Written(target)
    for path in sorted((SITE / "text").glob("*.md")):
        text = _with_doctor(_with_students(path.read_text(encoding="utf-8")))
        written.page(path.name, _with_figures(text, written))
    for name in (*PAGES, *(f"notebooks/{language}/README.md" for language in WORDS if language)):
        written.page(name, (ROOT / name).read_text(encoding="utf-8"))
    for path in sorted((ROOT / "data" / "results").glob("*.md")):
        written.page(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for path in [path for language in WORDS for path in notebooks(language)]:
        read = nbformat.read(path, as_version=4)
        page = path.relative_to(ROOT).as_posix()
        name = page.removeprefix("notebooks/").removesuffix(".ipynb")
        made = chapter(read, name, lambda text, page=page: written.links(text, page))
        written.text(page, nbformat.writes(made) + "\n")
        for file in (path, path.parent / "student" / path.name):
            written.copy(file, f"downloads/{file.relative_to(ROOT).as_posix()}")
    for name, text in reference_pages():
        written.text(name, text)
    for path in mathjax():
        written.copy(path, f"static/mathjax/{path.name}")
    written.sweep()


def mathjax() -> tuple[Path, Path]:
    """All of MathJax in one file, and its licence, as a package brings them along. ValueError where it is missing."""
    package = find_spec("mathjax")
    if package is None or not package.submodule_search_locations:
        raise ValueError("MathJax is not installed; pip install 'dpo-lab[site]', as make site does")
    folder = Path(package.submodule_search_locations[0]) / "static" / "mathjax"
    return folder / "es5" / "tex-svg.js", folder / "LICENSE"


class Written:
    """A folder of sources; a file that is already there with the same content is left, so Sphinx won't read it anew."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.names: set[str] = set()

    def text(self, name: str, text: str) -> None:
        self.bytes(name, text.encode())

    def bytes(self, name: str, content: bytes) -> None:
        path = self.target / name
        self.names.add(name)
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def copy(self, path: Path, name: str) -> None:
        self.bytes(name, path.read_bytes())

    def page(self, name: str, text: str) -> None:
        """A page of Markdown, its links as the site needs them."""
        self.text(name, self.links(text, name))

    def links(self, text: str, page: str) -> str:
        """Relative links of a page: to pages as they are, to modules by their reference, to files as downloads."""

        def one(match: re.Match[str]) -> str:
            target, anchor = match[1], match[2] or ""
            path = Path(os.path.normpath((ROOT / page).parent / target))
            name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            if name in ("notebooks/student", "notebooks/student/README.md"):
                return "](/run_it.md#the-students-version)"
            if re.match(r"notebooks/\w+/student/", name):  # a chapter's page folds its solutions
                target = target.replace("student/", "")
            if name.startswith("dpo_lab/") and path.suffix == ".py" and path.is_file():
                return f"](/reference/{page_of(name)}.md)"
            if path.is_file() and path.suffix not in (".md", ".ipynb"):
                self.copy(path, name)
            return f"]({target}{anchor})"

        parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.MULTILINE | re.DOTALL)
        # A link's own text may be code: what stands in backticks is put back before links are looked for.
        kept = {f"\0{i}\0": part for i, part in enumerate(parts) if i % 2}
        joined = "".join(f"\0{i}\0" if i % 2 else part for i, part in enumerate(parts))
        joined = _LINK.sub(one, joined)
        for mark, part in kept.items():
            joined = joined.replace(mark, part)
        return joined

    def sweep(self) -> None:
        """Take out what an earlier build wrote and this one did not."""
        for path in [path for path in self.target.rglob("*") if path.is_file()]:
            if path.relative_to(self.target).as_posix() not in self.names:
                path.unlink()


# Chapters.


def chapter(notebook: NotebookNode, name: str, mended_links: Callable[[str], str]) -> NotebookNode:
    """A notebook as a page: see above. `name` is its file's in `notebooks`, without the ending, such as
    "zh/00_quickstart"; `mended_links` mends a text's."""
    student, words = student_version(notebook), WORDS[name.rpartition("/")[0]]
    cells: list[NotebookNode] = []
    for cell, stub in zip(copy.deepcopy(notebook.cells), student.cells, strict=True):
        if cell.cell_type == "markdown":
            cell.source = mended_links(_open_details(cell.source))
        else:
            _dress_outputs(cell, name.rpartition("/")[2])
        if not cells:
            cell.source = _with_number_and_links(cell.source, name)
        if cell.metadata.get("nbgrader", {}).get("solution"):
            stub.metadata, stub.id = NotebookNode(), f"{cell.id}-stub"
            cells.append(stub)
            cell.source = "\n".join(one for one in cell.source.split("\n") if BEGIN not in one and END not in one)
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
            cell.metadata.mystnb = {"code_prompt_show": words["a solution"], "code_prompt_hide": words["hide it"]}
        cells.append(cell)
    notebook = copy.deepcopy(notebook)
    notebook.cells = cells
    return notebook


def _with_number_and_links(source: str, name: str) -> str:
    """The first cell: `# Title` becomes `# 3. Title`, and under it stand the links of the chapter."""
    title, _, rest = source.partition("\n")
    assert title.startswith("# "), f"{name} must begin with its title, got {title!r}"
    links = "\n".join(f"- {link}" for link in chapter_links(name))
    number = number_of(name.rpartition("/")[2])
    return f"# {number}. {title[2:]}\n\n:::{{container}} chapter-links\n{links}\n:::\n{rest}"


def chapter_links(name: str) -> list[str]:
    """Under a chapter's title: where it opens, its files, its figures that move, other languages. In Markdown."""
    path, address = f"notebooks/{name}.ipynb", repository()
    folder, _, stem = name.rpartition("/")
    words, student = WORDS[folder], f"{name.removesuffix(stem)}student/{stem}.ipynb"
    links = []
    if found := re.match(r"https://github\.com/([^/]+/[^/]+)$", address or ""):
        links += [
            f"[Open in Colab](https://colab.research.google.com/github/{found[1]}/blob/main/{path})",
            f"[Open in Binder](https://mybinder.org/v2/gh/{found[1]}/main?urlpath=lab/tree/{path})",
        ]
    links += [
        f"{{download}}`{words['notebook']} </downloads/notebooks/{name}.ipynb>`",
        f"{{download}}`{words['student']} </downloads/notebooks/{student}>`",
    ]
    links += [
        f"[Try it: {make().title}](#figure-{figure})" for figure, (make, belongs) in FIGURES.items() if belongs == stem
    ]
    for language, other in WORDS.items():
        there = f"notebooks/{language}/{stem}.ipynb".replace("//", "/")
        links += [f"[{other['language']}](/{there})"] if language != folder and (ROOT / there).is_file() else []
    return links


def _open_details(source: str) -> str:
    """Blank lines inside folded parts, so that what stands in them is read as Markdown."""
    source = re.sub(r"(</summary>)[ \t]*(?=\S)", r"\1\n\n", source)
    source = re.sub(r"(</summary>)\n(?!\n)", r"\1\n\n", source)
    return re.sub(r"(?<!\n)\n?(</details>)", r"\n\n\1", source)


def _dress_outputs(cell: NotebookNode, name: str) -> None:
    """Alternative texts for pictures, and a word where a panel would stand."""
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
            cell.metadata.mystnb = {"image": {"alt": alt}}
        if "image/png" in data or "text/html" in data or not PANEL.match(data.get("text/plain", "")):
            continue
        own = [figure for figure, (_, belongs) in FIGURES.items() if belongs == name]
        moves = f" [Figures of this chapter that move without one](#figure-{own[0]})." if own else ""
        what = f"`{data['text/plain']}`"
        data["text/markdown"] = f"*A panel, which needs a running kernel:* {what}.{moves}"


# Figures.


def _with_figures(text: str, written: Written) -> str:
    """The page "Try it", with a figure in the place of each line `<!-- figure: NAME -->`."""

    def one(match: re.Match[str]) -> str:
        name = match[1]
        make, belongs = FIGURES[name]
        figure = make()
        picture, alt = figure.still()
        written.bytes(f"static/stills/{name}.png", to_png(picture, dpi=110))
        data = _as_script(figure.as_json())
        still = f'<img src="_static/stills/{name}.png" alt="{html.escape(alt)}">'
        return (
            f'```{{raw}} html\n<div class="moving" id="figure-{name}-frame">\n'
            f'<script type="application/json">{data}</script>\n<noscript>{still}</noscript>\n'
            f"</div>\n```\n\nFrom [chapter {number_of(belongs)}](/notebooks/{belongs}.ipynb)."
        )

    return re.sub(r"^<!-- figure: ([\w-]+) -->$", one, text, flags=re.MULTILINE)


def _with_students(text: str) -> str:
    """The page "Run it", with the list of the student versions in the place of its mark."""
    rows = [
        f"- {number_of(path.stem)}: {{download}}`{title_of(path)} </downloads/notebooks/student/{path.name}>`"
        for path in notebooks()
    ]
    text = text.replace("https://github.com/OWNER/REPOSITORY", repository() or "https://github.com/OWNER/REPOSITORY")
    return text.replace("<!-- student versions -->", "\n".join(rows))


def number_of(name: str) -> str:
    """The number of a notebook by its file's name: 03_loss_and_gradient → 3, 02b_what_follows → 2b."""
    return name.split("_")[0].lstrip("0") or "0"


def _with_doctor(text: str) -> str:
    """The page of the doctor: what its script needs, and the table of all that it knows."""
    numbers = [(name, value) for name, value in vars(findings).items() if isinstance(value, int | float)]
    data = {
        "limits": dict(numbers), "causes": {name: asdict(cause) for name, cause in findings.CAUSES.items()},
        "without_reference": findings.WITHOUT_REFERENCE, "known": sorted(reading.KNOWN), "aliases": reading.ALIASES,
        "steps": reading.STEPS,
    }  # fmt: skip
    page = (
        '```{raw} html\n<div class="doctor">'
        '<label for="doctor-file">Choose the files of a run, or drop them here.</label>'
        '<input id="doctor-file" type="file" multiple accept=".json,.jsonl,.ndjson,.csv">'
        '<div id="doctor-findings" aria-live="polite"></div></div>\n'
        f'<script type="application/json" id="doctor-data">{_as_script(data)}</script>\n'
        '<script src="_static/doctor.js" defer></script>\n```'
    )
    rows = ["| seen in the log | what it usually means | what to try | chapter |", "|---|---|---|---|"]
    for cause in findings.CAUSES.values():
        chapter_link = f"[{number_of(cause.notebook)}](/notebooks/{cause.notebook}.ipynb)"
        rows.append(f"| {cause.title} | {cause.means} | {cause.remedy} | {chapter_link} |")
    return text.replace("<!-- doctor -->", page).replace("<!-- findings -->", "\n".join(rows))


def _as_script(data: Any) -> str:
    """Data for a script of the page; nothing in it may end the element that it stands in."""
    whole = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return whole.replace("</", "<\\/")


def title_of(path: Path) -> str:
    """The title of a notebook."""
    return nbformat.read(path, as_version=4).cells[0].source.split("\n")[0].removeprefix("# ")


# The reference.


def rooms() -> list[tuple[str, str]]:
    """The rooms of the package with a line about each, in the order of the package's map."""
    text = (ROOT / "dpo_lab" / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \d+ \| \[?`([a-z_/.]+)`(?:\]\([^)]*\))? \| ([^|]*(?:\\\|[^|]*)*) \|", text, re.MULTILINE)


def page_of(name: str) -> str:
    """The reference's page of a file or folder of the package: dpo_lab/worlds/pocket/judge.py → worlds."""
    parts = Path(name.removeprefix("dpo_lab/")).with_suffix("").parts
    return "-".join(parts[:2] if parts[0] in ("workbench", "course") else parts[:1]).strip("_") or "dpo_lab"


def modules_of(room: str) -> list[tuple[str, bool]]:
    """The modules of a room, its face first: (name, whether it is the face of a folder)."""
    path = ROOT / "dpo_lab" / room
    inside = sorted(path.rglob("*.py"), key=lambda one: (one.parent, one.stem != "__init__"))
    files = [path] if path.is_file() else inside
    return [
        (".".join(one.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), one.stem == "__init__")
        for one in files
        if one.stem != "__main__"
    ]


def reference_pages() -> Iterator[tuple[str, str]]:
    """A page per room of the package, and one that lists them: (name, Markdown)."""
    names = [(room.rstrip("/"), about) for room, about in rooms()]
    listed = "\n".join(page_of(f"dpo_lab/{room}") for room, _ in names)
    index = (
        "# Reference\n\nEvery module of the package, room by room, from its own docstrings. Begin with [the map of the "
        "package](/dpo_lab/README.md): it says what lives where, and in which order to read.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    )
    yield "reference/index.md", index
    for room, about in names:
        # A folder's face only passes on what its modules define; they stand below it.
        body = "\n\n".join(
            f".. automodule:: {module}" + ("" if is_face else "\n   :members:\n   :member-order: bysource")
            for module, is_face in modules_of(room)
        )
        about = about.replace("\\|", "|")
        name = f"reference/{page_of(f'dpo_lab/{room}')}.md"
        yield name, f"# `{room}`\n\n{about}\n\n```{{eval-rst}}\n{body}\n```\n"
