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
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.deploying import GRACE, adopt, plan_adoption, plan_parts, plan_retire, retire
from cfs_tags.errors import BrokenRoots, CfsTagsError, IncompleteTarget, SystemFailure, UnresolvedDeployment
from cfs_tags.formats import layout
from cfs_tags.lookup import ref_state
from cfs_tags.marking import Marker, Snapshot, in_processes, names_of_objects
from cfs_tags.repo import fsops, refs
from cfs_tags.repo.refs import NO_NOTE, Note, RefChange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cfs_tags.deploying import DeploymentPlan, RetirePlan
    from cfs_tags.marking import Problem
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.sysroot import SysrootView
    from cfs_tags.values import DeploymentId

__all__ = ["DEFAULT_TIMEOUT", "SLICE", "GcOptions", "GcPlan", "GcResult", "Swept", "collect", "plan"]

DEFAULT_TIMEOUT = 300.0
"""Seconds that a collection waits for its locks."""
SLICE = 0.3
"""Seconds that the exclusive lock is held for deletions at a time."""
PAUSE = 0.005
"""Seconds between two slices."""
_THREADS = 8
_BATCH = 64
_EXPIRY = re.compile(rf"{layout.OUR_REFS}/(?:leases|trash)/(\d{{8}}T\d{{6}}Z)\.\d+/[^/]+", re.ASCII)


class GcOptions(NamedTuple):
    """What a collection is asked to do besides.

    ``roots`` are names in ``streams/`` or ``images/`` that stay; ``free_bytes`` stops when so much was freed (allocated
    bytes); ``grace`` keeps what is younger, in seconds; ``prune_referrers`` removes referrers of dead subjects;
    ``keep_broken`` goes on where something could not be followed; ``image_only`` keeps the EROFS image alone of a
    deployment that cannot be resolved.
    """

    roots: tuple[str, ...] = ()
    free_bytes: int | None = None
    grace: float = 0.0
    prune_referrers: bool = False
    keep_broken: bool = False
    image_only: bool = False
    retire_grace: float = GRACE


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
    ``problems`` what could not be followed (with ``keep_broken`` only: else they are raised).
    """

    changes: tuple[RefChange, ...]
    adopted: tuple[DeploymentId, ...]
    retired: RetirePlan | None
    swept: Swept
    live: int
    problems: tuple[Problem, ...]


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


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(repo: ReadRepo, options: GcOptions = GcOptions(), view: SysrootView | None = None) -> GcPlan:  # noqa: B008
    """What :func:`collect` would do now; the repository lock is held shared meanwhile by the caller.

    Raises:
        BrokenRoots: something that a ref leads to cannot be followed, and ``keep_broken`` was not asked for.
        UnresolvedDeployment: a deployment has no ref and cannot be given one, and ``image_only`` was not asked for.
    """
    changes = list(plan_expiry(repo))
    adopted: tuple[DeploymentId, ...] = ()
    retired = None
    if view is not None:
        adoption = plan_deployments(repo, view, image_only=options.image_only)
        adopted = adoption.ids
        retired = plan_retire(repo, view, grace=options.retire_grace)
        changes.extend([*adoption.changes, *retired.changes])
    snapshot = Snapshot.read(repo)
    for change in changes:
        if change.new is None:
            snapshot.refs.pop(change.path, None)
        else:
            snapshot.refs[change.path] = change.new
    stamp = time.time_ns() - 10_000_000
    marker = _mark(repo, snapshot, options, stamp, changes)
    dead = _dead_links(repo, snapshot, marker)
    swept = _count_dead(repo, marker.live, _limit(options, stamp), options.free_bytes)
    swept = swept.plus(Swept(streams=sum(path.startswith(layout.STREAMS) for path, _ in dead)))
    swept = swept.plus(Swept(images=sum(path.startswith(layout.IMAGES) for path, _ in dead)))
    return GcPlan(tuple(changes), adopted, retired, swept, len(marker.live), marker.found())


def plan_expiry(repo: ReadRepo, now: float | None = None) -> Iterator[RefChange]:
    """Removal of leases and trash whose time is over."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() if now is None else now))
    for top in (layout.LEASES, layout.TRASH):
        for path, link in refs.walk(repo, top):
            match = _EXPIRY.fullmatch(path)
            if match is not None and link is not None and match[1] <= moment:
                yield RefChange(path, link, None, "expire")


def plan_deployments(repo: ReadRepo, view: SysrootView, *, image_only: bool = False) -> DeploymentPlan:
    """Adoption, and for what cannot be adopted the image part alone.

    Raises:
        UnresolvedDeployment: such a deployment, and ``image_only`` is not set.
    """
    adoption = plan_adoption(repo, view)
    changes = list(adoption.changes)
    ids = list(adoption.ids)
    for name in view.seen:
        if name in adoption.ids or ref_state(repo, name).status == "complete":
            continue
        here = repo.image_object(name) is not None
        if not here and "state" not in view.seen[name]:
            continue  # another system's boot entry
        if not image_only:
            raise UnresolvedDeployment(deployment=name, notes=("it has no complete ref, and none can be made",))
        try:
            parts = plan_parts(repo, name, None, "adopt")
        except IncompleteTarget:
            continue  # without an EROFS image there is nothing that a ref could keep
        if parts:
            changes.extend(parts)
            ids.append(name)
    return adoption._replace(changes=tuple(changes), ids=tuple(ids))


def _mark(repo: ReadRepo, snapshot: Snapshot, options: GcOptions, stamp: int, changes: list[RefChange]) -> Marker:
    marker = Marker(repo, snapshot)
    roots = dict(snapshot.refs)
    if options.prune_referrers:
        pruned = _prune(repo, snapshot, marker)
        for path in pruned:
            changes.append(RefChange(path, roots.pop(path), None, "prune"))
            snapshot.refs.pop(path)
    marker.mark(roots.items())
    named = Snapshot({}, {}, {})
    for name in options.roots:
        for links, mine in ((snapshot.streams, named.streams), (snapshot.images, named.images)):
            if name in links:
                mine[name] = links[name]
    if options.grace:
        limit = stamp - int(options.grace * 1e9)
        for tree, links, mine in (
            (layout.STREAMS, snapshot.streams, named.streams),
            (layout.IMAGES, snapshot.images, named.images),
        ):
            mine.update({name: link for name, link in links.items() if _changed(repo, tree, name, link) >= limit})
    marker.mark_links(named)
    problems = marker.found()
    if problems and not options.keep_broken:
        raise BrokenRoots(problems=tuple((problem.message, problem.refs) for problem in problems))
    return marker


def _prune(repo: ReadRepo, snapshot: Snapshot, marker: Marker) -> list[str]:
    """Referrers whose subject was here and is dead, to a fixed point: a signature may itself be signed."""
    top = f"{layout.REFERRERS}/"
    waiting: dict[str, str] = {}
    first: list[tuple[str, str]] = []
    for path, link in snapshot.refs.items():
        subject = path[len(top) :].partition("/")[0] if path.startswith(top) else None
        if subject is None or not _was_here(repo, snapshot, subject):
            first.append((path, link))
        else:
            waiting[path] = link
    marker.mark(first)
    while True:
        ready = [(path, link) for path, link in waiting.items() if _subject_lives(repo, snapshot, marker, path[len(top) :])]
        if not ready:
            return list(waiting)
        for path, _ in ready:
            del waiting[path]
        marker.mark(ready)


def _subject_lives(repo: ReadRepo, snapshot: Snapshot, marker: Marker, relative: str) -> bool:
    link = snapshot.streams.get(f"oci-manifest-{relative.partition('/')[0]}")
    return link is not None and _is_live(repo, marker.live, link)


def _was_here(repo: ReadRepo, snapshot: Snapshot, subject: str) -> bool:
    """Whether a subject was ever in this repository: it still has its link, or a tag named it once."""
    if f"oci-manifest-{subject}" in snapshot.streams:
        return True
    from cfs_tags.repo import reflog

    needle = f"oci-manifest-{subject}"
    return any(
        (entry.old or "").endswith(needle) or (entry.new or "").endswith(needle) for entry in reflog.all_entries(repo).entries
    )


def _changed(repo: ReadRepo, tree: str, name: str, link: str) -> int:
    """When the object behind a link was last changed, in nanoseconds since 1970; 0 where there is none."""
    try:
        path = layout.object_path(layout.object_of_link(link, repo.algorithm, f"{tree}/{name}"))
        return os.stat(path, dir_fd=repo.fd, follow_symlinks=False).st_ctime_ns
    except (OSError, CfsTagsError):
        return 0


def _dead_links(repo: ReadRepo, snapshot: Snapshot, marker: Marker) -> list[tuple[str, str]]:
    """Links in ``streams/`` and ``images/`` whose object goes, or is gone: path and text."""
    return [
        (f"{tree}/{name}", link)
        for tree, links in ((layout.STREAMS, snapshot.streams), (layout.IMAGES, snapshot.images))
        for name, link in links.items()
        if link and not _is_live(repo, marker.live, link)
    ]


def _is_live(repo: ReadRepo, live: set[int], link: str) -> bool:
    # the text of a link to an object ends in XX/YYYY…: its first 16 digits without cutting the rest
    digits = link[-(repo.algorithm.hex_length + 1) :]
    try:
        return int(digits[:2] + digits[3:17], 16) in live
    except ValueError:
        return True  # it leads to no object: not ours to judge


def _limit(options: GcOptions, stamp: int) -> int:
    """Objects that changed at this time (nanoseconds since 1970) or later stay."""
    return stamp - int(options.grace * 1e9)


# -- counting, for a dry run -------------------------------------------------------------------------------------------


def _count_dead(repo: ReadRepo, live: set[int], limit: int, free_bytes: int | None) -> Swept:
    parents = sorted(repo.names(layout.OBJECTS) or ())
    if free_bytes is not None:
        total = Swept()
        for parent in parents:
            total, done = _count_directory(repo, parent, live, limit, total, free_bytes)
            if done:
                break
        return total
    return in_processes(lambda mine: _count_some(repo, mine, live, limit), Swept.plus, parents)


def _count_some(repo: ReadRepo, parents: Sequence[str], live: set[int], limit: int) -> Swept:
    total = Swept()
    for parent in parents:
        total, _ = _count_directory(repo, parent, live, limit, total, None)
    return total


def _count_directory(
    repo: ReadRepo, parent: str, live: set[int], limit: int, total: Swept, free_bytes: int | None
) -> tuple[Swept, bool]:
    fd = repo.directory(f"{layout.OBJECTS}/{parent}")
    if fd is None:
        return total, False
    objects, allocated, size = total[:3]
    look = os.stat
    try:
        for name in _dead_names(repo, parent, os.listdir(fd), live):
            try:
                status = look(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_ctime_ns >= limit or not stat.S_ISREG(status.st_mode):
                continue
            objects += 1
            allocated += status.st_blocks * 512
            size += status.st_size
            if free_bytes is not None and allocated >= free_bytes:
                return total._replace(objects=objects, allocated=allocated, size=size), True
    finally:
        os.close(fd)
    return total._replace(objects=objects, allocated=allocated, size=size), False


def _dead_names(repo: ReadRepo, parent: str, names: list[str], live: set[int]) -> list[str]:
    """Names of dead objects in ``objects/<parent>``."""
    names, keys = names_of_objects(repo, parent, names)
    return [name for name, key in zip(names, keys, strict=True) if key not in live]


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
        BrokenRoots, UnresolvedDeployment: as :func:`plan`; nothing was collected.
        LockTimeout: the lock was not to be had; what was deleted by then is gone, the next run goes on.
        SystemFailure: the system refused; likewise.
    """
    adopted: tuple[DeploymentId, ...] = ()
    retired = None
    changes: list[RefChange] = []
    if read_view is not None:
        view = read_view()
        plan_deployments(repo, view, image_only=options.image_only)  # refuses before anything is changed
        if options.image_only:
            made, _ = refs.transact(repo, lambda: plan_deployments(repo, view, image_only=True), note, timeout)
        else:
            made = adopt(repo, view, note=note, timeout=timeout)
        adopted = made.ids
        retired = retire(repo, read_view, grace=options.retire_grace, note=note, timeout=timeout)
        changes.extend([*made.changes, *retired.changes])
    sweep = _Sweep(repo, options, timeout, progress)
    with repo.locked("shared", timeout):
        changes.extend(sweep.mark(note, timeout))
    return sweep.run(changes, adopted, retired)


class _Changes(NamedTuple):
    changes: tuple[RefChange, ...]


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

    def mark(self, note: Note, timeout: float) -> list[RefChange]:
        """Remove refs whose time is over, and mark; the shared lock is held."""
        gone: list[RefChange] = []
        expired, _ = refs.transact(self._repo, lambda: _Changes(tuple(plan_expiry(self._repo))), note, timeout)
        gone.extend(expired.changes)
        stamp = self._stamp()
        self._snapshot = Snapshot.read(self._repo)
        pruned: list[RefChange] = []
        self._marker = _mark(self._repo, self._snapshot, self._options, stamp, pruned)
        if pruned:
            refs.transact(self._repo, lambda: _Changes(tuple(pruned)), note, timeout)
            gone.extend(pruned)
        self._dead = _dead_links(self._repo, self._snapshot, self._marker)
        self._limit = _limit(self._options, stamp)
        self._parents = sorted(self._repo.names(layout.OBJECTS) or (), reverse=True)
        self._total = len(self._parents)
        return gone

    def _stamp(self) -> int:
        """Now, by the clock of the file system: the one that dates objects."""
        path = f"{layout.STATE}/gc.stamp"
        self._repo.make_directories(layout.STATE)
        try:
            fsops.replace_file(self._repo.fd, path, b"", f"{path}.new", self._repo.owner)
            return os.stat(path, dir_fd=self._repo.fd).st_ctime_ns
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return time.time_ns() - 1_000_000_000  # a full disk must not keep a collector from making room
            raise SystemFailure.of(error, "write", os.path.join(self._repo.path, path)) from error

    def run(self, changes: list[RefChange], adopted: tuple[DeploymentId, ...], retired: RetirePlan | None) -> GcResult:
        """Slices until nothing dead is left."""
        stopped = None
        with ThreadPoolExecutor(_THREADS) as pool:
            while self._dead or self._parents:
                with self._repo.locked("exclusive", self._timeout):
                    self._slices += 1
                    self._look_again()
                    deadline = time.monotonic() + SLICE
                    try:
                        self._slice(pool, deadline)
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
        )

    def _look_again(self) -> None:
        """What links were made since the marks keeps what it leads to."""
        now = Snapshot.read(self._repo)
        new = now.since(self._snapshot)
        self._snapshot = now
        if new.empty:
            return
        known = set(self._marker.problems)
        self._marker.update(now)
        self._marker.mark(new.refs.items())
        self._marker.mark_links(new)
        if not self._options.keep_broken and set(self._marker.problems) - known:
            raise BrokenRoots(problems=tuple((problem.message, problem.refs) for problem in self._marker.found()))
        self._dead = [(path, link) for path, link in self._dead if not _is_live(self._repo, self._marker.live, link)]

    def _slice(self, pool: ThreadPoolExecutor, deadline: float) -> None:
        if self._dead:
            self._remove_links(deadline)
            if self._dead or time.monotonic() >= deadline:
                return
        if self._options.free_bytes is not None:
            # one after the other: the dry run counts in the same order
            while self._parents and time.monotonic() < deadline and not self._enough():
                self._take(self._parents[-1], self._sweep_directory(self._parents[-1], deadline))
            return
        while self._parents and time.monotonic() < deadline:
            batch = self._parents[-_THREADS:]
            for parent, result in zip(batch, pool.map(lambda one: self._sweep_directory(one, deadline), batch), strict=True):
                self._take(parent, result)

    def _take(self, parent: str, result: tuple[Swept, bool]) -> None:
        swept, finished = result
        self._swept = self._swept.plus(swept)
        if finished:
            self._parents.remove(parent)

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

    def _sweep_directory(self, parent: str, deadline: float) -> tuple[Swept, bool]:
        """Delete the dead objects of one directory; False where the time was over before the end."""
        fd = self._repo.directory(f"{layout.OBJECTS}/{parent}")
        if fd is None:
            return Swept(), True
        objects = allocated = size = 0
        wanted = self._options.free_bytes
        try:
            for number, name in enumerate(_dead_names(self._repo, parent, os.listdir(fd), self._marker.live)):
                if number % _BATCH == 0 and time.monotonic() >= deadline:
                    return Swept(objects, allocated, size), False
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
        return Swept(objects, allocated, size), True
