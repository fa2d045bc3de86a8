"""Every figure of the course as files for slides: `make figures`, or `python -m dpo_lab.course.figures 03 07`.

The notebooks are run from top to bottom (numbers choose some of them), and whatever figure they show is written to
`build/figures/NOTEBOOK/` under its number and title: as PNG that fills a slide of 1,920 × 1,080 pixels, and as SVG,
whose description holds caption and alternative text. The notebooks themselves stay as they are.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from dpo_lab.course.exercises.release import course_folder
from dpo_lab.workbench.plots.captions import Shown
from dpo_lab.workbench.plots.style import to_png

SLIDE = (1920, 1080)  # pixels


def save(shown: Shown, folder: Path) -> str:
    """Write a figure as the next PNG and SVG of a folder. Returns the name that both files have."""
    above = [shown.figure.get_suptitle(), *(ax.get_title(at) for ax in shown.figure.axes for at in ("left", "center"))]
    title = next(filter(None, above), shown.caption)
    words = re.sub(r"\W+", "-", title.lower()).strip("-")[:60].rstrip("-")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{len(list(folder.glob('*.svg'))) + 1:02d}-{words}"
    dpi = min(pixels / inches for pixels, inches in zip(SLIDE, shown.figure.get_size_inches(), strict=True))
    (folder / f"{name}.png").write_bytes(to_png(shown.figure, dpi=int(dpi)))
    about = {"Title": title, "Description": f"{shown.caption} {shown.alt}", "Date": None}
    shown.figure.savefig(folder / f"{name}.svg", metadata=about)
    return name


def save_what_is_shown(folder: str) -> None:
    """From here on each figure that this kernel shows is written to a folder too: the first cell of a run."""
    display = Shown._ipython_display_

    def save_and_display(shown: Shown) -> None:
        save(shown, Path(folder))
        display(shown)

    Shown._ipython_display_ = save_and_display  # pyright: ignore[reportAttributeAccessIssue]


def figures_of(path: Path, folder: Path) -> int:
    """Run a notebook and write its figures to a folder, whose old ones go. Returns how many there are."""
    import nbformat
    from nbclient import NotebookClient

    for old in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        old.unlink()
    notebook: Any = nbformat.read(path, as_version=4)
    hook = f"from dpo_lab.course.figures import save_what_is_shown as _save; _save({str(folder)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(hook))
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()
    return len(list(folder.glob("*.svg")))


def main(argv: list[str] | None = None) -> None:
    """Write the figures of the notebooks that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="of notebooks, such as 03; without any, all")
    parser.add_argument("--out", type=Path, default=Path("build", "figures"))
    arguments = parser.parse_args(argv)
    known = {path.stem.split("_")[0]: path for path in sorted(course_folder().glob("[0-9][0-9]*.ipynb"))}
    if unknown := set(arguments.numbers) - set(known):
        raise SystemExit(f"no notebook has the number {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for number in arguments.numbers or known:
        folder = (arguments.out / known[number].stem).resolve()
        print(f"{known[number].stem}: {figures_of(known[number], folder)} figures in {folder}", flush=True)


if __name__ == "__main__":
    main()
