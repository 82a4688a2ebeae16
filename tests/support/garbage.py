"""What a collector works on, and a slow model of what it must keep: for the tests of collecting.

The model reads splitstreams by itself and asks the real cfsctl what EROFS images refer to; nothing of the product is in it.
A :func:`fill_pool` is made once for each algorithm and copied; :func:`add_foreign` adds what no command of cfsctl makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cfs_tags import Repository
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.values import ContentId, ObjectId
from support.images import app_image, base_layer, host_image, pull_image, random_bytes
from support.peers import Cfsctl
from support.stock import hard_copy
from support.stock import refs as all_refs

__all__ = [
    "APPS",
    "HOSTS",
    "Kept",
    "Stream",
    "add_artifact",
    "add_foreign",
    "add_stream",
    "content",
    "copy_of",
    "fill_pool",
    "link_of",
    "manifest_of",
    "model",
    "names",
    "object_of",
    "object_paths",
    "outside_state",
    "parse_stream",
    "settle",
    "sizes",
]

APPS = ("one", "two", "three")
HOSTS = ("old", "new")


# -- filling -----------------------------------------------------------------------------------------------------------


def fill_pool(cfsctl: Cfsctl, repo: Path) -> None:
    """Three app images and two bootable ones, tagged by their names; all of a kind share a layer.  Two EROFS images of
    directories: ``tree/named`` has a ref, the other is in ``images/`` alone."""
    layout = repo.parent / "layout"
    for name in APPS:
        pull_image(cfsctl, repo, app_image(layout, name, [base_layer("runtime", 2000)], size=1000), name)
    for name in HOSTS:
        image = host_image(layout, name, boot_content=True, shared=[base_layer("os", 2000)])
        pull_image(cfsctl, repo, image, f"localhost/bootc-{name}", bootable=True)
    for number, name in enumerate(("tree/named", "")):
        where = repo.parent / f"tree-{number}"
        (where / "usr/share").mkdir(parents=True)
        for index in range(3):
            (where / "usr/share" / f"{index}").write_bytes(random_bytes(f"tree {number if index else 0} {index}", 1500))
        cfsctl(repo, "create-image", where, *([name] if name else []))


def add_stream(
    repo: Path,
    content_id: str,
    *,
    inside: bytes = b"",
    objects: Sequence[bytes] = (),
    named: Mapping[str, str] | None = None,
    content_type: int = splitstream.CONTENT_TYPE_LAYER,
) -> str:
    """Write a splitstream by our own writer; ``named`` maps keys to object ids.  Returns the id of its object."""
    with Repository.open(repo, write=True) as opened:
        writer = splitwriter.Writer(opened.algorithm, content_type)
        for key, target in (named or {}).items():
            writer.add_named_ref(key, ObjectId.parse(target, opened.algorithm))
        if inside:
            writer.add_inline(inside)
        for data in objects:
            writer.add_external(ObjectStore(opened).add(data), len(data))
        return str(ObjectStore(opened).add_stream(ContentId.trusted(content_id), writer.finish()))


def add_artifact(repo: Path, name: str, subject: str | None = None, *, ref: str | None = None) -> str:
    """An artifact of one blob, about the manifest ``subject`` where there is one; returns the digest of its manifest.

    A referrer gets its link in ``oci-referrers/``; ``ref`` is another path below ``streams/refs/``.
    """

    def digest(data: bytes) -> str:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    blob = random_bytes(f"artifact {name}", 500)
    config = b"{}"
    layer = add_stream(repo, f"oci-blob-{digest(blob)}", objects=[blob], content_type=splitstream.CONTENT_TYPE_BLOB)
    config_object = add_stream(
        repo,
        f"oci-config-{digest(config)}",
        objects=[config],
        content_type=splitstream.CONTENT_TYPE_CONFIG,
    )
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": "application/octet-stream", "digest": digest(blob), "size": len(blob)}],
    }
    if subject is not None:
        document["subject"] = {"mediaType": document["mediaType"], "digest": subject, "size": 1}
    manifest = json.dumps(document).encode()
    found = digest(manifest)
    add_stream(
        repo,
        f"oci-manifest-{found}",
        objects=[manifest],
        named={f"config:{digest(config)}": config_object, digest(blob): layer},
        content_type=splitstream.CONTENT_TYPE_MANIFEST,
    )
    if subject is not None:
        link_of(repo, f"streams/refs/oci-referrers/{subject}/{found}", f"oci-manifest-{found}")
    if ref is not None:
        link_of(repo, f"streams/refs/{ref}", f"oci-manifest-{found}")
    return found


def add_foreign(repo: Path) -> None:
    """A signature of ``one`` and a signature of that, one of an index that was never here, an ostree commit with its
    EROFS image, and a stream of another program that names others without a colon in its keys."""
    one = manifest_of(repo, "one")
    signature = add_artifact(repo, "signature of one", one)
    add_artifact(repo, "signature of the signature", signature)
    add_artifact(repo, "signature of an index", f"sha256:{'ab' * 32}")
    image = object_of(repo, "images/refs/tree/named")
    commit = f"ostree-commit-{'12' * 32}"
    add_stream(repo, commit, objects=[random_bytes("ostree", 900)], named={"composefs.image": image}, content_type=0x1234)
    link_of(repo, "streams/refs/ostree/stable/x86_64", commit)
    inner = add_stream(repo, "other-inner", objects=[random_bytes("inner", 800)], content_type=0x99)
    add_stream(repo, "other-outer", objects=[random_bytes("outer", 700)], named={"inner": inner}, content_type=0x99)
    link_of(repo, "streams/refs/other/deep/down/outer", "other-outer")


def link_of(repo: Path, ref: str, name: str) -> Path:
    """Make a ref: ``name`` is in ``streams/`` or ``images/``, as the path of the ref is."""
    path = repo / ref
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("../" * (ref.count("/") - 1) + name)
    return path


def copy_of(repo: Path, target: Path) -> Path:
    """A copy whose objects are hard links, old enough to be collected."""
    hard_copy(repo, target)
    settle()
    return target


def settle() -> None:
    """Let the clock of the file system go on: what was made before is older than what is marked now."""
    time.sleep(0.045)


# -- looking -----------------------------------------------------------------------------------------------------------


def manifest_of(repo: Path, tag: str) -> str:
    """The manifest digest of a tag."""
    path = repo / "streams/refs/oci" / tag.replace("%", "%25").replace("/", "%2F")
    return os.readlink(path).rpartition("oci-manifest-")[2]


def object_of(repo: Path, path: str) -> str:
    """The id of the object that a link in ``streams/`` or ``images/``, or a ref, leads to."""
    link = os.readlink(repo / path)
    while "/objects/" not in link:
        path = os.path.normpath(os.path.join(os.path.dirname(path), link))
        link = os.readlink(repo / path)
    return "".join(link.split("/")[-2:])


def object_paths(repo: Path) -> dict[str, Path]:
    """Every object by its id."""
    return {path.parent.name + path.name: path for path in (repo / "objects").glob("??/*")}


def content(repo: Path, object_id: str) -> Path:
    """Where an object is."""
    return repo / "objects" / object_id[:2] / object_id[2:]


def names(repo: Path, tree: str) -> set[str]:
    """The links in ``streams/`` or ``images/``."""
    return {name for name in os.listdir(repo / tree) if name != "refs"} if (repo / tree).is_dir() else set()


def outside_state(repo: Path) -> set[str]:
    """The paths of all files and links outside ``cfs-tags/``."""
    found = set()
    for parent, directories, files in os.walk(repo):
        relative = os.path.relpath(parent, repo)
        if relative == ".":
            directories[:] = [name for name in directories if name != "cfs-tags"]
        links = [name for name in directories if os.path.islink(f"{parent}/{name}")]
        found |= {os.path.normpath(f"{relative}/{name}") for name in [*files, *links]}
    return found


def sizes(repo: Path, objects: Iterable[str]) -> int:
    """The bytes on disk of some objects."""
    return sum(content(repo, one).stat().st_blocks * 512 for one in objects)


# -- the model ---------------------------------------------------------------------------------------------------------


class Stream(NamedTuple):
    """A splitstream: the objects that it is made of, and its named refs."""

    objects: frozenset[str]
    named: dict[str, str]


class Kept(NamedTuple):
    """What stays: ids of objects, names in ``streams/`` and ``images/``."""

    objects: set[str]
    streams: set[str]
    images: set[str]


def parse_stream(data: bytes, size: int) -> Stream:
    """Read a splitstream, of the present header (composefs-rs 0.9.4, ``splitstream.rs``), by hand."""
    assert data[:11] == b"SplitStream", "no splitstream"
    info = struct.unpack_from("<Q", data, 16)[0]
    ranges = struct.unpack_from("<8Q", data, info)
    refs_start, refs_end, objects_start, objects_end, _, _, named_start, named_end = ranges
    refs = [data[at : at + size].hex() for at in range(refs_start, refs_end, size)]
    objects = frozenset(data[at : at + size].hex() for at in range(objects_start, objects_end, size))
    named = {}
    for record in _decompress(data[named_start:named_end]).split(b"\0"):
        if record:
            index, _, key = record.decode().partition(":")
            named[key] = refs[int(index)]
    return Stream(objects, named)


def _decompress(data: bytes) -> bytes:
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return bytes(zstd.decompress(data)) if data else b""


def model(repo: Path, cfsctl: Cfsctl, refs: Iterable[str] | None = None) -> Kept:
    """What refs (all that there are unless named) keep: the rules of following references, the slow way."""
    size = len(next(iter(object_paths(repo)))) // 2
    objects: set[str] = set()
    parsed: set[str] = set()
    pending = []
    linked = {object_of(repo, f"streams/{name}") for name in names(repo, "streams")}
    for ref in all_refs(repo) if refs is None else refs:
        target = object_of(repo, ref)
        objects.add(target)
        if ref.startswith("images/"):
            name = os.path.basename(os.readlink(repo / ref))
            said = cfsctl(repo, "--no-upgrade", "image-objects", name).stdout.split()
            objects |= {one.rpartition(":")[2] for one in said}
        else:
            pending.append(target)
    while pending:
        current = pending.pop()
        if current in parsed:
            continue
        parsed.add(current)
        stream = parse_stream(content(repo, current).read_bytes(), size)
        objects |= {current} | stream.objects | set(stream.named.values())
        for key, target in stream.named.items():
            if key.startswith("composefs.image") and target not in linked:
                continue
            pending.append(target)
            for kind in ("config",) if key.startswith("config:") else ("layer", "blob"):
                link = repo / "streams" / f"oci-{kind}-{key.removeprefix('config:')}"
                if link.is_symlink():
                    pending.append(object_of(repo, f"streams/{link.name}"))
    return Kept(
        objects,
        {name for name in names(repo, "streams") if object_of(repo, f"streams/{name}") in objects},
        {name for name in names(repo, "images") if object_of(repo, f"images/{name}") in objects},
    )
