"""What we write into a repository that needs fs-verity: the kernel guards it by the digest that is its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.apps.importing import layer
from cfs_tags.errors import SystemFailure
from cfs_tags.formats import fsverity, splitstream, splitwriter
from cfs_tags.repo import layout
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.values import ContentId
from support.images import Image, random_bytes
from support.peers import Cfsctl
from support.trees import tree
from vm.guest.rig import (
    PLAIN,
    PLAIN_DISK,
    NewRepo,
    Run,
    Shop,
    assert_reads_guarded,
    mount,
    objects_of,
    unguarded,
    unmount,
    verity_of,
)

SIZES = (0, 1, 4096, 4097, 129 * 4096)
"""Bytes: nothing, below and above one block, and more blocks than one block of sha256 or sha512 digests is for."""


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_objects_and_streams_that_we_add_are_guarded_by_the_digest_that_names_them(
    cfsctl: Cfsctl, empty: NewRepo, algorithm: str
) -> None:
    path = empty(algorithm)
    with Repository.open(path, write=True) as repo:
        assert repo.is_secure
        for size in SIZES:
            data = random_bytes(f"{size}", size)
            object_id = ObjectStore(repo).add(data)
            assert verity_of(path / layout.object_path(object_id)) == object_id
            assert ObjectStore(repo).add(data) == object_id
            assert repo.read_object(object_id, size, "x") == data
        writer = splitwriter.Writer(repo.algorithm, splitstream.CONTENT_TYPE_BLOB)
        writer.add_external(object_id, size)
        stream = ObjectStore(repo).add_stream(ContentId(f"oci-blob-sha256:{'0' * 64}"), writer.finish())
        assert verity_of(path / layout.object_path(stream)) == stream

    with pytest.raises(PermissionError):
        (path / layout.object_path(object_id)).open("r+b")
    assert cfsctl(path, "cat", f"oci-blob-sha256:{'0' * 64}").stdout == os.fsdecode(data)
    said = cfsctl(path, "--require-verity", "fsck").stdout
    assert f"objects: {len(SIZES) + 1}/{len(SIZES) + 1} ok" in said
    assert "streams: 1/1 ok" in said


def test_without_meta_json_the_objects_tell_that_what_we_add_is_to_be_guarded(shop: Shop) -> None:
    """As they tell cfsctl, when it makes the file."""
    (shop.path / "meta.json").unlink()
    with Repository.open(shop.path, write=True) as repo:
        assert repo.is_secure
        ObjectStore(repo).add(random_bytes("new", 5000))
    assert unguarded(shop.path) == []


@pytest.mark.parametrize("found", ["without fs-verity", "guarded as something else"])
def test_an_object_that_the_kernel_does_not_guard_is_replaced_when_it_is_stored_again(
    cfs_tag: Run, cfsctl: Cfsctl, empty: NewRepo, found: str
) -> None:
    path = empty()
    data = random_bytes("unguarded", 5000)
    with Repository.open(path, write=True) as repo:
        other = path / layout.object_path(ObjectStore(repo).add(b"x" * 5000))
        name = fsverity.measure(data, repo.algorithm)
    place = path / layout.object_path(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    if found == "without fs-verity":
        place.write_bytes(data)
    else:
        place.hardlink_to(other)
    assert cfsctl(path, "fsck", check=False).returncode != 0
    cfs_tag(path, "fsck", status=6)

    with Repository.open(path, write=True) as repo:
        assert ObjectStore(repo).add(data) == name

    assert place.read_bytes() == data
    assert unguarded(path) == []
    left = [
        str(each) for place in ("tmp", "incoming") for each in (path / "cfs-tags" / place).glob("**/*") if not each.is_dir()
    ]
    assert left == []
    cfsctl(path, "fsck")
    cfs_tag(path, "fsck")


@pytest.fixture
def torn(empty: NewRepo) -> Iterator[Path]:
    """A secure repository whose ``objects/`` is on a file system without fs-verity."""
    path = empty()
    (path / "objects").mkdir()
    mount(PLAIN_DISK, path / "objects", "ext4")
    yield path
    unmount(path / "objects")


def test_where_the_file_system_has_no_fs_verity_nothing_is_written_and_the_error_says_so(torn: Path) -> None:
    before = tree(torn / "objects"), set(torn.iterdir())

    with Repository.open(torn, write=True) as repo:
        with pytest.raises(SystemFailure, match="the file system has no fs-verity, which this repository requires"):
            ObjectStore(repo).add(b"x" * 5000)
        with pytest.raises(SystemFailure, match="no fs-verity"):
            ObjectStore(repo).add_stream(ContentId("oci-blob-sha256:" + "0" * 64), b"x" * 5000)
        assert not repo.names("streams")

    assert (tree(torn / "objects"), set(torn.iterdir()) - {torn / "streams"}) == before


def test_a_copy_on_a_file_system_without_fs_verity_needs_none_for_both_programs(
    cfs_tag: Run, cfsctl: Cfsctl, shop: Shop
) -> None:
    copy = PLAIN / "copy"
    shutil.copytree(shop.path, copy, symlinks=True)

    assert cfs_tag(copy, "list", "--json").result == cfs_tag(shop.path, "list", "--json").result
    with Repository.open(copy, write=True) as repo:
        assert not repo.is_secure
        object_id = ObjectStore(repo).add(b"x" * 5000)
    cfs_tag(copy, "create", "third", "first")
    assert object_id in objects_of(copy)
    cfsctl.assert_healthy(copy)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_we_import_is_guarded_whole_and_the_kernel_mounts_it(
    cfs_tag: Run,
    cfsctl: Cfsctl,
    empty: NewRepo,
    images: tuple[Image, Image],
    mounted: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
) -> None:
    path, image = empty(), images[0]
    monkeypatch.setattr(layer, "_SECOND_PROCESS", 0 if processes == 2 else 1 << 40)

    cfs_tag(path, "import", image.source, "first", "--mountable")

    assert cfsctl.tags(path) == {"first": image.manifest_digest}
    assert unguarded(path) == []
    cfsctl(path, "--require-verity", "fsck")
    cfsctl(path, "--require-verity", "oci", "mount", "first", mounted)
    assert_reads_guarded(mounted, image)


def test_an_import_on_a_file_system_without_fs_verity_changes_nothing(
    cfs_tag: Run, torn: Path, images: tuple[Image, Image]
) -> None:
    before = tree(torn / "objects")

    said = cfs_tag(torn, "import", images[0].source, "first", "--json", status=1)

    assert said.failure["code"] == "system-failure"
    assert "no fs-verity" in said.failure["message"]
    assert tree(torn / "objects") == before
    assert not list(torn.glob("streams/oci-*"))
    assert cfs_tag(torn, "list", "--json").result == []
