"""Several sources as one, for what a repository lacks: documents that it has itself are not asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cfs_tags.apps.blobs import read_document
from cfs_tags.apps.importing.source.base import Source, Way
from cfs_tags.errors import CfsTagsError, DamagedError, NotFoundError, SourceFailed, SourceNotFound, UnsupportedError
from cfs_tags.repo import images
from cfs_tags.values import ContentId, Digest

if TYPE_CHECKING:
    from cfs_tags.apps.blobs import Reader
    from cfs_tags.formats.oci import Descriptor
    from cfs_tags.repo.store import ReadRepo


class Combined(Source):
    """Sources that are asked in turn, after the repository itself.  One that does not answer is not asked again.

    Attributes:
        problems: what went wrong with one of them, for each where another was asked.
    """

    def __init__(self, repo: ReadRepo, sources: Sequence[Source]) -> None:
        super().__init__(", ".join(source.text for source in sources))
        self._repo = repo
        self._sources = list(sources)
        self._all = sources
        self._of: dict[str, Source] = {}
        self._configs: dict[Digest, bytes] = {}
        self.problems: list[CfsTagsError] = []

    def document(self, digest: Digest) -> bytes:
        """A manifest or index: that of the repository where it is whole, else the first that a source has."""
        raw = None
        with suppress(DamagedError, NotFoundError, UnsupportedError):
            raw = images.raw_manifest(self._repo, digest)
            with suppress(DamagedError, NotFoundError, UnsupportedError):
                # the config may be there without a link
                config = images.raw_config(self._repo, digest)
                self._configs[Digest.of(config)] = config
        if raw is not None:
            for source in self._sources:
                source.know(digest, raw)
            return raw
        failed: CfsTagsError = self._no_blob(digest)
        for source in list(self._sources):
            try:
                return read_document(io.BytesIO(source.document(digest)), digest)
            except (DamagedError, NotFoundError, SourceFailed) as error:
                failed = self._noted(error, source)
        raise failed

    def open(self, digest: Digest) -> Reader:
        """A blob: a config of the repository where it is whole, else the first that a source has."""
        with suppress(DamagedError, NotFoundError, UnsupportedError):
            return io.BytesIO(self._configs.get(digest) or self._stored_config(digest))
        failed: CfsTagsError = self._no_blob(digest)
        for source in list(self._sources):
            try:
                return source.open(digest)
            except (DamagedError, NotFoundError, SourceFailed) as error:
                failed = self._noted(error, source)
        raise failed

    def _stored_config(self, digest: Digest) -> bytes:
        content_id = ContentId.config(digest)
        stream = self._repo.stream_object(content_id)
        if stream is None:
            raise self._no_blob(digest)
        data = self._repo.sole_content(self._repo.stream(stream, content_id), content_id)
        if Digest.of(data) != digest:
            raise self._no_blob(digest)
        return data

    def _noted(self, error: CfsTagsError, source: Source | None) -> CfsTagsError:
        if isinstance(error, SourceFailed) and source in self._sources:
            self._sources.remove(source)
        if not isinstance(error, SourceNotFound) and error.message not in [one.message for one in self.problems]:
            self.problems.append(error)
        return error

    def size(self, digest: Digest) -> int | None:
        """None: that of a blob of a layer says nothing of what is here."""
        return None

    def ways(self, layer: Descriptor, diff_id: Digest | None) -> Iterator[Way]:
        """Those of each source, in turn."""
        for source in list(self._sources):
            for way in source.ways(layer, diff_id):
                self._of[way.text] = source
                yield way
                if source not in self._sources:  # that way has failed, and with it the source
                    break

    def expect(self, layers: Sequence[Digest]) -> None:
        """Be told which layers will be asked for."""
        for source in self._sources:
            source.expect(layers)

    def failed(self, way: Way, error: CfsTagsError) -> None:
        """Remember what went wrong."""
        self._noted(error, self._of.get(way.text))

    def close(self) -> None:
        """Close all of them."""
        for source in self._all:
            source.close()
