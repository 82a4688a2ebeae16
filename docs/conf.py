"""How the documentation becomes a site: see CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

project = "cfs-tag"
author = "cfs-tag contributors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_site"]
myst_heading_anchors = 4
nitpicky = True
# what a command prints is no shell, though it stands in the same block
suppress_warnings = ["misc.highlighting_failure"]
html_theme = "furo"
html_title = "cfs-tag"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
# nothing is fetched from another place when a page is read
html_theme_options = {"source_repository": "", "navigation_with_keys": True}

DOCS = Path(__file__).parent
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]*)[^)]*\)")


def without_links_to_the_checkout(app: Any, page: str, source: list[str]) -> None:
    """A link out of ``docs/`` to a file that is there becomes its words, since the site does not have the file.

    Others stay, and Sphinx says that they are broken.
    """

    def words(link: re.Match[str]) -> str:
        target = ((DOCS / page).parent / link[2]).resolve()
        return link[0] if target.is_relative_to(DOCS) or not target.exists() else link[1]

    source[0] = LINK.sub(words, source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", without_links_to_the_checkout)
