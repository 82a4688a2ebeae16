"""``cfs-tag log``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cfs_tags.cli import complete, output
from cfs_tags.cli.options import Json, JsonLines, excluding
from cfs_tags.formats import layout

if TYPE_CHECKING:
    from cfs_tags.repo.reflog import Entry
    from cfs_tags.repo.store import ReadRepo


class _Line(NamedTuple):
    number: int | None
    name: str
    entry: Entry
    old: str | None
    new: str | None


_FIRST = f"{layout.DEPLOYMENTS}/"
_OTHERS = (f"{layout.CONFIGS}/", f"{layout.DEPLOYMENT_IMAGES}/")


def command(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", autocompletion=complete.tags_and_trash, help="Of a tag; all of them without it."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="COUNT", min=1, help="Only the newest entries.")] = None,
    as_json: Json = False,
    as_lines: JsonLines = False,
) -> None:
    """Show what became of a tag, newest first.

    What cfs-tag did, when, by whom and why; and what it found that others had done since the entry before ('found').
    The number of an entry is the N of NAME@{N}, which stands for the value that the tag had after it.

    \b
    Examples:
      cfs-tag log quay.io/org/app:stable
      cfs-tag log --limit 20
      cfs-tag log --jsonl | jq -r 'select(.action == "delete") | .name'
    """
    excluding(ctx, json=as_json, jsonl=as_lines)
    with ctx.obj.open() as repo:
        found = (_all(repo) if name is None else _one(repo, name))[:limit]
    if as_json:
        output.document("log", [_row(line) for line in found])
    elif as_lines:
        output.lines([output.to_json(_row(line)) for line in found])
    elif name is None:
        output.table(("TIME", "ACTION", "NAME", "OLD", "NEW", "BY", "REASON"), [_cells(line, line.name) for line in found])
    else:
        heading = ("ENTRY", "TIME", "ACTION", "OLD", "NEW", "BY", "REASON")
        output.table(heading, [(f"@{{{line.number}}}", *_cells(line)) for line in found])


def _one(repo: ReadRepo, name: str) -> list[_Line]:
    from cfs_tags import tags

    return [_Line(*line) for line in tags.log(repo, name)]


def _all(repo: ReadRepo) -> list[_Line]:
    from cfs_tags.repo import reflog

    entries = reflog.all_entries(repo).entries
    # of a deployment ref that was made at once the first part stands for all three
    whole = {(entry.transaction, entry.ref.rpartition("/")[2]) for entry in entries if entry.ref.startswith(_FIRST)}
    return [
        _Line(None, _name(entry.ref), entry, _value(entry.old), _value(entry.new))
        for entry in reversed(entries)
        if not (entry.ref.startswith(_OTHERS) and (entry.transaction, entry.ref.rpartition("/")[2]) in whole)
    ]


def _name(ref: str) -> str:
    """The name of a ref's tag; its path, where it is no tag's."""
    from cfs_tags.tags import HOMES

    for home, top in HOMES.items():
        if ref.startswith(f"{top}/"):
            relative = ref[len(top) + 1 :]
            if home in ("lease", "trash"):
                relative = relative.partition("/")[2]
            name = layout.decode_name(relative)
            return f"@{home}/{name}" if home in ("trash", "deployment") else name
    return ref


def _value(link: str | None) -> str | None:
    return None if link is None else link.rpartition("/")[2].removeprefix("oci-manifest-")


def _row(line: _Line) -> dict[str, Any]:
    entry = line.entry
    return {
        "number": line.number,
        **output.named(line.name),
        "time": entry.time,
        "action": entry.action,
        "old": line.old,
        "new": line.new,
        "by": entry.by,
        "reason": entry.reason,
        "ref": entry.ref,
        "transaction": entry.transaction or None,
    }


def _cells(line: _Line, *name: str) -> tuple[object, ...]:
    entry = line.entry
    return (entry.time, entry.action, *name, line.old or "absent", line.new or "absent", entry.by or "-", entry.reason)
