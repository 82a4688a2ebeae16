"""fs-verity digests, against the rule written out plainly, known values, and the objects of real repositories."""

from __future__ import annotations

import hashlib
import mmap
import random
from pathlib import Path

import pytest

from cfs_tags.formats.fsverity import BLOCK_SIZE, Measurer, measure
from cfs_tags.values import Algorithm, ObjectId
from support.images import Layer, build_image, directory, file, pull_image, random_bytes
from support.peers import Cfsctl
from support.recorded import objects_of_hosts

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
PER_BLOCK = {SHA256: 128, SHA512: 64}


def by_the_rule(data: bytes, algorithm: Algorithm) -> str:
    """The whole tree, level by level, from the sentences of the format."""

    def hashed(content: bytes) -> bytes:
        return hashlib.new(algorithm.value, content).digest()

    def cut(content: bytes) -> list[bytes]:
        return [content[i : i + BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0") for i in range(0, len(content), BLOCK_SIZE)]

    level = b"".join(hashed(block) for block in cut(data))
    while len(level) > algorithm.size:
        level = b"".join(hashed(block) for block in cut(level))
    descriptor = bytes((1, algorithm.number, 12, 0, 0, 0, 0, 0))
    descriptor += len(data).to_bytes(8, "little") + level.ljust(64, b"\0") + bytes(32) + bytes(144)
    return hashed(descriptor).hex()


@pytest.mark.parametrize(
    ("data", "algorithm", "digest"),
    [
        # fsverity-utils and composefs-rs have these in their own tests
        (b"", SHA256, "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
        (b"hello world", SHA256, "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64"),
        (
            b"hello world",
            SHA512,
            "18430270729d162d4e469daca123ae61893db4b0583d8f7081e3bf4f92b88ba5"
            "14e7982f10733fb6aa895195c5ae8fd2eb2c47a8be05513ce5a0c51a6f570409",
        ),
    ],
)
def test_known_digests(data: bytes, algorithm: Algorithm, digest: str) -> None:
    assert measure(data, algorithm) == digest


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_edge_of_blocks_and_levels_follows_the_rule(algorithm: Algorithm) -> None:
    per_block = PER_BLOCK[algorithm]
    two_levels = per_block * BLOCK_SIZE
    edges = (0, BLOCK_SIZE, 2 * BLOCK_SIZE, two_levels, 2 * two_levels)
    content = random_bytes("edges", 2 * two_levels + 1)
    for size in [edge + step for edge in edges for step in (-1, 0, 1) if edge + step >= 0]:
        assert measure(content[:size], algorithm) == by_the_rule(content[:size], algorithm), size


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_tree_of_three_levels_follows_the_rule(algorithm: Algorithm) -> None:
    full = PER_BLOCK[algorithm] ** 2 * BLOCK_SIZE
    content = random_bytes("levels", BLOCK_SIZE) * (full // BLOCK_SIZE) + b"x"

    for size in (full, full + 1):
        assert measure(content[:size], algorithm) == by_the_rule(content[:size], algorithm), size


@pytest.mark.parametrize("step", [1, 1000, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 100_000])
def test_the_digest_does_not_depend_on_how_the_file_comes(step: int) -> None:
    content = random_bytes("pieces", 66 * BLOCK_SIZE + 17)[: 5000 if step == 1 else None]
    measurer = Measurer(SHA512)

    for start in range(0, len(content), step):
        measurer.update(content[start : start + step])

    assert measurer.digest() == measure(content, SHA512)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("seed", range(30))
def test_zeros_that_are_only_counted_are_zeros(algorithm: Algorithm, seed: int) -> None:
    chosen = random.Random(seed)
    measurer, content = Measurer(algorithm), b""
    for _ in range(chosen.randint(1, 6)):
        if chosen.random() < 0.5:
            count = chosen.choice([0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, chosen.randrange(3_000_000)])
            measurer.update_zeros(count)
            content += bytes(count)
        else:
            some = chosen.randbytes(chosen.choice([1, BLOCK_SIZE, 5000, 70_000]))
            measurer.update(some)
            content += some
        assert measurer.digest() == measure(content, algorithm)


def test_any_number_of_zeros_is_quickly_counted() -> None:
    measurer = Measurer(SHA512)
    measurer.update_zeros(1 << 30)
    plain = Measurer(SHA512)
    for _ in range(1 << 6):
        plain.update(bytes(1 << 24))
    assert measurer.digest() == plain.digest()
    measurer.update_zeros((1 << 62) - (1 << 30))  # would take a hundred years
    whole = Measurer(SHA512)
    whole.update_zeros(1 << 62)
    assert measurer.digest() == whole.digest()


def test_a_measurement_goes_on_after_a_digest() -> None:
    content = random_bytes("more", 70 * BLOCK_SIZE)
    measurer = Measurer(SHA512)

    for end in (10, BLOCK_SIZE, 64 * BLOCK_SIZE, 65 * BLOCK_SIZE + 5, len(content)):
        measurer.update(content[measurer_size(measurer) : end])
        assert measurer.digest() == by_the_rule(content[:end], SHA512)


def measurer_size(measurer: Measurer) -> int:
    return measurer._size


def test_any_kind_of_bytes_can_be_measured(tmp_path: Path) -> None:
    content = random_bytes("kinds", 10_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = by_the_rule(content, SHA256)

    assert measure(bytearray(content), SHA256) == expected
    assert measure(memoryview(b"x" + content)[1:], SHA256) == expected
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert measure(mapped, SHA256) == expected
        # leaving the block closes the mapping, which fails while anything holds it


def test_the_memory_of_a_measurement_does_not_grow_with_the_file() -> None:
    measurer = Measurer(SHA512)
    piece = bytes(1 << 20)

    for _ in range(20):
        measurer.update(piece)

    held = len(measurer._partial) + sum(map(len, measurer._levels))
    assert held < BLOCK_SIZE * (1 + len(measurer._levels))


def test_objects_of_recorded_hosts_have_their_digest_as_name(hosts: Path) -> None:
    seen = 0
    for objects in objects_of_hosts(hosts):
        for name, content in objects.items():
            assert measure(content, SHA512) == name
            seen += 1
    assert seen > 200


@pytest.mark.parametrize("algorithm", Algorithm)
def test_cfsctl_gives_objects_the_same_digests(cfsctl: Cfsctl, new_repo: object, tmp_path: Path, algorithm: Algorithm) -> None:
    assert callable(new_repo)
    repo: Path = new_repo(algorithm=algorithm.value)
    per_block = PER_BLOCK[algorithm]
    sizes = [65, 4095, 4096, 4097, *(per_block * BLOCK_SIZE + step for step in (-1, 0, 1)), 64 * 64 * BLOCK_SIZE + 1]
    files = [file(f"usr/{size}", random_bytes(f"{size}", size)) for size in sizes]
    pull_image(cfsctl, repo, build_image(tmp_path / "layout", "sizes", [Layer([directory("usr"), *files], "none")]))

    objects = {
        ObjectId.parse(path.parent.name + path.name, algorithm): path.read_bytes() for path in (repo / "objects").glob("??/*")
    }
    assert set(sizes) <= {len(content) for content in objects.values()}
    for name, content in objects.items():
        assert measure(content, algorithm) == name
