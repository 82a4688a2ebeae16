"""Work on a whole repository in several processes: looking at a million names is bound by one processor.

For short work on parts that are alike.  ``fsck/workers.py`` is for long tasks that differ.
"""

from __future__ import annotations

import os
import pickle
import signal
from contextlib import suppress
from functools import partial, reduce
from threading import active_count
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["in_processes", "look_in", "processors"]

R = TypeVar("R")
S = TypeVar("S")

_forked = False


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(
    work: Callable[[Sequence[S]], R], join: Callable[[R, R], R], parts: Sequence[S], processes: int, least: int
) -> R:
    """Do some work in shares, each in a child.

    Args:
        work: takes some of the parts; what it returns is pickled.
        join: puts two results together.
        parts: of the work, for example names of directories in ``objects/``.
        processes: into which it is split, where there is more than one processor.
        least: with fewer parts children are not worth it.
    """
    # a child of a process with threads may wait for what a thread that it does not have was about to give back; and where
    # ended children are nobody's business, nothing tells whether one ended well
    alone = processors() < 2 or active_count() > 1 or signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    if len(parts) < least or alone:
        return work(parts)
    shares = [parts[start::processes] for start in range(min(processes, len(parts)))]
    children: list[_Child] = []
    results = []
    try:
        # an interrupt during a fork may be lost, or leave a child that nobody knows
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with suppress(OSError):  # no memory or no process to be had: fewer are slower, and enough
                for share in shares:
                    children.append(_fork(partial(work, share), [child.read for child in children], mask))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for share in shares:
            data = None
            if children:
                data = children[0].result()
                children.pop(0).end()
            # what no child could do is done here, and says what is wrong
            results.append(work(share) if data is None else pickle.loads(data))
    finally:
        for child in children:
            child.end()
    return reduce(join, results)


def look_in(directory: int) -> Callable[[str], os.stat_result]:
    """What looks at the names in a directory, not through symbolic links; it raises as ``os.stat``.

    It is good until the next one is made.

    Args:
        directory: a descriptor.
    """
    if _forked:  # then the current directory is ours alone, and a name in it is found a tenth faster
        os.fchdir(directory)
        return os.lstat
    return partial(os.stat, dir_fd=directory, follow_symlinks=False)


class _Child(NamedTuple):
    pid: int
    read: int

    def result(self) -> bytes | None:
        """What it wrote, to its end; None where it failed."""
        with os.fdopen(self.read, "rb", closefd=False) as pipe:
            data = pipe.read()
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return data if ended is not None and ended.si_status == 0 else None

    def end(self) -> None:
        """End it, if it has not ended, and forget it."""
        os.close(self.read)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _fork(work: Callable[[], R], others: Sequence[int], mask: set[int | signal.Signals]) -> _Child:
    global _forked
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if pid:
        os.close(write)
        return _Child(pid, read)
    status = 1
    try:
        _forked = True
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for fd in (read, *others):
            os.close(fd)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(work(), pipe)
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is unwound here
