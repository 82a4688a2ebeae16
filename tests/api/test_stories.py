"""What programs do with a repository, step by step; the examples of the documentation; and what a type checker says of it."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cfs_tags import Instruction, Repository, WriteRepository
from cfs_tags.errors import NotFoundError, RefusedError, UsageError
from support import tagging
from support.images import app_image
from support.trees import copy_tree, tree

ROOT = Path(__file__).parent.parent.parent
WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
OPTIONS = {"esp": "none", "run": "none", "booted": "none"}


@pytest.fixture
def host(_example: Path, tmp_path: Path) -> Path:
    return copy_tree(_example, tmp_path / "host")


@pytest.fixture
def path(host: Path) -> Path:
    return host / "composefs"


@pytest.fixture
def repo(path: Path) -> WriteRepository:
    return Repository.open(path, write=True, esp="none", run="none", booted="none")


def test_the_life_of_a_tag(repo: WriteRepository) -> None:
    with repo:
        web, db = repo.tags.resolve(WEB), repo.tags.resolve(DB)
        assert repo.tags.create("app", WEB).done == "created"
        assert repo.tags.create("app", f"@{web}").done == "unchanged"
        with pytest.raises(RefusedError, match="app"):
            repo.tags.create("app", DB)
        assert repo.tags.create("app", DB, expected=web).old == web
        assert repo.tags.restore("app").new == web
        assert repo.tags.rename("app", "live").name == "live"
        assert [tag.name for tag in repo.tags.list(points_at=WEB)] == ["live", WEB]
        assert [tag.name for tag in repo.tags.list(["li*", "quay.io/*"])] == ["live", DB, WEB]
        assert repo.tags.list([]) == []
        (deleted,) = repo.tags.delete("live", keep_for=timedelta(hours=1), reason="no longer needed")
        assert (deleted.done, repo.tags.get("live")) == ("deleted", None)
        assert [tag.name for tag in repo.tags.trash()] == ["@trash/live"]
        assert repo.tags.restore("live").new == web
        done = repo.tags.update([Instruction("set", "live", DB), Instruction("create", "other", WEB)])
        assert [(one.name, one.new) for one in done] == [("live", db), ("other", web)]
        log = repo.tags.log("live")
        assert [line.entry.action for line in log][:2] == ["move", "restore"]
        assert all(line.when is not None and abs(datetime.now(UTC) - line.when) < timedelta(minutes=5) for line in log)


@pytest.mark.parametrize("how", ["after", "at"])
def test_a_lease_ends_at_the_time_that_was_given(repo: WriteRepository, how: str) -> None:
    week = timedelta(days=7)
    with repo:
        repo.tags.create("lease", WEB, expires=week if how == "after" else datetime.now(UTC) + week)
        tag = repo.tags.get("lease")
        assert tag is not None
        assert tag.home == "lease"
        assert tag.ends is not None
        assert abs(tag.ends - datetime.now(UTC) - week) < timedelta(minutes=5)


@pytest.mark.parametrize("end", ["7d", "", "20991231", "20990231T000000Z", "20991231T000000Z/../..", "99999999T999999Z"])
def test_what_is_no_instant_makes_no_lease(repo: WriteRepository, end: str) -> None:
    with repo:
        before = tree(Path(repo.path))
        for change in (
            lambda: tagging.create(repo, "lease", WEB, expires=end),
            lambda: tagging.delete(repo, [WEB], expires=end),
        ):
            with pytest.raises(UsageError) as caught:
                change()
            assert caught.value.facts()["argument"] == "expires"
        with pytest.raises(UsageError):
            tagging.create(repo, "x", WEB, home="nowhere")
        assert {path for path in tree(Path(repo.path)) if not path.startswith("cfs-tags")} == {
            path for path in before if not path.startswith("cfs-tags")
        }


def test_dry_runs_change_nothing_and_say_the_same(repo: WriteRepository, path: Path) -> None:
    before = tree(path)
    with Repository.open(path, esp="none", run="none", booted="none") as reading:
        planned = reading.tags.create("app", WEB, dry_run=True)
        assert reading.tags.delete(WEB, DB, dry_run=True)[1].done == "deleted"
        assert reading.tags.rename(WEB, "x", dry_run=True).done == "renamed"
        assert len(reading.deployments.adopt(dry_run=True).ids) == 3
        assert len(reading.deployments.migrate(dry_run=True).rows) == 3
        assert reading.deployments.retire(dry_run=True).rows == ()
        assert reading.gc.plan().swept.objects >= 0
    assert tree(path) == before
    with repo:
        assert repo.tags.create("app", WEB) == planned


def test_deployments_get_their_refs_and_lose_them(repo: WriteRepository) -> None:
    with repo:
        rows = repo.deployments.list()
        assert len(rows) == 3
        assert {row.ref for row in rows} == {"none"}
        first = repo.deployments.get(next(row.id for row in rows if row.manifest)[:12])
        assert repo.deployments.look_up(f"@deployment/{first.id}").digest == first.manifest
        assert len(repo.deployments.create(first.id, f"@{first.manifest}").changes) == 3
        made = repo.deployments.migrate(reason="refs decide from now on")
        assert {row.done for row in made.rows} == {"complete", "migrate"}
        rows = repo.deployments.list()
        assert {row.ref for row in rows} == {"complete"}
        assert all(row.built is not None and row.built.utcoffset() is not None for row in rows)
        assert repo.tags.resolve(f"@deployment/{first.id}") == first.manifest
        assert repo.deployments.retire(grace=timedelta(0)).changes == ()
        assert [row.done for row in repo.deployments.undo_migration().rows]
        with pytest.raises(NotFoundError):
            repo.deployments.get("@booted")


def test_space_is_measured_and_freed(repo: WriteRepository) -> None:
    with repo:
        usage = repo.df(without=[WEB])
        (row,) = [row for row in usage.rows if row.name == WEB]
        assert usage.without == row.freed
        assert repo.why(WEB).live
        repo.tags.delete(WEB)
        plan = repo.gc.plan()
        done = repo.gc.collect(reason="make room")
        assert plan.swept.objects == done.swept.objects > 0
        assert repo.gc.plan().swept.objects == 0
        assert repo.fsck(content=True).findings == ()
        assert repo.repair().plan.empty


def test_images_come_and_go(repo: WriteRepository, tmp_path: Path) -> None:
    app_image(tmp_path / "layout", "app")
    with repo:
        planned = repo.import_image(f"oci:{tmp_path}/layout:app", "app:1", dry_run=True)
        done = repo.import_image(f"oci:{tmp_path}/layout:app", "app:1")
        assert [name for name, _ in planned.plan.names] == [made.name for made in done.tags.results] == ["app:1"]
        assert (planned.objects, planned.tags.results) == (0, ())
        assert repo.tags.get("app:1") is not None
        out = repo.export_image("app:1", f"oci:{tmp_path}/out:app", compression="gzip")
        assert out.plan.image.digest == repo.image("app:1").digest == done.plan.images[0].digest
        assert repo.raw("app:1", "manifest")
        assert [change.path for change in repo.diff("app:1", WEB, ["usr/bin/app"]).files] == ["usr/bin/app"]
    assert (tmp_path / "out/index.json").exists()


def blocks() -> list[str]:
    """Those that need nothing to be done before; tests/docs runs all of them."""
    return re.findall(r"(?<!-->\n)```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks())))
def test_an_example_of_the_documentation_runs(number: int, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = blocks()[number].replace("/sysroot/composefs", str(path))

    exec(compile(text, f"docs/python.md, example {number}", "exec"), {"__name__": "example"})

    assert capsys.readouterr().out


def test_the_table_of_the_documentation_has_every_method() -> None:
    from cfs_tags.api.collection import Collection
    from cfs_tags.api.deployments import Deployments
    from cfs_tags.api.tags import Tags

    said = set(re.findall(r"`(\w+)[`(]", (ROOT / "docs/python.md").read_text()))
    for kind in (Repository, Tags, Deployments, Collection):
        own = {name for name, member in vars(kind).items() if callable(member) and not name.startswith("_")}
        assert own - said <= {"open", "writable", "note", "meant", "in_state", "planned_changes"}


PROGRAM = """
from datetime import datetime, timedelta

from cfs_tags import Instruction, Repository
from cfs_tags.errors import CfsTagsError, LockTimeout


def lines(path: str) -> list[str]:
    with Repository.open(path) as repo:
        ends: list[datetime | None] = [tag.ends for tag in repo.tags.list("x*", owners=["app"])]
        return [f"{row.id} {row.built}" for row in repo.deployments.list()] + [str(end) for end in ends]


def move(path: str) -> str:
    try:
        with Repository.open(path, write=True) as repo:
            done = repo.tags.create("a", "b", expires=timedelta(days=7), timeout=timedelta(seconds=1))
            repo.tags.update([Instruction("delete", "c")])
            freed: int = repo.gc.collect(grace=timedelta(hours=1)).swept.allocated
            return f"{done.done} {freed}"
    except LockTimeout as error:
        return str(error.holders)
    except CfsTagsError as error:
        return error.code
"""
MISTAKES = {
    'repo.tags.create("a", "b", expires="7d")': "arg-type",
    'repo.tags.list(owners=["nobody"])': "list-item",
    "repo.gc.collect(grace=7.0)": "arg-type",
    'repo.tags.create("a", "b", home="nowhere")': "arg-type",
    "repo.tags.get(7)": "arg-type",
    "repo.nothing()": "attr-defined",
}


def test_a_strict_type_checker_takes_a_program_and_finds_its_mistakes(tmp_path: Path) -> None:
    wrong = "".join(f"    {line}\n" for line in MISTAKES)
    (tmp_path / "good.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(
        f"from cfs_tags import WriteRepository\n\n\ndef f(repo: WriteRepository) -> None:\n{wrong}"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(ROOT / ".mypy_cache/api")]

    done = subprocess.run(
        [*command, "good.py", "wrong.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    found = [
        re.fullmatch(r"(\w+)\.py:(\d+): error: .*\[([\w-]+)\]", line) for line in done.stdout.splitlines() if ": error:" in line
    ]
    assert [(one[1], int(one[2]), one[3]) for one in found if one] == [
        ("wrong", 5 + number, code) for number, code in enumerate(MISTAKES.values())
    ], done.stdout
