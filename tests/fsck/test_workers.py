"""Work that is shared among processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags.errors import InternalError, MissingObject, SystemFailure
from cfs_tags.fsck.workers import run
from cfs_tags.processes import processors
from cfs_tags.repo.store import Repository
from support.peers_beside import can_lock


@pytest.mark.parametrize("jobs", [1, 2, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_task_is_done_once(jobs: int, count: int) -> None:
    done = list(run(list(range(count)), lambda task: (task * task, os.getpid()), jobs))

    assert sorted((number, result[0]) for number, result in done) == [(number, number * number) for number in range(count)]
    if jobs > 1 and count > 1:
        assert os.getpid() not in {result[1] for _, result in done}


def _fail(kind: str) -> Callable[[int], int]:
    def work(task: int) -> int:
        if task == 3:
            if kind == "ours":
                raise MissingObject(object="00", needed_by="a test")
            if kind == "system":
                os.open("/nonexistent/file", os.O_RDONLY)
            raise ValueError("a mistake")
        return task

    return work


@pytest.mark.parametrize(("kind", "error"), [("ours", MissingObject), ("system", SystemFailure), ("mistake", InternalError)])
def test_what_goes_wrong_in_a_process_comes_out_here(kind: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        list(run(list(range(10)), _fail(kind), 2))
    assert_no_children()


def test_a_process_that_is_killed_is_an_error_and_no_hanging() -> None:
    def work(task: int) -> int:
        if task == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with pytest.raises(SystemFailure, match="-9"):
        list(run(list(range(20)), work, 2))
    assert_no_children()


def test_one_who_stops_waiting_leaves_no_process_behind() -> None:
    results = run(list(range(1000)), lambda task: time.sleep(0.01), 2)
    next(results)

    results.close()  # type: ignore[attr-defined]

    assert_no_children()


def test_the_lock_stays_while_others_work_and_goes_with_its_holder(new_repo: Callable[..., Path]) -> None:
    path = new_repo()
    with Repository.open(path) as repo, repo.locked("shared"):
        for _ in run(list(range(20)), lambda task: os.stat(".", dir_fd=repo.fd).st_ino, 3):
            assert not can_lock(path, "exclusive")
        assert not can_lock(path, "exclusive")
    assert can_lock(path, "exclusive")


def test_there_is_a_processor() -> None:
    assert processors() >= 1


def assert_no_children() -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
