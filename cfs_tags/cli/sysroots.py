"""What the commands about deployments share: finding the sysroot, and showing rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.hints import advice
from cfs_tags.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags import Repository
    from cfs_tags.host.rows import Deployment
    from cfs_tags.host.sightings import Finding
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.tags.pins import Pin, Record

PLACE_ADVICE = {
    "uki": "--esp DIR says where it is, --esp none that there is none",
    "boot-entry": "--boot DIR says where it is, --boot none that there is none",
    "staged-file": "--run DIR says where that is, --run none that the system does not run",
    "kernel": "--booted ID says which deployment is booted, --booted none that the system does not run",
    "mounts": "cfs-tag sees the mounts of the system that it runs on alone: run it there; where none counts, as in a "
    "system that does not run, --booted none --run none say so",
}


class Places(NamedTuple):
    """Where the parts of a host are: a group of options, each of them an option of the command."""

    boot: Annotated[
        str | None, typer.Option(metavar="DIR", help="The boot directory, 'none' if there is none.", show_default=False)
    ] = None
    esp: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where the EFI system partition is mounted, 'none' if there is none.", show_default=False
        ),
    ] = None
    run: Annotated[
        str | None, typer.Option(metavar="DIR", help="The system's /run, 'none' if it is not running.", show_default=False)
    ] = None
    booted: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            autocompletion=complete.deployments,
            help="The booted deployment of another system, by its id or prefix; 'none' if it is not running.",
            show_default=False,
        ),
    ] = None


def has_sysroot(ctx: typer.Context, repo: Repository, *, ignored: bool = False, **options: str | bool | None) -> bool:
    """Whether there is a sysroot with the repository; ``options`` are those that mean nothing without one.

    ``ignored`` is ``--no-sysroot``: then the sysroot is not used, even if there is one.

    Raises:
        UsageError: one of them is given, and there is no sysroot.
    """
    if not ignored and repo.deployments.are_seen:
        return True
    for name, value in options.items():
        if value:
            option = "--" + name.replace("_", "-")
            text = f"{option} is for a repository with a sysroot: name it with --sysroot"
            if ignored:
                text = f"{option} and --no-sysroot exclude each other"
            raise UsageError("command-line", command=ctx.command_path, text=text)
    return False


_WIDE = 110
"""Columns from which on a terminal shows deployments as a table."""


def show_rows(rows: Sequence[Deployment]) -> None:
    """Deployments for people: a table, or on a narrow terminal a few lines each; what is wrong with each by its codes."""
    if not rows and view.on_terminal():
        output.lines(["no deployments"])
        return
    codes = [", ".join(dict.fromkeys(finding.code for finding in row.health)) or "ok" for row in rows]
    if not view.on_terminal():
        plain = [
            (row.state, row.id, row.image, row.version, row.manifest, row.ref, health)
            for row, health in zip(rows, codes, strict=True)
        ]
        output.table(("STATE", "DEPLOYMENT", "IMAGE", "VERSION", "MANIFEST", "REF", "HEALTH"), plain)
        return
    states = [row.state for row in rows]
    ages = [output.age(row.created) for row in rows]
    if (view.columns(sys.stdout) or 0) >= _WIDE:
        cells = [
            (state, *_known(row), age, row.id, row.manifest, row.ref, health)
            for state, row, age, health in zip(states, rows, ages, codes, strict=True)
        ]
        output.table(("STATE", "IMAGE", "VERSION", "AGE", "DEPLOYMENT", "MANIFEST", "REF", "HEALTH"), cells)
        return
    for state, row, age, health in zip(states, rows, ages, codes, strict=True):
        first = "  ".join(filter(None, (*_known(row), age)))
        second = "  ".join(filter(None, (row.id, row.manifest, f"ref {row.ref}")))
        output.lines([f"{state:<{_STATE}}{printable(first)}"], _STATE, {state: state})
        output.lines([f"{'':<{_STATE}}{second}"], _STATE)
        output.lines([f"{'':<{_STATE}}{health}"], _STATE, {f"{'':<{_STATE}}{health}": "ok" if health == "ok" else "problem"})


_STATE = 10


def show_pins(rows: Sequence[Deployment]) -> None:
    """Below the rows: by which pins each is kept, and why."""
    for row in rows:
        for pin, record in row.pins:
            until = f", {output.ends(pin.expires)}" if pin.expires is not None else ""
            why = f": {printable(record.reason)}" if record.reason else ""
            output.lines([f"{row.id[:12]}: pinned as {printable(pin.name)}{until}{why}"])


def _known(row: Deployment) -> tuple[str, str | None]:
    """Image and version; where they are not known, what the boot entry says of them."""
    entry = next((entry for entry in row.entries if entry.title or entry.version), None)
    title = f" titled {entry.title}" if entry is not None and entry.title else ""
    return row.image or f"(unknown image{title})", row.version or (entry.version if entry is not None else None)


def row_facts(row: Deployment) -> dict[str, Any]:
    """A deployment as JSON shows it."""
    return {
        "id": row.id,
        "state": row.state,
        "image": row.image,
        "version": row.version,
        "created": row.created,
        "manifest": row.manifest,
        "ref": row.ref,
        "places": row.places,
        "bound": row.bound,
        "pins": [pin_facts(*pinned) for pinned in row.pins],
        "entries": [
            {
                "path": entry.path,
                "kind": entry.kind,
                "staged": entry.staged,
                "title": entry.title,
                "version": entry.version,
                "problem": entry.problem,
            }
            for entry in row.entries
        ],
        "health": [finding_facts(finding) for finding in row.health],
    }


def pin_facts(pin: Pin, record: Record) -> dict[str, Any]:
    """A pin as JSON shows it."""
    return {
        **output.named(pin.name),
        "deployment": pin.deployment,
        "manifest": pin.manifest,
        "expires": output.instant(pin.expires),
        "ended": pin.has_ended,
        "made": record.made,
        "reason": record.reason,
        "by": record.by,
    }


def finding_facts(finding: Finding) -> dict[str, str]:
    """A finding as JSON shows it."""
    return {"code": finding.code, "message": finding.message, "advice": advice(finding.advice)}


def place_facts(host: SysrootView) -> list[dict[str, str | None]]:
    """Places as JSON shows them."""
    return [{"place": place.name, "path": place.path or None, "not_read": place.reason} for place in host.places]


def ways_out(host: SysrootView) -> dict[str, str]:
    """What to say of places that could not be read, so that they keep nothing back."""
    names = dict.fromkeys(place.name for place in host.unread if place.name in PLACE_ADVICE)
    if "kernel" in names:  # what is said of the command line is said of the mounts
        names.pop("mounts", None)
    return {name: PLACE_ADVICE[name] for name in names}


def show_findings(host: SysrootView) -> None:
    """What was found wrong with the sysroot itself, and what could not be read, below a table."""
    ways = ways_out(host)
    for place in host.unread:
        where = f" ({printable(place.path)})" if place.path else ""
        output.lines([f"not read: {place.name}{where}: {printable(place.reason)}"])
        if place.name in ways:
            output.lines([f"  {ways[place.name]}"])
    for finding in host.findings:
        output.lines([f"{finding.code}: {printable(finding.message)}: {advice(finding.advice)}"])
