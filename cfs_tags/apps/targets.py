"""Where images go: an OCI layout in a directory, or in an archive.

Blobs come first, each under its digest and whole; the index that names them is written last, in one step.  What is in a
layout already stays.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from cfs_tags.errors import FormatError, SystemFailure, TargetExists
from cfs_tags.formats import oci
from cfs_tags.repo import fsops

if TYPE_CHECKING:
    from cfs_tags.values import Digest

__all__ = ["ArchiveTarget", "BlobWriter", "LayoutTarget", "Target"]

_REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_BLOCK = 512
_COPY = 1 << 20


class BlobWriter(Protocol):
    """A blob that is being written.  Close it."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def commit(self, digest: Digest) -> None:
        """It is complete, and has that digest."""

    def close(self) -> None:
        """Let go of it: what was not committed is gone."""


class Target(Protocol):
    """Where blobs and the entry for an image are written.  Close it."""

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob is there."""

    def blob(self, digest: Digest | None, size: int | None) -> BlobWriter:
        """A new blob; digest and size where they are known before."""

    def finish(self, descriptor: dict[str, Any], name: str | None) -> None:
        """Make the index name a manifest, under ``name``."""

    def close(self) -> None:
        """Let go of it: an archive that was not finished is gone."""


class LayoutTarget:
    """A directory, made if it is absent.

    Raises:
        FormatError: something else is there.
        SystemFailure: the system refused.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        parent, name = os.path.split(os.path.abspath(path))
        try:
            above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if name:
                    fsops.make_directory(above, name)
                self._fd = os.open(name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
            finally:
                os.close(above)
        except OSError as error:
            raise SystemFailure.of(error, "write", path) from error
        try:
            self._index = self._read_index()
            fsops.make_directory(self._fd, "blobs")
        except OSError as error:
            self.close()
            raise SystemFailure.of(error, "write", path) from error
        except BaseException:
            self.close()
            raise

    def _read_index(self) -> dict[str, Any]:
        from cfs_tags.repo.directory import Directory

        with Directory(self._path) as directory:
            data = directory.read_file("index.json", oci.MAX_INDEX)
            if data is None:
                if directory.names("."):
                    raise FormatError(
                        structure="OCI layout", offset=0, wanted="index.json", found="other files", path=self._path
                    )
                return {"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX, "manifests": []}
        try:
            oci.parse_index(data)
        except FormatError as error:
            error.path = os.path.join(self._path, "index.json")
            raise
        found: dict[str, Any] = json.loads(data)
        return found

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the target has that blob already."""
        try:
            status = os.stat(_blob(digest), dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return status.st_size == size

    def blob(self, digest: Digest | None, size: int | None) -> BlobWriter:
        """A writer for a blob of that digest and size, None where they are not known before."""
        return _LayoutBlob(self._fd, self._path)

    def finish(self, descriptor: dict[str, Any], name: str | None) -> None:
        """Name the manifest, after everything that it names is on disk."""
        entry = dict(descriptor)
        if name is not None:
            entry["annotations"] = {**entry.get("annotations", {}), _REF_NAME: name}
        kept = [other for other in self._index["manifests"] if not _replaces(entry, other, name)]
        self._index["manifests"] = [*kept, entry]
        data = json.dumps(self._index, separators=(",", ":")).encode()
        try:
            with suppress(FileExistsError):
                fsops.create_file(self._fd, "oci-layout", _LAYOUT)
            fsops.sync_filesystem(self._fd)
            fsops.replace_file(self._fd, "index.json", data, f".index-{os.urandom(8).hex()}")
            fsops.sync(self._fd)
        except OSError as error:
            raise SystemFailure.of(error, "write", self._path) from error

    def close(self) -> None:
        """Let go of the target; what was not finished is removed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _replaces(entry: dict[str, Any], other: dict[str, Any], name: str | None) -> bool:
    called = (other.get("annotations") or {}).get(_REF_NAME)
    return bool(called == name) if name is not None else other.get("digest") == entry["digest"] and called is None


class _LayoutBlob:
    def __init__(self, fd: int, path: str) -> None:
        self._directory = fd
        self._path = path
        try:
            self._fd = fsops.open_unnamed(fd, "blobs")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, data: bytes) -> None:
        try:
            fsops.write(self._fd, data)
        except OSError as error:
            raise self._failure(error) from error

    def commit(self, digest: Digest) -> None:
        try:
            fsops.make_directory(self._directory, f"blobs/{digest.algorithm}")
            if not fsops.adopt_object(self._fd, self._directory, _blob(digest)):
                # there, and not as long as it should be, or it would not have been written
                spare = f"blobs/.{digest.hex[:16]}-{os.urandom(8).hex()}"
                fsops.adopt_object(self._fd, self._directory, spare)
                fsops.rename(self._directory, spare, _blob(digest))
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Let go of the target; what was not finished is removed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failure(self, error: OSError) -> SystemFailure:
        return SystemFailure.of(error, "write a blob in", self._path)


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


class ArchiveTarget:
    """A tar archive with a layout in it: a new file, which gets its name when it is complete.

    Raises:
        TargetExists: there is a file of that name.
        SystemFailure: the system refused.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        parent, self._name = os.path.split(os.path.abspath(path))
        self._fd = self._directory = -1
        self._written: set[Digest] = set()
        self._directories: set[str] = set()
        try:
            self._directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._refuse_existing()
            self._fd = fsops.open_unnamed(self._directory, ".")
            self._file("oci-layout", _LAYOUT)
        except OSError as error:
            self.close()
            raise SystemFailure.of(error, "write", path) from error
        except BaseException:
            self.close()
            raise

    def _refuse_existing(self) -> None:
        try:
            os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        raise TargetExists(path=self._path)

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the target has that blob already."""
        return digest in self._written

    def blob(self, digest: Digest | None, size: int | None) -> BlobWriter:
        """A writer for a blob of that digest and size, None where they are not known before."""
        return _ArchiveBlob(self, digest, size)

    def finish(self, descriptor: dict[str, Any], name: str | None) -> None:
        """Name the manifest, after everything that it names is on disk."""
        entry = dict(descriptor)
        if name is not None:
            entry["annotations"] = {_REF_NAME: name}
        index = {"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX, "manifests": [entry]}
        try:
            self._file("index.json", json.dumps(index, separators=(",", ":")).encode())
            fsops.write(self._fd, bytes(2 * _BLOCK))
            fsops.sync_filesystem(self._directory)
            if not fsops.adopt_object(self._fd, self._directory, self._name):
                raise TargetExists(path=self._path)
            fsops.sync(self._directory)
        except OSError as error:
            raise SystemFailure.of(error, "write", self._path) from error

    def close(self) -> None:
        """Let go of the target; what was not finished is removed."""
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    def _file(self, name: str, data: bytes) -> None:
        fsops.write(self._fd, _header(name, len(data)) + data + bytes(-len(data) % _BLOCK))

    def _begin(self, digest: Digest, size: int) -> None:
        places = ("blobs/", f"blobs/{digest.algorithm}/")
        made = b"".join([_header(place, 0, directory=True) for place in places if place not in self._directories])
        self._directories.update(places)
        fsops.write(self._fd, made + _header(_blob(digest), size))


class _ArchiveBlob:
    """Straight into the archive where its size is known, which stands before it; else first into a file of its own."""

    def __init__(self, archive: ArchiveTarget, digest: Digest | None, size: int | None) -> None:
        self._archive = archive
        self._digest = digest
        self._size = 0
        self._own = -1
        try:
            if digest is None or size is None:
                self._own = fsops.open_unnamed(archive._directory, ".")
            else:
                archive._begin(digest, size)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, data: bytes) -> None:
        self._size += len(data)
        try:
            fsops.write(self._own if self._own >= 0 else self._archive._fd, data)
        except OSError as error:
            raise self._failure(error) from error

    def commit(self, digest: Digest) -> None:
        try:
            if self._own >= 0:
                self._copy(digest)
            fsops.write(self._archive._fd, bytes(-self._size % _BLOCK))
        except OSError as error:
            raise self._failure(error) from error
        self._archive._written.add(digest)

    def _copy(self, digest: Digest) -> None:
        if digest in self._archive._written:
            self._size = 0
            return
        self._archive._begin(digest, self._size)
        reader = os.open(f"/proc/self/fd/{self._own}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while data := os.read(reader, _COPY):
                fsops.write(self._archive._fd, data)
        finally:
            os.close(reader)

    def close(self) -> None:
        """Let go of the target; what was not finished is removed."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def _failure(self, error: OSError) -> SystemFailure:
        return SystemFailure.of(error, "write", self._archive._path)


def _header(name: str, size: int, *, directory: bool = False) -> bytes:
    """A ustar header; a size beyond 8 GiB in base 256, as GNU and Go write it."""
    length = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000755\0" if directory else b"0000644\0",
        b"0000000\0" * 2,
        length,
        b"%011o\0" % 0,
        b" " * 8,
        b"5" if directory else b"0",
        bytes(100),
        b"ustar\x0000",
        bytes(64 + 16 + 155 + 12),
    )
    header = b"".join(fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]
