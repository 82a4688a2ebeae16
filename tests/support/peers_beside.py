"""Other processes that hold a repository while a test works on it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.peers import Cfsctl

__all__ = ["can_lock", "collector_at_work", "hold_exclusive", "hold_shared", "lock_modes"]

_DEADLINE = 20.0


@contextmanager
def hold_shared(cfsctl: Cfsctl, repo: Path) -> Iterator[int]:
    """A real ``cfsctl transaction`` holds ``repo`` shared, as a pull or ``bootc upgrade`` does; gives its PID."""
    with _holder(cfsctl.command(repo, "transaction"), repo, "shared", cfsctl.environment) as pid:
        yield pid


@contextmanager
def hold_exclusive(repo: Path) -> Iterator[int]:
    """Another process holds ``repo`` exclusive, as a collector does; gives its PID."""
    program = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); time.sleep(600)"
    with _holder([sys.executable, "-S", "-c", program, str(repo)], repo, "exclusive", dict(os.environ)) as pid:
        yield pid


@contextmanager
def collector_at_work(repo: Path) -> Iterator[int]:
    """Another process holds ``repo`` exclusive again and again, as ``cfs-tag gc`` does; gives its PID."""
    program = """if True:
        import fcntl, os, sys, time
        fd = os.open(sys.argv[1], os.O_RDONLY)
        while True:
            fcntl.flock(fd, fcntl.LOCK_EX)
            time.sleep(0.3)
            fcntl.flock(fd, fcntl.LOCK_UN)
            time.sleep(0.005)
    """
    with _holder([sys.executable, "-S", "-c", program, str(repo)], repo, "exclusive", dict(os.environ)) as pid:
        yield pid


@contextmanager
def _holder(command: Sequence[str], repo: Path, mode: str, environment: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        deadline = time.monotonic() + _DEADLINE
        while mode not in lock_modes(repo, process.pid):
            if process.poll() is not None:
                assert process.stdout is not None
                raise AssertionError(f"{command[0]} ended with {process.returncode}: {process.stdout.read()!r}")
            assert time.monotonic() < deadline, f"{command[0]} has no {mode} lock after {_DEADLINE:g} s"
            time.sleep(0.005)
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def lock_modes(repo: Path, pid: int) -> set[str]:
    """How process ``pid`` holds the repository: ``shared``, ``exclusive``, both or nothing (from ``/proc/locks``)."""
    inode = repo.stat().st_ino
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and int(fields[4]) == pid and int(fields[5].rpartition(":")[2]) == inode:
            found.add("shared" if fields[3] == "READ" else "exclusive")
    return found


def can_lock(repo: Path, mode: str) -> bool:
    """Whether a newcomer gets the lock at once; it is given back at once."""
    fd = os.open(repo, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if mode == "shared" else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
