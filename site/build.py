"""Builds the site: python site/build.py. Gathers the sources, lets Sphinx build them, checks every link.

Sphinx takes a warning for an error, so a page that isn't there or a reference to nothing stops the build; `links.py`
looks at what was built, for links that lead nowhere and for anything that a browser would fetch from elsewhere.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import links
import sources
from sphinx.cmd.build import build_main

BUILD = sources.ROOT / "build"
OUTPUT = BUILD / "site"


def main() -> int:
    began = time.perf_counter()
    gathered = BUILD / "site-sources"
    sources.gather(gathered)
    print(f"sources gathered in {time.perf_counter() - began:.0f} s")
    if sources.repository() is None:
        print("no address of a repository: the pages have no buttons for Colab and Binder. It is `Repository` under "
              "[project.urls] in pyproject.toml, or the variable GITHUB_REPOSITORY=OWNER/NAME")  # fmt: skip
    failed = build_main([
        "--nitpicky", "--fail-on-warning", "--keep-going", "--quiet", "--builder", "html",
        "--conf-dir", str(sources.SITE), "--doctree-dir", str(BUILD / "site-doctrees"), str(gathered), str(OUTPUT),
    ])  # fmt: skip
    if failed:
        return failed
    problems = links.problems(OUTPUT)
    for problem in problems:
        print(problem, file=sys.stderr)
    pages = sum("_static" not in path.parts for path in OUTPUT.rglob("*.html"))
    size = sum(path.stat().st_size for path in OUTPUT.rglob("*") if path.is_file())
    print(f"{pages} pages, {size / 2**20:.0f} MiB, {len(problems)} broken links, {time.perf_counter() - began:.0f} s: "
          f"{OUTPUT.relative_to(Path.cwd()) if OUTPUT.is_relative_to(Path.cwd()) else OUTPUT}")  # fmt: skip
    print(f"look at it: python3 -m http.server --directory {OUTPUT}, then http://localhost:8000")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
