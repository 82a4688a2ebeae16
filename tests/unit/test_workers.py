"""Work that is shared among processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, MissingObject, SystemFailure
from cfs_tags.parallel import processors, run
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


@pytest.mark.parametrize(("kind", "code"), [("ours", "missing-object"), ("system", "system-failure"), ("mistake", "internal")])
def test_what_goes_wrong_in_a_process_comes_out_here(kind: str, code: str) -> None:
    with pytest.raises(CfsTagsError) as raised:
        list(run(list(range(10)), _fail(kind), 2))
    assert raised.value.code == code
    assert_no_children()


def test_a_process_that_is_killed_is_an_error_and_no_hanging() -> None:
    def work(task: int) -> int:
        if task == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with pytest.raises(SystemFailure, match="-9"):
        list(run(list(range(20)), work, 2))
    assert_no_children()


def test_a_caller_that_stops_waiting_leaves_no_process() -> None:
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


_PARENT = """
import os, sys
from cfs_tags.parallel import in_processes, run

def busy(task):
    # a call into C that is not interrupted for a long time, as a hash of many bytes or a list of many names is
    os.write(1, b"%d\\n" % os.getpid())
    sum(range(10**12))

if sys.argv[1] == "run":
    list(run(list(range(4)), busy, 3))
else:
    in_processes(busy, lambda one, other: None, list(range(4)), 3, 2)
"""


@pytest.mark.parametrize("how", ["run", "in_processes"])
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(how: str, ended_by: signal.Signals) -> None:
    command = [sys.executable, "-c", _PARENT, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        try:
            assert parent.stdout is not None
            workers = [int(parent.stdout.readline()) for _ in range(3)]
            assert parent.pid not in workers
            parent.send_signal(ended_by)
            parent.wait(30)
        finally:
            parent.kill()

    end = time.monotonic() + 10
    while any(_is_running(worker) for worker in workers) and time.monotonic() < end:
        time.sleep(0.01)
    assert [worker for worker in workers if _is_running(worker)] == []


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_a_result_that_cannot_be_sent_is_an_error_and_no_hanging() -> None:
    with pytest.raises(SystemFailure, match="status 1"):
        list(run([1, 2, 3], lambda task: lambda: task, 2))
    assert_no_children()
