"""Calling import and export as the command line does, without it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from cfs_tags import Repository
from cfs_tags.apps import exporting, importing, sources
from cfs_tags.apps.importing import Imported, Options
from cfs_tags.apps.workplace import Machine

__all__ = ["export_image", "import_image", "machine"]


def machine() -> Machine:
    """The programs that are on the path."""
    return Machine(tempfile.gettempdir(), shutil.which("skopeo"), None)


def import_image(
    path: Path, source: str, name: str | None = "app", options: Options | None = None, **keywords: Any
) -> Imported:
    """Import into the repository at ``path``; keywords are those of :func:`cfs_tags.apps.importing.execute`."""
    wanted = options or Options()
    with Repository.open(path, write=True) as repo:
        opened = sources.open_source(source, machine(), wanted.limit)
        try:
            return importing.execute(repo, opened, lambda: importing.plan(repo, opened, name, wanted), **keywords)
        finally:
            opened.close()


def export_image(path: Path, name: str, destination: str, compression: str = "none", **keywords: Any) -> exporting.Exported:
    """Export from the repository at ``path``; keywords are those of :func:`cfs_tags.apps.exporting.execute`."""
    where = exporting.parse_destination(destination)
    with Repository.open(path) as repo:
        return exporting.execute(repo, lambda: exporting.plan(repo, name, where, compression), machine(), **keywords)
