"""``cfs-tag fleet``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete, output, registries
from cfs_tags.cli.options import Json, LockTimeout, duration
from cfs_tags.errors import UsageError, installed, printable

if TYPE_CHECKING:
    from cfs_tags.fleet.view import Fleet, Row
    from cfs_tags.fleet.what_if import Answer

_ACTIONS = {"what-if": "DIGEST", "report": "FILE.html"}


def command(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[what-if|report] REGISTRY/REPO [DIGEST|FILE.html]",
            autocompletion=complete.one_of(*_ACTIONS),
            show_default=False,
            help="Where the hosts publish; what-if takes the image, by tag or digest, and report the page that is written.",
        ),
    ],
    wanted: Annotated[
        str | None, typer.Option(metavar="TAG", show_default=False, help="What all hosts are to have booted, by tag or digest.")
    ] = None,
    unseen: Annotated[
        str, typer.Option(metavar="DURATION", help="A host that said nothing for that long is not seen any more.")
    ] = "7d",
    problems: Annotated[bool, typer.Option("--problems", help="Only hosts with which something is wrong.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Ask the registry about every host.")] = False,
    *,
    reach: registries.Reach,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Show which host runs what, as hosts have published it.

    Hosts that have not changed are taken from a cache and cost no request.  what-if says who uses an image, who loses its
    rollback if that goes, and what each host would fetch to have it.  report writes a page of versions over hosts and time,
    which needs no network.  What hosts say is their word: what does not fit together is shown as a problem.

    \b
    Examples:
      cfs-tag fleet registry.example/os --wanted stable
      cfs-tag fleet what-if registry.example/os sha256:0123…
      cfs-tag fleet report registry.example/os fleet.html
    """
    from cfs_tags.api.fleet import Fleets

    action, place, what = _parsed(ctx, words)
    fleets = Fleets(
        place,
        registries.access(reach),
        cache=None if no_cache else registries.cache_directory(),
        timeout=timedelta(seconds=lock_timeout),
    )
    with fleets:
        fleet = fleets.read(wanted=wanted, unseen=timedelta(seconds=duration(unseen, "--unseen")))
        if action == "what-if":
            _show_answer(fleet, fleets.what_if(fleet, what), as_json)
            return
    if action == "report":
        _report(fleet, what, as_json)
        return
    shown = [row for row in fleet.rows if row.problems or not problems]
    if as_json:
        _list(fleet, shown)
        return
    _show(fleet, shown)


def _parsed(ctx: typer.Context, words: list[str]) -> tuple[str | None, str, str]:
    """Action, place, and what the action takes."""
    action = words[0] if words[0] in _ACTIONS else None
    rest = words[1:] if action is not None else words
    wanted = 1 if action is None else 2
    if len(rest) != wanted:
        more = f" {_ACTIONS[action]}" if action is not None else ""
        text = f"takes {f'{action} ' if action else ''}REGISTRY/REPO{more}"
        raise UsageError("command-line", command=ctx.command_path, text=text)
    return action, rest[0], rest[1] if wanted == 2 else ""


# -- text --------------------------------------------------------------------------------------------------------------


def _show(fleet: Fleet, rows: list[Row]) -> None:
    cells = []
    for row in rows:
        booted = row.host.use("booted") if row.host is not None else None
        cells.append(
            (
                row.name,
                row.state or None,
                booted.version if booted is not None else None,
                booted.manifest if booted is not None else None,
                _version(row, "staged"),
                _version(row, "rollback"),
                output.instant(row.time),
                ", ".join(row.problems) or "ok",
            )
        )
    output.table(("HOST", "STATE", "BOOTED", "MANIFEST", "STAGED", "ROLLBACK", "SEEN", "PROBLEMS"), cells)
    wrong = sum(bool(row.problems) for row in fleet.rows)
    lines = [f"{output.count(len(fleet.rows), 'host')}, {wrong or 'none'} with problems"]
    for version, digest, count in fleet.counted():
        lines.append(f"{output.count(count, 'host')} booted {printable(version or '(no version)')} {digest}")
    if fleet.wanted:
        states = [row.state for row in fleet.rows]
        lines.append(f"{states.count('wanted')} run what is wanted, {states.count('staged')} have it staged")
    output.lines(lines)


def _version(row: Row, slot: str) -> str | None:
    use = row.host.use(slot) if row.host is not None else None
    return (use.version or use.manifest) if use is not None else None


def _show_answer(fleet: Fleet, answer: Answer, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "host": row.name,
                "manifest": row.manifest,
                "slots": row.slots,
                "loses_rollback": row.loses_rollback,
                "bytes": row.bytes,
                "layers": {"all": row.layers[0], "there": row.layers[1]},
            }
            for row in answer.rows
        ]
        facts = {"place": str(fleet.place), "digest": answer.digest, "hosts": rows}
        output.document("fleet", {"what_if": facts})
        return
    output.table(
        ("HOST", "USES IT AS", "WOULD FETCH", "LAYERS THERE"),
        [
            (row.name, ", ".join(row.slots), output.compact(row.bytes), f"{row.layers[1]} of {row.layers[0]}")
            for row in answer.rows
        ],
    )
    losing = sum(row.loses_rollback for row in answer.rows)
    using = sum(bool(row.slots) for row in answer.rows)
    total = sum(row.bytes for row in answer.rows)
    output.lines(
        [
            f"{answer.digest}: {output.count(using, 'host')} use it; if it goes, {losing or 'none'} would lose the way back",
            f"for all to have it, {output.size(total)} would be fetched",
        ]
    )


# -- files and JSON ----------------------------------------------------------------------------------------------------


def _report(fleet: Fleet, file: str, as_json: bool) -> None:
    from cfs_tags.cli.files import write_page

    with installed("plotly", extra="report", command="fleet report"):
        from cfs_tags.fleet.page import page
    write_page("fleet", page(fleet), file, as_json)


def _list(fleet: Fleet, rows: list[Row]) -> None:
    from cfs_tags.fleet import hosts

    before = {
        "place": str(fleet.place),
        "time": output.instant(fleet.time),
        "wanted": list(fleet.wanted),
        "fetched": fleet.fetched,
    }
    shown = (
        {
            "name": row.name,
            "state": row.state or None,
            "seen": output.instant(row.time),
            "artifact": row.digest,
            "problems": list(row.problems),
            "document": hosts.to_json(row.host) if row.host is not None else None,
        }
        for row in rows
    )
    versions = [{"version": version or None, "manifest": digest, "hosts": count} for version, digest, count in fleet.counted()]
    output.document_around("fleet", before, "hosts", shown, {"versions": versions})
