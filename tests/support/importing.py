"""Calling import and export as the command line does, without it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from cfs_tags import Repository
from cfs_tags.apps.exporting.export import Exported, parse_destination, plan_export, run_export
from cfs_tags.apps.importing.choose import Options
from cfs_tags.apps.importing.plan import plan_import
from cfs_tags.apps.importing.run import Imported, run_import
from cfs_tags.apps.importing.source import open_source
from cfs_tags.apps.workdir import Machine

__all__ = ["export_image", "import_image", "machine"]


def machine() -> Machine:
    """The programs that are on the path."""
    return Machine(tempfile.gettempdir(), shutil.which("skopeo"), None)


def import_image(
    path: Path, source: str, name: str | None = "app", options: Options | None = None, **keywords: Any
) -> Imported:
    """Import into the repository at ``path``; keywords are those of :func:`cfs_tags.apps.importing.run.run_import`."""
    wanted = options or Options()
    with Repository.open(path, write=True) as repo:
        opened = open_source(source, machine(), wanted.limit)
        try:
            return run_import(repo, opened, lambda: plan_import(repo, opened, name, wanted), **keywords)
        finally:
            opened.close()


def export_image(path: Path, name: str, destination: str, compression: str = "none", **keywords: Any) -> Exported:
    """Export from the repository at ``path``; keywords are those of :func:`cfs_tags.apps.exporting.export.run_export`."""
    where = parse_destination(destination)
    with Repository.open(path) as repo:
        return run_export(repo, lambda: plan_export(repo, name, where, compression), machine(), **keywords)
