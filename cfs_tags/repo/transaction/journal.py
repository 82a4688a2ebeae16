"""What is written down before a transaction that an interruption may cut in two.

What is found when a writer starts was left by an interrupted one: ``recovery.py``.

=============  ================================================  ==========================================================
:class:`Kept`  transaction                                       its journal
=============  ================================================  ==========================================================
NOWHERE        one new ref: a single step of the system          there is none
WRITTEN        one ref that is moved or removed                  a kill leaves it; a power cut may tear it, which reads as
                                                                 "nothing had been changed"
ON_DISK        several refs; what comes to something else when   is on disk before the first change
               it is asked for once more
=============  ================================================  ==========================================================

==================  ========================  ======================================================================
:class:`Stage`      file in ``cfs-tags/``     so
==================  ========================  ======================================================================
MAKING              ``journal/<id>.json``     its changes are being made
UNDOING             ``journal/<id>.back``     an error came; they are being taken back, and are never made any more
DONE                ``tmp/<id>.done``         all are on disk and in the reflog; the command has not returned yet
==================  ========================  ======================================================================
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from cfs_tags.repo import fsops, reflog
from cfs_tags.repo.layout import JOURNALS, TMP, is_ref_path, is_text
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction.change import Command, Identity, Note, P, RefChange, Row, Swap


class Stage(Enum):
    """How far a transaction is: the table at the head of this module.  The value is where its journal stands."""

    MAKING = f"{JOURNALS}/{{}}.json"
    UNDOING = f"{JOURNALS}/{{}}.back"
    DONE = f"{TMP}/{{}}.done"


class Kept(Enum):
    """Where the journal of a transaction is kept: the table at the head of this module."""

    NOWHERE = "nowhere"
    WRITTEN = "written"
    ON_DISK = "on disk"


class Journal(NamedTuple):
    """What a journal holds.

    Attributes:
        transaction: its id.
        note: for the reflog.
        changes: in the order in which they are made.
        links: which link each ref had before; None as a whole in the journal of a version that did not write that.
        command: words that are the same when the same is asked for again; empty where the planner comes to nothing more by
            itself then.
        rows: what the command says of its results.
        kept: where; no part of it.
    """

    transaction: str
    note: Note
    changes: tuple[RefChange, ...]
    links: tuple[Identity | None, ...] | None = None
    command: str = ""
    rows: tuple[Row, ...] = ()
    kept: Kept = Kept.ON_DISK

    @classmethod
    def of(cls, swap: Swap, plan: P, note: Note, command: Command[P] | None) -> Journal:
        """That of a new transaction."""
        changes = tuple(change for change in plan.changes if change.old != change.new)
        links = tuple(None if change.old is None else swap.identity(change.path) for change in changes)
        kept = Kept.NOWHERE if all(change.old is None for change in changes) else Kept.WRITTEN
        if len(changes) > 1 or (changes and command is not None and command.once):
            kept = Kept.ON_DISK
        words, rows = (command.words, tuple(command.rows(plan))) if command is not None else ("", ())
        return cls(os.urandom(8).hex(), note, changes, links, words, rows, kept)

    @property
    def parents(self) -> list[str]:
        """The directories of its refs."""
        return sorted({change.path.rpartition("/")[0] for change in self.changes})

    def place(self, stage: Stage) -> str:
        """Where it stands."""
        return stage.value.format(self.transaction)

    def spare(self, index: int) -> str:
        """Where the link of change ``index`` is prepared, and what came out is kept until the end."""
        return f"{TMP}/{self.transaction}.{index}"

    def link(self, index: int) -> Identity | None:
        """Which link the ref of change ``index`` had before; None where that is not known."""
        return self.links[index] if self.links is not None else None

    def entry(self, change: RefChange, time: str) -> reflog.Entry:
        """The entry of the reflog for a change of this transaction."""
        return reflog.Entry(
            change.path, change.old, change.new, change.action, time, self.transaction, self.note.reason, self.note.by
        )

    def to_bytes(self) -> bytes:
        """The content of the file: see :meth:`parse`."""
        document = self._asdict()
        del document["kept"]
        if not self.command:
            del document["command"], document["rows"]
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Journal | None:
        """The journal in a file; None where these are not bytes that this program would write.

        Raises:
            ValueError: it is no JSON, because it was not written to its end: nothing had been changed then.
        """
        try:
            document = json.loads(data)
        except RecursionError:
            return None
        try:
            links = document.get("links")
            found = cls(
                document["transaction"],
                Note(*document["note"]),
                tuple(RefChange(*change) for change in document["changes"]),
                None if links is None else tuple(None if link is None else (link[0], link[1]) for link in links),
                document.get("command", ""),
                tuple(tuple(row) for row in document.get("rows", ())),
            )
        except (AttributeError, TypeError, KeyError, IndexError):
            return None
        return found if found._is_ours() else None

    def _is_ours(self) -> bool:
        optional = [*self.note, *(text for row in self.rows for text in row)]
        return (
            all(map(is_text, (self.transaction, self.command)))
            and all(text is None or is_text(text, reflog.LONGEST_WORDS) for text in optional)
            and all(map(_is_change, self.changes))
            and (self.links is None or (len(self.links) == len(self.changes) and all(map(_is_identity, self.links))))
        )

    def write(self, repo: WriteRepo) -> None:
        """Write it down where it is to be kept."""
        place = self.place(Stage.MAKING)
        if self.kept is Kept.ON_DISK:
            fsops.replace_file(repo.fd, place, self.to_bytes(), f"{TMP}/{self.transaction}.journal")
            fsops.sync(repo.fd, JOURNALS)
        elif self.kept is Kept.WRITTEN:
            fsops.create_file(repo.fd, place, self.to_bytes())

    def turn_back(self, repo: WriteRepo) -> None:
        """Go to the stage UNDOING."""
        if self.kept is not Kept.NOWHERE:
            fsops.rename(repo.fd, self.place(Stage.MAKING), self.place(Stage.UNDOING))

    def close(self, repo: WriteRepo, *, done: bool) -> None:
        """Take it out of the way of a recovery, for good if it was on disk.

        That of a command that is ``done`` goes to the stage DONE, because the command has not returned yet: when it is run
        again instead, it is known to be done.
        """
        if self.kept is Kept.NOWHERE:
            return
        for stage in (Stage.MAKING, Stage.UNDOING):
            with suppress(FileNotFoundError):
                if done and self.command:
                    fsops.rename(repo.fd, self.place(stage), self.place(Stage.DONE))
                else:
                    fsops.remove(repo.fd, self.place(stage))
                break
        if self.kept is Kept.ON_DISK:
            fsops.sync(repo.fd, JOURNALS)

    def clear(self, swap: Swap) -> None:
        """Remove the files of a transaction that is closed; last the one that says that it is done."""
        for index, change in enumerate(self.changes):
            if change.old is not None:
                swap.clear(self.spare(index))
        if self.command and self.kept is not Kept.NOWHERE:
            swap.discard(self.place(Stage.DONE))


def _is_change(change: RefChange) -> bool:
    """Whether a change from a journal is one of a ref, and of nothing else."""
    if not is_ref_path(change.path) or not is_text(change.action):
        return False
    # a ref may stand deeper than any path may be; none is made there
    made = change.new is None or (change.new != "" and is_text(change.new) and is_text(change.path))
    return made and (change.old is None or is_text(change.old)) and change.old != change.new


def _is_identity(link: Identity | None) -> bool:
    return link is None or all(isinstance(number, int) for number in link)
