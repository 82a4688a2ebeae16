"""Collecting in this process, as the tests of ``tests/gc`` want it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository, gc
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.repo.lock import Lock
from support.sysroots import Host

SMALL_SLICES = gc.Pace(slice=0.0005, pause=0.0, threads=1, batch=1)
"""A few deletions each: the time is over at the second look at the clock."""
USUAL = gc.Pace()
NO_PAUSE = gc.Pace(pause=0.0)

__all__ = ["NO_PAUSE", "SMALL_SLICES", "USUAL", "at_slice", "collect", "plan", "removed_nothing", "unresolve"]


def collect(path: Path, view: Callable[[], SysrootView] | None = None, *, pace: gc.Pace = USUAL, **options: Any) -> gc.GcResult:
    """Collect with these :class:`~cfs_tags.gc.GcOptions`."""
    with Repository.open(path, write=True) as repo:
        return gc.collect(repo, gc.GcOptions(**options), view, timeout=20.0, pace=pace)


def plan(path: Path, view: SysrootView | None = None, **options: Any) -> gc.GcPlan:
    """What that would do."""
    with Repository.open(path) as repo, repo.locked("shared"):
        return gc.plan(repo, gc.GcOptions(**options), view)


def at_slice(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> list[int]:
    """Has ``action`` run right before the exclusive lock is taken for slice ``number``; gives the slices there were."""
    original = Lock.hold
    seen: list[int] = []

    def hold(self: Lock, mode: str, dir_fd: int, name: str, *words: object, **named: object) -> object:
        if mode == "exclusive" and name == ".":
            seen.append(len(seen))
            if len(seen) == number:
                action()
        return original(self, mode, dir_fd, name, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Lock, "hold", hold)
    return seen


def removed_nothing(said: str) -> bool:
    """Whether ``cfsctl gc`` says that there was nothing to do."""
    return all(int(number) == 0 for number in re.findall(r"\d+", re.sub(r"\(.*?\)", "", said)))


def unresolve(host: Host, *names: str) -> None:
    """Nothing says any more which manifest a deployment was made from."""
    host.untag_bootc()
    for name in names:
        for stream in host.pool.images[name].streams[:2]:
            (host.repo / "streams" / stream).unlink()
        for path in host.state(name).glob("*.origin"):
            path.unlink()
        for path in host.state(name).glob("*.imginfo"):
            path.unlink()
