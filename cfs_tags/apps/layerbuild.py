"""A layer's splitstream, built while its tar is cut (``apps/tarsplit.py``), with bounded memory.

Objects may be stored by a second process (``apps/helper.py``), whose digests come later: until then the inline bytes
between them wait here.  Long runs of inline bytes, which are one chunk whose length stands before it, are put aside in a
file; so is the compressed body when it gets long.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.repo.objects import Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfs_tags.apps.helper import Helper
    from cfs_tags.repo.objects import ObjectStore, ObjectWriter
    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.values import ObjectId

__all__ = ["LayerBuilder"]

_LONG_RUN = 4 << 20
_LONG_BODY = 8 << 20
_LONG_WAIT = 8 << 20
"""Inline bytes that wait for digests of the helper at most."""


class LayerBuilder:
    """A :class:`~cfs_tags.apps.tarsplit.Sink` that stores what it is given.  Close it.

    Args:
        repo: where.
        store: stores objects here.
        helper: stores objects beside; None for none.
    """

    def __init__(self, repo: WriteRepo, store: ObjectStore, helper: Helper | None) -> None:
        self._store = store
        self._helper = helper
        self._writer = splitwriter.Writer(repo.algorithm, splitstream.CONTENT_TYPE_LAYER)
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
        if not self._long_body.size and sum(map(len, head)) < _LONG_BODY:
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
