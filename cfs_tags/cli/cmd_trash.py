"""``cfs-tag trash``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.options import Change
from cfs_tags.errors import UsageError

if TYPE_CHECKING:
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.tags.edit import TagPlan

_ACTIONS = ("empty",)


def command(
    ctx: typer.Context,
    action: Annotated[
        str | None,
        typer.Argument(
            metavar="[empty]", autocompletion=complete.one_of(*_ACTIONS), show_default=False, help="Take tags out for good."
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            autocompletion=complete.tags_and_trash,
            show_default=False,
            help="With empty: these alone; * stands for any text, ? for a character, [abc] for one of them.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before tags are taken out for good.")] = False,
    *,
    how: Change,
) -> None:
    """List deleted tags that are being kept, or take them out of the trash for good.

    They came here by 'cfs-tag delete --keep-for', or by a policy of retention, and are kept until the time that is shown.
    What is taken out cannot be restored once it was collected.

    \b
    Examples:
      cfs-tag trash
      cfs-tag restore quay.io/org/app:1.1
      cfs-tag trash empty 'quay.io/org/*' --dry-run
    """
    if action is None:
        _list(ctx, how.as_json)
        return
    if action not in _ACTIONS:
        raise UsageError("invalid-argument", argument="ACTION", value=action, reason=f"is none of these: {', '.join(_ACTIONS)}")
    from cfs_tags.cli.changes import change
    from cfs_tags.tags import edit

    patterns = tuple(names or ())
    agreed = None
    if not yes and not how.dry_run:
        with ctx.obj.open() as repo:
            found = edit.plan_empty(repo, patterns)
        agreed = found.changes
        if agreed:
            _ask(ctx, [row.name for row in found.results])

    def plan(repo: WriteRepo) -> TagPlan:
        return edit.plan_empty(repo, patterns, agreed)

    change(ctx, plan, edit.asked("trash empty", patterns), how, nothing="the trash is empty")


def _list(ctx: typer.Context, as_json: bool) -> None:
    from cfs_tags.cli.rows import notes, row
    from cfs_tags.tags.rows import trash

    with ctx.obj.open() as repo:
        found = trash(repo)
    if as_json:
        output.document("trash", [row(tag) for tag in found])
    else:
        rows = [(tag.name, tag.digest or tag.link, notes(tag)) for tag in found]
        output.table(("NAME", "DIGEST", "NOTES"), rows, "nothing is in the trash")
        if found and view.on_terminal():
            from cfs_tags.cli.hints import typed

            output.lines([f"{typed('trash', 'empty')} takes them out for good, {typed('restore', 'NAME')} brings one back"])


def _ask(ctx: typer.Context, names: list[str]) -> None:
    many = output.count(len(names), "tag")
    unasked = f"{many} would be taken out of the trash for good: with --yes alone where there is no terminal to ask on"
    question = f"Take {many} out of the trash for good?"
    output.ask(names, question, command=ctx.command_path, unasked=unasked, declined="nothing was taken out")
