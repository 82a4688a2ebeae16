"""The quick walk over an EROFS image finds what the parser finds, or leaves it to the parser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfs_tags.errors import FormatError
from cfs_tags.formats import erofs, erofswalk
from cfs_tags.formats.erofswalk import image_refs
from cfs_tags.values import Algorithm
from support.images import Cfsctl, Layer, build_image, directory, file, pull_image, random_bytes, symlink, whiteout

HOSTS = sorted(path.name.removesuffix(".tar.gz") for path in (Path(__file__).parent.parent / "data" / "hosts").glob("*.tar.gz"))


def images(repo: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((repo / "images").iterdir()) if path.is_symlink()]


def by_parser(data: bytes, algorithm: Algorithm) -> set[str] | None:
    try:
        return {str(name) for name in erofs.object_refs(data, algorithm)}
    except FormatError:
        return None


def quickly(data: bytes, algorithm: Algorithm) -> set[str] | None:
    try:
        return image_refs(data, algorithm)
    except FormatError:
        return None


def without_help(data: bytes, algorithm: Algorithm) -> set[str]:
    """By the quick walk alone."""
    table = erofswalk._Walk(data, algorithm).table(erofs.superblock(data))
    return {table[at : at + algorithm.size].hex() for at in range(0, len(table), algorithm.size)}


@pytest.fixture(params=["sha512"])
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def varied(new_repo: Callable[..., Path], cfsctl: Cfsctl, tmp_path: Path, algorithm: str) -> list[bytes]:
    """Images with xattrs of their own and shared ones, directories of several blocks, old and new inodes."""
    repo = new_repo(algorithm=algorithm)
    many = [file(f"usr/many/{number:04}", random_bytes(str(number), 100 + number % 3)) for number in range(600)]
    labelled = [
        file(f"usr/x{number}", random_bytes(f"x{number}", 200)).with_xattrs(
            security__selinux=b"system_u:object_r:usr_t:s0\0", user__own=str(number).encode()
        )
        for number in range(20)
    ]
    entries = [directory("usr"), directory("usr/many"), *many, *labelled, symlink("usr/link", "x1"), whiteout("usr/none")]
    pull_image(cfsctl, repo, build_image(tmp_path / "layout", "varied", [Layer(entries, "none")]), "varied")
    return images(repo)


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"], indirect=True)
def test_images_that_cfsctl_made_are_walked_without_the_parser(varied: list[bytes], algorithm: str) -> None:
    assert varied
    for data in varied:
        found = without_help(data, Algorithm(algorithm))
        assert found == by_parser(data, Algorithm(algorithm))
        assert len(found) >= 600


@pytest.mark.parametrize("name", HOSTS)
def test_images_that_bootc_made_are_walked_without_the_parser(bootc_host: Callable[[str], Path], name: str) -> None:
    for data in images(bootc_host(name) / "composefs"):
        assert without_help(data, Algorithm.SHA512) == by_parser(data, Algorithm.SHA512)


def test_a_damaged_image_is_judged_by_the_parser(varied: list[bytes]) -> None:
    whole = [*varied]

    @settings(max_examples=150)
    @given(
        st.sampled_from(range(len(whole))),
        st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
        st.booleans(),
    )
    def tried(which: int, changes: list[tuple[int, int]], near_the_start: bool) -> None:
        data = bytearray(whole[which])
        for place, value in changes:
            data[place % (20_000 if near_the_start else len(data))] = value
        assert quickly(bytes(data), Algorithm.SHA512) == by_parser(bytes(data), Algorithm.SHA512)

    tried()


@given(st.integers(0, 5000))
def test_a_cut_image_is_judged_by_the_parser(cut: int) -> None:
    data = _example()[: max(0, len(_example()) - cut)]

    assert quickly(data, Algorithm.SHA512) == by_parser(data, Algorithm.SHA512)


_known: list[bytes] = []


def _example() -> bytes:
    import tarfile

    if not _known:
        with tarfile.open(Path(__file__).parent.parent / "data" / "hosts" / "a.tar.gz") as archive:
            for member in archive.getmembers():
                if member.isfile() and "/objects/" in member.name and member.size >= 8192:
                    content = archive.extractfile(member)
                    assert content is not None
                    data = content.read()
                    if data[1024:1028] == b"\xe2\xe1\xf5\xe0":
                        _known.append(data)
                        break
    return _known[0]
