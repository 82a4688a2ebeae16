"""``meta.json``: what is read, what is refused and why, and that it is written as cfsctl writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.errors import FormatError, UnsupportedError
from cfs_tags.formats import repometa
from cfs_tags.formats.repometa import RepoMeta
from cfs_tags.values import Algorithm
from support.peers import Cfsctl
from support.raising import raises

FULL: dict[str, Any] = {
    "version": 1,
    "algorithm": "fsverity-sha512-12",
    "features": {"compatible": ["c"], "read-only-compatible": ["v1_erofs"], "incompatible": []},
    "erofs_formats": {"default": 1, "extra": [2, 0, 2]},
}


def meta(**changes: object) -> bytes:
    return json.dumps({**FULL, **changes}).encode()


def test_everything_is_read() -> None:
    assert repometa.parse(meta()) == RepoMeta(
        version=1,
        algorithm=Algorithm.SHA512,
        compatible=("c",),
        read_only_compatible=("v1_erofs",),
        incompatible=(),
        erofs_default=1,
        erofs_extra=(0, 2),
    )


def test_features_and_formats_may_be_absent() -> None:
    found = repometa.parse(b'{"version": 0, "algorithm": "fsverity-sha256-12"}')

    assert found == RepoMeta(version=0, algorithm=Algorithm.SHA256)
    assert found.writable
    assert found.erofs_version == 2


def test_keys_from_the_future_are_ignored() -> None:
    features = {"incompatible": [], "experimental": {"x": 1}}

    assert repometa.parse(meta(features=features, uuid="a")).incompatible == ()


def test_an_unknown_read_only_flag_forbids_writing_alone() -> None:
    found = repometa.parse(meta(features={"read-only-compatible": ["v1_erofs", "v3_erofs"]}))

    assert not found.writable
    assert found.unknown_read_only == ("v3_erofs",)


@pytest.mark.parametrize(
    ("flags", "formats", "version"),
    [
        ([], None, 2),
        (["v1_erofs"], None, 1),
        (["v1_erofs"], {"default": 2}, 1),
        (["v1_erofs"], {"default": 2, "extra": [1]}, 2),
        ([], {"default": 1}, 1),
        ([], {"default": 0}, 0),
    ],
)
def test_the_erofs_version_comes_from_the_flag_where_it_is_not_said(flags: list[str], formats: object, version: int) -> None:
    document = {**FULL, "features": {"read-only-compatible": flags}, "erofs_formats": formats}
    if formats is None:
        del document["erofs_formats"]

    assert repometa.parse(json.dumps(document).encode()).erofs_version == version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"incompatible": ["zstd", "v9"]}}, "needs zstd, v9"),
        ({"algorithm": "fsverity-sha512-16"}, "algorithm fsverity-sha512-16"),
        ({"algorithm": "fsverity-sha3-12"}, "algorithm fsverity-sha3-12"),
        ({"erofs_formats": {"default": 3}}, "EROFS format 3"),
        ({"erofs_formats": {"default": 1, "extra": [7]}}, "EROFS format 7"),
    ],
)
def test_what_must_be_understood_and_is_not_is_named(changes: dict[str, object], message: str) -> None:
    with raises("unsupported-feature", match=message) as caught:
        repometa.parse(meta(**changes))

    assert caught.value.status == 7


def test_a_newer_version_is_refused_before_anything_else_is_looked_at() -> None:
    with raises("unsupported-version", match="version 2: this program knows up to 1"):
        repometa.parse(b'{"version": 2, "algorithm": ["a", "list"], "features": 7}')


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff", "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"[]", "an object at /"),
        (b"{}", "a number below 2^32 at /version"),
        (meta(version="1"), "a number below 2^32 at /version"),
        (meta(version=True), "a number below 2^32 at /version"),
        (meta(version=1.0), "a number below 2^32 at /version"),
        (meta(version=-1), "a number below 2^32 at /version"),
        (meta(version=1 << 32), "a number below 2^32 at /version"),
        (meta(version=None), "a number below 2^32 at /version"),
        (meta(algorithm=None), "fsverity-<hash>-<log2 of the block size> at /algorithm"),
        (meta(algorithm="sha512"), "fsverity-<hash>-<log2 of the block size> at /algorithm"),
        (meta(features=None), "an object at /features"),
        (meta(features={"compatible": None}), "a list at /features/compatible"),
        (meta(features={"incompatible": [1]}), "text at /features/incompatible"),
        (meta(features={"incompatible": ["\ud800"]}), "text at /features/incompatible"),
        (meta(erofs_formats=None), "an object at /erofs_formats"),
        (meta(erofs_formats={}), "a number at /erofs_formats/default"),
        (meta(erofs_formats={"default": 1, "extra": None}), "a list at /erofs_formats/extra"),
        (b'{"version": 1, "version": 1, "algorithm": "fsverity-sha256-12"}', "JSON"),
        (b'{"version": NaN}', "JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", "JSON"),
        (b"[" * 200_000, "JSON"),
        (meta() + b"}", "JSON"),
        (b" " * repometa.MAX_SIZE + b"{}", "at most 1048576 bytes"),
    ],
)
def test_damage_is_refused_with_the_place(data: bytes, wanted: str) -> None:
    with pytest.raises(FormatError) as caught:
        repometa.parse(data)

    assert caught.value.wanted == wanted
    assert caught.value.structure == "meta.json"


def test_the_offset_of_broken_json_is_in_bytes() -> None:
    with pytest.raises(FormatError) as caught:
        repometa.parse('{"ä": 1 x'.encode())

    assert caught.value.offset == 9


@pytest.mark.parametrize("algorithm", Algorithm)
def test_cfsctl_writes_the_same_bytes(cfsctl: Cfsctl, new_repo: Any, algorithm: Algorithm) -> None:
    content = (new_repo(algorithm=algorithm.value) / "meta.json").read_bytes()

    found = repometa.parse(content)

    assert found.algorithm is algorithm
    assert found.writable
    assert repometa.render(found) == content


def test_cfsctl_opens_what_is_written(cfsctl: Cfsctl, repo: Path) -> None:
    written = RepoMeta(1, Algorithm.SHA512, ("note",), ("v1_erofs",), (), 1, (2,))
    (repo / "meta.json").write_bytes(repometa.render(written))

    cfsctl(repo, "fsck")

    assert repometa.parse((repo / "meta.json").read_bytes()) == written


@pytest.mark.parametrize(
    ("changes", "opens"),
    [
        ({}, True),
        ({"new": [1]}, True),
        ({"version": 0}, True),
        ({"version": 2}, False),
        ({"features": {"incompatible": ["x"]}}, False),
        ({"features": {"read-only-compatible": ["x"]}}, True),
        ({"features": {"compatible": ["x"]}}, True),
        ({"features": None}, False),
        ({"features": {"compatible": None}}, False),
        ({"algorithm": "fsverity-sha512-16"}, False),
        ({"algorithm": "sha512"}, False),
        ({"erofs_formats": None}, False),
        ({"erofs_formats": {"default": 3}}, False),
        ({"erofs_formats": {"default": 1, "extra": None}}, False),
    ],
)
def test_cfsctl_opens_the_same_repositories(cfsctl: Cfsctl, repo: Path, changes: dict[str, object], opens: bool) -> None:
    content = meta(**changes)
    (repo / "meta.json").write_bytes(content)

    theirs = cfsctl(repo, "--no-upgrade", "oci", "images", check=False)

    assert (theirs.returncode == 0) == opens, theirs.stderr
    if opens:
        repometa.parse(content)
    else:
        with pytest.raises((FormatError, UnsupportedError)):
            repometa.parse(content)
