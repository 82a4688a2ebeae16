"""``hold``: content stays while a command runs, however long; the lease goes with the command, or by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest

from cfs_tags import Repository
from cfs_tags.errors import UsageError
from cli.conftest import Run
from support.peers import Cfsctl

WEB = "quay.io/apps/web:1"
PROGRAM = Path(sys.executable).parent / "cfs-tag"


class Holds(Protocol):
    def __call__(self, *words: str, target: str = WEB, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start ``hold`` with a command."""


@pytest.fixture
def hold(repo: Path) -> Iterator[Holds]:
    """The real program, because its command has standard streams and signals."""
    started = []

    def start(*words: str, target: str = WEB, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        command = [str(PROGRAM), "--repo", str(repo), "hold", target, *options, "--", *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for child in started:
        child.terminate()
        child.communicate()


def leases(repo: Path) -> dict[str, str]:
    return {path.name: path.parent.name for path in (repo / "streams/refs/cfs-tags/leases").glob("*/*")}


def until(what: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_is_the_commands_and_the_lease_goes_with_it(hold: Holds, status: int, repo: Path) -> None:
    child = hold("sh", "-c", f"ls {repo}/streams/refs/cfs-tags/leases/*; exit {status}")
    out, err = child.communicate(timeout=60)

    assert (child.returncode, err) == (status, b"")
    assert b"hold%2F" in out
    assert leases(repo) == {}


def test_words_behind_the_dashes_are_the_commands(hold: Holds, repo: Path) -> None:
    child = hold("echo", "--json", "--dry-run", "-x")
    assert child.communicate(timeout=60)[0] == b"--json --dry-run -x\n"


def test_what_is_held_is_kept_by_everybody_while_the_command_runs(
    hold: Holds, repo: Path, run: Run, cfsctl: Cfsctl, web: str
) -> None:
    child = hold("sleep", "600", target=f"@{web}")
    try:
        until(lambda: leases(repo))
        run("delete", WEB, ok=True)
        cfsctl(repo, "gc")
        run("gc", "--no-sysroot", ok=True)
        run("show", f"@{web}", ok=True)
        assert run("fsck", "--content").status == 0
    finally:
        child.terminate()
    assert child.wait(20) == 128 + signal.SIGTERM
    assert leases(repo) == {}
    run("gc", "--no-sysroot", ok=True)
    assert run("show", f"@{web}").status == 3


def test_a_lease_shorter_than_the_command_is_renewed(hold: Holds, repo: Path) -> None:
    child = hold("sleep", "6", options=("--for", "2s"))
    until(lambda: leases(repo))
    seen = set()
    with Repository.open(repo) as opened:
        while child.poll() is None:
            found = [tag for tag in opened.tags.list("hold/*") if not tag.has_ended]
            seen.update(tag.expires for tag in found)
            assert found or child.wait(5) == 0
            time.sleep(0.05)
    assert child.returncode == 0
    assert len(seen) > 3
    assert leases(repo) == {}


def test_what_ends_after_a_while_ends_no_fraction_of_a_second_earlier(repo: Path) -> None:
    with Repository.open(repo, write=True) as opened:
        for _ in range(20):
            before = datetime.now(UTC)
            with opened.tags.hold(WEB, length=timedelta(seconds=1)) as held:
                ends = datetime.strptime(held.expires, "%Y%m%dT%H%M%S%z")
                assert timedelta(seconds=1) <= ends - before <= timedelta(seconds=2) + (datetime.now(UTC) - before)
            time.sleep(0.05)


def test_one_that_is_killed_leaves_a_lease_that_ends_by_itself(hold: Holds, repo: Path, run: Run) -> None:
    child = hold("sleep", "2", options=("--for", "2s"))
    until(lambda: leases(repo))
    child.kill()
    child.communicate()
    (name,) = leases(repo)
    rows = {row["name"]: row for row in run("list", "--json", ok=True).result}
    assert rows[name.replace("%2F", "/")]["home"] == "lease"
    time.sleep(3.1)
    run("gc", "--no-sysroot", ok=True)
    assert leases(repo) == {}


def test_an_interrupt_of_the_terminal_is_the_commands(hold: Holds, repo: Path) -> None:
    child = hold("sh", "-c", "trap 'exit 9' INT; while :; do sleep 0.05; done")
    until(lambda: leases(repo))
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)  # of hold alone: it goes on
    time.sleep(0.3)
    assert child.poll() is None
    (command,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(command), signal.SIGINT)
    assert child.wait(20) == 9
    assert leases(repo) == {}


def test_a_command_that_is_not_there_leaves_no_lease(hold: Holds, repo: Path) -> None:
    child = hold("/no/such/program")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert b"/no/such/program" in err
    assert leases(repo) == {}


@pytest.mark.parametrize(
    ("words", "status"), [(("absent", "--", "true"), 3), ((WEB, "--for", "0s", "--", "true"), 2), ((WEB,), 2)]
)
def test_what_cannot_be_held_starts_nothing(words: tuple[str, ...], status: int, run: Run, repo: Path) -> None:
    assert run("hold", *words).status == status
    assert leases(repo) == {}


def test_the_status_is_the_commands_where_the_lease_cannot_be_taken_away(hold: Holds, repo: Path) -> None:
    lock = repo / "cfs-tags/refs.lock"
    child = hold("sh", "-c", f"flock {lock} sleep 4 >/dev/null 2>&1 & sleep 0.5; exit 3", options=("--lock-timeout", "1"))
    _, err = child.communicate(timeout=60)

    assert child.returncode == 3
    assert b"warning" in err
    assert b"refs.lock" in err
    assert len(leases(repo)) == 1


def test_a_dry_run_starts_nothing(run: Run, repo: Path, web: str) -> None:
    assert run("hold", WEB, "--dry-run", "--", "false", ok=True).out.startswith(f"would be held: {web}, until ")
    assert leases(repo) == {}


def test_no_registry_serves_a_lease_of_this_kind(hold: Holds, run: Run, repo: Path) -> None:
    child = hold("sleep", "60")
    until(lambda: leases(repo))
    try:
        assert "hold" not in "".join(
            str(row["served_digest"] and row["name"]) for row in run("serve", "--list", "--json", ok=True).result
        )
    finally:
        child.terminate()
        child.communicate()


def test_the_library_holds_and_renews(repo: Path) -> None:
    with Repository.open(repo, write=True) as opened:
        with opened.tags.hold(WEB, length=timedelta(hours=2)) as held:
            first = leases(repo)
            assert len(first) == 1
            time.sleep(1.1)
            held.renew()
            assert leases(repo).keys() == first.keys()
            assert leases(repo) != first
            held.release()
            assert leases(repo) == {}
        with pytest.raises(UsageError):
            opened.tags.hold(WEB, length=timedelta(0))
        opened.tags.hold(WEB, dry_run=True)
        assert leases(repo) == {}
