"""The plan of an import: what is wanted of a source, and what of that the repository lacks.  Writes nothing."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps import blobs, manifests, platforms
from cfs_tags.apps.importing.choose import (
    ATTESTED,
    LeftOut,
    Options,
    choose,
    parse_config,
    parse_document,
    read_config,
    read_document,
)
from cfs_tags.apps.importing.stored import Known, has_image_link, is_linked, is_usable
from cfs_tags.errors import (
    BadRefLink,
    CfsTagsError,
    DamagedError,
    FormatError,
    InvalidDigest,
    NotFoundError,
    RefusedError,
    SourceFailed,
    UnsupportedError,
    UsageError,
    about,
)
from cfs_tags.formats import oci
from cfs_tags.repo import images, layout, refs
from cfs_tags.tags import rows
from cfs_tags.values import ContentId, Digest, ObjectId, TagName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.apps.importing.source.base import Source
    from cfs_tags.formats.oci import Descriptor, ImageConfig, Manifest, Platform
    from cfs_tags.repo.store import ReadRepo

_MAX_REFERRERS = 10_000
_TAR = re.compile(r"\b(?:x-)?[gu]?s?tar\b", re.IGNORECASE)


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
    """The plan of an import.

    Attributes:
        source: as it was named.
        source_digest: of the manifest or index that it offers; None where it offers several images that no index names.
        images: each once.
        names: tags and what they will name.
        referrers: subject and artifact, for each artifact that says it is about something.
        kept_index: bytes and digest of an index to keep, and the tag that it belongs to.  Where manifests of Docker's became
            OCI's, it is not the source's own.
        left_out: entries of an index for which there is no name.
        options: what was wanted.
        kept_indexes: others to keep, whose refs are there.
    """

    source: str
    source_digest: Digest | None
    images: tuple[PlannedImage, ...]
    names: tuple[tuple[str, Digest], ...]
    referrers: tuple[tuple[Digest, Digest], ...]
    kept_index: tuple[bytes, Digest, str] | None
    left_out: tuple[LeftOut, ...]
    options: Options
    kept_indexes: tuple[tuple[bytes, Digest, str], ...] = ()

    @property
    def bytes_to_read(self) -> int:
        """Of layers that the repository lacks or cannot be sure of, as the source has them."""
        missing = [layer for image in self.images for layer in image.missing]
        return sum({(layer.content_id, layer.descriptor.digest): layer.descriptor.size for layer in missing}.values())


def plan_import(repo: ReadRepo, source: Source, name: str | None, options: Options) -> Import:
    """Read manifests and configs of a source, and look what of them the repository lacks.  Writes nothing.

    Args:
        repo: where to.
        source: where from.
        name: of the tag; None for what the source calls it.
        options: what is wanted.

    Raises:
        UsageError: there is no name.
        UsageError, RefusedError (tag-exists, owner-refused): the tag cannot be made.
        SourceNotFound, UsageError, PlatformNotFound: the source does not have it.
        DamagedError, UnsupportedError: documents of the source are not what they should be.
    """
    chosen = choose(source, options)
    tag = name if name is not None else chosen.name
    if name is None and tag == "latest":
        # what a layout calls its only image: as a tag it would say nothing, and the next import would move it
        reason = "calls the image latest, and nothing else: give it a NAME"
        raise UsageError("invalid-argument", argument="SOURCE", value=source.text, reason=reason)
    if tag is None:
        raise UsageError(
            "invalid-argument", argument="SOURCE", value=source.text, reason="says no name of the image: give it a NAME"
        )
    if rows.find(repo, tag) is None:
        tag = TagName.parse(tag)
    document = chosen.document if options.keep_index else None
    planner = _Planner(repo, source)
    named: dict[str, Digest] = {}
    for suffix, descriptor in chosen.images:
        image = planner.add(descriptor)
        named.setdefault(tag + suffix, image.digest)
    _refuse_names(repo, named, options)
    if options.referrers:
        planner.add_referrers(source.listed, [] if document is None else [document[1]])
    if options.all_platforms:
        planner.add_attestations(chosen.attestations)
    offered = {descriptor.digest for _, descriptor in chosen.images} if chosen.document is None else {chosen.document[1]}
    return Import(
        source.text,
        offered.pop() if len(offered) == 1 else None,
        tuple(planner.images.values()),
        tuple(named.items()),
        tuple(planner.referrers),
        (*planner.as_kept(*document), tag) if document is not None else None,
        tuple(chosen.left_out),
        options,
    )


def plan_mending(repo: ReadRepo, source: Source, options: Options) -> tuple[Import, tuple[tuple[Digest, CfsTagsError], ...]]:
    """Look which images that refs lead to lack something, and what of them is to be read again.  Writes nothing.

    That a layer is what its manifest says was checked when the image came, and is not proven again.

    Args:
        repo: where.
        source: gives documents by their digests; those of the repository, too, where they are whole.
        options: ``limit`` alone counts.

    Returns:
        The plan; and the manifests of which no document can be had, with the reason.
    """
    planner = _Planner(repo, source, is_trusted=True)
    unavailable = []
    kept: list[tuple[bytes, Digest, str]] = []
    for content_id in _named_by_refs(repo):
        digest = content_id.manifest_digest or _index_of(content_id)
        if digest is None:
            continue
        try:
            if content_id.manifest_digest is not None:
                planner.add_lacking(digest)
            else:
                found = repo.stream_object(content_id)
                if found is None or not is_usable(repo, found, is_tar=False):
                    kept.append((source.document(digest), digest, ""))
        except (DamagedError, NotFoundError, UnsupportedError, SourceFailed) as error:
            unavailable.append((digest, error))
    wanted = Import(source.text, None, tuple(planner.images.values()), (), (), None, (), options)
    return wanted._replace(kept_indexes=tuple(kept)), tuple(unavailable)


def _index_of(content_id: ContentId) -> Digest | None:
    """The digest of a kept index."""
    with suppress(InvalidDigest):
        return Digest.parse(content_id.removeprefix(ContentId.BLOB)) if content_id.startswith(ContentId.BLOB) else None
    return None


def _named_by_refs(repo: ReadRepo) -> list[ContentId]:
    """The names in ``streams/`` that refs lead to, there or not, each once."""
    found: dict[ContentId, None] = {}
    for entry in refs.walk(repo, layout.STREAM_REFS):
        if entry.target is not None:
            with suppress(BadRefLink):
                found[layout.ref_target(entry.path, entry.target)] = None
    return list(found)


def _refuse_names(repo: ReadRepo, named: dict[str, Digest], options: Options) -> None:
    """Refuse a tag that cannot be made, before anything is read."""
    for name, digest in named.items():
        found = rows.find(repo, name)
        if found is None:
            TagName.parse(name)
        elif found.digest == digest and not found.has_ended:
            continue
        elif not options.force and not found.has_ended:
            raise RefusedError("tag-exists", name=name, found=found.value, wanted=digest)
        owner = rows.owner_of(name)
        if owner != "app" and owner not in options.owners:
            raise RefusedError("owner-refused", name=name, owner=owner)


class _Planner:
    """Looks what of the manifests the repository has."""

    def __init__(self, repo: ReadRepo, source: Source, *, is_trusted: bool = False) -> None:
        self._repo = repo
        self._source = source
        self._is_trusted = is_trusted
        self._layers: dict[ContentId, ObjectId | None] = {}
        self._usable: dict[tuple[ObjectId, bool], bool] = {}
        self._known = Known(repo)
        self.images: dict[Digest, PlannedImage] = {}
        self.referrers: dict[tuple[Digest, Digest], None] = {}
        self._by_source: dict[Digest, PlannedImage] = {}

    def add(self, descriptor: Descriptor) -> PlannedImage:
        """Plan for a manifest."""
        known = self._by_source.get(descriptor.digest)
        if known is not None:
            return known
        if descriptor.digest.algorithm != "sha256":
            # the streams of a manifest, and what leads to it, are named by sha256, here and in cfsctl
            feature = f"manifests named by {descriptor.digest.algorithm}"
            raise UnsupportedError("unsupported-feature", structure=f"manifest {descriptor.digest}", features=(feature,))
        raw = read_document(self._source, descriptor)
        manifest = parse_document(self._source, descriptor, raw)
        if isinstance(manifest, oci.Index):
            path = f"{self._source.text}: {descriptor.digest}"
            raise FormatError(structure="manifest", offset=0, wanted="a manifest", found="an index", path=path)
        source_digest = digest = descriptor.digest
        if manifests.is_docker(manifest):
            raw = manifests.to_oci(manifest)
            manifest = oci.parse_manifest(raw)
            digest = Digest.of(raw)
        if manifest.subject is not None:
            blobs.hasher(manifest.subject.digest)  # it becomes the name of a directory
        image = self._stored(digest, source_digest, raw, manifest) or self._new(digest, source_digest, raw, manifest)
        if manifest.subject is not None:
            self.referrers[manifest.subject.digest, digest] = None
        self.images[digest] = self._by_source[source_digest] = image
        return image

    def add_lacking(self, digest: Digest) -> None:
        """Plan for a manifest by its digest, if something of it is missing.

        Raises:
            SourceNotFound, SourceFailed, DamagedError, UnsupportedError: its documents cannot be had.
        """
        if digest in self.images:
            return
        raw = self._source.document(digest)
        with about(f"{self._source.text}: manifest {digest}"):
            manifest = oci.parse_manifest(raw)
        if self._stored(digest, digest, raw, manifest) is None and not (
            # a layer of an artifact may be kept in another form than an import gives it
            not manifest.is_container and self._lacks_nothing(digest)
        ):
            self.images[digest] = self._new(digest, digest, raw, manifest)

    def _is_usable(self, stream: ObjectId, is_tar: bool) -> bool:
        """Whether a layer is there in full; each is looked at once, however many images have it."""
        if (stream, is_tar) not in self._usable:
            self._usable[stream, is_tar] = is_usable(self._repo, stream, is_tar)
        return self._usable[stream, is_tar]

    def _lacks_nothing(self, digest: Digest) -> bool:
        try:
            return not images.missing_lines(self._repo, digest)
        except (NotFoundError, DamagedError, UnsupportedError):
            return False

    def add_referrers(self, listed: Sequence[Descriptor], kept: Sequence[Digest]) -> None:
        """Plan for the artifacts among ``listed`` that are about something that is imported, or about an index that is
        kept; and those about them."""
        about: dict[Digest, list[Descriptor]] = {}
        for entry in list({entry.digest: entry for entry in listed}.values())[:_MAX_REFERRERS]:
            if entry.digest in self._by_source:
                continue
            try:
                document = parse_document(self._source, entry, read_document(self._source, entry))
            except (DamagedError, NotFoundError, UnsupportedError):
                continue  # another image's business
            if isinstance(document, oci.Manifest) and document.subject is not None:
                about.setdefault(document.subject.digest, []).append(entry)
        pending = [*self._by_source, *kept]
        while pending:
            for entry in about.pop(pending.pop(), ()):
                with suppress(UnsupportedError):
                    self.add(entry)
                    pending.append(entry.digest)

    def add_attestations(self, attestations: Sequence[Descriptor]) -> None:
        """Plan for what buildx says of images that are imported: kept like referrers, though it has no subject."""
        for entry in attestations:
            about = entry.annotations[ATTESTED]
            image = next((image for source, image in self._by_source.items() if source == about), None)
            if image is not None:
                self.referrers[image.digest, self.add(entry).digest] = None

    def as_kept(self, raw: bytes, digest: Digest) -> tuple[bytes, Digest]:
        """An index, and its digest, with the manifests under the digests that they are kept with."""
        changed = {
            source: (image.digest, len(image.raw)) for source, image in self._by_source.items() if source != image.digest
        }
        made = manifests.index_to_oci(raw, changed)
        return made, digest if made is raw else Digest.of(made)

    def _stored(self, digest: Digest, source_digest: Digest, raw: bytes, manifest: Manifest) -> PlannedImage | None:
        """An image of which everything is there."""
        try:
            stored = images.load(self._repo, digest)
            layers = [
                PlannedLayer(
                    one.descriptor, one.diff_id or one.descriptor.digest, _is_tar(manifest, one.descriptor), one.object, True
                )
                for one in stored.layers
            ]
            # without a link of its own the content of a stream is not safe from the collectors of cfsctl and bootc
            whole = (
                not images.missing_parts(self._repo, digest)
                and all(has_image_link(self._repo, target) for target in stored.erofs.values())
                and is_linked(self._repo, stored.config_object, ContentId.config(manifest.config.digest))
                and all(
                    layer.have is not None
                    and self._is_usable(layer.have, layer.is_tar)
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
        raw_config = read_config(self._source, manifest.config)
        platform = None
        keys: Sequence[Digest] = [layer.digest for layer in manifest.layers]
        if manifest.is_container:
            config = parse_config(self._source, manifest.config, raw_config)
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
            usable = found is not None and self._is_usable(found, layer.is_tar)
            self._layers[content_id] = found if usable else None
        have = self._layers[content_id]
        if have is None:
            return layer._replace(proven=self._is_trusted)
        # a new manifest may lead to a stored layer only if its blob is known to be that layer
        proven = self._is_trusted or self._known.stands_for(descriptor, key)
        if proven and not self._is_trusted:
            size = self._source.size(descriptor.digest)
            if size is not None and size != descriptor.size:
                raise DamagedError(
                    "digest-mismatch",
                    path=f"blob {descriptor.digest}",
                    wanted=f"{descriptor.size} bytes",
                    found=f"{size} bytes",
                )
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
        # a signature of cosign is a blob; what calls itself a tar in some other way would be one without a word
        if not layer.is_tar and (layer.digest != diff_id or _TAR.search(layer.media_type) is not None):
            raise FormatError(
                structure=f"manifest {digest}",
                offset=0,
                wanted="layers that are tars, plain, gzip or zstd",
                found=layer.media_type,
            )
