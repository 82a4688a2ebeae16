"""Changing refs under the locks: all changes of a plan, or none."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from cfs_tags.errors import ExpectationFailed, LockTimeout, ReadOnlyRepository, SystemFailure
from cfs_tags.formats import layout
from cfs_tags.repo import fsops, reflog
from cfs_tags.repo.changes import Note, Outcome, Plan, RefChange
from cfs_tags.repo.journal import JOURNALS, TMP, Journal
from cfs_tags.repo.lock import Lock
from cfs_tags.repo.recovery import recover
from cfs_tags.repo.swap import Swap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cfs_tags.errors import TransactionAbandoned
    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = ["LOCK_FILE", "run"]

LOCK_FILE = f"{layout.STATE}/refs.lock"
"""Held exclusive by who changes refs."""

P = TypeVar("P", bound=Plan)


def run(
    repo: WriteRepo,
    plan: Callable[[], P],
    note: Note,
    timeout: float,
    *,
    exclusive: bool = False,
    prepare: Callable[[P], None] | None = None,
) -> tuple[P, Outcome]:
    """See :func:`cfs_tags.repo.refs.transact`."""
    try:
        return _transact(repo, plan, note, timeout, exclusive, prepare)
    except fsops.ExchangeUnsupported:
        return _transact(repo, plan, note, timeout, True, prepare)


def _transact(
    repo: WriteRepo,
    plan: Callable[[], P],
    note: Note,
    timeout: float,
    exclusive: bool,
    prepare: Callable[[P], None] | None,
) -> tuple[P, Outcome]:
    with _locked(repo, timeout, exclusive):
        swap = Swap(repo, exclusive)
        abandoned = _recover(swap)
        made = plan()
        if prepare is not None:
            prepare(made)
        _commit(swap, [change for change in made.changes if change.old != change.new], note)
        return made, Outcome(abandoned)


@contextmanager
def _locked(repo: WriteRepo, timeout: float, exclusive: bool) -> Iterator[None]:
    deadline = monotonic() + timeout
    with repo.locked("exclusive" if exclusive else "shared", timeout):
        _prepare(repo)
        lock = Lock.of(repo.fd, LOCK_FILE, os.path.join(repo.path, LOCK_FILE))
        left = max(0.0, deadline - monotonic())
        try:
            with lock.hold("exclusive", repo.fd, LOCK_FILE, left, queue=True):
                yield
        except LockTimeout as error:
            error.seconds = timeout
            raise


def _prepare(repo: WriteRepo) -> None:
    """Make the directories of our state, once."""
    for path in (TMP, JOURNALS, reflog.DIRECTORY):
        repo.make_directories(path)
    try:
        fsops.create_file(repo.fd, LOCK_FILE, b"", repo.owner)
    except FileExistsError:
        pass
    except OSError as error:
        raise _failure(error, repo, LOCK_FILE) from error


def _recover(swap: Swap) -> tuple[TransactionAbandoned, ...]:
    try:
        return recover(swap)
    except fsops.ExchangeUnsupported:
        raise
    except OSError as error:
        raise _failure(error, swap.repo, JOURNALS) from error


def _commit(swap: Swap, changes: list[RefChange], note: Note) -> None:
    if not changes:
        return
    repo = swap.repo
    journal = Journal(os.urandom(8).hex(), note, tuple(changes))
    parents = sorted({change.path.rpartition("/")[0] for change in changes})
    for parent in parents:
        repo.make_directories(parent)
    several = len(changes) > 1
    journalled = several or changes[0].old is not None
    done = 0
    try:
        # a ref must not reach the disk before the link that it leads to
        for tree in sorted({change.path.partition("/")[0] for change in changes if change.new is not None}):
            fsops.sync(repo.fd, tree)
        if journalled:
            journal.write(repo, durable=several)
        for index, change in enumerate(changes):
            swap.change(change, journal.spare(index))
            done += 1
        for parent in parents:
            fsops.sync(repo.fd, parent)
        time = reflog.timestamp()
        reflog.append(repo, (journal.entry(change, time) for change in changes))
    except (Exception, KeyboardInterrupt) as error:
        place = journal.path
        if journalled:
            with suppress(OSError):
                fsops.rename(repo.fd, journal.path, journal.back)
                place = journal.back
        with suppress(OSError):  # what cannot be undone now is for the recovery: the journal stays
            if not isinstance(error, (OSError, ExpectationFailed)) and done < len(changes):
                done += swap.was_made(changes[done], journal.spare(done))
            _take_back(swap, journal, done)
            if journalled:
                journal.clean(swap, place, durable=several)
        if isinstance(error, OSError) and not isinstance(error, fsops.ExchangeUnsupported):
            raise _failure(error, repo, changes[min(done, len(changes) - 1)].path) from error
        raise
    if journalled:
        # done, on disk and in the log: a journal that cannot be removed now is cleared by the next writer
        with suppress(OSError):
            journal.clean(swap, journal.path, durable=several)


def _take_back(swap: Swap, journal: Journal, done: int) -> None:
    """Undo the first ``done`` changes, newest first, and leave what peers moved since."""
    for index in reversed(range(done)):
        swap.undo(journal.changes[index], journal.spare(index))


def _failure(error: OSError, repo: ReadRepo, path: str) -> Exception:
    if error.errno == errno.EROFS:
        return ReadOnlyRepository(path=repo.path, reason="the file system is mounted read-only")
    return SystemFailure.of(error, "write", os.path.join(repo.path, path))
