"""Collecting and checking where the kernel guards every object."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.images import random_bytes
from support.peers import Cfsctl
from support.trees import tree
from vm.guest.rig import Run, Shop, assert_reads_guarded, flip, guarded_copy, objects_of, unguarded, verity_of


def test_we_collect_what_cfsctl_collects(cfs_tag: Run, cfsctl: Cfsctl, shop: Shop) -> None:
    ours = shop.path
    before = set(objects_of(ours))
    cfsctl(ours, "oci", "untag", "first")
    theirs = guarded_copy(ours, ours.with_name(f"{ours.name}-theirs"))

    cfs_tag(ours, "gc")
    cfsctl(theirs, "gc")

    assert tree(ours, exclude={"cfs-tags"}) == tree(theirs)
    assert set(objects_of(ours)) < before
    assert unguarded(ours) == []
    cfsctl.assert_healthy(ours)


def test_where_nothing_is_left_meta_json_says_that_the_repository_is_secure(cfs_tag: Run, cfsctl: Cfsctl, shop: Shop) -> None:
    ours = shop.path
    theirs = guarded_copy(ours, ours.with_name(f"{ours.name}-theirs"))
    for path in (ours, theirs):
        (path / "meta.json").unlink()

    cfs_tag(ours, "delete", "first", "second")
    assert cfs_tag(ours, "gc", "--json").result["meta_json"]
    cfsctl(theirs, "gc")

    assert objects_of(ours) == {}
    assert (ours / "meta.json").read_bytes() == (theirs / "meta.json").read_bytes()
    assert verity_of(ours / "meta.json") == verity_of(theirs / "meta.json")
    assert verity_of(ours / "meta.json") is not None
    cfsctl(ours, "--no-upgrade", "--require-verity", "fsck")


def test_the_kernel_mounts_what_is_left_and_reads_all_of_it_guarded(
    cfs_tag: Run, cfsctl: Cfsctl, shop: Shop, mounted: Path
) -> None:
    cfs_tag(shop.path, "delete", "second")
    cfs_tag(shop.path, "gc")

    cfsctl(shop.path, "--require-verity", "oci", "mount", "first", mounted)

    assert_reads_guarded(mounted, shop.first)
    assert unguarded(shop.path) == []


def test_a_flipped_bit_is_found_by_reading_the_content_alone(cfs_tag: Run, cfsctl: Cfsctl, shop: Shop) -> None:
    content = random_bytes("first", 9000)
    name, path = next(item for item in objects_of(shop.path).items() if item[1].read_bytes() == content)
    assert cfs_tag(shop.path, "fsck", "--content", "--json").result["ok"]

    flip(path, 5000)
    try:
        assert verity_of(path) == name
        cfsctl(shop.path, "fsck")
        assert cfs_tag(shop.path, "fsck", "--json").result["ok"]

        said = cfs_tag(shop.path, "fsck", "--content", "--json", status=6).result
        objects = [(one["code"], one["path"]) for one in said["findings"] if one["path"].startswith("objects/")]
        assert objects == [("unreadable", str(path.relative_to(shop.path)))]
    finally:
        flip(path, 5000)
    assert cfs_tag(shop.path, "fsck", "--content", "--json").result["ok"]


def test_an_object_that_lost_its_guard_is_found_by_both_programs(cfs_tag: Run, cfsctl: Cfsctl, shop: Shop) -> None:
    content = random_bytes("second", 5000)
    path = next(path for path in objects_of(shop.path).values() if path.read_bytes() == content)
    path.unlink()
    path.write_bytes(content)

    said = cfs_tag(shop.path, "fsck", "--json", status=6).result

    found = [(one["code"], one["path"]) for one in said["findings"]]
    assert ("no-verity", str(path.relative_to(shop.path))) in found
    assert cfsctl(shop.path, "fsck", check=False).returncode != 0


@pytest.mark.parametrize("what", ["file", "image"])
def test_a_repair_from_a_source_gives_it_back_with_its_guard(cfs_tag: Run, cfsctl: Cfsctl, shop: Shop, what: str) -> None:
    """The EROFS image has wrong bytes besides."""
    names = cfsctl.images_of(shop.path, "second")
    content = random_bytes("second", 5000)
    name = next(
        name
        for name, path in objects_of(shop.path).items()
        if (path.read_bytes() == content if what == "file" else name in names)
    )
    path = objects_of(shop.path)[name]
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole if what == "file" else whole[:-1] + b"?")

    cfs_tag(shop.path, "fsck", "--repair", "--content", "--from", shop.second.source, "--json")

    assert verity_of(path) == name
    assert path.read_bytes() == whole
    cfsctl(shop.path, "fsck")


@pytest.mark.parametrize("part", ["layer", "image"])
def test_what_cannot_be_read_stops_the_collector_before_it_deletes(cfs_tag: Run, cfsctl: Cfsctl, shop: Shop, part: str) -> None:
    repo = shop.path
    if part == "layer":
        path = repo / "streams" / f"oci-layer-{shop.first.layers[1].diff_id}"
    else:
        (name, _) = cfsctl.images_of(repo, "first")
        path = repo / "images" / str(name)
        (repo / "images" / "refs").mkdir()
        (repo / "images" / "refs" / "kept").symlink_to(f"../{name}")
    damaged = path.resolve()
    cfs_tag(repo, "delete", "second")
    before = tree(repo, exclude={"cfs-tags"})

    flip(damaged, 100)
    try:
        said = cfs_tag(repo, "gc", "--json", status=6)
        shown = cfs_tag(repo, "fsck", "--json", status=6).result
    finally:
        flip(damaged, 100)

    assert damaged.name in str(said.failure)
    assert str(damaged.relative_to(repo)) in [one["path"] for one in shown["findings"]]
    assert tree(repo, exclude={"cfs-tags"}) == before
    assert cfs_tag(repo, "gc", "--json").result["objects"] > 0
    cfsctl(repo, "fsck")
