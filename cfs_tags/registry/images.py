"""Images as they are served: the manifest that they have here, and the blobs that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cfs_tags.apps.layer_tar import opened
from cfs_tags.apps.manifests import NewLayer, with_layers
from cfs_tags.errors import CfsTagsError
from cfs_tags.formats import oci, splitstream
from cfs_tags.repo import images
from cfs_tags.repo.images import StoredImage, StoredLayer
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import Digest, ObjectId

_MANIFEST_TYPES = (oci.MEDIA_TYPE_MANIFEST, oci.MEDIA_TYPE_DOCKER_MANIFEST)
INDEX_TYPES = (oci.MEDIA_TYPE_INDEX, oci.MEDIA_TYPE_DOCKER_INDEX)
"""Media types that are sent as a header; any other text of a document is foreign, and is not."""
_COMPRESSED = ("+gzip", "+zstd", ".gzip", ".zstd")


class Blob(NamedTuple):
    """What a manifest names: its digest, its size in bytes, the object of its splitstream."""

    digest: Digest
    size: int
    stream: ObjectId


class Manifest(NamedTuple):
    """A manifest as it is served.

    Attributes:
        digest: of ``raw``.
        original: digest of the manifest in the repository; the same where the bytes are.
        raw: what is sent.
        media_type: of it.
        artifact_type: as the referrers API says it; None for an index that does not.
        subject: what it refers to, None where it does not.
        annotations: foreign text by key.
        blobs: by digest.
    """

    digest: Digest
    original: Digest
    raw: bytes
    media_type: str
    artifact_type: str | None
    subject: Digest | None
    annotations: dict[str, str]
    blobs: dict[Digest, Blob]

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes, about."""
        return 2000 + 4 * len(self.raw) + 1000 * len(self.blobs)


class NotServed(NamedTuple):
    """Why something that has a name is not served."""

    reason: str


def one_of(found: str | None, known: Sequence[str]) -> str:
    """A media type that is known; the first of them in place of another."""
    return found if found is not None and found in known else known[0]


def manifest(repo: ReadRepo, digest: Digest) -> Manifest | NotServed:
    """Read an image, and make of it what can be served."""
    image = images.load(repo, digest)
    raw = images.raw_manifest(repo, digest)
    config = image.manifest.config
    blobs = {config.digest: Blob(config.digest, config.size, image.config_object)}
    # the manifest that it came with, which no request for a manifest is answered with where layers are kept in another form
    blobs[digest] = Blob(digest, len(raw), image.object)
    plain: list[NewLayer | None] = []
    for layer in image.layers:
        made = _layer(repo, image, layer)
        if isinstance(made, NotServed):
            return made
        blobs[made.digest] = made
        plain.append(None if made.digest == layer.descriptor.digest else NewLayer(made.digest, made.size))
    served = with_layers(raw, digest, plain)
    manifest = image.manifest
    return Manifest(
        digest=digest if served is raw else Digest.of(served),
        original=digest,
        raw=served,
        media_type=one_of(manifest.media_type, _MANIFEST_TYPES),
        artifact_type=manifest.artifact_type or config.media_type,
        subject=manifest.subject.digest if manifest.subject is not None else None,
        annotations=dict(oci.parse_manifest(served).annotations),
        blobs=blobs,
    )


def _layer(repo: ReadRepo, image: StoredImage, layer: StoredLayer) -> Blob | NotServed:
    """What is kept of a layer, by the digest that it has in that form."""
    descriptor = layer.descriptor
    if layer.object is None:
        return NotServed(f"layer {descriptor.digest} is not in the repository")
    try:
        with opened(repo, layer.object, descriptor.digest) as stream:
            kind, size = stream.content_type, stream.stream_size
    except CfsTagsError as error:
        return NotServed(error.message)
    if image.config is None:
        # an artifact's layer goes by the digest of the blob; cfsctl unpacks those that say they are compressed tars
        changed = kind == splitstream.CONTENT_TYPE_LAYER and descriptor.media_type.endswith(_COMPRESSED)
        if changed or size != descriptor.size:
            return NotServed(f"layer {descriptor.digest} is kept in another form than it came in")
        return Blob(descriptor.digest, size, layer.object)
    assert layer.diff_id is not None
    return Blob(layer.diff_id, size, layer.object)
