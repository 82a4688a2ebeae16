"""Storing many objects: each once, whole, and with fs-verity where the repository is secure.

An object is written to a file without a name, which gets its name when its digest is known; what is not finished
vanishes with its descriptor.  Nothing is synced: who names what was stored here (a link in ``streams/``) has
:func:`cfs_tags.repo.fsops.sync_filesystem` done first, once for all.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from cfs_tags.errors import FormatError, SystemFailure
from cfs_tags.formats import fsverity
from cfs_tags.repo import fsops, layout, verity
from cfs_tags.repo.incoming import put_in_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from _typeshed import ReadableBuffer as Buffer

    from cfs_tags.repo.store import WriteRepo
    from cfs_tags.values import ContentId, ObjectId


class ObjectStore:
    """Adds objects to a repository.

    An object that is there already is taken for what its name says, if it has the right size: a crash leaves shorter
    ones, because nothing is synced before it is named.  In a secure repository it must also have fs-verity with the digest
    that is its name, without which the kernel would not mount it.  Others are replaced.

    Attributes:
        written: objects that were not there before.
        written_bytes: bytes of those.
    """

    def __init__(self, repo: WriteRepo) -> None:
        self.written = 0
        self.written_bytes = 0
        self._repo = repo
        self._fd = repo.fd
        self._objects = -1
        self._secure = repo.is_secure
        self._made: set[str] = set()

    def add(self, data: Buffer) -> ObjectId:
        """Store bytes, and give the name that they have from now on.

        Raises:
            SystemFailure: the system refused.
            FormatError: a directory has the place of the object.
        """
        size = memoryview(data).nbytes
        object_id = fsverity.measure(data, self._repo.algorithm)
        if self.has(object_id, size):
            return object_id
        try:
            fd = fsops.open_unnamed(self._home(), ".")
            try:
                fsops.write(fd, data)
                fd = self.sealed(fd)
                self.adopt(fd, object_id, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise self.failure(error, object_id) from error
        return object_id

    def add_stream(self, content_id: ContentId, data: Buffer) -> ObjectId:
        """Store a splitstream and give it its name in ``streams/``, after everything it names is on disk.

        Returns:
            the object of the splitstream: the one that was there already where the name is taken.
        """
        repo = self._repo
        found = repo.stream_object(content_id)
        if found is not None:
            return found
        object_id = self.add(data)
        path = f"{layout.STREAMS}/{content_id}"
        repo.make_directories(layout.STREAMS)
        try:
            fsops.sync_filesystem(repo.fd)
            fsops.make_link(repo.fd, path, layout.object_link(object_id))
            fsops.sync(repo.fd, layout.STREAMS)
        except FileExistsError:
            return repo.stream_object(content_id) or object_id
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(repo.path, path)) from error
        return object_id

    def writer(self) -> ObjectWriter:
        """For an object that comes in pieces."""
        return ObjectWriter(self, self._repo)

    def has(self, object_id: ObjectId, size: int) -> bool:
        """Whether the object is there in full, and has fs-verity where it must."""
        if object_id in self._repo.distrusted:
            return False
        path = layout.object_path(object_id)
        try:
            status = self._repo.status(path)
            is_whole = stat.S_ISREG(status.st_mode) and status.st_size == size
            return is_whole and (not self._secure or self._is_guarded(path, object_id))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.failure(error, object_id) from error

    def _is_guarded(self, path: str, object_id: ObjectId) -> bool:
        fd = self._repo.descriptor(path)
        try:
            return verity.verity_digest(fd) == object_id
        finally:
            os.close(fd)

    def open_unnamed(self) -> int:
        """A descriptor of a file without a name on the repository's file system, for writing."""
        return fsops.open_unnamed(self._home(), ".")

    def _home(self) -> int:
        """The descriptor of ``objects/``, made if it is absent."""
        if not self._made:
            self._repo.make_directories(layout.OBJECTS)
            self._objects = self._repo.hold_objects()
            self._made.add("")
        return self._objects

    def sealed(self, fd: int) -> int:
        """The descriptor to go on with once a file is written: measured by the kernel where the repository is secure."""
        if not self._secure:
            return fd
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(fd)  # the kernel measures no file that a process has open for writing
        return reader

    def adopt(self, fd: int, object_id: ObjectId, size: int) -> None:
        """Give a sealed file its name."""
        if self._secure:
            fsops.enable_verity(fd, self._repo.algorithm.number)
        parent = object_id[:2]
        if parent not in self._made:
            fsops.make_directory(self._objects, parent)
            self._made.add(parent)
        path = layout.object_path(object_id)
        if not fsops.adopt_object(fd, *self._repo.place(path)) and not self.has(object_id, size):
            self._replace(fd, path)
        self._repo.distrusted.discard(object_id)
        self.written += 1
        self.written_bytes += size

    def _replace(self, fd: int, path: str) -> None:
        """Put the file in the place of one that a crash cut short or that has no fs-verity and needs it, or of no file."""
        if self._repo.is_directory(path):
            raise FormatError(
                structure="file system",
                offset=0,
                wanted="a regular file",
                found="a directory",
                path=os.path.join(self._repo.path, path),
            )

        def make(spare: str) -> None:
            fsops.adopt_object(fd, self._fd, spare)
            fsops.sync(self._fd, spare)  # before what it replaces goes: that may be damaged, and still be of use

        put_in_place(self._repo, path, make)

    def failure(self, error: OSError, object_id: str) -> SystemFailure:
        """The error for a refusal of the system to store an object."""
        path = os.path.join(self._repo.path, layout.OBJECTS, object_id[:2], object_id[2:])
        return SystemFailure.of(error, "write", path)


def write_meta(repo: WriteRepo) -> bool:
    """Make ``meta.json`` where there is none, as cfsctl does whenever it opens such a repository.

    Objects are all that tells the algorithm then: it comes before the first of them goes.

    Returns:
        whether there was none; it is on disk now.

    Raises:
        SystemFailure: the system refused.
        RefusedError (read-only-repository), FormatError: as :meth:`~cfs_tags.repo.store.WriteRepo.reload_meta`.
    """
    if repo.meta is not None:
        return False
    from cfs_tags.formats import repometa

    store = ObjectStore(repo)
    try:
        fd = store.open_unnamed()
        try:
            fsops.write(fd, repometa.render(repometa.fresh(repo.algorithm)))
            fd = store.sealed(fd)
            if repo.is_secure:
                fsops.enable_verity(fd, repo.algorithm.number)
            fsops.sync_filesystem(fd)  # an empty one after a crash would be worse than none
            made = fsops.adopt_object(fd, repo.fd, layout.META)
        finally:
            os.close(fd)
        fsops.sync(repo.fd)
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, layout.META)) from error
    repo.reload_meta()
    return made


class ObjectWriter:
    """An object that comes in pieces, and is measured while it is written.  Close it, or use it as a context manager.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, store: ObjectStore, repo: WriteRepo) -> None:
        self.size = 0
        self._store = store
        self._measurer = fsverity.Measurer(repo.algorithm)
        try:
            self._fd = store.open_unnamed()
        except OSError as error:
            raise store.failure(error, "") from error

    def write(self, data: Buffer) -> None:
        """Append bytes.

        Raises:
            SystemFailure: the system refused.
        """
        try:
            fsops.write(self._fd, data)
        except OSError as error:
            raise self._store.failure(error, "") from error
        self._measurer.update(data)
        self.size += memoryview(data).nbytes

    def finish(self) -> ObjectId:
        """Give the object its name.  The writer is used up.

        Raises:
            SystemFailure: the system refused.
        """
        object_id = self._measurer.digest()
        try:
            if not self._store.has(object_id, self.size):
                self._fd = self._store.sealed(self._fd)
                self._store.adopt(self._fd, object_id, self.size)
        except OSError as error:
            raise self._store.failure(error, object_id) from error
        finally:
            self.close()
        return object_id

    def close(self) -> None:
        """Let go of the file: what has no name by now is gone.  Harmless when repeated."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Scratch:
    """Bytes that are put aside in a file without a name, so that memory stays bounded.

    Attributes:
        size: bytes that were put in.
    """

    _PIECE = 256 << 10

    def __init__(self, store: ObjectStore) -> None:
        self.size = 0
        self._store = store
        self._fd = self._reader = -1

    def write(self, data: Buffer) -> None:
        """Put bytes in.

        Raises:
            SystemFailure: the system refused.
        """
        try:
            if self._fd < 0:
                self._fd = self._store.open_unnamed()
                self._reader = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
            fsops.write(self._fd, data)
        except OSError as error:
            raise self._store.failure(error, "") from error
        self.size += memoryview(data).nbytes

    def read(self, offset: int, size: int) -> bytes:
        """``size`` of the bytes from ``offset`` on, or what there is of them.

        Raises:
            SystemFailure: the system refused.
        """
        try:
            return os.pread(self._reader, size, offset)
        except OSError as error:
            raise self._store.failure(error, "") from error

    def pieces(self) -> Iterator[bytes]:
        """Everything, in pieces of 256 KiB; the last is shorter."""
        for offset in range(0, self.size, self._PIECE):
            yield self.read(offset, self._PIECE)

    def take(self) -> Iterator[bytes]:
        """Everything, in pieces; nothing is left afterwards."""
        try:
            yield from self.pieces()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of everything.  Harmless when repeated."""
        for fd in (self._reader, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd, self._reader, self.size = -1, -1, 0
