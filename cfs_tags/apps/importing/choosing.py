"""Which manifests of a source are wanted: the one that it is, or those of an index for a platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cfs_tags.apps import docker, platforms
from cfs_tags.apps.importing import documents
from cfs_tags.errors import FormatError, InvalidArgument, PlatformNotFound
from cfs_tags.formats import oci

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.apps.importing.values import Options
    from cfs_tags.apps.sources import Source
    from cfs_tags.formats.oci import Descriptor, Platform
    from cfs_tags.values import Digest

__all__ = ["ATTESTED", "Chosen", "choose"]

ATTESTED = "vnd.docker.reference.digest"
"""The annotation of an entry that is about the image with that digest: buildx makes such."""

_MAX_DEPTH = 4
_MAX_ENTRIES = 1_000
"""Entries of the longest index of which an image is chosen."""


class Chosen(NamedTuple):
    """What is wanted.

    Attributes:
        images: what is added to the tag's name, and the manifest.
        document: bytes and digest of the index that they are of, where there is one.
        attestations: entries of that index that are about others.
    """

    images: list[tuple[str, Descriptor]]
    document: tuple[bytes, Digest] | None
    attestations: list[Descriptor]


def choose(source: Source, options: Options) -> Chosen:
    """Find the manifests that are wanted.

    Raises:
        PlatformNotFound: there is none for the platform.
        InvalidArgument: an index is asked for where there is none.
        FormatError, DigestMismatch, SourceNotFound: documents of the source are not what they should be.
    """
    return _Chooser(source, options).choose()


class _Chooser:
    """Finds the manifests that are wanted."""

    def __init__(self, source: Source, options: Options) -> None:
        self._source = source
        self._options = options
        self._top: set[Digest] = set()
        self._platforms: dict[Digest, Platform | None] = {}

    def choose(self) -> Chosen:
        offered = self._source.offered()
        wanted = self._options.platform
        index: tuple[bytes, Digest] | None = None
        manifests: Sequence[Descriptor] | None = None
        if len(offered) == 1:
            descriptor = offered[0]
            raw = documents.read_document(self._source, descriptor)
            document = oci.parse_manifest_or_index(raw)
            if isinstance(document, oci.Index):
                self._top.add(descriptor.digest)
                index, manifests = (raw, descriptor.digest), document.manifests
        else:
            manifests = offered
        if manifests is None:
            if wanted is not None:
                self._refuse_other(offered[0], wanted)
            if self._options.keep_index or self._options.all_platforms:
                self._no_index()
            return Chosen([("", offered[0])], None, [])
        if index is None and self._options.keep_index:
            self._no_index()
        known = self._with_platforms(manifests)
        target = self._source.text
        images: list[tuple[str, Descriptor]] = []
        attestations = [entry for entry in manifests if ATTESTED in entry.annotations]
        if self._options.all_platforms:
            names = set()
            for entry in platforms.images_of(known):
                suffix = "-" + platforms.shown(entry.platform, "-")
                if suffix not in names:
                    names.add(suffix)
                    images.append((suffix, self._manifest(entry, None)))
            if not images:
                raise PlatformNotFound(target=target, wanted="any platform", platforms=())
            try:
                mine = platforms.choose(known, wanted or platforms.this_machine(), target)
            except PlatformNotFound:
                if wanted is not None:
                    raise
            else:
                images.insert(0, ("", self._manifest(mine, None)))
        else:
            platform = wanted or platforms.this_machine()
            images.append(("", self._manifest(platforms.choose(known, platform, target), platform)))
        return Chosen(images, index, attestations)

    def _manifest(self, entry: Descriptor, platform: Platform | None) -> Descriptor:
        """An image, where an entry may be an index of its own."""
        depth = 0
        seen = set(self._top)  # of this way down: two entries may lead to the same index
        while True:
            document = oci.parse_manifest_or_index(documents.read_document(self._source, entry))
            if not isinstance(document, oci.Index):
                return entry
            depth += 1
            if entry.digest in seen or depth > _MAX_DEPTH:
                wanted = f"an index that does not lead to itself, and at most {_MAX_DEPTH} of them"
                raise FormatError(structure="index", offset=0, wanted=wanted, found=entry.digest, path=self._source.text)
            seen.add(entry.digest)
            known = self._with_platforms(document.manifests)
            entry = platforms.choose(known, platform or entry.platform or platforms.this_machine(), entry.digest)

    def _with_platforms(self, manifests: Sequence[Descriptor]) -> list[Descriptor]:
        """The entries with their platforms; where the index does not say it, the configs do."""
        if len(manifests) > _MAX_ENTRIES:
            self._too_many(len(manifests))
        found = []
        for entry in manifests:
            known = entry
            if entry.platform is None and entry.artifact_type is None and ATTESTED not in entry.annotations:
                known = entry._replace(platform=self._platform(entry))
            found.append(known)
        return found

    def _platform(self, entry: Descriptor) -> Platform | None:
        """What an image is for, by its config; each is read once, however often an index names it."""
        if entry.digest not in self._platforms:
            document = oci.parse_manifest_or_index(documents.read_document(self._source, entry))
            found = None
            if isinstance(document, oci.Manifest) and (document.is_container or docker.is_docker(document)):
                found = platforms.of_config(oci.parse_config(documents.read_config(self._source, document)))
            self._platforms[entry.digest] = found
        return self._platforms[entry.digest]

    def _too_many(self, count: int) -> NoReturn:
        wanted = f"at most {_MAX_ENTRIES} entries"
        raise FormatError(structure="index", offset=0, wanted=wanted, found=str(count), path=self._source.text)

    def _refuse_other(self, entry: Descriptor, wanted: Platform) -> None:
        found = self._with_platforms([entry._replace(platform=None)])[0].platform
        if found is None or not platforms.fits(wanted, found):
            has = (platforms.shown(found),)
            raise PlatformNotFound(target=self._source.text, wanted=platforms.shown(wanted), platforms=has)

    def _no_index(self) -> None:
        option = "--keep-index" if self._options.keep_index else "--all-platforms"
        raise InvalidArgument(argument=option, value=self._source.text, reason="is a single image, no index")
