"""Options that several commands have, and the reading of their values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cfs_tags import values
from cfs_tags.cli import complete
from cfs_tags.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime, timedelta

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
JsonLines = Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]
NoPager = Annotated[bool, typer.Option("--no-pager", help="Show long output without a pager.")]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for the log.")]
Owners = Annotated[
    list[str] | None,
    typer.Option(
        "--owner",
        metavar="OWNER",
        autocompletion=complete.one_of("bootc"),
        help="Change tags of that owner, too: bootc.",
        show_default=False,
    ),
]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=complete.names,
        show_default=False,
        help="A tag, @sha256:DIGITS, @deployment/ID, @booted, @staged, @rollback, @trash/NAME, NAME@{N} or NAME@{TIME}.",
    ),
]


def _timeout(text: str | float) -> float:
    """Seconds in a number of them, or in a duration.

    Raises:
        UsageError: it is neither, negative, or longer than a hundred years.
    """
    try:
        timeout = float(text)
    except ValueError:
        found = values.duration(str(text))
        if found is None:
            reason = "is no time to wait: write a number of seconds, or 90s, 30m, 12h"
            raise UsageError("invalid-argument", argument="--lock-timeout", value=str(text), reason=reason) from None
        timeout = float(found)
    if not 0 <= timeout <= values.LONGEST:
        reason = "must be 0 seconds or more"
        raise UsageError("invalid-argument", argument="--lock-timeout", value=f"{timeout:g}", reason=reason)
    return timeout


LockTimeout = Annotated[float, typer.Option(parser=_timeout, metavar="SECONDS", help="How long to wait for locks; or 5m, 1h.")]


class Change(NamedTuple):
    """What every command that changes something takes: a group of options, each of them an option of the command."""

    dry_run: DryRun = False
    reason: Reason = None
    lock_timeout: LockTimeout = 30.0
    as_json: Json = False


def duration(text: str, option: str) -> int:
    """Seconds in a duration: ``7d``, ``12h``, ``30m``, ``90s``, ``2w``, or several of them (``1d12h``).

    Raises:
        UsageError: not a duration, zero, or more than a hundred years.
    """
    total = values.duration(text)
    if total is None:
        raise UsageError("invalid-argument", argument=option, value=text, reason="is no duration: write 7d, 12h, 30m or 90s")
    if not 0 < total <= values.LONGEST:
        raise UsageError("invalid-argument", argument=option, value=text, reason="must be between a second and a hundred years")
    return total


def future(text: str, option: str) -> timedelta | datetime:
    """How long from now on (``90d``), or when: ``2027-01-31``, ``2027-01-31T12:00:00Z``; one without a zone is the machine's.

    Raises:
        UsageError: it is neither.
    """
    from datetime import datetime, timedelta

    if values.duration(text) is not None:
        return timedelta(seconds=duration(text, option))
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        reason = "is neither a duration nor a time: write 90d, 12h, 2027-01-31 or 2027-01-31T12:00:00Z"
        raise UsageError("invalid-argument", argument=option, value=text, reason=reason) from None


def instant(text: str, option: str) -> float:
    """Seconds from 1970 to a time as :func:`cfs_tags.values.seconds_of` reads it.

    Raises:
        UsageError: it is none.
    """
    found = values.seconds_of(text)
    if found is None:
        reason = "is no time: write 2026-01-31, 2026-01-31T12:00:00Z, yesterday, or 36h for 36 hours ago"
        raise UsageError("invalid-argument", argument=option, value=text, reason=reason)
    return found


def amount(text: str, option: str, *, unit: int = 1) -> int:
    """Bytes in a size: ``500M``, ``2G``, or a number of ``unit`` bytes each.

    Raises:
        UsageError: not a size, or zero.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, last = (text[:-1], units.get(text[-1:].upper(), 0)) if text[-1:].isalpha() else (text, unit)
    if (
        re.fullmatch(r"\d{1,15}(\.\d{1,6})?", number, re.ASCII) is None
        or not 0 < (total := int(float(number) * last)) < 1 << 62
    ):
        plain = "1000000" if unit == 1 else "64"
        raise UsageError("invalid-argument", argument=option, value=text, reason=f"is no size: write 500M, 2G or {plain}")
    return total


def owners(given: list[str] | None) -> tuple[str, ...]:
    """Owners that were named.

    Raises:
        UsageError: there is no such owner.
    """
    for name in given or ():
        if name not in values.OWNERS:
            raise UsageError(
                "invalid-argument", argument="--owner", value=name, reason=f"is none of {', '.join(values.OWNERS)}"
            )
    return tuple(given or ())


def excluding(ctx: typer.Context, **given: object) -> None:
    """Refuse options that exclude each other; keywords are their names with ``_`` for ``-``.

    Raises:
        UsageError: more than one of them was given.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise UsageError("command-line", command=ctx.command_path, text=f"{' and '.join(names)} exclude each other")
