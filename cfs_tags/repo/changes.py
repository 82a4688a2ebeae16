"""What a change to refs is, and what becomes of it: values alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.errors import TransactionAbandoned

__all__ = ["ABSENT", "NO_NOTE", "Note", "Outcome", "Plan", "RefChange"]

ABSENT = "absent"
"""How errors call the value of a ref that is not there."""


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


class Outcome(NamedTuple):
    """Transactions of a crashed writer that were taken back before this one."""

    abandoned: tuple[TransactionAbandoned, ...]
