"""Manifests and indexes written anew, and made where there is none.  Pure.

Three kinds of documents are made here, each from the bytes of the original alone, so that they are the same bytes, with the
same digest, wherever and whenever they are made:

* Docker's documents as OCI's.  A repository keeps container images with OCI manifests: one whose config has Docker's media
  type is an artifact to cfsctl.  The config's bytes, and so the image ID, stay as they are, and so do all digests and
  sizes; only media types change.  (skopeo writes the config anew when it converts: the image gets another ID.)
* The manifest of an image with layers that are kept or written in another form.  A repository keeps layers as uncompressed
  tars, by diff_id; the manifest that came with them names compressed blobs, which cannot be made again bit for bit.
* The manifest of an image of an archive that has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cfs_tags.errors import FormatError
from cfs_tags.formats import oci
from cfs_tags.formats.oci import Descriptor, Manifest
from cfs_tags.values import Digest

ORIGINAL_DIGEST = "cfs-tags.manifest.original"
"""Annotation with the digest of the manifest (or index) that an image came with."""

_KEPT_ANNOTATIONS = oci.ANNOTATIONS
"""How annotations of layers start that stay: the others describe the compressed bytes, tables of contents of zstd:chunked and
eStargz above all."""


# -- Docker's documents ------------------------------------------------------------------------------------------------


def is_docker(manifest: Manifest) -> bool:
    """Whether a manifest is one of Docker's (schema 2)."""
    return manifest.config.media_type == oci.MEDIA_TYPE_DOCKER_CONFIG


def to_oci(manifest: Manifest) -> bytes:
    """The OCI manifest for a Docker manifest.

    Raises:
        FormatError: a layer is of a type that OCI does not have.
    """
    layers = []
    for layer in manifest.layers:
        media_type = oci.DOCKER_LAYERS.get(layer.media_type, layer.media_type)
        if not media_type.startswith(oci.LAYERS):
            raise FormatError(structure="Docker manifest", offset=0, wanted="layers that are tars", found=layer.media_type)
        layers.append((media_type, layer))
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": oci.MEDIA_TYPE_MANIFEST,
        "config": _retyped(oci.MEDIA_TYPE_CONFIG, manifest.config),
        "layers": [_retyped(media_type, layer) for media_type, layer in layers],
    }
    return _json(document)


def index_to_oci(raw: bytes, manifests: Mapping[Digest, tuple[Digest, int]]) -> bytes:
    """The OCI index for one that names Docker's manifests.

    Args:
        raw: an index.
        manifests: for the digest of each of its manifests that became OCI's, the digest and size, in bytes, that it has now.

    Returns:
        ``raw`` itself where it names none of them; else compact JSON with the original's keys in their order.  Entries for
        other manifests stay.
    """
    document: dict[str, Any] = json.loads(raw)
    changed = [entry for entry in document["manifests"] or () if entry["digest"] in manifests]
    if not changed:
        return raw
    for entry in changed:
        entry["digest"], entry["size"] = manifests[entry["digest"]]
        entry["mediaType"] = oci.MEDIA_TYPE_MANIFEST
    document["mediaType"] = oci.MEDIA_TYPE_INDEX
    return _json(document)


def image_manifest(config: tuple[Digest, int], layers: Sequence[tuple[str, Digest, int]]) -> bytes:
    """The OCI manifest of an image that has none: config (digest, size) and layers (media type, digest, size)."""
    document = {
        "schemaVersion": 2,
        "mediaType": oci.MEDIA_TYPE_MANIFEST,
        "config": {"mediaType": oci.MEDIA_TYPE_CONFIG, "digest": config[0], "size": config[1]},
        "layers": [{"mediaType": kind, "digest": digest, "size": size} for kind, digest, size in layers],
    }
    return _json(document)


def descriptor_of(data: bytes) -> Descriptor:
    """What an index would say of a manifest or index with these bytes.

    Raises:
        FormatError: it is neither.
    """
    media_type = oci.MEDIA_TYPE_INDEX if oci.kind(data) == "index" else oci.MEDIA_TYPE_MANIFEST
    return Descriptor(media_type, Digest.of(data), len(data))


def _retyped(media_type: str, descriptor: Descriptor) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": media_type, "digest": descriptor.digest, "size": descriptor.size}
    if descriptor.urls:
        made["urls"] = list(descriptor.urls)
    return made


# -- other layers ------------------------------------------------------------------------------------------------------


class NewLayer(NamedTuple):
    """What stands in for a layer: the digest and size, in bytes, of its blob, and how that is compressed: ``none``, ``gzip``
    or ``zstd``."""

    digest: Digest
    size: int
    compression: str = "none"


def with_layers(raw: bytes, digest: Digest, layers: Sequence[NewLayer | None]) -> bytes:
    """A manifest with other layers.

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
    for number, layer in enumerate(layers):
        if layer is not None:
            document["layers"][number] = _replaced(document["layers"][number], layer, is_docker)
    return _changed(document, digest)


def plain_index(raw: bytes, digest: Digest, manifests: Mapping[str, tuple[Digest, int]]) -> bytes:
    """An index reduced to the manifests that are here.

    Args:
        raw: the original.
        digest: of the original; it becomes an annotation.
        manifests: for the digest of each manifest that is there, the digest and size, in bytes, that it has here.

    Returns:
        ``raw`` itself where everything is there as it came; else compact JSON with the original's keys in their order,
        without the entries of manifests that are not here.

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
    return _json(document)


def _replaced(original: dict[str, Any], layer: NewLayer, is_docker: bool) -> dict[str, Any]:
    types = oci.DOCKER_LAYER_TYPES if is_docker else oci.LAYER_TYPES
    made: dict[str, Any] = {"mediaType": types[layer.compression], "digest": layer.digest, "size": layer.size}
    annotations = original.get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if key.startswith(_KEPT_ANNOTATIONS)}
    if kept:
        made["annotations"] = kept
    return made


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")
