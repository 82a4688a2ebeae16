"""Images for tests: OCI layouts written by hand, byte for byte under our control, or made by umoci and skopeo.

Nothing here imports the product, so that a mistake in it cannot hide behind the same mistake here.  Everything is
deterministic: the same calls give the same digests on every machine.

    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), file("usr/x", b"1" * 100)])])
    pulled = pull(cfsctl, repo, image.layout, image.ref, "quay.io/apps/app:1")
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

__all__ = [
    "CREATED",
    "EPOCH",
    "Entry",
    "Image",
    "Layer",
    "Pulled",
    "app_image",
    "base_layer",
    "block_device",
    "build_artifact",
    "build_image",
    "build_index",
    "char_device",
    "directory",
    "fifo",
    "file",
    "hardlink",
    "host_image",
    "host_layer",
    "opaque",
    "pull",
    "pull_image",
    "random_bytes",
    "skopeo_copy",
    "static_image",
    "symlink",
    "umoci_change",
    "umoci_image",
    "umoci_truncated_image",
    "whiteout",
]

EPOCH = 1_767_225_600
"""Seconds since 1970: the time stamp of every file (2026-01-01T00:00:00Z)."""

CREATED = "2026-01-01T00:00:00Z"

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


class Cfsctl(Protocol):
    """The real cfsctl as the fixture of that name gives it."""

    def __call__(
        self, repo: Path | None, *args: str | Path, check: bool = True, input: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it on ``repo``."""


# -- layers ------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One member of a layer's tar.  ``kind`` is a type flag of :mod:`tarfile`, ``xattrs`` has full names."""

    name: str
    kind: bytes = tarfile.REGTYPE
    content: bytes = b""
    target: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = EPOCH
    xattrs: Mapping[str, bytes] = {}
    device: tuple[int, int] = (0, 0)

    def owned(self, uid: int, gid: int) -> Entry:
        """The same with another owner."""
        return self._replace(uid=uid, gid=gid)

    def with_xattrs(self, **xattrs: bytes) -> Entry:
        """The same with extended attributes: ``user__x`` stands for ``user.x``."""
        return self._replace(xattrs={key.replace("__", ".", 1): value for key, value in xattrs.items()})


def file(name: str, content: bytes | str = b"", mode: int = 0o644) -> Entry:
    """A regular file.  Up to 64 bytes stay inline in a composefs repository, more become an object."""
    return Entry(name, content=content.encode() if isinstance(content, str) else content, mode=mode)


def directory(name: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, tarfile.SYMTYPE, target=target, mode=0o777)


def hardlink(name: str, target: str) -> Entry:
    """A hard link to ``target``, an earlier member of the same layer."""
    return Entry(name, tarfile.LNKTYPE, target=target)


def char_device(name: str, major: int, minor: int) -> Entry:
    """A character device."""
    return Entry(name, tarfile.CHRTYPE, device=(major, minor))


def block_device(name: str, major: int, minor: int) -> Entry:
    """A block device."""
    return Entry(name, tarfile.BLKTYPE, device=(major, minor))


def fifo(name: str) -> Entry:
    """A named pipe."""
    return Entry(name, tarfile.FIFOTYPE)


def whiteout(name: str) -> Entry:
    """What says that ``name`` of a lower layer is gone (OCI image spec, layer.md: ``.wh.<name>``)."""
    parent, _, base = name.rpartition("/")
    return file(f"{parent}/.wh.{base}" if parent else f".wh.{base}")


def opaque(name: str) -> Entry:
    """What says that nothing of lower layers in directory ``name`` is left (``.wh..wh..opq``)."""
    return file(f"{name}/.wh..wh..opq")


def random_bytes(seed: str, size: int) -> bytes:
    """``size`` bytes that do not compress and are the same every time for one ``seed``."""
    return hashlib.shake_256(seed.encode()).digest(size)


class Layer:
    """A layer made of ``entries``.

    ``compression`` is ``gzip``, ``zstd`` or ``none``.  ``end`` says how the tar ends: ``whole``, ``open`` without the
    two zero blocks that end an archive (cfsctl takes it), or ``cut`` right after the last file's bytes, as ``umoci
    insert`` 0.4.7 leaves it (cfsctl refuses it as a whole).
    """

    def __init__(self, entries: Iterable[Entry], compression: str = "gzip", *, end: str = "whole") -> None:
        self.entries = tuple(entries)
        self.compression = compression
        self.end = end

    @cached_property
    def tar(self) -> bytes:
        """The uncompressed tar."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for entry in self.entries:
                member = tarfile.TarInfo(entry.name)
                member.type = entry.kind
                member.linkname = entry.target
                member.mode = entry.mode
                member.uid, member.gid = entry.uid, entry.gid
                member.mtime = entry.mtime
                member.devmajor, member.devminor = entry.device
                member.pax_headers = {
                    f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in entry.xattrs.items()
                }
                member.size = len(entry.content)
                archive.addfile(member, io.BytesIO(entry.content))
            end = archive.offset
        if self.end == "whole":
            return buffer.getvalue()
        padding = -len(self.entries[-1].content) % tarfile.BLOCKSIZE if self.end == "cut" else 0
        return buffer.getvalue()[: end - padding]

    @cached_property
    def blob(self) -> bytes:
        """What a registry keeps: the tar, compressed."""
        if self.compression == "gzip":
            return gzip.compress(self.tar, compresslevel=6, mtime=0)
        if self.compression == "zstd":
            return _zstd(self.tar)
        return self.tar

    @property
    def media_type(self) -> str:
        """By compression."""
        return LAYER_TYPE + {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[self.compression]

    @cached_property
    def diff_id(self) -> str:
        """Digest of the uncompressed tar."""
        return _digest(self.tar)

    @cached_property
    def digest(self) -> str:
        """Digest of the blob."""
        return _digest(self.blob)

    def compressed(self, compression: str) -> Layer:
        """The same tar, compressed in another way: same diff_id, other digest."""
        return Layer(self.entries, compression, end=self.end)


# -- layouts -----------------------------------------------------------------------------------------------------------


class Image(NamedTuple):
    """An image (or artifact) in a layout: the parsed documents, their exact bytes and digests."""

    layout: Path
    ref: str
    manifest: dict[str, Any]
    manifest_bytes: bytes
    manifest_digest: str
    config: dict[str, Any]
    config_bytes: bytes
    config_digest: str
    layers: tuple[Layer, ...] = ()

    @property
    def source(self) -> str:
        """As skopeo, umoci, podman and cfsctl name it."""
        return f"oci:{self.layout}:{self.ref}"

    @property
    def diff_ids(self) -> list[str]:
        """Of all layers, bottom first."""
        return [layer.diff_id for layer in self.layers]

    @property
    def descriptor(self) -> dict[str, Any]:
        """What an index or a ``subject`` says about it."""
        return {
            "mediaType": self.manifest["mediaType"],
            "digest": self.manifest_digest,
            "size": len(self.manifest_bytes),
        }


def build_image(
    layout: Path,
    ref: str,
    layers: Sequence[Layer],
    config: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    subject: Image | None = None,
) -> Image:
    """Add an image to the OCI layout directory ``layout`` (made if need be) under the name ``ref``.

    Args:
        layout: directory; several images can share one, and share blobs there.
        ref: name in ``index.json``; an image of that name loses it.
        layers: bottom first.
        config: top-level keys that replace those of the config.
        annotations: of the manifest.
        labels: shorthand for ``config={"config": {"Labels": …}}``.
        subject: the image that this one refers to.
    """
    document: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "config": {"Labels": dict(labels)} if labels else {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(layers))],
        **(config or {}),
    }
    blobs = [(layer.media_type, layer.blob) for layer in layers]
    image = _add(layout, ref, CONFIG_TYPE, _json(document), blobs, annotations, subject, {})
    return image._replace(config=document, layers=tuple(layers))


def build_artifact(
    layout: Path,
    ref: str,
    blobs: Sequence[tuple[str, bytes]],
    artifact_type: str = "application/vnd.example.signature.v1",
    subject: Image | None = None,
    annotations: Mapping[str, str] | None = None,
    *,
    config: tuple[str, bytes] = (EMPTY_TYPE, b"{}"),
) -> Image:
    """Add an artifact: ``blobs`` are pairs of media type and bytes, ``subject`` the image that it is about."""
    extra = {"artifactType": artifact_type}
    return _add(layout, ref, config[0], config[1], list(blobs), annotations, subject, extra)


def build_index(layout: Path, ref: str, images: Mapping[str, Image]) -> str:
    """Add an image index: ``images`` by architecture, all in ``layout`` already.  Returns its digest."""
    manifests = [
        {**image.descriptor, "platform": {"architecture": architecture, "os": "linux"}}
        for architecture, image in images.items()
    ]
    content = _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
    digest = _put(layout, content)
    _name(layout, ref, {"mediaType": INDEX_TYPE, "digest": digest, "size": len(content)})
    return digest


def _add(
    layout: Path,
    ref: str,
    config_type: str,
    config: bytes,
    blobs: Sequence[tuple[str, bytes]],
    annotations: Mapping[str, str] | None,
    subject: Image | None,
    extra: Mapping[str, Any],
) -> Image:
    def descriptor(media_type: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": _put(layout, content), "size": len(content)}

    manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, **extra}
    manifest["config"] = descriptor(config_type, config)
    manifest["layers"] = [descriptor(media_type, content) for media_type, content in blobs]
    if subject is not None:
        manifest["subject"] = subject.descriptor
    if annotations:
        manifest["annotations"] = dict(annotations)
    content = _json(manifest)
    digest = _put(layout, content)
    _name(layout, ref, {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(content)})
    return Image(layout, ref, manifest, content, digest, json.loads(config), config, manifest["config"]["digest"])


def _put(layout: Path, content: bytes) -> str:
    digest = _digest(content)
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    return digest


def _name(layout: Path, ref: str, descriptor: Mapping[str, Any]) -> None:
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    path = layout / "index.json"
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if path.exists():
        index = json.loads(path.read_text())
    key = "org.opencontainers.image.ref.name"
    index["manifests"] = [entry for entry in index["manifests"] if entry.get("annotations", {}).get(key) != ref]
    index["manifests"].append({**descriptor, "annotations": {key: ref}})
    path.write_bytes(_json(index))


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _zstd(content: bytes) -> bytes:
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return bytes(zstd.compress(content))


# -- ready-made images -------------------------------------------------------------------------------------------------


def base_layer(seed: str = "base", size: int = 5000) -> Layer:
    """What several images can share: the directories cfsctl wants, a small file and one of ``size`` bytes."""
    return Layer(
        [
            directory("usr"),
            directory("usr/lib"),
            directory("usr/share"),
            file("usr/lib/os-release", f"ID=test\nNAME=Test\nVARIANT={seed}\n"),
            file(f"usr/share/{seed}", random_bytes(seed, size)),
        ]
    )


def app_image(layout: Path, name: str, shared: Sequence[Layer] = (), size: int = 3000, **keywords: Any) -> Image:
    """An app image: the ``shared`` layers (default: :func:`base_layer`), then one of its own with ``size`` bytes."""
    own = Layer([directory("usr"), directory("usr/bin"), file(f"usr/bin/{name}", random_bytes(name, size), 0o755)])
    return build_image(layout, name, [*(shared or (base_layer(),)), own], **keywords)


def host_layer(version: str, *, boot_content: bool, kernel: str = "6.1.0", size: int = 4000) -> Layer:
    """A bootable root file system with a fake kernel.

    With ``boot_content`` there is a file in ``/boot``; the bootable image empties that directory, so boot image and
    plain image differ.  Without, they are the same.
    """
    modules = f"usr/lib/modules/{kernel}"
    entries = [
        *(directory(name) for name in ("usr", "usr/bin", "usr/lib", "usr/lib/modules", modules, "usr/share", "boot")),
        *(directory(name) for name in ("etc", "dev", "proc", "run", "sys", "sysroot", "tmp", "var")),
        file("usr/lib/os-release", f'ID=fake\nNAME="Fake"\nVERSION_ID={version}\nVARIANT=host\n'),
        file(f"{modules}/vmlinuz", random_bytes(f"vmlinuz {version}", size), 0o755),
        file(f"{modules}/initramfs.img", random_bytes(f"initramfs {version}", size)),
        file("usr/bin/init", random_bytes(f"init {version}", 2 * size), 0o755),
        file("etc/hostname", "host\n"),
        file("usr/share/version", f"{version}\n"),
    ]
    if boot_content:
        entries.append(file("boot/extra.txt", "a file in /boot, longer than what stays inline in the repository\n" * 2))
    return Layer(entries)


def host_image(
    layout: Path, version: str, *, boot_content: bool = True, shared: Sequence[Layer] = (), **keywords: Any
) -> Image:
    """A bootable host image named ``host-<version>``, labelled as bootc wants it; see :func:`host_layer`."""
    labels = {"containers.bootc": "1", "org.opencontainers.image.version": version}
    layers = [*shared, host_layer(version, boot_content=boot_content)]
    return build_image(layout, f"host-{version}", layers, labels=labels, **keywords)


def static_image(layout: Path, name: str = "static") -> Image:
    """An image without ``/usr``: cfsctl stores manifest, config and layers and then fails, so there is no tag."""
    return build_image(layout, name, [Layer([file("app", random_bytes(name, 2000), 0o755)])])


# -- peers -------------------------------------------------------------------------------------------------------------


class Pulled(NamedTuple):
    """What cfsctl said: the tag, the config's digest and the fs-verity digest of the manifest stream's object."""

    tag: str
    config_digest: str
    manifest_verity: str


def pull(cfsctl: Cfsctl, repo: Path, layout: Path, ref: str, tag: str, bootable: bool = False) -> Pulled:
    """``cfsctl oci pull [--bootable] oci:<layout>:<ref> <tag>``."""
    options = ["--bootable"] if bootable else []
    said = cfsctl(repo, "oci", "pull", *options, f"oci:{layout}:{ref}", tag).stdout
    config = re.search(r"^config +(sha256:[0-9a-f]{64})", said, re.MULTILINE)
    verity = re.search(r"^verity +([0-9a-f]{64,128})", said, re.MULTILINE)
    assert config is not None, said
    assert verity is not None, said
    return Pulled(tag, config[1], verity[1])


def pull_image(cfsctl: Cfsctl, repo: Path, image: Image, tag: str | None = None, bootable: bool = False) -> Pulled:
    """The same for an :class:`Image`; the tag defaults to its name in the layout."""
    return pull(cfsctl, repo, image.layout, image.ref, tag or image.ref, bootable)


def skopeo_copy(skopeo: Path, source: str, target: str, *options: str) -> None:
    """``skopeo copy``, for another compression, manifest format or transport; no network, no signature policy."""
    _run([skopeo, "--insecure-policy", "copy", "--quiet", *options, source, target])


def umoci_image(umoci: Path, layout: Path, ref: str, change: Callable[[Path], None], work: Path) -> str:
    """An image by umoci's unpack and repack.  ``change`` edits the root file system; returns the source for skopeo."""
    _umoci_new(umoci, layout, ref)
    return umoci_change(umoci, layout, ref, change, work)


def umoci_change(umoci: Path, layout: Path, ref: str, change: Callable[[Path], None], work: Path) -> str:
    """One more layer for an image that is there, in the same way."""
    _run([umoci, "unpack", "--rootless", "--image", f"{layout}:{ref}", work])
    change(work / "rootfs")
    _run([umoci, "repack", "--image", f"{layout}:{ref}", work])
    return f"oci:{layout}:{ref}"


def umoci_truncated_image(umoci: Path, layout: Path, ref: str, tree: Path, where: str = "/usr") -> str:
    """An image by ``umoci insert``, whose layer stops right after the last file's bytes: cfsctl refuses it."""
    _umoci_new(umoci, layout, ref)
    _run([umoci, "insert", "--rootless", "--image", f"{layout}:{ref}", tree, where])
    return f"oci:{layout}:{ref}"


def _umoci_new(umoci: Path, layout: Path, ref: str) -> None:
    if not (layout / "oci-layout").exists():
        _run([umoci, "init", "--layout", layout])
    _run([umoci, "new", "--image", f"{layout}:{ref}"])


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
