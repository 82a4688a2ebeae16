"""Which manifests of a source are wanted: the one that it is, or those of an index for a platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.apps import blobs, platforms
from cfs_tags.apps.manifests import is_docker
from cfs_tags.errors import FormatError, PlatformNotFound, UsageError, about
from cfs_tags.formats import oci

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfs_tags.apps.importing.source.base import Source
    from cfs_tags.formats.oci import Descriptor, ImageConfig, Index, Manifest, Platform
    from cfs_tags.values import Digest

DEFAULT_LIMIT = 64 << 30
"""Bytes of the longest layer, uncompressed, that is taken by default."""

ATTESTED = "vnd.docker.reference.digest"
"""The annotation of an entry that is about the image with that digest: buildx makes such."""

_MAX_DEPTH = 4
_MAX_ENTRIES = 1_000
"""Entries of the longest index of which an image is chosen."""


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


class LeftOut(NamedTuple):
    """An entry of an index for which there is no name.

    Attributes:
        digest: of the entry.
        platform: another image has it; None for what is no image.
        kind: what it is, where it is no image: an artifact's type, or the media type of the entry.
    """

    digest: Digest
    platform: Platform | None
    kind: str | None


class Chosen(NamedTuple):
    """What is wanted.

    Attributes:
        name: what the source calls it; None where it has no name for it.
        images: what is added to the tag's name, and the manifest.
        document: bytes and digest of the index that they are of, where there is one.
        attestations: entries of that index that are about others.
        left_out: entries for which there is no name.
    """

    name: str | None
    images: list[tuple[str, Descriptor]]
    document: tuple[bytes, Digest] | None = None
    attestations: Sequence[Descriptor] = ()
    left_out: Sequence[LeftOut] = ()


def choose(source: Source, options: Options) -> Chosen:
    """Find the manifests that are wanted.

    Raises:
        PlatformNotFound: there is none for the platform.
        UsageError (ambiguous-name): the source has several that fit.
        UsageError: an index is asked for, and the source has none.
        DamagedError, SourceNotFound: documents of the source are not what they should be.
    """
    return _Chooser(source, options).choose()


def read_document(source: Source, descriptor: Descriptor) -> bytes:
    """A manifest or index of a source, checked.

    Raises:
        FormatError: it is too long.
        DamagedError, SourceNotFound: it is damaged, or missing.
    """
    return _read(source, descriptor, oci.MAX_MANIFEST, "manifest")


def parse_document(source: Source, descriptor: Descriptor, raw: bytes) -> Manifest | Index:
    """What the bytes of a manifest or index say; an error names source and digest.

    Raises:
        FormatError: they are neither.
    """
    with about(f"{source.text}: manifest {descriptor.digest}"):
        return oci.parse_manifest_or_index(raw)


def read_config(source: Source, descriptor: Descriptor) -> bytes:
    """A config of a source, checked.  Raises as :func:`read_document`."""
    return _read(source, descriptor, oci.MAX_CONFIG, "config")


def parse_config(source: Source, descriptor: Descriptor, raw: bytes) -> ImageConfig:
    """What the bytes of the config of a container image say.  Raises as :func:`parse_document`."""
    with about(f"{source.text}: config {descriptor.digest}"):
        return oci.parse_config(raw)


def _read(source: Source, descriptor: Descriptor, limit: int, what: str) -> bytes:
    blobs.hasher(descriptor.digest)  # a digest of another kind is no name of anything in a source
    reader = source.open(descriptor.digest)
    try:
        with about(f"{source.text}: {what} {descriptor.digest}"):
            return blobs.read_whole(reader, descriptor, limit, what)
    finally:
        reader.close()


class _Kind(NamedTuple):
    """What an entry of an index is, by what it leads to.

    Attributes:
        config: of a container image; None for an index, and for what is no image.
        other: what it is where it is no image.
    """

    config: Descriptor | None = None
    other: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether it is a container image, or an index, which has some."""
        return self.other is None


class _Chooser:
    """Finds the manifests that are wanted."""

    def __init__(self, source: Source, options: Options) -> None:
        self._source = source
        self._options = options
        self._top: set[Digest] = set()
        self._kinds: dict[Digest, _Kind] = {}
        self._platforms: dict[Digest, Platform] = {}

    def choose(self) -> Chosen:
        offered = self._images_offered()
        name = self._source.name_of(offered[0])
        if len(offered) > 1:
            if self._options.keep_index:
                self._no_index()
            return self._of_several(name, offered, None)
        entry = offered[0]
        raw = read_document(self._source, entry)
        document = parse_document(self._source, entry, raw)
        if isinstance(document, oci.Index):
            self._top.add(entry.digest)
            return self._of_several(name, document.manifests, (raw, entry.digest))
        if self._options.platform is not None:
            self._refuse_other(entry, self._options.platform)
        if self._options.keep_index or self._options.all_platforms:
            self._no_index()
        return Chosen(name, [("", entry)])

    def _images_offered(self) -> list[Descriptor]:
        """What of the source's entries is meant: its only image, or the images for several platforms that it consists of.

        Raises:
            UsageError: it may be one or the other.
        """
        entries = list({entry.digest: entry for entry in reversed(self._source.offered)}.values())[::-1]
        if len(entries) > 1:
            if len(entries) > _MAX_ENTRIES:
                raise self._source.ambiguous(entries)
            entries = [entry for entry in entries if self._kind(entry).is_image] or entries
        if len(entries) > 1:
            names = {self._source.name_of(entry) for entry in entries}
            known = [self._platform(entry) for entry in entries] if len(names) == 1 else []
            if None in known or len({platforms.key(one) for one in known if one is not None}) < len(entries):
                raise self._source.ambiguous(entries)
        return entries

    def _of_several(self, name: str | None, manifests: Sequence[Descriptor], document: tuple[bytes, Digest] | None) -> Chosen:
        attestations = [entry for entry in manifests if ATTESTED in entry.annotations]
        known = self._with_platforms(manifests)
        images: list[tuple[str, Descriptor]] = []
        wanted = self._options.platform or platforms.this_machine()
        if not self._options.all_platforms:
            images.append(("", self._manifest(self._pick(known, wanted, self._source.text), wanted)))
            return Chosen(name, images, document, attestations)
        left_out = [LeftOut(entry.digest, None, kind) for entry, kind in self._no_images(manifests)]
        suffixes: dict[str, Digest] = {}
        for entry in self._images_of(known):
            suffix = "-" + platforms.shown(entry.platform, "-")
            if suffix not in suffixes:
                suffixes[suffix] = entry.digest
                images.append((suffix, self._manifest(entry, None)))
            elif suffixes[suffix] != entry.digest:
                left_out.append(LeftOut(entry.digest, entry.platform, None))
        if not images:
            raise PlatformNotFound(target=self._source.text, wanted="any platform", platforms=())
        try:
            images.insert(0, ("", self._manifest(self._pick(known, wanted, self._source.text), None)))
        except PlatformNotFound:
            if self._options.platform is not None:
                raise
        return Chosen(name, images, document, attestations, left_out)

    # -- one entry -----------------------------------------------------------------------------------------------------

    def _manifest(self, entry: Descriptor, platform: Platform | None) -> Descriptor:
        """An image, where an entry may be an index of its own."""
        depth = 0
        seen = set(self._top)  # of this way down: two entries may lead to the same index
        while True:
            document = self._document(entry)
            if not isinstance(document, oci.Index):
                return entry
            depth += 1
            if entry.digest in seen or depth > _MAX_DEPTH:
                wanted = f"an index that does not lead to itself, and at most {_MAX_DEPTH} of them"
                raise FormatError(structure="index", offset=0, wanted=wanted, found=entry.digest, path=self._source.text)
            seen.add(entry.digest)
            known = self._with_platforms(document.manifests)
            entry = self._pick(known, platform or entry.platform or platforms.this_machine(), entry.digest)

    def _pick(self, known: Sequence[Descriptor], wanted: Platform, target: str) -> Descriptor:
        """The entry for a platform: the first image, as skopeo and podman choose.  Where there are no images at all, but
        artifacts, the first of those."""
        fitting = platforms.fitting(known, wanted)
        for entry in fitting:
            if self._kind(entry).is_image:
                return entry
        images = self._images_of(known)
        if fitting and not images:
            return fitting[0]
        found = tuple(dict.fromkeys(platforms.shown(entry.platform) for entry in images))
        raise PlatformNotFound(target=target, wanted=platforms.shown(wanted), platforms=found)

    def _images_of(self, known: Sequence[Descriptor]) -> list[Descriptor]:
        """The entries that are images, and so not artifacts that have the platform of one."""
        return [entry for entry in platforms.with_platform(known) if self._kind(entry).is_image]

    def _no_images(self, manifests: Sequence[Descriptor]) -> Iterator[tuple[Descriptor, str]]:
        """The entries that are no images, and what they are; attestations are taken along."""
        for entry in manifests:
            if ATTESTED in entry.annotations:
                continue
            kind = self._kind(entry)
            if not kind.is_image:
                yield entry, kind.other or entry.media_type

    def _with_platforms(self, manifests: Sequence[Descriptor]) -> list[Descriptor]:
        """The entries that are manifests or indexes, with their platforms; where the index does not say it, the configs do."""
        self._refuse_length(manifests)
        return [
            entry._replace(platform=self._platform(entry)) if ATTESTED not in entry.annotations else entry
            for entry in manifests
            if entry.media_type in oci.MANIFEST_TYPES
        ]

    def _platform(self, entry: Descriptor) -> Platform | None:
        """What an entry is for.  Of an index that does not say it that is not known: it may have images for several."""
        if entry.platform is not None and entry.platform.os and entry.platform.architecture:
            return entry.platform
        config = self._kind(entry).config
        if config is None:
            return None
        if config.digest not in self._platforms:
            found = parse_config(self._source, config, read_config(self._source, config))
            self._platforms[config.digest] = platforms.of_config(found)
        return self._platforms[config.digest]

    def _kind(self, entry: Descriptor) -> _Kind:
        """What an entry is; each is read once, however often an index names it."""
        if entry.digest not in self._kinds:
            self._kinds[entry.digest] = self._read_kind(entry)
        return self._kinds[entry.digest]

    def _read_kind(self, entry: Descriptor) -> _Kind:
        if entry.media_type not in oci.MANIFEST_TYPES:
            return _Kind(other=entry.media_type)
        document = self._document(entry)
        if isinstance(document, oci.Index):
            return _Kind()
        if not document.is_container and not is_docker(document):
            return _Kind(other=document.artifact_type or document.config.media_type)
        if document.layers and not any(layer.is_tar for layer in document.layers):
            # signatures of cosign, attestations of buildx
            return _Kind(other=document.artifact_type or document.layers[0].media_type)
        # what is kept of a thousand manifests has to be small
        return _Kind(document.config._replace(annotations={}, urls=()))

    def _document(self, entry: Descriptor) -> Manifest | Index:
        return parse_document(self._source, entry, read_document(self._source, entry))

    # -- refusing ------------------------------------------------------------------------------------------------------

    def _refuse_length(self, manifests: Sequence[Descriptor]) -> None:
        if len(manifests) > _MAX_ENTRIES:
            wanted = f"at most {_MAX_ENTRIES} entries"
            found = str(len(manifests))
            raise FormatError(structure="index", offset=0, wanted=wanted, found=found, path=self._source.text)

    def _refuse_other(self, entry: Descriptor, wanted: Platform) -> None:
        found = self._platform(entry._replace(platform=None))
        if found is None or not platforms.fits(wanted, found):
            has = (platforms.shown(found),)
            raise PlatformNotFound(target=self._source.text, wanted=platforms.shown(wanted), platforms=has)

    def _no_index(self) -> None:
        argument = "keep_index" if self._options.keep_index else "all_platforms"
        raise UsageError("invalid-argument", argument=argument, value=self._source.text, reason="is a single image, no index")
