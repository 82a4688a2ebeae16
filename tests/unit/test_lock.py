"""The two locks: shared is counted, conflicts raise, other processes are waited for with a deadline and named."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.errors import LockConflict, LockTimeout
from cfs_tags.repo.lock import Lock
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, names, rows
from support import tagging
from support.peers import Cfsctl
from support.peers_beside import can_lock, collector_at_work, hold_exclusive, hold_shared
from support.stock import digest_of, leftovers


def in_child(function: Callable[[], object]) -> str:
    """What ``function`` gives, as text, in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(function()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def opened() -> Iterator[str]:
    """What the descriptors of this process lead to."""
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it is closed, or its path is too long
            yield os.readlink(path)


# -- within one process ------------------------------------------------------------------------------------------------


def test_shared_holders_of_one_process_are_counted_and_the_last_one_lets_go(repo_of_two: tuple[Path, Path]) -> None:
    path, _ = repo_of_two
    with Repository.open(path) as first, Repository.open(path) as second:
        with first.locked():
            with second.locked():
                assert not can_lock(path, "exclusive")
            assert not can_lock(path, "exclusive")
            assert can_lock(path, "shared")
        assert can_lock(path, "exclusive")


@pytest.fixture
def repo_of_two(new_repo, tmp_path: Path) -> tuple[Path, Path]:  # type: ignore[no-untyped-def]
    return new_repo(tmp_path / "a"), new_repo(tmp_path / "b")


def test_two_repositories_have_two_locks(repo_of_two: tuple[Path, Path]) -> None:
    with (
        Repository.open(repo_of_two[0]) as first,
        Repository.open(repo_of_two[1]) as second,
        first.locked("exclusive"),
        second.locked("exclusive"),
    ):
        assert not can_lock(repo_of_two[0], "shared")
        assert not can_lock(repo_of_two[1], "shared")


@pytest.mark.parametrize(("held", "wanted"), [("shared", "exclusive"), ("exclusive", "shared"), ("exclusive", "exclusive")])
def test_what_this_process_could_never_be_granted_raises_at_once(repo: Path, held: str, wanted: str) -> None:
    with Repository.open(repo) as first, Repository.open(repo) as second, first.locked(held):  # type: ignore[arg-type]
        began = time.monotonic()
        with pytest.raises(LockConflict) as caught, second.locked(wanted, timeout=30):  # type: ignore[arg-type]
            pytest.fail("locked twice")
        assert time.monotonic() - began < 1
    error = caught.value
    assert (error.code, error.status, error.held, error.wanted) == ("lock-conflict", 1, held, wanted)
    assert error.path == str(repo)


def test_a_conflict_in_another_thread_raises_at_once_too(repo: Path) -> None:
    found: list[BaseException] = []

    def ask() -> None:
        try:
            with Repository.open(repo) as mine, mine.locked("exclusive", timeout=30):
                pass
        except BaseException as error:
            found.append(error)

    with Repository.open(repo) as held, held.locked("shared"):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(5)
    assert [type(error) for error in found] == [LockConflict]


def test_a_lock_is_never_converted(repo: Path) -> None:
    with Repository.open(repo) as mine, mine.locked("shared"):
        with pytest.raises(LockConflict), mine.locked("exclusive"):
            pass
        assert not can_lock(repo, "exclusive"), "the failed attempt lost the shared lock"


def test_after_a_conflict_the_lock_is_as_it_was(repo: Path) -> None:
    with Repository.open(repo) as mine:
        with mine.locked("exclusive"), pytest.raises(LockConflict), mine.locked("shared"):
            pass
        assert can_lock(repo, "exclusive")
        with mine.locked("shared"):
            assert not can_lock(repo, "exclusive")


def test_an_error_in_the_block_gives_the_lock_back(repo: Path) -> None:
    with Repository.open(repo) as mine:
        with pytest.raises(ZeroDivisionError), mine.locked("exclusive"):
            raise ZeroDivisionError
        assert can_lock(repo, "exclusive")


def test_closing_another_descriptor_of_the_repository_keeps_the_lock(repo: Path) -> None:
    with Repository.open(repo) as mine, mine.locked("exclusive"):
        os.close(os.open(repo, os.O_RDONLY))
        Repository.open(repo).close()
        assert not can_lock(repo, "shared")


def test_opening_and_reading_take_no_lock(stocked: Path) -> None:
    with hold_exclusive(stocked), Repository.open(stocked) as mine:
        assert len(rows.list_tags(mine)) == 4
        assert names.resolve(mine, "held/one") == digest_of(stocked, "one")
    with Repository.open(stocked, write=True):
        assert can_lock(stocked, "exclusive")


# -- other processes ---------------------------------------------------------------------------------------------------


def test_a_time_out_names_a_cfsctl_that_holds_it_shared(repo: Path, cfsctl: Cfsctl) -> None:
    with hold_shared(cfsctl, repo) as pid, Repository.open(repo) as mine:
        began = time.monotonic()
        with pytest.raises(LockTimeout) as caught, mine.locked("exclusive", timeout=0.2):
            pass
        assert 0.2 <= time.monotonic() - began < 5
    error = caught.value
    assert (error.code, error.status, error.mode, error.seconds) == ("lock-timeout", 5, "exclusive", 0.2)
    assert error.path == str(repo)
    assert [(holder["pid"], holder["mode"]) for holder in error.holders] == [(pid, "shared")]
    assert error.holders[0]["command"] == f"{cfsctl.program} --repo {repo} transaction"[:120]
    assert f"PID {pid}, shared" in str(error)


@pytest.mark.parametrize("wanted", ["shared", "exclusive"])
def test_a_time_out_names_a_collector_that_holds_it_exclusive(repo: Path, wanted: str) -> None:
    with (
        hold_exclusive(repo) as pid,
        Repository.open(repo) as mine,
        pytest.raises(LockTimeout) as caught,
        mine.locked(wanted, timeout=0.05),
    ):  # type: ignore[arg-type]
        pass
    assert [(holder["pid"], holder["mode"]) for holder in caught.value.holders] == [(pid, "exclusive")]


def test_all_holders_are_named(repo: Path, cfsctl: Cfsctl) -> None:
    with (
        hold_shared(cfsctl, repo) as one,
        hold_shared(cfsctl, repo) as two,
        Repository.open(repo) as mine,
        pytest.raises(LockTimeout) as caught,
        mine.locked("exclusive", timeout=0),
    ):
        pass
    assert {holder["pid"] for holder in caught.value.holders} == {one, two}


def test_the_lock_is_taken_when_its_holder_ends_in_time(repo: Path, cfsctl: Cfsctl) -> None:
    holder = hold_shared(cfsctl, repo)
    pid = holder.__enter__()
    timer = threading.Timer(0.2, lambda: os.kill(pid, 9))
    timer.start()
    try:
        with Repository.open(repo) as mine, mine.locked("exclusive", timeout=20):
            assert not can_lock(repo, "shared")
    finally:
        timer.join()
        holder.__exit__(None, None, None)


def test_a_waiter_gets_in_between_the_slices_of_a_collector(repo: Path) -> None:
    """Which holds the lock for a third of a second, and lets go for five milliseconds."""
    with collector_at_work(repo), Repository.open(repo) as opened:
        for _ in range(5):
            with opened.locked("shared", timeout=2):
                pass
            time.sleep(0.05)


@contextmanager
def busy_writers(repo: Path) -> Iterator[None]:
    """Two processes hold the lock shared, each for a second, one after the other and overlapping: it is free for less than a
    millisecond each second."""
    program = """if True:
        import fcntl, os, sys, time
        first = int(sys.argv[2])
        while True:
            fd = os.open(sys.argv[1], os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_SH)
            now = time.time()
            # the one lets go at the full second, the other 0.2 ms after it, and it comes back half a second later
            time.sleep(1 - now % 1 + (0.0002 if first else 0))
            os.close(fd)
            time.sleep(0.5 if first else 0.0006)
    """
    writers = [subprocess.Popen([sys.executable, "-S", "-c", program, str(repo), str(number)]) for number in range(2)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


def test_an_exclusive_waiter_has_its_turn_beside_busy_writers(repo: Path) -> None:
    with busy_writers(repo), Repository.open(repo) as mine:
        for _ in range(3):
            with mine.locked("exclusive", timeout=20):
                assert not can_lock(repo, "shared")


def test_many_waiters_have_the_lock_one_after_the_other(repo: Path) -> None:
    """Processes, each of which adds its line to a file while it has the lock alone."""
    children = []
    for number in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                with Repository.open(repo) as mine:
                    for _ in range(20):
                        with mine.locked("exclusive", timeout=60):
                            path = repo / "count"
                            value = int(path.read_text()) if path.exists() else 0
                            time.sleep(0.001)
                            path.write_text(str(value + 1))
                os._exit(0)
            finally:
                os._exit(number + 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    assert (repo / "count").read_text() == "120"


@pytest.mark.parametrize("wanted", ["shared", "exclusive"])
def test_a_request_that_was_given_up_does_not_keep_a_lock_that_comes_later(repo: Path, wanted: str) -> None:
    with Repository.open(repo) as mine:
        with hold_exclusive(repo), pytest.raises(LockTimeout), mine.locked(wanted, timeout=0.2):  # type: ignore[arg-type]
            pass
        deadline = time.monotonic() + 10
        while not can_lock(repo, "exclusive"):
            assert time.monotonic() < deadline
        with mine.locked("exclusive", timeout=5):
            pass
    while str(repo) in set(opened()):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("wanted", ["shared", "exclusive"])
def test_repeated_requests_use_one_waiting_thread(repo: Path, wanted: str) -> None:
    def waiting() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "lock"]

    with Repository.open(repo) as mine:
        with hold_exclusive(repo):
            for _ in range(5):
                with pytest.raises(LockTimeout), mine.locked(wanted, timeout=0.05):  # type: ignore[arg-type]
                    pass
            assert len(waiting()) == 1
            assert list(opened()).count(str(repo)) == 2  # the repository's own, and the one that is waited with
            taking = mine.locked(wanted, timeout=20)  # type: ignore[arg-type]
            thread = threading.Thread(target=taking.__enter__)
            thread.start()
            time.sleep(0.1)
            assert len(waiting()) == 1
        thread.join(20)
        assert waiting() == []
        assert not can_lock(repo, "exclusive")
        taking.__exit__(None, None, None)
        assert can_lock(repo, "exclusive")


def test_a_request_that_is_interrupted_while_waiting_does_not_keep_the_lock(repo: Path) -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with Repository.open(repo) as mine:
        with hold_exclusive(repo):
            timer = threading.Timer(0.3, interrupted)
            timer.start()
            with pytest.raises(KeyboardInterrupt), mine.locked("exclusive", timeout=20):
                pass
            timer.join()
        with mine.locked("exclusive", timeout=5):
            assert not can_lock(repo, "shared")


def test_a_thread_that_takes_the_lock_shared_meanwhile_is_a_conflict_for_the_one_that_waits(repo: Path, cfsctl: Cfsctl) -> None:
    found: list[BaseException] = []

    def wait() -> None:
        try:
            with Repository.open(repo) as mine, mine.locked("exclusive", timeout=20):
                pass
        except BaseException as error:
            found.append(error)

    with hold_shared(cfsctl, repo), Repository.open(repo) as other:
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        with other.locked("shared"):
            thread.join(10)
    assert [type(error) for error in found] == [LockConflict]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # from Python 3.12: forking here is the point
def test_a_child_forked_beside_a_waiter_keeps_nothing(repo: Path) -> None:
    reading, writing = os.pipe()
    with Repository.open(repo) as mine:
        holding = mine.locked("exclusive", timeout=20)
        with hold_exclusive(repo):
            waiting = threading.Thread(target=holding.__enter__)
            waiting.start()
            time.sleep(0.2)
            pid = os.fork()
            if pid == 0:
                os.close(writing)
                os.read(reading, 1)  # lives on, with all that it inherited
                os._exit(0)
        try:
            waiting.join(20)
            assert not can_lock(repo, "shared")
            holding.__exit__(None, None, None)
            assert can_lock(repo, "exclusive")
        finally:
            os.close(writing)
            os.close(reading)
            os.waitpid(pid, 0)


def test_without_a_thread_it_looks_again_and_again(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    holder = hold_exclusive(repo)
    pid = holder.__enter__()
    timer = threading.Timer(0.3, lambda: os.kill(pid, 9))
    timer.start()
    monkeypatch.setattr(threading.Thread, "start", none_left)
    try:
        with Repository.open(repo) as mine, mine.locked("exclusive", timeout=20):
            assert not can_lock(repo, "shared")
    finally:
        monkeypatch.undo()
        timer.join()
        holder.__exit__(None, None, None)


def test_waiting_is_reported_once_after_a_second(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str, list[int]]] = []

    def tell(path: str, mode: str, holders: tuple[dict[str, Any], ...]) -> None:
        told.append((path, mode, [one["pid"] for one in holders]))

    monkeypatch.setattr(Lock, "on_wait", tell)
    with Repository.open(repo) as mine, hold_exclusive(repo) as pid:
        for timeout in (0.5, 1.5):
            with pytest.raises(LockTimeout), mine.locked("shared", timeout=timeout):
                pass
    assert told == [(str(repo), "shared", [pid])]


IMPORTED = """if True:
    import sys
    from cfs_tags import Repository
    with Repository.open(sys.argv[1]) as repo, repo.locked(sys.argv[2]):
        print(*sorted({"filelock", "asyncio", "sqlite3"} & set(sys.modules)))
"""


@pytest.mark.parametrize(("mode", "imported"), [("shared", ""), ("exclusive", "filelock")])
def test_the_library_is_imported_for_exclusive_locks_alone(repo: Path, mode: str, imported: str) -> None:
    command = [sys.executable, "-c", IMPORTED, str(repo), mode]

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{imported}\n"


def test_shared_holders_of_two_processes_do_not_wait_for_each_other(repo: Path, cfsctl: Cfsctl) -> None:
    with hold_shared(cfsctl, repo), Repository.open(repo) as mine, mine.locked("shared", timeout=0):
        assert can_lock(repo, "shared")


def test_the_path_in_an_error_is_the_one_that_was_opened_last(new_repo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    old = new_repo(tmp_path / "old")
    with Repository.open(old) as mine, mine.locked():
        pass
    new = old.rename(tmp_path / "new")
    with hold_exclusive(new), Repository.open(new) as mine, pytest.raises(LockTimeout) as caught, mine.locked(timeout=0):
        pass
    assert caught.value.path == str(new)


# -- forked children ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_a_forked_child_that_leaves_the_block_does_not_unlock_for_its_parent(repo: Path, mode: str) -> None:
    with Repository.open(repo) as mine:
        holding = mine.locked(mode)  # type: ignore[arg-type]
        holding.__enter__()
        assert in_child(lambda: holding.__exit__(None, None, None)) == "False"
        assert not can_lock(repo, "exclusive")
        holding.__exit__(None, None, None)
        assert can_lock(repo, "exclusive")


def test_a_forked_child_does_not_keep_the_lock_that_its_parent_gave_back(repo: Path) -> None:
    reading, writing = os.pipe()
    with Repository.open(repo) as mine, mine.locked("exclusive"):
        pid = os.fork()
        if pid == 0:
            os.read(reading, 1)  # lives on, with all that it inherited
            os._exit(0)
    try:
        assert can_lock(repo, "exclusive")
    finally:
        os.write(writing, b"x")
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def test_a_forked_child_asks_for_the_lock_like_any_other_process(repo: Path) -> None:
    def ask() -> str:
        try:
            with Repository.open(repo) as mine, mine.locked("exclusive", timeout=0.05):
                return "granted"
        except LockTimeout as error:
            return f"{error.holders[0]['pid']} {error.holders[0]['mode']}"

    with Repository.open(repo) as mine:
        with mine.locked("exclusive"):
            assert in_child(ask) == f"{os.getpid()} exclusive"
        assert in_child(ask) == "granted"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # from Python 3.12: forking here is the point
def test_a_child_forked_while_another_thread_is_locking_is_not_stuck(repo: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        with Repository.open(repo) as mine:
            while not stop.is_set():
                with mine.locked():
                    pass

    def ask() -> str:
        with Repository.open(repo) as mine, mine.locked("shared", timeout=5):
            return "granted"

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert {in_child(ask) for _ in range(20)} == {"granted"}
    finally:
        stop.set()
        thread.join()


# -- the refs lock -----------------------------------------------------------------------------------------------------


def test_threads_that_write_queue_up(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with Repository.open(stocked, write=True) as mine:
                tagging.create(mine, f"app:{number}", f"@{one}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    with Repository.open(stocked) as mine:
        made = [tag.name for tag in rows.list_tags(mine) if tag.name.startswith("app:")]
    assert made == [f"app:{number}" for number in range(8)]
    assert leftovers(stocked) == []


def test_a_transaction_within_a_transaction_raises_instead_of_waiting_for_itself(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine:

        def plan() -> edit.TagPlan:
            tagging.create(mine, "inner", f"@{one}")
            raise AssertionError("the inner transaction went through")

        with pytest.raises(LockConflict):
            run.transact(mine, plan)
        tagging.create(mine, "after", f"@{one}")


def test_another_writer_is_waited_for_and_named(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "first", f"@{one}")
        lock = stocked / "cfs-tags" / "refs.lock"
        with hold_exclusive(lock) as pid:
            with pytest.raises(LockTimeout) as caught:
                tagging.create(mine, "second", f"@{one}", timeout=0.1)
            assert caught.value.path == str(lock)
            assert caught.value.seconds == 0.1
            assert [holder["pid"] for holder in caught.value.holders] == [pid]
            assert can_lock(stocked, "exclusive"), "the repository lock was kept"
        tagging.create(mine, "second", f"@{one}", timeout=0.1)


def test_both_locks_together_take_no_longer_than_the_time_given(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine, hold_exclusive(stocked) as pid:
        began = time.monotonic()
        with pytest.raises(LockTimeout) as caught:
            tagging.create(mine, "app", f"@{one}", timeout=0.1)
        assert time.monotonic() - began < 5
        assert [holder["pid"] for holder in caught.value.holders] == [pid]
    assert not (stocked / "cfs-tags").exists()


def test_a_pipe_in_the_place_of_the_lock_file_does_not_hold_anybody_up(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "first", f"@{one}")
        (stocked / "cfs-tags" / "refs.lock").unlink()
        os.mkfifo(stocked / "cfs-tags" / "refs.lock")

        def write() -> str:
            return tagging.create(mine, "second", f"@{one}", timeout=1).done

        assert in_child_with_deadline(write) == "created"


def in_child_with_deadline(function: Callable[[], object]) -> str:
    def limited() -> object:
        import signal

        signal.alarm(10)  # the child dies of it
        return function()

    return in_child(limited)


def test_losing_the_whole_state_folder_costs_no_ref(stocked: Path) -> None:
    one = digest_of(stocked, "one")
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "first", f"@{one}")
        shutil.rmtree(stocked / "cfs-tags")
        tagging.create(mine, "second", f"@{one}")
        assert names.resolve(mine, "first") == names.resolve(mine, "second") == one


def test_the_lock_of_a_process_is_one_object_for_each_file(repo: Path) -> None:
    with Repository.open(repo) as first, Repository.open(repo) as second:
        assert Lock.of(first.fd, ".", str(repo)) is Lock.of(second.fd, ".", str(repo))


def test_the_lock_is_the_one_that_peers_use(repo: Path) -> None:
    fd = os.open(repo, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        with Repository.open(repo) as mine, pytest.raises(LockTimeout), mine.locked("exclusive", timeout=0):
            pass
    finally:
        os.close(fd)
