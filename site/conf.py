"""How Sphinx builds the site; `build.py` calls it. No cell is run, and neither Sphinx nor a reader fetches anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_origin

SITE = Path(__file__).resolve().parent
sys.path[:0] = [str(SITE), str(SITE.parent)]  # the modules beside this file, and the package of this checkout

import sources  # noqa: E402
from docstrings import as_restructured_text  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

SOURCES = SITE.parent / "build" / "site-sources"

project = "DPO Lab"
release = version = sources.project()["version"]
author = "DPO Lab contributors"
copyright = "DPO Lab contributors, MIT licence"

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax", "sphinx_copybutton", "sphinx_sitemap",
    "sphinxext.opengraph",
]  # fmt: skip
exclude_patterns = ["downloads"]
nitpicky = True  # a reference to something that isn't there is an error, by `sphinx-build -W`
# Types in signatures are written as the code has them (Tensor, Path, names of this package's own types); only what
# a text refers to must be there.
nitpick_ignore_regex = [(r"py:.*", r".*")]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_update_mathjax = False
# Some notebooks have a ### without a ## above it; some names of types stand in two modules, and either is meant.
suppress_warnings = ["myst.header", "ref.python"]

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # what torch and others say of their own methods is theirs
add_module_names = False
viewcode_line_numbers = True
viewcode_follow_imported_members = False

html_theme = "sphinx_book_theme"
html_title = "DPO Lab"
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["static", str(SOURCES / "static")]
html_css_files = ["site.css"]
html_js_files = [("figures.js", {"defer": "defer"}), ("reading.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_baseurl = sources.home()
html_theme_options = {
    "use_download_button": False,  # under each title stand the notebook and the student's version
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    **({"repository_url": address, "use_repository_button": True} if (address := sources.repository()) else {}),
}
# What stands beside a link to a page: its title, its first words, and one picture for all (data/pictures.py draws it).
ogp_site_url = html_baseurl
ogp_image = "_static/card.png"
ogp_image_alt = "The training loss of a DPO run falls while the true reward of its answers rises"
ogp_social_cards = {"enable": False}
ogp_custom_meta_tags = ['<meta name="twitter:card" content="summary_large_image">']
sitemap_url_scheme = "{link}"
sitemap_show_lastmod = False
sitemap_excludes = ["search.html", "genindex.html"]

# All of MathJax in one file that stands in the site.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {
    "options": {"enableMenu": False, "processHtmlClass": "math", "ignoreHtmlClass": "mathjax_ignore|tex2jax_ignore"},
    "tex": {"inlineMath": [["\\(", "\\)"]], "displayMath": [["\\[", "\\]"]]},
}


def setup(app: Sphinx) -> None:
    def read_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
        lines[:] = as_restructured_text(lines)

    def skip(app: Sphinx, what: str, name: str, thing: object, is_skipped: bool, options: object) -> bool | None:
        # Of a type that carries notes for the command line autodoc writes the notes out, as markup that they aren't.
        return True if get_origin(thing) is Annotated else None

    def say_language(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
        # A browser chooses Chinese glyphs by it, and a screen reader its voice.
        language = next((one for one in sources.WORDS if one in Path(page).parts), "")
        context["language"] = sources.WORDS[language]["code"]

    app.connect("html-page-context", say_language)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-skip-member", skip)
