"""``cfs-tag delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Owners, Reason, duration, owners

if TYPE_CHECKING:
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.tagging import TagPlan


def command(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", autocompletion=complete.names, show_default=False, help="Of the tags."),
    ],
    keep_for: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Move them to the trash, where they are kept for 7d, 12h, …")
    ] = None,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="An absent tag is no error.")] = False,
    owner: Owners = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Remove tags.

    All of them, or none.  What nothing else keeps goes with the next collection; until then, and as long as it is in
    the trash, 'cfs-tag restore' brings a tag back.  Tags of bootc's are refused unless --owner bootc says that they
    are meant.  A name that begins with - stands behind --.

    \b
    Examples:
      cfs-tag delete quay.io/org/app:1.1
      cfs-tag delete quay.io/org/app:1.1 quay.io/org/app:1.2 --keep-for 7d
      cfs-tag delete --missing-ok -- -x
    """
    named = owners(owner)
    kept = None if keep_for is None else duration(keep_for, "--keep-for")

    from cfs_tags import tagging
    from cfs_tags.cli.changes import change
    from cfs_tags.tags import find

    expires = None if kept is None else tagging.expiry(kept)
    wanted = list(dict.fromkeys(names))

    def plan(repo: WriteRepo) -> TagPlan:
        absent = {name for name in wanted if missing_ok and find(repo, name) is None}
        instructions = [tagging.Instruction("delete", name, expires=expires) for name in wanted if name not in absent]
        made = tagging.plan(repo, instructions, owners=named)
        gone = [tagging.TagResult(name, "absent", None, None, "") for name in wanted if name in absent]
        return made._replace(results=(*made.results, *gone))

    change(ctx, plan, dry_run=dry_run, reason=reason, lock_timeout=lock_timeout, as_json=as_json)
