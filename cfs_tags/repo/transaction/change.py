"""A change to a ref, how it is made, and its state: compare and swap.

Peers (cfsctl, bootc) write tags under the *shared* repository lock and without looking, so a lock cannot keep them out.
Every change therefore says what it expects and looks at what came out.  It has a ``spare``, a path of its own in
``cfs-tags/tmp/``: there the new link is prepared, and what came out is kept until the transaction is over.

=========  ==============================================================  ============================================
change     step                                                            what came out is not what was expected
=========  ==============================================================  ============================================
make       ``symlinkat``, which refuses where anything is                  the ref is as it was
move       exchange with the link that is prepared in the spare            exchange back, until our own link comes out
delete     rename to the spare                                             put back, without replacing what is there now
=========  ==============================================================  ============================================

The state of a change is always read from the disk, after an error and a signal as after a crash:

==============  ===================================  ================  =====================================================
:class:`State`  spare                                ref               so
==============  ===================================  ================  =====================================================
OPEN            nothing, or the new link             the old value     it is still to be made, or was undone
MADE            the old link (of a new ref nothing)  the new value     it was made
OVERTAKEN       the old link                         another value     it was made, then a peer moved the ref
HELD            a third link                         any               a peer was faster, and we hold the value it had set
FOREIGN         nothing, or the new link             another value     a peer moved the ref before we did
==============  ===================================  ================  =====================================================
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

from cfs_tags.errors import ExpectationFailed
from cfs_tags.repo import beneath, fsops, images
from cfs_tags.repo.store import WriteRepo

ABSENT = "absent"
"""How errors call the value of a ref that is not there."""

Identity = tuple[int, int]
"""Inode number and time of the last change (nanoseconds) of a link: a link that a peer made has others."""


class RefChange(NamedTuple):
    """One ref and what becomes of it.  ``old`` and ``new`` are link texts, None for absent; ``action`` is for the reflog."""

    path: str
    old: str | None
    new: str | None
    action: str


class Note(NamedTuple):
    """What the reflog keeps beside a change: why it was made, and by whom."""

    reason: str | None = None
    by: str | None = None


NO_NOTE = Note()


class Plan(Protocol):
    """What a planner returns: at least the changes.

    It may have ``settled``, too: directories of refs that are as they should be already, and are to be on disk.
    """

    @property
    def changes(self) -> Sequence[RefChange]:
        """In the order in which they are made."""
        ...


P = TypeVar("P", bound=Plan)

Row = Sequence[str | None]
"""What a command says of one of its results: texts that only the command knows the meaning of."""


class Command(NamedTuple, Generic[P]):
    """What is asked for, so that it is known when it is asked for again after an interruption.

    Attributes:
        words: the same for the same request, and for no other.
        once: whether its planner comes to something else when it was carried out already: then it is always journalled.
        rows: what it says of the results of a plan.
        again: makes a plan from its changes and rows; None where the rows are not its own.
    """

    words: str
    once: bool
    rows: Callable[[P], Sequence[Row]]
    again: Callable[[Sequence[RefChange], Sequence[Row]], P | None]


class State(Enum):
    """The state of a change: the table at the head of this module."""

    OPEN = "open"
    MADE = "made"
    OVERTAKEN = "overtaken"
    HELD = "held"
    FOREIGN = "foreign"


class Method(Enum):
    """How a ref is moved."""

    EXCHANGE = "peers may write at the same time: exchange, then look at what came out"
    ALONE = "no other process has the repository open: look, then rename; for file systems without RENAME_EXCHANGE"


_DIRECTORY = "\0directory"
"""What :meth:`Swap.value` calls a directory; no link has a NUL."""
NO_LINK = ("", _DIRECTORY)
"""The value that :meth:`Swap.value` gives for something that is no link."""


class Swap:
    """Makes changes one by one, undoes them, and reads their states, while the locks are held.

    All methods raise OSError as the system gives it; what had been done by then is found by :meth:`state`.

    Attributes:
        repo: where.
    """

    def __init__(self, repo: WriteRepo, method: Method) -> None:
        self.repo = repo
        self._method = method
        self._fd = repo.fd
        self._parent, self._parent_fd = "", -1

    def value(self, path: str) -> str | None:
        """The link at ``path``; the empty text, which no link has, for something that is no link.

        For a directory a text that is the old value of no ref: the refs below it must not go with it.
        """
        try:
            return beneath.read_link(self._fd, path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return _DIRECTORY if self.repo.is_directory(path) else ""
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def identity(self, path: str) -> Identity:
        """Which link is at ``path``; one that no link has where nothing is.

        Raises:
            SystemFailure: the system would not say.
        """
        with self.repo.reading(path):
            try:
                status = self.repo.status(path)
            except (FileNotFoundError, NotADirectoryError):
                return 0, 0
        return status.st_ino, status.st_mtime_ns

    @contextmanager
    def making(self) -> Iterator[None]:
        """For the block in which changes are made: the directory of the last new ref stays open for the next one."""
        try:
            yield
        finally:
            self._leave()

    def make(self, change: RefChange, spare: str) -> None:
        """Make a change, within :meth:`making`.  After ExpectationFailed the ref is what its peer made it.

        Raises:
            ExpectationFailed: the ref has not the old value.
        """
        path, old, new = change.path, change.old, change.new
        if old is None:
            try:
                fsops.make_link(self._fd, path, str(new), self._directory_of(path))
            except FileExistsError:
                raise _expected(change, self.value(path)) from None
            return
        if new is not None and self._method is Method.ALONE:
            self._move_alone(path, old, new, spare)
            return
        try:
            if new is None:
                fsops.rename(self._fd, path, spare)
            else:
                self._prepare(spare, new)
                fsops.exchange(self._fd, spare, path)
        except FileNotFoundError:
            raise _expected(change, None) from None
        found = self.value(spare)
        if found != old:
            self._give_back(path, spare, new)
            raise _expected(change, found)

    def _directory_of(self, path: str) -> int:
        """The directory of a new ref.  There may be thousands of them in one."""
        parent = path.rpartition("/")[0]
        if parent != self._parent:
            self._leave()
            self._parent_fd = beneath.open_at(self._fd, parent, os.O_PATH | os.O_DIRECTORY)
            self._parent = parent
        return self._parent_fd

    def _leave(self) -> None:
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
        self._parent, self._parent_fd = "", -1

    def _move_alone(self, path: str, old: str, new: str, spare: str) -> None:
        found = self.value(path)
        if found != old:
            raise _expected(RefChange(path, old, new, ""), found)
        self._prepare(_next_of(spare), new)
        if old not in NO_LINK:
            self._prepare(spare, old)  # undoing must not need room
        fsops.rename(self._fd, _next_of(spare), path)

    def state(self, change: RefChange, spare: str, link: Identity | None = None) -> State:
        """The state of a change.

        Args:
            change: which.
            spare: its spare.
            link: which link the ref had before; None where that is not known: then the values alone tell.
        """
        ref, out = self.value(change.path), self.value(spare)
        if change.old is not None and out == change.old and self.value(_next_of(spare)) is None:
            return State.MADE if ref == change.new else State.OVERTAKEN
        if out not in (None, change.old, change.new):
            return State.HELD
        if ref == change.old and link in (None, self.identity(change.path)):
            return State.OPEN
        if ref == change.new and (change.old is None or link is None):
            return State.MADE
        return State.FOREIGN

    def settle(self, change: RefChange, spare: str, link: Identity | None, ours: Sequence[str | None]) -> State:
        """The same, after a peer's value that we hold is back in its place; one whose target has gone is not named again.

        ``ours`` are the values of the ref that may be ours: a peer that set it to another one since was there again.
        """
        state = self.state(change, spare, link)
        if state is not State.HELD:
            return state
        held = self.value(spare)
        if held in NO_LINK or not images.missing_behind(self.repo, change.path, str(held)):
            self.repo.make_directories(change.path.rpartition("/")[0])  # an empty one may have been cleared away since
            self._give_back(change.path, spare, *ours)
            return State.FOREIGN
        self.discard(spare)
        return State.MADE if self.value(change.path) == change.new else State.FOREIGN

    def undo(self, change: RefChange, spare: str) -> bool:
        """Give a ref that has the new value the old one again.  False where a peer moved it.

        The old link is taken from the spare where it is there: on a full disk no other can be made.
        """
        path, old, new = change.path, change.old, change.new
        if new is None:
            return self._link_again(path, spare, str(old))
        try:
            if old is None:
                fsops.rename(self._fd, path, spare)
            else:
                if self.value(spare) != old:
                    self._prepare(spare, old)
                if self._method is Method.ALONE:
                    if self.value(path) != new:
                        return False
                    fsops.rename(self._fd, spare, path)
                    return True
                fsops.exchange(self._fd, spare, path)
        except FileNotFoundError:
            return False
        if self.value(spare) != new:
            self._give_back(path, spare, old)
            return False
        self.discard(spare)
        return True

    def _link_again(self, path: str, spare: str, link: str) -> bool:
        """Give an absent ref a link, or what the spare holds.  False where the ref is there again."""
        try:
            if link in NO_LINK:
                raise OSError(errno.EINVAL, "no link")
            fsops.make_link(self._fd, path, link)
        except FileExistsError:
            return self.value(path) == link
        except OSError:
            # no room for a new link: the old one goes back as it is
            if self.value(path) is not None:
                return False
            fsops.rename(self._fd, spare, path)
        else:
            self.discard(spare)
        return True

    def _give_back(self, path: str, spare: str, *ours: str | None) -> None:
        """Give a ref the value of a peer again that the spare holds, if it has one of ours: else the peer was there again, and
        its newest value stays."""
        put, held = self.value(path), self.value(spare)
        if put not in ours or held is None:
            return
        if put is None:
            self._link_again(path, spare, held)
        elif self._method is Method.ALONE:
            fsops.rename(self._fd, spare, path)
        else:
            with suppress(FileNotFoundError):  # removed meanwhile: that is the newest value
                for _ in range(100):
                    fsops.exchange(self._fd, spare, path)
                    if self.value(spare) == put:
                        return  # our own link came out: the link that is there now is the peer's
                    put, held = held, self.value(spare)

    def _prepare(self, place: str, link: str) -> None:
        try:
            fsops.make_link(self._fd, place, link)
        except FileExistsError:
            fsops.remove(self._fd, place)  # what a crash left
            fsops.make_link(self._fd, place, link)

    def clear(self, spare: str) -> None:
        """Remove the spare of a change that is over."""
        self.discard(spare)
        if self._method is Method.ALONE:
            self.discard(_next_of(spare))

    def discard(self, path: str) -> None:
        """Remove a spare link, where it is there."""
        with suppress(FileNotFoundError):
            fsops.remove(self._fd, path)


def _next_of(spare: str) -> str:
    """Where the new link waits for a move without an exchange: the spare has the old one then."""
    return f"{spare}.new"


def _expected(change: RefChange, found: str | None) -> ExpectationFailed:
    return ExpectationFailed(ref=change.path, wanted=_shown(change.old), found=_shown(found))


def _shown(link: str | None) -> str:
    if link in NO_LINK:
        return "something that is no link"
    return ABSENT if link is None else link.rpartition("/")[2]
