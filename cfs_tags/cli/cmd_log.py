"""``cfs-tag log``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.options import Json, JsonLines, NoPager, excluding, instant
from cfs_tags.errors import UsageError, printable
from cfs_tags.repo import layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfs_tags.repo.reflog import Entry
    from cfs_tags.repo.store import ReadRepo


class _Line(NamedTuple):
    number: int | None
    name: str
    entry: Entry
    old: str | None
    new: str | None


_WHOLE = "(repository)"
_FIRST = (f"{layout.DEPLOYMENTS}/", f"{layout.PINS}/")
_OTHERS = tuple(f"{top}/" for top in (layout.CONFIGS, layout.DEPLOYMENT_IMAGES, layout.PIN_CONFIGS, layout.PIN_IMAGES))
_ACTIONS = (
    *("create", "move", "delete", "rename", "restore", "found", "expire", "prune", "quarantine", "transaction-abandoned"),
    *("adopt", "retire", "bind", "pin", "unpin", "revive", "migrate", "undo", "collect", "check", "import", "mend"),
    *("maintain", "good-boot"),
)


def command(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", autocompletion=complete.tags_and_trash, help="Of a tag; all of them without it."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="COUNT", min=1, help="Only the newest entries.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only what is newer: 2026-01-31, yesterday, 36h.")
    ] = None,
    actions: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            metavar="ACTION",
            autocompletion=complete.one_of(*_ACTIONS),
            help="Only what was done so: create, delete, collect…; may be given again.",
        ),
    ] = None,
    no_pager: NoPager = False,
    as_json: Json = False,
    as_lines: JsonLines = False,
) -> None:
    """Show what was done: to a tag, or in the whole repository; newest first.

    What cfs-tag did, when, by whom and why; and what it found that others had done since the entry before ('found').
    The number of an entry is the N of NAME@{N}, which stands for the value that the tag had after it.  Without a NAME
    there are collections, checks, imports and migrations among the entries.  On a terminal a long log is shown by PAGER, or
    less.

    \b
    Examples:
      cfs-tag log quay.io/org/app:stable
      cfs-tag log --since yesterday --action delete --action collect
      cfs-tag log --jsonl | jq -r 'select(.action == "delete") | .name'
    """
    excluding(ctx, json=as_json, jsonl=as_lines)
    for action in actions or ():
        if action not in _ACTIONS:
            raise UsageError("invalid-argument", argument="--action", value=action, reason=f"is none of {', '.join(_ACTIONS)}")
    first = None if since is None else instant(since, "--since")
    with ctx.obj.open() as repo:
        found = _all(repo) if name is None else _one(repo, repo.deployments.meant(name))
    found = _chosen(found, first, actions)[:limit]
    if as_json:
        output.document("log", [_row(line) for line in found])
    elif as_lines:
        output.data([output.to_json(_row(line)) for line in found])
    elif not found:
        output.lines(["no entry of the log fits" if since or actions else "the log has no entries"])
    elif view.on_terminal():
        from cfs_tags.cli.pager import paged

        with paged(not no_pager):
            _show(found)
    elif name is None:
        output.table(("TIME", "ACTION", "NAME", "OLD", "NEW", "BY", "REASON"), [_cells(line, line.name) for line in found])
    else:
        heading = ("ENTRY", "TIME", "ACTION", "OLD", "NEW", "BY", "REASON")
        output.table(heading, [(f"@{{{line.number}}}", *_cells(line)) for line in found])


def _one(repo: ReadRepo, name: str) -> list[_Line]:
    from cfs_tags.tags import history

    return [_Line(*line) for line in history.log(repo, name)]


def _all(repo: ReadRepo) -> list[_Line]:
    from cfs_tags.repo import reflog
    from cfs_tags.tags.rows import name_of_ref

    entries = reflog.all_entries(repo).entries
    # a deployment ref or a pin that was made at once is shown by its first part
    whole = {(entry.transaction, entry.ref.rpartition("/")[2]) for entry in entries if entry.ref.startswith(_FIRST)}
    shown = [
        entry
        for entry in reversed(entries)
        if not (entry.ref.startswith(_OTHERS) and (entry.transaction, entry.ref.rpartition("/")[2]) in whole)
    ]
    names = [_WHOLE if entry.ref == reflog.WHOLE else name_of_ref(entry.ref) for entry in shown]
    return [_Line(None, name, entry, _value(entry.old), _value(entry.new)) for name, entry in zip(names, shown, strict=True)]


def _chosen(found: list[_Line], first: float | None, actions: list[str] | None) -> list[_Line]:
    if actions:
        found = [line for line in found if line.entry.action in actions]
    if first is not None:
        from cfs_tags.repo.reflog import timestamp

        oldest = timestamp(max(first, 0.0))
        found = [line for line in found if line.entry.time >= oldest]
    return found


def _value(link: str | None) -> str | None:
    return None if link is None else layout.named_by(link)


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
        "facts": entry.facts,
    }


def _cells(line: _Line, *name: str) -> tuple[object, ...]:
    entry = line.entry
    came_of_it = _came_of_it(entry)
    old, new = ("-", came_of_it) if came_of_it else (line.old or "absent", line.new or "absent")
    return (entry.time, entry.action, *name, old, new, entry.by or "-", entry.reason)


def _came_of_it(entry: Entry) -> str:
    """What was done to the repository, in words; nothing of what was done to a ref, or is not known."""
    facts = entry.facts or {}

    def number(key: str) -> int:
        value = facts.get(key)
        return value if isinstance(value, int) else 0

    def counted(key: str) -> str:
        return output.count(number(key), key.removesuffix("s"))

    if entry.action == "collect" and facts:
        stopped = f"; stopped early: {facts['stopped']}" if facts.get("stopped") else ""
        return f"{counted('objects')} deleted, {output.rounded(number('bytes'))} freed{stopped}"
    if entry.action == "check" and facts:
        found = ", ".join(counted(key) for key in ("errors", "warnings", "notes") if number(key)) or "nothing wrong"
        repaired = f", {number('repaired')} repaired" if number("repaired") else ""
        return f"{found} in {counted('objects')}{repaired}{', all read whole' if number('content') else ''}"
    if entry.action == "import" and facts:
        names = facts.get("names")
        what = ", ".join(names) if isinstance(names, list) else ""
        return f"{what} from {facts.get('source')}: {counted('objects')}, {output.rounded(number('bytes'))} written"
    if entry.action == "mend" and facts:
        written = f"{counted('objects')}, {output.rounded(number('bytes'))} written"
        left = f", {number('left')} not mended" if number("left") else ""
        return f"{counted('images')}, {counted('layers')} from {facts.get('source')}: {written}{left}"
    if entry.action == "migrate" and facts:
        kept = (
            f"{output.count(number('before'), 'thing')} kept before, {number('after')} after, {number('lost') or 'none'} lost"
        )
        return f"{counted('deployments')}, {counted('refs')} written: {kept}"
    if entry.action == "revive" and facts:
        deployed = ", and deployed by bootc" if number("deployed") else ""
        return f"{facts.get('deployment') or facts.get('manifest')} exported to {facts.get('layout')}{deployed}"
    if entry.action == "maintain" and facts:
        done = [f"{number('adopted')} adopted"] if number("adopted") else []
        done += [f"{output.count(number('dropped'), 'tag')} deleted"] if number("dropped") else []
        done += ["nothing to collect" if number("unchanged") else f"{output.rounded(number('bytes'))} collected"]
        done += [f"{output.count(number('checked'), 'object')} checked"] if number("checked") else []
        done += [output.count(number("findings"), "finding")] if number("findings") else []
        failed = facts.get("failed")
        done += [f"not done: {', '.join(failed)}"] if isinstance(failed, list) and failed else []
        return ", ".join(done)
    if entry.action == "good-boot" and facts:
        return f"@deployment/{facts.get('deployment')} was booted successfully"
    if entry.action == "undo" and facts:
        return f"{counted('refs')} taken back, {output.count(number('origins'), 'origin file')} restored"
    return ""


# -- on a terminal -----------------------------------------------------------------------------------------------------

_COLOURS = {
    **dict.fromkeys(("create", "restore", "pin"), "32"),
    **dict.fromkeys(("delete", "expire", "retire", "quarantine", "unpin"), "31"),
    "found": "35",
}
_OF_ALL = "36"
_DIM = "2"
_LEAST = 60
"""Columns from which on what was done stands beside the time."""


def _show(found: Sequence[_Line]) -> None:
    """An entry is a line: when, what was done to what, by whom; and the reason below it."""
    width = view.columns(sys.stdout) or 80
    painted = view.painter(sys.stdout)
    times = [_ago(line.entry.time) for line in found]
    widths = [max(map(len, cells), default=0) for cells in (times, [line.entry.action for line in found])]
    for line, time in zip(found, times, strict=True):
        action = line.entry.action
        number = f"@{{{line.number}}}" if line.number is not None else ""
        before = f"{number:<{len(str(found[0].number)) + 4}} " if number else ""
        begin = f"{before}{time:<{widths[0]}}  {action:<{widths[1]}}  "
        beside = width >= _LEAST
        indent = len(begin) if beside else 2
        shown = list(_wrapped(_said(line), width - indent))
        colour = _COLOURS.get(action, _OF_ALL if line.name == _WHOLE else "33")
        begin = f"{painted(before, _DIM)}{time:<{widths[0]}}  {painted(action, colour)}{' ' * (widths[1] - len(action) + 2)}"
        if not beside:
            shown.insert(0, "")
        by = (line.entry.by or "").removesuffix(" (cfs-tag)")
        reason = printable(line.entry.reason or "")
        if not reason and by and len(shown[-1]) + len(by) + 5 + indent <= width:
            shown[-1] += painted(f"  by {by}", _DIM)
        elif reason or by:
            why = f"by {by}: {reason}" if reason and by else reason or f"by {by}"
            shown += [painted(text, _DIM) for text in _wrapped(why, width - indent)]
        output.emit("".join([f"{begin}{shown[0]}".rstrip() + "\n", *(f"{' ' * indent}{text}\n" for text in shown[1:])]))


def _wrapped(text: str, width: int) -> Iterator[str]:
    from textwrap import wrap

    yield from wrap(text, max(width, 10), break_long_words=False, break_on_hyphens=False)


def _ago(instant: str) -> str:
    age = output.age(instant)
    return age if age in ("", "now", "in future") else f"{age} ago"


def _said(line: _Line) -> str:
    """What was done, in words."""
    came_of_it = _came_of_it(line.entry)
    if came_of_it or line.name == _WHOLE:
        return printable(came_of_it)
    name, old, new = (view.short(printable(text or ""), sys.stdout) for text in (line.name, line.old, line.new))
    now = f" -> {new}" if new else ""
    was = f" (was {old})" if old and old != new else ""
    return f"{name}{now}{was}"
