"""``cfs-tag hold``."""

from __future__ import annotations

import signal
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import output
from cfs_tags.cli.options import DryRun, LockTimeout, NameArgument, Reason, duration
from cfs_tags.errors import CfsTagsError, SystemFailure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfs_tags.api.holds import Hold

_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_SOON = 60.0
"""Seconds after which what could not be renewed is tried again, at the latest."""


def command(
    ctx: typer.Context,
    name: NameArgument,
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", show_default=False, help="What is run meanwhile; behind --.")
    ],
    length: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="How long the content stays if this program is killed.")
    ] = "1h",
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
) -> None:
    """Keep content while a command runs.

    A lease keeps the image as long as COMMAND runs, however long that is: it is renewed while it runs, and goes when it ends.
    Where this program is killed outright, the lease ends by itself.  The exit status is that of COMMAND, or 128 and the number
    of the signal that ended it.

    \b
    Examples:
      cfs-tag hold quay.io/org/app:1.2 -- cfs-tag export quay.io/org/app:1.2 oci-archive:/mnt/slow/app.tar
      cfs-tag hold @sha256:9e9675 --for 24h -- ./run-the-tests
    """
    from datetime import timedelta

    from cfs_tags.cli.session import note

    seconds = duration(length, "--for")
    with ctx.obj.open(write=True, dry_run=dry_run) as repo:
        held = repo.tags.hold(
            name,
            length=timedelta(seconds=seconds),
            **note(reason)._asdict(),
            timeout=timedelta(seconds=lock_timeout),
            dry_run=dry_run,
        )
        if dry_run:
            output.lines([f"would be held: {held.digest}, {output.ends(held.expires)}"])
            return
        with ExitStack() as stack:
            stack.callback(_release, held)
            status = _run(words, held, seconds / 3)
    raise typer.Exit(status if status >= 0 else 128 - status)


def _release(held: Hold) -> None:
    """A lease that cannot be taken away ends by itself; that the command was run, and how it ended, stays true."""
    try:
        held.release()
    except CfsTagsError as error:
        output.warn([error])


def _run(words: Sequence[str], held: Hold, period: float) -> int:
    """Run a command, and renew the lease meanwhile; what it ended with, as :mod:`subprocess` says it."""
    with _forwarded() as waiting, ExitStack() as stack:
        try:
            child = stack.enter_context(subprocess.Popen(words))
        except OSError as error:
            raise SystemFailure.of(error, "run", words[0]) from error
        waiting.start(child)
        wait = period
        while True:
            try:
                return child.wait(wait)
            except subprocess.TimeoutExpired:
                wait = period
                try:
                    held.renew()
                except CfsTagsError as error:
                    output.warn([error])
                    wait = min(period, _SOON)


class _Signals:
    """Signals that ask this program to end are the child's; those that came before there is one as well."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def start(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        for number in self._early:
            child.send_signal(number)

    def came(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:  # a terminal gives it to the child, too
            return
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)


@contextmanager
def _forwarded() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals.came) for number in (signal.SIGINT, *_FORWARDED)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
