"""The plan of an import: what is wanted of a source, and what of that the repository lacks.  Writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags import tags
from cfs_tags.apps import blobs, docker, platforms
from cfs_tags.apps.importing import documents
from cfs_tags.apps.importing.choosing import ATTESTED, choose
from cfs_tags.apps.importing.present import Known, is_linked, is_usable
from cfs_tags.apps.importing.values import Import, PlannedImage, PlannedLayer
from cfs_tags.errors import (
    DamagedError,
    DigestMismatch,
    FormatError,
    InvalidArgument,
    NotFoundError,
    OwnerRefused,
    TagExists,
    UnsupportedError,
)
from cfs_tags.formats import oci
from cfs_tags.repo import contents
from cfs_tags.values import ContentId, Digest, TagName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.apps.importing.values import Options
    from cfs_tags.apps.sources import Source
    from cfs_tags.formats.oci import Descriptor, ImageConfig, Manifest
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.values import ObjectId

__all__ = ["plan"]

_MAX_REFERRERS = 10_000


def plan(repo: ReadRepo, source: Source, name: str | None, options: Options) -> Import:
    """Read manifests and configs of a source, and look what of them the repository lacks.  Writes nothing.

    Args:
        repo: where to.
        source: where from.
        name: of the tag; None for what the source calls it.
        options: what is wanted.

    Raises:
        InvalidArgument: there is no name.
        InvalidTagName, TagExists, OwnerRefused: the tag cannot be made.
        SourceNotFound, AmbiguousName, PlatformNotFound: the source does not have it.
        FormatError, DigestMismatch, UnsupportedError: documents of the source are not what they should be.
    """
    tag = name if name is not None else source.name
    if tag is None:
        raise InvalidArgument(argument="SOURCE", value=source.text, reason="says no name of the image: give it a NAME")
    if tags.find(repo, tag) is None:
        tag = TagName.parse(tag)
    chosen = choose(source, options)
    index = (*chosen.document, tag) if options.keep_index and chosen.document is not None else None
    planner = _Planner(repo, source)
    named: dict[str, Digest] = {}
    for suffix, descriptor in chosen.images:
        image = planner.add(descriptor)
        named.setdefault(tag + suffix, image.digest)
    _refuse_names(repo, named, options)
    if options.referrers:
        planner.add_referrers(source.listed(), [] if index is None else [index[1]])
    if options.all_platforms:
        planner.add_attestations(chosen.attestations)
    return Import(source.text, tuple(planner.images.values()), tuple(named.items()), tuple(planner.referrers), index, options)


def _refuse_names(repo: ReadRepo, named: dict[str, Digest], options: Options) -> None:
    """Say at once what would be said in the end: nothing is read for a tag that cannot be made."""
    for name, digest in named.items():
        found = tags.find(repo, name)
        if found is None:
            TagName.parse(name)
        elif found.digest == digest:
            continue
        elif not options.force:
            raise TagExists(name=name, found=found.value, wanted=digest)
        owner = tags.owner_of(name)
        if owner != "app" and owner not in options.owners:
            raise OwnerRefused(name=name, owner=owner)


class _Planner:
    """Looks what of the manifests the repository has."""

    def __init__(self, repo: ReadRepo, source: Source) -> None:
        self._repo = repo
        self._source = source
        self._layers: dict[ContentId, ObjectId | None] = {}
        self._known = Known(repo)
        self.images: dict[Digest, PlannedImage] = {}
        self.referrers: dict[tuple[Digest, Digest], None] = {}
        self._by_source: dict[Digest, PlannedImage] = {}

    def add(self, descriptor: Descriptor) -> PlannedImage:
        """Plan for a manifest."""
        known = self._by_source.get(descriptor.digest)
        if known is not None:
            return known
        raw = documents.read_document(self._source, descriptor)
        manifest = oci.parse_manifest(raw)
        source_digest = digest = descriptor.digest
        if docker.is_docker(manifest):
            raw = docker.to_oci(manifest)
            manifest = oci.parse_manifest(raw)
            digest = _sha256(raw)
        if manifest.subject is not None:
            blobs.hasher(manifest.subject.digest)  # it becomes the name of a directory
        image = self._stored(digest, source_digest, raw, manifest) or self._new(digest, source_digest, raw, manifest)
        if manifest.subject is not None:
            self.referrers[manifest.subject.digest, digest] = None
        self.images[digest] = self._by_source[source_digest] = image
        return image

    def add_referrers(self, listed: Sequence[Descriptor], kept: Sequence[Digest]) -> None:
        """Plan for the artifacts among ``listed`` that are about something that is imported, or about an index that is
        kept; and those about them."""
        about: dict[Digest, list[Descriptor]] = {}
        for entry in list({entry.digest: entry for entry in listed}.values())[:_MAX_REFERRERS]:
            if entry.digest in self._by_source:
                continue
            try:
                document = oci.parse_manifest_or_index(documents.read_document(self._source, entry))
            except (DamagedError, NotFoundError, UnsupportedError):
                continue  # another image's business
            if isinstance(document, oci.Manifest) and document.subject is not None:
                about.setdefault(document.subject.digest, []).append(entry)
        pending = [*self._by_source, *kept]
        while pending:
            for entry in about.pop(pending.pop(), ()):
                self.add(entry)
                pending.append(entry.digest)

    def add_attestations(self, attestations: Sequence[Descriptor]) -> None:
        """Plan for what buildx says of images that are imported: kept like referrers, though it has no subject."""
        for entry in attestations:
            about = entry.annotations[ATTESTED]
            image = next((image for source, image in self._by_source.items() if source == about), None)
            if image is not None:
                self.referrers[image.digest, self.add(entry).digest] = None

    def _stored(self, digest: Digest, source_digest: Digest, raw: bytes, manifest: Manifest) -> PlannedImage | None:
        """An image of which everything is there."""
        try:
            stored = contents.load(self._repo, digest)
            layers = [
                PlannedLayer(
                    one.descriptor, one.diff_id or one.descriptor.digest, _is_tar(manifest, one.descriptor), one.object, True
                )
                for one in stored.layers
            ]
            # without a link of its own the content of a stream is not safe from the collectors of cfsctl and bootc
            whole = (
                not contents.missing_parts(self._repo, digest)
                and is_linked(self._repo, stored.config_object, ContentId.config(manifest.config.digest))
                and all(
                    layer.have is not None
                    and is_usable(self._repo, layer.have, layer.is_tar)
                    and is_linked(self._repo, layer.have, ContentId.layer(layer.key), ContentId.blob(layer.key))
                    for layer in layers
                )
            )
        except (NotFoundError, DamagedError, UnsupportedError):
            return None
        if not whole:
            return None
        platform = platforms.of_config(stored.config) if stored.config is not None else None
        return PlannedImage(digest, source_digest, raw, manifest, None, platform, tuple(layers), True)

    def _new(self, digest: Digest, source_digest: Digest, raw: bytes, manifest: Manifest) -> PlannedImage:
        raw_config = documents.read_config(self._source, manifest)
        platform = None
        keys: Sequence[Digest] = [layer.digest for layer in manifest.layers]
        if manifest.is_container:
            config = oci.parse_config(raw_config)
            platform = platforms.of_config(config)
            keys = config.diff_ids
            _refuse_config(config, manifest, digest)
        layers = [self._layer(manifest, *pair) for pair in zip(manifest.layers, keys, strict=True)]
        return PlannedImage(digest, source_digest, raw, manifest, raw_config, platform, tuple(layers), False)

    def _layer(self, manifest: Manifest, descriptor: Descriptor, key: Digest) -> PlannedLayer:
        blobs.hasher(descriptor.digest)
        blobs.hasher(key)
        layer = PlannedLayer(descriptor, key, _is_tar(manifest, descriptor), None, False)
        content_id = layer.content_id
        if content_id not in self._layers:
            found = self._repo.stream_object(content_id)
            usable = found is not None and is_usable(self._repo, found, layer.is_tar)
            self._layers[content_id] = found if usable else None
        have = self._layers[content_id]
        if have is None:
            return layer
        # a new manifest reaches what is there only where its blob is known to be that
        proven = self._known.stands_for(descriptor, key)
        if proven:
            size = self._source.size(descriptor.digest)
            if size is not None and size != descriptor.size:
                raise DigestMismatch(path=f"blob {descriptor.digest}", wanted=f"{descriptor.size} bytes", found=f"{size} bytes")
        return layer._replace(have=have, proven=proven)


def _is_tar(manifest: Manifest, layer: Descriptor) -> bool:
    return manifest.is_container and layer.is_tar


def _refuse_config(config: ImageConfig, manifest: Manifest, digest: Digest) -> None:
    if len(config.diff_ids) != len(manifest.layers):
        raise FormatError(
            structure=f"config of {digest}",
            offset=0,
            wanted=f"{len(manifest.layers)} diff_ids, one for each layer",
            found=str(len(config.diff_ids)),
        )
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if not layer.is_tar and layer.digest != diff_id:
            raise FormatError(
                structure=f"manifest {digest}",
                offset=0,
                wanted="layers that are tars, plain, gzip or zstd",
                found=layer.media_type,
            )


def _sha256(data: bytes) -> Digest:
    import hashlib

    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
