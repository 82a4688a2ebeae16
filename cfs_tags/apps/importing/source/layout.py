"""Directories of blobs: OCI layouts (image-spec 1.1, ``image-layout.md``) and what skopeo's ``dir:`` writes."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from cfs_tags.apps.importing.source.base import Source
from cfs_tags.apps.manifests import descriptor_of
from cfs_tags.errors import SourceNotFound, SystemFailure, UsageError, about
from cfs_tags.formats import oci
from cfs_tags.repo.directory import Directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.apps.blobs import Reader
    from cfs_tags.apps.importing.source.archive import Archive
    from cfs_tags.formats.oci import Descriptor
    from cfs_tags.values import Digest


class Folder:
    """Files below a directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._directory = Directory(path)
        except FileNotFoundError:
            raise SourceNotFound(source=path, reason="no such directory") from None
        except NotADirectoryError:
            raise SourceNotFound(source=path, reason="is no directory") from None
        except OSError as error:
            raise SystemFailure.of(error, "open", path) from error

    def read(self, name: str, limit: int) -> bytes | None:
        """The bytes of a small file; None where there is none.

        Raises:
            FormatError: longer than ``limit``, or no regular file, or behind a link.
        """
        self._refuse_links(name)
        return self._directory.read_file(name, limit)

    def open(self, name: str) -> Reader | None:
        """A file, None where there is none.  Raises as :meth:`read`."""
        self._refuse_links(name)
        fd = self._directory.open_file(name)
        return None if fd is None else _File(fd, os.path.join(self.path, name))

    def close(self) -> None:
        """Let go of the directory."""
        self._directory.close()

    def _refuse_links(self, name: str) -> None:
        place, _, _ = name.rpartition("/")
        while place:
            fd = self._directory.directory(place)  # refuses a link in the last place
            if fd is not None:
                os.close(fd)
            place, _, _ = place.rpartition("/")


class _File:
    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self.size = os.fstat(fd).st_size

    def read(self, size: int) -> bytes:
        try:
            return os.read(self._fd, size)
        except OSError as error:
            raise SystemFailure.of(error, "read", self._path) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LayoutSource(Source):
    """An OCI image layout (image-spec 1.1, ``image-layout.md``).

    Args:
        text: how it was named.
        place: the same without the name of the image.
        files: of the layout.
        wanted: an image by the whole name of an entry, by its name in the layout, or by its digest; None for the only one.

    Raises:
        SourceNotFound: it is no layout, or has no such image.
        FormatError: ``index.json`` is none.
    """

    def __init__(self, text: str, place: str, files: Folder | Archive, wanted: str | None) -> None:
        super().__init__(text)
        self._place = place
        self._files = files
        try:
            self.listed = [entry for entry in self._read().manifests if entry.media_type in oci.MANIFEST_TYPES]
            self.offered = self.listed if wanted is None else self._called(wanted)
            if not self.offered:
                names = tuple(dict.fromkeys(name for entry in self.listed for name in _names(entry)))
                raise SourceNotFound(source=text, reason=f"has no image{f' {wanted}' if wanted else ''}", names=names)
        except BaseException:
            files.close()
            raise

    def _read(self) -> oci.Index:
        data = self._files.read("index.json", oci.MAX_INDEX)
        if data is None:
            raise SourceNotFound(source=self.text, reason="is no OCI layout: it has no index.json")
        with about(os.path.join(self._files.path, "index.json")):
            return oci.parse_index(data)

    def _called(self, wanted: str) -> Sequence[Descriptor]:
        digest = wanted.removeprefix("@")
        found = [entry for entry in self.listed if wanted in _names(entry)]
        return found or [entry for entry in self.listed if entry.digest == digest][:1]

    def name_of(self, entry: Descriptor) -> str | None:
        """The whole name of an entry, where it has one, else its name in the layout."""
        return next(iter(_names(entry)), None)

    def ambiguous(self, entries: Sequence[Descriptor]) -> UsageError:
        """The error that has a name for each entry that no other has, as it is written behind the layout."""
        digests: dict[str, set[Digest]] = {}
        for entry in self.listed:
            for name in _names(entry):
                digests.setdefault(name, set()).add(entry.digest)
        candidates = [
            next((name for name in _names(entry) if len(digests[name]) == 1), f"@{entry.digest}") for entry in entries
        ]
        return UsageError("ambiguous-name", name=self._place, candidates=tuple(candidates))

    def open(self, digest: Digest) -> Reader:
        """The bytes of a blob, by its path in the source."""
        found = self._files.open(f"blobs/{digest.algorithm}/{digest.hex}")
        if found is None:
            raise self._no_blob(digest)
        return found

    def close(self) -> None:
        """Let go of the directory or archive."""
        self._files.close()


def _names(entry: Descriptor) -> list[str]:
    """The whole name of an entry, and its name in the layout."""
    keys = (oci.FULL_NAME, oci.REF_NAME)
    return [entry.annotations[key] for key in keys if entry.annotations.get(key)]


class DirSource(Source):
    """A directory as skopeo's ``dir:`` writes it: ``manifest.json``, ``<hex>.manifest.json`` for the images of an index,
    blobs by their digits.

    Attributes:
        top: the bytes of ``manifest.json``.
    """

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self._files = Folder(path)
        try:
            data = self._files.read("manifest.json", oci.MAX_MANIFEST)
            if data is None:
                raise SourceNotFound(source=text, reason="has no manifest.json")
            self.top = data
            self._descriptor = descriptor_of(data)
            self.offered = (self._descriptor,)
        except BaseException:
            self._files.close()
            raise

    def open(self, digest: Digest) -> Reader:
        """The bytes of a blob, by its path in the source."""
        if digest == self._descriptor.digest:
            return io.BytesIO(self.top)
        found = self._files.open(digest.hex) or self._files.open(f"{digest.hex}.manifest.json")
        if found is None:
            raise self._no_blob(digest)
        return found

    def close(self) -> None:
        """Let go of the directory or archive."""
        self._files.close()
