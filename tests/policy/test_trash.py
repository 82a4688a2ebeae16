"""How long the trash keeps what was deleted, where nobody says it but a policy; and taking things out of it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.policy import files
from cfs_tags.repo.transaction import hooks
from cli.conftest import Run

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
KEEP_ONE = '[[rule]]\ntags = ["quay.io/x/*"]\nkeep-last = 1\n'


@pytest.fixture(autouse=True)
def _system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / "etc.toml"))


def kept_for(run: Run) -> dict[str, timedelta]:
    """How long each deleted tag has left, to the hour."""
    now = datetime.now(UTC)
    rows = run("trash", "--json").result
    left = {row["name"].removeprefix("@trash/"): datetime.fromisoformat(row["expires"]) - now for row in rows}
    return {name: timedelta(hours=round(time.total_seconds() / 3600)) for name, time in left.items()}


@pytest.mark.parametrize(
    ("own", "system", "words", "days"),
    [
        (None, None, (), None),
        (KEEP_ONE, None, (), None),
        ('[trash]\nkeep-for = "2d"\n', None, (), 2),
        (None, '[trash]\nkeep-for = "3d"\n', (), 3),
        (KEEP_ONE, '[trash]\nkeep-for = "3d"\n', (), 3),
        ('[trash]\nkeep-for = "2d"\n', '[trash]\nkeep-for = "3d"\n', (), 2),
        ('[trash]\nkeep-for = "0"\n', '[trash]\nkeep-for = "3d"\n', (), None),
        ('[trash]\nkeep-for = "2d"\n', None, ("--keep-for", "5d"), 5),
        ('[trash]\nkeep-for = "2d"\n', None, ("--keep-for", "0"), None),
    ],
)
def test_how_long_what_is_deleted_is_kept(
    own: str | None, system: str | None, words: tuple[str, ...], days: int | None, run: Run, repo: Path, tmp_path: Path
) -> None:
    run("create", "t", WEB, ok=True)
    for path, text in ((repo / "cfs-tags/policy.toml", own), (tmp_path / "etc.toml", system)):
        if text is not None:
            path.write_text(text)

    run("delete", "t", *words, ok=True)

    assert kept_for(run) == ({} if days is None else {"t": timedelta(days=days)})


@pytest.mark.parametrize(
    ("trash", "days"),
    [("", 7), ('[trash]\nkeep-for = "2d"\n', 2), ('[trash]\nkeep-for = "0"\n', None), ("[trash]\nkeep-for = 0\n", None)],
)
def test_how_long_what_a_policy_drops_is_kept(trash: str, days: int | None, run: Run, repo: Path) -> None:
    for number in (1, 2):
        run("create", f"quay.io/x/app:{number}", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text(trash + KEEP_ONE)

    run("policy", "apply", ok=True)

    assert kept_for(run) == ({} if days is None else {"quay.io/x/app:1": timedelta(days=days)})


def test_a_policy_that_cannot_be_read_has_nothing_deleted_unless_the_time_is_given(run: Run, repo: Path) -> None:
    run("create", "t", WEB, ok=True)
    (repo / "cfs-tags/policy.toml").write_text("[trash")

    assert run("delete", "t").status == 2
    assert run("resolve", "t").status == 0
    run("delete", "t", "--keep-for", "1d", ok=True)


def test_programs_delete_as_the_policy_says(repo: Path) -> None:
    with Repository.open(repo, write=True) as opened:
        for name in "abc":
            opened.tags.create(name, WEB)
        (repo / "cfs-tags/policy.toml").write_text('[trash]\nkeep-for = "2d"\n')
        opened.tags.delete("a")
        opened.tags.delete("b", keep_for=timedelta(0))
        opened.tags.delete("c", keep_for=timedelta(days=9))

        assert [kept.name for kept in opened.tags.trash()] == ["@trash/a", "@trash/c"]
        assert [row.done for row in opened.tags.empty_trash("c", dry_run=True)] == ["deleted"]
        assert [row.name for row in opened.tags.empty_trash("c")] == ["@trash/c"]
        assert [kept.name for kept in opened.tags.trash()] == ["@trash/a"]


@pytest.fixture
def filled(run: Run) -> Run:
    """A repository with two names in its trash, one of them twice."""
    for target in (WEB, DB):
        run("create", "t/one", target, ok=True)
        run("delete", "t/one", "--keep-for", "7d", ok=True)
    run("create", "t/two", WEB, ok=True)
    run("delete", "t/two", "--keep-for", "7d", ok=True)
    return run


def test_what_is_emptied_is_collected(filled: Run, repo: Path) -> None:
    filled("delete", WEB, DB, ok=True)
    filled("gc", "--no-sysroot", ok=True)
    assert filled("restore", "t/two", "--dry-run", ok=True)

    assert filled("trash", "empty", "--dry-run", ok=True).out.count("would be deleted: @trash/") == 3
    assert len(filled("trash", "--json").result) == 3
    filled("trash", "empty", "--yes", "--reason", "no room", ok=True)

    assert filled("trash", "--json").result == []
    assert filled("gc", "--no-sysroot", "--json").result["objects"] > 0
    assert filled("trash", "empty", "--yes", ok=True).out == "the trash is empty\n"
    assert filled("fsck").status == 0


def test_names_and_patterns_are_meant_alone(filled: Run) -> None:
    assert [row["name"] for row in filled("trash", "empty", "t/o*", "--yes", "--json").result["tags"]] == ["@trash/t/one"] * 2
    assert set(kept_for(filled)) == {"t/two"}
    assert filled("trash", "empty", "t/none", "--yes").status == 3
    filled("trash", "empty", "@trash/t/two", "--yes", ok=True)
    assert kept_for(filled) == {}


def test_what_came_into_the_trash_after_the_question_was_not_agreed_to(filled: Run, repo: Path) -> None:
    terminal, slave = pty.openpty()
    words = [str(Path(sys.executable).parent / "cfs-tag"), "--repo", str(repo), "trash", "empty"]
    with subprocess.Popen(words, stdin=slave, stderr=slave, stdout=subprocess.PIPE) as child:
        os.close(slave)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(terminal, 4096)
        filled("delete", DB, "--keep-for", "7d", ok=True)
        os.write(terminal, b"y\n")
        out = child.communicate(timeout=60)[0]
    os.close(terminal)

    assert b"Take 3 tags out" in said
    assert (child.returncode, out.count(b"deleted: ")) == (0, 3)
    assert set(kept_for(filled)) == {DB}


def test_without_a_terminal_it_has_to_be_said(filled: Run) -> None:
    assert filled("trash", "empty").status == 2
    assert filled("trash", "burn").status == 2
    assert len(filled("trash", "--json").result) == 3


@pytest.mark.parametrize("kind", ["hooks alone", "masked"])
def test_a_link_that_leads_somewhere_is_followed(
    kind: str, run: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``/etc/cfs-tags`` may be elsewhere and have no policy, and a policy may be masked as systemd does it."""
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / "etc/policy.toml"))
    monkeypatch.setattr(hooks, "_DIRECTORY", str(tmp_path / "etc/hooks.d"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "etc").symlink_to("elsewhere")
    if kind == "masked":
        (tmp_path / "etc/policy.toml").symlink_to(os.devnull)
    run("create", "t", WEB, ok=True)

    run("delete", "t", ok=True)


@pytest.mark.parametrize("link", ["etc.toml", "etc"])
def test_a_policy_behind_a_link_that_leads_nowhere_is_not_absent(
    link: str, run: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say that what is deleted is kept; what it leads to may be on a disk that is not mounted."""
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / ("etc.toml" if link == "etc.toml" else "etc/policy.toml")))
    (tmp_path / link).symlink_to("/nowhere/policy")
    run("create", "t", WEB, ok=True)

    said = run("delete", "t")

    assert said.status != 0
    assert "No such file" in said.err
    assert kept_for(run) == {}
    run("show", "t", ok=True)
