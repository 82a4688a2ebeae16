"""Files that take little room and would make long work: what a check does is bounded by the bytes on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfs_tags import Repository, df, why
from cfs_tags.errors import BrokenRoots, SystemFailure
from cfs_tags.formats import erofs, splitstream, splitwriter
from cfs_tags.formats.fsverity import Measurer
from cfs_tags.fsck import objects
from cfs_tags.repo import images, verity
from cfs_tags.values import Algorithm, ContentId, Digest, ObjectId
from fsck.damage import APP, check, codes, facts, link, manifest, measure, object_at, put, relink, stream
from support.collecting import collect
from support.garbage import link_of, object_paths, outside_state, settle
from support.images import random_bytes

TIB = 1 << 40


def sparse(path: Path, size: int, *parts: tuple[int, bytes]) -> Path:
    """A file of ``size`` bytes in place of what is there: zeros that take no room, and ``parts`` at their offsets."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
    if path.stat().st_blocks * 512 > 2 << 20:
        pytest.skip("this file system keeps no holes")
    return path


def digest_of(size: int, *parts: tuple[int, bytes]) -> str:
    """The digest of such a file, by our own count."""
    measurer = Measurer(Algorithm.SHA512)
    position = 0
    for offset, data in parts:
        measurer.update_zeros(offset - position)
        measurer.update(data)
        position = offset + len(data)
    measurer.update_zeros(size - position)
    return str(measurer.digest())


def file_of(repo: Path) -> Path:
    """An object that is a file in a layer."""
    name = splitstream.parse(link(repo, stream(repo, APP, "layer", 1)).read_bytes()).object_refs[0]
    return object_at(repo, name)


SHAPES: dict[str, tuple[int, tuple[tuple[int, bytes], ...]]] = {
    "zeros": (8 * TIB, ()),
    "a byte at the end": (4 * TIB + 1, ((4 * TIB, b"x"),)),
    "data at both ends": (TIB, ((0, b"head" * 3000), (TIB - 9, b"the end. "))),
    "islands": (3 * TIB + 77, tuple((n * (TIB // 4) + n, random_bytes(str(n), 5000)) for n in range(12))),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_of_holes_is_measured_by_its_data(repo: Path, shape: str) -> None:
    size, parts = SHAPES[shape]
    path = sparse(file_of(repo), size, *parts)
    [one] = facts(repo, "wrong-object-digest", content=True)
    assert digest_of(size, *parts) in one.message
    assert one.path == str(path.relative_to(repo))
    assert codes(check(repo, content=True).findings)["wrong-stream-size"]


@pytest.mark.parametrize("size", [(1 << 21) + 3, 9 << 20])
@pytest.mark.parametrize("hole", ["head", "middle", "tail", "none"])
def test_the_digest_of_a_file_with_holes_is_that_of_its_bytes(repo: Path, size: int, hole: str) -> None:
    data = random_bytes("data", 40_000)
    offsets = {"head": [size - 40_000], "middle": [0, size - 40_000], "tail": [0], "none": range(0, size, 40_000)}[hole]
    content = bytearray(size)
    for offset in offsets:
        content[offset : offset + 40_000] = data[: size - offset]
    name = measure(bytes(content), "sha512")
    path = object_at(repo, name)
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(data[: size - offset])
        file.truncate(size)
    with Repository.open(repo) as opened:
        assert objects.measure_object(opened, name) == name


def layer_of(repo: Path, name: str, parts: list[tuple[str, int]], *, inside: bytes = b"") -> str:
    """A layer stream of objects with the sizes that they claim, in place of the app's; a path in ``streams/``."""
    writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_LAYER)
    if inside:
        writer.add_inline(inside)
    for object_id, size in parts:
        writer.add_external(ObjectId(object_id), size)
    path = f"streams/oci-layer-sha256:{name * 64}"
    made = put(repo, writer.finish())
    relink(repo / path, f"../objects/{made[:2]}/{made[2:]}")
    return path


def test_a_layer_of_holes_is_not_hashed(repo: Path) -> None:
    """The object is named by its digest, and the sizes are right: everything is as it says."""
    name = digest_of(2 * TIB)
    sparse(object_at(repo, name), 2 * TIB)
    path = layer_of(repo, "7", [(name, 2 * TIB)])
    found = codes(check(repo, content=True).findings)
    assert found["sparse-content"] == [path]
    assert "wrong-object-digest" not in found
    assert "sparse-content" not in codes(check(repo).findings)


def test_a_layer_of_one_file_again_and_again_is_not_hashed(repo: Path) -> None:
    """Each copy has its header; without holes, too, the same bytes would be read for hours."""
    data = random_bytes("again", 1 << 20)
    name = put(repo, data)
    headers = [b"%0512d" % n for n in range(3000)]
    writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_LAYER)
    for header in headers:
        writer.add_inline(header)
        writer.add_external(ObjectId(name), len(data))
    path = f"streams/oci-layer-sha256:{'6' * 64}"
    made = put(repo, writer.finish())
    relink(repo / path, f"../objects/{made[:2]}/{made[2:]}")
    assert codes(check(repo, content=True).findings)["sparse-content"] == [path]


@pytest.mark.parametrize("which", ["manifest", "config", "layer", "image"])
def test_a_stream_or_image_of_holes_is_not_read(repo: Path, which: str) -> None:
    """What it leads to is not known: a collection stops, and everything else says so and goes on."""
    if which == "image":
        ref = next((repo / "images/refs").rglob("*/deployments/*"))
        path = link(repo, f"images/{ref.name}")
    else:
        path = link(repo, stream(repo, APP, which))
    data = path.read_bytes()
    digest = Digest.parse(manifest(repo, APP))
    before = outside_state(repo)
    sparse(path, 1 << 30, (0, data))
    assert [one.path for one in facts(repo, "unreadable")] == [str(path.relative_to(repo))]
    assert "holes" in facts(repo, "unreadable")[0].message
    for keep_broken in (False, True):
        with pytest.raises(BrokenRoots, match="holes"):
            collect(repo, keep_broken=keep_broken)
    assert outside_state(repo) == before
    with Repository.open(repo) as opened, opened.locked("shared"):
        assert any("holes" in problem for problem in df.measure(opened).problems)
        target = opened.stream_object(ContentId.manifest(digest))
        assert target is not None
        assert any("holes" in problem for problem in why.explain(opened, target).problems)
        if which in ("config", "layer"):
            with pytest.raises(SystemFailure, match="holes"):
                images.missing_content(opened, digest)


def test_of_an_image_with_a_long_hole_behind_it_all_that_it_names_stays(repo: Path) -> None:
    """It is longer than any image, so that it is damaged: a collection that is told to goes on, and searches what is there."""
    ref = next((repo / "images/refs").rglob("*/deployments/*"))
    path = link(repo, f"images/{ref.name}")
    data = path.read_bytes()
    for other in [*(repo / "streams/refs").rglob("*"), *(repo / "images/refs").rglob("*")]:
        if other.is_symlink() and other != ref:
            other.unlink()
    with Repository.open(repo) as opened, opened.map(ObjectId(ref.name), "a test") as whole:
        needed = {str(one) for one in erofs.object_refs(whole, Algorithm.SHA512)}
    assert needed
    sparse(path, TIB, (0, data))
    settle()
    assert collect(repo, keep_broken=True, no_sysroot=True).problems
    assert needed <= set(object_paths(repo))


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + (1 << 18), 60 << 20])
def test_a_file_that_is_mostly_data_or_small_is_mapped(repo: Path, size: int, tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", size, (0, bytes(1 << 20)[: size // 3] or b"x"), (size - 4096, b"y" * 4096))
    fd = os.open(path, os.O_RDONLY)
    try:
        assert not verity.is_sparse(fd)
        with verity.map_file(fd) as mapped:
            assert len(mapped) == size
    finally:
        os.close(fd)


def empty_chunks(count: int) -> bytes:
    """A layer stream of some KB that names one empty object ``count`` times."""
    body = splitwriter.deflate(bytes(8 * count))
    names = splitwriter.deflate(b"")
    empty = bytes.fromhex(measure(b"", "sha512"))
    start = 112 + len(empty)
    ends = [112, 112, 112, start, start, start + len(body), start + len(body), start + len(body) + len(names)]
    head = splitstream.HEADER.pack(b"SplitStream", 0, 0, 2, 12, 32, 112)
    info = splitstream.INFO.pack(*ends, splitstream.CONTENT_TYPE_LAYER, 1)
    return head + info + empty + body + names


@pytest.mark.parametrize("content", [False, True])
def test_an_empty_object_again_and_again_is_damage(repo: Path, content: bool) -> None:
    put(repo, b"")
    data = empty_chunks(1 << 23)
    assert len(data) < 10_000
    made = put(repo, data)
    path = f"streams/oci-layer-sha256:{'5' * 64}"
    relink(repo / path, f"../objects/{made[:2]}/{made[2:]}")
    link_of(repo, "streams/refs/other/bomb", Path(path).name)
    assert codes(check(repo, content=content).findings)["bad-stream"] == [path]
    collect(repo)  # goes by the tables alone
    assert (repo / path).is_symlink()


@pytest.fixture
def repo(pristine: Path, tmp_path: Path) -> Path:
    """A copy to be damaged; its files are its own."""
    from support.trees import copy_tree

    return copy_tree(pristine, tmp_path / "composefs")
