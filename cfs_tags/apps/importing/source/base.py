"""What every source of images has."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import NamedTuple

from cfs_tags.apps.blobs import Reader, read_document, read_whole
from cfs_tags.errors import (
    CfsTagsError,
    DamagedError,
    NotFoundError,
    SourceFailed,
    SourceNotFound,
    UnsupportedError,
    UsageError,
)
from cfs_tags.formats import oci
from cfs_tags.formats.oci import Descriptor
from cfs_tags.values import Digest, ObjectId

_MOST_IMAGES = 1000
"""Images of a source that are looked at for other forms of a layer."""


class Way(NamedTuple):
    """One way to the bytes of a layer.

    Attributes:
        text: where they come from.
        open: gives them, not checked.
        digest: that they have to have: of the blob that the manifest names, or of the layer uncompressed.
        size: how many there are; None where only their end tells.
    """

    text: str
    open: Callable[[], Reader]
    digest: Digest
    size: int | None


class Source(ABC):
    """Images that can be read.  Close it.

    Attributes:
        text: how the source was named.
        name: what its image is called, None where it has no name, or the entries have some.
        offered: what was asked for: a manifest or index, or several, one of which is meant or which are one image for
            several platforms.
        listed: everything else that it lists by name: referrers may be among it.
    """

    def __init__(self, text: str, name: str | None = None) -> None:
        self.text = text
        self.name = name
        self.offered: Sequence[Descriptor] = ()
        self.listed: Sequence[Descriptor] = ()
        self._layers: dict[Digest, list[Descriptor]] | None = None

    @abstractmethod
    def open(self, digest: Digest) -> Reader:
        """The bytes of a blob, not checked.

        Raises:
            SourceNotFound: there is none.
            FormatError: something else is in its place.
        """

    def size(self, digest: Digest) -> int | None:
        """Bytes of a blob; None if only fetching it would tell.  Raises as :meth:`open`."""
        reader = self.open(digest)
        try:
            return reader.getbuffer().nbytes if isinstance(reader, io.BytesIO) else int(getattr(reader, "size", 0))
        finally:
            reader.close()

    def document(self, digest: Digest) -> bytes:
        """The bytes of a manifest or index by its digest, which they have.

        Raises:
            SourceNotFound: there is none.
            DamagedError: it is too long, or has another digest.
        """
        reader = self.open(digest)
        try:
            return read_document(reader, digest)
        finally:
            reader.close()

    def ways(self, layer: Descriptor, diff_id: Digest | None) -> Iterator[Way]:
        """The ways to a layer, the best first; where one fails, the next is tried.

        Args:
            layer: as the manifest names it.
            diff_id: the digest of its tar; None where it is kept as the blob that it is.
        """
        yield Way(self.text, lambda: self.open(layer.digest), layer.digest, layer.size)
        for other in self._forms(diff_id) if diff_id is not None else ():
            if other.digest != layer.digest:
                yield Way(self.text, partial(self.open, other.digest), other.digest, other.size)

    def _forms(self, diff_id: Digest) -> Sequence[Descriptor]:
        """Layers with the same tar of images that it lists: not compressed, or in another way."""
        if self._layers is None:
            self._layers = {}
            pending = list(dict.fromkeys(entry.digest for entry in (*self.offered, *self.listed)))[:_MOST_IMAGES]
            for digest in pending:  # grows
                with suppress(DamagedError, NotFoundError, SourceFailed, UnsupportedError):  # another image's business
                    document = oci.parse_manifest_or_index(self.document(digest))
                    if isinstance(document, oci.Index):
                        more = [entry.digest for entry in document.manifests if entry.digest not in pending]
                        pending += more[: _MOST_IMAGES - len(pending)]
                    elif document.is_container:
                        config = oci.parse_config(self._config(document.config))
                        for known, layer in zip(config.diff_ids, document.layers, strict=False):
                            self._layers.setdefault(known, []).append(layer)
        return self._layers.get(diff_id, ())

    def _config(self, descriptor: Descriptor) -> bytes:
        reader = self.open(descriptor.digest)
        try:
            return read_whole(reader, descriptor, oci.MAX_CONFIG, "config")
        finally:
            reader.close()

    def know(self, digest: Digest, raw: bytes) -> None:  # noqa: B027
        """Be told a manifest whose blobs may be asked for: one that the repository has."""

    def sharing(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """For the time of an import that makes tags with these names."""
        return nullcontext()

    def expect(self, layers: Sequence[Digest]) -> None:  # noqa: B027
        """Be told which blobs of layers will be asked for: a source may fetch them together."""

    def choose(self, layers: Sequence[tuple[Descriptor, Digest | None]]) -> int:
        """Which of some layers, with arguments of :meth:`ways`, is to be read next; may wait until there is a good one."""
        return 0

    def stored(self, layer: Descriptor, diff_id: Digest | None, stream: ObjectId) -> None:  # noqa: B027
        """Be told that a layer is in the repository now, and in which splitstream."""

    def failed(self, way: Way, error: CfsTagsError) -> None:  # noqa: B027
        """Be told that a way did not give the right bytes."""

    def name_of(self, entry: Descriptor) -> str | None:
        """What the source calls an entry of :attr:`offered`."""
        return self.name

    def ambiguous(self, entries: Sequence[Descriptor]) -> UsageError:
        """The error that lists the entries that fit."""
        return UsageError("ambiguous-name", name=self.text, candidates=tuple(f"@{entry.digest}" for entry in entries))

    @abstractmethod
    def close(self) -> None:
        """Close it, and remove what it downloaded.  Harmless when repeated."""

    def _no_blob(self, digest: Digest) -> SourceNotFound:
        return SourceNotFound(source=self.text, reason=f"has no blob {digest}")
