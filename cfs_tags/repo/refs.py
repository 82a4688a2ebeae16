"""Reading refs; and the door to changing them, all or none (``transactions.py``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cfs_tags.errors import NotALink, SystemFailure
from cfs_tags.formats import layout
from cfs_tags.repo.changes import ABSENT, NO_NOTE, Note, Outcome, Plan, RefChange
from cfs_tags.repo.lock import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = [
    "ABSENT",
    "NO_NOTE",
    "Note",
    "Outcome",
    "Plan",
    "RefChange",
    "RefEntry",
    "everything",
    "not_given",
    "transact",
    "walk",
    "why_no_link",
]

P = TypeVar("P", bound=Plan)


class RefEntry(NamedTuple):
    """Something below ``refs/``: its path from the repository, and the text of its link, None where it is no link."""

    path: str
    target: str | None


def everything(repo: ReadRepo) -> dict[str, str]:
    """All refs: path and text of the link; the empty text where there is none, or the system does not give it.

    Raises:
        FormatError: as :func:`walk`.
    """
    return {path: link or "" for tree in (layout.STREAM_REFS, layout.IMAGE_REFS) for path, link in walk(repo, tree)}


def not_given(repo: ReadRepo, path: str) -> SystemFailure | None:
    """Of a ref without a text: how the system refuses it; None where it is no link."""
    try:
        repo.read_link(path)
    except SystemFailure as error:
        return error
    except NotALink:
        pass
    return None


def why_no_link(repo: ReadRepo, path: str) -> str:
    """The same as a line for people."""
    refused = not_given(repo, path)
    return refused.message if refused is not None else f"{path} is no link"


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
    from cfs_tags.repo import transactions  # most commands only read

    return transactions.run(repo, plan, note, timeout, exclusive=exclusive, prepare=prepare)
