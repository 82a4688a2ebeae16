"""A repository with one of everything, and ways to damage it.

The real cfsctl fills it; this program adds a deployment ref, private tags, a lease and trash.  Copies share objects by hard
links, so damage replaces files and never writes into one.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from cfs_tags import Repository
from cfs_tags.fsck.check import Report, fsck
from cfs_tags.fsck.findings import Finding
from cfs_tags.host import refs
from cfs_tags.repo import images
from cfs_tags.tags.names import resolve
from cfs_tags.values import DeploymentId, Digest
from support import tagging
from support.images import (
    Cfsctl,
    Layer,
    app_image,
    base_layer,
    build_image,
    directory,
    file,
    host_image,
    pull_image,
)

__all__ = [
    "APP",
    "HOST",
    "OTHER",
    "SMALL",
    "check",
    "codes",
    "cut",
    "document",
    "drop",
    "facts",
    "failing",
    "fill",
    "flip",
    "link",
    "manifest",
    "measure",
    "object_at",
    "old_headers",
    "put",
    "relink",
    "stream",
]

APP = "quay.io/apps/web:1"
OTHER = "quay.io/apps/db:1"
HOST = "localhost/bootc-host"
SMALL = "quay.io/apps/small:1"


def fill(cfsctl: Cfsctl, repo: Path) -> None:
    """For the fixture ``filled_repo``: two apps that share a layer, a bootable host, an image whose files are inline."""
    layout = repo.parent / "layout"
    shared = [base_layer(size=70_000)]
    pull_image(cfsctl, repo, app_image(layout, "web", shared), APP)
    pull_image(cfsctl, repo, app_image(layout, "db", shared), OTHER)
    host = host_image(layout, "41.1", shared=[base_layer("os")])
    pull_image(cfsctl, repo, host, HOST, bootable=True)
    pull_image(cfsctl, repo, build_image(layout, "small", [Layer([directory("usr"), file("usr/small", "small")])]), SMALL)
    with Repository.open(repo, write=True) as opened:
        refs.create(opened, _boot_image(opened.path), Digest.parse(host.manifest_digest))
        tagging.create(opened, "private", APP, home="private")
        tagging.create(opened, "lease", APP, expires="20990101T000000Z")
        tagging.create(opened, "deleted", APP)
        tagging.delete(opened, ["deleted"], expires="20990101T000000Z")
    cfsctl(repo, "gc")


def _boot_image(path: str) -> DeploymentId:
    with Repository.open(path) as repo:
        erofs = images.load(repo, resolve(repo, HOST)).erofs
    return DeploymentId(next(target for key, target in erofs.items() if key.startswith(images.BOOT_KEY)))


# -- looking -----------------------------------------------------------------------------------------------------------


def check(repo: Path, *, content: bool = False, jobs: int = 1) -> Report:
    """A check of the repository."""
    with Repository.open(repo) as opened:
        return fsck(opened, content=content, jobs=jobs)


def codes(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Paths by code."""
    found: dict[str, list[str]] = {}
    for one in findings:
        found.setdefault(one.code, []).append(one.path)
    return found


def failing(repo: Path, *, content: bool = False) -> list[tuple[str, str]]:
    """Code and path of all that makes a check fail."""
    return [(one.code, one.path) for one in check(repo, content=content).findings if one.fails]


def facts(repo: Path, code: str, *, content: bool = False) -> list[Finding]:
    """The findings of one code."""
    return [one for one in check(repo, content=content).findings if one.code == code]


def manifest(repo: Path, tag: str) -> str:
    """The digest of a tag's manifest."""
    name = tag.replace("%", "%25").replace("/", "%2F")
    return os.readlink(repo / "streams/refs/oci" / name).rpartition("oci-manifest-")[2]


def stream(repo: Path, tag: str, kind: str, number: int = 0) -> str:
    """Path in ``streams/`` of the manifest, the config or a layer of a tag."""
    digest = manifest(repo, tag)
    if kind == "manifest":
        return f"streams/oci-manifest-{digest}"
    config = json.loads(document(repo, digest))["config"]["digest"]
    if kind == "config":
        return f"streams/oci-config-{config}"
    return f"streams/oci-layer-{json.loads(document(repo, config))['rootfs']['diff_ids'][number]}"


def document(repo: Path, digest: str) -> bytes:
    """The bytes of a manifest or config, found among the objects by its digest."""
    for path in sorted((repo / "objects").glob("*/*")):
        if path.stat().st_size < 100_000 and f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == digest:
            return path.read_bytes()
    raise AssertionError(digest)


def link(repo: Path, path: str) -> Path:
    """The object that a link leads to."""
    target = Path(os.path.normpath(repo / path / ".." / os.readlink(repo / path)))
    assert "objects" in target.parts
    return target


def object_at(repo: Path, name: str) -> Path:
    """Where an object is."""
    return repo / "objects" / name[:2] / name[2:]


# -- damaging ----------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int = -1) -> None:
    """Change one bit of a file (its last byte, unless said), which becomes another file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    _replace(path, bytes(data))


def cut(path: Path, size: int | None = None) -> None:
    """Keep the first ``size`` bytes of a file, by default half of them."""
    data = path.read_bytes()
    _replace(path, data[: len(data) // 2 if size is None else size])


def drop(path: Path) -> str:
    """Remove a link, and say what it said."""
    text = os.readlink(path)
    path.unlink()
    return text


def relink(path: Path, text: str) -> None:
    """Make or replace a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    path.symlink_to(text)


def put(repo: Path, data: bytes) -> str:
    """Store an object under its right name, which is returned."""
    algorithm = "sha512" if len(next((repo / "objects").glob("*/*")).name) == 126 else "sha256"
    name = measure(data, algorithm)
    path = object_at(repo, name)
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
    return name


def _replace(path: Path, data: bytes) -> None:
    spare = path.parent.parent / "spare"
    spare.write_bytes(data)
    spare.rename(path)


def measure(data: bytes, algorithm: str) -> str:
    """The fs-verity digest, in the plainest way."""

    def hashed(block: bytes) -> bytes:
        return hashlib.new(algorithm, block.ljust(4096, b"\0")).digest()

    level = [hashed(data[at : at + 4096]) for at in range(0, len(data), 4096)]
    while len(level) > 1:
        joined = b"".join(level)
        level = [hashed(joined[at : at + 4096]) for at in range(0, len(joined), 4096)]
    root = level[0] if level else b""
    start = struct.pack("<BBBBIQ", 1, 1 if algorithm == "sha256" else 2, 12, 0, 0, len(data))
    return hashlib.new(algorithm, start + root.ljust(64, b"\0") + bytes(32 + 144)).hexdigest()


def old_headers(repo: Path) -> None:
    """Give every splitstream the header that bootc up to 1.15 wrote: new objects, named by the others, behind every link."""
    renamed: dict[bytes, bytes] = {}
    order = ("oci-layer-", "oci-config-", "oci-manifest-")
    names = sorted(
        (path.name for path in (repo / "streams").iterdir() if path.is_symlink()), key=lambda name: _rank(name, order)
    )
    for name in names:
        path = repo / "streams" / name
        target = link(repo, f"streams/{name}")
        data = target.read_bytes()
        magic, version, flags, algorithm, block, start, end = struct.unpack_from("<11sBHBBQQ", data)
        old = struct.pack("<QQH11sBBB", start, end, flags, magic, version, algorithm, block)
        body = data[32:]
        for was, now in renamed.items():
            body = body.replace(was, now)
        made = put(repo, old + body)
        renamed[bytes.fromhex(target.parent.name + target.name)] = bytes.fromhex(made)
        relink(path, f"../objects/{made[:2]}/{made[2:]}")


def _rank(name: str, order: Sequence[str]) -> int:
    return next(number for number, prefix in enumerate(order) if name.startswith(prefix))
