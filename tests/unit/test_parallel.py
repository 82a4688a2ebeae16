"""Work that is split over processes: the same answer as in one, whatever happens to a child."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from threading import Event, Thread

import pytest

from cfs_tags import parallel

PARTS = [str(number) for number in range(100)]


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processors", lambda: 2)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert sorted(os.listdir("/proc/self/fd")) == before


def add(mine: list[str], other: list[str]) -> list[str]:
    return mine + other


def test_every_part_is_worked_on_once_and_in_several_processes() -> None:
    made = parallel.in_processes(lambda parts: [(part, os.getpid()) for part in parts], list.__add__, PARTS, 4, 2)

    assert sorted(part for part, _ in made) == sorted(PARTS)
    pids = {pid for _, pid in made}
    assert len(pids) == 4
    assert os.getpid() not in pids


def test_few_parts_are_worked_on_here() -> None:
    pids = parallel.in_processes(lambda parts: {os.getpid()}, set.union, PARTS[:10], 4, 64)

    assert pids == {os.getpid()}


def test_there_are_no_more_children_than_parts() -> None:
    assert parallel.in_processes(list, add, PARTS[:3], 8, 2) == PARTS[:3]


def test_nothing_is_forked_beside_threads() -> None:
    end = Event()
    thread = Thread(target=end.wait)
    thread.start()
    try:
        pids = parallel.in_processes(lambda parts: {os.getpid()}, set.union, PARTS, 4, 2)
    finally:
        end.set()
        thread.join()

    assert pids == {os.getpid()}


def test_nothing_is_forked_where_the_end_of_a_child_is_not_reported() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        pids = parallel.in_processes(lambda parts: {os.getpid()}, set.union, PARTS, 4, 2)
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert pids == {os.getpid()}


def test_the_work_of_a_killed_child_is_done_by_the_caller() -> None:
    here = os.getpid()

    def work(parts: Sequence[str]) -> list[str]:
        if os.getpid() != here and "1" in parts:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(parts)

    assert sorted(parallel.in_processes(work, add, PARTS, 4, 2)) == sorted(PARTS)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_work_for_which_there_is_no_process_is_done_by_the_caller(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    fork, made = os.fork, []

    def scarce() -> int:
        if len(made) == allowed:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        made.append(allowed)
        return fork()

    monkeypatch.setattr(os, "fork", scarce)

    assert sorted(parallel.in_processes(list, add, PARTS, 4, 2)) == sorted(PARTS)


def test_an_error_of_a_child_is_raised_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    def work(parts: Sequence[str]) -> list[str]:
        raise OSError(errno.EIO, "no such luck", parts[0])

    with pytest.raises(OSError, match="no such luck"):
        parallel.in_processes(work, add, PARTS, 4, 2)
    assert capfd.readouterr() == ("", "")


def test_more_than_a_pipe_holds_comes_back() -> None:
    made = parallel.in_processes(lambda parts: b"x" * 1_000_000 * len(parts), bytes.__add__, PARTS[:8], 4, 2)

    assert len(made) == 8_000_000


def test_an_interrupt_ends_the_children() -> None:
    here = os.getpid()

    def work(parts: Sequence[str]) -> list[str]:
        if "0" in parts:
            os.kill(here, signal.SIGINT)
        time.sleep(60)
        return list(parts)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        parallel.in_processes(work, add, PARTS, 4, 2)
    assert time.monotonic() - start < 30


def test_names_are_looked_at_where_they_are_in_a_child_and_here(tmp_path: Path) -> None:
    parents = [tmp_path / f"{number}" for number in range(4)]
    for number, parent in enumerate(parents):
        parent.mkdir()
        (parent / "file").write_bytes(b"x" * number)
        (parent / "link").symlink_to("file")

    def sizes(some: Sequence[Path]) -> list[tuple[str, int, int]]:
        found = []
        for parent in some:
            fd = os.open(parent, os.O_RDONLY)
            try:
                size_of = attrgetter("st_size")
                file, link, absent = parallel.look_at(fd, ["file", "link", "absent"], size_of)
                assert absent is None
                assert parallel.look_at(fd, ["file", "link"], size_of) == [file, link]
                found.append((parent.name, file, link))
            finally:
                os.close(fd)
        return found

    where = os.getcwd()
    wanted = [(f"{number}", number, len("file")) for number in range(4)]
    assert sizes(parents) == wanted
    assert sorted(parallel.in_processes(sizes, list.__add__, parents, 4, 2)) == wanted
    assert os.getcwd() == where
