"""Measuring whole processes: wall time and peak memory, ours and a peer's in turn.

Two programs are compared by pairs: ours, the peer, ours, the peer, and so on, so that what slows the machine down for a
while slows both.  The figure is the median of the ratios of the pairs.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["BenchError", "Comparison", "Launcher", "Run", "Watched", "compare", "drop_caches", "memory_of", "watched"]

_NOWHERE = "/dev/null"
_HEAD = 8


class BenchError(Exception):
    """A program that was to be measured failed, or did something else than it should."""


class Run(NamedTuple):
    """What one run took: seconds of wall time, peak resident bytes, seconds of processor time."""

    seconds: float
    peak: int
    user: float
    system: float


class Comparison(NamedTuple):
    """Runs of two programs; run N of one goes with run N of the other."""

    ours: tuple[Run, ...]
    peer: tuple[Run, ...]

    @property
    def ratios(self) -> list[float]:
        """Our time in units of the peer's, for each pair."""
        return [our.seconds / peer.seconds for our, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of :attr:`ratios`."""
        return median(self.ratios)


class Launcher:
    """Runs programs in a nearly empty environment.  A context manager.

    Args:
        environment: of every program.
        work: a directory for what programs write.
    """

    def __init__(self, environment: Mapping[str, str], work: Path) -> None:
        self.environment = dict(environment)
        self._errors = work / "stderr"
        self._output = work / "stdout"
        script = Path(__file__).with_name("launcher.py")
        self._process = subprocess.Popen([sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(self, *words: str | Path, stdin: Path | None = None, stdout: Path | None = None) -> Run:
        """Run one program; ``stdin`` and ``stdout`` are /dev/null unless given.

        Raises:
            BenchError: its exit status is not 0; says what it said.
        """
        return self.run_all([words], stdin=stdin, stdout=stdout)

    def run_all(
        self, commands: Sequence[Sequence[str | Path]], *, stdin: Path | None = None, stdout: Path | None = None
    ) -> Run:
        """Run programs one after the other and measure them together (the peak is that of the largest)."""
        words = [[os.fspath(word) for word in command] for command in commands]
        paths = (str(stdin or _NOWHERE), str(stdout or _NOWHERE), str(self._errors))
        *figures, status = self._ask((words, self.environment, *paths))
        if status:
            said = self._errors.read_text(errors="backslashreplace").strip()
            code = os.waitstatus_to_exitcode(status)
            raise BenchError(f"{shlex.join(words[0])}: exit status {code}: {said[-2000:]}")
        return Run(*figures)

    def output(self, *words: str | Path, stdin: Path | None = None) -> str:
        """What a program writes to standard output."""
        self.run(*words, stdin=stdin, stdout=self._output)
        return self._output.read_text(errors="surrogateescape")

    def _ask(self, request: tuple[Any, ...]) -> tuple[Any, ...]:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        data = marshal.dumps(request)
        asked.write(len(data).to_bytes(_HEAD, "little") + data)
        asked.flush()
        head = answers.read(_HEAD)
        if len(head) != _HEAD:
            raise BenchError(f"the launcher has ended: {self._process.wait()}")
        answer: tuple[Any, ...] = marshal.loads(answers.read(int.from_bytes(head, "little")))
        return answer


def compare(ours: Callable[[], Run], peer: Callable[[], Run], pairs: int, warm_up: int = 2) -> Comparison:
    """Measure two programs in turn.

    Args:
        ours: runs ours once; what it does before and after the run that it returns is not measured.
        peer: the same for the other.
        pairs: how many of each.
        warm_up: runs of each before that count for nothing.
    """
    for _ in range(warm_up):
        ours()
        peer()
    measured = [(ours(), peer()) for _ in range(pairs)]
    return Comparison(tuple(pair[0] for pair in measured), tuple(pair[1] for pair in measured))


def drop_caches() -> None:
    """Have the kernel forget all files and names that it has in memory.

    Raises:
        BenchError: we may not.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError as error:
        raise BenchError(f"--cold needs root: {error}") from error


# -- while something runs ----------------------------------------------------------------------------------------------


class Watched(NamedTuple):
    """What was seen of a program while it ran.

    Args:
        memory: bytes (PSS) that it and its children had together, at most.
        wait: seconds that another process waited for the shared lock of a repository, at most; 0 where none was watched.
    """

    memory: float
    wait: float


def watched(words: Sequence[str | Path], repo: Path | None = None) -> Watched:
    """Run a program and look at it every few milliseconds: what it takes meanwhile is not to be measured.

    Args:
        words: the command line.
        repo: a repository whose lock is taken shared again and again while the program runs.

    Raises:
        BenchError: its exit status is not 0.
    """
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    waits = [0.0]
    over = threading.Event()

    def wait() -> None:
        while repo is not None and not over.is_set():
            fd = os.open(repo, os.O_RDONLY | os.O_CLOEXEC)
            started = time.perf_counter()
            fcntl.flock(fd, fcntl.LOCK_SH)
            waits.append(time.perf_counter() - started)
            os.close(fd)
            time.sleep(0.002)

    waiter = threading.Thread(target=wait)
    waiter.start()
    most = 0
    try:
        while process.poll() is None:
            most = max(most, memory_of(process.pid))
            time.sleep(0.005)
    finally:
        over.set()
        waiter.join()
    if process.returncode:
        raise BenchError(f"{words[0]} ended with {process.returncode}")
    return Watched(float(most), max(waits))


def memory_of(pid: int) -> int:
    """Bytes of memory (PSS) of a process and its children: what they share counts once."""
    total = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[1]) << 10  # type: ignore[index]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, TypeError):
        return total
    return total + sum(memory_of(int(child)) for child in children)
