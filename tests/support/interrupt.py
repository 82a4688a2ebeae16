"""Stopping the program at every single change it makes to the disk.

``cfs_tags.repo.fsops`` has the only functions that change the disk; each call of one is a point where a crash, a full
disk or an I/O error can come.  These helpers make it come there:

    for attempt in every_stop(lambda n: new_repo(tmp_path / f"{n}"), lambda repo: create(repo, "app", digest)):
        check(attempt.subject)              # whatever was done until call attempt.number, and nothing after it

A stop (:class:`Stopped`) is no :class:`Exception`, and once it came no later call does anything either: clean-up code
cannot repair what a real crash would have left.  A kill is a stop in a forked child, where not even ``finally`` runs.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar
from unittest.mock import patch

from cfs_tags.repo import fsops
from cfs_tags.repo.layout import STATE

__all__ = [
    "EVERY_STOP",
    "Attempt",
    "Calls",
    "Interruption",
    "Stopped",
    "Watch",
    "count_calls",
    "every_stop",
    "fail_after",
    "failed_after",
    "kill_after",
    "stop_after",
    "stopped_after",
    "torn_after",
    "torn_kill_after",
    "watched_operations",
]

EVERY_STOP = os.environ.get("CFS_TAGS_EVERY_STOP") == "1"
"""Whether samples are not enough: the long form."""

_TORN = {"append": 2, "create_file": 2, "write": 1}
"""Functions that a crash can leave half done, and which argument has their bytes."""


class Stopped(BaseException):
    """The program was stopped here."""


class Calls:
    """The calls that were let through: ``made`` has name and arguments of each, in order."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...]]] = []
        self.interrupted = False
        self.failed: list[tuple[str, str]] = []
        """Function and path of each call that was interrupted."""

    @property
    def names(self) -> list[str]:
        """The functions that were called."""
        return [name for name, _ in self.made]

    @property
    def count(self) -> int:
        """How many calls."""
        return len(self.made)


class Watch(NamedTuple):
    """What to do at a call: ``act`` before it, or ``after`` it; ``torn``: after half of the bytes that it writes."""

    act: Callable[[], object]
    after: bool = False
    torn: bool = False


@contextmanager
def watched_operations(called: Callable[[int, str], Watch | None]) -> Iterator[None]:
    """Context in which ``called`` is told number (from 0) and name of every call that changes the disk."""
    numbers = count()

    def watch(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **keywords: Any) -> Any:
            wanted = called(next(numbers), name)
            if wanted is None:
                return original(*args, **keywords)
            if wanted.torn:
                _write_half(name, original, args, keywords)
            if not wanted.after:
                wanted.act()
            result = original(*args, **keywords)
            if wanted.after:
                wanted.act()
            return result

        return watched

    with ExitStack() as stack:
        for name in fsops.MUTATING:
            stack.enter_context(patch.object(fsops, name, watch(name, getattr(fsops, name))))
        yield


def _write_half(name: str, original: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    place = _TORN[name]
    original(*args[:place], args[place][: len(args[place]) // 2], *args[place + 1 :], **keywords)


@contextmanager
def _watched(
    limit: int | None, interrupt: Callable[[], NoReturn], *, once: bool = False, torn: bool = False
) -> Iterator[Calls]:
    """Count the calls and ``interrupt`` those after the first ``limit``: all of them, or the first of them ``once``."""
    calls = Calls()

    def watch(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **keywords: Any) -> Any:
            if limit is not None and calls.count >= limit and not (once and calls.interrupted):
                first = not calls.interrupted
                calls.interrupted = True
                calls.failed.append((name, str(args[1]) if len(args) > 1 else ""))
                if torn and first and name in _TORN:
                    _write_half(name, original, args, keywords)
                interrupt()
            calls.made.append((name, args))
            return original(*args, **keywords)

        return watched

    with ExitStack() as stack:
        for name in fsops.MUTATING:
            stack.enter_context(patch.object(fsops, name, watch(name, getattr(fsops, name))))
        yield calls


def count_calls() -> AbstractContextManager[Calls]:
    """Context that interrupts nothing and gives the :class:`Calls`: their number, their order."""
    return _watched(None, _stop)


def stop_after(n: int, *, torn: bool = False) -> AbstractContextManager[Calls]:
    """Context in which ``n`` changes happen and every further one raises :class:`Stopped` before it does anything.

    ``torn``: where the first of them writes bytes, half of them are written.
    """
    return _watched(n, _stop, torn=torn)


def fail_after(n: int, number: int = errno.ENOSPC, *, once: bool = False) -> AbstractContextManager[Calls]:
    """Context in which ``n`` changes happen and every further one, or just the next, raises :class:`OSError`."""

    def fail() -> NoReturn:
        raise OSError(number, os.strerror(number))

    return _watched(n, fail, once=once)


def _stop() -> NoReturn:
    raise Stopped


# -- the same as calls -------------------------------------------------------------------------------------------------

Interruption = Callable[[int, Callable[[], object]], bool]
"""Runs a function, interrupts it after so many changes, and says whether it came to that."""


def stopped_after(n: int, function: Callable[[], object], *, torn: bool = False) -> bool:
    """Run under :func:`stop_after`; whether it was stopped.  Errors of the function's own come out."""
    with stop_after(n, torn=torn) as calls:
        try:
            function()
        except Stopped:
            assert calls.interrupted
    return calls.interrupted


def torn_after(n: int, function: Callable[[], object]) -> bool:
    """The same, and what was being written is half written."""
    return stopped_after(n, function, torn=True)


def failed_after(number: int, *, once: bool = False) -> Interruption:
    """Makes an interruption by a failing system: :class:`OSError` ``number`` for ever, or once.

    An error must come out of the function when the system fails it for ever; after a single failure it may recover.  The
    date of the last change (``repo/clock.py``) alone may fail unseen: where it stays, nothing goes early.
    """

    def failed(n: int, function: Callable[[], object]) -> bool:
        with fail_after(n, number, once=once) as calls:
            try:
                function()
            except Exception:
                if not calls.interrupted:
                    raise
            else:
                unseen = once or set(calls.failed) <= {("date", f"{STATE}/clock")}
                assert unseen or not calls.interrupted, f"reported success though change {n + 1} failed"
        return calls.interrupted

    return failed


def kill_after(n: int, function: Callable[[], object], *, torn: bool = False) -> bool:
    """Run ``function`` in a forked child that is gone at change ``n + 1``; whether it came to that.

    Raises:
        AssertionError: the function failed in the child; the message has its traceback.
    """
    done, killed, failed = 0, 81, 82
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = failed
        try:
            with _watched(n, lambda: os._exit(killed), torn=torn):
                function()
            status = done
        except BaseException:
            os.write(writing, traceback.format_exc()[-60_000:].encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (done, killed), f"the child ended with {status} after {n} changes\n{said}"
    return status == killed


def torn_kill_after(n: int, function: Callable[[], object]) -> bool:
    """The same, and what was being written is half written."""
    return kill_after(n, function, torn=True)


Subject = TypeVar("Subject")


class Attempt(NamedTuple, Generic[Subject]):
    """One run that ended after ``number`` changes (``interrupted``), or came to its end."""

    number: int
    subject: Subject
    interrupted: bool


def every_stop(
    prepare: Callable[[int], Subject],
    act: Callable[[Subject], object],
    how: Interruption = stopped_after,
    limit: int = 500,
    *,
    sample: int = 1,
) -> Iterator[Attempt[Subject]]:
    """Run ``act`` once for each point where it can be interrupted, and at last to its end.

    Args:
        prepare: makes what is acted on, afresh for attempt 0, 1, 2, …; never interrupted.
        act: what is interrupted.
        how: :func:`stopped_after`, :func:`torn_after`, :func:`kill_after`, :func:`torn_kill_after` or a result of
            :func:`failed_after`.
        limit: more changes than that are a mistake in the test.
        sample: interrupt at one point of so many only, unless ``CFS_TAGS_EVERY_STOP`` is set (``make soak`` does).

    Yields:
        each attempt after it ended; the last one is the only one that was not interrupted.
    """
    for number in range(0, limit, 1 if EVERY_STOP else sample):
        subject = prepare(number)
        interrupted = how(number, lambda subject=subject: act(subject))  # type: ignore[misc]
        yield Attempt(number, subject, interrupted)
        if not interrupted:
            return
    raise AssertionError(f"not done after {limit} changes")
