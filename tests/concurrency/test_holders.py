"""Others that hold a lock and do not give it back: stopped, killed, in another namespace of processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.peers import clean_environment
from support.trees import unpack

ROOT = Path(__file__).parent.parent.parent
WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
HOLDER = """if True:
    import fcntl, os, sys, time
    fd = os.open(sys.argv[1], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
"""
APART = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
LOCKS = {"refs": "cfs-tags/refs.lock", "repository": "."}


@pytest.fixture
def repo(ram: Path) -> Path:
    unpack(ROOT / "examples/host.tar.gz", ram)
    assert call(ram / "composefs", "create", "t/first", WEB).returncode == 0  # makes the lock's file
    return ram / "composefs"


def call(repo: Path, *words: str, around: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*around, str(Path(sys.executable).with_name("cfs-tag")), "--repo", str(repo), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=clean_environment(repo.parent))


def apart_or_skip() -> tuple[str, ...]:
    if shutil.which("unshare") is None or subprocess.run([*APART, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    return APART


@contextmanager
def holder(path: Path, around: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock exclusively."""
    process = subprocess.Popen([*around, sys.executable, "-S", "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def refs(repo: Path) -> list[tuple[str, str]]:
    return sorted((path.name, os.readlink(path)) for path in (repo / "streams/refs").rglob("*") if path.is_symlink())


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("who", ["stopped", "in another namespace", "outside of ours"])
def test_a_holder_is_waited_for_until_the_timeout_and_nothing_is_changed(repo: Path, who: str, lock: str) -> None:
    inside = apart_or_skip() if who == "in another namespace" else ()
    ours = apart_or_skip() if who == "outside of ours" else ()
    before = refs(repo)
    with holder(repo / LOCKS[lock], inside) as process:
        if who == "stopped":
            process.send_signal(signal.SIGSTOP)
        started = time.monotonic()

        said = call(repo, "create", "t/first", DB, "--force", "--lock-timeout", "0.5", "--json", around=ours)

        assert said.returncode == 5, said
        assert time.monotonic() - started < 20
        error = json.loads(said.stdout or said.stderr)["error"]
        assert error["code"] == "lock-timeout"
        if who == "stopped":
            assert str(process.pid) in error["message"]
        assert refs(repo) == before
    assert call(repo, "create", "t/first", DB, "--force", "--lock-timeout", "10").returncode == 0


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("who", ["here", "in another namespace"])
def test_one_that_is_killed_while_it_is_waited_for_leaves_the_lock(repo: Path, who: str, lock: str) -> None:
    inside = apart_or_skip() if who == "in another namespace" else ()
    with holder(repo / LOCKS[lock], inside) as process:
        waiting = subprocess.Popen(
            [str(Path(sys.executable).with_name("cfs-tag")), "--repo", str(repo), "delete", "t/first", "--lock-timeout", "60"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(1)
        assert waiting.poll() is None
        process.kill()
        out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, (out, err)


def test_a_writer_that_is_stopped_in_its_midst_keeps_the_others_out_until_it_goes_on(repo: Path) -> None:
    """It holds the lock of the refs and has changed one of two; then it ends what it began."""
    program = (
        "import os, signal, sys\n"
        "from cfs_tags.cli.main import main\n"
        "from cfs_tags.repo import fsops\n"
        "rename, calls = fsops.rename, []\n"
        "def stops(*words):\n"
        "    rename(*words)\n"
        "    calls.append(words)\n"
        "    if len(calls) == 1:\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "fsops.rename = stops\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    assert call(repo, "create", "t/second", DB).returncode == 0
    writer = subprocess.Popen([sys.executable, "-c", program, "--repo", str(repo), "delete", "t/first", "t/second"])
    try:
        assert os.WIFSTOPPED(os.waitpid(writer.pid, os.WUNTRACED)[1])

        said = call(repo, "create", "t/third", WEB, "--lock-timeout", "0.5")
        assert (said.returncode, str(writer.pid) in said.stderr) == (5, True), said
        assert call(repo, "gc", "--no-sysroot", "--lock-timeout", "0.5").returncode == 5

        writer.send_signal(signal.SIGCONT)
        assert writer.wait(timeout=30) == 0
    finally:
        writer.kill()
        writer.wait()
    assert not [name for name, _ in refs(repo) if name.startswith("t%2F")]
    assert call(repo, "create", "t/third", WEB, "--lock-timeout", "10").returncode == 0


def test_a_lock_is_not_passed_on_to_what_a_command_starts(repo: Path) -> None:
    """A worker that outlives its parent would hold it for ever."""
    assert call(repo, "fsck", "--content").returncode == 0
    fd = os.open(repo, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)
