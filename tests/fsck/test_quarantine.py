"""How refs that were taken out come back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.errors import IncompleteTarget
from cfs_tags.fsck import quarantine
from cfs_tags.fsck.repair import repair
from cfs_tags.repo import layout
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit
from fsck.damage import APP, check, codes, drop, failing, relink, stream
from support.raising import raises
from support.refusing import refused

TAG = "streams/refs/oci/quay.io%2Fapps%2Fweb:1"


def take_out(repo: Path, path: str = TAG, *owners: str) -> str:
    """Have a ref taken out whose target, the manifest of an app, is elsewhere for the moment; gives where."""
    target = repo / stream(repo, APP, "manifest")
    if path != TAG:
        relink(repo / path, "../" * (path.count("/") - 1) + target.name)
    objects, link = repo / "objects", repo.parent / "link"
    target.rename(link)
    objects.rename(repo.parent / "objects")
    objects.mkdir()
    with Repository.open(repo, write=True) as opened:
        repair(opened, owners=("app", "bootc", "deployment", "foreign", *owners), jobs=1)
    assert not (repo / path).is_symlink()
    return target.name


def bring_back(repo: Path, name: str) -> None:
    """The target is there again."""
    (repo / "objects").rmdir()
    (repo.parent / "objects").rename(repo / "objects")
    (repo.parent / "link").rename(repo / "streams" / name)


def restore(repo: Path, name: str, *owners: str) -> None:
    with Repository.open(repo, write=True) as opened:

        def plan() -> edit.TagPlan:
            made = quarantine.plan_unquarantine(opened, name, owners=owners)
            assert made is not None
            return made

        run.transact(opened, plan)
        quarantine.forget(opened)


@pytest.mark.parametrize("name", [APP, TAG])
def test_a_tag_comes_back_by_its_name_or_its_path(repo: Path, name: str) -> None:
    before = os.readlink(repo / TAG)
    target = take_out(repo)
    bring_back(repo, target)

    restore(repo, name)

    assert os.readlink(repo / TAG) == before
    assert not (repo / quarantine.file_of(TAG, before)).exists()


@pytest.mark.parametrize("path", ["streams/refs/ostree/os", "streams/refs/deep/er/still"])
def test_a_foreign_ref_comes_back_where_its_owner_is_named(repo: Path, path: str) -> None:
    target = take_out(repo, path)
    bring_back(repo, target)

    with raises("owner-refused"):
        restore(repo, path)
    restore(repo, path, "foreign")

    assert os.readlink(repo / path).endswith(target)


def test_it_does_not_come_back_before_its_target_is_there(repo: Path) -> None:
    take_out(repo)

    with pytest.raises(IncompleteTarget):
        restore(repo, APP)

    assert not (repo / TAG).is_symlink()
    assert (repo / quarantine.file_of(TAG, f"../../{Path(stream_name(repo)).name}")).exists()


def stream_name(repo: Path) -> str:
    records = [json.loads(path.read_text()) for path in (repo / layout.QUARANTINE).iterdir()]
    return str(next(record["link"] for record in records if record["ref"] == TAG))


def test_where_something_stands_again_the_record_counts_for_nothing(repo: Path) -> None:
    target = take_out(repo)
    bring_back(repo, target)
    relink(repo / TAG, f"../../{target}")

    with Repository.open(repo) as opened:
        assert quarantine.plan_unquarantine(opened, APP) is None
        assert quarantine.plan_unquarantine(opened, "unknown") is None


@pytest.mark.parametrize(
    "facts",
    [
        {"ref": "../../etc/passwd", "link": "x", "time": "t", "reason": "r"},
        {"ref": "streams/refs/../../x", "link": "x", "time": "t", "reason": "r"},
        {"ref": "objects/refs/x", "link": "x", "time": "t", "reason": "r"},
        {"ref": TAG, "link": 7, "time": "t", "reason": "r"},
        {"ref": TAG, "time": "t", "reason": "r"},
        [],
        None,
    ],
)
def test_a_record_that_we_would_not_have_written_is_named_and_not_followed(repo: Path, facts: object) -> None:
    known = facts if isinstance(facts, dict) else {}
    path = repo / quarantine.file_of(str(known.get("ref")), str(known.get("link")))
    path.parent.mkdir()
    path.write_text(json.dumps(facts))

    assert codes(check(repo).findings) == {"damaged-state": [str(path.relative_to(repo))]}
    with Repository.open(repo) as opened:
        assert quarantine.plan_unquarantine(opened, str(known.get("ref"))) is None


def test_losing_the_quarantine_loses_no_content(repo: Path) -> None:
    target = take_out(repo)
    bring_back(repo, target)
    shutil.rmtree(repo / layout.QUARANTINE)

    assert [code for code, _ in failing(repo) if code == "missing-object"] == []


def test_a_name_that_is_not_utf8_comes_back(repo: Path) -> None:
    path = os.fsdecode(b"streams/refs/oci/\xff")
    relink(repo / path, os.readlink(repo / TAG))
    target = repo / stream(repo, APP, "manifest")
    text = drop(target)
    target.symlink_to("../objects/00/" + "0" * 126)
    with Repository.open(repo, write=True) as opened:
        first = repair(opened, jobs=1)
    # its object is there, so the link is made again and no ref goes
    assert [one.path for one in first.plan.links] == [f"streams/{target.name}"]
    assert os.readlink(target) == text


def test_a_record_stays_where_it_cannot_be_read_whether_the_ref_is_back(repo: Path) -> None:
    name = take_out(repo)
    with Repository.open(repo, write=True) as opened:
        with refused(os.path.basename(TAG)):
            quarantine.forget(opened)
        assert TAG in [record.path for record in quarantine.records(opened)]

    bring_back(repo, name)
    restore(repo, APP)
    assert (repo / TAG).is_symlink()
