"""What is written down before a transaction that a crash may interrupt.

A transaction that is more than one new ref is first written to ``cfs-tags/journal/<id>.json``: every ref with its old and
new link; with several refs it is on disk before the first is changed.  It is removed when all of them are on disk and the
reflog is written.  A journal that is there when a writer starts was left by a crash: see ``recovery.py``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.formats import layout
from cfs_tags.repo import fsops, reflog
from cfs_tags.repo.changes import Note, RefChange

if TYPE_CHECKING:
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.repo.swap import Swap

__all__ = ["JOURNALS", "TMP", "Journal"]

TMP = f"{layout.STATE}/tmp"
JOURNALS = f"{layout.STATE}/journal"


class Journal(NamedTuple):
    """What ``cfs-tags/journal/<id>.json`` holds."""

    transaction: str
    note: Note
    changes: tuple[RefChange, ...]

    @property
    def path(self) -> str:
        """Where it is written."""
        return f"{JOURNALS}/{self.transaction}.json"

    @property
    def back(self) -> str:
        """Its path once it is being taken back: there is that one way from then on, also for a recovery."""
        return f"{JOURNALS}/{self.transaction}.back"

    def spare(self, index: int) -> str:
        """Where the link of change ``index`` is prepared, and what came out is kept until the end."""
        return f"{TMP}/{self.transaction}.{index}"

    def entry(self, change: RefChange, time: str) -> reflog.Entry:
        """What the reflog is told of a change of this transaction."""
        return reflog.Entry(
            change.path, change.old, change.new, change.action, time, self.transaction, self.note.reason, self.note.by
        )

    def to_bytes(self) -> bytes:
        """The content of the file: see :meth:`parse`."""
        return json.dumps(
            {"transaction": self.transaction, "note": self.note, "changes": self.changes}, separators=(",", ":")
        ).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Journal | None:
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

    def write(self, repo: WriteRepo, *, durable: bool) -> None:
        """Write it down; ``durable``: it is on disk afterwards."""
        if durable:
            spare = f"{TMP}/{self.transaction}.journal"
            fsops.replace_file(repo.fd, self.path, self.to_bytes(), spare, repo.owner)
            fsops.sync(repo.fd, JOURNALS)
        else:
            fsops.create_file(repo.fd, self.path, self.to_bytes(), repo.owner)

    def clean(self, swap: Swap, place: str, *, durable: bool) -> None:
        """Forget a transaction that is done, or undone; the journal goes first and, if it was on disk, for good."""
        try:
            fsops.remove(swap.repo.fd, place)
        except FileNotFoundError:
            return
        if durable:
            fsops.sync(swap.repo.fd, JOURNALS)
        for index, change in enumerate(self.changes):
            spare = self.spare(index)
            if change.old is not None:
                swap.discard(spare)
            if swap.exclusive:
                swap.discard(f"{spare}.new")


def _is_change(change: tuple[object, ...]) -> bool:
    """Whether a change from a journal is one of a ref, and of nothing else."""
    path, _, new, action = change
    if not _are_texts(change) or not isinstance(path, str) or not isinstance(action, str) or new == "" or "\0" in path:
        return False
    top, _, rest = path.partition("/refs/")
    return top in (layout.STREAMS, layout.IMAGES) and not {"", ".", ".."} & set(rest.split("/"))


def _are_texts(values: tuple[object, ...]) -> bool:
    return all(value is None or isinstance(value, str) for value in values)
