"""The pool of processes: work on a whole repository, which one processor alone would bound.

Threads would wait for each other: between two hashes of a block, or two looks at a file, there is always a little Python.
So tasks are made first, then the process forks, and only numbers of tasks and their results go through pipes.

* A worker does not outlive its parent, however that ends: the kernel kills it (``PR_SET_PDEATHSIG``).
* A worker does not hold the repository lock, and cannot give it away (``repo/lock.py``).
* Where the system gives no process, with one processor, or beside threads, the caller does the work itself.

``docs/decisions/0007-own-pool-of-processes.md`` says why the pools of the standard library are not used.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial, reduce
from io import FileIO
from struct import Struct
from threading import active_count
from typing import Any, NamedTuple, TypeVar

from cfs_tags.errors import CfsTagsError, SystemFailure

F = TypeVar("F")
R = TypeVar("R")
S = TypeVar("S")

_AHEAD = 2
"""Tasks that a worker is given before it has finished one: it never waits for the parent."""
_NUMBER = Struct("=I")
_LENGTH = Struct("=Q")
_PR_SET_PDEATHSIG = 1

_forked = False


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def run(tasks: Sequence[S], work: Callable[[S], R], jobs: int) -> Iterator[tuple[int, R]]:
    """Do all the tasks; gives the number of each and its result, in the order in which they are done.

    Args:
        tasks: the most expensive ones first.
        work: what is done with each; its result can be pickled.
        jobs: processes at most; with one nothing is forked.

    Raises:
        CfsTagsError: what ``work`` raised.
        SystemFailure: the system refused ``work`` something, or a worker was killed.
    """
    for number, outcome in _outcomes(tasks, work, jobs, _AHEAD):
        if isinstance(outcome, _Ended):
            reason = f"a process ended with status {outcome.status}"
            raise SystemFailure(operation="check", path="the repository", reason=reason, errno=0)
        yield number, outcome.value_or_error()


def in_processes(
    work: Callable[[Sequence[S]], R], join: Callable[[R, R], R], parts: Sequence[S], processes: int, least: int
) -> R:
    """Do some work in shares, each in a child.  What no child could do is done by the caller, and raises as it is.

    Args:
        work: takes some of the parts; what it returns can be pickled.
        join: puts two results together.
        parts: of the work, for example names of directories in ``objects/``.
        processes: into which it is split, where there is more than one processor.
        least: with fewer parts children are not worth it.
    """
    if len(parts) < least or processors() < 2 or not _can_fork():
        return work(parts)
    shares = [parts[start::processes] for start in range(min(processes, len(parts)))]
    done: dict[int, R] = {}
    for number, outcome in _outcomes(shares, work, len(shares), 1):
        if isinstance(outcome, _Done) and outcome.error is None:
            done[number] = outcome.value
    return reduce(join, (done[number] if number in done else work(share) for number, share in enumerate(shares)))


def look_at(directory: int, names: Sequence[str], facts: Callable[[os.stat_result], F]) -> list[F | None]:
    """What the system says of files, in the order of their names; None for one that is gone.

    Args:
        directory: a descriptor.
        names: of files in it.
        facts: takes what is asked for.
    """
    look = _look_in(directory)
    try:
        # a million of them: nothing of this is a loop of Python's
        return list(map(facts, map(look, names)))
    except FileNotFoundError:
        found: list[F | None] = []
        for name in names:
            try:
                found.append(facts(look(name)))
            except FileNotFoundError:
                found.append(None)
        return found


def _look_in(directory: int) -> Callable[[str], os.stat_result]:
    """What looks at the names in a directory, not through symbolic links; it raises as ``os.stat``.

    It is good until the next one is made.

    Args:
        directory: a descriptor.
    """
    if _forked:  # the current directory belongs to the worker alone, and a name in it is found a tenth faster
        os.fchdir(directory)
        return os.lstat
    return partial(os.stat, dir_fd=directory, follow_symlinks=False)


# -- outcomes ----------------------------------------------------------------------------------------------------------


class _Done(NamedTuple):
    """A task that was tried: what came of it, or the error that it ended with."""

    value: Any
    error: Exception | None

    def value_or_error(self) -> Any:
        match self.error:
            case None:
                return self.value
            case CfsTagsError() | MemoryError():
                raise self.error
            case OSError():
                raise SystemFailure.of(self.error, "check", self.error.filename or "the repository")
        raise CfsTagsError("internal", kind=type(self.error).__name__, text=str(self.error))


class _Ended(NamedTuple):
    """A task whose worker ended before it had answered; ``status`` is negative for a signal."""

    status: int


def _outcomes(tasks: Sequence[S], work: Callable[[S], R], jobs: int, ahead: int) -> Iterator[tuple[int, _Done | _Ended]]:
    """Each task with what came of it; a task that no worker was left for is done here."""
    import pickle  # before the fork: once for all of them

    numbers = iter(range(len(tasks)))
    workers = _start(tasks, work, min(jobs, len(tasks))) if jobs > 1 and len(tasks) > 1 and _can_fork() else []
    waiting = {worker.answers: worker for worker in workers}
    poll = select.poll()
    try:
        for worker in workers:
            poll.register(worker.answers, select.POLLIN)
        for worker in workers * ahead:  # each has a task before one has two
            worker.give(next(numbers, None))
        while any(worker.given for worker in waiting.values()):
            for fd, _ in poll.poll():
                worker = waiting[fd]
                answer = _receive(fd)
                if answer is None:
                    poll.unregister(fd)
                    del waiting[fd]
                    status = worker.status()
                    for number in worker.given:
                        yield number, _Ended(status)
                    continue
                number = worker.given.popleft()
                worker.give(next(numbers, None))
                yield number, _Done(*pickle.loads(answer))
    finally:
        for worker in workers:
            worker.end()
    for number in numbers:
        yield number, _Done(work(tasks[number]), None)


# -- workers -----------------------------------------------------------------------------------------------------------


class _Worker(NamedTuple):
    """A child: numbers of tasks go into ``orders``, answers come out of ``answers``, in the order of ``given``."""

    pid: int
    orders: FileIO
    answers: int
    given: deque[int]

    def give(self, number: int | None) -> None:
        if number is not None:
            self.given.append(number)
            with suppress(BrokenPipeError):  # it ended: its answers end, too
                self.orders.write(_NUMBER.pack(number))

    def status(self) -> int:
        """What it ended with, once its answers have ended."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def end(self) -> None:
        """End it, if it has not ended, and forget it."""
        self.orders.close()
        os.close(self.answers)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _can_fork() -> bool:
    """Whether a child would be whole, and its end heard of.

    A child of a process with threads may wait for a lock that a thread held which the child does not have.  Where the
    ends of children are ignored, nothing tells whether one ended well.
    """
    return active_count() == 1 and signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN


def _start(tasks: Sequence[S], work: Callable[[S], R], count: int) -> list[_Worker]:
    """As many workers as the system allows, at most ``count``."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl  # before the fork: once for all of them
    workers: list[_Worker] = []
    # an interrupt during a fork may be lost, or leave a child that is not in the list
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with suppress(OSError):  # no memory or no process is left: fewer are slower, and enough
            for _ in range(count):
                workers.append(_fork(partial(_serve, tasks, work), workers, prctl, mask))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return workers


def _fork(
    serve: Callable[[int, int], None],
    others: Sequence[_Worker],
    prctl: Callable[[int, int], int],
    mask: set[int | signal.Signals],
) -> _Worker:
    global _forked
    orders, give = os.pipe()
    answers, answer = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        for fd in (orders, give, answers, answer):
            os.close(fd)
        raise
    if pid:
        os.close(orders)
        os.close(answer)
        return _Worker(pid, FileIO(give, "w"), answers, deque())
    status = 1
    try:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was told
            os._exit(status)
        _forked = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent, which ends its workers
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for fd in (give, answers, *(end for other in others for end in (other.orders.fileno(), other.answers))):
            os.close(fd)
        serve(orders, answer)
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is unwound here


def _serve(tasks: Sequence[S], work: Callable[[S], R], orders: int, answers: int) -> None:
    """The life of a worker: until the parent closes its end of the orders."""
    import pickle

    with os.fdopen(answers, "wb") as pipe:
        while number := _read(orders, _NUMBER.size):
            try:
                outcome = _Done(work(tasks[_NUMBER.unpack(number)[0]]), None)
            except Exception as error:
                outcome = _Done(None, error)
            data = pickle.dumps(tuple(outcome))
            pipe.write(_LENGTH.pack(len(data)))
            pipe.write(data)
            pipe.flush()


def _receive(fd: int) -> bytes | None:
    """The next answer of a worker; None where it ended in place of one."""
    head = _read(fd, _LENGTH.size)
    return _read(fd, _LENGTH.unpack(head)[0]) if head else None


def _read(fd: int, size: int) -> bytes | None:
    """So many bytes; None where the pipe ends before them."""
    pieces = bytearray()
    while len(pieces) < size:
        piece = os.read(fd, min(size - len(pieces), 1 << 20))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)
