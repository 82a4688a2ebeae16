"""The manifest of an image whose layers are plain tars, and an index of such manifests.  Pure.

A repository keeps layers as uncompressed tars, by diff_id; the manifest that came with them names compressed blobs, which
cannot be made again bit for bit.  What can be served is the same image with another manifest: the same config (and so
the same image ID), the layers as they are kept.  It is made from the original's bytes alone, so it is the same bytes, and
has the same digest, wherever and whenever it is made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from cfs_tags.errors import FormatError
from cfs_tags.formats import oci

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cfs_tags.values import Digest

__all__ = ["ORIGINAL_DIGEST", "PlainLayer", "plain_index", "plain_manifest"]

ORIGINAL_DIGEST = "cfs-tags.manifest.original"
"""Annotation with the digest of the manifest (or index) that an image came with."""

_PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PLAIN_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
# the others describe the compressed bytes: tables of contents of zstd:chunked and eStargz, above all
_KEPT_ANNOTATIONS = "org.opencontainers.image."


class PlainLayer(NamedTuple):
    """What stands in for a layer: the digest and size, in bytes, of its uncompressed tar."""

    diff_id: Digest
    size: int


def plain_manifest(raw: bytes, digest: Digest, layers: Sequence[PlainLayer | None]) -> bytes:
    """A manifest with uncompressed layers.

    Args:
        raw: the original.
        digest: of the original; it becomes an annotation.
        layers: for each layer what stands in for it, None where it stays.

    Returns:
        ``raw`` itself where every layer stays; else compact JSON with the original's keys in their order.

    Raises:
        FormatError: ``raw`` is no manifest with that many layers.
    """
    if not any(layers):
        return raw
    oci.parse_manifest(raw)  # its shape is what the lines below rely on
    document: dict[str, Any] = json.loads(raw)
    if len(document["layers"]) != len(layers):
        raise FormatError(structure="manifest", offset=0, wanted=f"{len(layers)} layers", found=str(len(document["layers"])))
    is_docker = document.get("mediaType") == oci.MEDIA_TYPE_DOCKER_MANIFEST
    for number, plain in enumerate(layers):
        if plain is not None:
            document["layers"][number] = _descriptor(document["layers"][number], plain, is_docker)
    return _changed(document, digest)


def plain_index(raw: bytes, digest: Digest, manifests: Mapping[str, tuple[Digest, int]]) -> bytes:
    """An index of what is there of the manifests that it names.

    Args:
        raw: the original.
        digest: of the original; it becomes an annotation.
        manifests: for the digest of each manifest that is there, the digest and size, in bytes, that it has here.

    Returns:
        ``raw`` itself where everything is there as it came; else compact JSON with the original's keys in their order,
        without the entries of what is not there.

    Raises:
        FormatError: ``raw`` is no index.
    """
    if all(manifests.get(entry.digest) == (entry.digest, entry.size) for entry in oci.parse_index(raw).manifests):
        return raw
    document: dict[str, Any] = json.loads(raw)
    kept = []
    for entry in document["manifests"]:
        if entry["digest"] in manifests:
            entry["digest"], entry["size"] = manifests[entry["digest"]]
            for key, value in (entry.get("annotations") or {}).items():
                if value in manifests:  # an attestation names its image like this
                    entry["annotations"][key] = manifests[value][0]
            kept.append(entry)
    document["manifests"] = kept
    return _changed(document, digest)


def _changed(document: dict[str, Any], digest: Digest) -> bytes:
    document["annotations"] = {**(document.get("annotations") or {}), ORIGINAL_DIGEST: digest}
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _descriptor(original: dict[str, Any], plain: PlainLayer, is_docker: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "mediaType": _PLAIN_DOCKER_LAYER if is_docker else _PLAIN_LAYER,
        "digest": plain.diff_id,
        "size": plain.size,
    }
    annotations = original.get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if key.startswith(_KEPT_ANNOTATIONS)}
    if kept:
        made["annotations"] = kept
    return made
