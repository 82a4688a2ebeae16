"""``docker-archive:``: what ``docker save`` and ``podman save`` write."""

from __future__ import annotations

import hashlib
import io
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from cfs_tags.apps import blobs, manifests
from cfs_tags.apps.importing.source.base import Source
from cfs_tags.errors import FormatError, InvalidDigest, SourceNotFound, UsageError, about
from cfs_tags.formats import json_fields, oci
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.apps.blobs import Reader
    from cfs_tags.apps.importing.source.archive import Archive, Member
    from cfs_tags.formats.oci import Descriptor

_NUMBER = re.compile(r"@[0-9]{1,9}", re.ASCII)
_MAX_MANIFEST = 4 << 20
"""Bytes of the longest ``manifest.json`` that is read."""


class DockerSource(Source):
    """What ``docker save`` and ``podman save`` write: a config, layers, and no manifest.  One is made for it.

    Args:
        text: how it was named.
        place: the same without the name of the image.
        archive: the archive.
        wanted: a name of the image, or ``@N`` for the N-th; None for the only one.
        limit: bytes that a layer may have once it is uncompressed.

    Raises:
        SourceNotFound: the archive lacks the image, or a part of it.
        UsageError (ambiguous-name): it has several of that name.
        FormatError: it is no such archive.
    """

    def __init__(self, text: str, place: str, archive: Archive, wanted: str | None, limit: int) -> None:
        super().__init__(text)
        self._place = place
        self._archive = archive
        self._limit = limit
        self._parts: dict[Digest, _Part] = {}
        self._measured: dict[Member, tuple[Digest, int]] = {}
        try:
            self.offered = (self._make(self._choose(wanted)),)
        except BaseException:
            archive.close()
            raise

    def _choose(self, wanted: str | None) -> dict[str, Any]:
        images = self._images()
        if wanted is not None and _NUMBER.fullmatch(wanted) is not None and int(wanted[1:]) < len(images):
            image = images[int(wanted[1:])]
            self.name = next(iter(_tags(image)), None)
            return image
        names: dict[str, list[int]] = {}
        for number, image in enumerate(images):
            for name in dict.fromkeys(_tags(image)):
                names.setdefault(name, []).append(number)
        found: Sequence[int] = range(len(images))
        if wanted is not None:
            aliases = (wanted, f"{wanted}:latest", f"docker.io/library/{wanted}", f"docker.io/{wanted}")
            self.name = next((name for name in aliases if name in names), None)
            if self.name is None:
                raise SourceNotFound(source=self.text, reason=f"has no image {wanted}", names=tuple(names))
            found = names[self.name]
        if not found:
            raise SourceNotFound(source=self.text, reason="has no image")
        if any(images[number] != images[found[0]] for number in found):
            candidates = [
                next((name for name in _tags(images[number]) if len(names[name]) == 1), f"@{number}") for number in found
            ]
            raise UsageError("ambiguous-name", name=self._place, candidates=tuple(candidates))
        if self.name is None:
            self.name = next(iter(_tags(images[found[0]])), None)
        chosen: dict[str, Any] = images[found[0]]
        return chosen

    def _images(self) -> list[dict[str, Any]]:
        data = self._archive.read("manifest.json", _MAX_MANIFEST)
        if data is None:
            raise SourceNotFound(source=self.text, reason="has no manifest.json")
        with about(f"{self._archive.path}: manifest.json"):
            images = json_fields.load_any(data, "manifest.json", _MAX_MANIFEST)
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            self._wrong("a list of images", "something else")
        for image in images:
            tags = _tags(image)
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                self._wrong("RepoTags that are texts", "something else")
        return images

    def _make(self, image: dict[str, Any]) -> Descriptor:
        config_path, layer_paths = image.get("Config"), image.get("Layers") or []
        if not isinstance(config_path, str) or not isinstance(layer_paths, list):
            self._wrong("a Config and Layers", "something else")
        config_data = self._archive.read(_clean(config_path), oci.MAX_CONFIG)
        if config_data is None:
            raise SourceNotFound(source=self.text, reason=f"has no {config_path}")
        with about(f"{self._archive.path}: {config_path}"):
            config = oci.parse_config(config_data)
        if len(config.diff_ids) != len(layer_paths):
            self._wrong(f"{len(config.diff_ids)} layers", str(len(layer_paths)))
        digest = Digest.of(config_data)
        self._parts[digest] = _Part(data=config_data)
        layers = []
        for path, diff_id in zip(layer_paths, config.diff_ids, strict=True):
            if not isinstance(path, str):
                self._wrong("paths of layers", repr(path))
            layers.append(self._layer(path, diff_id))
        manifest = manifests.image_manifest((digest, len(config_data)), layers)
        descriptor = manifests.descriptor_of(manifest)
        self._parts[descriptor.digest] = _Part(data=manifest)
        return descriptor

    def _layer(self, path: str, diff_id: Digest) -> tuple[str, Digest, int]:
        """Media type, digest and size, in bytes, of a layer as the manifest names it."""
        name = _clean(path)
        member = self._archive.members.get(name)
        if member is not None and member.link is not None:
            # docker wrote a layer that several images share once, and links to it by a path beside it
            name = _clean(os.path.normpath(os.path.join(os.path.dirname(name), member.link)))
            member = self._archive.members.get(name)
        reader = self._archive.open(name)
        if member is None or reader is None:
            raise SourceNotFound(source=self.text, reason=f"has no {path}")
        kind = blobs.compression(reader.read(blobs.MAGIC))
        digest, size = diff_id, member.size
        if kind not in oci.LAYER_TYPES:
            # no manifest can name a layer that is compressed like this: it is given out uncompressed
            size = self._measure(member, name, unpacked=True)[1]
        elif kind != "none":
            digest = _named_digest(name) or self._measure(member, name)[0]
        self._parts[digest] = _Part(name, unpacked=kind not in oci.LAYER_TYPES)
        return oci.LAYER_TYPES.get(kind, oci.MEDIA_TYPE_LAYER), digest, size

    def _measure(self, member: Member, name: str, *, unpacked: bool = False) -> tuple[Digest, int]:
        """Digest and size of a file in the archive; each is read once, however many layers it is."""
        if member not in self._measured:
            found = hashlib.sha256()
            size = 0
            reader = self._open(_Part(name, unpacked=unpacked))
            while data := reader.read(blobs.CHUNK):
                found.update(data)
                size += len(data)
            self._measured[member] = Digest(f"sha256:{found.hexdigest()}"), size
        return self._measured[member]

    def open(self, digest: Digest) -> Reader:
        """The bytes of a layer, of the config, or of the manifest that was made."""
        if digest not in self._parts:
            raise self._no_blob(digest)
        return self._open(self._parts[digest])

    def _open(self, part: _Part) -> Reader:
        if part.data is not None:
            return io.BytesIO(part.data)
        reader = self._archive.open(part.name)
        if reader is None:
            raise SourceNotFound(source=self.text, reason=f"has no {part.name}")
        return blobs.Unpacked(reader, self._limit, f"layer {part.name}") if part.unpacked else reader

    def size(self, digest: Digest) -> int | None:
        """Bytes of a part; None for a layer that has to be unpacked for that."""
        part = self._parts.get(digest)
        return None if part is not None and part.unpacked else super().size(digest)

    def close(self) -> None:
        """Let go of the archive."""
        self._archive.close()

    def _wrong(self, wanted: str, found: str) -> NoReturn:
        raise FormatError(structure="manifest.json", offset=0, wanted=wanted, found=found, path=self._archive.path)


class _Part(NamedTuple):
    """Where the bytes of a digest are: a file of the archive, perhaps to be unpacked, or here."""

    name: str = ""
    data: bytes | None = None
    unpacked: bool = False


def _tags(image: dict[str, Any]) -> Any:
    return image.get("RepoTags") or []


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _named_digest(name: str) -> Digest | None:
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "blobs":
        try:
            return Digest.parse(f"{parts[1]}:{parts[2]}")
        except InvalidDigest:
            return None
    return None
