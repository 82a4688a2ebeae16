"""Where images go: an OCI layout in a directory, or in an archive.

Blobs come first, each under its digest and whole; the index that names them is written last, in one step.  What is in a
layout already stays.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any, Protocol

from cfs_tags.apps import blobs
from cfs_tags.errors import DamagedError, FormatError, RefusedError, SystemFailure, about
from cfs_tags.formats import oci
from cfs_tags.repo import fsops
from cfs_tags.repo.directory import Directory
from cfs_tags.repo.lock import DEFAULT_TIMEOUT, Lock
from cfs_tags.values import Digest

_BLOBS = "blobs"
_TEMPORARY = ".index-new"
"""Where files are written while the layout is locked; one that is there was left by a process that was killed."""
_BLOCK = 512
_NAME = 100
"""Bytes of a name in a ustar header."""
_COPY = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


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

    Args:
        path: of the directory.
        timeout: seconds to wait, at the end, for others that write its index.

    Raises:
        FormatError, DamagedError (target-damaged): something else is there.
        SystemFailure: the system refused.
    """

    def __init__(self, path: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        parent, name = os.path.split(os.path.abspath(path))
        try:
            above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if name:
                    fsops.make_directory(above, name)
            finally:
                os.close(above)
            self._top = Directory(path)
        except OSError as error:
            raise SystemFailure.of(error, "write", path) from error
        self._directories: dict[str, int] = {}
        try:
            self._read_index()
            self._has_mark()
            self._directory(_BLOBS)
        except BaseException:
            self.close()
            raise

    def _read_index(self) -> dict[str, Any]:
        data = self._top.read_file("index.json", oci.MAX_INDEX)
        if data is None:
            found = [name for name in self._top.names(".") or () if not _is_ours(name)]
            if found:
                raise FormatError(structure="OCI layout", offset=0, wanted="index.json", found="other files", path=self._path)
            return {"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX, "manifests": []}
        with about(os.path.join(self._path, "index.json")):
            oci.parse_index(data)
        index: dict[str, Any] = json.loads(data)
        index["manifests"] = index["manifests"] or []
        return index

    def _has_mark(self) -> bool:
        """Whether ``oci-layout`` is there and whole; one that was cut short, by a power cut most often, is not.

        Raises:
            DamagedError (target-damaged): it is something else.
        """
        path = os.path.join(self._path, oci.LAYOUT_FILE)
        try:
            data = self._top.read_file(oci.LAYOUT_FILE, oci.MAX_LAYOUT)
            bare = b"".join((data or b"").split()).rstrip(b"\0")
            if oci.LAYOUT.startswith(bare):
                return bare == oci.LAYOUT
            oci.check_layout(data or b"")
        except FormatError as error:
            raise DamagedError("target-damaged", path=path, reason=error.message) from error
        return True

    def _directory(self, path: str) -> int:
        """A directory of blobs, made if it is absent, and never one that a link leads to."""
        fd = self._directories.get(path)
        if fd is None:
            above, _, name = path.rpartition("/")
            place = self._directories[above] if above else self._top.fd
            try:
                fsops.make_directory(place, name)
                fd = os.open(name, _DIRECTORY, dir_fd=place)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    where = os.path.join(self._path, path)
                    raise FormatError(
                        structure="OCI layout", offset=0, wanted="a directory", found="a link or a file", path=where
                    ) from None
                raise self._failure(error) from error
            self._directories[path] = fd
        return fd

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob is there, and is what its name says: it is read for that."""
        place = self._directory(f"{_BLOBS}/{digest.algorithm}")
        try:
            fd = os.open(digest.hex, _FILE, dir_fd=place)
        except OSError:
            return False
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                return False
            found = blobs.hasher(digest)
            while data := os.read(fd, _COPY):
                found.update(data)
        except OSError:
            return False
        finally:
            os.close(fd)
        return bool(found.hexdigest() == digest.hex)

    def blob(self, digest: Digest | None, size: int | None) -> BlobWriter:
        """A writer for a blob of that digest and size, None where they are not known before."""
        try:
            return _LayoutBlob(self, fsops.open_unnamed(self._directory(_BLOBS), "."))
        except OSError as error:
            raise self._failure(error) from error

    def finish(self, descriptor: dict[str, Any], name: str | None) -> None:
        """Name the manifest, after everything that it names is on disk; what others added meanwhile stays."""
        entry = dict(descriptor)
        if name is not None:
            entry["annotations"] = {**entry.get("annotations", {}), oci.REF_NAME: name}
        lock = Lock.of(self._top.fd, ".", self._path)
        try:
            fsops.sync_filesystem(self._top.fd)
            with lock.hold("exclusive", self._top.fd, ".", self._timeout, queue=True):
                index = self._read_index()
                kept = [other for other in index["manifests"] if not _replaces(entry, other, name)]
                index["manifests"] = [*kept, entry]
                data = json.dumps(index, separators=(",", ":")).encode()
                if not self._has_mark():
                    fsops.replace_file(self._top.fd, oci.LAYOUT_FILE, oci.LAYOUT, _TEMPORARY)
                fsops.replace_file(self._top.fd, "index.json", data, _TEMPORARY)
            fsops.sync(self._top.fd)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Let go of the target; what was not finished is removed."""
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()
        self._top.close()

    def _adopt(self, fd: int, digest: Digest) -> None:
        place = self._directory(f"{_BLOBS}/{digest.algorithm}")
        if fsops.adopt_object(fd, place, digest.hex):
            return
        # there, and not what its name says, or it would not have been written; or another process was faster
        spare = f".{digest.hex[:16]}-{os.urandom(8).hex()}"
        fsops.adopt_object(fd, place, spare)
        fsops.rename(place, spare, digest.hex)

    def _failure(self, error: OSError) -> SystemFailure:
        return SystemFailure.of(error, "write", self._path)


def _is_ours(name: str) -> bool:
    """Whether an export that was stopped, or is under way, leaves this name in a layout without an index."""
    return name in (_BLOBS, oci.LAYOUT_FILE) or name.startswith(".index-")


def _replaces(entry: dict[str, Any], other: dict[str, Any], name: str | None) -> bool:
    called = (other.get("annotations") or {}).get(oci.REF_NAME)
    return bool(called == name) if name is not None else other.get("digest") == entry["digest"] and called is None


class _LayoutBlob:
    def __init__(self, layout: LayoutTarget, fd: int) -> None:
        self._layout = layout
        self._fd = fd

    def write(self, data: bytes) -> None:
        try:
            fsops.write(self._fd, data)
        except OSError as error:
            raise self._layout._failure(error) from error

    def commit(self, digest: Digest) -> None:
        try:
            self._layout._adopt(self._fd, digest)
        except OSError as error:
            raise self._layout._failure(error) from error

    def close(self) -> None:
        """Let go of the target; what was not finished is removed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _blob(digest: Digest) -> str:
    return f"{_BLOBS}/{digest.algorithm}/{digest.hex}"


class ArchiveTarget:
    """A tar archive with a layout in it: a new file, which gets its name when it is complete.

    Raises:
        RefusedError (target-exists): there is a file of that name.
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
            self._file(oci.LAYOUT_FILE, oci.LAYOUT)
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
        raise RefusedError("target-exists", path=self._path)

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
            entry["annotations"] = {oci.REF_NAME: name}
        index = {"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX, "manifests": [entry]}
        try:
            self._file("index.json", json.dumps(index, separators=(",", ":")).encode())
            fsops.write(self._fd, bytes(2 * _BLOCK))
            fsops.sync_filesystem(self._directory)
            if not fsops.adopt_object(self._fd, self._directory, self._name):
                raise RefusedError("target-exists", path=self._path)
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
    """What stands before a file in a tar: a ustar header, and before that, where it has no room for the name, a PAX
    header (POSIX pax, "pax Header Block").  The prefix of ustar is no help: the last part of a name has 100 bytes there."""
    text = name.encode()
    if len(text) <= _NAME:
        return _block(text, size, b"5" if directory else b"0")
    rest = b" path=%s\n" % text
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    record = b"%d%s" % (length, rest)
    before = _block(b"PaxHeaders/0", len(record), b"x") + record + bytes(-len(record) % _BLOCK)
    return before + _block(text[:_NAME], size, b"5" if directory else b"0")


def _block(name: bytes, size: int, kind: bytes) -> bytes:
    """A ustar header; a size beyond 8 GiB in base 256, as GNU and Go write it."""
    length = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    fields = (
        name.ljust(_NAME, b"\0"),
        b"0000755\0" if kind == b"5" else b"0000644\0",
        b"0000000\0" * 2,
        length,
        b"%011o\0" % 0,
        b" " * 8,
        kind,
        bytes(100),
        b"ustar\x0000",
        bytes(64 + 16 + 155 + 12),
    )
    header = b"".join(fields)
    assert len(header) == _BLOCK
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]
