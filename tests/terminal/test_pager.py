"""Long output goes to a pager on a terminal, and nowhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.terminal import show

ENTRIES = 30


@pytest.fixture(scope="module")
def repo(_example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.trees import copy_tree

    host = copy_tree(_example, tmp_path_factory.mktemp("pager") / "host")
    lines = "".join(f"create app-{number} quay.io/apps/web:1\n" for number in range(ENTRIES))
    command = [sys.executable, "-m", "cfs_tags", "--sysroot", host, "update", "--stdin"]
    subprocess.run(command, input=lines.encode(), check=True, stdout=subprocess.DEVNULL)
    return host


def lines_of(repo: Path, *words: str, pager: str, lines: int = 10, **env: str) -> list[str]:
    shown = show(["--sysroot", repo, "log", *words], columns=100, lines=lines, env={"PAGER": pager, **env})
    assert shown.status == 0, shown.text
    return shown.text.splitlines()


def test_what_is_longer_than_the_screen_goes_through_the_pager(repo: Path) -> None:
    found = lines_of(repo, pager="sed 's/^/> /'")

    assert len(found) == ENTRIES
    assert all(line.startswith("> ") and "create" in line for line in found)


@pytest.mark.parametrize("words", [("--no-pager",), ("--limit", "3")], ids=["not wanted", "not long"])
def test_no_pager_where_none_is_wanted_or_needed(repo: Path, words: tuple[str, ...]) -> None:
    found = lines_of(repo, *words, pager="sed 's/^/> /'")

    assert found
    assert not any(line.startswith(">") for line in found)


@pytest.mark.parametrize("pager", ["", "cat", "no-such-pager", "un'closed"])
def test_without_a_pager_all_of_it_is_on_the_terminal(repo: Path, pager: str) -> None:
    assert len(lines_of(repo, pager=pager)) == ENTRIES


def test_a_dumb_terminal_has_none(repo: Path) -> None:
    assert not any(line.startswith(">") for line in lines_of(repo, pager="sed 's/^/> /'", TERM="dumb"))


def test_a_pager_that_is_quit_has_seen_enough(repo: Path) -> None:
    assert len(lines_of(repo, pager="head -n 2")) == 2


def test_less_is_told_to_leave_what_was_read_unless_the_user_says_otherwise(repo: Path) -> None:
    show_options = "sh -c 'echo $LESS; cat >/dev/null'"
    assert lines_of(repo, pager=show_options) == ["FRX"]
    assert lines_of(repo, pager=show_options, LESS="S") == ["S"]


def test_an_interrupt_is_the_pagers_while_it_shows(repo: Path) -> None:
    """As with git: whoever stops a search in less does not lose it."""
    code = f"import os, sys; sys.stdin.read(); os.kill(os.getppid(), {signal.SIGINT:d}); print(1)"

    assert lines_of(repo, pager=f"{sys.executable} -c '{code}'") == ["1"]


def test_a_pipe_has_no_pager(repo: Path) -> None:
    env = {**os.environ, "PAGER": "sed 's/^/> /'"}
    command = [sys.executable, "-m", "cfs_tags", "--sysroot", repo, "log"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)

    assert len(done.stdout.splitlines()) == ENTRIES + 1
    assert ">" not in done.stdout
