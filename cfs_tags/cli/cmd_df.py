"""``cfs-tag df``."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots, view
from cfs_tags.cli.options import Json, LockTimeout, NoPager
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfs_tags.df import ImageUse, Owned, Sharing, Usage, Used


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
    *,
    places: sysroots.Places,
    no_pager: NoPager = False,
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
    from cfs_tags.df import measure
    from cfs_tags.tags.names import tag_of

    session = ctx.obj
    with session.open(places) as repo, repo.locked("shared", lock_timeout):
        sysroots.has_sysroot(ctx, repo, **places._asdict())
        changes, unresolved = repo.deployments.planned_changes()
        usage = measure(repo, [tag_of(repo, repo.deployments.meant(name)) for name in without or ()], changes)
        usage = usage._replace(problems=(*unresolved, *usage.problems))
    if as_json:
        output.document("df", _facts(usage))
    elif view.on_terminal():
        from cfs_tags.cli.pager import paged

        with paged(not no_pager):
            _show(usage, without or ())
    else:
        _print(usage)


def _print(usage: Usage) -> None:
    """Everything in full, in tables."""
    compact = cache(output.compact)  # thousands of tags have few sizes
    for headings, rows in ((("NAME", "OWNER"), usage.rows), (("OWNER",), usage.owners)):
        shown = []
        for row in sorted(rows, key=lambda row: (-row.freed.allocated, row.name)):
            sizes = [compact(used.allocated) for used in (row.total, row.shared, row.freed)]
            shown.append((row.name, row.owner, *sizes)[-3 - len(headings) :])
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


def _facts(usage: Usage) -> dict[str, Any]:
    def used(one: Used) -> dict[str, int]:
        return {"objects": one.objects, "bytes": one.allocated}

    def owned(row: Owned) -> dict[str, Any]:
        return {"total": used(row.total), "shared": used(row.shared), "freed": used(row.freed)}

    def sharing(one: Sharing) -> dict[str, Any]:
        return {"names": one.names, "more": one.more, **used(one.used)}

    return {
        "names": [{**output.named(row.name), "owner": row.owner, **owned(row)} for row in usage.rows],
        "owners": [{"owner": row.name, **owned(row)} for row in usage.owners],
        "images": [
            {
                "manifest": image.manifest,
                "names": image.names,
                "total": used(image.total),
                "shared": used(image.shared),
                "freed": used(image.freed),
                "shared_with": [sharing(one) for one in image.shared_with],
            }
            for image in usage.images
        ],
        "without": None if usage.without is None else used(usage.without),
        "without_shared_with": [sharing(one) for one in usage.staying],
        "live": used(usage.live),
        "garbage": used(usage.dead),
        "hard_linked_objects": usage.linked,
        "problems": usage.problems,
    }


# -- on a terminal -----------------------------------------------------------------------------------------------------

_BAR = 12
_WIDE_BAR = 24
_OWN, _DIM = "32", "2"
_LEAST, _WIDE = 60, 100
"""Columns from which on the names of an image stand beside its bar, and the bar is a long one."""


def _show(usage: Usage, without: Sequence[str]) -> None:
    """The answer first, then images, the largest first, with bars; then owners, and what is live and what garbage."""
    width = view.columns(sys.stdout) or 80
    said: list[str] = []
    if usage.without is not None:
        said += [*_answer(usage, without), ""]
    said += _of_images(usage.images, width)
    output.emit("".join([f"{line}\n" for line in said]))
    rows = sorted(usage.owners, key=lambda row: -row.total.allocated)
    if rows:
        shown = [(row.owner, *(output.compact(used.allocated) for used in (row.total, row.shared, row.freed))) for row in rows]
        if width >= _LEAST:
            output.table(("OWNER", "TOTAL", "SHARED", "FREED"), shown)
        else:  # what is shared is what the others leave of the total
            output.table(("OWNER", "TOTAL", "FREED"), [(owner, total, freed) for owner, total, _, freed in shown])
        output.lines([""])
    output.fields([("Live", _amount(usage.live)), ("Garbage", _amount(usage.dead))])
    if usage.linked:
        has = "has other names, too, so that its" if usage.linked == 1 else "have other names, too, so that their"
        output.lines([f"{output.count(usage.linked, 'object')} {has} bytes may not come free"])
    for problem in usage.problems:
        output.lines([f"not followed: {printable(problem)}"])


def _answer(usage: Usage, without: Sequence[str]) -> Iterator[str]:
    """What deleting some names would free, in a sentence."""
    names = [view.short(printable(name), sys.stdout) for name in without]
    what = " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
    freed = usage.without
    assert freed is not None
    amount = f"{output.compact(freed.allocated)} in {output.count(freed.objects, 'object')}" if freed.objects else "nothing"
    yield from view.wrapped(f"Deleting {what} would free {amount}.", sys.stdout, 2)
    for sharing in usage.staying:
        yield from view.wrapped(f"  {output.compact(sharing.used.allocated)} would stay with {_whom(sharing)}", sys.stdout, 4)


def _whom(sharing: Sharing) -> str:
    """Whose it is, too."""
    names = [view.short(printable(name), sys.stdout) for name in sharing.names[:3]]
    more = sharing.more + len(sharing.names) - len(names)
    if more:
        return f"{', '.join(names)} and {output.count(more, 'other')}"
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _of_images(images: Sequence[ImageUse], width: int) -> Iterator[str]:
    """Size, what would be freed, a bar of both, and beside it (or below, where there is no room) names and sharers."""
    bar = _WIDE_BAR if width >= _WIDE else _BAR
    own, shared = ("█", "░") if view.in_unicode(sys.stdout) else ("#", ".")
    amounts = [[output.compact(used.allocated) for used in (image.total, image.freed)] for image in images]
    widths = [max(map(len, cells)) for cells in zip(("TOTAL", "FREED"), *amounts, strict=False)]
    painted = view.painter(sys.stdout)
    head = f"{'TOTAL':>{widths[0]}}  {'FREED':>{widths[1]}}  {f'{own} own {shared} shared':<{bar}}"
    beside = width >= _LEAST
    indent = len(head) + 2 if beside else 2
    yield f"{head}  IMAGE" if beside else head
    most = images[0].total.allocated if images else 0
    for image, (total, freed) in zip(images, amounts, strict=True):
        filled = round(bar * image.total.allocated / most) if most else 0
        solid = min(filled, round(bar * image.freed.allocated / most)) if most else 0
        drawn = painted(own * solid, _OWN) + painted(shared * (filled - solid), _DIM) + " " * (bar - filled)
        names = [view.short(printable(name), sys.stdout) for name in image.names]
        lines = [line for name in names for line in view.wrapped(f"{' ' * indent}{name}", sys.stdout, indent + 2)]
        begin = f"{total:>{widths[0]}}  {freed:>{widths[1]}}  {drawn}  "
        if beside and lines:
            lines[0] = begin + lines[0].lstrip()
        else:
            lines.insert(0, begin.rstrip())
        yield from lines
        for one in image.shared_with:
            text = f"{' ' * indent}shares {output.compact(one.used.allocated)} with {_whom(one)}"
            yield from (painted(line, _DIM) for line in view.wrapped(text, sys.stdout, indent + 2))
    yield ""
