"""Files in a tar archive that is a container of other things (``oci-archive:``, ``docker-archive:``), by name.

The archive is looked through once, header by header; the files are read where they stand.  Nothing is extracted, so a
name cannot lead anywhere; one that would (absolute, or with ``..``) is refused all the same, because no honest program
writes it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cfs_tags.apps import blobs, tarsplit
from cfs_tags.errors import FormatError, SourceNotFound, SystemFailure
from cfs_tags.repo import fsops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfs_tags.apps.workplace import Machine

__all__ = ["Archive", "Member", "Part"]

_MAX_MEMBERS = 200_000
_MAX_NAME = 4096
_MAX_NAMES = 32 << 20
"""Characters of all names and targets of links."""
_BLOCK = 512
_LINKS = b"12"


class Member(NamedTuple):
    """A file (``link`` is None) or a link: ``offset`` and ``size`` in bytes."""

    offset: int
    size: int
    link: str | None = None


class Part:
    """A stretch of a file, read from its beginning.  The descriptor stays its owner's."""

    def __init__(self, fd: int, offset: int, size: int, path: str) -> None:
        self._fd = fd
        self._offset = offset
        self._left = size
        self._path = path
        self.size = size

    def read(self, size: int) -> bytes:
        """At most ``size`` of the next bytes; none at the end."""
        try:
            data = os.pread(self._fd, min(size, self._left), self._offset)
        except OSError as error:
            raise SystemFailure.of(error, "read", self._path) from error
        self._offset += len(data)
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Nothing to do."""


class Archive:
    """The files of an archive.  Close it.

    Args:
        path: of the archive; a pipe will do, too.
        machine: where temporary files go.
        limit: bytes that it may have once it is uncompressed.

    Raises:
        SourceNotFound: there is none.
        FormatError: it is no tar, or has names that lead out of it.
    """

    def __init__(self, path: str, machine: Machine, limit: int) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SourceNotFound(source=path, reason="no such file") from None
        except OSError as error:
            raise SystemFailure.of(error, "read", path) from error
        try:
            is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if not is_file or blobs.compression(os.pread(self._fd, 8, 0)) != "none":
                self._copy(machine, limit)
            self._size = os.fstat(self._fd).st_size
            self.members = dict(self._walk())
        except FormatError as error:
            self.close()
            error.path = error.path or path
            raise
        except OSError as error:
            self.close()
            raise SystemFailure.of(error, "read", path) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it.  Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open(self, name: str) -> Part | None:
        """A file of the archive; None where there is none, and for links."""
        member = self.members.get(name)
        if member is None or member.link is not None:
            return None
        return Part(self._fd, member.offset, member.size, self.path)

    def read(self, name: str, limit: int) -> bytes | None:
        """The bytes of a small file; None where there is none.

        Raises:
            FormatError: longer than ``limit``, or a link.
        """
        member = self.members.get(name)
        if member is None:
            return None
        if member.link is not None:
            self._wrong(f"{name}: a regular file", "a link")
        if member.size > limit:
            self._wrong(f"{name}: at most {limit} bytes", f"{member.size} bytes")
        return Part(self._fd, member.offset, member.size, self.path).read(member.size)

    def _copy(self, machine: Machine, limit: int) -> None:
        """Put the uncompressed archive into a temporary file without a name, to be read in any order."""
        place = os.open(machine.temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            temporary = fsops.open_unnamed(place, ".", mode=0o600)
        finally:
            os.close(place)
        try:
            chunks = iter(lambda: os.read(self._fd, blobs.CHUNK), b"")
            for data in blobs.uncompressed(chunks, limit, "archive"):
                fsops.write(temporary, data)
            reader = os.open(f"/proc/self/fd/{temporary}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(temporary)
        os.close(self._fd)
        self._fd = reader

    def _walk(self) -> Iterator[tuple[str, Member]]:
        position = count = total = 0
        name: str | None = None
        link: str | None = None
        size: int | None = None
        while True:
            header = self._block(position)
            if header is None or not any(header):
                return
            count += 1
            if count > _MAX_MEMBERS:
                self._wrong(f"at most {_MAX_MEMBERS} members", "more")
            if not tarsplit.checksum_fits(header):
                self._wrong(f"a tar header at byte {position}", "something else")
            own = tarsplit.number(header[124:136])
            if own is None:
                self._wrong(f"a size at byte {position + 124}", repr(header[124:136]))
            kind = header[156:157]
            if kind in b"xgLK":
                if own > tarsplit.MAX_EXTENSION:
                    self._wrong(f"an extension header of at most {tarsplit.MAX_EXTENSION} bytes", f"{own} bytes")
                data = self._bytes(position + _BLOCK, own)
                if kind == b"L":
                    name = os.fsdecode(data.rstrip(b"\0"))
                elif kind == b"K":
                    link = os.fsdecode(data.rstrip(b"\0"))
                elif kind == b"x":
                    found = tarsplit.pax_records(data)
                    if found is None:
                        self._wrong(f"PAX records at byte {position + _BLOCK}", "something else")
                    if b"path" in found:
                        name = os.fsdecode(found[b"path"])
                    if b"linkpath" in found:
                        link = os.fsdecode(found[b"linkpath"])
                    if b"size" in found:
                        with suppress(ValueError):
                            size = int(found[b"size"])
                position += _BLOCK + own + -own % _BLOCK
                continue
            own, size = own if size is None else size, None
            if name is None:
                name = _text(header[:100])
                if header[257:263] == b"ustar\0" and header[345]:
                    name = f"{_text(header[345:500])}/{name}"
            if link is None:
                link = _text(header[157:257])
            if own < 0 or position + _BLOCK + own > self._size:
                self._wrong(f"{own} bytes of {name[:100]}", "the end of the archive")
            total += len(name) + len(link)
            if len(link) > _MAX_NAME or total > _MAX_NAMES:
                self._wrong(f"names of at most {_MAX_NAME} characters, and {_MAX_NAMES} in all", "more")
            if kind in b"0\x007" and not name.endswith("/"):
                yield self._clean(name), Member(position + _BLOCK, own)
            elif kind in _LINKS:
                yield self._clean(name), Member(0, 0, link)
            else:
                self._clean(name)
            name = link = None
            position += _BLOCK + own + -own % _BLOCK

    def _block(self, position: int) -> bytes | None:
        data = os.pread(self._fd, _BLOCK, position)
        return data if len(data) == _BLOCK else None

    def _bytes(self, position: int, size: int) -> bytes:
        data = os.pread(self._fd, size, position)
        if len(data) != size:
            self._wrong(f"{size} bytes at {position}", "the end of the archive")
        return data

    def _clean(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or len(name) > _MAX_NAME or "\0" in name:
            self._wrong("names that stay within the archive", name)
        return "/".join(parts)

    def _wrong(self, wanted: str, found: str) -> NoReturn:
        raise FormatError(structure="archive", offset=0, wanted=wanted, found=found, path=self.path)


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])
