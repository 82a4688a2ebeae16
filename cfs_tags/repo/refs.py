"""Reading refs, and changing them: compare-and-swap for one, a journal for several.

Peers (cfsctl, bootc) write tags under the *shared* repository lock and without looking, so a lock cannot keep them out.
Every change therefore says what it expects and looks at what came out:

=========  ==============================================================  ============================================
change     step                                                            what came out is not what was expected
=========  ==============================================================  ============================================
make       ``symlinkat``, which refuses where anything is                  nothing was changed
move       exchange with a prepared link in ``cfs-tags/tmp/``              exchange back, until our own link comes out
delete     rename to ``cfs-tags/tmp/``                                     put back, without replacing what is there now
=========  ==============================================================  ============================================

**Journal.** A transaction that is more than one new ref is first written to ``cfs-tags/journal/<id>.json``: every ref with
its old and new link; with several refs it is on disk before the first is changed.  It is removed when all of them are on
disk and the reflog is written.  A journal that is there when a writer starts was left by a crash and is recovered first:

* every ref has its old or its new value, and every new target is complete: the rest is done (rolled forward);
* else, and where an error had it taken back already (``<id>.back``): refs that have the new value are put back, those that
  others moved are left, and the reflog says ``transaction-abandoned``.  A ref is not put back to a target that is gone,
  which would stop every collector: it keeps the new one where that is whole, and goes where it is not.

What a crash left of a peer's value in ``tmp/`` is put back before either.  A transaction that is in the reflog was done.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from cfs_tags.errors import ExpectationFailed, LockTimeout, ReadOnlyRepository, SystemFailure, TransactionAbandoned
from cfs_tags.formats import layout
from cfs_tags.repo import contents, fsops, reflog
from cfs_tags.repo.lock import DEFAULT_TIMEOUT, Lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = ["ABSENT", "LOCK_FILE", "NO_NOTE", "Note", "Outcome", "Plan", "RefChange", "RefEntry", "transact", "walk"]

ABSENT = "absent"
"""How errors call the value of a ref that is not there."""
LOCK_FILE = f"{layout.STATE}/refs.lock"
_TMP = f"{layout.STATE}/tmp"
_JOURNAL = f"{layout.STATE}/journal"
_MAX_JOURNAL = 256 << 20
_DIRECTORY = "\0directory"
"""What ``_value`` calls a directory; no link has a NUL."""


class RefEntry(NamedTuple):
    """Something below ``refs/``: its path from the repository, and the text of its link, None where it is no link."""

    path: str
    target: str | None


class RefChange(NamedTuple):
    """One ref and what becomes of it.  ``old`` and ``new`` are link texts, None for absent; ``action`` is for the reflog."""

    path: str
    old: str | None
    new: str | None
    action: str


class Note(NamedTuple):
    """What the reflog is told besides the change: why, and by whom."""

    reason: str | None = None
    by: str | None = None


NO_NOTE = Note()


class Plan(Protocol):
    """What a planner returns: at least the changes."""

    @property
    def changes(self) -> Sequence[RefChange]:
        """In the order in which they are made."""
        ...


P = TypeVar("P", bound=Plan)


class Outcome(NamedTuple):
    """Transactions of a crashed writer that were taken back before this one."""

    abandoned: tuple[TransactionAbandoned, ...]


def walk(repo: ReadRepo, top: str) -> Iterator[RefEntry]:
    """All that stands below a directory of refs, at any depth, directories themselves excepted; nothing where it is absent.

    Names come in no order.  What vanishes while it is read is left out.

    Args:
        repo: where.
        top: ``streams/refs``, ``images/refs`` or a directory below them.

    Raises:
        FormatError: a directory on the way is a link or file.
    """
    pending = [top]
    while pending:
        path = pending.pop()
        fd = repo.directory(path)
        if fd is None:
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        try:
                            yield RefEntry(f"{path}/{entry.name}", os.readlink(entry.name, dir_fd=fd))
                        except FileNotFoundError:
                            continue
                        except OSError:
                            yield RefEntry(f"{path}/{entry.name}", None)
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(f"{path}/{entry.name}")
                    else:
                        yield RefEntry(f"{path}/{entry.name}", None)
        finally:
            os.close(fd)


def transact(
    repo: WriteRepo,
    plan: Callable[[], P],
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
    *,
    exclusive: bool = False,
    prepare: Callable[[P], None] | None = None,
) -> tuple[P, Outcome]:
    """Plan changes under the locks, then make them: all, or none.

    Holds the repository lock shared (collectors stay out, peers do not) and the refs lock exclusive; on a file system
    without RENAME_EXCHANGE, where a move cannot be compared, the repository lock exclusive.

    Args:
        repo: where.
        plan: called with the locks held; reads the refs and returns a plan, or raises to change nothing.
        note: for the reflog.
        timeout: seconds to wait for both locks together.
        exclusive: hold the repository lock exclusive in any case: nobody else has it open then.
        prepare: called with the plan before the first change: writes down what undoing it needs.

    Returns:
        the plan that was carried out, and what was recovered first.

    Raises:
        ExpectationFailed: a peer moved a ref between the plan and the change; its value stays, nothing was changed.
        LockTimeout, LockConflict: the locks were not to be had.
        SystemFailure: the system refused; nothing was changed.
    """
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
    with _writer(repo, timeout, exclusive) as writer:
        abandoned = writer.recover()
        made = plan()
        if prepare is not None:
            prepare(made)
        writer.commit([change for change in made.changes if change.old != change.new], note)
        return made, Outcome(abandoned)


@contextmanager
def _writer(repo: WriteRepo, timeout: float, exclusive: bool) -> Iterator[_Writer]:
    deadline = monotonic() + timeout
    with repo.locked("exclusive" if exclusive else "shared", timeout):
        _prepare(repo)
        lock = Lock.of(repo.fd, LOCK_FILE, os.path.join(repo.path, LOCK_FILE))
        left = max(0.0, deadline - monotonic())
        try:
            with lock.hold("exclusive", repo.fd, LOCK_FILE, left, queue=True):
                yield _Writer(repo, exclusive)
        except LockTimeout as error:
            error.seconds = timeout
            raise


def _prepare(repo: WriteRepo) -> None:
    """Make the directories of our state, once."""
    for path in (_TMP, _JOURNAL, reflog.DIRECTORY):
        repo.make_directories(path)
    try:
        fsops.create_file(repo.fd, LOCK_FILE, b"", repo.owner)
    except FileExistsError:
        pass
    except OSError as error:
        raise _failure(error, repo, LOCK_FILE) from error


class _Journal(NamedTuple):
    """What ``cfs-tags/journal/<id>.json`` holds."""

    transaction: str
    note: Note
    changes: tuple[RefChange, ...]

    @property
    def path(self) -> str:
        return f"{_JOURNAL}/{self.transaction}.json"

    @property
    def back(self) -> str:
        """Its path once it is being taken back: there is that one way from then on, also for a recovery."""
        return f"{_JOURNAL}/{self.transaction}.back"

    def spare(self, index: int) -> str:
        """Where the link of change ``index`` is prepared, and what came out is kept until the end."""
        return f"{_TMP}/{self.transaction}.{index}"

    def entry(self, change: RefChange, time: str) -> reflog.Entry:
        return reflog.Entry(
            change.path, change.old, change.new, change.action, time, self.transaction, self.note.reason, self.note.by
        )

    def to_bytes(self) -> bytes:
        return json.dumps(
            {"transaction": self.transaction, "note": self.note, "changes": self.changes}, separators=(",", ":")
        ).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> _Journal | None:
        """None for what a crash tore: nothing had been changed then.

        Root may recover in a repository of somebody else: what is no journal that we would write is none.
        """
        try:
            document = json.loads(data)
            note = Note(*document["note"])
            changes = tuple(RefChange(*change) for change in document["changes"])
            found = cls(document["transaction"], note, changes)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return found if all(map(_is_change, changes)) and _are_texts((found.transaction, *note)) else None


class _Writer:
    """Changes refs while the locks are held."""

    def __init__(self, repo: WriteRepo, exclusive: bool) -> None:
        self._repo = repo
        self._fd = repo.fd
        self._exclusive = exclusive

    # -- doing ---------------------------------------------------------------------------------------------------------

    def commit(self, changes: list[RefChange], note: Note) -> None:
        if not changes:
            return
        journal = _Journal(os.urandom(8).hex(), note, tuple(changes))
        parents = sorted({change.path.rpartition("/")[0] for change in changes})
        for parent in parents:
            self._repo.make_directories(parent)
        several = len(changes) > 1
        journalled = several or changes[0].old is not None
        done = 0
        try:
            # a ref must not reach the disk before the link that it leads to
            for tree in sorted({change.path.partition("/")[0] for change in changes if change.new is not None}):
                fsops.sync(self._fd, tree)
            if journalled:
                self._write_journal(journal, durable=several)
            for index, change in enumerate(changes):
                self._change(change, journal.spare(index))
                done += 1
            for parent in parents:
                fsops.sync(self._fd, parent)
            time = reflog.timestamp()
            reflog.append(self._repo, (journal.entry(change, time) for change in changes))
        except (Exception, KeyboardInterrupt) as error:
            place = journal.path
            if journalled:
                with suppress(OSError):
                    fsops.rename(self._fd, journal.path, journal.back)
                    place = journal.back
            with suppress(OSError):  # what cannot be undone now is for the recovery: the journal stays
                if not isinstance(error, (OSError, ExpectationFailed)) and done < len(changes):
                    done += self._was_made(changes[done], journal.spare(done))
                self._take_back(journal, done)
                if journalled:
                    self._clean(journal, place, durable=several)
            if isinstance(error, OSError) and not isinstance(error, fsops.ExchangeUnsupported):
                raise _failure(error, self._repo, changes[min(done, len(changes) - 1)].path) from error
            raise
        if journalled:
            # done, on disk and in the log: a journal that cannot be removed now is cleared by the next writer
            with suppress(OSError):
                self._clean(journal, journal.path, durable=several)

    def _change(self, change: RefChange, spare: str, *, prepared: bool = False) -> None:
        """One change, with its comparison.  After ExpectationFailed the ref is what its peer made it.

        What came out is in ``spare`` afterwards; with ``prepared`` the new link is there before.
        """
        path, old, new = change.path, change.old, change.new
        if old is None:
            assert new is not None
            try:
                fsops.make_link(self._fd, path, new)
            except FileExistsError:
                raise _expected(change, self._value(path)) from None
            return
        try:
            if new is None:
                fsops.rename(self._fd, path, spare)
            elif self._exclusive:
                # nobody else has the repository open: a plain look is a comparison
                if self._value(path) != old:
                    raise _expected(change, self._value(path))
                if prepared:
                    fsops.rename(self._fd, spare, path)
                    return
                self._discard(f"{spare}.new")  # what a crash left
                fsops.make_link(self._fd, f"{spare}.new", new)
                if old:
                    fsops.make_link(self._fd, spare, old)  # undoing must not need room
                fsops.rename(self._fd, f"{spare}.new", path)
                return
            else:
                if not prepared:
                    fsops.make_link(self._fd, spare, new)
                fsops.exchange(self._fd, spare, path)
        except FileNotFoundError:
            raise _expected(change, None) from None
        found = self._value(spare)
        if found != old:
            self._put_back(path, spare, new)
            raise _expected(change, found)

    def _put_back(self, path: str, spare: str, ours: str | None) -> None:
        """Give a ref its peer's value back, from ``spare``; ``ours`` is what we put there, None for nothing."""
        if ours is None:
            found = self._value(spare)
            if found is None:
                return
            if found not in ("", _DIRECTORY):
                try:
                    fsops.make_link(self._fd, path, found)
                except FileExistsError:
                    return  # the peer was here again: its newest value stays
                except OSError:
                    pass  # no room for a new link: the old one goes back as it is
                else:
                    return
            if self._value(path) is None:
                fsops.rename(self._fd, spare, path)
            return
        if self._exclusive:
            if self._value(path) == ours:
                fsops.rename(self._fd, spare, path)
            return
        put: str | None = ours
        for _ in range(100):
            try:
                holding = self._value(spare)
                fsops.exchange(self._fd, spare, path)
            except FileNotFoundError:
                return  # removed meanwhile: that is the newest value
            if self._value(spare) == put:
                return  # what we had put there came out: what is there now is the peer's
            put = holding

    def _value(self, path: str) -> str | None:
        """The link at ``path``; the empty text, which no link has, for something that is no link.

        For a directory a text that is nobody's old value: the refs below it must not go with it.
        """
        try:
            return os.readlink(path, dir_fd=self._fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return _DIRECTORY if self._repo.is_directory(path) else ""
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    # -- undoing and recovering ----------------------------------------------------------------------------------------

    def _take_back(self, journal: _Journal, done: int) -> None:
        """Undo the first ``done`` changes, newest first, and leave what peers moved since."""
        for index in reversed(range(done)):
            self._undo(journal.changes[index], journal.spare(index))

    def _undo(self, change: RefChange, spare: str) -> bool:
        """Give one ref its old value, if it still has the new one.  False where a peer moved it.

        The old link is taken from ``spare`` where it is there: on a full disk no other can be made.
        """
        if change.new is None and self._value(spare) == change.old:
            self._put_back(change.path, spare, None)
            return self._value(change.path) == change.old
        undo = _undo_of(spare)
        self._discard(undo)
        prepared = change.old is not None and self._value(spare) == change.old
        if prepared:
            fsops.rename(self._fd, spare, undo)
        try:
            self._change(RefChange(change.path, change.new, change.old, change.action), undo, prepared=prepared)
        except ExpectationFailed:
            return False
        self._discard(undo)
        return True

    def _was_made(self, change: RefChange, spare: str) -> bool:
        """Whether a change was made that was interrupted before it could say so."""
        self._rescue(change, spare)
        made = self._value(change.path) == change.new
        return made and (change.old is None or self._value(spare) == change.old)

    def recover(self) -> tuple[TransactionAbandoned, ...]:
        """Finish or take back what crashed writers left; then clear ``tmp/``."""
        abandoned = []
        try:
            for path in self._left_in(_JOURNAL):
                journal = _Journal.parse(self._repo.read_file(path, _MAX_JOURNAL) or b"")
                if journal is not None and path in (journal.path, journal.back):
                    reasons = self._recover(journal, back=path == journal.back)
                    if reasons:
                        abandoned.append(TransactionAbandoned(transaction=journal.transaction, reasons=reasons))
                fsops.remove(self._fd, path)
                fsops.sync(self._fd, _JOURNAL)
            for path in self._left_in(_TMP):
                self._discard(path)
        except fsops.ExchangeUnsupported:
            raise
        except OSError as error:
            raise _failure(error, self._repo, _JOURNAL) from error
        return tuple(abandoned)

    def _left_in(self, directory: str) -> list[str]:
        """What is there, but for directories: nobody of us makes one, so what is in them is not ours to remove."""
        paths = [f"{directory}/{name}" for name in sorted(self._repo.names(directory) or ())]
        return [path for path in paths if not self._repo.is_directory(path)]

    def _recover(self, journal: _Journal, *, back: bool) -> tuple[str, ...]:
        """Reasons for taking the transaction back; none when it was finished."""
        if not back and all(self._is_logged(journal, change) for change in journal.changes):
            return ()
        for parent in {change.path.rpartition("/")[0] for change in journal.changes}:
            self._repo.make_directories(parent)  # an empty one may have been cleared away since
        for index, change in enumerate(journal.changes):
            self._rescue(change, journal.spare(index))
        reasons = ["an error had stopped it"] if back else []
        for change in journal.changes:
            value = self._value(change.path)
            if value not in (change.old, change.new):
                reasons.append(f"{change.path} was moved by somebody else")
            elif change.new is not None:
                reasons.extend(contents.missing_behind(self._repo, change.path, change.new))
        if not reasons:
            try:
                for index, change in enumerate(journal.changes):
                    if self._value(change.path) != change.new:
                        self._discard(journal.spare(index))
                        self._change(change, journal.spare(index))
            except ExpectationFailed as error:
                reasons.append(error.message)
        entries = []
        time = reflog.timestamp()
        for index, change in enumerate(journal.changes):
            if not reasons:
                entries.append(journal.entry(change, time))
            elif self._value(change.path) == change.new:
                old = change.old
                if old is not None and contents.missing_behind(self._repo, change.path, old):
                    whole = change.new is not None and not contents.missing_behind(self._repo, change.path, change.new)
                    old = change.new if whole else None
                undone = change._replace(old=old)
                if undone.old == undone.new or self._undo(undone, journal.spare(index)):
                    entries.append(journal.entry(change, time)._replace(new=old, action="transaction-abandoned"))
        for parent in sorted({change.path.rpartition("/")[0] for change in journal.changes}):
            if self._repo.is_directory(parent):
                fsops.sync(self._fd, parent)
        reflog.append(self._repo, entries)
        return tuple(reasons)

    def _rescue(self, change: RefChange, spare: str) -> None:
        """Put back a peer's value that came out just before the crash, unless its target has gone since."""
        for place, ours in ((spare, change.new), (_undo_of(spare), change.old)):
            found = self._value(place)
            if found in (None, change.old, change.new) or self._value(change.path) != ours:
                continue
            if found in ("", _DIRECTORY) or not contents.missing_behind(self._repo, change.path, str(found)):
                self._put_back(change.path, place, ours)

    def _is_logged(self, journal: _Journal, change: RefChange) -> bool:
        """Whether the log has the change, which is written when all of them are on disk."""
        wanted = (journal.transaction, change.action, change.new)
        entries = reflog.history(self._repo, change.path).entries
        return any((entry.transaction, entry.action, entry.new) == wanted for entry in entries)

    # -- housekeeping --------------------------------------------------------------------------------------------------

    def _write_journal(self, journal: _Journal, *, durable: bool) -> None:
        if durable:
            spare = f"{_TMP}/{journal.transaction}.journal"
            fsops.replace_file(self._fd, journal.path, journal.to_bytes(), spare, self._repo.owner)
            fsops.sync(self._fd, _JOURNAL)
        else:
            fsops.create_file(self._fd, journal.path, journal.to_bytes(), self._repo.owner)

    def _clean(self, journal: _Journal, place: str, *, durable: bool) -> None:
        """Forget a transaction that is done, or undone; the journal goes first and, if it was on disk, for good."""
        try:
            fsops.remove(self._fd, place)
        except FileNotFoundError:
            return
        if durable:
            fsops.sync(self._fd, _JOURNAL)
        for index, change in enumerate(journal.changes):
            spare = journal.spare(index)
            if change.old is not None:
                self._discard(spare)
            if self._exclusive:
                self._discard(f"{spare}.new")

    def _discard(self, path: str) -> None:
        with suppress(FileNotFoundError):
            fsops.remove(self._fd, path)


def _undo_of(spare: str) -> str:
    return f"{spare}.undo"


def _is_change(change: tuple[object, ...]) -> bool:
    """Whether a change from a journal is one of a ref, and of nothing else."""
    path, _, new, action = change
    if not _are_texts(change) or not isinstance(path, str) or not isinstance(action, str) or new == "" or "\0" in path:
        return False
    top, _, rest = path.partition("/refs/")
    return top in (layout.STREAMS, layout.IMAGES) and not {"", ".", ".."} & set(rest.split("/"))


def _are_texts(values: tuple[object, ...]) -> bool:
    return all(value is None or isinstance(value, str) for value in values)


def _expected(change: RefChange, found: str | None) -> ExpectationFailed:
    return ExpectationFailed(ref=change.path, wanted=_shown(change.old), found=_shown(found))


def _shown(link: str | None) -> str:
    if link in ("", _DIRECTORY):
        return "something that is no link"
    return ABSENT if link is None else link.rpartition("/")[2]


def _failure(error: OSError, repo: ReadRepo, path: str) -> Exception:
    if error.errno == errno.EROFS:
        return ReadOnlyRepository(path=repo.path, reason="the file system is mounted read-only")
    return SystemFailure.of(error, "write", os.path.join(repo.path, path))
