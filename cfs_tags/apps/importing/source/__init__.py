"""Where images come from: OCI layouts, archives, ``dir:`` directories; and, through skopeo, everything that it knows.

A source gives descriptors of what it offers, and the bytes of a blob by its digest.  It checks nothing: the reader of a blob
does (``apps/blobs.py``).  Names are never followed out of the source: blobs are opened below its directory, and a link in
the place of one is refused.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from cfs_tags.apps.importing.source.archive import Archive
from cfs_tags.apps.importing.source.docker import DockerSource
from cfs_tags.apps.importing.source.layout import DirSource, Folder, LayoutSource
from cfs_tags.apps.importing.source.skopeo import SkopeoSource
from cfs_tags.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.apps.importing.source.base import Source
    from cfs_tags.apps.workdir import Machine

__all__ = ["open_source"]

_TRANSPORT = re.compile(r"([a-z][a-z0-9-]*):(.*)", re.DOTALL)


def open_source(text: str, machine: Machine, limit: int, *, offers: bool = True) -> Source:
    """The source with that name: ``oci:DIR[:REF]``, ``oci-archive:FILE[:REF]``, ``docker-archive:FILE[:REF]``, ``dir:DIR``,
    ``http://HOST:PORT/REPOSITORY[:TAG]``, or anything that skopeo knows.

    Args:
        text: as for skopeo.
        machine: where other programs and temporary files are.
        limit: bytes that an archive may have once it is uncompressed.
        offers: whether an image of it is wanted by name; else a registry is asked for what is wanted by digest alone.

    Raises:
        UsageError: no transport is named.
        SourceNotFound: nothing is there.
        SourceFailed: a registry does not answer.
        CfsTagsError (program-missing): skopeo is needed.
    """
    match = _TRANSPORT.fullmatch(text)
    if match is None or not match[2] or "\0" in text:
        reason = "names no transport: write oci:DIR:REF, oci-archive:FILE, docker-archive:FILE, dir:DIR or docker://NAME"
        raise UsageError("invalid-argument", argument="SOURCE", value=text, reason=reason)
    transport, rest = match[1], match[2]
    if transport == "oci":
        path, name = _split(rest, os.path.isdir)
        return LayoutSource(text, f"{transport}:{path}", Folder(path), name)
    if transport == "oci-archive":
        path, name = _split(rest, os.path.isfile)
        return LayoutSource(text, f"{transport}:{path}", Archive(path, machine, limit), name)
    if transport == "docker-archive":
        path, name = _split(rest, os.path.isfile)
        return DockerSource(text, f"{transport}:{path}", Archive(path, machine, limit, absolute=True), name, limit)
    if transport == "dir":
        return DirSource(text, rest)
    if transport in ("http", "https"):
        from cfs_tags.apps.importing.source.http import HttpSource  # 20 ms: http.client with all that it needs

        source = HttpSource(text, offers=offers)
        if offers and not source.offered:
            reason = "names no image: write http://HOST:PORT/REPOSITORY[:TAG]"
            raise UsageError("invalid-argument", argument="SOURCE", value=text, reason=reason)
        return source
    return SkopeoSource(text, transport, rest, machine, offers=offers)


def _split(text: str, is_there: Callable[[str], bool]) -> tuple[str, str | None]:
    """Path and name: at the first colon that leaves the path of something that is there, as skopeo does."""
    for position, character in enumerate(text):
        if character == ":" and is_there(text[:position]):
            return text[:position], text[position + 1 :] or None
    if not is_there(text) and ":" in text:
        path, _, name = text.partition(":")
        return path, name or None
    return text, None
