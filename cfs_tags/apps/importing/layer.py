"""Layers into splitstreams: read from the source, checked, cut (``formats/tarlayer.py``), stored as unnamed objects.

Objects may be stored by a second process (``helper.py``), whose digests come later: until then the inline bytes between
them wait here.  Long runs of inline bytes, which are one chunk whose length stands before it, are put aside in a file; so
are the compressed body and the digests when they get long.  So memory is bounded, whatever the layer.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from cfs_tags.apps import blobs
from cfs_tags.apps.importing.source.base import Way
from cfs_tags.apps.importing.stored import is_usable
from cfs_tags.errors import CfsTagsError, DamagedError, FormatError, NotFoundError, SourceFailed, SourceNotFound, about
from cfs_tags.formats import splitstream, splitwriter, tarlayer
from cfs_tags.parallel import processors
from cfs_tags.repo.object_store import ObjectStore, ObjectWriter, Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from _typeshed import ReadableBuffer as Buffer

    from cfs_tags.apps.importing.helper import Helper
    from cfs_tags.apps.importing.plan import Import, PlannedImage, PlannedLayer
    from cfs_tags.apps.importing.source.base import Source
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.values import ContentId, Digest, ObjectId

T = TypeVar("T")

_SECOND_PROCESS = 4 << 20
"""Bytes of layers to read from which on a second process pays for itself."""
_FREE, _RATIO = 64 << 20, 32
"""Bytes that a layer may have that comes uncompressed, beside those for each byte of the blob that the manifest names: nothing
else says how many it has before its end, and whoever gives it may go on for ever."""
_LONG_RUN = 4 << 20
_LONG_BODY = 8 << 20
_LONG_TABLE = 8 << 20
"""Bytes of digests, which wait for the end of the layer, that are kept in memory."""
_LONG_WAIT = 8 << 20
"""Inline bytes that wait for digests of the helper at most."""


class LayerStore:
    """Stores the layers of an import, with a second process where there is enough to do for it.

    Attributes:
        stored: the stream of each layer of the images that were stored.
        written: objects that the second process wrote.
        written_bytes: bytes of those.
        fetched: bytes of layers that were read, by where they came from.
    """

    def __init__(
        self,
        repo: WriteRepo,
        source: Source,
        store: ObjectStore,
        wanted: Import,
        progress: Callable[[int, int], None] | None,
        processes: int | None,
        failed: Callable[[CfsTagsError], None] | None = None,
    ) -> None:
        self.fetched: dict[str, int] = {}
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
        self._failed = failed
        self._total = wanted.bytes_to_read
        missing = [layer for image in wanted.images for layer in image.missing]
        self._expected = list(dict.fromkeys(layer.descriptor.digest for layer in missing))
        self._read = 0
        self._second = processes == 2 if processes is not None else self._pays()

    def _pays(self) -> bool:
        return self._total >= _SECOND_PROCESS and processors() > 1

    def __enter__(self) -> Self:
        self._source.expect(self._expected)
        if self._second:
            from cfs_tags.apps.importing.helper import Helper

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
        left = list(image.layers)
        while left:
            layer = left.pop(self._next(left))
            content_id = layer.content_id
            have = self.stored.get(content_id) or layer.have or self._meanwhile(layer)
            if have is None:
                have = self._from_any(layer, self._store_tar if layer.is_tar else self._store_blob)
                self._source.stored(layer.descriptor, layer.key if layer.is_tar else None, have)
            elif not layer.proven and (content_id, layer.descriptor.digest) not in self._proven:
                self._prove(layer)
            self._proven.add((content_id, layer.descriptor.digest))
            self.stored[content_id] = have

    def _next(self, left: Sequence[PlannedLayer]) -> int:
        """Which layer comes next: what costs nothing, then what the source would give out first."""
        wanted = []
        for number, layer in enumerate(left):
            if layer.have is not None or layer.content_id in self.stored:
                return number
            wanted.append((layer.descriptor, layer.key if layer.is_tar else None))
        return self._source.choose(wanted)

    def _meanwhile(self, layer: PlannedLayer) -> ObjectId | None:
        """What another process stored since the plan was made."""
        found = self._repo.stream_object(layer.content_id)
        return found if found is not None and is_usable(self._repo, found, layer.is_tar) else None

    def _from_any(self, layer: PlannedLayer, take: Callable[[PlannedLayer, Way], T]) -> T:
        """Do something with the bytes of a layer, from the first of the ways to it that gives the right ones.

        Raises:
            CfsTagsError: what the last of them raised.
        """
        failed: CfsTagsError | None = None
        for way in self._source.ways(layer.descriptor, layer.key if layer.is_tar else None):
            if failed is not None and self._failed is not None:
                self._failed(failed)
            try:
                return take(layer, way)
            except (DamagedError, NotFoundError, SourceFailed) as error:
                self._source.failed(way, error)
                failed = error
        if failed is None:
            raise SourceNotFound(source=self._source.text, reason=f"has no blob {layer.descriptor.digest}")
        raise failed

    def _prove(self, layer: PlannedLayer) -> None:
        """Read a layer that is stored already, to prove that the blob has the digest that the manifest gives it.

        A host that has the layer uncompressed alone gives no blob: what is stored is what the config names, as it is with a
        layer that comes from there.
        """
        descriptor = layer.descriptor
        way = Way(self._source.text, lambda: self._source.open(descriptor.digest), descriptor.digest, descriptor.size)
        try:
            with self._plain(layer, way) as plain:
                for _ in plain:
                    pass
        except NotFoundError:
            others = self._source.ways(descriptor, layer.key if layer.is_tar else None)
            if not any(other.digest == layer.key != descriptor.digest for other in others):
                raise

    @contextmanager
    def _plain(self, layer: PlannedLayer, way: Way) -> Iterator[Iterator[bytes]]:
        """The bytes that a layer stands for, checked."""
        what = f"{way.text}: layer {layer.descriptor.digest}"
        limit = self._limit
        if way.digest != layer.descriptor.digest:
            limit = min(limit, _FREE + _RATIO * layer.descriptor.size)
        reader = way.open()
        try:
            chunks = blobs.checked(reader, way.digest, way.size, partial(self._tell, layer, way))
            if way.digest == layer.key:
                yield blobs.limited(chunks, limit, what)
            else:
                yield blobs.decompressed(chunks, layer.key, limit, what)
        finally:
            reader.close()

    def _store_tar(self, layer: PlannedLayer, way: Way) -> ObjectId:
        builder = LayerBuilder(self._repo, self._store, self._helper)
        what = f"{way.text}: layer {layer.descriptor.digest}"
        try:
            with self._plain(layer, way) as plain:
                try:
                    tarlayer.split(plain, builder)
                except FormatError as error:
                    if error.structure == "tar":
                        error.path = what
                        for _ in plain:  # read to the end: a wrong digest is reported before a fault of the content
                            pass
                    raise
            with about(what):
                return builder.finish()
        finally:
            builder.close()

    def _store_blob(self, layer: PlannedLayer, way: Way) -> ObjectId:
        """A layer that is no tar: one object, as it is."""
        descriptor = layer.descriptor
        reader = way.open()
        writer = splitwriter.Writer(self._repo.algorithm, splitstream.CONTENT_TYPE_BLOB)
        try:
            with self._store.writer() as file:
                for data in blobs.checked(reader, descriptor.digest, descriptor.size, partial(self._tell, layer, way)):
                    file.write(data)
                writer.add_external(file.finish(), descriptor.size)
        finally:
            reader.close()
        return self._store.add(writer.finish())

    def _tell(self, layer: PlannedLayer, way: Way, count: int) -> None:
        self.fetched[way.text] = self.fetched.get(way.text, 0) + count
        if way.digest != layer.descriptor.digest and way.size:
            # uncompressed there are more bytes than the plan says
            count = count * layer.descriptor.size // way.size
        self._read = min(self._read + count, self._total)
        if self._progress is not None:
            self._progress(self._read, self._total)


class LayerBuilder:
    """A :class:`~cfs_tags.formats.tarlayer.Sink` that stores what it is given.  Close it.

    Args:
        repo: where.
        store: stores objects here.
        helper: stores objects beside; None for none.
        table_bytes: of digests, which wait for the end of the layer, that are kept in memory.
    """

    def __init__(self, repo: WriteRepo, store: ObjectStore, helper: Helper | None, table_bytes: int = _LONG_TABLE) -> None:
        self._store = store
        self._helper = helper
        self._table = _Table(store, table_bytes)
        self._writer = splitwriter.Writer(repo.algorithm, splitstream.CONTENT_TYPE_LAYER, self._table)
        self._run = bytearray()
        self._aside = Scratch(store)
        self._body = bytearray()
        self._long_body = Scratch(store)
        # inline bytes, or size and digest of an object: a digest of None comes from the helper
        self._waiting: deque[bytearray | tuple[int, ObjectId | None]] = deque()
        self._waiting_bytes = 0
        self._known: deque[ObjectId] = deque()
        self._large: ObjectWriter | None = None
        self._large_size = 0

    # -- what is given -------------------------------------------------------------------------------------------------

    def inline(self, data: memoryview) -> None:
        """Bytes that stay in the stream."""
        self._run += data
        if len(self._run) > _LONG_RUN:
            self._aside.write(self._run)
            self._run.clear()

    def external(self, data: memoryview) -> None:
        """A whole file."""
        self._end_run()
        if self._helper is not None and self._helper.offer(data):
            self._waiting.append((len(data), None))
        else:
            self._waiting.append((len(data), self._store.add(data)))
        self._settle()

    def begin(self, size: int) -> None:
        """A long file starts."""
        self._end_run()
        self._large_size = size
        if self._helper is not None:
            self._helper.begin()
        else:
            self._large = self._store.writer()

    def piece(self, data: memoryview) -> None:
        """The next bytes of it."""
        if self._large is not None:
            self._large.write(data)
        elif self._helper is not None:
            self._helper.piece(data)

    def end(self) -> None:
        """It is complete."""
        object_id = None
        if self._large is not None:
            object_id, self._large = self._large.finish(), None
        elif self._helper is not None:
            self._helper.end()
        self._waiting.append((self._large_size, object_id))

    def finish(self) -> ObjectId:
        """Store the splitstream; returns its object.  The builder is used up."""
        self._end_run()
        self._settle(everything=True)
        head, tail = self._writer.finish_parts()
        if not self._long_body.size and self._table.size < self._table.most:
            return self._store.add(b"".join((*head, self._body, tail)))
        with self._store.writer() as file:
            for part in head:
                file.write(part)
            for piece in self._long_body.take():
                file.write(piece)
            file.write(self._body)
            file.write(tail)
            return file.finish()

    def close(self) -> None:
        """Let go of everything that has no name yet."""
        self._aside.close()
        self._long_body.close()
        self._table.close()
        if self._large is not None:
            self._large.close()

    # -- what waits ----------------------------------------------------------------------------------------------------

    def _end_run(self) -> None:
        """The inline bytes so far are a chunk."""
        if self._aside.size:
            self._settle(everything=True)
            self._aside.write(self._run)
            self._run.clear()
            self._writer.add_long_inline(self._aside.size, self._drained(self._aside.take()))
        elif self._run:
            self._waiting.append(self._run)
            self._waiting_bytes += len(self._run)
            self._run = bytearray()
            if self._waiting_bytes > _LONG_WAIT:
                self._settle(everything=True)

    def _drained(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            self._keep_body()

    def _settle(self, *, everything: bool = False) -> None:
        """Write down what is known by now."""
        if self._helper is not None:
            self._known.extend(self._helper.results(everything))
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, bytearray):
                self._writer.add_inline(first)
                self._waiting_bytes -= len(first)
            else:
                size, object_id = first
                if object_id is None:
                    if not self._known:
                        break
                    object_id = self._known.popleft()
                self._writer.add_external(object_id, size)
            self._waiting.popleft()
        self._keep_body()

    def _keep_body(self) -> None:
        self._body += self._writer.take_body()
        if len(self._body) > _LONG_BODY:
            self._long_body.write(self._body)
            self._body.clear()


class _Table:
    """Digests: the last of them in memory, the others in a file.  See :class:`cfs_tags.formats.splitwriter.Table`."""

    def __init__(self, store: ObjectStore, most: int) -> None:
        self.size = 0
        self.most = most
        self._file = Scratch(store)
        self._last = bytearray()

    def append(self, data: bytes) -> None:
        if len(self._last) >= self.most:
            self._file.write(self._last)
            self._last.clear()
        self._last += data
        self.size += len(data)

    def at(self, offset: int, size: int) -> bytes:
        behind = offset - self._file.size
        return bytes(self._last[behind : behind + size]) if behind >= 0 else self._file.read(offset, size)

    def pieces(self) -> Iterator[Buffer]:
        yield from self._file.pieces()
        yield self._last

    def close(self) -> None:
        self._file.close()
