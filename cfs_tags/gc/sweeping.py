"""Deleting what is dead, a slice at a time, so that others get in."""

from __future__ import annotations

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Condition
from typing import TYPE_CHECKING

from cfs_tags.errors import SystemFailure
from cfs_tags.formats import layout
from cfs_tags.gc.dead import dead_links, dead_names, refuse_unseen
from cfs_tags.gc.expiring import Changes
from cfs_tags.gc.marks import is_live, limit_of, mark_all, settle, subject_lives
from cfs_tags.gc.values import GcResult, Swept
from cfs_tags.inventory import object_directories
from cfs_tags.marking import Snapshot
from cfs_tags.repo import fsops, refs
from cfs_tags.repo.refs import Note, RefChange

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cfs_tags.deploying import RetirePlan
    from cfs_tags.gc.values import GcOptions
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.values import DeploymentId

__all__ = ["BATCH", "FULL", "PAUSE", "SLICE", "THREADS", "TICK", "Sweep"]

SLICE = 0.3
"""Seconds that the exclusive lock is held for deletions at a time."""
PAUSE = 0.005
"""Seconds between two slices."""
THREADS = 16
"""Threads that delete at a time: a deletion waits for the disk."""
BATCH = 64
"""Objects that one thread deletes between two looks at the clock."""
TICK = 20_000_000
"""Nanoseconds by which the clock of a file system may be behind: it goes by ticks."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class Permit:
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


class Sweep:
    """A collection after its first refs: ``mark``, ``prune`` where there is anything to prune, ``run``."""

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
        self._marker, pruned = mark_all(self._repo, self._snapshot, self._options, stamp, unmade, gone=made)
        self._dead = dead_links(self._repo, self._snapshot, self._marker)
        if not seen:
            refuse_unseen(self._repo, self._snapshot, self._dead, self._options)
        self._limit = limit_of(self._options, stamp)
        self._parents = object_directories(self._repo)[::-1]
        self._total = len(self._parents)
        for parent in self._parents:  # one that cannot be opened is said before anything is deleted
            fd = self._repo.directory(f"{layout.OBJECTS}/{parent}")
            if fd is not None:
                os.close(fd)
        return pruned

    def prune(self, found: Sequence[RefChange], note: Note, timeout: float) -> tuple[RefChange, ...]:
        """Remove referrers, under the exclusive lock: those whose subject got a ref since the marks stay."""

        def planned() -> Changes:
            self._look_again()
            waiting = {change.path: change for change in found if self._snapshot.refs.get(change.path) == change.old}
            while True:
                ready = [path for path in waiting if subject_lives(self._repo, self._snapshot, self._marker, path)]
                if not ready:
                    return Changes(tuple(waiting.values()))
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
        except (OSError, SystemFailure) as error:
            if error.errno in FULL:
                return time.time_ns() - TICK
            if isinstance(error, SystemFailure):
                raise
            raise SystemFailure.of(error, "write", os.path.join(self._repo.path, path)) from error

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
            if not (full and error.errno in FULL):
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
        settle(self._marker, self._options)
        self._dead = [(path, link) for path, link in self._dead if not is_live(self._repo, self._marker.live, link)]

    def _slice(self, pool: ThreadPoolExecutor, deadline: float) -> None:
        if self._dead:
            self._remove_links(deadline)
            if self._dead or time.monotonic() >= deadline:
                return
        if self._options.free_bytes is not None:
            # one after the other: the dry run counts in the same order
            while self._parents and time.monotonic() < deadline and not self._enough():
                self._swept = self._swept.plus(self._sweep_next(deadline, Permit()))
            return
        permit = Permit()
        try:
            futures = [pool.submit(self._sweep_some, permit, deadline) for _ in range(THREADS)]
            for future in futures:
                self._swept = self._swept.plus(future.result())
        finally:
            permit.take_back()

    def _sweep_some(self, permit: Permit, deadline: float) -> Swept:
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

    def _sweep_next(self, deadline: float, permit: Permit) -> Swept:
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
                names = dead_names(self._repo, parent, os.listdir(fd), self._marker.live)
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
