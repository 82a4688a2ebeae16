"""``cfs-tag df``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.options import Json, LockTimeout, seconds
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.usage import Owned, Usage, Used


def command(
    ctx: typer.Context,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="NAME",
            autocompletion=complete.names,
            help="What deleting these names together would free; may be given again.",
        ),
    ] = None,
    boot: sysroots.Boot = None,
    esp: sysroots.Esp = None,
    run: sysroots.Run = None,
    booted: sysroots.Booted = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Show who takes how much: by tag, deployment and owner.

    TOTAL is all that a name reaches, SHARED what something else reaches, too, FREED what would be garbage if this name
    alone were deleted.  Bytes are those taken on disk, each object counted once; extents that files share by reflink
    count for each.  Garbage is what a collection would delete now, after what has run out, and with a sysroot after
    deployments were adopted and retired.

    \b
    Examples:
      cfs-tag df
      cfs-tag df --without quay.io/org/app:1 --without quay.io/org/app:2
      cfs-tag df --json
    """
    from cfs_tags.usage import measure

    session = ctx.obj
    with session.open() as repo, repo.locked("shared", seconds(lock_timeout)):
        sysroots.has_sysroot(ctx, repo, boot=boot, esp=esp, run=run, booted=booted)
        changes, unresolved = sysroots.planned_changes(session, repo, boot, esp, run, booted)
        usage = measure(repo, without or (), changes)
        usage = usage._replace(problems=(*unresolved, *usage.problems))
    if as_json:
        output.document("df", _facts(usage))
        return
    for headings, rows in ((("NAME", "OWNER"), usage.rows), (("OWNER",), usage.owners)):
        shown = [
            (row.name, row.owner, _size(row.total), _size(row.shared), _size(row.freed))[-3 - len(headings) :]
            for row in sorted(rows, key=lambda row: (-row.freed.allocated, row.name))
        ]
        if shown:
            output.table((*headings, "TOTAL", "SHARED", "FREED"), shown)
            output.lines([""])
    output.fields(
        [
            ("Live", _amount(usage.live)),
            ("Garbage", _amount(usage.dead)),
            (
                "Without",
                None if usage.without is None else _amount(usage.without),
            ),
            ("Hard links", f"{output.count(usage.linked, 'object')} with other names, too" if usage.linked else None),
        ]
    )
    for problem in usage.problems:
        output.lines([f"not followed: {printable(problem)}"])


def _amount(used: Used) -> str:
    return f"{output.count(used.objects, 'object')}, {output.size(used.allocated)}"


def _size(used: Used) -> str:
    amount = float(used.allocated)
    for unit in ("B", "K", "M", "G", "T"):
        if amount < 1024 or unit == "T":
            break
        amount /= 1024
    return f"{amount:.0f}{unit}" if unit == "B" else f"{amount:.1f}{unit}"


def _facts(usage: Usage) -> dict[str, Any]:
    def used(one: Used) -> dict[str, int]:
        return {"objects": one.objects, "bytes": one.allocated}

    def owned(row: Owned) -> dict[str, Any]:
        return {"total": used(row.total), "shared": used(row.shared), "freed": used(row.freed)}

    return {
        "names": [{**output.named(row.name), "owner": row.owner, **owned(row)} for row in usage.rows],
        "owners": [{"owner": row.name, **owned(row)} for row in usage.owners],
        "without": None if usage.without is None else used(usage.without),
        "live": used(usage.live),
        "garbage": used(usage.dead),
        "hard_linked_objects": usage.linked,
        "problems": usage.problems,
    }
