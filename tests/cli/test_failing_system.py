"""What is said where the system refuses: which place it is about, and what was changed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cfs_tags.repo import fsops
from support.interrupt import fail_after
from support.stock import leftovers, refs

if TYPE_CHECKING:
    from cli.conftest import Run

WEB = "quay.io/apps/web:1"
DB = "quay.io/apps/db:2"
READERS = (["list"], ["fsck"], ["gc", "--dry-run", "--no-sysroot"], ["df"], ["gc", "--no-sysroot"], ["why", f"{WEB}"])


def refuse(original: Callable[..., Any], place: str) -> Callable[..., Any]:
    """A function of a descriptor that fails for one directory, as the system's does: the error has the number for a name."""

    def refused(at: Any = ".") -> Any:
        if isinstance(at, int) and os.readlink(f"/proc/self/fd/{at}").endswith(place):
            raise OSError(errno.EIO, os.strerror(errno.EIO), at)
        return original(at)

    return refused


@pytest.mark.parametrize("place", ["objects", "streams/refs/oci", "images/refs", "streams"])
@pytest.mark.parametrize("words", READERS)
def test_a_directory_that_cannot_be_read_is_named(
    words: list[str], place: str, repo: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, refuse(getattr(os, name), f"composefs/{place}"))
        said = run(*words)

    assert not re.search(r"cannot \w+( in)? \d+:", said.err), said.err
    assert "internal" not in said.err
    if said.status == 1:
        assert place in said.err or str(repo) in said.err


def test_a_directory_of_objects_that_cannot_be_read_is_named(repo: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    some = sorted(path.name for path in (repo / "objects").iterdir())[3]
    for words in READERS:
        with monkeypatch.context() as patch:
            for name in ("listdir", "scandir"):
                patch.setattr(os, name, refuse(getattr(os, name), f"objects/{some}"))
            said = run(*words)
        assert not re.search(r"cannot \w+( in)? \d+:", said.err), said.err
        assert said.status != 1 or f"objects/{some}" in said.err or str(repo) in said.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("words", [["rename", WEB, DB, "--force"], ["delete", WEB, DB], ["create", "new", WEB]])
def test_an_error_reports_what_was_changed(words: list[str], number: int, repo: Path, run: Run) -> None:
    """Everything fails from some change on, the undoing too."""
    run("create", "first", WEB, ok=True)
    before = refs(repo)
    changed = said_so = 0
    for place in range(50):
        with fail_after(place, number) as calls:
            said = run(*words)
        if not calls.interrupted:
            break
        if refs(repo) != before and said.status != 0:
            changed += 1
            said_so += "left to the next command that writes" in said.err or "was made and cannot be removed" in said.err
            assert "nothing was changed" not in said.err
        if said.status == 1:
            assert os.strerror(number) in said.err
        run("create", "next", WEB)
        run("delete", "next")
        assert leftovers(repo) == []
        for name in ("new", WEB, DB):
            link = before.get(f"streams/refs/oci/{name.replace('/', '%2F')}")
            run("delete", name)
            if link is not None:
                run("create", name, "@" + link.rpartition("oci-manifest-")[2], ok=True)
        assert refs(repo) == before, place
    assert changed
    assert said_so == changed


def test_an_error_does_not_report_changes_that_were_taken_back(repo: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = refs(repo)
    with monkeypatch.context() as patch:
        patch.setattr(fsops, "append", _full)
        said = run("rename", WEB, DB, "--force")

    assert said.status == 1
    assert said.err.splitlines()[-1] == "hint: make room"
    assert "what was changed" not in said.err
    assert refs(repo) == before


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_any_command_that_writes_reports_a_finished_transaction(repo: Path, run: Run) -> None:
    from support.interrupt import stopped_after

    def interrupt() -> None:
        for place in range(6, 30):
            before = refs(repo)
            assert stopped_after(place, lambda: run("rename", WEB, "renamed"))
            if refs(repo) != before:
                return
            run("create", "next", WEB)
            run("delete", "next")

    for words in (["create", "next", DB], ["delete", "next"], ["gc", "--no-sysroot"], ["rename", WEB, "renamed"]):
        interrupt()
        said = run(*words)
        assert said.status == 0, said
        assert "cfs-tag: recovered: " in said.err, words
        assert "renamed" in said.err
        assert "recovered" not in run("create", "again", "renamed").err
        run("rename", "renamed", WEB, ok=True)
        run("delete", "again", ok=True)
    interrupt()
    warnings = run("create", "next", DB, "--json").json["warnings"]
    (told,) = [one for one in warnings if one["code"] == "transaction-finished"]
    assert told["message"].startswith("recovered: ")


def test_a_command_that_fails_reports_a_finished_transaction(repo: Path, run: Run) -> None:
    from support.interrupt import stopped_after

    for words in (["delete", "no such"], ["delete", "no such", "--json"]):
        for place in range(6, 30):
            before = refs(repo)
            assert stopped_after(place, lambda: run("rename", WEB, "renamed"))
            if refs(repo) != before:
                break
        said = run(*words)
        assert said.status == 3
        assert "cfs-tag: recovered: " in said.err
        run("rename", "renamed", WEB, ok=True)
