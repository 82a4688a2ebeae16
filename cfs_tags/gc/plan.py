"""What a collection would do: refs that come first, what is dead by the marks, how much that is."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from cfs_tags.gc.dead import TICK, dated, dead_links, refuse_unseen, sort_out
from cfs_tags.gc.early_refs import plan_refs
from cfs_tags.gc.mark import Snapshot, limit_of, mark_all
from cfs_tags.gc.values import GcOptions, GcPlan, Swept
from cfs_tags.host.refs import unnamed_configs
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.inventory import LOOKERS, Keys, object_directories
from cfs_tags.parallel import in_processes, look_at
from cfs_tags.repo import clock, forgetting, layout
from cfs_tags.repo.store import ReadRepo


def plan(repo: ReadRepo, options: GcOptions = GcOptions(), view: SysrootView | None = None) -> GcPlan:  # noqa: B008
    """What :func:`cfs_tags.gc.collect` would do now; the repository lock is held shared meanwhile by the caller.

    Raises:
        BrokenRoots: something that a ref leads to cannot be followed, and ``keep_broken`` was not asked for, or does not help.
        UnresolvedDeployment: a deployment has no ref and cannot be given one, and ``image_only`` was not asked for.
        RefusedError (sysroot-unseen), PlaceUnread: as :func:`refuse_unseen`.
    """
    known = clock.read(repo, trusted=options.trust_clock)
    first = plan_refs(
        repo, view, image_only=options.image_only, retire_grace=options.retire_grace, trust_clock=options.trust_clock
    )
    snapshot = Snapshot.read(repo)
    snapshot.change(first.changes)
    snapshot.name(unnamed_configs(repo, first.changes))
    stamp = dated(options, known, time.time_ns() - TICK)
    marks, pruned = mark_all(repo, snapshot, options, stamp, gone=first.changes)
    snapshot.change(pruned)
    dead = dead_links(marks)
    refuse_unseen(repo, marks, dead, options, None if view is None else lambda: view)
    streams = sum(path.startswith(layout.STREAMS) for path, _ in dead)
    counted = _count_dead(repo, marks.live, limit_of(options, stamp), options.free_bytes)
    return GcPlan(
        (*first.changes, *pruned),
        first.adopted,
        first.retired,
        counted.swept.plus(Swept(streams=streams, images=len(dead) - streams)),
        len(marks.live),
        marks.found(),
        marks.lacking(counted.absent),
        repo.meta is None,
        known.doubt,
        forgetting.plan(repo, options.keep_log, trusted=options.trust_clock).entries,
    )


class Counted(NamedTuple):
    """What is dead, and the keys of live objects that are not there (see ``inventory.py``)."""

    swept: Swept = Swept()
    absent: tuple[int, ...] = ()

    def plus(self, other: Counted) -> Counted:
        """Both together."""
        return Counted(self.swept.plus(other.swept), self.absent + other.absent)


def _count_dead(repo: ReadRepo, live: Keys, limit: int, free_bytes: int | None) -> Counted:
    """How many objects are dead and what they take.

    Args:
        repo: where.
        live: what stays.
        limit: objects that changed at this time or later stay, in nanoseconds since 1970.
        free_bytes: count no more once so many bytes would be freed; None: all.
    """
    parents = object_directories(repo)
    total = Counted(absent=tuple(live.outside(parents)))
    if free_bytes is not None:
        for parent in parents:
            total = total.plus(_count_directory(repo, parent, live, limit, free_bytes - total.swept.allocated))
            if total.swept.allocated >= free_bytes:
                break
        return total
    return total.plus(in_processes(lambda mine: _count_some(repo, mine, live, limit), Counted.plus, parents, LOOKERS, 64))


def _count_some(repo: ReadRepo, parents: Sequence[str], live: Keys, limit: int) -> Counted:
    total = Counted()
    for parent in parents:
        total = total.plus(_count_directory(repo, parent, live, limit, None))
    return total


def _count_directory(repo: ReadRepo, parent: str, live: Keys, limit: int, wanted: int | None) -> Counted:
    """One directory; no more is counted once ``wanted`` bytes would be freed."""
    fd = repo.directory(f"{layout.OBJECTS}/{parent}")
    if fd is None:
        return Counted(absent=tuple(live.of(parent)))
    objects = allocated = size = 0
    try:
        with repo.reading(f"{layout.OBJECTS}/{parent}"):
            listed = os.listdir(fd)
        names, absent = sort_out(repo, parent, listed, live)
        if wanted is not None:
            names.sort()
        for mode, changed, blocks, length in filter(None, look_at(fd, names, _facts)):
            if changed >= limit or not stat.S_ISREG(mode):
                continue
            objects += 1
            allocated += blocks * 512
            size += length
            if wanted is not None and allocated >= wanted:
                break
    finally:
        os.close(fd)
    return Counted(Swept(objects, allocated, size), absent)


_facts: Callable[[os.stat_result], tuple[int, int, int, int]] = attrgetter("st_mode", "st_ctime_ns", "st_blocks", "st_size")
