"""Damaged streams and images, read by cfs-tag and by the real cfsctl: where both take one, they find the same in it.

What cfsctl takes and cfs-tag refuses is counted and printed: a collector that refuses deletes nothing.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfs_tags.errors import CfsTagsError
from cfs_tags.formats import erofs, splitstream
from cfs_tags.values import Algorithm, ObjectId
from fuzz.test_fuzz import FORM, SEED, damaged
from support import stock
from support.peers import Cfsctl
from support.trees import unpack

ROOT = Path(__file__).parent.parent.parent
WANTED = {"short": 60, "ci": 500, "long": 20_000}[FORM]
MOST = 32 << 20
NAME = "oci-layer-sha256:" + "0" * 64
FAKE = "00" + "f" * 126


class NotTakenError(Exception):
    """It names an object that is not there, or is too long to be compared."""


@pytest.fixture
def repo() -> Iterator[Path]:
    """The example's repository in memory, with room for one object that is not what its name says."""
    with stock.in_memory() as home:
        unpack(ROOT / "examples/host.tar.gz", home)
        path = home / "composefs"
        (path / "objects/00").mkdir(exist_ok=True)
        for tree, name in (("streams", NAME), ("images", FAKE)):
            (path / tree / name).symlink_to(f"../objects/{FAKE[:2]}/{FAKE[2:]}")
        yield path


def objects(repo: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (repo / "objects").glob("??/*") if path.name != FAKE[2:])


def cfsctl_on(cfsctl: Cfsctl, repo: Path, *words: str) -> bytes | None:
    """What the real one writes; None where it fails, or writes without end."""
    command = cfsctl.command(repo, "--no-upgrade", *words)
    try:
        done = subprocess.run(command, capture_output=True, env=cfsctl.environment, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def content_of(repo: Path, data: bytes) -> bytes:
    parts, size = [], 0
    for part in splitstream.chunks(splitstream.parse(data, Algorithm.SHA512)):
        if isinstance(part, ObjectId):
            text = str(part)
            try:
                part = (repo / "objects" / text[:2] / text[2:]).read_bytes()
            except FileNotFoundError as absent:
                raise NotTakenError from absent
        parts.append(part)
        size += len(part)
        if size > MOST:
            raise NotTakenError
    return b"".join(parts)


def objects_of(repo: Path, data: bytes) -> bytes:
    erofs.check_image(data)
    found = erofs.object_refs(data, Algorithm.SHA512)
    return "".join(f"sha512:{one}\n" for one in sorted(map(str, found))).encode()


def in_order(said: bytes) -> bytes:
    return b"".join(sorted(set(said.splitlines(keepends=True))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "ours", "words", "known_by"),
    [
        ("streams", content_of, ("cat", NAME), lambda data: b"SplitStream" in data[:32]),
        ("images", objects_of, ("image-objects", FAKE), lambda data: data[1024:1028] == b"\xe2\xe1\xf5\xe0"),
    ],
)
def test_what_both_take_says_the_same_to_both(
    what: str,
    ours: Callable[[Path, bytes], bytes],
    words: tuple[str, ...],
    known_by: Callable[[bytes], bool],
    repo: Path,
    cfsctl: Cfsctl,
    tell: Callable[[str], None],
    tmp_path: Path,
) -> None:
    inputs = [data for data in objects(repo) if known_by(data)]
    place = repo / "objects" / FAKE[:2] / FAKE[2:]
    both = alone = theirs_alone = 0
    every = [*inputs, *damaged(inputs, WANTED, random.Random(f"{SEED} {what}"))]
    for number, data in enumerate(every):
        place.write_bytes(data)
        said = cfsctl_on(cfsctl, repo, *words)
        try:
            found = ours(repo, data)
        except (CfsTagsError, NotTakenError):
            theirs_alone += said is not None
            assert number >= len(inputs), "a real one is refused"
            continue
        if said is None:
            alone += 1
            continue
        both += 1
        theirs = in_order(said) if what == "images" else said
        if theirs != found:
            kept = tmp_path / "input"
            kept.write_bytes(data)
            shown = f"ours {found[:300]!r}\ntheirs {theirs[:300]!r}"
            pytest.fail(f"they differ on {kept}, {len(data)} bytes; CFS_TAGS_SEED={SEED}\n{shown}")
    tell(f"{what}: {both} of {len(every)} taken by both, {alone} by us, {theirs_alone} by cfsctl alone; CFS_TAGS_SEED={SEED}")
    assert both >= len(inputs)
