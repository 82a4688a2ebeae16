"""What every source of images has."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from cfs_tags.apps.blobs import Reader, read_document
from cfs_tags.errors import CfsTagsError, SourceNotFound, UsageError
from cfs_tags.formats.oci import Descriptor
from cfs_tags.values import Digest, ObjectId


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
