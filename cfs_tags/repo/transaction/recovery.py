"""What a writer does first: it finishes or takes back what interrupted ones left.

The states of the changes of a transaction are read from refs and spares (``change.py``):

=========  =================================================  ==================================================
journal    changes                                            :class:`Verdict`
=========  =================================================  ==================================================
MAKING     all are in the reflog                              FINISHED: it only was not cleared away
MAKING     none was made, and one would take a value away     FORGOTTEN: a peer may have set that very value since
MAKING     all were made, whatever peers did since            FINISHED: the reflog is written
MAKING     some were made, or all make new refs; no peer      FINISHED: the rest is made, and the reflog is written
           moved one of the refs; all new targets are there
MAKING     any other case                                     TAKEN_BACK: what was made and not moved since is undone
UNDOING    any                                                TAKEN_BACK
DONE       -                                                  FINISHED
=========  =================================================  ==================================================

A value of a peer that is in our hands goes back first.  Undoing goes from the newest change to the oldest, so that at no
instant content is without a ref, and the reflog says ``transaction-abandoned``.  A ref is not put back to a target that is
gone, which would stop every collector: it keeps the new one where that is whole, and goes where it is not.

The journal of an older version does not say which links the refs had: then values alone tell, and a transaction of which
nothing was made is finished.  What is no journal is set aside.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, ExpectationFailed, FormatError, RefusedError, SystemFailure
from cfs_tags.repo import fsops, images, incoming, reflog
from cfs_tags.repo.layout import JOURNALS, TMP
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction.change import ABSENT, NO_LINK, RefChange, State, Swap
from cfs_tags.repo.transaction.journal import Journal, Stage

_MAX_JOURNAL = 256 << 20
_NO_PLACE = (errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EISDIR, errno.ENAMETOOLONG)
"""A journal cannot be carried out where one of these comes: a path of it leads through a link, a file or too far."""


class Verdict(Enum):
    """What became of a transaction that was interrupted: the table at the head of this module."""

    FORGOTTEN = "forgotten"
    FINISHED = "finished"
    TAKEN_BACK = "taken back"


class Recovered(NamedTuple):
    """A transaction that was interrupted, and what became of it.

    ``reasons`` say why it was taken back; ``is_news`` whether it was finished or taken back only now; ``is_open`` whether its
    journal still stood among those that are to be looked at.
    """

    journal: Journal
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    is_news: bool = True
    is_open: bool = True

    @property
    def is_untold(self) -> bool:
        """Whether it is finished, and its writer was stopped before it told the hooks."""
        return self.is_open and self.verdict is Verdict.FINISHED

    @property
    def error(self) -> CfsTagsError | None:
        """The error that reports it; None if nothing had been changed."""
        journal = self.journal
        if self.verdict is Verdict.TAKEN_BACK:
            return RefusedError("transaction-abandoned", transaction=journal.transaction, reasons=self.reasons)
        if self.verdict is Verdict.FORGOTTEN:
            return None
        actions = tuple(dict.fromkeys(change.action for change in journal.changes))
        changes = tuple(f"{path} -> {(new or ABSENT).rpartition('/')[2]}" for path, _, new, _ in journal.changes)
        return CfsTagsError("transaction-finished", transaction=journal.transaction, actions=actions, changes=changes)


def recover(swap: Swap) -> list[Recovered]:
    """Finish or take back what interrupted writers left.

    Returns:
        the transactions that were found, in the order of their ids.  The journal of a command that is finished stays in the
        stage DONE: :func:`clear` removes it.

    Raises:
        OSError, SystemFailure: the system refused; the next writer finds what is left.
    """
    repo = swap.repo
    found = []
    for path in _left_in(repo, JOURNALS):
        stage = _stage_of(path)
        journal = _read(repo, path, stage)
        if journal is None or stage is None:
            continue
        try:
            one = _recover(swap, journal, stage)
        except (FormatError, SystemFailure, OSError) as error:
            if not isinstance(error, FormatError) and error.errno not in _NO_PLACE:
                raise
            repo.set_aside(path)
            continue
        journal.close(repo, done=one.verdict is Verdict.FINISHED)
        found.append(one)
    known = {one.journal.transaction for one in found}
    for path in _left_in(repo, TMP):
        journal = _read(repo, path, Stage.DONE) if _stage_of(path) is Stage.DONE else None
        if journal is not None and journal.transaction not in known:
            found.append(Recovered(journal, Verdict.FINISHED, is_news=False, is_open=False))
    return found


def _read(repo: WriteRepo, path: str, stage: Stage | None) -> Journal | None:
    """The journal at a path; None where it was not written to its end: it goes, or is not ours: it is set aside."""
    try:
        journal = Journal.parse(repo.read_file(path, _MAX_JOURNAL) or b"")
    except ValueError:
        fsops.remove(repo.fd, path)
        fsops.sync(repo.fd, JOURNALS)
        return None
    except FormatError:
        journal = None
    if journal is None or stage is None or journal.place(stage) != path:
        repo.set_aside(path)
        return None
    return journal


def clear(swap: Swap, last: str | None) -> None:
    """Remove what interrupted writers left in ``incoming/`` and ``tmp/``, and then the path ``last``: the command of a journal
    in the stage DONE is known to be done until its journal goes."""
    incoming.clear(swap.repo)
    for path in _left_in(swap.repo, TMP):
        if path != last:
            swap.discard(path)
    if last is not None:
        swap.discard(last)


def _stage_of(path: str) -> Stage | None:
    return next((stage for stage in Stage if path.endswith(stage.value.rpartition("}")[2])), None)


def _left_in(repo: ReadRepo, directory: str) -> list[str]:
    """What is there, but for directories: no writer makes one, so what is in them is not ours to remove."""
    paths = [f"{directory}/{name}" for name in sorted(repo.names(directory) or ())]
    return [path for path in paths if not repo.is_directory(path)]


def _recover(swap: Swap, journal: Journal, stage: Stage) -> Recovered:
    if stage is Stage.UNDOING:
        return _abandon(swap, journal, stage, ["an error had stopped it"])
    repo = swap.repo
    if _is_logged(repo, journal):
        return Recovered(journal, Verdict.FINISHED, is_news=False)
    states = [_settle(swap, journal, index, stage) for index in range(len(journal.changes))]
    begun = State.MADE in states or State.OVERTAKEN in states
    if not begun and journal.links is not None and any(change.old is not None for change in journal.changes):
        return Recovered(journal, Verdict.FORGOTTEN)
    reasons = list(_against_finishing(swap, journal, states))
    if not reasons:
        try:
            with swap.making():
                for index, change in enumerate(journal.changes):
                    if states[index] is State.OPEN:
                        repo.make_directories(_parent(change))  # an empty one may have been cleared away since
                        swap.make(change, journal.spare(index))
        except ExpectationFailed as error:
            reasons.append(error.message)
    if reasons:
        return _abandon(swap, journal, stage, reasons)
    sync_directories(repo, journal.parents)
    time = reflog.timestamp()
    reflog.append(repo, [journal.entry(change, time) for change in journal.changes])
    return Recovered(journal, Verdict.FINISHED)


def _against_finishing(swap: Swap, journal: Journal, states: list[State]) -> Iterator[str]:
    """Why a transaction that was begun cannot be finished."""
    is_made = State.OPEN not in states
    for change, found in zip(journal.changes, states, strict=True):
        if found in (State.OPEN, State.MADE):
            if change.new is not None:
                yield from images.missing_behind(swap.repo, change.path, change.new)
        elif not (found is State.OVERTAKEN and is_made) and swap.value(change.path) != change.new:
            yield f"{change.path} was moved by another program"


def _abandon(swap: Swap, journal: Journal, stage: Stage, reasons: list[str]) -> Recovered:
    if stage is Stage.MAKING:
        journal.turn_back(swap.repo)
    undone = take_back(swap, journal, range(len(journal.changes)), Stage.UNDOING)
    sync_directories(swap.repo, journal.parents)
    log_undone(swap, journal, undone)
    return Recovered(journal, Verdict.TAKEN_BACK, tuple(reasons))


def log_undone(swap: Swap, journal: Journal, undone: Iterable[RefChange] = ()) -> None:
    """Log what was undone; also changes that the log names as made, because it was being written when the error came.

    Args:
        swap: where.
        journal: of the transaction.
        undone: what :func:`take_back` gave.
    """
    left = {change.path: change for change in undone}
    last = reflog.last_entries(swap.repo, (change.path for change in journal.changes))
    for change in journal.changes:
        entry = last[change.path]
        if entry is not None and (entry.transaction, entry.action) == (journal.transaction, change.action):
            now = swap.value(change.path)
            if now not in NO_LINK:
                left.setdefault(change.path, change._replace(new=now))
    time = reflog.timestamp()
    entries = [journal.entry(change, time)._replace(action="transaction-abandoned") for change in left.values()]
    reflog.append(swap.repo, entries)


def take_back(swap: Swap, journal: Journal, which: range, stage: Stage) -> list[RefChange]:
    """Undo changes of a transaction, newest first, and leave what peers moved since.

    Args:
        swap: where.
        journal: of the transaction, on disk or not.
        which: the changes that were begun, by their numbers.
        stage: MAKING by the process that made them, whose locks have kept collectors out; UNDOING by a recovery, for which
            targets may have gone.

    Returns:
        the changes that were undone, each with what its ref has now for the new value.
    """
    undone = []
    for index in reversed(which):
        change = journal.changes[index]
        if _settle(swap, journal, index, stage) is not State.MADE:
            continue
        old = change.old
        if stage is Stage.UNDOING and old is not None and images.missing_behind(swap.repo, change.path, old):
            whole = change.new is not None and not images.missing_behind(swap.repo, change.path, change.new)
            old = change.new if whole else None
        if old is not None:
            swap.repo.make_directories(_parent(change))
        if old == change.new or swap.undo(change._replace(old=old), journal.spare(index)):
            undone.append(change._replace(new=old))
    return undone


def _settle(swap: Swap, journal: Journal, index: int, stage: Stage) -> State:
    change = journal.changes[index]
    if change.old is None or change.new is None:
        ours: tuple[str | None, ...] = (None,)
    else:
        ours = (change.new,) if stage is Stage.MAKING else (change.new, change.old)
    return swap.settle(change, journal.spare(index), journal.link(index), ours)


def _is_logged(repo: ReadRepo, journal: Journal) -> bool:
    """Whether the reflog has all changes, which is written when they are on disk."""
    last = reflog.last_entries(repo, (change.path for change in journal.changes))
    entries = ((change, last[change.path]) for change in journal.changes)
    return all(
        entry is not None and (entry.transaction, entry.action, entry.new) == (journal.transaction, change.action, change.new)
        for change, entry in entries
    )


def sync_directories(repo: WriteRepo, directories: Iterable[str]) -> None:
    """Have directories of refs on disk, those that are there."""
    for directory in directories:
        with suppress(FileNotFoundError):
            fsops.sync(repo.fd, directory)


def _parent(change: RefChange) -> str:
    return change.path.rpartition("/")[0]
