"""``cfs-tag delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.options import Change, Owners, duration, owners
from cfs_tags.errors import TagNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.tags.edit import TagPlan

_MAGIC = frozenset("*?[")


def command(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            autocompletion=complete.names,
            show_default=False,
            help="Of the tags; * stands for any text, ? for a character, [abc] for one of them.",
        ),
    ],
    keep_for: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Move them to the trash, where they are kept for 7d, 12h, …; 0: do not."),
    ] = None,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="An absent tag is no error.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before patterns delete tags.")] = False,
    owner: Owners = None,
    *,
    how: Change,
) -> None:
    """Remove tags.

    All of them, or none.  What nothing else keeps goes with the next collection; until then, and as long as it is in
    the trash, 'cfs-tag restore' brings a tag back.  How long that is without --keep-for says keep-for of a policy; without
    one they do not go there.  Tags of bootc's are refused unless --owner bootc says that they are meant.  A name that begins
    with - stands behind --.

    A digest, or six or more of its digits, stands for the tag that names that image, where one alone does; with --missing-ok
    it does not.  A pattern stands for all tags that it fits and that may be deleted; where a tag has just that name, for this
    tag alone.  On a terminal the tags are listed first, and a question is asked.

    \b
    Examples:
      cfs-tag delete quay.io/org/app:1.1
      cfs-tag delete quay.io/org/app:1.1 quay.io/org/app:1.2 --keep-for 7d
      cfs-tag delete 'quay.io/org/app:1.*' --dry-run
      cfs-tag delete --missing-ok -- -x
    """
    named = owners(owner)
    kept = None if keep_for is None else 0 if keep_for == "0" else duration(keep_for, "--keep-for")

    from cfs_tags.cli.changes import change
    from cfs_tags.policy import files
    from cfs_tags.tags import edit, rows
    from cfs_tags.tags.instructions import Instruction
    from cfs_tags.tags.names import tag_of
    from cfs_tags.tags.rows import find

    wanted = _expanded(ctx, names, named, missing_ok, how.dry_run or yes)

    until: str | None = None

    def plan(repo: WriteRepo) -> TagPlan:
        nonlocal until
        seconds = files.kept_by_delete(repo) if kept is None else kept
        until = expires = rows.expiry_here(repo, seconds) if seconds else None
        # a script's name of a tag that is gone by now must not stand for the image whose digest begins so
        meant = dict.fromkeys(name if missing_ok else tag_of(repo, name) for name in wanted)
        absent = [name for name in meant if missing_ok and find(repo, name) is None]
        instructions = [Instruction("delete", name, expires=expires) for name in meant if name not in absent]
        made = edit.plan(repo, instructions, owners=named)
        gone = [edit.TagResult(name, "absent", None, None, "") for name in absent]
        return made._replace(results=(*made.results, *gone))

    command = edit.asked("delete", wanted, missing_ok, None if kept is None else kept > 0)
    made = change(ctx, plan, command, how)
    if until is not None and view.on_terminal() and not how.as_json and any(tag.done == "deleted" for tag in made.results):
        from cfs_tags.cli.hints import typed

        kept_there = "would be kept" if how.dry_run else "kept"
        brings = f"{typed('restore', made.results[0].name)} brings it back"
        output.lines([f"{kept_there} in the trash, with what it leads to ({output.ends(until)}): {brings}"])


def _expanded(ctx: typer.Context, words: list[str], owners: Sequence[str], missing_ok: bool, sure: bool) -> list[str]:
    """The names, with those that patterns fit in their place; ends the command where these are not wanted.

    Raises:
        TagNotFound: a pattern fits none.
        UsageError: there is no terminal to ask on.
    """
    wanted = list(dict.fromkeys(words))
    if not any(_MAGIC & set(word) for word in wanted):
        return wanted
    from fnmatch import filter as fitting

    from cfs_tags.tags.rows import list_tags
    from cfs_tags.values import OWNERS

    with ctx.obj.open() as repo:
        known = {tag.name: tag.owner for tag in list_tags(repo, owners=OWNERS)}
    ours = [name for name, owner in known.items() if owner == "app" or owner in owners]
    found: dict[str, list[str]] = {}
    for word in wanted:
        if _MAGIC & set(word) and word not in known:
            found[word] = fitting(ours, word)
            if not found[word] and not missing_ok:
                raise TagNotFound(name=word)
    every = list(dict.fromkeys(name for word in wanted for name in found.get(word, [word])))
    if any(found.values()) and not sure:
        _ask(ctx, [name for names in found.values() for name in names])
    return every


def _ask(ctx: typer.Context, names: list[str]) -> None:
    many = output.count(len(names), "tag")
    unasked = f"the patterns fit {many}, which are deleted with --yes alone where there is no terminal to ask on"
    output.ask(names, f"Delete {many}?", command=ctx.command_path, unasked=unasked, declined="nothing was deleted")
