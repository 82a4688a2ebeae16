"""What app image commands need of the machine: other programs, and a place for temporary files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from types import TracebackType
from typing import NamedTuple, Self

from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.repo import fsops

_PATIENCE = 5.0
"""Seconds that a program has to end once it was asked to."""


class Machine(NamedTuple):
    """Paths of programs, None where they are not installed, and the directory for temporary files."""

    temporary: str
    skopeo: str | None = None
    cfsctl: str | None = None

    def need_skopeo(self, purpose: str) -> str:
        """The path of skopeo.

        Raises:
            CfsTagsError (program-missing): it is not installed.
        """
        if self.skopeo is None:
            raise CfsTagsError("program-missing", program="skopeo", purpose=purpose)
        return self.skopeo

    def need_cfsctl(self, purpose: str) -> str:
        """The path of cfsctl.

        Raises:
            CfsTagsError (program-missing): it is not installed.
        """
        if self.cfsctl is None:
            raise CfsTagsError("program-missing", program="cfsctl", purpose=purpose)
        return self.cfsctl


def run(program: str, *words: str) -> bytes:
    """Run another program; returns what it wrote to standard output.  Where we are interrupted, it is ended first.

    Raises:
        CfsTagsError (program-failed): it ended with another status than 0.
        SystemFailure: it could not be run.
    """
    import subprocess

    interrupts = _Interrupts()
    try:
        # one that came while the child starts would leave it running, and no name for it
        with interrupts.held():
            child = subprocess.Popen(
                [program, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
    except OSError as error:
        raise SystemFailure.of(error, "run", program) from error
    with child:
        try:
            interrupts.deliver()
            output, errors = child.communicate()
        except BaseException:
            child.terminate()  # it has temporary files of its own
            with suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE)
            child.kill()
            raise
    if child.returncode != 0:
        raise CfsTagsError(
            "program-failed", program=os.path.basename(program), exit_status=child.returncode, said=_said(errors)
        )
    return output


class _Interrupts:
    """Signals that ask to end, kept back for a moment."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._came: list[int] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep signals back while the block runs.  Only the main thread gets any."""
        if current_thread() is not main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in self._NUMBERS}
        # what is ignored, ends the process or was set from C stays as it is
        ours = [number for number, handler in before.items() if callable(handler)]
        for number in ours:
            signal.signal(number, lambda number, frame: self._came.append(number))
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, before[number])

    def deliver(self) -> None:
        """Deliver the signals that were kept back."""
        while self._came:
            signal.raise_signal(self._came.pop())


def _said(errors: bytes) -> str:
    """Why a program has failed, by the end of what it wrote: of lines as Go programs log them what is in them, and of
    those that only inform nothing, where there are others; of Rust programs the error and its causes, and not where in
    their source it was."""
    import re

    text = errors.decode("utf-8", "backslashreplace").partition("Stack backtrace:")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() not in ("", "Caused by:")][-6:]
    logged = [re.fullmatch(r'time="[^"]*" level=(\w+) msg="((?:[^"\\]|\\.)*)".*', line) for line in lines]
    wrong = [match for match in logged if match is not None and match[1] in ("fatal", "error", "panic")]
    if wrong:
        return "; ".join(re.sub(r'\\(["\\])', r"\1", match[2]) for match in wrong)
    return "; ".join(lines)


class WorkDirectory:
    """A directory for temporary files, removed with all that is in it when it is closed.

    Attributes:
        path: of the directory.
        fd: descriptor of it.
    """

    def __init__(self, machine: Machine) -> None:
        self.fd = -1
        parent = machine.temporary
        self.path = os.path.join(parent, f"cfs-tag-{os.urandom(8).hex()}")
        self._name = os.path.basename(self.path)
        try:
            self._parent = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SystemFailure.of(error, "use", parent) from error
        try:
            fsops.make_directory(self._parent, self._name, mode=0o700)
            self.fd = os.open(self._name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
        except OSError as error:
            os.close(self._parent)
            raise SystemFailure.of(error, "use", self.path) from error

    def close(self) -> None:
        """Remove it.  Harmless when repeated."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            with suppress(OSError):
                _empty(fd)
        finally:
            os.close(fd)
        with suppress(OSError):
            fsops.remove_directory(self._parent, self._name)
        os.close(self._parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _empty(fd: int) -> None:
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if is_directory:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                _empty(below)
            finally:
                os.close(below)
            fsops.remove_directory(fd, name)
        else:
            fsops.remove(fd, name)
