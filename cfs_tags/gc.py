"""Collecting garbage: what no ref leads to goes, beside cfsctl and bootc at work.

1. Refs that have run out (leases, trash) go, and with a sysroot deployments are adopted and retired.
2. *Mark*, under the shared lock (``marking.py``).  What cannot be followed stops everything here: nothing was deleted.
3. *Sweep* in slices, each under the exclusive lock on a new descriptor: compare all links, names and targets, with those
   that the marks came from, mark what is new, then delete for at most :data:`SLICE` seconds, let go, and pause so that
   waiters get in.  Dead links go first and are synced before the first object.

An object that is younger than the marks is never deleted.  A stop at any point leaves links without garbage behind them or
garbage without links: both are what a next run finds and finishes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import attrgetter
from threading import Condition
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import tags
from cfs_tags.deploying import GRACE, name_configs, plan_adoption, plan_parts, plan_retire, retire, unnamed_configs
from cfs_tags.errors import (
    BrokenRoots,
    CfsTagsError,
    FormatError,
    IncompleteTarget,
    PlaceUnread,
    SysrootUnseen,
    SystemFailure,
    UnresolvedDeployment,
)
from cfs_tags.formats import layout
from cfs_tags.inventory import LOOKERS, names_of_objects, object_directories
from cfs_tags.lookup import ref_state
from cfs_tags.marking import Marker, Snapshot
from cfs_tags.processes import in_processes, look_in
from cfs_tags.reachability import read_node
from cfs_tags.repo import fsops, refs
from cfs_tags.repo.contents import BOOT_KEY, EROFS_KEY
from cfs_tags.repo.refs import NO_NOTE, Note, RefChange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cfs_tags.deploying import DeploymentPlan, RetirePlan
    from cfs_tags.inventory import Keys
    from cfs_tags.marking import Problem
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.sysroot import SysrootView
    from cfs_tags.values import DeploymentId

__all__ = [
    "BATCH",
    "DEFAULT_TIMEOUT",
    "SLICE",
    "GcOptions",
    "GcPlan",
    "GcResult",
    "RefsPlan",
    "Swept",
    "collect",
    "plan",
    "plan_deployments",
    "plan_expiry",
    "plan_refs",
]

DEFAULT_TIMEOUT = 300.0
"""Seconds that a collection waits for its locks."""
SLICE = 0.3
"""Seconds that the exclusive lock is held for deletions at a time."""
PAUSE = 0.005
"""Seconds between two slices."""
THREADS = 16
"""Threads that delete at a time: a deletion waits for the disk."""
BATCH = 64
"""Objects that one thread deletes between two looks at the clock."""
_TICK = 20_000_000
"""Nanoseconds by which the clock of a file system may be behind: it goes by ticks."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class GcOptions(NamedTuple):
    """What a collection is asked to do besides.

    ``roots`` are names in ``streams/`` or ``images/`` that stay; ``free_bytes`` stops when so much was freed (allocated
    bytes); ``grace`` keeps what is younger, in seconds; ``prune_referrers`` removes referrers of dead subjects;
    ``keep_broken`` goes on where something could not be followed, unless the system does not give it; ``image_only`` keeps
    the EROFS image alone of a deployment that cannot be resolved; ``no_sysroot`` collects bootc's repository without a look
    at its deployments.
    """

    roots: tuple[str, ...] = ()
    free_bytes: int | None = None
    grace: float = 0.0
    prune_referrers: bool = False
    keep_broken: bool = False
    image_only: bool = False
    retire_grace: float = GRACE
    no_sysroot: bool = False


class Swept(NamedTuple):
    """Deleted, or dead: number of objects, bytes that they take on disk, bytes that they hold; links by directory."""

    objects: int = 0
    allocated: int = 0
    size: int = 0
    streams: int = 0
    images: int = 0

    def plus(self, other: Swept) -> Swept:
        """Both together."""
        return Swept(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class GcPlan(NamedTuple):
    """What a collection would do now.

    ``changes`` are refs that go or come first; ``swept`` what is deleted then; ``live`` the number of objects that stay;
    ``problems`` what could not be followed (with ``keep_broken`` only: else they are raised); ``meta`` whether
    ``meta.json`` is made, because there is none.
    """

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
    swept: Swept
    live: int
    problems: tuple[Problem, ...]
    meta: bool = False


class GcResult(NamedTuple):
    """What a collection did.  As :class:`GcPlan`; ``slices`` is how often it held the exclusive lock, ``stopped`` why it
    ended before everything dead was gone, if it did."""

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
    swept: Swept
    live: int
    problems: tuple[Problem, ...]
    slices: int
    stopped: str | None = None
    meta: bool = False


# -- planning ----------------------------------------------------------------------------------------------------------


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
    stamp = time.time_ns() - _TICK
    marker, pruned = _mark(repo, snapshot, options, stamp, gone=first.changes)
    snapshot.change(pruned)
    dead = _dead_links(repo, snapshot, marker)
    if view is None:
        _refuse_unseen(repo, snapshot, dead, options)
    streams = sum(path.startswith(layout.STREAMS) for path, _ in dead)
    swept = _count_dead(repo, marker.live, _limit(options, stamp), options.free_bytes)
    swept = swept.plus(Swept(streams=streams, images=len(dead) - streams))
    changes = (*first.changes, *pruned)
    return GcPlan(changes, first.adopted, first.retired, swept, len(marker.live), marker.found(), repo.meta is None)


class RefsPlan(NamedTuple):
    """What a collection does with refs before it marks: expiry, then adoption and retiring where there is a sysroot."""

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None


def plan_refs(repo: ReadRepo, view: SysrootView | None, *, image_only: bool = False, retire_grace: float = GRACE) -> RefsPlan:
    """The refs that a collection would make and remove first.

    Raises:
        UnresolvedDeployment: as :func:`plan_deployments`.
    """
    expired = _with_indexes(repo, tuple(plan_expiry(repo)))
    if view is None:
        return RefsPlan(expired, (), None)
    adoption = plan_deployments(repo, view, image_only=image_only)
    retired = plan_retire(repo, view, grace=retire_grace)
    return RefsPlan((*expired, *adoption.changes, *retired.changes), adoption.ids, retired)


def plan_expiry(repo: ReadRepo, now: float | None = None) -> Iterator[RefChange]:
    """Removal of leases and trash whose time is over."""
    moment = tags.moment(now)
    for top in (layout.LEASES, layout.TRASH):
        for path, link in refs.walk(repo, top):
            directory, _, name = path[len(top) + 1 :].partition("/")
            expires = layout.expiry_of(directory)
            if expires is not None and name and "/" not in name and link is not None and expires <= moment:
                yield RefChange(path, link, None, "expire")


def _with_indexes(repo: ReadRepo, expired: tuple[RefChange, ...]) -> tuple[RefChange, ...]:
    """Expiry, and removal of indexes that were kept for tags that are gone, or will be."""
    alone = tags.orphaned_indexes(repo, {change.path for change in expired})
    return (*expired, *(RefChange(path, link, None, "expire") for path, link in alone))


_OF_OTHERS = frozenset({"boot-entry", "staged-entry", "uki"})
"""Places where deployments of other systems on the same machine are seen, too."""


def plan_deployments(repo: ReadRepo, view: SysrootView, *, image_only: bool = False) -> DeploymentPlan:
    """Adoption, and for what cannot be adopted the image part alone.

    A deployment whose ref has the manifest is resolved, and one with the image alone was decided about before.

    Raises:
        UnresolvedDeployment: there are others, and ``image_only`` is not set, or their images have lost their links; names
            all of them.
        PlaceUnread: the state directories could not be read, so that nobody knows which deployments there are.
    """
    for place in view.unread:
        if place.name == "state":
            raise PlaceUnread(place=place.name, path=place.path, reason=str(place.reason))
    adoption = plan_adoption(repo, view)
    changes = list(adoption.changes)
    ids = list(adoption.ids)
    unresolved = []
    unlinked = []
    for name in view.seen:
        if name in adoption.ids:
            continue
        state = ref_state(repo, name)
        if state.manifest is not None or state.status == "image-only":
            continue  # where a part of it leads nowhere, marking says so
        here = repo.image_object(name) is not None or repo.has_object(name)
        if not here and view.seen[name] <= _OF_OTHERS:
            continue  # another system's boot entry
        if not image_only:
            unresolved.append(name)
            continue
        try:
            parts = plan_parts(repo, name, None, "adopt")
        except IncompleteTarget:
            if here:  # its image has lost its link, so that no ref can be made to it, and is content all the same
                unlinked.append(name)
            continue  # without an EROFS image there is nothing that a ref could keep
        if parts:
            changes.extend(parts)
            ids.append(name)
    if unresolved:
        others = [f"so it is with {name}" for name in unresolved[1:]]
        notes = ("it has no ref and none can be made, so that its content would be collected", *others)
        raise UnresolvedDeployment(deployment=unresolved[0], notes=notes)
    if unlinked:
        lost = [f"images/{name} is gone, and its object is there: make the link again" for name in unlinked]
        raise UnresolvedDeployment(deployment=unlinked[0], notes=tuple(lost))
    return adoption._replace(changes=tuple(changes), ids=tuple(ids))


def _mark(
    repo: ReadRepo,
    snapshot: Snapshot,
    options: GcOptions,
    stamp: int,
    more: Sequence[RefChange] = (),
    *,
    gone: Sequence[RefChange],
) -> tuple[Marker, list[RefChange]]:
    """Mark from all roots, and name the referrers that are none (only with ``prune_referrers``).

    ``more`` are refs that could not be made yet: roots all the same.  ``gone`` are the changes that came before the marks:
    what such a ref led to was here, whether the log says so already or not.
    """
    snapshot.name(unnamed_configs(repo, more))
    marker = Marker(repo, snapshot)
    marker.mark((change.path, change.new) for change in more if change.new is not None)
    named = Snapshot({}, {}, {})
    for name in options.roots:
        for links, mine in ((snapshot.streams, named.streams), (snapshot.images, named.images)):
            if name in links:
                mine[name] = links[name]
    marker.mark_links(named, needed=True)
    if options.grace:
        limit = _limit(options, stamp)
        young = Snapshot({}, {}, {})
        for tree, links, mine in (
            (layout.STREAMS, snapshot.streams, young.streams),
            (layout.IMAGES, snapshot.images, young.images),
        ):
            mine.update({name: link for name, link in links.items() if _changed(repo, tree, name, link) >= limit})
        marker.mark_links(young)
    pruned = []
    if options.prune_referrers:
        pruned = [RefChange(path, link, None, "prune") for path, link in _prune(repo, snapshot, marker, gone)]
    else:
        marker.mark(snapshot.refs.items())
    _refuse_broken(marker, options)
    marker.keep_unnamed()
    return marker, pruned


def _refuse_broken(marker: Marker, options: GcOptions) -> None:
    """Stop where something is broken; with ``keep_broken`` only where nobody knows what it leads to, and so what is dead."""
    problems = [problem for problem in marker.found() if problem.unreadable or not options.keep_broken]
    if problems:
        raise BrokenRoots(problems=tuple((problem.message, problem.refs) for problem in problems))


def _prune(repo: ReadRepo, snapshot: Snapshot, marker: Marker, gone: Sequence[RefChange]) -> list[tuple[str, str]]:
    """Mark from all refs but the referrers whose subject was here and is dead: those are the answer, path and link.

    To a fixed point: a signature may itself be signed, and may name another image.
    """
    was_here = _was_here(repo, snapshot, gone)
    waiting: dict[str, str] = {}
    first: list[tuple[str, str]] = []
    for path, link in snapshot.refs.items():
        subject = _subject(path)
        if subject is None or subject not in was_here:
            first.append((path, link))
        else:
            waiting[path] = link
    marker.mark(first)
    while True:
        ready = [(path, link) for path, link in waiting.items() if _subject_lives(repo, snapshot, marker, path)]
        if marker.found():  # what cannot be followed may have led to a subject
            ready = list(waiting.items())
        if not ready:
            return list(waiting.items())
        for path, _ in ready:
            del waiting[path]
        marker.mark(ready)


def _subject(path: str) -> str | None:
    """The digest that a referrer is about, by its path; None for other refs."""
    start = f"{layout.REFERRERS}/"
    subject, slash, _ = path[len(start) :].partition("/")
    return subject if path.startswith(start) and slash else None


def _subject_lives(repo: ReadRepo, snapshot: Snapshot, marker: Marker, path: str) -> bool:
    link = snapshot.streams.get(f"oci-manifest-{_subject(path)}")
    return link is not None and _is_live(repo, marker.live, link)


def _was_here(repo: ReadRepo, snapshot: Snapshot, gone: Sequence[RefChange]) -> set[str]:
    """Manifests that are or were in this repository: they still have their link, or a ref led to them once."""
    from cfs_tags.repo import reflog

    start = "oci-manifest-"
    names = set(snapshot.streams)
    links = [link for entry in reflog.all_entries(repo).entries for link in (entry.old, entry.new)]
    links += [link for change in gone for link in (change.old, change.new)]
    names.update(link.rpartition("/")[2] for link in links if link is not None)
    return {name[len(start) :] for name in names if name.startswith(start)}


def _changed(repo: ReadRepo, tree: str, name: str, link: str) -> int:
    """When a link was made or the object behind it was last changed, whichever is later, in nanoseconds since 1970.

    0 where there is no object: then there is nothing to keep.
    """
    try:
        path = layout.object_path(layout.object_of_link(link, repo.algorithm, f"{tree}/{name}"))
        changed = os.stat(path, dir_fd=repo.fd, follow_symlinks=False).st_ctime_ns
        return max(changed, os.stat(f"{tree}/{name}", dir_fd=repo.fd, follow_symlinks=False).st_ctime_ns)
    except (OSError, CfsTagsError):
        return 0


def _dead_links(repo: ReadRepo, snapshot: Snapshot, marker: Marker) -> list[tuple[str, str]]:
    """Links in ``streams/`` and ``images/`` whose object goes, or is gone: path and text, those to be deleted first last.

    What names others goes before them: a pull or tag that finds the name of a manifest or config takes it for whole, however
    far a collection came before it was stopped.
    """
    links = [
        (link, f"{tree}/{name}")
        for tree, links in ((layout.STREAMS, snapshot.streams), (layout.IMAGES, snapshot.images))
        for name, link in links.items()
        if link
    ]
    dead = [(path, link) for link, path in sorted(links) if not _is_live(repo, marker.live, link)]
    return sorted(dead, key=lambda entry: -_rank(entry[0]))


def _refuse_unseen(repo: ReadRepo, snapshot: Snapshot, dead: Sequence[tuple[str, str]], options: GcOptions) -> None:
    """Stop before the image of a deployment goes that nobody could see, and so give no ref."""
    start = f"{layout.IMAGES}/"
    images = {path[len(start) :] for path, _ in dead if path.startswith(start)}
    if not images or options.no_sysroot or not repo.is_bootc:
        return
    images -= _images_of_apps(repo, snapshot)
    if images:
        raise SysrootUnseen(path=repo.path, images=tuple(sorted(images)))


def _images_of_apps(repo: ReadRepo, snapshot: Snapshot) -> set[str]:
    """EROFS images that only configs name of which nobody made an image for booting: bootc deploys no such image."""
    apps: set[str] = set()
    bootable: set[str] = set()
    for name, link in snapshot.streams.items():
        if name.startswith("oci-config-"):
            with suppress(CfsTagsError):  # what cannot be read explains no image
                named = read_node(repo, layout.object_of_link(link, repo.algorithm, name), name).named
                kind = bootable if any(key.startswith(BOOT_KEY) for key, _ in named) else apps
                kind.update(target for key, target in named if key.startswith(EROFS_KEY))
    return apps - bootable


_RANKS = (f"{layout.STREAMS}/oci-manifest-", f"{layout.STREAMS}/oci-config-")
_LAST = (f"{layout.STREAMS}/oci-layer-", f"{layout.STREAMS}/oci-blob-", f"{layout.IMAGES}/")


def _rank(path: str) -> int:
    """When a dead link is deleted: all of a lower rank before those of a higher one."""
    for rank, start in enumerate(_RANKS):
        if path.startswith(start):
            return rank
    return len(_RANKS) + path.startswith(_LAST)


def _is_live(repo: ReadRepo, live: Keys, link: str) -> bool:
    try:
        return layout.object_of_link(link, repo.algorithm, "") in live
    except FormatError:
        return True  # it leads to no object: not ours to judge


def _limit(options: GcOptions, stamp: int) -> int:
    """Objects that changed at this time (nanoseconds since 1970) or later stay."""
    return stamp - int(options.grace * 1e9)


# -- counting, for a dry run -------------------------------------------------------------------------------------------


def _count_dead(repo: ReadRepo, live: Keys, limit: int, free_bytes: int | None) -> Swept:
    parents = object_directories(repo)
    if free_bytes is not None:
        total = Swept()
        for parent in parents:
            total, done = _count_directory(repo, parent, live, limit, total, free_bytes)
            if done:
                break
        return total
    return in_processes(lambda mine: _count_some(repo, mine, live, limit), Swept.plus, parents, LOOKERS, 64)


def _count_some(repo: ReadRepo, parents: Sequence[str], live: Keys, limit: int) -> Swept:
    total = Swept()
    for parent in parents:
        total, _ = _count_directory(repo, parent, live, limit, total, None)
    return total


def _count_directory(
    repo: ReadRepo, parent: str, live: Keys, limit: int, total: Swept, free_bytes: int | None
) -> tuple[Swept, bool]:
    fd = repo.directory(f"{layout.OBJECTS}/{parent}")
    if fd is None:
        return total, False
    objects, allocated, size = total[:3]
    try:
        names = _dead_names(repo, parent, os.listdir(fd), live)
        if free_bytes is not None:
            names.sort()
        look = look_in(fd)
        try:
            found = list(map(_facts, map(look, names)))
        except FileNotFoundError:  # somebody else collects
            found = list(_those_there(look, names))
        for mode, changed, blocks, length in found:
            if changed >= limit or not stat.S_ISREG(mode):
                continue
            objects += 1
            allocated += blocks * 512
            size += length
            if free_bytes is not None and allocated >= free_bytes:
                return total._replace(objects=objects, allocated=allocated, size=size), True
    finally:
        os.close(fd)
    return total._replace(objects=objects, allocated=allocated, size=size), False


_facts: Callable[[os.stat_result], tuple[int, int, int, int]] = attrgetter("st_mode", "st_ctime_ns", "st_blocks", "st_size")


def _those_there(look: Callable[[str], os.stat_result], names: Iterable[str]) -> Iterator[tuple[int, int, int, int]]:
    for name in names:
        with suppress(FileNotFoundError):
            yield _facts(look(name))


def _dead_names(repo: ReadRepo, parent: str, names: list[str], live: Keys) -> list[str]:
    """Names of dead objects in ``objects/<parent>``."""
    names, keys = names_of_objects(repo, parent, names)
    here = live.of(parent)
    return [name for name, key in zip(names, keys, strict=True) if key not in here]


# -- doing -------------------------------------------------------------------------------------------------------------


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
        if error.errno not in _FULL:
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
        if error.errno not in _FULL or read_view is not None:
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
            changes.extend(_expire_unlogged(repo))
        options = options._replace(prune_referrers=False)  # a ref that cannot be removed is a root
    else:
        changes.extend(_expire(repo, note, timeout))
    sweep = _Sweep(repo, options, timeout, progress)
    with repo.locked("shared", timeout):
        pruned = sweep.mark(unmade, changes, seen=read_view is not None)
    if pruned:
        changes.extend(sweep.prune(pruned, note, timeout))
    return sweep.run(changes, adopted, retired, full=full)


class _Changes(NamedTuple):
    changes: tuple[RefChange, ...]


def _expire(repo: WriteRepo, note: Note, timeout: float) -> tuple[RefChange, ...]:
    """Remove leases and trash whose time is over, and the directories that they leave."""

    def planned() -> _Changes:
        _clear_directories(repo)
        return _Changes(_with_indexes(repo, tuple(plan_expiry(repo))))

    made, _ = refs.transact(repo, planned, note, timeout)
    if made.changes:
        refs.transact(repo, planned, note, timeout)
    return made.changes


def _clear_directories(repo: WriteRepo) -> None:
    """Remove directories of leases and trash whose time is over and that are empty; the refs lock is held."""
    moment = tags.moment()
    for top in (layout.LEASES, layout.TRASH):
        for name in repo.names(top) or ():
            expires = layout.expiry_of(name)
            if expires is not None and expires <= moment:
                with suppress(OSError):  # not empty, most often
                    fsops.remove_directory(repo.fd, f"{top}/{name}")


def _expire_unlogged(repo: WriteRepo) -> Iterator[RefChange]:
    """The same without a journal and a log, for which there is no room: a path that has run out is never used again."""
    for change in list(plan_expiry(repo)):
        try:
            fsops.remove(repo.fd, change.path)
            fsops.sync(repo.fd, change.path.rpartition("/")[0])
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SystemFailure.of(error, "delete", os.path.join(repo.path, change.path)) from error
        yield change


class _Permit:
    """What lets threads delete while the lock is held.  Once it was taken back nobody begins, and nobody is at it."""

    def __init__(self) -> None:
        self.given = True
        self._changed = Condition()
        self._inside = 0

    def enter(self) -> bool:
        """Begin, if that is allowed."""
        with self._changed:
            self._inside += self.given
            return self.given

    def leave(self) -> None:
        """End."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def take_back(self) -> None:
        """Wait until nobody deletes any more: without the lock nothing may.  An interrupt is kept for afterwards."""
        interrupted = None
        while True:
            try:
                with self._changed:
                    self.given = False
                    while self._inside:
                        self._changed.wait()
                break
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted


class _Sweep:
    def __init__(
        self,
        repo: WriteRepo,
        options: GcOptions,
        timeout: float,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._repo = repo
        self._options = options
        self._timeout = timeout
        self._progress = progress
        self._swept = Swept()
        self._slices = 0
        self._rest: dict[str, list[str]] = {}

    def mark(self, unmade: Sequence[RefChange], made: Sequence[RefChange], *, seen: bool) -> list[RefChange]:
        """Mark; the shared lock is held.  The answer is refs that are to be removed: referrers of what is dead.

        ``unmade`` and ``made`` are changes of refs that come first; ``seen`` says that deployments were looked for.
        """
        stamp = self._stamp()
        self._snapshot = Snapshot.read(self._repo)
        self._marker, pruned = _mark(self._repo, self._snapshot, self._options, stamp, unmade, gone=made)
        self._dead = _dead_links(self._repo, self._snapshot, self._marker)
        if not seen:
            _refuse_unseen(self._repo, self._snapshot, self._dead, self._options)
        self._limit = _limit(self._options, stamp)
        self._parents = object_directories(self._repo)[::-1]
        self._total = len(self._parents)
        for parent in self._parents:  # one that cannot be opened is said before anything is deleted
            fd = self._repo.directory(f"{layout.OBJECTS}/{parent}")
            if fd is not None:
                os.close(fd)
        return pruned

    def prune(self, found: Sequence[RefChange], note: Note, timeout: float) -> tuple[RefChange, ...]:
        """Remove referrers, under the exclusive lock: those whose subject got a ref since the marks stay."""

        def planned() -> _Changes:
            self._look_again()
            waiting = {change.path: change for change in found if self._snapshot.refs.get(change.path) == change.old}
            while True:
                ready = [path for path in waiting if _subject_lives(self._repo, self._snapshot, self._marker, path)]
                if not ready:
                    return _Changes(tuple(waiting.values()))
                self._keep({path: str(waiting.pop(path).old) for path in ready})

        made, _ = refs.transact(self._repo, planned, note, timeout, exclusive=True)
        self._snapshot.change(made.changes)
        return made.changes

    def _stamp(self) -> int:
        """Now, by the clock of the file system: the one that dates objects."""
        path = f"{layout.STATE}/gc.stamp"
        try:
            self._repo.make_directories(layout.STATE)
            with suppress(FileExistsError):
                fsops.create_file(self._repo.fd, path, b"", self._repo.owner)
            fsops.truncate(self._repo.fd, path, 0)  # dates it, empty as it is
            return os.stat(path, dir_fd=self._repo.fd).st_ctime_ns
        except OSError as error:
            if error.errno in _FULL:
                return time.time_ns() - _TICK
            raise SystemFailure.of(error, "write", os.path.join(self._repo.path, path)) from error
        except SystemFailure as error:
            if error.errno in _FULL:
                return time.time_ns() - _TICK
            raise

    def run(
        self,
        changes: list[RefChange],
        adopted: tuple[DeploymentId, ...],
        retired: RetirePlan | None,
        *,
        full: bool = False,
    ) -> GcResult:
        """Slices until nothing dead is left; where the disk is ``full`` there may be no room for ``meta.json`` before that."""
        stopped = None
        meta = self._write_meta(full=full)
        try:
            fsops.sync_filesystem(self._repo.fd)  # no ref that is gone may come back to find its target gone
        except OSError as error:
            raise SystemFailure.of(error, "sync", self._repo.path) from error
        with ThreadPoolExecutor(THREADS) as pool:
            while self._dead or self._parents:
                with self._repo.locked("exclusive", self._timeout):
                    self._slices += 1
                    end = time.monotonic() + SLICE
                    self._look_again()
                    try:
                        self._slice(pool, max(end, time.monotonic() + SLICE / 3))
                    except OSError as error:
                        raise SystemFailure.of(error, "delete in", self._repo.path) from error
                if self._enough():
                    stopped = "enough is free"
                    break
                if self._progress is not None:
                    self._progress(self._total - len(self._parents), self._total)
                if self._dead or self._parents:
                    time.sleep(PAUSE)
        return GcResult(
            tuple(changes),
            adopted,
            retired,
            self._swept,
            len(self._marker.live),
            self._marker.found(),
            self._slices,
            stopped,
            self._write_meta(full=full) or meta,
        )

    def _write_meta(self, *, full: bool) -> bool:
        try:
            return self._repo.write_meta()
        except SystemFailure as error:
            if not (full and error.errno in _FULL):
                raise
            return False

    def _look_again(self) -> None:
        """What links and refs were made since the marks keeps what it leads to."""
        now = Snapshot.read(self._repo)
        new = now.since(self._snapshot)
        self._snapshot = now
        if new.empty and not self._marker.problems:
            return
        self._marker.update(now)
        self._marker.mark_links(new)
        self._keep(new.refs)

    def _keep(self, roots: Mapping[str, str]) -> None:
        self._rest.clear()
        self._marker.mark(roots.items())
        _refuse_broken(self._marker, self._options)
        self._marker.keep_unnamed()
        self._dead = [(path, link) for path, link in self._dead if not _is_live(self._repo, self._marker.live, link)]

    def _slice(self, pool: ThreadPoolExecutor, deadline: float) -> None:
        if self._dead:
            self._remove_links(deadline)
            if self._dead or time.monotonic() >= deadline:
                return
        if self._options.free_bytes is not None:
            # one after the other: the dry run counts in the same order
            while self._parents and time.monotonic() < deadline and not self._enough():
                self._swept = self._swept.plus(self._sweep_next(deadline, _Permit()))
            return
        permit = _Permit()
        try:
            futures = [pool.submit(self._sweep_some, permit, deadline) for _ in range(THREADS)]
            for future in futures:
                self._swept = self._swept.plus(future.result())
        finally:
            permit.take_back()

    def _sweep_some(self, permit: _Permit, deadline: float) -> Swept:
        """In a thread: one directory after the other, until the time is over or there are no more."""
        swept = Swept()
        if permit.enter():
            try:
                with suppress(IndexError):  # another thread took the last one
                    while self._parents and permit.given and time.monotonic() < deadline:
                        swept = swept.plus(self._sweep_next(deadline, permit))
            finally:
                permit.leave()
        return swept

    def _enough(self) -> bool:
        return self._options.free_bytes is not None and self._swept.allocated >= self._options.free_bytes

    def _remove_links(self, deadline: float) -> None:
        touched = set()
        while self._dead and time.monotonic() < deadline:
            path, link = self._dead.pop()
            tree, _, name = path.partition("/")
            links = self._snapshot.streams if tree == layout.STREAMS else self._snapshot.images
            if links.get(name) != link:
                continue  # somebody made it anew, or removed it
            fsops.remove(self._repo.fd, path)
            del links[name]
            touched.add(tree)
            self._swept = self._swept.plus(Swept(streams=tree == layout.STREAMS, images=tree == layout.IMAGES))
        for tree in touched:
            fsops.sync(self._repo.fd, tree)

    def _sweep_next(self, deadline: float, permit: _Permit) -> Swept:
        """Delete the dead objects of the next directory; where the time is over before the end, it is the next once more."""
        parent = self._parents.pop()
        fd = self._repo.directory(f"{layout.OBJECTS}/{parent}")
        if fd is None:
            return Swept()
        objects = allocated = size = 0
        wanted = self._options.free_bytes
        try:
            names = self._rest.pop(parent, None)
            if names is None:
                names = _dead_names(self._repo, parent, os.listdir(fd), self._marker.live)
                if wanted is not None:
                    names.sort()
            for number, name in enumerate(names):
                # a batch each time: a look at the names may take longer than all the time there is
                if number and number % BATCH == 0 and not (permit.given and time.monotonic() < deadline):
                    self._rest[parent] = names[number:]
                    self._parents.append(parent)
                    break
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if status.st_ctime_ns >= self._limit or not stat.S_ISREG(status.st_mode):
                        continue
                    fsops.remove(fd, name)
                except FileNotFoundError:
                    continue
                objects += 1
                allocated += status.st_blocks * 512
                size += status.st_size
                if wanted is not None and self._swept.allocated + allocated >= wanted:
                    break
        finally:
            os.close(fd)
        return Swept(objects, allocated, size)
