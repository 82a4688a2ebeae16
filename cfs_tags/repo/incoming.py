"""What a writer of content has under way, in a directory of its own in ``cfs-tags/incoming/``.

Content is added under the shared repository lock alone, for as long as a download takes, while writers of refs come and
go.  So its writer has a directory here, locked with ``flock`` on the directory itself.  That lock ends with the last
process that has it open, whatever the number of that process and wherever it ran; so it is the sign of life, and the
directory is the mark that content is being added:

* What is to take the place of something that has a name already is made in it, and renamed.
* A directory without its lock was left by a writer that was killed, which may have given names to content that is not on
  disk.  The next writer has everything on disk before it removes the directory; so what is there already can be relied on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from cfs_tags.errors import SystemFailure
from cfs_tags.repo import fsops, layout
from cfs_tags.repo.lock import take_at_once
from cfs_tags.repo.store import ReadRepo, WriteRepo

INCOMING = f"{layout.STATE}/incoming"


class Incoming:
    """The directory of a writer of content.  Close it, or use it as a context manager.

    Attributes:
        path: of the directory, from the repository.

    Raises:
        SystemFailure: the system refused.
    """

    def __init__(self, repo: WriteRepo) -> None:
        self.path = ""
        self._repo = repo
        self._fd: int | None = None
        repo.make_directories(INCOMING)
        while self._fd is None:
            self.path = f"{INCOMING}/{os.urandom(8).hex()}"
            try:
                fsops.make_directory(repo.fd, self.path)
                # None where another writer took it for left over before it was locked
                self._fd = _locked(repo, self.path)
            except OSError as error:
                raise SystemFailure.of(error, "make", os.path.join(repo.path, self.path)) from error

    def put_in_place(self, path: str, make: Callable[[str], object]) -> None:
        """Have a path name something else from one instant to the next.

        Args:
            path: of what is replaced, from the repository.
            make: makes what comes in its place, at the path that it is given.

        Raises:
            OSError: the system refused; ``path`` names what it named.
        """
        spare = f"{self.path}/{os.urandom(8).hex()}"
        make(spare)
        fsops.rename(self._repo.fd, spare, path)

    def close(self) -> None:
        """Remove the directory, with what an error left in it.  Harmless when repeated."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                with suppress(OSError, SystemFailure):
                    _remove(self._repo, self.path)
            finally:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def put_in_place(repo: WriteRepo, path: str, make: Callable[[str], object]) -> None:
    """The same as :meth:`Incoming.put_in_place` with a directory for this alone."""
    with Incoming(repo) as incoming:
        incoming.put_in_place(path, make)


def clear(repo: WriteRepo) -> None:
    """Have on disk what killed writers of content may have named, then remove what they left.

    Raises:
        OSError, SystemFailure: the system refused.
    """
    synced = False
    for path in directories(repo):
        fd = _locked(repo, path)
        if fd is None:
            continue
        try:
            if not synced:
                fsops.sync_filesystem(repo.fd)
                synced = True
            with suppress(OSError):  # what none of our writers made, a directory: it stays
                _remove(repo, path)
        finally:
            os.close(fd)


def left_over(repo: ReadRepo) -> list[str]:
    """The paths of directories whose writer was killed."""
    found = []
    for path in directories(repo):
        fd = _locked(repo, path)
        if fd is not None:
            os.close(fd)
            found.append(path)
    return found


def is_busy(repo: ReadRepo) -> bool:
    """Whether content is being added, or was by a writer that was killed: what is there may not be on disk yet."""
    return bool(directories(repo))


def directories(repo: ReadRepo) -> list[str]:
    """The paths of the directories of writers, alive or not."""
    if not repo.is_directory(INCOMING):
        return []
    paths = [f"{INCOMING}/{name}" for name in sorted(repo.names(INCOMING) or ())]
    return [path for path in paths if repo.is_directory(path)]


def _locked(repo: ReadRepo, path: str) -> int | None:
    """A descriptor of a directory, locked; None where it is gone, or its writer has the lock."""
    fd = repo.directory(path)
    if fd is None:
        return None
    try:
        if take_at_once(fd, "exclusive") and repo.is_directory(path):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _remove(repo: WriteRepo, path: str) -> None:
    for name in repo.names(path) or ():
        fsops.remove(repo.fd, f"{path}/{name}")
    fsops.remove_directory(repo.fd, path)
