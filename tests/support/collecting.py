"""Collecting in this process, as the tests of ``tests/gc`` want it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfs_tags import Repository, gc
from cfs_tags.sysroot import SysrootView

__all__ = ["collect", "plan", "removed_nothing"]


def collect(path: Path, view: Callable[[], SysrootView] | None = None, **options: Any) -> gc.GcResult:
    """Collect with these :class:`~cfs_tags.gc.GcOptions`."""
    with Repository.open(path, write=True) as repo:
        return gc.collect(repo, gc.GcOptions(**options), view, timeout=20.0)


def plan(path: Path, view: SysrootView | None = None, **options: Any) -> gc.GcPlan:
    """What that would do."""
    with Repository.open(path) as repo, repo.locked("shared"):
        return gc.plan(repo, gc.GcOptions(**options), view)


def removed_nothing(said: str) -> bool:
    """Whether ``cfsctl gc`` says that there was nothing to do."""
    return all(int(number) == 0 for number in re.findall(r"\d+", re.sub(r"\(.*?\)", "", said)))
