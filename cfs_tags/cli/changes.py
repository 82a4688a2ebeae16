"""What the commands that change tags have in common: planning or doing, and saying what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cfs_tags import tagging
from cfs_tags.cli import output
from cfs_tags.cli.options import seconds
from cfs_tags.cli.session import note
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer

    from cfs_tags.errors import TransactionAbandoned
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.tagging import TagPlan, TagResult

__all__ = ["change"]

_UNDONE = ("unchanged", "verified", "absent")


def change(
    ctx: typer.Context,
    planner: Callable[[WriteRepo], TagPlan],
    *,
    dry_run: bool,
    reason: str | None,
    lock_timeout: float,
    as_json: bool,
) -> None:
    """Carry out a plan, or for a dry run only make it, and print what became, or would become, of each tag.

    Args:
        ctx: of the command.
        planner: makes the plan, under the locks where it is carried out.
        dry_run: take no lock and write nothing.
        reason: for the log.
        lock_timeout: seconds to wait for locks.
        as_json: print a document.
    """
    timeout = seconds(lock_timeout)
    abandoned: tuple[TransactionAbandoned, ...] = ()
    # a dry run opens the repository as the run would, so that it is refused where the run would be
    with ctx.obj.open(write=True) as repo:
        if dry_run:
            plan = planner(repo)
        else:
            plan, outcome = tagging.apply(repo, lambda: planner(repo), note(reason), timeout)
            abandoned = outcome.abandoned
    output.warn(abandoned)
    if as_json:
        result = {
            "dry_run": dry_run,
            "tags": [_row(tag) for tag in plan.results],
            "changes": [{"ref": made.path, "old": made.old, "new": made.new} for made in plan.changes],
        }
        output.document(str(ctx.info_name), result, abandoned)
    else:
        output.lines([_line(tag, dry_run) for tag in plan.results])


def _row(tag: TagResult) -> dict[str, Any]:
    return {**output.named(tag.name), "done": tag.done, "old": tag.old, "new": tag.new, "home": tag.home or None}


def _line(tag: TagResult, dry_run: bool) -> str:
    done = f"would be {tag.done}" if dry_run and tag.done not in _UNDONE else tag.done
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
