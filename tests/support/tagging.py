"""Changing tags in one line, in a repository that is opened beneath the API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note
from cfs_tags.tags import edit
from cfs_tags.tags.instructions import Instruction


def create(
    repo: WriteRepo,
    name: str,
    target: str,
    *,
    force: bool = False,
    expected: str | None = None,
    home: str | None = None,
    expires: str | None = None,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> edit.TagResult:
    """Make a tag, or move one; ``expires`` as in the name of a lease's directory, ``timeout`` in seconds."""
    instruction = Instruction("set" if force else "create", name, target, expected, home, expires)
    command = edit.asked_instructions([instruction])
    made = run.transact(repo, lambda: edit.plan(repo, [instruction], owners=owners), note, timeout, command=command)
    return made.results[0]


def delete(
    repo: WriteRepo,
    names: Iterable[str],
    *,
    expires: str | None = None,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> tuple[edit.TagResult, ...]:
    """Remove tags, all or none; with ``expires`` into the trash."""
    instructions = [Instruction("delete", name, expires=expires) for name in names]
    command = edit.asked_instructions(instructions)
    made = run.transact(repo, lambda: edit.plan(repo, instructions, owners=owners), note, timeout, command=command)
    return made.results


def rename(
    repo: WriteRepo,
    old: str,
    new: str,
    *,
    force: bool = False,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> edit.TagResult:
    """Give a tag another name."""
    command = edit.asked("rename", old, new, force)
    made = run.transact(
        repo, lambda: edit.plan_rename(repo, old, new, owners=owners, force=force), note, timeout, command=command
    )
    return made.results[0]


def restore(
    repo: WriteRepo,
    text: str,
    *,
    owners: Sequence[str] = (),
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> edit.TagResult:
    """Bring back a deleted tag, or an earlier value."""
    command = edit.asked("restore", text, once=True)
    made = run.transact(repo, lambda: edit.plan_restore(repo, text, owners=owners), note, timeout, command=command)
    return made.results[0]
