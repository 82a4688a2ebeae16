"""Sharing work among processes.

Threads would wait for each other: between two hashes of a block there is always a little Python.  So tasks are made
first, then the process forks, and only numbers of tasks and results go through pipes.  A forked worker does not hold the
repository lock, and cannot give it away (``repo/lock.py``).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from cfs_tags.errors import CfsTagsError, InternalError, SystemFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

__all__ = ["run"]

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Tasks that a worker is given before it has finished one: it never waits for us."""


def run(tasks: Sequence[T], work: Callable[[T], R], jobs: int) -> Iterator[tuple[int, R]]:
    """Do all the tasks; gives the number of each and its result, in the order in which they are done.

    Args:
        tasks: the most expensive ones first.
        work: what is done with each; its result can be pickled.
        jobs: processes at most; with one nothing is forked.

    Raises:
        CfsTagsError: what ``work`` raised.
        SystemFailure: a worker was killed.
    """
    if jobs < 2 or len(tasks) < 2:
        for number, task in enumerate(tasks):
            yield number, work(task)
        return
    yield from _forked(tasks, work, min(jobs, len(tasks)))


def _forked(tasks: Sequence[T], work: Callable[[T], R], jobs: int) -> Iterator[tuple[int, R]]:
    from multiprocessing import get_context
    from multiprocessing.connection import wait

    context = get_context("fork")
    ends: list[Connection] = []
    processes = {}
    numbers = iter(range(len(tasks)))
    left = len(tasks)
    try:
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            ends.append(ours)
            process = context.Process(target=_serve, args=(theirs, list(ends), tasks, work), daemon=True)
            process.start()
            theirs.close()
            processes[id(ours)] = process
            for _ in range(_AHEAD):
                _send(ours, next(numbers, None))
        while left:
            for ready in wait(ends):
                end: Any = ready
                try:
                    number, result, error = end.recv()
                except (EOFError, OSError):
                    process = processes[id(end)]
                    process.join()
                    reason = f"a process ended with status {process.exitcode}"
                    raise SystemFailure(operation="check", path="the repository", reason=reason, errno=0) from None
                if error is not None:
                    raise error
                left -= 1
                _send(end, next(numbers, None))
                yield number, result
    finally:
        for end in ends:
            end.close()
        for process in processes.values():
            if left:
                process.terminate()
            process.join()


def _send(end: Connection, number: int | None) -> None:
    if number is not None:
        with suppress(OSError):  # it is gone: receiving says so
            end.send(number)


def _serve(end: Connection, others: Sequence[Connection], tasks: Sequence[T], work: Callable[[T], R]) -> None:
    """The life of a worker: until the other side closes the pipe."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the one who waits for us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()  # else we would keep our own pipe open, and never see its end
    try:
        while True:
            number = end.recv()
            end.send((number, *_outcome(work, tasks[number])))
    except (EOFError, OSError):
        return


def _outcome(work: Callable[[T], R], task: T) -> tuple[R | None, Exception | None]:
    """Result and error, one of them None."""
    try:
        return work(task), None
    except (CfsTagsError, MemoryError) as error:
        return None, error
    except OSError as error:
        return None, SystemFailure.of(error, "check", error.filename or "the repository")
    except Exception as error:
        return None, InternalError(kind=type(error).__name__, text=str(error))
