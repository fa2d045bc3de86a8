"""Looks at a built site: does every link within it lead somewhere, and does a page fetch anything from elsewhere?

Links to other sites are counted as links and not followed: no network is needed.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FETCHED = {"script": ("src",), "img": ("src", "srcset"), "source": ("src", "srcset"), "iframe": ("src",),
            "video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",)}  # fmt: skip
"""What a browser fetches by itself: element → attributes. Of `link` it depends on what it is for."""

_FETCHING_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch"}


class _Page(HTMLParser):
    """The targets and the links of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {key: value or "" for key, value in attrs}
        self.ids |= {own[key] for key in ("id", "name") if key in own}
        if tag in ("a", "area") and "href" in own:
            self.links.append(own["href"])
        for key in _FETCHED.get(tag, ()):
            if own.get(key):
                self.fetched.append(own[key].split()[0])
        if tag == "link" and set(own.get("rel", "").split()) & _FETCHING_RELATIONS:
            self.fetched.append(own.get("href", ""))
        self.fetched += re.findall(r"url\(\s*['\"]?([^'\")]+)", own.get("style", ""))


def problems(folder: Path) -> list[str]:
    """A line for each link within the site that leads nowhere, and for each thing that is fetched from elsewhere."""
    folder = folder.resolve()
    paths = sorted(path for path in folder.rglob("*.html") if "_static" not in path.parts)  # there lie templates
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in paths}
    if not pages:
        return [f"{folder}: there are no pages; build the site first"]
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.fetched and parts.scheme not in ("data", "blob"):
                    found.append(f"{name}: fetches {link} from elsewhere")
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_relative_to(folder) or not target.is_file():
                found.append(f"{name}: {link} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name}: {link} names a place that the page doesn't have")
    for path in sorted(folder.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)", text):
            found.append(f"{path.relative_to(folder)}: fetches {link} from elsewhere")
    return found
