"""What only reading finds: flipped bytes, and blocks that the system cannot read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from cfs_tags import Repository
from cfs_tags.fsck import objects
from cfs_tags.fsck.repair import repair
from cfs_tags.repo import beneath, verity
from cfs_tags.values import ObjectId
from fsck.damage import APP, HOST, SMALL, check, codes, facts, failing, flip, link, measure, put, relink, stream
from support.images import Cfsctl

BOTH = pytest.mark.parametrize("algorithm", ["sha512", "sha256"], indirect=True)


def _file(repo: Path) -> Path:
    """An object of several blocks that is a file."""
    return max((repo / "objects").glob("*/*"), key=lambda path: path.stat().st_size)


def _name(path: Path) -> str:
    return f"objects/{path.parent.name}/{path.name}"


@BOTH
@pytest.mark.parametrize("at", [0, 5000, -1])
def test_a_flipped_byte_in_a_file_is_found_with_content_alone(repo: Path, cfsctl: Cfsctl, at: int) -> None:
    path = _file(repo)
    flip(path, at)

    assert failing(repo) == []
    found = codes(check(repo, content=True).findings)
    assert found["wrong-object-digest"] == [_name(path)]
    # the layer that it is in: rebuilt, it has another digest
    assert len(found.pop("wrong-layer-digest")) == 1
    assert set(found) == {"wrong-object-digest"}
    assert cfsctl(repo, "fsck", check=False).returncode == 1


@BOTH
@pytest.mark.parametrize("kind", ["manifest", "config", "layer"])
def test_a_flipped_byte_in_a_stream_is_found(repo: Path, kind: str) -> None:
    path = link(repo, stream(repo, APP, kind))
    flip(path)

    assert _name(path) in codes(check(repo, content=True).findings)["wrong-object-digest"]


@BOTH
@pytest.mark.parametrize("kind", ["manifest", "config"])
def test_a_flipped_byte_in_a_document_is_found_without_content(repo: Path, kind: str) -> None:
    from cfs_tags.formats import splitstream

    path = stream(repo, APP, kind)
    name = splitstream.sole_object(link(repo, path).read_bytes())
    flip(repo / "objects" / name[:2] / name[2:], 1)

    assert (f"wrong-{kind}-digest", path) in failing(repo)


@BOTH
def test_a_flipped_byte_in_an_image_is_found(repo: Path) -> None:
    path = link(repo, f"images/{next(path.name for path in (repo / 'images').iterdir() if path.is_symlink())}")
    flip(path, 1024 + 100)

    assert codes(check(repo, content=True).findings)["wrong-object-digest"] == [_name(path)]


def test_a_layer_of_other_content_is_found_though_every_object_is_right(repo: Path, cfsctl: Cfsctl) -> None:
    path = stream(repo, SMALL, "layer")
    relink(repo / path, os.readlink(repo / stream(repo, HOST, "layer", 1)))

    cfsctl(repo, "fsck")
    cfsctl(repo, "oci", "fsck")
    assert ("wrong-layer-digest", path) not in failing(repo)
    assert ("wrong-layer-digest", path) in failing(repo, content=True)


@BOTH
@pytest.mark.parametrize("size", [0, 1, 64, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 600 * 4096 + 7])
def test_objects_of_every_size_measure_as_the_plain_way_says(new_repo: Callable[..., Path], algorithm: str, size: int) -> None:
    repo = new_repo(algorithm=algorithm)
    data = os.urandom(size)
    name = measure(data, algorithm)
    (repo / "objects" / name[:2]).mkdir(parents=True, exist_ok=True)
    (repo / "objects" / name[:2] / name[2:]).write_bytes(data)

    with Repository.open(repo) as opened:
        assert objects.measure_object(opened, name) == name
    assert failing(repo, content=True) == []


def test_an_object_that_is_not_needed_is_measured_too(repo: Path) -> None:
    name = put(repo, b"garbage")
    path = repo / "objects" / name[:2] / name[2:]
    flip(path)

    assert failing(repo, content=True) == [("wrong-object-digest", _name(path))]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_what_the_system_cannot_read_is_a_finding(repo: Path, number: int) -> None:
    path = _file(repo)
    original = beneath.open_at

    def fail(fd: int, name: str, *rest: int) -> int:
        if name.endswith(path.name):
            raise OSError(number, os.strerror(number), name)
        return original(fd, name, *rest)

    with patch.object(beneath, "open_at", fail):
        found = facts(repo, "unreadable", content=True)

    assert _name(path) in [one.path for one in found]
    assert os.strerror(number) in found[0].message


@pytest.mark.parametrize("tree", ["streams", "images", "streams/refs"])
def test_so_is_a_link_and_nothing_is_taken_out_for_it(repo: Path, tree: str) -> None:
    host = os.readlink(repo / "streams/refs/oci" / HOST.replace("/", "%2F")).rpartition("/")[2]
    image = next((repo / "images/refs/cfs-tags/deployments").iterdir()).name
    path = {
        "streams": f"streams/{host}",
        "images": f"images/{image}",
        "streams/refs": f"streams/refs/cfs-tags/configs/{image}",
    }[tree]
    original = os.readlink

    def fail(name: object, **keywords: object) -> object:
        below = original(f"/proc/self/fd/{keywords['dir_fd']}") if "dir_fd" in keywords else ""
        if f"{below}/{name}".endswith(f"/{path}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(name))
        return original(name, **keywords)  # type: ignore[call-overload]

    with patch.object(os, "readlink", fail):
        found = facts(repo, "unreadable")
        with Repository.open(repo, write=True) as opened:
            done = repair(opened, owners=("bootc", "deployment", "foreign"), jobs=1)

    assert path in [one.path for one in found]
    assert done.plan.empty
    assert failing(repo) == []


# -- fs-verity: the file systems of test machines seldom have it, so the kernel's answer is made ---------------------------


def _kernel(repo: Path, answers: dict[str, str | None]) -> Callable[[int], str | None]:
    """Answers as the kernel does for files that were measured when they were stored; ``answers`` for single objects."""

    def digest(fd: int) -> str | None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        name = path.parent.name + path.name
        return answers.get(name, name)

    return digest


def test_a_secure_repository_whose_objects_have_their_digests_is_healthy(repo: Path) -> None:
    with patch.object(verity, "verity_digest", _kernel(repo, {})):
        assert check(repo).findings == ()


def test_an_object_without_fs_verity_in_a_secure_repository_is_found(repo: Path) -> None:
    path = _file(repo)
    name = path.parent.name + path.name

    with patch.object(verity, "verity_digest", _kernel(repo, {name: None})):
        assert failing(repo) == [("no-verity", _name(path))]


def test_an_object_that_was_measured_as_something_else_is_found(repo: Path) -> None:
    path = _file(repo)
    name = path.parent.name + path.name

    with patch.object(verity, "verity_digest", _kernel(repo, {name: "0" * 128})):
        assert failing(repo) == [("wrong-verity-digest", _name(path))]


def test_a_flipped_block_that_the_kernel_does_not_notice_is_found_by_reading(repo: Path) -> None:
    path = _file(repo)
    flip(path)

    with patch.object(verity, "verity_digest", _kernel(repo, {})):
        assert failing(repo) == []
        assert ("wrong-object-digest", _name(path)) in failing(repo, content=True)


def test_without_meta_json_the_objects_tell_that_each_needs_fs_verity(repo: Path) -> None:
    path = sorted((repo / "objects").glob("*/*"))[-1]
    name = path.parent.name + path.name
    (repo / "meta.json").unlink()

    with patch.object(verity, "verity_digest", _kernel(repo, {name: None})):
        assert ("no-verity", _name(path)) in failing(repo)


def test_without_fs_verity_on_meta_json_no_object_needs_it(repo: Path) -> None:
    with Repository.open(repo) as opened:
        assert not opened.is_secure
        fd = opened.open_object(ObjectId(_file(repo).parent.name + _file(repo).name), "test")
        assert verity.verity_digest(fd) is None
        os.close(fd)
