"""A collection from its beginning to its end, and the same without doing it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cfs_tags.deploying import name_configs, retire, unnamed_configs
from cfs_tags.errors import SystemFailure
from cfs_tags.formats import layout
from cfs_tags.gc.dead import count_dead, dead_links, refuse_unseen
from cfs_tags.gc.deployments import plan_deployments, plan_refs
from cfs_tags.gc.expiring import expire, expire_unlogged
from cfs_tags.gc.marks import limit_of, mark_all
from cfs_tags.gc.sweeping import FULL, TICK, Sweep
from cfs_tags.gc.values import GcOptions, GcPlan, GcResult, Swept
from cfs_tags.marking import Snapshot
from cfs_tags.repo import refs
from cfs_tags.repo.refs import NO_NOTE, Note, RefChange

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.sysroot import SysrootView
    from cfs_tags.values import DeploymentId

__all__ = ["DEFAULT_TIMEOUT", "collect", "plan"]

DEFAULT_TIMEOUT = 300.0
"""Seconds that a collection waits for its locks."""


def plan(repo: ReadRepo, options: GcOptions = GcOptions(), view: SysrootView | None = None) -> GcPlan:  # noqa: B008
    """What :func:`collect` would do now; the repository lock is held shared meanwhile by the caller.

    Raises:
        BrokenRoots: something that a ref leads to cannot be followed, and ``keep_broken`` was not asked for, or does not help.
        UnresolvedDeployment: a deployment has no ref and cannot be given one, and ``image_only`` was not asked for.
        SysrootUnseen: no ``view`` of bootc's repository, and ``no_sysroot`` was not asked for.
    """
    first = plan_refs(repo, view, image_only=options.image_only, retire_grace=options.retire_grace)
    snapshot = Snapshot.read(repo)
    snapshot.change(first.changes)
    snapshot.name(unnamed_configs(repo, first.changes))
    stamp = time.time_ns() - TICK
    marker, pruned = mark_all(repo, snapshot, options, stamp, gone=first.changes)
    snapshot.change(pruned)
    dead = dead_links(repo, snapshot, marker)
    if view is None:
        refuse_unseen(repo, snapshot, dead, options)
    streams = sum(path.startswith(layout.STREAMS) for path, _ in dead)
    swept = count_dead(repo, marker.live, limit_of(options, stamp), options.free_bytes)
    swept = swept.plus(Swept(streams=streams, images=len(dead) - streams))
    changes = (*first.changes, *pruned)
    return GcPlan(changes, first.adopted, first.retired, swept, len(marker.live), marker.found(), repo.meta is None)


def collect(
    repo: WriteRepo,
    options: GcOptions = GcOptions(),  # noqa: B008
    read_view: Callable[[], SysrootView] | None = None,
    *,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
) -> GcResult:
    """Collect garbage.

    Args:
        repo: where.
        options: see :class:`GcOptions`.
        read_view: reads the sysroot, where there is one; called again under the lock that retires.
        note: for the reflog.
        timeout: seconds to wait for a lock, each time.
        progress: told now and then how many of how many directories of objects were looked at.

    Raises:
        BrokenRoots, UnresolvedDeployment, SysrootUnseen: as :func:`plan`; nothing was collected.
        LockTimeout: the lock was not to be had; what was deleted by then is gone, the next run goes on.
        SystemFailure: the system refused; likewise.
    """
    try:
        return _collect(repo, options, read_view, note, timeout, progress)
    except SystemFailure as error:
        if error.errno not in FULL:
            raise
        full = error
    # A full disk must not keep a collector from making room.  No ref is made now, but those that were to be made are roots;
    # what has run out goes without a word in the log.  With some room the rest is done as always.
    made = _collect(repo, options, read_view, note, timeout, progress, full=True)
    if not made.swept.objects and not made.changes:
        raise full
    if made.stopped is not None:
        return made
    if options.free_bytes is not None:
        options = options._replace(free_bytes=options.free_bytes - made.swept.allocated)
    try:
        again = _collect(repo, options, read_view, note, timeout, progress)
    except SystemFailure as error:
        if error.errno not in FULL or read_view is not None:
            raise  # a deployment may be without its ref
        return made._replace(stopped="the disk is still full: refs are left as they are")
    return again._replace(
        changes=(*made.changes, *again.changes),
        swept=made.swept.plus(again.swept),
        slices=made.slices + again.slices,
        meta=made.meta or again.meta,
    )


def _collect(
    repo: WriteRepo,
    options: GcOptions,
    read_view: Callable[[], SysrootView] | None,
    note: Note,
    timeout: float,
    progress: Callable[[int, int], None] | None,
    *,
    full: bool = False,
) -> GcResult:
    adopted: tuple[DeploymentId, ...] = ()
    retired = None
    changes: list[RefChange] = []
    unmade: tuple[RefChange, ...] = ()
    if read_view is not None:
        view = read_view()
        wanted = plan_deployments(repo, view, image_only=options.image_only)  # refuses before anything is changed
        if full:
            unmade = wanted.changes
        else:
            made, _ = refs.transact(
                repo,
                lambda: plan_deployments(repo, view, image_only=options.image_only),
                note,
                timeout,
                prepare=lambda plan: name_configs(repo, plan.changes),
            )
            adopted = made.ids
            retired = retire(repo, read_view, grace=options.retire_grace, note=note, timeout=timeout)
            changes.extend([*made.changes, *retired.changes])
    if full:
        # without the refs lock, whose file may not be there, nobody else may be at work
        with repo.locked("exclusive", timeout):
            changes.extend(expire_unlogged(repo))
        options = options._replace(prune_referrers=False)  # a ref that cannot be removed is a root
    else:
        changes.extend(expire(repo, note, timeout))
    sweep = Sweep(repo, options, timeout, progress)
    with repo.locked("shared", timeout):
        pruned = sweep.mark(unmade, changes, seen=read_view is not None)
    if pruned:
        changes.extend(sweep.prune(pruned, note, timeout))
    return sweep.run(changes, adopted, retired, full=full)
