"""Whether a directory was changed: its time stamp, which file systems count in ticks."""

from __future__ import annotations

from cfs_tags.repo.store import ReadRepo

SETTLED = 100_000_000
"""Nanoseconds after which a directory's time stamp tells of every change before."""


def stamp(repo: ReadRepo, path: str) -> int | None:
    """When a directory of the repository was changed last, in nanoseconds; None where there is none."""
    try:
        return repo.status(path).st_mtime_ns
    except OSError:
        return None
