"""What this machine remembers between two runs: files of JSON, each written whole or not at all.

One that is damaged counts as lost.  What :meth:`Memory.save_each` saved costs requests where it is lost, and counts as lost
where the system does not give it, too.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from cfs_tags.errors import FormatError, SystemFailure
from cfs_tags.formats import json_fields
from cfs_tags.repo import fsops
from cfs_tags.repo.lock import Lock
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LOCK = "lock"


class Memory:
    """A file of this machine's.

    Args:
        directory: where; made if it is absent, for this user alone.
        name: what the file is about; any text.
        limit: bytes of the longest value that is read.
    """

    def __init__(self, directory: str, name: str, limit: int) -> None:
        self._directory = directory
        self._file = f"{Digest.of(name.encode()).hex[:32]}.json"
        self._name = name
        self._limit = limit

    def load(self) -> dict[str, Any]:
        """What was saved; nothing where there is nothing, or it is damaged.

        Raises:
            SystemFailure: the system would not give it.
        """
        path = os.path.join(self._directory, self._file)
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                data = file.read(self._limit + 1)
            document = json_fields.load(data, "remembered", self._limit)
        except (FileNotFoundError, NotADirectoryError, FormatError):
            return {}
        except OSError as error:
            raise SystemFailure.of(error, "read", path) from error
        return document if document.get("about") == self._name else {}

    def save(self, value: dict[str, Any]) -> None:
        """Save something.

        Raises:
            SystemFailure: the system refused.
        """
        self._replace(_line({"about": self._name, **value}))

    def load_each(self) -> Iterator[Any]:
        """What :meth:`save_each` saved, one value at a time; it ends where it cannot be read any further."""
        import gzip

        path = os.path.join(self._directory, self._file)
        with (
            suppress(OSError, EOFError, ValueError, RecursionError, zlib.error),
            open(path, "rb", opener=_open_at_once) as packed,
            gzip.open(packed) as file,
        ):
            if json.loads(file.readline(self._limit)) == self._name:
                while line := file.readline(self._limit):
                    yield json.loads(line)

    def save_each(self, values: Iterable[Any]) -> None:
        """Save any number of values, of which no two are in memory at once.  Raises as :meth:`save`."""
        compressor = zlib.compressobj(level=1, wbits=31)
        packed = [compressor.compress(_line(value) + b"\n") for value in chain((self._name,), values)]
        self._replace(b"".join([*packed, compressor.flush()]))

    def _replace(self, data: bytes) -> None:
        fd = self._opened()
        try:
            fsops.replace_file(fd, self._file, data, f".{self._file}.{os.getpid()}.new")
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(self._directory, self._file)) from error
        finally:
            os.close(fd)

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold all files in the directory for the block, alone.

        Raises:
            LockTimeout: another process has them.
        """
        fd = self._opened()
        try:
            path = os.path.join(self._directory, _LOCK)
            try:
                fsops.create_file(fd, _LOCK, b"", 0o600)
            except FileExistsError:
                pass
            except OSError as error:
                raise SystemFailure.of(error, "write", path) from error
            with Lock.of(fd, _LOCK, path).hold("exclusive", fd, _LOCK, timeout):
                yield
        finally:
            os.close(fd)

    def _opened(self) -> int:
        """The directory, made with those above it."""
        made = "/"
        try:
            fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for name in os.path.abspath(self._directory).strip("/").split("/"):
                made = os.path.join(made, name)
                above = fd
                try:
                    try:
                        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
                    except FileNotFoundError:
                        fsops.make_directory(above, name, 0o700)
                        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
                finally:
                    os.close(above)
            return fd
        except OSError as error:
            raise SystemFailure.of(error, "make the directory", made) from error


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file, and does not wait for the writer of a pipe in its place: that is empty."""
    return os.open(path, flags | os.O_NONBLOCK)


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
