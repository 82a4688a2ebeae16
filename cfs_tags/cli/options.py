"""Options that several commands have, and the reading of their values."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.errors import CommandLineError, InvalidArgument

__all__ = [
    "OWNERS",
    "DryRun",
    "Json",
    "JsonLines",
    "LockTimeout",
    "NameArgument",
    "Owners",
    "Reason",
    "amount",
    "duration",
    "excluding",
    "owners",
    "seconds",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
JsonLines = Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]
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
        help="A tag, @sha256:DIGITS, @deployment/ID, @trash/NAME or NAME@{N}.",
    ),
]

OWNERS = ("app", "bootc", "deployment", "foreign")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:\d{1,9}[smhdw])+", re.ASCII)
_LONGEST = 100 * 365 * 86400


def _timeout(text: str | float) -> float:
    """Seconds in a number of them, or in a duration."""
    try:
        return float(text)
    except ValueError:
        pass
    if _DURATION.fullmatch(str(text)) is None:
        reason = "is no time to wait: write a number of seconds, or 90s, 30m, 12h"
        raise InvalidArgument(argument="--lock-timeout", value=str(text), reason=reason)
    return float(_total(str(text)))


LockTimeout = Annotated[float, typer.Option(parser=_timeout, metavar="SECONDS", help="How long to wait for locks; or 5m, 1h.")]


def duration(text: str, option: str) -> int:
    """Seconds in a duration: ``7d``, ``12h``, ``30m``, ``90s``, ``2w``, or several of them (``1d12h``).

    Raises:
        InvalidArgument: it is none, no time at all, or more than a hundred years.
    """
    if _DURATION.fullmatch(text) is None:
        raise InvalidArgument(argument=option, value=text, reason="is no duration: write 7d, 12h, 30m or 90s")
    total = _total(text)
    if not 0 < total <= _LONGEST:
        raise InvalidArgument(argument=option, value=text, reason="must be between a second and a hundred years")
    return total


def _total(text: str) -> int:
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhdw])", text))


def amount(text: str, option: str, *, unit: int = 1) -> int:
    """Bytes in a size: ``500M``, ``2G``, or a number of ``unit`` bytes each.

    Raises:
        InvalidArgument: it is none, or nothing.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, last = (text[:-1], units.get(text[-1:].upper(), 0)) if text[-1:].isalpha() else (text, unit)
    if (
        re.fullmatch(r"\d{1,15}(\.\d{1,6})?", number, re.ASCII) is None
        or not 0 < (total := int(float(number) * last)) < 1 << 62
    ):
        plain = "1000000" if unit == 1 else "64"
        raise InvalidArgument(argument=option, value=text, reason=f"is no size: write 500M, 2G or {plain}")
    return total


def seconds(timeout: float) -> float:
    """A time-out that ends.

    Raises:
        InvalidArgument: negative, or not a number of seconds that anybody could wait.
    """
    if not 0 <= timeout <= _LONGEST:
        raise InvalidArgument(argument="--lock-timeout", value=f"{timeout:g}", reason="must be 0 seconds or more")
    return timeout


def owners(given: list[str] | None) -> tuple[str, ...]:
    """Owners that were named.

    Raises:
        InvalidArgument: there is no such owner.
    """
    for name in given or ():
        if name not in OWNERS:
            raise InvalidArgument(argument="--owner", value=name, reason=f"is none of {', '.join(OWNERS)}")
    return tuple(given or ())


def excluding(ctx: typer.Context, **given: object) -> None:
    """Refuse options that exclude each other; keywords are their names with ``_`` for ``-``.

    Raises:
        CommandLineError: more than one of them was given.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise CommandLineError(command=ctx.command_path, text=f"{' and '.join(names)} exclude each other")
