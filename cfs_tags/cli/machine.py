"""What the environment says about the machine: where other programs and temporary files are."""

from __future__ import annotations

import os

from cfs_tags.apps.workplace import Machine

__all__ = ["machine"]


def machine() -> Machine:
    """From ``PATH`` and ``TMPDIR``; temporary files go to ``/var/tmp``, because images are large."""
    temporary = os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else "/tmp")
    return Machine(temporary, _program("skopeo"), _program("cfsctl"))


def _program(name: str) -> str | None:
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
