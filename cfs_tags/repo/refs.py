"""Reading refs.  ``transaction/run.py`` changes them.

A look at several refs takes no lock as long as no transaction comes in between: :func:`read_at_once`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import wraps
from threading import get_ident
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from cfs_tags.errors import CfsTagsError, LockConflict, LockTimeout, NotALink, SystemFailure
from cfs_tags.repo import layout
from cfs_tags.repo.directory import all_names, is_settled
from cfs_tags.repo.layout import JOURNALS, LOCK_FILE
from cfs_tags.repo.lock import Lock
from cfs_tags.repo.store import ReadRepo

P = ParamSpec("P")
T = TypeVar("T")

_TRIES = 3


class RefEntry(NamedTuple):
    """Something below ``refs/``: its path from the repository, and the text of its link, None where it is no link."""

    path: str
    target: str | None


def read_at_once(repo: ReadRepo, read: Callable[[], T], patience: float | None = 1.0) -> T:
    """What ``read`` makes of several refs, where of each transaction of this program it sees all changes, or none.

    Each transaction with a step that others could see has a journal: where the directory of journals is empty before, and
    has not changed afterwards, there was none.  Else ``read`` is called again, at last with the lock of the writers held
    shared.  Where that is not to be had, because a writer is stopped or this user may not open the file, refs are seen as
    they are.  So they are, too, after a writer was killed in the middle, until the next one finishes its transaction or
    takes it back.

    Args:
        repo: where.
        read: only reads, and takes no lock; what it calls may call this, too.
        patience: seconds that the lock is waited for; None where it is not taken at all.
    """
    thread = get_ident()
    if thread in repo.at_rest:
        return read()
    repo.at_rest.add(thread)
    try:
        for _ in range(_TRIES):
            stamp = _stamp(repo)
            if stamp is None:
                break
            try:
                found = read()
            except CfsTagsError:
                if _stamp(repo, stamp) == stamp:
                    raise
            else:
                if _stamp(repo, stamp) == stamp:
                    return found
        with ExitStack() as held:
            if patience is not None:
                with suppress(LockTimeout, LockConflict, SystemFailure):
                    lock = Lock.of(repo.fd, LOCK_FILE, os.path.join(repo.path, LOCK_FILE))
                    held.enter_context(lock.hold("shared", repo.fd, LOCK_FILE, patience, queue=True))
            return read()
    finally:
        repo.at_rest.discard(thread)


def _stamp(repo: ReadRepo, before: int | None = None) -> int | None:
    """The time stamp of the directory of journals, 0 where there is none; None while a transaction may be on its way.

    Where it is still the one of ``before``, nothing else is looked at.
    """
    try:
        fd = repo.hold_directory(JOURNALS)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        stamp = status.st_mtime_ns
        if stamp == before or (status.st_nlink and is_settled(stamp) and _is_empty(fd)):
            return stamp
    except OSError:
        pass
    return None


def _is_empty(held: int) -> bool:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)  # threads that share one would share its place, too
    try:
        return not os.listdir(fd)
    finally:
        os.close(fd)


def at_once(read: Callable[Concatenate[ReadRepo, P], T]) -> Callable[Concatenate[ReadRepo, P], T]:
    """A function that reads refs of the repository that is its first argument, called as by :func:`read_at_once`."""

    @wraps(read)
    def reading(repo: ReadRepo, /, *args: P.args, **named: P.kwargs) -> T:
        return read_at_once(repo, lambda: read(repo, *args, **named))

    return reading


@at_once
def everything(repo: ReadRepo) -> dict[str, str]:
    """All refs: path and text of the link; the empty text where there is none, or the system does not give it.

    Raises:
        FormatError: as :func:`walk`.
    """
    return {path: link or "" for tree in (layout.STREAM_REFS, layout.IMAGE_REFS) for path, link in walk(repo, tree)}


def not_given(repo: ReadRepo, path: str) -> SystemFailure | None:
    """Of a ref without a text: how the system refuses it; None where it is no link."""
    try:
        repo.read_link(path)
    except SystemFailure as error:
        return error
    except NotALink:
        pass
    return None


def why_no_link(repo: ReadRepo, path: str) -> str:
    """The same as a line for people."""
    refused = not_given(repo, path)
    return refused.message if refused is not None else f"{path} is no link"


def walk(repo: ReadRepo, top: str) -> Iterator[RefEntry]:
    """All that stands below a directory of refs, at any depth, directories themselves excepted; nothing where it is absent.

    Names come in no order.  What vanishes while it is read is left out.

    Args:
        repo: where.
        top: ``streams/refs``, ``images/refs`` or a directory below them.

    Raises:
        FormatError: a directory on the way is a link or file.
        SystemFailure: the system would not say whether something is a directory.
    """
    pending = [top]
    while pending:
        path = pending.pop()
        fd = repo.directory(path)
        if fd is None:
            continue
        try:
            with repo.reading(path):
                for name in all_names(fd):
                    place = f"{path}/{name}"
                    try:
                        yield RefEntry(place, os.readlink(name, dir_fd=fd))
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        # whatever the system says: all that stands in a directory would be left out
                        if _is_directory(fd, name, is_no_link=error.errno == errno.EINVAL):
                            pending.append(place)
                        else:
                            yield RefEntry(place, None)
        finally:
            os.close(fd)


def _is_directory(fd: int, name: str, *, is_no_link: bool) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
    except OSError:
        if is_no_link:
            raise
        return _is_listed_as_directory(fd, name)


def _is_listed_as_directory(fd: int, name: str) -> bool:
    """Whether a directory says of a name that it is one's, without a look at what has that name.

    Raises:
        OSError: it does not say (some file systems never do), or cannot be read.
    """
    with os.scandir(fd) as entries:
        return any(entry.name == name and entry.is_dir(follow_symlinks=False) for entry in entries)
