"""A repository on disk: opening it, its locks, and its objects, streams and images.

:meth:`Repository.open` gives a :class:`ReadRepo`, which creates nothing, ``meta.json`` included, and has no method that
changes anything; with ``write=True`` a :class:`WriteRepo`.  Opening takes no lock: look-ups need none, and what needs
one holds it for as long as :meth:`ReadRepo.locked` says.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, overload

from cfs_tags.errors import (
    FormatError,
    MissingObject,
    ReadOnlyRepository,
    RepositoryNotFound,
    SystemFailure,
)
from cfs_tags.formats import layout
from cfs_tags.repo import fsops, verity
from cfs_tags.repo.directory import Directory
from cfs_tags.repo.lock import DEFAULT_TIMEOUT, Lock
from cfs_tags.values import Algorithm, ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cfs_tags.formats.repometa import RepoMeta
    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.lock import Mode

__all__ = ["MAX_JSON_OBJECT", "ReadRepo", "Repository", "WriteRepo"]

MAX_JSON_OBJECT = 16 << 20
"""Largest manifest or config, and largest splitstream of one, that is read into memory, in bytes."""

_PARTS = (layout.OBJECTS, layout.STREAMS, layout.IMAGES, layout.STREAM_REFS, layout.IMAGE_REFS, layout.STATE)
_META = "meta.json"
_MAX_META = 1 << 20
_MOUNTED_READ_ONLY = "the file system is mounted read-only"


class Repository:
    """The way in: ``Repository.open(path)`` to read, ``Repository.open(path, write=True)`` to write."""

    @overload
    @staticmethod
    def open(path: str | os.PathLike[str], *, write: Literal[False] = False) -> ReadRepo: ...
    @overload
    @staticmethod
    def open(path: str | os.PathLike[str], *, write: Literal[True]) -> WriteRepo: ...
    @staticmethod
    def open(path: str | os.PathLike[str], *, write: bool = False) -> ReadRepo:
        """Open a repository.  Takes no lock and writes nothing.

        Args:
            path: of the repository directory.
            write: whether a :class:`WriteRepo` is wanted.

        Raises:
            RepositoryNotFound: there is none at ``path``.
            UnsupportedVersion, UnsupportedFeature: it was made by or for a newer program.
            ReadOnlyRepository: ``write``, and it may only be read: an unknown read-only-compatible feature, or a file
                system that is mounted read-only.
            FormatError: ``meta.json`` makes no sense.
            SystemFailure: the system refused, for example for lack of permission.
        """
        return (WriteRepo if write else ReadRepo)(os.fspath(path))


class ReadRepo(Directory):
    """A repository that is only read.  Close it, or use it as a context manager.

    Attributes:
        path: as it was given.
        fd: descriptor of the repository directory; paths given to methods are relative to it.
        meta: what ``meta.json`` says, None where there is none (repositories older than composefs-rs 0.7).
        algorithm: of its objects.
    """

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path)
        except FileNotFoundError:
            raise RepositoryNotFound(path=path, reason="nothing is there") from None
        except NotADirectoryError:
            raise RepositoryNotFound(path=path, reason="it is not a directory") from None
        except OSError as error:
            raise SystemFailure.of(error, "open", path) from error
        try:
            self._refuse_links()
            self.meta = self._read_meta()
            self.algorithm = self.meta.algorithm if self.meta is not None else self._infer_algorithm()
            self._guarded: bool | None = None
        except BaseException:
            self.close()
            raise

    # -- what kind of repository ---------------------------------------------------------------------------------------

    def _refuse_links(self) -> None:
        # paths below these are given to the system whole: a link here would take every one of them elsewhere
        for path in _PARTS:
            try:
                mode = os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_mode
            except OSError:
                continue  # absent, or said where it is needed
            if stat.S_ISLNK(mode):
                raise self._malformed(path, "a directory", "a link")

    def _read_meta(self) -> RepoMeta | None:
        data = self.read_file(_META, _MAX_META)
        if data is None:
            return None
        from cfs_tags.formats import repometa

        try:
            return repometa.parse(data)
        except FormatError as error:
            error.path = f"{self.path}/{_META}"
            raise

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
        return any(name.startswith(layout.DEPLOYED_TAG) for name in self.names(layout.SHARED_TAGS) or ())

    @property
    def sysroot(self) -> str | None:
        """The physical root whose ``composefs/`` this is, when ``state/deploy`` stands beside it; else None."""
        return os.path.join(self.path, "..") if self.is_directory("../state/deploy") else None

    # -- locks ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, mode: Mode = "shared", timeout: float = DEFAULT_TIMEOUT) -> Iterator[None]:
        """Hold the repository lock for the block: ``shared`` keeps collectors out, ``exclusive`` everybody.

        Args:
            mode: ``shared`` or ``exclusive``.
            timeout: seconds to wait.

        Raises:
            LockTimeout: not to be had in time; names the holders.
            LockConflict: this process has it in a mode that excludes the wanted one.
        """
        with Lock.of(self.fd, ".", self.path).hold(mode, self.fd, ".", timeout):
            yield

    # -- objects and streams -------------------------------------------------------------------------------------------

    def has_object(self, object_id: ObjectId) -> bool:
        """Whether the object is there."""
        return self.is_file(layout.object_path(object_id))

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
        data = self.read_file(layout.object_path(object_id), limit)
        if data is None:
            raise MissingObject(object=object_id, needed_by=needed_by)
        return data

    def open_object(self, object_id: ObjectId, needed_by: str) -> int:
        """A descriptor of an object, to be closed by the caller.  Raises as :meth:`read_object`."""
        path = layout.object_path(object_id)
        fd = self.open_file(path)
        if fd is None:
            raise MissingObject(object=object_id, needed_by=needed_by)
        return fd

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
        try:
            return splitstream.parse(data, self.algorithm)
        except FormatError as error:
            error.path = self._shown(layout.object_path(object_id))
            raise

    def sole_content(self, stream: SplitStream, needed_by: str) -> bytes:
        """The bytes that a manifest, config or blob stream stands for: those of its only external object.

        Raises:
            MissingObject: the object is not there.
            FormatError: the stream has another shape, or the object is larger than :data:`MAX_JSON_OBJECT`.
        """
        from cfs_tags.formats import splitstream

        return self.read_object(splitstream.sole_object(stream), MAX_JSON_OBJECT, needed_by)


class WriteRepo(ReadRepo):
    """A repository that may be written.  What changes refs is in ``repo/transactions.py``; this adds content."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            self._refuse_read_only()
            self.owner = self._foreign_owner()
        except BaseException:
            self.close()
            raise

    def _refuse_read_only(self) -> None:
        if self.meta is not None and self.meta.unknown_read_only:
            features = ", ".join(self.meta.unknown_read_only)
            raise ReadOnlyRepository(path=self.path, reason=f"this program may not write with the feature {features}")
        if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            raise ReadOnlyRepository(path=self.path, reason=_MOUNTED_READ_ONLY)

    def _foreign_owner(self) -> fsops.Owner | None:
        # what root makes in a user's repository must stay the user's to change
        status = os.fstat(self.fd)
        if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            return status.st_uid, status.st_gid
        return None

    def make_directories(self, path: str) -> None:
        """Make a directory of the repository and its parents, and have their names on disk.

        Raises:
            FormatError: something else is in the place of one of them; a link, above all, is not followed.
            ReadOnlyRepository, SystemFailure: the system refused.
        """
        parent, _, _ = path.rpartition("/")
        if parent:
            self.make_directories(parent)
        if self.is_directory(path):
            return
        try:
            if fsops.make_directory(self.fd, path, self.owner):
                fsops.sync(self.fd, parent or ".")
            elif not self.is_directory(path):
                raise self._malformed(path, "a directory", self._kind(path))
        except OSError as error:
            if error.errno == errno.EROFS:
                raise ReadOnlyRepository(path=self.path, reason=_MOUNTED_READ_ONLY) from error
            raise SystemFailure.of(error, "make", self._shown(path)) from error

    def write_meta(self) -> bool:
        """Make ``meta.json`` where there is none, as cfsctl does whenever it opens such a repository.

        Objects are all that tells the algorithm then: it comes before the first of them goes.

        Returns:
            whether there was none; it is on disk now.

        Raises:
            SystemFailure: the system refused.
            ReadOnlyRepository, FormatError: somebody else made one meanwhile that does not fit.
        """
        if self.meta is not None:
            return False
        from cfs_tags.formats import repometa
        from cfs_tags.repo.objects import ObjectStore

        store = ObjectStore(self)
        try:
            fd = store.open_unnamed()
            try:
                fsops.write(fd, repometa.render(repometa.fresh(self.algorithm)))
                fd = store.sealed(fd)
                if self.is_secure:
                    fsops.enable_verity(fd, self.algorithm.number)
                fsops.sync_filesystem(fd)  # an empty one after a crash would be worse than none
                made = fsops.adopt_object(fd, self.fd, _META)
            finally:
                os.close(fd)
            fsops.sync(self.fd)
        except OSError as error:
            raise SystemFailure.of(error, "write", self._shown(_META)) from error
        self.meta = self._read_meta()
        if self.meta is None or self.meta.algorithm is not self.algorithm:
            found = "nothing" if self.meta is None else self.meta.algorithm.value
            raise self._malformed(_META, self.algorithm.value, found)
        self._refuse_read_only()
        return made

    def add_object(self, data: bytes) -> ObjectId:
        """Store bytes, named by their fs-verity digest.  Not synced: :meth:`add_stream` does that for all before it.

        Raises:
            SystemFailure: the system refused; nothing is named then.
            FormatError: something else than a file has the place of the object.
        """
        from cfs_tags.repo.objects import ObjectStore

        return ObjectStore(self).add(data)

    def add_stream(self, content_id: ContentId, data: bytes) -> ObjectId:
        """Store a splitstream and give it its name in ``streams/``, after everything it names is on disk.

        Returns:
            the object of the splitstream: the one that was there already where the name is taken.
        """
        found = self.stream_object(content_id)
        if found is not None:
            return found
        object_id = self.add_object(data)
        path = f"{layout.STREAMS}/{content_id}"
        self.make_directories(layout.STREAMS)
        try:
            fsops.sync_filesystem(self.fd)
            fsops.make_link(self.fd, path, layout.object_link(object_id))
            fsops.sync(self.fd, layout.STREAMS)
        except FileExistsError:
            return self.stream_object(content_id) or object_id
        except OSError as error:
            raise SystemFailure.of(error, "write", self._shown(path)) from error
        return object_id
