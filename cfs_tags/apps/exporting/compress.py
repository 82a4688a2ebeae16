"""Compressing layers, with several processors and bounded memory.  The same content gives the same bytes on every machine with
the same libraries, however many processors there are."""

from __future__ import annotations

import errno
import sys
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from cfs_tags.errors import SystemFailure
from cfs_tags.parallel import processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

_BLOCK = 256 << 10
"""Bytes that one thread compresses at once."""
_WINDOW = 32 << 10
"""Bytes before a block that deflate may refer to."""
_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3
_ZSTD_WORKERS = 4
"""Each has some 10 MiB of buffers."""
_HEADER = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF))  # deflate, no name, no time, of no known system


class Compressor(Protocol):
    """Takes a stream in pieces, and gives another."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes; gives what is ready.

        Raises:
            SystemFailure: there is no memory for it.
        """

    def finish(self) -> Iterator[bytes]:
        """The rest.  Raises as :meth:`feed`."""

    def close(self) -> None:
        """Let go of threads.  Harmless when repeated."""


def compressor(kind: str) -> Compressor:
    """For ``gzip`` or ``zstd``."""
    return _Gzip() if kind == "gzip" else _Zstd()


class _Gzip:
    """Blocks that are compressed apart, each with the end of the one before as its dictionary, and put one after the other:
    one gzip member (RFC 1952) whose deflate blocks end at byte boundaries (RFC 1951, 3.2.4)."""

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        count = processors()
        self._pool = ThreadPoolExecutor(count)
        self._most = 2 * count
        self._running: deque[Future[bytes]] = deque()
        self._gathered = bytearray()
        self._before = b""
        self._crc = 0
        self._size = 0
        self._begun = False
        self._alone = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._gathered += data
        while len(self._gathered) >= _BLOCK:
            block = bytes(self._gathered[:_BLOCK])
            del self._gathered[:_BLOCK]
            yield from self._submit(block, last=False)

    def finish(self) -> Iterator[bytes]:
        yield from self._submit(bytes(self._gathered), last=True)
        while self._running:
            yield self._running.popleft().result()
        yield (self._crc & 0xFFFFFFFF).to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, block: bytes, *, last: bool) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            yield _HEADER
        self._crc = zlib.crc32(block, self._crc)
        self._size += len(block)
        self._running.append(self._compressed(block, last=last))
        self._before = block[-_WINDOW:]
        while len(self._running) > self._most or (self._running and self._running[0].done()):
            yield self._running.popleft().result()

    def _compressed(self, block: bytes, *, last: bool) -> Future[bytes]:
        from concurrent.futures import Future

        if not self._alone:
            try:
                return self._pool.submit(_deflate, block, self._before, last)
            except RuntimeError:  # the system gives no thread
                self._alone = True
        done: Future[bytes] = Future()
        done.set_result(_deflate(block, self._before, last))
        return done


def _deflate(block: bytes, before: bytes, last: bool) -> bytes:
    made = (
        zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY, before)
        if before
        else zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15)
    )
    return made.compress(block) + made.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


class _Zstd:
    def __init__(self) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        options: dict[Any, int] = {zstd.CompressionParameter.compression_level: _ZSTD_LEVEL}
        options[zstd.CompressionParameter.checksum_flag] = 1
        if zstd.CompressionParameter.nb_workers.bounds()[1] > 0:
            # with one worker or many the bytes are the same; without any they are others
            options[zstd.CompressionParameter.nb_workers] = min(processors(), _ZSTD_WORKERS)
        self._compressor = zstd.ZstdCompressor(options=options)
        self._error = zstd.ZstdError

    def feed(self, data: bytes) -> Iterator[bytes]:
        made = self._try(self._compressor.compress, data)
        if made:
            yield made

    def finish(self) -> Iterator[bytes]:
        yield self._try(self._compressor.flush)

    def _try(self, step: Callable[..., bytes], *data: bytes) -> bytes:
        try:
            return step(*data)
        except self._error as error:  # no memory, or no thread: without threads the bytes would be others
            raise SystemFailure(operation="compress with", path="zstd", reason=str(error), errno=errno.EAGAIN) from error

    def close(self) -> None:
        pass
