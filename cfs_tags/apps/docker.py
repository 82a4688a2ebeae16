"""Docker's documents as OCI's.  Pure.

A repository keeps container images with OCI manifests: one whose config has Docker's media type is an artifact to cfsctl.
The config's bytes, and so the image ID, stay as they are, and so do all digests and sizes; only media types change.  (skopeo
writes the config anew when it converts: the image gets another ID.)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cfs_tags.errors import FormatError
from cfs_tags.formats import oci

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cfs_tags.formats.oci import Descriptor, Manifest
    from cfs_tags.values import Digest

__all__ = ["GZIP", "PLAIN", "ZSTD", "image_manifest", "index_to_oci", "is_docker", "to_oci"]

PLAIN = "application/vnd.oci.image.layer.v1.tar"
GZIP = PLAIN + "+gzip"
ZSTD = PLAIN + "+zstd"

_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar": PLAIN,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
}


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
        media_type = _LAYERS.get(layer.media_type, layer.media_type)
        if not media_type.startswith("application/vnd.oci.image.layer."):
            raise FormatError(structure="Docker manifest", offset=0, wanted="layers that are tars", found=layer.media_type)
        layers.append((media_type, layer))
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": oci.MEDIA_TYPE_MANIFEST,
        "config": _descriptor(oci.MEDIA_TYPE_CONFIG, manifest.config),
        "layers": [_descriptor(media_type, layer) for media_type, layer in layers],
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
    changed = [entry for entry in document["manifests"] if entry["digest"] in manifests]
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


def _descriptor(media_type: str, descriptor: Descriptor) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": media_type, "digest": descriptor.digest, "size": descriptor.size}
    if descriptor.urls:
        made["urls"] = list(descriptor.urls)
    return made


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
