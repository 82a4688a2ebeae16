"""Deleting what is dead, a slice at a time, so that others get in."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from functools import reduce
from threading import Condition, Thread
from typing import TYPE_CHECKING

from cfs_tags.errors import SystemFailure
from cfs_tags.gc.dead import dead_links, sort_out
from cfs_tags.gc.mark import settle
from cfs_tags.gc.values import Swept
from cfs_tags.inventory import object_directories
from cfs_tags.repo import fsops, layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfs_tags.gc.mark import Marks, Snapshot
    from cfs_tags.gc.values import GcOptions, Pace
    from cfs_tags.repo.store import WriteRepo


class Sweep:
    """What is dead by some marks, and its deletion.

    Args:
        repo: where; its lock is held.
        marks: what stays.
        options: see :class:`~cfs_tags.gc.values.GcOptions`.
        limit: objects that changed at this time or later stay, in nanoseconds since 1970.
        pace: how much is done at a time.

    Attributes:
        dead: links that go, path and text, the first one last.
        swept: what was deleted.
        absent: keys of live objects that are not there (see ``inventory.py``).

    Raises:
        FormatError, SystemFailure: a directory of objects cannot be opened; nothing was deleted.
    """

    def __init__(self, repo: WriteRepo, marks: Marks, options: GcOptions, limit: int, pace: Pace) -> None:
        self.dead = dead_links(marks)
        self.swept = Swept()
        self.absent: set[int] = set()
        self._repo = repo
        self._marks = marks
        self._options = options
        self._limit = limit
        self._pace = pace
        self._parents = object_directories(repo)[::-1]
        self._total = len(self._parents)
        self._rest: dict[str, list[str]] = {}
        self.absent.update(marks.live.outside(self._parents))
        for parent in self._parents:  # one that cannot be opened is said before anything is deleted
            fd = repo.directory(f"{layout.OBJECTS}/{parent}")
            if fd is not None:
                os.close(fd)

    @property
    def is_done(self) -> bool:
        """Whether nothing dead is left."""
        return not (self.dead or self._parents)

    @property
    def is_enough(self) -> bool:
        """Whether as many bytes are free as were asked for."""
        return self._options.free_bytes is not None and self.swept.allocated >= self._options.free_bytes

    @property
    def progress(self) -> tuple[int, int]:
        """Of how many directories of objects all is done, and how many there are."""
        return self._total - len(self._parents), self._total

    def look_again(self, now: Snapshot) -> None:
        """What links and refs were made since the marks keeps what it leads to.

        Args:
            now: all names, read after the lock was taken.

        Raises:
            BrokenRoots: something new cannot be followed.
        """
        new = now.since(self._marks.snapshot)
        if new.empty and not self._marks.problems:
            self._marks.snapshot = now
            return
        self._marks.update(now)
        self._marks.mark_links(new)
        self.keep(new.refs)

    def keep(self, roots: Mapping[str, str]) -> None:
        """Mark what refs lead to, and take it out of the dead.  Raises as :meth:`look_again`."""
        self._rest.clear()
        self._marks.mark(roots.items())
        settle(self._marks, self._options)
        self.dead = [(path, link) for path, link in self.dead if not self._marks.keeps(link)]

    def delete(self, deadline: float) -> None:
        """Delete for some time; the exclusive lock is held.  Links first, and they are synced before the first object.

        Something is deleted however short the time is: a machine that is slow comes to an end all the same.

        Args:
            deadline: when to end, by :func:`time.monotonic`.

        Raises:
            SystemFailure: the system refused; what was deleted by then is gone.
        """
        try:
            if self.dead:
                self._delete_links(deadline)
                if self.dead or time.monotonic() >= deadline:
                    return
            if self._options.free_bytes is not None:
                # one after the other: the dry run counts in the same order
                while self._parents and not self.is_enough:
                    self.swept = self.swept.plus(self._delete_next(deadline, Permit()))
                    if time.monotonic() >= deadline:
                        break
                return
            self._delete_side_by_side(deadline)
        except OSError as error:
            raise SystemFailure.of(error, "delete in", self._repo.path) from error

    def _delete_links(self, deadline: float) -> None:
        touched = set()
        while self.dead:
            path, link = self.dead.pop()
            tree, _, name = path.partition("/")
            links = self._marks.snapshot.streams if tree == layout.STREAMS else self._marks.snapshot.images
            if links.get(name) == link:  # else it was made anew, or removed
                fsops.remove(self._repo.fd, path)
                del links[name]
                touched.add(tree)
                self.swept = self.swept.plus(Swept(streams=tree == layout.STREAMS, images=tree == layout.IMAGES))
            if time.monotonic() >= deadline:
                break
        for tree in touched:
            fsops.sync(self._repo.fd, tree)

    def _delete_side_by_side(self, deadline: float) -> None:
        """In several threads, or in fewer where the system gives no more of them."""
        permit = Permit()
        swept: list[Swept] = []
        errors: list[BaseException] = []

        def share() -> None:
            try:
                self._delete_some(permit, deadline, swept)
            except BaseException as error:
                errors.append(error)

        threads = [Thread(target=share, daemon=True) for _ in range(self._pace.threads - 1)]
        try:
            with suppress(RuntimeError):  # the system gives no more threads
                for thread in threads:
                    thread.start()
            self._delete_some(permit, deadline, swept)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        finally:
            permit.take_back()
            self.swept = reduce(Swept.plus, swept, self.swept)
        if errors:
            raise errors[0]

    def _delete_some(self, permit: Permit, deadline: float, swept: list[Swept]) -> None:
        """One directory after the other, until the time is over or there are no more."""
        if permit.enter():
            try:
                with suppress(IndexError):  # another thread took the last one
                    while self._parents and permit.given:
                        swept.append(self._delete_next(deadline, permit))
                        if time.monotonic() >= deadline:
                            break
            finally:
                permit.leave()

    def _delete_next(self, deadline: float, permit: Permit) -> Swept:
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
                with self._repo.reading(f"{layout.OBJECTS}/{parent}"):
                    listed = os.listdir(fd)
                names, absent = sort_out(self._repo, parent, listed, self._marks.live)
                self.absent.update(absent)
                if wanted is not None:
                    names.sort()
            for number, name in enumerate(names):
                # a batch each time: a look at the names may take longer than all the time there is
                if number and number % self._pace.batch == 0 and not (permit.given and time.monotonic() < deadline):
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
                if wanted is not None and self.swept.allocated + allocated >= wanted:
                    break
        finally:
            os.close(fd)
        return Swept(objects, allocated, size)


class Permit:
    """What lets threads delete while the lock is held.  Once it was taken back no thread begins, and none is deleting."""

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
        """Wait until no thread deletes any more: without the lock none may.  An interrupt is kept for afterwards."""
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
