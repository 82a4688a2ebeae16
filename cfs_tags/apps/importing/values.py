"""What is wanted of an import, what it comes to, and what became of it: values alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.values import ContentId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.formats.oci import Descriptor, Manifest, Platform
    from cfs_tags.repo import refs
    from cfs_tags.tagging import TagPlan
    from cfs_tags.values import Digest, ObjectId

__all__ = ["DEFAULT_LIMIT", "Import", "Imported", "Options", "PlannedImage", "PlannedLayer"]

DEFAULT_LIMIT = 64 << 30
"""Bytes of the longest layer, uncompressed, that is taken where nothing else is said."""


class Options(NamedTuple):
    """What is wanted of an import.

    Attributes:
        platform: which image of an index; None: the one for this machine, and a single image whatever it is for.
        all_platforms: all images of an index.
        keep_index: keep the index, too.
        referrers: take signatures and the like that the source has for what is imported.
        force: move tags that name something else.
        home: ``shared`` or ``private``; None applies the rule.
        owners: owners besides ``app`` whose tags may be moved.
        limit: bytes of the longest layer, uncompressed, that is taken.
    """

    platform: Platform | None = None
    all_platforms: bool = False
    keep_index: bool = False
    referrers: bool = True
    force: bool = False
    home: str | None = None
    owners: Sequence[str] = ()
    limit: int = DEFAULT_LIMIT


class PlannedLayer(NamedTuple):
    """A layer.

    Attributes:
        descriptor: in the manifest.
        key: the diff_id; of what is no image's tar the digest.
        is_tar: whether it is an image's tar, which is cut; else it is a blob, kept as it is.
        have: the object of its stream, where that is there.
        proven: whether the descriptor is known to stand for what is there.
    """

    descriptor: Descriptor
    key: Digest
    is_tar: bool
    have: ObjectId | None
    proven: bool

    @property
    def content_id(self) -> ContentId:
        """Where it is kept: blobs apart, so that none is ever taken for the layer whose tar has the same bytes."""
        return ContentId.layer(self.key) if self.is_tar else ContentId.blob(self.key)


class PlannedImage(NamedTuple):
    """An image or artifact to import.

    Attributes:
        digest: of the manifest, as it will be kept.
        source_digest: as the source has it: another one where Docker's manifest becomes OCI's.
        raw: the manifest.
        manifest: the same, parsed.
        raw_config: the config; None where all is there.
        platform: what it is for; None for artifacts.
        layers: bottom first.
        complete: whether manifest, config, layers and their objects are all there.
    """

    digest: Digest
    source_digest: Digest
    raw: bytes
    manifest: Manifest
    raw_config: bytes | None
    platform: Platform | None
    layers: tuple[PlannedLayer, ...]
    complete: bool

    @property
    def missing(self) -> list[PlannedLayer]:
        """Layers that must be read."""
        return [] if self.complete else [layer for layer in self.layers if layer.have is None or not layer.proven]


class Import(NamedTuple):
    """What an import comes to.

    Attributes:
        source: as it was named.
        images: each once.
        names: tags and what they will name.
        referrers: subject and artifact, for each artifact that says it is about something.
        kept_index: bytes and digest of an index to keep, and the tag that it belongs to.
        options: what was wanted.
    """

    source: str
    images: tuple[PlannedImage, ...]
    names: tuple[tuple[str, Digest], ...]
    referrers: tuple[tuple[Digest, Digest], ...]
    kept_index: tuple[bytes, Digest, str] | None
    options: Options

    @property
    def bytes_to_read(self) -> int:
        """Of layers that the repository lacks or cannot be sure of, as the source has them."""
        missing = [layer for image in self.images for layer in image.missing]
        return sum({(layer.content_id, layer.descriptor.digest): layer.descriptor.size for layer in missing}.values())


class Imported(NamedTuple):
    """What became of an import.

    Attributes:
        plan: what was wanted.
        tags: what became of the tags.
        outcome: transactions of a crashed writer that were taken back before.
        objects: how many were written; what was there already is not among them.
        object_bytes: bytes of those.
    """

    plan: Import
    tags: TagPlan
    outcome: refs.Outcome
    objects: int
    object_bytes: int
