"""Files in a tar archive that is a container of other things (``oci-archive:``, ``docker-archive:``), by name.

The archive is looked through once, header by header; the files are read where they stand.  Nothing is extracted, so a
name cannot lead anywhere; one that would (absolute, or with ``..``) is refused anyway, because no honest program
writes it.  In what ``docker save`` and its likes write absolute names are known (podman issue 8132).
"""

from __future__ import annotations

import os
import re
import select
import stat
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from cfs_tags.apps import blobs
from cfs_tags.apps.workdir import Machine
from cfs_tags.errors import FormatError, SourceNotFound, SystemFailure
from cfs_tags.formats import tar
from cfs_tags.repo import fsops

_MAX_MEMBERS = 200_000
_MAX_NAME = 4096
_MAX_NAMES = 32 << 20
"""Characters of all names and targets of links."""
_LOOK = 1000
"""Milliseconds that a signal may wait that came just before a pipe was waited for: Python cannot do both in one step."""
_OPEN_ALREADY = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/([0-9]{1,9})", re.ASCII)


class Member(NamedTuple):
    """A file (``link`` is None), where it is and how many bytes it has; or a symbolic link."""

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
        absolute: whether names may start with a slash, as if they did not.

    Raises:
        SourceNotFound: there is none.
        FormatError: it is no tar, or has names that lead out of it.

    Attributes:
        members: files and symbolic links by name; a hard link is the file that it leads to.
    """

    def __init__(self, path: str, machine: Machine, limit: int, *, absolute: bool = False) -> None:
        self.path = path
        self._absolute = absolute
        try:
            self._fd = _opened(path)
        except FileNotFoundError:
            raise SourceNotFound(source=path, reason="no such file") from None
        except OSError as error:
            raise SystemFailure.of(error, "read", path) from error
        try:
            is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if not is_file or blobs.compression(os.pread(self._fd, blobs.MAGIC, 0)) != "none":
                self._copy(machine, limit)
            self._size = os.fstat(self._fd).st_size
            other = blobs.other_format(os.pread(self._fd, blobs.MAGIC, 0))
            if other is not None:
                self._wrong("a tar, plain or compressed with gzip, zstd, xz or bzip2", other)
            self.members = self._walk()
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
        """A file of the archive; None where there is none.

        Raises:
            FormatError: a link.
        """
        member = self.members.get(name)
        if member is None:
            return None
        if member.link is not None:
            self._wrong(f"{name}: a regular file", "a link")
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
            for data in blobs.uncompressed(_chunks(self._fd), limit, "archive"):
                fsops.write(temporary, data)
            reader = os.open(f"/proc/self/fd/{temporary}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(temporary)
        os.close(self._fd)
        self._fd = reader

    def _walk(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        total = 0
        for count, entry in enumerate(tar.entries(self)):
            name, link = os.fsdecode(entry.name), os.fsdecode(entry.link)
            total += len(name) + len(link)
            if count >= _MAX_MEMBERS:
                self._wrong(f"at most {_MAX_MEMBERS} members", "more")
            if max(len(name), len(link)) > _MAX_NAME or total > _MAX_NAMES:
                self._wrong(f"names of at most {_MAX_NAME} characters, and {_MAX_NAMES} in all", "more")
            name = self._clean(name)
            if entry.is_file:
                members[name] = Member(entry.begin, entry.size)
            elif entry.kind == tar.SYMBOLIC_LINK:
                members[name] = Member(0, 0, link)
            elif entry.kind == tar.HARD_LINK:
                # the name of a member, which stands before it; else it leads nowhere
                target = self._clean(link)
                if target in members:
                    members[name] = members[target]
        return members

    def at(self, position: int, size: int) -> bytes:
        """``size`` bytes from there on; fewer at the end."""
        return os.pread(self._fd, size, position)

    def reaches(self, position: int) -> bool:
        """Whether the archive has all bytes before that."""
        return position <= self._size

    def _clean(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if (name.startswith("/") and not self._absolute) or ".." in parts or "\0" in name:
            self._wrong("names that stay within the archive", name)
        return "/".join(parts)

    def _wrong(self, wanted: str, found: str) -> NoReturn:
        raise FormatError(structure="archive", offset=0, wanted=wanted, found=found, path=self.path)


def _opened(path: str) -> int:
    """A descriptor of the archive.

    What this process has open already is not opened anew: that asks for permission again, which a process that has become
    another user since may not have.
    """
    match = _OPEN_ALREADY.fullmatch(path)
    return os.dup(int(match[1] or 0)) if match is not None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])


def _chunks(fd: int) -> Iterator[bytes]:
    """What a file or pipe has, to its end."""
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    while True:
        while not ready.poll(_LOOK):
            pass
        data = os.read(fd, blobs.CHUNK)
        if not data:
            return
        yield data
