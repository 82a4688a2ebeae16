"""Layers into splitstreams: read from the source, checked, stored as objects that nothing names yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags.apps import blobs, tarsplit
from cfs_tags.apps.importing.present import is_usable
from cfs_tags.apps.layerbuild import LayerBuilder
from cfs_tags.errors import FormatError
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.processes import processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from cfs_tags.apps.blobs import Reader
    from cfs_tags.apps.helper import Helper
    from cfs_tags.apps.importing.values import Import, PlannedImage, PlannedLayer
    from cfs_tags.apps.sources import Source
    from cfs_tags.repo.objects import ObjectStore
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.values import ContentId, Digest, ObjectId

__all__ = ["LayerStore"]

_SECOND_PROCESS = 4 << 20
"""Bytes of layers to read from which on a second process pays for itself."""


class LayerStore:
    """Stores the layers of an import, with a second process where there is enough to do for it.

    Attributes:
        stored: the stream of each layer of the images that were stored.
        written: objects that the second process wrote.
        written_bytes: bytes of those.
    """

    def __init__(
        self,
        repo: WriteRepo,
        source: Source,
        store: ObjectStore,
        wanted: Import,
        progress: Callable[[int, int], None] | None,
        processes: int | None,
    ) -> None:
        self.stored: dict[ContentId, ObjectId] = {}
        self.written = 0
        self.written_bytes = 0
        self._repo = repo
        self._source = source
        self._store = store
        self._limit = wanted.options.limit
        self._helper: Helper | None = None
        self._proven: set[tuple[ContentId, Digest]] = set()
        self._progress = progress
        self._total = wanted.bytes_to_read
        self._read = 0
        self._second = processes == 2 if processes is not None else self._pays()

    def _pays(self) -> bool:
        return self._total >= _SECOND_PROCESS and processors() > 1

    def __enter__(self) -> Self:
        if self._second:
            from cfs_tags.apps.helper import Helper

            self._helper = Helper(self._repo)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._helper is not None:
            self._helper.close()
            self.written += self._helper.written
            self.written_bytes += self._helper.written_bytes
            self._helper = None

    def store(self, image: PlannedImage) -> None:
        """Store what is missing of the layers of an image, and read what is not known to be the right one."""
        for layer in image.layers:
            content_id = layer.content_id
            have = self.stored.get(content_id) or layer.have or self._meanwhile(layer)
            if have is None:
                have = self._store_tar(layer) if layer.is_tar else self._store_blob(layer)
            elif not layer.proven and (content_id, layer.descriptor.digest) not in self._proven:
                self._prove(layer)
            self._proven.add((content_id, layer.descriptor.digest))
            self.stored[content_id] = have

    def _meanwhile(self, layer: PlannedLayer) -> ObjectId | None:
        """What somebody else stored since the plan was made."""
        found = self._repo.stream_object(layer.content_id)
        return found if found is not None and is_usable(self._repo, found, layer.is_tar) else None

    def _prove(self, layer: PlannedLayer) -> None:
        """Read a layer that is there already: that the blob is what it is said to be is known afterwards."""
        reader = self._source.open(layer.descriptor.digest)
        try:
            for _ in self._plain(layer, reader):
                pass
        finally:
            reader.close()

    def _plain(self, layer: PlannedLayer, reader: Reader) -> Iterator[bytes]:
        """The bytes that a layer stands for, checked."""
        descriptor, limit = layer.descriptor, self._limit
        what = f"layer {descriptor.digest}"
        chunks = blobs.checked(reader, descriptor.digest, descriptor.size, self._tell)
        if descriptor.digest == layer.key:
            return blobs.limited(chunks, limit, what)
        return blobs.decompressed(chunks, layer.key, limit, what)

    def _store_tar(self, layer: PlannedLayer) -> ObjectId:
        reader = self._source.open(layer.descriptor.digest)
        builder = LayerBuilder(self._repo, self._store, self._helper)
        plain = self._plain(layer, reader)
        try:
            try:
                tarsplit.split(plain, builder)
            except FormatError as error:
                if error.structure == "tar":
                    error.path = f"layer {layer.descriptor.digest}"
                    for _ in plain:  # of a blob that is not the right one that is to be said, not what is wrong with it
                        pass
                raise
            return builder.finish()
        finally:
            builder.close()
            reader.close()

    def _store_blob(self, layer: PlannedLayer) -> ObjectId:
        """A layer that is no tar: one object, as it is."""
        descriptor = layer.descriptor
        reader = self._source.open(descriptor.digest)
        writer = splitwriter.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_BLOB)
        try:
            with self._store.writer() as file:
                for data in blobs.checked(reader, descriptor.digest, descriptor.size, self._tell):
                    file.write(data)
                writer.add_external(file.finish(), descriptor.size)
        finally:
            reader.close()
        return self._store.add(writer.finish())

    def _tell(self, count: int) -> None:
        self._read += count
        if self._progress is not None:
            self._progress(self._read, self._total)
