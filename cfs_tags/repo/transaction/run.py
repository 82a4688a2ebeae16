"""Changing refs under the locks: all changes of a plan, or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from threading import get_ident
from time import monotonic

from cfs_tags.errors import CfsTagsError, ExpectationFailed, LockTimeout, RefusedError, SystemFailure
from cfs_tags.repo import clock, fsops, layout, reflog
from cfs_tags.repo.layout import JOURNALS, LOCK_FILE, TMP
from cfs_tags.repo.lock import DEFAULT_TIMEOUT, Lock
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction import hooks
from cfs_tags.repo.transaction.change import NO_NOTE, Command, Method, Note, P, RefChange, Swap
from cfs_tags.repo.transaction.journal import Journal, Kept, Stage
from cfs_tags.repo.transaction.recovery import Recovered, Verdict, clear, log_undone, recover, sync_directories, take_back

Moves = tuple[Sequence[RefChange], Note]
"""Changes of one transaction that were made, and its note."""


def transact(
    repo: WriteRepo,
    plan: Callable[[], P],
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
    *,
    command: Command[P] | None = None,
    exclusive: bool = False,
    held: list[Moves] | None = None,
    prepare: Callable[[P], None] | None = None,
) -> P:
    """Plan changes under the locks, then make them: all, or none.

    Holds the repository lock shared (collectors stay out, peers do not) and the refs lock exclusive; on a file system
    without RENAME_EXCHANGE, where a move cannot be compared, the repository lock exclusive.  What an interrupted writer
    left is finished or taken back first: ``repo.recovered`` tells it.  Where that was the same command, it is done.

    Args:
        repo: where.
        plan: called with the locks held; reads the refs and returns a plan, or raises to change nothing.
        note: for the reflog.
        timeout: seconds to wait for both locks together.
        command: what is asked for, where the planner would come to something else when it is asked for again.
        exclusive: hold the repository lock exclusive in any case: no other process has the repository open then.
        held: the caller holds the repository lock, exclusive or shared as ``exclusive`` says; what hooks are to be told
            is added to this, for :func:`tell` when the lock is free.
        prepare: called with the plan before the first change: writes down what undoing it needs.

    Returns:
        the plan that was carried out.

    Raises:
        RefusedError (hook-refused): a hook of the administrator refuses; nothing was changed.
        ExpectationFailed: a peer moved a ref between the plan and the change; its value stays, nothing was changed.
        LockTimeout, LockConflict: another process, or this one, holds a lock.
        SystemFailure: the system refused; nothing was changed, or it says what was.
        ExchangeUnsupported: ``held``, and the lock has to be exclusive; nothing was changed.
    """
    method = Method.ALONE if exclusive else Method.EXCHANGE
    moves: list[Moves] = []
    try:
        with _locked(repo, timeout, method, held=held is not None):
            swap = Swap(repo, method)
            try:
                done = _recover_and_tell(swap, command, moves)
                if done is not None:
                    return done
                made = plan()
                hooks.before(repo, made.changes, note)
                if prepare is not None:
                    prepare(made)
                _commit(swap, made, note, command)
                moves.append((made.changes, note))
                return made
            except fsops.ExchangeUnsupported:
                if exclusive or held is not None:
                    raise
    finally:
        if held is not None:
            held += moves
        else:
            tell(repo, moves)
    return transact(repo, plan, note, timeout, command=command, exclusive=True, prepare=prepare)


def tell(repo: WriteRepo, moves: Iterable[Moves]) -> None:
    """Tell the hooks what was made, with no lock held; what fails is told by ``repo.recovered``."""
    for changes, note in moves:
        hooks.after(repo, changes, note)


def record(
    repo: WriteRepo, action: str, facts: Mapping[str, reflog.Fact], note: Note, timeout: float = DEFAULT_TIMEOUT
) -> None:
    """Write down what was done to the repository as a whole.

    It is done by now: where the disk is full, or a lock is not to be had, ``repo.recovered`` says so.

    Raises:
        SystemFailure: the system refused for another reason.
    """
    entry = reflog.Entry(reflog.WHOLE, None, None, action, reflog.timestamp(), os.urandom(8).hex(), note.reason, note.by, facts)
    try:
        with _locked(repo, timeout, Method.EXCHANGE, held=False):
            reflog.append(repo, [entry])
            clock.advance(repo)
    except (OSError, SystemFailure) as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error if isinstance(error, SystemFailure) else _failure(error, repo, reflog.DIRECTORY) from error
        reason = os.strerror(error.errno)
    except LockTimeout as error:
        reason = error.message
    else:
        return
    repo.recovered.append(CfsTagsError("not-recorded", action=action, reason=reason))


@contextmanager
def _locked(repo: WriteRepo, timeout: float, method: Method, *, held: bool) -> Iterator[None]:
    deadline = monotonic() + timeout
    with nullcontext() if held else repo.locked("exclusive" if method is Method.ALONE else "shared", timeout):
        _make_state(repo, deadline)
        lock = Lock.of(repo.fd, LOCK_FILE, os.path.join(repo.path, LOCK_FILE))
        left = max(0.0, deadline - monotonic())
        try:
            with lock.hold("exclusive", repo.fd, LOCK_FILE, left, queue=True):
                repo.at_rest.add(get_ident())  # what reads refs at once need not look whether a writer is at work
                try:
                    yield
                finally:
                    repo.at_rest.discard(get_ident())
        except LockTimeout as error:
            error.seconds = timeout
            raise


def _make_state(repo: WriteRepo, deadline: float) -> None:
    """Make the directories of our state and the file that is locked, once."""
    for path in (TMP, JOURNALS, reflog.DIRECTORY):
        repo.make_directories(path)
    try:
        fsops.create_file(repo.fd, LOCK_FILE, b"")
    except FileExistsError:
        if not repo.is_file(LOCK_FILE):
            _set_lock_file_aside(repo, deadline)
    except OSError as error:
        raise _failure(error, repo, LOCK_FILE) from error


def _set_lock_file_aside(repo: WriteRepo, deadline: float) -> None:
    """Put a file in the place of a link, socket, pipe, device or directory, which no writer has locked.

    Writers that find it do so in turn, with the directory locked: the file that the first one made stays for the others.
    """
    lock = Lock.of(repo.fd, layout.STATE, os.path.join(repo.path, layout.STATE))
    with lock.hold("exclusive", repo.fd, layout.STATE, max(0.0, deadline - monotonic()), queue=True):
        if not repo.is_file(LOCK_FILE):
            repo.set_aside(LOCK_FILE)
            try:
                fsops.create_file(repo.fd, LOCK_FILE, b"")
            except OSError as error:
                raise _failure(error, repo, LOCK_FILE) from error


def _recover_and_tell(swap: Swap, command: Command[P] | None, moves: list[Moves]) -> P | None:
    """Finish or take back what interrupted writers left; the plan of this command, where that is done now.

    What hooks have not been told goes to ``moves``.
    """
    repo = swap.repo
    made = done = None
    try:
        for one in recover(swap):
            if one.is_untold:
                moves.append((one.journal.changes, one.journal.note))
            if command is not None and one.journal.command == command.words and _stands(swap, one):
                done = one.journal.place(Stage.DONE)
                made = command.again(one.journal.changes, one.journal.rows)
            told = one.error
            if told is not None and (one.is_news or one.journal.place(Stage.DONE) == done):
                repo.recovered.append(told)
        clear(swap, done)
    except fsops.ExchangeUnsupported:
        raise
    except OSError as error:
        raise _failure(error, repo, JOURNALS) from error
    return made


def _stands(swap: Swap, one: Recovered) -> bool:
    """Whether all is as the transaction made it: else the command is a new one."""
    return one.verdict is Verdict.FINISHED and all(swap.value(change.path) == change.new for change in one.journal.changes)


def _commit(swap: Swap, plan: P, note: Note, command: Command[P] | None) -> None:
    repo = swap.repo
    journal = Journal.of(swap, plan, note, command)
    changes = journal.changes
    # Refs that are as they should be may have been made by a run that was killed before they were on disk.  No record tells,
    # because a peer writes none; where there is nothing to write it costs one flush of the disk.
    directories = sorted({*journal.parents, *getattr(plan, "settled", ())})
    for parent in journal.parents:
        repo.make_directories(parent)
    begun = 0
    try:
        # a ref must not reach the disk before the link that it leads to
        for tree in sorted({change.path.partition("/")[0] for change in changes if change.new is not None}):
            fsops.sync(repo.fd, tree)
        journal.write(repo)
        with swap.making():
            for index, change in enumerate(changes):
                begun = index + 1
                try:
                    swap.make(change, journal.spare(index))
                except (ExpectationFailed, OSError):
                    begun -= change.old is None  # what has the value by now is a peer's
                    raise
        sync_directories(repo, directories)
        time = reflog.timestamp()
        reflog.append(repo, (journal.entry(change, time) for change in changes))
        if changes:
            clock.advance(repo)
    except (Exception, KeyboardInterrupt) as error:
        left = _give_up(swap, journal, range(begun))
        if isinstance(error, OSError) and not isinstance(error, fsops.ExchangeUnsupported):
            at = changes[min(begun, len(changes) - 1)].path if changes else directories[0]
            raise _failure(error, repo, at, left) from error
        if left and isinstance(error, ExpectationFailed):
            raise SystemFailure(operation="take back", path=repo.path, reason=left, errno=errno.EIO) from error
        raise
    # done, on disk and in the log: a journal that cannot be removed now is cleared by the next writer
    with suppress(OSError):
        journal.close(repo, done=True)
        journal.clear(swap)


def _give_up(swap: Swap, journal: Journal, begun: range) -> str:
    """Take a transaction back that failed; says what is left of it, where it cannot be."""
    try:
        with suppress(OSError):
            journal.turn_back(swap.repo)
        take_back(swap, journal, begun, Stage.MAKING)
        with suppress(OSError, SystemFailure):  # then the next writer of these refs records what it finds
            log_undone(swap, journal)
        journal.close(swap.repo, done=False)
        journal.clear(swap)
    except (OSError, CfsTagsError):
        if journal.kept is Kept.NOWHERE:
            return f"{journal.changes[0].path} was made and cannot be removed again"
        return "what was changed is left to the next command that writes, which finishes it or takes it back"
    return ""


def _failure(error: OSError, repo: ReadRepo, path: str, left: str = "") -> CfsTagsError:
    if error.errno == errno.EROFS:
        return RefusedError("read-only-repository", path=repo.path, reason="the file system is mounted read-only")
    failure = SystemFailure.of(error, "write", os.path.join(repo.path, path))
    if left:
        failure.reason += f"; {left}"
    return failure
