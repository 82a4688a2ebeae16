"""One change to one ref: compare and swap.

Peers (cfsctl, bootc) write tags under the *shared* repository lock and without looking, so a lock cannot keep them out.
Every change therefore says what it expects and looks at what came out:

=========  ==============================================================  ============================================
change     step                                                            what came out is not what was expected
=========  ==============================================================  ============================================
make       ``symlinkat``, which refuses where anything is                  nothing was changed
move       exchange with a prepared link in ``cfs-tags/tmp/``              exchange back, until our own link comes out
delete     rename to ``cfs-tags/tmp/``                                     put back, without replacing what is there now
=========  ==============================================================  ============================================
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from cfs_tags.errors import ExpectationFailed
from cfs_tags.repo import contents, fsops
from cfs_tags.repo.changes import ABSENT, RefChange

if TYPE_CHECKING:
    from cfs_tags.repo.store import WriteRepo

__all__ = ["Swap"]

_DIRECTORY = "\0directory"
"""What :meth:`Swap.value` calls a directory; no link has a NUL."""


class Swap:
    """Changes refs one by one, and back, while the locks are held.

    A ``spare`` is a path in ``cfs-tags/tmp/``: there the new link is prepared, and what came out is kept until the end.

    Attributes:
        repo: where.
        exclusive: whether nobody else has the repository open.
    """

    def __init__(self, repo: WriteRepo, exclusive: bool) -> None:
        self.repo = repo
        self.exclusive = exclusive
        self._fd = repo.fd

    def change(self, change: RefChange, spare: str, *, prepared: bool = False) -> None:
        """One change, with its comparison.  After ExpectationFailed the ref is what its peer made it.

        What came out is in ``spare`` afterwards; with ``prepared`` the new link is there before.
        """
        path, old, new = change.path, change.old, change.new
        if old is None:
            assert new is not None
            try:
                fsops.make_link(self._fd, path, new)
            except FileExistsError:
                raise _expected(change, self.value(path)) from None
            return
        try:
            if new is None:
                fsops.rename(self._fd, path, spare)
            elif self.exclusive:
                # nobody else has the repository open: a plain look is a comparison
                if self.value(path) != old:
                    raise _expected(change, self.value(path))
                if prepared:
                    fsops.rename(self._fd, spare, path)
                    return
                self.discard(f"{spare}.new")  # what a crash left
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
        found = self.value(spare)
        if found != old:
            self._put_back(path, spare, new)
            raise _expected(change, found)

    def _put_back(self, path: str, spare: str, ours: str | None) -> None:
        """Give a ref its peer's value back, from ``spare``; ``ours`` is what we put there, None for nothing."""
        if ours is None:
            found = self.value(spare)
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
            if self.value(path) is None:
                fsops.rename(self._fd, spare, path)
            return
        if self.exclusive:
            if self.value(path) == ours:
                fsops.rename(self._fd, spare, path)
            return
        put: str | None = ours
        for _ in range(100):
            try:
                holding = self.value(spare)
                fsops.exchange(self._fd, spare, path)
            except FileNotFoundError:
                return  # removed meanwhile: that is the newest value
            if self.value(spare) == put:
                return  # what we had put there came out: what is there now is the peer's
            put = holding

    def value(self, path: str) -> str | None:
        """The link at ``path``; the empty text, which no link has, for something that is no link.

        For a directory a text that is nobody's old value: the refs below it must not go with it.
        """
        try:
            return os.readlink(path, dir_fd=self._fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return _DIRECTORY if self.repo.is_directory(path) else ""
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def undo(self, change: RefChange, spare: str) -> bool:
        """Give one ref its old value, if it still has the new one.  False where a peer moved it.

        The old link is taken from ``spare`` where it is there: on a full disk no other can be made.
        """
        if change.new is None and self.value(spare) == change.old:
            self._put_back(change.path, spare, None)
            return self.value(change.path) == change.old
        undo = _undo_of(spare)
        self.discard(undo)
        prepared = change.old is not None and self.value(spare) == change.old
        if prepared:
            fsops.rename(self._fd, spare, undo)
        try:
            self.change(RefChange(change.path, change.new, change.old, change.action), undo, prepared=prepared)
        except ExpectationFailed:
            return False
        self.discard(undo)
        return True

    def was_made(self, change: RefChange, spare: str) -> bool:
        """Whether a change was made that was interrupted before it could say so."""
        self.rescue(change, spare)
        made = self.value(change.path) == change.new
        return made and (change.old is None or self.value(spare) == change.old)

    def rescue(self, change: RefChange, spare: str) -> None:
        """Put back a peer's value that came out just before the crash, unless its target has gone since."""
        for place, ours in ((spare, change.new), (_undo_of(spare), change.old)):
            found = self.value(place)
            if found in (None, change.old, change.new) or self.value(change.path) != ours:
                continue
            if found in ("", _DIRECTORY) or not contents.missing_behind(self.repo, change.path, str(found)):
                self._put_back(change.path, place, ours)

    def discard(self, path: str) -> None:
        """Remove a spare link, where it is there."""
        with suppress(FileNotFoundError):
            fsops.remove(self._fd, path)


def _undo_of(spare: str) -> str:
    return f"{spare}.undo"


def _expected(change: RefChange, found: str | None) -> ExpectationFailed:
    return ExpectationFailed(ref=change.path, wanted=_shown(change.old), found=_shown(found))


def _shown(link: str | None) -> str:
    if link in ("", _DIRECTORY):
        return "something that is no link"
    return ABSENT if link is None else link.rpartition("/")[2]
