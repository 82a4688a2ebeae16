"""A repository on disk: opening it, its locks, and its objects, streams and images.

A :class:`ReadRepo` creates nothing, ``meta.json`` included, and has no method that changes anything; a :class:`WriteRepo` may
be written.  Opening takes no lock: look-ups need none, and what needs one holds it for as long as :meth:`ReadRepo.locked`
says.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cfs_tags.errors import CfsTagsError, MissingObject, RefusedError, RepositoryNotFound, SystemFailure, about
from cfs_tags.formats.boot.paths import BOOTC_TAG_PREFIX, STATE_DEPLOY
from cfs_tags.repo import beneath, fsops, layout, owners, verity
from cfs_tags.repo.directory import Directory, leads_nowhere
from cfs_tags.repo.lock import DEFAULT_TIMEOUT, Lock
from cfs_tags.values import Algorithm, ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from mmap import mmap

    from cfs_tags.formats.repometa import RepoMeta
    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.lock import Mode

MAX_JSON_OBJECT = 16 << 20
"""Largest manifest or config, and largest splitstream of one, that is read into memory, in bytes."""

_PARTS = (layout.OBJECTS, layout.STREAMS, layout.IMAGES, layout.STREAM_REFS, layout.IMAGE_REFS, layout.STATE)
_OBJECT_PATHS = f"{layout.OBJECTS}/"
_FILE = os.O_RDONLY | os.O_NONBLOCK
_MAX_META = 1 << 20
_MOUNTED_READ_ONLY = "the file system is mounted read-only"


class ReadRepo(Directory):
    """A repository that is only read.  Close it, or use it as a context manager.

    Attributes:
        path: as it was given.
        fd: descriptor of the repository directory; paths given to methods are relative to it.
        meta: what ``meta.json`` says, None where there is none (repositories older than composefs-rs 0.7).
        algorithm: of its objects.
        distrusted: objects whose bytes are known to be wrong: they are as good as not there, and are stored again.
        at_rest: the threads that know already whether another process changes refs: one has the lock of the writers, others
            are within :func:`cfs_tags.repo.refs.read_at_once`.
    """

    def __init__(self, path: str, fd: int = -1) -> None:
        try:
            super().__init__(path, fd)
        except FileNotFoundError:
            raise RepositoryNotFound(path=path, reason="nothing is there") from None
        except NotADirectoryError:
            raise RepositoryNotFound(path=path, reason="it is not a directory") from None
        except OSError as error:
            raise SystemFailure.of(error, "open", path) from error
        self._objects = -1
        self._parents: dict[str, int] = {}
        self.at_rest: set[int] = set()
        self.distrusted: set[str] = set()
        try:
            owners.refuse_foreign(os.fstat(self.fd), path)
            self._refuse_links()
            self.hold_objects()
            self.meta = self._read_meta()
            self.algorithm = self.meta.algorithm if self.meta is not None else self._infer_algorithm()
            self._guarded: bool | None = None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors.  Harmless when repeated."""
        while self._parents:
            os.close(self._parents.popitem()[1])
        if self._objects >= 0:
            os.close(self._objects)
            self._objects = -1
        super().close()

    def hold_objects(self) -> int:
        """The descriptor of ``objects/``, opened once and held, for all that is done with objects; -1 where there is none."""
        if self._objects < 0:
            with suppress(OSError):  # the function that needs it says what is there instead
                self._objects = beneath.open_at(self.fd, layout.OBJECTS, os.O_PATH | os.O_DIRECTORY)
        return self._objects

    def descriptor(self, path: str, flags: int = _FILE) -> int:
        """A descriptor of what is at ``path``, for reading where ``flags`` say nothing else; raises as :meth:`status`."""
        return beneath.open_at(*self.place(path), flags)

    def status(self, path: str) -> os.stat_result:
        """What the system says of what is at ``path``; of a link itself where it is one.

        Raises:
            OSError: as the system gives it.
        """
        return beneath.status(*self.place(path))

    def place(self, path: str) -> tuple[int, str]:
        """A descriptor that is held, and the path from there: for an object its directory, and its name alone.

        Raises:
            OSError: the directory of the object cannot be opened.
        """
        if self._objects < 0 or not path.startswith(_OBJECT_PATHS):
            return self.fd, path
        parent, slash, name = path[len(_OBJECT_PATHS) :].partition("/")
        return (self.hold_parent(parent), name) if slash else (self._objects, parent)

    def hold_parent(self, parent: str) -> int:
        """The descriptor of ``objects/XX``, opened once and held: there may be a million objects, and 256 directories.

        Raises:
            OSError: there is no such directory.
        """
        fd = self._parents.get(parent)
        return self._hold(parent, f"{_OBJECT_PATHS}{parent}") if fd is None else fd

    def hold_directory(self, path: str) -> int:
        """The descriptor of another directory, opened once and held, for callers that look at it many times.

        Raises:
            OSError: there is no such directory.
        """
        fd = self._parents.get(path)
        return self._hold(path, path) if fd is None else fd

    def _hold(self, key: str, path: str) -> int:
        opened = beneath.open_at(self.fd, path, os.O_PATH | os.O_DIRECTORY)
        fd = self._parents.setdefault(key, opened)
        if fd != opened:  # another thread was faster
            os.close(opened)
        return fd

    # -- what kind of repository ---------------------------------------------------------------------------------------

    def _refuse_links(self) -> None:
        # reported at once for all of them; what is put there later is refused when it is opened
        for path in _PARTS:
            try:
                mode = self.status(path).st_mode
            except OSError:
                continue  # absent, or reported where it is needed
            if stat.S_ISLNK(mode):
                raise self._malformed(path, "a directory", "a link")

    def _read_meta(self) -> RepoMeta | None:
        data = self.read_file(layout.META, _MAX_META)
        if data is None:
            return None
        from cfs_tags.formats import repometa

        with about(f"{self.path}/{layout.META}"):
            return repometa.parse(data)

    def _infer_algorithm(self) -> Algorithm:
        # the way composefs-rs does it for repositories without meta.json: by the name of any object
        parents = self.names(layout.OBJECTS)
        if parents is None:
            raise RepositoryNotFound(path=self.path, reason="it has neither meta.json nor objects/")
        for algorithm, _ in self._named_as_objects(parents):
            return algorithm
        raise RepositoryNotFound(path=self.path, reason="it has no meta.json and no object that would tell its algorithm")

    @property
    def is_secure(self) -> bool:
        """Whether every object must have fs-verity: ``meta.json`` itself has it (composefs-rs 0.9.4, ``repository.rs``).

        Without one the first object that is found tells, as it does for cfsctl.

        Raises:
            SystemFailure: the system would not say.
        """
        if self.meta is not None:
            return verity.is_secure(self.fd)
        if self._guarded is None:
            self._guarded = self._first_is_guarded()
        return self._guarded

    def _first_is_guarded(self) -> bool:
        for _, path in self._named_as_objects(self.names(layout.OBJECTS) or ()):
            fd = self.open_file(path)
            if fd is None:
                continue  # it went just now
            try:
                return verity.verity_digest(fd) is not None
            except OSError as error:
                raise SystemFailure.of(error, "read", self._shown(path)) from error
            finally:
                os.close(fd)
        return False

    def _named_as_objects(self, parents: Iterable[str]) -> Iterator[tuple[Algorithm, str]]:
        for parent in parents:
            for name in self.names(f"{layout.OBJECTS}/{parent}") or ():
                algorithm = Algorithm.of_hex_length(len(parent) + len(name))
                if algorithm is not None:
                    yield algorithm, f"{layout.OBJECTS}/{parent}/{name}"

    @property
    def is_bootc(self) -> bool:
        """Whether bootc keeps its deployments here.

        Its containers-storage is inside, or ``state/deploy`` beside; on a way that does not lead by there (a bind mount)
        the refs tell: the tags that bootc makes, one for each deployment, and deployment refs.
        """
        if self.is_directory("bootc") or self.sysroot is not None or self.names(layout.DEPLOYMENT_IMAGES):
            return True
        return self.has_bootc_tags

    @property
    def has_bootc_tags(self) -> bool:
        """Whether there are tags that bootc makes, one for each deployment."""
        start = layout.encode_name(f"{BOOTC_TAG_PREFIX}sha256:")
        return any(name.startswith(start) for name in self.names(layout.SHARED_TAGS) or ())

    @property
    def sysroot(self) -> str | None:
        """The physical root whose ``composefs/`` this is, when ``state/deploy`` stands beside it; else None.

        Raises:
            SystemFailure: the system would not say.
        """
        try:
            beside = os.stat(f"../{STATE_DEPLOY}", dir_fd=self.fd)
        except OSError as error:
            # what this user may not see is not its host; what a link leads to may be on a disk that is not mounted
            way = (os.path.dirname(STATE_DEPLOY), STATE_DEPLOY)
            absent = error.errno in (errno.ENOENT, errno.ENOTDIR) and not any(
                leads_nowhere(f"../{name}", self.fd) for name in way
            )
            if absent or error.errno == errno.EACCES:
                return None
            raise SystemFailure.of(error, "look at", self._shown(f"../{STATE_DEPLOY}")) from error
        return os.path.join(self.path, "..") if stat.S_ISDIR(beside.st_mode) else None

    # -- locks ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, mode: Mode = "shared", timeout: float = DEFAULT_TIMEOUT) -> Iterator[None]:
        """Hold the repository lock for the block: ``shared`` keeps collectors out, ``exclusive`` all other processes.

        Args:
            mode: ``shared`` or ``exclusive``.
            timeout: seconds to wait.

        Raises:
            LockTimeout: other processes held it until the time was over; names them.
            LockConflict: this process has it in a mode that excludes the wanted one.
        """
        with Lock.of(self.fd, ".", self.path).hold(mode, self.fd, ".", timeout):
            yield

    # -- objects and streams -------------------------------------------------------------------------------------------

    def has_object(self, object_id: ObjectId) -> bool:
        """Whether the object is there."""
        return object_id not in self.distrusted and self.is_file(layout.object_path(object_id))

    def read_object(self, object_id: ObjectId, limit: int, needed_by: str) -> bytes:
        """The bytes of an object.  They are not measured: that is what ``fsck`` does.

        Args:
            object_id: which.
            limit: largest size, in bytes, that is read.
            needed_by: what names the object, for the error.

        Raises:
            MissingObject: it is not there.
            FormatError: it is larger than ``limit``, or no file.
        """
        data = self.read_file(layout.object_path(object_id), limit) if object_id not in self.distrusted else None
        if data is None:
            raise MissingObject(object=object_id, needed_by=needed_by)
        return data

    def open_object(self, object_id: ObjectId, needed_by: str) -> int:
        """A descriptor of an object, to be closed by the caller.  Raises as :meth:`read_object`."""
        path = layout.object_path(object_id)
        fd = self.open_file(path) if object_id not in self.distrusted else None
        if fd is None:
            raise MissingObject(object=object_id, needed_by=needed_by)
        return fd

    @contextmanager
    def map(self, object_id: ObjectId, needed_by: str, *, cut: bool = False) -> Iterator[mmap | bytes]:
        """The bytes of a splitstream or EROFS image for the block, mapped: nothing is copied.

        A FormatError that is raised in the block gets the path of the object, if it has none.

        Args:
            object_id: which.
            needed_by: what names the object, for the error.
            cut: of an object with more bytes than any splitstream or image, map the first ones.

        Raises:
            MissingObject: it is not there.
            FormatError: it is no file, or has too many bytes and ``cut`` was not asked for.
            SystemFailure: the system refused, or could not read a block.
        """
        path = self._shown(layout.object_path(object_id))
        fd = self.open_object(object_id, needed_by)
        with about(path):
            try:
                data = verity.map_file(fd, cut=cut) if os.fstat(fd).st_size else b""
            except OSError as error:
                raise SystemFailure.of(error, "read", path) from error
            finally:
                os.close(fd)
            try:
                yield data
            finally:
                if not isinstance(data, bytes):
                    with suppress(BufferError):  # a traceback still has a view: the mapping goes with it
                        data.close()

    def stream_object(self, content_id: ContentId) -> ObjectId | None:
        """The object of a splitstream, by its link in ``streams/``; None where there is no such link.

        Raises:
            NotALink, FormatError: what is there is no link to an object.
        """
        return self._linked_object(f"{layout.STREAMS}/{content_id}")

    def image_object(self, name: str) -> ObjectId | None:
        """The object of an EROFS image, by its link in ``images/``; None where there is no such link."""
        return self._linked_object(f"{layout.IMAGES}/{name}")

    def _linked_object(self, path: str) -> ObjectId | None:
        target = self.read_link(path)
        return None if target is None else layout.object_of_link(target, self.algorithm, self._shown(path))

    def stream(self, object_id: ObjectId, needed_by: str) -> SplitStream:
        """The splitstream in an object.

        Args:
            object_id: of the splitstream itself.
            needed_by: what names it, for the error.

        Raises:
            MissingObject: it is not there.
            FormatError: it is no splitstream of this repository's algorithm.
        """
        from cfs_tags.formats import splitstream

        data = self.read_object(object_id, MAX_JSON_OBJECT, needed_by)
        with about(self._shown(layout.object_path(object_id))):
            return splitstream.parse(data, self.algorithm)

    def sole_content(self, stream: SplitStream, needed_by: str) -> bytes:
        """The bytes that a manifest, config or blob stream stands for: those of its only external object.

        Raises:
            MissingObject: the object is not there.
            FormatError: the stream has another shape, or the object is larger than :data:`MAX_JSON_OBJECT`.
        """
        from cfs_tags.formats import splitstream

        return self.read_object(splitstream.sole_object(stream), MAX_JSON_OBJECT, needed_by)


class WriteRepo(ReadRepo):
    """A repository that may be written.  What changes refs is in ``repo/transaction/run.py``, what adds
    content in ``repo/object_store.py``.

    Attributes:
        recovered: what interrupted writers had left, and was finished or taken back while this was open, in order.
        hindrance: with ``dry_run``, why the system would not let this process write, None where it would.

    Args:
        path: of the repository directory.
        fd: a descriptor of it, or -1.
        dry_run: changes are only planned: reading is enough.
    """

    def __init__(self, path: str, fd: int = -1, *, dry_run: bool = False) -> None:
        super().__init__(path, fd)
        self.hindrance: CfsTagsError | None = None
        try:
            self._refuse_read_only(dry_run=dry_run)
            for place, found in owners.directories(self):
                shown = self.path if place == "." else self._shown(place)
                owners.refuse_strangers(found, shown)
                if dry_run and self.hindrance is None and not self._may_write(place):
                    denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
                    self.hindrance = SystemFailure.of(denied, "write in", shown)
            self.recovered: list[CfsTagsError] = []
        except BaseException:
            self.close()
            raise

    def _may_write(self, place: str) -> bool:
        return os.access(place, os.W_OK | os.X_OK, dir_fd=self.fd, effective_ids=True)

    def _refuse_read_only(self, *, dry_run: bool) -> None:
        if self.meta is not None and self.meta.unknown_read_only:
            features = ", ".join(self.meta.unknown_read_only)
            raise RefusedError(
                "read-only-repository", path=self.path, reason=f"this program may not write with the feature {features}"
            )
        if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            error = RefusedError("read-only-repository", path=self.path, reason=_MOUNTED_READ_ONLY)
            if not dry_run:
                raise error
            self.hindrance = error

    def set_aside(self, path: str) -> None:
        """Move a file of our state that this program did not write, or cannot read, to a place where ``fsck`` names it.

        Raises:
            SystemFailure: the system refused.
        """
        name = path.removeprefix(f"{layout.STATE}/").replace("/", "-")
        place = f"{layout.QUARANTINE}/{name}-{os.urandom(4).hex()}"
        self.make_directories(layout.QUARANTINE)
        try:
            fsops.rename(self.fd, path, place)
            fsops.sync(self.fd, layout.QUARANTINE)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SystemFailure.of(error, "set aside", os.path.join(self.path, path)) from error

    def make_directories(self, path: str) -> None:
        """Make a directory of the repository and its parents, and have their names on disk.

        Raises:
            FormatError: something else is in the place of one of them; a link, above all, is not followed.
            RefusedError (open-to-others, foreign-owner): others can write one of them.
            RefusedError (read-only-repository), SystemFailure: the system refused.
        """
        parts = path.split("/")
        for number in range(1, len(parts) + 1):
            place = "/".join(parts[:number])
            try:
                try:
                    found = self.status(place)
                except FileNotFoundError:
                    fsops.make_directory(self.fd, place)
                    fsops.sync(self.fd, "/".join(parts[: number - 1]) or ".")
                    found = self.status(place)
            except OSError as error:
                if error.errno == errno.EROFS:
                    raise RefusedError("read-only-repository", path=self.path, reason=_MOUNTED_READ_ONLY) from error
                raise SystemFailure.of(error, "make", self._shown(place)) from error
            if not stat.S_ISDIR(found.st_mode):
                raise self._malformed(place, "a directory", self._kind(place))
            owners.refuse_strangers(found, self._shown(place))

    def reload_meta(self) -> None:
        """Read ``meta.json`` again, which was made just now.

        Raises:
            RefusedError (read-only-repository), FormatError: another process was faster, and made one that does not fit.
        """
        self.meta = self._read_meta()
        if self.meta is None or self.meta.algorithm is not self.algorithm:
            found = "nothing" if self.meta is None else self.meta.algorithm.value
            raise self._malformed(layout.META, self.algorithm.value, found)
        self._refuse_read_only(dry_run=False)
