"""A collection from its beginning to its end."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from cfs_tags.errors import SystemFailure
from cfs_tags.gc.dead import TICK, dated, refuse_unseen
from cfs_tags.gc.early_refs import Changes, expire, expire_unlogged, plan_deployments
from cfs_tags.gc.mark import Marks, Snapshot, limit_of, mark_all
from cfs_tags.gc.sweep import Sweep
from cfs_tags.gc.values import NOTHING_DONE, GcOptions, GcResult, Pace
from cfs_tags.host.refs import name_configs, retire
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.repo import clock, forgetting, fsops, layout
from cfs_tags.repo.object_store import write_meta
from cfs_tags.repo.reflog import Fact
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.repo.transaction.run import record, transact

_DEFAULT_TIMEOUT = 300.0
"""Seconds that a collection waits for its locks."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Room(Enum):
    """What a collection can count on.  A full disk must not keep it from making room, so it may be run up to three times:

    ========  =====================  ==================  ==============  ======================  =========================
    room      refs of deployments    what has run out    referrers       meta.json               the disk is full: then
    ========  =====================  ==================  ==============  ======================  =========================
    ENOUGH    are made, and retired  goes with a log     are pruned      comes before the first  it is run with NONE
                                     entry               if asked for    deletion
    NONE      those to be made are   goes without one;   are roots       if there is room for    that is the error
              roots; none is retired it comes with the                   it
                                     next collection
    MADE      as with ENOUGH         as with ENOUGH      as with ENOUGH  as with ENOUGH          where there is a sysroot,
                                                                                                 that is the error: a
                                                                                                 deployment may be without
                                                                                                 its ref.  Else what was
                                                                                                 done with NONE is the
                                                                                                 result
    ========  =====================  ==================  ==============  ======================  =========================

    After NONE comes MADE, if anything was freed: else the error of ENOUGH stands.
    """

    ENOUGH = "enough"
    NONE = "none"
    MADE = "made"


class _Run(NamedTuple):
    """What one run of a collection needs."""

    repo: WriteRepo
    options: GcOptions
    read_view: Callable[[], SysrootView] | None
    note: Note
    timeout: float
    progress: Callable[[int, int], None] | None
    pace: Pace
    end: float | None = None


def collect(
    repo: WriteRepo,
    options: GcOptions = GcOptions(),  # noqa: B008
    read_view: Callable[[], SysrootView] | None = None,
    *,
    note: Note = NO_NOTE,
    timeout: float = _DEFAULT_TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
    pace: Pace = Pace(),  # noqa: B008
) -> GcResult:
    """Collect garbage.

    Args:
        repo: where.
        options: see :class:`GcOptions`.
        read_view: reads the sysroot, where there is one; called again under the lock that retires.
        note: for the reflog; what was collected is recorded with it.
        timeout: seconds to wait for a lock, each time.
        progress: is called now and then with the number of directories of objects that are done, and of all.
        pace: how much is deleted at a time.

    Raises:
        BrokenRoots, UnresolvedDeployment, PlaceUnread, NoDeployments, RefusedError (sysroot-unseen): as
            :func:`cfs_tags.gc.plan`; nothing, or nothing more, was collected.
        LockTimeout: another process holds the lock; what was deleted by then is gone, the next run continues.
        SystemFailure: the system refused; likewise.
    """
    end = None if options.seconds is None else time.monotonic() + options.seconds
    run = _Run(repo, options, read_view, note, timeout, progress, pace, end)
    if options.trust_clock:
        clock.believe(repo)
    doubt = clock.read(repo).doubt
    made = _collect_with_room(run)
    made = made._replace(doubt=doubt, forgotten=forgetting.forget(repo, options.keep_log, note, timeout))
    swept = made.swept
    facts: dict[str, Fact] = {"objects": swept.objects, "bytes": swept.allocated, "streams": swept.streams}
    facts |= {"images": swept.images, "refs": len(made.changes), "stopped": made.stopped}
    record(repo, "collect", facts, note, timeout)
    return made


def _collect_with_room(run: _Run) -> GcResult:
    """A collection; where the disk is full, one that begins with what needs no room."""
    options, read_view = run.options, run.read_view
    try:
        return _collect(run, Room.ENOUGH)
    except SystemFailure as error:
        if error.errno not in _FULL:
            raise
        full = error
    made = _collect(run, Room.NONE)
    if not made.swept.objects and not made.changes:
        raise full
    if made.stopped is not None:
        return made
    if options.free_bytes is not None:
        run = run._replace(options=options._replace(free_bytes=options.free_bytes - made.swept.allocated))
    try:
        return made.then(_collect(run, Room.MADE))
    except SystemFailure as error:
        if error.errno not in _FULL or read_view is not None:
            raise
        return made._replace(stopped="the disk is still full: refs are left as they are")


def _collect(run: _Run, room: Room) -> GcResult:
    """One run: early refs, marks, referrers, then slices until nothing dead is left."""
    repo, options, timeout = run.repo, run.options, run.timeout
    if room is Room.NONE:
        options = options._replace(prune_referrers=False)
        early, unmade = _refs_without_room(run)
    else:
        early, unmade = _refs(run), ()

    with repo.locked("shared", timeout):
        stamp = dated(options, clock.read(repo), _stamp(repo))
        marks, unneeded = mark_all(repo, Snapshot.read(repo), options, stamp, unmade, gone=early.changes)
        sweep = Sweep(repo, marks, options, limit_of(options, stamp), run.pace)
        refuse_unseen(repo, marks, sweep.dead, options, run.read_view)
    pruned = _prune(run, marks, sweep, unneeded) if unneeded else ()

    meta = _write_meta(repo, room)
    try:
        fsops.sync_filesystem(repo.fd)  # no ref that is gone may come back to find its target gone
    except OSError as error:
        raise SystemFailure.of(error, "sync", repo.path) from error
    slices, stopped = 0, None
    while not sweep.is_done:
        if run.end is not None and time.monotonic() >= run.end:
            stopped = "the time is over"
            break
        with repo.locked("exclusive", timeout):
            slices += 1
            end = time.monotonic() + run.pace.slice
            sweep.look_again(Snapshot.read(repo))
            sweep.delete(max(end, time.monotonic() + run.pace.slice / 3))
        if sweep.is_enough:
            stopped = "enough is free"
            break
        if run.progress is not None:
            run.progress(*sweep.progress)
        if not sweep.is_done:
            time.sleep(run.pace.pause)
    return early._replace(
        changes=(*early.changes, *pruned),
        swept=sweep.swept,
        live=len(marks.live),
        problems=marks.found(),
        lacking=marks.lacking(sweep.absent),
        slices=slices,
        stopped=stopped,
        meta=_write_meta(repo, room) or meta,
    )


def _refs(run: _Run) -> GcResult:
    """Give deployments their refs, retire those of deployments that are gone, remove what has run out."""
    result = NOTHING_DONE
    if run.read_view is not None:
        view = run.read_view()
        image_only = run.options.image_only
        plan_deployments(run.repo, view, image_only=image_only)  # refuses before anything is changed
        made = transact(
            run.repo,
            lambda: plan_deployments(run.repo, view, image_only=image_only),
            run.note,
            run.timeout,
            prepare=lambda plan: name_configs(run.repo, plan.changes),
        )
        retired = retire(run.repo, run.read_view, grace=run.options.retire_grace, note=run.note, timeout=run.timeout)
        result = result._replace(changes=(*made.changes, *retired.changes), adopted=made.ids, retired=retired)
    return result._replace(changes=(*result.changes, *expire(run.repo, run.note, run.timeout)))


def _refs_without_room(run: _Run) -> tuple[GcResult, tuple[RefChange, ...]]:
    """Remove what has run out; the refs that could not be made are the second part of the answer."""
    unmade: tuple[RefChange, ...] = ()
    if run.read_view is not None:
        unmade = plan_deployments(run.repo, run.read_view(), image_only=run.options.image_only).changes
    # without the refs lock, whose file may not be there, no other writer may be at work
    with run.repo.locked("exclusive", run.timeout):
        return NOTHING_DONE._replace(changes=tuple(expire_unlogged(run.repo))), unmade


def _prune(run: _Run, marks: Marks, sweep: Sweep, unneeded: Sequence[RefChange]) -> tuple[RefChange, ...]:
    """Remove referrers, under the exclusive lock: those whose subject got a ref since the marks stay."""

    def planned() -> Changes:
        sweep.look_again(Snapshot.read(run.repo))
        waiting = {change.path: change for change in unneeded if marks.snapshot.refs.get(change.path) == change.old}
        while True:
            ready = [path for path in waiting if marks.keeps_subject(path)]
            if not ready:
                return Changes(tuple(waiting.values()))
            sweep.keep({path: str(waiting.pop(path).old) for path in ready})

    made = transact(run.repo, planned, run.note, run.timeout, exclusive=True)
    marks.snapshot.change(made.changes)
    return made.changes


def _stamp(repo: WriteRepo) -> int:
    """Now, by the clock of the file system, which dates objects: nanoseconds since 1970."""
    try:
        repo.make_directories(layout.STATE)
        fd = fsops.open_unnamed(repo.fd, layout.STATE)
        try:
            return os.fstat(fd).st_ctime_ns
        finally:
            os.close(fd)
    except (OSError, SystemFailure) as error:
        if error.errno in _FULL:
            return time.time_ns() - TICK
        if isinstance(error, SystemFailure):
            raise
        raise SystemFailure.of(error, "write", os.path.join(repo.path, layout.STATE)) from error


def _write_meta(repo: WriteRepo, room: Room) -> bool:
    """Write ``meta.json`` where there is none; whether that was done."""
    try:
        return write_meta(repo)
    except SystemFailure as error:
        if room is not Room.NONE or error.errno not in _FULL:
            raise
        return False
