"""The helpers of this suite do what the other tests rely on."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from cfs_tags.repo import fsops
from support.images import (
    app_image,
    base_layer,
    build_artifact,
    host_image,
    pull_image,
    static_image,
    umoci_image,
    umoci_truncated_image,
)
from support.interrupt import count_calls, every_stop, failed_after, kill_after, stopped_after, torn_kill_after
from support.peers import Cfsctl
from support.peers_beside import can_lock, hold_exclusive, hold_shared
from support.trees import tree


def three_changes(where: Path) -> None:
    fd = os.open(where, os.O_RDONLY)
    try:
        fsops.make_directory(fd, "d")
        fsops.create_file(fd, "d/f", b"12345678")
        fsops.make_link(fd, "l", "d/f")
    finally:
        os.close(fd)


def fresh(home: Path, number: int) -> Path:
    path = home / f"{number}"
    path.mkdir()
    return path


@pytest.mark.parametrize("how", [stopped_after, kill_after, failed_after(errno.ENOSPC), failed_after(errno.EIO, once=True)])
def test_every_change_is_interrupted_once_and_the_last_run_finishes(tmp_path: Path, how: object) -> None:
    attempts = list(every_stop(lambda n: fresh(tmp_path, n), three_changes, how))  # type: ignore[arg-type]

    assert [attempt.interrupted for attempt in attempts] == [True, True, True, False]
    assert [sorted(tree(attempt.subject)) for attempt in attempts] == [[], ["d"], ["d", "d/f"], ["d", "d/f", "l"]]


def test_a_torn_write_leaves_half_of_the_bytes(tmp_path: Path) -> None:
    assert torn_kill_after(1, lambda: three_changes(tmp_path))

    assert (tmp_path / "d" / "f").read_bytes() == b"1234"


def test_a_function_that_hides_a_failed_change_is_found_out(tmp_path: Path) -> None:
    def careless() -> None:
        with contextlib.suppress(OSError):
            three_changes(tmp_path)

    with pytest.raises(AssertionError, match="reported success though change 2 failed"):
        failed_after(errno.ENOSPC)(1, careless)


def test_a_failure_in_the_forked_child_comes_out_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="FileNotFoundError"):
        kill_after(5, lambda: three_changes(tmp_path / "absent"))


def test_calls_are_recorded_in_order(tmp_path: Path) -> None:
    with count_calls() as calls:
        three_changes(tmp_path)

    assert calls.names == ["make_directory", "create_file", "make_link"]


def test_a_tree_shows_content_modes_links_and_leaves_out_what_is_excluded(tmp_path: Path) -> None:
    three_changes(tmp_path)
    (tmp_path / "cfs-tags" / "tmp").mkdir(parents=True)
    before = tree(tmp_path, exclude=["cfs-tags"])

    assert list(before) == ["d", "d/f", "l"]
    assert before["l"].target == "d/f"
    (tmp_path / "d" / "f").write_bytes(b"12345679")
    assert tree(tmp_path, exclude=["cfs-tags"]) != before


def test_a_repository_made_for_a_test_is_its_own(new_repo, cfsctl: Cfsctl, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first, second = new_repo(tmp_path / "a", "sha256"), new_repo(tmp_path / "b", "sha256")
    pull_image(cfsctl, first, app_image(tmp_path / "layout", "web"), "quay.io/apps/web:1")

    assert list(cfsctl.tags(first)) == ["quay.io/apps/web:1"]
    assert cfsctl.tags(second) == {}
    cfsctl.assert_healthy(first)


def test_content_in_boot_makes_the_boot_image_another_than_the_plain_one(repo: Path, cfsctl: Cfsctl, tmp_path: Path) -> None:
    for version, boot_content in (("1", False), ("2", True)):
        image = host_image(tmp_path / "layout", version, boot_content=boot_content)
        pull_image(cfsctl, repo, image, f"host-{version}", bootable=True)
        plain, boot = cfsctl.images_of(repo, f"host-{version}")

        assert plain is not None
        assert boot is not None
        assert (plain != boot) is boot_content


def test_images_of_one_layout_share_a_layer(tmp_path: Path) -> None:
    shared = base_layer()
    web, db = (app_image(tmp_path / "layout", name, [shared]) for name in ("web", "db"))

    assert set(web.diff_ids) & set(db.diff_ids) == {shared.diff_id}
    assert shared.compressed("zstd").diff_id == shared.diff_id
    assert shared.compressed("zstd").digest != shared.digest


def test_cfsctl_stores_an_image_without_usr_and_does_not_tag_it(repo: Path, cfsctl: Cfsctl, tmp_path: Path) -> None:
    image = static_image(tmp_path / "layout")

    assert cfsctl(repo, "oci", "pull", image.source, "static", check=False).returncode != 0
    assert (repo / "streams" / f"oci-manifest-{image.manifest_digest}").is_symlink()
    assert cfsctl.tags(repo) == {}


def test_cfsctl_does_not_pull_an_artifact(repo: Path, cfsctl: Cfsctl, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "web")
    artifact = build_artifact(tmp_path / "layout", "signature", [("text/plain", b"signed")], subject=image)

    assert artifact.manifest["subject"]["digest"] == image.manifest_digest
    assert cfsctl(repo, "oci", "pull", artifact.source, "s", check=False).returncode != 0


def test_umoci_makes_an_image_that_cfsctl_pulls_and_one_that_it_refuses(
    repo: Path, cfsctl: Cfsctl, umoci: Path, tmp_path: Path
) -> None:
    def change(root: Path) -> None:
        (root / "usr" / "bin").mkdir(parents=True)
        (root / "usr" / "bin" / "app").write_bytes(b"x" * 1000)

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "y").write_bytes(b"y" * 999)
    whole = umoci_image(umoci, tmp_path / "layout", "whole", change, tmp_path / "bundle")
    cut = umoci_truncated_image(umoci, tmp_path / "layout", "cut", tmp_path / "tree")

    cfsctl(repo, "oci", "pull", whole, "whole")
    assert cfsctl(repo, "oci", "pull", cut, "cut", check=False).returncode != 0
    assert list(cfsctl.tags(repo)) == ["whole"]


def test_a_transaction_of_cfsctl_holds_the_repository_shared(repo: Path, cfsctl: Cfsctl) -> None:
    with hold_shared(cfsctl, repo):
        assert can_lock(repo, "shared")
        assert not can_lock(repo, "exclusive")
    assert can_lock(repo, "exclusive")


def test_an_exclusive_holder_shuts_everybody_out(repo: Path) -> None:
    with hold_exclusive(repo):
        assert not can_lock(repo, "shared")
    assert can_lock(repo, "shared")
