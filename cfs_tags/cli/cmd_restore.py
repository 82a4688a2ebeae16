"""``cfs-tag restore``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import Change, Owners, owners
from cfs_tags.errors import InvalidDigest, NotFoundError, TargetNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.tags.edit import TagPlan


def _collected(repo: ReadRepo, text: str, error: TargetNotFound) -> NotFoundError:
    """The error for a value that is in the log, and whose content is gone: with where the log says that it came from."""
    from cfs_tags.repo import reflog
    from cfs_tags.tags.names import split_logged

    logged = split_logged(text)
    name = text if logged is None else logged[0]
    imports = [entry.facts for entry in reversed(reflog.events(repo)) if entry.action == "import" and entry.facts is not None]
    source = next((facts.get("source") for facts in imports if name in _texts(facts.get("names"))), None)
    return NotFoundError("tag-collected", name=name, digest=error.facts()["name"], source=source)


def _texts(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def command(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@{N}|@{TIME}]",
            autocompletion=complete.tags_and_trash,
            show_default=False,
            help="Of the tag; @{N} is entry N of its log, 0 the newest; @{yesterday}, @{2026-01-31} a time.",
        ),
    ],
    owner: Owners = None,
    *,
    how: Change,
) -> None:
    """Bring back a deleted tag, or an earlier value.

    A deleted tag comes out of the trash or, where it is not there, from the log.  A tag that exists goes back to the
    value before the present one.  NAME@{N} is the value that it had after entry N of 'cfs-tag log NAME',
    NAME@{TIME} the one at a time: @{yesterday}, @{2026-01-31}, @{36h} for 36 hours ago.  The image must still be there: only
    the trash keeps it from being collected.  A ref that 'cfs-tag fsck --repair' took out is named by its path, or as a tag.

    \b
    Examples:
      cfs-tag restore quay.io/org/app:1.1
      cfs-tag restore 'quay.io/org/app:stable@{2}' --reason "the new one does not start"
      cfs-tag restore streams/refs/ostree/os --owner foreign
    """
    named = owners(owner)

    from cfs_tags.cli.changes import change
    from cfs_tags.tags import edit

    taken_out = False

    def plan(repo: ReadRepo) -> TagPlan:
        nonlocal taken_out
        try:
            return edit.plan_restore(repo, name, owners=named)
        except TargetNotFound as error:
            raise _collected(repo, name, error) from error
        except (InvalidDigest, NotFoundError):  # no such tag, nor anything in the log that would be one
            from cfs_tags.fsck.quarantine import plan_unquarantine

            made = plan_unquarantine(repo, name, owners=named)
            if made is None:
                raise
            taken_out = True
            return made

    change(ctx, plan, edit.asked("restore", name, once=True), how)
    if taken_out and not how.dry_run:
        from cfs_tags.fsck.quarantine import forget

        with ctx.obj.open(write=True) as repo:
            forget(repo, how.lock_timeout)
