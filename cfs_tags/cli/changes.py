"""What the commands that change tags have in common: planning or doing, and saying what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from cfs_tags.cli import output
from cfs_tags.cli.session import note
from cfs_tags.errors import CfsTagsError, printable
from cfs_tags.repo import refs
from cfs_tags.repo.transaction import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    import typer

    from cfs_tags import WriteRepository
    from cfs_tags.cli.options import Change
    from cfs_tags.repo.transaction.change import Command
    from cfs_tags.tags.edit import TagPlan, TagResult

_UNDONE = ("unchanged", "verified", "absent", "kept", "missing", "unreadable")
"""What is so without anything being done."""


def not_pullable(name: str) -> list[CfsTagsError]:
    """A warning where a tag of an app cannot be pulled under its name, or only under a longer one."""
    from cfs_tags.errors import CfsTagsError
    from cfs_tags.registry.names import Place, place_of
    from cfs_tags.tags import rows

    if rows.owner_of(name) != "app":
        return []
    place = place_of(name)
    if isinstance(place, Place):
        if place.reference != "latest" or name.endswith(":latest"):
            return []
        place = f"it has no tag, and they ask for {place.repository}:latest"
    return [CfsTagsError("name-not-pullable", name=name, reason=place)]


def said(done: str, dry_run: bool) -> str:
    """What was done, in a word; after a dry run what would be."""
    return f"would be {done}" if dry_run and done not in _UNDONE else done


class Told(TypedDict):
    """Arguments that every method of the library has that changes something."""

    reason: str | None
    by: str | None
    timeout: timedelta
    dry_run: bool


def told(how: Change) -> Told:
    """The options that every change has, as the library takes them."""
    from datetime import timedelta

    made = note(how.reason)
    return {"reason": made.reason, "by": made.by, "timeout": timedelta(seconds=how.lock_timeout), "dry_run": how.dry_run}


def change(
    ctx: typer.Context,
    planner: Callable[[WriteRepository], TagPlan],
    command: Command[TagPlan],
    how: Change,
    nothing: str | None = None,
) -> TagPlan:
    """Carry out a plan, or for a dry run only make it, and print what became, or would become, of each tag.

    Returns the plan.

    Args:
        ctx: of the command.
        planner: makes the plan, under the locks where it is carried out.
        command: what is asked for.
        how: the options that every change has.
        nothing: what is printed if there is nothing to do.
    """
    # a dry run opens the repository as the run would, so that it is refused where the run would be
    with ctx.obj.open(write=True, dry_run=how.dry_run) as repo:
        if how.dry_run:
            plan = refs.read_at_once(repo, lambda: planner(repo))
        else:
            plan = run.transact(repo, lambda: planner(repo), note(how.reason), how.lock_timeout, command=command)
    if how.as_json:
        result = {
            "dry_run": how.dry_run,
            "tags": [_row(tag) for tag in plan.results],
            "changes": [{"ref": made.path, "old": made.old, "new": made.new} for made in plan.changes],
        }
        output.document(str(ctx.info_name), result)
    else:
        said = [_line(tag, how.dry_run) for tag in plan.results]
        output.lines(said or ([] if nothing is None else [nothing]))
    return plan


def _row(tag: TagResult) -> dict[str, Any]:
    return {**output.named(tag.name), "done": tag.done, "old": tag.old, "new": tag.new, "home": tag.home or None}


def _line(tag: TagResult, dry_run: bool) -> str:
    done = said(tag.done, dry_run)
    text = f"{done}: {printable(tag.name)}"
    if tag.done == "renamed":
        return f"{done}: {printable(tag.old)} -> {printable(tag.name)}"
    if tag.new is not None:
        text += f" -> {printable(tag.new)}"
        # a tag that moves and names the same goes to another home
        if tag.home not in ("shared", "") or (tag.done == "moved" and tag.old == tag.new):
            text += f" ({tag.home})"
    if tag.old and tag.old != tag.new and tag.done != "unchanged":  # renamed to itself, it has a name there
        text += f" (was {printable(tag.old)})"
    return text
