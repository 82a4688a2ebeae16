"""A kept index goes where its tag goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cfs_tags.apps import platforms
from cfs_tags.repo import layout
from support.images import Image, Layer, app_image, base_layer, build_image, build_index, file
from support.peers import Cfsctl
from support.trees import tree

if TYPE_CHECKING:
    from apps.conftest import Run

NAME = "quay.io/app:1"


@pytest.fixture
def images(run: Run, tmp_path: Path) -> dict[str, Image]:
    """Imported with their index: that of this machine first."""
    names = [platforms.this_machine().architecture, "mips"]
    made = {
        name: build_image(
            tmp_path / "layout", name, [base_layer(), Layer([file(f"usr/{name}", b"x" * 99)])], config={"architecture": name}
        )
        for name in names
    }
    build_index(tmp_path / "layout", "multi", made)
    run("import", f"oci:{tmp_path / 'layout'}:multi", NAME, "--all-platforms", "--keep-index")
    return made


def indexes(repo: Path) -> list[str]:
    return sorted(layout.decode_name(path.name) for path in (repo / layout.INDEXES).glob("*"))


def test_it_goes_with_a_tag_that_is_deleted(run: Run, repo: Path, images: dict[str, Image], cfsctl: Cfsctl) -> None:
    assert indexes(repo) == [NAME]
    run("delete", NAME)
    assert indexes(repo) == []
    cfsctl.assert_healthy(repo)


def test_it_takes_the_new_name_and_replaces_what_stands_there(
    run: Run, repo: Path, images: dict[str, Image], tmp_path: Path
) -> None:
    run("rename", NAME, "other")
    assert indexes(repo) == ["other"]
    run("import", f"oci:{tmp_path / 'layout'}:multi", NAME, "--keep-index")
    run("rename", "other", NAME, "--force")
    assert indexes(repo) == [NAME]
    app = app_image(tmp_path / "layout", "app")
    run("import", app.source, "app")
    run("rename", "app", NAME, "--force")
    assert indexes(repo) == []


def test_it_stays_with_a_tag_that_moves_to_another_of_its_images_and_goes_from_one_that_moves_elsewhere(
    run: Run, repo: Path, images: dict[str, Image], tmp_path: Path
) -> None:
    run("create", NAME, f"{NAME}-linux-mips", "--force")
    assert indexes(repo) == [NAME]
    app = app_image(tmp_path / "layout", "app")
    run("import", app.source, NAME, "--force")
    assert indexes(repo) == []


def test_it_comes_back_with_a_tag_that_is_restored(run: Run, repo: Path, images: dict[str, Image], tmp_path: Path) -> None:
    run("delete", NAME)
    run("restore", NAME)
    assert indexes(repo) == [NAME]
    app = app_image(tmp_path / "layout", "app")
    run("import", app.source, NAME, "--force")
    run("restore", f"{NAME}@{{1}}")
    assert indexes(repo) == [NAME]


def test_it_stays_while_its_tag_is_in_the_trash(run: Run, repo: Path, images: dict[str, Image]) -> None:
    run("delete", NAME, "--keep-for", "1d")
    run("gc", "--grace", "0")
    assert indexes(repo) == [NAME]
    run("restore", NAME)
    assert indexes(repo) == [NAME]
    run("delete", NAME, "--keep-for", "1d")
    run("delete", f"@trash/{NAME}")
    run("gc")
    assert indexes(repo) == []


def test_one_without_its_tag_is_a_note_and_the_collector_removes_it(
    run: Run, repo: Path, images: dict[str, Image], cfsctl: Cfsctl
) -> None:
    cfsctl(repo, "oci", "untag", NAME)
    found = json.loads(run("fsck", "--json"))["result"]["findings"]
    assert [(one["code"], one["severity"]) for one in found] == [("orphaned-index", "note")]
    before = tree(repo)
    run("gc", "--dry-run")
    assert tree(repo) == before
    run("gc")
    assert indexes(repo) == []
    cfsctl.assert_healthy(repo)


def test_another_index_replaces_it(run: Run, repo: Path, images: dict[str, Image], tmp_path: Path) -> None:
    new = {
        name: build_image(tmp_path / "new", name, [base_layer()], config={"architecture": name}, labels={"v": "2"})
        for name in images
    }
    digest = build_index(tmp_path / "new", "multi", new)
    run("import", f"oci:{tmp_path / 'new'}:multi", NAME, "--keep-index", "--force")
    assert indexes(repo) == [NAME]
    assert (repo / layout.INDEXES / layout.encode_name(NAME)).readlink().name == f"oci-blob-{digest}"


def test_it_is_measured_with_its_tag(run: Run, images: dict[str, Image]) -> None:
    rows = {row["name"]: row for row in json.loads(run("df", "--json"))["result"]["names"]}

    assert [name for name in rows if "indexes" in name] == []
    assert rows[NAME]["freed"]["objects"] > 0
    run("delete", NAME, "--keep-for", "1h")
    rows = {row["name"]: row for row in json.loads(run("df", "--json"))["result"]["names"]}
    assert [name for name in rows if "indexes" in name] == []
    assert rows[f"@trash/{NAME}"]["freed"]["objects"] > 0
