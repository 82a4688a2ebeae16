"""Content that is kept while something is done with it: a lease that is renewed, and ends by itself where that stops."""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cfs_tags.errors import TagNotFound
from cfs_tags.repo import refs
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, rows
from cfs_tags.tags.instructions import Instruction

if TYPE_CHECKING:
    from cfs_tags.repo.store import ReadRepo, WriteRepo
    from cfs_tags.repo.transaction.change import Note
    from cfs_tags.values import Digest


class Hold:
    """A lease for a while.  Release it, or use it as a context manager; call :meth:`renew` now and then.

    Attributes:
        name: of the lease, which no registry serves.
        digest: of the manifest that is held.
        expires: when it ends unless it is renewed: ``YYYYMMDDThhmmssZ``.
    """

    def __init__(self, repo: ReadRepo, writable: WriteRepo | None, digest: Digest, length: float, note: Note, wait: float):
        self.name = f"hold/{digest.hex[:12]}@{os.getpid()}-{os.urandom(2).hex()}"
        self.digest = digest
        self.expires = ""
        self._repo = writable
        self._length, self._note, self._wait = length, note, wait
        if writable is None:
            self.expires = self._end(repo)
            refs.read_at_once(repo, lambda: edit.plan(repo, [self._lease("create")]))
        else:
            self._carry_out("create")

    def renew(self) -> None:
        """Move the end to as far from now as it was from the beginning.

        Raises:
            LockTimeout, SystemFailure: it could not be done now, and the end stays.
            TargetNotFound, IncompleteTarget: the lease ended before, and the content was collected.
        """
        self._carry_out("set")

    def release(self) -> None:
        """End it now.  Harmless when repeated.  Raises as :meth:`renew`."""
        repo, self._repo = self._repo, None
        if repo is not None:
            with suppress(TagNotFound):  # it ended, or was deleted
                gone = Instruction("delete", self.name)
                run.transact(repo, lambda: edit.plan(repo, [gone]), self._note, self._wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _carry_out(self, verb: str) -> None:
        repo = self._repo
        if repo is not None:
            self.expires = self._end(repo)
            run.transact(repo, lambda: edit.plan(repo, [self._lease(verb)]), self._note, self._wait)

    def _end(self, repo: ReadRepo) -> str:
        return rows.expiry_here(repo, self._length)

    def _lease(self, verb: str) -> Instruction:
        return Instruction(verb, self.name, f"@{self.digest}", expires=self.expires)
